"""Methods that act in different places, in one run; those that do not combine, and why."""

import numpy as np
import pytest
from helpers import interrupt_after

from hardtrain import ParameterError, load_artefact, load_history, run_missing
from hardtrain.runs.run_data import load_data
from hardtrain.runs.train import build
from hardtrain.training import lookup

KEEP = ("final_weights",)


def weights(run, store):
    return load_artefact(run, "final_weights", store)


def alike(a, b):
    return all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("together", "options", "alone", "alone_options"),
    [
        ("trimming+gradient_noise", {"alpha": 0.0}, "trimming", {}),
        ("trimming+gradient_noise", {"start": 1.0, "end": 1.0}, "gradient_noise", {}),
        ("hard_batches+trimming", {"start": 1.0, "end": 1.0}, "hard_batches", {}),
        ("trimming+random_share", {"random_share_share": 1.0}, "trimming", {}),
        ("gradient_noise+active_bias", {"alpha": 0.0, "variant": "SPV"}, "active_bias",
         {"variant": "SPV"}),
        ("gradient_noise+selective_backprop", {"alpha": 0.0}, "selective_backprop", {}),
        ("gradient_noise+reducible_loss", {"alpha": 0.0}, "reducible_loss", {}),
    ],
)  # fmt: skip
def test_a_part_that_does_nothing_leaves_the_other_bit_for_bit(
    tiny_run, store, together, options, alone, alone_options
):
    fields = {"epochs": 4, "momentum": 0.9, "keep": KEEP}
    both = tiny_run(method=together, options=options, **fields)
    single = tiny_run(method=alone, options=alone_options, **fields)
    run_missing([both, single], store)
    assert alike(weights(both, store), weights(single, store))


def test_both_parts_act(tiny_run, store):
    fields = {"epochs": 4, "keep": KEEP}
    runs = [
        tiny_run(method=method, **fields)
        for method in ("trimming", "gradient_noise", "trimming+gradient_noise")
    ]
    history = load_history(run_missing(runs, store), store)
    trimming, noise, both = (weights(run, store) for run in runs)
    assert not alike(both, trimming)
    assert not alike(both, noise)
    kept = history[history["key"] == runs[2].key]["keep"]  # what trimming logs
    assert kept.tolist() == pytest.approx([1, 1 - 0.8 / 3, 1 - 1.6 / 3, 0.2])


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("hard_batches+trimming+gradient_noise", {"alpha": 1e-4, "delta": 0.8}),
        ("trimming+gradient_noise", {}),  # each has a generator called order
    ],
)
def test_a_combination_goes_on_after_a_pause_with_the_same_bits(tiny_run, store, method, options):
    run = tiny_run(method=method, options=options, epochs=4, keep=KEEP)
    frame = run_missing([run], store)
    for end in (1, 3):
        other = type(store)(store.path.with_name(f"paused{end}"), checkpoint_seconds=0.0)
        interrupt_after(run, other, end)
        resumed = load_history(run_missing([run], other), other)
        assert resumed.equals(load_history(frame, store))
        assert alike(weights(run, store), weights(run, other))


def test_artefacts_are_those_of_the_parts(tiny_run, store):
    keep = ("batch_log", "sample_counts")
    run = tiny_run(method="hard_batches+trimming", epochs=4, keep=keep)
    counts = load_artefact(run, "sample_counts", store)["counts"].sum()
    assert load_artefact(run, "batch_log", store)["ids"].shape == (16,)
    assert 0 < counts < 4 * 60  # of what was kept, not of all that were in a batch
    for method in ("random_share+trimming", "trimming+random_share"):
        share = tiny_run(method=method, epochs=4, keep=("sample_counts",))
        kept = load_artefact(share, "sample_counts", store)["counts"].sum()
        assert 0 < kept < 4 * 30  # trimming's, who decides what counts


def test_options_are_those_of_the_parts(tiny_run):
    run = tiny_run(method="trimming+gradient_noise", options={"end": 0.5, "gamma": 1})
    expected = {"alpha": 1e-5, "end": 0.5, "gamma": 1.0, "share": "hardest", "start": 1.0}
    assert dict(run.options) == expected
    assert tiny_run(**run.as_dict()).key == run.key
    with pytest.raises(ParameterError, match="did you mean 'gamma'"):
        tiny_run(method="trimming+gradient_noise", options={"gama": 1.0})
    # two of one name
    options = lookup.default_options("random_share+reducible_loss")
    assert {"random_share_share": 0.5, "reducible_loss_share": 0.1}.items() <= options.items()


def test_the_key_follows_the_versions_of_all_parts(tiny_run, monkeypatch):
    from hardtrain.training import methods

    before = tiny_run(method="trimming+gradient_noise").key
    assert before != tiny_run(method="trimming").key
    keys = {before}
    for part, number in ((methods.gradient_noise, 99), (methods.trimming, 98)):
        monkeypatch.setattr(part, "VERSION", number)
        keys.add(tiny_run(method="trimming+gradient_noise").key)
    assert len(keys) == 3


@pytest.mark.parametrize(("share", "replayed"), [("hardest", True), ("random", False)])
def test_steps_are_replayed_only_where_all_parts_allow_it(tiny_run, share, replayed):
    run = tiny_run(method="trimming+gradient_noise", options={"share": share})
    train, test, _ = load_data(run)
    _, method = build(run, train, test)
    assert (method.graph_key is not None) is replayed


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("trimming+focal", "trimming and focal both decide how the losses of a batch become one"),
        ("trimming+distribution_matching", "both decide how the losses of a batch become one numb"),
        ("hard_batches+random_share", "hard_batches and random_share both choose which samples ar"),
        ("dynamic_pruning+trimming", "both decide how the losses of a batch become one number"),
        ("selective_backprop+reducible_loss", "both choose which samples are in a batch"),
        ("trimming+hard_batches+focal", "trimming and focal both decide"),
    ],
)
def test_two_that_act_in_one_place_are_refused_before_training(tiny_run, store, method, reason):
    run = tiny_run(method=method)
    with pytest.raises(ParameterError, match=reason):
        run_missing([run], store)
    assert not store.path.exists()


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("plain+trimming", "plain training is what methods change; leave it out"),
        ("trimming+trimming", "names a method twice"),
        ("trimming+gradient_nois", "unknown method 'gradient_nois'; did you mean 'gradient_noise'"),
        ("trimming+", "unknown method ''"),
        ("+trimming", "unknown method ''"),
    ],
)
def test_names_that_do_not_combine_are_refused_at_once(tiny_run, method, reason):
    with pytest.raises(ParameterError, match=reason):
        tiny_run(method=method)


def test_a_method_of_ones_own_combines(tiny_run, store, tmp_path, monkeypatch):
    import sys

    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_halves.py").write_text(
        "from hardtrain.training.lookup import version\n"
        "from hardtrain.training.loop import Method\n"
        "from hardtrain.training.pieces import sample_losses, uniform_batches\n\n\n"
        "@version(1)\n"
        "def halved(run, data, model, *, factor: float = 0.5):\n"
        "    batches, state = uniform_batches(run, data)\n\n"
        "    def objective(model, batch):\n"
        "        losses = sample_losses(model, batch)\n"
        "        return losses, factor * losses.mean()\n\n"
        "    return Method(batches, objective, state=state)\n"
    )
    run = tiny_run(method="own_halves:halved+hard_batches", options={"factor": 1.0}, keep=KEEP)
    same = tiny_run(method="hard_batches", keep=KEEP)
    run_missing([run, same], store)
    assert alike(weights(run, store), weights(same, store))
    sys.modules.pop("own_halves")
