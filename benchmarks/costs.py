"""What the notebooks' profiles cost, into README's table: ``python -m benchmarks.costs``.

Hours on this machine: of measured steps, as ``hardtrain plan`` has them, one run after the other.
Hours on an H200: as many times fewer as a ResNet-18's step takes there, and at least the time that
a small network's step took when fourteen runs shared the card (``gpu_h200.md``).
"""

import dataclasses
import os
import tempfile
from pathlib import Path

import pandas as pd

from hardtrain import Run, RunStore
from hardtrain.data.images import SIZES, pretended
from hardtrain.report.claims import write_between
from hardtrain.report.plan import plan
from hardtrain.report.text import to_markdown
from hardtrain.report.timing import machine
from hardtrain.runs import costs

ROOT = Path(__file__).resolve().parents[1]
MARKS = "<!-- costs -->\n", "<!-- end of costs -->\n"
RESNET18_STEP = 0.0030  # seconds on an H200: 128 images of 32 x 32, float32, as a CUDA graph
SHARED_STEP = 250 / 14 / 20_000  # seconds: cnn2, 14 runs of 20,000 steps in 250 s


def card_speed() -> float:
    """How many times faster the H200 takes a ResNet-18's step than this machine."""
    epoch = Run("cifar10", "resnet18", batch_size=128, epochs=1, device="cpu")
    num_train, num_test, *_ = SIZES["cifar10"]
    with tempfile.TemporaryDirectory() as folder:
        (seconds,), _ = costs.seconds([epoch], RunStore(folder))
    return seconds * 128 / (num_train + num_test / 3) / RESNET18_STEP  # a test is a third of a step


def num_steps(run: Run) -> int:
    """The steps of a run, as many as plain training has."""
    return run.epochs * -(-(run.train_size or SIZES[run.dataset][0]) // run.batch_size)


def rows() -> list[dict]:
    """One row a notebook: the runs and the hours of each profile."""
    found = []
    speed = card_speed()
    for notebook in sorted((ROOT / "notebooks").glob("0[1-7]*.ipynb")):
        row: dict = {"notebook": notebook.stem}
        for profile in ("reduced", "paper"):
            asked = plan(notebook, {"profile": profile, "device": "cpu"})
            runs = [dataclasses.replace(r, device="cpu") for r in (*asked.finished, *asked.missing)]
            with pretended(), tempfile.TemporaryDirectory() as folder:
                here, _ = costs.seconds(runs, RunStore(folder), budget=20)
            card = [
                max(seconds / speed, num_steps(run) * SHARED_STEP)
                for run, seconds in zip(runs, here, strict=True)
            ]
            row[f"{profile}: runs"] = f"{len(runs)}{' and more' if asked.more else ''}"
            row[f"{profile}: {os.cpu_count()} cores, h"] = _hours(sum(here))
            row[f"{profile}: one H200, h"] = _hours(sum(card))
        found.append(row)
    return found


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    if hours < 0.1:
        return "< 0.1"
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}"


def main() -> None:
    table = to_markdown(pd.DataFrame(rows())).strip()
    here = f"{machine('cpu')}, {os.cpu_count()} cores"
    text = f"""What the profiles cost, in hours:

{table}

CPU: {here}, idle; steps measured, one run after the other.
H200: as many times fewer hours as a ResNet-18's step takes there (3.0 ms for 128 images), and no
step under 0.9 ms, which is what a small network's step takes when fourteen runs share the card
([measured](benchmarks/gpu_h200.md)). Loading data is not counted, nor what a busy machine adds.
"And more": the search of 05 and the subsets of 07 ask for further runs once these are trained.
`python -m benchmarks.costs` writes this table.
"""
    write_between(ROOT / "README.md", MARKS, text)
    print(text)


if __name__ == "__main__":
    main()
