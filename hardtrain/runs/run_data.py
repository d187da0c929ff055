"""A run's data: read once, of the sizes that it wants, with its wrong labels and its subset."""

import functools
import warnings

from hardtrain.data.images import DATASETS, ImageDataset, load_dataset, resolve_device
from hardtrain.data.quality import findings, unpublished
from hardtrain.errors import DataError, ParameterError
from hardtrain.files import sha256
from hardtrain.runs import halves, subsets
from hardtrain.runs.run import Run


def forget_data() -> None:
    """Read the image sets anew when they are next needed: their files may have changed."""
    _data.cache_clear()
    fingerprint_at_hand.cache_clear()


@functools.lru_cache(maxsize=4)
def _data(
    dataset: str, root: str | None, device: str, validation_size: int, *sizes: int
) -> tuple[ImageDataset, ImageDataset, str, ImageDataset | None]:
    train = load_dataset(dataset, "train", root=root, device=device)
    test = load_dataset(dataset, "test", root=root, device=device)
    odd = unpublished(train, test) if dataset in DATASETS else findings(train, test)
    for text in odd:
        warnings.warn(f"data set {dataset!r}: {text}", stacklevel=3)
    fingerprint, validation = _fingerprint(train, test), None
    if validation_size:
        if validation_size >= len(train):
            rest = f"leaves none of the {len(train)} training samples of data set {dataset!r}"
            raise ParameterError(f"validation_size = {validation_size} {rest}")
        train, validation = train.hold_out(validation_size)
    for split, size in zip((train, test), sizes, strict=True):
        if size > len(split):
            raise ParameterError(
                f"{split.split}_size = {size} is more than the {len(split)} {split.split} samples "
                f"of data set {dataset!r}"
            )
    return train.subset(sizes[0]), test.subset(sizes[1]), fingerprint, validation


def _fingerprint(train: ImageDataset, test: ImageDataset) -> str:
    return sha256(f"{train.fingerprint}{test.fingerprint}".encode())


def load_data(run: Run) -> tuple[ImageDataset, ImageDataset, str]:
    """A run's training set, test set and the fingerprint of both, on the run's device."""
    return data_of(run)[:3]


def data_of(run: Run) -> tuple[ImageDataset, ImageDataset, str, ImageDataset | None]:
    sizes = run.validation_size, run.train_size, run.test_size
    return _data(run.dataset, run.data_root, str(resolve_device(run.device)), *sizes)


@functools.lru_cache
def fingerprint_at_hand(dataset: str, root: str | None) -> str | None:
    """Of a run's data; ``None`` if it is not at hand (nothing is downloaded to find out)."""
    try:
        train = load_dataset(dataset, "train", root=root, download=False)
        test = load_dataset(dataset, "test", root=root, download=False)
    except (DataError, ParameterError):  # who needs the data will hear what is wrong
        return None
    return _fingerprint(train, test)


def training_set(run: Run, train: ImageDataset) -> ImageDataset:
    """What a run trains on: its data set with its wrong labels, and of that its subset."""
    train = halves.with_wrong_labels(run, train)
    if run.subset:
        train = train.take(subsets.unpack(run.subset, len(train)))
    return train
