"""The comparison's tables: errors at equal samples and at equal time, one ranking, an answer."""

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from hardtrain.papers.compare import plan
from hardtrain.papers.compare.plan import BASELINES
from hardtrain.report import tables
from hardtrain.report.text import format_difference, format_number
from hardtrain.runs.run import Run
from hardtrain.statistics import PairedDifference, holm_corrected

Cells = Mapping[str, Mapping[str, Sequence[Run]]]  # runs by setting and arm
POWER = 0.8  # of the smallest effect that could have been seen
TO_SPARE = 1.02  # times plain training's time: what measured times can tell


def with_balanced_error(results: pd.DataFrame) -> pd.DataFrame:
    """The results with ``balanced_error``: the mean over classes of the error of each."""

    def balanced(text: str) -> float:
        errors = [error for error in json.loads(text or "[]") if error is not None]
        return float(np.mean(errors)) if errors else math.nan

    return results.assign(balanced_error=results["per_class_error"].map(balanced))


def costs(timings: pd.DataFrame, arm: Sequence[Run]) -> tuple[float, float]:
    """Mean seconds of an arm's trainings, and of those that they needed before, which count too."""
    own = timings[timings["key"].isin([run.key for run in arm])]
    training = float((own["seconds"] - own["seconds_evaluating"]).mean())
    before = own["seconds_before"].mean() if "seconds_before" in own else math.nan
    return training, 0.0 if math.isnan(before) else float(before)


def at_equal_time(
    results: pd.DataFrame, history: pd.DataFrame, timings: pd.DataFrame, cells: Cells
) -> dict[str, dict[str, pd.Series]]:
    """By setting and arm the test errors (%) by seed at the last evaluation before plain training's
    mean time was over; nan without one. An arm's mean time goes evenly over its updates."""
    found: dict[str, dict[str, pd.Series]] = {}
    for setting, arms in cells.items():
        limit = sum(costs(timings, arms["plain"]))
        found[setting] = {}
        for name, arm in arms.items():
            training, before = costs(timings, arm)

            def error(_: Run, rows: pd.DataFrame, training=training, before=before) -> float:
                spent = before + training * rows["step"] / rows["step"].max()
                in_time = rows[spent <= limit * TO_SPARE]  # noqa: B023
                return 100 * in_time["test_error"].iloc[-1] if len(in_time) else math.nan

            found[setting][name] = tables.per_run(history, results, arm, error)
    return found


def error_table(
    results: pd.DataFrame, history: pd.DataFrame, cells: Cells, num_train: Mapping[str, int]
) -> pd.DataFrame:
    """Final test error at about equal samples, and its differences to plain training and to a
    random share. ``samples``: through the backward pass, relative to plain training; of the latter
    ``num_train`` an epoch, by setting."""
    labelled = {
        (setting, plan.label(name)): (setting, arm)
        for setting, arms in cells.items()
        for name, arm in arms.items()
    }
    baselines = {
        plan.label(base).lower(): {
            label: cells[setting][base] for label, (setting, _) in labelled.items()
        }
        for base in BASELINES
    }
    shown = {
        "test error (%)": tables.TEST_ERROR,
        "balanced error (%)": tables.Metric("balanced_error", scale=100),
    }
    rows = {label: arm for label, (_, arm) in labelled.items()}
    frame = tables.arms_table(results, rows, shown, names=("setting", "arm"), baselines=baselines)
    last = history.groupby("key").last()
    samples = []
    for setting, arm in labelled.values():
        plain = cells[setting]["plain"][0].epochs * num_train[setting]
        counted = last.reindex([run.key for run in arm]).get("samples", pd.Series(dtype=float))
        # what does not count them sends every sample of an epoch
        samples.append((counted / plain).fillna(1.0).mean() if len(counted) else 1.0)
    frame.insert(2, "samples", [format_number(part, 2) for part in samples])
    return frame


def time_table(
    results: pd.DataFrame, history: pd.DataFrame, timings: pd.DataFrame, cells: Cells
) -> pd.DataFrame:
    """Test error when plain training's time is over, everything counted, and what an arm costs."""
    errors = at_equal_time(results, history, timings, cells)
    rows = []
    for setting, arms in cells.items():
        limit = sum(costs(timings, arms["plain"]))
        for name, arm in arms.items():
            values = errors[setting][name].dropna()
            row = {
                "setting": setting,
                "arm": plan.label(name),
                "time of its whole training": format_number(sum(costs(timings, arm)) / limit, 2),
                "test error (%)": tables.describe_values(values, 2) if len(values) else "too late",
            }
            for base in BASELINES:
                gap = None if base == name else tables.paired(values, errors[setting][base])
                row[f"minus {plan.label(base).lower()}"] = gap
            rows.append(row)
    digits = {f"minus {plan.label(base).lower()}": 2 for base in BASELINES}
    return tables.corrected_columns(pd.DataFrame(rows), digits)


def differences_to_plain(results: pd.DataFrame, cells: Cells) -> dict[str, PairedDifference | None]:
    """By arm the paired difference to plain training (points), the mean over the settings."""

    def mean_error(name: str) -> pd.Series:
        by_seed = [
            100 * tables.metric_by_seed(results, arms[name], "test_error")
            for arms in cells.values()
        ]
        return tables.mean_over_arms(by_seed)

    (some,) = {tuple(arms) for arms in cells.values()}
    plain = mean_error("plain")
    return {name: tables.paired(mean_error(name), plain) for name in some if name != "plain"}


def smallest_effect(gap: PairedDifference | None) -> float:
    """The true difference that these seeds would have found, at 5 %, with probability `POWER`."""
    if gap is None or gap.n < 2 or not math.isfinite(gap.half_width):
        return math.nan
    needed = stats.t.ppf(0.975, gap.n - 1)
    return gap.half_width / needed * (needed + stats.t.ppf(POWER, gap.n - 1))


def relative_cost(timings: pd.DataFrame, cells: Cells, name: str) -> float:
    """The time of an arm's trainings, relative to plain training's, over all settings."""
    own, plain = (
        sum(sum(costs(timings, arms[which])) for arms in cells.values())
        for which in (name, "plain")
    )
    return own / plain


def ranking_table(results: pd.DataFrame, timings: pd.DataFrame, cells: Cells) -> pd.DataFrame:
    """One ranking: the difference to plain training, the mean over the settings, best first."""
    gaps = differences_to_plain(results, cells)
    corrected = dict(zip(gaps, holm_corrected(list(gaps.values())), strict=True))
    order = sorted(gaps, key=lambda name: math.inf if gaps[name] is None else gaps[name].mean)
    frame = pd.DataFrame(
        {
            "arm": plan.label(name),
            "minus plain training (points)": format_difference(corrected[name]),
            "smallest effect that could be seen": format_number(smallest_effect(gaps[name]), 2),
            "time": format_number(relative_cost(timings, cells, name), 2),
            "finding": _finding(corrected[name]),
        }
        for name in order
    )
    frame.attrs["questions"] = sum(gap is not None for gap in gaps.values())
    return frame


def _finding(gap: PairedDifference | None) -> str:
    """By the corrected p value, which is the answer's."""
    if gap is None:
        return tables.MISSING
    if math.isnan(gap.p) or gap.p >= 0.05:
        return "no difference shown"
    return "better" if gap.mean < 0 else "worse"


def answer(results: pd.DataFrame, cells: Cells, timings: pd.DataFrame) -> str:
    """The plain sentence: which arms beat plain training here by more than chance, at what cost."""
    gaps = differences_to_plain(results, cells)
    corrected = dict(zip(gaps, holm_corrected(list(gaps.values())), strict=True))
    better = [name for name in gaps if _finding(corrected[name]) == "better"]
    worse = [name for name in gaps if _finding(corrected[name]) == "worse"]
    could = [smallest_effect(gap) for gap in gaps.values()]
    if np.isnan(could).all():
        return "Too little was run for an answer."
    if better:
        parts = [
            f"{plan.label(name)} ({gaps[name].mean:+.2f} points, "
            f"{relative_cost(timings, cells, name):.2f} times the time)"
            for name in sorted(better, key=lambda name: gaps[name].mean)
        ]
        text = f"Better than plain training here, by more than chance: {'; '.join(parts)}."
    else:
        text = "None beat plain training here by more than chance."
    if worse:
        text += f" Worse: {', '.join(plan.label(name) for name in worse)}."
    return (
        f"{text} With these seeds, effects below {np.nanmin(could):.2f} to {np.nanmax(could):.2f} "
        "points, by arm, would mostly not have been seen."
    )
