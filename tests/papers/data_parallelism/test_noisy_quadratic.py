"""The noisy quadratic model against torch's SGD on samples, hand computations and known limits."""

import itertools
import math

import numpy as np
import pytest
import torch

from hardtrain.papers.data_parallelism import noisy_quadratic
from hardtrain.papers.data_parallelism.noisy_quadratic import expected_losses, optimum, steps

CURVATURE = np.array([1.0, 0.3, 0.1])
SPECTRUM = 1 / np.arange(1.0, 101)


def losses_of(num_steps, batch_size, lr, momentum=0.0, curvature=CURVATURE):
    """Losses of ``num_steps`` steps behind the one at the start, along the last axis."""
    losses = expected_losses(batch_size, lr, momentum, curvature=curvature)
    return np.stack(list(itertools.islice(losses, num_steps + 1)), axis=-1)


# --- losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_losses_match_the_mean_over_many_runs_of_torch(momentum):
    h = torch.tensor(CURVATURE)
    num_runs, num_steps, batch_size = 20_000, 25, 4
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(num_runs, 3, generator=generator, dtype=h.dtype).requires_grad_()
    optimizer = torch.optim.SGD([theta], lr=0.4, momentum=momentum)
    expected = losses_of(num_steps, batch_size, 0.4, momentum)
    for step in range(num_steps + 1):
        losses = 0.5 * (theta.detach() ** 2 @ h)
        error = losses.std().item() / num_runs**0.5
        assert losses.mean().item() == pytest.approx(expected[step], abs=4.5 * error)
        noise = torch.randn(num_runs, 3, generator=generator) * (h / batch_size).sqrt()
        theta.grad = h * theta.detach() + noise
        optimizer.step()


def test_losses_without_momentum_match_the_closed_form():
    h, lr, batch_size = CURVATURE, 0.7, 3.0
    rho = (1 - lr * h) ** 2
    t = np.arange(41)[:, None]
    theta2 = rho**t + lr**2 * h / batch_size * (1 - rho**t) / (1 - rho)
    expected = 0.5 * (theta2 * h).sum(axis=1)
    assert losses_of(40, batch_size, lr) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_losses_without_noise_are_those_of_gradient_descent(momentum):
    theta, m, expected = np.ones(3), np.zeros(3), []
    for _ in range(31):
        expected.append(0.5 * (CURVATURE * theta**2).sum())
        m = momentum * m + CURVATURE * theta
        theta = theta - 0.9 * m
    assert losses_of(30, math.inf, 0.9, momentum) == pytest.approx(expected, rel=1e-9)


def test_settings_broadcast():
    losses = losses_of(7, [[2.0], [8.0]], [0.1, 0.2, 0.3], 0.5)
    assert losses.shape == (2, 3, 8)
    assert losses[1, 2].tolist() == losses_of(7, 8.0, 0.3, 0.5).tolist()


# --- steps ---------------------------------------------------------------------------------------


def test_steps_in_one_dimension_by_hand():
    # 0.5 * 0.25^t <= 0.5e-3 from t = log(1000) / log(4) = 4.98 on; lr 1 needs one; 2 never arrives
    rates = [0.5, 1.0, 1.5, 2.0, 3.0]
    first = steps(math.inf, rates, 0.0, goal=0.5e-3, curvature=[1.0], max_steps=1000)
    assert first.tolist() == [5, 1, 5, math.inf, math.inf]
    assert steps(math.inf, 0.5, 0.0, goal=0.125, curvature=[1.0]) == 1  # met exactly


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_are_the_first_at_or_below_the_goal(momentum):
    rates = np.geomspace(0.01, 3, 20)
    model = {"curvature": SPECTRUM, "max_steps": 300}
    losses = losses_of(300, 16, rates, momentum, SPECTRUM)
    goals = [0.5, 0.1, float(losses[5].min())]  # the last is met exactly
    for goal in goals:
        first = steps(16, rates, momentum, goal=goal, **model)
        expected = [next((t for t, x in enumerate(row) if x <= goal), math.inf) for row in losses]
        assert first.tolist() == expected
    full = steps(16, rates, momentum, goal=0.5, **model)
    middle = int(np.median(full[np.isfinite(full)]))
    shorter = steps(16, rates, momentum, goal=0.5, **(model | {"max_steps": middle}))
    assert shorter.tolist() == np.where(full <= middle, full, math.inf).tolist()
    assert np.isfinite(shorter).any()
    assert (np.isinf(shorter) & np.isfinite(full)).any()


def test_a_loss_that_comes_back_late_still_arrives():
    # with momentum it oscillates, and may first rise far above the start: theta goes from 1 to -2.5
    model = {"goal": 1e-3, "curvature": [1.0]}
    assert losses_of(1, math.inf, 3.5, 0.9, curvature=[1.0])[1] > 6 * 0.5
    assert 1 < steps(math.inf, 3.5, 0.9, **model) < 200
    slow = steps(math.inf, 1e-4, 0.9999, max_steps=100_000, **model)
    assert slow == pytest.approx(math.pi / 2 * 100, rel=0.1)  # a quarter of the first swing


# --- optimum -------------------------------------------------------------------------------------


def test_optimum_is_the_minimum_over_a_fine_grid():
    # a slow search of its own, twice as fine
    model = {"goal": 0.1, "curvature": SPECTRUM}
    rates, momenta = np.geomspace(0.05, 4, 300), np.array([0.0, 0.5, 0.9])
    tried = steps(32, rates, momenta[:, None], max_steps=200, **model)
    best = optimum(32, momentum=momenta, **model)
    assert best.steps == tried.min()
    assert steps(32, best.lr, best.momentum, **model) == best.steps
    assert best.momentum == momenta[tried.min(axis=1).argmin()]
    # of the settings that arrive at this step it is the one of lowest loss
    losses = losses_of(int(best.steps), 32, rates, best.momentum, SPECTRUM)[:, -1]
    lowest = losses_of(int(best.steps), 32, best.lr, best.momentum, SPECTRUM)[-1]
    assert lowest <= losses.min() * (1 + 1e-4)


def test_optimum_without_noise_is_the_textbook_one():
    # gradient descent: both directions shrink by ((k - 1) / (k + 1))^2 a step at 2 / (h_1 + h_2)
    curvature, goal = [1.0, 0.05], 1e-12
    best = optimum(math.inf, goal=goal, curvature=curvature)
    assert best.lr == pytest.approx(2 / 1.05, rel=0.02)
    shrink = ((20 - 1) / (20 + 1)) ** 2
    needed = math.log(goal / (0.5 * 1.05)) / math.log(shrink)  # 134.8 at that rate
    # a little less at the best, where the first direction shrinks faster as it starts higher
    assert 0.9 * needed <= best.steps <= needed
    # heavy ball: ((sqrt k - 1) / (sqrt k + 1))^2
    best = optimum(math.inf, goal=goal, curvature=curvature, momentum=np.linspace(0, 0.9, 46))
    root = 20**0.5
    shrink = ((root - 1) / (root + 1)) ** 2
    asymptotic = math.log(goal / (0.5 * 1.05)) / math.log(shrink)
    assert 0.85 * asymptotic <= best.steps <= 1.5 * asymptotic
    assert best.momentum == pytest.approx(shrink, abs=0.15)


def test_optimum_may_not_exist(monkeypatch):
    monkeypatch.setattr(noisy_quadratic, "GIVE_UP", 10)
    best = optimum(1, goal=1e-6, curvature=SPECTRUM)
    assert best.steps == math.inf
    assert math.isnan(best.lr)
    assert math.isnan(best.momentum)


# --- what is known of the model ------------------------------------------------------------------

MODEL = {"goal": 0.05, "curvature": 1 / np.arange(1.0, 51)}
MOMENTA = 1 - np.geomspace(0.02, 1, 12)


def test_steps_halve_for_small_batches_and_are_those_of_gradient_descent_for_large_ones():
    small = [optimum(b, **MODEL) for b in (1, 2, 4)]
    assert small[0].steps / small[1].steps == pytest.approx(2, rel=0.03)
    assert small[1].steps / small[2].steps == pytest.approx(2, rel=0.03)
    assert small[2].lr / small[0].lr == pytest.approx(4, rel=0.15)  # the linear rule
    limit = optimum(math.inf, **MODEL)
    assert optimum(1e7, **MODEL) == limit
    assert optimum(1e5, **MODEL).steps - limit.steps <= 1
    assert limit.lr < 2  # the largest stable rate, not four million times that of batch size 1


def test_momentum_helps_large_batches_only():
    plain = optimum(4, **MODEL)
    heavy = optimum(4, momentum=MOMENTA, **MODEL)
    assert 0.9 <= heavy.steps / plain.steps <= 1
    plain = optimum(math.inf, **MODEL)
    heavy = optimum(math.inf, momentum=MOMENTA, **MODEL)
    assert heavy.steps < plain.steps / 2
