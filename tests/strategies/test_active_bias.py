"""Active Bias against lists of histories, exact draws, statistics, and every error."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import copied
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from hardtrain import (
    PredictionHistory,
    WeightedBatchSampler,
    sample_weights,
    sampling_probabilities,
)
from hardtrain.strategies import active_bias
from hardtrain.strategies.active_bias import (
    difficulty,
    easiness,
    importance_weights,
    prediction_deviation,
    threshold_closeness,
)

SCORES = (prediction_deviation, threshold_closeness, difficulty, easiness)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_batches(num_samples, batch_size, num_batches, seed=0):
    """Indices with repetitions, one sample left out, and probabilities in float32."""
    drawn = generator(seed)
    for _ in range(num_batches):
        indices = torch.randint(num_samples - 1, (batch_size,), generator=drawn)
        yield indices, torch.rand(batch_size, generator=drawn)


def history_of(*lists):
    """One sample per list of probabilities."""
    history = PredictionHistory(len(lists))
    for i, probabilities in enumerate(lists):
        for p in probabilities:
            history.update(torch.tensor([i]), torch.tensor([p], dtype=torch.float64))
    return history


def plain_scores(probabilities):
    """Of one sample from its list, by the definitions."""
    n = len(probabilities)
    if n == 0:
        return dict.fromkeys(SCORES, 0.0)
    mean = math.fsum(probabilities) / n
    variance = math.fsum((p - mean) ** 2 for p in probabilities) / n
    return {
        prediction_deviation: math.sqrt(variance + variance**2 / (n - 1)) if n > 1 else 0.0,
        threshold_closeness: mean * (1 - mean),
        difficulty: 1 - mean,
        easiness: mean,
    }


@pytest.fixture
def looks_on_a_device(as_on_a_device, looks):
    return looks()


# --- history ------------------------------------------------------------------------------------


def test_history_matches_lists_with_repetitions_in_a_batch():
    history, lists = PredictionHistory(9), [[] for _ in range(9)]
    for indices, probabilities in random_batches(9, 16, num_batches=50):
        history.update(indices, probabilities)
        for i, p in zip(indices.tolist(), probabilities.tolist(), strict=True):
            lists[i].append(p)
    assert history.count.tolist() == [len(p) for p in lists]
    assert history.count.dtype == torch.int64
    assert history.count[8] == 0
    for i, probabilities in enumerate(lists[:8]):
        assert history.mean[i].item() == pytest.approx(np.mean(probabilities), rel=1e-13)
        assert history.variance[i].item() == pytest.approx(np.var(probabilities), rel=1e-13)
    assert history.mean[8].isnan()
    assert history.variance[8].isnan()
    for score in SCORES:
        wanted = [plain_scores(probabilities)[score] for probabilities in lists]
        assert score(history).tolist() == pytest.approx(wanted, rel=1e-13), score.__name__
        assert score(history).dtype == torch.float64


def test_history_counts_a_repeated_index_as_often_as_it_occurs():
    history = PredictionHistory(2)
    history.update(torch.tensor([1, 1, 1]), torch.tensor([0.0, 0.5, 1.0]))
    assert history.count.tolist() == [0, 3]
    assert history.mean[1].item() == 0.5
    assert history.variance[1].item() == pytest.approx(1 / 6, rel=1e-15)


def test_history_is_sound_near_one_over_many_updates():
    # the variance is 1e-15; sums of squares would leave only rounding errors of it
    values = 1 - 1e-7 * torch.rand(10_000, 2, dtype=torch.float64, generator=generator())
    history, indices = PredictionHistory(2), torch.tensor([0, 1])
    for probabilities in values:
        history.update(indices, probabilities)
    to_one = (1 - values).numpy()  # exact, and harmless to sum
    assert (1 - history.mean).tolist() == pytest.approx(to_one.mean(0), rel=1e-7)
    assert history.variance.tolist() == pytest.approx(to_one.var(0), rel=1e-7)


@pytest.mark.parametrize("repetitions", [1, 7])
def test_history_of_equal_probabilities_has_variance_zero(repetitions):
    history = PredictionHistory(1)
    for _ in range(30):
        indices = torch.zeros(repetitions, dtype=torch.int64)
        history.update(indices, torch.full((repetitions,), 0.1))
    assert 0 <= history.variance.item() < 1e-30
    assert prediction_deviation(history).item() < 1e-15


def test_history_keeps_three_numbers_a_sample():
    history = PredictionHistory(1000)

    def held():
        tensors = [value for value in vars(history).values() if isinstance(value, torch.Tensor)]
        others = [value for value in vars(history).values() if not isinstance(value, torch.Tensor)]
        assert others == [1000]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    before = held()
    for indices, probabilities in random_batches(1000, 64, num_batches=100):
        history.update(indices, probabilities)
    assert held() == before == 1000 * 3 * 8


def test_history_update_is_a_few_operations_and_never_waits(looks_on_a_device):
    history = PredictionHistory(100)
    indices, probabilities = torch.tensor([3, 3, 99]), torch.tensor([0.5, 0.25, 1.0])
    history.update(indices, probabilities)
    with looks_on_a_device as looks:
        history.update(indices, probabilities)
    assert looks.waits == 0
    assert looks.operations <= 15


def test_history_follows_no_gradient_and_leaves_its_arguments_alone():
    history, indices = PredictionHistory(3), torch.tensor([0, 2])
    probabilities = torch.tensor([0.5, 0.25], requires_grad=True)
    history.update(indices, probabilities)
    history.count.zero_()
    history.mean.zero_()
    assert history.count.tolist() == [1, 0, 1]
    assert not history.mean.requires_grad
    assert probabilities.tolist() == [0.5, 0.25]
    assert indices.tolist() == [0, 2]


def test_history_goes_on_from_a_saved_state_bit_for_bit():
    batches = list(random_batches(9, 16, num_batches=20))
    whole, first, second = (PredictionHistory(9) for _ in range(3))
    for number, batch in enumerate(batches):
        whole.update(*batch)
        if number < 10:
            first.update(*batch)
    state = first.state_dict()
    first.update(*batches[0])  # a state is not changed afterwards
    second.load_state_dict(copied(state))
    for batch in batches[10:]:
        second.update(*batch)
    for name in ("count", "mean", "variance"):
        assert torch.equal(
            getattr(second, name).nan_to_num(-1), getattr(whole, name).nan_to_num(-1)
        )


@pytest.mark.parametrize(
    ("indices", "probabilities", "error", "words"),
    [
        ([0, 5], [0.1, 0.2], ValueError, r"indices must be in 0\.\.4; got 5"),
        ([0, -1], [0.1, 0.2], ValueError, r"indices must be in 0\.\.4; got -1"),
        ([0, 1], [0.1, 1.5], ValueError, r"probabilities must be finite and in \[0, 1\]; got 1.5"),
        ([0, 1], [0.1, math.nan], ValueError, "probabilities .* got nan"),
        ([0, 1], [0.1], ValueError, r"probabilities must have shape \(2,\); got \(1,\)"),
        ([[0]], [0.1], ValueError, r"indices must have shape \(B,\); got \(1, 1\)"),
        ([0], [1], TypeError, r"probabilities must be a tensor of float16, .* got torch\.int64"),
        ([0.5], [0.1], TypeError, r"indices must be a tensor of int64; got torch\.float32"),
    ],
)
def test_history_rejects_and_stays_as_it_was(indices, probabilities, error, words):
    history = PredictionHistory(5)
    history.update(torch.tensor([0]), torch.tensor([0.5]))
    with pytest.raises(error, match=words):
        history.update(torch.tensor(indices), torch.tensor(probabilities))
    assert history.count.tolist() == [1, 0, 0, 0, 0]
    assert history.mean[0] == 0.5


def test_history_rejects_other_arguments():
    with pytest.raises(ValueError, match="num_samples must be at least 1; got 0"):
        PredictionHistory(0)
    with pytest.raises(ValueError, match="state must have num_samples = 5; got 4"):
        PredictionHistory(5).load_state_dict(PredictionHistory(4).state_dict())


# --- scores -------------------------------------------------------------------------------------


def test_deviation_adds_the_confidence_bound_of_the_population_variance():
    # variances: 1/4 of 2, 1/4 of 4, 0.01 of 5, each with the n - 1 of the bound
    history = history_of([0, 1], [0, 1, 0, 1], [0.5, 0.7, 0.6, 0.6 + 0.1 * 2**0.5], [0.3], [])
    v = history.variance[2].item()
    wanted = [(1 / 4 + 1 / 16) ** 0.5, (1 / 4 + 1 / 48) ** 0.5, (v + v * v / 3) ** 0.5, 0, 0]
    assert prediction_deviation(history).tolist() == pytest.approx(wanted, rel=1e-14)
    many = history_of([0, 1] * 500)
    assert prediction_deviation(many).item() == pytest.approx((1 / 4 + 1 / 16 / 999) ** 0.5)


def test_scores_of_the_mean_worked_out_by_hand():
    history = history_of([0.0, 0.5], [1.0], [])
    assert threshold_closeness(history).tolist() == [0.1875, 0.0, 0.0]
    assert difficulty(history).tolist() == [0.75, 0.0, 0.0]
    assert easiness(history).tolist() == [0.25, 1.0, 0.0]


def test_scores_do_not_wait(looks_on_a_device):
    history = history_of([0.0, 0.5], [])
    with looks_on_a_device as looks:
        for score in SCORES:
            sample_weights(score(history), 0.1)
            sampling_probabilities(score(history), score(history).mean())
    assert looks.waits == 0


# --- probabilities and weights ------------------------------------------------------------------


def test_probabilities_and_weights_match_a_loop():
    scores = torch.rand(50, dtype=torch.float64, generator=generator())
    smoothed = [s + 0.3 for s in scores.tolist()]
    probabilities, weights = sampling_probabilities(scores, 0.3), sample_weights(scores, 0.3)
    assert probabilities.tolist() == pytest.approx([s / sum(smoothed) for s in smoothed], rel=1e-13)
    assert weights.tolist() == pytest.approx([50 * s / sum(smoothed) for s in smoothed], rel=1e-6)
    assert probabilities.sum().item() == pytest.approx(1, rel=1e-14)
    assert weights.double().mean().item() == pytest.approx(1, rel=1e-7)
    assert (probabilities.dtype, weights.dtype) == (torch.float64, torch.float32)


def test_smoothing_is_added_to_every_score():
    scores = torch.tensor([0.0, 1.0, 3.0])
    assert sampling_probabilities(scores, 0).tolist() == [0.0, 0.25, 0.75]
    assert sampling_probabilities(scores, 4).tolist() == [4 / 16, 5 / 16, 7 / 16]
    assert sample_weights(scores, 4).tolist() == [0.75, 0.9375, 1.3125]
    assert sample_weights(scores, torch.tensor(4.0)).tolist() == [0.75, 0.9375, 1.3125]


def test_large_smoothing_and_equal_scores_are_uniform():
    scores = torch.rand(7, generator=generator())
    assert sampling_probabilities(scores, 1e9).tolist() == pytest.approx([1 / 7] * 7, rel=1e-8)
    assert sample_weights(scores, 1e9).tolist() == pytest.approx([1] * 7, rel=1e-7)
    for value, smoothing in ((0.3, 0), (0.0, 0.1), (1e-9, 0)):
        assert sample_weights(torch.full((7,), value), smoothing).tolist() == [1.0] * 7


@pytest.mark.parametrize(
    ("scores", "smoothing", "error", "words"),
    [
        ([0.1, -0.5], 0.1, ValueError, "scores must be finite and >= 0; got -0.5"),
        ([0.1, math.nan], 0.1, ValueError, "scores must be finite and >= 0; got nan"),
        ([0.1, math.inf], 0.1, ValueError, "scores must be finite and >= 0; got inf"),
        ([0.0, 0.0], 0, ValueError, r"sum of scores \+ smoothing must be .* > 0; got 0.0"),
        ([[0.1]], 0.1, ValueError, r"scores must have shape \(N,\); got \(1, 1\)"),
        ([1, 2], 0.1, TypeError, r"scores must be a tensor of float16, .*; got torch\.int64"),
        ([0.1], -0.5, ValueError, "smoothing must be finite and >= 0; got -0.5"),
        ([0.1], "much", TypeError, "smoothing must be a number, .*; got 'much'"),
        ([0.1], torch.tensor(-2.0), ValueError, "smoothing must be finite and >= 0; got -2.0"),
        ([0.1], torch.tensor(math.inf), ValueError, "smoothing must be finite .*; got inf"),
        ([0.1], torch.tensor([0.1]), ValueError, r"smoothing must have shape \(\); got \(1,\)"),
    ],
)
def test_probabilities_and_weights_reject(scores, smoothing, error, words):
    for function in (sampling_probabilities, sample_weights):
        with pytest.raises(error, match=words):
            function(torch.tensor(scores), smoothing)


def test_an_empty_history_needs_smoothing():
    history = PredictionHistory(4)
    for score in SCORES:
        assert score(history).tolist() == [0.0] * 4
        with pytest.raises(ValueError, match="must be finite and > 0; got 0"):
            sampling_probabilities(score(history), 0)
        assert sampling_probabilities(score(history), 0.1).tolist() == [0.25] * 4


def test_importance_weights_make_the_gradient_unbiased():
    gradients = torch.randn(40, 3, dtype=torch.float64, generator=generator(1))
    scores = gradients.norm(dim=1)  # what is drawn often pulls one way
    gradients = gradients + scores[:, None]
    probabilities = sampling_probabilities(scores, 0.05)
    weights = importance_weights(probabilities)
    wanted = gradients.mean(0)
    expected = (probabilities * weights) @ gradients
    assert expected.tolist() == pytest.approx(wanted.tolist(), rel=1e-6)
    assert (probabilities @ weights.double()).item() == pytest.approx(1, rel=1e-6)

    drawn = WeightedBatchSampler(probabilities, 40, generator=generator()).draw(50_000)
    for terms, is_unbiased in ((weights[drawn, None] * gradients[drawn], True),
                               (gradients[drawn], False)):  # fmt: skip
        errors = (terms.mean(0) - wanted).abs() / (terms.std(0) / math.sqrt(len(drawn)))
        assert (errors.max() < 4.5) == is_unbiased
    assert importance_weights(torch.tensor([0.0, 1.0])).tolist() == [0.0, 0.5]


# --- several ranks, and misuse ------------------------------------------------------------------


def test_histories_of_several_ranks_merge_into_that_of_all():
    draws = generator(1)
    whole, ranks = PredictionHistory(12), [PredictionHistory(12) for _ in range(3)]
    for number in range(30):
        indices = torch.randint(9, (8,), generator=draws)  # three are never seen
        probabilities = torch.rand(8, generator=draws, dtype=torch.float64)
        whole.update(indices, probabilities)
        if number % 3 or number < 9:  # one rank stays behind
            ranks[number % 3].update(indices, probabilities)
        else:
            ranks[0].update(indices, probabilities)
    merged = PredictionHistory(12)
    for rank in (ranks[0], ranks[1].state_dict(), copied(ranks[2].state_dict())):
        before = str(rank.state_dict() if isinstance(rank, PredictionHistory) else rank)
        merged.merge(rank)
        assert str(rank.state_dict() if isinstance(rank, PredictionHistory) else rank) == before
    assert torch.equal(merged.count, whole.count)
    for name in ("mean", "variance"):
        ours, theirs = getattr(merged, name), getattr(whole, name)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert merged.mean.isnan().sum() == 3
    merged.update(torch.tensor([11]), torch.tensor([0.25]))  # goes on
    assert merged.mean[11] == 0.25
    with pytest.raises(ValueError, match="state must have num_samples = 12; got 11"):
        merged.merge(PredictionHistory(11))


def test_labels_given_for_indices_are_refused_by_a_history():
    history = PredictionHistory(1000)
    labels = torch.arange(64) % 10
    with pytest.raises(ValueError, match=r"set of 1000, not labels; got 64 values in 0\.\.9"):
        history.update(labels, torch.rand(64))
    assert history.count.sum() == 0
    history.update(torch.arange(64), torch.rand(64))  # the first samples
    history.update(torch.randint(1000, (64,), generator=generator()), torch.rand(64))
    PredictionHistory(100).update(labels, torch.rand(64))  # a batch may well be half the set


# --- sampler ------------------------------------------------------------------------------------


def test_sampler_draws_with_the_stated_frequencies():
    scores = torch.rand(30, dtype=torch.float64, generator=generator(1))
    probabilities = sampling_probabilities(scores, 0.02)
    sampler = WeightedBatchSampler(probabilities, 30, generator=generator(2))
    counts = torch.zeros(30, dtype=torch.int64)
    for _ in range(4000):
        for indices in sampler.tensors():
            counts += indices.bincount(minlength=30)
    wanted = 120_000 * probabilities
    chi_squared = ((counts - wanted) ** 2 / wanted).sum().item()
    # 29 degrees of freedom: mean 29, standard deviation 7.6
    assert 29 - 3 * 7.6 < chi_squared < 29 + 4 * 7.6


def test_sampler_draws_with_replacement():
    probabilities = torch.full((20,), 1 / 20)
    sampler = WeightedBatchSampler(probabilities, 20, generator=generator())
    distinct = [len(set(indices)) for _ in range(400) for indices in sampler]
    # of 20 draws, 20 (1 - 0.95^20) = 12.83 differ on average, with standard deviation 1.4
    assert np.mean(distinct) == pytest.approx(12.83, abs=4 * 1.4 / 20)


def test_sampler_matches_a_loop_over_exact_sums():
    probabilities = sampling_probabilities(torch.rand(200, generator=generator(1)), 0)
    uniform = torch.rand(500, dtype=torch.float64, generator=generator(2)).tolist()
    units = [math.ceil(Fraction(p) * 2**52) for p in probabilities.tolist()]
    wanted = []
    for u in uniform:
        rest, i = Fraction(u) * sum(units), 0
        while rest >= units[i]:
            rest -= units[i]
            i += 1
        wanted.append(i)
    sampler = WeightedBatchSampler(probabilities, 500, generator=generator(2))
    assert sampler.draw(500).tolist() == wanted


def test_sampler_never_draws_what_has_probability_zero():
    probabilities = torch.zeros(1000, dtype=torch.float64)
    probabilities[[1, 500, 501, 998]] = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    sampler = WeightedBatchSampler(probabilities, 1000, generator=generator())
    for _ in range(50):
        assert set(next(iter(sampler))) == {1, 500, 501, 998}
    borders = active_bias._borders(probabilities)
    extremes = torch.tensor([0.0, 2.0**-53, 1 - 2.0**-53], dtype=torch.float64)
    assert active_bias._positions(borders, extremes).tolist() == [1, 1, 998]
    edges = borders.unique()[1:-1] / borders[-1]  # a point on a border belongs behind it
    assert active_bias._positions(borders, edges).tolist() == [500, 501, 998]


def test_sampler_stays_inside_for_any_total():
    below_one = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    for seed in range(300):
        scores = torch.rand(2 + seed % 50, generator=generator(seed)) ** 8
        scores[-1] = 0
        probabilities = sampling_probabilities(scores, 0) * (1 + 1e-6 * (seed % 3 - 1))
        borders = active_bias._borders(probabilities)
        assert active_bias._positions(borders, below_one).item() == len(scores) - 2


def test_sampler_keeps_a_tiny_probability_possible():
    probabilities = torch.tensor([1.0, 1e-30], dtype=torch.float64)
    borders = active_bias._borders(probabilities)
    below_one = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    assert active_bias._positions(borders, below_one).tolist() == [1]


@pytest.mark.parametrize(("num_samples", "batch_size"), [(10, 4), (8, 4), (3, 5), (1, 1)])
def test_sampler_gives_as_many_draws_a_pass_as_samples(num_samples, batch_size):
    probabilities = torch.full((num_samples,), 1 / num_samples)
    sampler = WeightedBatchSampler(probabilities, batch_size, generator=generator())
    batches = list(sampler)
    assert len(batches) == len(sampler) == math.ceil(num_samples / batch_size)
    assert sum(len(indices) for indices in batches) == num_samples
    assert all(len(indices) == batch_size for indices in batches[:-1])
    assert {type(index) for indices in batches for index in indices} == {int}


def test_sampler_goes_on_from_its_generators_state():
    probabilities = sampling_probabilities(torch.rand(50, generator=generator(1)), 0.1)
    own = generator(3)
    sampler = WeightedBatchSampler(probabilities, 8, generator=own)
    list(sampler)
    state = own.get_state()
    wanted = [indices for _ in range(2) for indices in sampler]
    resumed = torch.Generator()
    resumed.set_state(state)
    again = WeightedBatchSampler(probabilities, 8, generator=resumed)
    assert [indices.tolist() for _ in range(2) for indices in again.tensors()] == wanted
    assert wanted[:7] != wanted[7:]


def test_sampler_without_generator_uses_the_global_one():
    sampler = WeightedBatchSampler(torch.full((50,), 0.02), 50)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        first = next(iter(sampler))
        torch.manual_seed(5)
        assert next(iter(sampler)) == first


def test_sampler_with_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    list(WeightedBatchSampler(torch.full((5,), 0.2), 2, generator=generator()))
    assert torch.equal(torch.get_rng_state(), before)


def test_sampler_draws_from_replaced_probabilities():
    given = torch.tensor([1.0, 0.0, 0.0])
    sampler = WeightedBatchSampler(given, 2, generator=generator())
    given[:] = torch.tensor([0.0, 1.0, 0.0])  # a copy was taken
    assert sampler.probabilities.tolist() == [1.0, 0.0, 0.0]
    assert list(sampler) == [[0, 0], [0]]
    sampler.probabilities = torch.tensor([0.0, 0.0, 1.0])
    assert sampler.probabilities.tolist() == [0.0, 0.0, 1.0]
    assert list(sampler) == [[2, 2], [2]]


@pytest.mark.parametrize(
    ("probabilities", "error", "words"),
    [
        ([0.5, 0.6], ValueError, r"sum of probabilities must be 1 \(within 1e-4\); got 1.1"),
        ([0.5, 0.4], ValueError, r"sum of probabilities must be 1 \(within 1e-4\); got 0.9"),
        ([1.5, -0.5], ValueError, r"probabilities must be finite and in \[0, 1\]; got -0.5"),
        ([0.5, math.nan], ValueError, r"probabilities must be finite and in \[0, 1\]; got nan"),
        ([0.5, 0.25, 0.25], ValueError, r"probabilities must have shape \(2,\); got \(3,\)"),
        ([0, 1], TypeError, r"probabilities must be a tensor of .*; got torch\.int64"),
    ],
)
def test_sampler_rejects_and_keeps_its_probabilities(probabilities, error, words):
    sampler = WeightedBatchSampler(torch.tensor([0.0, 1.0]), 2, generator=generator())
    with pytest.raises(error, match=words):
        sampler.probabilities = torch.tensor(probabilities)
    assert sampler.draw(3).tolist() == [1, 1, 1]
    if len(probabilities) == 2:
        with pytest.raises(error, match=words):
            WeightedBatchSampler(torch.tensor(probabilities), 2)
        with pytest.raises(error, match=words):
            importance_weights(torch.tensor(probabilities))


def test_sampler_rejects_other_arguments():
    probabilities = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        WeightedBatchSampler(probabilities, 0)
    with pytest.raises(TypeError, match=r"generator must be a CPU .* or None; got 3"):
        WeightedBatchSampler(probabilities, 1, generator=3)
    with pytest.raises(ValueError, match=r"probabilities must have shape \(N,\), .*; got \(0"):
        WeightedBatchSampler(torch.tensor([]), 1)


def test_sampler_does_not_wait_for_a_device(looks_on_a_device):
    probabilities = sampling_probabilities(torch.rand(50, generator=generator()), 0.1)
    sampler = WeightedBatchSampler(probabilities, 8, generator=generator())
    with looks_on_a_device as looks:
        sampler.probabilities = probabilities
        list(sampler.tensors())
    assert looks.waits == 0


# --- in a loop ----------------------------------------------------------------------------------


def test_training_with_weighted_batches_lowers_the_loss():
    inputs = torch.randn(40, 5, generator=generator())
    targets = (inputs.sum(1) > 0).long()
    indices = torch.arange(40)
    sampler = WeightedBatchSampler(torch.full((40,), 1 / 40), 8, generator=generator(1))
    batches = DataLoader(TensorDataset(inputs, targets, indices), batch_sampler=sampler)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(5, 2)
    optimizer, history = torch.optim.SGD(model.parameters(), lr=0.3), PredictionHistory(40)
    before = cross_entropy(model(inputs), targets).item()
    for _ in range(4):
        for x, y, i in batches:
            losses = cross_entropy(model(x), y, reduction="none")
            loss = (sample_weights(prediction_deviation(history), 0.1)[i] * losses).mean()
            assert loss.dtype == torch.float32
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.update(i, (-losses).exp())
        sampler.probabilities = sampling_probabilities(threshold_closeness(history), 0.1)
    assert cross_entropy(model(inputs), targets).item() < before / 2
    assert history.count.sum().item() == 160
