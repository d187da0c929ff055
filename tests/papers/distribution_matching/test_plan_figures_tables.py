"""The plan of trainings against the paper's protocol; tables and scores worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from hardtrain import ParameterError, Run, load_history, run_missing
from hardtrain.papers.distribution_matching.calibration import (
    cross_fitted_temperature_loss,
    expected_calibration_error,
)
from hardtrain.papers.distribution_matching.figures import (
    CALIBRATION_SCORES,
    calibration_scores,
    embedded_pair,
    feature_scores,
    pooled_bins,
)
from hardtrain.papers.distribution_matching.plan import (
    Cell,
    first_of_each_set,
    joint_and_class,
    plan,
    trainings,
)
from hardtrain.papers.distribution_matching.tables import (
    class_differences,
    describe,
    itdm_rows,
    joint_table,
    last_evaluations,
    metrics_table,
    picked_weights,
    protocol_table,
    sweep_table,
    weight_sweep,
    weights_table,
)

DIGITS = Cell("small", "digits", "cnn_small")


# --- which trainings -----------------------------------------------------------------------------


def test_plan_of_the_paper():
    networks = ["cnn2", "cnn5", "resnet18", "vgg13", "mobilenet"]
    cells = plan(["qmnist", "kmnist", "fashion-mnist", "cifar10", "stl10"], networks)
    assert [tuple(cell) for cell in cells] == [
        ("initial", "qmnist", "cnn2"),
        ("initial", "kmnist", "cnn2"),
        ("initial", "fashion-mnist", "cnn2"),
        ("small", "kmnist", "cnn5"),
        ("small", "fashion-mnist", "cnn5"),
        ("large", "cifar10", "resnet18"),
        ("large", "cifar10", "vgg13"),
        ("large", "cifar10", "mobilenet"),
        ("large", "stl10", "resnet18"),
        ("large", "stl10", "vgg13"),
        ("large", "stl10", "mobilenet"),
    ]


@pytest.mark.parametrize(
    ("dataset", "network", "experiments"),
    [
        ("digits", "cnn_small", ["initial", "small"]),  # neither is the paper's
        ("digits", "resnet18", ["large"]),
        ("digits", "cnn5", ["small"]),
        ("fashion-mnist", "cnn_small", ["initial", "small"]),
        ("qmnist", "cnn_small", ["initial"]),
        ("cifar10", "cnn_small", ["large"]),
        ("cifar10", "cnn5", ["large"]),  # they do not meet in the paper
        ("fashion-mnist", "vgg13", ["initial", "small"]),
    ],
)
def test_plan_of_other_sets_and_networks(dataset, network, experiments):
    assert plan([dataset], [network]) == [Cell(name, dataset, network) for name in experiments]


def test_plan_has_each_cell_once():
    cells = plan(["cifar10", "digits", "cifar10"], ["cnn_small", "cnn_small"])
    assert len(cells) == len(set(cells)) == 3


def test_plan_refuses_nothing():
    with pytest.raises(ParameterError, match="networks = "):
        plan(["digits"], [])


def test_joint_and_class_lend_each_other_a_cell():
    joint, by_class = Cell("initial", "qmnist", "cnn2"), Cell("large", "stl10", "vgg13")
    assert joint_and_class([joint, by_class]) == ([joint], [by_class])
    assert joint_and_class([joint]) == ([joint], [joint])
    assert joint_and_class([by_class, by_class]) == ([by_class], [by_class, by_class])


def test_first_of_each_set_keeps_the_order():
    cells = plan(["cifar10", "stl10"], ["vgg13", "resnet18"])
    assert [cell[1:] for cell in first_of_each_set(cells)] == [
        ("cifar10", "vgg13"),
        ("stl10", "vgg13"),
    ]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (Cell("initial", "qmnist", "cnn2"), (50, 0.01, 0.2, (20, 40), "none", 50, 0)),
        (Cell("small", "kmnist", "cnn5"), (50, 0.01, 0.2, (20, 40), "none", 50, 0)),
        (Cell("large", "cifar10", "vgg13"), (150, 0.5, 0.1, (50, 100), "crop+flip", 5, 0)),
        (Cell("large", "stl10", "vgg13"), (150, 0.5, 0.1, (50, 100), "crop+flip", 5, 32)),
    ],
)
def test_trainings_follow_the_protocol(cell, expected):
    (run,) = trainings(cell, [3], {"weight": 0.4})
    names = ("epochs", "lr", "gamma", "milestones", "augment", "evaluate_every", "image_size")
    assert tuple(getattr(run, name) for name in names) == expected
    assert (run.dataset, run.network, run.seed, run.options["weight"]) == (*cell[1:], 3, 0.4)
    assert (run.momentum, run.weight_decay, run.batch_size, run.optimizer) == (0.5, 0, 150, "sgd")
    assert (run.schedule, run.evaluate_unit) == ("multistep", "step")


def test_trainings_scale_the_schedule_with_the_epochs():
    (run,) = trainings(DIGITS, [0], {}, epochs=10, lr=0.3, evaluate="epoch", batch_size=30)
    assert (run.epochs, run.milestones, run.lr) == (10, (4, 8), 0.3)
    assert (run.evaluate_every, run.evaluate_unit, run.batch_size) == (1, "epoch", 30)
    (run,) = trainings(DIGITS, [0], {}, epochs=10, longer=2)
    assert (run.epochs, run.milestones, run.evaluate_every) == (20, (8, 16), 50)
    (run,) = trainings(DIGITS, [0], {}, epochs=1)
    assert run.milestones == (1,)


def test_trainings_keep_features_if_asked():
    assert {run.keep for run in trainings(DIGITS, [0, 1], {})} == {("logits",)}
    assert {run.keep for run in trainings(DIGITS, [0, 1], {}, features=True)} == {
        ("features", "logits")
    }


def test_trainings_refuse_another_rhythm():
    with pytest.raises(ParameterError, match="did you mean 'epoch'"):
        trainings(DIGITS, [0], {}, evaluate="epochs")


def test_protocol_table_says_how_each_cell_is_trained():
    cells = [Cell("large", "stl10", "vgg13"), DIGITS]
    arms = {cells[0]: trainings(cells[0], [0, 1], {})}
    arms[DIGITS] = trainings(DIGITS, [0], {}, epochs=5, evaluate="epoch")
    table = protocol_table(arms)
    assert table["schedule"].tolist() == ["x 0.1 after epoch 50, 100", "x 0.2 after epoch 2, 4"]
    assert table["evaluated every"].tolist() == ["5 updates", "epoch"]


@pytest.fixture
def trained(tiny_set, store):
    """A function that trains arms of one seed and gives their results and history."""
    cell = Cell("small", tiny_set, "cnn_small_bn")
    small = dict(epochs=3, lr=0.05, evaluate="epoch", batch_size=16, device="cpu", balanced=True)

    def train(*options):
        runs = [trainings(cell, [0], chosen, **small)[0] for chosen in options]
        results = run_missing(runs, store, use_committed=False)
        return results, load_history(results, store)

    return train


def test_vanishing_weight_changes_nothing_but_batch_norm(trained):
    results, history = trained({"weight": 0.0}, {"weight": 1e-30}, {"weight": 0.5})
    losses = history.pivot(index="epoch", columns="key", values="train_loss")
    plain, vanishing, matched = (losses[key].to_numpy() for key in results["key"])
    assert (plain == vanishing).all()  # the weights are plain training's, bit for bit
    assert (plain[1:] != matched[1:]).all()
    assert results["test_loss"][0] != results["test_loss"][1]  # running statistics saw S2


# --- numbers of runs -----------------------------------------------------------------------------


def frame(arms, **columns):
    """Results of arms in the order given: lists of values by column, nan where a run diverged."""
    runs = [run for arm in arms for run in arm]
    rows = pd.DataFrame({"key": [run.key for run in runs], "seed": [run.seed for run in runs]})
    for name, values in columns.items():
        rows[name] = values
    first = rows[next(iter(columns))]
    rows["status"] = np.where(first.isna(), "diverged", "finished")
    return rows


def arm(weight, seeds=(0, 1, 2), cell=DIGITS):
    return trainings(cell, list(seeds), {"weight": weight})


def test_last_evaluations_average_the_last_ones():
    results = pd.DataFrame({"key": ["a", "b", "c"], "test_error": [0.1, 0.2, math.nan]})
    history = pd.DataFrame(
        [
            ("a", 3, 0.1, 1.0, 4.0),
            ("a", 1, 0.9, 9.0, 9.0),
            ("a", 2, 0.3, 3.0, 6.0),
            ("b", 7, 0.2, 5.0, 5.0),
        ],
        columns=["key", "step", "test_error", "test_loss", "train_loss"],
    )
    found = last_evaluations(results, history, 2).set_index("key")
    assert found.loc["a", "last_accuracy"] == pytest.approx(80)
    assert found.loc["a", "last_accuracy_sd"] == pytest.approx(100 * 0.2 / math.sqrt(2))
    assert found.loc["a", ["last_test_loss", "last_train_loss"]].tolist() == [2, 5]
    assert found.loc["a", "last_test_loss_sd"] == pytest.approx(math.sqrt(2))
    assert found.loc["a", "accuracy"] == pytest.approx(90)
    assert found.loc["b", "last_accuracy"] == pytest.approx(80)  # of the one there is
    assert math.isnan(found.loc["b", "last_accuracy_sd"])
    assert math.isnan(found.loc["c", "last_accuracy"])  # diverged before it was evaluated


def test_last_evaluations_of_runs_without_any():
    results = pd.DataFrame({"key": ["a"], "test_error": [math.nan]})
    found = last_evaluations(results, pd.DataFrame({"key": []}))
    assert math.isnan(found["last_accuracy"][0])
    assert len(found) == 1
    with pytest.raises(ParameterError, match="number = 0"):
        last_evaluations(results, pd.DataFrame({"key": []}), 0)


def test_weight_sweep_has_both_kinds_of_bars():
    arms = {0.2: arm(0.2), 0.0: arm(0.0)}
    results = frame(arms.values(), x=[1.0, 2, 3, math.nan, 5, 6], x_sd=[0.1, 0.2, 0.3, 0.4, 0.5, 1])
    found = weight_sweep(results, arms, "x")
    assert found["weight"].tolist() == [0.0, 0.2]
    assert found["mean"].tolist() == [5.5, 2]
    assert found["half_width"][1] == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert found["one"].tolist() == [5, 1]  # of λ = 0 the first seed diverged
    assert found["one_sd"].tolist() == [0.5, 0.1]


def test_weight_sweep_of_nothing_but_diverged_runs():
    arms = {0.2: arm(0.2, [0])}
    found = weight_sweep(frame(arms.values(), x=[math.nan], x_sd=[math.nan]), arms, "x")
    assert found.drop(columns="weight").isna().all(axis=None)


def test_picked_weights_are_best_and_worst_by_mean_accuracy():
    arms = {w: arm(w, [0, 1]) for w in (0.0, 0.2, 0.4, 0.6)}
    accuracy = [99, 99, 90, 94, 91, 91, 95, 89]  # means 99, 92, 91, 92
    results = frame(arms.values(), last_accuracy=accuracy)
    assert picked_weights(results, arms) == (0.2, 0.4)  # of equal ones the smallest; never λ = 0
    gone = frame(arms.values(), last_accuracy=[*accuracy[:2], *[math.nan] * 6])
    assert picked_weights(gone, arms) is None


def test_class_differences_pair_seeds_class_by_class():
    pair = arm(0.4, [0, 1]), arm(0.0, [0, 1])
    errors = ["[0.5, null, 0.0]", "[0.3, null, 0.0]", "[0.1, null, 0.0]", "[0.1, null, 0.25]"]
    results = frame(pair, per_class_error=errors)
    first, absent, last = class_differences(results, *pair)
    assert absent is None
    assert (first.mean, first.n) == (pytest.approx(-30), 2)
    assert last.mean == pytest.approx(12.5)
    gone = frame(pair, test_error=[math.nan, math.nan, 0.1, 0.1], per_class_error=errors)
    assert class_differences(gone, *pair) == []


# --- tables --------------------------------------------------------------------------------------


def measured(arms, accuracy, loss):
    """Results whose last and final numbers are the same but for a hundredth."""
    results = frame(arms, last_accuracy=accuracy, last_test_loss=loss, last_train_loss=loss)
    return results.assign(
        accuracy=results["last_accuracy"] + 0.01,
        test_loss=results["last_test_loss"],
        last_accuracy_sd=0.05,
    )


KMNIST = Cell("small", "kmnist", "cnn5")
ALL = dict(comparable=True, not_run="run {}")


@pytest.fixture
def kmnist():
    """Arms of table 2, their results: λ = 0.6 is best, 0.2 worst; 0.8 as printed."""
    arms = {(*KMNIST[1:], w): arm(w, cell=KMNIST) for w in (0.0, 0.2, 0.6, 0.8)}
    accuracy = [95.5, 95.6, 95.7, 95.0, 95.1, 95.2, 96.0, 96.1, 96.2, 95.7, 95.85, 95.9]
    loss = [0.18, 0.19, 0.20, 0.19, 0.20, 0.21, 0.15, 0.16, 0.17, 0.165, 0.178, 0.188]
    return arms, measured(arms.values(), accuracy, loss)


def cell_of(table, row, quantity):
    (found,) = table[(table["row"] == row) & table["quantity"].str.startswith(quantity)].to_dict(
        "records"
    )
    return found


def test_weights_table_stands_beside_the_paper(kmnist):
    arms, results = kmnist
    table = weights_table(results, arms, itdm_rows(2), "kmnist", **ALL)
    best = cell_of(table, "best", "accuracy")
    assert (best["λ, paper"], best["λ, here"]) == ("0.8", "0.6")
    assert (best["paper"], best["Δ, paper"]) == ("95.79", "+0.22")
    assert best["here"].startswith("96.10 ± ")
    assert best["here, final"].startswith("96.11 ± ")
    assert best["Δ, here"] == "+0.50 ± 0.00 (n = 3)"
    assert best["p"] == ""  # picked by this very number
    assert best["verdict"] == "same direction"
    worst = cell_of(table, "worst", "accuracy")
    assert (worst["λ, here"], worst["Δ, here"][:5], worst["verdict"]) == (
        "0.2",
        "-0.50",
        "opposite",
    )
    without = cell_of(table, "without", "cross")
    assert (without["paper"], without["verdict"]) == ("0.183", "")


def test_weights_table_compares_the_printed_weight_too(kmnist):
    arms, results = kmnist
    table = weights_table(results, arms, itdm_rows(2), "kmnist", **ALL)
    same = cell_of(table, "λ of the paper's best", "accuracy")
    assert (same["λ, here"], same["verdict"]) == ("0.8", "reproduced")
    assert float(same["p"]) < 0.05
    entropy = cell_of(table, "λ of the paper's best", "cross")
    assert (entropy["Δ, paper"], entropy["verdict"]) == ("-0.013", "reproduced")
    absent = cell_of(table, "λ of the paper's worst", "accuracy")  # λ = 0.4 was not run
    assert (absent["here"], absent["verdict"]) == ("not run", "not comparable")


def test_weights_table_takes_differences_from_the_values(kmnist):
    """Not the printed 0.031, which does not follow (errata 003-1)."""
    arms, results = kmnist
    table = weights_table(results, arms, itdm_rows(2), "kmnist", **ALL)
    assert cell_of(table, "worst", "cross")["Δ, paper"] == "-0.021"


def test_weights_table_says_what_was_not_run(kmnist):
    arms, results = kmnist
    table = weights_table(results, arms, itdm_rows(5), "stl10", **ALL)
    assert len(table) == 3 * 3 * 2  # networks, rows, quantities
    assert set(table["verdict"]) == {"not run"}
    assert set(table["why"]) == {"run stl10"}
    assert set(table["here"]) == set(table["λ, here"]) == {"not run"}


def test_weights_table_of_cells_that_are_not_the_papers(kmnist):
    arms, results = kmnist
    table = weights_table(results, arms, itdm_rows(3), "kmnist", **ALL)
    assert set(table["row"]) == {"without", "best", "worst"}
    assert set(cell_of(table, "best", "accuracy")[name] for name in ("paper", "Δ, paper")) == {"–"}
    assert cell_of(table, "best", "accuracy")["why"] == "the paper has no such cell"
    other = weights_table(results, arms, itdm_rows(2), "kmnist", comparable=False, reason="quick")
    assert cell_of(other, "best", "accuracy")["verdict"] == "not comparable"
    assert cell_of(other, "best", "accuracy")["why"] == "quick"


def test_weights_table_of_diverged_runs(kmnist):
    arms, _ = kmnist
    gone = measured(arms.values(), [95.5, 95.6, 95.7] + [math.nan] * 9, [0.2] * 12)
    table = weights_table(gone, arms, itdm_rows(2), "kmnist", **ALL)
    best = cell_of(table, "best", "accuracy")
    assert (best["λ, here"], best["verdict"]) == ("–", "not comparable")
    assert cell_of(table, "λ of the paper's best", "accuracy")["here"] == "3 diverged"


def test_joint_table_has_a_row_for_each_number_of_kernels():
    cell = Cell("initial", "kmnist", "cnn2")
    arms = {(*cell[1:], 0): arm(0.0, cell=cell)}
    for number in (1, 5):
        options = {"weight": 1.0, "by_class": False, "num_scales": number}
        arms[*cell[1:], number] = trainings(cell, [0, 1, 2], options)
    accuracy = [94.1, 94.2, 94.3, 94.2, 94.5, 94.5, 93.1, 93.2, 93.3]
    loss = [0.22, 0.23, 0.24, 0.19, 0.20, 0.206, 0.22, 0.23, 0.24]
    table = joint_table(measured(arms.values(), accuracy, loss), arms, itdm_rows(1), **ALL)
    assert table["data set"].tolist() == ["qmnist"] * 2 + ["kmnist"] * 4 + ["fashion-mnist"] * 2
    assert set(table[table["data set"] == "qmnist"]["why"]) == {"run qmnist"}
    ours = table[table["data set"] == "kmnist"].set_index(["kernels", "quantity"])
    entropy = ours.loc[1, "cross-entropy (nats)"]
    assert (entropy["without, paper"], entropy["with, paper"]) == ("0.227", "0.196")
    assert (entropy["Δ, paper"], entropy["verdict"]) == ("-0.031", "reproduced")
    assert entropy["Δ, here"].startswith("-0.031 ± ")
    rows = {number: ours.loc[number, "accuracy (%)"] for number in (1, 5)}
    assert rows[1]["verdict"] == "no difference seen"
    assert (rows[5]["verdict"], rows[5]["Δ, here"]) == ("opposite", "-1.00 ± 0.00 (n = 3)")
    assert rows[5]["with, here, final"].startswith("93.21 ± ")


def test_sweep_table_pools_the_seeds_that_finished_everywhere():
    arms = {(*DIGITS[1:], w): arm(w) for w in (0.0, 0.2, 0.4)}
    accuracy = [90.0, 91, 92, 91, 92, 90, 92, 95, math.nan]
    table = sweep_table(measured(arms.values(), accuracy, [1.0] * 9), arms)
    assert table["λ"].tolist() == ["0", "0.2", "0.4", "all > 0"]
    # seeds 0 and 1: means over λ 91.5 and 93.5, minus 90 and 91
    pooled = table["Δ accuracy (%)"][3]
    assert pooled.startswith("+2.00 ± ")
    assert "(n = 2)" in pooled
    assert table["Δ accuracy (%)"][0] == ""
    assert table["Δ accuracy (%)"][1].startswith("+0.00 ± ")
    assert table["accuracy (%)"][2].endswith("(n = 2), 1 diverged")
    assert table.loc[0, ["sd in a run", "sd over seeds"]].tolist() == ["0.05", "1.00"]


def test_sweep_table_of_one_seed():
    arms = {(*DIGITS[1:], w): arm(w, [0]) for w in (0.0, 0.2)}
    table = sweep_table(measured(arms.values(), [90.0, 91], [1.0, 2.0]), arms)
    assert table["sd over seeds"].tolist() == ["", "", ""]
    assert table["Δ cross-entropy (nats)"][1] == "+1.000 (n = 1)"


def test_metrics_table_compares_what_it_is_told():
    arms = {"plain": arm(0.0), "ITDM": arm(0.4)}
    results = frame(arms.values(), x=[1.0, 2, 3, 2, 3, 5], y=[math.nan] * 2 + [1.0] * 4)
    shown = {"first": ("x", 1), "second": ("y", 2)}
    results["status"] = "finished"
    table = metrics_table(results, arms, shown, baseline="plain", compared=["first"])
    assert list(table) == ["arm", "first", "Δ first", "second"]
    assert table["Δ first"].tolist() == ["", "+1.3 ± 1.4 (n = 3), p = 0.057"]
    assert table["second"][0] == "1.00 (n = 1), 2 undefined"
    both = metrics_table(results, arms, shown, baseline="plain", compared=shown)
    assert both["Δ second"][1] == "+0.00 (n = 1)"  # of the seed in which both are defined


@pytest.mark.parametrize(
    ("wrong", "text"),
    [(dict(baseline="plan"), "did you mean 'plain'"), (dict(compared=["firts"]), "'first'")],
)
def test_metrics_table_refuses_unknown_names(wrong, text):
    arms = {"plain": arm(0.0)}
    results = frame(arms.values(), x=[1.0, 2, 3])
    options = dict(baseline="plain", compared=["first"]) | wrong
    with pytest.raises(ParameterError, match=text):
        metrics_table(results, arms, {"first": ("x", 1)}, **options)


def test_describe_says_what_is_missing():
    runs = arm(0.0)
    results = frame([runs], x=[math.nan, 1.0, 2.0])
    assert describe(results, runs, "x", 1) == "1.5 ± 6.4 (n = 2), 1 diverged"
    assert describe(results, [], "x", 1) == "not run"


# --- artefacts -----------------------------------------------------------------------------------


@pytest.fixture
def confident():
    """Logits of 400 samples, a quarter of them wrong, all far too sure."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    logits = 8.0 * np.eye(3)[np.where(np.arange(400) % 4 == 0, (labels + 1) % 3, labels)]
    return {"logits": (logits + rng.normal(size=logits.shape)).astype(np.float32), "labels": labels}


def test_calibration_scores_are_those_of_the_calibration_module(confident):
    found = calibration_scores([None, confident])
    logits, labels = confident["logits"].astype(float), confident["labels"]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = 100 * expected_calibration_error(probabilities, labels)
    assert found["calibration_error"][1] == pytest.approx(expected)
    scaled = cross_fitted_temperature_loss(logits, labels, seed=0)
    assert found["scaled_loss"][1] == pytest.approx(scaled.loss)
    assert found["scaled_calibration_error"][1] == pytest.approx(100 * scaled.calibration_error)
    assert found["temperature"][1] == pytest.approx(np.sqrt(np.prod(scaled.temperatures)))
    assert found["temperature"][1] > 3
    assert found["count"][1].sum() == 400
    assert all(math.isnan(found[name][0]) for name in CALIBRATION_SCORES)
    assert found["count"][0].sum() == 0


def test_hindsight_loss_is_the_lowest_of_all_temperatures(confident):
    found = calibration_scores([confident])["hindsight_loss"][0]
    rows = np.arange(400), confident["labels"]

    def loss(temperature):
        scaled = confident["logits"].astype(float) / temperature
        return (np.log(np.exp(scaled).sum(axis=1)) - scaled[rows]).mean()

    losses = [loss(temperature) for temperature in np.linspace(0.5, 20, 400)]
    assert found == pytest.approx(min(losses), abs=1e-4)
    assert found <= min(losses)
    assert found <= calibration_scores([confident])["scaled_loss"][0]


def test_spread_is_zero_if_the_network_says_the_same_of_all():
    labels = np.array([0, 1, 0, 1])
    same = {"logits": np.tile([1.0, 3.0], (4, 1)), "labels": labels}
    spread = {"logits": np.array([[1.0, 0], [-1, 0], [1, 4], [-1, 4]]), "labels": labels}
    assert calibration_scores([same, spread])["spread"].tolist() == [0, 1.5]


def test_pooled_bins_weigh_runs_by_their_samples():
    found = {
        "count": np.array([[3, 0, 1], [1, 0, 0], [9, 9, 9]]),
        "confidence": np.array([[0.1, np.nan, 0.9], [0.3, np.nan, np.nan], [0, 0, 0]]),
        "accuracy": np.array([[1.0, np.nan, 0.5], [0.0, np.nan, np.nan], [0, 0, 0]]),
    }
    confidence, accuracy, count = pooled_bins(found, [0, 1])
    np.testing.assert_allclose(confidence, [0.15, 0.9])
    np.testing.assert_allclose(accuracy, [0.75, 0.5])
    assert count.tolist() == [4, 1]
    assert pooled_bins(found, [0, 1], fewest=2)[2].tolist() == [4]


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
    first, again = (feature_scores(clusters[:1], max_points=30, seed=seed) for seed in (0, 0))
    assert first["silhouette"] == again["silhouette"]
    assert feature_scores(clusters[:1], max_points=30, seed=1)["silhouette"] != first["silhouette"]


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


def test_run_of_the_notebook_is_one_of_its_trainings():
    """Fields that `trainings` leaves alone are the defaults of `Run`, which keys do not hold."""
    (run,) = trainings(DIGITS, [1], {"weight": 0.4}, epochs=2, lr=0.2, evaluate="epoch")
    same = Run(
        dataset="digits", network="cnn_small", method="distribution_matching", seed=1, epochs=2,
        options={"weight": 0.4}, batch_size=150, lr=0.2, momentum=0.5, schedule="multistep",
        gamma=0.2, milestones=(1, 2),
    )  # fmt: skip
    assert run.key == same.key
