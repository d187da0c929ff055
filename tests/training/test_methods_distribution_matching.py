"""Distribution matching in the loop: one step against a slow reference, S2, pauses, the log."""

import copy
import math

import numpy as np
import pytest
import torch
from helpers import copied, same
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.torch_version import TorchVersion

from hardtrain import (
    ParameterError,
    build_network,
    class_conditional_mmd,
    load_history,
    mmd,
    run_missing,
)
from hardtrain.data.batches import Transform
from hardtrain.networks import use_ghost_batch_norm
from hardtrain.runs.run_data import load_data
from hardtrain.runs.train import build
from hardtrain.strategies import distribution_matching
from hardtrain.training import evaluation, loop, methods, pieces, randomness

CPU = torch.device("cpu")


@pytest.fixture
def matching_run(tiny_run):
    """60 images in batches of 16, 16, 16 and 12, and a network with batch-norm."""

    def make(options=None, **changes):
        fields = {"method": "distribution_matching", "network": "cnn_small_bn", "momentum": 0.9}
        return tiny_run(**fields | {"options": options or {}} | changes)

    return make


def made(run):
    """The run's network and method, not trained."""
    train, test, _ = load_data(run)
    with randomness.isolated_randomness(3, CPU):
        return build(run, train, test)


def trained(run, *, checkpoint=None, change=lambda model, method: None):
    """Network, history and the states at the ends of epochs, from the loop itself."""
    train, test, _ = load_data(run)
    transform = pieces.train_transform(run, train).without_augmentation()
    states = {}

    def evaluate(model):
        found = evaluation.evaluate(model, test, transform)
        return {"test_loss": found.loss, "test_error": found.error}

    with randomness.isolated_randomness(3, CPU):
        model, method = build(run, train, test)
        change(model, method)
        history = loop.fit(
            run,
            model,
            method,
            evaluate,
            checkpoint=checkpoint,
            save_checkpoint=lambda state: states.update({state["epoch"]: copied(state)}),
        )
    return model, history, states


# --- the limit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{}, {"balanced": True}, {"augment": "crop+flip", "drop_last": True, "optimizer": "adam"}],
    ids=["uniform", "balanced", "augmented"],
)
@pytest.mark.parametrize("by_class", [True, False])
def test_weight_zero_is_plain_training_bit_for_bit(matching_run, changes, by_class):
    changes = {"epochs": 3, **changes}
    plain, history, _ = trained(matching_run(method="plain", **changes))
    options = {"weight": 0.0, "by_class": by_class}
    model, found, _ = trained(matching_run(options, **changes))
    assert same(model, plain)  # batch-norm's running statistics, too: no S2 was seen
    assert found == history
    weighted, other, _ = trained(matching_run({"by_class": by_class}, **changes))
    assert not same(weighted, plain)
    assert other != history


# --- one step against a slow reference -----------------------------------------------------------


def slow_mmd(x, y, scales, diagonal):
    """The root of MMD², pair by pair in float64; the gradient goes the ordinary way."""
    n, m = len(x), len(y)
    if n == 0 or m == 0:
        return torch.zeros((), dtype=torch.float64)
    pooled = [*x, *y]
    squares = {
        (i, j): ((pooled[i] - pooled[j]) ** 2).sum() for i in range(n + m) for j in range(n + m)
    }
    for_median = sorted(d.item() for (i, j), d in squares.items() if diagonal or i < j)
    sigma = for_median[(len(for_median) - 1) // 2]
    kernel = {
        pair: sum(torch.exp(-d / (s * sigma)) for s in scales) / len(scales)
        for pair, d in squares.items()
    }
    weight = [1 / n] * n + [-1 / m] * m
    return sum(weight[i] * weight[j] * k for (i, j), k in kernel.items()).sqrt()


def slow_distance(x, x_labels, y, y_labels, by_class, scales, diagonal):
    if not by_class:
        return slow_mmd(x, y, scales, diagonal)
    found = [slow_mmd(x[x_labels == k], y[y_labels == k], scales, diagonal) for k in range(3)]
    return sum(found) / 3


def both_batches(run):
    """The first S1 and S2, by the generators' names."""
    train, _, _ = load_data(run)
    inputs = pieces.train_transform(run, train)(train.images)
    batches = []
    for purpose in ("order", "second order"):
        drawn = randomness.generator(run.seed, purpose)
        if run.balanced:
            labels = train.labels
            members = [(labels == k).nonzero().flatten() for k in range(3)]
            mixed = [m[torch.randperm(20, generator=drawn)] for m in members]
            order = torch.stack(mixed, dim=1).flatten()
        else:
            order = torch.randperm(60, generator=drawn)
        chosen = order[: run.batch_size]
        batches.append((inputs[chosen], train.labels[chosen], chosen))
    return batches


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"by_class": False},
        {"by_class": True},
        {"by_class": False, "stop_gradient": True, "weight": 2.0},
        {"by_class": True, "stop_gradient": True},
        {"by_class": False, "reading": "code", "num_scales": 1},
        {"by_class": True, "reading": "code", "weight": 0.3},
        {"by_class": True, "num_scales": 1},
        {"by_class": False, "num_scales": 3},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
def test_one_step_has_the_objective_and_the_gradient_of_the_reference(
    matching_run, options, balanced
):
    run = matching_run(options, balanced=balanced, batch_size=15)
    model, method = made(run)
    reference = copy.deepcopy(model)
    (inputs, labels, chosen), (other_inputs, other_labels, _) = both_batches(run)

    batch = next(iter(method.batches))
    losses, loss = method.objective(model, batch)
    loss.backward()

    x = reference.features(inputs)
    y = reference.features(other_inputs)
    if options.get("stop_gradient"):
        y = y.detach()
    cross = torch.stack([
        cross_entropy(logits[None], label[None])
        for logits, label in zip(reference.classifier(x), labels, strict=True)
    ])  # fmt: skip
    scales = [2**i for i in range(options.get("num_scales", 5))]
    sides = x.double(), labels, y.double(), other_labels
    diagonal = options.get("reading") == "code"
    distance = slow_distance(*sides, options["by_class"], scales, diagonal)
    expected = cross.mean() + options.get("weight", 0.8) * distance
    expected.backward()

    assert torch.equal(batch.indices, chosen)
    torch.testing.assert_close(losses, cross)
    assert losses.shape == (15,)
    assert distance > 0.01
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, a), b in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6, msg=name)
    # both passes, in this order, moved batch-norm's statistics
    assert model.body[1].num_batches_tracked == 2
    for a, b in zip(model.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_stop_gradient_and_the_reading_change_the_training(matching_run):
    options = [{}, {"stop_gradient": True}, {"reading": "code"}, {"num_scales": 1},
               {"by_class": False}, {"weight": 0.2}]  # fmt: skip
    models = [trained(matching_run(o))[0] for o in options]
    for i, a in enumerate(models):
        assert all(not same(a, b) for b in models[:i])


def test_stop_gradient_sends_nothing_through_the_second_batch(matching_run):
    for stop in (False, True):
        model, method = made(matching_run({"stop_gradient": stop}))
        features, seen = model.features, []

        def watched(inputs, features=features, seen=seen):
            seen.append(features(inputs))
            return seen[-1]

        model.features = watched
        method.objective(model, next(iter(method.batches)))
        assert [found.requires_grad for found in seen] == [True, not stop]
        assert model.training


def test_the_joint_distance_never_looks_at_the_labels_of_s2(matching_run, monkeypatch):
    """And the cross-entropy has no sample of it, or its labels would matter."""
    uniform_batches = pieces.uniform_batches

    def mislabelled(run, data, *, prefix=""):
        batches, state = uniform_batches(run, data, prefix=prefix)
        if prefix:
            wrong = (data.labels + 1) % 3
            batches.dataset = type(data)(
                data.name, data.split, data.images, wrong, data.class_names, data.fingerprint
            )
        return batches, state

    runs = [matching_run({"by_class": by_class}) for by_class in (False, True)]
    right = [trained(run)[:2] for run in runs]
    monkeypatch.setattr(methods, "uniform_batches", mislabelled)
    wrong = [trained(run)[:2] for run in runs]
    assert same(right[0][0], wrong[0][0])
    assert right[0][1] == wrong[0][1]
    assert not same(right[1][0], wrong[1][0])


# --- the second batch ----------------------------------------------------------------------------


def watched_batches(run):
    """The positions of S1 and of S2, step by step, found again by their images."""
    train, _, _ = load_data(run)
    inputs = pieces.train_transform(run, train).without_augmentation()(train.images)
    where = {image.numpy().tobytes(): i for i, image in enumerate(inputs)}
    calls = []

    def change(model, method):
        features = model.features

        def noting(inputs):
            if model.training:
                calls.append([where[image.numpy().tobytes()] for image in inputs])
            return features(inputs)

        model.features = noting

    trained(run, change=change)
    return calls[0::2], calls[1::2]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("balanced", [False, True])
def test_each_epoch_s2_takes_every_sample_once_in_batches_as_large_as_s1(
    matching_run, balanced, drop_last
):
    run = matching_run(epochs=3, balanced=balanced, drop_last=drop_last)
    first, second = watched_batches(run)
    plain, _ = watched_batches_of_plain(run)
    assert first == plain
    sizes = [16, 16, 16] + ([] if drop_last else [12])
    for side in (first, second):
        assert [len(batch) for batch in side] == 3 * sizes
        for epoch in range(3):
            part = side[epoch * len(sizes) : (epoch + 1) * len(sizes)]
            taken = [i for batch in part for i in batch]
            assert len(set(taken)) == len(taken) == sum(sizes)
    assert all(a != b for a, b in zip(first, second, strict=True))
    if balanced:
        labels = load_data(run)[0].labels
        for batch in second:
            counts = labels[batch].bincount(minlength=3)
            assert counts.max() - counts.min() <= 1


def watched_batches_of_plain(run):
    train, _, _ = load_data(run)
    batches, state = pieces.uniform_batches(run, train)
    return [batch.indices.tolist() for _ in range(3) for batch in batches], state


@pytest.mark.parametrize("balanced", [False, True])
def test_s2_is_independent_of_s1(matching_run, balanced):
    # the overlap of two batches of 15 of 60: hypergeometric, mean 3.75, variance 2.145; balanced,
    # three times of two fives of 20: mean 3 * 1.25, variance 3 * 0.7401
    overlaps = []
    for seed in range(300):
        run = matching_run(seed=seed, balanced=balanced, batch_size=15)
        train, _, _ = load_data(run)
        both = [
            next(iter(pieces.uniform_batches(run, train, prefix=prefix)[0].batch_sampler))
            for prefix in ("", "second ")
        ]
        overlaps.append(len(set(both[0].tolist()) & set(both[1].tolist())))
    variance = 3 * 0.7401 if balanced else 2.145
    assert np.mean(overlaps) == pytest.approx(3.75, abs=4 * math.sqrt(variance / 300))
    assert np.var(overlaps) == pytest.approx(variance, rel=0.35)


def test_both_streams_are_part_of_the_state(matching_run):
    _, method = made(matching_run())
    assert set(method.state) == {"order", "augmentation", "second order", "second augmentation"}
    assert len({item.initial_seed() for item in method.state.values()}) == 4


# --- pauses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": "crop+flip"},
        {"options": {"by_class": False, "reading": "code"}, "optimizer": "adam", "lr": 1e-3},
        {"options": {"stop_gradient": True, "log_distance": True}, "balanced": True,
         "drop_last": True},
        {"options": {"weight": 0.0}, "augment": "flip"},
    ],
    ids=["augmented", "joint", "balanced", "zero"],
)  # fmt: skip
def test_matching_goes_on_after_a_pause_with_the_same_bits(matching_run, changes):
    run = matching_run(epochs=4, **changes)
    model, history, states = trained(run)
    assert sorted(states) == [1, 2, 3]
    for state in states.values():
        resumed, resumed_history, _ = trained(run, checkpoint=state)
        assert same(resumed, model)
        assert resumed_history == history


# --- the log -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.8])
def test_log_distance_leaves_the_training_as_it_is_bit_for_bit(matching_run, weight):
    plain, history, _ = trained(matching_run({"weight": weight}, epochs=3, augment="flip"))
    options = {"weight": weight, "log_distance": True}
    logged, found, _ = trained(matching_run(options, epochs=3, augment="flip"))
    assert same(logged, plain)
    for row, with_log in zip(history, found, strict=True):
        assert with_log.keys() - row.keys() == {"mmd", "class_mmd"}
        assert {name: with_log[name] for name in row} == row


@pytest.mark.parametrize("batch_size", [15, 60])
def test_the_logged_distances_are_means_over_fixed_pairs_in_evaluation_mode(
    matching_run, batch_size
):
    # neither the kernels nor the reading of the training change what is logged
    options = {"log_distance": True, "reading": "code", "num_scales": 1, "stop_gradient": True}
    run = matching_run(options, batch_size=batch_size, augment="crop+flip")
    model, history, _ = trained(run)
    model.eval()
    train, _, _ = load_data(run)
    inputs = pieces.train_transform(run, train).without_augmentation()(train.images)
    drawn = randomness.generator(run.seed, "logged pairs")
    size, joint, by_class = min(batch_size, 30), [], []
    for _ in range(4):
        chosen = torch.randperm(60, generator=drawn)[: 2 * size]
        with torch.no_grad():
            x, y = (model.features(inputs[part]).double() for part in chosen.split(size))
        x_labels, y_labels = (train.labels[part] for part in chosen.split(size))
        sides = x, x_labels, y, y_labels
        joint.append(slow_distance(*sides, False, (1, 2, 4, 8, 16), False).item())
        by_class.append(slow_distance(*sides, True, (1, 2, 4, 8, 16), False).item())
    assert history[-1]["mmd"] == pytest.approx(np.mean(joint), rel=1e-4)
    assert history[-1]["class_mmd"] == pytest.approx(np.mean(by_class), rel=1e-4)
    assert len(history) == 2


def test_the_log_restores_the_mode_of_the_network(matching_run):
    model, method = made(matching_run({"log_distance": True}))
    before = copy.deepcopy(model.state_dict())
    for mode in (True, False):
        model.train(mode)
        first = method.log()
        assert model.training is mode
        assert method.log() == first  # the same pairs each time
    assert all(map(torch.equal, before.values(), model.state_dict().values()))


def test_training_with_matching_learns_and_its_log_goes_into_the_history(matching_run, store):
    options = {"log_distance": True}
    runs = [matching_run(options, epochs=12, momentum=0.0, seed=seed) for seed in range(3)]
    frame = run_missing(runs, store)
    history = load_history(frame, store)
    first, last = (history.groupby("key")["train_loss"].nth(i).mean() for i in (0, -1))
    assert last < 0.5 * first
    assert frame["test_error"].mean() < 0.3  # guessing: 0.65
    assert history[["mmd", "class_mmd"]].to_numpy().min() > 0


# --- precision, ghost batches, the device --------------------------------------------------------


def test_the_distance_is_computed_in_float32_under_autocast(matching_run, store):
    run = matching_run(precision="bfloat16")
    model, method = made(run)
    with torch.autocast("cpu", torch.bfloat16):
        losses, loss = method.objective(model, next(iter(method.batches)))
    assert losses.dtype == loss.dtype == torch.float32
    assert math.isfinite(run_missing([run], store)["train_loss"][0])


def test_the_second_batch_is_cut_into_ghost_batches_too(matching_run):
    run = matching_run()
    model, method = made(run)
    use_ghost_batch_norm(model, 4)
    method.objective(model, next(iter(method.batches)))
    assert model.body[1].norm.num_batches_tracked == 2 * 4


@pytest.mark.skipif(
    not torch.cuda.is_available() and torch.__version__ < TorchVersion("2.15"),
    reason="fake CUDA tensors abort the process without a GPU in torch 2.6; seen to work in 2.15",
)
@pytest.mark.parametrize(
    "options",
    [{}, {"by_class": False}, {"reading": "code"}, {"by_class": False, "reading": "code"},
     {"stop_gradient": True}, {"weight": 0.0}],
)  # fmt: skip
def test_a_step_on_a_gpu_never_waits_for_it(matching_run, monkeypatch, options):
    # fake tensors hold no values: whatever would read one on the host raises
    pairs = distribution_matching._pairs.__wrapped__  # fake ones are not to be kept
    monkeypatch.setattr(distribution_matching, "_pairs", pairs)
    run = matching_run(options)
    train, _, _ = load_data(run)
    monkeypatch.setattr(pieces, "train_transform", lambda *_: Transform((0.25,), (0.125,)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(60, 1, 8, 8, dtype=torch.uint8, device="cuda")
        labels = torch.empty(60, dtype=torch.int64, device="cuda")
        data = type(train)("fake", "train", images, labels, train.class_names, "")
        with torch.device("cuda"):
            model = build_network("cnn_small_bn", 3, 1)
        method = methods.distribution_matching(run, data, model, **run.options)
        losses, loss = method.objective(model, next(iter(method.batches)))
        assert loss.requires_grad
        assert losses.device.type == loss.device.type == "cuda"


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"weight": -0.1}, "weight = -0.1 is not at least 0"),
        ({"num_scales": 0}, "num_scales = 0 is less than 1"),
        ({"num_scales": 17}, "num_scales = 17 is more than 16"),
        ({"reading": "cod"}, "unknown reading 'cod'; did you mean 'code'"),
        ({"by_class": 1}, "by_class = 1 is int, not bool"),
        ({"weigth": 0.5}, "did you mean 'weight'"),
    ],
)
def test_bad_options_are_refused_before_training(matching_run, store, options, text):
    with pytest.raises(ParameterError) as caught:
        run_missing([matching_run(options)], store)
    assert text in str(caught.value)
    assert not store.path.exists()


@pytest.mark.parametrize("by_class", [True, False])
@pytest.mark.parametrize("reading", ["paper", "code"])
def test_a_training_that_diverges_is_a_result(matching_run, store, by_class, reading):
    options = {"by_class": by_class, "reading": reading, "log_distance": True}
    run = matching_run(options, network="cnn_small", lr=1e30, epochs=4)
    frame = run_missing([run], store)
    assert frame["status"][0] == "diverged"
    assert frame["diverged_epoch"][0] == 0


def test_the_defaults_are_those_of_itdm_c(matching_run):
    assert dict(matching_run().options) == {
        "weight": 0.8,
        "by_class": True,
        "num_scales": 5,
        "reading": "paper",
        "stop_gradient": False,
        "log_distance": False,
    }
    x, y = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(8) % 3
    assert slow_mmd(x, y, (1, 2, 4, 8, 16), False).item() == pytest.approx(mmd(x, y).item())
    assert slow_distance(x, labels, y, labels, True, (1, 2, 4, 8, 16), False).item() == (
        pytest.approx(class_conditional_mmd(x, labels, y, labels, 3).item())
    )
