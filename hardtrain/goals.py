"""When a loss curve has converged, and how many steps the best of several trials needs."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from hardtrain.errors import ParameterError, unknown_name
from hardtrain.statistics import finite_values, percentile_bounds

VERSION = 1  # raise it when a change here changes what a figure shows
NUM_RESAMPLES = 1000  # of the bootstrap


class StepsToGoal(NamedTuple):
    """Steps of the best trial (inf: none arrived), bootstrap bounds, trials and arrivals."""

    steps: float
    low: float
    high: float
    num_trials: int
    num_reached: int


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


def steps_to_goal(
    measurements: pd.DataFrame, goal: float, *, generator: np.random.Generator | None = None
) -> StepsToGoal:
    r"""Steps until the error first reaches the goal, for the best of several trials.

    .. math:: \min_{\text{trials } r} \ \min \{ s : \text{error}_r(s) \le \text{goal} \}

    The 95 % interval is the percentile bootstrap over trials. A minimum cannot fall below the best
    trial at hand, so the interval reaches upwards: it says how much hangs on the luckiest trials.

    Args:
        measurements: one row per evaluation, columns ``trial``, ``step`` (> 0) and ``error``, in
            any order; a nan error (a diverged trial) does not reach any goal.
        goal: error to reach, in the unit of ``error``; equal counts as reached.
        generator: draws the bootstrap samples; ``None`` leaves the bounds nan.

    Returns:
        ``StepsToGoal(steps, low, high, num_trials, num_reached)``. ``steps`` is inf when no trial
        gets there, and so may ``high`` be. A single trial has nan bounds.

    Raises:
        ParameterError: a column or all rows missing, a trial without a name, a step not above 0,
            or ``goal`` nan.

    Source:
        Shallue et al., arXiv 1811.03600: steps to a goal out-of-sample error.

    Example:
        >>> rows = [("a", 100, 0.4), ("a", 200, 0.2), ("b", 100, 0.3), ("b", 200, 0.3)]
        >>> steps_to_goal(pd.DataFrame(rows, columns=["trial", "step", "error"]), 0.25).steps
        200.0
    """
    missing = [name for name in ("trial", "step", "error") if name not in measurements]
    if missing:
        raise ParameterError(f"measurements lack {missing}; got {list(measurements)}")
    if measurements.empty or measurements["trial"].isna().any():
        raise ParameterError("measurements need at least one row, and a trial in each")
    if math.isnan(goal):
        raise ParameterError(f"goal must be a number; got {goal}")
    steps = measurements["step"].astype(float)
    if not (np.isfinite(steps) & (steps > 0)).all():
        raise ParameterError(f"steps must be finite and above 0; got {steps.min()}")
    steps = steps.where(measurements["error"] <= goal, math.inf)
    per_trial = steps.groupby(measurements["trial"]).min().to_numpy()
    n, reached = len(per_trial), int(np.isfinite(per_trial).sum())
    low = high = math.nan
    if generator is not None and n > 1:
        drawn = generator.integers(0, n, (NUM_RESAMPLES, n))
        low, high = map(float, percentile_bounds(per_trial[drawn].min(axis=1)))
    return StepsToGoal(float(per_trial.min()), low, high, n, reached)
