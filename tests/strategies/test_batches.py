"""Batches divided, and each rank's part of them."""

from itertools import chain

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hardtrain import HardBatchSampler, PruningBatchSampler, RankBatchSampler
from hardtrain.strategies.batches import divided


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("size", "batch_size", "drop_last", "wanted"),
    [
        (6, 3, False, [3, 3]),
        (8, 3, False, [3, 3, 2]),
        (7, 3, False, [3, 4]),
        (7, 3, True, [3, 3]),
        (8, 3, True, [3, 3]),
        (1, 3, False, [1]),
        (2, 3, True, [2]),  # one batch at least
        (3, 1, False, [1, 1, 1]),
        (0, 3, False, []),
    ],
)
def test_indices_are_divided_in_order(size, batch_size, drop_last, wanted):
    order = list(range(100, 100 + size))
    batches = divided(order, batch_size, drop_last)
    assert [len(batch) for batch in batches] == wanted
    assert list(chain(*batches)) == order[: sum(wanted)]
    assert order == list(range(100, 100 + size))


def test_the_parts_of_all_ranks_are_the_batches():
    batches = [[4, 0, 2, 1], [3, 5]]
    parts = [RankBatchSampler(batches, num_replicas=2, rank=rank) for rank in (0, 1)]
    assert [len(part) for part in parts] == [2, 2]
    for _ in range(2):
        assert [a + b for a, b in zip(*parts, strict=True)] == batches
    assert {type(index) for batch in parts[0] for index in batch} == {int}


def test_ranks_come_from_torch_distributed(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert list(RankBatchSampler([[4, 0, 2, 1]])) == [[2, 1]]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ValueError, "num_replicas and rank must both be given, .* got None and None"),
        ({"rank": 0}, ValueError, "num_replicas and rank must both be given"),
        ({"num_replicas": 2, "rank": 2}, ValueError, r"rank must be in 0..1; got 2"),
        ({"num_replicas": 0, "rank": 0}, ValueError, "num_replicas must be at least 1; got 0"),
    ],
)
def test_wrong_ranks_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        RankBatchSampler([[0, 1]], **settings)


def test_batches_without_equal_parts_are_refused():
    sampler = RankBatchSampler([[0, 1], [2]], num_replicas=2, rank=0)
    with pytest.raises(ValueError, match="batches of 2 equal parts; got one of 1: change batch_si"):
        list(sampler)
    with pytest.raises(TypeError, match="batch_sampler must be of type Iterable; got int"):
        RankBatchSampler(3, num_replicas=2, rank=0)


class Network:
    """One of as many equal copies as there are ranks."""

    def __init__(self):
        self.inputs = torch.randn(48, 6, dtype=torch.float64, generator=generator(1))
        self.targets = torch.randint(3, (48,), generator=generator(2))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.model = nn.Linear(6, 3).double()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5, momentum=0.5)

    def losses(self, indices):
        return cross_entropy(self.model(self.inputs[indices]), self.targets[indices],
                             reduction="none")  # fmt: skip

    def step(self, gradients):
        for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()


SAMPLERS = {
    "hard": lambda: HardBatchSampler(48, 8, 0.5, generator=generator()),
    "pruning": lambda: PruningBatchSampler(
        48, 8, num_epochs=5, drop_last=True, generator=generator()
    ),
}


@pytest.mark.parametrize("kind", SAMPLERS)
def test_two_ranks_train_as_one_process(kind):
    """Ranks in one process: gradients averaged as DDP does, indices and losses gathered."""

    def update(sampler, indices, losses):
        sampler.update(indices, losses.mean() if kind == "hard" else losses)

    def objective(sampler, indices, losses):
        return (losses * (1 if kind == "hard" else sampler.weights(indices))).mean()

    alone, sampler, taken = Network(), SAMPLERS[kind](), []
    for _ in range(5):
        for indices in sampler:
            losses = alone.losses(indices)
            alone.step(torch.autograd.grad(objective(sampler, indices, losses),
                                           list(alone.model.parameters())))  # fmt: skip
            update(sampler, indices, losses.detach())
            taken.append(indices)

    ranks, samplers = [Network() for _ in range(2)], [SAMPLERS[kind]() for _ in range(2)]
    parts = [RankBatchSampler(s, num_replicas=2, rank=r) for r, s in enumerate(samplers)]
    gathered = []
    for _ in range(5):
        for batches in zip(*parts, strict=True):
            losses = [network.losses(part) for network, part in zip(ranks, batches, strict=True)]
            own = [
                torch.autograd.grad(objective(s, part, loss), list(network.model.parameters()))
                for s, part, loss, network in zip(samplers, batches, losses, ranks, strict=True)
            ]
            averaged = [torch.stack(pair).mean(0) for pair in zip(*own, strict=True)]
            indices = [*batches[0], *batches[1]]
            for network, s in zip(ranks, samplers, strict=True):
                network.step([gradient.clone() for gradient in averaged])
                update(s, indices, torch.cat(losses).detach())
            gathered.append(indices)
    assert gathered == taken
    assert len(taken) > 6 + 3 * 3
    for network in ranks:
        for a, b in zip(network.model.parameters(), alone.model.parameters(), strict=True):
            assert (a - b).abs().max() < 1e-6
    assert str(samplers[0].state_dict()) == str(samplers[1].state_dict())
