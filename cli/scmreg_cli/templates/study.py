"""A study for scmreg: whether longer training pays.

scm show study/example
scm study example --set seeds=1 --set steps=100
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import scmreg
from scmreg.study import Arm, Results, Verdict
from scmreg.types import Count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

scmreg_api = (1, 0)

FIGURE = "sliced_wasserstein@teacher"  # of the diffusion model, the only one that is trained


class Example(scmreg.Study, name="example"):
    """How much nearer to the data a small diffusion model comes with four times the training."""

    columns = (FIGURE,)

    steps: Count = 500
    """Training steps of the shorter training."""

    def arms(self) -> Sequence[Arm]:
        """Return both trainings under every seed."""
        network = {"name": "mlp", "width": 64, "depth": 2}
        recipe = {"objective": "diffusion", "data": {"name": "gaussians", "count": 2000}, "network": network}
        lengths = self.steps, 4 * self.steps
        return self.under_seeds({f"{steps} steps": {**recipe, "trainer": {"steps": steps}} for steps in lengths})

    def judge(self, results: Results) -> Sequence[Verdict]:
        """Compare the distances of samples from data, seed by seed."""
        short, long = results.conditions
        held = results.below(FIGURE, long, short)
        return (Verdict("longer training brings samples nearer (every seed)", held, results.listed(FIGURE)),)

    def draw(self, figure: Figure, results: Results) -> None:
        """Draw the mean distance after each training."""
        axes = figure.subplots()
        axes.bar(results.conditions, [results.mean(name, FIGURE) for name in results.conditions])
        axes.set_ylabel("sliced Wasserstein distance")


@scmreg.hookimpl
def scmreg_components() -> list[type[scmreg.Component]]:
    """List what this plugin adds."""
    return [Example]
