"""Which mini-batches hard-batch training takes, and the sizes of its networks."""

from collections.abc import Mapping, Sequence

import numpy as np

from hardtrain.errors import DataError
from hardtrain.networks import network_size


def batch_choices(
    artefacts: Sequence[Mapping[str, np.ndarray]], *, deltas: Sequence[float], epochs: int
) -> dict[str, np.ndarray]:
    """Which mini-batches hard-batch training took, and how stale its stored losses were.

    Args:
        artefacts: ``batch_log`` of runs: for each delta the same number of seeds; ``None`` for a
            run that diverged.
        deltas: of the runs.
        epochs: length of the trainings.

    Returns:
        ``ids (D, E N)``: the batch of each update, first finished seed (-1: none);
        ``counts (D, E, N)``: how often each was taken in each epoch (N updates), same seed;
        ``correlations (D, S, E - 1)``: Spearman's rank correlation of the stored losses and those
        of the model at that moment, nan where there is none.

    Raises:
        DataError: all runs diverged.
    """
    from scipy.stats import spearmanr

    num_seeds = len(artefacts) // len(deltas)
    finished = [artefact for artefact in artefacts if artefact is not None]
    if not finished:
        raise DataError("all of the runs diverged, so there are no mini-batches to show")
    num_updates = len(finished[0]["ids"])
    num_batches = num_updates // epochs
    ids = np.full((len(deltas), num_updates), -1, np.int16)
    counts = np.zeros((len(deltas), epochs, num_batches), np.int16)
    correlations = np.full((len(deltas), num_seeds, epochs - 1), np.nan)
    for number, artefact in enumerate(artefacts):
        row, seed = divmod(number, num_seeds)
        if artefact is None:
            continue
        if ids[row, 0] < 0:  # the first seed that finished
            ids[row] = artefact["ids"]
            for epoch, taken in enumerate(np.split(artefact["ids"], epochs)):
                counts[row, epoch] = np.bincount(taken, minlength=num_batches)
        for epoch, pair in enumerate(zip(artefact["stored"], artefact["recomputed"], strict=True)):
            if all(np.ptp(losses) > 0 for losses in pair):  # else there are no ranks
                correlations[row, seed, epoch] = spearmanr(*pair).statistic
    return {"ids": ids, "counts": counts, "correlations": correlations}


def network_sizes(*, networks: Sequence[str], image_size: int) -> dict[str, np.ndarray]:
    """Parameters and operations (2 x multiply-adds, forward) of networks with 10 classes."""
    sizes = [network_size(name, 10, image_size) for name in networks]
    return {key: np.array([size[key] for size in sizes]) for key in ("parameters", "flops")}
