"""Numbers and tables as text."""

import math
import re
from collections.abc import Mapping

import pandas as pd

from hardtrain.statistics import PairedDifference, direction


def format_interval(interval, digits: int = 2, scale: float = 1.0, *, signed: bool = False) -> str:
    """Text for a table cell: ``mean ± half width (n = ...)``, without ± where n is 1.

    Args:
        interval: `Interval` or `PairedDifference`.
        digits: decimals.
        scale: factor before rounding; 100 turns fractions into %.
        signed: write the sign of a positive mean, too.

    Example:
        >>> from hardtrain.statistics import Interval
        >>> format_interval(Interval(0.174, 0.171, 0.177, 10), digits=1, scale=100)
        '17.4 ± 0.3 (n = 10)'
    """
    sign = "+" if signed else ""
    mean = f"{interval.mean * scale:{sign}z.{digits}f}"
    half = interval.half_width * abs(scale)
    if math.isinf(half):  # paired differences that are equal, too few for an interval
        return f"{mean} in each (n = {interval.n})"
    spread = "" if math.isnan(half) else f" ± {half:.{digits}f}"
    return f"{mean}{spread} (n = {interval.n})"


def format_difference(difference: PairedDifference | None, digits: int = 2) -> str:
    """A paired difference with its sign, interval, n and p; empty where there is none.

    Example:
        >>> format_difference(PairedDifference(-0.4, -0.7, -0.1, 0.0421, 3), digits=1)
        '-0.4 ± 0.3 (n = 3), p = 0.042'
    """
    if difference is None:
        return ""
    text = format_interval(difference, digits, signed=True)
    if math.isnan(difference.p):
        return text
    return f"{text}, p < 0.001" if difference.p < 0.001 else f"{text}, p = {difference.p:.3f}"


def difference_words(
    what: str, difference: PairedDifference | None, digits: int = 2, unit: str = "points"
) -> str:
    """A paired difference as a sentence that is true whatever came out; empty without one.

    Example:
        >>> gap = PairedDifference(mean=-0.4, low=-0.7, high=-0.1, p=0.01, n=10)
        >>> difference_words("With noise minus without", gap)
        'With noise minus without: -0.40 ± 0.30 (n = 10) points, lower by its own interval.'
    """
    if difference is None:
        return ""
    number = f"{format_interval(difference, digits, signed=True)} {unit}".rstrip()
    seen = direction(difference)
    by_itself = " by its own interval" if seen in ("higher", "lower") else ""
    return f"{what}: {number}, {seen}{by_itself}."


def by_direction(differences: Mapping[str, PairedDifference | None]) -> str:
    """Which differences are higher, which lower, and for which none is seen, each by its own
    interval: a sentence that is true whatever came out.

    Example:
        >>> up, none = (PairedDifference(1.0, low, 2.0, 0.1, 5) for low in (0.5, -0.5))
        >>> by_direction({"warm-up": up, "noise": none, "more updates": up})
        'warm-up, more updates – higher; noise – no difference seen.'
    """
    names: dict[str, list[str]] = {}
    for word in ("higher", "lower", "no difference seen", "too few seeds"):
        names[word] = [name for name, gap in differences.items() if direction(gap) == word]
    text = "; ".join(f"{', '.join(found)} – {word}" for word, found in names.items() if found)
    return f"{text}." if text else ""


def format_number(value: float, digits: int, *, signed: bool = False, missing: str = "–") -> str:
    """``value`` with so many decimals; ``missing`` for nan.

    Example:
        >>> format_number(0.5, 2, signed=True), format_number(math.nan, 2)
        ('+0.50', '–')
    """
    return missing if math.isnan(value) else f"{value:{'+' if signed else ''}z.{digits}f}"


def to_markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown pipe table, without its index; numeric columns align right.

    Missing cells are empty, floats keep every digit (round before), pipes are escaped and line
    breaks become ``<br>``. Other HTML, links, and formulas between dollar signs stay text.

    Example:
        >>> print(to_markdown(pd.DataFrame({"network": ["vgg13"], "error": [17.43]})), end="")
        | network | error |
        | --- | ---: |
        | vgg13 | 17.43 |
    """

    def row(cells):
        return "| " + " | ".join(cells) + " |"

    columns = [frame.iloc[:, i] for i in range(frame.shape[1])]
    numeric = [
        pd.api.types.is_numeric_dtype(c) and not pd.api.types.is_bool_dtype(c) for c in columns
    ]
    lines = [row(map(_cell, frame.columns)), row("---:" if n else "---" for n in numeric)]
    lines += [row(map(_cell, cells)) for cells in zip(*columns, strict=True)]
    return "\n".join(lines) + "\n"


def _cell(value) -> str:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    text = re.sub(r"&(?=#?\w+;)", "&amp;", str(value))
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)  # "p < 0.001" is no tag
    text = re.sub(r"\[(?=[^\]]*\]\()", r"\[", text)
    text = text.replace("$", r"\$") if text.count("$") > 1 else text
    return "<br>".join(text.replace("|", "\\|").splitlines())
