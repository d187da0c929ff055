"""Kept shares worked out by hand."""

import numpy as np
import pytest

from hardtrain import load_dataset
from hardtrain.papers.mini_batch_trimming import kept_samples


@pytest.fixture
def kept_shares(tiny_set):
    return lambda artefacts, **kw: kept_samples.kept_shares(artefacts, dataset=tiny_set, **kw)


def test_among_equal_shares_the_mean_loss_decides(kept_shares):
    # 4 epochs, one a quarter; in the last one samples 1, 2, 4 count, the others do not
    counts = np.array([[1] * 6] * 3 + [[0, 1, 1, 0, 1, 0]])
    first = {"counts": counts, "losses": np.array([[9.0] * 6] * 3 + [[5, 1, 3, 4, 2, 6]])}
    second = {"counts": counts, "losses": np.array([[0.0] * 6] * 3 + [[5, 1, 0, 4, 2, 6]])}
    found = kept_shares([first, second], epochs=4, num_shown=2, train_size=6)
    assert found["most"].tolist() == [4, 2]  # losses 2, 1.5 and 1
    assert found["least"].tolist() == [3, 0]  # 4, 5 and 6
    assert found["tied"].tolist() == [3, 3]
    lines = [title.split("\n")[1:] for title in found["titles"]]
    assert lines == [["100 %", "2"], ["100 %", "1.5"], ["0 %", "4"], ["0 %", "5"]]


def test_artefacts_of_older_trainings_have_no_losses(kept_shares):
    counts = np.array([[1, 1, 1]] * 3 + [[0, 1, 0]])
    found = kept_shares([{"counts": counts}], epochs=4, num_shown=1, train_size=3)
    assert (found["most"].tolist(), found["least"].tolist()) == ([1], [0])


def test_kept_shares_divide_by_the_epochs_of_each_quarter(kept_shares):
    # 6 epochs: quarters hold epochs 0, 1 | 2 | 3, 4 | 5
    counts = np.array([[2, 2, 2], [1, 1, 0], [2, 1, 0], [1, 0, 0]])
    found = kept_shares([{"counts": counts}], epochs=6, num_shown=1)
    assert found["quantiles"].shape == (4, 101)
    np.testing.assert_allclose(found["quantiles"][:, [0, 50, 100]],
                               [[1, 1, 1], [0, 1, 1], [0, 0.5, 1], [0, 0, 1]])  # fmt: skip
    assert (found["most"].tolist(), found["most_share"].tolist()) == ([0], [1.0])


def test_kept_shares_sort_within_runs_and_name_by_the_mean_of_runs(kept_shares):
    # 4 epochs, one a quarter; in each run another sample counts in the last one
    early = np.ones((3, 3))
    first = {"counts": np.vstack([early, [1, 0, 0]])}
    second = {"counts": np.vstack([early, [1, 1, 0]])}
    found = kept_shares([first, second], epochs=4, num_shown=3)
    np.testing.assert_allclose(found["quantiles"][3, [0, 50, 100]], [0, 0.5, 1])
    assert found["most"].tolist() == [0, 1, 2]
    assert found["least"].tolist() == [2, 1, 0]
    np.testing.assert_allclose(found["most_share"], [1, 0.5, 0])
    np.testing.assert_allclose(found["least_share"], [0, 0.5, 1])


def test_kept_shares_of_opposite_runs_are_not_flattened(kept_shares):
    first = {"counts": np.vstack([np.ones((3, 2)), [1, 0]])}
    second = {"counts": np.vstack([np.ones((3, 2)), [0, 1]])}
    found = kept_shares([first, second], epochs=4, num_shown=1)
    # sorted in each run: half the samples always count, half never, though the mean share is 0.5
    np.testing.assert_allclose(found["quantiles"][3, [0, 100]], [0, 1])
    np.testing.assert_allclose(found["most_share"], [0.5])


def test_kept_shares_of_a_short_training_leave_quarters_empty(kept_shares):
    # 2 epochs fall into the first and the third quarter
    counts = np.array([[1, 1], [0, 0], [0, 1], [0, 0]])
    found = kept_shares([{"counts": counts}], epochs=2, num_shown=1)
    assert np.isnan(found["quantiles"][[1, 3]]).all()
    np.testing.assert_allclose(found["quantiles"][[0, 2]][:, [0, 100]], [[1, 1], [0, 1]])
    assert found["most"].tolist() == [1]
    assert found["least_share"].tolist() == [0]


def test_kept_shares_show_the_images_they_name(kept_shares, tiny_set):
    data = load_dataset(tiny_set, "train").subset(20)
    counts = np.ones((4, 20))
    counts[3, 5:] = 0
    counts[3, 7] = 3
    found = kept_shares([{"counts": counts}], epochs=16, num_shown=2, train_size=20)
    named = [*found["most"], *found["least"]]
    assert named[0] == 7
    np.testing.assert_array_equal(found["images"], data.images[named].numpy())
    kinds = [data.class_names[data.labels[i]] for i in named]
    assert [title.split("\n")[0] for title in found["titles"]] == kinds
    assert [title.split("\n")[1] for title in found["titles"]] == ["75 %", "25 %", "0 %", "0 %"]


def test_kept_shares_leave_out_a_diverged_run(kept_shares):
    counts = np.zeros((4, 60), dtype=int)
    counts[:, :30] = 1
    whole = kept_shares([{"counts": counts}], epochs=4)
    np.testing.assert_array_equal(
        kept_shares([None, {"counts": counts}], epochs=4)["quantiles"], whole["quantiles"]
    )
    assert np.isnan(kept_shares([None], epochs=4)["quantiles"]).all()
