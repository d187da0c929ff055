"""The study of batch sizes: what follows from its trials, as numbers.

Each search is a whole of its own: its best trial, and whatever follows from those at all batch
sizes. What is said of a curve is said over its searches, by their seeds: the median, the lowest and
the highest, between which the next search of the same size lies with probability (R - 1) / (R + 1)
for R of them; or, of a mean, a 95 % interval over them.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from hardtrain.papers.data_parallelism import noisy_quadratic
from hardtrain.papers.data_parallelism.regimes import Regimes, fit_regimes
from hardtrain.papers.data_parallelism.search import Search, search_together
from hardtrain.papers.data_parallelism.tuning import LIMITS, Curve
from hardtrain.report.tables import paired
from hardtrain.statistics import Interval, PairedDifference, mean_interval

RULES = {"linear": 1.0, "square root": 0.5, "constant": 0.0}  # powers of the batch size


class Spread(NamedTuple):
    """The median of several values, the lowest and the highest; nan if there are none."""

    value: float
    low: float
    high: float


def spread(values: np.ndarray) -> Spread:
    """Median, lowest and highest along the last axis. nan counts as inf; of an even number of
    values the lower of the middle two counts, since one of them may be inf.

    Example:
        >>> [float(number) for number in spread(np.array([4.0, math.inf, 2.0, 3.0]))]
        [3.0, 2.0, inf]
    """
    values = np.sort(np.where(np.isnan(values), math.inf, values))
    return Spread(values[..., (values.shape[-1] - 1) // 2], values[..., 0], values[..., -1])


def best_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """The trial of fewest steps of each search, of equal ones the first; a row for each batch size
    and seed whose search is complete. Its steps are inf where none reached the goal.

    Args:
        trials: of one curve, as in `Tuned`.
    """
    counted = trials[trials["counted"]].sort_values(["steps", "number"])
    return counted.drop_duplicates(["batch_size", "seed"]).sort_values(["batch_size", "seed"])


def over_searches(best: pd.DataFrame, column: str = "steps") -> pd.DataFrame:
    """`spread` over the searches of each batch size: ``batch_size``, ``value``, ``low``, ``high``.
    Of other columns than the steps only those count that reached the goal."""
    if column != "steps":
        best = best[np.isfinite(best["steps"])]
    rows = [
        (size, *map(float, spread(part[column].to_numpy())))
        for size, part in best.groupby("batch_size")
    ]
    frame = pd.DataFrame(rows, columns=["batch_size", *Spread._fields])
    return frame.astype(dict.fromkeys(Spread._fields, float))  # also without rows


def halvings(best: pd.DataFrame, small: int, large: int) -> pd.Series:
    """How often the steps halve from one batch size to another, by seed; nan where a goal was not
    reached. Perfect scaling gives log2 of their quotient.

    Example:
        >>> rows = [(8, 0, 40.0), (32, 0, 20.0), (8, 1, 40.0), (32, 1, math.inf)]
        >>> best = pd.DataFrame(rows, columns=["batch_size", "seed", "steps"])
        >>> halvings(best, 8, 32).to_dict()
        {0: 1.0, 1: nan}
    """
    steps = best.pivot(index="seed", columns="batch_size", values="steps")
    steps = steps.reindex(columns=[small, large]).astype(float).where(np.isfinite)
    return np.log2(steps[small] / steps[large])


def gain_per_doubling(best: pd.DataFrame, small: int, large: int) -> pd.Series:
    """`halvings` for each doubling between the two: 1 is perfect scaling, 0 flat."""
    return halvings(best, small, large) / math.log2(large / small)


def powers(best: pd.DataFrame, column: str) -> pd.Series:
    r"""The power law through the best trials' metaparameter, by seed: s of

    .. math:: \log x_B = a + s \log B

    by least squares over the batch sizes that reached the goal, at least three.
    """
    best = best[np.isfinite(best["steps"])]
    logs = np.log2(best[["batch_size", column]].astype(float)).groupby(best["seed"])
    slopes = {seed: np.polyfit(*part.to_numpy().T, 1)[0] for seed, part in logs if len(part) > 2}
    return pd.Series(slopes, dtype=float)


def interval(by_seed: pd.Series) -> Interval | None:
    """The mean over searches with its 95 % interval; ``None`` without one."""
    values = by_seed.dropna()
    return mean_interval(values) if len(values) else None


def rules_within(power: Interval | None) -> str:
    """The rules whose power the interval includes.

    Example:
        >>> rules_within(Interval(0.7, 0.4, 1.1, 5))
        'linear or square root'
    """
    if power is None or math.isnan(power.low):
        return "too few searches"
    within = [name for name, rule in RULES.items() if power.low <= rule <= power.high]
    return " or ".join(within) or "none"


def regimes(best: pd.DataFrame) -> list[Regimes]:
    """The three regimes: of the medians over the searches first, then of each search."""
    middle = over_searches(best)
    parts = [middle.rename(columns={"value": "steps"})]
    parts += [part for _, part in best.groupby("seed")]
    return [fit_regimes(part["batch_size"], part["steps"]) for part in parts if len(part)]


def over_fits(fits: Sequence[Regimes], name: str) -> Spread | None:
    """`spread` over the searches of an attribute of their fits; ``None`` without any.

    Args:
        fits: from `regimes`; the first, that of the medians, does not count.
        name: of the attribute.
    """
    told = [getattr(fit, name) for fit in fits[1:] if not math.isnan(fit.min_steps)]
    return Spread(*map(float, spread(np.array(told)))) if told else None


def is_loose(boundary: float, sizes: Sequence[int]) -> bool:
    """Whether fewer than two of the measured batch sizes lie on one side of a boundary (†).

    Example:
        >>> is_loose(6.0, [2, 8, 32, 128]), is_loose(12.0, [2, 8, 32, 128]), is_loose(math.inf, [2])
        (True, False, False)
    """
    return math.isfinite(boundary) and not sizes[1] <= boundary <= sizes[-2]


def lowest_errors(
    trials: pd.DataFrame, history: pd.DataFrame, budgets: Mapping[str, float]
) -> pd.DataFrame:
    """The lowest held-out error that any trial of a search had by the time a budget was spent:
    ``batch_size``, ``seed``, and a column for each budget; nan if none was evaluated by then.

    Args:
        trials: of one curve.
        history: of their runs.
        budgets: how many, by unit, "step" or "epoch"; equal counts as within.

    Source:
        Shallue et al., arXiv 1811.03600: solution quality at a fixed number of steps, or of
        examples.
    """
    counted = trials[trials["counted"] & (trials["outcome"] != "infeasible")]
    history = history.reindex(columns=["key", "step", "epoch", "validation_error"])
    rows = counted[["batch_size", "seed", "key"]].merge(history, on="key")
    errors = {
        unit: rows["validation_error"].where(rows[unit] <= budget)
        for unit, budget in budgets.items()
    }
    where = [rows["batch_size"], rows["seed"]]
    return pd.DataFrame(errors).groupby(where).min().reset_index()


def ends_within(errors: pd.DataFrame, budgets: Iterable[str]) -> tuple[int, int]:
    """The smallest and the largest batch of which every search evaluated a trial within each of
    the budgets; of all where there is none.

    Example:
        >>> errors = pd.DataFrame({"batch_size": [8, 32, 128], "step": [math.nan, 0.2, 0.1]})
        >>> ends_within(errors, ["step"])
        (32, 128)
    """
    known = errors[list(budgets)].notna().all(axis=1).groupby(errors["batch_size"]).all()
    sizes = known.index[known] if known.any() else known.index
    return int(sizes.min()), int(sizes.max())


def change(errors: pd.DataFrame, budget: str, small: int, large: int) -> pd.Series:
    """The largest batch's lowest error minus the smallest's within a budget, in points, by seed."""
    wide = 100 * errors.pivot(index="seed", columns="batch_size", values=budget)
    wide = wide.reindex(columns=[small, large]).astype(float)
    return wide[large] - wide[small]


def off_nearest_rule(powers: pd.Series) -> PairedDifference | None:
    """How far the powers of the batch size are from that rule, linear or square root, from which
    they are less surely apart; turned to be positive."""
    rules = [either_way(paired(powers, 0 * powers + RULES[name])) for name in list(RULES)[:2]]
    return max((gap for gap in rules if gap), key=lambda gap: gap.p, default=None)


def either_way(difference: PairedDifference | None) -> PairedDifference | None:
    """A difference turned so that it is positive: for claims that there is one, not which."""
    if difference is None or difference.mean >= 0:
        return difference
    bounds = {"mean": -difference.mean, "low": -difference.high, "high": -difference.low}
    return difference._replace(**bounds)


def comparison_groups(curves: Sequence[Curve]) -> dict[str, dict[str, list[Curve]]]:
    """Curves that differ in one thing only, where there are at least two: by that thing, then by
    what they share.

    Example:
        >>> curves = [Curve("digits", name, "sgd") for name in ("mlp", "cnn_small")]
        >>> {kind: list(groups) for kind, groups in comparison_groups(curves).items()}
        {'optimiser': [], 'network': ['digits, SGD'], 'data': []}
    """
    kinds = {}
    for kind in ("optimiser", "network", "data"):
        groups: dict[str, list[Curve]] = {}
        for curve in curves:
            shared = ", ".join(name for other, name in curve.words.items() if other != kind)
            groups.setdefault(shared, []).append(curve)
        kinds[kind] = {shared: group for shared, group in groups.items() if len(group) > 1}
    return kinds


def noisy_quadratic_check(
    *,
    batch_sizes: Sequence[int],
    goal: float,
    num_dimensions: int,
    num_trials: Sequence[int],
    max_rounds: int,
    lr_range: Sequence[float],
    lowest: float,
    num_searches: int = 10,
) -> dict[str, np.ndarray]:
    """The search on the noisy quadratic, whose best metaparameters are known, many times over.

    Constant learning rates; plain SGD and heavy ball.

    Args:
        batch_sizes: ``B`` of them.
        goal: expected loss to reach.
        num_dimensions: curvature 1, 1/2, ..., 1/D.
        num_trials: of a round, ``K`` numbers to compare.
        max_rounds: of a search.
        lr_range, lowest: where it begins: learning rates, and the lowest 1 - momentum (up to 1).
        num_searches: ``R``, with other points each.

    Returns:
        In the order SGD, heavy ball: ``exact_steps``, ``exact_effective_lr`` ``(2, B)`` (a fine
        grid; 16 momenta); ``steps``, ``effective_lr`` ``(2, K, R, B)``; and the critical batch
        size fitted to the exact curve, ``exact_critical (2,)``, and to each search's,
        ``critical (2, K, R)``.
    """
    model = {"goal": goal, "curvature": 1 / np.arange(1.0, num_dimensions + 1)}

    def evaluate(requests) -> np.ndarray:
        sizes = [size for (_, size), _ in requests]
        rates = [point["lr"] for _, point in requests]
        momenta = [1 - point.get("one_minus_momentum", 1.0) for _, point in requests]
        return noisy_quadratic.steps(sizes, rates, momenta, max_steps=1000, **model)

    repeats = list(itertools.product(range(num_searches), batch_sizes))
    seeds = {(repeat, size): 100_000 * repeat + size for repeat, size in repeats}
    how = {"seeds": seeds, "max_rounds": max_rounds, "upper": LIMITS}
    plain = {"lr": tuple(lr_range)}
    heavy = plain | {"one_minus_momentum": (lowest, 1.0)}
    outcomes, exact = [], []
    for space, momenta in ((plain, 0.0), (heavy, 1 - np.geomspace(lowest, 1, 16))):
        for number in num_trials:
            searches = search_together(dict.fromkeys(repeats, space), number, evaluate, **how)
            outcomes.append([_outcome(search) for search in searches.values()])
        optima = [noisy_quadratic.optimum(size, momentum=momenta, **model) for size in batch_sizes]
        exact.append([(best.steps, best.lr / (1 - best.momentum)) for best in optima])
    shape = (2, len(num_trials), num_searches, len(batch_sizes), 2)
    steps, effective_lr = np.moveaxis(np.reshape(outcomes, shape), -1, 0)
    exact_steps, exact_effective_lr = np.moveaxis(np.array(exact), -1, 0)
    return {
        "steps": steps,
        "effective_lr": effective_lr,
        "exact_steps": exact_steps,
        "exact_effective_lr": exact_effective_lr,
        "critical": np.apply_along_axis(_critical, -1, steps, batch_sizes),
        "exact_critical": np.apply_along_axis(_critical, -1, exact_steps, batch_sizes),
    }


def _outcome(search: Search) -> tuple[float, float]:
    """Steps and effective learning rate of the best trial."""
    best = search.best or {"lr": math.nan}
    return search.steps, best["lr"] / best.get("one_minus_momentum", 1.0)


def _critical(steps: np.ndarray, batch_sizes: Sequence[int]) -> float:
    return fit_regimes(batch_sizes, steps).critical_batch_size
