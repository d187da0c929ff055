"""How the missing runs of a sweep are trained: one after the other in this process."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import filelock
import torch

from hardtrain.errors import ParameterError
from hardtrain.runs.progress import Progress
from hardtrain.runs.run import Run
from hardtrain.runs.store import RunStore
from hardtrain.runs.train import fingerprint_at_hand, load_data, train_run


def _train_locally(runs: Sequence[Run], store: RunStore, progress: Progress) -> None:
    """One after the other; runs that another process holds come last, and are waited for. One that
    does not fit the device's memory is left out, and named when the others are done."""
    waiting: list[Run] = []
    too_large: list[Run] = []
    try:
        for patient, queue in ((False, runs), (True, waiting)):
            for run in queue:
                lock = store.lock(run.key, load_data(run)[2])
                try:
                    held = lock.acquire(blocking=patient)
                except filelock.Timeout:
                    waiting.append(run)
                    continue
                with held:
                    try:
                        if stored_row(run, store) is None:  # another may have finished it
                            train_run(run, store, progress)
                    except torch.OutOfMemoryError:
                        too_large.append(run)
                    progress(run, run.epochs)
    except (KeyboardInterrupt, SystemExit):
        progress.say("interrupted; finished runs and checkpoints are kept: run again to go on")
        raise
    if too_large:
        raise ParameterError(
            f"batch_size = {too_large[0].batch_size} needs more memory than the device has for "
            f"{too_large[0]} ({len(too_large)} of {len(runs)} runs; the others are finished)"
        )


ENGINES = {"local": _train_locally}


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM, by which a scheduler ends a job, acts as Ctrl-C does, with exit status 143; not
    where the program has its own way with it, and not in threads, which cannot set one."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    status = 128 + signal.SIGTERM
    received = []

    def end(*_: object) -> None:
        received.append(status)
        raise SystemExit(status)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    except SystemExit as error:
        if received:
            error.code = status  # Ray, where it waits, makes it 1
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def stored_row(run: Run, store: RunStore) -> dict | None:
    """The record and metrics of a run that is in the store with all its artefacts, or ``None``."""
    record = store.load(run.key, fingerprint_at_hand(run.dataset, run.data_root))
    if record is None:
        return None
    if record["status"] == "finished":
        if not all(store.has_artefact(record, name) for name in run.keep):
            return None
    return record | record["metrics"] | {"source": "store"}
