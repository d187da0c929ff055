"""What each arm gains: at equal samples and at equal time, against plain training and against the
random share; and four trainings at equal epochs, as the paper on dynamic pruning compares."""

from collections.abc import Mapping, Sequence

import pandas as pd

from hardtrain.papers.compare import plan
from hardtrain.papers.compare.costs import as_timings, sent_backward
from hardtrain.papers.compare.plan import BASELINES
from hardtrain.papers.compare.tables import Cells, Errors, costs, errors_by_seed
from hardtrain.report import tables
from hardtrain.report.text import format_difference, format_number
from hardtrain.runs.run import Run
from hardtrain.statistics import PairedDifference, holm_corrected

EQUAL = ("equal samples", "equal time")
PRINTED = "lossless, 40 % of the cost saved"  # Qin et al., abstract
_SHORT = {"plain": "plain training", "random_share": "the random share"}
Gains = Mapping[str, Mapping[str, PairedDifference | None]]  # by arm and column


def gains(
    results: pd.DataFrame, in_time: Errors, cells: Cells
) -> dict[str, dict[str, PairedDifference | None]]:
    """By arm and column the paired differences (points), the means over the settings; the p values
    of a column, which is one question, are Holm-corrected. ``in_time``: from `at_equal_time`."""
    final = errors_by_seed(results, cells, tables.TEST_ERROR)
    (names,) = {tuple(arms) for arms in cells.values()}
    found: dict[str, dict[str, PairedDifference | None]] = {name: {} for name in names}
    for equal, errors in zip(EQUAL, (final, in_time), strict=True):
        means = {
            name: tables.mean_over_arms([of[name].dropna() for of in errors.values()])
            for name in names
        }
        for base in BASELINES:
            gaps = [None if n == base else tables.paired(means[n], means[base]) for n in names]
            for name, gap in zip(names, holm_corrected(gaps), strict=True):
                found[name][f"{equal}, minus {_SHORT[base]}"] = gap
    return found


def gains_table(found: Gains) -> pd.DataFrame:
    """The differences of each arm but plain training."""
    return pd.DataFrame(
        {"arm": plan.label(name)}
        | {column: format_difference(gap) for column, gap in columns.items()}
        for name, columns in found.items()
        if name != "plain"
    )


def sentences(found: Gains) -> list[str]:
    """A plain sentence for each arm but the two that others are compared with."""
    said = []
    for name, columns in found.items():
        if name in BASELINES:
            continue
        if not any(columns.values()):
            said.append(f"- **{plan.label(name)}**: not run.")
            continue
        parts = []
        for equal in EQUAL:
            gaps = {short: columns[f"{equal}, minus {short}"] for short in _SHORT.values()}
            against = [_compared(gap, short) for short, gap in gaps.items() if gap is not None]
            parts.append(f"at {equal} {' and '.join(against) or 'too late, or not run'}")
        said.append(f"- **{plan.label(name)}**: {'; '.join(parts)}{_lost(columns)}.")
    return said


def _compared(gap: PairedDifference, other: str) -> str:
    word = _word(gap)
    how = "not told apart from" if word == "no different" else f"{word} than"
    return f"{how} {other} ({gap.mean:+.2f} points)"


def _word(gap: PairedDifference | None) -> str:
    if gap is None or not gap.p < 0.05:
        return "no different"
    return "better" if gap.mean < 0 else "worse"


def _lost(columns: Mapping[str, PairedDifference | None]) -> str:
    """Whether what is better than plain training at equal samples is so at equal time."""
    samples, time = (_word(columns[f"{equal}, minus plain training"]) for equal in EQUAL)
    if samples != "better":
        return ""
    return "; it keeps its gain" if time == "better" else "; at equal time no gain is seen"


def epochs_table(
    results: pd.DataFrame,
    history: pd.DataFrame,
    relative_costs: Mapping[str, float],
    longer: Mapping[str, Sequence[Run]],
    num_train: int,
) -> pd.DataFrame:
    """The trainings at equal epochs: samples sent backward, time and error, beside the paper's
    words."""
    timings = as_timings(relative_costs, history, longer, num_train)
    plain, *_, share = longer.values()
    baselines = {"plain training": plain, "random share": share}
    against = {short: dict.fromkeys(longer, arm) for short, arm in baselines.items()}
    frame = tables.arms_table(
        results, longer, {"test error (%)": tables.TEST_ERROR}, baselines=against
    )
    whole = sent_backward(history, plain, num_train).mean()
    time = costs(timings, plain)[0]
    parts = [sent_backward(history, arm, num_train).mean() / whole for arm in longer.values()]
    times = [costs(timings, arm)[0] / time for arm in longer.values()]
    frame.insert(1, "samples", [format_number(part, 2) for part in parts])
    frame.insert(2, "time", [format_number(part, 2) for part in times])
    frame["its paper"] = [PRINTED * name.startswith("Dynamic pruning") for name in longer]
    return frame


def lossless(
    results: pd.DataFrame, longer: Mapping[str, Sequence[Run]], table: pd.DataFrame
) -> list[str]:
    """Whether dynamic pruning loses nothing here, and whether it is its choice of samples."""
    plain, *pruned, share = longer
    pairs = [(name, base) for name in longer for base in (plain, share) if name != base]
    gaps = [tables.difference(results, longer[a], longer[b], tables.TEST_ERROR) for a, b in pairs]
    found = dict(zip(pairs, holm_corrected(gaps), strict=True))
    said = []
    for name in pruned:
        row = table.set_index("arm").loc[name]
        gaps = {base.lower(): found[name, base] for base in (plain, share)}
        against = [_compared(gap, base) for base, gap in gaps.items() if gap is not None]
        if against:
            said.append(
                f"- **{name}**, which sent {row['samples']} of the samples backward in "
                f"{row['time']} of plain training's time: {' and '.join(against)}."
            )
    return said
