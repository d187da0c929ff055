"""Image sets as ``.npz`` files: their form, its checks, reading and writing.

A file holds ``images`` uint8 ``(N, H, W)`` or ``(N, H, W, 3)``, ``labels`` integers ``(N,)`` from
0, and optionally ``class_names`` ``(K,)``. A set is one such file or a pair of them, ``train``
and ``test``. Other forms that leave no doubt are read, too: see `plain_labels` and `plain_images`.
"""

import warnings
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hardtrain.data.stratify import eighty_twenty
from hardtrain.errors import DataError
from hardtrain.files import write_atomically

SPLITS = ("train", "test")
FORMAT = (
    "an .npz with images uint8 (N, H, W) or (N, H, W, 3), labels integers (N,) from 0, "
    "and optionally class_names (K,)"
)


_TO_BYTES = '(255 * images).round().astype("uint8")'
LISTED = 5  # names that an error or a warning lists


class Arrays(NamedTuple):
    """One split as it lies in a file, checked."""

    images: np.ndarray  # uint8 (N, H, W) or (N, H, W, 1 or 3)
    labels: np.ndarray  # int64 (N,)
    class_names: tuple[str, ...]


# ---- the form


def check_images(source: str | Path, images: np.ndarray) -> None:
    """Refuse ``images`` that are not uint8 ``(N, H, W)`` or ``(N, H, W, 1 or 3)``.

    Raises:
        DataError: naming ``source``, what is wrong there and what to do.
    """
    if images.dtype != np.uint8:
        values, recipe = " (ragged; all need one size)" if images.dtype == object else "", ""
        if images.dtype.kind in "biuf" and images.size:
            values = f" from {float(images.min()):g} to {float(images.max()):g}"
            recipe = f': {_TO_BYTES} of 0..1, images.round().astype("uint8") of 0..255'
        raise DataError(
            f"{source}: images are {images.dtype}{values}; save them as uint8, 0 to 255{recipe}"
        )
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        recipes = {2: "images.reshape(-1, H, W)", 4: "images.transpose(0, 2, 3, 1)"}
        recipe = f"; try {recipes[images.ndim]}" if images.ndim in recipes else ""
        raise DataError(
            f"{source}: images have shape {images.shape}; allowed: (N, H, W) or (N, H, W, 3)"
            f"{recipe}"
        )
    if images.size == 0:
        raise DataError(f"{source}: images have shape {images.shape}: 0 samples or no pixels")


def check_labels(
    source: str | Path, labels: np.ndarray, num_classes: int | None = None
) -> np.ndarray:
    """``labels`` as int64 ``(N,)``, if they are integers in ``0 .. num_classes - 1``.

    Raises:
        DataError: naming ``source``, the first bad index, its value and what is allowed.
    """
    if labels.ndim != 1:
        raise DataError(
            f"{source}: labels have shape {labels.shape}; allowed: (N,), one integer each"
        )
    if labels.dtype.kind not in "iu":
        raise DataError(f"{source}: labels are {labels.dtype}; save them as integers from 0")
    end, allowed = np.iinfo(np.int32).max, "0..K-1"
    if num_classes is not None:
        end, allowed = num_classes, f"0..{num_classes - 1} ({num_classes} classes)"
    bad = np.flatnonzero((labels < 0) | (labels >= end))
    if len(bad):
        raise DataError(f"{source}: label {labels[bad[0]]} at index {bad[0]} is not in {allowed}")
    return labels.astype(np.int64)


def check_pair(
    source: str | Path, images: np.ndarray, labels: np.ndarray, num_classes: int | None = None
) -> np.ndarray:
    """``labels`` as int64, if both are of the form and of one count; DataError otherwise."""
    check_images(source, images)
    labels = check_labels(source, labels, num_classes)
    if len(images) != len(labels):
        raise DataError(f"{source}: {len(images)} images but {len(labels)} labels")
    return labels


def class_numbers(source: str | Path, labels: np.ndarray) -> tuple[str, ...]:
    """Names "0", "1", ... up to the largest label, unless that can be no class."""
    largest = int(labels.max())
    if largest >= max(1000, len(labels)):
        raise DataError(
            f"{source}: the largest label is {largest}, with only {len(labels)} samples; labels "
            "are 0..K-1 (give class_names if there are that many classes)"
        )
    return tuple(map(str, range(largest + 1)))


# ---- other forms of labels and images


def plain_labels(
    source: str | Path, parts: Sequence[np.ndarray], class_names: tuple[str, ...] | None
) -> tuple[list[np.ndarray], tuple[str, ...] | None]:
    """The labels of a set's splits as integers from 0, and the names that they bring.

    One-hot rows and bools become numbers, whole floats integers, ``(N, 1)`` ``(N,)``, texts the
    position of their sorted names (or of ``class_names``). Integers from 1 are moved to 0, if no
    class name is left over by that. Warnings say what was done to the first of ``parts``.
    Whatever else there is stays as it is, for `check_labels` to refuse.
    """
    (_, changes), *_ = converted = [_numbers(labels) for labels in parts]
    for change in changes:
        warnings.warn(f"{source}: labels {change}", stacklevel=2)
    parts = [labels for labels, _ in converted]
    if all(labels.dtype.kind in "US" for labels in parts):
        texts = [np.char.decode(part) if part.dtype.kind == "S" else part for part in parts]
        names = class_names or tuple(np.unique(np.concatenate(texts)).tolist())
        number = {name: k for k, name in enumerate(names)}
        for text in {str(text) for part in texts for text in part} - set(names):
            raise DataError(f"{source}: label {text!r} is not among class_names {list(names)}")
        return [np.array([number[str(t)] for t in part], np.int64) for part in texts], names
    whole = [labels for labels in parts if labels.ndim == 1 and labels.dtype.kind in "iu"]
    if len(whole) == len(parts) and min((p.min() for p in whole if p.size), default=0) == 1:
        largest = max(int(part.max()) for part in whole if part.size)
        if class_names is None or largest == len(class_names):
            warnings.warn(f"{source}: labels start at 1; 1 becomes class 0", stacklevel=2)
            if class_names is None and largest < max(1000, sum(map(len, whole))):
                class_names = tuple(map(str, range(1, largest + 1)))
            return [part.astype(np.int64) - 1 for part in whole], class_names
    return parts, class_names


def _numbers(labels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """One number or text a label, where that is meant, and what was changed for it."""
    changes = []
    if labels.ndim == 2 and labels.shape[1] == 1:
        changes.append(f"{labels.shape} become {labels.shape[:1]}")
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "biuf" and labels.size:
        if np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all():
            changes.append("in one-hot rows become their numbers")
            labels = labels.argmax(axis=1)
    if labels.ndim == 1 and labels.dtype.kind == "f":
        if (np.abs(labels) < 2**31).all() and (labels == np.rint(labels)).all():
            changes.append(f"in whole {labels.dtype} become integers")
            labels = labels.astype(np.int64)
    return labels, changes


def plain_images(source: str | Path, images: np.ndarray) -> np.ndarray:
    """Images as uint8 with channels last, without alpha, where that is meant; others as they are.

    Those of 16 bits are divided by 257, floats in 0..1 multiplied by 255, other integers in 0..255
    (and not all in 0..1) kept; ``(N, 1, H, W)`` and ``(N, 3, H, W)`` are turned if the last axis
    can be no channels. Warnings say so.
    """
    kind, changes = images.dtype.kind, []
    numbers = images.size and kind in "iuf" and images.dtype != np.uint8
    low, high = (images.min(), images.max()) if numbers else (0, -1)
    if images.dtype == np.uint16:
        changes.append("of 16 bits become 8: divided by 257")
        images = (images // 257).astype(np.uint8)
    elif kind == "f" and 0 <= low <= high <= 1:
        changes.append(f"{images.dtype} in 0..1 become uint8: {_TO_BYTES}")
        images = np.rint(255 * images).astype(np.uint8)
    elif kind in "iu" and 0 <= low and 1 < high <= 255:
        changes.append(f"{images.dtype} in 0..255 become uint8")
        images = images.astype(np.uint8)
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3, 4):
        changes.append(f"{images.shape} become (N, H, W, C): channels were first")
        images = images.transpose(0, 2, 3, 1)
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 4:
        if (images[..., 3] != 255).any():
            changes.append("are partly transparent; alpha is dropped")
        images = images[..., :3]
    for change in changes:
        warnings.warn(f"{source}: images {change}", stacklevel=2)
    return images


# ---- reading and writing


def read_one(path: Path, split: str) -> Arrays:
    """One split of a file that holds both: 80/20 per class, by content alone.

    Raises:
        DataError: not of the form, or the file is one of a pair.
    """
    for part, other in (SPLITS, SPLITS[::-1]):
        twin = path.with_name(f"{path.stem.removesuffix(part)}{other}.npz")
        if path.stem.endswith(part) and twin.is_file():
            raise DataError(
                f"{path} is one split of two and would be split again; give "
                f"{str(path).removesuffix(f'{part}.npz').rstrip('_')!r}, or rename {twin.name}"
            )
    images, labels, class_names = _whole(path)
    chosen = eighty_twenty(labels, split)
    return Arrays(images[chosen], labels[chosen], class_names)


def read_pair(files: Mapping[str, Path], split: str) -> Arrays:
    """One split of ``{"train": path, "test": path}``, with the classes of both where both are
    there.

    Raises:
        DataError: that of ``split`` is missing, one is not of the form, or the two disagree.
    """
    return _whole(files[split], files["test" if split == "train" else "train"])


def _whole(path: Path, other: Path | None = None) -> Arrays:
    """A file in the plain form, with the classes of the ``other`` of its set, if that is there."""
    images, labels, class_names = _read(path)
    parts = [labels]
    if other is not None and other.exists():
        _, other_labels, other_names = _read(other, with_images=False)
        if class_names and other_names and class_names != other_names:
            for k, (name, other_name) in enumerate(zip_longest(class_names, other_names)):
                if name != other_name:
                    raise DataError(
                        f"{path} and {other} disagree: class {k} is {name!r} and {other_name!r}"
                    )
        parts, class_names = [labels, other_labels], class_names or other_names
    (labels, *others), class_names = plain_labels(path, parts, class_names)
    count = len(class_names) if class_names else None
    labels = check_pair(path, images, labels, count)
    others = [check_labels(str(other), part, count) for part in others]
    names = class_names or class_numbers(path, np.concatenate([labels, *others]))
    return Arrays(images, labels, names)


def write_npz(
    path: Path, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> None:
    """Write one split so that ``path`` is, at every moment, absent, the old file or the new one."""
    arrays: dict[str, Any] = {"images": images, "labels": labels}
    arrays["class_names"] = np.array(class_names, str)
    write_atomically(path, lambda file: np.savez(file, **arrays))


def _read(
    path: Path, *, with_images: bool = True
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...] | None]:
    """``(images, labels, class_names)`` of one file; no names: None, no images: empty."""
    wanted = {"images", "labels", "class_names"} if with_images else {"labels", "class_names"}
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is no file (a folder, a pipe, a device); wanted: {FORMAT}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = archive.files
            arrays = {key: archive[key] for key in wanted.intersection(keys)}
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; wanted: {FORMAT}") from error
    except Exception as error:  # zip, zlib, header and pickle faults have a dozen types
        raise DataError(f"{path}: {_unreadable(path, error)}") from error
    if missing := [key for key in ("images", "labels") if key not in keys]:
        raise DataError(
            f"{path}: has no array {' and no array '.join(map(repr, missing))} "
            f"(found: {listed(keys) or 'nothing'}); wanted: {FORMAT}"
        )
    class_names = arrays.get("class_names")
    if class_names is not None:
        if class_names.ndim != 1 or len(class_names) == 0 or class_names.dtype.kind not in "US":
            raise DataError(
                f"{path}: class_names are {class_names.dtype} {class_names.shape}; "
                "allowed: strings (K,)"
            )
        try:
            class_names = tuple(
                name.decode() if isinstance(name, bytes) else name for name in class_names.tolist()
            )
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: class_names hold {error.object!r}, which is not UTF-8; save them as text"
            ) from error
    images = plain_images(path, arrays["images"]) if with_images else np.empty(0)
    return images, arrays["labels"], class_names


def _unreadable(path: Path, error: Exception) -> str:
    """Why, in words of ours: NumPy's advise loading what is unsafe."""
    if isinstance(error, OSError) and error.errno:
        return f"cannot be read ({error.strerror})"
    if path.suffix.lower() == ".npy":
        return (
            f"is one array; np.savez({path.stem + '.npz'!r}, images=…, labels=…) makes a file of "
            f"both; wanted: {FORMAT}"
        )
    with open(path, "rb") as file:
        start = file.read(20)
    if "Object arrays" in str(error):
        return "ragged or object arrays are not read; save plain uint8, integers and strings"
    if path.suffix.lower() == ".npz" and start.startswith(b"PK"):
        why = f"{type(error).__name__}: {error}"
        return f"the file is damaged: delete it and get it again ({why}); wanted: {FORMAT}"
    content = f"begins with {start!r}" if start else "is empty"
    return f"is no .npz (it {content}); wanted: {FORMAT}"


def listed(names: Sequence[str]) -> str:
    """The first of ``names``, and how many more there are.

    Example:
        >>> listed(list("abcdefg"))
        'a, b, c, d, e and 2 more'
    """
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
