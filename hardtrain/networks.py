"""The papers' networks by name; each gives its logits and its last hidden layer."""

import copy
import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from hardtrain import checks
from hardtrain.errors import DataError, ParameterError

VERSION = 1  # raise it when a change here changes what a figure shows

STEMS = ("cifar", "imagenet")
Body = tuple[nn.Module, int]  # what comes before the classifier, and the width D in which it ends


class Network(nn.Module):
    """A body that ends in the last hidden layer, and the linear classifier on top of it.

    ``forward(inputs)`` is ``classifier(features(inputs))``, in training and in eval mode: no
    network here has dropout, so nothing stands between the two. Use :func:`build_network`.
    """

    def __init__(self, body: nn.Module, classifier: nn.Linear, name: str, stem: str, channels: int):
        super().__init__()
        self.body, self.classifier = body, classifier
        self.name, self.stem, self.in_channels = name, stem, channels

    def features(self, inputs: Tensor) -> Tensor:
        """The last hidden layer, ``(B, D)``, of ``inputs (B, C, H, W)``.

        Raises:
            DataError: ``inputs`` has another shape or size, or is not floating point.
        """
        if inputs.ndim != 4 or inputs.shape[1] != self.in_channels:
            raise DataError(
                f"inputs of {self.name} must have shape (B, {self.in_channels}, H, W); "
                f"got {tuple(inputs.shape)}"
            )
        if not inputs.is_floating_point():
            raise DataError(f"inputs of {self.name} must be scaled to float; got {inputs.dtype}")
        _check_size(self.name, self.stem, *inputs.shape[2:])
        return self.body(inputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(B, K)`` of ``inputs (B, C, H, W)``; errors as in :meth:`features`."""
        return self.classifier(self.features(inputs))


def build_network(
    name: str,
    num_classes: int,
    in_channels: int,
    *,
    stem: str = "cifar",
    image_size: int | tuple[int, int] | None = None,
) -> Network:
    """A network of the papers, not pre-trained, its weights drawn from torch's global generator.

    All are timm's, without dropout, but for these. ``vgg13``: with batch-norm in either stem, and
    with ``"cifar"`` in the widely used CIFAR version (global pooling, one linear layer).
    ``mobilenet``: v1, with ``"cifar"`` ReLU in place of ReLU6, as in the CIFAR version.
    ``cnn2``, ``cnn5``: of the ITDM paper. For the quick profiles, and no paper's: ``cnn_small``
    without and ``cnn_small_bn`` with batch-norm; ``mlp``, four linear layers, the hidden ones of
    width 128, for images of one size, so it needs ``image_size``. ``mlp256``: with width 256, one
    of the fully connected networks of Shallue et al. (arXiv 1811.03600).

    ``cnn2`` and ``cnn5`` take 28x28 and 32x32 with the same weights: a last max-pooling leaves 4x4
    (``cnn2``: nothing to do at 28, 2x2 with stride 1 at 32) or 1x1 (``cnn5``: 8x8 as in the paper
    at 28, 10x10 at 32). The CNNs and ``mlp`` have one stem, so ``stem`` changes nothing in them.

    Args:
        name: one of ``NETWORKS``, or ``"module:function"`` of anyone's own: ``function(in_channels,
            image_size)`` gives what comes before the last linear layer, and the width D in which it
            ends; ``function.VERSION`` is part of the keys of its runs.
        num_classes: K, at least 1.
        in_channels: 1 or 3.
        stem: ``"cifar"``: first convolution 3x3 with stride 1 and no pooling after it;
            ``"imagenet"``: the library's own, which divides the sides by 2 or 4.
        image_size: side in pixels, or ``(height, width)``; only checked, before anything is built.
            ``None``: checked when the first inputs come. ``mlp`` cannot be built without.

    Returns:
        A module with ``features(inputs) -> (B, D)``, what its last linear layer ``classifier``
        gets, and ``forward(inputs) -> (B, K)``.

    Raises:
        ParameterError: an unknown name or stem, or a number that is not allowed.
        DataError: ``image_size`` does not fit the network.

    Source:
        Hard mini-batches (arXiv 2304.03486): with ``stem="imagenet"`` the parameter counts are
        those of its table 2. ITDM (arXiv 2002.09917) and its authors' code: cnn2 and cnn5; the
        ReLU after each convolution of cnn2 is our reading. Mini-batch trimming leaves the stem
        open; hence the parameter.

    Example:
        >>> import torch
        >>> model = build_network("cnn_small", num_classes=10, in_channels=1)
        >>> images = torch.zeros(2, 1, 8, 8)
        >>> model.features(images).shape, model(images).shape
        (torch.Size([2, 64]), torch.Size([2, 10]))
        >>> build_network("cnn5", num_classes=10, in_channels=1, image_size=8)
        Traceback (most recent call last):
        hardtrain.errors.DataError: cnn5 takes 28x28 or 32x32; got 8x8
    """
    entry = _entry(name)
    checks.choice("stem", stem, STEMS)
    checks.integer("num_classes", num_classes, low=1)
    if checks.integer("in_channels", in_channels, low=1) not in (1, 3):
        raise ParameterError(f"in_channels = {in_channels} is not 1 or 3")
    if image_size is not None:
        _check_size(name, stem, *_sides(image_size))
    if entry.own is not None and (stem == "cifar" or not entry.timm):
        body, num_features = entry.own(in_channels, image_size)
        classifier = nn.Linear(num_features, num_classes)
    else:
        body, classifier = _from_timm(entry, num_classes, in_channels, stem)
    return Network(body, classifier, name, stem, in_channels)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether any layer is batch-norm of torch or derived from it, as timm's are.

    Example:
        >>> has_batch_norm(build_network("cnn5", 10, 1)), has_batch_norm(nn.Linear(2, 2))
        (True, False)
    """
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def normalises_one(model: Network, side: int) -> bool:
    """Whether every batch-norm layer sees several values a channel in one image of this side."""
    try:
        image = torch.zeros(1, model.in_channels, side, side, device="meta")
        copy.deepcopy(model).to("meta").train()(image)
    except ValueError:  # torch's
        return False
    return True


def num_parameters(model: nn.Module) -> int:
    """Number of values in all parameters; a parameter that is shared counts once.

    Example:
        >>> num_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def network_size(
    name: str, num_classes: int, image_size: int, *, channels: int = 3, stem: str = "imagenet"
) -> dict[str, int]:
    """Parameters, and floating-point operations of one image's forward pass.

    An operation is a multiplication or an addition, so a multiply-add counts as two; convolutions
    and matrix products are counted, on the forward pass only. Nothing is computed: the network
    and the image have shapes but no content.

    Returns:
        ``{"parameters": int, "flops": int}`` for images with so many channels.

    Example:
        >>> network_size("cnn_small", 10, 32)
        {'parameters': 36490, 'flops': 9913600}
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = build_network(name, num_classes, channels, stem=stem, image_size=image_size)
        image = torch.empty(1, channels, image_size, image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    return {"parameters": num_parameters(model), "flops": counter.get_total_flops()}


def _sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width."""
    sides = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(sides) != 2:
        raise ParameterError(f"image_size = {image_size} is neither a side nor (height, width)")
    height, width = (checks.integer("image_size", side, low=1) for side in sides)
    return height, width


@functools.lru_cache
def _entry(name: str) -> "_Entry":
    """Of `NETWORKS`, or of anyone's own."""
    if ":" in checks.text("network", name):
        return _Entry((1, 1), own=checks.own_function("network", name))
    return _NETWORKS[checks.choice("network", name, NETWORKS)]


def _check_size(name: str, stem: str, height: int, width: int) -> None:
    entry = _entry(name)
    smallest = entry.smallest[STEMS.index(stem)]
    fits, allowed = min(height, width) >= smallest, f"{smallest}x{smallest} and larger"
    if entry.only:
        fits = height == width and height in entry.only
        allowed = " or ".join(f"{side}x{side}" for side in entry.only)
    elif len(set(entry.smallest)) > 1:
        allowed += f" with stem={stem!r}"
    if not fits:
        raise DataError(f"{name} takes {allowed}; got {height}x{width}")


def _from_timm(
    entry: "_Entry", num_classes: int, in_channels: int, stem: str
) -> tuple[nn.Module, nn.Linear]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of progress bars that it never shows
        with torch.device("cpu"):  # torchvision's registrations fail on the device "meta"
            import timm  # takes seconds, and cnn_small does without

    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
    if stem == "cifar" and entry.cifar_activation:
        options["act_layer"] = entry.cifar_activation
    body: Any = timm.create_model(entry.timm, **options)
    classifier = body.get_classifier()
    body.reset_classifier(0)  # from here on body(inputs) ends where the classifier began
    if stem == "cifar":
        if hasattr(body, "conv_stem"):  # EfficientNet, MobileNet: 3x3 already
            body.conv_stem.stride = (1, 1)
        else:
            is_densenet = hasattr(body, "features")
            layers = body.features if is_densenet else body
            first, pool = ("conv0", "pool0") if is_densenet else ("conv1", "maxpool")
            setattr(layers, first, nn.Conv2d(in_channels, 64, 3, padding=1, bias=False))
            setattr(layers, pool, nn.Identity())
    return body, classifier


# --- our own ------------------------------------------------------------------------------------


def _cnn2(in_channels: int, image_size: object) -> Body:
    body = [nn.Conv2d(in_channels, 20, 5), nn.MaxPool2d(2), nn.ReLU()]  # 28 -> 24 -> 12
    body += [nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), _MaxPoolTo(4), nn.ReLU()]  # 12 -> 8 -> 4
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(800, 100), nn.ReLU()), 100


def _cnn5(in_channels: int, image_size: object) -> Body:
    body, channels = [], in_channels
    for width, padding in ((32, 0), (64, 0), (128, 1), (256, 0), (512, 0)):
        body += [nn.Conv2d(channels, width, 3, padding=padding), nn.ReLU(), nn.BatchNorm2d(width)]
        body += [nn.MaxPool2d(2)] if width == 128 else []
        channels = width
    return nn.Sequential(*body, _MaxPoolTo(1), nn.Flatten()), 512


def _cnn_small(in_channels: int, image_size: object, *, batch_norm: bool = False) -> Body:
    body: list[nn.Module] = []
    for channels, width, stride in ((in_channels, 32, 2), (32, 64, 1)):
        body += [nn.Conv2d(channels, width, 3, stride=stride, padding=1)]
        body += [nn.BatchNorm2d(width)] if batch_norm else []
        body += [nn.ReLU()] if width == 32 else [_MaxPoolTo(2), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(256, 64), nn.ReLU()), 64


def _mlp(in_channels: int, image_size: int | tuple[int, int] | None, *, width: int = 128) -> Body:
    if image_size is None:
        raise ParameterError("image_size = None: mlp takes images of one size and must know it")
    num_values = in_channels * math.prod(_sides(image_size))
    body: list[nn.Module] = [_FlattenTo(num_values)]
    for size in (num_values, width, width):
        body += [nn.Linear(size, width), nn.ReLU()]
    return nn.Sequential(*body), width


def _vgg13(in_channels: int, image_size: object) -> Body:
    body, channels = [], in_channels
    for width in (64, 128, 256, 512, 512):
        for _ in range(2):
            body += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        body += [nn.MaxPool2d(2)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 512


class _MaxPoolTo(nn.Module):
    """Max-pooling that leaves ``side x side`` of any larger map."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, inputs: Tensor) -> Tensor:
        # not AdaptiveMaxPool2d: its CUDA gradient has no deterministic form
        stride = [n // self.side for n in inputs.shape[-2:]]
        window = [n - (self.side - 1) * s for n, s in zip(inputs.shape[-2:], stride, strict=True)]
        if max(window) == 1:
            return inputs
        pooled = max_pool2d(inputs, window, stride)
        if pooled.requires_grad and inputs.is_contiguous(memory_format=torch.channels_last):
            # a gradient in another layout, as flattening gives, makes torch copy the map twice
            pooled.register_hook(partial(Tensor.contiguous, memory_format=torch.channels_last))
        return pooled


class _FlattenTo(nn.Module):
    """Flattens images of ``num_values`` values, and refuses others."""

    def __init__(self, num_values: int):
        super().__init__()
        self.num_values = num_values

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.shape[1:].numel() != self.num_values:
            raise DataError(
                f"mlp was built for images of {self.num_values} values; got {tuple(inputs.shape)}"
            )
        return inputs.flatten(1)


# --- the table: to add a network, add an entry ---------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """A network by name: where it comes from, and the images that it takes.

    ``smallest``: image side in pixels with each of ``STEMS``: the product of all strides, below
    which a network fails or looks mostly at its own padding. ``only``: the sides that it takes, if
    not all from there on. ``timm``: its name there. ``own``: of this module, with both stems, or
    with the CIFAR stem alone where ``timm`` has the other. ``cifar_activation``: with that stem in
    place of timm's.
    """

    smallest: tuple[int, int]
    timm: str = ""
    own: Callable[..., Body] | None = None
    only: tuple[int, ...] = ()
    cifar_activation: str = ""


_NETWORKS = {
    "resnet18": _Entry((8, 32), "resnet18"),
    "resnet34": _Entry((8, 32), "resnet34"),
    "resnet50": _Entry((8, 32), "resnet50"),
    "densenet121": _Entry((8, 32), "densenet121"),
    "vgg13": _Entry((32, 32), "vgg13_bn", own=_vgg13),
    "mobilenet": _Entry((16, 32), "mobilenetv1_100", cifar_activation="relu"),
    "efficientnet_b4": _Entry((16, 32), "efficientnet_b4"),
    "efficientnetv2_s": _Entry((16, 32), "efficientnetv2_s"),
    "mobilenetv3_small": _Entry((16, 32), "mobilenetv3_small_100"),
    "cnn2": _Entry((28, 28), own=_cnn2, only=(28, 32)),
    "cnn5": _Entry((28, 28), own=_cnn5, only=(28, 32)),
    "cnn_small": _Entry((8, 8), own=_cnn_small),
    "cnn_small_bn": _Entry((8, 8), own=partial(_cnn_small, batch_norm=True)),
    "mlp": _Entry((8, 8), own=_mlp),
    "mlp256": _Entry((8, 8), own=partial(_mlp, width=256)),
}
NETWORKS: tuple[str, ...] = tuple(_NETWORKS)


# --- ghost batch-norm ----------------------------------------------------------------------------


class GhostBatchNorm(nn.Module):
    r"""Batch normalisation by parts of the batch, as if each part were a batch of its own.

    In training mode the batch is cut into parts of ``size`` samples (the last may be shorter);
    each is normalised with its own statistics, which update the running ones in turn. So these
    forget at the rate of the small batch: :math:`\mu \leftarrow (1 - m)^p \mu + \sum_{i=1}^{p}
    (1 - m)^{p - i} m \mu_i` for p parts and the momentum m. Evaluation is that of ``norm``.

    Args:
        norm: a batch-norm layer of torch or derived from it.
        size: samples in a part, >= 1.

    Source:
        Hoffer, Hubara, Soudry, arXiv 1705.08741, algorithm 1.

    Example:
        >>> layer = GhostBatchNorm(nn.BatchNorm1d(1, affine=False), size=2)
        >>> layer(torch.tensor([[0.0], [2.0], [10.0], [12.0]])).squeeze(1).round().tolist()
        [-1.0, 1.0, -1.0, 1.0]
    """

    def __init__(self, norm: nn.Module, size: int):
        super().__init__()
        self.norm, self.size = norm, checks.integer("size", size, low=1)

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training:
            return self.norm(inputs)
        return torch.cat([self.norm(part) for part in inputs.split(self.size)])


def use_ghost_batch_norm(model: nn.Module, size: int) -> None:
    """Put a `GhostBatchNorm` around every batch-norm layer inside ``model``, in place.

    The names of these layers' weights get ``norm.`` before their last part.

    Raises:
        ParameterError: the model has none.
    """
    norms = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if name and isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    if not norms:
        raise ParameterError(f"ghost_batch_size = {size}: the network has no batch-norm")
    for name, norm in norms.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, GhostBatchNorm(norm, size))
