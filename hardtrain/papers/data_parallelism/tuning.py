"""The study of batch sizes: from searches to runs and back."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from hardtrain.data.images import load_dataset
from hardtrain.errors import DataError, ParameterError
from hardtrain.papers.data_parallelism.search import Search, Space, search_together
from hardtrain.runs.results import load_history
from hardtrain.runs.run import Run
from hardtrain.runs.store import RunStore

OPTIMIZERS = {"sgd": "SGD", "momentum": "heavy ball", "nesterov": "Nesterov"}
LIMITS = {"one_minus_momentum": 1.0, "final_fraction": 1.0, "decay_length": 1.0}
NOT_REACHED = "not reached"
GOAL_SLACK = 0.05  # share of the way from the lowest error of a pilot to that of guessing

Task = tuple[str, float]  # data set and fraction of wrong training labels


class Curve(NamedTuple):
    """What steps are measured against the batch size for. ``label_noise`` is the fraction of
    wrong training labels.

    Example:
        >>> curve = Curve("some/where/digits", "mlp", "momentum", 0.2)
        >>> curve.workload, curve.words["optimiser"]
        ('digits, 20 % wrong labels / mlp', 'heavy ball')
    """

    dataset: str
    network: str
    optimizer: str
    label_noise: float = 0.0

    @property
    def task(self) -> Task:
        return self.dataset, self.label_noise

    @property
    def words(self) -> dict[str, str]:
        """What it is in words, by heading of a table."""
        return {
            "data": task_name(self.task),
            "network": self.network,
            "optimiser": OPTIMIZERS[self.optimizer],
        }

    @property
    def workload(self) -> str:
        return f"{task_name(self.task)} / {self.network}"


class Tuned(NamedTuple):
    """The study: ``trials``, a row for each; ``results`` and ``history`` of their runs.

    Of a trial: ``curve``, ``batch_size``, ``seed`` (of the search that it belongs to), ``round``,
    ``number`` (in its search), its point, ``momentum``, ``effective_lr`` = lr / (1 - momentum),
    ``key`` of its run, ``steps`` to the goal (inf: not reached; nan: diverged, or not run),
    ``outcome`` ("reached", "not reached", "infeasible", "not run"), ``counted`` (of the search's
    last round, and that is complete), ``inside`` (the search's best lies inside its space).
    """

    trials: pd.DataFrame
    results: pd.DataFrame
    history: pd.DataFrame

    def of(self, curve: Curve) -> pd.DataFrame:
        """The trials of a curve."""
        return self.trials[[own == curve for own in self.trials["curve"]]]


class Protocol(NamedTuple):
    """What all trials have in common.

    Args:
        sizes: data set -> training samples.
        epochs, num_steps: a trial makes at least so many of both: small batches spend the epochs,
            large ones the steps. So every batch size can be compared at either budget.
        num_evaluations: of a trial, evenly spread by steps, and one at the end.
        base: further fields of every `Run`.
    """

    sizes: Mapping[str, int]
    epochs: int
    num_steps: int
    num_evaluations: int
    base: Mapping

    def length(self, dataset: str, batch_size: int) -> tuple[int, int]:
        """Epochs and steps of a trial. The last short batch of an epoch is left out, so that
        every step sees a whole one.

        Example:
            >>> protocol = Protocol({"digits": 1024}, 2, 64, num_evaluations=32, base={})
            >>> protocol.length("digits", 4), protocol.length("digits", 256)
            ((2, 512), (16, 64))
        """
        steps_per_epoch = self.sizes[dataset] // batch_size
        epochs = max(self.epochs, math.ceil(self.num_steps / steps_per_epoch))
        return epochs, epochs * steps_per_epoch

    def batch_sizes(self, dataset: str, sizes: Sequence[int]) -> list[int]:
        """Those of ``sizes`` that the training set can fill, ascending.

        Raises:
            ParameterError: there is none.
        """
        num_samples = self.sizes[dataset]
        filled = sorted({size for size in sizes if size <= num_samples})
        if not filled:
            raise ParameterError(
                f"batch_sizes = {sizes} exceed the {num_samples} images of {dataset}"
            )
        return filled

    def run(self, curve: Curve, batch_size: int, seed: int, point: Mapping[str, float]) -> Run:
        """The run of a trial.

        Args:
            curve, batch_size: where it belongs.
            seed: of its search, and of initialisation, order and wrong labels.
            point: ``lr``; ``one_minus_momentum`` for the optimisers with one; ``final_fraction``,
                to which the learning rate falls linearly (1 if not given: constant), and
                ``decay_length``, the fraction of the epochs that this takes (1 if not given; a
                whole number of epochs, at least one).
        """
        epochs, steps = self.length(curve.dataset, batch_size)
        # the difference has noise in its last digits, which should not be part of a key
        momentum = round(1 - point.get("one_minus_momentum", 1.0), 10)
        fields = dict(dataset=curve.dataset, network=curve.network, label_noise=curve.label_noise)
        fields |= dict(batch_size=batch_size, epochs=epochs, drop_last=True, seed=seed)
        # without momentum it is plain SGD, and PyTorch refuses the word
        nesterov = curve.optimizer == "nesterov" and momentum > 0
        fields |= dict(lr=point["lr"], momentum=momentum, nesterov=nesterov)
        fields |= dict(schedule="linear", gamma=point.get("final_fraction", 1.0))
        fields |= dict(step_epochs=max(1, round(point.get("decay_length", 1.0) * epochs)))
        fields |= dict(evaluate_unit="step", evaluate_every=max(1, steps // self.num_evaluations))
        return Run(**fields, **self.base)


def set_sizes(
    *,
    datasets: Sequence[str],
    train_size: int,
    validation_size: int,
    data_root: str | None = None,
) -> dict[str, np.ndarray]:
    """``samples`` that are left for training, and ``classes``.

    Example:
        >>> sizes = set_sizes(datasets=["digits"], train_size=0, validation_size=400)
        >>> sizes["samples"].tolist(), sizes["classes"].tolist()
        ([1038], [10])
    """
    sets = [load_dataset(name, "train", root=data_root) for name in datasets]
    samples = [train_size or len(data) - validation_size for data in sets]
    return {"samples": np.array(samples), "classes": np.array([data.num_classes for data in sets])}


def task_name(task: Task) -> str:
    """A task in words."""
    dataset, label_noise = task
    name = dataset.rstrip("/").rpartition("/")[2]  # of a path the last part
    return f"{name}, {100 * label_noise:g} % wrong labels" if label_noise else name


def tune(
    curves: Mapping[Curve, Sequence[int]],
    goals: Mapping[Curve, float],
    protocol: Protocol,
    spaces: Mapping[str, Space],
    train: Callable[[Sequence[Run]], pd.DataFrame],
    store: RunStore,
    *,
    seeds: Sequence[int],
    num_trials: int,
    max_rounds: int,
) -> Tuned:
    """Tune the metaparameters of every curve at every batch size for the fewest steps to its goal.

    Each of ``seeds`` is a search of its own at each of them. The points differ between seeds and
    between batch sizes; they are the same for all curves as far as their spaces have the same
    names in the same order. What all searches want next is trained at once. Since training is
    deterministic, so is what comes next: from stored results the same runs are found again.

    Args:
        curves: with their batch sizes.
        goals: held-out error to get below (fraction).
        protocol: of the trials.
        spaces: by optimiser.
        train: gives the results of runs, as ``run_missing``; none of one that is not to be made.
        store: where their histories are.
        seeds: of the searches.
        num_trials: to complete in a round.
        max_rounds: of a search.
    """
    runs: dict[tuple, list[Run]] = {}
    status: dict[str, str] = {}
    sweeps = []

    def evaluate(requests) -> list[float | None]:
        wanted = [(name, protocol.run(*name, point)) for name, point in requests]
        for name, run in wanted:
            runs.setdefault(name, []).append(run)
        results = train([run for _, run in wanted])
        sweeps.append(results)
        status.update(zip(results["key"], results["status"], strict=True))
        goal_of = pd.Series({run.key: goals[name[0]] for name, run in wanted})
        reached = first_steps(load_history(results, store), goal_of)
        words = {"finished": reached.get, "diverged": lambda *_: math.nan}
        return [
            words[status[run.key]](run.key, math.inf) if run.key in status else None
            for _, run in wanted
        ]

    names = [(c, size, seed) for c, sizes in curves.items() for size in sizes for seed in seeds]
    found = search_together(
        {name: spaces[name[0].optimizer] for name in names},
        num_trials,
        evaluate,
        seeds={name: 100_000 * name[2] + name[1] for name in names},
        max_rounds=max_rounds,
        upper=LIMITS,
    )
    results = pd.concat(sweeps, ignore_index=True).drop_duplicates("key")
    trials = pd.concat([_trials(*name, found[name], runs[name], status) for name in names])
    history = load_history(results, store).astype({"key": str})  # also without rows
    return Tuned(trials.reset_index(drop=True), results, history)


def _trials(
    curve: Curve, size: int, seed: int, found: Search, runs: Sequence[Run], status: Mapping
) -> pd.DataFrame:
    """The rows of `Tuned.trials` of one search."""
    table = found.trials.assign(batch_size=size, seed=seed, key=[run.key for run in runs])
    table.insert(0, "curve", [curve] * len(table))
    table["number"] = range(len(table))
    table["momentum"] = [run.momentum for run in runs]
    table["effective_lr"] = table["lr"] / (1 - table["momentum"])
    table["outcome"] = [
        {"finished": NOT_REACHED, "diverged": "infeasible"}.get(status.get(run.key), "not run")
        for run in runs
    ]
    table.loc[np.isfinite(table["steps"]), "outcome"] = "reached"
    return table.assign(
        counted=found.complete & (table["round"] == table["round"].max()), inside=found.inside
    )


def first_steps(history: pd.DataFrame, goals: pd.Series) -> pd.Series:
    """The step at which each run's held-out error is first below its goal, by key; none of those
    that never are.

    Example:
        >>> rows = [("a", 100, 0.4), ("a", 200, 0.2), ("b", 100, 0.3)]
        >>> history = pd.DataFrame(rows, columns=["key", "step", "validation_error"])
        >>> first_steps(history, pd.Series({"a": 0.25, "b": 0.25})).to_dict()
        {'a': 200.0}
    """
    history = history.reindex(columns=["key", "step", "validation_error"])
    below = history[history["validation_error"] < history["key"].map(goals)]
    return below.groupby("key")["step"].min().astype(float)


def pilot_goals(
    results: pd.DataFrame,
    history: pd.DataFrame,
    pilots: Mapping[Curve, Sequence[Run]],
    guessing: Mapping[str, float],
) -> dict[Task, float]:
    r"""A goal for every task, from trials at one batch size.

    .. math:: g = \max_{\text{networks}} e + s \, (c - e)

    with :math:`e` the lowest held-out error of any trial at any time, :math:`c` the error of
    guessing and ``s = GOAL_SLACK``; rounded up to a tenth of a percent. So every network reached
    it in the pilot. nan where no trial was run.

    Args:
        results, history: of the pilot's runs.
        pilots: runs by curve: plain SGD at one batch size, for every task and network.
        guessing: error of it, by data set.

    Raises:
        DataError: every trial of a network diverged.
    """
    goals: dict[Task, float] = {}
    finished = set(results.loc[results["status"] == "finished", "key"])
    for curve, runs in pilots.items():
        own = {run.key for run in runs} & set(results["key"])
        errors = history.loc[history["key"].isin(own & finished)].get("validation_error")
        if own and not own & finished:
            raise DataError(f"every pilot trial of {curve.workload} diverged; give a goal")
        lowest = math.nan if errors is None else float(errors.min())
        # not up from 0.1 to 0.101 because of the last bit
        goal = lowest + GOAL_SLACK * (guessing[curve.dataset] - lowest)
        goal = goal if math.isnan(goal) else math.ceil(1000 * goal - 1e-9) / 1000
        goals[curve.task] = max(goal, goals.get(curve.task, 0.0))
    return goals
