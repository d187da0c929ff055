"""Every number that a notebook's text states stands in a table, in the paper, or in its code."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0[1-8]_*.ipynb"))  # 09 trains no runs
PAPERS = {  # the notebook's number: the files of its printed tables, its section of errata.md
    "01": ("trimming", "000"),
    "02": ("hard_minibatches", "001"),
    "03": ("gradient_noise", "002"),
    "04": ("itdm", "003"),
    "05": ("data_parallelism", "004"),
}
# decimals, and whole numbers of % or points; neither names (arXiv 2304.03486) nor exponents
STATED = re.compile(r"(?<![\w.])(\d+\.\d+|\d+(?= ?%| points?\b))(?![\w.]*\d)")
ANY = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?")
NOT_TEXT = re.compile(
    r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)|<[^>]*>|arXiv:? ?\d+\.\d+|[Ss]ections? [\d., and]+"
)


def stated_numbers(text):
    return STATED.findall(NOT_TEXT.sub(" ", text))


def numbers_of(*texts):
    return {float(number) for text in texts for number in ANY.findall(text)}


def unsupported(text, known):
    """The numbers that ``text`` states and no known number rounds to, as it is or in %."""
    found = []
    for number in stated_numbers(text):
        places = len(number.partition(".")[2])
        pool = known | {100 * value for value in known if value <= 1}
        if not any(abs(value - float(number)) <= 0.5000001 * 10**-places for value in pool):
            found.append(number)
    return found


def cells(path):
    """Static texts and code of a notebook, and what its cells said in Markdown (no tables)."""
    notebook = nbformat.read(path, as_version=4)
    static = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    outputs = (out for cell in notebook.cells for out in cell.get("outputs", ()))
    said = [out.get("data", {}).get("text/markdown", "") for out in outputs]
    return static, code, ["".join(text) for text in said if not "".join(text).startswith("|")]


def profile_of(code):
    (line,) = re.findall(r'^profile: str = "(\w+)"', "\n".join(code), re.M)
    return line


def tables_of(path, profile):
    folder = ROOT / "figures" / path.stem / profile
    return [
        p.read_text() for p in (*folder.glob("table_*.csv"), folder / "claims.csv") if p.exists()
    ]


def printed_in(path):
    """The tables that the notebook's paper prints, and what errata.md says of it."""
    papers = ROOT / "hardtrain" / "papers"
    name, number = PAPERS.get(path.stem[:2], ("none", "none"))
    errata = (papers / "errata.md").read_text().split("\n### ")
    own = [text for text in errata if text.startswith(number)]
    return own + [file.read_text() for file in papers.glob(f"{name}_*.csv")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_no_number_that_its_tables_do_not_hold(path):
    static, code, said = cells(path)
    tables = tables_of(path, profile_of(code))
    results = numbers_of(*tables)
    printed = printed_in(path)
    assert [text for text in said if unsupported(text, results | numbers_of(*printed))] == []
    settings = results | numbers_of(*printed, *code)
    wrong = {text[:60]: unsupported(text, settings) for text in static}
    assert {text: numbers for text, numbers in wrong.items() if numbers} == {}


def test_a_planted_number_is_caught():
    known = numbers_of("error,2.98 ± 0.41\nshare,0.182\n")
    assert unsupported("It is 2.98 % of 18.2 %, or 3 %.", known) == []
    assert unsupported("It is 2.97 %.", known) == ["2.97"]
    assert unsupported("It is 7 % here, 5 points there, 19.2 %.", known) == ["7", "5", "19.2"]
    assert unsupported("arXiv 2304.03486, `lr=0.33`, section 3.2, $0.77$, [a](b_1.55)", known) == []
    assert unsupported("−0.19 ± 0.39 points", numbers_of("-0.19 ± 0.39")) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_number_planted_in_a_notebook_is_caught(path):
    _, code, said = cells(path)
    results = numbers_of(*tables_of(path, profile_of(code)), *printed_in(path))
    assert said
    assert unsupported(f"{said[-1]} The error falls by 12.347 points.", results)[-1] == "12.347"
