"""From a run to its record: its data, its network and method, the training, what is kept."""

import dataclasses
import functools
import json
import math
import platform
import time
from collections.abc import Iterable
from functools import partial

import numpy as np
import torch

import hardtrain
from hardtrain.data.images import ImageDataset, load_dataset, resolve_device
from hardtrain.data.samplers import BalancedBatchSampler
from hardtrain.errors import DataError, DivergedError, ParameterError
from hardtrain.files import sha256
from hardtrain.networks import build_network, has_batch_norm, use_ghost_batch_norm
from hardtrain.runs import subsets
from hardtrain.runs.results import METRICS
from hardtrain.runs.store import RunStore
from hardtrain.statistics import mean_interval
from hardtrain.training import evaluation, lookup, loop, pieces, randomness
from hardtrain.training.memory import Snapshots


def train_run(run, store: RunStore, progress=None) -> dict:
    """Train one run, from its last checkpoint if there is one, and give its record."""
    train, test, fingerprint = load_data(run)
    train = training_set(run, train)
    device = train.images.device
    began = time.perf_counter()
    last_saved, pause = began, store.checkpoint_seconds
    stored = store.load(run.key, fingerprint) or {}  # if any, it lacks an artefact
    run = keeping(run, stored.get("artefacts", ()))  # the new record forgets none of the old
    checkpoint = store.load_checkpoint(run.key, fingerprint)
    if checkpoint and not set(run.keep) <= set(checkpoint["keep"]):
        checkpoint = None  # of the same run when it kept, and counted, less
    seconds_before = checkpoint["seconds"] if checkpoint else 0.0
    seconds_evaluating = checkpoint["seconds_evaluating"] if checkpoint else 0.0

    def save_checkpoint(state: dict) -> None:
        nonlocal last_saved, pause
        now = time.perf_counter()
        if now - last_saved >= pause:
            state |= {"seconds": seconds_before + now - began, "keep": list(run.keep)}
            state["seconds_evaluating"] = seconds_evaluating
            store.save_checkpoint(run.key, fingerprint, state)
            last_saved = time.perf_counter()
            if pause:  # a large one, as of an ensemble's copies, may take 5 % of the time
                pause = max(store.checkpoint_seconds, 19 * (last_saved - now))

    record = {"key": run.key, "fingerprint": fingerprint, "status": "finished"}
    with randomness.isolated_randomness(randomness.derived_seed(run.seed, "torch"), device):
        model, method = build(run, train, test)
        transform = pieces.train_transform(run, train).without_augmentation()
        how = {"precision": run.precision}
        if run.batch_norm == "batch":
            how |= {"batch_statistics": True, "batch_size": run.batch_size}
        sets = {"test": test} | ({"train_set": train} if run.evaluate_train else {})
        final: dict[str, evaluation.Evaluation] = {}

        def evaluate(model):
            nonlocal final, seconds_evaluating
            start = time.perf_counter()
            final = {
                name: evaluation.evaluate(model, images, transform, **how)
                for name, images in sets.items()
            }
            seconds_evaluating += time.perf_counter() - start
            losses = {f"{name}_loss": found.loss for name, found in final.items()}
            return losses | {f"{name}_error": found.error for name, found in final.items()}

        start_epoch = method.start_epoch

        def timed_start(epoch):
            nonlocal seconds_evaluating
            start = time.perf_counter()
            start_epoch(epoch)
            seconds_evaluating += time.perf_counter() - start

        if start_epoch is not None:
            method.start_epoch = timed_start  # what a method looks at there is no training
        if progress is not None and checkpoint:
            progress(run, checkpoint["epoch"])
        try:
            history = loop.fit(
                run,
                model,
                method,
                evaluate,
                checkpoint=checkpoint,
                save_checkpoint=save_checkpoint,
                progress=None if progress is None else partial(progress, run),
            )
        except DivergedError as error:
            history = error.history
            record["status"] = "diverged"
            record["metrics"] = {"diverged_epoch": error.epoch, "diverged_step": error.step}
        else:
            record["metrics"] = {
                name: history[-1][name] for name in METRICS if name in history[-1]
            } | _metrics_by_batch(run, method, train, test, final)
            record["metrics"]["per_class_error"] = json.dumps(final["test"].per_class_error)
            record["artefacts"] = _save_artefacts(
                run, store, fingerprint, model, method, test, transform, how, final["test"]
            )
    seconds = seconds_before + time.perf_counter() - began
    record |= {"run": run.as_dict(), "history": history}
    record["timings"] = {
        "seconds": round(seconds, 3),
        "seconds_evaluating": round(seconds_evaluating, 3),
        **environment(device),
    }
    store.save(record)
    store.remove_checkpoints(run.key, fingerprint)
    return record


def forget_data() -> None:
    """Read the image sets anew when they are next needed: their files may have changed."""
    _data.cache_clear()
    fingerprint_at_hand.cache_clear()


@functools.lru_cache(maxsize=4)
def _data(
    dataset: str, root: str | None, device: str, train_size: int, test_size: int
) -> tuple[ImageDataset, ImageDataset, str]:
    train = load_dataset(dataset, "train", root=root, device=device)
    test = load_dataset(dataset, "test", root=root, device=device)
    return train.subset(train_size), test.subset(test_size), _fingerprint(train, test)


def _fingerprint(train: ImageDataset, test: ImageDataset) -> str:
    return sha256(f"{train.fingerprint}{test.fingerprint}".encode())


def load_data(run) -> tuple[ImageDataset, ImageDataset, str]:
    """A run's training set, test set and the fingerprint of both, on the run's device."""
    device = str(resolve_device(run.device))
    return _data(run.dataset, run.data_root, device, run.train_size, run.test_size)


@functools.lru_cache
def fingerprint_at_hand(dataset: str, root: str | None) -> str | None:
    """Of a run's data; ``None`` if it is not at hand (nothing is downloaded to find out)."""
    try:
        train = load_dataset(dataset, "train", root=root, download=False)
        test = load_dataset(dataset, "test", root=root, download=False)
    except (DataError, ParameterError):  # who needs the data will hear what is wrong
        return None
    return _fingerprint(train, test)


def training_set(run, train: ImageDataset) -> ImageDataset:
    """What a run trains on: its data set with its wrong labels, and of that its subset."""
    if run.label_noise:
        seed = run.seed if run.label_noise_seed is None else run.label_noise_seed
        train = train.with_label_noise(run.label_noise, randomness.generator(seed, "label noise"))
    if run.subset:
        train = train.take(subsets.unpack(run.subset, len(train)))
    return train


def build(run, train: ImageDataset, test: ImageDataset):
    """The run's network and method; refuses here what cannot be trained."""
    if train.num_classes != test.num_classes:
        raise DataError(
            f"{run.dataset}: {train.num_classes} classes in train, {test.num_classes} in test"
        )
    shapes = [tuple(data.images.shape[1:]) for data in (train, test)]
    if shapes[0] != shapes[1]:
        raise DataError(f"{run.dataset}: images are {shapes[0]} in train, {shapes[1]} in test")
    model = build_network(
        run.network,
        train.num_classes,
        train.in_channels,
        stem=run.stem,
        image_size=run.image_size or train.image_size,
    )
    sizes = set() if run.drop_last else {len(train) % run.batch_size}
    if run.batch_norm == "batch":
        sizes |= {len(test) % run.batch_size}
        sizes |= {len(train) % run.batch_size} if run.evaluate_train else set()
    if has_batch_norm(model) and (run.batch_size == 1 or 1 in sizes):
        raise ParameterError(
            f"batch_size = {run.batch_size} gives a batch of one sample, which {run.network} "
            "cannot normalise; change batch_size, or set drop_last"
        )
    if run.ghost_batch_size:
        use_ghost_batch_norm(model, run.ghost_batch_size)
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
    except ValueError as error:
        raise ParameterError(f"{run}: {error}") from error
    if run.balanced and not isinstance(method.batches.batch_sampler, BalancedBatchSampler):
        raise ParameterError(f"balanced = True: {run.method!r} chooses its mini-batches itself")
    for name in run.keep:
        if name.startswith("checkpoints:"):
            _take_snapshots(run, name, model, method)
        elif name not in ("final_weights", "features", "logits", *method.artefacts):
            raise ParameterError(f"method {run.method!r} keeps no {name!r}")
    return model, method


def _take_snapshots(run, name: str, model, method) -> None:
    """Make ``checkpoints:N`` an artefact of the method, whose ``observe`` comes after each step."""
    num_steps = run.epochs * len(method.batches)
    snapshots = Snapshots.of_last_half(model, num_steps, int(name.partition(":")[2]))
    remember = method.observe

    def observe(indices, losses):
        if remember is not None:
            remember(indices, losses)
        snapshots.note()

    method.observe = observe
    method.state = {**method.state, name: snapshots}
    method.artefacts = {**method.artefacts, name: snapshots.arrays}


def _metrics_by_batch(run, method, train, test, final) -> dict[str, float]:
    """Mean accuracy over the mini-batches of one model and half its t interval, as some papers
    print it: over fixed batches where the method has them, and one of what they leave out."""
    if not run.evaluate_train:
        return {}
    sampler = method.batches.batch_sampler
    batches = getattr(sampler, "batches", None)
    if batches is None:
        batches = torch.arange(len(train)).split(run.batch_size)
    elif sampler.left_out:
        batches = [*batches, sampler.left_out]
    test_batches = torch.arange(len(test)).split(run.batch_size)
    metrics = {}
    for name, data, parts in (("train_set", train, batches), ("test", test, test_batches)):
        right = (final[name].predictions == data.labels.cpu()).double()
        interval = mean_interval([right[part].mean().item() for part in parts])
        metrics[f"{name}_accuracy_by_batch"] = interval.mean
        metrics[f"{name}_half_width_by_batch"] = interval.half_width
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _save_artefacts(run, store, fingerprint, model, method, test, transform, how, final) -> dict:
    makers = {
        "final_weights": lambda: {k: v.cpu() for k, v in model.state_dict().items()},
        "features": lambda: {
            "features": evaluation.extract_features(model, test, transform),
            "losses": final.losses,
            "predictions": final.predictions,
            "labels": test.labels.cpu(),
            "class_names": np.array(test.class_names),
        },
        "logits": lambda: {
            "logits": evaluation.extract_logits(model, test, transform, **how),
            "labels": test.labels.cpu(),
        },
    } | dict(method.artefacts)
    return {
        name: store.save_artefact(run.key, fingerprint, name, makers[name]()) for name in run.keep
    }


def keeping(run, names: Iterable[str]):
    """The run, which keeps the artefacts ``names`` too."""
    return dataclasses.replace(run, keep=tuple(dict.fromkeys((*run.keep, *names))))


def environment(device: torch.device) -> dict[str, str | int]:
    """What a run's last bits depend on besides its seed."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardtrain": hardtrain.__version__,
    }
