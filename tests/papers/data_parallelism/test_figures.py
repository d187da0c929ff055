"""What is drawn, also where a goal was not reached."""

import math

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from hardtrain.papers.data_parallelism.figures import (
    draw_check,
    draw_groups,
    draw_perfect,
    draw_points,
    draw_regimes,
    draw_rules,
    draw_trials,
    panels,
    shared_legend,
    size_axis,
)
from hardtrain.papers.data_parallelism.measures import comparison_groups
from hardtrain.papers.data_parallelism.regimes import Regimes, fit_regimes
from hardtrain.papers.data_parallelism.tuning import Curve

SGD = Curve("digits", "mlp", "sgd")
HEAVY = Curve("digits", "mlp", "momentum")
NOISY = HEAVY._replace(label_noise=0.2)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def points(sizes, values, low, high):
    return pd.DataFrame({"batch_size": sizes, "value": values, "low": low, "high": high})


def test_points_that_were_not_reached_are_crosses_at_the_edge():
    ax = plt.figure().subplots()
    nan, inf = math.nan, math.inf
    frame = points([4, 8, 16, 32], [80, inf, 40, 20], [70, nan, 40, nan], [90, nan, inf, nan])
    draw_points(ax, frame, color="black", label="x")
    assert ax.lines[0].get_xdata().tolist() == [4, 16, 32]
    cross = [line for line in ax.lines if line.get_marker() == "x"]
    assert [line.get_xdata().tolist() for line in cross] == [[8]]
    (bars,) = ax.containers  # of 4 and 16; 32 has no interval
    segments = [segment[:, 1].tolist() for part in bars.lines[2] for segment in part.get_segments()]
    assert segments == [[70, 90], [40, 1.8 * 40]]
    arrows = [line for line in ax.lines if line.get_marker() == matplotlib.markers.CARETUPBASE]
    assert [arrow.get_xdata().tolist() for arrow in arrows] == [[16]]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["4", "8", "16", "32"]


def test_crosses_of_several_curves_do_not_lie_on_each_other():
    ax, lost = plt.figure().subplots(), points([4, 8], [math.inf, 40], math.nan, math.nan)
    for color in ("black", "red"):
        draw_points(ax, lost, color=color)
    heights = [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "x"]
    assert heights[0] == 1
    assert 0 < heights[1] < 0.95


@pytest.mark.parametrize("steps", [[math.inf] * 3, [80.0, math.inf, 20.0]])
def test_figures_with_lost_points_can_be_laid_out(steps):
    fig = plt.figure(layout="constrained")
    frame = points([4, 8, 16], steps, steps, steps)
    ax = fig.subplots()
    draw_points(ax, frame, label="x")
    draw_rules(ax, frame)
    draw_regimes(ax, [4, 8, 16], 2 * [fit_regimes([4, 8, 16], steps)])
    fig.draw_without_rendering()
    assert ax.get_position().width > 0.5  # the layout did not collapse


def test_regimes_are_drawn_where_they_were_seen():
    fit = Regimes(10.0, 100.0, 1.0, 5.0, math.inf, 0.0, 5)  # of the medians: its ends do not count
    ends = [(3.0, 6.0), (2.5, math.inf), (5.0, 7.0)]
    fits = [fit._replace(perfect_until=perfect, flat_from=flat) for perfect, flat in ends]
    ax = plt.figure().subplots()
    draw_regimes(ax, [1, 2, 4, 8], [fit, *fits])
    labels = ax.get_legend_handles_labels()[1]
    assert labels == ["fit", "perfect scaling", "perfect scaling ends", "flat from here"]
    curve, perfect = ax.lines[:2]
    assert curve.get_ydata()[[0, -1]].tolist() == pytest.approx([110, 22.5])
    assert perfect.get_ydata()[[0, -1]].tolist() == pytest.approx([110, 110 / 8])
    vertical = [line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1]
    assert vertical == [3.0, 7.0]  # the medians, as in the table
    shades = [(shade.get_x(), shade.get_x() + shade.get_width()) for shade in ax.patches]
    assert shades == [(2.5, 5.0), (6.0, pytest.approx(1.3 * 8))]  # one search saw no end
    assert [(text.get_text(), text.xy[0]) for text in ax.texts] == [("†", 7.0)]


def test_an_end_that_few_searches_saw_has_no_line():
    fit = Regimes(10.0, 100.0, 1.0, math.inf, math.inf, 0.0, 5)
    ax = plt.figure().subplots()
    draw_regimes(ax, [1, 2, 4, 8], [fit, fit, fit._replace(perfect_until=3.0), fit])
    assert not [line for line in ax.lines if len(set(line.get_xdata())) == 1]
    assert [shade.get_x() for shade in ax.patches] == [3.0]


def test_rules_go_through_the_middle_of_their_own_points():
    ax = plt.figure().subplots()
    draw_rules(ax, points([4, 8, 32], [math.nan, 0.1, 0.4], math.nan, math.nan))
    linear, root = (line.get_ydata().tolist() for line in ax.lines)
    assert linear == pytest.approx([0.05, 0.1, 0.4])  # the middle: 0.2 at 16
    assert root == pytest.approx([0.1, 0.2 / math.sqrt(2), 0.2 * math.sqrt(2)])
    draw_rules(ax, points([4, 8], [math.nan] * 2, math.nan, math.nan))
    assert len(ax.lines) == 2


def test_perfect_scaling_starts_at_the_first_point_reached():
    ax = plt.figure().subplots()
    draw_perfect(ax, points([4, 8, 32], [math.inf, 80.0, 70.0], math.nan, math.nan))
    assert ax.lines[0].get_ydata().tolist() == [160, 80, 20]


def test_trials_are_told_apart_and_the_first_named():
    trials = pd.DataFrame(
        {"lr": [0.1, 0.2, 0.3, 0.4, 0.5, 9.0], "one_minus_momentum": [0.1] * 6,
         "steps": [50.0, 40.0, 60.0, 70.0, math.inf, math.inf],
         "outcome": ["reached"] * 4 + ["not reached", "infeasible"]}
    )  # fmt: skip
    ax = plt.figure().subplots()
    draw_trials(ax, trials, column="one_minus_momentum")
    assert [len(points.get_offsets()) for points in ax.collections] == [4, 1, 1]
    *ranks, steps = ax.texts
    assert [(text.get_text(), text.get_position()[0]) for text in ranks] == [
        ("1", 0.2), ("2", 0.1), ("3", 0.3),
    ]  # fmt: skip
    assert steps.get_text() == "1: 40, 2: 50, 3: 60"
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_panels_are_as_many_as_asked_for():
    fig, axes = panels(4)
    assert len(fig.axes) == len(axes) == 4
    assert [ax.get_ylabel() for ax in axes] == ["steps to the goal", "", "", "steps to the goal"]
    assert len(panels(1)[1]) == 1


def test_groups_are_panels():
    frame = points([4, 8], [80.0, 40.0], [80.0, 40.0], [90.0, math.inf])
    frames = dict.fromkeys([SGD, HEAVY, NOISY], frame)
    fig = draw_groups(comparison_groups(list(frames)), frames)
    assert [ax.get_title() for ax in fig.axes] == ["digits, mlp", "mlp, heavy ball"]
    named = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in fig.axes]
    assert named == [["SGD", "heavy ball"], ["digits", "digits, 20 % wrong labels"]]
    fig = draw_groups({}, {SGD: frame})
    assert [ax.get_title() for ax in fig.axes] == ["nothing to compare"]


def test_more_groups_than_styles_can_be_drawn():
    frame = points([4, 8], [80.0, 40.0], math.nan, math.nan)
    curves = [Curve("digits", f"network{i}", "sgd") for i in range(9)]
    fig = draw_groups(comparison_groups(curves), dict.fromkeys(curves, frame))
    assert len(fig.axes[0].get_legend().get_texts()) == 9


def test_nothing_is_drawn_of_what_was_not_run():
    ax = plt.figure().subplots()
    frame = points([], [], [], [])
    draw_points(ax, frame)
    draw_perfect(ax, frame)
    draw_rules(ax, frame)
    assert not ax.lines


def test_check_is_drawn_with_failed_searches():
    arrays = {name: np.full((2, 2), 9.0) for name in ("exact_steps", "exact_effective_lr")}
    arrays |= {name: np.full((2, 2, 3, 2), 12.0) for name in ("steps", "effective_lr")}
    arrays["steps"][:, 1] = 99.0  # of the searches with more trials
    arrays["steps"][0, 0, 0, 1], arrays["effective_lr"][0, 0, 0, 1] = math.inf, math.nan
    fig, axes = plt.subplots(1, 2, layout="constrained")
    draw_check(axes, [4, 8], [5, 50], arrays)
    shared_legend(fig)
    fig.draw_without_rendering()
    assert len(fig.legends[0].get_texts()) == 4
    middle = [line for line in axes[0].lines if line.get_label() == "SGD, found"]
    assert middle[0].get_ydata().tolist() == [12.0, 12.0]
    # batch size 8 of plain SGD has no highest value: an arrow
    arrows = [line for line in axes[0].lines if line.get_marker() == matplotlib.markers.CARETUPBASE]
    assert [arrow.get_xdata().tolist() for arrow in arrows] == [[0.94 * 8]]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["4", "8"]


def test_sizes_are_named_as_far_as_there_is_room():
    ax = plt.figure().subplots()
    size_axis(ax, [2**power for power in range(3, 14)])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["8", "32", "128", "512",
                                                                    "2048", "8192"]  # fmt: skip
