"""Tables that set a paper's numbers beside ours, with intervals, differences and verdicts.

An *arm* is a list of runs that differ in their seed alone; arms are compared seed by seed.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from hardtrain.report.text import format_interval, format_p
from hardtrain.runs.run import Run
from hardtrain.statistics import PairedDifference, mean_interval, paired_difference, verdict

MISSING = "not run"


def metric_by_seed(results: pd.DataFrame, arm: Sequence[Run], metric: str) -> pd.Series:
    """A metric of an arm's finished runs, indexed by seed."""
    chosen = results["key"].isin([run.key for run in arm]) & (results["status"] == "finished")
    return results[chosen].drop_duplicates("key").set_index("seed")[metric]


def curves(history: pd.DataFrame, arm: Sequence[Run], column: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs ``(T,)`` and a history column ``(S, T)`` of the runs that reached the end."""
    if history.empty:  # every run diverged before it was evaluated
        return np.zeros(0), np.zeros((0, 0))
    chosen = history[history["key"].isin([run.key for run in arm])]
    last = chosen.groupby("key")["epoch"].max()
    reached = [run.key for run in arm if last.get(run.key) == run.epochs]
    wide = chosen.pivot(index="epoch", columns="key", values=column)[reached]
    return wide.index.to_numpy(), wide.to_numpy().T


def describe(results: pd.DataFrame, arm: Sequence[Run], metric: str, *, scale: float = 100) -> str:
    """``mean ± half width (n = ...)`` of a metric over seeds, and how many runs diverged."""
    values = metric_by_seed(results, arm, metric)
    rows = results[results["key"].isin([run.key for run in arm])].drop_duplicates("key")
    diverged = int((rows["status"] == "diverged").sum())
    parts = [format_interval(mean_interval(values), scale=scale)] if len(values) else []
    parts += [f"{diverged} diverged"] if diverged else []
    return ", ".join(parts) or MISSING


def difference(
    results: pd.DataFrame,
    treatment: Sequence[Run],
    baseline: Sequence[Run],
    metric: str,
    *,
    scale: float = 100,
) -> PairedDifference | None:
    """Treatment minus baseline over common seeds, times ``scale``; ``None`` without a pair."""
    first = metric_by_seed(results, treatment, metric) * scale
    second = metric_by_seed(results, baseline, metric) * scale
    if first.index.intersection(second.index).empty:
        return None
    return paired_difference(first, second)


def arms_table(
    results: pd.DataFrame, arms: Mapping[str, Sequence[Run]], *, baseline: str
) -> pd.DataFrame:
    """A row per arm: test error in %, paired difference to the arm ``baseline`` (points) with
    its p, and test loss in nats."""
    rows = []
    for label, arm in arms.items():
        gap = None if label == baseline else difference(results, arm, arms[baseline], "test_error")
        row = {"arm": label, "test error (%)": describe(results, arm, "test_error")}
        row |= _difference_cells(gap)
        rows.append(row | {"test loss (nats)": describe(results, arm, "test_loss", scale=1)})
    return pd.DataFrame(rows)


def comparison_table(
    results: pd.DataFrame,
    arms: Mapping[tuple[str, str, str], Sequence[Run]],
    printed: pd.DataFrame,
    *,
    treatment: str,
    baseline: str = "plain",
    comparable: bool,
    reason: str = "",
    not_run: Callable[[str], str] = lambda dataset: MISSING,
) -> pd.DataFrame:
    """Paper, here, paired difference and verdict: a row for each printed pair of test errors,
    then one for each pair of data set and network that only we ran.

    Args:
        results: from ``run_missing``.
        arms: runs by (data set, network, method).
        printed: columns ``dataset``, ``network`` (our names), ``baseline``, ``treatment`` (%).
        treatment, baseline: methods.
        comparable, reason: whether the protocol is the paper's, and if not, why not.
        not_run: what to say of a data set that was not run.

    Returns:
        Text columns ``data set``, ``network``, ``paper: ...``, ``here: ...``, ``difference``
        (treatment minus baseline, points, 95 % interval), ``p``, ``verdict``, ``why``.
    """
    lookup = printed.set_index(["dataset", "network"])
    ours = [cell[:2] for cell in arms]
    rows = []
    for dataset, network in dict.fromkeys([*lookup.index, *ours]):
        is_printed = (dataset, network) in lookup.index
        theirs = lookup.loc[(dataset, network)] if is_printed else None
        row = {"data set": dataset, "network": network}
        for side, method in (("baseline", baseline), ("treatment", treatment)):
            arm = arms.get((dataset, network, method), ())
            row[f"paper: {method} (%)"] = f"{theirs[side]:.2f}" if is_printed else "–"
            row[f"here: {method} (%)"] = describe(results, arm, "test_error")
        treated, plain = (arms.get((dataset, network, m), ()) for m in (treatment, baseline))
        found = difference(results, treated, plain, "test_error")
        row |= _difference_cells(found)
        if found is None and results["key"].isin([run.key for run in (*treated, *plain)]).any():
            row |= {"verdict": "not comparable", "why": "no seed finished with both methods"}
        elif found is None:
            row |= {"verdict": MISSING, "why": not_run(dataset)}
        else:
            gap = theirs["treatment"] - theirs["baseline"] if is_printed else float("nan")
            row |= _verdict_cells(gap, found, is_printed, comparable, reason)
        rows.append(row)
    return pd.DataFrame(rows)


def _difference_cells(found: PairedDifference | None) -> dict[str, str]:
    if found is None:
        return {"difference (points)": "", "p": ""}
    return {"difference (points)": format_interval(found, signed=True), "p": format_p(found)}


def _verdict_cells(
    printed: float, found: PairedDifference, is_printed: bool, comparable: bool, reason: str
) -> dict[str, str]:
    """The verdict on a measured difference, and why."""
    outcome = verdict(
        printed,
        found,
        comparable=comparable and is_printed,
        reason=reason if is_printed else "the paper has no such cell",
    )
    return {"verdict": outcome.word, "why": outcome.reason}


def describe_values(values: Sequence[float], *, digits: int = 1) -> str:
    """``mean ± half width (n = ...)`` of numbers, or that there are none."""
    return format_interval(mean_interval(values), digits=digits) if len(values) else MISSING
