"""Active Bias: goals, differences, verdicts and claims against numbers worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from hardtrain import Run
from hardtrain.papers.active_bias import tables as bias_tables
from hardtrain.papers.active_bias.variants import ARMS, SCAN, UNIFORM, arm_method
from hardtrain.report.tables import Protocol
from hardtrain.statistics import PairedDifference

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
    shifts = {"E": (2, -6, 0.0), "D": (0, 3, 0.0), "PV": (1, -3, 0.5), "TC": (1, -3, 0.5)}
    epochs, damage, clean, reached = {}, {}, {}, {}
    for name in ARMS:
        slow, harm, gain = shifts.get(name.removeprefix("SGD-")[1:], (0, 0, 0))
        epochs[name] = pd.Series({0: 10.0 + slow, 1: 11.0 + slow, 2: 15.0 + slow + 0.5 * slow})
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


@pytest.mark.parametrize(
    ("interval", "word", "text"),
    [
        ((5, 2, 8), "same direction", "inside the printed 1 to 18 %"),
        ((18, 17, 19), "same direction", "inside"),
        ((30, 20, 40), "same direction", "outside"),
        ((0.5, 0.2, 0.8), "same direction", "outside"),
        ((5, -1, 11), "no difference seen", "measured +5 [-1, +11] %, n = 5"),
        ((0, 0, 0), "no difference seen", "outside"),
        ((-5, -8, -2), "opposite", "outside"),
    ],
)
def test_range_verdict_words(interval, word, text):
    found = PairedDifference(*map(float, interval), p=0.5, n=5)
    outcome = bias_tables.range_verdict(found, Protocol(comparable=True))
    assert outcome.word == word
    assert text in outcome.reason


def test_range_verdict_refuses_what_cannot_be_compared():
    found = PairedDifference(5.0, 2.0, 8.0, p=0.01, n=5)
    outcome = bias_tables.range_verdict(found, Protocol(False, "quick"))
    assert outcome == ("not comparable", "quick")
    few = bias_tables.range_verdict(found._replace(n=2), Protocol(comparable=True))
    assert few == ("not comparable", "2 of at least 3 seeds")
    none = bias_tables.range_verdict(None, Protocol(comparable=True))
    assert none == ("not comparable", "no pair of finished runs, or no error to reduce")


# --- tables --------------------------------------------------------------------------------------


def test_reduction_table_shows_the_uncertain_arms_beside_the_print():
    arms = {name: arm(name) for name in ARMS}
    pairs = [(runs, [0.10, 0.20, 0.30]) for runs in arms.values()]
    pairs[list(ARMS).index("SGD-WTC")] = (arms["SGD-WTC"], [0.09, 0.19, 0.29])
    pairs[list(ARMS).index(UNIFORM)] = (arms[UNIFORM], [0.05, 0.10, 0.15])
    results = results_of(*pairs)
    cells = {("digits", "cnn_small", "clean"): arms}
    table = bias_tables.reduction_table(results, cells, Protocol(True)).set_index("arm")
    assert set(table["labels"]) == {"clean"}
    assert table.index.tolist() == list(bias_tables.GROUPS["uncertain"])
    assert set(table["printed (%)"]) == {"1 to 18"}
    assert table.loc["SGD-WTC", "here, to SGD-Scan (%)"].startswith("+5.0 ± ")
    assert table.loc["SGD-WTC", "here, to SGD-Uni (%)"].startswith("-90.0 ± ")
    assert table.loc["SGD-WTC", "verdict"] == "same direction"  # by SGD-Scan; not seen by SGD-Uni
    assert table.loc["SGD-SPV", "verdict"] == "no difference seen"
    table = bias_tables.reduction_table(results, cells, Protocol(False, "quick"))
    assert set(table["verdict"]) == {"not comparable"}
    assert set(table["why"]) == {"quick"}


def test_trade_off_table_by_hand(found):
    shares = {"SGD-WD": np.array([0.3, 0.5, np.nan]), "SGD-SE": np.array([np.nan] * 3)}
    table = bias_tables.trade_off_table(found, shares).set_index("arm")
    assert table.index.tolist() == list(ARMS)
    row = table.loc["SGD-SE"]
    loss, damage = "epochs to a training loss, clean labels", "damage by wrong labels (points)"
    assert row[loss].endswith("(n = 3), 2 of 3 got there")
    assert row[f"{loss} minus SGD-Scan"].startswith("+2.3 ± ")
    assert row[f"{damage} minus SGD-Scan"].startswith("-6.2 ± ")
    assert row["emphasis on wrong labels (%)"] == "–"
    assert table.loc["SGD-WD", "emphasis on wrong labels (%)"].startswith("40.0 ± ")
    assert table.loc["SGD-WD", damage].startswith("12.8 ± ")
    assert table.loc[SCAN, f"{damage} minus SGD-Scan"] == ""


def test_claims_table_says_what_is_seen(found):
    table = bias_tables.claims_table(found)
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


def test_claims_table_pairs_the_means_of_groups(found):
    found["damage"]["SGD-WE"] = (found["damage"][SCAN] + pd.Series({0: 2.0, 1: 4.0})).dropna()
    first = bias_tables.claims_table(found).iloc[0]
    # by seed: (-6 + 2) / 2 and (-6 + 4) / 2; seed 2 is not there for both
    assert first["here"].startswith("-1.50 ± ")
    assert "(n = 2)" in first["here"]


def test_claims_table_sees_the_opposite_and_too_few(found):
    found["damage"] = {name: -values for name, values in found["damage"].items()}
    table = bias_tables.claims_table(found).set_index(["the review", "measured"])["seen"]
    assert table["easy first is robust to outliers"].tolist() == ["opposite"]
    assert table["hard first is prone to outliers"].tolist() == ["opposite"]
    two = {k: {name: x[:2] for name, x in v.items()} for k, v in found.items()}
    assert set(bias_tables.claims_table(two)["seen"]) == {"too few seeds"}
    none = {k: {name: x[:0] for name, x in v.items()} for k, v in found.items()}
    assert set(bias_tables.claims_table(none)["here"]) == {""}
