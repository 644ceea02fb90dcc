"""The diffusion objective: learn to denoise."""

from __future__ import annotations

from dataclasses import replace

import torch

from scmreg.component import Component
from scmreg.coordinates import trig_time
from scmreg.data import DataSpec
from scmreg.hookspecs import hookimpl
from scmreg.objective import Loss, Nets, Objective, ObjectiveModule, Phase, Setup
from scmreg.proposal import Proposal
from scmreg.types import Batch, Conditions, Probability, expand, norms
from scmreg.weighting import Weighting

__all__ = ["Diffusion"]


class DiffusionModule(ObjectiveModule):
    """The loss of `Diffusion`."""

    phases = (Phase("main", own=("weighting",)),)

    def __init__(self, objective: Diffusion, setup: Setup) -> None:
        super().__init__(setup)
        self.objective = objective
        self.classes = len(setup.spec.classes)
        self.weighting = objective.weighting.build_in(setup.denoiser.process, objective.space)

    def loss(self, phase: str, nets: Nets, batch: Batch, step: int, rng: torch.Generator) -> Loss:
        """Return the denoising loss of one batch."""
        denoiser, x0 = self.setup.denoiser, batch.x0
        process = denoiser.process
        t = self.objective.proposal.sample(process, len(x0), rng, x0.dtype).to(x0.device)
        noise = torch.randn(x0.shape, generator=rng, device=rng.device).to(x0)
        x = process.perturb(x0, noise, t)
        data, eps = denoiser.predictions(nets["model"](x, t, self._withhold(batch, rng)), x, t)
        t_hat = trig_time(process, t)
        # v̂ - v of TrigFlow, over sigma_data: from data and noise errors, so that no time divides by zero.
        cos, sin = expand(torch.cos(t_hat), x0), expand(torch.sin(t_hat), x0)
        error = cos * (eps - noise) - sin * (data - x0) / process.sigma_data
        per_sample = error.square().flatten(1).mean(1)
        # The earlier time of a pair is 0, where a consistency function returns the data.
        weighted, weight = self.weighting.weigh(per_sample, t, r=torch.zeros_like(t), delta=error)
        target = cos * noise - sin * x0 / process.sigma_data
        logs = {"weight": weight, "target_norm": norms(target)}
        return Loss(weighted.mean(), per_sample.detach(), t_hat, logs)

    def _withhold(self, batch: Batch, rng: torch.Generator) -> Conditions:
        """Replace a share of the labels by "no label"."""
        share, label = self.objective.label_dropout, batch.cond.label
        if not share or label is None:
            return batch.cond
        withheld = torch.rand(len(label), generator=rng, device=rng.device) < share
        return replace(batch.cond, label=label.masked_fill(withheld.to(label.device), self.classes))


class Diffusion(Objective, name="diffusion"):
    """Learn to denoise: the mean squared error of the velocity in TrigFlow coordinates, of any network on any process.

    The network's own target is whatever its parameterization says; the error is compared as
    ``||F̂ - v̂/sigma_data||²/D``, which has unit variance at every time and is EDM's loss with EDM's weighting.
    """

    space = "unit"
    pairs = True
    trainer = {
        "optimizer": "Adam",
        "optimizer_options": {"betas": [0.9, 0.99], "fused": True},
        "learning_rate": 3e-3,
        "rampup": 100,
        "steps": 3000,
        "batch_size": 256,
    }
    formula = "E[w(t) ||F̂(x_t, t) - v̂_t/sigma_data||²/D],  v̂ = cos(t̂) sigma_data noise - sin(t̂) x_0"
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, Eqs. 4, 9 and 22"

    weighting: Weighting = Weighting.default("uniform")
    """Weight of each time."""
    proposal: Proposal = Proposal.default("lognormal")
    """Distribution of training times."""
    label_dropout: Probability = 0.0
    """Share of training samples whose label is withheld, so that the model is unconditional too."""

    def accepts(self, spec: DataSpec) -> str | None:
        """Refuse to withhold labels that there are not."""
        if not self.label_dropout or spec.classes:
            return None
        return f"label_dropout withholds labels, but data '{spec.name}' have no classes: leave it out"

    def build(self, setup: Setup) -> ObjectiveModule:
        """Return the module that computes the loss."""
        return DiffusionModule(self, setup)


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [Diffusion]
