"""One style for all figures: colours by method, bands over seeds, image grids, t-SNE, saving."""

import io
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import colors, ticker

from hardtrain.errors import ParameterError, unknown_name
from hardtrain.files import write_atomically
from hardtrain.report.tables import TEST_ERROR, Metric, curves, difference
from hardtrain.statistics import mean_interval

# label, colour (Okabe-Ito, Tol's muted), line style, marker: in grey the last two tell them apart
_METHODS = {
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
}
METHODS = {method: entry[0] for method, entry in _METHODS.items()}  # method -> label for legends
_CYCLE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_CLASS_COLOURS = [
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"),
    *("#D55E00", "#332288", "#999933", "#882255", "#808080"),
]
_CLASS_MARKERS = "os^Dv<>PX*"
_FIGURE_NAME = re.compile(r"fig_[A-Za-z0-9][A-Za-z0-9_-]*")
_FILE_SETTINGS = {
    "pdf.fonttype": 42,  # TrueType, so that text can be searched and edited
    "pdf.compression": 6,
    "svg.hashsalt": "hardtrain",
    "savefig.bbox": None,
    "savefig.pad_inches": 0.1,
    "savefig.transparent": False,
}


def use_style() -> None:
    """Set the style of every notebook; call it once, after the imports.

    A figure of two panels, 7 x 2.8 inches, shows at 560 x 224 pixels inline and is saved at 150
    dpi. For a legend shared by its panels: ``fig.legend(..., loc="outside lower center")``.

    Example:
        >>> use_style()
        >>> matplotlib.rcParams["pdf.fonttype"]
        42
    """
    matplotlib.rcParams.update(
        _FILE_SETTINGS
        | {
            "figure.figsize": (4.2, 2.8),
            "figure.dpi": 80,
            "figure.constrained_layout.use": True,
            "savefig.dpi": 150,
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so it is everywhere
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.labelsize": 9,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "legend.fontsize": 8,
            "legend.frameon": False,
            "legend.handlelength": 2.6,  # long enough to show a dash pattern
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.8,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.prop_cycle": matplotlib.cycler(color=_CYCLE),
            "grid.color": "#E6E6E6",
            "grid.linewidth": 0.6,
            "lines.linewidth": 1.6,
            "lines.markersize": 4.5,
            "image.interpolation": "nearest",
        }
    )


def method_style(method: str) -> dict:
    """The colour, line style and marker that a method has in all notebooks.

    Args:
        method: one of ``METHODS``.

    Returns:
        ``{"color", "linestyle", "marker"}``, to be passed to ``ax.plot``.

    Raises:
        ParameterError: unknown method; the text names the nearest known one.

    Example:
        >>> method_style("trimming")
        {'color': '#D55E00', 'linestyle': '--', 'marker': 's'}
    """
    if method not in _METHODS:
        raise unknown_name("method", method, _METHODS)
    return dict(zip(("color", "linestyle", "marker"), _METHODS[method][1:], strict=True))


def method_label(method: str) -> str:
    """The name of a method in legends and tables.

    Example:
        >>> method_label("gradient_noise")
        'Gradient noise'
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    return METHODS[method]


def variant_styles(method: str, num: int) -> list[dict]:
    """Styles for ``num`` settings of one method (a sweep of delta, say), from dark to light.

    All have the method's hue; line styles and markers differ, and so does the lightness.

    Raises:
        ParameterError: unknown method, or ``num`` not in 1..8.

    Example:
        >>> [style["marker"] for style in variant_styles("hard_batches", 3)]
        ['o', 's', '^']
    """
    if not 1 <= num <= 8:
        raise ParameterError(f"num must be in 1..8; got {num}")
    base = np.array(colors.to_rgb(method_style(method)["color"]))
    dark, light = 0.55 * base, base + 0.55 * (1 - base)
    lines = ["-", "--", "-.", (0, (1, 1)), (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (5, 3)), (0, (1, 2))]
    mixes = np.linspace(0, 1, num) if num > 1 else [0.5]
    return [
        {
            "color": colors.to_hex(dark + mix * (light - dark)),
            "linestyle": lines[i],
            "marker": _CLASS_MARKERS[i],
        }
        for i, mix in enumerate(mixes)
    ]


def save(fig, out_dir, name: str, note: str = "") -> None:
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
    if not isinstance(name, str) or not _FIGURE_NAME.fullmatch(name):
        raise ParameterError(f"name must be 'fig_' and then letters, digits, _ or -; got {name!r}")
    nameless = {
        "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
        "png": {"Software": None},
    }
    if note:
        lines = textwrap.wrap(note, round(fig.get_figwidth() * 18))
        fig.supxlabel("\n".join(lines), fontsize=7, color="0.35", x=0.01, ha="left")
    with matplotlib.rc_context(_FILE_SETTINGS):
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
    ax, x, values, *, method: str | None = None, label: str | None = None,
    confidence: float = 0.95, log: bool = False, **style,
):  # fmt: skip
    """Draw the mean over seeds as a line, with its Student-t interval as a band.

    Args:
        ax: axes to draw on.
        x: shape ``(num_points,)``.
        values: shape ``(num_seeds, num_points)``, finite; one seed gives the line only, none
            (all runs diverged) an entry in the legend only.
        method: takes style and label from `method_style` and `method_label`.
        label: legend text in place of the method's.
        confidence: of the band, in (0, 1).
        log: mean and interval of the logarithms, for positive values on a logarithmic axis.
        **style: for ``ax.plot``, over the method's style.

    Returns:
        The line, ``matplotlib.lines.Line2D``.

    Raises:
        ParameterError: shapes that do not fit, a value that is not finite, or an unknown method.

    Example:
        >>> from matplotlib.figure import Figure
        >>> line = band(Figure().subplots(), [1, 2], [[0.2, 0.1], [0.4, 0.1]], method="plain")
        >>> [round(float(y), 6) for y in line.get_ydata()]
        [0.3, 0.1]
    """
    x, values = np.asarray(x), np.asarray(values, dtype=float)
    if values.ndim != 2 or x.shape != values.shape[1:]:
        raise ParameterError(
            "values must have shape (num_seeds, num_points) and x (num_points,); "
            f"got {values.shape} and {x.shape}"
        )
    if method is not None:
        style = method_style(method) | style
        label = method_label(method) if label is None else label
    if not values.size:
        return ax.plot([], [], label=label if len(values) else f"{label}: all diverged", **style)[0]
    style.setdefault("markevery", max(1, len(x) // 8))
    if (x == x.round()).all():
        ax.xaxis.get_major_locator().set_params(integer=True)
    if log and (values <= 0).any():
        raise ParameterError("log = True needs positive values")
    drawn = np.log(values) if log else values
    intervals = [mean_interval(column, confidence) for column in drawn.T]
    mean, low, high = np.array([interval[:3] for interval in intervals]).T
    if log:
        mean, low, high = np.exp(mean), np.exp(low), np.exp(high)
    (line,) = ax.plot(x, mean, label=label, **style)
    if len(values) > 1:
        ax.fill_between(x, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
    return line


class _PlainLogLocator(ticker.LogLocator):
    """1, 2 and 5 in each decade; decades alone where these are many, round numbers where few."""

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def tick_values(self, vmin, vmax):
        low, high = sorted((vmin, vmax))
        decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.log10(high) + 1)
        round_numbers = ticker.MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
        found = np.outer(decades, (1, 2, 5)).ravel(), decades, round_numbers
        many, decades, few = (ticks[(low <= ticks) & (ticks <= high)] for ticks in found)
        return few if len(many) < 2 else many if len(many) <= self.most else decades


def log_axis(axis) -> None:
    """Make an axis (``ax.yaxis``, ``ax.xaxis``) logarithmic, with plain numbers at 1, 2 and 5 in
    each decade, or at decades where these would be too many; within less, at round numbers.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> log_axis(ax.yaxis)
        >>> _ = ax.set_ylim(3, 60)
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['5', '10', '20', '50']
    """
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(_PlainLogLocator(most=8 if axis.axis_name == "y" else 5))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _=None: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())


def intervals(ax, labels, differences, **style) -> None:
    """Means with their intervals, one row each from the top down, and a line at zero.

    Args:
        ax: axes to draw on.
        labels: one text a row.
        differences: `PairedDifference` or `Interval`, or ``None`` for an empty row.
        **style: colour and marker, as from `method_style`; a line style is ignored.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from hardtrain.statistics import mean_interval
        >>> ax = Figure().subplots()
        >>> intervals(ax, ["a", "b"], [mean_interval([0.1, 0.3]), None], color="black")
        >>> [tick.get_text() for tick in ax.get_yticklabels()]
        ['a', 'b']
    """
    style = {"marker": "o"} | style | {"linestyle": "none"}
    ax.axvline(0, color="0.6", linewidth=1)
    for row, found in enumerate(differences):
        if found is not None:
            half = None if np.isnan(found.half_width) else found.half_width  # one seed: no interval
            ax.errorbar(found.mean, row, xerr=half, capsize=3, **style)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)


def learning_curves(
    ax, history, arms, column: str = "test_error", *, scale: float = 100.0, styles=None
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


def arm_differences(ax, results, arms, baseline, metric: Metric = TEST_ERROR, **style) -> None:
    """`intervals` of each arm's paired difference to a baseline.

    Args:
        ax: axes to draw on.
        results: of the runs.
        arms: runs by label.
        baseline: runs, or runs by label.
        metric: what is compared.
        **style: as of `intervals`.
    """
    others = baseline if isinstance(baseline, Mapping) else dict.fromkeys(arms, baseline)
    gaps = [difference(results, arm, others[name], metric) for name, arm in arms.items()]
    intervals(ax, list(arms), gaps, **style)


def image_grid(images, *, titles=None, columns: int = 8, size: float = 0.9):
    """Small images in rows, unsmoothed, each with its caption below.

    Args:
        images: uint8, ``(N, C, H, W)`` with C 1 or 3, array or tensor.
        titles: N captions, or none; line breaks are allowed.
        columns: images per row.
        size: side of an image in inches.

    Returns:
        ``matplotlib.figure.Figure``.

    Raises:
        ParameterError: another dtype or shape, no image, or not N titles.

    Example:
        >>> figure = image_grid(np.zeros((3, 1, 8, 8), dtype=np.uint8), titles=["a", "b", "c"])
        >>> len(figure.axes)
        3
    """
    import matplotlib.pyplot as plt  # here, so that importing hardtrain needs no display

    images = np.asarray(images.detach().cpu() if hasattr(images, "detach") else images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ParameterError(
            f"images must be uint8 (N, 1 or 3, H, W); got {images.dtype} {images.shape}"
        )
    titles = [""] * len(images) if titles is None else [str(title) for title in titles]
    if not len(images) or len(titles) != len(images) or columns < 1:
        raise ParameterError(
            "need at least one image, a title for each, and a column; "
            f"got {len(images)} images, {len(titles)} titles, {columns} columns"
        )
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    lines = max(title.count("\n") + 1 if title else 0 for title in titles)
    figsize = (columns * (size + 0.15), rows * (size + 0.1 + 0.16 * lines))
    fig, axes = plt.subplots(rows, columns, figsize=figsize, squeeze=False, layout="constrained")
    for ax in axes.flat[len(images) :]:
        ax.remove()
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        ax.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_xlabel(title, fontsize=8, labelpad=2)
        ax.spines[:].set_visible(False)
    return fig
