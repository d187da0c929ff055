"""One progress bar for a sweep: on a terminal as a line, in Jupyter as one output that is
replaced and, at the end, emptied, so that saved notebooks stay small."""

import os
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm


class Progress:
    """Counts the finished epochs of a sweep; ``progress(run, epochs)`` moves the bar.
    ``loss``, the last on the test set, is for those who look on (`status.Announced`)."""

    def __init__(self, runs: Sequence):
        self._done = dict.fromkeys((run.key for run in runs), 0)
        self._display = _JupyterLine() if _in_jupyter() else None
        terminal = sys.__stderr__ is not None and sys.__stderr__.isatty()
        if os.environ.get("HARDTRAIN_PROGRESS") == "terminal" and terminal:
            self._display = None
        self._bar = tqdm(
            total=sum(run.epochs for run in runs),
            unit="epoch",
            desc=f"{len(runs)} runs",
            file=self._display or sys.__stderr__,
            disable=self._display is None and not terminal,
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
        self._done[run.key] = epochs

    def say(self, text: str) -> None:
        """A line for the person who waits."""
        tqdm.write(text, file=sys.stderr)


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
