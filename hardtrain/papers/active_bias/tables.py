"""Active Bias: errors, speed against robustness, claims, as tables and as numbers for figures.

*Arms* are as in `variants`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from hardtrain.papers.active_bias.variants import SCAN, UNIFORM
from hardtrain.report import tables
from hardtrain.report.tables import Arms
from hardtrain.report.text import format_number
from hardtrain.runs.run import Run
from hardtrain.statistics import PairedDifference, detectable, direction, holm_corrected

GROUPS = {
    SCAN: (SCAN,),
    "easy first": ("SGD-SE", "SGD-WE"),
    "hard first": ("SGD-SD", "SGD-WD"),
    "uncertain": ("SGD-SPV", "SGD-WPV", "SGD-STC", "SGD-WTC"),
}
PRINTED_REDUCTION = (1.0, 18.0)  # %, the only number in the review
# quantities of `trade_off`, as tables name them
QUANTITIES = {
    "train_set_loss": "epochs to a training loss, clean labels",
    "test_error": "epochs to a test error, clean labels",
    "damage": "damage by wrong labels (points)",
    "clean error": "test error, clean labels (points)",
    "noisy error": "test error, wrong labels (points)",
}
_SPEED, _DAMAGE = ("train_set_loss", "test_error"), ("damage",)
_ERROR = ("clean error", "noisy error")
BySeed = Mapping[str, Mapping[str, pd.Series]]  # by quantity, then by arm: a number by seed


class Claim(NamedTuple):
    """A direction that the review states: a group of arms against another."""

    text: str
    treated: str
    baseline: str
    stated: str  # as `statistics.direction` says it
    quantities: tuple[str, ...]


CLAIMS = (
    Claim("easy first is robust to outliers", "easy first", SCAN, "lower", _DAMAGE),
    Claim("easy first slows training down", "easy first", SCAN, "higher", _SPEED),
    Claim("hard first is prone to outliers", "hard first", SCAN, "higher", _DAMAGE),
    Claim("hard first accelerates training on clean data", "hard first", SCAN, "lower", _SPEED),
    Claim("uncertain: more robust than hard first", "uncertain", "hard first", "lower", _DAMAGE),
    Claim("uncertain: faster than easy first", "uncertain", "easy first", "lower", _SPEED),
    Claim("uncertain: less robust than easy first", "uncertain", "easy first", "higher", _DAMAGE),
    Claim("uncertain: slower than hard first", "uncertain", "hard first", "higher", _SPEED),
    Claim("uncertain reduces the error", "uncertain", SCAN, "lower", _ERROR),
)


def goal_levels(history: pd.DataFrame, arm: Sequence[Run], epoch: int) -> dict[str, float]:
    """What an arm has after so many epochs: ``train_set_loss`` and ``test_error``.

    Each is the mean of the runs that reached their end; nan without such a run.
    """
    levels = {}
    for column in _SPEED:
        epochs, values = tables.curves(history, arm, column)
        chosen = values[:, epochs == epoch]
        levels[column] = float(chosen.mean()) if chosen.size else np.nan
    return levels


def epochs_to_goal(
    history: pd.DataFrame, results: pd.DataFrame, arm: Sequence[Run], column: str, goal: float
) -> pd.Series:
    """By seed, when each of an arm's finished runs was first at or below a goal; nan: never."""

    return tables.per_run(
        history, results, arm, lambda _, own: own["epoch"][own[column] <= goal].min()
    )


def trade_off(
    results: pd.DataFrame, history: pd.DataFrame, clean: Arms, noisy: Arms, goals: Mapping
) -> dict[str, dict[str, pd.Series]]:
    """Speed, robustness and quality of every arm, by seed.

    Args:
        results, history: of the runs.
        clean, noisy: runs by the name of the arm, without and with wrong labels.
        goals: from `goal_levels`.

    Returns:
        By quantity, then by arm. On clean labels: the epochs to each goal, ``train_set_loss`` and
        ``test_error``, all of the run's if it never got there, and whether it did,
        ``train_set_loss reached`` and so on. ``clean error`` and ``noisy error``: the test error
        in % at the end without and with wrong labels. ``damage``: the second minus the first.
    """
    by_seed: dict[str, dict[str, pd.Series]] = {}
    for column, goal in goals.items():
        first = {n: epochs_to_goal(history, results, arm, column, goal) for n, arm in clean.items()}
        by_seed[column] = {n: epochs.fillna(clean[n][0].epochs) for n, epochs in first.items()}
        by_seed[f"{column} reached"] = {n: epochs.notna() for n, epochs in first.items()}
    for quantity, arms in (("clean error", clean), ("noisy error", noisy)):
        by_seed[quantity] = {
            name: 100 * tables.metric_by_seed(results, arm, "test_error")
            for name, arm in arms.items()
        }
    by_seed["damage"] = {
        name: (by_seed["noisy error"][name] - error).dropna()  # by seed, where both finished
        for name, error in by_seed["clean error"].items()
    }
    return by_seed


def reduction(
    results: pd.DataFrame, treatment: Sequence[Run], baseline: Sequence[Run]
) -> PairedDifference | None:
    """By how many % of the baseline's mean test error the treatment's is lower, over common seeds.

    Positive is better. ``None`` without a pair, or if the baseline makes no error.
    """
    gap = tables.difference(results, baseline, treatment)
    errors = tables.metric_by_seed(results, baseline, "test_error")
    common = errors.index.intersection(
        tables.metric_by_seed(results, treatment, "test_error").index
    )
    level = errors[common].mean()
    if gap is None or level == 0:
        return None
    scaled = {name: getattr(gap, name) / level for name in ("mean", "low", "high", "spread")}
    return gap._replace(**scaled)


def set_of(group: str, arms: Iterable[str]) -> list[str]:
    """The members of one of `GROUPS` that there are among ``arms``.

    Example:
        >>> set_of("uncertain", ["SGD-Scan", "SGD-WPV", "SGD-SPV"])
        ['SGD-SPV', 'SGD-WPV']
    """
    return [name for name in GROUPS[group] if name in arms]


def group_difference(
    by_seed: BySeed, quantity: str, treated: str, baseline: str
) -> PairedDifference | None:
    """The difference of a quantity of `trade_off` between the arms of two of `GROUPS`, of which
    each seed has the mean; ``None`` where a group has no arm."""
    values = by_seed[quantity]
    sides = [
        tables.mean_over_arms([values[name] for name in set_of(group, values)])
        for group in (treated, baseline)
    ]
    return tables.paired(*sides)


def reduction_table(results: pd.DataFrame, cells: Mapping[tuple[str, ...], Arms]) -> pd.DataFrame:
    """By how much the uncertain arms reduce the test error, relative to each baseline.

    The printed range stands beside it. It belongs to no data set, network or variant that the
    review names, so it is held against none of ours.

    Args:
        results: of the runs.
        cells: by data set, network and labels: runs by the name of the arm.

    Returns:
        The last column: the reduction relative to SGD-Scan that so many seeds would see in four
        of five repetitions.
    """
    low, high = PRINTED_REDUCTION
    rows, headings = [], {base: f"here, to {base} (%)" for base in (SCAN, UNIFORM)}
    for cell, arms in cells.items():
        for name in set_of("uncertain", arms):
            row = dict(zip(("data set", "network", "labels"), cell, strict=True))
            row |= {"arm": name, "printed (%)": f"{low:g} to {high:g}"}
            gaps = {base: reduction(results, arms[name], arms[base]) for base in headings}
            row |= {heading: gaps[base] for base, heading in headings.items()}
            least = np.nan if gaps[SCAN] is None else detectable(gaps[SCAN])
            rows.append(row | {"seen with 80 % power (%)": format_number(least, 1)})
    return tables.corrected_columns(pd.DataFrame(rows), dict.fromkeys(headings.values(), 1))


def setting_effects(
    results: pd.DataFrame, grid: Mapping[tuple, Sequence[Run]]
) -> dict[tuple[str, str], PairedDifference | None]:
    """What the largest setting of smoothing and burn-in makes of the test error (points), against
    the smallest: of each seed the mean over all else in the grid.

    Args:
        results: of the runs.
        grid: runs by labels, arm, smoothing and burn-in.

    Returns:
        By labels and what differs; a parameter of which the grid has one value is left out.
    """
    effects = {}
    for label in dict.fromkeys(row[0] for row in grid):
        for place, name in ((2, "ε"), (3, "burn-in")):
            values = sorted({row[place] for row in grid})
            sides = [
                tables.mean_over_arms(
                    [100 * tables.metric_by_seed(results, runs, "test_error")
                     for row, runs in grid.items() if row[0] == label and row[place] == value]
                )
                for value in (values[-1], values[0])
            ]  # fmt: skip
            if len(values) > 1:
                differs = f"{name} {values[-1]:g} minus {values[0]:g}"
                effects[label, differs] = tables.paired(*sides)
    return effects


def group_order(by_seed: BySeed, quantity: str) -> list[str]:
    """Those of `GROUPS` that have arms and finished runs, by their mean of a quantity of
    `trade_off`, the lowest first."""
    values, means = by_seed[quantity], {}
    for group in GROUPS:
        found = tables.mean_over_arms([values[name] for name in set_of(group, values)])
        if len(found):
            means[group] = found.mean()
    return sorted(means, key=means.get)


def rises(
    results: pd.DataFrame, history: pd.DataFrame, cells: Mapping[object, Arms]
) -> dict[object, dict[str, pd.Series]]:
    """By how many points each finished run's last test error lies above its lowest, by cell, arm
    and seed."""

    def rise(_, own: pd.DataFrame) -> float:
        errors = own.sort_values("epoch")["test_error"]
        return 100 * (errors.iloc[-1] - errors.min())

    return {
        cell: {name: tables.per_run(history, results, arm, rise) for name, arm in arms.items()}
        for cell, arms in cells.items()
    }


def rises_table(by_cell: Mapping[str, Mapping[str, pd.Series]]) -> pd.DataFrame:
    """`rises` with their differences to SGD-Scan, a row for each cell and arm."""
    rows, heading = [], "rise of the test error (points)"
    for cell, arms in by_cell.items():
        for name, values in arms.items():
            row = {"labels": cell, "arm": name, heading: tables.describe_values(values, 2)}
            gap = None if name == SCAN else tables.paired(values, arms[SCAN])
            rows.append(row | {f"minus {SCAN}": gap})
    return tables.corrected_columns(pd.DataFrame(rows), {f"minus {SCAN}": 2})


def trade_off_table(by_seed: BySeed, shares: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """A row per arm: epochs to both goals and damage by wrong labels, with paired differences to
    SGD-Scan, and the share of the emphasis on wrong labels.

    Args:
        by_seed: from `trade_off`.
        shares: ``(S,)`` in [0, 1] by arm, nan for a run that diverged; arms may be missing.
    """
    rows, compared = [], {}
    for name in by_seed["damage"]:
        row = {"arm": name}
        for quantity in (*_SPEED, *_DAMAGE):
            values, heading = by_seed[quantity][name], QUANTITIES[quantity]
            row[heading] = tables.describe_values(values)
            reached = by_seed[f"{quantity} reached"][name] if quantity in _SPEED else values.notna()
            if not reached.all():
                row[heading] += f", {reached.sum()} of {len(reached)} got there"
            gap = None if name == SCAN else tables.paired(values, by_seed[quantity][SCAN])
            row[f"{heading} minus {SCAN}"] = gap
            compared[f"{heading} minus {SCAN}"] = 1
        known = pd.Series(shares.get(name), dtype=float).dropna()
        row["emphasis on wrong labels (%)"] = (
            tables.describe_values(100 * known) if len(known) else "–"
        )
        rows.append(row)
    return tables.corrected_columns(pd.DataFrame(rows), compared)


def directions_table(by_seed: BySeed) -> pd.DataFrame:
    """The directions that the review states, and whether they are seen here.

    Args:
        by_seed: from `trade_off`.

    Returns:
        A row for each claim and quantity: the `group_difference`, its p Holm-corrected over the
        rows. ``seen``: "yes" if its 95 % interval lies on the stated side of 0 and p is below
        0.05, "opposite" if on the other side; else "no difference seen" or "too few seeds"; "not
        run" where a group has no arm.
    """
    rows = [
        {"the review": claim.text, "measured": QUANTITIES[quantity],
         "difference": f"{claim.treated} − {claim.baseline}", "stated": claim.stated,
         "here": group_difference(by_seed, quantity, claim.treated, claim.baseline)}
        for claim in CLAIMS for quantity in claim.quantities
    ]  # fmt: skip
    for row, gap in zip(rows, holm_corrected([row["here"] for row in rows]), strict=True):
        row["seen"] = tables.MISSING if gap is None else direction(gap)
        if row["seen"] in ("higher", "lower"):
            side = "yes" if row["seen"] == row["stated"] else "opposite"
            row["seen"] = side if gap.p < 0.05 else "no difference seen"
    return tables.corrected_columns(pd.DataFrame(rows), {"here": 2})
