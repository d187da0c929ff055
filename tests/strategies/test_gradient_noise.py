"""Gradient noise against its formula and a slow reference, under loss scaling, and every error."""

import io
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from hardtrain import GradientNoise
from hardtrain.strategies import gradient_noise

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {}),
    "sgd foreach": (torch.optim.SGD, {"foreach": True, "momentum": 0.9}),
    "sgd fused": (torch.optim.SGD, {"fused": True}),
    "adam": (torch.optim.Adam, {"foreach": False}),
    "adam foreach": (torch.optim.Adam, {"foreach": True}),
    "adam fused": (torch.optim.Adam, {"fused": True}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "adamw fused": (torch.optim.AdamW, {"fused": True}),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Still(torch.optim.Optimizer):
    """Steps nowhere, so that the gradients can be looked at."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self, closure=None):
        pass


def parameters(*shapes, dtype=torch.float32):
    """Parameters with gradients of 0."""
    made = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    for parameter in made:
        parameter.grad = torch.zeros_like(parameter)
    return made


def noise_of_steps(num_steps, *shapes, seed=0, **settings):
    """What each of the steps adds to each gradient."""
    made = parameters(*shapes)
    optimizer = Still(made)
    GradientNoise(optimizer, generator=generator(seed), **settings)
    steps = []
    for _ in range(num_steps):
        for parameter in made:
            parameter.grad.zero_()
        optimizer.step()
        steps.append([parameter.grad.clone() for parameter in made])
    return steps


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


class Training:
    """A tiny network on fixed data, in a loop with or without a scaler."""

    def __init__(self, optimizer="sgd", *, scaler=None, lr=0.1):
        self.inputs = torch.randn(24, 6, generator=generator(1))
        self.targets = torch.randint(3, (24,), generator=generator(2))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        make, settings = OPTIMIZERS[optimizer]
        self.optimizer, self.scaler = make(self.model.parameters(), lr=lr, **settings), scaler
        self.seen = []  # the unscaled gradients of the steps taken, if ``look`` is called

    def look(self):
        """Call it when the noise hook is there: hooks fire in the order of their coming."""

        def note(optimizer, args, kwargs):
            scale = getattr(optimizer, "grad_scale", None)
            if not getattr(optimizer, "found_inf", 0):
                gradients = [p.grad.flatten() / (scale or 1) for p in self.model.parameters()]
                self.seen.append(torch.cat(gradients))

        self.optimizer.register_step_pre_hook(note)

    def step(self, factor=1.0, *, unscale=False):
        loss = cross_entropy(self.model(self.inputs), self.targets) * factor
        self.optimizer.zero_grad()
        if self.scaler is None:
            loss.backward()
            self.optimizer.step()
        else:
            self.scaler.scale(loss).backward()
            if unscale:
                self.scaler.unscale_(self.optimizer)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return loss.item()

    def weights(self):
        return nn.utils.parameters_to_vector(self.model.parameters()).detach().clone()


def cpu_scaler():
    return torch.amp.GradScaler("cpu", init_scale=1024.0)


# --- the numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "gamma"), [(1e-5, 0.55), (0.3, 1.0)])
def test_noise_has_the_stated_variance_and_mean_zero(alpha, gamma):
    (parameter,) = parameters((400, 1000))
    optimizer = Still([parameter])
    noise = GradientNoise(optimizer, alpha=alpha, gamma=gamma, generator=generator())
    for t in range(101):
        parameter.grad.zero_()
        if t in (0, 1, 10, 100):
            assert noise.step == t
            assert noise.variance == pytest.approx(alpha / (1 + t) ** gamma, rel=1e-12)
        optimizer.step()
        if t in (0, 1, 10, 100):
            expected = alpha / (1 + t) ** gamma
            added = parameter.grad.double()
            assert added.var().item() == pytest.approx(expected, rel=0.01)
            assert abs(added.mean().item()) < 4 * math.sqrt(expected / 4e5)
            # a normal distribution: fourth moment 3
            assert (added**4).mean().item() / expected**2 == pytest.approx(3, rel=0.02)


def test_noise_defaults_are_those_of_the_paper():
    noise = GradientNoise(Still(parameters((1,))))
    assert (noise.alpha, noise.gamma, noise.variance) == (1e-5, 0.55, 1e-5)
    noise.load_state_dict(noise.state_dict() | {"step": 999})
    assert noise.variance / 1e-5 == pytest.approx(0.0224, abs=5e-5)  # errata 002-3


def test_noise_is_independent_across_tensors_and_steps():
    n = 100_000
    steps = noise_of_steps(3, (n,), (100, 1000), alpha=1.0)
    draws = [tensor for tensors in steps for tensor in tensors]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert abs(correlation(a, b)) < 4 / math.sqrt(n)
    assert abs(correlation(draws[0][:-1], draws[0][1:])) < 4 / math.sqrt(n)


def test_noise_matches_a_loop_over_tensors():
    shapes = [(5, 3), (7,), (), (2, 3, 4, 5), (0, 3), (4, 6)]
    made = parameters(*shapes)
    for i, parameter in enumerate(made):
        parameter.grad = torch.randn(parameter.shape, generator=generator(i))
    made[3].grad = made[3].grad.to(memory_format=torch.channels_last)
    made[5].grad = made[5].grad.t().contiguous().t()
    before = [parameter.grad.clone() for parameter in made]
    optimizer = Still([{"params": made[:2]}, {"params": made[2:]}])
    GradientNoise(optimizer, alpha=0.25, generator=generator(9))
    optimizer.step()

    flat, start = torch.empty(15 + 7 + 1 + 120 + 24), 0
    flat.normal_(0, 0.5, generator=generator(9))
    for i, parameter in enumerate(made):
        part = flat[start : start + parameter.numel()]
        start += parameter.numel()
        if i == 3:  # in the memory's order: channels last
            part = part.view(2, 4, 5, 3).permute(0, 3, 1, 2)
        elif i == 5:
            part = part.view(6, 4).t()
        expected = before[i] + part.reshape(parameter.shape)
        assert torch.equal(parameter.grad, expected), i
        assert parameter.grad.stride() == before[i].stride()


def test_hook_is_its_plain_form_bit_for_bit():
    shapes = [(5, 3), (7,), (), (2, 3, 4, 5), (0, 3)]
    hooked, plain = parameters(*shapes), [torch.zeros(shape) for shape in shapes]
    optimizer, drawn = Still(hooked), generator(9)
    GradientNoise(optimizer, alpha=0.25, gamma=0.7, generator=generator(9))
    for step in range(4):
        optimizer.step()
        gradient_noise.plain_noise(plain, step, 0.25, 0.7, drawn)
        for parameter, gradient in zip(hooked, plain, strict=True):
            assert torch.equal(parameter.grad, gradient)
    assert plain[0].count_nonzero() == 15


def test_noise_reaches_gradients_of_every_kind():
    shape = (100_000,)
    kinds = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float32]
    made = [parameters(shape, dtype=kind)[0] for kind in kinds]
    frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
    unused = nn.Parameter(torch.zeros(3))
    optimizer = Still([{"params": [frozen, *made[:2]]}, {"params": [unused, *made[2:]]}])
    GradientNoise(optimizer, alpha=0.01, generator=generator())
    optimizer.step()
    assert frozen.grad is None
    assert unused.grad is None
    for parameter, kind in zip(made, kinds, strict=True):
        assert parameter.grad.dtype == kind
        assert parameter.grad.double().var().item() == pytest.approx(0.01, rel=0.03)
    for i, a in enumerate(made):
        for b in made[:i]:
            assert abs(correlation(a.grad.double(), b.grad.double())) < 4 / math.sqrt(100_000)


def test_noise_follows_gradients_that_come_and_go():
    a, b = parameters((10,), (20,))
    optimizer = Still([a, b])
    GradientNoise(optimizer, alpha=1.0, generator=generator())
    for present in ([a], [a, b], [b], [a, b]):
        for parameter in (a, b):
            parameter.grad = torch.zeros_like(parameter) if parameter in set(present) else None
        optimizer.step()
        assert all(parameter.grad.count_nonzero() == parameter.numel() for parameter in present)
    assert a.grad[0] != b.grad[0]


def test_noise_is_not_recorded_by_autograd():
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.zeros(3, requires_grad=True)  # refuses changes that autograd records
    optimizer = Still([parameter])
    GradientNoise(optimizer, alpha=1.0)
    optimizer.step()
    assert parameter.grad.count_nonzero() == 3


# --- the same on every optimiser and under loss scaling -----------------------------------------


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_noise_is_the_same_on_every_optimizer(name, scaled):
    plain = Training()
    GradientNoise(plain.optimizer, alpha=0.1, generator=generator(5))
    plain.look()
    for _ in range(4):
        plain.step(factor=0.0)  # all that is seen is the noise

    other = Training(name, scaler=cpu_scaler() if scaled else None)
    noise = GradientNoise(other.optimizer, alpha=0.1, generator=generator(5))
    other.look()
    for factor in (0.0, 0.0, math.inf, math.nan, 0.0, 0.0) if scaled else [0.0] * 4:
        if not math.isfinite(factor):
            before = other.weights()
            variance = noise.variance
        other.step(factor)
        if not math.isfinite(factor):  # the scaler skips this step, and halves the scale
            assert torch.equal(other.weights(), before)
            assert noise.variance == variance
    assert noise.step == 4
    assert not scaled or other.scaler.get_scale() == 256
    assert len(other.seen) == 4
    for ours, theirs in zip(other.seen, plain.seen, strict=True):
        assert torch.equal(ours, theirs)
    assert plain.seen[0].var().item() == pytest.approx(0.1, rel=0.5)


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("name", ["sgd", "sgd fused"])
def test_training_with_noise_is_the_same_under_a_scaler(name, unscale):
    plain, scaled = Training(name), Training(name, scaler=cpu_scaler())
    for training in (plain, scaled):
        GradientNoise(training.optimizer, alpha=0.1, generator=generator())
    for _ in range(5):
        plain.step()
        scaled.step(unscale=unscale)
    assert torch.equal(plain.weights(), scaled.weights())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_noise_is_scaled_where_the_scale_exceeds_half_precision(dtype):
    (parameter,) = parameters((100_000,), dtype=dtype)
    optimizer = Still([parameter])
    GradientNoise(optimizer, generator=generator())
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(65536.0), torch.tensor(0.0)
    optimizer.step()
    added = parameter.grad.double() / 65536
    assert added.var().item() == pytest.approx(1e-5, rel=0.03)


class Event:
    """Stands for an event of a GPU."""

    num_waits = 0

    def synchronize(self):
        self.num_waits += 1


@pytest.mark.parametrize("name", ["sgd fused", "adam fused"])
def test_skipped_step_is_taken_back_when_a_gpu_tells_later(name, monkeypatch):
    event = Event()

    def queued(value):
        return value.clone(), event

    plain = Training(name)
    GradientNoise(plain.optimizer, alpha=0.1, generator=generator())
    plain.look()
    for _ in range(5):
        plain.step()

    monkeypatch.setattr(gradient_noise, "_copy_to_host", queued)
    late = Training(name, scaler=cpu_scaler())
    noise = GradientNoise(late.optimizer, alpha=0.1, generator=generator())
    late.look()
    for i, factor in enumerate((math.inf, math.nan, 1.0, 1.0, math.inf, 1.0, 1.0)):
        assert event.num_waits == max(0, i - 1)  # only the next step asks
        late.step(factor)
    before = noise.state_dict()
    late.step(math.inf)
    after = noise.state_dict()
    assert before["step"] == after["step"] == 4
    assert torch.equal(before["generator"], after["generator"])
    late.step(math.inf)
    noise.load_state_dict(before)  # knows nothing of that step
    assert noise.variance == 0.1 / 5**0.55
    late.step()
    assert noise.variance == 0.1 / 6**0.55
    for ours, theirs in zip(late.seen, plain.seen, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_noise_works_beside_a_schedule_and_a_disabled_scaler():
    training = Training(scaler=torch.amp.GradScaler("cpu", enabled=False))
    noise = GradientNoise(training.optimizer)
    schedule = torch.optim.lr_scheduler.StepLR(training.optimizer, 1)
    training.step()
    schedule.step()
    training.optimizer.step(None)
    training.optimizer.step(closure=None)
    assert noise.step == 3


# --- where it vanishes, and what it leaves alone ------------------------------------------------


@pytest.mark.parametrize("name", ["sgd foreach", "adam", "adamw fused"])
@pytest.mark.parametrize("scaled", [False, True])
def test_alpha_zero_and_a_removed_hook_are_plain_training(name, scaled):
    def train(prepare):
        training = Training(name, scaler=cpu_scaler() if scaled else None)
        prepare(training.optimizer)
        for _ in range(5):
            training.step()
        return training.weights()

    plain = train(lambda optimizer: None)
    assert torch.equal(train(lambda optimizer: GradientNoise(optimizer, alpha=0)), plain)
    assert torch.equal(train(lambda optimizer: GradientNoise(optimizer).remove()), plain)
    assert not torch.equal(train(lambda optimizer: GradientNoise(optimizer)), plain)


def test_alpha_zero_counts_steps_and_draws_nothing():
    (parameter,) = parameters((4,))
    parameter.grad.fill_(-0.0)
    own = generator()
    optimizer = Still([parameter])
    noise = GradientNoise(optimizer, alpha=0, generator=own)
    optimizer.step()
    assert (noise.step, noise.variance) == (1, 0.0)
    assert parameter.grad.signbit().all()
    assert torch.equal(own.get_state(), generator().get_state())


def test_removed_hook_keeps_its_state():
    training = Training()
    noise = GradientNoise(training.optimizer)
    training.step()
    noise.remove()
    noise.remove()
    training.step()
    assert noise.step == 1


def test_own_generator_comes_from_the_global_seed_and_leaves_it_alone():
    def draw(seed):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        (parameter,) = parameters((100_000,))
        optimizer = Still([parameter])
        GradientNoise(optimizer, alpha=1.0)
        optimizer.step()
        assert torch.equal(torch.get_rng_state(), before)
        return parameter.grad

    with torch.random.fork_rng(devices=[]):
        first, again, other = draw(7), draw(7), draw(8)
        torch.manual_seed(7)
        weights = torch.randn(100_000)  # as a network's first weights
    assert torch.equal(first, again)
    assert abs(correlation(first, other)) < 4 / math.sqrt(100_000)
    assert abs(correlation(first, weights)) < 4 / math.sqrt(100_000)


def test_equal_seeds_give_equal_noise_and_others_do_not():
    first, again, other = (noise_of_steps(2, (50,), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first[1][0], again[1][0])
    assert not torch.equal(first[1][0], other[1][0])


def test_training_with_noise_lowers_the_loss():
    training = Training(lr=0.5)
    GradientNoise(training.optimizer, alpha=1e-3, generator=generator())
    losses = [training.step() for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]


# --- states -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd foreach", "adam fused"])
def test_resumed_noise_gives_the_same_bits(name):
    def start():
        training = Training(name, scaler=cpu_scaler())
        return training, GradientNoise(training.optimizer, alpha=0.1)

    whole, noise = start()
    for i in range(4):
        whole.step(math.inf if i in (1, 3) else 1.0)
    file = io.BytesIO()
    items = (whole.model, whole.optimizer, whole.scaler, noise)
    torch.save([item.state_dict() for item in items], file)
    for _ in range(3):
        whole.step()

    resumed, fresh = start()
    resumed.step()  # any other state, replaced below
    file.seek(0)
    states = torch.load(file, weights_only=True)
    items = (resumed.model, resumed.optimizer, resumed.scaler, fresh)
    for item, state in zip(items, states, strict=True):
        item.load_state_dict(state)
    assert fresh.step == 2
    for _ in range(3):
        resumed.step()
    assert torch.equal(resumed.weights(), whole.weights())
    assert fresh.variance == noise.variance == 0.1 / 6**0.55


def test_state_that_does_not_fit_is_an_error():
    noise = GradientNoise(Still(parameters((1,))))
    with pytest.raises(ValueError, match=r"'step' and 'generator'; got \['step'\]"):
        noise.load_state_dict({"step": 1})
    with pytest.raises(ValueError, match=r"generator'\] of a generator on cpu must .* got \(16,\)"):
        noise.load_state_dict({"step": 1, "generator": torch.zeros(16, dtype=torch.uint8)})
    assert noise.step == 0


# --- cost ---------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Counts the operations that reach a device."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "aten":  # not the profiler's marks
            self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("num_tensors", [3, 220])
def test_noise_takes_two_operations_a_step_and_three_under_a_scaler(num_tensors):
    optimizer = Still(parameters(*[(4, 3)] * num_tensors))
    noise = GradientNoise(optimizer)
    optimizer.step()  # makes the buffer
    with Operations() as plain:
        optimizer.step()
    assert plain.names == ["normal_", "_foreach_add_"]
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
    with Operations() as scaled:
        optimizer.step()
    assert scaled.names == ["normal_", "mul_", "_foreach_add_"]
    noise.remove()
    with Operations() as removed:
        optimizer.step()
    assert removed.names == []


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"alpha": -1e-9}, ValueError, "alpha must be finite and >= 0; got -1e-09"),
        ({"gamma": math.nan}, ValueError, "gamma must be finite and >= 0; got nan"),
        ({"generator": 3}, TypeError, "generator must be of type Generator; got int"),
    ],
)
def test_noise_rejects_arguments(settings, error, message):
    with pytest.raises(error, match=message):
        GradientNoise(Still(parameters((1,))), **settings)


def test_noise_rejects_what_is_no_optimizer():
    with pytest.raises(TypeError, match="optimizer must be of type Optimizer; got Linear"):
        GradientNoise(nn.Linear(1, 1))


def test_closure_is_an_error():
    training = Training()
    noise = GradientNoise(training.optimizer)
    training.step()
    with pytest.raises(ValueError, match="must be called without closure"):
        training.optimizer.step(lambda: None)
    with pytest.raises(ValueError, match="must be called without closure"):
        training.optimizer.step(closure=lambda: None)
    assert noise.step == 1


def test_optimizer_that_unscales_by_itself_is_an_error():
    class Own(Still):
        _step_supports_amp_scaling = True

        def step(self, grad_scaler=None):
            pass

    optimizer = Own(parameters((3,)))
    GradientNoise(optimizer)
    scaler = cpu_scaler()
    scaler.scale(torch.tensor(1.0))
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match="without closure and grad_"):
        scaler.step(optimizer)


def test_step_without_gradients_is_an_error():
    optimizer = Still([nn.Parameter(torch.zeros(2))])
    noise = GradientNoise(optimizer)
    with pytest.raises(ValueError, match="must have a parameter with a gradient; got none"):
        optimizer.step()
    assert noise.step == 0


def test_sparse_gradient_is_an_error():
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    noise = GradientNoise(optimizer)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"shape \(5, 3\) must be dense .* got Tensor, .*sparse"):
        optimizer.step()
    assert noise.step == 0


def test_complex_gradient_is_an_error():
    optimizer = Still(parameters((2,), dtype=torch.complex64))
    GradientNoise(optimizer)
    with pytest.raises(
        TypeError, match=r"\(2,\) must be a tensor of float16, .*; got torch\.complex64"
    ):
        optimizer.step()


def test_gradients_on_several_devices_are_an_error():
    made = [*parameters((2,)), nn.Parameter(torch.zeros(3, device="meta"))]
    made[1].grad = torch.zeros(3, device="meta")
    optimizer = Still(made)
    GradientNoise(optimizer)
    with pytest.raises(ValueError, match=r"must be on cpu, where the generator is.* got meta"):
        optimizer.step()


def test_ranks_need_an_explicit_generator(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match=r"generator must be given under torch\.distributed"):
        GradientNoise(Still(parameters((1,))))
    GradientNoise(Still(parameters((1,))), generator=generator())


def test_skipped_step_is_taken_back_at_once_where_nothing_waits():
    own = generator()
    optimizer = Still(parameters((4,)))
    noise = GradientNoise(optimizer, alpha=1.0, generator=own)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(own.get_state(), generator().get_state())
    optimizer.found_inf.zero_()
    assert noise.step == 0


# --- on ready gradients, where a step brings a closure ------------------------------------------


def trained_with_closures(make, num_steps=5):
    """As Lightning trains: the closure computes gradients, and a callback sees them when ready."""
    training = Training("sgd foreach")
    noise = make(training.optimizer)
    for _ in range(num_steps):

        def closure():
            training.optimizer.zero_grad()
            loss = cross_entropy(training.model(training.inputs), training.targets)
            loss.backward()
            if noise is not None:
                noise.add()  # on_before_optimizer_step
            return loss

        training.optimizer.step(closure)
    return training, noise


def test_noise_on_ready_gradients_is_that_of_the_hook():
    hooked = Training("sgd foreach")
    GradientNoise(hooked.optimizer, alpha=0.1, generator=generator())
    for _ in range(5):
        hooked.step()
    called, noise = trained_with_closures(
        lambda optimizer: GradientNoise(optimizer, alpha=0.1, generator=generator(), hook=False)
    )
    assert torch.equal(called.weights(), hooked.weights())
    assert noise.step == 5
    plain, _ = trained_with_closures(lambda optimizer: None)
    assert not torch.equal(called.weights(), plain.weights())


def test_closure_error_names_the_form_for_ready_gradients():
    training = Training()
    GradientNoise(training.optimizer)
    with pytest.raises(
        ValueError, match=r"hook=False\), and its add\(\).*on_before_optimizer_step"
    ):
        training.optimizer.step(lambda: None)


def test_noise_of_a_hook_is_not_added_a_second_time():
    noise = GradientNoise(Still(parameters((1,))))
    with pytest.raises(RuntimeError, match=r"call add\(\) yourself, make it with hook=False"):
        noise.add()


def test_noise_on_ready_gradients_goes_on_from_its_state():
    make = {"alpha": 0.1, "hook": False}
    made = parameters((5,))
    noise = GradientNoise(Still(made), generator=generator(), **make)
    for _ in range(3):
        noise.add()
    state, before = noise.state_dict(), made[0].grad.clone()
    noise.add()
    again = parameters((5,))
    again[0].grad = before
    resumed = GradientNoise(Still(again), generator=generator(9), **make)
    resumed.load_state_dict(state)
    resumed.add()
    assert torch.equal(again[0].grad, made[0].grad)


@pytest.mark.parametrize("hook", [True, False])
def test_two_noises_on_one_optimizer_are_refused(hook):
    optimizer = Still(parameters((1,)))
    noise = GradientNoise(optimizer, hook=hook)
    for other in (True, False):
        with pytest.raises(ValueError, match="optimizer has a gradient noise already; call its re"):
            GradientNoise(optimizer, hook=other)
    noise.remove()
    GradientNoise(optimizer).remove()
    noise.remove()  # a second time, which takes nothing of another's
    GradientNoise(optimizer)


def test_an_optimizer_that_takes_no_hooks_is_refused_with_the_way_out():
    class Prepared(torch.optim.Optimizer):
        """As accelerate's: an Optimizer in name, around another."""

        def __init__(self, optimizer):
            self.optimizer = optimizer

        def step(self, closure=None):
            self.optimizer.step(closure)

        @property
        def param_groups(self):
            return self.optimizer.param_groups

    inner = Still(parameters((4,)))
    with pytest.raises(ValueError, match=r"takes no hooks \(Prepared\); .* accelerator\.prepare"):
        GradientNoise(Prepared(inner))
    GradientNoise(Prepared(inner), hook=False, alpha=1.0).add()
    assert inner.param_groups[0]["params"][0].grad.count_nonzero() == 4
    inner.param_groups[0]["params"][0].grad.zero_()
    GradientNoise(inner, alpha=1.0)
    Prepared(inner).step()  # through the wrapper
    assert inner.param_groups[0]["params"][0].grad.count_nonzero() == 4


# --- on a GPU -----------------------------------------------------------------------------------


def test_capturable_noise_is_the_same_noise_with_its_sigma_in_a_tensor():
    def weights(capturable):
        torch.manual_seed(0)
        model = nn.Linear(30, 20)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        own = torch.Generator().manual_seed(3)
        noise = GradientNoise(optimizer, alpha=0.2, gamma=0.9, generator=own, capturable=capturable)
        for _ in range(4):
            model(torch.ones(2, 30)).sum().backward()
            if capturable:
                noise.advance()
            optimizer.step()
            optimizer.zero_grad()
        return model.weight.detach(), noise.state_dict()

    (plain, state), (captured, other) = weights(False), weights(True)
    torch.testing.assert_close(plain, captured, rtol=0, atol=1e-5)
    assert state["step"] == other["step"] == 4
    assert torch.equal(state["generator"], other["generator"])


def test_capturable_noise_is_counted_by_advance_alone():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=1.0)
    optimizer.param_groups[0]["params"][0].grad = torch.zeros(3)
    noise = GradientNoise(optimizer, generator=torch.Generator(), capturable=True)
    optimizer.step()
    assert noise.step == 0
    noise.advance()
    assert (noise.step, noise._sigma.item()) == (1, pytest.approx(1e-5**0.5))
    optimizer.found_inf = torch.zeros(())
    with pytest.raises(ValueError, match="capturable = True is not for gradient scalers"):
        optimizer.step()
    noise.remove()
    plain = GradientNoise(optimizer, generator=torch.Generator())
    with pytest.raises(ValueError, match="advance needs capturable = True"):
        plain.advance()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_noise_on_a_gpu_waits_for_nothing_and_skips_right():
    def draws(factors, fused):
        weight = nn.Parameter(torch.zeros(1000, device="cuda"))
        optimizer = torch.optim.SGD([weight], lr=1.0, fused=fused)
        own = torch.Generator("cuda").manual_seed(0)
        noise = GradientNoise(optimizer, alpha=1.0, generator=own)
        scaler = torch.amp.GradScaler("cuda", init_scale=1024.0, enabled=fused)
        factors = torch.tensor(factors, device="cuda").unbind()
        scaler.scale(factors[0])  # makes its tensors
        torch.cuda.set_sync_debug_mode("error" if fused else "default")
        try:
            for factor in factors:
                optimizer.zero_grad()
                scaler.scale((weight * factor).sum()).backward()
                scaler.step(optimizer)
                scaler.update()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return noise.step, weight.detach()

    plain = draws([0.0] * 3, fused=False)
    skipping = draws([math.inf, 0.0, math.inf, 0.0, 0.0, math.inf], fused=True)
    assert plain[0] == skipping[0] == 3
    assert torch.equal(plain[1], skipping[1])
