"""Subset search: what is in the subsets, what training on them costs and gives."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, precision_recall_curve

from hardtrain.errors import ParameterError
from hardtrain.papers.subset_search.ensembles import ACQUISITIONS, SPOKEN
from hardtrain.papers.subset_search.selection import choose, jaccard
from hardtrain.report.tables import describe_values, difference, metric_by_seed
from hardtrain.report.text import format_number
from hardtrain.runs.run import Run
from hardtrain.statistics import detectable, mean_interval

_STYLES = {  # of the kinds of subsets: colour (Okabe-Ito, Tol), line style, marker
    "all data": ("#000000", "-", "o"),
    "predictive entropy": ("#56B4E9", (0, (3, 1, 1, 1, 1, 1)), ">"),
    "mutual information": ("#0072B2", "--", "s"),
    "variation ratio": ("#009E73", "-.", "^"),
    "error count": ("#CC79A7", (0, (1, 1)), "D"),
    "build-up": ("#E69F00", (0, (5, 1)), "v"),
    "highest, balanced": ("#882255", (0, (3, 1, 1, 1)), "P"),
    "lowest": ("#999933", (0, (5, 3)), "X"),
    "random": ("#808080", (0, (7, 2, 1, 2)), "*"),
    "random, balanced": ("#404040", (0, (1, 2)), "p"),
}


def kind_style(kind: str) -> dict:
    """Colour, line style and marker of a kind of subset, the same in all figures.

    Example:
        >>> kind_style("random")["marker"]
        '*'
    """
    return dict(zip(("color", "linestyle", "marker"), _STYLES[kind], strict=True))


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


def label_error_table(
    doubts: Sequence[Mapping[str, np.ndarray]], wrong: np.ndarray
) -> pd.DataFrame:
    """Wrong labels (%) among as many highest scores as there are wrong ones, average precision,
    and how much must be looked at to find nine tenths of them, beside chance: means over ensembles
    with 95 % intervals. Equal scores count by the share of wrong labels among them."""
    rows, number = [], int(wrong.sum())
    for name in ACQUISITIONS:
        shares = [_label_error_shares(scores[name].astype(float), wrong) for scores in doubts]
        cells = [describe_values(column, 1, 100) for column in zip(*shares, strict=True)]
        rows.append([SPOKEN[name], *cells])
    chance = [f"{100 * value:.1f}" for value in (wrong.mean(), wrong.mean(), 0.9)]
    columns = ["acquisition function", f"wrong among the {number} highest (%)",
               "average precision (%)", "looked at to find 90 % (%)"]  # fmt: skip
    return pd.DataFrame([*rows, ["chance", *chance]], columns=columns)


def _label_error_shares(values: np.ndarray, wrong: np.ndarray) -> tuple[float, float, float]:
    precision, recall = label_error_curve(values, wrong)
    first, number = np.flatnonzero(recall >= 0.9)[0], int(wrong.sum())
    looked_at = recall[first] * number / precision[first] / len(wrong)
    cut = np.sort(values)[-number]
    above = values > cut
    found = wrong[above].sum() + (number - above.sum()) * wrong[values == cut].mean()
    return found / number, average_precision_score(wrong, values), looked_at


def ensembles_table(
    scores: Sequence[np.ndarray], sizes: Mapping[float, int], results: pd.DataFrame, arms: Mapping
) -> pd.DataFrame:
    """How far the choice is luck: the overlap of two ensembles' subsets, and the difference in
    test error that so many seeds would see in four of five repetitions.

    Args:
        scores: of each ensemble, ``(N,)``.
        sizes: of the subsets, by the part that is kept.
        results: of the runs.
        arms: by the part that is kept: runs on the chosen subsets, all data, random subsets.
    """
    rows = []
    for fraction, size in sizes.items():
        sets = [choose(values, size, seed=0) for values in scores]
        overlaps = [jaccard(first, second) for first, second in combinations(sets, 2)]
        chosen, whole, drawn = arms[fraction]
        gaps = [difference(results, chosen, base) for base in (whole, drawn)]
        least = [np.nan if gap is None else detectable(gap) for gap in gaps]
        overlap = np.mean(overlaps) if overlaps else np.nan
        rows.append([f"{100 * fraction:g}", format_number(overlap, 2),
                     format_number(chance_overlap(fraction), 2),
                     *(format_number(value, 2) for value in least)])  # fmt: skip
    columns = ["kept (%)", "overlap of two ensembles' subsets (Jaccard)", "by chance",
               "seen with 80 % power: chosen minus all data (points)",
               "chosen minus random (points)"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)
