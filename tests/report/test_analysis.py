"""Kept shares worked out by hand; embeddings of several runs on the same subsample."""

import numpy as np
import pytest

from hardtrain import DataError, load_dataset
from hardtrain.papers.hard_mini_batches.choices import batch_choices, network_sizes
from hardtrain.papers.mini_batch_trimming import kept_samples
from hardtrain.report.embedding import SCORES, embedded_features
from hardtrain.report.notebook import sample_images


@pytest.fixture
def kept_shares(tiny_set):
    return lambda artefacts, **kw: kept_samples.kept_shares(artefacts, dataset=tiny_set, **kw)


def test_kept_shares_divide_by_the_epochs_of_each_quarter(kept_shares):
    # 6 epochs: quarters hold epochs 0, 1 | 2 | 3, 4 | 5
    counts = np.array([[2, 2, 2], [1, 1, 0], [2, 1, 0], [1, 0, 0]])
    found = kept_shares([{"counts": counts}], epochs=6, num_shown=1)
    assert found["quantiles"].shape == (4, 101)
    np.testing.assert_allclose(found["quantiles"][:, [0, 50, 100]],
                               [[1, 1, 1], [0, 1, 1], [0, 0.5, 1], [0, 0, 1]])  # fmt: skip
    assert (found["most"].tolist(), found["most_share"].tolist()) == ([0], [1.0])


def test_kept_shares_sort_within_runs_and_name_by_the_mean_of_runs(kept_shares):
    # 4 epochs, one a quarter; in each run another sample counts in the last one
    early = np.ones((3, 3))
    first = {"counts": np.vstack([early, [1, 0, 0]])}
    second = {"counts": np.vstack([early, [1, 1, 0]])}
    found = kept_shares([first, second], epochs=4, num_shown=3)
    np.testing.assert_allclose(found["quantiles"][3, [0, 50, 100]], [0, 0.5, 1])
    assert found["most"].tolist() == [0, 1, 2]
    assert found["least"].tolist() == [2, 1, 0]
    np.testing.assert_allclose(found["most_share"], [1, 0.5, 0])
    np.testing.assert_allclose(found["least_share"], [0, 0.5, 1])


def test_kept_shares_of_opposite_runs_are_not_flattened(kept_shares):
    first = {"counts": np.vstack([np.ones((3, 2)), [1, 0]])}
    second = {"counts": np.vstack([np.ones((3, 2)), [0, 1]])}
    found = kept_shares([first, second], epochs=4, num_shown=1)
    # sorted in each run: half the samples always count, half never, though the mean share is 0.5
    np.testing.assert_allclose(found["quantiles"][3, [0, 100]], [0, 1])
    np.testing.assert_allclose(found["most_share"], [0.5])


def test_kept_shares_of_a_short_training_leave_quarters_empty(kept_shares):
    # 2 epochs fall into the first and the third quarter
    counts = np.array([[1, 1], [0, 0], [0, 1], [0, 0]])
    found = kept_shares([{"counts": counts}], epochs=2, num_shown=1)
    assert np.isnan(found["quantiles"][[1, 3]]).all()
    np.testing.assert_allclose(found["quantiles"][[0, 2]][:, [0, 100]], [[1, 1], [0, 1]])
    assert found["most"].tolist() == [1]
    assert found["least_share"].tolist() == [0]


def test_kept_shares_show_the_images_they_name(kept_shares, tiny_set):
    data = load_dataset(tiny_set, "train").subset(20)
    counts = np.ones((4, 20))
    counts[3, 5:] = 0
    counts[3, 7] = 3
    found = kept_shares([{"counts": counts}], epochs=16, num_shown=2, train_size=20)
    named = [*found["most"], *found["least"]]
    assert named[0] == 7
    np.testing.assert_array_equal(found["images"], data.images[named].numpy())
    kinds = [data.class_names[data.labels[i]] for i in named]
    assert [title.split("\n")[0] for title in found["titles"]] == kinds
    assert [title.split("\n")[1] for title in found["titles"]] == ["75 %", "25 %", "0 %", "0 %"]


def test_sample_images_are_the_first_of_each_class(tiny_set):
    shown = sample_images(datasets=[tiny_set, "digits"], train_size=30, test_size=0)
    used = load_dataset(tiny_set, "train").subset(30)
    first = [used.labels.tolist().index(k) for k in range(3)]
    np.testing.assert_array_equal(shown["images"], used.images[first].numpy())
    assert shown["titles"].tolist() == ["0", "1", "2"]
    assert shown["described"].tolist() == [
        "tiny train: 60 images 1x8x8, 3 classes; used: 30",
        "tiny test: 20 images 1x8x8, 3 classes; used: 20",
        "digits train: 1438 images 1x8x8, 10 classes; used: 30",
        "digits test: 359 images 1x8x8, 10 classes; used: 359",
    ]


@pytest.fixture(scope="module")
def features_of_runs():
    """60 samples of three classes; the second run's features tell them apart, the first's not."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    noise = rng.normal(size=(2, 60, 5))
    return [
        {
            "features": noise[run] + 20 * run * np.eye(5)[labels],
            "labels": labels,
            "losses": 100 * run + np.arange(60.0),
            "class_names": np.array(["a", "b", "c"]),
        }
        for run in range(2)
    ]


def test_embedded_features_take_the_same_samples_of_all_runs(features_of_runs):
    found = embedded_features(features_of_runs, seed=1, max_points=30)
    assert found["embedding"].shape == (2, 30, 2)
    assert found["losses"].shape == (2, 30)
    indices = found["losses"][0].astype(int)  # a loss says which sample it belongs to
    np.testing.assert_array_equal(found["losses"][1], 100 + indices)
    np.testing.assert_array_equal(found["labels"], indices % 3)
    assert found["class_names"].tolist() == ["a", "b", "c"]
    assert len(set(indices)) == 30
    other = embedded_features(features_of_runs[:1], seed=2, max_points=30)
    assert set(other["losses"][0]) != set(found["losses"][0])


def test_embedded_features_score_separated_classes_higher(features_of_runs):
    found = embedded_features(features_of_runs)
    assert found["scores"].shape == (2, len(SCORES))
    assert np.isfinite(found["scores"]).all()
    mixed, apart = (dict(zip(SCORES, scores, strict=True)) for scores in found["scores"])
    assert apart["knn_features"] == apart["knn_embedding"] == 1
    assert mixed["knn_features"] < 0.7
    assert apart["silhouette_features"] > 0.8 > 0.2 > mixed["silhouette_features"]
    # points lie where their class lies, so labels were not shuffled against the picture
    centres = [found["embedding"][1][found["labels"] == k].mean(axis=0) for k in range(3)]
    distances = np.linalg.norm(found["embedding"][1][:, None] - np.stack(centres), axis=2)
    np.testing.assert_array_equal(distances.argmin(axis=1), found["labels"])


def test_batch_choices_count_by_epoch_and_rank_stored_against_present_losses():
    log = {
        "ids": np.array([0, 1, 2, 2, 2, 0]),
        "stored": np.array([[1.0, 2.0, 3.0]]),
        "recomputed": np.array([[1.0, 5.0, 9.0]]),
    }
    other = log | {"ids": log["ids"][::-1], "recomputed": np.array([[9.0, 5.0, 1.0]])}
    found = batch_choices([log, other, other, log], deltas=[0.5, 0.2], epochs=2)
    assert found["ids"].tolist() == [[0, 1, 2, 2, 2, 0], [0, 2, 2, 2, 1, 0]]
    assert found["counts"].tolist() == [[[1, 1, 1], [1, 0, 2]], [[1, 0, 2], [1, 1, 1]]]
    assert found["correlations"].shape == (2, 2, 1)
    np.testing.assert_allclose(found["correlations"][..., 0], [[1, -1], [-1, 1]])


def test_network_sizes_are_in_the_order_of_the_names():
    found = network_sizes(networks=["cnn_small", "cnn5"], image_size=32)
    assert found["parameters"].tolist() == [36_490, 1_575_690]
    assert found["flops"][0] < found["flops"][1]


def test_batch_choices_keep_their_place_when_runs_diverged():
    log = {
        "ids": np.array([0, 1, 1, 1]),
        "stored": np.array([[1.0, 2.0]]),
        "recomputed": np.array([[2.0, 2.0]]),  # no ranks
    }
    other = log | {"ids": np.array([0, 1, 0, 0]), "recomputed": np.array([[1.0, 3.0]])}
    found = batch_choices([None, None, None, other, log, None], deltas=[0.8, 0.5, 0.2], epochs=2)
    assert found["ids"].tolist() == [[-1] * 4, [0, 1, 0, 0], [0, 1, 1, 1]]
    assert found["counts"].tolist() == [[[0, 0]] * 2, [[1, 1], [2, 0]], [[1, 1], [0, 2]]]
    expected = [[np.nan, np.nan], [np.nan, 1.0], [np.nan, np.nan]]
    np.testing.assert_allclose(found["correlations"][..., 0], expected)
    with pytest.raises(DataError, match="all of the runs diverged"):
        batch_choices([None] * 3, deltas=[0.8, 0.5, 0.2], epochs=2)


def test_embedded_features_of_a_diverged_run_are_nan(features_of_runs):
    found = embedded_features([None, features_of_runs[1]], max_points=30)
    assert np.isnan(found["embedding"][0]).all()
    assert np.isnan(found["scores"][0]).all()
    alone = embedded_features(features_of_runs[1:], max_points=30)
    np.testing.assert_array_equal(found["embedding"][1], alone["embedding"][0])
    with pytest.raises(DataError, match="all of the runs diverged"):
        embedded_features([None, None])


def test_kept_shares_leave_out_a_diverged_run(kept_shares):
    counts = np.zeros((4, 60), dtype=int)
    counts[:, :30] = 1
    whole = kept_shares([{"counts": counts}], epochs=4)
    np.testing.assert_array_equal(
        kept_shares([None, {"counts": counts}], epochs=4)["quantiles"], whole["quantiles"]
    )
    assert np.isnan(kept_shares([None], epochs=4)["quantiles"]).all()
