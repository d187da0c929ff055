"""``make bench``: every ratio, side by side, into ``benchmarks/results.md``; on a
GPU its checks and step times, too, into ``benchmarks/gpu.md``."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch

from benchmarks import engines, ratios, strategies, training
from benchmarks.rows import shown
from hardtrain.files import write_atomically
from hardtrain.report.text import to_markdown
from hardtrain.report.timing import machine

GROUPS = {
    "ratios": ratios.rows,
    "strategies": strategies.rows,
    "epochs": training.epochs,
    "steps": training.steps,
    "look_up": training.look_up,
    "engines": engines.rows,
}


def main() -> None:
    rows = []
    for group in GROUPS:  # each a program of its own: what an allocator has learnt matters
        command = [sys.executable, "-m", "benchmarks", group]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows += json.loads(done.stdout.splitlines()[-1])
    table = pd.DataFrame([shown(**row) for row in rows])
    cores = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    text = (
        "# Speed, as ratios\n\nMedians over interleaved rounds, the quartiles between which half "
        f"of them lie, and some counts. Measured by `make bench` on {machine()}, {cores}.\n\n"
        f"{to_markdown(table)}"
    )
    write_atomically(Path(__file__).with_name("results.md"), text.encode())
    print(text)
    if torch.cuda.is_available():
        subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu"], env=os.environ | {"OUT": "build/gpu"}
        )
        shutil.copy("build/gpu/gpu.md", Path(__file__).parent)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(GROUPS[sys.argv[1]]()))
    else:
        main()
