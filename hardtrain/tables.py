"""Tables that set a paper's numbers beside ours, with intervals, differences and verdicts.

An *arm* is a list of runs that differ in their seed alone; arms are compared seed by seed.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from hardtrain.runs import Run
from hardtrain.statistics import (
    Interval,
    PairedDifference,
    convergence_epoch,
    format_interval,
    format_p,
    mean_interval,
    paired_difference,
    verdict,
)

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


# --- studies of the fraction delta of hard mini-batches -------------------------------------------


def epochs_to_converge(
    history: pd.DataFrame, results: pd.DataFrame, arm: Sequence[Run], **reading
) -> pd.Series:
    """The epoch at which each of an arm's finished runs converged in the training set's loss, by
    seed; ``reading`` goes to ``statistics.convergence_epoch``."""
    finished = metric_by_seed(results, arm, "test_error").index
    found = {
        run.seed: convergence_epoch(
            history[history["key"] == run.key].sort_values("epoch")["train_set_loss"], **reading
        )
        for run in arm
        if run.seed in finished
    }
    return pd.Series(found, dtype=float)


def speed_up(first: pd.Series, second: pd.Series) -> Interval | None:
    """(e_1 - e_δ) / e_δ in % over common seeds, with its sign: positive is faster."""
    common = first.index.intersection(second.index)
    if common.empty:
        return None
    return mean_interval(100 * (first[common] - second[common]) / second[common])


def delta_table(
    results: pd.DataFrame,
    history: pd.DataFrame,
    arms: Mapping[tuple[str, str, float], Sequence[Run]],
    printed: pd.DataFrame,
    dataset: str,
    *,
    comparable: bool,
    reason: str = "",
    not_run: str = MISSING,
) -> pd.DataFrame:
    """Tables 3 to 5 of the hard-mini-batch paper, paper and ours side by side.

    Args:
        results, history: of the runs.
        arms: runs by (data set, network, delta); delta 1 is the baseline.
        printed: columns ``network`` (our names), ``delta``, ``train_top1``, ``train_ci``,
            ``test_top1``, ``test_ci``, ``epoch``, ``speed_up`` (signed) and, optionally,
            ``copied``; may be empty.
        dataset: which data set the table is of.
        comparable, reason, not_run: as in `comparison_table`.

    Returns:
        Text columns: training and test top-1 in %, the paper's with its interval over the
        mini-batches of one model, ours with that and with the interval over seeds; the epoch of
        convergence and the speed-up; the paired difference of the test top-1 to delta 1, and the
        verdict on it.
    """
    lookup = printed.set_index(["network", "delta"])
    ours = [cell[1:] for cell in arms if cell[0] == dataset]
    rows = []
    for network, delta in dict.fromkeys([*lookup.index, *ours]):
        arm = arms.get((dataset, network, delta), ())
        baseline = arms.get((dataset, network, 1.0), ())
        is_printed = (network, delta) in lookup.index
        theirs = lookup.loc[(network, delta)] if is_printed else None
        row = {"network": network, "δ": f"{delta:g}"}
        for name, side in (("train", "train_set"), ("test", "test")):
            row[f"{name} top-1, paper"] = (
                f"{theirs[f'{name}_top1']:.1f} ± {theirs[f'{name}_ci']:.1f}" if is_printed else "–"
            )
            row[f"{name}, ± over batches"] = _over_batches(results, arm, side)
            accuracy = 1 - metric_by_seed(results, arm, f"{side}_error")
            row[f"{name}, ± over seeds"] = describe_values(100 * np.asarray(accuracy))
        epochs = {d: epochs_to_converge(history, results, runs) for d, runs in
                  ((delta, arm), (1.0, baseline))}  # fmt: skip
        row["e, paper"] = f"{theirs['epoch']:.0f}" if is_printed else "–"
        row["e, here"] = describe_values(epochs[delta])
        faster = None if delta == 1 else speed_up(epochs[1.0], epochs[delta])
        has_speed = is_printed and delta != 1
        row["Δe, paper (%)"] = f"{theirs['speed_up']:+.1f}" if has_speed else ""
        row["Δe, here (%)"] = format_interval(faster, digits=1, signed=True) if faster else ""
        gap = None if delta == 1 else difference(results, baseline, arm, "test_error")
        row["test difference to δ = 1 (points)"] = format_interval(gap, signed=True) if gap else ""
        if not len(arm):
            row |= {"verdict": MISSING, "why": not_run}
        elif gap is None:
            row |= {"verdict": "", "why": ""}
        else:
            printed_gap = (
                theirs["test_top1"] - lookup.loc[(network, 1.0), "test_top1"]
                if is_printed
                else float("nan")
            )
            if is_printed and theirs.get("copied", False):
                why = "the printed row is a copy of another table's (errata 001-3)"
                row |= _verdict_cells(printed_gap, gap, is_printed, False, why)
            else:
                row |= _verdict_cells(printed_gap, gap, is_printed, comparable, reason)
        rows.append(row)
    return pd.DataFrame(rows)


def _over_batches(results: pd.DataFrame, arm: Sequence[Run], side: str) -> str:
    """The paper's ±: over the mini-batches of one model, here the mean of several models'."""
    if not arm:
        return MISSING
    mean = metric_by_seed(results, arm, f"{side}_accuracy_by_batch").mean()
    half = metric_by_seed(results, arm, f"{side}_half_width_by_batch").mean()
    if np.isnan(half):  # no run finished, or one mini-batch has no interval
        return "" if np.isnan(mean) else f"{100 * mean:.1f}"
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def best_delta_table(
    results: pd.DataFrame,
    arms: Mapping[tuple[str, str, float], Sequence[Run]],
    printed: Mapping[tuple[str, str], float],
) -> pd.DataFrame:
    """Table 6 of the hard-mini-batch paper: the best δ < 1 against δ = 1 in test top-1, relative
    to the best; and, without that choice on the test set, the mean over all δ < 1.

    Args:
        results: of the runs.
        arms: runs by (data set, network, delta).
        printed: signed % by (data set, network).
    """
    rows = []
    ours = dict.fromkeys(cell[:2] for cell in arms)
    for dataset, network in dict.fromkeys([*printed, *ours]):
        accuracy = {
            delta: 100 * (1 - metric_by_seed(results, runs, "test_error"))
            for (d, n, delta), runs in arms.items()
            if (d, n) == (dataset, network)
        }
        value = printed.get((dataset, network))
        row = {"data set": dataset, "network": network}
        row["paper (%)"] = "–" if value is None else f"{value:+.2f}"
        others = {d: a for d, a in accuracy.items() if d != 1 and len(a)}
        if others and len(accuracy.get(1.0, ())):
            base = accuracy[1.0]
            best = max(others, key=lambda delta: others[delta].mean())
            relative = (others[best].mean() - base.mean()) / others[best].mean()
            row["here: best δ"] = f"{best:g}"
            row["here: best δ (%)"] = f"{100 * relative:+.2f}"
            # by seed: the mean over all δ < 1, of seeds that finished with each
            pooled = pd.concat(others.values(), axis=1, join="inner").mean(axis=1)
            common = pooled.index.intersection(base.index)
            row["mean over all δ < 1 (points)"] = (
                format_interval(paired_difference(pooled, base), signed=True)
                if len(common)
                else "no seed finished with each δ"
            )
        else:
            row |= {"here: best δ": MISSING, "here: best δ (%)": "",
                    "mean over all δ < 1 (points)": ""}  # fmt: skip
        rows.append(row)
    return pd.DataFrame(rows)
