"""What every notebook of a paper needs: checked parameters, profiles, figure data, an end."""

import ast
import hashlib
import inspect
import io
import json
import os
import types
import typing
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from hardtrain import checks
from hardtrain.data.images import DATASETS, load_dataset
from hardtrain.errors import ParameterError, StoreError, unknown_name
from hardtrain.files import project_root, write_atomically
from hardtrain.networks import NETWORKS
from hardtrain.report.text import to_markdown
from hardtrain.runs.results import committed_folder
from hardtrain.runs.run import Run
from hardtrain.runs.store import RunStore
from hardtrain.runs.sweep import load_artefacts
from hardtrain.runs.train import fingerprint_at_hand, forget_data

VERSION = 1  # raise it when a change here changes what a figure shows

END_MARKER = "complete:"  # the runner takes a notebook without it in its last cell as failed


def check_parameters(namespace: Mapping) -> dict:
    """Refuse unknown names and wrong types among a notebook's parameters.

    Call it as ``check_parameters(globals())`` in the cell after the parameters cell, whose
    annotated assignments (``epochs: int = None``) say which names and types there are, and which
    may be ``None``. papermill puts what the user gave into a cell between the two. Both are looked
    for in IPython's history, so that running one cell or all cells again finds the same.

    Returns:
        The declared parameters and their values, for `choose_profile`. Where cells leave no
        history (nbval), everything in ``namespace``.

    Raises:
        ParameterError: names the parameter, the value, what is allowed, the nearest name.
    """
    declared: dict[str, ast.AnnAssign] = {}
    assigned: list[str] = []
    for source in namespace["In"][:-1]:
        body = _statements(source)
        annotated = {node.target.id: node for node in body if isinstance(node, ast.AnnAssign)}
        if "profile" in annotated:
            declared, assigned = annotated, []
        if "profile" in annotated or source.startswith("# Parameters"):  # papermill's first line
            assigned += [
                target.id
                for node in body
                for target in getattr(node, "targets", [])
                if isinstance(target, ast.Name)
            ]
    for name in assigned:
        if name not in declared:
            raise unknown_name("parameter", name, declared)
    for name, node in declared.items():
        unset = isinstance(node.value, ast.Constant) and node.value.value is None
        if not (namespace[name] is None and unset):
            _check_type(name, namespace[name], eval(ast.unparse(node.annotation)))
    return {name: namespace[name] for name in declared} or dict(namespace)


def _statements(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError:  # a cell that failed
        return []


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
    changed = [
        name
        for name, value in chosen.items()
        if namespace.get(name) is not None and namespace[name] != value
    ]
    chosen |= {name: namespace[name] for name in changed}
    for name, value in chosen.items():
        if isinstance(value, (list, tuple)):
            checks.listed(name, value)
            if not value:
                raise ParameterError(f"{name} = [] is empty; give at least one")
    _check_names(chosen, namespace)
    return SimpleNamespace(profile=profile, **chosen, changed=changed)


def _check_names(chosen: Mapping, namespace: Mapping) -> None:
    for name in chosen.get("networks", ()):
        checks.choice("network", name, NETWORKS)
    trains = not namespace.get("use_committed", True)
    for name in chosen.get("datasets", ()):
        if trains or name not in DATASETS:  # committed results can be looked at without the data
            for split in ("train", "test"):
                load_dataset(name, split, root=namespace.get("data_root"))


def figure_folder(notebook: str, profile: str, out_dir: str | os.PathLike | None = None) -> Path:
    """Where a notebook's figures and tables go: ``out_dir``, else ``NOTEBOOK/PROFILE`` below
    ``$HARDTRAIN_FIGURES`` or the repository's ``figures``. Created, and seen to be writable."""
    root = Path(os.environ.get("HARDTRAIN_FIGURES") or project_root() / "figures")
    folder = Path(out_dir) if out_dir is not None else root / notebook / profile
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"could not make {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise StoreError(f"{folder} cannot be written")
    return folder.absolute()


def figure_data(
    name: str,
    make: Callable[..., Mapping[str, np.ndarray]],
    out_dir: Path,
    *,
    runs: Sequence[Run] = (),
    artefact: str = "",
    store: RunStore | None = None,
    use_committed: bool = True,
    place: Mapping = types.MappingProxyType({}),
    **settings,
) -> dict[str, np.ndarray]:
    """The arrays behind a figure that needs more than the history, kept as ``NAME.npz``.

    If ``use_committed`` and a committed ``NAME.npz`` was made from these runs with these
    settings, it is read. Otherwise ``make(artefacts, **settings)`` computes the arrays from the
    runs' artefacts (``None`` for one that diverged; a run that lacks its artefact is trained
    again), or, without runs, ``make(**settings)``. ``place`` holds further arguments of ``make``
    that say where something is (``device``, ``data_root``), not what. The ``VERSION`` of
    ``make``'s module and, where they are at hand, the image sets' fingerprints must agree, too.
    """
    version = vars(inspect.getmodule(make)).get("VERSION")
    origin = json.dumps([[run.key for run in runs], artefact, make.__name__, version, settings])
    datasets = [*(run.dataset for run in runs), *settings.get("datasets", ())]
    root = place.get("data_root") or next((run.data_root for run in runs), None)
    found = {name: fingerprint_at_hand(name, root) for name in datasets}
    content = _committed_arrays(name, origin, found) if use_committed else None
    if content is None:
        artefacts = [load_artefacts(runs, artefact, store)] if runs else []
        arrays = make(*artefacts, **settings, **place)
        about = {"origin": np.array(origin), "fingerprints": np.array(json.dumps(found))}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **about, **arrays)
        content = buffer.getvalue()
    write_atomically(out_dir / f"{name}.npz", content)
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files if key not in ("origin", "fingerprints")}


def _committed_arrays(name: str, origin: str, at_hand: Mapping[str, str | None]) -> bytes | None:
    for path in sorted(committed_folder().glob(f"*/*/{name}.npz")):
        content = path.read_bytes()
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                theirs = json.loads(str(arrays["fingerprints"]))
                same = all(ours in (None, theirs.get(key)) for key, ours in at_hand.items())
                if same and str(arrays["origin"]) == origin:
                    return content
        except (KeyError, ValueError, zipfile.BadZipFile):
            continue  # damaged, or not ours
    return None


def save_table(frame: pd.DataFrame, out_dir: Path, name: str, *, note: str = ""):
    """Write a table as ``NAME.csv`` and, with its note, ``NAME.md``; give it back as Markdown.

    Raises:
        ParameterError: a name that is not ``table_...``, or holds a folder.
    """
    from IPython.display import Markdown

    if not name.startswith("table_") or Path(name).name != name:
        raise ParameterError(f"name = {name!r} is not table_... without a folder")
    markdown = to_markdown(frame) + (f"\n*{note}*\n" if note else "")
    write_atomically(out_dir / f"{name}.csv", frame.to_csv(index=False).encode())
    write_atomically(out_dir / f"{name}.md", markdown.encode())
    return Markdown(markdown)


def finish(out_dir: Path, promised: Iterable[str]) -> str:
    """The last cell's value: says that the notebook ran to its end and what it wrote.

    Raises:
        StoreError: a promised file is not there.
    """
    promised = sorted(promised)
    absent = [name for name in promised if not (out_dir / name).is_file()]
    if absent:
        raise StoreError(f"{out_dir} lacks {', '.join(absent)}")
    digest = hashlib.sha256((out_dir / "results.csv").read_bytes()).hexdigest()[:12]
    return f"{END_MARKER} {len(promised)} files, results.csv {digest}"


def _check_type(name: str, value: object, kind: object) -> None:
    if typing.get_origin(kind) is list:
        (item_kind,) = typing.get_args(kind)
        for item in checks.listed(name, value):
            _check_type(f"an entry of {name}", item, item_kind)
        return
    simple = {bool: checks.flag, str: checks.text, float: checks.number}
    check = simple.get(kind, lambda name, value: checks.integer(name, value, low=0))
    check(name, value)


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
    labels = first_set.labels.numpy()
    present = np.unique(labels)[:10]
    first = [int(np.flatnonzero(labels == label)[0]) for label in present]
    return {
        "described": np.array(lines),
        "images": first_set.images[first].numpy(),
        "titles": np.array([first_set.class_names[label] for label in present]),
    }
