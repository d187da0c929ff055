"""Runs as tasks on Ray: two on the two cores of a laptop, hundreds on the GPUs of a cluster.

The process that asks for runs is the driver. It hands out one task a run, largest first, holds the
run's lock meanwhile and writes its record; a task that was lost with its worker or node is handed
out again and goes on from its last checkpoint.
"""

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import filelock
import torch

from hardtrain import checks
from hardtrain.data.images import resolve_device
from hardtrain.errors import DataError, HardtrainError, ParameterError, StoreError, SweepError
from hardtrain.runs import costs, ray_start
from hardtrain.runs.engines import ENGINES, described, stored_row, train_if_free
from hardtrain.runs.ray_desk import Desk
from hardtrain.runs.ray_worker import settings, train_task
from hardtrain.runs.run import Run
from hardtrain.runs.run_data import fingerprint_at_hand, load_data
from hardtrain.runs.status import Announced
from hardtrain.runs.store import RunStore

TRIES = 3  # a run whose worker dies so often without finishing another epoch is given up
PATIENCE = 0.5  # seconds between two looks at what the workers say
SHORT = 2e11  # operations of an epoch: a second or two of a core


def train_on_ray(runs: Sequence[Run], store: RunStore, progress: Announced, **options: Any) -> None:
    """Train ``runs`` as Ray tasks.

    Args:
        ray_address: of a cluster one of whose nodes this is (``"auto"``, ``"host:6379"``);
            default ``$RAY_ADDRESS``, else Ray is started on this machine, for this sweep.
        gpus_per_run: a fraction lets runs share a GPU; when their memory does not suffice, half
            as many go on. Default: 1 where there are GPUs and the run may use one.
        cpus_per_run: cores that a run occupies, and its threads. Records are those of ``local``
            with as many threads.
        max_runs_at_once: default: as many as there is room for.

    Raises:
        ParameterError: Ray is not installed, or an option is not allowed.
    """
    ray = ray_start.imported()
    cpus = options.get("cpus_per_run", 1.0)
    address = options.get("ray_address") or os.environ.get("RAY_ADDRESS")
    if (address or "").startswith("ray://"):
        raise ParameterError(
            f"ray_address = {address!r}: start the sweep on a node of the cluster, with 'auto'"
        )
    if len(runs) == 1 and not address and not ray.is_initialized():
        ENGINES["local"](runs, store, progress)  # Ray would only have to start first
        return
    needs = {"num_cpus": cpus, "num_gpus": options.get("gpus_per_run")}
    at_once = options.get("max_runs_at_once")
    left = sorted(runs, key=costs.work, reverse=True)
    failed: list[tuple[Run, Exception]] = []

    def meanwhile(is_ready: Callable[[], bool]) -> None:
        failed.extend(_train_meanwhile(left, store, progress, int(cpus), is_ready))

    with (
        ray_start.connected(ray, address, meanwhile) as goes_on,
        _Driver(ray, store, progress, needs, at_once, grows=bool(address)) as driver,
    ):
        driver.failed, driver.cancels = failed, goes_on
        driver.train(left, len(runs))


def check_options(
    *,
    ray_address: str | None = None,
    gpus_per_run: float | None = None,
    cpus_per_run: float = 1.0,
    max_runs_at_once: int | None = None,
) -> None:
    """Refuse what `train_on_ray` cannot take, also where nothing is to be trained."""
    checks.text("ray_address", ray_address or "")
    checks.number("cpus_per_run", cpus_per_run, low=0, above=True)
    share = checks.number("gpus_per_run", 0 if gpus_per_run is None else gpus_per_run, low=0)
    if share > 1 and share % 1:
        raise ParameterError(f"gpus_per_run = {gpus_per_run} is more than 1, and not whole")
    if max_runs_at_once is not None:
        checks.integer("max_runs_at_once", max_runs_at_once, low=1)


class _Ready(Exception):
    """Ray is, so what is trained here meanwhile ends with its epoch."""


def _train_meanwhile(
    runs: list[Run],
    store: RunStore,
    progress: Announced,
    num_threads: int,
    is_ready: Callable[[], bool],
) -> list[tuple[Run, Exception]]:
    """Train runs of short epochs in this process, the smallest first, until Ray is ready, and take
    them out of ``runs``; gives those that failed. What is not finished leaves a checkpoint."""

    def note(run: Run, epochs: int, loss: float | None = None) -> None:
        progress(run, epochs, loss)
        if is_ready() and epochs < run.epochs:
            raise _Ready

    here = RunStore(store.path, checkpoint_seconds=min(0.5, store.checkpoint_seconds))
    failed, before = [], torch.get_num_threads()
    torch.set_num_threads(max(1, num_threads))  # as many as a worker has
    try:
        for run in reversed(runs.copy()):
            on_cpu = resolve_device(run.device).type == "cpu"
            if is_ready() or not on_cpu or costs.work(run) / run.epochs > SHORT:
                break
            try:
                if not train_if_free(run, here, note):
                    continue
            except (StoreError, _Ready):
                raise
            except Exception as error:
                failed.append((run, described(run, error)))
            progress.finished(run, *(error for other, error in failed[-1:] if other is run))
            runs.remove(run)
    except _Ready:
        pass
    finally:
        torch.set_num_threads(before)
    return failed


def _asked_device(run: Run) -> str:
    """That of the run, or of ``$HARDTRAIN_DEVICE`` here."""
    return os.environ.get("HARDTRAIN_DEVICE") or "auto" if run.device == "auto" else run.device


@dataclass
class _Job:
    """A run on its way, whose lock is held."""

    run: Run
    lock: filelock.BaseFileLock
    share: float = 0.0  # of a GPU
    epochs: int = 0  # finished ones, when it was handed out last, or since
    tries: int = 0


@dataclass
class _Driver:
    """Hands out runs, listens, and writes what comes back."""

    ray: ModuleType
    store: RunStore
    progress: Announced
    options: dict[str, Any]
    at_once: int | None
    grows: bool = False
    running: dict[Any, _Job] = field(default_factory=dict)  # by the reference of the task
    ready: deque[_Job] = field(default_factory=deque)  # to be handed out again
    failed: list[tuple[Run, Exception]] = field(default_factory=list)
    said: set[str] = field(default_factory=set)
    jobs: dict[str, _Job] = field(default_factory=dict)
    cancels: bool = True

    def __enter__(self) -> "_Driver":
        ray = self.ray
        here = ray.get_runtime_context().get_node_id()
        place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
        desk = ray.remote(Desk).options(scheduling_strategy=place, **options)
        self.desk = desk.remote(self.store.path, self.store.checkpoint_seconds)
        self.task = ray.remote(max_retries=0)(train_task)
        # a process that ends gives all of its memory back, and the next may get another GPU
        self.gpu_task = ray.remote(max_retries=0, max_calls=1)(train_task)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):  # of a cluster that is gone
            for reference in self.running if self.cancels else ():  # else Ray may abort at its end
                self.ray.cancel(reference, force=True)
            self.ray.kill(self.desk)
        for job in self.jobs.values():
            job.lock.release()

    def train(self, runs: Sequence[Run], total: int) -> None:
        waiting = deque(runs)
        while waiting or self.ready or self.running:
            self._hand_out(waiting)
            done: list = []
            if self.running:
                done, _ = self.ray.wait(list(self.running), timeout=PATIENCE)
            else:
                time.sleep(PATIENCE)
            self._listen()
            for reference in done:
                self._take_back(self.running.pop(reference), reference)
        if self.failed:
            raise SweepError(self.failed, total) from self.failed[0][1]

    def _hand_out(self, waiting: deque[Run]) -> None:
        """As many runs as there is room for; those that another process holds wait."""
        room = self._room() - len(self.running)
        held: list[Run] = []
        while room > 0 and (self.ready or waiting):
            job = self.ready.popleft() if self.ready else self._begin(waiting.popleft(), held)
            if job is not None:
                self._start(job)
                room -= 1
        waiting.extend(held)
        if held and not self.running:
            self._say_once(f"{len(held)} runs are being trained by another sweep; waiting for it")

    def _begin(self, run: Run, held: list[Run]) -> _Job | None:
        """The run's job, if its lock is free and it is still missing."""
        fingerprint = fingerprint_at_hand(run.dataset, run.data_root) or load_data(run)[2]
        lock = self.store.lock(run.key, fingerprint)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            held.append(run)
            return None
        self.jobs[run.key] = job = _Job(run, lock)
        if stored_row(run, self.store) is None:
            return job
        self._end(job)  # another has finished it
        return None

    def _start(self, job: _Job) -> None:
        fields = job.run.as_dict()
        if _asked_device(job.run).startswith("cuda"):
            fields["device"] = "cuda"  # of those that Ray gives to the task
        options = self._options(job.run)
        if options["num_gpus"] == 0 and job.run.device == "auto":
            fields["device"] = "cpu"
        job.share = options["num_gpus"]
        threads = max(1, int(options["num_cpus"]))
        place = (Path.cwd(), self.progress.file, self.store.checkpoint_seconds, threads)
        task = self.gpu_task if job.share else self.task
        reference = task.options(name=str(job.run), **options).remote(
            fields, job.run.key, place, settings(), self.desk
        )
        self.running[reference] = job

    def _options(self, run: Run) -> dict[str, float]:
        gpus = self.options["num_gpus"]
        if gpus is None:
            gpus = float(
                _asked_device(run) != "cpu" and self.ray.cluster_resources().get("GPU", 0) > 0
            )
        return self.options | {"num_gpus": gpus}

    def _room(self) -> int:
        """How many runs may be handed out: what fits, and as many again, so that no worker
        waits for the next and a cluster that grows sees that more is wanted."""
        needs = {"CPU": self.options["num_cpus"], "GPU": self.options["num_gpus"]}
        needs = {name: need for name, need in needs.items() if need}
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        slots = sum(min(int(n.get(k, 0) / need) for k, need in needs.items()) for n in nodes)
        if slots == 0:
            text = f"no node has what a run needs ({needs}); largest: " + str(
                {name: max((node.get(name, 0) for node in nodes), default=0) for name in needs}
            )
            if not self.grows:
                raise ParameterError(text)
            self._say_once(f"{text}; waiting for one")
        return self.at_once or max(1, 2 * slots)

    def _listen(self) -> None:
        for key, epochs, loss, host, shared in self.ray.get(self.desk.take_notes.remote()):
            job = self.jobs.get(key)
            if job is None:
                continue
            if epochs > job.epochs:
                job.epochs, job.tries = epochs, 0
            self.progress(job.run, epochs, loss)
            if not shared:
                self._say_once(
                    f"{host} does not share the disk of {self.store.path}: checkpoints go "
                    "through Ray"
                )

    def _take_back(self, job: _Job, reference: Any) -> None:
        errors = self.ray.exceptions
        try:
            outcome = self.ray.get(reference)
        except errors.RayTaskError as error:
            outcome = error.cause if isinstance(error.cause, Exception) else error
        except errors.RayError as error:  # its worker or its node is gone
            job.tries += 1
            if job.tries < TRIES:
                self.ready.append(job)
                return
            outcome = HardtrainError(
                f"its worker died {TRIES} times, last: {type(error).__name__}: {error}"
            )
        if isinstance(outcome, torch.OutOfMemoryError) and 0 < job.share < 1:
            share = min(1.0, 2 * job.share)
            if share > self.options["num_gpus"]:
                self.options["num_gpus"] = share
                self.progress.say(
                    f"out of memory: from now on a run takes {share:g} of a GPU, not {job.share:g}"
                )
            self.ready.append(job)
            return
        if isinstance(outcome, torch.OutOfMemoryError):
            outcome = ParameterError(
                f"batch_size = {job.run.batch_size} needs more memory than the device has"
            )
        if isinstance(outcome, dict):
            outcome = self._keep(job, outcome)
        if outcome is not None:
            self.failed.append((job.run, outcome))
        self._end(job, outcome)

    def _keep(self, job: _Job, record: dict) -> Exception | None:
        """Save what came back; or the reason why not."""
        here = fingerprint_at_hand(job.run.dataset, job.run.data_root)
        if here not in (None, record["fingerprint"]):
            return DataError(f"{job.run.dataset} holds other images where {job.run} was trained")
        self.store.save(record)
        self.store.remove_checkpoints(record["key"], record["fingerprint"])
        return None

    def _end(self, job: _Job, error: Exception | None = None) -> None:
        self.progress.finished(job.run, error)
        job.lock.release()
        del self.jobs[job.run.key]

    def _say_once(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            self.progress.say(text)
