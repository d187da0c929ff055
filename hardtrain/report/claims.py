"""What a paper claims, and what is found here: ``claims.csv``, and README's table of findings."""

import io
import math
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from scipy.special import stdtr, stdtrit

from hardtrain import checks
from hardtrain.errors import ParameterError
from hardtrain.files import project_root, store_errors, write_atomically
from hardtrain.report import plotting
from hardtrain.report.tables import MISSING, Protocol
from hardtrain.report.text import format_interval, format_number, to_markdown
from hardtrain.runs.committed import sealed_content
from hardtrain.statistics import (
    CONFIDENCE,
    MIN_SEEDS,
    Interval,
    PairedDifference,
    holm,
    holm_corrected,
    verdict,
)

PROFILES = ("paper", "reduced", "quick")  # README shows the first at which a claim was run
COLUMNS = ["claim", "source", "quantity", "printed", "here", "n", "p", "finding", "scale"]
_SHOWN = ["claim", "source", "quantity", "printed", "here", "p", "finding"]  # in README
_READING = (  # findings
    "A finding says on which side the effect of these runs lies. Where they are not at the paper's "
    "protocol, it does not judge the paper. (ours) marks a control or a question that the paper "
    "does not have."
)
_MARKS = "<!-- findings -->\n", "<!-- end of findings -->\n"
_EQUAL = "; equal: within"  # in the quantity of a claim of equality, before its margin
_NO_HARM = r"; (?:higher than -|lower than \+)"  # in that of a claim that something does no harm
_EDGES = -2, 4  # of README's picture, in printed effects
_COLOURS = {"supports": "#009e73", "contradicts": "#d55e00", "undecided": "0.5", MISSING: "0.8"}


class Claim(NamedTuple):
    """One claim, a paper's or ours, and the quantity that decides it.

    Args:
        claim: what the paper says, a sentence; or what a control of ours asks.
        quantity: what is measured, with its unit.
        expected: the side of ``edge`` on which the claim sees the quantity: "lower", "higher", or
            "equal", that is within ``margin`` of 0.
        found: our paired difference or interval; ``None`` where nothing was run. Several are one
            claim on any of many ("in some networks"): of those on the claim's side the smallest
            Holm-corrected p decides; where all are on the other side, the largest. Several that
            are to be "equal" are one claim on all of them.
        printed: the paper's number; nan where it prints none.
        protocol: whether the printed number can be held against ours.
        margin: half width of "equal", in the unit of the quantity.
        edge: what a "lower" or "higher" quantity is to be told from, in its unit.
        digits: decimals.
        scale: on what it was judged, where that is not the scale of the other claims.
        source: "paper", or "ours": a control or a question that the paper does not have.
    """

    claim: str
    quantity: str
    expected: str
    found: PairedDifference | Interval | Sequence[PairedDifference | None] | None
    printed: float = math.nan
    protocol: Protocol = Protocol(False)
    margin: float = 0.0
    edge: float = 0.0
    digits: int = 2
    scale: str = ""
    source: str = "paper"


def claims_table(claims: Sequence[Claim], scale: str) -> pd.DataFrame:
    """A row for each claim: what is printed, what was found, and the finding.

    "supports": the 95 % interval lies on the claim's side of its edge, and the p value,
    Holm-corrected over the claims of the table, is below 0.05. "contradicts": the same on the other
    side; or the paper's protocol was followed and the verdict on its number is "not reproduced".
    "undecided": neither, or fewer than 3 seeds. "not run". A claim of "equal" is supported by an
    interval within the margin and contradicted by one outside. p is two-sided, of a mean at the
    edge, or at the nearer end of the margin; where that is not 0, the quantity names it. What has
    no p, as repeated measurements of a time, goes by its interval.

    Returns:
        Text columns ``claim, source, quantity, printed, here, n, p, finding, scale``.

    Example:
        >>> gap = PairedDifference(mean=-0.4, low=-0.7, high=-0.1, p=0.01, n=10, spread=0.2)
        >>> claim = Claim("Trimming helps.", "test error (points)", "lower", gap, printed=-0.42)
        >>> claims_table([claim], "digits")[["printed", "here", "p", "finding"]].iloc[0].tolist()
        ['-0.42', '-0.40 ± 0.30 (n = 10)', '0.010', 'supports']
    """
    for claim in claims:
        checks.choice("expected", claim.expected, ("lower", "higher", "equal"))
        checks.choice("source", claim.source, ("paper", "ours"))
    found = [_decisive(claim) for claim in claims]
    p_values = holm([math.nan if f is None else getattr(f, "p", math.nan) for f in found])
    rows = []
    for claim, ours, p in zip(claims, found, p_values, strict=True):
        row = {"claim": claim.claim, "source": claim.source}
        row["quantity"] = claim.quantity + _edge_words(claim)
        row["printed"] = format_number(claim.printed, claim.digits, signed=True)
        row["here"] = MISSING if ours is None else format_interval(ours, claim.digits, signed=True)
        row["n"] = "" if ours is None else str(ours.n)
        row["p"] = "" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
        row["finding"] = _finding(claim, ours, p)
        rows.append(row | {"scale": claim.scale or scale})
    return pd.DataFrame(rows, columns=COLUMNS)


def _edge_words(claim: Claim) -> str:
    """What the claim says of the quantity, where it is not merely a side of 0."""
    if claim.expected == "equal":
        return f"{_EQUAL} {claim.margin:.2g}"
    return f"; {claim.expected} than {claim.edge:+g}" if claim.edge else ""


def _beyond(claim: Claim, found: PairedDifference | Interval) -> float:
    """How far the mean lies on the claim's side of its edge; negative on the other side."""
    if claim.expected == "equal":
        return claim.margin - abs(found.mean)
    beyond = found.mean - claim.edge
    return beyond if claim.expected == "higher" else -beyond


def _decisive(claim: Claim) -> PairedDifference | Interval | None:
    """What is held against the claim; of several the one that decides, its p corrected over all."""
    found = claim.found
    if found is None or isinstance(found, Interval):
        return found
    if isinstance(found, PairedDifference):
        return _of_edge(claim, found)
    there = [_of_edge(claim, one) for one in found if one is not None]
    if not there:
        return None
    corrected = holm_corrected(there)
    for_it = [one for one in corrected if _beyond(claim, one) > 0]
    if claim.expected != "equal":
        return min(for_it, key=_by_p) if for_it else max(corrected, key=_by_p)
    against = [one for one in corrected if one not in for_it]
    return min(against, key=_by_p) if against else max(there, key=_by_p)


def _by_p(found: PairedDifference) -> tuple[bool, float]:
    return math.isnan(found.p), found.p


def _of_edge(claim: Claim, found: PairedDifference) -> PairedDifference:
    """``found`` with the two-sided p of a mean at the claim's edge in place of one at 0."""
    half, beyond = found.half_width, abs(_beyond(claim, found))
    if math.isnan(half) or (claim.expected != "equal" and claim.edge == 0):
        return found
    if half in (0, math.inf):  # equal in each seed: the exact sign test, as `paired_difference`
        return found._replace(p=2.0 ** (1 - found.n) if beyond else 1.0)
    t = stdtrit(found.n - 1, (1 + CONFIDENCE) / 2) * beyond / half
    return found._replace(p=2 * float(stdtr(found.n - 1, -t)))


def _finding(claim: Claim, ours: PairedDifference | Interval | None, p: float) -> str:
    if ours is None:
        return MISSING
    if ours.n < MIN_SEEDS or math.isnan(ours.low):
        return "undecided"
    margin = claim.margin
    edges = (-margin, margin) if claim.expected == "equal" else (claim.edge,)
    if not (any(ours.low <= edge <= ours.high for edge in edges) or p >= 0.05):
        return "supports" if _beyond(claim, ours) > 0 else "contradicts"
    printed_counts = claim.protocol.comparable and edges == (0,)
    if isinstance(ours, PairedDifference) and printed_counts:
        outcome = verdict(claim.printed, ours, num_runs=claim.protocol.num_runs)
        if outcome.word == "not reproduced":
            return "contradicts"
    return "undecided"


def findings_text(table: pd.DataFrame) -> str:
    """The claims as Markdown lists, one for each scale: the claim, the paper's number, ours, the
    finding; and how to read them."""
    lines = []
    for scale, rows in table.groupby("scale", sort=False):
        for row in rows.itertuples():
            numbers = f"{row.quantity}: printed {row.printed}, here {row.here}"
            p = f", p {row.p}" if row.p.startswith("<") else f", p = {row.p}" if row.p else ""
            ours = " (ours)" if row.source == "ours" else ""
            claim = f"{row.claim}{ours} {numbers[0].upper()}{numbers[1:]}{p}"
            lines.append(f"- **{row.finding}:** {claim}.")
        lines.append(f"\n*{scale}*\n")
    return "\n".join([*lines, _READING])


def all_claims(figures: Path) -> pd.DataFrame:
    """The claims of every notebook, each at the largest scale at which it was run; a column
    ``notebook`` before those of `claims_table`.

    Raises:
        RecordError: some are not as their notebook wrote them.
    """
    tables = [pd.DataFrame(columns=["notebook", *COLUMNS])]
    for notebook in sorted(path for path in figures.glob("*") if path.is_dir()):
        files = [notebook / profile / "claims.csv" for profile in PROFILES]
        contents = [io.BytesIO(sealed_content(file)) for file in files if file.is_file()]
        if contents:
            every = pd.concat(
                pd.read_csv(content, dtype=str, keep_default_na=False) for content in contents
            )
            run_first = every.sort_values("finding", key=lambda f: f == MISSING, kind="stable")
            best = run_first.drop_duplicates("claim").set_index("claim")
            table = best.loc[every["claim"].unique()].reset_index()
            table.insert(0, "notebook", notebook.name)
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def findings_markdown(claims: pd.DataFrame) -> str:
    """README's findings: how many claims there are of each finding, and a table for each notebook
    and scale."""
    parts = []
    for source, whose in {"paper": "claims of the papers", "ours": "controls of ours"}.items():
        found = claims.loc[claims["source"] == source, "finding"].value_counts()
        counts = ", ".join(f"{count} {finding}" for finding, count in found.items())
        parts += [f"Of {found.sum()} {whose}: {counts}."] if len(found) else []
    for notebook, of_notebook in claims.groupby("notebook", sort=False):
        for scale, rows in of_notebook.groupby("scale", sort=False):
            about = scale.partition("; runs of")[0]  # the environments stand in claims.csv
            parts.append(f"**[{notebook}](notebooks/{notebook}.ipynb)**: {about}")
            parts.append(to_markdown(rows[_SHOWN]).rstrip())
    return "\n\n".join(parts) + "\n"


def effects(claims: pd.DataFrame) -> pd.DataFrame:
    """Of the claims with a printed effect and one of ours: the part of the printed effect that is
    found here, ``part ± half_width``: 1 is the printed size, 0 none. Claims of equality, and that
    something does no harm, see none.
    """
    number = r"([-+]?\d+\.?\d*)"
    printed = claims["printed"].str.extract(f"^{number}$")[0].astype(float)
    ours = claims["here"].str.extract(f"^{number} ± (\\d+\\.?\\d*)").astype(float)
    found = claims.assign(part=ours[0] / printed, half_width=ours[1] / printed.abs())
    of_a_side = ~claims["quantity"].str.contains(f"{_EQUAL}|{_NO_HARM}")
    return found[printed.abs().gt(0) & ours.notna().all(axis=1) & of_a_side]


def draw_effects(claims: pd.DataFrame) -> Figure:
    """README's picture: the part of each printed effect that is found here, by finding."""
    plotting.use_style()
    shown = effects(claims).reset_index(drop=True)
    fig = Figure(figsize=(9, 0.9 + 0.32 * len(shown)), layout="constrained")
    ax = fig.subplots()
    ax.axvline(0, color="0.6", linewidth=1)
    ax.axvline(1, color="0.6", linewidth=1, linestyle="--")
    for finding, rows in shown.groupby("finding"):
        style = {"color": _COLOURS[finding], "fmt": "o", "capsize": 3, "label": finding}
        ax.errorbar(rows["part"], rows.index, xerr=rows["half_width"], **style)
    low, high = _EDGES
    beyond = shown[~shown["part"].between(low, high)]
    for i, part, half in beyond[["part", "half_width"]].itertuples():  # an arrow says where
        end, marker, side = (low, "<", "left") if part < low else (high, ">", "right")
        ax.plot(end, i, marker=marker, color=_COLOURS[shown["finding"][i]], clip_on=False)
        number = f"  {part:.1f} ± {half:.1f}  ".replace("-", "−")
        ax.text(end, i, number, ha=side, va="bottom", fontsize=8)
    names = [
        f"{textwrap.shorten(row.claim, 72, placeholder=' …')}  {row.notebook[:2]}, "
        f"{row.scale.partition(',')[0]}"
        for row in shown.itertuples()
    ]
    ax.set_yticks(range(len(shown)), names)
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.set_xlim(*_EDGES)
    ax.set(xlabel="effect here / printed effect (0: none, 1: as printed)")
    if len(shown):
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4)
    return fig


def refresh(readme: Path, figures: Path) -> None:
    """Write the findings between their marks in README, and their picture.

    Raises:
        ParameterError: it has no marks. RecordError: see `all_claims`.
    """
    claims = all_claims(figures)
    write_between(readme, _MARKS, findings_markdown(claims))
    draw_effects(claims).savefig(figures / "findings.png", dpi=150, metadata={"Software": None})


def write_between(path: Path, marks: tuple[str, str], text: str) -> None:
    """Put ``text`` between two marks of a file.

    Raises:
        ParameterError: it has no such marks.
    """
    with store_errors(f"read {path}"):
        content = path.read_bytes().decode(errors="surrogateescape")
    above, begin, rest = content.partition(marks[0])
    _, end, below = rest.partition(marks[1])
    if not end:
        raise ParameterError(f"{path} has no {marks[0]!r} with {marks[1]!r} behind it")
    new = f"{above}{begin}\n{text}\n{end}{below}"
    write_atomically(path, new.encode(errors="surrogateescape"))


if __name__ == "__main__":
    sys.exit(refresh(project_root() / "README.md", project_root() / "figures"))
