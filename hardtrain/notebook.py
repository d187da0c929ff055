"""What every notebook of a paper needs: checked parameters, profiles, figure data, an end."""
import ast
import hashlib
import io
import json
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from hardtrain import checks
from hardtrain.errors import ParameterError, StoreError, unknown_name
from hardtrain.files import project_root, write_atomically
from hardtrain.runs import Run, load_artefact
from hardtrain.store import RunStore

END_MARKER = "complete:"  # the runner takes a notebook without it in its last cell as failed


def check_parameters(namespace: Mapping) -> None:
    """Refuse unknown names and wrong types among a notebook's parameters.

    Call it as ``check_parameters(globals())`` in the cell after the parameters cell, whose
    annotated assignments (``epochs: int | None = None``) say which names and types there are.
    papermill puts what the user gave into a cell between the two.

    Raises:
        ParameterError: names the parameter, the value, what is allowed, the nearest name.
    """
    declared = namespace["__annotations__"]
    history = namespace.get("In", [])
    given = _assigned_names(history[-2]) if len(history) > 1 else ()
    for name in given:
        if name not in declared:
            raise unknown_name("parameter", name, declared)
    for name, wanted in declared.items():
        if name not in namespace:
            raise ParameterError(f"parameter {name} has no value")
        _check_type(name, namespace[name], wanted)


def choose_profile(profiles: Mapping[str, Mapping], namespace: Mapping) -> SimpleNamespace:
    """The profile that the notebook's parameter ``profile`` names, overridden by the parameters
    of the same names that are not ``None``.

    Returns:
        The profile's entries as attributes, with ``profile`` (its name) and ``changed`` (the
        names of the overridden entries).

    Example:
        >>> profiles = {"quick": {"epochs": 20, "seeds": [0, 1]}}
        >>> choose_profile(profiles, {"profile": "quick", "epochs": 3, "seeds": None})
        namespace(profile='quick', epochs=3, seeds=[0, 1], changed=['epochs'])
    """
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
    return SimpleNamespace(profile=profile, **chosen, changed=changed)


def figure_folder(notebook: str, profile: str, out_dir: str | os.PathLike | None = None) -> Path:
    """Where a notebook's figures and tables go: ``out_dir``, else ``NOTEBOOK/PROFILE`` below
    ``$HARDTRAIN_FIGURES`` or the repository's ``figures``. Created, and seen to be writable."""
    root = Path(os.environ.get("HARDTRAIN_FIGURES") or project_root() / "figures")
    folder = Path(out_dir) if out_dir is not None else root / notebook / profile
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"could not make {folder}: {error.strerror}") from error
    return folder.absolute()


def figure_data(
    name: str,
    runs: Sequence[Run],
    artefact: str,
    make: Callable[..., Mapping[str, np.ndarray]],
    out_dir: Path,
    *,
    store: RunStore | None = None,
    use_committed: bool = True,
    **settings,
) -> dict[str, np.ndarray]:
    """The arrays behind a figure that needs more than the history, kept as ``NAME.npz``.

    If ``use_committed`` and a committed ``NAME.npz`` was made from these runs with these
    settings, it is read. Otherwise each run's ``artefact`` is loaded (the run is trained again
    if it is missing) and ``make(artefacts, **settings)`` computes the arrays.
    """
    origin = json.dumps([[run.key for run in runs], artefact, make.__name__, settings])
    figures = os.environ.get("HARDTRAIN_COMMITTED") or project_root() / "figures"
    candidates = sorted(Path(figures).glob(f"*/*/{name}.npz")) if use_committed else []
    for path in candidates:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["origin"]) == origin:
                content = path.read_bytes()
                break
    else:
        arrays = make([load_artefact(run, artefact, store) for run in runs], **settings)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, origin=np.array(origin), **arrays)
        content = buffer.getvalue()
    if not (target := out_dir / f"{name}.npz").exists() or target.read_bytes() != content:
        write_atomically(target, content)
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files if key != "origin"}


def save_table(frame, out_dir: Path, name: str):
    """Write a table as ``NAME.csv`` and ``NAME.md``; give it back to be shown, as Markdown."""
    from IPython.display import Markdown

    from hardtrain.statistics import to_markdown

    if not name.startswith("table_") or Path(name).name != name:
        raise ParameterError(f"name = {name!r} is not table_... without a folder")
    markdown = to_markdown(frame)
    write_atomically(out_dir / f"{name}.csv", frame.to_csv(index=False).encode())
    write_atomically(out_dir / f"{name}.md", (markdown.rstrip() + "\n").encode())
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


def _assigned_names(source: str) -> list[str]:
    """Names that a cell assigns at its top level."""
    names = []
    for node in ast.parse(source).body:
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def _check_type(name: str, value: object, wanted: object) -> None:
    options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    if value is None and types.NoneType in options:
        return
    kind = next(option for option in options if option is not types.NoneType)
    if typing.get_origin(kind) is list:
        (item_kind,) = typing.get_args(kind)
        for item in checks.listed(name, value):
            _check_type(f"an entry of {name}", item, item_kind)
        return
    simple = {bool: checks.flag, str: checks.text, float: checks.number}
    check = simple.get(kind, lambda name, value: checks.integer(name, value, low=0))
    check(name, value)
