"""A schedule for scmreg: pairs of noise levels that close in linearly.

scm show schedule/example
scm run --objective ict --set objective.schedule=example --set objective.schedule.last=0.9 --steps 200
"""

from __future__ import annotations

from typing import Annotated

import scmreg
from annotated_types import Interval
from scmreg.schedule import needs_steps, strictly_below
from torch import Tensor

scmreg_api = (1, 0)


class Example(scmreg.Schedule, name="example"):
    """Compare each noise level with a share of it that grows linearly over the training."""

    formula = "r = last k/K t,  t and r the noise levels of the pair at step k of K"

    last: Annotated[float, Interval(gt=0, lt=1)] = 0.95
    """Share at the end; at the beginning it is 0, which is diffusion training."""

    def pair(self, process: scmreg.Process, t: Tensor, step: int, steps: int | None) -> tuple[Tensor, Tensor]:
        """Return the proposed times ``t`` and the earlier ones, both of shape ``(B,)``."""
        share = self.last * step / needs_steps(self, steps)
        # Pure noise may have an infinite level; a share of a large one is as good.
        level = process.noise_level(t.double()).clamp(max=1e6)
        return t, strictly_below(process.time_of(share * level), t)


@scmreg.hookimpl
def scmreg_components() -> list[type[scmreg.Component]]:
    """List what this plugin adds."""
    return [Example]
