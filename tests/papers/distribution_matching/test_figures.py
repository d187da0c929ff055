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
    draw_curves,
    draw_pairs,
    draw_weights,
    embedded_pair,
    feature_scores,
)
from hardtrain.papers.distribution_matching.plan import Cell, trainings


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


def points_of(ax, marker):
    """Of each line with this marker the points, by x without the shifts that tell bars apart."""
    lines = [line.get_xydata() for line in ax.lines if line.get_marker() == marker]
    return [[(round(x, 1), y) for x, y in points.tolist()] for points in lines]


def texts_of(ax):
    return [text.get_text() for text in ax.texts]


def test_calibration_leaves_means_out_where_networks_collapsed():
    losses = {0.0: [0.39, 0.41], 0.8: [0.24, 0.26], 1.0: [0.25, 2.3]}
    losses = pd.DataFrame(losses, index=[4, 7])
    style = {"marker": "o", "color": "red"}
    fig = draw_calibration({}, {"as it is": losses}, {"as it is": style}, {1.0: [7]})
    ax = fig.axes[1]
    means, left = points_of(ax, "o")
    np.testing.assert_allclose(means, [(0.0, 0.4), (0.8, 0.25)])
    assert left == [(1.0, 0.25)]
    assert texts_of(ax) == ["1 of 2\ncollapsed"]
    assert ax.get_ylim()[1] < 2  # the collapsed one does not squeeze the others


def sweep_results(arms):
    """Networks of which, at the largest λ, the last seed collapsed."""
    rows = []
    for weight, arm in arms.items():
        for run in arm:
            gone = weight == max(arms) and run.seed == arm[-1].seed
            row = {"key": run.key, "seed": run.seed, "status": "finished"}
            row["per_class_error"] = "[0.0, 1.0]" if gone else "[0.1, 0.2]"
            numbers = (10, 2.3, 2.3) if gone else (80 + run.seed, 0.5, 0.1)
            names = ("last_accuracy", "last_test_loss", "last_train_loss")
            row |= dict(zip(names, numbers, strict=True)) | {f"{name}_sd": 0.01 for name in names}
            rows.append(row)
    return pd.DataFrame(rows)


def test_weights_say_where_networks_collapsed_and_scale_to_the_others():
    cell = Cell("small", "digits", "cnn_small")
    arms = {w: trainings(cell, [0, 1, 2], {"weight": w}) for w in (0.0, 0.5, 1.0)}
    fig = draw_weights(sweep_results(arms), {cell: arms})
    accuracy, loss = fig.axes
    means, first, dots = points_of(accuracy, "o")
    assert means == [(0.0, 81), (0.5, 81)]
    assert first == [(0.0, 80), (0.5, 80)]
    assert dots == [(1.0, 80), (1.0, 81)]
    assert texts_of(accuracy) == texts_of(loss) == ["1 of 3\ncollapsed"]
    assert accuracy.get_ylim()[0] > 50
    assert loss.get_ylim()[1] < 2
    bars = loss.containers
    places = [bar.lines[0].get_xdata()[0] for bar in bars]
    assert len(set(places)) == len(bars) == 4  # no bar covers another


def test_curves_show_differences_seed_by_seed_on_the_scale_of_the_end():
    cell = Cell("initial", "digits", "cnn2")
    arms = {"without": trainings(cell, [0, 1], {"weight": 0.0}, epochs=4)}
    arms["with"] = trainings(cell, [1, 2], {"weight": 1.0}, epochs=4)
    rows = [
        {"key": run.key, "epoch": epoch, "test_loss": loss + run.seed, "train_loss": loss}
        for name, arm in arms.items()
        for run in arm
        for epoch, loss in enumerate((2.0 + 5 * (name == "with"), 2.0, 2.0, 1.9), 1)
    ]
    history = pd.DataFrame(rows)
    late = (history["key"] == arms["with"][0].key) & (history["epoch"] > 1)
    history.loc[late, "test_loss"] -= 0.01
    fig = draw_curves(history, {cell: arms}, {"without": {}, "with": {"marker": "^"}})
    (line,) = [line for line in fig.axes[2].lines if line.get_label() == "with"]
    np.testing.assert_allclose(line.get_ydata(), [5, -0.01, -0.01, -0.01])  # seed 1 alone
    low, high = fig.axes[2].get_ylim()
    assert -0.02 < low < -0.01
    assert 0 < high < 0.01


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
    knn, _, silhouette, _ = pair["scores"][0]  # of the features, not of the picture
    shown = f"10-NN {100 * knn:.1f} %, silhouette {silhouette:.2f}"
    assert left.get_xlabel() == f"of the features (40 images):\n{shown}"
    assert right.get_title() == "mine, ITDM all features equal"
    assert right.get_xlabel() == ""
    assert left.get_legend() is None
    assert right.get_legend() is not None
