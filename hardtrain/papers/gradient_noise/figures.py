"""Gradient noise and large mini-batches: settings of the paper, and what its figures show.

Jaiswal, Taura, "Overcoming Generalization Gap in Large Mini-Batch Training of Deep Neural
Networks".
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from hardtrain import checks
from hardtrain.data.batches import Transform
from hardtrain.data.images import ImageDataset, load_dataset, resolve_device
from hardtrain.errors import ParameterError
from hardtrain.networks import build_network, has_batch_norm, num_parameters
from hardtrain.papers.gradient_noise.curvature import gradient_noise_scale, largest_eigenvalue
from hardtrain.papers.gradient_noise.landscape import (
    along_direction,
    estimate_statistics,
    filter_normalised_direction,
    interpolate,
)
from hardtrain.report.notebook import sample_images
from hardtrain.training.randomness import derived_seed, isolated_randomness

CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
READINGS = ("re-estimated", "interpolated")  # of the batch-norm statistics between two networks
_TOLERANCE = 0.01  # of eigenvalues, relative; seeds differ by more
_BATCH = 500  # images at once; changes no result but by rounding, and the re-estimated statistics


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
    checks.integer("num_steps", num_steps, low=1)
    return math.fsum(alpha / (1 + t) ** gamma for t in range(num_steps)) / num_steps


def uses_batch_norm(network: str, *, stem: str = "imagenet") -> bool:
    """Whether the network of that name has batch-norm, so that it can be a ghost's.

    Example:
        >>> uses_batch_norm("cnn_small_bn"), uses_batch_norm("mlp")
        (True, False)
    """
    with torch.random.fork_rng(devices=[]):  # its weights do not matter
        return has_batch_norm(build_network(network, 2, 3, stem=stem, image_size=32))


def samples(
    *, datasets: Sequence[str], train_size: int, test_size: int, data_root: str | None = None
) -> dict[str, np.ndarray]:
    """As ``analysis.sample_images``, and of the first set ``num_train``, the number of training
    images that are used."""
    shown = sample_images(
        datasets=datasets, train_size=train_size, test_size=test_size, data_root=data_root
    )
    used = load_dataset(datasets[0], "train", root=data_root).subset(train_size)
    return shown | {"num_train": np.array(len(used))}


def sketch_of_minima(shift: float = 0.25, num_points: int = 601) -> dict[str, np.ndarray]:
    r"""Figure 1: a function with a flat and a sharp minimum, and the same function, shifted.

    .. math:: f(x) = 1 - e^{-(x + 2)^2 / 2 w_1^2} - e^{-(x - 2)^2 / 2 w_2^2}, \quad
              w_1 = 1, \ w_2 = 0.3

    f stands for the training loss, f(x - shift) for the test loss.

    Returns:
        ``x``, ``train``, ``test`` ``(num_points,)``; of the flat and the sharp minimum, in this
        order, ``minima``, their ``curvature`` f'' and the ``gap`` of test and train ``(2,)``.

    Example:
        >>> found = sketch_of_minima()
        >>> found["curvature"].round(1), found["gap"].round(2)
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
    artefacts: Sequence[Mapping[str, np.ndarray] | None],
    *,
    num_seeds: int,
    alphas: Sequence[float],
    num_images: int = 0,
    device: str = "auto",
    data_root: str | None = None,
    **built,
) -> dict[str, np.ndarray]:
    """Figures 2 and 6: loss and accuracy on the lines from one network to each of several others.

    Args:
        artefacts: ``final_weights`` of runs: the seeds of the first network, then those of each
            other; ``None`` for a run that diverged.
        num_seeds: S, of each; networks of the same seed are paired.
        alphas: a ``(A,)``: 0 is the first network, 1 the other.
        num_images: stratified parts of so many of each set are enough; 0 is all.
        **built: of the runs: ``dataset``, ``network``, ``stem``, ``image_size``, ``train_size``,
            ``test_size``.

    Returns:
        ``alphas (A,)`` and for each name of ``CURVES`` (nats, fractions) an array
        ``(2, P, S, A)``: by reading of the batch-norm statistics (``READINGS``), other network and
        seed; nan where one of the two diverged.
    """
    train, test, transform = _sets(device, data_root, built)
    part = _part(train, num_images)
    sets = {"train": part, "val": _part(test, num_images)}
    groups = _grouped(artefacts, num_seeds)
    shape = (len(READINGS), len(groups) - 1, num_seeds, len(alphas))
    found = {name: np.full(shape, np.nan) for name in CURVES}
    for other, group in enumerate(groups[1:]):
        for seed, ends in enumerate(zip(groups[0], group, strict=True)):
            if any(end is None for end in ends):
                continue
            models = [_network(end, train, **built) for end in ends]
            for reading, batch_norm in enumerate(READINGS):
                curve = interpolate(
                    *models, alphas, sets, transform,
                    batch_norm=batch_norm, statistics_data=part, batch_size=_BATCH,
                )  # fmt: skip
                for name in CURVES:
                    found[name][reading, other, seed] = curve[name]
    return {"alphas": np.array(alphas, dtype=float)} | found


def random_directions(
    artefacts: Sequence[Mapping[str, np.ndarray] | None],
    *,
    num_seeds: int,
    distances: Sequence[float],
    num_images: int = 0,
    device: str = "auto",
    data_root: str | None = None,
    **built,
) -> dict[str, np.ndarray]:
    """Loss and accuracy along a filter-normalised random direction from each network; of one
    seed, all networks get the same random numbers.

    Args:
        artefacts: as in `interpolations`; here no network is special.
        distances: d ``(A,)``; at 1 each filter has moved by its own length.
        num_seeds, num_images, **built: as in `interpolations`.

    Returns:
        ``distances (A,)`` and for each name of ``CURVES`` an array ``(G, S, A)``, batch-norm
        statistics re-estimated.
    """
    train, test, transform = _sets(device, data_root, built)
    part = _part(train, num_images)
    sets = {"train": part, "val": _part(test, num_images)}
    groups = _grouped(artefacts, num_seeds)
    found = {name: np.full((len(groups), num_seeds, len(distances)), np.nan) for name in CURVES}
    for row, group in enumerate(groups):
        for seed, weights in enumerate(group):
            if weights is None:
                continue
            model = _network(weights, train, **built)
            direction = filter_normalised_direction(model, torch.Generator().manual_seed(seed))
            curve = along_direction(
                model, direction, distances, sets, transform,
                statistics_data=part, batch_size=_BATCH,
            )  # fmt: skip
            for name in CURVES:
                found[name][row, seed] = curve[name]
    return {"distances": np.array(distances, dtype=float)} | found


def largest_eigenvalues(
    artefacts: Sequence[Mapping[str, np.ndarray] | None],
    *,
    num_images: int = 0,
    block_size: int = 32,
    device: str = "auto",
    data_root: str | None = None,
    **built,
) -> dict[str, np.ndarray]:
    """Figure 3: the largest eigenvalue of the Hessian of the training loss of each network.

    Args:
        artefacts: ``final_weights`` of runs; ``None`` for one that diverged.
        num_images: a stratified part of the training set; 0 is all of it.
        block_size: images in one graph; changes memory and time, and results by rounding.
        **built: as in `interpolations`.

    Returns:
        ``eigenvalues (R,)``, in evaluation mode; nan for a run that diverged, and where the
        iteration does not converge.
    """
    train, _, transform = _sets(device, data_root, built)
    part = _part(train, num_images)
    values = np.full(len(artefacts), np.nan)
    for i, weights in enumerate(artefacts):
        if weights is not None:
            model = _network(weights, train, **built)
            how = {"generator": torch.Generator().manual_seed(0), "tolerance": _TOLERANCE}
            try:
                values[i] = largest_eigenvalue(model, part, transform, batch_size=block_size, **how)
            except ParameterError:  # a network that all but diverged
                continue
    return {"eigenvalues": values}


def gradient_noise(
    artefacts: Sequence[Mapping[str, np.ndarray] | None],
    *,
    seeds: Sequence[int],
    num_images: int = 0,
    block_size: int = 32,
    device: str = "auto",
    data_root: str | None = None,
    **built,
) -> dict[str, np.ndarray]:
    """How noisy the gradient is for each network, and for the networks before training.

    Args:
        artefacts: ``final_weights`` of runs: for each group of ``seeds`` in turn.
        seeds: S, of the runs.
        num_images: as in `largest_eigenvalues`.
        block_size: per-sample gradients that are in memory at once.
        **built: as in `interpolations`.

    Returns:
        ``trace``, ``squared_norm``, ``noise_scale`` ``(1 + G, S)`` as in
        ``curvature.gradient_noise_scale``; row 0 is of the initial weights of each seed, with
        batch-norm statistics of the training set. ``num_parameters ()``.
    """
    train, _, transform = _sets(device, data_root, built)
    groups = _grouped(artefacts, len(seeds))
    part = _part(train, num_images)
    found = np.full((3, 1 + len(groups), len(seeds)), np.nan)
    for column, seed in enumerate(seeds):
        model = _network(None, train, seed=seed, **built)
        estimate_statistics(model, train, transform, _BATCH)
        found[:, 0, column] = gradient_noise_scale(model, part, transform, block_size=block_size)
        for row, group in enumerate(groups):
            if group[column] is not None:
                trained = _network(group[column], train, **built)
                found[:, 1 + row, column] = gradient_noise_scale(
                    trained, part, transform, block_size=block_size
                )
    names = ("trace", "squared_norm", "noise_scale")
    count = np.array(num_parameters(model))
    return dict(zip(names, found, strict=True)) | {"num_parameters": count}


def _sets(device: str, data_root: str | None, built: Mapping):
    """Training and validation set of runs, and their transform."""
    where = {"root": data_root, "device": resolve_device(device)}
    train = load_dataset(built["dataset"], "train", **where).subset(built["train_size"])
    test = load_dataset(built["dataset"], "test", **where).subset(built["test_size"])
    return train, test, Transform.of(train, size=built["image_size"])


def _network(
    weights: Mapping[str, np.ndarray] | None,
    train: ImageDataset,
    *,
    network: str,
    stem: str,
    image_size: int,
    seed: int = 0,
    **_,
) -> nn.Module:
    """The network with these weights; without, as a run of that seed begins."""
    device = train.images.device
    with isolated_randomness(derived_seed(seed, "torch"), device):
        model = build_network(
            network,
            train.num_classes,
            train.in_channels,
            stem=stem,
            image_size=image_size or train.image_size,
        )
    if weights is not None:
        model.load_state_dict({name: torch.as_tensor(value) for name, value in weights.items()})
    return model.to(device)


def _part(data: ImageDataset, size: int) -> ImageDataset:
    return data.subset(min(size, len(data)))


def _grouped(artefacts: Sequence, num_seeds: int) -> list[Sequence]:
    if len(artefacts) % num_seeds:
        raise ParameterError(f"{len(artefacts)} artefacts are no multiple of {num_seeds} seeds")
    return [artefacts[i : i + num_seeds] for i in range(0, len(artefacts), num_seeds)]


def average(values: np.ndarray) -> np.ndarray:
    """The mean over seeds ``(S, T)`` as one row ``(1, T)``; without a seed no row."""
    return values.mean(axis=0, keepdims=True) if len(values) else values
