"""Continuous-time consistency models (sCM): training (sCT) and distillation (sCD)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from scmreg.component import Component
from scmreg.coordinates import process_time
from scmreg.denoiser import Denoiser
from scmreg.hookspecs import hookimpl
from scmreg.objective import Loss, Nets, Objective, ObjectiveModule, Phase, Setup
from scmreg.proposal import Proposal
from scmreg.tangent import (
    Motion,
    Normalization,
    consistency_tangent,
    evaluate_with_jvp,
    motion,
    normalize,
    tangent_parts,
)
from scmreg.types import Batch, Conditions, NonNegative, NonNegativeInt
from scmreg.weighting import Weighting

__all__ = ["SCD", "SCT"]


class ContinuousModule(ObjectiveModule):
    """The loss of sCT and sCD (sCM, Algorithm 1), on any process."""

    phases = (Phase("main", own=("weighting",)),)

    def __init__(self, objective: ContinuousConsistency, setup: Setup) -> None:
        super().__init__(setup)
        self.objective = objective
        self.weighting = objective.weighting.build(setup.denoiser.process)

    def loss(self, phase: str, nets: Nets, batch: Batch, step: int, rng: torch.Generator) -> Loss:
        """Return the consistency loss of one batch (Eq. 8)."""
        objective, setup, denoiser = self.objective, self.setup, self.setup.denoiser
        process, x0 = denoiser.process, batch.x0
        t = objective.proposal.sample(process, len(x0), rng, x0.dtype).to(x0.device)
        at = self._motion(batch, t, rng)
        value, jvp_hat = evaluate_with_jvp(
            nets["model"], denoiser, at, batch.cond, setup.tangent_pass, compiled=setup.compiled
        )
        warmup = min(1.0, step / objective.warmup) if objective.warmup else 1.0
        raw = consistency_tangent(value.detach(), jvp_hat, at, process.sigma_data, warmup)
        g = normalize(raw, objective.normalization, objective.c)

        # F - sg(F) is zero in value and carries the gradient.
        per_sample = (value - value.detach() - g).square().flatten(1).mean(1)
        weighted, weight = self.weighting.weigh(per_sample, t)
        logs = {"weight": weight, "tangent_norm": norm(raw), "target_norm": norm(value.detach() + g)}
        return Loss(weighted.mean(), per_sample.detach(), at.t_hat, logs)

    def diagnose(
        self, phase: str, nets: Nets, batch: Batch, t_hat: Tensor, step: int, rng: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Return the norms of both parts of the tangent, before warm-up and normalization (Fig. 4)."""
        process = self.setup.denoiser.process
        at = self._motion(batch, process_time(process, t_hat).clamp(max=process.t_max), rng)
        in_space, in_time = tangent_parts(nets["model"], self.setup.denoiser, at, batch.cond)
        return {"tangent_space_norm": norm(in_space), "tangent_time_norm": norm(in_time)}

    def _motion(self, batch: Batch, t: Tensor, rng: torch.Generator) -> Motion:
        """Perturb a batch and say where its samples go."""
        denoiser, x0 = self.setup.denoiser, batch.x0
        noise = torch.randn(x0.shape, generator=rng, device=rng.device).to(x0)
        x = denoiser.process.perturb(x0, noise, t)
        return motion(denoiser, x, t, *self.objective.direction(self.setup.teacher, x, t, x0, noise, batch.cond))


def norm(x: Tensor) -> Tensor:
    """Return the norm of every sample, shape ``(B,)``."""
    out: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return out


class ContinuousConsistency(Objective):
    """What sCT and sCD share: everything but where ``dx/dt`` comes from."""

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
