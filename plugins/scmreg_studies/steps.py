"""Studies of discretisation: the number of intervals of time, and of segments."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import MinLen

from scmreg.study import Arm, Results, Study, Verdict
from scmreg.types import Count
from scmreg_studies.setting import (
    COLOURS,
    course,
    label,
    logarithmic,
    often,
    on_mixture,
    plot_course,
    plot_dots,
    rising,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CurseOfConsistency", "Discretisation", "Segments"]

CONTINUOUS = "continuous"


class Discretisation(Study, name="discretisation"):
    """How distillation in discrete time depends on the number N of time steps, beside continuous time.

    dsCD and sCD from the exact teacher of a mixture, judged sample by sample against the exact consistency function, in
    float32.
    """

    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, Fig. 5c and App. E"
    columns = ("trajectory_error@1", "trajectory_error@2", "sliced_wasserstein@1")

    steps: Count = 2000
    """Training steps of each student."""
    intervals: Annotated[tuple[Count, ...], MinLen(2)] = (8, 32, 128, 1024, 16384, 1048576)
    """Numbers N of time steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rising(self, "intervals")

    def arms(self) -> Sequence[Arm]:
        """Return a student for each N, and one in continuous time."""
        discrete = {
            f"N = {n}": on_mixture({"name": "dscd", "schedule": {"name": "edm-grid", "steps": n}}, self.steps)
            for n in self.intervals
        }
        return self.under_seeds({**discrete, CONTINUOUS: on_mixture({"name": "scd"}, self.steps)})

    def judge(self, results: Results) -> Sequence[Verdict]:
        """Look for the improvement, the degradation, and the place of continuous time."""
        error = "trajectory_error@1"
        discrete = [name for name in results.conditions if name != CONTINUOUS]
        few = [name for name in discrete if int(name.removeprefix("N = ")) <= 1024]
        best = min(discrete, key=lambda name: results.mean(name, error))
        return (
            Verdict(
                "the error falls as N grows to 1024, under every seed",
                len(few) > 1 and all(results.below(error, high, low) for low, high in itertools.pairwise(few)),
                results.listed(error, few),
            ),
            Verdict(
                "it grows again for much larger N, where differences are lost to rounding (largest N at least 1.5 times"
                " the best)",
                results.mean(discrete[-1], error) > 1.5 * results.mean(best, error),
                f"best {best}: " + results.listed(error, dict.fromkeys([best, discrete[-1]])),
            ),
            Verdict(
                "continuous time is best: below every N, under every seed",
                all(results.below(error, CONTINUOUS, name) for name in discrete),
                results.listed(error, [CONTINUOUS, best]),
            ),
        )

    def draw(self, figure: Figure, results: Results) -> None:
        """Draw the errors over N, continuous time as a band."""
        axes = figure.subplots()
        discrete = [name for name in results.conditions if name != CONTINUOUS]
        counts = [int(name.removeprefix("N = ")) for name in discrete]
        for colour, steps in zip(COLOURS, (1, 2), strict=False):
            values = np.array([results.of(name, f"trajectory_error@{steps}") for name in discrete])
            axes.plot(counts, values.mean(1), "o-", color=colour, label=f"dsCD, {steps} step{'s' * (steps > 1)}")
            axes.fill_between(counts, values.min(1), values.max(1), color=colour, alpha=0.15, linewidth=0)
            for value in (value for value in results.of(CONTINUOUS, f"trajectory_error@{steps}") if np.isfinite(value)):
                axes.axhline(value, color=colour, linestyle="--", linewidth=1)
        axes.plot([], [], "k--", linewidth=1, label="sCD, every seed")
        logarithmic(axes, across=2)
        axes.set_xlabel("time steps N")
        label(axes, "error to the exact samples, in std of the data")


class CurseOfConsistency(Study, name="curse-of-consistency"):
    """How fast consistency training from scratch converges when the number N of intervals is fixed.

    CT on a mixture, fresh weights, the paper's EDM grid: the more intervals, the closer the consistency condition is to
    the true one, and the longer the way that errors have to travel.
    """

    reference = "Geng et al. 2024 (ECT), arXiv:2406.14548, Fig. 1 and Sec. 3.1"
    columns = ("early", "trajectory_error@1", "sliced_wasserstein@1")

    steps: Count = 1600
    """Training steps of each model."""
    points: Count = 8
    """Times that a model is judged in the course of its training."""
    intervals: Annotated[tuple[Count, ...], MinLen(2)] = (8, 32, 128, 512, 8192)
    """Numbers N of intervals."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rising(self, "intervals")

    def arms(self) -> Sequence[Arm]:
        """Return a model for each N."""
        return self.under_seeds(
            {
                f"N = {n}": on_mixture(
                    {"name": "ct", "schedule": {"name": "edm-grid", "steps": n}, "weighting": "inverse-step"},
                    self.steps,
                    learning_rate=1e-3,
                    schedule="constant",
                    **often(self.steps, self.points),
                )
                for n in self.intervals
            }
        )

    def measure(self, folder: Path) -> Mapping[str, Any]:
        """Return the errors over training, the first of them by itself."""
        found = course(folder, (1,))
        return {**super().measure(folder), **found, "early": found["sliced_wasserstein@1, course"][0]}

    def judge(self, results: Results) -> Sequence[Verdict]:
        """Order the conditions early in training, and at its end."""
        names, first = results.conditions, self.steps // self.points
        return (
            Verdict(
                f"the larger N, the slower the convergence (after {first} steps the distance to the data grows with N,"
                " under every seed)",
                all(results.below("early", low, high) for low, high in itertools.pairwise(names)),
                results.listed("early"),
            ),
            Verdict(
                "the smallest N ends with a bias: it is not the best at the end",
                results.whole and min(names, key=lambda name: results.mean(name, "trajectory_error@1")) != names[0],
                "error to the exact samples: " + results.listed("trajectory_error@1"),
            ),
        )

    def draw(self, figure: Figure, results: Results) -> None:
        """Draw distance and error over training."""
        left, right = figure.subplots(1, 2)
        plot_course(left, results, "sliced_wasserstein@1, course")
        label(left, "sliced Wasserstein distance", "1 step, to the data")
        plot_course(right, results, "trajectory_error@1, course")
        label(right, "error to the exact samples, in std", "1 step, sample by sample")


class Segments(Study, name="segments"):
    """Whether models of more segments of time, sampled in as many steps, make better samples.

    sCD from the exact teacher of a mixture; a model of M segments jumps M times, without new noise.
    """

    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, Table 5; Heek et al. 2024, arXiv:2403.06807"
    columns = ("sliced_wasserstein", "trajectory_error")

    steps: Count = 2500
    """Training steps of each student."""
    segments: Annotated[tuple[Count, ...], MinLen(2)] = (1, 2, 4, 8)
    """Numbers M of segments."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rising(self, "segments")

    def arms(self) -> Sequence[Arm]:
        """Return a student for each number of segments."""
        return self.under_seeds(
            {f"M = {m}": on_mixture({"name": "scd", "segments": m}, self.steps) for m in self.segments}
        )

    def measure(self, folder: Path) -> Mapping[str, Any]:
        """Return the figures of as many steps as there are segments."""
        found = dict(super().measure(folder))
        steps = min(int(name.rpartition("@")[2]) for name in found if name.rpartition("@")[2].isdigit())
        names = ("sliced_wasserstein", "trajectory_error")
        return {**found, **{name: found[f"{name}@{steps}"] for name in names}}

    def judge(self, results: Results) -> Sequence[Verdict]:
        """Order the conditions, and compare the most segments with the fewest."""
        names = results.conditions
        words = {"trajectory_error": "error to the exact samples", "sliced_wasserstein": "distance to the data"}
        most, fewest = names[-1], names[0]
        verdicts = []
        for figure, what in words.items():
            falls = all(
                results.mean(high, figure) < results.mean(low, figure) for low, high in itertools.pairwise(names)
            )
            better = results.below(figure, most, fewest)
            told = results.listed(figure)
            verdicts += [
                Verdict(f"{most} has the smaller {what} than {fewest}, under every seed", better, told),
                Verdict(f"the {what} falls with every further segment (means)", falls, told),
            ]
        return verdicts

    def draw(self, figure: Figure, results: Results) -> None:
        """Draw both figures."""
        axes = figure.subplots()
        plot_dots(axes, results, ("sliced_wasserstein", "trajectory_error"))
        floor = results.mean(results.conditions[0], "sliced_wasserstein@floor")
        axes.axhline(floor, color="grey", linestyle=":")
        logarithmic(axes)
        label(axes, "in units of the data, and of their std", "dotted: distance of two halves of the data")
