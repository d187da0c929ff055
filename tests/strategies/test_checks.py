"""Every check of the strategies: what it lets through, what it refuses, and in which words."""

import math

import numpy as np
import pytest
import torch

import hardtrain
from hardtrain.strategies import _checks


def test_integer_takes_any_integer_in_its_range():
    assert _checks.integer("n", 1) == _checks.integer("n", np.int64(1)) == 1
    assert type(_checks.integer("n", np.int64(1))) is int
    assert _checks.integer("n", 0, 0, 3) == 0
    assert _checks.integer("n", 3, 0, 3) == 3


@pytest.mark.parametrize("value", [True, 2.0, "3", None, [1], torch.tensor(1)])
def test_integer_refuses_other_types(value):
    with pytest.raises(TypeError, match="n must be an integer; got "):
        _checks.integer("n", value)


@pytest.mark.parametrize(
    ("value", "limits", "words"),
    [
        (0, (), "n must be at least 1; got 0"),
        (-1, (), "n must be at least 1; got -1"),
        (-1, (0, 3), r"n must be in 0\.\.3; got -1"),
        (4, (0, 3), r"n must be in 0\.\.3; got 4"),
    ],
)
def test_integer_refuses_what_is_outside(value, limits, words):
    with pytest.raises(ValueError, match=words):
        _checks.integer("n", value, *limits)


NUMBERS = {
    _checks.fraction: ([1e-300, 0.5, 1, np.float32(0.5)], [0, -0.5, 1.0000001], r"in \(0, 1\]"),
    _checks.positive: ([1e-300, 7, np.float64(2)], [0, -1.0], "finite and > 0"),
    _checks.not_negative: ([0, 0.0, 7], [-1e-9], "finite and >= 0"),
}


@pytest.mark.parametrize("check", NUMBERS)
def test_numbers_take_their_range_and_nothing_else(check):
    inside, outside, words = NUMBERS[check]
    for value in inside:
        assert check("p", value) == value
        assert type(check("p", value)) is float
    for value in (*outside, math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=f"p must be {words}; got {value}"):
            check("p", value)
    for value in (True, "0.5", None, torch.tensor(0.5), [0.5], 1j):
        with pytest.raises(TypeError, match=f"p must be a number, {words}; got "):
            check("p", value)


def test_choice_names_the_nearest():
    known = ("loss", "index")
    assert _checks.choice("order", "index", known) == "index"
    for value, nearest in (("indx", "index"), ("Loss", "loss"), ("", "")):
        words = f"order must be 'loss' or 'index'; got {value!r}: meant '{nearest}"
        with pytest.raises(ValueError, match=words):
            _checks.choice("order", value, known)
    with pytest.raises(TypeError, match="order must be 'loss' or 'index'; got None"):
        _checks.choice("order", None, known)


def test_instance_and_generator():
    _checks.instance("x", [1], list)
    with pytest.raises(TypeError, match=r"x must be of type list; got torch.float32 \(2, 3\)"):
        _checks.instance("x", torch.ones(2, 3), list)
    _checks.cpu_generator(None)
    _checks.cpu_generator(torch.Generator())
    with pytest.raises(TypeError, match=r"generator must be a CPU torch.Generator or None; got 3"):
        _checks.cpu_generator(3)


def test_settings_names_the_one_that_differs():
    own = {"size": 3, "order": "loss"}
    _checks.settings({"order": "loss", "size": 3, "more": 0}, own)
    with pytest.raises(ValueError, match="state must have order = 'loss'; got 'index'"):
        _checks.settings({"size": 3, "order": "index"}, own)
    with pytest.raises(ValueError, match="state must have size = 3; got None"):
        _checks.settings({}, own)


@pytest.mark.parametrize(
    ("shape", "shapes"),
    [((), [()]), ((3,), ["N"]), ((3,), [(3,)]), ((3, 1), ["ND"]), ((2, 5), [("n", 5)]),
     ((), [(), (3,)]), ((3,), [(), (3,)]), ((0, 2), [(0, 2)])],
)  # fmt: skip
def test_tensor_takes_numbers_and_letters_for_sizes(shape, shapes):
    values = torch.ones(shape)
    assert _checks.tensor("x", values, *shapes) is values


@pytest.mark.parametrize(
    ("shape", "shapes", "words"),
    [
        ((), ["N"], r"x must have shape \(N,\); got \(\)"),
        ((0,), ["B"], r"x must have shape \(B,\), sizes >= 1; got \(0,\)"),
        ((2, 2), ["N"], r"x must have shape \(N,\); got \(2, 2\)"),
        ((2,), [(3,)], r"x must have shape \(3,\); got \(2,\)"),
        ((3, 0), ["nD"], r"x must have shape \(n, D\), sizes >= 1; got \(3, 0\)"),
        ((3, 5), [("m", 2)], r"x must have shape \(m, 2\); got \(3, 5\)"),
        ((2,), [(), (3,)], r"x must have shape \(\) or \(3,\); got \(2,\)"),
        ((1,), [()], r"x must have shape \(\); got \(1,\)"),
    ],
)
def test_tensor_refuses_other_shapes(shape, shapes, words):
    with pytest.raises(ValueError, match=words):
        _checks.tensor("x", torch.ones(shape), *shapes)


def test_tensor_refuses_other_types():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        _checks.tensor("x", torch.ones(1, dtype=dtype), "N")
    for dtype in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(TypeError, match=rf"x must be a tensor of float16, .*; got {dtype} \(1"):
            _checks.tensor("x", torch.ones(1, dtype=dtype), "N")
        assert (dtype in _checks.INTEGERS) == (dtype in _checks.INDICES) == (dtype == torch.int64)
    for value in ([1.0], np.ones(1), None):
        with pytest.raises(TypeError, match=f"float64; got {type(value).__name__}"):
            _checks.tensor("x", value, "N")
    with pytest.raises(TypeError, match=r"indices must be a tensor of int64; got torch.int32"):
        _checks.tensor("indices", torch.ones(1).int(), "N", dtypes=_checks.INDICES)


def test_labels_are_classes_one_for_each_sample():
    samples = torch.ones(3, 7)
    given = torch.tensor([0, 2, 1], dtype=torch.int32)
    assert torch.equal(_checks.labels("labels", given, samples, 3), given.long())
    assert _checks.labels("labels", given, samples, 3).dtype == torch.int64
    for wrong, error, words in [
        (torch.tensor([0, 3, 1]), ValueError, r"labels must be in 0\.\.2; got 3"),
        (torch.tensor([0, -1, 1]), ValueError, r"labels must be in 0\.\.2; got -1"),
        (torch.tensor([0, 1]), ValueError, r"labels must have shape \(3,\); got \(2,\)"),
        (torch.zeros(3), TypeError, "labels must be a tensor of uint8, .*; got torch.float32"),
        (torch.zeros(3).bool(), TypeError, "labels must be .*; got torch.bool"),
        ([0, 1, 2], TypeError, "labels must be .*; got list"),
        (torch.zeros(3, device="meta").long(), ValueError, "labels must be on cpu, .*; got meta"),
    ]:
        with pytest.raises(error, match=words):
            _checks.labels("labels", wrong, samples, 3)


@pytest.mark.parametrize("wrong", [-0.5, 1.5, math.nan, math.inf, -math.inf])
def test_within_looks_at_contents_on_the_host_only(monkeypatch, wrong):
    _checks.within("p", torch.tensor([0.0, 0.5, 1.0]), 0, 1, "in [0, 1]")
    values = torch.tensor([0.5, wrong, 0.25])
    with pytest.raises(ValueError, match=rf"p must be in \[0, 1\]; got {wrong}"):
        _checks.within("p", values, 0, 1, "in [0, 1]")
    monkeypatch.setattr(_checks, "on_host", lambda values: False)
    _checks.within("p", values, 0, 1, "in [0, 1]")


def test_on_host_knows_where_a_look_is_free():
    assert _checks.on_host(torch.ones(1))
    assert _checks.on_host([1])
    assert not _checks.on_host(torch.ones(1, device="meta"))


@pytest.mark.parametrize("values", [[2, 0], np.array([0, 2])[::-1], np.array([0, 1, 2])[::-2]])
def test_positions_are_taken_from_lists_and_arrays_that_run_backwards(values):
    assert _checks.positions(values).tolist() == [2, 0]
    assert _checks.indices(values, 3).tolist() == [2, 0]


def test_samplers_and_hooks_say_their_settings():
    hard = hardtrain.HardBatchSampler(8, 2, 0.5)
    pruning = hardtrain.PruningBatchSampler(8, 2, num_epochs=4)
    weighted = hardtrain.WeightedBatchSampler(torch.tensor([0.25, 0.75]), batch_size=2)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    things = {
        hard: "HardBatchSampler(num_samples=8, batch_size=2, delta=0.5, order='loss', "
        "drop_last=False)",
        pruning: "PruningBatchSampler(num_samples=8, batch_size=2, ratio=0.5, num_epochs=4, "
        "pruned_part=0.875, reading='paper', drop_last=False)",
        weighted: "WeightedBatchSampler(num_samples=2, batch_size=2)",
        hardtrain.RankBatchSampler(hard, num_replicas=2, rank=1): "RankBatchSampler("
        "num_replicas=2, rank=1)",
        hardtrain.GradientNoise(optimizer): "GradientNoise(alpha=1e-05, gamma=0.55)",
        hardtrain.SelectiveBackprop(): "SelectiveBackprop(beta=1.0, history=1024)",
    }
    assert [repr(thing) for thing in things] == list(things.values())
