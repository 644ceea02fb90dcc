"""Progress of long jobs: bars on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.text import Text

from scmreg.progress import Progress, Task

__all__ = ["make"]


def make() -> Progress:
    """Return bars if both streams are a terminal, plain lines otherwise."""
    return Bars() if sys.stderr.isatty() and sys.stdout.isatty() else Lines()


class _Rate(ProgressColumn):
    """Parts a second."""

    def render(self, task: RichTask) -> Text:
        speed = task.speed or task.finished_speed
        return Text(f"{speed:.1f}/s" if speed else "", style="cyan")


class _BarTask(Task):
    def __init__(self, bars: RichProgress, number: object) -> None:
        self.bars, self.number, self.shown = bars, number, 0.0

    def update(self, done: int, loss: float | None = None) -> None:
        now = time.monotonic()
        if now - self.shown > 0.1 or loss is None:
            self.shown = now
            self.bars.update(self.number, completed=done, loss="" if loss is None else f"loss {loss:.4f}")  # type: ignore[arg-type]


class Bars(Progress):
    """Bars with rate, remaining time and loss."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        """Show a bar while the work lasts."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
        )
        with RichProgress(*columns, console=self.console) as bars:
            number = bars.add_task(title, total=total, completed=done, loss="")
            task = _BarTask(bars, number)
            yield task

    def say(self, message: str) -> None:
        """Print a line."""
        self.console.print(message, markup=False, highlight=False)


class _LineTask(Task):
    """A line at the start of a task, every ten seconds, and at its end."""

    every = 10.0

    def __init__(self, title: str, total: int, done: int) -> None:
        self.title, self.total, self.first = title, total, done
        self.start = self.last = time.monotonic()

    def update(self, done: int, loss: float | None = None) -> None:
        now = time.monotonic()
        if done < self.total and now - self.last < self.every:
            return
        self.last = now
        rate = (done - self.first) / max(now - self.start, 1e-9)
        left = f", {(self.total - done) / rate:.0f} s left" if rate and done < self.total else ""
        shown = "" if loss is None else f", loss {loss:.4f}"
        print(f"{self.title}: {done}/{self.total}, {rate:.1f}/s{left}{shown}", file=sys.stderr, flush=True)


class Lines(Progress):
    """Plain lines."""

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        """Print a line now and then while the work lasts."""
        yield _LineTask(title, total, done)

    def say(self, message: str) -> None:
        """Print a line."""
        print(message, file=sys.stderr, flush=True)
