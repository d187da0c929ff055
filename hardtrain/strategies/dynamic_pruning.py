"""Dynamic pruning: leave out some samples of low loss, and count others like them in their place.

Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning", ICLR 2024."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler

from hardtrain.strategies import _checks
from hardtrain.strategies.batches import divided

_STATE = ("passes", "updates", "order", "losses", "pass_weights", "due", "strange", "coins")


class PruningBatchSampler(Sampler[list[int]]):
    r"""Batch sampler whose passes leave out, by chance, samples whose last loss is low.

    A pass leaves out, with probability r, each sample whose last loss is below the mean of all. If
    it stays, it weighs 1 / (1 - r): the expected gradient of a pass is that of all samples. Others,
    and those without a loss, weigh 1. ``len()`` is that of the next pass, or of one without update.

    Args:
        num_samples, batch_size: N and B; a last batch of one joins the one before.
        ratio: r, in [0, 1); 0 is plain training.
        num_epochs, pruned_part: passes from their product on are whole, with weights of 1.
        reading: ``"paper"``, a coin for each sample, or ``"code"``: of n below ⌊(1 - r) n⌋ stay.
        drop_last: leave out a last batch shorter than B.
        generator: on the CPU; by default its own. Ranks need equal ones, and gathered updates.

    A state counts updates, not yielded batches (workers run ahead): after a restore the next pass
    yields what is owed. Samples that a broken off pass did not reach keep their older losses.

    Raises:
        ValueError, TypeError: a bad argument; indices that are not due in the pass, as labels are,
            or twice in it; a loss that is not finite (on a GPU when the next pass begins).
        RuntimeError: the last pass had no update. ``load_state_dict(state_dict())`` undoes a look.

    Source:
        arXiv 2303.04947, section 3: r = 0.5, δ = 0.875. The authors' package takes 3 for the loss
        of what it never saw, and keeps its weights when δ times the epochs is no whole number.

    Example:
        >>> from torch.utils.data import DataLoader, StackDataset
        >>> dataset = torch.arange(10) / 10
        >>> sampler = PruningBatchSampler(10, 2, num_epochs=8, generator=torch.Generator())
        >>> loader = DataLoader(StackDataset(dataset, range(len(dataset))), batch_sampler=sampler)
        >>> for inputs, indices in loader:
        ...     losses = inputs  # criterion(model(inputs), targets)
        ...     loss = (sampler.update(indices, losses) * losses).mean()
        >>> sorted(sum(sampler, [])), sampler.weights([0, 9]).tolist()
        ([0, 1, 5, 6, 7, 8, 9], [2.0, 1.0])
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        num_epochs: int,
        ratio: float = 0.5,
        pruned_part: float = 0.875,
        reading: str = "paper",
        drop_last: bool = False,
        generator: Generator | None = None,
    ) -> None:
        self.num_samples = _checks.integer("num_samples", num_samples)
        self.batch_size = _checks.integer("batch_size", batch_size)
        self.ratio = _checks.below_one("ratio", ratio)
        self.num_epochs = _checks.integer("num_epochs", num_epochs)
        self.pruned_part = _checks.not_negative("pruned_part", pruned_part)
        self.reading = _checks.choice("reading", reading, ("paper", "code"))
        self.drop_last = _checks.drop_last(drop_last, self.batch_size, self.num_samples)
        self._settings = dict(vars(self))
        self.generator = _checks.own_generator(generator)
        self.passes = self.updates = 0  # begun, and in the pass in progress
        # of the pass in progress, and what a restored one still has to yield
        self.order, self._owed = list[int](), list[int]()
        self.losses = self.pass_weights = torch.full((self.num_samples,), math.nan)  # NaN: none yet
        self.due, self.strange, self.coins = self.losses > 0, torch.tensor(False), self._tossed()

    def __repr__(self) -> str:
        return _checks.shown(self, **self._settings)

    def __len__(self) -> int:
        begun = self._owed or ([] if self.updates else self.order)  # workers begin one early
        num_left = len(begun) or int(self._next_weights().isfinite().sum())
        return len(divided(list(range(num_left)), self.batch_size, self.drop_last))

    def __iter__(self) -> Iterator[list[int]]:
        order, self._owed = self._owed, []
        if not order:
            if self.strange:
                raise ValueError(f"indices in pass {self.passes} were not due, or losses infinite")
            if self.passes and not self.updates:
                raise RuntimeError(f"pass {self.passes} had no update(indices, losses)")
            self.pass_weights = self._next_weights()
            permutation = torch.randperm(self.num_samples, generator=self.generator)
            left = permutation[self.pass_weights.isfinite()[permutation]].tolist()
            whole = len(left) // self.batch_size * self.batch_size if self.drop_last else 0
            order = self.order = left[: whole or None]  # what is dropped is not due
            self.due = torch.zeros(self.num_samples).index_fill(0, torch.tensor(order), 1) > 0
            self.coins, self.passes, self.updates = self._tossed(), self.passes + 1, 0
        yield from divided(order, self.batch_size, self.drop_last)

    def _tossed(self) -> Tensor:  # before the next pass begins, so that its length is known
        coins = torch.ones(self.num_samples)
        return coins.uniform_(generator=self.generator) if self.ratio else coins

    def _next_weights(self) -> Tensor:
        losses, num_pruned = self.losses.cpu(), self.pruned_part * self.num_epochs - 1e-9
        below = torch.tensor(self.passes < num_pruned) & (losses < losses.nanmean())
        coins = self.coins.where(below, math.inf)
        left_out = coins < self.ratio
        if self.reading == "code":
            num_left = math.floor((1 - self.ratio) * below.sum().item() + 1e-9)
            left_out = below.index_fill(0, coins.argsort()[:num_left], False)
        return torch.where(below, 1 / (1 - self.ratio), 1.0).masked_fill(left_out, math.nan)

    def weights(self, indices: Tensor | Sequence[int]) -> Tensor:
        """What losses of the pass in progress count: float32 ``(B,)``, where ``indices`` are."""
        given = _checks.indices(indices, self.num_samples)
        self.pass_weights = self.pass_weights.to(given.device)
        _checks.within("indices", self.pass_weights[given], 1, math.inf, "of samples of this pass")
        return self.pass_weights[given]

    def update(self, indices: Tensor | Sequence[int], losses: Tensor) -> Tensor:
        """Store the losses ``(B,)`` of each batch, without weights, once; gives their weights."""
        given = _checks.indices(indices, self.num_samples)
        losses = _checks.tensor("losses", losses, (len(given),)).detach()
        _checks.within("losses", losses, -1e308, 1e308, "finite")
        given, self.due = given.to(losses.device), self.due.to(losses.device)
        due = self.due[given].all() & (given.sort().values.diff() > 0).all()
        if _checks.on_host(losses) and not due:
            raise ValueError(f"indices must be due in this pass, each once; got {given.tolist()}")
        self.strange = self.strange.to(losses.device) | ~(due & losses.isfinite().all())
        dtype = torch.promote_types(self.losses.dtype, losses.dtype)
        self.losses = self.losses.to(losses.device, dtype).index_copy(0, given, losses.to(dtype))
        self.due, self.updates = self.due.index_fill(0, given, False), self.updates + 1
        return self.weights(given)

    def state_dict(self) -> dict:
        """Tensors (replaced, never changed), numbers, texts, lists; with the generator's state."""
        state = {name: getattr(self, name) for name in _STATE}
        return self._settings | state | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from ``state``, with the batches that there would have been without a pause."""
        _checks.settings(state, self._settings)
        vars(self).update({name: state[name] for name in _STATE})
        self.generator.set_state(state["generator"])
        due = self.due.tolist()
        self._owed = [i for i in self.order if due[i]]
