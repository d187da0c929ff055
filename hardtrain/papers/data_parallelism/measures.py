"""The study of batch sizes: what follows from its runs, as numbers."""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from hardtrain.errors import ParameterError
from hardtrain.papers.data_parallelism.batch_scaling import (
    best_at_budget,
    measured_errors,
    regime_table,
    steps_per_trial,
)
from hardtrain.papers.data_parallelism.noisy_quadratic import (
    noisy_quadratic_optimum,
    noisy_quadratic_steps,
)
from hardtrain.papers.data_parallelism.regimes import fit_regimes
from hardtrain.papers.data_parallelism.search import Search
from hardtrain.papers.data_parallelism.tuning import (
    LIMITS,
    NOT_REACHED,
    OPTIMIZERS,
    Cell,
    Curve,
    Tuned,
    history_of,
    search_together,
    task_name,
)


def measurements(tuned: Tuned) -> dict[Curve, pd.DataFrame]:
    """Every evaluation of every trial, by curve, as ``batch_scaling`` takes them."""
    found = {}
    for curve in dict.fromkeys(curve for curve, _ in tuned.runs):
        keys = [run.key for cell, runs in tuned.runs.items() if cell[0] == curve for run in runs]
        rows = tuned.results[tuned.results["key"].isin(keys)]
        found[curve] = measured_errors(rows, history_of(tuned.history, keys))
    return found


def trial_table(tuned: Tuned, cell: Cell) -> pd.DataFrame:
    """The trials of one cell: their points, ``round``, ``steps``, ``key``, ``momentum``,
    ``effective_lr`` = lr / (1 - momentum), ``seed``, and ``outcome``: "reached", "not reached" or
    "diverged" (without having reached the goal)."""
    runs = tuned.runs[cell]
    table = tuned.searches[cell].trials.copy()
    table["key"] = [run.key for run in runs]
    table["seed"] = [run.seed for run in runs]
    table["momentum"] = [run.momentum for run in runs]
    table["effective_lr"] = table["lr"] / (1 - table["momentum"])
    status = tuned.results.drop_duplicates("key").set_index("key")["status"]
    ended = ["diverged" if status[key] == "diverged" else NOT_REACHED for key in table["key"]]
    table["outcome"] = np.where(np.isfinite(table["steps"]), "reached", ended)
    return table


def ranked_trials(tuned: Tuned, cell: Cell) -> pd.DataFrame:
    """`trial_table`, the search's best trial first, then by steps and order."""
    table = trial_table(tuned, cell)
    best = tuned.searches[cell].best
    if best is None:
        return table
    is_best = (table[list(best)] == pd.Series(best)).all(axis=1)
    order = np.lexsort([np.arange(len(table)), ~is_best, table["steps"]])
    return table.iloc[order].reset_index(drop=True)


def steps_by_size(measured: pd.DataFrame, goal: float) -> list[list]:
    """``[[batch size, [steps of each trial, ascending]], ...]`` of one curve, ready for JSON."""
    return [
        [int(size), sorted(map(float, steps_per_trial(part, goal)))]
        for size, part in measured.groupby("batch_size")
    ]


def regime_arrays(
    *, curves: Sequence[Sequence], num_resamples: int = 300, seed: int = 0
) -> dict[str, np.ndarray]:
    """The three regimes of each curve.

    Args:
        curves: each as `steps_by_size` gives it.
        num_resamples, seed: of the bootstrap over trials.

    Returns:
        ``fits (C, 7)``, the fields of `Regimes`; ``value``, ``low``, ``high`` ``(C, 5)``, the
        ``batch_scaling.QUANTITIES`` with their 95 % intervals.

    Example:
        >>> halving = [[size, [640 / size, 1000 / size]] for size in (1, 2, 4, 8)]
        >>> found = regime_arrays(curves=[halving], num_resamples=10)
        >>> found["value"].round(1).tolist()  # of the flat part nothing was seen
        [[0.0, 640.0, inf, inf, inf]]
    """
    fits, tables = [], []
    for curve in curves:
        sizes = [size for size, _ in curve]
        fits.append(fit_regimes(sizes, [min(steps) for _, steps in curve]))
        rows = [
            # a trial that arrives is evaluated once, then; one that does not, never below the goal
            (size, f"{size} {i}", steps if math.isfinite(steps) else 1.0, math.isinf(steps))
            for size, trials in curve
            for i, steps in enumerate(trials)
        ]
        frame = pd.DataFrame(rows, columns=["batch_size", "trial", "step", "error"])
        frame["error"] = frame["error"].astype(float)  # 0: at the goal, 1: above
        tables.append(regime_table(frame, 0.5, seed=seed, num_resamples=num_resamples))
    arrays = {name: np.stack([t[name] for t in tables]) for name in ("value", "low", "high")}
    return {"fits": np.array(fits, dtype=float)} | arrays


class Ratio(NamedTuple):
    """A quotient with bootstrap bounds; nan where a goal was not reached."""

    value: float
    low: float
    high: float

    @property
    def word(self) -> str:
        """Where the interval lies: "larger" or "smaller" than 1, or neither."""
        if math.isnan(self.value):
            return NOT_REACHED
        if self.low > 1:
            return "larger"
        return "smaller" if self.high < 1 else "no difference seen"


def speed_ups(
    curves: Sequence[Sequence], *, num_resamples: int = 2000, seed: int = 0
) -> tuple[list[Ratio], list[Ratio]]:
    """How many times fewer steps the largest batch needs than the smallest, and the quotients of
    that to the first curve's.

    Perfect scaling would give the quotient of the batch sizes. They are the smallest and the
    largest that all of the curves have. The bounds are percentiles of a bootstrap over trials,
    independent for each curve; a resample in which no trial reached the goal counts as whatever
    widens them.

    Args:
        curves: each as `steps_by_size` gives it.
        num_resamples, seed: of the bootstrap.

    Returns:
        A `Ratio` for each curve, and one for each curve relative to the first.

    Raises:
        ParameterError: the curves have no batch size in common.

    Example:
        >>> flat, steep = [[8, [40.0]], [16, [40.0]]], [[8, [40.0]], [16, [20.0]]]
        >>> own, relative = speed_ups([flat, steep])
        >>> own[1].value, relative[1].word
        (2.0, 'larger')
    """
    trials = [dict(map(tuple, curve)) for curve in curves]
    common = set.intersection(*map(set, trials))
    if not common:
        raise ParameterError("the curves have no batch size in common")
    values, draws = [], []
    for number, by_size in enumerate(trials):
        rng = np.random.default_rng([seed, number])
        ends = [np.array(by_size[size]) for size in (min(common), max(common))]
        drawn = [steps[rng.integers(0, len(steps), (num_resamples, len(steps)))] for steps in ends]
        values.append(_quotient(*(steps.min() for steps in ends)))
        draws.append(_quotient(*(steps.min(axis=1) for steps in drawn)))
    own = [_ratio(*both) for both in zip(values, draws, strict=True)]
    relative = [
        _ratio(_quotient(value, values[0]), _quotient(drawn, draws[0]))
        for value, drawn in zip(values, draws, strict=True)
    ]
    if not math.isnan(own[0].value):
        relative[0] = Ratio(1.0, 1.0, 1.0)
    return own, relative


def _quotient(a, b) -> np.ndarray:
    """a / b of positive numbers or inf; nan for inf / inf."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(a, dtype=float) / np.asarray(b, dtype=float)


def _ratio(value, draws: np.ndarray) -> Ratio:
    if not 0 < value < math.inf:
        return Ratio(math.nan, math.nan, math.nan)
    low, _ = _percentiles(np.nan_to_num(draws, nan=0.0, posinf=math.inf))
    _, high = _percentiles(np.nan_to_num(draws, nan=math.inf, posinf=math.inf))
    return Ratio(float(value), low, high)


def _percentiles(draws: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Order statistics, since there may be inf; nan if too many of the draws are."""
    draws = np.sort(draws)  # nan comes last
    tail, last = (1 - confidence) / 2, len(draws) - 1
    low, high = float(draws[math.floor(tail * last)]), float(draws[math.ceil((1 - tail) * last)])
    return (math.nan, math.nan) if math.isnan(high) else (low, high)


def comparison_groups(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    """Curves that differ in one thing only, where there are at least two: by a title that begins
    with what that is, "optimisers", "networks" or "data".

    Example:
        >>> curves = [Curve("digits", name, "sgd") for name in ("mlp", "cnn_small")]
        >>> list(comparison_groups(curves))
        ['networks: digits, SGD']
    """
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        optimizer = OPTIMIZERS[curve.optimizer]
        for title in (
            f"optimisers: {curve.workload}",
            f"networks: {task_name(curve.task)}, {optimizer}",
            f"data: {curve.network}, {optimizer}",
        ):
            groups.setdefault(title, []).append(curve)
    order = ("optimisers", "networks", "data")
    titles = sorted(groups, key=lambda title: order.index(title.partition(":")[0]))
    return {title: groups[title] for title in titles if len(groups[title]) > 1}


class Slope(NamedTuple):
    """Power of the batch size that a best learning rate follows, with bootstrap bounds."""

    value: float
    low: float
    high: float
    num_sizes: int

    def has(self, power: float) -> bool:
        """Whether the interval includes this power: 1 is the linear rule, 0.5 the square root."""
        return self.low <= power <= self.high

    @property
    def word(self) -> str:
        """The rules that the interval includes."""
        if math.isnan(self.low):
            return "too few points"
        names = {1.0: "linear", 0.5: "square root", 0.0: "constant"}
        return " or ".join(name for power, name in names.items() if self.has(power)) or "none"


def best_rates(
    tuned: Tuned, curve: Curve, column: str, *, num_resamples: int = 1000, seed: int = 0
) -> tuple[pd.DataFrame, Slope]:
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
        trials for a bound), and the `Slope`, nan with fewer than three batch sizes.
    """
    sizes = sorted(size for c, size in tuned.searches if c == curve)
    values, drawn = [], []
    for size in sizes:
        ranked = ranked_trials(tuned, (curve, size))
        value = np.where(np.isfinite(ranked["steps"]), ranked[column], np.nan)
        n = len(value)
        rng = np.random.default_rng([seed, size])
        drawn.append(value[rng.integers(0, n, (num_resamples, n)).min(axis=1)])
        values.append(value[0])
    bounds = [_percentiles(draws) for draws in drawn]
    frame = pd.DataFrame({"batch_size": sizes, "value": values})
    frame[["low", "high"]] = np.array(bounds)
    logs = np.log2(sizes)
    power = _slope(logs, np.log2(values))
    draws = np.array([_slope(logs, row) for row in np.log2(np.stack(drawn, axis=1))])
    return frame, Slope(power, *_percentiles(draws), int(np.isfinite(values).sum()))


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    known = np.isfinite(y)
    if known.sum() < 3:
        return math.nan
    x, y = x[known] - x[known].mean(), y[known]
    return float((x * y).sum() / (x * x).sum())


def budget_frame(
    measured: Mapping[Curve, pd.DataFrame], budgets: Mapping[str, float]
) -> pd.DataFrame:
    """The lowest error of any trial within each budget, for every cell.

    Args:
        measured: by curve.
        budgets: "step" and "epoch" -> how many.

    Returns:
        Columns ``curve``, ``batch_size``, ``budget`` (its unit), ``error``, ``low``, ``high``.
    """
    rows = []
    for curve, frame in measured.items():
        for size, part in frame.groupby("batch_size"):
            for column, budget in budgets.items():
                found = best_at_budget(part, budget, column=column, seed=int(size))
                rows.append((curve, int(size), column, found.error, found.low, found.high))
    columns = ["curve", "batch_size", "budget", "error", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def direction(frame: pd.DataFrame, curve: Curve, budget: str) -> str:
    """Whether the largest batch ends better or worse than the smallest within a budget: "better"
    or "worse" if the 95 % intervals are apart, else "no difference seen"."""
    part = frame[(frame["curve"] == curve) & (frame["budget"] == budget)]
    part = part.sort_values("batch_size")
    small, large = part.iloc[0], part.iloc[-1]
    if math.isnan(small.error) or math.isnan(large.error):
        # not one evaluation within the budget: nothing to say
        return "not evaluated"
    if large.low > small.high:
        return "worse"
    return "better" if large.high < small.low else "no difference seen"


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
    max_steps: int = 1000,
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
        max_steps: of a trial.

    Returns:
        In the order SGD, heavy ball: ``exact_steps``, ``exact_lr``, ``exact_effective_lr``
        ``(2, B)`` (a fine grid; 16 momenta); ``steps``, ``lr``, ``effective_lr``, ``trials``
        ``(2, K, R, B)``; and the critical batch size fitted to the exact curve,
        ``exact_critical (2,)``, and to each search's, ``critical (2, K, R)``.
    """
    curvature = 1 / np.arange(1.0, num_dimensions + 1)
    space = {"lr": tuple(lr_range), "one_minus_momentum": (lowest, 1.0)}
    evaluate = partial(_quadratic_steps, goal=goal, curvature=curvature, max_steps=max_steps)
    found: list[Search] = []
    for names, number in itertools.product((["lr"], list(space)), num_trials):
        places = list(itertools.product(range(num_searches), batch_sizes))
        searches = search_together(
            {place: {name: space[name] for name in names} for place in places},
            number,
            evaluate,
            seeds={(repeat, size): 100_000 * repeat + size for repeat, size in places},
            max_rounds=max_rounds,
            upper=LIMITS,
        )
        found += searches.values()
    best = [result.best or {"lr": math.nan} for result in found]
    columns = {
        "steps": [result.steps for result in found],
        "lr": [point["lr"] for point in best],
        "effective_lr": [point["lr"] / point.get("one_minus_momentum", 1.0) for point in best],
        "trials": [len(result.trials) for result in found],
    }
    shape = (2, len(num_trials), num_searches, len(batch_sizes))
    arrays = {name: np.array(column).reshape(shape) for name, column in columns.items()}
    exact = [
        [noisy_quadratic_optimum(size, goal=goal, momentum=grid, curvature=curvature)
         for size in batch_sizes]
        for grid in (0.0, 1 - np.geomspace(lowest, 1, 16))
    ]  # fmt: skip
    exact_steps, exact_lr, momentum = np.moveaxis(np.array(exact), 2, 0)
    return arrays | {
        "exact_steps": exact_steps,
        "exact_lr": exact_lr,
        "exact_effective_lr": exact_lr / (1 - momentum),
        "exact_critical": _critical(batch_sizes, exact_steps),
        "critical": _critical(batch_sizes, arrays["steps"]),
    }


def _quadratic_steps(requests, *, goal, curvature, max_steps) -> list[float]:
    sizes = np.array([size for (_, size), _, _ in requests], dtype=float)
    lr = np.array([point["lr"] for _, _, point in requests])
    rest = np.array([point.get("one_minus_momentum", 1.0) for _, _, point in requests])
    steps = noisy_quadratic_steps(
        sizes, lr, 1 - rest, goal=goal, curvature=curvature, max_steps=max_steps
    )
    return steps.tolist()


def _critical(batch_sizes: Sequence[int], steps: np.ndarray) -> np.ndarray:
    """Critical batch size of every curve along the last axis."""
    rows = steps.reshape(-1, steps.shape[-1])
    fits = [fit_regimes(batch_sizes, row).critical_batch_size for row in rows]
    return np.array(fits).reshape(steps.shape[:-1])
