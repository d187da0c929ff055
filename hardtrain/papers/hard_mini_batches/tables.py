"""Tables of hard mini-batches: the fraction δ, printed and ours."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pandas as pd

from hardtrain.goals import convergence_epoch
from hardtrain.papers import load_table, network_name
from hardtrain.papers.hard_mini_batches.audits import TABLE_OF, copied_networks, table6_audit
from hardtrain.report import tables
from hardtrain.report.tables import MISSING, Arms, Metric, Protocol, metric_by_seed
from hardtrain.report.text import format_interval, format_number
from hardtrain.runs.run import Run
from hardtrain.statistics import PairedDifference, detectable, holm_corrected, mean_interval

_SIDES = {"train": "train_set", "test": "test"}  # in a heading -> in the name of a column
_MEAN = "mean over all δ < 1"
_COPIED = "the printed row is a copy of another table's (errata 001-3)"


def epochs_to_converge(
    history: pd.DataFrame, results: pd.DataFrame, arm: Sequence[Run], **reading
) -> pd.Series:
    """The epoch at which each of an arm's finished runs converged in the training set's loss, by
    seed; ``reading`` goes to ``statistics.convergence_epoch``."""

    def epoch(run: Run, rows: pd.DataFrame) -> int:
        return convergence_epoch(rows.sort_values("epoch")["train_set_loss"], **reading)

    return tables.per_run(history, results, arm, epoch)


def speed_up(first: pd.Series, second: pd.Series) -> PairedDifference | None:
    """Δe = (e_1 - e_δ) / e_δ in % over common seeds, with its sign: positive is faster."""
    ratios = (100 * first / second).dropna()
    return tables.paired(ratios, pd.Series(100.0, index=ratios.index))


def delta_table(
    results: pd.DataFrame,
    history: pd.DataFrame,
    arms: Arms,
    dataset: str,
    protocol: Protocol,
    rule: Mapping = MappingProxyType({}),
) -> pd.DataFrame:
    """Tables 3 to 5 of the hard-mini-batch paper, paper and ours side by side.

    Args:
        results, history: of the runs.
        arms: runs by (data set, network, δ or the name of a control); δ = 1 is the baseline.
        dataset: which data set the table is of; the paper need not have it.
        protocol: whether ours is the paper's.
        rule: of convergence, for `goals.convergence_epoch`.

    Returns:
        Text columns: training and test top-1 in %, the paper's with its interval over the
        mini-batches of one model, ours with that and with the interval over seeds, and whether
        the printed test top-1 could be one of ours (``level``); the epoch of convergence; the
        speed-up Δe and the verdict on it; the paired difference of the test top-1 to δ = 1
        (points) and the verdict on that, as of `verdict_cells`. All p values of the table are
        Holm-corrected together.
    """
    by_batch = ("accuracy_by_batch", "half_width_by_batch")  # absent where nothing was run
    needed = [f"{name}_{of}" for name in _SIDES.values() for of in ("error", *by_batch)]
    results = results.reindex(columns=list(dict.fromkeys([*results, *needed])))
    accuracies = {f"{side}_top1": 1 - results[f"{name}_error"] for side, name in _SIDES.items()}
    results = results.assign(**accuracies)
    printed = hard_minibatch_rows(dataset).set_index(["network", "delta"])
    cells = dict.fromkeys([*printed.index, *(cell[1:] for cell in arms if cell[0] == dataset)])
    epochs = {
        cell: epochs_to_converge(history, results, arms.get((dataset, *cell), ()), **rule)
        for cell in cells
    }
    gaps = {cell: _gaps(results, epochs, arms, dataset, *cell) for cell in cells}
    every = [gap for pair in gaps.values() for gap in pair]
    corrected = iter(holm_corrected(every))
    rows, copied = [], copied_networks()
    for (network, delta), paper in printed.reindex(list(cells)).iterrows():
        arm = arms.get((dataset, network, delta), ())
        row = {"network": network, "δ": delta if isinstance(delta, str) else f"{delta:g}"}
        for side, name in _SIDES.items():
            row[f"{side} top-1, paper"] = _plus_minus(paper[f"{side}_top1"], paper[f"{side}_ci"])
            row[f"{side}, ± over batches"] = _over_batches(results, arm, name)
            row[f"{side}, ± over seeds"] = tables.describe(
                results, arm, Metric(f"{side}_top1", 1, 100)
            )
        own = protocol
        if (dataset, network) in copied:
            own = protocol._replace(comparable=False, reason=_COPIED)
        of_test = {"here": (arm, paper["test_top1"])}
        row["level"] = tables.level_verdicts(results, of_test, own, Metric("test_top1", 1, 100))
        row["e, paper"] = format_number(paper["epoch"], 0)
        row["e, here"] = tables.describe_values(epochs[network, delta])
        faster, gap = next(corrected), next(corrected)
        if delta != 1:
            was_run = tables.is_run(results, [arm])
            of_e = tables.verdict_cells(faster, paper["speed_up"], own, digits=1, was_run=was_run)
            headings = ("Δe, paper (%)", "Δe, here (%)", "verdict on Δe", "why, Δe")
            row |= dict(zip(headings, of_e.values(), strict=True))
            row |= tables.verdict_cells(gap, paper["gain"], own, was_run=was_run)
        rows.append(row)
    table = pd.DataFrame(rows).fillna("")
    table.attrs["questions"] = sum(gap is not None and gap.n > 1 for gap in every)
    return table


def _gaps(
    results: pd.DataFrame,
    epochs: Mapping[tuple[str, float | str], pd.Series],
    arms: Arms,
    dataset: str,
    network: str,
    delta: float | str,
) -> tuple[PairedDifference | None, PairedDifference | None]:
    """Speed-up and gain in test top-1 (points) of an arm over δ = 1; ``None`` for that itself."""
    if delta == 1 or (network, 1.0) not in epochs:
        return None, None
    base, arm = (arms.get((dataset, network, value), ()) for value in (1.0, delta))
    gap = tables.difference(results, arm, base, Metric("test_top1", scale=100))
    return speed_up(epochs[network, 1.0], epochs[network, delta]), gap


def _over_batches(results: pd.DataFrame, arm: Sequence[Run], side: str) -> str:
    """The paper's ±: over the mini-batches of one model, here the mean of several models'."""
    columns = (f"{side}_accuracy_by_batch", f"{side}_half_width_by_batch")
    means = (100 * metric_by_seed(results, arm, column).mean() for column in columns)
    return _plus_minus(*means) if tables.is_run(results, [arm]) else MISSING


def _plus_minus(mean: float, half_width: float) -> str:
    text = format_number(mean, 1)
    return text if math.isnan(half_width) else f"{text} ± {half_width:.1f}"  # one mini-batch: none


def best_delta_table(results: pd.DataFrame, arms: Arms) -> pd.DataFrame:
    """Table 6 of the hard-mini-batch paper: the best δ < 1 against δ = 1 in test top-1, relative
    to the best. That δ is chosen on the test set, so there is no verdict; every δ is shown, and
    the mean over all δ < 1, which needs no choice.

    Args:
        results: of the runs.
        arms: runs by (data set, network, δ).

    Returns:
        Text columns; the paper's number has the sign that its accuracies give it. The differences
        to δ = 1 are in points, their p values Holm-corrected over the table.
    """
    audit = table6_audit().set_index(["dataset", "network"])
    printed = np.sign(audit["points"]) * audit["printed"].astype(float)
    deltas = sorted({label[2] for label in arms if label[2] != 1}, reverse=True)
    rows = []
    for cell in dict.fromkeys([*printed.index, *(label[:2] for label in arms)]):
        row = dict(zip(("data set", "network"), cell, strict=True))
        row["paper (%)"] = format_number(printed.get(cell, math.nan), 2, signed=True)
        by_delta = {
            label[2]: 100 * (1 - metric_by_seed(results, arm, "test_error"))
            for label, arm in arms.items()
            if label[:2] == cell
        }
        base = by_delta.pop(1.0, pd.Series(dtype=float))
        tried = {delta: accuracy for delta, accuracy in by_delta.items() if len(accuracy)}
        row["here: best δ"], row["verdict"] = MISSING, MISSING
        for delta in deltas:
            row[f"δ = {delta:g}"] = tables.paired(tried[delta], base) if delta in tried else None
        row[_MEAN] = tables.paired(tables.mean_over_arms(list(tried.values())), base)
        if tried and len(base):
            means = pd.Series({delta: accuracy.mean() for delta, accuracy in tried.items()})
            row["here: best δ"], row["verdict"] = f"{means.idxmax():g}", "no verdict"
            relative = 100 * (means.max() - base.mean()) / means.max()
            row["here: best δ (%)"] = format_number(relative, 2, signed=True)
        rows.append(row)
    table = pd.DataFrame(rows)
    last = [name for name in ("here: best δ (%)", "verdict") if name in table]
    table = table[[name for name in table if name not in last] + last]
    of_differences = dict.fromkeys([*(f"δ = {delta:g}" for delta in deltas), _MEAN], 2)
    table = table.astype(object).where(table.notna(), None)
    return tables.corrected_columns(table, of_differences).fillna("")


def convergence_table(
    results: pd.DataFrame,
    history: pd.DataFrame,
    arms: Mapping[str, Sequence[Run]],
    rules: Mapping[str, Mapping],
    baselines: Mapping[str, Mapping[str, str]],
) -> pd.DataFrame:
    """When each arm's training loss has converged, by several rules, and by the first of them
    how much earlier than its baselines.

    Args:
        results, history: of the runs.
        arms: runs by label.
        rules: by the heading, what goes to `goals.convergence_epoch`.
        baselines: by the heading that it gets, the label of each arm's baseline, or nothing.

    Returns:
        Text columns: the ``arm``, the epoch by each rule, Δe in % over each baseline (positive:
        faster), p values Holm-corrected over the table; and what true Δe over the first one so
        many seeds of this spread would have shown with a probability of 80 %.
    """
    rows, digits = [], {f"Δe over {name} (%)": 1 for name in baselines}
    first_rule = next(iter(rules.values()))
    epochs = {
        label: epochs_to_converge(history, results, arm, **first_rule)
        for label, arm in arms.items()
    }
    for label, arm in arms.items():
        row: dict[str, object] = {"arm": label}
        for rule, how in rules.items():
            found = epochs_to_converge(history, results, arm, **how)
            row[rule] = tables.describe_values(found)
        for name, base_of in baselines.items():
            base = base_of.get(label)
            gap = speed_up(epochs[base], epochs[label]) if base else None
            row[f"Δe over {name} (%)"] = gap
            seen = math.nan if gap is None else detectable(gap)
            power = format_number(seen, 1) if math.isfinite(seen) else ""
            row.setdefault("seen with power 80 % (%)", power)  # over the first baseline
        rows.append(row)
    table = pd.DataFrame(rows)
    return tables.corrected_columns(table.astype(object).where(table.notna(), None), digits)


def time_table(measured: Mapping[str, np.ndarray], num_iterations: str) -> pd.DataFrame:
    """Table 1 of the hard-mini-batch paper, paper and ours: time of an iteration by δ.

    Args:
        measured: from `timing.hard_batch_step_times`.
        num_iterations: of our trainings, as text.

    Returns:
        Text columns: the paper's; ours in ms, with 95 % intervals over the rounds of the
        measurement; the ratio to δ = 1, of the paper and ours.
    """
    printed = load_table("hard_minibatches_table1")
    place = {delta: number for number, delta in enumerate(measured["deltas"].tolist())}
    rows = []
    for line in printed.itertuples():
        row = {"δ": f"{line.delta:g}", "# of iterations": line.n_iterations}
        row |= {"time complexity": line.time_complexity, "Δt, paper (s)": f"{line.dt_seconds:.4f}"}
        row["∆(∆t), paper (s)"] = format_number(line.ddt_seconds, 4)
        row["ratio, paper"] = f"{line.dt_seconds / printed['dt_seconds'][0]:.2f}"
        row["iterations, here"], number = num_iterations, place.get(line.delta)
        if number is None:
            row["iterations, here"] = row["Δt, here (ms)"] = MISSING
            rows.append(row)
            continue
        own, base = 1000 * measured["seconds"][:, number], 1000 * measured["seconds"][:, 0]
        row["Δt, here (ms)"] = format_interval(mean_interval(own))
        if number:
            row["∆(∆t), here (ms)"] = format_interval(mean_interval(own - base), signed=True)
        row["ratio, here"] = format_interval(mean_interval(own / base))
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def hard_minibatch_rows(dataset: str) -> pd.DataFrame:
    """Table 3, 4 or 5 of the hard-mini-batch paper, by our name of its image set; no rows for a
    set that the paper does not have.

    Returns:
        The table with our network names, ``speed_up``: the printed Δe (%) with the sign that
        follows from the printed epochs, nan for δ = 1; and ``gain``: test top-1 minus that of
        δ = 1.

    Example:
        >>> rows = hard_minibatch_rows("stl10")
        >>> rows.loc[rows["network"] == "resnet50", ["epoch", "speed_up"]].values.tolist()
        [[99.0, nan], [98.0, 2.0], [97.0, 3.0], [100.0, -0.0]]
    """
    rows = load_table(f"hard_minibatches_table{TABLE_OF.get(dataset, 3)}")
    first = rows.groupby("network")[["epoch", "test_top1"]].transform("first")  # of δ = 1
    rows = rows.assign(
        network=rows["network"].map(network_name),
        speed_up=rows["delta_e"].where(rows["epoch"] <= first["epoch"], -rows["delta_e"]),
        gain=rows["test_top1"] - first["test_top1"],
    )
    return rows if dataset in TABLE_OF else rows.iloc[:0]
