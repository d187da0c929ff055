"""Rows of ``make bench`` that are measured by functions of the notebooks, at their smallest."""

import pytest

from benchmarks import ratios, training


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
    assert all(0 < float(row["measured"]) < 100 and row["target"] for row in made)


def test_finished_runs_are_found_and_not_trained():
    found, read, memory = training.look_up(num_records=5)
    assert found["measured"] > 0
    assert read["what"] == "reading their 50 rows of history, s"
    assert memory["measured"] >= 0
