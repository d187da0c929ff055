"""Results as tables: rows of runs, their histories and timings, and the CSV files of a figure
folder, from which every figure can be drawn again."""

import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from hardtrain.errors import RecordError
from hardtrain.files import project_root, remove_stale_partials, write_atomically
from hardtrain.runs import subsets
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
_LATER = {"evaluate_last": 0, "validation_size": 0}


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
    return _per_run(results, store, "history")


def load_timings(results: pd.DataFrame, store: RunStore | None = None) -> pd.DataFrame:
    """Seconds, device and versions of every run in ``results``."""
    return _per_run(results, store, "timings")


def write_results(
    results: pd.DataFrame, store: RunStore | None, out_dir: str | os.PathLike
) -> None:
    """Write ``results.csv``, ``history.csv`` (what the seeds determine) and ``timings.csv``.

    Rows of other runs that stand in ``out_dir`` already are kept, behind the given ones, so that
    a partial sweep never erases another's results.
    """
    unique = results.drop_duplicates("key")
    tables = {
        "results.csv": unique.drop(columns=["source", *NOT_IN_KEY]),
        "history.csv": load_history(unique, store),
        "timings.csv": load_timings(unique, store),
    }
    remove_stale_partials(Path(out_dir))
    for name, table in tables.items():
        path = Path(out_dir) / name
        if path.exists():
            old = read_csv(path)
            old = old[~old["key"].isin(unique["key"])]
            if len(old):
                table = pd.concat([table, old.sort_values("key", kind="stable")])
                for field in _LATER.keys() & set(table):
                    value = _LATER[field]
                    table[field] = table[field].fillna(value).astype(type(value))
        write_atomically(path, table.to_csv(index=False, lineterminator="\n").encode())


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV of ours: numbers to the last bit, whatever pandas' own parser rounds to."""
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    for name in frame.columns.difference(["key", "fingerprint", "dataset"]):
        for number in (int, lambda text: float(text or "nan")):
            try:
                frame[name] = [number(text) for text in frame[name]]
                break
            except ValueError:
                continue
    return frame


def committed_folder() -> Path:
    """Where results that came with the repository stand: ``$HARDTRAIN_COMMITTED``, else its
    ``figures``."""
    return Path(os.environ.get("HARDTRAIN_COMMITTED") or project_root() / "figures")


def committed_results() -> dict[str, dict]:
    """Rows of every ``results.csv`` below `committed_folder` by key, each with its folder as
    ``source``."""
    rows: dict[str, dict] = {}
    for path in sorted(committed_folder().glob("*/*/results.csv")):
        for row in read_csv(path).to_dict("records"):
            rows.setdefault(row["key"], row | {"source": str(path.parent)})
    return rows


def _per_run(results: pd.DataFrame, store: RunStore | None, table: str) -> pd.DataFrame:
    """The runs' rows of one table, of their records or of the folders that they were found in."""
    store = store or RunStore()
    unique = results.drop_duplicates("key")
    committed: dict[str, dict[str, list[dict]]] = {}
    for source in set(unique["source"]) - {"store"}:
        by_key = committed[source] = defaultdict(list)
        for row in read_csv(Path(source) / f"{table}.csv").to_dict("records"):
            by_key[row["key"]].append(row)
    rows: list[dict] = []
    for run in unique.itertuples():
        if run.source != "store":
            part = committed[run.source].get(run.key, [])
        elif record := store.load(run.key, run.fingerprint):
            listed = record[table] if isinstance(record[table], list) else [record[table]]
            part = [{"key": run.key, **row} for row in listed]
        else:
            raise RecordError(f"{store} holds no record of run {run.key}")
        # a column comes with the first run that has a value in it
        names = [name for name in dict.fromkeys(chain(*part)) if not _all_missing(name, part)]
        rows += ({name: row.get(name) for name in names} for row in part)
    return pd.DataFrame(rows) if rows else pd.DataFrame({"key": []})


def _all_missing(name: str, rows: list[dict]) -> bool:
    return all(row.get(name) is None or row[name] != row[name] for row in rows)
