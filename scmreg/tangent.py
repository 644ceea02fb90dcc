"""The tangent of a consistency function: taken in any process, treated in TrigFlow time (sCM, Eq. 6, Algorithm 1).

With ``F̂`` the unit velocity (:meth:`~scmreg.parameterization.Parameterization.unit_velocity`) and hats for TrigFlow
coordinates, ``g = cos(t̂) df/dt̂`` is

``g = -cos²(t̂) (sigma_data F̂ - dx̂/dt̂) - r [cos(t̂) sin(t̂) x̂ + sigma_data · cos(t̂) sin(t̂) dF̂/dt̂]``

with the warm-up factor ``r``. The last term is one JVP of ``F̂`` in the process's own coordinates, along the direction
of motion times `log_ratio_rate`, so that neither time nor network leaves those coordinates.

A model of several segments jumps to the beginning ``ŝ`` of the segment that ``t̂`` lies in. The cosines and sines above
are then those of ``t̂ - ŝ``, and ``g = cos(t̂ - ŝ) df^{t→s}/dt̂``; one segment has ``ŝ = 0``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from scmreg.coordinates import log_ratio_rate, to_trig
from scmreg.denoiser import Denoiser
from scmreg.rng import rewound
from scmreg.types import Conditions, expand, norms

__all__ = [
    "Direction",
    "Motion",
    "Normalization",
    "Quantity",
    "TangentPass",
    "consistency_tangent",
    "discrete_tangent",
    "evaluate_with_difference",
    "evaluate_with_jvp",
    "normalize",
    "segment_begin",
    "segment_ends",
    "tangent_parts",
    "unit_velocity",
]

Normalization = Literal["l2", "rms", "clip", "none"]
TangentPass = Literal["joint", "separate"]
Raw = Callable[[Tensor, Tensor, Conditions], Tensor]
"""``(x, t, cond) -> F``: a Denoiser, or what wraps one."""


Quantity = Callable[[Denoiser, Tensor, Tensor, Tensor], Tensor]
"""``(denoiser, raw, x, t) -> quantity``: what a raw output says, such as `Denoiser.unit_velocity`. Compiled code tells
one from another by identity: a function of a module, or a method."""


@dataclass(frozen=True)
class Direction:
    """Where a sample is and where it goes, in the process's own coordinates: what a derivative is taken along."""

    x: Tensor
    """``x_t``, shape ``(B, ...)``."""
    t: Tensor
    """Process time, shape ``(B,)``."""
    x_rate: Tensor
    """``dx/dt`` times `t_rate`, the shape of ``x``."""
    t_rate: Tensor
    """``dt/ds`` of the parameter ``s`` that the derivative is taken in, shape ``(B,)``; 1 for the time itself."""


@dataclass(frozen=True)
class Motion(Direction):
    """A direction in TrigFlow's coordinates too; its `t_rate` is ``cos sin`` of `span`, over ``dt̂/dt``, which is
    `log_ratio_rate` where there is one segment.
    """

    x_hat: Tensor
    """TrigFlow point."""
    t_hat: Tensor
    """TrigFlow time."""
    velocity_hat: Tensor
    """``dx̂/dt̂ = cos(t̂) sigma_data noise - sin(t̂) data``."""
    span: Tensor
    """TrigFlow time from the beginning of the segment, ``t̂ - ŝ``, shape ``(B,)``."""


LAST_LEVEL = 80.0
"""Noise level sigma/alpha at which the last segment ends, and sampling begins."""


def segment_ends(sigma_data: float, segments: int) -> tuple[float, ...]:
    """Return the TrigFlow times at which the segments end, falling: equal parts of the way to `LAST_LEVEL`."""
    last = math.atan(LAST_LEVEL / sigma_data)
    return tuple(last * number / segments for number in range(segments, 0, -1))


def segment_begin(t_hat: Tensor, sigma_data: float, segments: int) -> Tensor:
    """Return the beginning of the segment that each TrigFlow time lies in; the last one goes on to pure noise."""
    length = math.atan(LAST_LEVEL / sigma_data) / segments
    # The end of a segment is its own. What rounding puts past it is no time in the next one.
    number = (torch.ceil(t_hat / length - 1e-6) - 1).clamp(0, segments - 1)
    return number * length


def motion(denoiser: Denoiser, x: Tensor, t: Tensor, data: Tensor, noise: Tensor, segments: int = 1) -> Motion:
    """Describe the motion of ``x`` at ``t`` that is due to the pair ``(data, noise)``, in one of so many segments.

    For consistency training the pair is the one that ``x`` was made of; for distillation it is what the teacher
    predicts (sCM, Sec. 2.2), so that ``dx/dt`` is the teacher's probability flow. Either way the pair makes up the
    sample, ``x = alpha data + sigma noise``, which the change to TrigFlow coordinates relies on.
    """
    process = denoiser.process
    rate = log_ratio_rate(process, t)
    x_hat, t_hat = to_trig(process, x, t)
    cos, sin = expand(torch.cos(t_hat), x), expand(torch.sin(t_hat), x)
    span = t_hat
    if segments > 1:
        span = t_hat - segment_begin(t_hat, process.sigma_data, segments)
        rate = rate * (torch.sin(2 * span) / torch.sin(2 * t_hat))
    return Motion(
        x=x,
        t=t,
        x_rate=expand(rate, x) * process.velocity(data, noise, t),
        t_rate=rate,
        x_hat=x_hat,
        t_hat=t_hat,
        velocity_hat=cos * process.sigma_data * noise - sin * data,
        span=span,
    )


def unit_velocity(net: Raw, denoiser: Denoiser, x: Tensor, t: Tensor, cond: Conditions) -> Tensor:
    """Return ``F̂(x, t)`` of a possibly wrapped denoiser."""
    return denoiser.unit_velocity(net(x, t, cond), x, t)


def evaluate_with_jvp(
    net: Raw,
    denoiser: Denoiser,
    at: Direction,
    cond: Conditions,
    tangent_pass: TangentPass,
    *,
    compiled: bool = False,
    quantity: Quantity = Denoiser.unit_velocity,
) -> tuple[Tensor, Tensor]:
    """Return ``F̂``, or another quantity, with its gradient, and its derivative along the direction, without.

    Along a `Motion` the derivative of ``F̂`` is ``cos sin dF̂/dt̂`` of `Motion.span`. Conditions stand still.

    ``joint`` takes both from one evaluation, in which value and tangent share every random draw by construction.
    ``separate`` takes the JVP without a graph and evaluates again for the gradient, with the random state of the first
    evaluation: it is what activation checkpointing needs, and equal to rounding.

    ``compiled`` runs `torch.compile` around the whole JVP: inside of one, a compiled module falls back to eager.
    """
    value_and_jvp = _compiled_value_and_jvp() if compiled else _value_and_jvp
    if tangent_pass == "joint":
        return value_and_jvp(net, denoiser, at, cond, quantity)
    with rewound(at.x.device), torch.no_grad():
        _, tangent = value_and_jvp(net, denoiser, at, cond, quantity)
    return quantity(denoiser, net(at.x, at.t, cond), at.x, at.t), tangent


def evaluate_with_difference(
    net: Raw, denoiser: Denoiser, at: Motion, cond: Conditions, part: float
) -> tuple[Tensor, Tensor]:
    """Return what `evaluate_with_jvp` does, with a central difference along the motion in place of the derivative.

    The sample moves to ``x ± h dx/dt`` at ``t ± h``, ``h`` being ``part`` of ``t``, not past the end of the process.
    All three evaluations share their random draws. The error has two parts: rounding over ``h``, and the third
    derivative times ``h²``.

    Raises:
        ValueError: in half precision, which rounds the difference away.
    """
    if at.x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(at.x.device.type):
        raise ValueError("a finite difference needs float32 at least: half precision rounds it away")
    times = (at.t + part * at.t).clamp(max=denoiser.process.t_max), at.t - part * at.t
    sides = []
    for t in times:
        with rewound(at.x.device), torch.no_grad():
            x = at.x + expand((t - at.t) / at.t_rate, at.x) * at.x_rate
            sides.append(unit_velocity(net, denoiser, x, t, cond))
    slope = (sides[0] - sides[1]) * expand(at.t_rate / (times[0] - times[1]), at.x)
    return unit_velocity(net, denoiser, at.x, at.t, cond), slope


def _value_and_jvp(
    net: Raw, denoiser: Denoiser, at: Direction, cond: Conditions, quantity: Quantity = Denoiser.unit_velocity
) -> tuple[Tensor, Tensor]:
    def evaluate(x: Tensor, t: Tensor) -> Tensor:
        return quantity(denoiser, net(x, t, cond), x, t)

    value, tangent = jvp(evaluate, (at.x, at.t), (at.x_rate, at.t_rate))
    return value, tangent.detach()


@functools.cache
def _compiled_value_and_jvp() -> Callable[..., tuple[Tensor, Tensor]]:
    compiled: Callable[..., tuple[Tensor, Tensor]] = torch.compile(_value_and_jvp)
    return compiled


def jvp(function: Callable[..., Tensor], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Return the value of ``function`` at ``primals`` and its derivative along ``tangents``, by forward-mode AD."""
    value, tangent = torch.func.jvp(function, primals, tangents)  # type: ignore[misc]
    return value, tangent


def consistency_tangent(value: Tensor, jvp_hat: Tensor, at: Motion, sigma_data: float, warmup: float) -> Tensor:
    """Return ``g = cos(t̂ - ŝ) df^{t→s}/dt̂``, its unstable part scaled by the warm-up factor (sCM, Algorithm 1).

    Args:
        value: ``F̂``, without gradient, shape ``(B, ...)``.
        jvp_hat: ``cos sin dF̂/dt̂`` of the span. (The printed algorithm lacks the factor ``sigma_data`` of this term.)
        at: the motion that the JVP was taken along.
        sigma_data: standard deviation of the data.
        warmup: ``r`` in ``[0, 1]``; at 1 the result is the derivative itself.
    """
    cos, sin = expand(torch.cos(at.span), value), expand(torch.sin(at.span), value)
    stable = -(cos**2) * (sigma_data * value - at.velocity_hat)
    return stable - warmup * (cos * sin * at.x_hat + sigma_data * jvp_hat)


def discrete_tangent(
    value: Tensor, earlier: Tensor, at: Motion, r_hat: Tensor, gap: Tensor, sigma_data: float, warmup: float
) -> Tensor:
    """Return ``g = cos(t̂) Delta`` for the difference quotient ``Delta = (f(x_t, t) - f(x_r, r)) / sin(t̂ - r̂)`` (sCM,
    App. E, Eq. 37), its unstable part scaled by the warm-up factor.

    ``x_r`` is what a step of DDIM from ``x_t`` along the motion leads to. (The printed Algorithm 2 has the tangent of
    continuous time in its place; Eq. 37 is the one that the appendix derives.)

    Args:
        value: ``F̂(x_t, t)``, without gradient, shape ``(B, ...)``.
        earlier: ``F̂(x_r, r)``, without gradient; whatever it is at ``r = 0``, where it has the factor 0, it is finite.
        at: the motion at ``t``.
        r_hat: TrigFlow time of ``r``, shape ``(B,)``.
        gap: ``t̂ - r̂``, positive, shape ``(B,)``.
        sigma_data: standard deviation of the data.
        warmup: ``w`` in ``[0, 1]``; at 1 the result is the difference quotient itself.
    """
    cos = expand(torch.cos(at.t_hat), value)
    cos_r, sin_r = expand(torch.cos(r_hat), value), expand(torch.sin(r_hat), value)
    cos_gap, sin_gap = expand(torch.cos(gap), value), expand(torch.sin(gap), value)
    slope = (cos_gap * value - earlier) / sin_gap
    delta = -cos_r * (sigma_data * value - at.velocity_hat) - warmup * sin_r * (at.x_hat + sigma_data * slope)
    return cos * delta


def tangent_parts(net: Raw, denoiser: Denoiser, at: Motion, cond: Conditions) -> tuple[Tensor, Tensor]:
    """Return the two parts that add up to ``g = cos(t̂ - ŝ) df/dt̂``, without gradient (sCM, Fig. 4).

    They are ``cos(t̂ - ŝ)`` times ``∇f · dx̂/dt̂``, due to the motion of the sample, and times ``∂f/∂t̂``, due to the time
    that the network is told: the part that becomes unstable first. Each takes a JVP of its own, with the same random
    draws of the network; there is no warm-up factor.

    Args:
        net: called as ``net(x, t, cond)``, returns the raw output.
        denoiser: its formulas.
        at: the motion of the samples.
        cond: what else the network is told.

    Returns:
        The part in space and the part in time, each of the shape of ``at.x``.
    """
    sigma_data = denoiser.process.sigma_data
    cos, sin = expand(torch.cos(at.span), at.x), expand(torch.sin(at.span), at.x)
    # x̂ moves and t̂ stands; then t̂ moves and x̂ stands, for which x has to move with the scale of the process.
    scale = expand(denoiser.process.std(at.t) / sigma_data, at.x)
    along_x = replace(at, x_rate=scale * cos * sin * at.velocity_hat, t_rate=torch.zeros_like(at.t_rate))
    along_t = replace(at, x_rate=at.x_rate - along_x.x_rate)
    with torch.no_grad():
        with rewound(at.x.device):
            value, in_space = _value_and_jvp(net, denoiser, along_x, cond)
        _, in_time = _value_and_jvp(net, denoiser, along_t, cond)
    return (
        cos**2 * at.velocity_hat - sigma_data * in_space,
        -(cos * sin * at.x_hat) - sigma_data * (cos**2 * value + in_time),
    )


def normalize(g: Tensor, how: Normalization, c: float) -> Tensor:
    """Treat the tangent against gradient variance (sCM, Sec. 4.2).

    Args:
        g: tangent, shape ``(B, ...)``.
        how: ``l2`` divides each sample by ``||g|| + c``; ``rms`` by ``||g||/sqrt(D) + c``, another method with
            other learning rates; ``clip`` limits every element to ``[-1, 1]``; ``none`` leaves it.
        c: keeps small tangents small; 0.1 in the paper.
    """
    if how == "none":
        return g
    if how == "clip":
        return g.clamp(-1, 1)
    norm = norms(g)
    if how == "rms":
        norm = norm / g[0].numel() ** 0.5
    return g / expand(norm + c, g)
