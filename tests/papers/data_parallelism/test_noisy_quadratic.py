"""The noisy quadratic model against torch's SGD on samples, hand computations and known limits."""

import math

import numpy as np
import pytest
import torch

from hardtrain import ParameterError
from hardtrain.papers.data_parallelism.noisy_quadratic import (
    Optimum,
    noisy_quadratic_losses,
    noisy_quadratic_optimum,
    noisy_quadratic_steps,
)

CURVATURE = [1.0, 0.3, 0.1]


# --- losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_losses_match_the_mean_over_many_runs_of_torch(momentum):
    h, c = torch.tensor(CURVATURE), torch.tensor([0.5, 2.0, 1.0])
    num_runs, num_steps, batch_size = 20_000, 25, 4
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(num_runs, 3, generator=generator).requires_grad_()
    optimizer = torch.optim.SGD([theta], lr=0.4, momentum=momentum)
    expected = noisy_quadratic_losses(
        num_steps, batch_size, 0.4, momentum, curvature=CURVATURE, noise=c.numpy()
    )
    for step in range(num_steps + 1):
        losses = 0.5 * (theta.detach() ** 2 @ h)
        error = losses.std().item() / num_runs**0.5
        assert losses.mean().item() == pytest.approx(expected[step], abs=4.5 * error)
        noise = torch.randn(num_runs, 3, generator=generator) * (c / batch_size).sqrt()
        theta.grad = h * theta.detach() + noise
        optimizer.step()


def test_losses_without_momentum_match_the_closed_form():
    h, c, lr, batch_size = np.array(CURVATURE), np.array([0.5, 2.0, 1.0]), 0.7, 3.0
    rho = (1 - lr * h) ** 2
    t = np.arange(41)[:, None]
    theta2 = rho**t + lr**2 * c / batch_size * (1 - rho**t) / (1 - rho)
    expected = 0.5 * (theta2 * h).sum(axis=1)
    losses = noisy_quadratic_losses(40, batch_size, lr, curvature=h, noise=c)
    assert losses == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_losses_without_noise_are_those_of_gradient_descent(momentum):
    h = np.array(CURVATURE)
    theta, m, expected = np.ones(3), np.zeros(3), []
    for _ in range(31):
        expected.append(0.5 * (h * theta**2).sum())
        m = momentum * m + h * theta
        theta = theta - 0.9 * m
    for batch_size, noise in ((math.inf, None), (1, [0.0] * 3)):
        losses = noisy_quadratic_losses(30, batch_size, 0.9, momentum, curvature=h, noise=noise)
        assert losses == pytest.approx(expected, rel=1e-9)


def test_default_spectrum_is_that_of_the_source():
    h = 1 / np.arange(1.0, 101)
    assert noisy_quadratic_losses(0, 1, 0.1)[0] == pytest.approx(0.5 * h.sum())
    default = noisy_quadratic_losses(5, 2, 0.1)
    assert default.tolist() == noisy_quadratic_losses(5, 2, 0.1, curvature=h, noise=h).tolist()


def test_settings_broadcast():
    losses = noisy_quadratic_losses(7, [[2.0], [8.0]], [0.1, 0.2, 0.3], 0.5, curvature=CURVATURE)
    assert losses.shape == (2, 3, 8)
    one = noisy_quadratic_losses(7, 8.0, 0.3, 0.5, curvature=CURVATURE)
    assert losses[1, 2].tolist() == one.tolist()


# --- steps ---------------------------------------------------------------------------------------


def test_steps_in_one_dimension_by_hand():
    # 0.5 * 0.25^t <= 0.5e-3 from t = log(1000) / log(4) = 4.98 on; lr 1 needs one; 2 never arrives
    steps = noisy_quadratic_steps(math.inf, [0.5, 1.0, 1.5, 2.0, 3.0], goal=0.5e-3, curvature=[1.0])
    assert steps.tolist() == [5, 1, 5, math.inf, math.inf]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_are_the_first_at_or_below_the_goal(momentum):
    rates = np.geomspace(0.01, 3, 20)
    losses = noisy_quadratic_losses(300, 16, rates, momentum)
    goals = [0.5, 0.1, float(losses[5].min())]  # the last is met exactly
    for goal in goals:
        steps = noisy_quadratic_steps(16, rates, momentum, goal=goal, max_steps=300)
        expected = [next((t for t, x in enumerate(row) if x <= goal), math.inf) for row in losses]
        assert steps.tolist() == expected
    full = noisy_quadratic_steps(16, rates, momentum, goal=0.5, max_steps=300)
    middle = int(np.median(full[np.isfinite(full)]))
    shorter = noisy_quadratic_steps(16, rates, momentum, goal=0.5, max_steps=middle)
    assert shorter.tolist() == np.where(full <= middle, full, math.inf).tolist()
    assert np.isfinite(shorter).any()
    assert (np.isinf(shorter) & np.isfinite(full)).any()


def test_a_loss_that_comes_back_late_still_arrives():
    # with momentum it oscillates, and may first rise far above the start: theta goes from 1 to -2.5
    assert noisy_quadratic_losses(1, math.inf, 3.5, 0.9, curvature=[1.0])[1] > 6 * 0.5
    rising = noisy_quadratic_steps(math.inf, 3.5, 0.9, goal=1e-3, curvature=[1.0])
    assert 1 < rising < 200
    slow = noisy_quadratic_steps(
        math.inf, 1e-4, 0.9999, goal=1e-3, curvature=[1.0], max_steps=100_000
    )
    assert slow == pytest.approx(math.pi / 2 * 100, rel=0.1)  # a quarter of the first swing


# --- optimum -------------------------------------------------------------------------------------


def test_optimum_is_the_minimum_over_the_grid():
    rates, momenta = np.geomspace(0.01, 3, 30), np.array([0.0, 0.5, 0.9])
    steps = noisy_quadratic_steps(32, rates, momenta[:, None], goal=0.1)
    found = noisy_quadratic_optimum(32, goal=0.1, lr=rates, momentum=momenta)
    assert found.steps == steps.min()
    assert noisy_quadratic_steps(32, found.lr, found.momentum, goal=0.1) == found.steps
    assert noisy_quadratic_optimum(32, goal=0.1, lr=found.lr, momentum=found.momentum) == found
    # a goal that is met exactly is reached
    assert noisy_quadratic_optimum(math.inf, goal=0.125, lr=0.5, curvature=[1.0]).steps == 1


def test_optimum_without_noise_is_the_textbook_one():
    # gradient descent: both directions shrink by ((k - 1) / (k + 1))^2 a step at 2 / (h_1 + h_2)
    curvature, goal = [1.0, 0.05], 1e-12
    found = noisy_quadratic_optimum(math.inf, goal=goal, curvature=curvature)
    assert found.lr == pytest.approx(2 / 1.05, rel=0.02)
    shrink = ((20 - 1) / (20 + 1)) ** 2
    needed = math.log(goal / (0.5 * 1.05)) / math.log(shrink)  # 134.8 at that rate
    # a little less at the best, where the first direction shrinks faster as it starts higher
    assert 0.9 * needed <= found.steps <= needed
    # heavy ball: ((sqrt k - 1) / (sqrt k + 1))^2
    momenta = np.linspace(0, 0.9, 46)
    found = noisy_quadratic_optimum(math.inf, goal=goal, curvature=curvature, momentum=momenta)
    root = 20**0.5
    shrink = ((root - 1) / (root + 1)) ** 2
    asymptotic = math.log(goal / (0.5 * 1.05)) / math.log(shrink)
    assert 0.85 * asymptotic <= found.steps <= 1.5 * asymptotic
    assert found.momentum == pytest.approx(shrink, abs=0.15)


def test_optimum_may_not_exist():
    assert noisy_quadratic_optimum(1, goal=1e-6, max_steps=10)[0] == math.inf
    assert all(math.isnan(x) for x in noisy_quadratic_optimum(1, goal=1e-6, max_steps=10)[1:])


# --- what is known of the model ------------------------------------------------------------------

MODEL = {"goal": 0.05, "curvature": 1 / np.arange(1.0, 51)}
MOMENTA = 1 - np.geomspace(0.02, 1, 12)


def test_steps_halve_for_small_batches_and_are_those_of_gradient_descent_for_large_ones():
    small = [noisy_quadratic_optimum(b, **MODEL) for b in (1, 2, 4)]
    assert small[0].steps / small[1].steps == pytest.approx(2, rel=0.03)
    assert small[1].steps / small[2].steps == pytest.approx(2, rel=0.03)
    assert small[2].lr / small[0].lr == pytest.approx(4, rel=0.15)  # the linear rule
    limit = noisy_quadratic_optimum(math.inf, **MODEL)
    assert noisy_quadratic_optimum(1e7, **MODEL) == limit
    assert noisy_quadratic_optimum(1e5, **MODEL).steps - limit.steps <= 1
    assert limit.lr < 2  # the largest stable rate, not four million times that of batch size 1


def test_momentum_helps_large_batches_only():
    plain = noisy_quadratic_optimum(4, **MODEL)
    heavy = noisy_quadratic_optimum(4, momentum=MOMENTA, **MODEL)
    assert 0.9 <= heavy.steps / plain.steps <= 1
    plain = noisy_quadratic_optimum(math.inf, **MODEL)
    heavy = noisy_quadratic_optimum(math.inf, momentum=MOMENTA, **MODEL)
    assert heavy.steps < plain.steps / 2


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": math.nan}, "batch_size"),
        ({"batch_size": "8"}, None),
        ({"lr": 0.0}, "lr"),
        ({"lr": math.inf}, "lr"),
        ({"lr": []}, "lr"),
        ({"lr": "fast"}, "lr"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": -0.1}, "momentum"),
        ({"momentum": math.nan}, "momentum"),
        ({"lr": [0.1, 0.2], "momentum": [0.1, 0.2, 0.3]}, "broadcast"),
        ({"curvature": []}, "curvature"),
        ({"curvature": [1.0, 0.0]}, "curvature"),
        ({"curvature": [1.0], "noise": [1.0, 1.0]}, "curvature and noise"),
        ({"curvature": [1.0], "noise": [-1.0]}, "noise"),
        ({"goal": 0.0}, "goal"),
        ({"goal": math.nan}, "goal"),
        ({"goal": 99.0}, "goal.*below the first loss"),
        ({"max_steps": 0}, "max_steps"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    if message is None:  # text that is a number is read as one
        assert noisy_quadratic_steps("8", 0.1, goal=0.1) == noisy_quadratic_steps(8, 0.1, goal=0.1)
        return
    with pytest.raises(ParameterError, match=message):
        noisy_quadratic_steps(**({"batch_size": 8, "lr": 0.1, "goal": 0.1} | arguments))


def test_optimum_rejects_several_batch_sizes():
    with pytest.raises(ParameterError, match="one number"):
        noisy_quadratic_optimum([1, 2], goal=0.1)
    with pytest.raises(ParameterError, match="num_steps"):
        noisy_quadratic_losses(-1, 1, 0.1)
    assert noisy_quadratic_optimum(math.inf, goal=0.4, curvature=[1.0], lr=1.0) == Optimum(1, 1, 0)
