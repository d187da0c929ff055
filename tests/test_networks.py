"""The papers' networks: what they print of them, what every network does, what is refused."""

import functools
import importlib
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hardtrain import DataError, ParameterError, build_network, load_artefact, networks, run_missing
from hardtrain.networks import (
    NETWORKS,
    has_batch_norm,
    network_size,
    num_parameters,
)
from hardtrain.papers import load_table, network_name

STEMS = ("cifar", "imagenet")
SMALLEST = {  # image side in pixels with each stem
    "resnet18": (8, 32),
    "resnet34": (8, 32),
    "resnet50": (8, 32),
    "densenet121": (8, 32),
    "vgg13": (32, 32),
    "mobilenet": (16, 32),
    "efficientnet_b4": (16, 32),
    "efficientnetv2_s": (16, 32),
    "mobilenetv3_small": (16, 32),
}
ONE_STEM = {"cnn2": 28, "cnn5": 28, "cnn_small": 8, "cnn_small_bn": 8, "mlp": 8, "mlp256": 8}
BOTH_STEMS = [(name, stem) for name in SMALLEST for stem in STEMS]
EVERY = [*BOTH_STEMS, *((name, "cifar") for name in ONE_STEM)]


@pytest.fixture(autouse=True)
def _own_random_state():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def size_of(name, size=32):
    """What must be said to ``mlp`` alone."""
    return size if name.startswith("mlp") else None


@pytest.fixture(scope="module", params=EVERY, ids="-".join)
def network(request):
    """Each network once, for 3 channels and 7 classes, in evaluation mode, without the zeros with
    which timm starts a residual block."""
    name, stem = request.param
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_network(name, 7, 3, stem=stem, image_size=32).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.ones_(module.weight)
    return model


@functools.cache
def shapes_only(name, stem, size=32, channels=3):
    """The network for 10 classes, without values; for tests that change nothing."""
    with torch.device("meta"):
        return build_network(name, 10, channels, stem=stem, image_size=size_of(name, size))


def outputs_of(model, inputs, kind=nn.Module):
    """Sizes (H, W) that each layer of a kind takes in and gives out, in the order of the calls."""
    sizes, handles = [], []

    def note(_, args, output):
        if args[0].ndim == 4 and output.ndim == 4:
            sizes.append((tuple(args[0].shape[-2:]), tuple(output.shape[-2:])))

    for module in model.modules():
        if isinstance(module, kind) and not list(module.children()):
            handles.append(module.register_forward_hook(note))
    with torch.no_grad():
        model.eval()(inputs)
    for handle in handles:
        handle.remove()
    return sizes


def test_the_table_holds_the_networks_of_the_papers():
    assert set(NETWORKS) == {*SMALLEST, *ONE_STEM}


# What the papers print


def test_network_size_agrees_with_hard_mini_batches_table_2():
    printed = load_table("hard_minibatches_table2")
    assert len(printed) == 5
    for line in printed.itertuples():
        size = network_size(network_name(line.network), 10, 128)
        # the paper cuts after two decimals: MobileNetV3 has 1.528 M, printed as 1.52
        assert size["parameters"] // 10_000 == round(line.params_M * 100), line.network
        assert size["flops"] / 1e9 == pytest.approx(line.flops_G, abs=0.022)


@pytest.mark.parametrize(
    ("name", "channels", "expected"),
    [
        ("resnet18", 3, 11_173_962),  # the widely used CIFAR versions
        ("vgg13", 3, 9_416_010),
        ("mobilenet", 3, 3_217_226),
        ("cnn2", 1, (25 + 1) * 20 + (25 * 20 + 1) * 50 + 801 * 100 + 101 * 10),
        ("cnn2", 3, (75 + 1) * 20 + (25 * 20 + 1) * 50 + 801 * 100 + 101 * 10),
        ("cnn5", 1, 10 * 32 + 289 * 64 + 577 * 128 + 1153 * 256 + 2305 * 512 + 2 * 992 + 5130),
    ],
)
def test_parameter_counts_of_the_small_image_networks(name, channels, expected):
    assert num_parameters(shapes_only(name, "cifar", channels=channels)) == expected


@pytest.mark.parametrize(
    ("name", "published"),  # with 1000 classes, by torchvision; mobilenet: by its paper, 4.2 M
    [
        ("resnet34", 21_797_672),
        ("densenet121", 7_978_856),
        ("vgg13", 133_053_736),
        ("mobilenet", 4_231_976),
    ],
)
def test_parameter_counts_with_the_imagenet_stem_are_the_published(name, published):
    with torch.device("meta"):
        assert num_parameters(build_network(name, 1000, 3, stem="imagenet")) == published


def test_mobilenet_has_the_activation_of_its_version():
    cifar, imagenet = (
        {type(module) for module in shapes_only("mobilenet", stem).modules()} for stem in STEMS
    )
    assert nn.ReLU in cifar
    assert nn.ReLU6 not in cifar
    assert nn.ReLU6 in imagenet
    assert nn.ReLU not in imagenet


@pytest.mark.parametrize("size", [28, 32])
def test_cnn2_matches_the_network_written_out(size):
    model = build_network("cnn2", 10, 1)
    w = list(model.parameters())
    inputs = torch.randn(3, 1, size, size)
    x = F.max_pool2d(F.conv2d(inputs, w[0], w[1]).relu(), 2)
    x = F.max_pool2d(F.conv2d(x, w[2], w[3]).relu(), 2)
    if size == 32:
        x = F.max_pool2d(x, 2, stride=1)
    x = F.linear(x.flatten(1), w[4], w[5]).relu()
    assert x.shape == (3, 100)
    torch.testing.assert_close(model.features(inputs), x)
    torch.testing.assert_close(model(inputs), F.linear(x, w[6], w[7]))


@pytest.mark.parametrize("size", [28, 32])
def test_cnn5_matches_the_network_written_out(size):
    model = build_network("cnn5", 10, 3).eval()
    w = list(model.parameters())
    inputs = torch.randn(3, 3, size, size)
    x, sizes = inputs, []
    for i, padding in enumerate((0, 0, 1, 0, 0)):
        x = F.conv2d(x, w[4 * i], w[4 * i + 1], padding=padding).relu()
        x = F.batch_norm(x, torch.zeros(x.shape[1]), torch.ones(x.shape[1]))
        sizes.append(x.shape[-1])
        if i == 2:
            x = F.max_pool2d(x, 2)
    if size == 28:
        assert sizes == [26, 24, 24, 10, 8]
        x = F.max_pool2d(x, 8, stride=1)
    x = x.amax((2, 3))
    assert x.shape == (3, 512)
    torch.testing.assert_close(model.features(inputs), x)
    torch.testing.assert_close(model(inputs), F.linear(x, w[-2], w[-1]))


# Every network


def test_forward_is_the_classifier_on_the_features(network):
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    calls = []
    hook = last.register_forward_hook(lambda _, args, output: calls.append((args[0], output)))
    inputs = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = network(inputs)
        features = network.features(inputs)
    hook.remove()
    assert len(calls) == 1, "features must end before the classifier"
    assert torch.equal(features, calls[0][0])
    assert torch.equal(logits, calls[0][1])
    assert logits.shape == (2, 7)
    assert features.shape == (2, last.in_features)
    torch.testing.assert_close(logits, features @ last.weight.T + last.bias)
    assert not torch.allclose(features[0], features[1])  # it looks at the image


def test_gradient_reaches_every_parameter(network):
    F.cross_entropy(network(torch.randn(2, 3, 32, 32)), torch.tensor([0, 3])).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_training_mode_draws_nothing(network):
    # no dropout, no stochastic depth: also in training mode features are what the classifier gets
    for module in network.modules():
        rates = {getattr(module, key, 0) or 0 for key in ("p", "drop_rate", "drop_prob")}
        assert rates == {0}, module


def test_has_batch_norm_of_every_network(network):
    assert has_batch_norm(network) == (network.name not in ("cnn2", "cnn_small", "mlp", "mlp256"))


@pytest.mark.parametrize(
    ("name", "stem"),
    [  # of each family; the others are built for one channel below
        *((name, "cifar") for name in ONE_STEM),
        *((name, stem) for name in ("resnet18", "densenet121", "vgg13") for stem in STEMS),
        *((name, stem) for name in ("mobilenet", "mobilenetv3_small") for stem in STEMS),
        ("efficientnetv2_s", "imagenet"),
    ],
)
def test_one_channel_is_taken_where_the_image_has_one(name, stem):
    model = shapes_only(name, stem, channels=1)
    assert model(torch.empty(2, 1, 32, 32, device="meta")).shape == (2, 10)
    extra = [num_parameters(shapes_only(name, stem)) - num_parameters(model)]
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    assert extra == [2 * first.weight.numel()]  # of three channels, where there was one


@pytest.mark.parametrize("name", ONE_STEM)
def test_the_stem_changes_nothing_in_networks_that_have_one(name):
    def built(stem):
        torch.manual_seed(1)
        return build_network(name, 10, 1, stem=stem, image_size=size_of(name))

    cifar, imagenet = (built(stem).state_dict() for stem in STEMS)
    assert cifar.keys() == imagenet.keys()
    assert all(torch.equal(cifar[key], imagenet[key]) for key in cifar)


@pytest.mark.parametrize("name", SMALLEST)
def test_cifar_stem_keeps_the_size_in_the_first_layer(name):
    model = shapes_only(name, "cifar")
    inputs = torch.empty(2, 3, 32, 32, device="meta")
    (before, after), (second, _) = outputs_of(model, inputs, nn.Conv2d)[:2]
    assert before == after == second == (32, 32)  # second: no pooling between the first two
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert first.kernel_size == (3, 3)
    assert first.stride == (1, 1)


@pytest.mark.parametrize("name", SMALLEST)
def test_imagenet_stem_is_the_librarys(name):
    model = shapes_only(name, "imagenet")
    inputs = torch.empty(2, 3, 64, 64, device="meta")
    (_, after), (second, _) = outputs_of(model, inputs, nn.Conv2d)[:2]
    if name == "vgg13":
        assert (after, second) == ((64, 64), (64, 64))
    elif name.startswith(("resnet", "densenet")):
        assert (after, second) == ((32, 32), (16, 16))
    else:
        assert (after, second) == ((32, 32), (32, 32))


@pytest.mark.parametrize(("name", "stem"), BOTH_STEMS)
def test_the_smallest_size_is_the_product_of_the_strides(name, stem):
    side = 4 * SMALLEST[name][STEMS.index(stem)]
    model = shapes_only(name, stem)
    sizes = outputs_of(model, torch.empty(2, 3, side, side, device="meta"))
    assert [after for _, after in sizes if after != (1, 1)][-1] == (4, 4)


@pytest.mark.parametrize(
    ("name", "stem"), [*BOTH_STEMS, *((n, s) for n in ONE_STEM for s in STEMS)]
)
def test_the_smallest_size_works_and_one_pixel_less_is_refused(name, stem):
    side = ONE_STEM[name] if name in ONE_STEM else SMALLEST[name][STEMS.index(stem)]
    model = (
        shapes_only(name, stem, side) if name.startswith("mlp") else shapes_only(name, stem)
    ).train()
    assert model(torch.empty(2, 3, side, side, device="meta")).shape == (2, 10)
    for height, width in ((side - 1, side - 1), (side, side - 1), (side - 1, side)):
        message = f"{name} takes .*{side}x{side}.*got {height}x{width}"
        with pytest.raises(DataError, match=message):
            build_network(name, 10, 3, stem=stem, image_size=(height, width))
        with pytest.raises(DataError, match=message):
            model(torch.empty(2, 3, height, width, device="meta"))


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_follow_from_the_seed_of_torch_alone(name):
    torch.manual_seed(5)
    first = build_network(name, 10, 1, image_size=size_of(name)).state_dict()
    build_network("mobilenetv3_small", 3, 3)
    torch.rand(7)
    np.random.seed(9)  # noqa: NPY002 - that state must not matter
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    torch.manual_seed(5)
    again = build_network(name, 10, 1, image_size=32).state_dict()
    other = build_network(name, 10, 1, image_size=size_of(name)).state_dict()
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    weights = [key for key in first if key.endswith("weight") and first[key].ndim in (2, 4)]
    assert weights
    assert not any(torch.equal(first[key], other[key]) for key in weights)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


# cnn_small


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (11, 13), (28, 28), (96, 64)])
def test_cnn_small_takes_any_size_and_looks_at_every_corner(size):
    model = build_network("cnn_small", 10, 1)
    maps = model.body[:3](torch.randn(1, 1, *size))  # up to the pooling
    torch.testing.assert_close(model.body[3](maps), F.adaptive_max_pool2d(maps, 2))
    plain = model.features(torch.zeros(1, 1, *size))
    assert plain.shape == (1, 64)
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        dotted = torch.zeros(1, 1, *size)
        dotted[0, 0, row, column] = 5
        assert not torch.allclose(model.features(dotted), plain)


def test_cnn_small_learns_the_digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels))
    train, test = order[:1437], order[1437:]
    model = build_network("cnn_small", 10, 1, image_size=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(4):
        for batch in train[torch.randperm(len(train))].split(32):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean().item()
    assert accuracy > 0.94  # seeds 0-4, five splits: 0.958 to 0.981; guessing: 0.1


def test_cnn_small_needs_no_timm():
    code = (
        "import sys; from hardtrain.networks import build_network;"
        "build_network('cnn_small', 10, 1); print('timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# cnn_small_bn, mlp


@pytest.mark.parametrize("size", [(8, 8), (9, 11), (28, 28)])
@pytest.mark.parametrize("training", [True, False])
def test_cnn_small_bn_matches_the_network_written_out(size, training):
    model = build_network("cnn_small_bn", 10, 3).train(training)
    for norm in (model.body[1], model.body[4]):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 2)
    w, s = dict(model.named_parameters()), dict(model.named_buffers())
    s = {name: value.clone() for name, value in s.items()}
    x = inputs = torch.randn(4, 3, *size)
    for conv, stride in ((0, 2), (3, 1)):
        x = F.conv2d(x, w[f"body.{conv}.weight"], w[f"body.{conv}.bias"], stride, padding=1)
        norm = f"body.{conv + 1}"
        mean, variance = s[f"{norm}.running_mean"], s[f"{norm}.running_var"]
        if training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        x = (x * w[f"{norm}.weight"][:, None, None] + w[f"{norm}.bias"][:, None, None]).relu()
    x = F.adaptive_max_pool2d(x, 2).flatten(1)
    x = F.linear(x, w["body.8.weight"], w["body.8.bias"]).relu()
    assert x.shape == (4, 64)
    torch.testing.assert_close(model.features(inputs), x)
    assert len(w) == 2 * 2 + 2 * 2 + 2 + 2
    small = num_parameters(build_network("cnn_small", 10, 3))
    assert num_parameters(model) == small + 2 * (32 + 64)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (1, (8, 10))])
@pytest.mark.parametrize(("name", "width"), [("mlp", 128), ("mlp256", 256)])
def test_mlp_matches_four_matrix_products(name, width, channels, size):
    model = build_network(name, 5, channels, image_size=size)
    rows, columns = size if isinstance(size, tuple) else (size, size)
    inputs = torch.randn(3, channels, rows, columns)
    w = list(model.parameters())
    assert [tuple(p.shape) for p in w[::2]] == [
        (width, channels * rows * columns), (width, width), (width, width), (5, width)
    ]  # fmt: skip
    x = inputs.reshape(3, -1)
    for i in (0, 2, 4):
        x = (x @ w[i].T + w[i + 1]).relu()
    torch.testing.assert_close(model.features(inputs), x)
    torch.testing.assert_close(model(inputs), x @ w[6].T + w[7])


def test_mlp_must_know_the_size_of_the_images_and_takes_no_other():
    with pytest.raises(ParameterError, match="image_size = None: mlp takes images of one size"):
        build_network("mlp", 10, 1)
    with pytest.raises(DataError, match="mlp takes 8x8 and larger; got 4x4"):
        build_network("mlp", 10, 1, image_size=4)
    model = build_network("mlp", 10, 3, image_size=(8, 10))
    for size in ((8, 8), (10, 10), (28, 28)):
        inputs = torch.zeros(2, 3, *size)
        message = re.escape(f"mlp was built for images of 240 values; got {tuple(inputs.shape)}")
        with pytest.raises(DataError, match=message):
            model(inputs)
    assert model(torch.zeros(0, 3, 8, 10)).shape == (0, 10)


def test_network_size_of_mlp_counts_its_four_layers():
    found = network_size("mlp", 10, 8)
    products = 192 * 128 + 2 * 128 * 128 + 128 * 10
    assert found == {"parameters": products + 3 * 128 + 10, "flops": 2 * products}


# Helpers


def test_has_batch_norm_knows_derived_layers_and_no_others():
    from timm.layers import BatchNormAct2d

    assert has_batch_norm(nn.Sequential(nn.Sequential(BatchNormAct2d(4))))
    assert has_batch_norm(nn.SyncBatchNorm(4))
    assert not has_batch_norm(nn.Sequential(nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.Dropout(0.5)))


def test_num_parameters_counts_a_shared_layer_once():
    layer = nn.Linear(3, 3)
    assert num_parameters(nn.Sequential(layer, nn.BatchNorm1d(3), layer)) == 12 + 6


# Refusals


@pytest.mark.parametrize("given", ["resnet-18", "ResNet18", "resnet_18", "RESNET18", "resnet 18"])
def test_unknown_network_suggests_the_nearest(given):
    message = re.escape(f"unknown network '{given}'; did you mean 'resnet18'? known: resnet18,")
    with pytest.raises(ParameterError, match=message):
        build_network(given, 10, 3)


def test_single_typos_suggest_the_original():
    right, total = 0, 0
    for name in NETWORKS:
        typos = {name[:i] + name[i + 1 :] for i in range(len(name))}
        typos |= {name[:i] + name[i : i + 2][::-1] + name[i + 2 :] for i in range(len(name) - 1)}
        typos |= {name[:i] + c + name[i + 1 :] for i in range(len(name)) for c in "axz017_"}
        for typo in typos - set(NETWORKS):
            with pytest.raises(ParameterError) as caught:
                build_network(typo, 10, 3)
            right += f"did you mean {name!r}?" in str(caught.value)
            total += 1
    assert total > 500
    assert right / total >= 0.95  # 'cnn7' is as near to cnn2 as to cnn5


def test_anything_else_is_no_network():
    for name in ("", "alexnet"):
        with pytest.raises(ParameterError, match=r"unknown network .*known: .*cnn_small"):
            build_network(name, 10, 3)
    with pytest.raises(ParameterError, match="network = 18 is int, not text"):
        build_network(18, 10, 3)


@pytest.mark.parametrize(("given", "nearest"), [("cifar10", "cifar"), ("ImageNet", "imagenet")])
def test_unknown_stem_suggests_the_nearest(given, nearest):
    for name in ("resnet18", "cnn2"):
        with pytest.raises(ParameterError, match=f"unknown stem .*did you mean '{nearest}'"):
            build_network(name, 10, 3, stem=given)


@pytest.mark.parametrize("value", [0, 2.5, True])
def test_build_network_rejects_num_classes(value):
    with pytest.raises(ParameterError, match=f"num_classes = {value!r} is "):
        build_network("cnn_small", value, 1)


@pytest.mark.parametrize("value", [0, 2, 4, 3.0])
def test_in_channels_is_one_or_three(value):
    with pytest.raises(ParameterError, match=f"in_channels = {value!r} is "):
        build_network("cnn_small", 10, value)


@pytest.mark.parametrize("value", [0, 8.0, "32", (32,), (32, 32, 3), (32, 0)])
def test_image_size_must_be_a_size(value):
    message = "image_size = .* (less than 1|not int|neither a side nor)"
    with pytest.raises(ParameterError, match=message):
        build_network("cnn_small", 10, 1, image_size=value)


def test_numbers_may_come_from_numpy():
    model = build_network("cnn_small", np.int64(10), np.int64(1), image_size=np.int64(8))
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize("size", [8, 27, 29, 31, 33, 64, (28, 32)])
@pytest.mark.parametrize("name", ["cnn2", "cnn5"])
def test_the_itdm_networks_take_two_sizes(name, size):
    height, width = size if isinstance(size, tuple) else (size, size)
    message = f"^{name} takes 28x28 or 32x32; got {height}x{width}$"
    with pytest.raises(DataError, match=message):
        build_network(name, 10, 1, image_size=size)
    with pytest.raises(DataError, match=message):
        build_network(name, 10, 1)(torch.zeros(2, 1, height, width))


def test_a_refusal_names_the_stem_where_it_matters():
    with pytest.raises(DataError, match=r"^resnet18 takes 32x32 and larger with stem='imagenet'"):
        build_network("resnet18", 10, 1, image_size=28, stem="imagenet")
    with pytest.raises(DataError, match=r"^cnn_small takes 8x8 and larger; got 4x4$"):
        build_network("cnn_small", 10, 1, image_size=4)


@pytest.mark.parametrize("call", ["features", "forward"])
def test_inputs_that_do_not_fit_are_refused(call):
    model = getattr(build_network("cnn_small", 10, 3), call)
    with pytest.raises(DataError, match=r"\(B, 3, H, W\); got \(2, 1, 8, 8\)"):
        model(torch.zeros(2, 1, 8, 8))
    with pytest.raises(DataError, match=r"\(B, 3, H, W\); got \(3, 8, 8\)"):
        model(torch.zeros(3, 8, 8))
    with pytest.raises(DataError, match=r"scaled to float; got torch.uint8"):
        model(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_network_size_counts_two_operations_for_each_multiply_add():
    convolutions = 16 * 16 * 32 * 27 + 16 * 16 * 64 * 288
    matrices = 256 * 64 + 64 * 10
    assert network_size("cnn_small", 10, 32)["flops"] == 2 * (convolutions + matrices)


def test_pooling_gives_its_gradient_the_layout_of_its_map_and_changes_no_bit():
    images = torch.randn(4, 3, 32, 32)
    layouts, gradients = [], []
    for layout in (torch.contiguous_format, torch.channels_last):
        maps = images.clone(memory_format=layout).requires_grad_()
        pooled = build_network("cnn_small", 10, 3).body[3](maps)
        pooled.register_hook(lambda g, to=layout: layouts.append(g.is_contiguous(memory_format=to)))
        pooled.flatten(1).square().sum().backward()
        gradients.append(maps.grad)
    assert layouts == [True, True]  # flattening alone gives the second another one
    assert torch.equal(*gradients)


# --- anyone's own --------------------------------------------------------------------------------

OWN = """
from torch import nn
from hardtrain.training.lookup import version

@version({number})
def tiny(in_channels, image_size):
    side = image_size // 2
    body = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(in_channels * side * side, 7), nn.ReLU()]
    return nn.Sequential(*body), {width}

def unmarked(in_channels, image_size):
    return nn.Flatten(), in_channels * image_size**2
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A function that writes the module ``own_networks``, and forgets it as it was."""
    monkeypatch.syspath_prepend(str(tmp_path))
    # a file of the same second and size would be taken for the one that was compiled
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(number=1, width=7):
        (tmp_path / "own_networks.py").write_text(OWN.format(number=number, width=width))
        monkeypatch.delitem(sys.modules, "own_networks", raising=False)
        importlib.invalidate_caches()
        networks._entry.cache_clear()

    write()
    yield write
    networks._entry.cache_clear()


def test_a_network_of_ones_own_trains_as_any(own, tiny_run, store):
    model = build_network("own_networks:tiny", 3, 1, image_size=8)
    assert (model.classifier.in_features, model.classifier.out_features) == (7, 3)
    run = tiny_run(network="own_networks:tiny", epochs=12, lr=0.2, keep=("features",))
    frame = run_missing([run], store)
    assert frame["test_error"][0] < 0.3
    assert load_artefact(run, "features", store)["features"].shape[1] == 7


def test_the_version_of_ones_own_network_is_part_of_the_key(own, tiny_run, monkeypatch):
    key = tiny_run(network="own_networks:tiny").key
    assert tiny_run(network="own_networks:tiny").key == key
    own(number=2)
    assert tiny_run(network="own_networks:tiny").key != key


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own_networks:tini", "did you mean 'own_networks:tiny'"),
        ("own_networks:unmarked", "unmarked has no VERSION; mark it with @version"),
        ("no_networks:tiny", "cannot import 'no_networks'"),
        (":tiny", "cannot import ''"),
    ],
)
@pytest.mark.usefixtures("own")
def test_what_is_no_network_of_ones_own_is_refused(tiny_run, name, text):
    with pytest.raises(ParameterError, match=text):
        tiny_run(network=name)


def test_a_network_that_makes_no_logits_is_refused_before_training(own, tiny_run, store):
    own(width=8)
    with pytest.raises(ParameterError, match=r"network = 'own_networks:tiny' takes no \(2, 1, 8"):
        run_missing([tiny_run(network="own_networks:tiny")], store)
    assert not list(store.path.glob("records/*"))
