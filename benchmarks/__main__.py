"""``make bench``: every ratio, side by side in one process, into ``benchmarks/results.md``."""

import os
import platform
from pathlib import Path

import pandas as pd

from benchmarks import ratios
from hardtrain.files import write_atomically
from hardtrain.statistics import to_markdown
from hardtrain.timing import machine


def main() -> None:
    table = pd.DataFrame(ratios.rows()).astype({"ratio": float})
    table["ratio"] = table["ratio"].map("{:.2f}".format)
    cores = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    text = (
        "# Speed, as ratios\n\nMedians over interleaved repetitions in one process. "
        f"Measured by `make bench` on {machine()}, {cores}.\n\n{to_markdown(table)}"
    )
    write_atomically(Path(__file__).with_name("results.md"), text.encode())
    print(text)


if __name__ == "__main__":
    main()
