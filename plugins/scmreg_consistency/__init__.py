"""Continuous-time consistency models (sCM): training (sCT) and distillation (sCD)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from scmreg.component import Component
from scmreg.denoiser import Denoiser
from scmreg.hookspecs import hookimpl
from scmreg.objective import Loss, Nets, Objective, ObjectiveModule, Phase, Setup
from scmreg.proposal import Proposal
from scmreg.tangent import Normalization, consistency_tangent, evaluate_with_jvp, motion, normalize
from scmreg.types import Batch, Conditions, NonNegative, NonNegativeInt
from scmreg.weighting import Weighting

__all__ = ["SCD", "SCT"]


class ContinuousModule(ObjectiveModule):
    """The loss of sCT and sCD (sCM, Algorithm 1), on any process."""

    phases = (Phase("main", own=("weighting",)),)

    def __init__(self, objective: ContinuousConsistency, setup: Setup) -> None:
        super().__init__(setup)
        self.objective = objective
        self.weighting = objective.weighting.build_in(setup.denoiser.process, objective.space)

    def loss(self, phase: str, nets: Nets, batch: Batch, step: int, rng: torch.Generator) -> Loss:
        """Return the consistency loss of one batch (Eq. 8)."""
        objective, setup, denoiser = self.objective, self.setup, self.setup.denoiser
        process, x0 = denoiser.process, batch.x0
        t = objective.proposal.sample(process, len(x0), rng, x0.dtype).to(x0.device)
        noise = torch.randn(x0.shape, generator=rng, device=rng.device).to(x0)
        x = process.perturb(x0, noise, t)

        at = motion(denoiser, x, t, *objective.direction(setup.teacher, x, t, x0, noise, batch.cond))
        value, jvp_hat = evaluate_with_jvp(
            nets["model"], denoiser, at, batch.cond, setup.tangent_pass, compiled=setup.compiled
        )
        warmup = min(1.0, step / objective.warmup) if objective.warmup else 1.0
        raw = consistency_tangent(value.detach(), jvp_hat, at, process.sigma_data, warmup)
        g = normalize(raw, objective.normalization, objective.c)

        # F - sg(F) is zero in value and carries the gradient.
        per_sample = (value - value.detach() - g).square().flatten(1).mean(1)
        total = self.weighting(per_sample, t).mean()
        tangent_norm = torch.linalg.vector_norm(raw.flatten(1), dim=1)
        return Loss(total, per_sample.detach(), at.t_hat, {"tangent_norm": tangent_norm})


class ContinuousConsistency(Objective):
    """What sCT and sCD share: everything but where ``dx/dt`` comes from."""

    space = "unit"
    needs_boundary = True
    few_step = True
    sampler = "consistency"
    trainer = {
        "optimizer": "Adam",
        "optimizer_options": {"betas": [0.9, 0.99], "fused": True},
        "learning_rate": 2e-3,
        "steps": 4500,
        "batch_size": 128,
    }

    weighting: Weighting = Weighting.default("uniform")
    """Weight of each time; the prior weight 1/(sigma_data tan t) is already part of the loss. (sCM: adaptive.)"""
    proposal: Proposal = Proposal.default("lognormal", p_mean=-1.3, p_std=1.8)
    """Distribution of training times. (sCM: lognormal with p_mean -1, p_std 1.4.)"""
    normalization: Normalization = "rms"
    """Treatment of the tangent: its norm over all dimensions (``l2``), over their root mean square (``rms``), element
    by element (``clip``), or none. Learning rates do not transfer between them. (sCM: the norm.)"""
    c: NonNegative = 0.1
    """Added to the norm of the tangent, so that small tangents stay small."""
    warmup: NonNegativeInt = 600
    """Steps over which the unstable part of the tangent grows to its full size. (sCM: 10000.)"""
    start: Literal["auto", "teacher", "scratch"] = "auto"
    """Whether training starts from the averaged weights of a diffusion model (App. G) or from fresh ones; auto takes
    the teacher's where it has any, which an exact one has not."""

    @property
    def starts_from_teacher(self) -> bool:
        """Whether training starts from the teacher's weights, if it has any."""
        return self.start != "scratch"

    def fits(self, recipe: Any) -> str | None:
        """Refuse to start from the weights of a teacher that has none."""
        if self.start == "teacher" and recipe.teacher.source == "exact":
            return "objective.start is 'teacher', but an exact teacher has no weights: set it to scratch, or auto"
        return None

    @abstractmethod
    def direction(
        self, teacher: Denoiser | None, x: Tensor, t: Tensor, x0: Tensor, noise: Tensor, cond: Conditions
    ) -> tuple[Tensor, Tensor]:
        """Return the pair of data and noise along whose path the sample moves."""

    def build(self, setup: Setup) -> ObjectiveModule:
        """Return the module that computes the loss."""
        return ContinuousModule(self, setup)


class SCT(ContinuousConsistency, name="sct"):
    """Train a consistency model on data alone: the tangent follows the path of each data-noise pair."""

    formula = (
        "e^{w(t)}/D ||F - sg(F) - g||² - w(t),  g = normalized cos(t̂) df/dt̂ along dx/dt = alpha' x_0 + sigma' noise"
    )
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, Algorithm 1 and Eq. 8 (consistency training)"

    @property
    def needs_teacher(self) -> bool:
        """Whether training starts from one."""
        return self.start != "scratch"

    def direction(
        self, teacher: Denoiser | None, x: Tensor, t: Tensor, x0: Tensor, noise: Tensor, cond: Conditions
    ) -> tuple[Tensor, Tensor]:
        """Return the data and noise that ``x`` was made of."""
        return x0, noise


class SCD(ContinuousConsistency, name="scd"):
    """Distil a diffusion model into a consistency model: the tangent follows the teacher's probability flow."""

    formula = "e^{w(t)}/D ||F - sg(F) - g||² - w(t),  g = normalized cos(t̂) df/dt̂ along the teacher's dx/dt"
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, Algorithm 1 and Eq. 8 (consistency distillation)"

    @property
    def needs_teacher(self) -> bool:
        """Always: it is what is distilled."""
        return True

    def direction(
        self, teacher: Denoiser | None, x: Tensor, t: Tensor, x0: Tensor, noise: Tensor, cond: Conditions
    ) -> tuple[Tensor, Tensor]:
        """Return the data and noise that the teacher predicts at ``x``."""
        assert teacher is not None, "the composition was checked: scd has a teacher"
        with torch.no_grad():
            return teacher.predict(x, t, cond)


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [SCT, SCD]
