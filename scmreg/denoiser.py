"""A network, a process and a parameterization, composed: every prediction that a diffusion model can make."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scmreg.parameterization import Parameterization
from scmreg.process import Process, check_times
from scmreg.types import Conditions, expand

__all__ = ["Denoiser"]


class Denoiser(nn.Module):
    """``D(x, t) = c_skip x + c_out F(c_in x, c_noise)`` and what follows from it.

    ``forward`` returns the raw output ``F``, so that a wrapper such as DDP sees every evaluation; the other
    predictions are linear in ``x`` and ``F`` and are named after what they predict.

    Args:
        network: called as ``network(x, c_noise, cond)``, returns the shape of ``x``.
        process: the process whose times and scale ``x`` has.
        parameterization: the meaning of the network's output.
    """

    def __init__(self, network: nn.Module, process: Process, parameterization: Parameterization) -> None:
        super().__init__()
        self.network = network
        self.process = process
        self.parameterization = parameterization

    def forward(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        """Return the raw output ``F(c_in x, c_noise)``.

        Args:
            x: noisy samples of the process, shape ``(B, ...)``.
            t: times of the process, shape ``(B,)``, float32 or float64.
            cond: what else the network is told.
        """
        check_times(t, x)
        c = self.parameterization.preconditioning(self.process, t)
        time = self.parameterization.time_input(self.process, t)
        raw: Tensor = self.network(expand(c.c_in, x) * x, time, cond or Conditions())
        return raw

    def data(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        """Predict the clean sample, ``D(x, t)``."""
        return self.predictions(self(x, t, cond), x, t)[0]

    def noise(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        """Predict the standard normal noise, ``(x - alpha D) / sigma``."""
        return self.predictions(self(x, t, cond), x, t)[1]

    def velocity(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        """Return the probability-flow ODE's ``dx/dt = alpha' D + sigma' eps`` (sCM, Eq. 3 in TrigFlow)."""
        return self.process.velocity(*self.predictions(self(x, t, cond), x, t), t)

    def score(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        """Return the score of the marginal at ``t``, ``-eps / sigma``."""
        return -self.noise(x, t, cond) / expand(self.process.coefficients(t).sigma, x)

    def consistency(self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditions | None = None) -> Tensor:
        """Return the consistency function ``f(x, t)``, or the jump ``f^{t→s} = alpha_s D + sigma_s eps`` to time ``s``.

        The jump is one DDIM step (sCM, Eqs. 5 and 26). At ``t = 0`` it is ``x`` itself, and the network, which may be
        singular there, is not asked.
        """
        check_times(t, x)
        clean = t == 0
        if bool(clean.all()):
            return x
        asked = torch.where(clean, torch.full_like(t, self.process.t_max), t)
        jumped = self.jump(self(x, asked, cond), x, asked, s)
        return torch.where(expand(clean, x), x, jumped) if bool(clean.any()) else jumped

    def jump(self, raw: Tensor, x: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        """Return ``f^{t→s}`` from a raw output; ``s`` is 0 if not given."""
        data, noise = self.predictions(raw, x, t)
        if s is None:
            return data
        at = self.process.coefficients(s)
        return expand(at.alpha, x) * data + expand(at.sigma, x) * noise

    def predictions(self, raw: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the data and noise predictions ``(D, eps)`` of a raw output ``F`` at ``(x, t)``."""
        c = self.parameterization.preconditioning(self.process, t)
        return (
            expand(c.c_skip, x) * x + expand(c.c_out, x) * raw,
            expand(c.n_skip, x) * x + expand(c.n_out, x) * raw,
        )

    def unit_velocity(self, raw: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return TrigFlow's ``F̂ = cos(t̂) eps - sin(t̂) D / sigma_data`` of a raw output ``F`` at ``(x, t)``."""
        return self.parameterization.unit_velocity(self.process, raw, x, t)
