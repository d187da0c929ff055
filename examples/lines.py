"""The examples' lines: of each file the plain training, or that with one strategy's lines."""

import re
from pathlib import Path

FOLDER = Path(__file__).parent
STRATEGIES = {  # the name in the marks: what it is
    "trimming": "mini-batch trimming",
    "hard": "hard mini-batches",
    "noise": "gradient noise",
    "matching": "distribution matching",
    "bias": "active bias",
    "subset": "subset search",
    "pruning": "dynamic pruning",
    "reducible": "reducible loss",
    "selective": "Selective-Backprop",
    "share": "a random share, the control",
}
MARK = re.compile(r"  # (\+|state:) (.*)")


def added(framework: str, strategy: str, kind: str = "+") -> list[str]:
    """The lines that a strategy adds; of the kind "state:", those that save its state."""
    lines = (FOLDER / f"in_{framework}.py").read_text().splitlines()
    marked = [(MARK.sub("", line).strip(), MARK.search(line)) for line in lines]
    return [line for line, mark in marked
            if mark and mark[1] == kind and strategy in mark[2].split(", ")]  # fmt: skip


def source(framework: str, strategy: str | None = None) -> str:
    """The example with this strategy's lines only; with none, plain training."""
    kept = []
    for line in (FOLDER / f"in_{framework}.py").read_text().splitlines():
        mark = MARK.search(line)
        names = mark[2].split(", ") if mark else []
        if not names or strategy in names or (strategy and names == ["all"]):
            kept.append(MARK.sub("", line))
    return "\n".join(kept) + "\n"
