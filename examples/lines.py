"""The examples' lines: of each file the plain training, or that with one strategy's lines.

``python examples/lines.py lightning hard`` prints an example with the lines of one strategy.
"""

import argparse
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
    return [line.strip() for line, its_kind, names in marked(framework)
            if its_kind == kind and strategy in names]  # fmt: skip


def source(framework: str, *strategies: str) -> str:
    """The example with the lines of these strategies only; with none, plain training."""
    wanted = {*strategies, "all"} if strategies else set()
    kept = [line for line, _, names in marked(framework) if not names or wanted & names]
    return "\n".join(kept) + "\n"


def marked(framework: str) -> list[tuple[str, str, set[str]]]:
    """The lines of an example without their marks, and of each the mark's kind and names."""
    lines = (FOLDER / f"in_{framework}.py").read_text(encoding="utf-8").splitlines()
    marks = [MARK.search(line) for line in lines]
    return [(MARK.sub("", line), *((mark[1], set(mark[2].split(", "))) if mark else ("", set())))
            for line, mark in zip(lines, marks, strict=True)]  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print an example with these strategies' lines.")
    frameworks = sorted(path.stem.removeprefix("in_") for path in FOLDER.glob("in_*.py"))
    parser.add_argument("framework", choices=frameworks)
    parser.add_argument("strategy", nargs="*", help=f"of {', '.join(STRATEGIES)}; none: plain")
    chosen = parser.parse_args()
    for name in chosen.strategy:  # choices would refuse none
        if name not in STRATEGIES:
            parser.error(f"unknown strategy {name!r}; known: {', '.join(STRATEGIES)}")
    print(source(chosen.framework, *chosen.strategy), end="")
