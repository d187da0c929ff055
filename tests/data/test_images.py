import os
import pickle
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hardtrain import DataError, ImageDataset, ParameterError, load_dataset
from hardtrain.data import downloads, npz
from hardtrain.data.batches import Batches, Transform
from hardtrain.data.images import DATASETS, resolve_device
from hardtrain.data.samplers import UniformBatchSampler


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def colours(num=20, side=8, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num, side, side, 3), dtype=np.uint8)
    return images, np.arange(num) % classes


def small_set(**kwargs):
    return ImageDataset.from_arrays(*colours(**kwargs))


def save(path, images=None, labels=None, **more):
    default = colours()
    arrays = {
        "images": default[0] if images is None else images,
        "labels": default[1] if labels is None else labels,
    }
    np.savez(path, **arrays, **more)
    return path


# ---- the set


def test_dataset_holds_the_pixels_channels_first():
    images, labels = colours(num=6)
    dataset = ImageDataset.from_arrays(images, labels)
    assert dataset.images.dtype == torch.uint8
    assert dataset.labels.dtype == torch.int64
    for i in range(6):
        for c in range(3):
            assert (dataset.images[i, c].numpy() == images[i, :, :, c]).all()
    assert dataset.labels.tolist() == labels.tolist()
    assert (len(dataset), dataset.num_classes, dataset.in_channels, dataset.image_size) == (
        6,
        4,
        3,
        8,
    )


def test_dataset_does_not_share_memory_with_the_callers_arrays():
    images = np.zeros((4, 5, 5), np.uint8)
    labels = np.arange(4)
    dataset = ImageDataset.from_arrays(images, labels)
    images[:], labels[:] = 9, 0
    assert dataset.images.max() == 0
    assert dataset.labels.tolist() == [0, 1, 2, 3]


def test_dataset_refuses_to_name_one_size_for_oblong_images():
    dataset = ImageDataset.from_arrays(np.zeros((2, 4, 6), np.uint8), np.arange(2))
    with pytest.raises(DataError, match="4x6, not square"):
        _ = dataset.image_size


def test_dataset_refuses_tensors_of_another_form():
    good = small_set()
    fields = {"name": "x", "split": "train", "class_names": ("a",), "fingerprint": ""}
    with pytest.raises(DataError, match=r"float32.*uint8 \(N, C, H, W\)"):
        ImageDataset(images=good.images.float(), labels=good.labels, **fields)
    with pytest.raises(DataError, match="one for each image"):
        ImageDataset(images=good.images, labels=good.labels[:5], **fields)


def test_fingerprint_follows_content_and_nothing_else():
    images, labels = colours()
    same = ImageDataset.from_arrays(images, labels.astype(">i2"), name="x", split="test")
    base = ImageDataset.from_arrays(images, labels)
    assert same.fingerprint == base.fingerprint
    pixel, label = images.copy(), labels.copy()
    pixel[3, 2, 1, 0] ^= 1
    label[0] = 1
    others = [
        ImageDataset.from_arrays(pixel, labels),
        ImageDataset.from_arrays(images, label),
        ImageDataset.from_arrays(images, labels, class_names="abcd"),
        ImageDataset.from_arrays(images.reshape(20, 4, 16, 3), labels),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_fingerprint_of_digits_is_the_recorded_one():
    # a change here makes recorded runs those of other data
    assert load_dataset("digits", "train").fingerprint.startswith("1ee8c3ff021a")


def test_subset_is_stratified_fixed_and_keeps_the_fingerprint():
    labels = np.repeat(np.arange(4), [50, 30, 15, 5])
    images = np.arange(100, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    order = np.random.default_rng(1).permutation(100)
    dataset = ImageDataset.from_arrays(images[order], labels[order])
    small = dataset.subset(20)
    assert small.labels.bincount().tolist() == [10, 6, 3, 1]
    assert small.fingerprint == dataset.fingerprint
    assert small.class_names == dataset.class_names
    assert torch.equal(small.images, dataset.subset(20).images)
    ids = small.images[:, 0, 0, 0].tolist()
    assert len(set(ids)) == 20
    assert [labels[i] for i in ids] == small.labels.tolist()
    position = {value: i for i, value in enumerate(order.tolist())}
    assert [position[i] for i in ids] == sorted(position[i] for i in ids)
    for size in range(1, 101):
        counts = dataset.subset(size).labels.bincount(minlength=4)
        assert counts.sum() == size
        assert size < 4 or counts.min() >= 1
        assert (counts - torch.tensor([50, 30, 15, 5]) * size / 100).abs().max() < 1.5


def test_subset_takes_one_of_each_class_when_it_can():
    labels = np.repeat(np.arange(5), [96, 1, 1, 1, 1])
    dataset = ImageDataset.from_arrays(np.zeros((100, 2, 2), np.uint8), labels)
    assert dataset.subset(5).labels.tolist() == [0, 1, 2, 3, 4]
    assert dataset.subset(10).labels.bincount().tolist() == [6, 1, 1, 1, 1]
    assert dataset.subset(3).labels.tolist() == [0, 0, 0]


def test_subset_is_spread_over_a_file_sorted_by_time():
    dataset = ImageDataset.from_arrays(
        np.arange(200, dtype=np.uint8)[:, None, None], np.zeros(200, int)
    )
    taken = dataset.subset(20).images.flatten()
    assert torch.histc(taken.float(), 4, 0, 200).tolist() == pytest.approx([5] * 4, abs=1)
    assert len(set((taken % 10).tolist())) > 4  # in step with no period


def test_subset_of_size_zero_is_the_whole_set():
    dataset = small_set()
    assert torch.equal(dataset.subset(0).images, dataset.images)
    assert torch.equal(dataset.subset(20).labels, dataset.labels)


@pytest.mark.parametrize("size", [-1, 21, True, 2.0, "3", None])
def test_subset_rejects_a_size_that_is_no_count(size):
    with pytest.raises(ParameterError, match=r"size = .* is not an integer in 0\.\.20"):
        small_set().subset(size)


def test_torch_dataset_gives_image_label_index_to_a_dataloader():
    dataset = small_set()
    items = dataset.as_torch_dataset()
    assert isinstance(items, torch.utils.data.Dataset)
    image, label, index = items[-1]
    assert torch.equal(image, dataset.images[19].float() / 255)
    assert (label, index) == (3, 19)
    assert type(label) is int
    with pytest.raises(IndexError):
        items[20]
    images, labels, indices = next(iter(DataLoader(items, 5, sampler=[4, 3, 19, 0, 7])))
    assert indices.tolist() == [4, 3, 19, 0, 7]
    assert torch.equal(labels, dataset.labels[indices])
    assert torch.equal(images, dataset.images[indices].float() / 255)
    assert len(pickle.loads(pickle.dumps(items))) == 20


# ---- names and files


def test_digits_are_embedded_and_split_per_class():
    train, test = load_dataset("digits", "train"), load_dataset("digits", "test")
    assert (len(train), len(test)) == (1438, 359)
    assert train.images.shape[1:] == (1, 8, 8)
    assert (int(train.images.min()), int(train.images.max())) == (0, 255)
    both = train.labels.bincount() + test.labels.bincount()
    assert ((test.labels.bincount() - both / 5).abs() <= 0.5).all()
    assert len(torch.cat([train.images, test.images]).flatten(1).unique(dim=0)) == 1797
    assert set(train.images.unique().tolist()) == {int(p * 255 / 16 + 0.5) for p in range(17)}


def test_single_file_is_split_by_content_alone(tmp_path):
    images, labels = colours(num=50)
    train = load_dataset(save(tmp_path / "a.npz", images, labels), "train")
    test = load_dataset(str(save(tmp_path / "b.npz", images, labels)), "test")
    assert train.labels.bincount().tolist() == [10, 10, 10, 10]
    assert test.labels.bincount().tolist() == [3, 3, 2, 2]
    assert train.name == "a"
    rows = torch.cat([train.images, test.images]).flatten(1)
    assert len(rows.unique(dim=0)) == 50
    assert torch.equal(load_dataset(tmp_path / "b.npz", "train").images, train.images)


def test_prefix_and_folder_are_found(tmp_path):
    images, labels = colours()
    folder = tmp_path / "ä b {x}"
    folder.mkdir()
    for stem in ("mine_", ""):
        save(folder / f"{stem}train.npz", images, labels)
        save(folder / f"{stem}test.npz", images[:3], labels[:3])
    for path in (folder, folder / "mine", str(folder / "mine")):
        assert len(load_dataset(path, "train")) == 20
        test = load_dataset(path, "test")
        assert len(test) == 3
        assert test.num_classes == 4  # from the training labels: the test part has only three
    with pytest.raises(DataError, match=r"one split of two.*mine'"):
        load_dataset(folder / "mine_train.npz", "train")


def test_known_names_win_over_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("digits_train.npz")
    assert load_dataset("digits", "train").image_size == 8
    assert len(load_dataset("digits", "train")) == 1438


def test_named_set_is_read_from_root_then_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_torchvision_datasets", pytest.fail)
    images, labels = colours()
    for folder, num in (("given", 5), ("env", 6)):
        (tmp_path / folder).mkdir()
        for split in ("train", "test"):
            save(tmp_path / folder / f"cifar10_{split}.npz", images[:num], labels[:num])
    monkeypatch.setenv("HARDTRAIN_DATA", str(tmp_path / "env"))
    assert len(load_dataset("cifar10", "train", root=tmp_path / "given")) == 5
    assert len(load_dataset("cifar10", "test")) == 6
    monkeypatch.setenv("HARDTRAIN_DATA", "")
    assert "hardtrain" in str(downloads.data_root())


def test_class_names_of_one_file_serve_both(tmp_path):
    save(tmp_path / "train.npz", class_names=np.array(["cat", "dog", "eel", "fox", "gnu"]))
    save(tmp_path / "test.npz")
    assert load_dataset(tmp_path, "test").class_names == ("cat", "dog", "eel", "fox", "gnu")
    assert load_dataset(tmp_path, "train").num_classes == 5


def test_labels_of_every_integer_type_are_read(tmp_path):
    for dtype in ("uint8", "int8", "uint16", ">i4", "uint64"):
        save(tmp_path / "a.npz", labels=colours()[1].astype(dtype))
        assert load_dataset(tmp_path / "a.npz", "train").labels.dtype == torch.int64


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ParameterError, match="did you mean 'cifar10'"):
        load_dataset("cifar-10", "train")
    with pytest.raises(ParameterError, match="did you mean 'fashion-mnist'"):
        load_dataset("Fashion-MNIST", "train")
    with pytest.raises(ParameterError, match=r"nor is there a file or folder no/where.npz"):
        load_dataset("no/where.npz", "train")
    with pytest.raises(ParameterError, match="data set 3"):
        load_dataset(3, "train")
    with pytest.raises(ParameterError, match="did you mean 'train'"):
        load_dataset("digits", "training")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:3", 0, None, "meta"])
def test_device_not_here_is_refused_with_those_that_are(device):
    with pytest.raises(ParameterError, match=r"not available; available: auto, cpu"):
        resolve_device(device)
    with pytest.raises(ParameterError, match="not available"):
        load_dataset("digits", "train", device=device)


def test_device_cuda_is_never_silently_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ParameterError, match="'cuda' is not available; available: auto, cpu"):
        resolve_device("cuda")
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert resolve_device("auto") == torch.device("cuda", 1)
    assert resolve_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(ParameterError, match="cpu, cuda:0, cuda:1"):
        resolve_device("cuda:9")


# ---- what is refused


RAGGED = np.array([np.zeros((2, 2)), np.zeros((3, 3))], dtype=object)


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
        ({"labels": np.arange(20) > 3}, "labels are bool"),
        ({"labels": np.eye(20, dtype=int)}, r"labels have shape \(20, 20\); allowed: \(N,\)"),
        ({"labels": np.array(["cat"] * 20)}, "labels are <U3"),
        ({"images": np.ones((20, 8, 8), np.float32)}, "float32 from 1 to 1; save them as uint8"),
        (
            {"images": np.array([0.5, np.nan] * 40, np.float32).reshape(20, 2, 2)},
            "from 0.5 to 0.5, 40 of them NaN; save them as uint8",
        ),
        ({"images": np.full((20, 2, 2), np.nan)}, "80 of them NaN"),
        ({"images": np.zeros((20, 8, 8), np.int64)}, "images are int64; save them as uint8"),
        ({"images": np.zeros((20, 64), np.uint8)}, r"shape \(20, 64\); allowed"),
        ({"images": np.zeros((20, 3, 8, 8), np.uint8)}, r"shape \(20, 3, 8, 8\); allowed"),
        ({"images": RAGGED, "labels": np.arange(2)}, "ragged or object arrays are not read"),
        ({"class_names": np.array([["a"]])}, r"class_names are <U1 \(1, 1\)"),
        ({"class_names": np.arange(4)}, "class_names are int64"),
    ],
)
def test_file_with_wrong_arrays_is_refused_by_name(tmp_path, arrays, message):
    path = save(tmp_path / "mine.npz", **arrays)
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


def test_missing_array_is_named_with_its_nearest(tmp_path):
    np.savez(tmp_path / "a.npz", image=colours()[0], labels=colours()[1])
    with pytest.raises(DataError, match=r"no array 'images'; did you mean 'image'\?.*image, lab"):
        load_dataset(tmp_path / "a.npz", "train")
    np.savez(tmp_path / "b.npz", images=colours()[0], y=colours()[1])
    with pytest.raises(DataError, match=r"no array 'labels' \(found: images, y\)"):
        load_dataset(tmp_path / "b.npz", "train")


def test_damaged_file_is_refused_by_name(tmp_path):
    path = save(tmp_path / "a.npz")
    whole = path.read_bytes()
    damaged = [b"", b"<!DOCTYPE html><html>404</html>", b"PK\x03\x04", whole[:-1], whole[:99]]
    for place in (200, 1000, 3000):  # in the pixels, found by the checksum
        damaged.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npz: the file is damaged or no \.npz"):
            load_dataset(path, "train")
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(DataError, match="one bare array"):
        load_dataset(tmp_path / "b.npy", "train")


def test_pickles_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    bomb = np.empty(20, object)
    bomb[:] = Bomb()
    for arrays in ({"labels": bomb}, {"images": bomb}, {"class_names": bomb}):
        with pytest.raises(DataError, match="object arrays"):
            load_dataset(save(tmp_path / "a.npz", **arrays), "train")
    assert not (tmp_path / "exploded").exists()


def test_splits_that_disagree_are_refused(tmp_path):
    save(tmp_path / "train.npz", class_names=np.array(["a", "b", "c", "d"]))
    save(tmp_path / "test.npz", class_names=np.array(["a", "b", "d", "c"]))
    with pytest.raises(DataError, match=r"train\.npz and .*test\.npz disagree: class 2 is 'c'"):
        load_dataset(tmp_path, "train")
    save(tmp_path / "test.npz", class_names=np.array(["a", "b", "c", "d", "e"]))
    with pytest.raises(DataError, match="class 4 is 'e' and None"):
        load_dataset(tmp_path, "test")
    save(tmp_path / "test.npz", labels=np.arange(20))
    for split in ("train", "test"):
        with pytest.raises(DataError, match=r"test\.npz: label 4 at index 4 is not in 0\.\.3"):
            load_dataset(tmp_path, split)


def test_missing_split_is_named(tmp_path):
    save(tmp_path / "train.npz")
    assert len(load_dataset(tmp_path, "train")) == 20
    with pytest.raises(DataError, match=r"test\.npz: no such file; wanted: an \.npz with images"):
        load_dataset(tmp_path, "test")


# ---- downloads, with stand-ins for the classes of torchvision.datasets


class Standin:
    """Looks like MNIST or CIFAR10 after its download; counts how often it was asked."""

    calls = 0
    classes = ("zero", "one")

    def __init__(self, root, train=True, download=False):
        type(self).calls += 1
        assert download
        root.mkdir(parents=True, exist_ok=True)
        (root / "raw.gz").write_bytes(b"raw")
        num = 6 if train else 4
        self.data = torch.arange(num * 4, dtype=torch.uint8).view(num, 2, 2)
        self.targets = torch.arange(num) % 2


def offer(monkeypatch, **classes):
    monkeypatch.setattr(downloads, "_torchvision_datasets", lambda: SimpleNamespace(**classes))


def test_download_is_written_once_in_our_form(tmp_path, monkeypatch):
    class MNIST(Standin):
        pass

    offer(monkeypatch, MNIST=MNIST)
    train = load_dataset("mnist", "train", root=tmp_path / "new")
    assert train.images.flatten().tolist() == list(range(24))
    assert train.labels.tolist() == [0, 1] * 3
    assert train.class_names == ("zero", "one")
    assert len(load_dataset("mnist", "test", root=tmp_path / "new")) == 4
    assert MNIST.calls == 2  # one per split, none on the second load
    kept = {path.name for path in (tmp_path / "new").iterdir()} - {".mnist.lock"}
    assert kept == {"mnist_train.npz", "mnist_test.npz"}


def test_download_of_one_missing_split_leaves_the_other_alone(tmp_path, monkeypatch):
    offer(monkeypatch, MNIST=type("MNIST", (Standin,), {}))
    save(tmp_path / "mnist_train.npz", class_names=np.array(["zero", "one", "two", "three"]))
    before = (tmp_path / "mnist_train.npz").read_bytes()
    with pytest.raises(DataError, match="disagree"):
        load_dataset("mnist", "test", root=tmp_path)
    assert (tmp_path / "mnist_train.npz").read_bytes() == before
    assert (tmp_path / "mnist_test.npz").exists()


def test_converters_read_what_each_class_offers(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 3), dtype=np.uint8)

    class CIFAR100:
        def __init__(self, root, train, download):
            self.data, self.targets, self.classes = pixels, [0, 1, 1, 0], ["apple", "bear"]

    class QMNIST:
        def __init__(self, root, train, download):
            self.data = torch.from_numpy(pixels[..., 0])
            self.targets = torch.tensor([[3, 99], [1, 98], [0, 97], [2, 96]])
            self.classes = list("0123")

    class SVHN:
        def __init__(self, root, split, download):
            assert split in ("train", "test")
            self.data, self.labels = pixels.transpose(0, 3, 1, 2), np.array([9, 0, 1, 2])

    class STL10(SVHN):
        classes = ("bird", "cat", "dog")

        def __init__(self, root, split, download):
            super().__init__(root, split, download)
            self.labels = np.array([2, 1, 0, 0], np.uint8)

    offer(monkeypatch, CIFAR100=CIFAR100, QMNIST=QMNIST, SVHN=SVHN, STL10=STL10)
    loaded = {n: load_dataset(n, "test", root=tmp_path) for n in ("cifar100", "qmnist", "svhn")}
    loaded["stl10"] = load_dataset("stl10", "train", root=tmp_path)
    for name, dataset in loaded.items():
        wanted = pixels[..., :1] if name == "qmnist" else pixels
        assert (dataset.images.numpy() == wanted.transpose(0, 3, 1, 2)).all()
    assert [d.labels.tolist() for d in loaded.values()] == [
        [0, 1, 1, 0],
        [3, 1, 0, 2],
        [9, 0, 1, 2],
        [2, 1, 0, 0],
    ]
    assert loaded["cifar100"].class_names == ("apple", "bear")
    assert loaded["svhn"].class_names == tuple("0123456789")
    assert loaded["stl10"].class_names == ("bird", "cat", "dog")


def test_caltech_keeps_the_background_and_squares_the_images(tmp_path, monkeypatch):
    class Caltech101:
        def __init__(self, root, download):
            self.root = root / "caltech101"
            sizes = {"BACKGROUND_Google": (300, 200), "ant": (150, 250), "yin_yang": (40, 40)}
            for folder, size in sizes.items():
                path = self.root / "101_ObjectCategories" / folder
                path.mkdir(parents=True, exist_ok=True)
                (path / "tmp").write_text("not an image")
                for i in range(5):
                    mode, colour = ("L", 40 * i) if i else ("RGB", (255, 0, 0))
                    Image.new(mode, size, colour).save(path / f"image_{i:04d}.jpg")

    offer(monkeypatch, Caltech101=Caltech101)
    train = load_dataset("caltech101", "train", root=tmp_path)
    test = load_dataset("caltech101", "test", root=tmp_path)
    assert train.class_names == ("BACKGROUND_Google", "ant", "yin_yang")
    assert train.labels.bincount().tolist() == [4, 4, 4]  # ceil(0.75 * 5)
    assert test.labels.bincount().tolist() == [1, 1, 1]
    assert train.images.shape[1:] == (3, 128, 128)
    reds = torch.cat([train.images, test.images]).float().mean((2, 3))
    assert ((reds[:, 0] - 255).abs() < 3).logical_and(reds[:, 1] < 3).sum() == 3


def test_caltech_image_is_cut_from_its_middle(tmp_path):
    image = Image.new("RGB", (288, 144))
    image.paste((255, 255, 255), (144, 0, 288, 144))
    image.save(tmp_path / "a.png")
    square = downloads._square(tmp_path / "a.png")
    assert square.shape == (128, 128, 3)
    assert (square[:, :64] == 0).all()
    assert (square[:, 64:] == 255).all()


def test_offline_says_what_is_missing_and_what_to_do(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    before = socket.getdefaulttimeout()
    begin = time.monotonic()
    with pytest.raises(DataError) as caught:
        load_dataset("cifar10", "train", root=tmp_path)
    assert time.monotonic() - begin < 30
    for part in (
        "cifar10_train.npz, cifar10_test.npz",
        str(tmp_path),
        "no network here",
        "HARDTRAIN_DATA",
        "root=",
        "images uint8 (N, H, W)",
    ):
        assert part in str(caught.value)
    assert socket.getdefaulttimeout() == before
    assert not list(tmp_path.glob("cifar10*"))
    assert not (tmp_path / ".cifar10.download").exists()


def test_silent_connection_is_given_up(tmp_path, monkeypatch):
    class MNIST:
        def __init__(self, root, train, download):
            assert socket.getdefaulttimeout() == 0.05  # else the next lines wait for ever
            with socket.create_server(("127.0.0.1", 0)) as server:
                socket.create_connection(server.getsockname()).recv(1)  # nobody answers

    offer(monkeypatch, MNIST=MNIST)
    monkeypatch.setattr(downloads, "TIMEOUT", 0.05)
    with pytest.raises(DataError, match=r"timed out"):
        load_dataset("mnist", "train", root=tmp_path)


def test_data_at_hand_needs_no_torchvision(tmp_path, monkeypatch):
    def broken():
        raise ImportError("torchvision is broken")

    monkeypatch.setattr(downloads, "_torchvision_datasets", broken)
    save(tmp_path / "mnist_train.npz")
    assert len(load_dataset("mnist", "train", root=tmp_path)) == 20
    with pytest.raises(DataError, match=r"mnist_test\.npz not found .*torchvision is broken"):
        load_dataset("mnist", "test", root=tmp_path)


def test_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    offer(monkeypatch, MNIST=Standin)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"mnist_train\.npz.*not found in .*file/data"):
        load_dataset("mnist", "train", root=tmp_path / "file" / "data")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_failed_write_leaves_nothing_under_the_final_name(tmp_path, monkeypatch, function):
    def full(*args):
        raise OSError(28, "No space left on device")

    offer(monkeypatch, MNIST=type("MNIST", (Standin,), {}))
    with monkeypatch.context() as patch:
        patch.setattr(downloads.os, function, full)
        with pytest.raises(DataError, match="No space left"):
            load_dataset("mnist", "train", root=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {".mnist.lock"}
    assert len(load_dataset("mnist", "train", root=tmp_path)) == 6


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save(tmp_path / "a.npz")
    before = path.read_bytes()
    monkeypatch.setattr(downloads.np, "savez", lambda file, **_: file.write(b"half") / 0)
    with pytest.raises(ZeroDivisionError):
        npz.write_npz(path, *colours(), ["a"])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_write_syncs_the_file_before_it_takes_the_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            downloads.os, name, lambda *a, n=name, real=real: (calls.append(n), real(*a))
        )
    npz.write_npz(tmp_path / "a.npz", *colours(), list("abcd"))
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_left_overs_of_a_killed_download_are_not_trusted(tmp_path, monkeypatch):
    class MNIST(Standin):
        def __init__(self, root, train, download):
            assert not train or not root.exists()
            super().__init__(root, train, download)

    offer(monkeypatch, MNIST=MNIST)
    (tmp_path / ".mnist.download" / "MNIST").mkdir(parents=True)
    (tmp_path / ".mnist.download" / "MNIST" / "half").write_bytes(b"half")
    (tmp_path / ".mnist_train.npz.99999.partial").write_bytes(b"half")
    (tmp_path / ".mnist.lock").touch()  # no process holds it
    assert len(load_dataset("mnist", "train", root=tmp_path)) == 6
    assert {path.name for path in tmp_path.iterdir()} - {".mnist.lock"} == {
        "mnist_train.npz",
        "mnist_test.npz",
    }


def test_download_of_bad_content_is_not_written(tmp_path, monkeypatch):
    class MNIST(Standin):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.targets[2] = 255

    offer(monkeypatch, MNIST=MNIST)
    with pytest.raises(DataError, match=r"label 255 at index 2 is not in 0\.\.1"):
        load_dataset("mnist", "train", root=tmp_path)
    assert not list(tmp_path.glob("mnist*"))


def test_two_at_once_download_once(tmp_path, monkeypatch):
    class MNIST(Standin):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            time.sleep(0.1)

    offer(monkeypatch, MNIST=MNIST)
    sizes = []
    threads = [
        threading.Thread(
            target=lambda: sizes.append(len(load_dataset("mnist", "train", root=tmp_path)))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [6, 6, 6]
    assert MNIST.calls == 2  # one per split


def test_every_source_exists_in_torchvision():
    datasets = downloads._torchvision_datasets()
    assert all(hasattr(datasets, class_name) for class_name, _ in downloads.SOURCES.values())
    assert set(DATASETS) == {"digits", *downloads.SOURCES}


# ---- transforms


def test_transform_of_has_the_mean_and_std_of_the_pixels():
    dataset = small_set()
    transform = Transform.of(dataset)
    pixels = dataset.images.double() / 255
    for c in range(3):
        assert transform.mean[c] == pytest.approx(pixels[:, c].mean().item(), abs=1e-14)
        assert transform.std[c] == pytest.approx(pixels[:, c].std(correction=0).item(), abs=1e-14)
    inputs = transform(dataset.images)
    assert inputs.dtype == torch.float32
    assert inputs.mean((0, 2, 3)).abs().max() < 1e-6
    assert (inputs.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6


def test_transform_of_a_constant_channel_has_std_one():
    dataset = ImageDataset.from_arrays(np.full((3, 4, 4), 255, np.uint8), np.zeros(3, int))
    assert Transform.of(dataset) == Transform((1.0,), (1.0,))
    assert Transform.of(dataset)(dataset.images).abs().max() == 0


def test_normalise_matches_each_pixel_by_hand():
    images = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    inputs = Transform((0.5, 0.1), (0.25, 0.2))(images)
    torch.testing.assert_close(inputs, torch.tensor([[[[-2.0, 2.0]], [[0.5, 1.5]]]]))


@pytest.mark.parametrize(("padding", "flip"), [(4, True), (4, False), (0, True), (1, True)])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 9)])
def test_crop_and_flip_match_a_loop_over_images(padding, flip, height, width):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (64, 3, height, width), dtype=np.uint8))
    transform = Transform((0.0,) * 3, (1 / 255,) * 3, crop_padding=padding, flip=flip)
    got = transform(images, seeded(3))
    generator = seeded(3)
    mirror = torch.randint(2, (64,), generator=generator) if flip else torch.zeros(64)
    top = left = [0] * 64
    if padding:
        top, left = torch.randint(2 * padding + 1, (2, 64), generator=generator)
    for i in range(64):
        image = images[i].numpy()[:, :, ::-1] if mirror[i] else images[i].numpy()
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        y, x = int(top[i]), int(left[i])
        cut = padded[:, y : y + height, x : x + width]
        torch.testing.assert_close(got[i], torch.from_numpy(cut.astype(np.float32)))


def test_augmentation_is_uniform():
    image = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    image[0, 0, 2, 2], image[0, 0, 2, 3] = 255, 128  # the second tells left from right
    num = 18_000
    inputs = Transform((0.0,), (1.0,), crop_padding=1, flip=True)(
        image.expand(num, -1, -1, -1), seeded()
    )
    places = (inputs[:, 0] == 1).flatten(1).int().argmax(1)
    right = inputs[:, 0].roll(-1, 2).flatten(1).gather(1, places[:, None]) > 0
    counts = (places * 2 + right[:, 0]).bincount()
    counts = counts[counts > 0]
    assert len(counts) == 18  # 3 x 3 places, two directions
    assert (counts - 1000).abs().max() < 5 * 1000**0.5


def test_padding_is_black_before_normalisation():
    images = torch.full((200, 1, 4, 4), 255, dtype=torch.uint8)
    inputs = Transform((0.5,), (0.5,), crop_padding=4)(images, seeded())
    assert inputs.unique().tolist() == [-1.0, 1.0]


def test_resize_matches_torchvision_on_each_image():
    from torchvision.transforms.v2 import functional as reference

    images = small_set(num=4, side=24).images
    for size in (10, 24, 37):
        inputs = Transform((0.0,) * 3, (1 / 255,) * 3, size=size)(images)
        for i in range(4):
            wanted = reference.resize(images[i].float(), [size, size], antialias=True)
            torch.testing.assert_close(inputs[i], wanted, atol=1e-3, rtol=0)


def test_resize_comes_before_the_crop():
    images = torch.full((50, 1, 6, 3), 200, dtype=torch.uint8)
    inputs = Transform((0.0,), (1 / 255,), size=12, crop_padding=2)(images, seeded())
    assert inputs.shape == (50, 1, 12, 12)
    black = (inputs == 0).flatten(1).sum(1)
    assert set(black.tolist()) == {
        144 - (12 - dy) * (12 - dx) for dy in range(3) for dx in range(3)
    }


def test_without_augmentation_keeps_size_and_normalisation():
    images = small_set().images
    transform = Transform.of(small_set(), size=10, crop_padding=2, flip=True)
    plain = transform.without_augmentation()
    assert (plain.mean, plain.std, plain.size) == (transform.mean, transform.std, 10)
    assert torch.equal(plain(images), plain(images))
    assert torch.equal(plain(images), Transform.of(small_set(), size=10)(images))


def test_transform_leaves_its_input_and_the_global_generator_alone():
    images = small_set().images
    before, state = images.clone(), torch.get_rng_state()
    for transform in (Transform.of(small_set()), Transform.of(small_set(), crop_padding=2)):
        transform(images, seeded())
        assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": -1}, "size = -1"),
        ({"size": True}, "size = True"),
        ({"crop_padding": 2.5}, "crop_padding = 2.5"),
        ({"flip": 1}, "flip = 1"),
        ({"std": (0.0,)}, "std = "),
        ({"std": (1.0, 1.0)}, "mean has 1 channels, std 2"),
        ({"mean": (float("nan"),)}, "mean = "),
    ],
)
def test_transform_rejects_bad_arguments_by_name(arguments, message):
    with pytest.raises(ParameterError, match=message):
        Transform(**{"mean": (0.0,), "std": (1.0,), **arguments})


def test_transform_rejects_other_images_and_a_missing_generator():
    images = small_set().images
    transform = Transform.of(small_set(), flip=True)
    with pytest.raises(ParameterError, match="generator = None"):
        transform(images)
    with pytest.raises(ParameterError, match=r"float32.*wanted uint8 \(B, 3, H, W\)"):
        transform(images.float(), seeded())
    with pytest.raises(ParameterError, match=r"\(20, 1, 8, 8\)"):
        transform(images[:, :1], seeded())


# ---- batches


def test_batches_carry_the_indices_of_their_images():
    dataset = small_set()
    transform = Transform.of(dataset)
    sampler = UniformBatchSampler(20, 6, generator=seeded())
    batches = Batches(dataset, transform, sampler)
    assert len(batches) == 4
    seen = []
    for inputs, targets, indices in batches:
        assert torch.equal(inputs, transform(dataset.images[indices]))
        assert torch.equal(targets, dataset.labels[indices])
        seen += indices.tolist()
    assert sorted(seen) == list(range(20))
    assert seen != list(range(20))


def test_batches_take_lists_tensors_and_arrays():
    sampler = [[3, 3], torch.tensor([1, 2], dtype=torch.int32), np.array([19])]
    batches = Batches(small_set(), Transform.of(small_set()), sampler)
    assert [b.indices.tolist() for b in batches] == [[3, 3], [1, 2], [19]]
    assert all(b.indices.dtype == torch.int64 for b in batches)


def test_batches_repeat_with_equal_generators_and_differ_between_passes():
    dataset = small_set()
    transform = Transform.of(dataset, crop_padding=4, flip=True)
    sampler = torch.arange(20).split(8)

    def passes(seed):
        batches = Batches(dataset, transform, sampler, generator=seeded(seed))
        return [torch.cat([batch.inputs for batch in batches]) for _ in range(2)]

    first, second = passes(5)
    assert torch.equal(first, passes(5)[0])
    assert torch.equal(second, passes(5)[1])
    assert not torch.equal(first, second)
    assert not torch.equal(first, passes(6)[0])


def test_batches_give_channels_last_with_the_same_numbers():
    dataset = small_set()
    plain, last = (
        next(iter(Batches(dataset, Transform.of(dataset), [[1, 2, 3]], channels_last=flag)))
        for flag in (False, True)
    )
    assert torch.equal(plain.inputs, last.inputs)
    assert last.inputs.is_contiguous(memory_format=torch.channels_last)
    assert plain.inputs.is_contiguous()


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 20], r"index 20 is not in 0\.\.19"),
        ([-1, 3], r"index -1 is not in 0\.\.19"),
        ([], "B >= 1"),
        (torch.ones(20, dtype=torch.bool), "bool"),
        ([0.0, 1.0], "float32"),
        ([[0, 1]], r"\(1, 2\)"),
    ],
)
def test_batches_reject_indices_that_are_no_positions(indices, message):
    with pytest.raises(ParameterError, match=message):
        list(Batches(small_set(), Transform.of(small_set()), [indices]))


def test_batches_want_a_generator_as_soon_as_they_are_made():
    transform = Transform.of(small_set(), flip=True)
    with pytest.raises(ParameterError, match="generator = None"):
        Batches(small_set(), transform, [[0]])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_sees_the_same_batches_without_waiting():
    results = []
    for device in ("cpu", "cuda"):
        dataset = ImageDataset.from_arrays(*colours(num=64), device=device)
        transform = Transform.of(dataset, crop_padding=4, flip=True)
        sampler = UniformBatchSampler(64, 16, generator=seeded(1))
        batches = Batches(dataset, transform, sampler, generator=seeded(2))
        list(batches)
        torch.cuda.set_sync_debug_mode("error" if device == "cuda" else "default")
        try:
            results.append(list(batches))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(*results, strict=True):
        assert torch.equal(one.indices, other.indices.cpu())
        assert torch.equal(one.targets, other.targets.cpu())
        torch.testing.assert_close(one.inputs, other.inputs.cpu())
