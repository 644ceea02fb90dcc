"""EDM: the variance-exploding process and the unit-variance parameterization of Karras et al. 2022."""

from __future__ import annotations

import torch
from torch import Tensor

from scmreg.component import Component
from scmreg.hookspecs import hookimpl
from scmreg.parameterization import Parameterization, Preconditioning, TimeInput
from scmreg.process import Coefficients, Process
from scmreg.types import Positive

__all__ = ["EDM", "UnitVariance"]


class EDM(Process, name="edm"):
    """Add noise of growing scale to the data: ``x_t = x_0 + t noise``."""

    formula = "alpha = 1,  sigma = t,  0 <= t <= sigma_max"
    reference = "Karras et al. 2022 (EDM), arXiv:2206.00364, Table 1"

    sigma_max: Positive = 80.0
    """Noise level at which the process ends."""

    @property
    def t_max(self) -> float:
        """The largest noise level."""
        return self.sigma_max

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return 1, ``t`` and their derivatives."""
        one = torch.ones_like(t)
        return Coefficients(one, t, torch.zeros_like(t), one)

    def time_of(self, ratio: Tensor) -> Tensor:
        """Return the ratio itself: time is the noise level."""
        return ratio


class UnitVariance(TimeInput, name="unit-variance"):
    """Give the network input and target unit variance at every time: EDM's form; in TrigFlow sCM's Eq. 23.

    ``D = (alpha sigma_data² x - sigma_data sigma v F) / v²`` with ``v² = alpha² sigma_data² + sigma²``; the sign is
    TrigFlow's, EDM's published network is ``-F``. Under every process ``F`` is one and the same function of TrigFlow
    coordinates.
    """

    formula = (
        "c_skip = alpha sigma_data²/v²,  c_out = -sigma_data sigma/v,  c_in = 1/v,  v² = alpha² sigma_data² + sigma²"
    )
    reference = "Karras et al. 2022 (EDM), arXiv:2206.00364, App. B.6; Lu & Song 2024 (sCM), Eqs. 12-23"

    def preconditioning(self, process: Process, t: Tensor) -> Preconditioning:
        """Return the coefficients for any process."""
        at, data = process.coefficients(t), process.sigma_data
        signal = data * at.alpha
        inverse = 1 / torch.hypot(signal, at.sigma)
        cos, sin = signal * inverse, at.sigma * inverse
        return Preconditioning(
            c_skip=data * cos * inverse, c_out=-data * sin, n_skip=sin * inverse, n_out=cos, c_in=inverse
        )

    def unit_velocity(self, process: Process, raw: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return the raw output, which is TrigFlow's velocity."""
        return raw

    def under(self, process: Process, to: Process) -> Parameterization:
        """Return this parameterization itself where the network is told the same of the time in both processes."""
        same_scale = process.sigma_data == to.sigma_data
        if self.c_noise == "identity" or (same_scale and self.c_noise != "1000t"):
            return self
        return super().under(process, to)


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [EDM, UnitVariance]
