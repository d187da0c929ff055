"""Curves against models put together by hand; exact ends; statistics of a set sorted by class."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from hardtrain import ImageDataset, build_network, evaluate
from hardtrain.data.batches import Transform
from hardtrain.networks import use_ghost_batch_norm
from hardtrain.papers.gradient_noise.landscape import (
    along_direction,
    estimate_statistics,
    evaluate_states,
    filter_normalised_direction,
    interpolate,
)


@pytest.fixture
def seen(monkeypatch):
    """The states with which models were evaluated, in order."""
    states = []

    def record(model, *args, **kwargs):
        states.append({k: v.detach().clone() for k, v in model.state_dict().items()})
        return evaluate(model, *args, **kwargs)

    monkeypatch.setattr("hardtrain.papers.gradient_noise.landscape.evaluate", record)
    return states


def plain(seed):
    torch.manual_seed(seed)
    return build_network("cnn_small", 3, 1)


def with_batch_norm(seed, dropout=0.0):
    """Batch-norm with statistics and weights that differ from seed to seed."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(36, 3))
    for tensor in (model[1].weight, model[1].running_var):
        tensor.data.uniform_(0.1, 4)
    model[1].running_mean.normal_()
    model[1].num_batches_tracked += 7 + seed
    return model


def timm_network(seed):
    torch.manual_seed(seed)
    model = build_network("resnet18", 3, 1)
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return model


def state_bits(model):
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("make", [plain, with_batch_norm, timm_network])
def test_interpolate_ends_at_the_two_networks_exactly(make, sets, transform):
    models = make(1), make(2)
    curve = evaluate_states(models[0], interpolate(*models, [0, 0.5, 1]), None, sets, transform)
    for name, data in sets.items():
        losses, accuracies = curve[f"{name}_loss"], curve[f"{name}_accuracy"]
        for row, model in ((0, models[0]), (2, models[1])):
            alone = evaluate(model, data, transform)
            assert (losses[row], accuracies[row]) == (alone.loss, 1 - alone.error)
        assert losses.nunique() == 3


def test_networks_without_batch_norm_have_no_statistics(sets, transform):
    one, other = plain(1), plain(2)
    both = [
        evaluate_states(one, interpolate(one, other, [-1, 0.3, 2]), data, sets, transform)
        for data in (sets["train"], None)
    ]
    assert both[0].equals(both[1])


def test_interpolate_copies_the_bits_of_the_ends(sets, transform, seen):
    one, other = with_batch_norm(1), with_batch_norm(2)
    for model, value in ((one, -0.0), (other, torch.inf)):  # what arithmetic would not keep
        model[0].bias.data.fill_(value)
        model[0].weight.data[0] = 1e-45  # denormal
    one[5].weight.data.fill_(3e38)  # the difference overflows
    other[5].weight.data.fill_(-3e38)
    states = interpolate(one, other, [0, 1, 0.0, 1.0])
    evaluate_states(one, states, None, {"test": sets["test"]}, transform)
    for state, model in zip(seen, (one, other, one, other), strict=True):
        assert {k: v.numpy().tobytes() for k, v in state.items()} == state_bits(model)


def test_interpolate_matches_models_put_together_by_hand(sets, transform):
    one, other, alphas = with_batch_norm(1), with_batch_norm(2), [-0.1, 0.25, 0.5, 0.9, 1.2]
    curve = evaluate_states(one, interpolate(one, other, alphas), None, sets, transform)
    for i, alpha in enumerate(alphas):
        model, ends = with_batch_norm(0), (one.state_dict(), other.state_dict())
        mixed = {k: (1 - alpha) * ends[0][k].double() + alpha * ends[1][k] for k in ends[0]}
        smaller = torch.minimum(*(end["1.running_var"] for end in ends))
        mixed["1.running_var"].clamp_(min=smaller)  # matters outside [0, 1] alone
        model.load_state_dict(mixed)
        for name, data in sets.items():
            alone = evaluate(model, data, transform)
            assert curve[f"{name}_loss"][i] == pytest.approx(alone.loss, rel=1e-5)
            assert curve[f"{name}_accuracy"][i] == pytest.approx(1 - alone.error)
    assert curve["test_accuracy"].nunique() > 1


def test_interpolate_leaves_what_the_ends_share():
    model = with_batch_norm(1)
    for state in interpolate(model, copy.deepcopy(model), [-1, 0.1, 1 / 3, 0.7, 1.9]):
        assert {k: v.numpy().tobytes() for k, v in state.items()} == state_bits(model)


def test_interpolated_variances_stay_at_the_smaller_end_at_least(sets, transform):
    one, other = with_batch_norm(1), with_batch_norm(2)
    one[1].running_var.copy_(torch.tensor([1.0, 4.0, 1.0, 0.0]))
    other[1].running_var.copy_(torch.tensor([4.0, 1.0, 1.5, 1.0]))
    states = list(interpolate(one, other, [-1, 0.5, 2]))
    variances = [state["1.running_var"].tolist() for state in states]
    # straight on, the first channel would be at -2 for -1, and the second for 2
    assert variances == [[1.0, 7.0, 0.5 + 0.5, 0.0], [2.5, 2.5, 1.25, 0.5], [7.0, 1.0, 2.0, 2.0]]
    expected = 2 * other[1].running_mean - one[1].running_mean
    torch.testing.assert_close(states[2]["1.running_mean"], expected)
    curve = evaluate_states(one, states, None, {"test": sets["test"]}, transform)
    assert np.isfinite(curve["test_loss"]).all()


def sorted_by_class():
    """Four classes of 20 images each, of one brightness each, one class after the other."""
    labels = np.repeat(np.arange(4), 20)
    images = 60 * labels[:, None, None] + np.random.default_rng(0).integers(0, 20, (80, 8, 8))
    return ImageDataset.from_arrays(images.astype(np.uint8), labels)


def test_re_estimated_statistics_are_those_of_the_whole_set(seen):
    data = sorted_by_class()
    transform = Transform.of(data)
    one, other = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 4)), None
    one[0].momentum = 0.03
    other = copy.deepcopy(one)
    other[0].running_mean.fill_(50)
    states = interpolate(one, other, [-1, 0, 1])
    evaluate_states(one, states, data, {"train": data}, transform, batch_size=39)
    inputs = transform(data.images)
    for state in seen:
        # three batches, 27 + 27 + 26, not 39 + 39 + 2; in the set's own order they would see half
        # the variance
        assert state["0.running_mean"].item() == pytest.approx(inputs.mean().item(), abs=0.02)
        assert state["0.running_var"].item() == pytest.approx(inputs.var().item(), rel=0.05)
        assert state["0.num_batches_tracked"].item() == 3
        assert state["0.running_mean"].item() == seen[0]["0.running_mean"].item()


def test_re_estimated_statistics_are_exact_in_one_batch(sets, transform, seen):
    one, other = with_batch_norm(1), with_batch_norm(2)
    data = sets["train"]
    states = interpolate(one, other, [0, 0.3, 1])
    evaluate_states(one, states, data, {"test": sets["test"]}, transform)
    for state in seen:
        model = with_batch_norm(0)
        model.load_state_dict(state)
        with torch.no_grad():
            hidden = model[0](transform(data.images)).transpose(0, 1).flatten(1)
        torch.testing.assert_close(state["1.running_mean"], hidden.mean(dim=1))
        torch.testing.assert_close(state["1.running_var"], hidden.var(dim=1))


def test_curves_leave_networks_and_global_randomness_alone(sets, transform):
    models = with_batch_norm(1, dropout=0.5), with_batch_norm(2, dropout=0.5)
    models[0].train()
    models[1].eval()
    before, state = [state_bits(model) for model in models], torch.get_rng_state()
    curves = [
        evaluate_states(
            models[0], interpolate(*models, [0, 0.5, 3]), sets["train"], sets, transform,
            batch_size=20,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert curves[0].equals(curves[1])
    assert [state_bits(model) for model in models] == before
    assert torch.equal(torch.get_rng_state(), state)
    assert (models[0][1].training, models[1].training) == (True, False)
    assert models[0][1].momentum == 0.1
    assert all(parameter.grad is None for parameter in models[0].parameters())


@pytest.mark.parametrize("ghost", [0, 7])
def test_statistics_are_those_of_torch_without_a_look_at_the_device_in_each_batch(
    sets, transform, looks, ghost
):
    def waits(num_images):
        ours, theirs = with_batch_norm(1), with_batch_norm(1)
        if ghost:
            use_ghost_batch_norm(ours, ghost)
            use_ghost_batch_norm(theirs, ghost)
        ours.eval()
        data = sets["train"].take(torch.arange(num_images))
        with looks() as during:
            estimate_statistics(ours, data, transform, batch_size=10)
        parts = torch.randperm(num_images, generator=torch.Generator().manual_seed(0))
        parts = parts.tensor_split(math.ceil(num_images / 10))
        with torch.no_grad():
            update_bn((transform(data.images[part]) for part in parts), theirs)
        assert state_bits(ours) == state_bits(theirs)
        assert not ours.training
        assert [m.momentum for m in ours.modules() if hasattr(m, "momentum")] == [0.1]
        return during.waits

    assert waits(20) == waits(40)


def test_interpolate_rejects_networks_of_different_architecture():
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(RuntimeError, match=r"Missing key.*body\.0\.weight"):
        next(interpolate(plain(0), other, [0]))
    wider = with_batch_norm(0)
    wider[5] = nn.Linear(36, 4)
    with pytest.raises(RuntimeError, match=r"size mismatch for 5\.weight"):
        next(interpolate(with_batch_norm(0), wider, [0]))


def test_filter_normalised_direction_has_the_lengths_of_the_filters():
    model = with_batch_norm(3)
    model[0].weight.data[1] = 0
    direction = filter_normalised_direction(model, torch.Generator().manual_seed(0))
    assert list(direction) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        assert direction[name].shape == parameter.shape
        if parameter.ndim == 1:
            assert not direction[name].any()
            continue
        for mine, weights in zip(direction[name], parameter.detach(), strict=True):
            torch.testing.assert_close(mine.norm(), weights.norm())
    assert not direction["0.weight"][1].any()


def test_filter_normalised_direction_is_gaussian_and_drawn_from_the_generator():
    model = nn.Linear(4000, 3)
    one, again, other = (
        filter_normalised_direction(model, torch.Generator().manual_seed(seed))["weight"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    scaled = one / model.weight.detach().norm(dim=1, keepdim=True) * 4000**0.5
    assert scaled.mean().abs() < 0.04  # 4.4 standard errors
    assert (scaled**4).mean() == pytest.approx(3, abs=0.4)  # a uniform draw has 1.8
    overlap = nn.functional.cosine_similarity(one, model.weight.detach())
    assert (overlap.abs() < 0.07).all()


def test_along_direction_matches_models_put_together_by_hand(sets, transform):
    model, distances = with_batch_norm(1), [-1.5, 0, 0.5]
    direction = filter_normalised_direction(model, torch.Generator().manual_seed(1))
    states = along_direction(model, direction, distances)
    curve = evaluate_states(model, states, None, sets, transform)
    for i, distance in enumerate(distances):
        moved = copy.deepcopy(model)
        for name, parameter in moved.named_parameters():
            parameter.data += distance * direction[name]
        for name, data in sets.items():
            alone = evaluate(moved, data, transform)
            assert curve[f"{name}_loss"][i] == pytest.approx(alone.loss, rel=1e-5)
            assert curve[f"{name}_accuracy"][i] == 1 - alone.error
    assert curve["train_loss"][1] == evaluate(model, sets["train"], transform).loss


def test_statistics_along_a_direction_are_re_estimated(sets, transform, seen):
    model, test = with_batch_norm(1), {"test": sets["test"]}
    direction = filter_normalised_direction(model, torch.Generator().manual_seed(1))
    states = along_direction(model, direction, [0, 2])
    evaluate_states(model, states, sets["train"], test, transform)
    for state in seen:
        moved = with_batch_norm(0)
        moved.load_state_dict(state)
        with torch.no_grad():
            hidden = moved[0](transform(sets["train"].images)).transpose(0, 1).flatten(1)
        torch.testing.assert_close(state["1.running_var"], hidden.var(dim=1))


def test_along_direction_moves_only_what_the_direction_names(sets, transform):
    model = plain(0)
    states = list(along_direction(model, {"classifier.bias": torch.ones(3)}, [0, 5]))
    curve = evaluate_states(model, states, None, sets, transform)
    # the same added to all logits changes no probability
    assert curve["train_loss"][1] == pytest.approx(curve["train_loss"][0], rel=1e-5)
    still = model.state_dict()
    assert {k for k in still if not torch.equal(states[1][k], still[k])} == {"classifier.bias"}


def test_loss_of_a_linear_classifier_is_convex_along_every_line(sets, transform):
    one, other = (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)) for _ in range(2))
    states = interpolate(one, other, np.linspace(-1, 2, 13))
    curve = evaluate_states(one, states, None, sets, transform)
    assert (np.diff(curve["train_loss"], n=2) > 0).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_curves_on_a_gpu_are_those_on_a_cpu(sets, transform):
    def curves(device):
        one, other = with_batch_norm(1).to(device), with_batch_norm(2)
        direction = filter_normalised_direction(one, torch.Generator().manual_seed(0))
        moved = {name: data.to(device) for name, data in sets.items()}
        for data in (None, moved["train"]):
            states = interpolate(one, other, [0, 0.5, 2])
            yield evaluate_states(one, states, data, moved, transform)
            states = along_direction(one, direction, [0, 0.5])
            yield evaluate_states(one, states, data, moved, transform)

    for here, there in zip(curves("cpu"), curves("cuda"), strict=True):
        # TF32; one sample
        np.testing.assert_allclose(here, there, rtol=1e-2, atol=0.051)
