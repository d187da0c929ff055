"""Mini-batch trimming against slow, obvious references."""

import copy
import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from hardtrain import TrimmedLoss, trim, trimmed_backward


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
@pytest.mark.parametrize("size", [1, 2, 5, 32, 100, 128])
@pytest.mark.parametrize("keep", [0.01, 0.07, 0.2, 0.5, 0.6027, 0.99, 1])
def test_trim_matches_a_sorted_loop(dtype, tolerance, size, keep):
    generator = torch.Generator().manual_seed(size)
    # distinct values also in bfloat16
    losses = (torch.randperm(size, generator=generator) / 8).to(dtype).requires_grad_()
    k = max(1, round(keep * size))
    value, gradient = sorted_loop(losses.tolist(), k)
    loss = trim(losses, keep)
    loss.backward()
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(value, rel=tolerance)
    assert losses.grad.tolist() == pytest.approx(gradient, rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [1, 3, 128])
def test_trim_with_keep_one_is_the_mean(dtype, size):
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


@pytest.mark.parametrize("keep", [0, 0.0, -0.5, 1.5, float("nan"), float("inf"), -float("inf")])
def test_trim_rejects_keep_outside_zero_one(keep):
    with pytest.raises(ValueError, match=r"keep must be a finite number in \(0, 1\]; got"):
        trim(torch.ones(4), keep)


@pytest.mark.parametrize("keep", [True, "0.5", None, torch.tensor(0.5), [0.5]])
def test_trim_rejects_keep_that_is_no_number(keep):
    with pytest.raises(TypeError, match="keep must be a number"):
        trim(torch.ones(4), keep)


def test_trim_accepts_other_real_numbers():
    assert trim(torch.tensor([1.0, 3.0]), np.float32(0.5)).item() == 3
    assert trim(torch.tensor([1.0, 3.0]), 1).item() == 2


def test_trim_rejects_wrong_losses():
    with pytest.raises(TypeError, match=r"losses must be a float tensor; got torch\.int64"):
        trim(torch.arange(4), 0.5)
    with pytest.raises(TypeError, match="losses must be a float tensor; got list"):
        trim([1.0, 2.0], 0.5)
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
        for value in (0, 1.1, float("nan"), -1):
            with pytest.raises(ValueError, match=f"{name} must be a finite number"):
                TrimmedLoss(num_epochs=3, **{name: value})
        for value in (True, "1"):
            with pytest.raises(TypeError, match=f"{name} must be a number"):
                TrimmedLoss(num_epochs=3, **{name: value})
    for value in (0, -1):
        with pytest.raises(ValueError, match="num_epochs must be at least 1"):
            TrimmedLoss(num_epochs=value)
    for value in (True, 2.0, "3", None):
        with pytest.raises(TypeError, match="num_epochs must be an integer"):
            TrimmedLoss(num_epochs=value)
    with pytest.raises(TypeError, match="criterion must be callable"):
        TrimmedLoss("cross_entropy", num_epochs=3)
    loss_function = TrimmedLoss(num_epochs=3)
    for value in (-1, 3):
        with pytest.raises(ValueError, match=rf"epoch must be in \[0, 3\).*got {value}"):
            loss_function.set_epoch(value)
    for value in (1.0, True, "1"):
        with pytest.raises(TypeError, match="epoch must be an integer"):
            loss_function.set_epoch(value)
    loss_function.set_epoch(np.int64(2))
    assert loss_function.keep == 0.2


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


# trimmed_backward


class Residual(nn.Module):
    """Adds, functional operations, changes in place, and a layer used twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, inputs):
        hidden = F.gelu(self.stem(inputs))
        for _ in range(2):
            branch = self.twice(hidden)
            branch += hidden
            branch *= 1.5
            hidden = F.leaky_relu_(branch, 0.1)
        return self.head(F.max_pool2d(hidden, 2).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(6, 2, batch_first=False)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, inputs):
        tokens = inputs.permute(1, 0, 2)
        return self.head(
            self.norm(tokens + self.attend(tokens, tokens, tokens, need_weights=False)[0])
        ).mean(0)


def mlp():
    return nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)
    )


def cnn(inplace=False):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ELU(inplace=inplace),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding="same", groups=2),
        nn.GroupNorm(2, 8),
        nn.Hardtanh(inplace=inplace),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 4, 4),
    )


def frozen():
    model = cnn()
    model[0].requires_grad_(False)
    return model


def evaluated():
    still = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.ReLU()).eval()
    return nn.Sequential(
        still,
        nn.Conv2d(8, 8, 3),
        nn.InstanceNorm2d(8),
        nn.Dropout(0.0),
        nn.Flatten(),
        nn.Linear(128, 4),
    )


def channels_last():
    return cnn().to(memory_format=torch.channels_last)


VECTORS, IMAGES, TOKENS = (21, 6), (21, 3, 8, 8), (21, 5, 6)
CASES = {
    "mlp": (mlp, VECTORS),
    "cnn": (cnn, IMAGES),
    "cnn in place": (lambda: cnn(inplace=True), IMAGES),
    "cnn channels last": (channels_last, IMAGES),
    "frozen": (frozen, IMAGES),
    "eval mode": (evaluated, IMAGES),
    "residual": (Residual, IMAGES),
    "attention": (Attention, TOKENS),
    "recurrent": (lambda: Last(nn.GRU(6, 4, batch_first=True)), TOKENS),
}


class Last(nn.Module):
    def __init__(self, recurrent):
        super().__init__()
        self.recurrent = recurrent

    def forward(self, inputs):
        return self.recurrent(inputs)[0][:, -1]


def problem(name):
    make, shape = CASES[name]
    return make(), torch.randn(shape), torch.randint(4, shape[:1])


def gradients(model):
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("keep", [0.01, 0.3, 0.6, 1.0])
def test_trimmed_backward_gives_the_gradients_of_trim(name, keep):
    model, inputs, targets = problem(name)
    if name == "cnn channels last":
        inputs = inputs.to(memory_format=torch.channels_last)
    plain = copy.deepcopy(model)
    losses = per_sample(plain(inputs), targets)
    trim(losses, keep).backward()
    ours = trimmed_backward(model, inputs, targets, keep)
    assert not ours.requires_grad
    torch.testing.assert_close(ours, losses.detach(), rtol=1e-6, atol=1e-6)
    assert gradients(model).keys() == gradients(plain).keys() != set()
    torch.testing.assert_close(gradients(model), gradients(plain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("keep", "passes"), [(0.3, [(21, False), (6, True)]), (0.9, [(21, True)])])
def test_trimmed_backward_sends_only_the_kept_samples_backward(keep, passes):
    model, inputs, targets = problem("cnn")
    seen = []
    model.register_forward_hook(
        lambda module, args, output: seen.append((len(output), output.requires_grad))
    )
    trimmed_backward(model, inputs, targets, keep)
    assert seen == passes


def test_trimmed_backward_adds_to_gradients_and_calls_backward():
    model, inputs, targets = problem("cnn")
    plain = copy.deepcopy(model)
    for start in (0, 7, 14):
        part = slice(start, start + 7)
        (trim(per_sample(plain(inputs[part]), targets[part]), 0.5) * 128).backward()
        trimmed_backward(
            model, inputs[part], targets[part], 0.5, backward=lambda loss: (loss * 128).backward()
        )
    torch.testing.assert_close(gradients(model), gradients(plain), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("keep", [0.4, 1.0])
def test_trimmed_backward_works_under_autocast(keep):
    model, inputs, targets = problem("cnn")
    plain = copy.deepcopy(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trim(per_sample(plain(inputs), targets), keep).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trimmed_backward(model, inputs, targets, keep)
    assert gradients(model).keys() == gradients(plain).keys()
    torch.testing.assert_close(gradients(model), gradients(plain), rtol=2e-2, atol=5e-3)


def test_trimmed_backward_takes_hooks_inputs_with_gradient_and_a_criterion():
    model, inputs, targets = problem("cnn")
    for layer in model:
        layer.register_forward_hook(lambda module, args, output: output * 2)
    plain, other = copy.deepcopy(model), inputs.clone().requires_grad_()
    inputs.requires_grad_()

    def criterion(logits, targets):
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=0.1)

    trim(criterion(plain(other), targets), 0.3).backward()
    trimmed_backward(model, inputs, targets, 0.3, criterion=criterion)
    torch.testing.assert_close(gradients(model), gradients(plain), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inputs.grad, other.grad, rtol=1e-5, atol=1e-6)


def test_trimmed_backward_of_a_compiled_model():
    torch._dynamo.reset()
    model, inputs, targets = problem("mlp")
    plain = copy.deepcopy(model)
    trim(per_sample(plain(inputs), targets), 0.3).backward()
    trimmed_backward(torch.compile(model, backend="eager"), inputs, targets, 0.3)
    torch.testing.assert_close(gradients(model), gradients(plain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keep", [0.3, 1.0])
@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.BatchNorm2d(3), r"batch-norm .*: inner\.0 \(BatchNorm2d\)"),
        (nn.BatchNorm2d(3, track_running_stats=False).eval(), r"inner\.0 \(BatchNorm2d\)"),
        (nn.SyncBatchNorm(3), r"inner\.0 \(SyncBatchNorm\)"),
        (nn.Dropout(0.1), r"dropout .*: inner\.0 \(Dropout\), p = 0\.1"),
        (nn.FeatureAlphaDropout(0.1), r"inner\.0 \(FeatureAlphaDropout\)"),
        (nn.MultiheadAttention(4, 2, dropout=0.1), r"inner\.0 \(MultiheadAttention\)"),
        (nn.LSTM(4, 4, num_layers=2, dropout=0.1), r"inner\.0 \(LSTM\)"),
    ],
)
def test_trimmed_backward_names_modules_it_cannot_take(layer, text, keep):
    model = nn.Sequential()
    model.add_module("inner", nn.Sequential(layer))
    with pytest.raises(ValueError, match=text):
        trimmed_backward(model, torch.randn(4, 3, 8, 8), torch.randint(4, (4,)), keep)


def test_trimmed_backward_refuses_functions_that_draw():
    class Noisy(nn.Linear):
        def forward(self, inputs):
            return super().forward(F.dropout(inputs, 0.5))

    with pytest.raises(ValueError, match="model draws random numbers"):
        trimmed_backward(Noisy(6, 4), torch.randn(8, 6), torch.randint(4, (8,)), 0.3)


def test_trimmed_backward_rejects_wrong_arguments():
    model, inputs, targets = problem("mlp")
    with pytest.raises(TypeError, match="model must be a Module; got function"):
        trimmed_backward(lambda x: x, inputs, targets, 0.5)
    with pytest.raises(TypeError, match="inputs must be a Tensor; got list"):
        trimmed_backward(model, [inputs], targets, 0.5)
    with pytest.raises(TypeError, match="targets must be a Tensor; got list"):
        trimmed_backward(model, inputs, targets.tolist(), 0.5)
    with pytest.raises(ValueError, match="inputs and targets must have the same length"):
        trimmed_backward(model, inputs, targets[:-1], 0.5)
    with pytest.raises(ValueError, match="B >= 1"):
        trimmed_backward(model, inputs[:0], targets[:0], 0.5)
    with pytest.raises(ValueError, match="keep must be a finite number"):
        trimmed_backward(model, inputs, targets, 0)
    for keep in (0.5, 1.0):
        with pytest.raises(ValueError, match="criterion must give one loss per sample"):
            trimmed_backward(model, inputs, targets, keep, criterion=F.cross_entropy)
    assert gradients(model) == {}


def test_trimmed_backward_is_silent():
    model, inputs, targets = problem("residual")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trimmed_backward(model, inputs, targets, 0.5)
