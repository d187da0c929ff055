"""Evaluations that a run asks for: of the training set, by batches, of kept logits."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import kept_network
from torch.nn.functional import cross_entropy

from hardtrain import ParameterError, load_artefact, load_history, run_missing
from hardtrain.runs import subsets
from hardtrain.runs.run_data import data_of, load_data
from hardtrain.runs.train import train_run
from hardtrain.training import evaluation, methods, pieces, randomness


@pytest.fixture
def hard_run(tiny_run):
    """60 images in 8 mini-batches of 8 (the last has 4)."""

    def make(delta=0.5, order="loss", **changes):
        fields = {"method": "hard_batches", "options": {"delta": delta, "order": order}}
        return tiny_run(**fields | {"epochs": 5, "batch_size": 8, "momentum": 0.9} | changes)

    return make


def test_evaluate_train_adds_the_training_set_and_intervals_over_batches(hard_run, store):
    run = hard_run(0.5, evaluate_train=True, keep=("final_weights",))
    results = run_missing([run], store)
    history = load_history(results, store)
    train, test, _ = load_data(run)
    transform = pieces.train_transform(run, train)
    model = kept_network(run, store)
    for name, data in (("train_set", train), ("test", test)):
        found = evaluation.evaluate(model, data, transform)
        assert history[f"{name}_error"].iloc[-1] == pytest.approx(found.error)
        assert results[f"{name}_error"][0] == pytest.approx(found.error)
        right = (found.predictions == data.labels).double()
        if name == "test":
            parts = torch.arange(20).split(8)
        else:
            order = randomness.generator(run.seed, "order")
            parts = torch.randperm(60, generator=order).split(8)
        values = np.array([right[part].mean().item() for part in parts])
        assert results[f"{name}_accuracy_by_batch"][0] == pytest.approx(values.mean())
        half = values.std(ddof=1) / np.sqrt(len(values))
        quantile = {8: 2.3646243, 3: 4.3026527}[len(values)]
        assert results[f"{name}_half_width_by_batch"][0] == pytest.approx(quantile * half, rel=1e-5)


def test_the_interval_over_batches_has_the_batch_that_was_left_out(hard_run, store):
    run = hard_run(0.5, evaluate_train=True, drop_last=True, epochs=2, keep=("final_weights",))
    train, _, _ = load_data(run)
    method = methods.hard_batches(run, train, None, **run.options)
    sampler = method.batches.batch_sampler
    assert [len(batch) for batch in (*sampler.batches, sampler.left_out)] == [8] * 7 + [4]
    results = run_missing([run], store)
    transform = pieces.train_transform(run, train)
    found = evaluation.evaluate(kept_network(run, store), train, transform)
    right = (found.predictions == train.labels).double()
    values = [right[batch].mean().item() for batch in (*sampler.batches, sampler.left_out)]
    assert np.mean(values) != pytest.approx(np.mean(values[:-1]), abs=1e-3)
    assert results["train_set_accuracy_by_batch"][0] == pytest.approx(np.mean(values))
    assert results["train_set_error"][0] == pytest.approx(1 - right.mean().item())


def test_label_noise_of_a_run_reaches_the_training_and_not_the_test_set(tiny_run, store):
    clean, noisy = tiny_run(epochs=6), tiny_run(epochs=6, label_noise=0.5)
    results = run_missing([clean, noisy], store)
    assert results["train_loss"][1] > results["train_loss"][0] + 0.2
    none = run_missing([tiny_run(epochs=6, label_noise=0)], store)
    assert none["key"][0] == results["key"][0]


def test_held_out_training_images_are_evaluated_in_place_of_the_test_set(tiny_run, store):
    run = tiny_run(validation_size=12, train_size=30, label_noise=0.5, keep=("final_weights",))
    row = run_missing([run], store).iloc[0]
    history = load_history(pd.DataFrame([row]), store)
    assert "test_error" not in history
    whole, test, _ = load_data(tiny_run())
    train, _, fingerprint, held = data_of(run)
    assert (len(train), len(held)) == (30, 12)
    pictures = [{image.numpy().tobytes() for image in part.images} for part in (train, held)]
    assert not pictures[0] & pictures[1]
    assert held.labels.bincount().tolist() == [4, 4, 4]
    names = {
        image.numpy().tobytes(): label
        for image, label in zip(whole.images, whole.labels, strict=True)
    }
    assert all(
        names[i.numpy().tobytes()] == label
        for i, label in zip(held.images, held.labels, strict=True)
    )
    assert fingerprint == load_data(tiny_run())[2]
    transform = pieces.train_transform(run, train)
    model = kept_network(run, store)
    for name, data in (("validation", held), ("test", test)):
        found = evaluation.evaluate(model, data, transform)
        assert row[f"{name}_error"] == pytest.approx(found.error)
        assert row[f"{name}_loss"] == pytest.approx(found.loss, rel=1e-5)
    assert history["validation_error"].iloc[-1] == row["validation_error"]


@pytest.mark.parametrize("validation_size", [0, 12])
def test_who_looks_on_is_told_the_last_loss(tiny_run, store, validation_size):
    run, told = tiny_run(validation_size=validation_size, epochs=3), []
    record = train_run(run, store, lambda run, epochs, loss=None: told.append((epochs, loss)))
    name = "validation_loss" if validation_size else "test_loss"
    assert told == [(0, None), *((row["epoch"], row[name]) for row in record["history"])]


def test_a_test_loss_that_is_not_finite_at_the_end_is_divergence(tiny_run, store, monkeypatch):
    run = tiny_run(validation_size=12)
    evaluate = evaluation.evaluate

    def overflowing(model, images, transform, **settings):
        found = evaluate(model, images, transform, **settings)
        return found._replace(loss=np.inf) if images.split == "test" else found

    monkeypatch.setattr(evaluation, "evaluate", overflowing)
    row = run_missing([run], store).iloc[0]
    assert row["status"] == "diverged"
    steps = run.epochs * 3
    assert (row["diverged_epoch"], row["diverged_step"]) == (run.epochs - 1, steps - 1)
    assert load_history(pd.DataFrame([row]), store)["step"].tolist() == [3, steps]


def test_what_holds_nothing_out_has_the_columns_that_it_had(tiny_run, store):
    plain, held = tiny_run(), tiny_run(validation_size=12)
    assert plain.key != held.key
    assert not any("validation" in name for name in run_missing([plain], store))
    both = run_missing([plain, held], store)
    assert both["validation_error"].isna().tolist() == [True, False]
    for size in (60, 61):
        with pytest.raises(ParameterError, match="validation_size = "):
            run_missing([tiny_run(validation_size=size)], store)


def test_splits_of_different_shapes_are_refused_before_training(tiny_run, store, tmp_path):
    for split, side in (("train", 8), ("test", 10)):
        images = np.zeros((12, side, side), np.uint8)
        np.savez(tmp_path / f"odd_{split}.npz", images=images, labels=np.arange(12) % 3)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\) in train, .*\(1, 10, 10\) in test"):
        run_missing([tiny_run(dataset=str(tmp_path / "odd"))], store)
    assert not store.path.exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"test_size": 17},
        {"validation_size": 17},
        {"train_size": 49, "keep": ("train_losses",), "subset": subsets.pack(np.arange(48), 49)},
    ],
)
def test_a_batch_of_one_in_evaluation_by_batch_statistics_is_refused(tiny_run, store, fields):
    # 60 training images leave no batch of one, 17 test images do
    run = tiny_run(network="cnn_small_bn", batch_norm="batch", **fields)
    with pytest.raises(ValueError, match="gives a batch of one sample"):
        run_missing([run], store)
    assert not store.path.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bfloat16"},
        {"batch_norm": "batch", "batch_size": 10},
        {"ghost_batch_size": 4, "channels_last": True},
    ],
    ids=["plain", "bfloat16", "batch", "ghost"],
)
def test_kept_logits_are_those_of_the_recorded_metrics(tiny_run, store, changes):
    keep = ["logits", "features", "final_weights"]
    run = tiny_run(network="cnn_small_bn", epochs=3, keep=keep, **changes)
    row = run_missing([run], store).iloc[0]
    found = load_artefact(run, "logits", store)
    recorded = load_artefact(run, "features", store)
    logits, labels = torch.from_numpy(found["logits"]), torch.from_numpy(found["labels"])
    assert found.keys() == {"logits", "labels"}
    assert logits.shape == (20, 3)
    assert np.array_equal(labels, load_data(run)[1].labels)
    assert np.array_equal(logits.argmax(dim=1), recorded["predictions"])
    assert (logits.argmax(dim=1) != labels).double().mean() == row["test_error"]
    assert cross_entropy(logits.double(), labels) == pytest.approx(row["test_loss"], rel=1e-5)
    # and they leave the weights and statistics as they were
    other = type(store)(store.path / "other")
    alone = load_artefact(tiny_run(**run.as_dict() | {"keep": ["final_weights"]}),
                          "final_weights", other)  # fmt: skip
    weights = load_artefact(run, "final_weights", store)
    assert all(np.array_equal(alone[name], weights[name]) for name in alone)
