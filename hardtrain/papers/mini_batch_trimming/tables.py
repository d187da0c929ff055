"""Tables of mini-batch trimming, printed and ours."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from hardtrain.papers import not_run
from hardtrain.papers.mini_batch_trimming.audits import trimming_audit
from hardtrain.report.tables import (
    Arms,
    Metric,
    Protocol,
    corrected_columns,
    describe,
    difference,
    is_run,
    level_verdicts,
    verdict_cells,
)
from hardtrain.report.text import format_interval, format_number
from hardtrain.runs.run import Run
from hardtrain.statistics import detectable, holm_corrected, mean_interval

# what is compared with what: is it trimming, is it fewer samples, is it hard ones
COMPARISONS = (("trimming", "plain"), ("random share", "plain"), ("trimming", "random share"))


def error_table(results: pd.DataFrame, arms: Arms, protocol: Protocol) -> pd.DataFrame:
    """Test errors without and with trimming: a row for each printed cell, then one for each that
    only we ran.

    Args:
        results: from ``run_missing``.
        arms: runs by (data set, network, "plain" or "trimming"); others are left out.
        protocol: whether ours is the paper's; its ``not_run`` is replaced for each data set.

    Returns:
        Text columns ``data set``, ``network``; the errors in %, paper's and ours; the verdict on
        their ``levels``; their paired difference (trimming minus plain, points) and the verdict,
        as of `verdict_cells`, p values Holm-corrected over the rows.
    """
    printed = trimming_audit().set_index(["dataset", "network"])
    printed = printed[["baseline_error", "trimmed_error"]]
    cells = dict.fromkeys([*printed.index, *(label[:2] for label in arms)])
    sides = {
        cell: [arms.get((*cell, name), ()) for name in ("plain", "trimming")] for cell in cells
    }
    gaps = [difference(results, trimmed, plain) for plain, trimmed in sides.values()]
    corrected = dict(zip(cells, holm_corrected(gaps), strict=True))
    rows = []
    for cell, errors in printed.reindex(list(cells)).iterrows():
        row = dict(zip(("data set", "network"), cell, strict=True))
        levels = {}
        for name, arm, error in zip(("plain", "trimming"), sides[cell], errors, strict=True):
            row[f"{name}, paper (%)"] = format_number(error, 2)
            row[f"{name}, here (%)"] = describe(results, arm)
            levels[name] = (arm, error)
        row["levels"] = level_verdicts(results, levels, protocol)
        own = protocol._replace(not_run=not_run(cell[0]))
        printed_gap = errors["trimmed_error"] - errors["baseline_error"]
        was_run = is_run(results, sides[cell])
        rows.append(row | verdict_cells(corrected[cell], printed_gap, own, was_run=was_run))
    table = pd.DataFrame(rows)
    table.attrs["questions"] = sum(gap is not None and gap.n > 1 for gap in gaps)
    return table


def step_time_table(measured: Mapping[str, np.ndarray], shares: np.ndarray) -> pd.DataFrame:
    """What `timing.trimming_step_times` measured, as a table.

    Args:
        measured: the ratios to a plain step by kind, ``(R, P)`` by round and part.
        shares: the part of a batch that counts in each epoch of a training.

    Returns:
        Text columns: ``part that counts (%)``, and for each kind the ratio with its 95 % interval
        over rounds; in the last row the mean over a whole training, from the medians.
    """
    kinds = {"trim": "trim", "trim_batch_norm": "trim, batch-norm"}
    kinds |= {"trimmed_backward": "trimmed_backward"}
    keeps, rows = measured["keeps"], []
    for number, keep in enumerate(keeps):
        row = {"part that counts (%)": f"{100 * keep:.0f}"}
        for kind, heading in kinds.items():
            row[heading] = format_interval(mean_interval(measured[kind][:, number]))
        rows.append(row)
    whole = {"part that counts (%)": "whole training"}
    for kind, heading in kinds.items():
        medians = np.median(measured[kind], axis=0)
        whole[heading] = f"{np.interp(shares, keeps[::-1], medians[::-1]).mean():.2f}"
    return pd.DataFrame([*rows, whole])


def control_table(
    results: pd.DataFrame, groups: Mapping[str, Mapping[str, Sequence[Run]]]
) -> pd.DataFrame:
    """Is it trimming, is it training on fewer samples, is it hard samples: `COMPARISONS`.

    Args:
        results: from ``run_missing``.
        groups: by the labels and images that they train on: runs by "plain", "trimming" and
            "random share".

    Returns:
        Text columns: ``trained on``, ``comparison``, both test errors in %, the second's
        training loss in the last epoch (nats), the paired difference (points), p values
        Holm-corrected over the table, and what true difference so many seeds of this spread
        would have shown with a probability of 80 %.
    """
    rows = []
    for name, arms in groups.items():
        for first, second in COMPARISONS:
            gap = difference(results, arms[first], arms[second])
            row = {"trained on": name, "comparison": f"{first} minus {second}"}
            row |= {"first (%)": describe(results, arms[first])}
            row |= {"second (%)": describe(results, arms[second]), "difference (points)": gap}
            row["training loss of the second (nats)"] = describe(
                results, arms[second], Metric("train_loss")
            )
            seen = math.nan if gap is None else detectable(gap)
            power = format_number(seen, 2) if math.isfinite(seen) else ""
            row["seen with power 80 % (points)"] = power
            rows.append(row)
    return corrected_columns(pd.DataFrame(rows), {"difference (points)": 2})
