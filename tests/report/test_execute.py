"""The runner: outputs appear whole or not at all, and only of notebooks that reached their end."""

import json
import shutil
import subprocess
import sys

import filelock
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from hardtrain import ParameterError
from hardtrain.report import execute
from hardtrain.runs.committed import seal_folder

END = "'complete: 0 files, results.csv 0'"


def write_notebook(path, *cells):
    """A notebook of code cells; a cell's number is its id, as in a file that was saved once."""
    parts = [new_markdown_cell("# A notebook", id="title")]
    parts += [new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(cells)]
    parts[1].metadata["tags"] = ["parameters"]
    notebook = new_notebook(cells=parts)
    notebook.metadata["kernelspec"] = {
        "name": "python3", "display_name": "Python 3", "language": "python"
    }  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty repository in place of ours."""
    monkeypatch.setattr(execute, "project_root", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def pretend(monkeypatch):
    """A function that lets papermill give this notebook, or raise this error, without a kernel."""

    def install(result):
        def execute_notebook(source, output, parameters, **_):
            output.write_text("partial")
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(execute.papermill, "execute_notebook", execute_notebook)

    return install


def outputs_of(path):
    """The text of a notebook's code cells' outputs."""
    code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    return ["".join(o.get("text") or o["data"]["text/plain"] for o in c.outputs) for c in code]


# --- execute -------------------------------------------------------------------------------------


def test_execute_writes_the_result_without_times_and_paths(root):
    cells = ("number: int = 1", "import os\nprint(number, os.path.basename(os.getcwd()))", END)
    source = write_notebook(root / "notebooks" / "01_a.ipynb", *cells)
    before = source.read_bytes()
    target = root / "build" / "out.ipynb"
    execute.execute(source, target, {"number": 7})
    assert outputs_of(target) == ["", "", "7 notebooks\n", END]
    assert source.read_bytes() == before
    text = target.read_text()
    for trace in ("papermill", "duration", "start_time", str(root)):
        assert trace not in text
    notebook = nbformat.read(target, 4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    tags = [cell.metadata.get("tags") for cell in notebook.cells]
    assert tags == [None, ["parameters"], ["injected-parameters"], None, None]
    left = [path.name for path in (root / "build" / "notebooks").iterdir()]
    assert left in ([], ["out.lock"])


def test_refreshing_twice_gives_the_same_bytes(root):
    path = write_notebook(root / "notebooks" / "01_a.ipynb", "number: int = 1", "number + 1", END)
    execute.execute(path, path, {})
    first = path.read_bytes()
    assert outputs_of(path) == ["", "2", END]
    execute.execute(path, path, {})
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        (["1 / 0", END], "ZeroDivisionError"),
        (["import sys\nsys.exit(0)", END], "01_a.ipynb"),
        (["1", f"import os\nprint({END})\nos.kill(os.getpid(), 9)"], "01_a.ipynb"),
    ],
    ids=["error", "exit with 0", "kernel killed in the last cell"],
)
def test_execute_keeps_the_old_output_if_the_end_is_not_reached(root, cells, text):
    source = write_notebook(root / "notebooks" / "01_a.ipynb", *cells)
    stale = nbformat.read(source, 4)
    stale.cells[-1].outputs = [new_output("execute_result", data={"text/plain": END})]
    nbformat.write(stale, source)
    before = source.read_bytes()
    with pytest.raises(RuntimeError, match=text) as error:
        execute.execute(source, source, {})
    assert source.read_bytes() == before
    failed = root / "build" / "notebooks" / "01_a.failed.ipynb"
    assert str(failed) in str(error.value)
    assert failed.is_file()


@pytest.mark.parametrize(
    ("sources", "outputs", "complete"),
    [
        (["1", "2"], [[], [new_output("execute_result", data={"text/plain": END})]], True),
        (["1", "2"], [[new_output("execute_result", data={"text/plain": END})], []], False),
        (["1", "2"], [[], []], False),
        (["1", "2"], [[], [new_output("stream", text="incomplete")]], False),
        ([], [], False),
    ],
    ids=["marker in the last cell", "marker before", "no output", "other output", "no code"],
)
def test_execute_looks_for_the_end_in_the_last_code_cell(root, pretend, sources, outputs, complete):
    cells = [new_code_cell(s, outputs=o) for s, o in zip(sources, outputs, strict=True)]
    pretend(new_notebook(cells=[*cells, new_markdown_cell("the end")]))
    target = root / "out.ipynb"
    if complete:
        execute.execute(root / "01_a.ipynb", target, {})
        assert nbformat.read(target, 4).cells[-1].source == "the end"
        assert not list(root.rglob("*.failed.ipynb"))
    else:
        with pytest.raises(RuntimeError, match="stopped before its last cell"):
            execute.execute(root / "01_a.ipynb", target, {})
        assert not target.exists()


def test_execute_refuses_a_notebook_that_another_process_executes(root, pretend):
    pretend(RuntimeError("was started"))
    write_notebook(root / "01_a.ipynb", END)
    build = root / "build" / "notebooks"
    build.mkdir(parents=True)
    code = (
        "import filelock, sys\n"
        f"with filelock.FileLock({str(build / '01_a.lock')!r}):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match=r"01_a.ipynb is being executed by another process"):
            execute.execute(root / "01_a.ipynb", root / "01_a.ipynb", {})
        assert not list(root.rglob("*.failed.ipynb"))
    finally:
        other.communicate("")
    with pytest.raises(RuntimeError, match="was started"):  # the other's end frees it
        execute.execute(root / "01_a.ipynb", root / "01_a.ipynb", {})


def test_a_notebook_that_failed_can_be_executed_again_at_once(root, pretend):
    pretend(RuntimeError("a cell failed"))
    kept = []
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a cell failed") as error:
            execute.execute(write_notebook(root / "01_a.ipynb", END), root / "01_a.ipynb", {})
        kept.append(error)  # with its frames


def test_execute_holds_its_lock_until_the_output_is_written(root, pretend, monkeypatch):
    pretend(new_notebook(cells=[new_code_cell(
        "", outputs=[new_output("execute_result", data={"text/plain": END})]
    )]))  # fmt: skip
    held = []

    def writing(*_):
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(root / "build" / "notebooks" / "01_a.lock").acquire(timeout=0)
        held.append(True)

    monkeypatch.setattr(execute, "write_atomically", writing)
    execute.execute(root / "01_a.ipynb", root / "01_a.ipynb", {})
    assert held


@pytest.mark.parametrize(
    "name", ["nunber", "number: int", "number = 1; import os; x", "number, other", "number.x", ""]
)
def test_names_of_parameters_are_checked_before_papermill_sees_them(root, pretend, name):
    pretend(RuntimeError("papermill was called"))
    cells = ("number: int = 1", "number", END)
    source = write_notebook(root / "notebooks" / "01_a.ipynb", *cells)
    with pytest.raises(ParameterError, match=r"unknown parameter .*known: number"):
        execute.execute(source, root / "out.ipynb", {name: 7})
    assert not (root / "build").exists()


def test_a_notebook_without_parameters_is_given_none(root, monkeypatch):
    source = write_notebook(root / "notebooks" / "09_a.ipynb", "1", END)
    notebook = nbformat.read(source, 4)
    del notebook.cells[1].metadata["tags"]
    nbformat.write(notebook, source)
    given = []

    def execute_notebook(source, output, parameters, **_):
        given.append(parameters)
        raise RuntimeError("seen")

    monkeypatch.setattr(execute.papermill, "execute_notebook", execute_notebook)
    with pytest.raises(RuntimeError, match="seen"):
        execute.execute(source, root / "out.ipynb", {"use_committed": False})
    assert given == [{}]


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "folder", "parameters"),
    [
        ("--train", "build/notebooks", {"use_committed": False, "profile": "quick"}),
        ("--refresh", "notebooks", {}),
    ],
)
def test_main_trains_into_build_and_refreshes_in_place(
    root, monkeypatch, capsys, option, folder, parameters
):
    calls = []
    monkeypatch.setattr(execute, "execute", lambda *call: calls.append(call))
    monkeypatch.setenv("HARDTRAIN_PROGRESS", "terminal")
    paths = [root / "notebooks" / name for name in ("01_a.ipynb", "02_b.ipynb")]
    assert execute.main([option, *map(str, paths)]) == 0
    assert calls == [(path, root / folder / path.name, parameters) for path in paths]
    assert capsys.readouterr().out.count("complete in") == 2


def test_main_fails_with_the_reason(root, pretend, capsys, monkeypatch):
    monkeypatch.setenv("HARDTRAIN_PROGRESS", "terminal")
    pretend(ValueError("no such thing"))
    with pytest.raises(SystemExit, match=r"01_a.ipynb failed: no such thing"):  # and exit code 1
        execute.main(["--refresh", str(root / "01_a.ipynb"), str(root / "02_b.ipynb")])
    assert "complete" not in capsys.readouterr().out


# --- check ---------------------------------------------------------------------------------------


@pytest.fixture
def committed_notebook(tmp_path, monkeypatch):
    """A staged notebook that prints a number of a staged figure folder, in a path with a space."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    root = tmp_path / "a repository"
    root.mkdir()
    monkeypatch.setattr(execute, "project_root", lambda: root)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    (root / "figures").mkdir()
    (root / "figures" / "number.txt").write_text("41")
    code = (
        "import os, pathlib\n"
        "folder = pathlib.Path(os.environ['HARDTRAIN_COMMITTED'])\n"
        "print(int((folder / 'number.txt').read_text()) + 1)"
    )
    path = write_notebook(root / "notebooks" / "01_a.ipynb", code)
    notebook = nbformat.read(path, 4)
    notebook.cells[1].outputs = [new_output("stream", text="42\n")]
    notebook.cells[1].execution_count = 1
    nbformat.write(notebook, path)
    subprocess.run(["git", "add", "."], cwd=root, check=True)
    return path


def test_check_names_what_was_edited_or_is_drawn_otherwise(tmp_path):
    committed, drawn = (tmp_path / part / "01_a" / "quick" for part in ("figures", "drawn"))
    for folder in (committed, drawn):
        folder.mkdir(parents=True)
        for name in ("table_1.csv", "table_1.md", "fig_1.png"):
            (folder / name).write_text("same")
    assert execute._redrawn(tmp_path, "01_a") == []
    (committed / "table_1.csv").write_text("edited")
    (drawn / "fig_1.png").write_text("pixels differ from machine to machine")
    (committed / "table_1.md").unlink()
    assert execute._redrawn(tmp_path, "01_a") == [
        f"{committed / name} is not what its notebook gives now"
        for name in ("table_1.csv", "table_1.md")
    ]


def test_check_fails_where_a_figure_folder_was_edited(committed_notebook, capsys):
    root = committed_notebook.parents[1]
    folder = root / "figures" / "01_a" / "quick"
    folder.mkdir(parents=True)
    (folder / "table_1.csv").write_text("a\n1\n")
    seal_folder(folder, ["table_1.csv"])
    subprocess.run(["git", "add", "figures"], cwd=root, check=True)
    assert execute.check([committed_notebook]) == 0
    (folder / "table_1.csv").write_text("a\n2\n")
    subprocess.run(["git", "add", "figures"], cwd=root, check=True)
    assert execute.check([committed_notebook]) != 0
    assert "table_1.csv is missing, torn or edited" in capsys.readouterr().err


def change_number(path):
    content = json.loads(path.read_text())
    content["cells"][1]["outputs"][0]["text"] = ["43\n"]
    path.write_text(json.dumps(content))


PROFILES = """profile: str = "reduced"
train: bool = True"""
TABLE = """import os, pathlib
number = pathlib.Path(os.environ["HARDTRAIN_COMMITTED"], "number.txt").read_text()
folder = pathlib.Path(os.environ["HARDTRAIN_FIGURES"], "01_a", profile)
folder.mkdir(parents=True)
_ = (folder / "table_1.csv").write_text(f"a\\n{'trained' if train else number}\\n")"""


def test_profiles_that_a_notebook_does_not_show_are_compared_and_drawn_too(
    committed_notebook, monkeypatch, capsys
):
    root = committed_notebook.parents[1]
    write_notebook(committed_notebook, PROFILES, TABLE)
    notebook = nbformat.read(committed_notebook, 4)
    for number, cell in enumerate(notebook.cells[1:], 1):
        cell.execution_count = number
    nbformat.write(notebook, committed_notebook)
    for profile, value in (("quick", 41), ("reduced", "trained")):
        folder = root / "figures" / "01_a" / profile
        folder.mkdir(parents=True)
        (folder / "results.csv").write_text("key\n")
        (folder / "table_1.csv").write_text(f"a\n{value}\n")
    monkeypatch.setattr(execute, "damaged", lambda folder: [])
    subprocess.run(["git", "add", "."], cwd=root, check=True)
    assert execute.check([committed_notebook]) == 0
    (root / "figures" / "number.txt").write_text("40")
    subprocess.run(["git", "add", "."], cwd=root, check=True)
    assert execute.check([committed_notebook]) != 0
    error = capsys.readouterr().err
    assert "quick/table_1.csv is not what its notebook gives now" in error
    assert "reduced" not in error

    changed = root / "figures" / "01_a" / "quick+epochs"  # of someone's own parameters
    changed.mkdir()
    (changed / "results.csv").write_text("key\n")
    calls = []
    monkeypatch.setattr(execute, "execute", lambda *call: calls.append(call))
    monkeypatch.setenv("HARDTRAIN_PROGRESS", "terminal")
    assert execute.main(["--refresh", str(committed_notebook)]) == 0
    build = root / "build" / "notebooks" / "01_a.ipynb"
    quick = {"profile": "quick", "train": False}
    assert calls == [
        (committed_notebook, committed_notebook, {}),
        (committed_notebook, build, quick),
    ]


def test_check_compares_what_is_staged(committed_notebook, monkeypatch):
    commands, run = [], subprocess.run

    def recording(command, **options):
        commands.append(command)
        return run(command, **options)

    monkeypatch.setattr(execute.subprocess, "run", recording)
    root = committed_notebook.parents[1]
    change_number(committed_notebook)  # neither counts before it is staged
    (root / "figures" / "number.txt").write_text("50")
    assert execute.check([committed_notebook]) == 0
    assert f"--nbval-cell-timeout={execute.CELL_TIMEOUT}" in commands[-1]
    run(["git", "add", "notebooks"], cwd=root, check=True)
    assert execute.check([committed_notebook]) != 0
