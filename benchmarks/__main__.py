"""``make bench``: every ratio, side by side, into ``benchmarks/results.md``; on a
GPU its checks and step times, too, into ``benchmarks/gpu.md``."""

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch

from benchmarks import engines, ratios, strategies, training
from hardtrain.files import write_atomically
from hardtrain.report.text import to_markdown
from hardtrain.report.timing import machine


def main() -> None:
    rows = []
    of_trainings = (training.epochs, training.steps, training.look_up)
    for group in (ratios.rows, strategies.rows, *of_trainings, engines.rows):
        # each in a process of its own: what an allocator has learnt makes a difference
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            rows += process.submit(group).result()
    table = pd.DataFrame([_shown(**row) for row in rows])
    cores = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    text = (
        "# Speed, as ratios\n\nMedians over interleaved repetitions, and some "
        f"counts. Measured by `make bench` on {machine()}, {cores}.\n\n{to_markdown(table)}"
    )
    write_atomically(Path(__file__).with_name("results.md"), text.encode())
    print(text)
    if torch.cuda.is_available():
        subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu"], env=os.environ | {"OUT": "build/gpu"}
        )
        shutil.copy("build/gpu/gpu.md", Path(__file__).parent)


def _shown(what: str, measured: object, target: str, device: str = "cpu") -> dict:
    """A row of the table: counts are whole, ratios are not, and a text says why there is none."""
    value = f"{measured:.2f}" if isinstance(measured, float) else str(measured)
    return {"what": what, "device": device, "measured": value, "target": target}


if __name__ == "__main__":
    main()
