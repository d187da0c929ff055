"""The plan of the comparison: its arms, as many samples backward for each, the unbalanced part."""

import math
from types import SimpleNamespace

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


@pytest.mark.parametrize("updates", [1, 13, 500])
def test_time_chooses_epochs_and_seeds(updates):
    enough = max(10, math.ceil(plan.ENOUGH / updates))
    chosen = {seconds: plan.within(seconds, 0.125, updates) for seconds in (0, 3, 20, 60, 400, 9e6)}
    for seconds, (epochs, seeds) in chosen.items():
        assert 2 <= epochs <= 3 * enough
        assert seeds == list(range(len(seeds)))
        assert 5 <= len(seeds) <= 10
        assert len(seeds) == 5 or epochs >= enough
        spent = epochs * len(seeds) * 0.125
        assert spent <= seconds or (epochs, len(seeds)) == (2, 5)
        if epochs > 9 and seconds < 9e6:
            assert spent > 0.8 * seconds or epochs == 3 * enough
    sizes = [epochs * len(seeds) for epochs, seeds in chosen.values()]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (10, 30 * enough)


class Book:
    """Of a notebook what `plan.chosen_for` needs; an epoch of plain training takes ``seconds``,
    a quarter of that at half the side."""

    def __init__(self, seconds, changed=(), image_size=0, trains=True):
        self.p = SimpleNamespace(epochs=10, seeds=[0, 1], changed=changed, image_size=image_size)
        self.caption, self.store, self.trains = (
            "quick profile: 10 epochs, 2 seeds, all",
            None,
            trains,
        )
        self.seconds, self.measured = seconds, []

    def run(self, runs):
        rows = [(r.key, self.seconds * r.epochs * ((r.image_size or 64) / 64) ** 2) for r in runs]
        self.measured += rows
        return pd.DataFrame(rows if self.trains else [], columns=["key", "seconds"])


def chosen(monkeypatch, minutes, side=28, network="mlp", **about):
    monkeypatch.setattr(plan, "load_timings", lambda measured, _: measured)
    base = BASE | {"image_size": about.get("image_size", 0), "network": network}
    book, num_train = Book(**about), {"as it is": 400, "wrong labels": 400, "unbalanced": 200}
    return book, plan.chosen_for(minutes, book, base, num_train, side, "mlp")


def test_minutes_are_kept_and_said(monkeypatch):
    book, found = chosen(monkeypatch, 20, seconds=0.1)
    tried = sum(seconds for _, seconds in book.measured[1:])  # of every arm, two epochs
    assert len(book.measured) == 1 + len(plan.ARMS)
    longer = plan.LONGER * sum(arm.share for arm in plan.EQUAL_EPOCHS.values()) * 0.1
    each = tried / 2 * 2.5 + longer  # settings, by images
    planned = each * found["epochs"] * len(found["seeds"])
    assert 700 < planned + plan.DRAWING + (1 + plan.ROUNDS) * tried < 1200
    assert found["image_size"] == 0
    count = f"{found['epochs']} epochs, {len(found['seeds'])} seeds"
    assert book.caption == f"quick profile: {count} (in 20 minutes), all"


def test_large_images_are_made_smaller_where_time_does_not_suffice(monkeypatch):
    book, found = chosen(monkeypatch, 9, side=64, seconds=0.3)
    assert found["image_size"] == 32
    assert book.caption.endswith(", images resized to 32x32")
    assert chosen(monkeypatch, 3, side=64, seconds=0.3)[1]["image_size"] == 16
    assert chosen(monkeypatch, 900, side=64, seconds=0.3)[1]["image_size"] == 0
    # the user's choice, and a network that takes 28x28 and 32x32 only
    assert chosen(monkeypatch, 2, side=0, seconds=0.3, image_size=48)[1]["image_size"] == 48
    assert chosen(monkeypatch, 2, side=64, seconds=0.3, network="cnn2")[1]["image_size"] == 32


def test_minutes_that_are_too_few_are_said(monkeypatch, capsys):
    _, found = chosen(monkeypatch, 1, side=0, seconds=1.0)
    assert (found["epochs"], len(found["seeds"])) == (2, 5)
    assert "1 minutes are too few: this takes about" in capsys.readouterr().out


def test_minutes_refuse_epochs_beside_them_and_choose_nothing_where_nothing_is_trained(monkeypatch):
    with pytest.raises(ParameterError, match="minutes = 5 chooses epochs: give one of the two"):
        chosen(monkeypatch, 5, seconds=1.0, changed=["datasets", "epochs"])
    with pytest.raises(ParameterError, match="minutes = 0 is not more than 0"):
        chosen(monkeypatch, 0, seconds=1.0)
    assert chosen(monkeypatch, 5, seconds=1.0, trains=False)[1] == {}


def test_test_images_are_counted_by_class():
    given = {"datasets": ["digits"], "train_size": 0, "ratio": 8.0}
    labels = load_dataset("digits", "test").labels
    assert plan.long_tailed_indices(**given)["test_counts"].tolist() == labels.bincount().tolist()
    assert plan.long_tailed_indices(**given, test_size=50)["test_counts"].tolist() == [5] * 10


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
