"""Describe trainings as runs, train what is missing, give tables of results."""

import dataclasses
import functools
import json
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import filelock
import numpy as np
import pandas as pd
import torch

from hardtrain import checks, methods, subsets, training
from hardtrain.errors import DivergedError, ParameterError
from hardtrain.files import sha256
from hardtrain.networks import NETWORKS
from hardtrain.progress import Progress
from hardtrain.records import (
    build,
    fingerprint_at_hand,
    forget_data,
    keeping,
    load_data,
    train_run,
    training_set,
)
from hardtrain.results import committed_results, result_frame, result_row
from hardtrain.store import RunStore

ARTEFACTS = (
    "final_weights",
    "features",
    "logits",
    "checkpoints:N",
    "sample_counts",
    "batch_log",
    "emphasis",
    "prediction_history",
)
_NOT_IN_KEY = ("device", "data_root", "keep")  # they change where a run is made, not its numbers


@dataclass(frozen=True)
class Run:
    """One training: everything that its numbers depend on. JSON-able, hashable, checked.

    Args:
        dataset: a name or path that ``load_dataset`` takes.
        network: a name that ``build_network`` takes.
        method: a function of ``hardtrain.methods``; its keyword arguments come as ``options``,
            a mapping.
        seed: of initialisation, order, augmentation and whatever else is drawn.
        epochs, batch_size, drop_last: the batches; the last short one is kept by default.
        train_size, test_size: stratified subsets; 0 is all.
        optimizer, lr, momentum, nesterov, weight_decay: see ``training.make_optimizer``.
        schedule, gamma, milestones, step_epochs, warmup_epochs: see ``training.learning_rate``.
        stem, image_size: of the network; images are resized to ``image_size`` (0: left alone).
        augment: ``none``, ``flip``, ``crop`` (padding 4) or ``crop+flip``.
        precision, channels_last: bf16 autocast and the memory layout.
        evaluate_every, evaluate_unit: how often the test set is evaluated; always at the end.
        evaluate_train: evaluate the whole training set at those times, too, without augmentation,
            and at the end by mini-batches.
        batch_norm: what normalises in evaluation: ``running`` statistics, or those of each
            ``batch`` of ``batch_size``, as in code that never leaves the training mode.
        ghost_batch_size: batch-norm in parts of so many samples (``large_batch``); 0 is whole.
        balanced: every mini-batch has its classes alike (``samplers.BalancedBatchSampler``).
        label_noise: fraction of the training labels that are replaced by another class.
        label_noise_seed: which ones; by default as ``seed`` says, so that runs of one
            ``label_noise_seed`` share their wrong labels.
        subset: of the training set (of its ``train_size`` samples), as ``subsets.pack`` writes
            it; empty is all.
        keep: artefacts to store: ``final_weights``, ``features`` (of the test set, with its
            losses and predictions), ``logits`` (of the test set), ``checkpoints:N`` (N copies of
            the weights from the last half of training), and what the method offers:
            ``sample_counts``, ``batch_log``, ``emphasis``, ``prediction_history``.
        device, data_root: where; they do not change the key.

    Raises:
        ParameterError: names the parameter, the value and what is allowed.

    Example:
        >>> run = Run(dataset="digits", network="cnn_small", method="trimming", epochs=20)
        >>> print(run)
        trimming end=0.2 start=1.0, cnn_small on digits, seed 0
        >>> run.key == dataclasses.replace(run, device="cpu").key
        True
        >>> Run(dataset="digits", network="cnn_smal")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        hardtrain.errors.ParameterError: unknown network 'cnn_smal'; did you mean 'cnn_small'? ...
    """

    dataset: str
    network: str
    method: str = "plain"
    options: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    epochs: int = 1
    batch_size: int = 128
    drop_last: bool = False
    train_size: int = 0
    test_size: int = 0
    optimizer: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "constant"
    gamma: float = 0.1
    milestones: tuple[int, ...] = ()
    step_epochs: int = 1
    warmup_epochs: int = 0
    stem: str = "cifar"
    image_size: int = 0
    augment: str = "none"
    precision: str = "float32"
    channels_last: bool = False
    evaluate_every: int = 1
    evaluate_unit: str = "epoch"
    evaluate_train: bool = False
    batch_norm: str = "running"
    ghost_batch_size: int = 0
    balanced: bool = False
    label_noise: float = 0.0
    label_noise_seed: int | None = None
    subset: str = ""
    keep: tuple[str, ...] = ()
    device: str = "auto"
    data_root: str | None = None

    def __post_init__(self) -> None:
        for names, check in _CHECKS.items():
            for name in names.split():
                object.__setattr__(self, name, check(name, getattr(self, name)))
        options = methods.checked_options(self.method, self.options)
        object.__setattr__(self, "options", _Options(options))
        if self.nesterov and self.momentum == 0:
            raise ParameterError("nesterov = True needs momentum > 0; got momentum = 0.0")
        if self.warmup_epochs > self.epochs:
            raise ParameterError(
                f"warmup_epochs = {self.warmup_epochs} is more than epochs = {self.epochs}"
            )

    def __str__(self) -> str:
        options = "".join(f" {name}={value}" for name, value in self.options.items())
        return f"{self.method}{options}, {self.network} on {self.dataset}, seed {self.seed}"

    @functools.cached_property
    def key(self) -> str:
        """20 hex digits of all that changes the numbers: the fields that are not at their
        default (so that a new field leaves old keys alone; a default never changes), and the
        versions of the method and of the training loop."""
        described = {
            name: value
            for name, value in self.as_dict().items()
            if name not in _NOT_IN_KEY and value != _DEFAULTS[name]
        }
        defaults = methods.default_options(self.method)
        described["options"] = {k: v for k, v in self.options.items() if v != defaults[k]}
        described["versions"] = [training.VERSION, methods.find_method(self.method).VERSION]
        return sha256(json.dumps(described, sort_keys=True).encode())[:20]

    def as_dict(self) -> dict:
        """All fields, ready for JSON."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        values["options"] = dict(self.options)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


class _Options(dict):
    """Options of a method: a mapping that can be part of a hashable run."""

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.items())))


def _distinct(runs: Iterable[Run]) -> list[Run]:
    """One run for each key, which keeps what any of its duplicates keeps."""
    distinct: dict[str, Run] = {}
    for run in runs:
        distinct[run.key] = keeping(distinct.get(run.key, run), run.keep)
    return list(distinct.values())


def _integers(name: str, value: object, low: int) -> tuple[int, ...]:
    return tuple(checks.integer(name, item, low) for item in checks.listed(name, value))


def _artefact(name: str, value: object) -> str:
    kind, _, number = checks.text(name, value).partition(":")
    if kind == "checkpoints":
        if not (number.isascii() and number.isdigit()) or number.startswith("0"):
            raise ParameterError(f"{name} = {value!r}: write checkpoints:20 for 20 of them")
        return value
    return checks.choice(name, value, ARTEFACTS)


def _folder(name: str, value: object) -> str:
    return checks.text(name, os.fspath(value) if isinstance(value, os.PathLike) else value)


_CHECKS = {
    "dataset": checks.text,
    "network": partial(checks.choice, known=NETWORKS),
    "method": lambda name, value: methods.find_method(checks.text(name, value)).__name__,
    "seed train_size test_size image_size warmup_epochs ghost_batch_size": partial(
        checks.integer, low=0
    ),
    "epochs batch_size step_epochs evaluate_every": partial(checks.integer, low=1),
    "drop_last nesterov channels_last evaluate_train balanced": checks.flag,
    "optimizer": partial(checks.choice, known=("sgd", "adam", "adamw")),
    "lr gamma": partial(checks.number, low=0, above=True),
    "momentum": partial(checks.number, low=0, below=1),
    "weight_decay": partial(checks.number, low=0),
    "label_noise": partial(checks.number, low=0, below=1),
    "label_noise_seed": lambda name, value: (
        value if value is None else checks.integer(name, value, low=0)
    ),
    "subset": subsets.check,
    "batch_norm": partial(checks.choice, known=("running", "batch")),
    "schedule": partial(checks.choice, known=("constant", "step", "multistep", "cosine", "linear")),
    "milestones": partial(_integers, low=1),
    "stem": partial(checks.choice, known=("cifar", "imagenet")),
    "augment": partial(checks.choice, known=("none", "flip", "crop", "crop+flip")),
    "precision": partial(checks.choice, known=("float32", "bfloat16")),
    "evaluate_unit": partial(checks.choice, known=("epoch", "step")),
    "keep": lambda name, value: tuple(_artefact(name, item) for item in checks.listed(name, value)),
    "device": checks.text,
    "data_root": lambda name, value: value if value is None else _folder(name, value),
}
_DEFAULTS = {
    item.name: {} if item.name == "options" else [] if item.default == () else item.default
    for item in dataclasses.fields(Run)
}


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
    found: dict[str, dict] = {}
    missing: list[Run] = []
    for run in _distinct(runs):
        row = _committed_row(run, committed) or _stored_row(run, store)
        if row is None:
            missing.append(run)
        else:
            found[run.key] = row
    if missing:
        for run in missing:
            load_data(run)
        for run in {dataclasses.replace(run, seed=0): run for run in missing}.values():
            train, test, _ = load_data(run)
            with training.isolated_randomness(0, torch.device("cpu")):
                build(run, training_set(run, train), test)
        store.open()
        with Progress(missing) as progress, _ended_by_sigterm():
            ENGINES[engine](missing, store, progress)
        found |= {run.key: _stored_row(run, store) for run in missing}
    return result_frame([_columns(run) | found[run.key] for run in runs])


def load_artefact(run: Run, name: str, store: RunStore | None = None) -> dict[str, np.ndarray]:
    """Arrays that a run stored under ``name``; trained first (again) if they are missing.

    Raises:
        ParameterError: the run does not declare the artefact in ``keep``.
        DivergedError: the run diverged, so there is none.
    """
    store = RunStore() if store is None else store
    (arrays,) = load_artefacts([run], name, store)
    if arrays is None:
        found = store.load(run.key, fingerprint_at_hand(run.dataset, run.data_root))["metrics"]
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
    fingerprints = [fingerprint_at_hand(run.dataset, run.data_root) for run in runs]
    return [
        store.load_artefact(store.load(run.key, fingerprint), name)
        for run, fingerprint in zip(runs, fingerprints, strict=True)
    ]


def _train_locally(runs: Sequence[Run], store: RunStore, progress) -> None:
    """One after the other; runs that another process holds come last, and are waited for. One that
    does not fit the device's memory is left out, and named when the others are done."""
    waiting, too_large = [], []
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
                        if _stored_row(run, store) is None:  # another may have finished it
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


# --- small steps ---------------------------------------------------------------------------------


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM, by which a scheduler ends a job, acts as Ctrl-C does, with exit status 143; not
    where the program has its own way with it, and not in threads, which cannot set one."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(*_):
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stored_row(run: Run, store: RunStore) -> dict | None:
    record = store.load(run.key, fingerprint_at_hand(run.dataset, run.data_root))
    if record is None:
        return None
    if record["status"] == "finished":
        if any(store.load_artefact(record, name) is None for name in run.keep):
            return None
    return result_row(record | record["metrics"], "store")


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
