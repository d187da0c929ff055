"""Gradient noise and large mini-batches: the figures, in the paper's colours."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hardtrain.papers.gradient_noise.curvature import noise_term
from hardtrain.papers.gradient_noise.figures import READINGS
from hardtrain.report import plotting
from hardtrain.statistics import PairedDifference

_PAPER_LOOKS = {32: ("#CC3311", "o"), 64: ("#0077BB", "s"), 128: ("#009E73", "^")}  # of figure 4
_FURTHER_LOOKS = (("#EE7733", "v"), ("#AA3377", "P"), ("#777777", "X"))
_SIDES = {"val": ("-", "validation"), "train": (":", "training set")}
Styles = Mapping[object, Mapping]


def batch_styles(batch_sizes: Sequence[int]) -> dict[int, dict]:
    """The paper's colours, red, blue and green for 32, 64 and 128, and a marker for each. Where
    other sizes are among ours, both go by rank, from the smallest."""
    names = batch_sizes if set(batch_sizes) <= set(_PAPER_LOOKS) else list(_PAPER_LOOKS)
    looks = [*(_PAPER_LOOKS[name] for name in names), *_FURTHER_LOOKS]
    return {
        size: {"color": colour, "linestyle": "-", "marker": marker, "markersize": 4}
        for size, (colour, marker) in zip(batch_sizes, looks, strict=False)
    }


def noise_style() -> dict:
    """Black, as in figure 7."""
    return plotting.method_style("gradient_noise") | {"color": "black"}


def mean_and_seeds(ax: Axes, x: np.ndarray, values: np.ndarray, *, label: str, **style) -> None:
    """Draw the mean over seeds as a line, and each seed as a thin one.

    Args:
        ax: axes to draw on.
        x: shape ``(T,)``.
        values: shape ``(S, T)``; without a seed the legend says so.
        label, **style: of the mean, as in `plotting.band`.
    """
    mean = values.mean(axis=0, keepdims=True) if len(values) else values
    line = plotting.band(ax, x, mean, label=label, **style)
    thin = {"color": line.get_color(), "linestyle": line.get_linestyle(), "linewidth": 0.4}
    if values.size:
        ax.plot(x, values.T, **thin)


def _finite(values: np.ndarray) -> np.ndarray:
    """The seeds ``(S, T)`` all of whose values are finite."""
    return values[np.isfinite(values).all(axis=1)]


def draw_interpolations(
    lines: Mapping[str, np.ndarray], styles: Mapping[int, Mapping], smallest: int
) -> Figure:
    """Figure 6: accuracy between the network of the smallest batch and those of the others, for
    both readings of batch-norm's statistics. ``lines``: of `interpolations`."""
    fig, axes = plt.subplots(1, 2, figsize=(7, 2.9), sharey=True)
    for reading, ax in enumerate(axes):
        for row, (size, style) in enumerate(styles.items()):
            for side, (line, _) in _SIDES.items():
                accuracies = _finite(100 * lines[f"{side}_accuracy"][reading, row])
                label = f"B = {smallest} to {size}" if side == "val" else "_"
                look = {**style, "linestyle": line, "label": label}
                mean_and_seeds(ax, lines["alphas"], accuracies, **look)
        to = f"a (0: B = {smallest}, 1: the larger batch)"
        ax.set(xlabel=to, title=f"batch-norm {READINGS[reading]}")
    axes[0].set_ylabel("accuracy (%)")
    axes[0].legend(loc="lower center")
    return fig


def draw_same_rate(lines: Mapping[str, np.ndarray], smallest: int, largest: int) -> Figure:
    """Figure 2: loss and accuracy on the line between two networks of one learning rate."""
    fig, axes = plt.subplots(1, 2, figsize=(7, 2.7))
    for side, (line, label) in _SIDES.items():
        look = {"label": label, "linestyle": line, "color": "black"}
        plotting.band(
            axes[0], lines["alphas"], _finite(lines[f"{side}_loss"][0, 0]), log=True, **look
        )
        accuracies = _finite(100 * lines[f"{side}_accuracy"][0, 0])
        mean_and_seeds(axes[1], lines["alphas"], accuracies, **look)
    for ax in axes:
        ax.set(xlabel=f"a (0: B = {smallest}, 1: B = {largest})")
    axes[0].set_ylabel("loss (nats)")
    plotting.log_axis(axes[0].yaxis)
    low = max(0, axes[1].get_ylim()[0])
    axes[1].set(ylabel="accuracy (%)", ylim=(low, 100 + 0.03 * (100 - low)))
    axes[1].legend(loc="lower left")
    return fig


def draw_directions(walks: Mapping[str, np.ndarray], styles: Styles) -> Figure:
    """Loss away from networks in random directions. ``walks``: of `random_directions`;
    ``styles``: by the networks' names."""
    fig, axes = plt.subplots(1, 2, figsize=(7, 2.7))
    for ax, side, title in zip(axes, ("train", "val"), ("training set", "validation"), strict=True):
        for (label, style), losses in zip(styles.items(), walks[f"{side}_loss"], strict=True):
            look = {**style, "label": label, "log": True}
            plotting.band(ax, walks["distances"], _finite(losses), **look)
        ax.set(xlabel="distance (filter lengths)", title=title, xticks=[-1, -0.5, 0, 0.5, 1])
        plotting.log_axis(ax.yaxis)
    axes[0].set_ylabel("loss (nats)")
    axes[1].legend(loc="upper center")
    return fig


def draw_sharpness(
    eigenvalues: Mapping[tuple, np.ndarray], ratios: Sequence[float], styles: Mapping[int, Mapping]
) -> Figure:
    """Figure 3: largest eigenvalues over η/B, by kind of training, batch size and ratio."""
    kinds = dict.fromkeys(kind for kind, _, _ in eigenvalues)
    fig, axes = plt.subplots(1, len(kinds), figsize=(7, 2.8), sharey=True)
    for ax, kind in zip(axes, kinds, strict=True):
        for size, style in styles.items():
            by_seed = np.array([eigenvalues[kind, size, ratio] for ratio in ratios]).T
            known = by_seed[(by_seed > 0).all(axis=1)]  # nan is not
            plotting.band(ax, np.array(ratios), known, label=f"B = {size}", log=True, **style)
        ax.set(xlabel="η / B", xscale="log", title=kind)
        plotting.log_axis(ax.yaxis)
        ax.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
        ax.minorticks_off()
    axes[0].set_ylabel("largest eigenvalue")
    axes[-1].legend()
    return fig


def draw_own_noise(
    trace: np.ndarray, added: np.ndarray, *, batch_sizes: Sequence[int], lr: float
) -> Figure:
    """Left: the noise term of equation 7 by batch size, for three rules for the rate, at the start.
    Right: how long the noise is that is added, beside what the largest batch lacks against the
    smallest.

    Args:
        trace: tr Σ, mean over seeds, at the start and at the end of the training with noise.
        added: length of the added noise at each step.
        batch_sizes: B, ascending.
        lr: rate of the smallest.
    """
    smallest, largest = batch_sizes[0], batch_sizes[-1]
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.9))
    rules = {"same rate": (0, ":"), "square root": (0.5, "--"), "linear (paper)": (1, "-")}
    for rule, (power, line) in rules.items():
        terms = [noise_term(trace[0], lr * (B / smallest) ** power, B) for B in batch_sizes]
        left.plot(batch_sizes, terms, color="black", linestyle=line, label=rule)
    left.set(xlabel="B", ylabel="length of the noise in a step", xscale="log")
    left.set_xticks(batch_sizes, batch_sizes)
    left.minorticks_off()
    left.set_title("by rule for the rate, at the start")
    steps = np.unique(np.geomspace(1, len(added), 60).round()).astype(int)
    right.plot(steps, added[steps - 1], label="added noise", markevery=9, **noise_style())
    for label, value, line in zip(("start", "end"), trace, ("-", "--"), strict=True):
        lack = {"color": "0.5", "linestyle": line, "label": f"lacking at the {label}"}
        right.axhline((value * (1 / smallest - 1 / largest)) ** 0.5, **lack)
    right.set(xlabel="step", ylabel="length of the noise")
    plotting.log_axis(right.xaxis)
    right.set_title(f"what B = {largest} lacks against {smallest}")
    for ax in (left, right):
        plotting.log_axis(ax.yaxis)
        ax.set_ylim(top=2.5 * ax.get_ylim()[1])  # room for the legend
        ax.legend(loc="upper left" if ax is left else "upper right")
    return fig


def draw_grid(
    gaps: Mapping[tuple[float, float], PairedDifference | None],
    small: PairedDifference | None,
    smallest: int,
    color: str,
) -> Figure:
    """Differences to no noise by γ and α, side by side, and the ``small`` batch's to the same, with
    its interval as a band in ``color``."""
    fig, ax = plt.subplots(figsize=(5, 2.9))
    gammas = dict.fromkeys(gamma for gamma, _ in gaps)
    looks = plotting.variant_styles("plain", len(gammas))  # black, as noise is
    for row, (gamma, look) in enumerate(zip(gammas, looks, strict=True)):
        known = [(a, gap) for (g, a), gap in gaps.items() if g == gamma and gap is not None]
        shift = 1.12 ** (row - (len(gammas) - 1) / 2)
        bars = [gap.half_width if np.isfinite(gap.half_width) else 0 for _, gap in known]
        places, means = [a * shift for a, _ in known], [gap.mean for _, gap in known]
        ax.errorbar(places, means, bars, capsize=2, label=f"γ = {gamma:g}", **look)
    ax.axhline(0, color="0.6", linewidth=1)
    if small is not None:
        ax.axhline(small.mean, color=color, linestyle=":", label=f"B = {smallest}, no noise")
        if np.isfinite(small.half_width):
            ax.axhspan(small.low, small.high, color=color, alpha=0.15, linewidth=0)
    alphas = [alpha for _, alpha in gaps]
    ax.set(xlabel="α", xlim=(min(alphas) / 2, 2 * max(alphas)))
    plotting.log_axis(ax.xaxis)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig
