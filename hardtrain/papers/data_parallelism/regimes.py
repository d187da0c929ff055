"""The regimes of steps against batch size: perfect scaling, diminishing returns, flat."""

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from hardtrain.errors import ParameterError

SHARPNESS = (0.5, 4.0)  # bounds of the fit
PERFECT_FACTOR = 1.2  # f: steps that perfect scaling from the smallest batch may be exceeded by
FLAT_GAIN = 0.1  # g: share of the steps that a doubling still saves; 0.5 is perfect
BOUNDARIES = ("perfect_until", "flat_from")  # attributes of `Regimes`
MIN_SIZES = 4  # a fit has three parameters


class Regimes(NamedTuple):
    """A fitted curve and where its regimes end; see `fit_regimes`. Nan: too few points."""

    min_steps: float
    min_samples: float
    sharpness: float
    perfect_until: float
    flat_from: float
    residual: float
    num_points: int

    @property
    def critical_batch_size(self) -> float:
        """Where perfect scaling, prolonged, would meet the flat part."""
        if self.min_steps == 0:
            return math.inf
        return self.min_samples / self.min_steps

    def steps(self, batch_size):
        """The fitted curve at one or many batch sizes."""
        samples = self.min_samples / np.asarray(batch_size, dtype=float)
        p = self.sharpness
        return (self.min_steps**p + samples**p) ** (1 / p)


def fit_regimes(batch_sizes, steps) -> Regimes:
    r"""Fit steps against batch size, and say where perfect scaling ends and the curve is flat.

    .. math:: S(B) = \big(S_\min^p + (E_\min / B)^p\big)^{1/p}, \quad
              B_\mathrm{crit} = E_\min / S_\min

    by least squares in :math:`\log S`. For small batches the steps halve with each doubling, and
    :math:`E_\min` samples are enough; for large ones :math:`S_\min` steps are needed, whatever the
    batch. Both parts meet at the critical batch size; the sharpness p says how soon the curve
    turns from one to the other. On the fitted curve, with :math:`B_0, B_1` the smallest and
    largest batch size that reached the goal, ``f = PERFECT_FACTOR`` and ``g = FLAT_GAIN``:

    .. math:: B_\mathrm{perfect} &= \max\{B : S(B) \le f \, S(B_0) \, B_0 / B\}
                  = \big(f^p (B_0^p + B_\mathrm{crit}^p) - B_\mathrm{crit}^p\big)^{1/p} \\
              B_\mathrm{flat} &= \min\{B \ge B_0 : 1 - S(2B') / S(B') \le g
                  \ \text{for all } B' \ge B\}
                  = \max\Big(B_0, B_\mathrm{crit} \Big(\frac{(1 - g)^p - 2^{-p}}{1 - (1 - g)^p}
                  \Big)^{1/p}\Big)

    Between the two the returns diminish. Either is inf where it lies above :math:`B_1`: the end of
    perfect scaling, or the flat part, was not seen.

    Args:
        batch_sizes: shape ``(n,)``, finite, > 0.
        steps: shape ``(n,)``, > 0; inf (goal not reached) is left out.

    Returns:
        `Regimes`, its sharpness within ``SHARPNESS``. Steps that only halve give ``min_steps`` 0
        and an infinite critical batch size, steps that never fall ``min_samples`` 0 and a critical
        batch size of 0, both with sharpness 1: they say nothing of it. ``min_steps`` and
        ``min_samples`` outside the measured range are extrapolations. ``residual`` is the root
        mean square of the differences in natural logs (0.05: about 5 %). Fewer than 4 distinct
        batch sizes with finite steps give nan.

    Raises:
        ParameterError: other shapes or values, or no points at all.

    Source:
        p = 1 is the form of McCandlish et al., arXiv 1812.06162. The sharpness is ours: the exact
        curves of the noisy quadratic model have p of about 0.9 to 1.9, depending on its spectrum
        and on the momentum, and p = 1 puts the boundaries off by a factor of up to 4. The three
        regimes are those of Shallue et al., arXiv 1811.03600; the two rules for their ends are
        ours.

    Example:
        >>> sizes = 2.0 ** np.arange(10)
        >>> regimes = fit_regimes(sizes, 40 * (1 + 50 / sizes))
        >>> f"{regimes.min_steps:.1f} {regimes.critical_batch_size:.1f} {regimes.sharpness:.2f}"
        '40.0 50.0 1.00'
        >>> f"{regimes.perfect_until:.1f} {regimes.flat_from:.1f}"
        '11.2 200.0'
    """
    sizes, steps = np.asarray(batch_sizes, dtype=float), np.asarray(steps, dtype=float)
    positive = sizes.shape == steps.shape and ((sizes > 0) & np.isfinite(sizes) & (steps > 0)).all()
    if sizes.ndim != 1 or not sizes.size or not positive:
        raise ParameterError(
            "batch_sizes and steps must have one shape (n,), n >= 1, batch_sizes be finite and "
            f"above 0, steps above 0 or inf; got {sizes.tolist()} and {steps.tolist()}"
        )
    reached = np.isfinite(steps)
    sizes, steps = sizes[reached], steps[reached]
    if len(np.unique(sizes)) < MIN_SIZES:
        return Regimes(*[math.nan] * 6, num_points=len(sizes))
    log_critical, p, residual = _fit(np.log(sizes), np.log(steps))
    smallest, largest = sizes.min(), sizes.max()
    if log_critical == -math.inf:
        min_steps, min_samples = np.exp(np.log(steps).mean()), 0.0
        perfect, flat = PERFECT_FACTOR * smallest, smallest
    elif log_critical == math.inf:
        min_steps, min_samples = 0.0, np.exp(np.log(steps * sizes).mean())
        perfect = flat = math.inf
    else:
        shape = np.logaddexp(0, p * (log_critical - np.log(sizes))) / p
        min_steps = np.exp((np.log(steps) - shape).mean())
        critical = np.exp(log_critical)
        min_samples = min_steps * critical
        # relative to the critical batch size, to keep powers small
        ratio = (PERFECT_FACTOR**p * ((smallest / critical) ** p + 1) - 1) ** (1 / p)
        perfect = critical * ratio
        kept = (1 - FLAT_GAIN) ** p
        flat = max(smallest, critical * ((kept - 0.5**p) / (1 - kept)) ** (1 / p))
    perfect, flat = (float(b) if b <= largest else math.inf for b in (perfect, flat))
    return Regimes(float(min_steps), float(min_samples), p, perfect, flat, residual, len(sizes))


def _fit(log_b: np.ndarray, log_s: np.ndarray) -> tuple[float, float, float]:
    """Log of the critical batch size (infinite: one part only), sharpness, residual."""

    def misfits(log_critical, p):
        misfits = log_s - np.logaddexp(0, p * (log_critical - log_b)) / p
        return misfits - misfits.mean(axis=-1, keepdims=True)  # the best log S_min

    # a grid first, since there may be several minima; beyond its ends the other part of the curve
    # is out of sight: p = 1 is straight there up to exp(-7) = 0.1 %
    grid = np.arange(log_b.min() - 7, log_b.max() + 7, 0.25)
    powers = np.geomspace(*SHARPNESS, 13)
    squares = (misfits(grid[:, None, None], powers[:, None]) ** 2).mean(axis=-1)
    row, column = np.unravel_index(squares.argmin(), squares.shape)
    flat = (-math.inf, 1.0, float(np.std(log_s)))
    halving = (math.inf, 1.0, float(np.std(log_s + log_b)))
    fits = [flat, halving]
    if 0 < row < len(grid) - 1:
        lowest, highest = np.log(SHARPNESS)
        log_power = np.clip(np.log(powers[column]), lowest + 1e-3, highest - 1e-3)
        best = least_squares(
            lambda x: misfits(x[0], np.exp(x[1])),
            [grid[row], log_power],
            bounds=([grid[0], lowest], [grid[-1], highest]),
            **dict.fromkeys(("xtol", "ftol", "gtol"), 1e-10),
        )
        residual = math.sqrt(2 * best.cost / len(log_b))
        fits.append((float(best.x[0]), float(np.exp(best.x[1])), residual))
    return min(fits, key=lambda fit: fit[2])
