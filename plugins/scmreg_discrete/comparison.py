"""Objectives that compare the outputs of a consistency function: CT and CD, iCT, ECT."""

from __future__ import annotations

import copy
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from scmreg.coordinates import trig_time
from scmreg.data import DataSpec
from scmreg.denoiser import Denoiser
from scmreg.distance import Distance
from scmreg.objective import Loss, Nets, ObjectiveModule, Setup
from scmreg.process import Process, known
from scmreg.proposal import Proposal
from scmreg.schedule import Schedule
from scmreg.tangent import Raw
from scmreg.types import Batch, Conditions, expand
from scmreg.weighting import Weighting
from scmreg_discrete.base import DiscreteConsistency, DiscreteModule, Pair, at_earlier

__all__ = ["CD", "CT", "ECT", "ICT", "Comparison"]


class ComparisonModule(DiscreteModule):
    """The loss ``w(t, r) d(f(x_t, t), f⁻(x_r, r))`` (Song et al. 2023, Eqs. 7 and 10; ECT, Eq. 12)."""

    def __init__(self, objective: Comparison, setup: Setup) -> None:
        super().__init__(objective, setup)
        self.objective = objective
        # A plain function: what it holds is neither trained nor saved.
        self.distance = objective.distance.build(setup.spec, setup.denoiser.process.sigma_data)
        self.target: Denoiser | None = None
        if objective.target_ema:
            self.target = copy.deepcopy(setup.denoiser).requires_grad_(False)
        self.followed: int | None = None

    def loss(self, phase: str, nets: Nets, batch: Batch, step: int, rng: torch.Generator) -> Loss:
        """Return the loss of one batch."""
        denoiser, process = self.setup.denoiser, self.setup.denoiser.process
        self.follow(step)
        pair = self.draw(batch, step, rng)
        x_r = self.objective.earlier(self.setup.teacher, process, pair, batch.cond)
        # First the earlier time, without gradient, then the later one from the same random state.
        target = consistency_target(self.target or nets["model"], denoiser, x_r, pair, batch.cond)
        value = denoiser.jump(nets["model"](pair.x, pair.t, batch.cond), pair.x, pair.t)

        per_sample = self.distance(value, target)
        weighted, weight = self.weighting.weigh(per_sample, pair.t, r=pair.r, delta=value - target)
        logs = {"weight": weight, "gap": pair.gap}
        return Loss(weighted.mean(), per_sample.detach(), trig_time(process, pair.t), logs)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move the target network towards the model, once a step; what a step has done is done before the next one."""
        if self.target is None or self.followed == step:
            return
        self.followed = step
        ours: list[Tensor] = list(self.target.parameters())
        theirs: list[Tensor] = list(self.setup.denoiser.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - self.objective.target_ema)
        for mean, now in zip(self.target.buffers(), self.setup.denoiser.buffers(), strict=True):
            mean.copy_(now)


def consistency_target(net: Raw, denoiser: Denoiser, x_r: Tensor, pair: Pair, cond: Conditions) -> Tensor:
    """Return ``f(x_r, r)`` without gradient; at ``r = 0`` it is ``x_r`` itself."""
    raw = at_earlier(net, x_r, pair.t, pair.r, cond)
    clean = pair.r == 0
    asked = torch.where(clean, pair.t, pair.r)
    return torch.where(expand(clean, x_r), x_r, denoiser.jump(raw, x_r, asked))


class Comparison(DiscreteConsistency):
    """What CT, CD, iCT and ECT share: everything but their defaults, and where the earlier sample comes from."""

    space = "data"

    distance: Distance = Distance.default("l2")
    """How far apart two outputs are."""
    target_ema: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Rate at which the network of the target, an exponential average of the model, remembers: 0 for the model itself,
    without an average."""

    def accepts(self, spec: DataSpec) -> str | None:
        """Refuse data that the distance has no meaning for."""
        return self.distance.accepts(spec)

    def earlier(self, teacher: Denoiser | None, process: Process, pair: Pair, cond: Conditions) -> Tensor:
        """Return the samples at the earlier times, on the path of the pair."""
        return process.perturb(pair.data, pair.noise, pair.r)

    def build(self, setup: Setup) -> ObjectiveModule:
        """Return the module that computes the loss."""
        return ComparisonModule(self, setup)


class CT(Comparison, name="ct"):
    """Train a consistency model on data alone, between neighbours of a grid: the first consistency training.

    Both samples of a pair are made of the same data and noise. (The paper compares by LPIPS, refines the grid as the
    square root of the steps, and averages the target network, at a rate of 0.9 that grows with the grid.)
    """

    formula = "w(t) d(f(x_0 + t_{n+1} noise, t_{n+1}), f⁻(x_0 + t_n noise, t_n))"
    reference = "Song et al. 2023 (consistency models), arXiv:2303.01469, Algorithm 3, Eq. 10"

    proposal: Proposal = Proposal.default("karras")
    """Distribution of the later times, before the schedule moves them. (CT: every interval of the grid alike.)"""
    schedule: Schedule = Schedule.default("ict", s0=2, s1=150)
    """Which earlier time belongs to a time, and how the two close in. (CT: from 2 to 150 intervals.)"""
    start: Literal["auto", "teacher", "scratch"] = "scratch"
    """Whether training starts from fresh weights, or from the averaged ones of a diffusion model; auto takes the
    teacher's where it has any, which an exact one has not."""


class ICT(Comparison, name="ict"):
    """Train a consistency model on data alone, by the improved techniques: pseudo-Huber, lognormal, a finer grid."""

    formula = "1/(t_{n+1} - t_n) d(f(x_0 + t_{n+1} noise, t_{n+1}), sg f(x_0 + t_n noise, t_n)),  d pseudo-Huber"
    reference = "Song & Dhariwal 2023 (iCT), arXiv:2310.14189, Sec. 3"

    weighting: Weighting = Weighting.default("inverse-step")
    """Weight of each pair of times."""
    schedule: Schedule = Schedule.default("ict")
    """Which earlier time belongs to a time, and how the two close in."""
    distance: Distance = Distance.default("pseudo-huber")
    """How far apart two outputs are."""
    start: Literal["auto", "teacher", "scratch"] = "scratch"
    """Whether training starts from fresh weights, or from the averaged ones of a diffusion model; auto takes the
    teacher's where it has any, which an exact one has not."""


class ECT(Comparison, name="ect"):
    """Tune a diffusion model into a consistency model, on data alone: the step shrinks from all of the time to none.

    Both samples of a pair are made of the same data and noise, and both evaluations share one dropout mask. With an
    earlier time of 0 the loss is the one of diffusion.
    """

    formula = "w_bar(t, r) sg[1/(||Delta||² + c²)^p] ||Delta||²/D,  Delta = f(x_t, t) - sg f(x_r, r)"
    reference = "Geng et al. 2024 (ECT), arXiv:2406.14548, Algorithm 1, Eqs. 12 and 16 (schedule: Eqs. 15 and 18)"

    weighting: Weighting = Weighting.default("ect")
    """Weight of each pair of times."""
    proposal: Proposal = Proposal.default("lognormal", p_mean=-1.1, p_std=2.0)
    """Distribution of the later times. (CIFAR-10: -1.1 and 2.0; ImageNet: -0.8 and 1.6.)"""
    schedule: Schedule = Schedule.default("ect")
    """Which earlier time belongs to a time, and how the two close in."""


class CD(Comparison, name="cd"):
    """Distil a diffusion model into a consistency model, between neighbours of a grid: the first distillation.

    The earlier sample is where one step of the teacher leads to. (The paper compares by LPIPS, and averages the target
    network at a rate of 0.95.)
    """

    formula = "w(t) d(f(x_{t_{n+1}}, t_{n+1}), f⁻(x̂_{t_n}, t_n)),  x̂ by one step of the teacher's flow"
    reference = "Song et al. 2023 (consistency models), arXiv:2303.01469, Algorithm 2, Eqs. 6 and 7"

    proposal: Proposal = Proposal.default("karras")
    """Distribution of the later times, before the schedule moves them. (CD: every interval of the grid alike.)"""
    solver: Literal["heun", "euler"] = "heun"
    """The teacher's step in the noise level: of second order in two evaluations, or of first order in one, which is
    DDIM's."""

    @property
    def needs_teacher(self) -> bool:
        """Always: it is what is distilled."""
        return True

    def direction(
        self, teacher: Denoiser | None, x: Tensor, t: Tensor, x0: Tensor, noise: Tensor, cond: Conditions
    ) -> tuple[Tensor, Tensor]:
        """Return the data and noise that the teacher predicts at ``x``."""
        assert teacher is not None, "the composition was checked: cd has a teacher"
        with torch.no_grad():
            return teacher.predict(x, t, cond)

    def earlier(self, teacher: Denoiser | None, process: Process, pair: Pair, cond: Conditions) -> Tensor:
        """Return the samples that the teacher's step leads to."""
        euler = super().earlier(teacher, process, pair, cond)
        if self.solver == "euler":
            return euler
        assert teacher is not None, "the composition was checked: cd has a teacher"
        # As EDM's sampler, no second evaluation at the data. Nor has a step from infinite noise a second order.
        plain = (pair.r == 0) | torch.isinf(process.noise_level(pair.t))
        if known(plain.all()):
            return euler
        asked = torch.where(plain, pair.t, pair.r)
        with torch.no_grad():
            _, second = teacher.predict(euler, asked, cond)
        at = process.coefficients(pair.r)
        step = torch.where(plain, 0.0, at.sigma - at.alpha * process.noise_level(torch.where(plain, pair.r, pair.t)))
        return euler + expand(step / 2, euler) * (second - pair.noise)
