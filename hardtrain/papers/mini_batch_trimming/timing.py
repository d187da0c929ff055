"""What a step of mini-batch trimming costs."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hardtrain.data.images import resolve_device
from hardtrain.report.timing import interleaved, machine, median_ratio
from hardtrain.strategies.trimmed_backward import trimmed_backward
from hardtrain.strategies.trimming import trim


def trimming_step_times(
    *,
    keeps: Sequence[float] = (1.0, 0.7, 0.4, 0.2),
    batch_size: int = 128,
    image_size: int = 8,
    repetitions: int = 5,
    device: str = "auto",
) -> dict[str, np.ndarray]:
    """Time of a trimmed SGD step relative to a plain one, by the part of the batch that counts.

    A CNN of three convolutions (32, 64, 64 channels), with and without batch-norm.

    Returns:
        ``keeps (P,)``, the ratios ``trim``, ``trimmed_backward`` (both without batch-norm) and
        ``trim_batch_norm`` ``(P,)``, and ``machine``, a text.
    """
    place = resolve_device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = torch.randn(batch_size, 3, image_size, image_size).to(place)
        targets = torch.randint(10, (batch_size,)).to(place)
        bare, normed = (small_cnn(batch_norm=norm).to(place) for norm in (False, True))

    def step(model: nn.Module, backward: Callable[[], object]) -> Callable[[], None]:
        # learns next to nothing, so that every step has the same work to do
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

        def run() -> None:
            optimizer.zero_grad()
            backward()
            optimizer.step()

        return run

    def losses(model: nn.Module) -> torch.Tensor:
        return cross_entropy(model(inputs), targets, reduction="none")

    steps = {
        "plain": step(bare, lambda: losses(bare).mean().backward()),
        "plain_batch_norm": step(normed, lambda: losses(normed).mean().backward()),
    }
    for p in keeps:
        backwards = {
            "trim": (bare, lambda p=p: trim(losses(bare), p).backward()),
            "trimmed_backward": (bare, lambda p=p: trimmed_backward(bare, inputs, targets, p)),
            "trim_batch_norm": (normed, lambda p=p: trim(losses(normed), p).backward()),
        }
        steps |= {f"{kind} {p}": step(*backward) for kind, backward in backwards.items()}
    times = interleaved(steps, repetitions, device=place)
    plain = dict.fromkeys(backwards, "plain") | {"trim_batch_norm": "plain_batch_norm"}
    return {"keeps": np.array(keeps), "machine": np.array(machine(device))} | {
        kind: np.array([median_ratio(times, f"{kind} {p}", plain[kind]) for p in keeps])
        for kind in backwards
    }


def small_cnn(*, batch_norm: bool) -> nn.Module:
    """Three convolutions, channels_last, 3 channels in and 10 classes out."""
    layers: list[nn.Module] = []
    for width_in, width in ((3, 32), (32, 64), (64, 64)):
        layers.append(nn.Conv2d(width_in, width, 3, padding=1))
        layers += [nn.BatchNorm2d(width)] if batch_norm else []
        layers.append(nn.ReLU())
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)
