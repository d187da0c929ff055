"""``make bench``: every ratio, side by side in one process, into ``benchmarks/results.md``."""

import os
import platform
from pathlib import Path

import pandas as pd

from benchmarks import engines, ratios, strategies
from hardtrain.files import write_atomically
from hardtrain.report.text import to_markdown
from hardtrain.report.timing import machine


def main() -> None:
    rows = [*ratios.rows(), *strategies.rows(), *engines.rows()]
    for row in rows:  # counts are whole, ratios are not
        value = row["measured"]
        row["measured"] = str(value) if isinstance(value, int) else f"{value:.2f}"
    table = pd.DataFrame(rows)
    cores = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    text = (
        "# Speed, as ratios\n\nMedians over interleaved repetitions in one process, and some "
        f"counts. Measured by `make bench` on {machine()}, {cores}.\n\n{to_markdown(table)}"
    )
    write_atomically(Path(__file__).with_name("results.md"), text.encode())
    print(text)


if __name__ == "__main__":
    main()
