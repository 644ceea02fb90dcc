"""Layers that the networks share: embeddings of time and class, and adaptive double normalization.

All are safe under forward-mode differentiation: nothing writes to parameters or buffers.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad as fwad

from scmreg.attention import is_dual
from scmreg.errors import CompositionError
from scmreg.types import Conditions

__all__ = [
    "AdaptiveDoubleNorm",
    "ConditionEmbedding",
    "Linear",
    "SiLU",
    "TimeEmbedding",
    "TokenDoubleNorm",
    "pixel_norm",
    "with_own_derivative",
]


class Linear(nn.Linear):
    """A linear layer that takes the derivative of dual numbers itself: ``(W x + b, W tx)``.

    torch gives weight and bias tangents of zero and adds them, through code in Python that takes longer than the
    product in small networks.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x + b`` for ``x`` of shape ``(..., in)``."""
        if not is_dual(x):
            return F.linear(x, self.weight, self.bias)
        primal, tangent = fwad.unpack_dual(x)
        dual: Tensor = fwad.make_dual(F.linear(primal, self.weight, self.bias), F.linear(tangent, self.weight))
        return dual


class SiLU(nn.SiLU):
    """``x sigmoid(x)`` that takes the derivative of dual numbers itself, by torch's fused function.

    The tangent is without gradient, as that of attention is. torch's own, which has one, is made of a dozen functions.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x sigmoid(x)``, elementwise."""
        if not is_dual(x):
            return F.silu(x)
        primal, tangent = fwad.unpack_dual(x)
        with torch.no_grad():
            tangent = torch.ops.aten.silu_backward(tangent, primal)
        dual: Tensor = fwad.make_dual(F.silu(primal), tangent)
        return dual


def with_own_derivative(module: nn.Module) -> nn.Module:
    """Make a `Linear` of every linear layer of another library's module, which is returned; weights and names stay."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear
    return module


def pixel_norm(v: Tensor) -> Tensor:
    """Return ``y = v / sqrt(mean(v²) + eps)`` over the channels (Karras et al. 2018), eps being 1e-4.

    The derivative along ``tv`` is ``(tv - y mean(y tv)) / sqrt(mean(v²) + eps)``, taken here for the same reason as in
    `Linear`.
    """
    primal, tangent = fwad.unpack_dual(v) if is_dual(v) else (v, None)
    scale = torch.rsqrt(primal.square().mean(-1, keepdim=True) + 1e-4)
    out = primal * scale
    if tangent is None:
        return out
    dual: Tensor = fwad.make_dual(out, scale * (tangent - out * (out * tangent).mean(-1, keepdim=True)))
    return dual


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time (sCM, Sec. 4.1).

    Args:
        channels: size of the embedding, even.
        kind: ``positional`` has frequencies from 1 down to 1e-4 in geometric steps; ``fourier`` has
            normal random ones, ``2 pi scale omega``; each has a sine and a cosine.
        scale: scale of the random frequencies.
    """

    def __init__(self, channels: int, kind: Literal["positional", "fourier"], scale: float) -> None:
        super().__init__()
        half = channels // 2
        if kind == "positional":
            frequencies = 10_000.0 ** (-torch.arange(half) / half)
        else:
            frequencies = 2 * math.pi * scale * torch.randn(half)
        self.register_buffer("frequencies", frequencies)
        self.frequencies: Tensor

    def forward(self, c_noise: Tensor) -> Tensor:
        """Embed times of shape ``(B,)`` as ``(B, channels)``."""
        angle = c_noise[:, None] * self.frequencies.to(c_noise.dtype)
        return torch.cat([torch.cos(angle), torch.sin(angle)], dim=1) * math.sqrt(2)


class ConditionEmbedding(nn.Module):
    """One vector for time, class, scale of guidance and target time, in float32 whatever the network's precision.

    A time in half precision would ruin the tangent: its derivative is a difference of neighbouring values.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        kind: Literal["positional", "fourier"],
        scale: float,
        *,
        guidance: bool = False,
        target_time: bool = False,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.time = TimeEmbedding(width, kind, scale)
        self.first = Linear(width, width)
        self.second = Linear(width, width)
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.guidance = _told(width, kind, scale) if guidance else None
        self.target_time = _told(width, kind, scale) if target_time else None

    def forward(self, c_noise: Tensor, cond: Conditions) -> Tensor:
        """Return the embedding, shape ``(B, width)``."""
        with torch.autocast(c_noise.device.type, enabled=False):
            hidden: Tensor = F.silu(self.first(self.time(c_noise).to(self.first.weight.dtype)))
            if self.label is not None:
                label = cond.label
                if label is None:
                    label = torch.full_like(c_noise, self.classes, dtype=torch.long)
                hidden = hidden + self.label(label)
            if cond.guidance is not None:
                if self.guidance is None:
                    raise CompositionError("this network takes no scale of guidance", "build it with guidance=True")
                hidden = hidden + self.guidance(cond.guidance.to(c_noise.dtype))
            if cond.target_time is not None:
                if self.target_time is None:
                    raise CompositionError("this network takes no target time", "build it with target_time=True")
                hidden = hidden + self.target_time(cond.target_time.to(c_noise.dtype))
            embedded: Tensor = F.silu(self.second(hidden))
            return embedded


def _told(width: int, kind: Literal["positional", "fourier"], scale: float) -> nn.Sequential:
    """Return an embedding of a further number that changes nothing at first: the weights may be those of a model that
    was never told one.
    """
    told = Linear(width, width)
    nn.init.zeros_(told.weight)
    nn.init.zeros_(told.bias)
    return nn.Sequential(TimeEmbedding(width, kind, scale), told)


class AdaptiveDoubleNorm(nn.Module):
    """``y = norm(x) * pnorm(s(c)) + pnorm(b(c))`` (sCM, Sec. 4.1).

    Args:
        width: channels of ``x``.
        condition: channels of the condition.

    The slope of `pixel_norm` at zero is ``eps^(-1/2)``, so the layer that makes ``s`` and ``b`` never starts at zero.
    It starts at ``s = 1`` and a random ``b`` of unit size, where that slope is about one and time moves neither much.
    """

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.width = width
        self.modulation = Linear(condition, 2 * width)
        with torch.no_grad():
            self.modulation.bias[:width] = 1.0
            self.modulation.bias[width:].normal_()

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        """Normalise ``x`` of shape ``(B, ..., width)`` under a condition of shape ``(B, condition)``."""
        scale, shift = self.modulation(embedded).chunk(2, dim=-1)
        shape = (len(x), *[1] * (x.ndim - 2), self.width)
        return self.modulate(pixel_norm(x), pixel_norm(scale).reshape(shape), pixel_norm(shift).reshape(shape))

    def modulate(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return ``x scale + shift``."""
        return x * scale + shift


class TokenDoubleNorm(AdaptiveDoubleNorm):
    """Adaptive double normalization of many tokens: value and derivative in as few passes over them as can be."""

    def modulate(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return ``x scale + shift``, of dual numbers with its derivative."""
        if not is_dual(x, scale, shift):
            return torch.addcmul(shift, x, scale)
        (x, tx), (scale, t_scale), (shift, t_shift) = (fwad.unpack_dual(part) for part in (x, scale, shift))
        total = t_shift
        for first, second in ((x, t_scale), (tx, scale)):
            if first is not None and second is not None:
                total = first * second if total is None else torch.addcmul(total, first, second)
        dual: Tensor = fwad.make_dual(torch.addcmul(shift, x, scale), total.expand(x.shape))
        return dual
