"""Which mini-batches were taken, worked out by hand."""

import numpy as np
import pytest

from hardtrain import DataError
from hardtrain.papers.hard_mini_batches.choices import batch_choices, network_sizes


def test_batch_choices_count_by_epoch_and_rank_stored_against_present_losses():
    log = {
        "ids": np.array([0, 1, 2, 2, 2, 0]),
        "stored": np.array([[1.0, 2.0, 3.0]]),
        "recomputed": np.array([[1.0, 5.0, 9.0]]),
    }
    other = log | {"ids": log["ids"][::-1], "recomputed": np.array([[9.0, 5.0, 1.0]])}
    found = batch_choices([log, other, other, log], deltas=[0.5, 0.2], epochs=2)
    assert found["ids"].tolist() == [[0, 1, 2, 2, 2, 0], [0, 2, 2, 2, 1, 0]]
    assert found["counts"].tolist() == [[[1, 1, 1], [1, 0, 2]], [[1, 0, 2], [1, 1, 1]]]
    assert found["correlations"].shape == (2, 2, 1)
    np.testing.assert_allclose(found["correlations"][..., 0], [[1, -1], [-1, 1]])


def test_network_sizes_are_in_the_order_of_the_names():
    found = network_sizes(networks=["cnn_small", "cnn5"], image_size=32)
    assert found["parameters"].tolist() == [36_490, 1_575_690]
    assert found["flops"][0] < found["flops"][1]


def test_batch_choices_keep_their_place_when_runs_diverged():
    log = {
        "ids": np.array([0, 1, 1, 1]),
        "stored": np.array([[1.0, 2.0]]),
        "recomputed": np.array([[2.0, 2.0]]),  # no ranks
    }
    other = log | {"ids": np.array([0, 1, 0, 0]), "recomputed": np.array([[1.0, 3.0]])}
    found = batch_choices([None, None, None, other, log, None], deltas=[0.8, 0.5, 0.2], epochs=2)
    assert found["ids"].tolist() == [[-1] * 4, [0, 1, 0, 0], [0, 1, 1, 1]]
    assert found["counts"].tolist() == [[[0, 0]] * 2, [[1, 1], [2, 0]], [[1, 1], [0, 2]]]
    expected = [[np.nan, np.nan], [np.nan, 1.0], [np.nan, np.nan]]
    np.testing.assert_allclose(found["correlations"][..., 0], expected)
    with pytest.raises(DataError, match="all of the runs diverged"):
        batch_choices([None] * 3, deltas=[0.8, 0.5, 0.2], epochs=2)
