"""Two small trainings on one half of a training set each, which score the other half."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from hardtrain.data.images import ImageDataset
from hardtrain.runs import subsets
from hardtrain.runs.run import Run
from hardtrain.training import randomness
from hardtrain.training.loop import HeldOut


def with_wrong_labels(run: Run, train: ImageDataset) -> ImageDataset:
    """A run's whole training set, with the wrong labels that it is given."""
    if not run.label_noise:
        return train
    seed = run.seed if run.label_noise_seed is None else run.label_noise_seed
    return train.with_label_noise(run.label_noise, randomness.generator(seed, "label noise"))


def small_runs(run: Run, wanted: HeldOut, train: ImageDataset) -> list[Run]:
    """The two trainings that ``run`` needs before it: plain, otherwise like it, on halves of what
    it trains on, drawn from its seed with every label in half, wrong ones too.

    Args:
        run: whose method has the ``held_out`` that is ``wanted``.
        train: its data set, without wrong labels and before its subset.
    """
    labels = with_wrong_labels(run, train).labels.cpu()
    pool = torch.arange(len(train))
    if run.subset:
        pool = torch.from_numpy(subsets.unpack(run.subset, len(train)))
    draws = randomness.generator(run.seed, "halves")
    shuffled = pool[torch.randperm(len(pool), generator=draws)]
    by_label = shuffled[labels[shuffled].argsort(stable=True)]
    return [
        dataclasses.replace(
            run,
            method="plain",
            options={},
            network=wanted.network,
            epochs=wanted.epochs,
            warmup_epochs=min(run.warmup_epochs, wanted.epochs),
            evaluate_every=wanted.epochs,
            evaluate_unit="epoch",
            evaluate_last=0,
            ghost_batch_size=0,
            evaluate_train=False,
            subset=subsets.pack(by_label[start::2].numpy(), len(train)),
            keep=("train_losses",),
        )
        for start in (0, 1)
    ]


def held_out_losses(small: Sequence[Run], losses: Sequence[np.ndarray]) -> np.ndarray:
    """Of every sample of the whole training set the loss by the training that has not seen it;
    ``losses`` are their artefacts, ``(N,)`` each."""
    first, second = losses
    seen_by_first = np.zeros(len(first), bool)
    seen_by_first[subsets.unpack(small[0].subset, len(first))] = True
    return np.where(seen_by_first, second, first)
