"""Distribution matching: the numbers of runs as the paper has them, its tables beside ours."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from hardtrain.papers.distribution_matching.plan import Cell
from hardtrain.report.tables import (
    Metric,
    Protocol,
    arms_table,
    describe,
    difference,
    mean_over_arms,
    metric_by_seed,
    paired,
    verdict_cells,
)
from hardtrain.report.text import format_difference, format_number
from hardtrain.runs.run import Run
from hardtrain.statistics import PairedDifference, mean_interval

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
        row |= {"epochs": run.epochs, "batch": run.batch_size, "learning rate": run.lr}
        row |= {"schedule": f"x {run.gamma:g} after epoch {falls}", "augmentation": run.augment}
        row["evaluated every"] = unit if run.evaluate_every == 1 else f"{run.evaluate_every} {unit}"
        rows.append(row)
    return pd.DataFrame(rows)


def last_evaluations(results: pd.DataFrame, history: pd.DataFrame, number=10) -> pd.DataFrame:
    """``results`` with the metrics as the paper prints them: means over the last evaluations.

    New columns: ``accuracy`` (%) of the final model; ``last_accuracy`` (%), ``last_test_loss``,
    ``last_train_loss`` (nats; of the batches since the evaluation before), means over the last
    ``number`` evaluations, or all there are; and their standard deviations ``..._sd``, nan of one.

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
        history = pd.DataFrame(columns=["key", "step", *columns], dtype=float)
    last = history.sort_values("step", kind="stable").groupby("key").tail(number)
    by_run = last.groupby("key")[columns]
    means = pd.concat([by_run.mean(), by_run.std().add_suffix("_sd")], axis=1).add_prefix("last_")
    means["last_accuracy"] = 100 * (1 - means.pop("last_test_error"))
    means["last_accuracy_sd"] = 100 * means.pop("last_test_error_sd")
    return results.assign(accuracy=100 * (1 - results["test_error"])).join(means, on="key")


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
    texts = (metric_by_seed(results, arm, "per_class_error") for arm in (treatment, baseline))
    first, second = (text.map(json.loads).apply(pd.Series, dtype=float) for text in texts)
    common = [label for label in first if label in second]
    return [paired(100 * (1 - first[label]), 100 * (1 - second[label])) for label in common]


def _beside(
    results: pd.DataFrame, lines: Iterable[tuple], printed: pd.DataFrame, protocol: Protocol
) -> pd.DataFrame:
    """A row for each line and each of the two metrics: the paper's number and ours, and, but for
    plain training, the differences to plain training with their verdict.

    A line is its first cells, its key in ``printed``, its runs, and those of plain training.
    """
    printed = printed.set_index(["dataset", "network", "arm"])
    rows = []
    for head, (dataset, network, arm), runs, plain in lines:
        own = protocol._replace(not_run=protocol.not_run.format(dataset))
        for quantity, (column, last, final) in QUANTITIES.items():
            number, base = (
                printed[column].get((dataset, network, side), math.nan) for side in (arm, WITHOUT)
            )
            row = {**head, "quantity": quantity, "paper": format_number(number, last.digits)}
            row["here"] = describe(results, runs, last)
            row["here, final"] = describe(results, runs, final)
            if arm != WITHOUT:
                gap = difference(results, runs, plain, last)
                if gap and head["row"] in ("best", "worst"):  # picked by this very number
                    gap = gap._replace(p=math.nan)
                about = dict(digits=last.digits, was_run=len(plain) > 0)
                row |= verdict_cells(gap, number - base, own, **about)
            rows.append(row)
    return pd.DataFrame(rows).fillna("")


def joint_table(
    results: pd.DataFrame,
    arms: Mapping[Cell, ByLabel],
    printed: pd.DataFrame,
    protocol: Protocol,
) -> pd.DataFrame:
    """Table 1: without and with ITDM-j.

    Args:
        results: from `last_evaluations`.
        arms: of each cell the runs by label, "without" first.
        printed: ``itdm_rows(1)``.
        protocol: its ``not_run`` says what runs a missing cell, with ``{}`` for the data set.

    Returns:
        Text columns: for each arm each metric of the paper, the paper's number, ours as the paper
        means it and of the final model, paired differences to "without", verdict, why.
    """
    ours = {cell[1:]: by_label for cell, by_label in arms.items()}
    lines = []
    for place in dict.fromkeys([*zip(printed["dataset"], printed["network"], strict=True), *ours]):
        by_label = ours.get(place, {WITHOUT: (), "ITDM-j": ()})
        for label, arm in by_label.items():
            head = {"data set": place[0], "network": place[1], "row": label}
            key = (*place, WITHOUT if label == WITHOUT else "with")
            lines.append((head, key, arm, by_label[WITHOUT]))
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
    they get no p. "λ of the paper's best" and "... worst" are ours without a choice of ours.

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
    ours = {cell.network: by_weight for cell, by_weight in arms.items() if cell.dataset == dataset}
    lines = []
    for network in dict.fromkeys([*printed["network"], *ours]):
        mine = ours.get(network, {})
        best, worst = picked_weights(results, mine) or (math.nan, math.nan)
        shown = [(WITHOUT, WITHOUT, 0.0), ("best", "best", best), ("worst", "worst", worst)]
        for arm in ("best", "worst"):
            if mine and (network, arm) in weights:
                shown.append((f"λ of the paper's {arm}", arm, weights[network, arm]))
        for label, arm, weight in shown:
            head = {"network": network, "row": label}
            head["λ, paper"] = _weight(weights.get((network, arm), math.nan))
            head["λ, here"] = _weight(weight)
            key = dataset, network, arm
            lines.append((head, key, mine.get(weight, ()), mine.get(0.0, ())))
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
            by_seed = {
                label: metric_by_seed(results, arm, metric.column)
                for label, arm in by_label.items()
            }
            plain = by_seed.pop(WITHOUT)
            gap = paired(mean_over_arms([*by_seed.values()]), plain)
            row[f"{quantity} minus {WITHOUT}"] = format_difference(gap, metric.digits)
        rows.append(row)
    return pd.concat([table, pd.DataFrame(rows)], ignore_index=True).fillna("")
