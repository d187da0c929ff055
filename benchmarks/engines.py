"""What engine ``ray`` gains on the cores of this machine, its start included."""

import tempfile

import torch

from benchmarks.rows import ratios_of
from hardtrain import Run, RunStore, run_missing
from hardtrain.report.timing import interleaved

EPOCHS = 160  # of a run: some seconds of a core, as the smallest sweeps have


def rows() -> list[dict]:
    """Ratios with their targets; some four minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker has
    many = _ratios(num_runs=24, repetitions=1)
    one = _ratios(num_runs=1, repetitions=3)
    torch.set_num_threads(threads)
    small = f"digits, cnn_small, {EPOCHS} epochs, two cores"
    return [
        {"what": f"24 runs by ray / by local: {small}", "measured": many, "target": "<= 0.62"},
        {"what": f"one run by ray / by local: {small}", "measured": one, "target": "<= 1.05"},
    ]


def _ratios(num_runs: int, repetitions: int) -> list[float]:
    runs = [
        Run("digits", "cnn_small", epochs=EPOCHS, lr=0.05, seed=seed, device="cpu")
        for seed in range(num_runs)
    ]

    def sweep(engine: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run_missing(runs, RunStore(folder), engine=engine, use_committed=False)

    engines = {engine: lambda engine=engine: sweep(engine) for engine in ("local", "ray")}
    return ratios_of(interleaved(engines, repetitions, warmup=0), "ray", "local")
