"""Scaled rates and equal updates against their definitions."""

import dataclasses
import math

import pytest

from hardtrain import ParameterError, load_history, run_missing
from hardtrain.papers.gradient_noise.batch_size import num_updates, with_batch_size
from hardtrain.training import loop


@pytest.mark.parametrize(
    ("batch_size", "scaling", "factor"),
    [
        (64, "none", 1),
        (64, "linear", 4),
        (64, "sqrt", 2),
        (32, "sqrt", math.sqrt(2)),
        (8, "linear", 1 / 2),  # smaller batches, too
        (4, "sqrt", 1 / 2),
        (24, "linear", 1.5),
        (16, "linear", 1),
    ],
)
def test_with_batch_size_scales_the_rate_and_nothing_else(tiny_run, batch_size, scaling, factor):
    run = tiny_run(batch_size=16, lr=0.05, milestones=(1,), momentum=0.9, weight_decay=1e-4)
    scaled = with_batch_size(run, batch_size, lr_scaling=scaling)
    assert scaled.batch_size == batch_size
    assert scaled.lr == pytest.approx(0.05 * factor, rel=1e-15)
    assert dataclasses.replace(scaled, batch_size=16, lr=0.05) == run
    if batch_size == 16:
        assert scaled == run


def test_with_batch_size_stretches_every_epoch_of_the_schedule_for_the_same_updates(tiny_run):
    run = tiny_run(
        batch_size=16, epochs=10, milestones=(3, 6), step_epochs=2, warmup_epochs=1, lr=0.1
    )
    large = with_batch_size(run, 48, same_updates=True)
    assert (large.epochs, large.milestones) == (30, (9, 18))
    assert (large.step_epochs, large.warmup_epochs) == (6, 3)
    assert large.lr == 0.1
    assert (large.evaluate_every, large.seed, large.gamma) == (1, 0, 0.1)
    assert with_batch_size(run, 16, same_updates=True) == run
    both = with_batch_size(run, 48, lr_scaling="sqrt", same_updates=True)
    assert both.lr == pytest.approx(0.1 * math.sqrt(3))
    assert dataclasses.replace(both, lr=0.1) == large


@pytest.mark.parametrize(
    "schedule",
    [
        {"schedule": "constant", "warmup_epochs": 2},
        {"schedule": "step", "step_epochs": 2},
        {"schedule": "multistep", "milestones": (1, 4)},
        {"schedule": "cosine", "warmup_epochs": 1},
        {"schedule": "linear", "step_epochs": 5},
    ],
    ids=lambda schedule: schedule["schedule"],
)
def test_same_updates_have_the_same_rates_step_by_step(tiny_run, schedule):
    # 64 samples: 16 steps of 4 an epoch, or 4 of 16
    run = tiny_run(batch_size=4, epochs=6, **schedule)
    large = with_batch_size(run, 16, same_updates=True)
    steps = range(6 * 16)
    assert len(steps) == large.epochs * 4
    rates = [loop.learning_rate(run, step, 16) for step in steps]
    stretched = [loop.learning_rate(large, step, 4) for step in steps]
    assert stretched == pytest.approx(rates, rel=1e-12)
    assert len(set(rates)) > 1


def test_same_updates_train_as_many_steps(tiny_run, store):
    run = tiny_run(batch_size=10, epochs=2, lr=0.02)  # 60 samples
    large = with_batch_size(run, 30, lr_scaling="linear", same_updates=True)
    history = load_history(run_missing([run, large], store), store)
    last = history.groupby("key")["step"].max()
    assert last[run.key] == last[large.key] == 12


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"batch_size": 0}, "batch_size = 0 is less than 1"),
        ({"batch_size": 32.0}, "batch_size = 32.0 is float, not int"),
        ({"lr_scaling": "square"}, r"unknown lr_scaling 'square'; .*known: none, linear, sqrt"),
        ({"batch_size": 24, "same_updates": True}, "batch_size = 24 is not a multiple of 16"),
        ({"batch_size": 8, "same_updates": True}, "batch_size = 8 is not a multiple of 16"),
    ],
)
def test_with_batch_size_refuses_by_name(tiny_run, arguments, text):
    with pytest.raises(ParameterError, match=text):
        with_batch_size(tiny_run(batch_size=16), **{"batch_size": 32} | arguments)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [10, 16, 60])
def test_updates_are_those_of_the_loop(tiny_run, store, batch_size, drop_last):
    run = tiny_run(batch_size=batch_size, epochs=2, lr=0.02, drop_last=drop_last)  # 60 samples
    history = load_history(run_missing([run], store), store)
    assert num_updates(run, 60) == history["step"].max()


@pytest.mark.parametrize(("num_train", "sizes"), [(256, (32, 64, 128)), (6903, (32, 64, 128))])
def test_the_notebooks_sizes_have_equal_updates(tiny_run, num_train, sizes):
    """Of quick exactly full batches; of the whole of Caltech-101 with a short last one."""
    run = tiny_run(batch_size=32, epochs=15)
    longer = [with_batch_size(run, size, same_updates=True) for size in sizes]
    assert len({num_updates(each, num_train) for each in longer}) == 1
