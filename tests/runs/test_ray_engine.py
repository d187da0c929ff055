"""Sweeps on Ray: the same records as in one process, whatever dies meanwhile.

One simulated cluster of three nodes serves the whole file; drivers that are killed are forked from
a server that has imported everything already. For more kills, four a round:
``HARDTRAIN_RAY_ROUNDS=13 pytest ...``.
"""

import dataclasses
import inspect
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hardtrain import ParameterError, Run, RunStore, SweepError, run_missing, write_results
from hardtrain.runs import ray_engine, ray_start, ray_worker
from hardtrain.runs.ray_engine import _Driver
from hardtrain.runs.run_data import load_data
from hardtrain.runs.status import Announced

TESTS = Path(__file__).resolve().parents[1]
ROUNDS = int(os.environ.get("HARDTRAIN_RAY_ROUNDS", "1"))
PATIENCE = 300  # seconds until a sweep that does not end counts as hanging
needs_kill = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and fork")
ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three nodes of one core each; the workers of all find the tests' methods, and their log."""
    from ray.cluster_utils import Cluster

    settings = {
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "HARDTRAIN_TEST_LOG": str(tmp_path_factory.mktemp("log")),
        "HARDTRAIN_COMMITTED": str(tmp_path_factory.mktemp("no figures")),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        patch.syspath_prepend(TESTS)
        # a dead node is noticed after 3 seconds
        health = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
        head = {"num_cpus": 1, "include_dashboard": False, "_system_config": health}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.others = [cluster.add_node(num_cpus=1) for _ in range(2)]
        yield cluster
        cluster.shutdown()


@pytest.fixture
def log(cluster):
    """What `ray_methods` notes: a list of (key, epoch, process, time)."""
    path = Path(os.environ["HARDTRAIN_TEST_LOG"]) / "log"
    path.write_bytes(b"")

    def read():
        lines = [line.split() for line in path.read_text().splitlines()]
        return [(key, int(epoch), int(pid), float(at)) for key, epoch, pid, at in lines]

    return read


def runs_on(dataset, method="plain", seeds=range(6), **changes):
    fields = {"network": "cnn_small", "epochs": 5, "batch_size": 16, "lr": 0.05, "device": "cpu"}
    fields |= {"dataset": dataset, "momentum": 0.9, "augment": "flip", "keep": ["final_weights"]}
    return [Run(**(fields | changes), method=method, seed=seed) for seed in seeds]


def tables(runs, store, out, **options):
    """The tables of a sweep, as bytes."""
    write_results(run_missing(runs, store, use_committed=False, **options), store, out)
    return [(out / name).read_bytes() for name in ("results.csv", "history.csv")]


def drive(folder, dataset, address):
    """What a driver's process does."""
    torch.set_num_threads(1)
    store = RunStore(folder, checkpoint_seconds=0)
    runs = runs_on(dataset, "ray_methods:logged")
    run_missing(runs, store, engine="ray", ray_address=address)


def wait_for(log, number, process=None):
    """Until so many epochs have begun; gives the last line."""
    deadline = time.monotonic() + PATIENCE
    while len(lines := log()) < number:
        assert time.monotonic() < deadline
        assert process is None or process.is_alive()
        time.sleep(0.01)
    return lines[-1]


@pytest.fixture(scope="module")
def expected(cluster, tiny_set, tmp_path_factory):
    """The tables of the sweep that is killed below, made in one process."""
    folder = tmp_path_factory.mktemp("local")
    runs = runs_on(tiny_set, "ray_methods:logged")
    return tables(runs, RunStore(folder / "runs"), folder / "out")


@needs_kill
@pytest.mark.parametrize("round_", range(ROUNDS))
def test_killed_drivers_workers_and_nodes_lose_nothing(
    cluster, log, tiny_set, tmp_path, expected, round_
):
    runs, folder = runs_on(tiny_set, "ray_methods:logged"), tmp_path / "ray"
    rng = random.Random(round_)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "hardtrain.runs.sweep", "torch._dynamo"])

    def wait(least, process=None):
        """Until a few more epochs have begun, and then anywhere in one; gives the last line."""
        line = wait_for(log, len(log()) + least + rng.randrange(2), process)
        time.sleep(rng.random() * 0.1)
        return line

    for sent, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        arguments = (folder, tiny_set, cluster.address)
        process = context.Process(target=drive, args=arguments)
        process.start()
        wait(4, process)
        os.kill(process.pid, sent)
        process.join(PATIENCE)
        assert process.exitcode == code
    finished = {path.name: path.stat().st_mtime for path in folder.glob("records/*.json")}
    assert len(finished) < len(runs)
    killed = []

    def kill():
        *_, pid, _ = wait(3)
        os.kill(pid, signal.SIGKILL)
        killed.append("worker")
        wait(3)
        cluster.remove_node(cluster.others.pop(), allow_graceful=False)
        killed.append("node")

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    store = RunStore(folder, checkpoint_seconds=0)
    options = {"engine": "ray", "ray_address": cluster.address}
    assert tables(runs, store, tmp_path / "out", **options) == expected
    killer.join(PATIENCE)
    assert killed == ["worker", "node"]
    for path in folder.glob("records/*.json"):
        times = [at for key, _, _, at in log() if path.name.startswith(key)]
        assert max(times) < path.stat().st_mtime  # not begun again when it was finished
        assert path.stat().st_mtime == finished.get(path.name, path.stat().st_mtime)
    begun = [(key, epoch) for key, epoch, *_ in log()]
    assert len(set(begun)) == 30
    assert len(begun) <= 30 + 4 * 3 * 2  # four deaths, three runs at a time, an epoch or two each
    assert not list(folder.glob("sweeps/*"))
    assert not (folder / "quarantine").exists()
    store.open()  # sweeps away what the killed were writing
    assert not list(folder.glob("checkpoints/*"))
    if round_ + 1 < ROUNDS:
        cluster.others.append(cluster.add_node(num_cpus=1))


@needs_kill
def test_without_a_shared_disk_all_goes_through_ray(cluster, log, tiny_set, tmp_path, monkeypatch):
    runs = runs_on(tiny_set, "ray_methods:dies_once", seeds=(0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARDTRAIN_TEST_LIVE", "1")
        expected = tables(runs, RunStore(tmp_path / "local"), tmp_path / "out_local")
    for path in Path(os.environ["HARDTRAIN_TEST_LOG"]).glob("died *"):
        path.unlink()
    said = []
    monkeypatch.setattr(Announced, "say", lambda self, text: said.append(text))
    # the file by which workers see that the disk is shared is not there
    monkeypatch.setattr(Announced, "_write", lambda self: None)
    store = RunStore(tmp_path / "ray", checkpoint_seconds=0)
    options = {"engine": "ray", "ray_address": cluster.address}
    (broken,) = runs_on(tiny_set, "ray_methods:fails", seeds=(0,))
    with pytest.raises(SweepError, match="1 of 3 runs failed, the others are finished") as caught:
        tables([broken, *runs], store, tmp_path / "out", **options)
    assert "DataError: " in str(caught.value)
    assert "cannot be had here" in str(caught.value)
    assert tables(runs, store, tmp_path / "out", **options) == expected
    assert any("does not share the disk" in text for text in said)
    for run in runs:  # the third epoch twice, and none before: from the checkpoint
        began = Path(os.environ["HARDTRAIN_TEST_LOG"], f"died {run.seed}").read_text().split()
        assert began == ["0", "1", "2", "2", "3", "4"]


# --- without a cluster ---------------------------------------------------------------------------


class NoRay:
    """Stands in for Ray where nothing is to be started."""

    exceptions = SimpleNamespace(
        RayError=type("RayError", (Exception,), {}), RayTaskError=type("Task", (Exception,), {})
    )

    def get(self, outcome):
        if isinstance(outcome, self.exceptions.RayError):
            raise outcome
        return outcome


@pytest.fixture
def driver(store, tiny_run):
    """A driver that says what it says into ``said``, with two jobs whose locks are held."""
    store.open()
    runs = [tiny_run(seed=seed) for seed in range(2)]
    progress = Announced(runs, store)
    driver = _Driver(NoRay(), store, progress, {"num_cpus": 1.0, "num_gpus": 0.25}, None)
    driver.spoken = []
    progress.say = driver.spoken.append
    for run in runs:
        driver._begin(run, [])
    for job in driver.jobs.values():
        job.share = 0.25
    yield driver
    for job in driver.jobs.values():
        job.lock.release()


def test_a_sweep_on_ray_leaves_the_store_as_it_was(cluster, log, tiny_set, tmp_path):
    signatures = {name: inspect.signature(method) for name, method in methods_of(RunStore)}
    run_missing(
        runs_on(tiny_set, seeds=range(1), epochs=1),
        RunStore(tmp_path),
        engine="ray",
        ray_address=cluster.address,
        use_committed=False,
    )
    assert {name: inspect.signature(method) for name, method in methods_of(RunStore)} == signatures


def methods_of(kind):
    return inspect.getmembers(kind, inspect.isfunction)


def test_a_worker_with_a_gpu_serves_one_run(driver, monkeypatch):
    handed = []

    class Remote:
        def __init__(self, **options):
            self.limits = options

        def __call__(self, function):
            return self

        def options(self, **options):
            return self

        def remote(self, fields, *_):
            handed.append((fields["device"], self.limits.get("max_calls")))
            return len(handed)

    driver.gpu_task, driver.task, driver.desk = Remote(max_calls=1), Remote(), None
    job = next(iter(driver.jobs.values()))
    monkeypatch.setenv("HARDTRAIN_DEVICE", "cuda:1")  # here; a worker sees what Ray gives it
    for gpus in (0.25, 0.0):
        driver.options["num_gpus"] = gpus
        job.run = dataclasses.replace(job.run, device="auto")
        driver._start(job)
    monkeypatch.setenv("HARDTRAIN_DEVICE", "cpu")
    driver.options["num_gpus"] = None
    driver._start(job)
    driver.running.clear()
    assert handed == [("cuda", 1), ("cpu", None), ("cpu", None)]


def test_out_of_memory_halves_how_many_share_a_gpu(driver):
    first, second = driver.jobs.values()
    no_memory = torch.OutOfMemoryError("CUDA out of memory")
    driver._take_back(first, no_memory)
    driver._take_back(second, no_memory)  # it was handed out at the old share, too
    assert driver.options["num_gpus"] == 0.5
    assert driver.spoken == ["out of memory: from now on a run takes 0.5 of a GPU, not 0.25"]
    assert driver.ready == deque([first, second])
    first.share = 0.5
    driver._take_back(first, no_memory)
    assert driver.options["num_gpus"] == 1.0
    first.share = 1.0
    driver._take_back(first, no_memory)
    ((run, error),) = driver.failed
    assert run == first.run
    assert str(error) == "batch_size = 16 needs more memory than the device has"


def test_a_run_whose_worker_dies_again_and_again_is_given_up(driver):
    job = next(iter(driver.jobs.values()))
    lost = NoRay.exceptions.RayError("gone")
    for tries in (1, 2):
        driver._take_back(job, lost)
        assert job.tries == tries
    job.epochs, job.tries = 3, 0  # as `_listen` does when another epoch was finished
    for _ in range(2):
        driver._take_back(job, lost)
        assert driver.failed == []
    driver._take_back(job, lost)
    assert "its worker died 3 times" in str(driver.failed[0][1])


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="an older torch")
def test_a_worker_that_has_lost_its_gpu_ends_so_that_another_goes_on(
    store, tiny_run, monkeypatch, capfd
):
    def lost(*_):
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(ray_worker, "train_run", lost)
    monkeypatch.setattr(os, "_exit", leave)
    desk = SimpleNamespace(note=SimpleNamespace(remote=lambda *_: None))
    place = (Path.cwd(), store.path, 0.0, 1)
    with pytest.raises(SystemExit, match="1"):
        ray_worker.train_task(tiny_run().as_dict(), tiny_run().key, place, {}, desk)
    assert "unspecified launch failure" in capfd.readouterr().err


def test_a_node_takes_the_drivers_data_folder_unless_it_has_its_own(store, tiny_run, monkeypatch):
    monkeypatch.setenv("HARDTRAIN_DATA", "of the driver")
    environment = ray_worker.settings()
    assert environment["HARDTRAIN_DATA"] == "of the driver"
    monkeypatch.setattr(ray_worker, "train_run", lambda *_: os.environ["HARDTRAIN_DATA"])
    desk = SimpleNamespace(note=SimpleNamespace(remote=lambda *_: None))
    task = tiny_run().as_dict(), tiny_run().key, (Path.cwd(), store.path, 0.0, 1), environment, desk
    for own in ("of the node", None):
        monkeypatch.setenv("HARDTRAIN_DATA", own or "")
        if own is None:
            monkeypatch.delenv("HARDTRAIN_DATA")
        assert ray_worker.train_task(*task) == (own or "of the driver")


def test_a_worker_tells_of_its_epochs_at_most_twice_a_second(store, tiny_run, monkeypatch):
    clock = iter(range(1000))  # a tick of 0.1 s whenever somebody looks
    monkeypatch.setattr(ray_worker, "time", SimpleNamespace(monotonic=lambda: next(clock) / 10))
    run, told = tiny_run(), []

    def train(run, store, note):
        for epoch in range(1, 101):
            note(run, epoch, 0.5)

    monkeypatch.setattr(ray_worker, "train_run", train)
    desk = SimpleNamespace(note=SimpleNamespace(remote=lambda *what: told.append(what[1])))
    ray_worker.train_task(run.as_dict(), run.key, (Path.cwd(), store.path, 0.0, 1), {}, desk)
    seconds = 100 * 0.1
    assert told[0] == 0, "that it has begun, at once"
    assert 0.5 * seconds < len(told) - 1 <= 2 * seconds
    assert told == sorted(set(told))


def test_another_nodes_data_are_not_mixed_in(driver, store):
    job = next(iter(driver.jobs.values()))
    record = {"key": job.run.key, "fingerprint": "other", "status": "finished"}
    driver._take_back(job, record)
    assert "holds other images where" in str(driver.failed[0][1])
    assert not list(store.path.glob("records/*"))


def test_no_node_with_room_is_refused_or_waited_for(driver):
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}]
    nodes += [{"Alive": False, "Resources": {"CPU": 64.0}}, {"Alive": True, "Resources": {}}]
    driver.ray.nodes = lambda: nodes
    assert driver._room() == 2 * 4  # four share the GPU
    driver.options |= {"num_cpus": 2.0}
    assert driver._room() == 2 * 2
    driver.at_once = 3
    assert driver._room() == 3
    driver.options |= {"num_cpus": 5.0}
    with pytest.raises(ParameterError, match=r"no node has what a run needs .* largest: {'CPU': 4"):
        driver._room()
    driver.grows = True
    assert driver._room() == 3
    assert driver.spoken[-1].endswith("waiting for one")


def test_largest_runs_first(tiny_run):
    short, long = tiny_run(epochs=1), tiny_run(epochs=9)
    small, large = tiny_run(train_size=30), tiny_run()
    deep = tiny_run(network="vgg13", image_size=32)
    ordered = sorted([short, small, deep, large, long], key=ray_engine.costs.work, reverse=True)
    assert ordered == [deep, long, large, small, short]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"gpus_per_run": -0.5}, "gpus_per_run = -0.5 is not at least 0"),
        ({"gpus_per_run": 1.5}, "gpus_per_run = 1.5 is more than 1, and not whole"),
        ({"cpus_per_run": 0}, "cpus_per_run = 0 is not more than 0"),
        ({"cpus_per_run": "2"}, "cpus_per_run = '2' is text"),
        ({"max_runs_at_once": 0}, "max_runs_at_once = 0 is less than 1"),
        ({"max_runs_at_once": 1.5}, "max_runs_at_once = 1.5 is float, not int"),
        ({"ray_address": "ray://head:10001"}, "start the sweep on a node of the cluster"),
        ({"gpus_per_run": [1]}, "gpus_per_run = [1] is list, not float"),
        ({"ray_address": 5}, "ray_address = 5 is int, not text"),
        ({"gpu_per_run": 1}, "unknown option of engine 'ray' 'gpu_per_run'; did you mean"),
    ],
)
def test_options_are_checked_before_anything_is_started(
    options, text, tiny_run, store, monkeypatch
):
    monkeypatch.setattr(ray, "init", None)
    with pytest.raises(ParameterError, match=re.escape(text)):
        run_missing([tiny_run()], store, engine="ray", use_committed=False, **options)


def test_options_of_ray_are_none_of_local(tiny_run, store):
    with pytest.raises(ParameterError, match="unknown option of engine 'local' 'gpus_per_run'"):
        run_missing([tiny_run()], store, gpus_per_run=0.5)
    frame = run_missing([tiny_run()], store, gpus_per_run=None, use_committed=False)
    assert list(frame["status"]) == ["finished"]


def test_without_ray_the_error_says_how_to_get_it(tiny_run, store, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ParameterError, match=r"pip install 'hardtrain\[ray\]'"):
        run_missing([tiny_run()], store, engine="ray", use_committed=False)


def test_one_run_does_not_wait_for_ray_to_start(tiny_run, store, monkeypatch):
    monkeypatch.setattr(ray, "init", None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    frame = run_missing([tiny_run()], store, engine="ray", use_committed=False)
    assert list(frame["status"]) == ["finished"]


# --- while Ray starts ----------------------------------------------------------------------------


class StartingRay:
    """Stands in for Ray: starts when it is told to, or fails."""

    def __init__(self, error=None):
        self.started, self.calls, self.error = threading.Event(), [], error

    def is_initialized(self):
        return False

    def init(self, **options):
        self.calls.append(options)
        self.thread = threading.current_thread()
        assert self.started.wait(PATIENCE)
        if self.error:
            raise self.error

    def remote(self, function):
        return SimpleNamespace(remote=lambda: self.calls.append(function.__name__))

    def cluster_resources(self):
        return {"CPU": 2.0}

    def wait(self, references):
        return references[:1], references[1:]

    def shutdown(self):
        assert self.thread.is_alive()  # else the kernel has ended what it has started
        self.calls.append("shutdown")


def connect(fake, meanwhile):
    with ray_start.connected(fake, None, meanwhile):
        fake.calls.append("used")


def test_something_is_done_while_ray_and_its_workers_start():
    fake, ready = StartingRay(), []

    def meanwhile(is_ready):
        ready.append(is_ready())
        fake.started.set()
        while not is_ready():
            time.sleep(0.01)

    connect(fake, meanwhile)
    assert ready == [False]
    assert fake.calls[0]["address"] == "local"
    assert fake.calls[1:] == ["warm", "warm", "used", "shutdown"]


@pytest.mark.parametrize("where", ["meanwhile", "start"])
def test_what_goes_wrong_while_ray_starts_ends_it(where):
    fake = StartingRay(Exception("timed out") if where == "start" else None)

    def meanwhile(is_ready):
        fake.started.set()
        if where == "meanwhile":
            raise KeyboardInterrupt

    with pytest.raises(ParameterError if where == "start" else KeyboardInterrupt) as caught:
        connect(fake, meanwhile)
    assert fake.calls[-1] == "shutdown"
    assert "used" not in fake.calls
    if where == "start":
        assert "Ray does not answer (timed out); on a busy machine" in str(caught.value)


def test_runs_of_short_epochs_are_trained_meanwhile_and_go_on_from_there(
    tiny_run, store, monkeypatch
):
    large = tiny_run(seed=9, train_size=60, epochs=3)
    small = [tiny_run(seed=seed, train_size=30, epochs=4) for seed in range(3)]
    monkeypatch.setattr(ray_engine, "SHORT", ray_engine.costs.work(small[0]) / 4)
    held = store.lock(small[2].key, load_data(small[2])[2])
    runs, begun = [large, *small], []
    store.open()
    with Announced(runs, store) as progress, held:
        monkeypatch.setattr(progress, "finished", lambda run, *error: begun.append(run))

        def is_ready():  # in the second run's second epoch
            return progress._done[small[0].key] == 2

        left, before = runs.copy(), torch.get_num_threads()
        assert ray_engine._train_meanwhile(left, store, progress, before + 1, is_ready) == []
    assert torch.get_num_threads() == before
    assert begun == [small[1]]
    assert left == [large, small[0], small[2]]  # held by another; not finished
    checkpoint = store.load_checkpoint(small[0].key, load_data(small[0])[2])
    assert checkpoint["epoch"] in (1, 2)
    assert store.load_checkpoint(large.key, load_data(large)[2]) is None
    resumed = run_missing(small[:1], store, use_committed=False)
    other = run_missing(small[:1], type(store)(store.path / "other"), use_committed=False)
    assert resumed.equals(other)


def test_what_fails_meanwhile_is_named_with_the_others(tiny_run, store, monkeypatch):
    def fails(run, *_):
        raise RuntimeError(f"cannot train seed {run.seed}")

    monkeypatch.setattr(ray_engine, "train_if_free", fails)
    runs = [tiny_run(seed=seed) for seed in range(2)]
    store.open()
    with Announced(runs, store) as progress:
        failed = ray_engine._train_meanwhile(left := runs.copy(), store, progress, 1, lambda: False)
    assert [(run, str(error)) for run, error in failed] == [
        (run, f"cannot train seed {run.seed}") for run in reversed(runs)
    ]
    assert left == []
