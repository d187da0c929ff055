"""Intervals over seeds, paired differences, corrections for many questions, verdicts."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit

from hardtrain.errors import ParameterError

VERSION = 2  # raise it when a change here changes what a figure shows

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
    """Treatment minus baseline over ``n`` common seeds: mean, interval, two-sided p value, and
    ``spread``, the deviation of an unpaired difference: the root of the sides' summed variances."""

    mean: float
    low: float
    high: float
    p: float
    n: int
    spread: float = math.nan

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


class Verdict(NamedTuple):
    """A word and a sentence with the numbers behind it.

    The word is "reproduced", "undecided", "not reproduced", "other size", "opposite" or "not
    comparable".
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

    Differences that are all equal (one test image in each seed) have no t distribution. The exact
    sign test speaks for them: :math:`p = \min(1, 2^{1-n})`, the interval is the point itself from
    n = 6 on and unbounded below; p is 1 where they are all zero.

    Args:
        treatment: mapping or ``pandas.Series``, seed -> finite value.
        baseline: the same for the baseline. Seeds that only one side has are left out.

    Returns:
        ``PairedDifference(mean, low, high, p, n, spread)``; ``n`` counts the common seeds. One
        pair gives nan bounds, p and spread.

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
    if n == 1:
        return PairedDifference(mean, math.nan, math.nan, math.nan, n)
    if deviation == 0:
        p = 1.0 if mean == 0 else 2.0 ** (1 - n)
        half = 0.0 if 2.0 ** (1 - n) < 1 - CONFIDENCE else math.inf
    else:
        p = float(2 * stdtr(n - 1, -abs(mean) * math.sqrt(n) / deviation))
        half = _t_quantile(n) * deviation / math.sqrt(n)
    spread = math.hypot(*(_mean_and_deviation(side, noise)[1] for side in (first, second)))
    return PairedDifference(mean, mean - half, mean + half, p, n, spread)


def holm(p_values: ArrayLike) -> list[float]:
    """p values of one family of questions, corrected by Holm's step-down method; nan stays out.

    The i-th smallest of k is multiplied by k - i + 1; none may be below its predecessor, none
    above 1.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind="stable")[: np.count_nonzero(~np.isnan(p_values))]
    steps = np.minimum(1, p_values[order] * np.arange(len(order), 0, -1))
    corrected = p_values.copy()
    corrected[order] = np.maximum.accumulate(steps)
    return corrected.tolist()


def holm_corrected(differences: Sequence[PairedDifference | None]) -> list[PairedDifference | None]:
    """The differences with their p values corrected by `holm`; ``None`` is no question."""
    corrected = holm([math.nan if d is None else d.p for d in differences])
    return [
        None if d is None else d._replace(p=p) for d, p in zip(differences, corrected, strict=True)
    ]


def detectable(difference: PairedDifference, power: float = 0.8, questions: int = 1) -> float:
    r"""The true difference that so many pairs of this spread would tell from 0, with about this
    power, at 5 % shared among so many questions (k).

    .. math:: (t_{1 - 0.025/k,\, n-1} + t_{power,\, n-1}) \, s_d / \sqrt n

    nan where the spread is not known.

    Example:
        >>> round(detectable(PairedDifference(mean=0.1, low=-0.4, high=0.6, p=0.6, n=5)), 2)
        0.67
    """
    t, shared = _t_quantile(difference.n), (1 - CONFIDENCE) / 2 / questions
    needed = stdtrit(difference.n - 1, 1 - shared) + stdtrit(difference.n - 1, power)
    return difference.half_width * float(needed) / t


def sampling_deviation(error: float, num_images: int) -> float:
    r"""By how much another test set of so many images would move an error (0 to 1), as a standard
    deviation. Seeds that share a test set share this part, so no interval over seeds holds it.

    .. math:: \sqrt{e (1 - e) / N}

    Example:
        >>> round(100 * sampling_deviation(0.032, 359), 2)
        0.93
    """
    if not (0 <= error <= 1 and num_images >= 1):
        raise ParameterError(f"no error and size of a test set: {error} and {num_images}")
    return math.sqrt(error * (1 - error) / num_images)


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
    num_runs: int = 1,
    comparable: bool = True,
    reason: str = "",
) -> Verdict:
    r"""Does a measured difference bear out the printed one? One rule for all notebooks.

    With our mean difference d, its 95 % interval I over n seeds, the printed difference p of m
    runs a side, and the interval in which the difference printed by a paper like ours would lie,

    .. math:: P = d \pm t_{0.975,\, n-1} \sqrt{s_d^2 / n + (s_a^2 + s_b^2) / m},

    the first that holds: fewer than 3 seeds, or another protocol, profile or data: "not
    comparable"; p in P and 0 not in I, d and p of one sign: "reproduced"; p in P otherwise:
    "undecided"; 0 in I: "not reproduced"; of one sign: "other size"; else "opposite". Bounds
    belong to their interval. A printed 0 has the sign of any d.

    Args:
        printed_difference: treatment minus baseline as printed, in the unit of ``difference``;
            nan where the paper prints nothing.
        difference: from `paired_difference`.
        num_runs: ``m``, runs behind each printed side. Their seeds are taken as unpaired.
        comparable: false if protocol, profile or data are not the paper's.
        reason: why not, shown in place of the numbers.

    Returns:
        ``Verdict(word, reason)``.

    Example:
        >>> measured = PairedDifference(mean=-0.4, low=-0.7, high=-0.1, p=0.01, n=10, spread=0.2)
        >>> verdict(-0.42, measured).word
        'reproduced'
        >>> print(verdict(-1.4, measured, num_runs=10).reason)
        measured -0.4 [-0.7, -0.1], n = 10; such a paper prints [-0.7324, -0.06763]; printed -1.4
    """
    refused = _not_comparable(printed_difference, difference.n, comparable, reason)
    if refused:
        return refused
    if num_runs < 1 or math.isnan(difference.spread):
        raise ParameterError(
            f"num_runs = {num_runs} is to be at least 1, and spread = {difference.spread} a number"
        )
    mean, low, high = difference[:3]
    spread = _t_quantile(difference.n) * difference.spread / math.sqrt(num_runs)
    half = math.hypot(difference.half_width, spread)
    numbers = (
        f"measured {mean:+.4g} [{low:+.4g}, {high:+.4g}], n = {difference.n}; such a paper prints "
        f"[{mean - half:+.4g}, {mean + half:+.4g}]; printed {printed_difference:+.4g}"
    )
    predicted = _inside(printed_difference, mean - half, mean + half)
    no_difference = _inside(0.0, low, high)
    same_sign = mean * printed_difference >= 0
    if predicted:
        return Verdict("undecided" if no_difference or not same_sign else "reproduced", numbers)
    if no_difference:
        return Verdict("not reproduced", numbers)
    return Verdict("other size" if same_sign else "opposite", numbers)


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
