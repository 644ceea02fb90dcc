"""Schedules: grids of noise levels, fixed or refined as training goes on, and ECT's mapping without a grid."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from scmreg.coordinates import LAST
from scmreg.errors import OptionError
from scmreg.process import Process
from scmreg.schedule import Schedule, needs_steps, strictly_below
from scmreg.types import NonNegative, NonNegativeInt, Positive
from scmreg_discrete.levels import Levels, spaced

__all__ = ["ECTMapping", "EDMGrid", "GridSchedule", "ICTCurriculum"]


class GridSchedule(Levels, Schedule):
    """A schedule on EDM's grid, ``sigma_i = (sigma_min^{1/rho} + i/N (sigma_max^{1/rho} - sigma_min^{1/rho}))^rho``.

    A proposed time moves to the next time of the grid at or above it, the earlier time is the one below. The grid
    begins at the data, ``t_0 = 0``, in place of the lowest noise level.
    """

    rho: Positive = 7.0
    """Exponent of the spacing; larger puts more of the grid at low noise."""

    @abstractmethod
    def intervals(self, step: int, steps: int | None) -> int:
        """Return the number ``N`` of intervals of the grid at a training step."""

    def grid(self, process: Process, intervals: int) -> Tensor:
        """Return the times of the grid from 0 to its end, float64, shape ``(N + 1,)``."""
        share = torch.linspace(0, 1, intervals + 1, dtype=torch.float64)
        times = process.time_of(spaced(share, self.sigma_min, self.top(process), self.rho)).clamp(max=process.t_max)
        times[0] = 0.0
        return times

    def pair(self, process: Process, t: Tensor, step: int, steps: int | None) -> tuple[Tensor, Tensor]:
        """Return neighbours on the grid."""
        # In the precision of t, so that a time of the grid is found to be one. Rounding may make neighbours equal:
        # the first of those at or above t is above all times before it.
        grid = self.grid(process, self.intervals(step, steps)).to(t)
        above = torch.searchsorted(grid, t).clamp(1, len(grid) - 1)
        t = grid[above]
        return t, grid[torch.searchsorted(grid, t) - 1]


class EDMGrid(GridSchedule, name="edm-grid"):
    """Compare neighbours on a grid that stays the same: EDM's N intervals of noise levels."""

    formula = "sigma_i = (sigma_min^{1/rho} + i/N (sigma_max^{1/rho} - sigma_min^{1/rho}))^rho,  t_0 = 0"
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, App. E.2; Song et al. 2023, arXiv:2303.01469, Sec. 4 (N = 17)"

    steps: Annotated[int, Ge(2)] = 17
    """Number N of intervals. (Song et al.: 17, which are 18 times; sCM: up to 1024 and beyond.)"""

    def intervals(self, step: int, steps: int | None) -> int:
        """Return `steps`."""
        return self.steps


class ICTCurriculum(GridSchedule, name="ict"):
    """Compare neighbours on a grid that doubles at equal intervals of training, from s0 intervals to s1.

    (ECT prints the length of a stage as ``K/log2(s1/s0 + 1)``; with the one that is added outside the logarithm, each
    of the ``log2(s1/s0) + 1`` stages lasts as long as the others.)
    """

    formula = "N(k) = min(s0 2^floor(k/K'), s1),  K' = floor(K/(log2 floor(s1/s0) + 1))"
    reference = "Song & Dhariwal 2023 (iCT), arXiv:2310.14189, Sec. 3.4; Geng et al. 2024 (ECT), Eq. 10, corrected"

    s0: Annotated[int, Ge(2)] = 10
    """Intervals at first."""
    s1: Annotated[int, Ge(2)] = 1280
    """Intervals at last."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.s1 < self.s0:
            raise OptionError([f"schedule 'ict': s1 {self.s1} must not be below s0 {self.s0}"])

    def intervals(self, step: int, steps: int | None) -> int:
        """Return ``N(k)``."""
        total = needs_steps(self, steps)
        stage = max(1, math.floor(total / (math.log2(self.s1 // self.s0) + 1)))
        # So many doublings that s1 is passed; a power of the whole step would be an enormous number.
        doublings = min(step // stage, self.s1.bit_length())
        return min(self.s0 << doublings, self.s1)


class ECTMapping(Schedule, name="ect"):
    """Let the earlier time be a growing share of the time: from diffusion training towards consistency, on no grid.

    The exponent ``a`` grows by one every ``d`` steps, counted from 1, so that it is 1 at first. (ECT's one-hour recipe
    keeps it at 1, with q = 256.)
    """

    formula = "r/t = max(0, 1 - n(t)/q^a),  n(t) = 1 + k/(1 + e^{b t}),  a = ceil(step/d);  t the noise level"
    reference = "Geng et al. 2024 (ECT), arXiv:2406.14548, Eqs. 15 and 18, App. A"

    q: Annotated[float, Gt(1)] = 2.0
    """Factor by which the step shrinks each time. (CIFAR-10: 2; ImageNet: 4.)"""
    d: Positive = 0.125
    """Steps between two times that it shrinks; a number below 1 is a share of the whole training. (CIFAR-10: 1/8;
    ImageNet: 1/4.)"""
    k: NonNegative = 8.0
    """How much larger the step is at low noise; 0 for the same share at all times."""
    b: Positive = 1.0
    """How soon that ends as the noise level grows."""
    a: NonNegativeInt | None = None
    """An exponent that stays the same in place of the growing one; 0 is diffusion training."""

    def exponent(self, step: int, steps: int | None) -> int:
        """Return ``a`` at a training step."""
        if self.a is not None:
            return self.a
        every = self.d if self.d >= 1 else self.d * needs_steps(self, steps)
        return math.ceil((step + 1) / every)

    def pair(self, process: Process, t: Tensor, step: int, steps: int | None) -> tuple[Tensor, Tensor]:
        """Return the proposed times and the share of them that Eq. 18 says."""
        # Pure noise has an infinite level; its earlier time is that of the largest finite one of float32.
        end = process.sigma_data * math.tan(LAST)
        level = process.noise_level(t.double()).clamp(max=end)
        # 1/(1 + e^x), without an overflow of e^x
        part = 1 - (1 + self.k * torch.sigmoid(-self.b * level)) / self.q ** self.exponent(step, steps)
        return t, strictly_below(process.time_of(level * part.clamp_min(0.0)), t)
