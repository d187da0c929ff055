"""Gradient noise and large mini-batches: the share of the gap, and the tables beside the paper's.

An *arm* is a list of runs that differ in their seed alone; accuracies are in %.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from hardtrain.papers import load_table
from hardtrain.papers.gradient_noise.curvature import GradientNoiseScale, noise_term
from hardtrain.report.tables import (
    MISSING,
    Arms,
    Metric,
    Protocol,
    arms_table,
    describe,
    describe_values,
    difference,
    metric_by_seed,
    per_run,
    verdict_cells,
)
from hardtrain.report.text import format_number
from hardtrain.runs.run import Run
from hardtrain.statistics import Verdict, holm_corrected, verdict_single

ACCURACY = Metric("accuracy")
TRAIN_ACCURACY = Metric("train_accuracy")
Cell = tuple[str, str, str, int]


class Share(NamedTuple):
    """Part of a gap that was recovered, and its bounds over ``n`` common seeds."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n == 0:
            return ""
        if math.isinf(self.high):
            return f"the gap is not resolved (n = {self.n})"
        bounds = f" [{100 * self.low:z.0f}, {100 * self.high:z.0f}]" if self.n > 1 else ""
        return f"{100 * self.mean:z.0f} %{bounds} (n = {self.n})"


def share_of_gap(small: pd.Series, large: pd.Series, treated: pd.Series) -> Share:
    r"""Which part of the gap between small and large batches the treatment of the large recovers.

    .. math:: r = \frac{\overline{treated - large}}{\overline{small - large}}

    The bounds are Fieller's, for 95 %: all r for which the paired t interval of
    (treated - large) - r (small - large) contains 0. They are not symmetric, and where the gap
    itself may be zero they exclude no r at all (bounds -inf, inf).

    Args:
        small, large, treated: a number for each seed; seeds that one of them lacks are left out.

    Returns:
        ``Share(mean, low, high, n)``; one seed gives nan bounds, none a nan mean.

    Example:
        >>> accuracy = {"small": [90.0, 91.0, 92.0], "large": [80.0, 80.0, 81.0]}
        >>> small, large = (pd.Series(values) for values in accuracy.values())
        >>> print(share_of_gap(small, large, pd.Series([84.0, 85.0, 86.0])))
        44 % [35, 50] (n = 3)
    """
    sides = pd.concat({"gain": treated - large, "gap": small - large}, axis=1).dropna()
    n, gain, gap = len(sides), *sides.mean()
    mean = float(gain / gap) if gap else math.nan
    if n < 2:
        return Share(mean, math.nan, math.nan, n)
    (gain_variance, covariance), (_, gap_variance) = sides.cov().to_numpy()
    factor = float(stdtrit(n - 1, 0.975)) ** 2 / n
    # where a r^2 - 2 b r + c <= 0
    a = gap**2 - factor * gap_variance
    b = gain * gap - factor * covariance
    c = gain**2 - factor * gain_variance
    if a <= 0:
        return Share(mean, -math.inf, math.inf, n)
    root = math.sqrt(max(0.0, b**2 - a * c))
    return Share(mean, float((b - root) / a), float((b + root) / a), n)


def with_accuracies(results: pd.DataFrame) -> pd.DataFrame:
    """Results with ``accuracy`` (validation) and ``train_accuracy`` beside the errors, in %; nan
    where no run has the error."""
    errors = {"accuracy": "test_error", "train_accuracy": "train_set_error"}
    accuracies = {name: 100 * (1 - results.get(error, math.nan)) for name, error in errors.items()}
    return results.assign(**accuracies)


def printed_accuracies() -> pd.DataFrame:
    """Table 2 and the accuracies of section 4.3, by ``dataset``, ``network``, ``method`` and
    ``batch_size`` in our names: ``accuracy`` (%), ``half_range`` and ``num_runs``.

    The numbers of runs without noise are not stated; they are taken as one.

    Example:
        >>> printed_accuracies().loc[("caltech101", "resnet50", "plain", 32), "accuracy"]
        np.float64(74.45)
    """
    table, text = load_table("gradient_noise_table2"), load_table("gradient_noise_text")
    rows = pd.concat([text, table[table["condition"] == "noise"]], ignore_index=True)
    names = {"accuracy_pct": "accuracy", "pm_pct": "half_range", "n_runs_stated": "num_runs"}
    methods = rows["condition"].map({"no noise": "plain", "noise": "gradient_noise"})
    rows = rows.assign(dataset="caltech101", network="resnet50", method=methods)
    rows = rows.rename(columns=names).fillna({"num_runs": 1})
    rows = rows.set_index(["dataset", "network", "method", "batch_size"])
    return rows[["accuracy", "half_range", "num_runs"]]


def late_accuracy(history: pd.DataFrame, results: pd.DataFrame, arm: Sequence[Run]) -> pd.Series:
    """Accuracy (%) by seed, mean over the evaluations of the last tenth of the epochs."""

    def late(run: Run, rows: pd.DataFrame) -> float:
        return 100 * (1 - rows["test_error"][rows["epoch"] > 0.9 * run.epochs].mean())

    return per_run(history, results, arm, late)


def accuracy_table(
    results: pd.DataFrame, history: pd.DataFrame, arms: Arms, protocol: Protocol
) -> pd.DataFrame:
    """Table 2 and the numbers of section 4.3: validation accuracy by batch size, with and without
    noise, printed and ours, first the paper's cells, then those that only we ran.

    Args:
        results: `with_accuracies`, of runs that evaluated the training set, too.
        history: of the same runs.
        arms: runs by data set, network, method and batch size.
        protocol: whether ours is the paper's.
    """
    printed = printed_accuracies()
    rows = []
    for cell in dict.fromkeys([*printed.index, *arms]):
        accuracy, half_range, num_runs = printed.reindex([cell]).iloc[0]
        dataset, network, method, size = cell
        arm, noise = arms.get(cell, ()), "no" if method == "plain" else "yes"
        row = {"data set": dataset, "network": network, "B": size, "noise": noise}
        row["paper (%)"] = format_number(accuracy, 2)
        if not math.isnan(half_range):
            row["paper (%)"] += f" ± {half_range:.2f}"
        row["here: last epoch (%)"] = describe(results, arm, ACCURACY)
        row["here: last tenth (%)"] = describe_values(late_accuracy(history, results, arm), 2)
        row["here: training set (%)"] = describe(results, arm, TRAIN_ACCURACY)
        outcome = Verdict(MISSING, protocol.not_run)
        if len(arm):
            is_printed = not math.isnan(accuracy)
            outcome = verdict_single(
                accuracy,
                metric_by_seed(results, arm, "accuracy"),
                num_runs=num_runs,
                comparable=protocol.comparable and is_printed,
                reason=protocol.reason if is_printed else "the paper has no such cell",
            )
        rows.append(row | {"verdict": outcome.word, "why": outcome.reason})
    return pd.DataFrame(rows)


def difference_table(results: pd.DataFrame, arms: Arms, protocol: Protocol) -> pd.DataFrame:
    """Paired differences of validation accuracy (points): each batch size to the smallest without
    noise, and noise to none at each batch size, with verdicts, and with the share of the gap to
    the smallest batch size that it recovers (`share_of_gap`); arguments as in `accuracy_table`.

    The paper has no run with noise at its smallest batch size.
    """
    printed = printed_accuracies()["accuracy"]
    rows, comparisons = [], _comparisons(printed.index, arms)
    found = [
        difference(results, arms.get(cell, ()), arms.get(base, ()), ACCURACY)
        for cell, base, _ in comparisons
    ]
    for (cell, base, small), here in zip(comparisons, holm_corrected(found), strict=True):
        dataset, network, method, size = cell
        what = f"noise minus no noise, B = {size}"
        if method == "plain":
            what = f"B = {size} minus B = {base[3]}, no noise"
        row = {"data set": dataset, "network": network, "accuracy (points)": what}
        cells = small, base, cell
        at_small, at_base, at_cell = (printed.get(cell, math.nan) for cell in cells)
        gain = at_cell - at_base
        was_run = cell in arms and base in arms
        row |= verdict_cells(here, gain, protocol, was_run=was_run)
        row |= {"share, paper": "", "share, here": ""}
        if base != small:
            printed_share = gain / (at_small - at_base)
            row["share, paper"] = "–" if math.isnan(gain) else f"{printed_share:.0%}"
            by_seed = (metric_by_seed(results, arms.get(cell, ()), "accuracy") for cell in cells)
            row["share, here"] = str(share_of_gap(*by_seed))
        row["seeds that did not learn"] = "; ".join(
            f"B = {side[3]}, {'no noise' if side[2] == 'plain' else 'noise'}: {seeds}"
            for side in (base, cell)
            if (seeds := not_learnt(results, arms.get(side, ())))
        )
        rows.append(row)
    table = pd.DataFrame(rows)
    table.attrs["questions"] = sum(gap is not None and not math.isnan(gap.p) for gap in found)
    return table


def not_learnt(results: pd.DataFrame, arm: Sequence[Run]) -> str:
    """The seeds of an arm that diverged, or ended with less than half of the training images
    right: one such seed makes the arm's interval wide, and its mean says little."""
    accuracies = metric_by_seed(results, arm, "train_accuracy")
    low = [f"seed {seed} ({value:.2f} %)" for seed, value in accuracies.items() if value < 50]
    rows = results[results["key"].isin([run.key for run in arm])].drop_duplicates("key")
    gone = rows[rows["status"] == "diverged"]["seed"]
    return ", ".join([*low, *(f"seed {seed} (diverged)" for seed in gone)])


def treatments_table(
    results: pd.DataFrame, arms: Mapping[str, Sequence[Run]], *, small: str, large: str
) -> pd.DataFrame:
    """What brings the large batch's accuracy nearer to the small one's: a row for each arm, with
    its difference to the arm ``large``, and the share of the gap between ``small`` and ``large``
    that it recovers, if it has the large batch size. ``results``: `with_accuracies`."""
    shown = {"accuracy (%)": ACCURACY, "training set (%)": TRAIN_ACCURACY}
    table = arms_table(results, arms, shown, baselines={large: large})
    table.insert(1, "B", [arm[0].batch_size for arm in arms.values()])
    table.insert(2, "η", [f"{arm[0].lr:.3g}" for arm in arms.values()])
    table.insert(3, "epochs", [arm[0].epochs for arm in arms.values()])
    by_seed = {name: metric_by_seed(results, arm, "accuracy") for name, arm in arms.items()}
    shares = [str(share_of_gap(by_seed[small], by_seed[large], by_seed[name])) for name in arms]
    is_treated = (table["B"] == arms[large][0].batch_size) & (table["arm"] != large)
    return table.assign(**{"share of the gap": np.where(is_treated, shares, "")})


def lines_table(
    lines: Mapping[str, np.ndarray], names: Sequence[str], *, reading: int = 0
) -> pd.DataFrame:
    """Validation accuracy (%) between two networks: at both ends and at the lowest point between
    them, and how far that lies below the lower end, over seeds.

    Args:
        lines: of `interpolations`.
        names: of its pairs.
        reading: of batch-norm's statistics, as in ``READINGS``.
    """
    inside = (lines["alphas"] >= 0) & (lines["alphas"] <= 1)
    rows = []
    for name, curves in zip(names, 100 * lines["val_accuracy"][reading], strict=True):
        known = curves[np.isfinite(curves).all(axis=1)][:, inside]
        lowest = known.min(axis=1)
        columns = {"a = 0": known[:, 0], "lowest": lowest, "a = 1": known[:, -1]}
        columns["lowest minus the lower end (points)"] = lowest - known[:, [0, -1]].min(axis=1)
        rows.append({"line": name} | {key: describe_values(v, 2) for key, v in columns.items()})
    return pd.DataFrame(rows)


def directions_table(walks: Mapping[str, np.ndarray], names: Sequence[str]) -> pd.DataFrame:
    """Training loss (nats) of each network, and its rise half a filter's length away in a random
    direction, mean of both sides, over seeds. ``walks``: of `random_directions`."""
    distances, rows = walks["distances"], []
    away = np.isclose(np.abs(distances), 0.5)
    for name, losses in zip(names, walks["train_loss"], strict=True):
        known = losses[np.isfinite(losses).all(axis=1)]
        here, there = known[:, distances == 0].mean(axis=1), known[:, away].mean(axis=1)
        row = {"network": name, "training loss": describe_values(here, 3)}
        rows.append(row | {"rise at a distance of 0.5": describe_values(there - here, 3)})
    return pd.DataFrame(rows)


def noise_scale_table(
    noise: Mapping[str, np.ndarray], arms: Mapping[str, Run], *, num_train: int
) -> pd.DataFrame:
    """The gradient's own noise by batch size, and what the added noise would have to be.

    Args:
        noise: of `gradient_noise`, a row for the start and one for each further arm, and of
            `largest_eigenvalues` of the further arms.
        arms: by label, a run: the first is looked at before its training, the others after it.
        num_train: training images.

    Returns:
        A row for each arm: η/B, η/√B, tr Σ, |ḡ|², their ratio B_simple, the noise term of
        equation 7, the largest eigenvalue, and two variances per coordinate: that which the mean
        gradient of the smallest B_0 samples has more than that of B, tr Σ (1/B_0 - 1/B) / d, and
        that which is added in the first or last step.
    """
    smallest = min(run.batch_size for run in arms.values())
    eigenvalues = noise["eigenvalues"].reshape(len(arms) - 1, -1)
    rows = []
    for row, (label, run) in enumerate(arms.items()):
        trace, squared_norm, scale = (noise[name][row] for name in GradientNoiseScale._fields)
        size, added = run.batch_size, ""
        missing = trace * (1 / smallest - 1 / size) / noise["num_parameters"]
        if run.method == "gradient_noise":
            step = run.epochs * math.ceil(num_train / size) - 1 if row else 0
            added = f"{run.options['alpha'] / (1 + step) ** run.options['gamma']:.2g}"
        cells = {"network": label, "η / B": f"{run.lr / size:.3g}"}
        cells |= {"η / √B": f"{run.lr / math.sqrt(size):.3g}", "tr Σ": _digits(trace)}
        cells |= {"|mean gradient|²": _digits(squared_norm), "B_simple": _digits(scale)}
        cells["η √(tr Σ / B)"] = _digits(noise_term(trace, run.lr, size))
        cells["largest eigenvalue"] = _digits(eigenvalues[row - 1]) if row else ""
        more = _digits(missing) if size > smallest else ""
        cells |= {f"variance that B = {smallest} has more": more, "variance that is added": added}
        rows.append(cells)
    return pd.DataFrame(rows)


def printed_claims() -> pd.DataFrame:
    """Claims of the paper's text, recomputed from its own numbers: ``claim``, ``arithmetic``,
    ``verdict``."""
    printed = printed_accuracies().droplevel(["dataset", "network"])
    plain, noisy = (printed["accuracy"][method] for method in ("plain", "gradient_noise"))
    rows = []
    for size in (64, 128):
        gap, gain = plain[32] - plain[size], noisy[size] - plain[size]
        arithmetic = f"{gain:.2f} of {gap:.2f} points, {gap - gain:.2f} are left"
        rows.append((f'"close this gap", B = {size}', arithmetic, f"{gain / gap:.1%} of the gap"))
    surpassed = f"{plain[64]:.2f} without and {noisy[64]:.2f} with noise"
    holds = [str(bool(noisy[128] > other[64])).lower() for other in (plain, noisy)]
    single = set(printed["accuracy"][printed["half_range"].isna()])  # the other is of two runs
    sizes = range(2241, 2245)
    most = max(len(single & {round(100 * k / n, 2) for k in range(n + 1)}) for n in sizes)
    decay = ", ".join(f"{(1 + t) ** -0.55:.3f} at t = {t}" for t in (1, 9, 99, 999))
    rates = load_table("gradient_noise_text").set_index("batch_size")["learning_rate"]
    terms = ", ".join(f"{noise_term(1, lr, B):.5f} at B = {B}" for B, lr in rates.items())
    rows += [
        ('noisy B = 128 "surpasses" B = 64', f"{noisy[128]:.2f} against {surpassed}",
         f"{holds[0]} without noise, {holds[1]} with"),
        ("accuracies on 2,241 to 2,244 images",
         f"at most {most} of {len(single)} single values are k/n with the same n",
         "means of something not named"),
        ("a 3 : 1 split of 9,147 images has 6,903 for training", f"3/4 are {0.75 * 9147:.0f}",
         "ceil(3n/4) of each of 102 folders of 9,144 files gives 6,903 and 2,241"),
        ('the variance "decays exponentially"', f"{decay} of α", "a power law"),
        ("the noise falls with the batch size (equation 7)", f"η/√B is {terms}", "it grows"),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["claim", "arithmetic", "verdict"])


def _comparisons(*groups: Iterable[Cell]) -> list[tuple[Cell, Cell, Cell]]:
    """Cells with those they are compared with, and with the smallest batch size without noise,
    once each: in each group every batch size with the smallest, without noise, and noise with
    none at every batch size."""
    comparisons = []
    for group in map(list, groups):
        for cell in group:
            dataset, network, method, size = cell
            smallest = min(other[3] for other in group if other[:2] == cell[:2])
            small = (dataset, network, "plain", smallest)
            base = small if method == "plain" else (dataset, network, "plain", size)
            if base != cell and {base, small} <= set(group):
                comparisons.append((cell, base, small))
    return list(dict.fromkeys(comparisons))


def _digits(values: np.ndarray) -> str:
    """Mean of what is finite, in three digits, and the range over seeds."""
    values = values[np.isfinite(values)]
    if not len(values):
        return "–"
    spread = f" [{values.min():.3g}, {values.max():.3g}]" if len(values) > 1 else ""
    return f"{values.mean():.3g}{spread}"
