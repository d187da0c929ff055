"""Subset search: what is in the subsets, what training on them costs and gives."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from hardtrain.errors import ParameterError
from hardtrain.papers.subset_search.ensembles import ACQUISITIONS
from hardtrain.papers.subset_search.selection import choose
from hardtrain.report import tables
from hardtrain.report.text import format_interval, format_p
from hardtrain.runs.run import Run
from hardtrain.statistics import MIN_SEEDS, PairedDifference, mean_interval


def chance_overlap(fraction: float) -> float:
    """`jaccard` of two random subsets of ``fraction`` of many samples: f / (2 - f).

    Example:
        >>> round(chance_overlap(0.5), 3)
        0.333
    """
    return fraction / (2 - fraction)


def score_table(scores: Mapping[str, np.ndarray], labels: np.ndarray, size: int) -> pd.DataFrame:
    """What each acquisition function tells apart, and what a subset of ``size`` leaves.

    Columns: samples of score 0 (%), different scores, samples of the score at the cut and how many
    of these are kept; of the class that lost most and of the one that lost least, how much is kept
    (%).
    """
    rows = []
    held = np.bincount(labels)
    for name in ACQUISITIONS:
        values = scores[name]
        chosen = choose(values, size, seed=0)
        cut = values[chosen[-1]]
        kept = np.bincount(labels[chosen], minlength=len(held))
        share = 100 * kept[held > 0] / held[held > 0]
        rows.append(
            {
                "acquisition function": name.replace("_", " "),
                "score 0 (%)": f"{100 * np.mean(values == 0):.1f}",
                "different scores": len(np.unique(values)),
                "tied at the cut": int(np.sum(values == cut)),
                "of these kept": int(np.sum(values[chosen] == cut)),
                "kept of the class that lost most (%)": f"{share.min():.1f}",
                "... least (%)": f"{share.max():.1f}",
            }
        )
    return pd.DataFrame(rows)


def errors_by_seed(results: pd.DataFrame, arms: Sequence[Sequence[Run]]) -> np.ndarray:
    """Test errors ``(S, A)`` of the seeds that finished in every arm."""
    columns = [tables.metric_by_seed(results, arm, "test_error") for arm in arms]
    return pd.concat(columns, axis=1, join="inner").to_numpy()


def error_points(
    results: pd.DataFrame, arms: Sequence[Sequence[Run]]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean test error (%) of each arm and half its 95 % interval, ``(A,)`` each, over the seeds
    that finished in every arm; nan without any, the interval also with one."""
    errors = 100 * errors_by_seed(results, arms)
    if not len(errors):
        return np.full((2, len(arms)), np.nan)
    found = [mean_interval(column) for column in errors.T]
    return np.array([i.mean for i in found]), np.array([i.half_width for i in found])


def subset_table(
    results: pd.DataFrame,
    arms: Mapping[tuple[str, ...], Sequence[Run]],
    names: Sequence[str],
    baselines: Mapping[str, Mapping[tuple[str, ...], Sequence[Run]]],
) -> pd.DataFrame:
    """A row per arm: test error (%), and the paired difference (points) to its baselines.

    Args:
        results: from ``run_missing``.
        arms: runs that differ in their seed, by as many texts as ``names`` has columns.
        names: of the first columns.
        baselines: for each name of a baseline, what each arm is compared with; an arm that is its
            own baseline has no difference, nor has one without.
    """
    rows = []
    for labels, arm in arms.items():
        row = dict(zip(names, labels, strict=True))
        row["test error (%)"] = tables.describe(results, arm, "test_error")
        for name, chosen in baselines.items():
            other = chosen.get(labels, ())
            same = [run.key for run in arm] == [run.key for run in other]
            gap = None if same else tables.difference(results, arm, other, "test_error")
            row[f"minus {name} (points)"] = format_interval(gap, signed=True) if gap else ""
            row[f"p ({name})"] = format_p(gap)
        rows.append(row)
    return pd.DataFrame(rows)


def seen(difference: PairedDifference | None) -> str:
    """What a paired difference of errors says by itself, where no number is printed.

    Example:
        >>> seen(PairedDifference(mean=-0.4, low=-0.7, high=-0.1, p=0.01, n=10))
        'lower error'
    """
    if difference is None:
        return tables.MISSING
    if difference.n < MIN_SEEDS:
        return f"{difference.n} of at least {MIN_SEEDS} seeds"
    if difference.low <= 0 <= difference.high:
        return "no difference seen"
    return "lower error" if difference.mean < 0 else "higher error"


def label_error_curve(scores: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall ``(T,)`` of "the highest scores are wrong labels", from the highest
    threshold down; samples of equal score count together.

    Raises:
        ParameterError: no label is wrong.

    Example:
        >>> label_error_curve(np.array([3, 2, 1, 1]), np.array([True, False, True, False]))
        (array([1. , 0.5, 0.5]), array([0.5, 0.5, 1. ]))
    """
    from sklearn.metrics import precision_recall_curve

    if not np.any(wrong):
        raise ParameterError("no label is wrong, so there is none to be found")
    precision, recall, _ = precision_recall_curve(wrong, scores.astype(float))
    return precision[-2::-1], recall[-2::-1]  # without sklearn's own last point


def label_error_table(scores: Mapping[str, np.ndarray], wrong: np.ndarray) -> pd.DataFrame:
    """Wrong labels (%) among as many highest scores as there are wrong ones, average precision,
    and how much must be looked at to find nine tenths of them, beside chance. Equal scores count
    by the share of wrong labels among them."""
    from sklearn.metrics import average_precision_score

    rows, number = [], int(wrong.sum())
    for name in ACQUISITIONS:
        values = scores[name].astype(float)
        precision, recall = label_error_curve(values, wrong)
        first = np.flatnonzero(recall >= 0.9)[0]
        looked_at = recall[first] * number / precision[first] / len(wrong)
        cut = np.sort(values)[-number]
        above = values > cut
        found = wrong[above].sum() + (number - above.sum()) * wrong[values == cut].mean()
        average = average_precision_score(wrong, values)
        numbers = [f"{100 * value:.1f}" for value in (found / number, average, looked_at)]
        rows.append([name.replace("_", " "), *numbers])
    chance = [f"{100 * value:.1f}" for value in (wrong.mean(), wrong.mean(), 0.9)]
    columns = ["acquisition function", f"wrong among the {number} highest (%)",
               "average precision (%)", "looked at to find 90 % (%)"]  # fmt: skip
    return pd.DataFrame([*rows, ["chance", *chance]], columns=columns)
