"""Active Bias: whom its variants emphasise, and how the scores agree.

All but `restored_history` make arrays for ``figure_data``: from the artefacts of ``runs``, ``None``
for one that diverged.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.stats import spearmanr

from hardtrain.papers.active_bias.variants import first_biased_epoch
from hardtrain.runs.run import Run
from hardtrain.runs.run_data import load_data, training_set
from hardtrain.strategies import active_bias
from hardtrain.training.memory import NUM_PHASES

SCORES = {
    "difficulty": active_bias.difficulty,
    "easiness": active_bias.easiness,
    "threshold closeness": active_bias.threshold_closeness,
    "prediction deviation": active_bias.prediction_deviation,
}
NUM_SHOWN = 6  # samples of a kind in a figure
Arrays = Mapping[str, np.ndarray]


def quarters(epochs: int) -> list[int]:
    """The quarter, counted from 0, that each epoch of a training falls into.

    Example:
        >>> quarters(8), quarters(2)
        ([0, 0, 1, 1, 2, 2, 3, 3], [0, 2])
    """
    return [NUM_PHASES * epoch // epochs for epoch in range(epochs)]


def emphasis_shares(artefacts: Sequence[Arrays | None], *, runs: Sequence[Run]) -> Arrays:
    """How much of the emphasis falls on wrongly labelled samples, by quarter of the training.

    Args:
        artefacts: ``emphasis (P, N)`` of each run.
        runs: with wrong labels.

    Returns:
        ``shares (R, P)`` in [0, 1]; the fraction of wrong labels itself if all samples count
        alike. nan for a quarter without an epoch and for a run that diverged.
    """
    shares = np.full((len(runs), NUM_PHASES), np.nan)
    for row, (run, artefact) in enumerate(zip(runs, artefacts, strict=True)):
        if artefact is not None:
            present = sorted(set(quarters(run.epochs)))
            emphasis = artefact["emphasis"][present].astype(float)
            _, wrong = _labels(run)
            shares[row, present] = emphasis[:, wrong].sum(axis=1) / emphasis.sum(axis=1)
    return {"shares": shares}


def emphasised_samples(artefacts: Sequence[Arrays | None], *, runs: Sequence[Run]) -> Arrays:
    """The samples with the most emphasis, early and late in a training.

    Early is the quarter in which the burn-in ends, since before that all samples count alike; late
    is the last quarter. A training that is over before has only the last one to show.

    Args:
        artefacts: ``emphasis (P, N)`` of each run.
        runs: of different variants, with the same epochs, burn-in and wrong labels.

    Returns:
        ``indices``, ``emphasis`` (per epoch; the mean of all samples is 1) and ``wrong``
        ``(R, 2, 6)``: the most emphasised first, ties by index. The emphasis is nan for a run
        that diverged. ``images (R * 2 * 6, C, H, W)`` and their ``titles``: emphasis, label and,
        behind "is", the true label if it is another.
    """
    epochs, burn_in = runs[0].epochs, runs[0].options["burn_in"]
    clean, _, _ = load_data(runs[0])
    given, wrong = _labels(runs[0])
    phases = quarters(epochs)
    early = phases[min(first_biased_epoch(epochs, burn_in), epochs - 1)]
    indices = np.zeros((len(runs), 2, min(NUM_SHOWN, len(clean))), dtype=np.int64)
    emphasis = np.full(indices.shape, np.nan)
    for row, artefact in enumerate(artefacts):
        for column, phase in enumerate((early, phases[-1])):
            if artefact is not None:
                values = artefact["emphasis"][phase] / phases.count(phase)
                order = np.argsort(-values, kind="stable")[:NUM_SHOWN]
                indices[row, column], emphasis[row, column] = order, values[order]
    titles = []
    for index, value in zip(indices.flat, emphasis.flat, strict=True):
        lines = [f"{value:.1f} ×", _short(clean.class_names[given[index]])]
        if wrong[index]:
            lines.append(f"is {_short(clean.class_names[clean.labels[index]])}")
        titles.append("\n".join(lines))
    return {
        "indices": indices,
        "emphasis": emphasis,
        "wrong": wrong[indices] & np.isfinite(emphasis),
        "images": clean.images[indices.ravel()].cpu().numpy(),
        "titles": np.array(titles),
    }


def score_correlations(artefacts: Sequence[Arrays | None], *, runs: Sequence[Run]) -> Arrays:
    """Spearman's rank correlation between the four scores of one and the same history, and with
    being wrongly labelled.

    Args:
        artefacts: ``prediction_history`` of each run.
        runs: with or without wrong labels.

    Returns:
        ``correlations (R, 5, 4)``: rows are the scores in the order of `SCORES`, then 1 for a
        wrong label and 0 for a right one; columns the scores. nan where one of the two is the
        same for all, and for a run that diverged. Samples never seen are left out.
    """
    correlations = np.full((len(runs), len(SCORES) + 1, len(SCORES)), np.nan)
    for row, (run, artefact) in enumerate(zip(runs, artefacts, strict=True)):
        if artefact is None:
            continue
        history, seen = restored_history(artefact), artefact["count"] > 0
        scores = [score(history).numpy()[seen] for score in SCORES.values()]
        wrong = _labels(run)[1][seen]
        for i, first in enumerate([*scores, wrong.astype(float)]):
            for j, second in enumerate(scores):
                if np.ptp(first) > 0 and np.ptp(second) > 0:  # else there are no ranks
                    correlations[row, i, j] = spearmanr(first, second).statistic
    return {"correlations": correlations}


def reading_effects(
    artefacts: Sequence[Arrays | None], *, runs: Sequence[Run], num_batches: int = 200
) -> Arrays:
    """What two readings that were not taken would do to the weights of SGD-WPV.

    The weights are made from the whole history; where the smoothing is relative, with its mean
    score in place of that at the end of the burn-in.

    Args:
        artefacts: ``prediction_history`` of each run.
        runs: they have the smoothing, and the size of the mini-batches within which weights could
            have mean 1.
        num_batches: how many of these are drawn, each without replacement.

    Returns:
        Both ``(R,)``, nan for a run that diverged or whose scores are all 0. ``variance``: the
        largest relative change of a weight if the variance were the unbiased one. ``scope``: the
        standard deviation of a mini-batch's mean weight, by which its step would be divided.
    """
    effects = {name: np.full(len(runs), np.nan) for name in ("variance", "scope")}
    for row, (run, artefact) in enumerate(zip(runs, artefacts, strict=True)):
        if artefact is None or not np.nanmax(artefact["variance"]) > 0:
            continue
        count = artefact["count"]
        unbiased = artefact["variance"] * count / np.maximum(count - 1, 1)
        weights = _deviation_weights(artefact, run)
        other = _deviation_weights(artefact | {"variance": unbiased}, run)
        changes = np.abs(other - weights)[weights > 0] / weights[weights > 0]
        effects["variance"][row] = np.max(changes)
        generator, size = np.random.default_rng(0), min(run.batch_size, len(weights))
        drawn = [generator.choice(weights, size, replace=False) for _ in range(num_batches)]
        effects["scope"][row] = np.std(np.mean(drawn, axis=1), ddof=1)
    return effects


def restored_history(arrays: Arrays) -> active_bias.PredictionHistory:
    """A history from its ``count``, ``mean`` and ``variance (N,)``, to ask it for scores.

    Example:
        >>> arrays = {"count": np.array([2, 0]), "mean": np.array([0.5, np.nan])}
        >>> history = restored_history(arrays | {"variance": np.array([0.25, np.nan])})
        >>> active_bias.prediction_deviation(history).round(decimals=2).tolist()
        [0.56, 0.0]
    """
    count, mean, variance = (np.asarray(arrays[name]) for name in ("count", "mean", "variance"))
    history = active_bias.PredictionHistory(len(count))
    state = {"count": count, "mean": mean, "squares": variance * count}
    tensors = {name: torch.from_numpy(np.nan_to_num(values)) for name, values in state.items()}
    history.load_state_dict({"num_samples": len(count)} | tensors)
    return history


def _labels(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """The labels ``(N,)`` that a run trains on, and which of them are wrong."""
    train, _, _ = load_data(run)
    given = training_set(run, train).labels
    return given.cpu().numpy(), (given != train.labels).cpu().numpy()


def _deviation_weights(arrays: Arrays, run: Run) -> np.ndarray:
    """Weights by the deviation, with the run's constant added."""
    scores = active_bias.prediction_deviation(restored_history(arrays))
    epsilon = run.options["smoothing"] * (scores.mean() if run.options["relative"] else 1)
    return active_bias.sample_weights(scores, epsilon).double().numpy()


def _short(name: str, most: int = 10) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
