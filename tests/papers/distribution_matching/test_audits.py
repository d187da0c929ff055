"""The ITDM audit gives the numbers of errata 003, and a changed printed digit changes a verdict."""

from functools import partial

import pandas as pd
import pytest
from helpers import alter_cell, only

from hardtrain.papers import printed_numbers
from hardtrain.papers.distribution_matching.audits import claims_audit, differences_audit


@pytest.fixture
def altered(monkeypatch):
    return partial(alter_cell, monkeypatch, printed_numbers)


@pytest.mark.parametrize("audit", [differences_audit, claims_audit])
def test_itdm_audits_end_in_the_columns_of_the_other_audits(audit):
    frame = audit()
    assert list(frame)[-4:] == list(printed_numbers.last_columns("", "", "", ""))
    assert next(iter(frame)) == "where"
    assert set(frame["follows"]) <= {"yes", "no", "truncated", "rounded", "not printed"}
    assert ((frame["follows"] == "not printed") == (frame["printed"] == "")).all()
    assert not frame.drop(columns="lambda", errors="ignore").isna().any(axis=None)


# --- differences_audit ----------------------------------------------------------------------------


def test_differences_audit_has_a_row_for_each_printed_difference():
    audit = differences_audit()
    tried = audit[audit["arm"] != "without"]
    assert tried.groupby(["quantity", "where"]).size().unstack().to_numpy().tolist() == [
        [2, 2, 6, 6],
        [2, 2, 6, 6],
    ]
    assert not tried.duplicated(["quantity", "dataset", "network", "arm"]).any()


def test_differences_audit_finds_all_accuracies_and_all_but_one_cross_entropy_right():
    audit = differences_audit()  # errata 003, first line, and 003-1
    tried = audit[audit["arm"] != "without"]
    counts = tried.groupby(["quantity", "follows"]).size().to_dict()
    assert counts == {("accuracy", "yes"): 16, ("cross-entropy", "yes"): 15} | {
        ("cross-entropy", "no"): 1
    }
    wrong = only(tried, follows="no")
    assert wrong[["where", "dataset", "network", "arm"]].tolist() == [
        "table 2", "kmnist", "cnn5", "worst",
    ]  # fmt: skip
    assert (wrong["printed"], wrong["recomputed"]) == ("0.031", 0.021)
    assert wrong["note"] == "one digit of 0.021 wrong or table 1's 0.227-0.196"


def test_differences_audit_recomputes_with_sign():
    audit = differences_audit()
    found = audit.groupby(["quantity", "dataset"])["recomputed"].apply(list)
    assert found["accuracy", "stl10"] == [1.9, 0.41, 1.4, 0.06, 2.93, -0.16]
    assert found["cross-entropy", "cifar10"] == [0.129, 0.097, 0.139, 0.122, 0.188, 0.108]
    worse = audit[audit["recomputed"] < 0]
    assert worse["recomputed"].tolist() == [-0.01, -0.08, -0.15, -0.16]


def test_differences_audit_finds_the_one_in_a_row_without_itdm():
    row = only(differences_audit(), arm="without")  # errata 003-7
    assert row[["where", "quantity", "printed", "recomputed", "follows", "note"]].tolist() == [
        "table 3", "cross-entropy", "0.070", 0.0, "no", "a difference in the row without ITDM",
    ]  # fmt: skip
    assert pd.isna(row["lambda"])


def test_differences_audit_names_the_missing_arrows():
    audit = differences_audit().query("arrow == ''")  # errata 003-7 and 003-8
    assert list(zip(audit["dataset"], audit["printed"], audit["note"], strict=True)) == [
        ("kmnist", "0.02", "no arrow"),
        ("fashion-mnist", "0.01", "worse, without an arrow"),
        ("cifar10", "0.21", "no arrow"),
        ("stl10", "0.06", "no arrow"),
    ]


def test_differences_audit_has_the_lambdas():
    audit = differences_audit()  # errata 003-4
    audit = audit[audit["quantity"] == "accuracy"]
    lambdas = {arm: audit.loc[audit["arm"] == arm, "lambda"].tolist() for arm in ("best", "worst")}
    assert lambdas == {
        "best": [0.8, 0.6, 0.8, 0.8, 1.0, 0.6, 0.8, 0.6],
        "worst": [0.4, 0.2, 0.6, 0.2, 0.2, 0.8, 0.4, 0.8],
    }


@pytest.mark.parametrize(
    ("column", "text", "row", "recomputed", "follows", "note"),
    [
        ("ce_delta", "0.021", "W", 0.021, "yes", ""),
        ("ce_delta", "0.012", "W", 0.021, "no", "digits of 0.021 swapped"),
        ("ce_delta", "0.333", "W", 0.021, "no", ""),
        ("ce", "0.152", "W", 0.031, "yes", ""),
        ("ce", "0.200", "B", -0.017, "no", "arrow up"),
        ("ce_arrow", "down", "B", 0.013, "no", "arrow down"),
        ("ce_delta", "0.01", "B", 0.013, "yes", ""),
    ],
)
def test_differences_audit_notices_a_changed_print(
    altered, column, text, row, recomputed, follows, note
):
    altered("itdm_table2", column, text, row=row)
    arm = {"B": "best", "W": "worst"}[row]
    found = only(differences_audit(), dataset="kmnist", arm=arm, quantity="cross-entropy")
    assert (found["recomputed"], found["follows"]) == (recomputed, follows)
    assert note in found["note"] if note else found["note"] == ""


@pytest.mark.parametrize(("text", "follows"), [("92.71", "no"), ("92.720", "yes")])
def test_differences_audit_notices_a_changed_accuracy(altered, text, follows):
    altered("itdm_table4", "acc", text, network="VGG13", row="B")
    audit = differences_audit()
    found = only(audit, dataset="cifar10", network="vgg13", arm="best", quantity="accuracy")
    assert found["follows"] == follows


# --- claims_audit ---------------------------------------------------------------------------------

CLAIMS = {
    "table 1: higher accuracy with ITDM-j": ("3 of 3", "3 of 3", "yes"),
    "table 1: lower cross-entropy with ITDM-j": ("3 of 3", "2 of 3", "no"),  # 003-6
    "accuracy differences have an arrow": ("16 of 16", "12 of 16", "no"),  # 003-8
    "cross-entropy differences have an arrow": ("16 of 16", "16 of 16", "yes"),
    "cifar10, resnet18, best λ: higher accuracy (points)": ("0.71", "0.71", "yes"),
    "cifar10, mobilenet, best λ: higher accuracy (points)": ("0.82", "0.82", "yes"),
    "stl10, resnet18, best λ: higher accuracy (points)": ("1.9", "1.9", "yes"),
    "stl10, vgg13, best λ: higher accuracy (points)": ("1.4", "1.4", "yes"),
    "stl10, mobilenet, best λ: higher accuracy (points)": ("2.93", "2.93", "yes"),
    "stl10, resnet18, worst λ: lower accuracy (points)": ("2.47", "-0.41", "no"),  # 003-3
    "stl10, mobilenet, worst λ: lower accuracy (points)": ("1.23", "0.16", "no"),
    "cifar10, resnet18, best λ: lower cross-entropy (%)": ("32.6", "32.5758", "rounded"),  # 003-5
    "cifar10, vgg13, best λ: lower cross-entropy (%)": ("29.4", "29.3869", "rounded"),
    "cifar10, mobilenet, best λ: lower cross-entropy (%)": ("30.6", "30.5691", "rounded"),
    "cifar10, resnet18, worst λ: lower cross-entropy (%)": ("24.5", "24.4949", "rounded"),
    "cifar10, vgg13, worst λ: lower cross-entropy (%)": ("25.8", "25.7928", "rounded"),
    "cifar10, mobilenet, worst λ: lower cross-entropy (%)": ("17.6", "17.561", "rounded"),
    "stl10, resnet18, best λ: lower cross-entropy (%)": ("35.6", "35.6442", "yes"),  # 003-2
    "stl10, vgg13, best λ: lower cross-entropy (%)": ("39.5", "39.5469", "yes"),
    "stl10, mobilenet, best λ: lower cross-entropy (%)": ("20.6", "25.2332", "no"),
    "cifar10, vgg13: better with λ = 0.8, worse with 0.2": ("2 of 2", "2 of 2", "yes"),
    "kmnist: higher accuracy": ("2 of 2", "2 of 2", "yes"),
    "kmnist: lower cross-entropy": ("2 of 2", "2 of 2", "yes"),
    "fashion-mnist: lower cross-entropy": ("2 of 2", "2 of 2", "yes"),
    "cifar10: lower cross-entropy": ("6 of 6", "6 of 6", "yes"),
    "cifar10, worst λ: no higher accuracy": ("3 of 3", "2 of 3", "no"),  # 003-5
    "cifar10: best λ above worst λ": ("3 of 3", "3 of 3", "yes"),
    "stl10: best λ above worst λ": ("3 of 3", "1 of 3", "no"),  # 003-3
    "stl10: lower cross-entropy": ("6 of 6", "6 of 6", "yes"),
    "all sets, best λ: higher accuracy": ("8 of 8", "8 of 8", "yes"),
    "all sets, worst λ: higher accuracy": ("", "4 of 8", "not printed"),
    "all sets: best λ above worst λ": ("", "6 of 8", "not printed"),  # 003-4
    "all sets: lower cross-entropy with best λ than worst": ("", "6 of 8", "not printed"),  # 003-9
    "all sets: mean best λ": ("", "0.75", "not printed"),
    "all sets: mean worst λ": ("", "0.45", "not printed"),
    "best λ: larger drop of cross-entropy (%) on cifar10, stl10 than on the others": (
        "6 of 6", "6 of 6", "yes",
    ),
}  # fmt: skip


def test_claims_audit_checks_every_claim():
    audit = claims_audit()
    assert audit["claim"].tolist() == list(CLAIMS)
    found = audit[["printed", "recomputed", "follows"]].itertuples(index=False, name=None)
    assert dict(zip(audit["claim"], found, strict=True)) == CLAIMS


@pytest.mark.parametrize(
    ("claim", "note"),
    [
        ("table 1: lower cross-entropy with ITDM-j", "not qmnist (0.037, 0.037)"),
        (
            "stl10, resnet18, worst λ: lower accuracy (points)",
            "71.29 %, 2.47 would be 68.41 %; λ = 0.8, best 0.6",
        ),
        (
            "stl10, mobilenet, worst λ: lower accuracy (points)",
            "58.93 %, 1.23 would be 57.86 %; λ = 0.8, best 0.6",
        ),
        (
            "stl10, mobilenet, best λ: lower cross-entropy (%)",
            "0.541/2.144; 0.441 would give it",
        ),
        ("stl10, resnet18, best λ: lower cross-entropy (%)", "0.581/1.630"),
        ("cifar10, mobilenet, best λ: higher accuracy (points)", "λ = 1.0"),
        ("cifar10, worst λ: no higher accuracy", "not cifar10 mobilenet worst (88.76, 88.55)"),
        (
            "all sets: best λ above worst λ",
            "not stl10 resnet18 best (0.6, 0.8), stl10 mobilenet best (0.6, 0.8)",
        ),
        (
            "all sets: lower cross-entropy with best λ than worst",
            "not kmnist cnn5 best (0.170, 0.162), stl10 resnet18 best (1.049, 1.048)",
        ),
        (
            "accuracy differences have an arrow",
            "trained once, no test named; not kmnist cnn5 worst (0.02), fashion-mnist cnn5 worst "
            "(0.01), cifar10 mobilenet worst (0.21), stl10 vgg13 worst (0.06)",
        ),
        ("cross-entropy differences have an arrow", "trained once, no test named"),
    ],
)
def test_claims_audit_says_why(claim, note):
    assert only(claims_audit(), claim=claim)["note"] == note


R18, MOBILE = {"network": "RESNET18"}, {"network": "MOBILENET"}


@pytest.mark.parametrize(
    ("table", "column", "text", "where", "claim", "recomputed", "follows"),
    [
        (1, "QMNIST", "0.036", {"metric": "CE", "setting": "w/ ITDM"},
         "table 1: lower cross-entropy with ITDM-j", "3 of 3", "yes"),
        (1, "KMNIST", "94.19", {"metric": "Acc", "setting": "w/ ITDM"},
         "table 1: higher accuracy with ITDM-j", "2 of 3", "no"),
        (2, "acc_arrow", "up", {"row": "W"},
         "accuracy differences have an arrow", "13 of 16", "no"),
        (3, "ce_arrow", "", {"row": "W"},
         "cross-entropy differences have an arrow", "15 of 16", "no"),
        (4, "acc", "93.71", {"row": "B", **R18},
         "cifar10, resnet18, best λ: higher accuracy (points)", "0.72", "no"),
        (5, "acc", "68.41", {"row": "W", **R18},
         "stl10, resnet18, worst λ: lower accuracy (points)", "2.47", "yes"),
        (5, "ce", "1.703", {"row": "B", **MOBILE},
         "stl10, mobilenet, best λ: lower cross-entropy (%)", "20.569", "rounded"),
        (4, "ce", "0.300", {"row": "W", **R18},
         "cifar10, resnet18, worst λ: lower cross-entropy (%)", "24.2424", "no"),
        (4, "lambda", "0.4", {"row": "W", "network": "VGG13"},
         "cifar10, vgg13: better with λ = 0.8, worse with 0.2", "1 of 2", "no"),
        (4, "acc", "92.40", {"row": "B", "network": "VGG13"},
         "cifar10, vgg13: better with λ = 0.8, worse with 0.2", "1 of 2", "no"),
        (4, "lambda", "1", {"row": "B", "network": "VGG13"},
         "cifar10, vgg13: better with λ = 0.8, worse with 0.2", "1 of 2", "no"),
        (4, "acc", "92.50", {"row": "W", "network": "VGG13"},
         "cifar10, vgg13: better with λ = 0.8, worse with 0.2", "1 of 2", "no"),
        (2, "acc", "95.57", {"row": "W"}, "kmnist: higher accuracy", "1 of 2", "no"),
        (2, "ce", "0.183", {"row": "W"}, "kmnist: lower cross-entropy", "1 of 2", "no"),
        (3, "ce", "0.294", {"row": "B"}, "fashion-mnist: lower cross-entropy", "1 of 2", "no"),
        (4, "ce", "0.700", {"row": "W", "network": "Mobilenet"},
         "cifar10: lower cross-entropy", "5 of 6", "no"),
        (4, "acc", "88.55", {"row": "W", "network": "Mobilenet"},
         "cifar10, worst λ: no higher accuracy", "3 of 3", "yes"),
        (4, "lambda", "1.0", {"row": "W", **R18}, "cifar10: best λ above worst λ", "2 of 3", "no"),
        (5, "lambda", "0.2", {"row": "W", **R18}, "stl10: best λ above worst λ", "2 of 3", "no"),
        (5, "ce", "2.145", {"row": "W", **MOBILE}, "stl10: lower cross-entropy", "5 of 6", "no"),
        (3, "acc", "92.43", {"row": "B"}, "all sets, best λ: higher accuracy", "7 of 8", "no"),
        (3, "acc", "92.44", {"row": "W"},
         "all sets, worst λ: higher accuracy", "5 of 8", "not printed"),
        (2, "lambda", "0.4", {"row": "B"},
         "all sets: best λ above worst λ", "5 of 8", "not printed"),
        (2, "lambda", "0.4", {"row": "B"}, "all sets: mean best λ", "0.7", "not printed"),
        (2, "lambda", "1", {"row": "W"}, "all sets: mean worst λ", "0.525", "not printed"),
        (2, "ce", "0.161", {"row": "B"},
         "all sets: lower cross-entropy with best λ than worst", "7 of 8", "not printed"),
        (3, "ce", "0.210", {"row": "B"},
         "best λ: larger drop of cross-entropy (%) on cifar10, stl10 than on the others",
         "5 of 6", "no"),
    ],
)  # fmt: skip
def test_claims_audit_notices_a_changed_digit(
    altered, table, column, text, where, claim, recomputed, follows
):
    before = only(claims_audit(), claim=claim)["recomputed"]
    altered(f"itdm_table{table}", column, text, **where)
    row = only(claims_audit(), claim=claim)
    assert (row["recomputed"], row["follows"]) == (recomputed, follows)
    assert row["recomputed"] != before
