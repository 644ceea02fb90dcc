"""Studies of weightings: sCM's learned one, and the exponent of ECT's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import MinLen

from scmreg.errors import OptionError
from scmreg.registry import registry
from scmreg.study import Arm, Results, Study, Verdict
from scmreg.types import Count, Positive
from scmreg_studies.setting import (
    COLOURS,
    NETWORK,
    brief,
    course,
    label,
    logarithmic,
    often,
    on_digits,
    plot_course,
    rising,
    scaled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["AdaptiveWeighting", "SwissRollAdaptiveWeighting"]


class AdaptiveWeighting(Study, name="adaptive-weighting"):
    """Whether a weighting that learns makes better consistency models than none.

    sCD on the digits from one teacher a seed, both with normalized tangents and the paper's proposal of times.
    """

    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, Fig. 5b and Sec. 4.2"
    columns = ("frechet@1", "frechet@2", "frechet@teacher")

    steps: Count = 2500
    """Training steps of each student."""
    teacher_steps: Count = 2000
    """Training steps of each teacher."""
    points: Count = 5
    """Times that a student is judged in the course of its training."""
    learning_rate: Positive = 5e-4
    """Learning rate of every student."""

    def arms(self) -> Sequence[Arm]:
        """Return a student without and one with a learned weight."""
        proposal = {"name": "lognormal", "p_mean": -1.0, "p_std": 1.4}
        return self.under_seeds(
            {
                weighting: on_digits(
                    {"name": "scd", "weighting": weighting, "normalization": "l2", "proposal": proposal},
                    self.steps,
                    self.teacher_steps,
                    learning_rate=self.learning_rate,
                    **often(self.steps, self.points),
                )
                for weighting in ("uniform", "adaptive")
            }
        )

    def measure(self, folder: Path) -> Mapping[str, Any]:
        """Return the distances at the end, and over training."""
        return {**super().measure(folder), **course(folder)}

    def judge(self, results: Results) -> Sequence[Verdict]:
        """Compare both, in one step and in two."""
        return tuple(
            Verdict(
                f"adaptive weighting gives better samples of {steps} step{'s' * (steps > 1)} than none, for all seeds",
                results.below(f"frechet@{steps}", "adaptive", "uniform"),
                "Fréchet distance: " + results.listed(f"frechet@{steps}"),
            )
            for steps in (1, 2)
        )

    def draw(self, figure: Figure, results: Results) -> None:
        """Draw the distances over training."""
        for axes, steps in zip(figure.subplots(1, 2, sharey=True), (1, 2), strict=True):
            plot_course(axes, results, f"frechet@{steps}, course")
            label(axes, "Fréchet distance", f"{steps} step{'s' * (steps > 1)}")


class SwissRollAdaptiveWeighting(Study, name="swissroll-adaptive-weighting"):
    """Whether a flow model is easier to sample in a few steps if its loss is weighted by a power of its own size.

    Flow matching on the Swiss roll, ``t`` uniform, the weight ``1/(||Δ||² + c²)^p``. The error is the one of the unit
    velocity, which is the flow's times ``1/sqrt((1-t)² + t²)`` here, where the data have unit variance.
    """

    reference = "Geng et al. 2024 (ECT), arXiv:2406.14548, App. B, Fig. 6"
    columns = ("sliced_wasserstein@2", "sliced_wasserstein@4", "sliced_wasserstein@8", "sliced_wasserstein@64")

    steps: Count = 4000
    """Training steps of each model."""
    evaluations: Annotated[tuple[Count, ...], MinLen(2)] = (1, 2, 4, 8, 16, 64)
    """Numbers of Euler steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rising(self, "evaluations")
        if not any(1 < n <= 4 for n in self.evaluations):
            raise OptionError([f"{self.name}.evaluations must have 2, 3 or 4 among them: they are the few steps"])

    def arms(self) -> Sequence[Arm]:
        """Return a flow for each exponent."""
        return self.under_seeds(
            {
                f"p = {p:g}": {
                    "data": "swissroll",
                    "process": {"name": "flow", "sigma_data": 1.0},
                    "parameterization": "flow",
                    "network": NETWORK,
                    "objective": {
                        "name": "diffusion",
                        "proposal": "uniform",
                        # On the unit velocity this weight of the data's error is 1 at all times.
                        "weighting": {"name": "ect", "w_bar": "1/t^2+1/sd^2", "p": p, "c": 1e-3},
                    },
                    "trainer": brief(self.steps),
                    "evaluation": {"count": 4000, "metrics": ["sliced-wasserstein"]},
                }
                for p in (0.0, 0.25, 0.5, 0.75, 1.0)
            }
        )

    def measure(self, folder: Path) -> Mapping[str, Any]:
        """Return the distance by the number of Euler steps."""
        return {**super().measure(folder), **scaled(folder, registry("sampler").create("euler"), self.evaluations)}

    def judge(self, results: Results) -> Sequence[Verdict]:
        """Compare every exponent with none where steps are few."""
        none, *powers = results.conditions
        few = [n for n in self.evaluations if 1 < n <= 4]
        return (
            Verdict(
                f"with p from 1/2 to 1, samples of {' and of '.join(map(str, few))} steps are closer to the data than"
                " without, under every seed",
                all(
                    results.below(f"sliced_wasserstein@{n}", power, none)
                    for power in powers
                    if float(power.removeprefix("p = ")) >= 0.5
                    for n in few
                ),
                "; ".join(f"{n} steps: " + results.listed(f"sliced_wasserstein@{n}") for n in few),
            ),
            Verdict(
                "the stronger the weighting, the closer the samples of few steps (means fall with p)",
                all(
                    results.mean(high, f"sliced_wasserstein@{n}") < results.mean(low, f"sliced_wasserstein@{n}")
                    for n in few
                    for low, high in zip(results.conditions, results.conditions[1:], strict=False)
                ),
                "; ".join(
                    f"{n} steps: " + results.listed(f"sliced_wasserstein@{n}") for n in (*few, max(self.evaluations))
                ),
            ),
        )

    def draw(self, figure: Figure, results: Results) -> None:
        """Draw the distance over the number of steps."""
        axes = figure.subplots()
        for colour, condition in zip(COLOURS, results.conditions, strict=False):
            means = [results.mean(condition, f"sliced_wasserstein@{n}") for n in self.evaluations]
            axes.plot(self.evaluations, means, "o-", color=colour, label=condition)
        logarithmic(axes, across=2)
        axes.set_xlabel("Euler steps")
        axes.axhline(results.mean(results.conditions[0], "sliced_wasserstein@floor"), color="grey", linestyle=":")
        label(axes, "sliced Wasserstein distance", "dotted: two halves of the data")
