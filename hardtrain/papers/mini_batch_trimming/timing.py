"""What a step of mini-batch trimming costs."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hardtrain.data.images import resolve_device
from hardtrain.report.timing import machine, ratios_by_round, small_cnn
from hardtrain.strategies.trimmed_backward import trimmed_backward
from hardtrain.strategies.trimming import trim


def trimming_step_times(
    *,
    keeps: Sequence[float] = (1.0, 0.7, 0.4, 0.2),
    image_size: int = 8,
    repetitions: int = 9,
    device: str = "auto",
) -> dict[str, np.ndarray]:
    """Time of a trimmed SGD step relative to a plain one, by the part of the batch that counts.

    Batches of 128 square images of ``image_size`` pixels a side, three channels; a CNN of three
    convolutions (32, 64, 64 channels), with and without batch-norm.

    Returns:
        ``keeps (P,)``, the ratios ``trim``, ``trimmed_backward`` (both without batch-norm) and
        ``trim_batch_norm`` ``(R, P)`` by round of the measurement, and ``machine``, a text.
    """
    place = resolve_device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = torch.randn(128, 3, image_size, image_size).to(place)
        targets = torch.randint(10, (128,)).to(place)
        bare, normed = (small_cnn(batch_norm=norm).to(place) for norm in (False, True))
    measured = {"keeps": np.array(keeps), "machine": np.array(machine(device))}
    for kind, model, backward in (
        ("trim", bare, _backward),
        ("trimmed_backward", bare, trimmed_backward),
        ("trim_batch_norm", normed, _backward),
    ):
        # learns next to nothing, so that every step has the same work to do
        step = partial(_step, torch.optim.SGD(model.parameters(), lr=1e-6))
        plain = partial(step, _backward, model, inputs, targets)
        trimmed = [partial(step, backward, model, inputs, targets, keep) for keep in keeps]
        measured[kind] = ratios_by_round(plain, trimmed, repetitions, device=place)
    return measured


def _step(optimizer: torch.optim.Optimizer, backward: Callable[..., object], *arguments) -> None:
    optimizer.zero_grad()
    backward(*arguments)
    optimizer.step()


def _backward(model: nn.Module, inputs: Tensor, targets: Tensor, keep: float | None = None) -> None:
    losses = cross_entropy(model(inputs), targets, reduction="none")
    (losses.mean() if keep is None else trim(losses, keep)).backward()
