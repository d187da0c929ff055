"""Which trainings the tables need, against the paper's protocol."""

import pytest

from hardtrain import ParameterError, Run, load_history, run_missing
from hardtrain.papers.distribution_matching.plan import (
    Cell,
    follows_paper,
    joint_and_class,
    plan,
    trainings,
)

DIGITS = Cell("small", "digits", "cnn_small")


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


def test_joint_and_class_lend_each_other_a_cell():
    joint, by_class = Cell("initial", "qmnist", "cnn2"), Cell("large", "stl10", "vgg13")
    assert joint_and_class([joint, by_class]) == ([joint], [by_class])
    assert joint_and_class([joint]) == ([joint], [joint])
    assert joint_and_class([by_class, by_class]) == ([by_class], [by_class, by_class])


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
    kept = [run.keep for run in trainings(DIGITS, [0, 1], {}, features=[1, 2])]
    assert kept == [("logits",), ("features", "logits")]


FASHION = Cell("initial", "fashion-mnist", "cnn2")


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 49},
        {"lr": 0.02},
        {"evaluate": "epoch"},
        {"train_size": 6000},
        {"precision": "bfloat16"},
        {"batch_size": 100},
        {"balanced": False},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_run_with_another_protocol_is_not_the_papers(changes):
    assert follows_paper(FASHION, trainings(FASHION, [7], {"weight": 1.0}, balanced=True)[0])
    (run,) = trainings(FASHION, [7], {"weight": 1.0}, **{"balanced": True} | changes)
    assert not follows_paper(FASHION, run)


def test_a_cell_that_the_paper_lacks_is_not_the_papers():
    other = FASHION._replace(network="cnn5")
    assert not follows_paper(other, trainings(other, [7], {}, balanced=True)[0])


def test_trainings_refuse_another_rhythm():
    with pytest.raises(ParameterError, match="did you mean 'epoch'"):
        trainings(DIGITS, [0], {}, evaluate="epochs")


def test_cell_has_a_label_without_folders():
    assert Cell("small", "/data/mine", "cnn5").label == "mine, cnn5"


def test_run_of_the_notebook_is_one_of_its_trainings():
    """Fields that `trainings` leaves alone are the defaults of `Run`, which keys do not hold."""
    (run,) = trainings(DIGITS, [1], {"weight": 0.4}, epochs=2, lr=0.2, evaluate="epoch")
    same = Run(
        dataset="digits", network="cnn_small", method="distribution_matching", seed=1, epochs=2,
        options={"weight": 0.4}, batch_size=150, lr=0.2, momentum=0.5, schedule="multistep",
        gamma=0.2, milestones=(1, 2),
    )  # fmt: skip
    assert run.key == same.key


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"weight": 0.0, "log_distance": True}, "6a221b09ea67730c915e"),
        (
            {"weight": 1.0, "by_class": False, "num_scales": 5, "reading": "paper"},
            "6bd92b931ee53ec30e29",
        ),
    ],
)
def test_trainings_still_have_the_keys_of_runs_that_took_hours(options, key):
    """Of the trainings of table 1 on Fashion-MNIST at the paper's whole protocol."""
    cell = Cell("initial", "fashion-mnist", "cnn2")
    fields = dict(train_size=0, test_size=0, batch_size=150, balanced=True, device="auto")
    fields |= dict(epochs=0, lr=0.0, evaluate="steps", data_root=None)
    (run,) = trainings(cell, [0], options, features=[0], **fields)
    assert run.key == key


def test_vanishing_weight_changes_nothing_but_batch_norm(tiny_set, store):
    cell = Cell("small", tiny_set, "cnn_small_bn")
    small = dict(epochs=3, lr=0.05, evaluate="epoch", batch_size=16, device="cpu", balanced=True)
    runs = [trainings(cell, [0], {"weight": weight}, **small)[0] for weight in (0.0, 1e-30, 0.5)]
    results = run_missing(runs, store, use_committed=False)
    losses = load_history(results, store).pivot(index="epoch", columns="key", values="train_loss")
    plain, vanishing, matched = (losses[key].to_numpy() for key in results["key"])
    assert (plain == vanishing).all()  # the weights are plain training's, bit for bit
    assert (plain[1:] != matched[1:]).all()
    assert results["test_loss"][0] != results["test_loss"][1]  # running statistics saw S2
