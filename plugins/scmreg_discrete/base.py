"""What the objectives of this package share: pairs of times, and the evaluation at the earlier one."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from scmreg.coordinates import trig_time
from scmreg.denoiser import Denoiser
from scmreg.objective import ObjectiveModule, Phase, Setup, Student
from scmreg.process import known
from scmreg.proposal import Proposal
from scmreg.rng import rewound
from scmreg.schedule import Schedule
from scmreg.tangent import Raw
from scmreg.types import Batch, Conditions
from scmreg.weighting import Weighting

__all__ = ["DiscreteConsistency", "DiscreteModule", "Pair", "at_earlier"]


class Pair(NamedTuple):
    """A batch at a time ``t`` each, and the data and noise that it moves along to an earlier time ``r``."""

    t: Tensor
    """Times of the process, shape ``(B,)``."""
    r: Tensor
    """Earlier times, shape ``(B,)``; 0 is the data."""
    gap: Tensor
    """TrigFlow time between them, shape ``(B,)``, precise where it is short."""
    x: Tensor
    """Samples at ``t``, shape ``(B, ...)``."""
    data: Tensor
    """Clean sample, or the teacher's prediction of it, shape ``(B, ...)``."""
    noise: Tensor
    """Noise, or the teacher's prediction of it, shape ``(B, ...)``."""


class DiscreteConsistency(Student):
    """An objective that compares a consistency function at pairs of times."""

    pairs = True

    weighting: Weighting = Weighting.default("uniform")
    """Weight of each pair of times."""
    proposal: Proposal = Proposal.default("discrete-lognormal")
    """Distribution of the later times, before the schedule moves them."""
    schedule: Schedule = Schedule.default("edm-grid")
    """Which earlier time belongs to a time, and how the two close in."""

    def direction(
        self, teacher: Denoiser | None, x: Tensor, t: Tensor, x0: Tensor, noise: Tensor, cond: Conditions
    ) -> tuple[Tensor, Tensor]:
        """Return the pair of data and noise along whose path a sample moves: the one that it was made of."""
        return x0, noise

    @abstractmethod
    def build(self, setup: Setup) -> ObjectiveModule:
        """Return the module that computes the loss."""


class DiscreteModule(ObjectiveModule):
    """A built objective that compares a consistency function at pairs of times."""

    phases = (Phase("main", own=("weighting",)),)

    def __init__(self, objective: DiscreteConsistency, setup: Setup) -> None:
        super().__init__(setup)
        self.options = objective
        self.weighting = objective.weighting.build_in(setup.denoiser.process, objective.space)

    def draw(self, batch: Batch, step: int, rng: torch.Generator) -> Pair:
        """Draw times and noise for a batch."""
        setup, x0 = self.setup, batch.x0
        process = setup.denoiser.process
        t = self.options.proposal.sample(process, len(x0), rng, x0.dtype)
        t, r = self.options.schedule.pair(process, t, step, setup.steps)
        gap = (trig_time(process, t.double()) - trig_time(process, r.double())).to(x0)
        t, r = t.to(x0.device), r.to(x0.device)
        noise = torch.randn(x0.shape, generator=rng, device=rng.device).to(x0)
        x = process.perturb(x0, noise, t)
        return Pair(t, r, gap, x, *self.options.direction(setup.teacher, x, t, x0, noise, batch.cond))


def at_earlier(net: Raw, x: Tensor, t: Tensor, r: Tensor, cond: Conditions) -> Tensor:
    """Return the raw output at earlier times ``r``, without gradient, from the random state that is there now.

    Where ``r`` is 0 it says nothing: no use is made of a network there, which may be singular. It is not asked if all
    are, and at ``t`` in place of 0 otherwise, so that every sample keeps its place in the batch, and its dropout mask.
    The random state is put back after it: what is evaluated next draws the same mask.
    """
    clean = r == 0
    if known(clean.all()):
        return torch.zeros_like(x)
    with rewound(x.device), torch.no_grad():
        return net(x, torch.where(clean, t, r), cond)
