"""The study of batch sizes: what follows from its runs, as numbers."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from hardtrain.papers.data_parallelism import batch_scaling, noisy_quadratic
from hardtrain.papers.data_parallelism.batch_scaling import Estimate, estimate, with_resamples
from hardtrain.papers.data_parallelism.regimes import fit_regimes
from hardtrain.papers.data_parallelism.search import Search, search_together
from hardtrain.papers.data_parallelism.tuning import LIMITS, Cell, Curve, Tuned
from hardtrain.statistics import percentile_bounds

NOT_REACHED = "not reached"
RULES = {"linear": 1.0, "square root": 0.5, "constant": 0.0}  # powers of the batch size


def measurements(tuned: Tuned) -> dict[Curve, pd.DataFrame]:
    """Every evaluation of every trial, by curve, as ``batch_scaling`` takes them."""
    keys: dict[Curve, set[str]] = {}
    for (curve, _), runs in tuned.runs.items():
        keys.setdefault(curve, set()).update(run.key for run in runs)
    measured = batch_scaling.measured_errors(tuned.results, tuned.history)
    return {curve: measured[measured["trial"].isin(own)] for curve, own in keys.items()}


def trial_table(tuned: Tuned, cell: Cell) -> pd.DataFrame:
    """The trials of one cell, the search's best first, then by steps and order.

    Their points, ``round``, ``steps``, ``key``, ``momentum``, ``effective_lr`` =
    lr / (1 - momentum), and ``outcome``: "reached", "not reached" or "diverged" (without having
    reached the goal).
    """
    search = tuned.searches[cell]
    runs = tuned.results[["key", "momentum", "status"]]
    table = search.trials.assign(key=[run.key for run in tuned.runs[cell]]).merge(runs, on="key")
    table["effective_lr"] = table["lr"] / (1 - table["momentum"])
    table["outcome"] = table.pop("status").replace("finished", NOT_REACHED)
    table.loc[np.isfinite(table["steps"]), "outcome"] = "reached"
    best = pd.Series(search.best or {}, dtype=float)
    is_best = (table[best.index] == best).all(axis=1)
    return table.iloc[np.lexsort([~is_best, table["steps"]])].reset_index(drop=True)


def speed_ups(
    curves: Sequence[Sequence], *, num_resamples: int = 2000
) -> tuple[list[Estimate], list[Estimate]]:
    """How many times fewer steps the largest batch needs than the smallest, and the quotients of
    that to the first curve's.

    Perfect scaling would give the quotient of the batch sizes. They are the smallest and the
    largest that all of the curves have. The bounds are percentiles of a bootstrap over trials,
    independent for each curve; a resample in which no trial reached the goal counts as whatever
    widens them.

    Args:
        curves: each as `steps_by_size` gives it.
        num_resamples: of the bootstrap.

    Returns:
        An `Estimate` for each curve, and one for each but the first relative to the first; nan
        where a goal was not reached.

    Example:
        >>> flat, steep = [[8, [40.0]], [16, [40.0]]], [[8, [40.0]], [16, [20.0]]]
        >>> own, relative = speed_ups([flat, steep])
        >>> own[1].value, ratio_word(relative[0])
        (2.0, 'larger')
    """
    ends = common_ends(curves)
    quotients = []
    with np.errstate(invalid="ignore", divide="ignore"):  # inf / inf is nan
        for number, curve in enumerate(curves):
            rng, trials = np.random.default_rng([0, number]), dict(curve)
            few, many = (with_resamples(trials[size], rng, num_resamples) for size in ends)
            quotients.append(few / many)
        relative = [_ratio(quotient / quotients[0]) for quotient in quotients[1:]]
    return [_ratio(quotient) for quotient in quotients], relative


def common_ends(curves: Sequence[Sequence]) -> tuple[int, int]:
    """The smallest and the largest batch size that all of the curves have."""
    common = set.intersection(*({size for size, _ in curve} for curve in curves))
    return min(common), max(common)


def _ratio(quotients: np.ndarray) -> Estimate:
    """The first of the quotients, with percentiles of the others."""
    value, draws = quotients[0], quotients[1:]
    if not 0 < value < math.inf:
        return Estimate(math.nan, math.nan, math.nan)
    low, _ = percentile_bounds(np.where(np.isnan(draws), 0.0, draws))
    _, high = percentile_bounds(np.where(np.isnan(draws), math.inf, draws))
    return Estimate(float(value), float(low), float(high))


def ratio_word(ratio: Estimate) -> str:
    """Where the interval of a ratio lies: "larger" or "smaller" than 1, or neither."""
    if math.isnan(ratio.value):
        return NOT_REACHED
    if ratio.low > 1:
        return "larger"
    return "smaller" if ratio.high < 1 else "no difference seen"


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


def best_rates(tuned: Tuned, curve: Curve, column: str) -> tuple[pd.DataFrame, Estimate]:
    r"""A metaparameter of the best trial at each batch size, and the power law through them.

    .. math:: \log x_B = a + s \log B

    by least squares over the batch sizes that reached the goal. The bounds are percentiles of a
    bootstrap over the trials of each batch size.

    Args:
        tuned: the searches.
        curve: one of theirs.
        column: of `trial_table`, such as "lr" or "effective_lr".

    Returns:
        A frame ``batch_size``, ``value``, ``low``, ``high`` (nan: not reached, or by too few
        trials for a bound), and s, nan with fewer than three batch sizes.
    """
    sizes = sorted(size for searched, size in tuned.searches if searched == curve)
    columns = []  # of each size the best trial's value, and those of the resamples
    for size in sizes:
        trials = trial_table(tuned, (curve, size))
        values = trials[column].where(np.isfinite(trials["steps"])).to_numpy()
        rng = np.random.default_rng([0, size])
        columns.append(values[with_resamples(range(len(values)), rng, 1000)])
    values = np.stack(columns, axis=1)
    frame = pd.DataFrame({"batch_size": sizes} | estimate(values)._asdict())
    return frame, estimate(np.array([_slope(np.log2(sizes), row) for row in np.log2(values)]))


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    known = np.isfinite(y)
    if known.sum() < 3:
        return math.nan
    x, y = x[known] - x[known].mean(), y[known]
    return float((x * y).sum() / (x * x).sum())


def rules_within(slope: Estimate) -> str:
    """The rules whose power the interval of a slope includes.

    Example:
        >>> rules_within(Estimate(0.7, 0.4, 1.1))
        'linear or square root'
    """
    if math.isnan(slope.low):
        return "too few points"
    within = [name for name, power in RULES.items() if slope.low <= power <= slope.high]
    return " or ".join(within) or "none"


def size_effect(within: pd.DataFrame, budget: str) -> str:
    """Whether the largest batch ends better or worse than the smallest within a budget: "better"
    or "worse" if the 95 % intervals are apart, else "no difference seen".

    Args:
        within: from `best_at_budgets`.
        budget: one of its.
    """
    part = within[within["budget"] == budget].sort_values("batch_size")
    small, large = part.iloc[0], part.iloc[-1]
    if large["low"] > small["high"]:
        return "worse"
    return "better" if large["high"] < small["low"] else "no difference seen"


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
        sizes = [size for (_, size), _, _ in requests]
        rates = [point["lr"] for _, _, point in requests]
        momenta = [1 - point.get("one_minus_momentum", 1.0) for _, _, point in requests]
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


def spread(values: np.ndarray) -> Estimate:
    """Median, lowest and highest along the last axis. nan counts as inf; of an even number of
    values the lower of the middle two counts, since one of them may be inf.

    Example:
        >>> [float(number) for number in spread(np.array([4.0, math.inf, 2.0, 3.0]))]
        [3.0, 2.0, inf]
    """
    values = np.sort(np.where(np.isnan(values), math.inf, values))
    return Estimate(values[..., (values.shape[-1] - 1) // 2], values[..., 0], values[..., -1])
