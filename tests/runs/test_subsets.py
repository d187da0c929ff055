"""A part of a training set as text, and runs that train on exactly that part."""

import base64
import dataclasses
import json

import numpy as np
import pytest
import torch
from helpers import small_set

from hardtrain import (
    ImageDataset,
    ParameterError,
    Run,
    load_artefact,
    load_history,
    run_missing,
    write_results,
)
from hardtrain.runs import subsets
from hardtrain.runs.results import read_csv
from hardtrain.runs.run_data import load_data, training_set
from hardtrain.runs.train import build
from hardtrain.training import pieces


@pytest.fixture(autouse=True)
def committed(tmp_path, monkeypatch):
    """An empty folder in place of the repository's figures."""
    monkeypatch.setenv("HARDTRAIN_COMMITTED", str(tmp_path / "committed"))
    return tmp_path / "committed"


# --- text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [1, 2, 7, 8, 9, 63, 64, 65, 1438])
def test_unpack_gives_what_pack_was_given_in_ascending_order(num_samples):
    rng = np.random.default_rng(num_samples)
    texts = set()
    for _ in range(20):
        size = rng.integers(1, num_samples + 1)
        indices = rng.choice(num_samples, size, replace=False)
        text = subsets.pack(indices, num_samples)
        assert subsets.unpack(text, num_samples).tolist() == sorted(indices.tolist())
        assert text == subsets.pack(np.sort(indices), num_samples)  # one text for one set
        assert subsets.check("subset", text) == text
        bits = base64.b64decode(text)
        assert len(bits) == -(-num_samples // 8)
        for i in range(num_samples):
            assert bits[i // 8] >> (7 - i % 8) & 1 == (i in indices)
        texts.add((text, tuple(sorted(indices.tolist()))))
    assert len({text for text, _ in texts}) == len(texts)


def test_pack_takes_lists_arrays_and_tensors():
    expected = subsets.pack([1, 4], 6)
    for indices in (np.array([4, 1], np.uint8), torch.tensor([4, 1]), (1, 4)):
        assert subsets.pack(indices, 6) == expected
    assert subsets.unpack(expected, 6).dtype == np.int64


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "n >= 1"),
        ([[0, 1]], r"indices are int64 \(1, 2\); wanted integers \(n,\)"),
        ([0.0, 1.0], "float64"),
        ([True, False], "bool"),
        ([0, 10], r"indices reach 0\.\.10, not within 0\.\.9"),
        ([-1, 3], r"indices reach -1\.\.3, not within 0\.\.9"),
        ([3, 3], "hold a sample twice"),
    ],
)
def test_pack_refuses(indices, message):
    with pytest.raises(ParameterError, match=message):
        subsets.pack(indices, 10)


@pytest.mark.parametrize("num_samples", [1, 8, 17, 25, 1000])
def test_a_subset_of_another_number_of_samples_is_refused(num_samples):
    text = subsets.pack([9], 10)  # two bytes
    with pytest.raises(ParameterError, match=f"not one of {num_samples} training samples"):
        subsets.unpack(text, num_samples)
    with pytest.raises(ParameterError, match="not one of 9 training samples"):
        subsets.unpack(text, 9)  # of as many bytes, but sample 9 is none of 0..8
    assert subsets.unpack(text, 16).tolist() == [9]  # which the text cannot tell apart


@pytest.mark.parametrize("text", ["*", "kAA", "kAA=\n", "k A=", "ä", "subset"])
def test_a_text_that_pack_did_not_write_is_refused(text):
    for call in (
        lambda: subsets.unpack(text, 10),
        lambda: subsets.check("subset", text),
        lambda: Run(dataset="digits", network="cnn_small", subset=text),
    ):
        with pytest.raises(ParameterError, match=r"none that subsets\.pack wrote"):
            call()


def test_a_subset_without_samples_is_refused():
    nothing = base64.b64encode(bytes(180)).decode()  # of 1,438 samples none
    with pytest.raises(ParameterError, match="subset = 'AAAAAAAAAAAAAAAAAAAA' has no sample"):
        Run(dataset="digits", network="cnn_small", subset=nothing)
    for text in (nothing, ""):
        with pytest.raises(ParameterError, match="not one of 1438 training samples"):
            subsets.unpack(text, 1438)
    with pytest.raises(ParameterError, match="subset = None is NoneType, not text"):
        Run(dataset="digits", network="cnn_small", subset=None)


def test_name_is_short_told_apart_and_never_a_number():
    texts = [subsets.pack([i], 3000) for i in range(3000)]
    names = [subsets.name(text) for text in texts]
    assert len(set(names)) == 3000
    assert {len(name) for name in names} == {12}
    for name in names:
        with pytest.raises(ValueError, match="could not convert"):
            float(name)
    assert subsets.name("") == ""


# --- Run(subset=...) -----------------------------------------------------------------------------

CHOSEN = [0, 1, 2, 5, 9, 13, 22, 30, 31, 32, 40, 47, 51, 52, 58, 59]


@pytest.fixture
def part_run(tiny_run):
    """Sixteen of 60 images, in batches of 8."""

    def make(chosen=CHOSEN, **changes):
        subset = subsets.pack(chosen, 60) if chosen else ""
        return tiny_run(**{"subset": subset, "batch_size": 8} | changes)

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {"momentum": 0.9},
        {"augment": "crop+flip", "network": "cnn_small_bn"},
        {"method": "active_bias", "options": {"variant": "SPV"}, "epochs": 4},
        {"method": "hard_batches", "evaluate_train": True},
        {"method": "distribution_matching"},
    ],
    ids=["plain", "augmented", "active_bias", "hard_batches", "matching"],
)
def test_a_subset_trains_as_a_data_set_made_of_it(part_run, tiny_set, tmp_path, store, changes):
    keep = ["final_weights"]
    part = part_run(**changes, keep=keep)
    for split in ("train", "test"):
        arrays = dict(np.load(f"{tiny_set}_{split}.npz"))
        if split == "train":
            arrays = {name: array[CHOSEN] for name, array in arrays.items()}
        np.savez(tmp_path / f"part_{split}.npz", **arrays)
    own = part_run(None, **changes, keep=keep, dataset=str(tmp_path / "part"))
    frame = run_missing([part, own], store)
    assert frame["test_loss"].nunique() == frame["train_loss"].nunique() == 1
    history = load_history(frame, store).set_index("key")
    assert (
        history.loc[part.key]
        .reset_index(drop=True)
        .equals(history.loc[own.key].reset_index(drop=True))
    )
    assert history["step"].max() == part.epochs * 2
    a, b = (load_artefact(run, "final_weights", store) for run in (part, own))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert frame["fingerprint"].nunique() == 2  # the data that was read


def test_training_takes_the_samples_of_the_subset_and_no_others(part_run):
    run = part_run()
    train, test, _ = load_data(run)
    part = training_set(run, train)
    assert torch.equal(part.images, train.images[CHOSEN])
    assert torch.equal(part.labels, train.labels[CHOSEN])
    assert (part.class_names, part.fingerprint) == (train.class_names, train.fingerprint)
    _, method = build(run, part, test)
    seen = torch.cat([batch.indices for batch in method.batches])
    assert sorted(seen.tolist()) == list(range(16))


def test_a_subset_may_lack_a_class(part_run, store):
    run = part_run([*range(0, 60, 3), 1, 4, 7, 10])  # none of class 2
    frame = run_missing([run], store)
    errors = json.loads(frame["per_class_error"][0])
    assert len(errors) == 3
    assert errors[2] == 1.0


def test_subset_counts_within_train_size(part_run, tiny_run, store):
    run = tiny_run(train_size=30, subset=subsets.pack([0, 1, 29], 30), batch_size=3)
    train, _, _ = load_data(run)
    assert len(train) == 30
    assert torch.equal(training_set(run, train).labels, train.labels[[0, 1, 29]])
    with pytest.raises(ParameterError, match="not one of 30 training samples"):
        run_missing([part_run(train_size=30)], store)
    assert not store.path.exists()


def test_every_subset_has_a_key_and_a_short_name_in_the_tables(part_run, store, tmp_path):
    runs = [part_run(), part_run([*CHOSEN[:-1], 57]), part_run(None), part_run(seed=1)]
    assert len({run.key for run in runs}) == 4
    assert part_run(CHOSEN[::-1]).key == runs[0].key
    frame = run_missing(runs, store)
    assert list(frame["subset"]) == [subsets.name(run.subset) for run in runs]
    write_results(frame, store, tmp_path / "figures")
    table = read_csv(tmp_path / "figures" / "results.csv")
    assert list(table["subset"]) == list(frame["subset"])
    assert runs[0].subset not in (tmp_path / "figures" / "results.csv").read_text()


def test_committed_results_of_a_subset_are_found_again(part_run, store, committed, tmp_path):
    run = part_run()
    frame = run_missing([run], store)
    write_results(frame, store, committed / "07" / "quick")
    other = type(store)(tmp_path / "empty")
    again = run_missing([run], other)
    assert again["source"][0] == str(committed / "07" / "quick")
    assert again["test_loss"][0] == frame["test_loss"][0]
    assert again["subset"][0] == frame["subset"][0] == subsets.name(run.subset)
    assert not other.path.exists()


# --- with label noise ----------------------------------------------------------------------------


def labels_of(run):
    return training_set(run, load_data(run)[0]).labels


def test_wrong_labels_are_drawn_before_the_subset_is_taken(part_run):
    noisy = part_run(None, label_noise=0.5)
    part = part_run(label_noise=0.5)
    assert torch.equal(labels_of(part), labels_of(noisy)[CHOSEN])
    assert not torch.equal(labels_of(part), labels_of(part_run()))


def test_runs_of_one_label_noise_seed_share_their_wrong_labels(tiny_run):
    noisy = tiny_run(label_noise=0.5)
    own = [labels_of(dataclasses.replace(noisy, seed=seed)) for seed in (0, 1)]
    assert not torch.equal(*own)
    shared = dataclasses.replace(noisy, label_noise_seed=1)
    for seed in (0, 1, 2):
        assert torch.equal(labels_of(dataclasses.replace(shared, seed=seed)), own[1])
    zero = dataclasses.replace(noisy, seed=5, label_noise_seed=0)  # 0 is a seed, not "none"
    assert torch.equal(labels_of(zero), own[0])
    assert len({run.key for run in (noisy, shared, zero)}) == 3


def test_the_label_noise_seed_changes_no_other_draw(tiny_run, store):
    # with the seed's own wrong labels the training is the same
    runs = [tiny_run(label_noise=0.3, seed=2, label_noise_seed=s) for s in (None, 2, 3)]
    losses = run_missing(runs, store)["train_loss"]
    assert losses[0] == losses[1] != losses[2]
    orders = [pieces.uniform_batches(run, load_data(run)[0])[0] for run in runs]
    first, *others = [torch.cat([batch.indices for batch in batches]) for batches in orders]
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize(("value", "text"), [(-1, "less than 0"), (1.0, "float"), (True, "bool")])
def test_label_noise_seed_is_a_seed_or_none(tiny_run, value, text):
    with pytest.raises(ParameterError, match=f"label_noise_seed = {value} is {text}"):
        tiny_run(label_noise_seed=value)


# --- ImageDataset.take ---------------------------------------------------------------------------


def test_take_gives_the_samples_at_indices_that_run_backwards():
    data = small_set()
    backwards = np.arange(20)[::-1]
    assert torch.equal(data.take(backwards).labels, data.labels.flip(0))


def test_take_gives_the_samples_at_the_indices():
    images = np.arange(5 * 64).reshape(5, 8, 8).astype(np.uint8)
    data = ImageDataset.from_arrays(images, np.array([0, 1, 2, 0, 1]))
    for indices in (np.array([1, 4]), torch.tensor([1, 4]), [1, 4]):
        part = data.take(indices)
        assert torch.equal(part.images, data.images[[1, 4]])
        assert part.labels.tolist() == [1, 1]
        assert part.class_names == data.class_names
        assert part.fingerprint == data.fingerprint
    assert len(data) == 5
