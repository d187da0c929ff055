"""Figure folders: ``results.csv``, ``history.csv``, ``timings.csv``, and whether what stands in
them is what was written.

Each row of ``results.csv`` ends in a ``digest`` of its cells and of its run's rows in
``history.csv``; each row of ``timings.csv`` in one of its cells and of that digest. A row thus
vouches for itself, also where the files of several machines were merged line by line. Beside them
``checksums.json`` holds the SHA-256 of every file of the folder and the number of runs, so that an
intact folder is read without a look at each row, and a row that is missing is noticed.
"""

import contextlib
import csv
import functools
import io
import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from hardtrain import files
from hardtrain.errors import RecordError, StoreError
from hardtrain.files import project_root, sha256, store_errors

CHECKSUMS = "checksums.json"
CHANGES = "+changes"  # ends a folder of runs that are not the profile's own: never committed
TABLES = ("history.csv", "timings.csv", "results.csv")
# may look like numbers
_TEXTS = {"key", "fingerprint", "dataset", "digest"}
_TEXTS |= {"torch", "numpy", "torchvision", "timm", "python"}


class Entry(NamedTuple):
    """What a folder holds of one run: cells by column, of the history a row an evaluation."""

    row: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    timings: Mapping[str, Any]


# --- one file --------------------------------------------------------------------------------


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV of ours: numbers to the last bit, whatever pandas' own parser rounds to.

    Raises:
        RecordError: it is no table. StoreError: it is not there.
    """
    with store_errors(f"read {path}"):
        header, rows, num_bad = _parsed(path, path.read_bytes())
    if num_bad:
        raise RecordError(f"{path}: {num_bad} rows have more or fewer cells than the header")
    frame = pd.DataFrame(rows, columns=header, dtype=str)
    for name in frame.columns.difference([*_TEXTS]):
        for number in (int, lambda text: float(text or "nan")):
            with contextlib.suppress(ValueError):
                frame[name] = [number(text) for text in frame[name]]
                break
    return frame


def _parsed(path: Path, content: bytes) -> tuple[list[str], list[dict[str, str]], int]:
    """The header, the rows as texts, and how many rows have another number of cells."""
    try:
        header, *rows = csv.reader(io.StringIO(content.decode(), newline=""), strict=True)
    except (ValueError, csv.Error) as error:
        raise RecordError(f"{path} is no table: {error}") from error
    if len(set(header)) < len(header):
        raise RecordError(f"{path} is no table: a column occurs twice")
    whole = [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
    return header, whole, len(rows) - len(whole)


def typed(row: Mapping[str, str]) -> dict[str, Any]:
    """The cells of a row that are not empty, numbers as numbers."""
    return {name: _value(name, text) for name, text in row.items() if text}


def _value(name: str, text: str) -> Any:
    for number in (int, float) if name not in _TEXTS else ():
        try:
            return number(text)
        except ValueError:
            continue
    return text


# --- digests ---------------------------------------------------------------------------------


def digest(row: Mapping[str, Any], history: Iterable[Mapping[str, Any]]) -> str:
    """Of a run's numbers: the same however a table writes or pads them."""
    return sha256("\n".join(map(_line, (row, *history))).encode(errors="replace"))[:16]


def _line(cells: Mapping[str, Any]) -> str:
    texts = ((name, _text(name, value)) for name, value in cells.items() if name != "digest")
    return "\t".join(sorted(f"{name}={text!r}" for name, text in texts if text))


def _text(name: str, value: Any) -> str:
    """A cell without its type: 5, 5.0 and "5" are alike, and so are nothing, NaN and ""."""
    if isinstance(value, str):
        value = _value(name, value)
    elif hasattr(value, "item"):
        value = value.item()
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else repr(value)


# --- a folder --------------------------------------------------------------------------------


def committed_folder() -> Path:
    """Where results that came with the repository stand: ``$HARDTRAIN_COMMITTED``, else its
    ``figures``."""
    given = os.environ.get("HARDTRAIN_COMMITTED")
    return files.user_path("HARDTRAIN_COMMITTED", given) if given else project_root() / "figures"


def committed_files(name: str) -> Iterator[Path]:
    """The files of this name in the committed figure folders."""
    with store_errors(f"read {committed_folder()}"):
        found = sorted(committed_folder().glob(f"*/*/{name}"))
    return (path for path in found if not path.parent.name.endswith(CHANGES))


def committed_results() -> dict[str, list[dict]]:
    """Rows of every committed ``results.csv`` by key, each with its folder as ``source``."""
    rows: dict[str, list[dict]] = {}
    for path in committed_files("results.csv"):
        for entry in read_folder(path.parent, numbers_only=True):
            row = typed(entry.row) | {"source": str(path.parent)}
            rows.setdefault(row["key"], []).append(row)
    return rows


def read_folder(folder: Path, *, numbers_only: bool = False) -> Sequence[Entry]:
    """The runs whose rows are what was written, in the order of ``results.csv``; a warning tells
    of others. None of a folder that is not ours.

    A folder of an older version, without digests, is taken as it is. With ``numbers_only`` an
    intact folder's histories and timings are not looked at.
    """
    try:
        contents = [_content(folder / name) for name in (*TABLES, CHECKSUMS)]
        entries, fault = _checked(folder, numbers_only, *contents)
    except (RecordError, StoreError) as error:
        entries, fault = (), str(error)
    if fault:
        warnings.warn(f"not used: {fault}", stacklevel=3)
    return entries


@functools.lru_cache(maxsize=4)  # of a folder just written, which is read again at once
def _checked(
    folder: Path, numbers_only: bool, *contents: bytes | None
) -> tuple[Sequence[Entry], str]:
    """The runs in the files with these ``contents``, and what is wrong with others."""
    sums, tables = _checksums(contents[-1]), dict(zip(TABLES, contents, strict=False))
    ours = sums is not None and "results.csv" in sums["files"]
    try:
        header, rows, num_bad = _parsed(folder / "results.csv", tables["results.csv"] or b"")
    except RecordError:
        if not ours:  # another program's
            return (), ""
        raise
    if not ours and not {"key", "fingerprint", "status"} <= set(header):
        return (), ""
    wrong = [n for n, c in tables.items() if sums and sha256(c or b"") != sums["files"].get(n)]
    intact = not wrong and (sums is not None or "digest" not in header)
    intact = intact and len({row["key"] for row in rows}) == len(rows)
    if intact and numbers_only:
        return [Entry(row, (), {}) for row in rows], ""
    histories, timings = (
        _grouped(_parsed(folder / name, tables[name] or b"key")[1])
        for name in ("history.csv", "timings.csv")
    )
    entries = []
    for row in rows:
        history, times = (table.get(row.get("key", ""), []) for table in (histories, timings))
        whole = [Entry(row, history, times[0] if times else {})]
        entries += whole if intact else _verified(row, history, times)
    expected = max(len(rows) + num_bad, sums["runs"] if sums else 0)
    if lost := expected - len(entries):
        where = ", ".join(sorted(wrong)) or "a row"
        return entries, f"{lost} of {expected} runs in {folder}: {where} missing, torn or edited"
    return entries, ""


def _verified(
    row: Mapping[str, str], history: list[dict[str, str]], timings: list[dict[str, str]]
) -> list[Entry]:
    """The run with the history and the timings that its digests vouch for, if there are such; of
    runs with one key, trained in several environments, each has its own."""
    for part in (history, *_blocks(history)):
        for line in timings:
            if digest(row, part) == row.get("digest") and _times(row, line) == line.get("digest"):
                return [Entry(row, part, line)]
    return []


def _content(path: Path) -> bytes | None:
    with store_errors(f"read {path}"):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


def _checksums(content: bytes | None) -> dict | None:
    """What ``checksums.json`` says; of one that is damaged, nothing."""
    if content is None:
        return None
    try:
        sums = json.loads(content)
        if isinstance(sums["files"], dict) and type(sums["runs"]) is int:
            return sums
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    return {"runs": 0, "files": {}}


def _grouped(rows: Iterable[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(row.get("key", ""), []).append(row)
    return groups


def _blocks(rows: list[dict[str, str]]) -> list[list[dict[str, str]]]:
    """The histories of one run's key: one, or one for each environment that it was trained in; a
    new one begins where steps start over."""
    blocks: list[list[dict[str, str]]] = []
    before = math.nan
    for row in rows:
        step = _value("step", row.get("step", ""))
        step = math.nan if isinstance(step, str) else step
        if not step > before:
            blocks.append([])
        blocks[-1].append(row)
        before = step
    return blocks


def _times(row: Mapping[str, Any], timings: Mapping[str, Any]) -> str:
    return digest({"digest of results": row.get("digest", "")} | dict(timings), [])


# --- writing, checking -----------------------------------------------------------------------


def write_folder(folder: Path, entries: Sequence[Entry]) -> None:
    """Write the three tables and their checksums: all, or, if the disk is full, none. ``results``
    comes last, so that after a crash no run stands there without the rest. Call under the lock."""
    rows = [dict(e.row) | {"digest": digest(e.row, e.history)} for e in entries]
    timings = [
        dict(entry.timings) | {"digest": _times(row, entry.timings)}
        for row, entry in zip(rows, entries, strict=True)
    ]
    histories = [line for entry in entries for line in entry.history]
    tables: tuple[Sequence[Mapping[str, Any]], ...] = (histories, timings, rows)  # in this order
    contents = {folder / n: _table(lines) for n, lines in zip(TABLES, tables, strict=True)}
    sums = _checksums(_content(folder / CHECKSUMS)) or {"files": {}}
    written = {path.name: sha256(content) for path, content in contents.items()}
    sealed = _seal(len(rows), sums["files"] | written)
    files.write_together({**contents, folder / CHECKSUMS: sealed})


def _table(rows: Sequence[Mapping[str, Any]]) -> bytes:
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["key"]
    columns.sort(key="digest".__eq__)  # last, whatever columns older rows add
    return pd.DataFrame(rows, columns=columns).to_csv(index=False, lineterminator="\n").encode()


def _seal(num_runs: int, sums: Mapping[str, str]) -> bytes:
    return (json.dumps({"runs": num_runs, "files": dict(sorted(sums.items()))}, indent=1)).encode()


def folder_lock(folder: Path) -> Any:
    """The lock of the one program that writes a folder's tables."""
    return files.lock(folder / ".lock")


def seal_folder(folder: Path, names: Iterable[str]) -> None:
    """Note the checksums of what a notebook has written, and forget what it no longer writes."""
    with folder_lock(folder):
        sums = _checksums(_content(folder / CHECKSUMS)) or {"runs": 0, "files": {}}
        kept = {name: sums["files"][name] for name in TABLES if name in sums["files"]}
        others = set(names) - {*TABLES, CHECKSUMS}
        new = {name: sha256((folder / name).read_bytes()) for name in others}
        files.write_atomically(folder / CHECKSUMS, _seal(sums["runs"], kept | new))


def sealed_content(path: Path) -> bytes:
    """A file of a figure folder, if it is as its notebook wrote it.

    Raises:
        RecordError: it is not.
    """
    content, sums = _content(path), _checksums(_content(path.parent / CHECKSUMS))
    if content is None or not sums or sha256(content) != sums["files"].get(path.name):
        raise RecordError(f"{path} is missing, torn or edited: run make notebooks")
    return content


def damaged(folder: Path) -> list[str]:
    """What in a folder is not as a notebook wrote it, a sentence for each file."""
    content = _content(folder / CHECKSUMS)
    if content is None:
        return [f"{folder} has no {CHECKSUMS}: run make notebooks"]
    sums = _checksums(content) or {"runs": 0, "files": {}}
    expected = sums["files"]
    present = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    found = []
    for name in sorted((present | expected.keys()) - {CHECKSUMS}):
        content = _content(folder / name)
        if name not in expected:
            found.append(f"{folder / name} is none of the files that its notebook wrote")
        elif content is None or sha256(content) != expected[name]:
            found.append(f"{folder / name} is missing, torn or edited")
    if found:
        return found
    there = len(read_folder(folder, numbers_only=True)) if "results.csv" in expected else 0
    wrong = there != sums["runs"]
    return [f"{folder / CHECKSUMS} counts {sums['runs']} runs, not {there}"] if wrong else []
