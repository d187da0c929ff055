"""Ray: found, started on this machine or joined, and ended."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from types import ModuleType
from typing import Any

from hardtrain.errors import ParameterError
from hardtrain.runs.ray_worker import warm


def imported() -> ModuleType:
    """Ray, or the error that says how to get it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    # seconds for its helpers to start; with the 15 of its own it gives up on a busy machine
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ParameterError(
            "engine = 'ray' needs Ray: pip install 'hardtrain[ray]', or pip install ray"
        ) from error
    return ray


@contextlib.contextmanager
def connected(
    ray: ModuleType, address: str | None, meanwhile: Callable[[Callable[[], bool]], None]
) -> Iterator[bool]:
    """With Ray: the program's own, which goes on (true), if it has begun one, else one that ends
    with the sweep, and with it its tasks. What is to be done ``meanwhile`` is told how to see that
    it, and a worker of it, have been started."""
    if ray.is_initialized():
        yield True
        return
    main = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    # Ray's processes end with the thread that has started them
    with ThreadPoolExecutor(1) as pool:
        starting = None if address else pool.submit(_start, ray, options)
        try:
            if starting:
                meanwhile(starting.done)
            try:
                starting.result() if starting else ray.init(address=address, **options)
            except Exception as error:  # Ray has no errors of its own for this
                reason = "is it running, and is RAY_AUTH_MODE here what it is there?"
                if not address:
                    reason = "on a busy machine try again; engine 'local' does without"
                raise ParameterError(
                    f"ray_address = {address!r}: Ray does not answer ({error}); {reason}"
                ) from error
            if main:  # Ray sets its own
                signal.signal(signal.SIGTERM, on_sigterm)
            yield False
        finally:
            if starting:
                wait([starting])  # what has only half begun would go on
            ray.shutdown()


def _start(ray: ModuleType, options: dict[str, Any]) -> None:
    """Start Ray on this machine, with workers that have imported what they need."""
    cores = {}
    if hasattr(os, "sched_getaffinity"):  # those that a scheduler has given us
        cores = {"num_cpus": len(os.sched_getaffinity(0))}
    ray.init(address="local", include_dashboard=False, **cores, **options)
    worker = ray.remote(warm)
    ray.wait([worker.remote() for _ in range(int(ray.cluster_resources().get("CPU", 1)))])
