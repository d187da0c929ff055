"""Steps to a goal error against batch size, its regimes with intervals, and fixed budgets.

An interval is the percentile bootstrap over trials. A minimum cannot fall below the best trial at
hand, so it reaches upwards: it says how much hangs on the luckiest trials.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from hardtrain.goals import steps_to_goal
from hardtrain.papers.data_parallelism.regimes import fit_regimes
from hardtrain.statistics import percentile_bounds

QUANTITIES = {  # attributes of `Regimes`, in words
    "min_steps": "fewest steps",
    "min_samples": "fewest images",
    "critical_batch_size": "critical B",
    "perfect_until": "perfect scaling up to B",
    "flat_from": "flat from B",
}


class Estimate(NamedTuple):
    """A number and the bounds of its 95 % interval; inf or nan where there is none."""

    value: float
    low: float
    high: float


def with_resamples(values, rng: np.random.Generator, num_resamples: int) -> np.ndarray:
    """The minimum of ``values (n,)``, and behind it those of ``R`` resamples with replacement.

    Example:
        >>> with_resamples([2.0, 2.0], np.random.default_rng(0), 3).tolist()
        [2.0, 2.0, 2.0, 2.0]
    """
    values = np.asarray(values)
    drawn = rng.integers(0, len(values), (num_resamples, len(values)))
    return np.append(values.min(), values[drawn].min(axis=1))


def estimate(statistics: np.ndarray) -> Estimate:
    """The first of ``statistics (1 + R, ...)``, with percentile bounds from the others."""
    return Estimate(statistics[0], *percentile_bounds(statistics[1:]))


def measured_errors(results: pd.DataFrame, history: pd.DataFrame) -> pd.DataFrame:
    """Runs as trials, one row per evaluation, as the functions below take them.

    A run that diverged before it was evaluated has no row in the history; here it gets one with
    error nan, at the step of the divergence, so that it counts as a trial. One that diverged
    later keeps the evaluations before it.

    Args:
        results: from ``run_missing``.
        history: from ``load_history``, of these runs and perhaps others.

    Returns:
        Columns ``batch_size``, ``trial`` (the run's key), ``epoch``, ``step``, ``error``; the
        trials in the order of ``results``.
    """
    rows = history.reindex(columns=["key", "epoch", "step", "test_error"])
    runs = results.drop_duplicates("key")[["batch_size", "key", "diverged_epoch", "diverged_step"]]
    rows = runs.merge(rows, on="key", how="left")
    rows["epoch"] = rows["epoch"].fillna(rows["diverged_epoch"] + 1)
    rows["step"] = rows["step"].fillna(rows["diverged_step"] + 1)
    rows = rows.rename(columns={"key": "trial", "test_error": "error"})
    return rows[["batch_size", "trial", "epoch", "step", "error"]]


def steps_per_trial(measured: pd.DataFrame, goal: float | pd.Series) -> pd.Series:
    """The step at which each trial's error first reaches the goal, by trial; inf: never.

    Args:
        measured: from `measured_errors`.
        goal: one for all, or one for each row.

    Example:
        >>> rows = [("a", 100, 0.4), ("a", 200, 0.2), ("b", 100, 0.3), ("b", 200, 0.3)]
        >>> measured = pd.DataFrame(rows, columns=["trial", "step", "error"])
        >>> steps_per_trial(measured, 0.25).to_dict()
        {'a': 200.0, 'b': inf}
    """
    steps = measured["step"].astype(float).where(measured["error"] <= goal, math.inf)
    return steps.groupby(measured["trial"], sort=False).min()


def steps_by_size(measured: pd.DataFrame, goal: float) -> list[list]:
    """``[[batch size, [steps of each trial, ascending]], ...]`` of one curve, ready for JSON."""
    return [
        [int(size), sorted(map(float, steps_per_trial(part, goal)))]
        for size, part in measured.groupby("batch_size")
    ]


def scaling_curve(measured: pd.DataFrame, goal: float) -> pd.DataFrame:
    """Steps to the goal of the best trial of each batch size.

    Args:
        measured: from `measured_errors`.
        goal: error to reach, in the unit of ``error``.

    Returns:
        A row per batch size, ascending: ``batch_size``, ``value`` (steps; inf if none reached the
        goal), ``low``, ``high``, and ``best_trial``: of those that were first, the one of lowest
        error then; missing if there is none. Each batch size has draws of its own.

    Source:
        Shallue et al., arXiv 1811.03600.

    Example:
        >>> rows = [(8, "a", 100, 0.4), (8, "a", 200, 0.2), (16, "b", 100, 0.2)]
        >>> measured = pd.DataFrame(rows, columns=["batch_size", "trial", "step", "error"])
        >>> scaling_curve(measured, 0.25)[["batch_size", "value", "best_trial"]].values.tolist()
        [[8, 200.0, 'a'], [16, 100.0, 'b']]
    """
    rows = []
    for size, part in measured.groupby("batch_size"):
        fewest = steps_to_goal(part, goal, generator=np.random.default_rng([0, size]))
        first = part[(part["step"] == fewest.steps) & (part["error"] <= goal)]
        best = first.loc[first["error"].idxmin(), "trial"] if len(first) else None
        rows.append((size, *fewest[:3], best))
    return pd.DataFrame(rows, columns=["batch_size", "value", "low", "high", "best_trial"])


def regime_arrays(*, curves: Sequence[Sequence], num_resamples: int = 300) -> dict[str, np.ndarray]:
    """The three regimes of each curve: the fit to the best trials, and its intervals.

    Each resample draws, for each batch size, as many trials as there are, with replacement; takes
    their fewest steps, and fits. (The intervals of the curve are no weights for a fit: a minimum
    over trials only errs upwards, often by nothing at all and sometimes without bound.)

    Args:
        curves: each as `steps_by_size` gives it.
        num_resamples: fits of a curve, about 3 ms each.

    Returns:
        ``fits (C, 7)``, the fields of `Regimes`; ``value``, ``low``, ``high`` ``(C, 5)``, the
        ``QUANTITIES`` with their 95 % intervals; nan where the points, or those of too many
        resamples, are too few for a fit.

    Example:
        >>> halving = [[size, [640 / size, 1000 / size]] for size in (1, 2, 4, 8)]
        >>> arrays = regime_arrays(curves=[halving], num_resamples=10)
        >>> arrays["value"].round(1).tolist()  # of the flat part nothing was seen
        [[0.0, 640.0, inf, inf, inf]]
    """
    fits, estimates = [], []
    for curve in curves:
        sizes = [size for size, _ in curve]
        fewest = [
            with_resamples(steps, np.random.default_rng([0, size]), num_resamples)
            for size, steps in curve
        ]
        # many resamples have the same minima
        distinct, which = np.unique(np.stack(fewest, axis=1), axis=0, return_inverse=True)
        refits = [fit_regimes(sizes, steps) for steps in distinct]
        quantities = np.array([[getattr(fit, name) for name in QUANTITIES] for fit in refits])
        fits.append(refits[which.ravel()[0]])
        estimates.append(estimate(quantities[which.ravel()]))
    value, low, high = np.moveaxis(np.array(estimates), 1, 0)
    return {"fits": np.array(fits, dtype=float), "value": value, "low": low, "high": high}


def best_at_budgets(measured: pd.DataFrame, budgets: Mapping[str, float]) -> pd.DataFrame:
    r"""The lowest error that any trial of a batch size had by the time a budget was spent.

    .. math:: \min_{\text{trials } r} \ \min \{ \text{error}_r(s) : s \le \text{budget} \}

    Args:
        measured: from `measured_errors`. A nan error (a diverged trial) is never the best.
        budgets: how many, by unit, "step" or "epoch"; equal counts as within.

    Returns:
        A row per batch size and budget: ``batch_size``, ``budget`` (its unit), ``value`` (inf if
        no trial was evaluated by then), ``low``, ``high`` (inf if too few were); nan bounds if
        none or there is a single trial.

    Source:
        Shallue et al., arXiv 1811.03600: solution quality at a fixed number of steps, or epochs.

    Example:
        >>> rows = [(8, "a", 100, 0.4), (8, "a", 200, 0.2), (8, "b", 100, 0.3)]
        >>> measured = pd.DataFrame(rows, columns=["batch_size", "trial", "step", "error"])
        >>> best_at_budgets(measured, {"step": 150})["value"].tolist()
        [0.3]
    """
    rows = []
    for size, part in measured.groupby("batch_size"):
        for unit, budget in budgets.items():
            errors = part["error"].where(part[unit] <= budget).groupby(part["trial"]).min()
            errors = np.sort(errors.fillna(math.inf))  # so that the draws depend on no names
            best = estimate(with_resamples(errors, np.random.default_rng(int(size)), 1000))
            if len(errors) == 1 or math.isinf(best.value):
                best = Estimate(best.value, math.nan, math.nan)
            rows.append((int(size), unit, *map(float, best)))
    return pd.DataFrame(rows, columns=["batch_size", "budget", "value", "low", "high"])
