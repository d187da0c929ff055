"""What a step of hard mini-batches costs."""

import statistics
from collections.abc import Callable, Sequence

import numpy as np

from hardtrain.data.images import ImageDataset, resolve_device
from hardtrain.papers.mini_batch_trimming.timing import small_cnn
from hardtrain.report.timing import interleaved, machine, median_ratio
from hardtrain.runs.run import Run
from hardtrain.training import lookup
from hardtrain.training.loop import fit
from hardtrain.training.randomness import isolated_randomness


def hard_batch_step_times(
    *,
    deltas: Sequence[float] = (0.8, 0.5, 0.2),
    batch_size: int = 32,
    num_batches: int = 8,
    repetitions: int = 3,
    device: str = "auto",
) -> dict[str, np.ndarray]:
    """Time per update of hard mini-batches relative to plain training.

    Whole trainings of 4 epochs on random images of 8x8, by ``training.fit``, without evaluation;
    all make the same number of updates.

    Returns:
        ``deltas (D,)``, ``ratios (D,)``, ``seconds (D + 1,)`` per update (plain first), and
        ``machine``, a text.
    """
    place = resolve_device(device)
    rng = np.random.default_rng(0)
    shape = (batch_size * num_batches, 8, 8, 3)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    data = ImageDataset.from_arrays(images, rng.integers(0, 10, len(images)), device=place)

    def training_of(method: str, **options) -> Callable[[], object]:
        run = Run("random", "cnn_small", method, options, epochs=4, lr=1e-6,
                  batch_size=batch_size)  # fmt: skip

        def train() -> None:
            with isolated_randomness(0, place):
                model = small_cnn(batch_norm=True).to(place)
                made = lookup.find_method(method)(run, data, model, **run.options)
                fit(run, model, made, lambda model: {})

        return train

    trainings = {"plain": training_of("plain")}
    trainings |= {str(delta): training_of("hard_batches", delta=delta) for delta in deltas}
    times = interleaved(trainings, repetitions, warmup=1, device=place)
    return {
        "deltas": np.array(deltas),
        "ratios": np.array([median_ratio(times, str(delta), "plain") for delta in deltas]),
        "seconds": np.array([statistics.median(t) for t in times.values()]) / (4 * num_batches),
        "machine": np.array(machine(device)),
    }
