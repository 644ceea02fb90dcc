"""Samplers: solvers of the probability-flow ODE, and consistency sampling."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Self

import torch
from annotated_types import Interval
from torch import Tensor

from scmreg.component import Component
from scmreg.denoiser import Denoiser
from scmreg.errors import OptionError
from scmreg.hookspecs import hookimpl
from scmreg.process import Process
from scmreg.sampler import Ask, Level, Noise, OdeSampler, Point, Sampler, check_falling, levels_of, past_the_end, vector
from scmreg.types import Conditions, Count, NonNegative, Positive

__all__ = [
    "DDIM",
    "Consistency",
    "DPMSolver2",
    "DPMSolver2M",
    "DPMSolverPP2",
    "DPMSolverPP2M",
    "Euler",
    "Heun",
]


FIRST, LAST = 1.4, 0.9
"""TrigFlow times between which several steps of consistency sampling put their noise."""


class Euler(OdeSampler, name="euler"):
    """Step along the velocity in the time of the process: first order, and another method in each process."""

    formula = "x_s = x_t + (s - t) (alpha_t' D(x_t, t) + sigma_t' eps(x_t, t))"
    reference = "Lipman et al. 2023 (flow matching), arXiv:2210.02747; Lu & Song 2024 (sCM), Eqs. 3 and 24"
    order = 1

    def step(self, here: Point, to: Level, ask: Ask, before: Point | None, process: Process) -> Tensor:
        """Take one step."""
        at = here.at
        return here.x + (to.t - at.t) * (at.alpha_prime * here.data + at.sigma_prime * here.noise)


class DDIM(OdeSampler, name="ddim"):
    """Step to an earlier time with the data and noise predicted now: first order, the same method in every process."""

    formula = "x_s = alpha_s D(x_t, t) + sigma_s eps(x_t, t)"
    reference = "Song et al. 2021 (DDIM), arXiv:2010.02502; Lu & Song 2024 (sCM), Eq. 26"
    order = 1

    def step(self, here: Point, to: Level, ask: Ask, before: Point | None, process: Process) -> Tensor:
        """Take one step."""
        return here.ddim(to)


class SecondOrder(OdeSampler):
    """A DDIM step, corrected by how a prediction changes between the present and a second time.

    The second time divides the step in half the logarithm of the signal-to-noise ratio as ``r`` to 1. A step to clean
    data, where that logarithm is infinite, stays DDIM's.
    """

    order = 2

    @abstractmethod
    def second(self, here: Point, to: Level, ask: Ask, before: Point | None, process: Process) -> Point | None:
        """Return the second point; ``None`` where there is none, in the first step of a multistep method."""

    def step(self, here: Point, to: Level, ask: Ask, before: Point | None, process: Process) -> Tensor:
        """Take one step."""
        reached = here.ddim(to)
        if to.sigma == 0:
            return reached
        second = self.second(here, to, ask, before, process)
        if second is None:
            return reached
        r = (second.at.log_snr - here.at.log_snr) / (to.log_snr - here.at.log_snr)
        return reached + self.correction(here, second, to) / (2 * r)

    def correction(self, here: Point, second: Point, to: Level) -> Tensor:
        """Return the correction of a step whose second point is its end, shape ``(B, ...)``: by the change of the noise
        prediction (sCM, Eq. 27), unless the method says otherwise.
        """
        return to.alpha * (to.ratio - here.at.ratio) * (second.noise - here.noise)


def _data_change(here: Point, second: Point, to: Level) -> Tensor:
    """Correct by the change of the data prediction (sCM, Eq. 28)."""
    return to.alpha * (1 - to.ratio / here.at.ratio) * (second.data - here.data)


class Heun(SecondOrder, name="heun"):
    """EDM's deterministic sampler: Heun's method in noise level, an Euler step to 0 at the end.

    It is `dpm-solver-2` with r = 1, the second time at the end of the step; 18 steps are 35 evaluations.
    """

    formula = "x_s = x_s^DDIM + alpha_s (sigma_s/alpha_s - sigma_t/alpha_t)/2 · (eps(x_s^DDIM, s) - eps(x_t, t))"
    reference = "Karras et al. 2022 (EDM), arXiv:2206.00364, Algorithm 1; Lu & Song 2024 (sCM), Eq. 27"
    calls = 2

    def second(self, here: Point, to: Level, ask: Ask, before: Point | None, process: Process) -> Point:
        """Return the end of the step."""
        return ask(here.ddim(to), to)


class SingleStep(SecondOrder):
    """A second time within the step, reached by DDIM: two evaluations a step."""

    calls = 2

    r: Annotated[float, Interval(ge=0.01, le=1)] = 0.5
    """Where the second time divides the step, in half log-SNR: 0.5 is its middle, 1 its end."""

    def second(self, here: Point, to: Level, ask: Ask, before: Point | None, process: Process) -> Point:
        """Return the point within the step."""
        if self.r == 1:
            return ask(here.ddim(to), to)
        ratio = math.exp(-(here.at.log_snr + self.r * (to.log_snr - here.at.log_snr)))
        (between,) = levels_of(process, process.time_of(torch.tensor([ratio], dtype=torch.float64)))
        return ask(here.ddim(between), between)


class DPMSolver2(SingleStep, name="dpm-solver-2"):
    """Second order by a further noise prediction within the step: DPM-Solver-2 in its single-step form."""

    formula = "x_s = x_s^DDIM + alpha_s (rho_s - rho_t)/(2 r) · (eps(x_s', s') - eps(x_t, t)),  rho = sigma/alpha"
    reference = "Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, Algorithm 1; Lu & Song 2024 (sCM), Eq. 27"


class DPMSolverPP2(SingleStep, name="dpm-solver++-2"):
    """Second order by a further data prediction within the step: DPM-Solver++(2S)."""

    formula = "x_s = x_s^DDIM + alpha_s (1 - rho_s/rho_t)/(2 r) · (D(x_s', s') - D(x_t, t)),  rho = sigma/alpha"
    reference = "Lu et al. 2022 (DPM-Solver++), arXiv:2211.01095, Algorithm 1; Lu & Song 2024 (sCM), Eq. 28"

    def correction(self, here: Point, second: Point, to: Level) -> Tensor:
        """Correct by the change of the data prediction."""
        return _data_change(here, second, to)


class MultiStep(SecondOrder):
    """The second time is that of the step before (r < 0), so a step takes one evaluation; the first is DDIM's."""

    def second(self, here: Point, to: Level, ask: Ask, before: Point | None, process: Process) -> Point | None:
        """Return the point before."""
        return before


class DPMSolver2M(MultiStep, name="dpm-solver-2m"):
    """Second order by the noise predicted in the step before: DPM-Solver-2 in its multistep form."""

    formula = "x_s = x_s^DDIM + alpha_s (rho_s - rho_t)/(2 r) · (eps(x_s', s') - eps(x_t, t)),  s' > t the time before"
    reference = "Lu et al. 2022 (DPM-Solver), arXiv:2206.00927; Lu & Song 2024 (sCM), Eq. 27 with s' > s"


class DPMSolverPP2M(MultiStep, name="dpm-solver++-2m"):
    """Second order by the data predicted in the step before: DPM-Solver++(2M)."""

    formula = "x_s = x_s^DDIM + alpha_s (1 - rho_s/rho_t)/(2 r) · (D(x_s', s') - D(x_t, t)),  s' > t the time before"
    reference = "Lu et al. 2022 (DPM-Solver++), arXiv:2211.01095, Algorithm 2; Lu & Song 2024 (sCM), Eq. 28 with s' > s"

    def correction(self, here: Point, second: Point, to: Level) -> Tensor:
        """Correct by the change of the data prediction."""
        return _data_change(here, second, to)


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
    guidance: NonNegative | None = None
    """Scale of guidance to tell a model that was distilled with guidance; it is asked once a step all the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.times is None:
            return
        check_falling(self.times, self.name)
        if len(self.times) != self.steps - 1:
            raise OptionError(
                [f"{self.steps} steps need {self.steps - 1} intermediate times, not {len(self.times)}"],
                "give sampler.steps and sampler.times together, or one of them",
            )

    @property
    def evaluations(self) -> int:
        """One a step."""
        return self.steps

    def fits(self, recipe: Any) -> str | None:
        """Refuse times past the end of the process, and to sample a model that is no consistency function."""
        if reason := past_the_end(self.intermediate(), recipe.process):
            return reason
        if recipe.objective.few_step or recipe.sampler is not self:
            return None
        return f"sampler 'consistency' needs a consistency model, which '{recipe.objective.title}' does not train"

    def with_steps(self, steps: int) -> Self:
        """Return the sampler with another number of steps, which chooses its times if the number differs."""
        return self if steps == self.steps else replace(self, steps=steps, times=None)

    def with_times(self, times: Sequence[float]) -> Self:
        """Return the sampler with the given times of the steps after the first."""
        return replace(self, steps=len(times) + 1, times=tuple(times))

    def truth(self, exact: Denoiser, noise: Noise, cond: Conditions) -> Tensor | None:
        """Return the samples of the exact consistency function; under guidance it is not known."""
        return self.sample(exact, noise, cond) if self.guidance is None else None

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
        if reason := past_the_end(self.intermediate(), process, denoiser.highest_level):
            raise OptionError([reason])
        first = noise.draw()
        if self.guidance is not None:
            cond = replace(cond, guidance=torch.full((len(first),), self.guidance, device=first.device))
        levels = [process.sigma_data * math.tan(angle) for angle in self.intermediate()]
        levels.insert(0, min(self.sigma_max, denoiser.highest_level))
        times = process.time_of(torch.tensor(levels, dtype=torch.float64)).clamp(max=process.t_max).tolist()
        t = vector(times[0], first)
        x = denoiser.consistency(process.prior(first, t), t, cond=cond)
        for draw, time in enumerate(times[1:], start=1):
            t = vector(time, first)
            x = denoiser.consistency(process.perturb(x, noise.draw(draw), t), t, cond=cond)
        return x


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [Euler, DDIM, Heun, DPMSolver2, DPMSolver2M, DPMSolverPP2, DPMSolverPP2M, Consistency]
