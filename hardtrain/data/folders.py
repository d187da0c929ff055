"""Image sets as folders of pictures, one folder a class, and as any other program's data sets."""

import difflib
import functools
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from hardtrain.data.npz import FORMAT, SPLITS, Arrays, check_pair, listed, read_one, read_pair
from hardtrain.data.stratify import eighty_twenty
from hardtrain.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
LARGEST = 128  # pixels of the shorter side, where pictures of several sizes are made one
TESTS = ("test", "val", "valid", "validation")  # names of a folder of test pictures, first wins


def read_path(path: Path, split: str) -> Arrays | None:
    """One split of one's own set: a file, a folder of pictures, or a pair of files in a folder or
    of a prefix. ``None`` where there is none of them.

    Raises:
        DataError: what is there is not of its form; of a folder without one, what is inside.
    """
    if path.is_file():
        return read_one(path, split)
    if path.is_dir() and (pictures := read_folder(path, split)):
        return pictures
    prefix = f"{path}{os.sep}" if path.is_dir() else f"{path}_"
    files = {part: Path(f"{prefix}{part}.npz") for part in SPLITS}
    if any(file.is_file() for file in files.values()):
        return read_pair(files, split)
    if path.is_dir():
        raise DataError(
            f"{path} is no image set: {_inside(path)}; wanted: train.npz and test.npz, each "
            f"{FORMAT}; or pictures ({' '.join(SUFFIXES)}), one folder a class: train/CLASS and "
            "test/CLASS, or CLASS alone"
        )
    return None


def class_folders(folder: Path) -> list[Path]:
    """The folders below ``folder`` that hold pictures, by name; none if it is no such folder."""
    inside = _shown(folder) if folder.is_dir() else []
    return [path for path in inside if path.is_dir() and _pictures(path)]


def read_folder(folder: Path, split: str) -> Arrays | None:
    """One split of ``folder/train/CLASS/*.png`` and ``folder/test/CLASS/*.png`` (or another of
    `TESTS`; in letters of any case), or of ``folder/CLASS/*.png``, which is split 80/20 per class
    by its content alone, as is ``train`` where it stands alone. ``None`` where the folder is
    neither. A warning names what lies there and is not read.

    Pictures may be grey, RGB, with a palette, with alpha (which is dropped) or of 16 bits. Those of
    several sizes are scaled to the smallest one's shorter side (128 at most) and cut to a
    square from their centre, which a warning says.

    Raises:
        DataError: a picture that cannot be read, or the splits have different classes.
    """
    # of Train and train, the latter
    parts = {path.name.lower(): path for path in _shown(folder) if path.is_dir()}
    classes = class_folders(parts.get("train", folder / "train"))
    tests = [parts[name] for name in TESTS if name in parts]
    if classes and tests:
        # the first with classes: others may be pictures without labels
        test = next(filter(class_folders, tests), tests[0])
        return _read_parts(folder, {"train": classes, "test": class_folders(test)}, split)
    if classes:
        warnings.warn(f"{folder}: neither test nor val; train is split 80/20", stacklevel=2)
    elif not (classes := class_folders(folder)):
        return None
    taken = [path.name for path in classes if path.name.lower() in ("train", *TESTS)]
    if len(taken) > 1:
        warnings.warn(f"{folder}: {listed(taken)} are read as classes", stacklevel=2)
    _warn_of_unread(folder, classes)
    images, labels = _read(classes), _labels(classes)
    # by content, so that other names of files make no other split
    order = sorted(range(len(labels)), key=lambda i: (labels[i], images[i].tobytes()))
    images, labels = images[order], labels[order]
    chosen = eighty_twenty(labels, split)
    return Arrays(images[chosen], labels[chosen], _names(classes))


def _read_parts(folder: Path, parts: Mapping[str, list[Path]], split: str) -> Arrays:
    """One split of the classes of both."""
    everything = [path for part in parts.values() for path in part]
    _warn_of_unread(folder, everything)
    names = {part: _names(paths) for part, paths in parts.items()}
    if odd := sorted(set(names["train"]) ^ set(names["test"])):
        raise DataError(
            f"{folder}: {odd[0]!r} is a class of only one of train and test (a folder without "
            "pictures is no class)"
        )
    images, first = _read(everything), len(_labels(parts["train"]))
    images = images[:first] if split == "train" else images[first:]
    return Arrays(images, _labels(parts[split]), names["train"])


def read_items(source: str, items: Sequence[Any]) -> Arrays:
    """The items of a map-style data set of torchvision or Hugging Face, or of one's own: pairs
    ``(image, label)`` or mappings with an ``image`` (``img``) and a ``label``.

    Images are PIL images, uint8 arrays or tensors ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``, or
    floats of the last form in 0..1, as ``ToTensor`` gives them.

    Raises:
        DataError: naming the item, what it is and what is allowed.
    """
    if not (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
        raise DataError(
            f"{source} is {type(items).__name__}, not a data set with len and items; that of a "
            "DataLoader is loader.dataset, that of an iterable one list(items)"
        )
    images, labels = [], []
    for index in range(len(items)):
        item = items[index]
        if isinstance(item, dict):
            image = item.get("image", item.get("img"))
            label = item.get("label", item.get("labels"))
        else:
            try:
                image, label = item[0], item[1]
            except (TypeError, IndexError, KeyError):
                image = label = None
        where = f"{source}: item {index}"
        if image is None or label is None:
            raise DataError(f"{where} is {item!r:.80}; wanted (image, label), or both by name")
        images.append(_pixels(where, image))
        labels.append(_label(where, label))
    stacked = _of_one_size(source, images)
    features = getattr(items, "features", {})
    names = getattr(items, "classes", None) or getattr(features.get("label"), "names", None)
    found = check_pair(source, stacked, np.array(labels), len(names) if names else None)
    names = names or [str(k) for k in range(int(found.max()) + 1)]
    return Arrays(stacked, found, tuple(map(str, names)))


def _label(where: str, label: Any) -> int:
    try:
        if (number := int(label)) == float(label):
            return number
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise DataError(
        f"{where} has the label {label!r:.80}; wanted: one integer from 0 (of a one-hot row "
        "label.argmax(), of a text names.index(label))"
    )


def _shown(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    return [path for path in _shown(folder) if path.suffix.lower() in SUFFIXES]


def _inside(folder: Path) -> str:
    """What lies in a folder that is no image set, and what is likely meant by it."""
    pictures, said = _pictures(folder), []
    folders = [path for path in _shown(folder) if path.is_dir()]
    files = [path for path in _shown(folder) if path not in {*pictures, *folders}]
    if pictures:
        said.append(f"{len(pictures)} pictures lie directly in it")
    if folders:
        below = sorted({path.suffix for part in folders for path in _shown(part) if path.suffix})
        holding = f" with {listed(below)} files" if below else ""
        said.append(f"it has the folders {listed([path.name for path in folders])}{holding}")
    if files:
        said.append(f"it has the files {listed([path.name for path in files])}")
    if any(path.suffix == ".npy" for path in files):
        said.append("np.savez('mine.npz', images=…, labels=…) makes one file of arrays")
    deeper = [path for path in folders if class_folders(path) or class_folders(path / "train")]
    sets = {folder / re.sub(r"_(train|test)\.npz$", "", path.name)
            for path in files if path.suffix == ".npz"}  # fmt: skip
    if difflib.get_close_matches("train", [path.name.lower() for path in deeper]):
        said.append("did you mean train?")
    elif len(meant := [*deeper, *sets]) == 1:
        said.append(f"did you mean {meant[0]}?")
    return "; ".join(said) or "it is empty"


def _warn_of_unread(folder: Path, classes: Sequence[Path]) -> None:
    """Say what lies beside ``classes`` or in them and is not read."""
    held = set(classes)
    around = {folder, *(path.parent for path in held)}
    beside = {path for place in around for path in _shown(place)} - around - held
    within = {path for place in held for path in set(_shown(place)) - set(_pictures(place))}
    unread = sorted(beside | within)
    empty = [path for path in unread if path.is_dir() and not any(path.iterdir())]
    others = [path for path in unread if path not in empty]
    for what, paths in (("not read", others), ("empty, so no class", empty)):
        if paths:
            names = listed([str(path.relative_to(folder)) for path in paths])
            warnings.warn(f"{folder}: {what}: {names}; wanted: one folder a class", stacklevel=3)


def _names(classes: Sequence[Path]) -> tuple[str, ...]:
    """As text, also where a system of another encoding named the folders."""
    return tuple(os.fsencode(path.name).decode(errors="replace") for path in classes)


def _labels(classes: Sequence[Path]) -> np.ndarray:
    return np.repeat(np.arange(len(classes)), [len(_pictures(path)) for path in classes])


def _read(classes: Sequence[Path]) -> np.ndarray:
    found = [(path, path.stat()) for folder in classes for path in _pictures(folder)]
    stamps = tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in found)
    return _decoded(str(classes[0].parent), stamps)


@functools.lru_cache(maxsize=1)  # a sweep asks for both splits, again and again
def _decoded(source: str, stamps: tuple[tuple[Path, int, int], ...]) -> np.ndarray:
    images, faults = [], {}
    for path, *_ in stamps:
        try:
            with Image.open(path) as image:
                images.append(_pixels(str(path), image))
        except Exception as error:  # Pillow's decoders have a dozen types
            faults[str(path)] = error
    if faults:
        first, *others = faults
        why = faults[first]
        more = f", nor {len(others)} more: {listed(others)}" if others else ""
        raise DataError(f"{first} cannot be read as a picture ({why}){more}") from why
    return _of_one_size(source, images)


def _pixels(where: str, image: Any) -> np.ndarray:
    """uint8 ``(H, W)`` or ``(H, W, 3)``."""
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)  # photographs are turned by a tag alone
        if image.mode.startswith("I"):  # 16 bits of grey
            return (np.asarray(image).astype(np.int64) // 257).clip(0, 255).astype(np.uint8)
        return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    pixels = np.asarray(image)
    if pixels.dtype.kind == "f" and pixels.size and 0 <= pixels.min() and pixels.max() <= 1:
        pixels = np.rint(255 * pixels).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or pixels.shape[2:] == (3,)):
        raise DataError(
            f"{where} is {pixels.dtype} {pixels.shape}; allowed: a PIL image, uint8 (H, W), "
            "(H, W, 3) or (3, H, W), or floats in 0..1"
        )
    return pixels


def _of_one_size(source: str, images: list[np.ndarray]) -> np.ndarray:
    """All in RGB if one is; all of one size, the smallest one's if they differ."""
    if not images:
        raise DataError(f"{source}: 0 images")
    if len({image.ndim for image in images}) > 1:
        images = [np.stack([i] * 3, axis=2) if i.ndim == 2 else i for i in images]
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        side = min(LARGEST, min(min(size) for size in sizes))
        warnings.warn(
            f"{source}: images of {len(sizes)} sizes, from {min(sizes)} to {max(sizes)}; all are "
            f"scaled and cut to {side}x{side}",
            stacklevel=2,
        )
        images = [square(Image.fromarray(image), side) for image in images]
    return np.stack(images)


def square(image: Image.Image, side: int, *, shorter: int = 0) -> np.ndarray:
    """The central ``side`` x ``side`` pixels of a picture scaled to a shorter side of ``shorter``,
    by default ``side``."""
    shorter = shorter or side
    width, height = (max(shorter, round(n * (shorter / min(image.size)))) for n in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    scaled = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(scaled.crop((left, top, left + side, top + side)))
