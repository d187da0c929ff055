"""From searches to runs and back: runs found again, steps of the right runs, goals by hand."""

import math

import pandas as pd
import pytest

from hardtrain import DataError, ParameterError, RunStore, load_history, run_missing, write_results
from hardtrain.papers.data_parallelism.measures import measurements, trial_table
from hardtrain.papers.data_parallelism.tuning import (
    Curve,
    Protocol,
    pilot_goals,
    set_sizes,
    tune,
)

SPACES = {
    "sgd": {"lr": (1e-3, 0.02), "final_fraction": (0.1, 1.0)},
    "nesterov": {
        "lr": (1e-3, 0.02),
        "final_fraction": (0.1, 1.0),
        "one_minus_momentum": (0.05, 1),
    },
}


@pytest.fixture
def protocol(tiny_set):
    return protocol_of(tiny_set)


def protocol_of(tiny_set, seeds=(1, 7)):
    base = {"device": "cpu"}
    return Protocol({tiny_set: 60}, 2, 8, num_evaluations=4, seeds=seeds, base=base)


def study(tiny_set, store, *, seeds=(1, 7), **changes):
    """Two optimisers at three batch sizes, with spaces that must move; and how many runs each
    sweep had."""
    sweeps = []

    def train(runs):
        sweeps.append(len(runs))
        return run_missing(runs, store, use_committed=changes.get("use_committed", False))

    curves = [Curve(tiny_set, "mlp", name) for name in ("sgd", "nesterov")]
    cells = [(curve, size) for curve in curves for size in (8, 16, 32)]
    settings = {"num_trials": 3, "max_rounds": changes.get("max_rounds", 3)}
    protocol = protocol_of(tiny_set, seeds)
    goals = {(tiny_set, 0.0): 0.3}
    return tune(cells, goals, protocol, SPACES, train, store, **settings), sweeps


@pytest.fixture(scope="module")
def studied(tiny_set, tmp_path_factory):
    """A finished study, the sizes of its sweeps, and its store."""
    store = RunStore(tmp_path_factory.mktemp("study") / "runs", checkpoint_seconds=0.0)
    return *study(tiny_set, store), store


# --- the protocol -------------------------------------------------------------------------------


def test_trials_spend_the_epochs_or_the_steps():
    protocol = Protocol({"digits": 1000}, 2, 64, num_evaluations=10, seeds=[0], base={})
    assert protocol.length("digits", 4) == (2, 500)
    assert protocol.length("digits", 300) == (22, 66)  # 3 whole batches an epoch
    assert protocol.length("digits", 1000) == (64, 64)
    assert protocol.batch_sizes("digits", [1024, 8, 1000, 8]) == [8, 1000]


def test_run_of_a_trial(tiny_set, protocol):
    point = {"lr": 0.3, "one_minus_momentum": 0.7, "final_fraction": 0.2, "decay_length": 0.6}
    run = protocol.run(Curve(tiny_set, "mlp", "nesterov", 0.2), 30, point, 3)
    assert (run.epochs, run.batch_size, run.drop_last, run.seed) == (4, 30, True, 7)
    assert (run.lr, run.momentum, run.nesterov) == (0.3, 0.3, True)  # not 0.30000000000000004
    assert (run.schedule, run.gamma, run.step_epochs) == ("linear", 0.2, 2)  # 2.4 of 4 epochs
    assert (run.evaluate_unit, run.evaluate_every, run.label_noise) == ("step", 2, 0.2)


def test_run_without_momentum_and_decay(tiny_set, protocol):
    run = protocol.run(Curve(tiny_set, "mlp", "nesterov"), 8, {"lr": 0.1}, 0)
    assert (run.momentum, run.nesterov, run.gamma, run.seed) == (0.0, False, 1.0, 1)
    heavy = protocol.run(Curve(tiny_set, "mlp", "momentum"), 8, {"lr": 0.1,
                         "one_minus_momentum": 0.1, "decay_length": 0.01}, 0)  # fmt: skip
    assert (heavy.momentum, heavy.nesterov, heavy.step_epochs) == (0.9, False, 1)


def test_a_fixed_learning_rate_is_what_a_final_fraction_of_one_gives(tiny_set, protocol, store):
    run = protocol.run(Curve(tiny_set, "mlp", "sgd"), 8, {"lr": 0.1}, 0)
    rates = load_history(run_missing([run], store, use_committed=False), store)["lr"]
    assert rates.tolist() == [0.1] * len(rates)


def test_a_batch_larger_than_the_training_set_is_refused(tiny_set, protocol):
    assert protocol.batch_sizes(tiny_set, [61, 60]) == [60]
    with pytest.raises(ParameterError, match=r"batch_sizes = \[64\] exceed the 60 images"):
        protocol.batch_sizes(tiny_set, [64])


def test_set_sizes_count_what_is_trained_on(tiny_set):
    found = set_sizes(datasets=[tiny_set, "digits"], train_size=30)
    assert found["samples"].tolist() == [30, 30]
    assert found["classes"].tolist() == [3, 10]
    assert set_sizes(datasets=[tiny_set], train_size=0)["samples"].tolist() == [60]


def test_curves_in_words():
    curve = Curve("some/where/mine", "mlp", "sgd", 0.2)
    assert curve.workload == "mine, 20 % wrong labels / mlp"
    assert list(curve.words.values()) == ["mine, 20 % wrong labels", "mlp", "SGD"]
    assert Curve("digits", "mlp", "momentum").words["optimiser"] == "heavy ball"


# --- from searches to runs and back --------------------------------------------------------------


def test_tune_trains_each_round_in_one_sweep(studied):
    tuned, sweeps, _ = studied
    assert sweeps[0] == 6 * 3
    assert 1 < len(sweeps) <= 3
    assert sum(sweeps) == sum(map(len, tuned.runs.values()))
    keys = {run.key for runs in tuned.runs.values() for run in runs}
    assert len(tuned.results) == len(keys) == tuned.results["key"].nunique()
    assert set(tuned.history["key"]) <= keys


def test_tune_reports_the_steps_of_its_runs(studied, protocol):
    tuned, _, store = studied
    history = load_history(tuned.results, store).set_index("key")
    reached = 0
    for cell, runs in tuned.runs.items():
        trials = tuned.searches[cell].trials
        for i, (run, trial) in enumerate(zip(runs, trials.to_dict("records"), strict=True)):
            assert run == protocol.run(*cell, trial, i)
            rows = history.loc[[run.key]]
            first = rows.loc[rows["test_error"] <= 0.3, "step"].min()
            assert trial["steps"] == (math.inf if math.isnan(first) else first)
            reached += math.isfinite(trial["steps"])
    assert 0 < reached < len(tuned.results)


@pytest.mark.parametrize("place", ["store", "committed"])
def test_tune_again_finds_the_same_runs(studied, tiny_set, tmp_path, monkeypatch, place):
    first, _, store = studied
    assert any(search.trials["round"].max() > 0 for search in first.searches.values())
    how = {}
    if place == "committed":
        write_results(first.results, store, tmp_path / "figures" / "05" / "quick")
        monkeypatch.setenv("HARDTRAIN_COMMITTED", str(tmp_path / "figures"))
        store, how = RunStore(tmp_path / "empty"), {"use_committed": True}

    def refuse(*args):
        raise AssertionError("something is trained again")

    monkeypatch.setattr("hardtrain.runs.sweep.ENGINES", {"local": refuse})
    again, _ = study(tiny_set, store, **how)
    assert again.runs == first.runs
    for cell, search in again.searches.items():
        pd.testing.assert_frame_equal(search.trials, first.searches[cell].trials)
        assert search[1:] == first.searches[cell][1:]
    ours, theirs = measurements(again), measurements(first)
    for curve, part in ours.items():
        pd.testing.assert_frame_equal(part, theirs[curve])


def test_points_differ_between_batch_sizes_and_seeds_and_are_shared_by_curves(studied, tiny_set):
    tuned, _, _ = studied
    rates = {cell: search.trials["lr"].tolist()[:3] for cell, search in tuned.searches.items()}
    sgd, nesterov = (Curve(tiny_set, "mlp", name) for name in ("sgd", "nesterov"))
    assert rates[sgd, 8] == rates[nesterov, 8]
    assert not set(rates[sgd, 8]) & set(rates[sgd, 16])
    drawn = []

    def record(runs):
        drawn.append([run.lr for run in runs])
        raise InterruptedError

    how = {"num_trials": 3, "max_rounds": 1}
    goals = {(tiny_set, 0.0): 0.3}
    for seeds in ((1, 7), (2, 7)):
        protocol = protocol_of(tiny_set, seeds)
        with pytest.raises(InterruptedError):
            tune([(sgd, 8)], goals, protocol, SPACES, record, None, **how)
    assert drawn[0] == rates[sgd, 8]
    assert not set(drawn[0]) & set(drawn[1])


def test_measurements_are_of_each_curve(studied):
    tuned, _, _ = studied
    measured = measurements(tuned)
    assert list(measured) == list(dict.fromkeys(curve for curve, _ in tuned.runs))
    for curve, part in measured.items():
        for size, trials in part.groupby("batch_size"):
            assert set(trials["trial"]) == {run.key for run in tuned.runs[curve, size]}


def test_each_task_has_its_own_goal(tiny_set, store):
    # the same trial with and without wrong labels; a goal that every error meets, and none
    curves = [Curve(tiny_set, "mlp", "sgd"), Curve(tiny_set, "mlp", "sgd", 0.2)]
    goals = {curves[0].task: 1.0, curves[1].task: -1.0}
    how = {"num_trials": 1, "max_rounds": 1}
    tuned = tune(
        [(curve, 32) for curve in curves], goals, protocol_of(tiny_set), SPACES,
        lambda runs: run_missing(runs, store, use_committed=False), store, **how,
    )  # fmt: skip
    assert math.isfinite(tuned.searches[curves[0], 32].steps)
    assert tuned.searches[curves[1], 32].steps == math.inf


def test_a_run_of_two_curves_counts_once(tiny_set, store, protocol):
    # heavy ball without momentum is plain SGD
    curves = [Curve(tiny_set, "mlp", name) for name in ("sgd", "momentum")]
    tuned = tune(
        [(curve, 32) for curve in curves], {curves[0].task: 0.3}, protocol,
        {name: {"lr": (0.01, 0.1)} for name in ("sgd", "momentum")},
        lambda runs: run_missing(runs, store, use_committed=False), store,
        num_trials=2, max_rounds=1,
    )  # fmt: skip
    assert tuned.runs[curves[0], 32] == tuned.runs[curves[1], 32]
    assert len(tuned.results) == 2
    assert not tuned.history.duplicated().any()
    measured = measurements(tuned)
    pd.testing.assert_frame_equal(measured[curves[0]], measured[curves[1]])


def test_trials_that_diverge_are_told_apart(tiny_set, store, protocol):
    curve = Curve(tiny_set, "cnn_small", "sgd")
    tuned = tune(
        [(curve, 8)], {curve.task: 0.3}, protocol, {"sgd": {"lr": (0.1, 1e30)}},
        lambda runs: run_missing(runs, store, use_committed=False), store,
        num_trials=6, max_rounds=1,
    )  # fmt: skip
    table = trial_table(tuned, (curve, 8))
    status = tuned.results.set_index("key")["status"]
    for trial in table.itertuples():
        lost = status[trial.key] == "diverged"
        reached = math.isfinite(trial.steps)
        assert trial.outcome == ("reached" if reached else "diverged" if lost else "not reached")
    assert "diverged" in set(table["outcome"])
    # one that diverged counts as a trial
    assert measurements(tuned)[curve]["trial"].nunique() == 6


# --- goals ---------------------------------------------------------------------------------------


def pilots_of(protocol, curves, rates):
    return {
        curve: [protocol.run(curve, 8, {"lr": rate}, i) for i, rate in enumerate(rates)]
        for curve in curves
    }


def pilot_results(pilots, errors):
    results, history = [], []
    for curve, runs in pilots.items():
        for run, values in zip(runs, errors[curve.network], strict=True):
            results.append({"key": run.key, "batch_size": run.batch_size,
                            "diverged_epoch": 0.0, "diverged_step": 3.0})  # fmt: skip
            history += [
                {"key": run.key, "epoch": 1.0, "step": 4 * (i + 1), "test_error": error}
                for i, error in enumerate(values)
            ]
    return pd.DataFrame(results), pd.DataFrame(history)


def test_goal_is_what_every_network_reached(tiny_set, protocol):
    curves = [Curve(tiny_set, network, "sgd") for network in ("mlp", "cnn_small")]
    pilots = pilots_of(protocol, curves, (0.1, 0.2))
    errors = {"mlp": [[0.5, 0.2, 0.3], []], "cnn_small": [[0.4, 0.1], [0.3, 0.3]]}
    found = pilot_results(pilots, errors)
    # the worse of the two lowest, 0.2, and 5 % of the way to 0.7: 0.225
    goals = pilot_goals(*found, pilots, {tiny_set: 0.7})
    assert goals == {(tiny_set, 0.0): 0.225}
    # the order of the networks does not matter
    backwards = dict(reversed(pilots.items()))
    assert pilot_goals(*found, backwards, {tiny_set: 0.7}) == goals
    # upwards: 0.2 + 0.05 * 0.47 = 0.2235
    assert pilot_goals(*found, pilots, {tiny_set: 0.67}) == {(tiny_set, 0.0): 0.224}


def test_goal_of_a_pilot_that_diverged(tiny_set, protocol):
    pilots = pilots_of(protocol, [Curve(tiny_set, "mlp", "sgd")], (9.0,))
    results, _ = pilot_results(pilots, {"mlp": [[]]})
    with pytest.raises(DataError, match="every pilot trial of tiny / mlp diverged"):
        pilot_goals(results, pd.DataFrame({"key": []}), pilots, {tiny_set: 0.7})
