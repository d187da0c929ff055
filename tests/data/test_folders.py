"""Folders of pictures and data sets of other programs, in the forms that people have them."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hardtrain import DataError, ImageDataset, ParameterError, load_dataset

CLASSES = ("ant", "bee & co <b>", "Ünder")


def picture(value, mode="RGB", size=(9, 8)):
    if mode == "I;16":
        return Image.fromarray(np.full(size[::-1], 257 * value, np.uint16))
    image = Image.new("L", size, value)
    if mode == "1":
        return Image.new("1", size, value > 127)
    return image.convert("RGB").quantize() if mode == "P" else image.convert(mode)


def fill(folder, count=5, mode="RGB", classes=CLASSES, **about):
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            picture(10 * k + i, mode, **about).save(folder / name / f"{i}.png")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "I;16"])
def test_a_folder_of_pictures_per_class_is_a_set(tmp_path, mode):
    fill(tmp_path / "train", 5, mode)
    fill(tmp_path / "test", 2, mode)
    data = {split: load_dataset(tmp_path, split) for split in ("train", "test")}
    assert data["train"].class_names == CLASSES
    assert [len(part) for part in data.values()] == [15, 6]
    assert data["train"].labels.tolist() == sorted(5 * [0, 1, 2])
    assert data["train"].images.shape[1:] == (1 if mode in ("L", "LA", "I;16") else 3, 8, 9)
    assert data["train"].images[:, 0, 0, 0].tolist() == [
        10 * k + i for k in range(3) for i in range(5)
    ]


def test_one_folder_is_split_by_content_alone(tmp_path):
    fill(tmp_path / "mine", 10)
    train, test = (load_dataset(tmp_path / "mine", split) for split in ("train", "test"))
    assert test.labels.bincount().tolist() == [2, 2, 2]
    assert train.labels.bincount().tolist() == [8, 8, 8]
    seen = {int(image[0, 0, 0]) for part in (train, test) for image in part.images}
    assert len(seen) == 30
    fill(tmp_path / "same", 10)
    assert load_dataset(tmp_path / "same", "test").fingerprint == test.fingerprint


def test_a_picture_that_is_changed_in_its_place_is_read_again(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "test", 1)
    place = tmp_path / "train" / "ant" / "a.bmp"  # of one size, whatever it shows
    for value in (7, 99):
        picture(value).save(place)
        os.utime(place, (value, value))
        assert load_dataset(tmp_path, "train").images[5, 0, 0, 0] == value


def test_train_alone_is_split_with_a_warning(tmp_path):
    fill(tmp_path / "train", 10)
    with pytest.warns(UserWarning, match="neither test nor val; train is split 80/20"):
        train, test = (load_dataset(tmp_path, split) for split in ("train", "test"))
    assert (len(train), len(test), train.class_names) == (24, 6, CLASSES)
    assert test.fingerprint == load_dataset(tmp_path / "train", "test").fingerprint


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "val"), ("train", "valid"), ("Train", "Validation"), ("TRAIN", "Test")],
)
def test_other_names_stand_for_train_and_test(tmp_path, train, test):
    fill(tmp_path / train)
    fill(tmp_path / test, 1)
    assert [len(load_dataset(tmp_path, split)) for split in ("train", "test")] == [15, 3]


def test_test_pictures_without_labels_do_not_hide_val(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "val", 1)
    (tmp_path / "test").mkdir()
    picture(1).save(tmp_path / "test" / "1.png")
    with pytest.warns(UserWarning, match=": not read: test; wanted: one folder a class"):
        assert len(load_dataset(tmp_path, "test")) == 3


def test_what_is_not_read_is_said(tmp_path):
    for place in ("train", "test"):
        fill(tmp_path / place)
    fill(tmp_path / "val")
    (tmp_path / "labels.csv").touch()
    (tmp_path / "train" / "ant" / "a.heic").touch()
    (tmp_path / "train" / "ant" / ".hidden").touch()
    (tmp_path / "train" / "cat").mkdir()
    with pytest.warns() as caught:
        load_dataset(tmp_path, "train")
    unread = " labels.csv, train/ant/a.heic, val".replace("/", os.sep)
    assert [str(warning.message) for warning in caught] == [
        f"{tmp_path}: not read:{unread}; wanted: one folder a class",
        f"{tmp_path}: empty, so no class: {Path('train', 'cat')}; wanted: one folder a class",
    ]


def test_splits_without_classes_are_said_to_be_taken_for_classes(tmp_path):
    fill(tmp_path, classes=("train", "test"))
    with pytest.warns(UserWarning, match="test, train are read as classes"):
        assert load_dataset(tmp_path, "train").class_names == ("test", "train")


def _beside(folder):
    for k in range(6):
        picture(k).save(folder / f"{k}.png")


def _files(*names):
    def make(folder):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()

    return make


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (_beside, "6 pictures lie directly in it"),
        (
            lambda folder: [fill(folder / name) for name in ("trian", "test")],
            r"it has the folders test, trian; did you mean train\?",
        ),
        (lambda folder: fill(folder / "pictures"), r"folders pictures; did you mean .*pictures\?"),
        (lambda folder: fill(folder / "all" / "train"), r"folders all; did you mean .*all\?"),
        (_files("ant/1.heic", "bee/2.HEIC"), r"folders ant, bee with \.HEIC, \.heic files"),
        (
            _files("images.npy", "y.npy"),
            r"files images\.npy, y\.npy; np\.savez\('mine\.npz', images",
        ),
        (_files("mine_train.npz.gz"), r"it has the files mine_train\.npz\.gz"),
        (_files("a_train.npz", "a_test.npz"), r"; did you mean .*mine.a\?"),
        (_files("a.npz"), r"; did you mean .*mine.a\.npz\?"),
        (lambda folder: None, "it is empty"),
    ],
)
def test_a_folder_of_neither_form_says_what_is_inside(tmp_path, make, text):
    (folder := tmp_path / "mine").mkdir()
    make(folder)
    with pytest.raises(DataError, match=f"mine is no image set: .*{text}") as caught:
        load_dataset(folder, "train")
    for form in ("train.npz and test.npz, each an .npz with images", "train/CLASS", ".png .jpg"):
        assert form in str(caught.value)


def test_pictures_of_several_sizes_become_one_with_a_warning(tmp_path):
    fill(tmp_path / "train", size=(20, 12))
    fill(tmp_path / "test", 2, size=(12, 16))
    picture(9, "L", (30, 10)).save(tmp_path / "test" / "ant" / "0.png")
    sizes = r"of 3 sizes, from \(10, 30\) to \(16, 12\); all are scaled and cut to 10x10"
    with pytest.warns(UserWarning, match=sizes):
        train = load_dataset(tmp_path, "train")
    assert train.images.shape == (15, 3, 10, 10)
    assert load_dataset(tmp_path, "test").images.shape == (6, 3, 10, 10)  # read, and said, once


def test_pictures_are_read_once_until_one_changes(tmp_path, monkeypatch):
    fill(tmp_path / "train")
    fill(tmp_path / "test", 2)
    opened, read = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or read(path))
    before = [load_dataset(tmp_path, split).fingerprint for split in ("train", "test", "train")]
    number = len(opened)
    assert number == len(set(opened))
    picture(99).save(opened[0])
    assert load_dataset(tmp_path, "train").fingerprint != before[0] == before[2]
    assert len(opened) == 2 * number


def test_faults_name_the_file(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "test", classes=CLASSES[:2])
    with pytest.raises(DataError, match="'Ünder' is a class of only one of train and test"):
        load_dataset(tmp_path, "train")
    fill(tmp_path / "mine")
    (tmp_path / "mine" / "ant" / "3.png").write_bytes(b"no picture at all")
    with pytest.raises(DataError, match=r"ant.3\.png cannot be read as a picture"):
        load_dataset(tmp_path / "mine", "train")
    for k in range(8):
        (tmp_path / "mine" / "ant" / f"{k}.png").write_bytes(b"no picture at all")
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path / "mine", "train")
    assert "0.png cannot be read as a picture" in str(caught.value)
    assert ", nor 7 more: " in str(caught.value)
    assert str(caught.value).endswith("5.png and 2 more")
    (tmp_path / "empty" / "ant").mkdir(parents=True)
    with pytest.raises((DataError, ParameterError), match="empty"):
        load_dataset(tmp_path / "empty", "train")


# --- data sets of other programs -----------------------------------------------------------------


class Faces:
    """As Hugging Face has it: mappings, and the names of the classes in the features."""

    def __init__(self):
        self.features = {"label": type("ClassLabel", (), {"names": ["no", "yes"]})}

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"image": picture(index, "RGB"), "label": index % 2}


def test_a_data_set_of_mappings():
    data = ImageDataset.from_torch(Faces(), name="faces", split="test")
    assert (data.name, data.split, data.class_names) == ("faces", "test", ("no", "yes"))
    assert data.images[:, 2, 0, 0].tolist() == [0, 1, 2, 3]
    assert data.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "image",
    [
        np.full((8, 9, 3), 51, np.uint8),
        torch.full((3, 8, 9), 0.2),
        torch.full((3, 8, 9), 51, dtype=torch.uint8),
        picture(51),
    ],
)
def test_a_data_set_of_pairs(image):
    data = ImageDataset.from_torch([(image, 0), (image, torch.tensor(1))])
    assert data.images.shape == (2, 3, 8, 9)
    assert data.images.unique().tolist() == [51]
    assert data.class_names == ("0", "1")


def test_a_torchvision_folder_and_its_class_names(tmp_path):
    from torchvision.datasets import ImageFolder

    fill(tmp_path)
    data = ImageDataset.from_torch(ImageFolder(tmp_path))
    assert data.class_names == CLASSES
    assert data.labels.bincount().tolist() == [5, 5, 5]


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([], "0 images"),
        ([{"picture": 1, "label": 0}], r"item 0 is .*; wanted \(image, label\)"),
        ([(torch.full((3, 8, 8), 2.0), 0)], r"item 0 is float32 \(8, 8, 3\); allowed"),
        ([(np.zeros((8, 8), np.int64), 0)], "item 0 is int64"),
        ([(np.zeros((8, 8), np.uint8), -1)], "label -1 at index 0"),
        ([(picture(1), [0, 1])], r"item 0 has the label \[0, 1\]; wanted: one integer from 0"),
        ([(picture(1), torch.eye(3)[0])], r"label tensor.*; .* \(of a one-hot row label\.argmax"),
        ([(picture(1), np.eye(3)[0])], r"label array.*; wanted: one integer"),
        ([(picture(1), "ant")], r"label 'ant'; .* of a text names\.index\(label\)"),
        ([(picture(1), 0.5)], r"label 0\.5; wanted: one integer"),
        ([(picture(1), float("inf"))], "label inf; wanted: one integer"),
        ([picture(1)], r"item 0 is .*; wanted \(image, label\)"),
        ([(picture(1),)], r"item 0 is .*; wanted \(image, label\)"),
        (torch.utils.data.DataLoader([0]), r"mine \(train\) is DataLoader.*is loader\.dataset"),
        (iter([0]), r"is list_iterator, .* of an iterable one list\(items\)"),
    ],
)
def test_items_that_are_no_images_are_refused(items, text):
    with pytest.raises(DataError, match=text):
        ImageDataset.from_torch(items, name="mine")


@pytest.mark.skipif(sys.platform != "linux", reason="its names of files are bytes")
def test_folders_named_in_another_encoding_are_classes(tmp_path):
    for name in (b"caf\xe9", b"dog"):
        folder = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
        folder.mkdir()
        for number in range(5):
            Image.new("L", (8, 8), 40 * number).save(folder / f"{number}.png")
    assert load_dataset(tmp_path, "train").class_names == ("caf\ufffd", "dog")


def test_hidden_files_are_neither_classes_nor_images(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog", ".ipynb_checkpoints" if split == "train" else "dog"):
            (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "0.png")
    (tmp_path / "train" / "cat" / "._0.png").write_bytes(b"x")
    loaded = load_dataset(tmp_path, "train")
    assert (len(loaded), loaded.class_names) == (2, ("cat", "dog"))


def test_names_of_files_do_not_decide_the_split(tmp_path):
    for k, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.new("L", (8, 8), 20 * i + k).save(tmp_path / name / f"{i}.png")
    before = load_dataset(tmp_path, "train").fingerprint
    (tmp_path / "cat" / "0.png").rename(tmp_path / "cat" / "z.png")
    assert load_dataset(tmp_path, "train").fingerprint == before


def test_photographs_are_turned_as_their_tag_says(tmp_path):
    image = Image.new("L", (8, 8))
    image.paste(255, (0, 0, 8, 4))  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            image.save(tmp_path / split / name / "0.jpg", exif=exif, quality=95)
    pixels = load_dataset(tmp_path, "train").images[0, 0].float()
    assert pixels[:, 4:].mean() > 200 > 50 > pixels[:, :4].mean()
