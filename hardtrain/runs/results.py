"""Results as tables: rows of runs, their histories and timings, and the CSV files of a figure
folder, from which every figure can be drawn again."""

import dataclasses
import json
import os
import warnings
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hardtrain import files
from hardtrain.errors import ParameterError, RecordError, StoreError
from hardtrain.files import store_errors
from hardtrain.runs import committed, subsets
from hardtrain.runs.committed import read_csv as read_csv
from hardtrain.runs.run import NOT_IN_KEY, Run
from hardtrain.runs.store import RunStore

_LEADING = ("key", "fingerprint", "source", "status")
_ALWAYS = (
    "test_error",
    "test_loss",
    "train_loss",
    "per_class_error",
    "diverged_epoch",
    "diverged_step",
)
_WITH_TRAINING_SET = (  # of runs with ``evaluate_train``
    "train_set_error",
    "train_set_loss",
    "train_set_accuracy_by_batch",
    "train_set_half_width_by_batch",
    "test_accuracy_by_batch",
    "test_half_width_by_batch",
)
_WITH_VALIDATION = ("validation_error", "validation_loss")  # of runs with ``validation_size``
METRICS = _ALWAYS + _WITH_TRAINING_SET + _WITH_VALIDATION
# fields of ``Run`` since the first results: columns if they are used
_LATER = {"evaluate_last": 0, "validation_size": 0, "compiled": False}
_ENVIRONMENT = ("device", "threads", "cpu_capability", "torch")  # on what last bits depend


def result_frame(runs: Sequence[Run], found: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """A row for each run: where it was ``found``, by its key, its fields, and its metrics; one
    that it does not have is NaN, or an empty text."""
    rows = []
    for run in runs:
        values = found[run.key]
        leading = {name: values[name] for name in _LEADING}
        rows.append(leading | _cells(run) | {name: values.get(name) for name in METRICS})
    fields = [item.name for item in dataclasses.fields(Run)]
    frame = pd.DataFrame(rows, columns=[*_LEADING, *fields, *METRICS])
    numbers = [name for name in METRICS if name != "per_class_error"]
    frame[numbers] = frame[numbers].astype("float64")
    frame["per_class_error"] = frame["per_class_error"].fillna("")
    if not frame["evaluate_train"].any():
        frame = frame.drop(columns=list(_WITH_TRAINING_SET))
    if not frame["validation_size"].any():
        frame = frame.drop(columns=list(_WITH_VALIDATION))
    return frame.drop(columns=[name for name in _LATER if (frame[name] == _LATER[name]).all()])


def _cells(run: Run) -> dict:
    """A run's fields: lists and mappings as JSON text, a subset, which can be long, by its hash."""
    fields = run.as_dict() | {"subset": subsets.name(run.subset)}
    return {
        name: json.dumps(value) if isinstance(value, (list, dict)) else value
        for name, value in fields.items()
    }


def load_history(results: pd.DataFrame, store: RunStore | None = None) -> pd.DataFrame:
    """The history of every run in ``results``: one row per run and evaluation.

    Columns: ``key``, ``epoch`` (finished ones), ``step``, ``lr``, ``train_loss``, ``objective``,
    ``test_loss``, ``test_error``, and what the method logs.
    """
    return _frame([row for entry in _entries(results, store) for row in entry.history])


def load_timings(results: pd.DataFrame, store: RunStore | None = None) -> pd.DataFrame:
    """Seconds, device and versions of every run in ``results``."""
    return _frame([entry.timings for entry in _entries(results, store)])


def _frame(rows: Sequence[Mapping]) -> pd.DataFrame:
    return pd.DataFrame(rows) if rows else pd.DataFrame({"key": []})


def write_results(
    results: pd.DataFrame,
    store: RunStore | None,
    out_dir: str | os.PathLike,
    *,
    beside: Container[str] | None = None,
) -> None:
    """Write ``results.csv``, ``history.csv`` (what the seeds determine) and ``timings.csv``, and
    their checksums: all of them or none.

    Rows of other runs that stand in ``out_dir`` already are kept, behind the given ones, so that
    a partial sweep never erases another's results; several programs may write one folder. With
    ``beside``, keys of runs, only rows of these are. A line says where a run stood there with
    other numbers.
    """
    folder = files.user_path("out_dir", out_dir)
    new = _entries(results, store)
    given = {entry.row["key"]: _numbers(entry) for entry in new}
    with store_errors(f"make {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    with committed.folder_lock(folder):
        files.remove_stale_partials(folder)
        old = committed.read_folder(folder)
        other = [e for e in old if given.get(e.row["key"]) not in (None, _numbers(e))]
        if other:
            warnings.warn(
                f"{folder}: {len(other)} runs had other numbers here, of another environment or "
                "another version of their method; they are replaced",
                stacklevel=2,
            )
        kept = [e for e in old if e.row["key"] not in given]
        kept = [e for e in kept if beside is None or e.row["key"] in beside]
        kept.sort(key=lambda entry: entry.row["key"])
        committed.write_folder(folder, _alike([*new, *kept]))


def _numbers(entry: committed.Entry) -> str:
    """What tells apart the results of one run, whatever columns their tables have."""
    names = ("fingerprint", "status", *METRICS)
    return committed.digest({name: entry.row.get(name) for name in names}, entry.history)


def _alike(entries: Sequence[committed.Entry]) -> list[committed.Entry]:
    """With a field that came later in all rows, if it is in one."""
    later = {name for entry in entries for name in _LATER.keys() & entry.row.keys()}
    defaults = {name: value for name, value in _LATER.items() if name in later}
    rows = [dict(entry.row) for entry in entries]
    for row in rows:
        row.update({name: value for name, value in defaults.items() if not row.get(name)})
    return [entry._replace(row=row) for entry, row in zip(entries, rows, strict=True)]


def merge_results(folders: Sequence[str | os.PathLike], out_dir: str | os.PathLike) -> int:
    """Add the runs of several figure folders, as of several machines, to what is in ``out_dir``.

    A run whose numbers agree stands there once. One with other numbers elsewhere stands there
    once for each environment; tables show the first and say so (see `environments`).

    Returns:
        How many runs have several results.
    """
    sources = [files.user_path("folders", folder) for folder in folders]
    if bad := [folder for folder in sources if not (folder / "results.csv").is_file()]:
        raise StoreError(f"{bad[0]} has no results.csv")
    if not sources:
        raise ParameterError("folders is empty; give at least one")
    merged: dict[tuple[str, str], committed.Entry] = {}
    out = files.user_path("out_dir", out_dir)
    with committed.folder_lock(out):
        if out not in sources:  # what stands there already stays
            sources.append(out)
        for folder in sources:
            for entry in committed.read_folder(folder):
                merged.setdefault((entry.row["key"], _numbers(entry)), entry)
        committed.write_folder(out, _alike(list(merged.values())))
    return len(merged) - len({key for key, _ in merged})


def environments(results: pd.DataFrame, store: RunStore | None = None) -> str:
    """A note where the runs of ``results`` come from several environments, or have other numbers
    in another; else an empty text."""
    timings = load_timings(results, store).reindex(columns=["key", *_ENVIRONMENT])
    described = timings[list(_ENVIRONMENT)].astype(object).fillna("?").astype(str)
    counts = described.apply(", ".join, axis=1).value_counts() if len(described) else {}
    notes = []
    if len(counts) > 1:
        parts = "; ".join(f"{number} on {name}" for name, number in counts.items())
        notes.append(f"runs of {len(counts)} environments ({', '.join(_ENVIRONMENT)}): {parts}")
    everywhere = committed.committed_results()
    shown = results.drop_duplicates("key").set_index("key")["test_loss"]
    others = [
        key
        for key, loss in shown.items()
        if any(abs(row.get("test_loss", loss) - loss) > 0 for row in everywhere.get(key, ()))
    ]
    elsewhere = {path.name[:20] for path in (store or RunStore()).path.glob("environments/*.json")}
    others += sorted(elsewhere & set(shown.index) - set(others))  # of stores that were merged
    if others:
        notes.append(f"{len(others)} runs have other numbers in another environment")
    return "; ".join(notes)


def _entries(results: pd.DataFrame, store: RunStore | None) -> list[committed.Entry]:
    """Each run once, with the history and the timings of its record, or of the folder in which
    it was found; what a row does not have is left out."""
    unique = results.drop_duplicates("key")
    folders = {
        source: {
            (entry.row["key"], entry.row["fingerprint"]): entry
            for entry in reversed(committed.read_folder(Path(source)))  # of several the first
        }
        for source in set(unique["source"]) - {"store"}
    }
    cells = unique.drop(columns=["source", *NOT_IN_KEY], errors="ignore").to_dict("records")
    store = store or RunStore()
    found = []
    for row, source in zip(cells, unique["source"], strict=True):
        name = key, _ = row["key"], row["fingerprint"]
        if source == "store":
            record = store.load(*name)
            if record is None:
                raise RecordError(f"{store} holds no record of run {key}")
            history, timings = record["history"], record["timings"]
        else:
            entry = folders[source].get(name)
            if entry is None:
                raise RecordError(f"{source} no longer holds run {key}")
            history, timings = map(committed.typed, entry.history), committed.typed(entry.timings)
        lines = [{"key": key} | line for line in (*history, timings)]
        *history, timings = (
            {k: v for k, v in line.items() if v is not None and k != "digest"} for line in lines
        )
        found.append(committed.Entry(row, history, timings))
    return found
