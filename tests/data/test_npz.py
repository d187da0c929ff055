"""The ``.npz`` form: what is read, what is refused by name, and that a file is written whole."""

import os

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
        ({"labels": np.arange(20) / 1.0}, "labels are float64; save them as integers"),
        ({"labels": np.array([b"a", None] * 10, object)}, "object arrays are not read"),
        ({"labels": 2 * np.eye(20)}, r"labels have shape \(20, 20\); allowed: \(N,\)"),
        (
            {"labels": np.array(["cat"] * 20), "class_names": np.array(["dog"])},
            r"label 'cat' is not among class_names \['dog'\]",
        ),
        ({"images": np.ones((20, 8, 8), np.float32)}, "float32 from 1 to 1; save them as uint8"),
        ({"images": np.full((20, 2, 2), np.nan)}, "float64 from nan to nan; save them as uint8"),
        ({"images": np.zeros((20, 8, 8), np.int64)}, "images are int64; save them as uint8"),
        ({"images": np.zeros((20, 64), np.uint8)}, r"shape \(20, 64\); allowed"),
        ({"images": np.zeros((20, 3, 8, 8), np.uint8)}, r"shape \(20, 3, 8, 8\); allowed"),
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


def test_damaged_file_is_refused_by_name(tmp_path):
    path = save_set(tmp_path / "a.npz")
    whole = path.read_bytes()
    damaged = [b"", b"<!DOCTYPE html><html>404</html>", b"PK\x03\x04", whole[:-1], whole[:99]]
    for place in (200, 1000, 3000):  # in the pixels, found by the checksum
        damaged.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npz: the file is damaged .* or no \.npz"):
            load_dataset(path, "train")
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"b\.npy: .* or no \.npz; wanted: an \.npz with images"):
        load_dataset(tmp_path / "b.npy", "train")


def test_pickles_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    bomb = np.empty(20, object)
    bomb[:] = Bomb()
    for arrays in ({"labels": bomb}, {"images": bomb}, {"class_names": bomb}):
        with pytest.raises(DataError, match="object arrays"):
            load_dataset(save_set(tmp_path / "a.npz", **arrays), "train")
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
    deep[:, 0] = 257 * 3
    shallow = load_dataset(save_set(tmp_path / "c.npz", images=deep), "train").images
    assert set(shallow.flatten().tolist()) == {3, 255}
