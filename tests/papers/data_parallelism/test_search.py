"""The search: even points, spaces that move as far as they may, known optima, honest failure."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest

from hardtrain import ParameterError
from hardtrain.papers.data_parallelism import noisy_quadratic
from hardtrain.papers.data_parallelism.search import (
    MAX_DRAWS,
    quasi_random,
    recentred,
    search,
    search_together,
)

SPACE = {"lr": (1e-3, 1.0), "one_minus_momentum": (0.01, 1.0)}


def logs(points, name):
    low, high = SPACE[name]
    return np.log([point[name] / low for point in points]) / math.log(high / low)


# --- quasi_random --------------------------------------------------------------------------------


def test_points_are_the_same_everywhere():
    # keys of committed runs hang on these numbers
    assert quasi_random(SPACE, 3, seed=0) == [
        {"lr": 0.1323, "one_minus_momentum": 0.08673},
        {"lr": 0.004185, "one_minus_momentum": 0.4026},
        {"lr": 0.7442, "one_minus_momentum": 0.01868},
    ]


def test_more_points_begin_with_the_same_ones():
    many = quasi_random(SPACE, 100, seed=3)
    assert quasi_random(SPACE, 37, seed=3) == many[:37]
    assert quasi_random(SPACE, 63, seed=3, skip=37) == many[37:]
    assert len({tuple(point.values()) for point in many}) == 100


def test_seeds_give_other_points():
    assert quasi_random(SPACE, 5, seed=1) != quasi_random(SPACE, 5, seed=2)


@pytest.mark.parametrize("name", SPACE)
def test_points_are_uniform_in_logs_and_more_even_than_random_ones(name):
    for seed in range(5):
        shares = logs(quasi_random(SPACE, 100, seed=seed), name)
        assert shares.min() >= 0
        assert shares.max() <= 1
        assert kstest(shares, "uniform").statistic < 0.06  # random: 0.08 or more in half the cases


def test_pairs_of_coordinates_fill_the_square():
    points = quasi_random(SPACE, 144, seed=0)
    cells = zip(*(np.minimum(3 * logs(points, name), 2).astype(int) for name in SPACE), strict=True)
    counts = np.bincount([3 * i + j for i, j in cells], minlength=9)
    assert counts.min() >= 12  # 16 each; coordinates that are equal fill three cells only
    assert counts.max() <= 20


def test_rounding_stays_within_the_bounds():
    space = {"lr": (0.123456, 0.123457)}
    assert all(0.123456 <= p["lr"] <= 0.123457 for p in quasi_random(space, 9, seed=0))
    assert all(p["lr"] == float(f"{p['lr']:.4g}") for p in quasi_random(SPACE, 50, seed=0))


BAD_SPACES = [
    ({}, "at least one name"),
    ([(0.1, 1.0)], "at least one name"),
    ({"lr": (1.0, 0.1)}, r"high of space\['lr'\] = 0.1 is not more than 1.0"),
    ({"lr": (0.1, 0.1)}, "not more than 0.1"),
    ({"lr": (0.0, 1.0)}, r"low of space\['lr'\] = 0.0 is not more than 0"),
    ({"lr": (0.1, math.inf)}, "not finite"),
    ({"lr": (math.nan, 1.0)}, "not finite"),
    ({"lr": (0.1, 0.5, 1.0)}, r"must be \(low, high\)"),
    ({"lr": 0.1}, r"must be \(low, high\)"),
    ({"lr": ("1e-3", 1.0)}, "is text"),
]


@pytest.mark.parametrize(("space", "message"), BAD_SPACES)
def test_bad_spaces_are_refused(space, message):
    for call in (
        lambda: quasi_random(space, 4, seed=0),
        lambda: recentred(space, {"lr": 0.5}),
        lambda: search(space, 4, lambda points: [1.0] * 4, seed=0),
    ):
        with pytest.raises(ParameterError, match=message):
            call()


@pytest.mark.parametrize(
    "arguments", [{"num_trials": 0}, {"num_trials": 2.0}, {"seed": -1}, {"seed": None}]
)
def test_quasi_random_rejects(arguments):
    with pytest.raises(ParameterError, match=next(iter(arguments))):
        quasi_random(SPACE, **({"num_trials": 4, "seed": 0} | arguments))


# --- recentred -----------------------------------------------------------------------------------


def test_a_best_point_inside_leaves_the_space():
    assert recentred(SPACE, {"lr": 0.03, "one_minus_momentum": 0.1}) == SPACE


def test_only_the_dimension_at_its_edge_moves_and_keeps_its_width():
    moved = recentred(SPACE, {"lr": 0.8, "one_minus_momentum": 0.1})
    assert moved["one_minus_momentum"] == SPACE["one_minus_momentum"]
    low, high = moved["lr"]
    assert high / low == pytest.approx(1000)
    assert math.sqrt(low * high) == pytest.approx(0.8)
    low, high = recentred(SPACE, {"lr": 0.0011, "one_minus_momentum": 0.1})["lr"]
    assert (low, high) == pytest.approx((0.0011 / 1000**0.5, 0.0011 * 1000**0.5))


def test_a_tenth_of_the_width_in_logs_is_an_edge():
    # from 0.001 to 1, 0.1 and 0.9 of the way are at 0.002 and 0.5
    inner = {"lr": 0.49, "one_minus_momentum": 0.1}
    assert recentred(SPACE, inner) == recentred(SPACE, inner | {"lr": 0.00205}) == SPACE
    assert recentred(SPACE, inner | {"lr": 0.51}) != SPACE
    assert recentred(SPACE, inner | {"lr": 0.00195}) != SPACE
    outside = inner | {"lr": 5.0}
    assert math.prod(recentred(SPACE, outside)["lr"]) == pytest.approx(25)


def test_upper_bounds_stop_the_move():
    space = {"one_minus_momentum": (0.005, 0.5)}
    low, high = recentred(
        space, {"one_minus_momentum": 0.45}, upper={"one_minus_momentum": 1.0}
    )["one_minus_momentum"]  # fmt: skip
    assert (low, high) == (pytest.approx(0.01), 1.0)  # twice, where the centre wants nine times
    at_limit = {"one_minus_momentum": (0.01, 1.0)}
    upper = {"one_minus_momentum": 1.0}
    assert recentred(at_limit, {"one_minus_momentum": 1.0}, upper=upper) == at_limit
    # the lower edge still moves
    assert recentred(at_limit, {"one_minus_momentum": 0.011}, upper=upper) != at_limit


def test_upper_bounds_are_never_crossed_by_rounding():
    for limit, gap in np.random.default_rng(0).uniform([0.1, 1.01], [10, 5], (200, 2)).tolist():
        space = {"x": (limit / 1234, limit / gap)}
        moved = recentred(space, {"x": limit / gap}, upper={"x": limit})
        assert moved["x"][1] == limit
        assert recentred(moved, {"x": limit}, upper={"x": limit}) == moved


@pytest.mark.parametrize(
    ("upper", "message"),
    [({"lrs": 1.0}, "did you mean 'lr'"), ({"lr": 0.5}, r"upper\['lr'\] = 0.5 is not at least 1")],
)
def test_recentred_and_search_reject_bad_upper_bounds(upper, message):
    with pytest.raises(ParameterError, match=message):
        recentred(SPACE, {"lr": 0.1, "one_minus_momentum": 0.1}, upper=upper)
    with pytest.raises(ParameterError, match=message):
        search(SPACE, 4, lambda points: pytest.fail("evaluated"), seed=0, upper=upper)


def test_recentred_takes_numbers_of_numpy():
    best = {"lr": np.float64(0.03), "one_minus_momentum": np.float32(0.1)}
    assert recentred(SPACE, best) == SPACE


# --- search --------------------------------------------------------------------------------------


def bowl(**centre):
    """Steps that grow with the distance from the centre in decades; a record of the rounds."""
    rounds = []

    def steps(points):
        rounds.append(points)
        return [
            100 + 10 * sum(math.log10(point[name] / at) ** 2 for name, at in centre.items())
            for point in points
        ]

    return steps, rounds


def test_search_inside_takes_one_round():
    steps, rounds = bowl(lr=0.03, one_minus_momentum=0.1)
    found = search(SPACE, 32, steps, seed=0)
    assert rounds == [quasi_random(SPACE, 32, seed=0)]
    assert found.inside
    assert found.space == SPACE
    assert len(found.trials) == 32
    assert found.steps == found.trials["steps"].min() == steps([found.best])[0]
    assert found.best == min(rounds[0], key=lambda point: steps([point])[0])
    assert found.steps < 101


def test_search_follows_an_optimum_outside():
    steps, rounds = bowl(lr=100.0, one_minus_momentum=0.1)
    found = search(SPACE, 32, steps, seed=0, max_rounds=6)
    assert found.inside
    assert 30 < found.best["lr"] < 300
    assert found.trials["round"].max() == len(rounds) - 1 >= 1
    assert found.space["lr"][0] < 100 < found.space["lr"][1]
    # the sequence goes on: no round repeats the shares of the one before
    spaces = [SPACE, recentred(SPACE, min(rounds[0], key=lambda p: steps([p])[0]))]
    assert rounds[1] == quasi_random(spaces[1], 32, seed=0, skip=32)


def test_search_says_when_the_rounds_did_not_suffice():
    steps, _ = bowl(lr=1e6, one_minus_momentum=0.1)
    found = search(SPACE, 16, steps, seed=0, max_rounds=2)
    assert not found.inside
    assert len(found.trials) == 32
    last = found.trials.iloc[16:]["lr"]  # the space that was searched, not the next one
    assert found.space["lr"][0] <= last.min() <= last.max() <= found.space["lr"][1]


def test_search_does_not_push_against_an_upper_bound():
    steps, rounds = bowl(lr=0.03, one_minus_momentum=50.0)
    found = search(SPACE, 32, steps, seed=0, upper={"one_minus_momentum": 1.0})
    assert found.inside
    assert len(rounds) == 1
    assert max(found.trials["one_minus_momentum"]) <= 1


def test_search_without_arrival_says_so_and_stops():
    calls = []
    found = search(SPACE, 8, lambda p: calls.append(p) or [math.inf] * 8, seed=0)
    assert len(calls) == 1
    assert (found.best, found.steps, found.inside, found.complete) == (None, math.inf, False, True)
    assert len(found.trials) == 8
    assert np.isinf(found.trials["steps"]).all()


def test_of_equal_trials_the_first_counts():
    found = search(SPACE, 32, lambda points: [100.0] * 32, seed=0)
    assert found.best == quasi_random(SPACE, 1, seed=0)[0]


def test_only_the_last_round_counts():
    calls = []

    def steps(points):  # the first round finds less at the edge than the second does anywhere
        calls.append(points)
        if len(calls) == 1:
            return [50.0 if point["lr"] > 0.6 else 200.0 for point in points]
        return [100 + point["lr"] for point in points]

    found = search(SPACE, 32, steps, seed=0, max_rounds=2)
    assert [len(points) for points in calls] == [32, 32]
    assert found.steps > 100
    assert found.best in calls[1]
    assert found.trials["round"].value_counts().to_dict() == {0: 32, 1: 32}


def test_a_second_round_that_reaches_nothing_is_lost():
    rounds = []

    def steps(points):
        rounds.append(points)
        return [50.0 if point["lr"] > 0.6 and len(rounds) == 1 else math.inf for point in points]

    found = search(SPACE, 32, steps, seed=0, max_rounds=4)
    assert len(rounds) == 2
    assert (found.best, found.steps, found.inside, found.complete) == (None, math.inf, False, True)


# --- equal numbers of completed trials -----------------------------------------------------------


def above(limit):
    """Rates above a limit diverge; the others take longer the lower they are."""
    return lambda points: [math.nan if p["lr"] > limit else 10 / p["lr"] for p in points]


@pytest.mark.parametrize("limit", [2.0, 0.5, 0.1])
def test_trials_that_diverge_are_replaced_until_as_many_are_complete(limit):
    found = search({"lr": (0.01, 1.0)}, 8, above(limit), seed=0)
    steps = found.trials["steps"]
    assert steps.notna().sum() == 8
    assert found.complete
    num = len(steps)
    assert found.trials["lr"].tolist() == [
        point["lr"] for point in quasi_random({"lr": (0.01, 1.0)}, num, seed=0)
    ]
    assert (num > 8) == (limit < 1)
    assert found.best["lr"] == found.trials["lr"][steps.notna()].max()


def test_a_search_gives_up_when_nearly_all_diverge():
    found = search({"lr": (0.01, 1.0)}, 8, above(0.0101), seed=0)
    assert len(found.trials) == MAX_DRAWS * 8
    assert not found.complete


def test_a_search_with_trials_that_were_not_run_ends_without_a_best():
    calls = []

    def steps(points):
        calls.append(points)
        return [100.0, None, math.nan, 50.0]

    found = search(SPACE, 4, steps, seed=0, max_rounds=3)
    assert len(calls) == 1
    assert (found.best, found.steps, found.inside, found.complete) == (None, math.inf, False, False)
    assert found.trials["steps"].isna().tolist() == [False, True, True, False]


def test_what_evaluate_does_to_its_points_does_not_matter():
    def steps(points):
        values = [1 + point.pop("lr") for point in points]
        points.clear()
        return values

    assert "lr" in search(SPACE, 4, steps, seed=0, max_rounds=1).best


def test_bounds_may_be_integers_and_lists():
    found = search({"lr": [0.01, 1]}, 8, lambda points: [100.0] * 8, seed=0)
    assert found.inside
    assert found.space == {"lr": (0.01, 1.0)}
    assert all(type(rate) is float for rate in found.trials["lr"].tolist())


@pytest.mark.parametrize("steps", [[1.0] * 3, [1.0] * 5, [1.0, 2.0, 0.0, 3.0], [1.0, 2.0, -1.0, 3]])
def test_search_rejects_what_evaluate_gives(steps):
    with pytest.raises(ParameterError, match="evaluate must give 4 numbers above 0 or inf"):
        search(SPACE, 4, lambda points: steps, seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_trials": 0}, "num_trials"),
        ({"max_rounds": 0}, "max_rounds"),
        ({"space": {"steps": (0.1, 1.0)}}, r"\['steps'\]"),
        ({"space": {"round": (0.1, 1.0)}}, r"\['round'\]"),
    ],
)
def test_search_rejects_bad_arguments_before_anything_is_evaluated(arguments, message):
    arguments = {"space": SPACE, "num_trials": 4} | arguments
    with pytest.raises(ParameterError, match=message):
        search(evaluate=lambda points: pytest.fail("evaluated"), seed=0, **arguments)


# --- searches side by side -----------------------------------------------------------------------


def valley(best):
    return lambda point: 100 + 50 * abs(math.log10(point["lr"] / best))


def test_searches_together_find_what_each_finds_alone():
    places = {"inside": 0.1, "below": 1e-4, "far above": 300.0}
    space = {"lr": (0.01, 1.0)}
    calls = []

    def evaluate(requests):
        calls.append(requests)
        return [valley(places[name])(point) for name, point in requests]

    seeds = dict(zip(places, (3, 4, 5), strict=True))
    together = search_together(
        dict.fromkeys(places, space), 6, evaluate, seeds=seeds, max_rounds=4,
        upper={"final_fraction": 1.0},
    )  # fmt: skip
    for name, best in places.items():
        alone = search(
            space, 6, lambda points, best=best: list(map(valley(best), points)), seed=seeds[name],
            max_rounds=4,
        )  # fmt: skip
        pd.testing.assert_frame_equal(together[name].trials, alone.trials)
        assert together[name][1:] == alone[1:]
    assert len(calls) == max(result.trials["round"].max() for result in together.values()) + 1 > 2
    assert len(calls[0]) == 3 * 6  # the first round of all at once


def test_limits_hold_where_a_space_has_their_names():
    def evaluate(requests):
        return [100 / point.get("final_fraction", 1.0) for _, point in requests]

    spaces = {"with": {"lr": (0.1, 1.0), "final_fraction": (0.5, 1.0)}, "without": {"lr": (0.1, 1)}}
    seeds, upper = dict.fromkeys(spaces, 0), {"final_fraction": 1.0}
    found = search_together(spaces, 9, evaluate, seeds=seeds, upper=upper)
    assert found["with"].trials["final_fraction"].max() <= 1
    assert found["with"].space["final_fraction"] == (0.5, 1.0)
    assert set(found["without"].space) == {"lr"}


# --- on the noisy quadratic model, where the optimum is known ------------------------------------

MODEL = {"goal": 0.005, "curvature": 1 / np.arange(1.0, 31)}
MOMENTA = 1 - np.geomspace(0.02, 1, 60)


def quadratic(batch_size):
    return lambda points: noisy_quadratic.steps(
        batch_size,
        [point["lr"] for point in points],
        [1 - point["one_minus_momentum"] for point in points],
        max_steps=300,
        **MODEL,
    )


def test_search_comes_close_to_the_exact_optimum():
    exact = noisy_quadratic.optimum(512, momentum=MOMENTA, **MODEL).steps  # 29
    space = {"lr": (0.01, 10.0), "one_minus_momentum": (0.02, 1.0)}
    upper = {"one_minus_momentum": 1.0}
    found = [search(space, 64, quadratic(512), seed=seed, upper=upper).steps for seed in range(4)]
    assert min(found) >= exact
    assert max(found) <= 1.25 * exact
    assert np.median(found) <= 1.12 * exact


def test_search_of_the_rate_alone_comes_close_to_gradient_descent():
    def steps(points):
        rates = [point["lr"] for point in points]
        return noisy_quadratic.steps(math.inf, rates, 0.0, max_steps=100, **MODEL)

    exact = noisy_quadratic.optimum(math.inf, **MODEL).steps  # 26
    for seed in range(4):
        assert exact <= search({"lr": (0.1, 10.0)}, 32, steps, seed=seed).steps <= 1.1 * exact


def test_search_reaches_the_optimum_from_a_space_far_below_it():
    space = {"lr": (3e-4, 3e-2), "one_minus_momentum": (0.1, 1.0)}
    narrow = search(space, 48, quadratic(512), seed=0, max_rounds=1)
    upper = {"one_minus_momentum": 1.0}
    found = search(space, 48, quadratic(512), seed=0, max_rounds=6, upper=upper)
    assert not narrow.inside
    assert found.inside
    assert found.steps < narrow.steps / 2
    exact = noisy_quadratic.optimum(512, momentum=MOMENTA, **MODEL).steps
    assert exact <= found.steps <= 1.25 * exact
