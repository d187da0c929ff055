"""CONTRIBUTING.md, followed to the letter in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(
    r"^```(?:python)?\n# ([^\n]+)\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S
)
FILES = {name: text for name, text in BLOCKS if not name.startswith("cell: ")}
CELLS = {name.removeprefix("cell: "): text for name, text in BLOCKS if name.startswith("cell: ")}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of the package and its surroundings, with the files of the text added."""
    root = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "hardtrain", root / "hardtrain")
    shutil.copy(ROOT / "pyproject.toml", root)
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    notebook = new_notebook(cells=[new_code_cell(text) for text in CELLS.values()])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {
        "name": "python3", "display_name": "Python 3", "language": "python"
    }  # fmt: skip
    (root / "notebooks").mkdir()
    nbformat.write(notebook, root / "notebooks" / "10_self_paced.ipynb")
    return root


def run(repository, *command):
    """A Python command in the copy, whose package it imports."""
    places = {"PYTHONPATH": str(repository), "HARDTRAIN_RUNS": str(repository / ".runs")}
    environment = os.environ | places | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=repository, env=environment, capture_output=True, text=True
    )


def test_the_text_adds_a_method_and_a_paper_of_one_table(repository):
    done = run(
        repository, "-m", "hardtrain.report.execute", "--train", "notebooks/10_self_paced.ipynb"
    )
    assert done.returncode == 0, done.stderr
    folder = repository / "figures" / "10_self_paced" / "quick"
    table = pd.read_csv(folder / "table_1_error.csv")
    assert table["data set"].tolist() == ["digits"]
    assert table["verdict"].tolist() == ["not comparable"]
    assert table["Δ, paper"].tolist() == [-0.2]
    assert "(n = 3)" in table["Δ, here"].item()
    results = pd.read_csv(folder / "results.csv")
    assert set(results["method"]) == {"plain", "my_methods:self_paced"}
    assert len(results) == 6
    losses = results.pivot(index="seed", columns="method", values="train_loss")
    assert (losses["plain"] != losses["my_methods:self_paced"]).all()


def test_options_of_the_added_method_are_checked(repository):
    code = "from hardtrain import Run; Run('digits', 'mlp', 'my_methods:self_paced', {'kep': 1})"
    refused = run(repository, "-c", code)
    assert "did you mean 'keep'" in refused.stderr


def test_the_text_needs_ten_lines_for_a_cell():
    assert set(CELLS) == {"parameters", "profiles", "runs", "table 1", "end"}
    longest = max((len(text.splitlines()), name) for name, text in CELLS.items())
    assert longest[0] <= 10, longest
