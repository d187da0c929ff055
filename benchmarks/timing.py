"""Times of functions run in turns, so that a slower minute of the machine hits all alike."""

import statistics
import time
from collections.abc import Callable

import torch


def interleaved(
    functions: dict[str, Callable[[], object]],
    repetitions: int,
    *,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each function in each of ``repetitions`` rounds.

    Every round runs every function once, beginning with another one each time; ``warmup`` rounds
    before are not counted. Work queued on a GPU is waited for. ``clock=time.process_time``
    counts the work of all threads instead of the time that passes, which is steadier on a busy
    machine with one thread.
    """
    names = list(functions)
    times = {name: [] for name in names}
    for number in range(warmup + repetitions):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            _wait()
            start = clock()
            functions[name]()
            _wait()
            if number >= warmup:
                times[name].append(clock() - start)
    return times


def median_ratio(times: dict[str, list[float]], a: str, b: str) -> float:
    """Median over the rounds of time of ``a`` / time of ``b``; below 1 where ``a`` is faster.

    Example:
        >>> median_ratio({"a": [1.0, 3.0, 2.0], "b": [2.0, 2.0, 2.0]}, "a", "b")
        1.0
    """
    return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
