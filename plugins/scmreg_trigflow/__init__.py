"""TrigFlow: the process of sCM, on a circle."""

from __future__ import annotations

import torch
from torch import Tensor

from scmreg.component import Component
from scmreg.coordinates import LAST
from scmreg.hookspecs import hookimpl
from scmreg.process import Coefficients, Process

__all__ = ["TrigFlow"]


class TrigFlow(Process, name="trigflow"):
    """Turn data into noise on a circle: ``x_t = cos(t) x_0 + sin(t) sigma_data noise``.

    The marginal standard deviation is ``sigma_data`` at every time, and the probability flow is the network itself:
    ``dx/dt = sigma_data F(x / sigma_data, t)``.
    """

    formula = "alpha = cos t,  sigma = sigma_data sin t,  0 <= t < pi/2"
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, Sec. 3 and Eq. 23"

    # Not pi/2, which rounds up in float32 to where the cosine is negative.
    t_max = LAST

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return ``cos t``, ``sigma_data sin t`` and their derivatives."""
        cos, sin = torch.cos(t), torch.sin(t)
        return Coefficients(cos, self.sigma_data * sin, -sin, self.sigma_data * cos)

    def time_of(self, ratio: Tensor) -> Tensor:
        """Return ``atan(ratio / sigma_data)``."""
        return torch.atan(ratio / self.sigma_data)


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [TrigFlow]
