"""Which samples meet in a batch: batch samplers that the methods share."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Generator, Tensor

from hardtrain import checks
from hardtrain.errors import ParameterError


class UniformBatchSampler:
    """Every sample once a pass, in an order drawn anew: the plain way to train.

    Args:
        num_samples, batch_size: N and B, >= 1.
        drop_last: leave the last batch out if it is shorter than B.
        generator: on the CPU; one permutation a pass comes from it.

    Raises:
        ParameterError: names the argument; also if ``drop_last`` would leave no batch.

    Example:
        >>> sampler = UniformBatchSampler(5, 2, generator=torch.Generator().manual_seed(0))
        >>> [len(indices) for indices in sampler], len(sampler)
        ([2, 2, 1], 3)
    """

    def __init__(
        self, num_samples: int, batch_size: int, *, drop_last: bool = False, generator: Generator
    ):
        self.num_samples = checks.integer("num_samples", num_samples, low=1)
        self.num_all = self.num_samples  # of which a pass draws ``num_samples``; a share: fewer
        self.batch_size = checks.integer("batch_size", batch_size, low=1)
        checks.cpu_generator("generator", generator)
        if drop_last and self.batch_size > self.num_samples:
            raise ParameterError(
                f"batch_size = {batch_size} with drop_last leaves 0 of {num_samples} samples"
            )
        self.drop_last, self.generator = drop_last, generator

    def __len__(self) -> int:
        whole, rest = divmod(self.num_samples, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(self.num_all, generator=self.generator)[: self.num_samples]
        yield from order.split(self.batch_size)[: len(self)]


class ShareBatchSampler(UniformBatchSampler):
    """A random share of the samples a pass, drawn anew: the control of what leaves samples out.

    Args:
        share: in (0, 1]; to the nearest sample, at least one, and one less where a last batch would
            have a single sample, which batch-norm cannot take. 1 is a `UniformBatchSampler`.
        num_samples, batch_size, drop_last, generator: as in `UniformBatchSampler`.

    Raises:
        ParameterError: names the argument.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> sampler = ShareBatchSampler(0.5, 8, 3, generator=generator)
        >>> [indices.tolist() for indices in sampler], len(sampler)
        ([[4, 0, 7]], 1)
    """

    def __init__(
        self,
        share: float,
        num_samples: int,
        batch_size: int,
        *,
        drop_last: bool = False,
        generator: Generator,
    ):
        super().__init__(num_samples, batch_size, generator=generator)
        if not 0 < checks.number("share", share) <= 1:
            raise ParameterError(f"share = {share} is not in (0, 1]")
        size = max(1, round(share * self.num_samples))
        if share < 1 and size > self.batch_size > 1 and size % self.batch_size == 1:
            size -= 1
        super().__init__(size, batch_size, drop_last=drop_last, generator=generator)
        self.num_all = num_samples


class BalancedBatchSampler(UniformBatchSampler):
    """Batches with the same number of samples of every class, as near as their size allows.

    The classes take turns; each gives its samples in an order drawn anew each time it has given
    all. So a pass has as many batches as a uniform one, and of a set whose classes are of one size
    it takes every sample once; of a small class it takes samples several times, of a large one
    not all.

    Args:
        labels: int64 ``(N,)``, of the data set, >= 0; a class without samples has no turn.
        batch_size, drop_last, generator: as in `UniformBatchSampler`.

    Raises:
        ParameterError: names the argument.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 1])
        >>> sampler = BalancedBatchSampler(labels, 2, generator=torch.Generator().manual_seed(0))
        >>> [labels[indices].tolist() for indices in sampler]
        [[0, 1], [0, 1]]
    """

    def __init__(
        self, labels: Tensor, batch_size: int, *, drop_last: bool = False, generator: Generator
    ):
        super().__init__(len(labels), batch_size, drop_last=drop_last, generator=generator)
        labels = labels.cpu()
        self.members = [(labels == label).nonzero().squeeze(1) for label in labels.unique()]

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.empty(self.num_samples, dtype=torch.int64)
        for turn, members in enumerate(self.members):
            places = order[turn :: len(self.members)]
            rounds = -(-len(places) // len(members))
            shuffled = [self._shuffled(members) for _ in range(rounds)]
            places.copy_(torch.cat(shuffled)[: len(places)])
        yield from order.split(self.batch_size)[: len(self)]

    def _shuffled(self, members: Tensor) -> Tensor:
        return members[torch.randperm(len(members), generator=self.generator)]


class BiasedBatchSampler:
    """The batches of one sampler, or while ``biased``, as many of what ``other()`` gives.

    Example:
        >>> sampler = BiasedBatchSampler([[0, 1], [2]], lambda: [[2, 2], [2, 0], [1]])
        >>> sampler.biased = True
        >>> list(sampler), len(sampler)
        ([[2, 2], [2, 0]], 2)
    """

    def __init__(self, plain: Any, other: Callable[[], Iterable]):
        self.plain, self.other, self.biased = plain, other, False

    def __len__(self) -> int:
        return len(self.plain)

    def __iter__(self) -> Iterator:
        return islice(self.other() if self.biased else self.plain, len(self))
