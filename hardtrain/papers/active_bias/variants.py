"""Active Bias: its variants and baselines, by the paper's names, and how well each is known.

Chang, Learned-Miller, McCallum, "Active Bias: Training more accurate neural networks by
emphasizing high variance samples", arXiv 1704.07433. An *arm* is a list of runs that differ in
their seed alone; in this room arms have the names of `ARMS`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

SCAN, UNIFORM = "SGD-Scan", "SGD-Uni"
_HARD, _EASY, _CLOSE, _DEVIATION = "1 − p̄", "p̄", "p̄ (1 − p̄)", "√(v + v²/(n − 1))"
_DRAWN, _WEIGHED = "P ∝ s + ε", "w ∝ s + ε, mean 1"
_MEMORY = "from memory"
_AGREES = f"{_MEMORY}; public code (1) agrees"
_LATER = f"{_MEMORY}; the name is in later work"
_CODE = "score verified (public code: 2 weighting, 1 sampling)"


class Formula(NamedTuple):
    """What makes an arm."""

    kind: str  # baseline, sampling or weighting
    score: str
    rule: str  # what follows from the score
    status: str  # how well that is known


ARMS = {
    SCAN: Formula("baseline", "–", "each sample once an epoch", _LATER),
    UNIFORM: Formula("baseline", "–", "P = 1/N, with replacement", _MEMORY),
    "SGD-SD": Formula("sampling", _HARD, _DRAWN, _MEMORY),
    "SGD-ISD": Formula("sampling", _HARD, f"{_DRAWN}, loss weight 1/(N P)", _MEMORY),
    "SGD-SE": Formula("sampling", _EASY, _DRAWN, _MEMORY),
    "SGD-SPV": Formula("sampling", _DEVIATION, _DRAWN, f"{_CODE}, P {_MEMORY}"),
    "SGD-STC": Formula("sampling", _CLOSE, _DRAWN, f"{_MEMORY}; idea verified (peer review)"),
    "SGD-WD": Formula("weighting", _HARD, _WEIGHED, _AGREES),
    "SGD-WE": Formula("weighting", _EASY, _WEIGHED, _AGREES),
    "SGD-WPV": Formula("weighting", _DEVIATION, _WEIGHED, f"{_CODE}, w {_MEMORY}"),
    "SGD-WTC": Formula("weighting", _CLOSE, _WEIGHED, _MEMORY),
}
VARIANTS = tuple(name for name, formula in ARMS.items() if formula.kind != "baseline")
NEEDED = (SCAN, UNIFORM, "SGD-SPV", "SGD-WPV")  # baselines, and the variants of the paper's title
# colour (Okabe-Ito, Tol), line style, marker
_STYLES = {
    SCAN: ("#000000", "-", "o"),
    UNIFORM: ("#808080", (0, (7, 2, 1, 2)), "*"),
    "SGD-SD": ("#D55E00", "--", "^"),
    "SGD-ISD": ("#882255", (0, (3, 1, 1, 1)), "P"),
    "SGD-SE": ("#009E73", (0, (1, 1)), "v"),
    "SGD-SPV": ("#0072B2", "-.", "s"),
    "SGD-STC": ("#CC79A7", (0, (5, 1)), "D"),
}


def arm_style(name: str) -> dict:
    """Colour, line style and marker of an arm, the same in all figures.

    Colour and marker are those of its score. A sampling variant has hollow marks and broken lines,
    a weighting variant filled marks and a solid line.

    Example:
        >>> drawn, weighted = arm_style("SGD-SPV"), arm_style("SGD-WPV")
        >>> drawn["color"] == weighted["color"], drawn["fillstyle"], weighted["fillstyle"]
        (True, 'none', 'full')
    """
    color, linestyle, marker = _STYLES[name.replace("SGD-W", "SGD-S")]
    kind = ARMS[name].kind
    return {
        "color": color,
        "linestyle": "-" if kind == "weighting" else linestyle,
        "marker": marker,
        "fillstyle": "none" if kind == "sampling" else "full",
    }


def arm_method(name: str, *, smoothing: float, burn_in: float, relative: bool = False) -> dict:
    """The fields of `Run` that make an arm: its method and options, as of ``methods.active_bias``.

    Example:
        >>> arm_method("SGD-WE", smoothing=0.2, burn_in=0.1)["options"]["variant"]
        'WE'
        >>> arm_method("SGD-Scan", smoothing=0.2, burn_in=0.1)
        {'method': 'plain'}
    """
    if name == SCAN:
        return {"method": "plain"}
    if name == UNIFORM:  # it has no score, so nothing to smooth and no burn-in
        return {"method": "active_bias", "options": {"variant": "uniform"}}
    variant = name.removeprefix("SGD-")
    options = {"variant": variant, "smoothing": smoothing, "burn_in": burn_in}
    options["relative"] = relative
    return {"method": "active_bias", "options": options}


def artefacts(name: str, noise: float) -> tuple[str, ...]:
    """What the runs of an arm keep, with this part of wrong labels.

    Example:
        >>> artefacts("SGD-WPV", 0.3), artefacts("SGD-SD", 0.0)
        (('prediction_history', 'emphasis'), ())
    """
    history = ("prediction_history",) if name == "SGD-WPV" else ()
    return (*history, "emphasis") if noise and name != SCAN else history


def first_biased_epoch(epochs: int, burn_in: float) -> int:
    """The epoch, counted from 0, from which on scores count: as in ``methods.active_bias``.

    Example:
        >>> first_biased_epoch(20, 0.25), first_biased_epoch(20, 0.0)
        (5, 2)
    """
    return max(2, round(burn_in * epochs))


def formula_table() -> pd.DataFrame:
    """Name, kind, score, probability or weight of every arm, and how well each is known."""
    columns = ["name", "kind", "score s", "probability P or weight w", "status"]
    return pd.DataFrame([(name, *formula) for name, formula in ARMS.items()], columns=columns)


def readings_table(effects: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """What could not be verified, the reading that was taken, and how to take another.

    Args:
        effects: from `emphasis.reading_effects`.
    """
    largest = {name: np.nanmax([*values, 0.0]) for name, values in effects.items()}
    variance = f"fixed; no weight would change by more than {100 * largest['variance']:.2g} %"
    scope = f"fixed; steps would change by ± {100 * largest['scope']:.2g} % (1 sd)"
    rows = [
        ("constant ε", "0.2 added to the score (public code of SGD-WPV; others 0.05, 0.1); from "
         "memory a multiple of the mean score", "added as it is", "parameters smoothing, relative"),
        ("length of the burn-in", "15 epochs, of 200 (public code)",
         "the same part of the epochs, at least two", "parameter burn_in"),
        ("variance", "1/n (2 of 3 codes) or 1/(n − 1)", "1/n", variance),
        ("mean weight 1", "over the data set, or in each mini-batch (1 code)", "data set", scope),
        ("history", "all of it, or a window", "all of it", "fixed"),
        ("scores renewed", "at each epoch or each step", "each epoch", "fixed"),
        ("drawing", "with or without replacement", "with", "fixed; baseline SGD-Uni likewise"),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["detail", "readings", "here", "to change it"])
