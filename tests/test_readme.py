"""The snippets of README.md, run as they stand."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from hardtrain.report.claims import all_claims, findings_markdown

ROOT = Path(__file__).resolve().parents[1]
SNIPPETS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


def test_a_strategy_in_ones_own_loop():
    (snippet,) = (text for text in SNIPPETS if "loss_function" in text)
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(4, 3)
    before = model.weight.detach().clone()
    batch = (torch.randn(8, 4, generator=generator), torch.arange(8) % 3)
    space = {"num_epochs": 3, "loader": [batch], "model": model}
    space["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.1)
    exec(snippet, space)
    assert (model.weight != before).any()
    assert space["loss_function"].keep == pytest.approx(0.2)


def test_whole_trainings_compared(tmp_path, monkeypatch):
    (snippet,) = (text for text in SNIPPETS if "run_missing(runs)" in text)
    monkeypatch.setenv("HARDTRAIN_RUNS", str(tmp_path))
    space = {}
    exec(snippet, space)
    results = space["results"]
    assert (results["status"] == "finished").all()
    assert results.groupby("method")["test_error"].mean().max() < 0.1


def test_the_findings_are_those_of_the_figure_folders():
    claims = all_claims(ROOT / "figures")
    assert len(claims) >= 35
    text = (ROOT / "README.md").read_text()
    assert f"<!-- findings -->\n\n{findings_markdown(claims)}\n<!-- end of findings -->" in text
    assert (ROOT / "figures" / "findings.png").is_file()


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_the_slurm_script_starts_a_cluster_and_the_sweep_on_its_head(tmp_path):
    """With stand-ins for Slurm, Ray and hardtrain, which note how they were called."""
    (script,) = re.findall(
        r"^```sh\n(#!/bin/sh.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S
    )
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "activate").write_text(f'PATH="{folder}:$PATH"\n')
    for name in ("srun", "ray", "hardtrain"):
        stand_in = folder / name
        stand_in.write_text(f'#!/bin/sh\necho {name} "$@" $SRUN_CPUS_PER_TASK >> "$LOG"\n')
        stand_in.chmod(0o755)
    environment = {"LOG": str(tmp_path / "log"), "SLURM_CPUS_PER_TASK": "32"}
    environment |= {"SLURMD_NODENAME": "n1", "PATH": os.environ["PATH"]}
    command = ["sh", "-eu", "-c", f"{script.replace('exec ', '')}wait"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=60)
    lines = (tmp_path / "log").read_text().splitlines()
    assert "srun --nodes=1 --nodelist=n1 ray start --head --port=6379 --block 32" in lines
    assert "srun --nodes=3 --exclude=n1 ray start --address=n1:6379 --block 32" in lines
    (sweep,) = (line for line in lines if line.startswith("hardtrain run notebooks/01"))
    assert "ray_address: auto" in sweep
