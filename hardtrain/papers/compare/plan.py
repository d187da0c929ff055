"""What is compared: the arms, at equal numbers of samples through the backward pass, and the three
settings, as CurBench (Zhou et al., ICML 2024) has them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from hardtrain import checks
from hardtrain.data.images import load_dataset
from hardtrain.data.npz import SPLITS
from hardtrain.data.stratify import pick_per_class
from hardtrain.errors import DataError, ParameterError
from hardtrain.networks import build_network
from hardtrain.papers.compare import costs
from hardtrain.report import plotting, tables
from hardtrain.report.notebook import Notebook
from hardtrain.runs.results import load_timings
from hardtrain.runs.run import Run

DRAWING = 15.0  # seconds for the start, the tables and the figures
MARGIN = 0.8  # of the time that is left for training
ONE_ARM = 1.5  # the time of an arm, relative to plain training's; about
ENOUGH = 150  # updates in which a network learns something
SHORT = 20  # updates that say how long one takes
SIDES = (32, 16)  # pixels, of images that are made smaller
SETTINGS = ("as it is", "wrong labels", "unbalanced")
ROUNDS = 7  # of trainings, about, in which costs are measured
BASELINES = ("plain", "random_share")
LONGER = 3  # times as many epochs as the comparison has: of the four at equal epochs


class Arm(NamedTuple):
    """A method and its options; ``share``: of an epoch's samples that it sends through the backward
    pass, exactly or about, so that it is trained 1 / ``share`` times as many epochs."""

    method: str
    options: Mapping[str, object]
    share: float
    source: str


_CHANG = "Chang et al. 2017"
ARMS = {  # by their style in figures, or their label
    "plain": Arm("plain", {}, 1, ""),
    "random_share": Arm("random_share", {"share": 0.5}, 0.5, "Okanovic et al. 2024"),
    "focal": Arm("focal", {}, 1, "Lin et al. 2017"),
    "trimming": Arm("trimming", {}, 1, "Fassold"),
    "hard_batches": Arm("hard_batches", {}, 1, "Sahayam et al. 2023"),
    "gradient_noise": Arm("gradient_noise", {}, 1, "Jaiswal, Taura"),
    "itdm_joint": Arm("distribution_matching", {"by_class": False}, 1, "Li et al. 2020"),
    "itdm_class": Arm("distribution_matching", {}, 1, "Li et al. 2020"),
    "active_bias_sampling": Arm("active_bias", {"variant": "SPV"}, 1, _CHANG),
    "active_bias_weighting": Arm("active_bias", {"variant": "WPV"}, 1, _CHANG),
    **{
        f"Active bias, {variant}": Arm("active_bias", {"variant": variant}, 1, _CHANG)
        for variant in ("SD", "ISD", "SE", "STC", "WD", "WE", "WTC")
    },
    "selective_backprop": Arm("selective_backprop", {}, 0.4, "Jiang et al. 2019"),
    "dynamic_pruning": Arm("dynamic_pruning", {}, 0.7, "Qin et al. 2024"),
    "reducible_loss": Arm("reducible_loss", {"share": 0.25}, 0.25, "Mindermann et al. 2022"),
}
EQUAL_EPOCHS = {  # the random share is as large as what dynamic pruning sends backward, about
    "Plain training": Arm("plain", {}, 1, ""),
    "Dynamic pruning, by chance": Arm("dynamic_pruning", {}, 0.65, "Qin et al. 2024"),
    "Dynamic pruning, fixed number": Arm(
        "dynamic_pruning", {"reading": "code"}, 0.65, "Qin et al. 2024"
    ),
    "Random share": Arm("random_share", {"share": 0.65}, 0.65, "Okanovic et al. 2024"),
}


def label(name: str) -> str:
    """What an arm is called in tables and figures."""
    return name if name.startswith("Active bias, ") else plotting.method_label(name)


def only(name: str, values: Sequence[str]) -> str:
    """The one entry of a list of parameters.

    Raises:
        ParameterError: there are several.
    """
    if len(values) > 1:
        raise ParameterError(f"{name} = {list(values)}: a comparison has one; make one for each")
    return values[0]


def arms_table(arms: Sequence[str] = tuple(ARMS)) -> pd.DataFrame:
    """The arms, their options, and what part of an epoch they send through the backward pass."""
    about = ("selective_backprop", "dynamic_pruning")  # by chance, and by how training goes
    return pd.DataFrame(
        {
            "arm": label(name),
            "method": arm.method,
            "options": ", ".join(f"{k}={v}" for k, v in arm.options.items()),
            "part of an epoch": f"{'about ' if name in about else ''}{arm.share:g}",
            "source": arm.source,
        }
        for name, arm in chosen(arms).items()
    )  # fmt: skip


def chosen(names: Sequence[str]) -> dict[str, Arm]:
    """The arms of these names, in the order of `ARMS`, and always the two that others are compared
    with."""
    return {name: arm for name, arm in ARMS.items() if name in (*BASELINES, *names)}


def planned(
    base: Mapping,
    seeds: Sequence[int],
    epochs: int,
    *,
    small_network: str,
    arms: Sequence[str] = tuple(ARMS),
) -> dict[str, list[Run]]:
    """The runs of every arm, as many epochs as let it send the samples of ``epochs`` of plain
    training through the backward pass, evaluated about as often.

    Args:
        base: fields that all share.
        small_network: scores what reducible loss wants.

    Example:
        >>> arms = planned({"dataset": "digits", "network": "mlp"}, [0, 1], 10, small_network="mlp")
        >>> {name: arms[name][0].epochs for name in ("plain", "random_share", "reducible_loss")}
        {'plain': 10, 'random_share': 20, 'reducible_loss': 40}
    """
    runs = {}
    for name, arm in chosen(arms).items():
        own = dict(arm.options)
        if arm.method == "reducible_loss":
            own |= {"small_network": small_network, "small_epochs": epochs}
        fields = dict(base) | {"method": arm.method, "options": own}
        fields |= {"epochs": round(epochs / arm.share), "evaluate_every": int(1 / arm.share)}
        runs[name] = [Run(seed=seed, **fields) for seed in seeds]
    return runs


def with_results(
    cells: Mapping[str, Mapping[str, Sequence[Run]]], results: pd.DataFrame
) -> Mapping[str, Mapping[str, Sequence[Run]]]:
    """The settings of which anything was run; all where nothing was."""
    found = {name: arms for name, arms in cells.items() if tables.is_run(results, arms.values())}
    return found or cells


def at_equal_epochs(base: Mapping, seeds: Sequence[int], epochs: int) -> dict[str, list[Run]]:
    """The runs of `EQUAL_EPOCHS`, whose learning rate falls to 0, as in the paper on pruning;
    evaluated at the end."""
    fields = dict(base) | {"epochs": epochs, "evaluate_every": epochs, "schedule": "cosine"}
    return {
        name: [Run(**fields, method=arm.method, options=arm.options, seed=seed) for seed in seeds]
        for name, arm in EQUAL_EPOCHS.items()
    }


def within(
    seconds: float, seconds_per_epoch: float, updates_per_epoch: int
) -> tuple[int, list[int]]:
    """Epochs and seeds with which all arms in all settings take about so long.

    Five seeds, and up to ten as long as each then has enough epochs: 10, and `ENOUGH` updates.
    Beyond that more epochs, up to three times enough. Never less than five seeds of two epochs.

    Args:
        seconds_per_epoch: of plain training, for all arms in all settings.
        updates_per_epoch: of plain training.

    Example:
        >>> within(100, 1, 13), within(3600, 1, 13), within(1, 1, 13)
        ((12, [0, 1, 2, 3, 4, 5, 6, 7]), (36, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), (2, [0, 1, 2, 3, 4]))
    """
    affordable = max(0, seconds / seconds_per_epoch)  # epochs of all seeds
    enough = max(10, math.ceil(ENOUGH / updates_per_epoch))
    num_seeds = min(10, max(5, int(affordable / enough)))
    return min(3 * enough, max(2, int(affordable / num_seeds))), list(range(num_seeds))


def chosen_for(
    minutes: float,
    book: Notebook,
    base: Mapping,
    num_train: Mapping[str, int],
    side: int,
    small_network: str,
    arms: Sequence[str] = tuple(ARMS),
) -> dict[str, Any]:
    """``epochs``, ``seeds`` and ``image_size`` with which the notebook takes about so long here.

    A short plain training says whether the images must be smaller for time to suffice, one of every
    arm how long all take; the caption says what was chosen. Nothing is where nothing is trained.

    Args:
        num_train: training images by setting, first of the data as it is.
        side: of the images, which may become smaller; 0: may not.
    """
    checks.number("minutes", minutes, low=0, above=True)
    if given := {"epochs", "seeds"}.intersection(book.p.changed):
        raise ParameterError(f"minutes = {minutes:g} chooses {min(given)}: give one of the two")
    whole = next(iter(num_train.values()))
    settings, updates = sum(num_train.values()) / whole, math.ceil(whole / base["batch_size"])
    short = max(2, math.ceil(SHORT / updates))  # epochs

    longer = LONGER * sum(arm.share for arm in EQUAL_EPOCHS.values())  # plain trainings

    def measured(fields: Mapping, names: Iterable[str]) -> float:
        planned_arms = planned(fields, [0], short, small_network=small_network, arms=arms)
        rows = book.run(run for name in names for run in planned_arms[name])
        times = load_timings(rows, book.store).filter(["seconds", "seconds_before"])
        return float(times.sum().sum())

    left = MARGIN * (60 * minutes - DRAWING)
    if (plain := measured(base, ["plain"])) == 0:  # not trained
        return {}
    names = list(chosen(arms))
    smaller = [s for s in SIDES if s < side and _takes(base["network"], s)]
    for size in (base["image_size"], *smaller):
        part = ((size or side) / side) ** 2 if side else 1.0  # of the pixels
        per_epoch = (ONE_ARM * len(names) * settings + longer) * part * plain / short
        if within(left, per_epoch, updates)[0] * updates >= ENOUGH:
            break
    spent = measured(base | {"image_size": size}, names)
    rounds = ROUNDS * costs.NUM_EPOCHS * min(updates, costs.NUM_BATCHES) / (short * updates)
    left -= (1 + rounds) * spent
    per_epoch = (settings * spent + longer * part * plain) / short
    epochs, seeds = within(left, per_epoch, updates)
    before = f"{book.p.epochs} epochs, {len(book.p.seeds)} seeds"
    after = f"{epochs} epochs, {len(seeds)} seeds (in {minutes:g} minutes)"
    book.caption = book.caption.replace(before, after)
    book.caption += f", images resized to {size}x{size}" if size != base["image_size"] else ""
    needed = per_epoch * epochs * len(seeds)
    if needed > 1.2 * max(left, 0):
        needed = 60 * minutes - left + needed / MARGIN
        print(f"{minutes:g} minutes are too few: this takes about {math.ceil(needed / 60)}")
    return {"epochs": epochs, "seeds": seeds, "image_size": size}


def _takes(network: str, side: int) -> bool:
    try:
        with torch.device("meta"):
            build_network(network, 2, 1, image_size=side)
    except DataError:
        return False
    return True


def long_tailed_indices(
    *,
    datasets: Sequence[str],
    train_size: int,
    test_size: int = 0,
    ratio: float,
    data_root: str | None = None,
) -> dict[str, np.ndarray]:
    """A part of a training set whose classes get rarer, each by the same factor.

    Args:
        datasets: of which the first is meant.
        train_size, test_size: as of a `Run`.
        ratio: how many times as many samples as the last class the first has, if both have enough.

    Returns:
        ``indices (n,)``, ``counts (K,)``, ``num_samples ()``; of the test set, which stays as it
        is, ``test_counts (K,)``. Classes are in their order; each keeps a sample if it has one.

    Example:
        >>> found = long_tailed_indices(datasets=["digits"], train_size=200, ratio=10.0)
        >>> found["counts"].tolist()
        [20, 15, 12, 9, 7, 6, 4, 3, 3, 2]
    """
    checks.number("ratio", ratio, low=1)
    train, test = (load_dataset(datasets[0], split, root=data_root) for split in SPLITS)
    num_classes, tests = train.num_classes, test.subset(test_size).labels.numpy()
    labels = train.subset(train_size).labels.numpy()
    counts = np.bincount(labels, minlength=num_classes)
    falls = ratio ** -np.linspace(0, 1, len(counts))
    quota = np.minimum(counts, np.maximum(1, np.round(counts.max() * falls))).astype(int)
    indices = pick_per_class(labels, quota)
    return {
        "indices": indices,
        "counts": np.bincount(labels[indices], minlength=num_classes),
        "num_samples": np.array(len(labels)),
        "test_counts": np.bincount(tests, minlength=num_classes),
    }
