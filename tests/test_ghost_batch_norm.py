"""Ghost batch-norm against slow loops over its parts, alone, in networks and in runs."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hardtrain import (
    ParameterError,
    RunStore,
    build_network,
    load_artefact,
    load_history,
    run_missing,
)
from hardtrain.networks import GhostBatchNorm, has_batch_norm, use_ghost_batch_norm
from hardtrain.training import loop


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- GhostBatchNorm ------------------------------------------------------------------------------


def layers(size, **options):
    """A ghost batch-norm with odd weights and statistics, and a copy of what it was made of."""
    norm, generator = nn.BatchNorm2d(3, **options), seeded(7)
    for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2, generator=generator)
    return GhostBatchNorm(copy.deepcopy(norm), size), norm


def images(num, seed=0):
    return torch.randn(num, 3, 4, 5, generator=seeded(seed)) * 3 + 1


@pytest.mark.parametrize("num", [12, 11, 13, 4, 2])
def test_ghost_batch_norm_matches_a_loop_over_parts_and_channels(num):
    ghost, norm = layers(4)
    inputs, expected = images(num).double(), torch.empty(num, 3, 4, 5, dtype=torch.float64)
    for first in range(0, num, 4):
        part = inputs[first : first + 4]  # the last may be shorter
        for c in range(3):
            mean = part[:, c].mean()
            variance = ((part[:, c] - mean) ** 2).mean()  # 1/n normalises
            scaled = (part[:, c] - mean) / (variance + norm.eps).sqrt()
            expected[first : first + 4, c] = norm.weight[c] * scaled + norm.bias[c]
    found = ghost(inputs.float())
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)
    if num > 4:
        assert not torch.allclose(found, norm(inputs.float()), atol=1e-2)


@pytest.mark.parametrize("momentum", [0.1, 0.7])
@pytest.mark.parametrize("num", [12, 10])
def test_running_statistics_follow_the_formula(momentum, num):
    ghost, norm = layers(4, momentum=momentum)
    inputs = images(num)
    parts = inputs.split(4)
    p = len(parts)
    assert p == 3
    ghost(inputs)
    for name, of in (
        ("running_mean", lambda part: part.mean((0, 2, 3))),
        ("running_var", lambda part: part.transpose(0, 1).flatten(1).var(1)),  # unbiased
    ):
        expected = (1 - momentum) ** p * getattr(norm, name)
        for i, part in enumerate(parts, start=1):
            expected = expected + (1 - momentum) ** (p - i) * momentum * of(part)
        torch.testing.assert_close(getattr(ghost.norm, name), expected, rtol=1e-5, atol=1e-6)
    assert ghost.norm.num_batches_tracked == 3


@pytest.mark.parametrize("size", [6, 7, 1000])
def test_a_ghost_batch_as_large_as_the_batch_is_ordinary_batch_norm_to_the_bit(size):
    ghost, norm = layers(size)
    inputs = [images(6).requires_grad_() for _ in range(2)]
    outputs = [layer(x) for layer, x in zip((ghost, norm), inputs, strict=True)]
    assert torch.equal(*outputs)
    for output in outputs:
        (output**3).sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    for a, b in zip(ghost.parameters(), norm.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    for a, b in zip(ghost.buffers(), norm.buffers(), strict=True):
        assert torch.equal(a, b)


def test_evaluation_is_that_of_the_layer_inside():
    ghost, norm = layers(4)
    ghost.eval()
    norm.eval()
    before = copy.deepcopy(ghost.state_dict())
    assert torch.equal(ghost(images(11)), norm(images(11)))
    assert all(map(torch.equal, ghost.state_dict().values(), before.values()))
    assert ghost.norm.training is False
    assert ghost.train().norm.training is True


def test_ghost_batch_norm_has_the_gradient_of_its_parts():
    ghost, norm = layers(4)
    ghost, norm = ghost.double(), norm.double()
    inputs = images(10).double().requires_grad_()
    weights = torch.randn(10, 3, 4, 5, generator=seeded(5), dtype=torch.float64)
    (ghost(inputs) * weights).sum().backward()
    for first in (0, 4, 8):
        alone = inputs.detach()[first : first + 4].requires_grad_()
        (norm(alone) * weights[first : first + 4]).sum().backward()  # sums the parameters' up
        torch.testing.assert_close(inputs.grad[first : first + 4], alone.grad)
    for a, b in zip(ghost.parameters(), norm.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert torch.autograd.gradcheck(ghost, images(5).double().requires_grad_())


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_ghost_batch_norm_refuses_a_size_that_is_no_count(size):
    with pytest.raises(ParameterError, match=f"size = {size}"):
        GhostBatchNorm(nn.BatchNorm2d(3), size)


# --- use_ghost_batch_norm ------------------------------------------------------------------------

# timm's own layers are in mobilenetv3_small, as in densenet121 and efficientnet_b4
WITH_NORM = ("cnn_small_bn", "cnn5", "resnet18", "mobilenetv3_small", "vgg13", "mobilenet")


@pytest.mark.parametrize("name", WITH_NORM)
def test_every_batch_norm_of_a_network_is_split_and_the_network_still_learns(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_network(name, 3, 1, image_size=32)
    plain = copy.deepcopy(model)
    norms = [m for m in plain.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    use_ghost_batch_norm(model, 3)
    ghosts = [m for m in model.modules() if isinstance(m, GhostBatchNorm)]
    assert len(ghosts) == len(norms) > 0
    inside = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert [ghost.norm for ghost in ghosts] == inside  # none is left outside
    assert has_batch_norm(model)
    # the same weights in the same order under another name
    names = [key.replace(".norm.", ".") for key in model.state_dict()]
    assert len(names) == len(plain.state_dict())
    assert all(map(torch.equal, model.state_dict().values(), plain.state_dict().values()))
    inputs, targets = torch.randn(6, 1, 32, 32, generator=seeded(1)), torch.arange(6) % 3
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(inputs), plain.eval()(inputs))
        logits = plain.train()(inputs)
        assert not torch.allclose(model.train()(inputs), logits, atol=1e-3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(2):
        loss = cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert all(norm.weight.grad is not None for norm in inside)
    assert all(norm.num_batches_tracked == 2 + 2 * 2 for norm in inside)  # two parts a step


def test_a_layer_that_stands_at_several_places_is_wrapped_at_all_of_them():
    norm = nn.BatchNorm1d(4)
    block = nn.Sequential(norm, nn.Linear(4, 4), norm)
    model = nn.Sequential(block, nn.ReLU(), block, norm)
    use_ghost_batch_norm(model, 2)
    for place in (block[0], block[2], model[3]):
        assert isinstance(place, GhostBatchNorm)
        assert place.norm is norm
    model(torch.randn(4, 4, generator=seeded()))
    assert norm.num_batches_tracked == 5 * 2


def test_a_network_without_batch_norm_is_refused(tiny_run, store):
    with pytest.raises(ParameterError, match="ghost_batch_size = 4: the network has no batch-norm"):
        use_ghost_batch_norm(build_network("cnn_small", 3, 1), 4)
    with pytest.raises(ParameterError, match="ghost_batch_size = 4: the network has no batch-norm"):
        run_missing([tiny_run(ghost_batch_size=4)], store)
    assert not store.path.exists()


# --- Run(ghost_batch_size=...) -------------------------------------------------------------------


@pytest.fixture
def ghost_run(tiny_run):
    """60 images in batches of 16, 16, 16 and 12."""

    def make(**changes):
        return tiny_run(**{"network": "cnn_small_bn", "ghost_batch_size": 4} | changes)

    return make


def weights_of(run, store):
    return load_artefact(run, "final_weights", store)


def test_a_run_with_ghost_batches_trains_otherwise_and_goes_on_after_a_pause(
    ghost_run, store, tmp_path, monkeypatch
):
    run = ghost_run(epochs=3, momentum=0.9, keep=("final_weights",))
    plain = dataclasses.replace(run, ghost_batch_size=0)
    frame = run_missing([run, plain], store)
    assert list(frame["ghost_batch_size"]) == [4, 0]
    history = load_history(frame, store)
    ghosts, whole = (
        history[history["key"] == r.key]["train_loss"].to_numpy() for r in (run, plain)
    )
    assert ghosts[-1] < ghosts[0]
    assert not np.allclose(ghosts, whole, rtol=1e-3)
    weights = weights_of(run, store)
    assert {name.replace(".norm.", ".") for name in weights} == set(weights_of(plain, store))
    assert weights["body.1.norm.num_batches_tracked"] == 3 * (4 + 4 + 4 + 3)

    fit = loop.fit

    def stopped(*args, save_checkpoint, **kwargs):
        def save(state):
            save_checkpoint(state)
            raise KeyboardInterrupt

        return fit(*args, save_checkpoint=save, **kwargs)

    other = RunStore(tmp_path / "paused", checkpoint_seconds=0.0)
    for _ in range(2):
        monkeypatch.setattr(loop, "fit", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_missing([run], other)
    monkeypatch.setattr(loop, "fit", fit)
    resumed = weights_of(run, other)
    assert all(np.array_equal(weights[name], resumed[name]) for name in weights)


def test_ghost_batches_as_large_as_the_batch_train_as_ordinary_batch_norm(ghost_run, store):
    runs = [ghost_run(ghost_batch_size=size, keep=("final_weights",)) for size in (0, 16, 100)]
    frame = run_missing(runs, store)
    assert frame["test_loss"].nunique() == frame["train_loss"].nunique() == 1
    weights = [list(weights_of(run, store).values()) for run in runs]
    assert all(map(np.array_equal, weights[0], weights[1]))
    assert all(map(np.array_equal, weights[0], weights[2]))
    assert len({run.key for run in runs}) == 3


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"ghost_batch_size": 1}, True),
        ({"ghost_batch_size": 5}, True),  # 16 = 3 * 5 + 1
        ({"ghost_batch_size": 11}, True),  # the last batch of 12 = 11 + 1
        ({"ghost_batch_size": 11, "drop_last": True}, False),
        ({"ghost_batch_size": 7}, False),  # 16 = 2 * 7 + 2, 12 = 7 + 5
        ({"ghost_batch_size": 4, "test_size": 17, "batch_norm": "batch"}, True),
        ({"ghost_batch_size": 8, "test_size": 9, "batch_norm": "batch"}, True),
        ({"ghost_batch_size": 8, "test_size": 9}, False),  # evaluation has running statistics
    ],
)
def test_a_part_of_one_sample_is_refused_before_training(ghost_run, store, changes, refused):
    run = ghost_run(epochs=1, **changes)
    if not refused:
        assert math.isfinite(run_missing([run], store)["train_loss"][0])
        return
    with pytest.raises(ParameterError, match="one sample"):
        run_missing([run], store)
    assert not store.path.exists()
