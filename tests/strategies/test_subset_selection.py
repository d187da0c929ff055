"""Ensemble scores against loops over members, balanced choices by hand, and every error."""

import math
import weakref

import pytest
import torch

from hardtrain import select_subset
from hardtrain.strategies.subset_selection import (
    EnsembleTally,
    error_count,
    mutual_information,
    predictive_entropy,
    variation_ratio,
)

SCORES = (predictive_entropy, mutual_information, variation_ratio)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ensemble(num_members=7, num_samples=11, num_classes=4, seed=0, dtype=torch.float64):
    shape = (num_members, num_samples, num_classes)
    logits = 3 * torch.randn(shape, generator=generator(seed), dtype=torch.float64)
    probabilities = logits.softmax(2)
    probabilities[:, 0] = torch.eye(num_classes)[0]  # certain and of one mind
    return probabilities.to(dtype)


def entropy(row):
    return -math.fsum(p * math.log(p) for p in row if p > 0)


def plain_scores(members, label):
    """Of one sample from a list of its members' rows, by the definitions."""
    num_members, num_classes = len(members), len(members[0])
    mean = [math.fsum(row[k] for row in members) / num_members for k in range(num_classes)]
    votes = [max(range(num_classes), key=lambda k: row[k]) for row in members]
    modal = max(votes.count(k) for k in range(num_classes))
    return {
        predictive_entropy: entropy(mean),
        mutual_information: entropy(mean) - math.fsum(map(entropy, members)) / num_members,
        variation_ratio: 1 - modal / num_members,
        error_count: sum(vote != label for vote in votes),
    }


# --- scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_members", [1, 2, 7, 40])
def test_scores_match_loops_over_members(num_members):
    for num_classes in (2, 4, 30):
        probabilities = ensemble(num_members, 11, num_classes)
        labels = torch.randint(num_classes, (11,), generator=generator(1))
        rows = zip(probabilities.transpose(0, 1).tolist(), labels.tolist(), strict=True)
        wanted = [plain_scores(row, label) for row, label in rows]
        for score in SCORES:
            expected = [w[score] for w in wanted]
            assert score(probabilities).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)
            assert score(probabilities).dtype == torch.float64
        errors = error_count(probabilities, labels)
        assert errors.tolist() == [w[error_count] for w in wanted]
        assert errors.dtype == torch.int64


def test_scores_worked_out_by_hand():
    sure, other, unsure = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]
    # samples: agreed, agreed to be unsure, opposed 2 to 2, opposed 3 to 1
    members = torch.tensor(
        [
            [sure, unsure, sure, sure],
            [sure, unsure, sure, sure],
            [sure, unsure, other, sure],
            [sure, unsure, other, other],
        ]
    )
    quarter = math.log(4) - 0.75 * math.log(3)
    assert predictive_entropy(members).tolist() == pytest.approx(
        [0, math.log(2), math.log(2), quarter]
    )
    assert mutual_information(members).tolist() == pytest.approx([0, 0, math.log(2), quarter])
    assert variation_ratio(members).tolist() == [0, 0, 0.5, 0.25]  # ties vote for class 0
    assert error_count(members, torch.tensor([0, 1, 1, 2])).tolist() == [0, 4, 2, 4]


def test_scores_of_one_member():
    probabilities = ensemble(1)
    assert mutual_information(probabilities).tolist() == [0.0] * 11
    assert variation_ratio(probabilities).tolist() == [0.0] * 11


def test_mutual_information_of_equal_members_is_zero_and_never_negative():
    member = ensemble(1, 1000)[0]
    for num_members in (2, 3, 10):
        information = mutual_information([member] * num_members)
        assert information.min().item() >= 0
        assert information.max().item() < 1e-14


def test_scores_of_extremes():
    uniform = torch.full((5, 1, 8), 1 / 8)
    assert predictive_entropy(uniform).item() == pytest.approx(math.log(8))
    assert mutual_information(uniform).item() == pytest.approx(0, abs=1e-15)
    opposed = torch.eye(8).unsqueeze(1)
    assert predictive_entropy(opposed).item() == pytest.approx(math.log(8))
    assert mutual_information(opposed).item() == pytest.approx(math.log(8))
    assert variation_ratio(opposed).item() == 1 - 1 / 8


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 5e-3), (torch.bfloat16, 5e-2)]
)
def test_scores_take_shorter_floats(dtype, tolerance):
    exact, rounded = ensemble(), ensemble(dtype=dtype)
    for score in (predictive_entropy, mutual_information):
        assert score(rounded).tolist() == pytest.approx(score(exact).tolist(), abs=tolerance)


def test_scores_follow_no_gradient():
    probabilities = ensemble().requires_grad_()
    assert not predictive_entropy(probabilities).requires_grad


# --- streaming ----------------------------------------------------------------------------------


def test_scores_are_the_same_from_a_tensor_a_stream_and_a_tally():
    probabilities, labels = ensemble(), torch.arange(11) % 4
    tally = EnsembleTally()
    for number, member in enumerate(probabilities):
        tally.update(member)
        assert tally.num_members == number + 1
        # a tally can be read in between
        assert torch.equal(variation_ratio(tally), variation_ratio(probabilities[: number + 1]))
    for score in SCORES:
        assert torch.equal(score(iter(probabilities)), score(probabilities))
        assert torch.equal(score(list(probabilities)), score(probabilities))
        assert torch.equal(score(tally), score(probabilities))
    assert torch.equal(error_count(tally, labels), error_count(probabilities, labels))
    assert torch.equal(error_count(iter(probabilities), labels), error_count(probabilities, labels))


def test_tally_has_mean_entropies_and_votes():
    probabilities = ensemble()
    tally = EnsembleTally()
    for member in probabilities:
        tally.update(member)
    assert torch.allclose(tally.mean, probabilities.mean(0), rtol=1e-14)
    entropies = torch.distributions.Categorical(probabilities).entropy().mean(0)
    assert torch.allclose(tally.mean_entropy, entropies, rtol=1e-12, atol=1e-12)
    assert tally.votes.sum(1).tolist() == [7] * 11
    tally.votes.zero_()
    assert tally.votes[0].tolist() == [7, 0, 0, 0]


def test_streams_hold_no_more_than_two_members():
    alive, most = weakref.WeakSet(), 0

    def members():
        nonlocal most
        for seed in range(50):
            member = ensemble(1, seed=seed)[0].clone()
            alive.add(member)
            most = max(most, len(alive))
            yield member
            del member

    predictive_entropy(members())
    assert most <= 2


def test_tally_memory_does_not_grow_with_members():
    tally, sizes = EnsembleTally(), set()
    for member in ensemble(100, 50, 10):
        tally.update(member)
        held = [value for value in vars(tally).values() if isinstance(value, torch.Tensor)]
        assert len(held) == len(vars(tally)) - 1
        sizes.add(sum(tensor.untyped_storage().nbytes() for tensor in held))
    assert sizes == {50 * 10 * (8 + 4) + 50 * (8 + 8)}


@pytest.mark.usefixtures("as_on_a_device")
def test_scores_and_choice_do_not_wait_for_a_device(looks):
    probabilities, labels = ensemble(), torch.arange(11) % 4
    with looks() as during:
        for score in SCORES:
            score(probabilities)
        select_subset(error_count(probabilities, labels), 3, labels=labels, balanced=True)
        select_subset(predictive_entropy(probabilities), 3)
    assert during.waits == 0


@pytest.mark.parametrize(
    ("members", "error", "words"),
    [
        ([[[0.5, 0.6]]], ValueError, "sum of probabilities of member 0 must be 1 .* got 1.1"),
        ([[[0.5, 0.4]]], ValueError, "sum of probabilities of member 0 must be 1 .* got 0.9"),
        ([[[0.5, 0.5]], [[1.5, -0.5]]], ValueError, r"member 1 must be .* \[0, 1\]; got -0.5"),
        ([[[1.0, math.nan]]], ValueError, r"member 0 must be .* \[0, 1\]; got nan"),
        ([[0.5, 0.5]], ValueError, r"probabilities must have shape \(M, N, K\); got \(1, 2\)"),
        ([[[1, 0]]], TypeError, r"probabilities must be a tensor of float16, .*; got torch\.int64"),
        (
            torch.empty(2, 0, 2),
            ValueError,
            r"probabilities must have .*sizes >= 1; got \(2, 0, 2\)",
        ),
    ],
)
def test_scores_reject(members, error, words):
    for score in (*SCORES, error_count):
        labels = [torch.tensor([0])] if score is error_count else []
        with pytest.raises(error, match=words):
            score(torch.as_tensor(members), *labels)


def test_scores_reject_other_arguments():
    first = torch.tensor([[0.5, 0.5]])
    for members, error, words in [
        (0.5, TypeError, "probabilities must be of type Iterable; got float"),
        ([[[0.5, 0.5]]], TypeError, "probabilities of member 0 must be a tensor of .*; got list"),
        (
            [first, torch.ones(1, 3) / 3],
            ValueError,
            r"member 1 must have shape \(1, 2\); got \(1, 3",
        ),
        ([first, torch.empty(1, 2, device="meta")], ValueError, "member 1 must be on cpu, .* meta"),
        (iter([]), ValueError, "number of members in probabilities must be at least 1; got 0"),
        (EnsembleTally(), ValueError, "number of members in probabilities .*; got 0"),
    ]:
        with pytest.raises(error, match=words):
            predictive_entropy(members)


def test_tally_stays_as_it_was_after_a_rejected_member():
    tally = EnsembleTally()
    tally.update(torch.tensor([[0.25, 0.75]]))
    with pytest.raises(ValueError, match="member 1"):
        tally.update(torch.tensor([[0.25, 0.25]]))
    assert tally.num_members == 1
    assert tally.mean.tolist() == [[0.25, 0.75]]


def test_error_count_rejects_labels_that_are_no_classes():
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.3; got 4"):
        error_count(ensemble(), torch.tensor([0, 4] + [0] * 9))


# --- choice -------------------------------------------------------------------------------------


def plain_choice(scores, budget):
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:budget]


def plain_balanced_choice(scores, budget, labels):
    """Round by round, taking the best that is left of each class; the last round by score."""
    left = {k: [] for k in set(labels)}
    for i in plain_choice(scores, len(scores)):
        left[labels[i]].append(i)
    chosen = []
    while len(chosen) < budget:
        best = sorted((queue.pop(0) for queue in left.values() if queue),
                      key=lambda i: (-scores[i], i))  # fmt: skip
        chosen += best[: budget - len(chosen)]
    return sorted(chosen, key=lambda i: (-scores[i], i))


def test_choice_is_highest_first_and_ties_by_index():
    scores = torch.tensor([0.5, 0.9, 0.5, 0.1, 0.9, 0.5])
    assert select_subset(scores, 4).tolist() == [1, 4, 0, 2]
    assert select_subset(scores, 6).tolist() == [1, 4, 0, 2, 5, 3]
    assert select_subset(scores, 1).dtype == torch.int64
    assert select_subset(torch.tensor([3, 1, 3, 2]), 3).tolist() == [0, 2, 3]
    assert select_subset(torch.zeros(100), 5).tolist() == [0, 1, 2, 3, 4]


def test_balanced_choice_worked_out_by_hand():
    #                       0    1    2    3    4    5    6
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    labels = torch.tensor([7, 7, 7, 7, 2, 5, 5])

    def choose(budget):
        return select_subset(scores, budget, labels=labels, balanced=True).tolist()

    assert choose(1) == [0]  # of three firsts, the highest
    assert choose(2) == [0, 4]
    assert choose(3) == [0, 4, 5]  # one of each class
    assert choose(4) == [0, 1, 4, 5]
    assert choose(5) == [0, 1, 4, 5, 6]  # class 2 has no more
    assert choose(6) == [0, 1, 2, 4, 5, 6]
    assert choose(7) == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("num_values", [3, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_choices_match_loops(seed, num_values):
    drawn = generator(seed)
    scores = torch.randint(num_values, (60,), generator=drawn) / num_values
    labels = (torch.rand(60, generator=drawn) ** 2 * 6).long()
    for budget in (1, 2, 5, 6, 17, 59, 60):
        plain = select_subset(scores, budget)
        assert plain.tolist() == plain_choice(scores.tolist(), budget)
        assert torch.equal(select_subset(scores, budget, labels=labels), plain)
        balanced = select_subset(scores, budget, labels=labels, balanced=True)
        wanted = plain_balanced_choice(scores.tolist(), budget, labels.tolist())
        assert balanced.tolist() == wanted


def test_balanced_choice_has_equal_numbers_but_for_small_classes():
    labels = torch.cat([torch.zeros(50), torch.ones(3), torch.full((40,), 2.0)]).long()
    scores = torch.rand(93, generator=generator())
    chosen = select_subset(scores, 43, labels=labels, balanced=True)
    assert labels[chosen].bincount().tolist() == [20, 3, 20]
    assert len(chosen.unique()) == 43
    assert (scores[chosen].diff() <= 0).all()


@pytest.mark.parametrize(
    ("scores", "budget", "options", "error", "words"),
    [
        ([0.1, 0.2], 3, {}, ValueError, r"budget must be in 1\.\.2; got 3"),
        ([0.1, 0.2], 0, {}, ValueError, r"budget must be in 1\.\.2; got 0"),
        ([0.1, math.nan], 1, {}, ValueError, "scores must be free of NaN; got nan"),
        ([[0.1]], 1, {}, ValueError, r"scores must have shape \(N,\); got \(1, 1\)"),
        ([True], 1, {}, TypeError, r"scores must be a tensor of .*int64; got torch\.bool"),
        ([0.1], 1, {"balanced": True}, ValueError, "labels must be given if balanced; got None"),
        (
            [0.1],
            1,
            {"balanced": True, "labels": torch.tensor([0, 1])},
            ValueError,
            r"labels must have shape \(1,\)",
        ),
    ],
)
def test_choice_rejects(scores, budget, options, error, words):
    with pytest.raises(error, match=words):
        select_subset(torch.tensor(scores), budget, **options)


def test_choice_takes_infinite_scores():
    assert select_subset(torch.tensor([0.0, math.inf, -math.inf]), 2).tolist() == [1, 0]
