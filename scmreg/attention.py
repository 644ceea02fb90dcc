"""Attention that carries its tangent: one function `attend`, with backends as plugins.

Forward-mode differentiation of ``torch``'s fused attention is not defined, so every network of ours calls `attend`.
It unpacks dual numbers itself and hands primals and tangents to a backend as plain tensors; a backend is so a
function of six tensors and never meets an AD level. A tangent that is absent stays absent.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad as fwad

from scmreg.component import Component
from scmreg.errors import UnavailableError, UnknownComponentError

__all__ = ["Attention", "AttentionOptions", "Operation", "attend", "attend_jvp", "choose"]


@dataclass(frozen=True)
class AttentionOptions:
    """What is attended to, and how sharply."""

    scale: float
    """Factor of the logits."""
    causal: bool = False
    """Whether query ``i`` sees only keys up to ``i + S - L`` (aligned bottom-right)."""
    key_lengths: Tensor | None = None
    """Number of keys that each batch entry sees, shape ``(B,)``; a row that sees none gives zeros."""


def takes_all(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Refuse nothing."""
    return None


class Operation(NamedTuple):
    """What a backend computes with. Plain functions: the compiler does not trace methods of a frozen record.

    Shapes: ``q (B, H, L, D)``, ``k`` and ``v (B, Hk, S, D)`` with ``H`` a multiple of ``Hk``; tangents have the shape
    of their primals and are ``None`` where there is none.
    """

    forward: Callable[[Tensor, Tensor, Tensor, AttentionOptions], Tensor]
    """``(q, k, v, options) -> O``, differentiable in reverse mode with respect to q, k and v."""
    forward_jvp: Callable[..., tuple[Tensor, Tensor]]
    """``(q, k, v, tq, tk, tv, options) -> (O, tO)``: ``O`` as above, ``tO`` without gradient, given one tangent at
    least."""
    refuses: Callable[[Tensor, Tensor, Tensor], str | None] = takes_all
    """Says why such tensors cannot be taken; ``None`` if they can."""


class Attention(Component, kind="attention"):
    """A way to compute ``O = softmax(scale Q Kᵀ) V`` and its directional derivative."""

    @abstractmethod
    def build(self) -> Operation:
        """Return the functions that compute it."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    key_lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return ``softmax(scale Q Kᵀ) V``, with a tangent where the inputs have one.

    Works under ``torch.func.jvp`` and ``torch.autograd.forward_ad``. The gradient flows through the value; the
    tangent is without gradient.

    Args:
        q: queries, ``(B, H, L, D)``.
        k: keys, ``(B, Hk, S, D)``; every group of ``H / Hk`` query heads shares one.
        v: values, the shape of ``k``.
        scale: factor of the logits, ``1/sqrt(D)`` if not given.
        causal: see :class:`AttentionOptions`.
        key_lengths: see :class:`AttentionOptions`.
        backend: name of an attention component, or ``auto``.

    Raises:
        ValueError: if shapes, types or devices do not fit together.
        UnavailableError: if the backend cannot take the input; the message names one that can.
    """
    options = _options(q, k, v, scale, causal, key_lengths)
    operation = _operation(backend, q, k, v)
    if not is_dual(q, k, v):
        return operation.forward(q, k, v, options)
    (pq, tq), (pk, tk), (pv, tv) = (fwad.unpack_dual(x) for x in (q, k, v))
    if tq is None and tk is None and tv is None:
        return operation.forward(pq, pk, pv, options)
    out, tangent = operation.forward_jvp(pq, pk, pv, tq, tk, tv, options)
    dual: Tensor = fwad.make_dual(out, tangent.detach())
    return dual


def attend_jvp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    *,
    scale: float | None = None,
    causal: bool = False,
    key_lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return ``(O, tO)`` for explicit tangents; ``None`` is a tangent of zero. Otherwise as `attend`."""
    for name, x, tx in (("tq", q, tq), ("tk", k, tk), ("tv", v, tv)):
        if tx is not None and tx.shape != x.shape:
            raise ValueError(f"{name} has shape {tuple(tx.shape)}, its primal {tuple(x.shape)}")
    options = _options(q, k, v, scale, causal, key_lengths)
    operation = _operation(backend, q, k, v)
    if tq is None and tk is None and tv is None:
        out = operation.forward(q, k, v, options)
        return out, torch.zeros_like(out)
    out, tangent = operation.forward_jvp(q, k, v, tq, tk, tv, options)
    return out, tangent.detach()


def choose(q: Tensor, k: Tensor, v: Tensor) -> tuple[str, str]:
    """Return the backend that ``auto`` takes for such tensors, and why."""
    aside = ""
    if q.is_cuda:
        reason = _obstacle("triton", q, k, v)
        if reason is None:
            return "triton", "on a GPU: one kernel for the value and its tangent"
        aside = f"; not triton: {reason}"
    if k.shape[-2] >= CHUNKED_FROM:
        return "chunked", f"{k.shape[-2]} keys: memory linear in the length{aside}"
    return "math", f"{k.shape[-2]} keys, fewer than {CHUNKED_FROM}: the whole matrix at once is quickest{aside}"


AUTO = ("math", "chunked", "triton")
"""Backends that ``auto`` chooses from."""
CHUNKED_FROM = 512
"""Number of keys from which ``auto`` takes the backend with linear memory."""


def prepare(backend: str) -> None:
    """Look up a backend; for ``auto`` all that it may choose.

    Networks do so when they are built: the compiler can follow the look-up of a known operation, not the registry.

    Raises:
        UnknownComponentError: if there is none of that name.
        UnavailableError: if it cannot run on this machine.
    """
    if backend != "auto":
        operation_of(backend)
        return
    for name in AUTO:
        _find(name)


def _find(name: str) -> str | None:
    """Look up an operation; return why it cannot run on this machine, ``None`` if it can."""
    if name in _operations:
        return None
    if name not in _obstacles:
        try:
            operation_of(name)
        except (UnavailableError, UnknownComponentError) as error:
            _obstacles[name] = str(error)
    return _obstacles.get(name)


def _obstacle(name: str, q: Tensor, k: Tensor, v: Tensor) -> str | None:
    return _find(name) or _operations[name].refuses(q, k, v)


def is_dual(*tensors: Tensor) -> bool:
    """Whether any of the tensors carries a tangent at the present level of forward-mode differentiation."""
    level: int = fwad._current_level
    return level >= 0 and any(fwad.unpack_dual(x).tangent is not None for x in tensors)


def operation_of(name: str) -> Operation:
    """Return the operation of a backend, which stays the same from then on.

    Raises:
        UnknownComponentError: if there is none.
        UnavailableError: if it cannot run on this machine.
    """
    if name not in _operations:
        from scmreg.registry import registry

        made: Attention = registry("attention").create(name)
        if reason := made.unavailable():
            raise UnavailableError(f"attention '{name}' cannot run here: {reason}", "backend='auto' takes one that can")
        _operations[name] = made.build()
    return _operations[name]


_operations: dict[str, Operation] = {}
_obstacles: dict[str, str] = {}


def _operation(backend: str, q: Tensor, k: Tensor, v: Tensor) -> Operation:
    name = choose(q, k, v)[0] if backend == "auto" else backend
    operation = _operations[name] if name in _operations else operation_of(name)
    if reason := operation.refuses(q, k, v):
        _refuse(name, reason, q, k, v)
    return operation


def _refuse(name: str, reason: str, q: Tensor, k: Tensor, v: Tensor) -> NoReturn:
    from scmreg.registry import registry

    attentions = registry("attention")
    others = (other for other in attentions if other != name and attentions[other].unavailable() is None)
    able = [other for other in others if operation_of(other).refuses(q, k, v) is None]
    raise UnavailableError(f"attention '{name}' cannot take this input: {reason}", f"can: {', '.join(able) or 'none'}")


def _options(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool, key_lengths: Tensor | None
) -> AttentionOptions:
    def shapes() -> str:
        return f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"

    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"attend takes (batch, heads, length, dim) tensors, not {shapes()}")
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"batch and dim must agree, and k and v in shape: {shapes()}")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads cannot share {k.shape[1]} key heads: {shapes()}")
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        raise ValueError(f"dtypes and devices differ: {[(str(x.dtype), str(x.device)) for x in (q, k, v)]}")
    if key_lengths is not None and key_lengths.shape != (q.shape[0],):
        raise ValueError(f"key_lengths has shape {tuple(key_lengths.shape)}, expected ({q.shape[0]},)")
    return AttentionOptions(q.shape[3] ** -0.5 if scale is None else scale, causal, key_lengths)


def visible(options: AttentionOptions, rows: int, keys: Tensor, total: int) -> Tensor | None:
    """Return which of the keys with the given indices each query sees; ``None`` if all do.

    Args:
        options: masks.
        rows: number of queries.
        keys: indices of keys, shape ``(s,)``.
        total: number of keys in all.

    Returns:
        Boolean, broadcastable to ``(B, H, L, s)``.
    """
    mask: Tensor | None = None
    if options.causal:
        query = torch.arange(rows, device=keys.device)[:, None] + total - rows
        mask = (keys[None, :] <= query)[None, None]
    if options.key_lengths is not None:
        seen = (keys[None, :] < options.key_lengths[:, None])[:, None, None, :]
        mask = seen if mask is None else mask & seen
    return mask
