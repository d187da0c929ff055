"""Convergence epochs and steps to a goal, by hand and against exact distributions."""

import math

import numpy as np
import pandas as pd
import pytest

from hardtrain import ParameterError
from hardtrain.goals import convergence_epoch, steps_to_goal

# --- convergence_epoch -----------------------------------------------------------------------

CURVE = [2.0, 1.0, 0.6, 0.515, 0.505, 0.5, 0.52]  # total decrease 1.5; 1 % of it is 0.015


@pytest.mark.parametrize(
    ("arguments", "epoch"),
    [
        ({}, 4),  # 0.515 <= 0.5 + 0.015, met with equality
        ({"tolerance": 0.009}, 5),
        ({"tolerance": 0.0}, 6),
        ({"tolerance": 0.5}, 2),
        ({"reading": "argmin"}, 6),
        ({"reading": "threshold", "threshold": 1.0}, 2),
        ({"reading": "threshold", "threshold": 3.0}, 1),
        ({"reading": "threshold", "threshold": 0.1}, 7),  # never reached: the last epoch
    ],
)
def test_convergence_epoch_by_hand(arguments, epoch):
    assert convergence_epoch(CURVE, **arguments) == epoch


def test_convergence_epoch_takes_the_first_of_equal_minima():
    assert convergence_epoch([1.0, 0.5, 0.5, 0.7], reading="argmin") == 2
    assert convergence_epoch([1.0, 2.0, 3.0]) == 1
    assert convergence_epoch([1.0]) == 1


@pytest.mark.parametrize(
    ("losses", "arguments", "message"),
    [
        ([], {}, "losses"),
        ([1.0, math.nan], {}, "finite"),
        ([1.0], {"reading": "relativ"}, "did you mean 'relative'"),
        ([1.0], {"tolerance": 1.0}, "tolerance"),
        ([1.0], {"tolerance": -0.1}, "tolerance"),
        ([1.0], {"reading": "threshold"}, "needs a finite threshold"),
    ],
)
def test_convergence_epoch_rejects(losses, arguments, message):
    with pytest.raises(ParameterError, match=message):
        convergence_epoch(losses, **arguments)


# --- steps_to_goal ---------------------------------------------------------------------------


def trials(**errors):
    rows = [(t, 100 * (i + 1), e) for t, curve in errors.items() for i, e in enumerate(curve)]
    return pd.DataFrame(rows, columns=["trial", "step", "error"])


def test_steps_to_goal_is_the_first_evaluation_of_the_best_trial():
    measured = trials(a=[0.5, 0.4, 0.3, 0.1], b=[0.6, 0.2, 0.5, 0.1], c=[0.9, 0.9, 0.9, 0.9])
    result = steps_to_goal(measured, 0.3)
    assert (result.steps, result.num_trials, result.num_reached) == (200, 3, 2)
    assert steps_to_goal(measured.sample(frac=1, random_state=0), 0.3).steps == 200
    assert steps_to_goal(measured, 0.2).steps == 200  # equal counts as reached
    assert steps_to_goal(measured, 0.19).steps == 400
    assert math.isnan(result.low)
    assert math.isnan(result.high)


def test_steps_to_goal_is_inf_when_no_trial_arrives():
    measured = trials(a=[0.5, 0.4], b=[math.nan, math.nan])
    result = steps_to_goal(measured, 0.1, generator=np.random.default_rng(0))
    assert result == (math.inf, math.inf, math.inf, 2, 0)


def test_steps_to_goal_bootstrap_matches_the_exact_distribution():
    # trials arrive at 100, 200, ..., n 100; P(best of n draws > k-th) = (1 - k / n)^n
    for n, high in (
        (5, 300),  # 0.6^5 = 0.0778 > 0.025 > 0.4^5 = 0.0102, so the 97.5 % quantile is the third
        (6, 300),  # (4/6)^6 = 0.0878 > 0.025 > (3/6)^6 = 0.0156
        (12, 400),  # (9/12)^12 = 0.0317 > 0.025 > (8/12)^12 = 0.0077
    ):
        curves = {f"t{i}": [0.9] * i + [0.1] for i in range(n)}
        result = steps_to_goal(trials(**curves), 0.1, generator=np.random.default_rng(7))
        assert (result.steps, result.low, result.high) == (100, 100, high)


def test_steps_to_goal_bootstrap_depends_on_the_generator_alone():
    curves = {f"t{i}": [0.9] * i + [0.1] for i in range(10)}
    runs = [
        steps_to_goal(trials(**curves), 0.1, generator=np.random.default_rng(8)) for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_steps_to_goal_reaches_inf_when_few_trials_arrive():
    curves = {"lucky": [0.1]} | {f"t{i}": [0.9] for i in range(4)}
    result = steps_to_goal(trials(**curves), 0.1, generator=np.random.default_rng(9))
    assert (result.steps, result.low, result.high) == (100, 100, math.inf)  # 0.8^5 = 0.33 miss it


@pytest.mark.parametrize(
    ("frame", "arguments", "message"),
    [
        (trials(a=[0.1]).drop(columns="step"), {}, r"lack \['step'\]"),
        (trials(a=[0.1]).iloc[:0], {}, "at least one row"),
        (trials(a=[0.1]).assign(trial=None), {}, "a trial in each"),
        (trials(a=[0.1]).assign(step=0), {}, "above 0"),
        (trials(a=[0.1]), {"goal": math.nan}, "goal"),
    ],
)
def test_steps_to_goal_rejects(frame, arguments, message):
    with pytest.raises(ParameterError, match=message):
        steps_to_goal(frame, **({"goal": 0.1} | arguments))
