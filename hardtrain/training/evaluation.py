"""Loss, error, features and logits of a network on a whole set."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hardtrain.data.batches import Transform
from hardtrain.data.images import ImageDataset


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
    was_training = model.training
    model.train(batch_statistics)
    losses, predictions = [], []
    autocast = precision_context(precision, dataset.images.device)
    with torch.no_grad(), autocast():
        for images, labels in zip(
            dataset.images.split(batch_size), dataset.labels.split(batch_size), strict=True
        ):
            logits = model(transform(images)).float()
            losses.append(cross_entropy(logits, labels, reduction="none"))
            predictions.append(logits.argmax(dim=1))
    model.train(was_training)
    losses, predictions = torch.cat(losses).cpu(), torch.cat(predictions).cpu()
    labels = dataset.labels.cpu()
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
    model: nn.Module, dataset: ImageDataset, transform: Transform, *, batch_size: int = 1000
) -> Tensor:
    """The last hidden layer's features ``(N, D)`` of a set, in evaluation mode, on the CPU."""
    return _outputs(model, model.features, dataset, transform, batch_size)


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
    buffers = [buffer.clone() for buffer in model.buffers()]
    with precision_context(precision, dataset.images.device)():
        logits = _outputs(model, model, dataset, transform, batch_size, batch_statistics)
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return logits


def _outputs(
    model: nn.Module,
    function: Callable,
    dataset: ImageDataset,
    transform: Transform,
    size: int,
    training: bool = False,
) -> Tensor:
    was_training = model.training
    model.train(training)
    with torch.no_grad():
        parts = [function(transform(images)).float().cpu() for images in dataset.images.split(size)]
    model.train(was_training)
    return torch.cat(parts)


def precision_context(precision: str, device: torch.device) -> Callable[[], Any]:
    """A maker of the context in which a forward pass runs: bf16 autocast, or nothing."""
    if precision == "bfloat16":
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext
