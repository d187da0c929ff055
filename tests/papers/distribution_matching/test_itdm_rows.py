"""The rows of the ITDM paper's tables, as its notebook reads them."""

import pandas as pd
import pytest

from hardtrain import ParameterError
from hardtrain.papers import load_table, network_name
from hardtrain.papers.distribution_matching.tables import itdm_rows

COLUMNS = ["dataset", "network", "arm", "lambda", "accuracy", "cross_entropy"]
COLUMNS += ["accuracy_gain", "cross_entropy_drop"]
NAN = float("nan")


def test_itdm_rows_of_table_1_have_a_row_for_each_set_and_arm():
    expected = [
        ("qmnist", "cnn2", "without", 0.0, 98.86, 0.037, NAN, NAN),
        ("qmnist", "cnn2", "with", NAN, 98.94, 0.037, NAN, NAN),
        ("kmnist", "cnn2", "without", 0.0, 94.19, 0.227, NAN, NAN),
        ("kmnist", "cnn2", "with", NAN, 94.42, 0.196, NAN, NAN),
        ("fashion-mnist", "cnn2", "without", 0.0, 90.52, 0.269, NAN, NAN),
        ("fashion-mnist", "cnn2", "with", NAN, 90.79, 0.257, NAN, NAN),
    ]
    pd.testing.assert_frame_equal(itdm_rows(1), pd.DataFrame(expected, columns=COLUMNS))


def test_itdm_rows_of_table_3_leave_out_the_difference_that_has_no_place():
    expected = [
        ("fashion-mnist", "cnn5", "without", 0.0, 92.43, 0.294, NAN, NAN),
        ("fashion-mnist", "cnn5", "best", 0.6, 92.57, 0.224, 0.14, 0.070),
        ("fashion-mnist", "cnn5", "worst", 0.2, 92.42, 0.248, -0.01, 0.046),
    ]
    pd.testing.assert_frame_equal(itdm_rows(3), pd.DataFrame(expected, columns=COLUMNS))


@pytest.mark.parametrize("table", [2, 3, 4, 5])
def test_itdm_rows_are_those_of_the_table(table):
    rows, printed = itdm_rows(table), load_table(f"itdm_table{table}")
    assert rows["accuracy"].tolist() == printed["acc"].tolist()
    assert rows["cross_entropy"].tolist() == printed["ce"].tolist()
    assert rows["arm"].tolist() == ["without", "best", "worst"] * (len(rows) // 3)
    tried = rows["arm"] != "without"
    assert rows["lambda"][tried].tolist() == printed["lambda"][tried].tolist()
    assert rows["accuracy_gain"][tried].abs().tolist() == printed["acc_delta"][tried].tolist()
    assert rows["cross_entropy_drop"][tried].tolist() == printed["ce_delta"][tried].tolist()
    names = [("cnn5" if table < 4 else network_name(name)) for name in printed["network"]]
    assert rows["network"].tolist() == names


def test_itdm_rows_have_the_signs_that_follow_from_the_accuracies():
    rows = pd.concat([itdm_rows(table) for table in (2, 3, 4, 5)])
    assert rows["accuracy_gain"][rows["accuracy_gain"] < 0].tolist() == [-0.01, -0.08, -0.15, -0.16]
    assert (rows["cross_entropy_drop"].dropna() > 0).all()
    # as the paper's arrows say, where there is one
    printed = pd.concat([load_table(f"itdm_table{table}") for table in (2, 3, 4, 5)])
    signs = printed["acc_arrow"].map({"up": 1.0, "down": -1.0})
    assert (signs * rows["accuracy_gain"]).dropna().gt(0).sum() == 12


def test_itdm_rows_give_a_higher_cross_entropy_a_negative_drop(monkeypatch):
    table = load_table("itdm_table2")
    table.loc[1, "ce"] = 0.196
    monkeypatch.setattr(
        "hardtrain.papers.distribution_matching.tables.load_table", lambda name: table
    )
    assert itdm_rows(2)["cross_entropy_drop"].tolist()[1:] == [-0.013, 0.031]


@pytest.mark.parametrize("table", [0, 6, "itdm_table1"])
def test_itdm_rows_reject_a_table_that_the_paper_does_not_have(table):
    with pytest.raises(ParameterError, match="table = "):
        itdm_rows(table)
