"""What surrounds the code: the lists of packages, the commands, the committed notebooks."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import hardtrain
from hardtrain.report.notebook import END_MARKER

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WITHOUT_RUNS = ("09_in_your_loop",)  # nor parameters, nor figures
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [
    Requirement(line)
    for line in sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])
    if not line.startswith("hardtrain[")  # an extra that holds another one
]
MODULE_NAMES = {
    "scikit-learn": "sklearn",
    "pillow": "PIL",
    "ipykernel": "IPython",
    "pyyaml": "yaml",
}
PLATFORMS = {
    "Linux": {"sys_platform": "linux", "os_name": "posix", "platform_machine": "x86_64"},
    "Darwin": {"sys_platform": "darwin", "os_name": "posix", "platform_machine": "arm64"},
    "Windows": {"sys_platform": "win32", "os_name": "nt", "platform_machine": "AMD64"},
}
PARAMETERS = (
    "profile datasets networks epochs seeds train_size test_size device engine ray_address "
    "gpus_per_run cpus_per_run max_runs_at_once data_root out_dir use_committed"
).split()


def locked():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def tracked():
    """The repository's files that git knows; a copy without git is not tested."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# --- packages ------------------------------------------------------------------------------------


def test_conda_environment_takes_its_packages_from_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-e .[dev]"]}
    python, *others = conda
    assert others == ["pip", "make"]
    stated = SpecifierSet(python.removeprefix("python"))
    for minor in range(8, 20):
        version = f"3.{minor}.2"
        if version in stated:
            assert version in SpecifierSet(PROJECT["requires-python"])
        assert (version in stated) == (11 <= minor <= 13)


def test_lock_holds_names_and_versions_only():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert len(lines) > len(DIRECT)
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; .+)?", line), line
        requirement = Requirement(line)  # the marker parses
        assert (requirement.url, requirement.extras) == (None, set())


def test_lock_satisfies_the_ranges_of_pyproject():
    versions = {}
    for requirement in locked():
        (pin,) = requirement.specifier
        versions.setdefault(canonicalize_name(requirement.name), []).append(pin.version)
    for requirement in DIRECT:
        found = versions.get(canonicalize_name(requirement.name), [])
        assert found, f"{requirement.name} is not locked"
        for version in found:
            assert requirement.specifier.contains(version), f"{requirement} but {version}"


@pytest.mark.parametrize("python", ["3.11.9", "3.12.7", "3.13.1"])
@pytest.mark.parametrize("system", PLATFORMS)
def test_lock_gives_one_version_of_each_package(system, python):
    place = PLATFORMS[system] | {
        "platform_system": system,
        "python_version": ".".join(python.split(".")[:2]),
        "python_full_version": python,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    names = [
        canonicalize_name(requirement.name)
        for requirement in locked()
        if requirement.marker is None or requirement.marker.evaluate(place)
    ]
    assert sorted(set(names)) == sorted(names)
    assert {canonicalize_name(requirement.name) for requirement in DIRECT} <= set(names)


def test_every_import_is_a_stated_dependency():
    # numpy and torch bring threadpoolctl (through scikit-learn) and nothing else that we import
    known = {MODULE_NAMES.get(r.name, r.name.replace("-", "_")) for r in DIRECT}
    known |= {"hardtrain", "threadpoolctl"} | set(sys.stdlib_module_names)
    for path in (ROOT / "hardtrain").rglob("*.py"):
        assert {name.split(".")[0] for name in imported(path)} <= known, path


# --- commands ------------------------------------------------------------------------------------


def test_makefile_has_the_promised_targets():
    text = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z]+):", text, flags=re.MULTILINE)
    assert {"figures", "test", "lab", "notebooks", "bench"} <= set(targets)
    assert "requirements.lock" in text


def test_gate_runs_make_test():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[0].startswith("#!")
    assert "make test" in lines


# --- the package ---------------------------------------------------------------------------------


def imported(path):
    """All modules that a file imports, at its top or later: of others than ours the first name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." if node.level else node.module
            is_folder = module == "hardtrain.strategies"
            names |= {f"{module}.{alias.name}" for alias in node.names} if is_folder else {module}
    return {name if name.startswith("hardtrain") else name.split(".")[0] for name in names}


def test_strategies_import_only_torch_and_the_standard_library():
    paths = [p for p in (ROOT / "hardtrain" / "strategies").glob("*.py") if p.stem != "__init__"]
    assert paths
    shared = {"hardtrain.strategies._checks", "hardtrain.strategies.batches"}
    allowed = {"torch"} | shared | set(sys.stdlib_module_names)
    for path in paths:
        of_its_method = (
            {"hardtrain.strategies.trimming"} if path.stem == "trimmed_backward" else set()
        )
        assert imported(path) <= allowed | of_its_method, path


BROUGHT = {MODULE_NAMES.get(r.name, r.name.replace("-", "_")) for r in DIRECT} - {"torch"}


def without_extras(code, missing=BROUGHT):
    """What ``code`` prints where nothing can be imported that an extra brings."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({sorted(missing)}))\n"
    # -P: the installed package, wherever the tests are run
    command = [sys.executable, "-P", "-W", "ignore", "-c", blocked + code]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_strategies_need_torch_alone():
    assert PROJECT["dependencies"] == ["torch>=2.6"]
    code = """
import hardtrain
for name in hardtrain._HOMES:
    try:
        getattr(hardtrain, name)
    except ModuleNotFoundError as error:
        print(name, hardtrain._HOMES[name], error, sep="|")
"""
    lines = [line.split("|") for line in without_extras(code)]
    homes = {home.split(".")[1] for _, home, _ in lines}
    assert not homes & {"strategies", "errors", "_version"}
    assert {"run_missing", "load_dataset", "fit"} <= {name for name, _, _ in lines}
    for name, _, said in lines:
        assert re.fullmatch(
            rf"hardtrain.{name} needs [\w.]+: pip install 'hardtrain\[notebooks\]'", said
        )


ALL_SHOWN = """
import hardtrain, inspect, pydoc
from hardtrain import *
print(len(inspect.getmembers(hardtrain)) > 40, "TrimmedLoss" in pydoc.render_doc(hardtrain))
print("Run" in dir(hardtrain), trim.__name__, hardtrain.__version__ == version)
"""


def test_the_face_shows_only_what_can_be_imported():
    code = f"version = {hardtrain.__version__!r}\n{ALL_SHOWN}"
    assert without_extras(code) == ["True True", "False trim True"]
    needed = hardtrain._OTHERS_NEED.split()
    assert set(needed) <= BROUGHT
    # without all the others, the whole face is there
    assert without_extras(code, BROUGHT - set(needed)) == ["True True", "True trim True"]


def test_a_strategy_trains_where_torch_is_alone():
    snippets = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    (snippet,) = (text for text in snippets if "loss_function" in text)
    code = f"""
import torch
model, num_epochs = torch.nn.Linear(4, 3), 3
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
data = torch.utils.data.TensorDataset(torch.randn(8, 4), torch.arange(8) % 3)
loader = torch.utils.data.DataLoader(data, 4, shuffle=True)
{snippet}
print(round(loss_function.keep, 3), loss.isfinite().item())
"""
    assert without_extras(code) == ["0.2 True"]


def test_the_command_says_what_it_needs():
    code = "import runpy\ntry: runpy.run_module('hardtrain', run_name='__main__')\n"
    code += "except SystemExit as error: print(error)"
    (said,) = without_extras(code)
    assert said.startswith("hardtrain: this command needs ")
    assert said.endswith("pip install 'hardtrain[notebooks]'")


def test_import_of_strategies_is_fast():
    names = [
        name for name, home in hardtrain._HOMES.items() if home.startswith("hardtrain.strategies")
    ]
    code = f"""
import time, torch
from torch.nn.utils import rnn
from torch.utils.data import Sampler
began = time.process_time()
from hardtrain import {", ".join(names)}
print(time.process_time() - began)
"""
    assert float(without_extras(code)[0]) < 0.2  # seconds of the processor


def test_import_of_the_package_is_light():
    heavy = ("timm", "torchvision", "matplotlib.pyplot", "sklearn", "papermill", "IPython")
    code = f"import sys, hardtrain; print([name for name in {heavy} if name in sys.modules])"
    # -P: the installed package, wherever the tests are run
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


def test_no_file_holds_a_path_or_an_index_of_somebodys_machine():
    texts = {}
    for path in tracked():
        content = path.read_bytes()
        if b"\0" not in content:
            texts[path] = content.decode()
    assert texts
    folders = "home|Users|root|mnt|scratch|workspace|private|tmp"
    homes = rf"(?<![\w.$}}])(?:/(?:{folders})/\w|{re.escape(str(ROOT))}\b)"
    # hosts that a package installer is pointed to; the public one needs no mention
    indices = r"--(?:extra-)?index-url|--find-links|--trusted-host|pypi\.[a-z]|files\.pythonhosted"
    for path, text in texts.items():
        if path != Path(__file__).resolve():
            for found in re.finditer(f"{homes}|{indices}", text):
                line = text[: found.start()].count("\n") + 1
                raise AssertionError(f"{path.relative_to(ROOT)}:{line}: {found.group()}")


# --- committed notebooks -------------------------------------------------------------------------


def code_cells(path):
    notebook = nbformat.read(path, 4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


with_runs = pytest.mark.parametrize(
    "path",
    [path for path in NOTEBOOKS if path.stem not in WITHOUT_RUNS],
    ids=lambda path: path.stem,
)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks():
    assert NOTEBOOKS


@each_notebook
def test_notebook_is_valid_small_and_of_nobodys_machine(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert path.stat().st_size < 1_500_000
    assert "papermill" not in notebook.metadata
    assert not any(
        "injected-parameters" in cell.metadata.get("tags", []) for cell in notebook.cells
    )


@each_notebook
def test_notebook_cells_are_short_and_define_nothing(path):
    for cell in nbformat.read(path, 4).cells:
        if "parameters" not in cell.metadata.get("tags", []):  # a line each, however many
            assert len(cell.source.splitlines()) <= 25, cell.source
    for cell in code_cells(path):
        defining = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        tree = ast.parse(cell.source)
        assert not any(isinstance(node, defining) for node in ast.walk(tree)), cell.source


@with_runs
def test_notebook_starts_with_the_common_parameters(path):
    first, *others = code_cells(path)
    assert first.metadata["tags"] == ["parameters"]
    assert not any("parameters" in cell.metadata.get("tags", []) for cell in others)
    body = ast.parse(first.source).body
    assert all(isinstance(node, ast.AnnAssign) for node in body)
    for node in body:
        ast.literal_eval(node.value)  # papermill's help and overrides need literals
    names = [node.target.id for node in body]
    assert set(PARAMETERS) <= set(names)
    assert len(first.source.strip().splitlines()) == len(names)
    assert all("  # " in line for line in first.source.strip().splitlines())
    defaults = {node.target.id: ast.literal_eval(node.value) for node in body}
    # as soon as results on real images are committed, the notebook shows those
    whole = (ROOT / "figures" / path.stem / "reduced" / "results.csv").is_file()
    assert defaults["profile"] in ("quick", "reduced")[: 1 + whole]
    assert defaults["use_committed"] is True
    assert defaults["out_dir"] is None


@each_notebook
def test_notebook_was_executed_to_its_end(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert len(outputs) >= len(cells) / 3
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    last = [output.get("data", {}).get("text/plain", "") for output in cells[-1].outputs]
    assert any(text.strip("'\"").startswith(END_MARKER) for text in last)


@with_runs
def test_notebook_has_its_figures_beside_it(path):
    folder = ROOT / "figures" / path.stem / "quick"
    names = {item.name for item in folder.iterdir() if not item.name.startswith(".")}
    assert {"results.csv", "history.csv", "timings.csv"} <= names
    for ending, other in (("pdf", "png"), ("png", "pdf")):
        figures = [name for name in names if name.endswith(f".{ending}")]
        assert figures
        assert {name.replace(f".{ending}", f".{other}") for name in figures} <= names
    assert all((folder / name).stat().st_size > 0 for name in names)
    known = r"(fig|table)_[\w-]+\.\w+|\w+\.csv|\w+\.npz|checksums\.json"
    assert [name for name in names if not re.fullmatch(known, name)] == []
