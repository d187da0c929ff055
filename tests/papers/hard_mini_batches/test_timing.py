"""What is timed, and where its ratio goes."""

import numpy as np

from hardtrain.papers.hard_mini_batches import timing


def test_hard_batch_step_times_give_each_ratio_its_place(monkeypatch):
    trained = []

    def fit(run, model, method, evaluate):
        trained.append((run.method, run.options.get("delta"), run.epochs))
        assert len(method.batches) == 4

    def relative_times(plain, others, repetitions, **options):
        for train in (plain, *others):
            train()
        return 1 + np.arange(len(others))

    monkeypatch.setattr(timing, "fit", fit)
    monkeypatch.setattr(timing, "relative_times", relative_times)
    found = timing.hard_batch_step_times(num_batches=4, device="cpu")
    assert found["deltas"].tolist() == [0.8, 0.5, 0.2]
    assert found["ratios"].tolist() == [1, 2, 3]
    plain, *hard = trained
    assert plain == ("plain", None, 4)
    assert hard == [("hard_batches", delta, 4) for delta in (0.8, 0.5, 0.2)]
