"""Parts of the figures of the study of batch sizes."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import ticker

from hardtrain.papers.data_parallelism.regimes import Regimes
from hardtrain.papers.data_parallelism.tuning import NOT_REACHED, OPTIMIZERS, Curve, task_name
from hardtrain.report.plotting import log_axis, variant_styles

STYLES = {
    "sgd": {"color": "#000000", "linestyle": "-", "marker": "o"},
    "momentum": {"color": "#0072B2", "linestyle": "--", "marker": "s"},
    "nesterov": {"color": "#D55E00", "linestyle": "-.", "marker": "^"},
}
OUTCOMES = {
    "reached": {"marker": "o", "color": "#0072B2"},
    NOT_REACHED: {"marker": "o", "color": "#808080", "facecolors": "none"},
    "diverged": {"marker": "x", "color": "#D55E00"},
}


def size_axis(ax, sizes: Sequence[int]) -> None:
    """A logarithmic axis of batch sizes, with all of up to eight named, else every other one."""
    sizes = list(sizes)
    ax.set_xscale("log", base=2)
    shown = sizes if len(sizes) <= 8 else sizes[::2]
    ax.set_xticks(shown, [str(size) for size in shown])
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
    ax.set_xlabel("batch size B")


def draw_points(ax, sizes, values, low, high, **style) -> None:
    """Values with bootstrap intervals against the batch size, on logarithmic axes.

    An arrow up is an interval without an upper bound; a cross at the upper edge is a batch size
    at which no trial reached the goal.

    Args:
        ax: to draw on.
        sizes: batch sizes, ascending.
        values: shape ``(B,)``; inf or nan: not reached.
        low, high: shape ``(B,)``; nan: no interval, ``high`` inf: no upper bound.
        style: for ``ax.plot``.
    """
    sizes, values, low, high = (np.asarray(a, dtype=float) for a in (sizes, values, low, high))
    reached = np.isfinite(values)
    (line,) = ax.plot(sizes[reached], values[reached], **style)
    bars = {"linestyle": "none", "color": line.get_color(), "elinewidth": 0.9, "capsize": 2}
    bounded = reached & np.isfinite(low) & np.isfinite(high)
    if bounded.any():
        sides = np.abs(np.stack([low[bounded], high[bounded]]) - values[bounded])
        ax.errorbar(sizes[bounded], values[bounded], yerr=sides, **bars)
    endless = reached & np.isinf(high)
    if endless.any():
        ax.errorbar(sizes[endless], values[endless], yerr=0.35 * values[endless], lolims=True,
                    **bars)  # fmt: skip
    if not reached.all():
        at_edge = {"transform": ax.get_xaxis_transform(), "clip_on": False}
        lost = sizes[~reached]
        ax.plot(lost, np.ones(len(lost)), "x", color=line.get_color(), **at_edge)
    size_axis(ax, [int(size) for size in sizes])
    if not reached.any():
        ax.set_ylim(1, 10)  # there is no positive number to scale by
    log_axis(ax.yaxis)


def draw_steps(ax, frame: pd.DataFrame, **style) -> None:
    """Steps to the goal: a frame of ``batch_scaling.scaling_curve``."""
    draw_points(ax, *(frame[name] for name in ("batch_size", "steps", "low", "high")), **style)


def draw_regimes(ax, sizes: Sequence[int], fit: Regimes) -> None:
    """A fitted curve, perfect scaling from the smallest batch on, and lines at the boundaries."""
    if math.isnan(fit.min_steps):
        return  # too few points
    fine = np.geomspace(sizes[0], sizes[-1], 100)
    ax.plot(fine, fit.steps(fine), color="0.45", linewidth=1.2, label="fit")
    perfect = fit.steps(sizes[0]) * sizes[0] / fine
    ax.plot(fine, perfect, color="0.45", linewidth=1, linestyle=":", label="perfect scaling")
    for size, line, label in (
        (fit.perfect_until, "--", "perfect scaling ends"),
        (fit.flat_from, "-.", "flat from here"),
    ):
        look = {"color": "#CC79A7", "linewidth": 1.2, "linestyle": line}
        ax.plot([], [], label=label, **look)  # for the legend, even if it was not seen
        if math.isfinite(size):
            ax.axvline(size, **look)


def draw_rules(ax, sizes: Sequence[int], values: Sequence[float]) -> None:
    """The linear and the square-root rule, from the first value that is known."""
    known = [(s, v) for s, v in zip(sizes, values, strict=True) if math.isfinite(v)]
    if not known:
        return
    first, start = known[0]
    sizes = np.asarray(sizes, dtype=float)
    for power, line, label in ((1, ":", "linear rule"), (0.5, (0, (5, 3)), "square-root rule")):
        ax.plot(sizes, start * (sizes / first) ** power, color="0.6", linewidth=1,
                linestyle=line, label=label)  # fmt: skip


def draw_trials(ax, trials: pd.DataFrame, *, column: str) -> None:
    """Trials of one batch size in the plane of learning rate and ``column``, by what became of
    them; at the first three to reach the goal stand their steps."""
    for outcome, style in OUTCOMES.items():
        part = trials[trials["outcome"] == outcome]
        ax.scatter(part["lr"], part[column], s=26, linewidths=1.2, label=outcome, **style)
    for trial in trials[trials["outcome"] == "reached"].nsmallest(3, "steps").itertuples():
        ax.annotate(f"{trial.steps:.0f}", (trial.lr, getattr(trial, column)), xytext=(5, 3),
                    textcoords="offset points", fontsize=7)  # fmt: skip
    log_axis(ax.yaxis)
    log_axis(ax.xaxis)
    ax.set_xlabel("learning rate η")


def draw_groups(
    groups: Mapping[str, Sequence[Curve]], kind: str, frames: Mapping[Curve, pd.DataFrame]
):
    """Curves beside each other, a panel for each group of a kind.

    Args:
        groups: from `comparison_groups`.
        kind: "optimisers", "networks" or "data": with what its groups' titles begin. If there is
            none, the panels show one curve each: there is nothing to compare.
        frames: of ``scaling_curve``, by curve.

    Returns:
        ``matplotlib.figure.Figure``.
    """
    import matplotlib.pyplot as plt  # here, so that importing hardtrain needs no display

    panels = {
        title.partition(": ")[2]: curves
        for title, curves in groups.items()
        if title.startswith(kind)
    } or {f"only one of the {kind}": [next(iter(frames))]}
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    size = (max(4.2, 2.4 * columns), 0.6 + 2.3 * rows)
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    names = {
        "optimisers": lambda curve: OPTIMIZERS[curve.optimizer],
        "networks": lambda curve: curve.network,
        "data": lambda curve: task_name(curve.task),
    }
    labels = list(dict.fromkeys(names[kind](c) for curves in panels.values() for c in curves))
    # one style for a label in all panels
    base = variant_styles("gradient_noise" if kind == "data" else "hard_batches", 8)
    step = max(1, 7 // max(1, len(labels) - 1))  # far apart
    styles = {label: base[i * step % 8] for i, label in enumerate(labels)}
    styles |= {OPTIMIZERS[optimizer]: style for optimizer, style in STYLES.items()}
    for ax, (title, curves) in zip(axes.flat, panels.items(), strict=False):
        for curve in curves:
            label = names[kind](curve)
            draw_steps(ax, frames[curve], label=label, **styles[label])
        ax.set_title(title)
    for ax in axes[:, 0]:
        ax.set_ylabel("steps to the goal")
    shared_legend(fig)
    return fig


def shared_legend(fig, columns: int = 3) -> None:
    """One legend above all panels, with whatever any of them has."""
    handles = {}
    for ax in fig.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    fig.legend(handles.values(), handles, loc="outside upper center", ncols=columns)


def draw_check(
    batch_sizes: Sequence[int], num_trials: Sequence[int], arrays: Mapping[str, np.ndarray]
):
    """Steps and effective learning rates on the noisy quadratic: exact ones as lines, and of the
    searches with the fewest trials the median, lowest and highest.

    Args:
        batch_sizes, num_trials: as given to `noisy_quadratic_check`.
        arrays: what it gave.

    Returns:
        ``matplotlib.figure.Figure``.
    """
    import matplotlib.pyplot as plt  # here, so that importing hardtrain needs no display

    fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.1))
    for ax, column in zip(axes, ("steps", "effective_lr"), strict=True):
        for kind, (name, shift) in enumerate((("sgd", 0.94), ("momentum", 1.06))):
            style = STYLES[name]
            line = {key: style[key] for key in ("color", "linestyle")}
            label = OPTIMIZERS[name]
            ax.plot(batch_sizes, arrays[f"exact_{column}"][kind], label=f"{label}, exact", **line)
            found = arrays[column][kind, int(np.argmin(num_trials))]
            found = np.sort(np.where(np.isnan(found), math.inf, found), axis=0)
            known = np.isfinite(found[-1])
            low, middle, high = found[[0, (len(found) - 1) // 2, -1]][:, known]
            sides = np.stack([middle - low, high - middle])
            ax.errorbar(shift * np.array(batch_sizes)[known], middle, yerr=sides,
                        color=style["color"], marker=style["marker"], linestyle="none",
                        elinewidth=0.9, capsize=2, label=f"{label}, found")  # fmt: skip
        size_axis(ax, batch_sizes)
        log_axis(ax.yaxis)
    axes[0].set_ylabel("steps to the goal")
    axes[1].set_ylabel("best η / (1 − γ)")
    shared_legend(fig, columns=4)
    return fig
