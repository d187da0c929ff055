"""The static site: README, the executed notebooks, their figures, the reference (``make site``).

The pages are the repository's own files; this file only says how they look.
"""

import inspect
import re
import shutil
import sys
from pathlib import Path

import latex2mathml.converter
import nbformat
from docutils import nodes

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

project = "hardtrain"
author = "The hardtrain developers"
root_doc = "README"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "notebooks/*.ipynb",
    "site/*.md",
    "hardtrain/papers/errata.md",
    "benchmarks/*.md",
]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "hardtrain"
html_static_path = [str(Path(__file__).parent / "static")]
html_css_files = ["tables.css"]
html_favicon = str(Path(__file__).parent / "static" / "icon.svg")
html_copy_source = False
html_show_sphinx = False

nb_execution_mode = "off"  # the notebooks are committed with their outputs
nb_custom_formats = {".ipynb": "conf.folded"}
nb_render_markdown_format = "myst"  # outputs have tables, too
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.xref_missing", "mystnb.unknown_mime_type"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_google_docstring = True


def folded(text: str) -> nbformat.NotebookNode:
    """A notebook whose code is folded away (but for cells that are tagged ``show-input``), its
    outputs open, their links to the site's pages."""
    notebook = nbformat.reads(
        text.replace("papers/errata.md#", "papers/errata.html#"), as_version=4
    )
    for cell in notebook.cells:
        if cell.cell_type == "code" and "show-input" not in cell.metadata.get("tags", []):
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]
    return notebook


def _mathml(kind: str):
    """Formulas as MathML, which browsers draw by themselves: no script from another host."""

    def visit(translator, node: nodes.Node) -> None:
        lines = node.astext().split("\\\\") if kind == "block" else [node.astext()]
        for line in lines:
            source = line.replace("&", "").strip()
            translator.body.append(latex2mathml.converter.convert(source, display=kind))
        raise nodes.SkipNode

    return visit


def _reference() -> str:
    """The contents page of the package, a section a module."""
    import hardtrain

    homes: dict[str, list[str]] = {}
    for name in hardtrain.__all__:
        homes.setdefault(hardtrain._HOMES[name], []).append(name)
    text = ""
    for module, names in homes.items():
        text += f"\n## {module}\n\n```{{eval-rst}}\n"
        for name in names:
            is_class = inspect.isclass(getattr(hardtrain, name))
            text += f".. {'autoclass' if is_class else 'autofunction'}:: {module}.{name}\n"
            text += "   :members:\n\n" if is_class else "\n"
        text += "```\n"
    return text


def _figures() -> str:
    """Every figure folder with its pictures."""
    text = ""
    for folder in sorted(path for path in (ROOT / "figures").glob("*/*") if path.is_dir()):
        pictures = sorted(folder.glob("*.png"))
        if pictures:
            text += f"\n## {folder.parent.name} {folder.name}\n\n"
            text += "".join(f"![{p.stem}](../{p.relative_to(ROOT)})\n" for p in pictures)
    return text


def _completed(app, docname: str, source: list[str]) -> None:
    """What is written by the repository's content: the table of pages, reference, figures."""
    if docname == "README":
        folder = r"\]\(figures/(\w+)/(\w+)\)"
        source[0] = re.sub(folder, r"](site/figures.md#\1-\2)", source[0])
        pages = [*sorted(app.env.found_docs - {"README"})]
        source[0] += "\n```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n"
    elif docname == "site/reference":
        source[0] += _reference()
    elif docname == "site/figures":
        source[0] += _figures()


def _front_door(app, error: Exception | None) -> None:
    if error is None:
        shutil.copy(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app):
    app.connect("source-read", _completed)
    app.connect("build-finished", _front_door)
    for node, kind in ((nodes.math, "inline"), (nodes.math_block, "block")):
        app.add_node(node, html=(_mathml(kind), None), override=True)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
