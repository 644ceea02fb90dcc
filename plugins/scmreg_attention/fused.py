"""The kernel of `Triton` as its backend takes it: what it refuses, and where its gradient comes from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from scmreg.attention import AttentionOptions
from scmreg.composable import Kernel
from scmreg_attention import chunked
from scmreg_attention.launch import INTERPRETED, launch

__all__ = ["KERNEL", "forward", "refuses", "unavailable"]

DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)
"""What can be computed; the interpreter multiplies the bit patterns of bfloat16, not the numbers."""
LARGEST = 256
"""Largest head dimension."""


def unavailable() -> str | None:
    """Say why this machine cannot run the kernels."""
    import importlib.util

    if importlib.util.find_spec("triton") is None or not (INTERPRETED or torch.cuda.is_available()):
        return "needs triton and a CUDA device"
    if not INTERPRETED and torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return "needs a CUDA device of compute capability 8.0 (A100) at least"
    return None


def refuses(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> str | None:
    """Say why such tensors cannot be taken."""
    if q.dtype not in DTYPES:
        return f"it works in {', '.join(str(dtype)[6:] for dtype in DTYPES)}, not in {str(q.dtype)[6:]}"
    if q.shape[3] > LARGEST:
        return f"head dimension {q.shape[3]} is larger than {LARGEST}"
    if not (q.is_cuda or INTERPRETED):
        return f"it takes tensors on a CUDA device, not on {q.device.type}"
    return None


Forward = Callable[[Tensor, Tensor, Tensor, AttentionOptions], Tensor]


def forward(own: Forward, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
    """Return ``O`` of what has no tangent: by torch's fused attention, the quickest there is, where it serves."""
    # Its backward pass has no batching rule.
    plain = torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None
    if not (plain and _torch_serves(q, k, options) and options.scale > 0 and k.shape[2]):
        return own(q, k, v, options)
    shared = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(q, k, v, is_causal=options.causal, scale=options.scale, enable_gqa=shared)


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
    """Fill ``o``, ``lse`` (natural units, float32) and, given a tangent, ``to``."""
    scale = options.scale
    if scale <= 0:
        # The kernel scales the largest product, not the products. All logits are 0 where the scale is.
        q, tq = q * (scale and -1.0), None if tq is None else tq * (scale and -1.0)
        scale = -scale or 1.0
    with torch.cuda.device(q.device) if q.is_cuda else contextlib.nullcontext():
        launch(q, k, v, tq, tk, tv, options.key_lengths, results, scale, options.causal)


def gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, options: AttentionOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(dq, dk, dv)``, by torch's flash attention where it serves, else in blocks in plain torch."""
    if not _torch_serves(q, k, options):
        return chunked.gradients(grad, q, k, v, out, lse, options)
    # Its backward pass takes an lse that it has not made.
    inputs = [x if _even(x) else x.contiguous() for x in (grad, q, k, v, out)]
    lengths, random = (None, None, q.shape[2], k.shape[2]), q.new_empty(2, dtype=torch.int64)
    results: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_backward(
        *inputs, lse, *lengths, 0.0, options.causal, random, random, scale=options.scale
    )
    return results


def _torch_serves(q: Tensor, k: Tensor, options: AttentionOptions) -> bool:
    """Whether torch's fused attention computes exactly this, with memory linear in the length."""
    if options.key_lengths is not None or (options.causal and q.shape[2] != k.shape[2]):
        return False  # its masks are others
    return q.is_cuda and torch.version.hip is None and q.dtype != torch.float32 and q.shape[3] % 8 == 0


def _even(x: Tensor) -> bool:
    """Whether torch's kernels can read it in pieces of 16 bytes."""
    even = all(stride > 0 and stride % 8 == 0 for stride in x.stride()[:3]) and x.data_ptr() % 16 == 0
    return even and x.stride(3) == 1


KERNEL = Kernel("triton", compute, gradients, keeps_lse=True)
