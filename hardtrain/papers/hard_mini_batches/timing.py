"""What an update of hard mini-batches costs."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from hardtrain.data.images import ImageDataset, resolve_device
from hardtrain.report import timing
from hardtrain.runs.run import Run
from hardtrain.runs.train import build
from hardtrain.training.loop import fit
from hardtrain.training.randomness import isolated_randomness

NUM_EPOCHS = 2  # the first pass, and as many updates in rounds


def hard_batch_step_times(
    *,
    network: str,
    batch_size: int,
    image_size: int,
    num_channels: int,
    deltas: Sequence[float],
    precision: str = "float32",
    channels_last: bool = False,
    num_batches: int = 8,
    repetitions: int = 5,
    device: str = "auto",
) -> dict[str, np.ndarray]:
    """Seconds per update of hard mini-batches and of plain training on the same mini-batches.

    Whole trainings of 2 epochs on random square images, by ``training.fit``, without evaluation,
    in turns; all make the same number of updates.

    Returns:
        ``deltas (1 + D,)``, the first of them 1; ``seconds (R, 1 + D)`` per update by round of
        the measurement; and ``machine``, a text.
    """
    rng = np.random.default_rng(0)
    shape = (batch_size * num_batches, image_size, image_size, num_channels)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    if num_channels == 1:
        images = images[..., 0]
    data = ImageDataset.from_arrays(
        images, rng.integers(0, 10, len(images)), device=resolve_device(device)
    )
    base = Run("random", network, "hard_batches", epochs=NUM_EPOCHS, batch_size=batch_size)
    base = replace(base, lr=1e-6, stem="imagenet", precision=precision, channels_last=channels_last)
    options = [{"delta": 1.0, "order": "index"}, *({"delta": delta} for delta in deltas)]
    trainings = {
        number: partial(_train, replace(base, options=chosen), data)
        for number, chosen in enumerate(options)
    }
    times = timing.interleaved(trainings, repetitions, warmup=1, device=data.images.device)
    seconds = np.array([times[number] for number in trainings]).T / (NUM_EPOCHS * num_batches)
    facts = {"deltas": np.array([1.0, *deltas]), "machine": np.array(timing.machine(device))}
    return facts | {"seconds": seconds}


def _train(run: Run, data: ImageDataset) -> None:
    with isolated_randomness(0, data.images.device):
        model, method = build(run, data, data)
        fit(run, model, method, lambda model: {})
