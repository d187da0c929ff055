"""Arrays behind figures, kept as ``NAME.npz`` and never stale.

Kept arrays are taken only if the same runs, settings, data and ``VERSION`` made them: that of
every room which the computing function reaches, found by following its code. ``stale`` compares
that code itself: a change without a new ``VERSION`` is noticed when the notebooks are checked.
"""

import ast
import functools
import inspect
import io
import json
import pkgutil
import sys
import textwrap
import tokenize
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from hardtrain.files import sha256, write_atomically
from hardtrain.runs.committed import committed_files
from hardtrain.runs.run import Run
from hardtrain.runs.run_data import fingerprint_at_hand
from hardtrain.runs.store import RunStore
from hardtrain.runs.sweep import load_artefacts

_ABOUT = ("origin", "fingerprints", "function", "code")  # what is kept beside the arrays
_PLACES = ("device", "data_root")  # arguments that say where something is, not what
_COMPUTING = ("papers", "report", "statistics", "strategies", "training")


def figure_data(
    name: str,
    make: Callable[..., Mapping[str, np.ndarray]],
    out_dir: Path,
    *,
    runs: Sequence[Run] = (),
    artefact: str = "",
    store: RunStore | None = None,
    use_committed: bool = True,
    train_missing: bool = True,
    engine: Mapping[str, object] = types.MappingProxyType({}),
    **settings,
) -> dict[str, np.ndarray]:
    """The arrays behind a figure that needs more than the history, kept as ``NAME.npz``.

    If ``use_committed`` and a committed ``NAME.npz`` was made from these runs with these
    settings, it is read. Otherwise ``make(artefacts, **settings)`` computes the arrays from the
    runs' artefacts (``None`` for one that diverged; a run that lacks its artefact is trained
    again), or, without an artefact, ``make(**settings)``. A ``make`` that takes ``runs`` is given
    them, too; one that takes a ``store`` is given that in place of the artefacts, to read them one
    at a time, and ``train_missing``, if it takes that. Among the settings ``device`` and
    ``data_root`` say where something is, not what.
    ``engine``: what ``run_missing`` trains with, by the names of its arguments.
    Where the image sets are at hand, their fingerprints must agree, too.

    Raises:
        RecordError: a run lacks its artefact, and ``train_missing`` is false.
    """
    places = {key: settings.pop(key) for key in _PLACES if key in settings}
    versions = dict(sorted(_versions(make)))
    origin = json.dumps([[run.key for run in runs], artefact, make.__name__, versions, settings])
    datasets = [*(run.dataset for run in runs), *settings.get("datasets", ())]
    root = places.get("data_root") or next((run.data_root for run in runs), None)
    at_hand = {name: fingerprint_at_hand(name, root) for name in datasets}
    content = _committed(name, origin, at_hand) if use_committed else None
    if content is None:
        taken = inspect.signature(make).parameters
        offered = {"runs": runs, "store": store, "train_missing": train_missing}
        given = {key: value for key, value in offered.items() if key in taken}
        artefacts = []
        if artefact and "store" not in taken:
            training = {"train_missing": train_missing, **engine}
            artefacts = [load_artefacts(runs, artefact, store, **training)]
        arrays = make(*artefacts, **given, **settings, **places)
        about = {"origin": origin, "fingerprints": json.dumps(at_hand)}
        about |= {"function": f"{make.__module__}:{make.__qualname__}", "code": code_digest(make)}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **about, **arrays)
        content = buffer.getvalue()
    write_atomically(out_dir / f"{name}.npz", content)
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files if key not in _ABOUT}


def _committed(name: str, origin: str, at_hand: Mapping[str, str | None]) -> bytes | None:
    for path in committed_files(f"{name}.npz"):
        content = path.read_bytes() if path.is_file() else b""
        about = _about(content)
        try:
            kept = dict(json.loads(about["fingerprints"]))
        except (LookupError, ValueError, TypeError):
            warnings.warn(f"not used: {path} is torn, edited or none of ours", stacklevel=3)
            continue
        fits = all(ours in (None, kept.get(key)) for key, ours in at_hand.items())
        if about["origin"] == origin and fits:
            return content
    return None


def _about(content: bytes) -> dict[str, str]:
    """What stands beside the arrays; nothing if the file is damaged or not ours."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            for name in arrays.files:  # reading compares each array with its checksum
                _ = arrays[name]
            return {key: str(arrays[key]) for key in _ABOUT}
    except Exception:  # faults of zip, zlib, headers and pickle have a dozen types
        return {}


def stale(folder: Path) -> list[str]:
    """What in ``folder`` was computed by other code than today's, a sentence for each file."""
    found = []
    for path in sorted(folder.glob("*.npz")):
        about = _about(path.read_bytes())
        name = about.get("function", "")
        make = _function(name)
        if make is None:
            found.append(f"{path}: {name} is no function of ours")
        elif code_digest(make) != about["code"]:
            found.append(
                f"{path}: the code that {name} reaches has changed since; raise its VERSION if "
                "numbers change, and run make figures"
            )
    return found


def _function(name: str) -> Callable | None:
    """The function of hardtrain that is called so (``module:name``), if there is one."""
    try:
        return pkgutil.resolve_name(name) if name.startswith("hardtrain.") else None
    except (ImportError, AttributeError):
        return None


def reached(function: Callable) -> Iterator[Callable]:
    """``function`` and, once each, all functions and classes of hardtrain that its code names,
    directly or through others."""
    waiting, seen = [function], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, (list, tuple, set)):
            waiting += item
        elif isinstance(item, Mapping):
            waiting += item.values()
        elif callable(item):
            item = inspect.unwrap(getattr(item, "func", item))  # of a partial, of a decorated one
            ours = str(getattr(item, "__module__", "")).startswith("hardtrain.")
            named = getattr(item, "__name__", "<lambda>") != "<lambda>"  # else its text is no code
            if ours and named and id(item) not in seen:
                seen.add(id(item))
                yield item
                waiting += _named(item).values()


def _named(item: Callable) -> dict[str, object]:
    """What the code of a function or class names: globals of its module, and attributes of the
    modules of hardtrain among them (``checks.number``)."""
    names = _names(_source(item))
    own = vars(sys.modules[item.__module__])
    modules = [own[name] for name in names if isinstance(own.get(name), types.ModuleType)]
    spaces = [vars(m) for m in modules if m.__name__.startswith("hardtrain.")]
    return {name: space[name] for space in (*spaces, own) for name in names if name in space}


@functools.cache
def _names(code: str) -> frozenset[str]:
    return frozenset(
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(ast.parse(code))
        if isinstance(node, (ast.Name, ast.Attribute))
    )


def _versions(make: Callable) -> Iterator[tuple[str, int]]:
    """The room of each function that ``make`` reaches, and the room's ``VERSION``."""
    for item in reached(make):
        room = item.__module__
        while room and not hasattr(sys.modules[room], "VERSION"):
            room = room.rpartition(".")[0]
        if room:
            yield room.removeprefix("hardtrain."), sys.modules[room].VERSION


@functools.cache
def _source(item: Callable) -> str:
    return textwrap.dedent(inspect.getsource(item))


def code_digest(make: Callable, source: Callable[[Callable], str] = _source) -> str:
    """Of the code by which ``make`` computes, without comments, docstrings and white space, and of
    the constants that it names. ``source`` gives a function's text (tests plant changes there).

    Image sets, networks and runs are left out: they are told apart by fingerprints and keys.
    """
    texts = []
    for item in reached(make):
        if item.__module__.split(".")[1] in _COMPUTING:
            kept = {name: value for name, value in _named(item).items() if not callable(value)}
            constants = json.dumps(kept, sort_keys=True, default=lambda value: type(value).__name__)
            texts.append(f"{item.__qualname__}{_without_words(source(item))}{constants}")
    return sha256("".join(sorted(texts)).encode())[:20]


@functools.cache
def _without_words(code: str) -> str:
    """The tokens of ``code`` that are no comment, docstring or white space, the same in every
    version of Python."""
    kept, line_begins = [], True
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            line_begins = True
        elif token.type not in (tokenize.NL, tokenize.COMMENT):
            if not (line_begins and token.type == tokenize.STRING):
                kept.append(token.string)
            line_begins = False
    return "".join("".join(kept).split()).replace("{{", "{").replace("}}", "}")
