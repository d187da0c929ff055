"""One style for all figures: colours by method, bands over seeds, image grids, saving."""

import io
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib import colors, ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from numpy.typing import ArrayLike

from hardtrain import checks
from hardtrain.errors import ParameterError
from hardtrain.files import write_atomically
from hardtrain.report.tables import TEST_ERROR, Metric, curves, difference
from hardtrain.runs.run import Run
from hardtrain.statistics import Interval, PairedDifference, mean_interval

STYLE = Path(__file__).with_name("hardtrain.mplstyle")
_METHODS = {  # colours: Okabe-Ito, Tol's muted; in grey, lines and markers tell methods apart
    "plain": ("Plain training", "#000000", "-", "o"),
    "trimming": ("Mini-batch trimming", "#D55E00", "--", "s"),
    "hard_batches": ("Hard mini-batches", "#0072B2", "-.", "^"),
    "gradient_noise": ("Gradient noise", "#009E73", (0, (1, 1)), "D"),
    "itdm_joint": ("ITDM, joint", "#CC79A7", (0, (5, 1)), "v"),
    "itdm_class": ("ITDM, class-conditional", "#882255", (0, (3, 1, 1, 1)), "P"),
    "active_bias_sampling": ("Active bias, sampling", "#E69F00", (0, (5, 3)), "X"),
    "active_bias_weighting": ("Active bias, weighting", "#332288", (0, (1, 2)), "<"),
    "subset": ("Subset search", "#56B4E9", (0, (3, 1, 1, 1, 1, 1)), ">"),
    "subset_random": ("Random subset", "#808080", (0, (7, 2, 1, 2)), "*"),
    "focal": ("Focal loss", "#AA4499", (0, (2, 2)), "p"),
    "selective_backprop": ("Selective-Backprop", "#661100", (0, (8, 2)), (4, 1, 0)),
    "dynamic_pruning": ("Dynamic pruning", "#DDAA33", (0, (4, 1, 1, 1)), "d"),
    "reducible_loss": ("Reducible loss", "#66BBDD", (0, (6, 1, 1, 1, 1, 1)), (3, 1, 0)),
    "random_share": ("Random share", "#A0A0A0", (0, (1, 3)), "x"),
}
_VARIANT_LINES = (
    *("-", "--", "-.", (0, (1, 1))),
    *((0, (5, 1)), (0, (3, 1, 1, 1)), (0, (5, 3)), (0, (1, 2))),
)
CLASS_COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"),
    *("#D55E00", "#332288", "#999933", "#882255", "#808080"),
)
MARKERS = "os^Dv<>PX*"
_FIGURE_NAME = re.compile(r"fig_[A-Za-z0-9][A-Za-z0-9_-]*")
_NO_PAIR = "no pair of runs"


def use_style() -> None:
    """Set the style of every notebook; call it once, after the imports.

    A figure of two panels, 7 x 2.8 inches, shows at 560 x 224 pixels inline and is saved at 150
    dpi. For a legend shared by its panels: ``fig.legend(..., loc="outside lower center")``.

    Example:
        >>> use_style()
        >>> matplotlib.rcParams["pdf.fonttype"]
        42
    """
    matplotlib.style.use(STYLE)


def method_style(method: str) -> dict:
    """The colour, line style and marker that a method has in all notebooks, for ``ax.plot``.

    Raises:
        ParameterError: unknown method; the text names the nearest known one.

    Example:
        >>> method_style("trimming")
        {'color': '#D55E00', 'linestyle': '--', 'marker': 's'}
    """
    _, color, linestyle, marker = _METHODS[checks.choice("method", method, _METHODS)]
    return {"color": color, "linestyle": linestyle, "marker": marker}


def method_label(method: str) -> str:
    """The name of a method in legends and tables.

    Example:
        >>> method_label("gradient_noise")
        'Gradient noise'
    """
    return _METHODS[checks.choice("method", method, _METHODS)][0]


def variant_styles(method: str, num: int) -> list[dict]:
    """Styles for ``num`` settings of one method (a sweep of delta, say), from dark to light.

    All have the method's hue; line styles and markers differ, and so does the lightness.

    Raises:
        ParameterError: unknown method, or ``num`` not in 1..8.

    Example:
        >>> [style["marker"] for style in variant_styles("hard_batches", 3)]
        ['o', 's', '^']
    """
    checks.integer("num", num, 1, len(_VARIANT_LINES))
    base = np.array(colors.to_rgb(method_style(method)["color"]))
    dark, light = 0.55 * base, base + 0.55 * (1 - base)
    mixes = np.linspace(0, 1, num) if num > 1 else [0.5]
    shades = [colors.to_hex(dark + mix * (light - dark)) for mix in mixes]
    return [
        {"color": shade, "linestyle": line, "marker": marker}
        for shade, line, marker in zip(shades, _VARIANT_LINES, MARKERS, strict=False)
    ]


def has_data(fig: Figure) -> bool:
    """Whether any of its axes show something: lines at a constant alone, or empty series, do not.

    Example:
        >>> fig = Figure()
        >>> ax = fig.subplots()
        >>> _ = ax.axhline(0), ax.plot([], [])
        >>> has_data(fig)
        False
    """
    return any(np.isfinite(ax.dataLim.get_points()).all() for ax in fig.axes)


def save(fig: Figure, out_dir: str | os.PathLike, name: str, note: str = "") -> None:
    """Write ``out_dir/name.pdf`` and, at 150 dpi, ``name.png``: the same bytes for the same figure.

    Neither dates nor versions go into the files. A file whose bytes would stay is not touched; a
    changed one is replaced whole. The figure stays open, so a notebook still shows it.

    Args:
        fig: ``matplotlib.figure.Figure``.
        out_dir: folder, made if missing.
        name: ``fig_`` and then letters, digits, ``_`` or ``-``.
        note: profile, seeds, subset: written small below the figure.

    Raises:
        ParameterError: another kind of name.
        StoreError: a file cannot be written.

    Example:
        >>> import tempfile
        >>> from matplotlib.figure import Figure
        >>> folder = tempfile.mkdtemp()
        >>> save(Figure(), folder, "fig_1_empty")
        >>> sorted(path.name for path in Path(folder).iterdir())
        ['fig_1_empty.pdf', 'fig_1_empty.png']
    """
    if not _FIGURE_NAME.fullmatch(name):
        raise ParameterError(f"name must be 'fig_' and then letters, digits, _ or -; got {name!r}")
    unsaid = dict.fromkeys(("Creator", "Producer", "CreationDate"))
    nameless = {"pdf": unsaid, "png": {"Software": None}}
    if note:
        lines = textwrap.wrap(note, round(fig.get_figwidth() * 18))
        fig.supxlabel("\n".join(lines), fontsize=7, color="0.35", x=0.01, ha="left")
    for text in fig.findobj(Text):  # names as they are written
        text.set_parse_math(False)
    fig.draw_without_rendering()  # ticks get their labels, the only formulas
    for text in fig.findobj(Text):
        text.set_parse_math(text.get_text().startswith(r"$\mathdefault"))
    with matplotlib.style.context(STYLE):
        for suffix, metadata in nameless.items():
            content = io.BytesIO()
            for ax in fig.axes:  # constrained layout starts from where the last drawing ended
                if ax.get_subplotspec() is not None:
                    ax.set_subplotspec(ax.get_subplotspec())
            fig.savefig(content, format=suffix, dpi=150, metadata=metadata)
            path = Path(out_dir, f"{name}.{suffix}")
            if not (path.is_file() and path.read_bytes() == content.getvalue()):
                write_atomically(path, content.getvalue())


def band(
    ax: Axes,
    x: ArrayLike,
    values: ArrayLike,
    *,
    method: str | None = None,
    label: str | None = None,
    log: bool = False,
    **style: object,
) -> Line2D:
    """Draw the mean over seeds as a line, with its Student-t interval as a band.

    Args:
        ax: axes to draw on.
        x: shape ``(num_points,)``.
        values: shape ``(num_seeds, num_points)``, finite; one seed gives the line only, none
            (all diverged, or not run) an entry in the legend only.
        method: takes style and label from `method_style` and `method_label`.
        label: legend text in place of the method's.
        log: mean and interval of the logarithms, for positive values on a logarithmic axis.
        **style: for ``ax.plot``, over the method's style.

    Returns:
        The line, ``matplotlib.lines.Line2D``.

    Raises:
        ParameterError: a value that is not finite, or not positive with ``log``; an unknown method.

    Example:
        >>> from matplotlib.figure import Figure
        >>> line = band(Figure().subplots(), [1, 2], [[0.2, 0.1], [0.4, 0.1]], method="plain")
        >>> [round(float(y), 6) for y in line.get_ydata()]
        [0.3, 0.1]
    """
    x, values = np.asarray(x), np.asarray(values, dtype=float)
    if method is not None:
        style = method_style(method) | style
        label = method_label(method) if label is None else label
    if not values.size:
        label = label if len(values) else f"{label}: no finished run"
        return ax.plot([], [], label=label, **style)[0]
    style.setdefault("markevery", max(1, len(x) // 8))
    if (x == x.round()).all():
        ax.xaxis.get_major_locator().set_params(integer=True)
    if log and (values <= 0).any():
        raise ParameterError("log = True needs positive values")
    transform, inverse = (np.log, np.exp) if log else (np.array, np.array)
    mean, low, high = inverse([mean_interval(own)[:3] for own in transform(values).T]).T
    (line,) = ax.plot(x, mean, label=label, **style)
    if len(values) > 1:
        ax.fill_between(x, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
    return line


class _PlainLogLocator(ticker.LogLocator):
    """1, 2 and 5 in each decade; decades alone where these are many, more numbers where few."""

    def tick_values(self, vmin, vmax):
        low, high = sorted((vmin, vmax))
        decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.log10(high) + 1)
        few = ticker.MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
        parts = (1, 1.2, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1,)
        ticks = (few, *(np.outer(decades, part).ravel() for part in parts))
        few, fine, many, decades = (t[(low <= t) & (t <= high)] for t in ticks)
        if len(many) < 4 and 2 < len(fine) <= self.numticks:
            return fine
        return few if len(many) < 2 else many if len(many) <= self.numticks else decades


def log_axis(axis: Axis) -> None:
    """Make an axis (``ax.yaxis``) logarithmic, with plain numbers: 1, 2 and 5, fewer or more.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> log_axis(ax.yaxis)
        >>> _ = ax.set_ylim(3, 60)
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['5', '10', '20', '50']
    """
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(_PlainLogLocator(numticks=8 if axis.axis_name == "y" else 5))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _=None: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())


def intervals(
    ax: Axes,
    labels: Sequence[str],
    differences: Sequence[Interval | PairedDifference | None],
    *,
    missing: str = "",
    styles: Sequence[Mapping] | None = None,
    **style: object,
) -> None:
    """Means with their intervals, one row each from the top down, and a line at zero; a mean
    without an interval says why.

    Args:
        ax: axes to draw on.
        labels: one text a row.
        differences: `PairedDifference` or `Interval`, or ``None`` where there is none.
        missing: what the rows without one say.
        styles: one a row, over ``style``.
        **style: colour and marker, as from `method_style`; a line style is ignored.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from hardtrain.statistics import mean_interval
        >>> ax = Figure().subplots()
        >>> intervals(ax, ["a", "b"], [mean_interval([0.1, 0.3]), None], color="black")
        >>> [tick.get_text() for tick in ax.get_yticklabels()]
        ['a', 'b']
    """
    style = {"marker": "o"} | style
    ax.axvline(0, color="0.6", linewidth=1)
    bare = []
    at_edge = {"transform": ax.get_yaxis_transform(), "fontsize": 7, "va": "center", "ha": "right"}
    for row, gap in enumerate(differences):
        if gap is None:
            ax.text(0.99, row, missing, color="0.5", **at_edge)
            continue
        half = gap.half_width if np.isfinite(gap.half_width) else None  # no interval
        look = style | (styles[row] if styles else {}) | {"linestyle": "none"}
        ax.errorbar(gap.mean, row, xerr=half, capsize=3, **look)
        if not half:
            why = "one seed, no interval" if np.isnan(gap.half_width) else "equal in every seed"
            bare.append((why, (gap.mean, row)))
    look = {"textcoords": "offset points", "fontsize": 7, "va": "center"}
    for why, at in bare:  # on the side that has more room
        away, side = (6, "left") if at[0] <= np.mean(ax.get_xlim()) else (-6, "right")
        ax.annotate(why, at, xytext=(away, 0), ha=side, **look)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)


def beside_printed(
    ax: Axes,
    labels: Sequence[str],
    differences: Sequence[Interval | PairedDifference | None],
    printed: Sequence[float],
    **style: object,
) -> None:
    """`intervals`, and in each row the paper's number, a hollow cross; nan where it prints none.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> beside_printed(ax, ["a", "b"], [None, None], [0.3, np.nan])
        >>> [line.get_xdata().tolist() for line in ax.lines if line.get_label() == "paper"]
        [[0.3]]
    """
    intervals(ax, labels, differences, missing=_NO_PAIR, **style)
    style.pop("styles", None)  # of the rows; the legend's entry stands for all of them
    rows = np.flatnonzero(~np.isnan(printed))
    look = {"marker": "X", "markersize": 9, "markerfacecolor": "none", "linestyle": "none"}
    ax.plot(np.asarray(printed)[rows], rows, color="black", label="paper", zorder=3, **look)
    ax.errorbar([], [], [], label="here, 95 % interval", **{"marker": "o", "color": "0.4"} | style)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def learning_curves(
    ax: Axes,
    history: pd.DataFrame,
    arms: Mapping[str, Sequence[Run]],
    column: str = "test_error",
    *,
    scale: float = 100.0,
    styles: Mapping[str, Mapping] | None = None,
) -> None:
    """A `band` for each arm over the epochs: a column of the history, mean and interval over the
    runs that reached the end.

    Args:
        ax: axes to draw on.
        history: of the runs.
        arms: runs by method, or by label where ``styles`` has the style of each.
        column: of the history; times ``scale``, so that fractions are in %.
    """
    for name, arm in arms.items():
        epochs, values = curves(history, arm, column)
        style = {"method": name} if styles is None else {"label": name} | styles[name]
        band(ax, epochs, scale * values, **style)
    ax.set_xlabel("epoch")


def arm_differences(
    ax: Axes,
    results: pd.DataFrame,
    arms: Mapping[str, Sequence[Run]],
    baseline: Sequence[Run],
    metric: Metric = TEST_ERROR,
    **style: object,
) -> None:
    """`intervals` of each arm's paired difference to one baseline.

    Args:
        ax: axes to draw on.
        results: of the runs.
        arms: runs by label.
        baseline: runs.
        metric: what is compared.
        **style: as of `intervals`.
    """
    gaps = [difference(results, arm, baseline, metric) for arm in arms.values()]
    intervals(ax, list(arms), gaps, missing=_NO_PAIR, **style)


def image_grid(
    images: np.ndarray, titles: Sequence[str], *, columns: int = 10, size: float = 0.9
) -> Figure:
    """Small images in rows, unsmoothed, each with its caption below.

    Args:
        images: uint8, ``(N, C, H, W)`` with C 1 or 3.
        titles: N captions; line breaks are allowed.
        columns: images per row.
        size: side of an image in inches.

    Example:
        >>> figure = image_grid(np.zeros((3, 1, 8, 8), dtype=np.uint8), ["a", "b", "c"])
        >>> len(figure.axes)
        3
    """
    import matplotlib.pyplot as plt  # here, so that importing hardtrain needs no display

    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    lines = max(title.count("\n") + 1 for title in titles)
    figsize = (columns * (size + 0.15), rows * (size + 0.1 + 0.16 * lines))
    fig, axes = plt.subplots(rows, columns, figsize=figsize, squeeze=False, layout="constrained")
    for ax in axes.flat[len(images) :]:
        ax.remove()
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        ax.imshow(image.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
        ax.set(xticks=[], yticks=[])
        ax.set_xlabel(title, fontsize=8, labelpad=2, parse_math=False)
        ax.spines[:].set_visible(False)
    return fig
