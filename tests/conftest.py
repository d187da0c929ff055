"""Small image sets and runs that many tests share. Nothing here needs a network or a download."""

import numpy as np
import pytest
import torch

from hardtrain import Run, RunStore


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tiny networks gain nothing from threads, and the bits are the same on every machine."""
    torch.set_num_threads(1)


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs", checkpoint_seconds=0.0)


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory):
    """A path prefix: 60 + 20 images 8x8 of three classes that brightness tells apart."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, size in (("train", 60), ("test", 20)):
        labels = np.arange(size) % 3
        images = rng.integers(0, 120, (size, 8, 8)) + 60 * labels[:, None, None]
        np.savez(folder / f"tiny_{split}.npz", images=images.astype(np.uint8), labels=labels)
    return str(folder / "tiny")


@pytest.fixture
def tiny_run(tiny_set):
    """A function that makes runs of a second's fraction: 4 steps of 16 an epoch."""

    def make(**changes):
        fields = {"network": "cnn_small", "epochs": 2, "batch_size": 16, "lr": 0.05}
        return Run(**{"dataset": tiny_set, "device": "cpu"} | fields | changes)

    return make
