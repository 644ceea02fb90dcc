"""Weightings and proposals: which times count, and which are drawn."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from scmreg.component import Component
from scmreg.coordinates import log_ratio_rate, trig_time
from scmreg.hookspecs import hookimpl
from scmreg.process import Process
from scmreg.proposal import Proposal
from scmreg.types import Count, Positive
from scmreg.weighting import FixedWeighting, Weighting, WeightingModule

__all__ = ["SNR", "Adaptive", "LogNormal", "LogitNormal", "Uniform", "UniformTimes"]


class Uniform(FixedWeighting, name="uniform"):
    """Count every drawn time alike: ``w = 1`` on the objective's own loss."""

    formula = "w(t) = 1"
    reference = "Lu & Song 2024 (sCM), Eq. 4"

    def weight(self, process: Process, t: Tensor) -> Tensor:
        """Return ones."""
        return torch.ones_like(t)


class SNR(FixedWeighting, name="snr"):
    """Weight the unit-variance loss so that it becomes the noise-prediction loss of DDPM.

    The data loss times the SNR is the noise loss; relative to the unit-variance loss, whose data-space weight is
    ``SNR + 1``, that is ``SNR / (SNR + 1) = cos²(t̂)``.
    """

    formula = "w(t) = SNR/(SNR + 1) = cos²(t̂)"
    reference = "Salimans & Ho 2022, arXiv:2202.00512, Sec. 4; Lu & Song 2024 (sCM), Eq. 34"

    def weight(self, process: Process, t: Tensor) -> Tensor:
        """Return ``cos²(t̂)``; never an exact 0, so that its logarithm exists."""
        return (torch.cos(trig_time(process, t)) ** 2).clamp_min(torch.finfo(t.dtype).tiny)


class AdaptiveWeight(WeightingModule):
    """A small network of the time, its last layer zero: all times count alike at first."""

    learned = True

    def __init__(self, process: Process, channels: int) -> None:
        super().__init__()
        self.process = process
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("frequency", torch.randn(channels, generator=generator))
        self.register_buffer("phase", torch.rand(channels, generator=generator))
        self.frequency: Tensor
        self.phase: Tensor
        self.head = nn.Linear(channels, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def log_weight(self, t: Tensor) -> Tensor:
        """Return ``w_phi(t)``."""
        angle = trig_time(self.process, t).float()
        features = torch.cos(2 * math.pi * (angle[:, None] * self.frequency + self.phase)) * math.sqrt(2)
        out: Tensor = self.head(features)
        return out[:, 0]


class Adaptive(Weighting, name="adaptive"):
    """Learn the weight that makes every time contribute alike: ``e^w l - w``, minimal at ``e^w E[l] = 1``."""

    formula = "e^{w_phi(t)} l - w_phi(t)"
    reference = "Karras et al. 2024 (EDM2), arXiv:2312.02696, Eq. 21; Lu & Song 2024 (sCM), Eq. 8 and App. D"

    channels: Count = 64
    """Number of Fourier features of the time."""

    def build(self, process: Process) -> WeightingModule:
        """Return the learned weight."""
        return AdaptiveWeight(process, self.channels)


class LogNormal(Proposal, name="lognormal"):
    """Draw ``log(sigma/alpha)`` from a normal distribution: in TrigFlow ``log(sigma_data tan t)``.

    (Eq. 8 of sCM prints an exponential on the left side; its Algorithm 1 has the reading that is used here.)
    """

    formula = "log(sigma/alpha) ~ N(p_mean, p_std²)"
    reference = "Karras et al. 2022 (EDM), arXiv:2206.00364, Table 1; Lu & Song 2024 (sCM), Algorithm 1"

    p_mean: float = -1.0
    """Mean of the logarithm."""
    p_std: Positive = 1.4
    """Standard deviation of the logarithm."""

    def transform(self, process: Process, uniform: Tensor) -> Tensor:
        """Return the quantile."""
        return process.time_of(torch.exp(self.p_mean + self.p_std * torch.special.ndtri(uniform)))

    def log_density(self, process: Process, t: Tensor) -> Tensor:
        """Return the log-density in process time."""
        at = process.coefficients(t)
        level = torch.log(at.sigma / at.alpha)
        return _normal(level, self.p_mean, self.p_std) - torch.log(log_ratio_rate(process, t))


class LogitNormal(Proposal, name="logit-normal"):
    """Draw ``logit(t / t_max)`` from a normal distribution: most times in the middle of the process."""

    formula = "logit(t/t_max) ~ N(mean, std²)"
    reference = "Esser et al. 2024 (SD3), arXiv:2403.03206, Sec. 3.1"

    mean: float = 0.0
    """Mean of the logit."""
    std: Positive = 1.0
    """Standard deviation of the logit."""

    def transform(self, process: Process, uniform: Tensor) -> Tensor:
        """Return the quantile."""
        return process.t_max * torch.sigmoid(self.mean + self.std * torch.special.ndtri(uniform))

    def log_density(self, process: Process, t: Tensor) -> Tensor:
        """Return the log-density in process time."""
        part = t / process.t_max
        density = _normal(torch.logit(part), self.mean, self.std) - torch.log(part * (1 - part) * process.t_max)
        return torch.where((part > 0) & (part < 1), density, -math.inf)


class UniformTimes(Proposal, name="uniform"):
    """Draw every time of the process alike."""

    formula = "t ~ U(0, t_max)"
    reference = "Ho et al. 2020 (DDPM), arXiv:2006.11239, Algorithm 1"

    def transform(self, process: Process, uniform: Tensor) -> Tensor:
        """Return the quantile."""
        return process.t_max * uniform

    def log_density(self, process: Process, t: Tensor) -> Tensor:
        """Return the log-density in process time."""
        inside = torch.full_like(t, -math.log(process.t_max))
        return inside.masked_fill(t > process.t_max * (1 + 1e-12), -math.inf)


def _normal(x: Tensor, mean: float, std: float) -> Tensor:
    return -0.5 * ((x - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [Uniform, SNR, Adaptive, LogNormal, LogitNormal, UniformTimes]
