"""Mini-batch trimming: learn from the hardest part of each mini-batch.

Fassold, "Some like it tough: Improving model generalization via progressively increasing the
training difficulty".
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hardtrain.strategies import _checks

Criterion = Callable[[Tensor, Tensor], Tensor]
Epoch = TypeVar("Epoch", float, Tensor)


def trim(losses: Tensor, keep: float) -> Tensor:
    r"""Mean of the largest ``keep`` fraction of the per-sample losses.

    .. math:: L = \frac{1}{k} \sum_{i=1}^{k} \ell_{(i)}, \quad
              \ell_{(1)} \ge \dots \ge \ell_{(B)}, \quad k = \max(1, [keep \cdot B])

    Args:
        losses: shape ``(B,)``, float; nats if from cross-entropy.
        keep: fraction p that counts, in ``(0, 1]``; 1 is ``losses.mean()``, bit for bit.

    Returns:
        Scalar, shape ``()``. Dropped samples get zero gradient. Of equal losses at the border
        ``topk`` chooses, so that exactly k samples count. A NaN counts as largest.

    Raises:
        ValueError: ``losses`` is not ``(B,)`` with B >= 1, or ``keep`` is outside (0, 1].
        TypeError: ``losses`` is not a float tensor, or ``keep`` is not a number.

    Under ``DistributedDataParallel`` every rank keeps the hardest of its own samples. For the
    hardest of all ranks' samples, gather first, as in one process with the whole batch::

        losses = torch.cat(torch.distributed.nn.functional.all_gather(losses))

    Source:
        Section 2 (no numbered equation). The paper leaves the rounding open; the author's code
        rounds to nearest, as here (halves to even: 2.5 gives 2). B is the size of the batch at
        hand, so a smaller last batch keeps the same fraction.

    Example:
        >>> trim(torch.tensor([0.1, 2.0, 0.5, 1.0]), keep=0.5)
        tensor(1.5000)
    """
    _checks.tensor("losses", losses, ("B",))
    k = num_kept(_checks.fraction("keep", keep), len(losses))
    # topk over all of them sums in sorted order, which rounds differently
    return losses.mean() if k == len(losses) else losses.topk(k).values.mean()


def num_kept(keep: float, num_samples: int) -> int:
    """k, the number of samples of a batch that count."""
    # round, not ceil: 0.07 * 100 is 7.000000000000001 in floating point
    return max(1, round(keep * num_samples))


class TrimmedLoss(nn.Module):
    r""":func:`trim` as a loss module whose ``keep`` falls linearly from epoch to epoch.

    .. math:: p_e = a + (b - a) \frac{e}{E - 1}, \quad e = 0, \dots, E - 1

    Args:
        criterion: ``(logits, targets) -> losses (B,)``, one loss per sample; by default
            cross-entropy in nats. Of an ``nn.CrossEntropyLoss(reduction="none")`` the mean is the
            one that it would take itself: over class weights, without ignored targets, of which
            none is kept. Label smoothing and soft targets ``(B, K)`` need nothing.
        start: a, the fraction ``keep`` of epoch 0, in ``(0, 1]``.
        end: b, the fraction of epoch ``num_epochs - 1``, in ``(0, 1]``; may exceed ``start``.
        num_epochs: E >= 1; with 1 the only epoch has ``start``.

    Shape:
        ``forward(logits, targets)``: ``(B, K)`` and ``(B,)`` to ``()``. In eval mode, and with
        gradients switched off (validation), it is the mean over all samples.

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
        >>> loss_function = TrimmedLoss(num_epochs=5)
        >>> for epoch in range(5):
        ...     loss_function.set_epoch(epoch)
        ...     print(f"{loss_function.keep:.1f}", end=" ")
        1.0 0.8 0.6 0.4 0.2
        >>> loss_function(torch.eye(3), torch.tensor([0, 1, 0]))
        tensor(1.5514)
    """

    epoch: Tensor

    def __init__(
        self,
        criterion: Criterion | None = None,
        *,
        start: float = 1.0,
        end: float = 0.2,
        num_epochs: int,
    ) -> None:
        super().__init__()
        if criterion is None:
            criterion = nn.CrossEntropyLoss(reduction="none")
        if isinstance(criterion, type):  # calling it would make a loss, not give one
            raise TypeError(
                f"criterion must be an instance, as {criterion.__name__}(reduction='none'); got "
                "the class"
            )
        self.criterion = as_criterion(criterion)
        self.start, self.end = _checks.fraction("start", start), _checks.fraction("end", end)
        self.num_epochs = _checks.integer("num_epochs", num_epochs)
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
        number = _checks.integer("epoch", epoch, 0, self.num_epochs - 1)
        self._keep, self._epoch_is_set = self._keep_at(number), True
        with torch.no_grad():
            self.epoch.fill_(number)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss ``()`` of logits ``(B, K)`` and targets ``(B,)``."""
        losses = losses_per_sample(self.criterion, logits, targets)
        trims = self.training and torch.is_grad_enabled()
        if trims and not self._epoch_is_set and self.num_epochs > 1:
            raise RuntimeError("call set_epoch(epoch) before the first forward in training mode")
        amounts = self._amounts(targets)
        if torch.compiler.is_compiling():  # k as a tensor: one graph serves all epochs
            keep = self._keep_at(self.epoch.clamp(min=0).double()) if trims else 1.0
            amounts = torch.ones_like(losses) if amounts is None else amounts
            return _trimmed_mean(losses, amounts, keep)
        if amounts is not None:
            return _trimmed_mean(losses, amounts, self._keep if trims else 1.0)
        return trim(losses, self._keep) if trims else losses.mean()

    def _amounts(self, targets: Tensor) -> Tensor | None:
        """What cross-entropy's own mean divides by, for each sample: its class's weight, 0 if it is
        ignored; None if all count alike."""
        criterion = self.criterion
        if not isinstance(criterion, nn.CrossEntropyLoss) or targets.is_floating_point():
            return None
        counts = targets != criterion.ignore_index
        if criterion.weight is not None:
            return criterion.weight[targets.where(counts, 0)] * counts
        looked = not torch.compiler.is_compiling() and _checks.on_host(targets)
        return None if looked and bool(counts.all()) else counts.float()

    def _keep_at(self, epoch: Epoch) -> Epoch:
        part = epoch / max(1, self.num_epochs - 1)
        return self.start * (1 - part) + self.end * part  # exact at both ends

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"start={self.start}, end={self.end}, num_epochs={self.num_epochs}"


def _trimmed_mean(losses: Tensor, amounts: Tensor, keep: float | Tensor) -> Tensor:
    """`trim` of the losses whose amount is not 0, divided by the amounts, without a look at them:
    k is a tensor."""
    counts = amounts > 0
    k = (keep * counts.sum()).round().clamp(min=1)
    ranked = losses.masked_fill(~counts, -torch.inf).argsort(descending=True)
    kept = (torch.arange(len(losses), device=losses.device) < k) & counts[ranked]
    total = torch.where(kept, losses[ranked], 0).sum()
    return total / torch.where(kept, amounts[ranked], 0).sum().to(losses.dtype)


def _take_loaded_epoch(module: TrimmedLoss, incompatible_keys: object) -> None:
    epoch = int(module.epoch)
    module._keep, module._epoch_is_set = module.start, False
    if epoch >= 0:
        module.set_epoch(epoch)


def as_criterion(criterion: Criterion | None) -> Criterion:
    """``criterion``, or by default the cross-entropy of each sample in nats."""
    if criterion is None:
        return partial(F.cross_entropy, reduction="none")
    if not callable(criterion):
        raise TypeError(f"criterion must be callable; got {criterion!r}")
    return criterion


def losses_per_sample(criterion: Criterion, logits: Tensor, targets: Tensor) -> Tensor:
    """The losses ``(B,)``; a criterion that gives anything else is refused."""
    losses = criterion(logits, targets)
    shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
    if shape != (len(targets),):
        raise ValueError(
            f"criterion must give one loss per sample, shape ({len(targets)},); got {shape}. "
            "PyTorch's own criteria do with reduction='none'"
        )
    return losses
