"""Samplers: from noise to data."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from annotated_types import Ge
from torch import Tensor

from scmreg.component import Component
from scmreg.data import DataSpec
from scmreg.denoiser import Denoiser
from scmreg.errors import OptionError
from scmreg.guidance import guided
from scmreg.process import Process
from scmreg.rng import sample_noise
from scmreg.types import Conditions, Count, NonNegative, Positive

__all__ = [
    "Ask",
    "Level",
    "Noise",
    "OdeSampler",
    "Point",
    "Sampler",
    "check_falling",
    "levels_of",
    "past_the_end",
    "vector",
]


class Noise:
    """The noise of a batch of samples: each has its own seed, so it is the same in any batch.

    Args:
        seeds: one seed per sample.
        shape: shape of one sample.
        device: where noise is put.
        dtype: that of the model; the numbers are drawn in float32 in any case, so they are the same.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.seeds, self.shape, self.device, self.dtype = list(seeds), tuple(shape), device, dtype

    def draw(self, index: int = 0) -> Tensor:
        """Return the standard normal noise of draw ``index``, shape ``(B, *shape)``; 0 is the initial noise."""
        return sample_noise(self.seeds, self.shape, index, device=self.device).to(self.dtype)


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

    def with_times(self, times: Sequence[float]) -> Self:
        """Return the sampler with the given TrigFlow times, and as many steps as they make.

        Raises:
            OptionError: if they do not fall from below pi/2 to above 0, or the sampler takes no times.
        """
        raise OptionError([f"sampler '{self.name}' takes no times"], "leave out --times")

    def accepts(self, spec: DataSpec) -> str | None:
        """Say why a model of such data cannot be sampled; ``None`` if it can."""
        return None

    @abstractmethod
    def sample(self, denoiser: Denoiser, noise: Noise, cond: Conditions) -> Tensor:
        """Return samples, scaled as the data, of shape ``(B, *shape)``."""

    def truth(self, exact: Denoiser, noise: Noise, cond: Conditions) -> Tensor | None:
        """Return what the samples would be without any error of model or solver, shape ``(B, *shape)``.

        Args:
            exact: a model whose ``consistency`` is the exact consistency function.
            noise: the noise of the samples.
            cond: their conditions.

        Returns:
            The samples, or ``None`` where they are not known, as they are not of any sampler that does not say so.
        """
        return None


def check_falling(times: Sequence[float], name: str) -> None:
    """Refuse TrigFlow times that do not fall, or are no times.

    Raises:
        OptionError: naming the sampler.
    """
    if any(later >= earlier for earlier, later in itertools.pairwise((math.pi / 2, *times, 0.0))):
        raise OptionError([f"times of sampler '{name}' must fall and stay below pi/2, not {list(times)}"])


def above_the_end(sampler: OdeSampler, process: Process, highest_level: float = math.inf) -> str | None:
    """Say that the last noise level of a sampler lies above the end of a process; ``None`` if it does not."""
    end = min(process.highest_level, highest_level)
    if sampler.times is not None or sampler.spacing == "time" or sampler.sigma_min < end:
        return None
    return f"sampler.sigma_min is {sampler.sigma_min:g}, but process '{process.name}' ends at noise level {end:g}"


def past_the_end(times: Sequence[float] | None, process: Process, highest_level: float = math.inf) -> str | None:
    """Say that TrigFlow times begin past the end of a process; ``None`` if they do not."""
    end = math.atan(min(process.highest_level, highest_level) / process.sigma_data)
    if not times or times[0] <= end * (1 + 1e-9):
        return None
    return f"times of the sampler begin at {times[0]:g}, but process '{process.name}' ends at {end:.6g}"


@dataclass(frozen=True)
class Level:
    """A time of the grid and the coefficients of the process there, computed once in float64 for all samples."""

    t: float
    alpha: float
    sigma: float
    alpha_prime: float
    sigma_prime: float

    @property
    def ratio(self) -> float:
        """The noise level ``sigma/alpha``."""
        return self.sigma / self.alpha

    @property
    def log_snr(self) -> float:
        """``log(alpha/sigma)``, half the logarithm of alpha²/sigma²: the time of the DPM-Solvers."""
        return math.log(self.alpha / self.sigma) if self.sigma else math.inf


@dataclass(frozen=True)
class Point:
    """A point of a trajectory and what the model predicts there; tensors of shape ``(B, ...)``."""

    at: Level
    x: Tensor
    data: Tensor
    noise: Tensor

    def ddim(self, to: Level) -> Tensor:
        """Move to another time with the predictions of this one (sCM, Eq. 26)."""
        return to.alpha * self.data + to.sigma * self.noise


Ask = Callable[[Tensor, Level], Point]
"""Evaluates the model."""


class OdeSampler(Sampler):
    """A solver of the probability-flow ODE, deterministic and in the coordinates of any process.

    It goes from the time of ``sigma_max`` down a grid of `steps` times and then to clean data.
    """

    sigma_min: Positive = 0.002
    """Last noise level sigma/alpha before 0."""
    sigma_max: Positive = 80.0
    """First noise level; the process's own end where that is lower."""
    spacing: Literal["edm", "time", "log-snr"] = "edm"
    """Grid between them: equal steps in the 1/rho-th power of the noise level, in the time of the process (down to 0,
    without sigma_min), or in the logarithm of the signal-to-noise ratio."""
    rho: Annotated[float, Ge(1)] = 7.0
    """Exponent of the spacing edm: 1 for equal steps in the noise level; larger puts more steps at low noise."""
    times: tuple[Positive, ...] | None = None
    """A grid of one's own in place of the spacing: falling TrigFlow times below pi/2, one a step."""
    guidance: NonNegative = 1.0
    """Scale of classifier-free guidance: 1 is none, 0 ignores the class, more than 1 exaggerates it."""

    calls: ClassVar[int] = 1
    """Evaluations of the model in a step, but for the last one, which takes one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma_min >= self.sigma_max:
            raise OptionError(
                [f"sampler '{self.name}': sigma_min {self.sigma_min:g} must be below sigma_max {self.sigma_max:g}"]
            )
        if self.times is None:
            return
        check_falling(self.times, self.name)
        if len(self.times) != self.steps:
            raise OptionError(
                [f"{self.steps} steps need {self.steps} times, not {len(self.times)}"],
                "give sampler.steps and sampler.times together, or one of them",
            )

    @property
    def evaluations(self) -> int:
        """`calls` a step and one in the last; twice as many with guidance, which asks with and without class."""
        return (self.calls * (self.steps - 1) + 1) * (1 if self.guidance == 1 else 2)

    def with_steps(self, steps: int) -> Self:
        """Return the sampler with another number of steps, without a grid of one's own if the number differs."""
        return self if steps == self.steps else replace(self, steps=steps, times=None)

    def with_times(self, times: Sequence[float]) -> Self:
        """Return the sampler with a grid of one's own."""
        return replace(self, steps=max(1, len(times)), times=tuple(times))

    def accepts(self, spec: DataSpec) -> str | None:
        """Refuse guidance where there are no classes."""
        if self.guidance == 1 or spec.classes:
            return None
        return f"sampler.guidance is {self.guidance:g}, but data '{spec.name}' have no classes to guide to: set it to 1"

    def fits(self, recipe: Any) -> str | None:
        """Refuse times past the end of the process, and guidance of a model that never learned without labels."""
        if reason := past_the_end(self.times, recipe.process) or above_the_end(self, recipe.process):
            return reason
        if self.guidance == 1:
            return None
        own = recipe.sampler is self
        if not own and recipe.teacher.source != "auto":  # an exact one knows, a run is asked when it is opened
            return None
        objective = recipe.objective if own else recipe.teacher.objective
        if getattr(objective, "label_dropout", 0):
            return None
        return (
            f"sampler.guidance is {self.guidance:g}, but '{objective.title}' trains no model without labels:"
            " set label_dropout of a diffusion objective (0.1, say), or guidance to 1"
        )

    def grid(self, process: Process, highest_level: float = math.inf) -> Tensor:
        """Return the falling times of the process, float64, shape ``(steps + 1,)``, the last one 0.

        Args:
            process: whose times.
            highest_level: noise level to start at, where it is lower than `sigma_max` and the end of the process.

        Raises:
            OptionError: if one's own times begin past the end of the process, or it ends below `sigma_min`.
        """
        limits = process, highest_level
        if reason := past_the_end(self.times, *limits) or above_the_end(self, *limits):
            raise OptionError([reason])
        if self.times is not None:
            levels = process.sigma_data * torch.tan(torch.tensor(self.times, dtype=torch.float64))
        else:
            top = min(self.sigma_max, process.highest_level, highest_level)
            if self.spacing == "time":
                first = process.time_of(torch.tensor([top], dtype=torch.float64)).clamp(max=process.t_max)
                return first * torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
            ramp = torch.linspace(0, 1, self.steps, dtype=torch.float64)
            if self.spacing == "log-snr":
                levels = torch.exp(math.log(top) + ramp * (math.log(self.sigma_min) - math.log(top)))
            else:
                bounds = top ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
                levels = (bounds[0] + ramp * (bounds[1] - bounds[0])) ** self.rho
        times = process.time_of(levels).clamp(max=process.t_max)
        return torch.cat([times, torch.zeros(1, dtype=torch.float64)])

    def start(self, denoiser: Denoiser, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return pure noise and the first time, where sampling starts: shapes ``(B, *shape)`` and ``(B,)``."""
        first = noise.draw()
        t = vector(float(self.grid(denoiser.process, denoiser.highest_level)[0]), first)
        return denoiser.process.prior(first, t), t

    def sample(self, denoiser: Denoiser, noise: Noise, cond: Conditions) -> Tensor:
        """Solve from pure noise to data."""
        x, _ = self.start(denoiser, noise)
        return self.solve(denoiser, x, self.grid(denoiser.process, denoiser.highest_level), cond)

    def truth(self, exact: Denoiser, noise: Noise, cond: Conditions) -> Tensor | None:
        """Return the ends of the exact trajectories; those under guidance are not known."""
        if self.guidance != 1:
            return None
        return exact.consistency(*self.start(exact, noise), cond=cond)

    def solve(self, denoiser: Denoiser, x: Tensor, times: Tensor, cond: Conditions | None = None) -> Tensor:
        """Solve the probability-flow ODE over a grid.

        Args:
            denoiser: the model.
            x: where the trajectories are at the first time, shape ``(B, ...)``.
            times: falling times of the process, shape ``(N + 1,)``; computed in float64 on the CPU.
            cond: conditions of the samples.

        Returns:
            Where they are at the last time.

        Raises:
            ValueError: if the times do not fall.
        """
        if times.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"times is {times.dtype}: times must be float32 or float64, half precision blurs them")
        if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0).all()) or not bool(times[-1] >= 0):
            raise ValueError(f"times must be a falling list of two at least, none below 0, not {times.tolist()}")
        model = guided(denoiser, self.guidance)
        levels = levels_of(model.process, times)

        def ask(x: Tensor, at: Level) -> Point:
            return Point(at, x, *model.predict(x, vector(at.t, x), cond))

        before: Point | None = None
        for at, to in itertools.pairwise(levels):
            here = ask(x, at)
            x = self.step(here, to, ask, before, model.process)
            before = here
        return x

    @abstractmethod
    def step(self, here: Point, to: Level, ask: Ask, before: Point | None, process: Process) -> Tensor:
        """Take one step.

        Args:
            here: the present point, already evaluated.
            to: where to go.
            ask: evaluates the model once more.
            before: the point before the present one, for multistep methods; ``None`` in the first step.
            process: for further times between.

        Returns:
            The point at ``to``, shape ``(B, ...)``.
        """


def levels_of(process: Process, times: Tensor) -> list[Level]:
    """Return the coefficients of the process at times of shape ``(N,)``."""
    times = times.detach().to("cpu", torch.float64)
    return [Level(*row) for row in zip(*(x.tolist() for x in (times, *process.coefficients(times))), strict=True)]


def vector(t: float, x: Tensor) -> Tensor:
    """Return one time that every sample of ``x`` shares, in float64 where the device has it, shape ``(B,)``."""
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    return torch.full((1,), t, dtype=dtype, device=x.device).expand(len(x))
