"""The fitted curve against known parameters, its regimes against their definitions and a model."""

import math

import numpy as np
import pytest

from hardtrain import ParameterError
from hardtrain.papers.data_parallelism.noisy_quadratic import optimum
from hardtrain.papers.data_parallelism.regimes import SHARPNESS, Regimes, fit_regimes

SIZES = 2.0 ** np.arange(3, 14)  # those of the replica: 8 to 8192


def curve(sizes, min_steps=50.0, critical=200.0, sharpness=1.0):
    sizes = np.asarray(sizes)
    return min_steps * (1 + (critical / sizes) ** sharpness) ** (1 / sharpness)


def defined_boundaries(steps, smallest, largest, factor=1.2, gain=0.1):
    """The two definitions, word for word, on a dense grid; ``steps`` is a function."""
    dense = np.geomspace(smallest, largest, 20_001)
    perfect = dense[steps(dense) <= factor * steps(smallest) * smallest / dense].max()
    saved = 1 - steps(2 * dense) / steps(dense)
    too_much = np.flatnonzero(saved > gain)
    flat = dense[0] if len(too_much) == 0 else dense[min(too_much[-1] + 1, len(dense) - 1)]
    return perfect, flat


# --- the fit -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", [0.7, 1.0, 1.9, 3.5])
@pytest.mark.parametrize("critical", [20.0, 200.0, 3000.0])
def test_fit_recovers_the_curve_that_made_the_points(critical, sharpness):
    steps = curve(SIZES, 50.0, critical, sharpness)
    fitted = fit_regimes(SIZES, steps)
    assert fitted.min_steps == pytest.approx(50, rel=1e-4)
    assert fitted.critical_batch_size == pytest.approx(critical, rel=1e-4)
    assert fitted.min_samples == pytest.approx(50 * critical, rel=1e-4)
    assert fitted.sharpness == pytest.approx(sharpness, rel=1e-3)
    assert fitted.residual < 1e-5
    assert fitted.num_points == 11
    assert fitted.steps(SIZES) == pytest.approx(steps, rel=1e-4)
    assert fitted.steps(8.0) == pytest.approx(steps[0], rel=1e-4)


@pytest.mark.parametrize("sharpness", [0.7, 1.0, 1.9])
def test_boundaries_are_those_of_the_definitions(sharpness):
    fitted = fit_regimes(SIZES, curve(SIZES, 50.0, 200.0, sharpness))
    expected = defined_boundaries(lambda b: curve(b, 50.0, 200.0, sharpness), 8, 8192)
    assert (fitted.perfect_until, fitted.flat_from) == pytest.approx(expected, rel=2e-3)


def test_boundaries_by_hand():
    # p = 1: 1.2 * (8 + 200) - 200 = 49.6, and 200 * (0.9 - 0.5) / (1 - 0.9) = 800
    fitted = fit_regimes(SIZES, curve(SIZES))
    assert (fitted.perfect_until, fitted.flat_from) == pytest.approx((49.6, 800), rel=1e-4)


def test_boundaries_beyond_the_largest_batch_were_not_seen():
    few = SIZES[:5]  # to 128
    fitted = fit_regimes(few, curve(few))
    assert fitted.perfect_until == pytest.approx(49.6, rel=1e-2)
    assert fitted.flat_from == math.inf
    smaller = SIZES[:4] / 4  # to 16
    assert fit_regimes(smaller, curve(smaller)).perfect_until == math.inf


def test_flat_from_is_at_least_the_smallest_batch():
    late = SIZES[7:]  # 1024 on, where 200 is far behind
    assert fit_regimes(late, curve(late)).flat_from == 1024


def test_steps_that_only_halve_are_perfect_scaling_without_end():
    fitted = fit_regimes(SIZES, 1e4 / SIZES)
    assert (fitted.min_steps, fitted.critical_batch_size) == (0, math.inf)
    assert fitted.min_samples == pytest.approx(1e4)
    assert (fitted.perfect_until, fitted.flat_from) == (math.inf, math.inf)
    assert fitted.residual < 1e-9
    assert fitted.steps(16) == pytest.approx(625)


def test_steps_that_never_fall_are_flat_from_the_start():
    fitted = fit_regimes(SIZES, np.full(11, 70.0))
    assert (fitted.min_samples, fitted.critical_batch_size) == (0, 0)
    assert fitted.min_steps == pytest.approx(70)
    assert (fitted.perfect_until, fitted.flat_from) == pytest.approx((9.6, 8))
    assert fitted.steps([8, 16]).tolist() == pytest.approx([70, 70])


def test_fit_of_noisy_points_is_the_least_squares_one():
    rng = np.random.default_rng(0)
    for _ in range(10):
        steps = curve(SIZES, sharpness=1.5) * np.exp(rng.normal(0, 0.1, 11))
        fitted = fit_regimes(SIZES, steps)
        misfits = np.log(steps / fitted.steps(SIZES))
        assert fitted.residual == pytest.approx(np.sqrt((misfits**2).mean()), rel=1e-6)
        assert misfits.mean() == pytest.approx(0, abs=1e-6)
        # a slow search of all three parameters finds nothing better
        s, b, p = np.meshgrid(
            fitted.min_steps * np.geomspace(0.8, 1.25, 21),
            np.geomspace(20, 2000, 101),
            np.geomspace(*SHARPNESS, 41),
        )
        tried = s[..., None] * (1 + (b[..., None] / SIZES) ** p[..., None]) ** (1 / p[..., None])
        best = np.sqrt((np.log(steps / tried) ** 2).mean(axis=-1).min())
        assert fitted.residual <= best + 1e-9
        assert best - fitted.residual < 0.01
        assert 0.03 < fitted.residual < 0.15
        assert 130 < fitted.critical_batch_size < 300


def test_order_and_units_do_not_matter():
    rng = np.random.default_rng(1)
    steps = curve(SIZES) * np.exp(rng.normal(0, 0.1, 11))
    fitted = fit_regimes(SIZES, steps)
    shuffled = rng.permutation(11)
    again = fit_regimes(SIZES[shuffled], steps[shuffled])
    assert again == pytest.approx(fitted, rel=1e-5)
    scaled = fit_regimes(SIZES * 4, steps * 1000)
    assert scaled.critical_batch_size == pytest.approx(4 * fitted.critical_batch_size, rel=1e-5)
    assert scaled.min_steps == pytest.approx(1000 * fitted.min_steps, rel=1e-5)
    assert scaled.flat_from == pytest.approx(4 * fitted.flat_from, rel=1e-5)


def test_batch_sizes_that_did_not_reach_the_goal_are_left_out():
    steps = curve(SIZES)
    steps[[0, 10]] = math.inf
    fitted = fit_regimes(SIZES, steps)
    assert fitted == fit_regimes(SIZES[1:10], steps[1:10])
    assert fitted.num_points == 9


@pytest.mark.parametrize("count", [4, 3, 0])
def test_too_few_points_give_nan(count):
    steps = curve(SIZES)
    steps[count:] = math.inf
    fitted = fit_regimes(SIZES, steps)
    assert fitted.num_points == count
    assert math.isfinite(fitted.min_steps) == (count == 4)
    assert math.isfinite(fitted.critical_batch_size) == (count == 4)
    assert np.isfinite(fitted.steps(8.0)) == (count == 4)


def test_points_of_one_batch_size_are_one_point():
    sizes, steps = np.repeat(SIZES[:3], 3), np.repeat(curve(SIZES[:3]), 3)
    assert math.isnan(fit_regimes(sizes, steps).min_steps)


@pytest.mark.parametrize(
    ("batch_sizes", "steps"),
    [
        ([], []),
        (SIZES[:4], 5.0),
        (SIZES[:4], [1.0] * 3),
        (SIZES[:4], [1.0, 2.0, math.nan, 3.0]),
        (SIZES[:4], [1.0, 2.0, 0.0, 3.0]),
        ([0.0, 1.0, 2.0, 3.0], [1.0] * 4),
        ([1.0, 2.0, 3.0, math.inf], [1.0] * 4),
        ([1.0, 2.0, 3.0, math.nan], [1.0] * 4),
    ],
)
def test_fit_rejects(batch_sizes, steps):
    with pytest.raises(ParameterError, match="batch_sizes and steps must have one shape"):
        fit_regimes(batch_sizes, steps)


# --- on the noisy quadratic model ----------------------------------------------------------------

MODEL_SIZES = 2.0 ** np.arange(5, 16)


@pytest.fixture(scope="module")
def exact():
    """Optimal steps of plain and momentum SGD at the batch sizes, and at those between them."""
    sizes = 2.0 ** np.arange(5, 16.5, 0.5)
    model = {"goal": 0.003, "curvature": 1 / np.arange(1.0, 17) ** 2}
    momenta = {"plain": 0.0, "momentum": 1 - np.geomspace(0.03, 1, 10)}
    return {
        name: (sizes, np.array([
            optimum(b, momentum=values, **model).steps for b in sizes
        ])) for name, values in momenta.items()
    }  # fmt: skip


def at(exact, sizes):
    return np.exp(np.interp(np.log(sizes), np.log(exact[0]), np.log(exact[1])))


# exact: 136 and 3188 without momentum, 1272 and 6707 with it; the fits: 117, 2830; 1014, 6519
@pytest.mark.parametrize("name", ["plain", "momentum"])
def test_fitted_boundaries_agree_with_the_exact_curve(exact, name):
    fitted = fit_regimes(MODEL_SIZES, at(exact[name], MODEL_SIZES))
    assert fitted.residual < 0.05
    perfect, flat = defined_boundaries(lambda b: at(exact[name], b), 32, 32_768)
    assert fitted.perfect_until == pytest.approx(perfect, rel=0.25)
    assert fitted.flat_from == pytest.approx(flat, rel=0.25)


def test_momentum_extends_perfect_scaling(exact):
    fits = {name: fit_regimes(MODEL_SIZES, at(exact[name], MODEL_SIZES)) for name in exact}
    assert fits["momentum"].perfect_until > 5 * fits["plain"].perfect_until
    assert fits["momentum"].critical_batch_size > 3 * fits["plain"].critical_batch_size
    exactly = {
        name: defined_boundaries(lambda b, name=name: at(exact[name], b), 32, 32_768)[0]
        for name in exact
    }
    assert exactly["momentum"] > 5 * exactly["plain"]
    # the same samples suffice for small batches; the steps of large ones are fewer
    ratio = fits["momentum"].min_samples / fits["plain"].min_samples
    assert 0.9 < ratio < 1.1
    assert fits["momentum"].min_steps < fits["plain"].min_steps / 3


def test_the_form_of_fixed_sharpness_fits_the_model_worse(exact):
    # why the sharpness is a parameter: the best of p = 1, searched slowly
    critical = np.geomspace(10, 1e5, 2001)[:, None]
    for name in exact:
        steps = at(exact[name], MODEL_SIZES)
        misfits = np.log(steps / (1 + critical / MODEL_SIZES))
        fixed = misfits.std(axis=1).min()
        assert fixed > 1.5 * fit_regimes(MODEL_SIZES, steps).residual


def test_regimes_are_a_plain_tuple():
    assert Regimes(2.0, 10.0, 1.0, 1.0, 2.0, 0.0, 4).critical_batch_size == 5
