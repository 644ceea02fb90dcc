"""Studies of whole methods: score distillation beside consistency, tuning beside training from scratch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import MinLen

from scmreg.study import Arm, Results, Study, Verdict
from scmreg.types import Count
from scmreg_studies.setting import COLOURS, label, logarithmic, on_digits, plot_dots, rising

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TuningEfficiency", "VSDDiversity"]


class VSDDiversity(Study, name="vsd-diversity"):
    """Whether score distillation (VSD) gives up diversity for precision, and sCD keeps both.

    VSD, sCD and their sum on the digits from one teacher a seed, samples of one step; precision and recall in the
    features of the digit classifier. Each has the learning rate that is its default, and the fake score of VSD is ten
    times as fast, where the paper has one rate for all.
    """

    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, Fig. 7, Table 6 and App. C"
    columns = ("precision@1", "recall@1", "frechet@1", "precision@teacher", "recall@teacher")

    steps: Count = 2000
    """Training steps of each student."""
    teacher_steps: Count = 2000
    """Training steps of each teacher."""

    def arms(self) -> Sequence[Arm]:
        """Return a student of each kind."""
        metrics = ("frechet", "precision-recall")
        objectives: dict[str, Mapping[str, Any]] = {
            "scd": {"name": "scd"},
            "scd+vsd": {"name": "scd+vsd"},
            "vsd": {"name": "vsd"},
        }
        return self.under_seeds(
            {name: on_digits(tree, self.steps, self.teacher_steps, metrics) for name, tree in objectives.items()}
        )

    def judge(self, results: Results) -> Sequence[Verdict]:
        """Compare precision and recall."""
        precision, recall = "precision@1", "recall@1"
        both = results.listed
        return (
            Verdict(
                "VSD has the higher precision than sCD, under every seed",
                results.whole and results.below(precision, "scd", "vsd"),
                both(precision),
            ),
            Verdict(
                "VSD has the lower recall than sCD, under every seed",
                results.whole and results.below(recall, "vsd", "scd"),
                both(recall),
            ),
            Verdict(
                "sCD of two steps keeps both: precision and recall at least nine tenths of the teacher's, under every"
                " seed",
                results.whole
                and all(
                    own >= 0.9 * theirs
                    for name in ("precision", "recall")
                    for own, theirs in zip(
                        results.of("scd", f"{name}@2"), results.of("scd", f"{name}@teacher"), strict=True
                    )
                ),
                "; ".join(
                    f"{name} {results.told('scd', f'{name}@2')}, of the teacher"
                    f" {results.told('scd', f'{name}@teacher')}"
                    for name in ("precision", "recall")
                ),
            ),
            Verdict(
                "the sum lies between the two, in precision and in recall (means)",
                results.whole
                and all(
                    low <= results.mean("scd+vsd", name) <= high
                    for name in (precision, recall)
                    for low, high in [sorted((results.mean("scd", name), results.mean("vsd", name)))]
                ),
                f"precision {both(precision)}; recall {both(recall)}",
            ),
        )

    def draw(self, figure: Figure, results: Results) -> None:
        """Draw recall over precision, the teacher beside, and the distance."""
        left, right = figure.subplots(1, 2)
        for colour, condition in zip(COLOURS, results.conditions, strict=False):
            place = results.of(condition, "precision@1"), results.of(condition, "recall@1")
            left.plot(*place, "o", color=colour, label=condition)
        place = results.of("scd", "precision@teacher"), results.of("scd", "recall@teacher")
        left.plot(*place, "k*", label="teacher")
        left.set_xlabel("precision")
        label(left, "recall", "1 step")
        plot_dots(right, results, ("frechet@1",))
        label(right, "Fréchet distance", "1 step")


class TuningEfficiency(Study, name="tuning-efficiency"):
    """Whether tuning a diffusion model beats consistency training from scratch, and how quality grows with compute.

    Digits, two steps: iCT from fresh weights, and iCT and ECT that begin with a diffusion model, at equal numbers of
    optimizer steps, those of the diffusion model counted; then ECT tunings of several lengths from the same model.
    """

    reference = "Geng et al. 2024 (ECT), arXiv:2406.14548, Tables 1 and 6, Fig. 4"
    columns = ("frechet@1", "frechet@2")

    pretraining: Count = 1500
    """Steps of the diffusion model."""
    tuning: Count = 1500
    """Steps of the tuning that is compared; training from scratch takes both."""
    lengths: Annotated[tuple[Count, ...], MinLen(3)] = (250, 500, 1000, 2000, 4000)
    """Steps of the further tunings by ECT."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rising(self, "lengths")

    def arms(self) -> Sequence[Arm]:
        """Return the three that are compared, and the tunings of several lengths."""
        tuned = {"start": "teacher"}
        compared = {
            "iCT from scratch": on_digits({"name": "ict"}, self.pretraining + self.tuning, self.pretraining),
            "pretraining, iCT": on_digits({"name": "ict", **tuned}, self.tuning, self.pretraining),
            "pretraining, ECT": on_digits({"name": "ect", **tuned}, self.tuning, self.pretraining),
        }
        longer = {f"ECT {n}": on_digits({"name": "ect", **tuned}, n, self.pretraining) for n in self.lengths}
        return self.under_seeds({**compared, **longer})

    def judge(self, results: Results) -> Sequence[Verdict]:
        """Compare at equal compute, and fit the power law."""
        figure = "frechet@2"
        scratch, ict, ect = results.conditions[:3]
        slope, fit = self.power_law(results)
        return (
            Verdict(
                "pretraining and tuning beat training from scratch at equal numbers of steps, under every seed",
                results.below(figure, ect, scratch) and results.below(figure, ict, scratch),
                results.listed(figure, (scratch, ict, ect)),
            ),
            Verdict(
                "tuning by ECT beats tuning by iCT, under every seed",
                results.below(figure, ect, ict),
                results.listed(figure, (ict, ect)),
            ),
            Verdict(
                "two-step quality improves as a power law of the tuning's steps (exponent below -0.1, R² of the"
                " logarithms above 0.9)",
                slope < -0.1 and fit > 0.9,
                f"exponent {slope:.2f}, R² {fit:.3f}: " + results.listed(figure, [f"ECT {n}" for n in self.lengths]),
            ),
        )

    def power_law(self, results: Results) -> tuple[float, float]:
        """Return the slope of ``log distance`` over ``log steps`` by least squares, and its R²; nan if one diverged."""
        x = np.log(self.lengths)
        y = np.array([math.log(results.mean(f"ECT {n}", "frechet@2")) for n in self.lengths])
        if not np.isfinite(y).all():
            return math.nan, math.nan
        if not np.ptp(y):
            return 0.0, 0.0
        slope, offset = np.polyfit(x, y, 1)
        left = ((y - slope * x - offset) ** 2).sum() / ((y - y.mean()) ** 2).sum()
        return float(slope), float(1 - left)

    def draw(self, figure: Figure, results: Results) -> None:
        """Draw the comparison, and distance over steps with the fitted line."""
        left, right = figure.subplots(1, 2)
        first = Results({key: found for key, found in results.figures.items() if key[0] in results.conditions[:3]})
        plot_dots(left, first, ("frechet@2",))
        label(left, "Fréchet distance", f"2 steps, {self.pretraining + self.tuning} training steps in all")
        steps = np.array(self.lengths, dtype=float)
        for colour, evaluations in zip(COLOURS, (1, 2), strict=False):
            values = np.array([results.of(f"ECT {n}", f"frechet@{evaluations}") for n in self.lengths])
            right.plot(steps, values.mean(1), "o-", color=colour, label=f"{evaluations} step{'s' * (evaluations > 1)}")
            right.fill_between(steps, values.min(1), values.max(1), color=colour, alpha=0.15, linewidth=0)
        slope, fit = self.power_law(results)
        middle = math.exp(float(np.mean([math.log(results.mean(f"ECT {n}", "frechet@2")) for n in self.lengths])))
        line = middle * (steps / math.exp(float(np.log(steps).mean()))) ** slope
        right.plot(steps, line, "k:", label=f"power {slope:.2f}, R² {fit:.2f}")
        logarithmic(right, across=2)
        right.set_xlabel("steps of tuning by ECT")
        label(right, "Fréchet distance")
