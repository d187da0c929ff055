"""A profile's trainings: every seed's subset from an ensemble of its own, in both stages."""

import functools
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest

from hardtrain import run_missing
from hardtrain.papers.subset_search import ensembles, plan, selection
from hardtrain.report.figure_data import figure_data
from hardtrain.runs import subsets

NUM_SAMPLES = 60  # of the image set


@pytest.fixture
def profile(tiny_set):
    return SimpleNamespace(
        networks=["cnn_small"], epochs=2, batch_size=16, lr=0.05, momentum=0.9, weight_decay=5e-4,
        augment="none", train_size=0, test_size=0, precision="float32", channels_last=False,
        num_ensembles=2, ensemble_runs=2, checkpoints=3, acquisition="predictive_entropy",
        kinds=["lowest", "build-up"], fractions=[0.5, 0.75], start=0.25, seeds=[3, 4, 5],
        compared=["mutual_information"],
    )  # fmt: skip


@pytest.fixture
def run(tiny_set, profile):
    return plan.plain_run(profile, tiny_set, device="cpu")


@pytest.fixture
def book(trained, tmp_path):
    """Trains into the tests' store."""
    train = functools.partial(run_missing, store=trained, use_committed=False)
    arrays = functools.partial(figure_data, out_dir=tmp_path, store=trained, use_committed=False)
    return SimpleNamespace(run=train, figure_data=arrays, store=trained)


def test_each_seed_trains_on_what_its_own_ensemble_chose(book, run, profile):
    found = plan.search(book, run, profile)
    first, second = found.ensembles
    assert {r.seed for r in first}.isdisjoint(r.seed for r in second)
    assert list(found.arms) == [
        ("all data", 1.0),
        *((kind, size) for size in (0.5, 0.75)
          for kind in ("predictive entropy", "random", "lowest", "build-up")),
    ]  # fmt: skip
    for i, target in enumerate(found.arms["predictive entropy", 0.5]):
        assert target.seed == profile.seeds[i]
        scores = ensembles.score_arrays(runs=found.ensembles[i % 2], store=book.store)
        right = selection.choose(scores["predictive_entropy"], 30, seed=target.seed)
        assert set(subsets.unpack(target.subset, NUM_SAMPLES)) == set(right)
    assert found.arms["all data", 1.0][0].subset == ""
    assert [r.seed for r in found.arms["all data", 1.0]] == profile.seeds


def test_the_build_up_grows_by_each_ensembles_own_choice(book, run, profile):
    grown, trained = plan.build_up(book, run, profile, NUM_SAMPLES)
    assert [[len(part) for part in parts] for parts in grown.values()] == [[30, 30], [45, 45]]
    for small, large in zip(*grown.values(), strict=True):
        assert set(small) < set(large)
    assert set(grown[0.5][0]) != set(grown[0.5][1])
    assert len(trained) == len({r.key for r in trained}) == 2 * 2 * 2
    sizes = [len(subsets.unpack(r.subset, NUM_SAMPLES)) for r in trained]
    assert sizes == [15] * 4 + [30] * 4
    assert len({r.subset for r in trained[:4]}) == 2  # each ensemble begins by a draw of its own


def test_without_scores_only_what_needs_none_is_planned(run, profile):
    labels = np.arange(NUM_SAMPLES) % 3

    def figure_data(name, make, **_):
        return {"labels": labels} if make is selection.training_labels else None

    book = SimpleNamespace(run=lambda runs: None, figure_data=figure_data)
    found = plan.search(book, run, profile)
    assert found.scores == [None, None]
    assert found.grown == {}
    planned = {kind for (kind, _), runs in found.arms.items() if runs}
    assert planned == {"all data", "random"}
    assert plan.by_members(found, profile, [None, None], 30) == {}


def test_fewer_members_choose_for_their_own_seed(book, run, profile):
    found = plan.search(book, run, profile)
    fewer = plan.scored(book, "fig_2", selection.subsets_by_members, found.ensembles,
                        counts=[1], size=30)  # fmt: skip
    arms = plan.by_members(found, profile, fewer, 30)
    assert list(arms) == [("mutual_information", 1), ("mutual_information", 6)]
    for i, target in enumerate(arms["mutual_information", 6]):
        right = selection.choose(found.scores[i % 2]["mutual_information"], 30, seed=target.seed)
        assert set(subsets.unpack(target.subset, NUM_SAMPLES)) == set(right)
    lost = [fewer[0], fewer[1] | {"num_members": np.array([1, 3])}]  # one of its runs diverged
    assert [r.seed for r in plan.by_members(found, profile, lost, 30)["mutual_information", 1]] == [
        3,
        5,
    ]


def test_ensembles_share_no_run(run, profile):
    groups = plan.ensembles_on(run, profile, NUM_SAMPLES)
    for first, second in combinations(groups, 2):
        assert {r.key for r in first}.isdisjoint(r.key for r in second)
