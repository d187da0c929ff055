"""The audits give the numbers of the errata, and a changed printed digit changes a verdict."""

import pytest
from helpers import alter_cell, only

from hardtrain.papers.hard_mini_batches import audits

AUDITS = (
    audits.delta_e_audit,
    audits.duplicate_rows_audit,
    audits.table6_audit,
    audits.table6_summary,
    audits.claims_audit,
)
EFFNETS = ("efficientnet_b4", "efficientnetv2_s")


@pytest.fixture
def altered(monkeypatch):
    def alter(*args, **where):
        alter_cell(monkeypatch, audits, *args, **where)

    return alter


@pytest.mark.parametrize("audit", AUDITS)
def test_audits_end_in_the_same_four_columns(audit):
    frame = audit()
    assert list(frame)[-4:] == ["printed", "recomputed", "follows", "note"]
    assert set(frame["follows"]) <= {"yes", "no", "truncated", "rounded", "not printed"}
    assert ((frame["follows"] == "not printed") == (frame["printed"] == "")).all()
    assert not frame.isna().any(axis=None)


def test_delta_e_audit_counts_the_matches_of_both_formulas():
    audit = audits.delta_e_audit()
    assert len(audit) == 45
    counts = {"exact": 21, "truncated": 10, "truncated, padded": 3, "rounded": 1, "none": 10}
    assert audit["match"].value_counts().to_dict() == counts
    assert (audit["match_b"] != "none").sum() == 5


def test_delta_e_audit_lists_the_ten_that_do_not_follow():
    audit = audits.delta_e_audit()
    audit = audit[audit["follows"] == "no"]
    columns = ["dataset", "network", "delta", "e1", "e_delta", "printed", "recomputed"]
    found = list(audit[[*columns, "formula_b"]].itertuples(index=False, name=None))
    assert found == [
        ("cifar10", "resnet18", 0.2, 80, 74, "8.01", 8.108, 7.5),
        ("cifar10", "resnet50", 0.8, 77, 75, "3.51", 2.667, 2.597),
        ("cifar10", "efficientnet_b4", 0.5, 34, 32, "9.67", 6.25, 5.882),
        ("cifar10", "efficientnetv2_s", 0.2, 33, 24, "27.21", 37.5, 27.273),
        ("stl10", "resnet18", 0.8, 100, 91, "9.00", 9.89, 9.0),
        ("stl10", "resnet18", 0.5, 100, 91, "9.00", 9.89, 9.0),
        ("stl10", "resnet50", 0.8, 99, 98, "2.00", 1.02, 1.01),
        ("stl10", "resnet50", 0.5, 99, 97, "3.00", 2.062, 2.02),
        ("stl10", "resnet50", 0.2, 99, 100, "0.00", -1.0, -1.01),
        ("stl10", "efficientnet_b4", 0.2, 43, 41, "7.50", 4.878, 4.651),
    ]
    assert audit["note"].tolist() == [
        "digits of 8.10 swapped",
        "no integer e gives it",
        "e = 31 would give it",
        "formula B, one digit of 27.27 wrong",
        "formula B",
        "formula B",
        "formula B or A with e1 = 100",
        "formula B or A with e1 = 100",
        "sign lost in print; formula B or A with e1 = 100",
        "e = 40 would give it",
    ]


def test_delta_e_audit_finds_the_padded_and_the_rounded():
    audit = audits.delta_e_audit()
    padded = audit[audit["match"] == "truncated, padded"]
    assert padded["printed"].tolist() == ["16.20", "13.60", "5.50"]
    assert padded["recomputed"].tolist() == [16.279, 13.636, -5.556]
    assert audit[audit["match"] == "rounded"]["printed"].tolist() == ["5.41"]


def test_delta_e_audit_restores_the_six_lost_signs():
    audit = audits.delta_e_audit()
    assert audit["sign"].value_counts().to_dict() == {"faster": 37, "slower": 6, "equal": 2}
    lost = audit[audit["note"].str.contains("sign lost")]
    assert (lost["sign"] == "slower").all()
    assert lost[["dataset", "network", "delta", "printed"]].apply(tuple, axis=1).tolist() == [
        ("cifar100", "efficientnet_b4", 0.5, "16.6"),
        ("stl10", "resnet50", 0.2, "0.00"),
        ("stl10", "efficientnet_b4", 0.8, "8.51"),
        ("stl10", "efficientnetv2_s", 0.8, "12.06"),
        ("stl10", "efficientnetv2_s", 0.2, "5.50"),
        ("stl10", "mobilenetv3_small", 0.5, "1.20"),
    ]


@pytest.mark.parametrize(
    ("text", "follows"), [("1.01", "yes"), ("1.02", "no"), ("1.0", "yes"), ("1.1", "no")]
)
def test_delta_e_audit_notices_a_changed_digit(altered, text, follows):
    where = {"network": "ResNet-18", "delta": "0.8"}
    if text != "1.01":
        altered("hard_minibatches_table4", "delta_e", text, **where)
    audit = audits.delta_e_audit()
    assert only(audit, dataset="cifar100", network="resnet18", delta=0.8)["follows"] == follows
    assert (audit["follows"] == "no").sum() == 10 + (follows == "no")


def test_delta_e_audit_notices_a_changed_epoch(altered):
    altered("hard_minibatches_table3", "epoch", "31", network="Efficient Net B4", delta="0.5")
    row = only(audits.delta_e_audit(), dataset="cifar10", network="efficientnet_b4", delta=0.5)
    assert (row["follows"], row["recomputed"], row["note"]) == ("truncated", 9.677, "")


def test_duplicate_rows_audit_finds_the_two_efficientnets_in_all_rows():
    audit = audits.duplicate_rows_audit()
    pairs = audit[["dataset", "network", "delta"]].apply(tuple, axis=1).tolist()
    deltas = (1.0, 0.8, 0.5, 0.2)
    assert pairs == [("cifar100", net, delta) for net in EFFNETS for delta in deltas]
    assert (audit["other_dataset"] == "cifar10").all()
    assert (audit["other_network"] == audit["network"]).all()
    assert (audit["other_delta"] == audit["delta"]).all()
    epochs = ["35 and 34", "35 and 32", "42 and 32", "29 and 30"]
    epochs += ["39 and 33", "38 and 27", "37 and 28", "36 and 24"]
    assert audit["note"].tolist() == [f"e = {text}" for text in epochs]


def test_duplicate_rows_audit_notices_a_changed_digit(altered):
    altered("hard_minibatches_table4", "test_ci", "0.8", network="Efficient Net B4", delta="1.0")
    assert len(audits.duplicate_rows_audit()) == 7


def test_duplicate_rows_audit_keeps_its_columns_without_a_pair(monkeypatch):
    columns = list(audits.duplicate_rows_audit())
    cells = dict(list(audits._cells().items())[:20])
    monkeypatch.setattr(audits, "_cells", lambda: cells)
    assert audits.duplicate_rows_audit().empty
    assert list(audits.duplicate_rows_audit()) == columns


def test_table6_audit_recomputes_all_cells():
    audit = audits.table6_audit()
    assert audit["recomputed"].tolist() == [
        *(-0.578, 2.322, 2.952, -5.019, -4.135),
        *(7.263, 6.0, 2.952, -5.019, -0.939),
        *(-1.01, 0.211, 0.896, 5.764, -1.22),
    ]
    assert audit["points"].tolist() == [
        *(-0.4, 1.5, 1.6, -2.7, -2.2),
        *(2.6, 2.1, 1.6, -2.7, -0.2),
        *(-0.5, 0.1, 0.3, 2.3, -0.4),
    ]
    assert audit["delta"].tolist() == [
        *(0.5, 0.5, 0.8, 0.8, 0.2),
        *(0.2, 0.5, 0.8, 0.8, 0.8),
        *(0.5, 0.5, 0.2, 0.5, 0.5),
    ]
    follows = {"yes": 8, "truncated": 6, "no": 1}
    assert audit["follows"].value_counts().to_dict() == follows
    wrong = only(audit, follows="no")
    assert (wrong["dataset"], wrong["network"]) == ("cifar10", "resnet18")
    assert (wrong["printed"], wrong["note"]) == ("0.75", "digits of 0.57 swapped")
    copied = audit[audit["note"] == "copied rows"]
    assert copied[["dataset", "network"]].apply(tuple, axis=1).tolist() == [
        ("cifar100", net) for net in EFFNETS
    ]


def test_table6_audit_notices_a_changed_digit(altered):
    altered("hard_minibatches_table6", "cifar10_pct", "0.57", network="ResNet-18")
    assert only(audits.table6_audit(), dataset="cifar10", network="resnet18")["follows"] == (
        "truncated"
    )


def test_table6_summary_sums_up_in_every_way():
    audit = audits.table6_summary()
    assert dict(zip(audit["quantity"], audit["recomputed"], strict=True)) == {
        "cells improved": "8 of 15",
        "mean, improved cells (%)": "3.5425",
        "mean, all cells (%)": "0.686",
        "mean, improved cells (points)": "1.5125",
        "mean, all cells (points)": "0.2",
        "without copied rows: cells improved": "7 of 13",
        "without copied rows: mean, improved cells (%)": "3.6271",
        "without copied rows: mean, all cells (%)": "0.95",
        "each δ: better": "17 of 45",
        "each δ: worse": "28 of 45",
        "each δ: mean change (points)": "-0.8844",
        "without copied rows, each δ: better": "15 of 39",
        "without copied rows, each δ: mean change (points)": "-0.7026",
        "δ = 0.8: better": "5 of 15",
        "δ = 0.5: better": "5 of 15",
        "δ = 0.2: better": "7 of 15",
    }
    assert audit["follows"].tolist()[:3] == ["yes", "truncated", "no"]


def test_table6_summary_notices_a_changed_accuracy(altered):
    altered("hard_minibatches_table5", "test_top1", "50.1", network="ResNet-18", delta="0.8")
    audit = audits.table6_summary().set_index("quantity")
    assert audit.loc["cells improved", ["recomputed", "follows"]].tolist() == ["9 of 15", "no"]
    assert audit.loc["each δ: better", "recomputed"] == "18 of 45"


def test_table6_summary_counts_an_equal_cell_as_not_improved(altered):
    altered("hard_minibatches_table5", "test_top1", "47.2", network="ResNet-50", delta="0.5")
    audit = audits.table6_summary().set_index("quantity")["recomputed"]
    assert audit["cells improved"] == "7 of 15"
    assert audit["mean, improved cells (%)"] == "4.0186"  # (28.34 - 0.21) / 7
    assert (audit["each δ: better"], audit["each δ: worse"]) == ("16 of 45", "28 of 45")


CLAIMS = {
    "stl10, efficientnet_b4: fewer epochs (%)": ("26.47", "20.9302", "no"),
    "cifar100, resnet18: higher test top-1 (%)": ("7.26", "7.8313", "no"),
    "cifar10, resnet18, δ = 0.2: faster (%)": ("9.58", "8.1081", "no"),
    "cifar10, resnet18, δ = 0.2: less time (%)": ("8.01", "7.5", "no"),
    "cifar10, resnet18, δ = 0.2: lower test top-1 (points)": ("0.9", "0.9", "yes"),
    "table 6: cells improved": ("8 of 15", "8 of 15", "yes"),
    "table 6: average increase (%)": ("3.542", "0.686", "no"),
    "cifar10: efficientnet_b4 lowest": ("4 of 4", "2 of 4", "no"),
    "cifar10: resnet18 highest, δ >= 0.8": ("2 of 2", "2 of 2", "yes"),
    "cifar10: resnet18 highest, δ <= 0.5": ("", "2 of 2", "not printed"),
    "cifar100: better with δ = 0.2, 0.5": ("10 of 10", "5 of 10", "no"),
    "the same without copied rows": ("", "4 of 6", "not printed"),
    "cifar100: faster with δ = 0.2, 0.5": ("10 of 10", "9 of 10", "no"),
    "cifar100: all faster with δ = 0.2": ("5 of 5", "5 of 5", "yes"),
    "stl10: ResNets and B4 faster": ("9 of 9", "7 of 9", "no"),
    "stl10: δ = 0.5 fastest": ("5 of 5", "3 of 5", "no"),
    "cifar10, cifar100: δ = 0.2 fastest": ("10 of 10", "10 of 10", "yes"),
    "all sets: better with δ = 0.2, 0.5": ("30 of 30", "12 of 30", "no"),
    "EfficientNets better than MobileNet": ("24 of 24", "18 of 24", "no"),
    'mobilenetv3_small among the "larger networks"': ("larger", "smaller", "no"),
    "δ = 0.8: Δ(Δt) (s)": ("0.0671", "0.0671", "yes"),
    "δ = 0.5: Δ(Δt) (s)": ("0.0681", "0.0681", "yes"),
    "δ = 0.2: Δ(Δt) (s)": ("0.0686", "0.0686", "yes"),
}


def test_claims_audit_checks_every_claim():
    audit = audits.claims_audit().set_index("claim")[["printed", "recomputed", "follows"]]
    assert len(audit) == len(CLAIMS)
    assert {
        claim: tuple(row) for claim, row in zip(audit.index, audit.to_numpy(), strict=True)
    } == CLAIMS


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ("stl10, efficientnet_b4: fewer epochs (%)", "(43-34)/34 is 26.47"),
        ("cifar100, resnet18: higher test top-1 (%)", "+2.6 points, 7.2626 % of the new value"),
        ("cifar10, resnet18, δ = 0.2: faster (%)", "8.01; e = 73 would give 9.58"),
        ("table 6: cells improved", "17 of 45"),
        ("table 6: average increase (%)", "3.5425"),
        ("cifar10: efficientnet_b4 lowest", "0.8 (54.2, 51.7), cifar10 efficientnet_b4 0.2"),
        ("stl10: ResNets and B4 faster", "resnet50 0.2 (100, 99), stl10 efficientnet_b4 0.8"),
        ("stl10: δ = 0.5 fastest", "resnet18 0.5 (91, 91), stl10 mobilenetv3_small 0.5 (83, 80)"),
        ("EfficientNets better than MobileNet", "cifar10 efficientnet_b4 1.0 (52.6, 55.4)"),
        ("δ = 0.8: Δ(Δt) (s)", "3.165 times the time; even at 68.4 %"),
        ("δ = 0.5: Δ(Δt) (s)", "3.197 times"),
        ("δ = 0.2: Δ(Δt) (s)", "3.213 times"),
    ],
)
def test_claims_audit_says_why(claim, words):
    assert words in only(audits.claims_audit(), claim=claim)["note"]


@pytest.mark.parametrize(
    ("table", "column", "text", "where", "claim", "recomputed", "follows"),
    [
        (3, "epoch", "73", ("ResNet-18", "0.2"), "cifar10, resnet18, δ = 0.2: faster (%)",
         "9.589", "truncated"),
        (3, "test_top1", "70.5", ("ResNet-18", "0.2"),
         "cifar10, resnet18, δ = 0.2: lower test top-1 (points)", "-0.9", "no"),
        (3, "test_top1", "70.0", ("ResNet-50", "1.0"), "cifar10: resnet18 highest, δ >= 0.8",
         "1 of 2", "no"),
        (4, "epoch", "35", ("Efficient Net B4", "0.2"), "cifar100: all faster with δ = 0.2",
         "4 of 5", "no"),
        (4, "epoch", "34", ("Efficient Net B4", "0.5"), "cifar100: faster with δ = 0.2, 0.5",
         "10 of 10", "yes"),
        (5, "epoch", "90", ("ResNet-18", "0.5"), "stl10: δ = 0.5 fastest", "4 of 5", "no"),
    ],
)  # fmt: skip
def test_claims_audit_notices_a_changed_digit(
    altered, table, column, text, where, claim, recomputed, follows
):
    network, delta = where
    altered(f"hard_minibatches_table{table}", column, text, network=network, delta=delta)
    row = only(audits.claims_audit(), claim=claim)
    assert (row["recomputed"], row["follows"]) == (recomputed, follows)
