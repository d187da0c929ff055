"""Times measured side by side in one process."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from hardtrain.data.images import resolve_device
from hardtrain.runs.train import environment


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
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(warmup + repetitions):
        for name in random.Random(number).sample(list(functions), len(functions)):
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


def relative_times(
    functions: Mapping[str, Callable[[], object]], repetitions: int, **options
) -> dict[str, float]:
    """`median_ratio` of each function to the first one; ``options`` are those of `interleaved`.

    Example:
        >>> relative_times({"plain": lambda: None}, 3)
        {'plain': 1.0}
    """
    times = interleaved(functions, repetitions, **options)
    return {name: median_ratio(times, name, next(iter(functions))) for name in functions}


def machine(device: str = "auto") -> str:
    """A line that says where a time was measured."""
    facts = environment(resolve_device(device))
    return f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}"
