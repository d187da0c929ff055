"""The snippets and commands of README.md, run as they stand: trainings of hours as far as their
first runs."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
import torch
from click.testing import CliRunner
from helpers import colours, save_set
from papermill.cli import papermill

from hardtrain import RunStore, build_network
from hardtrain.__main__ import _parameters, _parser, main
from hardtrain.report.claims import all_claims, findings_markdown
from hardtrain.report.plan import plan

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
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


def test_a_sampler_in_ones_own_loop():
    (snippet,) = (text for text in SNIPPETS if "HardBatchSampler" in text)
    generator = torch.Generator().manual_seed(0)
    inputs, model = torch.randn(300, 4, generator=generator), torch.nn.Linear(4, 3)
    before = model.weight.detach().clone()
    space = {
        "num_epochs": 2,
        "dataset": torch.utils.data.TensorDataset(inputs, torch.arange(300) % 3),
    }
    space |= {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    exec(snippet, space)
    assert (model.weight != before).any()
    assert space["sampler"].round > 0


def test_a_network_of_ones_own(tmp_path, monkeypatch):
    (snippet,) = (text for text in SNIPPETS if "def mine(" in text)
    (tmp_path / "networks_of_mine.py").write_text(snippet)
    monkeypatch.syspath_prepend(tmp_path)
    model = build_network("networks_of_mine:mine", 3, 1, image_size=8)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


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


# --- commands -------------------------------------------------------------------------------------


def commands(name):
    """The words of each command of this name, a line in README each."""
    lines = itertools.chain(*(block.replace("\\\n", " ").splitlines() for block in BLOCKS))
    words = [shlex.split(line, comments=True) for line in lines if not line.startswith("#")]
    return [line[line.index(name) :] for line in words if name in line[:2]]


def planned(path, parameters, asked={}):  # noqa: B006
    """Execute a notebook up to its first runs, once: its parameters are allowed, there are runs."""
    key = (path, repr(sorted(parameters.items())))
    if key not in asked:
        asked[key] = plan(path, parameters)
        assert asked[key].finished or asked[key].missing, parameters


@pytest.fixture
def own_set(tmp_path, monkeypatch):
    """Small data of one's own, and stores that are nobody else's."""
    for name in ("RUNS", "FIGURES", "DATA"):
        monkeypatch.setenv(f"HARDTRAIN_{name}", str(tmp_path / name.lower()))
    return str(save_set(tmp_path / "mine.npz", *colours(num=60)))


def test_blocks_are_shell_and_name_what_there_is():
    known = {"make", "papermill", "hardtrain", "export", "ray", "srun", "sleep", "until", "exec"}
    for block in BLOCKS:
        subprocess.run(["sh", "-n"], input=block, text=True, check=True)
        assert set(re.findall(r"^([a-z]+) ", block, re.M)) <= known
    assert commands("make")
    for _, target in commands("make"):
        if shutil.which("make"):
            subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_papermill_takes_the_parameters(own_set, tmp_path):
    assert len(commands("papermill")) >= 2
    for _, *words in commands("papermill"):
        words = [own_set.join(word.split("PATH")) for word in words]
        words[:2] = [str(ROOT / words[0]), str(tmp_path / words[1])]
        result = CliRunner().invoke(papermill, [*words, "--prepare-only"])
        assert result.exit_code == 0, result.output
        prepared = nbformat.read(words[1], 4).cells
        (cell,) = (c for c in prepared if "injected-parameters" in c.metadata.get("tags", []))
        given = {}
        exec(cell.source, given)
        del given["__builtins__"]
        planned(Path(words[0]), given)


def test_hardtrain_takes_what_it_is_told(own_set, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("theirs", "others"):
        RunStore(tmp_path / name).open()
    done = set()
    for _, command, *words in commands("hardtrain"):
        words = [own_set.join(word.split("PATH")) for word in words]
        words = [word.replace("/media", str(tmp_path)) for word in words]
        if command in ("plan", "run"):
            notebooks = sorted(ROOT.glob(words[0])) or words[:1]  # a pattern or a name
            options = _parser().parse_args([command, *map(str, notebooks), *words[1:]])
            planned(options.notebooks[0], _parameters(options))
        else:
            assert main([command, *words]) == 0
        done.add(command)
    assert done == {"check", "plan", "run", "status", "merge"}
    assert "mine: 48 training and 12 test images, 3x8x8, 4 classes" in capsys.readouterr().out


def test_extras_that_readme_installs_are_there():
    project = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"hardtrain\[(\w+)\]", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{extra} = \[", project, re.M), extra


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
