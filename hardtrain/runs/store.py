"""The run store: records, checkpoints and artefacts, one file each, never torn."""

import contextlib
import functools
import io
import json
import math
import os
import pickle
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hardtrain import checks, files
from hardtrain.errors import ParameterError, RecordError
from hardtrain.files import sha256, store_errors

SCHEMA = 1
STATES = ("finished", "diverged")
_PLAIN = (bool, int, float, str, bytes)  # and None, tensors, lists, tuples, dictionaries


class RunStore:
    """Where finished and unfinished runs live.

    Every file is written whole or not at all and carries a SHA-256 of its content. A file that
    fails its check is set aside in ``quarantine/`` with a warning and made again.

    Args:
        path: a folder; default ``$HARDTRAIN_RUNS``, else ``.runs`` at the repository's root.
            It is created when the first run is trained.
        checkpoint_seconds: an epoch's end writes a checkpoint if the last one is at least this
            old, so that short epochs do not spend their time on the disk, and 19 times as old as
            writing it took; 0: every epoch's end does.

    Files: ``records/ID.json``, ``checkpoints/ID.{newest,previous}.pt``,
    ``artefacts/ID.NAME.npz``, ``locks/ID.lock``, where ID is the run's key and the first digits
    of its data's fingerprint.

    Example:
        >>> import tempfile
        >>> RunStore(tempfile.mkdtemp()).load("3f9a2c", "d41d8c") is None
        True
    """

    def __init__(self, path: str | os.PathLike | None = None, *, checkpoint_seconds: float = 5.0):
        given = path or os.environ.get("HARDTRAIN_RUNS") or files.project_root() / ".runs"
        self.path = files.user_path("path of the run store", given)
        self.checkpoint_seconds = checks.number("checkpoint_seconds", checkpoint_seconds, low=0)

    def __repr__(self) -> str:
        return f"RunStore({str(self.path)!r})"

    # --- records -----------------------------------------------------------------------------

    def load(
        self, key: str, fingerprint: str | None, described: Mapping | None = None
    ) -> dict | None:
        """The record of a finished run, or ``None``.

        ``fingerprint=None`` (the data is not at hand) takes the one record with this key. Given
        what a run is ``described`` as, a record of another or with missing parts is set aside.

        Raises:
            RecordError: the record was written by a newer hardtrain, or several records of
                different data answer to ``key`` and none can be preferred.
        """
        if fingerprint is None:
            folder = self.path / "records"
            with store_errors(f"read {folder}"):
                # a listing may be older than the last record; then a new one is made, once a second
                changed = folder.stat().st_mtime_ns if folder.is_dir() else 0
                listed = _listing(folder, changed).get(key)
                found = listed or _listing(folder, changed, int(time.monotonic())).get(key, [])
            if len(found) > 1:
                raise RecordError(
                    f"{len(found)} records of different data answer to run {key}; "
                    "give the data, so that its fingerprint can choose"
                )
            return self._read_record(found[0], key, described) if found else None
        path = self._file("records", key, fingerprint, "json")
        record = self._read_record(path, key, described)
        return record if record and record["fingerprint"] == fingerprint else None

    def save(self, record: dict) -> None:
        """Write a finished run's record; floats must be finite or ``None``."""
        path = self._file("records", record["key"], record["fingerprint"], "json")
        body = {"schema": SCHEMA, **record}
        body["sha256"] = sha256(_canonical(body))
        files.write_atomically(path, json.dumps(body, indent=1, allow_nan=False).encode())

    def records(self) -> Iterator[dict]:
        """All intact records; what is damaged is set aside."""
        for path in sorted(self.path.glob("records/[!.]*.json")):
            if record := self._read_record(path, path.stem.rpartition("-")[0]):
                yield record

    def _read_record(self, path: Path, key: str, described: Mapping | None = None) -> dict | None:
        record = self._read(path, partial(parse_record, key, described=described))
        if record and record["schema"] > SCHEMA:
            raise RecordError(
                f"{path} was written by a newer hardtrain (schema {record['schema']})"
            )
        return record

    # --- what all files have in common ---------------------------------------------------------

    def _file(self, kind: str, key: str, fingerprint: str, ending: str) -> Path:
        return self.path / kind / f"{key}-{fingerprint[:8]}.{ending}"

    def _read(self, path: Path, parse: Callable[[bytes], Any]) -> Any:
        """What ``parse`` makes of a file; ``None`` if there is none, or none that it can read:
        such a file is set aside."""
        with store_errors(f"read {path}"):
            try:
                content = path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
        try:
            return parse(content)
        except pickle.UnpicklingError:
            why = "holds more than tensors and plain values"
        except Exception as error:  # whatever json and torch make of any bytes
            if isinstance(error, MemoryError) or "allocate memory" in str(error):
                raise  # the file is not to blame
            why = "is torn, edited or of another run or version"
        self._set_aside(path, content, why)
        return None

    def _set_aside(self, path: Path, content: bytes, why: str) -> None:
        quarantine = self.path / "quarantine"
        with store_errors(f"set {path} aside, which {why}"):
            quarantine.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another process was first
                os.replace(path, quarantine / f"{path.stem}.{sha256(content)[:8]}{path.suffix}")
        warnings.warn(f"{path} {why}; set aside in {quarantine}, made again", stacklevel=5)

    # --- one writer per run --------------------------------------------------------------------

    def open(self) -> None:
        """Make the folders and see that they can be written, before anything is trained.

        Raises:
            StoreError: no permission or no space.
        """
        probe = self.path / "locks" / f"writable.{os.getpid()}"
        with store_errors(f"make {self.path}"):
            for name in ("records", "checkpoints", "artefacts", "locks"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
                files.remove_stale_partials(self.path / name)
            files.write_atomically(probe, b"")
            probe.unlink(missing_ok=True)
            self._remove_old_checkpoints()
            files.has_locks(self.path / "locks")  # who cannot lock here hears so now

    def _remove_old_checkpoints(self) -> None:
        """Those that are older than their run's record, whose writer was killed before it could
        remove them. A newer one is of a run that is trained again for an artefact."""
        for path in self.path.glob("checkpoints/*.pt"):
            with contextlib.suppress(FileNotFoundError):  # no record, or another process was first
                record = self.path / "records" / f"{path.name.partition('.')[0]}.json"
                if path.stat().st_mtime <= record.stat().st_mtime:
                    path.unlink()

    def lock(self, key: str, fingerprint: str) -> Any:
        """The lock of one run: a kernel lock, so the death of its holder frees it."""
        return files.lock(self._file("locks", key, fingerprint, "lock"))

    # --- checkpoints ---------------------------------------------------------------------------

    def save_checkpoint(self, key: str, fingerprint: str, state: dict) -> None:
        """Write a checkpoint and keep the one before it; ``state["epoch"]`` tells them apart.

        Raises:
            ParameterError: a part of ``state`` is no tensor and no plain value, and so could not
                be loaded again.
        """
        _require_plain("state", state)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        body = buffer.getvalue()
        header = json.dumps(_header(key, body)).encode()
        newest, previous = self._checkpoints(key, fingerprint)
        with store_errors(f"write {previous}"), contextlib.suppress(FileNotFoundError):
            os.replace(newest, previous)
        files.write_atomically(newest, header + b"\n" + body)

    def load_checkpoint(self, key: str, fingerprint: str) -> dict | None:
        """The newest intact checkpoint, or ``None``."""
        for path in self._checkpoints(key, fingerprint):
            if (state := self._read(path, partial(_checkpoint, key))) is not None:
                return state
        return None

    def remove_checkpoints(self, key: str, fingerprint: str) -> None:
        for path in self._checkpoints(key, fingerprint):
            with store_errors(f"remove {path}"):
                path.unlink(missing_ok=True)

    def _checkpoints(self, key: str, fingerprint: str) -> tuple[Path, Path]:
        place = partial(self._file, "checkpoints", key, fingerprint)
        return place("newest.pt"), place("previous.pt")

    # --- artefacts -----------------------------------------------------------------------------

    def save_artefact(self, key: str, fingerprint: str, name: str, arrays: Mapping) -> dict:
        """Write arrays as ``.npz``; the entry (file, sha256) that belongs into the record."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # compressed, weights would be 7 % smaller and far slower
        # no colon in a file's name: Windows takes none
        path = self._file("artefacts", key, fingerprint, f"{name.replace(':', '-')}.npz")
        files.write_atomically(path, buffer.getvalue())
        return {"file": path.name, "sha256": sha256(buffer.getvalue())}

    def load_artefact(self, record: dict, name: str) -> dict[str, np.ndarray] | None:
        """The arrays of a run's artefact; ``None`` if absent or damaged."""
        return self._read_artefact(record, name, _arrays)

    def has_artefact(self, record: dict, name: str) -> bool:
        """Whether `load_artefact` would give arrays, without unpacking them."""
        return self._read_artefact(record, name, len) is not None

    def _read_artefact(self, record: dict, name: str, parse: Callable[[bytes], Any]) -> Any:
        entry = record.get("artefacts", {}).get(name)
        if entry is None:
            return None

        def checked(content: bytes) -> Any:
            _require(sha256(content) == entry["sha256"])
            return parse(content)

        return self._read(self.path / "artefacts" / entry["file"], checked)


@functools.lru_cache(maxsize=4)
def _listing(folder: Path, changed: int, second: int = 0) -> dict[str, list[Path]]:
    """The records in a folder that ``changed`` then, by key: one listing serves many look-ups, in
    one ``second``."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("[!.]*-*.json")):
        found.setdefault(path.stem.rpartition("-")[0], []).append(path)
    return found


def _require(intact: bool) -> None:
    if not intact:
        raise ValueError("not what was written")


def parse_record(key: str, content: bytes, described: Mapping | None = None) -> dict:
    """The record in a file's content; some error if it is not one of ``key``, as written."""
    record = json.loads(content)
    _require(record.pop("sha256") == sha256(_canonical(record)) and record["key"] == key)
    _require(type(record["schema"]) is int and record["schema"] > 0)
    _require(type(record["fingerprint"]) is str)
    if record["schema"] <= SCHEMA:  # a newer one may have other parts
        _require_parts(record)
        _require(described is None or _is_of(described, record))
    return record


def _require_parts(record: dict) -> None:
    """What every record has, or may have, of the right types: before anything is done with it."""
    for name in ("metrics", "run", "timings", "artefacts"):
        _require(isinstance(record.get(name, {}), dict))
    _require("metrics" in record and record.get("status", "finished") in STATES)
    history, metrics = record.get("history", []), dict(record["metrics"])
    _require(type(metrics.pop("per_class_error", "")) is str)
    _require(isinstance(history, list) and all(isinstance(row, dict) for row in history))
    values = [value for row in (metrics, *history) for value in row.values()]
    _require_finite(value for value in values if value is not None)
    _require_finite(value for value in record.get("timings", {}).values() if type(value) is not str)
    for entry in record.get("artefacts", {}).values():
        name, digest = entry["file"], entry["sha256"]
        # a name in the store's own folder: neither "../x" nor "C:x"
        _require(bool(re.fullmatch(r"[\w-][\w.-]{,200}", name)) and isinstance(digest, str))


def _require_finite(values: Iterable[Any]) -> None:
    values = list(values)
    _require({*map(type, values)} <= {int, float} and all(map(math.isfinite, values)))


def _is_of(described: Mapping, record: dict) -> bool:
    """Whether a record has all that a table needs, and is of the run that is ``described``: fields
    and options that one of them lacks came or went with a version."""
    if not {"status", "history", "run", "timings"} <= record.keys():
        return False
    names = {"test_loss"} if record["status"] == "finished" else {"diverged_epoch", "diverged_step"}
    if not (
        names <= record["metrics"].keys() and {"device", "seconds"} <= record["timings"].keys()
    ):
        return False
    if described == record["run"]:  # as nearly always
        return True
    ours, kept = ({**run, **dict(run.get("options", {}))} for run in (described, record["run"]))
    both = ours.keys() & kept.keys() - {"options", "keep", "device", "data_root"}
    return {"dataset", "network", "method"} <= both and all(ours[n] == kept[n] for n in both)


def _require_plain(name: str, value: object) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _require_plain(f"{name}[{key!r}]", item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _require_plain(f"{name}[{index}]", item)
    elif not isinstance(value, Tensor) and type(value) not in (*_PLAIN, type(None)):
        raise ParameterError(
            f"{name} is {type(value).__module__}.{type(value).__name__}; a checkpoint holds "
            "tensors, numbers, texts, lists and dictionaries"
        )


def _checkpoint(key: str, content: bytes) -> dict:
    header, _, body = content.partition(b"\n")
    # another schema too: a checkpoint that is not understood costs only its epochs
    _require(json.loads(header) == _header(key, body))
    return torch.load(io.BytesIO(body), weights_only=True, map_location="cpu")


def _header(key: str, body: bytes) -> dict:
    return {"schema": SCHEMA, "key": key, "sha256": sha256(body)}


def _arrays(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


def _canonical(record: dict) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
