"""Parts of a set that hold every class in proportion, found without randomness."""

import numpy as np


def pick_per_class(labels: np.ndarray, quota: np.ndarray) -> np.ndarray:
    """Positions of ``quota[k]`` samples of every class k, ascending; no randomness.

    Within a class the samples are ranked by Knuth's multiplicative hash of their rank, which
    spreads a choice of any size evenly over the file, whatever its order, and in step with none.

    Example:
        >>> pick_per_class(np.array([0, 0, 0, 0, 1, 1]), np.array([2, 1]))
        array([0, 2, 4])
    """
    order = np.argsort(labels, kind="stable")
    grouped = labels[order]
    first = np.searchsorted(grouped, grouped)
    rank = np.arange(len(labels)) - first
    order = order[np.lexsort((rank * 2654435769 % 2**32, grouped))]
    return np.sort(order[rank < quota[grouped]])


def proportional(counts: np.ndarray, size: int) -> np.ndarray:
    """``size`` shared out like ``counts``: largest remainders, and one each where size allows.

    Example:
        >>> proportional(np.array([96, 3, 1]), 10)
        array([8, 1, 1])
    """
    quota, remainder = np.divmod(counts * size, counts.sum())
    most = np.argsort(-remainder, kind="stable")[: size - quota.sum()]
    quota[most] += 1
    if size >= np.count_nonzero(counts):
        for k in np.flatnonzero((quota == 0) & (counts > 0)):
            quota[k], quota[quota.argmax()] = 1, quota.max() - 1
    return quota


def eighty_twenty(labels: np.ndarray, split: str) -> np.ndarray:
    """Positions of the training or test part; of n samples of a class, n/5 to the nearest are for
    testing.

    Example:
        >>> eighty_twenty(np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]), "test")
        array([0, 5])
    """
    test = pick_per_class(labels, (np.bincount(labels) + 2) // 5)
    return test if split == "test" else np.setdiff1d(np.arange(len(labels)), test)
