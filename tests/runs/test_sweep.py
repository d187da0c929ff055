"""Run and its key; run_missing: what is trained, what is found, what is refused; the tables."""

import dataclasses
import json
import math
import signal
import threading
import time
import types
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch

from hardtrain import (
    DataError,
    DivergedError,
    ParameterError,
    RecordError,
    Run,
    RunStore,
    StoreError,
    SweepError,
    load_artefact,
    load_history,
    load_timings,
    run_missing,
    write_results,
)
from hardtrain.runs import sweep, train
from hardtrain.runs.progress import Progress
from hardtrain.runs.results import read_csv
from hardtrain.runs.run_data import load_data
from hardtrain.training import evaluation, loop, methods, pieces

BASE = {
    "dataset": "digits",
    "network": "cnn_small",
    "method": "trimming",
    "epochs": 4,
    "momentum": 0.5,
}
# another value for every field that a run's numbers depend on
OTHER = {
    "dataset": "mnist",
    "network": "cnn2",
    "method": "plain",
    "options": {"end": 0.5},
    "seed": 1,
    "epochs": 5,
    "batch_size": 64,
    "drop_last": True,
    "train_size": 100,
    "test_size": 100,
    "validation_size": 100,
    "optimizer": "adam",
    "lr": 0.02,
    "momentum": 0.6,
    "nesterov": True,
    "weight_decay": 1e-4,
    "schedule": "cosine",
    "gamma": 0.2,
    "milestones": [2, 3],
    "step_epochs": 2,
    "warmup_epochs": 1,
    "stem": "imagenet",
    "image_size": 16,
    "augment": "flip",
    "precision": "bfloat16",
    "channels_last": True,
    "compiled": True,
    "evaluate_every": 2,
    "evaluate_unit": "step",
    "evaluate_last": 10,
    "evaluate_train": True,
    "batch_norm": "batch",
    "ghost_batch_size": 16,
    "balanced": True,
    "label_noise": 0.1,
    "label_noise_seed": 0,
    "subset": "kAA=",
}
NEEDS = {"evaluate_last": {"evaluate_unit": "step"}}  # what a field makes no sense without
PLACE = {"device": "cpu", "data_root": "/somewhere", "keep": ["features"]}


@pytest.fixture(autouse=True)
def committed(tmp_path, monkeypatch):
    """An empty folder in place of the repository's figures."""
    monkeypatch.setenv("HARDTRAIN_COMMITTED", str(tmp_path / "committed"))
    return tmp_path / "committed"


@pytest.fixture
def trained(monkeypatch):
    """The runs that were trained, in order."""
    runs, fit = [], loop.fit

    def counting(run, *args, **kwargs):
        runs.append(run)
        return fit(run, *args, **kwargs)

    monkeypatch.setattr(loop, "fit", counting)
    return runs


@pytest.fixture
def own_set(tmp_path):
    """A function that writes a set like ``tiny_set`` that a test may change."""

    def write(seed=0, sizes=(60, 20), name="own"):
        rng = np.random.default_rng(seed)
        for split, size in zip(("train", "test"), sizes, strict=True):
            labels = np.arange(size) % 3
            images = rng.integers(0, 120, (size, 8, 8)) + 60 * labels[:, None, None]
            arrays = {"images": images.astype(np.uint8), "labels": labels}
            np.savez(tmp_path / f"{name}_{split}.npz", **arrays)
        return str(tmp_path / name)

    return write


def files_below(folder):
    return sorted(str(path) for path in folder.rglob("*"))


# --- Run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("dataset", 3, "dataset = 3 is int, not text"),
        ("network", "resnet-18", "unknown network 'resnet-18'; did you mean 'resnet18'?"),
        ("method", "trimmming", "unknown method 'trimmming'; did you mean 'trimming'? known: "),
        ("method", ["plain"], "method = ['plain'] is list, not text"),
        ("method", "version", "unknown method 'version'"),
        ("options", {"sigma": 0.1}, "unknown option of method 'trimming' 'sigma'; "),
        ("options", {"End": 0.1}, "did you mean 'end'? known: start, end"),
        ("options", {"end": "0.5"}, "end = '0.5' is text"),
        ("options", {"end": True}, "end = True is bool, not float"),
        ("options", {"end": math.nan}, "end = nan is not finite"),
        ("options", {"end": [0.5]}, "end = [0.5] is list, not float"),
        ("options", {1: 0.5}, "option of method 'trimming' = 1 is int, not text"),
        ("options", ["end"], "options = ['end'] is not a mapping"),
        ("options", None, "options = None is not a mapping"),
        ("seed", -1, "seed = -1 is less than 0"),
        ("epochs", 0, "epochs = 0 is less than 1"),
        ("batch_size", 0, "batch_size = 0 is less than 1"),
        ("drop_last", 1, "drop_last = 1 is int, not bool"),
        ("train_size", -5, "train_size = -5 is less than 0"),
        ("test_size", -1, "test_size = -1 is less than 0"),
        ("optimizer", "SGD", "unknown optimizer 'SGD'; did you mean 'sgd'?"),
        ("lr", 0, "lr = 0 is not more than 0"),
        ("momentum", 1, "momentum = 1 is not less than 1"),
        ("momentum", -0.1, "momentum = -0.1 is not at least 0"),
        ("nesterov", "yes", "nesterov = 'yes' is str, not bool"),
        ("weight_decay", -1e-4, "weight_decay = -0.0001 is not at least 0"),
        ("schedule", "cosin", "unknown schedule 'cosin'; did you mean 'cosine'?"),
        ("gamma", 0, "gamma = 0 is not more than 0"),
        ("milestones", 30, "milestones = 30 is int, not a list"),
        ("milestones", [0], "milestones = 0 is less than 1"),
        ("step_epochs", 0, "step_epochs = 0 is less than 1"),
        ("warmup_epochs", -1, "warmup_epochs = -1 is less than 0"),
        ("warmup_epochs", 5, "warmup_epochs = 5 is more than epochs = 4"),
        ("stem", "CIFAR", "unknown stem 'CIFAR'; did you mean 'cifar'?"),
        ("image_size", -1, "image_size = -1 is less than 0"),
        ("augment", "flip+crop", "unknown augment 'flip+crop'; did you mean "),
        ("precision", "bf16", "unknown precision 'bf16'; "),
        ("channels_last", None, "channels_last = None is NoneType, not bool"),
        ("evaluate_every", 0, "evaluate_every = 0 is less than 1"),
        ("evaluate_unit", "epochs", "did you mean 'epoch'?"),
        ("evaluate_last", -1, "evaluate_last = -1 is less than 0"),
        ("keep", "features", "keep = 'features' is text, not a list"),
        ("batch_norm", "group", "unknown batch_norm 'group'; "),
        ("evaluate_train", 1, "evaluate_train = 1 is int, not bool"),
        ("balanced", 1, "balanced = 1 is int, not bool"),
        ("ghost_batch_size", -1, "ghost_batch_size = -1 is less than 0"),
        ("label_noise", 1, "label_noise = 1 is not less than 1"),
        ("label_noise_seed", -1, "label_noise_seed = -1 is less than 0"),
        ("keep", ["feature"], "unknown keep 'feature'; did you mean 'features'?"),
        ("device", 0, "device = 0 is int, not text"),
        ("data_root", 5, "data_root = 5 is int, not text"),
    ],
)
def test_run_checks_each_field_as_it_should(field, value, text):
    with pytest.raises(ParameterError) as caught:
        Run(**BASE | {field: value})
    assert text in str(caught.value)


def test_run_refuses_options_of_another_method():
    with pytest.raises(ParameterError, match="method 'plain' has no options; got 'end'"):
        Run(dataset="digits", network="cnn_small", options={"end": 0.5})


def test_run_refuses_nesterov_without_momentum():
    with pytest.raises(ParameterError, match="nesterov = True needs momentum > 0"):
        Run(dataset="digits", network="cnn_small", nesterov=True)


def test_run_refuses_last_evaluations_of_epochs():
    with pytest.raises(ParameterError, match="evaluate_last = 3 needs evaluate_unit = 'step'"):
        Run(dataset="digits", network="cnn_small", evaluate_last=3)


@pytest.mark.parametrize("method", ["selective_backprop", "dynamic_pruning", "reducible_loss"])
def test_the_last_evaluations_of_unknown_steps_are_refused(tiny_run, store, method):
    fields = {"evaluate_unit": "step", "evaluate_last": 2}
    with pytest.raises(ParameterError, match="does not know its number of updates before"):
        run_missing([tiny_run(method=method, **fields)], store)


def test_run_refuses_an_unknown_field():
    with pytest.raises(TypeError, match="learning_rate"):
        Run(dataset="digits", network="cnn_small", learning_rate=0.1)


def test_every_field_is_checked():
    fields = {item.name for item in dataclasses.fields(Run)}
    for name in fields:
        with pytest.raises(ParameterError, match=name):
            Run(**BASE | {name: object()})
    assert fields == OTHER.keys() | PLACE.keys()


def test_run_goes_through_json_unchanged():
    for changes in ({}, *(NEEDS.get(k, {}) | {k: v} for k, v in (OTHER | PLACE).items())):
        run = Run(**BASE | changes)
        again = Run(**json.loads(json.dumps(run.as_dict(), allow_nan=False)))
        assert again == run
        assert again.key == run.key
        assert hash(again) == hash(run)


def test_runs_are_equal_by_content_and_hashable():
    a = Run(**BASE, options={"end": 0.5, "start": 0.9}, milestones=[2, 3], lr=1)
    b = Run(**BASE, options={"start": 0.9, "end": 0.5}, milestones=(2, 3), lr=1.0)
    assert a == b
    assert len({a, b, dataclasses.replace(a, seed=1)}) == 2
    assert a != dataclasses.replace(a, device="cpu")  # another place is another run, of one key


def test_a_run_cannot_be_changed_through_what_it_gives_away():
    run = Run(**BASE)
    key = run.key
    run.as_dict()["options"]["end"] = 0.9
    run.as_dict()["milestones"].append(3)
    assert run == Run(**BASE)
    assert Run(**run.as_dict()).key == key
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.seed = 1


def test_data_root_takes_a_path(tmp_path):
    assert Run(**BASE, data_root=tmp_path).data_root == str(tmp_path)


# --- the key -------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", [item.name for item in dataclasses.fields(Run)])
def test_key_covers_every_field_that_changes_the_numbers(field):
    """A new field belongs into OTHER, or into PLACE if it changes only where a run is made."""
    assert field in OTHER or field in PLACE
    base = BASE | NEEDS.get(field, {})
    changed = Run(**base | {field: (OTHER | PLACE)[field]})
    assert (changed.key == Run(**base).key) == (field in PLACE)


def test_keys_of_all_changes_differ():
    keys = [Run(**BASE | NEEDS.get(k, {}) | {k: v}).key for k, v in OTHER.items()]
    assert len({Run(**BASE).key, *keys}) == len(OTHER) + 1


def test_key_covers_the_versions(monkeypatch):
    def keys():
        return [Run(**BASE | {"method": name}).key for name in ("plain", "trimming")]

    plain, trimming = keys()
    monkeypatch.setattr(methods.trimming, "VERSION", 1000)
    assert keys()[0] == plain
    assert keys()[1] != trimming
    monkeypatch.setattr(loop, "VERSION", 1000)
    assert keys()[0] != plain


def test_key_does_not_depend_on_how_a_value_is_written():
    key = Run(**BASE).key
    assert Run(**BASE, options={"start": 1, "end": 0.2}).key == key  # the defaults
    assert Run(**BASE, lr=0.01, milestones=[], seed=0).key == key
    assert Run(**BASE, lr=1).key == Run(**BASE, lr=1.0).key
    assert Run(**BASE, weight_decay=-0.0).key == key


def test_key_is_the_same_in_every_version_golden():
    """A changed key makes every stored and committed result unfindable.

    If VERSION of a method or of training was raised on purpose, or a field that stands here was
    renamed: put the new keys here and run the notebooks again. If not, the change is a mistake.
    """
    plain = Run(dataset="digits", network="cnn_small", epochs=20, lr=0.1, seed=3)
    trimming = Run(
        dataset="cifar10",
        network="resnet18",
        method="trimming",
        options={"end": 0.3},
        epochs=150,
        optimizer="adam",
        lr=1e-3,
        milestones=[60, 120],
        schedule="multistep",
        augment="crop+flip",
    )
    assert (loop.VERSION, methods.plain.VERSION, methods.trimming.VERSION) == (1, 1, 1)
    assert plain.key == "94493b4e06b142490bfb"
    assert trimming.key == "bb8f745278f245a3a3ee"
    # what an option is at its default is not in the key; a control has a key of its own
    assert dataclasses.replace(trimming, options={"end": 0.3, "share": "hardest"}) == trimming
    assert (
        dataclasses.replace(trimming, options={"end": 0.3, "share": "random"}).key != trimming.key
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": "plain"}, (2.1160900, 1.8869824)),
        ({"method": "trimming", "augment": "crop+flip", "lr": 0.2}, (2.3168387, 2.3104294)),
    ],
)
def test_numbers_are_the_same_in_every_version_golden(store, changes, expected):
    common = {"dataset": "digits", "network": "cnn_small", "train_size": 200, "test_size": 100}
    common |= {"epochs": 2, "batch_size": 20, "lr": 0.05, "momentum": 0.9, "device": "cpu"}
    run = Run(**common | changes)
    row = run_missing([run], store, use_committed=False).iloc[0]
    here = (row["train_loss"], row["test_loss"])
    assert here == pytest.approx(expected, rel=1e-4), (  # other CPUs round differently
        f"{run} gives other numbers than before. Was that meant? Then raise VERSION, so that no "
        f"record of the old numbers is taken for one of the new: of methods.{run.method} if only "
        "its numbers changed, of training.py if the loop, the schedules, the data's order or "
        "augmentation, the networks or the seeding did; then put the new numbers here"
    )


# --- what is trained, what is found --------------------------------------------------------------


def test_run_missing_trains_only_what_is_missing(store, tiny_run, trained):
    a, b, c = (tiny_run(seed=seed) for seed in range(3))
    run_missing([a, b], store)
    assert trained == [a, b]
    run_missing([c, b, a], store)
    assert trained == [a, b, c]
    run_missing([a, b, c], store)
    assert trained == [a, b, c]


def test_run_missing_gives_a_row_for_each_run_in_order(store, tiny_run, trained):
    runs = [tiny_run(seed=seed) for seed in (2, 0, 2, 1, 0)]
    frame = run_missing(iter(runs), store)
    assert len(trained) == 3
    assert list(frame["seed"]) == [2, 0, 2, 1, 0]
    assert list(frame["key"]) == [run.key for run in runs]
    assert list(frame.columns[:4]) == ["key", "fingerprint", "source", "status"]
    assert set(frame["source"]) == {"store"}
    assert set(frame["status"]) == {"finished"}
    assert frame["test_error"].between(0, 1).all()
    assert len(json.loads(frame["per_class_error"][0])) == 3
    assert frame["diverged_epoch"].isna().all()
    pd.testing.assert_frame_equal(frame, run_missing(runs, store))


def test_run_missing_trains_nothing_when_told_so(store, tiny_run, trained):
    runs = [tiny_run(seed=seed) for seed in (0, 1)]
    nothing = run_missing(runs, store, train_missing=False)
    assert nothing.empty
    run_missing(runs[1:], store)
    found = run_missing(runs, store, train_missing=False)
    assert found["seed"].tolist() == [1]
    assert found.columns.tolist() == nothing.columns.tolist()
    assert len(trained) == 1


def test_a_changed_parameter_never_finds_an_old_record(store, tiny_run, trained):
    run_missing([tiny_run()], store)
    changed = [
        tiny_run(lr=0.05000000000000001),
        tiny_run(method="trimming"),
        tiny_run(method="trimming", options={"end": 0.5}),
        tiny_run(train_size=30),
        tiny_run(batch_size=17),
    ]
    run_missing(changed, store)
    assert trained[1:] == changed


def test_where_a_run_is_made_does_not_matter(store, tiny_run, trained):
    run_missing([tiny_run()], store)
    run_missing([tiny_run(device="auto"), tiny_run(data_root="/nowhere")], store)
    assert len(trained) == 1


def test_a_sweep_that_grows_keeps_what_is_done(store, tiny_run, trained):
    run_missing([tiny_run(seed=s) for s in (0, 1)], store)
    frame = run_missing([tiny_run(seed=s) for s in (1, 2)], store)
    assert [run.seed for run in trained] == [0, 1, 2]
    assert list(frame["seed"]) == [1, 2]  # a removed run is not in the table


def test_the_fingerprint_of_the_data_must_agree(store, tiny_run, own_set, trained):
    run = tiny_run(dataset=own_set(seed=0))
    first = run_missing([run], store)
    own_set(seed=1)
    second = run_missing([run], store)
    assert len(trained) == 2
    assert first["fingerprint"][0] != second["fingerprint"][0]
    own_set(seed=0)
    assert run_missing([run], store)["test_loss"][0] == first["test_loss"][0]
    assert len(trained) == 2


def test_other_test_images_are_other_data(store, tiny_run, own_set, trained, tmp_path):
    run = tiny_run(dataset=own_set())
    first = run_missing([run], store)
    with np.load(tmp_path / "own_test.npz") as arrays:
        changed = {"images": 255 - arrays["images"], "labels": arrays["labels"]}
    np.savez(tmp_path / "own_test.npz", **changed)
    second = run_missing([run], store)
    assert len(trained) == 2
    assert first["test_loss"][0] != second["test_loss"][0]


def test_absent_data_takes_the_recorded_fingerprint(store, tiny_run, own_set, trained, tmp_path):
    run = tiny_run(dataset=own_set(), keep=["features"])
    first = run_missing([run], store)
    features = load_artefact(run, "features", store)
    for split in ("train", "test"):
        (tmp_path / f"own_{split}.npz").unlink()
        pd.testing.assert_frame_equal(run_missing([run], store), first)
    again = load_artefact(run, "features", store)
    assert all(np.array_equal(features[name], again[name]) for name in features)
    assert len(trained) == 1


def test_absent_data_and_records_of_two_versions_of_it_is_an_error(store, tiny_run, own_set):
    run = tiny_run(dataset=own_set(seed=0))
    run_missing([run], store)
    own_set(seed=1)
    run_missing([run], store)
    for path in store.path.parent.glob("own_*.npz"):
        path.unlink()
    with pytest.raises(RecordError, match="2 records of different data answer"):
        run_missing([run], store)


def test_results_that_came_with_the_repository_are_found(store, tiny_run, committed, trained):
    runs = [tiny_run(seed=0), tiny_run(seed=1, method="trimming"), tiny_run(seed=2, lr=1e30)]
    first = run_missing(runs, store)
    folder = committed / "01_notebook" / "paper"
    write_results(first, store, folder)
    empty = RunStore(store.path.parent / "empty")
    found = run_missing(runs, empty)
    assert len(trained) == 3
    assert set(found["source"]) == {str(folder)}
    assert not empty.path.exists()
    pd.testing.assert_frame_equal(found.drop(columns="source"), first.drop(columns="source"))
    pd.testing.assert_frame_equal(load_history(found, empty), load_history(first, store))
    pd.testing.assert_frame_equal(load_timings(found, empty), load_timings(first, store))

    assert set(run_missing(runs, empty, use_committed=False)["source"]) == {"store"}
    assert len(trained) == 6


def test_committed_results_of_other_data_are_not_taken(store, tiny_run, own_set, committed):
    run = tiny_run(dataset=own_set(seed=0))
    write_results(run_missing([run], store), store, committed / "a" / "quick")
    own_set(seed=1)
    empty = RunStore(store.path.parent / "empty")
    assert run_missing([run], empty)["source"][0] == "store"
    for path in store.path.parent.glob("own_*.npz"):
        path.unlink()
    found = run_missing([run], empty)  # no data: what was committed counts again
    assert found["source"][0] == str(committed / "a" / "quick")


def test_a_record_of_another_version_is_not_found(store, tiny_run, trained, monkeypatch):
    run_missing([tiny_run()], store)
    monkeypatch.setattr(methods.plain, "VERSION", 1000)
    run_missing([tiny_run()], store)
    assert len(trained) == 2


# --- refusals come before anything is trained or created -----------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"dataset": "digitz"}, ParameterError, "did you mean 'digits'?"),
        ({"dataset": "mnist", "data_root": "EMPTY"}, DataError, "mnist"),
        ({"network": "cnn2"}, DataError, "28"),
        ({"train_size": 61}, ParameterError, "61"),
        ({"test_size": 21}, ParameterError, "21"),
        ({"seed": 2, "device": "cuda:9"}, ParameterError, "device 'cuda:9' is not available"),
        ({"method": "trimming", "options": {"end": 1.5}}, ParameterError, "end"),
        ({"method": "trimming", "options": {"start": 0}}, ParameterError, "start"),
        ({"batch_size": 61, "drop_last": True}, ParameterError, "leaves 0 of 60 samples"),
        ({"network": "cnn_small_bn", "batch_size": 1}, ParameterError, "batch of one sample"),
        ({"network": "resnet18", "batch_size": 59}, ParameterError, "batch of one sample"),
        ({"keep": ["sample_counts"]}, ParameterError, "'plain' keeps no 'sample_counts'"),
    ],
)
def test_a_sweep_with_one_bad_run_trains_none(
    tmp_path, tiny_run, trained, monkeypatch, changes, error, text
):
    monkeypatch.setattr("socket.socket.connect", lambda *_: (_ for _ in ()).throw(OSError("no")))
    if "data_root" in changes:
        changes = changes | {"data_root": str(tmp_path / "no data")}
        monkeypatch.setattr("hardtrain.data.downloads._download", _no_network)
    store = RunStore(tmp_path / "runs")
    with pytest.raises(error, match=text):
        run_missing([tiny_run(), tiny_run(seed=1), tiny_run(**changes)], store)
    assert trained == []
    assert not store.path.exists()


def test_a_last_batch_of_one_image_is_trained_where_it_can_be_normalised(store, tiny_run):
    """Of an image of 8x8 the small network's layers see 16 values a channel, and more."""
    results = run_missing([tiny_run(network="cnn_small_bn", batch_size=59)], store)
    assert results["status"].tolist() == ["finished"]


def _no_network(*_):
    raise OSError("no network")


def test_a_sweep_builds_once_what_differs_in_seed_and_optimiser_alone(store, tiny_run, monkeypatch):
    built, build = [], train.build

    def counting(run, *args):
        built.append(run)
        return build(run, *args)

    monkeypatch.setattr(train, "build", counting)
    monkeypatch.setitem(sweep._ENGINES, "local", lambda *_: None)
    fields = {"seed": [0, 1], "lr": [0.1, 0.2], "optimizer": ["sgd", "adam"]}
    fields |= {"momentum": [0.0, 0.9], "schedule": ["constant", "cosine"]}
    runs = [tiny_run(**dict(zip(fields, v, strict=True))) for v in product(*fields.values())]
    others = [tiny_run(batch_size=15), tiny_run(network="mlp"), tiny_run(method="trimming"),
              tiny_run(augment="flip"), tiny_run(keep=["features"])]  # fmt: skip
    with pytest.raises(SweepError, match="37 of 37"):  # nothing was trained
        run_missing([*runs, *others], store)
    assert len(runs) == 32
    assert len(built) == 1 + len(others)


@pytest.mark.parametrize("runs", [5, None, "run", [None], [{}]])
def test_run_missing_refuses_what_are_no_runs(runs, store):
    with pytest.raises(ParameterError, match=r"runs hold .*, which is no Run"):
        run_missing(runs, store)


def test_run_missing_refuses_what_is_no_store(tiny_run, tmp_path):
    with pytest.raises(ParameterError, match=r"is no RunStore; write RunStore\(path\)"):
        run_missing([tiny_run()], str(tmp_path))
    for seconds in (-1.0, float("nan"), "5"):
        with pytest.raises(ParameterError, match="checkpoint_seconds = "):
            RunStore(tmp_path, checkpoint_seconds=seconds)


def test_run_missing_refuses_no_runs_and_unknown_engines(store, tiny_run):
    with pytest.raises(ParameterError, match="runs is empty"):
        run_missing([], store)
    with pytest.raises(ParameterError, match="unknown engine 'Local'; did you mean 'local'"):
        run_missing([tiny_run()], store, engine="Local")
    assert not store.path.exists()


def test_a_store_that_cannot_be_written_is_refused_before_training(tmp_path, tiny_run, trained):
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(StoreError, match="runs"):
        run_missing([tiny_run()], RunStore(tmp_path / "runs"))
    assert trained == []


# --- divergence ----------------------------------------------------------------------------------


def test_a_diverged_run_is_a_result_and_the_sweep_goes_on(store, tiny_run, trained, tmp_path):
    runs = [tiny_run(lr=1e30, keep=["features"], epochs=3), tiny_run()]
    frame = run_missing(runs, store)
    assert list(frame["status"]) == ["diverged", "finished"]
    assert math.isnan(frame["test_error"][0])
    assert math.isnan(frame["test_loss"][0])
    assert frame["per_class_error"][0] == ""
    assert (frame["diverged_epoch"][0], frame["diverged_step"][0]) == (0, 1)
    assert math.isnan(frame["diverged_step"][1])
    pd.testing.assert_frame_equal(run_missing(runs, store), frame)
    assert len(trained) == 2
    write_results(frame, store, tmp_path / "out")
    pd.testing.assert_frame_equal(
        read_csv(tmp_path / "out" / "results.csv")[["status", "diverged_step", "test_loss"]],
        frame[["status", "diverged_step", "test_loss"]],
    )
    assert set(load_history(frame, store)["key"]) == {runs[1].key}
    with pytest.raises(DivergedError, match="it has no 'features'") as caught:
        load_artefact(runs[0], "features", store)
    assert (caught.value.epoch, caught.value.step) == (0, 1)


def test_a_run_that_diverges_late_keeps_its_history(store, tiny_run, monkeypatch):
    sample_losses, calls = pieces.sample_losses, []

    def failing(model, batch):
        calls.append(batch)
        return sample_losses(model, batch) * (math.inf if len(calls) == 7 else 1)

    for module in (methods, pieces):
        monkeypatch.setattr(module, "sample_losses", failing)
    frame = run_missing([tiny_run(epochs=3)], store)
    assert (frame["diverged_epoch"][0], frame["diverged_step"][0]) == (1, 6)
    assert list(load_history(frame, store)["step"]) == [4]
    assert list((store.path / "checkpoints").iterdir()) == []


# --- artefacts -----------------------------------------------------------------------------------


def test_artefacts_are_stored_and_hold_what_they_say(store, tiny_run, trained):
    keep = ["final_weights", "features", "sample_counts"]
    run = tiny_run(method="trimming", keep=keep, epochs=4, options={"end": 0.5})
    frame = run_missing([run], store)
    features = load_artefact(run, "features", store)
    assert features["features"].shape[0] == 20
    assert features["losses"].mean() == pytest.approx(frame["test_loss"][0], rel=1e-6)
    assert np.mean(features["predictions"] != features["labels"]) == frame["test_error"][0]
    counts = load_artefact(run, "sample_counts", store)["counts"]
    assert counts.shape == (4, 60)
    assert counts[0].sum() == 60  # keep is 1 in the first epoch
    assert 28 <= counts[3].sum() <= 32  # and a half in the last, rounded batch by batch
    weights = load_artefact(run, "final_weights", store)
    assert all(np.isfinite(array).all() for array in weights.values())
    assert len(trained) == 1


def test_looking_for_a_run_unpacks_no_artefact(store, tiny_run, trained, monkeypatch):
    run = tiny_run(keep=["final_weights"])
    run_missing([run], store)
    monkeypatch.setattr(np, "load", pytest.fail)
    assert run_missing([run], store)["source"].tolist() == ["store"]
    assert len(trained) == 1


@pytest.mark.parametrize("damage", ["missing", "damaged", "empty"])
def test_artefacts_are_made_again_when_missing_or_damaged(store, tiny_run, trained, damage):
    run = tiny_run(keep=["final_weights", "features"])
    run_missing([run], store)
    before = load_artefact(run, "features", store)
    (path,) = store.path.glob("artefacts/*.features.npz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if damage != "missing":
        path.write_bytes(content if damage == "damaged" else b"")
        with pytest.warns(UserWarning, match="features.npz is torn, edited or of another run"):
            after = load_artefact(run, "features", store)
    else:
        after = load_artefact(run, "features", store)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert len(trained) == 2
    run_missing([run], store)
    assert len(trained) == 2


def test_artefacts_asked_for_later_are_made_and_forget_no_others(store, tiny_run, trained):
    weights, features = tiny_run(keep=["final_weights"]), tiny_run(keep=["features"])
    run_missing([tiny_run()], store)
    run_missing([weights], store)
    run_missing([features], store)
    assert len(trained) == 3
    run_missing([weights, features, tiny_run()], store)
    assert len(trained) == 3
    assert load_artefact(weights, "final_weights", store)


def test_one_run_asked_for_twice_is_trained_once_with_the_artefacts_of_both(
    store, tiny_run, trained
):
    runs = [tiny_run(keep=["final_weights"]), tiny_run(keep=["features"]), tiny_run()]
    frame = run_missing(runs, store)
    assert len(trained) == 1
    assert len(frame) == 3
    for run in runs[:2]:
        load_artefact(run, run.keep[0], store)
    assert len(trained) == 1


def test_an_artefact_that_was_not_asked_for_is_refused(store, tiny_run):
    with pytest.raises(ParameterError, match="not 'features'; add it to keep"):
        load_artefact(tiny_run(), "features", store)


# --- tables --------------------------------------------------------------------------------------


def test_write_results_gives_the_same_bytes_again_and_from_committed_rows(
    store, tiny_run, committed, tmp_path
):
    runs = [
        tiny_run(seed=0, method="trimming"),
        tiny_run(seed=0),
        tiny_run(seed=1, lr=1e30),
        tiny_run(seed=1, epochs=3, evaluate_unit="step", evaluate_every=3),
    ]
    names = ("results.csv", "history.csv", "timings.csv")

    def written(frame, folder, source=store):
        write_results(frame, source, folder)
        return [(folder / name).read_bytes() for name in names]

    frame = run_missing(runs, store)
    first = written(frame, tmp_path / "out")
    assert written(frame, tmp_path / "out") == first  # over itself
    assert written(run_missing(runs + runs[:2], store), tmp_path / "twice") == first
    written(frame, committed / "01" / "quick")
    empty = RunStore(tmp_path / "empty")
    found = run_missing(runs, empty)
    assert set(found["source"]) != {"store"}
    assert written(found, tmp_path / "from committed", empty) == first
    assert written(found, committed / "01" / "quick", empty) == first  # onto its own source
    some = run_missing([tiny_run(seed=5), *runs], store)  # some of the store, some committed
    assert set(some["source"]) == {"store", str(committed / "01" / "quick")}
    fresh = RunStore(tmp_path / "fresh")
    again = run_missing([tiny_run(seed=5), *runs], fresh, use_committed=False)
    assert written(some, tmp_path / "a")[:2] == written(again, tmp_path / "b", fresh)[:2]


def test_write_results_keeps_rows_of_other_runs(store, tiny_run, tmp_path):
    a, b, c = (
        run_missing([tiny_run(seed=s, method=m)], store)
        for s, m in ((0, "plain"), (1, "trimming"), (2, "plain"))
    )
    for frame in (c, b, a, b):
        write_results(frame, store, tmp_path)
    table = read_csv(tmp_path / "results.csv")
    others = sorted([a["key"][0], c["key"][0]])
    assert list(table["key"]) == [b["key"][0], *others]
    for name in ("history.csv", "timings.csv"):
        assert set(read_csv(tmp_path / name)["key"]) == set(table["key"])
    both = pd.concat([a, b, c])
    whole = tmp_path / "whole"
    write_results(both.set_index("key").loc[list(table["key"])].reset_index(), store, whole)
    for name in ("results.csv", "history.csv", "timings.csv"):
        left, right = read_csv(tmp_path / name), read_csv(whole / name)
        pd.testing.assert_frame_equal(left, right, check_like=True)


def test_a_column_of_a_later_field_comes_with_the_first_run_that_uses_it(store, tiny_run, tmp_path):
    old = tiny_run(evaluate_unit="step", evaluate_every=3)
    new = dataclasses.replace(old, evaluate_last=1)
    write_results(run_missing([old], store), store, tmp_path)
    assert "evaluate_last" not in read_csv(tmp_path / "results.csv")
    write_results(run_missing([new], store), store, tmp_path)
    written = read_csv(tmp_path / "results.csv").set_index("key")["evaluate_last"]
    assert written.to_dict() == {old.key: 0, new.key: 1}
    write_results(run_missing([new, old], store), store, tmp_path / "both")
    both = read_csv(tmp_path / "both" / "results.csv").set_index("key")["evaluate_last"]
    assert both.to_dict() == written.to_dict()


def test_histories_come_back_to_the_last_bit(store, tiny_run, tmp_path):
    frame = run_missing([tiny_run(epochs=4, lr=0.1 / 3, method="trimming")], store)
    write_results(frame, store, tmp_path)
    before, after = load_history(frame, store), read_csv(tmp_path / "history.csv")
    assert before["epoch"].tolist() == [1, 2, 3, 4]  # no row of the record is lost
    assert before["step"].tolist() == [4, 8, 12, 16]
    assert list(before.columns) == list(after.columns)
    for name in before.columns:
        assert before[name].tolist() == after[name].tolist()
    table = read_csv(tmp_path / "results.csv")
    for name in ("test_loss", "train_loss", "test_error", "lr"):
        assert table[name][0] == frame[name][0]


def test_committed_tables_hold_only_what_the_seed_determines(store, tiny_run, tmp_path):
    run = tiny_run(data_root="/some/where", keep=["features"])
    write_results(run_missing([run], store), store, tmp_path)
    results, history = (read_csv(tmp_path / name) for name in ("results.csv", "history.csv"))
    for table in (results, history):
        for column in ("source", "device", "data_root", "keep", "seconds", "torch", "threads"):
            assert column not in table
    text = (tmp_path / "results.csv").read_text() + (tmp_path / "history.csv").read_text()
    for foreign in ("/some/where", str(store.path), torch.__version__):
        assert foreign not in text
    timings = read_csv(tmp_path / "timings.csv")
    assert timings["seconds"][0] > 0
    assert timings["torch"][0] == torch.__version__
    assert timings["threads"][0] == 1
    assert timings["device"][0].startswith("cpu")


def test_tables_of_another_store_are_an_error(store, tiny_run, tmp_path):
    frame = run_missing([tiny_run()], store)
    with pytest.raises(RecordError, match="holds no record of run"):
        write_results(frame, RunStore(tmp_path / "other"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_sets_with_odd_names_go_through_a_table(tmp_path):
    for name in ("NA", "007"):
        (tmp_path / "t.csv").write_text(f"key,fingerprint,dataset,value\n1e5,12,{name},\n")
        row = read_csv(tmp_path / "t.csv").iloc[0]
        assert (row["key"], row["fingerprint"], row["dataset"]) == ("1e5", "12", name)
        assert math.isnan(row["value"])


# --- interrupted runs ----------------------------------------------------------------------------


@pytest.fixture
def interrupt_at(monkeypatch):
    """A function: Ctrl-C comes in that step; gives the list that the steps are counted in."""
    sample_losses, steps = pieces.sample_losses, []

    def at(step):
        def interrupted(model, batch):
            nonlocal step
            steps.append(batch)
            if len(steps) == step:
                step = None
                raise KeyboardInterrupt
            return sample_losses(model, batch)

        for module in (methods, pieces):
            monkeypatch.setattr(module, "sample_losses", interrupted)
        return steps

    return at


@pytest.fixture(scope="module")
def undisturbed(tiny_set, tmp_path_factory):
    """Two runs, their store, and their tables from a sweep that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    fields = {"network": "cnn_small", "epochs": 3, "batch_size": 16, "lr": 0.05, "device": "cpu"}
    fields |= {"method": "trimming", "momentum": 0.9, "augment": "flip", "schedule": "cosine"}
    keep = ["final_weights", "sample_counts"]
    runs = [Run(dataset=tiny_set, **fields, seed=seed, keep=keep) for seed in (0, 1)]
    store = RunStore(folder / "runs", checkpoint_seconds=0)
    write_results(run_missing(runs, store, use_committed=False), store, folder)
    return runs, store, folder


@pytest.mark.parametrize("step", [1, 6, 9, 13, 14, 19])
def test_an_interrupted_sweep_goes_on_with_the_same_bits(tmp_path, undisturbed, interrupt_at, step):
    runs, other, folder = undisturbed
    store = RunStore(tmp_path / "runs", checkpoint_seconds=0)
    steps = interrupt_at(step)
    with pytest.raises(KeyboardInterrupt):
        run_missing(runs, store)
    finished, epochs = (step - 1) // 12, (step - 1) % 12 // 4  # 3 epochs of 4 steps
    assert len(list(store.path.glob("records/*.json"))) == finished
    assert len(list(store.path.glob("checkpoints/*.newest.pt"))) == (epochs > 0)
    steps.clear()
    write_results(run_missing(runs, store), store, tmp_path / "b")
    assert len(steps) == 24 - 12 * finished - 4 * epochs  # only what was lost is done again
    for name in ("results.csv", "history.csv"):
        assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes()
    for run in runs:
        for name in run.keep:
            before, after = (load_artefact(run, name, s) for s in (other, store))
            assert all(np.array_equal(before[k], after[k]) for k in before)
    assert list((store.path / "checkpoints").iterdir()) == []
    assert not (store.path / "quarantine").exists()


def test_an_interrupted_run_says_how_to_go_on(store, tiny_run, interrupt_at, capsys):
    interrupt_at(1)
    with pytest.raises(KeyboardInterrupt):
        run_missing([tiny_run()], store)
    assert "run again to go on" in capsys.readouterr().err


def test_a_scheduler_ends_a_sweep_as_ctrl_c_does(store, tiny_run, monkeypatch, capsys):
    def terminated(*_):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("goes on")

    with monkeypatch.context() as patch:
        for module in (methods, pieces):
            patch.setattr(module, "sample_losses", terminated)
        with pytest.raises(SystemExit) as ended:
            run_missing([tiny_run(method="trimming")], store)
    assert ended.value.code == 143
    assert "run again to go on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert run_missing([tiny_run(method="trimming")], store)["status"].item() == "finished"


def test_a_program_keeps_its_own_way_with_sigterm(store, tiny_run, monkeypatch):
    seen, sample_losses = [], pieces.sample_losses

    def terminated(*args):
        signal.raise_signal(signal.SIGTERM)
        return sample_losses(*args)

    for module in (methods, pieces):
        monkeypatch.setattr(module, "sample_losses", terminated)
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        results = run_missing([tiny_run(method="trimming", epochs=1)], store)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert results["status"].item() == "finished"
    assert len(seen) == 4


def test_a_thread_trains_without_a_handler_of_signals(store, tiny_run):
    results = []
    thread = threading.Thread(target=lambda: results.append(run_missing([tiny_run()], store)))
    thread.start()
    thread.join()
    assert results[0]["status"].item() == "finished"


def test_artefacts_asked_for_after_an_interruption_are_whole(tmp_path, tiny_run, interrupt_at):
    plain = tiny_run(method="trimming", epochs=3)
    counting = dataclasses.replace(plain, keep=["sample_counts"])
    expected = load_artefact(counting, "sample_counts", RunStore(tmp_path / "undisturbed"))
    store = RunStore(tmp_path / "runs", checkpoint_seconds=0)
    interrupt_at(7)
    with pytest.raises(KeyboardInterrupt):
        run_missing([plain], store)
    counts = load_artefact(counting, "sample_counts", store)
    assert np.array_equal(counts["counts"], expected["counts"])


@pytest.mark.parametrize("damaged", [("newest",), ("newest", "previous")])
def test_a_damaged_checkpoint_costs_only_epochs(tmp_path, tiny_run, interrupt_at, damaged):
    run = tiny_run(epochs=4)
    undisturbed = RunStore(tmp_path / "undisturbed")
    expected = load_history(run_missing([run], undisturbed), undisturbed)
    store = RunStore(tmp_path / "runs", checkpoint_seconds=0)
    steps = interrupt_at(13)
    with pytest.raises(KeyboardInterrupt):
        run_missing([run], store)
    for generation in damaged:
        (path,) = store.path.glob(f"checkpoints/*.{generation}.pt")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    steps.clear()
    with pytest.warns(UserWarning, match=r"\.pt is torn, edited or of another run") as seen:
        frame = run_missing([run], store)
    assert len(seen) == len(damaged)
    assert len(steps) == (8 if len(damaged) == 1 else 16)
    pd.testing.assert_frame_equal(load_history(frame, store), expected)


@pytest.mark.parametrize("part", ["method", "model", "trace", "rng", "epoch", "seconds"])
def test_a_run_whose_checkpoint_cannot_be_used_here_starts_over(
    tmp_path, undisturbed, interrupt_at, part
):
    runs, _, folder = undisturbed
    store = RunStore(tmp_path / "runs", checkpoint_seconds=0)
    steps = interrupt_at(10)
    with pytest.raises(KeyboardInterrupt):
        run_missing(runs, store)
    spoil_checkpoint(runs[0], store, part)
    steps.clear()
    if part == "seconds":  # which changes no number
        frame = run_missing(runs, store)
    else:
        with pytest.warns(UserWarning, match="starts over: its checkpoint cannot be used") as seen:
            frame = run_missing(runs, store)
        assert len(seen) == 1
    assert len(steps) == (16 if part == "seconds" else 24)  # 3 epochs of 4 steps, twice
    write_results(frame, store, tmp_path)
    for name in ("results.csv", "history.csv"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert list((store.path / "checkpoints").iterdir()) == []


def test_hard_batches_start_over_where_their_checkpoint_has_other_names(
    tmp_path, tiny_run, interrupt_at
):
    run = tiny_run(epochs=3, method="hard_batches")
    expected = run_missing([run], RunStore(tmp_path / "undisturbed"))
    store = RunStore(tmp_path / "runs", checkpoint_seconds=0)
    interrupt_at(10)
    with pytest.raises(KeyboardInterrupt):
        run_missing([run], store)
    spoil_checkpoint(run, store, "method")
    with pytest.warns(UserWarning, match=r"starts over: .*KeyError"):
        pd.testing.assert_frame_equal(run_missing([run], store), expected)


@pytest.mark.parametrize("part", ["dropout", "noise"])
def test_a_checkpoint_with_a_gpus_generator_starts_over_on_a_cpu(
    tmp_path, tiny_run, interrupt_at, part
):
    run = tiny_run(epochs=3, method="gradient_noise")
    expected = run_missing([run], RunStore(tmp_path / "undisturbed"))
    store = RunStore(tmp_path / "runs", checkpoint_seconds=0)
    interrupt_at(10)
    with pytest.raises(KeyboardInterrupt):
        run_missing([run], store)
    state = store.load_checkpoint(run.key, load_data(run)[2])
    philox = torch.zeros(16, dtype=torch.uint8)  # a seed and an offset
    if part == "dropout":
        state["rng"]["cuda"] = philox
    else:
        state["method"]["noise"]["generator"] = philox
    store.save_checkpoint(run.key, load_data(run)[2], state)
    with pytest.warns(UserWarning, match="starts over: its checkpoint cannot be used") as seen:
        pd.testing.assert_frame_equal(run_missing([run], store), expected)
    assert len(seen) == 1


def spoil_checkpoint(run, store, part):
    """Give a part of its state other names, as another version might."""
    fingerprint = load_data(run)[2]
    state = store.load_checkpoint(run.key, fingerprint)
    if isinstance(state[part], dict):
        state[part] = {f"former {name}": value for name, value in state[part].items()}
    else:
        del state[part]
    store.save_checkpoint(run.key, fingerprint, state)


# --- two sweeps on one store ---------------------------------------------------------------------


def test_a_run_that_another_sweep_holds_comes_last_and_is_not_trained_twice(
    tmp_path, tiny_run, trained
):
    held, free = tiny_run(seed=0), tiny_run(seed=1)
    other = RunStore(tmp_path / "other")
    frame = run_missing([held, free], other)
    record = other.load(held.key, frame["fingerprint"][0])
    trained.clear()
    store = RunStore(tmp_path / "runs")
    store.open()
    with store.lock(held.key, record["fingerprint"]):
        frames = []
        sweep = threading.Thread(target=lambda: frames.append(run_missing([held, free], store)))
        sweep.start()
        deadline = time.monotonic() + 20
        while store.load(free.key, record["fingerprint"]) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.05)
        assert sweep.is_alive()  # it waits for the held run
        store.save(record)  # which the holder finishes
    sweep.join(20)
    assert trained == [free]
    assert list(frames[0]["seed"]) == [0, 1]


def test_runs_too_large_for_the_memory_do_not_stop_the_others(tiny_run, store, monkeypatch):
    errors = [
        torch.OutOfMemoryError("out of memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ]
    full = {20 + number: error for number, error in enumerate(errors)}
    runs, fit = [tiny_run(batch_size=size, epochs=1) for size in (16, *full, 50)], loop.fit

    def fit_or_fail(run, *args, **kwargs):
        if run.batch_size in full:
            raise full[run.batch_size]
        return fit(run, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", fit_or_fail)
        with pytest.raises(SweepError, match="7 of 9 runs failed") as caught:
            run_missing(runs, store)
    for size in full:
        assert f"batch_size = {size} needs more memory than the device has" in str(caught.value)
    finished = [store.load(run.key, load_data(run)[2]) is not None for run in runs]
    assert finished == [True, *[False] * 7, True]
    assert list(run_missing(runs, store)["status"]) == ["finished"] * 9


def test_an_error_of_another_kind_is_named_as_it_is(tiny_run, store, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("CUDNN_STATUS_EXECUTION_FAILED")

    monkeypatch.setattr(loop, "fit", broken)
    with pytest.raises(SweepError, match=r"seed 0: RuntimeError: CUDNN_STATUS_EXECUTION_FAILED$"):
        run_missing([tiny_run()], store)


@pytest.mark.parametrize(
    ("pause", "cost", "epochs"),
    [
        (0, 0, [1, 2, 3, 4, 5, 6, 7, 8]),
        (0, 100, [1, 2, 3, 4, 5, 6, 7, 8]),
        (5, 0, [1, 2, 3, 4, 5, 6, 7, 8]),
        (25, 0, [1, 4, 7]),
        (25, 1, [1, 4, 7]),
        (5, 1, [1, 3, 5, 7]),
        (5, 2, [1, 5]),
    ],
)
def test_checkpoints_take_a_twentieth_of_the_time(
    tmp_path, tiny_run, monkeypatch, pause, cost, epochs
):
    clock, saved = types.SimpleNamespace(now=0.0), []
    clock.perf_counter = lambda: clock.now
    evaluate = evaluation.evaluate

    def slowly(*args, **how):  # once an epoch
        clock.now += 10
        return evaluate(*args, **how)

    class Store(RunStore):
        def save_checkpoint(self, key, fingerprint, state):
            clock.now += cost
            saved.append(state["epoch"])

    monkeypatch.setattr(train, "time", clock)
    monkeypatch.setattr(evaluation, "evaluate", slowly)
    run = tiny_run(epochs=9)
    train.train_run(run, Store(tmp_path, checkpoint_seconds=pause), Progress([run]))
    assert saved == epochs
