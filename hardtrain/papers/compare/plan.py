"""What is compared: the arms, at equal numbers of samples through the backward pass, and the three
settings, as CurBench (Zhou et al., ICML 2024) has them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from hardtrain import checks
from hardtrain.data.images import load_dataset
from hardtrain.data.stratify import pick_per_class
from hardtrain.report import plotting
from hardtrain.runs.run import Run

# with how many samples, relative to the data as it is; about
SETTINGS = {"as it is": 1.0, "wrong labels": 1.0, "unbalanced": 0.5}
BASELINES = ("plain", "random_share")
LONGER = 3  # times as many epochs as the comparison has: of the four at equal epochs


class Arm(NamedTuple):
    """A method and its options; ``share``: of an epoch's samples that it sends through the backward
    pass, exactly or about, so that it is trained 1 / ``share`` times as many epochs; ``cost``: of
    its training, relative to plain training, about."""

    method: str
    options: Mapping[str, object]
    share: float
    source: str
    cost: float = 1.1


_CHANG = "Chang et al. 2017"
ARMS = {  # by their style in figures, or their label
    "plain": Arm("plain", {}, 1, "", cost=1),
    "random_share": Arm("random_share", {"share": 0.5}, 0.5, "Okanovic et al. 2024"),
    "focal": Arm("focal", {}, 1, "Lin et al. 2017"),
    "trimming": Arm("trimming", {}, 1, "Fassold"),
    "hard_batches": Arm("hard_batches", {}, 1, "Sahayam et al. 2023"),
    "gradient_noise": Arm("gradient_noise", {}, 1, "Jaiswal, Taura"),
    "itdm_joint": Arm("distribution_matching", {"by_class": False}, 1, "Li et al. 2020", cost=2.4),
    "itdm_class": Arm("distribution_matching", {}, 1, "Li et al. 2020", cost=2.5),
    "active_bias_sampling": Arm("active_bias", {"variant": "SPV"}, 1, _CHANG),
    "active_bias_weighting": Arm("active_bias", {"variant": "WPV"}, 1, _CHANG),
    **{
        f"Active bias, {variant}": Arm("active_bias", {"variant": variant}, 1, _CHANG)
        for variant in ("SD", "ISD", "SE", "STC", "WD", "WE", "WTC")
    },
    "selective_backprop": Arm("selective_backprop", {}, 0.4, "Jiang et al. 2019", cost=2.8),
    "dynamic_pruning": Arm("dynamic_pruning", {}, 0.7, "Qin et al. 2024", cost=1.3),
    "reducible_loss": Arm(
        "reducible_loss", {"share": 0.25}, 0.25, "Mindermann et al. 2022", cost=3.7
    ),
}
EQUAL_EPOCHS = {  # the random share is as large as what dynamic pruning sends backward, about
    "Plain training": Arm("plain", {}, 1, "", cost=1),
    "Dynamic pruning, by chance": Arm("dynamic_pruning", {}, 0.65, "Qin et al. 2024", cost=0.7),
    "Dynamic pruning, fixed number": Arm(
        "dynamic_pruning", {"reading": "code"}, 0.65, "Qin et al. 2024", cost=0.7
    ),
    "Random share": Arm("random_share", {"share": 0.65}, 0.65, "Okanovic et al. 2024", cost=0.7),
}


def label(name: str) -> str:
    """What an arm is called in tables and figures."""
    return name if name.startswith("Active bias, ") else plotting.method_label(name)


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
    done = set(results["key"])
    found = {
        name: arms
        for name, arms in cells.items()
        if any(run.key in done for arm in arms.values() for run in arm)
    }
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
    minutes: float,
    seconds_per_epoch: float,
    arms: Sequence[str] = tuple(ARMS),
    settings: Sequence[str] = tuple(SETTINGS),
) -> tuple[int, list[int]]:
    """Epochs and seeds with which the whole comparison takes about so long.

    Five seeds, as long as each then has ten epochs; fewer seeds, but three, so that each has; and
    beyond thirty epochs more seeds. Never less than three seeds of two epochs.

    Args:
        minutes: > 0, for the arms in these settings, trained one after the other.
        seconds_per_epoch: of plain training on the data as it is.

    Example:
        >>> within(5, 0.05), within(60, 0.05), within(0.1, 0.05)
        ((14, [0, 1, 2, 3, 4]), (30, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), (2, [0, 1, 2]))
    """
    checks.number("minutes", minutes, low=0, above=True)
    costs = sum(SETTINGS[name] for name in set(settings)) * sum(
        arm.cost for arm in chosen(arms).values()
    )
    costs += LONGER * sum(arm.cost for arm in EQUAL_EPOCHS.values())
    affordable = 60 * minutes / (costs * seconds_per_epoch)  # epochs of all seeds
    num_seeds = min(10, max(3, min(5, int(affordable / 10)), int(affordable / 30)))
    epochs = min(30, max(2, int(affordable / num_seeds)))
    return epochs, list(range(num_seeds))


def long_tailed_indices(
    *, datasets: Sequence[str], train_size: int, ratio: float, data_root: str | None = None
) -> dict[str, np.ndarray]:
    """A part of a training set whose classes get rarer, each by the same factor.

    Args:
        datasets: of which the first is meant.
        train_size: of the training set, as of a `Run`.
        ratio: how many times as many samples as the last class the first has, if both have enough.

    Returns:
        ``indices (n,)``, ``counts (K,)``, ``num_samples ()``. The classes are in their order; each
        keeps at least one sample.

    Example:
        >>> found = long_tailed_indices(datasets=["digits"], train_size=200, ratio=10.0)
        >>> found["counts"].tolist()
        [20, 15, 12, 9, 7, 6, 4, 3, 3, 2]
    """
    checks.number("ratio", ratio, low=1)
    labels = load_dataset(datasets[0], "train", root=data_root).subset(train_size).labels.numpy()
    counts = np.bincount(labels)
    falls = ratio ** -np.linspace(0, 1, len(counts))
    quota = np.minimum(counts, np.maximum(1, np.round(counts.max() * falls))).astype(int)
    indices = pick_per_class(labels, quota)
    return {
        "indices": indices,
        "counts": np.bincount(labels[indices], minlength=len(counts)),
        "num_samples": np.array(len(labels)),
    }
