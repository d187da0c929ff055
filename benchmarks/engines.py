"""What engine ``ray`` gains on the cores of this machine, its start included."""

import tempfile

import torch

from hardtrain import Run, RunStore, run_missing
from hardtrain.report.timing import interleaved, median_ratio


def rows() -> list[dict]:
    """Ratios with their targets; some three minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker has
    many = _ratio(num_runs=24, epochs=80, repetitions=1)
    one = _ratio(num_runs=1, epochs=80, repetitions=3)
    torch.set_num_threads(threads)
    small = "digits, cnn_small, 80 epochs, two cores"
    return [
        {"what": f"24 runs by ray / by local: {small}", "measured": many, "target": "<= 0.62"},
        {"what": f"one run by ray / by local: {small}", "measured": one, "target": "<= 1.05"},
    ]


def _ratio(num_runs: int, epochs: int, repetitions: int) -> float:
    runs = [
        Run("digits", "cnn_small", epochs=epochs, lr=0.05, seed=seed, device="cpu")
        for seed in range(num_runs)
    ]

    def sweep(engine: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run_missing(runs, RunStore(folder), engine=engine, use_committed=False)

    engines = {engine: lambda engine=engine: sweep(engine) for engine in ("local", "ray")}
    return median_ratio(interleaved(engines, repetitions, warmup=0), "ray", "local")
