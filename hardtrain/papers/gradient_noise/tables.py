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
from hardtrain.papers.gradient_noise.curvature import noise_term
from hardtrain.report.tables import MISSING, describe, describe_values, difference, metric_by_seed
from hardtrain.report.text import format_interval
from hardtrain.runs.run import Run
from hardtrain.statistics import Verdict, mean_interval, verdict, verdict_single


class Share(NamedTuple):
    """Part of a gap that was recovered, and its bounds over ``n`` common seeds."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n == 0:
            return MISSING
        if math.isinf(self.high):
            return f"the gap is not resolved (n = {self.n})"
        bounds = (
            "" if math.isnan(self.high) else f" [{100 * self.low:z.0f}, {100 * self.high:z.0f}]"
        )
        return f"{100 * self.mean:z.0f} %{bounds} (n = {self.n})"


def share_of_gap(
    small: pd.Series, large: pd.Series, treated: pd.Series, confidence: float = 0.95
) -> Share:
    r"""Which part of the gap between small and large batches the treatment of the large recovers.

    .. math:: r = \frac{\overline{treated - large}}{\overline{small - large}}

    The bounds are Fieller's: all r for which the paired t interval of
    (treated - large) - r (small - large) contains 0. They are not symmetric, and where the gap
    itself may be zero at this confidence they exclude no r at all (bounds -inf, inf).

    Args:
        small, large, treated: a number for each seed; seeds that one of them lacks are left out.
        confidence: in (0, 1).

    Returns:
        ``Share(mean, low, high, n)``; one seed gives nan bounds, none a nan mean.

    Example:
        >>> accuracy = {"small": [90.0, 91.0, 92.0], "large": [80.0, 80.0, 81.0]}
        >>> small, large = (pd.Series(values) for values in accuracy.values())
        >>> print(share_of_gap(small, large, pd.Series([84.0, 85.0, 86.0])))
        44 % [35, 50] (n = 3)
    """
    seeds = small.index.intersection(large.index).intersection(treated.index)
    gains = (treated[seeds] - large[seeds]).to_numpy(dtype=float)
    gaps = (small[seeds] - large[seeds]).to_numpy(dtype=float)
    n = len(seeds)
    gain, gap = (values.mean() if n else math.nan for values in (gains, gaps))
    mean = float(gain / gap) if gap else math.nan
    if n < 2:
        return Share(mean, math.nan, math.nan, n)
    (gain_variance, covariance), (_, gap_variance) = np.cov(gains, gaps)
    factor = float(stdtrit(n - 1, (1 + confidence) / 2)) ** 2 / n
    # where a r^2 - 2 b r + c <= 0
    a = gap**2 - factor * gap_variance
    b = gain * gap - factor * covariance
    c = gain**2 - factor * gain_variance
    if a <= 0:
        return Share(mean, -math.inf, math.inf, n)
    root = math.sqrt(max(0.0, b**2 - a * c))
    return Share(mean, float((b - root) / a), float((b + root) / a), n)


Arms = Mapping[tuple[str, str, str, int], Sequence[Run]]  # data set, network, method, batch size
_NOISE = {"plain": "no", "gradient_noise": "yes"}


def printed_accuracies() -> pd.DataFrame:
    """Table 2 and the accuracies of section 4.3, in our names: ``dataset``, ``network``,
    ``method``, ``batch_size``, ``accuracy`` (%), ``half_range`` and ``num_runs``.

    The numbers of runs without noise are not stated; they are taken as one.

    Example:
        >>> printed_accuracies()[["method", "batch_size", "accuracy"]].values.tolist()[0]
        ['plain', 32, 74.45]
    """
    table, text = load_table("gradient_noise_table2"), load_table("gradient_noise_text")
    rows = pd.concat([text, table[table["condition"] == "noise"]], ignore_index=True)
    return pd.DataFrame(
        {
            "dataset": "caltech101",
            "network": "resnet50",
            "method": rows["condition"].map({"no noise": "plain", "noise": "gradient_noise"}),
            "batch_size": rows["batch_size"],
            "accuracy": rows["accuracy_pct"],
            "half_range": rows["pm_pct"],
            "num_runs": rows["n_runs_stated"].fillna(1).astype(int),
        }
    )


def late_accuracy(history: pd.DataFrame, results: pd.DataFrame, arm: Sequence[Run]) -> pd.Series:
    """Accuracy (%) by seed, mean over the evaluations of the last tenth of the epochs."""
    found = {}
    for run in arm:
        if run.seed in metric_by_seed(results, [run], "test_error").index:
            mine = history[history["key"] == run.key]
            late = mine[mine["epoch"] > 0.9 * run.epochs]
            found[run.seed] = 100 * (1 - late["test_error"].mean())
    return pd.Series(found, dtype=float)


def accuracy_table(
    results: pd.DataFrame,
    history: pd.DataFrame,
    arms: Arms,
    *,
    comparable: bool,
    reason: str = "",
    not_run: str = MISSING,
) -> pd.DataFrame:
    """Table 2 and the numbers of section 4.3: validation accuracy by batch size, with and without
    noise, printed and ours, first the paper's cells, then those that only we ran.

    Args:
        results, history: of the runs, which evaluated the training set, too.
        arms: runs by (data set, network, method, batch size).
        comparable, reason: whether the protocol is the paper's, and if not, why not.
        not_run: what to say of a cell that was not run.
    """
    results = _with_accuracies(results)
    printed = _printed()
    rows = []
    for cell in dict.fromkeys([*printed.index, *arms]):
        dataset, network, method, batch_size = cell
        arm = arms.get(cell, ())
        theirs = printed.loc[cell] if cell in printed.index else None
        row = {"data set": dataset, "network": network, "B": batch_size, "noise": _NOISE[method]}
        row["paper (%)"] = "–" if theirs is None else _printed_text(theirs)
        row["here: last epoch (%)"] = describe(results, arm, "accuracy", scale=1)
        late = late_accuracy(history, results, arm)
        row["here: last tenth (%)"] = describe_values(late, digits=2)
        row["here: training set (%)"] = describe(results, arm, "train_accuracy", scale=1)
        if not len(arm):
            rows.append(row | {"verdict": MISSING, "why": not_run})
            continue
        outcome = verdict_single(
            math.nan if theirs is None else theirs["accuracy"],
            metric_by_seed(results, arm, "accuracy"),
            num_runs=1 if theirs is None else int(theirs["num_runs"]),
            comparable=comparable and theirs is not None,
            reason="the paper has no such cell" if theirs is None else reason,
        )
        rows.append(row | {"verdict": outcome.word, "why": outcome.reason})
    return pd.DataFrame(rows)


def difference_table(
    results: pd.DataFrame,
    arms: Arms,
    *,
    comparable: bool,
    reason: str = "",
    not_run: str = MISSING,
) -> pd.DataFrame:
    """Paired differences of validation accuracy (points): each batch size to the smallest without
    noise, and noise to none at each batch size, with verdicts; arguments as in `accuracy_table`.

    The paper has no run with noise at its smallest batch size.
    """
    results = _with_accuracies(results)
    accuracy = _printed()["accuracy"].to_dict()
    rows = []
    for treated, base in dict.fromkeys([*_comparisons(accuracy), *_comparisons(arms)]):
        dataset, network, method, size = treated
        what = f"B = {size} minus B = {base[3]}, no noise"
        if method != base[2]:
            what = f"noise minus no noise, B = {size}"
        is_printed = treated in accuracy and base in accuracy
        gap = accuracy[treated] - accuracy[base] if is_printed else math.nan
        found = difference(
            results, *(arms.get(c, ()) for c in (treated, base)), "accuracy", scale=1
        )
        row = {"data set": dataset, "network": network, "difference": what}
        row["paper (points)"] = f"{gap:+.2f}" if is_printed else "–"
        row["here (points)"] = format_interval(found, signed=True) if found else MISSING
        row["p"] = "" if found is None or math.isnan(found.p) else f"{found.p:.3f}"
        if found is not None:
            why = reason if is_printed else "the paper has no such pair"
            outcome = verdict(gap, found, comparable=comparable and is_printed, reason=why)
        elif treated in arms and base in arms:
            outcome = Verdict("not comparable", "no seed finished with both")
        else:
            outcome = Verdict(MISSING, not_run)
        rows.append(row | {"verdict": outcome.word, "why": outcome.reason})
    return pd.DataFrame(rows)


def share_table(results: pd.DataFrame, arms: Arms, *, not_run: str = MISSING) -> pd.DataFrame:
    """Which share of the gap to the smallest batch size noise recovers, for each larger one:
    printed and ours, with Fieller's interval (`share_of_gap`)."""
    results = _with_accuracies(results)
    accuracy = _printed()["accuracy"].to_dict()
    rows = []
    pairs = dict.fromkeys([*_comparisons(accuracy), *_comparisons(arms)])
    for large, small in [(a, b) for a, b in pairs if a[2] == b[2]]:
        cells = (small, large, (*large[:2], "gradient_noise", large[3]))
        row = dict(zip(("data set", "network"), large[:2], strict=True))
        row |= {"B": f"{large[3]} against {small[3]}"}
        theirs = [accuracy.get(cell, math.nan) for cell in cells]
        gap, gain = theirs[0] - theirs[1], theirs[2] - theirs[1]
        row["paper: gap (points)"] = "–" if math.isnan(gap) else f"{gap:.2f}"
        row["paper: recovered"] = "–" if math.isnan(gap) else f"{gain:.2f} = {gain / gap:.0%}"
        groups = [arms.get(cell, ()) for cell in cells]
        gap = difference(results, groups[0], groups[1], "accuracy", scale=1)
        gain = difference(results, groups[2], groups[1], "accuracy", scale=1)
        share = share_of_gap(*(metric_by_seed(results, group, "accuracy") for group in groups))
        row["here: gap (points)"] = format_interval(gap, signed=True) if gap else not_run
        row["here: recovered (points)"] = format_interval(gain, signed=True) if gain else ""
        row["here: share, 95 % interval"] = str(share) if gap and gain else ""
        rows.append(row)
    return pd.DataFrame(rows)


def treatments_table(
    results: pd.DataFrame, arms: Mapping[str, Sequence[Run]], *, small: str, large: str
) -> pd.DataFrame:
    """What brings the large batch's accuracy nearer to the small one's: a row for each arm, with
    its difference to the arm ``large``, and the share of the gap between ``small`` and ``large``
    that it recovers, if it has the large batch size."""
    results = _with_accuracies(results)
    ends = [metric_by_seed(results, arms[name], "accuracy") for name in (small, large)]
    rows = []
    for label, arm in arms.items():
        row = {"arm": label, "B": arm[0].batch_size, "η": f"{arm[0].lr:.3g}"}
        row["epochs"] = arm[0].epochs
        row["accuracy (%)"] = describe(results, arm, "accuracy", scale=1)
        row["training set (%)"] = describe(results, arm, "train_accuracy", scale=1)
        gap = None if label == large else difference(results, arm, arms[large], "accuracy", scale=1)
        row[f"minus {large} (points)"] = format_interval(gap, signed=True) if gap else ""
        share = str(share_of_gap(*ends, metric_by_seed(results, arm, "accuracy")))
        has_share = gap and arm[0].batch_size == arms[large][0].batch_size
        row["share of the gap"] = share if has_share else ""
        rows.append(row)
    return pd.DataFrame(rows)


def noise_scale_table(
    found: Mapping[str, np.ndarray],
    eigenvalues: np.ndarray,
    arms: Mapping[str, Run],
    *,
    smallest: int,
    num_train: int,
    alpha: float,
) -> pd.DataFrame:
    """The gradient's own noise by batch size, and what the added noise would have to be.

    Args:
        found: of `gradient_noise`, a row for the start and one for each of ``arms``.
        eigenvalues: ``(G S,)`` of `largest_eigenvalues`, in the same order.
        arms: a run for each row after the first, by label.
        smallest: B_0, with which the others are compared; the start with the largest B.
        num_train, alpha: training images, and the added variance at the start.

    Returns:
        A row for the start of training and one for each arm: η/B, η/√B, tr Σ, |ḡ|², their ratio
        B_simple, the noise term of equation 7, the largest eigenvalue, and two variances per
        coordinate: that which the mean gradient of B_0 samples has more than that of B,
        tr Σ (1/B_0 - 1/B) / d, and that which is added.
    """
    eigenvalues = eigenvalues.reshape(len(arms), -1)
    rows = []
    for row, (label, run) in enumerate({"start of training": None, **arms}.items()):
        trace, squared, scale = (found[k][row] for k in ("trace", "squared_norm", "noise_scale"))
        size = run.batch_size if run else max(other.batch_size for other in arms.values())
        cells = {"network": label}
        cells["η / B"] = f"{run.lr / size:.3g}" if run else ""
        cells["η / √B"] = f"{run.lr / math.sqrt(size):.3g}" if run else ""
        cells |= {"tr Σ": _digits(trace), "|mean gradient|²": _digits(squared)}
        cells["B_simple"] = _digits(scale)
        terms = [noise_term(t, run.lr, size) for t in trace[np.isfinite(trace)].tolist() if run]
        cells["η √(tr Σ / B)"] = _digits(terms) if run else ""
        cells["largest eigenvalue"] = _digits(eigenvalues[row - 1]) if run else ""
        missing = trace * (1 / smallest - 1 / size) / found["num_parameters"]
        cells[f"variance that B = {smallest} has more"] = (
            _digits(missing) if size > smallest else ""
        )
        added = "" if run else f"{alpha:.2g}"
        if run and run.method == "gradient_noise":
            last = run.epochs * math.ceil(num_train / size) - 1
            added = f"{run.options['alpha'] / (1 + last) ** run.options['gamma']:.2g}"
        rows.append(cells | {"variance that is added": added})
    return pd.DataFrame(rows)


def printed_claims() -> pd.DataFrame:
    """Claims of the paper's text, recomputed from its own numbers: ``claim``, ``arithmetic``,
    ``verdict``."""
    printed = printed_accuracies().set_index(["method", "batch_size"])
    single = printed["accuracy"][printed["half_range"].isna()]  # the other is a mean of two runs
    plain, noisy = (printed["accuracy"][method] for method in ("plain", "gradient_noise"))
    rows = []
    for size in (64, 128):
        gap, gain = plain[32] - plain[size], noisy[size] - plain[size]
        arithmetic = f"{gain:.2f} of {gap:.2f} points, {gap - gain:.2f} are left"
        rows.append((f'"close this gap", B = {size}', arithmetic, f"{gain / gap:.1%} of the gap"))
    arithmetic = f"{noisy[128]:.2f} against {plain[64]:.2f} without and {noisy[64]:.2f} with noise"
    holds = [str(bool(noisy[128] > other[64])).lower() for other in (plain, noisy)]
    rows.append(
        ('noisy B = 128 "surpasses" B = 64', arithmetic, "{} without noise, {} with".format(*holds))
    )
    most = max(sum(_is_fraction(value, n) for value in single) for n in range(2241, 2245))
    fits = f"{most} of {len(single)} single values are k/n with the same n"
    decay = ", ".join(f"{(1 + t) ** -0.55:.3f} at t = {t}" for t in (1, 9, 99, 999))
    rates = load_table("gradient_noise_text").set_index("batch_size")["learning_rate"]
    terms = ", ".join(f"{lr / math.sqrt(B):.5f} at B = {B}" for B, lr in rates.items())
    rows += [
        ("accuracies on 2,241 to 2,244 images", f"at most {fits}", "means of something not named"),
        ("a 3 : 1 split of 9,147 images has 6,903 for training", f"3/4 are {0.75 * 9147:.0f}",
         "ceil(3n/4) of each of 102 folders of 9,144 files gives 6,903 and 2,241"),
        ('the variance "decays exponentially"', f"{decay} of α", "a power law"),
        ("the noise falls with the batch size (equation 7)", f"η/√B is {terms}", "it grows"),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["claim", "arithmetic", "verdict"])


def _with_accuracies(results: pd.DataFrame) -> pd.DataFrame:
    return results.assign(
        accuracy=100 * (1 - results["test_error"]),
        train_accuracy=100 * (1 - results["train_set_error"]),
    )


def _printed() -> pd.DataFrame:
    return printed_accuracies().set_index(["dataset", "network", "method", "batch_size"])


def _comparisons(cells: Iterable[tuple[str, str, str, int]]) -> list[tuple[tuple, tuple]]:
    """Of each data set and network: every batch size with the smallest, without noise, then noise
    with none at every batch size."""
    cells = list(cells)
    found = []
    for name in dict.fromkeys(cell[:2] for cell in cells):
        small, *larger = sorted({size for *other, _, size in cells if tuple(other) == name})
        plain = {size: (*name, "plain", size) for size in (small, *larger)}
        found += [(plain[size], plain[small]) for size in larger]
        found += [((*name, "gradient_noise", size), plain[size]) for size in plain]
    return [pair for pair in found if set(pair) <= set(cells)]


def _printed_text(row: pd.Series) -> str:
    spread = "" if math.isnan(row["half_range"]) else f" ± {row['half_range']:.2f}"
    return f"{row['accuracy']:.2f}{spread}"


def _digits(values: Sequence[float]) -> str:
    """Mean of what is finite, in three digits, and the range over seeds."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return "diverged"
    spread = f" [{values.min():.3g}, {values.max():.3g}]" if len(values) > 1 else ""
    return f"{mean_interval(values).mean:.3g}{spread}"


def _is_fraction(percent: float, n: int) -> bool:
    """Whether some k/n has these two decimals."""
    return any(round(100 * k / n, 2) == percent for k in
               (math.floor(percent * n / 100), math.ceil(percent * n / 100)))  # fmt: skip
