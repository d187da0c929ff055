"""Dynamic pruning: unbiased, without the faults of the reference package, pauses, every error."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from helpers import copied, tiny_network
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from hardtrain import PruningBatchSampler


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sampler_of(num_samples=40, batch_size=8, *, num_epochs=10_000, seed=0, **settings):
    settings = {"num_epochs": num_epochs, "generator": generator(seed)} | settings
    return PruningBatchSampler(num_samples, batch_size, **settings)


def play(sampler, losses):
    """One pass with these losses by sample; gives its batches."""
    batches = []
    for indices in sampler:
        sampler.update(indices, losses[indices])
        batches.append(indices)
    return batches


def after_a_pass(losses, **settings):
    sampler = sampler_of(len(losses), **settings)
    play(sampler, losses)
    return sampler


LOSSES = torch.arange(40, dtype=torch.float64) / 100  # the first 24 lie below the mean
LOSSES[24:] += 10


# --- what a pass leaves out ----------------------------------------------------------------------


def test_first_pass_has_every_sample_with_weight_one():
    sampler = sampler_of()
    assert len(sampler) == 5
    batches = list(sampler)
    assert sorted(itertools.chain(*batches)) == list(range(40))
    assert [len(batch) for batch in batches] == [8] * 5
    assert {type(index) for batch in batches for index in batch} == {int}
    assert sampler.weights(batches[0]).tolist() == [1.0] * 8


@pytest.mark.parametrize("reading", ["paper", "code"])
@pytest.mark.parametrize("ratio", [0.5, 0.25])
def test_samples_below_the_mean_go_with_the_stated_probability(reading, ratio):
    sampler = after_a_pass(LOSSES, ratio=ratio, reading=reading)
    counts, sizes = torch.zeros(40), []
    for _ in range(1500):
        chosen = torch.tensor(list(itertools.chain(*play(sampler, LOSSES))))
        counts[chosen] += 1
        sizes.append(len(chosen) - 16)
        below = chosen[LOSSES[chosen] < LOSSES.mean()]
        assert (sampler.weights(below) == torch.tensor(1 / (1 - ratio))).all()
        assert (sampler.weights(chosen[LOSSES[chosen] >= LOSSES.mean()]) == 1).all()
    assert (LOSSES < LOSSES.mean()).sum() == 24
    assert (counts[24:] == 1500).all()
    spread = math.sqrt(1500 * ratio * (1 - ratio))
    assert (counts[:24] - 1500 * (1 - ratio)).abs().max() < 4.5 * spread
    if reading == "code":  # floor((1 - r) n) of them, always
        assert set(sizes) == {24 * (1 - ratio)}
    else:  # a coin each
        assert np.var(sizes) == pytest.approx(24 * ratio * (1 - ratio), rel=0.2)


def test_the_weighted_gradient_of_a_pass_is_unbiased_and_the_unweighted_is_not():
    gradients = torch.randn(40, 3, dtype=torch.float64, generator=generator(1)) + 1
    sampler = after_a_pass(LOSSES)
    weighted, plain = [], []
    for _ in range(20_000):  # what __iter__ does, without dividing it into batches
        sampler.coins = sampler._tossed()
        weights = sampler._next_weights().nan_to_num(nan=0.0).double()
        weighted.append(weights @ gradients)
        plain.append((weights > 0).double() @ gradients)
    for sums, is_unbiased in ((torch.stack(weighted), True), (torch.stack(plain), False)):
        errors = (sums.mean(0) - gradients.sum(0)).abs() / (sums.std(0) / math.sqrt(20_000))
        assert (errors.max() < 4).item() is is_unbiased


def test_a_pass_gives_the_weights_and_the_samples_that_the_draws_say():
    # the draws of the test above are those of a pass
    sampler = after_a_pass(LOSSES)
    weights = sampler._next_weights()
    chosen = list(itertools.chain(*sampler))
    assert sorted(chosen) == weights.isfinite().nonzero().squeeze(1).tolist()
    assert torch.equal(sampler.weights(chosen), weights[chosen])


def test_a_pass_matches_a_plain_loop():
    sampler = after_a_pass(LOSSES, batch_size=7)
    coins, state = sampler.coins.tolist(), sampler.generator.get_state()
    mean = sum(LOSSES.tolist()) / 40
    stays = {i for i in range(40) if not (LOSSES[i].item() < mean and coins[i] < 0.5)}
    permutation = torch.randperm(40, generator=(again := generator()).set_state(state) or again)
    wanted = [i for i in permutation.tolist() if i in stays]
    batches = list(sampler)
    assert list(itertools.chain(*batches)) == wanted
    assert [len(batch) for batch in batches[:-1]] == [7] * (len(batches) - 1)


def test_length_is_that_of_the_next_pass():
    for reading, drop_last in itertools.product(("paper", "code"), (False, True)):
        sampler = sampler_of(reading=reading, drop_last=drop_last, batch_size=7)
        for _ in range(50):
            expected = len(sampler)
            assert len(sampler) == expected  # asking changes nothing
            batches = play(sampler, LOSSES)
            assert len(batches) == expected
            assert min(map(len, batches)) >= (7 if drop_last else 2)


def test_a_last_batch_of_one_sample_joins_the_one_before():
    sampler = sampler_of(9, 4)
    assert [len(batch) for batch in sampler] == [4, 5]
    assert [len(batch) for batch in sampler_of(9, 4, drop_last=True)] == [4, 4]
    assert [len(batch) for batch in sampler_of(3, 1)] == [1, 1, 1]
    assert [len(batch) for batch in sampler_of(1, 4)] == [1]


@pytest.mark.parametrize("reading", ["paper", "code"])
def test_losses_equal_to_their_mean_are_not_below_it(reading):
    for _ in range(5):
        sampler = after_a_pass(torch.full((12,), 0.5), reading=reading, ratio=0.9)
        batches = list(sampler)
        assert sorted(itertools.chain(*batches)) == list(range(12))
        assert sampler.weights(batches[0]).tolist() == [1.0] * 8


def test_ratio_zero_is_the_plain_order():
    sampler, plain = sampler_of(ratio=0), generator()
    for _ in range(3):
        assert play(sampler, LOSSES) == [
            part.tolist() for part in torch.randperm(40, generator=plain).split(8)
        ]


def test_losses_of_samples_that_were_left_out_stay():
    sampler = after_a_pass(LOSSES)
    batches = play(sampler, LOSSES + 10)
    chosen = list(itertools.chain(*batches))
    left_out = sorted(set(range(40)) - set(chosen))
    assert left_out
    assert torch.equal(sampler.losses[chosen], LOSSES[chosen] + 10)
    assert torch.equal(sampler.losses[left_out], LOSSES[left_out])


# --- faults of the reference package -------------------------------------------------------------


def test_fault_the_dataloader_of_others_stays_as_it_is():
    # the package replaces the __next__ of every DataLoader in the program
    before = _BaseDataLoaderIter.__next__
    play(sampler_of(), LOSSES)
    assert _BaseDataLoaderIter.__next__ is before
    assert before.__module__ == "torch.utils.data.dataloader"


def test_fault_no_global_generator_is_seeded_or_drawn_from():
    # the package calls np.random.seed at every epoch
    np.random.seed(3)  # noqa: NPY002
    states = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    sampler = sampler_of()
    for _ in range(3):
        play(sampler, LOSSES)
    assert np.array_equal(np.random.get_state()[1], states[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[1])
    first = [play(sampler_of(seed=1), LOSSES) for _ in range(2)]
    assert first[0] == first[1] != play(sampler_of(seed=2), LOSSES)


def test_fault_the_losses_are_not_changed_in_place():
    # the package multiplies the loss tensor by the weights
    sampler = after_a_pass(LOSSES)
    for indices in sampler:
        losses = LOSSES[indices].clone().requires_grad_()
        before = losses.detach().clone()
        (sampler.weights(indices) * losses).mean().backward()
        sampler.update(indices, losses)
        assert torch.equal(losses.detach(), before)
        assert not sampler.losses.requires_grad


@pytest.mark.parametrize(
    ("num_epochs", "pruned_part", "whole_from"),
    [(30, 0.875, 27), (8, 0.875, 7), (30, 0.1, 3), (10, 0.0, 0), (3, 2.0, 99)],  # 30 * 0.1 > 3
)
def test_fault_the_last_passes_are_whole_and_their_weights_one(num_epochs, pruned_part, whole_from):
    # 30 * 0.875 is 26.25: the package keeps the weights of its last pruned epoch for the rest
    sampler = sampler_of(num_epochs=num_epochs, pruned_part=pruned_part)
    for number in range(num_epochs):
        batches = play(sampler, LOSSES)
        chosen = list(itertools.chain(*batches))
        weights = set(sampler.weights(chosen).tolist())
        if number == 0 or number >= whole_from:
            assert (len(chosen), weights) == (40, {1.0})
        else:
            assert len(chosen) < 40
            assert weights == {1.0, 2.0}


def test_fault_a_sample_never_seen_is_never_left_out():
    # the package takes 3 as the loss of a sample that it never saw: less than the mean of others
    losses = torch.full((40,), 9.0)
    losses[:8] = 0.1
    sampler = sampler_of()
    for indices in itertools.islice(sampler, 2):  # a pass that is broken off
        sampler.update(indices, losses[indices])
    unseen = set(sampler.losses.isnan().nonzero().squeeze(1).tolist())
    assert len(unseen) == 24
    for _ in range(20):
        sampler = copy.deepcopy(sampler)
        assert unseen <= set(itertools.chain(*sampler))
        sampler.update(sampler.order[:1], torch.tensor([9.0]))
        unseen -= {sampler.order[0]}


class Training:
    """A tiny network with momentum; ``step`` trains on a batch and tells the sampler."""

    def __init__(self, num_samples):
        self.inputs, self.targets, self.model, self.optimizer = tiny_network(num_samples)

    def loader(self, sampler, workers):
        data = TensorDataset(self.inputs, self.targets, torch.arange(len(self.inputs)))
        return DataLoader(data, batch_sampler=sampler, num_workers=workers)

    def step(self, sampler, inputs, targets, indices):
        losses = cross_entropy(self.model(inputs), targets, reduction="none")
        self.optimizer.zero_grad()
        (sampler.weights(indices) * losses).mean().backward()
        self.optimizer.step()
        sampler.update(indices, losses)

    def state(self):
        return copied([self.model.state_dict(), self.optimizer.state_dict()])

    def load(self, state):
        self.model.load_state_dict(state[0])
        self.optimizer.load_state_dict(state[1])

    def weights(self):
        return nn.utils.parameters_to_vector(self.model.parameters()).detach()


@pytest.mark.parametrize(("workers", "pause_at"), [(0, 9), (0, 26), (2, 30)])
def test_fault_a_pause_in_mid_pass_goes_on_with_the_same_bits(workers, pause_at):
    # the package can save nothing; workers have run ahead of the updates that count
    def parts(seed):
        training, sampler = Training(90), sampler_of(90, 4, num_epochs=4, seed=seed)
        return training, sampler, training.loader(sampler, workers)

    training, sampler, batches = parts(0)
    steps, saved = 0, None
    for _ in range(4):
        for batch in batches:
            training.step(sampler, *batch)
            steps += 1
            if steps == pause_at:
                saved = copied(sampler.state_dict()), training.state()

    resumed, sampler, batches = parts(1)  # another seed: the draws come with the state
    sampler.load_state_dict(saved[0])
    resumed.load(saved[1])
    again = pause_at
    while sampler.passes < 4 or sampler.due.any():
        expected = len(batches)
        seen = 0
        for batch in batches:
            resumed.step(sampler, *batch)
            seen += 1
        assert seen == expected
        again += seen
    assert again == steps
    assert torch.equal(resumed.weights(), training.weights())


@pytest.mark.parametrize("num_passes", [1, 2])
def test_what_drop_last_left_out_is_not_owed_after_a_restore(num_passes):
    sampler = sampler_of(40, 7, drop_last=True)
    for _ in range(num_passes):
        play(sampler, LOSSES)
    resumed = sampler_of(40, 7, drop_last=True, seed=9)
    resumed.load_state_dict(copied(sampler.state_dict()))
    assert list(resumed) == list(sampler)


def test_length_is_right_where_workers_begin_a_pass_early():
    sampler = after_a_pass(LOSSES)
    for _ in range(2):
        length = len(sampler)
        batches = iter(sampler)
        first = next(batches)
        assert len(sampler) == length
        sampler.update(first, LOSSES[first])
        rest = list(batches)
        assert len(rest) == length - 1
        for indices in rest:
            sampler.update(indices, LOSSES[indices])


def test_update_gives_the_weights_of_its_samples():
    sampler = after_a_pass(LOSSES)
    for indices in sampler:
        expected = sampler.weights(indices)
        assert torch.equal(sampler.update(indices, LOSSES[indices]), expected)


def test_fault_a_sampler_of_ones_own_can_choose_the_batches():
    # the package wraps the data set and brings its own sampler; here it is a batch sampler
    chosen = torch.arange(0, 40, 2)  # a subset
    sampler = sampler_of(20, 5)
    for indices in sampler:
        sampler.update(indices, LOSSES[chosen[indices]])
    assert torch.equal(sampler.losses, LOSSES[chosen])


# --- states and misuse ---------------------------------------------------------------------------


def test_state_does_not_change_with_the_sampler():
    sampler = after_a_pass(LOSSES)
    state = sampler.state_dict()
    before = copied(state)
    play(sampler, LOSSES * 2)
    assert str(state) == str(before)
    other = sampler_of()
    other.load_state_dict(state)
    play(other, LOSSES * 3)
    assert str(state) == str(before)


def test_state_of_other_settings_is_refused():
    state = after_a_pass(LOSSES).state_dict()
    for changes in ({"ratio": 0.4}, {"batch_size": 9}, {"num_epochs": 7}, {"reading": "code"}):
        (name,) = changes
        with pytest.raises(ValueError, match=f"state must have {name} = "):
            sampler_of(**changes).load_state_dict(state)


def test_a_pass_without_any_update_is_an_error():
    sampler = sampler_of()
    next(iter(sampler))
    with pytest.raises(RuntimeError, match=r"pass 1 had no update\(indices, losses\)"):
        next(iter(sampler))
    sampler.load_state_dict(sampler.state_dict())  # a look at a batch, undone
    assert len(play(sampler, LOSSES)) == 5
    assert (sampler.passes, sampler.updates) == (1, 5)


def test_labels_given_for_indices_are_refused():
    sampler = sampler_of()
    batch = next(iter(sampler))
    labels = torch.tensor(batch) % 3
    with pytest.raises(ValueError, match="indices must be due in this pass, each once; got"):
        sampler.update(labels, LOSSES[batch])
    sampler.update(batch, LOSSES[batch])
    with pytest.raises(ValueError, match="indices must be due in this pass, each once"):
        sampler.update(batch, LOSSES[batch])  # a second time


def test_weights_are_those_of_samples_in_the_pass():
    sampler = sampler_of()
    with pytest.raises(ValueError, match="indices must be of samples of this pass; got nan"):
        sampler.weights([0])
    play(sampler, LOSSES)
    chosen = set(itertools.chain(*sampler))
    left_out = min(set(range(40)) - chosen)
    with pytest.raises(ValueError, match="indices must be of samples of this pass"):
        sampler.weights(torch.tensor([left_out]))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1; got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an integer; got 2.0"),
        ({"ratio": 1}, ValueError, r"ratio must be in \[0, 1\); got 1"),
        ({"ratio": math.nan}, ValueError, r"ratio must be in \[0, 1\); got nan"),
        ({"num_epochs": 0}, ValueError, "num_epochs must be at least 1; got 0"),
        ({"pruned_part": -1}, ValueError, "pruned_part must be finite and >= 0; got -1"),
        ({"reading": "text"}, ValueError, "reading must be 'paper' or 'code'; got 'text'"),
        ({"generator": 3}, TypeError, "generator must be a CPU torch.Generator or None; got 3"),
        ({"batch_size": 41, "drop_last": True}, ValueError, "leaves 0 of 40 samples"),
    ],
)
def test_sampler_rejects_bad_arguments(settings, error, message):
    with pytest.raises(error, match=message):
        sampler_of(**settings)


@pytest.mark.parametrize(
    ("indices", "losses", "error", "message"),
    [
        ([0, 40], torch.ones(2), ValueError, r"indices must be in 0..39; got 40"),
        ([0, 1], torch.ones(3), ValueError, r"losses must have shape \(2,\); got \(3,\)"),
        ([0], torch.tensor([math.nan]), ValueError, "losses must be finite; got nan"),
        ([0], torch.tensor([math.inf]), ValueError, "losses must be finite; got inf"),
        ([0], torch.tensor([1]), TypeError, "losses must be a tensor of float16"),
        ([0.5], torch.ones(1), TypeError, "indices must be a tensor of int64"),
    ],
)
def test_update_rejects_and_changes_nothing(indices, losses, error, message):
    sampler = sampler_of()
    next(iter(sampler))
    before = str(sampler.state_dict())
    with pytest.raises(error, match=message):
        sampler.update(indices, losses)
    assert str(sampler.state_dict()) == before


def test_ranks_need_an_explicit_generator(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match=r"generator must be given under torch\.distributed"):
        PruningBatchSampler(4, 2, num_epochs=2)
    PruningBatchSampler(4, 2, num_epochs=2, generator=generator())


def test_without_generator_torchs_own_seeds_one():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        first = PruningBatchSampler(40, 8, num_epochs=9)
        second = PruningBatchSampler(40, 8, num_epochs=9)
        torch.manual_seed(5)
        again = PruningBatchSampler(40, 8, num_epochs=9)
    orders = [play(sampler, LOSSES) for sampler in (first, second, again)]
    assert orders[0] == orders[2] != orders[1]


# --- on a device ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("as_on_a_device")
def test_device_raises_when_the_next_pass_begins():
    for indices, losses in (([0, 0], [1.0, 1.0]), ([0, 1], [1.0, math.nan])):
        sampler = sampler_of()
        next(iter(sampler))
        sampler.update(torch.tensor(indices), torch.tensor(losses))
        restored = sampler_of()
        restored.load_state_dict(copied(sampler.state_dict()))
        with pytest.raises(ValueError, match="in pass 1 were not due, or losses infinite"):
            next(iter(sampler))
        list(restored)  # what is owed
        with pytest.raises(ValueError, match="in pass 1 were not due, or losses infinite"):
            next(iter(restored))


@pytest.mark.usefixtures("as_on_a_device")
def test_device_is_not_waited_for_in_a_pass(looks):
    sampler = after_a_pass(LOSSES)
    batches = [torch.tensor(indices) for indices in sampler]
    with looks() as during:
        for indices in batches:
            sampler.weights(indices)
            sampler.update(indices, LOSSES[indices])
    assert during.waits == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_passes_of_the_cpu_and_waits_once_a_pass():
    ours, theirs = sampler_of(), sampler_of()
    on_gpu = LOSSES.cuda()
    for _ in range(4):
        expected = play(ours, LOSSES)
        batches = list(theirs)
        assert batches == expected
        for indices in batches:
            chosen = torch.tensor(indices, device="cuda")
            if indices is batches[0]:  # the first moves the tables
                theirs.weights(chosen)
                theirs.update(chosen, on_gpu[chosen])
                continue
            torch.cuda.set_sync_debug_mode("error")
            try:
                weights = theirs.weights(chosen)
                theirs.update(chosen, on_gpu[chosen])
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert torch.equal(weights.cpu(), ours.weights(indices))
