"""Scores of logits and features, worked out by hand, by a slow loop or by the modules they use."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from scipy.stats import binomtest

from hardtrain.papers.distribution_matching.calibration import (
    cross_entropy,
    cross_fitted,
    expected_calibration_error,
    reliability,
)
from hardtrain.papers.distribution_matching.figures import (
    CALIBRATION_SCORES,
    calibration_scores,
    confidence_bins,
    draw_calibration,
    draw_pairs,
    embedded_pair,
    feature_scores,
)


@pytest.fixture
def confident():
    """Logits of 400 samples, a quarter of them wrong, all far too sure."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    logits = 8.0 * np.eye(3)[np.where(np.arange(400) % 4 == 0, (labels + 1) % 3, labels)]
    return {"logits": (logits + rng.normal(size=logits.shape)).astype(np.float32), "labels": labels}


def test_calibration_scores_are_those_of_the_calibration_module(confident):
    scores = calibration_scores([None, confident])
    logits, labels = confident["logits"].astype(float), confident["labels"]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = 100 * expected_calibration_error(probabilities, labels)
    assert scores["calibration_error"][1] == pytest.approx(expected)
    scaled, temperatures = cross_fitted(logits, labels, seed=0)
    assert scores["scaled_loss"][1] == pytest.approx(cross_entropy(scaled, labels))
    expected = 100 * expected_calibration_error(softmax(scaled, axis=1), labels)
    assert scores["scaled_calibration_error"][1] == pytest.approx(expected)
    assert scores["temperature"][1] == pytest.approx(np.sqrt(np.prod(temperatures)))
    assert scores["temperature"][1] > 3


def test_calibration_scores_have_the_bins_of_the_unscaled_probabilities(confident):
    scores = calibration_scores([None, confident])
    bins = reliability(softmax(confident["logits"].astype(float), axis=1), confident["labels"])
    for name in ("confidence", "accuracy", "count"):
        assert scores[name].dtype == float
        np.testing.assert_array_equal(scores[name][1], bins[name])


def test_calibration_scores_of_a_diverged_run_are_undefined(confident):
    scores = calibration_scores([None, confident])
    names = (*CALIBRATION_SCORES, "confidence", "accuracy")
    assert all(np.isnan(scores[name][0]).all() for name in names)
    assert (scores["count"][0] == 0).all()


def test_hindsight_loss_is_the_lowest_of_all_temperatures(confident):
    lowest = calibration_scores([confident])["hindsight_loss"][0]
    rows = np.arange(400), confident["labels"]

    def loss(temperature):
        scaled = confident["logits"].astype(float) / temperature
        return (np.log(np.exp(scaled).sum(axis=1)) - scaled[rows]).mean()

    losses = [loss(temperature) for temperature in np.linspace(0.5, 20, 400)]
    assert lowest == pytest.approx(min(losses), abs=1e-4)
    assert lowest <= min(losses)
    assert lowest <= calibration_scores([confident])["scaled_loss"][0]


def test_spread_is_zero_if_the_network_says_the_same_of_all():
    labels = np.array([0, 1, 0, 1])
    same = {"logits": np.tile([1.0, 3.0], (4, 1)), "labels": labels}
    spread = {"logits": np.array([[1.0, 0], [-1, 0], [1, 4], [-1, 4]]), "labels": labels}
    assert calibration_scores([same, spread])["spread"].tolist() == [0, 1.5]


def test_confidence_bins_weigh_runs_by_their_samples():
    found = {
        "count": np.array([[3, 0, 1], [1, 0, 0], [0, 0, 0], [9, 9, 9]]),
        "confidence": np.array([[0.1, np.nan, 0.9], [0.3, np.nan, np.nan], [np.nan] * 3, [0] * 3]),
        "accuracy": np.array([[1.0, np.nan, 0.5], [0.0, np.nan, np.nan], [np.nan] * 3, [0] * 3]),
    }
    bins = confidence_bins(found, [0, 1, 2], fewest=0.5)  # the third diverged
    assert bins["images"].tolist() == [2, 0.5]
    np.testing.assert_allclose(bins["confidence"], [15, 90])
    np.testing.assert_allclose(bins["accuracy"], [75, 50])
    assert confidence_bins(found, [0, 1, 2], fewest=1)["images"].tolist() == [2]
    assert confidence_bins(found, [2]).empty


def test_confidence_bins_have_wilson_bounds_of_one_test_set():
    """Of one run's images, however many runs there are."""
    count, accuracy = np.array([[40, 20]] * 5), np.array([[0.9, 1.0]] * 5)
    bins = confidence_bins({"count": count, "accuracy": accuracy, "confidence": accuracy}, range(5))
    for row, (right, images) in enumerate(((36, 40), (20, 20))):
        wilson = binomtest(right, images).proportion_ci(method="wilson")
        assert bins["low"][row] == pytest.approx(100 * wilson.low, rel=1e-6)
        assert bins["high"][row] == pytest.approx(100 * wilson.high, rel=1e-6)


def test_calibration_is_drawn_with_bars_and_counts():
    table = pd.DataFrame({"images": [50.0, 8], "confidence": [95.0, 60], "accuracy": [100.0, 50],
                          "low": [93.0, 20], "high": [100 - 1e-14, 80]})  # fmt: skip
    losses = {"as it is": pd.DataFrame({0.0: [0.3, 0.4], 0.8: [0.2, 0.3]})}
    fig = draw_calibration({"without": table}, losses, {"without": {}, "as it is": {}})
    gap = fig.axes[0].containers[0]
    assert gap.lines[0].get_ydata().tolist() == [5, -10]
    assert fig.axes[2].lines[0].get_ydata().tolist() == [50, 8]
    assert len(draw_calibration({}, losses, {"as it is": {}}).axes) == 3  # nothing was run


@pytest.fixture
def clusters():
    """Features of 3 tight classes of 20, and of one point."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    names = dict(labels=labels, class_names=np.array(["a", "b", "c"]), losses=np.ones(60))
    tight = 10 * np.eye(3)[labels] + rng.normal(scale=0.1, size=(60, 3))
    return (
        {"features": tight.astype(np.float32)} | names,
        {"features": rng.normal(size=(60, 3)).astype(np.float32)} | names,
        {"features": np.full((60, 3), 0.3, np.float32)} | names,
    )


def test_feature_scores_tell_clusters_from_noise(clusters):
    found = feature_scores([None, *clusters], max_points=100)
    assert found["knn"][1] == 100
    assert found["knn"][2] < 70
    assert found["silhouette"][1] > 0.9 > 0.2 > found["silhouette"][2]
    for scores in found.values():
        assert np.isnan(scores[[0, 3]]).all()  # diverged, and collapsed


def test_feature_scores_take_one_subsample_for_all(clusters):
    tight, noise, _ = clusters
    both = feature_scores([tight, tight, noise], max_points=30)
    assert both["silhouette"][0] == both["silhouette"][1]
    assert both["silhouette"][2] == feature_scores([noise], max_points=30)["silhouette"][0]
    assert both["silhouette"][0] != feature_scores([tight], max_points=60)["silhouette"][0]


def test_embedded_pair_shows_a_collapsed_network_as_one_point(clusters):
    found = embedded_pair([clusters[0], clusters[2]], max_points=40)
    assert found["embedding"].shape == (2, 40, 2)
    assert found["states"].tolist() == ["", "all features equal"]
    assert (found["embedding"][1] == 0).all()
    assert np.isfinite(found["embedding"][0]).all()
    assert np.isfinite(found["scores"][0]).all()
    assert np.isnan(found["scores"][1]).all()
    assert found["labels"].shape == (40,)


def test_embedded_pair_of_what_has_nothing_to_show(clusters):
    found = embedded_pair([None, clusters[0]], max_points=40)
    assert found["states"].tolist() == ["diverged", ""]
    assert np.isnan(found["embedding"][0]).all()
    empty = embedded_pair([None, clusters[2]], max_points=40)
    assert empty["embedding"].shape == (2, 0, 2)
    assert empty["states"].tolist() == ["diverged", "all features equal"]


def test_draw_pairs_says_what_it_shows(clusters):
    pair = embedded_pair([clusters[0], clusters[2]], max_points=40)
    left, right = draw_pairs({"mine": pair}, {"mine": ("without", "ITDM")}).axes
    assert left.get_title() == "mine, without"
    _, knn, _, silhouette = pair["scores"][0]
    shown = f"in the picture: 10-NN {100 * knn:.1f} %, silhouette {silhouette:.2f}"
    assert left.get_xlabel() == shown
    assert right.get_title() == "mine, ITDM all features equal"
    assert right.get_xlabel() == ""
    assert left.get_legend() is None
    assert right.get_legend() is not None
