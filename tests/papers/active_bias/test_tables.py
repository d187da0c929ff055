"""Active Bias: goals, differences, verdicts and claims against numbers worked out by hand."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest

from hardtrain import Run
from hardtrain.papers.active_bias import tables as bias_tables
from hardtrain.papers.active_bias.variants import ARMS, SCAN, UNIFORM, arm_method
from hardtrain.statistics import paired_difference

T2 = 4.302653  # quantile 0.975 of Student's t with 2 degrees of freedom


def arm(name, seeds=(0, 1, 2), *, epochs=4, **fields):
    method = arm_method(name, smoothing=1.0, burn_in=0.1)
    return [
        Run(dataset="digits", network="cnn_small", seed=seed, epochs=epochs, **method, **fields)
        for seed in seeds
    ]


def rows(runs, errors):
    """Results of runs; an error of ``None`` is a diverged run."""
    return [
        {
            "key": run.key,
            "seed": run.seed,
            "status": "diverged" if error is None else "finished",
            "test_error": math.nan if error is None else error,
        }
        for run, error in zip(runs, errors, strict=True)
    ]


def course(run, errors, losses=None):
    """The history of a run: its test error after each epoch, last epoch first."""
    losses = errors if losses is None else losses
    return [
        {"key": run.key, "epoch": epoch, "test_error": error, "train_set_loss": loss}
        for epoch, (error, loss) in enumerate(zip(errors, losses, strict=True), start=1)
    ][::-1]


# --- from results and histories ------------------------------------------------------------------


def test_goals_are_the_means_of_finished_runs():
    runs = arm(SCAN)
    history = pd.DataFrame(
        course(runs[0], [0.9, 0.5, 0.2, 0.1], [2.0, 1.0, 0.5, 0.1])
        + course(runs[1], [0.7, 0.3, 0.2, 0.1], [2.0, 2.0, 0.5, 0.1])
        + course(runs[2], [0.1])  # diverged after that
    )
    assert bias_tables.goal_levels(history, runs, 2) == {"train_set_loss": 1.5, "test_error": 0.4}
    for empty in (history[history["key"] == runs[2].key], pd.DataFrame({"key": []})):
        assert all(math.isnan(level) for level in bias_tables.goal_levels(empty, runs, 2).values())


def test_epochs_to_goal_is_the_first_at_or_below():
    runs = arm(SCAN, (0, 1, 2, 3))
    history = pd.DataFrame(
        course(runs[0], [0.9, 0.4, 0.5, 0.1])
        + course(runs[1], [0.7, 0.6, 0.5, 0.5])
        + course(runs[2], [0.1])
        + course(runs[3], [0.3, 0.6, 0.5, 0.5])
    )
    results = pd.DataFrame(rows(runs, [0.1, 0.5, None, 0.5]))
    found = bias_tables.epochs_to_goal(history, results, runs, "test_error", 0.4)
    assert found.dropna().to_dict() == {0: 2, 3: 1}
    assert found.index.tolist() == [0, 1, 3]  # never, but finished
    never = bias_tables.epochs_to_goal(history, results, runs, "test_error", math.nan)
    assert never.isna().tolist() == [True] * 3
    none = bias_tables.epochs_to_goal(
        history, results[results["seed"] == 2], runs, "test_error", 1.0
    )
    assert len(none) == 0


@pytest.fixture
def found():
    """Speed and damage of all arms, three seeds: easy 2 epochs slower and 6 points less damage,
    hard as fast and 3 points more, uncertain between, seeds differing."""
    shifts = {"E": (2, -6, 0.0), "D": (0, 3, 0.0), "PV": (1, -3, 0.02), "TC": (1, -3, 0.02)}
    epochs, damage, clean, reached = {}, {}, {}, {}
    for name in ARMS:
        slow, harm, gain = shifts.get(name.removeprefix("SGD-")[1:], (0, 0, 0))
        epochs[name] = pd.Series({0: 10.0 + slow, 1: 11.0 + slow, 2: 15.0 + slow + 0.02 * slow})
        damage[name] = pd.Series({0: 9.0 + harm, 1: 12.0 + harm, 2: 8.0 + 1.1 * harm})
        clean[name] = pd.Series({0: 5.0 - gain, 1: 6.0 + gain, 2: 4.0})
        reached[name] = pd.Series({0: True, 1: name != "SGD-SE", 2: True})
    noisy = {name: clean[name] + damage[name] for name in ARMS}
    return {"train_set_loss": epochs, "train_set_loss reached": reached, "test_error": epochs,
            "test_error reached": reached, "damage": damage, "clean error": clean,
            "noisy error": noisy}  # fmt: skip


def test_trade_off_by_hand():
    clean = {"a": arm(SCAN, evaluate_train=True), "b": arm("SGD-WE", evaluate_train=True)}
    noisy = {"a": arm(SCAN, label_noise=0.3), "b": arm("SGD-WE", label_noise=0.3)}
    results = pd.DataFrame(
        rows(clean["a"], [0.1, 0.1, 0.1])
        + rows(clean["b"], [0.2, None, 0.1])
        + rows(noisy["a"], [0.4, 0.3, 0.2])
        + rows(noisy["b"], [0.25, 0.3, None])
    )
    curve = [0.9, 0.4, 0.2, 0.1]
    history = pd.DataFrame(
        [row for runs in clean.values() for run in runs for row in course(run, curve, curve[::-1])]
    )
    goals = {"train_set_loss": 0.3, "test_error": 0.3}
    found = bias_tables.trade_off(results, history, clean, noisy, goals)
    assert found["test_error"]["b"].to_dict() == {0: 3, 2: 3}
    assert found["train_set_loss"]["a"].tolist() == [1, 1, 1]  # another column
    assert found["test_error reached"]["a"].all()
    never = bias_tables.trade_off(results, history, clean, noisy, {"test_error": 0.05})
    assert never["test_error"]["a"].tolist() == [4, 4, 4]  # all of its epochs
    assert never["test_error reached"]["a"].tolist() == [False] * 3
    assert found["damage"]["a"].to_dict() == pytest.approx({0: 30, 1: 20, 2: 10})
    assert found["damage"]["b"].to_dict() == pytest.approx({0: 5})  # the only seed with both
    assert found["clean error"]["b"].to_dict() == pytest.approx({0: 20, 2: 10})
    assert found["noisy error"]["b"].to_dict() == pytest.approx({0: 25, 1: 30})


def results_of(*pairs):
    return pd.DataFrame([row for runs, errors in pairs for row in rows(runs, errors)])


def test_reduction_is_relative_to_the_baseline():
    plain, other = arm(SCAN), arm("SGD-WPV")
    results = results_of((plain, [0.10, 0.20, 0.30]), (other, [0.08, 0.19, 0.24]))
    gap = bias_tables.reduction(results, other, plain)
    assert gap.mean == pytest.approx(100 * 0.03 / 0.20)  # positive: better
    assert gap.half_width == pytest.approx(
        100 * T2 * np.std([0.02, 0.01, 0.06], ddof=1) / math.sqrt(3) / 0.20, rel=1e-6
    )
    worse = bias_tables.reduction(results, plain, other)
    assert worse.mean == pytest.approx(-100 * 0.03 / 0.17)


def test_reduction_needs_common_seeds_and_an_error():
    plain, other = arm(SCAN), arm("SGD-WPV")
    results = results_of((plain, [0.1, None, 0.9]), (other, [0.05, 0.4, None]))
    gap = bias_tables.reduction(results, other, plain)
    assert (gap.mean, gap.n) == (pytest.approx(50), 1)  # of 0.1, not of the mean with 0.9
    results = results_of((plain, [0.1, None, None]), (other, [None, 0.4, 0.4]))
    assert bias_tables.reduction(results, other, plain) is None
    results = results_of((plain, [0.0, 0.0, 0.0]), (other, [0.0, 0.4, 0.4]))
    assert bias_tables.reduction(results, other, plain) is None


# --- tables --------------------------------------------------------------------------------------


def test_reduction_table_shows_the_uncertain_arms_beside_the_print():
    arms = {name: arm(name) for name in ARMS if name != "SGD-STC"}
    pairs = [(runs, [0.10, 0.20, 0.30]) for runs in arms.values()]
    pairs[list(arms).index("SGD-WTC")] = (arms["SGD-WTC"], [0.09, 0.18, 0.29])
    pairs[list(arms).index(UNIFORM)] = (arms[UNIFORM], [0.05, 0.10, 0.15])
    cells = {("digits", "cnn_small", "clean"): arms}
    table = bias_tables.reduction_table(results_of(*pairs), cells).set_index("arm")
    assert table.index.tolist() == ["SGD-SPV", "SGD-WPV", "SGD-WTC"]  # those that there are
    assert set(table["labels"]) == {"clean"}
    assert set(table["printed (%)"]) == {"1 to 18"}
    assert "verdict" not in table  # the range belongs to none of these cells
    half = 100 * T2 * np.std([0.01, 0.02, 0.01], ddof=1) / math.sqrt(3) / 0.20
    assert table.loc["SGD-WTC", "here, to SGD-Scan (%)"].startswith(f"+6.7 ± {half:.1f} (n = 3)")
    assert table.loc["SGD-WTC", "here, to SGD-Uni (%)"].startswith("-86.7 ± ")
    least = half * (1 + 1.060660 / T2)  # quantile 0.8 of t with 2 degrees of freedom
    assert float(table.loc["SGD-WTC", "seen with 80 % power (%)"]) == pytest.approx(least, abs=0.05)
    assert table.attrs["questions"] == 6
    none = bias_tables.reduction_table(results_of((arms[SCAN], [0.1, 0.2, 0.3])), cells)
    assert set(none["here, to SGD-Scan (%)"]) == {""}
    assert set(none["seen with 80 % power (%)"]) == {"–"}


def test_trade_off_table_by_hand(found):
    shares = {"SGD-WD": np.array([0.3, 0.5, np.nan]), "SGD-SE": np.array([np.nan] * 3)}
    table = bias_tables.trade_off_table(found, shares).set_index("arm")
    assert table.index.tolist() == list(ARMS)
    row = table.loc["SGD-SE"]
    loss, damage = "epochs to a training loss, clean labels", "damage by wrong labels (points)"
    assert row[loss].endswith("(n = 3), 2 of 3 got there")
    assert row[f"{loss} minus SGD-Scan"].startswith("+2.0 ± ")
    assert row[f"{damage} minus SGD-Scan"].startswith("-6.2 ± ")
    assert row["emphasis on wrong labels (%)"] == "–"
    assert table.loc["SGD-WD", "emphasis on wrong labels (%)"].startswith("40.0 ± ")
    assert table.loc["SGD-WD", damage].startswith("12.8 ± ")
    assert table.loc[SCAN, f"{damage} minus SGD-Scan"] == ""


def test_directions_table_says_what_is_seen(found):
    table = bias_tables.directions_table(found)
    seen = table.set_index(["the review", "measured"])["seen"].to_dict()
    loss, damage = "epochs to a training loss, clean labels", "damage by wrong labels (points)"
    assert seen["easy first is robust to outliers", damage] == "yes"
    assert seen["easy first slows training down", loss] == "yes"
    assert seen["hard first is prone to outliers", damage] == "yes"
    assert seen["hard first accelerates training on clean data", loss] == "no difference seen"
    assert seen["uncertain: more robust than hard first", damage] == "yes"
    assert seen["uncertain: less robust than easy first", damage] == "yes"
    assert seen["uncertain: faster than easy first", loss] == "yes"
    assert seen["uncertain: slower than hard first", loss] == "yes"
    errors = ["test error, clean labels (points)", "test error, wrong labels (points)"]
    assert [seen["uncertain reduces the error", text] for text in errors] == [
        "no difference seen",
        "yes",
    ]
    assert len(table) == 14
    first = table.iloc[0]
    assert (first["difference"], first["stated"]) == ("easy first − SGD-Scan", "lower")
    half = T2 * np.std([-6, -6, -6.6], ddof=1) / math.sqrt(3)
    assert first["here"].startswith(f"-6.20 ± {half:.2f} (n = 3), p = ")


def test_directions_table_pairs_the_means_of_groups(found):
    found["damage"]["SGD-WE"] = (found["damage"][SCAN] + pd.Series({0: 2.0, 1: 4.0})).dropna()
    first = bias_tables.directions_table(found).iloc[0]
    # by seed: (-6 + 2) / 2 and (-6 + 4) / 2; seed 2 is not there for both
    assert first["here"].startswith("-1.50 ± ")
    assert "(n = 2)" in first["here"]


def test_directions_table_sees_the_opposite_and_too_few(found):
    found["damage"] = {name: -values for name, values in found["damage"].items()}
    table = bias_tables.directions_table(found).set_index(["the review", "measured"])["seen"]
    assert table["easy first is robust to outliers"].tolist() == ["opposite"]
    assert table["hard first is prone to outliers"].tolist() == ["opposite"]
    two = {k: {name: x[:2] for name, x in v.items()} for k, v in found.items()}
    assert set(bias_tables.directions_table(two)["seen"]) == {"too few seeds"}
    none = {k: {name: x[:0] for name, x in v.items()} for k, v in found.items()}
    assert set(bias_tables.directions_table(none)["here"]) == {""}
    assert set(bias_tables.directions_table(none)["seen"]) == {"not run"}


def test_directions_table_needs_a_p_that_survives_the_correction(found):
    found["damage"]["SGD-SE"] = found["damage"]["SGD-WE"] = pd.Series({0: 8.0, 1: 10.5, 2: 6.0})
    row = bias_tables.directions_table(found).iloc[0]
    differences = {0: -1.0, 1: -1.5, 2: -2.0}
    assert paired_difference(differences, dict.fromkeys(differences, 0.0)).high < 0  # by itself
    assert row["here"].startswith("-1.50 ± ")
    assert row["seen"] == "no difference seen"


def test_groups_are_of_the_arms_that_there_are(found):
    few = {k: {n: v[n] for n in (SCAN, UNIFORM, "SGD-SPV", "SGD-WPV")} for k, v in found.items()}
    assert bias_tables.group_difference(few, "damage", "hard first", SCAN) is None
    gap = bias_tables.group_difference(few, "damage", "uncertain", SCAN)
    assert gap.mean == pytest.approx(np.mean([-3, -3, -3.3]))
    assert bias_tables.group_order(few, "damage") == ["uncertain", SCAN]
    assert bias_tables.group_order(found, "damage") == [
        "easy first",
        "uncertain",
        SCAN,
        "hard first",
    ]
    table = bias_tables.directions_table(few).set_index("the review")["seen"]
    assert table["hard first is prone to outliers"] == "not run"


def test_rises_are_the_last_error_minus_the_lowest():
    scan, other = arm(SCAN), arm("SGD-WPV")
    curves = ([0.5, 0.2, 0.4, 0.3], [0.5, 0.4, 0.3, 0.2], [0.1])
    history = pd.DataFrame(
        [row for runs in (scan, other) for run, curve in zip(runs, curves, strict=True)
         for row in course(run, curve if runs is scan else [0.5, 0.4, 0.3, 0.3])]
    )  # fmt: skip
    results = results_of((scan, [0.3, 0.2, None]), (other, [0.3, 0.3, 0.3]))
    found = bias_tables.rises(results, history, {"clean": {SCAN: scan, "SGD-WPV": other}})
    assert found["clean"][SCAN].to_dict() == pytest.approx({0: 10, 1: 0})
    assert found["clean"]["SGD-WPV"].tolist() == [0, 0, 0]
    table = bias_tables.rises_table(found).set_index("arm")
    assert table.loc["SGD-WPV", "minus SGD-Scan"].startswith("-5.00 ± ")
    assert table.loc[SCAN, "rise of the test error (points)"].startswith("5.00 ± ")


def test_setting_effects_are_means_over_all_else():
    grid, pairs = {}, []
    for name, smooth, part in product(("SGD-SPV", "SGD-WPV"), (0.1, 0.4), (0, 0.5)):
        method = arm_method(name, smoothing=smooth, burn_in=part)
        grid["clean", name, smooth, part] = runs = [
            Run(dataset="digits", network="cnn_small", seed=seed, **method) for seed in (0, 1, 2)
        ]
        # smoothing: 3 points, seed 0 4; burn-in: 1 point
        errors = [0.10 + 0.03 * (smooth > 0.2) + 0.01 * (part > 0)] * 3
        pairs.append((runs, [errors[0] + 0.01 * (smooth > 0.2), *errors[1:]]))
    found = bias_tables.setting_effects(results_of(*pairs), grid)
    assert list(found) == [("clean", "ε 0.4 minus 0.1"), ("clean", "burn-in 0.5 minus 0")]
    first, second = found.values()
    assert (first.mean, first.n) == (pytest.approx(10 / 3), 3)
    assert second.mean == pytest.approx(1)
    one = {row: runs for row, runs in grid.items() if row[2] == 0.1}
    assert list(bias_tables.setting_effects(results_of(*pairs), one)) == [
        ("clean", "burn-in 0.5 minus 0")
    ]
    none = bias_tables.setting_effects(results_of((arm(SCAN), [0.1] * 3)), grid)
    assert set(none.values()) == {None}
