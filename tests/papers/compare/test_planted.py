"""The answer on data in which help and harm are planted, really trained: minutes, so only where
``HARDTRAIN_SLOW`` is set (``-s`` shows the answers)."""

import os

import numpy as np
import pytest
import torch

from hardtrain import RunStore, load_dataset, run_missing
from hardtrain.papers.compare import plan
from hardtrain.papers.compare import tables as compare_tables
from hardtrain.report import tables
from hardtrain.runs.results import load_history, load_timings

pytestmark = pytest.mark.skipif(
    not os.environ.get("HARDTRAIN_SLOW"), reason="trains for minutes; HARDTRAIN_SLOW=1 runs it"
)
ARMS = ("plain", "random_share", "trimming", "active_bias_sampling", "active_bias_weighting",
        "reducible_loss")  # fmt: skip
SEEDS = range(8)


def answered(tmp_path, train, test, epochs, lr=0.05):
    """The ranking by arm, and the answer, on a set as it is."""
    for split, data in (("train", train), ("test", test)):
        images, labels = data.images.squeeze(1).numpy(), data.labels.numpy()
        np.savez(tmp_path / f"planted_{split}.npz", images=images, labels=labels)
    base = {"dataset": str(tmp_path / "planted"), "network": "cnn_small", "batch_size": 32}
    base |= {"lr": lr, "momentum": 0.9, "device": "cpu"}
    arms = plan.planned(base, SEEDS, epochs, small_network="cnn_small")
    cells = {"as it is": {name: arms[name] for name in ARMS}}
    store = RunStore(tmp_path / "runs")
    runs = [run for arm in cells["as it is"].values() for run in arm]
    results = run_missing(runs, store, use_committed=False)
    history, timings = load_history(results, store), load_timings(results, store)
    errors = compare_tables.errors_by_seed(results, cells, tables.TEST_ERROR)
    in_time = compare_tables.at_equal_time(results, history, timings, cells)
    ranking = compare_tables.ranking_table(errors, in_time, timings, cells)
    said = compare_tables.answer(errors, in_time, timings, cells)
    print(ranking.to_string(), errors["as it is"]["plain"].describe(), said, sep="\n")
    return ranking.set_index("arm")["finding"], said


@pytest.fixture
def digits():
    return load_dataset("digits", "train").subset(400), load_dataset("digits", "test")


def test_where_labels_are_wrong_two_strategies_help_and_trimming_hurts(tmp_path, digits):
    train = digits[0].with_label_noise(0.4, torch.Generator().manual_seed(7))
    finding, said = answered(tmp_path, train, digits[1], epochs=30)
    assert finding["Active bias, sampling"] == finding["Reducible loss"] == "better"
    assert finding["Mini-batch trimming"] == "worse"
    better, _, worse = said.partition(" Worse: ")
    assert "better than plain training by more than chance: Reducible loss (-" in better
    assert ", Active bias, sampling (-" in better
    assert worse.startswith("Mini-batch trimming (+")


def test_nobody_beats_plain_training_where_it_makes_no_error(tmp_path, digits):
    """Two digits that any network tells apart: there is nothing to win."""
    train, test = (split.take(split.labels < 2) for split in digits)
    finding, said = answered(tmp_path, train, test, epochs=10)
    assert "better" not in set(finding)
    assert said.startswith("On the data as it is, no strategy beat plain training")
