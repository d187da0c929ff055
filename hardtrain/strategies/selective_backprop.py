"""Selective-Backprop: backpropagate a sample the more probably, the higher its loss ranks.

Jiang et al., "Accelerating Deep Learning by Focusing on the Biggest Losers", arXiv 1910.00762.
"""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from hardtrain.strategies import _checks


class SelectiveBackprop:
    r"""Chooses from a batch the samples whose loss is to be backpropagated.

    .. math:: P(i) = F_R(\ell_i)^\beta, \quad F_R(\ell) = \frac{1}{|R|} |\{r \in R: r \le \ell\}|

    R are the last losses that were seen, this batch's included. On average 1 / (1 + β) of the
    samples are chosen, and at least one of a batch, the one of highest loss.

    Args:
        beta: β > 0: 1 chooses a half, 2 a third; the larger, the fewer and the harder.
        history: how many losses are remembered, the size of R, at least 1.
        generator: on the CPU; one number a sample comes from it, so its state is the state to
            save, beside this object's. None: torch's global one.

    Shape:
        ``choose(losses)``: ``(B,)`` float, nats; gives positions in the batch, int64 ``(S,)``,
        ascending, on the losses' device. On a GPU it waits: S is not known before.

    Raises:
        ValueError: an argument of the wrong shape or out of range; a state of other settings.
        TypeError: an argument of the wrong type.

    Source:
        Section 3. The history holds 1024 losses in the authors' code, which also chooses
        everything in the first epoch (here nothing is exempt) and adds a batch's losses before it
        ranks them, as here. At least one sample of a batch is our rule. The paper gathers what
        is chosen until a whole batch is full, as the method ``selective_backprop`` does.

    Example:
        >>> selective = SelectiveBackprop(beta=2, generator=torch.Generator().manual_seed(0))
        >>> losses = torch.tensor([0.1, 0.2, 0.3, 4.0])
        >>> selective.choose(losses)
        tensor([2, 3])

        In a loop; under DDP each rank chooses from its own samples, and has a state of its own::

            with torch.no_grad():
                losses = cross_entropy(model(inputs), targets, reduction="none")
            chosen = selective.choose(losses)
            loss = cross_entropy(model(inputs[chosen]), targets[chosen])
    """

    def __init__(
        self, *, beta: float = 1.0, history: int = 1024, generator: Generator | None = None
    ) -> None:
        self.beta = _checks.positive("beta", beta)
        self.history = _checks.integer("history", history)
        _checks.cpu_generator(generator)
        self.generator = generator
        self.recent = torch.zeros(0)  # R, the newest last

    def __repr__(self) -> str:
        return _checks.shown(self, beta=self.beta, history=self.history)

    def probabilities(self, losses: Tensor) -> Tensor:
        """P ``(B,)``, float64, by the history as it is."""
        _checks.tensor("losses", losses, ("B",))
        sorted_losses = self.recent.to(losses.device).sort().values
        ranks = torch.searchsorted(sorted_losses, losses.detach().float(), right=True)
        return (ranks.double() / max(1, len(sorted_losses))) ** self.beta

    def choose(self, losses: Tensor) -> Tensor:
        """Remember the losses of a batch, and choose from it."""
        losses = _checks.tensor("losses", losses, ("B",)).detach().float()
        recent = torch.cat([self.recent.to(losses.device), losses])
        self.recent = recent[-self.history :]
        uniform = torch.rand(len(losses), dtype=torch.float64, generator=self.generator)
        chosen = uniform.to(losses.device) < self.probabilities(losses)
        return chosen.index_fill(0, losses.argmax(), True).nonzero().squeeze(1)

    def state_dict(self) -> dict:
        """The settings and the history."""
        return {"beta": self.beta, "history": self.history, "recent": self.recent}

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from ``state``; the generator's own state is the caller's to restore."""
        _checks.settings(state, {"beta": self.beta, "history": self.history})
        self.recent = state["recent"]
