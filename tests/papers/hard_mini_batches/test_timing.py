"""What is timed, and where its seconds go."""

import numpy as np
import pytest

from hardtrain.papers.hard_mini_batches import timing


@pytest.mark.parametrize("num_channels", [1, 3])
def test_hard_batch_step_times_give_each_training_its_place(monkeypatch, num_channels):
    trained = []

    def fit(run, model, method, evaluate):
        size = tuple(method.batches.dataset.images.shape[1:])
        trained.append((run.options["delta"], run.options["order"], run.network, size))
        assert (len(method.batches), run.epochs, run.batch_size) == (4, 2, 16)

    def interleaved(functions, repetitions, **options):
        for train in functions.values():
            train()
        return {name: [8.0 * number] * 3 for number, name in enumerate(functions, start=1)}

    monkeypatch.setattr(timing, "fit", fit)
    monkeypatch.setattr(timing.timing, "interleaved", interleaved)
    found = timing.hard_batch_step_times(
        network="cnn_small", batch_size=16, image_size=9, num_channels=num_channels,
        deltas=[0.5, 0.2], num_batches=4, device="cpu",
    )  # fmt: skip
    assert found["deltas"].tolist() == [1, 0.5, 0.2]
    assert found["seconds"].tolist() == [[1, 2, 3]] * 3  # of 2 x 4 updates
    kind = ("cnn_small", (num_channels, 9, 9))
    assert trained == [(1.0, "index", *kind), (0.5, "loss", *kind), (0.2, "loss", *kind)]


def test_hard_batch_step_times_are_measured():
    found = timing.hard_batch_step_times(
        network="cnn_small_bn", batch_size=8, image_size=8, num_channels=1, deltas=[0.5],
        num_batches=2, repetitions=1, device="cpu",
    )  # fmt: skip
    assert found["seconds"].shape == (1, 2)
    assert (found["seconds"] > 0).all()
    assert np.isfinite(found["seconds"]).all()
