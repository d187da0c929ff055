"""Distribution matching: what its figures show of features and logits."""

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import softmax

from hardtrain.papers.distribution_matching import calibration, tables
from hardtrain.papers.distribution_matching.plan import Cell
from hardtrain.report import plotting
from hardtrain.report.embedding import SCORES as FEATURE_SCORES
from hardtrain.report.embedding import embedded_features, embedding_scores, plot_embedding
from hardtrain.report.tables import curves, metric_by_seed
from hardtrain.statistics import mean_interval

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
    collapsed: Mapping[float, Sequence[int]] = MappingProxyType({}),
) -> Figure:
    """Left: by bin of confidence, by how much a network is more often right than it is sure, and
    how many test images are in the bin. Right: cross-entropy over λ, means over seeds with 95 %
    intervals; where networks collapsed, the other seeds one by one.

    Args:
        bins: `confidence_bins` by label.
        losses: by label a row a seed, a column a λ.
        styles: of all labels.
        collapsed: seeds by λ.
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
    for shift, (label, values) in zip((-0.008, 0.008), losses.items(), strict=False):
        whole = [weight for weight in values if weight not in collapsed and len(values)]
        found = [mean_interval(values[weight]) for weight in whole]
        bars = [gap.mean for gap in found], [gap.half_width for gap in found]
        axes["loss"].errorbar(np.add(whole, shift), *bars, capsize=2, label=label, **styles[label])
        for weight, seeds in collapsed.items():
            left = values[weight].drop(seeds, errors="ignore")
            _dots(axes["loss"], weight + shift, left, styles[label])
    axes["loss"].set(xlabel="λ", ylabel="test cross-entropy (nats)")
    axes["loss"].legend()
    _say_collapsed(axes["loss"], {w: (len(seeds), len(values)) for w, seeds in collapsed.items()})
    return fig


def _dots(ax: Axes, x: float, values: Iterable[float], style: Mapping) -> None:
    """Single seeds, small, in an arm's style."""
    values = list(values)
    ax.plot([x] * len(values), values, **style | {"linestyle": "none", "markersize": 3})


def _say_collapsed(
    ax: Axes, counts: Mapping[float, tuple[int, int]], *, below: bool = False
) -> None:
    """At each λ how many of how many networks collapsed, and an arrow to where they lie, off the
    axis (``below`` it, or above)."""
    edge, marker, side = (0, "v", "bottom") if below else (1, "^", "top")
    look = {"ha": "center", "va": side, "fontsize": 7, "textcoords": "offset points"}
    across = ax.get_xaxis_transform()
    low, high = ax.get_ylim()
    room = 0.15 * (high - low) if counts else 0  # for the words
    ax.set_ylim(low - room * below, high + room * (not below))
    for weight, (gone, num) in counts.items():
        ax.plot(weight, edge, marker=marker, color="0.35", transform=across, clip_on=False)
        place = {"xy": (weight, edge), "xycoords": across, "xytext": (0, 6 if below else -6)}
        ax.annotate(f"{gone} of {num}\ncollapsed", **place, **look)


def draw_curves(
    history: pd.DataFrame,
    joint: Mapping[Cell, tables.ByLabel],
    styles: Mapping[str, Mapping],
) -> Figure:
    """Figure 1: test and training cross-entropy, geometric means over seeds; and, seed by seed, the
    test cross-entropy minus that of plain training, on the scale of the training's second half.

    Args:
        history: of the runs.
        joint: for each cell its arms, a column of panels.
        styles: of all labels.
    """
    size = (1.6 + 2.9 * len(joint), 6.2)
    look = {"squeeze": False, "sharex": "col", "height_ratios": (3, 3, 4)}
    fig, axes = plt.subplots(3, len(joint), figsize=size, **look)
    for column, (cell, arms) in zip(axes.T, joint.items(), strict=True):
        bounds = [0.0]
        for label, arm in arms.items():
            for ax, name in zip(column, ("test_loss", "train_loss"), strict=False):
                reached, losses = curves(history, arm, name)
                plotting.band(ax, reached, losses, label=label, log=True, **styles[label])
            if label != tables.WITHOUT:
                pair = arm, arms[tables.WITHOUT]
                reached, gaps = tables.paired_curves(history, *pair, "test_loss")
                look = {**styles[label], "linewidth": 1, "markeredgecolor": "white"}
                plotting.band(column[2], reached, gaps, label=label, markersize=6, **look)
                late = gaps[:, reached > max(reached, default=0) / 2]
                bounds += [end for gap in late.T for end in mean_interval(gap)[:3]]
        for ax in column[:2]:
            plotting.log_axis(ax.yaxis)
        column[2].axhline(0, color="0.6", linewidth=1, zorder=1)
        low, high = np.nanmin(bounds), np.nanmax(bounds)
        pad = 0.25 * (high - low) or 0.01
        column[2].set(xlabel="epoch", ylim=(low - pad, high + pad))
        column[0].set_title(cell.label)
    axes[0, 0].set_ylabel("test cross-entropy\n(nats)")
    axes[1, 0].set_ylabel("training cross-entropy\n(nats)")
    axes[2, 0].set_ylabel("test cross-entropy\nminus without (nats)")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


def draw_weights(results: pd.DataFrame, sweep: Mapping[Cell, tables.ByWeight]) -> Figure:
    """Figures 3, 4, 5 and 7: accuracy and cross-entropy over λ, a row of panels for each cell.

    Where networks collapsed, the other seeds stand one by one, without mean and interval, and the
    axes leave the collapsed ones out.

    Args:
        results: from `tables.last_evaluations`.
        sweep: for each cell its arms by λ.
    """
    purple = plotting.method_style("itdm_class")["color"]
    sides = {"last_accuracy": ("accuracy (%)", "test", "o", purple, -0.012)}
    sides |= {"last_test_loss": ("cross-entropy (nats)", "test", "o", purple, -0.012)}
    sides |= {"last_train_loss": ("cross-entropy (nats)", "training", "s", "black", 0.012)}
    size = (7.6, 0.7 + 2.5 * len(sweep))
    fig, axes = plt.subplots(len(sweep), 2, figsize=size, squeeze=False)
    for row, (cell, arms) in zip(axes, sweep.items(), strict=True):
        collapsed = tables.collapsed_seeds(results, arms)
        whole = {weight: arm for weight, arm in arms.items() if weight not in collapsed}
        for ax, (column, about) in zip(row[[0, 1, 1]], sides.items(), strict=True):
            name, side, marker, colour, shift = about
            bars = tables.weight_sweep(results, whole, column)
            look = {"color": colour, "capsize": 2, "marker": marker}
            text = f"{side}, seeds: mean, 95 % interval"
            at = bars["weight"] + shift
            ax.errorbar(at - 0.005, bars["mean"], bars["half_width"], label=text, **look)
            look |= dict(linestyle=":", linewidth=1, markerfacecolor="white", markersize=4)
            text = f"{side}, one run: mean, sd of its last 10"
            ax.errorbar(at + 0.005, bars["one"], bars["one_sd"], label=text, **look)
            for weight, seeds in collapsed.items():
                left = metric_by_seed(results, arms[weight], column).drop(seeds, errors="ignore")
                _dots(ax, weight + shift, left, {"color": colour, "marker": marker})
            ax.set(xlabel="λ", ylabel=name, title=cell.label)
        counts = {weight: (len(seeds), len(arms[weight])) for weight, seeds in collapsed.items()}
        _say_collapsed(row[0], counts, below=True)
        _say_collapsed(row[1], counts)
    fig.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside upper center", ncols=2)
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
            scores = dict(zip(FEATURE_SCORES, pair["scores"][i], strict=True))
            if not pair["states"][i]:
                text = f"of the features ({len(pair['labels'])} images):\n"
                text += f"10-NN {100 * scores['knn_features']:.1f} %, "
                ax.set_xlabel(f"{text}silhouette {scores['silhouette_features']:.2f}")
    return fig
