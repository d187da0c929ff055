"""When a loss curve has converged, and how many steps the best of several trials needs."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from hardtrain.errors import ParameterError, unknown_name
from hardtrain.statistics import CONFIDENCE, finite_values

VERSION = 2  # raise it when a change here changes what a figure shows


class StepsToGoal(NamedTuple):
    """Steps of the best trial (inf: none arrived) and what the next search will not exceed; the
    numbers of completed, arrived and infeasible trials; which was the best (``None``: none)."""

    steps: float
    next_below: float
    num_trials: int
    num_reached: int
    num_infeasible: int
    best_trial: object


def convergence_epoch(
    losses: ArrayLike,
    *,
    reading: str = "relative",
    tolerance: float = 0.01,
    threshold: float | None = None,
) -> int:
    r"""The epoch, counted from 1, at which a loss curve has converged.

    .. math:: \text{relative:}\ \min\{t : L_t \le L_{\min} + \tau (L_1 - L_{\min})\}, \quad
              \text{threshold:}\ \min\{t : L_t \le \theta\}, \quad
              \text{argmin:}\ \min\{t : L_t = L_{\min}\}

    Args:
        losses: shape ``(E,)``, the training loss after each epoch, finite.
        reading: ``"relative"``, ``"threshold"`` or ``"argmin"``; each ignores the others' argument.
        tolerance: ``τ`` in [0, 1), share of the run's own total decrease.
        threshold: ``θ``, needed by ``"threshold"``.

    Returns:
        Epoch in 1..E; E if a threshold is never reached.

    Raises:
        ParameterError: no losses, a loss that is not finite, an unknown reading, ``tolerance``
            outside [0, 1), or ``"threshold"`` without one.

    Source:
        Sahayam et al. print such epochs (tables 3 to 5) without a rule, hence three readings.

    Example:
        >>> convergence_epoch([2.0, 1.0, 0.509, 0.5, 0.51])
        3
        >>> convergence_epoch([2.0, 1.0, 0.509, 0.5, 0.51], reading="argmin")
        4
    """
    losses = finite_values(losses, "losses")
    if reading == "relative":
        if not 0 <= tolerance < 1:
            raise ParameterError(f"tolerance must be in [0, 1); got {tolerance}")
        limit = losses.min() + tolerance * (losses[0] - losses.min())
    elif reading == "threshold":
        if threshold is None or not math.isfinite(threshold):
            raise ParameterError(f"reading 'threshold' needs a finite threshold; got {threshold}")
        limit = threshold
    elif reading == "argmin":
        limit = losses.min()
    else:
        raise unknown_name("reading", reading, ("relative", "threshold", "argmin"))
    reached = losses <= limit
    return int(reached.argmax()) + 1 if reached.any() else len(losses)


def steps_to_goal(measurements: pd.DataFrame, goal: float, *, strict: bool = True) -> StepsToGoal:
    r"""Steps until the error is first below the goal, for the best of several trials.

    .. math:: \min_{\text{trials } r} \ \min \{ s : \text{error}_r(s) < \text{goal} \}

    A minimum says nothing of trials that were not made. What the trials do say, by their ranks
    alone, is where the next search of as many, n, would end: in one case of two with fewer steps,
    and with 95 % probability with no more than ``next_below``, the k-th fewest steps of ours, where
    :math:`\prod_{i=0}^{k-1} (n - i) / (2 n - i) \le 0.05` (k = 4 for 8 trials, 5 for 32).

    Args:
        measurements: one row per evaluation, columns ``trial``, ``step`` (> 0) and ``error``, in
            any order. A trial with a nan error diverged: it is infeasible, and left out.
        goal: error to get below, in the unit of ``error``.
        strict: false counts an error that equals the goal, too.

    Returns:
        `StepsToGoal`; of equal trials the lower one is the best. ``steps`` is inf when no trial
        gets there, and ``next_below`` when too few do.

    Raises:
        ParameterError: a column or all rows missing, a trial without a name, a step not above 0,
            or ``goal`` nan.

    Source:
        Shallue et al., arXiv 1811.03600, and their repository: completed trials, below the goal,
        ties to the lower number. The statement on the next search is ours.

    Example:
        >>> rows = [("a", 100, 0.4), ("a", 200, 0.2), ("b", 100, 0.3), ("b", 200, 0.3)]
        >>> found = steps_to_goal(pd.DataFrame(rows, columns=["trial", "step", "error"]), 0.25)
        >>> found.steps, found.best_trial, found.num_reached
        (200.0, 'a', 1)
    """
    missing = [name for name in ("trial", "step", "error") if name not in measurements]
    if missing:
        raise ParameterError(f"measurements lack {missing}; got {list(measurements)}")
    if measurements.empty or measurements["trial"].isna().any():
        raise ParameterError("measurements need at least one row, and a trial in each")
    if math.isnan(goal):
        raise ParameterError(f"goal must be a number; got {goal}")
    steps, errors = measurements["step"].astype(float), measurements["error"]
    if not (np.isfinite(steps) & (steps > 0)).all():
        raise ParameterError(f"steps must be finite and above 0; got {steps.min()}")
    there = errors < goal if strict else errors <= goal
    by_trial = steps.where(there, math.inf).groupby(measurements["trial"]).min()
    infeasible = errors.isna().groupby(measurements["trial"]).any()
    completed = by_trial[~infeasible]
    reached = completed[np.isfinite(completed)]
    return StepsToGoal(
        float(reached.min()) if len(reached) else math.inf,
        _not_exceeded(completed.to_numpy()),
        len(completed),
        len(reached),
        int(infeasible.sum()),
        reached.idxmin() if len(reached) else None,
    )


def _not_exceeded(values: np.ndarray) -> float:
    """What the lowest of as many further values does not exceed, with the probability of all our
    intervals: the k-th lowest, since the k lowest of both together are all further ones with the
    product's probability."""
    chance, num = 1.0, len(values)
    for below, value in enumerate(np.sort(values)):
        chance *= (num - below) / (2 * num - below)
        if chance <= 1 - CONFIDENCE:
            return float(value)
    return math.inf
