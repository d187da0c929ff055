"""Mini-batch trimming: learn from the hardest part of each mini-batch.

Fassold, "Some like it tough: Improving model generalization via progressively increasing the
training difficulty".
"""

import operator
from collections.abc import Callable
from functools import partial
from numbers import Integral, Real

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Criterion = Callable[[Tensor, Tensor], Tensor]


def trim(losses: Tensor, keep: float) -> Tensor:
    r"""Mean of the largest ``keep`` fraction of the per-sample losses.

    .. math:: L = \frac{1}{k} \sum_{i=1}^{k} \ell_{(i)}, \quad
              \ell_{(1)} \ge \dots \ge \ell_{(B)}, \quad k = \max(1, [keep \cdot B])

    Args:
        losses: shape ``(B,)``, float; nats if from cross-entropy.
        keep: fraction p that counts, in ``(0, 1]``; 1 is ``losses.mean()``, bit for bit.

    Returns:
        Scalar, shape ``()``. Dropped samples get zero gradient; of equal losses at the border
        ``topk`` chooses, so that exactly k samples count. A NaN counts as largest.

    Raises:
        ValueError: ``losses`` is not ``(B,)`` with B >= 1, or ``keep`` is outside (0, 1].
        TypeError: ``losses`` is not a float tensor, or ``keep`` is not a number.

    Source:
        Section 2 (no numbered equation). The paper leaves the rounding open; the author's code
        rounds to nearest, as here (halves to even: 2.5 gives 2). B is the size of the batch at
        hand, so a smaller last batch keeps the same fraction.

    Example:
        >>> import torch
        >>> trim(torch.tensor([0.1, 2.0, 0.5, 1.0]), keep=0.5)
        tensor(1.5000)
    """
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        what = losses.dtype if isinstance(losses, Tensor) else type(losses).__name__
        raise TypeError(f"losses must be a float tensor; got {what}")
    if losses.ndim != 1 or len(losses) == 0:
        raise ValueError(f"losses must have shape (B,), B >= 1; got {tuple(losses.shape)}")
    k = num_kept(_fraction("keep", keep), len(losses))
    # topk over all of them sums in sorted order, which rounds differently
    return losses.mean() if k == len(losses) else losses.topk(k).values.mean()


class TrimmedLoss(nn.Module):
    r""":func:`trim` as a loss module whose ``keep`` falls linearly from epoch to epoch.

    .. math:: p_e = a + (b - a) \frac{e}{E - 1}, \quad e = 0, \dots, E - 1

    Args:
        criterion: ``(logits, targets) -> losses (B,)``, one loss per sample; by default
            cross-entropy in nats.
        start: a, the fraction ``keep`` of epoch 0, in ``(0, 1]``.
        end: b, the fraction of epoch ``num_epochs - 1``, in ``(0, 1]``; may exceed ``start``.
        num_epochs: E >= 1; with 1 the only epoch has ``start``.

    Shape:
        ``forward(logits, targets)``: ``(B, K)`` and ``(B,)`` to ``()``. In eval mode it is the
        mean over all samples.

    Raises:
        ValueError: a fraction outside (0, 1], ``num_epochs`` < 1, an epoch outside
            ``[0, num_epochs)``, or a criterion that does not give one loss per sample.
        TypeError: an argument of the wrong type.
        RuntimeError: a forward in training mode before the first ``set_epoch`` (with
            ``num_epochs`` > 1): it would silently be training at ``start``.

    The epoch is the buffer ``epoch`` (-1: not set) of ``state_dict``; loading restores ``keep``.

    Source:
        Section 2: "linearly decreased", 1.0 in the first epoch, 0.2 in the last, E = 150.

    Example:
        >>> import torch
        >>> loss_function = TrimmedLoss(num_epochs=5)
        >>> for epoch in range(5):
        ...     loss_function.set_epoch(epoch)
        ...     print(f"{loss_function.keep:.1f}", end=" ")
        1.0 0.8 0.6 0.4 0.2
        >>> loss_function(torch.eye(3), torch.tensor([0, 1, 0]))
        tensor(1.5514)
    """

    def __init__(
        self,
        criterion: Criterion | None = None,
        *,
        start: float = 1.0,
        end: float = 0.2,
        num_epochs: int,
    ):
        super().__init__()
        self.criterion = _criterion(criterion)
        self.start, self.end = _fraction("start", start), _fraction("end", end)
        self.num_epochs = _integer("num_epochs", num_epochs)
        if self.num_epochs < 1:
            raise ValueError(f"num_epochs must be at least 1; got {num_epochs}")
        # keep as a number for the host; the epoch as a tensor for compiled code, where a number
        # would be burnt into one graph per epoch; int64, so that .half() does not round it
        self._keep, self._epoch_is_set = self.start, False
        self.register_buffer("epoch", torch.tensor(-1))
        self.register_load_state_dict_post_hook(_take_loaded_epoch)

    @property
    def keep(self) -> float:
        """The fraction of each mini-batch that counts in the current epoch."""
        return self._keep

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, 0 to ``num_epochs - 1``."""
        number = _integer("epoch", epoch)
        if not 0 <= number < self.num_epochs:
            raise ValueError(f"epoch must be in [0, {self.num_epochs}) (num_epochs); got {epoch}")
        self._keep, self._epoch_is_set = self._keep_at(number), True
        with torch.no_grad():
            self.epoch.fill_(number)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses = _per_sample(self.criterion, logits, targets, len(logits))
        if not self.training:
            return losses.mean()
        if not self._epoch_is_set and self.num_epochs > 1:
            raise RuntimeError("call set_epoch(epoch) before the first forward in training mode")
        if not torch.compiler.is_compiling():
            return trim(losses, self._keep)
        # the same with k as a tensor: one graph serves all epochs
        keep = self._keep_at(self.epoch.clamp(min=0).double())
        k = (keep * len(losses)).round().clamp(min=1)
        ranked = losses.sort(descending=True).values
        kept = torch.arange(len(losses), device=losses.device) < k
        return torch.where(kept, ranked, 0).sum() / k.to(losses.dtype)

    def _keep_at(self, epoch):
        part = epoch / max(1, self.num_epochs - 1)
        return self.start * (1 - part) + self.end * part  # exact at both ends

    def extra_repr(self) -> str:
        return f"start={self.start}, end={self.end}, num_epochs={self.num_epochs}"


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

    Source:
        Section 2 promises a shorter backward pass for networks without batch-norm. ``topk`` on
        the losses alone does not give it: the backward pass then carries zeros. Hence this
        function, which is not in the paper.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 3)
        >>> inputs, targets = torch.randn(8, 2), torch.randint(3, (8,))
        >>> losses = trimmed_backward(model, inputs, targets, keep=0.25)
        >>> losses.shape, losses.requires_grad, model.weight.grad.shape
        (torch.Size([8]), False, torch.Size([3, 2]))
    """
    for name, value, kind in (
        ("model", model, nn.Module),
        ("inputs", inputs, Tensor),
        ("targets", targets, Tensor),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__}; got {type(value).__name__}")
    if inputs.ndim == 0 or len(inputs) == 0 or targets.shape[:1] != inputs.shape[:1]:
        raise ValueError(
            "inputs and targets must have the same length B >= 1; "
            f"got shapes {tuple(inputs.shape)} and {tuple(targets.shape)}"
        )
    num_samples = len(inputs)
    k = num_kept(_fraction("keep", keep), num_samples)
    criterion, backward = _criterion(criterion), backward or Tensor.backward
    _refuse_batch_dependence(model)
    if keep > _PLAIN_ABOVE or k == num_samples:
        losses = _per_sample(criterion, model(inputs), targets, num_samples)
        backward(trim(losses, keep))
        return losses.detach()
    state = _random_state(inputs.device)
    with torch.no_grad():
        losses = _per_sample(criterion, model(inputs), targets, num_samples)
    if not torch.equal(state, _random_state(inputs.device)):
        raise ValueError("model draws random numbers, and would draw others in the second pass")
    # autocast keeps weights that it cast without a graph, and the next pass needs one
    torch.clear_autocast_cache()
    kept = losses.topk(k).indices
    loss = _per_sample(criterion, model(inputs[kept]), targets[kept], k).mean()
    backward(loss)
    return losses


# Above it two passes can cost more than one. If a backward pass costs two forward passes,
# 1 + 3 keep < 3 up to 2/3; measured on CPU cores, break-even lay between 0.7 and 0.8. Replaying
# recorded activations in place of the second forward pass was measured, too, and gained nothing.
_PLAIN_ABOVE = 0.65


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


def num_kept(keep: float, num_samples: int) -> int:
    """k, the number of samples of a batch that count."""
    # round, not ceil: 0.07 * 100 is 7.000000000000001 in floating point
    return max(1, round(keep * num_samples))


def _fraction(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number in (0, 1]; got {value!r}")
    if not 0 < value <= 1:  # also true for NaN
        raise ValueError(f"{name} must be a finite number in (0, 1]; got {value}")
    return float(value)


def _integer(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer; got {value!r}")
    return operator.index(value)


def _criterion(criterion: Criterion | None) -> Criterion:
    if criterion is None:
        return partial(F.cross_entropy, reduction="none")
    if not callable(criterion):
        raise TypeError(f"criterion must be callable; got {criterion!r}")
    return criterion


def _per_sample(criterion: Criterion, logits: Tensor, targets: Tensor, num_samples: int) -> Tensor:
    losses = criterion(logits, targets)
    shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
    if shape != (num_samples,):
        raise ValueError(
            f"criterion must give one loss per sample, shape ({num_samples},); got {shape}. "
            "PyTorch's own criteria do with reduction='none'"
        )
    return losses


def _take_loaded_epoch(module: TrimmedLoss, incompatible_keys: object) -> None:
    epoch = int(module.epoch)
    module._keep, module._epoch_is_set = module.start, False
    if epoch >= 0:
        module.set_epoch(epoch)
