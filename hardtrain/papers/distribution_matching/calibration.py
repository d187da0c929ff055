"""Calibration: the expected calibration error, the bins of its diagram, temperature scaling.

Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", arXiv 1706.04599.
"""

import math

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax

BOUNDS = (0.01, 100.0)  # of a fitted temperature
NUM_BINS = 15  # as in the tables of Guo et al.


def reliability(probabilities, labels, num_bins: int = NUM_BINS) -> pd.DataFrame:
    """Confidence and accuracy in bins of equal width: the bars of a reliability diagram.

    Args:
        probabilities: shape ``(N, K)``, N >= 1, K >= 2; rows sum to 1.
        labels: ``(N,)``, int in [0, K).
        num_bins: M >= 1, for the bins [0, 1/M], (1/M, 2/M], ..., (1 - 1/M, 1].

    Returns:
        M rows: mean ``confidence`` (largest probability of a sample) and ``accuracy`` in the
        bin, fractions, nan if it is empty; ``count`` of its samples.

    Example:
        >>> bins = reliability(np.array([[0.9, 0.1], [0.3, 0.7]]), np.array([0, 0]), num_bins=2)
        >>> print(bins)
           confidence  accuracy  count
        0         NaN       NaN      0
        1         0.8       0.5      2
    """
    edges = np.linspace(0, 1, num_bins + 1)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.searchsorted(edges[1:-1], confidence)  # an edge belongs to the bin below it
    count = np.bincount(bins, minlength=num_bins)
    filled = np.where(count > 0, count, np.nan)
    sums = {"confidence": np.bincount(bins, confidence, num_bins)}
    sums["accuracy"] = np.bincount(bins, correct, num_bins)
    return pd.DataFrame(sums).div(filled, axis=0).assign(count=count)


def expected_calibration_error(probabilities, labels, num_bins: int = NUM_BINS) -> float:
    r"""Mean gap between confidence and accuracy over bins of equal width, a fraction.

    .. math:: \mathrm{ECE} = \sum_{m=1}^{M} \frac{|B_m|}{N}
              \bigl| \mathrm{acc}(B_m) - \mathrm{conf}(B_m) \bigr|

    Even perfect calibration has an ECE above 0 on N samples, with confidences c about
    :math:`\sum_m \sqrt{\frac{2}{\pi} \sum_{i \in B_m} c_i (1 - c_i)} / N`: compare equal N only.

    Args:
        probabilities, labels, num_bins: as of `reliability`.

    Source:
        Section 2.

    Example:
        >>> probabilities = np.array([[0.9, 0.1], [0.3, 0.7]])
        >>> round(expected_calibration_error(probabilities, np.array([0, 0])), 3)
        0.4
    """
    bins = reliability(probabilities, labels, num_bins)
    gaps = (bins["accuracy"] - bins["confidence"]).abs().fillna(0)  # nan in empty bins
    return float((bins["count"] * gaps).sum() / bins["count"].sum())


def cross_entropy(logits, labels) -> float:
    """Mean negative log-likelihood (nats) of ``labels (N,)`` under ``logits (N, K)``.

    Example:
        >>> round(cross_entropy(np.zeros((3, 2)), np.array([0, 1, 1])), 4)  # log 2
        0.6931
    """
    chosen = np.take_along_axis(log_softmax(logits, axis=1), labels[:, None], axis=1)
    return float(-chosen.mean())


def fit_temperature(logits, labels) -> float:
    r"""The temperature that minimises the cross-entropy of the scaled logits.

    .. math:: \min_{T > 0} \; -\frac{1}{N} \sum_i \log \mathrm{softmax}(z_i / T)_{y_i}

    Args:
        logits: z, shape ``(N, K)``, N >= 1, K >= 2, finite.
        labels: y, ``(N,)``, int in [0, K).

    Returns:
        T within ``BOUNDS``: at one of them if the loss falls all the way there (to 0.01 if every
        sample is right), and 1 if the loss has no slope there, as for equal logits.

    Source:
        Section 4.2. The authors' code uses L-BFGS. Here the only root of the derivative is
        found, as the loss is convex in 1/T.

    Example:
        >>> logits = np.tile([2.0, 0.0], (4, 1))
        >>> round(fit_temperature(logits, np.array([0, 0, 0, 1])), 4)  # 2 / log 3
        1.8205
    """
    gaps = logits - np.take_along_axis(logits, labels[:, None], axis=1)

    def slope(log_temperature: float) -> float:  # of the loss in 1/T: falls as T grows
        weights = softmax(gaps * math.exp(-log_temperature), axis=1)
        return (weights * gaps).sum(axis=1).mean()

    low, high = map(math.log, BOUNDS)
    if slope(0.0) == 0:
        return 1.0
    if slope(low) <= 0:
        return BOUNDS[0]
    if slope(high) >= 0:
        return BOUNDS[1]
    return math.exp(brentq(slope, low, high))


def cross_fitted(logits, labels, *, seed: int) -> tuple[np.ndarray, tuple[float, float]]:
    """Temperature scaling in which no sample has a say in its own temperature.

    The set is cut into two random halves, and each is divided by the temperature fitted on the
    other. N and ``seed`` alone fix the halves: networks tested on one set have the same.

    Args:
        logits, labels: as of `fit_temperature`, N >= 2.
        seed: of the halves.

    Returns:
        The scaled logits ``(N, K)``, and what the first and the second half were divided by.

    Source:
        Ours, for want of a validation set, on which Guo et al. fit T.

    Example:
        >>> logits, labels = np.tile([4.0, 0.0], (400, 1)), np.repeat([0, 0, 0, 1], 100)
        >>> scaled, temperatures = cross_fitted(logits, labels, seed=0)
        >>> round(cross_entropy(logits, labels), 2), round(cross_entropy(scaled, labels), 2)
        (1.02, 0.56)
    """
    first, second = np.array_split(np.random.default_rng(seed).permutation(len(labels)), 2)
    temperatures = tuple(fit_temperature(logits[half], labels[half]) for half in (second, first))
    scaled = np.empty_like(logits)
    for half, temperature in zip((first, second), temperatures, strict=True):
        scaled[half] = logits[half] / temperature
    return scaled, temperatures
