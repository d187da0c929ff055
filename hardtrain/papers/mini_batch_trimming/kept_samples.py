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
        artefacts: ``sample_counts`` of runs that differ in their seed: ``counts``, ``losses
            (P, N)``, summed over the epochs of each quarter; ``None`` for one that diverged.
        epochs: length of the training.
        dataset, train_size, data_root: of the training.
        num_shown: how many of the samples that counted most and least to name.

    Returns:
        ``quantiles (P, 101)``: the shares of each quarter, sorted, averaged over the runs, at
        every percent of the samples; quarters without an epoch are nan. ``most`` and ``least``
        ``(num_shown,)``: indices by the mean share of the last quarter that has an epoch, among
        equal shares by the mean loss; their shares ``most_share``, ``least_share``; ``images``
        and ``titles`` (class, share, mean loss in nats) of both, the most first. ``tied
        (2,)``: how many samples have the share of the last one shown as most, and as least.

    Example:
        >>> counts = np.zeros((4, 1438), dtype=int)
        >>> counts[:, :719] = 1
        >>> losses = np.arange(4 * 1438.0).reshape(4, 1438)
        >>> runs = [{"counts": counts, "losses": losses}]
        >>> found = kept_shares(runs, epochs=4, dataset="digits", num_shown=1)
        >>> found["quantiles"][1, ::50].tolist(), found["most_share"].tolist()
        ([0.0, 0.5, 1.0], [1.0])
        >>> found["most"].tolist(), found["least"].tolist(), found["tied"].tolist()
        ([718], [719], [719, 719])
    """
    phases = [NUM_PHASES * epoch // epochs for epoch in range(epochs)]
    lengths = np.bincount(phases, minlength=NUM_PHASES).astype(float)
    lengths[lengths == 0] = np.nan
    data = load_dataset(dataset, "train", root=data_root).subset(train_size)
    there = [artefact for artefact in artefacts if artefact is not None]
    there = there or [{"counts": np.full((NUM_PHASES, len(data)), np.nan)}]  # all diverged
    counts = np.stack([artefact["counts"] for artefact in there])
    # an artefact of an older training has no losses
    losses = np.stack([artefact.get("losses", 0.0 * artefact["counts"]) for artefact in there])
    shares = counts / lengths[:, None]
    last = shares[:, phases[-1]].mean(axis=0)
    loss = (losses[:, phases[-1]] / lengths[phases[-1]]).mean(axis=0)
    order = np.lexsort((loss, last))
    least, most = order[:num_shown], order[::-1][:num_shown]
    shown = np.concatenate([most, least])
    kinds = [data.class_names[label] for label in data.labels[shown].tolist()]
    titles = [
        f"{kind}\n{100 * last[i]:.0f} %\n{loss[i]:.2g}"
        for kind, i in zip(kinds, shown, strict=True)
    ]
    return {
        "quantiles": np.quantile(shares, np.linspace(0, 1, 101), axis=2).mean(axis=1).T,
        "most": most,
        "least": least,
        "most_share": last[most],
        "least_share": last[least],
        "tied": np.array([(last == last[side[-1]]).sum() for side in (most, least)]),
        "images": data.images[shown].numpy(),
        "titles": np.array(titles),
    }
