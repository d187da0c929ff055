"""Steps to a goal error against batch size, its regimes with intervals, and fixed budgets."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from hardtrain import checks
from hardtrain.errors import ParameterError
from hardtrain.goals import steps_to_goal
from hardtrain.papers.data_parallelism.regimes import fit_regimes

QUANTITIES = ("min_steps", "min_samples", "critical_batch_size", "perfect_until", "flat_from")


class BestError(NamedTuple):
    """Lowest error of any trial (nan: none evaluated), bootstrap bounds, trials, evaluated ones."""

    error: float
    low: float
    high: float
    num_trials: int
    num_evaluated: int


def measured_errors(
    results: pd.DataFrame, history: pd.DataFrame, *, error: str = "test_error"
) -> pd.DataFrame:
    """Runs as trials, one row per evaluation, as the functions below take them.

    A run that diverged before it was evaluated has no row in the history; here it gets one with
    error nan, at the step of the divergence, so that it counts as a trial. One that diverged
    later keeps the evaluations before it.

    Args:
        results: from ``run_missing``.
        history: from ``load_history(results)``.
        error: column of the history.

    Returns:
        Columns ``batch_size``, ``trial`` (the run's key), ``epoch``, ``step``, ``error``; the
        trials in the order of ``results``.

    Raises:
        ParameterError: a column is missing.
    """
    _require(results, "results", "key", "batch_size", "diverged_epoch", "diverged_step")
    if len(history):
        _require(history, "history", "key", "epoch", "step", error)
    runs = results.drop_duplicates("key")
    names = {"key": "trial", "epoch": "epoch", "step": "step", error: "error"}
    rows = history.reindex(columns=list(names)).rename(columns=names)
    ended = runs[~runs["key"].isin(rows["trial"])]
    ended = pd.DataFrame(
        {"trial": ended["key"], "epoch": ended["diverged_epoch"] + 1,
         "step": ended["diverged_step"] + 1, "error": math.nan}
    )  # fmt: skip
    rows = pd.concat([part for part in (rows, ended) if len(part)])
    found = runs[["key", "batch_size"]].rename(columns={"key": "trial"})
    return found.merge(rows, on="trial")[["batch_size", "trial", "epoch", "step", "error"]]


def steps_per_trial(measurements: pd.DataFrame, goal: float) -> pd.Series:
    """The step at which each trial's error first reaches the goal, by trial; inf: never.

    Args:
        measurements, goal: as for ``statistics.steps_to_goal``, whose ``steps`` is the minimum.

    Example:
        >>> rows = [("a", 100, 0.4), ("a", 200, 0.2), ("b", 100, 0.3), ("b", 200, 0.3)]
        >>> measured = pd.DataFrame(rows, columns=["trial", "step", "error"])
        >>> steps_per_trial(measured, 0.25).to_dict()
        {'a': 200.0, 'b': inf}
    """
    steps_to_goal(measurements, goal)  # checks both
    steps = measurements["step"].astype(float).where(measurements["error"] <= goal, math.inf)
    return steps.groupby(measurements["trial"], sort=False).min()


def scaling_curve(
    measurements: pd.DataFrame,
    goal: float,
    *,
    seed: int = 0,
    num_resamples: int = 1000,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Steps to the goal of the best trial of each batch size, with its bootstrap interval.

    Args:
        measurements: columns ``batch_size``, ``trial``, ``step``, ``error``.
        goal: error to reach, in the unit of ``error``.
        seed: of the bootstrap; each batch size has draws of its own.
        num_resamples, confidence: as in ``statistics.steps_to_goal``.

    Returns:
        A row per batch size, ascending: ``batch_size``, ``steps``, ``low``, ``high``,
        ``num_trials``, ``num_reached`` and ``best_trial``: of those that were first, the one of
        lowest error then; ``None`` if none reached the goal (``steps`` inf).

    Raises:
        ParameterError: as ``statistics.steps_to_goal``, or a batch size that is not above 0.

    Source:
        Shallue et al., arXiv 1811.03600.

    Example:
        >>> rows = [(8, "a", 100, 0.4), (8, "a", 200, 0.2), (16, "b", 100, 0.2), (32, "c", 90, 0.3)]
        >>> measured = pd.DataFrame(rows, columns=["batch_size", "trial", "step", "error"])
        >>> scaling_curve(measured, 0.25)[["batch_size", "steps", "best_trial"]].values.tolist()
        [[8, 200.0, 'a'], [16, 100.0, 'b'], [32, inf, None]]
    """
    _check_batch_sizes(measurements)
    rows = []
    for batch_size, part in measurements.groupby("batch_size"):
        generator = _generator(seed, batch_size)
        found = steps_to_goal(
            part, goal, num_resamples=num_resamples, generator=generator, confidence=confidence
        )
        first = part[(part["step"] == found.steps) & (part["error"] <= goal)]
        best = first.loc[first["error"].idxmin(), "trial"] if len(first) else None
        rows.append({"batch_size": batch_size} | found._asdict() | {"best_trial": best})
    best = pd.Series([row["best_trial"] for row in rows], dtype=object)  # keeps None
    return pd.DataFrame(rows).assign(best_trial=best)


def regime_table(
    measurements: pd.DataFrame,
    goal: float,
    *,
    seed: int = 0,
    num_resamples: int = 500,
    confidence: float = 0.95,
    **settings,
) -> pd.DataFrame:
    """The fit to the best trials, with percentile bootstrap intervals over trials.

    Each resample draws, for each batch size, as many trials as there are, with replacement; takes
    their fewest steps, and fits. (The intervals of the curve are no weights for a fit: a minimum
    over trials only errs upwards, often by nothing at all and sometimes without bound.)

    Args:
        measurements, goal, seed, confidence: as in `scaling_curve`.
        num_resamples: fits, about 3 ms each.
        settings: keyword arguments of `fit_regimes`.

    Returns:
        Rows ``QUANTITIES``, columns ``value``, ``low``, ``high``; nan where the points, or those
        of too many resamples, are too few for a fit.

    Raises:
        ParameterError: as `scaling_curve` and `fit_regimes`.
    """
    _check_batch_sizes(measurements)
    _check_bootstrap(num_resamples, confidence)
    trials = {
        # sorted, so that the order of the rows does not matter
        batch_size: np.sort(steps_per_trial(part, goal).to_numpy())
        for batch_size, part in measurements.groupby("batch_size")
    }
    sizes = list(trials)
    fitted = fit_regimes(sizes, [steps[0] for steps in trials.values()], **settings)
    best = [
        _resampled(steps, num_resamples, _generator(seed, batch_size))
        for batch_size, steps in trials.items()
    ]
    # many resamples have the same minima
    distinct, inverse = np.unique(np.stack(best, axis=1), axis=0, return_inverse=True)
    fits = [fit_regimes(sizes, steps, **settings) for steps in distinct]
    drawn = np.array([[getattr(fit, name) for name in QUANTITIES] for fit in fits])
    low, high = _percentiles(drawn[inverse.ravel()], confidence)
    value = [getattr(fitted, name) for name in QUANTITIES]
    return pd.DataFrame({"value": value, "low": low, "high": high}, index=list(QUANTITIES))


def best_at_budget(
    measurements: pd.DataFrame,
    budget: float,
    *,
    column: str = "step",
    seed: int = 0,
    num_resamples: int = 1000,
    confidence: float = 0.95,
) -> BestError:
    r"""The lowest error that any trial had by the time a budget was spent.

    .. math:: \min_{\text{trials } r} \ \min \{ \text{error}_r(s) : s \le \text{budget} \}

    with its percentile bootstrap interval over trials, which reaches upwards, as that of
    ``statistics.steps_to_goal``.

    Args:
        measurements: columns ``trial``, ``error`` and ``column``; of one batch size, or else the
            best is over all of them. A nan error (a diverged trial) is never the best.
        budget: in the unit of ``column``; equal counts as within.
        column: what is spent: "step", or "epoch" (finished ones, fractions count).
        seed, num_resamples, confidence: of the bootstrap.

    Returns:
        ``BestError(error, low, high, num_trials, num_evaluated)``. ``error`` is nan if no trial
        was evaluated by then; ``high`` inf if too few were. A single trial has nan bounds.

    Raises:
        ParameterError: a column or all rows missing, a trial without a name, a nan in ``column``,
            or another argument outside what is allowed.

    Source:
        Shallue et al., arXiv 1811.03600: solution quality at a fixed number of steps, or epochs.

    Example:
        >>> rows = [("a", 100, 0.4), ("a", 200, 0.2), ("b", 100, 0.3), ("b", 200, 0.3)]
        >>> measured = pd.DataFrame(rows, columns=["trial", "step", "error"])
        >>> best_at_budget(measured, 150).error, best_at_budget(measured, 200).error
        (0.3, 0.2)
    """
    _require(measurements, "measurements", "trial", column, "error")
    if measurements.empty or measurements["trial"].isna().any():
        raise ParameterError("measurements need at least one row, and a trial in each")
    if measurements[column].isna().any():
        raise ParameterError(f"measurements have a nan in {column!r}")
    if not budget > 0:
        raise ParameterError(f"budget must be above 0; got {budget}")
    checks.integer("seed", seed, 0)
    _check_bootstrap(num_resamples, confidence)
    errors = measurements["error"].astype(float).where(measurements[column] <= budget)
    errors = errors.fillna(math.inf).groupby(measurements["trial"]).min().to_numpy()
    errors = np.sort(errors)  # so that the draws depend on no names
    n, evaluated = len(errors), int(np.isfinite(errors).sum())
    low = high = math.nan
    if not evaluated:
        return BestError(math.nan, low, high, n, 0)
    if n > 1:
        drawn = _resampled(errors, num_resamples, np.random.default_rng(seed))
        low, high = map(float, _percentiles(drawn, confidence))
    return BestError(float(errors[0]), low, high, n, evaluated)


# --- small steps ---------------------------------------------------------------------------------


def _resampled(values: np.ndarray, num_resamples: int, generator) -> np.ndarray:
    drawn = generator.integers(0, len(values), (num_resamples, len(values)))
    return values[drawn].min(axis=1)


def _percentiles(values: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Order statistics along the first axis, since there may be inf; nan comes last, behind it."""
    values = np.sort(values, axis=0)
    tail, last = (1 - confidence) / 2, len(values) - 1
    low, high = values[math.floor(tail * last)], values[math.ceil((1 - tail) * last)]
    return np.where(np.isnan(high), high, low), high


def _generator(seed: int, batch_size: float) -> np.random.Generator:
    checks.integer("seed", seed, 0)
    return np.random.default_rng([seed, int(batch_size)])


def _require(frame: pd.DataFrame, name: str, *columns: str) -> None:
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ParameterError(f"{name} lack {missing}; got {list(frame)}")


def _check_batch_sizes(measurements: pd.DataFrame) -> None:
    _require(measurements, "measurements", "batch_size")
    if measurements.empty:
        raise ParameterError("measurements need at least one row")
    sizes = measurements["batch_size"]
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ParameterError(f"batch sizes must be finite and above 0; got {sizes.unique()}")


def _check_bootstrap(num_resamples: int, confidence: float) -> None:
    checks.integer("num_resamples", num_resamples, 1)
    if not 0 < checks.number("confidence", confidence) < 1:
        raise ParameterError(f"confidence must be in (0, 1); got {confidence}")
