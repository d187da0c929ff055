"""What tables say of numbers worked out by hand; what is drawn where a goal was not reached."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from hardtrain.papers.data_parallelism.batch_scaling import QUANTITIES, scaling_curve
from hardtrain.papers.data_parallelism.figures import (
    draw_check,
    draw_groups,
    draw_points,
    draw_regimes,
    draw_rules,
    draw_steps,
    draw_trials,
    size_axis,
)
from hardtrain.papers.data_parallelism.measures import (
    Slope,
    budget_frame,
    comparison_groups,
    measurements,
    regime_arrays,
)
from hardtrain.papers.data_parallelism.regimes import Regimes, fit_regimes
from hardtrain.papers.data_parallelism.search import Search
from hardtrain.papers.data_parallelism.tables import (
    best_table,
    boundary_text,
    budget_table,
    check_table,
    claims_table,
    comparison_table,
    interval_text,
    regimes_table,
    rules_table,
    scale_table,
)
from hardtrain.papers.data_parallelism.tuning import Curve, Protocol, Tuned

SGD, HEAVY, NOISY = (
    Curve("digits", "mlp", optimizer, noise)
    for optimizer, noise in (("sgd", 0.0), ("momentum", 0.0), ("momentum", 0.2))
)
GOALS = {("digits", 0.0): 0.2, ("digits", 0.2): 0.3}


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture
def tuned():
    """Heavy ball at three batch sizes, two trials each: steps 80 and 120; 40 and not reached;
    not reached and diverged."""
    protocol = Protocol({"digits": 1024}, 1, 1, 1)
    points = [
        {"lr": 0.1, "final_fraction": 0.5, "one_minus_momentum": 0.25},
        {"lr": 0.3, "final_fraction": 1.0, "one_minus_momentum": 1.0},
    ]
    searches, runs, results, history = {}, {}, [], []
    for size, steps in {4: (120, 80), 16: (40, math.inf), 64: (math.inf, math.inf)}.items():
        cell = (HEAVY, size)
        runs[cell] = [protocol.run(*cell, point, i) for i, point in enumerate(points)]
        trials = pd.DataFrame(points).assign(round=0, steps=np.array(steps, dtype=float))
        best = None if size == 64 else points[int(np.argmin(steps))]
        searches[cell] = Search(trials, best, min(steps), size == 4, {})
        for run, first in zip(runs[cell], steps, strict=True):
            lost = size == 64 and run.lr == 0.3
            results.append(
                {
                    "key": run.key,
                    "batch_size": size,
                    "diverged_epoch": 0.0,
                    "diverged_step": 7.0,
                    "status": "diverged" if lost else "finished",
                }
            )
            history += [] if lost else [
                {"key": run.key, "epoch": step * size / 1024, "step": step,
                 "test_error": 0.15 if step >= first else 0.6}
                for step in (40, 80, 120)
            ]  # fmt: skip
    return Tuned(searches, runs, pd.DataFrame(results), pd.DataFrame(history))


# --- texts ---------------------------------------------------------------------------------------


def test_texts_of_intervals():
    assert interval_text(24.3, 11, math.inf) == "24 [11, ∞]"
    assert interval_text(7.25, math.nan, math.nan) == "7.2"
    assert interval_text(math.nan, 1.0, 2.0) == ""
    assert boundary_text(math.inf, math.nan, math.nan) == "not seen"
    assert boundary_text(math.inf, 90, math.inf) == "not seen [90, ∞]"
    assert boundary_text(12.0, 8.0, 100.4) == "12 [8, 100]"


# --- tables --------------------------------------------------------------------------------------


def test_best_table(tuned):
    table = best_table(tuned, measurements(tuned), GOALS, {"digits": 1024}).set_index("B")
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
    table = budget_table(budget_frame(measurements(tuned), budgets), budgets).set_index("B")
    assert list(table["error after 40 steps (%)"]) == ["60.0 [60.0, 60.0]", "15.0 [15.0, 60.0]",
                                                       "60.0 [60.0, ∞]"]  # fmt: skip
    # 0.4 epochs: 102 steps of 4, 25 of 16, 6 of 64
    assert list(table["error after 0.4 epochs (%)"]) == [
        "15.0 [15.0, 60.0]", "not evaluated", "not evaluated",
    ]  # fmt: skip


def test_rules_table(tuned):
    table, slopes = rules_table(tuned, [HEAVY], {"lr": "rate", "effective_lr": "effective"})
    assert slopes[HEAVY, "lr"].num_sizes == 2
    assert table.loc[0, "rule, rate"] == table.loc[0, "rule, effective"] == "too few points"
    assert table.loc[0, "power of B, rate"] == ""


def test_comparison_table():
    steps = {
        SGD: [[4, [80.0]], [16, [40.0]]],
        HEAVY: [[4, [90.0]], [16, [30.0]], [64, [20.0]]],
        NOISY: [[4, [90.0, math.inf]], [16, [math.inf]]],
    }
    groups = comparison_groups(list(steps))
    table = comparison_table(groups, steps).set_index("comparison")
    optimisers = table.loc["optimisers: digits / mlp"]
    assert list(optimisers["steps"]) == ["80 to 40", "90 to 30"]
    assert list(optimisers["speed-up"]) == ["2.00 [2.00, 2.00]", "3.00 [3.00, 3.00]"]
    assert list(optimisers["relative to the first"]) == ["", "1.50 [1.50, 1.50]"]
    assert list(optimisers["result"]) == ["", "larger"]
    noisy = table.loc["data: mlp, heavy ball"].iloc[1]
    # here up to 64, where both are: only up to 16
    assert list(noisy[["steps", "speed-up", "result"]]) == [
        "90 to not reached",
        "not reached",
        "not reached",
    ]
    assert comparison_table({}, steps).empty


def claims(words, values=(10.0, 60.0), slopes=None, errors=None):
    """`claims_table` of two curves with given results of comparisons, boundaries and slopes."""
    curves = [SGD, HEAVY]
    slopes = slopes or [Slope(0.5, 0.4, 0.6, 5)] * 2
    value = np.full((2, len(QUANTITIES)), 1.0)
    value[:, QUANTITIES.index("perfect_until")] = values[0]
    value[:, QUANTITIES.index("flat_from")] = values[1]
    comparisons = pd.DataFrame(
        [(f"{kind}: x", "", word) for kind, found in words.items() for word in ("", *found)],
        columns=["comparison", "curve", "result"],
    )
    errors = errors or {"step": (0.3, 0.1), "epoch": (0.1, 0.3)}
    budgets = pd.DataFrame(
        [
            (curve, size, budget, error, error, error)
            for curve in curves
            for budget, pair in errors.items()
            for size, error in zip((4, 64), pair, strict=True)
        ],
        columns=["curve", "batch_size", "budget", "error", "low", "high"],
    )
    found = {(c, "effective_lr"): slope for c, slope in zip(curves, slopes, strict=True)}
    how = dict(comparable=True, reason="")
    return claims_table(curves, {"value": value}, comparisons, found, budgets, **how)


def test_claims_that_are_borne_out():
    larger = {"optimisers": ["larger"], "networks": ["smaller"], "data": ["larger"]}
    slopes = (Slope(0.5, 0.4, 0.6, 5), Slope(0.8, 0.7, 0.9, 5))
    table = claims(larger, slopes=slopes)
    assert list(table["verdict"]) == ["same direction"] * 6
    assert "linear in 0, square root in 1 of 2 curves" in table.loc[4, "here"]
    assert "better at equal steps in 2, worse at equal epochs in 2 of 2" in table.loc[5, "here"]


def test_claims_that_are_not():
    words = {"optimisers": ["smaller", "no difference seen"], "networks": ["no difference seen"]}
    even = {"step": (0.1, 0.1), "epoch": (0.1, 0.3)}
    table = claims(words, values=(10.0, math.inf), errors=even)
    assert list(table["verdict"]) == [
        "no difference seen", "opposite", "no difference seen", "no difference seen",
        "not reproduced", "no difference seen",
    ]  # fmt: skip
    assert table.loc[0, "here"] == ("end of perfect scaling seen in 2, flat part in 0 of 2 curves")
    assert table.loc[1, "here"].endswith("no difference seen: 1, smaller: 1")
    assert table.loc[3, "here"] == "not run"


def test_claims_of_another_protocol_are_not_comparable():
    curves = [SGD]
    arrays = {"value": np.ones((1, len(QUANTITIES)))}
    empty = comparison_table({}, {})
    budgets = pd.DataFrame(
        [(SGD, 4, unit, 0.1, 0.1, 0.1) for unit in ("step", "epoch")],
        columns=["curve", "batch_size", "budget", "error", "low", "high"],
    )
    slopes = {(SGD, "effective_lr"): Slope(math.nan, math.nan, math.nan, 1)}
    table = claims_table(curves, arrays, empty, slopes, budgets, comparable=False, reason="digits")
    assert set(table["verdict"]) == {"not comparable"}
    assert set(table["why"]) == {"digits"}


def test_scale_table_counts_each_run_once(tuned):
    twice = pd.concat([tuned.results, tuned.results])
    table = scale_table(twice, tuned.history, 3)
    assert list(table["paper"]) == ["168,160", "35", "71,638,836"]
    assert list(table["here"]) == ["6", "3", "15"]


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


# --- figures -------------------------------------------------------------------------------------


def test_points_that_were_not_reached_are_crosses_at_the_edge():
    ax = plt.figure().subplots()
    draw_points(ax, [4, 8, 16, 32], [80, math.inf, 40, 20], [80, math.nan, 40, math.nan],
                [90, math.nan, math.inf, math.nan], color="black", label="x")  # fmt: skip
    assert ax.lines[0].get_xdata().tolist() == [4, 16, 32]
    cross = [line for line in ax.lines if line.get_marker() == "x"]
    assert [line.get_xdata().tolist() for line in cross] == [[8]]
    bars = [container for container in ax.containers]
    assert len(bars) == 2  # one with both bounds, one without an upper one
    low, high = bars[0].lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == (80, 90)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["4", "8", "16", "32"]


@pytest.mark.parametrize("steps", [[math.inf] * 3, [80.0, math.inf, 20.0]])
def test_figures_with_lost_points_can_be_laid_out(steps):
    fig = plt.figure(layout="constrained")
    frame = pd.DataFrame({"batch_size": [4, 8, 16], "steps": steps, "low": steps, "high": steps})
    ax = fig.subplots()
    draw_steps(ax, frame, label="x")
    draw_rules(ax, [4, 8, 16], steps)
    draw_regimes(ax, [4, 8, 16], fit_regimes([4, 8, 16], steps))
    fig.draw_without_rendering()
    assert ax.get_position().width > 0.5  # the layout did not collapse


def test_regimes_are_drawn_where_they_were_seen():
    fit = Regimes(10.0, 100.0, 1.0, 3.0, math.inf, 0.0, 5)
    ax = plt.figure().subplots()
    draw_regimes(ax, [1, 2, 4, 8], fit)
    labels = ax.get_legend_handles_labels()[1]
    assert labels == ["fit", "perfect scaling", "perfect scaling ends", "flat from here"]
    curve, perfect = ax.lines[:2]
    assert curve.get_ydata()[[0, -1]].tolist() == pytest.approx([110, 22.5])
    assert perfect.get_ydata()[[0, -1]].tolist() == pytest.approx([110, 110 / 8])
    vertical = [line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1]
    assert vertical == [3.0]


def test_rules_start_at_the_first_known_value():
    ax = plt.figure().subplots()
    draw_rules(ax, [4, 8, 32], [math.nan, 0.1, 0.3])
    linear, root = (line.get_ydata().tolist() for line in ax.lines)
    assert linear == pytest.approx([0.05, 0.1, 0.4])
    assert root == pytest.approx([0.1 / math.sqrt(2), 0.1, 0.2])


def test_trials_are_told_apart_and_the_first_named():
    trials = pd.DataFrame(
        {"lr": [0.1, 0.2, 0.3, 0.4, 0.5, 9.0], "one_minus_momentum": [0.1] * 6,
         "steps": [50.0, 40.0, 60.0, 70.0, math.inf, math.inf],
         "outcome": ["reached"] * 4 + ["not reached", "diverged"]}
    )  # fmt: skip
    ax = plt.figure().subplots()
    draw_trials(ax, trials, column="one_minus_momentum")
    assert [len(points.get_offsets()) for points in ax.collections] == [4, 1, 1]
    assert [text.get_text() for text in ax.texts] == ["40", "50", "60"]
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_groups_are_panels():
    frame = pd.DataFrame({"batch_size": [4, 8], "steps": [80.0, 40.0], "low": [80.0, 40.0],
                          "high": [90.0, math.inf]})  # fmt: skip
    frames = dict.fromkeys([SGD, HEAVY, NOISY], frame)
    fig = draw_groups(comparison_groups(list(frames)), "optimisers", frames)
    assert [ax.get_title() for ax in fig.axes] == ["digits / mlp"]
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["SGD", "heavy ball"]
    fig = draw_groups(comparison_groups(list(frames)), "data", frames)
    assert [t.get_text() for t in fig.legends[0].get_texts()] == [
        "digits",
        "digits, 20 % wrong labels",
    ]
    # a third task in one of two panels: the same label looks the same in both
    other, cnn = Curve("mnist", "mlp", "momentum"), Curve("mnist", "cnn_small", "momentum")
    curves = [HEAVY, NOISY, other, HEAVY._replace(network="cnn_small"), cnn]
    fig = draw_groups(comparison_groups(curves), "data", dict.fromkeys(curves, frame))
    looks = [{line.get_label(): (line.get_color(), line.get_linestyle(), line.get_marker())
              for line in ax.lines if not line.get_label().startswith("_")}
             for ax in fig.axes]  # fmt: skip
    assert len(set(looks[0].values())) == len(looks[0]) == 3
    assert looks[1].items() <= looks[0].items()
    assert len(fig.legends[0].get_texts()) == 3
    fig = draw_groups({}, "networks", {SGD: frame})
    assert [ax.get_title() for ax in fig.axes] == ["only one of the networks"]


def test_check_is_drawn_with_failed_searches():
    shape = (2, 1, 3, 2)
    arrays = {name: np.full((2, 2), 9.0) for name in ("exact_steps", "exact_effective_lr")}
    arrays |= {name: np.full(shape, 12.0) for name in ("steps", "effective_lr")}
    arrays["steps"][0, 0, 0, 1], arrays["effective_lr"][0, 0, 0, 1] = math.inf, math.nan
    fig = draw_check([4, 8], [5], arrays)
    fig.draw_without_rendering()
    assert len(fig.legends[0].get_texts()) == 4
    # batch size 8 of plain SGD has no highest value, so no bar
    assert [len(bars.lines[0].get_xdata()) for bars in fig.axes[0].containers] == [1, 2]


def test_sizes_are_named_as_far_as_there_is_room():
    ax = plt.figure().subplots()
    size_axis(ax, [2**power for power in range(3, 14)])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["8", "32", "128", "512",
                                                                    "2048", "8192"]  # fmt: skip


def test_steps_are_drawn_from_a_scaling_curve(tuned):
    curve = scaling_curve(measurements(tuned)[HEAVY], 0.2)
    ax = plt.figure().subplots()
    draw_steps(ax, curve, label="x")
    assert ax.lines[0].get_ydata().tolist() == [80, 40]
