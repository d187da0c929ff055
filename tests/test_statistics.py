"""Statistics against hand computations, scipy references and simulated coverage."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from hardtrain import ParameterError
from hardtrain.statistics import (
    PairedDifference,
    detectable,
    direction,
    holm,
    holm_corrected,
    mean_interval,
    paired_difference,
    prediction_interval,
    sampling_deviation,
    verdict,
    verdict_single,
)

# --- mean_interval ---------------------------------------------------------------------------


def test_mean_interval_of_three_numbers_by_hand():
    # mean 2, sample variance 1, t_{0.975, 2} = 4.30265, half width 4.30265 / sqrt(3) = 2.48414
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval == pytest.approx((2.0, -0.48414, 4.48414, 3), abs=1e-5)
    assert interval.half_width == pytest.approx(2.48414, abs=1e-5)


@pytest.mark.parametrize("n", [2, 3, 10, 100])
def test_mean_interval_matches_scipy(n):
    values = np.random.default_rng(1).normal(17.4, 0.3, n)
    interval = mean_interval(values)
    reference = scipy.stats.t.interval(0.95, n - 1, values.mean(), scipy.stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx(reference, rel=1e-12)


def test_mean_interval_covers_the_mean_as_often_as_it_says():
    samples = np.random.default_rng(2).normal(3.0, 2.0, (2000, 4))
    intervals = [mean_interval(sample) for sample in samples]
    covered = np.mean([i.low <= 3.0 <= i.high for i in intervals])
    assert 0.93 <= covered <= 0.97  # z in place of t: 0.85; no sqrt(n): 1.00


def test_mean_interval_of_one_value_has_no_bounds():
    mean, low, high, n = mean_interval([0.3])
    assert (mean, n) == (0.3, 1)
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize("value", [0.1, 1 / 3, -17.43])
def test_mean_interval_of_equal_values_has_zero_width(value):
    assert mean_interval([value] * 3) == (value, value, value, 3)


def test_mean_interval_does_not_depend_on_the_order():
    values = np.random.default_rng(3).normal(size=9)
    assert mean_interval(values) == mean_interval(values[::-1])


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [1.0, math.inf], [[1.0, 2.0]], 3.0])
def test_mean_interval_rejects_what_is_not_a_list_of_finite_numbers(values):
    with pytest.raises(ParameterError, match="values must"):
        mean_interval(values)


# --- prediction_interval ---------------------------------------------------------------------


def test_prediction_interval_of_three_numbers_by_hand():
    # half width 4.30265 * 1 * sqrt(1/3 + 1/10) = 2.83235
    interval = prediction_interval([1.0, 2.0, 3.0], num_runs=10)
    assert interval == pytest.approx((2.0, 2 - 2.83235, 2 + 2.83235, 3), abs=1e-5)


@pytest.mark.parametrize("num_runs", [1, 10])
def test_prediction_interval_covers_future_means_as_often_as_it_says(num_runs):
    generator = np.random.default_rng(4)
    intervals = [prediction_interval(generator.normal(size=5), num_runs) for _ in range(2000)]
    future = generator.normal(size=(2000, num_runs)).mean(axis=1)
    covered = np.mean([i.low <= f <= i.high for i, f in zip(intervals, future, strict=True)])
    assert 0.93 <= covered <= 0.97


def test_prediction_interval_of_one_value_has_no_bounds():
    assert math.isnan(prediction_interval([1.0], 1).low)


def test_prediction_interval_rejects_no_runs():
    with pytest.raises(ParameterError, match="num_runs"):
        prediction_interval([1.0, 2.0], 0)


# --- paired_difference -----------------------------------------------------------------------


def test_paired_difference_by_hand():
    # differences 1, 2, 3; t = 2 / (1 / sqrt(3)) = 3.4641, p = 0.07418; variances 121 and 100
    difference = paired_difference({0: 11.0, 1: 22.0, 2: 33.0}, {0: 10.0, 1: 20.0, 2: 30.0})
    spread = math.sqrt(221)
    assert difference == pytest.approx((2.0, -0.48414, 4.48414, 0.07418, 3, spread), abs=1e-5)


def test_paired_difference_matches_scipy_and_pairs_by_seed():
    generator = np.random.default_rng(5)
    baseline = pd.Series(generator.normal(50, 5, 10))
    treatment = baseline - generator.normal(0.4, 0.3, 10)
    difference = paired_difference(treatment.sample(frac=1, random_state=0), baseline.to_dict())
    reference = scipy.stats.ttest_rel(treatment, baseline)
    bounds = reference.confidence_interval(0.95)
    assert difference.p == pytest.approx(reference.pvalue, rel=1e-9)
    assert (difference.low, difference.high) == pytest.approx((bounds.low, bounds.high), rel=1e-9)
    assert difference.mean < 0  # treatment minus baseline
    unpaired = scipy.stats.ttest_ind(treatment, baseline).pvalue
    assert difference.p < 0.05 < 0.5 < unpaired


def test_paired_difference_pairs_seeds_and_not_ranks():
    # differences -3 and 5, s = 5.65685; the ranks would differ by 1 and 1
    difference = paired_difference({0: 1.0, 1: 5.0}, {0: 4.0, 1: 0.0})
    assert difference.mean == 1.0
    assert difference.half_width == pytest.approx(12.7062 * 5.65685 / math.sqrt(2), rel=1e-5)


def test_paired_difference_uses_the_common_seeds_only():
    difference = paired_difference({1: 1.0, 2: 3.0, 7: 99.0}, {0: 50.0, 1: 0.0, 2: 1.0})
    assert (difference.mean, difference.n) == (1.5, 2)


def test_paired_difference_ignores_a_value_without_partner_even_if_nan():
    assert paired_difference({0: 1.0, 1: 2.0, 2: math.nan}, {0: 0.0, 1: 0.0}).n == 2


def test_paired_difference_of_one_pair_has_no_bounds():
    mean, low, high, p, n, spread = paired_difference({0: 2.0}, {0: 1.5})
    assert (mean, n) == (0.5, 1)
    assert all(math.isnan(x) for x in (low, high, p, spread))


@pytest.mark.parametrize("n", [2, 3, 5, 6, 10])
def test_equal_differences_are_judged_by_the_exact_sign_test(n):
    # i/10 - (i-1)/10 differ in their last bits
    better = {i: (i + 1) / 10 for i in range(n)}
    difference = paired_difference(better, {i: i / 10 for i in range(n)})
    assert difference.mean == pytest.approx(0.1)
    assert difference.p == pytest.approx(scipy.stats.binomtest(n, n).pvalue, rel=1e-12)
    assert difference.half_width == (0 if n >= 6 else math.inf)  # 2 / 2^6 = 0.03
    assert direction(difference) == ("higher" if n >= 6 else WORDS[n >= 3])
    assert difference.spread == pytest.approx(math.sqrt(2) * np.std(list(better.values()), ddof=1))


WORDS = ("too few seeds", "no difference seen")


def test_differences_that_are_all_zero_say_nothing():
    values = {0: 0.3, 1: 0.5, 2: 0.9}
    assert paired_difference(values, values)[:5] == (0.0, -math.inf, math.inf, 1.0, 3)
    rounded = {0: 0.1 + 0.2, 1: 0.5, 2: 0.9}
    assert paired_difference(rounded, values)[:5] == (0.0, -math.inf, math.inf, 1.0, 3)


def test_paired_difference_keeps_a_small_true_spread():
    difference = paired_difference({0: 1 + 1e-9, 1: 1 + 2e-9}, {0: 1.0, 1: 1.0})
    assert difference.half_width > 1e-9


@pytest.mark.parametrize(
    ("treatment", "baseline", "message"),
    [
        ({0: 1.0}, {1: 1.0}, "no common seed"),
        ({}, {}, "no common seed"),
        (pd.Series([1.0, 2.0], index=[3, 3]), {3: 1.0}, "seed 3 twice"),
        ({3: 1.0}, pd.Series([1.0, 2.0], index=[3, 3]), "baseline has seed 3 twice"),
        ({0: math.nan}, {0: 1.0}, "treatment must be finite"),
        ([1.0, 2.0], [1.0, 2.0], "map seed -> value; got list"),
    ],
)
def test_paired_difference_rejects(treatment, baseline, message):
    with pytest.raises(ParameterError, match=message):
        paired_difference(treatment, baseline)


def test_paired_difference_finds_no_effect_as_rarely_as_it_says():
    generator = np.random.default_rng(6)
    shared = generator.normal(0, 10, (2000, 5))  # seeds move both arms together
    left, right = shared + generator.normal(size=(2, 2000, 5))
    rows = zip(left, right, strict=True)
    found = [paired_difference(dict(enumerate(a)), dict(enumerate(b))).p < 0.05 for a, b in rows]
    assert 0.035 <= np.mean(found) <= 0.065


# --- verdicts --------------------------------------------------------------------------------


def measured(low, high, n=10, spread=0.0):
    """Without a spread, P is I."""
    return PairedDifference((low + high) / 2, low, high, 0.5, n, spread)


@pytest.mark.parametrize(
    ("printed", "difference", "word"),
    [
        (-0.42, measured(-0.7, -0.1), "reproduced"),
        (0.42, measured(0.1, 0.7), "reproduced"),
        (-0.7, measured(-0.7, -0.1), "reproduced"),  # bounds belong to the interval
        (-0.1, measured(-0.7, -0.1), "reproduced"),
        (10.19 - 10.10, measured(0.09, 0.3), "reproduced"),  # 0.08999999999999986
        (-0.71, measured(-0.7, -0.1), "other size"),
        (-0.09, measured(-0.7, -0.1), "other size"),
        (0.8, measured(0.1, 0.7), "other size"),
        (0.42, measured(-0.7, -0.1), "opposite"),
        (-0.05, measured(0.1, 0.7), "opposite"),
        (0.42, measured(-0.1, 0.7), "undecided"),
        (-0.05, measured(-0.1, 0.7), "undecided"),
        (-0.42, measured(-0.1, 0.7), "not reproduced"),  # before "opposite"
        (0.8, measured(-0.1, 0.7), "not reproduced"),
        (0.42, measured(0.0, 0.7), "undecided"),
        (0.42, measured(-0.7, 0.0), "not reproduced"),
        (0.0, measured(-0.1, 0.7), "undecided"),
        (0.0, measured(0.1, 0.7), "other size"),
        (math.nan, measured(0.1, 0.7), "not comparable"),
        (-0.42, measured(-0.7, -0.1, n=3), "reproduced"),
        (-0.42, measured(-0.7, -0.1, n=2), "not comparable"),  # before all others
        (0.42, measured(-0.7, 0.7, n=2), "not comparable"),
        (-0.42, PairedDifference(-0.4, math.nan, math.nan, math.nan, 1), "not comparable"),
        (0.5, PairedDifference(0.5, 0.5, 0.5, 0.03, 6, 0.0), "reproduced"),
        (0.5, PairedDifference(0.5, -math.inf, math.inf, 0.25, 3, 0.0), "undecided"),
    ],
)
def test_verdict_follows_the_rule(printed, difference, word):
    assert verdict(printed, difference).word == word


T9 = 2.262157  # quantile 0.975 of Student's t with 9 degrees of freedom


@pytest.mark.parametrize(
    ("inside", "outside", "num_runs"),
    [(-0.6 - 0.4, -0.8 - 0.4, 1), (-0.4 - 0.4, -0.5 - 0.4, 4), (0.05, 0.36, 1)],
)
def test_the_papers_own_spread_widens_the_interval(inside, outside, num_runs):
    # half width of I: 0.3; of P: sqrt(0.09 + (T9 * 0.3)^2 / m) = 0.742 for m = 1, 0.453 for m = 4
    difference = measured(-0.7, -0.1, spread=0.3)
    assert verdict(inside, difference, num_runs=num_runs).word in ("reproduced", "undecided")
    word = "other size" if outside < 0 else "opposite"
    assert verdict(outside, difference, num_runs=num_runs).word == word


def test_another_sign_is_no_reproduction():
    assert verdict(0.05, measured(-0.7, -0.1, spread=0.3)).word == "undecided"
    assert verdict(-0.05, measured(-0.7, -0.1, spread=0.3)).word == "reproduced"


def test_verdict_gives_the_numbers():
    assert verdict(-0.42, measured(-0.7, -0.1, spread=0.3)).reason == (
        "measured -0.4 [-0.7, -0.1], n = 10; such a paper prints [-1.142, +0.342]; printed -0.42"
    )
    assert verdict(-0.42, measured(-0.7, -0.1, n=2)).reason == "2 of at least 3 seeds"


@pytest.mark.parametrize("wrong", [{"num_runs": 0}, {"num_runs": -1}])
def test_verdict_needs_runs_and_a_spread(wrong):
    with pytest.raises(ParameterError, match="num_runs"):
        verdict(0.1, measured(0.1, 0.7), **wrong)
    with pytest.raises(ParameterError, match="spread = nan"):
        verdict(0.1, PairedDifference(0.4, 0.1, 0.7, 0.5, 10))


def replications(n, num_runs, effect, printed, correlation, count=2000):
    """Words for ``count`` papers of ``num_runs`` runs a side and our ``n`` paired seeds; all runs
    have deviation 1. ``printed``: the paper's true effect, or, of none, its number."""
    draw = np.random.default_rng([n, num_runs, round(10 * correlation)]).normal
    shared = math.sqrt(correlation) * draw(size=(count, 1, n))
    sides = shared + math.sqrt(1 - correlation) * draw(size=(count, 2, n))
    papers = draw(size=(count, 2, num_runs)).mean(axis=2)
    words = []
    for (treatment, baseline), (theirs, plain) in zip(sides, papers, strict=True):
        numbers = dict(enumerate(treatment + effect)), dict(enumerate(baseline))
        number = theirs - plain + effect if printed is None else printed
        words.append(verdict(number, paired_difference(*numbers), num_runs=num_runs).word)
    return pd.Series(words).value_counts(normalize=True)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
@pytest.mark.parametrize("num_runs", [1, 2, 10])
@pytest.mark.parametrize("n", [3, 5, 10, 30])
def test_a_true_effect_is_denied_in_one_of_twenty_replications(n, num_runs, correlation):
    found = replications(n, num_runs, effect=1.0, printed=None, correlation=correlation)
    kept = found.get("reproduced", 0) + found.get("undecided", 0)
    assert kept >= 0.95 - 0.015  # three standard errors of 2000 draws


@pytest.mark.parametrize("num_runs", [1, 2, 10])
def test_a_printed_effect_that_does_not_exist_is_denied(num_runs):
    # 4 standard errors of the difference between a paper's number and ours
    errors = 4 * math.sqrt(2 / 10 + 2 / num_runs)
    found = replications(10, num_runs, effect=0.0, printed=errors, correlation=0.0)
    assert found.get("not reproduced", 0) + found.get("opposite", 0) >= 0.9


def test_verdict_of_another_protocol_is_not_comparable():
    result = verdict(-0.42, measured(-0.7, -0.1), comparable=False, reason="quick profile")
    assert result == ("not comparable", "quick profile")
    assert verdict(-0.42, measured(-0.7, -0.1), comparable=False).reason


def test_verdict_of_measured_seeds():
    baseline = dict(enumerate([17.5, 17.3, 17.6, 17.4]))
    treatment = dict(enumerate([17.1, 16.9, 17.1, 17.0]))
    assert verdict(17.01 - 17.43, paired_difference(treatment, baseline)).word == "reproduced"
    assert verdict(17.01 - 17.43, paired_difference(baseline, treatment)).word == "opposite"


def test_verdict_single_follows_the_prediction_interval():
    values = [1.0, 2.0, 3.0]  # +- 4.9683 for one run, +- 2.8323 for the mean of ten
    assert verdict_single(6.9, values).word == "reproduced"
    assert verdict_single(7.0, values).word == "not reproduced"
    assert verdict_single(4.8, values, num_runs=10).word == "reproduced"
    assert verdict_single(4.9, values, num_runs=10).word == "not reproduced"
    assert verdict_single(-2.9, values).word == "reproduced"
    assert verdict_single(-3.0, values).reason == (
        "predicted 2 [-2.968, 6.968], n = 3; printed -3 lies 0.032 below"
    )
    assert verdict_single(0.1, [0.1] * 3).word == "reproduced"


def test_verdict_single_is_not_comparable_when_it_should_be():
    assert verdict_single(1.0, [1.0, 1.1]) == ("not comparable", "2 of at least 3 seeds")
    assert verdict_single(1.0, []).word == "not comparable"
    assert verdict_single(math.nan, [1.0, 1.1, 1.2]).word == "not comparable"
    refused = verdict_single(1.0, [1.0, 1.1, 1.2], comparable=False, reason="other data")
    assert refused == ("not comparable", "other data")


# --- many questions, one test set ----------------------------------------------------------------


def test_holm_gives_the_numbers_of_statsmodels():
    # statsmodels.stats.multitest.multipletests(p, method="holm"), version 0.14
    p_values = [0.01, 0.04, 0.03, 0.005, 0.5, 0.04]
    expected = [0.05, 0.12, 0.12, 0.03, 0.5, 0.12]
    assert holm(p_values) == pytest.approx(expected, rel=1e-12)


def test_holm_leaves_nan_out_and_stops_at_one():
    assert holm([0.6, math.nan, 0.7]) == pytest.approx([1.0, math.nan, 1.0], nan_ok=True)
    assert holm([]) == []


def test_holm_claims_something_of_nothing_in_one_of_twenty_tables():
    p_values = np.random.default_rng(7).uniform(size=(4000, 5))
    assert 0.035 <= np.mean([min(holm(row)) < 0.05 for row in p_values]) <= 0.065


def test_holm_corrected_changes_p_alone():
    pair = [measured(0.1, 0.7)._replace(p=p) for p in (0.01, 0.04)]
    corrected = holm_corrected([pair[0], None, pair[1]])
    assert corrected[1] is None
    assert [one.p for one in corrected[::2]] == pytest.approx([0.02, 0.04])
    assert corrected[0]._replace(p=0.01) == pair[0]


@pytest.mark.parametrize("questions", [1, 4])
def test_a_detectable_effect_is_seen_as_often_as_its_power_says(questions):
    rng, n, power = np.random.default_rng(0), 10, 0.9
    differences = rng.normal(0, 1, (40_000, n))
    seen = paired_difference(dict(enumerate(differences[0])), dict.fromkeys(range(n), 0.0))
    effect = detectable(seen, power, questions) / differences[0].std(ddof=1)
    p = scipy.stats.ttest_1samp(differences + effect, 0, axis=1).pvalue
    assert (p < 0.05 / questions).mean() == pytest.approx(power, abs=0.03)


def test_sampling_deviation_is_that_of_a_binomial():
    assert sampling_deviation(0.032, 359) == pytest.approx(
        scipy.stats.binom(359, 0.032).std() / 359
    )
    for wrong in ((-0.1, 10), (1.1, 10), (0.5, 0)):
        with pytest.raises(ParameterError, match="no error and size"):
            sampling_deviation(*wrong)


# --- directions and percentiles ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "n", "word"),
    [
        (0.1, 0.7, 3, "higher"),
        (-0.7, -0.1, 3, "lower"),
        (0.0, 0.8, 3, "no difference seen"),
        (-0.8, 0.0, 3, "no difference seen"),
        (0.1, 0.7, 2, "too few seeds"),
    ],
)
def test_direction_is_that_of_an_interval_without_zero(low, high, n, word):
    assert direction(PairedDifference((low + high) / 2, low, high, 0.5, n)) == word
    assert direction(None) == "too few seeds"
