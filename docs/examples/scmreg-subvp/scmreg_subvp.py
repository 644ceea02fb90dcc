"""The sub-variance-preserving process for scmreg: VP's data, with less noise on the way."""

from __future__ import annotations

import torch
from torch import Tensor

import scmreg
from scmreg.errors import OptionError
from scmreg.process import Coefficients, Process
from scmreg.types import Positive

__all__ = ["SubVP"]


class SubVP(Process, name="sub-vp"):
    """Mix data and noise at a rate that grows linearly, with a variance below that of `vp` at every time.

    Data fade as in ``vp``, and the noise has the standard deviation that is the variance there. Near the data it grows
    like ``beta_min t``, not like its square root: unlike VP's, the velocity is finite at the data.
    """

    formula = "alpha = exp(-B/2),  sigma = 1 - exp(-B),  B(t) = beta_min t + (beta_max - beta_min) t²/2,  0 <= t <= 1"
    reference = "Song et al. 2021 (score SDE), arXiv:2011.13456, Eqs. 12 and 29 (sub-VP SDE)"

    t_max = 1.0

    beta_min: Positive = 0.1
    """Rate of the noise at the data."""
    beta_max: Positive = 20.0
    """Rate of the noise at the end; at least beta_min."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta_max < self.beta_min:
            raise OptionError(
                [f"beta_max {self.beta_max:g} of process 'sub-vp' is below its beta_min {self.beta_min:g}"]
            )

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return the coefficients; ``sigma`` in the form that does not cancel near the data."""
        beta = self.beta_min + t * (self.beta_max - self.beta_min)
        integral = t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)
        alpha, sigma = torch.exp(-integral / 2), -torch.expm1(-integral)
        return Coefficients(alpha, sigma, -beta * alpha / 2, beta * alpha**2)

    def time_of(self, ratio: Tensor) -> Tensor:
        """Return the root of ``B(t)/2 = asinh(ratio/2)``, as ``sigma/alpha = 2 sinh(B/2)``."""
        integral = 2 * torch.asinh(ratio / 2)
        growth = 2 * (self.beta_max - self.beta_min)
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + growth * integral))


@scmreg.hookimpl
def scmreg_components() -> list[type[scmreg.Component]]:
    """Register what this package adds."""
    return [SubVP]
