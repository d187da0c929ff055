"""Pieces that the methods, the loop and the evaluation share."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hardtrain.data.batches import Batch, Batches, Transform
from hardtrain.data.images import ImageDataset
from hardtrain.data.samplers import BalancedBatchSampler, UniformBatchSampler
from hardtrain.training.randomness import generator


def sample_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of each sample of a batch ``(B,)``, in float32 under autocast too."""
    return class_losses(model(batch.inputs), batch.targets)


def class_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each row of logits ``(B,)``, in float32 under autocast too."""
    return cross_entropy(logits.float(), targets, reduction="none")


def mean_objective(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The losses of a batch and their mean: what plain training minimises."""
    losses = sample_losses(model, batch)
    return losses, losses.mean()


def precision_context(
    precision: str, device: torch.device
) -> contextlib.AbstractContextManager[None]:
    """The context in which a forward pass runs: autocast for ``"bfloat16"``, else nothing."""
    if precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def uniform_batches(
    run: Any, data: ImageDataset, *, prefix: str = ""
) -> tuple[Batches, dict[str, torch.Generator]]:
    """Batches drawn without replacement, with the classes alike if the run wants ``balanced``
    ones, and the generators that a checkpoint must hold; ``prefix`` makes further, independent
    ones."""
    order = generator(run.seed, f"{prefix}order")
    options = {"drop_last": run.drop_last, "generator": order}
    if run.balanced:
        sampler: UniformBatchSampler = BalancedBatchSampler(data.labels, run.batch_size, **options)
    else:
        sampler = UniformBatchSampler(len(data), run.batch_size, **options)
    batches, state = augmented_batches(run, data, sampler, prefix=prefix)
    return batches, {f"{prefix}order": order} | state


def augmented_batches(
    run: Any, data: ImageDataset, batch_sampler: Iterable, *, prefix: str = ""
) -> tuple[Batches, dict[str, torch.Generator]]:
    """The run's augmented batches of the samples that ``batch_sampler`` names, and the generator
    that augments them."""
    draws = generator(run.seed, f"{prefix}augmentation")
    options = {"generator": draws, "channels_last": run.channels_last}
    batches = Batches(data, train_transform(run, data), batch_sampler, **options)
    return batches, {f"{prefix}augmentation": draws}


class ChosenBatches:
    """Of batches of candidates what ``choose`` takes, gathered until ``batch_size`` are there.

    ``choose``: gives positions in a candidate batch, in its order or another. Candidates are not
    looked at before there is room for what they give. The last batch of a pass may be shorter, but
    for one of a single sample, which batch-norm cannot take, unless it is the pass's only one.
    """

    def __init__(
        self,
        candidates: Batches,
        choose: Callable[[Batch], Tensor],
        batch_size: int,
        *,
        drop_last: bool = False,
    ):
        self.candidates, self.choose = candidates, choose
        self.batch_size, self.drop_last = batch_size, drop_last
        self.dataset, self.batch_sampler = candidates.dataset, candidates.batch_sampler

    def __len__(self) -> int:
        """The most that a pass can have, if no more is chosen of a batch than ``batch_size``."""
        return len(self.candidates)

    def __iter__(self) -> Iterator[Batch]:
        pool: list[Batch] = []
        num_yielded = 0
        for batch in self.candidates:
            chosen = self.choose(batch)
            pool = self._merged([*pool, Batch(*(part.index_select(0, chosen) for part in batch))])
            while len(pool[0].indices) >= self.batch_size:
                yield Batch(*(part[: self.batch_size] for part in pool[0]))
                num_yielded += 1
                pool = [Batch(*(part[self.batch_size :] for part in pool[0]))]
        rest = len(pool[0].indices)
        if rest and (num_yielded == 0 or (rest > 1 and not self.drop_last)):
            yield pool[0]

    def _merged(self, pool: list[Batch]) -> list[Batch]:
        inputs, targets, indices = map(torch.cat, zip(*pool, strict=True))
        if self.candidates.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return [Batch(inputs, targets, indices)]


def train_transform(run: Any, data: ImageDataset) -> Transform:
    """The run's resize, augmentation and normalisation, from the training images."""
    crop, flip = "crop" in run.augment, "flip" in run.augment
    return Transform.of(data, size=run.image_size, crop_padding=4 if crop else 0, flip=flip)


def endless(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches of one pass after another."""
    while True:
        yield from batches


def try_hooks(model: nn.Module, hooks: Iterable[Callable]) -> None:
    """Attach hooks to an optimiser and remove them: what they refuse is refused before training."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)  # any: hooks look at gradients
    handles: list[Any] = []
    try:
        handles += (hook(optimizer) for hook in hooks)
    finally:
        for handle in handles:
            handle.remove()


class Attached:
    """A hook that exists only once the optimiser does, as a part of a method's state."""

    def __init__(self, make: Callable[[torch.optim.Optimizer], Any]):
        self.make = make

    def attach(self, optimizer: torch.optim.Optimizer) -> Any:
        self.hook = self.make(optimizer)
        return self.hook

    def state_dict(self) -> dict:
        return self.hook.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.hook.load_state_dict(state)
