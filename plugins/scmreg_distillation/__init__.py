"""Distribution matching: distil a diffusion model into a generator by comparing scores (sCM, App. C)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from scmreg.component import Component
from scmreg.coordinates import trig_time
from scmreg.denoiser import Denoiser
from scmreg.errors import CompositionError
from scmreg.hookspecs import hookimpl
from scmreg.objective import Loss, Nets, Objective, ObjectiveModule, Phase, Setup, Student
from scmreg.process import Process
from scmreg.proposal import Proposal
from scmreg.registry import registry
from scmreg.sampler import Sampler
from scmreg.types import Batch, Count, Positive, norms
from scmreg.weighting import Weighting

__all__ = ["VSD"]


class VSDModule(ObjectiveModule):
    """The two losses of `VSD`: of the generator in the phase ``main``, of the fake score in the phase ``fake``."""

    def __init__(self, objective: VSD, setup: Setup, teacher: Denoiser) -> None:
        super().__init__(setup)
        self.objective = objective
        process = setup.denoiser.process
        level = torch.tensor([min(objective.sigma_max, setup.denoiser.highest_level)], dtype=torch.float64)
        self.start = float(process.time_of(level).clamp(max=process.t_max))
        self.weighting = objective.weighting.build_in(process, objective.space)
        self.fake_score = copy.deepcopy(objective.origin(setup.denoiser, teacher)).train().requires_grad_(True)
        # The fake score is a diffusion model of what the generator makes.
        diffusion: Objective = registry("objective").create(
            "diffusion", proposal=objective.fake_proposal, weighting=objective.fake_weighting
        )
        self.fake_objective = diffusion.build(replace(setup, denoiser=self.fake_score, teacher=None))
        self.phases = (
            Phase("main", own=("weighting",), every=objective.generator_every),
            Phase("fake", nets=("fake_score",), own=("fake_objective",), rate=objective.fake_rate),
        )

    def loss(self, phase: str, nets: Nets, batch: Batch, step: int, rng: torch.Generator) -> Loss:
        """Return the loss of the generator, or that of the fake score on its samples."""
        if phase == "main":
            return self._generator_loss(nets, batch, rng)
        with torch.no_grad():
            made = self.generate(nets, batch, rng)
        return self.fake_objective.loss("main", {"model": nets["fake_score"]}, replace(batch, x0=made), step, rng)

    def generate(self, nets: Nets, batch: Batch, rng: torch.Generator) -> Tensor:
        """Return samples of the generator, ``g = f(z, t_max)``, as many as there are data in the batch and of their
        classes, with gradient.
        """
        denoiser, x0 = self.setup.denoiser, batch.x0
        noise = torch.randn(x0.shape, generator=rng, device=rng.device).to(x0)
        t = torch.full((len(x0),), self.start, dtype=torch.promote_types(x0.dtype, torch.float32), device=x0.device)
        x = denoiser.process.prior(noise, t)
        return denoiser.jump(nets["model"](x, t, batch.cond), x, t)

    def _generator_loss(self, nets: Nets, batch: Batch, rng: torch.Generator) -> Loss:
        process, teacher = self.setup.denoiser.process, self.setup.teacher
        assert teacher is not None, "build has looked"
        made = self.generate(nets, batch, rng)
        fixed = made.detach()
        t = self.objective.proposal.sample(process, len(fixed), rng, fixed.dtype).to(fixed.device)
        noise = torch.randn(fixed.shape, generator=rng, device=rng.device).to(fixed)
        x = process.perturb(fixed, noise, t)
        with torch.no_grad(), evaluating(self.fake_score):
            real = teacher.unit_velocity(teacher(x, t, batch.cond), x, t)
            fake = self.fake_score.unit_velocity(nets["fake_score"](x, t, batch.cond), x, t)
        difference = real - fake
        # g - sg(g) is zero in value and carries the gradient.
        per_sample = (made - fixed + difference).square().flatten(1).mean(1)
        weighted, weight = self.weighting.weigh(per_sample, t)
        logs = {"weight": weight, "score_difference": norms(difference)}
        return Loss(weighted.mean(), per_sample.detach(), trig_time(process, t), logs)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch off dropout, which would be noise in a difference of two networks."""
    module.eval()
    try:
        yield
    finally:
        module.train()


class VSD(Student, name="vsd"):
    """Distil a diffusion model into a one-step generator by variational score distillation.

    The generator is the student's one-step sample ``g = f(z, t_max)``. A second network, the fake score, is trained by
    the diffusion objective on the generator's samples, in turns with the generator; the teacher knows the score of the
    data. Where the scores differ, the generator is moved: by the gradient of the Kullback-Leibler divergence between
    the noisy laws of samples and data, up to a weight of the time. The networks are compared by their unit velocities
    ``F̂``, whose difference is ``sigma_data tan(t̂)`` times that of the scores in TrigFlow coordinates.

    The fake score starts as a copy of the teacher's network. An exact teacher has no weights to copy: then the student
    is trained from scratch, and the fake score starts as a copy of that. It has its own optimizer and no average. Only
    the one-step sample is trained: with more steps, sample what `scd+vsd` trains.
    """

    space = "unit"
    trainer = {**Student.trainer, "learning_rate": 3e-4}
    formula = (
        "e^{w(t)}/D ||g - sg(g) + F̂_teacher(x_t, t) - F̂_fake(x_t, t)||² - w(t),  x_t = alpha sg(g) + sigma noise;  "
        "fake score: E[w(t) ||F̂_fake(x_t, t) - v̂_t/sigma_data||²/D],  v̂ = cos(t̂) sigma_data noise - sin(t̂) g"
    )
    reference = (
        "Lu & Song 2024 (sCM), arXiv:2410.11081, App. C.2 (adaptive VSD), App. D and Table 4;"
        " Wang et al. 2023 (ProlificDreamer), arXiv:2305.16213; Yin et al. 2024 (DMD), arXiv:2311.18828"
    )

    weighting: Weighting = Weighting.default("uniform")
    """Weight of each time in the generator's loss; the prior weight is 1. (sCM: adaptive.)"""
    proposal: Proposal = Proposal.default("lognormal", p_mean=0.4, p_std=2.0)
    """Distribution of the times at which the scores are compared."""
    fake_weighting: Weighting = Weighting.default("uniform")
    """Weight of each time in the loss of the fake score."""
    fake_proposal: Proposal = Proposal.default("lognormal", p_mean=-0.8, p_std=1.6)
    """Distribution of training times of the fake score."""
    fake_rate: Positive = 10.0
    """Learning rate of the fake score, as a multiple of the generator's. A fake score that does not keep up with the
    generator lets it collapse onto a few samples. (sCM: 1.)"""
    generator_every: Count = 1
    """Steps of the fake score for one of the generator. (sCM: 1.)"""
    sigma_max: Positive = 80.0
    """Noise level sigma/alpha at which the generator starts, as its sampler does; the end of the process if that is
    lower."""

    @property
    def needs_teacher(self) -> bool:
        """Always: it is the score of the data."""
        return True

    def fits(self, recipe: Any) -> str | None:
        """Refuse to start from weights that there are not, and to sample from where the generator was not trained."""
        if reason := super().fits(recipe):
            return reason
        end = recipe.process.highest_level
        own, other = (min(end, at) for at in (self.sigma_max, getattr(recipe.sampler, "sigma_max", self.sigma_max)))
        if recipe.objective is self and own != other:
            return (
                f"objective 'vsd' trains samples that start at noise level {own:g}, but the sampler starts at"
                f" {other:g}: set objective.sigma_max and sampler.sigma_max to the same"
            )
        return None

    def judged_steps(self, asked: tuple[int, ...]) -> tuple[int, ...]:
        """Return one: only the one-step sample is trained."""
        return (1,)

    def suited_sampler(self, process: Process) -> Sampler:
        """Return consistency sampling in one step, from where the generator starts."""
        made: Sampler = registry("sampler").create("consistency", steps=1, sigma_max=self.sigma_max)
        return made

    def origin(self, model: Denoiser, teacher: Denoiser) -> Denoiser:
        """Return what the fake score starts as a copy of: the teacher, or the model where the teacher's weights are not
        wanted, or there are none.
        """
        has_weights = any(True for _ in teacher.parameters())
        return teacher if self.starts_from_teacher and has_weights else model

    def build(self, setup: Setup) -> ObjectiveModule:
        """Return the module that computes both losses.

        Raises:
            CompositionError: if there is no teacher.
        """
        if setup.teacher is None:
            raise CompositionError("objective 'vsd' needs a teacher: the score of the data", "give Setup a teacher")
        return VSDModule(self, setup, setup.teacher)


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [VSD]
