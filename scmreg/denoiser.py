"""A network, a process and a parameterization, composed: every prediction that a diffusion model can make."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from scmreg.coordinates import trig_time
from scmreg.parameterization import Parameterization, Preconditioning
from scmreg.process import Process, check_times, known
from scmreg.types import Conditions, expand

__all__ = ["Denoiser", "convert"]


class Denoiser(nn.Module):
    """``D(x, t) = c_skip x + c_out F(c_in x, c_noise)`` and what follows from it.

    ``forward`` returns the raw output ``F``, so that a wrapper such as DDP sees every evaluation; the other
    predictions are linear in ``x`` and ``F`` and are named after what they predict.

    Args:
        network: called as ``network(x, c_noise, cond)``, returns the shape of ``x``.
        process: the process whose times and scale ``x`` has.
        parameterization: the meaning of the network's output.
        classes: number of classes that the network knows; 0 for an unconditional one. Label ``classes`` means
            "no label".
        highest_level: noise level ``sigma/alpha`` up to which the model is meant to be asked; to the end of the process
            if not given.
        two_time: whether the network is told a second time, ``target_time``: the one that `consistency` jumps to. Every
            prediction that names no such time is that of the probability flow, told the present time itself.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        parameterization: Parameterization,
        classes: int = 0,
        highest_level: float = math.inf,
        *,
        two_time: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.process = process
        self.parameterization = parameterization
        self.classes = classes
        self.two_time = two_time
        self._highest_level = highest_level

    @property
    def highest_level(self) -> float:
        """Noise level of the process up to which the model is meant to be asked."""
        return min(self._highest_level, self.process.highest_level)

    def forward(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        """Return the raw output ``F(c_in x, c_noise)``.

        Args:
            x: noisy samples of the process, shape ``(B, ...)``.
            t: times of the process, shape ``(B,)``, float32 or float64.
            cond: what else the network is told.
        """
        check_times(self.process, t, x)
        return self._evaluate(x, t, cond, self.parameterization.preconditioning(self.process, t))

    def _evaluate(self, x: Tensor, t: Tensor, cond: Conditions | None, c: Preconditioning) -> Tensor:
        time = self.parameterization.time_input(self.process, t).to(torch.promote_types(x.dtype, torch.float32))
        cond = cond or Conditions()
        if self.two_time and cond.target_time is None:
            cond = replace(cond, target_time=trig_time(self.process, t).expand(len(x)))
        raw: Tensor = self.network(expand(c.c_in, x) * x, time.expand(len(x)), cond)
        return raw

    def predict(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> tuple[Tensor, Tensor]:
        """Predict clean sample and noise ``(D, eps)`` by one evaluation of the network, each of the shape of ``x``.

        Coefficients are computed in the precision of ``t``, once for the batch where it shares one time (a ``t`` that
        is expanded from one number, as those of samplers are).
        """
        check_times(self.process, t, x)
        if t.stride() == (0,):
            t = t[:1]
        c = self.parameterization.preconditioning(self.process, t)
        return _combine(c, self._evaluate(x, t, cond, c), x)

    def data(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        """Predict the clean sample, ``D(x, t)``, the shape of ``x``."""
        return self.predict(x, t, cond)[0]

    def noise(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        """Predict the standard normal noise, ``(x - alpha D) / sigma``, the shape of ``x``.

        As `velocity` and `score`, it is not finite at ``t = 0`` for parameterizations that divide by sigma.
        """
        return self.predict(x, t, cond)[1]

    def velocity(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        """Return the probability-flow ODE's ``dx/dt = alpha' D + sigma' eps`` (sCM, Eq. 3 in TrigFlow), the shape of
        ``x``.
        """
        return self.process.velocity(*self.predict(x, t, cond), t)

    def v(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        """Predict ``v = alpha eps - sigma x_0`` (Salimans & Ho 2022), the shape of ``x``."""
        data, noise = self.predict(x, t, cond)
        at = self.process.coefficients(t)
        return expand(at.alpha, x) * noise - expand(at.sigma, x) * data

    def score(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        """Return the score of the marginal at ``t``, ``-eps / sigma``, the shape of ``x``."""
        return -self.noise(x, t, cond) / expand(self.process.coefficients(t).sigma, x)

    def consistency(self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditions | None = None) -> Tensor:
        """Return the consistency function ``f(x, t)``, or the jump ``f^{t→s} = alpha_s D + sigma_s eps`` to time ``s``.

        The jump is one DDIM step (sCM, Eqs. 5 and 26). A model of two times is told ``s``: on a straight path the step
        is then ``x_s = x_t - (t - s) u``, with the average velocity ``u`` between the times. At ``t = 0`` it is ``x``
        itself, whatever the network, which may be singular there; so its derivative in time is 0 there.
        """
        check_times(self.process, t, x)
        if s is not None:
            check_times(self.process, s, x, "s")
        clean = t == 0
        if known(clean.all()):
            return x
        asked = torch.where(clean, torch.full_like(t, self.process.t_max), t)
        if self.two_time:
            cond = replace(
                cond or Conditions(), target_time=trig_time(self.process, torch.zeros_like(t) if s is None else s)
            )
        return torch.where(expand(clean, x), x, self.jump(self(x, asked, cond), x, asked, s))

    def jump(self, raw: Tensor, x: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        """Return ``f^{t→s}`` from a raw output; ``s`` is 0 if not given."""
        data, noise = self.predictions(raw, x, t)
        if s is None:
            return data
        at = self.process.coefficients(s)
        return expand(at.alpha, x) * data + expand(at.sigma, x) * noise

    def under(self, process: Process) -> Denoiser:
        """Return the same model under another process (see `convert`)."""
        form = self.parameterization.under(self.process, process)
        level = self.process.highest_level if math.isinf(self._highest_level) else self._highest_level
        level *= process.sigma_data / self.process.sigma_data
        made = Denoiser(self.network, process, form, self.classes, level, two_time=self.two_time)
        return made.train(self.training)

    def predictions(self, raw: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the data and noise predictions ``(D, eps)`` of a raw output ``F`` at ``(x, t)``."""
        return _combine(self.parameterization.preconditioning(self.process, t), raw, x)

    def unit_velocity(self, raw: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return TrigFlow's ``F̂ = cos(t̂) eps - sin(t̂) D / sigma_data`` of a raw output ``F`` at ``(x, t)``."""
        return self.parameterization.unit_velocity(self.process, raw, x, t)


def convert(denoiser: Denoiser, to: Process) -> Denoiser:
    """Return the same model under another process, exactly: the same network, asked no more often.

    A point of the new process, converted to the old one (:func:`scmreg.coordinates.convert_point`), has the same
    predictions, in the scale of data that the new process has. Parameters are shared, not copied. Where the new process
    goes on to more noise than the old one, sampling still starts where the old one ends.

    Args:
        denoiser: the model.
        to: the process that it shall run under.
    """
    return denoiser if to == denoiser.process else denoiser.under(to)


def _combine(c: Preconditioning, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return (
        expand(c.c_skip, x) * x + expand(c.c_out, x) * raw,
        expand(c.n_skip, x) * x + expand(c.n_out, x) * raw,
    )
