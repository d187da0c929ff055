"""Reducible loss against a slow reference, and every error."""

import math

import pytest
import torch

from hardtrain import select_reducible


def slowly(losses, irreducible, count):
    """One after the other, the highest that is left; of equals the first."""
    reducible = [a - b for a, b in zip(losses.tolist(), irreducible.tolist(), strict=True)]
    chosen = []
    for _ in range(count):
        best = None
        for i, value in enumerate(reducible):
            if i not in chosen and (best is None or value > reducible[best]):
                best = i
        chosen.append(best)
    return chosen


def test_the_highest_loss_above_the_irreducible_one_is_chosen():
    losses = torch.tensor([2.5, 0.1, 2.4, 1.0])
    irreducible = torch.tensor([2.6, 0.1, 0.3, 0.2])  # leaves -0.1, 0, 2.1, 0.8
    assert select_reducible(losses, irreducible, 1).tolist() == [2]
    assert select_reducible(losses, irreducible, 3).tolist() == [2, 3, 1]
    assert select_reducible(losses, torch.zeros(4), 3).tolist() == [0, 2, 3]  # the highest losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_choice_is_that_of_a_slow_loop(dtype):
    for seed, size in enumerate((1, 2, 7, 64, 100)):
        draws = torch.Generator().manual_seed(seed)
        losses, irreducible = torch.rand(2, size, dtype=dtype, generator=draws).mul(8).round() / 8
        for count in {1, (size + 1) // 2, size}:
            chosen = select_reducible(losses, irreducible, count)
            assert chosen.tolist() == slowly(losses, irreducible, count)
            assert (chosen.dtype, chosen.shape) == (torch.int64, (count,))


def test_no_gradient_is_followed_and_nothing_is_changed():
    losses, irreducible = torch.rand(5, requires_grad=True), torch.rand(5)
    before = losses.detach().clone(), irreducible.clone()
    assert not select_reducible(losses, irreducible, 2).requires_grad
    assert torch.equal(losses.detach(), before[0])
    assert torch.equal(irreducible, before[1])


def test_a_loss_that_is_nan_comes_first_so_that_the_loop_finds_it():
    losses = torch.tensor([1.0, math.nan, 9.0])
    assert select_reducible(losses, torch.zeros(3), 1).tolist() == [1]


@pytest.mark.parametrize(
    ("losses", "irreducible", "count", "error", "message"),
    [
        (torch.ones(3), torch.zeros(2), 1, ValueError, r"irreducible must have shape \(3,\)"),
        (torch.ones(0), torch.zeros(0), 1, ValueError, r"losses must have shape \(B,\)"),
        (torch.ones(3), torch.zeros(3), 4, ValueError, r"count must be in 1..3; got 4"),
        (torch.ones(3), torch.zeros(3), 0, ValueError, r"count must be in 1..3; got 0"),
        (torch.ones(3), torch.zeros(3), 1.0, TypeError, "count must be an integer; got 1.0"),
        (torch.ones(3), torch.zeros(3).long(), 1, TypeError, "irreducible must be a tensor of fl"),
        (torch.ones(2), torch.tensor([0, math.nan]), 1, ValueError, "irreducible must be finite"),
        (torch.ones(2), torch.tensor([0, math.inf]), 1, ValueError, "irreducible must be finite"),
    ],
)
def test_wrong_arguments_are_refused(losses, irreducible, count, error, message):
    with pytest.raises(error, match=message):
        select_reducible(losses, irreducible, count)
