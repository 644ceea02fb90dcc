"""Samplers: solvers of the probability-flow ODE, and consistency sampling."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from scmreg.component import Component
from scmreg.coordinates import process_time
from scmreg.denoiser import Denoiser
from scmreg.errors import OptionError
from scmreg.hookspecs import hookimpl
from scmreg.sampler import Noise, OdeSampler, Sampler
from scmreg.types import Conditions, Count, Positive, expand

__all__ = ["DDIM", "Consistency", "Heun"]


FIRST, LAST = 1.4, 0.9
"""TrigFlow times between which several steps of consistency sampling put their noise."""


class DDIM(OdeSampler, name="ddim"):
    """Step to an earlier time with the data and noise predicted now: first order, one evaluation a step."""

    formula = "x_s = alpha_s D(x_t, t) + sigma_s eps(x_t, t)"
    reference = "Song et al. 2021 (DDIM), arXiv:2010.02502; Lu & Song 2024 (sCM), Eq. 26"
    order = 1

    @property
    def evaluations(self) -> int:
        """One a step."""
        return self.steps

    def step(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, cond: Conditions) -> Tensor:
        """Take one step."""
        return denoiser.consistency(x, t, s, cond)


class Heun(OdeSampler, name="heun"):
    """EDM's deterministic sampler: Heun's method in noise level, an Euler step to 0 at the end.

    It is DPM-Solver-2 in its single-step form with both ends as nodes; 18 steps are 35 evaluations.
    """

    formula = "x_s = x_s^DDIM + alpha_s (sigma_s/alpha_s - sigma_t/alpha_t)/2 · (eps(x_s^DDIM, s) - eps(x_t, t))"
    reference = "Karras et al. 2022 (EDM), arXiv:2206.00364, Algorithm 1; Lu & Song 2024 (sCM), Eq. 27"
    order = 2

    @property
    def evaluations(self) -> int:
        """Two a step, but one in the last."""
        return 2 * self.steps - 1

    def step(self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, cond: Conditions) -> Tensor:
        """Take one step; the last one, to clean data, is Euler's."""
        data, noise = denoiser.predictions(denoiser(x, t, cond), x, t)
        here, there = denoiser.process.coefficients(t), denoiser.process.coefficients(s)
        reached = expand(there.alpha, x) * data + expand(there.sigma, x) * noise
        if bool((s == 0).all()):
            return reached
        corrected = denoiser.noise(reached, s, cond)
        half = there.alpha * (there.sigma / there.alpha - here.sigma / here.alpha) / 2
        return reached + expand(half, x) * (corrected - noise)


class Consistency(Sampler, name="consistency"):
    """Jump from noise to data; every further step puts fresh noise on the result and jumps again.

    One step starts from pure noise. The times in between are TrigFlow times under every process.
    """

    formula = "x <- f(x, t_max);  then for each time t: x <- f(alpha_t x + sigma_t noise, t)"
    reference = "Song et al. 2023 (CM), arXiv:2303.01469, Algorithm 1; Lu & Song 2024 (sCM), App. G (t = 1.1)"

    steps: Count = 2
    """Number of steps, each one network evaluation."""
    times: tuple[Positive, ...] | None = None
    """TrigFlow times of the steps after the first, falling, each below pi/2; if not given, 1.1
    for two steps (as in sCM), and equally spaced from 1.4 down to 0.9 for more."""
    sigma_max: Positive = 80.0
    """Noise level sigma/alpha at which the first step starts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.times is None:
            return
        if len(self.times) != self.steps - 1:
            raise OptionError(
                [f"{self.steps} steps need {self.steps - 1} intermediate times, not {len(self.times)}"],
                "give sampler.steps and sampler.times together, or one of them",
            )
        ends = (math.pi / 2, *self.times)
        if any(later >= earlier for earlier, later in itertools.pairwise(ends)):
            raise OptionError([f"times must fall and stay below pi/2, not {list(self.times)}"])

    @property
    def evaluations(self) -> int:
        """One a step."""
        return self.steps

    def fits(self, recipe: Any) -> str | None:
        """Refuse to sample a model that is no consistency function."""
        if recipe.objective.few_step or recipe.sampler is not self:
            return None
        return f"sampler 'consistency' needs a consistency model, which '{recipe.objective.name}' does not train"

    def with_steps(self, steps: int) -> Self:
        """Return the sampler with another number of steps, which chooses its times if the number differs."""
        return self if steps == self.steps else replace(self, steps=steps, times=None)

    def intermediate(self) -> tuple[float, ...]:
        """Return the TrigFlow times of the steps after the first."""
        if self.times is not None:
            return self.times
        if self.steps <= 2:
            return (1.1,) * (self.steps - 1)
        return tuple(torch.linspace(FIRST, LAST, self.steps - 1, dtype=torch.float64).tolist())

    def sample(self, denoiser: Denoiser, noise: Noise, cond: Conditions) -> Tensor:
        """Sample in `steps` evaluations."""
        process = denoiser.process
        first = noise.draw()
        start = torch.full((len(first),), self.sigma_max, dtype=torch.float64)
        t = process.time_of(start).clamp(max=process.t_max).to(first.device, torch.float32)
        x = denoiser.consistency(process.prior(first, t), t, cond=cond)
        for draw, angle in enumerate(self.intermediate(), start=1):
            t_hat = torch.full((len(first),), angle, dtype=torch.float64)
            t = process_time(process, t_hat).clamp(max=process.t_max).to(first.device, torch.float32)
            x = denoiser.consistency(process.perturb(x, noise.draw(draw), t), t, cond=cond)
        return x


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [DDIM, Heun, Consistency]
