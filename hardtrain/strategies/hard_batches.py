"""Hard mini-batches: after one full pass, train on the mini-batches of highest loss only.

Sahayam, Zakkam, Jayaraman, arXiv 2304.03486.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

_ORDERS = ("loss", "index")


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
            batches by id.
        drop_last: leave out a last batch shorter than B.
        generator: on the CPU; one permutation comes from it. None: batches in file order.

    Attributes:
        batches: the indices of each batch, by id.
        left_out: indices that are in no batch (``drop_last``).
        num_batches: N.
        round: how many passes have begun.
        chosen: ids of the pass in progress, in order; after a restore still the whole round's.

    ``len()`` is the length of the next pass. A state counts updates, not yielded batches (workers
    run ahead): after a restore, the next pass yields what its round still owes.

    Raises:
        ValueError: an argument out of range; indices that are no batch (on a GPU raised when the
            next round begins); a loss that is not ``()``; a state of other settings.
        TypeError: an argument of the wrong type.
        RuntimeError: a round begins while updates of the last one are missing.

    Source:
        Algorithm 2. As printed it selects i = 0, ..., δN, which is one batch too many, and mixes
        rank and batch id in its list; here losses are kept by id. Its (E - 1)/δ repetitions are
        exact for no δ of the paper but 0.5, hence the budget in updates. ``order="index"`` is
        the authors' code.

    Example:
        >>> sampler = HardBatchSampler(num_samples=8, batch_size=2, delta=0.5)
        >>> for indices, loss in zip(sampler, [0.3, 0.5, 0.1, 0.9]):  # the first pass: all
        ...     sampler.update(indices, loss)
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
    ):
        self.num_samples = _positive("num_samples", num_samples)
        self.batch_size = _positive("batch_size", batch_size)
        self.delta, self.order, self.drop_last = _fraction(delta), _known(order), bool(drop_last)
        if self.drop_last and self.batch_size > self.num_samples:
            raise ValueError(
                f"batch_size = {batch_size} with drop_last leaves 0 of {num_samples} samples"
            )
        if generator is None:
            permutation = torch.arange(self.num_samples)
        elif not isinstance(generator, Generator) or generator.device.type != "cpu":
            raise TypeError(f"generator must be a CPU torch.Generator or None; got {generator!r}")
        else:
            permutation = torch.randperm(self.num_samples, generator=generator)
        self._divide(permutation)
        self.round, self.chosen, self._owed = 0, [], None
        # each with one more place, for updates whose indices are no batch
        self._losses = torch.full((self.num_batches + 1,), math.nan)
        self._updated = torch.zeros(self.num_batches + 1, dtype=torch.bool)

    @property
    def losses(self) -> Tensor:
        """The stored losses ``(N,)``, on the device of the last one; NaN where none came yet."""
        return self._losses[:-1].clone()

    def __len__(self) -> int:
        if self._owed is not None:
            return len(self._owed)
        # 0.29 * 100 is 28.999999999999996 in floating point
        num_chosen = max(1, math.floor(self.delta * self.num_batches + 1e-9))
        return num_chosen if self.round else self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        # as a generator, it begins with the first batch: DataLoader makes two iterators a pass
        if self._owed is None:
            self.chosen = self._choose()  # raises before anything changes
            self.round += 1
            self._updated.zero_()
        ids, self._owed = (self.chosen if self._owed is None else self._owed), None
        for i in ids:
            yield list(self.batches[i])

    def update(self, indices: Tensor | Sequence[int], loss: Tensor | float) -> None:
        """Store the loss of a batch from before its step; call it once for each yielded batch.

        Args:
            indices: ``(B,)`` int64 on any device, or a list, as the sampler yielded them.
            loss: ``()``; detached, stored in float32 or, if given, float64 (a Python number is).
                A NaN counts as the largest loss.
        """
        if isinstance(loss, Real) and not isinstance(loss, bool):
            loss = torch.full((), loss, dtype=torch.float64, device=self._losses.device)
        if not isinstance(loss, Tensor) or not loss.is_floating_point():
            raise TypeError(f"loss must be a float tensor () or a number; got {loss!r}")
        if loss.ndim != 0:
            raise ValueError(f"loss must have shape (); got {tuple(loss.shape)}")
        indices = _checked_indices(indices)
        place = self._id_of(indices) if _on_host(indices) else self._match(indices).to(loss.device)
        # moves once, with the first loss from another device
        dtype = torch.promote_types(self._losses.dtype, loss.dtype)
        self._losses = self._losses.to(loss.device, dtype)
        self._updated = self._updated.to(loss.device)
        if isinstance(place, int):
            self._losses[place] = loss.detach()
            self._updated[place] = True
        else:
            self._losses = torch.where(place, loss.detach(), self._losses)
            self._updated = self._updated | place

    def state_dict(self) -> dict:
        """Tensors, numbers and strings; holds the batches themselves, too."""
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return settings | {
            "permutation": self._permutation.clone(),
            "round": self.round,
            "chosen": list(self.chosen),
            "losses": self._losses.clone(),
            "updated": self._updated.clone(),
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from ``state``, with its batches, whatever ``generator`` this sampler had."""
        for name in _SETTINGS:
            saved, own = state.get(name), getattr(self, name)
            if saved != own:
                raise ValueError(f"state has {name} = {saved!r}; this sampler has {own!r}")
        self._divide(state["permutation"].cpu())
        self.round, self.chosen = state["round"], list(state["chosen"])
        self._losses, self._updated = state["losses"].clone(), state["updated"].clone()
        updated = self._updated.tolist()
        self._owed = [i for i in self.chosen if not updated[i]] or None

    def _divide(self, permutation: Tensor) -> None:
        batches = list(permutation.split(self.batch_size))
        short = self.drop_last and len(batches[-1]) < self.batch_size
        self.left_out: list[int] = batches.pop().tolist() if short else []
        self.batches: list[list[int]] = [batch.tolist() for batch in batches]
        self.num_batches = len(batches)
        self._permutation = permutation
        # from indices to id: for the host, and as (N, B) for a device
        self._ids = {tuple(batch): i for i, batch in enumerate(self.batches)}
        self._members = pad_sequence(batches, batch_first=True, padding_value=-1)

    def _choose(self) -> list[int]:
        """Ids of the round that begins, after a look whether the last one is complete."""
        if self.round == 0:
            return list(range(self.num_batches))
        ranked = self._losses[:-1].argsort(descending=True, stable=True)
        # the one transfer from the device per round
        both = torch.cat([ranked, self._updated.to(ranked.dtype)]).tolist()
        ranked, updated = both[: self.num_batches], both[self.num_batches :]
        if updated[-1]:
            raise ValueError(
                f"indices of an update in round {self.round} were not those of one of the "
                f"{self.num_batches} batches, in its order"
            )
        missing = sum(not updated[i] for i in self.chosen)
        if missing:
            raise RuntimeError(
                f"{missing} of {len(self.chosen)} updates of round {self.round} are missing; call "
                "update(indices, loss) for every batch. To go on with the rest of a pass that was "
                "broken off: load_state_dict(state_dict())"
            )
        chosen = ranked[: len(self)]
        return chosen if self.order == "loss" else sorted(chosen)

    def _id_of(self, indices: Tensor | Sequence[int]) -> int:
        key = tuple(indices.tolist() if isinstance(indices, Tensor) else indices)
        if key not in self._ids:
            raise ValueError(
                f"indices must be those of one of the {self.num_batches} batches, in its order; "
                f"got {len(key)}, from {list(key[:5])}"
            )
        return self._ids[key]

    def _match(self, indices: Tensor) -> Tensor:
        """True at the batch's id, or at N if it is no batch: ``(N + 1,)``, without waiting."""
        width = self._members.shape[1]
        if not 1 <= len(indices) <= width:
            raise ValueError(f"indices must be (B,), B in 1..{width}; got {len(indices)}")
        self._members = self._members.to(indices.device)
        same = (self._members == pad(indices, (0, width - len(indices)), value=-1)).all(1)
        return torch.cat([same, ~same.any(0, keepdim=True)])


_SETTINGS = ("num_samples", "batch_size", "delta", "order", "drop_last")


def _checked_indices(indices: Tensor | Sequence[int]) -> Tensor | Sequence[int]:
    if isinstance(indices, Tensor):
        if indices.dtype != torch.int64:
            raise TypeError(f"indices must be int64; got {indices.dtype}")
        if indices.ndim != 1:
            raise ValueError(f"indices must have shape (B,); got {tuple(indices.shape)}")
    elif not isinstance(indices, list | tuple) or not all(isinstance(i, Integral) for i in indices):
        raise TypeError(f"indices must be an int64 tensor (B,) or a list of int; got {indices!r}")
    return indices


def _on_host(indices: Tensor | Sequence[int]) -> bool:
    """Whether a look at them waits for no device."""
    return not isinstance(indices, Tensor) or indices.device.type == "cpu"


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer; got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")
    return int(value)


def _fraction(delta: float) -> float:
    if isinstance(delta, bool) or not isinstance(delta, Real):
        raise TypeError(f"delta must be a number in (0, 1]; got {delta!r}")
    if not 0 < delta <= 1:  # also true for NaN
        raise ValueError(f"delta must be in (0, 1]; got {delta}")
    return float(delta)


def _known(order: str) -> str:
    if not isinstance(order, str):
        raise TypeError(f"order must be 'loss' or 'index'; got {order!r}")
    if order not in _ORDERS:
        near = get_close_matches(order, _ORDERS, n=1, cutoff=0)[0]
        raise ValueError(f"order must be 'loss' or 'index'; got {order!r}: meant {near!r}?")
    return order
