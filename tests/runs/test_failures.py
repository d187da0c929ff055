"""Runs that fail in a sweep: the others are finished, all that failed are named, and a second start
trains only what can be trained."""

import dataclasses
import os
import platform
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import interrupt_after

from hardtrain import (
    HardtrainError,
    ParameterError,
    Run,
    RunStore,
    StoreError,
    SweepError,
    load_history,
    load_timings,
    run_missing,
    write_results,
)
from hardtrain.runs import progress, run_data, train
from hardtrain.runs.environment import merged
from hardtrain.runs.progress import Progress
from hardtrain.training import loop, methods, pieces
from hardtrain.training.lookup import version

LOST = getattr(torch, "AcceleratorError", RuntimeError)


@pytest.fixture(autouse=True)
def _no_committed(tmp_path, monkeypatch):
    monkeypatch.setenv("HARDTRAIN_COMMITTED", str(tmp_path / "committed"))


@pytest.fixture
def failing(monkeypatch):
    """A function: runs of these seeds do this, in place of being trained; gives who was tried."""
    fit, tried = loop.fit, []

    def install(acts):
        def fit_or_fail(run, *args, **kwargs):
            tried.append(run.seed)
            if run.seed in acts:
                acts[run.seed]()
            return fit(run, *args, **kwargs)

        monkeypatch.setattr(loop, "fit", fit_or_fail)
        return tried

    return install


def raising(error):
    def act():
        raise error

    return act


def write_set(prefix, seed):
    rng = np.random.default_rng(seed)
    for split, size in (("train", 32), ("test", 12)):
        images = rng.integers(0, 256, (size, 8, 8), dtype=np.uint8)
        np.savez(f"{prefix}_{split}.npz", images=images, labels=np.arange(size) % 3)
    return str(prefix)


@version(1)
def logs_nan(run, data, model):
    """A method whose log is no number."""
    method = methods.plain(run, data, model)
    method.log = lambda: {"gap": float("nan")}
    return method


@version(1)
def logs(run, data, model):
    """A method that logs what a test says."""
    method = methods.plain(run, data, model)
    method.log = lambda: LOGGED  # noqa: F821
    return method


def test_a_sweep_of_twenty_of_which_six_fail_finishes_fourteen(
    tmp_path, store, tiny_run, failing, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "odd_methods", sys.modules[__name__])
    runs = [tiny_run(seed=seed, epochs=1) for seed in range(20)]
    runs[9] = dataclasses.replace(runs[9], method="odd_methods:logs_nan")
    changing = write_set(tmp_path / "changing", 0)
    runs[11] = dataclasses.replace(runs[11], dataset=changing)
    save = RunStore.save

    def save_and_lose(self, record):
        save(self, record)
        if record["run"]["seed"] == 13:  # somebody tidies up
            next(self.path.glob(f"records/{record['key']}-*.json")).unlink()

    monkeypatch.setattr(RunStore, "save", save_and_lose)
    acts = {
        3: raising(MemoryError()),
        5: raising(LOST("CUDA error: unspecified launch failure")),
        7: raising(KeyError("a bug in a method")),
        10: lambda: (write_set(changing, 1), run_data._data.cache_clear()),
    }
    tried = failing(acts)
    with pytest.raises(SweepError) as error:
        run_missing(runs, store)
    assert sorted(run.seed for run, _ in error.value.failures) == [3, 5, 7, 9, 11, 13]
    text = str(error.value)
    assert text.startswith("6 of 20 runs failed, the others are finished")
    for words in ("batch_size = 16 needs more memory", "unspecified launch failure",
                  "KeyError: 'a bug in a method'", "its method logs gap = nan",
                  "changing has changed since the sweep began", "its record is gone"):  # fmt: skip
        assert words in text
    assert capsys.readouterr().err.count("failed: ") == 5  # as it happens, but for the lost record
    assert len(list(store.path.glob("records/*.json"))) == 14

    monkeypatch.setattr(RunStore, "save", save)
    for seed in (3, 5, 7, 10):
        del acts[seed]
    tried.clear()
    with pytest.raises(SweepError, match=r"1 of 6 runs failed.*\n.*logs gap = nan") as error:
        run_missing(runs, store)
    assert sorted(tried) == [3, 5, 7, 9, 11, 13]  # what is finished is not trained again
    assert isinstance(error.value, HardtrainError)


@pytest.fixture(scope="module")
def program(tiny_set, tmp_path_factory):
    """A program of another locale, time zone and hash seed that trains three runs of which one
    fails: what it said, and its folder, with the tables of the other two."""
    folder = tmp_path_factory.mktemp("program")
    code = (
        "from hardtrain import Run, RunStore, run_missing, write_results\n"
        "from hardtrain.training import loop\n"
        "fit = loop.fit\n"
        "def broken(run, *a, **k):\n"
        "    if run.seed == 1: raise MemoryError('no room')\n"
        "    return fit(run, *a, **k)\n"
        "loop.fit = broken\n"
        f"runs = [Run({tiny_set!r}, 'cnn_small', device='cpu', seed=s) for s in range(3)]\n"
        f"store = RunStore({str(folder / 'runs')!r})\n"
        "try: run_missing(runs, store, use_committed=False)\n"
        "finally: write_results(run_missing(runs[::2], store, use_committed=False), store, "
        f"{str(folder / 'out')!r})"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(train.__file__).parents[2])}
    environment |= {"LC_ALL": "de_DE.UTF-8", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    return done, folder


def test_a_program_ends_with_status_1_and_names_what_failed(program):
    done, folder = program
    assert done.returncode == 1
    assert "SweepError: 1 of 3 runs failed" in done.stderr
    assert "3 of 3 runs" in done.stderr  # no terminal: a line a finished run
    assert len(list((folder / "runs").glob("records/*.json"))) == 2


def test_tables_do_not_depend_on_locale_time_zone_and_hash_seed(program, tiny_set, tmp_path):
    store = RunStore(tmp_path / "runs")
    runs = [Run(tiny_set, "cnn_small", device="cpu", seed=seed) for seed in (0, 2)]
    write_results(run_missing(runs, store), store, tmp_path / "out")
    for name in ("results.csv", "history.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (program[1] / "out" / name).read_bytes()


@pytest.mark.parametrize(
    ("logged", "said"),
    [
        ({"gap": "wide"}, "logs gap = 'wide', which is no number"),
        ({"gap": None}, "logs gap = None, which is no number"),
        ({"gap": float("inf")}, "logs gap = inf, which is no number"),
        ({"gap": torch.tensor(float("nan"))}, "logs gap = nan, which is no number"),
        ({"test_error": 0.0}, "logs 'test_error', which is taken"),
        ({"key": 1.0}, "logs 'key', which is taken"),
        ({"digest": 1.0}, "logs 'digest', which is taken"),
    ],
)
def test_what_a_method_logs_are_numbers_under_names_of_its_own(
    store, tiny_run, monkeypatch, logged, said
):
    monkeypatch.setitem(sys.modules, "odd_methods", sys.modules[__name__])
    monkeypatch.setattr(sys.modules[__name__], "LOGGED", logged, raising=False)
    with pytest.raises(SweepError, match=said):
        run_missing([tiny_run(method="odd_methods:logs", epochs=1)], store)


def test_numbers_of_numpy_and_torch_are_logged(store, tiny_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "odd_methods", sys.modules[__name__])
    logged = {"a": np.float32(0.5), "b": torch.tensor(2), "c": 3}
    monkeypatch.setattr(sys.modules[__name__], "LOGGED", logged, raising=False)
    run = tiny_run(method="odd_methods:logs", epochs=1)
    history = load_history(run_missing([run], store), store)
    assert history[["a", "b", "c"]].iloc[0].tolist() == [0.5, 2, 3]


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, ZeroDivisionError])
def test_an_error_that_is_kept_holds_no_tensors(store, tiny_run, monkeypatch, kind):
    """Else the runs that come after one without memory have none either."""
    import gc
    import weakref

    models = []

    def full(run, model, *_, **__):
        models.append(weakref.ref(model))
        raise kind("CUDA out of memory")

    monkeypatch.setattr(loop, "fit", full)
    with pytest.raises(SweepError) as error:
        run_missing([tiny_run()], store)
    assert error.value.failures
    gc.collect()
    assert models[0]() is None


def test_a_lost_gpu_ends_a_sweep_after_the_second_run_that_finds_it_lost(store, tiny_run, failing):
    tried = failing({seed: raising(LOST("CUDA error")) for seed in (1, 2, 3)})
    if LOST is RuntimeError:
        pytest.skip("this torch has no error of its own for it")
    with pytest.raises(SweepError, match="4 of 5 runs failed") as error:
        run_missing([tiny_run(seed=seed, epochs=1) for seed in range(5)], store)
    assert tried == [0, 1, 2]
    assert sorted(run.seed for run, _ in error.value.failures) == [1, 2, 3, 4]
    said = str(error.value)
    assert said.count("not tried, since the device is lost") == 1
    assert said.count(": the same") == 2


def test_a_full_disk_ends_a_sweep_at_once(store, tiny_run, failing):
    tried = failing({1: raising(StoreError("could not write: No space left"))})
    with pytest.raises(StoreError, match="No space left"):
        run_missing([tiny_run(seed=seed, epochs=1) for seed in range(3)], store)
    assert tried == [0, 1]


def test_damaged_records_cost_their_runs_only(store, tiny_run):
    runs = [tiny_run(seed=seed, epochs=1) for seed in range(2)]
    run_missing(runs, store)
    for path in store.path.glob("records/*.json"):
        path.write_text("{")
    with pytest.warns(UserWarning, match="set aside"):
        assert len(run_missing(runs, store)) == 2


# --- what can be refused before anything is trained ----------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"method": "gradient_noise", "options": {"alpha": -1.0}}, "alpha"),
        ({"method": "gradient_noise", "options": {"gamma": -1.0}}, "gamma"),
        ({"method": "distribution_matching", "options": {"weight": -1.0}}, "weight"),
        ({"method": "active_bias", "options": {"smoothing": -1.0}}, "smoothing"),
        ({"method": "hard_batches", "options": {"delta": 0.0}}, "delta"),
    ],
)
def test_options_that_only_the_strategy_knows_are_refused_before_training(
    store, tiny_run, failing, changes, text
):
    tried = failing({})
    with pytest.raises(ParameterError, match=text):
        run_missing([tiny_run(seed=1), tiny_run(seed=2, **changes)], store)
    assert tried == []
    assert not store.path.exists()


@pytest.mark.parametrize("field", ["lr", "weight_decay", "gamma"])
def test_numbers_that_float32_cannot_hold_are_refused(tiny_run, field):
    with pytest.raises(ParameterError, match=f"{field} = 1e\\+39 is not less than 3.4"):
        tiny_run(**{field: 1e39})


def test_batches_of_one_sample_with_batch_norm_are_refused_before_training(
    store, tiny_run, failing
):
    tried = failing({})
    runs = [tiny_run(network="cnn_small_bn", batch_size=size) for size in (16, 1)]
    with pytest.raises(ParameterError, match="batch_size = 1 gives a batch of one sample"):
        run_missing(runs, store)
    assert tried == []


@pytest.mark.parametrize("batch_size", [1, 59])
def test_matching_works_with_batches_of_one_sample(store, tiny_run, batch_size):
    run = tiny_run(method="distribution_matching", batch_size=batch_size, epochs=1)
    assert run_missing([run], store)["status"].item() == "finished"


def test_features_that_matching_cannot_measure_are_a_divergence(store, tiny_run, monkeypatch):
    class_losses = pieces.class_losses
    monkeypatch.setattr(pieces, "class_losses", lambda *args: class_losses(*args) * 1)
    matching = methods.class_conditional_mmd
    monkeypatch.setattr(
        methods, "class_conditional_mmd", lambda x, a, y, *r, **k: matching(x * 1e20, a, y, *r, **k)
    )
    row = run_missing([tiny_run(method="distribution_matching")], store).iloc[0]
    assert (row["status"], row["diverged_epoch"], row["diverged_step"]) == ("diverged", 0, 0)


def test_held_out_images_that_leave_none_are_named(store, tiny_run):
    with pytest.raises(ParameterError, match=r"validation_size = 60 leaves none of the 60 .*tiny"):
        run_missing([tiny_run(validation_size=60)], store)


def test_a_training_size_that_the_set_does_not_have_is_named(store, tiny_run):
    with pytest.raises(ParameterError, match=r"train_size = 500 is more than the 60 train.*tiny"):
        run_missing([tiny_run(train_size=500)], store)


# --- lives, environments, threads ----------------------------------------------------------------


def test_lives_shorter_than_the_pause_between_checkpoints_get_on(tmp_path, tiny_run, monkeypatch):
    store, fit = RunStore(tmp_path, checkpoint_seconds=3600), loop.fit
    run, lives = tiny_run(epochs=4), []

    def short(*args, save_checkpoint, checkpoint, **kwargs):
        lives.append(checkpoint["epoch"] if checkpoint else 0)

        def save(state):
            save_checkpoint(state)
            raise KeyboardInterrupt

        return fit(*args, save_checkpoint=save, checkpoint=checkpoint, **kwargs)

    monkeypatch.setattr(loop, "fit", short)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run_missing([run], store)
    assert run_missing([run], store)["status"].item() == "finished"
    assert lives == [0, 1, 2, 3]


def test_the_time_of_earlier_lives_counts(tmp_path, tiny_run, monkeypatch):
    store, load = RunStore(tmp_path, checkpoint_seconds=0), RunStore.load_checkpoint
    run = tiny_run(epochs=3)
    interrupt_after(run, store, 1)
    before = {"seconds": 1000.0, "seconds_evaluating": 300.0}
    monkeypatch.setattr(RunStore, "load_checkpoint", lambda *which: load(*which) | before)
    timings = load_timings(run_missing([run], store), store).iloc[0]
    assert timings["seconds"] > 1000
    assert timings["seconds_evaluating"] > 300


def test_a_run_resumed_with_other_threads_says_so(tmp_path, tiny_run, monkeypatch):
    store, fit = RunStore(tmp_path, checkpoint_seconds=0), loop.fit
    run = tiny_run(epochs=3)

    def once(*args, save_checkpoint, **kwargs):
        def save(state):
            save_checkpoint(state)
            raise KeyboardInterrupt

        return fit(*args, save_checkpoint=save, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", once)
        with pytest.raises(KeyboardInterrupt):
            run_missing([run], store)
    torch.set_num_threads(2)
    try:
        timings = load_timings(run_missing([run], store), store).iloc[0]
    finally:
        torch.set_num_threads(1)
    assert timings["threads"] == "1, 2"
    assert timings["torch"] == str(torch.__version__)
    assert timings["numpy"] == np.__version__
    assert {"torchvision", "timm", "cpu_capability", "device"} <= set(timings.index)
    assert merged({"threads": "1, 2"}, {"threads": 1}) == {"threads": "1, 2"}  # not told twice


def test_threads_of_one_process_get_the_numbers_of_one_after_the_other(tmp_path, tiny_run):
    runs = [tiny_run(seed=seed, network="cnn_small_bn", epochs=1) for seed in range(4)]
    expected = run_missing(runs, RunStore(tmp_path / "alone"))["test_loss"].tolist()
    losses = {}

    def one(run):
        losses[run.seed] = run_missing([run], RunStore(tmp_path / "shared"))["test_loss"].item()

    threads = [threading.Thread(target=one, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [losses[run.seed] for run in runs] == expected


# --- what a sweep says ---------------------------------------------------------------------------


def test_a_sweep_that_waits_for_another_says_so(store, tiny_run, capsys, monkeypatch):
    run = tiny_run()
    store.open()
    fingerprint = run_data.load_data(run)[2]
    lock = store.lock(run.key, fingerprint)
    lock.acquire()
    say = Progress.say

    def heard(self, text):
        say(self, text)
        lock.release()

    monkeypatch.setattr(Progress, "say", heard)
    run_missing([run], store)
    assert f"waiting for another sweep, which trains {run}" in capsys.readouterr().err


@pytest.mark.parametrize(("way", "lines"), [("lines", 2), ("off", 0), ("", 2)])
def test_a_line_a_finished_run_where_there_is_no_terminal(
    store, tiny_run, capsys, monkeypatch, way, lines
):
    monkeypatch.setenv("HARDTRAIN_PROGRESS", way)
    monkeypatch.setattr(sys, "__stderr__", types.SimpleNamespace(isatty=lambda: False))
    run_missing([tiny_run(seed=seed, epochs=1) for seed in range(2)], store)
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if "of 2 runs" in line]) == lines
    if lines:
        assert said[-1].startswith("2 of 2 runs, 0 s left: plain, cnn_small on")


def test_an_unknown_way_of_showing_progress_is_refused(store, tiny_run, monkeypatch):
    monkeypatch.setenv("HARDTRAIN_PROGRESS", "line")
    with pytest.raises(ParameterError, match="did you mean 'lines'"):
        run_missing([tiny_run()], store)


def test_the_time_left_leaves_out_what_was_resumed(monkeypatch):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    runs = [Run("digits", "mlp", epochs=10, seed=seed) for seed in (0, 1)]
    with Progress(runs) as shown:
        shown(runs[0], 8)  # from its checkpoint
        clock.now = 20.0
        shown(runs[0], 9)
        shown(runs[0], 10)
        assert shown._seconds_left() == 100.0  # two epochs in 20 s, ten to come


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
@pytest.mark.parametrize(("own", "kept"), [({}, True), ({"MALLOC_ARENA_MAX": "8"}, False)])
def test_training_keeps_freed_memory_where_the_user_has_said_nothing(tmp_path, own, kept):
    code = f"""
from resource import RUSAGE_SELF, getrusage
import torch
from hardtrain import Run, RunStore, run_missing
def new_pages():
    before = getrusage(RUSAGE_SELF).ru_minflt
    torch.ones(10**7)
    return getrusage(RUSAGE_SELF).ru_minflt - before
before = min(new_pages() for _ in range(8))
run = Run("digits", "cnn_small", epochs=1, train_size=64, device="cpu")
run_missing([run], RunStore({str(tmp_path)!r}), use_committed=False)
after = min(new_pages() for _ in range(8))
print(before > 1000, after > 1000)
"""
    environment = {name: value for name, value in os.environ.items() if "MALLOC_" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | own, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", str(not kept)], done.stderr


def test_new_numbers_of_a_run_trained_again_for_an_artefact_are_said(tiny_run, store, monkeypatch):
    run = tiny_run()
    run_missing([run], store)
    metrics = train._Training.metrics
    monkeypatch.setattr(train._Training, "metrics", lambda *a: metrics(*a) | {"test_loss": 0.123})
    with pytest.warns(UserWarning, match="has other numbers, which replace the old ones"):
        run_missing([dataclasses.replace(run, keep=("logits",))], store)
