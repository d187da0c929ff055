"""Distribution matching: the paper's tables 1 to 5 in one form."""

from collections.abc import Callable

import pandas as pd

from hardtrain import checks
from hardtrain.papers import dataset_name, load_table, network_name

_ARMS = {"w/o": "without", "w/o ITDM": "without", "w/ ITDM": "with", "B": "best", "W": "worst"}
_OWN_NETWORKS = {1: "cnn2", 2: "cnn5", 3: "cnn5"}  # by table; the paper gives them no name


def itdm_rows(table: int, read: Callable[[str], pd.DataFrame] = load_table) -> pd.DataFrame:
    """Table 1, 2, 3, 4 or 5 of the ITDM paper, one row for each data set, network and arm.

    Args:
        table: its number.
        read: `load_table` for numbers, `printed_numbers.printed_table` for the printed digits.

    Returns:
        Among the columns: ``table``; ``dataset``, ``network`` (our names; the paper's own networks
        are cnn2 in table 1, cnn5 in tables 2 and 3); ``arm``: "without" or "with" ITDM, or its
        "best" or "worst" λ of five by accuracy; ``acc`` (%), ``ce`` (nats). Tables 2 to 5 also
        have ``weight``, the printed λ, the printed differences to "without", ``acc_delta`` and
        ``ce_delta``, and their arrows, ``acc_arrow`` and ``ce_arrow``.

    Raises:
        ParameterError: a table that the paper does not have.

    Example:
        >>> print(itdm_rows(5)[["network", "arm", "weight", "acc"]].tail(3))
             network      arm  weight    acc
        6  mobilenet  without     NaN  59.09
        7  mobilenet     best     0.6  62.02
        8  mobilenet    worst     0.8  58.93
    """
    rows = read(f"itdm_table{checks.integer('table', table, 1, 5)}")
    if table == 1:  # it has a column for each set, and a row for each metric
        rows = rows.iloc[::-1].set_index(["setting", "metric"]).rename_axis(columns="dataset")
        rows = rows.T.stack("setting", future_stack=True).reset_index()
        rows = rows.rename(columns={"setting": "row", "Acc": "acc", "CE": "ce"})
    networks = _OWN_NETWORKS.get(table) or rows["network"].map(network_name)
    datasets, arms = rows["dataset"].map(dataset_name), rows["row"].map(_ARMS)
    rows = rows.rename(columns={"lambda": "weight"})
    return rows.assign(table=table, dataset=datasets, network=networks, arm=arms)
