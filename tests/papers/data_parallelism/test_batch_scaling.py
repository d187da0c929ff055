"""Curves and budgets against hand computations, slow bootstraps and a model; runs as trials."""

import math

import numpy as np
import pandas as pd
import pytest

from hardtrain import ParameterError, load_history, run_missing
from hardtrain.goals import steps_to_goal
from hardtrain.papers.data_parallelism.batch_scaling import (
    QUANTITIES,
    BestError,
    best_at_budget,
    measured_errors,
    regime_table,
    scaling_curve,
    steps_per_trial,
)
from hardtrain.papers.data_parallelism.regimes import fit_regimes


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


# --- steps_per_trial and scaling_curve -----------------------------------------------------------


def test_steps_per_trial_are_the_first_arrivals(measured):
    steps = steps_per_trial(measured, 0.25)
    assert steps.to_dict() == {"a": 400, "b": math.inf, "c": 200, "d": 200, "e": 100, "f": math.inf}
    rows = trials(z=[0.1], a=[0.1], m=[0.1])
    assert list(steps_per_trial(rows, 0.2).index) == ["z", "a", "m"]


def test_scaling_curve_by_hand(measured):
    found = scaling_curve(measured, 0.25)
    columns = ["batch_size", "steps", "num_trials", "num_reached", "best_trial"]
    assert found[columns].to_numpy(dtype=object).tolist() == [
        [8, 400.0, 2, 1, "a"],
        [16, 100.0, 3, 3, "e"],
        [32, math.inf, 1, 0, None],
    ]
    assert found["best_trial"][2] is None


def test_best_trial_of_equals_is_the_one_of_lowest_error():
    rows = trials(c=[0.4, 0.25, 0.0], d=[0.5, 0.2, 0.3], e=[0.6, 0.24, 0.1])
    assert scaling_curve(rows, 0.25)["best_trial"].tolist() == ["d"]


def test_scaling_curve_has_the_intervals_of_steps_to_goal():
    curves = {f"t{i}": [0.9] * i + [0.1] for i in range(10)}
    rows = pd.concat([trials(8, **curves), trials(16, **dict(list(curves.items())[3:]))])
    found = scaling_curve(rows, 0.1, num_resamples=4000).set_index("batch_size")
    # P(best of 10 draws > k-th) = (1 - k / 10)^10: 0.7^10 = 0.028 > 0.025 > 0.6^10, the fourth
    assert found.loc[8, ["low", "steps", "high"]].tolist() == [100, 100, 400]
    # of 7: (4 / 7)^7 = 0.0199 < 0.025 < (5 / 7)^7 = 0.095, the third from 400 on
    assert found.loc[16, ["low", "steps", "high"]].tolist() == [400, 400, 600]


def test_the_interval_of_a_batch_size_does_not_depend_on_the_others_or_the_order():
    rng = np.random.default_rng(0)
    parts = [
        trials(size, **{f"{size}-{i}": rng.uniform(0, 1, 9) for i in range(12)})
        for size in (8, 16, 32)
    ]
    together = scaling_curve(pd.concat(parts).sample(frac=1, random_state=1), 0.05, seed=4)
    for row, part in zip(together.to_dict("records"), parts, strict=True):
        alone = scaling_curve(part, 0.05, seed=4)
        assert alone.to_dict("records") == [row]
    for size, part in zip((8, 16, 32), parts, strict=True):
        generator = np.random.default_rng([4, size])
        expected = steps_to_goal(part, 0.05, generator=generator)
        row = together[together["batch_size"] == size].iloc[0]
        assert tuple(row[list(expected._fields)]) == expected


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda m: m.drop(columns="batch_size"), {}, r"lack \['batch_size'\]"),
        (lambda m: m.drop(columns="step"), {}, r"lack \['step'\]"),
        (lambda m: m.iloc[:0], {}, "at least one row"),
        (lambda m: m.assign(batch_size=0), {}, "batch sizes"),
        (lambda m: m.assign(batch_size=math.nan), {}, "batch sizes"),
        (lambda m: m.assign(trial=None), {}, "a trial in each"),
        (lambda m: m.assign(step=0), {}, "above 0"),
        (lambda m: m, {"goal": math.nan}, "goal"),
        (lambda m: m, {"seed": -1}, "seed"),
        (lambda m: m, {"num_resamples": 0}, "num_resamples"),
        (lambda m: m, {"confidence": 1.0}, "confidence"),
    ],
)
def test_curve_and_table_reject(measured, change, arguments, message):
    for function in (scaling_curve, regime_table):
        with pytest.raises(ParameterError, match=message):
            function(change(measured), **({"goal": 0.25} | arguments))


# --- regime_table --------------------------------------------------------------------------------


def sweep(num_trials=12, seed=0):
    """Trials whose steps are those of a known curve, times what bad luck adds."""
    rng = np.random.default_rng(seed)
    rows = []
    for size in 2 ** np.arange(3, 13):
        exact = 50 * (1 + 200 / size)
        for i, factor in enumerate(1 + rng.exponential(0.5, num_trials)):
            rows.append((size, f"{size}-{i}", exact * factor, 0.1))
    return pd.DataFrame(rows, columns=["batch_size", "trial", "step", "error"])


def test_regime_table_matches_a_slow_bootstrap():
    rows = sweep()
    table = regime_table(rows, 0.1, seed=1, num_resamples=200, confidence=0.9, sharpness=1.0)
    assert list(table.index) == list(QUANTITIES)
    curve = scaling_curve(rows, 0.1)
    fitted = fit_regimes(curve["batch_size"], curve["steps"], sharpness=1.0)
    assert table["value"].tolist() == [getattr(fitted, name) for name in QUANTITIES]
    rng = np.random.default_rng(99)
    drawn = []
    for _ in range(400):
        best = [rng.choice(part["step"], len(part)).min() for _, part in rows.groupby("batch_size")]
        fit = fit_regimes(curve["batch_size"], best, sharpness=1.0)
        drawn.append([getattr(fit, name) for name in QUANTITIES])
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
    spread = high - low
    assert np.abs(table["low"] - low).max() >= 0
    assert (np.abs(table["low"] - low) < 0.25 * spread).all()
    assert (np.abs(table["high"] - high) < 0.25 * spread).all()
    assert (table["low"] < table["value"]).all()
    assert (table["value"] < table["high"]).all()


def test_regime_table_is_near_the_truth_and_depends_on_the_seed_alone():
    rows = sweep(num_trials=50)
    table = regime_table(rows, 0.1, num_resamples=50)
    assert table.loc["critical_batch_size", "value"] == pytest.approx(200, rel=0.15)
    assert table.loc["min_steps", "value"] == pytest.approx(50, rel=0.1)
    again = regime_table(rows.sample(frac=1, random_state=3), 0.1, num_resamples=50)
    pd.testing.assert_frame_equal(again, table, rtol=1e-9)
    assert not regime_table(rows, 0.1, num_resamples=50, seed=1)["high"].equals(table["high"])


def test_regime_table_counts_resamples_not_distinct_fits():
    # one trial of ten at batch size 8 is the best; it is missing from 0.9^10 = 35 % of resamples
    exact = {size: 50 * (1 + 200 / size) for size in (8, 16, 32, 64, 128, 256)}
    rows = [(size, f"{size}", steps, 0.1) for size, steps in exact.items() if size != 8]
    rows += [(8, f"8-{i}", exact[8] * (1 if i == 0 else 1.5), 0.1) for i in range(10)]
    rows = pd.DataFrame(rows, columns=["batch_size", "trial", "step", "error"])
    table = regime_table(rows, 0.1, confidence=0.2, sharpness=1.0)
    assert (table["low"] == table["value"]).all()  # quantiles 0.4 and 0.6, both with that trial
    assert (table["high"] == table["value"]).all()
    wide = regime_table(rows, 0.1, confidence=0.9, sharpness=1.0)
    assert (wide["low"] < wide["high"])[:4].all()  # flat_from was not seen in either


def test_regime_table_of_too_few_points_is_nan():
    few = sweep()[lambda rows: rows["batch_size"] <= 16]
    assert regime_table(few, 0.1, num_resamples=5).isna().all(axis=None)
    # enough points, but in most resamples one batch size does not arrive
    rows = sweep(num_trials=6)[lambda rows: rows["batch_size"] <= 64].reset_index(drop=True)
    rows.loc[(rows["batch_size"] == 8) & ~rows["trial"].str.endswith("-0"), "error"] = 0.9
    table = regime_table(rows, 0.1, num_resamples=50)
    assert table["value"].notna().all()
    assert table[["low", "high"]].isna().all(axis=None)


# --- best_at_budget ------------------------------------------------------------------------------


def test_best_at_budget_by_hand(measured):
    rows = measured[measured["batch_size"] == 16]
    assert best_at_budget(rows, 100).error == 0.2
    assert best_at_budget(rows, 299).error == 0.2
    assert best_at_budget(rows, 300).error == 0.1  # equal counts
    assert best_at_budget(rows, 2.0, column="epoch").error == 0.2
    assert best_at_budget(rows, 6.0, column="epoch").error == 0.1
    assert best_at_budget(rows, math.inf).error == 0.1


def test_best_at_budget_of_a_curve_that_rises_again_is_its_lowest():
    assert best_at_budget(trials(a=[0.5, 0.1, 0.4]), 300).error == 0.1


def test_best_at_budget_counts_trials_that_diverged_or_came_late():
    rows = trials(a=[0.5, 0.4], b=[math.nan, math.nan])
    late = trials(c=[math.nan, 0.1]).iloc[1:]
    found = best_at_budget(pd.concat([rows, late]), 150)
    assert (found.error, found.num_trials, found.num_evaluated) == (0.5, 3, 1)
    assert found.high == math.inf  # (2 / 3)^3 = 0.30 miss it
    none = best_at_budget(pd.concat([rows, late]), 50)
    assert none[3:] == (3, 0)
    assert all(math.isnan(value) for value in none[:3])


def test_best_at_budget_of_one_trial_has_no_bounds():
    found = best_at_budget(trials(a=[0.5]), 100)
    assert found == BestError(0.5, *found[1:3], 1, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_best_at_budget_bootstrap_matches_the_exact_distribution():
    rows = trials(**{f"t{i}": [0.1 * (i + 1), 0.0] for i in range(10)})
    found = best_at_budget(rows, 100, num_resamples=4000)
    assert (found.error, found.low) == pytest.approx((0.1, 0.1))
    assert found.high == pytest.approx(0.4)  # 0.7^10 = 0.028 > 0.025 > 0.6^10: the fourth
    half = best_at_budget(rows.sample(frac=1, random_state=0), 100, confidence=0.5)
    assert half.high == pytest.approx(0.2)  # 0.9^10 = 0.35 > 0.25 > 0.8^10 = 0.11
    assert half == best_at_budget(rows, 100, confidence=0.5)


def test_bounds_of_two_resamples_are_their_values():
    errors = np.random.default_rng(1).uniform(size=5)
    drawn = np.random.default_rng(0).integers(0, 5, (2, 5))
    low, high = sorted(np.sort(errors)[drawn].min(axis=1))
    assert low < high
    found = best_at_budget(trials(**{f"t{i}": [e] for i, e in enumerate(errors)}), 100,
                           num_resamples=2)  # fmt: skip
    assert (found.low, found.high) == (low, high)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda m: m.drop(columns="error"), {}, r"lack \['error'\]"),
        (lambda m: m, {"column": "epochs"}, r"lack \['epochs'\]"),
        (lambda m: m.iloc[:0], {}, "at least one row"),
        (lambda m: m.assign(trial=None), {}, "a trial in each"),
        (lambda m: m.assign(step=math.nan), {}, "nan in 'step'"),
        (lambda m: m, {"budget": 0}, "budget"),
        (lambda m: m, {"budget": math.nan}, "budget"),
        (lambda m: m, {"num_resamples": 0}, "num_resamples"),
        (lambda m: m, {"confidence": 0.0}, "confidence"),
        (lambda m: m, {"seed": -1}, "seed"),
    ],
)
def test_best_at_budget_rejects(measured, change, arguments, message):
    with pytest.raises(ParameterError, match=message):
        best_at_budget(change(measured), **({"budget": 100} | arguments))


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
    assert math.isnan(diverged["error"])
    curve = scaling_curve(rows, 1.0)
    assert curve["batch_size"].tolist() == [16, 30]
    assert curve["num_trials"].tolist() == [2, 1]
    assert curve["num_reached"].tolist() == [1, 1]
    assert curve["steps"].tolist() == [2, 2]  # an epoch of 30 is two steps
    assert measured_errors(results, history, error="test_loss")["error"].iloc[0] == pytest.approx(
        history["test_loss"].iloc[0]
    )


def test_runs_that_all_diverged_at_once_are_trials(store, tiny_run):
    results = run_missing([tiny_run(lr=1e30, seed=s) for s in (0, 1)], store, use_committed=False)
    rows = measured_errors(results, load_history(results, store))
    assert len(rows) == 2
    curve = scaling_curve(rows, 0.5)
    assert curve[["steps", "num_trials", "num_reached"]].values.tolist() == [[math.inf, 2, 0]]
    assert best_at_budget(rows, math.inf).num_evaluated == 0


def test_measured_errors_names_what_is_missing(store, tiny_run):
    results = run_missing([tiny_run()], store, use_committed=False)
    history = load_history(results, store)
    with pytest.raises(ParameterError, match=r"history lack.*'val_error'"):
        measured_errors(results, history, error="val_error")
    with pytest.raises(ParameterError, match=r"results lack.*'batch_size'"):
        measured_errors(results.drop(columns="batch_size"), history)
