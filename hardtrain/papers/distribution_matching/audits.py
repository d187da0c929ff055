"""What follows from the ITDM paper's own printed numbers, and what does not (errata 003).

Li, Pan, Li, Zhu, "Improve SGD Training via Aligning Mini-batches", arXiv 2002.09917. As in
`audits`: nothing is trained, all is decimal arithmetic, one row per checked number, and the last
columns are ``printed``, ``recomputed``, ``follows``, ``note``.
"""

from collections import namedtuple
from collections.abc import Iterable
from decimal import Decimal
from operator import gt, le, lt

import pandas as pd

from hardtrain.papers import dataset_name, network_name
from hardtrain.papers.distribution_matching.tables import ITDM_ARMS
from hardtrain.papers.printed_numbers import (
    agreement,
    checked,
    follows_word,
    last_columns,
    likely_slip,
    mean_of,
    number_of,
    printed_table,
)

_TABLES = {"kmnist": 2, "fashion-mnist": 3, "cifar10": 4, "stl10": 5}
_QUANTITIES = {"accuracy": "accuracy", "cross_entropy": "cross-entropy"}
_TRIED = ("best", "worst")


def differences_audit() -> pd.DataFrame:
    """Do the differences Δ of tables 2 to 5 follow from the numbers beside them?

    Returns:
        One row per printed difference: ``where``; ``dataset``, ``network``, ``arm`` ("best" or
        "worst" λ; "without" ITDM there should be none) and its ``lambda`` (nan without);
        ``quantity``; ``arrow`` ("up", "down" or none). ``recomputed`` is signed, positive is
        better: accuracy in points, with minus without; cross-entropy without minus with.
        ``printed`` has no sign: ``follows`` is about its digits, and "no" if the arrow has the
        wrong direction.

    Source:
        Errata 003-1 and 003-7.

    Example:
        >>> audit = differences_audit()
        >>> audit = audit[audit["arm"] != "without"]
        >>> audit.groupby(["quantity", "follows"]).size().to_dict()
        {('accuracy', 'yes'): 16, ('cross-entropy', 'no'): 1, ('cross-entropy', 'yes'): 15}
    """
    cells, rows = _cells(), []
    for column, quantity in _QUANTITIES.items():
        for (dataset, network, arm), row in cells.items():
            printed, arrow = getattr(row, f"{column}_delta"), getattr(row, f"{column}_arrow")
            if not printed:
                continue
            gain = _gain(cells, (dataset, network, arm), column)
            word = follows_word(agreement(printed, gain))
            notes = [] if word != "no" else _causes(printed, gain, dataset, column)
            if arm == "without":
                word, notes = "no", ["a difference in the row without ITDM"]
            elif not arrow:
                notes.append("worse, without an arrow" if gain < 0 else "no arrow")
            elif (arrow == "up") != (gain > 0):
                word, notes = "no", [*notes, f"arrow {arrow}"]
            entry = {"where": f"table {_TABLES[dataset]}", "dataset": dataset, "network": network}
            entry |= {"arm": arm, "lambda": float(row.weight)}
            entry |= {"quantity": quantity, "arrow": arrow}
            rows.append(entry | last_columns(printed, number_of(gain), word, "; ".join(notes)))
    return pd.DataFrame(rows)


def claims_audit() -> pd.DataFrame:
    """The claims in the ITDM paper's text, against its tables 1 to 5.

    Returns:
        One row per claim, all text: ``where`` it stands, ``claim``, and the rest. Where the text
        speaks of several cells, ``printed`` says how many, ``recomputed`` in how many of them it
        holds (a tie does not), and ``note`` lists up to six others with the two numbers compared.

    Source:
        Errata 003-2 to 003-6, 003-8 and 003-9.

    Example:
        >>> audit = claims_audit()
        >>> print(audit.loc[audit["follows"] == "no", ["claim", "printed", "recomputed"]].head(2))
                                              claim printed recomputed
        1  table 1: lower cross-entropy with ITDM-j  3 of 3     2 of 3
        2        accuracy differences have an arrow  16 of 16   12 of 16
    """
    cells = _cells()
    rows = [*_table1_claims(), *_arrow_claims(cells), *_number_claims(cells), *_cell_claims(cells)]
    return pd.DataFrame({"where": row[0], "claim": row[1]} | checked(*row[2:]) for row in rows)


_Row = namedtuple(
    "_Row",
    ["weight", *(name + end for name in _QUANTITIES for end in ("", "_delta", "_arrow"))],
)


def _cells() -> dict[tuple[str, str, str], _Row]:
    """Tables 2 to 5: data set, network and arm -> row; ``weight`` is λ, nan without ITDM."""
    cells = {}
    for number in _TABLES.values():
        table = printed_table(f"itdm_table{number}").replace("-", "")
        for line in table.to_dict("records"):
            network = network_name(line["network"]) if line["network"] else "cnn5"
            key = dataset_name(line["dataset"]), network, ITDM_ARMS[line["row"]]
            accuracy = Decimal(line["acc"]), line["acc_delta"], line["acc_arrow"]
            entropy = Decimal(line["ce"]), line["ce_delta"], line["ce_arrow"]
            cells[key] = _Row(Decimal(line["lambda"] or "nan"), *accuracy, *entropy)
    return cells


def _gain(cells, key: tuple[str, str, str], column: str) -> Decimal:
    """By how much a cell is better than the one without ITDM."""
    value, base = (getattr(cells[*key[:2], arm], column) for arm in (key[2], "without"))
    return value - base if column == "accuracy" else base - value


def _causes(printed: str, gain: Decimal, dataset: str, column: str) -> list[str]:
    slip = likely_slip(printed, gain)
    table = _table1()
    if column == "cross_entropy" and dataset in table:
        without, with_itdm = (table[dataset]["CE", setting] for setting in ("w/o ITDM", "w/ ITDM"))
        if agreement(printed, without - with_itdm) != "none":
            slip += f"{' or ' if slip else ''}table 1's {without}-{with_itdm}"
    return [slip] if slip else []


def _table1() -> dict[str, dict[tuple[str, str], Decimal]]:
    """Data set -> metric and setting, as printed -> value."""
    table = printed_table("itdm_table1").set_index(["metric", "setting"])
    return {dataset_name(name): table[name].map(Decimal).to_dict() for name in table}


def _table1_claims() -> Iterable[tuple]:
    for metric, words, wins in (("Acc", "higher accuracy", gt), ("CE", "lower cross-entropy", lt)):
        pairs = [
            (dataset, values[metric, "w/ ITDM"], values[metric, "w/o ITDM"])
            for dataset, values in _table1().items()
        ]
        claim = f"table 1: {words} with ITDM-j"
        yield "section 3.2", claim, f"{len(pairs)} of {len(pairs)}", *_held(pairs, wins)


def _arrow_claims(cells) -> Iterable[tuple]:
    """Section 4.3: "↑ indicating significant improvement from ITDM and ↓ otherwise"."""
    for column, quantity in _QUANTITIES.items():
        marks = [
            (" ".join(key), getattr(row, f"{column}_arrow"), getattr(row, f"{column}_delta"))
            for key, row in cells.items()
            if key[2] in _TRIED
        ]
        bare = [f"{name} ({delta})" for name, arrow, delta in marks if not arrow]
        total, found = len(marks), len(marks) - len(bare)
        note = "trained once, no test named" + ("; not " + ", ".join(bare) if bare else "")
        claim = f"{quantity} differences have an arrow"
        yield "section 4.3", claim, f"{total} of {total}", f"{found} of {total}", note


def _number_claims(cells) -> Iterable[tuple]:
    where = "section 4.3"
    for dataset, network, printed in (
        ("cifar10", "resnet18", "0.71"),
        ("cifar10", "mobilenet", "0.82"),
        ("stl10", "resnet18", "1.9"),
        ("stl10", "vgg13", "1.4"),
        ("stl10", "mobilenet", "2.93"),
    ):
        key = dataset, network, "best"
        claim, note = f"{_at(key)}: higher accuracy (points)", f"λ = {cells[key].weight}"
        yield where, claim, printed, _gain(cells, key, "accuracy"), note

    for network, printed in (("resnet18", "2.47"), ("mobilenet", "1.23")):
        best, worst = (cells["stl10", network, arm].weight for arm in _TRIED)
        key = "stl10", network, "worst"
        other = cells["stl10", network, "without"].accuracy - Decimal(printed)
        note = f"{cells[key].accuracy} %, {printed} would be {other} %; λ = {worst}, best {best}"
        loss = -_gain(cells, key, "accuracy")
        yield where, f"{_at(key)}: lower accuracy (points)", printed, loss, note

    for dataset, arm, percents in (
        ("cifar10", "best", ("32.6", "29.4", "30.6")),
        ("cifar10", "worst", ("24.5", "25.8", "17.6")),
        ("stl10", "best", ("35.6", "39.5", "20.6")),
    ):
        for network, printed in zip(("resnet18", "vgg13", "mobilenet"), percents, strict=True):
            key = dataset, network, arm
            base, drop = cells[dataset, network, "without"], _gain(cells, key, "cross_entropy")
            note = f"{drop}/{base.cross_entropy}"
            if agreement(printed, _percent(cells, key)) == "none":
                note += _other_drop(printed, drop, base.cross_entropy)
            yield where, f"{_at(key)}: lower cross-entropy (%)", printed, _percent(cells, key), note

    best, worst = (cells["cifar10", "vgg13", arm] for arm in _TRIED)
    gains = [_gain(cells, ("cifar10", "vgg13", arm), "accuracy") for arm in _TRIED]
    held = (gains[0] > 0 and best.weight == Decimal("0.8")) + (
        gains[1] < 0 and worst.weight == Decimal("0.2")
    )
    note = f"{gains[0]:+} with λ = {best.weight}, {gains[1]:+} with {worst.weight}"
    claim = "cifar10, vgg13: better with λ = 0.8, worse with 0.2"
    yield where, claim, "2 of 2", f"{held} of 2", note


def _cell_claims(cells) -> Iterable[tuple]:
    results, analysis, extra = "section 4.3", "section 4.4", "not claimed"
    vague = 'section 4.4, "tends to"'
    every, best, worst = tuple(_TABLES), _TRIED[:1], _TRIED[1:]
    # what is compared, with which arm, and which of the two should be larger
    accuracy, entropy = ("accuracy", "without", gt), ("cross_entropy", "without", lt)
    weight, among_itdm = ("weight", "worst", gt), ("cross_entropy", "worst", lt)
    for where, claim, datasets, arms, (column, rival, wins) in (
        (results, "kmnist: higher accuracy", every[:1], _TRIED, accuracy),
        (results, "kmnist: lower cross-entropy", every[:1], _TRIED, entropy),
        (results, "fashion-mnist: lower cross-entropy", every[1:2], _TRIED, entropy),
        (results, "cifar10: lower cross-entropy", every[2:3], _TRIED, entropy),
        (results, "cifar10, worst λ: no higher accuracy", every[2:3], worst, (*accuracy[:2], le)),
        (results, "cifar10: best λ above worst λ", every[2:3], best, weight),
        (results, "stl10: best λ above worst λ", every[3:], best, weight),
        (results, "stl10: lower cross-entropy", every[3:], _TRIED, entropy),
        (analysis, "all sets, best λ: higher accuracy", every, best, accuracy),
        (extra, "all sets, worst λ: higher accuracy", every, worst, accuracy),
        (vague, "all sets: best λ above worst λ", every, best, weight),
        (extra, "all sets: lower cross-entropy with best λ than worst", every, best, among_itdm),
    ):
        pairs = [
            (" ".join(key), getattr(row, column), getattr(cells[*key[:2], rival], column))
            for key, row in cells.items()
            if key[0] in datasets and key[2] in arms
        ]
        printed = f"{len(pairs)} of {len(pairs)}" if where in (results, analysis) else ""
        yield where, claim, printed, *_held(pairs, wins)

    for arm in _TRIED:
        weights = [row.weight for key, row in cells.items() if key[2] == arm]
        note = f"λ with the {arm} of five test accuracies"
        yield vague, f"all sets: mean {arm} λ", "", mean_of(weights), note

    drops = [(_at(key), _percent(cells, key), key[0]) for key in cells if key[2] in best]
    most = max(drop for _, drop, dataset in drops if dataset in every[:2])
    pairs = [(name, drop, most) for name, drop, dataset in drops if dataset in every[2:]]
    claim = "best λ: larger drop of cross-entropy (%) on cifar10, stl10 than on the others"
    note = f"at least {min(drop for _, drop, _ in pairs):.2f} against at most {most:.2f}"
    yield analysis, claim, f"{len(pairs)} of {len(pairs)}", _held(pairs, gt)[0], note


def _held(pairs: list[tuple], wins) -> tuple[str, str]:
    """In how many pairs the first number wins, and a note on the others."""
    beaten = [f"{name} ({mine}, {other})" for name, mine, other in pairs if not wins(mine, other)]
    note = "not " + ", ".join(beaten) if 0 < len(beaten) <= 6 else ""
    return f"{len(pairs) - len(beaten)} of {len(pairs)}", note


def _percent(cells, key: tuple[str, str, str]) -> Decimal:
    """By how many % of the one without ITDM the cross-entropy is lower."""
    drop = _gain(cells, key, "cross_entropy")
    return 100 * drop / cells[*key[:2], "without"].cross_entropy


def _other_drop(printed: str, drop: Decimal, base: Decimal) -> str:
    """The first drop with one other digit that gives the printed percentage."""
    digits = str(drop)
    for place, digit in ((p, d) for p in range(len(digits)) for d in "0123456789"):
        if digits[place].isdigit():
            other = Decimal(digits[:place] + digit + digits[place + 1 :])
            if agreement(printed, 100 * other / base) != "none":
                return f"; {other} would give it"
    return ""


def _at(key: tuple[str, str, str]) -> str:
    return "{}, {}, {} λ".format(*key)
