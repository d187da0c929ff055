"""Small image sets and runs that many tests share. Nothing here needs a network or a download."""

import os

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hardtrain import Run, RunStore

os.environ.setdefault("HARDTRAIN_DEVICE", "cpu")  # kernels and processes of tests see it, too


class Looks(TorchDispatchMode):
    """Counts operations, and looks at a tensor's contents, which would wait for a device."""

    def __init__(self):
        super().__init__()
        self.waits = self.operations = 0

    def __enter__(self):
        tolist = torch.Tensor.tolist

        def counted(tensor):  # of a CPU tensor it reads the memory and dispatches nothing
            self.waits += 1
            return tolist(tensor)

        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(torch.Tensor, "tolist", counted)
        return super().__enter__()

    def __exit__(self, *error):
        self._patch.undo()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select")
        self.waits += func.overloadpacket.__name__ in waits
        self.operations += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def looks():
    """The class `Looks`."""
    return Looks


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
