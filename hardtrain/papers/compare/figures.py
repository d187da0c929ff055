"""What the comparison's figures need beyond the tables."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from hardtrain.papers.compare.tables import costs
from hardtrain.report import plotting, tables
from hardtrain.runs.run import Run


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
    """By arm and class the mean over seeds of the error minus plain training's (points)."""
    errors = {name: tables.class_errors(results, arm) for name, arm in arms.items()}
    return 100 * np.stack([(own - errors["plain"]).mean(axis=0) for own in errors.values()])
