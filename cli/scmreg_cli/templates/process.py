"""A process for scmreg: noise that grows linearly while the variance is preserved.

scm show process/example
scm run --objective diffusion --process example --steps 200
"""

from __future__ import annotations

from typing import Annotated

import scmreg
import torch
from annotated_types import Interval
from scmreg.process import Coefficients
from torch import Tensor

scmreg_api = (1, 0)


class Example(scmreg.Process, name="example"):
    """Let the share of noise grow linearly: ``x_t = sqrt(1 - t²) x_0 + t noise``."""

    formula = "alpha = sqrt(1 - t²),  sigma = t,  0 <= t <= t_end"

    t_end: Annotated[float, Interval(ge=0.5, le=0.999999)] = 0.9999
    """The last time: at 1 itself nothing is left of the data, and the derivative of alpha is infinite."""

    @property
    def t_max(self) -> float:
        """Return `t_end`."""
        return self.t_end

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return alpha, sigma and their derivatives at times ``t``, each of shape ``(B,)``."""
        alpha = torch.sqrt((1 - t) * (1 + t))
        return Coefficients(alpha, t, -t / alpha, torch.ones_like(t))

    def time_of(self, ratio: Tensor) -> Tensor:
        """Return the time of the noise level ``sigma/alpha``: its closed form takes the place of bisection."""
        return torch.sin(torch.atan(ratio))


@scmreg.hookimpl
def scmreg_components() -> list[type[scmreg.Component]]:
    """List what this plugin adds."""
    return [Example]
