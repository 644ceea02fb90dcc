"""Conversion: what a parameterization, a proposal or a weighting means under another process, exactly.

`Parameterization.under`, `Proposal.under` and `Weighting.under` make these; in a recipe they are written out as any
component, so that a converted model can be trained on, saved and loaded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scmreg.component import Component
from scmreg.coordinates import convert_time, log_ratio_rate
from scmreg.hookspecs import hookimpl
from scmreg.parameterization import Parameterization, Preconditioning
from scmreg.process import Process
from scmreg.proposal import Proposal
from scmreg.types import expand
from scmreg.weighting import Space, Weighting, WeightingModule

__all__ = ["ConvertedParameterization", "ConvertedProposal", "ConvertedWeighting"]


class ConvertedParameterization(Parameterization, name="converted"):
    """Use a network that was trained under another process: the same model, in the coordinates of this one.

    Both processes see the same signal-to-noise ratio, the same noise, and data in their own scale, so data and noise
    predictions stay linear in ``x`` and ``F`` and only their coefficients change. What the network is told of the time
    is what it was told in training.
    """

    formula = "c_skip' = k m c_skip,  c_out' = k c_out,  c_in' = m c_in;  m = v(t)/v'(t'),  k = sigma_data'/sigma_data"
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, App. B, Eqs. 17, 21 and 29"

    of: Parameterization = Parameterization.default("unit-variance")
    """The parameterization that the network was trained with."""
    process: Process = Process.default("edm")
    """The process that the network was trained under."""

    def preconditioning(self, process: Process, t: Tensor) -> Preconditioning:
        """Return the coefficients in the coordinates of ``process``."""
        there = convert_time(t, process, self.process)
        c = self.of.preconditioning(self.process, there)
        points = self.process.std(there) / process.std(t)
        data = process.sigma_data / self.process.sigma_data
        return Preconditioning(
            c_skip=data * points * c.c_skip,
            c_out=data * c.c_out,
            n_skip=points * c.n_skip,
            n_out=c.n_out,
            c_in=points * c.c_in,
        )

    def time_input(self, process: Process, t: Tensor) -> Tensor:
        """Return what the network was told of this time by its own process."""
        return self.of.time_input(self.process, convert_time(t, process, self.process))

    def unit_velocity(self, process: Process, raw: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return TrigFlow's velocity, which is the same in both processes."""
        there = convert_time(t, process, self.process)
        scale = self.process.std(there) / process.std(t)
        return self.of.unit_velocity(self.process, raw, expand(scale, x) * x, there)

    def under(self, process: Process, to: Process) -> Parameterization:
        """Return the conversion of the original: conversions do not pile up."""
        return self.of.under(self.process, to)


class ConvertedProposal(Proposal, name="converted"):
    """Draw the times of another process, and convert them: the same distribution of noise levels."""

    formula = "p'(t') = p(t) dt/dt'"
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, App. B, Eq. 22"

    of: Proposal = Proposal.default("lognormal")
    """The original distribution."""
    process: Process = Process.default("edm")
    """The process whose times it is a distribution of."""

    def transform(self, process: Process, uniform: Tensor) -> Tensor:
        """Return the quantile."""
        drawn = self.of.transform(self.process, uniform).clamp(max=self.process.t_max)
        return convert_time(drawn, self.process, process)

    def log_density(self, process: Process, t: Tensor) -> Tensor:
        """Return the log-density in the time of ``process``, -inf past what the original draws."""
        there = convert_time(t, process, self.process)
        slope = torch.log(log_ratio_rate(self.process, there)) - torch.log(log_ratio_rate(process, t))
        inside = there <= self.process.t_max * (1 + 1e-12)
        return torch.where(inside, self.of.log_density(self.process, there) + slope, -math.inf)

    def under(self, process: Process, to: Process) -> Proposal:
        """Return the conversion of the original: conversions do not pile up."""
        return self.of.under(self.process, to)


class ConvertedWeight(WeightingModule):
    """The weight of another process's time."""

    def __init__(self, inner: WeightingModule, source: Process, process: Process, scale: float) -> None:
        super().__init__()
        self.inner, self.source, self.process, self.scale = inner, source, process, scale
        self.learned, self.needs_pair = inner.learned, inner.needs_pair

    def log_weight(self, t: Tensor) -> Tensor:
        """Return the logarithm of the weight at the corresponding time of the other process."""
        return self.inner.log_weight(convert_time(t, self.process, self.source))

    def log_weight_of_pair(self, t: Tensor, r: Tensor, delta: Tensor) -> Tensor:
        """Return the logarithm of the weight at the corresponding times of the other process."""
        there, before = (convert_time(time, self.process, self.source) for time in (t, r))
        return self.inner.log_weight_of_pair(there, before, self.scale * delta)


class ConvertedWeighting(Weighting, name="converted"):
    """Weight each noise level as another process weights it."""

    formula = "w'(t') = w(t)"
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, App. B, Eq. 22"

    of: Weighting = Weighting.default("uniform")
    """The original weighting."""
    process: Process = Process.default("edm")
    """The process whose times it weights."""

    @property
    def space(self) -> Space:
        """The space of the original."""
        return self.of.space

    @property
    def needs_pair(self) -> bool:
        """Whether the original weights pairs of times."""
        return self.of.needs_pair

    def build(self, process: Process) -> WeightingModule:
        """Return the original's module, asked at converted times."""
        return self.build_in(process, self.space)

    def build_in(self, process: Process, space: Space) -> WeightingModule:
        """Return the original's module for a loss in some space under its own process, asked at converted times."""
        # An error of the data has the scale of the data, one of the unit velocity has none.
        scale = self.process.sigma_data / process.sigma_data if space == "data" else 1.0
        return ConvertedWeight(self.of.build_in(self.process, space), self.process, process, scale)

    def under(self, process: Process, to: Process) -> Weighting:
        """Return the conversion of the original: conversions do not pile up."""
        return self.of.under(self.process, to)


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [ConvertedParameterization, ConvertedProposal, ConvertedWeighting]
