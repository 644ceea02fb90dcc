"""MeanFlow for scmreg: learn the average velocity between two times, and jump from one to the other.

On the straight path from data to noise, ``z_t = (1 - t) x_0 + t noise``, the average velocity of the probability flow
between ``r`` and ``t`` is ``u(z_t, r, t) = (z_t - z_r)/(t - r)``. Its derivative along the flow, with ``r`` held, gives
the MeanFlow identity ``u = v - (t - r) du/dt``. It is linear in ``v``, the marginal velocity, so that the mean over the
velocities ``noise - x_0`` of single pairs has the same solution.

Every process is this path in other coordinates, and the method is the same under all of them: ``u`` is ``eps - D``, the
difference of the noise and the data that the network's output says, and the jump ``z_r = z_t - (t - r) u`` is
``alpha_r D + sigma_r eps``. The network sees the coordinates of the process. The path's own time is
``sigma/(alpha + sigma)``, that of the process ``flow``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

import scmreg
from scmreg.coordinates import trig_time
from scmreg.data import DataSpec
from scmreg.denoiser import Denoiser
from scmreg.errors import OptionError
from scmreg.objective import Loss, Nets, Objective, ObjectiveModule, Setup
from scmreg.parameterization import LARGEST
from scmreg.process import Process
from scmreg.proposal import Proposal
from scmreg.rng import rewound
from scmreg.sampler import Noise, Sampler, check_falling, past_the_end, vector
from scmreg.tangent import Direction, evaluate_with_jvp
from scmreg.types import Batch, Conditions, Count, NonNegative, Positive, Probability, expand, norms

__all__ = ["MeanFlow", "MeanFlowSampler", "average_velocity", "direction", "straight_time"]


def straight_time(process: Process, t: Tensor) -> Tensor:
    """Return the time of the straight path, ``sigma/(alpha + sigma)``, at process times ``t``, shape ``(B,)``."""
    at = process.coefficients(t)
    return at.sigma / (at.alpha + at.sigma)


def direction(process: Process, x: Tensor, t: Tensor, velocity: Tensor) -> Direction:
    """Return how ``x = (alpha + sigma) z`` at process times ``t`` moves with the time of the straight path.

    Args:
        process: the process of ``x`` and ``t``.
        x: noisy samples, shape ``(B, ...)``.
        t: process times, shape ``(B,)``.
        velocity: ``dz/dt`` on the straight path, the shape of ``x``.
    """
    at = process.coefficients(t)
    scale = at.alpha + at.sigma
    rate = scale**2 / (at.alpha * at.sigma_prime - at.alpha_prime * at.sigma)
    growth = rate * (at.alpha_prime + at.sigma_prime) / scale
    return Direction(x=x, t=t, x_rate=expand(scale, x) * velocity + expand(growth, x) * x, t_rate=rate)


def average_velocity(denoiser: Denoiser, raw: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Return ``u = eps - D`` of a raw output at ``(x, t)``, the shape of ``x``."""
    data, noise = denoiser.predictions(raw, x, t)
    return noise - data


class MeanFlowModule(ObjectiveModule):
    """The loss of `MeanFlow`."""

    def __init__(self, objective: MeanFlow, setup: Setup) -> None:
        super().__init__(setup)
        self.objective = objective
        self.classes = len(setup.spec.classes)

    def loss(self, phase: str, nets: Nets, batch: Batch, step: int, rng: torch.Generator) -> Loss:
        """Return the loss of one batch (Algorithm 1)."""
        objective, setup, denoiser, x0 = self.objective, self.setup, self.setup.denoiser, batch.x0
        process, net = denoiser.process, nets["model"]
        t, r = self._times(len(x0), rng, x0)
        noise = torch.randn(x0.shape, generator=rng, device=rng.device).to(x0)
        x = process.perturb(x0, noise, t)
        cond, kept = self._withhold(batch.cond, len(x0), rng)

        velocity = noise - x0
        if objective.guidance != 1:
            velocity = torch.where(expand(kept, x0), self._guide(net, x, t, cond, velocity), velocity)
        told = replace(cond, target_time=trig_time(process, r))
        at = direction(process, x, t, velocity)
        u, slope = evaluate_with_jvp(
            net, denoiser, at, told, setup.tangent_pass, compiled=setup.compiled, quantity=average_velocity
        )
        change = expand(straight_time(process, t) - straight_time(process, r), x0) * slope
        error = u - (velocity - change)

        per_sample = error.square().flatten(1).sum(1)
        weight = (per_sample.detach() + objective.c) ** -objective.p
        logs = {"weight": weight, "tangent_norm": norms(change), "target_norm": norms(velocity - change)}
        return Loss((weight * per_sample).mean(), per_sample.detach(), trig_time(process, t), logs)

    def _times(self, count: int, rng: torch.Generator, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Draw process times ``t`` and ``r <= t``, in a share of the pairs the same."""
        process = self.setup.denoiser.process
        drawn = [self.objective.proposal.sample(process, count, rng, x0.dtype).to(x0.device) for _ in range(2)]
        t, r = torch.maximum(*drawn), torch.minimum(*drawn)
        same = torch.rand(count, generator=rng, device=rng.device) < self.objective.equal
        return t, torch.where(same.to(x0.device), t, r)

    def _withhold(self, cond: Conditions, count: int, rng: torch.Generator) -> tuple[Conditions, Tensor]:
        """Replace a share of the labels by "no label", and say which are kept, shape ``(B,)``."""
        withheld = torch.rand(count, generator=rng, device=rng.device) < self.objective.label_dropout
        if cond.label is None:
            return cond, ~withheld
        withheld = withheld.to(cond.label.device)
        return replace(cond, label=cond.label.masked_fill(withheld, self.classes)), ~withheld

    def _guide(self, net: Any, x: Tensor, t: Tensor, cond: Conditions, velocity: Tensor) -> Tensor:
        """Return ``w v + (1 - w) u(z_t, t, t)`` without class: the velocity under guidance (Sec. 4.2)."""
        assert cond.label is not None, "the composition was checked: guided data have classes"
        nobody = replace(cond, label=torch.full_like(cond.label, self.classes))
        with rewound(x.device), torch.no_grad():  # with the dropout mask of the evaluation to come
            alone = average_velocity(self.setup.denoiser, net(x, t, nobody), x, t)
        return alone + self.objective.guidance * (velocity - alone)


class MeanFlow(Objective, name="meanflow"):
    """Learn the average velocity between any two times, from data alone: a model that samples in one step.

    The network is told the time that it jumps to. Where both times are one, it learns the velocity itself, so that the
    model can also be sampled by any solver of the probability flow.
    """

    few_step = True
    sampler = "meanflow"
    trainer = {
        "optimizer": "Adam",
        "optimizer_options": {"betas": [0.9, 0.99], "fused": True},
        "learning_rate": 3e-3,
        "rampup": 100,
        "steps": 5000,
        "batch_size": 256,
    }
    formula = (
        "E[sg(w) ||u(z_t, r, t) - sg(v - (t - r) du/dt)||²],  w = 1/(||.||² + c)^p,  v = noise - x_0,"
        "  d/dt along (v, 0, 1) of (z, r, t)"
    )
    reference = "Geng et al. 2025 (MeanFlow), arXiv:2505.13447, Eq. 6, Secs. 4.1 to 4.3 and Algorithm 1"

    proposal: Proposal = Proposal.default("lognormal", p_mean=-0.4, p_std=1.0)
    """Distribution that both times are drawn from, the later one being t. On the straight path a log-normal noise level
    is the paper's logit-normal time. (MeanFlow: mean -0.4, standard deviation 1.)"""
    equal: Probability = 0.5
    """Share of the pairs with r = t, which learn the velocity. (MeanFlow: 0.75.)"""
    p: NonNegative = 0.5
    """Exponent of the adaptive weight; 0 for the plain squared error. Few dimensions want little. (MeanFlow: 1.)"""
    c: Positive = 1e-3
    """Added to the squared error in the adaptive weight."""
    guidance: NonNegative = 1.0
    """Scale of classifier-free guidance that becomes part of the velocity, so that a step of sampling still takes one
    evaluation; 1 for none."""
    label_dropout: Probability = 0.0
    """Share of training samples whose label is withheld, which a guided model needs. (MeanFlow: 0.1.)"""

    @property
    def gives(self) -> frozenset[str]:
        """The time that the network jumps to."""
        return frozenset({"target_time"})

    def accepts(self, spec: DataSpec) -> str | None:
        """Refuse guidance where there are no classes."""
        if self.guidance == 1 or spec.classes:
            return None
        return f"objective.guidance guides to a class, but data '{spec.name}' have none: leave it out"

    def fits(self, recipe: Any) -> str | None:
        """Refuse guidance without dropped labels, and a parameterization whose velocity has a pole."""
        if self.guidance != 1 and not self.label_dropout:
            return "objective.guidance moves away from the model without class: set objective.label_dropout (0.1, say)"
        process, form = recipe.process, recipe.parameterization
        ends = torch.tensor([0.0, process.t_max], dtype=torch.float64)
        c = form.preconditioning(process, ends)
        of_x, of_raw = (c.n_skip - c.c_skip) * process.std(ends), c.n_out - c.c_out
        if bool((torch.maximum(of_x.abs(), of_raw.abs()) < LARGEST).all()):
            return None
        return (
            f"objective 'meanflow' needs the velocity noise - data at every time, but that of parameterization"
            f" '{form.name}' has a pole at an end of process '{process.name}': take unit-variance, velocity or flow"
        )

    def build(self, setup: Setup) -> ObjectiveModule:
        """Return the module that computes the loss."""
        return MeanFlowModule(self, setup)


class MeanFlowSampler(Sampler, name="meanflow"):
    """Jump from noise to data along the average velocity, in one step or in a few, without new noise.

    Steps are equal in the time of the straight path, in every process.
    """

    formula = "z_r = z_t - (t - r) u(z_t, r, t) = alpha_r D + sigma_r eps,  D and eps told r"
    reference = "Geng et al. 2025 (MeanFlow), arXiv:2505.13447, Sec. 4.1 and Algorithm 2"

    steps: Count = 1
    """Number of steps, each one network evaluation."""
    times: tuple[Positive, ...] | None = None
    """Falling TrigFlow times below pi/2 at which the steps begin, in place of equal ones."""
    sigma_max: Positive = 80.0
    """Noise level sigma/alpha at which the first step starts; the process's own end where that is lower."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
        """One a step."""
        return self.steps

    def with_steps(self, steps: int) -> Self:
        """Return the sampler with another number of steps, without times of one's own if the number differs."""
        return self if steps == self.steps else replace(self, steps=steps, times=None)

    def with_times(self, times: Sequence[float]) -> Self:
        """Return the sampler with the given times."""
        return replace(self, steps=max(1, len(times)), times=tuple(times))

    def fits(self, recipe: Any) -> str | None:
        """Refuse a model that is not told where to jump to, and times past the end of the process."""
        if recipe.sampler is self and "target_time" not in recipe.objective.gives:
            return f"sampler 'meanflow' needs a model of two times, which '{recipe.objective.title}' does not train"
        return past_the_end(self.times, recipe.process)

    def grid(self, process: Process, highest_level: float = math.inf) -> list[float]:
        """Return the falling times of the process, the last one 0.

        Raises:
            OptionError: if one's own times begin past the end of the process.
        """
        if reason := past_the_end(self.times, process, highest_level):
            raise OptionError([reason])
        if self.times is not None:
            levels = process.sigma_data * torch.tan(torch.tensor(self.times, dtype=torch.float64))
        else:
            top = min(self.sigma_max, process.highest_level, highest_level)
            straight = top / (1 + top) * torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)[:-1]
            levels = straight / (1 - straight)
        return [*process.time_of(levels).clamp(max=process.t_max).tolist(), 0.0]

    def sample(self, denoiser: Denoiser, noise: Noise, cond: Conditions) -> Tensor:
        """Sample in `steps` evaluations."""
        first, times = noise.draw(), self.grid(denoiser.process, denoiser.highest_level)
        x = denoiser.process.prior(first, vector(times[0], first))
        for t, r in itertools.pairwise(times):
            x = denoiser.consistency(x, vector(t, x), vector(r, x), cond)
        return x

    def truth(self, exact: Denoiser, noise: Noise, cond: Conditions) -> Tensor | None:
        """Return the ends of the exact trajectories."""
        first, times = noise.draw(), self.grid(exact.process, exact.highest_level)
        t = vector(times[0], first)
        return exact.consistency(exact.process.prior(first, t), t, cond=cond)


@scmreg.hookimpl
def scmreg_components() -> list[type[scmreg.Component]]:
    """Register what this package adds."""
    return [MeanFlow, MeanFlowSampler]
