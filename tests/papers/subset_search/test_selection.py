"""Subsets by hand, and the way back from committed scores to the same runs."""

import dataclasses
import functools
import math
from itertools import product

import numpy as np
import pandas as pd
import pytest

from hardtrain import RunStore, run_missing, write_results
from hardtrain.papers.subset_search import ensembles, selection
from hardtrain.papers.subset_search.ensembles import ACQUISITIONS
from hardtrain.report.figure_data import figure_data
from hardtrain.runs import engines, subsets
from hardtrain.runs.run_data import load_data, training_set

NUM_SAMPLES = 60  # of the image set


@pytest.fixture
def chain(ensemble_of, run_of, store, tmp_path):
    """A function: ensemble -> committed scores -> subset -> ensemble on it -> scores -> target."""

    def follow(out, store=store, use_committed=True):
        folder = tmp_path / out / "07" / "quick"
        folder.mkdir(parents=True, exist_ok=True)
        how = dict(store=store, use_committed=use_committed)

        def arrays_of(name, make, runs, **settings):
            artefact = runs[0].keep[0]
            return figure_data(name, make, folder, runs=runs, artefact=artefact, **how, **settings)

        first = ensemble_of(label_noise=0.1)
        scores = arrays_of("fig_1", ensembles.score_arrays, first)
        chosen = selection.choose(scores["predictive_entropy"], 30, seed=0)
        grown = ensemble_of(num_samples=30, subset=subsets.pack(chosen, NUM_SAMPLES))
        scores = arrays_of("fig_2", ensembles.score_arrays, grown)
        indices = selection.grow(chosen, scores["mutual_information"], 45, seed=0)
        sizes = arrays_of("fig_3", selection.subsets_by_members, first, counts=[1, 2], size=40)
        few = selection.choose(selection.ranks_of(sizes, 1, "error_count"), 40, seed=0)
        targets = [selection.on_subset(run_of(), part, NUM_SAMPLES) for part in (indices, few)]
        runs = [*first, *grown, *targets]
        results = run_missing(runs, **how)
        write_results(results, store, folder)
        return [run.key for run in runs], results

    return follow


def test_committed_scores_lead_to_the_same_runs(chain, tmp_path, monkeypatch):
    keys, results = chain("first", use_committed=False)
    assert len(set(keys)) == 6

    @functools.wraps(engines.train_run)
    def refuse(*args):
        raise AssertionError("trained although everything is committed")

    monkeypatch.setenv("HARDTRAIN_COMMITTED", str(tmp_path / "first"))
    monkeypatch.setattr(engines, "train_run", refuse)
    empty = RunStore(tmp_path / "empty")
    again, found = chain("second", store=empty)
    assert again == keys
    assert not (tmp_path / "empty").exists()
    columns = ["key", "test_error", "test_loss", "train_loss", "subset"]
    pd.testing.assert_frame_equal(found[columns], results[columns])
    for name in ("fig_1.npz", "fig_2.npz", "fig_3.npz"):
        first, second = (tmp_path / x / "07" / "quick" / name for x in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


def test_subsets_by_members_are_those_of_the_first_members(ensemble_of, trained):
    runs = ensemble_of()
    found = selection.subsets_by_members(runs=runs, store=trained, counts=[4, 1, 6, 50], size=20)
    assert found["num_members"].tolist() == [1, 4, 6]
    assert found["correlation"].shape == found["overlap"].shape == (2, 3, 4)
    whole = ensembles.score_arrays(runs=runs, store=trained)
    for (o, order), (p, count) in product(enumerate(ensembles.ORDERS), enumerate((1, 4, 6))):
        group = ensembles.member_order(runs, order)[:count]
        (scores,) = ensembles.ensemble_scores(runs, trained, [group])
        for a, name in enumerate(ACQUISITIONS):
            first = selection.choose(scores[name], 20, seed=1)
            if o == 0:  # the order whose subsets are stored
                again = selection.choose(selection.ranks_of(found, p, name), 20, seed=1)
                assert set(again) == set(first)
            last = selection.choose(whole[name], 20, seed=0)
            assert found["overlap"][o, p, a] == selection.jaccard(first, last)
    assert (found["overlap"][:, 2, 0] > 0.9).all()  # few entropies are equal
    assert (found["overlap"][:, 0, 2] < 0.5).all()  # all votes of one member are
    np.testing.assert_allclose(found["correlation"][:, 2, 0], 1)
    assert np.isnan(found["correlation"][:, 0, 2]).all()  # one member never disagrees
    assert (found["correlation"][:, 1, 0] < 1).all()


def test_subsets_by_members_fit_a_committed_file(ensemble_of, tmp_path, monkeypatch):
    num_samples, rng = 50_000, np.random.default_rng(0)

    def random_scores(runs, store, groups):
        shape = (len(groups), 2, num_samples)
        entropies = rng.random(shape).astype(np.float16)
        votes = rng.integers(0, 100, shape) * (rng.random(num_samples) < 0.4)
        return [
            dict(zip(ACQUISITIONS, [*first, *second], strict=True))
            for first, second in zip(entropies, votes, strict=True)
        ]

    monkeypatch.setattr(ensembles, "finished_runs", lambda runs, *_: runs)
    monkeypatch.setattr(ensembles, "ensemble_scores", random_scores)
    runs = ensemble_of(num_runs=5, epochs=10, num_checkpoints=20)
    settings = dict(counts=[1, 2, 5, 10, 20, 50], size=35_000)
    np.savez_compressed(
        tmp_path / "fig_2.npz", **selection.subsets_by_members(runs=runs, **settings)
    )
    assert (tmp_path / "fig_2.npz").stat().st_size <= 295_000  # and what stands beside the arrays


def test_labels_and_pictures_are_those_of_the_training_set(run_of):
    run = run_of(train_size=30, label_noise=0.2, label_noise_seed=3)
    data = load_data(run)[0]
    given = training_set(run, data)
    wrong = np.flatnonzero(given.labels != data.labels)
    assert len(wrong) == 6
    found = selection.training_labels(runs=[run])
    np.testing.assert_array_equal(found["labels"], data.labels.numpy())
    assert found["class_names"].tolist() == ["0", "1", "2"]
    indices = [int(wrong[2]), 4, int(wrong[0])]
    shown = selection.pictures(runs=[run], indices=indices)
    np.testing.assert_array_equal(shown["images"], data.images[indices].numpy())
    assert shown["given"].tolist() == [str(int(given.labels[i])) for i in indices]
    assert shown["true"].tolist() == [str(int(data.labels[i])) for i in indices]
    clean = selection.pictures(runs=[run_of(train_size=30)], indices=indices)
    assert clean["given"].tolist() == clean["true"].tolist() == shown["true"].tolist()


@pytest.mark.parametrize("lowest", [False, True])
def test_choose_takes_the_highest_and_draws_among_equal_ones(lowest):
    scores = np.array([2, 7, 2, 2, 9, 2])
    scores = -scores if lowest else scores
    drawn = np.zeros(6)
    for seed in range(400):
        chosen = selection.choose(scores, 4, seed=seed, lowest=lowest).tolist()
        assert chosen[:2] == [4, 1]
        drawn[chosen[2:]] += 1
    assert drawn[[1, 4]].tolist() == [0, 0]
    assert np.abs(drawn[[0, 2, 3, 5]] - 200).max() < 5 * math.sqrt(400 / 4)


def test_choose_is_the_same_everywhere():
    """Runs on subsets are found again by these: no version may draw otherwise."""
    assert selection.choose(np.zeros(10), 10, seed=0).tolist() == [6, 5, 2, 3, 9, 4, 1, 7, 8, 0]
    assert selection.choose(np.arange(10) // 3, 5, seed=0).tolist()[0] == 9


def test_choose_takes_equal_numbers_of_classes():
    scores = np.array([2, 7, 2, 2, 9, 2])
    labels = np.array([0, 0, 0, 1, 0, 1], np.int16)
    for seed in range(5):
        assert sorted(selection.choose(scores, 4, seed=seed, labels=labels)) == [1, 3, 4, 5]
        lowest = selection.choose(scores, 4, seed=seed, labels=labels, lowest=True)
        assert sorted(lowest) == [0, 2, 3, 5]


def test_choose_ranks_half_precision_exactly():
    scores = np.array([6e-8, 0, 1.2e-7, 1.0, 0.9995], np.float16)
    assert len(np.unique(scores)) == 5
    assert selection.choose(scores, 5, seed=0).tolist() == [3, 4, 2, 0, 1]


def test_random_subsets_are_nested_and_differ_by_seed():
    labels = np.arange(1000) % 10
    equal = np.zeros(1000)
    small, large = (set(selection.choose(equal, size, seed=3)) for size in (500, 700))
    assert len(small) == 500
    assert small < large
    other = set(selection.choose(equal, 500, seed=4))
    assert abs(len(small & other) - 250) < 60
    balanced = selection.choose(equal, 505, seed=3, labels=labels)
    assert set(np.bincount(labels[balanced])) == {50, 51}


def test_grow_keeps_what_was_chosen():
    scores = np.array([1, 90, 30, 20, 80], np.int16)
    assert sorted(selection.grow(np.array([0, 3]), scores, 4, seed=0)) == [0, 1, 3, 4]
    assert sorted(selection.grow(np.array([0, 3]), scores, 2, seed=0)) == [0, 3]
    assert scores.tolist() == [1, 90, 30, 20, 80]  # untouched


def test_candidates_are_what_their_names_say():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [150, 50])
    scores = {name: rng.random(200) + labels for name in ACQUISITIONS}
    scores["variation_ratio"] = np.repeat([1.0, 0.0], [20, 180])
    grown = np.arange(80)
    found, other = (
        selection.candidates(scores, labels, 80, seed, "mutual_information", grown)
        for seed in (3, 4)
    )
    assert list(found) == [
        "predictive entropy", "mutual information", "variation ratio", "error count",
        "highest, balanced", "lowest", "random", "random, balanced", "build-up",
    ]  # fmt: skip
    assert all(len(set(part)) == 80 for part in found.values())
    ranked = np.argsort(-scores["mutual_information"])
    assert set(found["mutual information"]) == set(ranked[:80]) == set(other["mutual information"])
    assert set(found["lowest"]) == set(ranked[-80:])
    for name in ("highest, balanced", "random, balanced"):
        assert np.bincount(labels[found[name]]).tolist() == [40, 40]
    of_class_0 = [i for i in ranked if labels[i] == 0]
    assert set(of_class_0[:40]) < set(found["highest, balanced"])
    assert set(range(20)) < set(found["variation ratio"])
    for name in ("variation ratio", "random", "random, balanced"):
        assert set(found[name]) != set(other[name])
    assert found["build-up"] is grown
    few = selection.candidates(None, labels, 80, 3, "mutual_information", None)
    assert list(few) == ["random", "random, balanced"]
    assert few["random"].tolist() == found["random"].tolist()


def test_targets_differ_in_seed_and_subset(run_of):
    parts = {3: np.array([1, 2]), 4: np.array([5, 9])}
    first, second = selection.targets(run_of(seed=8), parts, NUM_SAMPLES)
    assert (first.seed, second.seed) == (3, 4)
    assert subsets.unpack(second.subset, NUM_SAMPLES).tolist() == [5, 9]
    assert dataclasses.replace(first, seed=8, subset="") == run_of(seed=8)


def test_subset_size_leaves_no_batch_of_one(run_of):
    run = run_of(batch_size=16)
    assert [selection.subset_size(run, 100, f) for f in (0.32, 0.33, 0.34, 0.01)] == [
        32,
        32,
        34,
        1,
    ]


def test_on_subset_describes_the_samples(run_of):
    run = run_of()
    part = selection.on_subset(run, np.array([5, 3, 50]), NUM_SAMPLES)
    assert subsets.unpack(part.subset, NUM_SAMPLES).tolist() == [3, 5, 50]
    assert dataclasses.replace(part, subset="") == run
    assert selection.on_subset(run, np.arange(60), NUM_SAMPLES) is run


@pytest.mark.parametrize(
    ("size", "drop_last"),
    [(10, False), (16, False), (17, False), (45, False), (60, False), (17, True), (45, True)],
)
def test_equal_updates_are_as_near_as_whole_epochs_come(run_of, trained, size, drop_last):
    run = run_of(epochs=11, drop_last=drop_last, evaluate_every=11)
    part = selection.on_subset(run, np.arange(size), NUM_SAMPLES)
    longer = selection.at_equal_updates(part, NUM_SAMPLES)
    assert longer.subset == part.subset
    run_missing([run, longer], trained, use_committed=False)
    updates = [trained.load(r.key, load_data(r)[2])["history"][-1]["step"] for r in (run, longer)]
    per_epoch = updates[1] / longer.epochs
    assert abs(updates[1] - updates[0]) <= per_epoch / 2


def test_jaccard_is_that_of_sets():
    rng = np.random.default_rng(0)
    for sizes in product((10, 25, 40), repeat=2):
        first, second = (rng.permutation(50)[:size] for size in sizes)
        union = set(first) | set(second)
        wanted = len(set(first) & set(second)) / len(union)
        assert selection.jaccard(first, second) == pytest.approx(wanted)
