"""Table 1 of mini-batch trimming, printed and ours."""

import math

import pandas as pd

from hardtrain.papers import dataset_name, load_table, network_name, not_run
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
    printed = {}
    for line in load_table("trimming_table1").itertuples():
        cell = dataset_name(line.dataset), network_name(line.network)
        printed[cell] = {"plain": line.baseline_error, "trimming": line.trimmed_error}
    rows = []
    for dataset, network in dict.fromkeys([*printed, *(label[:2] for label in arms)]):
        paper = printed.get((dataset, network), {"plain": math.nan, "trimming": math.nan})
        here = {method: arms.get((dataset, network, method), ()) for method in paper}
        row = {"data set": dataset, "network": network}
        for method, arm in here.items():
            row[f"{method}, paper (%)"] = format_number(paper[method], 2)
            row[f"{method}, here (%)"] = describe(results, arm)
        gap = difference(results, here["trimming"], here["plain"])
        printed_gap = paper["trimming"] - paper["plain"]
        own = protocol._replace(not_run=not_run(dataset, data_root))
        rows.append(row | verdict_cells(gap, printed_gap, own, was_run=bool(here["plain"])))
    return pd.DataFrame(rows)
