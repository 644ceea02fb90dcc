"""Samplers: from noise to data."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from scmreg.component import Component
from scmreg.denoiser import Denoiser
from scmreg.process import Process
from scmreg.rng import sample_noise
from scmreg.types import Conditions, Count, Positive

__all__ = ["Noise", "OdeSampler", "Sampler"]


class Noise:
    """The noise of a batch of samples: each has its own seed, so it is the same in any batch.

    Args:
        seeds: one seed per sample.
        shape: shape of one sample.
        device: where noise is put.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.seeds, self.shape, self.device = list(seeds), tuple(shape), device

    def draw(self, index: int = 0) -> Tensor:
        """Return the standard normal noise of draw ``index``, shape ``(B, *shape)``; 0 is the initial noise."""
        return sample_noise(self.seeds, self.shape, index, device=self.device)


class Sampler(Component, kind="sampler"):
    """A way from noise to data with a fixed number of network evaluations."""

    order: ClassVar[int | None] = None
    """Order of convergence of the trajectory in the step size; ``None`` for what solves no ODE."""

    steps: Count = 18
    """Number of steps."""

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Number of network evaluations per sample."""

    def with_steps(self, steps: int) -> Self:
        """Return the sampler with another number of steps."""
        return replace(self, steps=steps)

    @abstractmethod
    def sample(self, denoiser: Denoiser, noise: Noise, cond: Conditions) -> Tensor:
        """Return samples, scaled as the data, of shape ``(B, *shape)``."""


class OdeSampler(Sampler):
    """A solver of the probability-flow ODE on the time grid of EDM, in any process's coordinates.

    Noise levels ``sigma/alpha`` go from ``sigma_max`` to ``sigma_min`` and then to 0, equally spaced in their
    ``1/rho``-th power (Karras et al. 2022, Eq. 5).
    """

    sigma_min: Positive = 0.002
    """Last noise level before 0."""
    sigma_max: Positive = 80.0
    """First noise level; the process's own end where that is lower."""
    rho: Positive = 7.0
    """Exponent of the spacing; larger puts more steps at low noise."""

    def levels(self, highest: float = math.inf) -> Tensor:
        """Return the noise levels ``sigma/alpha``, float64, shape ``(steps + 1,)``, the last one 0.

        Args:
            highest: noise level at which the process ends, where that is below `sigma_max`.
        """
        ramp = torch.linspace(0, 1, self.steps, dtype=torch.float64)
        top, bottom = min(self.sigma_max, highest) ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return torch.cat([(top + ramp * (bottom - top)) ** self.rho, torch.zeros(1, dtype=torch.float64)])

    def times(self, process: Process) -> Tensor:
        """Return the times of the process at `levels`, float64, shape ``(steps + 1,)``."""
        end = process.coefficients(torch.tensor([process.t_max], dtype=torch.float64))
        levels = self.levels(float(end.sigma / end.alpha))
        return process.time_of(levels).clamp(max=process.t_max)

    def sample(self, denoiser: Denoiser, noise: Noise, cond: Conditions) -> Tensor:
        """Solve from pure noise to data."""
        first = noise.draw()
        times = self.times(denoiser.process)
        batch = [t.to(first.device, torch.float32).expand(len(first)) for t in times]
        x = denoiser.process.prior(first, batch[0])
        for t, s in itertools.pairwise(batch):
            x = self.step(denoiser, x, t, s, cond)
        return x

    @abstractmethod
    def step(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, cond: Conditions) -> Tensor:
        """Take one step from time ``t`` to the earlier time ``s``, both of shape ``(B,)``."""
