"""Properties of the Triton backend, each a function that asserts it; run in the interpreter by `triton_worker`."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.autograd import forward_ad as fwad
from torch.utils.checkpoint import checkpoint

import scmreg
from scmreg import attend, attend_jvp
from scmreg.attention import AUTO, choose, operation_of, prepare
from scmreg.errors import UnavailableError

Three = tuple[Tensor, Tensor, Tensor]


def tensors(batch: int = 2, heads: int = 4, kv: int = 2, l: int = 9, s: int = 70, d: int = 16) -> tuple[Three, Three]:  # noqa: E741
    rng = torch.Generator().manual_seed(l + s)
    shapes = [(batch, heads, l, d), *[(batch, kv, s, d)] * 2] * 2
    q, k, v, tq, tk, tv = (torch.randn(shape, generator=rng) for shape in shapes)
    return (q, k, v), (tq, tk, tv)


def ours(*x: Any, **keywords: Any) -> Any:
    return attend(*x, backend="triton", **keywords)


def reference(*x: Any, **keywords: Any) -> Any:
    return attend(*x, backend="math", **keywords)


def same(function: Callable[[Any], Any]) -> None:
    """Check that what is done with our attention gives what it gives with the reference."""
    leaves = torch.utils._pytree.tree_leaves
    pairs = zip(leaves(function(ours)), leaves(function(reference)), strict=True)
    for mine, other in ((x.detach(), y.detach()) for x, y in pairs):
        assert bool(other.any())
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=2e-5 * float(other.abs().max()))


def grads(out: Tensor, leaves: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), leaves)


def fresh(x: Three) -> Three:
    q, k, v = (t.clone().requires_grad_() for t in x)
    return q, k, v


# -- what holds of the tangent ---------------------------------------------------------------------------------------


def check_linear_in_the_tangents() -> None:
    p, t = tensors()
    _, u = tensors(s=70, l=9)
    u = tuple(x.flip(0).contiguous() for x in u)
    once, other = (attend_jvp(*p, *x, backend="triton")[1] for x in (t, u))
    twice = attend_jvp(*p, *(2 * x for x in t), backend="triton")[1]
    assert torch.equal(twice, 2 * once)
    both = attend_jvp(*p, *(3 * x - y for x, y in zip(t, u, strict=True)), backend="triton")[1]
    torch.testing.assert_close(both, 3 * once - other, rtol=1e-5, atol=1e-5)


def check_zero_for_zero_tangents() -> None:
    p, _ = tensors()
    for dtype in (torch.float32, torch.float16):
        x = [y.to(dtype) for y in p]
        out, tangent = attend_jvp(*x, *(torch.zeros_like(y) for y in x), backend="triton")
        assert not tangent.any()
        assert torch.equal(out, attend(*x, backend="triton"))


def check_common_tangent_of_the_keys_changes_nothing() -> None:
    p, (tq, tk, tv) = tensors()
    plain = attend_jvp(*p, tq, tk, tv, backend="triton")[1]
    shifted = attend_jvp(*p, tq, tk + 30 * torch.randn(2, 2, 1, 16), tv, backend="triton")[1]
    torch.testing.assert_close(shifted, plain, rtol=1e-4, atol=2e-5)


def check_common_value_moves_the_value_alone() -> None:
    (q, k, v), t = tensors(kv=4)
    shift = 30 * torch.randn(2, 4, 1, 16)
    plain, moved = (attend_jvp(q, k, x, *t, backend="triton") for x in (v, v + shift))
    torch.testing.assert_close(moved[0], plain[0] + shift, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(moved[1], plain[1], rtol=1e-4, atol=5e-5)


def check_rows_that_see_no_key_are_zero() -> None:
    p, t = tensors(l=90, s=70)
    lengths = torch.tensor([0, 30])
    out, tangent = attend_jvp(*p, *t, key_lengths=lengths, backend="triton")
    assert not out[0].any()
    assert not tangent[0].any()
    out, tangent = attend_jvp(*p, *t, causal=True, backend="triton")
    assert not out[:, :, :20].any()
    assert not tangent[:, :, :20].any()
    assert bool(out[:, :, 20:].all())
    leaves = fresh(p)
    for x in grads(ours(*leaves, causal=True), leaves):
        assert bool(x.isfinite().all())


def check_what_is_masked_is_not_read() -> None:
    p, t = tensors()
    lengths = torch.tensor([40, 64])
    clean = attend_jvp(*p, *t, key_lengths=lengths, backend="triton")
    for x in (*p[1:], *t[1:]):
        x[0, :, 40:] = float("nan")
        x[1, :, 64:] = float("inf")
    dirty = attend_jvp(*p, *t, key_lengths=lengths, backend="triton")
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(clean[1], dirty[1])


def check_what_is_not_a_number_is_seen() -> None:
    for at in range(3):
        p, t = tensors()
        p[at][0, 0, 3] = float("nan")
        out, tangent = attend_jvp(*p, *t, backend="triton")
        assert bool(out[0, 0].isnan().any())
        assert bool(tangent[0, 0].isnan().any())
        assert bool(out[1].isfinite().all())


def check_scale_of_any_sign() -> None:
    p, t = tensors()
    for scale in (-0.7, 0.0, 2.0):
        mine, other = (attend_jvp(*p, *t, scale=scale, backend=name) for name in ("triton", "math"))
        for x, y in zip(mine, other, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def check_nothing_at_all() -> None:
    for batch, l, s in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):  # noqa: E741
        p, t = tensors(batch=batch, l=l, s=s)
        out, tangent = attend_jvp(*p, *t, backend="triton")
        assert out.shape == tangent.shape == p[0].shape
        assert not out.any()
        assert not tangent.any()


# -- how it composes ---------------------------------------------------------------------------------------------------


def check_func_jvp() -> None:
    p, t = tensors()
    same(lambda f: func.jvp(f, p, t))
    same(lambda f: func.jvp(lambda k: f(p[0], k, p[2]), (p[1],), (t[1],)))


def check_forward_ad() -> None:
    p, t = tensors()

    def dual(f: Any) -> Any:
        with fwad.dual_level():
            return tuple(fwad.unpack_dual(f(*map(fwad.make_dual, p, t))))

    same(dual)


def check_gradient() -> None:
    for keywords in ({}, {"causal": True}, {"key_lengths": torch.tensor([5, 60])}):
        for sizes in ({}, {"l": 70}):
            p, _ = tensors(**sizes)

            def gradient(f: Any, p: Three = p, keywords: Any = keywords) -> Any:
                leaves = fresh(p)
                return grads(f(*leaves, **keywords), leaves)

            same(gradient)


def check_gradient_of_layouts() -> None:
    p, _ = tensors()

    def gradient(f: Any) -> Any:
        leaves = [x.transpose(1, 2).contiguous().requires_grad_() for x in p]
        return grads(f(*(x.transpose(1, 2) for x in leaves)), leaves)

    same(gradient)


def check_func_grad_over_jvp() -> None:
    p, t = tensors()

    def loss(f: Any, *p: Tensor) -> Tensor:
        out, tangent = func.jvp(f, p, t)
        return (out * tangent.detach()).sum()

    same(lambda f: func.grad(lambda *p: loss(f, *p), (0, 1, 2))(*p))
    same(lambda f: func.grad(lambda *p: f(*p).square().sum(), (0, 1, 2))(*p))


def check_gradient_of_the_value_and_none_of_the_tangent() -> None:
    p, t = tensors()

    def gradient(f: Any) -> Any:
        leaves = fresh(p)
        out, tangent = func.jvp(f, leaves, t)
        assert not tangent.requires_grad
        return grads(out, leaves)

    same(gradient)
    moving = [x.clone().requires_grad_() for x in t]
    out, tangent = attend_jvp(*p, *moving, backend="triton")
    assert not out.requires_grad
    assert not tangent.requires_grad


def check_vmap() -> None:
    p, t = (tuple(torch.stack([x, x.flip(2), -x]) for x in y) for y in tensors())
    same(lambda f: func.vmap(f)(*p))
    same(lambda f: func.vmap(f, in_dims=(None, 0, 1))(p[0][0], p[1], p[2].movedim(0, 1)))
    same(lambda f: func.vmap(lambda p, t: func.jvp(f, p, t))(p, t))

    def loss(f: Any, p: Any, t: Any) -> Tensor:
        out, tangent = func.jvp(f, p, t)
        return (out * tangent.detach()).sum()

    same(lambda f: func.vmap(lambda p, t: func.grad(lambda p: loss(f, p, t))(p))(p, t))


def check_checkpoint() -> None:
    p, t = tensors()

    def gradient(f: Any) -> Any:
        leaves = fresh(p)
        return grads(checkpoint(f, *leaves, use_reentrant=False), leaves)

    def under_jvp(f: Any) -> Any:
        leaves = fresh(p)
        out, tangent = func.jvp(lambda *x: checkpoint(f, *x, use_reentrant=False), leaves, t)
        return tangent.detach(), *grads(out, leaves)

    same(gradient)
    same(under_jvp)


def check_compile() -> None:
    """Value, tangent and gradient survive, whatever the lengths, in one graph."""

    def step(f: Any, p: Any, t: Any) -> Any:
        out, tangent = func.jvp(f, p, t)
        return out, tangent.detach()

    compiled = torch.compile(lambda p, t: step(ours, p, t), fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (20, 33):
        p, t = tensors(l=length)

        def run(f: Any, p: Three = p, t: Three = t) -> Any:
            leaves = fresh(p)
            out, tangent = compiled(leaves, t) if f is ours else step(f, leaves, t)
            assert not tangent.requires_grad
            return out, tangent, *grads(out, leaves)

        same(run)
    plain = torch.compile(ours, fullgraph=True, backend="aot_eager")

    def value(f: Any) -> Any:
        leaves = fresh(p)
        out = (plain if f is ours else f)(*leaves)
        return out, *grads(out, leaves)

    same(value)


def check_operators() -> None:
    """What is promised of the operators to the compiler is true: strides, aliases, gradients."""
    from scmreg_attention import fused

    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors()[0])
    leaves = [x.requires_grad_() for x in (q, k, v)]
    for tangents, lengths in (((q.detach(), None, v.detach()), None), ((None,) * 3, torch.tensor([3, 70]))):
        torch.library.opcheck(fused.attention, (*leaves, *tangents, lengths, 0.3, False))
    out, _, lse = fused.attention(*leaves, None, None, None, None, 0.3, False)
    arguments = [x.detach() for x in (out, *leaves, out, lse)]
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(fused.attention_backward, (*arguments, None, 0.3, False), test_utils=tests)


def check_second_derivatives_are_refused() -> None:
    p, t = tensors()
    with pytest.raises(NotImplementedError):
        func.jvp(lambda x: func.jvp(lambda y: ours(y, *p[1:]), (x,), (t[0],))[1], (p[0],), (t[0],))
    check_second_gradients_are_refused()


def check_lse() -> None:
    """The log-sum-exp is that of the logits, in natural units, and 0 where there are none."""
    from scmreg_attention import fused

    (q, k, v), _ = tensors(kv=4)
    _, _, lse = fused.attention(q, k, v, None, None, None, torch.tensor([0, 50]), 0.3, False)
    assert not lse[0].any()
    torch.testing.assert_close(lse[1], torch.logsumexp(0.3 * q[1] @ k[1, :, :50].mT, -1), rtol=1e-5, atol=1e-5)


def check_torch_in_place_of_the_kernel() -> None:
    """What torch computes where there is no tangent keeps all promises; on the CPU its kernel for the CPU stands in."""
    from scmreg_attention import fused, stock

    asked: list[Tensor] = []

    def value(
        q: Tensor, k: Tensor, v: Tensor, key_lengths: Tensor | None, scale: float, causal: bool
    ) -> tuple[Tensor, Tensor]:
        asked.append(q)
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = operator(q, k, v, 0.0, causal, scale=scale)
        return torch.empty_like(q).copy_(out), lse.contiguous()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stock, "value", value)
        patch.setattr(fused, "launch", None)
        for sizes in ({}, {"l": 70}):
            p, _ = tensors(**sizes)

            def gradient(f: Any, p: Three = p) -> Any:
                leaves = fresh(p)
                out = f(*leaves)
                return out, *grads(out, leaves)

            same(gradient)
        check_gradient_of_layouts()
        same(lambda f: func.grad(lambda *p: f(*p).square().sum(), (0, 1, 2))(*p))
        batched = tuple(torch.stack([x, x.flip(2), -x]) for x in p)
        same(lambda f: func.vmap(f)(*batched))
        same(lambda f: func.vmap(func.grad(lambda q, k, v: f(q, k, v).square().sum()))(*batched))
        compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="aot_eager")

        def step(f: Any) -> Any:
            leaves = fresh(p)
            out = (compiled if f is ours else f)(*leaves)
            return out, *grads(out, leaves)

        same(step)
        check_second_gradients_are_refused()
    assert len(asked) >= 7


def check_second_gradients_are_refused() -> None:
    p, _ = tensors()
    leaf = p[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ours(leaf, *p[1:]).square().sum(), leaf, create_graph=True)
    with pytest.raises(UnavailableError, match="once, not twice"):
        gradient.sum().backward()


def check_nothing_is_timed_in_the_interpreter() -> None:
    from scmreg_attention import launch, tune

    p, t = tensors()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "quickest", None)
        attend_jvp(*p, *t, backend="triton")
        ours(*p)
    assert len(launch.candidates(16, 4, launch.architecture(p[0].device), True)) == 1
    assert not tune.choices()


# -- what it refuses ---------------------------------------------------------------------------------------------------


def check_refusals() -> None:
    (q, k, v), _ = tensors()
    for change, words in (
        (lambda x: x.double(), "float32, float16, not in float64"),
        (lambda x: x.bfloat16(), "not in bfloat16"),
        (lambda x: x.repeat(1, 1, 1, 17), "head dimension 272 is larger than 256"),
    ):
        with pytest.raises(UnavailableError, match=words) as caught:
            ours(*map(change, (q, k, v)))
        assert "can: " in str(caught.value)
        assert "math" in str(caught.value)


def check_it_is_there_but_not_chosen_on_the_cpu() -> None:
    assert scmreg.attentions["triton"].unavailable() is None
    assert "triton" in AUTO
    prepare("auto")
    p, _ = tensors()
    assert choose(*p)[0] == "math"
    assert operation_of("triton").refuses(*p) is None


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


def run(name: str) -> Iterator[tuple[str, str]]:
    """Run the checks whose names are given, joined by commas; yield each name with its traceback, empty if it held."""
    for one in name.split(","):
        try:
            CHECKS[one]()
        except BaseException:
            yield one, traceback.format_exc()
        else:
            yield one, ""
