"""Loss and accuracy along a line in parameter space: between two networks, or away from one."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd
import torch
from torch import Generator, Tensor, nn

from hardtrain.data.batches import Transform
from hardtrain.data.images import ImageDataset
from hardtrain.training.evaluation import evaluate, in_mode
from hardtrain.training.randomness import isolated_randomness


def interpolate(
    model_a: nn.Module, model_b: nn.Module, alphas: Sequence[float]
) -> Iterator[dict[str, Tensor]]:
    r"""States on the straight line through two networks, one for each α.

    .. math:: \theta(\alpha) = (1 - \alpha) \theta_A + \alpha \theta_B

    At α = 0 and α = 1 they have the bits of the two networks; where the networks agree they do at
    every α. The running statistics of batch-norm are interpolated, too: the ends are exact, but
    between them these are not the network's statistics, for which see `evaluate_states`.

    Outside [0, 1] an interpolated variance would soon be negative: at α = -1 where B's is more
    than twice A's. There it stays at the smaller of the two ends' variances. (A floor of zero is
    no way out: such a channel would be multiplied by 1 / sqrt(eps) = 316 and drown the others.)

    Args:
        model_a, model_b: of one architecture; ``model_b`` may be on another device. Not changed.
        alphas: α, shape ``(A,)``; the paper plots [-1, 2].

    Raises:
        RuntimeError: the networks' weights differ in names or shapes; torch's text says where.

    Source:
        Keskar et al., arXiv 1609.04836, as in Jaiswal, Taura, section 2.3.2 and figure 6, which
        do not say what becomes of the running statistics.

    Example:
        >>> first, second = (nn.Linear(1, 1, bias=False) for _ in range(2))
        >>> weights = nn.init.zeros_(first.weight), nn.init.ones_(second.weight)
        >>> [state["weight"].item() for state in interpolate(first, second, [-1, 0, 0.5])]
        [-1.0, 0.0, 0.5]
    """
    other = copy.deepcopy(model_a)
    other.load_state_dict(model_b.state_dict())
    start, end = model_a.state_dict(), other.state_dict()
    for alpha in alphas:
        yield {name: _between(name, start[name], end[name], alpha) for name in start}


def along_direction(
    model: nn.Module, direction: Mapping[str, Tensor], distances: Sequence[float]
) -> Iterator[dict[str, Tensor]]:
    r"""States on the line from a network in one direction, one for each distance d.

    .. math:: \theta(d) = \theta + d \cdot \delta

    Args:
        model: not changed.
        direction: δ: for names of parameters tensors of their shapes, such as
            :func:`filter_normalised_direction`; a parameter without an entry stays.
        distances: d, shape ``(A,)``, in lengths of ``direction``.

    Example:
        >>> model, direction = nn.Linear(1, 1), {"bias": torch.ones(1)}
        >>> near, far = along_direction(model, direction, [0, 2])
        >>> torch.allclose(far["bias"] - near["bias"], torch.tensor(2.0))
        True
    """
    start = model.state_dict()
    for distance in distances:
        moved = {name: start[name].add(step, alpha=distance) for name, step in direction.items()}
        yield start | moved


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


def evaluate_states(
    model: nn.Module,
    states: Iterable[Mapping[str, Tensor]],
    statistics_data: ImageDataset | None,
    sets: Mapping[str, ImageDataset],
    transform: Transform,
    *,
    batch_size: int = 500,
) -> pd.DataFrame:
    """Loss and accuracy of a network in each of several states.

    Args:
        model: not changed; a copy moves.
        states: as ``model.state_dict()``, such as those of `interpolate`.
        statistics_data: batch-norm's running statistics are re-estimated from it in each state
            (`estimate_statistics`), also at the ends of a line, which so differ a little from
            the networks as trained. ``None``: they are those of the state.
        sets: what to evaluate on, by name, such as ``{"train": ..., "val": ...}``, on the
            model's device.
        transform: must not augment.
        batch_size: number of samples that are evaluated at once.

    Returns:
        A row for each state; for each set ``NAME_loss`` (mean cross-entropy, nats) and
        ``NAME_accuracy`` (fraction).

    Example:
        >>> from hardtrain import build_network, load_dataset
        >>> sets = {"test": load_dataset("digits", "test")}
        >>> small, large = (build_network("cnn_small", 10, 1) for _ in range(2))
        >>> states = interpolate(small, large, [-1, 0, 1, 2])
        >>> curve = evaluate_states(small, states, None, sets, Transform.of(sets["test"]))
        >>> list(curve), len(curve)
        (['test_loss', 'test_accuracy'], 4)
    """
    model, rows = copy.deepcopy(model), []
    for state in states:
        model.load_state_dict(state)
        if statistics_data is not None:
            estimate_statistics(model, statistics_data, transform, batch_size)
        row = {}
        for name, data in sets.items():
            result = evaluate(model, data, transform, batch_size=batch_size)
            row |= {f"{name}_loss": result.loss, f"{name}_accuracy": 1 - result.error}
        rows.append(row)
    return pd.DataFrame(rows)


def estimate_statistics(
    model: nn.Module, data: ImageDataset, transform: Transform, batch_size: int = 500
) -> None:
    """Set batch-norm's running statistics, in place, to means over the batches of one pass.

    The pass is in training mode, in batches of at most ``batch_size`` that are equal to within
    one sample; means and variances of the batches are averaged. The order is random (a fixed
    seed), because a set may be sorted by class.
    """
    device = data.images.device
    order = torch.randperm(len(data), generator=Generator().manual_seed(0)).to(device)
    # equal parts: the mean gives all batches the same weight, also a last one of a few samples
    parts = order.tensor_split(math.ceil(len(data) / batch_size))
    with isolated_randomness(0, device):  # for networks with dropout
        _update_statistics(model, (transform(data.images[part]) for part in parts))


def _update_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """What ``torch.optim.swa_utils.update_bn`` does, bit for bit, which in every layer of every
    batch reads from the device how many it has seen."""
    norms = {m: 0 for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    momenta = [norm.momentum for norm in norms]

    def count(norm: nn.Module, _: tuple) -> None:
        norms[norm] += 1
        norm.momentum = 1 / norms[norm]

    handles = [norm.register_forward_pre_hook(count) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
    with in_mode(model, training=True):
        for batch in batches if norms else ():
            model(batch)
    for norm, momentum, handle in zip(norms, momenta, handles, strict=True):
        norm.momentum = momentum
        handle.remove()


def _between(name: str, start: Tensor, end: Tensor, alpha: float) -> Tensor:
    if alpha in (0, 1):  # arithmetic would lose the sign of zeros, and all bits beside inf
        return end if alpha else start
    if not start.is_floating_point():  # a count of batches
        return start
    # not (1 - alpha) * start + alpha * end, which moves equal ends by rounding
    mixed = torch.lerp(start, end, alpha)
    if name.endswith("running_var"):
        return torch.maximum(mixed, torch.minimum(start, end))
    return mixed
