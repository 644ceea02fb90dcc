"""The kernel of `Chunked`: attention in blocks of queries, with its tangent and its gradient.

A block's rows of the attention matrix are made, used and forgotten, so no intermediate is larger than a block, and a
block is small enough to stay in the cache: that is what makes it quicker than the whole matrix. The rows are whole, so
the softmax needs no second pass over the keys and no rescaling. The derivative of a softmax, ``P∘(tS - rowsum(P∘tS))``,
is symmetric: one fused function of torch serves the tangent and the gradient. The gradient makes the rows once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scmreg.attention import AttentionOptions
from scmreg.composable import Kernel
from scmreg_attention.explicit import seen

__all__ = ["KERNEL", "compute", "gradients"]

LOGITS = {"cpu": 2**18}
"""Numbers of a block of the attention matrix: a megabyte in float32, which a core's cache holds."""
LOGITS_ELSEWHERE = 2**25
"""On a device of many cores, enough to keep them busy."""
ROWS = 16
"""Queries of a block at least, however many keys there are."""


def compute(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    options: AttentionOptions,
    results: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Fill ``o`` and, given a tangent, ``to``."""
    cut = _Cut(q, k, options)
    out, tangent, _ = results
    dual = any(tx is not None for tx in (tq, tk, tv))
    wide_q, wide_k, wide_v = cut.queries(q).mul_(options.scale), cut.keys(k), cut.keys(v)
    wide_tq = None if tq is None else cut.queries(tq).mul_(options.scale)
    wide_tk, wide_tv = (None if tx is None else cut.keys(tx) for tx in (tk, tv))
    wide_out = torch.empty_like(wide_q)
    wide_tangent = torch.empty_like(wide_q) if dual else None
    for block in cut.blocks():
        qb, kb, vb = block.queries(wide_q), block.keys(wide_k), block.keys(wide_v)
        p = block.probabilities(qb, kb)
        block.put(wide_out, p @ vb)
        if wide_tangent is None:
            continue
        total: Tensor | None = None
        if wide_tq is not None or wide_tk is not None:
            ts = None if wide_tq is None else block.queries(wide_tq) @ kb.mT
            if wide_tk is not None:
                ts = _plus(ts, qb, block.keys(wide_tk).mT)
            assert ts is not None
            total = _softmax_derivative(ts, p) @ vb
        if wide_tv is not None:
            total = _plus(total, p, block.keys(wide_tv))
        assert total is not None
        block.put(wide_tangent, total)
    out.copy_(wide_out.view(out.shape))
    if wide_tangent is not None:
        tangent.copy_(wide_tangent.view(out.shape))


def gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, options: AttentionOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(dq, dk, dv)``; of what the kernel returned, nothing is needed."""
    cut = _Cut(q, k, options)
    wide_q, wide_grad, wide_k, wide_v = cut.queries(q).mul_(options.scale), cut.queries(grad), cut.keys(k), cut.keys(v)
    dq, dk, dv = torch.empty_like(wide_q), torch.zeros_like(wide_k), torch.zeros_like(wide_v)
    for block in cut.blocks():
        qb, gb, kb, vb = block.queries(wide_q), block.queries(wide_grad), block.keys(wide_k), block.keys(wide_v)
        p = block.probabilities(qb, kb)
        ds = _softmax_derivative(gb @ vb.mT, p)
        block.put(dq, ds @ kb)
        block.keys(dk).baddbmm_(ds.mT, qb)
        block.keys(dv).baddbmm_(p.mT, gb)
    dq.mul_(options.scale)
    return dq.view(q.shape).to(q.dtype), dk.view(k.shape).to(k.dtype), dv.view(v.shape).to(v.dtype)


def _plus(total: Tensor | None, x: Tensor, y: Tensor) -> Tensor:
    """Return ``total + x y``; no total is one of zero."""
    return x @ y if total is None else total.baddbmm_(x, y)


def _softmax_derivative(ts: Tensor, p: Tensor) -> Tensor:
    """Return ``P∘(tS - rowsum(P∘tS))``."""
    derivative: Tensor = torch.ops.aten._softmax_backward_data(ts, p, -1, p.dtype)
    return derivative


class _Cut:
    """How attention is cut into blocks. Heads are counted over the batch; query heads that share a key head lie
    together, ``(B Hk, G, L, D)``."""

    def __init__(self, q: Tensor, k: Tensor, options: AttentionOptions) -> None:
        self.options = options
        self.size, self.heads = k.shape[0], k.shape[1]
        self.groups, self.rows, self.total = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
        self.dtype = torch.promote_types(q.dtype, torch.float32)
        self.device = q.device

    def queries(self, x: Tensor) -> Tensor:
        """Copy ``(B, H, L, D)`` to ``(B Hk, G, L, D)``."""
        wide = torch.empty(x.shape, dtype=self.dtype, device=x.device).copy_(x)
        return wide.view(self.size * self.heads, self.groups, self.rows, x.shape[3])

    def keys(self, x: Tensor) -> Tensor:
        """Bring ``(B, Hk, S, D)`` to ``(B Hk, S, D)``, with zeros for keys that are never seen."""
        return seen(x, self.options).to(self.dtype).reshape(self.size * self.heads, self.total, x.shape[3])

    def blocks(self) -> Iterator[_Block]:
        """Yield blocks of about equal size: rows of one head, or whole heads where they are small."""
        room, every = LOGITS.get(self.device.type, LOGITS_ELSEWHERE), self.size * self.heads
        row = max(1, self.groups * self.total)
        rows = min(self.rows, max(ROWS, room // row))
        rows = -(-self.rows // -(-self.rows // rows))
        heads = max(1, room // (row * rows))
        for head in range(0, every, heads):
            for start in range(0, self.rows, rows):
                stop = min(start + rows, self.rows)
                yield self._block(slice(head, min(head + heads, every)), slice(start, stop))

    def _block(self, heads: slice, rows: slice) -> _Block:
        causal, lengths = self.options.causal, self.options.key_lengths
        seen = max(0, min(self.total, rows.stop + self.total - self.rows)) if causal else self.total
        if not causal and lengths is None:
            return _Block(heads, rows, seen, None)
        limit = torch.full((1, 1, 1), self.total, device=self.device)
        if causal:
            own = torch.arange(rows.start, rows.stop, device=self.device) + 1 + self.total - self.rows
            limit = own.repeat(self.groups)[None, :, None]
        if lengths is not None:
            limit = torch.minimum(limit, lengths.repeat_interleave(self.heads)[heads, None, None])
        return _Block(heads, rows, seen, limit)


@dataclass(frozen=True)
class _Block:
    """Some queries of some heads, and the keys that any of them sees."""

    heads: slice
    rows: slice
    seen: int
    limit: Tensor | None
    """Number of keys that each query sees, broadcastable to ``(heads, G r, 1)``; ``None`` if all are seen."""

    def queries(self, x: Tensor) -> Tensor:
        """Cut ``(B Hk, G, L, D)`` to ``(heads, G r, D)``."""
        return x[self.heads, :, self.rows].flatten(1, 2)

    def keys(self, x: Tensor) -> Tensor:
        """Cut ``(B Hk, S, D)`` to ``(heads, seen, D)``."""
        return x[self.heads, : self.seen]

    def put(self, x: Tensor, part: Tensor) -> None:
        """Write ``(heads, G r, D)`` to where `queries` would read it."""
        place = x[self.heads, :, self.rows]
        place.copy_(part.view(place.shape))

    def probabilities(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the softmax of ``q kᵀ``; a query that sees no key has zeros."""
        logits = q @ k.mT
        if self.limit is None:
            return torch.softmax(logits, -1)
        blind = self.limit <= 0
        logits.masked_fill_((torch.arange(self.seen, device=q.device) >= self.limit) & ~blind, float("-inf"))
        return torch.softmax(logits, -1).masked_fill_(blind, 0.0)


KERNEL = Kernel("chunked", compute, gradients)
