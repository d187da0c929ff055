"""What runs cost: their work in operations, and the seconds that it takes on this machine."""

import dataclasses
import functools
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from hardtrain.data.images import SIZES, ImageDataset, load_dataset, resolve_device
from hardtrain.networks import network_size
from hardtrain.runs import subsets
from hardtrain.runs.environment import keep_freed_memory
from hardtrain.runs.run import Run
from hardtrain.runs.store import RunStore
from hardtrain.runs.train import build, environment
from hardtrain.training import loop, randomness

# what a step's time does not depend on
_FREE = {"seed", "epochs", "lr", "momentum", "nesterov", "weight_decay", "schedule", "gamma"}
_FREE |= {"milestones", "step_epochs", "warmup_epochs", "evaluate_every", "evaluate_unit"}
_FREE |= {"evaluate_train", "label_noise", "label_noise_seed", "keep", "device", "data_root"}
_FREE |= {"train_size", "test_size", "validation_size", "evaluate_last", "subset", "drop_last"}
_FREE |= {"balanced"}
_PASSES = 3  # forward passes that a training step costs: one there, two back
_SHORT = 3e10  # operations of the measured steps on a CPU: about a second
_LARGE = 64  # images in a mini-batch; on a CPU a sample of a larger one costs the same, nearly
_LONG = 1.0  # seconds after which a measurement ends, whatever it has


def work(run: Run) -> float:
    """Operations (multiplications and additions) of a run: what its training and its evaluations
    cost, as plain training would.

    Example:
        >>> short, long = (Run("digits", "cnn_small", epochs=epochs) for epochs in (1, 3))
        >>> work(long) / work(short)
        3.0
    """
    return _operations(*_network(run)) * _passes(run)


def seconds(
    runs: Sequence[Run], store: RunStore, *, budget: float = 2.0
) -> tuple[list[float], dict[str, int]]:
    """The seconds that each run takes on this machine, and how many are known in which way.

    ``recorded``: from a finished run of this store and machine with an equal step. ``measured``:
    from three steps of it on noise images (fewer if they are slow). ``by operations``: at the
    speed of what was measured, once ``budget`` seconds are spent on measuring.
    """
    speeds = _recorded(runs, store)
    ways = dict.fromkeys(speeds, "recorded")
    total: dict[tuple, float] = dict.fromkeys(map(_kind, runs), 0.0)
    for run in runs:
        total[_kind(run)] += work(run)
    example = {_kind(run): run for run in runs}
    deadline = time.perf_counter() + budget
    for kind in sorted(total, key=total.__getitem__, reverse=True):  # the dearest first
        if kind not in speeds and time.perf_counter() < deadline:
            speeds[kind] = _measured(example[kind])
            ways[kind] = "measured"
    if not speeds:
        raise RuntimeError("nothing was recorded and nothing measured")
    for kind in total.keys() - speeds.keys():
        alike = [speed for other, speed in speeds.items() if other[:2] == kind[:2]]
        speeds[kind] = statistics.median(alike or speeds.values())
        ways[kind] = "by operations"
    return [work(run) * speeds[_kind(run)] for run in runs], Counter(ways[_kind(r)] for r in runs)


def _sizes(run: Run) -> tuple[int, int, int, int, int]:
    """Of the images that a run trains on and is tested on: numbers, channels, side, classes."""
    sizes = SIZES.get(run.dataset) or _own_sizes(run.dataset, run.data_root)
    train, test, channels, side, classes = sizes
    train, test = run.train_size or train - run.validation_size, run.test_size or test
    if run.subset:
        train = len(subsets.unpack(run.subset, train))
    return train, test, channels, run.image_size or side, classes


@functools.lru_cache
def _own_sizes(dataset: str, root: str | None) -> tuple[int, int, int, int, int]:
    train = load_dataset(dataset, "train", root=root, download=False)
    test = load_dataset(dataset, "test", root=root, download=False)
    side = max(train.images.shape[2:])
    return len(train), len(test), train.in_channels, side, train.num_classes


def _passes(run: Run) -> float:
    """Forward passes of one sample that a run costs."""
    train, test, *_ = _sizes(run)
    rounds = run.epochs * (1 if run.evaluate_unit == "epoch" else -(-train // run.batch_size))
    looks = -(-rounds // run.evaluate_every)
    if run.evaluate_last:
        looks = min(looks, run.evaluate_last + run.epochs)
    looked_at = (run.validation_size or test) + run.evaluate_train * train
    at_the_end = test if run.validation_size else 0
    return _PASSES * run.epochs * train + looks * looked_at + at_the_end


def _network(run: Run) -> tuple[str, str, int, int, int]:
    _, _, channels, side, classes = _sizes(run)
    return run.network, run.stem, channels, side, classes


@functools.lru_cache
def _operations(network: str, stem: str, channels: int, side: int, classes: int) -> int:
    """Of one sample's forward pass."""
    return network_size(network, classes, side, channels=channels, stem=stem)["flops"]


def _kind(run: Run) -> tuple:
    """What a run's seconds an operation depend on; first of all the method and its options."""
    fields = {k: v for k, v in run.as_dict().items() if k not in _FREE | {"dataset", "method"}}
    # a method may do less where a weight or a part is 0
    options = {k: v > 0 if isinstance(v, float) else v for k, v in run.options.items()}
    fields["options"] = str(options)
    if resolve_device(run.device).type == "cpu":
        fields["batch_size"] = min(run.batch_size, _LARGE)  # from there a sample costs the same
    return run.method, _network(run)[:-1], *map(str, sorted(fields.items()))


def _recorded(runs: Sequence[Run], store: RunStore) -> dict[tuple, float]:
    """Seconds an operation of the kinds among ``runs`` that were trained on this machine."""
    wanted = {_kind(run) for run in runs}
    here = environment(resolve_device(runs[0].device))
    found: dict[tuple, list[float]] = {}
    for record in store.records():
        timings = record["timings"]
        if record["status"] == "finished" and timings["device"] == here["device"]:
            try:
                run = Run(**record["run"])
            except (TypeError, ValueError):  # of another version, or a method not at hand
                continue
            if _kind(run) in wanted:
                found.setdefault(_kind(run), []).append(timings["seconds"] / work(run))
    return {kind: statistics.median(speeds) for kind, speeds in found.items()}


def _measured(run: Run) -> float:
    """Seconds an operation, of three steps of the run, its method and batches included."""
    _, _, channels, side, classes = _sizes(run)
    device = resolve_device(run.device)
    one_step = _operations(*_network(run)) * _PASSES  # of one sample
    size = run.batch_size
    if device.type == "cpu":  # where a sample costs the same in any batch that is not tiny
        keep_freed_memory()
        size = min(size, max(2, int(_SHORT / (4 * one_step))))
    with randomness.isolated_randomness(0, device):
        taken = _step_seconds(run, size, channels, side, classes, device)
    return taken / (size * one_step)


def _step_seconds(
    run: Run, size: int, channels: int, side: int, classes: int, device: torch.device
) -> float:
    """The median time of a step with a batch of ``size``, the first step not counted."""
    num = 4 * size
    pixels = torch.randint(0, 256, (num, channels, side, side), dtype=torch.uint8)
    labels, names = torch.arange(num) % min(classes, num), tuple(map(str, range(classes)))
    images = ImageDataset("measured", "train", pixels, labels, names, "none").to(device)
    changes: dict[str, Any] = {"batch_size": size, "epochs": 1, "train_size": 0, "test_size": 0}
    changes |= {"warmup_epochs": 0, "evaluate_every": 1, "evaluate_unit": "epoch", "keep": ()}
    changes |= {"balanced": False, "ghost_batch_size": 0, "drop_last": True, "label_noise": 0.0}
    changes |= {"subset": "", "validation_size": 0, "evaluate_last": 0}
    short = dataclasses.replace(run, **changes)
    model, method = build(short, images, images)
    times: list[float] = []
    original = method.observe

    def observe(indices: torch.Tensor, losses: torch.Tensor) -> None:
        original(indices, losses)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter())
        if len(times) > 1 and times[-1] - times[0] > _LONG:
            raise _EnoughError

    method.observe = observe
    began = time.perf_counter()
    try:
        loop.fit(short, model, method, lambda model: {})
    except _EnoughError:
        pass
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return statistics.median(steps) if steps else time.perf_counter() - began


class _EnoughError(Exception):
    """Ends a measurement."""
