"""How the missing runs of a sweep are trained: one after the other in this process."""

import contextlib
import gc
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import filelock
import torch

from hardtrain.errors import DataError, HardtrainError, ParameterError, StoreError, SweepError
from hardtrain.runs.progress import Progress
from hardtrain.runs.run import Run
from hardtrain.runs.run_data import fingerprint_at_hand, load_data
from hardtrain.runs.store import RunStore
from hardtrain.runs.train import train_run


def _train_locally(runs: Sequence[Run], store: RunStore, progress: Progress) -> None:
    """One after the other; runs that another process holds come last, and are waited for. One that
    fails is left out, and named when the others are done.

    Raises:
        SweepError: some failed. StoreError: at once, since the others could not be kept either.
    """
    waiting: list[Run] = []
    failures: list[tuple[Run, Exception]] = []
    for say, queue in ((None, runs), (progress.say, waiting)):
        for run in queue:
            if _lost_device(failures):
                lost = HardtrainError("not tried, since the device is lost: start anew")
                failures.insert(0, (run, lost))
                continue
            try:
                if not train_if_free(run, store, progress, say):
                    waiting.append(run)
                    continue
            except StoreError:
                raise
            except Exception as error:
                failures.append((run, described(run, error)))
            progress.finished(run, *(error for failed, error in failures[-1:] if failed is run))
    if failures:
        raise SweepError(failures, len(runs))


def train_if_free(
    run: Run, store: RunStore, note: Callable[..., None], say: Callable[[str], None] | None = None
) -> bool:
    """Train a run that is still missing; whether it is finished now, or another process has it,
    for which we wait, and ``say`` so, if we can."""
    fingerprint = load_data(run)[2]
    if fingerprint_at_hand(run.dataset, run.data_root) not in (None, fingerprint):
        raise DataError(f"{run.dataset} has changed since the sweep began")
    lock = store.lock(run.key, fingerprint)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        if say is None:
            return False
        say(f"waiting for another sweep, which trains {run}")
        lock.acquire()
    try:
        if stored_row(run, store) is None:  # another may have finished it
            train_run(run, store, note)
    finally:
        lock.release()
    return True


def described(run: Run, error: Exception) -> Exception:
    """A run's error, without the tensors that its frames hold, and with a word on what to do."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    gc.collect()
    if torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):  # of a lost device
            torch.cuda.empty_cache()
    no_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    if no_memory or "allocate memory" in str(error):  # so says the CPU's allocator
        less = "; $HARDTRAIN_REPLAY=0 needs less" if torch.cuda.is_initialized() else ""
        return ParameterError(
            f"batch_size = {run.batch_size} needs more memory than the device has{less} ({error})"
        )
    return error


def _lost_device(failures: Sequence[tuple[Run, Exception]]) -> bool:
    """Whether two runs in a row found their GPU unusable: it stays so in this process."""
    lost = getattr(torch, "AcceleratorError", ())
    return len(failures) > 1 and all(isinstance(error, lost) for _, error in failures[-2:])


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
    fingerprint = fingerprint_at_hand(run.dataset, run.data_root)
    record = store.load(run.key, fingerprint, run.as_dict())
    if record is None:
        return None
    if record["status"] == "finished":
        if not all(store.has_artefact(record, name) for name in run.keep):
            return None
    return record | record["metrics"] | {"source": "store"}
