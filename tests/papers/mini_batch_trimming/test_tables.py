"""Table 1, paper beside ours: who is compared with whom, signs, verdicts."""

import math

import pandas as pd
import pytest

from hardtrain import Run
from hardtrain.papers.mini_batch_trimming.tables import error_table
from hardtrain.report.tables import Protocol

SAME = Protocol(True)


def compare(gaps, dataset="cifar10", network="resnet34", protocol=SAME, root="an/empty/folder"):
    """The rows by data set and network, after runs of one cell that differ by ``gaps`` (points;
    None: the treatment diverged)."""
    arms = {
        (dataset, network, method): [
            Run(dataset, network, method, seed=seed) for seed in range(len(gaps))
        ]
        for method in ("plain", "trimming")
    }
    errors = [[0.17] * len(gaps), [math.nan if gap is None else 0.17 + gap / 100 for gap in gaps]]
    rows = [
        {"key": run.key, "seed": run.seed, "test_error": error}
        | {"status": "diverged" if math.isnan(error) else "finished"}
        for runs, values in zip(arms.values(), errors, strict=True)
        for run, error in zip(runs, values, strict=True)
    ]
    results = pd.DataFrame(rows[::-1])
    return error_table(results, arms, protocol, root).set_index(["data set", "network"])


@pytest.mark.parametrize(
    ("gaps", "word"),
    [
        ([-0.3, -0.4, -0.6], "reproduced"),  # printed: 17.43 -> 17.01
        ([-0.20, -0.21, -0.22], "same direction"),
        ([0.9, 1.0, 1.1], "opposite"),
        ([-1.0, -1.1], "not comparable"),  # two seeds
        ([-1.0, -1.1, None], "not comparable"),
    ],
)
def test_error_table_gives_the_verdict(gaps, word):
    row = compare(gaps).loc[("cifar10", "resnet34")]
    assert row["verdict"] == word
    assert (row["plain, paper (%)"], row["trimming, paper (%)"]) == ("17.43", "17.01")
    assert row["Δ, paper"] == "-0.42"
    assert row["plain, here (%)"].startswith("17.00 ± 0.00")
    assert row["Δ, here"].startswith("-" if gaps[0] < 0 else "+")


def test_error_table_takes_the_printed_difference_with_its_sign():
    row = compare([0.08, 0.09, 0.10], network="densenet121").loc[("cifar10", "densenet121")]
    assert (row["Δ, paper"], row["verdict"]) == ("+0.09", "reproduced")
    row = compare([-0.08, -0.09, -0.10], network="densenet121").loc[("cifar10", "densenet121")]
    assert row["verdict"] == "opposite"


def test_error_table_says_why_it_is_not_comparable():
    row = compare([-0.9, -1.0, -1.2], protocol=Protocol(False, "20 epochs, not 150"))
    row = row.loc[("cifar10", "resnet34")]
    assert (row["verdict"], row["why"]) == ("not comparable", "20 epochs, not 150")
    assert row["Δ, here"].startswith("-1.03 ± ")


def test_error_table_shows_what_only_we_ran_and_what_was_not_run(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"svhn_{split}.npz").touch()
    table = compare([-0.9, -1.0, -1.2], "digits", "cnn_small", root=str(tmp_path))
    assert len(table) == 7
    for dataset, why in (("svhn", "run -p profile paper -y 'datasets: [svhn]'"),
                         ("cifar100", "data not at hand")):  # fmt: skip
        row = table.loc[(dataset, "densenet121")]
        assert row[["plain, here (%)", "trimming, here (%)", "verdict"]].tolist() == ["not run"] * 3
        assert (row["Δ, here"], row["why"]) == ("", why)
    ours = table.loc[("digits", "cnn_small")]
    assert ours["plain, paper (%)"] == ours["trimming, paper (%)"] == ours["Δ, paper"] == "–"
    assert ours["trimming, here (%)"].startswith("15.97 ± ")
    assert (ours["verdict"], ours["why"]) == ("not comparable", "the paper has no such cell")


def test_error_table_calls_an_arm_that_diverged_diverged():
    row = compare([None, None, None]).loc[("cifar10", "resnet34")]
    assert row["trimming, here (%)"] == "3 diverged"
    assert row["verdict"] == "not comparable"
    assert "finished" in row["why"]
