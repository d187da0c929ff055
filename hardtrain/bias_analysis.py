"""What the Active Bias notebook shows: formulas, who is emphasised, speed against robustness.

Chang, Learned-Miller, McCallum, "Active Bias: Training more accurate neural networks by
emphasizing high variance samples", arXiv 1704.07433. An *arm* is a list of runs that differ in
their seed alone; here arms have the names of `ARMS`, which are the paper's.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce

import numpy as np
import pandas as pd
import torch

from hardtrain.data import ImageDataset, load_dataset
from hardtrain.errors import unknown_name
from hardtrain.recorders import NUM_PHASES
from hardtrain.records import training_set
from hardtrain.runs import Run
from hardtrain.statistics import (
    MIN_SEEDS,
    PairedDifference,
    Verdict,
    format_interval,
    format_p,
    paired_difference,
)
from hardtrain.strategies.active_bias import (
    PredictionHistory,
    difficulty,
    easiness,
    prediction_deviation,
    sample_weights,
    threshold_closeness,
)
from hardtrain.tables import curves, describe, describe_values, difference, metric_by_seed

VERSION = 1  # raise it when a change here changes what a figure shows

SCAN, UNIFORM = "SGD-Scan", "SGD-Uni"
SCORES = {
    "difficulty": difficulty,
    "easiness": easiness,
    "threshold closeness": threshold_closeness,
    "prediction deviation": prediction_deviation,
}
GROUPS = {
    "easy first": ("SGD-SE", "SGD-WE"),
    "hard first": ("SGD-SD", "SGD-WD"),
    "uncertain": ("SGD-SPV", "SGD-WPV", "SGD-STC", "SGD-WTC"),
}
PRINTED_REDUCTION = (1.0, 18.0)  # %, the only number in the review

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


# --- names and formulas ---------------------------------------------------------------------------


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


# --- from artefacts -------------------------------------------------------------------------------


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


# --- from results and histories -------------------------------------------------------------------


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


# --- tables ---------------------------------------------------------------------------------------


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


# --- small steps ----------------------------------------------------------------------------------


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
