"""Weightings: how much each time counts in the loss of an objective.

A weight says how much an error counts, so it has to say the error of what. There are two errors, and a loss is the
squared size of one of them: that of the unit velocity ``F̂`` (``unit``), as in diffusion and in continuous-time
consistency, or that of the data (``data``), ``sigma_data sin(t̂)`` times as large, as where two outputs of a consistency
function are compared. `Weighting.space` says for which of them a weight is stated, ``Objective.space`` of which one a
loss is the size; :meth:`Weighting.build_in` brings them together. A weight that is stated for the objective's ``own``
loss multiplies whatever that is.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scmreg.component import Component
from scmreg.coordinates import trig_time
from scmreg.process import Process
from scmreg.registry import registry
from scmreg.types import expand

__all__ = ["FixedWeighting", "Space", "Weighting", "WeightingModule"]

Space = Literal["own", "unit", "data"]


class WeightingModule(nn.Module):
    """A built weighting: turns per-sample losses into weighted ones.

    Subclasses give the logarithm of the weight; where it is learned, the loss becomes ``e^w l - w``, whose minimum
    over ``w`` has ``e^w E[l] = 1`` at every time (sCM, App. D).
    """

    learned = False
    needs_pair = False
    """Whether the weight depends on an earlier time and on the difference, and `log_weight_of_pair` gives it."""

    def log_weight(self, t: Tensor) -> Tensor:
        """Return the logarithm of the weight at times ``t`` of the process, shape ``(B,)``."""
        raise NotImplementedError

    def log_weight_of_pair(self, t: Tensor, r: Tensor, delta: Tensor) -> Tensor:
        """Return the logarithm of the weight of a pair of times, shape ``(B,)``; no gradient is taken of it.

        Args:
            t: times of the process, shape ``(B,)``.
            r: earlier times of the process, shape ``(B,)``.
            delta: the difference that the loss is the size of, shape ``(B, ...)``.
        """
        raise NotImplementedError

    def forward(self, loss: Tensor, t: Tensor, *, r: Tensor | None = None, delta: Tensor | None = None) -> Tensor:
        """Weight per-sample losses of shape ``(B,)`` at times ``t``."""
        return self.weigh(loss, t, r=r, delta=delta)[0]

    def weigh(
        self, loss: Tensor, t: Tensor, *, r: Tensor | None = None, delta: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Weight per-sample losses, and return the factors ``e^w`` beside them, without gradient, for the log.

        Args:
            loss: per-sample losses, shape ``(B,)``.
            t: times of the process, shape ``(B,)``.
            r: earlier times, where the loss compares pairs of times, shape ``(B,)``.
            delta: the difference that the loss is then the size of, shape ``(B, ...)``.

        Raises:
            ValueError: if the weight is one of pairs, and the pair is not given.
        """
        if not self.needs_pair:
            log_weight = self.log_weight(t)
        elif r is None or delta is None:
            raise ValueError(f"{type(self).__name__} needs the earlier time r and the difference delta")
        else:
            log_weight = self.log_weight_of_pair(t, r, delta.detach()).detach()
        weight = log_weight.exp()
        weighted = weight * loss
        return (weighted - log_weight if self.learned else weighted), weight.detach()


class InSpace(WeightingModule):
    """A weighting that is stated for one error, on the loss of the other: their squares differ by a known factor."""

    def __init__(self, inner: WeightingModule, process: Process, stated: Space) -> None:
        super().__init__()
        self.inner, self.process, self.stated = inner, process, stated
        self.learned, self.needs_pair = inner.learned, inner.needs_pair

    def scale(self, t: Tensor) -> Tensor:
        """Return the factor from the error that the loss is the size of to the one that the weight is stated for."""
        sine = torch.sin(trig_time(self.process, t)).clamp_min(torch.finfo(t.dtype).tiny)
        error = self.process.sigma_data * sine
        return error if self.stated == "data" else 1 / error

    def log_weight(self, t: Tensor) -> Tensor:
        """Return the logarithm of the weight on the loss as it is."""
        return self.inner.log_weight(t) + 2 * torch.log(self.scale(t))

    def log_weight_of_pair(self, t: Tensor, r: Tensor, delta: Tensor) -> Tensor:
        """Return the logarithm of the weight on the loss as it is."""
        scale = self.scale(t)
        return self.inner.log_weight_of_pair(t, r, expand(scale, delta) * delta) + 2 * torch.log(scale)


class Weighting(Component, kind="weighting"):
    """A positive weight per time that multiplies a loss."""

    @property
    def space(self) -> Space:
        """The loss that the weight is stated for: of the unit velocity, of the data, or the objective's own."""
        return "own"

    @property
    def needs_pair(self) -> bool:
        """Whether the weight depends on an earlier time or on the difference, which not every objective has."""
        return False

    @abstractmethod
    def build(self, process: Process) -> WeightingModule:
        """Return the module that weights losses of its `space` under ``process``; a learned weighting holds its
        parameters.
        """

    def build_in(self, process: Process, space: Space) -> WeightingModule:
        """Return the module that weights losses of any space under ``process``, as this weighting states it."""
        module = self.build(process)
        if self.space == space or "own" in (self.space, space):
            return module
        return InSpace(module, process, self.space)

    def under(self, process: Process, to: Process) -> Weighting:
        """Return the weighting that gives, under the process ``to``, the weight that this one gives to the same noise
        level under ``process`` (sCM, App. B, Eq. 22).
        """
        if to == process:
            return self
        made: Weighting = registry("weighting").create("converted", of=self, process=process)
        return made

    def fits(self, recipe: Any) -> str | None:
        """Refuse an objective that knows no pairs of times, if the weight needs them."""
        if not self.needs_pair:
            return None
        for owner in recipe.components():
            if owner.kind == "objective" and not owner.pairs and getattr(owner, "weighting", None) is self:
                return f"weighting '{self.name}' weights pairs of times, which objective '{owner.name}' has none of"
        return None


class FixedWeight(WeightingModule):
    """A weight that is a known function of time."""

    def __init__(self, weighting: FixedWeighting, process: Process) -> None:
        super().__init__()
        self.weighting = weighting
        self.process = process

    def log_weight(self, t: Tensor) -> Tensor:
        """Return the logarithm of the known weight."""
        # Where a weight vanishes, as towards pure noise, its logarithm has to exist.
        return torch.log(self.weighting.weight(self.process, t).clamp_min(torch.finfo(t.dtype).tiny))


class FixedWeighting(Weighting):
    """A weighting without parameters: implement `weight`."""

    @abstractmethod
    def weight(self, process: Process, t: Tensor) -> Tensor:
        """Return the weight at times ``t``, shape ``(B,)``, positive."""

    def build(self, process: Process) -> WeightingModule:
        """Return a module without parameters."""
        return FixedWeight(self, process)
