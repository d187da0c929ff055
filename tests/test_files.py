"""Paths that a user gives, temporary files, and file systems that cannot do everything."""

import errno
import fcntl
import os
import stat
import threading
import warnings

import filelock
import pytest

from hardtrain import (
    DataError,
    HardtrainError,
    ParameterError,
    RunStore,
    StoreError,
    files,
    load_dataset,
    run_missing,
    write_results,
)
from hardtrain.data.downloads import data_root
from hardtrain.files import user_path, write_atomically, write_together


@pytest.fixture(autouse=True)
def _no_committed(tmp_path, monkeypatch):
    monkeypatch.setenv("HARDTRAIN_COMMITTED", str(tmp_path / "committed"))


# --- names ---------------------------------------------------------------------------------------

NO_PATHS = ["x" * 5000, "a\0b", "~nobody-is-called-so/x"]


@pytest.mark.parametrize("name", NO_PATHS)
def test_names_that_can_be_no_path_are_refused_by_the_name_of_the_parameter(
    tmp_path, tiny_run, monkeypatch, name
):
    given = name if name.startswith("~") else str(tmp_path / name)
    with pytest.raises(ParameterError, match=r"out_dir = .* can be no path: "):
        user_path("out_dir", given)
    with pytest.raises(ParameterError, match="path of the run store = "):
        RunStore(given)
    with pytest.raises(ParameterError, match="data set = "):
        run_missing([tiny_run(dataset=given)], RunStore(tmp_path / "runs"))
    with pytest.raises(ParameterError, match="data_root = "):
        load_dataset("mnist", "train", root=given, download=False)
    if "\0" not in given:
        monkeypatch.setenv("HARDTRAIN_DATA", given)
        with pytest.raises(ParameterError, match="HARDTRAIN_DATA = "):
            data_root()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("value", [5, None, b"folder", ["a"]])
def test_what_is_no_path_is_refused(value):
    with pytest.raises(ParameterError, match=r"out_dir = .* is \w+, not a path"):
        user_path("out_dir", value)


def test_a_path_is_shown_shortened():
    with pytest.raises(ParameterError) as error:
        user_path("out_dir", "x" * 5000)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("name", ["", " ", "a\nb", "../x", "ä {b} $c"])
def test_other_names_work_or_are_our_errors(tmp_path, tiny_run, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HardtrainError):
        run_missing([tiny_run(dataset=f"{name} nothing")], RunStore(tmp_path / "runs"))
    store = RunStore(tmp_path / f"runs {name}")
    assert run_missing([tiny_run(epochs=1)], store)["status"].item() == "finished"


def test_no_home_is_no_raw_error(monkeypatch):
    monkeypatch.delenv("HARDTRAIN_DATA", raising=False)
    monkeypatch.setattr(
        "hardtrain.data.downloads.platformdirs.user_cache_path",
        lambda _: files.Path("~nobody-is-called-so/.cache"),
    )
    with pytest.raises(ParameterError, match="the cache folder = "):
        data_root()

    def homeless(_):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr("hardtrain.data.downloads.platformdirs.user_cache_path", homeless)
    with pytest.raises(DataError, match="set HARDTRAIN_DATA to one"):
        data_root()


def test_a_pipe_is_no_data_set(tmp_path):
    os.mkfifo(tmp_path / "pipe_train.npz")
    with pytest.raises(HardtrainError, match="pipe"):
        load_dataset(tmp_path / "pipe", "train")


# --- temporary files -----------------------------------------------------------------------------


def test_threads_and_containers_write_one_file_without_losing_a_temporary_one(tmp_path):
    errors = []

    def write(number):
        try:
            for _ in range(20):
                write_atomically(tmp_path / "a", bytes([number]) * 1000)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set((tmp_path / "a").read_bytes())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "00000000")
    link = tmp_path / f".a.00000000.{files._HOST}.{os.getpid()}.partial"
    link.symlink_to(victim)
    with pytest.raises(StoreError, match=r"could not write .*a "):
        write_atomically(tmp_path / "a", b"new")
    assert victim.read_text() == "mine"


def test_another_containers_temporary_file_is_kept_until_it_is_a_day_old(tmp_path):
    name = files._HOST.rpartition("-")[0]  # the same host name, another start or namespace
    partial = tmp_path / f".a.12345678.{name}-00000000.99999999.partial"
    partial.write_bytes(b"half")
    files.remove_stale_partials(tmp_path)
    assert partial.exists()
    os.utime(partial, (0, 0))
    files.remove_stale_partials(tmp_path)
    assert not partial.exists()


def test_the_temporary_file_of_a_living_process_is_kept(tmp_path):
    partial = tmp_path / f".a.12345678.{files._HOST}.{os.getpid()}.partial"
    partial.write_bytes(b"half")
    files.remove_stale_partials(tmp_path)
    assert partial.exists()


def test_of_several_files_none_is_changed_if_one_cannot_be_written(tmp_path):
    write_together({tmp_path / "a": b"old", tmp_path / "b": b"old"})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError, match=r"could not write .*b: No space left"):
        write_together({tmp_path / "a": b"new", tmp_path / "b": full})
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"old", b"old"]
    assert len(list(tmp_path.iterdir())) == 2


# --- file systems --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_works_and_says_so_once(
    tmp_path, tiny_run, monkeypatch, number
):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(files, "_warned", set())
    store = RunStore(tmp_path / "runs")
    with pytest.warns(UserWarning, match="locks lies on a file system without") as seen:
        frames = [run_missing([tiny_run(seed=s, epochs=1)], store) for s in (0, 1)]
    write_results(frames[0], store, tmp_path / "figures")
    assert [frame["status"].item() for frame in frames] == ["finished"] * 2
    assert len(seen) == 1  # of one disk, whatever is written there


def test_a_disk_that_fails_to_lock_is_one_error_at_the_start(tmp_path, tiny_run, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    monkeypatch.setattr("hardtrain.training.loop.fit", None)
    with pytest.raises(StoreError, match=r"could not make .*Input/output error"):
        run_missing([tiny_run()], RunStore(tmp_path))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_flushes_no_folders_works_and_says_so(
    tmp_path, tiny_run, monkeypatch, number
):
    fsync = os.fsync

    def no_folders(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", no_folders)
    monkeypatch.setattr(files, "_warned", set())
    with pytest.warns(UserWarning, match="flushes no folders") as seen:
        frame = run_missing([tiny_run(epochs=1)], RunStore(tmp_path))
    assert frame["status"].item() == "finished"
    assert len(seen) == 1


def test_another_users_lock_file_does_not_block_a_shared_store(tmp_path):
    with files.lock(tmp_path / "a.lock"):
        assert stat.S_IMODE((tmp_path / "a.lock").stat().st_mode) == 0o666


def test_a_lock_that_is_denied_is_our_error(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(filelock.FileLock, "acquire", denied)
    with pytest.raises(StoreError, match=r"could not lock .*a\.lock: Permission denied"):
        files.lock(tmp_path / "a.lock").acquire()


def test_an_ordinary_file_system_says_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with files.lock(tmp_path / "a.lock"):
            write_atomically(tmp_path / "a", b"x")
        with files.lock(tmp_path / "a.lock").acquire(blocking=False):
            pass
