"""Hard mini-batches in the loop: against a slow reference, their log, their pauses."""

import copy

import numpy as np
import pytest
import torch
from helpers import interrupt_after, same
from torch.nn.functional import cross_entropy

from hardtrain import build_network, load_artefact, load_history, run_missing
from hardtrain.runs.run_data import load_data
from hardtrain.training import lookup, loop, methods, pieces, randomness


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
        draws = randomness.generator(run.seed, "rounds")
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
            if order == "random":
                selected = torch.randperm(len(batches), generator=draws)[: len(selected)].tolist()
    return model, taken


@pytest.mark.parametrize("order", ["loss", "index", "random"])
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


@pytest.mark.parametrize("order", ["loss", "random"])
def test_hard_batches_go_on_in_mid_round_with_the_same_bits(hard_run, store, order):
    # 8 updates an epoch, rounds of 6: epochs end 0, 2, 4, 0 batches into a round
    run = hard_run(0.8, order, epochs=4, augment="crop+flip", keep=("batch_log", "final_weights"))
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
