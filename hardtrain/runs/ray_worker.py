"""What runs elsewhere on a Ray cluster: a run's task."""

import contextlib
import io
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hardtrain.errors import HardtrainError, RecordError
from hardtrain.runs.run import Run
from hardtrain.runs.store import RunStore
from hardtrain.runs.train import train_run

NOTE_SECONDS = 0.5  # between two notes of a run: the driver looks no more often


class _WorkersStore(RunStore):
    """The store on a disk that the worker shares; records are the driver's to write."""

    def save(self, record: dict) -> None:
        """The driver's."""

    def remove_checkpoints(self, key: str, fingerprint: str) -> None:
        """The driver's."""


class _DistantStore(_WorkersStore):
    """The store on the driver's disk, through its desk."""

    def __init__(self, desk: Any, checkpoint_seconds: float):
        super().__init__(os.devnull, checkpoint_seconds=checkpoint_seconds)
        self.desk = desk

    def _ask(self, method: str, *arguments: Any) -> Any:
        import ray  # in a worker it is there

        return ray.get(self.desk.ask.remote(method, *arguments))

    def load(
        self, key: str, fingerprint: str | None, described: Mapping | None = None
    ) -> dict | None:
        return self._ask("load", key, fingerprint, described)

    def load_checkpoint(self, key: str, fingerprint: str) -> dict | None:
        return self._ask("load_checkpoint", key, fingerprint)

    def save_checkpoint(self, key: str, fingerprint: str, state: dict) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)  # the driver may have no GPU to take tensors to
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True, map_location="cpu")
        self._ask("save_checkpoint", key, fingerprint, state)

    def load_artefact(self, record: dict, name: str) -> Any:
        return self._ask("load_artefact", record, name)

    def save_artefact(self, key: str, fingerprint: str, name: str, arrays: Mapping) -> dict:
        return self._ask("save_artefact", key, fingerprint, name, dict(arrays))


def warm() -> None:
    """In a worker: nothing, for which this module, and torch, have to be imported."""


def settings() -> dict[str, str]:
    """What the driver's environment says to a training, for nodes whose own says nothing of it."""
    names = ("HARDTRAIN_DATA", "HARDTRAIN_DEVICE", "HARDTRAIN_REPLAY")
    return {name: os.environ[name] for name in names if name in os.environ}


def train_task(
    fields: dict,
    key: str,
    place: tuple[Path, Path, float, int],
    environment: Mapping[str, str],
    desk: Any,
) -> Any:
    """In a worker: the record of a run, or the error that it ends in."""
    folder, probe, pause, threads = place
    torch.set_num_threads(threads)
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    with contextlib.suppress(OSError):  # a path in the run may be relative to where the driver is
        os.chdir(folder)
    host, shared = socket.gethostname(), probe.exists()
    try:
        run = Run(**fields)
        if run.key != key:
            raise RecordError(f"{run}: {host} has another version of hardtrain, or of the method")
        store: RunStore = _DistantStore(desk, pause)
        if shared:
            store = _WorkersStore(probe.parents[1], checkpoint_seconds=pause)
        desk.note.remote(key, 0, None, host, shared)
        told = [time.monotonic()]

        def note(run: Run, epochs: int, loss: float | None = None) -> None:
            if time.monotonic() - told[0] >= NOTE_SECONDS:
                told[0] = time.monotonic()
                desk.note.remote(key, epochs, loss, host, shared)

        return train_run(run, store, note)
    except (torch.OutOfMemoryError, HardtrainError) as error:
        return error.with_traceback(None)
    except getattr(torch, "AcceleratorError", ()) as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)  # its device is lost to this process: the driver hands the run to another
