"""Embeddings of several runs on the same subsample."""

import numpy as np
import pytest

from hardtrain import DataError
from hardtrain.report.embedding import SCORES, embedded_features


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


def test_embedded_features_of_a_diverged_run_are_nan(features_of_runs):
    found = embedded_features([None, features_of_runs[1]], max_points=30)
    assert np.isnan(found["embedding"][0]).all()
    assert np.isnan(found["scores"][0]).all()
    alone = embedded_features(features_of_runs[1:], max_points=30)
    np.testing.assert_array_equal(found["embedding"][1], alone["embedding"][0])
    with pytest.raises(DataError, match="all of the runs diverged"):
        embedded_features([None, None])
