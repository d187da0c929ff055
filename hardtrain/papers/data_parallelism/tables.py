"""Tables of the study of batch sizes."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from hardtrain.papers.data_parallelism import measures
from hardtrain.papers.data_parallelism.batch_scaling import QUANTITIES, Estimate
from hardtrain.papers.data_parallelism.regimes import Regimes
from hardtrain.papers.data_parallelism.tuning import OPTIMIZERS, Curve, Tuned
from hardtrain.report.text import format_number


def best_table(
    tuned: Tuned, frames: Mapping[Curve, pd.DataFrame], sizes: Mapping[str, int]
) -> pd.DataFrame:
    """The best metaparameters of every cell, with its steps and their 95 % interval.

    Args:
        tuned: the searches.
        frames: `scaling_curve` of each curve.
        sizes: data set -> training samples.
    """
    rows = []
    for curve, frame in frames.items():
        for size, *steps in frame[["batch_size", "value", "low", "high"]].itertuples(index=False):
            search, trials = tuned.searches[curve, size], measures.trial_table(tuned, (curve, size))
            best, outcomes = trials.iloc[0], trials["outcome"].to_list()
            row = curve.words | {"B": size, "steps": interval_text(*steps)}
            cells = {
                "epochs": f"{steps[0] * size / sizes[curve.dataset]:.2f}",
                "lr": f"{best.lr:.3g}",
                "1 − momentum": f"{1 - best.momentum:.3g}",
                "lr / (1 − momentum)": f"{best.effective_lr:.3g}",
                "final lr / lr": f"{best.get('final_fraction', 1.0):.3g}",
            }
            row |= dict.fromkeys(cells, "–") if search.best is None else cells
            row |= {"trials": len(trials)}
            row |= {outcome: outcomes.count(outcome) for outcome in ("reached", "diverged")}
            edge = "inside" if search.inside else "at an edge"
            rows.append(row | {"optimum": measures.NOT_REACHED if search.best is None else edge})
    return pd.DataFrame(rows)


def regimes_table(curves: Sequence[Curve], arrays: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Boundaries of the three regimes and the ends of the fitted curves, with 95 % intervals.

    Args:
        curves: in the order of the arrays.
        arrays: from `regime_arrays`.
    """
    rows = []
    for i, curve in enumerate(curves):
        row, fit = dict(curve.words), Regimes(*arrays["fits"][i])
        numbers = zip(*(arrays[name][i] for name in ("value", "low", "high")), strict=True)
        for title, interval in zip(QUANTITIES.values(), numbers, strict=True):
            unknown = "too few points" if math.isnan(fit.min_steps) else "not seen"
            row[title] = interval_text(*interval, unknown=unknown)
        row["sharpness"] = format_number(fit.sharpness, 2, missing="")
        row["residual (%)"] = format_number(100 * fit.residual, 0, missing="")
        rows.append(row | {"points": int(fit.num_points)})
    return pd.DataFrame(rows)


def budget_table(
    within: Mapping[Curve, pd.DataFrame], budgets: Mapping[str, float]
) -> pd.DataFrame:
    """`best_at_budgets` of each curve as text: a row per batch size, the errors in %."""
    rows = {}
    for curve, frame in within.items():
        for size, unit, *error in frame.itertuples(index=False):
            row = rows.setdefault((curve, size), curve.words | {"B": size})
            row[f"error after {budgets[unit]} {unit}s (%)"] = interval_text(
                *(100 * number for number in error), ".1f", unknown="not evaluated"
            )
    return pd.DataFrame(list(rows.values()))


def rules_table(
    rates: Mapping[tuple[Curve, str], tuple[pd.DataFrame, Estimate]], titles: Mapping[str, str]
) -> pd.DataFrame:
    """The powers of the batch size that the best learning rates follow, and the rules they fit.

    Args:
        rates: `best_rates` by curve and column.
        titles: of the columns.
    """
    rows: dict[Curve, dict] = {}
    for (curve, column), (frame, slope) in rates.items():
        row = rows.setdefault(curve, curve.words | {"batch sizes": frame["value"].notna().sum()})
        row[f"power of B, {titles[column]}"] = interval_text(*slope, ".2f", unknown="")
        row[f"rule, {titles[column]}"] = measures.rules_within(slope)
    return pd.DataFrame(list(rows.values()))


def comparison_table(
    groups: Mapping[str, Mapping[str, Sequence[Curve]]], steps: Mapping[Curve, Sequence]
) -> pd.DataFrame:
    """Speed-ups of curves beside each other, relative to the first of each group.

    Args:
        groups: from `comparison_groups`.
        steps: `steps_by_size` of each curve.

    Returns:
        Text columns ``compared`` (what differs), what the curve is, ``steps`` (at the smallest and
        the largest batch size that all of the group have), ``speed-up``, ``relative to the
        first``, ``result``.
    """
    rows = []
    for kind, members in groups.items():
        for curves in members.values():
            ends = measures.common_ends([steps[curve] for curve in curves])
            own, relative = measures.speed_ups([steps[curve] for curve in curves])
            for curve, ratio, to_first in zip(curves, own, [None, *relative], strict=True):
                fewest = [min(trials) for size, trials in steps[curve] if size in ends]
                row = {"compared": kind} | curve.words
                row["steps"] = " to ".join(interval_text(n, math.nan, math.nan) for n in fewest)
                row["speed-up"] = interval_text(*ratio, ".2f")
                row["relative to the first"] = interval_text(*to_first, ".2f") if to_first else ""
                row["result"] = measures.ratio_word(to_first) if to_first else ""
                rows.append(row)
    return pd.DataFrame(rows)


def check_table(
    batch_sizes: Sequence[int], num_trials: Sequence[int], arrays: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Steps that the searches found on the noisy quadratic, relative to the exact ones: the
    median, and the lowest and highest; at the end of each optimiser the critical batch size.

    Args:
        batch_sizes, num_trials: as given to `noisy_quadratic_check`.
        arrays: what it gave.
    """
    exact = np.append(arrays["exact_steps"], arrays["exact_critical"][:, None], axis=-1)
    searched = np.append(arrays["steps"], arrays["critical"][..., None], axis=-1)
    ratios = np.moveaxis(searched / exact[:, None, None], 2, -1)  # (2, K, B + 1, R)
    rows = []
    for kind, name in enumerate(("sgd", "momentum")):
        for i, size in enumerate([*map(str, batch_sizes), "critical"]):
            unit = "B = {:.0f}" if size == "critical" else "{:.0f} steps"
            row = {"optimiser": OPTIMIZERS[name], "B": size, "exact": unit.format(exact[kind, i])}
            for number, found in zip(num_trials, ratios[kind, :, i], strict=True):
                cell = interval_text(*measures.spread(found), ".2f", unknown="∞")
                row[f"found / exact, {number} trials a round"] = cell
            rows.append(row)
    return pd.DataFrame(rows)


def claims_table(
    regimes: Mapping[str, np.ndarray],
    comparisons: pd.DataFrame,
    slopes: Sequence[Estimate],
    within: Sequence[pd.DataFrame],
    *,
    reason: str = "",
) -> pd.DataFrame:
    """What the review says that the paper found, what was seen here, and a verdict: "same
    direction" where at least half of the curves show it; of a comparison, where more are as
    claimed than the other way round.

    Args:
        regimes: from `regime_arrays`.
        comparisons: from `comparison_table`.
        slopes: of each curve's best effective learning rate, from `best_rates`.
        within: `best_at_budgets` of each curve.
        reason: why ours is not comparable with the paper's; empty if it is.
    """
    num = len(slopes)
    seen = dict(zip(QUANTITIES, np.isfinite(regimes["value"]).sum(axis=0), strict=True))
    perfect, flat = seen["perfect_until"], seen["flat_from"]
    rules = [measures.rules_within(slope) for slope in slopes]
    linear, root = (sum(name in text for text in rules) for name in ("linear", "square root"))
    better = [measures.size_effect(frame, "step") for frame in within].count("better")
    worse = [measures.size_effect(frame, "epoch") for frame in within].count("worse")
    claims = {
        "steps fall in proportion, then less, then no more": (
            f"end of perfect scaling seen in {perfect}, flat part in {flat} of {num} curves",
            _seen(2 * min(perfect, flat) >= num),
        ),
        "with momentum, larger batches pay than with plain SGD": _speed_up(
            comparisons, "optimiser"
        ),
        "some networks can use larger batches than others": _speed_up(comparisons, "network"),
        "the same of data sets": _speed_up(comparisons, "data"),
        "best metaparameters follow no simple rule of the batch size": (
            f"rules within the interval of lr / (1 − momentum): linear in {linear}, "
            f"square root in {root} of {num} curves",
            "same direction" if max(linear, root) < num else "not reproduced",
        ),
        "what a larger batch does to the error depends on the budget": (
            f"largest against smallest: better at equal steps in {better}, "
            f"worse at equal epochs in {worse} of {num} curves",
            _seen(2 * min(better, worse) >= num),
        ),
    }
    rows = [(claim, *outcome) for claim, outcome in claims.items()]
    table = pd.DataFrame(rows, columns=["claim", "here", "verdict"])
    if reason:
        table["verdict"], table["why"] = "not comparable", reason
    return table


def _speed_up(comparisons: pd.DataFrame, kind: str) -> tuple[str, str]:
    """How the comparisons of one kind ended, and the verdict."""
    rows = comparisons.to_dict("records")
    words = [row["result"] for row in rows if row["compared"] == kind and row["result"]]
    text = ", ".join(f"{word}: {words.count(word)}" for word in sorted(set(words)))
    more, less = words.count("larger"), words.count("smaller")
    verdict = _seen(more > less if kind == "optimiser" else more + less > 0)
    if kind == "optimiser" and less > more:
        verdict = "opposite"
    return f"speed-up by larger batches, {text}" if text else "not run", verdict


def _seen(as_claimed: bool) -> str:
    return "same direction" if as_claimed else "no difference seen"


def interval_text(
    value: float, low: float, high: float, digits: str = "", *, unknown: str = measures.NOT_REACHED
) -> str:
    """``value [low, high]``; without bounds the value alone; for inf and nan ``unknown``, with
    bounds where they say more.

    Example:
        >>> interval_text(24.3, 11.0, math.inf), interval_text(2.0, 1.5, 3.25, ".1f")
        ('24 [11, ∞]', '2.0 [1.5, 3.2]')
        >>> interval_text(math.inf, 90.0, math.inf, unknown="not seen")
        'not seen [90, ∞]'
    """
    text = _number(value, digits) if math.isfinite(value) else unknown
    if math.isnan(low) or math.isnan(high) or value == low == math.inf:
        return text
    return f"{text} [{_number(low, digits)}, {_number(high, digits)}]"


def _number(value: float, digits: str) -> str:
    if math.isinf(value):
        return "∞"
    return format(value, digits or (".0f" if value >= 10 else ".2g"))
