"""Distribution matching: what its figures show of features and logits."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.special import softmax

from hardtrain.papers.distribution_matching import calibration
from hardtrain.report import plotting
from hardtrain.report.embedding import SCORES as FEATURE_SCORES
from hardtrain.report.embedding import embedded_features, embedding_scores, plot_embedding

CALIBRATION_SCORES = (
    "calibration_error", "scaled_loss", "scaled_calibration_error", "temperature",
    "hindsight_loss", "spread",
)  # fmt: skip
SEPARATION_SCORES = ("silhouette", "knn")
_NORMAL_QUANTILE = 1.959964  # of 95 %
_Artefacts = Sequence[Mapping[str, np.ndarray] | None]


def calibration_scores(artefacts: _Artefacts) -> dict[str, np.ndarray]:
    """Calibration of several runs on their test sets, before and after temperature scaling.

    Args:
        artefacts: ``logits`` of R runs; ``None`` for one that diverged, nan in the results.

    Returns:
        ``(R,)`` each: ``calibration_error`` and ``scaled_calibration_error`` (%),
        ``scaled_loss`` (nats), with the cross-fitted ``temperature`` (geometric mean of its two
        halves); ``hindsight_loss``: with the one temperature that is best for the whole test set;
        ``spread``: the standard deviation of a logit over the test set, mean over the classes, 0
        if the network says the same of all images. ``confidence``, ``accuracy`` (nan in empty
        bins) and ``count``: the bins, ``(R, calibration.NUM_BINS)``.

    Example:
        >>> logits = np.tile([3.0, 0.0], (8, 1))
        >>> scores = calibration_scores([{"logits": logits, "labels": np.array([0, 1] * 4)}, None])
        >>> scores["calibration_error"].round(1).tolist(), scores["spread"].tolist()
        ([45.3, nan], [0.0, nan])
    """
    runs = [_calibration(artefact) for artefact in artefacts]
    return {name: np.array([run[name] for run in runs]) for name in runs[0]}


def _calibration(artefact: Mapping[str, np.ndarray] | None) -> dict[str, float | np.ndarray]:
    if artefact is None:
        no_bins = calibration.reliability(np.zeros((0, 2)), np.zeros(0, int))
        return dict.fromkeys(CALIBRATION_SCORES, np.nan) | no_bins.to_dict("list")
    logits, labels = artefact["logits"].astype(float), artefact["labels"]
    probabilities = softmax(logits, axis=1)
    scaled, temperatures = calibration.cross_fitted(logits, labels, seed=0)
    scaled_error = calibration.expected_calibration_error(softmax(scaled, axis=1), labels)
    scores = (
        100 * calibration.expected_calibration_error(probabilities, labels),
        calibration.cross_entropy(scaled, labels),
        100 * scaled_error,
        math.sqrt(math.prod(temperatures)),
        calibration.cross_entropy(logits / calibration.fit_temperature(logits, labels), labels),
        logits.std(axis=0).mean(),
    )
    bins = calibration.reliability(probabilities, labels).astype(float).to_dict("list")
    return dict(zip(CALIBRATION_SCORES, scores, strict=True)) | bins


def confidence_bins(
    scores: Mapping[str, np.ndarray], rows: Sequence[int], *, fewest: float = 5
) -> pd.DataFrame:
    """The bins of a reliability diagram over several runs of `calibration_scores`.

    Args:
        scores: of the runs.
        rows: which of them.
        fewest: bins that hold fewer images, in the mean over runs, are left out.

    Returns:
        A row for each bin: ``images``, the mean count of a run; ``confidence``, ``accuracy``
        and its Wilson interval for 95 % ``low``, ``high`` (%). The interval is of so many images,
        however many runs there are, since all are tested on the same ones.
    """
    count = scores["count"][rows]
    finished = count.sum(axis=1) > 0
    images = count.sum(axis=0) / max(1, finished.sum())
    filled = images >= fewest
    confidence, accuracy = (
        np.nansum(scores[name][rows] * count, axis=0)[filled] / count.sum(axis=0)[filled]
        for name in ("confidence", "accuracy")
    )
    ratio = _NORMAL_QUANTILE**2 / images[filled]
    half = np.sqrt(ratio * accuracy * (1 - accuracy) + ratio**2 / 4)
    bounds = [(accuracy + ratio / 2 + sign * half) / (1 + ratio) for sign in (-1, 1)]
    columns = {"confidence": confidence, "accuracy": accuracy, "low": bounds[0], "high": bounds[1]}
    return pd.DataFrame({"images": images[filled]} | {k: 100 * v for k, v in columns.items()})


def draw_calibration(
    bins: Mapping[str, pd.DataFrame],
    losses: Mapping[str, pd.DataFrame],
    styles: Mapping[str, Mapping],
) -> Figure:
    """Left: by bin of confidence, by how much a network is more often right than it is sure, and
    how many test images are in the bin. Right: cross-entropy over λ.

    Args:
        bins: `confidence_bins` by label.
        losses: by label a row a seed, a column a λ.
        styles: of all labels.
    """
    panels = [["gap", "loss"], ["count", "loss"]]
    fig, axes = plt.subplot_mosaic(panels, figsize=(7.6, 3.6), height_ratios=(2, 1))
    for label, table in bins.items():
        gap, looks = table["accuracy"] - table["confidence"], {**styles[label], "markersize": 5}
        ends = [table["accuracy"] - table["low"], table["high"] - table["accuracy"]]
        ends = np.maximum(ends, 0)  # round-off at 0 and 100 %
        axes["gap"].errorbar(table["confidence"], gap, ends, capsize=2, label=label, **looks)
        axes["count"].plot(table["confidence"], table["images"], **looks)
    axes["gap"].axhline(0, color="0.6", linewidth=1)
    axes["gap"].set(ylabel="accuracy minus\nconfidence (points)")
    axes["gap"].tick_params(labelbottom=False)
    axes["gap"].sharex(axes["count"])
    if bins:
        plotting.log_axis(axes["count"].yaxis)
        axes["gap"].legend()
    axes["count"].set(xlabel="confidence (%)", ylabel="images")
    for label, values in losses.items():
        plotting.band(axes["loss"], list(values), values, label=label, **styles[label])
    axes["loss"].set(xlabel="λ", ylabel="test cross-entropy (nats)")
    axes["loss"].legend()
    return fig


def _state(artefact: Mapping[str, np.ndarray] | None) -> str:
    """ "diverged", or "all features equal", as of a collapsed network, or "" as it should be."""
    if artefact is None:
        return "diverged"
    return "all features equal" if np.ptp(artefact["features"], axis=0).max() == 0 else ""


def feature_scores(artefacts: _Artefacts, *, max_points: int) -> dict[str, np.ndarray]:
    """How far the classes are apart in the features of several runs.

    Args:
        artefacts: ``features`` of R runs; ``None`` for one that diverged, nan in the results.
        max_points: with more samples, this many are drawn without replacement, the same for all.

    Returns:
        ``(R,)`` each, as `embedding_scores` gives them: ``silhouette`` and ``knn`` (10
        neighbours, %), nan where all features are equal.
    """
    scores = {name: np.full(len(artefacts), np.nan) for name in SEPARATION_SCORES}
    for row, artefact in enumerate(artefacts):
        if _state(artefact):
            continue
        size = min(max_points, len(artefact["labels"]))
        chosen = np.random.default_rng(0).choice(len(artefact["labels"]), size, replace=False)
        features = artefact["features"][chosen]
        apart = embedding_scores(features, features, artefact["labels"][chosen])
        scores["silhouette"][row] = apart["silhouette_features"]
        scores["knn"][row] = 100 * apart["knn_features"]
    return scores


def embedded_pair(artefacts: _Artefacts, *, max_points: int) -> dict[str, np.ndarray]:
    """t-SNE of the features of runs on one test set, for figures 2 and 6.

    Args:
        artefacts: ``features`` of R runs; ``None`` for one that diverged.
        max_points: as in `embedded_features`.

    Returns:
        ``embedding (R, n, 2)``, ``labels (n,)``, ``class_names (K,)``, ``scores (R, 4)`` as
        there, and ``states (R,)``: "" or "diverged" (all nan), or "all features equal", as of a
        collapsed network: one point, no scores. If no run is left, n is 0.
    """
    states = np.array([_state(artefact) for artefact in artefacts])
    if all(states):
        nothing = {"embedding": np.zeros((len(states), 0, 2), np.float32)}
        nothing |= {"labels": np.zeros(0, int), "class_names": np.zeros(0, str)}
        nothing |= {"scores": np.full((len(states), len(FEATURE_SCORES)), np.nan)}
        return nothing | {"states": states}
    usable = [
        None if state else artefact for artefact, state in zip(artefacts, states, strict=True)
    ]
    shown = embedded_features(usable, max_points=max_points)
    shown["embedding"][states == "all features equal"] = 0
    del shown["losses"]
    return shown | {"states": states}


def draw_pairs(
    pairs: Mapping[str, Mapping[str, np.ndarray]], names: Mapping[str, tuple[str, str]]
) -> Figure:
    """Figures 2 and 6: a row of two t-SNE pictures for each data set.

    Args:
        pairs: from `embedded_pair`, by the data set's name.
        names: of the two arms, by the same.
    """
    fig, axes = plt.subplots(len(pairs), 2, figsize=(7, 3 * len(pairs)), squeeze=False)
    for row, (dataset, pair) in zip(axes, pairs.items(), strict=True):
        for i, (ax, name) in enumerate(zip(row, names[dataset], strict=True)):
            about = {"labels": pair["labels"], "class_names": pair["class_names"]}
            plot_embedding(ax, pair["embedding"][i], **about, legend=i == 1)
            ax.set_title(f"{dataset}, {name} {pair['states'][i]}".strip())
            _, knn, _, silhouette = pair["scores"][i]
            if not pair["states"][i]:
                text = f"10-NN {100 * knn:.1f} %, silhouette {silhouette:.2f}"
                ax.set_xlabel(f"in the picture: {text}")
    return fig
