"""Distribution matching: what its figures show of features and logits."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import log_softmax, softmax

from hardtrain.papers.distribution_matching.calibration import (
    cross_fitted_temperature_loss,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from hardtrain.report.embedding import SCORES as FEATURE_SCORES
from hardtrain.report.embedding import embedded_features, embedding_scores

CALIBRATION_SCORES = (
    "calibration_error", "scaled_loss", "scaled_calibration_error", "temperature",
    "hindsight_loss", "spread",
)  # fmt: skip


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
