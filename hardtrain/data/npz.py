"""Image sets as ``.npz`` files: reading, checking and writing them."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hardtrain.errors import DataError

SPLITS = ("train", "test")
FORMAT = (
    "an .npz with images uint8 (N, H, W) or (N, H, W, 3), labels integers (N,) from 0, "
    "and optionally class_names (K,)"
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
