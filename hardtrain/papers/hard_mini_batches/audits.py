"""What follows from the printed numbers of hard mini-batches."""

from collections import namedtuple
from collections.abc import Iterable
from decimal import Decimal
from itertools import combinations, product
from operator import gt, lt

import numpy as np
import pandas as pd

from hardtrain.papers import network_name
from hardtrain.papers.printed_numbers import (
    agreement,
    checked,
    claims_table,
    compared,
    held,
    last_columns,
    likely_slip,
    mean_of,
    number_of,
    printed_table,
    text_of,
)

TABLE_OF = {"cifar10": 3, "cifar100": 4, "stl10": 5}  # accuracies of a data set
_BASE, _SMALLER = "1.0", ("0.8", "0.5", "0.2")
_DELTAS = (_BASE, *_SMALLER)
_MOBILE = "mobilenetv3_small"


def delta_e_audit() -> pd.DataFrame:
    r"""Do the Δe of tables 3 to 5 follow from the epochs beside them? (errata 001-1, 001-2)

    .. math:: A = 100 \, (e_1 - e_\delta) / e_\delta, \quad B = 100 \, (e_1 - e_\delta) / e_1

    Returns:
        45 rows. ``recomputed`` is A in %, signed (negative: slower); ``match`` says how the
        printed digits, which have no sign, agree with it: "exact", "truncated", "truncated,
        padded" (to one decimal, then a 0), "rounded" or "none". ``formula_b``, ``match_b``: the
        same for B. ``note``: a sign lost in print, the likely cause where A does not fit.

    Source:
        Sahayam et al., arXiv 2304.03486; the paper gives no formula, A fits best.

    Example:
        >>> delta_e_audit()["follows"].value_counts().to_dict()
        {'yes': 21, 'truncated': 13, 'no': 10, 'rounded': 1}
    """
    cells, rows = _cells(), []
    longest = max(cell.epoch for cell in cells.values())
    for (dataset, network, delta), cell in cells.items():
        first, epoch = cells[dataset, network, _BASE].epoch, cell.epoch
        if delta == _BASE:
            continue
        a, b = _speed_up(first, epoch), _reduction(first, epoch)
        row = {"dataset": dataset, "network": network, "delta": float(delta)}
        row |= {"e1": int(first), "e_delta": int(epoch)}
        row |= {"formula_b": number_of(b), "match_b": agreement(cell.delta_e, b)}
        row["sign"] = "faster" if a > 0 else "slower" if a < 0 else "equal"
        sign_lost = "sign lost in print" if a < 0 else ""
        cause = _likely_cause(cell.delta_e, first, epoch, longest)
        rows.append(row | compared(cell.delta_e, a, sign_lost, cause))
    return pd.DataFrame(rows)


def duplicate_rows_audit() -> pd.DataFrame:
    """Pairs of rows of tables 3 to 5 with equal train, ±, test and ± (errata 001-3).

    Returns:
        One row per pair; ``printed`` is the later row, ``recomputed`` the earlier one. ``follows``
        is "no": two trainings do not end in the same four numbers. ``note``: the epochs e.

    Example:
        >>> duplicate_rows_audit().groupby(["dataset", "network", "other_dataset"]).size().to_dict()
        {('cifar100', 'efficientnet_b4', 'cifar10'): 4,
         ('cifar100', 'efficientnetv2_s', 'cifar10'): 4}
    """
    names = ["dataset", "network", "delta", "other_dataset", "other_network", "other_delta"]
    rows = []
    for (first, earlier), (second, later) in combinations(_cells().items(), 2):
        if earlier[:4] == later[:4]:
            texts = ["{} ± {}, {} ± {}".format(*row[:4]) for row in (later, earlier)]
            note = f"e = {later.epoch} and {earlier.epoch}"
            rows.append([*second, *first, *last_columns(*texts, "no", note).values()])
    frame = pd.DataFrame(rows, columns=[*names, *last_columns("", "", "", "")])
    return frame.astype({"delta": float, "other_delta": float})


def table6_audit() -> pd.DataFrame:
    """Does table 6 follow from tables 3 to 5? (errata 001-4)

    The formula that fits is (best - base) / best * 100, with the highest test top-1 over δ < 1:
    relative to the new value, and with a δ chosen on the test set.

    Returns:
        15 rows: ``base``, ``best`` (%), its ``delta``, their difference in ``points``, ``match``
        as in `delta_e_audit`; ``recomputed`` in %, signed; the printed digits have no sign.

    Example:
        >>> audit = table6_audit()
        >>> audit[audit["follows"] == "no"][["dataset", "network", "printed", "recomputed"]]
           dataset   network printed  recomputed
        0  cifar10  resnet18    0.75      -0.578
    """
    cells, copied, rows = _cells(), copied_networks(), []
    printed = printed_table("hard_minibatches_table6").set_index("network").rename(network_name)
    for dataset, network in product(TABLE_OF, printed.index):
        base, *tests = (cells[dataset, network, delta].test for delta in _DELTAS)
        best = max(tests)
        row = {"dataset": dataset, "network": network, "base": float(base), "best": float(best)}
        row |= {"delta": float(_SMALLER[tests.index(best)]), "points": number_of(best - base)}
        text, relative = printed.loc[network, f"{dataset}_pct"], 100 * (best - base) / best
        copy = "copied rows" if (dataset, network) in copied else ""
        rows.append(row | compared(text, relative, likely_slip(text, relative), copy))
    return pd.DataFrame(rows)


def table6_summary() -> pd.DataFrame:
    """What section 4.4 concludes from table 6, and other ways to sum it up (errata 001-4).

    Returns:
        One row per ``quantity``, ``recomputed`` as text. "Cells" are the printed ones of table 6,
        signed by the accuracies; "each δ" compares all 45 test accuracies with their baselines.

    Example:
        >>> table6_summary().set_index("quantity").loc["mean, improved cells (%)", "recomputed"]
        '3.5425'
    """
    cells, audit = _cells(), table6_audit()
    at = list(zip(audit["dataset"], audit["network"], strict=True))
    points = [Decimal(str(gain)) for gain in audit["points"]]
    signs = np.sign(audit["points"]).astype(int)
    percent = [sign * Decimal(text) for sign, text in zip(signs, audit["printed"], strict=True)]
    no_copies = np.flatnonzero(~audit["note"].str.contains("copied"))
    own = [percent[row] for row in no_copies]
    changes = {x: [cells[*key, x].test - cells[*key, _BASE].test for key in at] for x in _SMALLER}
    every = [change for column in changes.values() for change in column]
    of_own = [column[row] for column in changes.values() for row in no_copies]
    share, mean = "8 of 15", "3.542"  # section 4.4, below table 6
    rows = [
        ("cells improved", share, _share(percent)),
        ("mean, improved cells (%)", mean, mean_of(percent, improved=True)),
        ("mean, all cells (%)", mean, mean_of(percent)),
        ("mean, improved cells (points)", "", mean_of(points, improved=True)),
        ("mean, all cells (points)", "", mean_of(points)),
        ("without copied rows: cells improved", "", _share(own)),
        ("without copied rows: mean, improved cells (%)", "", mean_of(own, improved=True)),
        ("without copied rows: mean, all cells (%)", "", mean_of(own)),
        ("each δ: better", "", _share(every)),
        ("each δ: worse", "", _share([-change for change in every])),
        ("each δ: mean change (points)", "", mean_of(every)),
        ("without copied rows, each δ: better", "", _share(of_own)),
        ("without copied rows, each δ: mean change (points)", "", mean_of(of_own)),
        *((f"δ = {x}: better", "", _share(changes[x])) for x in _SMALLER),
    ]
    notes = {True: "best δ chosen on the test set", False: "no choice of δ"}
    return pd.DataFrame(
        {"quantity": name} | checked(*numbers, notes["cells" in name]) for name, *numbers in rows
    )


def claims_audit() -> pd.DataFrame:
    """The claims in the hard mini-batch paper's text, against its tables (errata 001-5, 001-6).

    Returns:
        One row per claim, all text: ``where`` it stands, ``claim``, and the rest. Where the text
        speaks of several cells, ``printed`` says how many, ``recomputed`` in how many of them it
        holds (a tie does not), and ``note`` lists up to six others with the number they miss.

    Example:
        >>> claims_audit().loc[0, ["claim", "printed", "recomputed"]].tolist()
        ['stl10, efficientnet_b4: fewer epochs (%)', '26.47', '20.9302']
    """
    return claims_table([*_text_claims(), *_table6_claims(), *_size_and_time_claims()])


def all_claims() -> pd.DataFrame:
    """`claims_audit`, and behind it `table6_summary` as claims on table 6."""
    summary = table6_summary().rename(columns={"quantity": "claim"})
    summary.insert(0, "where", "table 6")
    return pd.concat([claims_audit(), summary])


_Row = namedtuple("_Row", ("train", "train_ci", "test", "test_ci", "epoch", "delta_e"))


def _cells() -> dict[tuple[str, str, str], _Row]:
    """Tables 3 to 5: data set, network and printed δ -> row."""
    cells = {}
    for dataset, number in TABLE_OF.items():
        lines = printed_table(f"hard_minibatches_table{number}").to_numpy()
        for network, delta, *numbers, delta_e in lines:
            row = _Row(*map(Decimal, numbers), delta_e)
            cells[dataset, network_name(network), delta] = row
    return cells


def _text_claims() -> Iterable[tuple]:
    """The claims of ``hard_minibatches_text.csv``, each on cells and the rivals that one must beat,
    all of them: in how many it does, or, of a single cell, by how much."""
    cells = _cells()
    for line in printed_table("hard_minibatches_text").to_dict("records"):
        sign, wins, best = (1, gt, max) if line["better"] == "higher" else (-1, lt, min)
        pairs = []
        for cell in product(*(line[name].split() for name in ("datasets", "networks", "deltas"))):
            networks = line["rival_networks"].split() or cell[1:2]
            deltas = line["rival_deltas"].split() or cell[2:]
            rivals = {*product(cell[:1], networks, deltas)} - {cell}
            own, *others = (getattr(cells[key], line["column"]) for key in (cell, *rivals))
            pairs.append((" ".join(cell), own, best(others)))
        recomputed, note = held(pairs, wins)
        if line["measure"] != "cells":
            _, own, rival = pairs[0]
            points = sign * (own - rival)
            shares = {"of_own": 100 * points / own, "of_rival": 100 * points / rival}
            recomputed = (shares | {"points": points})[line["measure"]]
            texts = {name: text_of(share) for name, share in shares.items()}
            note = line["note"].format(own=own, rival=rival, points=points, **texts)
        yield line["where"], line["claim"], line["printed"], recomputed, note


def _table6_claims() -> Iterable[tuple]:
    found = table6_summary().set_index("quantity")["recomputed"]
    note = f"best δ chosen on the test set; each δ: {found['each δ: better']}"
    yield "section 4.4", "table 6: cells improved", "8 of 15", found["cells improved"], note
    note = f"{found['mean, improved cells (%)']} is the mean of the improved cells"
    mean = Decimal(found["mean, all cells (%)"])
    yield "section 4.4", "table 6: average increase (%)", "3.542", mean, note


def _size_and_time_claims() -> Iterable[tuple]:
    sizes = printed_table("hard_minibatches_table2").set_index("network")["params_M"]
    sizes = sizes.rename(network_name)
    rank = int(sizes.astype(float).rank()[_MOBILE])
    found = "larger" if rank > len(sizes) / 2 else "smaller"
    note = f"{sizes[_MOBILE]} M parameters: number {rank} of {len(sizes)}, from the smallest"
    yield "section 4.4", f'{_MOBILE} among the "larger networks"', "larger", found, note

    base, *lines = printed_table("hard_minibatches_table1").to_dict("records")
    for line in lines:
        old, new = Decimal(base["dt_seconds"]), Decimal(line["dt_seconds"])
        note = f"{new / old:.3f} times the time; even at {_reduction(new, old):.1f} % fewer epochs"
        claim = f"δ = {line['delta']}: Δ(Δt) (s)"
        yield "table 1", claim, line["ddt_seconds"], new - old, note


def copied_networks() -> set[tuple[str, str]]:
    """Data set and network of the rows that `duplicate_rows_audit` finds to be copies."""
    copies = duplicate_rows_audit()
    return set(zip(copies["dataset"], copies["network"], strict=True))


def _speed_up(base: Decimal, epoch: Decimal) -> Decimal:
    return 100 * (base - epoch) / epoch


def _reduction(base: Decimal, epoch: Decimal) -> Decimal:
    return 100 * (base - epoch) / base


def _likely_cause(printed: str, base: Decimal, epoch: Decimal, longest: Decimal) -> str:
    """The first guess that gives a printed Δe; empty where A gives it."""
    a, b = _speed_up(base, epoch), _reduction(base, epoch)
    for cause, value in (("", a), ("formula B", b)):
        if agreement(printed, value) != "none":
            return cause
    guesses = {"B": _reduction(longest, epoch), "A": _speed_up(longest, epoch)}
    if fits := [name for name, value in guesses.items() if agreement(printed, value) != "none"]:
        return f"formula {' or '.join(fits)} with e1 = {longest}"
    if other := _other_epoch(printed, base, epoch):
        return f"e = {other} would give it"
    if slip := likely_slip(printed, b):
        slip = f"formula B, {slip}"
    return likely_slip(printed, a) or slip or "no integer e gives it"


def _other_epoch(printed: str, base: Decimal, epoch: Decimal) -> int | None:
    """The nearest other e from which formula A gives the printed digits."""
    nearest = sorted(range(1, 2 * int(base)), key=lambda e: abs(e - epoch))
    fits = (e for e in nearest if agreement(printed, _speed_up(base, Decimal(e))) != "none")
    return next(fits, None)


def _share(values: list[Decimal]) -> str:
    return f"{sum(value > 0 for value in values)} of {len(values)}"
