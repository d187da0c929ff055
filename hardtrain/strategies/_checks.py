"""What strategies refuse, said in one place: the argument, what is allowed, and what came.

Types and shapes are looked at always, contents on the CPU only: on a GPU that would mean waiting.
"""

import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

import torch
from torch import Generator, Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
INDICES = (torch.int64,)


def integer(name: str, value: object, low: int = 1, high: int | None = None) -> int:
    """``value`` as an int in [low, high]; a bool, a float or a text is refused."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer; got {value!r}")
    number = operator.index(value)
    if number < low or (high is not None and number > high):
        allowed = f"at least {low}" if high is None else f"in {low}..{high}"
        raise ValueError(f"{name} must be {allowed}; got {number}")
    return number


def fraction(name: str, value: object) -> float:
    """``value`` as a float in (0, 1]."""
    return _number(name, value, "in (0, 1]", lambda number: 0 < number <= 1)


def positive(name: str, value: object) -> float:
    """``value`` as a float above 0."""
    return _number(name, value, "finite and > 0", lambda number: 0 < number < math.inf)


def not_negative(name: str, value: object) -> float:
    """``value`` as a float of at least 0."""
    return _number(name, value, "finite and >= 0", lambda number: 0 <= number < math.inf)


def below_one(name: str, value: object) -> float:
    """``value`` as a float in [0, 1)."""
    return _number(name, value, "in [0, 1)", lambda number: 0 <= number < 1)


def _number(name: str, value: object, allowed: str, is_allowed: Callable[[float], bool]) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, {allowed}; got {value!r}")
    if not is_allowed(float(value)):  # NaN never is
        raise ValueError(f"{name} must be {allowed}; got {value}")
    return float(value)


def choice(name: str, value: object, known: Sequence[str]) -> str:
    """``value`` if it is one of ``known``; the error names the nearest."""
    allowed = " or ".join(map(repr, known))
    if not isinstance(value, str):
        raise TypeError(f"{name} must be {allowed}; got {value!r}")
    if value not in known:
        nearest = get_close_matches(value, known, n=1, cutoff=0)[0]
        raise ValueError(f"{name} must be {allowed}; got {value!r}: meant {nearest!r}?")
    return value


def instance(name: str, value: object, kind: type) -> None:
    """A ``value`` of the type ``kind``."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be of type {kind.__name__}; got {_described(value)}")


def cpu_generator(value: Generator | None, name: str = "generator") -> None:
    """A generator on the CPU, or none."""
    if value is not None and (not isinstance(value, Generator) or value.device.type != "cpu"):
        raise TypeError(f"{name} must be a CPU torch.Generator or None; got {value!r}")


def equal_on_ranks(generator: object) -> None:
    """A generator, where ranks would otherwise draw different numbers."""
    if generator is None and torch.distributed.is_available():
        if torch.distributed.is_initialized():
            raise ValueError(
                "generator must be given under torch.distributed, on every rank; got None"
            )


def own_generator(value: Generator | None) -> Generator:
    """``value``, on the CPU; by default one that torch's global one seeds."""
    cpu_generator(value)
    equal_on_ranks(value)
    if value is not None:
        return value
    seed = torch.empty((), dtype=torch.int64, device="cpu").random_().item()
    return Generator().manual_seed(int(seed))


def drop_last(value: object, batch_size: int, num_samples: int) -> bool:
    """``value`` as a bool, if it leaves a batch."""
    if value and batch_size > num_samples:
        raise ValueError(
            f"batch_size = {batch_size} with drop_last leaves 0 of {num_samples} samples"
        )
    return bool(value)


def positions(values: Any) -> Tensor:
    """Integers ``(B,)``, also from a list or an array."""
    # of a NumPy array that runs backwards torch makes no tensor
    values = values.copy() if hasattr(values, "strides") else values
    return tensor("indices", torch.as_tensor(values), ("B",), dtypes=INDICES)


def indices(values: Tensor | Sequence[int], num_samples: int) -> Tensor:
    """Positions in a data set of ``num_samples``."""
    given = positions(values)
    within("indices", given, 0, num_samples - 1, f"in 0..{num_samples - 1}")
    return given


def settings(state: Mapping, own: Mapping[str, object]) -> None:
    """A saved ``state`` with these settings of the object that loads it."""
    for name, value in own.items():
        if state.get(name) != value:
            raise ValueError(f"state must have {name} = {value!r}; got {state.get(name)!r}")


def tensor(
    name: str,
    values: object,
    *shapes: Sequence[int | str],
    dtypes: Collection[torch.dtype] = FLOATS,
    device: torch.device | None = None,
) -> Tensor:
    """``values`` if they have one of ``shapes``, where a letter stands for any size >= 1."""
    if not isinstance(values, Tensor) or values.dtype not in dtypes:
        allowed = ", ".join(map(str, dtypes)).replace("torch.", "")
        raise TypeError(f"{name} must be a tensor of {allowed}; got {_described(values)}")
    if not any(_fits(values, shape) for shape in shapes):
        allowed = " or ".join(str(tuple(shape)).replace("'", "") for shape in shapes)
        sizes = ", sizes >= 1" if 0 in values.shape else ""
        raise ValueError(f"{name} must have shape {allowed}{sizes}; got {tuple(values.shape)}")
    if device not in (None, values.device):
        raise ValueError(f"{name} must be on {device}, as the others; got {values.device}")
    return values


def _fits(values: Tensor, shape: Sequence[int | str]) -> bool:
    return values.ndim == len(shape) and all(
        size >= 1 if isinstance(wanted, str) else size == wanted
        for size, wanted in zip(values.shape, shape, strict=True)
    )


def labels(name: str, values: object, samples: Tensor, num_classes: int) -> Tensor:
    """One class in [0, num_classes) for each of ``samples``, on their device; int64."""
    classes = tensor(name, values, (len(samples),), dtypes=INTEGERS, device=samples.device).long()
    within(name, classes, 0, num_classes - 1, f"in 0..{num_classes - 1}")
    return classes


def within(name: str, values: Tensor, low: float, high: float, allowed: str) -> None:
    """Contents in [low, high], if they can be looked at."""
    if on_host(values):
        least, most = torch.stack(values.detach().aminmax()).tolist()  # both NaN if any is
        if not (low <= least and most <= high):
            raise ValueError(f"{name} must be {allowed}; got {most if low <= least else least}")


def on_host(values: object) -> bool:
    """Whether a look at the contents waits for no device."""
    return not isinstance(values, Tensor) or values.device.type == "cpu"


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return type(value).__name__


def shown(thing: object, **settings: object) -> str:
    """The ``repr`` of a thing with these settings."""
    return f"{type(thing).__name__}({', '.join(f'{k}={v!r}' for k, v in settings.items())})"
