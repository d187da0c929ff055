"""Figure data from trained networks, the share of a gap, and tables beside printed numbers."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.optim.swa_utils import update_bn

from hardtrain import ParameterError, Run, build_network, evaluate, load_dataset, run_missing
from hardtrain.data.batches import Transform
from hardtrain.networks import has_batch_norm
from hardtrain.papers.gradient_noise import figures as noise_figures
from hardtrain.papers.gradient_noise import tables as noise_tables
from hardtrain.papers.gradient_noise.curvature import gradient_noise_scale, largest_eigenvalue
from hardtrain.runs.sweep import load_artefacts
from hardtrain.statistics import mean_interval

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


def test_constant_alpha_needs_a_step():
    with pytest.raises(ParameterError, match="num_steps = 0"):
        noise_figures.constant_alpha(1e-5, 0.55, 0)


@pytest.mark.parametrize("name", ["cnn_small", "cnn_small_bn", "resnet50", "mlp"])
def test_batch_norm_is_found_without_touching_the_random_state(name):
    before = torch.get_rng_state()
    found = noise_figures.uses_batch_norm(name)
    assert torch.equal(torch.get_rng_state(), before)
    assert found == has_batch_norm(build_network(name, 2, 3, stem="imagenet", image_size=32))


def test_sketch_has_a_flat_and_a_sharp_minimum():
    found = noise_figures.sketch_of_minima(0.25, num_points=9001)
    x, train = found["x"], found["train"]
    at = [int(np.abs(x - minimum).argmin()) for minimum in found["minima"]]
    second = np.gradient(np.gradient(train, x), x)
    np.testing.assert_allclose(second[at], found["curvature"], rtol=1e-3)
    assert (np.abs(train[at]) < 1e-3).all()
    np.testing.assert_allclose(found["test"][at] - train[at], found["gap"], atol=1e-4)
    assert found["gap"][1] > 5 * found["gap"][0]


def test_samples_count_the_training_images(tiny_set):
    found = noise_figures.samples(datasets=[tiny_set], train_size=30, test_size=0)
    assert int(found["num_train"]) == 30
    assert found["images"].shape == (3, 1, 8, 8)
    assert (
        int(noise_figures.samples(datasets=[tiny_set], train_size=0, test_size=0)["num_train"])
        == 60
    )


# --- figure data ----------------------------------------------------------------------------------


@pytest.fixture
def trained(tiny_run, tiny_set, store):
    """Runs of two groups and two seeds, their weights, results, and what they are built from."""

    def make(network="cnn_small_bn", **changes):
        fields = dict(network=network, evaluate_train=True, keep=("final_weights",)) | changes
        runs = [tiny_run(seed=seed, lr=lr, **fields) for lr in (0.02, 0.1) for seed in (3, 5)]
        built = dict(dataset=tiny_set, network=network, stem="cifar", image_size=0)
        built |= dict(train_size=runs[0].train_size, test_size=0)
        results = run_missing(runs, store, use_committed=False).set_index("key")
        weights = load_artefacts(runs, "final_weights", store)
        return runs, weights, results, built

    return make


def test_interpolations_meet_the_trained_networks_at_both_ends(trained):
    runs, weights, results, built = trained(train_size=40)
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


def test_interpolations_can_use_a_part_of_each_set(trained, tiny_set):
    _, weights, _, built = trained("cnn_small")
    how = dict(num_seeds=2, alphas=[0], num_images=12, **built)
    found = noise_figures.interpolations(weights, **how)
    test = load_dataset(tiny_set, "test").subset(12)
    model = build_network("cnn_small", 3, 1, stem="cifar", image_size=8)
    model.load_state_dict({k: torch.as_tensor(v) for k, v in weights[0].items()})
    expected = evaluate(model, test, Transform.of(load_dataset(tiny_set, "train"))).loss
    assert found["val_loss"][0, 0, 0, 0] == pytest.approx(expected, rel=1e-6)


def test_interpolations_leave_out_what_diverged(trained):
    _, weights, _, built = trained("cnn_small")
    weights[3] = None
    found = noise_figures.interpolations(weights, num_seeds=2, alphas=[0, 1], **built)
    for name in noise_figures.CURVES:
        assert np.isnan(found[name][:, :, 1]).all()
        assert np.isfinite(found[name][:, :, 0]).all()


def test_artefacts_must_be_groups_of_seeds(trained):
    _, weights, _, built = trained("cnn_small")
    with pytest.raises(ParameterError, match="3 artefacts are no multiple of 2 seeds"):
        noise_figures.interpolations(weights[:3], num_seeds=2, alphas=[0], **built)


def test_random_directions_begin_at_the_networks(trained):
    runs, weights, results, built = trained("cnn_small")
    weights[2] = None
    found = noise_figures.random_directions(weights, num_seeds=2, distances=[-0.5, 0, 0.5], **built)
    losses = found["val_loss"].reshape(4, 3)
    assert np.isnan(losses[2]).all()
    for row in (0, 1, 3):
        assert losses[row, 1] == pytest.approx(results.loc[runs[row].key, "test_loss"], rel=1e-6)
        assert losses[row, 0] != losses[row, 2]


def test_random_directions_use_the_same_numbers_for_all_groups(trained):
    _, weights, _, built = trained("cnn_small")
    same = [weights[0], weights[0], weights[0], weights[0]]
    found = noise_figures.random_directions(same, num_seeds=2, distances=[0.5], **built)
    losses = found["train_loss"][..., 0]
    np.testing.assert_array_equal(losses[0], losses[1])
    assert losses[0, 0] != losses[0, 1]  # another seed, another direction


def test_largest_eigenvalues_are_those_of_each_network(trained, tiny_set):
    _, weights, _, built = trained("cnn_small")
    weights[1] = None
    found = noise_figures.largest_eigenvalues(weights, num_images=20, **built)["eigenvalues"]
    assert np.isnan(found[1])
    train = load_dataset(tiny_set, "train")
    for row in (0, 2, 3):
        model = build_network("cnn_small", 3, 1, stem="cifar", image_size=8)
        model.load_state_dict({k: torch.as_tensor(v) for k, v in weights[row].items()})
        start = torch.Generator().manual_seed(1)
        part, transform = train.subset(20), Transform.of(train)
        exact = largest_eigenvalue(model, part, transform, generator=start, tolerance=1e-4)
        assert found[row] == pytest.approx(exact, rel=0.02)


def test_eigenvalues_of_a_broken_network_are_nan(trained):
    _, weights, _, built = trained("cnn_small")
    broken = {name: np.full_like(value, np.nan) for name, value in weights[0].items()}
    assert np.isnan(noise_figures.largest_eigenvalues([broken], **built)["eigenvalues"]).all()


def test_gradient_noise_is_that_of_each_network(trained, tiny_set):
    _, weights, _, built = trained("cnn_small")
    weights[1] = None
    found = noise_figures.gradient_noise(weights, seeds=[3, 5], num_images=20, **built)
    assert found["trace"].shape == (3, 2)
    assert int(found["num_parameters"]) == sum(value.size for value in weights[0].values())
    assert np.isnan(found["trace"][1, 1])
    train = load_dataset(tiny_set, "train")
    model = build_network("cnn_small", 3, 1, stem="cifar", image_size=8)
    for number, place in ((0, (1, 0)), (2, (2, 0)), (3, (2, 1))):
        model.load_state_dict({k: torch.as_tensor(v) for k, v in weights[number].items()})
        exact = gradient_noise_scale(model, train.subset(20), Transform.of(train))
        for name in ("trace", "squared_norm", "noise_scale"):
            assert found[name][place] == pytest.approx(getattr(exact, name), rel=1e-5)


@pytest.mark.parametrize("network", ["cnn_small", "cnn_small_bn"])
def test_the_start_of_training_has_the_runs_own_initial_weights(network, tiny_run, tiny_set, store):
    fields = dict(network=network, lr=1e-30, epochs=1, keep=("final_weights",))
    runs = [tiny_run(seed=seed, **fields) for seed in (3, 5)]
    weights = load_artefacts(runs, "final_weights", store)
    built = dict(dataset=tiny_set, network=network, stem="cifar", image_size=0)
    built |= dict(train_size=0, test_size=0)
    found = noise_figures.gradient_noise(weights, seeds=[3, 5], **built)["trace"][0]
    train = load_dataset(tiny_set, "train")
    transform = Transform.of(train)
    for trace, arrays in zip(found, weights, strict=True):
        model = build_network(network, 3, 1, stem="cifar", image_size=8)
        model.load_state_dict({k: torch.as_tensor(v) for k, v in arrays.items()})
        if has_batch_norm(model):  # its statistics are those of the whole training set
            update_bn([transform(train.images)], model)
        assert trace == pytest.approx(gradient_noise_scale(model, train, transform).trace, rel=1e-4)


def test_average_is_one_row():
    assert noise_figures.average(np.array([[1.0, 2.0], [3.0, 6.0]])).tolist() == [[2.0, 4.0]]
    assert noise_figures.average(np.zeros((0, 2))).shape == (0, 2)


# --- the share of the gap -------------------------------------------------------------------------


def by_seed(values):
    return pd.Series(values, index=range(len(values)), dtype=float)


def test_share_is_the_ratio_of_mean_differences():
    small, large = by_seed([90, 92, 91]), by_seed([80, 81, 83])
    treated = by_seed([84, 86, 89])
    found = noise_tables.share_of_gap(small, large, treated)
    assert found.mean == pytest.approx(15 / 29)
    assert found.n == 3


def test_share_bounds_are_where_the_paired_interval_ends_at_zero():
    rng = np.random.default_rng(0)
    for _ in range(20):
        large = by_seed(rng.normal(70, 1, 6))
        small = large + rng.normal(5, 1, 6)
        treated = large + rng.normal(2, 1, 6)
        found = noise_tables.share_of_gap(small, large, treated)
        for share, inside in (
            (found.low - 0.01, False), (found.low + 0.01, True), (found.mean, True),
            (found.high - 0.01, True), (found.high + 0.01, False),
        ):  # fmt: skip
            interval = mean_interval(treated - large - share * (small - large))
            assert (interval.low <= 0 <= interval.high) == inside


def test_share_of_a_gap_that_may_be_zero_has_no_bounds():
    small, large = by_seed([70.0, 71.0, 69.0]), by_seed([69.0, 72.0, 68.5])
    found = noise_tables.share_of_gap(small, large, large + 1)
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert str(found) == "the gap is not resolved (n = 3)"


def test_share_uses_common_seeds_only():
    small = pd.Series({0: 90.0, 1: 91.0, 2: 92.0, 7: 0.0})
    large = pd.Series({2: 82.0, 1: 80.0, 0: 80.0})
    treated = pd.Series({0: 85.0, 1: 86.0, 2: 87.0, 8: 0.0})
    same = [values.loc[[0, 1, 2]] for values in (small, large, treated)]
    assert noise_tables.share_of_gap(small, large, treated) == noise_tables.share_of_gap(*same)


def test_share_of_one_or_no_seed():
    one = noise_tables.share_of_gap(by_seed([90]), by_seed([80]), by_seed([85]))
    assert (one.mean, str(one)) == (0.5, "50 % (n = 1)")
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    none = noise_tables.share_of_gap(by_seed([]), by_seed([80]), by_seed([85]))
    assert (none.n, str(none)) == (0, "not run")


# --- tables ---------------------------------------------------------------------------------------

ACCURACIES = {  # data set, network, method, batch size -> by seed
    ("caltech101", "resnet50", "plain", 32): [74.0, 75.0, 74.5, 74.3],
    ("caltech101", "resnet50", "plain", 64): [70.0, 70.8, 70.1, 70.3],
    ("caltech101", "resnet50", "plain", 128): [70.4, 71.1, 70.8, 70.5],
    ("caltech101", "resnet50", "gradient_noise", 32): [73.0, 73.9, 73.6, 73.5],
    ("caltech101", "resnet50", "gradient_noise", 64): [69.0, 70.1, 69.1, 69.4],
    ("caltech101", "resnet50", "gradient_noise", 128): [70.3, 71.2, 70.7, 70.6],
    ("digits", "mlp", "plain", 16): [95.0, 96.0],
    ("digits", "mlp", "plain", 256): [90.0, 91.5],
}


@pytest.fixture
def measured():
    """Results, history and arms with the accuracies above; one further run diverged."""
    arms, rows, history = {}, [], []
    for (dataset, network, method, size), values in ACCURACIES.items():
        runs = [
            Run(dataset, network, method, seed=seed, batch_size=size, epochs=20, lr=size / 3200)
            for seed in range(len(values))
        ]
        arms[dataset, network, method, size] = runs
        for run, value in zip(runs, values, strict=True):
            row = {"key": run.key, "seed": run.seed, "status": "finished"}
            rows.append(row | {"test_error": 1 - value / 100, "train_set_error": 0.01})
            for epoch in range(1, 21):
                error = 1 - value / 100 + 0.001 * (20 - epoch)
                history.append({"key": run.key, "epoch": epoch, "test_error": error})
    lost = replace(arms["digits", "mlp", "plain", 256][0], seed=9)
    arms["digits", "mlp", "plain", 256].append(lost)
    rows.append({"key": lost.key, "seed": 9, "status": "diverged", "test_error": math.nan,
                 "train_set_error": math.nan})  # fmt: skip
    return pd.DataFrame(rows), pd.DataFrame(history), arms


def test_late_accuracy_is_of_the_last_tenth_of_the_epochs(measured):
    results, history, arms = measured
    found = noise_tables.late_accuracy(
        history, results, arms["caltech101", "resnet50", "plain", 32]
    )
    np.testing.assert_allclose(found, [73.95, 74.95, 74.45, 74.25])  # epochs 19 and 20 of 20
    lost = noise_tables.late_accuracy(history, results, arms["digits", "mlp", "plain", 256])
    assert list(lost.index) == [0, 1]


def test_accuracy_table_sets_printed_beside_measured(measured):
    results, history, arms = measured
    table = noise_tables.accuracy_table(results, history, arms, comparable=True)
    ours = table[table["data set"] == "caltech101"]
    table = table.set_index(["data set", "B", "noise"]).sort_index()
    assert ours["paper (%)"].tolist() == [
        "74.45", "70.29", "67.86", "72.07", "71.01 ± 0.42", "–",
    ]  # fmt: skip
    first = table.loc[("caltech101", 32, "no")]
    assert first["here: last epoch (%)"].startswith("74.45 ± ")
    assert first["here: last tenth (%)"].startswith("74.40 ± ")
    assert first["here: training set (%)"] == "99.00 ± 0.00 (n = 4)"
    assert ours["verdict"].tolist() == [
        "reproduced", "reproduced", "not reproduced", "not reproduced", "reproduced",
        "not comparable",
    ]  # fmt: skip
    assert table.loc[("caltech101", 32, "yes"), "why"] == "the paper has no such cell"
    lost = table.loc[("digits", 256, "no")]
    assert lost["here: last epoch (%)"].endswith("(n = 2), 1 diverged")
    assert lost["verdict"] == "not comparable"


def test_accuracy_table_knows_how_many_runs_the_paper_had(measured):
    results, history, arms = measured
    cells = [("caltech101", "resnet50", "gradient_noise", size) for size in (64, 128)]
    for cell, printed in zip(cells, (72.07, 71.01), strict=True):
        # 0.9 off: inside the interval for one run (64), outside of that for two (128)
        for run, value in zip(arms[cell], (-0.35, -0.1, 0.2, 0.25), strict=True):
            results.loc[results["key"] == run.key, "test_error"] = 1 - (printed - 0.9 + value) / 100
    table = noise_tables.accuracy_table(results, history, arms, comparable=True)
    verdicts = table.set_index("paper (%)")["verdict"]
    assert verdicts["72.07"] == "reproduced"
    assert verdicts["71.01 ± 0.42"] == "not reproduced"


def test_accuracy_table_says_what_was_not_run_and_why_it_does_not_compare(measured):
    results, history, arms = measured
    some = {cell: runs for cell, runs in arms.items() if cell[3] != 128}
    how = dict(comparable=False, reason="other protocol", not_run="run me")
    table = noise_tables.accuracy_table(results, history, some, **how).set_index(["B", "noise"])
    assert table.loc[(128, "no"), "verdict"] == "not run"
    assert table.loc[(128, "yes"), "why"] == "run me"
    assert table.loc[(64, "no"), ["verdict", "why"]].tolist() == [
        "not comparable", "other protocol",
    ]  # fmt: skip


def test_difference_table_pairs_the_batch_sizes_and_the_noise(measured):
    results, _, arms = measured
    table = noise_tables.difference_table(results, arms, comparable=True)
    ours = table[table["data set"] == "caltech101"].set_index("difference")
    larger, noise = "B = {} minus B = 32, no noise", "noise minus no noise, B = {}"
    printed = {larger.format(64): "-4.16", larger.format(128): "-6.59", noise.format(64): "+1.78",
               noise.format(128): "+3.15", noise.format(32): "–"}  # fmt: skip
    assert ours["paper (points)"].to_dict() == printed
    assert ours.loc[larger.format(64), "here (points)"].startswith("-4.15 ± ")
    assert ours["verdict"].to_dict() == {
        larger.format(64): "reproduced",
        larger.format(128): "same direction",
        noise.format(64): "opposite",
        noise.format(128): "no difference seen",
        noise.format(32): "not comparable",
    }
    assert ours.loc[noise.format(32), "why"] == "the paper has no such pair"
    (other,) = table[table["data set"] == "digits"].to_dict("records")
    assert other["difference"] == "B = 256 minus B = 16, no noise"
    assert other["here (points)"].startswith("-4.75 ± ")
    assert other["verdict"] == "not comparable"


def test_difference_table_keeps_the_papers_pairs_when_only_others_were_run(measured):
    results, _, arms = measured
    some = {cell: runs for cell, runs in arms.items() if cell[0] == "digits"}
    table = noise_tables.difference_table(results, some, comparable=False, not_run="no data")
    theirs = table[table["data set"] == "caltech101"]
    assert theirs["paper (points)"].tolist() == ["-4.16", "-6.59", "+1.78", "+3.15"]
    assert set(theirs["verdict"]) == {"not run"}
    assert set(theirs["why"]) == {"no data"}


def test_difference_table_of_arms_that_diverged_is_not_comparable(measured):
    results, _, arms = measured
    lost = results["key"].isin([run.key for run in arms["digits", "mlp", "plain", 256]])
    results.loc[lost, "status"] = "diverged"
    table = noise_tables.difference_table(results, arms, comparable=True)
    (row,) = table[table["data set"] == "digits"].to_dict("records")
    assert (row["here (points)"], row["verdict"]) == ("not run", "not comparable")
    assert row["why"] == "no seed finished with both"


def test_share_table_has_the_papers_shares_and_ours(measured):
    results, _, arms = measured
    table = noise_tables.share_table(results, arms, not_run="not run: why").set_index("B")
    assert table.loc["64 against 32", "paper: recovered"] == "1.78 = 43%"
    assert table.loc["128 against 32", "paper: recovered"] == "3.15 = 48%"
    assert table.loc["64 against 32", "here: gap (points)"].startswith("+4.15 ± ")
    assert table.loc["64 against 32", "here: share, 95 % interval"].startswith("-22 % [")
    ours = table.loc["256 against 16"]
    assert ours["paper: recovered"] == "–"
    assert ours["here: share, 95 % interval"] == ""  # no run with noise
    none = noise_tables.share_table(results, {}, not_run="not run: why")
    assert none["here: gap (points)"].tolist() == ["not run: why"] * 2


def test_treatments_are_compared_with_the_large_batch(measured):
    results, _, arms = measured
    cell = ("caltech101", "resnet50")
    named = {
        "small": arms[*cell, "plain", 32],
        "noisy small": arms[*cell, "gradient_noise", 32],
        "large": arms[*cell, "plain", 64],
        "noisy": arms[*cell, "gradient_noise", 64],
    }
    table = noise_tables.treatments_table(results, named, small="small", large="large")
    table = table.set_index("arm")
    assert table["B"].to_dict() == {"small": 32, "noisy small": 32, "large": 64, "noisy": 64}
    assert table["η"].tolist() == ["0.01", "0.01", "0.02", "0.02"]
    assert table.loc["small", "minus large (points)"].startswith("+4.15 ± ")
    assert table.loc["large", "minus large (points)"] == ""
    shares = table["share of the gap"]
    assert shares[["small", "noisy small", "large"]].tolist() == ["", "", ""]
    assert shares["noisy"].startswith("-22 % [")


def test_noise_scale_table_follows_the_equations():
    rows = {"trace": [[8.0, 12.0], [4.0, 6.0], [3.0, np.nan]],
            "squared_norm": [[1.0, 1.0], [2.0, 2.0], [0.5, np.nan]],
            "noise_scale": [[8.0, 12.0], [2.0, 3.0], [6.0, np.nan]]}  # fmt: skip
    found = {name: np.array(values) for name, values in rows.items()}
    found["num_parameters"] = np.array(1000)
    noise = {"alpha": 1e-4, "gamma": 0.5}
    large = Run("digits", "mlp", "gradient_noise", noise, batch_size=64, lr=0.04)
    arms = {"small": Run("digits", "mlp", batch_size=16, lr=0.01), "large": large}
    table = noise_tables.noise_scale_table(
        found, np.array([1.0, 3.0, 7.0, np.nan]), arms, smallest=16, num_train=100, alpha=1e-4
    ).set_index("network")
    assert table["η / B"].tolist() == ["", "0.000625", "0.000625"]
    assert table["η / √B"].tolist() == ["", "0.0025", "0.005"]
    assert table["tr Σ"].tolist() == ["10 [8, 12]", "5 [4, 6]", "3"]
    step = table["η √(tr Σ / B)"].tolist()
    assert step[1].startswith(f"{(0.01 * 0.5 + 0.01 * math.sqrt(6 / 16)) / 2:.3g} [0.005")
    assert step[2] == f"{0.04 * math.sqrt(3 / 64):.3g}"
    assert table["largest eigenvalue"].tolist() == ["", "2 [1, 3]", "7"]
    more = table["variance that B = 16 has more"]
    assert more["start of training"].startswith(f"{10 * (1 / 16 - 1 / 64) / 1000:.3g} [")
    assert more["small"] == ""
    assert more["large"] == f"{3 * (1 / 16 - 1 / 64) / 1000:.3g}"
    # one epoch of two steps: the last is t = 1
    added = ["0.0001", "", f"{1e-4 / math.sqrt(2):.2g}"]
    assert table["variance that is added"].tolist() == added


# --- the printed numbers --------------------------------------------------------------------------


def test_printed_accuracies_are_those_of_the_paper():
    printed = noise_tables.printed_accuracies().set_index(["method", "batch_size"])
    assert printed["accuracy"].to_dict() == {
        ("plain", 32): 74.45,
        ("plain", 64): 70.29,
        ("plain", 128): 67.86,
        ("gradient_noise", 64): 72.07,
        ("gradient_noise", 128): 71.01,
    }
    assert printed["num_runs"].tolist() == [1, 1, 1, 1, 2]
    assert printed["half_range"].tolist()[-1] == 0.42


def test_printed_claims_are_recomputed():
    claims = noise_tables.printed_claims().set_index("claim")
    assert claims.loc['"close this gap", B = 64', "verdict"] == "42.8% of the gap"
    assert (
        claims.loc['"close this gap", B = 128', "arithmetic"]
        == "3.15 of 6.59 points, 3.44 are left"
    )
    surpasses = claims.loc['noisy B = 128 "surpasses" B = 64', "verdict"]
    assert surpasses == "true without noise, false with"
    fits = claims.loc["accuracies on 2,241 to 2,244 images", "arithmetic"]
    assert fits == "at most 2 of 4 single values are k/n with the same n"
    falls = claims.loc["the noise falls with the batch size (equation 7)", "arithmetic"]
    assert falls == "η/√B is 0.00177 at B = 32, 0.00250 at B = 64, 0.00354 at B = 128"


@pytest.mark.parametrize(
    ("percent", "fits"),
    [(74.45, [2243]), (67.86, [2243]), (70.29, [2242]), (72.07, [2241])],  # errata 002-10
)
def test_fractions_are_found_like_in_the_errata(percent, fits):
    slow = [
        n for n in range(2241, 2245) if percent in [round(100 * k / n, 2) for k in range(n + 1)]
    ]
    found = [n for n in range(2241, 2245) if noise_tables._is_fraction(percent, n)]
    assert found == slow
    assert set(fits) <= set(found)
