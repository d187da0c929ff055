"""What is said about someone's own images, and about known sets that are not what was published."""

import hashlib
import warnings

import numpy as np
import pytest

from hardtrain import ImageDataset, RunStore, run_missing
from hardtrain.data import quality
from hardtrain.data.quality import findings, unpublished


def pair(train=None, test=None, labels=None, **options):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (6, 4, 4), dtype=np.uint8) for _ in range(2)]
    sets = zip((train, test), images, strict=True)
    images = [own if given is None else given for given, own in sets]
    labels = np.arange(6) % 3 if labels is None else np.array(labels)
    return [
        ImageDataset.from_arrays(array, labels, split=split, **options)
        for array, split in zip(images, ("train", "test"), strict=True)
    ]


def test_nothing_is_said_of_an_ordinary_set():
    assert findings(*pair()) == []


def test_test_images_among_the_training_images_are_named():
    train, test = pair()
    images = test.images[:, 0].numpy().copy()
    images[4] = train.images[2, 0].numpy()
    assert findings(*pair(test=images)) == [
        "1 of 6 test images are training images, too: the first is number 4, there number 2"
    ]


def test_training_images_that_occur_twice_are_counted():
    images = pair()[0].images[:, 0].numpy().copy()
    images[5] = images[0]
    assert findings(*pair(train=images)) == ["1 training images occur more than once"]
    _, shared = findings(*pair(train=images, test=images[[5, 5, 5, 5, 5, 5]]))
    assert shared.endswith("the first is number 0, there number 0")


def test_images_of_one_colour_are_named():
    images = pair()[0].images[:, 0].numpy().copy()
    images[3] = 7
    assert findings(*pair(train=images)) == [
        "1 images of train are of one colour: the first is number 3"
    ]


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([1, 2, 3, 1, 2, 3], "labels start at 1, not at 0"),
        ([0, 2, 0, 2, 0, 2], "label 1 occurs in neither"),
        ([0, 0, 0, 1, 1, 2], "label 2 has one training image"),
    ],
)
def test_odd_labels_are_named(labels, text):
    said, *others = findings(*pair(labels=labels))
    assert text in said
    assert all("balanced" in other for other in others)


def test_a_class_without_training_images_is_named():
    train, test = pair(class_names=["a", "b", "c"])
    train = ImageDataset.from_arrays(
        train.images[:, 0].numpy(), np.arange(6) % 2, class_names=["a", "b", "c"]
    )
    assert findings(train, test) == ["label 2 has test images, but no training image"]


def test_images_that_are_no_squares_are_named():
    wide = np.random.default_rng(1).integers(0, 256, (6, 8, 10), dtype=np.uint8)
    (said,) = findings(*pair(train=wide, test=wide[::-1] // 2 + 1))
    assert said == "images are 8x10, no squares: give image_size, or cut them"


def test_images_of_two_shapes_are_named():
    small = np.random.default_rng(1).integers(0, 256, (6, 2, 2), dtype=np.uint8)
    assert findings(*pair(test=small)) == [
        "training images are 1x4x4, test images 1x2x2: make them alike"
    ]


@pytest.mark.parametrize("names", [None, ["a", "b"]])
def test_a_set_of_one_class_is_named(names):
    said = findings(*pair(labels=[0] * 6, class_names=names))
    assert said[0] == "one class only: nothing to learn"


def test_test_classes_of_unequal_sizes_are_named():
    said = findings(*pair(labels=[0, 0, 0, 0, 1, 1]))
    assert said == ["test classes have 2 to 4 images: look at the balanced error, the mean over "
                    "classes"]  # fmt: skip


def test_a_known_set_of_another_size_is_named():
    train, test = pair(name="fashion-mnist")
    assert unpublished(train, test) == [
        "6 training and 6 test images, where 60,000 and 10,000 are published"
    ]
    assert unpublished(*pair(name="mine")) == []


def test_a_known_set_with_other_content_is_named(monkeypatch):
    """The files of MNIST's format, written here by hand: numbers of four bytes, then bytes."""
    train, test = pair(name="mnist")
    files = []
    for split in (train, test):
        pixels, labels = split.images.numpy().tobytes(), bytes(split.labels.tolist())
        files.append(bytes([0, 0, 8, 3, 0, 0, 0, 6, 0, 0, 0, 4, 0, 0, 0, 4]) + pixels)
        files.append(bytes([0, 0, 8, 1, 0, 0, 0, 6]) + labels)
    sums = tuple(hashlib.md5(file).hexdigest() for file in files)
    monkeypatch.setitem(quality.SIZES, "mnist", (6, 6, 1, 4, 3))
    monkeypatch.setitem(quality._PUBLISHED, "mnist", sums)
    assert unpublished(train, test) == []
    test.labels[0] = 2
    train.images[5, 0, 3, 3] ^= 1
    assert unpublished(train, test) == [
        "the training images are not those published",
        "the test labels are not those published",
    ]


def test_a_sweep_says_once_what_is_odd(tmp_path, tiny_run, monkeypatch):
    monkeypatch.setenv("HARDTRAIN_COMMITTED", str(tmp_path / "committed"))
    images = np.arange(640, dtype=np.uint8).reshape(10, 8, 8)
    for split in ("train", "test"):
        np.savez(tmp_path / f"own_{split}.npz", images=images, labels=np.arange(10) % 2)
    run = tiny_run(dataset=str(tmp_path / "own"), epochs=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        run_missing([run], RunStore(tmp_path / "runs"))
    said = [str(warning.message) for warning in caught]
    assert len([text for text in said if "10 of 10 test images are training images" in text]) == 1
    assert any(f"data set {run.dataset!r}" in text for text in said)
