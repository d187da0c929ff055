"""What is odd about someone's own image set, and whether a known one is what was published."""

import hashlib
import struct
from collections.abc import Iterator

import numpy as np
import torch

from hardtrain.data.images import SIZES, ImageDataset

LISTED = 50  # classes that a summary lists
UNEQUAL = 2  # times as many test images of a class as of another: errors are to be balanced

_OWN_SPLITS = ("digits", "caltech101")  # published without a test set
# MD5 of the published files, unpacked: training images and labels, test images and labels
_PUBLISHED = {
    "mnist": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "fashion-mnist": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}


def findings(train: ImageDataset, test: ImageDataset) -> list[str]:
    """What deserves a look in an image set, a sentence each: images that occur twice, are one
    colour, no squares or of two shapes, classes of one sample or none, of unequal sizes, or alone.

    Example:
        >>> images, labels = np.zeros((4, 2, 2), np.uint8), np.array([0, 0, 0, 2])
        >>> images[1:] += np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
        >>> sets = [ImageDataset.from_arrays(images, labels, split=s) for s in ("train", "test")]
        >>> for text in findings(*sets):
        ...     print(text)
        4 of 4 test images are training images, too: the first is number 0, there number 0
        1 images of train are of one colour: the first is number 0
        1 images of test are of one colour: the first is number 0
        label 1 occurs in neither train nor test
        label 2 has one training image
        test classes have 1 to 3 images: look at the balanced error, the mean over classes
    """
    splits = [*_constant(train), *_constant(test)]
    return [*_shared(train, test), *splits, *_shapes(train, test), *_classes(train, test)]


def summary(train: ImageDataset, test: ImageDataset) -> list[str]:
    """The sizes and classes of an image set, and what `findings` says of it, a line each.

    Example:
        >>> from hardtrain.data.images import load_dataset
        >>> lines = summary(*(load_dataset("digits", split) for split in ("train", "test")))
        >>> for line in lines[:3]:
        ...     print(line)
        digits: 1438 training and 359 test images, 1x8x8, 10 classes
             train      test  class
               142        36  0: 0
    """
    shape = "x".join(map(str, train.images.shape[1:]))
    lines = [f"{train.name}: {len(train)} training and {len(test)} test images, {shape}, "
             f"{train.num_classes} classes"]  # fmt: skip
    counts = [split.labels.bincount(minlength=train.num_classes).tolist()
              for split in (train, test)]  # fmt: skip
    rarest = sorted(range(train.num_classes), key=lambda k: counts[0][k])[:LISTED]
    lines.append(f"{'train':>10}{'test':>10}  class")
    lines += [f"{counts[0][k]:10}{counts[1][k]:10}  {k}: {train.class_names[k]}"
              for k in sorted(rarest)]  # fmt: skip
    if others := train.num_classes - len(rarest):
        lines.append(f"{others} more classes, each with as many training images or more")
    return lines + [f"note: {text}" for text in findings(train, test)]


def unpublished(train: ImageDataset, test: ImageDataset) -> list[str]:
    """How a known set differs from what was published: numbers of images, and, where the checksums
    of its files tell, content. Torchvision compares all with published ones as it downloads them.
    """
    here = (len(train), len(test))
    known = train.name in SIZES and train.name not in _OWN_SPLITS
    published = SIZES[train.name][:2] if known else here
    if here == published and train.name not in _PUBLISHED:
        return []
    if here == published:
        sums = [md5 for split in (train, test) for md5 in _as_published(split)]
        parts = ("training images", "training labels", "test images", "test labels")
        both = zip(parts, sums, _PUBLISHED[train.name], strict=True)
        return [
            f"the {part} are not those published" for part, ours, right in both if ours != right
        ]
    counts = [f"{number:,}" for number in (*here, *published)]
    return ["{} training and {} test images, where {} and {} are published".format(*counts)]


def _as_published(split: ImageDataset) -> Iterator[str]:
    """The MD5 of images and labels in MNIST's file format."""
    for array in (split.images.squeeze(1), split.labels.to(torch.uint8)):
        pixels = array.cpu().numpy()
        header = struct.pack(f">{1 + pixels.ndim}i", 0x800 + pixels.ndim, *pixels.shape)
        yield hashlib.md5(header + pixels.tobytes(), usedforsecurity=False).hexdigest()


def _shared(train: ImageDataset, test: ImageDataset) -> Iterator[str]:
    rows = [split.images.cpu().numpy().reshape(len(split), -1) for split in (train, test)]
    if rows[0].shape[1] != rows[1].shape[1]:
        return
    known = {row.tobytes(): index for index, row in reversed(list(enumerate(rows[0])))}
    if len(known) < len(rows[0]):
        yield f"{len(rows[0]) - len(known)} training images occur more than once"
    both = [(index, known[row.tobytes()]) for index, row in enumerate(rows[1])
            if row.tobytes() in known]  # fmt: skip
    if both:
        yield (
            f"{len(both)} of {len(test)} test images are training images, too: the first is "
            f"number {both[0][0]}, there number {both[0][1]}"
        )


def _constant(split: ImageDataset) -> Iterator[str]:
    flat = split.images.flatten(2)
    same = (flat.amin(2) == flat.amax(2)).all(1).nonzero().flatten().tolist()
    if same:
        count = f"{len(same)} images of {split.split}"
        yield f"{count} are of one colour: the first is number {same[0]}"


def _shapes(train: ImageDataset, test: ImageDataset) -> Iterator[str]:
    shapes = ["x".join(map(str, split.images.shape[1:])) for split in (train, test)]
    if shapes[0] != shapes[1]:
        yield "training images are {}, test images {}: make them alike".format(*shapes)
    height, width = train.images.shape[2:]
    if height != width:
        yield f"images are {height}x{width}, no squares: give image_size, or cut them"


def _classes(train: ImageDataset, test: ImageDataset) -> Iterator[str]:
    counts, others = (
        np.bincount(split.labels.cpu().numpy(), minlength=train.num_classes)
        for split in (train, test)
    )
    if np.count_nonzero(counts) < 2:
        yield "one class only: nothing to learn"
    if counts[0] == others[0] == 0 and counts.size > 1:
        yield "labels start at 1, not at 0: class 0 has no sample and stays a class of its own"
    gaps = [k for k in range(1, counts.size) if counts[k] == others[k] == 0]
    if gaps:
        yield f"label {', '.join(map(str, gaps[:5]))} occurs in neither train nor test"
    absent = [k for k in range(counts.size) if counts[k] == 0 and others[k]]
    if absent:
        yield f"label {', '.join(map(str, absent[:5]))} has test images, but no training image"
    single = np.flatnonzero(counts == 1).tolist()
    if single:
        yield f"label {', '.join(map(str, single[:5]))} has one training image"
    some = others[others > 0]
    if some.size and some.max() >= UNEQUAL * some.min():
        yield (
            f"test classes have {some.min()} to {some.max()} images: look at the balanced error, "
            "the mean over classes"
        )
