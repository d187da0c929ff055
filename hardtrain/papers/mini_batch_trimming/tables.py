"""Table 1 of mini-batch trimming, printed and ours."""

import pandas as pd

from hardtrain.papers import not_run
from hardtrain.papers.mini_batch_trimming.audits import trimming_audit
from hardtrain.report.tables import Arms, Protocol, describe, difference, verdict_cells
from hardtrain.report.text import format_number


def error_table(
    results: pd.DataFrame, arms: Arms, protocol: Protocol, data_root: str | None = None
) -> pd.DataFrame:
    """Test errors without and with trimming: a row for each printed cell, then one for each that
    only we ran.

    Args:
        results: from ``run_missing``.
        arms: runs by (data set, network, "plain" or "trimming").
        protocol: whether ours is the paper's; its ``not_run`` is replaced for each data set.
        data_root: where image sets lie; says which are not at hand.

    Returns:
        Text columns ``data set``, ``network``; the errors in %, paper's and ours; their paired
        difference (trimming minus plain, points) and the verdict, as of `verdict_cells`.
    """
    printed = trimming_audit().set_index(["dataset", "network"])
    printed = printed[["baseline_error", "trimmed_error"]]
    cells = dict.fromkeys([*printed.index, *(label[:2] for label in arms)])
    rows = []
    for (dataset, network), errors in printed.reindex(list(cells)).iterrows():
        row = {"data set": dataset, "network": network}
        plain, trimmed = (arms.get((dataset, network, name), ()) for name in ("plain", "trimming"))
        for name, arm, error in zip(("plain", "trimming"), (plain, trimmed), errors, strict=True):
            row[f"{name}, paper (%)"] = format_number(error, 2)
            row[f"{name}, here (%)"] = describe(results, arm)
        gap = difference(results, trimmed, plain)
        own = protocol._replace(not_run=not_run(dataset, data_root))
        printed_gap = errors["trimmed_error"] - errors["baseline_error"]
        rows.append(row | verdict_cells(gap, printed_gap, own, was_run=bool(plain)))
    return pd.DataFrame(rows)
