"""The study of batch sizes: from searches to runs and back."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from hardtrain import checks
from hardtrain.data.images import load_dataset
from hardtrain.errors import DataError, ParameterError
from hardtrain.papers.data_parallelism.batch_scaling import measured_errors, steps_per_trial
from hardtrain.papers.data_parallelism.search import Search, Space, search
from hardtrain.runs.results import load_history
from hardtrain.runs.run import Run
from hardtrain.runs.sweep import run_missing

OPTIMIZERS = {"sgd": "SGD", "momentum": "heavy ball", "nesterov": "Nesterov"}
LIMITS = {"one_minus_momentum": 1.0, "final_fraction": 1.0, "decay_length": 1.0}
NOT_REACHED = "not reached"


class Curve(NamedTuple):
    """What steps are measured against the batch size for: a workload. ``label_noise`` is the
    fraction of wrong training labels."""

    dataset: str
    network: str
    optimizer: str
    label_noise: float = 0.0

    @property
    def task(self) -> tuple[str, float]:
        return self.dataset, self.label_noise

    @property
    def workload(self) -> str:
        """Data and network in words.

        Example:
            >>> Curve("digits", "mlp", "sgd", 0.2).workload
            'digits, 20 % wrong labels / mlp'
        """
        return f"{task_name(self.task)} / {self.network}"


Cell = tuple[Curve, int]  # a point of a curve: with its batch size


class Tuned(NamedTuple):
    """Searches by (curve, batch size), their runs in the order of the trials, and the results and
    history of all of them."""

    searches: dict[Cell, Search]
    runs: dict[Cell, list[Run]]
    results: pd.DataFrame
    history: pd.DataFrame


@dataclass(frozen=True)
class Protocol:
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
    seeds: Sequence[int] = (0,)
    base: Mapping = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("epochs", "num_steps", "num_evaluations"):
            checks.integer(name, getattr(self, name), 1)
        if not self.seeds:
            raise ParameterError("seeds is empty; give at least one")

    def length(self, dataset: str, batch_size: int) -> tuple[int, int]:
        """Epochs and steps of a trial. The last short batch of an epoch is left out, so that
        every step sees a whole one.

        Raises:
            ParameterError: the batch is larger than the training set.

        Example:
            >>> protocol = Protocol({"digits": 1024}, epochs=2, num_steps=64, num_evaluations=32)
            >>> protocol.length("digits", 4), protocol.length("digits", 256)
            ((2, 512), (16, 64))
        """
        steps_per_epoch = self.sizes[dataset] // batch_size
        if not steps_per_epoch:
            raise ParameterError(
                f"batch_size = {batch_size} is more than the {self.sizes[dataset]} training "
                f"samples of {dataset}"
            )
        epochs = max(self.epochs, math.ceil(self.num_steps / steps_per_epoch))
        return epochs, epochs * steps_per_epoch

    def batch_sizes(self, dataset: str, sizes: Sequence[int]) -> list[int]:
        """Those of ``sizes`` that the training set can fill, ascending.

        Raises:
            ParameterError: there is none.
        """
        filled = sorted({size for size in sizes if size <= self.sizes[dataset]})
        if not filled:
            raise ParameterError(
                f"batch_sizes = {list(sizes)} are all more than the {self.sizes[dataset]} training "
                f"samples of {dataset}"
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
        decay = max(1, round(point.get("decay_length", 1.0) * epochs))
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
            step_epochs=decay,
            evaluate_unit="step",
            evaluate_every=max(1, steps // self.num_evaluations),
            **self.base,
        )


def set_sizes(
    *, datasets: Sequence[str], train_size: int, data_root: str | None = None
) -> dict[str, np.ndarray]:
    """``samples`` that a stratified ``train_size`` leaves for training, and ``classes``.

    Example:
        >>> found = set_sizes(datasets=["digits"], train_size=100)
        >>> found["samples"].tolist(), found["classes"].tolist()
        ([100], [10])
    """
    sets = [load_dataset(name, "train", root=data_root) for name in datasets]
    return {
        "samples": np.array([len(data.subset(train_size)) for data in sets]),
        "classes": np.array([data.num_classes for data in sets]),
    }


def task_name(task: tuple[str, float]) -> str:
    """A task in words."""
    dataset, label_noise = task
    name = dataset.rstrip("/").rpartition("/")[2]  # of a path the last part
    return f"{name}, {100 * label_noise:g} % wrong labels" if label_noise else name


def curve_name(curve: Curve) -> str:
    """A curve in words."""
    return f"{curve.workload}, {OPTIMIZERS[curve.optimizer]}"


class _Unknown(Exception):
    """A round whose steps are not known yet."""

    def __init__(self, points: list[dict[str, float]]):
        self.points = points


class _Replay:
    """Gives the steps of the rounds that are known, and stops the search at the first other."""

    def __init__(self, rounds: list[list[float]]):
        self.rounds = iter(rounds)

    def __call__(self, points: list[dict[str, float]]) -> list[float]:
        steps = next(self.rounds, None)
        if steps is None:
            raise _Unknown(points)
        return steps


def search_together(
    spaces: Mapping[Hashable, Space],
    num_trials: int,
    evaluate: Callable[[list[tuple[Hashable, int, dict[str, float]]]], Sequence[float]],
    *,
    seeds: Mapping[Hashable, int],
    **settings,
) -> dict[Hashable, Search]:
    """Many searches side by side: each round of all of them is evaluated at once.

    Each is `hardtrain.papers.data_parallelism.search.search`, and finds what it would find alone.

    Args:
        spaces: of each search, by its name.
        num_trials: of a round.
        evaluate: takes a list of (name, number of the trial in its search, point), gives the
            steps of each.
        seeds: of each search.
        settings: keyword arguments of every `search`. ``upper`` may hold names that a space does
            not have.

    Example:
        >>> def steps(requests):
        ...     return [100 + 50 * abs(math.log10(point["lr"])) for _, _, point in requests]
        >>> spaces = {"low": {"lr": (1e-3, 1e-2)}, "around": {"lr": (0.03, 30.0)}}
        >>> found = search_together(spaces, 8, steps, seeds={"low": 0, "around": 0})
        >>> {name: len(result.trials) for name, result in found.items()}
        {'low': 16, 'around': 8}
    """
    upper = settings.pop("upper", {})
    rounds: dict[Hashable, list[list[float]]] = {name: [] for name in spaces}
    while True:
        found, requests, unknown = {}, [], []
        for name, space in spaces.items():
            limits = {key: value for key, value in upper.items() if key in space}
            known = _Replay(rounds[name])
            try:
                found[name] = search(
                    space, num_trials, known, seed=seeds[name], upper=limits, **settings
                )
            except _Unknown as stopped:
                first = len(rounds[name]) * num_trials
                requests += [(name, first + i, point) for i, point in enumerate(stopped.points)]
                unknown.append(name)
        if not unknown:
            return found
        steps = list(evaluate(requests))
        if len(steps) != len(requests):
            raise ParameterError(
                f"evaluate must give one number for each of {len(requests)} requests; "
                f"got {len(steps)}"
            )
        for i, name in enumerate(unknown):
            rounds[name].append(steps[i * num_trials : (i + 1) * num_trials])


def tune(
    cells: Sequence[Cell],
    goals: Mapping[tuple[str, float], float],
    protocol: Protocol,
    spaces: Mapping[str, Space],
    *,
    num_trials: int,
    seed: int,
    store=None,
    engine: str = "local",
    use_committed: bool = True,
    **settings,
) -> Tuned:
    """Tune the metaparameters of every cell for the fewest steps to the goal of its task.

    All cells that need a round are trained in one ``run_missing``. Since training is
    deterministic, so are the later rounds: from stored results the same runs are found again.

    Args:
        cells: (curve, batch size).
        goals: test error to reach (fraction), by task.
        protocol: of the trials.
        spaces: by optimiser.
        num_trials: of a round.
        seed: of the points. They differ between batch sizes, and are the same for all curves at
            one batch size as far as their spaces have the same names in the same order.
        store, engine, use_committed: as in ``run_missing``.
        settings: ``max_rounds``, ``margin`` of `hardtrain.papers.data_parallelism.search.search`.
    """
    runs: dict[Cell, list[Run]] = {cell: [] for cell in cells}
    tables, histories = [], []

    def evaluate(requests) -> list[float]:
        wanted = [
            (cell, protocol.run(*cell, point=point, number=number))
            for cell, number, point in requests
        ]
        results = run_missing(
            [run for _, run in wanted], store, engine=engine, use_committed=use_committed
        )
        history = load_history(results, store)
        tables.append(results)
        histories.append(history)
        steps = _steps(results, history, wanted, goals)
        for cell, run in wanted:
            runs[cell].append(run)
        return steps

    found = search_together(
        {cell: spaces[cell[0].optimizer] for cell in cells},
        num_trials,
        evaluate,
        seeds={cell: 100_000 * seed + cell[1] for cell in cells},
        upper=LIMITS,
        **settings,
    )
    # a run that several cells share is in several rounds
    history = pd.concat(histories, ignore_index=True).drop_duplicates()
    return Tuned(found, runs, pd.concat(tables, ignore_index=True), history)


def _steps(results, history, wanted: list[tuple[Cell, Run]], goals) -> list[float]:
    """Steps to the goal of each of the wanted runs."""
    measured = measured_errors(results, history)
    reached: dict[tuple[str, float], pd.Series] = {}
    for task in {cell[0].task for cell, _ in wanted}:
        keys = {run.key for cell, run in wanted if cell[0].task == task}
        reached[task] = steps_per_trial(measured[measured["trial"].isin(keys)], goals[task])
    return [float(reached[cell[0].task][run.key]) for cell, run in wanted]


def pilot_runs(
    curves: Sequence[Curve],
    protocol: Protocol,
    points: Sequence[Mapping[str, float]],
    sizes: Mapping[str, Sequence[int]],
) -> dict[Curve, list[Run]]:
    """Trials of plain SGD for every task and network among ``curves``.

    Args:
        curves: of the study.
        protocol: of its trials.
        points: one for each trial.
        sizes: batch sizes by data set, of which the smallest is taken.
    """
    pilots = dict.fromkeys(curve._replace(optimizer="sgd") for curve in curves)
    return {
        curve: [
            protocol.run(curve, min(sizes[curve.dataset]), point, number)
            for number, point in enumerate(points)
        ]
        for curve in pilots
    }


def pilot_goals(
    results: pd.DataFrame,
    history: pd.DataFrame,
    pilots: Mapping[Curve, Sequence[Run]],
    chance: Mapping[str, float],
    *,
    slack: float = 0.05,
) -> dict[tuple[str, float], float]:
    r"""A goal for every task, from trials at one batch size.

    .. math:: g = \max_{\text{networks}} e + s \, (c - e)

    with :math:`e` the lowest error of any trial at any time and :math:`c` the error of guessing,
    rounded up to a tenth of a percent. So every network reached it in the pilot.

    Args:
        results, history: of the pilot's runs.
        pilots: from `pilot_runs`.
        chance: error of guessing, by data set.
        slack: ``s`` in [0, 1).

    Raises:
        DataError: no trial of a network was ever evaluated, because all diverged.
    """
    slack = checks.number("slack", slack, 0, below=1)
    goals: dict[tuple[str, float], float] = {}
    for curve, runs in pilots.items():
        keys = [run.key for run in runs]
        rows = results[results["key"].isin(keys)]
        errors = measured_errors(rows, history_of(history, keys))["error"]
        if errors.isna().all():
            raise DataError(
                f"every pilot trial of {curve.workload} diverged, so it sets no goal; give goal"
            )
        lowest = float(errors.min())
        # not up from 0.1 to 0.101 because of the last bit
        goal = math.ceil(1000 * (lowest + slack * (chance[curve.dataset] - lowest)) - 1e-9) / 1000
        goals[curve.task] = max(goal, goals.get(curve.task, 0.0))
    return goals


def history_of(history: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The rows of these runs."""
    return history[history["key"].isin(keys)]
