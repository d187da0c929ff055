"""Methods in the loop: hard mini-batches against a slow reference, their log, their pauses."""

import copy

import numpy as np
import pytest
import torch
from helpers import interrupt_after
from torch.nn.functional import cross_entropy

from hardtrain import build_network, load_artefact, load_history, run_missing
from hardtrain.runs.train import load_data
from hardtrain.training import evaluation, lookup, loop, methods, pieces, randomness


@pytest.fixture
def hard_run(tiny_run):
    """60 images in 8 mini-batches of 8 (the last has 4)."""

    def make(delta=0.5, order="loss", **changes):
        fields = {"method": "hard_batches", "options": {"delta": delta, "order": order}}
        return tiny_run(**fields | {"epochs": 5, "batch_size": 8, "momentum": 0.9} | changes)

    return make


def trained(run, *, data=None):
    """The trained network and its batch log, from the loop itself."""
    train, _, _ = load_data(run)
    train = train if data is None else data
    with randomness.isolated_randomness(3, torch.device("cpu")):
        model = build_network("cnn_small", 3, 1, image_size=8)
        method = lookup.find_method(run.method)(run, train, model, **run.options)
        loop.fit(run, model, method, lambda model: {})
    return model, method


def reference(run, delta, order):
    """Algorithm 2, as plainly as possible."""
    train, _, _ = load_data(run)
    inputs = pieces.train_transform(run, train)(train.images)
    permutation = torch.randperm(len(train), generator=randomness.generator(run.seed, "order"))
    batches = permutation.split(run.batch_size)
    with randomness.isolated_randomness(3, torch.device("cpu")):
        model = build_network("cnn_small", 3, 1, image_size=8)
        optimizer = torch.optim.SGD(model.parameters(), lr=run.lr, momentum=run.momentum)
        stored, taken = {}, []
        selected = list(range(len(batches)))
        while len(taken) < run.epochs * len(batches):
            for i in selected:
                if len(taken) == run.epochs * len(batches):
                    break
                logits = model(inputs.index_select(0, batches[i]))
                loss = cross_entropy(logits, train.labels[batches[i]], reduction="none").mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                stored[i] = loss.item()
                taken.append(i)
            hardest_first = sorted(stored, key=lambda i: (-stored[i], i))
            selected = hardest_first[: max(1, int(delta * len(batches) + 1e-9))]
            if order == "index":
                selected.sort()
    return model, taken


def same(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize("order", ["loss", "index"])
@pytest.mark.parametrize("delta", [1.0, 0.8, 0.5, 0.2])
def test_hard_batches_follow_algorithm_2_to_the_bit(hard_run, delta, order):
    run = hard_run(delta, order, keep=("batch_log",))
    model, method = trained(run)
    expected, taken = reference(run, delta, order)
    assert method.artefacts["batch_log"]()["ids"].tolist() == taken
    assert len(taken) == 5 * 8
    assert same(model, expected)


def test_hard_batches_by_index_with_delta_one_are_plain_training_on_fixed_batches(hard_run):
    run = hard_run(1.0, "index", keep=("batch_log",))
    _, method = trained(run)
    assert method.artefacts["batch_log"]()["ids"].tolist() == 5 * list(range(8))
    assert same(trained(run)[0], reference(run, 1.0, "index")[0])


def test_hard_batches_can_leave_the_file_order(hard_run):
    run = hard_run()
    train, _, _ = load_data(run)
    for shuffled, first in ((False, True), (True, False)):
        method = methods.hard_batches(run, train, None, delta=0.5, order="loss", shuffled=shuffled)
        assert (method.batches.batch_sampler.batches[0] == list(range(8))) is first


def test_the_log_compares_stored_losses_with_present_ones(hard_run):
    run = hard_run(0.5, keep=("batch_log",), epochs=3)
    seen = {}
    train, _, _ = load_data(run)
    with randomness.isolated_randomness(3, torch.device("cpu")):
        model = build_network("cnn_small", 3, 1, image_size=8)
        method = methods.hard_batches(run, train, model, **run.options)
        observe = method.observe

        def watch(indices, losses):
            seen[tuple(indices.tolist())] = losses.mean().item()
            observe(indices, losses)

        compare, snapshots = method.start_epoch, []

        def start_epoch(epoch):
            snapshots.append((dict(seen), [p.detach().clone() for p in model.parameters()]))
            compare(epoch)

        method.observe, method.start_epoch = watch, start_epoch
        loop.fit(run, model, method, lambda model: {})
    log = method.artefacts["batch_log"]()
    assert log["stored"].shape == log["recomputed"].shape == (2, 8)
    batches = method.batches.batch_sampler.batches
    inputs = pieces.train_transform(run, train)(train.images)
    for row, (stored, weights) in enumerate(snapshots[1:]):
        torch.nn.utils.vector_to_parameters(
            torch.nn.utils.parameters_to_vector(weights), model.parameters()
        )
        for i, batch in enumerate(batches):
            now = cross_entropy(model(inputs[batch]), train.labels[batch]).item()
            assert log["stored"][row, i].item() == pytest.approx(stored[tuple(batch)], rel=1e-6)
            assert log["recomputed"][row, i].item() == pytest.approx(now, rel=1e-4)


def test_the_log_does_not_change_the_training(hard_run):
    assert same(trained(hard_run())[0], trained(hard_run(keep=("batch_log",)))[0])


def test_hard_batches_go_on_in_mid_round_with_the_same_bits(hard_run, store):
    # 8 updates an epoch, rounds of 6: epochs end 0, 2, 4, 0 batches into a round
    run = hard_run(0.8, epochs=4, keep=("batch_log", "final_weights"))
    run_missing([run], store)
    whole = {name: load_artefact(run, name, store) for name in run.keep}
    history = load_history(run_missing([run], store), store)
    for end in (1, 2, 3):
        other = type(store)(store.path.with_name(f"paused{end}"), checkpoint_seconds=0.0)
        interrupt_after(run, other, end)
        results = run_missing([run], other)
        assert load_history(results, other).equals(history)
        for name in run.keep:
            resumed = load_artefact(run, name, other)
            assert all(np.array_equal(whole[name][key], resumed[key]) for key in whole[name])


def test_bad_options_of_hard_batches_are_refused_before_training(hard_run, store):
    for changes, text in (
        ({"delta": 1.5}, r"delta must be in \(0, 1\]"),
        ({"order": "los"}, "'loss'"),
    ):
        run = hard_run(**changes)
        with pytest.raises(ValueError, match=text):
            run_missing([run], store)
    assert not store.path.exists()


def test_evaluate_train_adds_the_training_set_and_intervals_over_batches(hard_run, store):
    run = hard_run(0.5, evaluate_train=True, keep=("final_weights",))
    results = run_missing([run], store)
    history = load_history(results, store)
    train, test, _ = load_data(run)
    transform = pieces.train_transform(run, train)
    model = build_network("cnn_small", 3, 1, image_size=8)
    weights = load_artefact(run, "final_weights", store)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
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
    run = hard_run(0.5, evaluate_train=True, drop_last=True)
    train, _, _ = load_data(run)
    method = methods.hard_batches(run, train, None, **run.options)
    assert len(method.batches.batch_sampler.batches) == 7
    assert len(method.batches.batch_sampler.left_out) == 4
    results = run_missing([run], store)
    accuracy = 1 - results["train_set_error"][0]
    by_batch = results["train_set_accuracy_by_batch"][0]
    # 7 of 8 images and 1 of 4: 60 images, but eight equal weights
    assert by_batch * 8 == pytest.approx(round(by_batch * 32) / 4, abs=1e-9)
    assert accuracy * 60 == pytest.approx(round(accuracy * 60), abs=1e-9)


def test_label_noise_replaces_the_stated_part_by_other_classes(tiny_run):
    train, _, _ = load_data(tiny_run())
    noisy = train.with_label_noise(0.25, torch.Generator().manual_seed(0))
    changed = noisy.labels != train.labels
    assert changed.sum() == 15
    assert set(noisy.labels.tolist()) <= {0, 1, 2}
    assert torch.equal(noisy.images, train.images)
    again = train.with_label_noise(0.25, torch.Generator().manual_seed(0))
    assert torch.equal(noisy.labels, again.labels)
    other = train.with_label_noise(0.25, torch.Generator().manual_seed(1))
    assert not torch.equal(noisy.labels, other.labels)
    everything = train.with_label_noise(1.0, torch.Generator().manual_seed(0))
    assert (everything.labels != train.labels).all()
    assert {int(n) for n in (everything.labels - train.labels).remainder(3)} == {1, 2}


def test_label_noise_of_a_run_reaches_the_training_and_not_the_test_set(tiny_run, store):
    clean, noisy = tiny_run(epochs=6), tiny_run(epochs=6, label_noise=0.5)
    results = run_missing([clean, noisy], store)
    assert results["train_loss"][1] > results["train_loss"][0] + 0.2
    none = run_missing([tiny_run(epochs=6, label_noise=0)], store)
    assert none["key"][0] == results["key"][0]


def test_evaluation_with_batch_statistics_is_that_of_the_training_mode(tiny_run):
    train, test, _ = load_data(tiny_run())
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 3)
    )
    transform = pieces.train_transform(tiny_run(), train)
    found = evaluation.evaluate(model, test, transform, batch_size=10, batch_statistics=True)
    inputs = transform(test.images)
    expected = torch.cat([
        cross_entropy(model(part), labels, reduction="none")
        for part, labels in zip(inputs.split(10), test.labels.split(10), strict=True)
    ])  # fmt: skip
    assert torch.allclose(found.losses, expected.detach(), atol=1e-6)
    running = evaluation.evaluate(model, test, transform, batch_size=10)
    assert not torch.allclose(found.losses, running.losses, atol=1e-3)
    assert model.training


def test_the_log_leaves_batch_norms_running_statistics_alone(hard_run):
    train, _, _ = load_data(hard_run())
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 3)
    )
    method = methods.hard_batches(
        hard_run(keep=("batch_log",)), train, model, delta=0.5, order="loss", shuffled=True
    )
    before = copy.deepcopy(model.state_dict())
    method.start_epoch(1)
    assert all(map(torch.equal, before.values(), model.state_dict().values()))
    batch = method.batches.batch_sampler.batches[0]
    inputs = pieces.train_transform(hard_run(), train)(train.images[batch])
    now = cross_entropy(model(inputs), train.labels[batch]).item()  # statistics of the batch
    log = method.artefacts["batch_log"]()
    assert log["recomputed"][0, 0].item() == pytest.approx(now, rel=1e-5)


def test_splits_of_different_shapes_are_refused_before_training(tiny_run, store, tmp_path):
    for split, side in (("train", 8), ("test", 10)):
        images = np.zeros((12, side, side), np.uint8)
        np.savez(tmp_path / f"odd_{split}.npz", images=images, labels=np.arange(12) % 3)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\) in train, \(1, 10, 10\) in test"):
        run_missing([tiny_run(dataset=str(tmp_path / "odd"))], store)
    assert not store.path.exists()


def test_a_batch_of_one_in_evaluation_by_batch_statistics_is_refused(tiny_run, store):
    # 60 training images leave no batch of one, 17 test images do
    run = tiny_run(network="resnet18", batch_norm="batch", test_size=17)
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
