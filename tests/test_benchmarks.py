"""Rows of ``make bench`` that are measured by functions of the notebooks, at their smallest."""

import pytest

from benchmarks import ratios, training
from benchmarks.rows import ratios_of, shown


@pytest.mark.parametrize(
    ("rows", "about"),
    [
        (lambda: ratios._trimming(repetitions=1), "trimmed_backward, p = 0.2"),
        (lambda: ratios._hard_batches(num_batches=2, repetitions=1), "δ = 0.2 / plain"),
    ],
)
def test_ratios_are_numbers_with_a_target(rows, about):
    made = rows()
    assert any(about in row["what"] for row in made)
    assert all(0 < ratio < 100 and row["target"] for row in made for ratio in row["measured"])
    assert all(len(row["measured"]) == 1 for row in made)


def test_ratios_are_of_each_round():
    times = {"a": [1.0, 10.0, 2.0], "b": [2.0, 5.0, 4.0]}
    assert ratios_of(times, "a", "b") == [0.5, 2, 0.5]


def test_rows_show_the_median_and_the_quartiles_of_the_rounds():
    row = shown("what", [1.0, 9.0, 2.0, 4.0, 3.0], "<= 3")
    assert row["measured"] == "3.00"
    assert row["half of the rounds"] == "2.00 to 4.00"
    assert shown("what", [1.5], "")["half of the rounds"] == ""
    assert shown("what", 1.5, "")["measured"] == "1.50"
    assert shown("what", 3, "")["measured"] == "3"


def test_finished_runs_are_found_and_not_trained():
    found, read, memory = training.look_up(num_records=5)
    assert found["measured"] > 0
    assert read["what"] == "reading their 50 rows of history, s"
    assert memory["measured"] >= 0
