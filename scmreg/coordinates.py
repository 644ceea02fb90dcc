"""TrigFlow coordinates of any process (sCM, App. B, Eq. 29).

Every process is TrigFlow after a rescaling of ``x`` and of time: ``t̂ = atan2(sigma, sigma_data alpha)`` and
``x̂ = x sigma_data / sqrt(alpha² sigma_data² + sigma²)`` give ``x̂ = cos(t̂) x_0 + sin(t̂) sigma_data noise``.
Hats in the documentation mean these coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scmreg.process import Process, check_times
from scmreg.types import expand

__all__ = ["convert_point", "convert_time", "from_trig", "log_ratio_rate", "process_time", "to_trig", "trig_time"]


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


def convert_time(t: Tensor, source: Process, target: Process) -> Tensor:
    """Return the time of ``target`` with the signal-to-noise ratio that ``source`` has at ``t``, shape ``(B,)``.

    Where the processes scale data differently, the ratio is what stays (sCM, Eq. 34). Past the nominal end of the
    target its formula is continued.
    """
    return target.time_of(source.noise_level(t) * (target.sigma_data / source.sigma_data))


def convert_point(x: Tensor, t: Tensor, source: Process, target: Process) -> tuple[Tensor, Tensor]:
    """Return the point and time of ``target`` for a point ``x`` of shape ``(B, ...)`` of ``source`` at times ``t``.

    The point is made of the same noise, and of the same data in the target's scale.

    Raises:
        ValueError: if the target cannot represent a time, as EDM cannot represent pure noise.
    """
    check_times(source, t, x)
    level = source.noise_level(t) * (target.sigma_data / source.sigma_data)
    if not torch.compiler.is_compiling() and t.device.type == "cpu" and t.numel():
        _check_level(level.detach(), source, target)
    there = target.time_of(level)
    return x * expand(target.std(there) / source.std(t), x), there


def _check_level(level: Tensor, source: Process, target: Process) -> None:
    try:
        highest = float(level.max())
    except RuntimeError:  # under vmap there are no values to look at
        return
    if highest > target.highest_level * (1 + 1e-6):
        raise ValueError(
            f"t of process '{source.name}' reaches to noise level {highest:.6g} of process '{target.name}', which ends"
            f" at {target.highest_level:.6g} and cannot represent it"
        )


def log_ratio_rate(process: Process, t: Tensor) -> Tensor:
    """Return ``dt / d log(sigma/alpha) = alpha sigma / (alpha sigma' - alpha' sigma)``, shape ``(B,)``.

    A derivative in process time times this rate is ``cos(t̂) sin(t̂)`` times the derivative in TrigFlow time, which is
    the JVP rearrangement of sCM's Algorithm 1 in coordinates of any process: bounded where ``d/dt`` is not.
    """
    at = process.coefficients(t)
    return at.alpha * at.sigma / (at.alpha * at.sigma_prime - at.alpha_prime * at.sigma)
