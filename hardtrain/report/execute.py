"""Execute notebooks whole: ``python -m hardtrain.report.execute --train FILE ...``, or

``--train``    run each one's quick profile with ``use_committed: false`` into ``build/notebooks``
``--refresh``  run each from the committed results and replace the file itself
``--check``    compare each committed notebook's outputs with what it gives now (nbval)

Profiles of which results are committed, but which the notebook does not show, are drawn by
``--refresh`` too, and their tables compared by ``--check``.

papermill writes its output file again and again, says "completed" of cells whose kernel died, and
two of it overwrite each other. Here the output appears under its name only when the notebook's
last cell has said that it is complete, and one process at a time writes it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import nbformat
import papermill

from hardtrain import checks, errors, files
from hardtrain.errors import HardtrainError, ParameterError
from hardtrain.files import project_root, store_errors, write_atomically
from hardtrain.report.figure_data import stale
from hardtrain.report.notebook import END_MARKER, default_profile, parameter_names
from hardtrain.runs.committed import damaged

NO_DATA = os.path.join(os.sep, "no", "image", "sets")  # tables say what is not at hand
CELL_TIMEOUT = 300  # seconds; nbval alone would wait 2000 for a dead kernel


def execute(source: Path, target: Path, parameters: dict) -> None:
    """Run ``source`` with ``parameters`` and write the result to ``target``, whole or not at all.

    Raises:
        ParameterError: a parameter that the notebook does not have; nothing is executed.
        RuntimeError: a cell failed, the kernel died, the end was not reached, or another process
            is executing it. What was executed stands in ``build/notebooks/NAME.failed.ipynb``.
    """
    parameters = _checked(source, parameters)
    with store_errors(f"make {target.parent}"):  # before minutes of work
        target.parent.mkdir(parents=True, exist_ok=True)
    build = project_root() / "build" / "notebooks"
    build.mkdir(parents=True, exist_ok=True)
    failed = build / f"{target.stem}.failed.ipynb"
    lock = files.lock(build / f"{target.stem}.lock")
    try:
        held = lock.acquire(blocking=False)
    except filelock.Timeout:
        raise RuntimeError(f"{target.name} is being executed by another process") from None
    with held:
        try:
            notebook = papermill.execute_notebook(
                source, failed, parameters, kernel_name="python3", cwd=source.parent
            )
        except Exception as error:
            said = str(error)
            if issubclass(getattr(errors, getattr(error, "ename", ""), object), HardtrainError):
                said = error.evalue  # it says all; where it came from stands in the notebook
            raise RuntimeError(f"{source.name} failed: {said}; see {failed}") from error
        if END_MARKER not in _last_output(notebook):
            raise RuntimeError(f"{source.name} stopped before its last cell; see {failed}")
        write_atomically(target, nbformat.writes(_without_traces(notebook)).encode())
        failed.unlink()


def _checked(source: Path, parameters: Mapping[str, object]) -> dict:
    """The parameters, of which the notebook must have each: papermill would execute others. One
    without a cell of parameters, which trains no runs, is given none."""
    if not parameters:
        return {}
    cells = _parameter_cells(source)
    known = [name for cell in cells for name in parameter_names(cell)]
    for name in parameters if cells else ():
        checks.choice("parameter", name, known)
    return dict(parameters) if cells else {}


def _parameter_cells(path: Path) -> list[str]:
    cells = read_notebook(path).cells
    return [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", ())]


def _not_shown(path: Path, figures: Path) -> list[dict]:
    """Parameters for each profile of which ``figures`` has results, but the one that the notebook
    shows."""
    folders = [results.parent.name for results in (figures / path.stem).glob("*/results.csv")]
    profiles = {name for name in folders if "+" not in name}  # behind it stand changed parameters
    shown = {default_profile(cell) for cell in _parameter_cells(path)} if profiles else set()
    return [{"profile": profile, "train": False} for profile in sorted(profiles - shown)]


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """The notebook in a file.

    Raises:
        ParameterError: there is none. StoreError: it cannot be read.
    """
    with store_errors(f"read {path}"):
        content = path.read_bytes()
    try:
        return nbformat.reads(content.decode(), 4)
    except Exception as error:  # whatever nbformat makes of any JSON
        raise ParameterError(f"{path} is no notebook ({type(error).__name__}: {error})") from error


def check(notebooks: list[Path]) -> int:
    """Run nbval on the notebooks as committed (or staged), with the figures committed beside
    them: results that were trained here since then do not stand in the comparison. Figure data
    that other code than today's computed fails, too."""
    root = project_root()
    copy = root / "build" / "committed"
    shutil.rmtree(copy, ignore_errors=True)
    export = 'git ls-files -z notebooks figures | git checkout-index -z --stdin --prefix="$0/"'
    in_git = subprocess.run(["sh", "-c", export, str(copy)], cwd=root, capture_output=True)
    if in_git.returncode != 0 or not (copy / "notebooks").is_dir():
        for name in ("notebooks", "figures"):
            shutil.copytree(root / name, copy / name)
    folders = [folder for path in notebooks for folder in (copy / "figures" / path.stem).glob("*")]
    changed = [line for folder in sorted(folders) for line in (*stale(folder), *damaged(folder))]
    environment = os.environ | {
        "HARDTRAIN_COMMITTED": str(copy / "figures"),
        "HARDTRAIN_FIGURES": str(copy / "drawn"),
        "HARDTRAIN_RUNS": str(copy / "runs"),
        "HARDTRAIN_DATA": NO_DATA,
    }
    command = [sys.executable, "-m", "pytest", "--nbval", "-o", "addopts=", "-q"]
    command += [f"--nbval-cell-timeout={CELL_TIMEOUT}", "-p", "no:cacheprovider"]
    if (processes := min(os.cpu_count() or 1, len(notebooks))) > 1:
        command += ["-n", str(processes), "--dist", "loadscope"]  # a notebook's cells in one
    command += [f"--rootdir={copy}", *(str(copy / "notebooks" / path.name) for path in notebooks)]
    failed = subprocess.run(command, cwd=copy, env=environment).returncode

    others = [
        (copy / "notebooks" / path.name, parameters)
        for path in notebooks
        for parameters in _not_shown(path, copy / "figures")
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        changed += pool.map(lambda other: _draw(*other, environment), others)
    changed += [line for path in notebooks for line in _redrawn(copy, path.stem)]
    changed = [line for line in changed if line]
    print(*changed, sep="\n", file=sys.stderr)
    return failed or bool(changed)


def _draw(path: Path, parameters: dict, environment: dict) -> str:
    """Execute a notebook for its tables alone; what went wrong, else nothing."""
    command = [sys.executable, "-m", "papermill", path.name, os.devnull, "--no-progress-bar"]
    command += ["-k", "python3", "-y", json.dumps(parameters)]
    run = subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, text=True)
    return f"{path.name}, {parameters}: {run.stderr}" if run.returncode else ""


def _redrawn(copy: Path, name: str) -> list[str]:
    """Which committed tables are not those that the notebook gives now, a sentence each."""
    found = []
    for drawn in sorted((copy / "drawn" / name).glob("*/*")):
        committed = copy / "figures" / name / drawn.parent.name / drawn.name
        if drawn.suffix in (".csv", ".md") and committed.parent.is_dir():
            if not committed.is_file() or committed.read_bytes() != drawn.read_bytes():
                found.append(f"{committed} is not what its notebook gives now")
    return found


def _last_output(notebook: nbformat.NotebookNode) -> str:
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1:]
    return " ".join(str(output.get("data")) for cell in last for output in cell.outputs)


def last_words(path: Path) -> str:
    """What the last cell of an executed notebook says: how many files, and what they hold."""
    return _last_output(read_notebook(path)).partition(END_MARKER)[2].strip("'\"{} ")


def answers(path: Path) -> list[str]:
    """What an executed notebook says in its cells that are tagged "answer", a text each."""
    tagged = [c for c in read_notebook(path).cells if "answer" in c.metadata.get("tags", ())]
    data = [output.get("data", {}) for cell in tagged for output in cell.outputs]
    texts = (each.get("text/markdown", "") for each in data)
    return [text for text in texts if text and not text.startswith("|")]  # tables are files, too


def _without_traces(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without papermill's times and paths, so that equal results are equal files."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
    return notebook


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("hardtrain.report.execute", description="Execute notebooks.")
    kind = parser.add_mutually_exclusive_group(required=True)
    for name in ("train", "refresh", "check"):
        kind.add_argument(f"--{name}", action="store_true")
    parser.add_argument("notebooks", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    if options.check:
        return check(options.notebooks)
    os.environ.setdefault("HARDTRAIN_PROGRESS", "terminal")
    if options.refresh:
        os.environ["HARDTRAIN_DATA"] = NO_DATA
    for path in options.notebooks:
        began = time.perf_counter()
        build = project_root() / "build" / "notebooks" / path.name
        try:
            if options.train:
                execute(path, build, {"use_committed": False, "profile": "quick"})
            else:
                execute(path, path, {})
                for parameters in _not_shown(path, project_root() / "figures"):
                    execute(path, build, parameters)
        except (RuntimeError, HardtrainError) as error:
            sys.exit(str(error))
        print(f"{path.name}: complete in {time.perf_counter() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
