"""A proposal for scmreg: logistic noise levels.

scm show proposal/example
scm run --objective diffusion --proposal example --set objective.proposal.scale=0.8 --steps 200
"""

from __future__ import annotations

import math

import scmreg
import torch
import torch.nn.functional as F
from scmreg.coordinates import log_ratio_rate
from scmreg.types import Positive
from torch import Tensor

scmreg_api = (1, 0)


class Example(scmreg.Proposal, name="example"):
    """Draw ``log(sigma/alpha)`` from a logistic distribution, whose tails are heavier than a normal one's."""

    formula = "log(sigma/alpha) ~ Logistic(mean, scale)"

    mean: float = -1.0
    """Mean of the logarithm."""
    scale: Positive = 0.7
    """Scale of the logarithm; its standard deviation is pi/sqrt(3) times as large."""

    def transform(self, process: scmreg.Process, uniform: Tensor) -> Tensor:
        """Return the quantiles of uniform variates, as times of the process."""
        return process.time_of(torch.exp(self.mean + self.scale * torch.logit(uniform)))

    def log_density(self, process: scmreg.Process, t: Tensor) -> Tensor:
        """Return the log-density at times ``t``, with respect to ``t``."""
        z = (torch.log(process.noise_level(t)) - self.mean) / self.scale
        in_level = F.logsigmoid(z) + F.logsigmoid(-z) - math.log(self.scale)
        return in_level - torch.log(log_ratio_rate(process, t))


@scmreg.hookimpl
def scmreg_components() -> list[type[scmreg.Component]]:
    """List what this plugin adds."""
    return [Example]
