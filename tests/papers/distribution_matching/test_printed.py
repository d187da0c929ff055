"""The printed tables of the ITDM paper in one form."""

import pandas as pd
import pytest

from hardtrain import ParameterError
from hardtrain.papers import load_table, network_name
from hardtrain.papers.distribution_matching.printed import itdm_rows
from hardtrain.papers.printed_numbers import printed_table

NAN = float("nan")


def test_itdm_rows_of_table_1_have_a_row_for_each_set_and_arm():
    expected = [
        ("qmnist", "cnn2", "without", 98.86, 0.037),
        ("qmnist", "cnn2", "with", 98.94, 0.037),
        ("kmnist", "cnn2", "without", 94.19, 0.227),
        ("kmnist", "cnn2", "with", 94.42, 0.196),
        ("fashion-mnist", "cnn2", "without", 90.52, 0.269),
        ("fashion-mnist", "cnn2", "with", 90.79, 0.257),
    ]
    columns = ["dataset", "network", "arm", "acc", "ce"]
    frame = itdm_rows(1)[columns].rename_axis(columns=None)
    pd.testing.assert_frame_equal(frame, pd.DataFrame(expected, columns=columns))


def test_itdm_rows_of_table_3_are_of_the_papers_own_network():
    expected = [
        ("fashion-mnist", "cnn5", "without", NAN, 92.43, 0.294),
        ("fashion-mnist", "cnn5", "best", 0.6, 92.57, 0.224),
        ("fashion-mnist", "cnn5", "worst", 0.2, 92.42, 0.248),
    ]
    columns = ["dataset", "network", "arm", "weight", "acc", "ce"]
    pd.testing.assert_frame_equal(itdm_rows(3)[columns], pd.DataFrame(expected, columns=columns))


@pytest.mark.parametrize("table", [2, 3, 4, 5])
def test_itdm_rows_are_those_of_the_table(table):
    rows, printed = itdm_rows(table), load_table(f"itdm_table{table}")
    assert set(rows["table"]) == {table}
    assert rows["arm"].tolist() == ["without", "best", "worst"] * (len(rows) // 3)
    pd.testing.assert_series_equal(rows["weight"], printed["lambda"], check_names=False)
    names = ["acc", "acc_delta", "acc_arrow", "ce", "ce_delta", "ce_arrow"]
    pd.testing.assert_frame_equal(rows[names], printed[names])
    networks = [("cnn5" if table < 4 else network_name(name)) for name in printed["network"]]
    assert rows["network"].tolist() == networks


def test_itdm_rows_can_be_read_to_the_printed_digit():
    assert itdm_rows(1, printed_table)["acc"].tolist()[:2] == ["98.86", "98.94"]
    assert itdm_rows(2, printed_table)["ce"].tolist() == ["0.183", "0.170", "0.162"]


@pytest.mark.parametrize("table", [0, 6, "itdm_table1"])
def test_itdm_rows_reject_a_table_that_the_paper_does_not_have(table):
    with pytest.raises(ParameterError, match="table = "):
        itdm_rows(table)
