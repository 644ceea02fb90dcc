"""How a long job tells what it does: the core speaks to this interface, a front end draws it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Progress", "Task"]


class Task:
    """One counted piece of work. This one is silent."""

    def update(self, done: int, loss: float | None = None) -> None:
        """Tell how much is done, and the current loss."""


class Progress:
    """What happens, in words and counts. This one is silent; subclass it to show something."""

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        """Open a piece of work of ``total`` parts, ``done`` of which are done already."""
        yield Task()

    def say(self, message: str) -> None:
        """Tell one line."""
