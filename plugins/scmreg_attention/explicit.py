"""The operation of `Math`: the attention matrix, written out."""

from __future__ import annotations

import torch
from torch import Tensor

from scmreg.attention import AttentionOptions, visible

__all__ = ["forward", "forward_jvp"]


def forward(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
    """Return ``O = softmax(scale Q Kᵀ) V``."""
    k, v = share_heads(q, k), share_heads(q, v)
    return _probabilities(q, k, options) @ v


def forward_jvp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    options: AttentionOptions,
) -> tuple[Tensor, Tensor]:
    """Return ``(O, tO)``, ``tO`` without a graph."""
    k, v = share_heads(q, k), share_heads(q, v)
    p = _probabilities(q, k, options)
    out = p @ v
    with torch.no_grad():
        p, o = p.detach(), out.detach()
        tangent = torch.zeros_like(o)
        if tq is not None or tk is not None:
            p_ts = p * logit_tangent(q, k, tq, None if tk is None else share_heads(q, tk), options.scale)
            tangent = p_ts @ v - p_ts.sum(-1, keepdim=True) * o
        if tv is not None:
            tangent = tangent + p @ share_heads(q, tv)
    return out, tangent


def share_heads(q: Tensor, k: Tensor) -> Tensor:
    """Repeat the heads of ``k`` for the groups of query heads that share them."""
    groups = q.shape[1] // k.shape[1]
    return k if groups == 1 else k.repeat_interleave(groups, dim=1)


def logit_tangent(q: Tensor, k: Tensor, tq: Tensor | None, tk: Tensor | None, scale: float) -> Tensor:
    """Return ``scale (tQ Kᵀ + Q tKᵀ)``; at least one tangent is given."""
    if tq is None:
        assert tk is not None
        return scale * (q @ tk.mT)
    total = tq @ k.mT
    return scale * (total if tk is None else total + q @ tk.mT)


def _probabilities(q: Tensor, k: Tensor, options: AttentionOptions) -> Tensor:
    logits = options.scale * (q @ k.mT)
    mask = visible(options, q.shape[2], torch.arange(k.shape[2], device=q.device), k.shape[2])
    if mask is None:
        return torch.softmax(logits, dim=-1)
    # A row that sees no key is all zeros, not NaN: the softmax runs over a harmless row that is then cleared.
    none = ~mask.any(-1, keepdim=True)
    p = torch.softmax(logits.masked_fill(~mask & ~none, float("-inf")), dim=-1)
    return p.masked_fill(none, 0.0)
