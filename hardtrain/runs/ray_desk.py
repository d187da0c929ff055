"""The desk at which the tasks of a Ray cluster report: an actor on the driver's machine."""

from pathlib import Path
from typing import Any


class Desk:
    """The driver's store, and what the workers tell of their progress.

    It opens the store where it is asked for it: Ray rewrites the methods of an actor's class,
    inherited ones where they are, so that a store of its own would change every `RunStore` of the
    process.
    """

    def __init__(self, path: Path, checkpoint_seconds: float):
        self._path, self._checkpoint_seconds = path, checkpoint_seconds
        self._notes: list[tuple] = []

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of the store gives."""
        from hardtrain.runs.store import RunStore  # here: with torch, it takes seconds

        store = RunStore(self._path, checkpoint_seconds=self._checkpoint_seconds)
        return getattr(store, method)(*arguments)

    def note(self, *what: Any) -> None:
        self._notes.append(what)

    def take_notes(self) -> list[tuple]:
        notes, self._notes = self._notes, []
        return notes
