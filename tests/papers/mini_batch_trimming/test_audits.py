"""The audit of table 1, and that a changed printed digit changes a verdict."""

import pytest
from helpers import alter_cell, only

from hardtrain.papers.mini_batch_trimming import audits
from hardtrain.papers.mini_batch_trimming.audits import trimming_audit


def test_trimming_audit_ends_in_the_columns_of_every_audit():
    assert list(trimming_audit())[-4:] == ["printed", "recomputed", "follows", "note"]


def test_trimming_audit_recomputes_points_and_percent():
    audit = trimming_audit()
    columns = ["network", "dataset", "points", "relative", "recomputed", "follows"]
    assert list(audit[columns].itertuples(index=False, name=None)) == [
        ("resnet34", "svhn", 0.11, 1.874, "improved", "yes"),
        ("densenet121", "svhn", 0.2, 4.329, "improved", "yes"),
        ("resnet34", "cifar10", 0.42, 2.41, "improved", "yes"),
        ("densenet121", "cifar10", -0.09, -0.891, "worse", "yes"),
        ("resnet34", "cifar100", 0.47, 0.975, "improved", "yes"),
        ("densenet121", "cifar100", 0.77, 2.337, "improved", "yes"),
    ]


@pytest.mark.parametrize(("text", "found"), [("5.87", "equal"), ("5.96", "worse")])
def test_trimming_audit_notices_a_changed_digit(monkeypatch, text, found):
    where = {"dataset": "SVHN", "network": "Resnet-34"}
    alter_cell(monkeypatch, audits, "trimming_table1", "trimmed_error", text, **where)
    row = only(trimming_audit(), dataset="svhn", network="resnet34")
    assert (row["recomputed"], row["follows"]) == (found, "no")
