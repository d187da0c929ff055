"""Peers and controls in the loop: against bare loops, their pauses, what they choose."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import copied, interrupt_after, same
from torch import nn
from torch.nn.functional import cross_entropy

from hardtrain import (
    DivergedError,
    ParameterError,
    PruningBatchSampler,
    Run,
    RunStore,
    build_network,
    load_artefact,
    load_history,
    run_missing,
    select_reducible,
)
from hardtrain.runs.run_data import load_data, training_set
from hardtrain.training import lookup, loop, pieces, randomness

PEERS = ("focal", "random_share", "dynamic_pruning", "selective_backprop", "reducible_loss")
KEEP = ("sample_counts", "final_weights")


def network():
    return build_network("cnn_small", 3, 1, image_size=8)


def trained(run, *, held_out=None, watch=None, make=network, checkpoints=None, resume=None):
    """The trained network, its history and method, from the loop itself."""
    train, _, _ = load_data(run)
    with randomness.isolated_randomness(3, torch.device("cpu")):
        model = make()
        method = lookup.find_method(run.method)(run, train, model, **run.options)
        if held_out is not None:
            method.held_out.take(held_out)
        if watch is not None:
            observe = method.observe

            def seen(indices, losses):
                watch.append(indices.tolist())
                observe(indices, losses)

            method.observe = seen
        history = loop.fit(
            run,
            model,
            method,
            lambda model: {},
            checkpoint=resume,
            save_checkpoint=None if checkpoints is None else checkpoints.append,
        )
    return model, history, method


def bare(run):
    """What a bare loop begins with: inputs, targets, a model and its optimiser."""
    train, _, _ = load_data(run)
    inputs = pieces.train_transform(run, train)(train.images)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=run.lr, momentum=run.momentum)
    return inputs, train.labels, model, optimizer


def losses_of(model, inputs, targets, indices):
    chosen = torch.as_tensor(indices)
    logits = model(inputs.index_select(0, chosen))
    return cross_entropy(logits, targets[chosen], reduction="none")


def step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# --- the limits where they are plain training, bit for bit ---------------------------------------


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("focal", {"gamma": 0.0}),
        ("random_share", {"share": 1.0}),
        ("dynamic_pruning", {"ratio": 0.0}),
        ("dynamic_pruning", {"pruned_part": 0.0}),
    ],
)
def test_the_limit_is_plain_training_bit_for_bit(tiny_run, method, options):
    run = tiny_run(method=method, options=options, epochs=4, momentum=0.9, augment="crop+flip")
    plain = tiny_run(epochs=4, momentum=0.9, augment="crop+flip")
    if options == {"pruned_part": 0.0}:  # it draws, and does not look at what it drew
        assert trained(run)[1][-1]["samples"] == 4 * 60
        return
    assert same(trained(run)[0], trained(plain)[0])
    changed = tiny_run(method=method, epochs=4, momentum=0.9, augment="crop+flip")
    assert not same(trained(changed)[0], trained(plain)[0])


# --- against bare loops --------------------------------------------------------------------------


def test_focal_loss_is_its_formula(tiny_run):
    run = tiny_run(method="focal", options={"gamma": 2.0})
    train, _, _ = load_data(run)
    logits = 3 * torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[0] = torch.tensor([0.0, 800.0, 0.0])  # certain, and right
    targets = torch.tensor([1, 0, 2, 1, 0, 2])
    method = lookup.find_method("focal")(run, train, None, gamma=2.0)
    ours = logits.float().requires_grad_()
    losses, loss = method.objective(lambda inputs: ours, pieces.Batch(None, targets, None))
    loss.backward()
    right = logits.softmax(1)[torch.arange(6), targets]
    assert losses.tolist() == pytest.approx(
        cross_entropy(logits, targets, reduction="none").tolist()
    )
    assert loss.item() == pytest.approx(((1 - right) ** 2 * -right.log()).mean().item(), rel=1e-5)
    exact = logits.clone().requires_grad_()
    right = exact.softmax(1)[torch.arange(6), targets]
    ((1 - right) ** 2 * -right.log()).mean().backward()
    torch.testing.assert_close(ours.grad, exact.grad.float(), rtol=1e-4, atol=1e-6)


def test_random_share_draws_anew_each_epoch_and_has_its_own_schedule(tiny_run):
    run = tiny_run(method="random_share", options={"share": 0.5}, epochs=6, schedule="cosine")
    taken = []
    _, history, _ = trained(run, watch=taken)
    epochs = [sorted(taken[2 * i] + taken[2 * i + 1]) for i in range(6)]
    assert [len(set(epoch)) for epoch in epochs] == [30] * 6
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert [row["step"] for row in history] == [2, 4, 6, 8, 10, 12]
    assert [row["samples"] for row in history] == [30.0 * i for i in range(1, 7)]
    # the rate falls over its own 12 updates
    assert history[-1]["lr"] == pytest.approx(run.lr * (1 + math.cos(math.pi * 11 / 12)) / 2)


@pytest.mark.parametrize("reading", ["paper", "code"])
def test_dynamic_pruning_is_a_bare_loop_over_its_sampler(tiny_run, reading):
    run = tiny_run(method="dynamic_pruning", options={"reading": reading}, epochs=8, momentum=0.9)
    taken = []
    ours, history, _ = trained(run, watch=taken)
    draws = randomness.generator(run.seed, "order")
    sampler = PruningBatchSampler(60, 16, num_epochs=8, reading=reading, generator=draws)
    with randomness.isolated_randomness(3, torch.device("cpu")):
        inputs, targets, model, optimizer = bare(run)
        expected, ends = [], []
        for _ in range(8):
            for indices in sampler:
                losses = losses_of(model, inputs, targets, indices)
                step(optimizer, (sampler.weights(indices) * losses).mean())
                sampler.update(indices, losses)
                expected.append(indices)
            ends.append(len(expected))
    assert taken == expected
    assert same(ours, model)
    assert [row["step"] for row in history] == ends
    assert [row["epoch"] for row in history] == list(range(1, 9))
    sizes = np.diff([0, *(row["samples"] for row in history)])
    assert sizes[0] == sizes[-1] == 60
    assert max(sizes[1:-1]) < 60


def test_selective_backprop_is_a_plain_queue(tiny_run):
    run = tiny_run(method="selective_backprop", options={"beta": 1.0}, epochs=6, momentum=0.9)
    taken = []
    ours, history, _ = trained(run, watch=taken)
    order = randomness.generator(run.seed, "order")
    draws = randomness.generator(run.seed, "draws")
    with randomness.isolated_randomness(3, torch.device("cpu")):
        inputs, targets, model, optimizer = bare(run)
        recent, expected, ends = [], [], []
        for _ in range(6):
            queue, num_updates = [], 0

            def train_on(indices):
                expected.append(list(indices))
                step(optimizer, losses_of(model, inputs, targets, indices).mean())

            for batch in torch.randperm(60, generator=order).split(16):
                with torch.no_grad():
                    losses = losses_of(model, inputs, targets, batch)
                recent = [*recent, *losses.tolist()][-1024:]
                coins = torch.rand(len(batch), dtype=torch.float64, generator=draws).tolist()
                for i, (loss, coin) in enumerate(zip(losses.tolist(), coins, strict=True)):
                    probability = sum(old <= loss for old in recent) / len(recent)
                    if coin < probability or loss == losses.max().item():
                        queue.append(batch[i].item())
                while len(queue) >= 16:
                    train_on(queue[:16])
                    queue, num_updates = queue[16:], num_updates + 1
            if len(queue) > 1 or (queue and num_updates == 0):
                train_on(queue)
            ends.append(len(expected))
    assert taken == expected
    assert same(ours, model)
    assert [row["step"] for row in history] == ends
    assert history[-1]["samples"] == sum(map(len, expected)) < 0.7 * 6 * 60


def test_reducible_loss_is_a_bare_loop_over_large_batches(tiny_run):
    options = {"share": 0.25}
    run = tiny_run(method="reducible_loss", options=options, batch_size=7, epochs=5, momentum=0.9)
    irreducible = torch.rand(60, generator=torch.Generator().manual_seed(1))
    taken = []
    ours, history, _ = trained(run, held_out=irreducible, watch=taken)
    order = randomness.generator(run.seed, "order")
    with randomness.isolated_randomness(3, torch.device("cpu")):
        inputs, targets, model, optimizer = bare(run)
        expected = []
        for _ in range(5):
            for large in torch.randperm(60, generator=order).split(28):  # 28, 28, 4
                with torch.no_grad():
                    losses = losses_of(model, inputs, targets, large)
                count = round(0.25 * len(large))
                indices = large[select_reducible(losses, irreducible[large], count)].tolist()
                if len(indices) == 1:  # a last batch of one sample is left out
                    continue
                expected.append(indices)
                step(optimizer, losses_of(model, inputs, targets, indices).mean())
    assert taken == expected
    assert same(ours, model)
    assert history[-1]["samples"] == 5 * 14


# --- pauses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", PEERS)
def test_peers_go_on_after_a_pause_with_the_same_bits(tiny_run, store, method):
    options = {"small_network": "mlp", "small_epochs": 2} if method == "reducible_loss" else {}
    keep = KEEP[1:] if method == "focal" else KEEP
    fields = {"epochs": 5, "batch_size": 8, "momentum": 0.9, "augment": "crop+flip", "keep": keep}
    run = tiny_run(method=method, options=options, evaluate_every=2, **fields)
    frame = run_missing([run], store)
    history = load_history(frame, store)
    assert history["step"].is_monotonic_increasing
    for end in (1, 4):
        other = type(store)(store.path.with_name(f"paused{end}"), checkpoint_seconds=0.0)
        interrupt_after(run, other, end)
        assert load_history(run_missing([run], other), other).equals(history)
        for name in keep:
            whole, resumed = (load_artefact(run, name, place) for place in (store, other))
            assert all(np.array_equal(whole[key], resumed[key]) for key in whole)


# --- an epoch that is one pass -------------------------------------------------------------------


def test_whole_passes_are_evaluated_by_updates_too(tiny_run):
    run = tiny_run(method="dynamic_pruning", epochs=8, evaluate_unit="step", evaluate_every=5)
    by_epoch = trained(tiny_run(method="dynamic_pruning", epochs=8))[1]
    history = trained(run)[1]
    total = by_epoch[-1]["step"]
    steps = [row["step"] for row in history]
    assert steps == sorted({*range(5, total + 1, 5), total})
    assert history[-1]["epoch"] == 8
    assert all(a["epoch"] < b["epoch"] for a, b in pairwise(history))


def test_whole_passes_follow_the_schedule_by_epoch(tiny_run):
    fields = {"epochs": 8, "schedule": "multistep", "milestones": (3, 6), "gamma": 0.1}
    history = trained(tiny_run(method="dynamic_pruning", **fields))[1]
    assert [row["lr"] for row in history] == pytest.approx([0.05] * 3 + [0.005] * 3 + [0.0005] * 2)


def test_a_loss_that_is_not_finite_is_found_in_its_epoch(tiny_run):
    run = tiny_run(method="dynamic_pruning", epochs=6, evaluate_every=6)
    whole = trained(run)[1][-1]["step"]
    train, _, _ = load_data(run)
    with randomness.isolated_randomness(3, torch.device("cpu")):
        model = network()
        method = lookup.find_method(run.method)(run, train, model, **run.options)
        objective, calls = method.objective, []

        def spoiled(model, batch):
            losses, loss = objective(model, batch)
            calls.append(epochs[-1])
            return losses, loss * (math.nan if len(calls) == whole else 1)

        epochs, start_epoch = [], method.start_epoch
        method.start_epoch = lambda epoch: (epochs.append(epoch), start_epoch(epoch))
        method.objective = spoiled
        with pytest.raises(DivergedError) as caught:
            loop.fit(run, model, method, lambda model: {})
    assert (caught.value.epoch, caught.value.step) == (5, whole - 1)
    assert (whole - 1) // 4 < 5  # passes are shorter than 4 batches


@pytest.mark.parametrize("method", ["active_bias", "dynamic_pruning"])
def test_losses_that_are_no_probabilities_are_the_loops_to_find(tiny_run, method):
    run = tiny_run(method=method)
    method = lookup.find_method(method)(run, load_data(run)[0], network(), **run.options)
    batch = next(iter(method.batches))
    losses = torch.full((len(batch.indices),), math.nan)
    losses[:3] = torch.tensor([-1e-6, math.inf, -math.inf])
    method.observe(batch.indices, losses)


@pytest.mark.parametrize("method", ["selective_backprop", "reducible_loss"])
def test_scoring_leaves_batch_norm_alone_and_follows_no_gradient(tiny_run, method):
    def with_batch_norm():
        layers = nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
        return nn.Sequential(*layers)

    readings = ("evaluation", "training") if method == "reducible_loss" else (None,)
    models = []
    for reading in readings:
        options = {"reading": reading} if reading else {}
        run = tiny_run(method=method, options=options, epochs=3)
        held_out = torch.zeros(60) if reading else None
        model, history, _ = trained(run, make=with_batch_norm, held_out=held_out)
        # one update of the statistics for each step, none for scoring
        assert model[2].num_batches_tracked == history[-1]["step"]
        models.append(model)
    assert len(models) == 1 or not same(*models)


def test_scoring_under_autocast_leaves_the_training_its_gradients(tiny_run):
    # autocast keeps weights that it cast without a graph: the loop would train nothing
    for method in ("selective_backprop", "reducible_loss"):
        run = tiny_run(method=method, epochs=1, precision="bfloat16")
        before = trained(tiny_run(method=method, epochs=1, precision="bfloat16", lr=1e-30),
                         held_out=torch.zeros(60) if "red" in method else None)[0]  # fmt: skip
        after = trained(run, held_out=torch.zeros(60) if "red" in method else None)[0]
        pairs = zip(before.parameters(), after.parameters(), strict=True)
        assert all(not torch.equal(a, b) for a, b in pairs)


def test_checkpoints_of_peers_hold_plain_values(tiny_run):
    for method in PEERS:
        states = []
        held_out = torch.zeros(60) if method == "reducible_loss" else None
        trained(tiny_run(method=method), held_out=held_out, checkpoints=states)
        assert len(states) == 1
        copied(states[0])


# --- wrong labels --------------------------------------------------------------------------------


def test_reducible_loss_avoids_wrong_labels_where_hard_samples_are_wrong(tmp_path):
    """30 % of the labels are wrong. Seen: 16 and 19 % of what reducible loss takes, 44 and 43 % of
    what trimming keeps. Mean test errors: plain 14 %, reducible loss 12 %, hard mini-batches 20 %,
    trimming 67 %."""
    store = RunStore(tmp_path)
    fields = {"lr": 0.1, "momentum": 0.9, "batch_size": 32, "train_size": 600, "device": "cpu"}
    counted = {"keep": ("sample_counts",)}
    small = {"small_network": "mlp", "small_epochs": 8}
    arms = {
        "plain": {"epochs": 10},
        "trimming": {"epochs": 10} | counted,
        "hard_batches": {"epochs": 10, "options": {"delta": 0.2}},
        "reducible_loss": {"epochs": 40, "options": {"share": 0.25} | small} | counted,
    }
    error, wrong_share = {}, {}
    for method, settings in arms.items():
        runs = [
            Run("digits", "mlp", method, label_noise=0.3, seed=seed, evaluate_every=40,
                **fields | settings)
            for seed in (0, 1)
        ]  # fmt: skip
        frame = run_missing(runs, store, use_committed=False)
        error[method] = frame["test_error"].mean()
        if "keep" in settings:
            shares = []
            for run in runs:
                counts = load_artefact(run, "sample_counts", store)["counts"].sum(0)
                given, _, _ = load_data(run)
                wrong = (training_set(run, given).labels != given.labels).numpy()
                assert wrong.mean() == pytest.approx(0.3, abs=0.01)
                shares.append(counts[wrong].sum() / counts.sum())
            wrong_share[method] = np.mean(shares)
    assert wrong_share["reducible_loss"] < 0.22
    assert wrong_share["trimming"] > 0.4
    assert error["trimming"] > error["plain"] + 0.2
    assert error["hard_batches"] > error["plain"] + 0.03
    assert error["reducible_loss"] < error["plain"] + 0.02


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "text"),
    [
        ("focal", {"gamma": -1.0}, "gamma = -1.0 is not at least 0"),
        ("random_share", {"share": 0.0}, r"share = 0.0 is not in \(0, 1\]"),
        ("random_share", {"share": 1.5}, r"share = 1.5 is not in \(0, 1\]"),
        ("dynamic_pruning", {"ratio": 1.0}, r"ratio must be in \[0, 1\); got 1.0"),
        ("dynamic_pruning", {"reading": "text"}, "reading must be 'paper' or 'code'"),
        ("selective_backprop", {"beta": 0.0}, "beta must be finite and > 0"),
        ("selective_backprop", {"history": 0}, "history must be at least 1"),
        ("reducible_loss", {"share": 1.0}, "share = 1.0 is not less than 1"),
        ("reducible_loss", {"share": 0.0}, "share = 0.0 is not more than 0"),
        (
            "reducible_loss",
            {"reading": "eval"},
            "unknown reading 'eval'; did you mean 'evaluation'",
        ),
        ("reducible_loss", {"small_network": "mlpp"}, "unknown network 'mlpp'; did you mean 'mlp'"),
        ("reducible_loss", {"small_epochs": -1}, "small_epochs = -1 is less than 0"),
    ],
)
def test_bad_options_are_refused_before_training(tiny_run, store, method, options, text):
    run = tiny_run(method=method, options=options)
    with pytest.raises(ValueError, match=text):
        run_missing([run], store)
    assert not store.path.exists()


def test_checkpoints_are_refused_where_the_number_of_updates_is_not_known(tiny_run, store):
    with pytest.raises(ParameterError, match="'dynamic_pruning' keeps no 'checkpoints:2': its num"):
        run_missing([tiny_run(method="dynamic_pruning", keep=("checkpoints:2",))], store)
    run_missing([tiny_run(method="random_share", keep=("checkpoints:2",))], store)


def test_balanced_batches_are_refused_by_who_chooses_them(tiny_run, store):
    for method in ("random_share", "dynamic_pruning", "reducible_loss"):
        with pytest.raises(ParameterError, match=f"'{method}' chooses its mini-batches itself"):
            run_missing([tiny_run(method=method, balanced=True)], store)
