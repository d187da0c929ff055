"""What trainings note down: copies of the weights, counts and weights of samples by phase.

The log of hard mini-batches is tested in ``test_methods_hard_batches``, with its training.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import copied, interrupt_after, small_set
from torch import nn

from hardtrain import ParameterError, Run, RunStore, load_artefact, run_missing
from hardtrain.runs.run_data import load_data
from hardtrain.runs.train import build
from hardtrain.training import loop, randomness
from hardtrain.training.memory import NUM_PHASES, Snapshots, SumsByPhase
from hardtrain.training.randomness import derived_seed

# --- sums by phase -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32], ids=["counts", "weights"])
def test_sums_by_phase_are_those_of_a_loop_with_repetitions(dtype):
    def empty():
        return SumsByPhase("sums", SimpleNamespace(epochs=9), small_set(num=7), dtype)

    draws = torch.Generator().manual_seed(0)
    noted, table = empty(), np.zeros((NUM_PHASES, 7))
    for epoch in range(9):
        noted.start_epoch(epoch)
        for _ in range(5):
            indices = torch.randint(6, (8,), generator=draws)  # repeats some, never 6
            amounts = torch.rand(8, generator=draws) if dtype.is_floating_point else torch.ones(8)
            noted.add(indices, amounts)
            for i, amount in zip(indices.tolist(), amounts.tolist(), strict=True):
                table[[0, 0, 0, 1, 1, 2, 2, 3, 3][epoch], i] += amount
        if epoch == 5:
            state = copied(noted.state_dict())
            noted = empty()
            noted.load_state_dict(state)
    arrays = noted.arrays()
    assert list(arrays) == ["sums"]
    assert arrays["sums"].dtype == dtype
    assert arrays["sums"].numpy() == pytest.approx(table, rel=1e-5)
    assert (arrays["sums"][:, 6] == 0).all()


# --- Snapshots -----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1, 2, 7, 8, 12, 100, 101])
def test_snapshots_are_spread_evenly_over_the_last_half(num_steps):
    half = num_steps - num_steps // 2
    for number in range(1, half + 1):
        steps = Snapshots.of_last_half(nn.Linear(1, 1), num_steps, number).steps
        assert len(steps) == number
        assert steps[-1] == num_steps
        assert steps[0] > num_steps // 2
        gaps = np.diff([num_steps // 2, *steps])
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1
    with pytest.raises(ParameterError, match=f"checkpoints:{half + 1} wants more than the {half}"):
        Snapshots.of_last_half(nn.Linear(1, 1), num_steps, half + 1)


def test_snapshots_of_twelve_steps_by_hand():
    model = nn.Linear(1, 1)
    assert Snapshots.of_last_half(model, 12, 3).steps == [8, 10, 12]
    assert Snapshots.of_last_half(model, 12, 4).steps == [7, 9, 10, 12]
    assert Snapshots.of_last_half(model, 13, 1).steps == [13]


def test_snapshots_are_copies_and_go_on_after_a_pause():
    model = nn.BatchNorm1d(2)
    snapshots = Snapshots(model, [2, 3, 5])
    for step in range(1, 6):
        with torch.no_grad():
            model.weight.fill_(step)
            model.running_mean.fill_(10 * step)
            model.num_batches_tracked.fill_(step)
        snapshots.note()
        if step in (1, 2, 4):
            state = copied(snapshots.state_dict())
            snapshots = Snapshots(model, [2, 3, 5])
            snapshots.load_state_dict(state)
    with torch.no_grad():
        model.weight.fill_(-1)
    arrays = snapshots.arrays()
    assert arrays.keys() == {"steps", *model.state_dict()}
    assert arrays["steps"].tolist() == [2, 3, 5]
    assert arrays["weight"].tolist() == [[2, 2], [3, 3], [5, 5]]
    assert arrays["running_mean"].tolist() == [[20, 20], [30, 30], [50, 50]]
    assert arrays["num_batches_tracked"].tolist() == [2, 3, 5]
    model.load_state_dict({name: values[1] for name, values in arrays.items() if name != "steps"})
    assert model.weight.tolist() == [3, 3]


# --- keep=("checkpoints:N",) ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints:", "checkpoints:0", "checkpoints:N",
                                  "checkpoints:-2", "checkpoints:2.5", "checkpoints:02",
                                  "checkpoints: 2", "checkpoints:²"])  # fmt: skip
def test_checkpoints_without_a_number_are_refused(name):
    with pytest.raises(ParameterError, match="write checkpoints:20 for 20 of them"):
        Run(dataset="digits", network="cnn_small", keep=[name])


def test_other_names_are_refused_with_the_nearest():
    with pytest.raises(ParameterError, match="did you mean 'checkpoints:N'"):
        Run(dataset="digits", network="cnn_small", keep=["checkpoint:N"])


def test_more_checkpoints_than_steps_are_refused_before_training(tiny_run, store):
    run = tiny_run(keep=["checkpoints:5"])  # 8 steps
    with pytest.raises(ParameterError, match="checkpoints:5 wants more than the 4 steps"):
        run_missing([run], store)
    assert not store.path.exists()


def weights_after(run, num_steps):
    """Of a training that is stopped after so many steps."""
    train, test, _ = load_data(run)
    seen = 0

    class Stop(Exception):
        pass

    with randomness.isolated_randomness(derived_seed(run.seed, "torch"), torch.device("cpu")):
        model, method = build(run, train, test)
        objective = method.objective

        def stopping(model, batch):
            nonlocal seen
            if seen == num_steps:
                raise Stop
            seen += 1
            return objective(model, batch)

        method.objective = stopping
        try:
            loop.fit(run, model, method, lambda model: {})
        except Stop:
            pass
    assert seen == num_steps
    return {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("method", ["plain", "trimming"])
def test_checkpoints_are_the_weights_of_trainings_stopped_there(tiny_run, store, method):
    changes = {"network": "cnn_small_bn", "epochs": 3, "momentum": 0.9, "method": method}
    run = tiny_run(**changes, keep=["checkpoints:4", "final_weights", "checkpoints:1"])
    frame = run_missing([run], store)
    found = load_artefact(run, "checkpoints:4", store)
    assert found["steps"].tolist() == [7, 9, 10, 12]
    for i, step in enumerate(found["steps"]):
        expected = weights_after(run, step)
        assert found.keys() == {"steps", *expected}
        for name, value in expected.items():
            assert np.array_equal(found[name][i], value), (name, step)
    final = load_artefact(run, "final_weights", store)
    last = load_artefact(run, "checkpoints:1", store)
    assert last["steps"].tolist() == [12]
    assert all(np.array_equal(last[name][0], final[name]) for name in final)
    files = sorted(path.name.split(".")[1] for path in store.path.glob("artefacts/*"))
    assert files == ["checkpoints-1", "checkpoints-4", "final_weights"]
    # the same training as without
    plain = run_missing([tiny_run(**changes)], RunStore(store.path / "other"))
    assert plain["key"][0] == frame["key"][0]
    assert plain["test_loss"][0] == frame["test_loss"][0]


@pytest.mark.parametrize("end", [1, 2, 3])
def test_checkpoints_go_on_after_a_pause_with_the_same_bits(tiny_run, store, end):
    run = tiny_run(epochs=4, momentum=0.9, method="trimming", keep=["checkpoints:5"])
    whole = load_artefact(run, "checkpoints:5", store)
    assert whole["steps"].tolist() == [9, 11, 12, 14, 16]  # epochs end at 4, 8, 12 and 16
    other = RunStore(store.path / "paused", checkpoint_seconds=0.0)
    interrupt_after(run, other, end)
    resumed = load_artefact(run, "checkpoints:5", other)
    assert whole.keys() == resumed.keys()
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


def test_checkpoints_are_made_again_when_they_are_missing(tiny_run, store):
    run = tiny_run(keep=["checkpoints:2"])
    before = load_artefact(run, "checkpoints:2", store)
    (path,) = store.path.glob("artefacts/*.checkpoints-2.npz")
    path.unlink()
    after = load_artefact(run, "checkpoints:2", store)
    assert all(np.array_equal(before[name], after[name]) for name in before)
