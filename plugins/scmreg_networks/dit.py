"""The module of `DiT`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn

from scmreg.attention import attend, prepare
from scmreg.types import Conditions
from scmreg_networks.layers import ConditionEmbedding, Linear, SiLU, TokenDoubleNorm, pixel_norm, with_own_derivative
from scmreg_networks.timm_layers import Mlp, PatchEmbed

if TYPE_CHECKING:
    from scmreg_networks import DiT

__all__ = ["DiTNetwork"]


class SelfAttention(nn.Module):
    """Multi-head self-attention with normalised queries and keys."""

    def __init__(self, width: int, heads: int, backend: str) -> None:
        super().__init__()
        self.heads, self.backend = heads, backend
        prepare(backend)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """Mix tokens of shape ``(B, L, width)``."""
        q, k, v = rearrange(self.qkv(h), "b l (three h d) -> three b h l d", three=3, h=self.heads)
        q, k = pixel_norm(q), pixel_norm(k)
        mixed = attend(q.to(v.dtype), k.to(v.dtype), v, backend=self.backend)
        out: Tensor = self.out(rearrange(mixed, "b h l d -> b l (h d)"))
        return out


class Block(nn.Module):
    """Attention and MLP, each behind its own adaptive double normalization."""

    def __init__(self, network: DiT) -> None:
        super().__init__()
        self.norm_attention = TokenDoubleNorm(network.width, network.width)
        self.attention = SelfAttention(network.width, network.heads, network.attention)
        self.norm_mlp = TokenDoubleNorm(network.width, network.width)
        hidden = int(network.width * network.mlp_ratio)
        self.mlp = with_own_derivative(Mlp(network.width, hidden, act_layer=SiLU, drop=network.dropout))

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        """Transform tokens of shape ``(B, L, width)``."""
        h = h + self.attention(self.norm_attention(h, embedded))
        out: Tensor = h + self.mlp(self.norm_mlp(h, embedded))
        return out


class DiTNetwork(nn.Module):
    """A transformer on the patches of an image."""

    def __init__(self, network: DiT, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.patch, self.rows = network.patch, height // network.patch
        self.enter = PatchEmbed((height, width), network.patch, channels, network.width)
        self.position = nn.Parameter(torch.randn(1, self.enter.num_patches, network.width) * 0.02)
        self.condition = ConditionEmbedding(
            network.width,
            classes,
            network.embedding,
            network.fourier_scale,
            guidance=network.guidance,
            target_time=network.target_time,
        )
        self.blocks = nn.ModuleList(Block(network) for _ in range(network.depth))
        self.norm = TokenDoubleNorm(network.width, network.width)
        self.leave = Linear(network.width, channels * network.patch**2)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        """Return the raw output for images of unit variance, shape ``(B, C, H, W)``."""
        embedded = self.condition(c_noise, cond)
        # Patches come with channels first in memory, which every product after would be slowed by.
        h = self.enter(x).contiguous() + self.position
        for block in self.blocks:
            h = block(h, embedded)
        out: Tensor = rearrange(
            self.leave(self.norm(h, embedded)),
            "b (i j) (c p q) -> b c (i p) (j q)",
            i=self.rows,
            p=self.patch,
            q=self.patch,
        )
        return out
