"""Curves, regimes and budgets against hand computations and slow bootstraps; runs as trials."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest

from hardtrain import load_history, run_missing
from hardtrain.goals import steps_to_goal
from hardtrain.papers.data_parallelism.batch_scaling import (
    QUANTITIES,
    best_at_budgets,
    estimate,
    measured_errors,
    regime_arrays,
    scaling_curve,
    steps_by_size,
    steps_per_trial,
    with_resamples,
)
from hardtrain.papers.data_parallelism.regimes import Regimes, fit_regimes


def trials(batch_size=8, **errors):
    """Evaluations after 100, 200, ... steps, 50 of which are an epoch."""
    rows = [
        (batch_size, name, 2.0 * (i + 1), 100 * (i + 1), error)
        for name, values in errors.items()
        for i, error in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["batch_size", "trial", "epoch", "step", "error"])


@pytest.fixture
def measured():
    """Two batch sizes that reach 0.25, one that does not; rows in no order."""
    parts = [
        trials(16, c=[0.4, 0.25, 0.1], d=[0.5, 0.2, 0.3], e=[0.2, math.nan, math.nan]),
        trials(8, a=[0.5, 0.4, 0.3, 0.2], b=[math.nan] * 4),
        trials(32, f=[0.5, 0.3]),
    ]
    return pd.concat(parts).sample(frac=1, random_state=0)


# --- resamples -----------------------------------------------------------------------------------


def test_resamples_are_drawn_with_replacement_behind_the_minimum_itself():
    minima = with_resamples([3.0, 1.0, 2.0], np.random.default_rng(0), 20_000)
    assert minima.shape == (20_001,)
    assert minima[0] == 1.0
    # P(min > 1) = (2 / 3)^3, P(min > 2) = (1 / 3)^3
    assert (minima[1:] > 1).mean() == pytest.approx((2 / 3) ** 3, abs=0.01)
    assert (minima[1:] > 2).mean() == pytest.approx((1 / 3) ** 3, abs=0.005)


def test_an_estimate_is_the_first_and_the_bounds_are_those_of_the_others():
    assert estimate(np.array([9.0, 2.0, 1.0])) == (9.0, 1.0, 2.0)


# --- steps_per_trial and scaling_curve -----------------------------------------------------------


def test_steps_per_trial_are_the_first_arrivals(measured):
    steps = steps_per_trial(measured, 0.25)
    assert steps.to_dict() == {"a": 400, "b": math.inf, "c": 200, "d": 200, "e": 100, "f": math.inf}
    rows = trials(z=[0.1], a=[0.1], m=[0.1])
    assert list(steps_per_trial(rows, 0.2).index) == ["z", "a", "m"]


def test_every_trial_may_have_a_goal_of_its_own(measured):
    goals = measured["trial"].map({"a": 0.3, "b": 0.3, "c": 0.1, "d": 0.5, "e": 0.1, "f": 0.3})
    steps = steps_per_trial(measured, goals)
    assert steps.to_dict() == {"a": 300, "b": math.inf, "c": 300, "d": 100, "e": math.inf, "f": 200}


def test_steps_by_size_survive_json(measured):
    steps = steps_by_size(measured, 0.25)
    assert steps == [[8, [400.0, math.inf]], [16, [100.0, 200.0, 200.0]], [32, [math.inf]]]
    assert json.loads(json.dumps(steps)) == steps


def test_scaling_curve_by_hand(measured):
    curve = scaling_curve(measured, 0.25)
    assert curve["batch_size"].tolist() == [8, 16, 32]
    assert curve["value"].tolist() == [400.0, 100.0, math.inf]
    assert curve["best_trial"].tolist()[:2] == ["a", "e"]
    assert curve["best_trial"].isna().tolist() == [False, False, True]


def test_best_trial_of_equals_is_the_one_of_lowest_error():
    rows = trials(c=[0.4, 0.25, 0.0], d=[0.5, 0.2, 0.3], e=[0.6, 0.24, 0.1])
    assert scaling_curve(rows, 0.25)["best_trial"].tolist() == ["d"]


def test_the_interval_of_a_batch_size_does_not_depend_on_the_others_or_the_order():
    rng = np.random.default_rng(0)
    parts = [
        trials(size, **{f"{size}-{i}": rng.uniform(0, 1, 9) for i in range(12)})
        for size in (8, 16, 32)
    ]
    together = scaling_curve(pd.concat(parts).sample(frac=1, random_state=1), 0.05)
    for row, size, part in zip(together.to_dict("records"), (8, 16, 32), parts, strict=True):
        assert scaling_curve(part, 0.05).to_dict("records") == [row]
        expected = steps_to_goal(part, 0.05, generator=np.random.default_rng([0, size]))
        assert (row["value"], row["low"], row["high"]) == expected[:3]


# --- regime_arrays -------------------------------------------------------------------------------


def sweep(num_trials=12, seed=0):
    """Steps of trials by batch size: those of a known curve, times what bad luck adds."""
    rng = np.random.default_rng(seed)
    return [
        [size, sorted(50 * (1 + 200 / size) * (1 + rng.exponential(0.5, num_trials)))]
        for size in (2 ** np.arange(3, 13)).tolist()
    ]


def quantities(fit):
    return [getattr(fit, name) for name in QUANTITIES]


def test_regimes_match_a_slow_bootstrap():
    curve = sweep()
    arrays = regime_arrays(curves=[[[4, [1.0]]], curve], num_resamples=200)
    sizes = [size for size, _ in curve]
    fitted = fit_regimes(sizes, [steps[0] for _, steps in curve])
    assert Regimes(*arrays["fits"][1]) == fitted
    assert arrays["value"][1].tolist() == quantities(fitted)
    for name in ("value", "low", "high"):
        assert arrays[name].shape == (2, len(QUANTITIES))
        assert np.isnan(arrays[name][0]).all()  # one batch size is too few
    rng = np.random.default_rng(99)
    drawn = []
    for _ in range(200):
        best = [rng.choice(steps, len(steps)).min() for _, steps in curve]
        drawn.append(quantities(fit_regimes(sizes, best)))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0, method="nearest")
    bounded = np.isfinite(high)
    assert bounded.sum() >= 4
    assert (np.isfinite(arrays["high"][1]) == bounded).all()
    spread = (high - low)[bounded]
    assert (np.abs(arrays["low"][1] - low)[bounded] < 0.4 * spread).all()
    assert (np.abs(arrays["high"][1] - high)[bounded] < 0.4 * spread).all()


def test_regimes_are_near_the_truth():
    arrays = regime_arrays(curves=[sweep(num_trials=50)], num_resamples=2)
    value = dict(zip(QUANTITIES, arrays["value"][0], strict=True))
    assert value["critical_batch_size"] == pytest.approx(200, rel=0.2)
    assert value["min_steps"] == pytest.approx(50, rel=0.1)


def test_each_batch_size_has_draws_of_its_own():
    # trials that are equal at two batch sizes must not be drawn alike
    curve = [[size, [10.0, 20.0, 40.0]] for size in (1, 2, 4, 8)]
    arrays = regime_arrays(curves=[curve], num_resamples=200)
    assert arrays["value"][0, 0] == pytest.approx(10)  # flat
    assert arrays["low"][0, 2] == 0 < arrays["high"][0, 2]  # resamples are not


def test_regimes_count_resamples_not_distinct_fits():
    # at batch size 8 one of 200 trials is the best: missing from 0.995^200 = 37 % of resamples,
    # and of those with it all have the same fit
    exact = {size: 50 * (1 + 200 / size) for size in (8, 16, 32, 64, 128, 256)}
    curve = [[size, [steps]] for size, steps in exact.items()]
    curve[0][1] += [exact[8] * (1.5 + i / 1000) for i in range(199)]
    arrays = regime_arrays(curves=[curve], num_resamples=400)
    drawn = with_resamples(curve[0][1], np.random.default_rng([0, 8]), 400)[1:]
    steps = [exact[size] for size in exact]
    fits = {first: quantities(fit_regimes(list(exact), [first, *steps[1:]])) for first in {*drawn}}
    for k in range(len(QUANTITIES)):
        column = sorted(fits[first][k] for first in drawn)
        assert arrays["low"][0, k] == column[math.floor(0.025 * 399)]
        assert arrays["high"][0, k] == column[math.ceil(0.975 * 399)]


def test_regimes_of_too_few_points_are_nan():
    arrays = regime_arrays(curves=[sweep()[:2]], num_resamples=5)
    assert all(np.isnan(arrays[name]).all() for name in ("value", "low", "high"))
    # enough points, but in most resamples one batch size does not arrive
    curve = sweep(num_trials=6)[:4]
    curve[0][1][1:] = [math.inf] * 5
    arrays = regime_arrays(curves=[curve], num_resamples=50)
    assert not np.isnan(arrays["value"]).any()
    assert np.isnan(arrays["low"]).all()
    assert np.isnan(arrays["high"]).all()


# --- best_at_budgets -----------------------------------------------------------------------------


def best(rows, **budgets):
    """``value, low, high`` of one batch size within one budget."""
    return best_at_budgets(rows, budgets)[["value", "low", "high"]].values.tolist()[0]


def test_best_at_budgets_by_hand(measured):
    rows = measured[measured["batch_size"] == 16]
    assert best(rows, step=100)[0] == 0.2
    assert best(rows, step=299)[0] == 0.2
    assert best(rows, step=300)[0] == 0.1  # equal counts
    assert best(rows, epoch=2.0)[0] == 0.2
    assert best(rows, epoch=6.0)[0] == 0.1
    assert best(trials(a=[0.5, 0.1, 0.4]), step=300)[0] == 0.1  # a curve that rises again


def test_budgets_are_of_each_batch_size(measured):
    frame = best_at_budgets(measured, {"step": 100, "epoch": 4.0})
    lowest = frame.pivot(index="batch_size", columns="budget", values="value")
    assert lowest["step"].to_dict() == {8: 0.5, 16: 0.2, 32: 0.5}
    assert lowest["epoch"].to_dict() == {8: 0.4, 16: 0.2, 32: 0.3}


def test_trials_that_diverged_or_came_late_widen_the_interval():
    late = pd.concat([trials(a=[0.5, 0.4], b=[math.nan] * 2), trials(c=[math.nan, 0.1]).iloc[1:]])
    value, low, high = best(late, step=150)
    assert (value, low, high) == (0.5, 0.5, math.inf)  # (2 / 3)^3 = 0.30 miss it
    value, low, high = best(late, step=50)  # none was evaluated by then
    assert value == math.inf
    assert math.isnan(low)
    assert math.isnan(high)


def test_one_trial_has_no_bounds():
    value, low, high = best(trials(a=[0.5]), step=100)
    assert value == 0.5
    assert math.isnan(low)
    assert math.isnan(high)


def test_bounds_at_a_budget_match_the_exact_distribution_in_any_order():
    rows = trials(**{f"t{i}": [0.1 * (i + 1), 0.0] for i in range(10)})
    # P(best of 10 draws > k-th) = (1 - k / 10)^10: 0.7^10 = 0.028 > 0.025 > 0.6^10, the fourth;
    # within the error of 1000 draws it may be the third
    value, low, high = best(rows, step=100)
    assert (value, low) == pytest.approx((0.1, 0.1))
    assert round(high, 6) in (0.3, 0.4)
    assert best(rows.sample(frac=1, random_state=0), step=100) == [value, low, high]
    two = trials(a=[0.1], b=[0.2])
    draws = sorted(min(pair) for pair in itertools.product((0.1, 0.2), repeat=2))
    assert best(two, step=100)[1:] == [draws[0], draws[-1]]


# --- measured_errors -----------------------------------------------------------------------------


def test_runs_become_trials_also_those_that_diverged_at_once(store, tiny_run):
    runs = [
        tiny_run(batch_size=16, evaluate_unit="step", evaluate_every=2),
        tiny_run(batch_size=16, lr=1e30),
        tiny_run(batch_size=30),
    ]
    results = run_missing([*runs, runs[0]], store, use_committed=False)
    assert results["status"].tolist() == ["finished", "diverged", "finished", "finished"]
    history = load_history(results, store)
    rows = measured_errors(results, history)
    assert rows.columns.tolist() == ["batch_size", "trial", "epoch", "step", "error"]
    assert rows["trial"].drop_duplicates().tolist() == [run.key for run in runs]
    first = rows[rows["trial"] == runs[0].key]
    assert first["step"].tolist() == [2, 4, 6, 8]
    assert first["epoch"].tolist() == [0.5, 1, 1.5, 2]
    assert first["error"].tolist() == history[history["key"] == runs[0].key]["test_error"].tolist()
    assert first["batch_size"].tolist() == [16] * 4
    (diverged,) = rows[rows["trial"] == runs[1].key].to_dict("records")
    assert diverged["step"] == results["diverged_step"][1] + 1 >= 1
    assert diverged["epoch"] == results["diverged_epoch"][1] + 1
    assert math.isnan(diverged["error"])
    curve = scaling_curve(rows, 1.0)
    assert curve["batch_size"].tolist() == [16, 30]
    assert curve["value"].tolist() == [2, 2]  # an epoch of 30 is two steps
    # a run that diverged is a trial that did not arrive
    assert steps_by_size(rows, 1.0)[0] == [16, [2.0, math.inf]]


def test_runs_that_all_diverged_at_once_are_trials(store, tiny_run):
    results = run_missing([tiny_run(lr=1e30, seed=s) for s in (0, 1)], store, use_committed=False)
    rows = measured_errors(results, load_history(results, store))
    assert steps_by_size(rows, 0.5) == [[16, [math.inf, math.inf]]]
    assert scaling_curve(rows, 0.5)["value"].tolist() == [math.inf]
    assert best(rows, step=math.inf)[0] == math.inf
