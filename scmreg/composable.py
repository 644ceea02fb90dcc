"""Make a kernel of attention compose: with both modes of differentiation, `torch.func`, checkpointing and the compiler.

A kernel is two plain functions that fill plain tensors; whoever writes one need not know of any of these. Two wrappings
do it, because none alone does. Eagerly the kernel runs in an `autograd.Function`: a bare operator would fail under
``func.grad`` of ``func.jvp``. Compiled code calls an operator of ``torch.library`` with the same rules: there, a
Function would lose the gradient. Neither has a tangent: `scmreg.attention.attend` unpacks dual numbers before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from scmreg.attention import AttentionOptions, Operation, Refuses, over_batches, stopped, takes_all
from scmreg.errors import UnavailableError

__all__ = ["Kernel", "composable"]

Three = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Kernel:
    """Attention, its tangent and its gradient, on plain tensors. Shapes are those of :class:`Operation`."""

    name: str
    """Of the backend: a Python name, the operators are called after it."""
    compute: Callable[..., None]
    """``(q, k, v, tq, tk, tv, options, results)``: fill ``results = (o, to, lse)``. An absent tangent is ``None``;
    without any, ``to`` is empty. Where nothing is seen, ``o`` and ``to`` are zero."""
    gradients: Callable[..., Three]
    """``(grad, q, k, v, o, lse, options) -> (dq, dk, dv)``, each of the shape of its input, none of which is empty."""
    keeps_lse: bool = False
    """Whether ``lse``, the log-sum-exp of the logits, ``(B, H, L)`` in float32, is filled too; else it is empty."""

    def results(self, q: Tensor, *tangents: Tensor | None) -> Three:
        """Allocate what is to be filled; ``o`` and ``to`` have the memory layout of ``torch.empty_like(q)``."""
        dual = any(tx is not None for tx in tangents)
        lse = q.new_empty(q.shape[:3] if self.keeps_lse else 0, dtype=torch.float32)
        return torch.empty_like(q), torch.empty_like(q) if dual else q.new_empty(0), lse


def composable(kernel: Kernel, refuses: Refuses = takes_all) -> Operation:
    """Return the operation of a backend that computes with a kernel.

    The value has a gradient, once; the tangent has none.
    """
    attend = functools.partial(_attend, kernel, _operators(kernel)[0])

    def forward(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
        return attend(q, k, v, None, None, None, options)[0]

    def forward_jvp(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tq: Tensor | None,
        tk: Tensor | None,
        tv: Tensor | None,
        options: AttentionOptions,
    ) -> tuple[Tensor, Tensor]:
        tq, tk, tv = (None if tx is None else stopped(tx).to(q.dtype) for tx in (tq, tk, tv))
        out, tangent, _ = attend(q, k, v, tq, tk, tv, options)
        # It has no derivative of any kind: one in forward mode was refused, this takes away the graph of the operator.
        return out, tangent.detach()

    return Operation(forward, forward_jvp, refuses)


def _attend(
    kernel: Kernel,
    operator: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    options: AttentionOptions,
) -> Three:
    inputs = (q, k, v, tq, tk, tv, options.key_lengths, float(options.scale), options.causal)
    results: Three
    if torch.compiler.is_compiling():
        results = operator(*inputs)
    else:
        results = _Attend.apply(kernel, *inputs)  # type: ignore[no-untyped-call]
    return results


# Should the compiler be at work around us, it has no business in a kernel.
@_disable_dynamo
def _compute(
    kernel: Kernel,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    key_lengths: Tensor | None,
    scale: float,
    causal: bool,
) -> Three:
    results = kernel.results(q, tq, tk, tv)
    if results[0].numel():
        kernel.compute(q, k, v, tq, tk, tv, AttentionOptions(scale, causal, key_lengths), results)
    return results


@_disable_dynamo
def _gradients(
    kernel: Kernel,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    key_lengths: Tensor | None,
    scale: float,
    causal: bool,
) -> Three:
    if not (q.numel() and k.numel()):
        dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        return dq, dk, dv
    options = AttentionOptions(scale, causal, key_lengths)
    dq, dk, dv = (x.contiguous() for x in kernel.gradients(grad, q, k, v, out, lse, options))
    return dq, dk, dv


class _Attend(torch.autograd.Function):
    """``(kernel, q, k, v, tq, tk, tv, key_lengths, scale, causal) -> (o, to, lse)``; only ``o`` has a gradient."""

    @staticmethod
    def forward(*inputs: Any) -> Three:
        return _compute(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.kernel = inputs[0]
        ctx.mark_non_differentiable(*output[1:])
        _save(ctx, inputs[1:], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        gradients = _Gradient.apply(ctx.kernel, grad, *ctx.saved_tensors, ctx.scale, ctx.causal)  # type: ignore[no-untyped-call]
        return (None, *gradients, *NO_GRADIENT)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> NoReturn:
        raise UnavailableError(f"attention '{ctx.kernel.name}' has no second derivative in forward mode", "can: math")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        return over_batches(_Attend.apply, info.batch_size, in_dims, inputs)


class _Gradient(torch.autograd.Function):
    """The gradient of `_Attend`. A bare function here would meet the levels of ``func.vmap`` and ``func.grad``."""

    @staticmethod
    def forward(*inputs: Any) -> Three:
        return _gradients(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.kernel = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> NoReturn:
        name = ctx.kernel.name
        raise UnavailableError(f"attention '{name}' can be differentiated in reverse mode once, not twice", "can: math")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        return over_batches(_Gradient.apply, info.batch_size, in_dims, inputs)


NO_GRADIENT = (None,) * 6
"""What a backward pass returns for the tangents, the key lengths and the options."""


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, _, _, _, key_lengths, scale, causal = inputs
    ctx.save_for_backward(q, k, v, output[0], output[2], key_lengths)
    ctx.scale, ctx.causal = scale, causal


@functools.cache
def _operators(kernel: Kernel) -> tuple[Any, Any]:
    """Register the operators ``scmreg::NAME_attention`` and ``scmreg::NAME_attention_backward``."""

    @torch.library.custom_op(f"scmreg::{kernel.name}_attention", mutates_args=())
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
        return _compute(kernel, q, k, v, tq, tk, tv, key_lengths, scale, causal)

    @torch.library.custom_op(f"scmreg::{kernel.name}_attention_backward", mutates_args=())
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
        return _gradients(kernel, grad, q, k, v, out, lse, key_lengths, scale, causal)

    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        return (*attention_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.causal), *NO_GRADIENT)

    attention.register_fake(lambda q, k, v, *others: kernel.results(q, *others[:3]))
    attention_backward.register_fake(lambda grad, q, k, v, *others: tuple(x.new_empty(x.shape) for x in (q, k, v)))
    attention.register_autograd(backward, setup_context=lambda ctx, inputs, output: _save(ctx, inputs, output))
    for operator in (attention, attention_backward):
        operator.register_vmap(
            lambda info, in_dims, *inputs, operator=operator: over_batches(operator, info.batch_size, in_dims, inputs)
        )
    return attention, attention_backward
