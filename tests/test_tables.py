"""Tables against numbers worked out by hand: who is compared with whom, signs, gaps, verdicts."""

import math

import numpy as np
import pandas as pd
import pytest

from hardtrain import Run
from hardtrain.tables import arms_table, comparison_table, curves, describe, difference

T2 = 4.302653  # quantile 0.975 of Student's t with 2 degrees of freedom


def arm(method="plain", seeds=(0, 1, 2), dataset="digits", network="cnn_small", epochs=3):
    return [
        Run(dataset=dataset, network=network, method=method, seed=seed, epochs=epochs)
        for seed in seeds
    ]


def rows(runs, errors, losses=None):
    """Results of runs; an error of ``None`` is a diverged run."""
    return [
        {
            "key": run.key,
            "seed": run.seed,
            "status": "diverged" if error is None else "finished",
            "test_error": math.nan if error is None else error,
            "test_loss": math.nan if error is None else (losses or errors)[i],
        }
        for i, (run, error) in enumerate(zip(runs, errors, strict=True))
    ]


PLAIN, TRIMMED = arm("plain"), arm("trimming")


@pytest.fixture
def results():
    """Differences -1, -2 and 0 points; the rows stand in another order than the seeds."""
    plain = rows(PLAIN, [0.10, 0.12, 0.14], [1.0, 2.0, 3.0])
    trimmed = rows(TRIMMED, [0.09, 0.10, 0.14], [1.5, 1.5, 1.5])
    return pd.DataFrame([trimmed[2], plain[0], trimmed[0], plain[2], plain[1], trimmed[1]])


# --- describe and difference ---------------------------------------------------------------------


def test_describe_gives_mean_and_interval_in_percent(results):
    half = T2 * 2 / math.sqrt(3)
    assert describe(results, PLAIN, "test_error") == f"12.00 ± {half:.2f} (n = 3)"
    assert half == pytest.approx(4.97, abs=0.005)
    assert describe(results, TRIMMED, "test_loss", scale=1) == "1.50 ± 0.00 (n = 3)"


def test_describe_counts_diverged_runs_and_leaves_them_out():
    frame = pd.DataFrame(rows(PLAIN, [0.10, None, 0.30]))
    half = 12.706205 * 10 * math.sqrt(2) / math.sqrt(2)
    assert describe(frame, PLAIN, "test_error") == f"20.00 ± {half:.2f} (n = 2), 1 diverged"
    frame = pd.DataFrame(rows(PLAIN, [None, None, None]))
    assert describe(frame, PLAIN, "test_error") == "3 diverged"
    assert describe(frame, TRIMMED, "test_error") == "not run"


def test_describe_counts_a_run_that_stands_twice_once(results):
    twice = pd.concat([results, results])
    assert describe(twice, PLAIN, "test_error") == describe(results, PLAIN, "test_error")


def test_difference_is_treatment_minus_baseline_by_seed(results):
    found = difference(results, TRIMMED, PLAIN, "test_error")
    assert found.mean == pytest.approx(-1)
    assert found.half_width == pytest.approx(T2 / math.sqrt(3), rel=1e-5)  # by position: wider
    assert found.n == 3
    assert difference(results, PLAIN, TRIMMED, "test_error").mean == pytest.approx(1)
    assert difference(results, TRIMMED, PLAIN, "test_loss", scale=1).mean == pytest.approx(-0.5)


def test_difference_leaves_out_seeds_that_one_side_lacks():
    frame = pd.DataFrame(rows(PLAIN, [0.10, 0.20, None]) + rows(TRIMMED[1:], [0.15, 0.01]))
    found = difference(frame, TRIMMED, PLAIN, "test_error")
    assert (found.n, found.mean) == (1, pytest.approx(-5))
    nothing = pd.DataFrame(rows(PLAIN[:1], [0.1]) + rows(TRIMMED[1:], [0.1, 0.1]))
    assert difference(nothing, TRIMMED, PLAIN, "test_error") is None


def test_arms_table_compares_each_arm_with_the_baseline(results):
    table = arms_table(results, {"trimmed": TRIMMED, "none": PLAIN}, baseline="none")
    assert table.columns.tolist() == [
        "arm", "test error (%)", "difference (points)", "p", "test loss (nats)"
    ]  # fmt: skip
    trimmed, plain = table.to_dict("records")
    assert trimmed["arm"] == "trimmed"
    assert trimmed["test error (%)"].startswith("11.00 ± ")
    assert trimmed["difference (points)"] == "-1.00 ± 2.48 (n = 3)"
    assert float(trimmed["p"]) == pytest.approx(0.2254, abs=0.0006)  # t = -sqrt(3), 2 degrees
    assert trimmed["test loss (nats)"] == "1.50 ± 0.00 (n = 3)"
    assert plain["difference (points)"] == plain["p"] == ""
    assert plain["test loss (nats)"] == "2.00 ± 2.48 (n = 3)"


def test_arms_table_writes_tiny_p_as_a_bound():
    frame = pd.DataFrame(rows(PLAIN, [0.30, 0.31, 0.32]) + rows(TRIMMED, [0.10, 0.11, 0.1201]))
    table = arms_table(frame, {"plain": PLAIN, "trimmed": TRIMMED}, baseline="plain")
    assert table["p"].tolist() == ["", "< 0.001"]


# --- curves --------------------------------------------------------------------------------------


def history_of(run, errors):
    return [{"key": run.key, "epoch": t + 1, "test_error": e} for t, e in enumerate(errors)]


def test_curves_are_one_row_a_run_in_the_order_of_the_arm():
    lines = history_of(PLAIN[2], [0.7, 0.6, 0.5]) + history_of(PLAIN[0], [0.3, 0.2, 0.1])
    history = pd.DataFrame(lines + history_of(TRIMMED[0], [0.9, 0.9, 0.9]))
    epochs, errors = curves(history, PLAIN, "test_error")
    assert epochs.tolist() == [1, 2, 3]
    assert errors.tolist() == [[0.3, 0.2, 0.1], [0.7, 0.6, 0.5]]


@pytest.mark.parametrize("others", [[0.3, 0.2, 0.1], [0.3]])
def test_curves_leave_out_runs_that_did_not_reach_the_end(others):
    history = pd.DataFrame(history_of(PLAIN[0], [0.7, 0.6]) + history_of(PLAIN[1], others))
    _, errors = curves(history, PLAIN, "test_error")
    assert errors.tolist() == [others] * (len(others) == 3)


# --- the comparison with the paper ---------------------------------------------------------------

PRINTED = pd.DataFrame(
    [("cifar10", "resnet34", 17.0, 16.0), ("svhn", "resnet34", 5.0, 5.5)],
    columns=["dataset", "network", "baseline", "treatment"],
)


def compare(gaps, *, dataset="cifar10", network="resnet34", printed=PRINTED, **options):
    """The row of one cell whose runs differ by ``gaps`` (points; None: the treatment diverged)."""
    seeds = range(len(gaps))
    cells = {
        (dataset, network, name): arm(name, seeds, dataset, network)
        for name in ("plain", "trimming")
    }
    plain, trimmed = cells.values()
    errors = [None if gap is None else 0.17 + gap / 100 for gap in gaps]
    frame = pd.DataFrame(rows(plain, [0.17] * len(gaps)) + rows(trimmed, errors))
    options = {"comparable": True} | options
    table = comparison_table(frame, cells, printed, treatment="trimming", **options)
    return table[table["data set"] == dataset].to_dict("records")[0]


@pytest.mark.parametrize(
    ("gaps", "word"),
    [
        ([-0.9, -1.0, -1.2], "reproduced"),  # printed: -1
        ([-0.20, -0.21, -0.22], "same direction"),
        ([0.9, 1.0, 1.1], "opposite"),
        ([-1.0, 0.0, 1.1], "no difference seen"),
        ([-1.0, -1.1], "not comparable"),  # two seeds
        ([-1.0, -1.1, None], "not comparable"),
    ],
)
def test_comparison_gives_the_verdict(gaps, word):
    row = compare(gaps)
    assert row["verdict"] == word
    assert row["paper: plain (%)"] == "17.00"
    assert row["paper: trimming (%)"] == "16.00"
    assert row["here: plain (%)"].startswith("17.00 ± 0.00")


def test_comparison_takes_the_printed_difference_with_its_sign():
    worse = compare([0.4, 0.5, 0.6], dataset="svhn")  # printed: 5.0 -> 5.5
    assert (worse["verdict"], worse["paper: trimming (%)"]) == ("reproduced", "5.50")
    assert worse["difference (points)"] == "+0.50 ± 0.25 (n = 3)"
    assert "printed +0.5" in worse["why"]
    assert compare([-0.4, -0.5, -0.6], dataset="svhn")["verdict"] == "opposite"


def test_comparison_says_why_it_is_not_comparable():
    row = compare([-0.9, -1.0, -1.2], comparable=False, reason="20 epochs, not 150")
    assert row["verdict"] == "not comparable"
    assert row["why"] == "20 epochs, not 150"
    assert row["difference (points)"].startswith("-1.03 ± ")


def test_comparison_shows_what_only_we_ran_and_what_was_not_run():
    cells = {
        ("digits", "cnn_small", "plain"): PLAIN,
        ("digits", "cnn_small", "trimming"): TRIMMED,
    }
    frame = pd.DataFrame(rows(PLAIN, [0.10, 0.12, 0.14]) + rows(TRIMMED, [0.09, 0.10, 0.14]))
    table = comparison_table(
        frame, cells, PRINTED, treatment="trimming", comparable=True,
        not_run=lambda name: f"no {name} here",
    )  # fmt: skip
    assert table["data set"].tolist() == ["cifar10", "svhn", "digits"]
    for row in table.to_dict("records")[:2]:
        assert row["here: plain (%)"] == row["here: trimming (%)"] == row["verdict"] == "not run"
        assert row["difference (points)"] == row["p"] == ""
        assert row["why"] == f"no {row['data set']} here"
    ours = table.to_dict("records")[2]
    assert ours["paper: plain (%)"] == ours["paper: trimming (%)"] == "–"
    assert ours["here: trimming (%)"].startswith("11.00 ± ")
    assert ours["verdict"] == "not comparable"
    assert ours["why"] == "the paper has no such cell"


def test_comparison_tells_networks_apart():
    printed = PRINTED.assign(network=["resnet34", "densenet121"], dataset="cifar10")
    row = compare([-0.9, -1.0, -1.2], printed=printed)
    assert row["paper: plain (%)"] == "17.00"
    row = compare([0.4, 0.5, 0.6], printed=printed, network="densenet121")
    # one row for each printed pair; the first is the other network's
    assert (row["network"], row["here: plain (%)"]) == ("resnet34", "not run")


def test_comparison_calls_an_arm_that_diverged_diverged():
    row = compare([None, None, None])
    assert row["here: trimming (%)"] == "3 diverged"
    assert row["verdict"] == "not comparable"
    assert "finished" in row["why"]


def test_comparison_row_order_does_not_matter():
    cells = {("cifar10", "resnet34", m): arm(m, range(4), "cifar10", "resnet34")
             for m in ("plain", "trimming")}  # fmt: skip
    plain, trimmed = cells.values()
    lines = rows(plain, [0.1, 0.2, 0.3, 0.4]) + rows(trimmed, [0.09, 0.18, 0.28, 0.39])
    tables = [
        comparison_table(frame, cells, PRINTED, treatment="trimming", comparable=True)
        for frame in (pd.DataFrame(lines), pd.DataFrame(lines).sample(frac=1, random_state=1))
    ]
    assert tables[0].equals(tables[1])
    assert np.isclose(float(tables[0].loc[0, "difference (points)"].split()[0]), -1.5)
