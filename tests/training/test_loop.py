"""The loop against a bare one, pauses, schedules, evaluation, divergence."""

import dataclasses
import math

import pytest
import torch
from helpers import copied, same
from torch import nn
from torch.nn.functional import cross_entropy

from hardtrain import DivergedError, ParameterError
from hardtrain.data.batches import Batch
from hardtrain.runs.run_data import load_data
from hardtrain.training import evaluation, lookup, loop, methods, pieces, randomness


class Network(nn.Module):
    """One hidden layer and dropout, whose draws a resumed run must repeat."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.hidden = nn.Linear(64, 12)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(12, 3)

    def features(self, inputs):
        return self.hidden(inputs.flatten(1)).relu()

    def forward(self, inputs):
        return self.head(self.dropout(self.features(inputs)))


def trained(run, *, model=None, pause_after=None, rewrite=copied, **changes):
    """Train on the tiny set; with ``pause_after``, stop there and go on in new objects."""
    train, test, _ = load_data(run)
    transform = pieces.train_transform(run, train)
    checkpoints = {}

    def once(checkpoint=None):
        with randomness.isolated_randomness(run.seed, torch.device("cpu")):
            network = Network(dropout=0.3) if model is None else model()
            method = lookup.find_method(run.method)(run, train, network, **run.options)
            for name, value in changes.items():
                setattr(method, name, value)
            history = loop.fit(
                run,
                network,
                method,
                lambda m: numbers(evaluation.evaluate(m, test, transform.without_augmentation())),
                checkpoint=checkpoint,
                save_checkpoint=lambda state: checkpoints.update({state["epoch"]: copied(state)}),
            )
        return network, history, method

    result = once()
    return result if pause_after is None else once(rewrite(checkpoints[pause_after]))


def numbers(found):
    return {"test_loss": found.loss, "test_error": found.error}


def test_fit_matches_a_bare_loop_bit_for_bit(tiny_run):
    run = tiny_run(epochs=3, optimizer="sgd", momentum=0.9, weight_decay=1e-3)
    network, history, _ = trained(run)
    train, _, _ = load_data(run)
    with randomness.isolated_randomness(run.seed, torch.device("cpu")):
        bare = Network(dropout=0.3)
        optimizer = torch.optim.SGD(bare.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        order = randomness.generator(run.seed, "order")
        inputs = pieces.train_transform(run, train)(train.images)
        for epoch in range(3):
            total = 0.0
            for chosen in torch.randperm(len(train), generator=order).split(16):
                losses = cross_entropy(bare(inputs[chosen]), train.labels[chosen], reduction="none")
                optimizer.zero_grad()
                losses.mean().backward()
                optimizer.step()
                total += losses.sum().item()
            assert history[epoch]["train_loss"] == pytest.approx(total / len(train), rel=1e-6)
    assert same(network, bare)


def test_fit_lowers_the_loss(tiny_run):
    _, history, _ = trained(tiny_run(epochs=8))
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]
    assert history[-1]["test_error"] < 0.3


def test_trimming_with_keep_one_is_plain_training_bit_for_bit(tiny_run):
    plain, _, _ = trained(tiny_run(epochs=3))
    for share in ("hardest", "random"):
        options = {"start": 1.0, "end": 1.0, "share": share}
        kept, _, _ = trained(tiny_run(epochs=3, method="trimming", options=options))
        assert same(plain, kept)


def test_gradient_noise_of_no_variance_is_plain_training_bit_for_bit(tiny_run):
    plain, _, _ = trained(tiny_run(epochs=3))
    silent, _, _ = trained(tiny_run(epochs=3, method="gradient_noise", options={"alpha": 0.0}))
    noisy, _, _ = trained(tiny_run(epochs=3, method="gradient_noise", options={"alpha": 1e-4}))
    assert same(plain, silent)
    assert not same(plain, noisy)


def test_gradient_noise_adds_its_own_draws_to_every_gradient(tiny_run):
    # one step of plain SGD: the weights differ from plain training's by the rate times the noise
    run = tiny_run(epochs=1, batch_size=60, method="gradient_noise", options={"alpha": 0.04})
    plain, _, _ = trained(tiny_run(epochs=1, batch_size=60))
    noisy, _, _ = trained(run)
    pairs = zip(plain.parameters(), noisy.parameters(), strict=True)
    noise = torch.cat([(a - b).flatten() for a, b in pairs]).detach() / run.lr
    assert noise.std().item() == pytest.approx(0.2, rel=0.08)  # 819 draws
    assert abs(noise.mean().item()) < 4 * 0.2 / math.sqrt(len(noise))


def test_trimming_follows_its_schedule_and_changes_the_training(tiny_run):
    plain, _, _ = trained(tiny_run(epochs=5))
    trimmed, history, _ = trained(tiny_run(epochs=5, method="trimming"))
    assert not same(plain, trimmed)
    assert [row["keep"] for row in history] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert history[-1]["objective"] > history[-1]["train_loss"]  # the mean of the hardest part


def test_a_random_share_is_as_large_and_follows_a_bare_loop(tiny_run):
    run = tiny_run(
        epochs=3, method="trimming", options={"share": "random"}, keep=("sample_counts",)
    )
    network, history, method = trained(run)
    assert [row["keep"] for row in history] == pytest.approx([1.0, 0.6, 0.2])
    train, _, _ = load_data(run)
    counts = torch.zeros(4, len(train), dtype=torch.int32)
    with randomness.isolated_randomness(run.seed, torch.device("cpu")):
        bare = Network(dropout=0.3)
        optimizer = torch.optim.SGD(bare.parameters(), lr=run.lr, momentum=run.momentum)
        order, draws = (randomness.generator(run.seed, name) for name in ("order", "share"))
        inputs = pieces.train_transform(run, train)(train.images)
        for epoch, keep in enumerate((1.0, 0.6, 0.2)):
            for chosen in torch.randperm(len(train), generator=order).split(16):
                losses = cross_entropy(bare(inputs[chosen]), train.labels[chosen], reduction="none")
                k = max(1, round(keep * len(chosen)))
                part = sorted(torch.randperm(len(chosen), generator=draws).tolist()[:k])
                counts[4 * epoch // 3, chosen[part]] += 1
                optimizer.zero_grad()
                (sum(losses[i] for i in part) / k).backward()
                optimizer.step()
    assert method.artefacts["sample_counts"]()["counts"].equal(counts)
    pairs = zip(network.parameters(), bare.parameters(), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_trimming_counts_the_samples_it_keeps(tiny_run):
    run = tiny_run(epochs=4, method="trimming", keep=("sample_counts",))
    _, history, method = trained(run)
    counts = method.artefacts["sample_counts"]()["counts"]
    found = method.artefacts["sample_counts"]()["losses"].sum(dim=1) / 60
    torch.testing.assert_close(found.tolist(), [row["train_loss"] for row in history])
    # batches of 16, 16, 16, 12; keep is 1, 0.7333, 0.4667, 0.2 by epoch
    assert counts.sum(dim=1).tolist() == [60, 3 * 12 + 9, 3 * 7 + 6, 3 * 3 + 2]
    assert counts[0].tolist() == [1] * 60


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "schedule": "cosine"},
        {"optimizer": "adam", "lr": 1e-3, "augment": "crop+flip", "schedule": "multistep",
         "milestones": (1, 3)},
        {"optimizer": "adamw", "lr": 1e-3, "warmup_epochs": 2, "evaluate_unit": "step",
         "evaluate_every": 3},
        {"method": "trimming", "keep": ("sample_counts",)},
        {"method": "trimming", "options": {"share": "random"}, "keep": ("sample_counts",)},
        {"method": "gradient_noise", "options": {"alpha": 0.01}, "optimizer": "adam"},
    ],
    ids=["sgd", "adam", "adamw", "trimming", "random share", "noise"],
)  # fmt: skip
@pytest.mark.parametrize("pause_after", [1, 3])
def test_fit_goes_on_after_a_pause_with_the_same_bits(tiny_run, changes, pause_after):
    run = tiny_run(epochs=4, **changes)
    network, history, method = trained(run)
    resumed, resumed_history, resumed_method = trained(run, pause_after=pause_after)
    assert same(network, resumed)
    assert history == resumed_history
    for name, make in method.artefacts.items():
        for key, value in make().items():
            assert torch.equal(value, resumed_method.artefacts[name]()[key])


def test_fit_goes_on_from_a_checkpoint_with_two_tensors_a_step(tiny_run):
    run = tiny_run(epochs=4, evaluate_every=3)
    network, history, _ = trained(run)

    def rewrite(state):  # as the first version wrote it
        assert len(state["trace"]["values"]) == 1  # one tensor for both epochs
        steps = torch.cat(state["trace"]["values"]).split(state["trace"]["sizes"])
        losses, objectives = [step[:-1] for step in steps], [step[-1] for step in steps]
        return state | {"trace": {"losses": losses, "objectives": objectives}}

    resumed, resumed_history, _ = trained(run, pause_after=2, rewrite=rewrite)
    assert same(network, resumed)
    assert history == resumed_history


def test_fit_leaves_the_global_generator_alone(tiny_run):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, _, _ = trained(tiny_run())
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    second, _, _ = trained(tiny_run())
    assert same(first, second)


def test_fit_depends_on_the_seed(tiny_run):
    assert not same(trained(tiny_run(seed=0))[0], trained(tiny_run(seed=1))[0])


def test_fit_names_the_first_step_with_a_loss_that_is_not_finite(tiny_run):
    seen = iter(range(100))

    def objective(model, batch):
        losses = pieces.sample_losses(model, batch)
        return losses, losses.mean() * (math.nan if next(seen) in (6, 7) else 1.0)

    with pytest.raises(DivergedError, match="epoch 1, step 6") as caught:
        trained(tiny_run(epochs=3), objective=objective)
    assert (caught.value.epoch, caught.value.step) == (1, 6)
    assert [row["epoch"] for row in caught.value.history] == [1.0]


def test_fit_ends_with_the_epoch_in_which_a_loss_is_not_finite(tiny_run):
    seen = iter(range(100))

    def objective(model, batch):
        losses = pieces.sample_losses(model, batch)
        return losses, losses.mean() * (math.nan if next(seen) == 1 else 1.0)

    with pytest.raises(DivergedError, match="epoch 0, step 1"):  # not evaluated before its end
        trained(tiny_run(epochs=3, evaluate_every=3), objective=objective)
    assert next(seen) == 4


def test_where_epochs_began_is_known_after_a_pause(tiny_run):
    run, places = tiny_run(), torch.device("cpu")
    trace, resumed = loop._Trace(run, places), loop._Trace(run, places)
    for step in (3, 5):  # passes of three and of two steps
        trace.end_epoch(step)
    resumed.load_state_dict(copied(trace.state_dict()))
    for step, epoch in ((2, 0), (3, 1), (4, 1), (5, 2)):
        with pytest.raises(DivergedError) as caught:
            resumed.require_finite(math.nan, step)
        assert (caught.value.epoch, caught.value.step) == (epoch, step)


def test_the_objective_of_an_epoch_is_the_mean_over_its_steps(tiny_run):
    given = []

    def objective(model, batch):
        losses = pieces.sample_losses(model, batch)
        given.append(losses.mean() * (1 + len(given)))
        return losses, given[-1]

    _, history, _ = trained(tiny_run(epochs=1), objective=objective)
    assert history[0]["objective"] == pytest.approx(sum(given).item() / 4, rel=1e-6)


def test_fit_finds_a_single_infinite_sample_loss(tiny_run):
    seen = iter(range(100))

    def objective(model, batch):
        losses = pieces.sample_losses(model, batch)
        broken = losses.clone()
        broken[3] = math.inf if next(seen) == 5 else 0.0
        return broken, losses.mean()

    with pytest.raises(DivergedError, match="step 5"):
        trained(tiny_run(epochs=3), objective=objective)


def test_fit_ends_when_the_weights_of_the_last_step_are_not_finite(tiny_run):
    class Broken(Network):
        def forward(self, inputs):
            logits = super().forward(inputs)
            return logits if self.training else logits * math.nan

    with pytest.raises(DivergedError, match="step 3"):
        trained(tiny_run(epochs=1), model=Broken)


def test_fit_refuses_an_objective_without_parameters(tiny_run):
    with pytest.raises(ParameterError, match="'plain' gave a loss that depends on no parameter"):
        trained(tiny_run(), objective=lambda model, batch: (torch.ones(2), torch.tensor(1.0)))


def test_fit_does_not_wait_for_the_device_at_every_step(tiny_run, looks):
    def waits(num_steps):
        batch = Batch(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]), torch.arange(4))
        method = loop.Method([batch] * num_steps, methods.plain(run, train, None).objective)
        with looks() as during:
            loop.fit(run, Network(), method, lambda model: {})
        return during.waits

    run = tiny_run(epochs=1)
    train, _, _ = load_data(run)
    assert waits(2) == waits(20) <= 5


def test_fit_evaluates_on_the_grid_of_steps(tiny_run):
    _, history, _ = trained(tiny_run(epochs=3, evaluate_unit="step", evaluate_every=5))
    assert [row["step"] for row in history] == [5, 10, 12]
    assert [row["epoch"] for row in history] == [1.25, 2.5, 3.0]


@pytest.mark.parametrize(
    ("every", "last", "steps"),
    [
        (5, 0, [5, 10, 12]),
        (5, 1, [4, 8, 12]),
        (5, 2, [4, 8, 10, 12]),
        (5, 9, [4, 5, 8, 10, 12]),
        (1, 3, [4, 8, 10, 11, 12]),
        (2, 2, [4, 8, 10, 12]),
        (20, 1, [4, 8, 12]),
    ],
)
def test_fit_evaluates_the_last_times_by_steps_and_the_epochs_ends(tiny_run, every, last, steps):
    run = tiny_run(epochs=3, evaluate_unit="step", evaluate_every=every)
    _, history, _ = trained(dataclasses.replace(run, evaluate_last=last))
    assert [row["step"] for row in history] == steps


def test_the_last_evaluations_have_the_bits_of_a_training_that_is_evaluated_always(tiny_run):
    run = tiny_run(epochs=5, evaluate_unit="step", evaluate_every=2, method="trimming")
    network, whole, _ = trained(run)
    again, short, _ = trained(dataclasses.replace(run, evaluate_last=3))
    assert same(network, again)
    assert [row["step"] for row in short] == [4, 8, 12, 16, 18, 20]
    assert short[-2:] == whole[-2:]  # the losses in the row before are of more steps
    scores = {row["step"]: (row["test_loss"], row["test_error"]) for row in whole}
    assert all(scores[row["step"]] == (row["test_loss"], row["test_error"]) for row in short)
    resumed, resumed_history, _ = trained(dataclasses.replace(run, evaluate_last=3), pause_after=3)
    assert same(network, resumed)
    assert resumed_history == short


def test_fit_removes_its_hooks(tiny_run):
    fired = []

    def hook(optimizer):
        return optimizer.register_step_pre_hook(lambda *_: fired.append(optimizer))

    trained(tiny_run(epochs=2), hooks=[hook])
    assert len(fired) == 8
    fired[0].step()
    assert len(fired) == 8


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1, 1, 1]),
        ({"schedule": "step", "step_epochs": 2, "gamma": 0.5}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
        ({"schedule": "multistep", "milestones": (1, 4)}, [1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        ({"schedule": "cosine"}, [(1 + math.cos(math.pi * e / 6)) / 2 for e in range(6)]),
    ],
)  # fmt: skip
def test_learning_rate_follows_the_schedule(tiny_run, fields, expected):
    run = tiny_run(epochs=6, lr=1.0, **fields)
    assert [loop.learning_rate(run, 10 * e, 10) for e in range(6)] == pytest.approx(expected)


def test_learning_rate_warms_up_linearly_by_step(tiny_run):
    run = tiny_run(epochs=4, lr=0.8, warmup_epochs=2, schedule="cosine")
    rates = [loop.learning_rate(run, step, 2) for step in range(8)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4:] == pytest.approx([0.8 * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)])


def test_learning_rate_falls_linearly_by_step_and_stays(tiny_run):
    # from 0.8 to 0.2 over the 8 steps of 2 epochs
    run = tiny_run(epochs=4, lr=0.8, schedule="linear", step_epochs=2, gamma=0.25)
    rates = [loop.learning_rate(run, step, 4) for step in range(16)]
    assert rates[:9] == pytest.approx([0.8, 0.725, 0.65, 0.575, 0.5, 0.425, 0.35, 0.275, 0.2])
    assert rates[8:] == pytest.approx([0.2] * 8)
    assert rates[0] == 0.8
    # a part of the way, if training ends before
    short = tiny_run(epochs=1, lr=0.8, schedule="linear", step_epochs=2, gamma=0.25)
    assert [loop.learning_rate(short, step, 4) for step in range(4)] == rates[:4]
    # and upwards
    rising = tiny_run(epochs=2, lr=0.1, schedule="linear", step_epochs=1, gamma=3.0)
    found = [loop.learning_rate(rising, step, 2) for step in range(4)]
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.3])


def test_linear_decay_counts_from_the_start_of_training_with_a_warm_up_too(tiny_run):
    run = tiny_run(epochs=4, lr=0.8, schedule="linear", step_epochs=2, gamma=0.25, warmup_epochs=1)
    rates = [loop.learning_rate(run, step, 4) for step in range(16)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4:9] == pytest.approx([0.5, 0.425, 0.35, 0.275, 0.2])
    assert rates[9:] == pytest.approx([0.2] * 7)


def test_a_training_has_the_rates_of_its_linear_schedule(tiny_run):
    run = tiny_run(epochs=3, schedule="linear", step_epochs=2, gamma=0.1, evaluate_unit="step")
    _, history, _ = trained(run)
    rates = [loop.learning_rate(run, step, 4) for step in range(12)]
    assert [row["lr"] for row in history] == rates
    assert len(set(rates)) == 9


def test_make_optimizer_takes_the_runs_settings(tiny_run):
    model = Network()
    sgd = loop.make_optimizer(tiny_run(momentum=0.9, nesterov=True, weight_decay=0.1), model)
    settings = sgd.param_groups[0]
    assert (settings["momentum"], settings["nesterov"], settings["weight_decay"]) == (
        0.9,
        True,
        0.1,
    )
    for name, kind in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        made = loop.make_optimizer(tiny_run(optimizer=name, weight_decay=0.2), model)
        assert type(made) is kind
        assert made.param_groups[0]["weight_decay"] == 0.2


def test_observe_gets_the_losses_without_their_graph(tiny_run):
    seen = []
    trained(tiny_run(), observe=lambda indices, losses: seen.append(losses.requires_grad))
    assert set(seen) == {False}
