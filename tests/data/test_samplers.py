"""Which samples meet in a batch: every one once, classes alike, or drawn by another sampler."""

import pytest
import torch
from helpers import seeded

from hardtrain import ParameterError, run_missing
from hardtrain.data.samplers import (
    BalancedBatchSampler,
    BiasedBatchSampler,
    ShareBatchSampler,
    UniformBatchSampler,
)
from hardtrain.runs.run_data import load_data
from hardtrain.training import pieces

# --- UniformBatchSampler -------------------------------------------------------------------------


def test_uniform_sampler_gives_every_index_once_a_pass():
    sampler = UniformBatchSampler(23, 5, generator=seeded())
    first, second = list(sampler), list(sampler)
    assert [len(b) for b in first] == [5, 5, 5, 5, 3]
    assert len(sampler) == 5
    assert all(b.dtype == torch.int64 for b in first)
    for batches in (first, second):
        assert sorted(torch.cat(batches).tolist()) == list(range(23))
    assert not torch.equal(torch.cat(first), torch.cat(second))
    again = list(UniformBatchSampler(23, 5, generator=seeded()))
    assert torch.equal(torch.cat(first), torch.cat(again))


def test_uniform_sampler_drops_a_short_last_batch_if_asked():
    sampler = UniformBatchSampler(23, 5, drop_last=True, generator=seeded())
    assert [len(b) for b in sampler] == [5] * 4
    assert len(sampler) == 4
    assert len(list(UniformBatchSampler(20, 5, drop_last=True, generator=seeded()))) == 4
    assert len(UniformBatchSampler(20, 5, generator=seeded())) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"batch_size": 2.5}, "batch_size = 2.5"),
        ({"batch_size": True}, "batch_size = True"),
        ({"batch_size": 11, "drop_last": True}, "batch_size = 11 .*0 of 10"),
        ({"generator": None}, "generator = None"),
    ],
)
def test_uniform_sampler_rejects_bad_arguments_by_name(arguments, message):
    with pytest.raises(ParameterError, match=message):
        UniformBatchSampler(
            **{"num_samples": 10, "batch_size": 2, "generator": seeded(), **arguments}
        )


# --- BalancedBatchSampler ------------------------------------------------------------------------


def balanced(sizes, batch_size, *, seed=0, **options):
    """The labels of classes of these sizes in mixed order, and a sampler of them."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=seeded(9))]
    return labels, BalancedBatchSampler(labels, batch_size, generator=seeded(seed), **options)


def counts(labels, indices, num_classes):
    return labels[indices].bincount(minlength=num_classes).tolist()


def test_balanced_batches_of_equal_classes_have_equal_counts_and_every_sample_once():
    labels, sampler = balanced([12] * 5, 15)
    for _ in range(3):
        batches = list(sampler)
        assert [counts(labels, batch, 5) for batch in batches] == [[3] * 5] * 4
        assert sorted(torch.cat(batches).tolist()) == list(range(60))


def test_a_short_last_batch_is_balanced_too():
    labels, sampler = balanced([7] * 4, 12)  # 28 = 12 + 12 + 4
    assert [counts(labels, batch, 4) for batch in sampler] == [[3] * 4, [3] * 4, [1] * 4]


@pytest.mark.parametrize("batch_size", [7, 8, 13, 59])
def test_counts_differ_by_one_where_the_batch_is_no_multiple_of_the_classes(batch_size):
    labels, sampler = balanced([12] * 5, batch_size)
    batches = list(sampler)
    for batch in batches:
        found = counts(labels, batch, 5)
        assert max(found) - min(found) <= 1
        assert len(set(batch.tolist())) == len(batch)
    assert sorted(torch.cat(batches).tolist()) == list(range(60))


def test_classes_take_turns_when_a_batch_is_smaller_than_their_number():
    labels, sampler = balanced([4] * 5, 2)
    found = torch.cat([labels[batch] for batch in sampler]).tolist()
    assert found == [0, 1, 2, 3, 4] * 4
    assert sorted(torch.cat(list(sampler)).tolist()) == list(range(20))


def test_a_small_class_gives_its_samples_several_times_and_a_large_one_not_all():
    labels, sampler = balanced([2, 8, 20], 6)  # 30 samples: 10 places for each class
    batches = list(sampler)
    assert len(sampler) == len(batches) == 5
    assert [counts(labels, batch, 3) for batch in batches] == [[2, 2, 2]] * 5
    times = torch.cat(batches).bincount(minlength=30)
    of = [times[labels == k].tolist() for k in range(3)]
    assert of[0] == [5, 5]  # each all its samples before any of them again
    assert sorted(of[1]) == [1] * 6 + [2] * 2
    assert sorted(of[2]) == [0] * 10 + [1] * 10
    for start in range(0, 10, 2):  # so both samples of the small class are in every two turns
        turns = torch.cat(batches)[0::3][start : start + 2]
        assert len(set(turns.tolist())) == 2


def test_the_samples_of_a_class_are_drawn_evenly_over_the_passes():
    labels, sampler = balanced([3, 9], 4)  # 6 places for each class
    passes = 4000
    first, times, repeated = torch.zeros(12), torch.zeros(12), 0
    for _ in range(passes):
        order = torch.cat(list(sampler))
        times += order.bincount(minlength=12)
        first[order[:2]] += 1
        repeated += torch.equal(order[0:6:2], order[6:12:2])  # both rounds of the small class
    assert times[labels == 0].tolist() == [2 * passes] * 3
    # of 9 samples 6 are drawn: hypergeometric, sd of a count sqrt(4000 * 2/3 * 1/3) = 30
    assert (times[labels == 1] - passes * 6 / 9).abs().max() < 4 * 30
    for k, size in ((0, 3), (1, 9)):  # and each comes first equally often
        expected = passes / size
        assert (first[labels == k] - expected).abs().max() < 4 * expected**0.5
    assert abs(repeated - passes / 6) < 4 * 24  # one order of six, drawn anew


def test_pairs_of_classes_are_drawn_independently_of_each_other():
    _, sampler = balanced([3, 3], 2)
    labels = sampler.members
    table = torch.zeros(6, 6)
    for _ in range(3000):
        a, b = next(iter(sampler)).tolist()
        table[a, b] += 1
    found = table[labels[0]][:, labels[1]]
    assert found.sum() == 3000
    # nine cells of 1/9: chi-square with 8 degrees of freedom, 0.999 quantile 26.1
    assert ((found - 3000 / 9) ** 2 / (3000 / 9)).sum() < 26.1


def test_balanced_drop_last_leaves_the_short_batch_out():
    labels, sampler = balanced([5] * 4, 8, drop_last=True)
    batches = list(sampler)
    assert len(sampler) == len(batches) == 2
    assert [counts(labels, batch, 4) for batch in batches] == [[2] * 4] * 2
    with pytest.raises(ParameterError, match="batch_size = 21 with drop_last leaves 0 of 20"):
        balanced([5] * 4, 21, drop_last=True)


def test_a_class_without_samples_has_no_turn():
    labels = torch.tensor([4, 0, 4, 0, 2, 2])
    sampler = BalancedBatchSampler(labels, 3, generator=seeded())
    assert [labels[batch].tolist() for batch in sampler] == [[0, 2, 4]] * 2
    one = BalancedBatchSampler(torch.tensor([7, 7]), 1, generator=seeded())
    assert sorted(torch.cat(list(one)).tolist()) == [0, 1]


def test_balanced_sampler_goes_on_from_its_generators_state():
    _, sampler = balanced([2, 8, 20], 7, seed=3)
    list(sampler)
    state = sampler.generator.get_state()
    rest = [list(sampler) for _ in range(2)]
    _, again = balanced([2, 8, 20], 7, seed=100)
    again.generator.set_state(state)
    for batches in rest:
        assert all(map(torch.equal, batches, list(again)))
    assert not torch.equal(torch.cat(rest[0]), torch.cat(rest[1]))


def test_balanced_sampler_draws_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    list(balanced([2, 8, 20], 7)[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_balanced_run_trains_on_balanced_batches(tiny_run, store):
    run = tiny_run(balanced=True, batch_size=15)
    train, _, _ = load_data(run)
    batches, _ = pieces.uniform_batches(run, train)
    assert [batch.targets.bincount().tolist() for batch in batches] == [[5, 5, 5]] * 4
    frame = run_missing([run, tiny_run(batch_size=15)], store)
    assert frame["train_loss"].nunique() == 2
    assert frame["balanced"].tolist() == [True, False]


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "hard_batches"},
        {"method": "active_bias", "options": {"variant": "SPV"}},
        {"method": "active_bias", "options": {"variant": "uniform"}},
    ],
    ids=["hard", "SPV", "uniform"],
)
def test_balanced_is_refused_where_the_method_chooses_the_batches(tiny_run, store, changes):
    name = changes["method"]
    with pytest.raises(ParameterError, match=f"balanced = True: '{name}' chooses its mini-batches"):
        run_missing([tiny_run(balanced=True, **changes)], store)
    assert not store.path.exists()


# --- ShareBatchSampler ---------------------------------------------------------------------------


def test_a_share_is_drawn_anew_each_pass_and_without_replacement():
    sampler = ShareBatchSampler(0.4, 50, 8, generator=seeded())
    assert len(sampler) == 3
    passes = [torch.cat(list(sampler)).tolist() for _ in range(2000)]
    assert all(len(set(chosen)) == 20 for chosen in passes)
    counts = torch.tensor(passes).flatten().bincount(minlength=50)
    # each sample 800 times on average, with standard deviation 22
    assert (counts - 800).abs().max() < 4 * 22
    assert [len(batch) for batch in sampler] == [8, 8, 4]


def test_a_share_of_one_is_the_uniform_sampler():
    for drop_last in (False, True):
        options = {"drop_last": drop_last}
        share = ShareBatchSampler(1.0, 9, 4, generator=seeded(1), **options)
        plain = UniformBatchSampler(9, 4, generator=seeded(1), **options)
        for _ in range(2):
            for ours, theirs in zip(share, plain, strict=True):
                assert torch.equal(ours, theirs)


def test_a_share_leaves_no_last_batch_of_one_sample():
    sampler = ShareBatchSampler(0.5, 18, 4, generator=seeded())  # 9 = 4 + 4 + 1
    assert [len(batch) for batch in sampler] == [4, 4]
    assert [len(batch) for batch in ShareBatchSampler(0.01, 18, 4, generator=seeded())] == [1]
    for share in (0, -0.1, 1.1):
        with pytest.raises(ParameterError, match=rf"share = {share} is not in \(0, 1\]"):
            ShareBatchSampler(share, 18, 4, generator=seeded())


# --- BiasedBatchSampler --------------------------------------------------------------------------


def test_biased_sampler_has_as_many_batches_of_the_other_as_the_plain_one():
    plain, other = [[0, 1], [2, 3]], [[9], [8], [7]]
    sampler = BiasedBatchSampler(plain, lambda: other)
    assert sampler.biased is False
    assert list(sampler) == plain
    sampler.biased = True
    assert len(sampler) == 2
    assert list(sampler) == [[9], [8]]
    sampler.biased = False
    assert list(sampler) == plain


def test_biased_sampler_draws_no_batch_that_it_does_not_give():
    drawn = []

    def other():
        for number in range(5):
            drawn.append(number)
            yield [number]

    sampler = BiasedBatchSampler([[0], [1]], other)
    sampler.biased = True
    assert list(sampler) == [[0], [1]]
    assert drawn == [0, 1]  # a generator's state would be ahead of a resumed run's
