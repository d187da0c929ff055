"""What whole trainings cost: an epoch against a user's own loop and against Lightning, a step in
each precision and layout; and what looking for finished ones costs."""

import copy
import importlib.util
import itertools
import logging
import os
import resource
import tempfile
import time
import warnings

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.ratios import _images
from benchmarks.rows import ratios_of
from hardtrain import Run, RunStore, build_network, load_history, run_missing
from hardtrain.data.batches import Transform
from hardtrain.report.timing import interleaved
from hardtrain.runs import run_data
from hardtrain.runs.environment import keep_freed_memory
from hardtrain.training import loop, methods, pieces

SETTINGS = {
    "float32": {},
    "channels_last": {"channels_last": True},
    "bf16": {"precision": "bfloat16"},
    "bf16 and channels_last": {"precision": "bfloat16", "channels_last": True},
}


def epochs(*, num_images: int = 4096, repetitions: int = 15) -> list[dict]:
    """Ratios with their targets; three minutes."""
    keep_freed_memory()  # as `run_missing` does
    networks = ("cnn_small", "cnn_small_bn")
    return [row for network in networks for row in _epochs(network, num_images, repetitions)]


def _epochs(network: str, num_images: int, repetitions: int, batch_size: int = 128) -> list[dict]:
    from torchvision import transforms

    dataset = _images(num_images, size=32)
    initial = build_network(network, 10, 3, image_size=32)
    normalise = transforms.Normalize(*_moments(dataset))
    crop_and_flip = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    steps = [transforms.ToPILImage(), *crop_and_flip, transforms.ToTensor(), normalise]
    loader = torch.utils.data.DataLoader(
        _Images(dataset, transforms.Compose(steps)),
        batch_size=batch_size,
        shuffle=True,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
    )
    settings = dict(epochs=1, batch_size=batch_size, lr=0.01, momentum=0.9, augment="crop+flip")

    def ours(**fields: object) -> None:
        run = Run("arrays", network, device="cpu", **settings, **fields)
        model = copy.deepcopy(initial)
        if run.channels_last:
            model = model.to(memory_format=torch.channels_last)
        loop.fit(run, model, methods.plain(run, dataset, model), lambda model: {})

    def own() -> None:
        model = copy.deepcopy(initial)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for inputs, targets in loader:
            loss = cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    functions = {name: lambda s=s: ours(**s) for name, s in SETTINGS.items()} | {"own": own}
    others = {"a loop over a DataLoader with workers": "own"}
    if importlib.util.find_spec("lightning"):
        functions["lightning"] = lambda: _lightning(copy.deepcopy(initial), loader)
        others["Lightning's Trainer"] = "lightning"
    with torch.random.fork_rng(devices=[]):
        times = interleaved(functions, repetitions)
    what = f"an epoch of {num_images} images 3x32x32, crop and flip, {network}: "
    fastest = min(SETTINGS, key=lambda name: float(np.median(times[name])))
    found = [
        {
            "what": f"{what}{label} / fit() in {setting}",
            "measured": ratios_of(times, name, setting),
            "target": target,
        }
        for label, name in others.items()
        for setting, target in (("float32", ">= 2"), (fastest, ">= 4"))
    ]
    if "lightning" not in functions:
        found.append({"what": f"{what}Lightning's Trainer / fit()", "target": ">= 2",
                      "measured": "not installed"})  # fmt: skip
    return found


def _lightning(model: nn.Module, loader: torch.utils.data.DataLoader) -> None:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: list, number: int) -> torch.Tensor:
            inputs, targets = batch
            return cross_entropy(self.model(inputs), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Module(), loader)


def steps(*, repetitions: int = 5) -> list[dict]:
    """Ratios with their targets; two minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a sweep of several runs has
    found = []
    for network, channels, size, batch in (
        ("cnn2", 1, 28, 150), ("cnn5", 1, 28, 150), ("resnet18", 3, 32, 128),
    ):  # fmt: skip
        steps = {
            name: _step(network, channels, size, batch, **how) for name, how in SETTINGS.items()
        }
        times = interleaved(steps, repetitions)
        found += [
            {
                "what": f"step in {name} / in float32: {network}, {batch} images {size}x{size}, "
                "one core",
                "measured": ratios_of(times, name, "float32"),
                "target": "<= 0.45" if " and " in name and network != "cnn5" else "",
            }
            for name in list(SETTINGS)[1:]
        ]
    torch.set_num_threads(threads)
    return found


def _step(
    network: str, channels: int, size: int, batch: int, *,
    precision: str = "float32", channels_last: bool = False,
):  # fmt: skip
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = build_network(network, 10, channels, image_size=size).to(memory_format=layout)
    inputs = torch.randn(batch, channels, size, size).to(memory_format=layout)
    targets = torch.randint(10, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)

    def step() -> None:
        with pieces.precision_context(precision, inputs.device):
            loss = cross_entropy(model(inputs).float(), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def look_up(*, num_records: int = 10_000) -> list[dict]:
    """A sweep that is finished is found again, and its histories of ten rows are read."""
    fields = dict(dataset="digits", network="cnn_small", epochs=10, device="cpu")
    fingerprint = run_data.fingerprint_at_hand("digits", None)
    row = dict.fromkeys(("lr", "train_loss", "objective", "test_loss", "test_error"), 1 / 3)
    history = [{"epoch": float(epoch), "step": 12 * epoch} | row for epoch in range(1, 11)]
    metrics = {"test_error": 0.1, "test_loss": 1 / 3, "train_loss": 0.2, "per_class_error": "[]"}
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(folder)
        store.open()
        for seed in range(num_records):
            run = Run(**fields, seed=seed)
            record = {"key": run.key, "fingerprint": fingerprint, "run": run.as_dict()}
            record |= {"status": "finished", "history": history, "metrics": metrics}
            store.save(record | {"timings": {"seconds": 1.0, "device": "cpu"}, "artefacts": {}})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ends = [time.perf_counter()]
        runs = [Run(**fields, seed=seed) for seed in range(num_records)]
        results = run_missing(runs, store, use_committed=False, train_missing=False)
        assert len(results) == num_records
        ends.append(time.perf_counter())
        rows = len(load_history(results, store))
        ends.append(time.perf_counter())
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    found, read = (b - a for a, b in itertools.pairwise(ends))
    return [
        {"what": f"finding {num_records} runs in a store, s", "measured": found, "target": "<= 2"},
        {"what": f"reading their {rows} rows of history, s", "measured": read, "target": "<= 2"},
        {"what": "memory that both take at most, MB", "measured": memory, "target": ""},
    ]


def _moments(dataset: object) -> tuple:
    transform = Transform.of(dataset)
    return transform.mean, transform.std


class _Images(torch.utils.data.Dataset):
    """As a user would write it: an image and its label at a time."""

    def __init__(self, dataset: object, transform: object):
        self.images, self.labels = dataset.images, dataset.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple:
        return self.transform(self.images[index]), self.labels[index]
