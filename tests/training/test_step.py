"""Steps that are captured and replayed, with a stand-in for a GPU; and on one, if there is one."""

import contextlib
import functools
import itertools
from types import SimpleNamespace

import pytest
import torch
from helpers import copied, interrupt_after, same
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hardtrain import ParameterError, load_artefact, load_history, run_missing
from hardtrain.data.batches import Batch, PairedBatch
from hardtrain.runs.run_data import load_data
from hardtrain.runs.train import build
from hardtrain.strategies import _checks, distribution_matching
from hardtrain.training import loop, methods, pieces, randomness, step
from hardtrain.training.step import ReplayedStep, Step


class Tape(TorchDispatchMode):
    """Notes every operation. A replay repeats them on the same tensors, and runs no Python of
    ours: what was a number then is the same number."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select"):
            raise RuntimeError(f"a capture does not wait, but {name} does")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, result in self.calls:
            for old, new in zip(
                tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True
            ):
                if isinstance(old, torch.Tensor):
                    shared = old.untyped_storage().data_ptr() == new.untyped_storage().data_ptr()
                    if not shared:
                        old.copy_(new)


class Recorder:
    """As `step.CudaRecorder`, on a CPU: what it records is undone, as if it were only noted."""

    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer
        self.recorded = self.replayed = self.eager = 0

    @contextlib.contextmanager
    def aside(self):
        self.eager += 1
        yield

    def record(self, function):
        tensors = [*self.model.state_dict().values(), *tree_leaves(self.optimizer.state_dict())]
        tensors = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
        before, state = [tensor.clone() for tensor in tensors], torch.get_rng_state()
        hooks = self.optimizer._optimizer_step_pre_hooks.values()
        generators = [hook.__self__._generator for hook in hooks]
        states = [generator.get_state() for generator in generators]
        with Tape() as tape:
            values = function()
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)
        torch.set_rng_state(state)
        for generator, drawn in zip(generators, states, strict=True):
            generator.set_state(drawn)
        self.recorded += 1

        def replay():
            self.replayed += 1
            tape.replay()

        return replay, values


@pytest.fixture
def on_a_gpu(monkeypatch):
    """CPU tensors are treated as a GPU's: the kind of optimiser, and nothing looks at contents."""
    for module in (loop, methods, step):
        monkeypatch.setattr(module, "replays", lambda device: True)
    monkeypatch.setattr(_checks, "on_host", lambda values: False)
    distribution_matching._pairs.cache_clear()


def trained(run, monkeypatch, *, replayed=True, pause_after=None, change=None):
    """Model, history and recorder of a training, eager or replayed."""
    train, test, _ = load_data(run)
    checkpoints, recorders = {}, []

    def make(run, model, method, optimizer):
        if not replayed:
            return Step(run, model, method, optimizer)
        recorders.append(Recorder(model, optimizer))
        return ReplayedStep(run, model, method, optimizer, recorder=recorders[-1])

    def once(checkpoint=None):
        with randomness.isolated_randomness(run.seed, torch.device("cpu")):
            model, method = build(run, train, test)
            if change is not None:
                change(method)
            history = loop.fit(
                run, model, method, lambda model: {}, checkpoint=checkpoint,
                save_checkpoint=lambda state: checkpoints.update({state["epoch"]: copied(state)}),
            )  # fmt: skip
        return model, history, recorders[-1] if replayed else None

    monkeypatch.setattr(loop, "make_step", make)
    result = once()
    return result if pause_after is None else once(checkpoints[pause_after])


CASES = {
    "plain": {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "schedule": "cosine"},
    "adam": {"optimizer": "adam", "lr": 1e-3, "warmup_epochs": 2, "weight_decay": 1e-3},
    "adamw": {"optimizer": "adamw", "lr": 1e-3, "augment": "crop+flip", "drop_last": True},
    "bfloat16": {"precision": "bfloat16", "channels_last": True, "network": "cnn_small_bn"},
    "batch-norm": {"network": "cnn_small_bn", "momentum": 0.9, "ghost_batch_size": 4},
    "trimming": {"method": "trimming", "keep": ("sample_counts",), "batch_size": 8},
    "hard batches": {"method": "hard_batches", "options": {"delta": 0.5}, "batch_size": 8},
    "noise": {"method": "gradient_noise", "options": {"alpha": 0.01}, "momentum": 0.9},
    "noise of 0": {"method": "gradient_noise", "options": {"alpha": 0.0}},
    "match by class": {"method": "distribution_matching", "balanced": True},
    "joint match": {"method": "distribution_matching", "options": {"by_class": False}},
    "the code's match": {"method": "distribution_matching", "options": {"reading": "code"}},
    "one side": {"method": "distribution_matching", "options": {"stop_gradient": True}},
    "trimming of other sizes": {
        "method": "trimming+random_share",
        "options": {"random_share_share": 0.9},
        "batch_size": 8,
        "epochs": 60,
    },
    "no match": {"method": "distribution_matching", "options": {"weight": 0.0}},
    "weighted": {"method": "active_bias", "options": {"variant": "WPV"}, "epochs": 6},
    "drawn": {"method": "active_bias", "options": {"variant": "SPV"}, "epochs": 6},
    "unbiased": {"method": "active_bias", "options": {"variant": "ISD"}, "epochs": 6},
}


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_replayed_steps_have_the_bits_of_eager_ones(tiny_run, monkeypatch, fields):
    run = tiny_run(**{"epochs": 5} | fields)
    eager, history, _ = trained(run, monkeypatch, replayed=False)
    model, replayed_history, recorder = trained(run, monkeypatch)
    assert same(eager, model)
    assert replayed_history == history
    assert recorder.replayed > 0
    steps = history[-1]["step"]
    assert recorder.replayed + recorder.eager == steps


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("name", ["adam", "noise", "trimming", "weighted", "match by class"])
def test_replayed_training_goes_on_after_a_pause_with_the_same_bits(tiny_run, monkeypatch, name):
    run = tiny_run(**{"epochs": 6} | CASES[name])
    model, history, _ = trained(run, monkeypatch)
    resumed, resumed_history, recorder = trained(run, monkeypatch, pause_after=2)
    assert same(model, resumed)
    assert resumed_history == history
    assert recorder.replayed > 0


@pytest.mark.usefixtures("on_a_gpu")
def test_each_shape_and_each_key_is_captured_once(tiny_run, monkeypatch):
    # an epoch has three batches of 16 and one of 12
    _, _, recorder = trained(tiny_run(epochs=6), monkeypatch)
    assert (recorder.recorded, recorder.eager, recorder.replayed) == (2, 6, 18)
    # trimming keeps 8, 6, 5, 3, 2 of 8: in each epoch 3 eager, 4 replayed, and one of 4 images
    run = tiny_run(method="trimming", epochs=5, batch_size=8)
    _, _, recorder = trained(run, monkeypatch)
    assert (recorder.recorded, recorder.eager, recorder.replayed) == (5, 20, 20)


def linear_step(run):
    """The replayed step of a linear network for images of 3x4x4, and its recorder."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    method = loop.Method([], pieces.mean_objective, graph_key=loop.nothing)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, optimizer)
    return ReplayedStep(run, model, method, optimizer, recorder=recorder), recorder


@pytest.mark.usefixtures("on_a_gpu")
def test_behind_a_failed_capture_nothing_is_replayed(tiny_run, monkeypatch):
    taken, recorder = linear_step(tiny_run())
    first, second = (
        Batch(torch.randn(size, 3, 4, 4), torch.zeros(size, dtype=torch.int64), torch.arange(size))
        for size in (2, 3)
    )
    for _ in range(step.WARM_UP + 1):
        taken.take(first)
    assert (recorder.recorded, recorder.replayed) == (1, 1)

    def fail(_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(recorder, "record", fail)
    for _ in range(step.WARM_UP):
        taken.take(second)
    with pytest.warns(UserWarning, match="is trained without CUDA graphs: out of luck"):
        taken.take(second)
    taken.take(first)
    assert recorder.replayed == 1


@pytest.mark.usefixtures("on_a_gpu")
def test_batches_of_another_memory_format_are_captured_by_themselves(tiny_run, monkeypatch):
    taken, recorder = linear_step(tiny_run())
    given = []
    for form in (torch.contiguous_format, torch.channels_last):
        for _ in range(step.WARM_UP + 2):
            given.append(torch.randn(2, 3, 4, 4).contiguous(memory_format=form))
            taken.take(Batch(given[-1], torch.tensor([0, 2]), torch.arange(2)))
    assert (recorder.recorded, recorder.replayed) == (2, 4)
    assert len({inputs.sum().item() for inputs in given}) == len(given)  # a batch stays its own
    theirs = torch.ones(3)
    monkeypatch.setattr(Step, "take", lambda *_: (theirs, theirs))
    ours = taken.take(Batch(torch.randn(3, 3, 4, 4), torch.tensor([0, 1, 2]), torch.arange(3)))
    assert not {part.data_ptr() for part in ours} & {theirs.data_ptr()}  # memory of the captures


@pytest.mark.usefixtures("on_a_gpu")
def test_the_oldest_of_too_many_captures_goes(tiny_run, monkeypatch):
    monkeypatch.setattr(step, "MOST_GRAPHS", 2)
    monkeypatch.setattr(step, "WARM_UP", 1)
    keys = itertools.cycle([0, 1, 2])

    def change(method):
        method.graph_key = lambda: next(keys)

    run = tiny_run(epochs=6, drop_last=True)  # 18 steps of one shape
    eager, _, _ = trained(run, monkeypatch, replayed=False)
    model, _, recorder = trained(run, monkeypatch, change=change)
    assert same(eager, model)
    assert (recorder.recorded, recorder.replayed) == (15, 15)  # each goes before it comes again


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("name", ["trimming", "noise", "match by class"])
def test_the_stand_in_notices_what_a_capture_would_burn_in(tiny_run, monkeypatch, name):
    def forget(method):
        method.graph_key, method.advance = loop.nothing, loop.nothing
        if name == "match by class":
            objective, pairs = method.objective, method.batches
            method.batches = pairs.batches
            method.objective = lambda model, batch: objective(
                model, PairedBatch(*batch, next(pairs.others))
            )

    run = tiny_run(**{"epochs": 5} | CASES[name])
    eager, _, _ = trained(run, monkeypatch, replayed=False)
    model, _, _ = trained(run, monkeypatch, change=forget)
    assert not same(eager, model)


@pytest.mark.usefixtures("on_a_gpu")
def test_what_cannot_be_captured_is_trained_eagerly_with_one_warning(tiny_run, monkeypatch):
    def change(method):
        objective = method.objective

        def looking(model, batch):
            losses, loss = objective(model, batch)
            assert loss.item() > 0
            return losses, loss

        method.objective = looking

    run = tiny_run(epochs=6, drop_last=True)
    eager, history, _ = trained(run, monkeypatch, replayed=False)
    with pytest.warns(UserWarning, match="is trained without CUDA graphs: a capture does") as seen:
        model, other, recorder = trained(run, monkeypatch, change=change)
    assert len(seen) == 1
    assert same(eager, model)
    assert other == history
    assert (recorder.eager, recorder.replayed) == (18, 0)


def test_steps_are_replayed_on_a_gpu_where_the_method_allows_it(tiny_run, monkeypatch):
    run = tiny_run()
    train, test, _ = load_data(run)
    model, method = build(run, train, test)
    optimizer = loop.make_optimizer(run, model)
    assert type(step.make_step(run, model, method, optimizer)) is Step
    monkeypatch.setattr(step, "CudaRecorder", lambda *_: None)
    monkeypatch.setattr(step, "replays", lambda device: True)
    assert type(step.make_step(run, model, method, optimizer)) is ReplayedStep
    method.graph_key = None
    assert type(step.make_step(run, model, method, optimizer)) is Step


def test_a_network_of_ones_own_is_not_replayed(tiny_run, monkeypatch):
    run = tiny_run()
    model, method = build(run, *load_data(run)[:2])
    optimizer = loop.make_optimizer(run, model)
    monkeypatch.setattr(step, "CudaRecorder", lambda *_: None)
    monkeypatch.setattr(step, "replays", lambda device: True)
    own = SimpleNamespace(network="my_module:mine", compiled=False, precision="float32")
    assert type(step.make_step(own, model, method, optimizer)) is Step


class OlderCuda:
    """What `CudaRecorder.record` calls, as in torch 2.6: after a failed capture its stream is the
    current one, and allocator and generators are in the capture still."""

    device = torch.device("cuda", 0)

    def __init__(self, monkeypatch):
        self.current, self.in_capture, self.registered = "before", set(), []
        parts = {
            "Stream": lambda device: SimpleNamespace(device=self.device),
            "graph_pool_handle": lambda: (0, 1),
            "CUDAGraph": lambda: SimpleNamespace(
                register_generator_state=self.registered.append, replay=None
            ),
            "graph": self.graph,
            "current_stream": lambda device: SimpleNamespace(wait_stream=lambda other: None),
            "set_stream": lambda stream: setattr(self, "current", "before"),
            "default_generators": [self],
        }
        for name, part in parts.items():
            monkeypatch.setattr(torch.cuda, name, part)
        end = lambda device, pool: self.in_capture.discard("allocator")  # noqa: E731
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)

    @contextlib.contextmanager
    def graph(self, graph, pool, stream):
        assert not self.in_capture, "captures_underway.empty()"
        self.current, self.in_capture = "the capture's", {"allocator", "generators"}
        yield
        self.current, self.in_capture = "before", set()

    def clone_state(self):
        return self

    def graphsafe_set_state(self, state):
        self.in_capture.discard("generators")


def test_a_failed_capture_leaves_nothing_of_itself(monkeypatch):
    cuda = OlderCuda(monkeypatch)
    recorder = step.CudaRecorder(OlderCuda.device, [cuda])
    with pytest.raises(RuntimeError, match="not permitted"):
        recorder.record(lambda: (_ for _ in ()).throw(RuntimeError("operation not permitted")))
    assert (cuda.current, cuda.in_capture) == ("before", set())
    _, values = recorder.record(lambda: torch.ones(1))
    assert values == 1
    assert cuda.registered == [cuda, cuda]


@pytest.mark.parametrize("fields", [CASES["plain"], CASES["adam"]], ids=["sgd", "adam"])
def test_a_checkpoint_of_eager_steps_goes_on_replayed(tiny_run, monkeypatch, fields):
    run = tiny_run(**{"epochs": 6} | fields)
    train, test, _ = load_data(run)
    checkpoints, recorders = {}, []

    def fit(checkpoint=None):
        with randomness.isolated_randomness(run.seed, torch.device("cpu")):
            model, method = build(run, train, test)
            loop.fit(
                run, model, method, lambda model: {}, checkpoint=checkpoint,
                save_checkpoint=lambda state: checkpoints.update({state["epoch"]: copied(state)}),
            )  # fmt: skip

    def make(run, model, method, optimizer):
        recorders.append(Recorder(model, optimizer))
        assert optimizer.param_groups[0]["fused"] is True
        return ReplayedStep(run, model, method, optimizer, recorder=recorders[-1])

    fit()  # steps are eager, and the optimiser is not fused
    for module in (loop, methods, step):
        monkeypatch.setattr(module, "replays", lambda device: True)
    monkeypatch.setattr(loop, "make_step", make)
    fit(checkpoints[2])
    assert recorders[0].replayed > 0


@pytest.mark.parametrize("method", ["plain", "trimming"])
def test_a_compiled_forward_pass_trains_as_the_plain_one(method, tiny_run, monkeypatch):
    graphs = []

    def backend(graph, inputs):  # the operations as they are: the same bits
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    ends = []
    for compiled in (False, True):
        run = tiny_run(method=method, compiled=compiled)
        train, test, _ = load_data(run)
        with randomness.isolated_randomness(0, torch.device("cpu")):
            model, trained = build(run, train, test)
            loop.fit(run, model, trained, lambda model: {})
        ends.append(model)
    assert len(graphs) > 0
    assert same(*ends)


def test_replays_on_cuda_devices_unless_the_environment_says_no(monkeypatch):
    monkeypatch.delenv("HARDTRAIN_REPLAY", raising=False)
    assert [step.replays(torch.device(name)) for name in ("cpu", "cuda", "mps")] == [0, 1, 0]
    monkeypatch.setenv("HARDTRAIN_REPLAY", "0")
    assert not step.replays(torch.device("cuda"))


def test_a_step_refuses_an_objective_without_parameters(tiny_run):
    run = tiny_run()
    model, method = build(run, *load_data(run)[:2])
    method.objective = lambda model, batch: (torch.ones(2), torch.tensor(1.0))
    with pytest.raises(ParameterError, match="'plain' gave a loss that depends on no parameter"):
        Step(run, model, method, loop.make_optimizer(run, model))(next(iter(method.batches)), 0.1)


# --- on a GPU ------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_on_a_gpu_replays_and_pauses_change_no_bit(tiny_run, store, monkeypatch, fields):
    fields = {"epochs": 6, "device": "cuda"} | fields | {"keep": ("final_weights",)}
    run = tiny_run(**fields)
    monkeypatch.setattr(step, "WARM_UP", 1)
    monkeypatch.setattr(loop, "make_step", Step)
    eager, history = weights_and_history(run, store)
    monkeypatch.setattr(loop, "make_step", step.make_step)
    for pause in (None, 2):
        other = type(store)(store.path / str(pause), checkpoint_seconds=0)
        if pause:
            interrupt_after(run, other, pause)
        replayed, replayed_history = weights_and_history(run, other)
        # atomic additions of a history of predictions come in any order
        exact = run.method != "active_bias"
        torch.testing.assert_close(replayed, eager, rtol=0, atol=0 if exact else 1e-5)
        if exact:
            assert replayed_history == history


def weights_and_history(run, store):
    frame = run_missing([run], store, use_committed=False)
    history = load_history(frame, store).drop(columns="key").to_dict("records")
    return dict(load_artefact(run, "final_weights", store)), history
