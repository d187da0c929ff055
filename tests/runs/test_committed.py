"""Figure folders that were edited, cut, swapped, half written or written by several at once: no
wrong number is drawn without a word. For more random edits: ``HARDTRAIN_EDITS=2000 pytest ...``.
"""

import csv
import io
import json
import multiprocessing
import os
import random
import shutil
import sys
import threading
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from hardtrain import (
    HardtrainError,
    ParameterError,
    RecordError,
    Run,
    RunStore,
    StoreError,
    files,
    load_history,
    load_timings,
    run_missing,
    write_results,
)
from hardtrain.report.claims import all_claims
from hardtrain.report.figure_data import figure_data
from hardtrain.runs import committed
from hardtrain.runs.committed import damaged, read_csv, read_folder, seal_folder
from hardtrain.runs.results import environments, merge_results

EDITS = int(os.environ.get("HARDTRAIN_EDITS", "120"))
FOLDER = Path("01_notebook", "quick")
TABLES = ("results.csv", "history.csv", "timings.csv")


def square(*, size):
    return {"values": np.arange(size) ** 2}


@pytest.fixture(scope="module")
def original(tiny_set, tmp_path_factory):
    """Runs, one of them diverged, and the figure folder that a notebook would have written."""
    folder = tmp_path_factory.mktemp("original") / FOLDER
    fields = {"dataset": tiny_set, "network": "cnn_small", "epochs": 3, "batch_size": 16}
    fields |= {"device": "cpu", "lr": 0.05}
    runs = [Run(**fields, seed=seed) for seed in range(3)]
    runs += [Run(**fields | {"lr": 1e30}), Run(**fields, method="trimming")]
    store = RunStore(folder.parents[1] / "runs")
    frame = run_missing(runs, store, use_committed=False)
    write_results(frame, store, folder)
    figure_data("fig_1_squares", square, folder, size=500, use_committed=False)
    (folder / "table_1_error.csv").write_text("set,error\ndigits,0.0312\n")
    (folder / "table_1_error.md").write_text("| set | error |\n| --- | --- |\n| digits | 3.12 |\n")
    (folder / "claims.csv").write_text("claim,finding,p\nit helps,undecided,0.31\n")
    (folder / "fig_1_squares.png").write_bytes(bytes(range(256)))
    seal_folder(folder, [path.name for path in folder.glob("[!.]*")])
    assert damaged(folder) == []
    return runs, store, folder


@pytest.fixture
def folder(original, tmp_path, monkeypatch):
    """A copy of it, which counts as committed."""
    copy = tmp_path / "figures" / FOLDER
    shutil.copytree(original[2], copy)
    monkeypatch.setenv("HARDTRAIN_COMMITTED", str(tmp_path / "figures"))
    return copy


def read(runs, folder):
    """What a notebook reads that trains nothing: numbers, histories, times, by the run's key."""
    empty = RunStore(folder.parents[2] / "empty")
    frame = run_missing(runs, empty, train_missing=False)
    numbers = {row["key"]: repr(row) for row in frame.drop(columns="source").to_dict("records")}
    history, timings = load_history(frame, empty), load_timings(frame, empty)
    assert environments(frame, empty) == ""
    parts = ({key: rows.dropna(axis=1, how="all").to_csv() for key, rows in table.groupby("key")}
             for table in (history.reset_index(drop=True), timings))  # fmt: skip
    histories, times = ({k: v.split("\n", 1)[0] + _without_index(v) for k, v in part.items()}
                        for part in parts)  # fmt: skip
    return {key: (numbers[key], histories.get(key), times.get(key)) for key in numbers}


def _without_index(text):
    return "\n".join(line.partition(",")[2] for line in text.splitlines()[1:])


def edited(rng, content, other):
    """One cut, bit flip, changed digit, swap, copy or loss of a line, swap of two cells, or what
    is in another file."""
    kind = rng.choice(("cut", "flip", "digit", "lines", "cells", "copied", "lost", "other"))
    lines = content.splitlines(keepends=True)
    if kind == "cut":
        return kind, content[: rng.randrange(len(content))]
    if kind == "other":
        return kind, other
    if kind in ("copied", "lost"):
        line = rng.choice(lines)
        return kind, content.replace(line, line * 2 * (kind == "copied"), 1)
    changed = bytearray(content)
    if kind == "digit" and (places := [i for i, byte in enumerate(content) if 48 <= byte < 58]):
        place = rng.choice(places)
        changed[place] = rng.choice([byte for byte in range(48, 58) if byte != content[place]])
    elif kind in ("lines", "cells") and len(lines) > 3:
        a, b = rng.sample(range(1, len(lines)), 2)
        if kind == "cells":
            first, second = lines[a].split(b","), lines[b].split(b",")
            column = rng.randrange(min(len(first), len(second)))
            first[column], second[column] = second[column], first[column]
            lines[a], lines[b] = b",".join(first), b",".join(second)
        else:
            lines[a], lines[b] = lines[b], lines[a]
        changed = b"".join(lines)
    else:
        place = rng.randrange(len(content))
        changed[place] ^= 1 << rng.randrange(8)
    return kind, bytes(changed)


def test_random_edits_give_no_wrong_number_and_no_raw_error(original, folder, tmp_path):
    runs, _, _ = original
    rng, seen = random.Random(0), Counter()
    expected = read(runs, folder)
    expected_claims = all_claims(folder.parents[1])
    assert len(expected) == len(runs)
    assert len(expected_claims) == 1
    for _ in range(EDITS):
        path, other = rng.sample(sorted(folder.glob("[!.]*")), 2)
        content = path.read_bytes()
        kind, changed = edited(rng, content, other.read_bytes())
        if changed == content:
            continue
        path.write_bytes(changed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = read(runs, folder)
            except HardtrainError:
                found = {}
                caught = ["refused"]
            try:
                claims = all_claims(folder.parents[1])
            except RecordError:
                claims = None
            arrays = figure_data("fig_1_squares", square, tmp_path, size=500)
        assert found.items() <= expected.items(), (path.name, kind)  # right or not there
        assert caught or len(found) == len(expected), (path.name, kind)  # and then said
        assert claims is None or claims.equals(expected_claims), kind
        assert (arrays["values"] == np.arange(500) ** 2).all(), (path.name, kind)
        same = path.name == committed.CHECKSUMS and _json(changed) == _json(content)
        assert damaged(folder) or same, (path.name, kind, changed)  # as make test says
        seen["right" if len(found) == len(expected) else "left out"] += 1
        seen[path.name] += 1
        seen[kind] += 1
        path.write_bytes(content)
    assert seen["right"] > EDITS / 5  # as derived files were edited
    assert seen["left out"] > EDITS / 10
    print(dict(seen))


def _json(content):
    try:
        return json.loads(content)
    except ValueError:
        return None


# --- each kind of edit ---------------------------------------------------------------------------


def change(path, old, new):
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))


def test_an_edited_number_is_named_and_not_drawn(original, folder):
    runs, _, _ = original
    rows = list(csv.reader(io.StringIO((folder / "results.csv").read_text())))
    column = rows[0].index("test_error")
    change(folder / "results.csv", rows[1][column], "0.0001")
    with pytest.warns(UserWarning, match=r"1 of 5 runs in .*quick: results.csv missing, torn or"):
        found = run_missing(runs, RunStore(folder / "empty"), train_missing=False)
    assert runs[0].key not in set(found["key"])
    assert len(found) == 4


def test_swapped_keys_are_noticed(original, folder):
    a, b = (run.key for run in original[0][:2])
    text = (folder / "results.csv").read_text()
    (folder / "results.csv").write_text(text.replace(a, "x").replace(b, a).replace("x", b))
    with pytest.warns(UserWarning, match="2 of 5 runs"):
        assert len(read_folder(folder)) == 3


@pytest.mark.parametrize("name", ["history.csv", "timings.csv"])
def test_a_row_that_is_gone_costs_its_run(original, folder, name):
    lines = (folder / name).read_text().splitlines(keepends=True)
    (folder / name).write_text("".join(lines[:-1]))
    with pytest.warns(UserWarning, match=f"1 of 5 runs in .*: {name} missing"):
        assert len(read_folder(folder)) == 4


def test_a_row_of_results_that_is_gone_is_noticed(folder):
    lines = (folder / "results.csv").read_text().splitlines(keepends=True)
    (folder / "results.csv").write_text("".join(lines[:-1]))
    with pytest.warns(UserWarning, match="1 of 5 runs"):
        assert len(read_folder(folder)) == 4


def test_lost_runs_are_made_again_and_the_folder_repaired(original, folder):
    runs, store, first = original
    (folder / "history.csv").write_text("key,epoch\n")
    with pytest.warns(UserWarning, match=r"history.csv missing"):
        frame = run_missing(runs, store)
    with pytest.warns(UserWarning, match=r"history.csv missing"):
        write_results(frame, store, folder)
    for name in TABLES:
        assert (folder / name).read_bytes() == (first / name).read_bytes()
    assert damaged(folder) == []


def test_files_that_git_or_windows_wrote_anew_still_count(folder):
    (folder / committed.CHECKSUMS).unlink()
    for name in TABLES:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content.replace(b"\n", b"\r\n"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_folder(folder)) == 5


def test_a_folder_of_an_older_version_is_read(original, folder):
    (folder / committed.CHECKSUMS).unlink()
    for name in ("results.csv", "timings.csv"):
        frame = read_csv(folder / name).drop(columns="digest")
        frame.to_csv(folder / name, index=False)
    assert len(read_folder(folder)) == 5
    assert damaged(folder) == [f"{folder} has no checksums.json: run make notebooks"]


@pytest.mark.parametrize("content", [b"", b"model,accuracy\nresnet,0.9\n", b'"', b"\xff\xfe"])
def test_tables_of_another_program_are_ignored(tmp_path, monkeypatch, content):
    monkeypatch.setenv("HARDTRAIN_COMMITTED", str(tmp_path))
    path = tmp_path / "exp1" / "run1" / "results.csv"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    for sums in ("", "[1]", '{"files": {"model.pt": "x"}, "runs": 3}'):
        (path.parent / committed.CHECKSUMS).write_text(sums)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert committed.committed_results() == {}


def test_files_that_no_notebook_wrote_are_noticed(folder):
    (folder / "table_9_old.csv").write_text("a\n1\n")
    assert damaged(folder) == [
        f"{folder / 'table_9_old.csv'} is none of the files that its notebook wrote"
    ]


def test_digests_do_not_depend_on_how_a_number_is_written():
    row = {"key": "007", "seed": 3, "lr": 0.1, "nesterov": True, "label_noise_seed": None}
    as_text = {"key": "007", "seed": "3", "lr": "0.1", "nesterov": "True", "digest": "x"}
    as_floats = row | {"seed": np.float64(3.0), "label_noise_seed": float("nan")}
    assert committed.digest(row, []) == committed.digest(as_text, [])
    assert committed.digest(row, []) == committed.digest(as_floats, [])
    for change in ({"key": "7"}, {"seed": 4}, {"lr": 0.1 + 1e-17 * 2}, {"nesterov": False}):
        assert committed.digest(row | change, []) != committed.digest(row, [])
    large = {"seed": 2**63 - 1}
    assert committed.digest(large, []) != committed.digest({"seed": 2**63 - 2}, [])
    assert committed.digest(row, [{"step": 1}]) != committed.digest(row, [])


# --- written together or not at all --------------------------------------------------------------


@pytest.mark.parametrize("fail_at", range(4))
def test_a_full_disk_changes_none_of_a_folders_tables(original, folder, monkeypatch, fail_at):
    runs, store, _ = original
    before = {name: (folder / name).read_bytes() for name in TABLES}
    fsync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > fail_at:
            raise OSError(28, "No space left on device")
        fsync(handle)

    frame = run_missing(runs[:1], store, use_committed=False)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        write_results(frame, store, folder)
    monkeypatch.setattr(os, "fsync", fsync)
    assert {name: (folder / name).read_bytes() for name in TABLES} == before
    assert len(read_folder(folder)) == 5
    write_results(frame, store, folder)
    assert len(read_folder(folder)) == 5


@pytest.mark.parametrize("renamed", range(4))
def test_a_kill_between_two_files_loses_no_run_that_stood_there(
    original, folder, tmp_path, monkeypatch, renamed
):
    runs, store, first = original
    (folder / "nothing").mkdir()
    few = folder / "nothing"
    write_results(run_missing(runs[:2], store, use_committed=False), store, few)
    replace, calls = os.replace, []

    def killed(source, target):
        calls.append(target)
        if len(calls) > renamed:
            raise KeyboardInterrupt
        replace(source, target)

    frame = run_missing(runs, store, use_committed=False)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_results(frame, store, few)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_folder(few)) == (5 if renamed == 3 else 2)  # all of a run or nothing
    write_results(frame, store, few)
    for name in TABLES:
        assert (few / name).read_bytes() == (first / name).read_bytes()


def write_one(store, folder, runs, barrier):
    frame = run_missing(runs, store, use_committed=False)
    barrier.wait()
    write_results(frame, store, folder)


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_several_programs_that_write_one_folder_lose_nothing(original, tmp_path):
    runs, store, _ = original
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(runs))
    writers = [
        context.Process(target=write_one, args=(store, tmp_path / "out", [run], barrier))
        for run in runs
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * len(runs)
    for name in ("results.csv", "timings.csv"):
        assert set(read_csv(tmp_path / "out" / name)["key"]) == {run.key for run in runs}
    assert len(read_folder(tmp_path / "out")) == len(runs)


def test_a_folder_is_sealed_by_one_program_at_a_time(folder):
    sealed = threading.Event()

    def seal():
        seal_folder(folder, ["claims.csv"])
        sealed.set()

    with committed.folder_lock(folder):
        thread = threading.Thread(target=seal)
        thread.start()
        assert not sealed.wait(0.2)
    assert sealed.wait(60)
    thread.join()


# --- several machines ----------------------------------------------------------------------------


@pytest.fixture
def elsewhere(original, tmp_path):
    """The same runs as another machine computed them: the last digit of one number differs."""
    folder = tmp_path / "elsewhere"
    entries = read_folder(original[2])
    row = dict(entries[0].row)
    row["test_loss"] = repr(float(row["test_loss"]) + 1e-9)
    changed = [committed.Entry(row, entries[0].history, entries[0].timings), *entries[1:3]]
    other = [entry._replace(timings=dict(entry.timings) | {"torch": "9.9"}) for entry in changed]
    folder.mkdir()
    committed.write_folder(folder, other)
    return folder


def test_results_of_two_machines_merge_and_keep_both_numbers(original, elsewhere, tmp_path,
                                                             monkeypatch):  # fmt: skip
    runs, store, here = original
    out = tmp_path / "figures" / FOLDER
    assert merge_results([here, elsewhere], out) == 1
    entries = read_folder(out)
    assert Counter(entry.row["key"] for entry in entries)[runs[0].key] == 2
    assert len(entries) == 6
    monkeypatch.setenv("HARDTRAIN_COMMITTED", str(tmp_path / "figures"))
    frame = run_missing(runs, RunStore(tmp_path / "empty"))
    assert frame["test_loss"][0] == float(read_folder(here)[0].row["test_loss"])  # the first
    assert "1 runs have other numbers in another environment" in environments(frame)
    history = load_history(frame)
    assert len(history[history["key"] == runs[0].key]) == 3  # of one of them, not of both
    assert set(load_timings(frame)["torch"]) == {torch.__version__}  # the first ones', too
    (out / committed.CHECKSUMS).unlink()  # as after a merge of lines by git
    times = [entry.timings for entry in entries]
    assert [entry.timings for entry in read_folder(out)] == times
    assert times.count(times[0]) == 1
    write_results(run_missing(runs[1:2], store), store, out)  # which keeps both, too
    assert len(read_folder(out)) == 6


def test_runs_that_stand_where_others_are_merged_to_stay(original, elsewhere, tmp_path):
    _, _, here = original
    out = tmp_path / "out"
    merge_results([here], out)
    stood = {entry.row["digest"] for entry in read_folder(out)}
    merge_results([elsewhere], out)
    digests = {entry.row["digest"] for entry in read_folder(out)}
    assert digests == stood | {entry.row["digest"] for entry in read_folder(elsewhere)}
    assert len(digests) > len(stood)


def test_what_holds_no_results_is_not_merged(original, tmp_path):
    with pytest.raises(StoreError, match=r"none has no results\.csv"):
        merge_results([original[2], tmp_path / "none"], tmp_path / "out")
    with pytest.raises(ParameterError, match="folders is empty"):
        merge_results([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_of_several_environments_says_so(original, elsewhere, monkeypatch, tmp_path):
    runs, store, here = original
    monkeypatch.setenv("HARDTRAIN_COMMITTED", str(tmp_path / "none"))
    assert environments(run_missing(runs, store), store) == ""
    out = tmp_path / "figures" / FOLDER
    first = read_folder(elsewhere)[1:3]
    rest = [e for e in read_folder(here) if e.row["key"] not in {x.row["key"] for x in first}]
    out.mkdir(parents=True)
    committed.write_folder(out, [*first, *rest])
    monkeypatch.setenv("HARDTRAIN_COMMITTED", str(tmp_path / "figures"))
    note = environments(run_missing(runs, RunStore(tmp_path / "empty")))
    assert note.startswith("runs of 2 environments (device, threads, cpu_capability, torch): 3 on")
    assert "2 on cpu" in note
    assert "9.9" in note


def test_numbers_that_are_replaced_are_said(original, elsewhere):
    runs, store, _ = original
    with pytest.warns(UserWarning, match=r"1 runs had other numbers here.*they are replaced"):
        write_results(run_missing(runs, store, use_committed=False), store, elsewhere)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_results(run_missing(runs, store, use_committed=False), store, elsewhere)


def test_tables_that_are_none_are_our_errors(tmp_path):
    for content in (b"", b'a,b\n"1', b"a,a\n1,2\n", b"\xff\n"):
        (tmp_path / "t.csv").write_bytes(content)
        with pytest.raises(RecordError, match=r"t\.csv is no table"):
            read_csv(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(b"a,b\n1\n")
    with pytest.raises(RecordError, match="1 rows have more or fewer cells"):
        read_csv(tmp_path / "t.csv")
    with pytest.raises(StoreError, match="could not read"):
        read_csv(tmp_path / "none.csv")
    assert files.StoreError is StoreError
