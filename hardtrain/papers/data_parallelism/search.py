"""Quasi-random search on log scales, in a space that follows its optimum."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats.qmc import Halton

from hardtrain import checks
from hardtrain.errors import ParameterError, unknown_name

Space = Mapping[str, tuple[float, float]]


class Search(NamedTuple):
    """What a search found.

    ``trials``: a row per trial: its point, ``round`` (from 0) and ``steps`` (inf: goal not
    reached). ``best``: the best point, ``None`` if no trial reached the goal. ``steps``: its steps.
    ``inside``: whether it lies inside the last space, away from every edge that could be moved.
    ``space``: the last one that was searched.
    """

    trials: pd.DataFrame
    best: dict[str, float] | None
    steps: float
    inside: bool
    space: dict[str, tuple[float, float]]


def quasi_random(
    space: Space, num_trials: int, *, seed: int, skip: int = 0
) -> list[dict[str, float]]:
    r"""Points of a scrambled Halton sequence, spread evenly over a space in logs.

    .. math:: x_{k, d} = l_d \, (h_d / l_d)^{u_{k, d}}, \quad u_k \in [0, 1)^D

    Args:
        space: name -> (low, high), 0 < low < high. The order of the names matters.
        num_trials: how many points, >= 1.
        seed: of the scrambling.
        skip: points of the sequence to leave out at its start, >= 0.

    Returns:
        ``num_trials`` dicts, name -> value in [low, high], rounded to four significant digits:
        a point is the same number everywhere, and so is the key of a run made from it. More
        trials of the same space and seed begin with the same points.

    Raises:
        ParameterError: bounds that are not 0 < low < high, or a count or seed out of range.

    Source:
        Shallue et al., arXiv 1811.03600: quasi-random search, log-uniform ranges. Halton's
        sequence, other than Sobol's, is even for any number of points.

    Example:
        >>> for point in quasi_random({"lr": (1e-3, 1.0)}, 3, seed=0):
        ...     print(point)
        {'lr': 0.1323}
        {'lr': 0.004185}
        {'lr': 0.7442}
    """
    space = _checked_space(space)
    checks.integer("num_trials", num_trials, 1)
    checks.integer("skip", skip, 0)
    checks.integer("seed", seed, 0)
    sequence = Halton(len(space), scramble=True, seed=np.random.default_rng(seed))
    shares = sequence.random(skip + num_trials)[skip:].tolist()
    return [
        {
            name: _rounded(low * (high / low) ** share, low, high)
            for (name, (low, high)), share in zip(space.items(), point, strict=True)
        }
        for point in shares
    ]


def recentred(
    space: Space,
    best: Mapping[str, float],
    *,
    margin: float = 0.1,
    upper: Mapping[str, float] | None = None,
) -> dict[str, tuple[float, float]]:
    r"""The space, moved to have the best point in its middle wherever that lies at an edge.

    .. math:: p_d = \frac{\log (b_d / l_d)}{\log (h_d / l_d)}; \quad
              (l_d, h_d) \to f_d \, (l_d, h_d), \quad
              f_d = \min\Big(\frac{b_d}{\sqrt{l_d h_d}}, \frac{u_d}{h_d}\Big)
              \quad \text{if } p_d \le m \text{ or } p_d \ge 1 - m

    The width in logs stays. Dimensions in which the best point lies further inside stay, and so
    does one whose upper edge would have to move but is at ``upper`` already.

    Args:
        space: name -> (low, high), 0 < low < high.
        best: name -> value > 0, for every name of the space; other names are ignored.
        margin: ``m`` in [0, 0.5), fraction of the width in logs that counts as the edge.
        upper: name -> ``u``, the largest value that makes sense, such as 1 for 1 - momentum.

    Raises:
        ParameterError: bad bounds or margin, a name of the space missing in ``best``, a name in
            ``upper`` that is not one of the space, or ``upper`` below the space's own bound.

    Example:
        >>> space = {"lr": (0.01, 1.0), "one_minus_momentum": (0.01, 1.0)}
        >>> best = {"lr": 0.9, "one_minus_momentum": 0.9}
        >>> moved = recentred(space, best, upper={"one_minus_momentum": 1.0})
        >>> {name: tuple(round(bound, 6) for bound in bounds) for name, bounds in moved.items()}
        {'lr': (0.09, 9.0), 'one_minus_momentum': (0.01, 1.0)}
    """
    space = _checked_space(space)
    upper = _checked_upper(space, upper)
    margin = checks.number("margin", margin, 0, below=0.5)
    missing = [name for name in space if name not in best]
    if missing:
        raise ParameterError(f"best lacks {missing}; got {list(best)}")
    moved = {}
    for name, (low, high) in space.items():
        value = best[name].item() if isinstance(best[name], np.generic) else best[name]
        value = checks.number(f"best[{name!r}]", value, 0, above=True)
        factor = 1.0
        if abs(_position(value, low, high) - 0.5) >= 0.5 - margin:
            limit = upper.get(name, math.inf)
            factor = min(value / math.sqrt(low) / math.sqrt(high), limit / high)
            # not an ulp off the limit: above is not allowed, below would be moved again
            high = limit if factor == limit / high else min(high * factor, limit)
        moved[name] = (low * factor, high)
    return moved


def search(
    space: Space,
    num_trials: int,
    evaluate: Callable[[list[dict[str, float]]], Sequence[float]],
    *,
    seed: int,
    max_rounds: int = 4,
    margin: float = 0.1,
    upper: Mapping[str, float] | None = None,
) -> Search:
    """Draw trials, evaluate them, move the space onto a best point at its edge, and again.

    A round draws the next ``num_trials`` points of the sequence. The best trial of all rounds
    counts; of several with equal steps (steps come in evaluation intervals, so ties are common)
    the one furthest inside the space, so that the space moves only if all of them are at its edge.
    The search ends when the best is inside, after ``max_rounds``, or, if no trial of the first
    round reached the goal, at once: there is nothing to move the space to.

    A search of several rounds has more trials than one of a single round, and a minimum over more
    trials is lower; ``trials["round"]`` lets a comparison use equally many.

    Args:
        space: name -> (low, high), 0 < low < high; no name may be "round" or "steps".
        num_trials: in each round, >= 1.
        evaluate: takes the points of a round and gives the steps to the goal of each, above 0;
            inf where it was not reached.
        seed: of the points.
        max_rounds: >= 1.
        margin, upper: as in `recentred`.

    Returns:
        `Search`. Without a trial that reached the goal ``best`` is ``None``, ``steps`` inf and
        ``inside`` false.

    Raises:
        ParameterError: bad arguments, or ``evaluate`` gives another number of values, or a value
            that is nan or not above 0.

    Source:
        Shallue et al., arXiv 1811.03600: spaces re-centred when the optimum is at their edge. How
        they define the edge and treat ties we do not know; ``margin`` and the rule above are ours.

    Example:
        >>> def steps(points):
        ...     return [100 + 50 * abs(math.log10(point["lr"] / 0.3)) for point in points]
        >>> found = search({"lr": (1e-4, 1e-2)}, 16, steps, seed=0)
        >>> found.inside, 0.2 < found.best["lr"] < 0.4
        (True, True)
    """
    space = _checked_space(space)
    taken = {"round", "steps"} & set(space)
    if taken:
        raise ParameterError(f"space has a name that the table of trials needs: {sorted(taken)}")
    checks.integer("max_rounds", max_rounds, 1)
    checks.number("margin", margin, 0, below=0.5)
    upper = _checked_upper(space, upper)
    rows, best, inside = [], None, False
    for number in range(max_rounds):
        points = quasi_random(space, num_trials, seed=seed, skip=number * num_trials)
        steps = _checked_steps(evaluate([dict(point) for point in points]), num_trials)
        rows += [
            point | {"round": number, "steps": value}
            for point, value in zip(points, steps, strict=True)
        ]
        fewest = min(row["steps"] for row in rows)
        if fewest == math.inf:
            break
        tied = [row for row in rows if row["steps"] == fewest]
        best = max(tied, key=lambda row: _depth(space, row, upper))
        moved = recentred(space, best, margin=margin, upper=upper)
        inside = moved == space
        if inside or number == max_rounds - 1:
            break
        space = moved
    point = None if best is None else {name: best[name] for name in space}
    return Search(pd.DataFrame(rows), point, fewest, inside, space)


def _depth(space: Space, point: Mapping[str, float], upper: Mapping[str, float]) -> float:
    """Distance to the nearest edge that can be moved, as a fraction of the width in logs."""
    distances = []
    for name, (low, high) in space.items():
        position = _position(point[name], low, high)
        at_limit = high == upper.get(name, math.inf)
        distances.append(position if at_limit else min(position, 1 - position))
    return min(distances)


def _position(value: float, low: float, high: float) -> float:
    """Where ``value`` lies between the bounds in logs: 0 at ``low``, 1 at ``high``."""
    return math.log(value / low) / math.log(high / low)


def _rounded(value: float, low: float, high: float) -> float:
    return min(max(float(f"{value:.4g}"), low), high)


def _checked_space(space: Space) -> dict[str, tuple[float, float]]:
    if not isinstance(space, Mapping) or not space:
        raise ParameterError(f"space must map at least one name to (low, high); got {space!r}")
    checked = {}
    for name, bounds in space.items():
        if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
            raise ParameterError(f"space[{name!r}] must be (low, high); got {bounds!r}")
        low, high = (checks.number(f"space[{name!r}]", bound, 0, above=True) for bound in bounds)
        if low >= high:
            raise ParameterError(f"space[{name!r}]: low must be below high; got {bounds!r}")
        checked[name] = (low, high)
    return checked


def _checked_upper(space: Space, upper: Mapping[str, float] | None) -> dict[str, float]:
    upper = dict(upper or {})
    for name, limit in upper.items():
        if name not in space:
            raise unknown_name("name in upper", name, space)
        upper[name] = checks.number(f"upper[{name!r}]", limit, 0, above=True)
        if limit < space[name][1]:
            raise ParameterError(f"upper[{name!r}] = {limit} is below the space {space[name]}")
    return upper


def _checked_steps(steps: Sequence[float], num_trials: int) -> list[float]:
    steps = np.asarray(steps, dtype=float)
    if steps.shape != (num_trials,):
        raise ParameterError(
            f"evaluate must give one number for each of {num_trials} points; got {steps.shape}"
        )
    if not (steps > 0).all():
        raise ParameterError(f"steps must be above 0, or inf; got {steps[~(steps > 0)][0]}")
    return steps.tolist()
