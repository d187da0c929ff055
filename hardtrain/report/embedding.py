"""t-SNE of features, with numbers for what the eye sees."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import patheffects

from hardtrain.errors import DataError, ParameterError
from hardtrain.report.plotting import _CLASS_COLOURS, _CLASS_MARKERS


def embed(
    features, *, seed: int = 0, max_points: int = 10_000, perplexity: float = 30
) -> tuple[np.ndarray, np.ndarray]:
    """t-SNE of features in the plane, the same each time on one machine.

    Starts from the principal components. Runs on one thread, because the order of sums over
    several changes the picture.

    Args:
        features: shape ``(N, D)``, finite, N >= 4; array or tensor.
        seed: of the subsample and of t-SNE.
        max_points: with more samples, this many are drawn without replacement.
        perplexity: lowered to (n - 1) / 3 where n points are too few for it.

    Returns:
        ``embedding (n, 2)`` float32 and ``indices (n,)`` int64, ascending, of its rows in
        ``features``.

    Raises:
        ParameterError: wrong shape, too few points, a value that is not finite, or all rows equal.

    Example:
        >>> embedding, indices = embed(np.eye(20), max_points=12)
        >>> embedding.shape, indices.shape
        ((12, 2), (12,))
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    features = _features(features)
    if max_points < 4 or perplexity < 1:
        raise ParameterError(
            f"need max_points >= 4 and perplexity >= 1; got {max_points} and {perplexity}"
        )
    indices = np.arange(len(features))
    if len(features) > max_points:
        drawn = np.random.default_rng(seed).choice(len(features), max_points, replace=False)
        indices = np.sort(drawn)
    chosen = features[indices]
    if (chosen == chosen[0]).all():
        raise ParameterError("features are all equal; there is nothing to embed")
    if chosen.shape[1] == 1:
        chosen = np.pad(chosen, ((0, 0), (0, 1)))  # two principal components need two columns
    perplexity = min(perplexity, (len(chosen) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed)
    with threadpool_limits(1):
        return tsne.fit_transform(chosen), indices


def embedding_scores(features, embedding, labels, *, num_neighbours: int = 10) -> dict[str, float]:
    """How far classes are apart, in a picture and in the space it was made from.

    Args:
        features: shape ``(n, D)``, finite, n >= 4; the rows that were embedded.
        embedding: shape ``(n, 2)``.
        labels: shape ``(n,)``, int.
        num_neighbours: k, lowered to n - 1.

    Returns:
        ``silhouette_features``, ``silhouette_embedding`` in [-1, 1] (nan with one class, or with
        one sample in each) and ``knn_features``, ``knn_embedding``: the fraction of samples whose
        k nearest others vote for their class; of tied classes the smallest label wins.

    Raises:
        ParameterError: shapes that do not fit, or a value that is not finite.

    Example:
        >>> points = np.array([[0.0, 0], [0, 1], [9, 0], [9, 1]])
        >>> scores = embedding_scores(points, points, [0, 0, 1, 1], num_neighbours=1)
        >>> scores["knn_embedding"], round(scores["silhouette_embedding"], 3)
        (1.0, 0.889)
    """
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors

    labels = np.asarray(labels)
    spaces = {"features": _features(features), "embedding": _features(embedding)}
    if any(labels.shape != space.shape[:1] for space in spaces.values()):
        shapes = [space.shape for space in spaces.values()]
        raise ParameterError(f"features, embedding, labels do not fit: {shapes}, {labels.shape}")
    classes, classes_of = np.unique(labels, return_inverse=True)
    scores = {}
    for name, space in spaces.items():
        defined = 1 < len(classes) < len(labels)
        scores[f"silhouette_{name}"] = (
            float(silhouette_score(space, labels)) if defined else float("nan")
        )
        search = NearestNeighbors(n_neighbors=min(num_neighbours, len(labels) - 1)).fit(space)
        neighbours = search.kneighbors(return_distance=False)  # without the sample itself
        votes = np.zeros((len(labels), len(classes)), dtype=int)
        np.add.at(votes, (np.arange(len(labels))[:, None], classes_of[neighbours]), 1)
        scores[f"knn_{name}"] = float((votes.argmax(axis=1) == classes_of).mean())
    return scores


def plot_embedding(
    ax, embedding, labels, class_names, *, marked=None, marked_label: str = "hardest",
    legend: bool = True, size: float = 9.0,
) -> None:  # fmt: skip
    """Scatter plot of an embedding, one colour and marker per class.

    Up to ten classes get a legend beside the plot, so that it hides no point. With more, colours
    repeat, and names stand at the medians of the largest classes, as far as there is room.

    Args:
        ax: axes to draw on.
        embedding: shape ``(n, 2)``.
        labels: shape ``(n,)``, int in 0..K-1.
        class_names: K names.
        marked: bool ``(n,)`` or indices into the rows: ringed on top.
        marked_label: what the rings mean, for the legend.
        legend: false for all but the last of several panels.
        size: marker area in points squared.

    Raises:
        ParameterError: shapes that do not fit, or a label without a name.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> plot_embedding(ax, np.eye(2), [0, 1], ["cat", "dog"], marked=[1])
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['cat', 'dog', 'hardest']
    """
    embedding, labels = np.asarray(embedding), np.asarray(labels)
    if embedding.ndim != 2 or embedding.shape[1] != 2 or labels.shape != embedding.shape[:1]:
        raise ParameterError(
            f"embedding must be (n, 2), labels (n,); got {embedding.shape}, {labels.shape}"
        )
    present = np.unique(labels)
    if len(present) and not 0 <= present[0] <= present[-1] < len(class_names):
        raise ParameterError(f"labels must be in 0..{len(class_names) - 1}; got {present}")
    many = len(class_names) > 10
    for label in present:
        points = embedding[labels == label]
        ax.scatter(
            *points.T, s=size, linewidths=0, alpha=0.8, rasterized=True,
            color=_CLASS_COLOURS[label % 10], marker=_CLASS_MARKERS[(label + label // 10) % 10],
            label=class_names[label],
        )  # fmt: skip
    if marked is not None:
        ax.scatter(
            *embedding[np.asarray(marked)].T, s=4 * size, facecolors="none", edgecolors="black",
            linewidths=0.8, zorder=3, label=marked_label,
        )  # fmt: skip
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.set_adjustable("datalim")
    ax.spines[:].set_visible(False)
    if many:
        _name_classes(ax, embedding, labels, class_names)
    elif legend:
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.6, handletextpad=0.2)


def _name_classes(ax, embedding, labels, class_names, most: int = 20) -> None:
    """Names at class medians, largest classes first, none nearer than a tenth of the plot."""
    extent = np.ptp(embedding, axis=0).max()
    placed = []
    for label in sorted(np.unique(labels), key=lambda c: -(labels == c).sum()):
        centre = np.median(embedding[labels == label], axis=0)
        # names are wide and low, so a neighbour above may be nearer than one beside
        near = [np.hypot((centre[0] - x) / 2.5, centre[1] - y) < 0.06 * extent for x, y in placed]
        if len(placed) < most and not any(near):
            placed.append(centre)
            halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]
            ax.text(
                *centre, class_names[label], fontsize=7, ha="center", va="center", zorder=4,
                path_effects=halo,
            )  # fmt: skip


def _features(features) -> np.ndarray:
    features = np.asarray(features.detach().cpu() if hasattr(features, "detach") else features)
    if features.ndim != 2 or len(features) < 4 or features.shape[1] == 0:
        raise ParameterError(f"features must have shape (n, D), n >= 4; got {features.shape}")
    if not np.isfinite(features).all():
        raise ParameterError("features must be finite")
    return features.astype(np.float32)


SCORES = ("knn_features", "knn_embedding", "silhouette_features", "silhouette_embedding")


def embedded_features(
    artefacts: Sequence[Mapping[str, np.ndarray]], *, seed: int = 0, max_points: int = 5000
) -> dict[str, np.ndarray]:
    """t-SNE of the test set's features of several runs, with numbers for what the eye sees.

    Args:
        artefacts: ``features`` of runs on one test set (``None``: diverged; nan in the results):
            ``features (N, D)``, ``labels (N,)``,
            ``losses (N,)``, ``class_names (K,)``.
        seed, max_points: of the subsample, which is the same for all runs, and of t-SNE.

    Returns:
        ``embedding (R, n, 2)``, ``losses (R, n)``, ``labels (n,)``, ``class_names (K,)`` and
        ``scores (R, 4)`` in the order of ``SCORES``.
    """
    finished = [artefact for artefact in artefacts if artefact is not None]
    if not finished:
        raise DataError("all of the runs diverged, so there are no features to show")
    num_points = min(max_points, len(finished[0]["labels"]))
    embeddings, losses, scores = [], [], []
    for artefact in artefacts:
        if artefact is None:
            embeddings.append(np.full((num_points, 2), np.nan, np.float32))
            losses.append(np.full(num_points, np.nan, np.float32))
            scores.append([np.nan] * len(SCORES))
            continue
        embedding, indices = embed(artefact["features"], seed=seed, max_points=max_points)
        labels = artefact["labels"][indices]
        found = embedding_scores(artefact["features"][indices], embedding, labels)
        embeddings.append(embedding.astype(np.float32))
        losses.append(artefact["losses"][indices].astype(np.float32))
        scores.append([found[name] for name in SCORES])
    return {
        "embedding": np.stack(embeddings),
        "losses": np.stack(losses),
        "labels": labels,
        "class_names": finished[0]["class_names"],
        "scores": np.array(scores),
    }
