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


# Above it two passes can cost more than one. If a backward pass costs two forward passes,
# 1 + 3 keep < 3 up to 2/3; measured on CPU cores, break-even lay between 0.7 and 0.8. Replaying
# recorded activations in place of the second forward pass was measured, too, and gained nothing.
_PLAIN_ABOVE = 0.65


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
