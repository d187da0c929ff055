"""Image sets as folders of pictures, one folder a class, and as any other program's data sets."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hardtrain.data.npz import Arrays, check_pair
from hardtrain.data.stratify import eighty_twenty
from hardtrain.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
LARGEST = 128  # pixels of the shorter side, where pictures of several sizes are made one


def class_folders(folder: Path) -> list[Path]:
    """The folders below ``folder`` that hold pictures, by name; none if it is no such folder."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    shown = [path for path in inside if path.is_dir() and not path.name.startswith(".")]
    return [path for path in shown if _pictures(path)]


def read_folder(folder: Path, split: str) -> Arrays | None:
    """One split of ``folder/train/CLASS/*.png`` and ``folder/test/CLASS/*.png`` (or ``val``), or
    of ``folder/CLASS/*.png``, which is split 80/20 per class by its content alone, as is ``train``
    where it stands alone. ``None`` where the folder is neither.

    Pictures may be grey, RGB, with a palette, with alpha (which is dropped) or of 16 bits. Those of
    several sizes are scaled to the smallest one's shorter side (128 at most) and cut to a
    square from their centre, which a warning says.

    Raises:
        DataError: a picture that cannot be read, or the splits have different classes.
    """
    parts = {name: folder / name for name in ("train", "test", "val")}
    other = parts["test"] if parts["test"].is_dir() else parts["val"]
    if class_folders(parts["train"]) and not other.is_dir():
        warnings.warn(f"{folder}: neither test nor val; train is split 80/20", stacklevel=2)
        folder = parts["train"]
    elif class_folders(parts["train"]):
        folders = {"train": class_folders(parts["train"]), "test": class_folders(other)}
        names = {part: _names(paths) for part, paths in folders.items()}
        if names["train"] != names["test"]:
            odd = sorted(set(names["train"]) ^ set(names["test"]))
            raise DataError(
                f"{folder}: {odd[0]!r} is a class of only one of train and {other.name}"
            )
        images = _read([path for part in folders.values() for path in part])
        first = len(_labels(folders["train"]))
        images = images[:first] if split == "train" else images[first:]
        return Arrays(images, _labels(folders[split]), names["train"])
    classes = class_folders(folder)
    if not classes:
        return None
    images, labels = _read(classes), _labels(classes)
    # by content, so that other names of files make no other split
    order = sorted(range(len(labels)), key=lambda i: (labels[i], images[i].tobytes()))
    images, labels = images[order], labels[order]
    chosen = eighty_twenty(labels, split)
    return Arrays(images[chosen], labels[chosen], _names(classes))


def read_items(source: str, items: Sequence[Any]) -> Arrays:
    """The items of a map-style data set of torchvision or Hugging Face, or of one's own: pairs
    ``(image, label)`` or mappings with an ``image`` (``img``) and a ``label``.

    Images are PIL images, uint8 arrays or tensors ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``, or
    floats of the last form in 0..1, as ``ToTensor`` gives them.

    Raises:
        DataError: naming the item, what it is and what is allowed.
    """
    images, labels = [], []
    for index in range(len(items)):
        item = items[index]
        if isinstance(item, dict):
            image = item.get("image", item.get("img"))
            label = item.get("label", item.get("labels"))
        else:
            image, label = item[0], item[1]
        where = f"{source}: item {index}"
        if image is None or label is None:
            raise DataError(f"{where} is {item!r:.80}; wanted (image, label), or both by name")
        images.append(_pixels(where, image))
        labels.append(int(label))
    stacked = _of_one_size(source, images)
    features = getattr(items, "features", {})
    names = getattr(items, "classes", None) or getattr(features.get("label"), "names", None)
    found = check_pair(source, stacked, np.array(labels), len(names) if names else None)
    names = names or [str(k) for k in range(int(found.max()) + 1)]
    return Arrays(stacked, found, tuple(map(str, names)))


def _pictures(folder: Path) -> list[Path]:
    shown = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in shown if path.suffix.lower() in SUFFIXES)


def _names(classes: Sequence[Path]) -> tuple[str, ...]:
    """As text, also where a system of another encoding named the folders."""
    return tuple(os.fsencode(path.name).decode(errors="replace") for path in classes)


def _labels(classes: Sequence[Path]) -> np.ndarray:
    return np.repeat(np.arange(len(classes)), [len(_pictures(path)) for path in classes])


def _read(classes: Sequence[Path]) -> np.ndarray:
    images = []
    for path in (picture for folder in classes for picture in _pictures(folder)):
        try:
            with Image.open(path) as image:
                images.append(_pixels(str(path), image))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} cannot be read as a picture ({error})") from error
    return _of_one_size(str(classes[0].parent), images)


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
