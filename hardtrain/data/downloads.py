"""The named sets: ``ROOT/NAME_train.npz`` and ``ROOT/NAME_test.npz``, downloaded once.

Torchvision downloads and checks a set; it is then written in the form of `npz`.
"""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import platformdirs
from PIL import Image

from hardtrain.data.folders import square
from hardtrain.data.npz import FORMAT, SPLITS, Arrays, check_pair, write_npz
from hardtrain.data.stratify import pick_per_class
from hardtrain.errors import DataError
from hardtrain.files import lock, user_path

TIMEOUT = 20.0  # seconds that one silent connection may last


def data_root(root: str | os.PathLike | None = None) -> Path:
    """The folder of the named sets: ``root``, else ``$HARDTRAIN_DATA``, else the user's cache."""
    if root:
        return user_path("data_root", root)
    if given := os.environ.get("HARDTRAIN_DATA"):
        return user_path("HARDTRAIN_DATA", given)
    try:
        cache = platformdirs.user_cache_path("hardtrain")
    except RuntimeError as error:  # no home
        raise DataError(f"no folder for image sets: set HARDTRAIN_DATA to one ({error})") from error
    return user_path("the cache folder", cache / "data")


def files_of(name: str, root: str | os.PathLike | None = None) -> dict[str, Path]:
    """Where the files of a named set are or would be, ``{"train": path, "test": path}``."""
    return {split: data_root(root) / f"{name}_{split}.npz" for split in SPLITS}


# ---- from a class of torchvision.datasets, a folder for its downloads and a split


def _by_train_flag(source: type, folder: Path, split: str) -> Arrays:
    part = source(folder, train=split == "train", download=True)
    labels = np.asarray(part.targets)
    if labels.ndim == 2:  # QMNIST's targets are (N, 8): the class, then who wrote it where
        labels = labels[:, 0]
    return Arrays(np.asarray(part.data), labels, part.classes)


def _by_split_name(source: type, folder: Path, split: str) -> Arrays:
    part = source(folder, split=split, download=True)
    class_names = getattr(part, "classes", None) or tuple(map(str, range(10)))  # SVHN has none
    images = np.asarray(part.data).transpose(0, 2, 3, 1)
    return Arrays(images, np.asarray(part.labels), class_names)


def _by_folders(source: type, folder: Path, split: str) -> Arrays:
    # torchvision leaves the background folder out; the papers count it as a class
    top = Path(source(folder, download=True).root) / "101_ObjectCategories"
    classes = tuple(sorted(path.name for path in top.iterdir() if path.is_dir()))
    files = [
        (k, path) for k, name in enumerate(classes) for path in sorted((top / name).glob("*.jpg"))
    ]
    labels = np.array([k for k, _ in files])
    count = np.bincount(labels, minlength=len(classes))
    chosen = pick_per_class(labels, (3 * count + 3) // 4)  # ceil(0.75 n) for training
    if split == "test":
        chosen = np.setdiff1d(np.arange(len(labels)), chosen)
    return Arrays(np.stack([_square(files[i][1]) for i in chosen]), labels[chosen], classes)


def _square(path: Path) -> np.ndarray:
    """RGB, shorter side resized to 144, central 128 x 128 pixels."""
    with Image.open(path) as file:
        return square(file.convert("RGB"), 128, shorter=144)


SOURCES: dict[str, tuple[str, Callable[[type, Path, str], Arrays]]] = {
    "mnist": ("MNIST", _by_train_flag),
    "fashion-mnist": ("FashionMNIST", _by_train_flag),
    "kmnist": ("KMNIST", _by_train_flag),
    "qmnist": ("QMNIST", _by_train_flag),
    "cifar10": ("CIFAR10", _by_train_flag),
    "cifar100": ("CIFAR100", _by_train_flag),
    "svhn": ("SVHN", _by_split_name),
    "stl10": ("STL10", _by_split_name),
    "caltech101": ("Caltech101", _by_folders),
}


def _torchvision_datasets() -> ModuleType:
    import torchvision.datasets  # here, so that data at hand needs no torchvision

    return torchvision.datasets


def named_files(
    name: str, split: str, root: str | os.PathLike | None = None, *, download: bool = True
) -> dict[str, Path]:
    """`files_of` a named set, of which that of ``split`` exists.

    If it does not exist yet, torchvision downloads (if ``download``) and checks the set in a
    folder of its own, and both splits are written whole or not at all; of several processes one
    does so, the others wait.

    Raises:
        DataError: no file and no download; says what is missing, where, and how to put it there.
    """
    folder, files = data_root(root), files_of(name, root)
    if files[split].exists():
        return files
    if not download:
        raise DataError(f"data set {name!r}: {files[split].name} not found in {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder / f".{name}.lock"):
            if not files[split].exists():  # else another process was faster
                _download(name, files)
    except Exception as error:  # urllib, tarfile, filelock and a broken torchvision, all alike
        missing = ", ".join(path.name for path in files.values() if not path.exists())
        raise DataError(
            f"data set {name!r}: {missing} not found in {folder}, and it could not be downloaded "
            f"({type(error).__name__}: {error}). Put the missing files into that folder, or set "
            f"HARDTRAIN_DATA (or root=) to the folder that has them; each is {FORMAT}"
        ) from error
    return files


def _download(name: str, files: dict[str, Path]) -> None:
    """Download ``name`` and write those of its files that are missing. Call under the lock."""
    folder = files["train"].parent
    for left_over in folder.glob(f".{name}_*.partial"):  # of a killed process
        left_over.unlink(missing_ok=True)
    # torchvision does not check what it finds extracted, so it never finds any
    raw = folder / f".{name}.download"
    shutil.rmtree(raw, ignore_errors=True)
    class_name, convert = SOURCES[name]
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        source = getattr(_torchvision_datasets(), class_name)
        for split in SPLITS:
            images, labels, class_names = convert(source, raw, split)
            labels = check_pair(f"{name} {split}", images, labels, len(class_names))
            if not files[split].exists():
                write_npz(files[split], images, labels, class_names)
    finally:
        socket.setdefaulttimeout(before)
        shutil.rmtree(raw, ignore_errors=True)
