"""Continuous-time consistency models (sCM): training (sCT) and distillation (sCD)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor

from scmreg.component import Component
from scmreg.coordinates import process_time
from scmreg.data import DataSpec
from scmreg.denoiser import Denoiser
from scmreg.errors import OptionError
from scmreg.guidance import guided
from scmreg.hookspecs import hookimpl
from scmreg.objective import Loss, Nets, Objective, ObjectiveModule, Phase, Setup, Student
from scmreg.process import Process
from scmreg.proposal import Proposal
from scmreg.registry import registry
from scmreg.sampler import OdeSampler, Sampler
from scmreg.tangent import (
    Motion,
    Normalization,
    consistency_tangent,
    evaluate_with_difference,
    evaluate_with_jvp,
    motion,
    normalize,
    segment_ends,
    tangent_parts,
)
from scmreg.types import Batch, Conditions, NonNegative, NonNegativeInt, norms
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
        at, cond = self._motion(batch, t, rng)
        net, part = nets["model"], objective.finite_difference
        if part is None:
            value, jvp_hat = evaluate_with_jvp(net, denoiser, at, cond, setup.tangent_pass, compiled=setup.compiled)
        else:
            value, jvp_hat = evaluate_with_difference(net, denoiser, at, cond, part)
        warmup = min(1.0, step / objective.warmup) if objective.warmup else 1.0
        raw = consistency_tangent(value.detach(), jvp_hat, at, process.sigma_data, warmup)
        g = normalize(raw, objective.normalization, objective.c)

        # F - sg(F) is zero in value and carries the gradient.
        per_sample = (value - value.detach() - g).square().flatten(1).mean(1)
        weighted, weight = self.weighting.weigh(per_sample, t)
        logs = {"weight": weight, "tangent_norm": norms(raw), "target_norm": norms(value.detach() + g)}
        return Loss(weighted.mean(), per_sample.detach(), at.t_hat, logs)

    def diagnose(
        self, phase: str, nets: Nets, batch: Batch, t_hat: Tensor, step: int, rng: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Return the norms of both parts of the tangent, before warm-up and normalization (Fig. 4); nothing of a
        network that is trained by finite differences, as it may have no derivative.
        """
        if self.objective.finite_difference is not None:
            return {}
        process = self.setup.denoiser.process
        at, cond = self._motion(batch, process_time(process, t_hat).clamp(max=process.t_max), rng)
        in_space, in_time = tangent_parts(nets["model"], self.setup.denoiser, at, cond)
        return {"tangent_space_norm": norms(in_space), "tangent_time_norm": norms(in_time)}

    def _motion(self, batch: Batch, t: Tensor, rng: torch.Generator) -> tuple[Motion, Conditions]:
        """Perturb a batch, say where its samples go, and what the network is told."""
        denoiser, objective, x0 = self.setup.denoiser, self.objective, batch.x0
        noise = torch.randn(x0.shape, generator=rng, device=rng.device).to(x0)
        x = denoiser.process.perturb(x0, noise, t)
        cond = objective.told(batch.cond, rng, len(x0))
        pair = objective.direction(self.setup.teacher, x, t, x0, noise, cond)
        return motion(denoiser, x, t, *pair, objective.segments), cond


class ContinuousConsistency(Student):
    """What sCT and sCD share: everything but where ``dx/dt`` comes from."""

    space = "unit"

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
    finite_difference: Annotated[float, Interval(ge=1e-4, lt=1)] | None = None
    """Takes the tangent from two more evaluations, this share of the time before and after (0.01, say), in place of the
    exact derivative; for networks without one. Not in half precision."""
    segments: Annotated[int, Interval(ge=1, le=100)] = 1
    """Number of segments of time, each with a consistency function of its own that jumps to its beginning: a model of
    several is sampled in as many steps, without new noise."""
    guidance: tuple[NonNegative, NonNegative] | None = None
    """Range of scales of classifier-free guidance to distil, such as [1, 2]: every sample of a batch is given one, the
    teacher is guided by it and the network is told it. Of distillation alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance is not None and self.guidance[0] > self.guidance[1]:
            low, high = self.guidance
            raise OptionError([f"objective.guidance [{low:g}, {high:g}] is empty: write the smaller scale first"])

    @property
    def gives(self) -> frozenset[str]:
        """The scale of guidance, if there is any."""
        return frozenset() if self.guidance is None else frozenset({"guidance"})

    def told(self, cond: Conditions, rng: torch.Generator, count: int) -> Conditions:
        """Return the conditions of a batch with a scale of guidance for each sample, if there is any."""
        if self.guidance is None:
            return cond
        low, high = self.guidance
        scale = low + (high - low) * torch.rand(count, generator=rng, device=rng.device)
        return replace(cond, guidance=scale if cond.label is None else scale.to(cond.label.device))

    def accepts(self, spec: DataSpec) -> str | None:
        """Refuse guidance where there are no classes."""
        if self.guidance is None or spec.classes:
            return None
        return f"objective.guidance guides to a class, but data '{spec.name}' have none: leave it out"

    def taught_by(self, objective: Objective) -> str | None:
        """Refuse guidance by a teacher that never learned without labels."""
        if self.guidance is None or getattr(objective, "label_dropout", 0.0) > 0:
            return None
        return (
            f"objective.guidance needs a teacher that also learned without labels, which '{objective.name}' here does"
            " not: set teacher.objective.label_dropout=0.1"
        )

    def suited_sampler(self, process: Process) -> Sampler:
        """Return consistency sampling, or DDIM from the end of each segment to its beginning."""
        if self.guidance is not None:
            # 1 is the teacher itself, with which the student is compared.
            scale = min(max(1.0, self.guidance[0]), self.guidance[1])
            told: Sampler = registry("sampler").create("consistency", guidance=scale)
            return told
        if self.segments == 1:
            return super().suited_sampler(process)
        ends = segment_ends(process.sigma_data, self.segments)
        made: Sampler = registry("sampler").create("ddim", steps=self.segments, times=ends)
        return made

    def drawn_by(self, sampler: Sampler, process: Process) -> str | None:
        """Refuse anything but jumps from the ends of the segments, where there are several."""
        scale: float | None = getattr(sampler, "guidance", None) if sampler.name == "consistency" else None
        if self.guidance is None and scale is not None:
            return "sampler.guidance is a scale that the model was never told: leave it out, or distil with guidance"
        if self.guidance is not None and not (scale is not None and self.guidance[0] <= scale <= self.guidance[1]):
            low, high = self.guidance
            said = "and none is given" if scale is None else f"not {scale:g}"
            return f"the model is told a scale of guidance in [{low:g}, {high:g}], {said}: set sampler.guidance"
        ends = segment_ends(process.sigma_data, self.segments)
        if self.segments == 1 or (sampler.name == "ddim" and isinstance(sampler, OdeSampler) and sampler.times == ends):
            return None
        return (
            f"a model of {self.segments} segments jumps from the end of each to its beginning, which sampler"
            f" '{sampler.name}' with these options does not: leave the sampler and its steps as they are"
        )

    def judged_steps(self, asked: tuple[int, ...]) -> tuple[int, ...]:
        """Return the number of segments, where there are several."""
        return asked if self.segments == 1 else (self.segments,)

    def fits(self, recipe: Any) -> str | None:
        """Refuse weights of a teacher that has none, guidance of several segments, a difference in half precision."""
        if self.finite_difference is not None and recipe.trainer.precision != "float32":
            return (
                f"a finite difference is rounded away in {recipe.trainer.precision}: set trainer.precision=float32, or"
                " leave out objective.finite_difference"
            )
        if self.guidance is not None and self.segments > 1:
            return "guidance is distilled into models of one segment only: leave out objective.guidance, or segments"
        return super().fits(recipe)

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

    def direction(
        self, teacher: Denoiser | None, x: Tensor, t: Tensor, x0: Tensor, noise: Tensor, cond: Conditions
    ) -> tuple[Tensor, Tensor]:
        """Return the data and noise that ``x`` was made of."""
        return x0, noise

    @property
    def gives(self) -> frozenset[str]:
        """Nothing: it takes no guidance."""
        return frozenset()

    def taught_by(self, objective: Objective) -> str | None:
        """Take any teacher."""
        return None

    def fits(self, recipe: Any) -> str | None:
        """Refuse guidance."""
        if self.guidance is not None:
            return (
                "consistency training cannot be guided: it follows the path of each sample, where no prediction without"
                " class is there to move away from; distil a guided teacher, --objective scd"
            )
        return super().fits(recipe)


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
        if cond.guidance is not None:
            teacher, cond = guided(teacher, cond.guidance), replace(cond, guidance=None)
        with torch.no_grad():
            return teacher.predict(x, t, cond)


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [SCT, SCD]
