"""Tables of the study of batch sizes."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from hardtrain.papers.data_parallelism.batch_scaling import QUANTITIES, scaling_curve
from hardtrain.papers.data_parallelism.measures import (
    Slope,
    best_rates,
    direction,
    ranked_trials,
    speed_ups,
    trial_table,
)
from hardtrain.papers.data_parallelism.regimes import Regimes
from hardtrain.papers.data_parallelism.tuning import (
    NOT_REACHED,
    OPTIMIZERS,
    Curve,
    Tuned,
    curve_name,
)


def best_table(
    tuned: Tuned, measured: Mapping[Curve, pd.DataFrame], goals: Mapping, sizes: Mapping[str, int]
) -> pd.DataFrame:
    """The best metaparameters of every cell, with its steps and their 95 % interval.

    Args:
        tuned, measured: searches, and their `measurements`.
        goals: by task.
        sizes: data set -> training samples.
    """
    rows = []
    for curve, part in measured.items():
        for found in scaling_curve(part, goals[curve.task]).itertuples():
            cell = (curve, int(found.batch_size))
            result, trials = tuned.searches[cell], trial_table(tuned, cell)
            row = {"data / network": curve.workload, "optimiser": OPTIMIZERS[curve.optimizer]}
            row |= {
                "B": int(found.batch_size),
                "steps": _or_not_reached(found.steps, found.low, found.high),
            }
            row |= dict.fromkeys(("epochs", "lr", "1 − momentum", "lr / (1 − momentum)"), "–")
            row["final lr / lr"] = "–"
            if result.best is not None:
                best = ranked_trials(tuned, cell).iloc[0]
                row["epochs"] = f"{found.steps * cell[1] / sizes[curve.dataset]:.2f}"
                row["lr"], row["1 − momentum"] = (f"{v:.3g}" for v in (best.lr, 1 - best.momentum))
                row["lr / (1 − momentum)"] = f"{best.effective_lr:.3g}"
                row["final lr / lr"] = f"{best.get('final_fraction', 1.0):.3g}"
            counts = trials["outcome"].value_counts()
            row["trials"] = len(trials)
            row |= {word: int(counts.get(word, 0)) for word in ("reached", "diverged")}
            edge = "inside" if result.inside else "at an edge"
            row["optimum"] = NOT_REACHED if result.best is None else edge
            rows.append(row)
    return pd.DataFrame(rows)


def regimes_table(curves: Sequence[Curve], arrays: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Boundaries of the three regimes and the ends of the fitted curves, with 95 % intervals.

    Args:
        curves: in the order of the arrays.
        arrays: from `regime_arrays`.
    """
    names = {
        "perfect_until": "perfect scaling up to B",
        "flat_from": "flat from B",
        "critical_batch_size": "critical B",
        "min_steps": "fewest steps",
        "min_samples": "fewest images",
    }
    rows = []
    for i, curve in enumerate(curves):
        row = {"data / network": curve.workload, "optimiser": OPTIMIZERS[curve.optimizer]}
        for name, title in names.items():
            value, low, high = (arrays[key][i, QUANTITIES.index(name)] for key in
                                ("value", "low", "high"))  # fmt: skip
            row[title] = boundary_text(value, low, high)
        fit = Regimes(*arrays["fits"][i])
        row["sharpness"] = "" if math.isnan(fit.sharpness) else f"{fit.sharpness:.2f}"
        row["residual (%)"] = "" if math.isnan(fit.residual) else f"{100 * fit.residual:.0f}"
        row["points"] = int(fit.num_points)
        rows.append(row)
    return pd.DataFrame(rows)


def budget_table(frame: pd.DataFrame, budgets: Mapping[str, float]) -> pd.DataFrame:
    """`budget_frame` as text: a row per curve and batch size, the errors in %."""
    titles = {"step": f"error after {budgets['step']} steps (%)",
              "epoch": f"error after {budgets['epoch']} epochs (%)"}  # fmt: skip
    rows = {}
    for found in frame.itertuples():
        curve = found.curve
        row = rows.setdefault(
            (curve, found.batch_size),
            {"data / network": curve.workload, "optimiser": OPTIMIZERS[curve.optimizer],
             "B": found.batch_size},
        )  # fmt: skip
        percent = (100 * found.error, 100 * found.low, 100 * found.high)
        row[titles[found.budget]] = interval_text(*percent, ".1f") or "not evaluated"
    return pd.DataFrame(list(rows.values()))


def rules_table(
    tuned: Tuned, curves: Sequence[Curve], columns: Mapping[str, str]
) -> tuple[pd.DataFrame, dict[tuple[Curve, str], Slope]]:
    """The powers of the batch size that the best learning rates follow, and the rules they fit.

    Args:
        tuned: the searches.
        curves: which.
        columns: of `trial_table` -> its name in the table.
    """
    slopes = {(c, column): best_rates(tuned, c, column)[1] for c in curves for column in columns}
    rows = []
    for curve in curves:
        row = {"data / network": curve.workload, "optimiser": OPTIMIZERS[curve.optimizer]}
        for column, title in columns.items():
            slope = slopes[curve, column]
            row[f"power of B, {title}"] = interval_text(*slope[:3], ".2f")
            row[f"rule, {title}"] = slope.word
        rows.append(row | {"batch sizes": slopes[curve, next(iter(columns))].num_sizes})
    return pd.DataFrame(rows), slopes


def comparison_table(
    groups: Mapping[str, Sequence[Curve]], steps: Mapping[Curve, Sequence]
) -> pd.DataFrame:
    """Speed-ups of curves beside each other, relative to the first of each group.

    Args:
        groups: title -> curves to compare.
        steps: `steps_by_size` of each curve.

    Returns:
        Text columns ``comparison``, ``curve``, ``steps`` (at the smallest and the largest batch
        size that all of the group have), ``speed-up``, ``relative to the first``, ``result``.
    """
    columns = ["comparison", "curve", "steps", "speed-up", "relative to the first", "result"]
    rows = []
    for title, curves in groups.items():
        fewest = [{size: min(trials) for size, trials in steps[curve]} for curve in curves]
        common = set.intersection(*map(set, fewest))
        found = speed_ups([steps[curve] for curve in curves])
        for curve, by_size, own, relative in zip(curves, fewest, *found, strict=True):
            ends = [by_size[size] for size in (min(common), max(common))]
            ends = " to ".join(_number(n) if n < math.inf else NOT_REACHED for n in ends)
            row = [title, curve_name(curve), ends, _or_not_reached(*own, ".2f")]
            compared = [_or_not_reached(*relative, ".2f"), relative.word]
            rows.append(row + (["", ""] if curve is curves[0] else compared))
    return pd.DataFrame(rows, columns=columns)


def check_table(
    batch_sizes: Sequence[int], num_trials: Sequence[int], arrays: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Steps that the searches found on the noisy quadratic, relative to the exact ones: the
    median, and the lowest and highest; at the end of each optimiser the critical batch size.

    Args:
        batch_sizes, num_trials: as given to `noisy_quadratic_check`.
        arrays: what it gave.
    """
    rows = []
    for kind, name in enumerate(("sgd", "momentum")):
        exact, steps = arrays["exact_steps"][kind], arrays["steps"][kind]
        for i, size in enumerate(batch_sizes):
            row = {"optimiser": OPTIMIZERS[name], "B": str(size), "exact": f"{exact[i]:.0f} steps"}
            for number, found in zip(num_trials, steps[:, :, i] / exact[i], strict=True):
                row[f"found / exact, {number} trials a round"] = _spread(found)
            rows.append(row)
        critical = arrays["exact_critical"][kind]
        row = {"optimiser": OPTIMIZERS[name], "B": "critical", "exact": f"B = {critical:.0f}"}
        for number, found in zip(num_trials, arrays["critical"][kind] / critical, strict=True):
            row[f"found / exact, {number} trials a round"] = _spread(found)
        rows.append(row)
    return pd.DataFrame(rows)


def claims_table(
    curves: Sequence[Curve],
    regimes: Mapping[str, np.ndarray],
    comparisons: pd.DataFrame,
    slopes: Mapping[tuple[Curve, str], Slope],
    budgets: pd.DataFrame,
    *,
    comparable: bool,
    reason: str,
) -> pd.DataFrame:
    """What the review says that the paper found, what was seen here, and a verdict: "same
    direction" where at least half of the curves show it; of a comparison, where more are as
    claimed than the other way round.

    Args:
        curves: in the order of ``regimes``.
        regimes: from `regime_arrays`.
        comparisons: from `comparison_table`, of `comparison_groups`.
        slopes: from `rules_table`, with the column "effective_lr".
        budgets: from `budget_frame`.
        comparable, reason: whether data and protocol are the paper's, and if not, why not.
    """
    num = len(curves)
    value = dict(zip(QUANTITIES, regimes["value"].T, strict=True))
    perfect, flat = (int(np.isfinite(value[k]).sum()) for k in ("perfect_until", "flat_from"))
    rows = [
        (
            "steps fall in proportion, then less, then no more",
            f"end of perfect scaling seen in {perfect}, flat part in {flat} of {num} curves",
            _direction(2 * min(perfect, flat) >= num),
        )
    ]
    for kind, claim in (
        ("optimisers", "with momentum, larger batches pay than with plain SGD"),
        ("networks", "some networks can use larger batches than others"),
        ("data", "the same of data sets"),
    ):
        found = comparisons[comparisons["comparison"].str.startswith(kind)]["result"]
        counts = found[found != ""].value_counts()
        more, less = (int(counts.get(word, 0)) for word in ("larger", "smaller"))
        text = ", ".join(f"{word}: {count}" for word, count in sorted(counts.items()))
        if kind == "optimisers" and less > more:
            word = "opposite"
        elif kind == "optimisers":
            word = _direction(more > less)
        else:
            word = _direction(more + less > 0)
        rows.append((claim, f"speed-up by larger batches, {text}" if text else "not run", word))
    found = [slopes[curve, "effective_lr"] for curve in curves]
    fits = {name: sum(slope.has(power) for slope in found)
            for name, power in (("linear", 1.0), ("square root", 0.5))}  # fmt: skip
    text = ", ".join(f"{name} in {count}" for name, count in fits.items())
    rows.append(
        (
            "best metaparameters follow no simple rule of the batch size",
            f"rules within the interval of lr / (1 − momentum): {text} of {num} curves",
            "same direction" if max(fits.values()) < num else "not reproduced",
        )
    )
    ends = {kind: [direction(budgets, c, kind) for c in curves] for kind in ("step", "epoch")}
    better, worse = ends["step"].count("better"), ends["epoch"].count("worse")
    text = f"better at equal steps in {better}, worse at equal epochs in {worse} of {num} curves"
    rows.append(
        (
            "what a larger batch does to the error depends on the budget",
            f"largest against smallest: {text}",
            _direction(2 * min(better, worse) >= num),
        )
    )
    table = pd.DataFrame(rows, columns=["claim", "here", "verdict"])
    if not comparable:
        table["verdict"], table["why"] = "not comparable", reason
    return table


def scale_table(results: pd.DataFrame, history: pd.DataFrame, num_curves: int) -> pd.DataFrame:
    """The size of the original, as its abstract states it, beside ours."""
    theirs = {"models": 168_160, "workloads": 35, "loss measurements": 71_638_836}
    ours = (results["key"].nunique(), num_curves, len(history))
    rows = [(name, f"{number:,}", f"{mine:,}") for (name, number), mine in
            zip(theirs.items(), ours, strict=True)]  # fmt: skip
    return pd.DataFrame(rows, columns=["number of", "paper", "here"])


def interval_text(value: float, low: float, high: float, how: str = "") -> str:
    """``value [low, high]``; without bounds the value alone, of nan nothing.

    Example:
        >>> interval_text(24.3, 11.0, math.inf), interval_text(2.0, 1.5, 3.25, ".1f")
        ('24 [11, ∞]', '2.0 [1.5, 3.2]')
    """
    if math.isnan(value):
        return ""
    if math.isnan(low) or math.isnan(high):
        return _number(value, how)
    return f"{_number(value, how)} [{_number(low, how)}, {_number(high, how)}]"


def boundary_text(value: float, low: float, high: float) -> str:
    """A boundary with its interval; inf is one that was not seen, nan one without a fit.

    Example:
        >>> boundary_text(math.inf, 90.0, math.inf), boundary_text(math.nan, math.nan, math.nan)
        ('not seen [90, ∞]', 'too few points')
    """
    if math.isnan(value):
        return "too few points"
    if math.isinf(value):
        return f"not seen [{_number(low)}, ∞]" if math.isfinite(low) else "not seen"
    return interval_text(value, low, high)


def _or_not_reached(value: float, low: float, high: float, how: str = "") -> str:
    return interval_text(value, low, high, how) if math.isfinite(value) else NOT_REACHED


def _number(value: float, how: str = "") -> str:
    if math.isinf(value):
        return "∞"
    return format(value, how) if how else f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _spread(values: np.ndarray) -> str:
    """Median [lowest, highest]; no mean of two, of which one may be inf."""
    values = np.sort(np.nan_to_num(values, nan=math.inf, posinf=math.inf))
    return interval_text(values[(len(values) - 1) // 2], values[0], values[-1], ".2f")


def _direction(seen: bool) -> str:
    return "same direction" if seen else "no difference seen"
