"""Subset search: counts, errors and wrong labels against numbers worked out by hand."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from hardtrain import ParameterError
from hardtrain.papers.subset_search import selection
from hardtrain.papers.subset_search import tables as subset_tables
from hardtrain.papers.subset_search.ensembles import ACQUISITIONS, SPOKEN
from hardtrain.report.plotting import method_style
from hardtrain.report.tables import TEST_ERROR, arms_table


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_chance_overlap_is_the_mean_of_random_subsets(fraction):
    size = round(5000 * fraction)
    chosen = [selection.choose(np.zeros(5000), size, seed=seed) for seed in range(40)]
    pairs = zip(chosen[::2], chosen[1::2], strict=True)
    mean = np.mean([selection.jaccard(first, second) for first, second in pairs])
    assert mean == pytest.approx(subset_tables.chance_overlap(fraction), abs=0.005)


def test_score_table_counts_ties_and_classes():
    scores = {name: np.array([0, 0, 0, 3, 2, 0]) for name in ACQUISITIONS}
    scores["error_count"] = np.array([1, 2, 3, 4, 5, 6])
    labels = np.array([0, 0, 1, 1, 3, 3])
    table = subset_tables.score_table(scores, labels, 3)
    tied, ranked = table.iloc[0].tolist(), table.iloc[3].tolist()
    assert tied[:5] == ["predictive entropy", "66.7", 3, 4, 1]
    assert ranked == ["error count", "0.0", 6, 1, 1, "0.0", "100.0"]


def frame(**errors):
    """Results of one run a seed and key; nan is a diverged run."""
    rows = [
        {"key": f"{key}{seed}", "seed": seed, "test_error": error,
         "status": "diverged" if math.isnan(error) else "finished"}
        for key, values in errors.items() for seed, error in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@dataclasses.dataclass
class Named:
    key: str
    seed: int


def arm(name, num_seeds):
    return [Named(f"{name}{seed}", seed) for seed in range(num_seeds)]


def test_errors_by_seed_are_in_percent_and_leave_out_seeds_that_diverged_somewhere():
    results = frame(a=[0.1, 0.2, 0.3], b=[0.4, math.nan, 0.6])
    found = subset_tables.errors_by_seed(results, [arm("a", 3), arm("b", 3)])
    np.testing.assert_allclose(found, [[10, 40], [30, 60]])


def test_error_points_are_in_percent_with_their_intervals():
    results = frame(a=[0.1, 0.2, 0.3], b=[0.4, math.nan, math.nan], c=[math.nan] * 3)
    mean, half = subset_tables.error_points(results, [arm("a", 3), arm("a", 3)])
    np.testing.assert_allclose(mean, [20, 20])
    np.testing.assert_allclose(half, 4.302653 * 10 / math.sqrt(3), rtol=1e-6)
    mean, half = subset_tables.error_points(results, [arm("a", 3), arm("b", 3)])
    np.testing.assert_allclose(mean, [10, 40])
    assert np.isnan(half).all()
    assert np.isnan(subset_tables.error_points(results, [arm("a", 3), arm("c", 3)])).all()


def test_each_arm_is_compared_with_its_baselines():
    results = frame(a=[0.10, 0.20, 0.30], b=[0.11, 0.22, 0.33], c=[math.nan] * 3)
    all_data, part, lost = (arm(name, 3) for name in "abc")
    arms = {("100", "all"): all_data, ("70", "part"): part, ("50", "lost"): lost}
    baselines = {"all": dict.fromkeys(arms, all_data), "random": {("70", "part"): lost}}
    shown, names = {"error": TEST_ERROR}, ["kept (%)", "subset"]
    table = arms_table(results, arms, shown, names=names, baselines=baselines)
    assert table.columns.tolist() == [*names, "error", "error minus all", "error minus random"]
    assert table.iloc[0].tolist() == ["100", "all", "20.00 ± 24.84 (n = 3)", "", ""]
    assert table.iloc[1].tolist()[2:] == [
        "22.00 ± 27.33 (n = 3)", "+2.00 ± 2.48 (n = 3), p = 0.074", "",
    ]  # fmt: skip
    assert table.iloc[2].tolist()[2:] == ["3 diverged", "", ""]


def test_label_error_curve_matches_a_loop_over_thresholds():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, 200)
    wrong = rng.random(200) < 0.05 + 0.1 * scores / 6
    precision, recall = subset_tables.label_error_curve(scores, wrong)
    expected = []
    for threshold in sorted(set(scores), reverse=True):
        found = scores >= threshold
        expected.append((wrong[found].mean(), wrong[found].sum() / wrong.sum()))
    reached = list(zip(precision, recall, strict=True))
    # sklearn stops at the threshold that has found all
    np.testing.assert_allclose(reached, expected[: len(reached)])
    assert recall[-1] == 1
    with pytest.raises(ParameterError, match="no label is wrong"):
        subset_tables.label_error_curve(scores, np.zeros(200, bool))


def test_label_error_table_by_hand():
    wrong = np.array([False, True, False, True, False, False, False, False, False, False])
    ranked = np.array([9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    scores = {name: np.zeros(10) for name in ACQUISITIONS} | {"error_count": ranked}
    table = subset_tables.label_error_table([scores], wrong).set_index("acquisition function")
    assert table.columns[0] == "wrong among the 2 highest (%)"
    # 2 highest: one; at the thresholds of the two: 1/2 and 2/4; four to see both
    assert table.loc["error count"].tolist() == [f"{x} (n = 1)" for x in ("50.0", "50.0", "40.0")]
    # all tied: as good as chance, and everything looked at
    assert table.loc["predictive entropy"].tolist() == [
        f"{x} (n = 1)" for x in ("20.0", "20.0", "100.0")
    ]
    assert table.loc["chance"].tolist() == ["20.0", "20.0", "90.0"]


def test_label_errors_of_several_ensembles_have_an_interval():
    wrong = np.array([False, True, False, True, False, False])
    sure, blind = np.array([0, 9, 0, 8, 0, 0]), np.arange(6)[::-1]
    doubts = [dict.fromkeys(ACQUISITIONS, scores) for scores in (sure, blind, sure)]
    table = subset_tables.label_error_table(doubts, wrong)
    half = 4.302653 * np.std([1, 0.5, 1], ddof=1) / math.sqrt(3)
    assert table.iloc[0, 1] == f"83.3 ± {100 * half:.1f} (n = 3)"


def test_ensembles_table_by_hand():
    scores = [np.array([9, 8, 7, 1, 1.5, 0]), np.array([9, 8, 0, 1, 1.5, 7]), np.arange(6.0)]
    results = frame(a=[0.10, 0.20, 0.30], b=[0.11, 0.22, 0.33], c=[math.nan] * 3)
    arms = {0.5: tuple(arm(name, 3) for name in "bac")}
    table = subset_tables.ensembles_table(scores, {0.5: 3}, results, arms)
    overlaps = [2 / 4, 0 / 6, 1 / 5]
    assert table.iloc[0, :3].tolist() == ["50", f"{np.mean(overlaps):.2f}", "0.33"]
    half = 4.302653 / math.sqrt(3)  # of 1, 2, 3 points; and t's quantile 0.8
    assert float(table.iloc[0, 3]) == pytest.approx(half * (1 + 1.060660 / 4.302653), abs=0.01)
    assert table.iloc[0, 4] == "–"
    assert subset_tables.ensembles_table(scores[:1], {0.5: 3}, results, arms).iloc[0, 1] == "–"


def test_kinds_of_subsets_have_styles_of_their_own():
    ways = ("highest, balanced", "lowest", "random", "random, balanced", "build-up")  # figure 1's
    looks = [subset_tables.kind_style(kind) for kind in (*SPOKEN.values(), *ways, "all data")]
    for key in ("color", "linestyle", "marker"):
        assert len({str(look[key]) for look in looks}) == len(looks)
    for kind, method in {"predictive entropy": "subset", "random": "subset_random"}.items():
        assert subset_tables.kind_style(kind) == method_style(method)
