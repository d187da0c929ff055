"""What follows from the ITDM paper's own printed numbers, and what does not (errata 003).

Li, Pan, Li, Zhu, "Improve SGD Training via Aligning Mini-batches", arXiv 2002.09917. Nothing is
trained, all is decimal arithmetic. There is one row per checked number, and the last columns are
``printed``, ``recomputed``, ``follows``, ``note``.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from operator import gt, le, lt

import pandas as pd

from hardtrain.papers import printed_numbers
from hardtrain.papers.distribution_matching.printed import itdm_rows
from hardtrain.papers.printed_numbers import agreement

_TABLES = {"kmnist": 2, "fashion-mnist": 3, "cifar10": 4, "stl10": 5}
_QUANTITIES = {"acc": "accuracy", "ce": "cross-entropy"}
_TABLE_1 = ("qmnist", "kmnist", "fashion-mnist")
_LARGE = ("resnet18", "vgg13", "mobilenet")
_ALL, _TRIED, _BEST, _WORST = tuple(_TABLES), ("best", "worst"), ("best",), ("worst",)
_RESULTS, _ANALYSIS = "section 4.3", "section 4.4"
_VAGUE, _EXTRA = 'section 4.4, "tends to"', "not claimed"  # nothing to be right or wrong about

# What is compared, with which arm, and how.
_ACCURACY, _ENTROPY = ("acc", "without", gt), ("ce", "without", lt)
_NOT_HIGHER, _WEIGHT, _AMONG = ("acc", "without", le), ("weight", "worst", gt), ("ce", "worst", lt)
# Claims that hold or fail cell by cell: where, claim, data sets, arms, comparison.
_TABLE_1_CLAIMS = (
    ("section 3.2", "table 1: higher accuracy with ITDM-j", _TABLE_1, ("with",), _ACCURACY),
    ("section 3.2", "table 1: lower cross-entropy with ITDM-j", _TABLE_1, ("with",), _ENTROPY),
)
_CELL_CLAIMS = (
    (_RESULTS, "kmnist: higher accuracy", ("kmnist",), _TRIED, _ACCURACY),
    (_RESULTS, "kmnist: lower cross-entropy", ("kmnist",), _TRIED, _ENTROPY),
    (_RESULTS, "fashion-mnist: lower cross-entropy", ("fashion-mnist",), _TRIED, _ENTROPY),
    (_RESULTS, "cifar10: lower cross-entropy", ("cifar10",), _TRIED, _ENTROPY),
    (_RESULTS, "cifar10, worst λ: no higher accuracy", ("cifar10",), _WORST, _NOT_HIGHER),
    (_RESULTS, "cifar10: best λ above worst λ", ("cifar10",), _BEST, _WEIGHT),
    (_RESULTS, "stl10: best λ above worst λ", ("stl10",), _BEST, _WEIGHT),
    (_RESULTS, "stl10: lower cross-entropy", ("stl10",), _TRIED, _ENTROPY),
    (_ANALYSIS, "all sets, best λ: higher accuracy", _ALL, _BEST, _ACCURACY),
    (_EXTRA, "all sets, worst λ: higher accuracy", _ALL, _WORST, _ACCURACY),
    (_VAGUE, "all sets: best λ above worst λ", _ALL, _BEST, _WEIGHT),
    (_EXTRA, "all sets: lower cross-entropy with best λ than worst", _ALL, _BEST, _AMONG),
)
# Numbers of section 4.3: data set, arm, claim, and what is printed for each network.
_NUMBER_CLAIMS = (
    ("cifar10", "best", "higher accuracy (points)", ("0.71", "", "0.82")),
    ("stl10", "best", "higher accuracy (points)", ("1.9", "1.4", "2.93")),
    ("stl10", "worst", "lower accuracy (points)", ("2.47", "", "1.23")),
    ("cifar10", "best", "lower cross-entropy (%)", ("32.6", "29.4", "30.6")),
    ("cifar10", "worst", "lower cross-entropy (%)", ("24.5", "25.8", "17.6")),
    ("stl10", "best", "lower cross-entropy (%)", ("35.6", "39.5", "20.6")),
)


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
            word = printed_numbers.follows_word(agreement(printed, gain))
            notes = [] if word != "no" else _causes(cells, printed, gain, dataset, column)
            if arm == "without":
                word, notes = "no", ["a difference in the row without ITDM"]
            elif not arrow:
                notes.append("worse, without an arrow" if gain < 0 else "no arrow")
            elif (arrow == "up") != (gain > 0):
                word, notes = "no", [*notes, f"arrow {arrow}"]
            entry = {"where": f"table {_TABLES[dataset]}", "dataset": dataset, "network": network}
            entry |= {"arm": arm, "lambda": float(row.weight), "quantity": quantity, "arrow": arrow}
            last = printed, printed_numbers.number_of(gain), word, "; ".join(notes)
            rows.append(entry | printed_numbers.last_columns(*last))
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
    claims = [
        *_counted_claims(cells, _TABLE_1_CLAIMS),
        *_arrow_claims(cells),
        *_number_claims(cells),
        _vgg_claim(cells),
        *_counted_claims(cells, _CELL_CLAIMS),
        *_further_claims(cells),
    ]
    return pd.DataFrame(
        {"where": where, "claim": claim} | printed_numbers.checked(*last)
        for where, claim, *last in claims
    )


def _cells() -> dict[tuple[str, str, str], tuple]:
    """Tables 1 to 5: data set, network and arm -> row, with λ, nan without ITDM, as ``weight``."""
    rows = pd.concat(itdm_rows(table, printed_numbers.printed_table) for table in range(1, 6))
    rows = rows.replace("-", "").fillna("")
    rows["weight"] = rows["weight"].replace("", "nan")
    numbers = rows[["acc", "ce", "weight"]].map(Decimal)
    rows = rows.assign(**numbers)
    return {(row.dataset, row.network, row.arm): row for row in rows.itertuples()}


def _gain(cells: Mapping, key: tuple[str, str, str], column: str) -> Decimal:
    """By how much a cell is better than the one without ITDM."""
    value, base = (getattr(cells[*key[:2], arm], column) for arm in (key[2], "without"))
    return value - base if column == "acc" else base - value


def _percent(cells: Mapping, key: tuple[str, str, str]) -> Decimal:
    """By how many % of the one without ITDM the cross-entropy is lower."""
    return 100 * _gain(cells, key, "ce") / cells[*key[:2], "without"].ce


def _causes(cells: Mapping, printed: str, gain: Decimal, dataset: str, column: str) -> list[str]:
    causes = [printed_numbers.likely_slip(printed, gain)]
    key = dataset, "cnn2", "with"
    if column == "ce" and key in cells and agreement(printed, _gain(cells, key, "ce")) != "none":
        causes.append(f"table 1's {cells[*key[:2], 'without'].ce}-{cells[key].ce}")
    causes = " or ".join(filter(None, causes))
    return [causes] if causes else []


def _counted(where: str, claim: str, cases: Mapping[str, bool], note: str = "") -> tuple:
    """A claim about several cells: in how many it holds, and a note on up to six others."""
    others = [case for case, holds in cases.items() if not holds]
    exceptions = "not " + ", ".join(others) if 0 < len(others) <= 6 else ""
    printed = "" if where in (_VAGUE, _EXTRA) else f"{len(cases)} of {len(cases)}"
    recomputed = f"{len(cases) - len(others)} of {len(cases)}"
    return where, claim, printed, recomputed, "; ".join(filter(None, [note, exceptions]))


def _counted_claims(cells: Mapping, claims: Iterable[tuple]) -> Iterable[tuple]:
    for where, claim, datasets, arms, (column, rival, wins) in claims:
        cases = {}
        for key, row in cells.items():
            if key[0] in datasets and key[2] in arms:
                numbers = getattr(row, column), getattr(cells[*key[:2], rival], column)
                name = key[0] if arms == ("with",) else " ".join(key)
                cases[f"{name} ({numbers[0]}, {numbers[1]})"] = wins(*numbers)
        yield _counted(where, claim, cases)


def _arrow_claims(cells: Mapping) -> Iterable[tuple]:
    """Section 4.3: "↑ indicating significant improvement from ITDM and ↓ otherwise"."""
    for column, quantity in _QUANTITIES.items():
        has_arrow = {
            f"{' '.join(key)} ({getattr(row, f'{column}_delta')})": getattr(row, f"{column}_arrow")
            for key, row in cells.items()
            if key[2] in _TRIED
        }
        claim = f"{quantity} differences have an arrow"
        yield _counted(_RESULTS, claim, has_arrow, "trained once, no test named")


def _number_claims(cells: Mapping) -> Iterable[tuple]:
    for dataset, arm, claim, numbers in _NUMBER_CLAIMS:
        for network, printed in zip(_LARGE, numbers, strict=True):
            if not printed:
                continue
            key = dataset, network, arm
            row, base, gain = (
                cells[key],
                cells[dataset, network, "without"],
                _gain(cells, key, "acc"),
            )
            recomputed, note = gain, f"λ = {row.weight}"
            if claim.startswith("lower accuracy"):
                other = f"{row.acc} %, {printed} would be {base.acc - Decimal(printed)} %"
                best = cells[dataset, network, "best"].weight
                recomputed, note = -gain, f"{other}; {note}, best {best}"
            elif claim.startswith("lower cross-entropy"):
                recomputed, note = _percent(cells, key), _quotient(cells, key, printed)
            yield _RESULTS, f"{dataset}, {network}, {arm} λ: {claim}", printed, recomputed, note


def _quotient(cells: Mapping, key: tuple[str, str, str], printed: str) -> str:
    """What the percentage is of; if it is not the printed one, the first drop with one other digit
    that would give that."""
    drop, base = _gain(cells, key, "ce"), cells[*key[:2], "without"].ce
    digits = str(drop)
    others = [
        Decimal(digits[:place] + digit + digits[place + 1 :])
        for place in range(len(digits))
        for digit in "0123456789"
        if digits[place] != "."
    ]
    fitting = [other for other in others if agreement(printed, 100 * other / base) != "none"]
    is_other = fitting and drop not in fitting
    return f"{drop}/{base}" + (f"; {fitting[0]} would give it" if is_other else "")


def _vgg_claim(cells: Mapping) -> tuple:
    (gain, weight), (other_gain, other_weight) = (
        (_gain(cells, ("cifar10", "vgg13", arm), "acc"), cells["cifar10", "vgg13", arm].weight)
        for arm in _TRIED
    )
    cases = {"0.8": gain > 0 and weight == Decimal("0.8")}
    cases["0.2"] = other_gain < 0 and other_weight == Decimal("0.2")
    claim = "cifar10, vgg13: better with λ = 0.8, worse with 0.2"
    note = f"{gain:+} with λ = {weight}, {other_gain:+} with {other_weight}"
    return _counted(_RESULTS, claim, cases, note)


def _further_claims(cells: Mapping) -> Iterable[tuple]:
    for arm in _TRIED:
        mean = printed_numbers.mean_of([row.weight for key, row in cells.items() if key[2] == arm])
        note = f"λ with the {arm} of five test accuracies"
        yield _VAGUE, f"all sets: mean {arm} λ", "", mean, note
    drops = {key: _percent(cells, key) for key in cells if key[2] == "best"}
    most = max(drop for key, drop in drops.items() if key[1] not in _LARGE)
    large = {" ".join(key): drop for key, drop in drops.items() if key[1] in _LARGE}
    claim = "best λ: larger drop of cross-entropy (%) on cifar10, stl10 than on the others"
    note = f"at least {min(large.values()):.2f} against at most {most:.2f}"
    yield _counted(_ANALYSIS, claim, {name: drop > most for name, drop in large.items()}, note)
