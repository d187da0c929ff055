"""Mini-batch trimming against a sorted loop, its schedule, and its states."""

import copy
import io
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from hardtrain import TrimmedLoss, trim
from hardtrain.strategies import _checks


@pytest.fixture(autouse=True)
def _own_random_state():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def sorted_loop(losses: list[float], k: int) -> tuple[float, list[float]]:
    """Value and gradient of the mean of the k largest, one by one."""
    order = sorted(range(len(losses)), key=lambda i: losses[i], reverse=True)
    value, gradient = 0.0, [0.0] * len(losses)
    for i in order[:k]:
        value += losses[i] / k
        gradient[i] = 1 / k
    return value, gradient


def per_sample(logits, targets):
    return F.cross_entropy(logits, targets, reduction="none")


# trim


def test_trim_keeps_the_largest_losses():
    losses = torch.tensor([0.1, 2.0, 0.5, 1.0])
    assert trim(losses, 0.5).item() == 1.5
    assert trim(losses, 0.25).item() == 2.0
    assert trim(losses, 0.75).item() == pytest.approx(3.5 / 3)
    assert trim(losses, 1.0).shape == ()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14), (torch.bfloat16, 1e-2)]
)
def test_trim_matches_a_sorted_loop(dtype, tolerance):
    for size, keep in itertools.product(
        (1, 2, 5, 32, 100, 128), (0.01, 0.07, 0.2, 0.5, 0.6027, 0.99, 1)
    ):
        generator = torch.Generator().manual_seed(size)
        # distinct values also in bfloat16
        losses = (torch.randperm(size, generator=generator) / 8).to(dtype).requires_grad_()
        value, gradient = sorted_loop(losses.tolist(), max(1, round(keep * size)))
        loss = trim(losses, keep)
        loss.backward()
        assert loss.dtype == dtype
        assert loss.item() == pytest.approx(value, rel=tolerance)
        assert losses.grad.tolist() == pytest.approx(gradient, rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_trim_with_keep_one_is_the_mean(dtype):
    for size in (1, 3, 128):
        losses = torch.rand(size, dtype=dtype, generator=torch.Generator().manual_seed(0))
        ours, plain = losses.clone().requires_grad_(), losses.clone().requires_grad_()
        a, b = trim(ours, 1.0), plain.mean()
        a.backward()
        b.backward()
        assert torch.equal(a, b)
        assert torch.equal(ours.grad, plain.grad)


def test_trim_sends_no_gradient_to_dropped():
    losses = torch.tensor([3.0, 1.0, 4.0, 1.5, 5.0], requires_grad=True)
    trim(losses, 0.4).backward()
    assert losses.grad.tolist() == [0, 0, 0.5, 0, 0.5]


def test_trim_with_ties_keeps_exactly_k():
    losses = torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0, 1.0], requires_grad=True)
    loss = trim(losses, 0.5)
    loss.backward()
    assert loss.item() == pytest.approx(4 / 3)
    assert losses.grad[1].item() == pytest.approx(1 / 3)
    assert torch.count_nonzero(losses.grad).item() == 3
    assert losses.grad.sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("size", "keep", "k"),
    [
        (100, 0.07, 7),  # 7.000000000000001
        (100, 0.29, 29),  # 28.999999999999996
        (100, 0.001, 1),  # at least one
        (10, 0.05, 1),  # 0.5: half to even is 0, hence at least one
        (10, 0.15, 2),  # 1.5: half to even
        (10, 0.25, 2),  # 2.5: half to even
        (10, 0.16, 2),  # not the floor
        (10, 0.14, 1),  # not the ceiling
        (128, 1.0, 128),
        (128, 1 - 0.8 * 74 / 149, 77),  # the check values of the paper's protocol
        (128, 0.2, 26),
    ],
)
def test_trim_rounds_to_the_nearest_count(size, keep, k):
    losses = torch.arange(float(size), requires_grad=True)
    trim(losses, keep).backward()
    assert torch.count_nonzero(losses.grad).item() == k


def test_trim_lets_a_nan_through():
    assert trim(torch.tensor([1.0, float("nan"), 3.0, 0.0]), 0.25).isnan()


def test_trim_rejects_keep_outside_zero_one():
    for keep in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"keep must be in \(0, 1\]; got"):
            trim(torch.ones(4), keep)
    with pytest.raises(TypeError, match=r"keep must be a number, .* got '0.5'"):
        trim(torch.ones(4), "0.5")


def test_trim_rejects_wrong_losses():
    with pytest.raises(TypeError, match=r"losses must be a tensor of float.*; got torch\.int64"):
        trim(torch.arange(4), 0.5)
    for shape in [(), (0,), (2, 2)]:
        with pytest.raises(ValueError, match=r"losses must have shape \(B,\)"):
            trim(torch.ones(shape), 0.5)


# TrimmedLoss


def test_trimmed_loss_follows_the_papers_schedule():
    loss_function = TrimmedLoss(num_epochs=150)
    fractions = []
    for epoch in range(150):
        loss_function.set_epoch(epoch)
        fractions.append(loss_function.keep)
    assert fractions[0] == 1.0
    assert fractions[74] == pytest.approx(0.602685, abs=1e-6)
    assert fractions[149] == 0.2
    assert np.diff(fractions) == pytest.approx(-0.8 / 149)
    assert np.mean(fractions) == pytest.approx(0.6)
    assert [round(fractions[epoch] * 128) for epoch in (0, 74, 149)] == [128, 77, 26]


def test_trimmed_loss_is_trim_of_the_cross_entropy():
    logits, targets = torch.randn(10, 3), torch.randint(3, (10,))
    loss_function = TrimmedLoss(start=0.9, end=0.3, num_epochs=4)
    for epoch, keep in enumerate([0.9, 0.7, 0.5, 0.3]):
        loss_function.set_epoch(epoch)
        assert loss_function.keep == pytest.approx(keep)
        assert torch.equal(loss_function(logits, targets), trim(per_sample(logits, targets), keep))


def test_trimmed_loss_in_eval_mode_is_the_mean():
    logits, targets = torch.randn(10, 3), torch.randint(3, (10,))
    loss_function = TrimmedLoss(num_epochs=4).eval()
    torch.testing.assert_close(loss_function(logits, targets), F.cross_entropy(logits, targets))
    loss_function.set_epoch(3)
    assert torch.equal(loss_function(logits, targets), per_sample(logits, targets).mean())


def test_trimmed_loss_without_gradients_is_the_mean():
    # only the model is in eval mode while a loop validates
    logits, targets = torch.randn(10, 3), torch.randint(3, (10,))
    loss_function = TrimmedLoss(num_epochs=4)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(loss_function(logits, targets), per_sample(logits, targets).mean())
    loss_function.set_epoch(3)
    with torch.no_grad():
        assert torch.equal(loss_function(logits, targets), per_sample(logits, targets).mean())
    assert loss_function(logits, targets) > per_sample(logits, targets).mean()


CROSS_ENTROPIES = {
    "plain": {},
    "label smoothing": {"label_smoothing": 0.2},
    "class weights": {"weight": torch.tensor([0.5, 2.0, 1.0])},
    "ignored targets": {"ignore_index": 1},
    "ignored by default": {"targets": "-100"},
    "everything": {
        "weight": torch.tensor([0.5, 2.0, 1.0]),
        "ignore_index": -1,
        "label_smoothing": 0.1,
        "targets": "-1",
    },
    "soft targets": {"targets": "soft", "label_smoothing": 0.1},
    "soft targets, class weights": {"targets": "soft", "weight": torch.tensor([0.5, 2.0, 1.0])},
}


def cross_entropy_case(settings, num=20):
    settings = dict(settings)
    kind = settings.pop("targets", "")
    logits, targets = torch.randn(num, 3), torch.randint(3, (num,))
    if kind == "soft":
        targets = torch.randn(num, 3).softmax(1)
    elif kind:
        targets[::3] = int(kind)
    return logits, targets, settings


def slowly_trimmed(logits, targets, settings, keep):
    """The k hardest of those that are not ignored, over the sum of their classes' weights."""
    losses = F.cross_entropy(logits, targets, reduction="none", **settings).tolist()
    weight, ignored = settings.get("weight"), settings.get("ignore_index", -100)
    soft = targets.is_floating_point()
    counts = [i for i in range(len(losses)) if soft or targets[i].item() != ignored]
    counts.sort(key=lambda i: losses[i], reverse=True)
    kept = counts[: max(1, round(keep * len(counts)))]
    alike = soft or weight is None
    over = sum(1.0 if alike else weight[targets[i]].item() for i in kept)
    return sum(losses[i] for i in kept) / over, kept


@pytest.mark.parametrize("name", CROSS_ENTROPIES)
@pytest.mark.parametrize("on_device", [False, True])
def test_trimmed_loss_respects_what_cross_entropy_is_given(name, on_device, monkeypatch):
    if on_device:  # nobody looks at the targets
        monkeypatch.setattr(_checks, "on_host", lambda values: False)
    logits, targets, settings = cross_entropy_case(CROSS_ENTROPIES[name])
    criterion = nn.CrossEntropyLoss(reduction="none", **settings)
    loss_function = TrimmedLoss(criterion, start=1.0, end=0.3, num_epochs=3)
    whole = nn.CrossEntropyLoss(**settings)(logits, targets)
    torch.testing.assert_close(loss_function.eval()(logits, targets), whole)
    loss_function.train()
    for epoch, keep in enumerate((1.0, 0.65, 0.3)):
        loss_function.set_epoch(epoch)
        ours = logits.clone().requires_grad_()
        loss = loss_function(ours, targets)
        expected, kept = slowly_trimmed(logits, targets, settings, keep)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        loss.backward()
        touched = ours.grad.abs().sum(1).nonzero().squeeze(1).tolist()
        assert touched == sorted(kept)
        if epoch == 0:
            torch.testing.assert_close(loss, whole)


def test_trimmed_loss_without_criterion_leaves_out_ignored_targets():
    logits, targets, _ = cross_entropy_case({"targets": "-100"})
    loss_function = TrimmedLoss(num_epochs=1)
    torch.testing.assert_close(loss_function(logits, targets), F.cross_entropy(logits, targets))
    targets[:] = -100
    assert loss_function(logits, targets).isnan()  # as of cross-entropy's own mean
    assert F.cross_entropy(logits, targets).isnan()


@pytest.mark.parametrize("name", ["everything", "ignored by default", "soft targets"])
def test_trimmed_loss_compiled_respects_it_too(name):
    torch._dynamo.reset()
    logits, targets, settings = cross_entropy_case(CROSS_ENTROPIES[name])
    loss_function = TrimmedLoss(nn.CrossEntropyLoss(reduction="none", **settings), num_epochs=9)
    compiled = torch.compile(loss_function, backend=CompileCounter(), fullgraph=True)
    for epoch in (0, 4, 8):
        loss_function.set_epoch(epoch)
        ours = logits.clone().requires_grad_()
        torch.testing.assert_close(compiled(ours, targets), loss_function(ours, targets))


def test_trimmed_loss_wants_its_epoch():
    logits, targets = torch.randn(4, 3), torch.randint(3, (4,))
    with pytest.raises(RuntimeError, match="set_epoch"):
        TrimmedLoss(num_epochs=2)(logits, targets)
    single = TrimmedLoss(start=0.5, num_epochs=1)
    assert single.keep == 0.5
    assert torch.equal(single(logits, targets), trim(per_sample(logits, targets), 0.5))
    single.set_epoch(0)
    assert single.keep == 0.5


def test_trimmed_loss_takes_any_criterion_with_one_loss_per_sample():
    logits, targets = torch.randn(6), torch.rand(6)
    loss_function = TrimmedLoss(nn.MSELoss(reduction="none"), end=0.5, num_epochs=2)
    loss_function.set_epoch(1)
    expected = (logits - targets).square().sort().values[3:].mean()
    assert loss_function(logits, targets).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    "criterion", [nn.CrossEntropyLoss(), lambda a, b: a, lambda a, b: per_sample(a, b)[:, None]]
)
@pytest.mark.parametrize("training", [True, False])
def test_trimmed_loss_rejects_a_criterion_without_one_loss_per_sample(criterion, training):
    loss_function = TrimmedLoss(criterion, num_epochs=1).train(training)
    with pytest.raises(ValueError, match=r"criterion must give one loss per sample, shape \(4,\)"):
        loss_function(torch.randn(4, 3), torch.randint(3, (4,)))


def test_trimmed_loss_rejects_wrong_parameters():
    for name in ("start", "end"):
        with pytest.raises(ValueError, match=rf"{name} must be in \(0, 1\]; got 1.1"):
            TrimmedLoss(num_epochs=3, **{name: 1.1})
    with pytest.raises(ValueError, match="num_epochs must be at least 1; got 0"):
        TrimmedLoss(num_epochs=0)
    with pytest.raises(TypeError, match="criterion must be callable; got 'cross_entropy'"):
        TrimmedLoss("cross_entropy", num_epochs=3)
    loss_function = TrimmedLoss(num_epochs=3)
    for value in (-1, 3):
        with pytest.raises(ValueError, match=rf"epoch must be in 0\.\.2; got {value}"):
            loss_function.set_epoch(value)
    with pytest.raises(TypeError, match=r"epoch must be an integer; got 1.0"):
        loss_function.set_epoch(1.0)
    loss_function.set_epoch(np.int64(2))
    assert loss_function.keep == 0.2


def test_trimmed_loss_rejects_a_class_in_place_of_a_criterion():
    with pytest.raises(TypeError, match=r"an instance, as CrossEntropyLoss\(reduction='none'\)"):
        TrimmedLoss(nn.CrossEntropyLoss, num_epochs=1)


def test_trimmed_loss_state_dict_restores_the_epoch():
    logits, targets = torch.randn(10, 3), torch.randint(3, (10,))
    one = TrimmedLoss(num_epochs=10)
    one.set_epoch(7)
    file = io.BytesIO()
    torch.save(nn.ModuleDict({"loss": one}).state_dict(), file)
    file.seek(0)
    for assign in (False, True):
        other = TrimmedLoss(num_epochs=10)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        nn.ModuleDict({"loss": other}).load_state_dict(state, assign=assign)
        assert other.keep == one.keep
        assert torch.equal(other(logits, targets), one(logits, targets))
    other.load_state_dict(TrimmedLoss(num_epochs=10).state_dict())
    with pytest.raises(RuntimeError, match="set_epoch"):
        other(logits, targets)
    with pytest.raises(ValueError, match="epoch must be in"):
        TrimmedLoss(num_epochs=5).load_state_dict(one.state_dict())
    assert copy.deepcopy(one).half().keep == one.keep


def test_trimmed_loss_compiles_to_at_most_two_graphs():
    torch._dynamo.reset()
    counter = CompileCounter()
    loss_function = TrimmedLoss(num_epochs=30)
    compiled = torch.compile(loss_function, backend=counter, fullgraph=True)
    targets = torch.randint(3, (16,))
    for epoch in range(30):
        loss_function.set_epoch(epoch)
        ours = torch.randn(16, 3, requires_grad=True)
        plain = ours.detach().clone().requires_grad_()
        loss, expected = compiled(ours, targets), loss_function(plain, targets)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        loss.backward()
        expected.backward()
        torch.testing.assert_close(ours.grad, plain.grad)
    assert 1 <= counter.frame_count <= 2


def test_training_with_trimmed_loss_lowers_the_loss():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 8, generator=generator)
    targets = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    loss_function = TrimmedLoss(num_epochs=20)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    before = F.cross_entropy(model(inputs), targets).item()
    for epoch in range(20):
        loss_function.set_epoch(epoch)
        optimizer.zero_grad()
        loss_function(model(inputs), targets).backward()
        optimizer.step()
    assert F.cross_entropy(model(inputs), targets).item() < 0.6 * before


def test_a_loaded_first_epoch_counts_as_an_epoch():
    saved, loaded = TrimmedLoss(num_epochs=3), TrimmedLoss(num_epochs=3)
    saved.set_epoch(0)
    loaded.load_state_dict(saved.state_dict())
    assert loaded(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)).isfinite()
