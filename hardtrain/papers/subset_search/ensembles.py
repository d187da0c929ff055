"""Subset search: ensembles of checkpoints, and how they score every sample.

`ensemble_of` gives the runs that keep checkpoints, `stored` and `score_arrays` the scores in a file
that can be committed, `subset_search` what is chosen by them.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hardtrain import checks
from hardtrain.data.images import ImageDataset
from hardtrain.errors import DataError, ParameterError
from hardtrain.report.notebook import figure_data
from hardtrain.runs.run import Run
from hardtrain.runs.store import RunStore
from hardtrain.runs.sweep import load_artefact, run_missing
from hardtrain.runs.train import build, load_data, training_set
from hardtrain.strategies.subset_selection import (
    EnsembleTally,
    error_count,
    mutual_information,
    predictive_entropy,
    variation_ratio,
)
from hardtrain.training import pieces
from hardtrain.training.evaluation import extract_logits
from hardtrain.training.pieces import precision_context
from hardtrain.training.randomness import isolated_randomness

ACQUISITIONS = ("predictive_entropy", "mutual_information", "variation_ratio", "error_count")
ORDERS = ("runs", "checkpoints")
ENSEMBLE_SEED = 1000  # of an ensemble's first run; no target shares its initialisation
BLOCK_SIZE = 50_000  # samples that are scored at a time
Group = set[tuple[int, int]]  # members: (run, checkpoint), both from 0


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
    steps = run.epochs * steps_per_epoch(run, num_samples)
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
        transform = pieces.train_transform(run, train).without_augmentation()
        for place, model in enumerate(members(run, checkpoints)):
            with precision_context(run.precision, block.images.device):
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
    return scores | {"wrong": wrong, "num_members": np.array(count_members(ensemble, store))}


def _artefact(run: Run) -> str:
    names = [name for name in run.keep if name.startswith("checkpoints:")]
    if len(names) != 1:
        raise ParameterError(f"{run} keeps {list(run.keep)}; an ensemble needs checkpoints:N")
    return names[0]


def count_members(ensemble: Sequence[Run], store: RunStore | None) -> int:
    """Checkpoints of all runs that did not diverge."""
    return len(finished_members(ensemble, store)) * int(_artefact(ensemble[0])[12:])


def steps_per_epoch(run: Run, num_samples: int) -> int:
    """Updates in an epoch of ``run`` on so many samples."""
    whole, rest = divmod(num_samples, run.batch_size)
    return whole + (rest > 0 and not run.drop_last)
