"""Active Bias: errors, speed against robustness, claims, as tables and as numbers for figures.

*Arms* are as in `bias`.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce

import numpy as np
import pandas as pd

from hardtrain.papers.active_bias.emphasis import SCAN, UNIFORM
from hardtrain.report.tables import curves, describe, describe_values, difference, metric_by_seed
from hardtrain.report.text import format_interval, format_p
from hardtrain.runs.run import Run
from hardtrain.statistics import MIN_SEEDS, PairedDifference, Verdict, paired_difference

GROUPS = {
    "easy first": ("SGD-SE", "SGD-WE"),
    "hard first": ("SGD-SD", "SGD-WD"),
    "uncertain": ("SGD-SPV", "SGD-WPV", "SGD-STC", "SGD-WTC"),
}
PRINTED_REDUCTION = (1.0, 18.0)  # %, the only number in the review


def mean_of_finite(values: np.ndarray) -> np.ndarray:
    """The mean over the first axis of what is not nan; nan where nothing is.

    Example:
        >>> mean_of_finite(np.array([[1.0, np.nan], [3.0, np.nan]]))
        array([ 2., nan])
    """
    known = np.isfinite(values)
    total, number = np.where(known, values, 0).sum(axis=0), known.sum(axis=0)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def goal_levels(history: pd.DataFrame, arm: Sequence[Run], epoch: int) -> dict[str, float]:
    """What an arm has after so many epochs, the mean of its runs that reached their end:
    ``train_set_loss`` and ``test_error``; nan without such a run."""
    levels = {}
    for column in ("train_set_loss", "test_error"):
        levels[column] = np.nan
        if column in history:  # not if no run got as far as an evaluation
            epochs, values = curves(history, arm, column)
            chosen = values[:, epochs == epoch]
            levels[column] = float(chosen.mean()) if chosen.size else np.nan
    return levels


def epochs_to_goal(
    history: pd.DataFrame, results: pd.DataFrame, arm: Sequence[Run], column: str, goal: float
) -> pd.DataFrame:
    """When each of an arm's finished runs was first at or below a goal.

    Returns:
        Indexed by seed: ``epochs``, all of the run's if it never was, and ``reached``.
    """
    finished = metric_by_seed(results, arm, "test_error").index
    rows = {}
    for run in arm:
        if run.seed in finished:
            own = history[history["key"] == run.key]
            below = own["epoch"][own[column] <= goal]
            rows[run.seed] = (float(below.min() if len(below) else run.epochs), len(below) > 0)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["epochs", "reached"])


def trade_off(
    results: pd.DataFrame,
    history: pd.DataFrame,
    clean: Mapping[str, Sequence[Run]],
    noisy: Mapping[str, Sequence[Run]],
    goals: Mapping[str, float],
) -> dict[str, dict[str, pd.Series]]:
    """Speed, robustness and quality of every arm, by seed.

    Args:
        results, history: of the runs.
        clean, noisy: runs by the name of the arm, without and with wrong labels.
        goals: from `goal_levels`.

    Returns:
        By quantity, then by arm: on clean labels the epochs to each goal, ``train_set_loss`` and
        ``test_error``, and whether it was reached, ``train_set_loss reached`` and so on;
        ``clean error`` and ``noisy error``, the test error in % at the end without and with wrong
        labels; ``damage``, the second minus the first.
    """
    found: dict[str, dict[str, pd.Series]] = {}
    for column, goal in goals.items():
        each = {n: epochs_to_goal(history, results, a, column, goal) for n, a in clean.items()}
        found[column] = {name: frame["epochs"] for name, frame in each.items()}
        found[f"{column} reached"] = {name: frame["reached"] for name, frame in each.items()}
    for quantity, arms in (("clean error", clean), ("noisy error", noisy)):
        found[quantity] = {
            name: 100 * metric_by_seed(results, arm, "test_error") for name, arm in arms.items()
        }
    found["damage"] = {
        name: (found["noisy error"][name] - error).dropna()  # by seed, where both finished
        for name, error in found["clean error"].items()
    }
    return found


def pooled_difference(
    values: Mapping[str, pd.Series], treatment: Iterable[str], baseline: Iterable[str]
) -> PairedDifference | None:
    """The mean of some arms minus that of others, seed by seed.

    Args:
        values: a number for each seed, by the name of the arm.
        treatment, baseline: names; a seed counts if it is there for all of them.

    Returns:
        ``None`` if there is no such seed.

    Example:
        >>> values = {"a": pd.Series({0: 1.0, 1: 2.0}), "b": pd.Series({0: 3.0, 1: 4.0})}
        >>> values["c"] = pd.Series({0: 1.0, 1: 1.0, 2: 9.0})
        >>> found = pooled_difference(values, ("a", "b"), ("c",))
        >>> found.mean, found.n
        (1.5, 2)
    """
    sides = [[values[name] for name in names] for names in (treatment, baseline)]
    common = reduce(pd.Index.intersection, (arm.index for side in sides for arm in side))
    if common.empty:
        return None
    return paired_difference(*(sum(arm[common] for arm in side) / len(side) for side in sides))


def reduction(
    results: pd.DataFrame, treatment: Sequence[Run], baseline: Sequence[Run]
) -> PairedDifference | None:
    """By how many % of the baseline's mean test error the treatment's is lower, over common seeds;
    positive is better. ``None`` without a pair, or if the baseline makes no error."""
    found = difference(results, baseline, treatment, "test_error")
    if found is None:
        return None
    errors = metric_by_seed(results, baseline, "test_error")
    common = errors.index.intersection(metric_by_seed(results, treatment, "test_error").index)
    level = errors[common].mean()
    if level == 0:
        return None
    return found._replace(mean=found.mean / level, low=found.low / level, high=found.high / level)


def range_verdict(
    found: PairedDifference | None,
    printed: tuple[float, float],
    *,
    comparable: bool,
    reason: str = "",
) -> Verdict:
    """A measured reduction against a printed range that belongs to no single cell.

    The words and their order are those of ``statistics.verdict``. A mean inside the range is "same
    direction" at best: a range over several data sets says of none where it should lie.

    Example:
        >>> found = PairedDifference(mean=5.0, low=2.0, high=8.0, p=0.01, n=5)
        >>> print(range_verdict(found, (1.0, 18.0), comparable=True).reason)
        measured +5 [+2, +8] %, n = 5; inside the printed 1 to 18 %
    """
    if not comparable:
        return Verdict("not comparable", reason or "other protocol, profile or data")
    if found is None:
        return Verdict("not comparable", "no pair of finished runs, or no error to reduce")
    if found.n < MIN_SEEDS:
        return Verdict("not comparable", f"{found.n} of at least {MIN_SEEDS} seeds")
    low, high = printed
    side = "inside" if low <= found.mean <= high else "outside"
    numbers = f"measured {found.mean:+.3g} [{found.low:+.3g}, {found.high:+.3g}] %, n = {found.n}"
    word = {"yes": "same direction"}.get(seen := _seen(found, 1), seen)
    return Verdict(word, f"{numbers}; {side} the printed {low:g} to {high:g} %")


def error_table(
    results: pd.DataFrame, arms: Mapping[str, Sequence[Run]], *, baselines: Sequence[str]
) -> pd.DataFrame:
    """A row per arm: test error in %, and for each baseline the paired difference in points with
    its 95 % interval and p.

    Args:
        results: from ``run_missing``.
        arms: runs by name.
        baselines: names of arms.
    """
    rows = []
    for name, arm in arms.items():
        row = {"arm": name, "test error (%)": describe(results, arm, "test_error")}
        for base in baselines:
            gap = difference(results, arm, arms[base], "test_error") if name != base else None
            row[f"minus {base} (points)"] = _gap_text(gap, itself=name == base)
            row[f"p ({base})"] = format_p(gap)
        rows.append(row)
    return pd.DataFrame(rows)


def reduction_table(
    results: pd.DataFrame,
    arms: Mapping[str, Sequence[Run]],
    *,
    comparable: bool,
    reason: str = "",
) -> pd.DataFrame:
    """By how much the uncertain arms reduce the test error, relative to each baseline, beside the
    printed range, with a verdict on the reduction relative to SGD-Scan."""
    low, high = PRINTED_REDUCTION
    rows = []
    for name in GROUPS["uncertain"]:
        row = {"arm": name, "printed (%)": f"{low:g} to {high:g}"}
        found = {base: reduction(results, arms[name], arms[base]) for base in (SCAN, UNIFORM)}
        for base, gap in found.items():
            row[f"here, to {base} (%)"] = _gap_text(gap, digits=1)
        outcome = range_verdict(
            found[SCAN], PRINTED_REDUCTION, comparable=comparable, reason=reason
        )
        rows.append(row | {"verdict": outcome.word, "why": outcome.reason})
    return pd.DataFrame(rows)


def trade_off_table(
    found: Mapping[str, Mapping[str, pd.Series]], shares: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """A row per arm: epochs to both goals and damage by wrong labels, with paired differences to
    SGD-Scan, and the share of the emphasis on wrong labels.

    Args:
        found: from `trade_off`.
        shares: ``(S,)`` in [0, 1] by arm, nan for a run that diverged; arms may be missing.
    """
    rows = []
    for name in found["damage"]:
        row = {"arm": name}
        for quantity, (label, unit) in _QUANTITIES.items():
            row[f"{label} ({unit})"] = _reached_text(found, quantity, name)
            gap = pooled_difference(found[quantity], [name], [SCAN])
            row[f"minus {SCAN}, {label}"] = _gap_text(gap, digits=1, itself=name == SCAN)
        share = 100 * np.asarray(shares.get(name, []), dtype=float)
        known = share[np.isfinite(share)]
        row["emphasis on wrong labels (%)"] = describe_values(known) if len(known) else "–"
        rows.append(row)
    return pd.DataFrame(rows)


_QUANTITIES = {
    "train_set_loss": ("to the training loss", "epochs"),
    "test_error": ("to the test error", "epochs"),
    "damage": ("damage", "points"),
}
# what the review says, treatment, baseline, expected sign, quantities of `trade_off`
_SPEED = ("train_set_loss", "test_error")
_CLAIMS = (
    ("easy first is robust to outliers", "easy first", SCAN, -1, ("damage",)),
    ("easy first slows training down", "easy first", SCAN, 1, _SPEED),
    ("hard first is prone to outliers", "hard first", SCAN, 1, ("damage",)),
    ("hard first accelerates training on clean data", "hard first", SCAN, -1, _SPEED),
    ("uncertain: more robust than hard first", "uncertain", "hard first", -1, ("damage",)),
    ("uncertain: faster than easy first", "uncertain", "easy first", -1, _SPEED),
    ("uncertain: less robust than easy first", "uncertain", "easy first", 1, ("damage",)),
    ("uncertain: slower than hard first", "uncertain", "hard first", 1, _SPEED),
    ("uncertain reduces the error", "uncertain", SCAN, -1, ("clean error", "noisy error")),
)
_MEASURED = {
    "train_set_loss": "epochs to a training loss, clean labels",
    "test_error": "epochs to a test error, clean labels",
    "damage": "damage by wrong labels (points)",
    "clean error": "test error, clean labels (points)",
    "noisy error": "test error, wrong labels (points)",
}


def claims_table(found: Mapping[str, Mapping[str, pd.Series]]) -> pd.DataFrame:
    """The directions that the review states, and whether they are seen here.

    Args:
        found: from `trade_off`.

    Returns:
        A row per claim: the difference between the arms of a group of `GROUPS` (the mean of each
        seed) and another group or SGD-Scan; ``seen``: "yes" if its 95 % interval lies on the
        stated side of 0, "opposite" if on the other, else "no difference seen"; "too few seeds"
        below three.
    """
    rows = []
    pairs = [(*claim[:4], quantity) for claim in _CLAIMS for quantity in claim[4]]
    for claim, treated, base, sign, quantity in pairs:
        gap = pooled_difference(found[quantity], GROUPS[treated], GROUPS.get(base, (base,)))
        row = {"the review": claim, "measured": _MEASURED[quantity]}
        row |= {"difference": f"{treated} − {base}", "stated": "above 0" if sign > 0 else "below 0"}
        seen = "too few seeds" if gap is None or gap.n < MIN_SEEDS else _seen(gap, sign)
        rows.append(row | {"here": _gap_text(gap), "seen": seen})
    return pd.DataFrame(rows)


def sensitivity_table(
    results: pd.DataFrame,
    settings: Mapping[tuple[str, str, float, float], Sequence[Run]],
    baselines: Mapping[str, Sequence[Run]],
) -> pd.DataFrame:
    """A row per setting, with the paired difference of its test error to SGD-Scan's.

    Args:
        results: of the runs.
        settings: runs by (labels, arm, smoothing, burn-in).
        baselines: runs of SGD-Scan by labels.
    """
    rows = []
    for (labels, name, smoothing, burn_in), arm in settings.items():
        gap = difference(results, arm, baselines[labels], "test_error")
        row = {"labels": labels, "arm": name, "smoothing": smoothing, "burn-in": burn_in}
        row["test error (%)"] = describe(results, arm, "test_error")
        rows.append(row | {f"minus {SCAN} (points)": _gap_text(gap), "p": format_p(gap)})
    return pd.DataFrame(rows)


def _gap_text(gap: PairedDifference | None, *, digits: int = 2, itself: bool = False) -> str:
    if itself:
        return ""
    return format_interval(gap, digits=digits, signed=True) if gap else "no pair"


def _reached_text(found: Mapping, quantity: str, name: str) -> str:
    """Mean and interval, and how many runs got there if not all did."""
    text = describe_values(found[quantity][name])
    reached = found.get(f"{quantity} reached", {}).get(name)
    if reached is None or reached.all():
        return text
    return f"{text}, {reached.sum()} of {len(reached)} got there"


def _seen(gap: PairedDifference, sign: int) -> str:
    if gap.low <= 0 <= gap.high:
        return "no difference seen"
    return "yes" if sign * gap.mean > 0 else "opposite"
