"""Numbers and tables as text."""

import math
import statistics

import pandas as pd
import pytest

from hardtrain.report.text import (
    format_difference,
    format_interval,
    format_number,
    to_markdown,
)
from hardtrain.statistics import Interval, PairedDifference, mean_interval


def test_format_interval_reads_like_a_table_cell():
    interval = mean_interval([0.170, 0.174, 0.178])
    half = 4.30265 * statistics.stdev([17.0, 17.4, 17.8]) / 3**0.5
    assert format_interval(interval, scale=100) == f"17.40 ± {half:.2f} (n = 3)"
    assert format_interval(interval, digits=1, scale=100) == f"17.4 ± {half:.1f} (n = 3)"
    assert format_interval(mean_interval([17.43])) == "17.43 (n = 1)"
    assert format_interval(Interval(0.2, 0.1, 0.3, 3), 1, -100) == "-20.0 ± 10.0 (n = 3)"
    assert format_interval(Interval(-0.001, -0.002, 0.0, 5)) == "0.00 ± 0.00 (n = 5)"
    measured = PairedDifference(0.4, 0.1, 0.7, 0.01, 10)
    assert format_interval(measured, signed=True) == "+0.40 ± 0.30 (n = 10)"


def test_to_markdown_escapes_and_aligns():
    frame = pd.DataFrame(
        {"a|b": ["x|y", "two\nlines", None], "n": [1, 2, 3], "e": [0.5, math.nan, 17.43]}
    )
    assert to_markdown(frame) == (
        "| a\\|b | n | e |\n"
        "| --- | ---: | ---: |\n"
        "| x\\|y | 1 | 0.5 |\n"
        "| two<br>lines | 2 |  |\n"
        "|  | 3 | 17.43 |\n"
    )


def test_to_markdown_of_no_rows_and_of_equal_column_names():
    assert to_markdown(pd.DataFrame({"a": []})).count("\n") == 2
    twice = pd.DataFrame([[1, "b"]], columns=["x", "x"])
    assert to_markdown(twice).splitlines()[-1] == "| 1 | b |"


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0421, ", p = 0.042"), (0.0009, ", p < 0.001"), (0.001, ", p = 0.001"), (math.nan, "")],
)
def test_format_difference_ends_in_its_p(p, text):
    measured = PairedDifference(-0.4, -0.7, -0.1, p, 3)
    assert format_difference(measured, 1) == f"-0.4 ± 0.3 (n = 3){text}"


def test_what_is_not_there_is_an_empty_cell_or_a_dash():
    assert format_difference(None) == ""
    assert format_number(math.nan, 2) == "–"
    assert format_number(math.nan, 2, missing="") == ""
    assert format_number(-0.001, 2, signed=True) == "+0.00"


def test_names_stay_text_in_a_table():
    names = ["<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "&lt;b&gt;", "$5 to $9"]
    text = to_markdown(pd.DataFrame({"data set": names}))
    assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)>" in text
    assert r"\[x](javascript:alert(1))" in text
    assert "&amp;lt;b&amp;gt;" in text
    assert r"\$5 to \$9" in text
    kept = ["p < 0.001", "a & b", "5 $", "[0, 1]", "x<5"]
    text = to_markdown(pd.DataFrame({"a": kept}))
    assert all(f"| {cell} |" in text for cell in kept)
