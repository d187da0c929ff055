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
    result = steps_to_goal(measured, 0.35)
    assert (result.steps, result.num_trials, result.num_reached) == (200, 3, 2)
    assert result.best_trial == "b"
    assert steps_to_goal(measured.sample(frac=1, random_state=0), 0.35) == result


def test_steps_to_goal_is_strictly_below_unless_told_otherwise():
    measured = trials(a=[0.5, 0.2, 0.1])
    assert steps_to_goal(measured, 0.2).steps == 300
    assert steps_to_goal(measured, 0.2, strict=False).steps == 200


def test_steps_to_goal_leaves_out_what_diverged_at_any_point():
    measured = trials(a=[0.5, 0.4], b=[0.1, math.nan], c=[0.6, 0.1])
    result = steps_to_goal(measured, 0.2)
    assert (result.steps, result.best_trial) == (200, "c")
    assert (result.num_trials, result.num_reached, result.num_infeasible) == (2, 1, 1)
    lost = steps_to_goal(trials(a=[math.nan], b=[math.nan]), 0.2)
    assert lost == (math.inf, math.inf, 0, 0, 2, None)


def test_of_equal_trials_the_lower_one_is_the_best():
    assert steps_to_goal(trials(c=[0.1], b=[0.05], d=[0.0]), 0.2).best_trial == "b"


def test_steps_to_goal_is_inf_when_no_trial_arrives():
    result = steps_to_goal(trials(a=[0.5, 0.4], b=[0.5, 0.4]), 0.1)
    assert result == (math.inf, math.inf, 2, 0, 0, None)


def test_the_next_search_stays_below_its_bound_as_often_as_it_says():
    # trials arrive at 100, 200, ..., n 100. P(the k lowest of 2 n are all of the next search)
    for n, rank in ((3, 3), (8, 4), (20, 5), (100, 5)):
        curves = {f"t{i:03}": [0.9] * i + [0.1] for i in range(n)}
        assert steps_to_goal(trials(**curves), 0.2).next_below == 100 * rank
        chance = math.comb(2 * n - rank, n) / math.comb(2 * n, n)
        assert chance <= 0.05 < math.comb(2 * n - rank + 1, n) / math.comb(2 * n, n)
    rng = np.random.default_rng(0)
    ours, theirs = np.sort(rng.random((2, 2000, 8)), axis=-1)
    assert (theirs[:, 0] <= ours[:, 3]).mean() == pytest.approx(0.9615, abs=0.012)
    assert (theirs[:, 0] < ours[:, 0]).mean() == pytest.approx(0.5, abs=0.03)
    assert steps_to_goal(trials(a=[0.1], b=[0.1]), 0.2).next_below == math.inf  # two are too few
    backwards = {f"t{i}": [0.9] * (7 - i) + [0.1] for i in range(8)}
    assert steps_to_goal(trials(**backwards), 0.2).next_below == 400


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
