"""The operation of `Triton`: launches the kernels, and gives them a gradient, a batching rule and a compiler's view.

Two operators do the work, so that nothing that differentiates, maps or compiles ever looks inside a kernel:

    scmreg::attention            (q, k, v, tq, tk, tv, key_lengths) -> (o, to, lse)
    scmreg::attention_backward   (do, q, k, v, o, lse, key_lengths) -> (dq, dk, dv)

An eager call wraps the first in an `autograd.Function` and a compiled one relies on the rule registered with the
operator: a Function would lose the gradient under ``torch.compile``, a bare operator under ``func.grad`` of
``func.jvp``. The tangent has no gradient either way.
"""

from __future__ import annotations

import contextlib
from typing import Any, NoReturn

import torch
from torch import Tensor

from scmreg.attention import AttentionOptions
from scmreg.errors import UnavailableError
from scmreg_attention import stock
from scmreg_attention.chunked import _gradients
from scmreg_attention.launch import INTERPRETED, launch

__all__ = ["forward", "forward_jvp", "refuses", "unavailable"]

DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)
"""What can be computed; the interpreter multiplies the bit patterns of bfloat16, not the numbers."""
LARGEST = 256
"""Largest head dimension."""
CHUNK = 1024
"""Keys at a time where the gradient is computed in plain torch."""


def unavailable() -> str | None:
    """Say why this machine cannot run the kernels."""
    import importlib.util

    if importlib.util.find_spec("triton") is None or not (INTERPRETED or torch.cuda.is_available()):
        return "needs triton and a CUDA device"
    if not INTERPRETED and torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return "needs a CUDA device of compute capability 8.0 (A100) at least"
    return None


def refuses(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Say why such tensors cannot be taken."""
    if q.dtype not in DTYPES:
        return f"it works in {', '.join(str(dtype)[6:] for dtype in DTYPES)}, not in {str(q.dtype)[6:]}"
    if q.shape[3] > LARGEST:
        return f"head dimension {q.shape[3]} is larger than {LARGEST}"
    if not (q.is_cuda or INTERPRETED):
        return f"it takes tensors on a CUDA device, not on {q.device.type}"
    return None


def forward(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
    """Return ``O``."""
    return _attend(q, k, v, None, None, None, options)[0]


def forward_jvp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    options: AttentionOptions,
) -> tuple[Tensor, Tensor]:
    """Return ``(O, tO)``."""
    tq, tk, tv = (None if tx is None else tx.detach().to(q.dtype) for tx in (tq, tk, tv))
    out, tangent, _ = _attend(q, k, v, tq, tk, tv, options)
    return out, tangent.detach()


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    options: AttentionOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (q, k, v, tq, tk, tv, options.key_lengths, float(options.scale), options.causal)
    results: tuple[Tensor, Tensor, Tensor]
    if torch.compiler.is_compiling():
        results = attention(*inputs)
    else:
        results = _Attend.apply(*inputs)  # type: ignore[no-untyped-call]
    return results


class _Attend(torch.autograd.Function):
    """``(q, k, v, tq, tk, tv) -> (o, to, lse)``; only ``o`` has a gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        results: tuple[Tensor, Tensor, Tensor] = attention(*inputs)
        return results

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        _save(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        gradients = _Gradient.apply(grad, *ctx.saved_tensors, ctx.scale, ctx.causal)  # type: ignore[no-untyped-call]
        return (*gradients, *NO_GRADIENT)


class _Gradient(torch.autograd.Function):
    """The gradient of `_Attend`. A bare operator here would fail under ``func.grad``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        gradients: tuple[Tensor, Tensor, Tensor] = attention_backward(*inputs)
        return gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> NoReturn:
        raise UnavailableError("attention 'triton' can be differentiated in reverse mode once, not twice", "can: math")


NO_GRADIENT = (None,) * 6
"""What a backward pass returns for the tangents, the key lengths and the options."""


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, _, _, _, key_lengths, scale, causal = inputs
    ctx.save_for_backward(q, k, v, output[0], output[2], key_lengths)
    ctx.scale, ctx.causal = scale, causal


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    return (*attention_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.causal), *NO_GRADIENT)


@torch.library.custom_op("scmreg::attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    key_lengths: Tensor | None,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(o, to, lse)``: ``to`` is empty without tangents, ``lse (B, H, L)`` in natural units and float32.

    Without tangents torch's own kernels compute it where they can, else ours with one accumulator. The results have
    the memory layout of ``q``, as ``torch.empty_like`` understands it.
    """
    if tq is None and tk is None and tv is None and (found := stock.value(q, k, v, key_lengths, scale, causal)):
        return found[0], q.new_empty(0), found[1]
    results = _results(q, tq, tk, tv)
    if results[0].numel() == 0:
        return results
    if scale <= 0:
        # The kernel scales the largest product, not the products. All logits are 0 where the scale is.
        q, tq = q * (scale and -1.0), None if tq is None else tq * (scale and -1.0)
        scale = -scale or 1.0
    with torch.cuda.device(q.device) if q.is_cuda else contextlib.nullcontext():
        launch(q, k, v, tq, tk, tv, key_lengths, results, scale, causal)
    return results


@attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    key_lengths: Tensor | None,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _results(q, tq, tk, tv)


def _results(q: Tensor, *tangents: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    dual = any(tx is not None for tx in tangents)
    tangent = torch.empty_like(q) if dual else q.new_empty(0)
    return torch.empty_like(q), tangent, q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("scmreg::attention_backward", mutates_args=())
def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    key_lengths: Tensor | None,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(dq, dk, dv)``, by torch's flash attention where it serves, else chunk by chunk in plain torch."""
    if stock.serves(q, k, key_lengths, causal):
        gradients = stock.gradients(grad, q, k, v, out, lse, scale, causal)
    else:
        options = AttentionOptions(scale, causal, key_lengths)
        gradients = _gradients(q, k, v, out, lse, grad, options, CHUNK)
    dq, dk, dv = (x.contiguous() for x in gradients)
    return dq, dk, dv


@attention_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    key_lengths: Tensor | None,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    return dq, dk, dv


def _over_batches(operator: Any) -> Any:
    """Return the batching rule of an operator whose tensors all begin with the batch: the new dimension joins it."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        size: int = info.batch_size

        def join(x: Any, dim: int | None) -> Any:
            if not isinstance(x, Tensor):
                return x
            return (x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)

        results = operator(*map(join, args, in_dims))
        # What is empty for want of tangents has no batch.
        parted = (x.unflatten(0, (size, -1)) if x.ndim > 1 else x.expand(size, 0) for x in results)
        return tuple(parted), (0, 0, 0)

    return rule


attention.register_vmap(_over_batches(attention))
attention_backward.register_vmap(_over_batches(attention_backward))


attention.register_autograd(_backward, setup_context=lambda ctx, inputs, output: _save(ctx, inputs, output))
