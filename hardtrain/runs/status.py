"""What is going on in a store: each sweep says what it is to train and how far it is."""

import contextlib
import json
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import filelock

from hardtrain import files
from hardtrain.runs.progress import Progress
from hardtrain.runs.progress import spoken as spoken
from hardtrain.runs.run import Run
from hardtrain.runs.store import RunStore

_EVERY = 1.0  # seconds between two writings of a sweep's file, or 20 times what one takes


class Announced(Progress):
    """A sweep's progress, also in a file of the store: ``sweeps/NAME.json`` while its lock,
    ``sweeps/NAME.lock``, is held, which ends with the process.

    Attributes:
        file: its path; who sees it sees the store's disk.
    """

    def __init__(self, runs: Sequence[Run], store: RunStore):
        super().__init__(runs)
        folder = store.path / "sweeps"
        name = f"{socket.gethostname() or 'host'}.{os.getpid()}.{secrets.token_hex(4)}"
        self.file, self._lock = folder / f"{name}.json", files.lock(folder / f"{name}.lock")
        self._next_write = 0.0
        about = {"epochs_done": None, "loss": None, "since": None, "first": None}
        self._runs: dict[str, dict[str, Any]] = {
            run.key: {"name": str(run), "epochs": run.epochs} | about for run in runs
        }

    def __enter__(self) -> "Announced":
        super().__enter__()
        with contextlib.suppress(OSError):  # to look on is no reason to stop
            self.file.parent.mkdir(exist_ok=True)
            files.remove_stale_partials(self.file.parent)
            for _, path, alive in _sweeps(self.file.parent):
                if not alive:
                    _remove(path)
            self._lock.acquire()
        self._write()
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()
        _remove(self.file)
        super().__exit__(*error)

    def __call__(self, run: Run, epochs: int, loss: float | None = None) -> None:
        super().__call__(run, epochs, loss)
        entry = self._runs[run.key]
        if entry["since"] is None or epochs < (entry["epochs_done"] or 0):  # it begins, or again
            entry |= {"since": time.time(), "first": epochs}
        entry |= {"epochs_done": epochs, "loss": loss}
        if time.monotonic() > self._next_write:
            self._write()

    def _write(self) -> None:
        began = time.monotonic()
        body = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "runs": self._runs})
        with contextlib.suppress(OSError):  # to look on is no reason to stop
            files.write_atomically(self.file, body.encode())
        ended = time.monotonic()
        self._next_write = ended + max(_EVERY, 20 * (ended - began))


def report(store: RunStore) -> str:
    """What is finished, diverged and interrupted in a store, and of each sweep what runs, with its
    time left, and what waits."""
    counts = Counter(record["status"] for record in store.records())
    paused = {path.name.split(".")[0] for path in store.path.glob("checkpoints/*.newest.pt")}
    lines: list[str] = []
    busy: set[str] = set()
    for sweep, _, alive in _sweeps(store.path / "sweeps"):
        if alive:
            states = {key: _state(entry) for key, entry in sweep["runs"].items()}
            busy |= {key for key, state in states.items() if state == "running"}
            lines += _described(sweep, states)
    paused = {name for name in paused if name.rpartition("-")[0] not in busy}
    head = f"{store.path}: {counts['finished']} finished, {counts['diverged']} diverged"
    head += f", {len(paused)} interrupted (a sweep goes on with them)" if paused else ""
    return "\n".join([head, *(lines or ["no sweep is running"])])


def _described(sweep: dict, states: dict[str, str]) -> Iterator[str]:
    number = Counter(states.values())
    runs = sweep["runs"].values()
    left = sum(entry["epochs"] - (entry["epochs_done"] or 0) for entry in runs)
    begun = [entry for entry in runs if entry["since"]]
    made = sum(entry["epochs_done"] - entry["first"] for entry in begun)
    since = min((entry["since"] for entry in begun), default=time.time())
    yield (
        f"sweep of {len(runs)} runs on {sweep['host']}, process {sweep['pid']}: "
        f"{number['done']} done, {number['running']} running, {number['waiting']} waiting; "
        f"{_duration(made, left, since)}"
    )
    for key, entry in sweep["runs"].items():
        if states[key] == "running":
            done, loss = entry["epochs_done"], entry["loss"]
            time_left = _duration(done - entry["first"], entry["epochs"] - done, entry["since"])
            yield (
                f"  {entry['name']}: epoch {done} of {entry['epochs']}, "
                f"{'no loss yet' if loss is None else f'loss {loss:.4g}'}, {time_left}"
            )


def _state(entry: dict[str, Any]) -> str:
    if entry["since"] is None:
        return "waiting"
    return "done" if entry["epochs_done"] == entry["epochs"] else "running"


def _duration(made: int, left: int, since: float) -> str:
    """The time left, if the epochs that are left take as long as those that were made."""
    if made <= 0:
        return "time left unknown"
    return f"{spoken((time.time() - since) / made * left)} left"


def _sweeps(folder: Any) -> Iterator[tuple[dict, Any, bool]]:
    """Each sweep's file, read, its path, and whether its process lives. On a disk without locks
    the number of the process tells, and another host's sweep counts as alive."""
    for path in sorted(folder.glob("[!.]*.json")):
        try:
            sweep = json.loads(path.read_bytes())
            list(_described(sweep, {key: _state(entry) for key, entry in sweep["runs"].items()}))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # it has just ended, or is none of ours
        here = sweep["host"] == socket.gethostname()
        alive = not here or files.is_alive(sweep["pid"])
        with contextlib.suppress(OSError):  # of who may look, but not write
            alive = _is_held(path.with_suffix(".lock")) if files.has_locks(folder) else alive
        yield sweep, path, alive


def _is_held(path: Any) -> bool:
    lock = files.lock(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return True
    lock.release()
    return False


def _remove(path: Any) -> None:
    for item in (path, path.with_suffix(".lock")):
        with contextlib.suppress(OSError):
            item.unlink(missing_ok=True)
