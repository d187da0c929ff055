"""Parts of the figures of the study of batch sizes."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import ticker

from hardtrain.papers.data_parallelism import measures
from hardtrain.papers.data_parallelism.regimes import BOUNDARIES, Regimes
from hardtrain.papers.data_parallelism.tuning import NOT_REACHED, OPTIMIZERS, Curve
from hardtrain.report.plotting import log_axis, variant_styles

STYLES = {
    "sgd": {"color": "#000000", "linestyle": "-", "marker": "o"},
    "momentum": {"color": "#0072B2", "linestyle": "--", "marker": "s"},
    "nesterov": {"color": "#D55E00", "linestyle": "-.", "marker": "^"},
}
OUTCOMES = {
    "reached": {"marker": "o", "color": "#505050"},
    NOT_REACHED: {"marker": "o", "color": "#808080", "facecolors": "none"},
    "infeasible": {"marker": "x", "color": "#808080"},
}
_ENDS = (("perfect scaling ends", "#CC79A7", "--"), ("flat from here", "#44AA99", "-."))


def size_axis(ax, sizes: Sequence[int]) -> None:
    """A logarithmic axis of batch sizes, with all of up to eight named, else every other one."""
    sizes = list(sizes)
    ax.set_xscale("log", base=2)
    shown = sizes if len(sizes) <= 8 else sizes[::2]
    ax.set_xticks(shown, [str(size) for size in shown])
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
    ax.set_xlabel("batch size B")


def draw_points(ax, frame: pd.DataFrame, **style) -> None:
    """Values with bars against the batch size, on logarithmic axes.

    An arrow up is a bar without an upper end; a cross at the upper edge is a batch size at which
    too few searches reached the goal, those of further curves one below the other.

    Args:
        ax: to draw on.
        frame: ``batch_size``, ascending; ``value`` (inf or nan: not reached); ``low`` and ``high``
            (nan: no bar; ``high`` inf: no upper end).
        style: for ``ax.plot``.
    """
    if frame.empty:
        return
    columns = frame[["batch_size", "value", "low", "high"]].to_numpy(dtype=float)
    reached = np.isfinite(columns[:, 1])
    sizes, values, low, high = columns[reached].T
    (line,) = ax.plot(sizes, values, **style)
    bars = {"linestyle": "none", "color": line.get_color(), "elinewidth": 0.9, "capsize": 2}
    endless, known = np.isinf(high), ~np.isnan(high)
    if known.any():
        sides = np.abs([values - low, np.where(endless, 0.8 * values, high - values)])
        bars |= {"yerr": sides[:, known], "lolims": endless[known]}
        ax.errorbar(sizes[known], values[known], **bars)
    if not reached.all():
        at_edge = {"transform": ax.get_xaxis_transform(), "clip_on": False}
        lost, above = columns[~reached, 0], sum(line.get_marker() == "x" for line in ax.lines)
        ax.plot(lost, np.full(len(lost), 1 - 0.08 * above), "x", color=line.get_color(), **at_edge)
    size_axis(ax, frame["batch_size"])
    if not reached.any():
        ax.set_ylim(1, 10)  # there is no positive number to scale by
    log_axis(ax.yaxis)


def draw_perfect(ax, frame: pd.DataFrame) -> None:
    """Perfect scaling from the first value of a frame that is known."""
    known = frame[np.isfinite(frame["value"])]
    for first in known.head(1).itertuples():
        look = {"color": "0.45", "linewidth": 1, "linestyle": ":", "label": "perfect scaling"}
        sizes = frame["batch_size"]
        ax.plot(sizes, first.value * first.batch_size / sizes, **look)


def draw_regimes(ax, sizes: Sequence[int], fits: Sequence[Regimes]) -> None:
    """The curve fitted to the medians, perfect scaling from the smallest batch on, and where the
    regimes end: a line at the median of the searches, a shade from the lowest to the highest.

    ``†`` is that of `regimes_table`. A shade goes on to the edge if some search saw no end.

    Args:
        ax: to draw on.
        sizes: batch sizes, ascending.
        fits: from `measures.regimes`.
    """
    if not fits or math.isnan(fits[0].min_steps):
        return  # too few points
    fine = np.geomspace(sizes[0], sizes[-1], 100)
    ax.plot(fine, fits[0].steps(fine), color="0.45", linewidth=1.2, label="fit")
    draw_perfect(ax, pd.DataFrame({"batch_size": fine, "value": fits[0].steps(fine)}))
    for name, (label, color, line) in zip(BOUNDARIES, _ENDS, strict=True):
        look = {"color": color, "linewidth": 1.2, "linestyle": line}
        ax.plot([], [], label=label, **look)  # for the legend, even if it was not seen
        found = measures.over_fits(fits, name)
        if found is None or math.isinf(found.low):
            continue
        ax.axvspan(found.low, min(found.high, 1.3 * sizes[-1]), color=color, alpha=0.2, linewidth=0)
        if math.isfinite(found.value):
            ax.axvline(found.value, **look)
            if measures.is_loose(found.value, sizes):
                top = (found.value, 1), (2, -2), ax.get_xaxis_transform(), "offset points"
                ax.annotate("†", *top, va="top", color=color, fontweight="bold")


def draw_rules(ax, frame: pd.DataFrame) -> None:
    """The linear and the square-root rule through the middle of a frame's own points, in logs."""
    known = frame[np.isfinite(frame["value"])]
    if known.empty:
        return
    middle_size, middle = np.exp(np.log(known[["batch_size", "value"]]).mean())
    for power, line, label in ((1, ":", "linear rule"), (0.5, (0, (5, 3)), "square-root rule")):
        look = {"color": "0.6", "linewidth": 1, "linestyle": line, "label": label}
        growth = frame["batch_size"] / middle_size
        ax.plot(frame["batch_size"], middle * growth**power, **look)


def draw_trials(ax, trials: pd.DataFrame, *, column: str) -> None:
    """Trials of one batch size in the plane of learning rate and ``column``, by what became of
    them; 1, 2 and 3 are the first to reach the goal, and their steps stand above."""
    for outcome, style in OUTCOMES.items():
        part = trials[trials["outcome"] == outcome]
        ax.scatter(part["lr"], part[column], s=26, linewidths=1.2, label=outcome, **style)
    first = trials[trials["outcome"] == "reached"].nsmallest(3, "steps")
    ring = {"boxstyle": "circle,pad=0.2", "facecolor": "white", "edgecolor": "black"}
    look = {"ha": "center", "va": "center", "fontsize": 7, "bbox": ring}
    for rank, (lr, height) in enumerate(first[["lr", column]].to_numpy(), start=1):
        ax.text(lr, height, str(rank), zorder=4 - 0.1 * rank, **look)
    steps = ", ".join(f"{rank}: {steps:.0f}" for rank, steps in enumerate(first["steps"], start=1))
    ax.text(0.5, 1.02, steps, ha="center", fontsize=8, transform=ax.transAxes)
    ax.set_xlabel("learning rate η")
    if len(trials):
        log_axis(ax.yaxis)
        log_axis(ax.xaxis)


def panels(num: int):
    """A figure with ``num`` axes of one y axis, row by row, ``steps to the goal`` at its left."""
    import matplotlib.pyplot as plt  # here, so that importing hardtrain needs no display

    columns = min(3, num)
    rows = math.ceil(num / columns)
    size = (max(4.2, 2.4 * columns), 0.6 + 2.3 * rows)
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True)
    for ax in axes.flat[num:]:
        ax.remove()
    for ax in axes[:, 0]:
        ax.set_ylabel("steps to the goal")
    return fig, axes.flat[:num]


def draw_groups(
    kinds: Mapping[str, Mapping[str, Sequence[Curve]]], frames: Mapping[Curve, pd.DataFrame]
):
    """Curves beside each other, a panel for each group.

    Args:
        kinds: from `comparison_groups`. If there is none, one curve is shown.
        frames: of `over_searches`, by curve.

    Returns:
        ``matplotlib.figure.Figure``.
    """
    groups = [(kind, *group) for kind, members in kinds.items() for group in members.items()]
    groups = groups or [("optimiser", "nothing to compare", [next(iter(frames))])]
    fig, axes = panels(len(groups))
    for ax, (kind, title, curves) in zip(axes, groups, strict=True):
        looks = itertools.cycle(variant_styles("gradient_noise", min(8, len(curves))))
        for curve, look in zip(curves, looks, strict=False):
            look = STYLES[curve.optimizer] if kind == "optimiser" else look
            draw_points(ax, frames[curve], label=curve.words[kind], **look)
        ax.set_title(title)
        if ax.lines:
            ax.legend(loc="upper right")
    axes[0].set_ylim(top=5 * axes[0].get_ylim()[1])  # room for the legends
    return fig


def shared_legend(fig, columns: int = 3) -> None:
    """One legend above all panels, with whatever any of them has."""
    handles = {}
    for ax in fig.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    fig.legend(handles.values(), handles, loc="outside upper center", ncols=columns)


def draw_check(
    axes, batch_sizes: Sequence[int], num_trials: Sequence[int], arrays: Mapping[str, np.ndarray]
) -> None:
    """Steps and effective learning rates on the noisy quadratic: exact ones as lines, and of the
    searches with the fewest trials the median, lowest and highest.

    Args:
        axes: two to draw on.
        batch_sizes, num_trials: as given to `noisy_quadratic_check`.
        arrays: what it gave.
    """
    fewest = int(np.argmin(num_trials))
    for ax, column in zip(axes, ("steps", "effective_lr"), strict=True):
        for kind, (name, shift) in enumerate((("sgd", 0.94), ("momentum", 1.06))):
            exact, line = f"{OPTIMIZERS[name]}, exact", STYLES[name] | {"marker": None}
            ax.plot(batch_sizes, arrays[f"exact_{column}"][kind], label=exact, **line)
            found = measures.spread(arrays[column][kind, fewest].T)._asdict()
            found = pd.DataFrame({"batch_size": shift * np.array(batch_sizes)} | found)
            points = STYLES[name] | {"linestyle": "none"}
            draw_points(ax, found, label=f"{OPTIMIZERS[name]}, found", **points)
        size_axis(ax, batch_sizes)
