"""Train what has no result yet, and give results and artefacts of runs."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from hardtrain import checks
from hardtrain.errors import DivergedError, ParameterError
from hardtrain.runs import subsets
from hardtrain.runs.engines import ENGINES, ended_by_sigterm, stored_row
from hardtrain.runs.progress import Progress
from hardtrain.runs.results import committed_results, result_frame, result_row
from hardtrain.runs.run import Run
from hardtrain.runs.store import RunStore
from hardtrain.runs.train import (
    build,
    fingerprint_at_hand,
    forget_data,
    keeping,
    load_data,
    training_set,
)
from hardtrain.training import randomness


def _distinct(runs: Iterable[Run]) -> list[Run]:
    """One run for each key, which keeps what any of its duplicates keeps."""
    distinct: dict[str, Run] = {}
    for run in runs:
        distinct[run.key] = keeping(distinct.get(run.key, run), run.keep)
    return list(distinct.values())


def run_missing(
    runs: Iterable[Run],
    store: RunStore | None = None,
    *,
    engine: str = "local",
    use_committed: bool = True,
) -> pd.DataFrame:
    """Train the runs that have no result yet; give one row per run, in the order of ``runs``.

    A finished run is found by its key: first, if ``use_committed``, in the ``results.csv`` files
    of the figures folder, then in ``store``. Where the data is at hand its fingerprint must
    agree too. A run that diverges is a finished run without metrics (``status`` "diverged").

    Args:
        runs: at least one; duplicates are trained once and get a row each.
        store: default ``RunStore()``.
        engine: ``"local"``, in this process, one after the other.
        use_committed: whether results that came with the repository count as finished.

    Returns:
        Columns: ``key``, ``fingerprint``, ``source`` ("store" or the folder of the
        ``results.csv``), ``status`` ("finished" or "diverged"), the fields of ``Run``, and the
        metrics ``test_error``, ``test_loss``, ``train_loss``, ``per_class_error`` (JSON),
        ``diverged_epoch``, ``diverged_step``.

    Raises:
        ParameterError, DataError, StoreError: before anything is trained.
    """
    runs = list(runs)
    if not runs:
        raise ParameterError("runs is empty; give at least one Run")
    checks.choice("engine", engine, ENGINES)
    forget_data()
    store = RunStore() if store is None else store
    committed = committed_results() if use_committed else {}
    rows: dict[str, Any] = {}
    missing: list[Run] = []
    for run in _distinct(runs):
        row = _committed_row(run, committed) or stored_row(run, store)
        if row is None:
            missing.append(run)
        else:
            rows[run.key] = row
    if missing:
        for run in missing:
            load_data(run)
        for run in {dataclasses.replace(run, seed=0): run for run in missing}.values():
            train, test, _ = load_data(run)
            with randomness.isolated_randomness(0, torch.device("cpu")):
                build(run, training_set(run, train), test)
        store.open()
        with Progress(missing) as progress, ended_by_sigterm():
            ENGINES[engine](missing, store, progress)
        rows |= {run.key: stored_row(run, store) for run in missing}
    return result_frame([_columns(run) | rows[run.key] for run in runs])


def load_artefact(run: Run, name: str, store: RunStore | None = None) -> dict[str, np.ndarray]:
    """Arrays that a run stored under ``name``; trained first (again) if they are missing.

    Raises:
        ParameterError: the run does not declare the artefact in ``keep``.
        DivergedError: the run diverged, so there is none.
    """
    store = RunStore() if store is None else store
    (arrays,) = load_artefacts([run], name, store)
    if arrays is None:
        found = _record(run, store)["metrics"]
        epoch, step = found["diverged_epoch"], found["diverged_step"]
        raise DivergedError(f"{run} diverged, so it has no {name!r}", epoch=epoch, step=step)
    return arrays


def load_artefacts(
    runs: Sequence[Run], name: str, store: RunStore | None = None
) -> list[dict[str, np.ndarray] | None]:
    """As `load_artefact` for each of ``runs``; ``None`` for one that diverged."""
    for run in runs:
        if name not in run.keep:
            raise ParameterError(f"{run} keeps {list(run.keep)}, not {name!r}; add it to keep")
    store = RunStore() if store is None else store
    run_missing(runs, store, use_committed=False)
    return [store.load_artefact(_record(run, store), name) for run in runs]


def _record(run: Run, store: RunStore) -> Any:
    """Of a run that the store holds."""
    return store.load(run.key, fingerprint_at_hand(run.dataset, run.data_root))


def _committed_row(run: Run, committed: Mapping[str, dict]) -> dict | None:
    row = committed.get(run.key)
    if row is None:
        return None
    if fingerprint_at_hand(run.dataset, run.data_root) not in (None, row["fingerprint"]):
        return None
    return result_row(row, row["source"])


def _columns(run: Run) -> dict:
    """A run's fields as cells of a table: lists and mappings as JSON text, a subset, which can
    be long, by its hash."""
    fields = run.as_dict() | {"subset": subsets.name(run.subset)}
    return {
        name: json.dumps(value) if isinstance(value, (list, dict)) else value
        for name, value in fields.items()
    }
