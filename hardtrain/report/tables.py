"""What the tables of all papers are made of: a metric over seeds, paired differences, verdicts.

An *arm* is a list of runs that differ in their seed alone; arms are compared seed by seed.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from hardtrain.report.text import format_difference, format_interval, format_number
from hardtrain.runs.run import Run
from hardtrain.statistics import (
    PairedDifference,
    holm_corrected,
    mean_interval,
    paired_difference,
    sampling_deviation,
    verdict,
    verdict_single,
)

MISSING = "not run"
Arms = Mapping[object, Sequence[Run]]  # by label: a text, or a tuple with one for each column


class Metric(NamedTuple):
    """A column of the results, and how a table shows it: decimals, and a factor before rounding."""

    column: str
    digits: int = 2
    scale: float = 1.0


TEST_ERROR = Metric("test_error", scale=100)
TEST_LOSS = Metric("test_loss")


class Protocol(NamedTuple):
    """Whether ours is the paper's, and if not, why not; what to say of a cell not run; how many
    runs are behind each printed number."""

    comparable: bool
    reason: str = ""
    not_run: str = MISSING
    num_runs: int = 1


def metric_by_seed(results: pd.DataFrame, arm: Sequence[Run], column: str) -> pd.Series:
    """A column of an arm's finished runs, indexed by seed; nan where it is undefined."""
    chosen = results["key"].isin([run.key for run in arm]) & (results["status"] == "finished")
    return results[chosen].drop_duplicates("key").set_index("seed")[column]


def is_run(results: pd.DataFrame, arms: Iterable[Sequence[Run]]) -> bool:
    """Whether there is a result of any run of these arms."""
    return bool(results["key"].isin([run.key for arm in arms for run in arm]).any())


def class_errors(results: pd.DataFrame, arm: Sequence[Run]) -> pd.DataFrame:
    """Errors of each class (columns) of an arm's finished runs, by seed; nan where it is absent."""
    texts = metric_by_seed(results, arm, "per_class_error")
    return pd.DataFrame([*texts.map(json.loads)], index=texts.index, dtype=float)


def per_run(
    history: pd.DataFrame,
    results: pd.DataFrame,
    arm: Sequence[Run],
    number: Callable[[Run, pd.DataFrame], float],
) -> pd.Series:
    """``number(run, its rows of the history)`` of each finished run of an arm, by seed."""
    finished = metric_by_seed(results, arm, "test_error").index
    own = dict(list(history[history["key"].isin([run.key for run in arm])].groupby("key")))
    found = {run.seed: number(run, own[run.key]) for run in arm if run.seed in finished}
    return pd.Series(found, dtype=float)


def one_class(results: pd.DataFrame) -> pd.Series:
    """Of each run whether its network says one class, whatever it is shown."""

    def is_so(text: object) -> bool:
        errors = json.loads(text) if text and isinstance(text, str) else []  # one that diverged
        found = sorted(error for error in errors if error is not None)
        return len(found) > 1 and found[0] == 0 and found[1] == 1

    return results["per_class_error"].map(is_so)


def curves(history: pd.DataFrame, arm: Sequence[Run], column: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs ``(T,)`` and a history column ``(S, T)`` of the runs that reached the end."""
    if column not in history:  # every run diverged before it was evaluated
        return np.zeros(0), np.zeros((0, 0))
    chosen = history[history["key"].isin([run.key for run in arm])]
    last = chosen.groupby("key")["epoch"].max()
    reached = [run.key for run in arm if last.get(run.key) == run.epochs]
    wide = chosen.pivot(index="epoch", columns="key", values=column)[reached]
    return wide.index.to_numpy(), wide.to_numpy().T


def describe(results: pd.DataFrame, arm: Sequence[Run], metric: Metric = TEST_ERROR) -> str:
    """``mean ± half width (n = ...)`` over seeds, how many runs diverged, and of how many finished
    ones the number is undefined."""
    finished = metric_by_seed(results, arm, metric.column)
    rows = results[results["key"].isin([run.key for run in arm])].drop_duplicates("key")
    counts = {"diverged": int((rows["status"] == "diverged").sum())}
    counts["undefined"] = int(finished.isna().sum())
    parts = [f"{count} {word}" for word, count in counts.items() if count]
    if finished.notna().any():
        parts.insert(0, describe_values(finished.dropna(), metric.digits, metric.scale))
    return ", ".join(parts) or MISSING


def describe_values(values: Sequence[float], digits: int = 1, scale: float = 1.0) -> str:
    """``mean ± half width (n = ...)`` of numbers, or that there are none."""
    return format_interval(mean_interval(values), digits, scale) if len(values) else MISSING


def paired(treatment: pd.Series, baseline: pd.Series) -> PairedDifference | None:
    """Treatment minus baseline over the seeds for which both are defined; ``None`` without one."""
    sides = treatment.dropna(), baseline.dropna()
    if sides[0].index.intersection(sides[1].index).empty:
        return None
    return paired_difference(*sides)


def difference(
    results: pd.DataFrame,
    treatment: Sequence[Run],
    baseline: Sequence[Run],
    metric: Metric = TEST_ERROR,
) -> PairedDifference | None:
    """Treatment minus baseline over common seeds, in the metric's unit; ``None`` without a pair."""
    sides = (metric_by_seed(results, arm, metric.column) for arm in (treatment, baseline))
    return paired(*(metric.scale * side for side in sides))


def mean_over_arms(by_seed: Sequence[pd.Series]) -> pd.Series:
    """The mean over arms of a number by seed, for the seeds that all of them have."""
    if not by_seed:
        return pd.Series(dtype=float)
    return pd.concat(by_seed, axis=1, join="inner").mean(axis=1)


def arms_table(
    results: pd.DataFrame,
    arms: Arms,
    shown: Mapping[str, Metric],
    *,
    names: Sequence[str] = ("arm",),
    baselines: Mapping[str, Arms | object] | None = None,
    compared: Sequence[str] | None = None,
) -> pd.DataFrame:
    """A row for each arm: what it is, its metrics, and their differences to its baselines.

    Args:
        results: from ``run_missing``.
        arms: runs by label.
        shown: metrics by the heading of their column.
        names: headings of the labels.
        baselines: by the name that the heading gets: the label of an arm, or, where arms have
            different ones, runs by label. An arm has no difference to itself.
        compared: headings of ``shown`` that are compared; by default the first.

    Returns:
        Text columns ``names``; for each metric ``mean ± half width (n = ...)``, and behind it,
        for each baseline, the paired difference with its p, which is corrected over all of the
        table (`corrected_columns`).
    """
    compared = list(shown)[:1] if compared is None else compared
    rows, digits = [], {}
    for label, arm in arms.items():
        row = dict(zip(names, label if isinstance(label, tuple) else (label,), strict=True))
        for heading, metric in shown.items():
            row[heading] = describe(results, arm, metric)
            for name, base in (baselines or {}).items() if heading in compared else ():
                other = base.get(label, ()) if isinstance(base, Mapping) else arms[base]
                same = [run.key for run in arm] == [run.key for run in other]
                row[f"{heading} minus {name}"] = (
                    None if same else difference(results, arm, other, metric)
                )
                digits[f"{heading} minus {name}"] = metric.digits
        rows.append(row)
    return corrected_columns(pd.DataFrame(rows), digits)


def corrected_columns(frame: pd.DataFrame, digits: Mapping[str, int]) -> pd.DataFrame:
    """A frame whose columns of paired differences become text, their p values Holm-corrected
    over all of them.

    Args:
        frame: in the columns named in ``digits`` a `PairedDifference` or ``None`` a cell.
        digits: decimals by column.

    Returns:
        The frame; its ``attrs["questions"]`` counts the corrected p values, which
        ``Notebook.save_table`` says in the note.
    """
    cells = [(i, name) for name in digits for i in range(len(frame))]
    gaps = [frame.at[i, name] for i, name in cells]
    for (i, name), gap in zip(cells, holm_corrected(gaps), strict=True):
        frame.at[i, name] = format_difference(gap, digits[name])
    frame.attrs["questions"] = sum(gap is not None and not math.isnan(gap.p) for gap in gaps)
    return frame


def verdict_cells(
    found: PairedDifference | None,
    printed: float,
    protocol: Protocol,
    *,
    digits: int = 2,
    was_run: bool = True,
    picked: bool = False,
) -> dict[str, str]:
    """The end of a row that stands beside a printed one.

    Args:
        found: our paired difference, in the unit of ``printed``; ``None`` without a pair.
        printed: the paper's difference; nan where it has none.
        protocol: whether the two can be compared.
        digits: decimals.
        was_run: whether any of the cell's runs was made here.
        picked: among several on the test set, as the best or the worst, so it gets no verdict.

    Returns:
        ``Δ, paper``, ``Δ, here`` (with its p), ``verdict`` and ``why``.
    """
    cells = {"Δ, paper": format_number(printed, digits, signed=True)}
    cells["Δ, here"] = format_difference(found, digits)
    if found is None and not was_run:
        return cells | {"verdict": MISSING, "why": protocol.not_run}
    if picked:
        return cells | {"verdict": "no verdict", "why": "picked among several on the test set"}
    if found is None:
        return cells | {"verdict": "not comparable", "why": "no seed finished with both"}
    is_printed = not math.isnan(printed)
    outcome = verdict(
        printed,
        found,
        num_runs=protocol.num_runs,
        comparable=protocol.comparable and is_printed,
        reason=protocol.reason if is_printed else "the paper has no such cell",
    )
    return cells | {"verdict": outcome.word, "why": outcome.reason}


def level_verdicts(
    results: pd.DataFrame,
    printed: Mapping[str, tuple[Sequence[Run], float]],
    protocol: Protocol,
    metric: Metric = TEST_ERROR,
) -> str:
    """Could each arm's printed level have come from runs like ours? A difference at another
    level is no reproduction.

    Args:
        printed: by the arm's name its runs and the printed level, in the metric's unit.

    Returns:
        ``name: word`` of `verdict_single` for each arm, or that they are not comparable.
    """
    words = {}
    for name, (arm, level) in printed.items():
        values = metric.scale * metric_by_seed(results, arm, metric.column).dropna()
        about = {"num_runs": protocol.num_runs, "comparable": protocol.comparable}
        words[name] = verdict_single(level, values, **about).word if len(values) else MISSING
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    return ", ".join(f"{name}: {word}" for name, word in words.items())


def sampling_note(results: pd.DataFrame, arm: Sequence[Run], num_test: int) -> str:
    """By how many points another test set of this size would move an arm's error."""
    errors = metric_by_seed(results, arm, "test_error").dropna()
    if errors.empty:
        return ""
    points = 100 * sampling_deviation(errors.mean(), num_test)
    return (
        f"Another test set of {num_test} images would move an error of {100 * errors.mean():.2f} % "
        f"by {points:.2f} points (one standard deviation); seeds share this part."
    )
