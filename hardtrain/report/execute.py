"""Execute notebooks whole: ``python -m hardtrain.report.execute --train FILE ...``, or

``--train``    run each one's quick profile with ``use_committed: false`` into ``build/notebooks``
``--refresh``  run each from the committed results and replace the file itself
``--check``    compare each committed notebook's outputs with what it gives now (nbval)

papermill writes its output file again and again, says "completed" of cells whose kernel died, and
two of it overwrite each other. Here the output appears under its name only when the notebook's
last cell has said that it is complete, and one process at a time writes it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import filelock
import nbformat
import papermill

from hardtrain import checks, files
from hardtrain.errors import ParameterError
from hardtrain.files import project_root, write_atomically
from hardtrain.report.figure_data import stale
from hardtrain.report.notebook import END_MARKER, parameter_names
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
    build = project_root() / "build" / "notebooks"
    build.mkdir(parents=True, exist_ok=True)
    failed = build / f"{target.stem}.failed.ipynb"
    lock = files.lock(build / f"{target.stem}.lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise RuntimeError(f"{target.name} is being executed by another process") from None
    with lock:
        try:
            notebook = papermill.execute_notebook(
                source, failed, parameters, kernel_name="python3", cwd=source.parent
            )
        except Exception as error:
            raise RuntimeError(f"{source.name} failed: {error}; see {failed}") from error
        if not _is_complete(notebook):
            raise RuntimeError(f"{source.name} stopped before its last cell; see {failed}")
        write_atomically(target, nbformat.writes(_without_traces(notebook)).encode())
        failed.unlink()


def _checked(source: Path, parameters: Mapping[str, object]) -> dict:
    """The parameters, of which the notebook must have each: papermill would execute others. One
    without a cell of parameters, which trains no runs, is given none."""
    if not parameters:
        return {}
    cells = [
        c for c in nbformat.read(source, 4).cells if "parameters" in c.metadata.get("tags", ())
    ]
    known = [name for cell in cells for name in parameter_names(cell.source)]
    for name in parameters if cells else ():
        checks.choice("parameter", name, known)
    return dict(parameters) if cells else {}


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
    command += [f"--rootdir={copy}", *(str(copy / "notebooks" / path.name) for path in notebooks)]
    failed = subprocess.run(command, cwd=copy, env=environment).returncode
    changed += [line for path in notebooks for line in _redrawn(copy, path.stem)]
    print(*changed, sep="\n", file=sys.stderr)
    return failed or bool(changed)


def _redrawn(copy: Path, name: str) -> list[str]:
    """Which committed tables are not those that the notebook gives now, a sentence each."""
    found = []
    for drawn in sorted((copy / "drawn" / name).glob("*/*")):
        committed = copy / "figures" / name / drawn.parent.name / drawn.name
        if drawn.suffix in (".csv", ".md") and committed.parent.is_dir():
            if not committed.is_file() or committed.read_bytes() != drawn.read_bytes():
                found.append(f"{committed} is not what its notebook gives now")
    return found


def _is_complete(notebook: nbformat.NotebookNode) -> bool:
    return END_MARKER in _last_output(notebook)


def _last_output(notebook: nbformat.NotebookNode) -> str:
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1:]
    return " ".join(str(output.get("data")) for cell in last for output in cell.outputs)


def last_words(path: Path) -> str:
    """What the last cell of an executed notebook says: how many files, and what they hold."""
    return _last_output(nbformat.read(path, 4)).partition(END_MARKER)[2].strip("'\"{} ")


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
        target = path if options.refresh else project_root() / "build" / "notebooks" / path.name
        parameters = {"use_committed": False, "profile": "quick"} if options.train else {}
        try:
            execute(path, target, parameters)
        except (RuntimeError, ParameterError) as error:
            sys.exit(str(error))
        print(f"{path.name}: complete in {time.perf_counter() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
