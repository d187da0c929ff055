"""Ensembles of a second's fraction, trained once for all tests of this room."""

import pytest

from hardtrain import Run, RunStore
from hardtrain.papers.subset_search import ensembles

NUM_SAMPLES = 60


@pytest.fixture(scope="session")
def run_of(tiny_set):
    """A function that makes runs: 4 steps of 16 an epoch."""

    def make(**changes):
        fields = {"network": "cnn_small", "epochs": 2, "batch_size": 16, "lr": 0.05}
        return Run(**{"dataset": tiny_set, "device": "cpu"} | fields | changes)

    return make


@pytest.fixture(scope="session")
def ensemble_of(run_of):
    """A function that makes ensembles: two runs with three checkpoints each."""

    def make(num_runs=2, num_checkpoints=3, num_samples=NUM_SAMPLES, **changes):
        run = run_of(label_noise_seed=7, **changes)
        return ensembles.ensemble_of(run, num_runs, num_checkpoints, num_samples)

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A store in which a training stays for all tests."""
    return RunStore(tmp_path_factory.mktemp("trained") / "runs")
