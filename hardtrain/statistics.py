"""Intervals over seeds, paired differences, percentiles of resamples, verdicts."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit

from hardtrain.errors import ParameterError

VERSION = 1  # raise it when a change here changes what a figure shows

MIN_SEEDS = 3
CONFIDENCE = 0.95  # of all intervals


class Interval(NamedTuple):
    """A mean and the bounds around it; the bounds are nan when ``n`` is 1."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


class PairedDifference(NamedTuple):
    """Treatment minus baseline over ``n`` common seeds: mean, interval, two-sided p value."""

    mean: float
    low: float
    high: float
    p: float
    n: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


class Verdict(NamedTuple):
    """A word and a sentence with the numbers behind it.

    The word is "reproduced", "same direction", "no difference seen", "opposite", "not reproduced"
    (single printed values only) or "not comparable".
    """

    word: str
    reason: str


def mean_interval(values: ArrayLike) -> Interval:
    r"""Mean over seeds with its 95 % Student-t confidence interval.

    .. math:: \bar x \pm t_{0.975,\, n-1} \, \frac{s}{\sqrt n}, \quad
              s^2 = \frac{1}{n-1} \sum_i (x_i - \bar x)^2

    Args:
        values: shape ``(n,)``, one finite number per seed, n >= 1, any unit.

    Returns:
        ``Interval(mean, low, high, n)`` with ``half_width``, in the unit of ``values``. One value
        gives nan bounds, equal values give a width of exactly zero.

    Raises:
        ParameterError: no values, or a value that is not finite.

    Example:
        >>> interval = mean_interval([17.0, 17.5, 17.7])
        >>> f"{interval.mean:.2f} ± {interval.half_width:.2f}"
        '17.40 ± 0.90'
    """
    values = finite_values(values, "values")
    mean, deviation = _mean_and_deviation(values)
    half = _t_quantile(len(values)) * deviation / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def prediction_interval(values: ArrayLike, num_runs: int) -> Interval:
    r"""Where the mean of ``num_runs`` further runs would lie in 95 % of cases.

    .. math:: \bar x \pm t_{0.975,\, n-1} \, s \sqrt{\tfrac{1}{n} + \tfrac{1}{m}}

    Args:
        values: shape ``(n,)``, one finite number per seed, n >= 1.
        num_runs: ``m`` >= 1, runs behind the number to be predicted.

    Returns:
        ``Interval``; ``n`` counts ``values``. One value gives nan bounds.

    Raises:
        ParameterError: as `mean_interval`, or ``num_runs`` below 1.

    Example:
        >>> interval = prediction_interval([17.0, 17.5, 17.7], num_runs=1)
        >>> f"{interval.mean:.2f} ± {interval.half_width:.2f}"
        '17.40 ± 1.79'
    """
    if num_runs < 1:
        raise ParameterError(f"num_runs must be at least 1; got {num_runs}")
    values = finite_values(values, "values")
    mean, deviation = _mean_and_deviation(values)
    half = _t_quantile(len(values)) * deviation
    half *= math.sqrt(1 / len(values) + 1 / num_runs)
    return Interval(mean, mean - half, mean + half, len(values))


def paired_difference(
    treatment: Mapping | pd.Series, baseline: Mapping | pd.Series
) -> PairedDifference:
    r"""Treatment minus baseline, seed by seed, with 95 % interval and t test.

    .. math:: d_i = x_i - y_i, \quad \bar d \pm t_{0.975,\, n-1} \, s_d / \sqrt n, \quad
              p = 2 P\big(T_{n-1} > |\bar d| \sqrt n / s_d\big)

    Args:
        treatment: mapping or ``pandas.Series``, seed -> finite value.
        baseline: the same for the baseline. Seeds that only one side has are left out.

    Returns:
        ``PairedDifference(mean, low, high, p, n)``; ``n`` counts the common seeds. One pair gives
        nan bounds and p. Equal differences (up to round-off) give a zero width, and p = 1 if they
        are zero, else 0.

    Raises:
        ParameterError: not a mapping or Series, a seed twice, a value that is not finite on a
            common seed, or no common seed.

    Example:
        >>> difference = paired_difference({0: 17.0, 1: 17.2, 2: 16.9}, {0: 17.5, 1: 17.6, 2: 17.1})
        >>> f"{difference.mean:.2f} [{difference.low:.2f}, {difference.high:.2f}]"
        '-0.37 [-0.75, 0.01]'
    """
    treatment = _by_seed(treatment, "treatment")
    baseline = _by_seed(baseline, "baseline")
    common = [seed for seed in treatment if seed in baseline]
    if not common:
        raise ParameterError(
            f"treatment and baseline have no common seed: {list(treatment)} and {list(baseline)}"
        )
    first = finite_values([treatment[seed] for seed in common], "treatment")
    second = finite_values([baseline[seed] for seed in common], "baseline")
    n = len(common)
    # subtracting leaves round-off of this size, which is no spread and no difference
    noise = 8 * np.finfo(float).eps * max(np.abs(first).max(), np.abs(second).max())
    mean, deviation = _mean_and_deviation(first - second, noise)
    half = _t_quantile(n) * deviation / math.sqrt(n)
    if n == 1:
        p = math.nan
    elif deviation == 0:
        p = 1.0 if mean == 0 else 0.0
    else:
        p = float(2 * stdtr(n - 1, -abs(mean) * math.sqrt(n) / deviation))
    return PairedDifference(mean, mean - half, mean + half, p, n)


def percentile_bounds(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap: the order statistics that bound the middle 95 % of the draws.

    No interpolation, which cannot deal with inf. nan sorts last; where so many draws are nan that
    the upper bound is one, both bounds are.

    Args:
        draws: shape ``(R, ...)``, a statistic of each of R resamples.

    Returns:
        Two arrays ``(...)``.

    Example:
        >>> low, high = percentile_bounds(np.array([3.0, 1.0, math.inf, 2.0]))
        >>> float(low), float(high)
        (1.0, inf)
    """
    draws = np.sort(draws, axis=0)
    tail, last = (1 - CONFIDENCE) / 2, len(draws) - 1
    low, high = draws[math.floor(tail * last)], draws[math.ceil((1 - tail) * last)]
    return np.where(np.isnan(high), high, low), high


def direction(difference: PairedDifference | None) -> str:
    """What a paired difference says by itself: "higher", "lower", "no difference seen" where 0
    lies in its interval, "too few seeds" below three.

    Example:
        >>> direction(PairedDifference(mean=-0.4, low=-0.7, high=-0.1, p=0.01, n=10))
        'lower'
    """
    if difference is None or difference.n < MIN_SEEDS:
        return "too few seeds"
    if difference.low <= 0 <= difference.high:
        return "no difference seen"
    return "higher" if difference.mean > 0 else "lower"


def verdict(
    printed_difference: float,
    difference: PairedDifference,
    *,
    comparable: bool = True,
    reason: str = "",
) -> Verdict:
    """Does a measured difference bear out the printed one? One rule for all notebooks.

    With the mean difference d, its 95 % interval I and the printed difference p, the first that
    holds: fewer than 3 seeds, or another protocol, profile or data: "not comparable"; 0 in I:
    "no difference seen"; d and p of opposite sign: "opposite"; p in I: "reproduced"; otherwise
    "same direction". Bounds belong to I. A printed difference of zero has no direction: unless
    0 lies in I, it is "not comparable".

    Args:
        printed_difference: treatment minus baseline as printed, in the unit of ``difference``;
            nan where the paper prints nothing.
        difference: from `paired_difference`.
        comparable: false if protocol, profile or data are not the paper's.
        reason: why not, shown in place of the numbers.

    Returns:
        ``Verdict(word, reason)``.

    Example:
        >>> measured = PairedDifference(mean=-0.4, low=-0.7, high=-0.1, p=0.01, n=10)
        >>> verdict(-0.42, measured).word
        'reproduced'
        >>> print(verdict(-0.11, measured._replace(high=-0.2)).reason)
        measured -0.4 [-0.7, -0.2], n = 10; printed -0.11 lies outside
    """
    refused = _not_comparable(printed_difference, difference.n, comparable, reason)
    if refused:
        return refused
    mean, low, high = difference[:3]
    numbers = f"measured {mean:+.4g} [{low:+.4g}, {high:+.4g}], n = {difference.n}"
    printed = f"printed {printed_difference:+.4g}"
    if _inside(0.0, low, high):
        return Verdict("no difference seen", f"{numbers} includes 0; {printed}")
    if printed_difference == 0:
        return Verdict("not comparable", f"{numbers}; {printed}, which has no direction")
    if mean * printed_difference < 0:
        return Verdict("opposite", f"{numbers}; {printed} has the other sign")
    if _inside(printed_difference, low, high):
        return Verdict("reproduced", f"{numbers}; {printed} lies inside")
    return Verdict("same direction", f"{numbers}; {printed} lies outside")


def verdict_single(
    printed_value: float,
    values: ArrayLike,
    *,
    num_runs: int = 1,
    comparable: bool = True,
    reason: str = "",
) -> Verdict:
    """Could a single printed value have come from runs like ours?

    "reproduced" if it lies in the 95 % prediction interval for the mean of the paper's number of
    runs, else "not reproduced"; "not comparable" as in `verdict`.

    Args:
        printed_value: as printed, in the unit of ``values``.
        values: shape ``(n,)``, one finite number per seed.
        num_runs: runs behind the printed value.
        comparable, reason: as in `verdict`.

    Returns:
        ``Verdict(word, reason)``; the reason says how far outside the value lies.

    Raises:
        ParameterError: a value that is not finite, or ``num_runs`` below 1.

    Example:
        >>> print(verdict_single(19.8, [17.0, 17.5, 17.7]).reason)
        predicted 17.4 [15.61, 19.19], n = 3; printed 19.8 lies 0.61 above
    """
    values = np.asarray(values, dtype=float)
    refused = _not_comparable(printed_value, values.size, comparable, reason)
    if refused:
        return refused
    mean, low, high, n = prediction_interval(values, num_runs)
    text = (
        f"predicted {mean:.4g} [{low:.4g}, {high:.4g}], n = {n}; printed {printed_value:.4g} lies"
    )
    if _inside(printed_value, low, high):
        return Verdict("reproduced", f"{text} inside")
    side = "above" if printed_value > high else "below"
    gap = max(printed_value - high, low - printed_value)
    return Verdict("not reproduced", f"{text} {gap:.2g} {side}")


def finite_values(values: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or values.size == 0:
        raise ParameterError(f"{name} must have shape (n,), n >= 1; got {values.shape}")
    if not np.isfinite(values).all():
        raise ParameterError(f"{name} must be finite; got {values[~np.isfinite(values)][0]}")
    return values


def _mean_and_deviation(values: np.ndarray, noise: float = 0.0) -> tuple[float, float]:
    """Mean and sample standard deviation; what stays within ``noise`` counts as equal."""
    if values.max() - values.min() <= noise:  # the rounded mean of equal values may not be theirs
        return (0.0 if abs(values[0]) <= noise else float(values[0])), 0.0
    mean = math.fsum(values) / len(values)  # exact sums do not depend on the order of the seeds
    squares = math.fsum((values - mean) ** 2)
    return mean, math.sqrt(squares / (len(values) - 1))


def _t_quantile(n: int) -> float:
    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) if n > 1 else math.nan


def _by_seed(values: Mapping | pd.Series, name: str) -> Mapping:
    if isinstance(values, pd.Series):
        twice = values.index[values.index.duplicated()]
        if len(twice):
            raise ParameterError(f"{name} has seed {twice[0]} twice")
        return values.to_dict()
    if isinstance(values, Mapping):
        return values
    raise ParameterError(f"{name} must map seed -> value; got {type(values).__name__}")


def _inside(value: float, low: float, high: float) -> bool:
    slack = 1e-12 * max(abs(low), abs(high), abs(value))  # a bound met up to round-off is met
    return low - slack <= value <= high + slack


def _not_comparable(printed: float, n: int, comparable: bool, reason: str) -> Verdict | None:
    if not comparable:
        return Verdict("not comparable", reason or "other protocol, profile or data")
    if n < MIN_SEEDS:
        return Verdict("not comparable", f"{n} of at least {MIN_SEEDS} seeds")
    if not math.isfinite(printed):
        return Verdict("not comparable", "the paper prints no number")
    return None
