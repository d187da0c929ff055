"""Which samples mini-batch trimming keeps."""

from collections.abc import Mapping, Sequence

import numpy as np

from hardtrain.data.images import load_dataset
from hardtrain.training.memory import NUM_PHASES


def kept_shares(
    artefacts: Sequence[Mapping[str, np.ndarray]],
    *,
    epochs: int,
    dataset: str,
    train_size: int = 0,
    num_shown: int = 10,
    data_root: str | None = None,
) -> dict[str, np.ndarray]:
    """In which share of the epochs each sample counted, by quarter of the training.

    Args:
        artefacts: ``sample_counts`` of runs that differ in their seed: ``counts (P, N)``; ``None``
            for one that diverged.
        epochs: length of the training.
        dataset, train_size, data_root: of the training.
        num_shown: how many of the samples that counted most and least to name.

    Returns:
        ``quantiles (P, 101)``: the shares of each quarter, sorted, averaged over the runs, at
        every percent of the samples; quarters without an epoch are nan. ``most`` and ``least``
        ``(num_shown,)``: indices by the mean share of the last quarter that has an epoch, and
        their shares ``most_share``, ``least_share``; ``images`` and ``titles`` (class and
        share) of both, the most first.

    Example:
        >>> counts = np.zeros((4, 1438), dtype=int)
        >>> counts[:, :719] = 1
        >>> found = kept_shares([{"counts": counts}], epochs=4, dataset="digits", num_shown=1)
        >>> found["quantiles"][1, ::50].tolist(), found["most_share"].tolist()
        ([0.0, 0.5, 1.0], [1.0])
    """
    phases = [NUM_PHASES * epoch // epochs for epoch in range(epochs)]
    lengths = np.bincount(phases, minlength=NUM_PHASES).astype(float)
    lengths[lengths == 0] = np.nan
    data = load_dataset(dataset, "train", root=data_root).subset(train_size)
    counts = [artefact["counts"] for artefact in artefacts if artefact is not None]
    counts = counts or [np.full((NUM_PHASES, len(data)), np.nan)]  # all diverged
    shares = np.stack(counts) / lengths[:, None]
    last = shares[:, phases[-1]].mean(axis=0)
    order = np.argsort(last, kind="stable")
    least, most = order[:num_shown], order[::-1][:num_shown]
    shown = np.concatenate([most, least])
    kinds = [data.class_names[label] for label in data.labels[shown].tolist()]
    titles = [f"{kind}\n{100 * last[i]:.0f} %" for kind, i in zip(kinds, shown, strict=True)]
    return {
        "quantiles": np.quantile(shares, np.linspace(0, 1, 101), axis=2).mean(axis=1).T,
        "most": most,
        "least": least,
        "most_share": last[most],
        "least_share": last[least],
        "images": data.images[shown].numpy(),
        "titles": np.array(titles),
    }
