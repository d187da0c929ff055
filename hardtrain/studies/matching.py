"""Distribution matching: which trainings the paper makes, and what their artefacts show.

Li, Pan, Li, Zhu, "Improve SGD Training via Aligning Mini-batches" (ITDM), arXiv 2002.09917. An
*arm* is a list of runs that differ in their seed alone, as in `tables`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
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

VERSION = 1  # raise it when a change here changes what a figure shows


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
