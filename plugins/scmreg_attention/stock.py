"""torch's own attention, where it computes exactly what is asked and there is no tangent: nothing is quicker."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from scmreg.attention import AttentionOptions

__all__ = ["even", "forward", "on_the_cpu", "on_the_gpu"]

LARGE_CHIPS = ((8, 0), (9, 0), (10, 0))
"""Compute capabilities of the A100, the H100 and H200, the B200."""

Forward = Callable[[Tensor, Tensor, Tensor, AttentionOptions], Tensor]
Serves = Callable[[Tensor, Tensor, AttentionOptions], bool]


def forward(own: Forward, serves: Serves, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
    """Return ``O`` by torch's fused attention where it serves, else by a backend's own forward."""
    # Its backward pass has no batching rule, and where numbers lie in memory is not known in compiled code.
    plain = not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is None
    if not (plain and serves(q, k, options) and options.scale > 0 and k.shape[2]):
        return own(q, k, v, options)
    shared = q.shape[1] != k.shape[1]
    # Uneven, they would be left to its kernel with the whole matrix.
    q, k, v = (x if even(x) else x.contiguous() for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, is_causal=options.causal, scale=options.scale, enable_gqa=shared)


def on_the_cpu(q: Tensor, k: Tensor, options: AttentionOptions) -> bool:
    """Whether the fused attention for CPUs computes exactly this; of 16 bits it rounds the gradient more than we do."""
    exact = q.dtype in (torch.float32, torch.float64) and q.shape[1] == k.shape[1]
    return q.device.type == "cpu" and exact and _masks_fit(q, k, options)


def on_the_gpu(q: Tensor, k: Tensor, options: AttentionOptions) -> bool:
    """Whether flash attention computes exactly this, with memory linear in the length, and its gradient."""
    if not q.is_cuda or torch.version.hip is not None or q.dtype == torch.float32:
        return False
    # Of the backward pass: head dimensions beyond 192 need the shared memory of the larger chips.
    large = q.shape[3] > 192 and torch.cuda.get_device_capability(q.device) not in LARGE_CHIPS
    return q.shape[3] % 8 == 0 and q.shape[0] < 2**16 and not large and _masks_fit(q, k, options)


def even(x: Tensor) -> bool:
    """Whether the kernels can read it in pieces of 16 bytes."""
    steps = all(stride > 0 and stride % 8 == 0 for stride in x.stride()[:3]) and x.data_ptr() % 16 == 0
    return steps and x.stride(3) == 1


def _masks_fit(q: Tensor, k: Tensor, options: AttentionOptions) -> bool:
    """Whether its masks are ours: it aligns the causal one top left."""
    return options.key_lengths is None and (not options.causal or q.shape[2] == k.shape[2])
