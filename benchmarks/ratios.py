"""What the loop, the batches, trimming and the memory layout cost, each against the plainest
alternative."""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.rows import ratios_of
from hardtrain import ImageDataset, Run
from hardtrain.data.batches import Batches, Transform
from hardtrain.data.images import resolve_device
from hardtrain.data.samplers import UniformBatchSampler
from hardtrain.papers.hard_mini_batches.timing import hard_batch_step_times
from hardtrain.papers.mini_batch_trimming.timing import trimming_step_times
from hardtrain.report.timing import interleaved, small_cnn
from hardtrain.runs.train import environment
from hardtrain.training import loop, methods, pieces


def rows() -> list[dict]:
    """Ratios with their targets; a few seconds each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # at this size threads only wait for each other
    small = [_loop_overhead(), *_augmentation()]
    torch.set_num_threads(threads)
    on_a_gpu = [*_trimming(), *_hard_batches(), *_layout_and_precision()]  # if there is one
    name = environment(resolve_device())["device"].partition(" ")
    device = name[0] if name[0] == "cpu" else name[2].strip("()")
    return small + [row | {"device": device} for row in on_a_gpu]


def _loop_overhead() -> dict:
    dataset = _images(2048, size=8)
    run = Run(dataset="digits", network="cnn_small", epochs=2, batch_size=64, device="cpu")
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 10))

    def ours() -> None:
        model = copy.deepcopy(network)
        loop.fit(run, model, methods.plain(run, dataset, model), lambda model: {})

    def bare() -> None:
        model = copy.deepcopy(network)
        optimizer = torch.optim.SGD(model.parameters(), lr=run.lr)
        transform = Transform.of(dataset)
        order = torch.Generator().manual_seed(0)
        for _ in range(run.epochs):
            for indices in torch.randperm(len(dataset), generator=order).split(64):
                logits = model(transform(dataset.images[indices]))
                loss = cross_entropy(logits, dataset.labels[indices])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    times = interleaved({"ours": ours, "bare": bare}, 31)
    return {
        "what": "fit() / a bare loop, 1 thread: tiny network, 64 steps of 64 images 8x8",
        "measured": ratios_of(times, "ours", "bare"),
        "target": "<= 1.15",
    }


def _augmentation() -> list[dict]:
    from torchvision import transforms  # seconds to import, and only these rows need it

    dataset = _images(2048, size=32)
    transform = Transform.of(dataset, crop_padding=4, flip=True)
    order, draws = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    sampler = UniformBatchSampler(len(dataset), 128, generator=order)
    batches = Batches(dataset, transform, sampler, generator=draws)
    crop_and_flip = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    normalise = transforms.Normalize(transform.mean, transform.std)
    from_pil = [transforms.ToPILImage(), *crop_and_flip, transforms.ToTensor(), normalise]
    from_tensor = [*crop_and_flip, transforms.ConvertImageDtype(torch.float32), normalise]

    def loader(steps: list) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(
            _Transformed(dataset, transforms.Compose(steps)), batch_size=128, shuffle=True
        )

    loaders = {"ours": batches, "PIL": loader(from_pil), "tensor": loader(from_tensor)}
    functions = {name: lambda b=b: [None for _ in b] for name, b in loaders.items()}
    with torch.random.fork_rng(devices=[]):
        times = interleaved(functions, 15)
    what = "crop, flip, normalise 2048 images 3x32x32, 1 thread: {}, DataLoader / device batches"
    return [
        {
            "what": what.format("torchvision on PIL images"),
            "measured": ratios_of(times, "PIL", "ours"),
            "target": ">= 25",
        },
        {
            "what": what.format("torchvision on single tensors"),
            "measured": ratios_of(times, "tensor", "ours"),
            "target": ">= 6",
        },
    ]


def _trimming(repetitions: int = 25) -> list[dict]:
    measured = trimming_step_times(keeps=(1.0, 0.6, 0.2), image_size=32, repetitions=repetitions)
    ratios = {
        kind: dict(zip(measured["keeps"].tolist(), measured[kind].T.tolist(), strict=True))
        for kind in ("trim", "trim_batch_norm", "trimmed_backward")
    }
    what = "step with {} / plain step: three convolutions, batch 128, 32x32"
    rows = [
        {
            "what": what.format(f"{name}, p = 0.6"),
            "measured": ratios[kind][0.6],
            "target": "<= 1.03",
        }
        for kind, name in (("trim", "trim"), ("trim_batch_norm", "trim, batch-norm"))
    ]
    targets = {1.0: "<= 1.03", 0.6: "about 0.8", 0.2: "about 0.5"}
    return rows + [
        {
            "what": what.format(f"trimmed_backward, p = {p:g}"),
            "measured": ratios["trimmed_backward"][p],
            "target": target,
        }
        for p, target in targets.items()
    ]


def _hard_batches(num_batches: int = 16, repetitions: int = 5) -> list[dict]:
    measured = hard_batch_step_times(
        network="cnn_small", batch_size=128, image_size=32, num_channels=3, deltas=(0.8, 0.5, 0.2),
        num_batches=num_batches, repetitions=repetitions,
    )  # fmt: skip
    ratios = (measured["seconds"] / measured["seconds"][:, :1]).T.tolist()
    return [
        {
            "what": f"update of hard mini-batches, δ = {delta:g} / plain: small CNN, batch 128",
            "measured": of_rounds,
            "target": "<= 1.03",
        }
        for delta, of_rounds in zip(measured["deltas"][1:], ratios[1:], strict=True)
    ]


def _layout_and_precision() -> list[dict]:
    device = resolve_device()
    dataset = _images(128, size=32).to(device)
    inputs, targets = Transform.of(dataset)(dataset.images), dataset.labels

    def step(channels_last: bool, precision: str):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        model = small_cnn(batch_norm=True).to(device).to(memory_format=layout)
        images = inputs.to(memory_format=layout)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

        def run() -> None:
            with pieces.precision_context(precision, device):
                loss = cross_entropy(model(images).float(), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return run

    kinds = {
        "neither": (False, "float32"),
        "channels_last": (True, "float32"),
        "bf16": (False, "bfloat16"),
        "channels_last and bf16": (True, "bfloat16"),
    }
    times = interleaved({name: step(*kind) for name, kind in kinds.items()}, 9, device=device)
    return [
        {
            "what": f"step with {name} / with neither: three convolutions, batch 128, 32x32",
            "measured": ratios_of(times, name, "neither"),
            "target": "",
        }
        for name in list(kinds)[1:]
    ]


class _Transformed(torch.utils.data.Dataset):
    def __init__(self, dataset: ImageDataset, transform):
        self.images, self.labels, self.transform = dataset.images, dataset.labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.transform(self.images[index]), self.labels[index]


def _images(num: int, *, size: int) -> ImageDataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num, size, size, 3), dtype=np.uint8)
    return ImageDataset.from_arrays(images, rng.integers(0, 10, num))
