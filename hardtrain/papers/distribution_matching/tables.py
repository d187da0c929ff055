"""Distribution matching: the numbers of runs as the paper has them, its tables beside ours."""

import json
import math
from collections.abc import Mapping, Sequence

import pandas as pd

from hardtrain import checks
from hardtrain.papers import dataset_name, load_table, network_name
from hardtrain.papers.distribution_matching.plan import Cell
from hardtrain.report.tables import MISSING, metric_by_seed
from hardtrain.report.text import format_interval, format_p
from hardtrain.runs.run import Run
from hardtrain.statistics import PairedDifference, mean_interval, paired_difference, verdict

NUM_LAST = 10  # evaluations behind a printed number
# quantity -> column of the printed tables, of our last evaluations, of our final one, decimals
QUANTITIES = {
    "accuracy (%)": ("accuracy", "last_accuracy", "accuracy", 2),
    "cross-entropy (nats)": ("cross_entropy", "last_test_loss", "test_loss", 3),
}


def protocol_table(arms: Mapping[Cell, Sequence[Run]]) -> pd.DataFrame:
    """How each cell was trained: a row for each, from the first run of its arm."""
    rows = []
    for cell, (run, *_) in arms.items():
        unit = "epoch" if run.evaluate_unit == "epoch" else "updates"
        every = unit if run.evaluate_every == 1 else f"{run.evaluate_every} {unit}"
        falls = ", ".join(map(str, run.milestones))
        rows.append(
            {"experiment": cell.experiment, "data set": run.dataset, "network": run.network}
            | {"epochs": run.epochs, "batch": run.batch_size, "learning rate": run.lr}
            | {"schedule": f"x {run.gamma:g} after epoch {falls}", "augmentation": run.augment}
            | {"evaluated every": every}
        )
    return pd.DataFrame(rows)


def last_evaluations(
    results: pd.DataFrame, history: pd.DataFrame, number: int = NUM_LAST
) -> pd.DataFrame:
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
    checks.integer("number", number, low=1)
    columns = ["test_error", "test_loss", "train_loss"]
    if history.empty:  # every run diverged before it was evaluated
        history = pd.DataFrame(columns=["key", "step", *columns], dtype=float)
    last = history.sort_values("step", kind="stable").groupby("key").tail(number)
    by_run = last.groupby("key")[columns]
    found = pd.concat([by_run.mean(), by_run.std().add_suffix("_sd")], axis=1).add_prefix("last_")
    found["last_accuracy"] = 100 * (1 - found.pop("last_test_error"))
    found["last_accuracy_sd"] = 100 * found.pop("last_test_error_sd")
    return results.assign(accuracy=100 * (1 - results["test_error"])).join(found, on="key")


def weight_sweep(
    results: pd.DataFrame, arms: Mapping[float, Sequence[Run]], column: str
) -> pd.DataFrame:
    """What figures 3, 4, 5 and 7 show of one column of `last_evaluations`.

    Returns:
        A row for each λ of ``arms``, ascending: ``weight``; ``mean`` and ``half_width`` of the
        95 % interval over seeds; ``one`` and ``one_sd`` of the first finished seed alone, the
        paper's bar. Nan where there is none.
    """
    rows = []
    for weight in sorted(arms):
        values = metric_by_seed(results, arms[weight], column)
        found = mean_interval(values) if len(values) else None
        deviations = metric_by_seed(results, arms[weight], f"{column}_sd")
        rows.append(
            {"weight": weight}
            | {"mean": found.mean if found else math.nan}
            | {"half_width": found.half_width if found else math.nan}
            | {"one": values.iloc[0] if found else math.nan}
            | {"one_sd": deviations.iloc[0] if found else math.nan}
        )
    return pd.DataFrame(rows, dtype=float)


def picked_weights(
    results: pd.DataFrame, arms: Mapping[float, Sequence[Run]]
) -> tuple[float, float] | None:
    """λ > 0 with the best and the worst test accuracy, as the paper picks them; of equal ones the
    smallest. ``None`` if none has a finished run."""
    means = {
        weight: metric_by_seed(results, arm, "last_accuracy").mean()
        for weight, arm in sorted(arms.items())
        if weight > 0 and len(metric_by_seed(results, arm, "last_accuracy"))
    }
    return (max(means, key=means.get), min(means, key=means.get)) if means else None


def class_differences(
    results: pd.DataFrame, treatment: Sequence[Run], baseline: Sequence[Run]
) -> list[PairedDifference | None]:
    """Accuracy of each class with the final models, treatment minus baseline, in points.

    ``None`` for a class without test samples, or if no seed finished with both.
    """
    sides = [_class_errors(results, arm) for arm in (treatment, baseline)]
    common = sides[0].index.intersection(sides[1].index)
    if common.empty:
        return []
    first, second = (100 * (1 - side.loc[common]) for side in sides)
    return [
        None if first[label].isna().any() else paired_difference(first[label], second[label])
        for label in first
    ]


def _class_errors(results: pd.DataFrame, arm: Sequence[Run]) -> pd.DataFrame:
    texts = metric_by_seed(results, arm, "per_class_error")
    return pd.DataFrame([json.loads(text) for text in texts], index=texts.index, dtype=float)


def joint_table(
    results: pd.DataFrame,
    arms: Mapping[tuple[str, str, int], Sequence[Run]],
    printed: pd.DataFrame,
    *,
    comparable: bool,
    reason: str = "",
    not_run: str = "",
) -> pd.DataFrame:
    """Table 1: with and without ITDM-j, once for each number of kernels.

    Args:
        results: from `last_evaluations`.
        arms: runs by (data set, network, number of kernels); without ITDM that number is 0.
        printed: ``papers.itdm_rows(1)``.
        comparable, reason: whether the protocol is the paper's, and if not, why not.
        not_run: what runs a missing cell, with ``{}`` for the data set.

    Returns:
        Text columns: paper and ours with and without, each quantity of ``QUANTITIES`` in a row,
        the paired difference of the last evaluations, its p, the verdict and why.
    """
    lookup = _lookup(printed)
    numbers = list(dict.fromkeys(number for *_, number in arms if number)) or [0]
    rows = []
    for dataset, network in dict.fromkeys([key[:2] for key in [*lookup, *arms]]):
        run_here = any(key[:2] == (dataset, network) for key in arms)
        plain = arms.get((dataset, network, 0), ())
        for number in numbers if run_here else [0]:
            treated = arms.get((dataset, network, number), ())
            for quantity, (column, last, final, digits) in QUANTITIES.items():
                theirs = [
                    _printed_value(lookup, (dataset, network, arm), column)
                    for arm in ("without", "with")
                ]
                row = {"data set": dataset, "network": network, "kernels": number or "–"}
                row |= {"quantity": quantity}
                sides = {"without": plain, "with": treated}
                for (side, arm), value in zip(sides.items(), theirs, strict=True):
                    row[f"{side}, paper"] = _number(value, digits)
                    row[f"{side}, here"] = describe(results, arm, last, digits)
                    row[f"{side}, here, final"] = describe(results, arm, final, digits)
                gap = theirs[1] - theirs[0]
                row["Δ, paper"] = _number(gap, digits, signed=True)
                found = _difference(results, treated, plain, last)
                row |= _verdict_cells(
                    found, gap, digits, run_here, comparable, reason, not_run.format(dataset)
                )
                rows.append(row)
    return pd.DataFrame(rows)


def weights_table(
    results: pd.DataFrame,
    arms: Mapping[tuple[str, str, float], Sequence[Run]],
    printed: pd.DataFrame,
    dataset: str,
    *,
    comparable: bool,
    reason: str = "",
    not_run: str = "",
) -> pd.DataFrame:
    """Table 2, 3, 4 or 5: ITDM-c with the best and the worst λ of five, by test accuracy.

    "best" and "worst" are picked on the test set, the paper's on theirs and ours on ours, so
    they get no p. "λ of the paper's best" and "... worst" are ours without a choice of ours.

    Args:
        results: from `last_evaluations`.
        arms: runs by (data set, network, λ); λ = 0 is without ITDM.
        printed: ``papers.itdm_rows`` of that table; of other sets it has no rows.
        dataset: which data set the table is of.
        comparable, reason, not_run: as in `joint_table`.

    Returns:
        Text columns, for each network each row of the paper: λ, the paper's number, ours as the
        paper means it and of the final model, paired differences to λ = 0, p, verdict, why.
    """
    lookup = _lookup(printed[printed["dataset"] == dataset])
    ours = [key[1] for key in arms if key[0] == dataset]
    rows = []
    for network in dict.fromkeys([*(key[1] for key in lookup), *ours]):
        mine = {w: arm for (d, n, w), arm in arms.items() if (d, n) == (dataset, network)}
        best, worst = picked_weights(results, mine) or (math.nan, math.nan)
        shown = [("without", "without", 0.0), ("best", "best", best), ("worst", "worst", worst)]
        for arm in ("best", "worst") if mine else ():
            if (dataset, network, arm) in lookup:
                same = lookup[dataset, network, arm].weight
                shown.append((f"λ of the paper's {arm}", arm, same))
        for name, arm, weight in shown:
            for quantity, (column, last, final, digits) in QUANTITIES.items():
                key = dataset, network, arm
                value = _printed_value(lookup, key, column)
                gap = value - _printed_value(lookup, (*key[:2], "without"), column)
                row = {"network": network, "row": name, "quantity": quantity}
                row["λ, paper"] = _weight(lookup[key].weight) if key in lookup else "–"
                row["paper"] = _number(value, digits)
                row["λ, here"] = _weight(weight) if mine else MISSING
                row["here"] = describe(results, mine.get(weight, ()), last, digits)
                row["here, final"] = describe(results, mine.get(weight, ()), final, digits)
                if name == "without":
                    why = "" if mine else not_run.format(dataset)
                    row |= {"Δ, paper": "", "Δ, here": "", "p": ""}
                    row |= {"verdict": "" if mine else MISSING, "why": why}
                else:
                    treated, plain = mine.get(weight, ()), mine.get(0.0, ())
                    found = _difference(results, treated, plain, last)
                    row["Δ, paper"] = _number(gap, digits, signed=True)
                    row |= _verdict_cells(
                        found, gap, digits, bool(mine), comparable, reason, not_run.format(dataset)
                    )
                    row["p"] = "" if name in ("best", "worst") else row["p"]
                rows.append(row)
    return pd.DataFrame(rows)


def sweep_table(
    results: pd.DataFrame, arms: Mapping[tuple[str, str, float], Sequence[Run]]
) -> pd.DataFrame:
    """Every λ that was run, and what is left without choosing one: a row for each, and for each
    network one with the mean over all λ > 0 of the seeds that finished with each.

    Beside the interval over seeds stand two standard deviations of the accuracy: of one run's
    last evaluations (mean of the runs; the paper's bars) and of the seeds.
    """
    rows = []
    for dataset, network in dict.fromkeys(key[:2] for key in arms):
        mine = {w: arm for (d, n, w), arm in arms.items() if (d, n) == (dataset, network)}
        head = {"data set": dataset, "network": network}
        for weight, arm in sorted(mine.items()):
            row = head | {"λ": f"{weight:g}"}
            accuracy = metric_by_seed(results, arm, "last_accuracy")
            row["accuracy (%)"] = describe(results, arm, "last_accuracy", 2)
            within = metric_by_seed(results, arm, "last_accuracy_sd").mean()
            row["sd in a run"] = _number(within, 2, missing="")
            spread = accuracy.std() if len(accuracy) > 1 else math.nan
            row["sd over seeds"] = _number(spread, 2, missing="")
            row["cross-entropy (nats)"] = describe(results, arm, "last_test_loss", 3)
            row["on training batches"] = describe(results, arm, "last_train_loss", 3)
            for name, (_, last, _, digits) in QUANTITIES.items():
                found = _difference(results, arm, mine.get(0.0, ()), last)
                row[f"Δ {name}"] = _gap(found if weight else None, digits)
            rows.append(row)
        row = head | {"λ": "all > 0"}
        for name, (_, last, _, digits) in QUANTITIES.items():
            row[f"Δ {name}"] = _gap(_pooled_difference(results, mine, last), digits)
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def metrics_table(
    results: pd.DataFrame,
    arms: Mapping[str, Sequence[Run]],
    shown: Mapping[str, tuple[str, int]],
    *,
    baseline: str = "",
    compared: Sequence[str] = (),
) -> pd.DataFrame:
    """A row for each arm: columns of the results, means with intervals over seeds.

    Args:
        results: of the runs.
        arms: runs by what the first column says of them.
        shown: heading -> (column, decimals).
        baseline, compared: behind the columns under the headings ``compared`` stand the paired
            differences to the arm ``baseline``, with their p.

    Raises:
        ParameterError: a ``baseline`` or a heading that is not there.
    """
    if compared:
        checks.choice("baseline", baseline, arms)
    for heading in compared:
        checks.choice("heading", heading, shown)
    rows = []
    for label, arm in arms.items():
        row = {"arm": label}
        for heading, (column, digits) in shown.items():
            row[heading] = describe(results, arm, column, digits)
            if heading in compared:
                other = () if label == baseline else arms[baseline]
                found = _difference(results, arm, other, column)
                row[f"Δ {heading}"] = _gap(found, digits)
        rows.append(row)
    return pd.DataFrame(rows)


def describe(results: pd.DataFrame, arm: Sequence[Run], column: str, digits: int) -> str:
    """``mean ± half width (n = ...)`` of a column over seeds, how many runs diverged, and of how
    many finished ones the number is undefined, as clusters of equal features."""
    finished = metric_by_seed(results, arm, column)
    values = finished.dropna()
    rows = results[results["key"].isin([run.key for run in arm])].drop_duplicates("key")
    diverged = int((rows["status"] == "diverged").sum())
    undefined = len(finished) - len(values)
    parts = [format_interval(mean_interval(values), digits)] if len(values) else []
    parts += [f"{diverged} diverged"] if diverged else []
    parts += [f"{undefined} undefined"] if undefined else []
    return ", ".join(parts) or MISSING


def _difference(
    results: pd.DataFrame, treatment: Sequence[Run], baseline: Sequence[Run], column: str
) -> PairedDifference | None:
    """Treatment minus baseline over the seeds in which both are defined; ``None`` without one."""
    sides = [metric_by_seed(results, arm, column).dropna() for arm in (treatment, baseline)]
    if sides[0].index.intersection(sides[1].index).empty:
        return None
    return paired_difference(*sides)


def _lookup(printed: pd.DataFrame) -> dict:
    rows = printed.rename(columns={"lambda": "weight"}).itertuples()
    return {(row.dataset, row.network, row.arm): row for row in rows}


def _printed_value(lookup: Mapping, key: tuple[str, str, str], column: str) -> float:
    return getattr(lookup[key], column) if key in lookup else math.nan


def _number(value: float, digits: int, *, signed: bool = False, missing: str = "–") -> str:
    if math.isnan(value):
        return missing
    return f"{value:{'+' if signed else ''}z.{digits}f}"


def _weight(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:g}"


def _difference_cells(found: PairedDifference | None, digits: int) -> dict[str, str]:
    if found is None:
        return {"Δ, here": "", "p": ""}
    return {"Δ, here": format_interval(found, digits, signed=True), "p": format_p(found)}


def _gap(found: PairedDifference | None, digits: int) -> str:
    """A difference and its p in one cell."""
    cells = _difference_cells(found, digits)
    p = cells["p"] if cells["p"].startswith("<") else f"= {cells['p']}"
    return cells["Δ, here"] + (f", p {p}" if cells["p"] else "")


def _verdict_cells(found, gap, digits, run_here, comparable, reason, not_run) -> dict[str, str]:
    cells = _difference_cells(found, digits)
    if not run_here:
        return cells | {"verdict": MISSING, "why": not_run}
    if found is None:
        return cells | {"verdict": "not comparable", "why": "no seed finished with both"}
    is_printed = not math.isnan(gap)
    why = reason if is_printed else "the paper has no such cell"
    outcome = verdict(gap, found, comparable=comparable and is_printed, reason=why)
    return cells | {"verdict": outcome.word, "why": outcome.reason}


def _pooled_difference(results, arms: Mapping, column: str) -> PairedDifference | None:
    """Mean over all λ > 0 minus λ = 0, over the seeds that finished with each."""
    values = [metric_by_seed(results, arm, column) for weight, arm in arms.items() if weight > 0]
    if not values:
        return None
    pooled = pd.concat(values, axis=1, join="inner").mean(axis=1)
    base = metric_by_seed(results, arms.get(0.0, ()), column)
    if pooled.index.intersection(base.index).empty:
        return None
    return paired_difference(pooled, base)


ITDM_ARMS = {
    "w/o": "without",
    "w/o ITDM": "without",
    "w/ ITDM": "with",
    "B": "best",
    "W": "worst",
}


def itdm_rows(table: int) -> pd.DataFrame:
    """Table 1, 2, 3, 4 or 5 of the ITDM paper, one row for each data set, network and arm.

    Returns:
        ``dataset``, ``network`` (our names; the paper's own networks are cnn2 in table 1, cnn5 in
        tables 2 and 3); ``arm``: "without" or "with" ITDM, or its "best" or "worst" λ of five by
        accuracy; ``lambda``: 0 without, nan where not printed; ``accuracy`` (%),
        ``cross_entropy`` (nats). Then the printed differences to "without", with the sign that
        follows from the values beside them, positive is better: ``accuracy_gain`` (points) and
        ``cross_entropy_drop``, nan in table 1 and without ITDM, where table 3 has one by mistake
        (errata 003-7).

    Raises:
        ParameterError: a table that the paper does not have.

    Example:
        >>> rows = itdm_rows(5)
        >>> print(rows.loc[rows["arm"] == "worst", ["network", "lambda", "accuracy_gain"]])
             network  lambda  accuracy_gain
        2   resnet18     0.8           0.41
        5      vgg13     0.4           0.06
        8  mobilenet     0.8          -0.16
    """
    rows = load_table(f"itdm_table{checks.integer('table', table, 1, 5)}")
    if table == 1:  # it has a column for each set, and no differences
        cells = rows.set_index(["metric", "setting"])
        rows = pd.DataFrame(
            {"dataset": name, "row": row, "acc": cells.at[("Acc", row), name]}
            | {"ce": cells.at[("CE", row), name]}
            for name in cells
            for row in ("w/o ITDM", "w/ ITDM")
        ).assign(**dict.fromkeys(["lambda", "acc_delta", "ce_delta"], math.nan))
    arm = rows["row"].map(ITDM_ARMS)
    networks = {1: "cnn2", 2: "cnn5", 3: "cnn5"}.get(table) or rows["network"].map(network_name)
    rows = rows.assign(dataset=rows["dataset"].map(dataset_name), network=networks)
    base = rows.groupby(["dataset", "network"])[["acc", "ce"]].transform("first")  # "without"
    gain = rows["acc_delta"].mask(rows["acc"] < base["acc"], -rows["acc_delta"])
    drop = rows["ce_delta"].mask(rows["ce"] > base["ce"], -rows["ce_delta"])
    columns = {"dataset": rows["dataset"], "network": rows["network"], "arm": arm}
    columns["lambda"] = rows["lambda"].mask(arm == "without", 0.0)  # section 4.2: vanilla SGD
    columns |= {"accuracy": rows["acc"], "cross_entropy": rows["ce"]}
    columns |= {"accuracy_gain": gain, "cross_entropy_drop": drop.mask(arm == "without")}
    return pd.DataFrame(columns)
