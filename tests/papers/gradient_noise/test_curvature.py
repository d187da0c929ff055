"""The eigenvalue against dense Hessians and known spectra; the covariance against plain loops."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hardtrain import ImageDataset, build_network
from hardtrain.papers.gradient_noise import curvature
from hardtrain.papers.gradient_noise.curvature import (
    gradient_noise_scale,
    largest_eigenvalue,
    noise_term,
)
from hardtrain.training import randomness


def start(seed=0):
    return torch.Generator().manual_seed(seed)


def small_network(seed=0, scale=1.0):
    """1,087 parameters, with batch-norm and a smooth activation."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(72, 13), nn.Tanh(), nn.Linear(13, 3))
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    for parameter in model.parameters():
        parameter.data *= scale
    return model


def dense_spectrum(model, dataset, transform):
    """All eigenvalues, from the Hessian of one flat vector in float64."""
    model = copy.deepcopy(model).double().eval()
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    flat = torch.cat([model.get_parameter(name).detach().flatten() for name in shapes])
    inputs = transform(dataset.images).double()

    def loss(flat):
        pieces = flat.split([shape.numel() for shape in shapes.values()])
        values = {n: v.view(shapes[n]) for n, v in zip(shapes, pieces, strict=True)}
        return cross_entropy(torch.func.functional_call(model, values, inputs), dataset.labels)

    return np.linalg.eigvalsh(torch.func.jacrev(torch.func.grad(loss))(flat).numpy())


def test_largest_eigenvalue_is_that_of_the_dense_hessian(train, transform):
    model, part = small_network(), train.subset(20)
    assert sum(p.numel() for p in model.parameters()) == 1087
    spectrum = dense_spectrum(model, part, transform)
    assert spectrum[-1] > 1.05 * spectrum[-2]  # so that its neighbour would not pass
    found = largest_eigenvalue(model, part, transform, generator=start())
    assert found == pytest.approx(spectrum[-1], rel=1e-3)
    found = largest_eigenvalue(model, part, transform, generator=start(), tolerance=1e-6)
    assert found == pytest.approx(spectrum[-1], rel=1e-5)


def test_largest_eigenvalue_is_not_the_largest_in_magnitude(train, transform):
    # wrong and sure of it: the Gauss-Newton part vanishes, the rest has either sign
    model = small_network(seed=1, scale=4.0).eval()
    with torch.no_grad():
        labels = model(transform(train.images)).argmin(dim=1)
    wrong = dataclasses.replace(train, labels=labels)
    spectrum = dense_spectrum(model, wrong, transform)
    assert -spectrum[0] > 1.2 * spectrum[-1] > 0
    found = largest_eigenvalue(model, wrong, transform, generator=start())
    assert found == pytest.approx(spectrum[-1], rel=1e-3)


@pytest.mark.parametrize("network", ["cnn_small", "cnn_small_bn"])
def test_largest_eigenvalue_of_a_network_is_where_its_curvature_is(network, train, transform):
    """Power iteration on differences of gradients, which shares no code with the module."""
    torch.manual_seed(0)
    model = build_network(network, 3, 1)
    found = largest_eigenvalue(model, train, transform, generator=start())
    reference = copy.deepcopy(model).double().eval()
    inputs, parameters = transform(train.images).double(), list(reference.parameters())
    point = nn.utils.parameters_to_vector(parameters).detach()

    def gradient(at):
        nn.utils.vector_to_parameters(at, parameters)
        loss = cross_entropy(reference(inputs), train.labels)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    vector = torch.randn(len(point), dtype=torch.float64, generator=start(1))
    for _ in range(60):
        vector /= vector.norm()
        step = 1e-5 * vector
        image = (gradient(point + step) - gradient(point - step)) / 2e-5
        value, vector = (image @ vector).item(), image
    assert found == pytest.approx(value, rel=1e-2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "spectrum",
    [
        [-10.0, *np.linspace(-1, 3, 200)],
        np.linspace(-5, -1, 100),  # none is positive
        [0.0] * 200 + [1.0, 2.0, 3.0],
        [0.0] * 50,
        [2.0] * 50,
        [-3.0, 1.0, 2.0],  # fewer than Lanczos vectors
    ],
)
def test_largest_eigenvalue_of_a_quadratic_with_a_known_spectrum(spectrum, dtype):
    size, rng = len(spectrum), np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    matrix = ((basis * spectrum) @ basis.T).astype(dtype)
    vector = rng.normal(size=size).astype(dtype)
    found = curvature._largest_eigenvalue(lambda v: matrix @ v, vector, 1e-3)
    assert found == pytest.approx(max(spectrum), rel=1e-3, abs=1e-12)


def test_largest_eigenvalue_is_as_close_as_its_tolerance():
    matrix, rng = np.diag(np.linspace(0, 3, 300)), np.random.default_rng(0)
    vector, num_products = rng.normal(size=300), []
    for tolerance in (1e-1, 1e-3, 1e-9):
        calls = []
        found = curvature._largest_eigenvalue(
            lambda v, calls=calls: calls.append(1) or matrix @ v, vector, tolerance
        )
        assert found == pytest.approx(3, rel=tolerance)
        num_products.append(len(calls))
    assert num_products[0] < num_products[1] < num_products[2]


def softmax_at_zero(num_classes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes, bias=False))
    nn.init.zeros_(model[1].weight)
    return model


def test_largest_eigenvalue_of_softmax_regression_is_known(train, transform):
    # at zero H = (I / K - 1 / K^2) x second moments, whatever the labels
    inputs = transform(train.images).flatten(1).double()
    second_moments = inputs.T @ inputs / len(train)
    expected = torch.linalg.eigvalsh(second_moments)[-1].item() / 3
    found = largest_eigenvalue(softmax_at_zero(3), train, transform, generator=start())
    assert found == pytest.approx(expected, rel=1e-3)
    other = dataclasses.replace(train, labels=train.labels.flip(0))
    again = largest_eigenvalue(softmax_at_zero(3), other, transform, generator=start())
    assert again == pytest.approx(expected, rel=1e-3)


def test_largest_eigenvalue_does_not_depend_on_batches_or_start(train, transform):
    model = small_network()
    kwargs = {"tolerance": 1e-6}
    one = largest_eigenvalue(model, train, transform, generator=start(), **kwargs)
    small = largest_eigenvalue(model, train, transform, generator=start(), batch_size=7, **kwargs)
    other = largest_eigenvalue(model, train, transform, generator=start(1), **kwargs)
    assert small == pytest.approx(one, rel=1e-4)
    assert other == pytest.approx(one, rel=1e-4)
    assert one == largest_eigenvalue(model, train, transform, generator=start(), **kwargs)


def test_curvature_counts_only_parameters_that_want_a_gradient(train, transform):
    model = small_network()
    model[0].requires_grad_(False)
    found = largest_eigenvalue(model, train, transform, generator=start())
    assert found == pytest.approx(dense_spectrum(model, train, transform)[-1], rel=1e-3)
    noise = gradient_noise_scale(model, train, transform)
    gradients = looped_gradients(model, train, transform)
    assert gradients.shape[1] == 1087 - 80
    expected = (gradients - gradients.mean(dim=0)).square().sum() / len(train)
    assert noise.trace == pytest.approx(expected.item(), rel=1e-4)


def test_curvature_of_a_network_with_an_unused_parameter(train, transform):
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.used = nn.Linear(2, 2), small_network()

        def forward(self, inputs):
            return self.used(inputs)

    models, kwargs = (small_network(), Spare()), {"tolerance": 1e-6}
    values = [
        largest_eigenvalue(model, train, transform, generator=start(), **kwargs) for model in models
    ]
    assert values[1] == pytest.approx(values[0], rel=1e-4)
    noise = [gradient_noise_scale(model, train, transform) for model in models]
    assert noise[1] == pytest.approx(noise[0], rel=1e-5)


def looped_gradients(model, dataset, transform):
    """One backward call a sample, float64: ``(N, P)``."""
    model = copy.deepcopy(model).double().eval()
    rows = []
    for image, label in zip(transform(dataset.images).double(), dataset.labels, strict=True):
        model.zero_grad()
        cross_entropy(model(image[None]), label[None]).backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    return torch.stack(rows)


def network(name):
    torch.manual_seed(1)
    return small_network() if name == "small" else build_network(name, 3, 1)


@pytest.mark.parametrize("name", ["small", "cnn_small", "cnn_small_bn", "resnet18"])
def test_gradient_noise_scale_matches_a_plain_loop(name, train, transform):
    model, data = network(name), train.subset(2 if name == "resnet18" else 20)
    gradients = looped_gradients(model, data, transform)
    mean = gradients.mean(dim=0)
    trace = (gradients - mean).square().sum(dim=1).mean().item()
    found = gradient_noise_scale(model, data, transform, block_size=6)
    assert found.trace == pytest.approx(trace, rel=1e-4)
    assert found.squared_norm == pytest.approx(mean.square().sum().item(), rel=1e-4)
    assert found.noise_scale == found.trace / found.squared_norm


def test_gradient_noise_scale_is_the_scatter_of_mini_batches(train, transform):
    """Of 2,000 mini-batches drawn with replacement: mean squared distance to the full gradient."""
    model, batch_size, num_batches = small_network(), 8, 2000
    gradients = looped_gradients(model, train, transform)
    drawn = torch.randint(len(train), (num_batches, batch_size), generator=start())
    distances = gradients[drawn].mean(dim=1) - gradients.mean(dim=0)
    squares = distances.square().sum(dim=1)
    error = squares.std().item() / math.sqrt(num_batches)
    found = gradient_noise_scale(model, train, transform)
    assert abs(squares.mean().item() - found.trace / batch_size) < 4 * error
    assert error < 0.03 * found.trace / batch_size  # so that B + 1 or N - 1 batches would not pass
    # with learning rate 0.1: how far the noise moves a step
    rms = 0.1 * squares.mean().sqrt().item()
    assert noise_term(found.trace, 0.1, batch_size) == pytest.approx(rms, rel=0.05)


def test_gradient_noise_scale_of_softmax_regression_is_known(train, transform):
    # at zero g_i = (1/K - onehot) x input: its squared length is (1 - 1/K) |x|^2
    found = gradient_noise_scale(softmax_at_zero(3), train, transform)
    inputs = transform(train.images).flatten(1).double()
    residual = 1 / 3 - torch.eye(3, dtype=torch.float64)[train.labels]
    squared_norm = (residual.T @ inputs / len(train)).square().sum().item()
    second_moment = (2 / 3 * inputs.square().sum(dim=1)).mean().item()
    assert found.squared_norm == pytest.approx(squared_norm, rel=1e-5)
    assert found.trace == pytest.approx(second_moment - squared_norm, rel=1e-5)


def test_gradient_noise_scale_at_its_limits(train, transform):
    model = small_network()
    same = torch.zeros(9, dtype=torch.int64)
    repeated = dataclasses.replace(train, images=train.images[same], labels=train.labels[same])
    found = gradient_noise_scale(model, repeated, transform)
    assert found.squared_norm > 0.01
    assert 0 <= found.noise_scale < 1e-10  # equal samples: no noise, and no cancellation
    # one class alone: no loss, no gradient
    alone = ImageDataset.from_arrays(np.zeros((4, 8, 8), np.uint8), np.zeros(4, int))
    zero = gradient_noise_scale(softmax_at_zero(1), alone, transform)
    assert (zero.trace, zero.squared_norm) == (0, 0)
    assert math.isnan(zero.noise_scale)
    # two samples that cancel: gradient exactly 0, noise not
    images = np.full((2, 8, 8), 200, np.uint8)
    opposed = ImageDataset.from_arrays(images, np.array([0, 1]))
    opposed = gradient_noise_scale(softmax_at_zero(2), opposed, transform)
    assert (opposed.squared_norm, opposed.noise_scale) == (0, math.inf)
    assert opposed.trace > 0


def test_gradient_noise_scale_keeps_one_block_in_memory(train, transform, monkeypatch):
    blocks = []

    def watched(function, **kwargs):
        def call(values, inputs, targets):
            blocks.append(len(inputs))
            return torch.func.vmap(function, **kwargs)(values, inputs, targets)

        return call

    monkeypatch.setattr(curvature, "vmap", watched)
    one = gradient_noise_scale(small_network(), train, transform, block_size=25)
    assert blocks == [25, 25, 10]
    other = gradient_noise_scale(small_network(), train, transform, block_size=60)
    assert blocks[3:] == [60]
    assert one.trace == pytest.approx(other.trace, rel=1e-5)


def test_noise_term_falls_with_the_root_of_the_batch_size():
    assert noise_term(9.0, 0.1, 1) == pytest.approx(0.3)
    assert noise_term(9.0, 0.1, 4) == pytest.approx(0.15)
    # errata 002-4: with linear scaling it grows instead
    terms = [noise_term(1.0, lr, size) for lr, size in ((0.01, 32), (0.02, 64), (0.04, 128))]
    assert [round(term, 5) for term in terms] == [0.00177, 0.0025, 0.00354]


def test_curvature_leaves_the_network_alone(train, transform):
    model = small_network()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()

    def measured():
        value = largest_eigenvalue(model, train, transform, generator=start())
        return value, gradient_noise_scale(model, train, transform)

    with torch.no_grad():  # which the caller's context does not decide
        values = measured()
    assert values == measured()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.training
    assert model[1].training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("measure", [
    lambda *args: largest_eigenvalue(*args, generator=start()), gradient_noise_scale
])  # fmt: skip
def test_curvature_asks_for_full_precision_and_gives_it_back(measure, train, transform):
    seen = []

    class Watching(nn.Flatten):
        def forward(self, inputs):
            seen.append([getattr(place, name) for place, name, _ in settings])
            return super().forward(inputs)

    settings = randomness._settings("float32")
    before = [getattr(place, name) for place, name, _ in settings]
    measure(nn.Sequential(Watching(), nn.Linear(64, 3)), train, transform)
    assert seen
    assert all(values == [value for _, _, value in settings] for values in seen)
    assert [getattr(place, name) for place, name, _ in settings] == before


def test_largest_eigenvalue_of_a_diverged_network_is_nan(train, transform):
    model = small_network()
    model[6].weight.data[0, 0] = math.nan
    assert math.isnan(largest_eigenvalue(model, train, transform, generator=start()))


def test_largest_eigenvalue_that_does_not_converge_is_nan(monkeypatch):
    matrix, vector = np.diag(np.linspace(0, 3, 300)), np.ones(300)
    assert curvature._largest_eigenvalue(lambda v: matrix @ v, vector, 1e-9) == pytest.approx(3)
    monkeypatch.setattr(curvature, "_RESTARTS", 1)
    assert math.isnan(curvature._largest_eigenvalue(lambda v: matrix @ v, vector, 1e-9))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["small", "cnn_small", "cnn_small_bn", "resnet18"])
def test_curvature_on_a_gpu_is_that_on_a_cpu(name, train, transform):
    def measure(model):
        value = largest_eigenvalue(model, train, transform, generator=start())
        return value, *gradient_noise_scale(model, train, transform)

    here, there = measure(network(name)), measure(network(name).cuda())
    assert there == pytest.approx(here, rel=5e-3)
