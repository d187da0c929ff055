"""The ``.npz`` form: what is read, what is refused by name, and that a file is written whole."""

import os
import warnings

import numpy as np
import pytest
import torch
from helpers import colours, save_set

from hardtrain import DataError, ImageDataset, load_dataset
from hardtrain.data import npz

RAGGED = np.array([np.zeros((2, 2)), np.zeros((3, 3))], dtype=object)


def test_class_names_of_one_file_serve_both(tmp_path):
    save_set(tmp_path / "train.npz", class_names=np.array(["cat", "dog", "eel", "fox", "gnu"]))
    save_set(tmp_path / "test.npz")
    assert load_dataset(tmp_path, "test").class_names == ("cat", "dog", "eel", "fox", "gnu")
    assert load_dataset(tmp_path, "train").num_classes == 5


def test_labels_of_every_integer_type_are_read(tmp_path):
    for dtype in ("uint8", "int8", "uint16", ">i4", "uint64"):
        save_set(tmp_path / "a.npz", labels=colours()[1].astype(dtype))
        assert load_dataset(tmp_path / "a.npz", "train").labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((0, 8, 8), np.uint8), "labels": np.zeros(0, int)}, "0 samples"),
        ({"images": np.zeros((20, 0, 8), np.uint8)}, "no pixels"),
        ({"labels": np.arange(19)}, "20 images but 19 labels"),
        ({"labels": np.array([0] * 19 + [-1])}, r"label -1 at index 19 is not in 0\.\.K-1"),
        ({"labels": np.array([0, -100] + [0] * 18)}, "label -100 at index 1"),
        ({"labels": np.array([0, 2**63] + [0] * 18, np.uint64)}, "label 9223372036854775808"),
        ({"labels": np.array([0] * 19 + [10**6])}, "largest label is 1000000, with only 20"),
        (
            {"labels": np.array([0] * 7 + [255] * 13), "class_names": np.array(["a", "b"])},
            r"label 255 at index 7 is not in 0\.\.1 \(2 classes\)",
        ),
        ({"labels": np.arange(20) / 2}, "labels are float64; save them as integers"),
        ({"labels": np.array([np.inf] + [0.0] * 19)}, "labels are float64; save them"),
        ({"labels": np.array([-1.0] + [0.0] * 19)}, "label -1 at index 0"),
        ({"labels": np.array([b"a", None] * 10, object)}, "object arrays are not read"),
        ({"labels": 2 * np.eye(20)}, r"labels have shape \(20, 20\); allowed: \(N,\)"),
        (
            {"labels": np.array(["cat"] * 20), "class_names": np.array(["dog"])},
            r"label 'cat' is not among class_names \['dog'\]",
        ),
        ({"images": np.full((20, 8, 8), 2, np.float32)}, "float32 from 2 to 2; save them as uint8"),
        (
            {"images": np.linspace(-1, 1, 320).reshape(20, 4, 4)},
            r'from -1 to 1; .*: \(255 \* images\)\.round\(\)\.astype\("uint8"\) of 0\.\.1, ',
        ),
        ({"images": np.ones((20, 8, 8), bool)}, r"bool from 1 to 1; .*: \(255 \* images\)"),
        ({"images": np.full((20, 8, 8), -1)}, "int64 from -1 to -1; save them as uint8"),
        ({"images": np.full((20, 8, 8), 256)}, "int64 from 256 to 256; save them as uint8"),
        ({"images": np.full((20, 2, 2), np.nan)}, "float64 from nan to nan; save them as uint8"),
        ({"images": np.zeros((20, 8, 8), np.int64)}, "int64 from 0 to 0; save them as uint8"),
        ({"images": np.zeros((20, 64), np.uint8)}, r"shape \(20, 64\); .*reshape\(-1, H, W\)"),
        (
            {"images": np.zeros((20, 4, 8, 8), np.uint8)},
            r"shape \(20, 4, 8, 8\); allowed.*; try images\.transpose\(0, 2, 3, 1\)",
        ),
        ({"images": RAGGED, "labels": np.arange(2)}, "ragged or object arrays are not read"),
        ({"class_names": np.array([["a"]])}, r"class_names are <U1 \(1, 1\)"),
        ({"class_names": np.arange(4)}, "class_names are int64"),
    ],
)
def test_file_with_wrong_arrays_is_refused_by_name(tmp_path, arrays, message):
    path = save_set(tmp_path / "mine.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(path, "train")
    assert "mine.npz" in str(caught.value)


def test_arrays_are_checked_as_files_are():
    images, labels = colours()
    with pytest.raises(DataError, match=r"arrays \(train\): 20 images but 3 labels"):
        ImageDataset.from_arrays(images, labels[:3])
    with pytest.raises(DataError, match="label 2 at index 2"):
        ImageDataset.from_arrays(images, labels, class_names=["a", "b"])
    with pytest.raises(DataError, match="ragged"):
        ImageDataset.from_arrays(RAGGED, labels[:2])


def test_missing_array_is_named_beside_those_there(tmp_path):
    np.savez(tmp_path / "a.npz", image=colours()[0], labels=colours()[1])
    with pytest.raises(DataError, match=r"no array 'images' \(found: image, labels\)"):
        load_dataset(tmp_path / "a.npz", "train")
    np.savez(tmp_path / "b.npz", images=colours()[0], y=colours()[1])
    with pytest.raises(DataError, match=r"no array 'labels' \(found: images, y\)"):
        load_dataset(tmp_path / "b.npz", "train")
    np.savez(tmp_path / "c.npz", **{f"{k}.png": 0 for k in range(9)})
    text = r"no array 'images' and no array 'labels' \(found: 0.png, .* and 4 more\); wanted: an"
    with pytest.raises(DataError, match=text):
        load_dataset(tmp_path / "c.npz", "train")


def test_damaged_file_is_refused_by_name(tmp_path):
    path = save_set(tmp_path / "a.npz")
    whole = path.read_bytes()
    damaged = [b"PK\x03\x04", whole[:-1], whole[:99]]
    for place in (200, 1000, 3000):  # in the pixels, found by the checksum
        damaged.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(
            DataError, match=r"a\.npz: the file is damaged: delete it .*; wanted: an"
        ):
            load_dataset(path, "train")


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("l.csv", b"a.png,0\n", r"is no \.npz \(it begins with b'a\.png,0"),
        ("x.npz", b"<!DOCTYPE html>", r"is no \.npz \(it begins with b'<!DOCTYPE"),
        ("x.npz", b"", r"is no \.npz \(it is empty\)"),
        ("x.txt", b"PK", r"is no \.npz"),
        (
            "x.npy",
            None,
            r"is one array; np\.savez\('x\.npz', images=…, labels=…\) makes a file of both",
        ),
        ("x.npy", b"torn", "is one array"),
    ],
)
def test_file_of_another_kind_is_not_called_damaged(tmp_path, name, content, text):
    if content is None:
        np.save(tmp_path / name, np.zeros(3))
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{text}.*; wanted: an .npz with images") as caught:
        load_dataset(tmp_path / name, "train")
    assert "pickle" not in str(caught.value)
    assert "damaged" not in str(caught.value)


def test_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    path = save_set(tmp_path / "a.npz")
    monkeypatch.setattr(npz.np, "load", refuse)
    with pytest.raises(DataError, match=r"a\.npz: cannot be read \(Permission denied\)"):
        load_dataset(path, "train")


def test_pickles_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    bomb = np.empty(20, object)
    bomb[:] = Bomb()
    for arrays in ({"labels": bomb}, {"images": bomb}, {"class_names": bomb}):
        with pytest.raises(DataError, match="object arrays") as caught:
            load_dataset(save_set(tmp_path / "a.npz", **arrays), "train")
        assert "allow_pickle" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


def test_splits_that_disagree_are_refused(tmp_path):
    save_set(tmp_path / "train.npz", class_names=np.array(["a", "b", "c", "d"]))
    save_set(tmp_path / "test.npz", class_names=np.array(["a", "b", "d", "c"]))
    with pytest.raises(DataError, match=r"train\.npz and .*test\.npz disagree: class 2 is 'c'"):
        load_dataset(tmp_path, "train")
    save_set(tmp_path / "test.npz", class_names=np.array(["a", "b", "c", "d", "e"]))
    with pytest.raises(DataError, match="class 4 is 'e' and None"):
        load_dataset(tmp_path, "test")
    save_set(tmp_path / "test.npz", labels=np.arange(20))
    for split in ("train", "test"):
        with pytest.raises(DataError, match=r"test\.npz: label 4 at index 4 is not in 0\.\.3"):
            load_dataset(tmp_path, split)


def test_missing_split_is_named(tmp_path):
    save_set(tmp_path / "train.npz")
    assert len(load_dataset(tmp_path, "train")) == 20
    with pytest.raises(DataError, match=r"test\.npz: no such file; wanted: an \.npz with images"):
        load_dataset(tmp_path, "test")


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_set(tmp_path / "a.npz")
    before = path.read_bytes()
    monkeypatch.setattr(npz.np, "savez", lambda file, **_: file.write(b"half") / 0)
    with pytest.raises(ZeroDivisionError):
        npz.write_npz(path, *colours(), ["a"])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_write_syncs_the_file_before_it_takes_the_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, real=real: (calls.append(n), real(*a)))
    npz.write_npz(tmp_path / "a.npz", *colours(), list("abcd"))
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_what_is_written_is_what_is_read(tmp_path):
    images, labels = colours()
    npz.write_npz(tmp_path / "one.npz", images, labels, list("abcd"))
    with np.load(tmp_path / "one.npz", allow_pickle=False) as archive:
        assert set(archive.files) == {"images", "labels", "class_names"}
        assert np.array_equal(archive["images"], images)
        assert np.array_equal(archive["labels"], labels)
        assert archive["class_names"].tolist() == list("abcd")


# --- other forms of labels and images ------------------------------------------------------------

NUMBERS = np.arange(20) % 4


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (np.array(["cow", "ant", "dog", "bee"])[NUMBERS], ("ant", "bee", "cow", "dog")),
        (np.array([b"a", b"b", b"c", b"d"])[NUMBERS], ("a", "b", "c", "d")),
        (np.eye(4)[NUMBERS], ("0", "1", "2", "3")),
        (np.eye(4, dtype=bool)[NUMBERS], ("0", "1", "2", "3")),
        (NUMBERS.astype(np.uint8), ("0", "1", "2", "3")),
    ],
)
def test_labels_in_other_forms_name_the_same_classes(tmp_path, labels, names):
    path = save_set(tmp_path / "mine.npz", labels=labels)
    data = load_dataset(path, "train")
    assert data.class_names == names
    spelled = [names[k] for k in data.labels.tolist()]
    plain = load_dataset(save_set(tmp_path / "plain.npz", labels=NUMBERS), "train")
    order = ["cow", "ant", "dog", "bee"] if names[0] == "ant" else names
    assert spelled == [order[k] for k in plain.labels.tolist()]


@pytest.mark.parametrize("named", [False, True])
def test_labels_from_1_become_labels_from_0_with_a_warning(tmp_path, named):
    about = {"class_names": np.array(list("abcd"))} if named else {}
    path = save_set(tmp_path / "mine.npz", labels=NUMBERS + 1, **about)
    with pytest.warns(UserWarning, match=r"mine\.npz: labels start at 1; 1 becomes class 0"):
        data = load_dataset(path, "train")
    assert data.class_names == (tuple("abcd") if named else ("1", "2", "3", "4"))
    assert sorted(set(data.labels.tolist())) == [0, 1, 2, 3]


def test_a_first_class_without_samples_is_no_label_from_1(tmp_path):
    about = {"class_names": np.array(list("abcde"))}
    data = load_dataset(save_set(tmp_path / "mine.npz", labels=NUMBERS + 1, **about), "train")
    assert sorted(set(data.labels.tolist())) == [1, 2, 3, 4]


def test_both_splits_say_together_what_a_label_means(tmp_path):
    words = np.array(["ant", "bee", "cow", "dog"])
    save_set(tmp_path / "train.npz", labels=words[NUMBERS])
    save_set(tmp_path / "test.npz", labels=words[np.full(20, 3)])
    data = load_dataset(tmp_path, "test")
    assert data.class_names == tuple(words)
    assert set(data.labels.tolist()) == {3}
    save_set(tmp_path / "train.npz", labels=NUMBERS + 1)
    save_set(tmp_path / "test.npz", labels=np.full(20, 3))
    with pytest.warns(UserWarning, match="labels start at 1"):
        assert set(load_dataset(tmp_path, "test").labels.tolist()) == {2}
    save_set(tmp_path / "test.npz", labels=np.zeros(20, int))
    assert load_dataset(tmp_path, "train").num_classes == 5  # the test set has a 0


def test_alpha_is_dropped_and_16_bits_become_8(tmp_path):
    rgba = np.zeros((20, 8, 8, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 7, 255
    opaque = load_dataset(save_set(tmp_path / "a.npz", images=rgba), "train")
    assert opaque.images.shape[1:] == (3, 8, 8)
    assert set(opaque.images[:, 0].flatten().tolist()) == {7}
    rgba[0, 0, 0, 3] = 9
    with pytest.warns(UserWarning, match="alpha is dropped"):
        load_dataset(save_set(tmp_path / "b.npz", images=rgba), "train")
    deep = np.full((20, 8, 8), 65535, np.uint16)
    deep[:, 0], deep[:, 1] = 257 * 3, 257 * 3 + 256
    with pytest.warns(UserWarning, match="images of 16 bits become 8: divided by 257"):
        shallow = load_dataset(save_set(tmp_path / "c.npz", images=deep), "train").images
    assert set(shallow.flatten().tolist()) == {3, 255}


GREY = np.arange(20 * 6 * 5, dtype=np.uint8).reshape(20, 6, 5)
COLOURS = np.stack([GREY, GREY // 2, 255 - GREY], axis=3)


@pytest.mark.parametrize(
    ("images", "plain", "text"),
    [
        (GREY / 255, GREY, r"float64 in 0\.\.1 become uint8: \(255 \* images\)\.round"),
        ((GREY / 255).astype(np.float32), GREY, r"float32 in 0\.\.1 become uint8"),
        ((GREY - 0.4).clip(0) / 255, GREY, r"float64 in 0\.\.1 become uint8"),  # rounded
        (GREY.astype(np.int64), GREY, r"int64 in 0\.\.255 become uint8"),
        (GREY[:, None], GREY, r"\(20, 1, 6, 5\) become \(N, H, W, C\): channels were first"),
        (COLOURS.transpose(0, 3, 1, 2), COLOURS, r"\(20, 3, 6, 5\) become"),
        (COLOURS.transpose(0, 3, 1, 2) / 255, COLOURS, r"\(20, 3, 6, 5\) become"),
    ],
)
def test_images_in_other_forms_are_the_same_with_a_warning(tmp_path, images, plain, text):
    wanted = ImageDataset.from_arrays(plain, NUMBERS).fingerprint
    with pytest.warns(UserWarning, match=f"images {text}"):
        assert ImageDataset.from_arrays(images, NUMBERS).fingerprint == wanted
    for split in ("train", "test"):
        save_set(tmp_path / f"{split}.npz", images=images, labels=NUMBERS)
    with pytest.warns(UserWarning, match=rf"test\.npz: images {text}"):
        assert load_dataset(tmp_path, "test").fingerprint == wanted


def test_channels_are_never_guessed():
    images = np.arange(20 * 3 * 8 * 3, dtype=np.uint8).reshape(20, 3, 8, 3)
    kept = ImageDataset.from_arrays(images, NUMBERS).images
    assert np.array_equal(kept.permute(0, 2, 3, 1).numpy(), images)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (NUMBERS.astype(np.float32), "in whole float32 become integers"),
        (NUMBERS[:, None], r"\(20, 1\) become \(20,\)"),
        (NUMBERS[:, None] / 1, "in whole float64 become integers"),
        (np.eye(4)[NUMBERS], "in one-hot rows become their numbers"),
    ],
)
def test_labels_in_other_forms_are_the_same_with_a_warning(tmp_path, labels, text):
    wanted = ImageDataset.from_arrays(GREY, NUMBERS).fingerprint
    with pytest.warns(UserWarning, match=f"labels {text}"):
        assert ImageDataset.from_arrays(GREY, labels).fingerprint == wanted
    save_set(tmp_path / "train.npz", images=GREY, labels=labels)
    save_set(tmp_path / "test.npz", images=GREY, labels=NUMBERS)
    with pytest.warns(UserWarning, match=rf"train\.npz: labels {text}"):
        assert load_dataset(tmp_path, "train").fingerprint == wanted
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the other file's labels are no change of this one's
        load_dataset(tmp_path, "test")


def test_arrays_take_texts_as_labels_and_leave_integers_from_1():
    words = np.array(["bee", "ant", "cow", "dog"])[NUMBERS]
    data = ImageDataset.from_arrays(GREY, words)
    assert data.class_names == ("ant", "bee", "cow", "dog")
    assert data.labels[:4].tolist() == [1, 0, 2, 3]
    assert (
        ImageDataset.from_arrays(GREY, words, class_names=list("x") + list(words[:4])).labels[0]
        == 1
    )
    assert ImageDataset.from_arrays(GREY, NUMBERS + 1).num_classes == 5
