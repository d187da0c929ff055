"""Calibration: the expected calibration error, the bins of its diagram, temperature scaling.

Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", arXiv 1706.04599.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax

from hardtrain import checks
from hardtrain.errors import ParameterError

BOUNDS = (0.01, 100.0)  # of a fitted temperature


class CrossFitted(NamedTuple):
    """Scores of a set after temperature scaling; the temperatures of its two halves."""

    loss: float
    calibration_error: float
    accuracy: float
    temperatures: tuple[float, float]


def reliability(probabilities, labels, num_bins: int = 15) -> pd.DataFrame:
    """Confidence and accuracy in bins of equal width: the bars of a reliability diagram.

    Args:
        probabilities: shape ``(N, K)``, N >= 1, K >= 2; rows sum to 1.
        labels: ``(N,)``, int in [0, K).
        num_bins: M >= 1, for the bins [0, 1/M], (1/M, 2/M], ..., (1 - 1/M, 1].

    Returns:
        M rows: ``low``, ``high``; mean ``confidence`` (largest probability of a sample) and
        ``accuracy`` in the bin, fractions, nan if it is empty; ``count`` of its samples.

    Raises:
        ParameterError: other shapes, rows that are no probabilities, labels out of range.

    Example:
        >>> print(reliability([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8]], [0, 0, 1], num_bins=2))
           low  high  confidence  accuracy  count
        0  0.0   0.5         NaN       NaN      0
        1  0.5   1.0         0.8  0.666667      3
    """
    probabilities, labels = _checked("probabilities", probabilities, labels)
    wrong = (probabilities < 0).any(axis=1) | (abs(probabilities.sum(axis=1) - 1) > 1e-3)
    if wrong.any():  # by more than float16 rounds
        row = probabilities[wrong][0]
        raise ParameterError(f"rows of probabilities must be >= 0 and sum to 1; got {row}")
    edges = np.linspace(0, 1, checks.integer("num_bins", num_bins, 1) + 1)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.searchsorted(edges[1:-1], confidence)  # an edge belongs to the bin below it
    count = np.bincount(bins, minlength=num_bins)
    filled = np.where(count > 0, count, np.nan)
    columns = {"low": edges[:-1], "high": edges[1:]}
    columns["confidence"] = np.bincount(bins, confidence, num_bins) / filled
    columns["accuracy"] = np.bincount(bins, correct, num_bins) / filled
    return pd.DataFrame(columns | {"count": count})


def expected_calibration_error(probabilities, labels, num_bins: int = 15) -> float:
    r"""Mean gap between confidence and accuracy over bins of equal width.

    .. math:: \mathrm{ECE} = \sum_{m=1}^{M} \frac{|B_m|}{N}
              \bigl| \mathrm{acc}(B_m) - \mathrm{conf}(B_m) \bigr|

    Even perfect calibration has an ECE above 0 on N samples, with confidences c about
    :math:`\sum_m \sqrt{\frac{2}{\pi} \sum_{i \in B_m} c_i (1 - c_i)} / N`: compare equal N only.

    Args, raises: as `reliability`. Returns a fraction, 0 to 1.

    Source:
        Section 2; 15 bins as in its tables.

    Example:
        >>> round(expected_calibration_error([[0.9, 0.1], [0.3, 0.7]], [0, 0]), 3)
        0.4
    """
    bins = reliability(probabilities, labels, num_bins)
    gaps = (bins["accuracy"] - bins["confidence"]).abs().fillna(0)  # nan in empty bins
    return float((bins["count"] * gaps).sum() / bins["count"].sum())


def fit_temperature(logits, labels) -> float:
    r"""The temperature that minimises the cross-entropy of the scaled logits.

    .. math:: \min_{T > 0} \; -\frac{1}{N} \sum_i \log \mathrm{softmax}(z_i / T)_{y_i}

    Args:
        logits: z, shape ``(N, K)``, N >= 1, K >= 2, finite.
        labels: y, ``(N,)``, int in [0, K).

    Returns:
        T within ``BOUNDS``: at one of them if the loss falls all the way there (to 0.01 if every
        sample is right), and 1 if the loss has no slope there, as for equal logits.

    Raises:
        ParameterError: other shapes, logits that are not finite, labels out of range.

    Source:
        Section 4.2. The authors' code uses L-BFGS; as the loss is convex in 1/T, the only root
        of its derivative does.

    Example:
        >>> round(fit_temperature([[2.0, 0.0]] * 4, [0, 0, 0, 1]), 4)  # 2 / log 3
        1.8205
    """
    logits, labels = _checked("logits", logits, labels)
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


def cross_fitted_temperature_loss(logits, labels, *, seed: int, num_bins: int = 15) -> CrossFitted:
    """Scores after temperature scaling in which no sample has a say in its own temperature.

    The set is cut into two random halves, and each is divided by the temperature fitted on the
    other. N and ``seed`` alone fix the halves: networks tested on one set have the same.

    Args:
        logits, labels: as in `fit_temperature`, N >= 2.
        seed: of the halves, >= 0.
        num_bins: as in `reliability`.

    Returns:
        ``CrossFitted(loss, calibration_error, accuracy, temperatures)``: cross-entropy (nats),
        ECE and accuracy of the whole set, and what its first and its second half were divided by.

    Raises:
        ParameterError: as `fit_temperature`; N < 2, a negative seed.

    Source:
        Ours, for want of a validation set, on which Guo et al. fit T.

    Example:
        >>> logits, labels = np.tile([4.0, 0.0], (400, 1)), np.repeat([0, 0, 0, 1], 100)
        >>> found = cross_fitted_temperature_loss(logits, labels, seed=0)
        >>> round(found.loss, 2), found.accuracy  # at T = 1 the loss is 1.02
        (0.56, 0.75)
    """
    logits, labels = _checked("logits", logits, labels)
    if len(labels) < 2:
        raise ParameterError(f"logits must have at least 2 rows to halve; got {len(labels)}")
    order = np.random.default_rng(checks.integer("seed", seed, 0)).permutation(len(labels))
    halves = np.array_split(order, 2)
    temperatures = tuple(fit_temperature(logits[half], labels[half]) for half in halves[::-1])
    scaled = np.empty_like(logits)
    for half, temperature in zip(halves, temperatures, strict=True):
        scaled[half] = logits[half] / temperature
    loss = -np.take_along_axis(log_softmax(scaled, axis=1), labels[:, None], axis=1).mean()
    error = expected_calibration_error(softmax(scaled, axis=1), labels, num_bins)
    accuracy = (scaled.argmax(axis=1) == labels).mean()
    return CrossFitted(float(loss), error, float(accuracy), temperatures)


def _checked(name: str, scores, labels) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels)
    if scores.ndim != 2 or scores.shape[0] < 1 or scores.shape[1] < 2:
        raise ParameterError(f"{name} must have shape (N, K), N >= 1, K >= 2; got {scores.shape}")
    if not np.isfinite(scores).all():
        raise ParameterError(f"{name} must be finite; got {scores[~np.isfinite(scores)][0]}")
    if labels.shape != scores.shape[:1] or labels.dtype.kind not in "iu":
        shape, kind = labels.shape, labels.dtype
        raise ParameterError(f"labels must be ({len(scores)},) and int; got {shape}, {kind}")
    if not 0 <= labels.min() <= labels.max() < scores.shape[1]:
        low, high = labels.min(), labels.max()
        raise ParameterError(f"labels must be in [0, {scores.shape[1]}); got {low} to {high}")
    return scores, labels
