"""The plan of the comparison: its arms, as many samples backward for each, the unbalanced part."""

import numpy as np
import pandas as pd
import pytest

from hardtrain import ParameterError, load_dataset
from hardtrain.papers.compare import plan
from hardtrain.training import lookup, methods

BASE = {"dataset": "digits", "network": "mlp", "batch_size": 32}


def test_every_arm_is_a_method_with_a_label_of_its_own():
    labels = [plan.label(name) for name in plan.ARMS]
    assert len(set(labels)) == len(plan.ARMS) == 20
    for arm in plan.ARMS.values():
        lookup.checked_options(arm.method, arm.options)
    assert plan.arms_table()["arm"].tolist() == labels
    variants = {arm.options["variant"] for arm in plan.ARMS.values() if "variant" in arm.options}
    assert variants == set(methods.ACTIVE_BIAS_VARIANTS) - {"uniform"}


def test_the_baselines_are_among_any_arms():
    assert list(plan.chosen(["trimming"])) == ["plain", "random_share", "trimming"]
    runs = plan.planned(BASE, [0], 10, small_network="mlp", arms=["reducible_loss"])
    assert list(runs) == ["plain", "random_share", "reducible_loss"]
    # each is evaluated about as often
    assert [arm[0].epochs // arm[0].evaluate_every for arm in runs.values()] == [10, 10, 10]


def test_settings_without_results_are_left_out():
    settings = {
        name: plan.planned(BASE | {"label_noise": noise}, [0, 1], 10, small_network="mlp")
        for name, noise in (("as it is", 0.0), ("wrong labels", 0.3))
    }
    one = pd.DataFrame({"key": [settings["wrong labels"]["focal"][1].key]})
    assert list(plan.with_results(settings, one)) == ["wrong labels"]
    assert list(plan.with_results(settings, one[:0])) == ["as it is", "wrong labels"]


def test_at_equal_epochs_the_learning_rate_falls_and_the_share_is_that_of_pruning():
    arms = plan.at_equal_epochs(BASE, [0, 1], 12)
    assert {(run.epochs, run.schedule) for arm in arms.values() for run in arm} == {(12, "cosine")}
    methods_of = [arm[0].method for arm in arms.values()]
    assert methods_of == ["plain", "dynamic_pruning", "dynamic_pruning", "random_share"]
    assert [arm[0].options.get("reading") for arm in arms.values()][1:3] == ["paper", "code"]


def test_arms_are_paired_by_seed_and_share_their_fields():
    arms = plan.planned(BASE | {"lr": 0.02}, [0, 3], 10, small_network="cnn_small")
    assert list(arms) == list(plan.ARMS)
    assert {run.lr for arm in arms.values() for run in arm} == {0.02}
    assert all([run.seed for run in arm] == [0, 3] for arm in arms.values())
    (small,) = {run.options["small_network"] for run in arms["reducible_loss"]}
    assert (small, arms["reducible_loss"][0].options["small_epochs"]) == ("cnn_small", 10)


def test_arms_send_as_many_samples_backward_where_that_is_known():
    for name, arm in plan.planned(BASE, [0], 12, small_network="mlp").items():
        assert arm[0].epochs * plan.ARMS[name].share == pytest.approx(12, abs=0.5)
        if "share" in plan.ARMS[name].options:
            assert plan.ARMS[name].options["share"] == plan.ARMS[name].share


def test_minutes_choose_epochs_and_seeds():
    def spent(chosen, seconds):
        epochs, seeds = chosen
        arms = sum(arm.cost for arm in plan.ARMS.values()) * sum(plan.SETTINGS.values())
        longer = sum(arm.cost for arm in plan.EQUAL_EPOCHS.values()) * plan.LONGER
        return epochs * len(seeds) * seconds * (arms + longer) / 60

    chosen = {minutes: plan.within(minutes, 0.05) for minutes in (0.01, 1, 2, 5, 9, 10_000)}
    for minutes, (epochs, seeds) in chosen.items():
        assert 2 <= epochs <= 30
        assert 3 <= len(seeds) <= 10
        if 1 <= minutes <= 9:
            assert 0.7 * minutes < spent((epochs, seeds), 0.05) <= minutes
    sizes = [epochs * len(seeds) for epochs, seeds in chosen.values()]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (6, 300)
    few = plan.within(1, 0.05, ["trimming"], ["as it is"])
    assert few[0] * len(few[1]) > 4 * chosen[1][0] * len(chosen[1][1])
    with pytest.raises(ParameterError, match="minutes = 0 is not more than 0"):
        plan.within(0, 0.05)


def test_classes_of_the_unbalanced_part_get_rarer_by_one_factor():
    labels = load_dataset("digits", "train").subset(1000).labels.numpy()
    found = plan.long_tailed_indices(datasets=["digits"], train_size=1000, ratio=8.0)
    assert found["num_samples"] == 1000
    assert np.array_equal(np.bincount(labels[found["indices"]]), found["counts"])
    assert len(set(found["indices"].tolist())) == len(found["indices"])
    assert found["counts"][0] / found["counts"][-1] == pytest.approx(8, rel=0.05)
    factors = found["counts"][1:] / found["counts"][:-1]
    assert factors == pytest.approx(8 ** (-1 / 9), rel=0.06)


def test_no_class_of_the_unbalanced_part_is_empty():
    found = plan.long_tailed_indices(datasets=["digits"], train_size=50, ratio=1000.0)
    assert found["counts"].min() == 1
    with pytest.raises(ParameterError, match=r"ratio = 0\.5 is not at least 1"):
        plan.long_tailed_indices(datasets=["digits"], train_size=50, ratio=0.5)
