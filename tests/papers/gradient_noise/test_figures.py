"""Settings of the paper, and figure data from trained networks."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch.optim.swa_utils import update_bn

from hardtrain import Run, RunStore, build_network, evaluate, run_missing
from hardtrain.networks import has_batch_norm
from hardtrain.papers.gradient_noise import drawing
from hardtrain.papers.gradient_noise import figures as noise_figures
from hardtrain.papers.gradient_noise.curvature import gradient_noise_scale, largest_eigenvalue
from hardtrain.runs.sweep import load_artefacts
from hardtrain.statistics import PairedDifference

# --- settings of the paper ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_epochs", "milestones"),
    [
        (100, (25, 40, 50, 60, 70, 80, 90)),
        (10, (3, 4, 5, 6, 7, 8, 9)),  # 2.5 rounds up
        (2, (1,)),
        (1, ()),
    ],
)
def test_milestones_are_the_papers_in_proportion(num_epochs, milestones):
    assert noise_figures.decay_milestones(num_epochs) == milestones


@pytest.mark.parametrize("gamma", [0.0, 0.55, 1.0])
def test_constant_alpha_adds_up_to_the_same_variance(gamma):
    total = sum(0.3 / (1 + t) ** gamma for t in range(50))
    assert 50 * noise_figures.constant_alpha(0.3, gamma, 50) == pytest.approx(total, rel=1e-12)


def test_sketch_has_a_flat_and_a_sharp_minimum():
    found = noise_figures.sketch_of_minima(0.25, num_points=9001)
    x, train = found["x"], found["train"]
    at = [int(np.abs(x - minimum).argmin()) for minimum in found["minima"]]
    second = np.gradient(np.gradient(train, x), x)
    np.testing.assert_allclose(second[at], found["curvature"], rtol=1e-3)
    assert (np.abs(train[at]) < 1e-3).all()
    np.testing.assert_allclose(found["test"][at] - train[at], found["gap"], atol=1e-4)
    assert found["gap"][1] > 5 * found["gap"][0]


@pytest.mark.parametrize(("train_size", "num_train"), [(30, 30), (0, 60)])
def test_samples_count_the_training_images(tiny_set, train_size, num_train):
    found = noise_figures.samples(datasets=[tiny_set], train_size=train_size, test_size=0)
    assert int(found["num_train"]) == num_train
    assert int(found["image_size"]) == 8
    assert len(found["described"]) == 2
    assert "images" not in found  # the picture stands in notebook 1


# --- figure data ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def groups(tiny_set, tmp_path_factory):
    """By network: runs of two groups and two seeds, their weights, results, and what they are
    built from."""
    store, by_network = RunStore(tmp_path_factory.mktemp("groups")), {}
    for network, train_size in (("cnn_small", 0), ("cnn_small_bn", 40)):
        fields = dict(network=network, epochs=2, batch_size=16, train_size=train_size)
        fields |= dict(evaluate_train=True, keep=("final_weights",), device="cpu")
        runs = [Run(tiny_set, seed=seed, lr=lr, **fields) for lr in (0.02, 0.1) for seed in (3, 5)]
        results = run_missing(runs, store, use_committed=False).set_index("key")
        built = dict(dataset=tiny_set, network=network, stem="cifar", image_size=0)
        built |= dict(train_size=train_size, test_size=0)
        weights = load_artefacts(runs, "final_weights", store)
        by_network[network] = runs, weights, results, built
    return by_network


@pytest.fixture
def plain(groups):
    """Weights of the networks without batch-norm, and what they are built from."""
    _, weights, _, built = groups["cnn_small"]
    return list(weights), built


def rebuilt(weights):
    model = build_network("cnn_small", 3, 1, stem="cifar", image_size=8)
    model.load_state_dict({name: torch.as_tensor(value) for name, value in weights.items()})
    return model


def test_interpolations_meet_the_trained_networks_at_both_ends(groups):
    runs, weights, results, built = groups["cnn_small_bn"]
    found = noise_figures.interpolations(weights, num_seeds=2, alphas=[-1, 0, 1], **built)
    assert found["val_loss"].shape == (2, 1, 2, 3)
    exact = noise_figures.READINGS.index("interpolated")
    for side, name in (("val", "test"), ("train", "train_set")):
        for seed in range(2):
            for alpha, run in ((1, runs[seed]), (2, runs[2 + seed])):
                row = results.loc[run.key]
                loss = found[f"{side}_loss"][exact, 0, seed, alpha]
                assert loss == pytest.approx(row[f"{name}_loss"], rel=1e-6)
                accuracy = found[f"{side}_accuracy"][exact, 0, seed, alpha]
                assert accuracy == pytest.approx(1 - row[f"{name}_error"], abs=1e-12)
    assert not np.allclose(found["val_loss"][0], found["val_loss"][1])  # the readings differ
    assert not np.allclose(found["val_loss"][..., 0], found["val_loss"][..., 1])


def test_interpolations_can_use_a_part_of_each_set(plain, sets, transform):
    weights, built = plain
    found = noise_figures.interpolations(weights, num_seeds=2, alphas=[0], num_images=12, **built)
    for side, data in (("val", sets["test"]), ("train", sets["train"])):
        expected = evaluate(rebuilt(weights[0]), data.subset(12), transform).loss
        assert found[f"{side}_loss"][0, 0, 0, 0] == pytest.approx(expected, rel=1e-6)


def test_interpolations_pair_the_seeds_of_several_others(plain):
    weights, built = plain
    six = [*weights, weights[1], weights[0]]
    losses = noise_figures.interpolations(six, num_seeds=2, alphas=[0, 1], **built)["val_loss"]
    assert losses.shape == (2, 2, 2, 2)
    first, second = losses[0, :, :, 0]
    np.testing.assert_array_equal(first, second)  # all begin at the first group
    np.testing.assert_array_equal(losses[0, 1, :, 1], first[::-1])


def test_interpolations_leave_out_what_diverged(plain):
    weights, built = plain
    weights[3] = None
    found = noise_figures.interpolations(weights, num_seeds=2, alphas=[0, 1], **built)
    for name in noise_figures.CURVES:
        assert np.isnan(found[name][:, :, 1]).all()
        assert np.isfinite(found[name][:, :, 0]).all()


def test_random_directions_begin_at_the_networks(groups, plain):
    runs, _, results, _ = groups["cnn_small"]
    weights, built = plain
    weights[2] = None
    found = noise_figures.random_directions(weights, num_seeds=2, distances=[-0.5, 0, 0.5], **built)
    losses = found["val_loss"].reshape(4, 3)
    assert np.isnan(losses[2]).all()
    for row in (0, 1, 3):
        assert losses[row, 1] == pytest.approx(results.loc[runs[row].key, "test_loss"], rel=1e-6)
        assert losses[row, 0] != losses[row, 2]


def test_random_directions_use_the_same_numbers_for_all_groups(plain):
    weights, built = plain
    same = [weights[0], weights[0], weights[0], weights[0]]
    found = noise_figures.random_directions(same, num_seeds=2, distances=[0.5], **built)
    losses = found["train_loss"][..., 0]
    np.testing.assert_array_equal(losses[0], losses[1])
    assert losses[0, 0] != losses[0, 1]  # another seed, another direction


def test_largest_eigenvalues_are_those_of_each_network(plain, train, transform):
    weights, built = plain
    weights[1] = None
    found = noise_figures.largest_eigenvalues(weights, num_images=20, **built)["eigenvalues"]
    assert np.isnan(found[1])
    for row in (0, 2, 3):
        start = torch.Generator().manual_seed(1)
        exact = largest_eigenvalue(
            rebuilt(weights[row]), train.subset(20), transform, generator=start, tolerance=1e-4
        )
        assert found[row] == pytest.approx(exact, rel=0.02)


def test_eigenvalues_of_a_broken_network_are_nan(plain):
    weights, built = plain
    broken = {name: np.full_like(value, np.nan) for name, value in weights[0].items()}
    assert np.isnan(noise_figures.largest_eigenvalues([broken], **built)["eigenvalues"]).all()


def test_gradient_noise_is_that_of_each_network(plain, train, transform):
    weights, built = plain
    weights[1] = None
    found = noise_figures.gradient_noise(weights, seeds=[3, 5], num_images=20, **built)
    assert found["trace"].shape == (3, 2)
    assert int(found["num_parameters"]) == sum(value.size for value in weights[0].values())
    assert np.isnan(found["trace"][1, 1])
    for number, position in ((0, (1, 0)), (2, (2, 0)), (3, (2, 1))):
        exact = gradient_noise_scale(rebuilt(weights[number]), train.subset(20), transform)
        for name in ("trace", "squared_norm", "noise_scale"):
            assert found[name][position] == pytest.approx(getattr(exact, name), rel=1e-5)


@pytest.mark.parametrize("network", ["cnn_small", "cnn_small_bn"])
def test_the_start_of_training_has_the_runs_own_initial_weights(
    network, tiny_run, tiny_set, store, train, transform
):
    fields = dict(network=network, lr=1e-30, epochs=1, keep=("final_weights",))
    runs = [tiny_run(seed=seed, **fields) for seed in (3, 5)]
    weights = load_artefacts(runs, "final_weights", store)
    built = dict(dataset=tiny_set, network=network, stem="cifar", image_size=0)
    built |= dict(train_size=0, test_size=0)
    found = noise_figures.gradient_noise(weights, seeds=[3, 5], **built)["trace"][0]
    for trace, arrays in zip(found, weights, strict=True):
        model = build_network(network, 3, 1, stem="cifar", image_size=8)
        model.load_state_dict({k: torch.as_tensor(v) for k, v in arrays.items()})
        if has_batch_norm(model):  # its statistics are those of the whole training set
            update_bn([transform(train.images)], model)
        assert trace == pytest.approx(gradient_noise_scale(model, train, transform).trace, rel=1e-4)


def test_mean_and_seeds_draws_one_mean_and_every_seed():
    ax, values = Figure().subplots(), np.array([[1.0, 2.0], [3.0, 6.0]])
    drawing.mean_and_seeds(ax, np.arange(2), values, label="both", color="black")
    mean, *seeds = [line.get_ydata().tolist() for line in ax.lines]
    assert mean == [2.0, 4.0]
    assert seeds == values.tolist()
    empty = Figure().subplots()
    drawing.mean_and_seeds(empty, np.zeros(0), np.zeros((0, 0)), label="none")
    assert empty.lines[0].get_label() == "none: no finished run"


def test_batch_sizes_have_the_papers_colours():
    looks = drawing.batch_styles([32, 128])
    papers = drawing.batch_styles([32, 64, 128])
    red, blue, green = (papers[size]["color"] for size in (32, 64, 128))
    assert [looks[size]["color"] for size in (32, 128)] == [red, green]
    assert [look["color"] for look in drawing.batch_styles([16, 64, 256]).values()] == [
        red, blue, green,
    ]  # fmt: skip
    assert drawing.noise_style()["color"] == "black"
    assert [looks[size]["marker"] for size in (32, 128)] == [
        papers[size]["marker"] for size in (32, 128)
    ]
    assert len({look["color"] for look in drawing.batch_styles(range(1, 7)).values()}) == 6


def test_accuracy_at_one_rate_is_never_drawn_above_all():
    """Seeds as thin lines: the bound of an interval would lie above 100 %."""
    values = np.array([[1.0, 0.9], [0.98, 0.95], [1.0, 1.0]])[None, None]
    lines = {f"{side}_accuracy": values for side in ("val", "train")}
    lines |= {f"{side}_loss": 1.1 - values for side in ("val", "train")}
    axes = drawing.draw_same_rate(lines | {"alphas": np.array([0, 1])}, 32, 128).axes
    assert not axes[1].collections
    assert max(line.get_ydata().max() for line in axes[1].lines) == 100
    assert axes[1].get_ylim()[1] < 101  # no tick above


def test_what_the_largest_batch_lacks_is_its_own_noise_less_that_of_the_smallest():
    trace, added = np.array([128.0, 32.0]), np.full(8, 0.5)
    fig = drawing.draw_own_noise(trace, added, batch_sizes=[32, 128], lr=0.1)
    noise, *lacking = fig.axes[1].lines
    assert set(noise.get_ydata()) == {0.5}
    heights = [line.get_ydata()[0] for line in lacking]
    assert heights == pytest.approx([(4 - 1) ** 0.5, (1 - 0.25) ** 0.5])


def test_the_grid_shows_the_smallest_batch_with_its_interval():
    gaps = {(0.0, 1e-5): PairedDifference(0.5, 0.1, 0.9, 0.02, 4), (0.5, 1e-5): None}
    small = PairedDifference(1.0, 0.25, 1.75, 0.01, 4)
    ax = drawing.draw_grid(gaps, small, 32, "red").axes[0]
    drawn = {line.get_label(): line for line in ax.lines}["B = 32, no noise"]
    assert (drawn.get_ydata()[0], drawn.get_color()) == (1.0, "red")
    (band,) = ax.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == (0.25, 1.75)
    assert ax.containers[0].lines[0].get_color() == "#000000"  # noise
    no_interval = PairedDifference(1.0, np.nan, np.nan, np.nan, 1)
    for without in (no_interval, None):
        assert not drawing.draw_grid(gaps, without, 32, "red").axes[0].patches
