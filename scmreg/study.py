"""Studies: what a paper claims, tried at the scale of a desk.

A study lists trainings, its arms: conditions, each under several seeds. Every arm is an ordinary run, which anybody may
report, compare and sample. The study says what is measured of it, what the figures say of the claim, and how they are
drawn; :mod:`scmreg.conduct` does the work.
"""

from __future__ import annotations

import math
import re
import statistics
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from scmreg.component import Component
from scmreg.types import Count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scmreg.recipe import Recipe

__all__ = ["Arm", "Results", "Study", "Verdict", "figures_of_run"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Arm:
    """One training of a study: a condition under one seed."""

    condition: str
    """What tells it from the others, in a word or two."""
    recipe: Recipe
    """The run, with its seed."""

    @property
    def name(self) -> str:
        """Name of its run directory."""
        return f"{re.sub(r'[^a-z0-9.]+', '-', self.condition.lower()).strip('-')}-s{self.recipe.seed}"


@dataclass(frozen=True)
class Verdict:
    """What the figures say of one claim."""

    claim: str
    """The claim, in a sentence."""
    held: bool
    """Whether it held here."""
    because: str
    """The numbers that it was judged by."""


class Results:
    """The figures of every arm.

    Args:
        figures: by condition and seed what was measured; ``None`` where training diverged.
    """

    def __init__(self, figures: Mapping[tuple[str, int], Mapping[str, Any] | None]) -> None:
        self.figures = dict(figures)
        self.conditions = tuple(dict.fromkeys(condition for condition, _ in figures))
        self.seeds = tuple(sorted({seed for _, seed in figures}))

    def diverged(self, condition: str) -> int:
        """Return how many seeds of a condition diverged."""
        return sum(self.figures[condition, seed] is None for seed in self.seeds)

    @property
    def whole(self) -> bool:
        """Whether no training diverged."""
        return all(found is not None for found in self.figures.values())

    def of(self, condition: str, figure: str) -> list[float]:
        """Return a figure of every seed in turn; infinite where training diverged.

        Raises:
            KeyError: if the figure was not measured.
        """
        found = [self.figures[condition, seed] for seed in self.seeds]
        return [math.inf if each is None else float(each[figure]) for each in found]

    def mean(self, condition: str, figure: str) -> float:
        """Return the mean of a figure over the seeds; infinite if one diverged."""
        return statistics.fmean(self.of(condition, figure))

    def curves(self, condition: str, figure: str) -> Array:
        """Return a figure that is a list of numbers, shape ``(seeds, points)``, of the seeds that did not diverge."""
        kept = [found[figure] for seed in self.seeds if (found := self.figures[condition, seed]) is not None]
        return np.array(kept, dtype=np.float64)

    def below(self, figure: str, low: str, high: str, factor: float = 1.0) -> bool:
        """Whether under every seed the figure of one condition is below ``factor`` times that of another."""
        pairs = zip(self.of(low, figure), self.of(high, figure), strict=True)
        return all(first < factor * second for first, second in pairs)

    def told(self, condition: str, figure: str) -> str:
        """Return a figure in words: its mean and, of several seeds, the smallest and the largest."""
        values = self.of(condition, figure)
        if lost := self.diverged(condition):
            return "diverged" if lost == len(values) else f"{lost} of {len(values)} diverged"
        mean = f"{statistics.fmean(values):.3g}"
        return mean if len(values) == 1 else f"{mean} ({min(values):.3g} to {max(values):.3g})"

    def listed(self, figure: str, conditions: Iterable[str] | None = None) -> str:
        """Return a figure of several conditions, of all if not said, in words."""
        return ", ".join(f"{name} {self.told(name, figure)}" for name in conditions or self.conditions)


class Study(Component, kind="study"):
    """A claim, the trainings that try it, and what is made of their figures."""

    columns: ClassVar[tuple[str, ...]] = ()
    """Figures that are listed for every condition."""

    seeds: Count = 3
    """Seeds that every condition is trained under, from 0."""

    @abstractmethod
    def arms(self) -> Sequence[Arm]:
        """Return the trainings, each condition under every seed."""

    def measure(self, folder: Path) -> Mapping[str, Any]:
        """Return the figures of one finished arm, as plain values; by default those of its evaluation.

        Args:
            folder: its run directory.
        """
        return figures_of_run(folder)

    @abstractmethod
    def judge(self, results: Results) -> Sequence[Verdict]:
        """Say of every claim whether it held."""

    @abstractmethod
    def draw(self, figure: Figure, results: Results) -> None:
        """Draw the figures."""

    def under_seeds(self, conditions: Mapping[str, Mapping[str, Any]]) -> list[Arm]:
        """Return arms of recipes that are given as trees, by condition, each under every seed."""
        from scmreg.recipe import Recipe

        return [
            Arm(condition, Recipe.from_tree({**tree, "seed": seed}))
            for condition, tree in conditions.items()
            for seed in range(self.seeds)
        ]


def figures_of_run(folder: Path) -> dict[str, float]:
    """Return the figures of a run's evaluation by name: ``frechet@2`` with two evaluations, ``frechet@teacher``, and
    ``frechet@floor``.
    """
    from scmreg.record import read_record

    summary = read_record(folder).summary or {}
    found = {f"{figure}@floor": value for figure, value in summary.get("floor", {}).items()}
    teacher = summary.get("teacher") or {}
    found |= {f"{figure}@teacher": value for figure, value in teacher.items() if figure != "nfe"}
    for entry in summary.get("student", ()):
        found |= {f"{figure}@{entry['nfe']}": value for figure, value in entry.items() if figure != "nfe"}
    return found
