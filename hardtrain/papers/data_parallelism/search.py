"""Quasi-random search on log scales, in a space that follows its optimum."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats.qmc import Halton

from hardtrain import checks
from hardtrain.errors import ParameterError, unknown_name

Space = Mapping[str, tuple[float, float]]
Point = dict[str, float]
MARGIN = 0.1  # m: fraction of the width in logs that counts as an edge


class Search(NamedTuple):
    """What a search found.

    ``trials``: a row per trial: its point, ``round`` (from 0) and ``steps`` (inf: goal not
    reached). ``best``: the best point, ``None`` if no trial reached the goal. ``steps``: its steps.
    ``inside``: whether it lies inside the last space, away from every edge that could be moved.
    ``space``: the last one that was searched.
    """

    trials: pd.DataFrame
    best: Point | None
    steps: float
    inside: bool
    space: dict[str, tuple[float, float]]


def quasi_random(space: Space, num_trials: int, *, seed: int, skip: int = 0) -> list[Point]:
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
    checks.integer("seed", seed, 0)
    sequence = Halton(len(space), scramble=True, seed=np.random.default_rng(seed))
    points = []
    for shares in sequence.random(skip + num_trials)[skip:].tolist():
        places = zip(space.items(), shares, strict=True)
        points.append({name: _value(share, *bounds) for (name, bounds), share in places})
    return points


def recentred(
    space: Space, best: Mapping[str, float], *, upper: Mapping[str, float] | None = None
) -> dict[str, tuple[float, float]]:
    r"""The space, moved to have the best point in its middle wherever that lies at an edge.

    .. math:: p_d = \frac{\log (b_d / l_d)}{\log (h_d / l_d)}; \quad
              (l_d, h_d) \to f_d \, (l_d, h_d), \quad
              f_d = \min\Big(\frac{b_d}{\sqrt{l_d h_d}}, \frac{u_d}{h_d}\Big)
              \quad \text{if } p_d \le m \text{ or } p_d \ge 1 - m

    with ``m = MARGIN``. The width in logs stays. Dimensions in which the best point lies further
    inside stay, and so does one whose upper edge would have to move but is at ``upper`` already.

    Args:
        space: name -> (low, high), 0 < low < high.
        best: name -> value > 0, for every name of the space; other names are ignored.
        upper: name -> ``u``, the largest value that makes sense, such as 1 for 1 - momentum.

    Raises:
        ParameterError: bad bounds, a name in ``upper`` that is not one of the space, or ``upper``
            below the space's own bound.

    Example:
        >>> space = {"lr": (0.01, 1.0), "one_minus_momentum": (0.01, 1.0)}
        >>> best = {"lr": 0.9, "one_minus_momentum": 0.9}
        >>> moved = recentred(space, best, upper={"one_minus_momentum": 1.0})
        >>> {name: tuple(round(bound, 6) for bound in bounds) for name, bounds in moved.items()}
        {'lr': (0.09, 9.0), 'one_minus_momentum': (0.01, 1.0)}
    """
    space = _checked_space(space, upper)
    moved = {}
    for name, (low, high) in space.items():
        value = float(best[name])
        factor = 1.0
        if abs(_position(value, low, high) - 0.5) >= 0.5 - MARGIN:
            limit = (upper or {}).get(name, math.inf)
            factor = min(value / math.sqrt(low) / math.sqrt(high), limit / high)
            # not an ulp off the limit: above is not allowed, below would be moved again
            high = limit if factor == limit / high else min(high * factor, limit)
        moved[name] = (low * factor, high)
    return moved


def search(
    space: Space,
    num_trials: int,
    evaluate: Callable[[list[Point]], Sequence[float]],
    *,
    seed: int,
    max_rounds: int = 4,
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
        upper: as in `recentred`.

    Returns:
        `Search`. Without a trial that reached the goal ``best`` is ``None``, ``steps`` inf and
        ``inside`` false.

    Raises:
        ParameterError: bad arguments, or ``evaluate`` gives another number of values, or a value
            that is nan or not above 0.

    Source:
        Shallue et al., arXiv 1811.03600: spaces re-centred when the optimum is at their edge. How
        they define the edge and treat ties we do not know; ``MARGIN`` and the rule above are ours.

    Example:
        >>> def steps(points):
        ...     return [100 + 50 * abs(math.log10(point["lr"] / 0.3)) for point in points]
        >>> result = search({"lr": (1e-4, 1e-2)}, 16, steps, seed=0)
        >>> result.inside, 0.2 < result.best["lr"] < 0.4
        (True, True)
    """
    _checked_space(space, upper)

    def steps_of(requests):
        return evaluate([point for _, _, point in requests])

    rules = {"seeds": {"": seed}, "max_rounds": max_rounds, "upper": upper}
    return search_together({"": space}, num_trials, steps_of, **rules)[""]


def search_together(
    spaces: Mapping[Hashable, Space],
    num_trials: int,
    evaluate: Callable[[list[tuple[Hashable, int, dict[str, float]]]], Sequence[float]],
    *,
    seeds: Mapping[Hashable, int],
    max_rounds: int = 4,
    upper: Mapping[str, float] | None = None,
) -> dict[Hashable, Search]:
    """Many searches side by side: each round of all of them is evaluated at once.

    Each is a `search`, and finds what it would find alone.

    Args:
        spaces: of each search, by its name.
        num_trials: of a round.
        evaluate: takes a list of (name, number of the trial in its search, point), gives the
            steps of each.
        seeds: of each search.
        max_rounds, upper: of all of them; ``upper`` may hold names that a space lacks.

    Example:
        >>> def steps(requests):
        ...     return [100 + 50 * abs(math.log10(point["lr"])) for _, _, point in requests]
        >>> spaces = {"low": {"lr": (1e-3, 1e-2)}, "around": {"lr": (0.03, 30.0)}}
        >>> searches = search_together(spaces, 8, steps, seeds={"low": 0, "around": 0})
        >>> {name: len(result.trials) for name, result in searches.items()}
        {'low': 16, 'around': 8}
    """
    checks.integer("max_rounds", max_rounds, 1)
    taken = {"round", "steps"} & set().union(*spaces.values())
    if taken:
        raise ParameterError(f"space has a name that the table of trials needs: {sorted(taken)}")
    rows: dict[Hashable, list[dict]] = {name: [] for name in spaces}
    searches: dict[Hashable, Search] = {}
    ongoing = {name: _checked_space(space) for name, space in spaces.items()}
    for number in range(max_rounds):
        first = number * num_trials
        requests = [
            (name, first + i, point)
            for name, space in ongoing.items()
            for i, point in enumerate(quasi_random(space, num_trials, seed=seeds[name], skip=first))
        ]
        copies = [(name, trial, dict(point)) for name, trial, point in requests]
        steps = np.asarray(evaluate(copies), dtype=float)
        if steps.shape != (len(requests),) or not (steps > 0).all():
            num = len(requests)
            raise ParameterError(f"evaluate must give {num} numbers above 0 or inf; got {steps}")
        for (name, _, point), value in zip(requests, steps.tolist(), strict=True):
            rows[name].append(point | {"round": number, "steps": value})
        moved = {}
        for name, space in ongoing.items():
            limits = {key: limit for key, limit in (upper or {}).items() if key in space}
            searches[name], moved[name] = _judged(space, rows[name], limits)
        ongoing = {name: space for name, space in moved.items() if space != ongoing[name]}
        if not ongoing:
            break
    return searches


def _judged(space: Space, rows: list[dict], upper: Mapping[str, float]) -> tuple[Search, Space]:
    """What a search found so far, and the space of its next round: the same if it is over."""
    trials, fewest = pd.DataFrame(rows), min(row["steps"] for row in rows)
    if fewest == math.inf:
        return Search(trials, None, fewest, False, space), space
    tied = [row for row in rows if row["steps"] == fewest]
    deepest = max(tied, key=lambda row: _depth(space, row, upper))
    best = {name: deepest[name] for name in space}
    moved = recentred(space, best, upper=upper)
    return Search(trials, best, fewest, moved == space, space), moved


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


def _value(share: float, low: float, high: float) -> float:
    """The inverse of `_position`, rounded."""
    return min(max(float(f"{low * (high / low) ** share:.4g}"), low), high)


def _checked_space(
    space: Space, upper: Mapping[str, float] | None = None
) -> dict[str, tuple[float, float]]:
    if not isinstance(space, Mapping) or not space:
        raise ParameterError(f"space must map at least one name to (low, high); got {space!r}")
    checked = {}
    for name, bounds in space.items():
        if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
            raise ParameterError(f"space[{name!r}] must be (low, high); got {bounds!r}")
        low = checks.number(f"low of space[{name!r}]", bounds[0], 0, above=True)
        high = checks.number(f"high of space[{name!r}]", bounds[1], low, above=True)
        checked[name] = (low, high)
    for name, limit in (upper or {}).items():
        if name not in space:
            raise unknown_name("name in upper", name, space)
        checks.number(f"upper[{name!r}]", limit, checked[name][1])
    return checked
