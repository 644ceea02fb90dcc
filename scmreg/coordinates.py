"""TrigFlow coordinates of any process (sCM, App. B, Eq. 29).

Every process is TrigFlow after a rescaling of ``x`` and of time: ``t̂ = atan2(sigma, sigma_data alpha)`` and
``x̂ = x sigma_data / sqrt(alpha² sigma_data² + sigma²)`` give ``x̂ = cos(t̂) x_0 + sin(t̂) sigma_data noise``.
Hats in the documentation mean these coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scmreg.process import Process
from scmreg.types import expand

__all__ = ["from_trig", "log_ratio_rate", "process_time", "to_trig", "trig_time"]


def trig_time(process: Process, t: Tensor) -> Tensor:
    """Return ``t̂`` of the process's times ``t``, shape ``(B,)``, within ``[0, pi/2]``."""
    at = process.coefficients(t)
    return torch.atan2(at.sigma, process.sigma_data * at.alpha)


def process_time(process: Process, t_hat: Tensor) -> Tensor:
    """Return the process's time of TrigFlow times ``t̂``, shape ``(B,)``: the inverse of `trig_time`."""
    return process.time_of(process.sigma_data * torch.tan(t_hat))


def to_trig(process: Process, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(x̂, t̂)`` of a point ``x`` of shape ``(B, ...)`` at times ``t`` of shape ``(B,)``."""
    return x * expand(process.sigma_data / process.std(t), x), trig_time(process, t)


def from_trig(process: Process, x_hat: Tensor, t_hat: Tensor) -> tuple[Tensor, Tensor]:
    """Return the process's point and time of the TrigFlow point ``(x̂, t̂)``; the inverse of `to_trig`."""
    t = process_time(process, t_hat)
    return x_hat * expand(process.std(t) / process.sigma_data, x_hat), t


def log_ratio_rate(process: Process, t: Tensor) -> Tensor:
    """Return ``dt / d log(sigma/alpha) = alpha sigma / (alpha sigma' - alpha' sigma)``, shape ``(B,)``.

    A derivative in process time times this rate is ``cos(t̂) sin(t̂)`` times the derivative in TrigFlow time, which is
    the JVP rearrangement of sCM's Algorithm 1 in coordinates of any process: bounded where ``d/dt`` is not.
    """
    at = process.coefficients(t)
    return at.alpha * at.sigma / (at.alpha * at.sigma_prime - at.alpha_prime * at.sigma)
