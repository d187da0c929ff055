"""The backward pass on the kept samples: the gradients of trim, for networks of many kinds."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hardtrain import trim, trimmed_backward


@pytest.fixture(autouse=True)
def _own_random_state():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def per_sample(logits, targets):
    return F.cross_entropy(logits, targets, reduction="none")


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
def test_trimmed_backward_names_modules_it_cannot_take(layer, text):
    model = nn.Sequential()
    model.add_module("inner", nn.Sequential(layer))
    for keep in (0.3, 1.0):
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
    with pytest.raises(TypeError, match="model must be of type Module; got function"):
        trimmed_backward(lambda x: x, inputs, targets, 0.5)
    with pytest.raises(TypeError, match="inputs must be of type Tensor; got list"):
        trimmed_backward(model, [inputs], targets, 0.5)
    with pytest.raises(TypeError, match="targets must be of type Tensor; got list"):
        trimmed_backward(model, inputs, targets.tolist(), 0.5)
    with pytest.raises(ValueError, match="inputs and targets must have the same length"):
        trimmed_backward(model, inputs, targets[:-1], 0.5)
    with pytest.raises(ValueError, match="B >= 1"):
        trimmed_backward(model, inputs[:0], targets[:0], 0.5)
    with pytest.raises(ValueError, match="keep must be in"):
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
