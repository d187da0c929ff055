"""Held-out losses of two small trainings: their halves, artefacts in the store, their time."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from hardtrain import (
    ParameterError,
    RecordError,
    build_network,
    load_artefact,
    load_timings,
    run_missing,
)
from hardtrain.runs import halves, ray_worker, subsets, train
from hardtrain.runs.progress import Progress
from hardtrain.runs.run_data import load_data, training_set
from hardtrain.training import pieces
from hardtrain.training.loop import HeldOut

WANTED = HeldOut("mlp", 3, lambda losses: None)


def rho(tiny_run, **changes):
    options = {"share": 0.25, "small_network": "mlp", "small_epochs": 3}
    return tiny_run(method="reducible_loss", options=options, batch_size=5, **changes)


def small_runs_of(run):
    return halves.small_runs(run, WANTED, load_data(run)[0])


def indices_of(small):
    return [set(subsets.unpack(half.subset, 60).tolist()) for half in small]


def test_halves_are_disjoint_whole_and_of_every_label(tiny_run):
    small = small_runs_of(rho(tiny_run))
    first, second = indices_of(small)
    assert not first & second
    assert first | second == set(range(60))
    labels = load_data(small[0])[0].labels
    for half in (first, second):
        assert labels[sorted(half)].bincount().tolist() == [10, 10, 10]
    assert indices_of(small_runs_of(rho(tiny_run, seed=1))) != [first, second]


def test_halves_are_plain_trainings_like_the_run(tiny_run):
    run = rho(tiny_run, epochs=9, lr=0.02, label_noise=0.2, evaluate_train=True, seed=4)
    for half in small_runs_of(run):
        assert (half.method, half.network, half.epochs, half.seed) == ("plain", "mlp", 3, 4)
        assert (half.lr, half.label_noise, half.evaluate_train) == (0.02, 0.2, False)
        assert half.keep == ("train_losses",)


def test_halves_of_a_subset_and_of_wrong_labels(tiny_run):
    part = subsets.pack(np.arange(10, 40), 60)
    run = rho(tiny_run, subset=part, label_noise=0.4)
    first, second = indices_of(small_runs_of(run))
    assert first | second == set(range(10, 40))
    given = training_set(dataclasses.replace(run, subset=""), load_data(run)[0]).labels
    counts = given[sorted(first)].bincount(minlength=3) - given[sorted(second)].bincount(
        minlength=3
    )
    assert counts.abs().max() <= 1


def test_train_losses_are_those_of_the_whole_set_by_the_final_weights(tiny_run, store):
    part = subsets.pack(np.arange(0, 60, 2), 60)
    run = tiny_run(
        network="mlp", subset=part, label_noise=0.2, keep=("train_losses", "final_weights")
    )
    losses = load_artefact(run, "train_losses", store)["losses"]
    weights = load_artefact(run, "final_weights", store)
    model = build_network("mlp", 3, 1, image_size=8)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
    everything = training_set(dataclasses.replace(run, subset=""), load_data(run)[0])
    transform = pieces.train_transform(run, training_set(run, load_data(run)[0]))
    with torch.no_grad():
        logits = model.eval()(transform(everything.images))
    expected = cross_entropy(logits, everything.labels, reduction="none")
    assert losses.shape == (60,)
    assert losses.tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-6)


def test_each_sample_gets_the_loss_of_the_training_that_has_not_seen_it(tiny_run):
    small = small_runs_of(rho(tiny_run))
    first, second = indices_of(small)
    found = halves.held_out_losses(small, [np.full(60, 1.0), np.full(60, 2.0)])
    assert {i for i in range(60) if found[i] == 2.0} == first
    assert {i for i in range(60) if found[i] == 1.0} == second


@pytest.mark.parametrize("subset", ["", subsets.pack(np.arange(5, 45), 60)])
def test_a_run_takes_its_losses_from_the_store_where_its_halves_were_trained(
    tiny_run, store, monkeypatch, subset
):
    run = rho(tiny_run, subset=subset)
    taken = []
    original = train.build

    def build(*arguments):
        model, method = original(*arguments)
        if method.held_out is not None:
            take = method.held_out.take
            method.held_out.take = lambda losses: (taken.append(losses.clone()), take(losses))
        return model, method

    monkeypatch.setattr(train, "build", build)
    frame = run_missing([run], store)
    assert frame["status"].tolist() == ["finished"]
    small = small_runs_of(run)
    kept = [load_artefact(half, "train_losses", store)["losses"] for half in small]
    expected = halves.held_out_losses(small, kept)
    expected = expected[subsets.unpack(subset, 60)] if subset else expected
    (losses,) = taken
    assert np.array_equal(losses.numpy(), expected)
    assert run_missing(small, store)["source"].tolist() == ["store", "store"]
    # nothing is trained again, nor asked for, where the run itself is there
    for path in store.path.glob("*/*"):
        if not path.name.startswith(run.key):
            path.unlink()
    assert run_missing([run], store)["source"].tolist() == ["store"]
    assert len(list(store.path.glob("records/*.json"))) == 1


def test_the_time_of_the_halves_stands_in_the_timings(tiny_run, store):
    run = rho(tiny_run)
    frame = run_missing([run, tiny_run()], store)
    timings = load_timings(frame, store).set_index("key")
    small = [
        store.load(half.key, frame["fingerprint"][0])["timings"] for half in small_runs_of(run)
    ]
    expected = sum(half["seconds"] - half["seconds_evaluating"] for half in small)
    assert timings["seconds_before"][run.key] == pytest.approx(expected, abs=1e-3)
    assert np.isnan(timings["seconds_before"][tiny_run().key])


def test_two_runs_of_one_seed_share_their_halves(tiny_run, store):
    runs = [rho(tiny_run, epochs=epochs) for epochs in (2, 4)]
    run_missing(runs, store)
    assert len(list(store.path.glob("records/*.json"))) == 4


def test_halves_that_diverge_leave_the_run_diverged_and_the_sweep_goes_on(
    tiny_run, store, monkeypatch
):
    run, other = rho(tiny_run), tiny_run()
    small = small_runs_of(run)
    run_missing(small, store)
    load = store.load

    def diverged(key, *about):
        record = load(key, *about)
        return record | {"status": "diverged"} if key == small[1].key else record

    monkeypatch.setattr(store, "load", diverged)
    frame = run_missing([run, other], store)
    assert frame["status"].tolist() == ["diverged", "finished"]


def test_a_run_whose_halves_are_not_in_the_store_says_so(tiny_run, store):
    run = rho(tiny_run)
    store.open()
    with pytest.raises(
        RecordError, match=r"needs the losses of plain, mlp on .* run_missing trains"
    ):
        with Progress([run]) as progress:
            train.train_run(run, store, progress)


def test_small_runs_take_nothing_over_that_their_network_may_lack(tiny_run):
    run = rho(tiny_run, network="cnn_small_bn", ghost_batch_size=5)
    assert {small.ghost_batch_size for small in small_runs_of(run)} == {0}


def test_losses_come_to_a_worker_without_the_disk(tiny_run, store, monkeypatch):
    """The desk's answers are those of the store here."""
    run = rho(tiny_run)
    small = small_runs_of(run)
    run_missing(small, store)
    asked = lambda self, method, *arguments: getattr(store, method)(*arguments)  # noqa: E731
    monkeypatch.setattr(ray_worker._DistantStore, "_ask", asked)
    distant = ray_worker._DistantStore(None, 300.0)
    record = train.train_run(run, distant, lambda *about: None)
    assert record["status"] == "finished"


def test_one_candidate_alone_is_refused_where_it_would_be_normalised(tiny_run, store):
    options = {"share": 0.4, "reading": "training"}
    run = tiny_run(method="reducible_loss", options=options, network="cnn_small_bn", batch_size=12)
    run = dataclasses.replace(run, train_size=31)  # 30 candidates, and one
    with pytest.raises(ParameterError, match="leaves one candidate of 31 by itself"):
        run_missing([run], store)
