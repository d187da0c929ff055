"""Subset search: ensembles of checkpoints, and how they score every sample.

`ensemble_of` gives the runs that keep checkpoints, `score_arrays` the scores that are committed,
`selection` what is chosen by them.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hardtrain.data.images import ImageDataset
from hardtrain.errors import DataError, RecordError
from hardtrain.runs.run import Run
from hardtrain.runs.run_data import load_data, training_set
from hardtrain.runs.store import RunStore
from hardtrain.runs.sweep import load_artefact, run_missing
from hardtrain.runs.train import build
from hardtrain.strategies import subset_selection
from hardtrain.strategies.subset_selection import EnsembleTally
from hardtrain.training import pieces
from hardtrain.training.evaluation import extract_logits
from hardtrain.training.randomness import isolated_randomness

ACQUISITIONS = ("predictive_entropy", "mutual_information", "variation_ratio", "error_count")
SPOKEN = {name: name.replace("_", " ") for name in ACQUISITIONS}  # in tables and legends
ORDERS = ("runs", "checkpoints")
ENSEMBLE_SEED = 1000  # of an ensemble's first run; no target shares its initialisation
Member = tuple[int, int]  # run and checkpoint, both from 0


def steps_per_epoch(run: Run, num_samples: int) -> int:
    """Updates in an epoch of ``run`` on so many samples."""
    whole, rest = divmod(num_samples, run.batch_size)
    return whole + (rest > 0 and not run.drop_last)


def ensemble_of(
    run: Run, num_runs: int, num_checkpoints: int, num_samples: int, *, number: int = 0
) -> list[Run]:
    """The trainings of an ensemble: ``run`` with other seeds, each keeping checkpoints.

    Args:
        run: what is trained; with wrong labels it needs a ``label_noise_seed``.
        num_runs, num_checkpoints: the members are their product. A training whose last half has
            fewer steps keeps as many as that has.
        num_samples: that each trains on.
        number: of the ensemble, from 0; two of them share no seed.

    Example:
        >>> ensemble = ensemble_of(Run("digits", "mlp", epochs=2), 2, 20, 1438)
        >>> [(run.seed, run.keep) for run in ensemble]
        [(1000, ('checkpoints:12',)), (1001, ('checkpoints:12',))]
    """
    steps = run.epochs * steps_per_epoch(run, num_samples)
    kept = (f"checkpoints:{min(num_checkpoints, steps - steps // 2)}",)
    seeds = range(ENSEMBLE_SEED + number * num_runs, ENSEMBLE_SEED + (number + 1) * num_runs)
    return [dataclasses.replace(run, seed=seed, keep=kept) for seed in seeds]


def finished_runs(
    ensemble: Sequence[Run], store: RunStore | None, train_missing: bool = True
) -> list[Run]:
    """The ensemble's runs that did not diverge, trained first if they are missing.

    Raises:
        DataError: all diverged.
        RecordError: one is missing, and ``train_missing`` is false.
    """
    status = run_missing(ensemble, store, use_committed=False, train_missing=train_missing)[
        "status"
    ]
    if len(status) < len(ensemble):
        missing = len(ensemble) - len(status)
        raise RecordError(f"{missing} of {len(ensemble)} runs of the ensemble are missing here")
    finished = [run for run, word in zip(ensemble, status, strict=True) if word == "finished"]
    if not finished:
        raise DataError(f"all {len(ensemble)} runs of the ensemble diverged: {ensemble[0]}")
    return finished


def member_order(runs: Sequence[Run], order: str = "runs") -> list[Member]:
    """In which order members join a growing ensemble.

    The checkpoints of a run join in van der Corput's order from the last one back, so that a small
    ensemble's are spread over all that the run kept, and are not late ones only.

    Args:
        runs: of the ensemble, all those that finished.
        order: one of ``ORDERS``. ``"runs"``: one checkpoint of every run, then another of every
            run, and so on; ``"checkpoints"``: all of the first run, then the next run.

    Example:
        >>> member_order(ensemble_of(Run("digits", "mlp"), 2, 3, 1438))
        [(0, 2), (1, 2), (0, 0), (1, 0), (0, 1), (1, 1)]
        >>> one = member_order(ensemble_of(Run("digits", "mlp", epochs=9), 1, 20, 1438))
        >>> [checkpoint for _, checkpoint in one][:5]
        [19, 3, 11, 15, 7]
    """
    num_checkpoints = int(runs[0].keep[0].removeprefix("checkpoints:"))
    bits = (num_checkpoints - 1).bit_length()
    # numbers of checkpoints before the end, by their reversed bits
    before_end = sorted(range(num_checkpoints), key=lambda number: f"{number:0{bits}b}"[::-1])
    spread = [num_checkpoints - 1 - number for number in before_end]
    if order == "runs":
        return [(run, checkpoint) for checkpoint in spread for run in range(len(runs))]
    return [(run, checkpoint) for run in range(len(runs)) for checkpoint in spread]


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


def pool_of(run: Run) -> ImageDataset:
    """What can be chosen from: the run's training set, with its labels, before its subset."""
    train, _, _ = load_data(run)
    return training_set(dataclasses.replace(run, subset=""), train)


def ensemble_scores(
    runs: Sequence[Run], store: RunStore | None, groups: Sequence[Collection[Member]]
) -> list[dict[str, np.ndarray]]:
    """All acquisition functions of parts of an ensemble, for every sample of its `pool_of`.

    At any time there are one run's checkpoints, one member's predictions and the tallies of the
    groups: the memory does not depend on the number of members. Predictions are added on the CPU,
    in an order that the runs fix.

    Args:
        runs: of the ensemble, all those that finished.
        store: where their checkpoints are; what is missing is trained.
        groups: of members, each an ensemble by itself.

    Returns:
        For each group: by the names of ``ACQUISITIONS`` the scores ``(N,)``, rounded as
        `score_arrays` gives them.

    Source:
        Chitta et al., arXiv 1905.12737: checkpoints as members. Which checkpoints is our reading.
    """
    pool = pool_of(runs[0])
    tallies = [EnsembleTally() for _ in groups]
    for number, run in enumerate(runs):
        checkpoints = load_artefact(run, run.keep[0], store)
        train = training_set(run, load_data(run)[0])
        transform = pieces.train_transform(run, train).without_augmentation()
        for checkpoint, model in enumerate(members(run, checkpoints)):
            logits = extract_logits(model, pool, transform, precision=run.precision)
            probabilities = logits.softmax(dim=1)
            for group, tally in zip(groups, tallies, strict=True):
                if (number, checkpoint) in group:
                    tally.update(probabilities)
    return [_scores(tally, pool.labels.cpu()) for tally in tallies]


def _scores(tally: EnsembleTally, labels: Tensor) -> dict[str, np.ndarray]:
    # half precision: three digits, steps of 6e-8 near 0, and 50,000 samples fit a file
    return {
        "predictive_entropy": subset_selection.predictive_entropy(tally).numpy().astype(np.float16),
        "mutual_information": subset_selection.mutual_information(tally).numpy().astype(np.float16),
        "variation_ratio": subset_selection.variation_ratio(tally).numpy().astype(np.float16),
        "error_count": subset_selection.error_count(tally, labels).numpy().astype(np.int16),
    }


def score_arrays(
    *, runs: Sequence[Run], store: RunStore | None = None, train_missing: bool = True
) -> dict[str, np.ndarray]:
    """An ensemble's scores, for ``figure_data``.

    Args:
        runs: from `ensemble_of`; those that diverged give no members.
        store: where their checkpoints are; what is missing is trained.
        train_missing: with false it is a ``RecordError``.

    Returns:
        By the names of ``ACQUISITIONS`` the scores ``(N,)``: float16, the error count int16;
        ``wrong (N,)``: whether the label is not the data set's; ``num_members ()``.

    Raises:
        DataError: all runs diverged.
    """
    runs = finished_runs(runs, store, train_missing)
    everything = member_order(runs)
    (scores,) = ensemble_scores(runs, store, [everything])
    wrong = (pool_of(runs[0]).labels != load_data(runs[0])[0].labels).cpu().numpy()
    return scores | {"wrong": wrong, "num_members": np.array(len(everything))}
