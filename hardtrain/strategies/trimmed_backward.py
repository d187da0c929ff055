"""Trimmed backward: the backward pass of mini-batch trimming on the kept samples only."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hardtrain.strategies import _checks
from hardtrain.strategies.trimming import Criterion, as_criterion, losses_per_sample, num_kept, trim

# Above it two passes can cost more than one. If a backward pass costs two forward passes,
# 1 + 3 keep < 3 up to 2/3; measured on CPU cores, break-even lay between 0.7 and 0.8. Replaying
# recorded activations in place of the second forward pass was measured, too, and gained nothing.
_PLAIN_ABOVE = 0.65


def trimmed_backward(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    keep: float,
    *,
    criterion: Criterion | None = None,
    backward: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """Gradients of the trimmed loss, from a backward pass over the kept samples only.

    Adds to every ``.grad`` what ``trim(criterion(model(inputs), targets), keep).backward()``
    would add, up to rounding. All samples pass forward once without a graph; then the k of
    largest loss pass forward again with a graph, and backward. Above ``keep`` 0.65 it is the
    ordinary step, which is then the fastest. Small models on a GPU, bound by the launch of each
    operation, gain nothing.

    Args:
        model: the samples of a batch must not influence each other, and nothing may be drawn at
            random. It is called twice: hooks fire twice, and buffers that a forward pass changes
            are changed twice.
        inputs: ``(B, ...)``, one tensor.
        targets: ``(B, ...)``, one tensor.
        keep: as in :func:`trim`.
        criterion: ``(logits, targets) -> losses (B,)``; by default cross-entropy in nats.
        backward: called with the loss, shape ``()``; by default ``loss.backward()``. With a
            gradient scaler: ``lambda loss: scaler.scale(loss).backward()``.

    Returns:
        The losses of all samples, shape ``(B,)``, detached.

    Raises:
        ValueError: a batch-norm that uses batch statistics, or dropout with p > 0 in training
            mode (both named), a model that draws random numbers otherwise, a criterion that does
            not give one loss per sample, different lengths, ``keep`` outside (0, 1].
        TypeError: an argument of the wrong type.

    Under ``DistributedDataParallel`` every rank keeps the hardest of its own samples, as
    :func:`trim` does there; gradients are averaged over the ranks in the one backward pass.

    Source:
        Section 2 promises a shorter backward pass for networks without batch-norm. ``topk`` on
        the losses alone does not give it: the backward pass then carries zeros. Hence this
        function, which is not in the paper.

    Example:
        >>> model = torch.nn.Linear(2, 3)
        >>> inputs, targets = torch.randn(8, 2), torch.randint(3, (8,))
        >>> losses = trimmed_backward(model, inputs, targets, keep=0.25)
        >>> losses.shape, losses.requires_grad, model.weight.grad.shape
        (torch.Size([8]), False, torch.Size([3, 2]))
    """
    _checks.instance("model", model, nn.Module)
    _checks.instance("inputs", inputs, Tensor)
    _checks.instance("targets", targets, Tensor)
    if inputs.ndim == 0 or len(inputs) == 0 or targets.shape[:1] != inputs.shape[:1]:
        raise ValueError(
            "inputs and targets must have the same length B >= 1; "
            f"got shapes {tuple(inputs.shape)} and {tuple(targets.shape)}"
        )
    k = num_kept(_checks.fraction("keep", keep), len(inputs))
    criterion, backward = as_criterion(criterion), backward or Tensor.backward
    _refuse_batch_dependence(model)
    if keep > _PLAIN_ABOVE or k == len(inputs):
        losses = losses_per_sample(criterion, model(inputs), targets)
        backward(trim(losses, keep))
        return losses.detach()
    state = _random_state(inputs.device)
    with torch.no_grad():
        losses = losses_per_sample(criterion, model(inputs), targets)
    if not torch.equal(state, _random_state(inputs.device)):
        raise ValueError("model draws random numbers, and would draw others in the second pass")
    # autocast keeps weights that it cast without a graph, and the next pass needs one
    torch.clear_autocast_cache()
    kept = losses.topk(k).indices
    backward(losses_per_sample(criterion, model(inputs[kept]), targets[kept]).mean())
    return losses


def _refuse_batch_dependence(model: nn.Module) -> None:
    for name, module in model.named_modules():
        what = f"{name or 'model'} ({type(module).__name__})"
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.training or module.running_mean is None:
                raise ValueError(
                    f"model has a batch-norm that uses batch statistics: {what}; a backward pass "
                    "over the kept samples needs samples that do not influence each other. "
                    "Use trim(losses, keep).backward(), or call .eval() on it"
                )
        elif module.training and _dropout(module) > 0:
            raise ValueError(
                f"model has dropout in training mode: {what}, p = {_dropout(module)}; its second "
                "forward pass would draw another mask. Use trim(losses, keep).backward(), or p = 0"
            )


def _random_state(device: torch.device) -> Tensor:
    """Of the generator that a model on ``device`` draws from; lies on the host for CUDA, too."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _dropout(module: nn.Module) -> float:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return module.dropout
    return 0.0
