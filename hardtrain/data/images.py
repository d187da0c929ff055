"""Image sets as tensors on the device, and where they come from by name or path."""

import contextlib
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from hardtrain import checks
from hardtrain.data import downloads, folders, npz
from hardtrain.data.stratify import eighty_twenty, pick_per_class, proportional
from hardtrain.errors import DataError, ParameterError, unknown_name
from hardtrain.files import user_path

DATASETS: tuple[str, ...] = ("digits", *downloads.SOURCES)
"""Names that `load_dataset` knows."""

# training images, test images, channels, side, classes: known without the files
SIZES = {
    "digits": (1_438, 359, 1, 8, 10),
    "mnist": (60_000, 10_000, 1, 28, 10),
    "fashion-mnist": (60_000, 10_000, 1, 28, 10),
    "kmnist": (60_000, 10_000, 1, 28, 10),
    "qmnist": (60_000, 60_000, 1, 28, 10),
    "cifar10": (50_000, 10_000, 3, 32, 10),
    "cifar100": (50_000, 10_000, 3, 32, 100),
    "svhn": (73_257, 26_032, 3, 32, 10),
    "stl10": (5_000, 8_000, 3, 96, 10),
    "caltech101": (6_903, 2_241, 3, 128, 102),
}
_pretends = ContextVar("pretends", default=False)  # see `pretended`


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device meant; ``"auto"`` is that of ``$HARDTRAIN_DEVICE``, else the GPU if there is one
    (CUDA), else the CPU.

    Raises:
        ParameterError: no such device here; the text lists those there are.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    # not Apple's: evaluation and the history of predictions need float64, which it lacks
    available = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    asked = str(device)
    if asked == "auto":
        asked = os.environ.get("HARDTRAIN_DEVICE") or "auto"
    name = asked.removesuffix(":0") if "cuda" not in asked else asked
    if name == "auto":
        name = "cuda" if "cuda:0" in available else "cpu"
    if name == "cuda" and "cuda:0" in available:
        name = f"cuda:{torch.cuda.current_device()}"
    if name not in available:
        raise ParameterError(
            f"device {asked!r} is not available; available: auto, {', '.join(available)}"
        )
    return torch.device(name)


@dataclass(frozen=True, eq=False, repr=False)
class ImageDataset:
    """One split of an image set, whole, on one device.

    Attributes:
        name, split: what it is; split is ``"train"`` or ``"test"``.
        images: uint8 ``(N, C, H, W)``, 0 to 255. labels: int64 ``(N,)``, on the same device.
        class_names: ``(K,)``.
        fingerprint: SHA-256 of images, labels and class names; the same on every system and
            device. A subset keeps the fingerprint of the split it was taken from.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    fingerprint: str

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        class_names: Sequence[str] | None = None,
        name: str = "arrays",
        split: str = "train",
        device: str | torch.device = "cpu",
    ) -> "ImageDataset":
        """From uint8 ``(N, H, W)`` or ``(N, H, W, 3)`` and integers ``(N,)``, checked. Other forms
        that leave no doubt are converted, with a warning.

        Raises:
            DataError: not of that form, counts differ, or a label is not in 0..K-1.

        Example:
            >>> ImageDataset.from_arrays(np.zeros((3, 8, 8), np.uint8), np.array([0, 1, 1]))
            ImageDataset(arrays train: 3 images 1x8x8, 2 classes, cpu)
        """
        source = f"{name} ({split})"
        # copies of views that run backwards, which torch does not take
        images = np.ascontiguousarray(npz.plain_images(source, np.ascontiguousarray(images)))
        labels = np.ascontiguousarray(labels)
        names = None if class_names is None else tuple(map(str, class_names))
        if labels.ndim != 1 or labels.dtype.kind not in "iu":  # integers from 1 stay as they are
            (labels,), names = npz.plain_labels(source, [labels], names)
        labels = npz.check_pair(source, images, labels)
        names = npz.class_numbers(source, labels) if names is None else names
        for text in names:
            if text.encode(errors="replace").decode() != text:
                raise DataError(f"{source}: class name {text!r} holds what is no text in UTF-8")
        npz.check_labels(source, labels, len(names))
        pixels = (
            torch.tensor(images.reshape(*images.shape[:3], -1)).permute(0, 3, 1, 2).contiguous()
        )
        digest = hashlib.sha256(json.dumps([pixels.shape, names]).encode())
        digest.update(pixels.numpy().data)
        digest.update(labels.astype("<i8").data)
        dataset = cls(name, split, pixels, torch.from_numpy(labels), names, digest.hexdigest())
        return dataset.to(device)

    @classmethod
    def from_torch(
        cls,
        dataset: Any,
        *,
        name: str = "dataset",
        split: str = "train",
        device: str | torch.device = "cpu",
    ) -> "ImageDataset":
        """From a data set of torchvision or Hugging Face, or any other with ``len`` and items.

        Args:
            dataset: items ``(image, label)``, or mappings with ``image`` (``img``) and ``label``.
                Its ``classes`` or ``features["label"].names`` become the class names.

        Raises:
            DataError: naming the item, what it is and what is allowed.

        Example:
            >>> pairs = [(torch.rand(3, 8, 8), k % 2) for k in range(4)]
            >>> ImageDataset.from_torch(pairs, name="noise")
            ImageDataset(noise train: 4 images 3x8x8, 2 classes, cpu)
        """
        arrays = folders.read_items(f"{name} ({split})", dataset)
        return cls.from_arrays(**arrays._asdict(), name=name, split=split, device=device)

    def save(self, path: str | os.PathLike) -> None:
        """Write this split as a file that `load_dataset` reads, whole or not at all.

        ``P_train.npz`` and ``P_test.npz`` are the data set ``P``, ``train.npz`` and ``test.npz``
        their folder; both need the same ``class_names``. A file of another name is split 80/20 as
        it is read. A subset gets a fingerprint of its own.

        Raises:
            ParameterError: ``path`` does not end in ``.npz``. StoreError: it cannot be written.

        Example:
            >>> import tempfile
            >>> mine = f"{tempfile.mkdtemp()}/mine"
            >>> for split in ("train", "test"):
            ...     load_dataset("digits", split).save(f"{mine}_{split}.npz")
            >>> load_dataset(mine, "train")
            ImageDataset(mine train: 1438 images 1x8x8, 10 classes, cpu)
        """
        file = user_path("path", path)
        if file.suffix != ".npz":
            wanted = "NAME_train.npz and NAME_test.npz, or train.npz and test.npz in a folder"
            raise ParameterError(f"path = {str(path)!r} does not end in .npz; wanted: {wanted}")
        pixels = self.images.permute(0, 2, 3, 1).cpu().numpy()
        pixels = pixels[..., 0] if self.in_channels == 1 else pixels
        npz.write_npz(file, pixels, self.labels_on_host.numpy(), self.class_names)

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise DataError(
                f"{self.name}: images are {self.images.dtype} {tuple(self.images.shape)}; "
                "wanted uint8 (N, C, H, W)"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"{self.name}: labels are {self.labels.dtype} {tuple(self.labels.shape)}; "
                f"wanted int64 ({len(self.images)},), one for each image"
            )

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return (
            f"ImageDataset({self.name} {self.split}: {len(self)} images {shape}, "
            f"{self.num_classes} classes, {self.images.device})"
        )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """K, the number of class names."""
        return len(self.class_names)

    @property
    def in_channels(self) -> int:
        """C, 1 or 3."""
        return self.images.shape[1]

    @property
    def image_size(self) -> int:
        """Height = width in pixels; DataError if the images are not square."""
        height, width = self.images.shape[2:]
        if height != width:
            raise DataError(
                f"{self.name}: images are {height}x{width}, not square; image_size (of a Run) or "
                "Transform(size=...) makes them so"
            )
        return height

    @functools.cached_property
    def labels_on_host(self) -> Tensor:
        """``labels`` on the CPU, copied from a GPU once."""
        return self.labels.cpu()

    @functools.cached_property
    def channel_moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation (1/n) of the pixels in units of 255, one a channel, from
        exact integer sums, so that every device gives the same bits."""
        levels, means, stds = torch.arange(256), [], []
        for channel in self.images.unbind(1):
            counts = torch.bincount(channel.flatten(), minlength=256).cpu()
            total, squares = ((counts * levels**power).sum().item() for power in (1, 2))
            scale = 255 * channel.numel()
            means.append(total / scale)
            stds.append(math.sqrt(channel.numel() * squares - total * total) / scale)
        return tuple(means), tuple(stds)

    def subset(self, size: int) -> "ImageDataset":
        """``size`` samples, each class in proportion, at least one of each if ``size`` allows.

        No randomness: content and ``size`` alone decide. The order and the fingerprint stay;
        indices of the batches count within the subset. ``size`` 0 is the whole set.

        Raises:
            ParameterError: ``size`` is no integer, or not in 0..N.

        Example:
            >>> load_dataset("digits", "train").subset(100).labels.bincount()
            tensor([10, 10, 10, 10, 10, 10, 10, 10, 10, 10])
        """
        size = checks.integer("size", size, low=0, high=len(self))
        return self if size in (0, len(self)) else self.take(self._stratified(size))

    def hold_out(self, size: int) -> tuple["ImageDataset", "ImageDataset"]:
        """The other samples, and ``size`` of them that `subset` would choose: two parts.

        Raises:
            ParameterError: ``size`` is no integer, or not in 1..N-1.

        Example:
            >>> train, validation = load_dataset("digits", "train").hold_out(100)
            >>> len(train), len(validation)
            (1338, 100)
        """
        checks.integer("number of images to hold out", size, low=1, high=len(self) - 1)
        held = self._stratified(size)
        return self.take(np.setdiff1d(np.arange(len(self)), held)), self.take(held)

    def _stratified(self, size: int) -> np.ndarray:
        labels = self.labels_on_host.numpy()
        quota = proportional(np.bincount(labels, minlength=self.num_classes), size)
        return pick_per_class(labels, quota)

    def take(self, indices: np.ndarray | Tensor) -> "ImageDataset":
        """The samples at ``indices``, integers ``(n,)`` in 0..N-1; the fingerprint stays."""
        given = indices if isinstance(indices, Tensor) else np.ascontiguousarray(indices)
        chosen = torch.as_tensor(given).to(self.images.device)
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def with_label_noise(self, fraction: float, generator: Generator) -> "ImageDataset":
        """The same images, the labels of round(fraction * N) of them replaced by another class.

        Which ones and which class is drawn uniformly from ``generator`` (on the CPU); the
        fingerprint stays, since fraction and seed determine the rest.

        Raises:
            ParameterError: ``fraction`` is not in [0, 1], or there is one class only.

        Example:
            >>> clean = load_dataset("digits", "train")
            >>> noisy = clean.with_label_noise(0.2, torch.Generator().manual_seed(0))
            >>> (noisy.labels != clean.labels).sum().item()
            288
        """
        if not 0 <= fraction <= 1:
            raise ParameterError(f"fraction = {fraction} is not in [0, 1]")
        if self.num_classes < 2:
            raise ParameterError(f"{self.name} has one class: no label can be another one's")
        checks.cpu_generator("generator", generator)
        wrong = torch.randperm(len(self), generator=generator)[: round(fraction * len(self))]
        shift = torch.randint(1, self.num_classes, wrong.shape, generator=generator)
        labels = self.labels_on_host.clone()
        labels[wrong] = (labels[wrong] + shift) % self.num_classes
        return replace(self, labels=labels.to(self.labels.device))

    def to(self, device: str | torch.device) -> "ImageDataset":
        """The same set on ``device``; see `resolve_device`."""
        device = resolve_device(device)
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


def load_dataset(
    name_or_path: str | os.PathLike,
    split: str,
    *,
    root: str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
    download: bool = True,
) -> ImageDataset:
    """One split of a known set or of one's own files.

    Args:
        name_or_path: a name of `DATASETS`; else one file ``X.npz``, split 80/20 per class by
            content alone, a prefix ``P`` (``P_train.npz``, ``P_test.npz``), a folder
            (``train.npz``, ``test.npz``; `ImageDataset.save` writes all of them), or a folder of
            pictures (``train/CLASS/*.png`` and ``test/CLASS/*.png``, or ``CLASS/*.png``; see
            `folders.read_folder`). ``digits`` (1,438 + 359 images 8x8) needs no file; its pixels
            0..16 are scaled to 0..255, halves rounded up.
        split: ``"train"`` or ``"test"``.
        root: folder of the named sets; default ``$HARDTRAIN_DATA``, else the user's cache
            folder. What is missing there is downloaded once.
        device: where images and labels go; see `resolve_device`.
        download: whether a named set that is missing may be downloaded.

    Raises:
        ParameterError: unknown name that is no path either, unknown split or device.
        DataError: files missing or not of the form (uint8 ``images`` ``(N, H, W)`` or
            ``(N, H, W, 3)``, integer ``labels`` ``(N,)``, optional ``class_names``, or one that
            leaves no doubt); names the file, the index and what is allowed.

    Example:
        >>> load_dataset("digits", "train")
        ImageDataset(digits train: 1438 images 1x8x8, 10 classes, cpu)
    """
    checks.choice("split", split, npz.SPLITS)
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise unknown_name("data set", name_or_path, DATASETS)
    device = resolve_device(device)  # before anything is downloaded
    name = os.fspath(name_or_path)
    user_path("data set", name)
    path = Path(name).expanduser()
    if name == "digits":
        arrays = _digits(split)
    elif download and _pretends.get() and name in SIZES and not is_at_hand(name, root):
        return _black(name, split)
    elif name in downloads.SOURCES:
        arrays = npz.read_pair(downloads.named_files(name, split, root, download=download), split)
    elif found := folders.read_path(path, split):
        arrays, name = found, path.stem if path.is_file() else path.name
    else:
        raise ParameterError(
            f"{unknown_name('data set', name, DATASETS)}; nor is there a file or folder {path}, "
            f"or a file {path}_train.npz"
        )
    return ImageDataset.from_arrays(**arrays._asdict(), name=name, split=split, device=device)


@contextlib.contextmanager
def pretended() -> Iterator[None]:
    """Inside, a named set that would have to be downloaded is one of black images, as many and as
    large: for what looks at sizes only.

    Example:
        >>> with pretended():
        ...     load_dataset("svhn", "test", root="an/empty/folder")
        ImageDataset(svhn test: 26032 images 3x32x32, 10 classes, cpu)
    """
    token = _pretends.set(True)
    try:
        yield
    finally:
        _pretends.reset(token)


def _black(name: str, split: str) -> ImageDataset:
    *numbers, channels, side, classes = SIZES[name]
    number = numbers[split == "test"]
    images = torch.zeros(1, channels, side, side, dtype=torch.uint8).expand(number, -1, -1, -1)
    labels = torch.arange(number) % classes
    return ImageDataset(name, split, images, labels, tuple(map(str, range(classes))), "none")


def is_at_hand(name: str, root: str | os.PathLike | None = None) -> bool:
    """Whether both splits of a named set lie in ``root`` (default as in `load_dataset`).

    Example:
        >>> is_at_hand("digits"), is_at_hand("svhn", "an/empty/folder")
        (True, False)
    """
    files = downloads.files_of(name, root).values()
    return name == "digits" or all(path.exists() for path in files)


def _digits(split: str) -> npz.Arrays:
    from sklearn.datasets import load_digits  # slow to import, and only this set needs it

    data = load_digits()
    images = ((data.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)
    chosen = eighty_twenty(data.target, split)
    return npz.Arrays(images[chosen], data.target[chosen], tuple(map(str, range(10))))
