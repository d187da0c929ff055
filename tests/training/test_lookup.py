"""Methods by name: those of the package, and anyone's own from a module on the path."""

import inspect
import sys
import textwrap

import numpy as np
import pytest
from helpers import interrupt_after

from hardtrain import ParameterError, Run, RunStore, load_artefact, load_history, run_missing
from hardtrain.training import lookup, methods, peers

OWN = '''
from __future__ import annotations

import torch

from hardtrain.training.lookup import version
from hardtrain.training.loop import Method
from hardtrain.training.pieces import sample_losses, uniform_batches


class Largest:
    """The largest loss of each sample so far, which the next objective looks at."""

    def __init__(self, num_samples):
        self.losses = torch.zeros(num_samples)

    def update(self, indices, losses):
        self.losses[indices] = torch.maximum(self.losses[indices], losses)

    def arrays(self):
        return {"counts": self.losses}

    def state_dict(self):
        return {"losses": self.losses}

    def load_state_dict(self, state):
        self.losses.copy_(state["losses"])


@version(3)
def by_largest(run, data, model, *, strength: float = 0.5, start: int = 1, name: str = "a",
               square: bool = False):
    batches, state = uniform_batches(run, data)
    largest = Largest(len(data))

    def objective(model, batch):
        losses = sample_losses(model, batch)
        weights = 1 + strength * largest.losses[batch.indices]
        return losses, (weights * losses).mean() ** (2 if square else 1)

    return Method(
        batches,
        objective,
        observe=largest.update,
        state=state | {"largest": largest},
        artefacts={"sample_counts": largest.arrays},
    )


def plain_function(run, data, model):
    pass


@version(1)
def without_annotation(run, data, model, *, strength=0.5):
    pass


@version(1)
def of_a_list(run, data, model, *, strengths: list = ()):
    pass


@version(1)
def without_default(run, data, model, *, strength: float):
    pass


@version(1)
def not_keyword_only(run, data, model, strength: float = 0.5):
    pass


@version("2")
def version_of_text(run, data, model):
    pass


VERSION = 7
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The text of a module of methods that can be imported as ``own_methods``."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_methods.py").write_text(OWN)
    (tmp_path / "broken_methods.py").write_text("import no_such_package\n")
    yield OWN
    for name in ("own_methods", "broken_methods"):
        sys.modules.pop(name, None)


# --- the methods of the package ------------------------------------------------------------------


def test_a_name_is_a_function_of_methods_and_the_error_names_the_nearest():
    assert lookup.find_method("trimming") is methods.trimming
    assert lookup.find_method("focal") is peers.focal
    with pytest.raises(ParameterError) as caught:
        lookup.find_method("triming")
    assert str(caught.value) == (
        "unknown method 'triming'; did you mean 'trimming'? known: plain, trimming, hard_batches, "
        "gradient_noise, distribution_matching, active_bias, focal, random_share, "
        "dynamic_pruning, selective_backprop, reducible_loss"
    )
    for name in ("version", "mmd", "Method", "torch", ""):  # what the module imports is no method
        with pytest.raises(ParameterError, match="unknown method"):
            lookup.find_method(name)
    with pytest.raises(ParameterError, match="method = 3 is int, not text"):
        lookup.find_method(3)


def test_every_option_of_the_package_is_annotated_with_the_type_of_its_default():
    own = [vars(module) for module in (methods, peers)]
    named = [name for known in own for name in known if hasattr(known[name], "VERSION")]
    assert len(set(named) & {"trimming", "hard_batches", "reducible_loss", "active_bias"}) == 4
    for name in (
        name for name in named if callable(getattr(methods, name, None) or vars(peers)[name])
    ):
        for option in inspect.signature(lookup.find_method(name)).parameters.values():
            if option.kind is option.KEYWORD_ONLY:
                assert option.annotation is type(option.default)


def test_checked_options_have_the_annotated_type_and_the_order_of_their_names():
    options = lookup.checked_options("gradient_noise", {"gamma": 1})
    assert list(options.items()) == [("alpha", 1e-5), ("gamma", 1.0)]
    assert type(options["gamma"]) is float


# --- anyone's own --------------------------------------------------------------------------------


def test_an_own_method_has_options_from_its_annotations(own, tiny_run):
    run = tiny_run(method="own_methods:by_largest", options={"strength": 2, "start": -3})
    assert run.method == "own_methods:by_largest"
    assert dict(run.options) == {"name": "a", "square": False, "start": -3, "strength": 2.0}
    assert type(run.options["strength"]) is float
    assert str(run).startswith("own_methods:by_largest name=a square=False start=-3 strength=2.0,")
    assert Run(**run.as_dict()).key == run.key
    for options, text in (
        ({"strength": "2"}, "strength = '2' is text"),
        ({"start": 1.0}, "start = 1.0 is float, not int"),
        ({"square": 1}, "square = 1 is int, not bool"),
        ({"name": 1}, "name = 1 is int, not text"),
        ({"strenght": 1.0}, "did you mean 'strength'"),
    ):
        with pytest.raises(ParameterError, match=text):
            tiny_run(method="own_methods:by_largest", options=options)


def test_the_key_of_an_own_method_follows_its_name_options_and_version(own, tiny_run, monkeypatch):
    def key(**options):
        return tiny_run(method="own_methods:by_largest", options=options).key

    first = key()
    assert len({first, key(strength=0.1), key(square=True), tiny_run().key}) == 4
    assert key(strength=0.5) == first
    monkeypatch.setattr(sys.modules["own_methods"].by_largest, "VERSION", 4)
    assert key() != first


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no_such_module:f", "cannot import 'no_such_module' .*No module named 'no_such_module'"),
        ("broken_methods:f", "cannot import 'broken_methods' .*No module named 'no_such_package'"),
        (":f", "cannot import ''"),
        (".own_methods:f", "cannot import '.own_methods'"),
        ("own_methods:by_larges", "unknown method .* did you mean 'own_methods:by_largest'"),
        ("own_methods:", "unknown method 'own_methods:'"),
        ("own_methods:VERSION", "unknown method"),
        (
            "own_methods:plain_function",
            r"has no VERSION; mark it with @version\(1\)",
        ),
        ("own_methods:without_annotation", "'strength' needs an annotation and a default"),
        ("own_methods:of_a_list", "'strengths' needs .* allowed types: bool, int, float, str"),
        ("own_methods:without_default", "'strength' needs an annotation and a default"),
        ("own_methods:not_keyword_only", r"are not \(run, data, model, \*, options\)"),
        ("own_methods:version_of_text", "VERSION of method .* = '2' is str, not int"),
    ],
)
def test_what_is_no_method_is_refused_and_the_error_says_why(own, tiny_run, name, text):
    with pytest.raises(ParameterError, match=text):
        tiny_run(method=name)


def test_an_own_method_trains_in_a_sweep_and_goes_on_after_a_pause(own, tiny_run, store):
    fields = {"method": "own_methods:by_largest", "epochs": 4, "keep": ("sample_counts",)}
    run = tiny_run(**fields, options={"strength": 2.0})
    none = tiny_run(**fields, options={"strength": 0.0})
    plain = tiny_run(epochs=4)
    frame = run_missing([run, none, plain], store)
    assert frame["method"].tolist() == [*["own_methods:by_largest"] * 2, "plain"]
    assert frame["test_loss"][1] == frame["test_loss"][2]  # weights of 1
    assert frame["test_loss"][0] != frame["test_loss"][2]
    history, losses = load_history(frame, store), load_artefact(run, "sample_counts", store)
    assert (losses["counts"] > 0).all()
    assert run_missing([run], store)["source"].tolist() == ["store"]
    for end in (1, 3):
        other = RunStore(store.path / f"paused{end}", checkpoint_seconds=0.0)
        interrupt_after(run, other, end)
        results = run_missing([run], other)
        expected = history[history["key"] == run.key].reset_index(drop=True)
        assert load_history(results, other).equals(expected)
        resumed = load_artefact(run, "sample_counts", other)
        assert np.array_equal(resumed["counts"], losses["counts"])


def test_the_example_of_the_module_is_a_method(tmp_path, monkeypatch):
    text = textwrap.dedent(lookup.__doc__.split("::")[1].split("``Run(")[0])
    (tmp_path / "my_module.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    run = Run("digits", "cnn_small", method="my_module:mine", options={"strength": 0.2})
    assert dict(run.options) == {"strength": 0.2}
    sys.modules.pop("my_module")
