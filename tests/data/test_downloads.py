"""Downloads, with stand-ins for the classes of torchvision.datasets."""

import os
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import save_set
from PIL import Image

from hardtrain import DataError, load_dataset
from hardtrain.data import downloads


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


def test_a_programs_own_time_limit_of_sockets_is_put_back(tmp_path, monkeypatch):
    offer(monkeypatch, MNIST=type("MNIST", (Standin,), {}))
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(7.0)
    try:
        load_dataset("mnist", "train", root=tmp_path)
        assert socket.getdefaulttimeout() == 7.0
    finally:
        socket.setdefaulttimeout(before)


def test_download_of_one_missing_split_leaves_the_other_alone(tmp_path, monkeypatch):
    offer(monkeypatch, MNIST=type("MNIST", (Standin,), {}))
    save_set(tmp_path / "mnist_train.npz", class_names=np.array(["zero", "one", "two", "three"]))
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
    save_set(tmp_path / "mnist_train.npz")
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
        patch.setattr(os, function, full)
        with pytest.raises(DataError, match="No space left"):
            load_dataset("mnist", "train", root=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {".mnist.lock"}
    assert len(load_dataset("mnist", "train", root=tmp_path)) == 6


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
