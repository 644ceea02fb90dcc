"""Parameterizations: what the raw network output ``F`` means.

Data and noise prediction are both linear in the noisy sample and in ``F``:
``D = c_skip x + c_out F`` and ``eps = n_skip x + n_out F``, with ``alpha D + sigma eps = x``. Stating both keeps every
derived quantity free of divisions by ``sigma`` or ``alpha`` that the parameterization itself does not have.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from scmreg.component import Component
from scmreg.coordinates import trig_time
from scmreg.process import Process
from scmreg.types import expand

__all__ = ["Parameterization", "Preconditioning"]


class Preconditioning(NamedTuple):
    """Coefficients of a parameterization at given times, each of shape ``(B,)``."""

    c_skip: Tensor
    c_out: Tensor
    n_skip: Tensor
    n_out: Tensor
    c_in: Tensor


class Parameterization(Component, kind="parameterization"):
    """The meaning of the network output: ``D = c_skip x + c_out F(c_in x, c_noise)`` (sCM, Eq. 10)."""

    c_noise: Literal["identity", "log-sigma", "edm", "1000t"] = "identity"
    """What the network is told of the time: TrigFlow time t̂ (sCM), log(sigma/alpha) (sCM's ablation, singular at both
    ends), log(sigma/alpha)/4 (EDM), or 1000 times the process's own time (DDPM)."""

    @abstractmethod
    def preconditioning(self, process: Process, t: Tensor) -> Preconditioning:
        """Return the coefficients at times ``t`` of shape ``(B,)``."""

    def time_input(self, process: Process, t: Tensor) -> Tensor:
        """Return ``c_noise`` at times ``t``, shape ``(B,)``."""
        if self.c_noise == "identity":
            return trig_time(process, t)
        if self.c_noise == "1000t":
            return 1000 * t
        at = process.coefficients(t)
        return torch.log(at.sigma / at.alpha) * (0.25 if self.c_noise == "edm" else 1.0)

    def unit_velocity(self, process: Process, raw: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return TrigFlow's velocity ``F̂ = cos(t̂) eps - sin(t̂) D / sigma_data`` of a raw output ``F`` at ``(x, t)``.

        ``F̂`` is what Algorithm 1 of sCM calls ``F``; it is the raw output itself for the unit-variance form.
        """
        c, angle = self.preconditioning(process, t), trig_time(process, t)
        cos, sin = torch.cos(angle), torch.sin(angle) / process.sigma_data
        skip, out = cos * c.n_skip - sin * c.c_skip, cos * c.n_out - sin * c.c_out
        return expand(skip, x) * x + expand(out, x) * raw

    def has_boundary(self, process: Process) -> bool:
        """Whether ``f(x, 0) = x`` holds for every network: ``c_skip(0) = 1`` and ``c_out(0) = 0``, without a pole."""
        c = self.preconditioning(process, torch.zeros(1, dtype=torch.float64))
        return bool(
            torch.isfinite(torch.cat([c.c_skip, c.c_out])).all()
            and torch.allclose(c.c_skip, torch.ones_like(c.c_skip), rtol=0, atol=1e-12)
            and torch.allclose(c.c_out, torch.zeros_like(c.c_out), rtol=0, atol=1e-12)
        )

    def fits(self, recipe: Any) -> str | None:
        """Refuse a consistency objective whose boundary condition would not hold."""
        if recipe.objective.needs_boundary and not self.has_boundary(recipe.process):
            return (
                f"objective '{recipe.objective.name}' needs f(x, 0) = x, which parameterization '{self.name}' does not"
                f" give under process '{recipe.process.name}'"
            )
        return None
