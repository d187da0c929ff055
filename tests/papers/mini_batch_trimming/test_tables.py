"""Table 1, paper beside ours: who is compared with whom, signs, verdicts."""

import math

import numpy as np
import pandas as pd
import pytest

from hardtrain import Run
from hardtrain.papers.mini_batch_trimming.tables import (
    control_table,
    error_table,
    step_time_table,
)
from hardtrain.report.tables import Protocol

SAME = Protocol(True)


def table_of(gaps, dataset="cifar10", network="resnet34", protocol=SAME):
    """The table after runs of one cell that differ by ``gaps`` (points; None: the treatment
    diverged). Plain training has 17 %, and 0.1 points more with each further seed."""
    arms = {
        (dataset, network, method): [
            Run(dataset, network, method, seed=seed) for seed in range(len(gaps))
        ]
        for method in ("plain", "trimming")
    }
    plain = [0.17 + seed / 1000 for seed in range(len(gaps))]
    pairs = zip(plain, gaps, strict=True)
    errors = [plain, [math.nan if gap is None else base + gap / 100 for base, gap in pairs]]
    rows = [
        {"key": run.key, "seed": run.seed, "test_error": error}
        | {"status": "diverged" if math.isnan(error) else "finished"}
        for runs, values in zip(arms.values(), errors, strict=True)
        for run, error in zip(runs, values, strict=True)
    ]
    return error_table(pd.DataFrame(rows[::-1]), arms, protocol)


def compare(*arguments, **options):
    """The rows by data set and network."""
    return table_of(*arguments, **options).set_index(["data set", "network"])


@pytest.mark.parametrize(
    ("gaps", "word"),
    [
        ([-0.3, -0.4, -0.6], "reproduced"),  # printed: 17.43 -> 17.01
        ([-0.20, -0.21, -0.22], "reproduced"),  # ten runs a side could well have printed that
        ([-2.0, -2.1, -2.2], "other size"),
        ([0.9, 1.0, 1.1], "opposite"),
        ([0.9, 1.0, -1.1], "undecided"),
        ([-1.0, -1.1], "not comparable"),  # two seeds
        ([-1.0, -1.1, None], "not comparable"),
    ],
)
def test_error_table_gives_the_verdict(gaps, word):
    row = compare(gaps).loc[("cifar10", "resnet34")]
    assert row["verdict"] == word
    assert (row["plain, paper (%)"], row["trimming, paper (%)"]) == ("17.43", "17.01")
    assert row["Δ, paper"] == "-0.42"
    assert row["plain, here (%)"].startswith("17.")
    assert row["Δ, here"].startswith("-" if gaps[0] < 0 else "+")


def test_error_table_holds_each_level_against_ten_runs():
    # 17.0, 17.1, 17.2: the mean of ten such runs lies in 17.1 ± 0.28, of one run in 17.1 ± 0.50
    ten = Protocol(True, num_runs=10)
    assert compare([-0.1, 0.0, 0.1], protocol=ten)["levels"].iloc[2] == (
        "plain: not reproduced, trimming: reproduced"
    )
    assert compare([-0.1, 0.0, 0.1])["levels"].iloc[2] == "reproduced"
    assert compare([-0.1, 0.0, 0.1])["levels"].iloc[0] == "not run"


def test_error_table_corrects_its_p_values_and_counts_the_questions():
    table = table_of([-0.3, -0.4, -0.6])
    assert table.attrs["questions"] == 1
    assert table_of([-0.3])["Δ, here"].iloc[2] == "-0.30 (n = 1)"
    assert table_of([-0.3]).attrs["questions"] == 0


def test_error_table_takes_the_printed_difference_with_its_sign():
    row = compare([0.08, 0.09, 0.10], network="densenet121").loc[("cifar10", "densenet121")]
    assert (row["Δ, paper"], row["verdict"]) == ("+0.09", "reproduced")
    row = compare([-1.08, -1.09, -1.10], network="densenet121").loc[("cifar10", "densenet121")]
    assert row["verdict"] == "opposite"


def test_error_table_says_why_it_is_not_comparable():
    row = compare([-0.9, -1.0, -1.2], protocol=Protocol(False, "20 epochs, not 150"))
    row = row.loc[("cifar10", "resnet34")]
    assert (row["verdict"], row["why"]) == ("not comparable", "20 epochs, not 150")
    assert row["Δ, here"].startswith("-1.03 ± ")


def test_error_table_shows_what_only_we_ran_and_what_was_not_run():
    table = compare([-0.9, -1.0, -1.2], "digits", "cnn_small")
    assert len(table) == 7
    row = table.loc[("svhn", "densenet121")]
    assert row[["plain, here (%)", "trimming, here (%)", "verdict"]].tolist() == ["not run"] * 3
    assert (row["Δ, here"], row["why"]) == ("", "run -p profile paper -y 'datasets: [svhn]'")
    ours = table.loc[("digits", "cnn_small")]
    assert ours["plain, paper (%)"] == ours["trimming, paper (%)"] == ours["Δ, paper"] == "–"
    assert ours["trimming, here (%)"].startswith("16.07 ± ")
    assert (ours["verdict"], ours["why"]) == ("not comparable", "the paper has no such cell")


def test_error_table_calls_an_arm_that_diverged_diverged():
    row = compare([None, None, None]).loc[("cifar10", "resnet34")]
    assert row["trimming, here (%)"] == "3 diverged"
    assert row["verdict"] == "not comparable"
    assert "finished" in row["why"]


def test_control_table_tells_hard_samples_from_fewer():
    methods = {"plain": {}, "trimming": {"method": "trimming"}}
    methods["random share"] = {"method": "trimming", "options": {"share": "random"}}
    group = {
        name: [Run("digits", "cnn_small", seed=seed, **method) for seed in range(3)]
        for name, method in methods.items()
    }
    errors = {"plain": (3, 4, 5), "trimming": (2, 3.5, 4.8), "random share": (4, 4.5, 6)}
    rows = [
        {"key": run.key, "seed": run.seed, "status": "finished", "test_error": error / 100}
        | {"train_loss": error}
        for name, arm in group.items()
        for run, error in zip(arm, errors[name], strict=True)
    ]
    empty = dict.fromkeys(methods, ())
    table = control_table(pd.DataFrame(rows), {"clean": group, "20 % wrong": empty})
    assert table["trained on"].tolist() == ["clean"] * 3 + ["20 % wrong"] * 3
    assert table["comparison"].tolist()[:3] == [
        "trimming minus plain", "random share minus plain", "trimming minus random share",
    ]  # fmt: skip
    found = table["difference (points)"]
    assert [text.split(" ")[0] for text in found[:3]] == ["-0.57", "+0.83", "-1.40"]
    assert found[3:].tolist() == [""] * 3
    assert table["second (%)"].iloc[2].startswith("4.83 ± ")
    assert table["training loss of the second (nats)"].iloc[0].startswith("4.00 ± ")
    assert table["first (%)"].iloc[4] == "not run"
    assert table.attrs["questions"] == 3
    # s_d = 0.404, so (4.3027 + 1.0607) * 0.404 / sqrt(3)
    assert table["seen with power 80 % (points)"].iloc[0] == "1.25"


def test_step_time_table_gives_means_over_rounds_and_a_whole_training():
    rounds = np.array([[1.0, 0.5], [1.2, 0.5], [1.1, 0.8]])
    kinds = ("trim", "trim_batch_norm", "trimmed_backward")
    measured = {"keeps": np.array([1.0, 0.2])} | {kind: rounds + i for i, kind in enumerate(kinds)}
    table = step_time_table(measured, np.array([1.0, 1.0, 0.6]))
    assert table["part that counts (%)"].tolist() == ["100", "20", "whole training"]
    assert table["trim"].tolist()[0].startswith("1.10 ± 0.25 (n = 3)")
    assert table["trim"].tolist()[1].startswith("0.60 ± 0.43")
    assert table["trim"].iloc[2] == "1.00"  # median 1.1 twice, and half-way to 0.5
    assert table["trimmed_backward"].iloc[2] == "3.00"
