"""What follows from the printed numbers of hard mini-batches."""

from collections import namedtuple
from collections.abc import Iterable
from decimal import Decimal
from itertools import combinations, product

import pandas as pd

from hardtrain.papers import network_name
from hardtrain.papers.printed_numbers import (
    agreement,
    checked,
    follows_word,
    last_columns,
    likely_slip,
    mean_of,
    number_of,
    printed_table,
    text_of,
)

_TABLES = {"cifar10": 3, "cifar100": 4, "stl10": 5}
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
    cells = _cells()
    longest = max(row.epoch for row in cells.values())
    rows = []
    for dataset, network, delta in product(_TABLES, _networks(cells), _SMALLER):
        base, row = cells[dataset, network, _BASE].epoch, cells[dataset, network, delta]
        a, b = _speed_up(base, row.epoch), _reduction(base, row.epoch)
        match = agreement(row.delta_e, a)
        notes = ["sign lost in print"] if a < 0 else []
        notes += [_likely_cause(row.delta_e, base, row.epoch, longest)] if match == "none" else []
        entry = {"dataset": dataset, "network": network, "delta": float(delta)}
        entry |= {"e1": int(base), "e_delta": int(row.epoch)}
        entry |= {"formula_b": number_of(b), "match_b": agreement(row.delta_e, b)}
        entry |= {"sign": "faster" if a > 0 else "slower" if a < 0 else "equal", "match": match}
        rows.append(
            entry | last_columns(row.delta_e, number_of(a), follows_word(match), "; ".join(notes))
        )
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
    cells, copied, rows = _cells(), _copied_networks(), []
    lines = printed_table("hard_minibatches_table6").to_dict("records")
    for dataset, line in product(_TABLES, lines):
        network, printed = network_name(line["network"]), line[f"{dataset}_pct"]
        base, *tried = (cells[dataset, network, x].test for x in _DELTAS)
        best = max(tried)
        delta = _SMALLER[tried.index(best)]
        relative = 100 * (best - base) / best
        match = agreement(printed, relative)
        notes = [likely_slip(printed, relative)] if match == "none" else []
        notes += ["copied rows"] if (dataset, network) in copied else []
        entry = {"dataset": dataset, "network": network, "base": float(base), "best": float(best)}
        entry |= {"delta": float(delta), "points": number_of(best - base), "match": match}
        rows.append(
            entry
            | last_columns(printed, number_of(relative), follows_word(match), "; ".join(notes))
        )
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
    cells, copied, audit = _cells(), _copied_networks(), table6_audit()
    at = list(zip(audit["dataset"], audit["network"], strict=True))
    points = [Decimal(str(value)) for value in audit["points"]]
    signed = zip(audit["printed"], points, strict=True)
    percent = [Decimal(text) * ((gain > 0) - (gain < 0)) for text, gain in signed]
    own = [value for key, value in zip(at, percent, strict=True) if key not in copied]
    changes = {x: [cells[*key, x].test - cells[*key, _BASE].test for key in at] for x in _SMALLER}
    every = [change for column in changes.values() for change in column]
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
        *((f"δ = {x}: better", "", _share(changes[x])) for x in _SMALLER),
    ]
    notes = ("no choice of δ", "best δ chosen on the test set")
    return pd.DataFrame(
        {"quantity": name} | checked(*rest, notes["cells" in name]) for name, *rest in rows
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
    cells = _cells()
    rows = [*_number_claims(cells), *_cell_claims(cells), *_size_and_time_claims()]
    return pd.DataFrame({"where": row[0], "claim": row[1]} | checked(*row[2:]) for row in rows)


_Row = namedtuple("_Row", ("train", "train_ci", "test", "test_ci", "epoch", "delta_e"))


def _cells() -> dict[tuple[str, str, str], _Row]:
    """Tables 3 to 5: data set, network and printed δ -> row."""
    names = ("train_top1", "train_ci", "test_top1", "test_ci", "epoch")
    return {
        (dataset, network_name(line["network"]), line["delta"]): _Row(
            *(Decimal(line[name]) for name in names), line["delta_e"]
        )
        for dataset, number in _TABLES.items()
        for line in printed_table(f"hard_minibatches_table{number}").to_dict("records")
    }


def _number_claims(cells) -> Iterable[tuple]:
    base, *rest = (cells["stl10", "efficientnet_b4", x].epoch for x in _DELTAS)
    note = f"the speed-up ({base}-{min(rest)})/{min(rest)} is {text_of(_speed_up(base, min(rest)))}"
    claim = "stl10, efficientnet_b4: fewer epochs (%)"
    yield "abstract", claim, "26.47", _reduction(base, min(rest)), note

    base, *rest = (cells["cifar100", "resnet18", x].test for x in _DELTAS)
    gain = max(rest) - base
    note = f"{gain:+} points, {text_of(100 * gain / max(rest))} % of the new value"
    claim = "cifar100, resnet18: higher test top-1 (%)"
    yield "abstract", claim, "7.26", 100 * gain / base, note

    first, last = (cells["cifar10", "resnet18", x] for x in (_BASE, "0.2"))
    base, epoch, drop = first.epoch, last.epoch, first.test - last.test
    other = _other_epoch("9.58", base, epoch)
    note = f"table 3 prints {last.delta_e}" + (f"; e = {other} would give 9.58" if other else "")
    claim = "cifar10, resnet18, δ = 0.2: "
    yield "section 1", claim + "faster (%)", "9.58", _speed_up(base, epoch), note
    note = f"the speed-up is {text_of(_speed_up(base, epoch))}"
    yield "section 4.4", claim + "less time (%)", "8.01", _reduction(base, epoch), note
    note = f"printed as %; relative: {text_of(100 * drop / first.test)} %"
    yield "section 4.4", claim + "lower test top-1 (points)", "0.9", drop, note

    found = table6_summary().set_index("quantity")["recomputed"]
    note = f"best δ chosen on the test set; each δ: {found['each δ: better']}"
    yield "section 4.4", "table 6: cells improved", "8 of 15", found["cells improved"], note
    note = f"{found['mean, improved cells (%)']} is the mean of the improved cells"
    mean = Decimal(found["mean, all cells (%)"])
    yield "section 4.4", "table 6: average increase (%)", "3.542", mean, note


def _cell_claims(cells) -> Iterable[tuple]:
    nets, small, where, extra = _networks(cells), ("0.2", "0.5"), "section 4.4", "not claimed"
    copied = _copied_networks()
    own = [net for net in nets if ("cifar100", net) not in copied]
    r18, eff = nets[:1], [net for net in nets if net.startswith("efficientnet")]
    c10, c100, stl, cifar = ["cifar10"], ["cifar100"], ["stl10"], ["cifar10", "cifar100"]

    # what a cell must beat, all of it
    def base(dataset, net, _):
        return [(dataset, net, _BASE)]

    def deltas(dataset, net, delta):
        return [(dataset, net, x) for x in _DELTAS if x != delta]

    def others(dataset, net, delta):
        return [(dataset, other, delta) for other in nets if other != net]

    def mobile(dataset, _, delta):
        return [(dataset, _MOBILE, delta)]

    for place, claim, chosen, rivals, column, sign in (  # sign -1: the lower number wins
        (where, "cifar10: efficientnet_b4 lowest", (c10, eff[:1], _DELTAS), others, "test", -1),
        (where, "cifar10: resnet18 highest, δ >= 0.8", (c10, r18, _DELTAS[:2]), others, "test", 1),
        (extra, "cifar10: resnet18 highest, δ <= 0.5", (c10, r18, small), others, "test", 1),
        (where, "cifar100: better with δ = 0.2, 0.5", (c100, nets, small), base, "test", 1),
        (extra, "the same without copied rows", (c100, own, small), base, "test", 1),
        (where, "cifar100: faster with δ = 0.2, 0.5", (c100, nets, small), base, "epoch", -1),
        (where, "cifar100: all faster with δ = 0.2", (c100, nets, ["0.2"]), base, "epoch", -1),
        (where, "stl10: ResNets and B4 faster", (stl, nets[:3], _SMALLER), base, "epoch", -1),
        (where, "stl10: δ = 0.5 fastest", (stl, nets, ["0.5"]), deltas, "epoch", -1),
        (where, "cifar10, cifar100: δ = 0.2 fastest", (cifar, nets, ["0.2"]), deltas, "epoch", -1),
        (where, "all sets: better with δ = 0.2, 0.5", (_TABLES, nets, small), base, "test", 1),
        (where, "EfficientNets better than MobileNet", (_TABLES, eff, _DELTAS), mobile, "test", 1),
    ):
        held, beaten = 0, []
        for key in product(*chosen):
            mine = getattr(cells[key], column)
            other = sign * max(sign * getattr(cells[rival], column) for rival in rivals(*key))
            if sign * mine > sign * other:
                held += 1
            else:
                beaten.append(f"{' '.join(key)} ({mine}, {other})")
        total = held + len(beaten)
        note = "not " + ", ".join(beaten) if 0 < len(beaten) <= 6 else ""
        printed = f"{total} of {total}" if place == where else ""
        yield place, claim, printed, f"{held} of {total}", note


def _size_and_time_claims() -> Iterable[tuple]:
    table = printed_table("hard_minibatches_table2")
    sizes = [Decimal(size) for size in table["params_M"]]
    size = sizes[[network_name(net) for net in table["network"]].index(_MOBILE)]
    rank = sorted(sizes).index(size) + 1
    found = "larger" if rank > len(sizes) / 2 else "smaller"
    note = f"{size} M parameters: number {rank} of {len(sizes)}, from the smallest"
    yield "section 4.4", f'{_MOBILE} among the "larger networks"', "larger", found, note

    base, *lines = printed_table("hard_minibatches_table1").to_dict("records")
    for line in lines:
        old, new = Decimal(base["dt_seconds"]), Decimal(line["dt_seconds"])
        note = f"{new / old:.3f} times the time; even at {_reduction(new, old):.1f} % fewer epochs"
        claim = f"δ = {line['delta']}: Δ(Δt) (s)"
        yield "table 1", claim, line["ddt_seconds"], new - old, note


def _networks(cells) -> list[str]:
    return list(dict.fromkeys(network for _, network, _ in cells))


def _copied_networks() -> set[tuple[str, str]]:
    copies = duplicate_rows_audit()
    return set(zip(copies["dataset"], copies["network"], strict=True))


def _speed_up(base: Decimal, epoch: Decimal) -> Decimal:
    return 100 * (base - epoch) / epoch


def _reduction(base: Decimal, epoch: Decimal) -> Decimal:
    return 100 * (base - epoch) / base


def _likely_cause(printed: str, base: Decimal, epoch: Decimal, longest: Decimal) -> str:
    """The first guess that gives a printed Δe which A does not give."""
    if agreement(printed, _reduction(base, epoch)) != "none":
        return "formula B"
    guesses = {"B": _reduction(longest, epoch), "A": _speed_up(longest, epoch)}
    if fits := [name for name, value in guesses.items() if agreement(printed, value) != "none"]:
        return f"formula {' or '.join(fits)} with e1 = {longest}"
    if other := _other_epoch(printed, base, epoch):
        return f"e = {other} would give it"
    if slip := likely_slip(printed, _speed_up(base, epoch)):
        return slip
    slip = likely_slip(printed, _reduction(base, epoch))
    return f"formula B, {slip}" if slip else "no integer e gives it"


def _other_epoch(printed: str, base: Decimal, epoch: Decimal) -> int | None:
    """The nearest other e from which formula A gives the printed digits."""
    nearest = sorted(range(1, 2 * int(base)), key=lambda e: abs(e - epoch))
    fits = (e for e in nearest if agreement(printed, _speed_up(base, Decimal(e))) != "none")
    return next(fits, None)


def _share(values: list[Decimal]) -> str:
    return f"{sum(value > 0 for value in values)} of {len(values)}"
