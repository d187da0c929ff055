"""Distribution matching: which trainings its tables need."""

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from hardtrain import checks
from hardtrain.runs.run import Run


class Experiment(NamedTuple):
    """A kind of training of the paper: its data and networks, and how they are trained."""

    datasets: tuple[str, ...]
    networks: tuple[str, ...]
    epochs: int
    lr: float
    gamma: float  # by which the rate falls ...
    drops: tuple[float, ...]  # ... after these parts of the training
    augment: str
    evaluate_every: int  # updates


# Section 4.2. What it leaves open (all of "initial", and how often is evaluated) is as in code
# that is very likely the authors'.
_SMALL_IMAGES = (50, 0.01, 0.2, (0.4, 0.8), "none", 50)
EXPERIMENTS = {
    "initial": Experiment(("qmnist", "kmnist", "fashion-mnist"), ("cnn2",), *_SMALL_IMAGES),
    "small": Experiment(("kmnist", "fashion-mnist"), ("cnn5",), *_SMALL_IMAGES),
    "large": Experiment(
        ("cifar10", "stl10"), ("resnet18", "vgg13", "mobilenet"),
        150, 0.5, 0.1, (1 / 3, 2 / 3), "crop+flip", 5,
    ),
}  # fmt: skip


class Cell(NamedTuple):
    """One experiment with one image set and one network."""

    experiment: str
    dataset: str
    network: str

    @property
    def label(self) -> str:
        """What figures and tables call it."""
        return f"{Path(self.dataset).stem}, {self.network}"


def plan(datasets: Iterable[str], networks: Iterable[str]) -> list[Cell]:
    """Which image set is trained with which network, and in which of ``EXPERIMENTS``.

    A set and a network of the paper meet where the paper has them meet. A network that it does
    not have goes into every experiment of the set. A set that meets none of the networks in this
    way meets them all, in its own experiments. A set that the paper does not have goes into
    "initial" and "small" ("large" with networks of that one).

    Example:
        >>> for cell in plan(["fashion-mnist", "cifar10"], ["cnn2", "cnn5", "vgg13"]):
        ...     print(*cell)
        initial fashion-mnist cnn2
        small fashion-mnist cnn5
        large cifar10 vgg13
    """
    datasets, networks = dict.fromkeys(datasets), dict.fromkeys(networks)
    return [
        Cell(experiment, dataset, network)
        for experiment in EXPERIMENTS
        for dataset, network in product(datasets, networks)
        if experiment in _experiments(dataset, network, networks)
    ]


def _experiments(dataset: str, network: str, networks: Iterable[str]) -> list[str]:
    if any(_meeting(dataset, other) for other in networks):
        return _meeting(dataset, network)
    return _homes(dataset)


def _homes(name: str) -> list[str]:
    """The experiments that have this image set or network; all if none has."""
    homes = [key for key, kind in EXPERIMENTS.items() if name in kind.datasets + kind.networks]
    return homes or list(EXPERIMENTS)


def _meeting(dataset: str, network: str) -> list[str]:
    """The experiments that have both, but of the class-conditional ones the first only."""
    both = [key for key in _homes(dataset) if key in _homes(network)]
    return [key for key in both if key != "large" or "small" not in both]


def joint_and_class(cells: Sequence[Cell]) -> tuple[list[Cell], list[Cell]]:
    """The cells of a `plan` for ITDM-j (as in "initial") and for ITDM-c (as in the others).

    If there is none for one of the two, it gets the first of the other's.
    """
    joint = [cell for cell in cells if cell.experiment == "initial"]
    by_class = [cell for cell in cells if cell.experiment != "initial"]
    return joint or by_class[:1], by_class or joint[:1]


def trainings(
    cell: Cell,
    seeds: Sequence[int],
    options: Mapping,
    *,
    epochs: int = 0,
    lr: float = 0.0,
    evaluate: str = "steps",
    longer: int = 1,
    features: Container[int] = (),
    **fields,
) -> list[Run]:
    """An arm: the method ``distribution_matching`` with ``options``, one run a seed.

    Args:
        cell: from `plan`; its experiment gives the schedule, the augmentation and what is 0 here.
        seeds: of the runs.
        options: of the method.
        epochs, lr: of the training; 0: the experiment's own.
        evaluate: "steps": as often as the experiment says; "epoch": at each epoch's end.
        longer: factor of the epochs; the rate falls after the same parts of the training.
        features: the seeds whose runs keep the test set's features. All keep its logits.
        **fields: further fields of `Run`.

    Raises:
        ParameterError: as `Run`; another text for ``evaluate``.

    Example:
        >>> (run,) = trainings(Cell("large", "stl10", "vgg13"), [0], {"weight": 0.2})
        >>> run.epochs, run.milestones, run.image_size, run.evaluate_every
        (150, (50, 100), 32, 5)
    """
    experiment = EXPERIMENTS[cell.experiment]
    by_steps = checks.choice("evaluate", evaluate, ("steps", "epoch")) == "steps"
    epochs = (epochs or experiment.epochs) * longer
    protocol = {"method": "distribution_matching", "options": options, "epochs": epochs}
    protocol |= {"dataset": cell.dataset, "network": cell.network, "augment": experiment.augment}
    protocol |= {"momentum": 0.5, "batch_size": 150, "lr": lr or experiment.lr}
    protocol |= {"image_size": 32 if cell.dataset == "stl10" else 0}
    protocol |= {"schedule": "multistep", "gamma": experiment.gamma}
    protocol |= {"milestones": sorted({max(1, round(part * epochs)) for part in experiment.drops})}
    protocol |= {"evaluate_every": experiment.evaluate_every if by_steps else 1}
    protocol |= {"evaluate_unit": "step" if by_steps else "epoch"}
    keep = {True: ("features", "logits"), False: ("logits",)}
    return [Run(**protocol | fields, seed=seed, keep=keep[seed in features]) for seed in seeds]


def follows_paper(cell: Cell, run: Run) -> bool:
    """Whether a run of a cell is the paper's own training, but for its seed and method's options:
    the data set, the network, and every field that changes numbers. Mini-batches with their classes
    alike are the authors' code's; the paper does not say.

    Example:
        >>> cell = Cell("initial", "fashion-mnist", "cnn2")
        >>> (run,) = trainings(cell, [3], {"weight": 0.0}, balanced=True)
        >>> (short,) = trainings(cell, [3], {"weight": 0.0}, balanced=True, epochs=10)
        >>> follows_paper(cell, run), follows_paper(cell, short)
        (True, False)
    """
    experiment = EXPERIMENTS[cell.experiment]
    (printed,) = trainings(cell, [run.seed], run.options, balanced=True)
    its_own = cell.dataset in experiment.datasets and cell.network in experiment.networks
    return its_own and run.key == printed.key
