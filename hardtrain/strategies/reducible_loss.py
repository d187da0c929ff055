"""Reducible loss: of a large batch, learn from what is still to be learnt, and can be.

Mindermann et al., "Prioritized Training on Points that are Learnable, Worth Learning, and Not Yet
Learnt", ICML 2022 (RHO-LOSS), arXiv 2206.07137.
"""

from torch import Tensor

from hardtrain.strategies import _checks


def select_reducible(losses: Tensor, irreducible: Tensor, count: int) -> Tensor:
    r"""The samples of a batch whose loss is highest above their irreducible loss.

    .. math:: S = \arg\max_{|S| = b} \sum_{i \in S} \left( \ell_i - \ell^{irr}_i \right)

    A noisy label has a high loss, but a high irreducible loss too: no model that has not seen the
    sample predicts it. A sample that is learnt, or easy, has little left to reduce.

    Args:
        losses: ℓ, of the model in training, shape ``(B,)``, float, nats; no gradient is followed.
        irreducible: ℓ^irr, of a model that has not seen these samples, ``(B,)``, float, finite.
        count: b, how many to choose, 1 to B.

    Returns:
        Positions in the batch, int64 ``(count,)``, most reducible first; of equals the first. A
        NaN counts as the largest loss.

    Raises:
        ValueError: a wrong shape, ``count`` out of range, or an ``irreducible`` that is not finite
            (on the CPU; on a GPU looking would mean waiting).
        TypeError: an argument of the wrong type.

    Source:
        Algorithm 1: b of B with b / B = 0.1, the irreducible losses computed once, by a small model
        trained on held-out data. Without a held-out set two models train on one half each, and
        score the other, as the paper does too. Under DDP each rank chooses from
        its own part of the large batch, as the authors' parallel selection does.

    Example:
        >>> import torch
        >>> losses = torch.tensor([2.5, 0.1, 2.4, 1.0])  # the first is mislabelled
        >>> irreducible = torch.tensor([2.6, 0.1, 0.3, 0.2])
        >>> select_reducible(losses, irreducible, count=2)
        tensor([2, 3])

        In a loop over large batches that carry their indices::

            with torch.no_grad():
                losses = cross_entropy(model(inputs), targets, reduction="none")
            chosen = select_reducible(losses, irreducible[indices], count=32)
            loss = cross_entropy(model(inputs[chosen]), targets[chosen])
    """
    _checks.tensor("losses", losses, ("B",))
    _checks.tensor("irreducible", irreducible, losses.shape, device=losses.device)
    _checks.integer("count", count, 1, len(losses))
    if _checks.on_host(irreducible) and not irreducible.isfinite().all():
        raise ValueError(f"irreducible must be finite; got {irreducible.sum().item()} as its sum")
    reducible = losses.detach() - irreducible.detach()
    return reducible.argsort(descending=True, stable=True)[:count]
