"""What the notebooks' `paper` and `reduced` profiles cost: ``python -m benchmarks.costs``.

Writes ``benchmarks/costs.md``. Hours on this machine's CPU: of steps recorded or measured here, as
``hardtrain plan`` has them, one run after the other. Hours on an H200: the same operations at the
speed of ResNet-18's step there (``gpu_h200.md``), which small networks do not reach alone.
"""

import dataclasses
from pathlib import Path

import pandas as pd

from hardtrain import Run, RunStore
from hardtrain.data.images import pretended
from hardtrain.report.plan import plan
from hardtrain.report.text import to_markdown
from hardtrain.report.timing import machine
from hardtrain.runs import costs

ROOT = Path(__file__).resolve().parents[1]
H200_STEP = 0.0030  # seconds: ResNet-18, 128 images of 32 x 32, float32, as a CUDA graph
PROFILES = ("paper", "reduced")


def h200_speed() -> float:
    """Operations a second of that step, evaluation left out."""
    run = Run("cifar10", "resnet18", batch_size=128)
    with pretended():
        images = 50_000 + 10_000 / 3  # passes of `costs.work`: three a training image, one a test
        return costs.work(run) / images * 128 / H200_STEP


def rows() -> list[dict]:
    """One row a notebook and profile."""
    found, speed = [], h200_speed()
    for notebook in sorted((ROOT / "notebooks").glob("0[1-7]*.ipynb")):
        row: dict = {"notebook": notebook.stem}
        for profile in PROFILES:
            asked = plan(notebook, {"profile": profile, "device": "cpu"})
            runs = [dataclasses.replace(r, device="cpu") for r in (*asked.finished, *asked.missing)]
            with pretended():
                seconds, _ = costs.seconds(runs, RunStore())
                operations = sum(map(costs.work, runs))
            row[f"{profile}: runs"] = f"{len(runs)}{' and more' if asked.more else ''}"
            row[f"{profile}: CPU hours"] = _hours(sum(seconds) / 3600)
            row[f"{profile}: H200 hours"] = _hours(operations / speed / 3600)
        found.append(row)
    return found


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}"


if __name__ == "__main__":
    text = [
        "# What the profiles cost",
        f"CPU: {machine('cpu')}, one run after the other. H200: at {h200_speed():.1e} operations a "
        "second, ResNet-18's step there as a CUDA graph (3.0 ms for 128 images of 32 x 32). "
        "Small networks are slower than that on a card alone, and gain from several runs at once. "
        "Loading data is not counted. Written by `python -m benchmarks.costs`.",
        to_markdown(pd.DataFrame(rows())),
    ]
    (ROOT / "benchmarks" / "costs.md").write_text("\n\n".join(text))
