"""Proposals of discrete-time consistency training, continuous in time: a schedule with a grid makes them discrete."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scmreg.coordinates import log_ratio_rate
from scmreg.process import Process
from scmreg.proposal import Proposal
from scmreg.types import Positive
from scmreg_discrete.levels import Levels, spaced

__all__ = ["DiscreteLogNormal", "Karras"]

ROUNDING = 1e-12
"""Share by which a noise level may lie outside of its range because of rounding."""


class RangeProposal(Levels, Proposal):
    """A proposal of noise levels within a range."""

    def inside(self, process: Process, level: Tensor) -> Tensor:
        """Say which noise levels lie in the range, but for rounding."""
        return (level >= self.sigma_min * (1 - ROUNDING)) & (level <= self.top(process) * (1 + ROUNDING))


class DiscreteLogNormal(RangeProposal, name="discrete-lognormal"):
    """Draw ``log(sigma/alpha)`` from a normal distribution within a range; on a grid that is iCT's discrete one.

    A schedule with a grid moves a time to the grid's next one, whose probability is that of the interval below it.
    """

    formula = (
        "p(sigma_i) ~ erf((log sigma_i - p_mean)/(sqrt(2) p_std)) - erf((log sigma_{i-1} - p_mean)/(sqrt(2) p_std))"
    )
    reference = "Song & Dhariwal 2023 (iCT), arXiv:2310.14189, Sec. 3.5; Geng et al. 2024 (ECT), Sec. 2"

    p_mean: float = -1.1
    """Mean of the logarithm."""
    p_std: Positive = 2.0
    """Standard deviation of the logarithm."""

    def bounds(self, process: Process) -> tuple[float, float]:
        """Return the share of the whole distribution below the range, and that below its end."""
        ends = torch.tensor([self.sigma_min, self.top(process)], dtype=torch.float64)
        low, high = torch.special.ndtr((torch.log(ends) - self.p_mean) / self.p_std).tolist()
        return low, high

    def transform(self, process: Process, uniform: Tensor) -> Tensor:
        """Return the quantile."""
        low, high = self.bounds(process)
        normal = torch.special.ndtri(low + (high - low) * uniform)
        return process.time_of(torch.exp(self.p_mean + self.p_std * normal))

    def log_density(self, process: Process, t: Tensor) -> Tensor:
        """Return the log-density in process time, -inf outside of the range."""
        level = process.noise_level(t)
        low, high = self.bounds(process)
        normal = -0.5 * ((torch.log(level) - self.p_mean) / self.p_std) ** 2
        scale = math.log(self.p_std * math.sqrt(2 * math.pi) * (high - low))
        density = normal - scale - torch.log(log_ratio_rate(process, t))
        return torch.where(self.inside(process, level), density, -math.inf)


class Karras(RangeProposal, name="karras"):
    """Draw noise levels alike along EDM's steps; on a grid of the same range every interval is as likely."""

    formula = "sigma = (sigma_min^{1/rho} + u (sigma_max^{1/rho} - sigma_min^{1/rho}))^rho,  u ~ U(0, 1)"
    reference = "Song et al. 2023 (consistency models), arXiv:2303.01469, Algorithms 2 and 3; Karras et al. 2022, Eq. 5"

    rho: Positive = 7.0
    """Exponent of the spacing; larger draws more low noise levels."""

    def transform(self, process: Process, uniform: Tensor) -> Tensor:
        """Return the quantile."""
        return process.time_of(spaced(uniform, self.sigma_min, self.top(process), self.rho))

    def log_density(self, process: Process, t: Tensor) -> Tensor:
        """Return the log-density in process time, -inf outside of the range."""
        level, end = process.noise_level(t), self.top(process)
        root = level ** (1 / self.rho)
        slope = self.rho * (end ** (1 / self.rho) - self.sigma_min ** (1 / self.rho)) / root  # d log(sigma)/du
        density = -torch.log(slope * log_ratio_rate(process, t))
        return torch.where(self.inside(process, level), density, -math.inf)
