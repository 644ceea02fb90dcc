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
from scmreg.registry import registry
from scmreg.types import expand

__all__ = ["Parameterization", "Preconditioning", "Prediction", "TimeInput"]

LARGEST = 1e5
"""Size of the terms of ``D``, in standard deviations of the data, from which float32 leaves less than two digits."""


class Preconditioning(NamedTuple):
    """Coefficients of a parameterization at given times, each of shape ``(B,)``."""

    c_skip: Tensor
    c_out: Tensor
    n_skip: Tensor
    n_out: Tensor
    c_in: Tensor


class Parameterization(Component, kind="parameterization"):
    """The meaning of the network output: ``D = c_skip x + c_out F(c_in x, c_noise)`` (sCM, Eq. 10)."""

    @abstractmethod
    def preconditioning(self, process: Process, t: Tensor) -> Preconditioning:
        """Return the coefficients at times ``t`` of shape ``(B,)``."""

    def time_input(self, process: Process, t: Tensor) -> Tensor:
        """Return ``c_noise``, what the network is told of times ``t``: TrigFlow's time (sCM), shape ``(B,)``."""
        return trig_time(process, t)

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

    def pole(self, process: Process) -> str | None:
        """Say at which end of the process ``D = c_skip x + c_out F`` is lost: unbounded, or a difference of terms that
        cancel beyond the precision of float32; ``None`` if it is bounded on the whole closed interval.
        """
        ends = torch.tensor([0.0, process.t_max], dtype=torch.float64)
        c = self.preconditioning(process, ends)
        size = torch.maximum((c.c_skip * process.std(ends)).abs(), c.c_out.abs()) / process.sigma_data
        lost = ~(size < LARGEST)
        names = [name for name, bad in zip(("t = 0", "pure noise"), lost.tolist(), strict=True) if bad]
        return " and ".join(names) or None

    def under(self, process: Process, to: Process) -> Parameterization:
        """Return the parameterization under which a network that was trained with this one under ``process`` is, raw
        output for raw output, the same model under the process ``to`` (sCM, App. B).
        """
        if to == process:
            return self
        made: Parameterization = registry("parameterization").create("converted", of=self, process=process)
        return made

    def fits(self, recipe: Any) -> str | None:
        """Refuse a consistency objective whose boundary condition would not hold, or whose function has a pole."""
        # One that is part of a converted one is judged by that, under its own process.
        if recipe.parameterization is not self or not recipe.objective.needs_boundary:
            return None
        what, process = f"parameterization '{self.name}'", recipe.process
        if end := self.pole(process):
            return (
                f"objective '{recipe.objective.name}' needs f(x, t) at every time, but {what} has a pole at {end} of"
                f" process '{process.name}'"
            )
        if not self.has_boundary(process):
            return (
                f"objective '{recipe.objective.name}' needs f(x, 0) = x, which {what} does not give under process"
                f" '{process.name}'"
            )
        return None


class TimeInput(Parameterization):
    """A parameterization whose network may be told of the time in one of several ways."""

    c_noise: Literal["identity", "log-sigma", "edm", "1000t"] = "identity"
    """What the network is told of the time: TrigFlow time t̂ (sCM), log(sigma/alpha) (sCM's ablation, singular at both
    ends), log(sigma/alpha)/4 (EDM), or 1000 times the process's own time (DDPM)."""

    def time_input(self, process: Process, t: Tensor) -> Tensor:
        """Return ``c_noise`` at times ``t``, shape ``(B,)``."""
        if self.c_noise == "identity":
            return trig_time(process, t)
        if self.c_noise == "1000t":
            return 1000 * t
        return torch.log(process.noise_level(t)) * (0.25 if self.c_noise == "edm" else 1.0)


class Prediction(TimeInput):
    """A parameterization that is named after what the network predicts; its input may be taken as it is."""

    scale_input: bool = True
    """Whether the network's input is scaled to unit variance (c_in = 1/v); if not, c_in = 1, as in DDPM."""

    def input_scale(self, process: Process, t: Tensor) -> Tensor:
        """Return ``c_in`` at times ``t``, shape ``(B,)``."""
        return 1 / process.std(t) if self.scale_input else torch.ones_like(t)
