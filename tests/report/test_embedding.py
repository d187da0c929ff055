"""t-SNE: repeatable, on the stated subsample, scored as slow loops do; and how it is drawn."""

import numpy as np
import pytest
import sklearn.manifold
from matplotlib.figure import Figure
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_info

from hardtrain import DataError, ParameterError
from hardtrain.report.embedding import (
    SCORES,
    embed,
    embedded_features,
    embedding_scores,
    plot_embedding,
)


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


# --- t-SNE -----------------------------------------------------------------------------------


def blobs(n=60, dim=8):
    labels = np.arange(n) % 3
    centres = 20 * np.eye(dim)[:3]
    return centres[labels] + np.random.default_rng(0).normal(size=(n, dim)), labels


def test_embed_keeps_clusters_together_and_repeats_itself():
    features, labels = blobs()
    embedding, indices = embed(features, perplexity=10)
    again, _ = embed(features, perplexity=10)
    assert indices.tolist() == list(range(60))
    np.testing.assert_array_equal(embedding, again)
    scores = embedding_scores(features, embedding, labels)
    assert scores["knn_embedding"] == 1.0
    assert scores["silhouette_embedding"] > 0.5
    other, _ = embed(features, perplexity=10, seed=1)
    assert other.shape == (60, 2)


def test_embed_draws_the_stated_subsample():
    features, _ = blobs()
    embedding, indices = embed(features, max_points=20)
    assert embedding.shape == (20, 2)
    assert (np.diff(indices) > 0).all()
    assert indices.max() < 60
    assert embed(features, max_points=20)[1].tolist() == indices.tolist()
    assert embed(features, max_points=20, seed=1)[1].tolist() != indices.tolist()
    np.testing.assert_array_equal(embed(features[indices], max_points=20)[0], embedding)


def test_embed_lowers_the_perplexity_for_few_points():
    features, _ = blobs(10)
    embedding, _ = embed(features, perplexity=30)
    np.testing.assert_array_equal(embedding, embed(features, perplexity=3.0)[0])  # (10 - 1) / 3
    assert (embedding != embed(features, perplexity=2.0)[0]).any()
    assert np.isfinite(embed(features[:4])[0]).all()


def test_embed_leaves_nothing_to_chance(monkeypatch):
    seen = {}

    class Spy(sklearn.manifold.TSNE):
        def fit_transform(self, features):
            threads = {pool["num_threads"] for pool in threadpool_info()}
            seen.update(self.get_params(), threads=threads)
            return np.zeros((len(features), 2), dtype=np.float32)

    monkeypatch.setattr(sklearn.manifold, "TSNE", Spy)
    embed(blobs()[0], seed=5)
    assert (seen["random_state"], seen["init"], seen["threads"]) == (5, "pca", {1})


@pytest.mark.parametrize(
    "features",
    [np.eye(3), np.ones(10), np.arange(9.0)[:, None], np.ones((10, 2)), np.full((10, 2), np.nan)],
)
def test_embed_rejects(features):
    with pytest.raises(ParameterError):
        embed(features)


def test_embedding_scores_match_a_slow_loop():
    generator = np.random.default_rng(1)
    labels = generator.choice([0, 3, 7], 40)
    features = generator.normal(size=(40, 5)) + labels[:, None] / 4
    embedding = generator.normal(size=(40, 2)) + labels[:, None] / 8
    scores = embedding_scores(features, embedding, labels)
    for name, space in {"features": features, "embedding": embedding}.items():
        hits = 0
        for i in range(40):
            distances = np.linalg.norm(space - space[i], axis=1)
            distances[i] = np.inf  # leave one out
            nearest = labels[np.argsort(distances)[:10]].tolist()
            hits += max(sorted(set(nearest)), key=nearest.count) == labels[i]
        assert scores[f"knn_{name}"] == pytest.approx(hits / 40)
        reference = silhouette_score(space, labels)
        assert scores[f"silhouette_{name}"] == pytest.approx(reference, rel=1e-4)
    assert scores["knn_features"] != scores["knn_embedding"]


def test_embedding_scores_of_one_class_have_no_silhouette():
    scores = embedding_scores(np.eye(6), np.eye(6)[:, :2] + np.arange(6)[:, None], [1] * 6)
    assert np.isnan(scores["silhouette_features"])
    assert scores["knn_features"] == 1.0


def test_plot_embedding_tells_ten_classes_apart():
    ax = Figure(figsize=(5, 4), layout="constrained").subplots()
    points = np.random.default_rng(0).normal(size=(200, 2))
    names = [f"class {k}" for k in range(10)]
    plot_embedding(ax, points, np.arange(200) % 10, names, marked=[4, 17])
    *classes, rings = ax.collections
    assert len({tuple(c.get_facecolor()[0]) for c in classes}) == 10
    assert len({c.get_paths()[0].vertices.tobytes() for c in classes}) == 10
    for k, drawn in enumerate(classes):
        np.testing.assert_allclose(drawn.get_offsets(), points[k::10])
    np.testing.assert_allclose(rings.get_offsets(), points[[4, 17]])
    assert rings.get_zorder() > max(c.get_zorder() for c in classes)
    assert len(rings.get_facecolor()) == 0
    ax.figure.draw_without_rendering()
    legend = ax.get_legend().get_window_extent()
    assert legend.x0 >= ax.get_window_extent().x1  # beside the points, not on them
    assert legend.x1 <= ax.figure.bbox.x1


def test_plot_embedding_has_rings_and_a_legend_only_where_they_are_wanted():
    ax = Figure().subplots()
    plot_embedding(ax, np.eye(2), [0, 1], "ab", legend=False)
    assert ax.get_legend() is None
    assert len(ax.collections) == 2


def test_plot_embedding_names_many_classes_sparsely():
    ax = Figure().subplots()
    generator = np.random.default_rng(0)
    points = np.concatenate([generator.normal(size=(300, 2)), [[50.0, 50.0]] * 3])
    labels = np.concatenate([np.arange(300) % 40, [40] * 3])
    plot_embedding(ax, points, labels, [f"class {k}" for k in range(41)])
    texts = {text.get_text(): text.get_position() for text in ax.texts}
    assert ax.get_legend() is None
    assert texts["class 40"] == (50.0, 50.0)
    assert len(texts) == 2  # forty medians in one spot share one name


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e-24, 1e-15, 1e18, 1e300])
def test_features_of_any_scale_give_a_finite_picture(scale):
    """In float32 their squares would be 0 or infinite, which ends the process."""
    features = np.random.default_rng(0).random((40, 5)) * scale
    picture, _ = embed(features)
    assert np.isfinite(picture).all()


def test_class_names_appear_as_they_are_written(tmp_path):
    figure = Figure()
    ax = figure.subplots()
    names = ["_other", "US$_5 to US$_9", "$\\frac$"]
    plot_embedding(ax, np.eye(3)[:, :2], [0, 1, 2], names)
    shown = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [text.replace(r"\$", "$") for text in shown] == names
    figure.savefig(tmp_path / "a.png")  # no formula, so no error
