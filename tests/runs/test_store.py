"""What a store's files withstand: torn and flipped bytes, full disks, other writers' leavings."""

import errno
import io
import json
import os
import pickle
import stat
import subprocess
import sys
import time
import warnings

import filelock
import numpy as np
import pytest
import torch

from hardtrain import (
    HardtrainError,
    ParameterError,
    RecordError,
    RunStore,
    StoreError,
    files,
    load_artefact,
    load_history,
    run_missing,
    write_results,
)
from hardtrain.files import remove_stale_partials, sha256, write_atomically

KEY, FINGERPRINT = "3f9a2c" + 14 * "0", "d41d8c" + 58 * "1"
RECORD = {
    "key": KEY,
    "fingerprint": FINGERPRINT,
    "status": "finished",
    "metrics": {"test_error": 0.1 + 0.2, "test_loss": 1e-300, "diverged_step": None},
    "history": [{"epoch": 0.5, "step": 3, "lr": 1 / 3}, {"epoch": 1.0, "step": 6, "lr": 5e21}],
    "run": {"dataset": "ä b", "milestones": [1, 2], "nesterov": False},
}


@pytest.fixture(autouse=True)
def _no_committed(tmp_path, monkeypatch):
    monkeypatch.setenv("HARDTRAIN_COMMITTED", str(tmp_path / "committed"))


@pytest.fixture
def ready(store):
    """A store whose folders exist."""
    store.open()
    return store


def record_path(store):
    return store.path / "records" / f"{KEY}-{FINGERPRINT[:8]}.json"


def checkpoint_path(store, generation):
    return store.path / "checkpoints" / f"{KEY}-{FINGERPRINT[:8]}.{generation}.pt"


def contents(folder):
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- writing whole or not at all -----------------------------------------------------------------


class Disk:
    """Counts what writing does, in order, and fails from the ``fail_at``-th call on (from 0)."""

    def __init__(self, monkeypatch):
        self.calls, self.fail_at = [], None
        replace, fsync, disk = os.replace, os.fsync, self

        class File(io.FileIO):
            def write(self, data):
                try:
                    disk.call("write", self.name)
                except OSError:
                    super().write(bytes(data)[: len(data) // 2])
                    raise
                return super().write(data)

        def recorded_fsync(handle):
            folder = stat.S_ISDIR(os.fstat(handle).st_mode)
            self.call("fsync folder" if folder else "fsync", handle)
            fsync(handle)

        def recorded_replace(source, target):
            self.call("replace", target)
            replace(source, target)

        monkeypatch.setattr(files, "open", lambda path, mode: File(path, mode), raising=False)
        monkeypatch.setattr(os, "fsync", recorded_fsync)
        monkeypatch.setattr(os, "replace", recorded_replace)

    def call(self, name, what):
        self.calls.append((name, what))
        if self.fail_at is not None and len(self.calls) > self.fail_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @property
    def names(self):
        return [name for name, _ in self.calls]


@pytest.mark.skipif(not hasattr(os, "O_DIRECTORY"), reason="this system opens no folders")
def test_writing_flushes_before_it_renames(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    write_atomically(tmp_path / "a", b"old")
    assert disk.names == ["write", "fsync", "replace", "fsync folder"]
    disk.calls.clear()
    write_atomically(tmp_path / "a", lambda file: [file.write(b"ne"), file.write(b"w")])
    assert disk.names == ["write", "write", "fsync", "replace", "fsync folder"]
    assert disk.calls[3][1] == tmp_path / "a"
    assert contents(tmp_path) == {str(tmp_path / "a"): b"new"}


def test_a_checkpoint_is_never_the_only_one_in_danger(ready, monkeypatch):
    """The old one is moved away first, so one of the two is whole at every moment."""
    ready.save_checkpoint(KEY, FINGERPRINT, {"epoch": 1})
    disk = Disk(monkeypatch)
    ready.save_checkpoint(KEY, FINGERPRINT, {"epoch": 2})
    moves = [(name, getattr(what, "name", "")) for name, what in disk.calls if name == "replace"]
    newest, previous = (checkpoint_path(ready, g).name for g in ("newest", "previous"))
    assert moves == [("replace", previous), ("replace", newest)]
    for fail_at in range(6):
        disk.calls.clear()
        disk.fail_at = fail_at
        with pytest.raises(StoreError) if fail_at < 5 else warnings.catch_warnings():
            ready.save_checkpoint(KEY, FINGERPRINT, {"epoch": 3})
        assert ready.load_checkpoint(KEY, FINGERPRINT)["epoch"] in (2, 3)
        disk.fail_at = None
        ready.save_checkpoint(KEY, FINGERPRINT, {"epoch": 2})


@pytest.mark.parametrize("fail_at", range(4))
def test_a_full_disk_leaves_the_old_file_or_the_new(tmp_path, monkeypatch, fail_at):
    path = tmp_path / "a"
    write_atomically(path, b"old")
    disk = Disk(monkeypatch)
    disk.fail_at = fail_at
    with pytest.raises(
        StoreError, match=r"could not write .*a \(3 bytes\): No space left"
    ) as error:
        write_atomically(path, b"new")
    assert isinstance(error.value, OSError)
    assert contents(tmp_path) == {str(path): b"new" if fail_at == 3 else b"old"}


def test_a_write_that_is_interrupted_leaves_nothing_behind(tmp_path):
    write_atomically(tmp_path / "a", b"old")

    def interrupted(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", interrupted)
    assert contents(tmp_path) == {str(tmp_path / "a"): b"old"}


def test_a_sweep_on_a_disk_that_is_full_goes_on_when_there_is_room(tmp_path, tiny_run):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root mounts disks")
    runs = [tiny_run(seed=seed, epochs=1, keep=["final_weights"]) for seed in range(4)]
    try:
        store = RunStore(disk / "runs", checkpoint_seconds=0.0)
        with pytest.raises(StoreError, match=r"could not .*: No space left on device"):
            run_missing(runs, store)
        finished = len(list(store.path.glob("records/*.json")))
        assert 0 < finished < 4
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        frame = run_missing(runs, store)
        assert frame.equals(run_missing(runs, RunStore(tmp_path / "undisturbed")))
        assert not list(store.path.rglob("*.partial"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_sweep_on_a_full_disk_can_be_repeated(tmp_path, tiny_run, monkeypatch):
    short = {"train_size": 16, "test_size": 3}
    runs = [
        tiny_run(**short, epochs=3),  # two checkpoints, so that one is moved away
        tiny_run(**short, epochs=1, method="trimming", keep=["features"]),
    ]
    names = ("results.csv", "history.csv")

    def sweep(folder):
        store = RunStore(folder / "runs", checkpoint_seconds=0)
        write_results(run_missing(runs, store), store, folder / "out")
        return [(folder / "out" / name).read_bytes() for name in names]

    disk = Disk(monkeypatch)
    expected = sweep(tmp_path / "undisturbed")
    num_calls = len(disk.calls)
    assert num_calls > 30
    for fail_at in range(num_calls):
        folder = tmp_path / str(fail_at)
        disk.calls.clear()
        disk.fail_at = fail_at
        with pytest.raises(StoreError, match=str(folder)):
            sweep(folder)
        disk.fail_at = None
        before = contents(folder / "runs" / "records")
        assert sweep(folder) == expected
        after = contents(folder / "runs" / "records")
        assert before.items() <= after.items()  # what was finished was not made again
        assert not list(folder.rglob("*.partial"))
        assert not (folder / "runs" / "quarantine").exists()


# --- records -------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was(ready):
    ready.save(RECORD)
    loaded = ready.load(KEY, FINGERPRINT)
    assert loaded == RECORD | {"schema": 1}
    assert ready.load(KEY, None) == loaded
    assert ready.load(KEY, "d41d8c" + 58 * "2") is None
    assert ready.load(KEY[::-1], FINGERPRINT) is None
    assert ready.load(KEY, FINGERPRINT[:8] + 56 * "2") is None  # the first digits are not enough


def test_records_of_data_that_is_not_at_hand_are_looked_up_with_one_listing(ready, monkeypatch):
    for number in range(20):
        ready.save(RECORD | {"key": f"{number:020x}"})
    listings, glob = [], type(ready.path).glob
    monkeypatch.setattr(
        type(ready.path), "glob", lambda *args: listings.append(args) or glob(*args)
    )
    for number in range(20):
        assert ready.load(f"{number:020x}", None)["key"] == f"{number:020x}"
    assert len(listings) == 1
    folder, now = ready.path / "records", time.monotonic()
    before = folder.stat().st_mtime_ns
    ready.save(RECORD | {"key": "f" * 20})
    os.utime(folder, ns=(before, before))  # saved within one tick of the file system's clock
    monkeypatch.setattr(time, "monotonic", lambda: now + 2)
    assert ready.load("f" * 20, None)["key"] == "f" * 20
    assert ready.load("e" * 20, None) is None


def test_a_record_holds_no_nan(ready):
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            ready.save(RECORD | {"metrics": {"test_loss": value}})
    assert ready.load(KEY, FINGERPRINT) is None


def test_a_record_truncated_or_flipped_anywhere_gives_no_wrong_value(ready):
    ready.save(RECORD)
    path = record_path(ready)
    content = path.read_bytes()
    whole = ready.load(KEY, FINGERPRINT)
    damaged = [content[:length] for length in range(len(content))]
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        damaged.append(bytes(flipped))
    accepted = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for case in damaged:
            path.write_bytes(case)
            loaded = ready.load(KEY, FINGERPRINT)
            assert loaded is None or repr(loaded) == repr(whole)
            assert path.exists() == (loaded is not None)
            accepted += loaded is not None
    assert accepted <= 3  # such as E for e in a number's exponent
    assert len(caught) == len(damaged) - accepted
    assert not path.exists()


def test_a_damaged_record_is_set_aside_and_its_run_made_again(store, tiny_run):
    frame = run_missing([tiny_run()], store)
    history = load_history(frame, store)
    (path,) = store.path.glob("records/*.json")
    path.write_bytes(path.read_bytes().replace(b'"test_error": 0.', b'"test_error": 1.'))
    damaged = path.read_bytes()
    with pytest.warns(
        UserWarning, match=r"is torn, edited or of another run or version; set aside in"
    ) as seen:
        again = run_missing([tiny_run()], store)
    assert len(seen) == 1
    assert again.equals(frame)
    assert load_history(again, store).equals(history)
    (aside,) = (store.path / "quarantine").iterdir()
    assert aside.read_bytes() == damaged
    assert aside.name.startswith(path.stem)


def test_a_record_of_another_run_is_not_taken(ready):
    ready.save(RECORD)
    other = KEY[::-1]
    record_path(ready).rename(ready.path / "records" / f"{other}-{FINGERPRINT[:8]}.json")
    with pytest.warns(UserWarning, match="of another run"):
        assert ready.load(other, FINGERPRINT) is None


def test_a_record_of_a_newer_hardtrain_is_refused_and_left_alone(ready):
    body = RECORD | {"schema": 2}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    text = json.dumps(body | {"sha256": sha256(canonical)})
    record_path(ready).write_text(text)
    with pytest.raises(RecordError, match=r"written by a newer hardtrain \(schema 2\)"):
        ready.load(KEY, FINGERPRINT)
    assert record_path(ready).read_text() == text


def test_a_record_of_schema_1_is_read_for_good(ready):
    """As version 0.1.0 wrote it, to the byte: this test stays when the schema goes on."""
    record = {
        "schema": 1,
        "key": KEY,
        "fingerprint": FINGERPRINT,
        "metrics": {"test_loss": 0.1},
        "sha256": "f182e203cb89faecf3f7032fc897cf02e4119f802d77148b5472ed66c3a900bb",
    }
    record_path(ready).write_text(json.dumps(record, indent=1))
    assert ready.load(KEY, FINGERPRINT)["metrics"] == {"test_loss": 0.1}


def test_foreign_files_are_ignored(store, tiny_run):
    frame = run_missing([tiny_run()], store)
    foreign = {
        store.path / "records" / ".DS_Store": b"\0\1",
        store.path / "records" / "notes.txt": b"mine",
        store.path / "records" / f"{frame['key'][0]}.json": b"{",
        store.path / "checkpoints" / "model.pt": b"?",
        store.path / "README": b"",
    }
    for path, content in foreign.items():
        path.write_bytes(content)
    assert run_missing([tiny_run(), tiny_run(seed=1)], store)["status"].eq("finished").all()
    assert store.load(frame["key"][0], None)["key"] == frame["key"][0]
    assert foreign.items() <= {p: p.read_bytes() for p in foreign}.items()


def test_unreadable_files_are_store_errors(ready):
    record_path(ready).mkdir()
    checkpoint_path(ready, "newest").mkdir()
    with pytest.raises(StoreError, match=r"could not read .*json"):
        ready.load(KEY, FINGERPRINT)
    with pytest.raises(StoreError, match=r"could not read .*newest\.pt"):
        ready.load_checkpoint(KEY, FINGERPRINT)


# --- what dead processes leave -------------------------------------------------------------------


def test_partial_files_of_dead_processes_are_removed(tmp_path, monkeypatch):
    dead = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-c", ""])
    os.waitpid(dead, 0)
    host = files._HOST
    gone = [tmp_path / f".r.json.{host}.{dead}.partial"]
    kept = [
        tmp_path / f".r.json.{host}.{os.getpid()}.partial",
        tmp_path / f".r.json.{host}.{os.getppid()}.partial",
        tmp_path / f".r.json.elsewhere.{dead}.partial",  # that host's processes are not seen here
        tmp_path / "mine.partial",
        tmp_path / f".{host}.x.partial",
    ]
    for path in gone + kept:
        path.write_bytes(b"half")
    remove_stale_partials(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_partial_files_of_another_users_processes_are_kept(tmp_path, monkeypatch):
    def not_permitted(*_):
        raise PermissionError

    monkeypatch.setattr(os, "kill", not_permitted)
    partial = tmp_path / f".r.json.{files._HOST}.1.partial"
    partial.touch()
    remove_stale_partials(tmp_path)
    assert partial.exists()


def test_opening_a_store_removes_the_partial_files_of_the_dead(ready):
    dead = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-c", ""])
    os.waitpid(dead, 0)
    for name in ("records", "checkpoints", "artefacts", "locks"):
        (ready.path / name / f".x.{files._HOST}.{dead}.partial").touch()
    ready.open()
    assert contents(ready.path) == {}  # the probe for writing is gone too


# --- checkpoints ---------------------------------------------------------------------------------


def two_checkpoints(store):
    generator = torch.Generator().manual_seed(1)
    for epoch in (1, 2):
        weights = torch.randn(50, generator=generator)
        state = {"epoch": epoch, "model": {"weight": weights}, "history": [{"lr": 0.1}]}
        store.save_checkpoint(KEY, FINGERPRINT, state)


def test_checkpoints_come_back_and_go(ready):
    assert ready.load_checkpoint(KEY, FINGERPRINT) is None
    two_checkpoints(ready)
    assert ready.load_checkpoint(KEY, FINGERPRINT)["epoch"] == 2
    assert ready.load_checkpoint(KEY[::-1], FINGERPRINT) is None
    assert ready.load_checkpoint(KEY, FINGERPRINT[::-1]) is None
    checkpoint_path(ready, "newest").unlink()
    assert ready.load_checkpoint(KEY, FINGERPRINT)["epoch"] == 1
    ready.remove_checkpoints(KEY, FINGERPRINT)
    assert ready.load_checkpoint(KEY, FINGERPRINT) is None
    assert contents(ready.path) == {}


def test_checkpoints_that_a_finished_run_left_are_removed_and_no_others(ready):
    two_checkpoints(ready)
    ready.open()
    assert ready.load_checkpoint(KEY, FINGERPRINT)["epoch"] == 2  # it has no record
    ready.save(RECORD)  # and is killed here
    os.utime(record_path(ready), (1e9, 1e9))
    ready.open()
    assert ready.load_checkpoint(KEY, FINGERPRINT)["epoch"] == 2  # trained again for an artefact
    ready.save(RECORD)
    ready.open()
    assert ready.load_checkpoint(KEY, FINGERPRINT) is None


def test_a_damaged_checkpoint_falls_back_to_the_previous_one(ready):
    two_checkpoints(ready)
    newest, previous = (checkpoint_path(ready, g) for g in ("newest", "previous"))
    content, before = newest.read_bytes(), previous.read_bytes()
    rng = np.random.default_rng(0)
    lengths = [0, 1, content.index(b"\n"), content.index(b"\n") + 1, len(content) - 1]
    damaged = [content[:n] for n in (*lengths, *rng.integers(len(content), size=95))]
    for position in (*range(130), *rng.integers(len(content), size=100)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << rng.integers(8)
        damaged.append(bytes(flipped))
    for case in damaged:
        newest.write_bytes(case)
        with pytest.warns(UserWarning, match=r"newest\.pt is torn.*; set aside in"):
            assert ready.load_checkpoint(KEY, FINGERPRINT)["epoch"] == 1
        assert not newest.exists()
        assert previous.read_bytes() == before
    newest.write_bytes(content)
    assert ready.load_checkpoint(KEY, FINGERPRINT)["epoch"] == 2


def test_two_damaged_checkpoints_mean_starting_over(ready):
    two_checkpoints(ready)
    for generation in ("newest", "previous"):
        path = checkpoint_path(ready, generation)
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"\.pt is torn") as seen:
        assert ready.load_checkpoint(KEY, FINGERPRINT) is None
    assert len(seen) == 2


def test_a_checkpoint_of_another_run_or_schema_is_refused(ready):
    two_checkpoints(ready)
    other = "0" * 20
    folder = ready.path / "checkpoints"
    checkpoint_path(ready, "newest").rename(folder / f"{other}-{FINGERPRINT[:8]}.newest.pt")
    with pytest.warns(UserWarning, match="of another run"):
        assert ready.load_checkpoint(other, FINGERPRINT) is None
    path = checkpoint_path(ready, "previous")
    path.write_bytes(path.read_bytes().replace(b'"schema": 1', b'"schema": 2', 1))
    with pytest.warns(UserWarning, match=r"previous\.pt"):
        assert ready.load_checkpoint(KEY, FINGERPRINT) is None


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"echo boom > '{self.target}'",)


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle"])
def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(ready, tmp_path, form):
    target = tmp_path / "boom"
    payload = {"epoch": 1, "model": Bomb(target)}
    file = io.BytesIO()
    if form == "pickle":
        pickle.dump(payload, file, protocol=2)
    else:
        torch.save(payload, file, _use_new_zipfile_serialization=form == "torch")
    body = file.getvalue()
    header = {"schema": 1, "key": KEY, "sha256": sha256(body)}
    checkpoint_path(ready, "newest").write_bytes(json.dumps(header).encode() + b"\n" + body)
    with pytest.warns(UserWarning, match="holds more than tensors and plain values"):
        assert ready.load_checkpoint(KEY, FINGERPRINT) is None
    assert not target.exists()
    pickle.loads(pickle.dumps(Bomb(target)))  # it would have worked
    assert target.exists()


# --- artefacts -----------------------------------------------------------------------------------


def test_an_artefact_is_checked_and_holds_no_objects(ready):
    arrays = {"a": torch.arange(3), "b": np.float32([[0.1]])}
    record = {"artefacts": {"x": ready.save_artefact(KEY, FINGERPRINT, "x", arrays)}}
    loaded = ready.load_artefact(record, "x")
    assert loaded["a"].tolist() == [0, 1, 2]
    assert loaded["b"].dtype == np.float32
    assert ready.load_artefact(record, "y") is None
    (path,) = (ready.path / "artefacts").iterdir()
    content = path.read_bytes()
    for case in (content[:-1], content[:40] + b"?" + content[41:], b""):
        path.write_bytes(case)
        with pytest.warns(UserWarning, match="is torn, edited or of another run"):
            assert ready.load_artefact(record, "x") is None
        assert not path.exists()


def test_checkpoints_stay_until_the_record_is_saved(tmp_path, tiny_run, monkeypatch):
    store, run = RunStore(tmp_path, checkpoint_seconds=0), tiny_run(epochs=3)

    def full(*_):
        raise StoreError("could not write: no space left")

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "save", full)
        with pytest.raises(StoreError, match="no space left"):
            run_missing([run], store)
    assert len(list(tmp_path.glob("checkpoints/*.pt"))) == 2
    run_missing([run], store)
    assert not list(tmp_path.glob("checkpoints/*.pt"))


# --- the folder itself ---------------------------------------------------------------------------


def test_a_store_is_found_by_argument_variable_or_repository(tmp_path, monkeypatch):
    monkeypatch.delenv("HARDTRAIN_RUNS", raising=False)
    assert RunStore().path == files.project_root() / ".runs"
    monkeypatch.setenv("HARDTRAIN_RUNS", str(tmp_path / "b"))
    assert RunStore().path == tmp_path / "b"
    assert RunStore(tmp_path / "c").path == tmp_path / "c"
    monkeypatch.chdir(tmp_path)
    assert RunStore("d").path == tmp_path / "d"
    assert not list(tmp_path.iterdir())  # asking creates nothing


@pytest.mark.parametrize("name", ["ä b {x} [1] *", "x" * 200])
def test_any_folder_name_works(tmp_path, tiny_run, name):
    store = RunStore(tmp_path / name / "runs", checkpoint_seconds=0)
    run = tiny_run(keep=["features"])
    frame = run_missing([run], store)
    assert run_missing([run], store).equals(frame)
    assert store.load(run.key, None)["key"] == run.key
    assert load_artefact(run, "features", store)["losses"].shape == (20,)


def test_a_folder_without_permission_is_refused_before_training(tmp_path, tiny_run, monkeypatch):
    def read_only(path, flags, *args, **kwargs):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, flags, *args, **kwargs)

    opened = os.open
    store = RunStore(tmp_path / "runs")
    monkeypatch.setattr(
        files, "open", lambda path, mode: os.fdopen(read_only(path, os.O_WRONLY)), raising=False
    )
    monkeypatch.setattr("hardtrain.training.loop.fit", None)
    with pytest.raises(StoreError, match=r"could not write .*Permission denied"):
        run_missing([tiny_run()], store)
    assert contents(store.path) == {}


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_read_only_store_serves_what_it_has(store, tiny_run, monkeypatch):
    frame = run_missing([tiny_run()], store)
    folders = [store.path, *(p for p in store.path.iterdir() if p.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    try:
        assert run_missing([tiny_run()], store).equals(frame)
        monkeypatch.setattr("hardtrain.training.loop.fit", None)
        with pytest.raises(StoreError, match="Permission denied"):
            run_missing([tiny_run(seed=1)], store)
    finally:
        for folder in folders:
            folder.chmod(0o700)


def test_a_finished_sweep_writes_nothing(store, tiny_run, monkeypatch):
    run = tiny_run(keep=["features"])
    run_missing([run], store)
    disk = Disk(monkeypatch)
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    run_missing([run], store)
    assert disk.calls == []
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before


# --- locks ---------------------------------------------------------------------------------------


def test_a_lock_excludes_others_and_only_of_the_same_run(ready):
    with ready.lock(KEY, FINGERPRINT):
        twin = RunStore(ready.path)
        with pytest.raises(filelock.Timeout):
            twin.lock(KEY, FINGERPRINT).acquire(blocking=False)
        twin.lock(KEY[::-1], FINGERPRINT).acquire(blocking=False).lock.release()
        twin.lock(KEY, FINGERPRINT[::-1]).acquire(blocking=False).lock.release()
    with twin.lock(KEY, FINGERPRINT).acquire(blocking=False):
        pass


def test_a_lock_file_that_was_left_behind_does_not_block(store, tiny_run):
    run = tiny_run()
    frame = run_missing([run], store)
    lock = store.lock(run.key, frame["fingerprint"][0]).lock_file
    for path in store.path.glob("records/*"):
        path.unlink()
    with open(lock, "w") as file:
        file.write("999999")
    began = time.monotonic()
    run_missing([run], store)
    assert time.monotonic() - began < 5


def test_every_error_of_the_store_is_one_of_ours():
    for error in (StoreError, RecordError):
        assert issubclass(error, HardtrainError)
        assert issubclass(error, OSError)


# --- records that are well sealed, and no records ------------------------------------------------


def sealed(record):
    body = {name: value for name, value in record.items() if name != "sha256"}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps(body | {"sha256": sha256(canonical)}).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("schema"),
        lambda r: r.update(schema="1"),
        lambda r: r.pop("fingerprint"),
        lambda r: r.pop("metrics"),
        lambda r: r.pop("status"),
        lambda r: r.pop("history"),
        lambda r: r.pop("run"),
        lambda r: r.pop("timings"),
        lambda r: r.update(status="oom"),
        lambda r: r["metrics"].update(test_error="<b>0</b>"),
        lambda r: r["history"][0].update(test_error=[]),
        lambda r: r.update(history={}),
        lambda r: r["run"].update(seed=99),
        lambda r: r["run"]["options"].update(end=0.9),
        lambda r: r["artefacts"]["final_weights"].pop("sha256"),
        lambda r: r["artefacts"]["final_weights"].update(file="../../home/important.txt"),
        lambda r: r["artefacts"]["final_weights"].update(file="/etc/passwd"),
        lambda r: r["artefacts"]["final_weights"].update(file=".."),
        lambda r: r["artefacts"]["final_weights"].update(file="C:weights.npz"),
        lambda r: r["artefacts"]["final_weights"].update(file=3),
        lambda r: r["artefacts"]["final_weights"].update(file="x" * 5000),
        lambda r: r.update(artefacts=["final_weights"]),
        lambda r: r.update(schema=0),
        lambda r: r["metrics"].clear(),
        lambda r: r["metrics"].update(test_error=10**400),
        lambda r: r["metrics"].update(per_class_error=[0.1]),
        lambda r: r["timings"].update(seconds=[1]),
        lambda r: r["timings"].pop("device"),
        lambda r: r["run"].clear(),
    ],
)
def test_a_record_with_malformed_parts_is_set_aside_before_anything_is_touched(
    store, tiny_run, change
):
    run = tiny_run(method="trimming", keep=["final_weights"], epochs=1)
    frame = run_missing([run], store)
    victim = store.path.parent / "home" / "important.txt"
    victim.parent.mkdir()
    victim.write_text("my thesis")
    (path,) = store.path.glob("records/*.json")
    record = json.loads(path.read_bytes())
    change(record)
    path.write_bytes(sealed(record))
    with pytest.warns(UserWarning, match=r"json is torn, edited or of another run or version"):
        again = run_missing([run], store)
    assert again.equals(frame)
    assert victim.read_text() == "my thesis"
    assert len(list((store.path / "quarantine").iterdir())) == 1


def test_fields_that_came_with_a_later_version_leave_old_records_valid(store, tiny_run):
    run = tiny_run(method="trimming", epochs=1)
    frame = run_missing([run], store)
    (path,) = store.path.glob("records/*.json")
    record = json.loads(path.read_bytes())
    del record["run"]["ghost_batch_size"], record["run"]["options"]["start"]
    record["run"]["abandoned_field"] = 3
    record["timings"]["new"] = "x"
    path.write_bytes(sealed(record))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_missing([run], store).equals(frame)


@pytest.mark.parametrize(
    "content",
    [b'{"a":' * 100_000, b'{"sha256": "x", "key": NaN}', b'{"key":' + b"9" * 10_000 + b"}"],
)
def test_json_that_breaks_parsers_is_set_aside(ready, content):
    record_path(ready).write_bytes(content)
    with pytest.warns(UserWarning, match="set aside"):
        assert ready.load(KEY, FINGERPRINT) is None


@pytest.mark.parametrize("value", [np.float64(1.0), files.Path("x"), {1}, np.zeros(2)])
def test_a_checkpoint_that_could_not_be_loaded_again_is_refused(ready, value):
    with pytest.raises(ParameterError, match=r"state\['method'\]\['x'\]\[0\] is .*; a checkpoint"):
        ready.save_checkpoint(KEY, FINGERPRINT, {"epoch": 1, "method": {"x": [value]}})
    assert contents(ready.path) == {}


def test_a_checkpoint_outlives_a_time_of_little_memory(ready, monkeypatch):
    state = {"epoch": 3, "weights": torch.ones(2)}
    ready.save_checkpoint("key", "f" * 64, state)

    def load(*arguments, **options):
        raise RuntimeError("can't allocate memory: you tried to allocate 4000000000 bytes")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", load)
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            ready.load_checkpoint("key", "f" * 64)
    assert ready.load_checkpoint("key", "f" * 64)["epoch"] == 3


def test_missing_records_of_data_that_is_not_at_hand_need_few_listings(ready, monkeypatch):
    listings, glob = [], type(ready.path).glob
    monkeypatch.setattr(
        type(ready.path), "glob", lambda *args: listings.append(args) or glob(*args)
    )
    assert not any(ready.load(f"key{i}", None) for i in range(300))
    assert len(listings) < 20  # one, and one a second
