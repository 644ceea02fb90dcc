"""A sampler for scmreg: a method of Ralston in the noise level.

scm show sampler/example
scm run --objective diffusion --sampler example --set sampler.steps=10 --steps 200
scm verify declared-orders
"""

from __future__ import annotations

import scmreg
import torch
from scmreg.sampler import Ask, Level, OdeSampler, Point, levels_of
from torch import Tensor

scmreg_api = (1, 0)


class Example(OdeSampler, name="example"):
    """Take one noise prediction at the start of a step and three of its quarters two thirds on: second order.

    In ``y = x/alpha`` and the noise level ``rho = sigma/alpha`` the flow is ``dy/drho = eps``, to which any method for
    ordinary differential equations applies. The step to clean data is DDIM's.
    """

    formula = "y_s = y_t + h (eps(t) + 3 eps(u))/4,  h = rho_s - rho_t,  rho_u = rho_t + 2 h/3"
    reference = "Ralston 1962, Runge-Kutta methods with minimum error bounds"
    order = 2
    calls = 2

    def step(self, here: Point, to: Level, ask: Ask, before: Point | None, process: scmreg.Process) -> Tensor:
        """Take one step from ``here`` to the level ``to``, shape ``(B, ...)``."""
        if to.sigma == 0:
            return here.ddim(to)
        h = to.ratio - here.at.ratio
        ratio = torch.tensor([here.at.ratio + 2 * h / 3], dtype=torch.float64)
        (between,) = levels_of(process, process.time_of(ratio))
        there = ask(here.ddim(between), between)
        return here.ddim(to) + to.alpha * h * 0.75 * (there.noise - here.noise)


@scmreg.hookimpl
def scmreg_components() -> list[type[scmreg.Component]]:
    """List what this plugin adds."""
    return [Example]
