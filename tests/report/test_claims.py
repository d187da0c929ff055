"""Claims: which finding follows from which interval, p value and protocol; files and README."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from hardtrain import ParameterError, RecordError, StoreError
from hardtrain.report.claims import (
    COLUMNS,
    Claim,
    all_claims,
    claims_table,
    draw_effects,
    effects,
    findings_markdown,
    findings_text,
    refresh,
)
from hardtrain.report.tables import Protocol
from hardtrain.runs.committed import seal_folder
from hardtrain.statistics import Interval, PairedDifference, paired_difference


def gap(low, high, p=0.01, n=5, spread=0.0):
    return PairedDifference((low + high) / 2, low, high, p, n, spread)


def findings(*claims):
    return claims_table(claims, "digits")["finding"].tolist()


def claim(expected, found, **about):
    return Claim("It helps.", "error (points)", expected, found, **about)


@pytest.mark.parametrize(
    ("expected", "found", "finding"),
    [
        ("lower", gap(-0.7, -0.1), "supports"),
        ("lower", gap(0.1, 0.7), "contradicts"),
        ("higher", gap(0.1, 0.7), "supports"),
        ("higher", gap(-0.7, -0.1), "contradicts"),
        ("higher", gap(-0.1, 0.7, p=0.1), "undecided"),
        ("higher", gap(0.1, 0.7, n=2), "undecided"),
        ("higher", PairedDifference(0.3, math.nan, math.nan, math.nan, 1), "undecided"),
        ("higher", Interval(0.4, 0.1, 0.7, 5), "supports"),  # a bootstrap's: no p value
        ("higher", Interval(0.4, -0.1, 0.9, 5), "undecided"),
        ("higher", None, "not run"),
        ("higher", [], "not run"),
        ("higher", [None, None], "not run"),
    ],
)
def test_the_side_of_zero_decides(expected, found, finding):
    assert findings(claim(expected, found)) == [finding]


@pytest.mark.parametrize(
    ("low", "high", "finding"),
    [(-0.4, 0.3, "supports"), (-0.49, 0.49, "supports"), (-0.5, 0.5, "undecided"),
     (0.1, 0.6, "undecided"), (0.6, 0.9, "contradicts"), (-0.9, -0.6, "contradicts"),
     (-2.0, 2.0, "undecided")],
)  # fmt: skip
def test_equal_means_within_the_margin(low, high, finding):
    assert findings(claim("equal", gap(low, high), margin=0.5)) == [finding]


@pytest.mark.parametrize(
    ("expected", "low", "high", "finding"),
    [("higher", -0.9, 0.1, "supports"), ("higher", -1.5, -0.5, "undecided"),
     ("higher", -2.5, -1.1, "contradicts"), ("lower", -2.5, -1.1, "supports"),
     ("lower", -0.9, 0.1, "contradicts")],
)  # fmt: skip
def test_an_edge_other_than_zero_is_held_against_and_said(expected, low, high, finding):
    made = claim(expected, gap(low, high), edge=-1.0, printed=-5.0, protocol=Protocol(True))
    row = claims_table([made], "digits").iloc[0]
    assert (row["finding"], row["quantity"]) == (finding, f"error (points); {expected} than -1")


@pytest.mark.parametrize("about", [{"expected": "higher", "edge": -1.0}, {"expected": "equal"}])
@pytest.mark.parametrize("mean", [-1.9, -0.2, 0.7, 1.6])
def test_p_is_that_of_a_mean_at_the_nearest_edge(about, mean):
    values = mean + np.random.default_rng(0).normal(0, 0.3, 6)
    found = paired_difference(dict(enumerate(values)), dict.fromkeys(range(6), 0.0))
    made = Claim("It is so.", "q", found=found, margin=1.0, **about)
    edge = -1.0 if "edge" in about else math.copysign(1.0, values.mean())
    expected = scipy.stats.ttest_1samp(values, edge).pvalue
    row = claims_table([made], "digits").iloc[0]
    assert row["p"] == (f"{expected:.3f}" if expected >= 0.001 else "< 0.001")
    assert (row["finding"] == "undecided") == (expected >= 0.05)


@pytest.mark.parametrize(
    ("difference", "n", "finding"),
    [(0.0, 6, "supports"), (0.2, 6, "supports"), (0.7, 6, "contradicts"), (0.5, 6, "undecided"),
     (0.0, 5, "undecided")],
)  # fmt: skip
def test_differences_that_are_equal_in_each_seed_have_the_sign_tests_p(difference, n, finding):
    found = paired_difference(dict.fromkeys(range(n), difference), dict.fromkeys(range(n), 0.0))
    row = claims_table([claim("equal", found, margin=0.5)], "digits").iloc[0]
    p = 1.0 if difference == 0.5 else 2.0 ** (1 - n)
    assert (row["finding"], row["p"]) == (finding, f"{p:.3f}")


def test_equality_of_many_is_a_claim_on_all_of_them():
    inside, near, outside = gap(-0.2, 0.2), gap(0.1, 0.9), gap(2.0, 2.6)
    assert findings(claim("equal", [inside, None, inside], margin=1.0)) == ["supports"]
    assert findings(claim("equal", [inside, gap(-0.7, 1.1)], margin=1.0)) == ["undecided"]
    assert findings(claim("equal", [inside, near, outside], margin=1.0)) == ["contradicts"]
    barely = gap(1.05, 2.0)  # p 0.04 alone, and 0.12 of three
    assert findings(claim("equal", [barely], margin=1.0)) == ["contradicts"]
    near_edge = gap(-0.7, 1.1)
    assert findings(claim("equal", [barely, near_edge, near_edge], margin=1.0)) == ["undecided"]
    assert findings(claim("equal", [None], margin=1.0)) == ["not run"]


def test_p_values_are_corrected_over_the_claims_of_a_table():
    weak, strong = claim("lower", gap(-0.7, -0.1, p=0.03)), claim("lower", gap(-2, -1, p=0.0001))
    assert findings(weak) == ["supports"]
    assert findings(weak, strong) == ["supports", "supports"]  # 0.03 stands last
    assert findings(weak, weak) == ["undecided", "undecided"]
    table = claims_table([weak, weak, strong], "digits")
    assert table["p"].tolist() == ["0.060", "0.060", "< 0.001"]


def test_any_of_many_is_held_against_its_own_chance_level():
    some = [gap(-0.7, -0.1, p=0.03), gap(-0.2, 0.6, p=0.4), None]
    assert findings(claim("lower", some[:1])) == ["supports"]
    assert findings(claim("lower", some)) == ["undecided"]  # 2 x 0.03
    some[1] = gap(-3, -2, p=0.001)
    row = claims_table([claim("lower", some)], "digits").iloc[0]
    assert (row["finding"], row["p"]) == ("supports", "0.002")
    assert row["here"].startswith("-2.50")


def test_one_of_many_on_the_other_side_contradicts_no_claim_on_some():
    worse = gap(2, 3, p=0.001)
    assert findings(claim("lower", [worse, gap(-0.6, 0.2, p=0.3)])) == ["undecided"]
    assert findings(claim("lower", [worse, gap(-0.7, -0.1, p=0.02)])) == ["supports"]
    assert findings(claim("lower", [worse, gap(-0.2, 0.6, p=0.4)])) == ["undecided"]
    assert findings(claim("lower", [worse, gap(0.5, 1, p=0.01)])) == ["contradicts"]


def test_a_number_that_such_a_paper_would_not_print_is_contradicted_at_its_own_protocol():
    near_zero = gap(-0.1, 0.1, p=0.9)
    paper = {"printed": -0.8, "protocol": Protocol(True)}
    assert findings(claim("lower", near_zero, **paper)) == ["contradicts"]
    assert findings(claim("lower", near_zero, printed=-0.8)) == ["undecided"]
    assert findings(claim("lower", gap(-0.9, 0.1, p=0.1), **paper)) == ["undecided"]


def test_another_expectation_is_refused():
    with pytest.raises(ParameterError, match="did you mean 'lower'"):
        claims_table([claim("low", None)], "digits")
    with pytest.raises(ParameterError, match="did you mean 'ours'"):
        claims_table([claim("lower", None, source="our")], "digits")


def test_a_row_says_what_was_printed_and_found():
    row = claims_table([claim("lower", gap(-0.7, -0.1), printed=-0.42, digits=1)], "digits, quick")
    assert row.columns.tolist() == COLUMNS
    assert row.iloc[0].tolist() == [
        "It helps.", "paper", "error (points)", "-0.4", "-0.4 ± 0.3 (n = 5)", "5", "0.010",
        "supports", "digits, quick",
    ]  # fmt: skip
    text = findings_text(row)
    assert text.startswith(
        "- **supports:** It helps. Error (points): printed -0.4, here -0.4 ± 0.3"
    )
    assert text.splitlines()[2] == "*digits, quick*"
    assert text.splitlines()[-1].startswith("A finding says on which side")
    of_ours = findings_text(claims_table([claim("lower", None, source="ours")], "digits"))
    assert of_ours.startswith("- **not run:** It helps. (ours) Error")
    other = claim("lower", None, scale="cifar10")
    assert claims_table([other], "digits")["scale"].tolist() == ["cifar10"]
    both = findings_text(claims_table([claim("lower", None), other, other], "digits"))
    assert [line for line in both.splitlines() if line.startswith("*")] == ["*digits*", "*cifar10*"]
    assert both.index("*digits*") < both.rindex("- **not run:**")


def write(folder, **found):
    folder.mkdir(parents=True)
    made = [Claim(text, "q", "lower", ours) for text, ours in found.items()]
    claims_table(made, f"{folder.name}, 5 seeds").to_csv(folder / "claims.csv", index=False)
    seal_folder(folder, ["claims.csv"])


def test_readme_shows_each_claim_at_the_largest_scale_at_which_it_was_run(tmp_path):
    figures = tmp_path / "figures"
    write(figures / "01_a" / "quick", both=gap(-3, -2), quick_only=gap(-2, -1), neither=None)
    write(figures / "01_a" / "reduced", both=gap(-2, -1), quick_only=None, neither=None)
    write(figures / "02_b" / "quick", other=gap(1, 2))
    (figures / "03_c" / "paper").mkdir(parents=True)
    (figures / "README.md").touch()
    table = all_claims(figures)
    assert table[["notebook", "claim", "finding", "scale"]].to_numpy().tolist() == [
        ["01_a", "both", "supports", "reduced, 5 seeds"],
        ["01_a", "quick_only", "supports", "quick, 5 seeds"],
        ["01_a", "neither", "not run", "reduced, 5 seeds"],
        ["02_b", "other", "contradicts", "quick, 5 seeds"],
    ]
    text = findings_markdown(table.replace("reduced, 5 seeds", "reduced, 5 seeds; runs of 2 cards"))
    assert text.startswith(
        "Of 4 claims of the papers: 2 supports, 1 not run, 1 contradicts.\n\n**[01_a]"
    )
    asked = findings_markdown(table.assign(source=["paper", "ours", "ours", "paper"]))
    assert asked.startswith(
        "Of 2 claims of the papers: 1 supports, 1 contradicts.\n\n"
        "Of 2 controls of ours: 1 supports, 1 not run.\n\n"
    )
    assert text.count("**[01_a](notebooks/01_a.ipynb)**: reduced, 5 seeds\n\n| claim |") == 1
    assert text.count("**[01_a](notebooks/01_a.ipynb)**: quick, 5 seeds\n\n| claim |") == 1
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- findings -->\nold\n<!-- end of findings -->\nbelow\n")
    refresh(readme, figures)
    once = readme.read_text()
    assert once.startswith("above\n<!-- findings -->\n")
    assert once.endswith("<!-- end of findings -->\nbelow\n")
    assert findings_markdown(table) in once
    assert (figures / "findings.png").stat().st_size > 1000
    assert "old" not in once
    refresh(readme, figures)
    assert readme.read_text() == once


def test_edited_claims_are_refused_and_not_shown(tmp_path):
    write(tmp_path / "01_a" / "quick", helps=None)
    path = tmp_path / "01_a" / "quick" / "claims.csv"
    path.write_text(path.read_text().replace("not run", "supports"))
    with pytest.raises(RecordError, match=r"claims\.csv is missing, torn or edited"):
        all_claims(tmp_path)
    seal_folder(path.parent, ["claims.csv"])
    assert all_claims(tmp_path)["finding"].tolist() == ["supports"]


@pytest.mark.parametrize("text", ["", "<!-- end of findings -->\n<!-- findings -->\n"])
def test_a_readme_without_its_marks_is_refused(tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ParameterError, match=r"README\.md has no '<!-- findings -->"):
        refresh(readme, tmp_path)
    assert readme.read_text() == text
    with pytest.raises(StoreError, match="could not read"):
        refresh(tmp_path / "none.md", tmp_path)


def test_no_claims_make_an_empty_table(tmp_path):
    assert all_claims(tmp_path).columns.tolist() == ["notebook", *COLUMNS]
    assert isinstance(claims_table([], "s"), pd.DataFrame)


def test_effects_are_parts_of_the_printed_ones():
    about = {"printed": -0.5}
    made = claims_table(
        [
            claim("lower", gap(-0.7, -0.1), **about),
            claim("lower", gap(0.1, 0.3), **about),
            claim("lower", None, **about),
            claim("lower", gap(-0.7, -0.1)),  # no number is printed
            claim("lower", PairedDifference(-0.4, -math.inf, math.inf, 0.2, 3), **about),
            claim("equal", gap(-0.7, -0.1), margin=1.0, **about),
            claim("lower", gap(-0.7, -0.1), edge=1.0, **about),  # does no harm
            claim("higher", gap(-0.7, -0.1), edge=-1.0, **about),
            claim("lower", gap(2.0, 2.2), **about),
        ],
        "digits",
    )
    found = effects(made.assign(notebook="01_a"))
    assert found["part"].tolist() == pytest.approx([0.8, -0.4, -4.2])
    assert found["half_width"].tolist() == pytest.approx([0.6, 0.2, 0.2])
    (ax,) = draw_effects(made.assign(notebook="01_a")).axes
    assert [text.get_text() for text in ax.get_yticklabels()] == 3 * ["It helps.  01, digits"]
    assert [text.get_text().strip() for text in ax.texts] == ["−4.2 ± 0.2"], "beyond the axis"
    assert ax.texts[0].get_position() == (ax.get_xlim()[0], 2)
