"""Image sets on disk: the ``.npz`` form, its checks, and downloads turned into it, once.

A set is ``ROOT/NAME_train.npz`` and ``ROOT/NAME_test.npz``, each with ``images`` uint8
``(N, H, W)`` or ``(N, H, W, 3)``, ``labels`` integers ``(N,)`` from 0, and optionally
``class_names`` ``(K,)``.
"""

import difflib
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

import numpy as np
import platformdirs
from filelock import FileLock
from PIL import Image

from hardtrain.errors import DataError, ParameterError, unknown_name

SPLITS = ("train", "test")
FORMAT = (
    "an .npz with images uint8 (N, H, W) or (N, H, W, 3), labels integers (N,) from 0, "
    "and optionally class_names (K,)"
)
TIMEOUT = 20.0  # seconds that one silent connection may last


def data_root(root: str | os.PathLike | None = None) -> Path:
    """The folder of the named sets: ``root``, else ``$HARDTRAIN_DATA``, else the user's cache."""
    chosen = root or os.environ.get("HARDTRAIN_DATA")
    return (
        Path(chosen or platformdirs.user_cache_path("hardtrain") / "data").expanduser().absolute()
    )


def pick_per_class(labels: np.ndarray, quota: np.ndarray) -> np.ndarray:
    """Positions of ``quota[k]`` samples of every class k, ascending; no randomness.

    Within a class the samples are ranked by Knuth's multiplicative hash of their rank, which
    spreads a choice of any size evenly over the file, whatever its order, and in step with none.

    Example:
        >>> pick_per_class(np.array([0, 0, 0, 0, 1, 1]), np.array([2, 1]))
        array([0, 2, 4])
    """
    order = np.argsort(labels, kind="stable")
    grouped = labels[order]
    first = np.searchsorted(grouped, grouped)
    rank = np.arange(len(labels)) - first
    order = order[np.lexsort((rank * 2654435769 % 2**32, grouped))]
    return np.sort(order[rank < quota[grouped]])


# ---- the .npz form


def check_images(where: object, images: np.ndarray) -> np.ndarray:
    """``images`` as they are, if they are uint8 ``(N, H, W)`` or ``(N, H, W, 1 or 3)``.

    Raises:
        DataError: naming ``where``, what was found and what to do.
    """
    if images.dtype == object:
        raise DataError(f"{where}: images are ragged (an object array); all need one height, width")
    if images.dtype != np.uint8:
        bad = ""
        if images.dtype.kind == "f" and images.size:
            nans = int(np.isnan(images).sum())
            low, high = (np.nanmin(images), np.nanmax(images)) if nans < images.size else (0, 0)
            bad = f" from {low:g} to {high:g}" + (f", {nans} of them NaN" if nans else "")
        raise DataError(f"{where}: images are {images.dtype}{bad}; save them as uint8, 0 to 255")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise DataError(
            f"{where}: images have shape {images.shape}; allowed: (N, H, W) or (N, H, W, 3)"
        )
    if len(images) == 0:
        raise DataError(f"{where}: 0 samples")
    if images.size == 0:
        raise DataError(f"{where}: images have shape {images.shape}: no pixels")
    return images


def check_labels(where: object, labels: np.ndarray) -> np.ndarray:
    """``labels`` as int64 ``(N,)``, if they are integers >= 0.

    Raises:
        DataError: naming ``where``, the first bad index, its value and what is allowed.
    """
    if labels.ndim != 1:
        raise DataError(
            f"{where}: labels have shape {labels.shape}; allowed: (N,), one integer each"
        )
    if labels.dtype.kind not in "iu":
        raise DataError(f"{where}: labels are {labels.dtype}; save them as integers from 0")
    if len(labels) == 0:
        raise DataError(f"{where}: 0 samples")
    bad = np.flatnonzero((labels < 0) | (labels > np.iinfo(np.int32).max))
    if len(bad):
        raise DataError(f"{where}: label {labels[bad[0]]} at index {bad[0]} is not in 0..K-1")
    return labels.astype(np.int64)


def check_pair(where: object, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``labels`` as int64, if both are of the form and of one count; DataError otherwise."""
    check_images(where, images)
    labels = check_labels(where, labels)
    if len(images) != len(labels):
        raise DataError(f"{where}: {len(images)} images but {len(labels)} labels")
    return labels


def check_range(where: object, labels: np.ndarray, num_classes: int) -> None:
    """Raises DataError for the first label that is not in ``0 .. num_classes - 1``."""
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(bad):
        raise DataError(
            f"{where}: label {labels[bad[0]]} at index {bad[0]} is not in 0..{num_classes - 1} "
            f"({num_classes} classes)"
        )


def read_npz(
    path: Path, *, with_images: bool = True
) -> tuple[np.ndarray | None, np.ndarray, tuple[str, ...] | None]:
    """``(images, labels, class_names)`` of one file, checked; None for what is not there.

    Raises:
        DataError: the file is missing, damaged, or not of the form above; names the file.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise DataError(f"{path}: holds one bare array; wanted: {FORMAT}")
        with archive:
            for key in ("images", "labels"):
                if key not in archive:
                    others = set(archive.files) - {"images", "labels", "class_names"}
                    close = difflib.get_close_matches(key, sorted(others), n=1, cutoff=0.5)
                    near = f"; did you mean {close[0]!r}?" if close else ""
                    raise DataError(
                        f"{path}: has no array {key!r}{near} "
                        f"(found: {', '.join(archive.files) or 'nothing'}); wanted: {FORMAT}"
                    )
            names = archive["class_names"] if "class_names" in archive else None
            labels = archive["labels"]
            images = archive["images"] if with_images else None
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; wanted: {FORMAT}") from error
    except Exception as error:  # zip, zlib, header and pickle faults have a dozen types
        hint = "the file is damaged or no .npz; delete it and get it again"
        if "Object arrays" in str(error):
            hint = "ragged or object arrays are not read; save plain uint8, integers and strings"
        raise DataError(f"{path}: {hint} ({type(error).__name__}: {error})") from error
    labels = check_pair(path, images, labels) if with_images else check_labels(path, labels)
    if names is not None:
        if names.ndim != 1 or len(names) == 0 or names.dtype.kind not in "US":
            raise DataError(
                f"{path}: class_names are {names.dtype} {names.shape}; allowed: strings (K,)"
            )
        names = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names.tolist())
        check_range(path, labels, len(names))
    return images, labels, names


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


def class_numbers(where: object, labels: np.ndarray) -> tuple[str, ...]:
    """Names "0", "1", ... up to the largest label, unless that can be no class."""
    largest = int(labels.max())
    if largest >= max(1000, len(labels)):
        raise DataError(
            f"{where}: the largest label is {largest}, with only {len(labels)} samples; labels are "
            "0..K-1 (give class_names if there are that many classes)"
        )
    return tuple(map(str, range(largest + 1)))


def write_npz(
    path: Path, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> None:
    """Write one split so that ``path`` is, at every moment, absent, the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            np.savez(file, images=images, labels=labels, class_names=np.array(class_names, str))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError:
        return  # Windows opens no folders
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# ---- downloads: class of torchvision.datasets, folder, split -> images, labels, class names


def _by_train_flag(cls: type, folder: Path, split: str):
    part = cls(folder, train=split == "train", download=True)
    labels = np.asarray(part.targets)
    # QMNIST's targets are (N, 8): the class, then who wrote it where
    return np.asarray(part.data), labels[:, 0] if labels.ndim == 2 else labels, part.classes


def _by_split_name(cls: type, folder: Path, split: str):
    part = cls(folder, split=split, download=True)
    names = getattr(part, "classes", None) or [str(digit) for digit in range(10)]  # SVHN has none
    return np.asarray(part.data).transpose(0, 2, 3, 1), np.asarray(part.labels), names


def _by_folders(cls: type, folder: Path, split: str):
    # torchvision leaves the background folder out; the papers count it as a class
    top = Path(cls(folder, download=True).root) / "101_ObjectCategories"
    classes = sorted(path.name for path in top.iterdir() if path.is_dir())
    files = [sorted((top / name).glob("*.jpg"), key=lambda path: path.name) for name in classes]
    labels = np.repeat(np.arange(len(classes)), [len(found) for found in files])
    count = np.bincount(labels, minlength=len(classes))
    chosen = pick_per_class(labels, (3 * count + 3) // 4)  # ceil(0.75 n) for training
    if split == "test":
        chosen = np.setdiff1d(np.arange(len(labels)), chosen)
    flat = [path for found in files for path in found]
    images = np.stack([_square(flat[i]) for i in chosen])
    return images, labels[chosen], classes


def _square(path: Path, shorter: int = 144, side: int = 128) -> np.ndarray:
    """RGB, shorter side resized to ``shorter``, central ``side`` x ``side`` pixels."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    scale = shorter / min(image.size)
    width, height = (max(shorter, round(length * scale)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - side) // 2, (height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


SOURCES: dict[str, tuple[str, Callable]] = {
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


def _torchvision_datasets():
    import torchvision.datasets  # here, so that data at hand needs no torchvision

    return torchvision.datasets


@contextmanager
def _bounded_sockets() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def named_files(
    name: str, split: str, root: str | os.PathLike | None = None, *, download: bool = True
) -> dict[str, Path]:
    """The files of a named set, ``{"train": path, "test": path}``; that of ``split`` exists.

    If it does not exist yet, torchvision downloads (if ``download``) and checks the set in a
    folder of its own, and both splits are written whole or not at all; of several processes one
    does so, the others wait.

    Raises:
        DataError: no file and no download; says what is missing, where, and how to put it there.
    """
    folder = data_root(root)
    files = {part: folder / f"{name}_{part}.npz" for part in SPLITS}
    if files[split].exists():
        return files
    if not download:
        raise DataError(f"data set {name!r}: {files[split].name} not found in {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):
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
    try:
        with _bounded_sockets():
            for split in SPLITS:
                images, labels, names = convert(
                    getattr(_torchvision_datasets(), class_name), raw, split
                )
                labels = check_pair(f"{name} {split}", images, np.asarray(labels))
                check_range(f"{name} {split}", labels, len(names))
                if not files[split].exists():
                    write_npz(files[split], images, labels, names)
    finally:
        shutil.rmtree(raw, ignore_errors=True)
