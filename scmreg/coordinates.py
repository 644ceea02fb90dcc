"""TrigFlow coordinates of any process (sCM, App. B, Eq. 29).

Every process is TrigFlow after a rescaling of ``x`` and of time: ``t̂ = atan2(sigma, sigma_data alpha)`` and
``x̂ = x sigma_data / sqrt(alpha² sigma_data² + sigma²)`` give ``x̂ = cos(t̂) x_0 + sin(t̂) sigma_data noise``.
Hats in the documentation mean these coordinates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scmreg.process import Process, check_precision, check_times, known
from scmreg.types import expand

__all__ = [
    "LAST",
    "convert_point",
    "convert_time",
    "from_trig",
    "log_ratio_rate",
    "process_time",
    "to_trig",
    "trig_time",
]


LAST = 1.5707962512969971
"""The largest float32 below pi/2."""


def trig_time(process: Process, t: Tensor) -> Tensor:
    """Return ``t̂`` of the process's times ``t``, shape ``(B,)``, within ``[0, pi/2]``."""
    at = process.coefficients(t)
    return torch.atan2(at.sigma, process.sigma_data * at.alpha)


def process_time(process: Process, t_hat: Tensor) -> Tensor:
    """Return the process's time of TrigFlow times ``t̂``, shape ``(B,)``: the inverse of `trig_time`.

    Past the end of the process its formula is continued. ``pi/2``, which float32 rounds up to where the tangent is
    negative, is taken for the largest float32 below it.
    """
    return process.time_of(process.sigma_data * torch.tan(check_precision(t_hat, "t_hat").clamp(max=LAST)))


def to_trig(process: Process, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(x̂, t̂)`` of a point ``x`` of shape ``(B, ...)`` at times ``t`` of shape ``(B,)``.

    Raises:
        ValueError: if a time is none of the process (:func:`~scmreg.process.check_times`).
    """
    return x * expand(process.sigma_data / process.std(check_times(process, t, x)), x), trig_time(process, t)


def from_trig(process: Process, x_hat: Tensor, t_hat: Tensor) -> tuple[Tensor, Tensor]:
    """Return the process's point and time of the TrigFlow point ``(x̂, t̂)``; the inverse of `to_trig`.

    Raises:
        ValueError: if the process cannot represent a time, as EDM cannot represent pure noise.
    """
    _check_angle(t_hat.detach(), process)
    t = process_time(process, t_hat).clamp(max=process.t_max)
    return x_hat * expand(process.std(t) / process.sigma_data, x_hat), t


def convert_time(t: Tensor, source: Process, target: Process) -> Tensor:
    """Return the time of ``target`` with the signal-to-noise ratio that ``source`` has at ``t``, shape ``(B,)``.

    Where the processes scale data differently, the ratio is what stays (sCM, Eq. 34). Past the nominal end of the
    target its formula is continued.
    """
    return target.time_of(source.noise_level(check_precision(t)) * (target.sigma_data / source.sigma_data))


def convert_point(x: Tensor, t: Tensor, source: Process, target: Process) -> tuple[Tensor, Tensor]:
    """Return the point and time of ``target`` for a point ``x`` of shape ``(B, ...)`` of ``source`` at times ``t``.

    The point is made of the same noise, and of the same data in the target's scale.

    Raises:
        ValueError: if the target cannot represent a time, as EDM cannot represent pure noise.
    """
    check_times(source, t, x)
    _check_angle(trig_time(source, t.detach()), target)
    there = convert_time(t, source, target).clamp(max=target.t_max)
    return x * expand(target.std(there) / source.std(t), x), there


def _check_angle(t_hat: Tensor, target: Process) -> None:
    if not t_hat.numel():
        return
    end, highest = math.atan(target.highest_level / target.sigma_data), t_hat.max()
    # As angles: the ends of processes that reach pure noise differ by what float32 makes of it.
    if known(highest <= end * (1 + 1e-6)) is False:
        raise ValueError(
            f"TrigFlow time reaches to {float(highest):.6g}, which process '{target.name}' cannot represent: it ends"
            f" at {end:.6g}, at noise level {target.highest_level:.6g}"
        )


def log_ratio_rate(process: Process, t: Tensor) -> Tensor:
    """Return ``dt / d log(sigma/alpha) = alpha sigma / (alpha sigma' - alpha' sigma)``, shape ``(B,)``.

    A derivative in process time times this rate is ``cos(t̂) sin(t̂)`` times the derivative in TrigFlow time, which is
    the JVP rearrangement of sCM's Algorithm 1 in coordinates of any process: bounded where ``d/dt`` is not.
    """
    at = process.coefficients(t)
    return at.alpha * at.sigma / (at.alpha * at.sigma_prime - at.alpha_prime * at.sigma)
