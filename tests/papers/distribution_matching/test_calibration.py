"""Calibration against plain loops, known answers, sampling theory and autograd."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax

from hardtrain import ParameterError
from hardtrain.papers.distribution_matching.calibration import (
    BOUNDS,
    cross_fitted_temperature_loss,
    expected_calibration_error,
    fit_temperature,
    reliability,
)


def sampled(seed, num_samples, num_classes=10, sharpness=2.0):
    """Logits, and labels drawn from their softmax: perfectly calibrated."""
    generator = np.random.default_rng(seed)
    logits = sharpness * generator.normal(size=(num_samples, num_classes))
    edges = softmax(logits, axis=1).cumsum(axis=1)
    drawn = generator.random((num_samples, 1)) * edges[:, -1:]
    return logits, (drawn > edges).sum(axis=1)


def noisy(seed, num_samples=400, num_classes=5):
    """Logits of a network that is right more often than not, and its labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, num_samples)
    logits = 3 * generator.normal(size=(num_samples, num_classes))
    logits[np.arange(num_samples), labels] += 2
    return logits, labels


def loss_by_loop(logits, labels, temperature=1.0):
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        scaled = [value / temperature for value in row]
        top = max(scaled)
        total += top + math.log(sum(math.exp(s - top) for s in scaled)) - scaled[label]
    return total / len(labels)


def bins_by_loop(probabilities, labels, num_bins):
    """[low, high, confidence, accuracy, count] of each bin."""
    found = []
    for m in range(num_bins):
        low, high = np.linspace(0, 1, num_bins + 1)[m : m + 2]
        inside = [
            (max(row), row.index(max(row)) == label)
            for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True)
            if low < max(row) <= high
        ]
        means = [sum(column) / len(inside) for column in zip(*inside, strict=True)]
        found.append([low, high, *(means or [math.nan] * 2), len(inside)])
    return np.array(found)


# --- reliability and expected_calibration_error ---------------------------------------------------


def test_expected_calibration_error_of_five_samples_by_hand():
    # (0.6, 0.8]: confidences 0.7, 0.8, one right: |1/2 - 0.75| = 0.25
    # (0.8, 1.0]: confidences 0.9, 0.9, 1.0, all right: |1 - 2.8/3| = 0.2/3
    first = np.array([0.7, 0.8, 0.9, 0.1, 1.0])
    labels = np.array([1, 0, 0, 1, 0])
    error = expected_calibration_error(np.stack([first, 1 - first], axis=1), labels, num_bins=5)
    assert error == pytest.approx(0.4 * 0.25 + 0.6 * 0.2 / 3)


@pytest.mark.parametrize("num_bins", [1, 2, 10, 15, 100])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_reliability_and_error_match_a_loop(num_bins, num_classes):
    logits, labels = noisy(0, num_classes=num_classes)
    probabilities = softmax(logits, axis=1)
    loop = bins_by_loop(probabilities, labels, num_bins)
    np.testing.assert_allclose(
        reliability(probabilities, labels, num_bins).to_numpy(), loop, rtol=1e-12
    )
    error = sum(row[4] / 400 * abs(row[2] - row[3]) for row in loop if row[4])
    assert expected_calibration_error(probabilities, labels, num_bins) == pytest.approx(error)


def test_reliability_has_fifteen_bins_unless_told_otherwise():
    logits, labels = noisy(1)
    probabilities = softmax(logits, axis=1)
    assert len(reliability(probabilities, labels)) == 15
    error = expected_calibration_error(probabilities, labels)
    assert error == expected_calibration_error(probabilities, labels, 15)
    assert error != expected_calibration_error(probabilities, labels, 10)


@pytest.mark.parametrize(("confidence", "place"), [(0.5, 1), (0.501, 2), (0.75, 2), (1.0, 3)])
def test_reliability_puts_an_edge_into_the_bin_below(confidence, place):
    bins = reliability([[confidence, 1 - confidence]], [0], num_bins=4)
    assert bins["count"].tolist() == [int(i == place) for i in range(4)]


def test_reliability_keeps_a_confidence_that_rounding_lifts_above_one():
    above = np.nextafter(np.float32(1), np.float32(2))
    bins = reliability([[above, 0.0]], [0], num_bins=3)
    assert bins["count"].tolist() == [0, 0, 1]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_expected_calibration_error_takes_probabilities_of_low_precision(dtype):
    logits, labels = noisy(2, num_classes=100)
    probabilities = softmax(logits, axis=1)
    assert expected_calibration_error(probabilities.astype(dtype), labels) == pytest.approx(
        expected_calibration_error(probabilities, labels), abs=0.01
    )


def test_expected_calibration_error_of_an_overconfident_network_is_the_gap():
    probabilities = np.tile([0.9, 0.06, 0.04], (100, 1))
    labels = np.arange(100) % 2  # right in half of the cases
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.4)


def test_expected_calibration_error_adds_gaps_of_both_signs():
    # one bin 0.2 too confident, one 0.2 too modest: they must not cancel
    probabilities = np.repeat([[0.7, 0.3], [0.8, 0.2]], 10, axis=0)
    labels = np.array([1] * 5 + [0] * 5 + [0] * 10)
    assert expected_calibration_error(probabilities, labels, 4) == pytest.approx(0.2)
    assert expected_calibration_error(probabilities, labels, 1) == pytest.approx(0, abs=1e-12)


def test_expected_calibration_error_of_perfect_calibration_is_the_sampling_bias():
    errors, biases = {}, {}
    for num_samples in (500, 8000):
        found = []
        for seed in range(60):
            logits, labels = sampled(seed, num_samples)
            found.append(expected_calibration_error(softmax(logits, axis=1), labels))
        errors[num_samples] = np.mean(found)
        confidence = softmax(logits, axis=1).max(axis=1)
        bins = np.ceil(15 * confidence)
        variance = [np.sum((c := confidence[bins == b]) * (1 - c)) for b in np.unique(bins)]
        biases[num_samples] = np.sqrt(2 / np.pi * np.array(variance)).sum() / num_samples
    assert errors == pytest.approx(biases, rel=0.07)
    assert errors[8000] < 0.02


# --- fit_temperature ------------------------------------------------------------------------------


def test_fit_temperature_by_hand():
    # p = 3/4 for the first class: 2 / T = log 3
    logits = np.tile([2.0, 0.0], (8, 1))
    assert fit_temperature(logits, np.arange(8) % 4 // 3) == pytest.approx(2 / math.log(3))


@pytest.mark.parametrize("factor", [0.2, 1.0, 2.5, 20.0])
def test_fit_temperature_finds_the_factor_of_calibrated_logits(factor):
    logits, labels = sampled(3, 40_000)
    # standard error of T here: about 0.005
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.02)


@pytest.mark.parametrize("factor", [1e-3, 0.5, 7.0])
def test_fit_temperature_grows_with_the_logits(factor):
    logits, labels = noisy(4)
    temperature = fit_temperature(logits, labels)
    scaled = fit_temperature(factor * logits, labels)
    assert scaled == pytest.approx(max(factor * temperature, BOUNDS[0]), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_fit_temperature_is_where_the_gradient_vanishes(seed):
    logits, labels = noisy(seed)
    temperature = torch.tensor(fit_temperature(logits, labels), dtype=torch.float64)
    temperature.requires_grad_()
    loss = torch.nn.functional.cross_entropy(
        torch.tensor(logits) / temperature, torch.tensor(labels)
    )
    (gradient,) = torch.autograd.grad(loss, temperature)
    assert abs(gradient) < 1e-12
    assert loss.item() == pytest.approx(loss_by_loop(logits, labels, temperature.item()))


@pytest.mark.parametrize("seed", range(3))
def test_fit_temperature_is_the_best_of_a_grid(seed):
    logits, labels = noisy(seed, num_samples=60)
    grid = np.geomspace(0.2, 20, 200)
    losses = [loss_by_loop(logits, labels, temperature) for temperature in grid]
    temperature = fit_temperature(logits, labels)
    best = int(np.argmin(losses))
    assert grid[best - 1] < temperature < grid[best + 1]
    assert loss_by_loop(logits, labels, temperature) <= min(losses)


def test_fit_temperature_ignores_what_softmax_ignores():
    logits, labels = noisy(5)
    shifted = logits + 500 * np.arange(len(labels))[:, None]
    assert fit_temperature(shifted, labels) == pytest.approx(fit_temperature(logits, labels))


def test_fit_temperature_stops_at_its_bounds():
    logits, labels = np.array([[1.0, 0.0], [0.0, 3.0]]), np.array([0, 1])
    assert fit_temperature(logits, labels) == BOUNDS[0]  # all right: the sharper the better
    assert fit_temperature(logits, 1 - labels) == BOUNDS[1]  # all wrong: the flatter the better


def test_fit_temperature_is_one_where_the_loss_has_no_slope():
    assert fit_temperature(np.full((4, 3), 7.0), [0, 1, 2, 0]) == 1
    assert fit_temperature([[5000.0, 0.0]], [0]) == 1  # the loss is 0 already


# --- cross_fitted_temperature_loss ----------------------------------------------------------------


def test_cross_fitted_scores_match_a_loop_over_the_halves():
    logits, labels = noisy(6, num_samples=301)
    order = np.random.default_rng(9).permutation(301)
    first, second = order[:151], order[151:]
    own = fit_temperature(logits[second], labels[second])
    other = fit_temperature(logits[first], labels[first])
    found = cross_fitted_temperature_loss(logits, labels, seed=9)
    assert found.temperatures == (own, other)
    losses = [loss_by_loop(logits[h], labels[h], t) for h, t in ((first, own), (second, other))]
    assert found.loss == pytest.approx((151 * losses[0] + 150 * losses[1]) / 301, rel=1e-12)
    scaled = np.concatenate([logits[first] / own, logits[second] / other])
    in_order = np.concatenate([labels[first], labels[second]])
    assert found.calibration_error == pytest.approx(
        expected_calibration_error(softmax(scaled, axis=1), in_order)
    )


def test_cross_fitting_keeps_a_sample_out_of_its_own_temperature():
    logits, labels = noisy(7)
    first = np.random.default_rng(0).permutation(400)[:200]
    changed = labels.copy()
    changed[first] = (changed[first] + 1) % 5
    before = cross_fitted_temperature_loss(logits, labels, seed=0).temperatures
    after = cross_fitted_temperature_loss(logits, changed, seed=0).temperatures
    assert after[0] == before[0]
    assert after[1] > 2 * before[1]


@pytest.mark.parametrize("seed", range(5))
def test_cross_fitting_is_never_better_than_one_temperature_chosen_on_all(seed):
    logits, labels = noisy(seed, num_samples=50)
    best = loss_by_loop(logits, labels, fit_temperature(logits, labels))
    assert cross_fitted_temperature_loss(logits, labels, seed=seed).loss > best


def test_cross_fitting_undoes_overconfidence_and_leaves_the_accuracy():
    logits, labels = sampled(8, 20_000)
    found = cross_fitted_temperature_loss(4 * logits, labels, seed=0)
    assert found.temperatures == pytest.approx((4, 4), rel=0.03)
    assert found.loss == pytest.approx(loss_by_loop(logits, labels), rel=1e-3)
    assert loss_by_loop(4 * logits, labels) > 1.5 * found.loss
    assert found.calibration_error < 0.02
    assert expected_calibration_error(softmax(4 * logits, axis=1), labels) > 0.1
    assert found.accuracy == (logits.argmax(axis=1) == labels).mean()


def test_cross_fitting_depends_on_its_seed_alone():
    logits, labels = noisy(9)
    np.random.seed(0)  # noqa: NPY002
    found = cross_fitted_temperature_loss(logits, labels, seed=1)
    np.random.seed(1)  # noqa: NPY002
    assert cross_fitted_temperature_loss(logits, labels, seed=1) == found
    assert cross_fitted_temperature_loss(logits, labels, seed=2) != found


def test_cross_fitting_passes_on_the_number_of_bins():
    logits, labels = noisy(10)
    two, many = (cross_fitted_temperature_loss(logits, labels, seed=0, num_bins=n) for n in (2, 50))
    assert two.loss == many.loss
    assert two.calibration_error < many.calibration_error


def test_calibration_leaves_its_input_alone():
    logits, labels = noisy(11)
    copies = logits.copy(), labels.copy()
    cross_fitted_temperature_loss(logits, labels, seed=0)
    reliability(softmax(logits, axis=1), labels)
    assert np.array_equal(logits, copies[0])
    assert np.array_equal(labels, copies[1])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_calibration_takes_labels_of_any_integer_type(dtype):
    logits, labels = noisy(12)
    expected = cross_fitted_temperature_loss(logits, labels, seed=0)
    assert cross_fitted_temperature_loss(logits, labels.astype(dtype), seed=0) == expected


# --- bad input ------------------------------------------------------------------------------------


def cross_fitted(logits, labels):
    return cross_fitted_temperature_loss(logits, labels, seed=0)


GOOD = [[0.25, 0.75], [0.5, 0.5]]


@pytest.mark.parametrize(
    "function", [reliability, expected_calibration_error, fit_temperature, cross_fitted]
)
@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        (GOOD, [0, 2], r"labels must be in \[0, 2\); got 0 to 2"),
        (GOOD, [-1, 0], r"labels must be in \[0, 2\); got -1 to 0"),
        (GOOD, [0.0, 1.0], r"labels must be \(2,\) and int; got \(2,\), float64"),
        (GOOD, [True, False], "got .*bool"),
        (GOOD, [0], r"labels must be \(2,\) and int; got \(1,\)"),
        (GOOD, [[0], [1]], r"labels must be \(2,\) and int; got \(2, 1\)"),
        (np.zeros((0, 2)), np.zeros(0, int), r"must have shape \(N, K\).* got \(0, 2\)"),
        ([0.25, 0.75], [0, 1], r"must have shape \(N, K\).* got \(2,\)"),
        ([[1.0], [1.0]], [0, 0], r"must have shape \(N, K\).* got \(2, 1\)"),
        ([[0.5, math.nan], [0.5, 0.5]], [0, 1], "must be finite; got nan"),
        ([[0.5, math.inf], [0.5, 0.5]], [0, 1], "must be finite; got inf"),
    ],
)
def test_calibration_rejects_bad_scores_and_labels(function, scores, labels, words):
    with pytest.raises(ParameterError, match=words):
        function(scores, labels)


@pytest.mark.parametrize("rows", [[[2.0, -1.0]], [[0.5, 0.4]], [[3.0, 1.0]]])
def test_expected_calibration_error_rejects_logits(rows):
    with pytest.raises(ParameterError, match="probabilities must be >= 0 and sum to 1"):
        expected_calibration_error(rows, [0])


@pytest.mark.parametrize("num_bins", [0, 1.5, True])
def test_reliability_rejects_a_bad_number_of_bins(num_bins):
    with pytest.raises(ParameterError, match="num_bins"):
        reliability(GOOD, [0, 1], num_bins)


def test_cross_fitting_rejects_one_sample_and_a_bad_seed():
    with pytest.raises(ParameterError, match="at least 2 rows"):
        cross_fitted_temperature_loss([[1.0, 0.0]], [0], seed=0)
    for seed in (-1, None, 0.5):
        with pytest.raises(ParameterError, match="seed"):
            cross_fitted_temperature_loss(GOOD, [0, 1], seed=seed)
