"""Flow matching: the straight path from data to noise, and its velocity as network output."""

from __future__ import annotations

import torch
from torch import Tensor

from scmreg.component import Component
from scmreg.hookspecs import hookimpl
from scmreg.parameterization import Preconditioning, Prediction
from scmreg.process import Coefficients, Process

__all__ = ["Flow", "FlowVelocity"]


class Flow(Process, name="flow"):
    """Move from data to noise in a straight line: ``x_t = (1 - t) x_0 + t noise``."""

    formula = "alpha = 1 - t,  sigma = t,  0 <= t < 1"
    reference = "Lipman et al. 2023 (flow matching), arXiv:2210.02747, conditional optimal transport path"

    # The largest float32 below 1: at 1 itself the noise level is infinite.
    t_max = 0.9999999403953552

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return ``1 - t``, ``t`` and their derivatives."""
        one = torch.ones_like(t)
        return Coefficients(1 - t, t, -one, one)

    def time_of(self, ratio: Tensor) -> Tensor:
        """Return ``ratio / (1 + ratio)``, in the form that is exact for an infinite ratio."""
        return 1 / (1 + 1 / ratio)


class FlowVelocity(Prediction, name="flow"):
    """Predict the velocity of the process: ``F = alpha' x_0 + sigma' noise``."""

    formula = "D = (sigma' x - sigma F)/w,  eps = (alpha F - alpha' x)/w,  w = alpha sigma' - alpha' sigma,  c_in = 1/v"
    reference = "Lipman et al. 2023 (flow matching), arXiv:2210.02747, Eq. 9; Lu & Song 2024 (sCM), Sec. 2.1"

    def preconditioning(self, process: Process, t: Tensor) -> Preconditioning:
        """Return the coefficients for any process."""
        at = process.coefficients(t)
        w = at.alpha * at.sigma_prime - at.alpha_prime * at.sigma
        return Preconditioning(
            c_skip=at.sigma_prime / w,
            c_out=-at.sigma / w,
            n_skip=-at.alpha_prime / w,
            n_out=at.alpha / w,
            c_in=self.input_scale(process, t),
        )


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [Flow, FlowVelocity]
