"""Subset search: scores from ensembles of checkpoints, the subsets they give, what is in these.

From trainings to trainings: runs that keep checkpoints (`ensemble_of`) -> scores in a file that can
be committed (`stored`, `score_arrays`) -> indices (`choose`, `grow`) -> runs on them (`targets`).
Scores are used as the file has them, so that it alone leads to the same runs again.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from hardtrain import checks, methods, subsets, tables
from hardtrain.data import ImageDataset, load_dataset
from hardtrain.errors import DataError, ParameterError
from hardtrain.notebook import figure_data
from hardtrain.records import build, load_data, training_set
from hardtrain.runs import Run, load_artefact, run_missing
from hardtrain.statistics import (
    MIN_SEEDS,
    PairedDifference,
    format_interval,
    format_p,
    mean_interval,
)
from hardtrain.store import RunStore
from hardtrain.strategies.subset_selection import (
    EnsembleTally,
    error_count,
    mutual_information,
    predictive_entropy,
    select_subset,
    variation_ratio,
)
from hardtrain.training import extract_logits, isolated_randomness, precision_context

VERSION = 1  # raise it when a change here changes what a figure shows
ACQUISITIONS = ("predictive_entropy", "mutual_information", "variation_ratio", "error_count")
ORDERS = ("runs", "checkpoints")
ENSEMBLE_SEED = 1000  # of an ensemble's first run; no target shares its initialisation
BLOCK_SIZE = 50_000  # samples that are scored at a time

Group = set[tuple[int, int]]  # members: (run, checkpoint), both from 0


# --- ensembles -----------------------------------------------------------------------------------


def ensemble_of(run: Run, num_runs: int, num_checkpoints: int, num_samples: int) -> list[Run]:
    """The trainings of an ensemble: ``run`` with other seeds, each keeping checkpoints.

    Args:
        run: what is trained; with wrong labels it needs a ``label_noise_seed``.
        num_runs, num_checkpoints: the members are their product. A training whose last half has
            fewer steps keeps as many as that has.
        num_samples: that each trains on.

    Raises:
        ParameterError: a number below 1, or wrong labels that would differ between the runs.

    Example:
        >>> ensemble = ensemble_of(Run("digits", "mlp", epochs=2), 2, 20, 1438)
        >>> [(run.seed, run.keep) for run in ensemble]
        [(1000, ('checkpoints:12',)), (1001, ('checkpoints:12',))]
    """
    checks.integer("num_runs", num_runs, low=1)
    checks.integer("num_checkpoints", num_checkpoints, low=1)
    if run.label_noise and run.label_noise_seed is None:
        raise ParameterError("label_noise_seed = None gives each run of an ensemble other labels")
    steps = run.epochs * _steps_per_epoch(run, num_samples)
    kept = (f"checkpoints:{min(num_checkpoints, steps - steps // 2)}",)
    seeds = range(ENSEMBLE_SEED, ENSEMBLE_SEED + num_runs)
    return [dataclasses.replace(run, seed=seed, keep=kept) for seed in seeds]


def members(run: Run, checkpoints: Mapping[str, np.ndarray]) -> Iterator[nn.Module]:
    """The models of a run's checkpoints, one after the other, in evaluation mode.

    Args:
        run: whose checkpoints they are; its data must be at hand.
        checkpoints: its artefact ``checkpoints:N``.

    Yields:
        One and the same module with the next weights, on the run's device: done with before the
        next is asked for, it needs the memory of one.
    """
    train, test, _ = load_data(run)
    with isolated_randomness(0, train.images.device):
        model, _ = build(run, training_set(run, train), test)
    model.eval()
    for number in range(len(checkpoints["steps"])):
        weights = {name: stack[number] for name, stack in checkpoints.items() if name != "steps"}
        model.load_state_dict({name: torch.as_tensor(w) for name, w in weights.items()})
        yield model


def member_order(num_runs: int, num_checkpoints: int, order: str = "runs") -> list[tuple[int, int]]:
    """In which order members join a growing ensemble, as (run, checkpoint), both from 0.

    The checkpoints of a run join in van der Corput's order from the last one back, so that a small
    ensemble's are spread over all that the run kept, and are not late ones only.

    Args:
        num_runs, num_checkpoints: of the ensemble.
        order: ``"runs"``: one checkpoint of every run, then another of every run, and so on;
            ``"checkpoints"``: all of the first run, then the next run.

    Example:
        >>> member_order(2, 3)
        [(0, 2), (1, 2), (0, 0), (1, 0), (0, 1), (1, 1)]
        >>> [checkpoint for _, checkpoint in member_order(1, 20, "checkpoints")][:5]
        [19, 3, 11, 15, 7]
    """
    checks.choice("order", order, ORDERS)
    bits = (num_checkpoints - 1).bit_length()
    # numbers of checkpoints before the end, by their reversed bits
    before_end = sorted(range(num_checkpoints), key=lambda number: f"{number:0{bits}b}"[::-1])
    spread = [num_checkpoints - 1 - number for number in before_end]
    if order == "runs":
        return [(run, checkpoint) for checkpoint in spread for run in range(num_runs)]
    return [(run, checkpoint) for run in range(num_runs) for checkpoint in spread]


def finished_members(ensemble: Sequence[Run], store: RunStore | None = None) -> list[Run]:
    """The ensemble's runs that did not diverge, trained first if they are missing.

    Raises:
        ParameterError: the runs differ in more than their seed, or keep no checkpoints.
        DataError: all diverged.
    """
    if len({dataclasses.replace(run, seed=0).key for run in ensemble}) != 1:
        raise ParameterError("the runs of an ensemble must differ in their seed alone")
    names = {_artefact(run) for run in ensemble}
    if len(names) != 1:
        raise ParameterError(f"the runs of an ensemble keep {sorted(names)}; wanted one of them")
    status = run_missing(ensemble, store, use_committed=False)["status"]
    finished = [run for run, word in zip(ensemble, status, strict=True) if word == "finished"]
    if not finished:
        raise DataError(f"all {len(ensemble)} runs of the ensemble diverged: {ensemble[0]}")
    return finished


def pool_of(run: Run) -> ImageDataset:
    """What can be chosen from: the run's training set, with its labels, before its subset."""
    train, _, _ = load_data(run)
    return training_set(dataclasses.replace(run, subset=""), train)


def ensemble_scores(
    ensemble: Sequence[Run],
    store: RunStore | None = None,
    *,
    groups: Sequence[Group] | None = None,
    block_size: int = BLOCK_SIZE,
) -> list[dict[str, np.ndarray]]:
    """All acquisition functions of an ensemble, for every sample of its `pool_of`.

    At any time there are one run's checkpoints, one member's predictions for a block of samples,
    and the tallies of the block: the memory does not depend on the number of runs, and with
    ``block_size`` not on N. Predictions are added on the CPU, in an order that the runs fix.

    Args:
        ensemble: from `ensemble_of`; runs that diverged give no members.
        store: where their checkpoints are; what is missing is trained.
        groups: sets of members (`member_order`) to be scored, each by itself; ``None``: one group,
            of all.
        block_size: samples at a time; the scores do not depend on it. The checkpoints are read
            again for each block.

    Returns:
        For each group: by the names of ``ACQUISITIONS`` the scores ``(N,)``, rounded as
        `score_arrays` stores them.

    Raises:
        ParameterError, DataError: as `finished_members`; an empty group.

    Source:
        Chitta et al., arXiv 1905.12737: checkpoints as members. Which checkpoints is our reading.
    """
    checks.integer("block_size", block_size, low=1)
    finished = finished_members(ensemble, store)
    pool = pool_of(finished[0])
    blocks = []
    for indices in np.split(np.arange(len(pool)), range(block_size, len(pool), block_size)):
        block = pool.take(indices)
        tallies = [EnsembleTally() for _ in ([None] if groups is None else groups)]
        for member, probabilities in _predictions(finished, block, store):
            for position, tally in enumerate(tallies):
                if groups is None or member in groups[position]:
                    tally.update(probabilities)
        if not all(tally.num_members for tally in tallies):
            raise ParameterError("a group has none of the ensemble's members")
        blocks.append([_scores(tally, block.labels.cpu()) for tally in tallies])
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in ACQUISITIONS}
        for parts in zip(*blocks, strict=True)
    ]


def _predictions(
    finished: Sequence[Run], block: ImageDataset, store: RunStore | None
) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Each member's place and probabilities ``(n, K)`` on the CPU, one after the other."""
    for number, run in enumerate(finished):
        checkpoints = load_artefact(run, _artefact(run), store)
        train = training_set(run, load_data(run)[0])
        transform = methods.train_transform(run, train).without_augmentation()
        autocast = precision_context(run.precision, block.images.device)
        for place, model in enumerate(members(run, checkpoints)):
            with autocast():
                logits = extract_logits(model, block, transform)
            yield (number, place), logits.softmax(dim=1)


def _scores(tally: EnsembleTally, labels: Tensor) -> dict[str, np.ndarray]:
    # half precision: three digits, steps of 6e-8 near 0, and 50,000 samples fit a file
    return {
        "predictive_entropy": predictive_entropy(tally).numpy().astype(np.float16),
        "mutual_information": mutual_information(tally).numpy().astype(np.float16),
        "variation_ratio": variation_ratio(tally).numpy().astype(np.float16),
        "error_count": error_count(tally, labels).numpy().astype(np.int16),
    }


# --- what is stored ------------------------------------------------------------------------------


def stored(
    name: str,
    make,
    ensemble: Sequence[Run],
    out_dir: Path,
    *,
    store: RunStore | None = None,
    use_committed: bool = True,
    **settings,
) -> dict[str, np.ndarray]:
    """``figure_data`` of an ensemble, whose runs are read one at a time: ``make`` is
    `score_arrays` or `subsets_by_members`. The file is found again by the runs, the number of
    their checkpoints, and the settings."""
    return figure_data(
        name,
        make,
        out_dir,
        use_committed=use_committed,
        place={"ensemble": ensemble, "store": store, "data_root": ensemble[0].data_root},
        keys=[run.key for run in ensemble],
        artefact=_artefact(ensemble[0]),
        datasets=[ensemble[0].dataset],
        **settings,
    )


def score_arrays(
    *, ensemble: Sequence[Run], store: RunStore | None = None, **described
) -> dict[str, np.ndarray]:
    """What is stored of an ensemble; for `stored`, which also passes how it is ``described``.

    Returns:
        By the names of ``ACQUISITIONS`` the scores ``(N,)``: float16, the error count int16;
        ``wrong (N,)``: whether the label is not the data set's; ``num_members ()``.
    """
    (scores,) = ensemble_scores(ensemble, store)
    run = ensemble[0]
    wrong = (pool_of(run).labels != load_data(run)[0].labels).cpu().numpy()
    return scores | {"wrong": wrong, "num_members": np.array(_num_members(ensemble, store))}


def subsets_by_members(
    *,
    ensemble: Sequence[Run],
    counts: Sequence[int],
    size: int,
    orders: Sequence[str] = ORDERS,
    store: RunStore | None = None,
    **described,
) -> dict[str, np.ndarray]:
    """The subsets that the first members of an ensemble choose; for `stored`.

    Args:
        ensemble, store: as in `ensemble_scores`.
        counts: numbers of members; those that the ensemble does not reach are left out, and all
            its members are always a row.
        size: of the subsets.
        orders: of `member_order`.

    Returns:
        ``num_members (P,)``; for the first order ``above`` and ``tied`` ``(P, A, ceil(N / 8))``:
        by number of members and function of ``ACQUISITIONS``, which samples lie above the score
        at the cut and which have it, a bit a sample, for `ranks_of`; ``correlation`` and
        ``overlap (O, P, A)``, with all members' scores (Spearman's, nan where all are equal) and
        subset (`jaccard`, equal scores drawn anew); ``num_samples ()``.
    """
    num_members = _num_members(ensemble, store)
    num_runs = len(finished_members(ensemble, store))
    reached = [*sorted({count for count in counts if count < num_members}), num_members]
    walks = [member_order(num_runs, num_members // num_runs, order) for order in orders]
    groups = [set(walk[:count]) for walk in walks for count in reached]
    found = ensemble_scores(ensemble, store, groups=groups)
    above, tied, correlation, overlap = [], [], [], []
    for scores, name in product(found, ACQUISITIONS):
        values, last = scores[name].astype(float), found[-1][name].astype(float)
        cut = np.sort(values)[-size]
        above.append(np.packbits(values > cut))
        tied.append(np.packbits(values == cut))
        varied = np.ptp(values) > 0 and np.ptp(last) > 0
        correlation.append(spearmanr(values, last).statistic if varied else np.nan)
        pair = choose(values, size, seed=1), choose(last, size, seed=0)
        overlap.append(jaccard(pair)[0, 1])
    shape = (len(orders), len(reached), len(ACQUISITIONS))
    return {
        "num_members": np.array(reached),
        "above": np.reshape(above, (*shape, -1))[0],
        "tied": np.reshape(tied, (*shape, -1))[0],
        "correlation": np.reshape(correlation, shape),
        "overlap": np.reshape(overlap, shape),
        "num_samples": np.array(len(values)),
    }


def ranks_of(found: Mapping[str, np.ndarray], row: int, function: str) -> np.ndarray:
    """Of `subsets_by_members`: 2 above the cut, 1 at it, 0 below ``(N,)``, from which `choose`
    takes the same samples as from the scores."""
    column = ACQUISITIONS.index(function)
    above, tied = (np.unpackbits(found[name][row, column]) for name in ("above", "tied"))
    return (2 * above + tied)[: int(found["num_samples"])]


def training_labels(
    *, datasets: Sequence[str], train_size: int, data_root: str | None = None
) -> dict[str, np.ndarray]:
    """Labels ``(N,)`` and class names of one training set, for ``figure_data``: with them a
    notebook plans subsets of data that are not at hand.

    Example:
        >>> found = training_labels(datasets=["digits"], train_size=20)
        >>> np.bincount(found["labels"]).tolist(), len(found["class_names"])
        ([2, 2, 2, 2, 2, 2, 2, 2, 2, 2], 10)
    """
    (name,) = datasets
    data = load_dataset(name, "train", root=data_root).subset(train_size)
    labels = data.labels.numpy().astype(np.int16)
    return {"labels": labels, "class_names": np.array(data.class_names)}


def pictures(
    *,
    datasets: Sequence[str],
    train_size: int,
    indices: Sequence[int],
    label_noise: float = 0.0,
    label_noise_seed: int = 0,
    data_root: str | None = None,
) -> dict[str, np.ndarray]:
    """Training images by index, for ``figure_data``: ``images (n, C, H, W)``, and the names of
    the class that the training is ``given`` and of the ``true`` one, ``(n,)`` each."""
    (name,) = datasets
    data = load_dataset(name, "train", root=data_root).subset(train_size)
    noise = Run(name, "mlp", label_noise=label_noise, label_noise_seed=label_noise_seed)
    names = np.array(data.class_names)
    indices = np.asarray(indices, dtype=np.int64)
    return {
        "images": data.images[indices].numpy(),
        "given": names[training_set(noise, data).labels[indices].numpy()],
        "true": names[data.labels[indices].numpy()],
    }


# --- subsets -------------------------------------------------------------------------------------


def subset_size(run: Run, num_samples: int, fraction: float) -> int:
    """``fraction`` of ``num_samples``, rounded; one less where ``run`` would be left with a batch
    of a single sample, which batch-norm cannot take.

    Example:
        >>> run = Run("digits", "cnn_small", batch_size=10)
        >>> subset_size(run, 100, 0.7), subset_size(run, 100, 0.71)
        (70, 70)
    """
    checks.number("fraction", fraction, low=0, above=True, below=1)
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
    """Indices ``(size,)`` of the highest scores; with ``labels`` the same number of each class;
    the lowest scores if ``lowest``.

    Equal scores come in an order that ``seed`` draws. The order of the file, which `select_subset`
    would take, may have a meaning: where all members agree it would keep the first classes of a
    sorted file. Subsets of one seed are nested by size.

    Example:
        >>> choose(np.array([0.5, 0.9, 0.7, 0.1]), 2, seed=0)
        array([1, 2])
    """
    # raw bits: the same with every version of NumPy, so that committed runs are found again
    bits = np.random.PCG64(methods.derived_seed(seed, "equal scores")).random_raw(len(scores))
    order = bits.argsort(kind="stable")
    values = torch.from_numpy(np.asarray(scores, dtype=np.float64)[order])
    if labels is not None:
        labels = torch.from_numpy(np.asarray(labels, dtype=np.int64)[order])
    values = -values if lowest else values
    return order[select_subset(values, size, labels=labels, balanced=labels is not None).numpy()]


def choose_at_random(
    num_samples: int, size: int, *, seed: int, labels: np.ndarray | None = None
) -> np.ndarray:
    """As `choose`, where all scores are equal."""
    return choose(np.zeros(num_samples), size, seed=seed, labels=labels)


def grow(chosen: np.ndarray, scores: np.ndarray, size: int, *, seed: int) -> np.ndarray:
    """``chosen`` and, up to ``size``, the highest-scored of the other samples, as in `choose`.

    Raises:
        ParameterError: ``size`` is below the number of the chosen.

    Example:
        >>> sorted(grow(np.array([3]), np.array([0.5, 0.9, 0.7, 0.1]), 3, seed=0).tolist())
        [1, 2, 3]
    """
    if size < len(chosen):
        raise ParameterError(f"size = {size} is less than the {len(chosen)} chosen before")
    values = np.array(scores, dtype=np.float64)
    values[chosen] = np.inf
    return choose(values, size, seed=seed)


def on_subset(run: Run, indices: np.ndarray, num_samples: int) -> Run:
    """``run``, trained on these samples; the run itself if they are all."""
    if len(indices) == num_samples:
        return run
    return dataclasses.replace(run, subset=subsets.pack(indices, num_samples))


def at_equal_updates(run: Run, num_samples: int) -> Run:
    """A run on a subset, with as many epochs as bring it nearest to the updates that it would
    make with all ``num_samples``; for schedules that stretch with the training (constant, cosine).

    Example:
        >>> run = Run("digits", "mlp", epochs=20, batch_size=10)
        >>> at_equal_updates(on_subset(run, np.arange(70), 100), 100).epochs
        29
    """
    steps = run.epochs * _steps_per_epoch(run, num_samples)
    size = len(subsets.unpack(run.subset, num_samples)) if run.subset else num_samples
    return dataclasses.replace(run, epochs=max(1, round(steps / _steps_per_epoch(run, size))))


def candidates(
    scores: Mapping[str, np.ndarray],
    labels: np.ndarray,
    size: int,
    seeds: Sequence[int],
    acquisition: str,
    grown: np.ndarray,
) -> dict[str, list[np.ndarray]]:
    """The subsets of one size that are compared, for each seed its indices.

    Args:
        scores: from `score_arrays`.
        labels: ``(N,)``, of the training set.
        seeds: of the targets. Where no scores are equal all train on the same subset; each draws
            its own order of equal scores, and its own random subset.
        acquisition: the function of the variants.
        grown: the build-up's subset.

    Returns:
        The highest scores by each of ``ACQUISITIONS`` (their names with blanks); by
        ``acquisition`` also ``highest, balanced`` and ``lowest``; ``build-up``, ``random``,
        ``random, balanced``.
    """
    ways = {name.replace("_", " "): (scores[name], {}) for name in ACQUISITIONS}
    ways["highest, balanced"] = (scores[acquisition], {"labels": labels})
    ways["lowest"] = (scores[acquisition], {"lowest": True})
    ways["random"] = (np.zeros(len(labels)), {})
    ways["random, balanced"] = (np.zeros(len(labels)), {"labels": labels})
    found = {
        name: [choose(values, size, seed=seed, **how) for seed in seeds]
        for name, (values, how) in ways.items()
    }
    return found | {"build-up": [grown] * len(seeds)}


def targets(
    run: Run, seeds: Sequence[int], chosen: Sequence[np.ndarray], num_samples: int
) -> list[Run]:
    """``run`` with each seed, trained from scratch on that seed's samples."""
    return [
        on_subset(dataclasses.replace(run, seed=seed), indices, num_samples)
        for seed, indices in zip(seeds, chosen, strict=True)
    ]


def jaccard(chosen: Sequence[np.ndarray]) -> np.ndarray:
    """Overlap ``|A ∩ B| / |A ∪ B|`` of every pair of index sets ``(S, S)``.

    Example:
        >>> jaccard([np.array([0, 1]), np.array([1, 2])])[0, 1].round(3).item()
        0.333
    """
    size = 1 + max(int(indices.max()) for indices in chosen)
    masks = np.zeros((len(chosen), size))
    for mask, indices in zip(masks, chosen, strict=True):
        mask[indices] = 1
    common = masks @ masks.T
    sizes = masks.sum(axis=1)
    return common / (sizes[:, None] + sizes - common)


def chance_overlap(fraction: float) -> float:
    """`jaccard` of two random subsets of ``fraction`` of many samples: f / (2 - f).

    Example:
        >>> round(chance_overlap(0.5), 3)
        0.333
    """
    return fraction / (2 - fraction)


# --- tables and curves ---------------------------------------------------------------------------


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


# --- small steps ---------------------------------------------------------------------------------


def _artefact(run: Run) -> str:
    names = [name for name in run.keep if name.startswith("checkpoints:")]
    if len(names) != 1:
        raise ParameterError(f"{run} keeps {list(run.keep)}; an ensemble needs checkpoints:N")
    return names[0]


def _num_members(ensemble: Sequence[Run], store: RunStore | None) -> int:
    return len(finished_members(ensemble, store)) * int(_artefact(ensemble[0])[12:])


def _steps_per_epoch(run: Run, num_samples: int) -> int:
    whole, rest = divmod(num_samples, run.batch_size)
    return whole + (rest > 0 and not run.drop_last)
