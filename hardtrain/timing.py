"""Times measured side by side in one process, in turns, so that a busy moment of the machine falls
on all alike. Ratios are medians over the rounds."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hardtrain import methods
from hardtrain.data import ImageDataset, resolve_device
from hardtrain.records import environment
from hardtrain.runs import Run
from hardtrain.strategies.trimming import trim, trimmed_backward
from hardtrain.training import fit, isolated_randomness

VERSION = 1  # raise it when a change here changes what is measured


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    repetitions: int,
    *,
    warmup: int = 2,
    device: torch.device | str = "cpu",
) -> dict[str, list[float]]:
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
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warmup + repetitions):
        for name in random.Random(number).sample(names, len(names)):
            wait()
            began = time.perf_counter()
            functions[name]()
            wait()
            if number >= warmup:
                times[name].append(time.perf_counter() - began)
    return times


def median_ratio(times: Mapping[str, Sequence[float]], a: str, b: str) -> float:
    """Median over the rounds of time of ``a`` / time of ``b``; below 1 where ``a`` is faster.

    Example:
        >>> median_ratio({"a": [1.0, 3.0, 2.0], "b": [2.0, 2.0, 2.0]}, "a", "b")
        1.0
    """
    return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))


def machine(device: str = "auto") -> str:
    """A line that says where a time was measured."""
    facts = environment(resolve_device(device))
    return f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}"


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


def hard_batch_step_times(
    *,
    deltas: Sequence[float] = (0.8, 0.5, 0.2),
    batch_size: int = 32,
    num_batches: int = 8,
    repetitions: int = 3,
    device: str = "auto",
) -> dict[str, np.ndarray]:
    """Time per update of hard mini-batches relative to plain training.

    Whole trainings of 4 epochs on random images of 8x8, by ``training.fit``, without evaluation;
    all make the same number of updates.

    Returns:
        ``deltas (D,)``, ``ratios (D,)``, ``seconds (D + 1,)`` per update (plain first), and
        ``machine``, a text.
    """
    place = resolve_device(device)
    rng = np.random.default_rng(0)
    shape = (batch_size * num_batches, 8, 8, 3)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    data = ImageDataset.from_arrays(images, rng.integers(0, 10, len(images)), device=place)

    def training_of(method: str, **options) -> Callable[[], object]:
        run = Run("random", "cnn_small", method, options, epochs=4, lr=1e-6,
                  batch_size=batch_size)  # fmt: skip

        def train() -> None:
            with isolated_randomness(0, place):
                model = small_cnn(batch_norm=True).to(place)
                made = methods.find_method(method)(run, data, model, **run.options)
                fit(run, model, made, lambda model: {})

        return train

    trainings = {"plain": training_of("plain")}
    trainings |= {str(delta): training_of("hard_batches", delta=delta) for delta in deltas}
    times = interleaved(trainings, repetitions, warmup=1, device=place)
    return {
        "deltas": np.array(deltas),
        "ratios": np.array([median_ratio(times, str(delta), "plain") for delta in deltas]),
        "seconds": np.array([statistics.median(t) for t in times.values()]) / (4 * num_batches),
        "machine": np.array(machine(device)),
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
