"""Calibration against plain loops, known answers, sampling theory and autograd."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax

from hardtrain.papers.distribution_matching.calibration import (
    BOUNDS,
    cross_entropy,
    cross_fitted,
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
    """[confidence, accuracy, count] of each bin."""
    found = []
    for m in range(num_bins):
        low, high = np.linspace(0, 1, num_bins + 1)[m : m + 2]
        inside = [
            (max(row), row.index(max(row)) == label)
            for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True)
            if low < max(row) <= high
        ]
        means = [sum(column) / len(inside) for column in zip(*inside, strict=True)]
        found.append([*(means or [math.nan] * 2), len(inside)])
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
    error = sum(row[2] / 400 * abs(row[0] - row[1]) for row in loop if row[2])
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
    bins = reliability(np.array([[confidence, 1 - confidence]]), np.array([0]), num_bins=4)
    assert bins["count"].tolist() == [int(i == place) for i in range(4)]


def test_reliability_keeps_a_confidence_that_rounding_lifts_above_one():
    above = np.nextafter(np.float32(1), np.float32(2))
    bins = reliability(np.array([[above, 0.0]]), np.array([0]), num_bins=3)
    assert bins["count"].tolist() == [0, 0, 1]


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
    assert fit_temperature(np.full((4, 3), 7.0), np.array([0, 1, 2, 0])) == 1
    assert fit_temperature(np.array([[5000.0, 0.0]]), np.array([0])) == 1  # the loss is 0 already


# --- cross_entropy and cross_fitted ---------------------------------------------------------------


def test_cross_entropy_matches_a_loop():
    logits, labels = noisy(13)
    assert cross_entropy(logits, labels) == pytest.approx(loss_by_loop(logits, labels), rel=1e-12)


def test_cross_fitting_divides_each_half_by_the_temperature_of_the_other():
    logits, labels = noisy(6, num_samples=301)
    order = np.random.default_rng(9).permutation(301)
    first, second = order[:151], order[151:]
    own = fit_temperature(logits[second], labels[second])
    other = fit_temperature(logits[first], labels[first])
    scaled, temperatures = cross_fitted(logits, labels, seed=9)
    assert temperatures == (own, other)
    assert (scaled[first] == logits[first] / own).all()
    assert (scaled[second] == logits[second] / other).all()


def test_cross_fitting_keeps_a_sample_out_of_its_own_temperature():
    logits, labels = noisy(7)
    first = np.random.default_rng(0).permutation(400)[:200]
    changed = labels.copy()
    changed[first] = (changed[first] + 1) % 5
    _, before = cross_fitted(logits, labels, seed=0)
    _, after = cross_fitted(logits, changed, seed=0)
    assert after[0] == before[0]
    assert after[1] > 2 * before[1]


@pytest.mark.parametrize("seed", range(3))
def test_cross_fitting_is_never_better_than_one_temperature_chosen_on_all(seed):
    logits, labels = noisy(seed, num_samples=50)
    best = loss_by_loop(logits, labels, fit_temperature(logits, labels))
    assert cross_entropy(cross_fitted(logits, labels, seed=seed)[0], labels) > best


def test_cross_fitting_undoes_overconfidence():
    logits, labels = sampled(8, 20_000)
    scaled, temperatures = cross_fitted(4 * logits, labels, seed=0)
    assert temperatures == pytest.approx((4, 4), rel=0.03)
    assert cross_entropy(scaled, labels) == pytest.approx(cross_entropy(logits, labels), rel=1e-3)
    assert cross_entropy(4 * logits, labels) > 1.5 * cross_entropy(scaled, labels)
    assert expected_calibration_error(softmax(scaled, axis=1), labels) < 0.02
    assert expected_calibration_error(softmax(4 * logits, axis=1), labels) > 0.1


def test_cross_fitting_depends_on_its_seed_alone():
    logits, labels = noisy(9)
    np.random.seed(0)  # noqa: NPY002
    _, temperatures = cross_fitted(logits, labels, seed=1)
    np.random.seed(1)  # noqa: NPY002
    assert cross_fitted(logits, labels, seed=1)[1] == temperatures
    assert cross_fitted(logits, labels, seed=2)[1] != temperatures


def test_calibration_leaves_its_input_alone():
    logits, labels = noisy(11)
    copies = logits.copy(), labels.copy()
    cross_fitted(logits, labels, seed=0)
    reliability(softmax(logits, axis=1), labels)
    assert np.array_equal(logits, copies[0])
    assert np.array_equal(labels, copies[1])
