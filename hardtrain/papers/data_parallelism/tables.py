"""Tables of the study of batch sizes."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from hardtrain.goals import steps_to_goal
from hardtrain.papers import dataset_name
from hardtrain.papers.data_parallelism import measures
from hardtrain.papers.data_parallelism.regimes import BOUNDARIES, SHARPNESS, Regimes
from hardtrain.papers.data_parallelism.tuning import NOT_REACHED, OPTIMIZERS, Curve, Tuned
from hardtrain.report.tables import MISSING, corrected_columns, describe_values, paired
from hardtrain.report.text import format_number

QUANTITIES = {  # attributes of `Regimes`, in words
    "min_steps": "fewest steps",
    "min_samples": "fewest images",
    "critical_batch_size": "critical B",
    "perfect_until": "perfect scaling up to B",
    "flat_from": "flat from B",
}


def best_table(
    tuned: Tuned,
    curves: Mapping[Curve, Sequence[int]],
    goals: Mapping[Curve, float],
    sizes: Mapping[str, int],
) -> pd.DataFrame:
    """Steps to the goal at every batch size, the trials behind them, and the best of them all.

    ``steps``: `spread` over the searches. ``best of all``: of all counted trials, and what a next
    search of as many would not exceed (`steps_to_goal`); its metaparameters, and its test error at
    the end of training. ``completed``, ``infeasible``: trials of the rounds that count;
    ``before``: of earlier rounds. ``inside``: searches whose best is inside their space.

    Args:
        tuned: the study.
        curves: with their batch sizes.
        goals: by curve.
        sizes: data set -> training samples.
    """
    rows = []
    errors = tuned.results.set_index("key")["test_error"]
    for curve, size in ((curve, size) for curve, sizes in curves.items() for size in sizes):
        trials = tuned.of(curve)
        trials = trials[trials["batch_size"] == size]
        counted, by_seed = trials[trials["counted"]], trials.groupby("seed")
        row = curve.words | {"B": size, "steps": MISSING, "best of all": MISSING}
        row |= dict.fromkeys(
            ("epochs", "lr", "1 − momentum", "final lr / lr", "test error (%)"), "–"
        )
        if len(counted):
            measured = counted[["key"]].assign(trial=range(len(counted)))
            columns = ["key", "step", "validation_error"]
            measured = measured.merge(tuned.history.reindex(columns=columns), on="key", how="left")
            lost = counted["outcome"].to_numpy() == "infeasible"
            measured.loc[lost[measured["trial"]], "validation_error"] = math.nan
            measured = measured.rename(columns={"validation_error": "error"}).fillna({"step": 1})
            found = steps_to_goal(measured, goals[curve])
            ours = measures.over_searches(measures.best_trials(trials))
            row["steps"] = _spread(measures.Spread(*ours[list(measures.Spread._fields)].iloc[0]))
            row["best of all"] = f"{_number(found.steps)}, next ≤ {_number(found.next_below)}"
            if found.best_trial is not None:
                best = counted.iloc[found.best_trial]
                row["epochs"] = f"{found.steps * size / sizes[curve.dataset]:.2f}"
                row["lr"], row["1 − momentum"] = f"{best.lr:.3g}", f"{1 - best.momentum:.3g}"
                row["final lr / lr"] = f"{best.get('final_fraction', 1.0):.3g}"
                row["test error (%)"] = format_number(100 * errors[best.key], 1)
        outcomes = counted["outcome"].value_counts()
        row["infeasible"] = int(outcomes.get("infeasible", 0))
        row["completed"] = len(counted) - row["infeasible"]
        row["reached"] = int(outcomes.get("reached", 0))
        row["before"] = int((trials["outcome"] != MISSING).sum()) - len(counted)
        row["inside"] = f"{by_seed['inside'].first().sum()} of {by_seed.ngroups}"
        rows.append(row)
    return pd.DataFrame(rows)


def regimes_table(
    fits: Mapping[Curve, Sequence[Regimes]], sizes: Mapping[Curve, Sequence[int]]
) -> pd.DataFrame:
    """Boundaries of the three regimes and the ends of the fitted curves, over the searches.

    ``†``: the boundary has fewer than two measured batch sizes on one of its sides. ``at bound``:
    searches whose sharpness is at a bound of the fit, which says that the points do not tell it.

    Args:
        fits: from `regimes`.
        sizes: batch sizes.
    """
    rows = []
    for curve, searches in fits.items():
        told = [fit for fit in searches[1:] if not math.isnan(fit.min_steps)]
        row = dict(curve.words)
        for name, title in QUANTITIES.items():
            middle = measures.over_fits(searches, name)
            row[title] = "too few points" if middle is None else _spread(middle, unknown="not seen")
            if middle and name in BOUNDARIES and measures.is_loose(middle.value, sizes[curve]):
                row[title] += " †"
        sharp = [fit.sharpness for fit in told]
        row["sharpness"] = _spread(measures.spread(np.array(sharp)), ".2g") if told else ""
        stuck = sum(np.isclose(p, SHARPNESS, rtol=0.01).any() for p in sharp)
        row["at bound"] = f"{stuck} of {len(told)}"
        worst = max((fit.residual for fit in told), default=math.nan)
        row["residual up to (%)"] = format_number(100 * worst, 0, missing="")
        rows.append(row)
    return pd.DataFrame(rows)


def budget_table(
    errors: Mapping[Curve, pd.DataFrame], budgets: Mapping[str, float]
) -> pd.DataFrame:
    """`lowest_errors` of each curve over its searches, in %: a row per batch size."""
    rows = []
    for curve, frame in errors.items():
        for size, part in frame.groupby("batch_size"):
            cells = {
                f"error after {budget} {unit}s (%)": _spread(
                    measures.spread(100 * part[unit].to_numpy()), ".1f", unknown="not evaluated"
                )
                for unit, budget in budgets.items()
            }
            rows.append(curve.words | {"B": size} | cells)
    return pd.DataFrame(rows)


def rules_table(best: Mapping[Curve, pd.DataFrame], columns: Mapping[str, str]) -> pd.DataFrame:
    """The powers of the batch size that the best learning rates follow, and the rules they fit.

    Args:
        best: `best_trials` by curve.
        columns: titles by column.
    """
    rows = []
    for curve, trials in best.items():
        row = dict(curve.words)
        for column, title in columns.items():
            powers = measures.powers(trials, column).dropna()
            row[f"power of B, {title}"] = describe_values(powers, 2)
            row[f"rule, {title}"] = measures.rules_within(measures.interval(powers))
        rows.append(row)
    return pd.DataFrame(rows)


def comparison_table(
    groups: Mapping[str, Mapping[str, Sequence[Curve]]], speed_ups: Mapping[Curve, pd.Series]
) -> pd.DataFrame:
    """Speed-ups of curves beside each other, and minus the first of each group.

    Args:
        groups: from `comparison_groups`.
        speed_ups: `halvings` from the smallest to the largest batch, by curve.

    Returns:
        Text columns ``compared`` (what differs), what the curve is, ``halvings`` and ``minus the
        first``, search by search.
    """
    rows = []
    for kind, members in groups.items():
        for curves in members.values():
            for curve in curves:
                row = {"compared": kind} | curve.words
                row["halvings"] = describe_values(speed_ups[curve].dropna(), 2)
                first = None if curve is curves[0] else speed_ups[curves[0]]
                row["minus the first"] = None if first is None else paired(speed_ups[curve], first)
                rows.append(row)
    columns = ["compared", "data", "network", "optimiser", "halvings", "minus the first"]
    return corrected_columns(pd.DataFrame(rows, columns=columns), {"minus the first": 2})


def goals_table(
    printed: pd.DataFrame, stand_ins: Mapping[str, str], goals: Mapping[Curve, float], tuned: Tuned
) -> pd.DataFrame:
    """The printed goals, each beside what stands for its workload here: our goal, and how many of
    the completed trials were ever below the printed one.

    Args:
        printed: ``data_parallelism_goals``.
        stand_ins: our network by the paper's.
        goals: by curve.
        tuned: the study.
    """
    rows = []
    lowest = tuned.history.reindex(columns=["key", "validation_error"]).groupby("key").min()
    for row in printed.itertuples():
        cells = {"workload": f"{row.model}, {row.images}", "metric": row.metric}
        cells |= {"goal, paper": row.goal, "B, paper": row.batch_sizes}
        network = stand_ins.get(row.model)
        cells |= {"here": MISSING, "goal, here": "", "below the paper's": ""}
        same = Curve(dataset_name(row.images), network, "nesterov") if network else None
        for curve in {same} & set(goals):
            counted = tuned.of(curve).query("counted and outcome != 'infeasible'")
            below = (counted["key"].map(lowest["validation_error"]) < row.goal).sum()
            cells |= {"here": network, "goal, here": format_number(goals[curve], 3)}
            cells["below the paper's"] = f"{below} of {len(counted)}"
        rows.append(cells)
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
                cell = _spread(measures.spread(found), ".2f", unknown="∞")
                row[f"found / exact, {number} trials a round"] = cell
            rows.append(row)
    return pd.DataFrame(rows)


def _spread(found: measures.Spread, digits: str = "", *, unknown: str = NOT_REACHED) -> str:
    """``median [lowest, highest]``; for inf ``unknown`` in place of the median.

    Example:
        >>> _spread(measures.Spread(24.3, 11.0, math.inf))
        '24 [11, ∞]'
    """
    value, low, high = found
    if low == math.inf:
        return unknown
    text = _number(value, digits) if math.isfinite(value) else unknown
    return f"{text} [{_number(low, digits)}, {_number(high, digits)}]"


def _number(value: float, digits: str = "") -> str:
    if math.isinf(value):
        return "∞"
    return format(value, digits or (".0f" if value >= 10 else ".2g"))
