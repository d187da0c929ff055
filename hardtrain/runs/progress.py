"""One progress bar for a sweep: on a terminal as a line, in Jupyter as one output that is
replaced and, at the end, emptied, so that saved notebooks stay small; or a line a finished run."""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from hardtrain import checks


class Progress:
    """Counts the finished epochs of a sweep; ``progress(run, epochs)`` moves the bar.
    ``loss``, of the last evaluation, is for those who look on (`status.Announced`).

    ``$HARDTRAIN_PROGRESS``: ``bar``; ``lines``, one a finished run, with the time left;
    ``terminal``, from a notebook on the terminal (or in the log) of the program that runs it;
    ``off``. By default a bar on a terminal and in Jupyter, else, and under papermill, lines. What
    must be known, as that a run failed, is said in any case.
    """

    def __init__(self, runs: Sequence):
        self._done = dict.fromkeys((run.key for run in runs), 0)
        self._epochs = {run.key: run.epochs for run in runs}
        self._ended: set[str] = set()
        self._began, self._before = time.monotonic(), 0  # epochs that earlier lives have trained
        how = checks.choice(
            "HARDTRAIN_PROGRESS", os.environ.get("HARDTRAIN_PROGRESS") or "auto", _WAYS
        )
        terminal = sys.__stderr__ is not None and sys.__stderr__.isatty()
        jupyter = _in_jupyter() and how != "terminal"
        self._display = _JupyterLine() if jupyter and how in ("auto", "bar") else None
        by_default = not terminal if not jupyter else _under_papermill()
        self._lines = how == "lines" or (how in ("auto", "terminal") and by_default)
        self._output = sys.__stderr__ if how == "terminal" else sys.stderr
        bar = self._display is not None or (terminal and not jupyter) or how == "bar"
        self._bar = tqdm(
            total=sum(run.epochs for run in runs),
            unit="epoch",
            desc=f"{len(runs)} runs",
            file=self._display or sys.__stderr__,
            disable=not bar or how in ("lines", "off"),
            ncols=80,
            mininterval=0.5,
            leave=False,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._display is not None:
            self._display.write("")

    def __call__(self, run: Any, epochs: int, loss: float | None = None) -> None:
        self._bar.update(epochs - self._done[run.key])
        if self._done[run.key] == 0 and epochs > 1:
            self._before += epochs  # it goes on from a checkpoint
        self._done[run.key] = epochs

    def finished(self, run: Any, error: Exception | None = None) -> None:
        """A run has come to its end, or to an error."""
        self(run, run.epochs)
        self._ended.add(run.key)
        if error is not None:
            self.say(f"failed: {run}: {type(error).__name__}: {error}")
        elif self._lines:
            left = spoken(self._seconds_left())
            count = f"{len(self._ended)} of {len(self._done)} runs"
            print(f"{count}, {left} left: {run}", file=self._output, flush=True)

    def _seconds_left(self) -> float:
        done, total = sum(self._done.values()), sum(self._epochs.values())
        here = max(1, done - self._before)
        return (time.monotonic() - self._began) / here * (total - done)

    def say(self, text: str) -> None:
        """A line for the person who waits."""
        tqdm.write(text, file=sys.stderr)


_WAYS = ("auto", "bar", "lines", "terminal", "off")


def spoken(seconds: float) -> str:
    """A time in two digits or so.

    Example:
        >>> spoken(42), spoken(600), spoken(9000), spoken(3e6)
        ('42 s', '10 min', '2.5 h', '833 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360_000 else f"{seconds / 3600:.0f} h"


def _under_papermill() -> bool:
    """Whether papermill has started this kernel: its log shows printed lines, and no display that
    is replaced."""
    try:
        import psutil  # comes with Jupyter's kernel

        return any("papermill" in part for part in psutil.Process().parent().cmdline())
    except Exception:  # no psutil, no parent, no right to look: only a matter of taste
        return False


def _in_jupyter() -> bool:
    if "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class _JupyterLine:
    """A file for tqdm whose latest line is the only one that is shown."""

    def __init__(self) -> None:
        self._handle = None

    def write(self, text: str) -> None:
        from IPython.display import display

        content = {"text/plain": text.strip()}
        if self._handle is None:
            if text.strip():
                self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def flush(self) -> None:
        """tqdm calls this; every write is shown at once."""
