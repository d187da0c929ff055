"""Loss and accuracy along a line in parameter space: between two networks, or away from one."""

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import update_bn

from hardtrain import checks
from hardtrain.data.batches import Transform
from hardtrain.data.images import ImageDataset
from hardtrain.errors import ParameterError
from hardtrain.networks import has_batch_norm
from hardtrain.training.evaluation import evaluate
from hardtrain.training.randomness import isolated_randomness


def interpolate(
    model_a: nn.Module,
    model_b: nn.Module,
    alphas: Sequence[float],
    sets: Mapping[str, ImageDataset],
    transform: Transform,
    *,
    batch_norm: str = "re-estimated",
    statistics_data: ImageDataset | None = None,
    batch_size: int = 1000,
) -> dict[str, np.ndarray]:
    r"""Loss and accuracy on the straight line through two networks.

    .. math:: \theta(\alpha) = (1 - \alpha) \theta_A + \alpha \theta_B

    At α = 0 and α = 1 the parameters have the bits of the two networks; where the networks agree
    they do at every α. Neither is changed: a copy moves, on the device of ``model_a``.

    Args:
        model_a, model_b: of one architecture; ``model_b`` may be on another device.
        alphas: α, shape ``(A,)``; the paper plots [-1, 2].
        sets: what to evaluate on, by name, such as ``{"train": ..., "val": ...}``.
        transform: its augmentation is left out.
        batch_norm: the running statistics at α. ``"re-estimated"`` from ``statistics_data``, at
            the ends too, which so differ a little from the networks as trained; or
            ``"interpolated"`` like the parameters: the ends are exact, but between them these are
            not the network's statistics. The same for networks without batch-norm.
        statistics_data: for ``"re-estimated"``, the training data: one pass in training mode,
            without augmentation, in batches of at most ``batch_size`` that are equal to within
            one sample; means and variances of the batches are averaged. The order is random (a
            fixed seed), because a set may be sorted by class.
        batch_size: number of samples that are evaluated at once.

    Returns:
        Columns of a table, each ``(A,)`` float64: ``alpha``, and for each set ``NAME_loss`` (mean
        cross-entropy, nats) and ``NAME_accuracy`` (fraction).

    Raises:
        ParameterError: names the argument: architectures differ, an α is not finite, no set,
            batch-norm to re-estimate without ``statistics_data``.

    Outside [0, 1] an interpolated variance would soon be negative: at α = -1 where B's is more
    than twice A's. There it stays at the smaller of the two ends' variances. (A floor of zero is
    no way out: such a channel would be multiplied by 1 / sqrt(eps) = 316 and drown the others.)

    Source:
        Keskar et al., arXiv 1609.04836, as in Jaiswal, Taura, section 2.3.2 and figure 6, which
        do not say what becomes of the running statistics; hence ``batch_norm``.

    Example:
        >>> from hardtrain import build_network, load_dataset
        >>> test = load_dataset("digits", "test")
        >>> small, large = (build_network("cnn_small", 10, 1) for _ in range(2))
        >>> curve = interpolate(small, large, [-1, 0, 1, 2], {"test": test}, Transform.of(test))
        >>> list(curve)
        ['alpha', 'test_loss', 'test_accuracy']
        >>> curve["test_loss"][1] == evaluate(small, test, Transform.of(test)).loss
        np.True_
    """
    checks.choice("batch_norm", batch_norm, ("re-estimated", "interpolated"))
    _require_same_architecture(model_a, model_b)
    start, end = _tensors(model_a), _tensors(model_b)

    def point(alpha: float) -> dict[str, Tensor]:
        return {name: _between(name, start[name], end[name], alpha) for name in start}

    data = _statistics_data(batch_norm, model_a, statistics_data)
    return _curve("alpha", alphas, point, model_a, sets, transform, data, batch_size)


def along_direction(
    model: nn.Module,
    direction: Mapping[str, Tensor],
    distances: Sequence[float],
    sets: Mapping[str, ImageDataset],
    transform: Transform,
    *,
    batch_norm: str = "re-estimated",
    statistics_data: ImageDataset | None = None,
    batch_size: int = 1000,
) -> dict[str, np.ndarray]:
    r"""Loss and accuracy on the line from a network in one direction.

    .. math:: \theta(d) = \theta + d \cdot \delta

    Args:
        model: not changed.
        direction: δ: for names of parameters tensors of their shapes, such as
            :func:`filter_normalised_direction`; a parameter without an entry stays.
        distances: d, shape ``(A,)``, in lengths of ``direction``.
        batch_norm: ``"re-estimated"`` at every d, or ``"kept"``: the network's own.
        sets, transform, statistics_data, batch_size: as in :func:`interpolate`.

    Returns:
        As :func:`interpolate`, with ``distance`` in place of ``alpha``.

    Raises:
        ParameterError: as :func:`interpolate`; an entry of ``direction`` fits no parameter.

    Example:
        >>> from hardtrain import build_network, load_dataset
        >>> test = load_dataset("digits", "test")
        >>> model = build_network("cnn_small", 10, 1)
        >>> direction = filter_normalised_direction(model, torch.Generator().manual_seed(0))
        >>> sets = {"test": test}
        >>> curve = along_direction(model, direction, [-1, 0, 1], sets, Transform.of(test))
        >>> curve["test_loss"].shape
        (3,)
    """
    checks.choice("batch_norm", batch_norm, ("re-estimated", "kept"))
    start = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, step in direction.items():
        if name not in start or step.shape != start[name].shape:
            raise ParameterError(
                f"direction[{name!r}] of shape {tuple(step.shape)} fits no parameter of the model"
            )

    def point(distance: float) -> dict[str, Tensor]:
        return {k: start[k].add(step.to(start[k]), alpha=distance) for k, step in direction.items()}

    data = _statistics_data(batch_norm, model, statistics_data)
    return _curve("distance", distances, point, model, sets, transform, data, batch_size)


def filter_normalised_direction(model: nn.Module, generator: Generator) -> dict[str, Tensor]:
    r"""A random direction in which each filter is as long as the model's own filter.

    .. math:: \delta_{i} = \frac{d_{i}}{\|d_{i}\|} \|\theta_{i}\|, \quad d \sim N(0, I)

    A filter i is one entry of a weight's first axis, so a row of a linear layer. Networks can
    then be compared though their weights differ in scale, which ReLU and batch-norm undo.

    Args:
        model: not changed.
        generator: draws on its own device; the result lies on the parameters'.

    Returns:
        For each parameter, by name, a tensor of its shape and dtype; zero where it has fewer than
        two axes (biases, batch-norm).

    Source:
        Li et al., "Visualizing the Loss Landscape of Neural Nets", arXiv 1712.09913, section 4;
        that biases and batch-norm stay is an option of the authors' code (``biasbn``).

    Example:
        >>> model = nn.Linear(3, 2)
        >>> direction = filter_normalised_direction(model, torch.Generator().manual_seed(0))
        >>> torch.allclose(direction["weight"].norm(dim=1), model.weight.norm(dim=1))
        True
        >>> direction["bias"]
        tensor([0., 0.])
    """
    direction = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        direction[name] = torch.zeros_like(weight)
        if weight.ndim >= 2:
            drawn = torch.randn(weight.shape, generator=generator, device=generator.device)
            drawn = drawn.to(weight).flatten(1)
            drawn = nn.functional.normalize(drawn) * weight.flatten(1).norm(dim=1, keepdim=True)
            direction[name] = drawn.view_as(weight)
    return direction


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once, as they lie in the model."""
    named = itertools.chain(model.named_parameters(), model.named_buffers())
    return {name: tensor.detach() for name, tensor in named}


def _between(name: str, start: Tensor, end: Tensor, alpha: float) -> Tensor:
    end = end.to(start.device)
    if alpha in (0, 1):  # arithmetic would lose the sign of zeros, and all bits beside inf
        return end if alpha else start
    if not start.is_floating_point():  # a count of batches
        return start
    # not (1 - alpha) * start + alpha * end, which moves equal ends by rounding
    mixed = torch.lerp(start, end, alpha)
    if name.endswith("running_var"):
        return torch.maximum(mixed, torch.minimum(start, end))
    return mixed


def _curve(
    axis: str,
    values: Sequence[float],
    point: Callable[[float], Mapping[str, Tensor]],
    model: nn.Module,
    sets: Mapping[str, ImageDataset],
    transform: Transform,
    statistics_data: ImageDataset | None,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """Evaluate a copy of ``model`` with the tensors of ``point`` at each of ``values``, and with
    the batch-norm statistics of ``statistics_data``, if given."""
    values = np.array(values, dtype=float)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ParameterError(f"{axis}s = {values} are not finite numbers (A,), A >= 1")
    if not sets:
        raise ParameterError("sets names no data set")
    checks.integer("batch_size", batch_size, 1)
    model = copy.deepcopy(model)
    tensors = _tensors(model)
    device = next(model.parameters()).device
    sets = {name: data.to(device) for name, data in sets.items()}
    transform = transform.without_augmentation()
    curve = {axis: values}
    for name in sets:
        curve |= {f"{name}_{what}": np.empty(len(values)) for what in ("loss", "accuracy")}
    for i, value in enumerate(values.tolist()):
        for name, tensor in point(value).items():
            tensors[name].copy_(tensor)
        if statistics_data is not None:
            estimate_statistics(model, statistics_data.to(device), transform, batch_size)
        for name, data in sets.items():
            found = evaluate(model, data, transform, batch_size=batch_size)
            curve[f"{name}_loss"][i], curve[f"{name}_accuracy"][i] = found.loss, 1 - found.error
    return curve


def _statistics_data(
    batch_norm: str, model: nn.Module, data: ImageDataset | None
) -> ImageDataset | None:
    if batch_norm != "re-estimated" or not has_batch_norm(model):
        return None
    if data is None:
        raise ParameterError(
            "statistics_data = None, but the model has batch-norm, whose statistics are "
            "re-estimated from the training data; give it, or another batch_norm"
        )
    return data


def estimate_statistics(
    model: nn.Module, data: ImageDataset, transform: Transform, batch_size: int
) -> None:
    """Set batch-norm's running statistics, in place, to means over the batches of one pass in
    training mode; `interpolate` says how."""
    device = data.images.device
    order = torch.randperm(len(data), generator=Generator().manual_seed(0)).to(device)
    # equal parts: update_bn gives all batches the same weight, also a last one of a few samples
    parts = order.tensor_split(math.ceil(len(data) / batch_size))
    with isolated_randomness(0, device):  # for networks with dropout
        update_bn((transform(data.images[part]) for part in parts), model)


def _require_same_architecture(model_a: nn.Module, model_b: nn.Module) -> None:
    # the text shows what shapes do not: a stride, ReLU or ReLU6
    described = [
        [
            *(f"{name} {tuple(t.shape)} {t.dtype}" for name, t in _tensors(model).items()),
            *(line.strip() for line in str(model).splitlines()),
        ]
        for model in (model_a, model_b)
    ]
    for line_a, line_b in itertools.zip_longest(*described, fillvalue="nothing"):
        if line_a != line_b:
            raise ParameterError(
                "model_a and model_b must be of one architecture; they differ first in "
                f"{line_a!r} and {line_b!r}"
            )
