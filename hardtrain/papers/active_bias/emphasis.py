"""Active Bias: its formulas and names, and whom they emphasise.

Chang, Learned-Miller, McCallum, "Active Bias: Training more accurate neural networks by
emphasizing high variance samples", arXiv 1704.07433. An *arm* is a list of runs that differ in
their seed alone; here arms have the names of `ARMS`, which are the paper's.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from hardtrain.data.images import ImageDataset, load_dataset
from hardtrain.errors import unknown_name
from hardtrain.runs.run import Run
from hardtrain.runs.train import training_set
from hardtrain.strategies.active_bias import (
    PredictionHistory,
    difficulty,
    easiness,
    prediction_deviation,
    sample_weights,
    threshold_closeness,
)
from hardtrain.training.memory import NUM_PHASES

SCAN, UNIFORM = "SGD-Scan", "SGD-Uni"
SCORES = {
    "difficulty": difficulty,
    "easiness": easiness,
    "threshold closeness": threshold_closeness,
    "prediction deviation": prediction_deviation,
}
# kind, score, what follows from it, how well that is known
_MEMORY, _DEVIATION = "from memory", "√(v + v²/(n − 1))"
_CODE = "score verified (public code: 2 weighting, 1 sampling)"
_FORMULAS = {
    SCAN: ("baseline", "–", "each sample once an epoch", f"{_MEMORY}; the name is in later work"),
    UNIFORM: ("baseline", "–", "P = 1/N, with replacement", _MEMORY),
    "SGD-SD": ("sampling", "1 − p̄", "P ∝ s + ε", _MEMORY),
    "SGD-ISD": ("sampling", "1 − p̄", "P ∝ s + ε, loss weight 1/(N P)", _MEMORY),
    "SGD-SE": ("sampling", "p̄", "P ∝ s + ε", _MEMORY),
    "SGD-SPV": ("sampling", _DEVIATION, "P ∝ s + ε", f"{_CODE}, P {_MEMORY}"),
    "SGD-STC": ("sampling", "p̄ (1 − p̄)", "P ∝ s + ε", f"{_MEMORY}; idea verified (peer review)"),
    "SGD-WD": ("weighting", "1 − p̄", "w ∝ s + ε, mean 1", f"{_MEMORY}; public code (1) agrees"),
    "SGD-WE": ("weighting", "p̄", "w ∝ s + ε, mean 1", f"{_MEMORY}; public code (1) agrees"),
    "SGD-WPV": ("weighting", _DEVIATION, "w ∝ s + ε, mean 1", f"{_CODE}, w {_MEMORY}"),
    "SGD-WTC": ("weighting", "p̄ (1 − p̄)", "w ∝ s + ε, mean 1", _MEMORY),
}
ARMS = tuple(_FORMULAS)
VARIANTS = ARMS[2:]
# colour (Okabe-Ito, Tol), line style, marker, by score
_STYLES = {
    "Scan": ("#000000", "-", "o"),
    "Uni": ("#808080", (0, (7, 2, 1, 2)), "*"),
    "D": ("#D55E00", "--", "^"),
    "ISD": ("#882255", (0, (3, 1, 1, 1)), "P"),
    "E": ("#009E73", (0, (1, 1)), "v"),
    "PV": ("#0072B2", "-.", "s"),
    "TC": ("#CC79A7", (0, (5, 1)), "D"),
}


def arm_kind(name: str) -> str:
    """``baseline``, ``sampling`` or ``weighting``.

    Raises:
        ParameterError: an unknown arm; the text names the nearest known one.

    Example:
        >>> arm_kind("SGD-ISD")
        'sampling'
    """
    if name not in _FORMULAS:
        raise unknown_name("arm", name, ARMS)
    return _FORMULAS[name][0]


def arm_style(name: str) -> dict:
    """Colour, line style and marker of an arm: those of its score, so that a sampling and a
    weighting variant look alike and belong into different panels, or want another ``fillstyle``.

    Example:
        >>> arm_style("SGD-SPV") == arm_style("SGD-WPV") != arm_style("SGD-STC")
        True
    """
    arm_kind(name)
    short = name.removeprefix("SGD-")
    found = _STYLES.get(short) or _STYLES[short[1:]]
    return dict(zip(("color", "linestyle", "marker"), found, strict=True))


def arm_method(name: str, *, smoothing: float, burn_in: float) -> dict:
    """The fields of `Run` that make an arm: its method and options.

    Example:
        >>> arm_method("SGD-WE", smoothing=1.0, burn_in=0.1)["options"]["variant"]
        'WE'
        >>> arm_method("SGD-Scan", smoothing=1.0, burn_in=0.1)
        {'method': 'plain'}
    """
    if arm_kind(name) != "baseline":
        variant = name.removeprefix("SGD-")
        options = {"variant": variant, "smoothing": smoothing, "burn_in": burn_in}
        return {"method": "active_bias", "options": options}
    if name == UNIFORM:  # it has no score, so nothing to smooth and no burn-in
        return {"method": "active_bias", "options": {"variant": "uniform"}}
    return {"method": "plain"}


def formula_table() -> pd.DataFrame:
    """Name, kind, score, probability or weight of every arm, and how well each is known."""
    columns = ["name", "kind", "score s", "probability P or weight w", "status"]
    return pd.DataFrame([(name, *row) for name, row in _FORMULAS.items()], columns=columns)


def readings_table(effects: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """What could not be verified, the reading that was taken, and how to take another.

    Args:
        effects: from `reading_effects`.
    """
    largest = {name: np.nanmax([*values, 0.0]) for name, values in effects.items()}
    variance = f"fixed; no weight would change by more than {100 * largest['variance']:.2g} %"
    scope = f"fixed; steps would change by ± {100 * largest['scope']:.2g} % (1 sd)"
    rows = [
        ("constant ε", "0.05, 0.1, 0.2 in public code; relative to the mean score from memory",
         "multiple of the mean score at the end of the burn-in", "parameter smoothing"),
        ("length of the burn-in", "15 of 200 epochs in public code",
         "part of the epochs, at least two", "parameter burn_in"),
        ("variance", "1/n (2 of 3 codes) or 1/(n − 1)", "1/n", variance),
        ("mean weight 1", "over the data set, or in each mini-batch (1 code)", "data set", scope),
        ("history", "all of it, or a window", "all of it", "fixed"),
        ("scores renewed", "at each epoch or each step", "each epoch", "fixed"),
        ("drawing", "with or without replacement", "with", "fixed; baseline SGD-Uni likewise"),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["detail", "readings", "here", "to change it"])


def first_biased_epoch(epochs: int, burn_in: float) -> int:
    """The epoch, counted from 0, from which on scores count: as in ``methods.active_bias``.

    Example:
        >>> first_biased_epoch(20, 0.25), first_biased_epoch(20, 0.0)
        (5, 2)
    """
    return max(2, round(burn_in * epochs))


def last_phase(epochs: int) -> int:
    """The last quarter of a training, counted from 0, that holds an epoch.

    Example:
        >>> last_phase(20), last_phase(2)
        (3, 2)
    """
    return _phases(epochs)[-1]


def emphasis_shares(
    artefacts: Sequence[Mapping[str, np.ndarray] | None],
    *,
    fractions: Sequence[float],
    names: Sequence[str],
    seeds: Sequence[int],
    epochs: int,
    dataset: str,
    train_size: int = 0,
    data_root: str | None = None,
) -> dict[str, np.ndarray]:
    """How much of the emphasis falls on wrongly labelled samples, by quarter of the training.

    Args:
        artefacts: ``emphasis (P, N)`` of runs, by fraction, then by name, then by seed; ``None``
            for one that diverged.
        fractions: of wrong labels, > 0.
        names: of arms.
        seeds: of the runs; they decide which labels are wrong.
        epochs, dataset, train_size, data_root: of the training.

    Returns:
        ``shares (F, V, S, P)`` in [0, 1]; the fraction itself if all samples count alike. nan for
        a quarter without an epoch and for a run that diverged.
    """
    data = load_dataset(dataset, "train", root=data_root).subset(train_size)
    wrong = {
        (fraction, seed): _wrong_labels(data, fraction, seed)[1]
        for fraction in fractions
        for seed in seeds
    }
    shares = np.full((len(fractions), len(names), len(seeds), NUM_PHASES), np.nan)
    present = sorted(set(_phases(epochs)))
    for (f, v, s), artefact in zip(np.ndindex(shares.shape[:3]), artefacts, strict=True):
        if artefact is not None:
            emphasis = artefact["emphasis"][present].astype(float)
            falls = emphasis[:, wrong[fractions[f], seeds[s]]].sum(axis=1)
            shares[f, v, s, present] = falls / emphasis.sum(axis=1)
    return {"shares": shares}


def emphasised_samples(
    artefacts: Sequence[Mapping[str, np.ndarray] | None],
    *,
    names: Sequence[str],
    fraction: float,
    seed: int,
    epochs: int,
    burn_in: float,
    dataset: str,
    train_size: int = 0,
    num_shown: int = 6,
    data_root: str | None = None,
) -> dict[str, np.ndarray]:
    """The samples with the most emphasis, early and late in a training.

    Early is the quarter in which the burn-in ends, since before that all samples count alike; late
    is the last quarter. A training that is over before has only the last one to show.

    Args:
        artefacts: ``emphasis (P, N)``, one run for each of ``names``; ``None``: it diverged.
        fraction, seed: of the wrong labels of these runs.
        epochs, burn_in, dataset, train_size, data_root: of the trainings.
        num_shown: how many, at most N.

    Returns:
        ``indices``, ``emphasis`` (per epoch; the mean of all samples is 1), ``wrong``
        ``(V, 2, num_shown)``, the most emphasised first, ties by index, emphasis nan for a run
        that diverged; ``images (V * 2 * num_shown, C, H, W)`` and their ``titles``: emphasis,
        label and, behind "is", the true label if it is another.
    """
    clean = load_dataset(dataset, "train", root=data_root).subset(train_size)
    given, wrong = _wrong_labels(clean, fraction, seed)
    phases = _phases(epochs)
    early = phases[min(first_biased_epoch(epochs, burn_in), epochs - 1)]
    indices = np.zeros((len(names), 2, min(num_shown, len(clean))), dtype=np.int64)
    emphasis = np.full(indices.shape, np.nan)
    for row, artefact in enumerate(artefacts):
        for column, phase in enumerate((early, phases[-1])):
            if artefact is not None:
                values = artefact["emphasis"][phase] / phases.count(phase)
                order = np.argsort(-values, kind="stable")[: indices.shape[2]]
                indices[row, column], emphasis[row, column] = order, values[order]
    titles = []
    for place, index in np.ndenumerate(indices):
        title = f"{emphasis[place]:.1f} ×\n{_short(clean.class_names[given[index]])}"
        true = _short(clean.class_names[clean.labels[index]])
        titles.append(f"{title}\nis {true}" if wrong[index] else title)
    return {
        "indices": indices,
        "emphasis": emphasis,
        "wrong": wrong[indices] & np.isfinite(emphasis),
        "images": clean.images[indices.ravel()].numpy(),
        "titles": np.array(titles),
    }


def score_correlations(
    artefacts: Sequence[Mapping[str, np.ndarray] | None],
    *,
    fractions: Sequence[float],
    seeds: Sequence[int],
    dataset: str,
    train_size: int = 0,
    data_root: str | None = None,
) -> dict[str, np.ndarray]:
    """Spearman's rank correlation between the four scores of one and the same history, and with
    being wrongly labelled.

    Args:
        artefacts: ``prediction_history`` of runs, by fraction, then by seed; ``None``: diverged.
        fractions: of wrong labels, may be 0.
        seeds, dataset, train_size, data_root: of the training.

    Returns:
        ``correlations (F, S, 5, 4)``: rows are the scores in the order of `SCORES`, then 1 for
        a wrong label and 0 for a right one; columns the scores. nan where one of the two is the
        same for all, and for a run that diverged. Samples never seen are left out.
    """
    from scipy.stats import spearmanr

    data = load_dataset(dataset, "train", root=data_root).subset(train_size)
    found = np.full((len(fractions), len(seeds), len(SCORES) + 1, len(SCORES)), np.nan)
    for (f, s), artefact in zip(np.ndindex(found.shape[:2]), artefacts, strict=True):
        if artefact is None:
            continue
        history, seen = restored_history(artefact), artefact["count"] > 0
        scores = [score(history).numpy()[seen] for score in SCORES.values()]
        wrong = _wrong_labels(data, fractions[f], seeds[s])[1][seen]
        for i, first in enumerate([*scores, wrong.astype(float)]):
            for j, second in enumerate(scores):
                if np.ptp(first) > 0 and np.ptp(second) > 0:  # else there are no ranks
                    found[f, s, i, j] = spearmanr(first, second).statistic
    return {"correlations": found}


def reading_effects(
    artefacts: Sequence[Mapping[str, np.ndarray] | None],
    *,
    smoothing: float,
    batch_size: int,
    num_batches: int = 200,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """What two readings that were not taken would do to the weights of SGD-WPV, made from the
    whole history and with its mean score in place of that at the end of the burn-in.

    Args:
        artefacts: ``prediction_history`` of runs; ``None``: diverged.
        smoothing: relative to the mean score.
        batch_size: of the mini-batches within which weights could have mean 1.
        num_batches, seed: how many of them are drawn without replacement, and from which seed.

    Returns:
        Both ``(R,)``, nan for a run that diverged or whose scores are all 0. ``variance``: the
        largest relative change of a weight if the variance were the unbiased one. ``scope``: the
        standard deviation of a mini-batch's mean weight, by which its step would be divided.
    """
    found = {name: np.full(len(artefacts), np.nan) for name in ("variance", "scope")}
    for row, artefact in enumerate(artefacts):
        if artefact is None or not np.nanmax(artefact["variance"]) > 0:
            continue
        count = artefact["count"]
        unbiased = artefact["variance"] * count / np.maximum(count - 1, 1)
        weights, other = (
            _relative_weights(artefact | {"variance": variance}, smoothing)
            for variance in (artefact["variance"], unbiased)
        )
        counts = weights > 0
        found["variance"][row] = np.max(np.abs(other - weights)[counts] / weights[counts])
        generator, size = np.random.default_rng(seed), min(batch_size, len(weights))
        drawn = [generator.choice(weights, size, replace=False) for _ in range(num_batches)]
        found["scope"][row] = np.std(np.mean(drawn, axis=1), ddof=1)
    return found


def restored_history(arrays: Mapping[str, np.ndarray]) -> PredictionHistory:
    """A history from its ``count``, ``mean`` and ``variance (N,)``, to ask it for scores.

    Example:
        >>> arrays = {"count": np.array([2, 0]), "mean": np.array([0.5, np.nan])}
        >>> history = restored_history(arrays | {"variance": np.array([0.25, np.nan])})
        >>> prediction_deviation(history).round(decimals=2).tolist()
        [0.56, 0.0]
    """
    count, mean, variance = (np.asarray(arrays[name]) for name in ("count", "mean", "variance"))
    history = PredictionHistory(len(count))
    state = {"count": count, "mean": mean, "squares": variance * count}
    tensors = {name: torch.from_numpy(np.nan_to_num(values)) for name, values in state.items()}
    history.load_state_dict({"num_samples": len(count)} | tensors)
    return history


def _phases(epochs: int) -> list[int]:
    """The quarter of each epoch, as methods note it."""
    return [NUM_PHASES * epoch // epochs for epoch in range(epochs)]


def _wrong_labels(data: ImageDataset, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels ``(N,)`` that a run of this seed trains on, and which of them are wrong."""
    run = Run(dataset=data.name, network="cnn_small", label_noise=fraction, seed=seed)
    given = training_set(run, data).labels
    return given.numpy(), (given != data.labels).numpy()


def _relative_weights(arrays: Mapping[str, np.ndarray], smoothing: float) -> np.ndarray:
    """Weights by the deviation, with a constant relative to its mean."""
    scores = prediction_deviation(restored_history(arrays))
    return sample_weights(scores, smoothing * scores.mean()).double().numpy()


def _short(name: str, most: int = 10) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
