"""Selective-Backprop: its probabilities by hand and by a slow loop, its draws, its state."""

import math
from collections import deque

import pytest
import torch
from helpers import copied

from hardtrain import SelectiveBackprop


def selective(seed=0, **settings):
    return SelectiveBackprop(generator=torch.Generator().manual_seed(seed), **settings)


def test_probabilities_are_ranks_in_the_history_to_the_power_beta():
    one = selective(beta=2, history=4)
    one.choose(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    losses = torch.tensor([0.5, 1.0, 2.5, 4.0, 9.0])
    expected = [0.0, (1 / 4) ** 2, (2 / 4) ** 2, 1.0, 1.0]
    assert one.probabilities(losses).tolist() == pytest.approx(expected)


def test_choices_match_a_slow_loop_over_a_queue():
    beta, history = 1.5, 50
    ours, uniform = selective(3, beta=beta, history=history), torch.Generator().manual_seed(3)
    queue = deque(maxlen=history)
    draws = torch.Generator().manual_seed(4)
    for size in (7, 1, 32, 20, 60, 5):
        losses = torch.rand(size, generator=draws)
        queue.extend(losses.tolist())  # first remembered, then ranked
        coins = torch.rand(size, dtype=torch.float64, generator=uniform).tolist()
        chosen = []
        for i, (loss, coin) in enumerate(zip(losses.tolist(), coins, strict=True)):
            rank = sum(old <= loss for old in queue) / len(queue)
            if coin < rank**beta or loss == losses.max().item():
                chosen.append(i)
        assert ours.choose(losses).tolist() == chosen


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 3.0])
def test_one_in_one_plus_beta_is_chosen(beta):
    one, draws = selective(beta=beta), torch.Generator().manual_seed(1)
    chosen = sum(len(one.choose(torch.rand(100, generator=draws))) for _ in range(400))
    # of 40,000; the ranks themselves vary, too
    assert chosen / 40_000 == pytest.approx(1 / (1 + beta), abs=0.012)


def test_higher_losses_are_chosen_more_often():
    one = selective(beta=1, history=10)
    counts = torch.zeros(10)
    for _ in range(2000):
        counts[one.choose(torch.arange(10.0))] += 1
    expected = torch.arange(1.0, 11) / 10 * 2000
    assert ((counts - expected).abs() < 4.5 * math.sqrt(2000 * 0.25)).all()
    assert counts[9] == 2000


def test_the_hardest_of_a_batch_is_always_chosen():
    one = selective(beta=50.0)
    one.choose(torch.arange(10.0, 1000.0))
    for _ in range(20):
        assert one.choose(torch.tensor([0.1, 0.3, 0.2])).tolist() == [1]


def test_it_goes_on_from_its_state():
    draws = torch.Generator().manual_seed(1)
    batches = torch.rand(20, 30, generator=draws)
    one = selective(history=64)
    for losses in batches[:10]:
        one.choose(losses)
    state = copied([one.state_dict(), one.generator.get_state()])
    wanted = [one.choose(losses).tolist() for losses in batches[10:]]
    other = selective(9, history=64)
    other.load_state_dict(state[0])
    other.generator.set_state(state[1])
    assert [other.choose(losses).tolist() for losses in batches[10:]] == wanted
    with pytest.raises(ValueError, match="state must have history = 63; got 64"):
        selective(history=63).load_state_dict(state[0])


def test_no_gradient_is_followed():
    one = selective()
    one.choose(torch.rand(4, requires_grad=True))
    assert not one.recent.requires_grad


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"beta": 0}, ValueError, "beta must be finite and > 0; got 0"),
        ({"beta": "1"}, TypeError, "beta must be a number"),
        ({"history": 0}, ValueError, "history must be at least 1; got 0"),
        ({"generator": 3}, TypeError, "generator must be a CPU torch.Generator"),
    ],
)
def test_wrong_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        SelectiveBackprop(**settings)


def test_wrong_losses_are_refused():
    with pytest.raises(ValueError, match=r"losses must have shape \(B,\)"):
        selective().choose(torch.ones(2, 2))
    with pytest.raises(TypeError, match="losses must be a tensor of float16"):
        selective().choose(torch.ones(2).long())
