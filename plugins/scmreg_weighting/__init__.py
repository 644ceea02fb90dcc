"""Weightings and proposals: which times count, and which are drawn."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from scmreg.component import Component
from scmreg.coordinates import log_ratio_rate, trig_time
from scmreg.hookspecs import hookimpl
from scmreg.process import Process
from scmreg.proposal import Proposal
from scmreg.types import Count, Positive
from scmreg.weighting import FixedWeighting, Weighting, WeightingModule
from scmreg_weighting.pairs import ECT, InverseStep

__all__ = [
    "ECT",
    "SNR",
    "Adaptive",
    "EDMWeighting",
    "InverseStep",
    "InverseT",
    "LogNormal",
    "LogitNormal",
    "Prior",
    "SNRPlusOne",
    "SoftMinSNR",
    "Uniform",
    "UniformTimes",
]


class Uniform(FixedWeighting, name="uniform"):
    """Count every drawn time alike: ``w = 1`` on the objective's own loss."""

    formula = "w(t) = 1"
    reference = "Lu & Song 2024 (sCM), Eq. 4"

    def weight(self, process: Process, t: Tensor) -> Tensor:
        """Return ones."""
        return torch.ones_like(t)


class SNR(FixedWeighting, name="snr"):
    """Weight the error of the noise, which is DDPM's loss: the SNR ``alpha²/sigma²`` on the error of the data.

    On the error of the unit velocity, for which it is stated, that is ``cos²(t̂)``.
    """

    formula = "w(t) = cos²(t̂) on the unit velocity = 1/(sigma_data tan t̂)² on the data"
    reference = "Salimans & Ho 2022, arXiv:2202.00512, Sec. 4; Lu & Song 2024 (sCM), Eq. 34; ECT, Table 3: 1/t²"
    space = "unit"

    def weight(self, process: Process, t: Tensor) -> Tensor:
        """Return ``cos²(t̂)``."""
        return torch.cos(trig_time(process, t)) ** 2


class DataWeighting(FixedWeighting):
    """A weight that is stated for the error of the data, as a function of the noise level ``tau = sigma/alpha``."""

    space = "data"

    def weight(self, process: Process, t: Tensor) -> Tensor:
        """Return the weight at times ``t``, shape ``(B,)``."""
        at = process.coefficients(t)
        # At pure noise alpha is 0, and 1/tau with it; tau itself is infinite.
        return self.of_inverse(at.alpha / at.sigma, process.sigma_data)

    @abstractmethod
    def of_inverse(self, inverse: Tensor, sigma_data: float) -> Tensor:
        """Return the weight as a function of ``1/tau``, which is ECT's ``1/t``."""


class Prior(DataWeighting, name="prior"):
    """Weight the data's error by one over the noise level: the prior weight of sCM, in TrigFlow's time.

    It balances the times of a consistency function whose outputs are compared. The losses of sct and scd have it in
    them already.
    """

    formula = "w(t) = 1/(sigma_data tan t̂) = alpha/sigma on the data"
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, Sec. 4.2 and App. D"

    def of_inverse(self, inverse: Tensor, sigma_data: float) -> Tensor:
        """Return the inverse noise level."""
        return inverse


class InverseT(DataWeighting, name="inverse-t"):
    """Weight the data's error by ``1/t``, ``t`` being EDM's time, the noise level: one of ECT's weights.

    It is the same function as `prior`, which states it in TrigFlow's time.
    """

    formula = "w(t) = 1/t on the data,  t = sigma/alpha"
    reference = "Geng et al. 2024 (ECT), arXiv:2406.14548, Table 3: 1/t"

    def of_inverse(self, inverse: Tensor, sigma_data: float) -> Tensor:
        """Return the inverse noise level."""
        return inverse


class SNRPlusOne(DataWeighting, name="snr+1"):
    """Weight the data's error by the SNR plus one: of a variance-preserving process the loss of ``v``."""

    formula = "w(t) = alpha²/sigma² + 1 on the data"
    reference = "Salimans & Ho 2022, arXiv:2202.00512, Sec. 4; Geng et al. 2024 (ECT), Table 3: 1/t² + 1"

    def of_inverse(self, inverse: Tensor, sigma_data: float) -> Tensor:
        """Return the SNR plus one."""
        return inverse**2 + 1


class EDMWeighting(DataWeighting, name="edm"):
    """Weight the data's error as EDM does: the error of the unit velocity, every time alike.

    The loss of diffusion is that error, so that this changes nothing there.
    """

    formula = "w(t) = alpha²/sigma² + 1/sigma_data² = 1/(sigma_data sin t̂)² on the data"
    reference = (
        "Karras et al. 2022 (EDM), arXiv:2206.00364, Table 1; Geng et al. 2024 (ECT), Table 3: 1/t² + 1/sigma_data²"
    )

    def of_inverse(self, inverse: Tensor, sigma_data: float) -> Tensor:
        """Return EDM's weight."""
        return inverse**2 + 1 / sigma_data**2


class SoftMinSNR(DataWeighting, name="soft-min-snr"):
    """Weight the data's error by the SNR, smoothly bounded: the soft form of ``min(SNR, gamma)``."""

    formula = "w(t) = 1/(1/SNR + 1/gamma) on the data,  SNR = alpha²/sigma²"
    reference = (
        "Crowson et al. 2024 (HDiT), arXiv:2401.11605, after Hang et al. 2023 (Min-SNR), arXiv:2303.09556; Geng et al."
        " 2024 (ECT), Table 3: 1/(t² + sigma_data²)"
    )

    gamma: Positive | None = None
    """What the weight is bounded by; 1/sigma_data² if not given, which is 4 for sigma_data 0.5."""

    def of_inverse(self, inverse: Tensor, sigma_data: float) -> Tensor:
        """Return the bounded SNR."""
        bound = 1 / sigma_data**2 if self.gamma is None else self.gamma
        snr = inverse**2
        return snr / (1 + snr / bound)


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
    weightings: list[type[Component]] = [Uniform, SNR, Prior, InverseT, SNRPlusOne, EDMWeighting, SoftMinSNR]
    return [*weightings, Adaptive, InverseStep, ECT, LogNormal, LogitNormal, UniformTimes]
