"""What several test files compare, interrupt and read with."""

import io

import numpy as np
import pandas as pd
import pytest
import torch

from hardtrain import ImageDataset, build_network, load_artefact, run_missing
from hardtrain.training import loop


def copied(state):
    """As it would come back from the disk."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a, b):
    """Whether two models have the same parameters and buffers, bit for bit."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


def interrupt_after(run, store, epoch):
    """Train until the checkpoint of that epoch is saved, and stop as Ctrl-C does."""
    fit = loop.fit

    def stopped(*args, save_checkpoint, **kwargs):
        def save(state):
            save_checkpoint(state)
            if state["epoch"] == epoch:
                raise KeyboardInterrupt

        return fit(*args, save_checkpoint=save, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "fit", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_missing([run], store)


def only(frame, **where):
    """The one row in which these columns have these values."""
    for name, value in where.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def alter_cell(monkeypatch, module, table, column, text, **where):
    """Have an audit module read another text in one printed cell, in the row ``where`` names."""
    original = module.printed_table

    def printed(name):
        frame = original(name)
        if name == table:
            row = (frame[list(where)] == pd.Series(where)).all(axis=1)
            assert row.sum() == 1
            assert frame.loc[row, column].item() != text
            frame.loc[row, column] = text
        return frame

    monkeypatch.setattr(module, "printed_table", printed)


# --- small image sets ----------------------------------------------------------------------------


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def colours(num=20, side=8, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num, side, side, 3), dtype=np.uint8)
    return images, np.arange(num) % classes


def small_set(**kwargs):
    return ImageDataset.from_arrays(*colours(**kwargs))


def save_set(path, images=None, labels=None, **more):
    default = colours()
    arrays = {
        "images": default[0] if images is None else images,
        "labels": default[1] if labels is None else labels,
    }
    np.savez(path, **arrays, **more)
    return path


def tiny_network(num_samples):
    """Inputs, targets, a network and its optimiser with momentum, the same each time."""
    first, second = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    inputs = torch.randn(num_samples, 6, generator=first)
    targets = torch.randint(3, (num_samples,), generator=second)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    return inputs, targets, model, torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)


def kept_network(run, store):
    """The small network with the weights that a run has kept."""
    model = build_network("cnn_small", 3, 1, image_size=8)
    weights = load_artefact(run, "final_weights", store)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return model
