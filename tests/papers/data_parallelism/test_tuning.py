"""From searches to runs and back: runs found again, steps of the right runs, goals by hand."""

import math

import pandas as pd
import pytest

from hardtrain import DataError, ParameterError, RunStore, load_history, run_missing, write_results
from hardtrain.papers.data_parallelism.measures import best_trials
from hardtrain.papers.data_parallelism.tuning import (
    Curve,
    Protocol,
    first_steps,
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
RULES = {"seeds": (1, 7), "num_trials": 3, "max_rounds": 3}


@pytest.fixture
def protocol(tiny_set):
    return protocol_of(tiny_set)


def protocol_of(tiny_set):
    base = {"device": "cpu", "validation_size": 12}
    return Protocol({tiny_set: 48}, 2, 8, num_evaluations=4, base=base)


def study(tiny_set, store, train=None, **changes):
    """Two optimisers at two batch sizes, with spaces that must move; and how many runs each
    sweep had."""
    sweeps = []

    def train_all(runs):
        sweeps.append(len(runs))
        return run_missing(runs, store, use_committed=changes.get("use_committed", False))

    curves = {Curve(tiny_set, "mlp", name): (8, 32) for name in ("sgd", "nesterov")}
    goals = dict.fromkeys(curves, 0.5)
    tuned = tune(curves, goals, protocol_of(tiny_set), SPACES, train or train_all, store, **RULES)
    return tuned, sweeps


@pytest.fixture(scope="module")
def studied(tiny_set, tmp_path_factory):
    """A finished study, the sizes of its sweeps, and its store."""
    store = RunStore(tmp_path_factory.mktemp("study") / "runs", checkpoint_seconds=0.0)
    return *study(tiny_set, store), store


# --- the protocol -------------------------------------------------------------------------------


def test_trials_spend_the_epochs_or_the_steps():
    protocol = Protocol({"digits": 1000}, 2, 64, num_evaluations=10, base={})
    assert protocol.length("digits", 4) == (2, 500)
    assert protocol.length("digits", 300) == (22, 66)  # 3 whole batches an epoch
    assert protocol.length("digits", 1000) == (64, 64)
    assert protocol.batch_sizes("digits", [1024, 8, 1000, 8]) == [8, 1000]


def test_run_of_a_trial(tiny_set, protocol):
    point = {"lr": 0.3, "one_minus_momentum": 0.7, "final_fraction": 0.2, "decay_length": 0.6}
    run = protocol.run(Curve(tiny_set, "mlp", "nesterov", 0.2), 24, 7, point)
    assert (run.epochs, run.batch_size, run.drop_last, run.seed) == (4, 24, True, 7)
    assert (run.lr, run.momentum, run.nesterov) == (0.3, 0.3, True)  # not 0.30000000000000004
    assert (run.schedule, run.gamma, run.step_epochs) == ("linear", 0.2, 2)  # 2.4 of 4 epochs
    assert (run.evaluate_unit, run.evaluate_every, run.label_noise) == ("step", 2, 0.2)


def test_run_without_momentum_and_decay(tiny_set, protocol):
    run = protocol.run(Curve(tiny_set, "mlp", "nesterov"), 8, 1, {"lr": 0.1})
    assert (run.momentum, run.nesterov, run.gamma, run.seed) == (0.0, False, 1.0, 1)
    heavy = protocol.run(Curve(tiny_set, "mlp", "momentum"), 8, 0, {"lr": 0.1,
                         "one_minus_momentum": 0.1, "decay_length": 0.01})  # fmt: skip
    assert (heavy.momentum, heavy.nesterov, heavy.step_epochs) == (0.9, False, 1)


def test_a_fixed_learning_rate_is_what_a_final_fraction_of_one_gives(tiny_set, protocol, store):
    run = protocol.run(Curve(tiny_set, "mlp", "sgd"), 8, 0, {"lr": 0.1})
    rates = load_history(run_missing([run], store, use_committed=False), store)["lr"]
    assert rates.tolist() == [0.1] * len(rates)


def test_a_batch_larger_than_the_training_set_is_refused(tiny_set, protocol):
    assert protocol.batch_sizes(tiny_set, [49, 48]) == [48]
    with pytest.raises(ParameterError, match=r"batch_sizes = \[64\] exceed the 48 images"):
        protocol.batch_sizes(tiny_set, [64])


def test_set_sizes_count_what_is_trained_on(tiny_set):
    found = set_sizes(datasets=[tiny_set, "digits"], train_size=30, validation_size=12)
    assert found["samples"].tolist() == [30, 30]
    assert found["classes"].tolist() == [3, 10]
    whole = set_sizes(datasets=[tiny_set], train_size=0, validation_size=12)
    assert whole["samples"].tolist() == [48]


def test_curves_in_words():
    curve = Curve("some/where/mine", "mlp", "sgd", 0.2)
    assert curve.workload == "mine, 20 % wrong labels / mlp"
    assert list(curve.words.values()) == ["mine, 20 % wrong labels", "mlp", "SGD"]
    assert Curve("digits", "mlp", "momentum").words["optimiser"] == "heavy ball"


# --- from searches to runs and back --------------------------------------------------------------


def test_the_step_that_counts_is_the_first_strictly_below_the_goal():
    rows = [("a", 10, 0.3), ("a", 20, 0.2), ("a", 30, 0.1), ("b", 10, 0.2), ("c", 10, 0.5)]
    history = pd.DataFrame(rows, columns=["key", "step", "validation_error"])
    goals = pd.Series({"a": 0.2, "b": 0.3, "c": 0.3})
    assert first_steps(history, goals).to_dict() == {"a": 30, "b": 10}
    assert first_steps(pd.DataFrame({"key": []}), goals).empty


def test_every_search_has_as_many_completed_trials(studied):
    tuned, sweeps, _ = studied
    assert sweeps[0] == 2 * 2 * 2 * 3
    counted = tuned.trials[tuned.trials["counted"] & (tuned.trials["outcome"] != "infeasible")]
    sizes = counted.groupby(["curve", "batch_size", "seed"]).size()
    assert sizes.tolist() == [3] * 8
    assert tuned.trials["round"].max() > 0  # some had to move
    assert sum(sweeps) == len(tuned.trials)
    assert len(tuned.results) == tuned.results["key"].nunique() == tuned.trials["key"].nunique()
    assert set(tuned.history["key"]) == set(tuned.results["key"])


def test_tune_reports_the_steps_of_its_runs(studied, protocol):
    tuned, _, store = studied
    history = load_history(tuned.results, store).set_index("key")
    assert "test_error" not in history
    for trial in tuned.trials.to_dict("records"):
        point = {k: trial[k] for k in SPACES[trial["curve"].optimizer]}
        run = protocol.run(trial["curve"], trial["batch_size"], trial["seed"], point)
        assert run.key == trial["key"]
        assert (run.validation_size, run.seed) == (12, trial["seed"])
        assert trial["effective_lr"] == pytest.approx(run.lr / (1 - run.momentum))
        rows = history.loc[[run.key]]
        first = rows.loc[rows["validation_error"] < 0.5, "step"].min()
        assert trial["steps"] == (math.inf if math.isnan(first) else first)
        assert trial["outcome"] == ("not reached" if math.isnan(first) else "reached")
    assert len(set(tuned.trials["outcome"])) == 2


@pytest.mark.parametrize("place", ["store", "committed"])
def test_tune_again_finds_the_same_runs(studied, tiny_set, tmp_path, monkeypatch, place):
    first, _, store = studied
    how = {}
    if place == "committed":
        write_results(first.results, store, tmp_path / "figures" / "05" / "quick")
        monkeypatch.setenv("HARDTRAIN_COMMITTED", str(tmp_path / "figures"))
        store, how = RunStore(tmp_path / "empty"), {"use_committed": True}

    def refuse(*args):
        raise AssertionError("something is trained again")

    monkeypatch.setattr("hardtrain.runs.sweep.ENGINES", {"local": refuse})
    again, _ = study(tiny_set, store, **how)
    pd.testing.assert_frame_equal(again.trials, first.trials)


def test_without_training_a_search_says_what_was_not_run(studied, tiny_set):
    first, _, store = studied
    lost = set(first.trials.loc[first.trials["batch_size"] == 8, "key"].iloc[:1])

    def some(runs):
        here = [run for run in runs if run.key not in lost]
        return run_missing(here, store, use_committed=False)

    tuned, _ = study(tiny_set, store, some)
    curve = first.trials["curve"].iloc[0]
    part = tuned.of(curve)
    assert part.loc[part["key"].isin(lost), "outcome"].tolist() == ["not run"]
    complete = best_trials(part)
    assert complete[["batch_size", "seed"]].values.tolist() == [[8, 7], [32, 1], [32, 7]]
    whole = best_trials(first.of(curve)).iloc[1:]
    assert complete["steps"].tolist() == whole["steps"].tolist()

    def none(runs):
        return run_missing(runs, RunStore(store.path / "none"), use_committed=False,
                           train_missing=False)  # fmt: skip

    empty, _ = study(tiny_set, RunStore(store.path / "none"), none)
    assert set(empty.trials["outcome"]) == {"not run"}
    assert best_trials(empty.of(curve)).empty


def test_points_differ_between_batch_sizes_and_seeds_and_are_shared_by_curves(studied):
    tuned, _, _ = studied
    first = tuned.trials[tuned.trials["number"] < 3]
    rates = {name: part["lr"].tolist() for name, part in
             first.groupby(["curve", "batch_size", "seed"])}  # fmt: skip
    sgd, nesterov = dict.fromkeys(first["curve"])
    assert rates[sgd, 8, 1] == rates[nesterov, 8, 1]
    for other in ((8, 7), (32, 1), (32, 7)):
        assert not set(rates[sgd, 8, 1]) & set(rates[sgd, *other])


def test_each_curve_has_its_own_goal(tiny_set, store):
    # the same trial with and without wrong labels; a goal that every error meets, and none
    curves = {Curve(tiny_set, "mlp", "sgd"): (32,), Curve(tiny_set, "mlp", "sgd", 0.2): (32,)}
    goals = dict(zip(curves, (1.01, 0.0), strict=True))
    tuned = tune(
        curves, goals, protocol_of(tiny_set), SPACES,
        lambda runs: run_missing(runs, store, use_committed=False), store,
        seeds=(1,), num_trials=1, max_rounds=1,
    )  # fmt: skip
    assert [math.isfinite(steps) for steps in tuned.trials["steps"]] == [True, False]


def test_a_run_of_two_curves_counts_once(tiny_set, store, protocol):
    # heavy ball without momentum is plain SGD
    curves = {Curve(tiny_set, "mlp", name): (32,) for name in ("sgd", "momentum")}
    tuned = tune(
        curves, dict.fromkeys(curves, 0.3), protocol,
        {name: {"lr": (0.01, 0.1)} for name in ("sgd", "momentum")},
        lambda runs: run_missing(runs, store, use_committed=False), store,
        seeds=(1,), num_trials=2, max_rounds=1,
    )  # fmt: skip
    assert len(tuned.trials) == 4
    assert len(tuned.results) == 2
    assert not tuned.history.duplicated().any()


def test_trials_that_diverge_are_infeasible_and_replaced(tiny_set, store, protocol):
    curve = Curve(tiny_set, "cnn_small", "sgd")
    tuned = tune(
        {curve: (8,)}, {curve: 0.3}, protocol, {"sgd": {"lr": (0.01, 1e6)}},
        lambda runs: run_missing(runs, store, use_committed=False), store,
        seeds=(0,), num_trials=3, max_rounds=1,
    )  # fmt: skip
    status = tuned.results.set_index("key")["status"]
    diverged = tuned.trials["key"].map(status) == "diverged"
    assert diverged.any()
    assert (tuned.trials["outcome"] == "infeasible").tolist() == diverged.tolist()
    assert tuned.trials["steps"].isna().tolist() == diverged.tolist()
    assert (~diverged).sum() == 3


# --- goals ---------------------------------------------------------------------------------------


def pilots_of(protocol, curves, rates):
    return {curve: [protocol.run(curve, 8, 1, {"lr": rate}) for rate in rates] for curve in curves}


def pilot_results(pilots, errors):
    results, history = [], []
    for curve, runs in pilots.items():
        for run, values in zip(runs, errors[curve.network], strict=True):
            results.append({"key": run.key, "status": "finished" if values else "diverged"})
            history += [
                {"key": run.key, "epoch": 1.0, "step": 4 * (i + 1), "validation_error": error}
                for i, error in enumerate(values)
            ]
    return pd.DataFrame(results), pd.DataFrame(history, columns=["key", "validation_error"])


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
    assert 0.2 + 0.05 * (0.9 - 0.2) > 0.235  # by the last bit
    assert pilot_goals(*found, pilots, {tiny_set: 0.9}) == {(tiny_set, 0.0): 0.235}


def test_goal_of_a_pilot_that_diverged_or_was_not_run(tiny_set, protocol):
    pilots = pilots_of(protocol, [Curve(tiny_set, "mlp", "sgd")], (9.0,))
    results, history = pilot_results(pilots, {"mlp": [[]]})
    with pytest.raises(DataError, match="every pilot trial of tiny / mlp diverged"):
        pilot_goals(results, history, pilots, {tiny_set: 0.7})
    (goal,) = pilot_goals(results[:0], history, pilots, {tiny_set: 0.7}).values()
    assert math.isnan(goal)
