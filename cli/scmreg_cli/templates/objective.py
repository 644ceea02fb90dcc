"""An objective for scmreg: diffusion training by the absolute error.

scm show objective/example
scm run --objective example --steps 200
"""

from __future__ import annotations

import scmreg
import torch
from scmreg.coordinates import trig_time
from scmreg.objective import Loss, Nets, ObjectiveModule, Phase, Setup

scmreg_api = (1, 0)


class Module(ObjectiveModule):
    """The loss; a learned weighting moves along with the model."""

    phases = (Phase("main", own=("weighting",)),)

    def __init__(self, objective: Example, setup: Setup) -> None:
        super().__init__(setup)
        self.proposal = objective.proposal
        self.weighting = objective.weighting.build_in(setup.denoiser.process, objective.space)

    def loss(self, phase: str, nets: Nets, batch: scmreg.Batch, step: int, rng: torch.Generator) -> Loss:
        """Return the weighted mean over the batch, and the losses of its samples."""
        denoiser, x0 = self.setup.denoiser, batch.x0
        t = self.proposal.sample(denoiser.process, len(x0), rng).to(x0.device)
        noise = torch.randn(x0.shape, generator=rng, device=rng.device).to(x0)
        x = denoiser.process.perturb(x0, noise, t)
        _, predicted = denoiser.predictions(nets["model"](x, t, batch.cond), x, t)
        per_sample = (predicted - noise).abs().flatten(1).mean(1)
        weighted, weight = self.weighting.weigh(per_sample, t)
        return Loss(weighted.mean(), per_sample.detach(), trig_time(denoiser.process, t), {"weight": weight})


class Example(scmreg.Objective, name="example"):
    """Learn the median of the noise: its mean absolute error, which outliers move less than the square."""

    formula = "loss = E[w(t) mean |eps(x_t, t) - eps|]"

    weighting: scmreg.Weighting = scmreg.Weighting.default("uniform")
    """Weight of each time."""
    proposal: scmreg.Proposal = scmreg.Proposal.default("lognormal")
    """Distribution of training times."""

    def build(self, setup: Setup) -> ObjectiveModule:
        """Return the module that computes the loss."""
        return Module(self, setup)


@scmreg.hookimpl
def scmreg_components() -> list[type[scmreg.Component]]:
    """List what this plugin adds."""
    return [Example]
