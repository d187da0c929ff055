"""What an update of hard mini-batches costs."""

from dataclasses import replace
from functools import partial

import numpy as np

from hardtrain.data.images import ImageDataset, resolve_device
from hardtrain.report.timing import machine, relative_times, small_cnn
from hardtrain.runs.run import Run
from hardtrain.training import lookup
from hardtrain.training.loop import fit
from hardtrain.training.randomness import isolated_randomness


def hard_batch_step_times(
    *, batch_size: int = 32, num_batches: int = 8, repetitions: int = 3, device: str = "auto"
) -> dict[str, np.ndarray]:
    """Time per update of hard mini-batches relative to plain training.

    Whole trainings of 4 epochs on random images of 8x8, by ``training.fit``, without evaluation;
    all make the same number of updates.

    Returns:
        ``deltas (D,)``, ``ratios (D,)``, and ``machine``, a text.
    """
    deltas = (0.8, 0.5, 0.2)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size * num_batches, 8, 8, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, len(images))
    data = ImageDataset.from_arrays(images, labels, device=resolve_device(device))
    plain = Run("random", "cnn_small", epochs=4, lr=1e-6, batch_size=batch_size)
    runs = [replace(plain, method="hard_batches", options={"delta": delta}) for delta in deltas]
    first, *others = (partial(_train, run, data) for run in (plain, *runs))
    ratios = relative_times(first, others, repetitions, warmup=1, device=data.images.device)
    return {"deltas": np.array(deltas), "ratios": ratios, "machine": np.array(machine(device))}


def _train(run: Run, data: ImageDataset) -> None:
    with isolated_randomness(0, data.images.device):
        model = small_cnn(batch_norm=True).to(data.images.device)
        method = lookup.find_method(run.method)(run, data, model, **run.options)
        fit(run, model, method, lambda model: {})
