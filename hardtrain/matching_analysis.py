"""Distribution matching: which trainings the paper makes, its tables beside ours, figure data.

Li, Pan, Li, Zhu, "Improve SGD Training via Aligning Mini-batches" (ITDM), arXiv 2002.09917. An
*arm* is a list of runs that differ in their seed alone, as in `tables`.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import log_softmax, softmax

from hardtrain import checks
from hardtrain.analysis import SCORES as FEATURE_SCORES
from hardtrain.analysis import embedded_features
from hardtrain.calibration import (
    cross_fitted_temperature_loss,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from hardtrain.errors import ParameterError
from hardtrain.plotting import embedding_scores
from hardtrain.runs import Run
from hardtrain.statistics import (
    PairedDifference,
    format_interval,
    format_p,
    mean_interval,
    paired_difference,
    verdict,
)
from hardtrain.tables import MISSING, metric_by_seed

VERSION = 1  # raise it when a change here changes what a figure shows
NUM_LAST = 10  # evaluations behind a printed number


class Experiment(NamedTuple):
    """A kind of training of the paper: its data and networks, and how they are trained."""

    datasets: tuple[str, ...]
    networks: tuple[str, ...]
    epochs: int
    lr: float
    gamma: float  # by which the rate falls ...
    drops: tuple[float, ...]  # ... after these parts of the training
    augment: str
    evaluate_every: int  # updates


# Section 4.2. What it leaves open (all of "initial", and how often is evaluated) is as in code
# that is very likely the authors'.
EXPERIMENTS = {
    "initial": Experiment(
        ("qmnist", "kmnist", "fashion-mnist"), ("cnn2",), 50, 0.01, 0.2, (0.4, 0.8), "none", 50
    ),
    "small": Experiment(
        ("kmnist", "fashion-mnist"), ("cnn5",), 50, 0.01, 0.2, (0.4, 0.8), "none", 50
    ),
    "large": Experiment(
        ("cifar10", "stl10"), ("resnet18", "vgg13", "mobilenet"),
        150, 0.5, 0.1, (1 / 3, 2 / 3), "crop+flip", 5,
    ),
}  # fmt: skip

# quantity -> column of the printed tables, of our last evaluations, of our final one, decimals
QUANTITIES = {
    "accuracy (%)": ("accuracy", "last_accuracy", "accuracy", 2),
    "cross-entropy (nats)": ("cross_entropy", "last_test_loss", "test_loss", 3),
}
CALIBRATION_SCORES = (
    "calibration_error", "scaled_loss", "scaled_calibration_error", "temperature",
    "hindsight_loss", "spread",
)  # fmt: skip


class Cell(NamedTuple):
    """One experiment with one image set and one network."""

    experiment: str
    dataset: str
    network: str


def plan(datasets: Iterable[str], networks: Iterable[str]) -> list[Cell]:
    """Which image set is trained with which network, and in which of ``EXPERIMENTS``.

    A set and a network of the paper meet where the paper has them meet; a network that it does
    not have goes into every experiment of the set. A set that meets none of the networks in this
    way meets them all, in its own experiments. A set that the paper does not have goes into
    "initial" and "small" ("large" with networks of that one).

    Raises:
        ParameterError: an empty list.

    Example:
        >>> for cell in plan(["fashion-mnist", "cifar10"], ["cnn2", "cnn5", "vgg13"]):
        ...     print(*cell)
        initial fashion-mnist cnn2
        small fashion-mnist cnn5
        large cifar10 vgg13
    """
    datasets, networks = list(datasets), list(networks)
    if not datasets or not networks:
        raise ParameterError(f"datasets = {datasets}, networks = {networks}: give one of each")
    cells = []
    for dataset in dict.fromkeys(datasets):
        homes = _homes(dataset, "datasets")
        meeting = [
            Cell(experiment, dataset, network)
            for network in dict.fromkeys(networks)
            for experiment in _both(homes, _homes(network, "networks"))
        ]
        cells += meeting or [
            Cell(experiment, dataset, network)
            for network in dict.fromkeys(networks)
            for experiment in homes
        ]
    order = list(EXPERIMENTS)
    return sorted(cells, key=lambda cell: order.index(cell.experiment))


def joint_and_class(cells: Sequence[Cell]) -> tuple[list[Cell], list[Cell]]:
    """The cells of a `plan` for ITDM-j (as in "initial") and for ITDM-c (as in the others).

    If there is none for one of the two, it gets the first of the other's.
    """
    joint = [cell for cell in cells if cell.experiment == "initial"]
    by_class = [cell for cell in cells if cell.experiment != "initial"]
    return joint or by_class[:1], by_class or joint[:1]


def first_of_each_set(cells: Iterable[Cell]) -> list[Cell]:
    """The first cell of each image set, in their order: those whose features are drawn."""
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(cell.dataset, cell)
    return list(first.values())


def _homes(name: str, kind: str) -> list[str]:
    homes = [key for key, experiment in EXPERIMENTS.items() if name in getattr(experiment, kind)]
    return homes or list(EXPERIMENTS)


def _both(homes: list[str], others: list[str]) -> list[str]:
    """Experiments in both lists, but of the class-conditional ones the first only."""
    common = [key for key in homes if key in others]
    return [key for key in common if key != "large" or "small" not in common]


def trainings(
    cell: Cell,
    seeds: Sequence[int],
    options: Mapping,
    *,
    epochs: int = 0,
    lr: float = 0.0,
    evaluate: str = "steps",
    longer: int = 1,
    features: bool = False,
    **fields,
) -> list[Run]:
    """An arm: the method ``distribution_matching`` with ``options``, one run a seed.

    Args:
        cell: from `plan`; its experiment gives the schedule, the augmentation and what is 0 here.
        seeds: of the runs.
        options: of the method.
        epochs, lr: of the training; 0: the experiment's own.
        evaluate: "steps": as often as the experiment says; "epoch": at each epoch's end.
        longer: factor of the epochs; the rate falls after the same parts of the training.
        features: whether the runs keep the test set's features. All keep its logits.
        **fields: further fields of `Run`.

    Raises:
        ParameterError: as `Run`; another text for ``evaluate``.

    Example:
        >>> (run,) = trainings(Cell("large", "stl10", "vgg13"), [0], {"weight": 0.2})
        >>> run.epochs, run.milestones, run.image_size, run.evaluate_every
        (150, (50, 100), 32, 5)
    """
    experiment = EXPERIMENTS[cell.experiment]
    checks.choice("evaluate", evaluate, ("steps", "epoch"))
    epochs = (epochs or experiment.epochs) * longer
    fields = {
        "momentum": 0.5,
        "batch_size": 150,
        "image_size": 32 if cell.dataset == "stl10" else 0,
        "augment": experiment.augment,
        "lr": lr or experiment.lr,
        "schedule": "multistep",
        "gamma": experiment.gamma,
        "milestones": sorted({max(1, round(part * epochs)) for part in experiment.drops}),
        "evaluate_every": experiment.evaluate_every if evaluate == "steps" else 1,
        "evaluate_unit": "step" if evaluate == "steps" else "epoch",
    } | fields
    return [
        Run(
            dataset=cell.dataset,
            network=cell.network,
            method="distribution_matching",
            options=options,
            seed=seed,
            epochs=epochs,
            keep=("features", "logits") if features else ("logits",),
            **fields,
        )
        for seed in seeds
    ]


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


# --- numbers of runs ------------------------------------------------------------------------------


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


# --- the paper's tables, and ours -----------------------------------------------------------------


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


# --- what is computed from artefacts --------------------------------------------------------------


def calibration_scores(
    artefacts: Sequence[Mapping[str, np.ndarray] | None], *, num_bins: int = 15
) -> dict[str, np.ndarray]:
    """Calibration of several runs on their test sets, before and after temperature scaling.

    Args:
        artefacts: ``logits`` of R runs; ``None`` for one that diverged, nan in the results.
        num_bins: of the expected calibration error.

    Returns:
        ``(R,)`` each: ``calibration_error`` and ``scaled_calibration_error`` (%),
        ``scaled_loss`` (nats), with the cross-fitted ``temperature`` (geometric mean of its two
        halves); ``hindsight_loss``: with the one temperature that is best for the whole test set;
        ``spread``: the standard deviation of a logit over the test set, mean over the classes, 0
        if the network says the same of all images. ``confidence``, ``accuracy`` (nan in empty
        bins) and ``count``: the bins, ``(R, num_bins)``.

    Example:
        >>> logits = np.tile([3.0, 0.0], (8, 1))
        >>> found = calibration_scores([{"logits": logits, "labels": np.array([0, 1] * 4)}, None])
        >>> found["calibration_error"].round(1).tolist(), found["spread"].tolist()
        ([45.3, nan], [0.0, nan])
    """
    numbers = np.full((len(artefacts), len(CALIBRATION_SCORES)), np.nan)
    bins = np.full((3, len(artefacts), num_bins), np.nan)
    bins[2] = 0
    for row, artefact in enumerate(artefacts):
        if artefact is None:
            continue
        logits, labels = artefact["logits"].astype(float), artefact["labels"]
        probabilities = softmax(logits, axis=1)
        error = expected_calibration_error(probabilities, labels, num_bins)
        scaled = cross_fitted_temperature_loss(logits, labels, seed=0, num_bins=num_bins)
        temperature = math.sqrt(math.prod(scaled.temperatures))
        scores = [100 * error, scaled.loss, 100 * scaled.calibration_error, temperature]
        best = log_softmax(logits / fit_temperature(logits, labels), axis=1)
        hindsight = -best[np.arange(len(labels)), labels].mean()
        numbers[row] = [*scores, hindsight, logits.std(axis=0).mean()]
        table = reliability(probabilities, labels, num_bins)
        bins[:, row] = table[["confidence", "accuracy", "count"]].to_numpy().T
    bins = dict(zip(("confidence", "accuracy", "count"), bins, strict=True))
    return dict(zip(CALIBRATION_SCORES, numbers.T, strict=True)) | bins


def pooled_bins(
    found: Mapping[str, np.ndarray], rows: Sequence[int], *, fewest: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence, accuracy and count of each bin over several runs of `calibration_scores`,
    without the bins that hold fewer than ``fewest`` samples."""
    count = found["count"][rows]
    sums = [
        np.where(count > 0, found[name][rows] * count, 0).sum(axis=0)
        for name in ("confidence", "accuracy")
    ]
    total = count.sum(axis=0)
    filled = total >= max(fewest, 1)
    return *(values[filled] / total[filled] for values in sums), total[filled]


def feature_scores(
    artefacts: Sequence[Mapping[str, np.ndarray] | None], *, max_points: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """How far the classes are apart in the features of several runs.

    Args:
        artefacts: ``features`` of R runs; ``None`` for one that diverged, nan in the results.
        max_points: with more samples, this many are drawn without replacement.
        seed: of that.

    Returns:
        ``(R,)`` each, as `plotting.embedding_scores` gives them: ``silhouette`` and ``knn`` (10
        neighbours, %), nan where all features are equal.
    """
    scores = np.full((2, len(artefacts)), np.nan)
    for column, artefact in enumerate(artefacts):
        if artefact is None or np.ptp(artefact["features"], axis=0).max() == 0:
            continue
        features, labels = artefact["features"], artefact["labels"]
        size = min(max_points, len(labels))
        chosen = np.random.default_rng(seed).choice(len(labels), size, replace=False)
        features, labels = features[chosen], labels[chosen]
        found = embedding_scores(features, features, labels)
        scores[:, column] = found["silhouette_features"], 100 * found["knn_features"]
    return {"silhouette": scores[0], "knn": scores[1]}


def embedded_pair(
    artefacts: Sequence[Mapping[str, np.ndarray] | None], *, max_points: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """t-SNE of the features of runs on one test set, for figures 2 and 6.

    Args:
        artefacts: ``features`` of R runs; ``None`` for one that diverged.
        max_points, seed: as in `analysis.embedded_features`.

    Returns:
        ``embedding (R, n, 2)``, ``labels (n,)``, ``class_names (K,)``, ``scores (R, 4)`` as
        there, and ``states (R,)``: "" or "diverged" (all nan), or "all features equal", as of a
        collapsed network: one point, no scores. If no run is left, n is 0.
    """
    states = [
        "diverged" if artefact is None
        else "all features equal" if np.ptp(artefact["features"], axis=0).max() == 0
        else ""
        for artefact in artefacts
    ]  # fmt: skip
    usable = [None if state else a for a, state in zip(artefacts, states, strict=True)]
    if all(artefact is None for artefact in usable):
        return {
            "embedding": np.zeros((len(states), 0, 2), np.float32),
            "labels": np.zeros(0, int),
            "class_names": np.zeros(0, str),
            "scores": np.full((len(states), len(FEATURE_SCORES)), np.nan),
            "states": np.array(states),
        }
    found = embedded_features(usable, seed=seed, max_points=max_points)
    found["embedding"][[state == "all features equal" for state in states]] = 0
    del found["losses"]
    return found | {"states": np.array(states)}
