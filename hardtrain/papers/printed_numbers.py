"""Decimal arithmetic on printed numbers: what the audits of the papers' tables share."""

from collections.abc import Callable, Iterable
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from importlib import resources

import pandas as pd

from hardtrain import papers

_FOLLOWS = {"exact": "yes", "truncated, padded": "truncated", "none": "no"}  # else as it is


def printed_table(name: str) -> pd.DataFrame:
    """A table of `load_table` as text: how many digits are printed is part of what is checked."""
    with resources.files(papers).joinpath(f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype=str, keep_default_na=False)


def agreement(printed: str, value: Decimal) -> str:
    """How the printed digits, without sign, agree with a value: "exact", "truncated", "rounded",
    "truncated, padded" (to one decimal less, then a 0) or "none".

    Example:
        >>> agreement("1.66", Decimal("1.667")), agreement("1.67", Decimal("1.667"))
        ('truncated', 'rounded')
    """
    number, places = Decimal(printed), -Decimal(printed).as_tuple().exponent
    cut = rounded(value, places, ROUND_DOWN) == number
    near = rounded(value, places) == number
    if cut or near:
        return "exact" if cut and near else "truncated" if cut else "rounded"
    padded = places > 1 and rounded(value, places - 1, ROUND_DOWN) == number
    return "truncated, padded" if padded else "none"


def rounded(value: Decimal, places: int, rounding: str = ROUND_HALF_UP) -> Decimal:
    """The value without its sign, to ``places`` decimals."""
    return abs(value).quantize(Decimal(1).scaleb(-places), rounding)


def likely_slip(printed: str, value: Decimal) -> str:
    """The slip of the pen that turns a value's digits into the printed ones, if one does; empty
    where they agree as they are."""
    if agreement(printed, value) != "none":
        return ""
    for rounding in (ROUND_DOWN, ROUND_HALF_UP):
        digits = str(abs(value).quantize(Decimal(printed), rounding))
        wrong = sum(a != b for a, b in zip(digits, printed, strict=False))
        if wrong == 2 and sorted(digits) == sorted(printed):
            return f"digits of {digits} swapped"
        if wrong == 1 and len(digits) == len(printed):
            return f"one digit of {digits} wrong"
    return ""


def mean_of(values: list[Decimal], *, improved: bool = False) -> Decimal:
    """Mean, of the positive values only if ``improved``; 0 of none."""
    values = [value for value in values if value > 0] if improved else values
    return sum(values) / len(values) if values else Decimal(0)


def text_of(value: Decimal) -> str:
    """For a cell of an audit: four decimals at most."""
    return f"{rounded(value, 4).copy_sign(value).normalize():f}"


def number_of(value: Decimal) -> float:
    """For a column of an audit: three decimals."""
    return float(rounded(value, 3).copy_sign(value))


def follows_word(match: str) -> str:
    """The word of the column ``follows`` for an `agreement`."""
    return _FOLLOWS.get(match, match)


def checked(printed: str, recomputed: Decimal | str, note: str) -> dict[str, str]:
    """The last four columns; an empty ``printed`` means that the paper prints no such number."""
    if isinstance(recomputed, Decimal):
        word = follows_word(agreement(printed or "0", recomputed)) if recomputed >= 0 else "no"
        recomputed = text_of(recomputed)
    else:
        word = "yes" if printed == recomputed else "no"
    return last_columns(printed, recomputed, word if printed else "not printed", note)


def compared(printed: str, value: Decimal, *notes: str) -> dict:
    """``match``, the `agreement` of a printed number with the recomputed one, and the last four
    columns; empty notes are left out."""
    match, note = agreement(printed, value), "; ".join(filter(None, notes))
    return {"match": match} | last_columns(printed, number_of(value), follows_word(match), note)


def held(pairs: list[tuple], wins: Callable) -> tuple[str, str]:
    """In how many pairs ``(name, mine, other)`` mine wins, and a note on up to six others.

    Example:
        >>> from operator import gt
        >>> held([("cifar10", 3, 2), ("svhn", 1, 2)], gt)
        ('1 of 2', 'not svhn (1, 2)')
    """
    beaten = [f"{name} ({mine}, {other})" for name, mine, other in pairs if not wins(mine, other)]
    note = "not " + ", ".join(beaten) if 0 < len(beaten) <= 6 else ""
    return f"{len(pairs) - len(beaten)} of {len(pairs)}", note


def claims_table(claims: Iterable[tuple]) -> pd.DataFrame:
    """A row for each ``(where, claim, printed, recomputed, note)``."""
    return pd.DataFrame(
        {"where": where, "claim": claim} | checked(*numbers) for where, claim, *numbers in claims
    )


def last_columns(printed: str, recomputed: float | str, follows: str, note: str) -> dict:
    """The columns in which every audit ends."""
    return {"printed": printed, "recomputed": recomputed, "follows": follows, "note": note}
