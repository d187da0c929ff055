"""Sweeps that are killed, interrupted and run twice at once: nothing lost, nothing made twice.

The sweeps run in processes forked from a server that has imported everything already, so that a
process costs a tenth of a second. For more of the same: ``HARDTRAIN_KILL_ROUNDS=30 pytest ...``.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from hardtrain import Run, RunStore, run_missing, write_results

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="needs SIGKILL, SIGINT to one process, and fork"
)
ROUNDS = int(os.environ.get("HARDTRAIN_KILL_ROUNDS", "1"))
NUM_KILLS = 6  # a round
NUM_RUNS = 6
PATIENCE = 120  # seconds until a process that does not end counts as hanging
TABLES = ("results.csv", "history.csv")


class LoggingStore(RunStore):
    """A store that notes in ``log`` what was done, one line each; checkpoints at every epoch."""

    def __init__(self, path, log):
        super().__init__(path, checkpoint_seconds=0)
        self.log = Path(log)

    def note(self, event, key):
        with open(self.log, "ab", buffering=0) as file:
            file.write(f"{event} {key}\n".encode())

    def save(self, record):
        super().save(record)
        self.note("finished", record["key"])

    def save_checkpoint(self, key, fingerprint, state):
        super().save_checkpoint(key, fingerprint, state)
        self.note("checkpoint", key)

    def load_checkpoint(self, key, fingerprint):
        state = super().load_checkpoint(key, fingerprint)
        self.note("started" if state is None else "resumed", key)
        return state


def runs_on(dataset):
    """Six runs of 6 epochs, with momentum, augmentation, a schedule and counts to resume."""
    common = {"network": "cnn_small", "epochs": 6, "batch_size": 16, "lr": 0.05, "device": "cpu"}
    common |= {"dataset": dataset, "momentum": 0.9, "augment": "flip", "schedule": "cosine"}
    return [
        Run(**common, seed=seed, method=method, keep=["final_weights"])
        for seed in range(NUM_RUNS // 2)
        for method in ("plain", "trimming")
    ]


def sweep(folder, log, out, dataset, chosen):
    """What a sweep's process does: first the ``chosen`` runs, then the tables of all."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    torch.set_num_threads(1)
    os.environ["HARDTRAIN_COMMITTED"] = str(Path(folder) / "no figures")
    runs, store = runs_on(dataset), LoggingStore(Path(folder) / "runs", log)
    run_missing([runs[i] for i in chosen], store)
    write_results(run_missing(runs, store), store, out)


def hold_lock(folder, log, dataset):
    """Start the first run, take its lock and be killed with it."""
    torch.set_num_threads(1)
    store = LoggingStore(Path(folder) / "runs", log)
    store.load_checkpoint = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    run_missing(runs_on(dataset)[:1], store, use_committed=False)


class Sweeps:
    """Starts sweeps on one store, and reads what they noted."""

    def __init__(self, context, folder, dataset):
        self.context, self.folder, self.dataset = context, folder, dataset
        folder.mkdir()
        self.log = folder / "log"
        self.log.touch()

    def start(self, out="out", chosen=range(NUM_RUNS)):
        arguments = (self.folder, self.log, self.folder / out, self.dataset, list(chosen))
        process = self.context.Process(target=sweep, args=arguments, daemon=True)
        process.start()
        return process

    def finish(self, process):
        process.join(PATIENCE)
        assert process.exitcode == 0, f"exit code {process.exitcode} (None: still running)"

    def events(self):
        return [tuple(line.split()) for line in self.log.read_text().splitlines()]

    def count(self, event):
        return sum(name == event for name, _ in self.events())

    def wait_for_checkpoints(self, process, number):
        """Until ``number`` more checkpoints are written, or the process ends."""
        number += self.count("checkpoint")
        deadline = time.monotonic() + PATIENCE
        while process.is_alive() and self.count("checkpoint") < number:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def tables(self, out="out"):
        return [(self.folder / out / name).read_bytes() for name in TABLES]

    def check(self, expected, out="out"):
        """The tables are as expected, each run was finished once, and the store is clean."""
        assert self.tables(out) == expected
        finished = Counter(key for name, key in self.events() if name == "finished")
        assert max(finished.values()) == 1
        runs = self.folder / "runs"
        assert not (runs / "quarantine").exists()
        assert len(list(runs.glob("records/*.json"))) == NUM_RUNS
        assert len(list(runs.glob("artefacts/*.npz"))) == NUM_RUNS


@pytest.fixture(scope="module")
def start_sweeps(tiny_set, tmp_path_factory):
    """A function: a new folder in which sweeps can be started."""
    context = multiprocessing.get_context("forkserver")
    # torch imports the last one, slowly, at the first step of an optimiser
    context.set_forkserver_preload(["pytest", "hardtrain.runs.sweep", "torch._dynamo"])
    folder = tmp_path_factory.mktemp("sweeps")
    return lambda name: Sweeps(context, folder / name, tiny_set)


@pytest.fixture(scope="module")
def expected(start_sweeps):
    """The tables of a sweep that nothing disturbed."""
    sweeps = start_sweeps("undisturbed")
    sweeps.finish(sweeps.start())
    assert sweeps.count("finished") == sweeps.count("started") == NUM_RUNS
    assert sweeps.count("resumed") == 0
    return sweeps.tables()


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_a_sweep_killed_at_random_moments_ends_with_the_same_tables(start_sweeps, expected, round_):
    sweeps, rng = start_sweeps(f"killed {round_}"), random.Random(round_)
    kills = 0
    for _ in range(NUM_KILLS):
        process = sweeps.start()
        sweeps.wait_for_checkpoints(process, rng.randrange(4))  # of 30
        time.sleep(rng.random() * 0.015)  # anywhere in an epoch, an evaluation or a write
        process.kill()
        process.join(PATIENCE)
        kills += process.exitcode == -signal.SIGKILL
    unfinished = sweeps.count("finished") < NUM_RUNS
    sweeps.finish(sweeps.start())
    sweeps.check(expected)
    print(f"round {round_}: {kills} of {NUM_KILLS} signals killed a sweep")
    assert kills >= NUM_KILLS / 2
    assert sweeps.count("resumed") > 0
    if unfinished:  # the last sweep has opened the store, and so cleaned it
        assert not list(sweeps.folder.rglob("*.partial"))


def test_two_sweeps_on_one_store_share_the_work(start_sweeps, expected):
    sweeps = start_sweeps("shared")
    first = sweeps.start("a", range(0, 4))
    second = sweeps.start("b", range(5, 1, -1))
    sweeps.finish(first)
    sweeps.finish(second)
    sweeps.check(expected, "a")
    sweeps.check(expected, "b")
    assert sweeps.count("started") == NUM_RUNS  # not even begun twice
    assert sweeps.count("resumed") == 0


def test_two_sweeps_of_which_one_is_killed_again_and_again(start_sweeps, expected):
    sweeps, rng = start_sweeps("shared and killed"), random.Random(1)
    steady = sweeps.start("a")
    for _ in range(2):
        process = sweeps.start("b", range(NUM_RUNS - 1, -1, -1))
        sweeps.wait_for_checkpoints(process, 1 + rng.randrange(4))
        time.sleep(rng.random() * 0.03)
        process.kill()
        process.join(PATIENCE)
    sweeps.finish(steady)
    sweeps.finish(sweeps.start("b"))
    sweeps.check(expected, "a")
    sweeps.check(expected, "b")


def test_the_lock_of_a_dead_process_does_not_block(start_sweeps):
    sweeps = start_sweeps("dead lock")
    arguments = (sweeps.folder, sweeps.log, sweeps.dataset)
    holder = sweeps.context.Process(target=hold_lock, args=arguments, daemon=True)
    holder.start()
    holder.join(PATIENCE)
    assert holder.exitcode == -signal.SIGKILL
    assert list((sweeps.folder / "runs" / "locks").iterdir())
    store = LoggingStore(sweeps.folder / "runs", sweeps.log)
    began = time.monotonic()
    run_missing(runs_on(sweeps.dataset)[:1], store, use_committed=False)
    assert time.monotonic() - began < 10
    assert sweeps.count("finished") == 1


def test_a_signal_ends_a_sweep_at_once_and_keeps_what_it_has(start_sweeps, expected):
    sweeps, rng = start_sweeps("signals"), random.Random(2)
    # Ctrl-C, by which KeyboardInterrupt comes through, and what a scheduler sends
    expected_codes = {signal.SIGINT: 1, signal.SIGTERM: 143}
    for sent, code in (*expected_codes.items(), *expected_codes.items()):
        process = sweeps.start()
        sweeps.wait_for_checkpoints(process, 1 + rng.randrange(4))
        began = time.monotonic()
        os.kill(process.pid, sent)
        process.join(PATIENCE)
        assert time.monotonic() - began < 5
        assert process.exitcode == code
        for path in (sweeps.folder / "runs").glob("records/*.json"):
            assert json.loads(path.read_bytes())["status"] == "finished"
    sweeps.finish(sweeps.start())
    sweeps.check(expected)
    assert sweeps.count("resumed") > 0
