"""Papers about training on hard samples: the strategies, one training loop, and its records.

The contents page is ``__init__.pyi``: it says where each public name lives, to type checkers and
to this module, which imports a name's home when the name is first used.
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
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
