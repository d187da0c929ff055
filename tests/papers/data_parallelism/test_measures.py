"""Ratios, slopes and verdicts by hand; searches on the noisy quadratic near what is known."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from hardtrain.papers.data_parallelism import noisy_quadratic
from hardtrain.papers.data_parallelism.batch_scaling import Estimate
from hardtrain.papers.data_parallelism.measures import (
    best_rates,
    comparison_groups,
    noisy_quadratic_check,
    ratio_word,
    rules_within,
    size_effect,
    speed_ups,
    spread,
    trial_table,
)
from hardtrain.papers.data_parallelism.regimes import fit_regimes
from hardtrain.papers.data_parallelism.search import Search
from hardtrain.papers.data_parallelism.tuning import Curve, Protocol, Tuned


def tuned_from(trials, statuses=None):
    """`Tuned` of one curve from trials by batch size: points and steps; runs without training."""
    curve = Curve("digits", "mlp", "momentum")
    protocol = Protocol({"digits": 1024}, 1, 1, 1, seeds=[0], base={})
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
        rows += [
            {"key": run.key, "status": "finished", "momentum": run.momentum}
            for run in runs[curve, size]
        ]
    results = pd.DataFrame(rows)
    results["status"] = statuses or results["status"]
    return Tuned(searches, runs, results, pd.DataFrame()), curve


def test_trial_table_and_its_ranking():
    trials = {
        8: {
            "lr": [0.1, 0.2, 0.3, 0.4],
            "one_minus_momentum": [0.5, 0.1, 1.0, 0.2],
            "steps": [30.0, 20.0, math.inf, 20.0],
        }
    }
    tuned, curve = tuned_from(trials, ["finished", "diverged", "diverged", "finished"])
    tuned.searches[curve, 8] = tuned.searches[curve, 8]._replace(
        best={"lr": 0.4, "one_minus_momentum": 0.2}  # of two with equal steps
    )
    table = trial_table(tuned, (curve, 8))
    # the search's best first, then by steps and order
    assert table["lr"].tolist() == [0.4, 0.2, 0.1, 0.3]
    assert table["effective_lr"].tolist() == pytest.approx([2.0, 2.0, 0.2, 0.3])
    assert table["momentum"].tolist() == [0.8, 0.9, 0.5, 0.0]
    assert table["outcome"].tolist() == ["reached", "reached", "reached", "diverged"]


def test_trials_of_a_lost_search_keep_their_order():
    trials = {8: {"lr": [0.3, 0.1, 0.2], "steps": [math.inf] * 3}}
    tuned, curve = tuned_from(trials, ["finished", "diverged", "finished"])
    table = trial_table(tuned, (curve, 8))
    assert table["lr"].tolist() == [0.3, 0.1, 0.2]
    assert table["outcome"].tolist() == ["not reached", "diverged", "not reached"]


# --- comparisons --------------------------------------------------------------------------------


def test_speed_ups_by_hand():
    slow = [[4, [80.0, 90.0]], [8, [60.0]], [16, [40.0, 40.0]]]
    fast = [[8, [100.0]], [16, [20.0]], [32, [1.0]]]  # 4 and 32 are not in both
    own, relative = speed_ups([slow, fast])
    assert [ratio.value for ratio in own] == [1.5, 5.0]
    assert relative == [(5 / 1.5, 5 / 1.5, 5 / 1.5)]
    assert ratio_word(relative[0]) == "larger"
    assert ratio_word(speed_ups([fast, slow])[1][0]) == "smaller"


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
    _, (relative,) = speed_ups([few_reach, few_reach])  # anything is possible
    assert relative == (1.0, 0.0, math.inf)
    assert ratio_word(relative) == "no difference seen"
    # the first alone fails in 1.8 % of the resamples, both in 1.0 %
    three, one = ([[4, [100.0] * n + [math.inf] * (10 - n)], [16, [50.0]]] for n in (3, 1))
    assert speed_ups([three, one], num_resamples=20_000)[1][0].low == 0
    own, relative = speed_ups([[[4, [math.inf]], [16, [50.0]]], few_reach])
    assert [ratio_word(ratio) for ratio in (own[0], *relative)] == ["not reached"] * 2
    assert math.isfinite(own[1].value)


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
    assert ratio_word(Estimate(1.5, *bounds)) == word
    assert ratio_word(Estimate(math.nan, *bounds)) == "not reached"


def test_groups_differ_in_one_thing():
    curves = [
        Curve("digits", network, optimizer)
        for network in ("mlp", "cnn_small")
        for optimizer in ("sgd", "momentum")
    ]
    noisy = Curve("digits", "mlp", "momentum", 0.2)
    assert comparison_groups([*curves, noisy]) == {
        "optimiser": {"digits, mlp": curves[:2], "digits, cnn_small": curves[2:]},
        "network": {
            "digits, SGD": [curves[0], curves[2]],
            "digits, heavy ball": [curves[1], curves[3]],
        },
        "data": {"mlp, heavy ball": [curves[1], noisy]},
    }
    assert not any(comparison_groups(curves[:1]).values())


# --- learning rates -----------------------------------------------------------------------------


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
    tuned, curve = tuned_from(trials)
    frame, slope = best_rates(tuned, curve, "effective_lr")
    assert frame["value"].tolist() == pytest.approx([0.04 * b**power for b in (4, 8, 16, 32)])
    assert slope.value == pytest.approx(power)
    # the same whichever trial is drawn, up to the last bit
    assert rules_within(Estimate(power, slope.low - 1e-9, slope.high + 1e-9)) == word


def test_best_rates_depend_on_the_trials_drawn():
    trials = {
        size: {"lr": [7.0, 0.01 * size, 0.03, 0.02 * size], "steps": [90.0, 50.0, 60.0, 70.0]}
        for size in (4, 8, 16, 32)
    }
    tuned, curve = tuned_from(trials)
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
    tuned, curve = tuned_from(trials)
    frame, slope = best_rates(tuned, curve, "lr")
    assert np.isnan(frame.loc[1, ["value", "low", "high"]].astype(float)).all()
    assert slope.value == pytest.approx(0.5)
    trials[16]["steps"] = [math.inf, math.inf]
    _, slope = best_rates(*tuned_from(trials), "lr")
    assert math.isnan(slope.value)
    assert rules_within(slope) == "too few points"


def test_rules_are_those_in_the_interval():
    assert rules_within(Estimate(0.7, 0.4, 1.1)) == "linear or square root"
    assert rules_within(Estimate(0.7, 0.6, 0.9)) == "none"
    assert rules_within(Estimate(0.1, -0.1, 0.3)) == "constant"


# --- budgets ------------------------------------------------------------------------------------


def test_a_size_effect_needs_intervals_that_are_apart():
    def of(small, large):
        rows = [(256, "step", *large), (4, "step", *small), (4, "epoch", 0.9, 0.9, 0.9)]
        columns = ["batch_size", "budget", "value", "low", "high"]
        return size_effect(pd.DataFrame(rows, columns=columns), "step")

    assert of((0.3, 0.3, 0.4), (0.1, 0.1, 0.2)) == "better"
    assert of((0.1, 0.1, 0.2), (0.3, 0.3, 0.4)) == "worse"
    assert of((0.3, 0.3, 0.4), (0.1, 0.1, 0.3)) == "no difference seen"
    assert of((0.3, math.nan, math.nan), (0.1, math.nan, math.nan)) == "no difference seen"
    # one that was not evaluated within the budget is not worse
    assert of((0.3, 0.3, 0.4), (math.inf, math.nan, math.nan)) == "no difference seen"


# --- the check -----------------------------------------------------------------------------------


def test_spread_is_the_lower_median_with_the_ends():
    values = np.array([[4.0, 1.0, 3.0, math.inf], [math.nan, 1.0, math.nan, 2.0]])
    assert np.array(spread(values)).tolist() == [[3.0, 2.0], [1.0, 1.0], [math.inf, math.inf]]


def test_searches_on_the_noisy_quadratic_come_near_the_known_optimum():
    sizes = [4, 16, 64, 256]
    arrays = noisy_quadratic_check(
        batch_sizes=sizes, goal=0.1, num_dimensions=10, num_trials=[4, 32], max_rounds=3,
        lr_range=[0.03, 1.0], lowest=0.05, num_searches=3,
    )  # fmt: skip
    assert arrays["steps"].shape == arrays["effective_lr"].shape == (2, 2, 3, 4)
    ratios = arrays["steps"] / arrays["exact_steps"][:, None, None]
    assert ratios.min() >= 1 - 1 / 16  # the grid of momenta has gaps, plain SGD's rates have none
    assert ratios[0].min() >= 1
    few, many = (ratios[:, k].mean() for k in (0, 1))
    assert many < few
    assert np.median(ratios[0, 1]) <= 1.1
    # momentum is no worse than plain SGD, which is one of its settings
    assert (arrays["exact_steps"][1] <= arrays["exact_steps"][0]).all()
    # and at the largest batch better than plain SGD can be, which a search finds, too
    assert arrays["steps"][1, 1, :, 3].min() < arrays["exact_steps"][0, 3]
    # the rates are effective ones
    model = {"goal": 0.1, "curvature": 1 / np.arange(1.0, 11)}
    for i, size in enumerate(sizes):
        plain = noisy_quadratic.optimum(size, **model)
        assert arrays["exact_effective_lr"][0, i] == plain.lr
        heavy = noisy_quadratic.optimum(size, momentum=1 - np.geomspace(0.05, 1, 16), **model)
        assert arrays["exact_steps"][1, i] == heavy.steps
        assert arrays["exact_effective_lr"][1, i] == heavy.lr / (1 - heavy.momentum)
    near = np.median(arrays["effective_lr"][0, 1], axis=0) / arrays["exact_effective_lr"][0]
    assert ((near > 0.5) & (near < 2)).all()
    near = np.median(arrays["effective_lr"][1, 1], axis=0) / arrays["exact_effective_lr"][1]
    assert ((near > 0.3) & (near < 3)).all()
    assert arrays["critical"].shape == (2, 2, 3)
    fit = fit_regimes(sizes, arrays["exact_steps"][0])
    assert arrays["exact_critical"][0] == fit.critical_batch_size
    fit = fit_regimes(sizes, arrays["steps"][0, 1, 2])
    assert arrays["critical"][0, 1, 2] == fit.critical_batch_size


def test_searches_on_the_noisy_quadratic_may_fail():
    arrays = noisy_quadratic_check(
        batch_sizes=[4, 8], goal=0.1, num_dimensions=3, num_trials=[2], max_rounds=2,
        lr_range=[1e-6, 1e-5], lowest=0.5, num_searches=2,
    )  # fmt: skip
    assert np.isinf(arrays["steps"]).all()
    assert np.isnan(arrays["effective_lr"]).all()
