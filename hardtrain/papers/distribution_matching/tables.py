"""Distribution matching: the numbers of runs as the paper has them, its tables beside ours."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from hardtrain.papers.distribution_matching.plan import Cell, follows_paper
from hardtrain.report.tables import (
    Metric,
    Protocol,
    arms_table,
    class_errors,
    corrected_columns,
    curves,
    describe,
    describe_values,
    difference,
    level_verdicts,
    mean_over_arms,
    metric_by_seed,
    one_class,
    paired,
    verdict_cells,
)
from hardtrain.report.text import format_difference, format_interval, format_number
from hardtrain.runs.run import Run
from hardtrain.statistics import PairedDifference, holm_corrected, mean_interval

ByWeight = Mapping[float, Sequence[Run]]  # arms by λ
ByLabel = Mapping[str, Sequence[Run]]  # arms by what tables call them
WITHOUT = "without"  # ITDM: the label of plain training
# quantity: its column in `itdm_rows`, ours as the paper means it, and of the final model
QUANTITIES = {
    "accuracy (%)": ("acc", Metric("last_accuracy", 2), Metric("accuracy", 2)),
    "cross-entropy (nats)": ("ce", Metric("last_test_loss", 3), Metric("test_loss", 3)),
}
LAST = {quantity: last for quantity, (_, last, _) in QUANTITIES.items()}


def protocol_table(runs: Mapping[Cell, Run]) -> pd.DataFrame:
    """How each cell was trained: a row for each, from one of its runs."""
    rows = []
    for cell, run in runs.items():
        unit = "epoch" if run.evaluate_unit == "epoch" else "updates"
        falls = ", ".join(map(str, run.milestones))
        row = {"experiment": cell.experiment, "data set": run.dataset, "network": run.network}
        row |= {"training images": run.train_size or "all", "epochs": run.epochs}
        row |= {"batch": run.batch_size, "learning rate": run.lr, "precision": run.precision}
        row |= {"schedule": f"x {run.gamma:g} after epoch {falls}", "augmentation": run.augment}
        row["evaluated every"] = unit if run.evaluate_every == 1 else f"{run.evaluate_every} {unit}"
        rows.append(row)
    return pd.DataFrame(rows)


def last_evaluations(results: pd.DataFrame, history: pd.DataFrame, number=10) -> pd.DataFrame:
    """``results`` with the metrics as the paper prints them: means over the last evaluations.

    New columns: ``accuracy`` (%) of the final model; ``last_accuracy`` (%), ``last_test_loss``,
    ``last_train_loss`` (nats; of the batches since the evaluation before), means over the last
    ``number`` evaluations, or all there are; and their standard deviations ``..._sd``, nan of one;
    ``overfitting``, the test loss minus the training loss of these.

    Source:
        "Reported as the average of the last 10 iterations". A test metric is not computed at
        each iteration, and the code logs it at intervals, so we read: evaluations.

    Example:
        >>> results = pd.DataFrame({"key": ["a"], "test_error": [0.1]})
        >>> history = pd.DataFrame({"key": "a", "step": [1, 2, 3], "test_error": [0.5, 0.3, 0.1],
        ...                         "test_loss": 1.0, "train_loss": 1.0})
        >>> last_evaluations(results, history, 2)["last_accuracy"].round(1).tolist()
        [80.0]
    """
    columns = ["test_error", "test_loss", "train_loss"]
    if history.empty:  # every run diverged before it was evaluated
        history = pd.DataFrame(columns=["key", "step", *columns], dtype=float).astype({"key": str})
    last = history.sort_values("step", kind="stable").groupby("key").tail(number)
    by_run = last.groupby("key")[columns]
    means = pd.concat([by_run.mean(), by_run.std().add_suffix("_sd")], axis=1).add_prefix("last_")
    means["last_accuracy"] = 100 * (1 - means.pop("last_test_error"))
    means["last_accuracy_sd"] = 100 * means.pop("last_test_error_sd")
    means["overfitting"] = means["last_test_loss"] - means["last_train_loss"]
    return results.assign(accuracy=100 * (1 - results["test_error"])).join(means, on="key")


def with_scores(
    results: pd.DataFrame,
    parts: Iterable[tuple[Mapping[str, np.ndarray] | None, Sequence[Run]]],
    names: Sequence[str],
) -> pd.DataFrame:
    """``results`` with the columns ``names`` of figure data, one number a run; nan where there is
    none. ``parts``: arrays (``None`` if they could not be made) and the runs that they are of."""
    known = [(arrays, [run.key for run in runs]) for arrays, runs in parts if arrays is not None]
    for name in names:
        scores = {k: x for arrays, keys in known for k, x in zip(keys, arrays[name], strict=True)}
        results = results.assign(**{name: results["key"].map(scores).astype(float)})
    return results


def weight_sweep(results: pd.DataFrame, arms: ByWeight, column: str) -> pd.DataFrame:
    """What figures 3, 4, 5 and 7 show of one column of `last_evaluations`.

    Returns:
        A row for each λ of ``arms``, ascending: ``weight``; ``mean`` and ``half_width`` of the
        95 % interval over seeds; ``one`` and ``one_sd`` of the first finished seed alone, the
        paper's bar. Nan where there is none.
    """
    rows = []
    for weight, arm in sorted(arms.items()):
        values = metric_by_seed(results, arm, column)
        numbers = [math.nan] * 4
        if len(values):
            interval = mean_interval(values)
            one_sd = metric_by_seed(results, arm, f"{column}_sd").iloc[0]
            numbers = [interval.mean, interval.half_width, values.iloc[0], one_sd]
        rows.append([weight, *numbers])
    return pd.DataFrame(rows, columns=["weight", "mean", "half_width", "one", "one_sd"])


def picked_weights(results: pd.DataFrame, arms: ByWeight) -> tuple[float, float] | None:
    """λ > 0 with the best and the worst test accuracy, as the paper picks them; of equal ones the
    smallest. ``None`` if none has a finished run."""
    sweep = weight_sweep(results, arms, "last_accuracy").set_index("weight")["mean"]
    means = sweep[sweep.index > 0].dropna()
    return None if means.empty else (means.idxmax(), means.idxmin())


def class_differences(
    results: pd.DataFrame, treatment: Sequence[Run], baseline: Sequence[Run]
) -> list[PairedDifference | None]:
    """Accuracy of each class with the final models, treatment minus baseline, in points.

    ``None`` for a class without test samples; no class if one of the two has no finished run.
    """
    first, second = (100 * (1 - class_errors(results, arm)) for arm in (treatment, baseline))
    return [paired(first[label], second[label]) for label in first if label in second]


class _Line(NamedTuple):
    """A row of a table beside the paper's: its first cells, the paper's arm, our runs and those of
    plain training, whether the paper's or our λ was picked by test accuracy."""

    head: dict[str, str]
    cell: Cell
    arm: str
    runs: Sequence[Run]
    plain: Sequence[Run]
    picked: bool = False


def _beside(
    results: pd.DataFrame, lines: Sequence[_Line], printed: pd.DataFrame, protocol: Protocol
) -> pd.DataFrame:
    """A row for each line and each of the two metrics: the paper's number and ours, whether the
    level is the paper's, and, but for plain training, the differences to plain training with their
    verdict. Cells that are not the paper's training (`follows_paper`) are not comparable."""
    printed = printed.set_index(["dataset", "network", "arm"])
    pairs = [(line, quantity) for line in lines for quantity in QUANTITIES]
    gaps = [
        None
        if line.arm == WITHOUT
        else difference(results, line.runs, line.plain, QUANTITIES[quantity][1])
        for line, quantity in pairs
    ]
    by_own_number = [line.head["row"] in ("best", "worst") for line, _ in pairs]
    asked = [
        gap._replace(p=math.nan) if gap and own else gap
        for gap, own in zip(gaps, by_own_number, strict=True)
    ]
    rows = []
    for (line, quantity), gap in zip(pairs, holm_corrected(asked), strict=True):
        column, last, final = QUANTITIES[quantity]
        number, base = (
            printed[column].get((line.cell.dataset, line.cell.network, side), math.nan)
            for side in (line.arm, WITHOUT)
        )
        follows = all(follows_paper(line.cell, run) for run in (*line.runs, *line.plain))
        own = protocol._replace(comparable=protocol.comparable and follows)
        row = {**line.head, "quantity": quantity, "paper": format_number(number, last.digits)}
        row["here"] = describe(results, line.runs, last)
        row["here, final"] = describe(results, line.runs, final)
        shown = not (math.isnan(number) or line.picked) and bool(line.runs)
        level = {"": (line.runs, number)}
        row["level"] = level_verdicts(results, level, own, last) if shown else ""
        if line.arm != WITHOUT:
            about = dict(digits=last.digits, was_run=len(line.plain) > 0, picked=line.picked)
            row |= verdict_cells(gap, number - base, own, **about)
        rows.append(row)
    table = pd.DataFrame(rows).fillna("")
    table.attrs["questions"] = sum(gap is not None and not math.isnan(gap.p) for gap in asked)
    return table


def not_run_line(printed: pd.DataFrame, dataset: str, networks: Iterable[str]) -> str:
    """One line for cells of the paper that were not run: which, and the command.

    Example:
        >>> from hardtrain.papers.distribution_matching.printed import itdm_rows
        >>> print(not_run_line(itdm_rows(2), "kmnist", ["cnn5"]))
        Table 2, kmnist, cnn5: not run. `-y "{profile: paper, datasets: [kmnist]}"`
    """
    numbers = printed.loc[printed["dataset"] == dataset, "table"]
    command = f'`-y "{{profile: paper, datasets: [{dataset}]}}"`'
    return f"Table {numbers.iloc[0]}, {dataset}, {', '.join(networks)}: not run. {command}"


def joint_table(
    results: pd.DataFrame, arms: Mapping[Cell, ByLabel], printed: pd.DataFrame, protocol: Protocol
) -> pd.DataFrame:
    """Table 1: without and with ITDM-j, of the cells that were run.

    Args:
        results: from `last_evaluations`.
        arms: of each cell the runs by label, "without" first.
        printed: ``itdm_rows(1)``.
        protocol: whether readings are the paper's; of a cell, `follows_paper` decides.

    Returns:
        Text columns: for each arm each metric of the paper, the paper's number, ours as the paper
        means it and of the final model, whether the level is the paper's, paired differences to
        "without", verdict, why.
    """
    lines = []
    for cell, by_label in arms.items():
        for label, arm in by_label.items():
            head = {"data set": cell.dataset, "network": cell.network, "row": label}
            printed_arm = WITHOUT if label == WITHOUT else "with"
            lines.append(_Line(head, cell, printed_arm, arm, by_label[WITHOUT]))
    return _beside(results, lines, printed, protocol)


def weights_table(
    results: pd.DataFrame,
    arms: Mapping[Cell, ByWeight],
    printed: pd.DataFrame,
    dataset: str,
    protocol: Protocol,
) -> pd.DataFrame:
    """Table 2, 3, 4 or 5: ITDM-c with the best and the worst λ of five, by test accuracy.

    "best" and "worst" are picked on the test set, the paper's on theirs and ours on ours, so
    they get no p. "λ of the paper's best" and "... worst" are ours without a choice of ours. None
    has a verdict, since the printed numbers are picked ones.

    Args:
        results: from `last_evaluations`.
        arms: of each cell the runs by λ; 0 is without ITDM.
        printed: ``itdm_rows`` of that table; of other sets it has no rows.
        dataset: which data set the table is of.
        protocol: as in `joint_table`.

    Returns:
        Text columns, for each network each row of the paper: the paper's λ and ours, and then as
        in `joint_table`.
    """
    printed = printed[printed["dataset"] == dataset]
    weights = printed.set_index(["network", "arm"])["weight"].fillna(0)  # 0: without
    lines = []
    for cell, mine in arms.items():
        if cell.dataset != dataset:
            continue
        best, worst = picked_weights(results, mine) or (math.nan, math.nan)
        shown = [(WITHOUT, WITHOUT, 0.0), ("best", "best", best), ("worst", "worst", worst)]
        for arm in ("best", "worst"):
            if (cell.network, arm) in weights:
                shown.append((f"λ of the paper's {arm}", arm, weights[cell.network, arm]))
        for label, arm, weight in shown:
            head = {"network": cell.network, "row": label}
            head["λ, paper"] = _weight(weights.get((cell.network, arm), math.nan))
            head["λ, here"] = _weight(weight)
            sides = mine.get(weight, ()), mine.get(0.0, ())
            lines.append(_Line(head, cell, arm, *sides, picked=arm != WITHOUT))
    return _beside(results, lines, printed, protocol)


def _weight(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:g}"


def cells_table(
    results: pd.DataFrame,
    cells: Iterable[tuple[Cell, ByLabel]],
    shown: Mapping[str, Metric],
    compared: Iterable[str],
) -> pd.DataFrame:
    """A row for each arm of each cell, compared with the cell's plain training.

    Args:
        results: from `last_evaluations`.
        cells: with each cell its runs by label, one of them "without".
        shown, compared: as of `arms_table`.
    """
    arms, plain = {}, {}
    for cell, by_label in cells:
        for label, arm in by_label.items():
            arms[cell.label, label] = arm
            plain[cell.label, label] = by_label[WITHOUT]
    about = dict(names=("data", "arm"), baselines={WITHOUT: plain}, compared=list(compared))
    return arms_table(results, arms, shown, **about)


def sweep_table(results: pd.DataFrame, arms: Mapping[Cell, ByLabel]) -> pd.DataFrame:
    """Every λ that was run, as `cells_table`, and what is left without choosing one: below, a row
    for each cell with the mean over all λ > 0 of the seeds that finished with each.

    Beside the interval over seeds stand two standard deviations of the accuracy: of one run's
    last evaluations (mean of the runs; the paper's bars) and of the seeds.
    """
    shown = LAST | {"on training batches": Metric("last_train_loss", 3)}
    shown["accuracy (%), sd in a run"] = Metric("last_accuracy_sd", 2)
    table = cells_table(results, arms.items(), shown, LAST)
    table["accuracy (%), sd over seeds"] = [
        format_number(metric_by_seed(results, arm, "last_accuracy").std(), 2, missing="")
        for by_label in arms.values()
        for arm in by_label.values()
    ]
    rows = []
    for cell, by_label in arms.items():
        row = {"data": cell.label, "arm": "mean over all λ > 0"}
        for quantity, metric in LAST.items():
            gap = mean_gap(results, by_label, metric)
            gap = gap and gap._replace(p=math.nan)  # the rows above are this table's questions
            row[f"{quantity} minus {WITHOUT}"] = format_difference(gap, metric.digits)
        rows.append(row)
    whole = pd.concat([table, pd.DataFrame(rows)], ignore_index=True).fillna("")
    whole.attrs = table.attrs
    return whole


def paired_curves(
    history: pd.DataFrame, arm: Sequence[Run], baseline: Sequence[Run], column: str
) -> tuple[np.ndarray, np.ndarray]:
    """Epochs ``(T,)`` and a history column, an arm minus the baseline's run of the same seed
    ``(S, T)``, at the evaluations that all have; without seeds of which a run is unfinished."""
    plain = {run.seed: run for run in baseline}
    gaps = []
    for run in arm:
        sides = [curves(history, [one], column) for one in (run, plain.get(run.seed)) if one]
        if len(sides) == 2 and all(len(values) for _, values in sides):
            treated, other = (pd.Series(values[0], epochs) for epochs, values in sides)
            gaps.append((treated - other).dropna())
    wide = pd.concat(gaps, axis=1, join="inner") if gaps else pd.DataFrame()
    return wide.index.to_numpy(dtype=float), wide.to_numpy(dtype=float).T


def mean_gap(results: pd.DataFrame, arms: ByLabel, metric: Metric) -> PairedDifference | None:
    """The mean over all λ > 0 minus plain training, over the seeds that finished with each: what
    ITDM-c does without a choice of λ."""
    by_seed = {label: metric_by_seed(results, arm, metric.column) for label, arm in arms.items()}
    plain = metric.scale * by_seed.pop(WITHOUT)
    return paired(metric.scale * mean_over_arms([*by_seed.values()]), plain)


def collapsed_seeds(results: pd.DataFrame, arms: Mapping) -> dict:
    """Of each arm the seeds whose networks say one class only, whatever they are shown; arms
    without any are left out."""
    collapsed = set(results.loc[one_class(results), "key"])
    found = {name: [run.seed for run in arm if run.key in collapsed] for name, arm in arms.items()}
    return {name: seeds for name, seeds in found.items() if seeds}


def without_collapse(results: pd.DataFrame, arms: ByLabel) -> ByLabel:
    """The arms of which no network collapsed."""
    collapsed = collapsed_seeds(results, arms)
    return {name: arm for name, arm in arms.items() if name not in collapsed}


def collapse_note(results: pd.DataFrame, arms: ByLabel, metric: Metric) -> str:
    """To be read beside `mean_gap`: at which λ networks collapse, and the mean over the others.
    Empty where none does."""
    whole = without_collapse(results, arms)
    gap = mean_gap(results, whole, metric) if WITHOUT in whole and len(whole) > 1 else None
    if gap is None or len(whole) == len(arms):
        return ""
    collapsed = ", ".join(name.partition(", ")[2] or name for name in arms if name not in whole)
    others = format_interval(gap, metric.digits, signed=True)
    return f"; networks collapse at {collapsed}, the others have {others}"


def class_table(
    results: pd.DataFrame, treatment: Sequence[Run], baseline: Sequence[Run], names: Sequence[str]
) -> pd.DataFrame:
    """Accuracy of each class (%) without and with, and their difference in points; p values are
    Holm-corrected. A difference that is the same in each seed has no t interval, so an exact sign
    test speaks for it; below six seeds it has no bounds at all."""
    rows, sides = [], {WITHOUT: baseline, "with": treatment}
    shown = {name: 100 * (1 - class_errors(results, arm)) for name, arm in sides.items()}
    for label, gap in enumerate(class_differences(results, treatment, baseline)):
        row = {"class": names[label] if label < len(names) else str(label)}
        row |= {f"{k} (%)": describe_values(v[label].dropna(), 2) for k, v in shown.items()}
        rows.append(row | {"difference (points)": gap})
    columns = ["class", f"{WITHOUT} (%)", "with (%)", "difference (points)"]
    frame = pd.DataFrame(rows, columns=columns)
    return corrected_columns(frame, {"difference (points)": 2})
