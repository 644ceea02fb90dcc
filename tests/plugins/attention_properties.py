"""What holds of value, tangent and gradient under every backend, and what every backend refuses: a function each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_reference import (
    Three,
    agree,
    checks,
    differentiated,
    grads,
    ours,
    precision,
    reference,
    rounded,
    same,
    tensors,
)
from torch import Tensor, func

from scmreg import attend, attend_jvp
from scmreg.errors import UnavailableError


def drawn(backend: str, **sizes: Any) -> tuple[Three, Three]:
    p, t = rounded(backend, tensors(**sizes))
    return p, t


def jvp(f: Any, p: Three, t: Three, **keywords: Any) -> tuple[Tensor, Tensor]:
    """Return value and tangent from explicit tangents; of the reference, by autograd's own rules."""
    if f is reference:
        return func.jvp(lambda *p: f(*p, **keywords), p, t)
    return attend_jvp(*p, *t, **f.keywords, **keywords)


# -- the tangent -----------------------------------------------------------------------------------------------------


def check_linear_in_the_tangents(backend: str) -> None:
    p, t = drawn(backend, s=70)
    u = tuple(x.flip(0).contiguous() for x in t)
    once, other = (attend_jvp(*p, *x, backend=backend)[1] for x in (t, u))
    twice = attend_jvp(*p, *(2 * x for x in t), backend=backend)[1]
    assert torch.equal(twice, 2 * once)
    both = attend_jvp(*p, *(3 * x - y for x, y in zip(t, u, strict=True)), backend=backend)[1]
    agree(backend, both, 3 * once - other)


def check_zero_for_zero_tangents(backend: str) -> None:
    p, _ = drawn(backend, s=70)
    for dtype in (precision(backend), torch.float16):
        x = [y.to(dtype) for y in p]
        out, tangent = attend_jvp(*x, *(torch.zeros_like(y) for y in x), backend=backend)
        assert not tangent.any()
        assert torch.equal(out, attend(*x, backend=backend))
        out, tangent = attend_jvp(*x, None, None, None, backend=backend)
        assert tangent.shape == out.shape
        assert not tangent.any()
        assert torch.equal(out, attend(*x, backend=backend))


def check_common_tangent_of_the_keys_changes_nothing(backend: str) -> None:
    p, (tq, tk, tv) = drawn(backend, s=70)
    shift = 30 * torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(1)).to(tk.dtype)
    plain = attend_jvp(*p, tq, tk, tv, backend=backend)[1]
    agree(backend, attend_jvp(*p, tq, tk + shift, tv, backend=backend)[1], plain)


def check_common_key_changes_nothing(backend: str) -> None:
    """Nor does it change the tangent, which the queries' own tangents would carry into every logit alike."""
    (q, k, v), t = drawn(backend, s=70)
    shift = 3 * torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(1)).to(k.dtype)
    agree(backend, attend_jvp(q, k + shift, v, *t, backend=backend), attend_jvp(q, k, v, *t, backend=backend))


def check_common_value_moves_the_value_alone(backend: str) -> None:
    (q, k, v), t = drawn(backend, hk=2, s=70)
    shift = 8 * torch.randn(2, 2, 1, 16, generator=torch.Generator().manual_seed(1)).to(v.dtype)
    plain, moved = (attend_jvp(q, k, x, *t, backend=backend) for x in (v, v + shift))
    agree(backend, moved, (plain[0] + shift, plain[1]))


def check_scale_of_any_sign(backend: str) -> None:
    for scale in (-0.7, 0.0, 2.0):

        def step(f: Any, p: Three, t: Three, scale: float = scale) -> tuple[Tensor, Tensor]:
            return jvp(f, p, t, scale=scale)

        if scale:
            same(backend, differentiated(step), *tensors(s=70))
        else:  # the gradients of queries and keys are zero, which is nothing to agree about
            same(backend, step, *tensors(s=70))


def check_layouts_in_memory(backend: str) -> None:
    """(B, L, H, D) in memory, and one tensor for the three of them."""

    def step(f: Any, p: Three, t: Three) -> tuple[Tensor, Tensor]:
        return jvp(f, tuple(x.transpose(1, 2) for x in p), tuple(x.transpose(1, 2) for x in t))  # type: ignore[arg-type]

    (p, t) = (tuple(x.transpose(1, 2).contiguous() for x in y) for y in tensors(s=70))
    same(backend, differentiated(step), p, t)

    def packed(f: Any, p: Any, t: Any) -> tuple[Tensor, Tensor]:
        return jvp(f, p[0].unbind(0), t[0].unbind(0))

    p, t = tensors(hk=2, l=20)
    same(backend, differentiated(packed), (torch.stack(p),), (torch.stack(t),))


def check_lower_precision(backend: str) -> None:
    """Errors in the Frobenius norm, against float64 on the same rounded numbers."""
    bounds = {torch.float32: 1e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
    bounds = {dtype: bound for dtype, bound in bounds.items() if backend != "triton" or dtype != torch.bfloat16}
    p, t = tensors(h=2, l=64, s=300)
    for dtype, bound in bounds.items():
        low_p, low_t = (tuple(x.to(dtype) for x in y) for y in (p, t))
        exact = jvp(reference, tuple(x.double() for x in low_p), tuple(x.double() for x in low_t))
        mine = jvp(ours(backend), low_p, low_t)
        for got, want in zip(mine, exact, strict=True):
            assert got.dtype == dtype
            assert float((got.double() - want).norm() / want.norm()) < bound


def check_gradcheck_in_both_modes(backend: str) -> None:
    if precision(backend) != torch.float64:
        return
    p, _ = tensors(h=2, hk=1, l=3, s=4, d=2)
    inputs = tuple(x.requires_grad_() for x in p)
    for keywords in ({}, {"causal": True}, {"key_lengths": torch.tensor([2, 0])}):
        assert torch.autograd.gradcheck(
            lambda *x, keywords=keywords: attend(*x, backend=backend, **keywords),
            inputs,
            check_forward_ad=True,
        )


def check_gradgradcheck(backend: str) -> None:
    if backend != "math":
        return
    p, _ = tensors(batch=1, h=2, hk=1, l=2, s=3, d=2)
    inputs = tuple(x.requires_grad_() for x in p)
    for keywords in ({}, {"causal": True}):
        assert torch.autograd.gradgradcheck(lambda *x, k=keywords: attend(*x, backend=backend, **k), inputs)


# -- masks -----------------------------------------------------------------------------------------------------------


def check_rows_that_see_no_key_are_zero(backend: str) -> None:
    p, t = drawn(backend, l=90, s=70)
    for keywords, none in (
        ({"key_lengths": torch.tensor([0, 30])}, (0,)),
        ({"causal": True}, (slice(None), slice(None), slice(20))),
    ):
        leaves = tuple(x.clone().requires_grad_() for x in p)
        out, tangent = attend_jvp(*leaves, *t, backend=backend, **keywords)
        hidden = torch.zeros_like(out, dtype=torch.bool)
        hidden[none] = True
        assert not out[hidden].any()
        assert not tangent[hidden].any()
        assert bool(out[~hidden].all())
        gradients = grads(out, leaves)
        assert all(bool(x.isfinite().all()) and bool(x.any()) for x in gradients)
        assert not gradients[0][hidden].any()


def check_what_is_masked_is_not_read(backend: str) -> None:
    """Padding may hold anything: neither value, tangent nor gradient knows of it."""
    for keywords, cut in (
        ({"key_lengths": torch.tensor([40, 64])}, (40, 64)),
        ({"key_lengths": torch.tensor([40, 0]), "causal": True}, (40, 0)),
    ):
        p, t = drawn(backend, s=70)

        def everything(
            p: Three, t: Three, keywords: dict[str, Any] = keywords, cut: tuple[int, int] = cut
        ) -> tuple[Tensor, ...]:
            leaves = tuple(x.clone().requires_grad_() for x in p)
            out, tangent = attend_jvp(*leaves, *t, backend=backend, **keywords)
            dq, dk, dv = grads(out, leaves)
            for batch, length in enumerate(cut):
                assert not dk[batch, :, length:].any()
                assert not dv[batch, :, length:].any()
            return out, tangent, dq, dk, dv

        clean = everything(p, t)
        for x in (*p[1:], *t[1:]):
            x[0, :, cut[0] :] = float("nan")
            x[1, :, cut[1] :] = float("inf")
        for before, after in zip(clean, everything(p, t), strict=True):
            assert torch.equal(before, after)


def check_what_is_not_a_number_is_seen(backend: str) -> None:
    for at in range(3):
        p, t = drawn(backend, s=70)
        p[at][0, 0, 3] = float("nan")
        out, tangent = attend_jvp(*p, *t, backend=backend)
        assert bool(out[0, 0].isnan().any())
        assert bool(tangent[0, 0].isnan().any())
        assert bool(out[1].isfinite().all())


def check_nothing_at_all(backend: str) -> None:
    for batch, l, s in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):  # noqa: E741
        p, t = drawn(backend, batch=batch, l=l, s=s)
        leaves = tuple(x.clone().requires_grad_() for x in p)
        out, tangent = attend_jvp(*leaves, *t, backend=backend)
        assert out.shape == tangent.shape == p[0].shape
        assert not out.any()
        assert not tangent.any()
        for x, gradient in zip(p, torch.autograd.grad(out.sum(), leaves), strict=True):
            assert gradient.shape == x.shape
            assert not gradient.any()


# -- what is refused -------------------------------------------------------------------------------------------------


def refused(backend: str, message: str, change: Callable[..., tuple[Any, ...]], **keywords: Any) -> None:
    """Check that `attend` refuses changed primals, and `attend_jvp` too."""
    p, t = drawn(backend)
    with pytest.raises(ValueError, match=message):
        attend(*change(*p), backend=backend, **keywords)
    with pytest.raises(ValueError, match=message):
        attend_jvp(*change(*p), *change(*t), backend=backend, **keywords)


def unchanged(*x: Tensor) -> tuple[Tensor, ...]:
    return x


def check_shapes_that_do_not_fit_are_refused(backend: str) -> None:
    refused(backend, "batch, heads", lambda q, k, v: (q[0], k, v))
    refused(backend, "agree", lambda q, k, v: (q, k, v[:, :, 1:]))
    refused(backend, "agree", lambda q, k, v: (q[..., 1:], k, v))
    refused(backend, "agree", lambda q, k, v: (q[:1], k, v))
    refused(backend, "3 query heads", lambda q, k, v: (q[:, [0, 1, 0]], k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1)))


def check_types_and_devices_that_differ_are_refused(backend: str) -> None:
    refused(backend, "dtypes", lambda q, k, v: (q.half(), k, v))
    refused(backend, "devices", lambda q, k, v: (q, k.to("meta"), v.to("meta")))


def check_tangents_that_do_not_fit_are_refused(backend: str) -> None:
    p, t = drawn(backend)
    for at, name in enumerate(("tq", "tk", "tv")):
        for change, message in (
            (lambda x: x[:, :, 1:], "shape"),
            (lambda x: x.half(), "dtype|float16"),
            (lambda x: x.to("meta"), "device|meta"),
        ):
            changed = [change(x) if i == at else x for i, x in enumerate(t)]
            with pytest.raises(ValueError, match=message) as caught:
                attend_jvp(*p, *changed, backend=backend)
            assert name in str(caught.value)


def check_key_lengths_of_another_shape_are_refused(backend: str) -> None:
    refused(backend, "key_lengths has shape", unchanged, key_lengths=torch.tensor([1]))
    refused(backend, "key_lengths has shape", unchanged, key_lengths=torch.tensor(1))


def check_key_lengths_out_of_range_are_refused(backend: str) -> None:
    """The message names the batch entry."""
    for lengths in ([3, 21], [3, -1]):
        refused(backend, rf"key_lengths\[1\].*{lengths[1]}", unchanged, key_lengths=torch.tensor(lengths))


def check_key_lengths_that_are_not_whole_are_refused(backend: str) -> None:
    refused(backend, "key_lengths.*float32", unchanged, key_lengths=torch.tensor([1.5, 2.0]))
    refused(backend, "key_lengths.*bool", unchanged, key_lengths=torch.tensor([True, False]))


def check_what_are_no_numbers_are_refused(backend: str) -> None:
    for dtype in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn):
        refused(backend, "floating-point numbers", lambda *p, dtype=dtype: tuple(x.to(dtype) for x in p))


def check_no_heads_and_no_dimension_are_refused(backend: str) -> None:
    refused(backend, "heads, and a dimension", lambda q, k, v: (q[:, :0], k, v))
    refused(backend, "heads, and a dimension", lambda *p: tuple(x[..., :0] for x in p))


def check_key_lengths_of_any_whole_type(backend: str) -> None:
    p, t = drawn(backend, s=300)
    want = attend_jvp(*p, *t, key_lengths=torch.tensor([200, 7]), backend=backend)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        got = attend_jvp(*p, *t, key_lengths=torch.tensor([200, 7], dtype=dtype), backend=backend)
        assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


def check_key_lengths_that_are_no_tensor_are_refused(backend: str) -> None:
    p, _ = drawn(backend)
    with pytest.raises(TypeError, match="give a tensor of shape"):
        attend(*p, key_lengths=[3, 4], backend=backend)  # type: ignore[arg-type]


def check_a_scale_that_is_not_finite_is_refused(backend: str) -> None:
    for scale in (math.nan, math.inf):
        refused(backend, f"scale.*{scale}", unchanged, scale=scale)


def check_head_dimensions_that_are_too_large_are_refused_in_words(backend: str) -> None:
    p, _ = tensors(l=2, s=3, d=264)
    if backend != "triton":
        same(backend, lambda f, p: f(*p), p)
        return
    with pytest.raises(UnavailableError, match="head dimension 264 is larger than 256") as caught:
        ours(backend)(*rounded(backend, p))
    assert "can: " in str(caught.value)
    assert "math" in str(caught.value)


CHECKS = checks(globals())
