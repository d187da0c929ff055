"""What tables say of numbers worked out by hand."""

import math

import numpy as np
import pandas as pd

from hardtrain.papers import load_table
from hardtrain.papers.data_parallelism.measures import (
    Spread,
    best_trials,
    comparison_groups,
    lowest_errors,
    regimes,
)
from hardtrain.papers.data_parallelism.tables import (
    _spread,
    best_table,
    budget_table,
    check_table,
    comparison_table,
    goals_table,
    regimes_table,
    rules_table,
)
from hardtrain.papers.data_parallelism.tuning import Curve

SGD = Curve("digits", "mlp", "sgd")
HEAVY = Curve("digits", "mlp", "momentum")
NOISY = HEAVY._replace(label_noise=0.2)
INF = math.inf


def test_texts_of_spreads():
    assert _spread(Spread(24.3, 11, INF)) == "24 [11, ∞]"
    assert _spread(Spread(12.0, 8.0, 100.4)) == "12 [8, 100]"
    assert _spread(Spread(INF, INF, INF)) == "not reached"
    assert _spread(Spread(INF, 90, INF), unknown="not seen") == "not seen [90, ∞]"
    assert _spread(Spread(2.25, 1.0, 3.0), ".1f") == "2.2 [1.0, 3.0]"


def test_best_table(tuned):
    table = best_table(tuned, {HEAVY: (4, 16, 64, 99)}, {HEAVY: 0.2}, {"digits": 1024})
    table = table.set_index("B")
    assert set(table["optimiser"]) == {"heavy ball"}
    assert table["steps"].tolist() == ["80 [80, 80]", "40 [40, 80]", "not reached", "not run"]
    # four completed trials: the next four stay at or below the fourth with 1 - 1/70
    assert table["best of all"].tolist() == [
        "80, next ≤ 120", "40, next ≤ ∞", "∞, next ≤ ∞", "not run",
    ]  # fmt: skip
    assert table["epochs"].tolist() == ["0.31", "0.62", "–", "–"]  # 80 * 4 / 1024
    assert table["lr"].tolist() == ["0.1", "0.3", "–", "–"]
    assert table["test error (%)"].tolist()[:2] == ["10.8", "14.2"]  # the second and sixth trial
    counts = table[["completed", "infeasible", "reached", "before"]].to_numpy().tolist()
    assert counts == [[4, 1, 4, 0], [4, 0, 3, 0], [4, 0, 0, 0], [0, 0, 0, 0]]
    assert table["inside"].tolist() == ["2 of 2"] * 3 + ["0 of 0"]


def test_trials_of_earlier_rounds_are_shown_and_do_not_count(tuned):
    trials = tuned.trials.copy()
    trials.loc[trials["key"] == "16-0-0", "counted"] = False
    table = best_table(tuned._replace(trials=trials), {HEAVY: (16,)}, {HEAVY: 0.2}, {"digits": 9})
    assert table[["completed", "before"]].to_numpy().tolist() == [[3, 1]]
    assert table["best of all"].tolist() == ["80, next ≤ ∞"]


def test_goals_table_sets_ours_beside_the_printed_ones(tuned):
    curve = Curve("fashion-mnist", "cnn2", "nesterov")
    trials = tuned.trials.assign(curve=[curve] * len(tuned.trials))
    history = tuned.history.assign(validation_error=tuned.history["validation_error"] / 2)
    table = goals_table(
        load_table("data_parallelism_goals"), {"simple CNN": "cnn2"}, {curve: 0.145},
        tuned._replace(trials=trials, history=history),
    ).set_index("workload")  # fmt: skip
    here = table.loc["simple CNN, Fashion-MNIST"]
    assert here[["goal, paper", "here", "goal, here"]].tolist() == [0.1, "cnn2", "0.145"]
    assert here["below the paper's"] == "7 of 12"  # completed trials with 0.075
    others = table.drop("simple CNN, Fashion-MNIST")
    assert set(others["here"]) == {"not run"}
    assert len(table) == 9


def test_regimes_table_flags_what_the_points_do_not_tell(trials_of):
    sizes = (1, 2, 4, 8, 16, 32, 64)
    bent = {(size, seed): [100 / size + 10] for size in sizes for seed in (0, 1)}
    sharp = {(size, 0): [max(640 / size, 100.0)] for size in sizes}
    halving = {(size, 0): [640 / size] for size in sizes}
    late = {(size, 0): [6400 / size + 40] for size in sizes}
    curves = [SGD, HEAVY, NOISY, Curve("digits", "cnn2", "sgd"), Curve("digits", "cnn5", "sgd")]
    given = (bent, sharp, halving, late, {(4, 0): [20.0]})
    fits = {curve: regimes(best_trials(trials_of(steps)))
            for curve, steps in zip(curves, given, strict=True)}  # fmt: skip
    table = regimes_table(fits, dict.fromkeys(curves, sizes))
    assert table.loc[0, "critical B"] == "10 [10, 10]"
    assert "†" not in table.loc[0, "perfect scaling up to B"]
    assert table["at bound"].tolist()[:3] == ["0 of 2", "1 of 1", "0 of 1"]
    assert table.loc[0, "flat from B"].endswith(" †")  # of 40, with only 64 above it
    assert table.loc[2, "perfect scaling up to B"] == "not seen"
    assert table.loc[2, "fewest images"] == "640 [640, 640]"
    assert table.loc[3, "perfect scaling up to B"].endswith(" †")  # of 33, likewise
    assert table.loc[4, "critical B"] == "too few points"
    empty = regimes_table({SGD: []}, {SGD: sizes})
    assert empty.loc[0, "at bound"] == "0 of 0"


def test_budget_table(tuned):
    budgets = {"step": 40, "epoch": 0.4}
    errors = {HEAVY: lowest_errors(tuned.trials, tuned.history, budgets)}
    table = budget_table(errors, budgets).set_index("B")
    assert list(table["error after 40 steps (%)"]) == ["60.0 [60.0, 60.0]", "15.0 [15.0, 60.0]",
                                                       "60.0 [60.0, 60.0]"]  # fmt: skip
    assert list(table["error after 0.4 epochs (%)"]) == [
        "15.0 [15.0, 15.0]", "not evaluated", "not evaluated",
    ]  # fmt: skip


def test_rules_table(trials_of):
    steps = {(size, seed): [50] for size in (4, 8, 16, 32) for seed in range(3)}
    trials = trials_of(steps, lr={size: 0.01 * size**0.5 for size in (4, 8, 16, 32)})
    best = {HEAVY: best_trials(trials), NOISY: best_trials(trials)[:2]}
    table = rules_table(best, {"lr": "rate", "effective_lr": "effective"})
    assert table["power of B, effective"].tolist() == ["0.50 ± 0.00 (n = 3)", "not run"]
    assert table.loc[1, "rule, rate"] == "too few searches"


def test_comparison_table_compares_search_by_search():
    speed_ups = {
        SGD: pd.Series({0: 1.0, 1: 2.0, 2: 3.0}),
        HEAVY: pd.Series({0: 2.0, 1: 3.1, 2: 4.0}),
        NOISY: pd.Series({0: 2.0, 1: math.nan, 2: math.nan}),
    }
    table = comparison_table(comparison_groups(list(speed_ups)), speed_ups)
    assert table["compared"].tolist() == ["optimiser"] * 2 + ["data"] * 2
    assert table["halvings"].tolist()[:2] == ["2.00 ± 2.48 (n = 3)", "3.03 ± 2.49 (n = 3)"]
    assert table["minus the first"].tolist() == [
        "",
        "+1.03 ± 0.14 (n = 3), p = 0.001",
        "",
        "+0.00 (n = 1)",
    ]
    assert table.attrs["questions"] == 1
    assert comparison_table({}, speed_ups).empty


def test_check_table_by_hand():
    steps = np.array([[[[20.0, 10.0], [10.0, math.inf], [40.0, 15.0]]]] * 2)  # (2, 1, 3, 2)
    arrays = {
        "exact_steps": np.array([[10.0, 10.0]] * 2),
        "steps": steps,
        "exact_critical": np.array([8.0, 8.0]),
        "critical": np.array([[[4.0, 8.0, math.nan]]] * 2),
    }
    table = check_table([4, 8], [5], arrays)
    assert list(table["found / exact, 5 trials a round"])[:3] == [
        "2.00 [1.00, 4.00]", "1.50 [1.00, ∞]", "1.00 [0.50, ∞]",
    ]  # fmt: skip
    assert list(table["B"]) == ["4", "8", "critical"] * 2
