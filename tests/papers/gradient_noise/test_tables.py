"""The share of a gap, and tables beside printed numbers."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hardtrain import Run
from hardtrain.papers.gradient_noise import tables as noise_tables
from hardtrain.report.tables import Protocol, difference
from hardtrain.statistics import mean_interval

AS_PRINTED = Protocol(comparable=True)

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
    assert (none.n, str(none)) == (0, "")


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
    return noise_tables.with_accuracies(pd.DataFrame(rows)), pd.DataFrame(history), arms


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
    table = noise_tables.accuracy_table(results, history, arms, AS_PRINTED)
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
            results.loc[results["key"] == run.key, "accuracy"] = printed - 0.9 + value
    table = noise_tables.accuracy_table(results, history, arms, AS_PRINTED)
    verdicts = table.set_index("paper (%)")["verdict"]
    assert verdicts["72.07"] == "reproduced"
    assert verdicts["71.01 ± 0.42"] == "not reproduced"


def test_accuracy_table_says_what_was_not_run_and_why_it_does_not_compare(measured):
    results, history, arms = measured
    some = {cell: runs for cell, runs in arms.items() if cell[3] != 128}
    protocol = Protocol(comparable=False, reason="other protocol", not_run="run me")
    table = noise_tables.accuracy_table(results, history, some, protocol)
    table = table.set_index(["B", "noise"])
    assert table.loc[(128, "no"), "verdict"] == "not run"
    assert table.loc[(128, "yes"), "why"] == "run me"
    assert table.loc[(64, "no"), ["verdict", "why"]].tolist() == [
        "not comparable", "other protocol",
    ]  # fmt: skip


def test_difference_table_pairs_the_batch_sizes_and_the_noise(measured):
    results, _, arms = measured
    table = noise_tables.difference_table(results, arms, AS_PRINTED)
    ours = table[table["data set"] == "caltech101"].set_index("accuracy (points)")
    larger, noise = "B = {} minus B = 32, no noise", "noise minus no noise, B = {}"
    printed = {larger.format(64): "-4.16", larger.format(128): "-6.59", noise.format(64): "+1.78",
               noise.format(128): "+3.15", noise.format(32): "–"}  # fmt: skip
    assert ours["Δ, paper"].to_dict() == printed
    assert ours.loc[larger.format(64), "Δ, here"].startswith("-4.15 ± ")
    assert ours["verdict"].to_dict() == {
        larger.format(64): "reproduced",
        larger.format(128): "other size",
        noise.format(64): "opposite",
        noise.format(128): "not reproduced",
        noise.format(32): "not comparable",
    }
    assert ours.loc[noise.format(32), "why"] == "the paper has no such cell"
    (other,) = table[table["data set"] == "digits"].to_dict("records")
    assert other["accuracy (points)"] == "B = 256 minus B = 16, no noise"
    assert other["Δ, here"].startswith("-4.75 ± ")
    assert other["verdict"] == "not comparable"


def test_difference_table_corrects_all_its_questions(measured):
    results, _, arms = measured
    table = noise_tables.difference_table(results, arms, AS_PRINTED)
    assert table.attrs["questions"] == 6  # five of caltech101, one of digits
    cells = [("caltech101", "resnet50", method, 64) for method in ("gradient_noise", "plain")]
    alone = difference(results, *(arms[cell] for cell in cells), noise_tables.ACCURACY)
    row = table[table["accuracy (points)"] == "noise minus no noise, B = 64"].iloc[0]
    assert float(row["Δ, here"].split("p = ")[1]) > 1.9 * alone.p


def test_a_seed_that_did_not_learn_is_named(measured):
    results, _, arms = measured
    cell = ("caltech101", "resnet50", "gradient_noise", 64)
    results.loc[results["key"] == arms[cell][2].key, "train_accuracy"] = 23.4
    assert noise_tables.not_learnt(results, arms[cell]) == "seed 2 (23.40 %)"
    assert noise_tables.not_learnt(results, arms["digits", "mlp", "plain", 256]) == (
        "seed 9 (diverged)"
    )
    table = noise_tables.difference_table(results, arms, AS_PRINTED)
    named = table.set_index("accuracy (points)")["seeds that did not learn"]
    assert named["noise minus no noise, B = 64"] == "B = 64, noise: seed 2 (23.40 %)"
    assert named["noise minus no noise, B = 128"] == ""
    assert named["B = 256 minus B = 16, no noise"] == "B = 256, no noise: seed 9 (diverged)"


def test_accuracies_of_nothing_are_no_error():
    found = noise_tables.with_accuracies(pd.DataFrame({"key": [], "test_error": []}))
    assert found[["accuracy", "train_accuracy"]].empty


def test_lines_table_finds_the_lowest_point_between_the_ends():
    inside = [[0.1, 0.9, 0.8, 0.95, 0.2], [0.1, 0.9, 0.7, 0.95, 0.2], [np.nan] * 5]
    lines = {"alphas": np.array([-1, 0, 0.5, 1, 2]), "val_accuracy": np.array([[inside]] * 2)}
    (row,) = noise_tables.lines_table(lines, ["32 to 64"]).to_dict("records")
    assert row["lowest"].startswith("75.00 ± ")
    assert row["lowest minus the lower end (points)"].startswith("-15.00 ± ")
    assert (row["a = 0"], row["a = 1"]) == ("90.00 ± 0.00 (n = 2)", "95.00 ± 0.00 (n = 2)")


def test_directions_table_is_the_rise_to_both_sides():
    losses = np.array([[[9.0, 3, 1, 2, 9], [9, 4, 2, 3, 9]]])
    walks = {"distances": np.array([-1, -0.5, 0, 0.5, 1]), "train_loss": losses}
    (row,) = noise_tables.directions_table(walks, ["B = 32"]).to_dict("records")
    assert row["training loss"].startswith("1.500 ± ")
    assert row["rise at a distance of 0.5"] == "1.500 ± 0.000 (n = 2)"


def test_difference_table_keeps_the_papers_pairs_when_only_others_were_run(measured):
    results, _, arms = measured
    some = {cell: runs for cell, runs in arms.items() if cell[0] == "digits"}
    table = noise_tables.difference_table(results, some, Protocol(False, not_run="no data"))
    theirs = table[table["data set"] == "caltech101"]
    assert theirs["Δ, paper"].tolist() == ["-4.16", "-6.59", "+1.78", "+3.15"]
    assert set(theirs["verdict"]) == {"not run"}
    assert set(theirs["why"]) == {"no data"}


def test_difference_table_of_arms_that_diverged_is_not_comparable(measured):
    results, _, arms = measured
    lost = results["key"].isin([run.key for run in arms["digits", "mlp", "plain", 256]])
    results.loc[lost, "status"] = "diverged"
    table = noise_tables.difference_table(results, arms, AS_PRINTED)
    (row,) = table[table["data set"] == "digits"].to_dict("records")
    assert (row["Δ, here"], row["verdict"]) == ("", "not comparable")
    assert row["why"] == "no seed finished with both"


def test_difference_table_has_the_papers_shares_and_ours(measured):
    results, _, arms = measured
    table = noise_tables.difference_table(results, arms, AS_PRINTED)
    ours = table[table["data set"] == "caltech101"].set_index("accuracy (points)")
    noise = "noise minus no noise, B = {}"
    assert ours["share, paper"].to_dict() == {
        "B = 64 minus B = 32, no noise": "",
        "B = 128 minus B = 32, no noise": "",
        noise.format(64): "43%",
        noise.format(128): "48%",
        noise.format(32): "",
    }
    assert ours.loc[noise.format(64), "share, here"].startswith("-22 % [")
    assert ours.loc[noise.format(32), "share, here"] == ""
    none = noise_tables.difference_table(results, {}, AS_PRINTED)
    assert none["share, paper"].tolist() == ["", "", "43%", "48%"]
    assert none["share, here"].tolist() == [""] * 4


def test_noise_at_a_size_that_the_paper_lacks_has_no_printed_share(measured):
    results, _, arms = measured
    added = {("digits", "mlp", "gradient_noise", 256): arms["digits", "mlp", "plain", 16]}
    table = noise_tables.difference_table(results, arms | added, AS_PRINTED)
    row = table[table["data set"] == "digits"].iloc[-1]
    assert (row["accuracy (points)"], row["Δ, paper"]) == ("noise minus no noise, B = 256", "–")
    assert row["share, paper"] == "–"
    assert row["share, here"].startswith("100 % [100, 100]")


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
    assert table.loc["small", "accuracy (%) minus large"].startswith("+4.15 ± ")
    assert table.loc["large", "accuracy (%) minus large"] == ""
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
    small = Run("digits", "mlp", batch_size=16, lr=0.01)
    arms = {"start of training": large, "small": small, "large": large}
    found["eigenvalues"] = np.array([1.0, 3.0, 7.0, np.nan])
    table = noise_tables.noise_scale_table(found, arms, num_train=100).set_index("network")
    assert table["η / B"].tolist() == ["0.000625"] * 3
    assert table["η / √B"].tolist() == ["0.005", "0.0025", "0.005"]
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
    printed = noise_tables.printed_accuracies().loc["caltech101", "resnet50"]
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
