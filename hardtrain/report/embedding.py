"""t-SNE of features, with numbers for what the eye sees."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes

from hardtrain.errors import DataError, ParameterError
from hardtrain.report.plotting import CLASS_COLOURS, MARKERS

_SMALLEST, _LARGEST = 1e-12, 1e12  # spreads of features whose squares are safe in float32
SCORES = ("knn_features", "knn_embedding", "silhouette_features", "silhouette_embedding")


def embed(
    features: np.ndarray, *, seed: int = 0, max_points: int = 10_000, perplexity: float = 30
) -> tuple[np.ndarray, np.ndarray]:
    """t-SNE of features in the plane, the same each time on one machine.

    Starts from the principal components. Runs on one thread, because the order of sums over
    several changes the picture.

    Args:
        features: shape ``(N, D)``, finite, N >= 4.
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

    features = _checked(features)
    indices = np.arange(len(features))
    if len(features) > max_points:
        drawn = np.random.default_rng(seed).choice(len(features), max_points, replace=False)
        indices = np.sort(drawn)
    chosen = features[indices]
    if (chosen == chosen[0]).all():
        raise ParameterError("features are all equal; there is nothing to embed")
    perplexity = min(perplexity, (len(chosen) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed)
    with threadpool_limits(1):
        return tsne.fit_transform(chosen), indices


def embedding_scores(
    features: np.ndarray, embedding: np.ndarray, labels: np.ndarray, *, num_neighbours: int = 10
) -> dict[str, float]:
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
        ParameterError: wrong shape, too few points, or a value that is not finite.

    Example:
        >>> points = np.array([[0.0, 0], [0, 1], [9, 0], [9, 1]])
        >>> scores = embedding_scores(points, points, [0, 0, 1, 1], num_neighbours=1)
        >>> scores["knn_embedding"], round(scores["silhouette_embedding"], 3)
        (1.0, 0.889)
    """
    from scipy.stats import mode
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors

    labels = np.asarray(labels)
    separable = 1 < len(np.unique(labels)) < len(labels)
    scores = {}
    for name, points in (("features", features), ("embedding", embedding)):
        points = _checked(points)
        scores[f"silhouette_{name}"] = (
            float(silhouette_score(points, labels)) if separable else float("nan")
        )
        search = NearestNeighbors(n_neighbors=min(num_neighbours, len(labels) - 1)).fit(points)
        neighbours = search.kneighbors(return_distance=False)  # without the sample itself
        votes = mode(labels[neighbours], axis=1).mode  # of ties the smallest
        scores[f"knn_{name}"] = float((votes == labels).mean())
    return scores


def plot_embedding(
    ax: Axes,
    embedding: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    marked: Sequence[int] = (),
    legend: bool = True,
) -> None:
    """Scatter plot of an embedding, one colour and marker per class.

    Up to ten classes get a legend beside the plot, so that it hides no point. With more, colours
    repeat, and names stand at the medians of the largest classes, as far as there is room.

    Args:
        ax: axes to draw on.
        embedding: shape ``(n, 2)``.
        labels: shape ``(n,)``, int in 0..K-1.
        class_names: K names.
        marked: indices into the rows, of the hardest samples: ringed on top.
        legend: false for all but the last of several panels.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> plot_embedding(ax, np.eye(2), np.array([0, 1]), ["cat", "dog"], marked=[1])
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['cat', 'dog', 'hardest']
    """
    embedding, labels = np.asarray(embedding), np.asarray(labels)
    names = []
    for label in np.unique(labels):
        look = {"color": CLASS_COLOURS[label % 10], "marker": MARKERS[(label + label // 10) % 10]}
        look |= {"s": 9, "linewidths": 0, "alpha": 0.8, "rasterized": True}
        points = ax.scatter(*embedding[labels == label].T, **look)
        names.append((points, class_names[label]))
    if len(marked):
        ring = {"facecolors": "none", "edgecolors": "black", "linewidths": 0.8, "zorder": 3}
        names.append((ax.scatter(*embedding[marked].T, s=36, **ring), "hardest"))
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.set_adjustable("datalim")
    ax.spines[:].set_visible(False)
    if len(class_names) > 10:
        _name_classes(ax, embedding, labels, class_names)
    elif legend:
        place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        # given as pairs: of labels that it finds itself, a legend leaves out those with "_" first
        shown = ax.legend(*zip(*names, strict=True), markerscale=1.6, handletextpad=0.2, **place)
        for text in shown.get_texts():
            text.set_parse_math(False)  # a dollar sign begins no formula


def _name_classes(
    ax: Axes, embedding: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> None:
    """Up to twenty names at class medians, of the largest classes that are far enough apart."""
    extent = np.ptp(embedding, axis=0).max()
    look = {"fontsize": 7, "ha": "center", "va": "center", "zorder": 4}
    look["path_effects"] = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    placed: list[np.ndarray] = []
    for label in sorted(np.unique(labels), key=lambda c: -(labels == c).sum()):
        centre = np.median(embedding[labels == label], axis=0)
        # names are wide and low, so a neighbour above may be nearer than one beside
        near = [np.hypot((centre[0] - x) / 2.5, centre[1] - y) < 0.06 * extent for x, y in placed]
        if len(placed) < 20 and not any(near):
            placed.append(centre)
            ax.text(*centre, class_names[label], parse_math=False, **look)


def _checked(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points)
    if points.ndim != 2 or len(points) < 4 or points.shape[1] < 2:
        raise ParameterError(f"features must have shape (n, D), n >= 4, D >= 2; got {points.shape}")
    if not np.isfinite(points).all():
        raise ParameterError("features must be finite")
    spread = float(np.abs(points - points[:1]).max())
    if not 0 < spread < np.inf:
        return points.astype(np.float32)
    if not _SMALLEST < spread < _LARGEST:  # squares would leave float32, which ends t-SNE's process
        points = (points - points[:1]) / spread
    return points.astype(np.float32)


def embedded_features(
    artefacts: Sequence[Mapping[str, np.ndarray] | None], *, seed: int = 0, max_points: int = 5000
) -> dict[str, np.ndarray]:
    """t-SNE of the test set's features of several runs, with numbers for what the eye sees.

    Args:
        artefacts: ``features`` of runs on one test set (``None``: diverged; nan in the results):
            ``features (N, D)``, ``labels (N,)``, ``losses (N,)``, ``class_names (K,)``.
        seed, max_points: of the subsample, which is the same for all runs, and of t-SNE.

    Returns:
        ``embedding (R, n, 2)``, ``losses (R, n)``, ``labels (n,)``, ``class_names (K,)`` and
        ``scores (R, 4)`` in the order of ``SCORES``.
    """
    finished = [artefact for artefact in artefacts if artefact is not None]
    if not finished:
        raise DataError("all of the runs diverged, so there are no features to show")
    num_points = min(max_points, len(finished[0]["labels"]))
    embeddings = np.full((len(artefacts), num_points, 2), np.nan, np.float32)
    losses = np.full((len(artefacts), num_points), np.nan, np.float32)
    scores = np.full((len(artefacts), len(SCORES)), np.nan)
    for row, artefact in enumerate(artefacts):
        if artefact is not None:
            features = artefact["features"]
            embeddings[row], indices = embed(features, seed=seed, max_points=max_points)
            labels = artefact["labels"][indices]
            apart = embedding_scores(features[indices], embeddings[row], labels)
            scores[row] = [apart[name] for name in SCORES]
            losses[row] = artefact["losses"][indices]
    about = {"labels": labels, "class_names": finished[0]["class_names"], "scores": scores}
    return {"embedding": embeddings, "losses": losses, **about}
