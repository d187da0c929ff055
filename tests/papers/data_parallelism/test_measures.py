"""Numbers over searches by hand; searches on the noisy quadratic near what is known."""

import math

import numpy as np
import pandas as pd
import pytest

from hardtrain.papers.data_parallelism import noisy_quadratic
from hardtrain.papers.data_parallelism.measures import (
    best_trials,
    change,
    comparison_groups,
    either_way,
    gain_per_doubling,
    halvings,
    interval,
    lowest_errors,
    noisy_quadratic_check,
    off_nearest_rule,
    over_fits,
    over_searches,
    powers,
    regimes,
    rules_within,
    spread,
)
from hardtrain.papers.data_parallelism.regimes import fit_regimes
from hardtrain.papers.data_parallelism.tuning import Curve
from hardtrain.statistics import Interval, PairedDifference

NAN, INF = math.nan, math.inf


# --- the best of each search ---------------------------------------------------------------------


def test_the_best_of_a_search_is_the_first_of_the_fewest_steps(trials_of):
    trials = trials_of({(8, 0): [NAN, 90, 50, 50], (8, 1): [INF, INF], (16, 0): [NAN, 70]})
    best = best_trials(trials.sample(frac=1, random_state=0))
    assert best["key"].tolist() == ["8-0-2", "8-1-0", "16-0-1"]
    assert best["steps"].tolist() == [50, INF, 70]


def test_only_trials_of_complete_last_rounds_count(trials_of):
    trials = trials_of({(8, 0): [10, 90], (8, 1): [50]})
    trials.loc[0, "counted"] = False
    assert best_trials(trials)["steps"].tolist() == [90, 50]
    trials.loc[2, "counted"] = False
    assert best_trials(trials)["seed"].tolist() == [0]


def test_over_searches_are_the_median_and_the_ends(trials_of):
    steps = {(8, seed): [value] for seed, value in enumerate((30, 90, 50))}
    trials = trials_of(steps | {(16, 0): [20], (16, 1): [INF]}, lr={8: 0.1, 16: 0.4})
    best = best_trials(trials)
    assert over_searches(best).values.tolist() == [[8, 50, 30, 90], [16, 20, 20, INF]]
    # a search that did not reach the goal says nothing of learning rates
    assert over_searches(best, "lr").values.tolist() == [[8, 0.1, 0.1, 0.1], [16, 0.4, 0.4, 0.4]]
    assert over_searches(best[:0]).empty


def test_the_next_search_lies_between_the_ends_as_often_as_the_captions_say():
    found = np.random.default_rng(0).random((4000, 6))
    _, low, high = spread(found[:, :5])
    inside = (low <= found[:, 5]) & (found[:, 5] <= high)
    assert inside.mean() == pytest.approx((5 - 1) / (5 + 1), abs=0.02)


# --- speed-ups -----------------------------------------------------------------------------------


def test_halvings_are_those_of_each_search(trials_of):
    steps = {(8, 0): [80], (32, 0): [20], (8, 1): [80], (32, 1): [80], (8, 2): [INF], (32, 2): [9],
             (8, 3): [80], (32, 3): [INF]}  # fmt: skip
    best = best_trials(trials_of(steps))
    found = halvings(best, 8, 32)
    assert found.dropna().to_dict() == {0: 2.0, 1: 0.0}
    assert found.index.tolist() == [0, 1, 2, 3]
    assert gain_per_doubling(best, 8, 32).dropna().to_dict() == {0: 1.0, 1: 0.0}
    assert halvings(best, 8, 64).isna().all()


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


@pytest.mark.parametrize(("power", "word"), [(1.0, "linear"), (0.5, "square root"), (-1, "none")])
def test_powers_of_the_batch_size(trials_of, power, word):
    sizes = (4, 8, 16, 32)
    trials = trials_of({(size, seed): [50] for size in sizes for seed in range(3)},
                       lr={size: 0.01 * size**power for size in sizes})  # fmt: skip
    found = powers(best_trials(trials), "effective_lr")
    assert found.tolist() == pytest.approx([power] * 3)
    mean = interval(found)
    assert rules_within(Interval(mean.mean, mean.low - 1e-9, mean.high + 1e-9, 3)) == word


def test_powers_leave_out_what_was_not_reached(trials_of):
    steps = {(size, seed): [50] for size in (4, 8, 16, 32) for seed in (0, 1)}
    trials = trials_of(steps | {(8, 0): [INF], (8, 1): [INF], (16, 1): [INF]},
                       lr={4: 0.2, 8: 9.0, 16: 0.4, 32: 0.4 * 2**0.5})  # fmt: skip
    assert powers(best_trials(trials), "lr").to_dict() == pytest.approx({0: 0.5})  # 1: two sizes
    assert rules_within(interval(pd.Series(dtype=float))) == "too few searches"
    assert rules_within(interval(pd.Series([0.5]))) == "too few searches"


def test_rules_are_those_in_the_interval():
    assert rules_within(Interval(0.7, 0.4, 1.1, 5)) == "linear or square root"
    assert rules_within(Interval(0.7, 0.6, 0.9, 5)) == "none"
    assert rules_within(Interval(0.1, -0.1, 0.3, 5)) == "constant"


def test_distance_to_the_rule_that_is_not_ruled_out():
    near_root = off_nearest_rule(pd.Series([0.45, 0.5, 0.52, 0.48]))
    assert near_root.mean == pytest.approx(0.0125)
    assert near_root.p > 0.2
    neither = off_nearest_rule(pd.Series([0.1, 0.12, 0.11]))
    assert neither.mean == pytest.approx(0.39)
    assert 0 < neither.low < neither.high
    assert off_nearest_rule(pd.Series(dtype=float)) is None


def test_a_difference_may_be_turned():
    turned = either_way(PairedDifference(-0.4, -0.7, -0.1, 0.01, 5, 0.2))
    assert turned == (0.4, 0.1, 0.7, 0.01, 5, 0.2)
    assert either_way(turned) == turned
    assert either_way(None) is None


# --- regimes and budgets -------------------------------------------------------------------------


def test_regimes_are_of_the_medians_and_of_each_search(trials_of):
    sizes = (1, 2, 4, 8, 16, 32)
    steps = {(size, seed): [factor * (100 / size + 10)] for size in sizes
             for seed, factor in enumerate((1, 3, 2))}  # fmt: skip
    middle, *searches = regimes(best_trials(trials_of(steps)))
    assert middle == fit_regimes(sizes, [2 * (100 / size + 10) for size in sizes])
    assert [fit.min_steps for fit in searches] == pytest.approx([10, 30, 20], rel=0.01)
    assert regimes(best_trials(trials_of(steps))[:0]) == []


def test_lowest_errors_within_budgets(tuned):
    budgets = {"step": 80, "epoch": 0.4}
    found = lowest_errors(tuned.trials, tuned.history, budgets).set_index(["batch_size", "seed"])
    assert found["step"].to_dict() == {
        (4, 0): 0.15, (4, 1): 0.15, (16, 0): 0.15, (16, 1): 0.15, (64, 0): 0.6, (64, 1): 0.6,
    }  # fmt: skip
    # 0.4 epochs: 102 steps of 4, 25 of 16, 6 of 64
    assert found["epoch"].loc[4].tolist() == [0.15, 0.15]
    assert found["epoch"].loc[[16, 64]].isna().all()
    at_once = lowest_errors(tuned.trials, tuned.history, {"step": 40})
    assert change(at_once, "step", 4, 16).tolist() == pytest.approx([-45, 0])


def test_trials_that_diverged_have_no_lowest_error(tuned):
    history = tuned.history.assign(validation_error=0.3)
    history.loc[history["key"] == "4-1-0", "validation_error"] = 0.01  # before it diverged
    assert lowest_errors(tuned.trials, history, {"step": 999})["step"].min() == 0.3


# --- the check -----------------------------------------------------------------------------------


def test_spread_is_the_lower_median_with_the_ends():
    values = np.array([[4.0, 1.0, 3.0, math.inf], [math.nan, 1.0, math.nan, 2.0]])
    assert np.array(spread(values)).tolist() == [[3.0, 2.0], [1.0, 1.0], [math.inf, math.inf]]


def test_the_fit_of_the_medians_is_no_search():
    sizes = [2, 8, 32, 128]
    fits = [fit_regimes(sizes, [steps] * 4) for steps in (90.0, 10.0, 20.0, 30.0)]
    fits.append(fit_regimes(sizes, [math.inf] * 4))  # nor is one with too few points
    assert over_fits(fits, "min_steps") == pytest.approx((20, 10, 30))
    assert over_fits(fits[:1], "min_steps") is None


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
