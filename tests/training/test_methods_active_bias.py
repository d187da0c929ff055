"""Active Bias in the loop: every variant against a plain loop over lists, pauses, artefacts."""

import bisect
import dataclasses
import math

import numpy as np
import pytest
import torch
from helpers import copied, interrupt_after, same, small_set
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.torch_version import TorchVersion

from hardtrain import (
    ImageDataset,
    ParameterError,
    RunStore,
    build_network,
    errors,
    load_artefact,
    load_history,
    run_missing,
)
from hardtrain.data.batches import Transform
from hardtrain.data.samplers import BiasedBatchSampler, UniformBatchSampler
from hardtrain.runs.run_data import load_data, training_set
from hardtrain.runs.train import build
from hardtrain.strategies import _checks
from hardtrain.strategies.active_bias import difficulty, easiness, prediction_deviation
from hardtrain.training import loop, methods, pieces, randomness
from hardtrain.training.memory import SmoothedScores
from hardtrain.training.methods import ACTIVE_BIAS_VARIANTS

CPU = torch.device("cpu")
SAMPLING = ("SD", "ISD", "SE", "SPV", "STC")
WEIGHTING = ("WD", "WE", "WPV", "WTC")
KEEP = ("emphasis", "prediction_history")


def test_the_variants_are_those_of_the_paper():
    assert set(ACTIVE_BIAS_VARIANTS) == {"uniform", *SAMPLING, *WEIGHTING}


@pytest.fixture
def biased_run(tiny_run):
    """60 images in batches of 16, 16, 16 and 12; 8 epochs, of which 2 are burn-in."""

    def make(variant="WPV", smoothing=1.0, burn_in=0.1, **changes):
        options = {"variant": variant, "smoothing": smoothing, "burn_in": burn_in}
        fields = {"method": "active_bias", "options": options, "epochs": 8, "momentum": 0.5}
        return tiny_run(**fields | changes)

    return make


def trained(run, *, checkpoint=None, epochs=None):
    """Network, method, history, the states at the ends of epochs, and what each step did."""
    train, test, _ = load_data(run)
    train = training_set(run, train)
    steps, states = [], {}
    with randomness.isolated_randomness(3, CPU):
        model, method = build(run, train, test)
        objective = method.objective

        def noting(model, batch):
            losses, loss = objective(model, batch)
            steps.append((batch.indices.tolist(), losses.tolist(), loss.item()))
            return losses, loss

        method.objective = noting
        history = loop.fit(
            run,
            model,
            method,
            lambda model: {},
            checkpoint=checkpoint,
            save_checkpoint=lambda state: states.update({state["epoch"]: copied(state)}),
        )
    return model, method, history, states, steps


# --- every variant against a loop over lists -----------------------------------------------------


def score_of(probabilities, variant):
    """Of one sample's list."""
    n, mean = len(probabilities), np.mean(probabilities)
    if variant.endswith("PV"):
        variance = np.var(probabilities)
        return math.sqrt(variance + variance**2 / (n - 1)) if n >= 2 else 0.0
    if variant.endswith("TC"):
        return mean * (1 - mean)
    return 1 - mean if variant.endswith("D") else mean


def reference(run):
    """The algorithm as plainly as possible: steps, epsilon, lists and the sums of weights."""
    variant, smoothing, burn_in = (run.options[k] for k in ("variant", "smoothing", "burn_in"))
    train = training_set(run, load_data(run)[0])
    inputs = pieces.train_transform(run, train)(train.images)
    num, size = len(train), run.batch_size
    num_steps = num // size if run.drop_last else -(-num // size)
    scan, draws = (randomness.generator(run.seed, purpose) for purpose in ("order", "draws"))
    first_biased = 0 if variant == "uniform" else max(2, round(burn_in * run.epochs))
    lists, emphasis = [[] for _ in range(num)], np.zeros((4, num))
    steps, epsilon, unseen = [], None, 0
    with randomness.isolated_randomness(3, CPU):
        model = build_network("cnn_small", 3, 1, image_size=8)
        optimizer = torch.optim.SGD(model.parameters(), lr=run.lr, momentum=run.momentum)
        for epoch in range(run.epochs):
            probabilities, weights = [1 / num] * num, [1.0] * num
            if epoch >= first_biased and variant != "uniform":
                scores = [score_of(p, variant) if p else None for p in lists]
                seen = [s for s in scores if s is not None]
                if epsilon is None:
                    epsilon = smoothing * sum(seen) / len(seen)
                    unseen = num - len(seen)
                scores = [sum(seen) / len(seen) if s is None else s for s in scores]
                total = sum(s + epsilon for s in scores)
                if variant in WEIGHTING:
                    weights = [num * (s + epsilon) / total for s in scores]
                else:
                    probabilities = [(s + epsilon) / total for s in scores]
                if variant == "ISD":
                    weights = [1 / (num * p) for p in probabilities]
            if epoch < first_biased or variant in WEIGHTING:
                batches = torch.randperm(num, generator=scan).split(size)[:num_steps]
                batches = [batch.tolist() for batch in batches]
            else:
                cells = [math.ceil(p * 2**52) for p in probabilities]
                ends = np.cumsum(np.array(cells, dtype=object)).tolist()
                batches = []
                for start in range(0, num_steps * size, size):
                    count = min(size, num - start)
                    numbers = torch.rand(count, dtype=torch.float64, generator=draws).tolist()
                    batches.append([bisect.bisect_right(ends, u * ends[-1]) for u in numbers])
            for batch in batches:
                losses = cross_entropy(model(inputs[batch]), train.labels[batch], reduction="none")
                loss = sum(weights[i] * losses[j] for j, i in enumerate(batch)) / len(batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                steps.append((batch, losses.tolist(), loss.item()))
                for j, i in enumerate(batch):
                    lists[i].append(math.exp(-losses[j].item()))
                    emphasis[4 * epoch // run.epochs, i] += weights[i]
    return model, steps, epsilon, lists, emphasis, unseen


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        *((variant, {}) for variant in ACTIVE_BIAS_VARIANTS),
        *((variant, {"smoothing": 0.0, "burn_in": 0.0}) for variant in ("ISD", "WPV")),
        *(
            (variant, {"smoothing": 0.25, "burn_in": 0.5, "drop_last": True, "seed": 1})
            for variant in ("SPV", "ISD", "WTC")
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "default",
)
def test_active_bias_follows_a_loop_over_lists(biased_run, variant, changes):
    run = biased_run(variant, keep=KEEP, **changes)
    model, method, history, _, steps = trained(run)
    expected, wanted, epsilon, lists, emphasis, _ = reference(run)
    num_steps = 3 if run.drop_last else 4
    assert len(steps) == len(wanted) == 8 * num_steps
    for step, (found, right) in enumerate(zip(steps, wanted, strict=True)):
        assert found[0] == right[0], step
        assert found[1] == pytest.approx(right[1], rel=1e-3, abs=1e-6), step
        assert found[2] == pytest.approx(right[2], rel=1e-3, abs=1e-6), step
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    if variant == "uniform":
        assert method.state["scores"].epsilon is None
    else:
        assert method.state["scores"].epsilon.item() == pytest.approx(epsilon, rel=1e-5)
    # the losses of the history are those of the samples that were drawn, not weighted
    last = [loss for _, losses, _ in steps[-num_steps:] for loss in losses]
    assert history[-1]["train_loss"] == pytest.approx(np.mean(last), rel=1e-6)

    assert method.artefacts["emphasis"]()["emphasis"].numpy() == pytest.approx(
        emphasis, rel=1e-4, abs=1e-6
    )
    noted = method.artefacts["prediction_history"]()
    assert noted["count"].tolist() == [len(p) for p in lists]
    for i, probabilities in enumerate(lists):
        if probabilities:
            assert noted["mean"][i].item() == pytest.approx(np.mean(probabilities), rel=1e-4)
            assert noted["variance"][i].item() == pytest.approx(
                np.var(probabilities), rel=1e-3, abs=1e-7
            )


def test_samples_that_the_burn_in_never_saw_have_the_mean_score_of_the_others(biased_run):
    # drop_last leaves 12 of 60 out of each of two epochs; with other seeds others
    run = biased_run("WD", drop_last=True, burn_in=0.0, epochs=3)
    assert reference(run)[5] > 0
    steps = trained(run)[4]
    for found, right in zip(steps, reference(run)[1], strict=True):
        assert found[2] == pytest.approx(right[2], rel=1e-3)
    scores = SmoothedScores(small_set(num=4), difficulty, 0.5)
    scores.history.update(torch.tensor([0, 2]), torch.tensor([0.2, 0.6]))
    found, epsilon = scores.now()
    assert found.tolist() == pytest.approx([0.8, 0.6, 0.4, 0.6], rel=1e-6)
    assert epsilon.item() == pytest.approx(0.3, rel=1e-6)


def test_a_smoothing_that_is_not_relative_is_added_as_it_is(biased_run):
    scores = SmoothedScores(small_set(num=4), difficulty, 0.5, relative=False)
    scores.history.update(torch.tensor([0, 2]), torch.tensor([0.2, 0.6]))
    found, epsilon = scores.now()
    assert found.tolist() == pytest.approx([0.8, 0.6, 0.4, 0.6], rel=1e-6)
    assert epsilon.item() == 0.5
    options = {"variant": "WD", "smoothing": 1.0, "burn_in": 0.1}
    runs = [biased_run(options=options | {"relative": value}) for value in (False, True)]
    as_it_is, same = runs
    assert same.key == biased_run("WD").key != as_it_is.key
    found, relative = ([loss for *_, loss in trained(run)[4]] for run in runs)
    burnt_in = 4 * 2  # steps an epoch, epochs
    assert found[:burnt_in] == relative[:burnt_in]
    assert found[burnt_in] != pytest.approx(relative[burnt_in], rel=1e-6)


@pytest.mark.parametrize(("burn_in", "epochs", "scans"), [(0.0, 4, 2), (0.1, 8, 2), (0.5, 8, 4),
                                                          (0.3, 10, 3), (0.9, 3, 3)])  # fmt: skip
@pytest.mark.parametrize("variant", ["ISD", "WD"])
def test_the_burn_in_scans_for_its_part_of_the_epochs_and_at_least_two(
    biased_run, variant, burn_in, epochs, scans
):
    _, _, _, _, steps = trained(biased_run(variant, burn_in=burn_in, epochs=epochs))
    for epoch in range(epochs):
        part = steps[4 * epoch : 4 * epoch + 4]
        indices = sorted(i for batch, _, _ in part for i in batch)
        scanned = indices == list(range(60))
        plain = all(loss == pytest.approx(np.mean(losses)) for _, losses, loss in part)
        assert (scanned and plain) == (epoch < scans), epoch
        assert scanned == (epoch < scans or variant == "WD")


@pytest.mark.parametrize("variant", ["SPV", "ISD", "WE"])
def test_the_burn_in_is_plain_training_bit_for_bit(biased_run, variant):
    run = biased_run(variant, epochs=2, augment="crop+flip")
    plain = dataclasses.replace(run, method="plain", options={})
    model, _, history, _, _ = trained(run)
    expected, _, plain_history, _, _ = trained(plain)
    assert same(model, expected)
    assert history == plain_history
    longer = trained(dataclasses.replace(run, epochs=3))[2]
    assert longer[:2] == history
    assert longer[2] != trained(dataclasses.replace(plain, epochs=3))[2][2]


def test_uniform_draws_with_replacement_from_the_start(biased_run):
    _, method, _, _, steps = trained(biased_run("uniform", epochs=40, keep=("emphasis",)))
    for epoch in range(40):
        drawn = [i for batch, _, _ in steps[4 * epoch : 4 * epoch + 4] for i in batch]
        assert len(drawn) == 60
        assert len(set(drawn)) < 60  # 60 of 60 with replacement: 38 different ones on average
    assert all(loss == pytest.approx(np.mean(losses)) for _, losses, loss in steps)
    counts = method.artefacts["emphasis"]()["emphasis"].sum(dim=0)
    # 2,400 draws of 60: chi-square with 59 degrees of freedom, 0.9999 quantile 107
    assert ((counts - 40) ** 2 / 40).sum() < 107


def test_epsilon_is_found_once_at_the_end_of_the_burn_in(biased_run):
    for variant in ("SD", "WPV"):
        run = biased_run(variant, smoothing=0.7, burn_in=0.375)  # 3 of 8 epochs
        _, method, _, states, _ = trained(run)
        found = [states[epoch]["method"]["scores"]["epsilon"] for epoch in range(1, 8)]
        assert found[:3] == [None] * 3
        score = {"SD": difficulty, "WPV": prediction_deviation}[variant]
        ended = SmoothedScores(small_set(num=60), score, 0.7)
        ended.load_state_dict(states[3]["method"]["scores"])
        expected = 0.7 * score(ended.history).mean().item()
        assert expected > 0
        for epsilon in (*found[3:], method.state["scores"].epsilon):
            assert epsilon.item() == pytest.approx(expected, rel=1e-12)


# --- weights and probabilities -------------------------------------------------------------------


@pytest.mark.parametrize("variant", WEIGHTING)
def test_the_weights_of_a_pass_have_mean_one(biased_run, variant):
    _, method, _, _, _ = trained(biased_run(variant, keep=KEEP))
    emphasis = method.artefacts["emphasis"]()["emphasis"]
    assert emphasis.sum(dim=1).tolist() == pytest.approx([120] * 4, rel=1e-5)  # 2 epochs each
    assert (emphasis[0] == 2).all()  # burn-in
    assert emphasis[1:].std(dim=1).min() > 0.01


def test_more_smoothing_is_nearer_to_equal_weights(biased_run):
    spreads = []
    for smoothing in (0.0, 0.1, 1.0, 100.0):
        _, method, _, _, _ = trained(biased_run("WD", smoothing, keep=KEEP))
        spreads.append((method.artefacts["emphasis"]()["emphasis"][-1] / 2).std().item())
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[0] > 0.2
    assert 1e-4 < spreads[-1] < 0.01


def gradients(variant, biased_run, num_batches):
    """Gradients of the classifier's bias by the batches that a trained method draws, and that of
    the mean loss over the data set."""
    run = biased_run(variant, smoothing=0.2, lr=0.02)
    model, method, _, _, _ = trained(run)
    train, _, _ = load_data(run)
    method.start_epoch(7)  # the weights of the history as it is now
    found = []
    while len(found) < num_batches:
        for batch in method.batches:
            if len(batch.indices) == 16:
                model.zero_grad()
                method.objective(model, batch)[1].backward()
                found.append(model.classifier.bias.grad.clone())
    inputs = pieces.train_transform(run, train)(train.images)
    model.zero_grad()
    cross_entropy(model(inputs), train.labels).backward()
    return torch.stack(found), model.classifier.bias.grad


def test_the_expected_gradient_of_isd_is_that_of_plain_training(biased_run):
    def deviation(variant):
        """Of the mean gradient from the plain one, in standard errors."""
        found, expected = gradients(variant, biased_run, 400)
        return (found.mean(0) - expected) / (found.std(0) / len(found) ** 0.5)

    assert deviation("ISD").abs().max() < 4
    assert deviation("SD").abs().max() > 6  # a biased draw would be noticed


def test_the_weights_of_isd_undo_its_probabilities(biased_run):
    run = biased_run("ISD", smoothing=0.3)
    _, method, _, _, _ = trained(run)
    method.start_epoch(7)
    drawn = method.batches.batch_sampler.other.__self__
    for batch in method.batches:
        seen = []

        class Model:
            def __call__(self, inputs, seen=seen):
                seen.append(torch.zeros(len(inputs), 3, requires_grad=True))
                return seen[-1]

        losses, loss = method.objective(Model(), batch)
        (weighted,) = torch.autograd.grad(loss, losses)
        weights = weighted * len(batch.indices)
        expected = 1 / (60 * drawn.probabilities[batch.indices])
        assert weights.double().tolist() == pytest.approx(expected.tolist(), rel=1e-6)
        assert weights.std() > 0.01


def test_easy_and_difficult_samples_are_emphasised_as_the_names_say(biased_run):
    def correlation(variant):
        run = biased_run(variant, smoothing=0.1, keep=KEEP, epochs=12)
        _, method, _, _, _ = trained(run)
        emphasis = method.artefacts["emphasis"]()["emphasis"][2:].sum(dim=0)
        mean = method.artefacts["prediction_history"]()["mean"]
        return np.corrcoef(emphasis, mean)[0, 1]

    assert correlation("WD") < -0.8
    assert correlation("WE") > 0.8


# --- pauses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["uniform", "SPV", "ISD", "WE"])
def test_active_bias_goes_on_after_every_epoch_with_the_same_bits(biased_run, variant):
    run = biased_run(variant, epochs=6, burn_in=0.5, augment="crop+flip", keep=KEEP)
    model, method, history, states, steps = trained(run)
    assert sorted(states) == [1, 2, 3, 4, 5]  # in the burn-in, at its end, after it
    for epoch, state in states.items():
        resumed, again, resumed_history, _, rest = trained(run, checkpoint=state)
        assert same(resumed, model), epoch
        assert resumed_history == history
        assert rest == steps[4 * epoch :]
        for name, make in method.artefacts.items():
            for key, value in make().items():
                assert torch.equal(value.nan_to_num(), again.artefacts[name]()[key].nan_to_num())
        epsilons = [m.state["scores"].epsilon for m in (method, again)]
        assert epsilons[0] == epsilons[1]


def test_an_interrupted_run_of_the_store_goes_on_with_the_same_artefacts(biased_run, store):
    run = biased_run("SPV", epochs=6, keep=KEEP)
    whole = {name: load_artefact(run, name, store) for name in KEEP}
    history = load_history(run_missing([run], store), store)
    other = RunStore(store.path / "paused", checkpoint_seconds=0.0)
    interrupt_after(run, other, 4)
    assert load_history(run_missing([run], other), other).equals(history)
    for name in KEEP:
        resumed = load_artefact(run, name, other)
        assert all(np.array_equal(whole[name][key], resumed[key]) for key in resumed)


# --- artefacts, label noise ----------------------------------------------------------------------


def test_keeping_artefacts_does_not_change_the_training(biased_run):
    for variant in ("uniform", "SPV", "WTC"):
        assert same(trained(biased_run(variant))[0], trained(biased_run(variant, keep=KEEP))[0])


def test_the_history_of_uniform_draws_is_kept_where_it_is_asked_for(biased_run):
    run = biased_run("uniform", epochs=3)
    assert trained(run)[1].artefacts["prediction_history"]()["count"].sum() == 0
    noted = trained(dataclasses.replace(run, keep=KEEP))[1].artefacts["prediction_history"]()
    assert noted["count"].sum() == 180
    assert noted["mean"][noted["count"] > 0].isfinite().all()


def test_wrong_labels_look_difficult(biased_run, store):
    run = biased_run("WD", epochs=20, label_noise=0.2, keep=KEEP, momentum=0.9)
    train, _, _ = load_data(run)
    wrong = (training_set(run, train).labels != train.labels).numpy()
    assert wrong.sum() == 12
    mean = load_artefact(run, "prediction_history", store)["mean"]
    emphasis = load_artefact(run, "emphasis", store)["emphasis"][-1]
    assert mean[wrong].max() < mean[~wrong].mean()
    assert mean[wrong].mean() < mean[~wrong].mean() - 0.2
    assert emphasis[wrong].mean() > 1.2 * emphasis[~wrong].mean()


def test_weights_go_with_balanced_batches(biased_run):
    run = biased_run("WPV", balanced=True, batch_size=15)
    _, method, _, _, steps = trained(run)
    labels = load_data(run)[0].labels
    assert all(labels[batch].bincount().tolist() == [5, 5, 5] for batch, _, _ in steps)
    assert isinstance(method.batches.batch_sampler, UniformBatchSampler)
    plain = trained(biased_run("SPV"))[1].batches.batch_sampler
    assert isinstance(plain, BiasedBatchSampler)


# --- refusals, limits, the device ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"smoothing": -0.1}, "smoothing = -0.1 is not at least 0"),
        ({"burn_in": 1.0}, "burn_in = 1.0 is not less than 1"),
        ({"burn_in": -0.1}, "burn_in = -0.1 is not at least 0"),
        ({"variant": "WPB"}, "unknown variant 'WPB'; did you mean 'WPV'"),
        ({"variant": "wpv"}, "did you mean 'WPV'"),
        ({"variant": "Uniform"}, "did you mean 'uniform'"),
        ({"variant": "PV"}, "unknown variant 'PV'"),
        ({"variant": "IWD"}, "unknown variant 'IWD'"),
        ({"smooth": 1.0}, "did you mean 'smoothing'"),
    ],
)
def test_bad_options_are_refused_before_training(tiny_run, store, options, text):
    with pytest.raises(ParameterError) as caught:
        run_missing([tiny_run(method="active_bias", options=options)], store)
    assert text in str(caught.value)
    assert not store.path.exists()


@pytest.mark.parametrize("variant", ["uniform", "ISD", "WPV"])
def test_a_training_that_diverges_is_a_result(biased_run, store, variant):
    run = biased_run(variant, lr=1e30, evaluate_every=8, keep=KEEP)
    frame = run_missing([run], store)
    assert frame["status"][0] == "diverged"
    assert frame["diverged_epoch"][0] == 0


def test_a_training_whose_losses_are_no_numbers_is_left_to_the_loop(biased_run):
    # without checkpoints the loop looks at the end only: until then nothing else may stop it
    for variant in ("SE", "WTC", "SPV", "ISD"):
        run = biased_run(variant, lr=1e30, evaluate_every=8)
        train, test, _ = load_data(run)
        with randomness.isolated_randomness(3, CPU):
            model, method = build(run, train, test)
            with pytest.raises(errors.DivergedError, match=r"step [12] "):
                loop.fit(run, model, method, lambda model: {})


@pytest.mark.parametrize("score", [easiness, prediction_deviation])
def test_scores_that_are_all_zero_are_taken_as_equal(score):
    scores = SmoothedScores(small_set(num=3), score, 1.0)
    for _ in range(2):
        scores.history.update(torch.arange(3), torch.zeros(3))
    found, epsilon = scores.now()
    assert found.tolist() == [1, 1, 1]
    assert epsilon == 0
    scores.history.update(torch.tensor([0]), torch.tensor([1.0]))
    found, epsilon = scores.now()
    assert found[0] > 0
    assert found[1:].tolist() == [0, 0]
    assert epsilon == 0  # as it was found


def test_bfloat16_trains(biased_run, store):
    for variant in ("ISD", "WPV"):
        frame = run_missing([biased_run(variant, precision="bfloat16")], store)
        assert math.isfinite(frame["train_loss"][0])


@pytest.mark.parametrize("variant", ["uniform", "ISD", "WPV"])
def test_a_step_looks_at_no_value(biased_run, monkeypatch, looks, variant):
    monkeypatch.setattr(_checks, "on_host", lambda values: False)  # as on a GPU
    run = biased_run(variant, keep=KEEP)
    model, method = build(run, *load_data(run)[:2])
    for top in (0.5, 1.0):
        method.state["scores"].history.update(torch.arange(60), torch.linspace(0, top, 60))
    with looks() as during:
        method.start_epoch(7)
        for batch in method.batches:
            losses, _ = method.objective(model, batch)
            method.observe(batch.indices, losses.detach())
    assert during.waits == 0
    assert during.operations > 100


@pytest.mark.skipif(
    not torch.cuda.is_available() and torch.__version__ < TorchVersion("2.15"),
    reason="fake CUDA tensors abort the process without a GPU in torch 2.6; seen to work in 2.15",
)
@pytest.mark.parametrize("variant", ["uniform", "ISD", "SE", "SPV", "WTC"])  # every score
def test_nothing_waits_for_a_gpu(biased_run, monkeypatch, variant):
    # fake tensors hold no values: whatever would read one on the host raises
    run = biased_run(variant, keep=KEEP)
    monkeypatch.setattr(pieces, "train_transform", lambda *_: Transform((0.25,), (0.125,)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(60, 1, 8, 8, dtype=torch.uint8, device="cuda")
        labels = torch.empty(60, dtype=torch.int64, device="cuda")
        data = ImageDataset("fake", "train", images, labels, ("a", "b", "c"), "")
        with torch.device("cuda"):
            model = build_network("cnn_small", 3, 1)
        method = methods.active_bias(run, data, model, **run.options)
        for epoch in (0, 2, 7):  # burn-in, its end, after it
            method.start_epoch(epoch)
            for batch in method.batches:
                losses, loss = method.objective(model, batch)
                assert losses.device.type == loss.device.type == "cuda"
                method.observe(batch.indices, losses.detach())
