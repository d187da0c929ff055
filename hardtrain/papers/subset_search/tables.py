"""Subset search: what is in the subsets, what training on them costs and gives."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, precision_recall_curve

from hardtrain.errors import ParameterError
from hardtrain.papers.subset_search.ensembles import ACQUISITIONS, SPOKEN
from hardtrain.papers.subset_search.selection import choose
from hardtrain.report.tables import metric_by_seed
from hardtrain.runs.run import Run
from hardtrain.statistics import mean_interval


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
                "acquisition function": SPOKEN[name],
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
    """Test errors (%) ``(S, A)`` of the seeds that finished in every arm."""
    columns = [100 * metric_by_seed(results, arm, "test_error") for arm in arms]
    return pd.concat(columns, axis=1, join="inner").to_numpy()


def error_points(
    results: pd.DataFrame, arms: Sequence[Sequence[Run]]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean test error (%) of each arm and half its 95 % interval, ``(A,)`` each.

    They are over the seeds that finished in every arm; nan without any, the interval also with one.
    """
    errors = errors_by_seed(results, arms)
    if not len(errors):
        return np.full((2, len(arms)), np.nan)
    intervals = [mean_interval(column) for column in errors.T]
    return np.array([(interval.mean, interval.half_width) for interval in intervals]).T


def label_error_curve(scores: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall ``(T,)`` of "the highest scores are wrong labels", from the highest
    threshold down; samples of equal score count together.

    Raises:
        ParameterError: no label is wrong.

    Example:
        >>> label_error_curve(np.array([3, 2, 1, 1]), np.array([True, False, True, False]))
        (array([1. , 0.5, 0.5]), array([0.5, 0.5, 1. ]))
    """
    if not np.any(wrong):
        raise ParameterError("no label is wrong, so there is none to be found")
    precision, recall, _ = precision_recall_curve(wrong, scores.astype(float))
    return precision[-2::-1], recall[-2::-1]  # without sklearn's own last point


def label_error_table(scores: Mapping[str, np.ndarray], wrong: np.ndarray) -> pd.DataFrame:
    """Wrong labels (%) among as many highest scores as there are wrong ones, average precision,
    and how much must be looked at to find nine tenths of them, beside chance. Equal scores count
    by the share of wrong labels among them."""
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
        rows.append([SPOKEN[name], *numbers])
    chance = [f"{100 * value:.1f}" for value in (wrong.mean(), wrong.mean(), 0.9)]
    columns = ["acquisition function", f"wrong among the {number} highest (%)",
               "average precision (%)", "looked at to find 90 % (%)"]  # fmt: skip
    return pd.DataFrame([*rows, ["chance", *chance]], columns=columns)
