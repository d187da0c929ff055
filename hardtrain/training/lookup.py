"""Methods by name, and their options: those of `methods` and `peers`, and anyone's own.

A method is a function ``name(run, data, model, *, option: type = default, ...) -> Method``, marked
with the version of its numbers::

    from hardtrain.training.lookup import version

    @version(1)
    def mine(run, data, model, *, strength: float = 0.5):
        batches, state = uniform_batches(run, data)
        ...
        return Method(batches, objective, state=state)

``Run(method="my_module:mine", options={"strength": 0.2})`` trains with it, and
``Run(method="my_module:mine+gradient_noise")`` with both (see `combination`).
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from hardtrain import checks
from hardtrain.errors import ParameterError, unknown_name
from hardtrain.training.combination import combined

_MODULES = ("hardtrain.training.methods", "hardtrain.training.peers")
_OPTION_CHECKS: dict[str, Callable[..., Any]] = {
    "bool": checks.flag,
    "int": partial(checks.integer, low=-checks.MAX_SEED),
    "float": checks.number,
    "str": checks.text,
}


def version(number: int) -> Callable[[Callable], Callable]:
    """Mark a function as a method, with the version of its numbers."""

    def mark(function: Any) -> Callable:
        function.VERSION = number
        return function

    return mark


def find_method(name: str) -> Any:
    """The method called ``name``, or ``"module:function"``, or several, joined by ``+``.

    Raises:
        ParameterError: no such method, with the nearest one; no such module; a function without
            ``VERSION``, or whose arguments are not those of a method; names that do not combine.
    """
    if "+" in checks.text("method", name):
        return combined(name, {part: find_method(part) for part in name.split("+")})
    module_name, colon, function_name = name.rpartition(":")
    try:
        modules = [importlib.import_module(m) for m in ([module_name] if colon else _MODULES)]
    except (ImportError, ValueError, TypeError) as error:  # ValueError: "", TypeError: ".relative"
        raise ParameterError(
            f"method = {name!r}: cannot import {module_name!r} ({type(error).__name__}: {error})"
        ) from error
    named = [vars(module)[function_name] for module in modules if function_name in vars(module)]
    function: Any = named[0] if named else None
    if colon and callable(function) and not hasattr(function, "VERSION"):
        raise ParameterError(
            f"method = {name!r}: {function_name} has no VERSION; mark it with @version(1) of "
            "hardtrain.training.lookup, and raise the number when its numbers change"
        )
    if not _is_method(function):
        entries = [entry for module in modules for entry in vars(module).items()]
        known = [key for key, value in entries if _is_method(value)]
        raise unknown_name("method", name, [f"{module_name}{colon}{key}" for key in known])
    checks.integer(f"VERSION of method {name!r}", function.VERSION, low=0)
    _options(name, function)
    return function


def _is_method(value: Any) -> bool:
    return callable(value) and hasattr(value, "VERSION")


def default_options(name: str) -> dict[str, Any]:
    """A method's options and their defaults."""
    return {option.name: option.default for option in _options(name, find_method(name))}


def checked_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A method's options, its defaults where ``options`` says nothing, in the order of their
    names and each in its annotated type; refuses one that the method does not have."""
    known = {option.name: option for option in _options(name, find_method(name))}
    if not isinstance(options, Mapping):
        raise ParameterError(f"options = {options!r} is not a mapping of option names to values")
    for option in options:
        if not known:
            raise ParameterError(f"method {name!r} has no options; got {option!r}")
        checks.choice(f"option of method {name!r}", option, known)
    return {
        key: _OPTION_CHECKS[_type_name(option)](key, options.get(key, option.default))
        for key, option in sorted(known.items())
    }


@functools.lru_cache
def _options(name: str, function: Callable) -> list[inspect.Parameter]:
    """The keyword-only parameters, if they and the others are as a method's must be."""
    parameters = inspect.signature(function).parameters.values()
    options = [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    if len(parameters) - len(options) != 3:
        raise ParameterError(
            f"method = {name!r}: its arguments are not (run, data, model, *, options)"
        )
    for option in options:
        if _type_name(option) not in _OPTION_CHECKS or option.default is option.empty:
            raise ParameterError(
                f"method = {name!r}: option {option.name!r} needs an annotation and a default, "
                f"as in {option.name}: float = 0.5; allowed types: {', '.join(_OPTION_CHECKS)}"
            )
    return options


def _type_name(option: inspect.Parameter) -> str:
    """``"float"`` for ``float``, also where annotations are text."""
    return getattr(option.annotation, "__name__", option.annotation)
