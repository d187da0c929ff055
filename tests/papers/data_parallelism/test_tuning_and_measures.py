"""Searches side by side and alone; runs found again; goals, ratios and slopes by hand."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest

from hardtrain import DataError, ParameterError, RunStore, load_history, run_missing, write_results
from hardtrain.papers.data_parallelism.batch_scaling import QUANTITIES, regime_table
from hardtrain.papers.data_parallelism.measures import (
    Ratio,
    Slope,
    best_rates,
    budget_frame,
    comparison_groups,
    direction,
    measurements,
    noisy_quadratic_check,
    ranked_trials,
    regime_arrays,
    speed_ups,
    steps_by_size,
    trial_table,
)
from hardtrain.papers.data_parallelism.noisy_quadratic import noisy_quadratic_steps
from hardtrain.papers.data_parallelism.regimes import Regimes, fit_regimes
from hardtrain.papers.data_parallelism.search import Search, search
from hardtrain.papers.data_parallelism.tuning import (
    LIMITS,
    Curve,
    Protocol,
    Tuned,
    curve_name,
    pilot_goals,
    pilot_runs,
    search_together,
    set_sizes,
    tune,
)

SPACES = {
    "sgd": {"lr": (0.01, 1.0), "final_fraction": (0.1, 1.0)},
    "nesterov": {"lr": (0.01, 1.0), "final_fraction": (0.1, 1.0), "one_minus_momentum": (0.05, 1)},
}


@pytest.fixture
def protocol(tiny_set):
    return Protocol({tiny_set: 60}, epochs=2, num_steps=8, num_evaluations=4, seeds=(5, 7),
                    base={"device": "cpu"})  # fmt: skip


@pytest.fixture
def curve(tiny_set):
    return Curve(tiny_set, "mlp", "sgd")


@pytest.fixture
def studied(tiny_set, protocol, store):
    """A small study: two optimisers at three batch sizes, with spaces that must move."""
    cells = [
        (Curve(tiny_set, "mlp", optimizer), size)
        for optimizer in ("sgd", "nesterov")
        for size in (8, 16, 32)
    ]
    spaces = {name: space | {"lr": (1e-3, 0.02)} for name, space in SPACES.items()}

    def study(**changes):
        how = dict(num_trials=3, seed=1, max_rounds=3, store=store, use_committed=False)
        return tune(cells, {(tiny_set, 0.0): 0.3}, protocol, spaces, **(how | changes))

    return study


def made(trials, statuses=None, curve=None):
    """`Tuned` of one curve from trials by batch size: points and steps; runs without training."""
    curve = curve or Curve("digits", "mlp", "momentum")
    protocol = Protocol({"digits": 1024}, 1, 1, 1)
    searches, runs, rows = {}, {}, []
    for size, table in trials.items():
        frame = pd.DataFrame(table)
        names = [name for name in frame if name != "steps"]
        best = frame.loc[frame["steps"].idxmin(), names].to_dict()
        steps = frame["steps"].min()
        if math.isinf(steps):
            best = None
        searches[curve, size] = Search(frame.assign(round=0), best, steps, True, {})
        runs[curve, size] = [
            protocol.run(curve, size, point, i) for i, point in enumerate(frame.to_dict("records"))
        ]
        rows += [{"key": run.key, "status": "finished"} for run in runs[curve, size]]
    results = pd.DataFrame(rows)
    results["status"] = statuses or results["status"]
    return Tuned(searches, runs, results, pd.DataFrame()), curve


# --- the protocol --------------------------------------------------------------------------------


def test_trials_spend_the_epochs_or_the_steps():
    protocol = Protocol({"digits": 1000}, epochs=2, num_steps=64, num_evaluations=10)
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
    assert (run.momentum, run.nesterov, run.gamma, run.seed) == (0.0, False, 1.0, 5)
    heavy = protocol.run(Curve(tiny_set, "mlp", "momentum"), 8, {"lr": 0.1,
                         "one_minus_momentum": 0.1, "decay_length": 0.01}, 0)  # fmt: skip
    assert (heavy.momentum, heavy.nesterov, heavy.step_epochs) == (0.9, False, 1)


def test_a_fixed_learning_rate_is_what_a_final_fraction_of_one_gives(tiny_set, protocol, store):
    run = protocol.run(Curve(tiny_set, "mlp", "sgd"), 8, {"lr": 0.1}, 0)
    rates = load_history(run_missing([run], store, use_committed=False), store)["lr"]
    assert rates.tolist() == [0.1] * len(rates)


def test_protocol_refuses(tiny_set, protocol):
    with pytest.raises(ParameterError, match="batch_size = 61 is more than the 60"):
        protocol.run(Curve(tiny_set, "mlp", "sgd"), 61, {"lr": 0.1}, 0)
    with pytest.raises(ParameterError, match=r"batch_sizes = \[64\] are all more than the 60"):
        protocol.batch_sizes(tiny_set, [64])
    for bad in ({"epochs": 0}, {"num_steps": 0}, {"num_evaluations": 0}, {"seeds": ()}):
        fields = {"sizes": {}, "epochs": 1, "num_steps": 1, "num_evaluations": 1} | bad
        with pytest.raises(ParameterError, match=next(iter(bad))):
            Protocol(**fields)


def test_set_sizes_count_what_is_trained_on(tiny_set):
    found = set_sizes(datasets=[tiny_set, "digits"], train_size=30)
    assert found["samples"].tolist() == [30, 30]
    assert found["classes"].tolist() == [3, 10]
    assert set_sizes(datasets=[tiny_set], train_size=0)["samples"].tolist() == [60]


def test_curves_in_words():
    assert Curve("some/where/mine", "mlp", "sgd", 0.2).workload == "mine, 20 % wrong labels / mlp"
    assert curve_name(Curve("digits", "mlp", "momentum")) == "digits / mlp, heavy ball"


# --- searches side by side -----------------------------------------------------------------------


def valley(best):
    return lambda point: 100 + 50 * abs(math.log10(point["lr"] / best))


def test_searches_together_find_what_each_finds_alone():
    places = {"inside": 0.1, "below": 1e-4, "far above": 300.0}
    space = {"lr": (0.01, 1.0)}
    calls = []

    def evaluate(requests):
        calls.append(requests)
        return [valley(places[name])(point) for name, _, point in requests]

    seeds = dict(zip(places, (3, 4, 5), strict=True))
    together = search_together(
        dict.fromkeys(places, space), 6, evaluate, seeds=seeds, max_rounds=4, upper=LIMITS
    )
    for name, best in places.items():
        alone = search(space, 6, lambda points, best=best: list(map(valley(best), points)),
                       seed=seeds[name])  # fmt: skip
        pd.testing.assert_frame_equal(together[name].trials, alone.trials)
        assert together[name][1:] == alone[1:]
    assert len(calls) == max(result.trials["round"].max() for result in together.values()) + 1 > 2
    assert len(calls[0]) == 3 * 6  # the first round of all at once
    for name in places:  # trials are numbered on over the rounds
        numbers = [number for call in calls for asked, number, _ in call if asked == name]
        assert numbers == list(range(len(together[name].trials)))


def test_limits_hold_where_a_space_has_their_names():
    def evaluate(requests):
        return [100 / point.get("final_fraction", 1.0) for _, _, point in requests]

    spaces = {"with": {"lr": (0.1, 1.0), "final_fraction": (0.5, 1.0)}, "without": {"lr": (0.1, 1)}}
    found = search_together(spaces, 9, evaluate, seeds=dict.fromkeys(spaces, 0), upper=LIMITS)
    assert found["with"].trials["final_fraction"].max() <= 1
    assert found["with"].space["final_fraction"] == (0.5, 1.0)
    assert set(found["without"].space) == {"lr"}


def test_searches_refuse_a_wrong_number_of_steps():
    with pytest.raises(ParameterError, match="each of 4 requests; got 3"):
        search_together({"a": {"lr": (0.1, 1.0)}}, 4, lambda requests: [1.0] * 3, seeds={"a": 0})


# --- from searches to runs and back --------------------------------------------------------------


def test_tune_trains_each_round_in_one_sweep(studied, monkeypatch):
    sweeps = []

    def counted(runs, *args, **how):
        sweeps.append(len(runs))
        return run_missing(runs, *args, **how)

    monkeypatch.setattr("hardtrain.papers.data_parallelism.tuning.run_missing", counted)
    tuned = studied()
    assert sweeps[0] == 6 * 3
    assert 1 < len(sweeps) <= 3
    assert sum(sweeps) == len(tuned.results) == sum(map(len, tuned.runs.values()))


def test_tune_reports_the_steps_of_its_runs(studied, tiny_set, store):
    tuned = studied()
    history = load_history(tuned.results, store).set_index("key")
    reached = 0
    for cell, runs in tuned.runs.items():
        trials = tuned.searches[cell].trials
        assert len(trials) == len(runs)
        for i, (run, trial) in enumerate(zip(runs, trials.to_dict("records"), strict=True)):
            assert run == Protocol({tiny_set: 60}, 2, 8, 4, (5, 7), {"device": "cpu"}).run(
                *cell, trial, i
            )
            rows = history.loc[[run.key]]
            first = rows.loc[rows["test_error"] <= 0.3, "step"].min()
            assert trial["steps"] == (math.inf if math.isnan(first) else first)
            reached += math.isfinite(trial["steps"])
    assert 0 < reached < len(tuned.results)


@pytest.mark.parametrize("where", ["store", "committed"])
def test_tune_again_finds_the_same_runs(studied, store, tmp_path, monkeypatch, where):
    first = studied()
    assert any(found.trials["round"].max() > 0 for found in first.searches.values())
    how = {"store": store}
    if where == "committed":
        write_results(first.results, store, tmp_path / "figures" / "05" / "quick")
        monkeypatch.setenv("HARDTRAIN_COMMITTED", str(tmp_path / "figures"))
        how = {"store": RunStore(tmp_path / "empty"), "use_committed": True}

    def refuse(*args):
        raise AssertionError("something is trained again")

    monkeypatch.setattr("hardtrain.runs.sweep.ENGINES", {"local": refuse})
    again = studied(**how)
    assert again.runs == first.runs
    for cell, found in again.searches.items():
        pd.testing.assert_frame_equal(found.trials, first.searches[cell].trials)
        assert found[1:] == first.searches[cell][1:]
    mine, theirs = (measurements(tuned) for tuned in (again, first))
    for curve, part in mine.items():
        pd.testing.assert_frame_equal(part, theirs[curve])


def test_points_differ_between_batch_sizes_and_are_shared_by_curves(studied, tiny_set):
    tuned = studied(max_rounds=1)
    rates = {cell: found.trials["lr"].tolist() for cell, found in tuned.searches.items()}
    sgd, nesterov = (Curve(tiny_set, "mlp", name) for name in ("sgd", "nesterov"))
    assert rates[sgd, 8] == rates[nesterov, 8]
    assert not set(rates[sgd, 8]) & set(rates[sgd, 16])
    other = studied(max_rounds=1, seed=2)
    assert rates[sgd, 8] != other.searches[sgd, 8].trials["lr"].tolist()


def test_measurements_are_of_each_curve(studied):
    tuned = studied()
    found = measurements(tuned)
    assert list(found) == list(dict.fromkeys(curve for curve, _ in tuned.runs))
    for curve, part in found.items():
        for size, trials in part.groupby("batch_size"):
            assert set(trials["trial"]) == {run.key for run in tuned.runs[curve, size]}


def test_trials_that_diverge_are_told_apart(tiny_set, store, protocol):
    curve = Curve(tiny_set, "cnn_small", "sgd")
    spaces = {"sgd": {"lr": (0.1, 1e30)}}
    tuned = tune([(curve, 8)], {curve.task: 0.3}, protocol, spaces, num_trials=6, seed=0,
                 max_rounds=1, store=store, use_committed=False)  # fmt: skip
    table = trial_table(tuned, (curve, 8))
    status = tuned.results.set_index("key")["status"]
    for trial in table.itertuples():
        lost = status[trial.key] == "diverged"
        reached = math.isfinite(trial.steps)
        assert trial.outcome == ("reached" if reached else "diverged" if lost else "not reached")
    assert "diverged" in set(table["outcome"])
    # one that diverged counts as a trial
    assert measurements(tuned)[curve]["trial"].nunique() == 6


def test_trial_table_and_its_ranking():
    trials = {
        8: {
            "lr": [0.1, 0.2, 0.3, 0.4],
            "one_minus_momentum": [0.5, 0.1, 1.0, 0.2],
            "steps": [30.0, 20.0, math.inf, 20.0],
        }
    }
    tuned, curve = made(trials, ["finished", "diverged", "diverged", "finished"])
    tuned.searches[curve, 8] = tuned.searches[curve, 8]._replace(
        best={"lr": 0.4, "one_minus_momentum": 0.2}  # of two with equal steps
    )
    table = trial_table(tuned, (curve, 8))
    assert table["effective_lr"].tolist() == pytest.approx([0.2, 2.0, 0.3, 2.0])
    assert table["momentum"].tolist() == [0.5, 0.9, 0.0, 0.8]
    assert table["outcome"].tolist() == ["reached", "reached", "diverged", "reached"]
    assert ranked_trials(tuned, (curve, 8))["lr"].tolist() == [0.4, 0.2, 0.1, 0.3]


# --- goals ---------------------------------------------------------------------------------------


def test_pilot_is_plain_sgd_at_the_smallest_batch(tiny_set, protocol):
    curves = [
        Curve(tiny_set, network, optimizer, noise)
        for network, optimizer, noise in itertools.product(
            ("mlp", "cnn_small"), ("sgd", "nesterov"), (0.0, 0.2)
        )
    ]
    pilots = pilot_runs(curves, protocol, [{"lr": 0.1}, {"lr": 0.2}], {tiny_set: [16, 8]})
    assert {(c.network, c.label_noise) for c in pilots} == {
        ("mlp", 0.0), ("mlp", 0.2), ("cnn_small", 0.0), ("cnn_small", 0.2),
    }  # fmt: skip
    for pilot, runs in pilots.items():
        assert [(run.lr, run.momentum, run.batch_size, run.seed) for run in runs] == [
            (0.1, 0.0, 8, 5), (0.2, 0.0, 8, 7),
        ]  # fmt: skip
        assert {run.label_noise for run in runs} == {pilot.label_noise}


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
    pilots = pilot_runs(curves, protocol, [{"lr": 0.1}, {"lr": 0.2}], {tiny_set: [8]})
    errors = {"mlp": [[0.5, 0.2, 0.3], []], "cnn_small": [[0.4, 0.1], [0.3, 0.3]]}
    found = pilot_results(pilots, errors)
    # the worse of the two lowest, 0.2, and 5 % of the way to 0.7: 0.225
    goals = pilot_goals(*found, pilots, {tiny_set: 0.7})
    assert goals == {(tiny_set, 0.0): 0.225}
    assert pilot_goals(*found, pilots, {tiny_set: 0.7}, slack=0.0) == {(tiny_set, 0.0): 0.2}
    # upwards: 0.2 + 0.05 * 0.47 = 0.2235
    assert pilot_goals(*found, pilots, {tiny_set: 0.67}) == {(tiny_set, 0.0): 0.224}


def test_goal_of_a_pilot_that_diverged(tiny_set, protocol):
    pilots = pilot_runs([Curve(tiny_set, "mlp", "sgd")], protocol, [{"lr": 9.0}], {tiny_set: [8]})
    results, _ = pilot_results(pilots, {"mlp": [[]]})
    with pytest.raises(DataError, match="every pilot trial of tiny / mlp diverged"):
        pilot_goals(results, pd.DataFrame({"key": []}), pilots, {tiny_set: 0.7})
    with pytest.raises(ParameterError, match="slack"):
        pilot_goals(results, pd.DataFrame({"key": []}), pilots, {tiny_set: 0.7}, slack=1.0)


# --- regimes and comparisons ---------------------------------------------------------------------


def measured_trials():
    """Two trials at each of four batch sizes; at 16 one of them does not get there."""
    rows = []
    for size, steps in {4: (100, 160), 8: (60, 80), 16: (40, None), 32: (40, 60)}.items():
        for name, first in zip("ab", steps, strict=True):
            for step in (20, 40, 60, 80, 100, 160):
                error = 0.1 if first is not None and step >= first else 0.5
                rows.append((size, f"{name}{size}", step / 10, step, error))
    return pd.DataFrame(rows, columns=["batch_size", "trial", "epoch", "step", "error"])


def test_steps_by_size_survive_json():
    steps = steps_by_size(measured_trials(), 0.2)
    assert steps == [[4, [100.0, 160.0]], [8, [60.0, 80.0]], [16, [40.0, math.inf]],
                     [32, [40.0, 60.0]]]  # fmt: skip
    assert json.loads(json.dumps(steps)) == steps


def test_regime_arrays_are_those_of_the_measurements():
    measured = measured_trials()
    steps = steps_by_size(measured, 0.2)
    found = regime_arrays(curves=[steps, [[4, [1.0]]]], num_resamples=40, seed=2)
    direct = regime_table(measured, 0.2, num_resamples=40, seed=2)
    for name in ("value", "low", "high"):
        np.testing.assert_array_equal(found[name][0], direct[name])
        assert found[name].shape == (2, len(QUANTITIES))
        assert np.isnan(found[name][1]).all()  # one batch size is too few
    assert Regimes(*found["fits"][0]) == fit_regimes([4, 8, 16, 32], [100, 60, 40, 40])


def test_speed_ups_by_hand():
    slow = [[4, [80.0, 90.0]], [8, [60.0]], [16, [40.0, 40.0]]]
    fast = [[8, [100.0]], [16, [20.0]], [32, [1.0]]]  # 4 and 32 are not in both
    own, relative = speed_ups([slow, fast])
    assert [ratio.value for ratio in own] == [1.5, 5.0]
    assert relative == [(1.0, 1.0, 1.0), (5 / 1.5, 5 / 1.5, 5 / 1.5)]
    assert [ratio.word for ratio in relative] == ["no difference seen", "larger"]
    assert speed_ups([fast, slow])[1][1].word == "smaller"


def test_speed_ups_agree_with_all_resamples():
    curve = [[4, [80.0, 120.0]], [16, [20.0, 60.0]]]
    (own,), _ = speed_ups([curve], num_resamples=4000)
    # of four equally likely resamples of two trials three have the better one
    draws = sorted(
        min(few) / min(many)
        for few in itertools.product((80, 120), repeat=2)
        for many in itertools.product((20, 60), repeat=2)
    )
    assert own.value == 4.0
    assert (own.low, own.high) == (draws[0], draws[-1])
    single, _ = speed_ups([curve], num_resamples=1)
    assert single[0].low == single[0].high  # it does draw


def test_speed_ups_where_a_resample_does_not_reach_the_goal():
    few_reach = [[4, [100.0, math.inf]], [16, [50.0]]]
    (own,), _ = speed_ups([few_reach])
    assert own == (2.0, 2.0, math.inf)
    many_miss = [[4, [100.0]], [16, [50.0, math.inf]]]
    (own,), _ = speed_ups([many_miss])
    assert own == (2.0, 0.0, 2.0)
    _, (_, relative) = speed_ups([few_reach, few_reach])  # anything is possible
    assert relative == (1.0, 0.0, math.inf)
    assert relative.word == "no difference seen"
    # the first alone fails in 1.8 % of the resamples, both in 1.0 %
    three, one = ([[4, [100.0] * n + [math.inf] * (10 - n)], [16, [50.0]]] for n in (3, 1))
    assert speed_ups([three, one], num_resamples=20_000)[1][1].low == 0
    own, relative = speed_ups([[[4, [math.inf]], [16, [50.0]]], few_reach])
    assert [ratio.word for ratio in (own[0], *relative)] == ["not reached"] * 3
    assert math.isfinite(own[1].value)


def test_speed_ups_need_a_common_batch_size():
    with pytest.raises(ParameterError, match="no batch size in common"):
        speed_ups([[[4, [1.0]]], [[8, [1.0]]]])


@pytest.mark.parametrize(
    ("bounds", "word"),
    [
        ((1.01, 3.0), "larger"),
        ((0.5, 0.99), "smaller"),
        ((0.5, 1.0), "no difference seen"),
        ((math.nan, math.nan), "no difference seen"),
    ],
)
def test_word_of_a_ratio(bounds, word):
    assert Ratio(1.5, *bounds).word == word
    assert Ratio(math.nan, *bounds).word == "not reached"


def test_groups_differ_in_one_thing():
    curves = [
        Curve("digits", network, optimizer)
        for network in ("mlp", "cnn_small")
        for optimizer in ("sgd", "momentum")
    ]
    noisy = Curve("digits", "mlp", "momentum", 0.2)
    assert comparison_groups([*curves, noisy]) == {
        "optimisers: digits / mlp": curves[:2],
        "optimisers: digits / cnn_small": curves[2:],
        "networks: digits, SGD": [curves[0], curves[2]],
        "networks: digits, heavy ball": [curves[1], curves[3]],
        "data: mlp, heavy ball": [curves[1], noisy],
    }
    assert comparison_groups(curves[:1]) == {}


# --- learning rates ------------------------------------------------------------------------------


def power_law(power, sizes=(4, 8, 16, 32)):
    """The best trial's rate follows a power of the batch size; another trial is far off."""
    return {
        size: {"lr": [7.0, 0.01 * size**power], "one_minus_momentum": [1.0, 0.25],
               "steps": [90.0, 50.0]}
        for size in sizes
    }  # fmt: skip


@pytest.mark.parametrize(("power", "word"), [(1.0, "linear"), (0.5, "square root"), (-1, "none")])
def test_best_rates_follow_their_power(power, word):
    trials = power_law(power)
    for table in trials.values():
        table |= {"lr": table["lr"][1:] * 2, "one_minus_momentum": [0.25] * 2}
    tuned, curve = made(trials)
    frame, slope = best_rates(tuned, curve, "effective_lr")
    assert frame["value"].tolist() == pytest.approx([0.04 * b**power for b in (4, 8, 16, 32)])
    assert slope.value == pytest.approx(power)
    # the same whichever trial is drawn, up to the last bit
    assert slope._replace(low=slope.low - 1e-9, high=slope.high + 1e-9).word == word
    assert slope.num_sizes == 4


def test_best_rates_depend_on_the_trials_drawn():
    trials = {
        size: {"lr": [7.0, 0.01 * size, 0.03, 0.02 * size], "steps": [90.0, 50.0, 60.0, 70.0]}
        for size in (4, 8, 16, 32)
    }
    tuned, curve = made(trials)
    frame, slope = best_rates(tuned, curve, "lr")
    assert slope.value == pytest.approx(1.0)
    assert slope.low < 0.8 < 1.0 < slope.high
    # of the resamples of four trials 1/16 have neither of the first two, 1/256 the last only
    for row in frame.itertuples():
        first = [0.01 * row.batch_size, 0.03, 0.02 * row.batch_size]
        assert (row.value, row.low, row.high) == (first[0], min(first), max(first))


def test_best_rates_leave_out_what_was_not_reached():
    trials = power_law(0.5, sizes=(4, 8, 16, 32))
    trials[8]["steps"] = [math.inf, math.inf]
    tuned, curve = made(trials)
    frame, slope = best_rates(tuned, curve, "lr")
    assert np.isnan(frame.loc[1, ["value", "low", "high"]].astype(float)).all()
    assert slope.value == pytest.approx(0.5)
    assert slope.num_sizes == 3
    trials[16]["steps"] = [math.inf, math.inf]
    _, slope = best_rates(*made(trials), "lr")
    assert math.isnan(slope.value)
    assert slope.word == "too few points"


def test_slope_names_the_rules_in_its_interval():
    assert Slope(0.7, 0.4, 1.1, 5).word == "linear or square root"
    assert Slope(0.7, 0.6, 0.9, 5).word == "none"
    assert Slope(0.1, -0.1, 0.3, 5).word == "constant"


# --- budgets -------------------------------------------------------------------------------------


def test_budgets_by_hand():
    curve = Curve("digits", "mlp", "sgd")
    measured = measured_trials()
    measured["epoch"] = measured["step"] * measured["batch_size"] / 1000
    found = budget_frame({curve: measured}, {"step": 60, "epoch": 0.7})
    lowest = found.pivot(index="batch_size", columns="budget", values="error")
    assert lowest["step"].to_dict() == {4: 0.5, 8: 0.1, 16: 0.1, 32: 0.1}
    # 0.7 epochs are 175, 87, 43 and 21 steps
    assert lowest["epoch"].to_dict() == {4: 0.1, 8: 0.1, 16: 0.1, 32: 0.5}
    assert set(found["curve"]) == {curve}


def test_direction_needs_intervals_that_are_apart():
    curve = Curve("digits", "mlp", "sgd")
    columns = ["curve", "batch_size", "budget", "error", "low", "high"]

    def of(small, large):
        rows = [(curve, 256, "step", *large), (curve, 4, "step", *small),
                (curve, 4, "epoch", 0.9, 0.9, 0.9)]  # fmt: skip
        return direction(pd.DataFrame(rows, columns=columns), curve, "step")

    assert of((0.3, 0.3, 0.4), (0.1, 0.1, 0.2)) == "better"
    assert of((0.1, 0.1, 0.2), (0.3, 0.3, 0.4)) == "worse"
    assert of((0.3, 0.3, 0.4), (0.1, 0.1, 0.3)) == "no difference seen"
    assert of((0.3, math.nan, math.nan), (0.1, math.nan, math.nan)) == "no difference seen"
    assert of((0.3, 0.3, 0.4), (math.nan, math.nan, math.nan)) == "not evaluated"


# --- the check -----------------------------------------------------------------------------------


def test_searches_on_the_noisy_quadratic_come_near_the_known_optimum():
    found = noisy_quadratic_check(
        batch_sizes=[4, 16, 64, 256], goal=0.1, num_dimensions=10, num_trials=[4, 32],
        max_rounds=3, lr_range=[0.03, 1.0], lowest=0.05, num_searches=3,
    )  # fmt: skip
    assert found["steps"].shape == found["lr"].shape == found["trials"].shape == (2, 2, 3, 4)
    ratios = found["steps"] / found["exact_steps"][:, None, None]
    assert ratios.min() >= 1 - 1 / 16  # the grid of momenta has gaps, plain SGD's rates have none
    assert ratios[0].min() >= 1
    few, many = (ratios[:, k].mean() for k in (0, 1))
    assert many < few
    assert np.median(ratios[0, 1]) <= 1.1
    # momentum is no worse than plain SGD, which is one of its settings
    assert (found["exact_steps"][1] <= found["exact_steps"][0]).all()
    np.testing.assert_allclose(found["exact_lr"][0], found["exact_effective_lr"][0])
    # and at the largest batch better than plain SGD can be, which a search finds, too
    assert found["steps"][1, 1, :, 3].min() < found["exact_steps"][0, 3]
    momentum = 1 - found["exact_lr"][1] / found["exact_effective_lr"][1]
    steps = noisy_quadratic_steps([4, 16, 64, 256], found["exact_lr"][1], momentum, goal=0.1,
                                  curvature=1 / np.arange(1.0, 11))  # fmt: skip
    np.testing.assert_allclose(steps, found["exact_steps"][1], atol=1)
    assert (found["effective_lr"] >= found["lr"]).all()
    assert (found["effective_lr"][1] > found["lr"][1]).any()
    assert found["trials"].min() >= 4
    assert found["critical"].shape == (2, 2, 3)
    fit = fit_regimes([4, 16, 64, 256], found["exact_steps"][0])
    assert found["exact_critical"][0] == fit.critical_batch_size
    assert found["critical"][0, 1, 2] == (
        fit_regimes([4, 16, 64, 256], found["steps"][0, 1, 2]).critical_batch_size
    )


def test_searches_on_the_noisy_quadratic_may_fail():
    found = noisy_quadratic_check(
        batch_sizes=[4, 8], goal=0.1, num_dimensions=3, num_trials=[2], max_rounds=2,
        lr_range=[1e-6, 1e-5], lowest=0.5, num_searches=2, max_steps=50,
    )  # fmt: skip
    assert np.isinf(found["steps"]).all()
    assert np.isnan(found["lr"]).all()
    assert np.isnan(found["effective_lr"]).all()
