"""Printed digits against recomputed values."""

from decimal import Decimal
from operator import gt

import pandas as pd
import pytest

from hardtrain.papers import TABLES, load_table
from hardtrain.papers.printed_numbers import (
    agreement,
    claims_table,
    compared,
    held,
    likely_slip,
    printed_table,
)


@pytest.mark.parametrize("name", TABLES)
def test_audits_read_what_load_table_reads(name):
    texts, table = printed_table(name).replace("-", ""), load_table(name)
    assert list(texts) == list(table)
    for column in table:
        if pd.api.types.is_numeric_dtype(table[column]):
            assert pd.to_numeric(texts[column]).equals(table[column])
        else:
            assert texts[column].tolist() == table[column].fillna("").tolist()


@pytest.mark.parametrize(
    ("printed", "value", "match"),
    [
        ("9.67", "9.674", "exact"),
        ("9.67", "-9.674", "exact"),
        ("9.67", "9.676", "truncated"),
        ("9.68", "9.676", "rounded"),
        ("9.68", "9.675", "rounded"),
        ("9.60", "9.676", "truncated, padded"),
        ("9.70", "9.676", "none"),
        ("9.0", "9.676", "none"),
        ("9", "9.676", "truncated"),
        ("9.69", "9.676", "none"),
    ],
)
def test_agreement_names_how_digits_agree(printed, value, match):
    assert agreement(printed, Decimal(value)) == match


def test_likely_slip_finds_none_where_the_digits_agree():
    assert likely_slip("1.66", Decimal("1.667")) == likely_slip("1.67", Decimal("1.667")) == ""
    assert likely_slip("8.01", Decimal("8.108")) == "digits of 8.10 swapped"
    assert likely_slip("27.21", Decimal("27.273")) == "one digit of 27.27 wrong"
    assert likely_slip("3.51", Decimal("2.667")) == ""


def test_compared_says_how_a_number_follows_and_leaves_out_empty_notes():
    assert compared("5.50", Decimal("-5.5556"), "sign lost", "") == {
        "match": "truncated, padded",
        "printed": "5.50",
        "recomputed": -5.556,
        "follows": "truncated",
        "note": "sign lost",
    }
    assert compared("3.51", Decimal("2.667"), "", "")["follows"] == "no"


def test_held_counts_no_tie_and_names_up_to_six():
    assert held([("a", 2, 1), ("b", 1, 1), ("c", 1, 2)], gt) == ("1 of 3", "not b (1, 1), c (1, 2)")
    assert held([("a", 2, 1)], gt) == ("1 of 1", "")
    assert held([("a", 1, 2)] * 7, gt) == ("0 of 7", "")


def test_claims_table_checks_numbers_and_words():
    claims = [
        ("text", "loss", "2.5", Decimal("2.54"), "a note"),
        ("text", "gain", "2.5", Decimal("-2.5"), ""),
        ("text", "not said", "", "3 of 4", ""),
    ]
    table = claims_table(claims)
    assert list(table) == ["where", "claim", "printed", "recomputed", "follows", "note"]
    assert table["recomputed"].tolist() == ["2.54", "-2.5", "3 of 4"]
    assert table["follows"].tolist() == ["yes", "no", "not printed"]
