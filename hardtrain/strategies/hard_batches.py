"""Hard mini-batches: after one full pass, train on the mini-batches of highest loss only.

Sahayam, Zakkam, Jayaraman, arXiv 2304.03486.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

from hardtrain.strategies import _checks


class HardBatchSampler(Sampler[list[int]]):
    r"""Batch sampler that yields every batch once, then round by round the hardest ones.

    The mini-batches :math:`b_0, \dots, b_{N-1}` are drawn once and stay. Each has a stored loss
    :math:`\ell_i`, from before its last step. The first pass yields all N by id; each later one
    (a round) the K of highest stored loss:

    .. math:: S = (i_1, \dots, i_K), \quad \ell_{i_1} \ge \dots \ge \ell_{i_K}, \quad
              K = \max(1, \lfloor \delta N \rfloor)

    Training for E epochs is :math:`N + (E-1)N = EN` updates: the loop counts them and stops,
    within a round if need be. Losses of batches that are not chosen stay as they are.

    Args:
        num_samples: size of the dataset.
        batch_size: B; the last batch may be shorter.
        delta: δ, fraction of the batches in a round, in ``(0, 1]``.
        order: of a round: ``"loss"``, hardest first (ties by id), or ``"index"``, the same
            batches by id. ``"random"``, the control: K batches drawn anew for each round, whatever
            their losses; with ``delta=1`` all of them in a new order.
        drop_last: leave out a last batch shorter than B.
        generator: on the CPU; one permutation comes from it. None: batches in file order.
        draws: on the CPU; the rounds of ``order="random"`` come from it. Part of the state.

    Attributes:
        batches: the indices of each batch, by id.
        left_out: indices that are in no batch (``drop_last``).
        num_batches: N.
        round: how many passes have begun.
        chosen: ids of the pass in progress, in order; after a restore still the whole round's.

    ``len()`` is the length of the next pass; of one that has begun, how many batches it still owes
    (so it is right where workers begin a pass early). A state counts updates, not yielded batches
    (workers run ahead): after a restore, the next pass yields what its round still owes. So it does
    where a loop stopped a pass early, and updates of the round's last batches are missing: no batch
    is passed over.

    Under ``DistributedDataParallel`` every rank has an equal sampler (equally seeded generator,
    the whole batch size), trains on its part of each batch (`RankBatchSampler`) and updates with
    the whole batch's indices and the mean of the ranks' losses (``all_reduce``): the rounds are
    those of one process.

    Raises:
        ValueError: an argument out of range; indices that are no batch (on a GPU raised when the
            next round begins); a loss that is not ``()``; a state of other settings.
        TypeError: an argument of the wrong type.
        RuntimeError: a round begins while updates of the last one are missing, other than those
            of its last batches, or all of them.

    Source:
        Algorithm 2. As printed it selects i = 0, ..., δN, which is one batch too many, and mixes
        rank and batch id in its list; here losses are kept by id. Its (E - 1)/δ repetitions are
        exact for no δ of the paper but 0.5, hence the budget in updates. ``order="index"`` is
        the authors' code; ``"random"`` is ours.

    Example:
        >>> from torch.utils.data import DataLoader, StackDataset
        >>> dataset = [0.2, 0.4, 0.7, 0.3, 0.1, 0.1, 0.8, 1.0]
        >>> sampler = HardBatchSampler(len(dataset), batch_size=2, delta=0.5)
        >>> loader = DataLoader(StackDataset(dataset, range(len(dataset))), batch_sampler=sampler)
        >>> for inputs, indices in loader:  # the first pass: all
        ...     sampler.update(indices, inputs.mean())  # criterion(model(inputs), targets)
        >>> list(sampler)
        [[6, 7], [2, 3]]
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        delta: float,
        *,
        order: str = "loss",
        drop_last: bool = False,
        generator: Generator | None = None,
        draws: Generator | None = None,
    ) -> None:
        self.num_samples = _checks.integer("num_samples", num_samples)
        self.batch_size = _checks.integer("batch_size", batch_size)
        self.delta = _checks.fraction("delta", delta)
        self.order = _checks.choice("order", order, ("loss", "index", "random"))
        self.drop_last = _checks.drop_last(drop_last, self.batch_size, self.num_samples)
        self._settings = dict(vars(self))
        _checks.cpu_generator(generator)
        _checks.cpu_generator(draws, "draws")
        if (order == "random") != (draws is not None):
            raise ValueError(
                f"draws is for order = 'random', and needed there; got order = {order!r} and "
                f"draws = {draws}"
            )
        self.draws = draws
        if generator is None:
            permutation = torch.arange(self.num_samples)
        else:
            permutation = torch.randperm(self.num_samples, generator=generator)
        self._divide(permutation)
        self.round = 0
        self.chosen: list[int] = []
        self._owed: list[int] = []  # what a restored round still has to yield
        self._num_updates = 0  # of the round
        # each with one more place, for updates whose indices are no batch
        self._losses = torch.full((self.num_batches + 1,), math.nan)
        self._updated = torch.zeros(self.num_batches + 1, dtype=torch.bool)

    @property
    def losses(self) -> Tensor:
        """The stored losses ``(N,)``, on the device of the last one; NaN where none came yet."""
        return self._losses[:-1].clone()

    def __repr__(self) -> str:
        return _checks.shown(self, **self._settings)

    def __len__(self) -> int:
        # of a pass that has begun, what it owes: workers begin one early, loops stop one early
        return max(0, len(self.chosen) - self._num_updates) or self._num_chosen()

    def _num_chosen(self) -> int:
        # 0.29 * 100 is 28.999999999999996 in floating point
        num_chosen = max(1, math.floor(self.delta * self.num_batches + 1e-9))
        return num_chosen if self.round else self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        # as a generator, it begins with the first batch: DataLoader makes two iterators a pass
        ids, self._owed = self._owed, []
        ranked = list(range(self.num_batches))
        if not ids and self.round:
            hardest_first = self._losses[:-1].argsort(descending=True, stable=True)
            # the one transfer from the device per round
            both = torch.cat([hardest_first, self._updated.to(hardest_first.dtype)]).tolist()
            ranked, ids = both[: self.num_batches], self._cut_short(both[self.num_batches :])
        if not ids:  # a round begins
            if self.round and self.draws is not None:
                ranked = torch.randperm(self.num_batches, generator=self.draws).tolist()
            chosen = ranked[: self._num_chosen()]
            ids = self.chosen = sorted(chosen) if self.order == "index" else chosen
            self.round += 1
            self._num_updates = 0
            self._updated.zero_()
        for i in ids:
            yield list(self.batches[i])

    def _cut_short(self, updated: Sequence[int]) -> list[int]:
        """Ids of the round's last batches, if their updates are missing."""
        if updated[-1]:
            raise ValueError(
                f"indices of an update in round {self.round} were not those of one of the "
                f"{self.num_batches} batches, in its order"
            )
        missing = [i for i in self.chosen if not updated[i]]
        num_taken = len(self.chosen) - len(missing)
        if missing and (num_taken == 0 or missing != self.chosen[num_taken:]):
            raise RuntimeError(
                f"{len(missing)} of {len(self.chosen)} updates of round {self.round} are missing; "
                "call update(indices, loss) for every batch. To go on with the rest of a pass that "
                "was broken off: load_state_dict(state_dict())"
            )
        return missing

    def update(self, indices: Tensor | Sequence[int], loss: Tensor | float) -> None:
        """Store the loss of a batch from before its step; call it once for each yielded batch.

        Args:
            indices: ``(B,)`` int64 on any device, or a list, as the sampler yielded them.
            loss: ``()``; detached, stored in float32 or, if given, float64 (a Python number is).
                A NaN counts as the largest loss.
        """
        if isinstance(loss, Real) and not isinstance(loss, bool):
            loss = torch.full((), loss, dtype=torch.float64, device=self._losses.device)
        loss = _checks.tensor("loss", loss, ()).detach()
        is_batch = self._is_batch(indices, loss.device)
        # both move once, with the first loss from another device
        dtype = torch.promote_types(self._losses.dtype, loss.dtype)
        self._losses = torch.where(is_batch, loss, self._losses.to(loss.device, dtype))
        self._updated = self._updated.to(loss.device) | is_batch
        self._num_updates += 1

    def state_dict(self) -> dict:
        """Tensors, numbers and strings; holds the batches themselves, too."""
        draws = {} if self.draws is None else {"draws": self.draws.get_state()}
        state = {"permutation": self._permutation.clone(), "round": self.round}
        state |= {"chosen": list(self.chosen), "losses": self._losses.clone()}
        return self._settings | draws | state | {"updated": self._updated.clone()}

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from ``state``, with its batches, whatever ``generator`` this sampler had."""
        _checks.settings(state, self._settings)
        self._divide(state["permutation"].cpu())
        self.round, self.chosen = state["round"], list(state["chosen"])
        self._losses, self._updated = state["losses"].clone(), state["updated"].clone()
        if self.draws is not None:
            self.draws.set_state(state["draws"].cpu())
        updated = self._updated.tolist()
        self._owed = [i for i in self.chosen if not updated[i]]
        self._num_updates = len(self.chosen) - len(self._owed)

    # That was the method. What follows finds a batch by its indices: on the host in a dictionary,
    # on a device by a comparison with all batches, which gives the same without waiting.

    def _divide(self, permutation: Tensor) -> None:
        batches = list(permutation.split(self.batch_size))
        short = self.drop_last and len(batches[-1]) < self.batch_size
        self.left_out: list[int] = batches.pop().tolist() if short else []
        self.batches: list[list[int]] = [batch.tolist() for batch in batches]
        self.num_batches = len(batches)
        self._permutation = permutation
        self._ids = {tuple(batch): i for i, batch in enumerate(self.batches)}
        self._members = pad_sequence(batches, batch_first=True, padding_value=-1)  # (N, B)

    def _is_batch(self, indices: Tensor | Sequence[int], device: torch.device) -> Tensor:
        """True at the id of the batch with these ``indices``: ``(N + 1,)`` on ``device``."""
        given = _checks.positions(indices)
        if not _checks.on_host(given):
            return self._match(given).to(device)
        key = tuple(given.tolist() if isinstance(indices, Tensor) else indices)
        if key not in self._ids:
            raise ValueError(
                f"indices must be those of one of the {self.num_batches} batches, in its order; "
                f"got {len(key)}, from {list(key[:5])}"
            )
        return torch.arange(self.num_batches + 1, device=device) == self._ids[key]

    def _match(self, indices: Tensor) -> Tensor:
        """The same on the device of ``indices``, without waiting; True at N if it is no batch."""
        width = self._members.shape[1]
        if len(indices) > width:
            raise ValueError(f"indices must be (B,), B in 1..{width}; got {len(indices)}")
        self._members = self._members.to(indices.device)
        same = (self._members == pad(indices, (0, width - len(indices)), value=-1)).all(1)
        return torch.cat([same, ~same.any(0, keepdim=True)])
