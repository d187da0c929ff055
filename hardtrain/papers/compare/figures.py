"""What the comparison's figures need beyond the tables."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.image import AxesImage

from hardtrain.papers.compare import plan
from hardtrain.papers.compare.tables import Cells, costs
from hardtrain.report import plotting, tables
from hardtrain.report.text import format_interval
from hardtrain.runs.run import Run
from hardtrain.statistics import PairedDifference

EDGE = 20.0  # points: where an axis of differences ends; an arrow says what lies beyond
_STEPS = (-100, -30, -15, -5, 0, 5, 15, 30, 100)  # points, of the colours of the classes


def num_seeds(results: pd.DataFrame, cells: Cells) -> tuple[int, int]:
    """The fewest and the most finished seeds of an arm of which any finished; 0 without one."""
    arms = [arm for group in cells.values() for arm in group.values()]
    numbers = [len(tables.metric_by_seed(results, arm, "test_error")) for arm in arms]
    found = [number for number in numbers if number]
    return min(found, default=0), max(found, default=0)


def spread(results: pd.DataFrame, cells: Cells, what: str = "intervals") -> str:
    """What the intervals or bands of the figures are over, or that there are none."""
    low, high = num_seeds(results, cells)
    if high < 2:
        return f"{high} finished seed an arm, so no {what}"
    return f"95 % {what} over {high if low == high else f'{low} to {high}'} seeds"


def draw_differences(
    axes: Sequence[Axes],
    panels: Mapping[str, Mapping[str, PairedDifference | None]],
    label: str,
) -> None:
    """`plotting.intervals` of each panel's differences by arm, on a shared axis that ends at
    ± `EDGE`; an arrow and a number say what lies beyond."""
    for ax, (title, gaps) in zip(axes, panels.items(), strict=True):
        names, found = [plan.label(name) for name in gaps], list(gaps.values())
        plotting.intervals(ax, names, found, missing="no pair of runs", color="black")
        ax.set(title=title, xlabel=label)
    low, high = np.clip(axes[0].get_xlim(), -EDGE, EDGE)
    axes[0].set_xlim(low, high)
    for ax, gaps in zip(axes, panels.values(), strict=True):
        for row, gap in enumerate(gaps.values()):
            if gap is not None and not low <= gap.mean <= high:
                left = gap.mean < low
                end, marker, side = (low, "<", "left") if left else (high, ">", "right")
                ax.plot(end, row, marker=marker, color="black", clip_on=False)
                number = format_interval(gap, 0, signed=True).partition(" (n")[0]
                text = f" {number} ".replace("-", "−")
                ax.text(end, row - 0.1, text, ha=side, va="bottom", fontsize=7)


def draw_against(
    ax: Axes,
    history: pd.DataFrame,
    arms: Mapping[str, Sequence[Run]],
    lengths: Mapping[str, float],
    label: str,
    begins: Mapping[str, float] | None = None,
) -> None:
    """Mean test error (%) of each arm, its epochs spread evenly over its length on the horizontal
    axis, behind where it begins."""
    for name, arm in arms.items():
        epochs, values = tables.curves(history, arm, "test_error")
        if len(epochs):
            x = (begins or {}).get(name, 0.0) + lengths[name] * epochs / epochs[-1]
            plotting.band(ax, x, 100 * values, method=name)
    ax.set_ylim(bottom=max(0, ax.get_ylim()[0]))  # where an interval reaches below
    ax.set_xlabel(label)


def ends_in_updates(history: pd.DataFrame, arms: Mapping[str, Sequence[Run]]) -> dict[str, float]:
    """The mean number of updates of each arm's runs."""
    last = history.groupby("key")["step"].max() if len(history) else pd.Series(dtype=float)
    return {name: last.reindex([run.key for run in arm]).mean() for name, arm in arms.items()}


def ends_in_time(timings: pd.DataFrame, arms: Mapping[str, Sequence[Run]]) -> dict[str, float]:
    """The mean time of each arm's trainings alone, relative to plain training."""
    return {name: costs(timings, arm)[0] / costs(timings, arms["plain"])[0]
            for name, arm in arms.items()}  # fmt: skip


def begins_in_time(timings: pd.DataFrame, arms: Mapping[str, Sequence[Run]]) -> dict[str, float]:
    """The mean time of the trainings that each arm needs before, relative to plain training."""
    return {name: costs(timings, arm)[1] / costs(timings, arms["plain"])[0]
            for name, arm in arms.items()}  # fmt: skip


def change_by_class(results: pd.DataFrame, arms: Mapping[str, Sequence[Run]]) -> np.ndarray:
    """By arm but plain training, and by class, the mean over seeds of the error minus plain
    training's (points); nan where the paired interval holds 0, or there is none."""
    errors = {name: 100 * tables.class_errors(results, arm) for name, arm in arms.items()}
    plain = errors.pop("plain")
    gaps = [[tables.paired(own[k], plain[k]) if k in own else None for k in plain]
            for own in errors.values()]  # fmt: skip
    return np.array([
        [gap.mean if gap and (gap.low > 0 or gap.high < 0) else np.nan for gap in row]
        for row in gaps
    ])  # fmt: skip


def draw_classes(axes: Sequence[Axes], results: pd.DataFrame, cells: Cells) -> AxesImage:
    """`change_by_class` of each setting in colours, grey where it is nan. For a colour bar."""
    norm = BoundaryNorm(_STEPS, 256)
    for ax, (setting, arms) in zip(axes, cells.items(), strict=True):
        change = change_by_class(results, arms)
        image = ax.imshow(change, cmap="RdBu_r", norm=norm, aspect="auto")
        ax.set(title=setting, xlabel="class", facecolor="0.9")
        ax.set_yticks(range(len(change)), [plan.label(name) for name in arms if name != "plain"])
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(False)
    return image
