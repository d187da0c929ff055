"""Tables against numbers worked out by hand: who is compared with whom, signs, gaps, verdicts."""

import math

import numpy as np
import pandas as pd
import pytest

from hardtrain import Run
from hardtrain.papers.hard_mini_batches.tables import (
    best_delta_table,
    delta_table,
    epochs_to_converge,
    speed_up,
)
from hardtrain.report.tables import arms_table, comparison_table, curves, describe, difference

T2 = 4.302653  # quantile 0.975 of Student's t with 2 degrees of freedom


def arm(method="plain", seeds=(0, 1, 2), dataset="digits", network="cnn_small", epochs=3):
    return [
        Run(dataset=dataset, network=network, method=method, seed=seed, epochs=epochs)
        for seed in seeds
    ]


def rows(runs, errors, losses=None):
    """Results of runs; an error of ``None`` is a diverged run."""
    return [
        {
            "key": run.key,
            "seed": run.seed,
            "status": "diverged" if error is None else "finished",
            "test_error": math.nan if error is None else error,
            "test_loss": math.nan if error is None else (losses or errors)[i],
        }
        for i, (run, error) in enumerate(zip(runs, errors, strict=True))
    ]


PLAIN, TRIMMED = arm("plain"), arm("trimming")


@pytest.fixture
def results():
    """Differences -1, -2 and 0 points; the rows stand in another order than the seeds."""
    plain = rows(PLAIN, [0.10, 0.12, 0.14], [1.0, 2.0, 3.0])
    trimmed = rows(TRIMMED, [0.09, 0.10, 0.14], [1.5, 1.5, 1.5])
    return pd.DataFrame([trimmed[2], plain[0], trimmed[0], plain[2], plain[1], trimmed[1]])


# --- describe and difference ---------------------------------------------------------------------


def test_describe_gives_mean_and_interval_in_percent(results):
    half = T2 * 2 / math.sqrt(3)
    assert describe(results, PLAIN, "test_error") == f"12.00 ± {half:.2f} (n = 3)"
    assert half == pytest.approx(4.97, abs=0.005)
    assert describe(results, TRIMMED, "test_loss", scale=1) == "1.50 ± 0.00 (n = 3)"


def test_describe_counts_diverged_runs_and_leaves_them_out():
    frame = pd.DataFrame(rows(PLAIN, [0.10, None, 0.30]))
    half = 12.706205 * 10 * math.sqrt(2) / math.sqrt(2)
    assert describe(frame, PLAIN, "test_error") == f"20.00 ± {half:.2f} (n = 2), 1 diverged"
    frame = pd.DataFrame(rows(PLAIN, [None, None, None]))
    assert describe(frame, PLAIN, "test_error") == "3 diverged"
    assert describe(frame, TRIMMED, "test_error") == "not run"


def test_describe_counts_a_run_that_stands_twice_once(results):
    twice = pd.concat([results, results])
    assert describe(twice, PLAIN, "test_error") == describe(results, PLAIN, "test_error")


def test_difference_is_treatment_minus_baseline_by_seed(results):
    found = difference(results, TRIMMED, PLAIN, "test_error")
    assert found.mean == pytest.approx(-1)
    assert found.half_width == pytest.approx(T2 / math.sqrt(3), rel=1e-5)  # by position: wider
    assert found.n == 3
    assert difference(results, PLAIN, TRIMMED, "test_error").mean == pytest.approx(1)
    assert difference(results, TRIMMED, PLAIN, "test_loss", scale=1).mean == pytest.approx(-0.5)


def test_difference_leaves_out_seeds_that_one_side_lacks():
    frame = pd.DataFrame(rows(PLAIN, [0.10, 0.20, None]) + rows(TRIMMED[1:], [0.15, 0.01]))
    found = difference(frame, TRIMMED, PLAIN, "test_error")
    assert (found.n, found.mean) == (1, pytest.approx(-5))
    nothing = pd.DataFrame(rows(PLAIN[:1], [0.1]) + rows(TRIMMED[1:], [0.1, 0.1]))
    assert difference(nothing, TRIMMED, PLAIN, "test_error") is None


def test_arms_table_compares_each_arm_with_the_baseline(results):
    table = arms_table(results, {"trimmed": TRIMMED, "none": PLAIN}, baseline="none")
    assert table.columns.tolist() == [
        "arm", "test error (%)", "difference (points)", "p", "test loss (nats)"
    ]  # fmt: skip
    trimmed, plain = table.to_dict("records")
    assert trimmed["arm"] == "trimmed"
    assert trimmed["test error (%)"].startswith("11.00 ± ")
    assert trimmed["difference (points)"] == "-1.00 ± 2.48 (n = 3)"
    assert float(trimmed["p"]) == pytest.approx(0.2254, abs=0.0006)  # t = -sqrt(3), 2 degrees
    assert trimmed["test loss (nats)"] == "1.50 ± 0.00 (n = 3)"
    assert plain["difference (points)"] == plain["p"] == ""
    assert plain["test loss (nats)"] == "2.00 ± 2.48 (n = 3)"


def test_arms_table_writes_tiny_p_as_a_bound():
    frame = pd.DataFrame(rows(PLAIN, [0.30, 0.31, 0.32]) + rows(TRIMMED, [0.10, 0.11, 0.1201]))
    table = arms_table(frame, {"plain": PLAIN, "trimmed": TRIMMED}, baseline="plain")
    assert table["p"].tolist() == ["", "< 0.001"]


# --- curves --------------------------------------------------------------------------------------


def history_of(run, errors):
    return [{"key": run.key, "epoch": t + 1, "test_error": e} for t, e in enumerate(errors)]


def test_curves_are_one_row_a_run_in_the_order_of_the_arm():
    lines = history_of(PLAIN[2], [0.7, 0.6, 0.5]) + history_of(PLAIN[0], [0.3, 0.2, 0.1])
    history = pd.DataFrame(lines + history_of(TRIMMED[0], [0.9, 0.9, 0.9]))
    epochs, errors = curves(history, PLAIN, "test_error")
    assert epochs.tolist() == [1, 2, 3]
    assert errors.tolist() == [[0.3, 0.2, 0.1], [0.7, 0.6, 0.5]]


@pytest.mark.parametrize("others", [[0.3, 0.2, 0.1], [0.3]])
def test_curves_leave_out_runs_that_did_not_reach_the_end(others):
    history = pd.DataFrame(history_of(PLAIN[0], [0.7, 0.6]) + history_of(PLAIN[1], others))
    _, errors = curves(history, PLAIN, "test_error")
    assert errors.tolist() == [others] * (len(others) == 3)


# --- the comparison with the paper ---------------------------------------------------------------

PRINTED = pd.DataFrame(
    [("cifar10", "resnet34", 17.0, 16.0), ("svhn", "resnet34", 5.0, 5.5)],
    columns=["dataset", "network", "baseline", "treatment"],
)


def compare(gaps, *, dataset="cifar10", network="resnet34", printed=PRINTED, **options):
    """The row of one cell whose runs differ by ``gaps`` (points; None: the treatment diverged)."""
    seeds = range(len(gaps))
    cells = {
        (dataset, network, name): arm(name, seeds, dataset, network)
        for name in ("plain", "trimming")
    }
    plain, trimmed = cells.values()
    errors = [None if gap is None else 0.17 + gap / 100 for gap in gaps]
    frame = pd.DataFrame(rows(plain, [0.17] * len(gaps)) + rows(trimmed, errors))
    options = {"comparable": True} | options
    table = comparison_table(frame, cells, printed, treatment="trimming", **options)
    return table[table["data set"] == dataset].to_dict("records")[0]


@pytest.mark.parametrize(
    ("gaps", "word"),
    [
        ([-0.9, -1.0, -1.2], "reproduced"),  # printed: -1
        ([-0.20, -0.21, -0.22], "same direction"),
        ([0.9, 1.0, 1.1], "opposite"),
        ([-1.0, 0.0, 1.1], "no difference seen"),
        ([-1.0, -1.1], "not comparable"),  # two seeds
        ([-1.0, -1.1, None], "not comparable"),
    ],
)
def test_comparison_gives_the_verdict(gaps, word):
    row = compare(gaps)
    assert row["verdict"] == word
    assert row["paper: plain (%)"] == "17.00"
    assert row["paper: trimming (%)"] == "16.00"
    assert row["here: plain (%)"].startswith("17.00 ± 0.00")


def test_comparison_takes_the_printed_difference_with_its_sign():
    worse = compare([0.4, 0.5, 0.6], dataset="svhn")  # printed: 5.0 -> 5.5
    assert (worse["verdict"], worse["paper: trimming (%)"]) == ("reproduced", "5.50")
    assert worse["difference (points)"] == "+0.50 ± 0.25 (n = 3)"
    assert "printed +0.5" in worse["why"]
    assert compare([-0.4, -0.5, -0.6], dataset="svhn")["verdict"] == "opposite"


def test_comparison_says_why_it_is_not_comparable():
    row = compare([-0.9, -1.0, -1.2], comparable=False, reason="20 epochs, not 150")
    assert row["verdict"] == "not comparable"
    assert row["why"] == "20 epochs, not 150"
    assert row["difference (points)"].startswith("-1.03 ± ")


def test_comparison_shows_what_only_we_ran_and_what_was_not_run():
    cells = {
        ("digits", "cnn_small", "plain"): PLAIN,
        ("digits", "cnn_small", "trimming"): TRIMMED,
    }
    frame = pd.DataFrame(rows(PLAIN, [0.10, 0.12, 0.14]) + rows(TRIMMED, [0.09, 0.10, 0.14]))
    table = comparison_table(
        frame, cells, PRINTED, treatment="trimming", comparable=True,
        not_run=lambda name: f"no {name} here",
    )  # fmt: skip
    assert table["data set"].tolist() == ["cifar10", "svhn", "digits"]
    for row in table.to_dict("records")[:2]:
        assert row["here: plain (%)"] == row["here: trimming (%)"] == row["verdict"] == "not run"
        assert row["difference (points)"] == row["p"] == ""
        assert row["why"] == f"no {row['data set']} here"
    ours = table.to_dict("records")[2]
    assert ours["paper: plain (%)"] == ours["paper: trimming (%)"] == "–"
    assert ours["here: trimming (%)"].startswith("11.00 ± ")
    assert ours["verdict"] == "not comparable"
    assert ours["why"] == "the paper has no such cell"


def test_comparison_tells_networks_apart():
    printed = PRINTED.assign(network=["resnet34", "densenet121"], dataset="cifar10")
    row = compare([-0.9, -1.0, -1.2], printed=printed)
    assert row["paper: plain (%)"] == "17.00"
    row = compare([0.4, 0.5, 0.6], printed=printed, network="densenet121")
    # one row for each printed pair; the first is the other network's
    assert (row["network"], row["here: plain (%)"]) == ("resnet34", "not run")


def test_comparison_calls_an_arm_that_diverged_diverged():
    row = compare([None, None, None])
    assert row["here: trimming (%)"] == "3 diverged"
    assert row["verdict"] == "not comparable"
    assert "finished" in row["why"]


def test_comparison_row_order_does_not_matter():
    cells = {("cifar10", "resnet34", m): arm(m, range(4), "cifar10", "resnet34")
             for m in ("plain", "trimming")}  # fmt: skip
    plain, trimmed = cells.values()
    lines = rows(plain, [0.1, 0.2, 0.3, 0.4]) + rows(trimmed, [0.09, 0.18, 0.28, 0.39])
    tables = [
        comparison_table(frame, cells, PRINTED, treatment="trimming", comparable=True)
        for frame in (pd.DataFrame(lines), pd.DataFrame(lines).sample(frac=1, random_state=1))
    ]
    assert tables[0].equals(tables[1])
    assert np.isclose(float(tables[0].loc[0, "difference (points)"].split()[0]), -1.5)


# --- studies of delta ----------------------------------------------------------------------------


def hard_arm(delta, seeds=(0, 1, 2)):
    order = "index" if delta == 1 else "loss"
    options = {"delta": delta, "order": order}
    return [
        Run("cifar10", "resnet18", "hard_batches", options, seed=seed, epochs=4) for seed in seeds
    ]


@pytest.fixture
def delta_study():
    """Test errors 0.30, 0.32, 0.34 with delta 1, two points less each with 0.5 and one more with
    0.2; the loss is within 1 % of its decrease at epoch 4, 2 and 3."""
    arms = {("cifar10", "resnet18", delta): hard_arm(delta) for delta in (1.0, 0.5, 0.2)}
    losses = {1.0: [8.0, 5.0, 2.0, 0.0], 0.5: [8.0, 0.01, 0.0, 0.0], 0.2: [8.0, 5.0, 0.0, 0.0]}
    change = {1.0: 0.0, 0.5: -0.02, 0.2: 0.01}
    frames, history = [], []
    for (_, _, delta), runs in arms.items():
        for row in rows(runs, [e + change[delta] for e in (0.30, 0.32, 0.34)]):
            by_batch = {"train_set_accuracy_by_batch": 0.9, "test_accuracy_by_batch": 0.7}
            by_batch |= {"train_set_half_width_by_batch": 0.1, "test_half_width_by_batch": 0.05}
            frames.append(row | by_batch | {"train_set_error": 0.1})
            history += [
                {"key": row["key"], "epoch": epoch, "train_set_loss": loss}
                for epoch, loss in enumerate(losses[delta], start=1)
            ]
    return pd.DataFrame(frames), pd.DataFrame(history[::-1]), arms


def test_epochs_to_converge_reads_the_training_sets_loss_by_seed(delta_study):
    results, history, arms = delta_study
    first, half, fifth = arms.values()
    assert epochs_to_converge(history, results, first).to_dict() == {0: 4, 1: 4, 2: 4}
    assert epochs_to_converge(history, results, half).to_dict() == {0: 2, 1: 2, 2: 2}
    assert epochs_to_converge(history, results, fifth).to_dict() == {0: 3, 1: 3, 2: 3}
    by_argmin = epochs_to_converge(history, results, half, reading="argmin")
    assert by_argmin.to_dict() == {0: 3, 1: 3, 2: 3}


def test_speed_up_is_relative_to_the_new_epoch_and_signed():
    first, second = pd.Series({0: 43.0, 1: 80.0, 5: 1.0}), pd.Series({1: 100.0, 0: 34.0})
    found = speed_up(first, second)
    assert found.mean == pytest.approx((100 * 9 / 34 - 20) / 2)
    assert found.n == 2
    assert speed_up(first, pd.Series({7: 3.0})) is None


def test_delta_table_sets_paper_and_ours_side_by_side(delta_study):
    results, history, arms = delta_study
    printed = pd.DataFrame({
        "network": ["resnet18"] * 3 + ["resnet50"], "delta": [1.0, 0.5, 0.2, 1.0],
        "train_top1": 99.7, "train_ci": 0.6, "test_top1": [69.6, 71.7, 68.7, 60.0],
        "test_ci": 0.9, "epoch": [80, 77, 74, 70], "speed_up": [math.nan, 3.9, 8.0, math.nan],
    })  # fmt: skip
    table = delta_table(
        results, history, arms, printed, "cifar10", comparable=True, not_run="run it"
    ).set_index(["network", "δ"])
    one, half, fifth = (table.loc[("resnet18", delta)] for delta in ("1", "0.5", "0.2"))
    assert half["train top-1, paper"] == "99.7 ± 0.6"
    assert half["train, ± over batches"] == "90.0 ± 10.0"
    assert half["test, ± over batches"] == "70.0 ± 5.0"
    assert half["train, ± over seeds"] == "90.0 ± 0.0 (n = 3)"
    assert half["test, ± over seeds"] == f"70.0 ± {T2 * 2 / math.sqrt(3):.1f} (n = 3)"
    assert (half["e, paper"], half["e, here"]) == ("77", "2.0 ± 0.0 (n = 3)")
    assert half["Δe, paper (%)"] == "+3.9"
    assert half["Δe, here (%)"] == "+100.0 ± 0.0 (n = 3)"
    gap = "test difference to δ = 1 (points)"
    assert half[gap] == "+2.00 ± 0.00 (n = 3)"  # accuracy, so more is better
    assert half["verdict"] == "same direction"  # 2.1 printed, 2.0 here
    assert fifth[gap] == "-1.00 ± 0.00 (n = 3)"
    assert fifth["verdict"] == "same direction"
    assert one[[gap, "Δe, here (%)", "verdict"]].tolist() == ["", "", ""]
    absent = table.loc[("resnet50", "1")]
    assert absent["test, ± over seeds"] == absent["test, ± over batches"] == "not run"
    assert (absent["verdict"], absent["why"]) == ("not run", "run it")


def test_delta_table_of_a_set_that_the_paper_lacks(delta_study):
    results, history, arms = delta_study
    none = pd.DataFrame(columns=["network", "delta", "train_top1", "test_top1", "epoch"])
    table = delta_table(results, history, arms, none, "cifar10", comparable=True)
    assert table["test top-1, paper"].tolist() == ["–"] * 3
    assert table["verdict"].tolist() == ["", "not comparable", "not comparable"]


def test_best_delta_table_chooses_on_the_test_set_and_shows_what_is_left_without(delta_study):
    results, _, arms = delta_study
    table = best_delta_table(results, arms, {("cifar10", "resnet18"): 1.5, ("stl10", "vgg13"): -2})
    ours, absent = table.to_dict("records")
    assert (ours["paper (%)"], ours["here: best δ"]) == ("+1.50", "0.5")
    assert ours["here: best δ (%)"] == f"{100 * 2 / 70:+.2f}"
    assert ours["mean over all δ < 1 (points)"] == "+0.50 ± 0.00 (n = 3)"  # (2 - 1) / 2
    assert (absent["paper (%)"], absent["here: best δ"]) == ("-2.00", "not run")


def test_curves_of_a_history_without_rows_are_empty():
    epochs, values = curves(pd.DataFrame({"key": []}), PLAIN, "test_error")
    assert epochs.shape == (0,)
    assert values.shape == (0, 0)


def test_delta_table_does_not_score_copied_rows(delta_study):
    results, history, arms = delta_study
    printed = pd.DataFrame({
        "network": ["resnet18"] * 2, "delta": [1.0, 0.5], "train_top1": 99.7, "train_ci": 0.6,
        "test_top1": [69.6, 71.7], "test_ci": 0.9, "epoch": [80, 77],
        "speed_up": [math.nan, 3.9], "copied": True,
    })  # fmt: skip
    for copied, word in ((True, "not comparable"), (False, "same direction")):
        table = delta_table(
            results, history, arms, printed.assign(copied=copied), "cifar10", comparable=True
        )
        assert table["verdict"][1] == word
        assert ("copy of another table" in table["why"][1]) is copied


def test_delta_table_without_an_interval_over_batches_shows_the_mean(delta_study):
    results, history, arms = delta_study
    none = pd.DataFrame(columns=["network", "delta", "train_top1", "test_top1", "epoch"])
    single = results.assign(test_half_width_by_batch=math.nan)
    table = delta_table(single, history, arms, none, "cifar10", comparable=True)
    assert table["test, ± over batches"].tolist() == ["70.0"] * 3
    assert table["train, ± over batches"].tolist() == ["90.0 ± 10.0"] * 3


def test_best_delta_table_compares_seeds_that_finished_with_each_delta(delta_study):
    results, _, arms = delta_study
    half = arms["cifar10", "resnet18", 0.5]
    broken = results.copy()
    broken.loc[broken["key"] == half[0].key, "status"] = "diverged"
    (row,) = best_delta_table(broken, arms, {}).to_dict("records")
    assert row["mean over all δ < 1 (points)"] == "+0.50 ± 0.00 (n = 2)"
    broken.loc[broken["key"].isin([run.key for run in half[1:]]), "status"] = "diverged"
    (row,) = best_delta_table(broken, arms, {}).to_dict("records")
    assert row["here: best δ"] == "0.2"
    assert row["mean over all δ < 1 (points)"] == "-1.00 ± 0.00 (n = 3)"
