"""Which runs a notebook asks for, and what those would cost that are missing. Nothing is trained.

The notebook's cells are executed here, one after the other, up to the first that asks for runs
which are not finished. Its tables and figures go to a folder that is thrown away.
"""

import contextlib
import io
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

from hardtrain.data.images import pretended
from hardtrain.errors import ParameterError
from hardtrain.report.execute import read_notebook
from hardtrain.report.notebook import Notebook
from hardtrain.report.timing import machine
from hardtrain.runs import costs
from hardtrain.runs.run import Run
from hardtrain.runs.status import spoken
from hardtrain.runs.store import RunStore
from hardtrain.runs.sweep import NotTrained, nothing_trained

_GIVEN = "# Parameters"  # begins the cell behind that of parameters, as papermill's does


@dataclass
class Plan:
    """What a notebook asks for.

    Attributes:
        caption: of the notebook: its profile and what was changed in it.
        finished, missing: the runs, as far as they are known.
        more: whether the notebook may ask for more, which depends on what the missing ones give.
        left_out: cells that did not work without training, or without the data: why.
    """

    caption: str
    finished: list[Run]
    missing: list[Run]
    more: bool
    left_out: list[str]

    def describe(self, name: str, store: RunStore) -> str:
        """The plan in a few lines, with hours for what is missing."""
        lines = [f"{name}, {self.caption}"]
        total = len(self.finished) + len(self.missing)
        lines.append(f"  {total} runs: {len(self.finished)} finished, {len(self.missing)} missing")
        if self.missing:
            seconds, ways = costs.seconds(self.missing, store)
            device = self.missing[0].device
            lines[-1] += f", {spoken(sum(seconds))} on {machine(device)}, one after the other"
            groups: dict[tuple[str, str, str], list[float]] = {}
            for run, cost in zip(self.missing, seconds, strict=True):
                groups.setdefault((run.dataset, run.network, run.method), []).append(cost)
            for group, times in sorted(groups.items(), key=lambda item: -sum(item[1])):
                lines.append(f"    {spoken(sum(times)):>8}  {len(times):4} x {', '.join(group)}")
            known = ", ".join(f"{count} {way}" for way, count in ways.items())
            lines.append(f"  times: {known}; network and loop alone, without loading data")
        lines += [f"  left out: {text}" for text in self.left_out]
        if self.more:
            lines.append(
                "  more runs follow, unknown until these are trained: the notebook chooses them by "
                "their results"
            )
        if not total and self.left_out:
            lines.append("  which runs it asks for is unknown here; see what was left out")
        return "\n".join(lines)


def plan(notebook: Path, parameters: Mapping[str, object]) -> Plan:
    """What ``notebook`` asks for with these parameters.

    Raises:
        ParameterError: a parameter is unknown, or its value not allowed.
    """
    sources = _sources(notebook, parameters)
    if not any(source.startswith(_GIVEN) for _, source in sources):
        return Plan("without parameters", [], [], more=False, left_out=[])
    space: dict = {"__name__": "__main__", "In": [""]}
    left_out: list[str] = []
    more = False
    with tempfile.TemporaryDirectory() as folder, _aside(notebook) as asked:
        for number, (cell, source) in enumerate(sources):
            space["In"].append(source)
            if "out_dir" in space and not _book(space):
                space["out_dir"] = folder  # nothing of the notebook's own folder is touched
            try:
                exec(compile(source, f"{notebook.name}, cell {cell}", "exec"), space)
            except NotTrained:
                later = sum(_requests(source) for _, source in sources[number + 1 :])
                more = later > 0 or _requests(source) > 1
                break
            except (Exception, SystemExit) as error:
                if isinstance(error, ParameterError) and not asked:  # of all, or of the first runs
                    raise
                if getattr(error, "name", "") == "get_ipython":  # %magic
                    continue
                if not _book(space):
                    at = f"{notebook}, cell {cell}"
                    raise ParameterError(f"{at}: {type(error).__name__}: {error}") from error
                if isinstance(error, NameError):  # of what an earlier cell would have given
                    continue
                text = str(error).split(". ")[0]
                left_out.append(f"cell {cell} ({type(error).__name__}: {text})")
    runs = {run.key: (run, finished) for run, finished in asked}
    return Plan(
        caption=getattr(_book(space), "caption", ""),
        finished=[run for run, finished in runs.values() if finished],
        missing=[run for run, finished in runs.values() if not finished],
        more=more,
        left_out=left_out,
    )


def _sources(notebook: Path, parameters: Mapping[str, object]) -> list[tuple[int, str]]:
    """The code cells with their numbers, the given parameters behind those of the notebook."""
    for name in parameters:
        if not name.isidentifier():
            raise ParameterError(f"parameter {name!r} is no name")
    given = "\n".join([_GIVEN, *(f"{k} = {v!r}" for k, v in parameters.items())])
    plain = TransformerManager().transform_cell  # without %magic
    sources = []
    for number, cell in enumerate(read_notebook(notebook).cells):
        if cell.cell_type == "code":
            sources.append((number, plain(cell.source)))
            if "parameters" in cell.metadata.get("tags", []):
                sources.append((number, given))
    return sources


def _book(space: Mapping) -> Notebook | None:
    return next((value for value in space.values() if isinstance(value, Notebook)), None)


def _requests(source: str) -> int:
    """How often a cell names a notebook's ``run`` or ``results``."""
    return len(re.findall(r"\bbook\.(?:run|results)\b", source))


@contextlib.contextmanager
def _aside(notebook: Path) -> Iterator[list[tuple[Run, bool]]]:
    """In the notebook's folder, without its printed lines, windows and downloads; gives the runs
    that are asked for, and whether each is finished."""
    import matplotlib.pyplot as plt

    backend = plt.get_backend()
    plt.switch_backend("Agg")
    try:
        with contextlib.chdir(notebook.parent), contextlib.redirect_stdout(io.StringIO()):
            with nothing_trained() as asked, pretended():
                yield asked
    finally:
        plt.close("all")
        plt.switch_backend(backend)
