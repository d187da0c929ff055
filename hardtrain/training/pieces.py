"""Pieces that the methods share."""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hardtrain.data.batches import Batches, Transform
from hardtrain.data.images import ImageDataset
from hardtrain.data.samplers import BalancedBatchSampler, UniformBatchSampler

# --- pieces that methods share ------------------------------------------------------------------


def sample_losses(model, batch) -> Tensor:
    """Cross-entropy of each sample of a batch ``(B,)``, in float32 under autocast too."""
    return class_losses(model(batch.inputs), batch.targets)


def class_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each row of logits ``(B,)``, in float32 under autocast too."""
    return cross_entropy(logits.float(), targets, reduction="none")


def mean_objective(model, batch) -> tuple[Tensor, Tensor]:
    """The losses of a batch and their mean: what plain training minimises."""
    losses = sample_losses(model, batch)
    return losses, losses.mean()


def uniform_batches(run, data: ImageDataset, *, prefix: str = "") -> tuple[Batches, dict]:
    """Batches drawn without replacement, with the classes alike if the run wants ``balanced``
    ones, and the generators that a checkpoint must hold; ``prefix`` makes further, independent
    ones."""
    order = generator(run.seed, f"{prefix}order")
    augmentation = generator(run.seed, f"{prefix}augmentation")
    options = {"drop_last": run.drop_last, "generator": order}
    if run.balanced:
        sampler = BalancedBatchSampler(data.labels, run.batch_size, **options)
    else:
        sampler = UniformBatchSampler(len(data), run.batch_size, **options)
    batches = Batches(
        data,
        train_transform(run, data),
        sampler,
        generator=augmentation,
        channels_last=run.channels_last,
    )
    return batches, {f"{prefix}order": order, f"{prefix}augmentation": augmentation}


def train_transform(run, data: ImageDataset) -> Transform:
    """The run's resize, augmentation and normalisation, from the training images."""
    crop, flip = "crop" in run.augment, "flip" in run.augment
    return Transform.of(data, size=run.image_size, crop_padding=4 if crop else 0, flip=flip)


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose of one run; different purposes are independent."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose))


def derived_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed from a run's seed and a purpose.

    Example:
        >>> derived_seed(0, "order") == derived_seed(0, "order") != derived_seed(0, "noise")
        True
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Attached:
    """A hook that exists only once the optimiser does, as a part of a method's state."""

    def __init__(self, make: Callable):
        self.make, self.hook = make, None

    def attach(self, optimizer: torch.optim.Optimizer):
        self.hook = self.make(optimizer)
        return self.hook

    def state_dict(self) -> dict:
        return self.hook.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.hook.load_state_dict(state)
