"""Subset search: the subsets that an ensemble's scores give, and the runs on them.

From trainings to trainings: runs that keep checkpoints (`ensemble_of`) -> scores in a file that can
be committed (`score_arrays`) -> indices (`choose`, `grow`) -> runs on them (`targets`); `plan` does
it for a whole profile. Scores are used as the file has them, so that it alone leads to the same
runs again.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import torch
from scipy.stats import spearmanr

from hardtrain.papers.subset_search import ensembles
from hardtrain.papers.subset_search.ensembles import ACQUISITIONS, ORDERS, SPOKEN, steps_per_epoch
from hardtrain.runs import subsets
from hardtrain.runs.run import Run
from hardtrain.runs.run_data import load_data, training_set
from hardtrain.runs.store import RunStore
from hardtrain.strategies.subset_selection import select_subset
from hardtrain.training import randomness


def subsets_by_members(
    *,
    runs: Sequence[Run],
    store: RunStore | None = None,
    train_missing: bool = True,
    counts: Sequence[int],
    size: int,
) -> dict[str, np.ndarray]:
    """The subsets that the first members of an ensemble choose, for ``figure_data``.

    Args:
        runs, store, train_missing: as in `score_arrays`.
        counts: numbers of members; those that the ensemble does not reach are left out, and all
            its members are always a row.
        size: of the subsets.

    Returns:
        ``num_members (P,)``. For the first of ``ORDERS``, ``above`` and ``tied``
        ``(P, A, ceil(N / 8))``: by number of members and function of ``ACQUISITIONS``, which
        samples lie above the score at the cut and which have it, a bit a sample, for `ranks_of`.
        ``correlation`` and ``overlap (O, P, A)``, with all members' scores (Spearman's, nan where
        all are equal) and subset (`jaccard`, equal scores drawn anew). ``num_samples ()``.
    """
    runs = ensembles.finished_runs(runs, store, train_missing)
    orders = [ensembles.member_order(runs, order) for order in ORDERS]
    num_members = len(orders[0])
    reached = [*sorted({count for count in counts if count < num_members}), num_members]
    groups = [set(order[:count]) for order in orders for count in reached]
    scores = ensembles.ensemble_scores(runs, store, groups)
    above, tied, correlation, overlap = [], [], [], []
    for part, name in product(scores, ACQUISITIONS):
        values, last = part[name].astype(float), scores[-1][name].astype(float)
        cut = np.sort(values)[-size]
        above.append(np.packbits(values > cut))
        tied.append(np.packbits(values == cut))
        varied = np.ptp(values) > 0 and np.ptp(last) > 0
        correlation.append(spearmanr(values, last).statistic if varied else np.nan)
        overlap.append(jaccard(choose(values, size, seed=1), choose(last, size, seed=0)))
    shape = (len(orders), len(reached), len(ACQUISITIONS))
    return {
        "num_members": np.array(reached),
        "above": np.reshape(above, (*shape, -1))[0],
        "tied": np.reshape(tied, (*shape, -1))[0],
        "correlation": np.reshape(correlation, shape),
        "overlap": np.reshape(overlap, shape),
        "num_samples": np.array(len(values)),
    }


def ranks_of(arrays: Mapping[str, np.ndarray], row: int, function: str) -> np.ndarray:
    """Of `subsets_by_members`: 2 above the cut, 1 at it, 0 below ``(N,)``.

    From them `choose` takes the same samples as from the scores.
    """
    column = ACQUISITIONS.index(function)
    above, tied = (np.unpackbits(arrays[name][row, column]) for name in ("above", "tied"))
    return (2 * above + tied)[: int(arrays["num_samples"])]


def training_labels(*, runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """Labels ``(N,)`` and class names of a run's training set, for ``figure_data``.

    With them a notebook plans subsets of data that are not at hand.

    Example:
        >>> arrays = training_labels(runs=[Run("digits", "mlp", train_size=20)])
        >>> np.bincount(arrays["labels"]).tolist(), len(arrays["class_names"])
        ([2, 2, 2, 2, 2, 2, 2, 2, 2, 2], 10)
    """
    (run,) = runs
    data, _, _ = load_data(run)
    labels = data.labels.cpu().numpy().astype(np.int16)
    return {"labels": labels, "class_names": np.array(data.class_names)}


def pictures(*, runs: Sequence[Run], indices: Sequence[int]) -> dict[str, np.ndarray]:
    """Images of a run's training set by index, for ``figure_data``.

    Returns:
        ``images (n, C, H, W)``, and the names of the class that the training is ``given`` and of
        the ``true`` one, ``(n,)`` each.
    """
    (run,) = runs
    data, _, _ = load_data(run)
    names = np.array(data.class_names)
    return {
        "images": data.images[indices].cpu().numpy(),
        "given": names[training_set(run, data).labels[indices].cpu().numpy()],
        "true": names[data.labels[indices].cpu().numpy()],
    }


def subset_size(run: Run, num_samples: int, fraction: float) -> int:
    """``fraction`` of ``num_samples``, rounded.

    It is one less where ``run`` would be left with a batch of a single sample, which batch-norm
    cannot take.

    Example:
        >>> run = Run("digits", "cnn_small", batch_size=10)
        >>> subset_size(run, 100, 0.7), subset_size(run, 100, 0.71)
        (70, 70)
    """
    size = max(1, round(fraction * num_samples))
    return size - (size > run.batch_size and size % run.batch_size == 1)


def choose(
    scores: np.ndarray,
    size: int,
    *,
    seed: int,
    labels: np.ndarray | None = None,
    lowest: bool = False,
) -> np.ndarray:
    """Indices ``(size,)`` of the highest scores, or of the ``lowest``.

    With ``labels`` there is the same number of each class.

    Equal scores come in an order that ``seed`` draws. The order of the file, which `select_subset`
    would take, may have a meaning: where all members agree it would keep the first classes of a
    sorted file. Subsets of one seed are nested by size.

    Example:
        >>> choose(np.array([0.5, 0.9, 0.7, 0.1]), 2, seed=0)
        array([1, 2])
    """
    # raw bits: the same with every version of NumPy, so that committed runs are found again
    bits = np.random.PCG64(randomness.derived_seed(seed, "equal scores")).random_raw(len(scores))
    order = bits.argsort(kind="stable")
    values = torch.from_numpy(np.asarray(scores, dtype=np.float64)[order])
    if labels is not None:
        labels = torch.from_numpy(np.asarray(labels, dtype=np.int64)[order])
    values = -values if lowest else values
    return order[select_subset(values, size, labels=labels, balanced=labels is not None).numpy()]


def grow(chosen: np.ndarray, scores: np.ndarray, size: int, *, seed: int) -> np.ndarray:
    """``chosen`` and, up to ``size``, the highest-scored of the other samples, as in `choose`.

    Example:
        >>> sorted(grow(np.array([3]), np.array([0.5, 0.9, 0.7, 0.1]), 3, seed=0).tolist())
        [1, 2, 3]
    """
    values = np.array(scores, dtype=np.float64)
    values[chosen] = np.inf
    return choose(values, size, seed=seed)


def on_subset(run: Run, indices: np.ndarray, num_samples: int) -> Run:
    """``run``, trained on these samples; the run itself if they are all."""
    if len(indices) == num_samples:
        return run
    return dataclasses.replace(run, subset=subsets.pack(indices, num_samples))


def at_equal_updates(run: Run, num_samples: int) -> Run:
    """A run on a subset, with as many epochs as bring it nearest to the updates on all samples.

    It is for schedules that stretch with the training (constant, cosine).

    Example:
        >>> run = Run("digits", "mlp", epochs=20, batch_size=10)
        >>> at_equal_updates(on_subset(run, np.arange(70), 100), 100).epochs
        29
    """
    steps = run.epochs * steps_per_epoch(run, num_samples)
    size = len(subsets.unpack(run.subset, num_samples)) if run.subset else num_samples
    return dataclasses.replace(run, epochs=max(1, round(steps / steps_per_epoch(run, size))))


def candidates(
    scores: Mapping[str, np.ndarray] | None,
    labels: np.ndarray,
    size: int,
    seed: int,
    acquisition: str,
    grown: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """The subsets of one size that are compared, as indices.

    Args:
        scores: from `score_arrays`; ``None`` where they are not known.
        labels: ``(N,)``, of the training set.
        seed: of the target: it draws the order of equal scores, and the random subsets.
        acquisition: the function of the variants.
        grown: the build-up's subset, or ``None``.

    Returns:
        The highest scores by each of ``ACQUISITIONS`` (their names with blanks); by
        ``acquisition`` also ``highest, balanced`` and ``lowest``; ``build-up``, ``random``,
        ``random, balanced``. Without scores, or ``grown``, those that need none.
    """
    rankings: dict[str, tuple] = {}
    if scores is not None:
        rankings = {SPOKEN[name]: (scores[name], {}) for name in ACQUISITIONS}
        rankings["highest, balanced"] = (scores[acquisition], {"labels": labels})
        rankings["lowest"] = (scores[acquisition], {"lowest": True})
    rankings["random"] = (np.zeros(len(labels)), {})
    rankings["random, balanced"] = (np.zeros(len(labels)), {"labels": labels})
    chosen = {
        name: choose(values, size, seed=seed, **options)
        for name, (values, options) in rankings.items()
    }
    return chosen if grown is None else chosen | {"build-up": grown}


def targets(run: Run, chosen: Mapping[int, np.ndarray], num_samples: int) -> list[Run]:
    """``run`` with each seed, trained from scratch on that seed's samples."""
    return [
        on_subset(dataclasses.replace(run, seed=seed), indices, num_samples)
        for seed, indices in chosen.items()
    ]


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Overlap ``|A ∩ B| / |A ∪ B|`` of two index sets.

    Example:
        >>> round(jaccard(np.array([0, 1]), np.array([1, 2])), 3)
        0.333
    """
    common = len(np.intersect1d(first, second))
    return common / (len(first) + len(second) - common)
