"""What follows from the ITDM paper's own printed numbers, and what does not (errata 003).

Li, Pan, Li, Zhu, "Improve SGD Training via Aligning Mini-batches", arXiv 2002.09917. Nothing is
trained, all is decimal arithmetic. There is one row per checked number, and the last columns are
``printed``, ``recomputed``, ``follows``, ``note``.
"""

from collections.abc import Mapping
from decimal import Decimal
from operator import gt, le, lt

import pandas as pd

from hardtrain.papers import printed_numbers
from hardtrain.papers.distribution_matching.printed import itdm_rows
from hardtrain.papers.printed_numbers import agreement

_RELATIONS = {"above": gt, "below": lt, "not above": le}
Key = tuple[str, str, str]  # data set, network, arm


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
    for column, quantity in {"acc": "accuracy", "ce": "cross-entropy"}.items():
        for (dataset, network, arm), row in cells.items():
            printed, arrow = getattr(row, f"{column}_delta"), getattr(row, f"{column}_arrow")
            if not printed:
                continue
            gain = _gain(cells, (dataset, network, arm), column)
            word = printed_numbers.follows_word(agreement(printed, gain))
            notes = _causes(cells, printed, gain, dataset, column) if word == "no" else []
            if arm == "without":
                word, notes = "no", ["a difference in the row without ITDM"]
            elif not arrow:
                notes.append("worse, without an arrow" if gain < 0 else "no arrow")
            elif (arrow == "up") != (gain > 0):
                word, notes = "no", [*notes, f"arrow {arrow}"]
            entry = {"where": f"table {row.table}", "dataset": dataset, "network": network}
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
    cells, rows = _cells(), []
    for line in printed_numbers.printed_table("itdm_text").to_dict("records"):
        chosen = {
            key: row
            for key, row in cells.items()
            if key[0] in line["datasets"].split()
            and line["networks"] in ("", key[1])
            and key[2] in line["arms"].split()
        }
        last = line["printed"], *_MEASURES[line["measure"]](line, chosen, cells)
        claim = {"where": line["where"], "claim": line["claim"]}
        rows.append(claim | printed_numbers.checked(*last))
    return pd.DataFrame(rows)


def _cells() -> dict[Key, tuple]:
    """The rows of tables 1 to 5, with λ, nan without ITDM, as ``weight``."""
    rows = pd.concat(itdm_rows(table, printed_numbers.printed_table) for table in range(1, 6))
    rows = rows.replace("-", "").fillna("")
    rows["weight"] = rows["weight"].replace("", "nan")
    rows = rows.assign(**rows[["acc", "ce", "weight"]].map(Decimal))
    return {(row.dataset, row.network, row.arm): row for row in rows.itertuples()}


def _gain(cells: Mapping, key: Key, column: str) -> Decimal:
    """By how much a cell is better than the one without ITDM."""
    value, base = (getattr(cells[*key[:2], arm], column) for arm in (key[2], "without"))
    return value - base if column == "acc" else base - value


def _percent(cells: Mapping, key: Key) -> Decimal:
    """By how many % of the one without ITDM the cross-entropy is lower."""
    return 100 * _gain(cells, key, "ce") / cells[*key[:2], "without"].ce


def _causes(cells: Mapping, printed: str, gain: Decimal, dataset: str, column: str) -> list[str]:
    slip = printed_numbers.likely_slip(printed, gain)
    key = dataset, "cnn2", "with"
    if column == "ce" and key in cells and agreement(printed, _gain(cells, key, "ce")) != "none":
        table_1 = f"table 1's {cells[*key[:2], 'without'].ce}-{cells[key].ce}"
        slip = f"{slip} or {table_1}" if slip else table_1
    return [slip] if slip else []


# What a line of itdm_text.csv claims of its cells ``chosen``: what is recomputed, and a note.


def _in_cells(line: Mapping, chosen: Mapping, cells: Mapping) -> tuple[str, str]:
    """In each the column's number is above or below that of a rival arm."""
    pairs = []
    for key, row in chosen.items():
        rival = cells[*key[:2], line["rival"]]
        name = key[0] if key[2] == "with" else " ".join(key)
        pairs.append((name, getattr(row, line["column"]), getattr(rival, line["column"])))
    return printed_numbers.held(pairs, _RELATIONS[line["relation"]])


def _with_arrows(line: Mapping, chosen: Mapping, cells: Mapping) -> tuple[str, str]:
    """Each difference has an arrow, as "↑ indicating significant improvement" has it."""
    bare = [
        f"{' '.join(key)} ({getattr(row, line['column'] + '_delta')})"
        for key, row in chosen.items()
        if not getattr(row, line["column"] + "_arrow")
    ]
    note = "trained once, no test named" + ("; not " + ", ".join(bare) if bare else "")
    return f"{len(chosen) - len(bare)} of {len(chosen)}", note


def _in_points(line: Mapping, chosen: Mapping, cells: Mapping) -> tuple[Decimal, str]:
    """The accuracy of the one cell is higher, or lower, by so much."""
    ((key, row),) = chosen.items()
    gain = _gain(cells, key, "acc")
    if line["relation"] == "above":
        return gain, f"λ = {row.weight}"
    other = cells[*key[:2], "without"].acc - Decimal(line["printed"])
    note = f"{row.acc} %, {line['printed']} would be {other} %; λ = {row.weight}, best "
    return -gain, f"{note}{cells[*key[:2], 'best'].weight}"


def _in_percent(line: Mapping, chosen: Mapping, cells: Mapping) -> tuple[Decimal, str]:
    """The cross-entropy of the one cell is lower by so much. Where it is not, the note has the
    first drop with one other digit that would be."""
    (key,) = chosen
    drop, base = _gain(cells, key, "ce"), cells[*key[:2], "without"].ce
    fitting = [
        other
        for other in (Decimal(thousandths) / 1000 for thousandths in range(1000))
        if agreement(line["printed"], 100 * other / base) != "none"
        and sum(a != b for a, b in zip(f"{other:.3f}", str(drop), strict=False)) < 2
    ]
    is_other = fitting and drop not in fitting
    note = f"{drop}/{base}" + (f"; {fitting[0]} would give it" if is_other else "")
    return _percent(cells, key), note


def _with_weights(line: Mapping, chosen: Mapping, cells: Mapping) -> tuple[str, str]:
    """The best λ is 0.8 and better than without ITDM, the worst is 0.2 and worse."""
    (best, best_gain), (worst, worst_gain) = (
        (row.weight, _gain(cells, key, "acc")) for key, row in chosen.items()
    )
    held = [best_gain > 0 and best == Decimal("0.8"), worst_gain < 0 and worst == Decimal("0.2")]
    return f"{sum(held)} of 2", f"{best_gain:+} with λ = {best}, {worst_gain:+} with {worst}"


def _mean_weight(line: Mapping, chosen: Mapping, cells: Mapping) -> tuple[Decimal, str]:
    mean = printed_numbers.mean_of([row.weight for row in chosen.values()])
    return mean, f"λ with the {line['arms']} of five test accuracies"


def _larger_drops(line: Mapping, chosen: Mapping, cells: Mapping) -> tuple[str, str]:
    """The cross-entropy is lower by more % than in any other data set."""
    drops = {key: _percent(cells, key) for key in cells if key[2] == line["arms"]}
    most = max(drop for key, drop in drops.items() if key not in chosen)
    pairs = [(" ".join(key), drops[key], most) for key in chosen]
    note = f"at least {min(drops[key] for key in chosen):.2f} against at most {most:.2f}"
    return printed_numbers.held(pairs, gt)[0], note


_MEASURES = {
    "cells": _in_cells,
    "arrows": _with_arrows,
    "points": _in_points,
    "percent": _in_percent,
    "weights": _with_weights,
    "mean": _mean_weight,
    "drops": _larger_drops,
}
