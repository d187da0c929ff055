"""The errors of hardtrain, and the one way to say that a name is unknown."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class HardtrainError(Exception):
    """What hardtrain refuses or reports derives from this; strategies, made for anyone's own loop,
    raise plain ``ValueError``, ``TypeError`` and ``RuntimeError``."""


class ParameterError(HardtrainError, ValueError):
    """A parameter is outside what is allowed; raised before anything is trained or written."""


class DataError(HardtrainError, ValueError):
    """An image set is missing, damaged, or not what the run needs."""


class RecordError(HardtrainError, OSError):
    """A run's record or checkpoint is torn, edited, or of a newer version."""


class StoreError(HardtrainError, OSError):
    """The run store cannot be read or written (permission, disk full)."""


class DivergedError(HardtrainError, ArithmeticError):
    """A loss was not finite; ``epoch`` and ``step`` (both from 0) say where it began."""

    def __init__(self, message: str, *, epoch: int, step: int):
        super().__init__(message)
        self.epoch, self.step = epoch, step
        self.history: list[dict] = []  # the evaluations before it


class SweepError(HardtrainError, RuntimeError):
    """Some runs of a sweep failed, the others are finished; ``failures`` are pairs of a run and
    its error.

    Example:
        >>> print(SweepError([("plain, seed 3", MemoryError("no room"))], num_runs=20))
        1 of 20 runs failed, the others are finished; run again to try it again:
          plain, seed 3: MemoryError: no room
    """

    def __init__(self, failures: Sequence[tuple[Any, Exception]], num_runs: int):
        self.failures = list(failures)
        again = "it" if len(self.failures) == 1 else "them"
        said: set[str] = set()
        lines = []
        for run, error in self.failures:
            reason = f"{type(error).__name__}: {error}"
            lines.append(f"  {run}: {'the same' if reason in said else reason}")
            said.add(reason)
        head = f"{len(lines)} of {num_runs} runs failed, the others are finished; run again to "
        super().__init__("\n".join([f"{head}try {again} again:", *lines]))


def unknown_name(kind: str, name: object, known: Iterable[str]) -> ParameterError:
    """The error for a name that is not known; its text names the nearest known one.

    Example:
        >>> print(unknown_name("network", "resnet-18", ["resnet18", "vgg13"]))
        unknown network 'resnet-18'; did you mean 'resnet18'? known: resnet18, vgg13
    """
    known = list(known)
    folded = {candidate.lower(): candidate for candidate in reversed(known)}
    close = difflib.get_close_matches(str(name).lower(), folded, n=1, cutoff=0.5)
    hint = f"did you mean {folded[close[0]]!r}? " if close else ""
    shown = (repr(text) if "," in text else text for text in known)
    return ParameterError(f"unknown {kind} {name!r}; {hint}known: {', '.join(shown)}")
