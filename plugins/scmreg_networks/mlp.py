"""The module of `MLP`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from scmreg.types import Conditions
from scmreg_networks.layers import AdaptiveDoubleNorm, ConditionEmbedding, Linear, pixel_norm

if TYPE_CHECKING:
    from scmreg_networks import MLP

__all__ = ["MLPNetwork"]


class Block(nn.Module):
    """One residual block."""

    def __init__(self, width: int, condition: int, dropout: float) -> None:
        super().__init__()
        self.norm = AdaptiveDoubleNorm(width, condition)
        self.first = Linear(width, width)
        self.second = Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        # Every block begins as the identity.
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        """Add the block's contribution to ``h`` of shape ``(B, width)``."""
        hidden = F.silu(self.first(self.norm(h, embedded)))
        out: Tensor = h + self.second(self.dropout(hidden))
        return out


class MLPNetwork(nn.Module):
    """Residual MLP on flattened samples."""

    def __init__(self, network: MLP, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        size, condition = math.prod(shape), max(2, 2 * (network.width // 4))
        self.condition = ConditionEmbedding(
            condition,
            classes,
            network.embedding,
            network.fourier_scale,
            guidance=network.guidance,
            target_time=network.target_time,
        )
        self.enter = Linear(size, network.width)
        self.blocks = nn.ModuleList(Block(network.width, condition, network.dropout) for _ in range(network.depth))
        self.leave = Linear(network.width, size)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        """Return the raw output for ``x`` of unit variance, shape ``(B, *shape)``."""
        embedded = self.condition(c_noise, cond)
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedded)
        out: Tensor = self.leave(pixel_norm(h))
        return out.reshape(x.shape)
