"""Weightings: how much each time counts in the loss of an objective."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from scmreg.component import Component
from scmreg.process import Process
from scmreg.registry import registry

__all__ = ["Weighting", "WeightingModule"]


class WeightingModule(nn.Module):
    """A built weighting: turns per-sample losses into weighted ones.

    Subclasses give the logarithm of the weight; where it is learned, the loss becomes ``e^w l - w``, whose minimum
    over ``w`` has ``e^w E[l] = 1`` at every time (sCM, App. D).
    """

    learned = False

    def log_weight(self, t: Tensor) -> Tensor:
        """Return the logarithm of the weight at times ``t`` of the process, shape ``(B,)``."""
        raise NotImplementedError

    def forward(self, loss: Tensor, t: Tensor) -> Tensor:
        """Weight per-sample losses of shape ``(B,)`` at times ``t``."""
        return self.weigh(loss, t)[0]

    def weigh(self, loss: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Weight per-sample losses, and return the factors ``e^w`` beside them, without gradient, for the log.

        Args:
            loss: per-sample losses, shape ``(B,)``.
            t: times of the process, shape ``(B,)``.
        """
        log_weight = self.log_weight(t)
        weight = log_weight.exp()
        weighted = weight * loss
        return (weighted - log_weight if self.learned else weighted), weight.detach()


class Weighting(Component, kind="weighting"):
    """A positive weight per time that multiplies the objective's own loss."""

    @abstractmethod
    def build(self, process: Process) -> WeightingModule:
        """Return the module that weights losses under ``process``; a learned weighting holds its parameters."""

    def under(self, process: Process, to: Process) -> Weighting:
        """Return the weighting that gives, under the process ``to``, the weight that this one gives to the same noise
        level under ``process`` (sCM, App. B, Eq. 22).
        """
        if to == process:
            return self
        made: Weighting = registry("weighting").create("converted", of=self, process=process)
        return made


class FixedWeight(WeightingModule):
    """A weight that is a known function of time."""

    def __init__(self, weighting: FixedWeighting, process: Process) -> None:
        super().__init__()
        self.weighting = weighting
        self.process = process

    def log_weight(self, t: Tensor) -> Tensor:
        """Return the logarithm of the known weight."""
        return torch.log(self.weighting.weight(self.process, t))


class FixedWeighting(Weighting):
    """A weighting without parameters: implement `weight`."""

    @abstractmethod
    def weight(self, process: Process, t: Tensor) -> Tensor:
        """Return the weight at times ``t``, shape ``(B,)``, positive."""

    def build(self, process: Process) -> WeightingModule:
        """Return a module without parameters."""
        return FixedWeight(self, process)
