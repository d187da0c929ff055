"""The noisy quadratic model: expected losses, and steps to a goal, in closed form."""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hardtrain import checks
from hardtrain.errors import ParameterError

NUM_DIMENSIONS = 100


class Optimum(NamedTuple):
    """Fewest steps to the goal (inf: not reached), and where on the grid (nan: nowhere)."""

    steps: float
    lr: float
    momentum: float


def noisy_quadratic_losses(
    num_steps: int, batch_size, lr, momentum=0.0, *, curvature=None, noise=None
) -> np.ndarray:
    r"""Expected loss of SGD with momentum on a quadratic with noisy gradients, exactly.

    .. math::
        L(\theta) = \tfrac12 \sum_i h_i \theta_i^2, \quad
        g_i = h_i \theta_i + \epsilon_i, \quad
        \operatorname{Var} \epsilon_i = c_i / B, \quad
        m \leftarrow \beta m + g, \quad
        \theta \leftarrow \theta - \eta m

    from :math:`\mathrm E\,\theta_i^2 = 1, m = 0`. The second moments follow a linear recursion:

    .. math::
        x &= \beta \, \mathrm E \theta m + h \, \mathrm E \theta^2, \quad
        \mathrm E m^2 \leftarrow \beta^2 \mathrm E m^2 + 2 \beta h \, \mathrm E \theta m
            + h^2 \, \mathrm E \theta^2 + c / B, \\
        \mathrm E \theta^2 &\leftarrow \mathrm E \theta^2 - 2 \eta x + \eta^2 \mathrm E m^2, \quad
        \mathrm E \theta m \leftarrow x - \eta \, \mathrm E m^2

    with the new :math:`\mathrm E m^2` in the second line.

    Args:
        num_steps: >= 0.
        batch_size: ``B`` > 0; inf is gradient descent without noise.
        lr, momentum: ``η`` > 0 and ``β`` in [0, 1), as in ``torch.optim.SGD``. These three are
            numbers or arrays, and broadcast to a shape ``(...)``.
        curvature: ``h (D,)``, > 0; default 1, 1/2, ..., 1/100.
        noise: ``c (D,)``, >= 0, variance of one sample's gradient; default ``h``.

    Returns:
        ``(..., num_steps + 1)``, from the loss before the first step on; inf or nan after
        overflow.

    Raises:
        ParameterError: an argument outside what is allowed.

    Source:
        Zhang et al., arXiv 1907.04164: the model, with ``h_i = 1/i`` and ``c = h``, there in
        10,000 dimensions. The recursion with momentum is written here for the form of PyTorch.

    Example:
        >>> noisy_quadratic_losses(3, math.inf, 0.5, curvature=[1.0]).tolist()
        [0.5, 0.125, 0.03125, 0.0078125]
    """
    checks.integer("num_steps", num_steps, 0)
    losses = _losses(*_checked(batch_size, lr, momentum, curvature, noise))
    return np.stack(list(itertools.islice(losses, num_steps + 1)), axis=-1)


def noisy_quadratic_steps(
    batch_size, lr, momentum=0.0, *, goal: float, max_steps=10_000, curvature=None, noise=None
) -> np.ndarray:
    """Steps after which the expected loss is first at or below ``goal``.

    Args:
        batch_size, lr, momentum, curvature, noise: as in `noisy_quadratic_losses`.
        goal: above 0 and below the loss at the start.
        max_steps: where to give up, >= 1.

    Returns:
        Shape ``(...)`` of the broadcast settings; inf where ``max_steps`` do not suffice.

    Raises:
        ParameterError: an argument outside what is allowed.

    Example:
        >>> noisy_quadratic_steps(math.inf, [0.5, 1.0, 2.0], goal=1e-3, curvature=[1.0]).tolist()
        [5.0, 1.0, inf]
    """
    checks.integer("max_steps", max_steps, 1)
    settings = _checked(batch_size, lr, momentum, curvature, noise)
    _check_goal(goal, settings)
    losses = _losses(*settings)
    limit = 1e6 * next(losses)  # beyond it an unstable direction rules, and it only grows
    steps = np.full(limit.shape, math.inf)
    for step, loss in enumerate(itertools.islice(losses, max_steps), start=1):
        steps = np.where((loss <= goal) & np.isinf(steps), step, steps)
        if (np.isfinite(steps) | ~(loss < limit)).all():
            break
    return steps


def noisy_quadratic_optimum(
    batch_size: float,
    *,
    goal: float,
    lr=None,
    momentum=0.0,
    max_steps: int = 100_000,
    curvature=None,
    noise=None,
) -> Optimum:
    """Fewest steps to the goal over a grid of constant learning rates and momenta.

    Args:
        batch_size: one number > 0, or inf.
        goal, curvature, noise: as in `noisy_quadratic_steps`.
        lr: the grid ``(R,)``; default 200 rates, even in logs, for each momentum, from 1e-5 of
            the largest that is stable, 2 (1 + momentum) / max(curvature), up to that; then, for
            the best momentum, 101 around the best.
        momentum: a number, or the grid ``(M,)``; every pair is tried.
        max_steps: where to give up, >= 1.

    Returns:
        ``Optimum(steps, lr, momentum)``; of several pairs that arrive at the same step the one
        of lowest loss.

    Raises:
        ParameterError: an argument outside what is allowed.

    Example:
        >>> optimum = noisy_quadratic_optimum(math.inf, goal=1e-9, curvature=[1.0, 0.5])
        >>> optimum.steps, round(optimum.lr, 1)  # the best rate is near 2 / (1 + 0.5)
        (10.0, 1.3)
    """
    checks.integer("max_steps", max_steps, 1)
    if np.ndim(batch_size) != 0:
        raise ParameterError(f"batch_size must be one number; got shape {np.shape(batch_size)}")
    momentum = _numbers("momentum", momentum).reshape(-1, 1)
    if lr is not None:
        lr = _numbers("lr", lr).reshape(1, -1)
        return _first(goal, max_steps, batch_size, lr, momentum, curvature, noise)
    _, _, _, h, _ = _checked(batch_size, 1.0, momentum, curvature, noise)
    lr = np.geomspace(1e-5, 1, 200) * 2 * (1 + momentum) / h.max()
    found = _first(goal, max_steps, batch_size, lr, momentum, curvature, noise)
    if found.steps == math.inf:
        return found
    lr = found.lr * np.geomspace(0.94, 1 / 0.94, 101)  # down and up to the next of the grid
    return _first(goal, int(found.steps), batch_size, lr, found.momentum, curvature, noise)


def _first(goal, max_steps, batch_size, lr, momentum, curvature, noise) -> Optimum:
    """The first of all settings to reach the goal; no other is followed any further."""
    settings = _checked(batch_size, lr, momentum, curvature, noise)
    _check_goal(goal, settings)
    for step, loss in enumerate(itertools.islice(_losses(*settings), 1, max_steps + 1), start=1):
        if (loss <= goal).any():
            best = np.unravel_index(np.nanargmin(loss), loss.shape)
            rate, beta = (np.broadcast_to(a, loss.shape)[best] for a in (lr, momentum))
            return Optimum(float(step), float(rate), float(beta))
    return Optimum(math.inf, math.nan, math.nan)


def _losses(batch_size, lr, momentum, h, c) -> Iterator[np.ndarray]:
    """Expected losses, from before the first step on; the settings end in an axis of length 1."""
    shape = np.broadcast_shapes(batch_size.shape, lr.shape, momentum.shape, h.shape)
    variance = c / batch_size
    theta2, theta_m, m2 = np.ones(shape), np.zeros(shape), np.zeros(shape)
    while True:
        # no matrix product, whose last bits depend on how many settings there are
        yield 0.5 * (theta2 * h).sum(axis=-1)
        with np.errstate(over="ignore", invalid="ignore"):  # settings that diverge
            product = momentum * theta_m + h * theta2
            m2 = momentum**2 * m2 + 2 * momentum * h * theta_m + h**2 * theta2 + variance
            theta2 = theta2 - 2 * lr * product + lr**2 * m2
            theta_m = product - lr * m2


def _checked(batch_size, lr, momentum, curvature, noise) -> tuple[np.ndarray, ...]:
    h = 1 / np.arange(1.0, NUM_DIMENSIONS + 1) if curvature is None else curvature
    h = _numbers("curvature", h)
    c = h if noise is None else _numbers("noise", noise)
    if h.ndim != 1 or h.size == 0 or h.shape != c.shape:
        raise ParameterError(
            f"curvature and noise must both have shape (D,), D >= 1; got {h.shape}, {c.shape}"
        )
    batch_size, lr, momentum = (
        _numbers(name, values)[..., None]
        for name, values in (("batch_size", batch_size), ("lr", lr), ("momentum", momentum))
    )
    for name, values, allowed, fine in (
        ("curvature", h, "finite and above 0", (h > 0) & (h < math.inf)),
        ("noise", c, "finite and at least 0", (c >= 0) & (c < math.inf)),
        ("batch_size", batch_size, "above 0", batch_size > 0),
        ("lr", lr, "finite and above 0", (lr > 0) & (lr < math.inf)),
        ("momentum", momentum, "in [0, 1)", (momentum >= 0) & (momentum < 1)),
    ):
        if values.size == 0 or not fine.all():
            raise ParameterError(f"{name} must be {allowed}; got {values[~fine].tolist()}")
    try:
        np.broadcast_shapes(batch_size.shape, lr.shape, momentum.shape)
    except ValueError:
        shapes = [a.shape[:-1] for a in (batch_size, lr, momentum)]
        raise ParameterError(
            f"batch_size, lr and momentum must broadcast; got shapes {shapes}"
        ) from None
    return batch_size, lr, momentum, h, c


def _numbers(name: str, values) -> np.ndarray:
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ParameterError(f"{name} must be numbers; got {values!r}") from None


def _check_goal(goal: float, settings: tuple[np.ndarray, ...]) -> None:
    start = 0.5 * settings[3].sum()
    if not 0 < goal < start:
        raise ParameterError(f"goal must be above 0 and below the first loss {start}; got {goal}")
