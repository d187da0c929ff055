"""Describe trainings as runs, train what is missing, give tables of results."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hardtrain import checks
from hardtrain.errors import ParameterError
from hardtrain.files import sha256
from hardtrain.networks import NETWORKS
from hardtrain.runs import subsets
from hardtrain.training import lookup, loop

ARTEFACTS = (
    "final_weights",
    "features",
    "logits",
    "train_losses",
    "checkpoints:N",
    "sample_counts",
    "batch_log",
    "emphasis",
    "prediction_history",
)
_FLOAT32 = 2.0**128  # the optimisers' numbers
NOT_IN_KEY = ("device", "data_root", "keep")  # they change where a run is made, not its numbers


@dataclass(frozen=True)
class Run:
    """One training: everything that its numbers depend on. JSON-able, hashable, checked.

    Args:
        dataset: a name or path that ``load_dataset`` takes.
        network: a name that ``build_network`` takes.
        method: a function of ``training.methods`` or ``training.peers``, or ``"module:function"``
            of anyone's own (see ``training.lookup``), or several that act in different places, as
            in ``"trimming+gradient_noise"``; keyword arguments come as ``options``, a mapping.
        seed: of initialisation, order, augmentation and whatever else is drawn.
        epochs, batch_size, drop_last: the batches; the last short one is kept by default.
        train_size, test_size: stratified subsets; 0 is all.
        validation_size: training images held out, stratified, before ``train_size`` is taken of
            the others. They are evaluated in place of the test set, which waits for the end; 0:
            none.
        optimizer, lr, momentum, nesterov, weight_decay: see ``training.make_optimizer``.
        schedule, gamma, milestones, step_epochs, warmup_epochs: see ``training.learning_rate``.
        stem, image_size: of the network; images are resized to ``image_size`` (0: left alone).
        augment: ``none``, ``flip``, ``crop`` (padding 4) or ``crop+flip``.
        precision, channels_last: ``float32`` as such, with TensorFloat32 on cards that have it
            (``tf32``; elsewhere it is float32), or ``bfloat16`` autocast; and the memory layout.
        compiled: training's forward pass is compiled (``torch.compile``; not where a method takes
            the features): a minute at the start, then faster for some networks; other last bits.
        evaluate_every, evaluate_unit: how often the test set is evaluated; always at the end.
        evaluate_last: with ``evaluate_unit="step"``, evaluate at the ends of epochs, and by steps
            the last so many times only: the last ones are as they would be, and long histories
            become short; 0: every time.
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
            losses and predictions), ``logits`` (of the test set), ``train_losses`` (of the whole
            training set, beyond ``subset`` too, without augmentation), ``checkpoints:N`` (N copies
            of the weights from the last half of training), and what the method offers:
            ``sample_counts``, ``batch_log``, ``emphasis``, ``prediction_history``.
        device, data_root: where; they do not change the key.

    Raises:
        ParameterError: names the parameter, the value and what is allowed.

    Example:
        >>> run = Run(dataset="digits", network="cnn_small", method="trimming", epochs=20)
        >>> print(run)
        trimming end=0.2 share=hardest start=1.0, cnn_small on digits, seed 0
        >>> run.key == dataclasses.replace(run, device="cpu").key
        True
        >>> Run(dataset="digits", network="cnn_smal")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        hardtrain.errors.ParameterError: unknown network 'cnn_smal'; did you mean 'cnn_small'? ...
    """

    dataset: str
    network: str
    method: str = "plain"
    options: Mapping[str, float] = field(default_factory=dict, hash=False)
    seed: int = 0
    epochs: int = 1
    batch_size: int = 128
    drop_last: bool = False
    train_size: int = 0
    test_size: int = 0
    validation_size: int = 0
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
    compiled: bool = False
    evaluate_every: int = 1
    evaluate_unit: str = "epoch"
    evaluate_last: int = 0
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
        options = lookup.checked_options(self.method, self.options)
        object.__setattr__(self, "options", options)
        if self.nesterov and self.momentum == 0:
            raise ParameterError("nesterov = True needs momentum > 0; got momentum = 0.0")
        if self.evaluate_last and self.evaluate_unit != "step":
            raise ParameterError(
                f"evaluate_last = {self.evaluate_last} needs evaluate_unit = 'step'; "
                f"got {self.evaluate_unit!r}"
            )
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
        described = self.as_dict()
        for name, default in _DEFAULTS.items():
            if name in NOT_IN_KEY or getattr(self, name) == default:
                del described[name]
        defaults = lookup.default_options(self.method)
        described["options"] = {k: v for k, v in self.options.items() if v != defaults[k]}
        described["versions"] = [loop.VERSION, lookup.find_method(self.method).VERSION]
        return sha256(json.dumps(described, sort_keys=True).encode())[:20]

    def as_dict(self) -> dict:
        """All fields, ready for JSON."""
        lists = {name: list(getattr(self, name)) for name in _TUPLES}
        return self._fields | lists | {"options": dict(self.options)}

    @functools.cached_property
    def _fields(self) -> dict:
        return {name: getattr(self, name) for name in _DEFAULTS}


_DEFAULTS = {item.name: item.default for item in dataclasses.fields(Run)}
_TUPLES = [name for name, default in _DEFAULTS.items() if isinstance(default, tuple)]


def _integers(name: str, value: object, low: int) -> tuple[int, ...]:
    return tuple(checks.integer(name, item, low) for item in checks.listed(name, value))


def _artefact(name: str, value: Any) -> str:
    kind, _, number = checks.text(name, value).partition(":")
    if kind == "checkpoints":
        if not (number.isascii() and number.isdigit()) or number.startswith("0"):
            raise ParameterError(f"{name} = {value!r}: write checkpoints:20 for 20 of them")
        return value
    return checks.choice(name, value, ARTEFACTS)


def _folder(name: str, value: object) -> str:
    return checks.text(name, os.fspath(value) if isinstance(value, os.PathLike) else value)


_CHECKS: dict[str, Callable[..., Any]] = {
    "dataset": checks.text,
    "network": partial(checks.choice, known=NETWORKS),
    "method": checks.text,  # found with its options
    "seed train_size test_size image_size warmup_epochs ghost_batch_size": partial(
        checks.integer, low=0
    ),
    "evaluate_last validation_size": partial(checks.integer, low=0),
    "epochs batch_size step_epochs evaluate_every": partial(checks.integer, low=1),
    "drop_last nesterov channels_last compiled evaluate_train balanced": checks.flag,
    "optimizer": partial(checks.choice, known=("sgd", "adam", "adamw")),
    "lr gamma": partial(checks.number, low=0, above=True, below=_FLOAT32),
    "momentum": partial(checks.number, low=0, below=1),
    "weight_decay": partial(checks.number, low=0, below=_FLOAT32),
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
    "precision": partial(checks.choice, known=("float32", "tf32", "bfloat16")),
    "evaluate_unit": partial(checks.choice, known=("epoch", "step")),
    "keep": lambda name, value: tuple(_artefact(name, item) for item in checks.listed(name, value)),
    "device": checks.text,
    "data_root": lambda name, value: value if value is None else _folder(name, value),
}


def keeping(run: Run, names: Iterable[str]) -> Run:
    """The run, which keeps the artefacts ``names`` too."""
    kept = tuple(dict.fromkeys((*run.keep, *names)))
    return run if kept == run.keep else dataclasses.replace(run, keep=kept)
