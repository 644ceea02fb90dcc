"""What backends of attention are compared with: the formula written out, in float64, with autograd's own rules."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from scmreg import attend

Three = tuple[Tensor, Tensor, Tensor]
Transform = Callable[..., Any]
"""``(attend, (q, k, v), (tq, tk, tv)) -> (O, tO)``, or ``(O,)``."""

TOLERANCE = {torch.float64: (1e-9, 1e-11), torch.float32: (1e-4, 2e-5)}
"""Relative error, and error relative to the largest number of a result."""


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    key_lengths: Tensor | None = None,
) -> Tensor:
    """Return ``softmax(scale Q Kᵀ) V``, zeros where a query sees no key; made of what every transform knows."""
    k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], dim=-3) for x in (k, v))
    rows, keys = q.shape[-2], k.shape[-2]
    seen = torch.ones(rows, keys, dtype=torch.bool)
    if causal:
        seen = seen.tril(keys - rows)
    if key_lengths is not None:
        seen = seen & (torch.arange(keys) < key_lengths[:, None, None, None])
    # Zeros in place of hidden values: the product of a zero weight and a NaN would be NaN.
    hidden = ~seen.any(-2).unsqueeze(-1)
    logits = ((q.shape[-1] ** -0.5 if scale is None else scale) * (q @ k.mT)).masked_fill(~seen, float("-inf"))
    peak = logits.detach().amax(-1, keepdim=True)
    weight = torch.exp(logits - peak.masked_fill(peak == float("-inf"), 0.0))
    total = weight.sum(-1, keepdim=True)
    return (weight / total.masked_fill(total == 0, 1.0)) @ v.masked_fill(hidden, 0.0)


def ours(backend: str) -> Callable[..., Tensor]:
    """Return `attend` by a backend."""
    return functools.partial(attend, backend=backend)


def precision(backend: str) -> torch.dtype:
    """Return the type in which a backend is compared: the most exact that it takes."""
    return torch.float32 if backend == "triton" else torch.float64


def rounded(backend: str, inputs: Any) -> Any:
    """Return inputs in the type of a backend."""
    return tree_map(lambda x: x.to(precision(backend)) if x.is_floating_point() else x, inputs)


def tensors(
    batch: int = 2,
    h: int = 2,
    hk: int = 1,
    l: int = 9,  # noqa: E741
    s: int = 20,
    d: int = 16,
    seed: int = 0,
    extra: tuple[int, ...] = (),
) -> tuple[Three, Three]:
    """Draw ``(q, k, v)`` and their tangents in float64, of numbers that float32 can represent."""
    rng = torch.Generator().manual_seed(seed + l + s)
    shapes = [(*extra, batch, h, l, d), *[(*extra, batch, hk, s, d)] * 2] * 2
    q, k, v, tq, tk, tv = (torch.randn(shape, generator=rng).double() for shape in shapes)
    return (q, k, v), (tq, tk, tv)


def agree(backend: str, got: Any, want: Any) -> None:
    """Check that results agree leaf by leaf, and that there is something to agree about."""
    rtol, atol = TOLERANCE[precision(backend)]
    for mine, other in zip(tree_leaves(got), tree_leaves(want), strict=True):
        assert bool(other.any()), "the reference is all zeros: this would test nothing"
        scale = float(other.detach().abs().max())
        assert mine.dtype == precision(backend)
        torch.testing.assert_close(mine.detach().double(), other.detach().double(), rtol=rtol, atol=atol * scale)


def same(backend: str, function: Callable[..., Any], *inputs: Any) -> None:
    """Check that ``function(attend, *inputs)`` gives what ``function(reference, *inputs)`` gives."""
    agree(backend, function(ours(backend), *rounded(backend, inputs)), function(reference, *inputs))


def grads(out: Tensor, leaves: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients of a sum of ``out`` in which no two elements weigh the same."""
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad((out * weight).sum(), tuple(leaves))


def differentiated(transform: Transform) -> Transform:
    """Return a transform that also returns the gradients of the value, and checks that the tangent has none."""

    def run(f: Any, p: Three, t: Any) -> tuple[Tensor, ...]:
        leaves = tuple(x.detach().clone().requires_grad_() for x in p)
        out, *tangents = transform(f, leaves, t)
        assert f is reference or not any(tangent.requires_grad for tangent in tangents)
        return (out.detach(), *(tangent.detach() for tangent in tangents), *grads(out, leaves))

    return run


def slow(check: Callable[..., None]) -> Callable[..., None]:
    """Mark a check that takes longer than ten seconds."""
    check.slow = True  # type: ignore[attr-defined]
    return check


def checks(module: dict[str, Any]) -> dict[str, Callable[..., None]]:
    """Return the checks of a module by name."""
    return {name.removeprefix("check_"): check for name, check in module.items() if name.startswith("check_")}


def run(named: dict[str, Callable[[], None]]) -> Iterator[tuple[str, str]]:
    """Run checks; yield each name with its traceback, empty if it held."""
    for name, check in named.items():
        try:
            check()
        except BaseException:
            yield name, traceback.format_exc()
        else:
            yield name, ""
