"""The operation of `Chunked`: an online softmax over chunks of keys, with its tangent and its gradient.

One loop keeps, per query, the running maximum ``m`` of the logits and the sums ``l = Σ e^{S-m}``, ``Σ e^{S-m} V``,
``Σ e^{S-m} (tS V + tV)`` and ``Σ e^{S-m} tS``; a new maximum rescales them. The backward pass recomputes the
probabilities of each chunk from the log-sum-exp. No intermediate is larger than ``L x chunk``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scmreg.attention import AttentionOptions, visible
from scmreg_attention.explicit import logit_tangent, share_heads

__all__ = ["forward", "forward_jvp"]


def forward(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions, chunk: int) -> Tensor:
    """Return ``O``."""
    out: Tensor = _Attend.apply(q, k, v, None, None, None, options, chunk)[0]  # type: ignore[no-untyped-call]
    return out


def forward_jvp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    options: AttentionOptions,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Return ``(O, tO)``."""
    detached = (None if tx is None else tx.detach() for tx in (tq, tk, tv))
    out, tangent, _ = _Attend.apply(q, k, v, *detached, options, chunk)  # type: ignore[no-untyped-call]
    return out, tangent


class _Attend(torch.autograd.Function):
    """``(q, k, v, tq, tk, tv) -> (o, to, lse)``; only ``o`` has a gradient."""

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tq: Tensor | None,
        tk: Tensor | None,
        tv: Tensor | None,
        options: AttentionOptions,
        chunk: int,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        return _online_softmax(q, k, v, tq, tk, tv, options, chunk)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        q, k, v, _, _, _, options, chunk = inputs
        out, tangent, lse = output
        ctx.mark_non_differentiable(*(x for x in (tangent, lse) if x is not None))
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.options, ctx.chunk = options, chunk

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        gradients = _gradients(q, k, v, out, lse, grad, ctx.options, ctx.chunk)
        return (*gradients, None, None, None, None, None)


def _accumulation(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def _online_softmax(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    options: AttentionOptions,
    chunk: int,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return ``(o, to, lse)``; ``to`` is ``None`` without tangents."""
    dtype, total = _accumulation(q), k.shape[2]
    dual = any(tx is not None for tx in (tq, tk, tv))
    inner = tq is not None or tk is not None
    wide = q.to(dtype)
    wide_tq = None if tq is None else tq.to(dtype)
    row = q.shape[:3]
    largest = torch.full((*row, 1), float("-inf"), dtype=dtype, device=q.device)
    weight = torch.zeros((*row, 1), dtype=dtype, device=q.device)
    weight_ts = torch.zeros_like(weight)
    value = torch.zeros((*row, v.shape[3]), dtype=dtype, device=q.device)
    value_t = torch.zeros_like(value)
    for start in range(0, total, chunk):
        keys = slice(start, min(start + chunk, total))
        kc, vc = (share_heads(q, x[:, :, keys]).to(dtype) for x in (k, v))
        tkc, tvc = (None if tx is None else share_heads(q, tx[:, :, keys]).to(dtype) for tx in (tk, tv))
        logits = options.scale * (wide @ kc.mT)
        mask = visible(options, q.shape[2], torch.arange(keys.start, keys.stop, device=q.device), total)
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        top = torch.maximum(largest, logits.amax(-1, keepdim=True))
        # Where a row has seen no key yet, its maximum is -inf; 0 in its place makes every exponential an exact 0.
        base = top.masked_fill(top == float("-inf"), 0.0)
        decay = torch.exp(largest - base)
        p = torch.exp(logits - base)
        largest = top
        weight = decay * weight + p.sum(-1, keepdim=True)
        value = decay * value + p @ vc
        if not dual:
            continue
        value_t = decay * value_t
        if inner:
            p_ts = p * logit_tangent(wide, kc, wide_tq, tkc, options.scale)
            weight_ts = decay * weight_ts + p_ts.sum(-1, keepdim=True)
            value_t = value_t + p_ts @ vc
        if tvc is not None:
            value_t = value_t + p @ tvc
    empty = weight == 0
    divisor = weight.masked_fill(empty, 1.0)
    out = value / divisor
    lse = (largest.masked_fill(empty, 0.0) + torch.log(divisor)).squeeze(-1)
    tangent = (value_t - weight_ts * out) / divisor if dual else None
    return out.to(q.dtype), None if tangent is None else tangent.to(q.dtype), lse


def _gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad: Tensor,
    options: AttentionOptions,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``q``, ``k`` and ``v``, chunk by chunk."""
    dtype, total, groups = lse.dtype, k.shape[2], q.shape[1] // k.shape[1]
    wide, gradient = q.to(dtype), grad.to(dtype)
    inner = (gradient * out.to(dtype)).sum(-1, keepdim=True)
    dq = torch.zeros_like(wide)
    dks, dvs = [], []
    for start in range(0, total, chunk):
        keys = slice(start, min(start + chunk, total))
        kc, vc = (share_heads(q, x[:, :, keys]).to(dtype) for x in (k, v))
        p = torch.exp(options.scale * (wide @ kc.mT) - lse[..., None])
        mask = visible(options, q.shape[2], torch.arange(keys.start, keys.stop, device=q.device), total)
        if mask is not None:
            p = p.masked_fill(~mask, 0.0)
        ds = options.scale * p * (gradient @ vc.mT - inner)
        dq = dq + ds @ kc
        dks.append(_gather_heads(ds.mT @ wide, groups))
        dvs.append(_gather_heads(p.mT @ gradient, groups))
    return dq.to(q.dtype), torch.cat(dks, 2).to(k.dtype), torch.cat(dvs, 2).to(v.dtype)


def _gather_heads(x: Tensor, groups: int) -> Tensor:
    """Sum the gradients of the query heads that share a key head."""
    return x if groups == 1 else x.unflatten(1, (-1, groups)).sum(2)
