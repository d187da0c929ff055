"""What noise, matching, histories and ensembles cost, each against the plain way to do it."""

import copy

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.rows import ratios_of
from hardtrain import (
    GradientNoise,
    PredictionHistory,
    WeightedBatchSampler,
    build_network,
    class_conditional_mmd,
    mmd,
    sampling_probabilities,
)
from hardtrain.report.timing import interleaved
from hardtrain.runs.environment import keep_freed_memory
from hardtrain.strategies.subset_selection import EnsembleTally, mutual_information
from hardtrain.training import pieces

BATCH = 150  # of the ITDM paper, on either side


def rows() -> list[dict]:
    """Ratios and counts with their targets; seconds each, up to a minute for ITDM's steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    small = [*_matching(), *_active_bias()]
    torch.set_num_threads(threads)
    return [*_noise(), *small, *_ensemble(), *_matching_steps()]


def _noise() -> list[dict]:
    model = build_network("efficientnetv2_s", 102, 3)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    with _Operations() as plain:
        optimizer.step()
    noise = GradientNoise(optimizer, alpha=1e-5, gamma=0.55, generator=torch.Generator())
    optimizer.step()  # the first step makes the buffer
    with _Operations() as noisy:
        optimizer.step()
    noise.remove()
    hook = torch.optim.SGD(parameters, lr=0.0)
    hook.step = lambda: None
    noise = GradientNoise(hook, alpha=1e-5, gamma=0.55, generator=torch.Generator())
    flat = torch.empty(sum(p.numel() for p in parameters))
    generator = torch.Generator()
    functions = {
        "noise": lambda: noise._hook(hook, (), {}),
        "fill": lambda: flat.normal_(0, 0.003, generator=generator),
    }
    times = interleaved(functions, 15)
    network = f"{flat.numel() / 1e6:.1f} M parameters in {len(parameters)} tensors"
    return [
        {
            "what": f"gradient noise / filling one flat buffer: {network}",
            "measured": ratios_of(times, "noise", "fill"),
            "target": "<= 1.15",
        },
        {
            "what": f"operations that gradient noise adds to a step: {network}",
            "measured": noisy.count - plain.count,
            "target": "<= 3",
        },
    ]


def _matching() -> list[dict]:
    rows = []
    for width, target in ((128, 12), (512, 20)):
        x, y, _, _ = _features(width, 10)
        functions = {
            "ours": _with_gradient(lambda x=x, y=y: mmd(x, y), x, y),
            "expand": _with_gradient(lambda x=x, y=y: _plain_mmd(x, y, _expanded), x, y),
            "cdist": _with_gradient(lambda x=x, y=y: _plain_mmd(x, y, _cdist), x, y),
        }
        times = interleaved(functions, 9)
        with _Operations() as counted:
            functions["ours"]()
        what = f"{BATCH} + {BATCH} features, D = {width}, forward and backward"
        rows += [
            {
                "what": f"MMD by expanding and subtracting / mmd: {what}",
                "measured": ratios_of(times, "expand", "ours"),
                "target": f">= {target}",
            },
            {
                "what": f"mmd / MMD by cdist: {what}",
                "measured": ratios_of(times, "ours", "cdist"),
                "target": "<= 0.85",
            },
            {
                "what": f"largest temporary of mmd in MB: {what}",
                "measured": counted.largest / 1e6,
                "target": "<= 1",
            },
        ]
    for num_classes, target in ((10, 4), (100, 10)):
        x, y, x_labels, y_labels = _features(128, num_classes)
        sides = x, x_labels, y, y_labels, num_classes
        functions = {
            "ours": _with_gradient(lambda s=sides: class_conditional_mmd(*s), x, y),
            "loop": _with_gradient(lambda s=sides: _loop_over_classes(*s, _expanded), x, y),
            "cdist": _with_gradient(lambda s=sides: _loop_over_classes(*s, _cdist), x, y),
        }
        times = interleaved(functions, 9)
        with _Operations() as counted:
            functions["ours"]()
        what = f"{BATCH} + {BATCH} features, K = {num_classes}, D = 128, forward and backward"
        rows += [
            {
                "what": f"loop over classes / class_conditional_mmd: {what}",
                "measured": ratios_of(times, "loop", "ours"),
                "target": f">= {target}",
            },
            {
                "what": f"loop over classes with cdist / class_conditional_mmd: {what}",
                "measured": ratios_of(times, "cdist", "ours"),
                "target": "",
            },
            {
                "what": f"operations of class_conditional_mmd: {what}",
                "measured": counted.count,
                "target": "<= 120",
            },
        ]
    return rows


def _matching_steps() -> list[dict]:
    rows = []
    what, times = _matching_step("cnn5", 1, 28, repetitions=15)
    rows.append(
        {
            "what": f"step of ITDM by class / plain step, freed memory handed back: {what}",
            "measured": ratios_of(times, "matched", "plain"),
            "target": "",
        }
    )
    keep_freed_memory()
    for network, channels, side, repetitions in (("cnn5", 1, 28, 15), ("resnet18", 3, 32, 7)):
        what, times = _matching_step(network, channels, side, repetitions)
        rows += [
            {
                "what": f"step of ITDM by class / the same with a match that costs nothing: {what}",
                "measured": ratios_of(times, "matched", "free"),
                "target": "<= 1.05",
            },
            {
                "what": f"step of ITDM by class / plain step: {what}",
                "measured": ratios_of(times, "matched", "plain"),
                "target": "<= 2.0",
            },
        ]
    return rows


def _matching_step(network: str, channels: int, side: int, repetitions: int):
    """What is trained, and the times of a training step with the ITDM paper's optimiser: matched
    by class, with a match that costs nothing, and without a second batch."""
    torch.manual_seed(0)
    initial = build_network(network, 10, channels)
    inputs, others = torch.randn(2, BATCH, channels, side, side)
    targets, other_targets = torch.randint(10, (2, BATCH))

    def step(match) -> object:
        model = copy.deepcopy(initial)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.5)

        def run() -> None:
            features = model.features(inputs)
            loss = pieces.class_losses(model.classifier(features), targets).mean()
            if match is not None:
                loss = loss + 0.8 * match(features, model.features(others))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return run

    steps = {
        "matched": step(lambda x, y: class_conditional_mmd(x, targets, y, other_targets, 10)),
        "free": step(lambda x, y: (x.sum() + y.sum()) * 1e-9),
        "plain": step(None),
    }
    what = f"{network}, batches of {BATCH} images {side}x{side}"
    return what, interleaved(steps, repetitions)


def _active_bias() -> list[dict]:
    num_samples, batch_size = 50_000, 128
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.random(num_samples))
    probabilities = sampling_probabilities(scores, 0.1)
    sampler = WeightedBatchSampler(probabilities, batch_size, generator=torch.Generator())
    known = probabilities.numpy()
    history = PredictionHistory(num_samples)
    indices = torch.from_numpy(rng.integers(0, num_samples, batch_size))
    values = torch.from_numpy(rng.random(batch_size)).float()
    lists = [[] for _ in range(num_samples)]

    def append() -> None:
        for index, value in zip(indices.tolist(), values.tolist(), strict=True):
            lists[index].append(value)

    repeated = {
        "ours": lambda: sampler.draw(batch_size),
        "numpy": lambda: rng.choice(num_samples, batch_size, p=known),
        "update": lambda: history.update(indices, values),
        "append": append,
    }
    times = interleaved(repeated, 51)
    with _Operations() as counted:
        history.update(indices, values)
    what = f"{batch_size} of {num_samples} samples"
    return [
        {
            "what": f"numpy.random.choice / weighted draw: {what}",
            "measured": ratios_of(times, "numpy", "ours"),
            "target": ">= 10",
        },
        {
            "what": f"update of a prediction history / appending to lists: {what}",
            "measured": ratios_of(times, "update", "append"),
            "target": "",
        },
        {
            "what": f"operations of an update of a prediction history: {what}",
            "measured": counted.count,
            "target": "a few",
        },
    ]


def _ensemble() -> list[dict]:
    """200 members' predictions for 50,000 samples, of which there is never more than one block."""
    num_members, num_samples, num_classes, block = 200, 50_000, 10, 10_000
    generator = torch.Generator().manual_seed(0)
    with _Operations() as counted:
        for _ in range(num_samples // block):
            tally = EnsembleTally()
            for _ in range(num_members):
                logits = torch.randn(block, num_classes, generator=generator)
                tally.update(logits.softmax(dim=1))
            mutual_information(tally)
    whole = num_members * num_samples * num_classes * 4
    return [
        {
            "what": f"largest tensor of an acquisition in MB: {num_members} members, {num_samples} "
            f"samples in blocks of {block}; all predictions at once: {whole / 1e6:.0f} MB",
            "measured": counted.largest / 1e6,
            "target": "<= 4",
        }
    ]


class _Operations(TorchDispatchMode):
    """Counts operations, views aside, and the bytes of the largest tensor that one gives."""

    def __init__(self):
        super().__init__()
        self.count = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        aliases = [returned.alias_info for returned in func._schema.returns]
        self.count += all(alias is None or alias.is_write for alias in aliases)
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.numel() * value.element_size())
        return result


def _features(width: int, num_classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, BATCH, width, generator=generator)
    labels = torch.arange(BATCH) % num_classes
    return x.requires_grad_(), (y + 0.1).requires_grad_(), labels, labels.flip(0)


def _with_gradient(match, *sides: Tensor):
    def run() -> None:
        for side in sides:
            side.grad = None
        match().backward()

    return run


def _expanded(pooled: Tensor) -> Tensor:
    return (pooled[:, None] - pooled[None]).square().sum(dim=2)


def _cdist(pooled: Tensor) -> Tensor:
    # squares of cdist have no gradient at 0, so the way round it that is in use
    return torch.cdist(pooled, pooled).clamp(min=1e-12).square()


def _plain_mmd(x: Tensor, y: Tensor, distances_of) -> Tensor:
    distances = distances_of(torch.cat([x, y]))
    pairs = torch.ones_like(distances, dtype=torch.bool).triu(1)
    bandwidth = distances.detach()[pairs].median()
    kernel = sum(torch.exp(-distances / (scale * bandwidth)) for scale in (1, 2, 4, 8, 16)) / 5
    n = len(x)
    squared = kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()
    return squared.clamp(min=1e-12).sqrt()


def _loop_over_classes(x, x_labels, y, y_labels, num_classes: int, distances_of) -> Tensor:
    total = x.new_zeros(())
    for label in range(num_classes):
        mine, theirs = x[x_labels == label], y[y_labels == label]
        if len(mine) and len(theirs):
            total = total + _plain_mmd(mine, theirs, distances_of)
    return total / num_classes
