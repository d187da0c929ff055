"""Scores of checkpoints against a loop over all models, subsets by hand, and the way back from
committed scores to the same runs."""

import dataclasses
import math
import weakref
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch

from hardtrain import DataError, ParameterError, RunStore, load_artefact, run_missing, write_results
from hardtrain.papers.subset_search import ensembles, selection
from hardtrain.papers.subset_search import tables as subset_tables
from hardtrain.papers.subset_search.ensembles import ACQUISITIONS
from hardtrain.report.notebook import figure_data
from hardtrain.runs import engines, subsets
from hardtrain.runs.train import build, load_data, training_set
from hardtrain.statistics import PairedDifference
from hardtrain.strategies import subset_selection
from hardtrain.strategies import subset_selection as strategies
from hardtrain.training.pieces import train_transform

NUM_SAMPLES = 60


@pytest.fixture
def ensemble(tiny_run):
    """A function: two runs with three checkpoints each."""

    def make(num_runs=2, num_checkpoints=3, num_samples=NUM_SAMPLES, **changes):
        run = tiny_run(label_noise_seed=7, **changes)
        return ensembles.ensemble_of(run, num_runs, num_checkpoints, num_samples)

    return make


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
        expected = getattr(strategies, name)(*args).numpy()
        np.testing.assert_allclose(found[name].astype(float), expected, rtol=1e-3, atol=1e-7)
        assert len(found[name]) == len(labels)


# --- ensembles -----------------------------------------------------------------------------------


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
def test_scores_are_those_of_all_models_at_once(ensemble, store, changes):
    size = 30 if "subset" in changes else NUM_SAMPLES
    runs = ensemble(num_samples=size, **changes)
    (found,) = ensembles.ensemble_scores(runs, store)
    predictions, labels = all_predictions(runs, store)
    assert len(predictions) == 2 * int(runs[0].keep[0][-1])
    assert len(labels) == NUM_SAMPLES  # of the pool, not of the subset
    assert_scores(found, predictions.values(), labels)
    assert found["predictive_entropy"].std() > 0


@pytest.mark.parametrize("block_size", [1, 7, 59, 60, 1000])
def test_scores_do_not_depend_on_the_blocks(ensemble, store, block_size):
    runs = ensemble()
    (whole,) = ensembles.ensemble_scores(runs, store)
    (blocks,) = ensembles.ensemble_scores(runs, store, block_size=block_size)
    for name in ACQUISITIONS:
        # a network's sums depend on how many images it gets: the last bit, so at most a rounding
        np.testing.assert_allclose(blocks[name], whole[name], rtol=1e-3, atol=2e-7)


def test_groups_are_ensembles_of_their_own(ensemble, store):
    runs = ensemble()
    groups = [{(0, 2)}, {(0, 2), (1, 0)}, set(product(range(2), range(3)))]
    found = ensembles.ensemble_scores(runs, store, groups=groups, block_size=40)
    predictions, labels = all_predictions(runs, store)
    for scores, group in zip(found, groups, strict=True):
        assert_scores(scores, [predictions[member] for member in sorted(group)], labels)
    (whole,) = ensembles.ensemble_scores(runs, store, block_size=40)
    for name in ACQUISITIONS:  # to the bit, so that both choose the same samples
        np.testing.assert_array_equal(found[2][name], whole[name])
    with pytest.raises(ParameterError, match="none of the ensemble's members"):
        ensembles.ensemble_scores(runs, store, groups=[{(2, 0)}])


def test_last_member_is_the_trained_model(ensemble, store):
    runs = [dataclasses.replace(run, keep=(*run.keep, "final_weights")) for run in ensemble(1)]
    weights = load_artefact(runs[0], runs[0].keep[0], store)
    *_, model = ensembles.members(runs[0], weights)
    final = load_artefact(runs[0], "final_weights", store)
    assert not model.training
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), final[name])


def test_members_leave_the_random_numbers_alone(ensemble, store):
    run = ensemble(1)[0]
    weights = load_artefact(run, run.keep[0], store)
    before = torch.get_rng_state()
    assert len({id(model) for model in ensembles.members(run, weights)}) == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_of_many_members_one_is_held(ensemble, store, monkeypatch):
    """The predictions of hundreds of members never exist at the same time, nor two runs'
    checkpoints."""
    runs = ensemble(num_runs=3, num_checkpoints=4)
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
    ensembles.ensemble_scores(runs, store, block_size=25)
    assert most["predictions"] <= 2  # the one that is added, the next being made
    assert most["checkpoints"] <= 2
    assert alive == {"predictions": 0, "checkpoints": 0}


def test_member_order_takes_runs_or_checkpoints_first():
    by_runs = ensembles.member_order(3, 2)
    assert by_runs == [(0, 1), (1, 1), (2, 1), (0, 0), (1, 0), (2, 0)]
    by_checkpoints = ensembles.member_order(3, 2, "checkpoints")
    assert by_checkpoints == [(0, 1), (0, 0), (1, 1), (1, 0), (2, 1), (2, 0)]
    with pytest.raises(ParameterError, match="order"):
        ensembles.member_order(3, 2, "seeds")


@pytest.mark.parametrize("num_checkpoints", [1, 2, 3, 16, 20])
@pytest.mark.parametrize("order", ensembles.ORDERS)
def test_member_order_has_each_member_once_and_spreads(num_checkpoints, order):
    walk = ensembles.member_order(4, num_checkpoints, order)
    assert sorted(walk) == list(product(range(4), range(num_checkpoints)))
    one = [checkpoint for run, checkpoint in walk if run == 2]
    assert one[0] == num_checkpoints - 1  # the trained model
    for taken in range(1, num_checkpoints + 1):
        gaps = np.diff(sorted({-1, *one[:taken]}))
        assert gaps.max() <= max(1, 3 * num_checkpoints / taken)
    if num_checkpoints == 16:
        assert one[:4] == [15, 7, 11, 3]


def test_ensemble_keeps_what_the_last_half_has(tiny_run):
    run = tiny_run(epochs=3)  # 4 steps an epoch: 12, of which 6 in the last half
    assert ensembles.ensemble_of(run, 1, 20, 60)[0].keep == ("checkpoints:6",)
    assert ensembles.ensemble_of(run, 1, 5, 60)[0].keep == ("checkpoints:5",)
    assert ensembles.ensemble_of(run, 1, 20, 17)[0].keep == ("checkpoints:3",)  # 2 an epoch
    seeds = [member.seed for member in ensembles.ensemble_of(run, 3, 1, 60)]
    assert len(set(seeds)) == 3
    assert min(seeds) == ensembles.ENSEMBLE_SEED


def test_diverged_runs_give_no_members(ensemble, store):
    runs = ensemble()
    healthy = ensembles.ensemble_scores([runs[1]], store)[0]
    run_missing(runs, store, use_committed=False)
    real = run_missing

    def one_diverged(*args, **kwargs):
        results = real(*args, **kwargs)
        results.loc[results["seed"] == runs[0].seed, "status"] = "diverged"
        return results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensembles, "run_missing", one_diverged)
        found = ensembles.ensemble_scores(runs, store)[0]
        by_members = selection.subsets_by_members(
            ensemble=runs, store=store, counts=[1, 4], size=20
        )
    for name in ACQUISITIONS:
        np.testing.assert_array_equal(found[name], healthy[name])
    assert by_members["num_members"].tolist() == [1, 3]


def test_ensemble_of_diverged_runs_is_refused(tiny_run, store):
    runs = ensembles.ensemble_of(tiny_run(lr=1e30), 2, 3, NUM_SAMPLES)
    with pytest.raises(DataError, match="all 2 runs of the ensemble diverged"):
        ensembles.ensemble_scores(runs, store)


def test_ensembles_that_are_none_are_refused(tiny_run, store):
    run = tiny_run()
    first, second = ensembles.ensemble_of(run, 2, 3, NUM_SAMPLES)
    cases = {
        "differ in their seed alone": [first, dataclasses.replace(second, lr=0.1)],
        "needs checkpoints:N": [run],
        "wanted one of them": [first, dataclasses.replace(second, keep=("checkpoints:2",))],
    }
    for text, runs in cases.items():
        with pytest.raises(ParameterError, match=text):
            ensembles.ensemble_scores(runs, store)
    with pytest.raises(ParameterError, match="label_noise_seed"):
        ensembles.ensemble_of(tiny_run(label_noise=0.1), 2, 3, NUM_SAMPLES)
    for number in (0, -1, 1.5):
        with pytest.raises(ParameterError, match="num_runs"):
            ensembles.ensemble_of(run, number, 3, NUM_SAMPLES)
    with pytest.raises(ParameterError, match="block_size"):
        ensembles.ensemble_scores([first, second], store, block_size=0)


# --- what is stored ------------------------------------------------------------------------------


@pytest.fixture
def chain(ensemble, tiny_run, store, tmp_path):
    """A function: ensemble -> stored scores -> subset -> ensemble on it -> scores -> target."""

    def follow(out, store=store, use_committed=True):
        folder = tmp_path / out / "07" / "quick"
        folder.mkdir(parents=True, exist_ok=True)
        where = dict(store=store, use_committed=use_committed)
        first = ensemble(label_noise=0.1)
        scores = ensembles.stored("fig_1", ensembles.score_arrays, first, folder, **where)
        chosen = selection.choose(scores["predictive_entropy"], 30, seed=0)
        grown = ensemble(num_samples=30, subset=subsets.pack(chosen, NUM_SAMPLES))
        scores = ensembles.stored("fig_2", ensembles.score_arrays, grown, folder, **where)
        indices = selection.grow(chosen, scores["mutual_information"], 45, seed=0)
        target = selection.on_subset(tiny_run(), indices, NUM_SAMPLES)
        sizes = ensembles.stored(
            "fig_3",
            selection.subsets_by_members,
            first,
            folder,
            **where,
            counts=[1, 2],
            size=40,
        )
        few = selection.choose(selection.ranks_of(sizes, 1, "error_count"), 40, seed=0)
        other = selection.on_subset(tiny_run(), few, NUM_SAMPLES)
        runs = [*first, *grown, target, other]
        results = run_missing(runs, store, use_committed=use_committed)
        write_results(results, store, folder)
        return [run.key for run in runs], results

    return follow


def test_committed_scores_lead_to_the_same_runs(chain, tmp_path, monkeypatch):
    keys, results = chain("first", use_committed=False)
    assert len(set(keys)) == 6

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


def test_committed_scores_of_another_ensemble_are_not_taken(ensemble, store, tmp_path, monkeypatch):
    folder = tmp_path / "figures" / "07" / "quick"
    folder.mkdir(parents=True)
    runs = ensemble()
    ensembles.stored("fig_1", ensembles.score_arrays, runs, folder, store=store)
    monkeypatch.setenv("HARDTRAIN_COMMITTED", str(tmp_path / "figures"))
    taken = []

    def make(**described):
        taken.append(described["keys"])
        return ensembles.score_arrays(**described)

    make.__name__, make.__module__ = "score_arrays", ensembles.__name__
    fewer = [dataclasses.replace(run, keep=("checkpoints:2",)) for run in runs]
    for other in (runs, fewer, runs[:1], ensemble(epochs=3)):
        ensembles.stored("fig_1", make, other, tmp_path, store=store)
    assert len(taken) == 3  # all but the first


def test_stored_scores_are_rounded_before_they_are_used(ensemble, store):
    runs = ensemble(label_noise=0.1)
    found = ensembles.score_arrays(ensemble=runs, store=store)
    kinds = [found[name].dtype for name in ACQUISITIONS]
    assert kinds == [np.float16, np.float16, np.float16, np.int16]
    assert found["num_members"] == 6
    clean = load_data(runs[0])[0].labels
    assert found["wrong"].sum() == 6  # 10 % of 60
    given = ensembles.pool_of(runs[0]).labels
    np.testing.assert_array_equal(found["wrong"], (given != clean).numpy())
    assert not ensembles.score_arrays(ensemble=ensemble(), store=store)["wrong"].any()


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


def test_subsets_by_members_are_those_of_the_first_members(ensemble, store):
    runs = ensemble()
    found = selection.subsets_by_members(ensemble=runs, store=store, counts=[4, 1, 50], size=20)
    assert found["num_members"].tolist() == [1, 4, 6]
    assert found["correlation"].shape == found["overlap"].shape == (2, 3, 4)
    (whole,) = ensembles.ensemble_scores(runs, store)
    for (o, order), (p, count) in product(enumerate(ensembles.ORDERS), enumerate((1, 4, 6))):
        group = set(ensembles.member_order(2, 3, order)[:count])
        (scores,) = ensembles.ensemble_scores(runs, store, groups=[group])
        for a, name in enumerate(ACQUISITIONS):
            first = selection.choose(scores[name], 20, seed=1)
            if o == 0:  # the order whose subsets are stored
                again = selection.choose(selection.ranks_of(found, p, name), 20, seed=1)
                assert set(again) == set(first)
            last = selection.choose(whole[name], 20, seed=0)
            assert found["overlap"][o, p, a] == selection.jaccard([first, last])[0, 1]
    assert (found["overlap"][:, 2, 0] > 0.9).all()  # few entropies are equal
    assert (found["overlap"][:, 0, 2] < 0.5).all()  # all votes of one member are
    np.testing.assert_allclose(found["correlation"][:, 2, 0], 1)
    assert np.isnan(found["correlation"][:, 0, 2]).all()  # one member never disagrees
    assert (found["correlation"][:, 1, 0] < 1).all()


def test_subsets_by_members_fit_a_committed_file(ensemble, store, tmp_path, monkeypatch):
    num_samples, rng = 50_000, np.random.default_rng(0)

    def random_scores(runs, store, *, groups):
        shape = (len(groups), 2, num_samples)
        entropies = rng.random(shape).astype(np.float16)
        votes = rng.integers(0, 100, shape) * (rng.random(num_samples) < 0.4)
        return [
            dict(zip(ACQUISITIONS, [*first, *second], strict=True))
            for first, second in zip(entropies, votes, strict=True)
        ]

    runs = ensemble(num_runs=5, epochs=10, num_checkpoints=20)
    run_missing(runs, store, use_committed=False)
    monkeypatch.setattr(selection, "ensemble_scores", random_scores)
    make, settings = (
        selection.subsets_by_members,
        dict(counts=[1, 2, 5, 10, 20, 50], size=35_000),
    )
    ensembles.stored("fig_2", make, runs, tmp_path, store=store, **settings)
    assert (tmp_path / "fig_2.npz").stat().st_size <= 300_000


def test_labels_and_pictures_are_those_of_the_training_set(tiny_set, tiny_run):
    run = tiny_run(train_size=30, label_noise=0.2, label_noise_seed=3)
    data = load_data(run)[0]
    given = training_set(run, data)
    wrong = np.flatnonzero(given.labels != data.labels)
    assert len(wrong) == 6
    settings = dict(datasets=[tiny_set], train_size=30)
    found = selection.training_labels(**settings)
    np.testing.assert_array_equal(found["labels"], data.labels.numpy())
    assert found["class_names"].tolist() == ["0", "1", "2"]
    indices = [int(wrong[2]), 4, int(wrong[0])]
    shown = selection.pictures(**settings, indices=indices, label_noise=0.2, label_noise_seed=3)
    np.testing.assert_array_equal(shown["images"], data.images[indices].numpy())
    assert shown["given"].tolist() == [str(int(given.labels[i])) for i in indices]
    assert shown["true"].tolist() == [str(int(data.labels[i])) for i in indices]
    clean = selection.pictures(**settings, indices=indices)
    assert clean["given"].tolist() == clean["true"].tolist() == shown["true"].tolist()


# --- subsets -------------------------------------------------------------------------------------


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
    small, large = (set(selection.choose_at_random(1000, size, seed=3)) for size in (500, 700))
    assert len(small) == 500
    assert small < large
    other = set(selection.choose_at_random(1000, 500, seed=4))
    assert abs(len(small & other) - 250) < 60
    balanced = selection.choose_at_random(1000, 505, seed=3, labels=labels)
    assert set(np.bincount(labels[balanced])) == {50, 51}


def test_grow_keeps_what_was_chosen():
    scores = np.array([1, 90, 30, 20, 80], np.int16)
    assert sorted(selection.grow(np.array([0, 3]), scores, 4, seed=0)) == [0, 1, 3, 4]
    assert sorted(selection.grow(np.array([0, 3]), scores, 2, seed=0)) == [0, 3]
    assert scores.tolist() == [1, 90, 30, 20, 80]  # untouched
    with pytest.raises(ParameterError, match="size = 1 is less than the 2"):
        selection.grow(np.array([0, 3]), scores, 1, seed=0)


def test_candidates_are_what_their_names_say():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [150, 50])
    scores = {name: rng.random(200) + labels for name in ACQUISITIONS}
    scores["variation_ratio"] = np.repeat([1.0, 0.0], [20, 180])
    grown = np.arange(80)
    found = selection.candidates(scores, labels, 80, [3, 4], "mutual_information", grown)
    assert list(found) == [
        "predictive entropy", "mutual information", "variation ratio", "error count",
        "highest, balanced", "lowest", "random", "random, balanced", "build-up",
    ]  # fmt: skip
    assert all(len(set(part)) == 80 for parts in found.values() for part in parts)
    ranked = np.argsort(-scores["mutual_information"])
    for part in found["mutual information"]:
        assert set(part) == set(ranked[:80])
    assert set(found["lowest"][0]) == set(ranked[-80:])
    for name in ("highest, balanced", "random, balanced"):
        assert np.bincount(labels[found[name][1]]).tolist() == [40, 40]
    of_class_0 = [i for i in ranked if labels[i] == 0]
    assert set(of_class_0[:40]) < set(found["highest, balanced"][0])
    assert all(set(range(20)) < set(part) for part in found["variation ratio"])
    for name in ("variation ratio", "random", "random, balanced"):
        assert set(found[name][0]) != set(found[name][1])
    assert found["build-up"][1] is grown


def test_targets_differ_in_seed_and_subset(tiny_run):
    parts = [np.array([1, 2]), np.array([5, 9])]
    first, second = selection.targets(tiny_run(seed=8), [3, 4], parts, NUM_SAMPLES)
    assert (first.seed, second.seed) == (3, 4)
    assert subsets.unpack(second.subset, NUM_SAMPLES).tolist() == [5, 9]
    assert dataclasses.replace(first, seed=8, subset="") == tiny_run(seed=8)


def test_subset_size_leaves_no_batch_of_one(tiny_run):
    run = tiny_run(batch_size=16)
    assert [selection.subset_size(run, 100, f) for f in (0.32, 0.33, 0.34, 0.01)] == [
        32,
        32,
        34,
        1,
    ]
    for fraction in (0, 1, 1.2, "0.5"):
        with pytest.raises(ParameterError, match="fraction"):
            selection.subset_size(run, 100, fraction)


def test_on_subset_describes_the_samples(tiny_run):
    run = tiny_run()
    part = selection.on_subset(run, np.array([5, 3, 50]), NUM_SAMPLES)
    assert subsets.unpack(part.subset, NUM_SAMPLES).tolist() == [3, 5, 50]
    assert dataclasses.replace(part, subset="") == run
    assert selection.on_subset(run, np.arange(60), NUM_SAMPLES) is run


@pytest.mark.parametrize(
    ("size", "drop_last"),
    [(10, False), (16, False), (17, False), (45, False), (60, False), (17, True), (45, True)],
)
def test_equal_updates_are_as_near_as_whole_epochs_come(tiny_run, store, size, drop_last):
    run = tiny_run(epochs=10, drop_last=drop_last, evaluate_every=10)
    part = selection.on_subset(run, np.arange(size), NUM_SAMPLES)
    longer = selection.at_equal_updates(part, NUM_SAMPLES)
    assert longer.subset == part.subset
    run_missing([run, longer], store, use_committed=False)
    updates = [store.load(r.key, load_data(r)[2])["history"][-1]["step"] for r in (run, longer)]
    per_epoch = updates[1] / longer.epochs
    assert abs(updates[1] - updates[0]) <= per_epoch / 2


def test_jaccard_is_that_of_sets():
    rng = np.random.default_rng(0)
    chosen = [rng.permutation(50)[:size] for size in (10, 25, 40)]
    found = selection.jaccard(chosen)
    for i, j in product(range(3), repeat=2):
        a, b = set(chosen[i]), set(chosen[j])
        assert found[i, j] == pytest.approx(len(a & b) / len(a | b))


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_chance_overlap_is_the_mean_of_random_subsets(fraction):
    size = round(5000 * fraction)
    pairs = [
        [selection.choose_at_random(5000, size, seed=2 * i + j) for j in (0, 1)] for i in range(20)
    ]
    mean = np.mean([selection.jaccard(pair)[0, 1] for pair in pairs])
    assert mean == pytest.approx(subset_tables.chance_overlap(fraction), abs=0.005)


# --- tables and curves ---------------------------------------------------------------------------


def test_score_table_counts_ties_and_classes():
    scores = {name: np.array([0, 0, 0, 3, 2, 0]) for name in ACQUISITIONS}
    scores["error_count"] = np.array([1, 2, 3, 4, 5, 6])
    labels = np.array([0, 0, 1, 1, 3, 3])
    table = subset_tables.score_table(scores, labels, 3)
    tied, ranked = table.iloc[0].tolist(), table.iloc[3].tolist()
    assert tied[:5] == ["predictive entropy", "66.7", 3, 4, 1]
    assert ranked == ["error count", "0.0", 6, 1, 1, "0.0", "100.0"]


def frame(**errors):
    """Results of one run a seed and key; nan is a diverged run."""
    rows = [
        {"key": f"{key}{seed}", "seed": seed, "test_error": error,
         "status": "diverged" if math.isnan(error) else "finished"}
        for key, values in errors.items() for seed, error in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@dataclasses.dataclass
class Named:
    key: str
    seed: int


def arm(name, num_seeds):
    return [Named(f"{name}{seed}", seed) for seed in range(num_seeds)]


def test_errors_by_seed_leave_out_seeds_that_diverged_somewhere():
    results = frame(a=[0.1, 0.2, 0.3], b=[0.4, math.nan, 0.6])
    found = subset_tables.errors_by_seed(results, [arm("a", 3), arm("b", 3)])
    np.testing.assert_allclose(found, [[0.1, 0.4], [0.3, 0.6]])


def test_error_points_are_in_percent_with_their_intervals():
    results = frame(a=[0.1, 0.2, 0.3], b=[0.4, math.nan, math.nan], c=[math.nan] * 3)
    mean, half = subset_tables.error_points(results, [arm("a", 3), arm("a", 3)])
    np.testing.assert_allclose(mean, [20, 20])
    np.testing.assert_allclose(half, 4.302653 * 10 / math.sqrt(3), rtol=1e-6)
    mean, half = subset_tables.error_points(results, [arm("a", 3), arm("b", 3)])
    np.testing.assert_allclose(mean, [10, 40])
    assert np.isnan(half).all()
    assert np.isnan(subset_tables.error_points(results, [arm("a", 3), arm("c", 3)])).all()


def test_subset_table_compares_each_arm_with_its_baselines():
    results = frame(a=[0.10, 0.20, 0.30], b=[0.11, 0.22, 0.33], c=[math.nan] * 3)
    all_data, part, lost = (arm(name, 3) for name in "abc")
    arms = {("100", "all"): all_data, ("70", "part"): part, ("50", "lost"): lost}
    baselines = {"all": dict.fromkeys(arms, all_data), "random": {("70", "part"): lost}}
    table = subset_tables.subset_table(results, arms, ["kept (%)", "subset"], baselines)
    assert table.columns.tolist() == [
        "kept (%)", "subset", "test error (%)", "minus all (points)", "p (all)",
        "minus random (points)", "p (random)",
    ]  # fmt: skip
    assert table.iloc[0].tolist() == ["100", "all", "20.00 ± 24.84 (n = 3)", "", "", "", ""]
    assert table.iloc[1].tolist()[2:] == [
        "22.00 ± 27.33 (n = 3)", "+2.00 ± 2.48 (n = 3)", "0.074", "", "",
    ]  # fmt: skip
    assert table.iloc[2].tolist()[2:] == ["3 diverged", "", "", "", ""]


def test_seen_says_what_the_interval_says():
    gap = PairedDifference(mean=-1.0, low=-2.0, high=-0.5, p=0.01, n=5)
    assert subset_tables.seen(gap) == "lower error"
    assert subset_tables.seen(gap._replace(mean=1.0, low=0.5, high=2.0)) == "higher error"
    assert subset_tables.seen(gap._replace(high=0.0)) == "no difference seen"
    assert subset_tables.seen(gap._replace(n=2)) == "2 of at least 3 seeds"
    assert subset_tables.seen(None) == "not run"


def test_label_error_curve_matches_a_loop_over_thresholds():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, 200)
    wrong = rng.random(200) < 0.05 + 0.1 * scores / 6
    precision, recall = subset_tables.label_error_curve(scores, wrong)
    expected = []
    for threshold in sorted(set(scores), reverse=True):
        found = scores >= threshold
        expected.append((wrong[found].mean(), wrong[found].sum() / wrong.sum()))
    reached = list(zip(precision, recall, strict=True))
    # sklearn stops at the threshold that has found all
    np.testing.assert_allclose(reached, expected[: len(reached)])
    assert recall[-1] == 1
    with pytest.raises(ParameterError, match="no label is wrong"):
        subset_tables.label_error_curve(scores, np.zeros(200, bool))


def test_label_error_table_by_hand():
    wrong = np.array([False, True, False, True, False, False, False, False, False, False])
    ranked = np.array([9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    scores = {name: np.zeros(10) for name in ACQUISITIONS} | {"error_count": ranked}
    table = subset_tables.label_error_table(scores, wrong).set_index("acquisition function")
    assert table.columns[0] == "wrong among the 2 highest (%)"
    # 2 highest: one; at the thresholds of the two: 1/2 and 2/4; four to see both
    assert table.loc["error count"].tolist() == ["50.0", "50.0", "40.0"]
    # all tied: as good as chance, and everything looked at
    assert table.loc["predictive entropy"].tolist() == ["20.0", "20.0", "100.0"]
    assert table.loc["chance"].tolist() == ["20.0", "20.0", "90.0"]
