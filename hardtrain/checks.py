"""Checks of parameters: each gives the value back in its own type, or says what is allowed."""

import math
import sys
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import torch

from hardtrain.errors import ParameterError, unknown_name

MAX_SEED = 2**63 - 1


def integer(name: str, value: object, low: int, high: int = MAX_SEED) -> int:
    """``value`` as an int in [low, high], from numpy too; a bool, a float or a text is refused.

    Example:
        >>> integer("epochs", 0, low=1)
        Traceback (most recent call last):
        hardtrain.errors.ParameterError: epochs = 0 is less than 1
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ParameterError(f"{name} = {value!r} is {type(value).__name__}, not int")
    if value < low:
        raise ParameterError(f"{name} = {value} is less than {low}")
    if int(value) > high:
        raise ParameterError(f"{name} = {value} is more than {high}")
    return int(value)


def number(
    name: str, value: Any, low: float = -math.inf, *, above: bool = False, below: float = math.inf
) -> float:
    """``value`` as a finite float of at least ``low`` (more than ``low`` if ``above``) and less
    than ``below``, from numpy too; a bool or a text is refused.

    Example:
        >>> number("lr", "1e-3", 0, above=True)
        Traceback (most recent call last):
        hardtrain.errors.ParameterError: lr = '1e-3' is text; in YAML write 1.0e-3, not 1e-3
    """
    if isinstance(value, str):
        raise ParameterError(f"{name} = {value!r} is text; in YAML write 1.0e-3, not 1e-3")
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ParameterError(f"{name} = {value!r} is {type(value).__name__}, not float")
    if not isinstance(value, int):  # an int may be too large for a float
        value = float(value)
    if not -sys.float_info.max <= value <= sys.float_info.max:  # NaN too, and huge integers
        raise ParameterError(f"{name} = {value} is not finite")
    if value < low or (above and value == low):
        raise ParameterError(
            f"{name} = {value} is not {'more than' if above else 'at least'} {low}"
        )
    if value >= below:
        raise ParameterError(f"{name} = {value} is not less than {below}")
    return float(value)


def flag(name: str, value: object) -> bool:
    if type(value) is not bool:
        raise ParameterError(f"{name} = {value!r} is {type(value).__name__}, not bool")
    return value


def text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ParameterError(f"{name} = {value!r} is {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ParameterError(f"{name} = {value!r} holds what is no character of UTF-8") from error
    return value


def choice(name: str, value: Any, known: Iterable[str]) -> str:
    """``value`` if it is one of ``known``; the error names the nearest."""
    if text(name, value) not in (known := tuple(known)):
        raise unknown_name(name, value, known)
    return value


def cpu_generator(name: str, value: object) -> torch.Generator:
    if not isinstance(value, torch.Generator) or value.device.type != "cpu":
        raise ParameterError(
            f"{name} = {value!r} is not a torch.Generator on the CPU; random crops, flips and "
            "permutations need one"
        )
    return value


def listed(name: str, value: object) -> tuple:
    """``value``, a list or tuple, as a tuple without duplicates.

    Example:
        >>> listed("seeds", "0")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        hardtrain.errors.ParameterError: seeds = '0' is text, not a list; papermill takes lists ...
    """
    if isinstance(value, str):
        raise ParameterError(
            f"{name} = {value!r} is text, not a list; papermill takes lists with -y, "
            f'as in -y "{{{name}: [...]}}"'
        )
    if not isinstance(value, (list, tuple)):
        raise ParameterError(f"{name} = {value!r} is {type(value).__name__}, not a list")
    if len(set(map(repr, value))) < len(value):
        raise ParameterError(f"{name} = {list(value)} holds something twice")
    return tuple(value)
