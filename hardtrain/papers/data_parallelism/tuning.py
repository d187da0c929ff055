"""The study of batch sizes: from searches to runs and back."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from hardtrain.data.images import load_dataset
from hardtrain.errors import DataError, ParameterError
from hardtrain.papers.data_parallelism.batch_scaling import measured_errors, steps_per_trial
from hardtrain.papers.data_parallelism.search import Search, Space, search_together
from hardtrain.runs.results import load_history
from hardtrain.runs.run import Run
from hardtrain.runs.store import RunStore

OPTIMIZERS = {"sgd": "SGD", "momentum": "heavy ball", "nesterov": "Nesterov"}
LIMITS = {"one_minus_momentum": 1.0, "final_fraction": 1.0, "decay_length": 1.0}
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


Cell = tuple[Curve, int]  # a point of a curve: with its batch size


class Tuned(NamedTuple):
    """Searches by (curve, batch size), their runs in the order of the trials, and the results and
    history of all of them."""

    searches: dict[Cell, Search]
    runs: dict[Cell, list[Run]]
    results: pd.DataFrame
    history: pd.DataFrame


class Protocol(NamedTuple):
    """What all trials have in common.

    Args:
        sizes: data set -> training samples.
        epochs, num_steps: a trial makes at least so many of both: small batches spend the epochs,
            large ones the steps. So every batch size can be compared at either budget.
        num_evaluations: of a trial, evenly spread by steps, and one at the end.
        seeds: of initialisation, order and wrong labels. The trials of a search take them in
            turn: trial ``i`` of every search has the same one.
        base: further fields of every `Run`.
    """

    sizes: Mapping[str, int]
    epochs: int
    num_steps: int
    num_evaluations: int
    seeds: Sequence[int]
    base: Mapping

    def length(self, dataset: str, batch_size: int) -> tuple[int, int]:
        """Epochs and steps of a trial. The last short batch of an epoch is left out, so that
        every step sees a whole one.

        Example:
            >>> protocol = Protocol({"digits": 1024}, 2, 64, num_evaluations=32, seeds=[0], base={})
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

    def run(self, curve: Curve, batch_size: int, point: Mapping[str, float], number: int) -> Run:
        """The run of a trial.

        Args:
            curve, batch_size: where it belongs.
            point: ``lr``; ``one_minus_momentum`` for the optimisers with one; ``final_fraction``,
                to which the learning rate falls linearly (1 if not given: constant), and
                ``decay_length``, the fraction of the epochs that this takes (1 if not given; a
                whole number of epochs, at least one).
            number: of the trial in its search, from 0.
        """
        epochs, steps = self.length(curve.dataset, batch_size)
        # the difference has noise in its last digits, which should not be part of a key
        momentum = round(1 - point.get("one_minus_momentum", 1.0), 10)
        return Run(
            dataset=curve.dataset,
            network=curve.network,
            label_noise=curve.label_noise,
            batch_size=batch_size,
            epochs=epochs,
            drop_last=True,
            seed=self.seeds[number % len(self.seeds)],
            lr=point["lr"],
            momentum=momentum,
            # without momentum it is plain SGD, and PyTorch refuses the word
            nesterov=curve.optimizer == "nesterov" and momentum > 0,
            schedule="linear",
            gamma=point.get("final_fraction", 1.0),
            step_epochs=max(1, round(point.get("decay_length", 1.0) * epochs)),
            evaluate_unit="step",
            evaluate_every=max(1, steps // self.num_evaluations),
            **self.base,
        )


def set_sizes(
    *, datasets: Sequence[str], train_size: int, data_root: str | None = None
) -> dict[str, np.ndarray]:
    """``samples`` that a stratified ``train_size`` leaves for training, and ``classes``.

    Example:
        >>> sizes = set_sizes(datasets=["digits"], train_size=100)
        >>> sizes["samples"].tolist(), sizes["classes"].tolist()
        ([100], [10])
    """
    sets = [load_dataset(name, "train", root=data_root) for name in datasets]
    samples = [len(data.subset(train_size)) for data in sets]
    return {"samples": np.array(samples), "classes": np.array([data.num_classes for data in sets])}


def task_name(task: Task) -> str:
    """A task in words."""
    dataset, label_noise = task
    name = dataset.rstrip("/").rpartition("/")[2]  # of a path the last part
    return f"{name}, {100 * label_noise:g} % wrong labels" if label_noise else name


def tune(
    cells: Sequence[Cell],
    goals: Mapping[Task, float],
    protocol: Protocol,
    spaces: Mapping[str, Space],
    train: Callable[[Sequence[Run]], pd.DataFrame],
    store: RunStore,
    *,
    num_trials: int,
    max_rounds: int,
) -> Tuned:
    """Tune the metaparameters of every cell for the fewest steps to the goal of its task.

    The points, drawn with the first of the protocol's seeds, differ between batch sizes. They are
    the same for all curves at one batch size as far as their spaces have the same names in the
    same order. All cells that need a round are trained at once. Since training is deterministic,
    so are the later rounds: from stored results the same runs are found again.

    Args:
        cells: (curve, batch size).
        goals: test error to reach (fraction), by task.
        protocol: of the trials.
        spaces: by optimiser.
        train: gives the results of runs, as ``run_missing``.
        store: where their histories are.
        num_trials: of a round.
        max_rounds: of a search.
    """
    runs: dict[Cell, list[Run]] = {cell: [] for cell in cells}
    rounds = []

    def evaluate(requests) -> list[float]:
        wanted = [(cell, protocol.run(*cell, point, number)) for cell, number, point in requests]
        for cell, run in wanted:
            runs[cell].append(run)
        results = train([run for _, run in wanted])
        rounds.append(results)
        measured = measured_errors(results, load_history(results, store))
        goal_of = {run.key: goals[cell[0].task] for cell, run in wanted}
        reached = steps_per_trial(measured, measured["trial"].map(goal_of))
        return [reached[run.key] for _, run in wanted]

    starts = {cell: spaces[cell[0].optimizer] for cell in cells}
    seeds = {cell: 100_000 * protocol.seeds[0] + cell[1] for cell in cells}
    rules = {"seeds": seeds, "max_rounds": max_rounds, "upper": LIMITS}
    searches = search_together(starts, num_trials, evaluate, **rules)
    results = pd.concat(rounds, ignore_index=True).drop_duplicates("key")
    return Tuned(searches, runs, results, load_history(results, store))


def pilot_goals(
    results: pd.DataFrame,
    history: pd.DataFrame,
    pilots: Mapping[Curve, Sequence[Run]],
    chance: Mapping[str, float],
) -> dict[Task, float]:
    r"""A goal for every task, from trials at one batch size.

    .. math:: g = \max_{\text{networks}} e + s \, (c - e)

    with :math:`e` the lowest error of any trial at any time, :math:`c` the error of guessing, and
    ``s = GOAL_SLACK``; rounded up to a tenth of a percent. So every network reached it in the
    pilot.

    Args:
        results, history: of the pilot's runs.
        pilots: runs by curve: plain SGD at one batch size, for every task and network.
        chance: error of guessing, by data set.

    Raises:
        DataError: no trial of a network was ever evaluated, because all diverged.
    """
    goals: dict[Task, float] = {}
    measured = measured_errors(results, history)
    for curve, runs in pilots.items():
        own = measured["trial"].isin([run.key for run in runs])
        lowest = float(measured.loc[own, "error"].min())
        if math.isnan(lowest):
            raise DataError(f"every pilot trial of {curve.workload} diverged; give a goal")
        goal = lowest + GOAL_SLACK * (chance[curve.dataset] - lowest)
        # not up from 0.1 to 0.101 because of the last bit
        goal = math.ceil(1000 * goal - 1e-9) / 1000
        goals[curve.task] = max(goal, goals.get(curve.task, 0.0))
    return goals
