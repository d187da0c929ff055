"""The command ``hardtrain``: what it prints, what it leaves alone, and its exit status."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import numpy as np
import pytest
from helpers import colours, save_set

from hardtrain import ParameterError, Run, RunStore, files, run_missing
from hardtrain.__main__ import _notebook, _parameters, _parser, main
from hardtrain.data.images import SIZES, load_dataset
from hardtrain.report.execute import answers, read_notebook
from hardtrain.report.plan import plan
from hardtrain.runs import costs
from hardtrain.runs.merge import merge
from hardtrain.runs.status import Announced, report
from hardtrain.training import loop

ROOT = Path(__file__).resolve().parents[1]
COMPARE = "notebooks/08_compare.ipynb"

PARAMETERS = """
profile: str = "quick"  # quick or paper
datasets: list[str] = None  # names
networks: list[str] = None  # names
epochs: int = None  # of each
seeds: list[int] = None  # paired
train_size: int = None  # 0 is all
test_size: int = None  # 0 is all
device: str = "cpu"  # where
engine: str = "local"  # how
data_root: str = None  # folder
out_dir: str = None  # folder
use_committed: bool = True  # take what is there
"""
BOOK = """
from hardtrain import Run
from hardtrain.data.images import load_dataset
from hardtrain.report.notebook import Notebook
quick = {"datasets": ["digits"], "networks": ["cnn_small"], "epochs": 2, "seeds": [0, 1],
         "train_size": 100, "test_size": 100}
paper = {"datasets": ["svhn"], "networks": ["resnet18", "cnn5"], "epochs": 100}
paper = quick | paper | {"train_size": 0, "test_size": 0}
book = Notebook("tiny", {"quick": quick, "paper": paper}, globals())
p = book.p
base = dict(epochs=p.epochs, train_size=p.train_size, test_size=p.test_size, **book.places)
"""
FIRST = """
print(len(load_dataset(p.datasets[0], "train", root=data_root)))
runs = [Run(d, n, epochs=p.epochs, seed=s, lr=0.05, train_size=p.train_size,
            test_size=p.test_size, **book.places)
        for d in p.datasets for n in p.networks for s in p.seeds]
first = book.run(runs)
"""
SECOND = """
best = first.sort_values("test_error")["seed"].iloc[0]
more = [Run(runs[0].dataset, runs[0].network, epochs=p.epochs, seed=10 + int(best), lr=0.05,
            train_size=p.train_size, test_size=p.test_size, **book.places)]
results, history = book.results(runs + more)
"""
CELLS = [PARAMETERS, BOOK, "import nowhere.at.all", FIRST, SECOND, "book.finish()"]


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Nothing of the repository's or the user's is touched."""
    for name in ("RUNS", "COMMITTED", "FIGURES", "DATA"):
        monkeypatch.setenv(f"HARDTRAIN_{name}", str(tmp_path / name.lower()))
    return tmp_path


@pytest.fixture
def tiny(tmp_path):
    """A function that writes a notebook of these cells."""

    def write(*cells, name="tiny"):
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
        notebook.cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in cells]
        notebook.cells[0].metadata["tags"] = ["parameters"]
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(notebook, path)
        return path

    return write


@pytest.fixture
def untrained(monkeypatch):
    """Training of whole runs is an error (measuring is not: it evaluates nothing)."""
    fit = loop.fit

    def refuse(run, model, method, evaluate, **options):
        assert not options, f"{run} was trained"
        return fit(run, model, method, evaluate)

    monkeypatch.setattr(loop, "fit", refuse)


# --- check ----------------------------------------------------------------------------------------


def test_check_says_what_is_in_a_set_and_what_is_odd(tmp_path, capsys):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 8, 10), dtype=np.uint8)
    labels = np.array([1] * 11 + [2] * 11 + [3, 5])
    for split in ("train", "test"):
        np.savez(tmp_path / f"mine_{split}.npz", images=images, labels=labels)
    assert main(["check", str(tmp_path / "mine")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mine: 24 training and 24 test images, 1x8x10, 5 classes"
    for line, split in zip(lines[1:3], ("train", "test"), strict=True):
        assert line.startswith("changed: ")
        assert line.endswith(f"mine_{split}.npz: labels start at 1; 1 becomes class 0")
    assert [line.split() for line in lines[3:9]] == [
        ["train", "test", "class"], ["11", "11", "0:", "1"], ["11", "11", "1:", "2"],
        ["1", "1", "2:", "3"], ["0", "0", "3:", "4"], ["1", "1", "4:", "5"],
    ]  # fmt: skip
    assert lines[9:] == [
        "note: 24 of 24 test images are training images, too: the first is number 0, there "
        "number 0",
        "note: images are 8x10, no squares: give image_size, or cut them",
        "note: label 3 occurs in neither train nor test",
        "note: label 2, 4 has one training image",
        "note: test classes have 1 to 11 images: look at the balanced error, the mean over classes",
    ]


def test_check_lists_the_rarest_of_many_classes(tmp_path, capsys):
    labels = np.repeat(np.arange(60), 5 * (1 + np.arange(60) // 30))
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "many.npz", images=images, labels=labels)
    assert main(["check", str(tmp_path / "many.npz")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[51].split() == ["8", "2", "49:", "49"]
    assert lines[52] == "10 more classes, each with as many training images or more"


@pytest.mark.parametrize(
    ("name", "status", "text"),
    [("mine.npz", 1, "has no array 'images'"), ("mime", 2, "unknown data set"),
     ("mnist", 1, "mnist_train.npz not found")],
)  # fmt: skip
def test_check_refuses_what_cannot_be_read_and_downloads_nothing(
    tmp_path, monkeypatch, capsys, name, status, text
):
    monkeypatch.setattr("socket.getaddrinfo", None)
    np.savez(tmp_path / "mine.npz", labels=np.arange(3))
    given = name if name == "mnist" else str(tmp_path / name)
    assert main(["check", given]) == status
    assert text in capsys.readouterr().err


# --- plan -----------------------------------------------------------------------------------------


def test_plan_says_what_is_missing_and_trains_nothing(tiny, untrained, capsys, places):
    path = tiny(*CELLS)
    before = sorted(places.rglob("*"))
    assert main(["plan", str(path), "-y", "{profile: paper}"]) == 0
    shown = capsys.readouterr().out
    assert "tiny, paper profile: 100 epochs, 2 seeds" in shown
    assert "4 runs: 0 finished, 4 missing" in shown
    assert "2 x svhn, resnet18, plain" in shown
    assert "left out: cell 2 (ModuleNotFoundError: No module named 'nowhere')" in shown
    assert "more runs follow, unknown until these are trained" in shown
    assert "73257" not in shown  # what the notebook prints
    assert sorted(places.rglob("*")) == before


def test_plan_finds_what_is_finished_and_goes_on_behind_it(tiny, places):
    path = tiny(*CELLS)
    first = plan(path, {})
    assert (len(first.finished), len(first.missing), first.more) == (0, 2, True)
    run_missing(first.missing[:1])
    second = plan(path, {})
    assert (len(second.finished), len(second.missing), second.more) == (1, 1, True)
    run_missing(second.missing)
    third = plan(path, {})
    assert (len(third.finished), len(third.missing), third.more) == (2, 1, False)
    assert third.missing[0].seed >= 10
    run_missing(third.missing)
    last = plan(path, {})
    assert (len(last.finished), len(last.missing), last.more) == (3, 0, False)
    assert not (places / "figures" / "tiny").exists()


def test_plan_says_that_more_runs_follow_in_the_same_cell(tiny):
    assert plan(tiny(PARAMETERS, BOOK, FIRST + SECOND), {}).more
    assert not plan(tiny(PARAMETERS, BOOK, FIRST), {}).more


def test_a_notebook_without_parameters_asks_for_no_runs(tiny, capsys):
    path = tiny("1 / 0")
    notebook = nbformat.read(path, 4)
    notebook.cells[0].metadata = {}
    nbformat.write(notebook, path)
    assert main(["plan", str(path), "-y", "{profile: paper}"]) == 0
    said = capsys.readouterr().out
    assert said == "tiny, without parameters\n  0 runs: 0 finished, 0 missing\n"


def test_a_relative_path_is_that_of_the_caller_and_a_name_stays_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_set(tmp_path / "mine.npz", *colours(num=60))
    (tmp_path / "digits").mkdir()
    given = "{datasets: [mine.npz, digits, nowhere], out_dir: results, data_root: null}"
    parameters = _parameters(_parser().parse_args(["plan", "08_compare", "-y", given]))
    assert parameters["datasets"] == [str(tmp_path / "mine.npz"), "digits", "nowhere"]
    assert parameters["out_dir"] == str(tmp_path / "results")
    assert parameters["data_root"] is None


def test_a_network_of_the_callers_folder_is_found(tiny, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "nets_of_mine.py").write_text(
        "from torch import nn\n"
        "def flat(in_channels, image_size):\n"
        "    return nn.Flatten(), in_channels * image_size**2\n"
        "flat.VERSION = 1\n"
    )
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    given = "{networks: ['nets_of_mine:flat']}"
    assert main(["plan", str(tiny(*CELLS)), "-y", given]) == 0
    assert "2 x digits, nets_of_mine:flat, plain" in capsys.readouterr().out


def test_a_notebook_of_the_repository_is_found_by_its_name(capsys):
    assert _notebook("01_mini_batch_trimming") == ROOT / "notebooks/01_mini_batch_trimming.ipynb"
    with pytest.raises(SystemExit):
        main(["plan", "08_comparision"])
    assert "did you mean '08_compare'?" in capsys.readouterr().err


def test_a_comparison_has_one_data_set(capsys):
    given = "{datasets: [digits, mnist]}"
    assert main(["plan", "08_compare", "-y", given]) == 2
    assert "datasets = ['digits', 'mnist']: a comparison has one" in capsys.readouterr().err


def test_own_data_is_not_asked_to_feed_the_second_experiment_of_a_profile(places):
    given = {"profile": "reduced", "datasets": ["digits"], "seeds": [0, 1, 2, 3]}
    asked = plan(ROOT / "notebooks/01_mini_batch_trimming.ipynb", given).missing
    assert asked
    assert {run.network for run in asked} == {"cnn_small_bn"}


def test_what_a_notebook_answers_is_printed_behind_its_end(tmp_path):
    outputs = [
        nbformat.v4.new_output("display_data", {"text/markdown": text})
        for text in ("Nothing helps.", "| a | table |")
    ]
    outputs.append(nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo="}))
    cells = [nbformat.v4.new_code_cell("x", outputs=outputs) for _ in range(2)]
    cells[1].metadata["tags"] = ["answer"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    assert answers(tmp_path / "a.ipynb") == ["Nothing helps."]
    tags = [cell.metadata.get("tags") for cell in read_notebook(ROOT / COMPARE).cells]
    assert tags.count(["answer"]) == 1


def test_plan_is_strict(tiny, capsys):
    path = tiny(*CELLS)
    for given, text in (
        ("{epoch: 3}", "unknown parameter 'epoch'; did you mean 'epochs'?"),
        ("{epochs: 1e-3}", "epochs = '1e-3' is str, not int"),
        ("{seeds: 3}", "seeds = 3 is int, not a list"),
        ("[1]", "-y '[1]' is no mapping"),
        ("{a b: 1}", "parameter 'a b' is no name"),
        ("{a: [}", "is no YAML"),
    ):
        assert main(["plan", str(path), "-y", given]) == 2
        assert text in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "nowhere.ipynb"])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"{no json", "is no notebook (NotJSONError"),
        (b"[]", "is no notebook (AttributeError"),
        (b"\xff\xfe\0", "is no notebook (UnicodeDecodeError"),
        (b'{"cells": [], "metadata": {}, "nbformat": 99}', "is no notebook"),
    ],
)
def test_what_is_no_notebook_is_refused(places, capsys, content, text):
    (places / "bad.ipynb").write_bytes(content)
    for command in ("plan", "run"):
        assert main([command, str(places / "bad.ipynb"), "-y", "{epochs: 1}"]) == 2
        assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("{epochs: 2024-01-01}", "epochs = datetime.date(2024, 1, 1) is no number and no text"),
        ("{epochs: .nan}", "epochs = nan is no number and no text"),
        ("{epochs: 0}", "epochs = 0 is less than 1"),
        ("{engine: rya}", "unknown engine 'rya'; did you mean 'ray'?"),
        ("{'x = 1; y': 1}", "parameter 'x = 1; y' is no name"),
        ("{5: 1}", "is no mapping"),
    ],
)
def test_plan_refuses_what_no_run_could_take(tiny, capsys, given, text):
    assert main(["plan", str(tiny(*CELLS)), "-y", given]) == 2
    assert text in capsys.readouterr().err


def test_plan_names_the_cell_that_fails_before_there_is_a_notebook(tiny, capsys):
    for cell, text in (("(", "SyntaxError"), ("import sys; sys.exit(0)", "SystemExit: 0")):
        assert main(["plan", str(tiny(PARAMETERS, cell, name="odd"))]) == 2
        assert f"odd.ipynb, cell 1: {text}" in capsys.readouterr().err
    path = tiny(PARAMETERS, "%matplotlib inline", *CELLS[1:4], name="magic")
    assert main(["plan", str(path)]) == 0
    assert "2 runs: 0 finished, 2 missing" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_refused_before_the_notebook_runs(tiny, capsys, places):
    (places / "file").touch()
    assert main(["run", str(tiny(*CELLS)), "--out", str(places / "file")]) == 1
    assert "could not make" in capsys.readouterr().err
    assert main(["run", str(tiny(*CELLS)), "--out", "a\0b"]) == 2
    assert "--out = 'a\\x00b' can be no path" in capsys.readouterr().err


def test_plan_of_several_names_the_one_that_has_no_such_profile(tiny, capsys):
    without = tiny(PARAMETERS, BOOK.replace('"paper"', '"other"'), name="without")
    path = tiny(PARAMETERS, BOOK)
    assert main(["plan", str(without), str(path), "-y", "{profile: paper}"]) == 2
    out, err = capsys.readouterr()
    assert "without: unknown profile 'paper'" in err
    assert out.startswith("tiny, paper profile")


def test_costs_come_from_records_where_there_are_any(tiny_run, store):
    runs = [tiny_run(seed=seed, epochs=5) for seed in range(3)]
    measured, ways = costs.seconds(runs, store)
    assert ways == {"measured": 3}
    assert 0 < measured[0] < 10
    run_missing([tiny_run(seed=9, epochs=1)], store, use_committed=False)
    (record,) = store.records()
    recorded, ways = costs.seconds(runs, store)
    assert ways == {"recorded": 3}
    factor = costs.work(runs[0]) / costs.work(tiny_run(epochs=1))
    assert recorded[0] == pytest.approx(record["timings"]["seconds"] * factor)
    assert factor == pytest.approx(5)
    other = tiny_run(network="cnn_small_bn")
    _, ways = costs.seconds([*runs, other], store, budget=0)
    assert ways == {"recorded": 3, "by operations": 1}


def test_small_batches_have_a_speed_of_their_own(tiny_run, store):
    small, large, larger = (tiny_run(batch_size=size, device="cpu") for size in (4, 64, 640))
    run_missing([small], store, use_committed=False)
    _, ways = costs.seconds([small, large, larger], store, budget=0)
    assert ways == {"recorded": 1, "by operations": 2}
    assert costs._kind(large) == costs._kind(larger)


def test_work_counts_every_pass(tiny_run):
    one = costs.work(tiny_run(epochs=1))
    assert costs.work(tiny_run(epochs=1, train_size=30)) / one == pytest.approx((90 + 20) / 200)
    assert costs.work(tiny_run(epochs=1, evaluate_train=True)) / one == pytest.approx(260 / 200)
    assert costs.work(tiny_run(epochs=4, evaluate_every=4)) / one == pytest.approx(740 / 200)
    held_out = tiny_run(epochs=2, validation_size=15)  # 45 are left
    assert costs.work(held_out) / one == pytest.approx((6 * 45 + 2 * 15 + 20) / 200)
    last = tiny_run(epochs=2, evaluate_unit="step", evaluate_last=3)
    assert costs.work(last) / one == pytest.approx((6 * 60 + 5 * 20) / 200)
    every_step = tiny_run(epochs=1, evaluate_unit="step", evaluate_every=1)
    assert costs.work(every_step) / one == pytest.approx((180 + 4 * 20) / 200)


def test_known_sizes_are_those_of_the_data():
    train, test = (load_dataset("digits", split) for split in ("train", "test"))
    found = (len(train), len(test), train.in_channels, train.image_size, train.num_classes)
    assert SIZES["digits"] == found


# --- run ------------------------------------------------------------------------------------------


def test_run_executes_whole_notebooks_and_says_how_they_ended(tiny, capfd, places):
    good = tiny(*(cell for cell in CELLS if "nowhere" not in cell), name="good")
    bad = tiny(*CELLS, name="bad")
    out = places / "out"
    given = ["-y", "{epochs: 1}", "--out", str(out)]
    assert main(["run", str(bad), str(good), *given]) == 1
    shown = capfd.readouterr()
    first, second = shown.out.splitlines()
    assert first.startswith("bad")
    assert first.endswith("FAILED, see above")
    assert "No module named 'nowhere'" in shown.err
    assert second.startswith("good")
    assert "complete  3 files, results.csv" in second
    assert [path.name for path in out.iterdir()] == ["good.ipynb"]
    assert len(list(RunStore().records())) == 3


def test_a_killed_notebook_is_a_failure_of_all_together(tiny, monkeypatch):
    codes = iter([-9, 0])

    class Process:
        def wait(self):
            return next(codes)

        def terminate(self):
            pass

    monkeypatch.setattr(subprocess, "Popen", lambda command: Process())
    paths = [str(tiny(*CELLS, name=name)) for name in ("a", "b")]
    assert main(["run", *paths, "--together"]) == 137


# --- status ---------------------------------------------------------------------------------------


def test_status_of_a_running_sweep(tiny_run, store):
    runs = [tiny_run(seed=seed, epochs=4) for seed in range(4)]
    run_missing(runs[:1], store, use_committed=False)
    assert report(store).endswith("1 finished, 0 diverged\nno sweep is running")
    with Announced(runs, store) as progress:
        progress._next_write = 0
        progress(runs[0], 4)
        progress._next_write = 0
        progress(runs[1], 0)
        assert "1 done, 1 running, 2 waiting; time left unknown" in report(store)
        for epoch in (1, 2):
            progress._next_write = 0
            progress(runs[1], epoch, 0.25)
        _, sweep, line = report(store).splitlines()
        assert "1 done, 1 running, 2 waiting" in sweep
        assert line.startswith(f"  {runs[1]}: epoch 2 of 4, loss 0.25, ")
        assert line.endswith(" left")
    assert report(store).endswith("no sweep is running")
    assert list((store.path / "sweeps").iterdir()) == []


def test_status_of_a_sweep_that_was_killed(tiny_run, store, capsys):
    runs = [tiny_run(seed=seed) for seed in range(2)]
    dead = Announced(runs, store)
    dead.__enter__()
    dead._lock.release()  # as the death of its process does
    store.path.joinpath("checkpoints").mkdir(parents=True, exist_ok=True)
    (store.path / "checkpoints" / f"{runs[0].key}-01234567.newest.pt").touch()
    assert main(["status", str(store.path)]) == 0
    shown = capsys.readouterr().out
    assert "0 finished, 0 diverged, 1 interrupted (a sweep goes on with them)" in shown
    assert "no sweep is running" in shown
    with Announced(runs, store):
        assert len(list((store.path / "sweeps").glob("*.json"))) == 1  # the dead one's is gone


def test_a_disk_without_locks_stops_no_sweep_and_hides_none(tiny_run, store, monkeypatch):
    runs = [tiny_run()]
    store.open()
    monkeypatch.setattr(files, "has_locks", lambda folder: False)
    with Announced(runs, store) as progress:
        progress(runs[0], 1)
        with Announced(runs, store):  # which leaves the file of the first alone
            assert len(list((store.path / "sweeps").glob("*.json"))) == 2
            assert report(store).count("sweep of 1 runs") == 2
    monkeypatch.setattr(files, "is_alive", lambda pid: False)
    dead = Announced(runs, store)
    dead.__enter__()
    assert report(store).endswith("no sweep is running")
    with Announced(runs, store):
        assert not dead.file.exists()


def test_status_of_a_store_that_may_only_be_read(tiny_run, store, monkeypatch):
    def refuse(folder):
        raise PermissionError("only read")

    with Announced([tiny_run()], store):
        monkeypatch.setattr(files, "has_locks", refuse)
        assert "sweep of 1 runs" in report(store)


# --- merge ----------------------------------------------------------------------------------------


@pytest.fixture
def three(tiny_run, tmp_path):
    """Three stores: of runs 0 and 1, of 1 and 2, and of 1 with other numbers."""
    stores = [RunStore(tmp_path / name) for name in ("a", "b", "c")]
    for store, seeds in zip(stores, ((0, 1), (1, 2), (1,)), strict=True):
        runs = [tiny_run(seed=seed, keep=["final_weights"]) for seed in seeds]
        run_missing(runs, store, use_committed=False)
    (record,) = stores[2].records()
    record["metrics"]["test_loss"] += 1e-6
    record["timings"]["threads"] = 64
    stores[2].save(record)
    return stores


def test_merge_of_an_overlap_a_conflict_and_a_torn_file(three, tmp_path, capsys, tiny_run):
    a, b, c = three
    torn = sorted(b.path.glob("records/*.json"))
    torn = next(path for path in torn if path.name.startswith(tiny_run(seed=2).key))
    torn.write_bytes(torn.read_bytes()[:100])
    kept = {path: path.read_bytes() for store in three for path in store.path.rglob("*.json")}
    into = RunStore(tmp_path / "into")
    assert main(["merge", str(a.path), str(b.path), str(c.path), str(into.path)]) == 1
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == "2 new, 1 same, 1 other, 1 damaged"
    assert f"{torn}: left out, since it or an artefact is damaged" in shown
    assert "threads: 64, not 1" in shown
    assert {record["key"] for record in into.records()} == {record["key"] for record in a.records()}
    (second,) = (into.path / "environments").iterdir()
    assert json.loads(second.read_bytes())["timings"]["threads"] == 64
    assert kept == {path: path.read_bytes() for path in kept}  # the sources are as they were
    frame = run_missing(  # nothing is trained again, artefacts included
        [tiny_run(seed=seed, keep=["final_weights"]) for seed in (0, 1)], into, train_missing=False
    )
    assert list(frame["source"]) == ["store", "store"]


def test_merge_refuses_damaged_artefacts_and_adds_missing_ones(three, tmp_path, tiny_run):
    a, b, _ = three
    for path in a.path.glob("artefacts/*"):
        path.write_bytes(path.read_bytes()[:-1])
    into = RunStore(tmp_path / "into")
    run_missing([tiny_run(seed=1)], into, use_committed=False)
    counts, said = merge([a, b], into)
    assert counts == {"new": 1, "same": 1, "other": 0, "damaged": 2}
    assert all("is damaged" in text for text in said)
    for record in into.records():
        assert into.load_artefact(record, "final_weights") is not None
    again, _ = merge([b, into], into)
    assert again == {"new": 0, "same": 4, "other": 0, "damaged": 0}


def test_merge_keeps_the_artefacts_that_were_there(tmp_path, tiny_run):
    own, other = (RunStore(tmp_path / name) for name in ("own", "other"))
    for store, name in ((own, "features"), (other, "final_weights")):
        run_missing([tiny_run(keep=[name])], store, use_committed=False)
    assert merge([other], own)[0]["same"] == 1
    (record,) = own.records()
    for name in ("features", "final_weights"):
        assert own.load_artefact(record, name) is not None


def test_merge_waits_for_who_writes_the_record(tmp_path, tiny_run):
    own, other = (RunStore(tmp_path / name) for name in ("own", "other"))
    run_missing([tiny_run()], other, use_committed=False)
    (record,) = other.records()
    merged = threading.Event()
    thread = threading.Thread(target=lambda: (merge([other], own), merged.set()))
    own.open()
    with own.lock(record["key"], record["fingerprint"]):
        thread.start()
        assert not merged.wait(0.2)
        assert list(own.records()) == []
    assert merged.wait(60)
    thread.join()


@pytest.mark.parametrize("content", ["[]", "null", '{"runs": {}}', '{"runs": {"a": {}}}', "{"])
def test_status_passes_over_files_that_no_sweep_of_ours_wrote(store, capsys, content):
    store.open()
    (store.path / "sweeps").mkdir()
    (store.path / "sweeps" / "odd.json").write_text(content)
    with files.lock(store.path / "sweeps" / "odd.lock"):
        assert main(["status", str(store.path)]) == 0
    assert "no sweep is running" in capsys.readouterr().out


def test_status_of_what_is_no_store_is_refused(places, capsys):
    assert main(["status", str(places / "nowhere")]) == 1
    assert "nowhere is no folder, and so no store" in capsys.readouterr().err


def test_status_of_a_file_is_refused_wherever_it_was_named(places, capsys, monkeypatch):
    (places / "file").touch()
    monkeypatch.setenv("HARDTRAIN_RUNS", str(places / "file"))
    assert main(["status"]) == 1
    assert "file is no folder, and so no store" in capsys.readouterr().err


def test_merge_wants_stores(three, tmp_path, capsys):
    assert main(["merge", str(tmp_path / "nothing"), str(tmp_path / "into")]) == 1
    assert "is no store" in capsys.readouterr().err
    assert not (tmp_path / "into").exists()


# --- the command itself ---------------------------------------------------------------------------


def test_the_module_is_the_command(places, capsys):
    command = [sys.executable, "-m", "hardtrain", "status", str(places)]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(f"{places}: 0 finished, 0 diverged")
    with pytest.raises(SystemExit, match="2"):
        main(["pla"])
    assert "plan" in capsys.readouterr().err


def test_nothing_is_trained_where_it_is_forbidden(tiny_run, store):
    from hardtrain.runs.sweep import NotTrained, nothing_trained

    with nothing_trained() as asked, pytest.raises(NotTrained):
        run_missing([tiny_run()], store, use_committed=False)
    assert asked == [(tiny_run(), False)]
    assert not store.path.exists()
    with pytest.raises(ParameterError, match="unknown option of engine 'local' 'ray_addres'"):
        run_missing([Run("digits", "cnn_small")], store, ray_addres="auto")
