"""The kernel of `Triton` as its backend takes it: what it refuses, and where its gradient comes from."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from scmreg.attention import AttentionOptions
from scmreg.composable import Kernel
from scmreg_attention import chunked, stock
from scmreg_attention.launch import INTERPRETED, launch

__all__ = ["KERNEL", "refuses", "unavailable"]

DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)
"""What can be computed; the interpreter multiplies the bit patterns of bfloat16, not the numbers."""
LARGEST = 256
"""Largest head dimension."""


def unavailable() -> str | None:
    """Say why this machine cannot run the kernels."""
    import importlib.util

    if importlib.util.find_spec("triton") is None or not (INTERPRETED or torch.cuda.is_available()):
        return "needs triton and a CUDA device"
    if not INTERPRETED and torch.version.hip is not None:
        return "needs an NVIDIA GPU: for AMD it is compiled by the tests, and was never run"
    if not INTERPRETED and torch.cuda.get_device_capability() < (8, 0):
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
    if not stock.on_the_gpu(q, k, options):
        return chunked.gradients(grad, q, k, v, out, lse, options)
    # Its backward pass takes an lse that it has not made.
    inputs = [x if stock.even(x) else x.contiguous() for x in (grad, q, k, v, out)]
    lengths, random = (None, None, q.shape[2], k.shape[2]), q.new_empty(2, dtype=torch.int64)
    results: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_backward(
        *inputs, lse, *lengths, 0.0, options.causal, random, random, scale=options.scale
    )
    return results


KERNEL = Kernel("triton", compute, gradients, keeps_lse=True)
