"""What tables are made of, against numbers worked out by hand: who is compared with whom, signs."""

import math

import numpy as np
import pandas as pd
import pytest

from hardtrain import Run
from hardtrain.report.tables import (
    TEST_LOSS,
    Metric,
    Protocol,
    arms_table,
    corrected_columns,
    curves,
    describe,
    difference,
    level_verdicts,
    mean_over_arms,
    one_class,
    paired,
    per_run,
    sampling_note,
    verdict_cells,
)
from hardtrain.statistics import PairedDifference

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
    assert describe(results, PLAIN) == f"12.00 ± {half:.2f} (n = 3)"
    assert half == pytest.approx(4.97, abs=0.005)
    assert describe(results, PLAIN, Metric("test_error", 1, 100)) == f"12.0 ± {half:.1f} (n = 3)"
    assert describe(results, TRIMMED, TEST_LOSS) == "1.50 ± 0.00 (n = 3)"


def test_describe_counts_diverged_runs_and_leaves_them_out():
    frame = pd.DataFrame(rows(PLAIN, [0.10, None, 0.30]))
    half = 12.706205 * 10 * math.sqrt(2) / math.sqrt(2)
    assert describe(frame, PLAIN) == f"20.00 ± {half:.2f} (n = 2), 1 diverged"
    frame = pd.DataFrame(rows(PLAIN, [None, None, None]))
    assert describe(frame, PLAIN) == "3 diverged"
    assert describe(frame, TRIMMED) == "not run"


def test_describe_says_of_how_many_runs_the_number_is_undefined(results):
    frame = results.assign(score=[1.0, math.nan, 3.0, 5.0, math.nan, 7.0])
    assert describe(frame, PLAIN, Metric("score")) == "5.00 (n = 1), 2 undefined"
    assert difference(frame, TRIMMED, PLAIN, Metric("score")).n == 1


def test_describe_counts_a_run_that_stands_twice_once(results):
    assert describe(pd.concat([results, results]), PLAIN) == describe(results, PLAIN)


def test_difference_is_treatment_minus_baseline_by_seed(results):
    gap = difference(results, TRIMMED, PLAIN)
    assert gap.mean == pytest.approx(-1)
    assert gap.half_width == pytest.approx(T2 / math.sqrt(3), rel=1e-5)  # by position: wider
    assert difference(results, TRIMMED, PLAIN, TEST_LOSS).mean == pytest.approx(-0.5)


def test_difference_leaves_out_seeds_that_one_side_lacks():
    frame = pd.DataFrame(rows(PLAIN, [0.10, 0.20, None]) + rows(TRIMMED[1:], [0.15, 0.01]))
    gap = difference(frame, TRIMMED, PLAIN)
    assert (gap.n, gap.mean) == (1, pytest.approx(-5))
    nothing = pd.DataFrame(rows(PLAIN[:1], [0.1]) + rows(TRIMMED[1:], [0.1, 0.1]))
    assert difference(nothing, TRIMMED, PLAIN) is None


def test_mean_over_arms_takes_the_seeds_that_all_arms_have():
    mean = mean_over_arms([pd.Series({0: 1.0, 1: 2.0}), pd.Series({1: 4.0, 2: 9.0})])
    assert mean.to_dict() == {1: 3.0}
    assert mean_over_arms([]).empty
    assert paired(mean_over_arms([]), mean) is None


# --- tables of arms ------------------------------------------------------------------------------

ERROR, LOSS = "test error (%)", "test loss (nats)"
SHOWN = {ERROR: Metric("test_error", 2, 100), LOSS: TEST_LOSS}


def test_arms_table_compares_each_arm_with_the_baseline(results):
    arms = {"trimmed": TRIMMED, "none": PLAIN}
    table = arms_table(results, arms, SHOWN, baselines={"plain": "none"})
    assert table.columns.tolist() == ["arm", ERROR, f"{ERROR} minus plain", LOSS]
    trimmed, plain = table.to_dict("records")
    assert trimmed["arm"] == "trimmed"
    assert trimmed[ERROR].startswith("11.00 ± ")
    assert trimmed[f"{ERROR} minus plain"].startswith("-1.00 ± 2.48 (n = 3), p = 0.22")
    assert trimmed[LOSS] == "1.50 ± 0.00 (n = 3)"
    assert plain[f"{ERROR} minus plain"] == ""  # itself
    assert plain[LOSS] == "2.00 ± 2.48 (n = 3)"


def test_arms_table_has_a_column_for_each_label_and_each_baseline(results):
    arms = {("a", "x"): PLAIN, ("b", "x"): TRIMMED}
    own = {("a", "x"): TRIMMED}
    table = arms_table(
        results, arms, SHOWN, names=("set", "arm"), compared=(LOSS,),
        baselines={"first": ("a", "x"), "own": own},
    )  # fmt: skip
    headings = [LOSS, f"{LOSS} minus first", f"{LOSS} minus own"]
    assert table.columns.tolist() == ["set", "arm", ERROR, *headings]
    assert table["set"].tolist() == ["a", "b"]
    assert table[headings[1]].str.startswith("-0.50").tolist() == [False, True]
    assert table[headings[2]].str.startswith("+0.50").tolist() == [True, False]
    assert table[headings[2]].tolist()[1] == ""  # an arm without a baseline of its own


def test_arms_table_without_baselines_compares_nothing(results):
    assert arms_table(results, {"a": PLAIN}, SHOWN).columns.tolist() == ["arm", ERROR, LOSS]


def test_p_values_of_a_table_are_corrected_over_all_of_its_differences():
    gaps = [PairedDifference(1, 0.1, 1.9, p, 5) for p in (0.01, 0.02, 0.03)]
    frame = pd.DataFrame({"a": [gaps[0], None], "b": gaps[1:]})
    table = corrected_columns(frame, {"a": 1, "b": 0})
    assert table["a"].tolist() == ["+1.0 ± 0.9 (n = 5), p = 0.030", ""]
    assert table["b"].tolist() == ["+1 ± 1 (n = 5), p = 0.040", "+1 ± 1 (n = 5), p = 0.040"]
    assert table.attrs["questions"] == 3


def test_arms_table_corrects_and_counts_its_questions(results):
    arms = {"trimmed": TRIMMED, "none": PLAIN}
    headings = list(SHOWN)
    table = arms_table(results, arms, SHOWN, baselines={"plain": "none"}, compared=headings)
    raw = [difference(results, TRIMMED, PLAIN, SHOWN[name]).p for name in headings]
    assert table.attrs["questions"] == 2
    smaller = headings[raw.index(min(raw))]
    assert table[f"{smaller} minus plain"][0].endswith(f"p = {2 * min(raw):.3f}")


# --- histories -----------------------------------------------------------------------------------


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


def test_curves_of_a_history_without_rows_are_empty():
    epochs, values = curves(pd.DataFrame({"key": []}), PLAIN, "test_error")
    assert epochs.shape == (0,)
    assert values.shape == (0, 0)


def test_per_run_reads_the_history_of_each_finished_run():
    results = pd.DataFrame(rows(PLAIN, [0.1, None, 0.3]))
    lines = history_of(PLAIN[2], [0.7, 0.5]) + history_of(PLAIN[0], [0.3, 0.1])
    history = pd.DataFrame(lines + history_of(PLAIN[1], [0.9]))
    last = per_run(history, results, PLAIN, lambda run, own: run.seed + own["test_error"].min())
    assert last.to_dict() == {0: 0.1, 2: 2.5}


# --- the comparison with the paper ---------------------------------------------------------------

SEEN = PairedDifference(-0.4, -0.7, -0.1, 0.012, 10, 0.2)


def test_verdict_cells_say_paper_here_and_the_verdict():
    cells = verdict_cells(SEEN, -0.42, Protocol(True))
    assert cells["Δ, paper"] == "-0.42"
    assert cells["Δ, here"] == "-0.40 ± 0.30 (n = 10), p = 0.012"
    assert cells["verdict"] == "reproduced"
    assert verdict_cells(SEEN, 0.42, Protocol(True))["verdict"] == "opposite"
    assert verdict_cells(SEEN, -0.42, Protocol(True), digits=1)["Δ, paper"] == "-0.4"


@pytest.mark.parametrize(
    ("gap", "printed", "was_run", "verdict", "why"),
    [
        (SEEN, math.nan, True, "not comparable", "the paper has no such cell"),
        (SEEN, -0.42, True, "not comparable", "fewer epochs"),
        (None, -0.42, True, "not comparable", "no seed finished with both"),
        (None, -0.42, False, "not run", "run it"),
    ],
)
def test_verdict_cells_say_why_there_is_no_verdict(gap, printed, was_run, verdict, why):
    protocol = Protocol(False, "fewer epochs", "run it")
    cells = verdict_cells(gap, printed, protocol, was_run=was_run)
    assert (cells["verdict"], cells["why"]) == (verdict, why)
    assert cells["Δ, paper"] == ("–" if math.isnan(printed) else "-0.42")


def test_a_gap_of_no_seed_is_an_empty_cell():
    assert verdict_cells(None, np.nan, Protocol(True))["Δ, here"] == ""


def test_verdict_cells_count_the_runs_behind_a_printed_number():
    cells = [verdict_cells(SEEN, -0.8, Protocol(True, num_runs=m))["verdict"] for m in (1, 10)]
    assert cells == ["reproduced", "other size"]


def test_a_cell_picked_on_the_test_set_has_no_verdict():
    cells = verdict_cells(SEEN, -0.42, Protocol(True), picked=True)
    assert cells["verdict"] == "no verdict"
    assert cells["why"] == "picked among several on the test set"
    assert cells["Δ, here"] == "-0.40 ± 0.30 (n = 10), p = 0.012"


def test_levels_have_verdicts_of_their_own(results):
    # plain 10, 12, 14 %: predicted 12 +- 9.9 for one run, +- 5.7 for ten; trimmed 9, 10, 14 %
    printed = {"plain": (PLAIN, 21.0), "trimming": (TRIMMED, 12.0)}
    assert level_verdicts(results, printed, Protocol(True)) == "reproduced"
    ten = Protocol(True, num_runs=10)
    assert level_verdicts(results, printed, ten) == "plain: not reproduced, trimming: reproduced"
    assert level_verdicts(results, printed, Protocol(False)) == "not comparable"
    assert level_verdicts(results, {"plain": (arm("active_bias"), 1.0)}, ten) == "not run"


def test_the_note_on_the_test_set_gives_its_deviation(results):
    # 12 % of 359 images: sqrt(0.12 * 0.88 / 359) = 1.715 points
    note = sampling_note(results, PLAIN, 359)
    assert "of 359 images" in note
    assert "12.00 % by 1.72 points" in note
    assert sampling_note(results, arm("active_bias"), 359) == ""


def test_networks_that_say_one_class_only_are_found_among_those_that_diverged():
    texts = ["[1.0, 0.0, null, 1.0]", "[1.0, 0.1, 1.0]", "[0.0, 0.0, 1.0]", "[0.0]", "", math.nan]
    results = pd.DataFrame({"per_class_error": texts})
    assert one_class(results).tolist() == [True, False, False, False, False, False]
