import pytest

from hardtrain import load_dataset
from hardtrain.data.batches import Transform


@pytest.fixture(scope="session")
def sets(tiny_set):
    return {split: load_dataset(tiny_set, split) for split in ("train", "test")}


@pytest.fixture(scope="session")
def train(sets):
    return sets["train"]


@pytest.fixture(scope="session")
def transform(train):
    return Transform.of(train)
