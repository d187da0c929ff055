"""What the arms cost, measured in turns: times of trainings that shared the machine with others, or
were made on several, cannot be compared."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hardtrain.report import timing
from hardtrain.runs.run import Run
from hardtrain.runs.run_data import load_data, training_set
from hardtrain.runs.train import build
from hardtrain.training.loop import Method, fit
from hardtrain.training.randomness import isolated_randomness

NUM_EPOCHS = 2  # what looks at losses has some in the second
NUM_BATCHES = 20  # of an epoch
SMALL = "small network"  # beside the arms' names


def sample_costs(
    runs: Sequence[Run], *, names: Sequence[str], small_network: str, repetitions: int = 5
) -> dict[str, np.ndarray]:
    """Seconds for each sample that goes through the backward pass, with all that its method does.

    Short trainings on a part of the data, by ``training.fit``, without evaluation, in turns.

    Args:
        runs: one of each arm; plain training is the first. names: of the arms.
        small_network: is measured, too, with plain training.

    Returns:
        ``names (A + 1,)``, ``seconds (R, A + 1)`` by round, ``machine ()``.
    """
    plain = replace(runs[0], network=small_network)
    trainings = {
        name: partial(_train, shortened(run))
        for name, run in zip([*names, SMALL], [*runs, plain], strict=True)
    }
    sent = {name: training() for name, training in trainings.items()}
    device = load_data(plain)[0].images.device
    times = timing.interleaved(trainings, repetitions, warmup=0, device=device)
    seconds = np.array([times[name] for name in trainings]).T / list(sent.values())
    machine = timing.machine(plain.device)
    return {"names": np.array(list(trainings)), "seconds": seconds, "machine": np.array(machine)}


def shortened(run: Run) -> Run:
    """A few epochs of the run on a part of its data."""
    size = min(len(load_data(run)[0]), NUM_BATCHES * run.batch_size)
    return replace(run, epochs=NUM_EPOCHS, evaluate_every=NUM_EPOCHS, train_size=size)


def _train(run: Run) -> int:
    """How many samples went through the backward pass."""
    given, test, _ = load_data(run)
    data, sizes = training_set(run, given), []
    with isolated_randomness(run.seed, data.images.device, precision=run.precision):
        model, method = build(run, data, test)
        if method.held_out is not None:
            method.held_out.take(torch.zeros(len(data), device=data.images.device))
        _count(method, sizes)
        fit(run, model, method, lambda model: {})
    return sum(sizes)


def _count(method: Method, sizes: list[int]) -> None:
    observe = method.observe

    def counted(indices: Tensor, losses: Tensor) -> None:
        observe(indices, losses)
        sizes.append(len(indices))

    method.observe = counted


def relative(measured: Mapping[str, np.ndarray]) -> dict[str, float]:
    """By name the cost of a sample, relative to plain training: medians over the rounds."""
    ratios = np.median(measured["seconds"] / measured["seconds"][:, :1], axis=0)
    return dict(zip(measured["names"].tolist(), ratios.tolist(), strict=True))


def sent_backward(history: pd.DataFrame, arm: Sequence[Run], num_train: int) -> pd.Series:
    """By run's key how many samples went through the backward pass."""
    last = history.groupby("key")["samples"].last() if "samples" in history else pd.Series()
    # what does not count them sends every sample of an epoch
    whole = pd.Series({run.key: float(run.epochs * num_train) for run in arm})
    done = history["key"].unique()
    return last.reindex(whole.index).astype(float).fillna(whole)[whole.index.isin(done)]


def as_timings(
    costs: Mapping[str, float],
    history: pd.DataFrame,
    arms: Mapping[str, Sequence[Run]],
    num_train: int,
) -> pd.DataFrame:
    """A row for each run as `load_timings` gives it, with the time of a sample of plain training
    as its second: what was sent backward, at the measured cost of each sample.

    Args:
        costs: by arm and `SMALL`, as `relative` gives them.
        num_train: samples of the setting that ``arms`` are of.
    """
    rows = []
    for name, arm in arms.items():
        sent = sent_backward(history, arm, num_train)
        for run in arm:
            small_epochs = run.options.get("small_epochs", 0)
            before = costs[SMALL] * small_epochs * num_train if small_epochs else np.nan
            if run.key in sent:
                rows.append({"key": run.key, "seconds": costs[name] * sent[run.key],
                             "seconds_evaluating": 0.0, "seconds_before": before})  # fmt: skip
    return pd.DataFrame(rows, columns=["key", "seconds", "seconds_evaluating", "seconds_before"])
