"""What batch samplers share: indices divided into batches, and each rank's part of every batch."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from hardtrain.strategies import _checks


def divided(order: Sequence[int], batch_size: int, drop_last: bool = False) -> list[list[int]]:
    """Batches of ``batch_size``, one at least. A last one of a single sample, which batch-norm
    could not take, joins the one before; ``drop_last`` leaves out any that is shorter.

    Example:
        >>> divided([5, 3, 8, 1, 2], 2), divided([5, 3, 8, 1, 2], 3, drop_last=True)
        ([[5, 3], [8, 1, 2]], [[5, 3, 8]])
    """
    starts = range(0, len(order), batch_size)
    batches = [list(order[start : start + batch_size]) for start in starts]
    if len(batches) > 1 and len(batches[-1]) < (batch_size if drop_last else min(batch_size, 2)):
        short = batches.pop()
        batches[-1] += [] if drop_last else short
    return batches


class RankBatchSampler(Sampler[list[int]]):
    """This rank's part of every batch of a sampler that is the same on all ranks.

    It is the distributed form of `HardBatchSampler`, `PruningBatchSampler` and
    `WeightedBatchSampler`: every rank makes the sampler with an equally seeded generator, of the
    global batch size, and takes the batches' parts from here. The ranks' indices and losses,
    gathered in the order of ranks, are then the sampler's own batch again, and each rank updates
    its sampler with them: the samplers stay equal, and one rank's state is everyone's.

    Args:
        batch_sampler: anything that yields batches of indices, the same on every rank.
        num_replicas, rank: how many parts, and which is taken; by default as torch.distributed
            says.

    Raises:
        ValueError: a batch that has no equal parts (choose another batch size, or drop the last
            batch), a rank out of range, or no ``num_replicas`` outside torch.distributed.
        TypeError: an argument of the wrong type.

    Source:
        ``DistributedSampler`` divides the data set instead, so that ranks cannot agree on batches.
        In Lightning: ``Trainer(use_distributed_sampler=False)``, which otherwise replaces it.

    Example:
        >>> batches = [[4, 0, 2, 1], [3, 5]]
        >>> [list(RankBatchSampler(batches, num_replicas=2, rank=rank)) for rank in (0, 1)]
        [[[4, 0], [3]], [[2, 1], [5]]]

        In the loop, with equal parts on every rank::

            dataset = StackDataset(dataset, range(len(dataset)))  # gives the indices, too
            loader = DataLoader(dataset, batch_sampler=RankBatchSampler(sampler))
            ...
            indices = torch.cat(torch.distributed.nn.functional.all_gather(indices))
            losses = torch.cat(torch.distributed.nn.functional.all_gather(losses.detach()))
            sampler.update(indices, losses.mean())
    """

    def __init__(
        self,
        batch_sampler: Iterable[Sequence[int]],
        *,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        _checks.instance("batch_sampler", batch_sampler, Iterable)
        self.batch_sampler: Any = batch_sampler
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed and num_replicas is None and rank is None:
            num_replicas, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        if num_replicas is None or rank is None:
            raise ValueError(
                "num_replicas and rank must both be given, or neither under torch.distributed; "
                f"got {num_replicas} and {rank}"
            )
        self.num_replicas = _checks.integer("num_replicas", num_replicas)
        self.rank = _checks.integer("rank", rank, 0, self.num_replicas - 1)

    def __repr__(self) -> str:
        return _checks.shown(self, num_replicas=self.num_replicas, rank=self.rank)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batch_sampler:
            size, rest = divmod(len(batch), self.num_replicas)
            if rest:
                raise ValueError(
                    f"batch_sampler must yield batches of {self.num_replicas} equal parts; got "
                    f"one of {len(batch)}: change batch_size, or set drop_last"
                )
            yield list(batch[self.rank * size : (self.rank + 1) * size])
