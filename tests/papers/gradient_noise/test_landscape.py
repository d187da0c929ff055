"""Curves against models put together by hand; exact ends; statistics of a set sorted by class."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hardtrain import ImageDataset, ParameterError, build_network, evaluate, load_dataset
from hardtrain.data.batches import Transform
from hardtrain.papers.gradient_noise.landscape import (
    along_direction,
    filter_normalised_direction,
    interpolate,
)


@pytest.fixture
def sets(tiny_set):
    return {split: load_dataset(tiny_set, split) for split in ("train", "test")}


@pytest.fixture
def transform(sets):
    return Transform.of(sets["train"])


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


def check_ends(make, sets, transform, **kwargs):
    models = make(1), make(2)
    curve = interpolate(*models, [0, 0.5, 1], sets, transform, **kwargs)
    for name, data in sets.items():
        for place, model in zip((0, 2), models, strict=True):
            alone = evaluate(model, data, transform)
            assert curve[f"{name}_loss"][place] == alone.loss
            assert curve[f"{name}_accuracy"][place] == 1 - alone.error
        assert len(set(curve[f"{name}_loss"])) == 3


@pytest.mark.parametrize("make", [plain, with_batch_norm, timm_network])
def test_interpolate_ends_at_the_two_networks_exactly(make, sets, transform):
    check_ends(make, sets, transform, batch_norm="interpolated")


def test_interpolate_without_batch_norm_needs_no_statistics(sets, transform):
    check_ends(plain, sets, transform)
    both = [
        interpolate(plain(1), plain(2), [-1, 0.3, 2], sets, transform, batch_norm=reading)
        for reading in ("re-estimated", "interpolated")
    ]
    for name in both[0]:
        np.testing.assert_array_equal(both[0][name], both[1][name])


def test_interpolate_copies_the_bits_of_the_ends(sets, transform, seen):
    one, other = with_batch_norm(1), with_batch_norm(2)
    for model, value in ((one, -0.0), (other, torch.inf)):  # what arithmetic would not keep
        model[0].bias.data.fill_(value)
        model[0].weight.data[0] = 1e-45  # denormal
    one[5].weight.data.fill_(3e38)  # the difference overflows
    other[5].weight.data.fill_(-3e38)
    test = {"test": sets["test"]}
    interpolate(one, other, [0, 1, 0.0, 1.0], test, transform, batch_norm="interpolated")
    for state, model in zip(seen, (one, other, one, other), strict=True):
        assert {k: v.numpy().tobytes() for k, v in state.items()} == state_bits(model)


def test_interpolate_matches_models_put_together_by_hand(sets, transform):
    one, other, alphas = with_batch_norm(1), with_batch_norm(2), [-0.1, 0.25, 0.5, 0.9, 1.2]
    curve = interpolate(one, other, alphas, sets, transform, batch_norm="interpolated")
    np.testing.assert_array_equal(curve["alpha"], alphas)
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
    assert len(set(curve["test_accuracy"])) > 1


def test_interpolate_leaves_what_the_ends_share(sets, transform, seen):
    model = with_batch_norm(1)
    alphas = [-1, 0.1, 1 / 3, 0.7, 1.9]
    curve = interpolate(
        model, copy.deepcopy(model), alphas, sets, transform, batch_norm="interpolated"
    )
    assert len(set(curve["train_loss"])) == len(set(curve["test_loss"])) == 1
    for state in seen:
        assert {k: v.numpy().tobytes() for k, v in state.items()} == state_bits(model)


def test_interpolated_variances_stay_at_the_smaller_end_at_least(sets, transform, seen):
    one, other = with_batch_norm(1), with_batch_norm(2)
    one[1].running_var.copy_(torch.tensor([1.0, 4.0, 1.0, 0.0]))
    other[1].running_var.copy_(torch.tensor([4.0, 1.0, 1.5, 1.0]))
    test = {"test": sets["test"]}
    curve = interpolate(one, other, [-1, 0.5, 2], test, transform, batch_norm="interpolated")
    found = [state["1.running_var"].tolist() for state in seen]
    # straight on, the first channel would be at -2 for -1, and the second for 2
    assert found == [[1.0, 7.0, 0.5 + 0.5, 0.0], [2.5, 2.5, 1.25, 0.5], [7.0, 1.0, 2.0, 2.0]]
    assert np.isfinite(curve["test_loss"]).all()
    assert [state["1.running_mean"].tolist() for state in seen][2] == pytest.approx(
        (2 * other[1].running_mean - one[1].running_mean).tolist(), rel=1e-5
    )


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
    kwargs = {"statistics_data": data, "batch_size": 39}
    interpolate(one, other, [-1, 0, 1], {"train": data}, transform, **kwargs)
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
    interpolate(one, other, [0, 0.3, 1], {"test": sets["test"]}, transform, statistics_data=data)
    for state in seen:
        model = with_batch_norm(0)
        model.load_state_dict(state)
        with torch.no_grad():
            hidden = model[0](transform(data.images)).transpose(0, 1).flatten(1)
        torch.testing.assert_close(state["1.running_mean"], hidden.mean(dim=1))
        torch.testing.assert_close(state["1.running_var"], hidden.var(dim=1))


def test_re_estimated_statistics_ignore_augmentation(sets, transform):
    augmented = Transform.of(sets["train"], crop_padding=2, flip=True)
    curves = [
        interpolate(
            with_batch_norm(1), with_batch_norm(2), [0.5], sets, t, statistics_data=sets["train"]
        )
        for t in (transform, augmented)
    ]
    assert curves[0] == curves[1]


def test_interpolate_leaves_networks_and_global_randomness_alone(sets, transform):
    models = with_batch_norm(1, dropout=0.5), with_batch_norm(2, dropout=0.5)
    models[0].train()
    models[1].eval()
    before, state = [state_bits(model) for model in models], torch.get_rng_state()
    kwargs = {"statistics_data": sets["train"], "batch_size": 20}
    curves = [interpolate(*models, [0, 0.5, 3], sets, transform, **kwargs) for _ in range(2)]
    for name in curves[0]:
        np.testing.assert_array_equal(curves[0][name], curves[1][name])
    assert [state_bits(model) for model in models] == before
    assert torch.equal(torch.get_rng_state(), state)
    assert (models[0][1].training, models[1].training) == (True, False)
    assert models[0][1].momentum == 0.1
    assert all(parameter.grad is None for parameter in models[0].parameters())


def test_interpolate_rejects_networks_of_different_architecture(sets, transform):
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ParameterError, match=r"body\.0\.weight \(32, 1, 3, 3\).*1\.weight"):
        interpolate(plain(0), other, [0], sets, transform)
    wider = with_batch_norm(0)
    wider[5] = nn.Linear(36, 4)
    with pytest.raises(ParameterError, match=r"5\.weight \(3, 36\).*5\.weight \(4, 36\)"):
        interpolate(with_batch_norm(0), wider, [0], sets, transform, batch_norm="interpolated")
    # of the same shapes, but another function
    capped = with_batch_norm(0)
    capped[2] = nn.ReLU6()
    with pytest.raises(ParameterError, match=r"ReLU\(\).*ReLU6"):
        interpolate(with_batch_norm(0), capped, [0], sets, transform, batch_norm="interpolated")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alphas": []}, "alphas"),
        ({"alphas": [0, np.nan]}, "alphas"),
        ({"alphas": 0.5}, "alphas"),
        ({"sets": {}}, "sets"),
        ({"batch_norm": "kept"}, "batch_norm.*interpolated"),
        ({"batch_norm": "re-estimated"}, "statistics_data = None"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_interpolate_rejects_bad_arguments(changes, message, sets, transform):
    arguments = {"alphas": [0.5], "sets": sets, "batch_norm": "interpolated"} | changes
    with pytest.raises(ParameterError, match=message):
        interpolate(with_batch_norm(0), with_batch_norm(1), transform=transform, **arguments)


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
    curve = along_direction(model, direction, distances, sets, transform, batch_norm="kept")
    np.testing.assert_array_equal(curve["distance"], distances)
    for i, distance in enumerate(distances):
        moved = copy.deepcopy(model)
        for name, parameter in moved.named_parameters():
            parameter.data += distance * direction[name]
        for name, data in sets.items():
            alone = evaluate(moved, data, transform)
            assert curve[f"{name}_loss"][i] == pytest.approx(alone.loss, rel=1e-5)
            assert curve[f"{name}_accuracy"][i] == 1 - alone.error
    assert curve["train_loss"][1] == evaluate(model, sets["train"], transform).loss


def test_along_direction_re_estimates_the_statistics(sets, transform, seen):
    model, test = with_batch_norm(1), {"test": sets["test"]}
    direction = filter_normalised_direction(model, torch.Generator().manual_seed(1))
    along_direction(model, direction, [0, 2], test, transform, statistics_data=sets["train"])
    for state in seen:
        moved = with_batch_norm(0)
        moved.load_state_dict(state)
        with torch.no_grad():
            hidden = moved[0](transform(sets["train"].images)).transpose(0, 1).flatten(1)
        torch.testing.assert_close(state["1.running_var"], hidden.var(dim=1))
    with pytest.raises(ParameterError, match="statistics_data = None"):
        along_direction(model, direction, [0], test, transform)


def test_along_direction_moves_only_what_the_direction_names(sets, transform, seen):
    model = plain(0)
    direction = {"classifier.bias": torch.ones(3)}
    curve = along_direction(model, direction, [0, 5], sets, transform)
    # the same added to all logits changes no probability
    assert curve["train_loss"][1] == pytest.approx(curve["train_loss"][0], rel=1e-5)
    moved, still = seen[-1], model.state_dict()
    assert {k for k in still if not torch.equal(moved[k], still[k])} == {"classifier.bias"}


@pytest.mark.parametrize("entry", [{"nothing": torch.ones(3)}, {"classifier.bias": torch.ones(1)}])
def test_along_direction_rejects_what_fits_no_parameter(entry, sets, transform):
    with pytest.raises(ParameterError, match=r"direction\['.*fits no parameter"):
        along_direction(plain(0), entry, [1], sets, transform)


def test_loss_of_a_linear_classifier_is_convex_along_every_line(sets, transform):
    one, other = (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)) for _ in range(2))
    curve = interpolate(one, other, np.linspace(-1, 2, 13), sets, transform)
    assert (np.diff(curve["train_loss"], n=2) > 0).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_curves_on_a_gpu_are_those_on_a_cpu(sets, transform):
    def both(place):
        one, other = with_batch_norm(1).to(place), with_batch_norm(2)
        direction = filter_normalised_direction(one, torch.Generator().manual_seed(0))
        kwargs = {"statistics_data": sets["train"]}
        return [
            interpolate(one, other, [0, 0.5, 2], sets, transform, batch_norm="interpolated"),
            interpolate(one, other, [0, 0.5, 2], sets, transform, **kwargs),
            along_direction(one, direction, [0, 0.5], sets, transform, **kwargs),
        ]

    for here, there in zip(both("cpu"), both("cuda"), strict=True):
        for name in here:
            np.testing.assert_allclose(
                here[name], there[name], rtol=1e-2, atol=0.051
            )  # TF32; one sample
