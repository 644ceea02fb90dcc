"""What benchmarks share: functions timed in turns in one process, and the rows that come of it."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from scmreg.component import Options
from scmreg.progress import Progress
from scmreg.types import Count

__all__ = ["CPU", "Benchmark", "Comparison", "Row", "Untried", "clock", "in_turns", "machine", "ratio", "take_turns"]

CPU = torch.device("cpu")

FILLED = 5e-3
"""Seconds that a turn on an accelerator lasts at least: calls are repeated, so that their launches overlap with the
work of the device, as they do in a network."""


class Row:
    """One line of a result."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return plain values: times in seconds, memory in bytes."""

    @abstractmethod
    def cells(self) -> dict[str, str]:
        """Return the text under each heading of the table; the headings of all rows of a table are the same."""


@dataclass(frozen=True)
class Comparison(Row):
    """Two sides and what they took."""

    title: str
    ours: float
    """Median seconds."""
    against: str
    theirs: float
    """Median seconds."""
    ratio: float
    """Median over the rounds of ours over theirs."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values, times in seconds."""
        return {
            "title": self.title,
            "ours": self.ours,
            "against": self.against,
            "theirs": self.theirs,
            "ratio": round(self.ratio, 4),
        }

    def cells(self) -> dict[str, str]:
        """Return the text under each heading."""
        return {
            "": self.title,
            "ours, ms": f"{self.ours * 1e3:.2f}",
            "against": self.against,
            "theirs, ms": f"{self.theirs * 1e3:.2f}",
            "ratio": f"{self.ratio:.3f}",
        }


@dataclass(frozen=True)
class Untried(Row):
    """What was left out, and why."""

    what: Mapping[str, str]
    """Names it, such as ``{"attention": "triton"}``."""
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**self.what, "untried": self.reason}

    def cells(self) -> dict[str, str]:
        """Return nothing: it is no line of the table, but told below."""
        return {}


class Benchmark(Options):
    """A named comparison; its fields are its options."""

    name: ClassVar[str] = ""

    rounds: Count = 15
    """Times that each side is run."""

    @classmethod
    def summary(cls) -> str:
        """Return the first line of the docstring."""
        return (cls.__doc__ or "").partition("\n")[0].strip()

    @abstractmethod
    def run(self, progress: Progress) -> Sequence[Row]:
        """Measure.

        Raises:
            ScmError: if what was asked for cannot be measured here.
        """

    @abstractmethod
    def describe(self) -> str:
        """Say on what is measured."""


def take_turns(
    title: str, sides: Mapping[str, Callable[[], Any]], rounds: int, progress: Progress, device: torch.device = CPU
) -> dict[str, list[float]]:
    """Time functions in turns; the order changes every round, so that none profits from what another leaves in caches.

    Args:
        title: what the progress is called.
        sides: functions by name; each is called once before, to warm up.
        rounds: turns of each.
        progress: told of every round.
        device: where they compute; an accelerator is waited for, before and after every turn.

    Returns:
        By name the seconds of one call, in each of the rounds.
    """
    names = list(sides)
    for name in names:
        sides[name]()
    repeats = {name: _repeats(sides[name], device) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with progress.task(title, rounds) as task:
        for number in range(rounds):
            first = number % len(names)
            order = names[first:] + names[:first]
            for name in reversed(order) if number // len(names) % 2 else order:
                seconds[name].append(clock(sides[name], repeats[name], device))
            task.update(number + 1)
    return seconds


def in_turns(
    title: str,
    ours: Callable[[], Any],
    against: str,
    theirs: Callable[[], Any],
    rounds: int,
    progress: Progress,
    device: torch.device = CPU,
) -> Comparison:
    """Time two functions in turns, see `take_turns`."""
    seconds = take_turns(title, {"ours": ours, "theirs": theirs}, rounds, progress, device)
    own, other = seconds["ours"], seconds["theirs"]
    return Comparison(title, statistics.median(own), against, statistics.median(other), ratio(own, other))


def ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """Return the median over the rounds of one side over another."""
    return statistics.median(own / other for own, other in zip(seconds, others, strict=True))


def machine(device: torch.device, threads: int | None = None) -> str:
    """Name the hardware and the version of torch, for a figure that is to be written down.

    Args:
        device: where was computed.
        threads: by how many threads on a CPU; torch's present number if not given.
    """
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        where = f"{device.type}, {platform.machine()}, {threads or torch.get_num_threads()} of {cores} threads"
    return f"{where}, torch {torch.__version__}"


def _repeats(call: Callable[[], Any], device: torch.device) -> int:
    if device.type == "cpu":
        return 1
    return max(1, math.ceil(FILLED / clock(call, 1, device)))


def clock(call: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Return the seconds of one call, the mean of some that follow each other; an accelerator is waited for."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait(device)
    return (time.perf_counter() - began) / repeats


def _wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
