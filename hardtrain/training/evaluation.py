"""Loss, error, features and logits of a network on a whole set."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hardtrain.data.batches import Transform
from hardtrain.data.images import ImageDataset
from hardtrain.training.pieces import precision_context


class Evaluation(NamedTuple):
    """Mean cross-entropy (nats), error (fraction), and both per sample and class."""

    loss: float
    error: float
    per_class_error: list[float | None]  # None: the set holds no sample of this class
    losses: Tensor  # (N,)
    predictions: Tensor  # (N,)


def evaluate(
    model: nn.Module,
    dataset: ImageDataset,
    transform: Transform,
    *,
    batch_size: int = 1000,
    precision: str = "float32",
    batch_statistics: bool = False,
) -> Evaluation:
    """Loss and error of ``model`` on ``dataset``, in evaluation mode, in the order of the set.

    ``transform`` must not augment. With ``batch_statistics`` the model is evaluated in training
    mode, where batch-norm uses each batch's statistics and also updates its running ones. The
    model's mode is restored; one synchronisation in all.
    """
    with precision_context(precision, dataset.images.device):
        logits = _outputs(model, model, dataset, transform, batch_size, batch_statistics)
    losses = cross_entropy(logits, dataset.labels, reduction="none")
    # one transfer; float64 holds both exactly
    both = torch.stack([losses.double(), logits.argmax(dim=1).double()]).cpu()
    losses, predictions, labels = both[0].float(), both[1].long(), dataset.labels_on_host
    wrong = (predictions != labels).double()
    counts = torch.bincount(labels, minlength=dataset.num_classes).tolist()
    misses = torch.bincount(labels, wrong, minlength=dataset.num_classes).tolist()
    return Evaluation(
        loss=losses.double().mean().item(),
        error=wrong.mean().item(),
        per_class_error=[m / n if n else None for m, n in zip(misses, counts, strict=True)],
        losses=losses,
        predictions=predictions,
    )


def extract_features(
    model: Any, dataset: ImageDataset, transform: Transform, *, batch_size: int = 1000
) -> Tensor:
    """Features ``(N, D)`` by ``model.features`` of a set, in evaluation mode, on the CPU."""
    return _outputs(model, model.features, dataset, transform, batch_size).cpu()


def extract_logits(
    model: nn.Module,
    dataset: ImageDataset,
    transform: Transform,
    *,
    batch_size: int = 1000,
    precision: str = "float32",
    batch_statistics: bool = False,
) -> Tensor:
    """The logits ``(N, K)`` of a set from which `evaluate` has its numbers, on the CPU; they
    leave batch-norm's running statistics alone."""
    with buffers_restored(model), precision_context(precision, dataset.images.device):
        return _outputs(model, model, dataset, transform, batch_size, batch_statistics).cpu()


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """The model in training or evaluation mode, without gradients; afterwards in its own mode."""
    was_training = model.training
    model.train(training)
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextlib.contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    """Whatever runs inside, batch-norm's running statistics are as before when it ends."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)


def _outputs(
    model: nn.Module,
    function: Callable[[Tensor], Tensor],
    dataset: ImageDataset,
    transform: Transform,
    batch_size: int,
    training: bool = False,
) -> Tensor:
    """``function`` of all images, in float32, on their device."""
    with in_mode(model, training=training):
        batches = dataset.images.split(batch_size)
        return torch.cat([function(transform(images)).float() for images in batches])
