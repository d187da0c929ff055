"""What tables say of numbers worked out by hand."""

import math

import numpy as np
import pandas as pd

from hardtrain.papers.data_parallelism.batch_scaling import (
    QUANTITIES,
    Estimate,
    best_at_budgets,
    regime_arrays,
    scaling_curve,
)
from hardtrain.papers.data_parallelism.measures import (
    best_rates,
    comparison_groups,
    measurements,
)
from hardtrain.papers.data_parallelism.regimes import fit_regimes
from hardtrain.papers.data_parallelism.tables import (
    best_table,
    budget_table,
    check_table,
    claims_table,
    comparison_table,
    interval_text,
    regimes_table,
    rules_table,
)
from hardtrain.papers.data_parallelism.tuning import Curve

SGD = Curve("digits", "mlp", "sgd")
HEAVY = Curve("digits", "mlp", "momentum")
NOISY = HEAVY._replace(label_noise=0.2)


def test_texts_of_intervals():
    assert interval_text(24.3, 11, math.inf) == "24 [11, ∞]"
    assert interval_text(12.0, 8.0, 100.4) == "12 [8, 100]"
    assert interval_text(7.25, math.nan, math.nan) == "7.2"
    assert interval_text(math.nan, math.nan, math.nan, unknown="") == ""
    assert interval_text(math.inf, math.inf, math.inf) == "not reached"
    assert interval_text(math.inf, math.nan, math.nan, unknown="not seen") == "not seen"
    assert interval_text(math.inf, 90, math.inf, unknown="not seen") == "not seen [90, ∞]"


def test_best_table(tuned):
    frames = {HEAVY: scaling_curve(measurements(tuned)[HEAVY], 0.2)}
    table = best_table(tuned, frames, {"digits": 1024}).set_index("B")
    assert set(table["network"]) == {"mlp"}
    assert set(table["optimiser"]) == {"heavy ball"}
    first = table.loc[4]
    assert first["steps"] == "80 [80, 120]"
    assert first["epochs"] == "0.31"  # 80 * 4 / 1024
    assert list(first[["lr", "1 − momentum", "lr / (1 − momentum)", "final lr / lr"]]) == [
        "0.3", "1", "0.3", "1",
    ]  # fmt: skip
    assert list(table.loc[16, ["lr", "lr / (1 − momentum)", "final lr / lr", "steps"]]) == [
        "0.1", "0.4", "0.5", "40 [40, ∞]",
    ]  # fmt: skip
    assert list(table["optimum"]) == ["inside", "at an edge", "not reached"]
    assert table.loc[64, "steps"] == "not reached"
    assert table.loc[64, "lr"] == table.loc[64, "epochs"] == "–"
    assert table[["trials", "reached", "diverged"]].to_numpy().tolist() == [
        [2, 2, 0], [2, 1, 0], [2, 0, 1],
    ]  # fmt: skip


def test_regimes_table_says_what_was_not_seen():
    bent = [[size, [100 / size + 10]] for size in (1, 2, 4, 8, 16, 32, 64)]
    halving = [[size, [640 / size]] for size in (1, 2, 4, 8)]
    short = [[4, [20.0]], [8, [math.inf]]]
    arrays = regime_arrays(curves=[bent, halving, short], num_resamples=5)
    table = regimes_table([SGD, HEAVY, NOISY], arrays)
    fit = fit_regimes(
        [1, 2, 4, 8, 16, 32, 64], [100 / size + 10 for size in (1, 2, 4, 8, 16, 32, 64)]
    )
    assert table.loc[0, "critical B"].startswith("10 [10")
    assert table.loc[0, "flat from B"].startswith(f"{fit.flat_from:.0f} [")
    assert table.loc[1, "perfect scaling up to B"].startswith("not seen")
    assert table.loc[1, "fewest images"].startswith("640")
    assert table.loc[2, "critical B"] == "too few points"
    assert list(table["points"]) == [7, 4, 1]
    assert list(table["sharpness"])[::2] == ["1.00", ""]


def test_budget_table(tuned):
    budgets = {"step": 40, "epoch": 0.4}
    within = {HEAVY: best_at_budgets(measurements(tuned)[HEAVY], budgets)}
    table = budget_table(within, budgets).set_index("B")
    assert list(table["error after 40 steps (%)"]) == ["60.0 [60.0, 60.0]", "15.0 [15.0, 60.0]",
                                                       "60.0 [60.0, ∞]"]  # fmt: skip
    # 0.4 epochs: 102 steps of 4, 25 of 16, 6 of 64
    assert list(table["error after 0.4 epochs (%)"]) == [
        "15.0 [15.0, 60.0]", "not evaluated", "not evaluated",
    ]  # fmt: skip


def test_rules_table(tuned):
    titles = {"lr": "rate", "effective_lr": "effective"}
    rates = {(HEAVY, column): best_rates(tuned, HEAVY, column) for column in titles}
    table = rules_table(rates, titles)
    assert table["batch sizes"].tolist() == [2]
    assert table.loc[0, "rule, rate"] == table.loc[0, "rule, effective"] == "too few points"
    assert table.loc[0, "power of B, rate"] == ""
    rates[HEAVY, "effective_lr"] = (rates[HEAVY, "lr"][0], Estimate(0.5, 0.4, 0.6))
    table = rules_table(rates, titles)
    assert table.loc[0, "power of B, effective"] == "0.50 [0.40, 0.60]"
    assert table.loc[0, "rule, effective"] == "square root"


def test_comparison_table():
    steps = {
        SGD: [[4, [80.0]], [16, [40.0]]],
        HEAVY: [[4, [90.0]], [16, [30.0]], [64, [20.0]]],
        NOISY: [[4, [90.0, math.inf]], [16, [math.inf]]],
    }
    table = comparison_table(comparison_groups(list(steps)), steps).set_index("compared")
    optimisers = table.loc["optimiser"]
    assert list(optimisers["optimiser"]) == ["SGD", "heavy ball"]
    assert list(optimisers["steps"]) == ["80 to 40", "90 to 30"]
    assert list(optimisers["speed-up"]) == ["2.00 [2.00, 2.00]", "3.00 [3.00, 3.00]"]
    assert list(optimisers["relative to the first"]) == ["", "1.50 [1.50, 1.50]"]
    assert list(optimisers["result"]) == ["", "larger"]
    noisy = table.loc["data"].iloc[1]
    # of the first up to 64; where both are: only up to 16
    assert list(noisy[["steps", "speed-up", "result"]]) == [
        "90 to not reached", "not reached", "not reached",
    ]  # fmt: skip
    assert comparison_table({}, steps).empty


def claims(words, values=(10.0, 60.0), slopes=None, errors=None, reason=""):
    """`claims_table` of two curves with given results of comparisons, boundaries and slopes."""
    value = np.full((2, len(QUANTITIES)), 1.0)
    value[:, list(QUANTITIES).index("perfect_until")] = values[0]
    value[:, list(QUANTITIES).index("flat_from")] = values[1]
    comparisons = pd.DataFrame(
        [(kind, word) for kind, found in words.items() for word in ("", *found)],
        columns=["compared", "result"],
    )
    errors = errors or {"step": (0.3, 0.1), "epoch": (0.1, 0.3)}
    within = pd.DataFrame(
        [
            (size, budget, error, error, error)
            for budget, pair in errors.items()
            for size, error in zip((4, 64), pair, strict=True)
        ],
        columns=["batch_size", "budget", "value", "low", "high"],
    )
    slopes = slopes or [Estimate(0.5, 0.4, 0.6)] * 2
    return claims_table({"value": value}, comparisons, slopes, [within] * 2, reason=reason)


def test_claims_that_are_borne_out():
    larger = {"optimiser": ["larger"], "network": ["smaller"], "data": ["larger"]}
    table = claims(larger, slopes=[Estimate(0.5, 0.4, 0.6), Estimate(0.8, 0.7, 0.9)])
    assert list(table["verdict"]) == ["same direction"] * 6
    assert "linear in 0, square root in 1 of 2 curves" in table.loc[4, "here"]
    assert "better at equal steps in 2, worse at equal epochs in 2 of 2" in table.loc[5, "here"]


def test_claims_that_are_not():
    words = {"optimiser": ["smaller", "no difference seen"], "network": ["no difference seen"]}
    even = {"step": (0.1, 0.1), "epoch": (0.1, 0.3)}
    table = claims(words, values=(10.0, math.inf), errors=even)
    assert list(table["verdict"]) == [
        "no difference seen", "opposite", "no difference seen", "no difference seen",
        "not reproduced", "no difference seen",
    ]  # fmt: skip
    assert table.loc[0, "here"] == ("end of perfect scaling seen in 2, flat part in 0 of 2 curves")
    assert table.loc[1, "here"].endswith("no difference seen: 1, smaller: 1")
    assert table.loc[3, "here"] == "not run"


def test_as_many_larger_as_smaller_speed_ups_bear_out_nothing_but_a_difference():
    even = ["larger", "smaller"]
    table = claims({"optimiser": even, "network": even, "data": ["no difference seen"]})
    assert list(table["verdict"])[1:4] == [
        "no difference seen", "same direction", "no difference seen",
    ]  # fmt: skip


def test_claims_of_another_protocol_are_not_comparable():
    table = claims({}, reason="digits")
    assert set(table["verdict"]) == {"not comparable"}
    assert set(table["why"]) == {"digits"}


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
