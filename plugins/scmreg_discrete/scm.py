"""sCM in discrete time (App. E): the difference quotient of two outputs in place of the tangent."""

from __future__ import annotations

import torch
from torch import Tensor

from scmreg.coordinates import trig_time
from scmreg.denoiser import Denoiser
from scmreg.objective import Loss, Nets, ObjectiveModule, Setup
from scmreg.proposal import Proposal
from scmreg.schedule import Schedule
from scmreg.tangent import Normalization, discrete_tangent, motion, normalize, unit_velocity
from scmreg.types import Batch, Conditions, NonNegative, NonNegativeInt, expand, norms
from scmreg_discrete.base import DiscreteConsistency, DiscreteModule, at_earlier

__all__ = ["DSCD", "DSCT", "DiscreteSCM"]


class DiscreteSCMModule(DiscreteModule):
    """The loss of dsCT and dsCD (sCM, App. E, Eq. 39), on any process."""

    def __init__(self, objective: DiscreteSCM, setup: Setup) -> None:
        super().__init__(objective, setup)
        self.objective = objective

    def loss(self, phase: str, nets: Nets, batch: Batch, step: int, rng: torch.Generator) -> Loss:
        """Return the consistency loss of one batch."""
        objective, denoiser, net = self.objective, self.setup.denoiser, nets["model"]
        process = denoiser.process
        pair = self.draw(batch, step, rng)
        x_r = process.perturb(pair.data, pair.noise, pair.r)
        at = motion(denoiser, pair.x, pair.t, pair.data, pair.noise)
        # First the earlier time, without gradient, then the later one from the same random state.
        raw = at_earlier(net, x_r, pair.t, pair.r, batch.cond)
        clean = pair.r == 0
        earlier = denoiser.unit_velocity(raw, x_r, torch.where(clean, pair.t, pair.r))
        value = unit_velocity(net, denoiser, pair.x, pair.t, batch.cond)

        warmup = min(1.0, step / objective.warmup) if objective.warmup else 1.0
        tangent = discrete_tangent(
            value.detach(),
            torch.where(expand(clean, earlier), 0.0, earlier),
            at,
            trig_time(process, pair.r),
            pair.gap,
            process.sigma_data,
            warmup,
        )
        g = normalize(tangent, objective.normalization, objective.c)

        # F - sg(F) is zero in value and carries the gradient.
        error = value - value.detach() - g
        per_sample = error.square().flatten(1).mean(1)
        weighted, weight = self.weighting.weigh(per_sample, pair.t, r=pair.r, delta=error)
        figures = {"tangent_norm": norms(tangent), "target_norm": norms(value.detach() + g)}
        return Loss(weighted.mean(), per_sample.detach(), at.t_hat, {"weight": weight, **figures, "gap": pair.gap})


class DiscreteSCM(DiscreteConsistency):
    """What dsCT and dsCD share: everything but where ``dx/dt`` comes from."""

    space = "unit"

    proposal: Proposal = Proposal.default("lognormal", p_mean=-1.3, p_std=1.8)
    """Distribution of the later times, before the schedule moves them. (sCM: lognormal with p_mean -1, p_std 1.4.)"""
    schedule: Schedule = Schedule.default("edm-grid", steps=1024)
    """Which earlier time belongs to a time, and how the two close in. (sCM: EDM's grid; best at 1024 intervals.)"""
    normalization: Normalization = "rms"
    """Treatment of the difference quotient: its norm over all dimensions (``l2``), over their root mean square
    (``rms``), element by element (``clip``), or none. Learning rates do not transfer between them. (sCM: the norm.)"""
    c: NonNegative = 0.1
    """Added to the norm of the difference quotient, so that small ones stay small."""
    warmup: NonNegativeInt = 600
    """Steps over which its unstable part grows to its full size. (sCM: 10000.)"""

    def build(self, setup: Setup) -> ObjectiveModule:
        """Return the module that computes the loss."""
        return DiscreteSCMModule(self, setup)


class DSCT(DiscreteSCM, name="dsct"):
    """Train a consistency model on data alone by sCM in discrete time: differences along each data-noise pair."""

    formula = (
        "e^{w(t)}/D ||F - sg(F) - g||² - w(t),  g = normalized cos(t̂) (f⁻(x_t, t) - f⁻(x_r, r))/sin(t̂ - r̂),"
        "  x_r = alpha_r x_0 + sigma_r noise"
    )
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, App. E, Eqs. 37 and 39 (consistency training)"


class DSCD(DiscreteSCM, name="dscd"):
    """Distil a diffusion model by sCM in discrete time: differences along the teacher's DDIM step."""

    formula = (
        "e^{w(t)}/D ||F - sg(F) - g||² - w(t),  g = normalized cos(t̂) (f⁻(x_t, t) - f⁻(x_r, r))/sin(t̂ - r̂),"
        "  x_r = alpha_r D + sigma_r eps of the teacher"
    )
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, App. E, Algorithm 2 corrected, Eqs. 37 and 39"

    @property
    def needs_teacher(self) -> bool:
        """Always: it is what is distilled."""
        return True

    def direction(
        self, teacher: Denoiser | None, x: Tensor, t: Tensor, x0: Tensor, noise: Tensor, cond: Conditions
    ) -> tuple[Tensor, Tensor]:
        """Return the data and noise that the teacher predicts at ``x``."""
        assert teacher is not None, "the composition was checked: dscd has a teacher"
        with torch.no_grad():
            return teacher.predict(x, t, cond)
