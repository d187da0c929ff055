"""Times measured side by side in one process."""

import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from hardtrain.data.images import resolve_device
from hardtrain.runs.train import environment


def interleaved(
    functions: Mapping[Hashable, Callable[[], object]],
    repetitions: int,
    *,
    warmup: int = 2,
    device: torch.device | str = "cpu",
) -> dict[Hashable, list[float]]:
    """Seconds of each function in each of ``repetitions`` rounds.

    Every round runs every function once, in an order of its own, since what ran just before
    (caches, freed memory) makes a difference; ``warmup`` rounds before are not counted. Work
    queued on ``device`` is waited for.

    Example:
        >>> len(interleaved({"nothing": lambda: None}, 3)["nothing"])
        3
    """
    on_gpu = torch.device(device).type == "cuda"
    wait = partial(torch.cuda.synchronize, device) if on_gpu else lambda: None
    times: dict[Hashable, list[float]] = {name: [] for name in functions}
    for number in range(warmup + repetitions):
        for name in random.Random(number).sample(list(functions), len(functions)):
            wait()
            began = time.perf_counter()
            functions[name]()
            wait()
            if number >= warmup:
                times[name].append(time.perf_counter() - began)
    return times


def ratios_by_round(
    plain: Callable[[], object], others: Sequence[Callable[[], object]], repetitions: int, **options
) -> np.ndarray:
    """Time of each of the others / time of the plain function in each round, shape
    ``(repetitions, len(others))``; ``options`` are those of `interleaved`.

    Example:
        >>> ratios_by_round(lambda: None, [lambda: None, lambda: None], repetitions=3).shape
        (3, 2)
    """
    base, *times = interleaved(dict(enumerate([plain, *others])), repetitions, **options).values()
    return (np.array(times) / np.array(base)).T


def machine(device: str = "auto") -> str:
    """A line that says where a time was measured."""
    facts = environment(resolve_device(device))
    return f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}"


def small_cnn(*, batch_norm: bool) -> nn.Module:
    """Three convolutions, channels_last, 3 channels in and 10 classes out."""
    layers: list[nn.Module] = []
    for width_in, width in ((3, 32), (32, 64), (64, 64)):
        norm = [nn.BatchNorm2d(width)] if batch_norm else []
        layers += [nn.Conv2d(width_in, width, 3, padding=1), *norm, nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)
