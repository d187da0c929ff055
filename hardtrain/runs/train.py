"""From a run to its record: its data, its network and method, the training, what is kept."""

import copy
import dataclasses
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hardtrain import networks
from hardtrain.data.images import ImageDataset
from hardtrain.data.samplers import BalancedBatchSampler
from hardtrain.errors import DataError, DivergedError, ParameterError, RecordError
from hardtrain.runs import halves, subsets
from hardtrain.runs.environment import environment as environment
from hardtrain.runs.environment import keep_freed_memory, merged
from hardtrain.runs.results import METRICS
from hardtrain.runs.run import Run, keeping
from hardtrain.runs.run_data import data_of, load_data, training_set
from hardtrain.runs.store import RunStore
from hardtrain.statistics import mean_interval
from hardtrain.training import evaluation, lookup, loop, pieces, randomness
from hardtrain.training.memory import Snapshots

# how CUDA, cuDNN, cuBLAS and the CPU's allocator say it, in errors of no type of their own
_NO_MEMORY = ("out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED", "can't allocate memory")


def train_run(run: Run, store: RunStore, progress: Callable[..., None]) -> dict:
    """Train one run, from its last checkpoint if there is one, and give its record.

    A checkpoint that cannot be used here, as its state has other names or is of another device,
    costs a warning and its epochs: the run starts over.

    Raises:
        torch.OutOfMemoryError: the device's memory does not suffice, whichever library says so.
    """
    fingerprint = load_data(run)[2]
    stored = store.load(run.key, fingerprint) or {}  # if any, it lacks an artefact
    # the new record forgets none of the old artefacts
    run = keeping(run, stored.get("artefacts", ()))
    checkpoint = store.load_checkpoint(run.key, fingerprint)
    if checkpoint and not set(run.keep) <= set(checkpoint.get("keep", ())):
        checkpoint = None  # of the same run when it kept, and counted, less
    try:
        try:
            record = _Training(run, store, checkpoint).record(progress)
        except RecordError as error:
            if checkpoint is None:
                raise
            warnings.warn(f"{run} starts over: {error}", stacklevel=2)
            record = _Training(run, store, None).record(progress)
    except RuntimeError as error:
        if any(words in str(error) for words in _NO_MEMORY):
            raise torch.OutOfMemoryError(str(error)) from error
        raise
    if stored and any(stored[name] != record[name] for name in ("status", "metrics")):
        warnings.warn(
            f"{run} was trained again for an artefact, and in this environment has other numbers, "
            "which replace the old ones",
            stacklevel=2,
        )
    store.save(record)
    store.remove_checkpoints(run.key, fingerprint)
    return record


class _Training:
    """A run on its way to a record: its parts, its last evaluation, and the time it takes.

    Without counting what is evaluated, and what the method looks at between epochs, as training.
    """

    def __init__(self, run: Run, store: RunStore, checkpoint: dict | None):
        self.run, self.store, self.checkpoint = run, store, checkpoint
        train, self.test, self.fingerprint, self.validation = data_of(run)
        self.train = training_set(run, train)
        self.device = self.train.images.device
        if self.device.type == "cpu":
            keep_freed_memory()
        self.pause = store.checkpoint_seconds
        # the first end of an epoch writes one, so that lives shorter than the pause get on
        self.last_saved = -math.inf
        before = checkpoint or {}
        self.environment = merged(before.get("environment", {}), environment(self.device))
        self.began = time.perf_counter() - before.get("seconds", 0.0)
        self.seconds_evaluating = before.get("seconds_evaluating", 0.0)
        self.before: dict[str, float] = {}
        self.final: dict[str, evaluation.Evaluation] = {}
        self.transform = pieces.train_transform(run, self.train).without_augmentation()
        self.settings: dict[str, Any] = {"precision": run.precision}
        if run.batch_norm == "batch":
            self.settings |= {"batch_statistics": True, "batch_size": run.batch_size}

    def record(self, progress: Callable[..., None]) -> dict:
        """Train, and describe what came of it."""
        run = self.run
        record = {"key": run.key, "fingerprint": self.fingerprint, "run": run.as_dict()}
        progress(run, (self.checkpoint or {}).get("epoch", 0))
        seed = randomness.derived_seed(run.seed, "torch")
        with randomness.isolated_randomness(seed, self.device, precision=run.precision):
            self.model, self.method = build(run, self.train, self.test)
            self.method.start_epoch = partial(self._timed, self.method.start_epoch)
            self.method.log = partial(_finite, self.method.log)
            try:
                self._take_held_out_losses()
                history = loop.fit(
                    run,
                    self.model,
                    self.method,
                    self.evaluate,
                    checkpoint=self.checkpoint,
                    save_checkpoint=self.save_checkpoint,
                    progress=lambda epochs: progress(run, epochs, self.evaluated_loss),
                )
                last = history[-1] | self.scores_at_end(history)
            except DivergedError as error:
                record |= {"status": "diverged", "history": error.history}
                record["metrics"] = {"diverged_epoch": error.epoch, "diverged_step": error.step}
            else:
                record |= {"status": "finished", "history": history}
                record["metrics"] = self.metrics(last)
                record["artefacts"] = self.save_artefacts()
        record["timings"] = {
            "seconds": round(time.perf_counter() - self.began, 3),
            "seconds_evaluating": round(self.seconds_evaluating, 3),
            **self.before,
            **self.environment,
        }
        return record

    def _take_held_out_losses(self) -> None:
        """Give the method the losses that it wants from two small trainings, which are in the
        store, and note the seconds that these took."""
        if self.method.held_out is None:
            return
        everything = load_data(self.run)[0]
        small = halves.small_runs(self.run, self.method.held_out, everything)
        records = [self.store.load(half.key, self.fingerprint) or {} for half in small]
        for half, record in zip(small, records, strict=True):
            if record.get("status") == "diverged":
                raise DivergedError(f"{self.run} needs {half}, which diverged", epoch=0, step=0)
        kept = [self.store.load_artefact(record, "train_losses") for record in records]
        if None in kept:
            raise RecordError(
                f"{self.run} needs the losses of {small[0]} and its other half, which are not in "
                f"{self.store}; run_missing trains them first"
            )
        losses = halves.held_out_losses(small, [arrays["losses"] for arrays in kept if arrays])
        chosen = subsets.unpack(self.run.subset, len(losses)) if self.run.subset else slice(None)
        self.method.held_out.take(torch.from_numpy(losses[chosen]).to(self.device))
        took = [record["timings"] for record in records]
        seconds = sum(timings["seconds"] - timings["seconds_evaluating"] for timings in took)
        self.before = {"seconds_before": round(seconds, 3)}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Loss and error of the test set, or of what is held out in its place, and, if the run
        wants it, of the training set."""
        sets = {"validation": self.validation} if self.validation else {"test": self.test}
        sets |= {"train_set": self.train} if self.run.evaluate_train else {}
        for name, images in sets.items():
            self.final[name] = self._timed(
                evaluation.evaluate, model, images, self.transform, **self.settings
            )
        losses = {f"{name}_loss": self.final[name].loss for name in sets}
        return losses | {f"{name}_error": self.final[name].error for name in sets}

    def scores_at_end(self, history: list[dict]) -> dict[str, float]:
        """Of the test set, where held-out images were evaluated in its place.

        Raises:
            DivergedError: its loss is not finite; the last step has made it so.
        """
        if not self.validation:
            return {}
        self.validation = None
        scores, step = self.evaluate(self.model), history[-1]["step"] - 1
        if not math.isfinite(sum(scores.values())):
            text = f"{self.run}: the test loss is not finite after step {step} (from 0), the last"
            error = DivergedError(text, epoch=self.run.epochs - 1, step=step)
            error.history = history
            raise error
        return scores

    @property
    def evaluated_loss(self) -> float | None:
        """On the test set, or what is held out in its place, at the last evaluation so far."""
        name = "validation" if self.validation else "test"
        return self.final[name].loss if name in self.final else None

    def save_checkpoint(self, state: dict) -> None:
        """Save it if the last one is old enough; large ones, as of an ensemble's copies, may take
        5 % of the time."""
        now = time.perf_counter()
        if now - self.last_saved < self.pause:
            return
        state |= {"seconds": now - self.began, "seconds_evaluating": self.seconds_evaluating}
        state |= {"keep": list(self.run.keep), "environment": self.environment}
        self.store.save_checkpoint(self.run.key, self.fingerprint, state)
        self.last_saved = time.perf_counter()
        if self.pause:
            self.pause = max(self.store.checkpoint_seconds, 19 * (self.last_saved - now))

    def metrics(self, last: dict) -> dict[str, object]:
        """Final metrics, from the last row of the history and the last evaluation."""
        metrics: dict[str, object] = {name: last[name] for name in METRICS if name in last}
        metrics["per_class_error"] = json.dumps(self.final["test"].per_class_error)
        if self.run.evaluate_train:
            sampler, size = self.method.batches.batch_sampler, self.run.batch_size
            batches = getattr(sampler, "batches", torch.arange(len(self.train)).split(size))
            left_out = getattr(sampler, "left_out", None)
            batches = [*batches, left_out] if left_out else batches
            metrics |= self._accuracy_by_batch("train_set", self.train, batches)
            batches = torch.arange(len(self.test)).split(size)
            metrics |= self._accuracy_by_batch("test", self.test, batches)
        return metrics

    def _accuracy_by_batch(
        self, name: str, data: ImageDataset, batches: Iterable
    ) -> dict[str, float | None]:
        """Mean accuracy over the mini-batches of one model and half its t interval, as some
        papers print it: over fixed batches where the method has them, and one of what they leave
        out."""
        right = (self.final[name].predictions == data.labels_on_host).double()
        interval = mean_interval([right[batch].mean().item() for batch in batches])
        half_width = interval.half_width
        return {
            f"{name}_accuracy_by_batch": interval.mean,
            f"{name}_half_width_by_batch": half_width if math.isfinite(half_width) else None,
        }

    def save_artefacts(self) -> dict[str, dict]:
        """Store what the run keeps; the entries of its record."""
        makers = {
            "final_weights": lambda: {k: v.cpu() for k, v in self.model.state_dict().items()},
            "features": self._features,
            "logits": self._logits,
            "train_losses": self._train_losses,
        } | dict(self.method.artefacts)
        key = self.run.key, self.fingerprint
        return {
            name: self.store.save_artefact(*key, name, makers[name]()) for name in self.run.keep
        }

    def _features(self) -> dict[str, object]:
        return {
            "features": evaluation.extract_features(self.model, self.test, self.transform),
            "losses": self.final["test"].losses,
            "predictions": self.final["test"].predictions,
            "labels": self.test.labels_on_host,
            "class_names": np.array(self.test.class_names),
        }

    def _logits(self) -> dict[str, object]:
        logits = evaluation.extract_logits(self.model, self.test, self.transform, **self.settings)
        return {"logits": logits, "labels": self.test.labels_on_host}

    def _train_losses(self) -> dict[str, object]:
        whole = dataclasses.replace(self.run, subset="")
        everything = training_set(whole, load_data(whole)[0])
        found = evaluation.evaluate(self.model, everything, self.transform, **self.settings)
        return {"losses": found.losses}

    def _timed(self, function: Callable, *arguments: object, **options: object) -> Any:
        start = time.perf_counter()
        result = function(*arguments, **options)
        self.seconds_evaluating += time.perf_counter() - start
        return result


def _finite(log: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
    """What a method logs, which must be numbers; those of NumPy and torch as Python's."""
    logged = {name: getattr(value, "item", lambda v=value: v)() for name, value in log().items()}
    for name, value in logged.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ParameterError(f"its method logs {name} = {value!r}, which is no number")
    return logged


def build(run: Run, train: ImageDataset, test: ImageDataset) -> tuple[nn.Module, loop.Method]:
    """The run's network and method; refuses here what cannot be trained."""
    splits = [
        f"{d.num_classes} classes of images {tuple(d.images.shape[1:])}" for d in (train, test)
    ]
    if splits[0] != splits[1]:
        raise DataError(f"{run.dataset}: {splits[0]} in train, {splits[1]} in test")
    size = run.image_size or train.image_size
    classes, channels = train.num_classes, train.in_channels
    model = networks.build_network(run.network, classes, channels, stem=run.stem, image_size=size)
    if ":" in run.network:
        _require_logits(run, model, (2, channels, size, size), classes)
    sizes = set() if run.drop_last else {len(train) % run.batch_size}
    if sizes == {1} and run.batch_size > 1 and networks.normalises_one(model, size):
        sizes = set()
    if run.batch_norm == "batch":
        sizes |= {len(test) % run.batch_size}
        sizes |= {len(train) % run.batch_size} if run.evaluate_train else set()
        sizes |= {run.validation_size % run.batch_size}
        if "train_losses" in run.keep:  # beyond the subset, too
            whole = load_data(run)[0] if run.subset else train
            sizes |= {len(whole) % run.batch_size}
    if networks.has_batch_norm(model) and (run.batch_size == 1 or 1 in sizes):
        raise ParameterError(
            f"batch_size = {run.batch_size} gives a batch of one sample, which {run.network} "
            "cannot normalise; change batch_size, or set drop_last"
        )
    if run.ghost_batch_size:
        networks.use_ghost_batch_norm(model, run.ghost_batch_size)
        parts = {size % run.ghost_batch_size for size in (run.batch_size, *sizes)}
        if run.ghost_batch_size == 1 or 1 in parts:
            raise ParameterError(
                f"ghost_batch_size = {run.ghost_batch_size} leaves a part of one sample, which "
                "cannot be normalised"
            )
    model = model.to(train.images.device)
    if run.channels_last:
        model = model.to(memory_format=torch.channels_last)
    try:
        method = lookup.find_method(run.method)(run, train, model, **run.options)
        pieces.try_hooks(model, method.hooks)
    except (ValueError, TypeError) as error:
        raise ParameterError(f"{run}: {error}") from error
    if run.evaluate_last and method.whole_passes:
        raise ParameterError(
            f"evaluate_last = {run.evaluate_last}: method {run.method!r} does not know its number "
            "of updates before; set evaluate_last = 0"
        )
    if method.held_out is not None:
        halves.small_runs(run, method.held_out, load_data(run)[0])  # refuses what cannot be
    if run.balanced and not isinstance(method.batches.batch_sampler, BalancedBatchSampler):
        raise ParameterError(f"balanced = True: {run.method!r} chooses its mini-batches itself")
    for name in run.keep:
        if name.startswith("checkpoints:"):
            _take_snapshots(run, name, model, method)
        elif name not in ("final_weights", "features", "logits", "train_losses", *method.artefacts):
            raise ParameterError(f"method {run.method!r} keeps no {name!r}")
    return model, method


def _require_logits(run: Run, model: nn.Module, shape: tuple[int, ...], classes: int) -> None:
    """Refuse a network of anyone's own that makes no logits of images of this ``shape``. Nothing is
    computed: the images have no content."""
    try:
        ends = tuple(copy.deepcopy(model).to("meta")(torch.zeros(shape, device="meta")).shape)
    except Exception as error:  # whatever it raises
        raise ParameterError(f"network = {run.network!r} takes no {shape}: {error}") from error
    if ends != (shape[0], classes):
        wanted = f"wanted ({shape[0]}, {classes})"
        raise ParameterError(f"network = {run.network!r} makes {ends} of {shape}; {wanted}")


def _take_snapshots(run: Run, name: str, model: nn.Module, method: loop.Method) -> None:
    """Make ``checkpoints:N`` an artefact of the method, whose ``observe`` comes after each step."""
    if method.whole_passes:
        raise ParameterError(
            f"method {run.method!r} keeps no {name!r}: its number of updates is not known before"
        )
    num_steps = run.epochs * len(method.batches)
    snapshots = Snapshots.of_last_half(model, num_steps, int(name.partition(":")[2]))
    method.observe = partial(_observe_and_note, method.observe, snapshots)
    method.state = {**method.state, name: snapshots}
    method.artefacts = {**method.artefacts, name: snapshots.arrays}


def _observe_and_note(
    observe: Callable[[Tensor, Tensor], None], snapshots: Snapshots, indices: Tensor, losses: Tensor
) -> None:
    observe(indices, losses)
    snapshots.note()
