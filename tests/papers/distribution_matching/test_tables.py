"""Numbers of runs and tables, worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from hardtrain.papers.distribution_matching.plan import Cell, trainings
from hardtrain.papers.distribution_matching.printed import itdm_rows
from hardtrain.papers.distribution_matching.tables import (
    LAST,
    cells_table,
    class_differences,
    class_table,
    joint_table,
    last_evaluations,
    mean_gap,
    not_run_line,
    paired_curves,
    picked_weights,
    protocol_table,
    sweep_table,
    weight_sweep,
    weights_table,
    with_scores,
)
from hardtrain.report.tables import Metric, Protocol, is_run
from hardtrain.statistics import paired_difference

DIGITS = Cell("small", "digits", "cnn_small")


def test_protocol_table_says_how_each_cell_is_trained():
    cells = [Cell("large", "stl10", "vgg13"), DIGITS]
    runs = {cells[0]: trainings(cells[0], [0], {})[0]}
    runs[DIGITS] = trainings(DIGITS, [0], {}, epochs=5, evaluate="epoch")[0]
    table = protocol_table(runs)
    assert table["schedule"].tolist() == ["x 0.1 after epoch 50, 100", "x 0.2 after epoch 2, 4"]
    assert table["evaluated every"].tolist() == ["5 updates", "epoch"]


# --- numbers of runs -----------------------------------------------------------------------------


def frame(arms, **columns):
    """Results of arms in the order given: lists of values by column, nan where a run diverged."""
    runs = [run for arm in arms for run in arm]
    rows = pd.DataFrame({"key": [run.key for run in runs], "seed": [run.seed for run in runs]})
    for name, values in columns.items():
        rows[name] = values
    first = rows[next(iter(columns))]
    rows["status"] = np.where(first.isna(), "diverged", "finished")
    return rows


def arm(weight, seeds=(0, 1, 2), cell=DIGITS):
    return trainings(cell, list(seeds), {"weight": weight}, balanced=True)


def test_last_evaluations_average_the_last_ones():
    results = pd.DataFrame({"key": ["a", "b", "c"], "test_error": [0.1, 0.2, math.nan]})
    history = pd.DataFrame(
        [
            ("a", 3, 0.1, 1.0, 4.0),
            ("a", 1, 0.9, 9.0, 9.0),
            ("a", 2, 0.3, 3.0, 6.0),
            ("b", 7, 0.2, 5.0, 5.0),
        ],
        columns=["key", "step", "test_error", "test_loss", "train_loss"],
    )
    found = last_evaluations(results, history, 2).set_index("key")
    assert found.loc["a", "last_accuracy"] == pytest.approx(80)
    assert found.loc["a", "last_accuracy_sd"] == pytest.approx(100 * 0.2 / math.sqrt(2))
    assert found.loc["a", ["last_test_loss", "last_train_loss"]].tolist() == [2, 5]
    assert found.loc["a", "last_test_loss_sd"] == pytest.approx(math.sqrt(2))
    assert found.loc["a", "accuracy"] == pytest.approx(90)
    assert found.loc["b", "last_accuracy"] == pytest.approx(80)  # of the one there is
    assert math.isnan(found.loc["b", "last_accuracy_sd"])
    assert math.isnan(found.loc["c", "last_accuracy"])  # diverged before it was evaluated


def test_last_evaluations_of_runs_without_any():
    results = pd.DataFrame({"key": ["a"], "test_error": [math.nan]})
    found = last_evaluations(results, pd.DataFrame({"key": []}))
    assert math.isnan(found["last_accuracy"][0])
    assert len(found) == 1


def test_weight_sweep_has_both_kinds_of_bars():
    arms = {0.2: arm(0.2), 0.0: arm(0.0)}
    results = frame(arms.values(), x=[1.0, 2, 3, math.nan, 5, 6], x_sd=[0.1, 0.2, 0.3, 0.4, 0.5, 1])
    found = weight_sweep(results, arms, "x")
    assert found["weight"].tolist() == [0.0, 0.2]
    assert found["mean"].tolist() == [5.5, 2]
    assert found["half_width"][1] == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert found["one"].tolist() == [5, 1]  # of λ = 0 the first seed diverged
    assert found["one_sd"].tolist() == [0.5, 0.1]


def test_weight_sweep_of_nothing_but_diverged_runs():
    arms = {0.2: arm(0.2, [0])}
    found = weight_sweep(frame(arms.values(), x=[math.nan], x_sd=[math.nan]), arms, "x")
    assert found.drop(columns="weight").isna().all(axis=None)


def test_picked_weights_are_best_and_worst_by_mean_accuracy():
    arms = {w: arm(w, [0, 1]) for w in (0.0, 0.2, 0.4, 0.6)}
    accuracy = [99, 99, 90, 94, 91, 91, 95, 89]  # means 99, 92, 91, 92
    results = frame(arms.values(), last_accuracy=accuracy, last_accuracy_sd=0.1)
    assert picked_weights(results, arms) == (0.2, 0.4)  # of equal ones the smallest; never λ = 0
    accuracy[2:] = [math.nan] * 6
    gone = frame(arms.values(), last_accuracy=accuracy, last_accuracy_sd=0.1)
    assert picked_weights(gone, arms) is None


def test_class_differences_pair_seeds_class_by_class():
    pair = arm(0.4, [0, 1]), arm(0.0, [0, 1])
    errors = ["[0.5, null, 0.0]", "[0.3, null, 0.0]", "[0.1, null, 0.0]", "[0.1, null, 0.25]"]
    results = frame(pair, per_class_error=errors)
    first, absent, last = class_differences(results, *pair)
    assert absent is None
    assert (first.mean, first.n) == (pytest.approx(-30), 2)
    assert last.mean == pytest.approx(12.5)
    gone = frame(pair, test_error=[math.nan, math.nan, 0.1, 0.1], per_class_error=errors)
    assert class_differences(gone, *pair) == []


# --- tables --------------------------------------------------------------------------------------


def measured(arms, accuracy, loss):
    """Results whose last and final numbers are the same but for a hundredth."""
    results = frame(arms, last_accuracy=accuracy, last_test_loss=loss, last_train_loss=loss)
    return results.assign(
        accuracy=results["last_accuracy"] + 0.01,
        test_loss=results["last_test_loss"],
        last_accuracy_sd=0.05,
    )


KMNIST = Cell("small", "kmnist", "cnn5")
ALL = Protocol(comparable=True, not_run="run {}")


@pytest.fixture
def kmnist():
    """Arms of table 2, their results: λ = 0.6 is best, 0.2 worst; 0.8 as printed."""
    arms = {w: arm(w, cell=KMNIST) for w in (0.0, 0.2, 0.6, 0.8)}
    accuracy = [95.5, 95.6, 95.7, 95.0, 95.1, 95.2, 96.0, 96.1, 96.2, 95.7, 95.85, 95.9]
    loss = [0.18, 0.19, 0.20, 0.19, 0.20, 0.21, 0.15, 0.16, 0.17, 0.165, 0.178, 0.188]
    return {KMNIST: arms}, measured(arms.values(), accuracy, loss)


def cell_of(table, row, quantity):
    (found,) = table[(table["row"] == row) & table["quantity"].str.startswith(quantity)].to_dict(
        "records"
    )
    return found


def test_weights_table_stands_beside_the_paper(kmnist):
    arms, results = kmnist
    table = weights_table(results, arms, itdm_rows(2), "kmnist", ALL)
    best = cell_of(table, "best", "accuracy")
    assert (best["λ, paper"], best["λ, here"]) == ("0.8", "0.6")
    assert (best["paper"], best["Δ, paper"]) == ("95.79", "+0.22")
    assert best["here"].startswith("96.10 ± ")
    assert best["here, final"].startswith("96.11 ± ")
    assert best["Δ, here"] == "+0.50 in each (n = 3)"  # no p: picked by this very number
    assert best["verdict"] == "no verdict"  # picked on the test set, the paper's and ours
    worst = cell_of(table, "worst", "accuracy")
    assert (worst["λ, here"], worst["verdict"], worst["level"]) == ("0.2", "no verdict", "")
    assert worst["Δ, here"] == "-0.50 in each (n = 3)"
    without = cell_of(table, "without", "cross")
    assert (without["λ, paper"], without["paper"], without["λ, here"]) == ("0", "0.183", "0")
    assert without["here"].startswith("0.190 ± ")
    assert without["level"] == "reproduced"
    assert [without[name] for name in ("Δ, paper", "Δ, here", "verdict", "why")] == [""] * 4


def test_weights_table_compares_the_printed_weight_too(kmnist):
    arms, results = kmnist
    table = weights_table(results, arms, itdm_rows(2), "kmnist", ALL)
    same = cell_of(table, "λ of the paper's best", "accuracy")
    assert (same["λ, here"], same["verdict"]) == ("0.8", "no verdict")  # the paper's is picked
    assert 0 < float(same["Δ, here"].split("p = ")[1]) < 0.05
    entropy = cell_of(table, "λ of the paper's best", "cross")
    assert entropy["Δ, paper"] == "-0.013"
    absent = cell_of(table, "λ of the paper's worst", "accuracy")  # λ = 0.4 was not run
    assert absent["here"] == "not run"
    assert table.attrs["questions"] == 2  # best and worst have no p


def test_weights_table_takes_differences_from_the_values(kmnist):
    """Not the printed 0.031, which does not follow (errata 003-1)."""
    arms, results = kmnist
    table = weights_table(results, arms, itdm_rows(2), "kmnist", ALL)
    assert cell_of(table, "worst", "cross")["Δ, paper"] == "-0.021"


def test_what_was_not_run_is_one_line(kmnist):
    arms, results = kmnist
    assert weights_table(results, arms, itdm_rows(5), "stl10", ALL).empty
    assert is_run(results, arms[KMNIST].values())
    assert not is_run(results, [arm(0.4, cell=KMNIST)])
    line = not_run_line(itdm_rows(5), "stl10", ["resnet18", "vgg13"])
    assert line == (
        'Table 5, stl10, resnet18, vgg13: not run. `-y "{profile: paper, datasets: [stl10]}"`'
    )


def test_weights_table_of_cells_that_are_not_the_papers(kmnist):
    arms, results = kmnist
    table = weights_table(results, arms, itdm_rows(3), "kmnist", ALL)
    assert set(table["row"]) == {"without", "best", "worst"}
    best = cell_of(table, "best", "accuracy")
    assert {best[name] for name in ("λ, paper", "paper", "Δ, paper")} == {"–"}
    assert best["level"] == ""


def test_weights_table_of_diverged_runs(kmnist):
    arms, _ = kmnist
    gone = measured(arms[KMNIST].values(), [95.5, 95.6, 95.7] + [math.nan] * 9, [0.2] * 12)
    table = weights_table(gone, arms, itdm_rows(2), "kmnist", ALL)
    best = cell_of(table, "best", "accuracy")
    assert (best["λ, here"], best["Δ, here"], best["verdict"]) == ("–", "", "no verdict")
    assert cell_of(table, "λ of the paper's best", "accuracy")["here"] == "3 diverged"


@pytest.fixture
def joint():
    """A cell of table 1 with one and five kernels, and its results."""
    cell = Cell("initial", "kmnist", "cnn2")
    arms = {"without": arm(0.0, cell=cell)}
    for number in (1, 5):
        options = {"weight": 1.0, "by_class": False, "num_scales": number}
        arms[f"{number} kernels"] = trainings(cell, [0, 1, 2], options, balanced=True)
    accuracy = [94.1, 94.2, 94.3, 94.2, 94.5, 94.5, 93.1, 93.2, 93.31]
    loss = [0.222, 0.23, 0.238, 0.19, 0.20, 0.206, 0.22, 0.23, 0.24]
    return {cell: arms}, measured(arms.values(), accuracy, loss)


def test_joint_table_has_a_row_for_each_number_of_kernels(joint):
    arms, results = joint
    table = joint_table(results, arms, itdm_rows(1), ALL)
    assert table["data set"].tolist() == ["kmnist"] * 6  # what was not run is left out
    ours = table.set_index(["row", "quantity"])
    without = ours.loc["without", "cross-entropy (nats)"]
    assert (without["paper"], without["level"], without["verdict"]) == ("0.227", "reproduced", "")
    entropy = ours.loc["1 kernels", "cross-entropy (nats)"]
    assert (entropy["paper"], entropy["Δ, paper"]) == ("0.196", "-0.031")
    assert entropy["Δ, here"].startswith("-0.031 ± ")
    assert entropy["verdict"] == "reproduced"
    rows = {number: ours.loc[f"{number} kernels", "accuracy (%)"] for number in (1, 5)}
    assert rows[1]["verdict"] == "undecided"
    assert rows[5]["verdict"] == "opposite"
    assert rows[5]["level"] == "not reproduced"
    assert rows[5]["Δ, here"].startswith("-1.00 ± 0.01 (n = 3), p < 0.001")
    assert rows[5]["here, final"].startswith("93.21 ± ")


def test_joint_table_corrects_its_four_questions(joint):
    arms, results = joint
    table = joint_table(results, arms, itdm_rows(1), ALL)
    assert table.attrs["questions"] == 4
    (cell,) = arms
    alone = paired_difference(
        *(
            results[results["key"].isin([run.key for run in arms[cell][name]])].set_index("seed")[
                "last_test_loss"
            ]
            for name in ("1 kernels", "without")
        )
    )
    row = table[(table["row"] == "1 kernels") & table["quantity"].str.startswith("cross")]
    assert float(row["Δ, here"].item().split("p = ")[1]) == pytest.approx(3 * alone.p, abs=1e-3)


def test_joint_table_gives_no_verdict_on_another_protocol(joint):
    arms, results = joint
    (cell,) = arms
    other = ALL._replace(comparable=False, reason="r")
    reading = joint_table(results, arms, itdm_rows(1), other)
    assert set(reading[reading["row"] != "without"]["verdict"]) == {"not comparable"}
    short = trainings(cell, [0, 1, 2], {"weight": 0.0}, balanced=True, epochs=10)
    table = joint_table(results, {cell: arms[cell] | {"without": short}}, itdm_rows(1), ALL)
    rows = table[table["row"] == "1 kernels"]
    assert set(rows["level"]) == set(rows["verdict"]) == {"not comparable"}


def test_a_mean_over_weights_is_a_difference_without_a_choice():
    arms = labelled(0.0, 0.2, 0.4)
    accuracy = [90.0, 91, 92, 91, 92, 90, 92, 95, math.nan]
    gap = mean_gap(measured(arms.values(), accuracy, [1.0] * 9), arms, LAST["accuracy (%)"])
    assert (gap.mean, gap.n) == (pytest.approx(2.0), 2)


def test_class_table_says_both_sides_and_corrects():
    pair = arm(0.4), arm(0.0)
    errors = ["[0.5, null, 0.0]", "[0.3, null, 0.0]", "[0.1, null, 0.0]"]
    errors += ["[0.6, null, 0.25]", "[0.5, null, 0.25]", "[0.15, null, 0.25]"]
    table = class_table(frame(pair, per_class_error=errors), *pair, ["a", "b", "c"])
    assert table["class"].tolist() == ["a", "b", "c"]
    assert table.loc[0, "with (%)"].startswith("70.00 ± ")
    assert table.loc[2, "without (%)"] == "75.00 ± 0.00 (n = 3)"
    assert table.loc[1, "difference (points)"] == ""
    # 25 points in each of three seeds: no t interval, and the sign test has p = 1/4
    assert table.loc[2, "difference (points)"] == "+25.00 in each (n = 3), p = 0.250"
    assert table.attrs["questions"] == 2


def test_scores_are_joined_by_run():
    runs = arm(0.4)
    results = frame([runs], x=[1.0, 2, 3])
    arrays = {"knn": np.array([5.0, 6.0])}
    found = with_scores(results, [(arrays, runs[:2]), (None, runs)], ["knn"])
    assert found["knn"].tolist()[:2] == [5, 6]
    assert math.isnan(found["knn"][2])
    assert with_scores(results, [(None, runs)], ["knn"])["knn"].isna().all()


def labelled(*weights, seeds=(0, 1, 2)):
    """Arms on digits by label, as the notebook calls them."""
    return {f"λ = {w}" if w else "without": arm(w, seeds) for w in weights}


def test_sweep_table_pools_the_seeds_that_finished_everywhere():
    arms = labelled(0.0, 0.2, 0.4)
    accuracy = [90.0, 91, 92, 91, 92, 90, 92, 95, math.nan]
    table = sweep_table(measured(arms.values(), accuracy, [1.0] * 9), {DIGITS: arms})
    assert table["arm"].tolist() == ["without", "λ = 0.2", "λ = 0.4", "mean over all λ > 0"]
    # seeds 0 and 1: means over λ 91.5 and 93.5, minus 90 and 91
    differences = table["accuracy (%) minus without"]
    assert differences[3].startswith("+2.00 ± ")
    assert "(n = 2)" in differences[3]
    assert differences[0] == ""
    assert differences[1].startswith("+0.00 ± ")
    assert table["accuracy (%)"][2].endswith("(n = 2), 1 diverged")
    assert table["accuracy (%), sd in a run"][0] == "0.05 ± 0.00 (n = 3)"
    assert table["accuracy (%), sd over seeds"].tolist() == ["1.00", "1.00", "2.12", ""]


def test_sweep_table_of_one_seed():
    arms = labelled(0.0, 0.2, seeds=[0])
    table = sweep_table(measured(arms.values(), [90.0, 91], [1.0, 2.0]), {DIGITS: arms})
    assert table["accuracy (%), sd over seeds"].tolist() == ["", "", ""]
    assert table["cross-entropy (nats) minus without"][1] == "+1.000 (n = 1)"


def test_cells_table_compares_each_arm_with_the_plain_training_of_its_cell():
    other = Cell("small", "digits", "cnn5")
    cells = {DIGITS: labelled(0.0, 0.4)}
    cells[other] = {"without": arm(0.0, cell=other), "λ = 0.4": arm(0.4, cell=other)}
    arms = [runs for by_label in cells.values() for runs in by_label.values()]
    results = frame(arms, x=[1.0, 2, 3, 2, 3, 5, 11, 12, 13, 10, 11, 12], y=1.0)
    shown = {"first": Metric("x", 1), "second": Metric("y", 2)}
    table = cells_table(results, cells.items(), shown, ["first"])
    assert list(table) == ["data", "arm", "first", "first minus without", "second"]
    assert table["data"].tolist() == ["digits, cnn_small"] * 2 + ["digits, cnn5"] * 2
    assert table["first minus without"].tolist() == [
        "", "+1.3 ± 1.4 (n = 3), p = 0.114", "", "-1.0 in each (n = 3), p = 0.250",
    ]  # fmt: skip


def test_cells_table_has_equal_arms_of_one_label_once():
    pairs = [(DIGITS, labelled(0.0, 0.4)), (DIGITS._replace(experiment="initial"), labelled(0.0))]
    results = measured(pairs[0][1].values(), [90.0, 91, 92, 91, 92, 93], [1.0] * 6)
    assert cells_table(results, pairs, LAST, LAST)["arm"].tolist() == ["without", "λ = 0.4"]


def test_paired_curves_are_of_common_seeds_and_evaluations():
    runs = trainings(DIGITS, [0, 1, 2], {"weight": 1.0}, epochs=2)
    plain = trainings(DIGITS, [2, 1, 3], {"weight": 0.0}, epochs=2)
    losses = {runs[0]: (9, 9), runs[1]: (3, 5), runs[2]: (4, 6)}
    losses |= {plain[0]: (1, 2), plain[1]: (2, 3), plain[2]: (7, 7)}
    history = pd.DataFrame(
        {"key": run.key, "epoch": epoch, "test_loss": loss}
        for run, values in losses.items()
        for epoch, loss in enumerate(values, 1)
    )
    epochs, gaps = paired_curves(history, runs, plain, "test_loss")
    assert epochs.tolist() == [1, 2]
    assert gaps.tolist() == [[1, 2], [3, 4]]  # of seeds 1 and 2
    broken = history[(history["key"] != runs[2].key) | (history["epoch"] < 2)]
    assert paired_curves(broken, runs, plain, "test_loss")[1].tolist() == [[1, 2]]
    epochs, gaps = paired_curves(history, runs[:1], plain, "test_loss")
    assert (epochs.shape, gaps.size) == ((0,), 0)
