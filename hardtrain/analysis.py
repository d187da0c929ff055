"""What is computed from the artefacts of runs before it is drawn."""

from collections.abc import Mapping, Sequence

import numpy as np

from hardtrain.methods import NUM_PHASES
from hardtrain.plotting import embed, embedding_scores

SCORES = ("knn_features", "knn_embedding", "silhouette_features", "silhouette_embedding")


def kept_shares(
    artefacts: Sequence[Mapping[str, np.ndarray]], *, epochs: int, num_shown: int = 10
) -> dict[str, np.ndarray]:
    """In which share of the epochs each sample counted, by quarter of the training.

    Args:
        artefacts: ``sample_counts`` of runs that differ in their seed: ``counts (P, N)``.
        epochs: length of the training.
        num_shown: how many of the samples that counted most and least to name.

    Returns:
        ``quantiles (P, 101)``: the shares of each quarter, sorted, averaged over the runs, at
        every percent of the samples; quarters without an epoch are nan. ``most`` and ``least``
        ``(num_shown,)``: indices by the mean share of the last quarter, and their shares
        ``most_share``, ``least_share``.

    Example:
        >>> counts = np.repeat([[1, 1], [1, 0], [1, 1], [1, 0]], 2, axis=1)
        >>> kept_shares([{"counts": counts}], epochs=4, num_shown=1)["quantiles"][1, ::50]
        array([0. , 0.5, 1. ])
    """
    phases = [NUM_PHASES * epoch // epochs for epoch in range(epochs)]
    lengths = np.bincount(phases, minlength=NUM_PHASES).astype(float)
    lengths[lengths == 0] = np.nan
    shares = np.stack([artefact["counts"] / lengths[:, None] for artefact in artefacts])
    last = shares[:, -1].mean(axis=0)
    order = np.argsort(last, kind="stable")
    least, most = order[:num_shown], order[::-1][:num_shown]
    return {
        "quantiles": np.quantile(shares, np.linspace(0, 1, 101), axis=2).mean(axis=1).T,
        "most": most,
        "least": least,
        "most_share": last[most],
        "least_share": last[least],
    }


def embedded_features(
    artefacts: Sequence[Mapping[str, np.ndarray]], *, seed: int = 0, max_points: int = 5000
) -> dict[str, np.ndarray]:
    """t-SNE of the test set's features of several runs, with numbers for what the eye sees.

    Args:
        artefacts: ``features`` of runs on one test set: ``features (N, D)``, ``labels (N,)``,
            ``losses (N,)``.
        seed, max_points: of the subsample, which is the same for all runs, and of t-SNE.

    Returns:
        ``embedding (R, n, 2)``, ``losses (R, n)``, ``labels (n,)`` and ``scores (R, 4)`` in the
        order of ``SCORES``.
    """
    embeddings, losses, scores = [], [], []
    for artefact in artefacts:
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
        "scores": np.array(scores),
    }
