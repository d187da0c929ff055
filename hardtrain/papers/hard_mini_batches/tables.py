"""Tables of hard mini-batches: the fraction delta, printed and ours."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from hardtrain.errors import unknown_name
from hardtrain.papers import load_table, network_name
from hardtrain.report.tables import (
    MISSING,
    _verdict_cells,
    describe_values,
    difference,
    metric_by_seed,
)
from hardtrain.report.text import format_interval
from hardtrain.runs.run import Run
from hardtrain.statistics import Interval, convergence_epoch, mean_interval, paired_difference

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


def hard_minibatch_rows(dataset: str) -> pd.DataFrame:
    """Table 3, 4 or 5 of the hard-mini-batch paper, by our name of its image set.

    Returns:
        The table with our network names, ``speed_up``: the printed Δe (%) with the sign that
        follows from the printed epochs; nan for δ = 1, and ``copied``: whether the accuracies are
        those of the same row of table 3 (errata 001-3).

    Raises:
        ParameterError: a set that the paper does not have.

    Example:
        >>> rows = hard_minibatch_rows("stl10")
        >>> rows.loc[rows["network"] == "resnet50", ["epoch", "speed_up"]].values.tolist()
        [[99.0, nan], [98.0, 2.0], [97.0, 3.0], [100.0, -0.0]]
    """
    numbers = {"cifar10": 3, "cifar100": 4, "stl10": 5}
    if dataset not in numbers:
        raise unknown_name("image set of the paper", dataset, numbers)
    rows = load_table(f"hard_minibatches_table{numbers[dataset]}")
    rows["network"] = rows["network"].map(network_name)
    first = rows.groupby("network")["epoch"].transform("first")  # of δ = 1
    slower = rows["epoch"] > first
    accuracies = ["train_top1", "train_ci", "test_top1", "test_ci"]
    same = (rows[accuracies] == load_table("hard_minibatches_table3")[accuracies]).all(axis=1)
    return rows.assign(
        speed_up=rows["delta_e"].where(~slower, -rows["delta_e"]),
        copied=same & (dataset != "cifar10"),
    )
