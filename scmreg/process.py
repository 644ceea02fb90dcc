"""Diffusion processes: how data turn into noise, ``x_t = alpha(t) x_0 + sigma(t) noise``.

``noise`` is always standard normal; TrigFlow's own noise ``z`` is ``sigma_data * noise``. Times are vectors of one
entry per sample, float32 at least, and grow from clean to noise.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from scmreg.component import Component
from scmreg.types import Positive, expand

__all__ = ["Coefficients", "Process"]


class Coefficients(NamedTuple):
    """The coefficients of a process at given times and their derivatives in time, each of shape ``(B,)``."""

    alpha: Tensor
    sigma: Tensor
    alpha_prime: Tensor
    sigma_prime: Tensor


class Process(Component, kind="process"):
    """A Gaussian corruption ``x_t = alpha(t) x_0 + sigma(t) noise`` with ``alpha(0) = 1`` and ``sigma(0) = 0``.

    Implement `coefficients` and set `t_max`; override `time_of` where the inverse has a closed form. ``sigma/alpha``
    must grow strictly with ``t``.
    """

    sigma_data: Positive = 0.5
    """Standard deviation that data are scaled to; every other component reads it here."""

    @property
    @abstractmethod
    def t_max(self) -> float:
        """The end of the process: the time of (almost) pure noise."""

    @abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """Return alpha, sigma and their derivatives at times ``t`` of shape ``(B,)``."""

    def time_of(self, ratio: Tensor) -> Tensor:
        """Return the time at which the noise level ``sigma/alpha`` is ``ratio``, shape ``(B,)`` as given.

        By bisection in float64, unless the process has a closed form; it has a first derivative in either case. Past
        the end of the process a closed form is continued, bisection gives ``t_max``.
        """
        low = torch.zeros_like(ratio, dtype=torch.float64)
        high = torch.full_like(low, self.t_max)
        fixed = ratio.detach()
        target = fixed.to(torch.float64)
        for _ in range(64):
            middle = (low + high) / 2
            at = self.coefficients(middle)
            below = at.sigma < target * at.alpha
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        at = self.coefficients(high)  # never at 0, where a derivative may be infinite
        slope = at.alpha**2 / (at.alpha * at.sigma_prime - at.alpha_prime * at.sigma)
        # Bisection alone has no derivative; this term is zero in value and carries the one of the inverse function.
        change = torch.where(torch.isfinite(ratio), ratio - fixed, 0.0)
        found = torch.where(target > 0, high, 0.0)
        return found.to(ratio.dtype) + slope.to(ratio.dtype) * change

    def noise_level(self, t: Tensor) -> Tensor:
        """Return ``sigma/alpha``, which grows from 0 with the time, shape ``(B,)``."""
        at = self.coefficients(t)
        return at.sigma / at.alpha

    @property
    def highest_level(self) -> float:
        """The noise level at the end of the process."""
        return float(self.noise_level(torch.tensor([self.t_max], dtype=torch.float64)))

    def std(self, t: Tensor) -> Tensor:
        """Return the standard deviation of ``x_t``, ``sqrt(alpha² sigma_data² + sigma²)``, shape ``(B,)``."""
        at = self.coefficients(t)
        return torch.hypot(at.alpha * self.sigma_data, at.sigma)

    def snr(self, t: Tensor) -> Tensor:
        """Return the signal-to-noise ratio ``alpha² sigma_data² / sigma²`` (sCM, Eq. 34), shape ``(B,)``."""
        at = self.coefficients(t)
        return (at.alpha * self.sigma_data / at.sigma) ** 2

    def perturb(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return ``x_t = alpha x_0 + sigma noise``.

        Args:
            x0: data scaled to ``sigma_data``, shape ``(B, ...)``.
            noise: standard normal, the shape of ``x0``.
            t: times, shape ``(B,)``.
        """
        at = self.coefficients(check_times(self, t, x0))
        return expand(at.alpha, x0) * x0 + expand(at.sigma, x0) * noise

    def velocity(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the conditional velocity ``dx_t/dt = alpha' x_0 + sigma' noise``, the shape of ``x0``."""
        at = self.coefficients(check_times(self, t, x0))
        return expand(at.alpha_prime, x0) * x0 + expand(at.sigma_prime, x0) * noise

    def prior(self, noise: Tensor, t: Tensor) -> Tensor:
        """Scale standard normal ``noise`` to the marginal standard deviation at ``t``: where sampling starts."""
        return expand(self.std(check_times(self, t, noise)), noise) * noise


def known(condition: Tensor) -> bool | None:
    """Return the value of a condition where it can be looked at without waiting, ``None`` elsewhere: on accelerators,
    inside of `torch.compile` and of `torch.vmap`.
    """
    if condition.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    try:
        return bool(condition)
    except RuntimeError:  # under vmap there are no values to look at
        return None


def check_precision(t: Tensor, name: str = "t") -> Tensor:
    """Return ``t``, called ``name``, if it is float32 or float64.

    Raises:
        ValueError: if it is of half precision, in which a time embedding loses its derivative, or no time at all.
    """
    if t.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} is {t.dtype}: times must be float32 or float64, half precision ruins the tangent")
    return t


def check_times(process: Process, t: Tensor, x: Tensor, name: str = "t") -> Tensor:
    """Return ``t``, called ``name``, if it holds one time of the process per sample, in float32 or float64.

    The values are looked at where that is free of waiting (see `known`).

    Raises:
        ValueError: if it is of half precision, in which a time embedding loses its derivative, of another length, or
            outside of ``[0, t_max]``.
    """
    check_precision(t, name)
    if t.shape != x.shape[:1]:
        raise ValueError(
            f"{name} has shape {tuple(t.shape)}, but x has {x.shape[0]} samples: give one time per sample, shape (B,)"
        )
    if torch.compiler.is_compiling() or not t.numel():
        return t
    lowest, highest = torch.aminmax(t.detach())
    # The end itself may have been rounded to the precision of t, or computed with the rounding of float64.
    end = max(float(torch.tensor(process.t_max, dtype=t.dtype)), process.t_max) * (1 + 1e-12)
    if known((lowest >= 0) & (highest <= end)) is False:
        raise ValueError(
            f"{name} reaches from {float(lowest):.10g} to {float(highest):.10g}, outside of the times of process"
            f" '{process.name}', which go from 0 (data) to {process.t_max:.10g} (noise)"
        )
    return t
