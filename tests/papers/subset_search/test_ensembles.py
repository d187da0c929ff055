"""Scores of checkpoints against a loop over all models, and what is committed of them."""

import dataclasses
import functools
import weakref
from itertools import product

import numpy as np
import pytest
import torch

from hardtrain import DataError, RecordError, load_artefact, run_missing
from hardtrain.papers.subset_search import ensembles, selection
from hardtrain.papers.subset_search.ensembles import ACQUISITIONS
from hardtrain.report.figure_data import figure_data
from hardtrain.runs import subsets
from hardtrain.runs.run_data import load_data, training_set
from hardtrain.runs.train import build
from hardtrain.strategies import subset_selection
from hardtrain.training.pieces import train_transform

NUM_SAMPLES = 60  # of the image set


def all_predictions(ensemble, store):
    """Of every member by (run, checkpoint): what its model says of every sample, in double loops
    over runs and weights, and the labels."""
    found = {}
    for number, run in enumerate(ensemble):
        train, _, _ = load_data(run)
        pool = training_set(dataclasses.replace(run, subset=""), train)
        transform = train_transform(run, training_set(run, train))
        weights = load_artefact(run, run.keep[0], store)
        for checkpoint in range(len(weights["steps"])):
            model = build(run, training_set(run, train), load_data(run)[1])[0].eval()
            model.load_state_dict(
                {k: torch.tensor(v[checkpoint]) for k, v in weights.items() if k != "steps"}
            )
            with torch.no_grad():
                logits = model(transform.without_augmentation()(pool.images))
            found[number, checkpoint] = logits.softmax(1)
    return found, pool.labels


def assert_scores(found, predictions, labels):
    stack = torch.stack(list(predictions))
    for name in ACQUISITIONS:
        args = (stack, labels) if name == "error_count" else (stack,)
        expected = getattr(subset_selection, name)(*args).numpy()
        np.testing.assert_allclose(found[name].astype(float), expected, rtol=1e-3, atol=1e-7)
        assert len(found[name]) == len(labels)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"network": "cnn_small_bn", "augment": "crop+flip"},
        {"label_noise": 0.2},
        {"subset": subsets.pack(np.arange(0, 60, 2), 60)},
    ],
    ids=["plain", "batch-norm", "wrong labels", "subset"],
)
def test_scores_are_those_of_all_models_at_once(ensemble_of, trained, changes):
    size = 30 if "subset" in changes else NUM_SAMPLES
    runs = ensemble_of(num_samples=size, **changes)
    found = ensembles.score_arrays(runs=runs, store=trained)
    predictions, labels = all_predictions(runs, trained)
    assert len(predictions) == 2 * int(runs[0].keep[0][-1])
    assert len(labels) == NUM_SAMPLES  # of the pool, not of the subset
    assert_scores(found, predictions.values(), labels)
    assert found["predictive_entropy"].std() > 0


def test_groups_are_ensembles_of_their_own(ensemble_of, trained):
    runs = ensemble_of()
    groups = [{(0, 2)}, {(0, 2), (1, 0)}, set(product(range(2), range(3)))]
    found = ensembles.ensemble_scores(runs, trained, groups)
    predictions, labels = all_predictions(runs, trained)
    for scores, group in zip(found, groups, strict=True):
        assert_scores(scores, [predictions[member] for member in sorted(group)], labels)
    whole = ensembles.score_arrays(runs=runs, store=trained)
    for name in ACQUISITIONS:  # to the bit, so that both choose the same samples
        np.testing.assert_array_equal(found[2][name], whole[name])


def test_last_member_is_the_trained_model(ensemble_of, store):
    runs = [dataclasses.replace(run, keep=(*run.keep, "final_weights")) for run in ensemble_of(1)]
    weights = load_artefact(runs[0], runs[0].keep[0], store)
    *_, model = ensembles.members(runs[0], weights)
    final = load_artefact(runs[0], "final_weights", store)
    assert not model.training
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), final[name])


def test_members_leave_the_random_numbers_alone(ensemble_of, trained):
    run = ensemble_of(1)[0]
    weights = load_artefact(run, run.keep[0], trained)
    before = torch.get_rng_state()
    assert len({id(model) for model in ensembles.members(run, weights)}) == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_of_many_members_one_is_held(ensemble_of, trained, monkeypatch):
    """The predictions of hundreds of members never exist at the same time, nor two runs'
    checkpoints."""
    runs = ensemble_of(num_runs=3, num_checkpoints=4)
    alive = {"predictions": 0, "checkpoints": 0}
    most = dict(alive)

    def watch(kind, holder):
        alive[kind] += 1
        most[kind] = max(most[kind], alive[kind])
        weakref.finalize(holder, lambda: alive.__setitem__(kind, alive[kind] - 1))

    class Weights(dict):
        """A dict that can be watched."""

    def load(*args):
        weights = Weights(load_artefact(*args))
        watch("checkpoints", weights)
        return weights

    class Watched(subset_selection.EnsembleTally):
        def update(self, probabilities):
            watch("predictions", probabilities)
            super().update(probabilities)

    monkeypatch.setattr(ensembles, "load_artefact", load)
    monkeypatch.setattr(ensembles, "EnsembleTally", Watched)
    ensembles.score_arrays(runs=runs, store=trained)
    assert most["predictions"] <= 2  # the one that is added, the next being made
    assert most["checkpoints"] <= 2
    assert alive == {"predictions": 0, "checkpoints": 0}


@pytest.fixture
def member_order(run_of):
    """The function of that name, of so many runs and checkpoints."""

    def order_of(num_runs, num_checkpoints, order):
        runs = [run_of(keep=(f"checkpoints:{num_checkpoints}",))] * num_runs
        return ensembles.member_order(runs, order)

    return order_of


def test_member_order_takes_runs_or_checkpoints_first(member_order):
    by_runs = member_order(3, 2, "runs")
    assert by_runs == [(0, 1), (1, 1), (2, 1), (0, 0), (1, 0), (2, 0)]
    by_checkpoints = member_order(3, 2, "checkpoints")
    assert by_checkpoints == [(0, 1), (0, 0), (1, 1), (1, 0), (2, 1), (2, 0)]


@pytest.mark.parametrize("num_checkpoints", [1, 2, 3, 16, 20])
@pytest.mark.parametrize("order", ensembles.ORDERS)
def test_member_order_has_each_member_once_and_spreads(member_order, num_checkpoints, order):
    walk = member_order(4, num_checkpoints, order)
    assert sorted(walk) == list(product(range(4), range(num_checkpoints)))
    one = [checkpoint for run, checkpoint in walk if run == 2]
    assert one[0] == num_checkpoints - 1  # the trained model
    for taken in range(1, num_checkpoints + 1):
        gaps = np.diff(sorted({-1, *one[:taken]}))
        assert gaps.max() <= max(1, 3 * num_checkpoints / taken)
    if num_checkpoints == 16:
        assert one[:4] == [15, 7, 11, 3]


def test_ensemble_keeps_what_the_last_half_has(run_of):
    run = run_of(epochs=3)  # 4 steps an epoch: 12, of which 6 in the last half
    assert ensembles.ensemble_of(run, 1, 20, 60)[0].keep == ("checkpoints:6",)
    assert ensembles.ensemble_of(run, 1, 5, 60)[0].keep == ("checkpoints:5",)
    assert ensembles.ensemble_of(run, 1, 20, 17)[0].keep == ("checkpoints:3",)  # 2 an epoch
    one = run_of(epochs=1)  # 3 steps: the middle one belongs to the last half
    assert ensembles.ensemble_of(one, 1, 20, 48)[0].keep == ("checkpoints:2",)
    seeds = [member.seed for member in ensembles.ensemble_of(run, 3, 1, 60)]
    assert len(set(seeds)) == 3
    assert min(seeds) == ensembles.ENSEMBLE_SEED
    other = [member.seed for member in ensembles.ensemble_of(run, 3, 1, 60, number=1)]
    assert len({*seeds, *other}) == 6


def test_nothing_is_trained_where_that_is_not_wanted(ensemble_of, store):
    runs = ensemble_of()
    run_missing(runs[:1], store, use_committed=False)
    with pytest.raises(RecordError, match="1 of 2 runs of the ensemble are missing here"):
        figure_data("fig_1", ensembles.score_arrays, store.path.parent, runs=runs,
                    artefact=runs[0].keep[0], store=store, train_missing=False)  # fmt: skip
    for make in (ensembles.score_arrays, functools.partial(selection.subsets_by_members,
                                                           counts=[1], size=9)):  # fmt: skip
        with pytest.raises(RecordError):
            make(runs=runs, store=store, train_missing=False)
    assert len(run_missing(runs, store, use_committed=False, train_missing=False)) == 1


def test_diverged_runs_give_no_members(ensemble_of, trained, monkeypatch):
    runs = ensemble_of()
    healthy = ensembles.score_arrays(runs=runs[1:], store=trained)
    run_missing(runs, trained, use_committed=False)
    real = run_missing

    def one_diverged(*args, **kwargs):
        results = real(*args, **kwargs)
        results.loc[results["seed"] == runs[0].seed, "status"] = "diverged"
        return results

    monkeypatch.setattr(ensembles, "run_missing", one_diverged)
    found = ensembles.score_arrays(runs=runs, store=trained)
    arrays = selection.subsets_by_members(runs=runs, store=trained, counts=[1, 4], size=20)
    for name in (*ACQUISITIONS, "num_members"):
        np.testing.assert_array_equal(found[name], healthy[name])
    assert arrays["num_members"].tolist() == [1, 3]


def test_ensemble_of_diverged_runs_is_refused(ensemble_of, store):
    with pytest.raises(DataError, match="all 2 runs of the ensemble diverged"):
        ensembles.score_arrays(runs=ensemble_of(lr=1e30), store=store)


# --- what is committed ---


def test_stored_scores_are_rounded_before_they_are_used(ensemble_of, trained):
    runs = ensemble_of(label_noise=0.1)
    found = ensembles.score_arrays(runs=runs, store=trained)
    kinds = [found[name].dtype for name in ACQUISITIONS]
    assert kinds == [np.float16, np.float16, np.float16, np.int16]
    assert found["num_members"] == 6
    clean = load_data(runs[0])[0].labels
    assert found["wrong"].sum() == 6  # 10 % of 60
    given = ensembles.pool_of(runs[0]).labels
    np.testing.assert_array_equal(found["wrong"], (given != clean).numpy())
    assert not ensembles.score_arrays(runs=ensemble_of(), store=trained)["wrong"].any()


def test_committed_scores_of_another_ensemble_are_not_taken(
    ensemble_of, trained, tmp_path, monkeypatch
):
    folder = tmp_path / "figures" / "07" / "quick"
    folder.mkdir(parents=True)
    runs = ensemble_of()

    def scores(runs, make=ensembles.score_arrays, out=tmp_path):
        figure_data("fig_1", make, out, runs=runs, artefact=runs[0].keep[0], store=trained)

    scores(runs, out=folder)
    monkeypatch.setenv("HARDTRAIN_COMMITTED", str(tmp_path / "figures"))
    taken = []

    def make(*, runs, store):
        taken.append(runs)
        return ensembles.score_arrays(runs=runs, store=store)

    make.__name__, make.__module__ = "score_arrays", ensembles.__name__
    fewer = [dataclasses.replace(run, keep=("checkpoints:2",)) for run in runs]
    others = [fewer, runs[:1], ensemble_of(epochs=3)]
    for ensemble in (runs, *others):
        scores(ensemble, make)
    assert taken == others


@pytest.mark.parametrize("num_classes", [10, 100])
def test_scores_of_50_000_samples_fit_a_committed_file(tmp_path, num_classes):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(num_classes, (50_000,), generator=generator)
    hardness = 3 * torch.rand(50_000, 1, generator=generator)  # from easy to hopeless
    tally = subset_selection.EnsembleTally()
    for _ in range(20):
        logits = hardness * torch.randn(50_000, num_classes, generator=generator)
        logits[torch.arange(50_000), labels] += 6
        tally.update(logits.softmax(1))
    scores = ensembles._scores(tally, labels)
    wrong = np.random.default_rng(0).random(50_000) < 0.05
    figure_data("fig_1", lambda: scores | {"wrong": wrong}, tmp_path)
    assert (tmp_path / "fig_1.npz").stat().st_size <= 300_000
    assert all(len(np.unique(scores[name])) > 5 for name in ACQUISITIONS)
