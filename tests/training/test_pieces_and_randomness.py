"""What methods, loop and evaluation share: losses, precision, generators, states of generators."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hardtrain import build_network
from hardtrain.runs.run_data import load_data
from hardtrain.training import pieces, randomness

CPU = torch.device("cpu")


def test_precision_context_runs_the_forward_in_bfloat16():
    layer, inputs = nn.Linear(4, 4), torch.randn(2, 4)
    with pieces.precision_context("bfloat16", torch.device("cpu")):
        assert layer(inputs).dtype == torch.bfloat16
    with pieces.precision_context("float32", torch.device("cpu")):
        assert layer(inputs).dtype == torch.float32


def test_sample_losses_are_float32_under_autocast():
    model = build_network("cnn_small", 3, 1, image_size=8)
    batch = SimpleNamespace(inputs=torch.randn(4, 1, 8, 8), targets=torch.tensor([0, 1, 2, 0]))
    with torch.autocast("cpu", torch.bfloat16):
        assert pieces.sample_losses(model, batch).dtype == torch.float32
    logits = torch.randn(4, 3).bfloat16()
    expected = pieces.class_losses(logits.float(), batch.targets)
    assert torch.equal(pieces.class_losses(logits, batch.targets), expected)


@pytest.mark.parametrize(
    ("chosen", "drop_last", "sizes"),
    [(6, False, [3, 3]), (7, False, [3, 3]), (8, False, [3, 3, 2]), (8, True, [3, 3]),
     (1, False, [1]), (2, True, [2])],
)  # fmt: skip
def test_chosen_batches_leave_a_last_single_sample_out(tiny_run, chosen, drop_last, sizes):
    run = tiny_run(batch_size=10)
    candidates, _ = pieces.uniform_batches(run, load_data(run)[0])
    left = iter([chosen, 0, 0, 0, 0, 0])

    def choose(batch):
        return torch.arange(next(left))

    batches = pieces.ChosenBatches(candidates, choose, 3, drop_last=drop_last)
    assert [len(batch.indices) for batch in batches] == sizes


def test_generators_of_one_seed_differ_by_purpose_and_repeat():
    def draw(seed, purpose):
        return torch.rand(4, generator=randomness.generator(seed, purpose)).tolist()

    draws = [draw(seed, purpose) for seed in (0, 1) for purpose in ("order", "augmentation")]
    assert len(set(map(tuple, draws))) == 4
    assert draw(1, "order") == draws[2]
    # a change here changes every run
    assert randomness.derived_seed(0, "order") == 5231958647509549229


def test_isolated_randomness_seeds_and_leaves_the_callers_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with randomness.isolated_randomness(3, CPU):
        first = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(9)
    with randomness.isolated_randomness(3, CPU):
        assert torch.equal(torch.rand(4), first)
        state = randomness.global_state(CPU)
        after = torch.rand(4)
        randomness.set_global_state(state, CPU)
        assert torch.equal(torch.rand(4), after)
    with randomness.isolated_randomness(4, CPU):
        assert not torch.equal(torch.rand(4), first)


def test_a_global_state_goes_back_to_its_own_kind_of_device_only():
    state = randomness.global_state(CPU)
    with pytest.raises(ValueError, match="saved on the CPU, and draws other numbers on cuda"):
        randomness.set_global_state(state, torch.device("cuda"))
    with pytest.raises(ValueError, match=r"saved on a CUDA device, .* on cpu"):
        randomness.set_global_state(state | {"cuda": state["cpu"]}, CPU)


def test_isolated_randomness_restores_the_state_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), randomness.isolated_randomness(3, CPU):
        torch.rand(1).item() / 0
    assert torch.equal(torch.get_rng_state(), before)


NEW = hasattr(torch.backends.mkldnn, "matmul")  # torch's own way to set it since 2.9
CUDNN, MATMUL = torch.backends.cudnn, torch.backends.cuda.matmul


@pytest.fixture
def caller(request):
    """The caller's own setting, put back afterwards."""
    place, name, value = request.param
    found = getattr(place, name)
    setattr(place, name, value)
    yield
    setattr(place, name, found)


@pytest.mark.parametrize(
    "caller",
    [(CUDNN, "allow_tf32", True), (CUDNN, "allow_tf32", False), (MATMUL, "allow_tf32", True),
     *([(MATMUL, "fp32_precision", "tf32"), (torch.backends, "fp32_precision", "tf32")] if NEW
       else [])],
    indirect=True,
)  # fmt: skip
def test_float32_is_float32_and_tf32_a_choice_whatever_the_caller_set(caller):
    places = [CUDNN.conv, CUDNN.rnn, MATMUL] if NEW else [CUDNN, MATMUL]

    def read():
        allowed = [getattr(place, "fp32_precision" if NEW else "allow_tf32") for place in places]
        return [CUDNN.enabled, CUDNN.benchmark, CUDNN.deterministic, *allowed]

    before, no, yes = read(), *(("ieee", "tf32") if NEW else (False, True))
    for precision, allowed in (("float32", no), ("tf32", yes), ("bfloat16", no)):
        with randomness.isolated_randomness(0, CPU, precision=precision):
            assert read() == [True, False, True, *[allowed] * len(places)]
        assert read() == before
        with pytest.raises(ZeroDivisionError):
            with randomness.isolated_randomness(0, CPU, precision=precision):
                torch.rand(1).item() / 0
        assert read() == before


def test_endless_draws_a_batch_only_when_it_is_wanted():
    drawn = []

    class Passes:
        def __iter__(self):
            for number in (1, 2):
                drawn.append(number)
                yield number

    batches = pieces.endless(Passes())
    assert drawn == []  # or a generator would be ahead of a resumed run's
    for expected in ([1], [1, 2], [1, 2, 1], [1, 2, 1, 2]):
        assert next(batches) == expected[-1]
        assert drawn == expected


def test_older_and_newer_flags_of_tf32_agree_while_a_run_is_trained():
    for precision in ("float32", "tf32"):
        with randomness.repeatable_kernels(precision):
            allowed = precision == "tf32"
            assert torch.backends.cudnn.allow_tf32 == allowed
            assert torch.backends.cuda.matmul.allow_tf32 == allowed
            with torch.backends.cudnn.flags(enabled=True):
                torch.get_float32_matmul_precision()


def test_a_runs_device_is_the_current_one(monkeypatch):
    current = [0]

    @contextlib.contextmanager
    def device(chosen):
        current.append(chosen.index)
        yield
        current.pop()

    seeded = []
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: seeded.append(current[-1]))
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    with randomness.isolated_randomness(0, torch.device("cuda", 1)):
        assert current == [0, 1]
    assert current == [0]
    assert seeded == [1]
