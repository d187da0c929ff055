"""Image sets: what they hold, their fingerprints and subsets, and where they come from by name."""

import numpy as np
import pytest
import torch
from helpers import colours, save_set, seeded, small_set

from hardtrain import DataError, ImageDataset, ParameterError, load_dataset
from hardtrain.data import downloads
from hardtrain.data.images import DATASETS, is_at_hand, resolve_device


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


@pytest.mark.parametrize(
    ("size", "message"),
    [(-1, "is less than 0"), (21, "is more than 20"), (2.0, "is float"), (True, "is bool")],
)
def test_subset_rejects_a_size_that_is_no_count(size, message):
    with pytest.raises(ParameterError, match=f"size = {size} {message}"):
        small_set().subset(size)


def test_label_noise_replaces_the_stated_part_by_other_classes():
    train = small_set(num=60, classes=3)
    noisy = train.with_label_noise(0.25, seeded(0))
    changed = noisy.labels != train.labels
    assert changed.sum() == 15
    assert set(noisy.labels.tolist()) <= {0, 1, 2}
    assert torch.equal(noisy.images, train.images)
    again = train.with_label_noise(0.25, seeded(0))
    assert torch.equal(noisy.labels, again.labels)
    other = train.with_label_noise(0.25, seeded(1))
    assert not torch.equal(noisy.labels, other.labels)
    everything = train.with_label_noise(1.0, seeded(0))
    assert (everything.labels != train.labels).all()
    assert {int(n) for n in (everything.labels - train.labels).remainder(3)} == {1, 2}


def test_label_noise_says_which_of_its_reasons_it_is():
    with pytest.raises(ParameterError, match=r"^fraction = 1.5 is not in \[0, 1\]$"):
        small_set().with_label_noise(1.5, seeded(0))
    with pytest.raises(ParameterError, match="has one class: no label can be another one's"):
        small_set(classes=1).with_label_noise(0.3, seeded(0))


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize(("name", "files"), [("a", "a_{}.npz"), ("b", "b/{}.npz")])
def test_saved_splits_are_loaded_as_they_were(tmp_path, grey, name, files):
    images, labels = colours()
    images = images[..., 0] if grey else images
    about = {"class_names": ["ä", "b c", "1", "", "unused"]}
    parts = {
        "train": ImageDataset.from_arrays(images, labels, **about),
        "test": ImageDataset.from_arrays(images[:5] // 2, labels[:5], split="test", **about),
    }
    for split, part in parts.items():
        part.save(str(tmp_path / files.format(split)))
    for split, part in parts.items():
        again = load_dataset(tmp_path / name, split)
        assert again.fingerprint == part.fingerprint
        assert torch.equal(again.images, part.images)
        assert again.class_names == part.class_names


def test_save_needs_the_suffix_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    data = small_set()
    with pytest.raises(
        ParameterError, match=r"mine' does not end in \.npz; wanted: NAME_train\.npz"
    ):
        data.save(tmp_path / "mine")
    data.save(tmp_path / "mine.npz")
    whole = (
        load_dataset(tmp_path / "mine.npz", "train"),
        load_dataset(tmp_path / "mine.npz", "test"),
    )
    assert sum(map(len, whole)) == len(data)
    before = (tmp_path / "mine.npz").read_bytes()
    monkeypatch.setattr(np, "savez", lambda file, **_: file.write(b"half") / 0)
    with pytest.raises(ZeroDivisionError):
        data.save(tmp_path / "mine.npz")
    assert (tmp_path / "mine.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine.npz"]


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
    train = load_dataset(save_set(tmp_path / "a.npz", images, labels), "train")
    test = load_dataset(str(save_set(tmp_path / "b.npz", images, labels)), "test")
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
        save_set(folder / f"{stem}train.npz", images, labels)
        save_set(folder / f"{stem}test.npz", images[:3], labels[:3])
    for path in (folder, folder / "mine", str(folder / "mine")):
        assert len(load_dataset(path, "train")) == 20
        test = load_dataset(path, "test")
        assert len(test) == 3
        assert test.num_classes == 4  # from the training labels: the test part has only three
    with pytest.raises(DataError, match=r"one split of two.*mine'"):
        load_dataset(folder / "mine_train.npz", "train")


def test_known_names_win_over_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_set("digits_train.npz")
    assert load_dataset("digits", "train").image_size == 8
    assert len(load_dataset("digits", "train")) == 1438


def test_named_set_is_read_from_root_then_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_torchvision_datasets", pytest.fail)
    images, labels = colours()
    for folder, num in (("given", 5), ("env", 6)):
        (tmp_path / folder).mkdir()
        for split in ("train", "test"):
            save_set(tmp_path / folder / f"cifar10_{split}.npz", images[:num], labels[:num])
    monkeypatch.setenv("HARDTRAIN_DATA", str(tmp_path / "env"))
    assert len(load_dataset("cifar10", "train", root=tmp_path / "given")) == 5
    assert len(load_dataset("cifar10", "test")) == 6
    monkeypatch.setenv("HARDTRAIN_DATA", "")
    assert "hardtrain" in str(downloads.data_root())


def test_class_names_of_one_file_serve_both(tmp_path):
    save_set(tmp_path / "train.npz", class_names=np.array(["cat", "dog", "eel", "fox", "gnu"]))
    save_set(tmp_path / "test.npz")
    assert load_dataset(tmp_path, "test").class_names == ("cat", "dog", "eel", "fox", "gnu")
    assert load_dataset(tmp_path, "train").num_classes == 5


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


def test_device_auto_is_the_one_that_the_environment_names(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("HARDTRAIN_DEVICE", "cuda:1")
    assert resolve_device("auto") == torch.device("cuda", 1)
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("HARDTRAIN_DEVICE", "cuda:2")
    with pytest.raises(ParameterError, match="'cuda:2' is not available; available: auto, cpu"):
        resolve_device("auto")


def test_device_cuda_is_never_silently_the_cpu(monkeypatch):
    monkeypatch.delenv("HARDTRAIN_DEVICE")
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


def test_a_set_is_at_hand_when_both_its_files_are(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_torchvision_datasets", pytest.fail)
    assert is_at_hand("digits", tmp_path)
    save_set(tmp_path / "svhn_train.npz")
    assert not is_at_hand("svhn", tmp_path)
    save_set(tmp_path / "svhn_test.npz")
    assert is_at_hand("svhn", tmp_path)
    assert not is_at_hand("no such set", tmp_path)
    assert set(DATASETS) == {"digits", *downloads.SOURCES}
