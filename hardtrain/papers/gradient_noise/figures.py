"""Gradient noise and large mini-batches: settings of the paper, and the arrays of its figures.

Jaiswal, Taura, "Overcoming Generalization Gap in Large Mini-Batch Training of Deep Neural
Networks".
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import nn

from hardtrain.data.batches import Transform
from hardtrain.data.images import ImageDataset, load_dataset
from hardtrain.networks import build_network, num_parameters
from hardtrain.papers.gradient_noise.curvature import (
    GradientNoiseScale,
    gradient_noise_scale,
    largest_eigenvalue,
)
from hardtrain.papers.gradient_noise.landscape import (
    along_direction,
    estimate_statistics,
    evaluate_states,
    filter_normalised_direction,
    interpolate,
)
from hardtrain.report.notebook import sample_images
from hardtrain.training.randomness import derived_seed, isolated_randomness

CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
READINGS = ("re-estimated", "interpolated")  # of the batch-norm statistics between two networks
Artefacts = Sequence[Mapping[str, np.ndarray] | None]  # weights by name; None of a diverged run
_TOLERANCE = 0.01  # of eigenvalues, relative; seeds differ by more


def decay_milestones(num_epochs: int) -> tuple[int, ...]:
    """The epochs at which the rate falls: 25, 40, 50, 60, ... of 100, in proportion for others.

    Source:
        Section 4.3: "at 25th, 40th and every following 10th epoch"; the number of epochs is not
        stated, 100 is ours.

    Example:
        >>> decay_milestones(100), decay_milestones(30)
        ((25, 40, 50, 60, 70, 80, 90), (8, 12, 15, 18, 21, 24, 27))
    """
    scaled = (math.floor(percent * num_epochs / 100 + 0.5) for percent in (25, *range(40, 100, 10)))
    return tuple(dict.fromkeys(epoch for epoch in scaled if 1 <= epoch < num_epochs))


def constant_alpha(alpha: float, gamma: float, num_steps: int) -> float:
    r"""The variance of noise without decay that adds up to the same as decaying noise.

    .. math:: \alpha_0 = \frac{1}{T} \sum_{t=0}^{T-1} \frac{\alpha}{(1 + t)^\gamma}

    Example:
        >>> round(constant_alpha(0.4, 1.0, 2), 6)
        0.3
    """
    return math.fsum(alpha / (1 + t) ** gamma for t in range(num_steps)) / num_steps


def samples(
    *, datasets: Sequence[str], train_size: int, test_size: int, data_root: str | None = None
) -> dict[str, np.ndarray]:
    """The lines ``described`` of `sample_images`, and of the first set ``num_train`` and
    ``num_test``, the numbers of images that are used, and their ``image_size``."""
    sizes = {"datasets": datasets, "train_size": train_size, "test_size": test_size}
    train, test = (load_dataset(datasets[0], split, root=data_root) for split in ("train", "test"))
    return {
        "described": sample_images(**sizes, data_root=data_root)["described"],
        "num_train": np.array(len(train.subset(train_size))),
        "num_test": np.array(len(test.subset(test_size))),
        "image_size": np.array(train.images.shape[-1]),
    }


def sketch_of_minima(shift: float = 0.25, num_points: int = 601) -> dict[str, np.ndarray]:
    r"""Figure 1: a function with a flat and a sharp minimum, and the same function, shifted.

    .. math:: f(x) = 1 - e^{-(x + 2)^2 / 2 w_1^2} - e^{-(x - 2)^2 / 2 w_2^2}, \quad
              w_1 = 1, \ w_2 = 0.3

    f stands for the training loss, f(x - shift) for the test loss.

    Returns:
        ``x``, ``train``, ``test`` ``(num_points,)``; of the flat and the sharp minimum, in this
        order, ``minima``, their ``curvature`` f'' and the ``gap`` of test and train ``(2,)``.

    Example:
        >>> drawn = sketch_of_minima()
        >>> drawn["curvature"].round(1), drawn["gap"].round(2)
        (array([ 1. , 11.1]), array([0.03, 0.29]))
    """
    centres, widths = np.array([-2.0, 2.0]), np.array([1.0, 0.3])

    def loss(x):
        return 1 - np.exp(-(((x[:, None] - centres) / widths) ** 2) / 2).sum(axis=1)

    x = np.linspace(-5, 4, num_points)
    return {
        "x": x,
        "train": loss(x),
        "test": loss(x - shift),
        "minima": centres,
        "curvature": widths**-2.0,
        "gap": loss(centres - shift) - loss(centres),
    }


def interpolations(
    artefacts: Artefacts, *, num_seeds: int, alphas: Sequence[float], **recipe
) -> dict[str, np.ndarray]:
    """Figures 2 and 6: loss and accuracy on the lines from one network to each of several others.

    Args:
        artefacts: ``final_weights`` of runs: the seeds of the first network, then those of each
            other; ``None`` for a run that diverged.
        num_seeds: S, of each; networks of the same seed are paired.
        alphas: a ``(A,)``: 0 is the first network, 1 the other.
        **recipe: of the runs: ``dataset``, ``network``, ``stem``, ``image_size``, ``train_size``,
            ``test_size``; and ``num_images``, if stratified parts of so many images of each set
            are enough (0 is all), ``device`` and ``data_root``.

    Returns:
        ``alphas (A,)`` and for each name of ``CURVES`` (nats, fractions) an array
        ``(2, P, S, A)``: by reading of the batch-norm statistics (``READINGS``), other network and
        seed; nan where one of the two diverged.
    """
    train, parts, transform = _sets(recipe)
    networks = [_network(weights, train, recipe) for weights in artefacts]
    pairs = list(zip(itertools.cycle(networks[:num_seeds]), networks[num_seeds:], strict=False))
    lines = [
        None if None in pair else (pair[0], interpolate(*pair, alphas), statistics_data)
        for statistics_data in (parts["train"], None)
        for pair in pairs
    ]
    curves = _curves(lines, parts, transform, (len(READINGS), -1, num_seeds, len(alphas)))
    return {"alphas": np.array(alphas, dtype=float)} | curves


def random_directions(
    artefacts: Artefacts, *, num_seeds: int, distances: Sequence[float], **recipe
) -> dict[str, np.ndarray]:
    """Loss and accuracy along a filter-normalised random direction from each network; of one
    seed, all networks get the same random numbers.

    Args:
        artefacts: as in `interpolations`; here no network is special.
        distances: d ``(A,)``; at 1 each filter has moved by its own length.
        num_seeds, **recipe: as in `interpolations`.

    Returns:
        ``distances (A,)`` and for each name of ``CURVES`` an array ``(G, S, A)``, batch-norm
        statistics re-estimated.
    """
    train, parts, transform = _sets(recipe)

    def states(model: nn.Module, seed: int) -> Iterator[Mapping]:
        direction = filter_normalised_direction(model, torch.Generator().manual_seed(seed))
        return along_direction(model, direction, distances)

    networks = [_network(weights, train, recipe) for weights in artefacts]
    lines = [
        None if model is None else (model, states(model, index % num_seeds), parts["train"])
        for index, model in enumerate(networks)
    ]
    curves = _curves(lines, parts, transform, (-1, num_seeds, len(distances)))
    return {"distances": np.array(distances, dtype=float)} | curves


def largest_eigenvalues(
    artefacts: Artefacts, *, block_size: int = 32, **recipe
) -> dict[str, np.ndarray]:
    """Figure 3: the largest eigenvalue of the Hessian of the training loss of each network.

    Args:
        artefacts: ``final_weights`` of runs; ``None`` for one that diverged.
        block_size: images in one graph; changes memory and time, and results by rounding.
        **recipe: as in `interpolations`.

    Returns:
        ``eigenvalues (R,)``, in evaluation mode; nan for a run that diverged, and where
        `largest_eigenvalue` has none.
    """
    train, parts, transform = _sets(recipe)
    options = {"tolerance": _TOLERANCE, "batch_size": block_size}
    values = np.full(len(artefacts), np.nan)
    for i, weights in enumerate(artefacts):
        if weights is not None:
            model, start = _network(weights, train, recipe), torch.Generator().manual_seed(0)
            values[i] = largest_eigenvalue(
                model, parts["train"], transform, generator=start, **options
            )
    return {"eigenvalues": values}


def gradient_noise(
    artefacts: Artefacts, *, seeds: Sequence[int], block_size: int = 32, **recipe
) -> dict[str, np.ndarray]:
    """How noisy the gradient is for each network, and for the networks before training.

    Args:
        artefacts: ``final_weights`` of runs: for each group of ``seeds`` in turn.
        seeds: S, of the runs.
        block_size: per-sample gradients that are in memory at once.
        **recipe: as in `interpolations`.

    Returns:
        ``trace``, ``squared_norm``, ``noise_scale`` ``(1 + G, S)`` as in
        ``curvature.gradient_noise_scale``; row 0 is of the initial weights of each seed, with
        batch-norm statistics of the training set. ``num_parameters ()``.
    """
    train, parts, transform = _sets(recipe)
    starts = [_initial_network(train, recipe, seed) for seed in seeds]
    for model in starts:
        estimate_statistics(model, train, transform)
    models = [*starts, *(_network(weights, train, recipe) for weights in artefacts)]
    measured = {"dataset": parts["train"], "transform": transform, "block_size": block_size}
    diverged = GradientNoiseScale(math.nan, math.nan, math.nan)
    scales = [
        diverged if model is None else gradient_noise_scale(model, **measured) for model in models
    ]
    by_seed = np.reshape(scales, (-1, len(seeds), 3))
    arrays = {name: by_seed[..., i] for i, name in enumerate(GradientNoiseScale._fields)}
    return arrays | {"num_parameters": np.array(num_parameters(starts[0]))}


def _sets(recipe: Mapping) -> tuple[ImageDataset, dict[str, ImageDataset], Transform]:
    """The training set of runs, parts of so many images of both sets, and the transform."""
    places = {"root": recipe.get("data_root"), "device": recipe.get("device", "auto")}
    train = load_dataset(recipe["dataset"], "train", **places).subset(recipe["train_size"])
    val = load_dataset(recipe["dataset"], "test", **places).subset(recipe["test_size"])
    sets, num_images = {"train": train, "val": val}, recipe.get("num_images", 0)
    parts = {name: data.subset(min(num_images, len(data))) for name, data in sets.items()}
    return train, parts, Transform.of(train, size=recipe["image_size"])


def _initial_network(train: ImageDataset, recipe: Mapping, seed: int = 0) -> nn.Module:
    """The network with which a run of that seed begins."""
    name, device = recipe["network"], train.images.device
    options = {"stem": recipe["stem"], "image_size": recipe["image_size"] or train.image_size}
    with isolated_randomness(derived_seed(seed, "torch"), device):
        return build_network(name, train.num_classes, train.in_channels, **options).to(device)


def _network(weights: Mapping | None, train: ImageDataset, recipe: Mapping) -> nn.Module | None:
    """The network with these weights; ``None`` without, of a run that diverged."""
    if weights is None:
        return None
    model = _initial_network(train, recipe)
    model.load_state_dict({name: torch.as_tensor(value) for name, value in weights.items()})
    return model


def _curves(lines: Sequence, parts: Mapping, transform: Transform, shape: Sequence[int]) -> dict:
    """Each name of ``CURVES`` as an array of that shape. A line is a network, its states and the
    data for batch-norm's statistics, or ``None``, where the curve is nan."""
    diverged = pd.DataFrame(math.nan, index=range(shape[-1]), columns=CURVES)
    curves = [
        diverged if line is None else evaluate_states(*line, parts, transform) for line in lines
    ]
    return {name: np.reshape([curve[name] for curve in curves], shape) for name in CURVES}
