"""torch's own flash and cuDNN attention, where they compute exactly what is asked: values, and gradients of any.

They have no tangent, but nothing is as quick without one. What they need and give is what our kernel does: the value
and its ``lse``, in natural units, so that either may come before torch's backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

__all__ = ["gradients", "serves", "value"]


def serves(q: Tensor, k: Tensor, key_lengths: Tensor | None, causal: bool) -> bool:
    """Whether torch's kernels know such masks, and their backward pass takes an ``lse`` which it has not made."""
    if key_lengths is not None or (causal and q.shape[2] != k.shape[2]):
        return False
    return not q.is_cuda or (torch.version.hip is None and q.dtype != torch.float32 and q.shape[3] % 8 == 0)


def value(
    q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None, scale: float, causal: bool
) -> tuple[Tensor, Tensor] | None:
    """Return ``(o, lse)`` on a GPU, by whichever kernel torch would choose; ``None`` if it has no exact one for this.

    The memory layout is that of ``q``, as ``torch.empty_like`` understands it, ``lse (B, H, L)`` is contiguous.

    Args:
        q, k, v: ``(B, H, L, D)``, ``(B, Hk, S, D)`` twice.
        key_lengths: which are refused.
        scale: factor of the logits; refused unless positive.
        causal: refused unless ``L`` equals ``S``.
    """
    if not (q.is_cuda and serves(q, k, key_lengths, causal) and scale > 0 and min(q.numel(), k.numel()) > 0):
        return None
    if not all(_even(x) for x in (q, k, v)):
        return None
    shared = q.shape[1] != k.shape[1]
    choice = torch._fused_sdp_choice(q, k, v, None, 0.0, causal, scale=scale, enable_gqa=shared)
    # The operators under `scaled_dot_product_attention`, which keeps the lse to itself.
    if choice == SDPBackend.FLASH_ATTENTION.value:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)[:2]
    elif choice == SDPBackend.CUDNN_ATTENTION.value:
        operator = torch.ops.aten._scaled_dot_product_cudnn_attention
        out, lse = operator(q, k, v, None, True, 0.0, causal, scale=scale)[:2]
    else:  # what remains takes memory quadratic in the length, or gives an lse of another shape
        return None
    if out.stride() != torch.empty_like(q, device="meta").stride():
        out = torch.empty_like(q).copy_(out)
    return out, lse.reshape(q.shape[:3]).contiguous()


def gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(dq, dk, dv)`` of ``out``, given its ``lse (B, H, L)``, which `value` or our kernel has made."""
    results: tuple[Tensor, Tensor, Tensor]
    if q.is_cuda:
        inputs = [x if _even(x) else x.contiguous() for x in (grad, q, k, v, out)]
        lengths, random = (None, None, q.shape[2], k.shape[2]), q.new_empty(2, dtype=torch.int64)
        results = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            *inputs, lse, *lengths, 0.0, causal, random, random, scale=scale
        )
        return results
    groups = q.shape[1] // k.shape[1]
    shared = (x.repeat_interleave(groups, 1) for x in (k, v))
    results = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, *shared, out, lse, 0.0, causal, scale=scale
    )
    dq, dk, dv = results
    return dq, dk.unflatten(1, (-1, groups)).sum(2), dv.unflatten(1, (-1, groups)).sum(2)


def _even(x: Tensor) -> bool:
    """Whether the kernels can read it in pieces of 16 bytes."""
    even = all(stride > 0 and stride % 8 == 0 for stride in x.stride()[:3]) and x.data_ptr() % 16 == 0
    return even and x.stride(3) == 1
