"""Active Bias: shares and ranks of artefacts against numbers worked out by hand."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from hardtrain import PredictionHistory
from hardtrain.papers.active_bias import emphasis
from hardtrain.runs.run_data import load_data, training_set
from hardtrain.strategies.active_bias import prediction_deviation


@pytest.mark.parametrize("train_size", [0, 30])
def test_wrong_labels_are_those_that_a_run_trains_on(tiny_run, train_size):
    run = tiny_run(label_noise=0.3, seed=2, train_size=train_size)
    clean = load_data(run)[0]
    given, wrong = emphasis._labels(run)
    np.testing.assert_array_equal(given, training_set(run, clean).labels.numpy())
    np.testing.assert_array_equal(wrong, given != clean.labels.numpy())
    assert wrong.sum() == round(0.3 * (train_size or 60))
    assert (
        emphasis._labels(tiny_run(label_noise=0.3, seed=3, train_size=train_size))[1] != wrong
    ).any()
    assert not emphasis._labels(tiny_run(seed=2))[1].any()


def test_emphasis_shares_are_those_of_each_runs_wrong_labels(tiny_run):
    alike = np.ones((4, 60))
    runs, artefacts, wanted = [], [], []
    for fraction, weight, seed in product((0.1, 0.5), (1.0, 3.0), (4, 5)):
        run = tiny_run(label_noise=fraction, seed=seed, epochs=8)
        wrong = emphasis._labels(run)[1]
        runs.append(run)
        artefacts.append({"emphasis": np.where(wrong, weight * alike, alike)})
        wanted.append(weight * fraction / (weight * fraction + 1 - fraction))
    artefacts[3], wanted[3] = None, np.nan
    found = emphasis.emphasis_shares(artefacts, runs=runs)["shares"]
    np.testing.assert_allclose(found, np.reshape(wanted, (8, 1)).repeat(4, axis=1))


def test_emphasis_shares_of_quarters_without_an_epoch_are_nan(tiny_run):
    # 2 epochs fall into the first and the third quarter; in the third, only sample 0 counts
    run = tiny_run(label_noise=0.2, train_size=30, epochs=2)
    values = np.zeros((4, 30))
    values[0] = 1
    values[2, np.flatnonzero(emphasis._labels(run)[1])[0]] = 30
    (found,) = emphasis.emphasis_shares([{"emphasis": values}], runs=[run])["shares"]
    np.testing.assert_allclose(found, [0.2, np.nan, 1.0, np.nan])


@pytest.fixture
def noisy_run(tiny_run):
    def make(**changes):
        options = {"variant": "WD", "burn_in": 0.5}
        fields = dict(method="active_bias", options=options, label_noise=0.3, seed=1, epochs=8)
        return tiny_run(**(fields | changes))

    return make


def test_emphasised_samples_are_the_highest_of_their_quarters(noisy_run):
    values = np.zeros((4, 60))
    values[1, 50] = 99  # before the burn-in ends
    values[2, [7, 3, 9]] = [4, 6, 4]  # its quarter
    values[3, [11, 12, 5]] = [1, 2, 3]
    run = noisy_run()
    artefacts = [{"emphasis": np.zeros((4, 60))}, {"emphasis": values}]
    found = emphasis.emphasised_samples(artefacts, runs=[run, run])
    first = [0, 1, 2, 3, 4, 5]
    highest = [[3, 7, 9, 0, 1, 2], [5, 12, 11, 0, 1, 2]]  # ties by index
    assert found["indices"].tolist() == [[first, first], highest]
    assert found["emphasis"][1].tolist() == [
        [3, 2, 2, 0, 0, 0],
        [1.5, 1, 0.5, 0, 0, 0],
    ]  # per epoch
    data, (given, wrong) = load_data(run)[0], emphasis._labels(run)
    np.testing.assert_array_equal(found["wrong"], wrong[found["indices"]])
    named = found["indices"].ravel()
    np.testing.assert_array_equal(found["images"], data.images[named].numpy())
    for title, index in zip(found["titles"], named, strict=True):
        lines = title.split("\n")
        assert lines[1] == data.class_names[given[index]]
        assert lines[2:] == ([f"is {data.class_names[data.labels[index]]}"] * int(wrong[index]))
    assert [title.split("\n")[0] for title in found["titles"][12:15]] == ["3.0 ×", "2.0 ×", "2.0 ×"]


def test_emphasised_samples_mark_wrong_labels(noisy_run):
    run = noisy_run()
    data, (_, wrong) = load_data(run)[0], emphasis._labels(run)
    one = int(np.flatnonzero(wrong)[4])
    values = np.zeros((4, 60))
    values[3, one] = 1
    found = emphasis.emphasised_samples([{"emphasis": values}], runs=[run])
    assert found["indices"][0, 1, 0] == one
    assert found["wrong"][0, 1, 0]
    assert found["titles"][6].endswith(f"is {data.class_names[data.labels[one]]}")


def test_emphasised_samples_of_a_diverged_or_short_training(noisy_run):
    seeds = (seed for seed in range(99) if emphasis._labels(noisy_run(seed=seed))[1][0])
    run = noisy_run(seed=next(seeds), epochs=2, train_size=0)
    values = np.zeros((4, 60))
    values[2, 8] = 1
    found = emphasis.emphasised_samples([{"emphasis": values}, None], runs=[run, run])
    assert found["wrong"][0].any()
    assert found["indices"][0, :, 0].tolist() == [8, 8]  # no early quarter, so twice the last
    assert np.isnan(found["emphasis"][1]).all()
    assert not found["wrong"][1].any()
    few = noisy_run(train_size=3)
    found = emphasis.emphasised_samples([{"emphasis": np.ones((4, 3))}], runs=[few])
    assert found["indices"].shape == (1, 2, 3)


@pytest.fixture
def histories():
    """A history of 60 samples with 2 to 6 probabilities, some never seen, and its lists."""
    rng = np.random.default_rng(0)
    lists = [rng.random(rng.integers(2, 7)).tolist() if i % 7 else [] for i in range(60)]
    history = PredictionHistory(60)
    for i, values in enumerate(lists):
        for value in values:
            history.update(torch.tensor([i]), torch.tensor([value], dtype=torch.float64))
    arrays = {k: getattr(history, k).numpy() for k in ("count", "mean", "variance")}
    return history, arrays, lists


def test_restored_history_gives_the_same_scores(histories):
    history, arrays, _ = histories
    again = emphasis.restored_history(arrays)
    for score in emphasis.SCORES.values():
        torch.testing.assert_close(score(again), score(history))
    torch.testing.assert_close(again.variance, history.variance, equal_nan=True)
    again.update(torch.tensor([1]), torch.tensor([0.5]))  # it goes on, too
    assert again.count[1] == len(histories[2][1]) + 1


def rank_correlation(first, second):
    """Pearson's of the ranks, ties at their mean."""
    ranks = [
        [sum(b < a for b in values) + (sum(b == a for b in values) - 1) / 2 for a in values]
        for values in (first, second)
    ]
    return np.corrcoef(*ranks)[0, 1]


def test_score_correlations_match_ranks_in_a_loop(histories, tiny_run):
    _, arrays, lists = histories
    runs = [tiny_run(label_noise=noise, seed=seed) for noise in (0.0, 0.4) for seed in (1, 2)]
    artefacts = [arrays, arrays, None, arrays]
    found = emphasis.score_correlations(artefacts, runs=runs)["correlations"]
    assert found.shape == (4, 5, 4)
    seen = [values for values in lists if values]
    means = [math.fsum(values) / len(values) for values in seen]
    variances = [
        sum((x - mean) ** 2 for x in values) / len(values)
        for values, mean in zip(seen, means, strict=True)
    ]
    columns = [
        [1 - mean for mean in means],
        means,
        [mean * (1 - mean) for mean in means],
        [math.sqrt(v + v * v / (len(x) - 1)) for v, x in zip(variances, seen, strict=True)],
    ]
    flags = emphasis._labels(runs[3])[1]
    flags = [float(flag) for flag, values in zip(flags, lists, strict=True) if values]
    wanted = [[rank_correlation(a, b) for b in columns] for a in [*columns, flags]]
    np.testing.assert_allclose(found[3], wanted, atol=1e-12)
    np.testing.assert_allclose(found[0, :4], wanted[:4], atol=1e-12)
    assert found[0, 0, 1] == pytest.approx(-1)
    assert np.isnan(found[:2, 4]).all()  # no label is wrong
    assert np.isnan(found[2]).all()  # diverged


@pytest.fixture
def smoothed_run(tiny_run):
    def make(relative=True, **changes):
        options = {"variant": "WPV", "smoothing": 0.5, "relative": relative}
        return tiny_run(**({"method": "active_bias", "options": options} | changes))

    return make


@pytest.mark.parametrize("relative", [True, False])
def test_reading_effects_match_plain_weights(histories, smoothed_run, relative):
    _, arrays, _ = histories
    runs = [smoothed_run(relative, batch_size=60)] * 2
    found = emphasis.reading_effects([arrays, None], runs=runs, num_batches=5)
    weights = []
    for shift in (0, 1):
        scores = [
            math.sqrt(v * n / (n - shift) + (v * n / (n - shift)) ** 2 / (n - 1)) if n else 0.0
            for v, n in zip(arrays["variance"], arrays["count"], strict=True)
        ]
        mean = sum(scores) / 60
        epsilon = 0.5 * mean if relative else 0.5
        weights.append([(s + epsilon) / (mean + epsilon) for s in scores])
    largest = max(abs(b - a) / a for a, b in zip(*weights, strict=True))
    np.testing.assert_allclose(found["variance"], [largest, np.nan], rtol=1e-5)
    np.testing.assert_allclose(found["scope"], [0, np.nan], atol=1e-7)  # the batch is the set
    assert largest > 0.002


def test_reading_effects_scope_is_the_spread_of_means(histories, smoothed_run):
    _, arrays, _ = histories
    run = smoothed_run(batch_size=10)
    (scope,) = emphasis.reading_effects([arrays], runs=[run], num_batches=4000)["scope"]
    scores = prediction_deviation(emphasis.restored_history(arrays)).numpy()
    weights = (scores + 0.5 * scores.mean()) / (1.5 * scores.mean())
    # of a mean of 10 out of 60 without replacement; a standard deviation is good to 1/sqrt(2n)
    exact = weights.std(ddof=1) * math.sqrt((1 - 10 / 60) / 10)
    assert scope == pytest.approx(exact, rel=5 / math.sqrt(2 * 4000))
    draws = np.random.default_rng(0)
    a, b = (draws.choice(weights, 10, replace=False).mean() for _ in range(2))
    (scope,) = emphasis.reading_effects([arrays], runs=[run], num_batches=2)["scope"]
    assert scope == pytest.approx(abs(a - b) / math.sqrt(2), rel=1e-3)


def test_reading_effects_take_the_unbiased_variance_by_n_minus_1(histories, smoothed_run):
    """Worked out from the lists of probabilities themselves."""
    _, arrays, lists = histories
    weights = []
    for ddof in (0, 1):
        variances = [np.var(values, ddof=ddof) if values else 0.0 for values in lists]
        scores = np.array([
            math.sqrt(v + v * v / (len(values) - 1)) if values else 0.0
            for v, values in zip(variances, lists, strict=True)
        ])  # fmt: skip
        weights.append((scores + 0.5) / (scores + 0.5).mean())
    (found,) = emphasis.reading_effects([arrays], runs=[smoothed_run(relative=False)])["variance"]
    assert found == pytest.approx(np.max(np.abs(weights[1] / weights[0] - 1)), rel=1e-5)


def test_reading_effects_without_scores_are_nan(histories, smoothed_run):
    _, arrays, _ = histories
    flat = arrays | {"variance": 0 * arrays["variance"]}
    found = emphasis.reading_effects([flat], runs=[smoothed_run()])
    assert np.isnan([*found["variance"], *found["scope"]]).all()
