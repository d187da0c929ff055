"""What every notebook of a paper needs: checked parameters, profiles, figure data, an end."""

import ast
import inspect
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from hardtrain import checks
from hardtrain.data.images import DATASETS, SIZES, load_dataset
from hardtrain.data.npz import SPLITS
from hardtrain.errors import ParameterError, RecordError, StoreError, unknown_name
from hardtrain.files import project_root, sha256, store_errors, user_path, write_atomically
from hardtrain.networks import NETWORKS
from hardtrain.report import plotting
from hardtrain.report.claims import Claim, claims_table, findings_text
from hardtrain.report.figure_data import figure_data
from hardtrain.report.sizes import sizes_at_hand
from hardtrain.report.tables import one_class
from hardtrain.report.text import to_markdown
from hardtrain.runs.committed import CHANGES, seal_folder
from hardtrain.runs.results import environments, load_history, write_results
from hardtrain.runs.run import Run
from hardtrain.runs.run_data import forget_data
from hardtrain.runs.store import RunStore
from hardtrain.runs.sweep import engine_options, run_missing

END_MARKER = "complete:"  # the runner takes a notebook without it in its last cell as failed
# parameters that do not change numbers, or that the caption names anyway
_ENGINE = ("engine", "ray_address", "gpus_per_run", "cpus_per_run", "max_runs_at_once")
_ELSEWHERE = ("profile", "device", *_ENGINE, "data_root", "out_dir", "use_committed", "train")


def _each_entry(check: Callable[[str, object], object], name: str, value: object) -> None:
    for entry in checks.listed(name, value):
        check(f"entry of {name}", entry)


_CHECKS: dict[str, Callable[[str, object], object]] = {
    "bool": checks.flag,
    "str": checks.text,
    "float": checks.number,
    "int": partial(checks.integer, low=0),
}
_CHECKS |= {f"list[{kind}]": partial(_each_entry, check) for kind, check in _CHECKS.items()}


def check_parameters(namespace: Mapping) -> list[str]:
    """Refuse unknown names and wrong types among a notebook's parameters.

    The annotated assignments of the parameters cell (``epochs: int = None``) say which names and
    types there are, and which may be ``None``. papermill puts what the user gave into a cell
    behind it. Both are looked for in IPython's history, so that running one cell or all cells
    again finds the same.

    Returns:
        The names whose value is not the declared default. Nothing where cells leave no history
        (nbval, an exported script).

    Raises:
        ParameterError: names the parameter, the value, what is allowed, the nearest name.
    """
    declared: dict[str, ast.AnnAssign] = {}
    assigned: list[str] = []
    for source in namespace.get("In", [])[:-1]:
        if source.startswith("# Parameters"):  # papermill's first line
            assigned += _given_names(source)
        elif "profile" in (annotated := _annotated(_parsed(source))):
            declared = annotated
            assigned = _stored_names(_parsed(source))
    if not declared:
        _check_types(namespace)
    for name in assigned:
        if name not in declared:
            raise unknown_name("parameter", name, declared)
    changed = []
    for name, node in declared.items():
        value, default = namespace[name], ast.literal_eval(node.value)
        check = _CHECKS[checks.choice(f"type of {name}", ast.unparse(node.annotation), _CHECKS)]
        if value is not None or default is not None:
            check(name, value)
        if value != default:
            changed.append(name)
    return changed


def _annotated(cell: ast.Module) -> dict[str, ast.AnnAssign]:
    nodes = [node for node in cell.body if isinstance(node, ast.AnnAssign)]
    return {node.target.id: node for node in nodes if isinstance(node.target, ast.Name)}


def _stored_names(cell: ast.AST) -> list[str]:
    names = [node for node in ast.walk(cell) if isinstance(node, ast.Name)]
    return [node.id for node in names if isinstance(node.ctx, ast.Store)]


def _given_names(source: str) -> list[str]:
    """The names that papermill's cell assigns; papermill writes a name as it was given, be it
    code."""
    for node in _parsed(source).body:
        plain = isinstance(node, ast.Assign) and len(node.targets) == 1
        if not plain or not isinstance(node.targets[0], ast.Name):
            given = ast.unparse(node)
            raise ParameterError(f"the name of a parameter is no name: {given[:80]!r}")
    return _stored_names(_parsed(source))


def _check_types(namespace: Mapping) -> None:
    """Of annotated names, where cells leave no history (an exported script, other kernels)."""
    for name, annotation in namespace.get("__annotations__", {}).items():
        kind = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
        kind = str(annotation) if "[" in str(annotation) else kind
        if kind in _CHECKS and namespace.get(name) is not None:
            _CHECKS[kind](name, namespace[name])


def parameter_names(source: str) -> list[str]:
    """The names that a parameters cell declares."""
    return list(_annotated(_parsed(source)))


def default_profile(source: str) -> str | None:
    """The profile that a parameters cell names; ``None`` if it has none."""
    node = _annotated(_parsed(source)).get("profile")
    return ast.literal_eval(node.value) if node and node.value else None


def _parsed(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError:  # a cell that failed
        return ast.parse("")


def choose_profile(profiles: Mapping[str, Mapping], namespace: Mapping) -> SimpleNamespace:
    """The profile that the notebook's parameter ``profile`` names, overridden by the parameters
    of the same names that are not ``None``.

    Networks must be known; data sets too, and without ``use_committed`` they must be at hand (or
    are downloaded), so that whatever is missing is said before anything is drawn.

    Returns:
        The profile's entries as attributes, with ``profile`` (its name) and ``changed`` (the
        names of the overridden entries).

    Example:
        >>> profiles = {"quick": {"epochs": 20, "seeds": [0, 1]}}
        >>> choose_profile(profiles, {"profile": "quick", "epochs": 3, "seeds": None})
        namespace(profile='quick', epochs=3, seeds=[0, 1], changed=['epochs'])
    """
    forget_data()  # a notebook begins: files may have changed since it last ran in this kernel
    profile = checks.choice("profile", namespace["profile"], profiles)
    chosen = dict(profiles[profile])
    changed = [name for name in chosen if namespace.get(name) not in (None, chosen[name])]
    chosen |= {name: namespace[name] for name in changed}
    for name, value in chosen.items():
        if isinstance(value, (list, tuple)) and not checks.listed(name, value):
            raise ParameterError(f"{name} = [] is empty; give at least one")
    for name in chosen.get("networks", ()):
        checks.name_or_own("network", name, NETWORKS)
    trains = not namespace.get("use_committed", True) and namespace.get("train", True)
    numbers = []
    for name in chosen.get("datasets", ()):
        if trains or name not in DATASETS:  # committed results can be looked at without the data
            splits = [load_dataset(name, s, root=namespace.get("data_root")) for s in SPLITS]
            numbers.append(tuple(map(len, splits)))
        else:
            numbers.append(SIZES[name][:2])
    if numbers:
        given = [name for name in chosen if namespace.get(name) is not None]
        chosen |= sizes_at_hand(chosen, given, *map(min, zip(*numbers, strict=True)))
    return SimpleNamespace(profile=profile, **chosen, changed=changed)


class Notebook:
    """A notebook at work: its parameters, where its files go, and which it has written.

    Args:
        name: of the notebook, as its file.
        profiles: settings by the name of the profile.
        namespace: ``globals()`` of the cell behind the parameters cell.
        allowed: further checks by the name of a setting, ``check(name, value)``; of a list each
            entry is checked.

    Attributes:
        p: the settings of the profile, as overridden; see `choose_profile`.
        out: the folder of tables and figures. store: the run store.
        caption: profile, what was changed in it, epochs, seeds, sizes; the note of every table
            and figure that is given no other.

    Raises:
        ParameterError: a parameter is unknown, or its value not allowed.
    """

    def __init__(
        self,
        name: str,
        profiles: Mapping[str, Mapping],
        namespace: Mapping,
        *,
        allowed: Mapping[str, Callable] = types.MappingProxyType({}),
    ):
        for common in ("profile", "device", "data_root", "out_dir", "use_committed"):
            if common not in namespace:
                raise ParameterError(f"the parameters lack {common!r}, which every notebook has")
        changed = check_parameters(namespace)
        self.p = p = choose_profile(profiles, namespace)
        for setting, check in allowed.items():
            value = getattr(p, setting, namespace.get(setting))
            if isinstance(value, (list, tuple)):
                _each_entry(check, setting, value)
            else:
                check(setting, value)
        p.changed += [key for key in changed if key not in (*vars(p), *_ELSEWHERE)]
        self.use_committed = namespace["use_committed"]
        given = {name: namespace[name] for name in _ENGINE if name in namespace}
        engine = given.pop("engine", "local")
        self.engine = {"engine": engine, **engine_options(engine, given)}
        self.trains = namespace.get("train", True)
        self.places = {place: namespace[place] for place in ("device", "data_root")}
        self.is_profiles_own = not (p.changed or namespace["out_dir"])
        self.name, self.out = name, self._folder(name, namespace["out_dir"])
        self.store = RunStore()
        changes = f" (changed: {', '.join(p.changed)})" if p.changed else ""
        sizes = f"{p.train_size or 'all'} training and {p.test_size or 'all'} test images"
        self.caption = (
            f"{p.profile} profile{changes}: {p.epochs} epochs, {len(p.seeds)} seeds, {sizes}"
        )
        if (precision := getattr(p, "precision", "float32")) != "float32":
            self.caption += f", {precision}"
        self._written: set[str] = set()
        plotting.use_style()
        if p.profile == "quick":  # tiny networks: faster, and the same bits on any number of cores
            torch.set_num_threads(1)

    def _folder(self, name: str, out_dir: str | None) -> Path:
        """``out_dir``, else ``NAME/PROFILE`` below ``$HARDTRAIN_FIGURES`` or the repository's
        ``figures``, ``NAME/PROFILE+changes`` if parameters change what is in the profile. Created,
        and seen to be writable."""
        given = os.environ.get("HARDTRAIN_FIGURES")
        root = user_path("HARDTRAIN_FIGURES", given) if given else project_root() / "figures"
        # committed files are those of the profile as it is
        changed = CHANGES if self.p.changed else ""
        folder = user_path("out_dir", out_dir or root / name / f"{self.p.profile}{changed}")
        with store_errors(f"make {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise StoreError(f"{folder} cannot be written")
        return folder

    def run(self, runs: Iterable[Run]) -> pd.DataFrame:
        """Train what is missing of ``runs``; a row for each, as ``run_missing`` gives it. With the
        notebook's parameter ``train`` false nothing is trained: a row for each that there is."""
        return run_missing(
            runs,
            self.store,
            use_committed=self.use_committed,
            train_missing=self.trains,
            **self.engine,
        )

    def results(self, runs: Iterable[Run] | pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Results and history of all of the notebook's runs, trained or taken from ``run``, also
        written to ``results.csv``, ``history.csv`` and ``timings.csv``. Rows of runs that the
        profile no longer has leave its folder."""
        if not isinstance(runs, pd.DataFrame):
            runs = list(runs)
            keys, results = {run.key for run in runs}, self.run(runs)
            if absent := len(keys - set(results["key"])):
                command = f"papermill {self.name}.ipynb OUT.ipynb -p profile {self.p.profile}"
                print(f"{absent} of {len(keys)} runs not run; {command} trains them")
                self._note(f"{len(keys) - absent} of {len(keys)} runs so far")
        else:  # all of them, if what was missing was trained
            results, keys = runs, set(runs["key"]) if self.trains else None
        # a profile's own folder holds its own runs; elsewhere those of many programs gather
        write_results(results, self.store, self.out, beside=keys if self.is_profiles_own else None)
        self._written |= {"results.csv", "history.csv", "timings.csv"}
        distinct = results.drop_duplicates("key")
        diverged = (distinct["status"] == "diverged").sum()
        print(f"{len(distinct)} runs, of which {diverged} diverged")
        if num := one_class(distinct).sum():
            print(f"{num} of the networks say one class only, whatever they are shown")
        self._note(environments(results, self.store))
        return results, load_history(results, self.store)

    def _note(self, note: str) -> None:
        """Let the caption say it, once."""
        if note and note not in self.caption:
            self.caption += f"; {note}"

    def figure_data(self, name: str, make: Callable, *, runs=(), artefact: str = "", **settings):
        """Arrays by name, as `figure_data.figure_data` computes or finds them; ``device`` and
        ``data_root`` are given to a ``make`` that takes them. ``None``, and a line that says so,
        where runs are missing and nothing is to be trained."""
        taken = inspect.signature(make).parameters
        settings |= {place: value for place, value in self.places.items() if place in taken}
        settings |= {"store": self.store, "use_committed": self.use_committed}
        settings |= {"train_missing": self.trains, "engine": self.engine}
        try:
            found = figure_data(name, make, self.out, runs=runs, artefact=artefact, **settings)
        except RecordError as error:
            if self.trains:
                raise
            print(f"{name}: not drawn, since {error}")
            return None
        self._written.add(f"{name}.npz")
        return found

    def say(self, *sentences: str) -> None:
        """Show sentences on the results as a paragraph; empty ones are left out.

        Every number in them must stand in a table of this folder (a test compares).
        """
        from IPython.display import Markdown, display

        if paragraph := " ".join(filter(None, sentences)):
            display(Markdown(paragraph))

    def findings(self) -> None:
        """Show what `claims` finds, once it has found it: in the opening of the notebook."""
        from IPython.display import Markdown, display

        display(Markdown("The findings stand here once all cells have run."), display_id="findings")

    def claims(self, claims: Sequence[Claim]):
        """Judge the claims: write ``claims.csv``, give the table, and show its sentences where
        `findings` stands. On what: the data sets, and a claim's scale or the caption."""
        from IPython.display import Markdown, update_display

        names = " and ".join(Path(name).stem for name in self.p.datasets)
        usual = ", ".join([*vars(self.p).get("networks", ()), self.caption])
        told = [claim._replace(scale=f"{names}, {claim.scale or usual}") for claim in claims]
        table = claims_table(told, self.caption)
        write_atomically(self.out / "claims.csv", table.to_csv(index=False).encode())
        self._written.add("claims.csv")
        update_display(Markdown(findings_text(table)), display_id="findings")
        return Markdown(to_markdown(table.drop(columns="scale")))

    def save_figure(self, fig, name: str, note: str | None = None) -> None:
        """Write a figure as ``NAME.pdf`` and ``NAME.png``, with a note below it. One without any
        data is neither written nor shown; a line says so."""
        if not plotting.has_data(fig):
            import matplotlib.pyplot as plt  # here: it looks for a display

            plt.close(fig)
            print(f"{name}: not drawn, nothing of it was run")
            return
        plotting.save(fig, self.out, name, self.caption if note is None else note)
        self._written |= {f"{name}.pdf", f"{name}.png"}

    def save_table(self, frame: pd.DataFrame, name: str, note: str | None = None):
        """Write a table as ``NAME.csv`` and, with its note, ``NAME.md``; give it as Markdown.

        Raises:
            ParameterError: a name that is not ``table_...``, or holds a folder.
        """
        from IPython.display import Markdown

        if not name.startswith("table_") or Path(name).name != name:
            raise ParameterError(f"name = {name!r} is not table_... without a folder")
        note = self.caption if note is None else note
        if questions := frame.attrs.get("questions", 0):
            note += f"{'; ' if note else ''}p values Holm-corrected over {questions} questions"
        markdown = to_markdown(frame) + (f"\n*{note}*\n" if note else "")
        write_atomically(self.out / f"{name}.csv", frame.to_csv(index=False).encode())
        write_atomically(self.out / f"{name}.md", markdown.encode())
        self._written |= {f"{name}.csv", f"{name}.md"}
        return Markdown(markdown)

    def finish(self) -> str:
        """The last cell's value: says that the notebook ran to its end and what it wrote.

        Raises:
            StoreError: a file that was written is not there.
        """
        absent = sorted(name for name in self._written if not (self.out / name).is_file())
        if absent:
            raise StoreError(f"{self.out} lacks {', '.join(absent)}")
        seal_folder(self.out, self._written)
        digest = sha256((self.out / "results.csv").read_bytes())[:12]
        return f"{END_MARKER} {len(self._written)} files, results.csv {digest}"


def sample_images(
    *, datasets: Sequence[str], train_size: int, test_size: int, data_root: str | None = None
) -> dict[str, np.ndarray]:
    """What a notebook shows of its data: ``described``, a line for each split of each set, and of
    the first set the first training image of each class (ten at most): ``images``, ``titles``.

    Example:
        >>> shown = sample_images(datasets=["digits"], train_size=100, test_size=0)
        >>> print(shown["described"][0])
        digits train: 1438 images 1x8x8, 10 classes; used: 100
        >>> shown["images"].shape, "".join(shown["titles"])
        ((10, 1, 8, 8), '0123456789')
    """
    lines, first_set = [], None
    for name in datasets:
        for split, size in (("train", train_size), ("test", test_size)):
            data = load_dataset(name, split, root=data_root)
            used = data.subset(size)
            first_set = used if first_set is None else first_set
            shape = "x".join(map(str, data.images.shape[1:]))
            lines.append(
                f"{data.name} {split}: {len(data)} images {shape}, {data.num_classes} classes; "
                f"used: {len(used)}"
            )
    present, first = np.unique(first_set.labels.numpy(), return_index=True)
    return {
        "described": np.array(lines),
        "images": first_set.images[first[:10]].numpy(),
        "titles": np.array([first_set.class_names[label] for label in present[:10]]),
    }
