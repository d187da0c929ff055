"""Papers about training on hard samples: the strategies, one training loop, and its records.

The contents page is ``__init__.pyi``: it says where each public name lives, to type checkers and
to this module, which imports a name's home when the name is first used. Strategies need torch; what
the others need, the extra ``notebooks`` brings.
"""

import ast
from importlib import import_module
from pathlib import Path

_CONTENTS = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_HOMES = {
    alias.name: line.module
    for line in _CONTENTS.body
    if isinstance(line, ast.ImportFrom)
    for alias in line.names
}
__all__ = sorted(set(_HOMES) - {"__version__"})


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hardtrain' has no attribute {name!r}")
    try:
        value = getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"hardtrain.{name} needs {error.name}: pip install 'hardtrain[notebooks]'",
            name=error.name,
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
