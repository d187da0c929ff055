"""Train what has no result yet, and give results and artefacts of runs."""

import contextlib
import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import pandas as pd
import torch

from hardtrain import checks
from hardtrain.errors import DivergedError, ParameterError, RecordError, SweepError
from hardtrain.runs import halves, run_data, train
from hardtrain.runs.committed import committed_results
from hardtrain.runs.engines import ENGINES, ended_by_sigterm, stored_row
from hardtrain.runs.ray_engine import check_options, train_on_ray
from hardtrain.runs.results import result_frame
from hardtrain.runs.run import Run, keeping
from hardtrain.runs.status import Announced
from hardtrain.runs.store import RunStore
from hardtrain.training import randomness

_ENGINES = ENGINES | {"ray": train_on_ray}
# what building a run does not read, at its defaults
_NOT_BUILT: dict[str, Any] = {"seed": 0} | {
    item.name: item.default
    for item in dataclasses.fields(Run)
    if item.name in ("optimizer", "lr", "momentum", "nesterov", "weight_decay")
    or item.name in ("schedule", "gamma", "milestones", "step_epochs", "warmup_epochs")
}
_asked: ContextVar[list | None] = ContextVar("asked", default=None)  # see `nothing_trained`


def run_missing(
    runs: Iterable[Run],
    store: RunStore | None = None,
    *,
    engine: str = "local",
    use_committed: bool = True,
    train_missing: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Train the runs that have no result yet; give one row per run, in the order of ``runs``.

    A finished run is found by its key: first, if ``use_committed``, in the ``results.csv`` files
    of the figures folder, then in ``store``. Where the data is at hand its fingerprint must
    agree too. A run that diverges is a finished run without metrics (``status`` "diverged").

    Args:
        runs: at least one; duplicates are trained once and get a row each.
        store: default ``RunStore()``.
        engine: ``"local"``, in this process, one after the other; ``"ray"``, many at a time, on
            this machine or a cluster (``pip install 'hardtrain[ray]'``).
        options: of the engine; see `ray_engine.train_on_ray`. ``None`` is its default.
        use_committed: whether results that came with the repository count as finished.
        train_missing: with false nothing is trained, and runs without a result get no row.

    Returns:
        Columns: ``key``, ``fingerprint``, ``source`` ("store" or the folder of the
        ``results.csv``), ``status`` ("finished" or "diverged"), the fields of ``Run``, and the
        metrics ``test_error``, ``test_loss``, ``train_loss``, ``per_class_error`` (JSON),
        ``diverged_epoch``, ``diverged_step``.

    Raises:
        ParameterError, DataError, StoreError: before anything is trained.
        SweepError: when all others are finished, with the runs that failed.
    """
    runs = list(runs) if isinstance(runs, Iterable) else [runs]
    if odd := [run for run in runs if not isinstance(run, Run)]:
        raise ParameterError(f"runs hold {odd[0]!r:.80}, which is no Run")
    if not runs:
        raise ParameterError("runs is empty; give at least one Run")
    if not isinstance(store, RunStore | None):
        raise ParameterError(f"store = {store!r} is no RunStore; write RunStore(path)")
    options = engine_options(engine, options)
    run_data.forget_data()
    store = store or RunStore()
    distinct: dict[str, Run] = {}
    for run in runs:  # one for each key, which keeps what any of its duplicates keeps
        distinct[run.key] = keeping(distinct.get(run.key, run), run.keep)
    committed = committed_results() if use_committed else {}
    rows: dict[str, Any] = {}
    missing: list[Run] = []
    for key, run in distinct.items():
        fingerprint = run_data.fingerprint_at_hand(run.dataset, run.data_root)
        fitting = (
            row for row in committed.get(key, ()) if fingerprint in (None, row["fingerprint"])
        )
        row = next(fitting, None) or stored_row(run, store)
        if row is None:
            missing.append(run)
        else:
            rows[key] = row
    if (asked := _asked.get()) is not None:
        asked += [(run, run.key in rows) for run in distinct.values()]
        if missing:
            raise NotTrained
    if not train_missing:
        runs = [run for run in runs if run.key in rows]
    elif missing:
        if small := _build_each_kind(missing):
            run_missing(small, store, engine=engine, use_committed=False, **options)
        store.open()
        failures: list[tuple[Run, Exception]] = []
        with Announced(missing, store) as progress, ended_by_sigterm():
            try:
                _ENGINES[engine](missing, store, progress, **options)
            except SweepError as error:
                failures = error.failures
            except (KeyboardInterrupt, SystemExit):
                progress.say(
                    "interrupted; finished runs and checkpoints are kept: run again to go on"
                )
                raise
        failed = {run.key for run, _ in failures}
        for run in missing:
            rows[run.key] = stored_row(run, store) if run.key not in failed else None
            if rows[run.key] is None and run.key not in failed:
                gone = "its record is gone, or its data changed, while others were trained"
                failures.append((run, RecordError(gone)))
        if failures:
            raise SweepError(failures, len(missing)) from failures[0][1]
    return result_frame(runs, rows)


def engine_options(engine: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an engine that are not ``None``, checked."""
    on_ray = checks.choice("engine", engine, _ENGINES) == "ray"
    known = inspect.signature(check_options).parameters if on_ray else {}
    options = {name: value for name, value in options.items() if value is not None}
    for name in options:
        checks.choice(f"option of engine {engine!r}", name, known)
    if on_ray:
        check_options(**options)
    return options


def _build_each_kind(runs: Sequence[Run]) -> list[Run]:
    """Refuse what cannot be trained: build the runs, but of those that differ only in the seed and
    in what the optimiser does, one. Gives the small trainings that some need before them."""
    kinds: dict[Run, list[Run]] = {}
    for run in runs:
        run_data.load_data(run)
        kinds.setdefault(dataclasses.replace(run, **_NOT_BUILT), []).append(run)
    small: list[Run] = []
    for run, *others in kinds.values():
        if (held_out := _built(run).held_out) is not None:
            for one in (run, *others):
                held_out = held_out if one is run else _built(one).held_out
                small += halves.small_runs(one, held_out, run_data.load_data(one)[0])
    return small


def _built(run: Run) -> Any:
    data, test, _ = run_data.load_data(run)
    with randomness.isolated_randomness(0, torch.device("cpu")):
        return train.build(run, run_data.training_set(run, data), test)[1]


class NotTrained(Exception):
    """Somebody asked for runs that are missing, where nothing is to be trained."""


@contextlib.contextmanager
def nothing_trained() -> Iterator[list[tuple[Run, bool]]]:
    """Inside, whoever asks for runs of which some are missing gets `NotTrained`. Gives a list to
    which each run that is asked for is added, and whether it is finished."""
    asked: list[tuple[Run, bool]] = []
    token = _asked.set(asked)
    try:
        yield asked
    finally:
        _asked.reset(token)


def load_artefact(run: Run, name: str, store: RunStore | None = None) -> dict[str, np.ndarray]:
    """Arrays that a run stored under ``name``; trained first (again) if they are missing.

    Raises:
        ParameterError: the run does not declare the artefact in ``keep``.
        DivergedError: the run diverged, so there is none.
    """
    (arrays,) = load_artefacts([run], name, store)
    if arrays is None:
        row: Any = stored_row(run, store or RunStore())
        epoch, step = row["diverged_epoch"], row["diverged_step"]
        raise DivergedError(f"{run} diverged, so it has no {name!r}", epoch=epoch, step=step)
    return arrays


def load_artefacts(
    runs: Sequence[Run],
    name: str,
    store: RunStore | None = None,
    *,
    train_missing: bool = True,
    **engine: Any,
) -> list[dict[str, np.ndarray] | None]:
    """As `load_artefact` for each of ``runs``; ``None`` for one that diverged. ``engine`` and its
    options: as for `run_missing`.

    Raises:
        RecordError: one is missing, and ``train_missing`` is false.
    """
    for run in runs:
        if name not in run.keep:
            raise ParameterError(f"{run} keeps {list(run.keep)}, not {name!r}; add it to keep")
    store = store or RunStore()
    rows = run_missing(runs, store, use_committed=False, train_missing=train_missing, **engine)
    if len(rows) < len(runs):
        raise RecordError(f"{len(runs) - len(rows)} of {len(runs)} runs have no {name!r} here")
    records: Any = map(store.load, rows["key"], rows["fingerprint"])
    return [store.load_artefact(record, name) for record in records]
