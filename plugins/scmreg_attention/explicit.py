"""The operation of `Math`: the attention matrix, written out."""

from __future__ import annotations

import torch
from torch import Tensor

from scmreg.attention import AttentionOptions, visible

__all__ = ["forward", "forward_jvp"]


def forward(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
    """Return ``O = softmax(scale Q Kᵀ) V``."""
    k, v = (share_heads(q, seen(x, options)) for x in (k, v))
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
    """Return ``(O, tO)``, ``tO`` without a graph. Both can be differentiated in forward mode again."""
    k, v = (share_heads(q, seen(x, options)) for x in (k, v))
    p = _probabilities(q, k, options)
    out = p @ v
    with torch.no_grad():
        tk, tv = (None if tx is None else share_heads(q, seen(tx, options)) for tx in (tk, tv))
        tangent = torch.zeros_like(out)
        if tq is not None or tk is not None:
            p_ts = p * _logit_tangent(q, k, tq, tk, options.scale)
            tangent = p_ts @ v - p_ts.sum(-1, keepdim=True) * out
        if tv is not None:
            tangent = tangent + p @ tv
    return out, tangent


def seen(x: Tensor, options: AttentionOptions) -> Tensor:
    """Put zeros where ``x (B, Hk, S, D)`` belongs to a key that is never seen: ``0 · NaN`` is not 0."""
    if options.key_lengths is None:
        return x
    inside = torch.arange(x.shape[2], device=x.device) < options.key_lengths[:, None]
    return x.masked_fill(~inside[:, None, :, None], 0.0)


def share_heads(q: Tensor, k: Tensor) -> Tensor:
    """Repeat the heads of ``k`` for the groups of query heads that share them."""
    groups = q.shape[1] // k.shape[1]
    return k if groups == 1 else k.repeat_interleave(groups, dim=1)


def _logit_tangent(q: Tensor, k: Tensor, tq: Tensor | None, tk: Tensor | None, scale: float) -> Tensor:
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
