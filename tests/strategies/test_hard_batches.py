"""Hard batches against a plain algorithm 2, pauses with prefetching workers, and every error."""

import io
import itertools
import math
from fractions import Fraction

import pytest
import torch
from helpers import tiny_network
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from hardtrain import HardBatchSampler

DELTAS = (1.0, 0.8, 0.5, 0.2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Training:
    """A tiny network with momentum on fixed data; ``step`` gives the loss before the step."""

    def __init__(self, num_samples):
        self.inputs, self.targets, self.model, self.optimizer = tiny_network(num_samples)

    def step(self, indices):
        loss = cross_entropy(self.model(self.inputs[indices]), self.targets[indices])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def weights(self):
        return nn.utils.parameters_to_vector(self.model.parameters()).detach()


def algorithm_2(batches, delta, num_epochs, order, step, draws=None):
    """As printed, with errata 001-8 applied: slow and plain. Gives the ids of all updates. With
    ``order="random"`` losses play no part."""
    num_batches = len(batches)
    num_chosen = max(1, math.floor(Fraction(str(delta)) * num_batches))
    losses, ids = [], []
    for i in range(num_batches):
        losses.append(step(batches[i]).item())
        ids.append(i)
    while len(ids) < num_epochs * num_batches:
        remaining, chosen = list(range(num_batches)), []
        for _ in range(num_chosen):
            hardest = remaining[0]
            for i in remaining:
                if losses[i] > losses[hardest]:
                    hardest = i
            remaining.remove(hardest)
            chosen.append(hardest)
        if order == "index":
            chosen.sort()
        if order == "random":
            chosen = torch.randperm(num_batches, generator=draws).tolist()[:num_chosen]
        for i in chosen:
            if len(ids) < num_epochs * num_batches:
                losses[i] = step(batches[i]).item()
                ids.append(i)
    return ids


def train(sampler, training, num_updates, *, batches=None, pause_at=None):
    """A bare loop of so many updates; gives their ids, and the state after ``pause_at``."""
    ids, state = [], None
    for batch in itertools.chain.from_iterable(itertools.repeat(batches or sampler)):
        indices = batch[-1] if batches else batch
        sampler.update(indices, training.step(indices))
        ids.append(id_of(sampler, indices))
        if len(ids) == pause_at:
            state = copied(sampler.state_dict())
        if len(ids) == num_updates:
            return ids, state


def id_of(sampler, indices):
    return sampler.batches.index([int(i) for i in indices])


def ids_of(sampler, batches):
    return [id_of(sampler, batch) for batch in batches]


def play(sampler, losses):
    """One pass with these losses by batch id; gives the ids that were yielded."""
    ids = []
    for indices in sampler:
        ids.append(id_of(sampler, indices))
        sampler.update(indices, losses[ids[-1]])
    return ids


def after_a_pass(losses=(0.1, 0.5, 0.3, 0.9, 0.7), delta=0.6, batch_size=2, **options):
    sampler = HardBatchSampler(len(losses) * batch_size, batch_size, delta, **options)
    play(sampler, losses)
    return sampler


def copied(state):
    """As it would come back from the disk."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# --- which batches, in which order --------------------------------------------------------------


def draws_for(order, seed=5):
    return generator(seed) if order == "random" else None


@pytest.mark.parametrize("order", ["loss", "index", "random"])
@pytest.mark.parametrize("delta", DELTAS)
def test_sampler_trains_as_algorithm_2_bit_for_bit(delta, order):
    sampler = HardBatchSampler(
        39, 4, delta, order=order, generator=generator(), draws=draws_for(order)
    )
    assert [len(batch) for batch in sampler.batches] == [4] * 9 + [3]
    reference, ours = Training(39), Training(39)
    wanted = algorithm_2(sampler.batches, delta, 7, order, reference.step, draws_for(order))
    ids, _ = train(sampler, ours, num_updates=7 * 10)
    assert ids == wanted
    assert len(ids) == 70
    assert torch.equal(ours.weights(), reference.weights())


def test_delta_one_by_index_is_plain_training_on_fixed_batches_bit_for_bit():
    sampler = HardBatchSampler(40, 4, 1.0, order="index", generator=generator())
    plain, ours = Training(40), Training(40)
    for _ in range(5):
        for indices in torch.randperm(40, generator=generator()).split(4):
            plain.step(indices)
    ids, _ = train(sampler, ours, num_updates=50)
    assert ids == 5 * list(range(10))
    assert torch.equal(ours.weights(), plain.weights())


def test_delta_one_by_loss_gives_all_batches_hardest_first():
    sampler = after_a_pass(delta=1.0)
    assert play(sampler, (0.9, 0.1, 0.2, 0.3, 0.4)) == [3, 4, 1, 2, 0]
    assert play(sampler, (0.0,) * 5) == [0, 4, 3, 2, 1]


def test_first_pass_is_every_batch_by_id_for_any_order_and_delta():
    for order, delta in itertools.product(("loss", "index"), DELTAS):
        sampler = HardBatchSampler(11, 2, delta, order=order, generator=generator())
        assert list(sampler) == sampler.batches
        assert sorted(itertools.chain(*sampler.batches)) == list(range(11))
        assert (sampler.round, sampler.chosen) == (1, [0, 1, 2, 3, 4, 5])


def test_round_is_the_hardest_by_loss_or_by_index():
    assert ids_of(*[after_a_pass()] * 2) == [3, 4, 1]
    sampler = after_a_pass(order="index")
    assert ids_of(sampler, sampler) == [1, 3, 4]
    assert (sampler.round, sampler.chosen) == (2, [1, 3, 4])


def test_random_rounds_take_every_batch_alike_whatever_its_loss():
    sampler = HardBatchSampler(10, 2, 0.4, order="random", draws=generator(5))
    taken = [play(sampler, (9.0, 0.1, 0.1, 0.1, 0.1)) for _ in range(1001)][1:]
    assert all(len(set(ids)) == 2 for ids in taken)
    counts = torch.bincount(torch.tensor(taken).flatten(), minlength=5)
    assert (counts - 400).abs().max() < 4 * math.sqrt(1000 * 0.4 * 0.6)


def test_random_rounds_of_delta_one_are_all_batches_in_new_orders():
    sampler = HardBatchSampler(16, 2, 1.0, order="random", draws=generator(5))
    first, second, third = (play(sampler, range(8)) for _ in range(3))
    assert first == list(range(8))
    assert sorted(second) == sorted(third) == first
    assert len({tuple(first), tuple(second), tuple(third)}) == 3


def test_ties_go_by_id():
    sampler = after_a_pass((0.5, 0.9, 0.5, 0.9, 0.5, 0.1), delta=0.7)
    assert play(sampler, (0.5,) * 6) == [1, 3, 0, 2]
    assert play(sampler, (0.5,) * 6) == [0, 1, 2, 3]


def test_losses_of_batches_not_chosen_stay():
    sampler = after_a_pass((0.6, 0.1, 0.2, 0.9, 0.8), delta=0.4)
    assert play(sampler, (9, 9, 9, 0.3, 0.15)) == [3, 4]
    assert sampler.losses.tolist() == pytest.approx([0.6, 0.1, 0.2, 0.3, 0.15])
    assert play(sampler, (0.0,) * 5) == [0, 3]  # 0 waited with its loss of the first pass
    assert sampler.losses.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.0, 0.15])


@pytest.mark.parametrize(
    ("num_batches", "delta", "wanted"),
    [
        (9, 0.8, 7),  # STL-10, last batch dropped: 7.2, 4.5, 1.8
        (9, 0.5, 4),
        (9, 0.2, 1),
        (98, 0.8, 78),  # CIFAR: 78.4, 49, 19.6
        (98, 0.5, 49),
        (98, 0.2, 19),
        (98, 1.0, 98),
        (10, 0.3, 3),
        (100, 0.29, 29),  # 28.999999999999996 in floating point
        (3, 0.01, 1),
        (1, 1, 1),
    ],
)
def test_round_has_the_floor_of_delta_times_the_batches(num_batches, delta, wanted):
    sampler = HardBatchSampler(num_batches, 1, delta)
    assert len(sampler) == num_batches
    play(sampler, range(num_batches))
    assert len(sampler) == wanted
    assert len(list(sampler)) == wanted


def test_batches_are_drawn_once_from_the_generator():
    drawn = torch.randperm(10, generator=generator(5)).tolist()
    sampler = HardBatchSampler(10, 4, 0.5, generator=generator(5))
    assert sampler.batches == [drawn[:4], drawn[4:8], drawn[8:]]
    assert (sampler.num_batches, sampler.left_out) == (3, [])
    in_file_order = HardBatchSampler(5, 2, 0.5)
    assert in_file_order.batches == [[0, 1], [2, 3], [4]]


def test_drop_last_leaves_out_the_short_batch():
    sampler = HardBatchSampler(5, 2, 1.0, drop_last=True)
    assert (sampler.batches, sampler.left_out, sampler.num_batches) == ([[0, 1], [2, 3]], [4], 2)
    assert HardBatchSampler(4, 2, 1.0, drop_last=True).left_out == []
    with pytest.raises(ValueError, match="batch_size = 6 with drop_last leaves 0 of 5 samples"):
        HardBatchSampler(5, 6, 1.0, drop_last=True)


def test_yielded_lists_are_the_callers_own():
    sampler = HardBatchSampler(4, 2, 1.0)
    next(iter(sampler)).clear()
    assert sampler.batches == [[0, 1], [2, 3]]


# --- the losses ---------------------------------------------------------------------------------


def test_losses_keep_their_precision():
    sampler = HardBatchSampler(3, 1, 1.0)
    assert sampler.losses.isnan().all()  # none came yet
    sampler.update([0], torch.tensor(0.1))
    assert sampler.losses.dtype == torch.float32
    sampler.update([1], torch.tensor(0.2, dtype=torch.bfloat16))
    assert sampler.losses.dtype == torch.float32
    sampler.update([2], 0.1)
    assert sampler.losses.dtype == torch.float64
    assert sampler.losses[2].item() == 0.1


def test_losses_that_differ_in_the_last_float64_bit_are_ranked():
    first = 0.1
    losses = [torch.tensor(x, dtype=torch.float64) for x in (first, math.nextafter(first, 1))]
    sampler = after_a_pass(losses, delta=1.0)
    assert ids_of(sampler, sampler) == [1, 0]


def test_update_keeps_no_graph():
    sampler = HardBatchSampler(2, 2, 1.0)
    sampler.update([0, 1], torch.ones((), requires_grad=True) * 2)
    assert not sampler.losses.requires_grad


def test_nan_counts_as_the_largest_loss():
    sampler = after_a_pass((0.1, math.nan, math.inf, 0.9, math.nan), delta=0.8)
    assert ids_of(sampler, sampler) == [1, 4, 2, 3]


def test_update_takes_batches_in_any_order():
    sampler = after_a_pass()
    for indices in reversed(list(sampler)):  # 3, 4, 1 were yielded
        sampler.update(indices, float(indices[0]))
    assert sampler.losses.tolist() == pytest.approx([0.1, 2.0, 0.3, 6.0, 8.0])
    assert ids_of(sampler, sampler) == [4, 3, 1]


# --- pauses -------------------------------------------------------------------------------------


def loader(sampler, training, **options):
    data = TensorDataset(training.inputs, training.targets, torch.arange(len(training.inputs)))
    return DataLoader(data, batch_sampler=sampler, **options)


@pytest.mark.parametrize(
    ("workers", "order"),
    [(None, "loss"), (None, "index"), (0, "index"), (2, "loss"), (None, "random"), (2, "random")],
)
def test_paused_in_a_round_goes_on_bit_for_bit(workers, order):
    def parts():
        # another generator: the batches come with the state
        seed = seeds.pop()
        draws = draws_for(order, seed)
        sampler = HardBatchSampler(196, 2, 0.8, order=order, generator=generator(seed), draws=draws)
        training = Training(196)
        batches = None if workers is None else loader(sampler, training, num_workers=workers)
        return sampler, training, batches

    seeds = [8, 7]
    sampler, training, batches = parts()
    step = (reference := Training(196)).step
    wanted = algorithm_2(sampler.batches, 0.8, 3, order, step, draws_for(order, 7))
    # 196 = 98 + 78 + 20: the state is taken 20 batches into a round, with more on their way
    ids, state = train(sampler, training, 196, batches=batches, pause_at=196)
    assert ids == wanted[:196]

    sampler, resumed, batches = parts()
    sampler.load_state_dict(state)
    resumed.model.load_state_dict(training.model.state_dict())
    resumed.optimizer.load_state_dict(training.optimizer.state_dict())
    assert len(sampler) == 58
    assert batches is None or len(batches) == 58
    assert ids + train(sampler, resumed, 98, batches=batches)[0] == wanted
    assert torch.equal(resumed.weights(), reference.weights())


def test_state_counts_updates_not_yielded_batches():
    sampler = after_a_pass()
    yielded = list(sampler)  # 3, 4, 1: workers have run ahead
    sampler.update(yielded[0], 0.2)
    restored = HardBatchSampler(10, 2, 0.6)
    restored.load_state_dict(copied(sampler.state_dict()))
    assert len(restored) == 2
    assert (restored.round, restored.chosen) == (2, [3, 4, 1])
    assert play(restored, (0.4,) * 5) == [4, 1]
    assert len(restored) == 3
    assert play(restored, (0.4,) * 5) == [1, 4, 2]
    assert restored.round == 3


def test_restored_round_owes_what_was_passed_over():
    sampler = after_a_pass()
    sampler.update(list(sampler)[1], 0.2)  # 4 came before 3
    restored = HardBatchSampler(10, 2, 0.6)
    restored.load_state_dict(sampler.state_dict())
    assert play(restored, (0.4,) * 5) == [3, 1]


def test_workers_out_of_order_change_nothing_that_is_stored():
    training = Training(20)
    sampler = HardBatchSampler(20, 2, 0.6)
    wanted = {i: float(i) for i in range(10)}
    for *_, indices in loader(sampler, training, num_workers=2, in_order=False):
        sampler.update(indices, wanted[id_of(sampler, indices)])
    assert sampler.losses.tolist() == list(wanted.values())
    assert ids_of(sampler, sampler) == [9, 8, 7, 6, 5, 4]


def test_restored_between_rounds_begins_a_new_one():
    for sampler in (HardBatchSampler(10, 2, 0.6), after_a_pass()):
        restored = HardBatchSampler(10, 2, 0.6)
        restored.load_state_dict(copied(sampler.state_dict()))
        assert len(restored) == len(sampler)
        assert list(restored) == list(sampler)
        assert restored.round == sampler.round


def test_restored_before_any_update_repeats_the_pass():
    sampler = HardBatchSampler(10, 2, 0.6)
    next(iter(sampler))
    sampler.load_state_dict(sampler.state_dict())  # a look at a batch, undone
    assert len(sampler) == 5
    assert play(sampler, (0.1, 0.5, 0.3, 0.9, 0.7)) == [0, 1, 2, 3, 4]
    assert ids_of(sampler, sampler) == [3, 4, 1]


def test_state_does_not_change_with_the_sampler():
    sampler = after_a_pass()
    state = sampler.state_dict()
    before = copied(state)
    play(sampler, (0.0,) * 5)
    assert str(state) == str(before)
    restored = HardBatchSampler(10, 2, 0.6)
    restored.load_state_dict(state)
    play(restored, (7.0,) * 5)
    assert str(state) == str(before)


def test_state_brings_its_batches():
    sampler = HardBatchSampler(7, 2, 0.6, drop_last=True, generator=generator(1))
    other = HardBatchSampler(7, 2, 0.6, drop_last=True, generator=generator(2))
    assert other.batches != sampler.batches
    other.load_state_dict(copied(sampler.state_dict()))
    assert (other.batches, other.left_out) == (sampler.batches, sampler.left_out)
    play(other, (0.1, 0.2, 0.3))  # found by their new indices
    assert other.losses.tolist() == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_samples", 9),
        ("batch_size", 3),
        ("delta", 0.7),
        ("order", "index"),
        ("drop_last", True),
    ],
)
def test_state_of_other_settings_is_refused(name, value):
    settings = {"num_samples": 10, "batch_size": 2, "delta": 0.6, "order": "loss"}
    state = after_a_pass().state_dict()
    other = HardBatchSampler(**settings | {name: value})
    before = other.batches
    with pytest.raises(ValueError, match=f"state must have {name} = {value!r}; got "):
        other.load_state_dict(state)
    assert (other.batches, other.round) == (before, 0)
    with pytest.raises(ValueError, match=r"state must have num_samples = .*; got None"):
        other.load_state_dict({})


def test_length_is_right_where_workers_begin_a_pass_early_and_loops_stop_one_early():
    sampler = HardBatchSampler(32, 4, 0.5)
    for length in (8, 4, 4):
        assert len(sampler) == length
        batches = list(sampler)  # as workers do
        assert len(batches) == len(sampler) == length
        for batch in batches:
            sampler.update(batch, 1.0)
    for batch, _ in zip(sampler, range(3), strict=False):
        sampler.update(batch, 1.0)
    assert len(sampler) == len(list(sampler)) == 1


def test_new_round_with_updates_missing_is_an_error():
    sampler = HardBatchSampler(10, 2, 0.6)
    list(sampler)
    with pytest.raises(RuntimeError, match="5 of 5 updates of round 1 are missing; call update"):
        next(iter(sampler))
    sampler = after_a_pass()
    for indices in list(sampler)[::2]:  # 3 and 1; 4, between them, was forgotten
        sampler.update(indices, 0.1)
    for _ in range(2):  # asking again does not help
        with pytest.raises(RuntimeError, match="1 of 3 updates of round 2 are missing"):
            next(iter(sampler))
    assert (sampler.round, sampler.chosen) == (2, [3, 4, 1])
    sampler.update(sampler.batches[3], 0.1)  # the wrong one, twice
    with pytest.raises(RuntimeError, match="1 of 3"):
        next(iter(sampler))
    sampler.load_state_dict(sampler.state_dict())
    assert play(sampler, (0.1,) * 5) == [4]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("limit", [3, 8])
def test_rounds_cut_short_go_on_in_the_next_pass_as_algorithm_2(limit, workers):
    # a loop that stops each pass after so many batches, as Lightning's limit_train_batches does;
    # workers have then run ahead, beyond the end of the round
    sampler, ours = HardBatchSampler(40, 4, 0.5, generator=generator()), Training(40)
    wanted = algorithm_2(sampler.batches, 0.5, 6, "loss", (reference := Training(40)).step)
    ids, passes = [], 0
    while len(ids) < 60:
        passes += 1
        for *_, indices in itertools.islice(loader(sampler, ours, num_workers=workers), limit):
            if len(ids) < 60:
                sampler.update(indices, ours.step(indices))
                ids.append(id_of(sampler, indices))
    assert ids == wanted
    assert torch.equal(ours.weights(), reference.weights())
    assert passes == {3: 24, 8: 12}[limit]  # 10 = 3 + 3 + 3 + 1 and 5 = 3 + 2; 10 = 8 + 2


# --- on a device --------------------------------------------------------------------------------


@pytest.mark.usefixtures("as_on_a_device")
@pytest.mark.parametrize("delta", DELTAS)
def test_device_lookup_trains_as_algorithm_2_bit_for_bit(delta):
    sampler = HardBatchSampler(39, 4, delta, generator=generator())
    reference, ours = Training(39), Training(39)
    wanted = algorithm_2(sampler.batches, delta, 7, "loss", reference.step)
    batches = loader(sampler, ours)
    assert train(sampler, ours, 70, batches=batches)[0] == wanted
    assert torch.equal(ours.weights(), reference.weights())


@pytest.mark.usefixtures("as_on_a_device")
@pytest.mark.parametrize(
    "indices",
    [
        [2, 1],  # another order
        [1],  # too few
        [0, 2],  # of two batches
        [3, 4],  # across two
        [-1, 0],
        [5, 5],
        [2**40, 0],  # must not reach beyond a table
        [4, 0],  # the short batch, and more
        [0],  # the beginning of a longer one
    ],
)
def test_device_raises_strange_indices_when_the_next_round_begins(indices):
    sampler = HardBatchSampler(5, 2, 0.5)
    for i, batch in enumerate(list(sampler)):
        sampler.update(torch.tensor(batch), float(i))
    before = sampler.losses
    sampler.update(torch.tensor(indices), 100.0)
    assert torch.equal(sampler.losses, before)
    for _ in range(2):
        with pytest.raises(ValueError, match="indices of an update in round 1 were not those"):
            next(iter(sampler))
    restored = HardBatchSampler(5, 2, 0.5)
    restored.load_state_dict(copied(sampler.state_dict()))
    with pytest.raises(ValueError, match="were not those of one of the 3 batches"):
        next(iter(restored))


@pytest.mark.usefixtures("as_on_a_device")
def test_device_lookup_knows_a_batch_size_above_the_number_of_samples():
    sampler = HardBatchSampler(3, 8, 1.0)
    sampler.update(torch.tensor(next(iter(sampler))), 0.5)
    assert sampler.losses.tolist() == [0.5]
    for indices in ([], [0, 1, 2, 0]):
        with pytest.raises(ValueError, match=r"indices must .*\(?B,"):
            sampler.update(torch.tensor(indices, dtype=torch.int64), 0.5)


@pytest.mark.usefixtures("as_on_a_device")
def test_device_is_waited_for_once_a_round(looks):
    def waits(num_batches):
        sampler = HardBatchSampler(2 * num_batches, 2, 0.5)
        sampler.load_state_dict(sampler.state_dict())
        with looks() as during:
            counts = []
            for _ in range(3):
                for indices in sampler:
                    begun = during.waits
                    sampler.update(torch.tensor(indices), torch.tensor(0.5))
                    assert during.waits == begun
                counts.append(during.waits)
        return counts

    assert waits(4) == waits(40) == [0, 1, 2]


def test_cpu_update_reads_no_loss(looks):
    sampler = HardBatchSampler(8, 2, 0.5)
    with looks() as during:
        for indices in sampler:
            begun = during.waits
            sampler.update(indices, torch.tensor(0.5))  # a list: nothing to look up on a tensor
            assert during.waits == begun


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_update_does_not_wait():
    sampler = HardBatchSampler(7, 2, 0.5)
    for i in range(3):
        batches = [torch.tensor(indices, device="cuda") for indices in sampler]
        loss = torch.tensor(float(i), device="cuda")
        sampler.update(batches[0], loss)  # the first moves the tables
        torch.cuda.set_sync_debug_mode("error")
        try:
            for indices in batches[1:]:
                sampler.update(indices, loss)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sampler.losses.device.type == "cuda"
    assert sampler.losses.tolist() == [2.0, 2.0, 0.0, 0.0]


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1; got 0"),
        ({"batch_size": -1}, ValueError, "batch_size must be at least 1; got -1"),
        ({"delta": 1.01}, ValueError, r"delta must be in \(0, 1\]; got 1.01"),
        ({"order": "indx"}, ValueError, "order must be 'loss' or .*; got 'indx': meant 'index'\\?"),
        ({"order": "random"}, ValueError, "got order = 'random' and draws = None"),
        ({"draws": generator()}, ValueError, "got order = 'loss' and draws = <torch"),
        ({"draws": 3}, TypeError, "draws must be a CPU torch.Generator or None; got 3"),
        ({"generator": 3}, TypeError, "generator must be a CPU torch.Generator or None; got 3"),
    ],
)
def test_sampler_rejects_bad_arguments(changes, error, message):
    with pytest.raises(error, match=message):
        HardBatchSampler(**{"num_samples": 10, "batch_size": 2, "delta": 0.5} | changes)


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([1, 0], ValueError, r"one of the 5 batches, in its order; got 2, from \[1, 0\]"),
        (torch.tensor([0, 2]), ValueError, r"indices must be .* got 2, from \[0, 2\]"),
        (torch.arange(9), ValueError, r"got 9, from \[0, 1, 2, 3, 4\]"),
        ([10, 11], ValueError, "indices must be"),
        ([0], ValueError, "indices must be"),
        ([], TypeError, "indices must be"),
        (torch.tensor([[0, 1]]), ValueError, r"indices must have shape \(B,\); got \(1, 2\)"),
        ([0.5, 1], TypeError, "indices must be a tensor of int64; got torch.float32"),
        ([[0, 1]], ValueError, r"indices must have shape \(B,\); got \(1, 2\)"),
        (0, ValueError, r"indices must have shape \(B,\); got \(\)"),
    ],
)
def test_update_rejects_indices_that_are_no_batch(indices, error, message):
    sampler = after_a_pass()
    before = sampler.losses
    with pytest.raises(error, match=message):
        sampler.update(indices, 0.5)
    assert torch.equal(sampler.losses, before)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (torch.ones(1), ValueError, r"loss must have shape \(\); got \(1,\)"),
        (torch.tensor(1), TypeError, "loss must be a tensor of float16, .*; got torch.int64"),
        (True, TypeError, "loss must be a tensor of .* got bool"),
        (None, TypeError, "loss must be a tensor of .* got NoneType"),
    ],
)
def test_update_rejects_a_loss_that_is_no_scalar(loss, error, message):
    with pytest.raises(error, match=message):
        after_a_pass().update([0, 1], loss)
