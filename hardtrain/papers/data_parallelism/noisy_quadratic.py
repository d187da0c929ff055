"""The noisy quadratic model: expected losses, and steps to a goal, in closed form."""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

GIVE_UP = 100_000  # steps, where the optimum of a grid is looked for


class Optimum(NamedTuple):
    """Fewest steps to the goal (inf: not reached), and where on the grid (nan: nowhere)."""

    steps: float
    lr: float
    momentum: float


def expected_losses(batch_size, lr, momentum, *, curvature) -> Iterator[np.ndarray]:
    r"""Expected loss of SGD with momentum on a quadratic with noisy gradients, exactly.

    .. math::
        L(\theta) = \tfrac12 \sum_i h_i \theta_i^2, \quad
        g_i = h_i \theta_i + \epsilon_i, \quad
        \operatorname{Var} \epsilon_i = h_i / B, \quad
        m \leftarrow \beta m + g, \quad
        \theta \leftarrow \theta - \eta m

    from :math:`\mathrm E\,\theta_i^2 = 1, m = 0`. The second moments follow a linear recursion:

    .. math::
        x &= \beta \, \mathrm E \theta m + h \, \mathrm E \theta^2, \quad
        \mathrm E m^2 \leftarrow \beta^2 \mathrm E m^2 + 2 \beta h \, \mathrm E \theta m
            + h^2 \, \mathrm E \theta^2 + h / B, \\
        \mathrm E \theta^2 &\leftarrow \mathrm E \theta^2 - 2 \eta x + \eta^2 \mathrm E m^2, \quad
        \mathrm E \theta m \leftarrow x - \eta \, \mathrm E m^2

    with the new :math:`\mathrm E m^2` in the second line.

    Args:
        batch_size: ``B`` > 0; inf is gradient descent without noise.
        lr, momentum: ``η`` > 0 and ``β`` in [0, 1), as in ``torch.optim.SGD``. These three are
            numbers or arrays, and broadcast to a shape ``(...)``.
        curvature: ``h (D,)``, > 0; also the variance of one sample's gradient.

    Yields:
        ``(...)``, without end, from the loss before the first step on; inf or nan after overflow.

    Source:
        Zhang et al., arXiv 1907.04164, there in 10,000 dimensions. The recursion with momentum is
        written here for the form of PyTorch.

    Example:
        >>> losses = expected_losses(math.inf, 0.5, 0.0, curvature=[1.0])
        >>> [float(loss) for loss in itertools.islice(losses, 4)]
        [0.5, 0.125, 0.03125, 0.0078125]
    """
    h = np.asarray(curvature, dtype=float)
    batch_size, lr, momentum = (
        np.asarray(values, dtype=float)[..., None] for values in (batch_size, lr, momentum)
    )
    shape = np.broadcast_shapes(batch_size.shape, lr.shape, momentum.shape, h.shape)
    variance = h / batch_size
    theta2, theta_m, m2 = np.ones(shape), np.zeros(shape), np.zeros(shape)
    while True:
        # no matrix product, whose last bits depend on how many settings there are
        yield 0.5 * (theta2 * h).sum(axis=-1)
        with np.errstate(over="ignore", invalid="ignore"):  # settings that diverge
            product = momentum * theta_m + h * theta2
            m2 = momentum**2 * m2 + 2 * momentum * h * theta_m + h**2 * theta2 + variance
            theta2 = theta2 - 2 * lr * product + lr**2 * m2
            theta_m = product - lr * m2


def steps(
    batch_size, lr, momentum, *, goal: float, curvature, max_steps: int = 10_000
) -> np.ndarray:
    """Steps after which the expected loss is first at or below ``goal``.

    Args:
        batch_size, lr, momentum, curvature: as of `expected_losses`.
        goal: above 0 and below the loss at the start.
        max_steps: where to give up.

    Returns:
        Shape ``(...)`` of the broadcast settings; inf where ``max_steps`` do not suffice.

    Example:
        >>> rates = [0.5, 1.0, 2.0]
        >>> steps(math.inf, rates, 0.0, goal=1e-3, curvature=[1.0]).tolist()
        [5.0, 1.0, inf]
    """
    losses = expected_losses(batch_size, lr, momentum, curvature=curvature)
    limit = 1e6 * next(losses)  # beyond it an unstable direction rules, and it only grows
    first = np.full(limit.shape, math.inf)
    for step, loss in enumerate(itertools.islice(losses, max_steps), start=1):
        first = np.where((loss <= goal) & np.isinf(first), step, first)
        if (np.isfinite(first) | ~(loss < limit)).all():
            break
    return first


def optimum(batch_size: float, *, goal: float, momentum=0.0, curvature) -> Optimum:
    """Fewest steps to the goal over a grid of constant learning rates and momenta.

    The rates are 200 for each momentum, even in logs, from 1e-5 of the largest that is stable,
    2 (1 + momentum) / max(curvature), up to that; then, for the best momentum, 101 around the best.

    Args:
        batch_size: one number > 0, or inf.
        goal, curvature: as of `steps`.
        momentum: a number, or the grid ``(M,)``.

    Returns:
        ``Optimum(steps, lr, momentum)``; of several pairs that arrive at the same step the one
        of lowest loss.

    Example:
        >>> best = optimum(math.inf, goal=1e-9, curvature=[1.0, 0.5])
        >>> best.steps, round(best.lr, 1)  # the best rate is near 2 / (1 + 0.5)
        (10.0, 1.3)
    """
    momentum = np.reshape(momentum, (-1, 1))
    lr = np.geomspace(1e-5, 1, 200) * 2 * (1 + momentum) / np.max(curvature)
    coarse = _first(goal, batch_size, lr, momentum, curvature)
    if coarse.steps == math.inf:
        return coarse
    lr = coarse.lr * np.geomspace(0.94, 1 / 0.94, 101)  # down and up to the next of the grid
    return _first(goal, batch_size, lr, coarse.momentum, curvature)


def _first(goal, batch_size, lr, momentum, curvature) -> Optimum:
    """The first of all settings to reach the goal; no other is followed any further."""
    losses = expected_losses(batch_size, lr, momentum, curvature=curvature)
    for step, loss in enumerate(itertools.islice(losses, 1, GIVE_UP + 1), start=1):
        if (loss <= goal).any():
            best = np.unravel_index(np.nanargmin(loss), loss.shape)
            rate, beta = (np.broadcast_to(a, loss.shape)[best] for a in (lr, momentum))
            return Optimum(float(step), float(rate), float(beta))
    return Optimum(math.inf, math.nan, math.nan)
