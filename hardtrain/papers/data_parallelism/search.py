"""Quasi-random search on log scales, in a space that follows its optimum."""

import math
import types
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats.qmc import Halton

from hardtrain import checks
from hardtrain.errors import ParameterError, unknown_name

Space = Mapping[str, tuple[float, float]]
Point = dict[str, float]
MARGIN = 0.1  # m: fraction of the width in logs that counts as an edge
MAX_DRAWS = 4  # points for each trial to complete, before a round gives up


class Search(NamedTuple):
    """What a search found.

    ``trials``: a row per trial: its point, ``round`` (from 0) and ``steps`` (inf: goal not
    reached; nan: it diverged, or was not run). ``best``: the best point of the last round, the
    one that counts; ``None`` if no trial reached the goal. ``steps``: its steps. ``inside``:
    whether it lies inside the last space, away from every edge that could be moved. ``complete``:
    whether the last round has as many completed trials as it should. ``space``: the last one.
    """

    trials: pd.DataFrame
    best: Point | None
    steps: float
    inside: bool
    complete: bool
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
    evaluate: Callable[[list[Point]], Sequence[float | None]],
    *,
    seed: int,
    max_rounds: int = 1,
    upper: Mapping[str, float] | None = None,
) -> Search:
    """Draw trials until so many are complete; move the space onto a best one at its edge, again.

    A trial that diverges is infeasible: it is replaced by the next point of the sequence, up to
    ``MAX_DRAWS`` points for each trial that is wanted. Every round completes as many trials, and
    only those of the last one count, so a search that had to move has seen no more than one that
    had not. Of equal steps the lower trial number counts. The search ends when its best trial is
    inside, after ``max_rounds``, or when no trial of a round reached the goal.

    Args:
        space: name -> (low, high), 0 < low < high; no name may be "round" or "steps".
        num_trials: to complete in each round, >= 1.
        evaluate: takes points and gives the steps to the goal of each, above 0: inf if it was not
            reached, nan if the trial diverged; ``None`` if it was not run, which ends the search.
        seed: of the points.
        max_rounds: >= 1.
        upper: as in `recentred`.

    Raises:
        ParameterError: bad arguments, or ``evaluate`` gives another number of values, or a value
            that is not above 0.

    Source:
        Shallue et al., arXiv 1811.03600, and their repository (google-research, batch_science):
        equal numbers of completed trials, infeasible ones left out, ties to the lower number.
        Moving the space stands for what they did by hand; ``MARGIN`` and ``MAX_DRAWS`` are ours.

    Example:
        >>> def steps(points):
        ...     return [100 + 50 * abs(math.log10(point["lr"] / 0.3)) for point in points]
        >>> result = search({"lr": (1e-4, 1e-2)}, 16, steps, seed=0, max_rounds=4)
        >>> result.inside, 0.2 < result.best["lr"] < 0.4
        (True, True)
    """

    _checked_space(space, upper)

    def steps_of(requests):
        return evaluate([point for _, point in requests])

    rules = {"seeds": {"": seed}, "max_rounds": max_rounds, "upper": upper or {}}
    return search_together({"": space}, num_trials, steps_of, **rules)[""]


def search_together(
    spaces: Mapping[Hashable, Space],
    num_trials: int,
    evaluate: Callable[[list[tuple[Hashable, Point]]], Sequence[float | None]],
    *,
    seeds: Mapping[Hashable, int],
    max_rounds: int = 1,
    upper: Mapping[str, float] = types.MappingProxyType({}),
) -> dict[Hashable, Search]:
    """Many searches side by side: what all of them want next is evaluated at once.

    Each is a `search`, and finds what it would find alone.

    Args:
        spaces: of each search, by its name.
        num_trials, max_rounds, upper: of all of them; ``upper`` may hold names that a space lacks.
        evaluate: takes a list of (name, point), gives the steps of each.
        seeds: of each search.

    Example:
        >>> def steps(requests):
        ...     return [100 + 50 * abs(math.log10(point["lr"])) for _, point in requests]
        >>> spaces = {"low": {"lr": (1e-3, 1e-2)}, "around": {"lr": (0.03, 30.0)}}
        >>> how = {"seeds": {"low": 0, "around": 0}, "max_rounds": 4}
        >>> searches = search_together(spaces, 8, steps, **how)
        >>> {name: len(result.trials) for name, result in searches.items()}
        {'low': 16, 'around': 8}
    """
    checks.integer("num_trials", num_trials, 1)
    checks.integer("max_rounds", max_rounds, 1)
    taken = {"round", "steps"} & set().union(*spaces.values())
    if taken:
        raise ParameterError(f"space has a name that the table of trials needs: {sorted(taken)}")
    searches: dict[Hashable, Search] = {}
    ongoing = {}
    for name, space in spaces.items():
        limits = {key: limit for key, limit in upper.items() if key in space}
        how = (num_trials, seeds[name], max_rounds, limits)
        ongoing[name] = _search(_checked_space(space), *how)
    wanted = {name: next(own) for name, own in ongoing.items()}
    while wanted:
        requests = [(name, dict(point)) for name, points in wanted.items() for point in points]
        num = len(requests)
        steps = [None if step is None else float(step) for step in evaluate(requests)]
        if len(steps) != num or any(step is not None and step <= 0 for step in steps):
            raise ParameterError(f"evaluate must give {num} numbers above 0 or inf; got {steps}")
        given = iter(steps)
        for name, points in list(wanted.items()):
            try:
                wanted[name] = ongoing[name].send(list(islice(given, len(points))))
            except StopIteration as end:
                searches[name] = end.value
                del wanted[name]
    return {name: searches[name] for name in spaces}


def _search(
    space: dict[str, tuple[float, float]], num_trials: int, seed: int, max_rounds: int, upper: Space
) -> Generator[list[Point], list[float | None], Search]:
    """A search that yields points and is sent their steps."""
    rows: list[dict] = []
    for number in range(max_rounds):
        own: list[dict] = []
        while (lacking := num_trials - _completed(own)) and len(own) < MAX_DRAWS * num_trials:
            points = quasi_random(
                space,
                min(lacking, MAX_DRAWS * num_trials - len(own)),
                seed=seed,
                skip=len(rows) + len(own),
            )
            steps = yield points
            for point, step in zip(points, steps, strict=True):
                own.append(point | {"round": number, "steps": math.nan if step is None else step})
            if None in steps:
                break
        rows += own
        reached = [row for row in own if row["steps"] < math.inf]
        if None in steps or not reached:
            best, fewest, moved = None, math.inf, None
            break
        first = min(reached, key=lambda row: row["steps"])
        best, fewest = {name: first[name] for name in space}, first["steps"]
        moved = recentred(space, best, upper=upper)
        if moved == space or number + 1 == max_rounds:
            break
        space = moved
    return Search(pd.DataFrame(rows), best, fewest, moved == space, not lacking, space)


def _completed(rows: list[dict]) -> int:
    return sum(not math.isnan(row["steps"]) for row in rows)


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
