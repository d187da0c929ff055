"""Image sets as tensors on the device, and where they come from by name or path."""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from hardtrain import checks
from hardtrain.data import downloads, npz
from hardtrain.data.downloads import SOURCES, named_files
from hardtrain.data.npz import SPLITS, check_range, class_numbers, pick_per_class, read_npz
from hardtrain.errors import DataError, ParameterError, unknown_name

DATASETS: tuple[str, ...] = ("digits", *downloads.SOURCES)
"""Names that `load_dataset` knows."""


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device meant; ``"auto"`` is the GPU if there is one (CUDA), else the CPU.

    Raises:
        ParameterError: no such device here; the text lists those there are.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    available = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        available.append("mps")
    name = str(device).removesuffix(":0") if "cuda" not in str(device) else str(device)
    if name == "auto":
        name = "cuda" if "cuda:0" in available else "cpu"
    if name == "cuda" and "cuda:0" in available:
        name = f"cuda:{torch.cuda.current_device()}"
    if name not in available:
        raise ParameterError(
            f"device {str(device)!r} is not available; available: auto, {', '.join(available)}"
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
        """From uint8 ``(N, H, W)`` or ``(N, H, W, 3)`` and integers ``(N,)``, checked.

        Raises:
            DataError: not of that form, counts differ, or a label is not in 0..K-1.

        Example:
            >>> ImageDataset.from_arrays(np.zeros((3, 8, 8), np.uint8), np.array([0, 1, 1]))
            ImageDataset(arrays train: 3 images 1x8x8, 2 classes, cpu)
        """
        where = f"{name} ({split})"
        images = np.asarray(images)
        labels = npz.check_pair(where, images, np.asarray(labels))
        if class_names is None:
            class_names = npz.class_numbers(where, labels)
        names = tuple(map(str, class_names))
        npz.check_range(where, labels, len(names))
        pixels = torch.tensor(images.reshape(*images.shape[:3], -1)).permute(0, 3, 1, 2)
        pixels = pixels.contiguous()
        digest = hashlib.sha256(json.dumps([pixels.shape, names]).encode())
        digest.update(pixels.numpy())
        digest.update(labels.astype("<i8"))
        target = resolve_device(device)
        return cls(
            name,
            split,
            pixels.to(target),
            torch.from_numpy(labels).to(target),
            names,
            digest.hexdigest(),
        )

    def __post_init__(self):
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
                f"{self.name}: images are {height}x{width}, not square; Transform(size=...) "
                "makes them so"
            )
        return height

    def subset(self, size: int) -> "ImageDataset":
        """``size`` samples, each class in proportion, at least one of each if ``size`` allows.

        No randomness: content and ``size`` alone decide. The order and the fingerprint stay;
        indices of the batches count within the subset. ``size`` 0 is the whole set.

        Raises:
            ParameterError: ``size`` is no integer in 0..N.

        Example:
            >>> load_dataset("digits", "train").subset(100).labels.bincount()
            tensor([10, 10, 10, 10, 10, 10, 10, 10, 10, 10])
        """
        check_whole("size", size, 0, len(self))
        if size in (0, len(self)):
            return self
        labels = self.labels.cpu().numpy()
        quota = _proportional(np.bincount(labels, minlength=self.num_classes), int(size))
        return self.take(npz.pick_per_class(labels, quota))

    def take(self, indices: np.ndarray | Tensor) -> "ImageDataset":
        """The samples at ``indices``, integers ``(n,)`` in 0..N-1; the fingerprint stays."""
        chosen = torch.as_tensor(indices).to(self.images.device)
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
        if not 0 <= fraction <= 1 or self.num_classes < 2:
            raise ParameterError(
                f"fraction = {fraction} is not in [0, 1], or {self.num_classes} classes are too few"
            )
        checks.cpu_generator("generator", generator)
        wrong = torch.randperm(len(self), generator=generator)[: round(fraction * len(self))]
        shift = torch.randint(1, self.num_classes, wrong.shape, generator=generator)
        labels = self.labels.cpu().clone()
        labels[wrong] = (labels[wrong] + shift) % self.num_classes
        return replace(self, labels=labels.to(self.labels.device))

    def to(self, device: str | torch.device) -> "ImageDataset":
        """The same set on ``device``; see `resolve_device`."""
        device = resolve_device(device)
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def as_torch_dataset(self) -> Dataset:
        """For a ``DataLoader``: items are (image float32 ``(C, H, W)`` in [0, 1], label, index).

        The images lie on the CPU, so that worker processes can read them.

        Example:
            >>> image, label, index = load_dataset("digits", "test").as_torch_dataset()[7]
            >>> image.shape, type(label), index
            (torch.Size([1, 8, 8]), <class 'int'>, 7)
        """
        return _Items(self.images.cpu(), self.labels.tolist())


class _Items(Dataset):
    def __init__(self, images: Tensor, labels: list[int]):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        index = range(len(self))[index]
        return self.images[index].float() / 255, self.labels[index], index


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
            content alone, a prefix ``P`` (``P_train.npz``, ``P_test.npz``), or a folder
            (``train.npz``, ``test.npz``). ``digits`` (1,438 + 359 images 8x8) needs no file;
            its pixels 0..16 are scaled to 0..255, halves rounded up.
        split: ``"train"`` or ``"test"``.
        root: folder of the named sets; default ``$HARDTRAIN_DATA``, else the user's cache
            folder. What is missing there is downloaded once.
        device: where images and labels go; see `resolve_device`.
        download: whether a named set that is missing may be downloaded.

    Raises:
        ParameterError: unknown name that is no path either, unknown split or device.
        DataError: files missing or not of the form (uint8 ``images`` ``(N, H, W)`` or
            ``(N, H, W, 3)``, integer ``labels`` ``(N,)``, optional ``class_names``);
            names the file, the index and what is allowed.

    Example:
        >>> load_dataset("digits", "train")
        ImageDataset(digits train: 1438 images 1x8x8, 10 classes, cpu)
    """
    if split not in npz.SPLITS:
        raise unknown_name("split", split, npz.SPLITS)
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise unknown_name("data set", name_or_path, DATASETS)
    device = resolve_device(device)  # before anything is downloaded
    images, labels, names, name = read_split(
        os.fspath(name_or_path), split, root, download=download
    )
    return ImageDataset.from_arrays(
        images, labels, class_names=names, name=name, split=split, device=device
    )


def is_at_hand(name: str, root: str | os.PathLike | None = None) -> bool:
    """Whether both splits of a named set lie in ``root`` (default as in `load_dataset`).

    Example:
        >>> is_at_hand("digits"), is_at_hand("svhn", "an/empty/folder")
        (True, False)
    """
    if name == "digits":
        return True
    try:
        files = [downloads.named_files(name, s, root, download=False) for s in npz.SPLITS]
    except DataError:
        return False
    return len(files) == len(npz.SPLITS)


def _proportional(counts: np.ndarray, size: int) -> np.ndarray:
    """``size`` shared out like ``counts``: largest remainders, and one each where size allows."""
    quota, remainder = np.divmod(counts * size, counts.sum())
    most = np.argsort(-remainder, kind="stable")[: size - quota.sum()]
    quota[most] += 1
    if size >= np.count_nonzero(counts):
        for k in np.flatnonzero((quota == 0) & (counts > 0)):
            quota[k], quota[quota.argmax()] = 1, quota.max() - 1
    return quota


def check_whole(name: str, value: object, low: int, high: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= value <= high:
        allowed = f">= {low}" if high == math.inf else f"in {low}..{high}"
        raise ParameterError(f"{name} = {value!r} is not an integer {allowed}")


def read_split(
    name: str, split: str, root: str | os.PathLike | None = None, *, download: bool = True
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], str]:
    """Images, labels, class names and the short name of what ``load_dataset`` was asked for."""
    path = Path(name).expanduser()
    if name == "digits":
        images, labels, names = _digits()
        return *_eighty_twenty(images, labels, split), names, name
    if name in SOURCES:
        return *_from_pair(named_files(name, split, root, download=download), split), name
    if path.is_file():
        for part, other in (SPLITS, SPLITS[::-1]):
            twin = path.with_name(f"{path.stem.removesuffix(part)}{other}.npz")
            if path.stem.endswith(part) and twin.is_file():
                raise DataError(
                    f"{path} is one split of two and would be split again; give "
                    f"{str(path).removesuffix(f'{part}.npz').rstrip('_')!r}, or rename {twin.name}"
                )
        images, labels, names = read_npz(path)
        names = names or class_numbers(path, labels)
        return *_eighty_twenty(images, labels, split), names, path.stem
    prefix = f"{path}{os.sep}" if path.is_dir() else f"{path}_"
    files = {part: Path(f"{prefix}{part}.npz") for part in SPLITS}
    if not (path.is_dir() or any(file.is_file() for file in files.values())):
        raise ParameterError(
            f"{unknown_name('data set', name, ('digits', *SOURCES))}; nor is there a file or "
            f"folder {path}, or a file {files['train']}"
        )
    return *_from_pair(files, split), path.name


def _digits() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    from sklearn.datasets import load_digits  # slow to import, and only this set needs it

    data = load_digits()
    images = (data.images.astype(np.int64) * 255 + 8) // 16
    return images.astype(np.uint8), data.target, tuple(map(str, range(10)))


def _eighty_twenty(images: np.ndarray, labels: np.ndarray, split: str):
    """The training or test part; of n samples of a class, n/5 to the nearest are for testing."""
    test = pick_per_class(labels, (np.bincount(labels) + 2) // 5)
    chosen = test if split == "test" else np.setdiff1d(np.arange(len(labels)), test)
    return images[chosen], labels[chosen]


def _from_pair(files: dict[str, Path], split: str):
    """One split, with the classes of both where both are there."""
    images, labels, names = read_npz(files[split])
    other = files["test" if split == "train" else "train"]
    if not other.exists():
        return images, labels, names or class_numbers(files[split], labels)
    _, other_labels, other_names = read_npz(other, with_images=False)
    if names and other_names and names != other_names:
        pairs = enumerate(zip_longest(names, other_names))
        k, (here, there) = next((k, pair) for k, pair in pairs if pair[0] != pair[1])
        raise DataError(f"{files[split]} and {other} disagree: class {k} is {here!r} and {there!r}")
    names = names or other_names
    if not names:
        names = class_numbers(files[split], np.concatenate([labels, other_labels]))
    check_range(files[split], labels, len(names))
    check_range(other, other_labels, len(names))
    return images, labels, names
