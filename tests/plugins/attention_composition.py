"""Every way of differentiating, mapping and compiling that `attend` is promised to compose with: a function each.

Value, tangent and gradient of the value are compared with the reference wherever they exist.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from itertools import product
from typing import Any
from unittest import mock

import pytest
import torch
from attention_reference import (
    Three,
    Transform,
    agree,
    checks,
    differentiated,
    ours,
    reference,
    rounded,
    same,
    slow,
    tensors,
)
from torch import Tensor, func
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad as fwad
from torch.utils.checkpoint import checkpoint

from scmreg import attend_jvp, attention
from scmreg.errors import UnavailableError

CASES: list[tuple[dict[str, int], dict[str, Any]]] = [
    ({"h": 2, "hk": 2, "l": 7, "s": 7, "d": 4}, {}),
    ({"h": 4, "hk": 2, "l": 5, "s": 9, "d": 3}, {"scale": 0.9}),
    ({"h": 4, "hk": 1, "l": 9, "s": 5, "d": 8}, {"causal": True}),
    ({"h": 2, "hk": 2, "l": 6, "s": 6, "d": 4}, {"causal": True}),
    ({"h": 2, "hk": 2, "l": 3, "s": 8, "d": 4}, {"key_lengths": torch.tensor([8, 0, 3])}),
    ({"h": 2, "hk": 1, "l": 1, "s": 600, "d": 4}, {"key_lengths": torch.tensor([600, 257, 1]), "causal": True}),
]
SUBSETS = [subset for subset in product((True, False), repeat=3) if any(subset)]


def cases() -> list[tuple[Three, Three, dict[str, Any]]]:
    return [(*tensors(batch=3, **sizes), keywords) for sizes, keywords in CASES]


def masked(p: Three, t: Three, subset: tuple[bool, ...]) -> tuple[Any, Any]:
    """Return which of the arguments move, and the tangents with zeros for the others."""
    moving = [i for i, present in enumerate(subset) if present]
    return moving, tuple(x if present else torch.zeros_like(x) for x, present in zip(t, subset, strict=True))


def jvp(f: Any, p: Three, t: Three) -> tuple[Tensor, Tensor]:
    out, tangent = func.jvp(f, p, t)
    return out, tangent


def dual(f: Any, p: Three, t: Any) -> tuple[Tensor, Tensor]:
    with fwad.dual_level():
        duals = (x if tx is None else fwad.make_dual(x, tx) for x, tx in zip(p, t, strict=True))
        out = fwad.unpack_dual(f(*duals))
        return out.primal, out.tangent


# -- one transform ---------------------------------------------------------------------------------------------------


def check_eager(backend: str) -> None:
    for p, t, keywords in cases():
        same(backend, differentiated(lambda f, p, t, keywords=keywords: (f(*p, **keywords),)), p, t)


def check_func_jvp(backend: str) -> None:
    for p, t, keywords in cases():
        same(
            backend,
            differentiated(lambda f, p, t, keywords=keywords: jvp(functools.partial(f, **keywords), p, t)),
            p,
            t,
        )


def check_func_jvp_where_only_some_have_a_tangent(backend: str) -> None:
    p, t = tensors()
    for subset in SUBSETS:
        moving, filled = masked(p, t, subset)

        def some(f: Any, p: Three, t: Three, moving: list[int] = moving) -> tuple[Tensor, Tensor]:
            def moved(*x: Tensor) -> Tensor:
                now = dict(zip(moving, x, strict=True))
                return f(*(now.get(i, p[i]) for i in range(3)))

            if f is reference:
                return jvp(f, p, t)
            return jvp(moved, tuple(p[i] for i in moving), tuple(t[i] for i in moving))

        same(backend, differentiated(some), p, filled)


def check_func_jvp_where_none_has_a_tangent(backend: str) -> None:
    """What else moves keeps its own tangent, and the attention adds nothing to it."""
    p, t = tensors()
    same(backend, differentiated(lambda f, p, t: jvp(lambda x: f(*p) + x, (p[0],), (t[0],))), p, t)


def check_forward_ad(backend: str) -> None:
    for p, t, keywords in cases():
        same(
            backend,
            differentiated(lambda f, p, t, keywords=keywords: dual(functools.partial(f, **keywords), p, t)),
            p,
            t,
        )


def check_forward_ad_where_only_some_have_a_tangent(backend: str) -> None:
    p, t = tensors()
    for subset in SUBSETS:
        _, filled = masked(p, t, subset)

        def some(f: Any, p: Three, t: Three, subset: tuple[bool, ...] = subset) -> tuple[Tensor, Tensor]:
            return dual(f, p, [tx if present else None for tx, present in zip(t, subset, strict=True)])

        same(backend, differentiated(some), p, filled)


def check_attend_jvp(backend: str) -> None:
    # The grid of `test_triton` has all subsets with all sizes.
    for (p, t, keywords), subset in product(cases(), SUBSETS[:1] if backend == "triton" else SUBSETS):
        _, filled = masked(p, t, subset)

        def explicit(
            f: Any, p: Three, t: Three, keywords: Any = keywords, subset: tuple[bool, ...] = subset
        ) -> tuple[Tensor, Tensor]:
            if f is reference:
                return jvp(functools.partial(f, **keywords), p, t)
            given = [tx if present else None for tx, present in zip(t, subset, strict=True)]
            return attend_jvp(*p, *given, backend=backend, **keywords)

        same(backend, differentiated(explicit), p, filled)


def check_tangents_that_require_a_gradient_get_none(backend: str) -> None:
    p, t = rounded(backend, tensors())
    out, tangent = attend_jvp(*p, *(x.clone().requires_grad_() for x in t), backend=backend)
    assert not out.requires_grad
    assert not tangent.requires_grad


# -- transforms of transforms ----------------------------------------------------------------------------------------


def loss(f: Any, p: Three, t: Three) -> Tensor:
    """A loss as that of a consistency model: the value times the tangent, which is held constant."""
    out, tangent = func.jvp(f, p, t)
    return (out.square() + out * tangent.detach()).sum()


def check_func_grad(backend: str) -> None:
    p, _ = tensors()
    same(backend, lambda f, p: func.grad(lambda p: f(*p).square().sum())(p), p)


def check_func_grad_over_func_jvp(backend: str) -> None:
    p, t = tensors()
    same(backend, lambda f, p, t: func.grad_and_value(lambda p: loss(f, p, t))(p), p, t)


def many() -> tuple[Three, Three]:
    return tensors(extra=(3,))


def check_vmap(backend: str) -> None:
    same(backend, differentiated(lambda f, p, t: (func.vmap(f)(*p),)), *many())


def check_vmap_of_vmap(backend: str) -> None:
    p, t = tensors(extra=(2, 3))
    same(backend, differentiated(lambda f, p, t: (func.vmap(func.vmap(f), in_dims=1)(*p),)), p, t)


def check_vmap_of_jvp(backend: str) -> None:
    same(backend, differentiated(lambda f, p, t: func.vmap(functools.partial(jvp, f))(p, t)), *many())


def check_vmap_of_jvp_where_only_some_have_a_tangent(backend: str) -> None:
    p, t = many()
    for at in range(3):

        def some(f: Any, p: Three, t: Three, at: int = at) -> tuple[Tensor, Tensor]:
            def one(p: Three, tx: Tensor) -> tuple[Tensor, Tensor]:
                return jvp(lambda x: f(*p[:at], x, *p[at + 1 :]), (p[at],), (tx,))  # type: ignore[arg-type]

            return func.vmap(one)(p, t[at])

        same(backend, differentiated(some), p, t)


def check_jvp_of_vmap(backend: str) -> None:
    same(backend, differentiated(lambda f, p, t: jvp(func.vmap(f), p, t)), *many())


def check_jvp_of_vmap_where_only_some_have_a_tangent(backend: str) -> None:
    """Batched and moving, batched alone, moving alone: each of the arguments in turn is what the others are not."""
    p, t = many()
    for at in range(3):

        def some(f: Any, p: Three, t: Three, at: int = at) -> tuple[Tensor, Tensor]:
            return jvp(lambda x: func.vmap(f)(*p[:at], x, *p[at + 1 :]), (p[at],), (t[at],))  # type: ignore[arg-type]

        def moving_alone(f: Any, p: Three, t: Three, at: int = at) -> tuple[Tensor, Tensor]:
            dims = tuple(None if i == at else 0 for i in range(3))
            mapped = func.vmap(f, in_dims=dims)
            return jvp(lambda x: mapped(*p[:at], x, *p[at + 1 :]), (p[at][0],), (t[at][0],))  # type: ignore[arg-type]

        same(backend, differentiated(some), p, t)
        same(backend, differentiated(moving_alone), p, t)


def check_jvp_of_vmap_of_vmap(backend: str) -> None:
    p, t = tensors(extra=(2, 3))
    same(backend, differentiated(lambda f, p, t: jvp(func.vmap(func.vmap(f)), p, t)), p, t)


def check_vmap_of_jvp_of_vmap(backend: str) -> None:
    p, t = tensors(extra=(2, 3))
    same(backend, differentiated(lambda f, p, t: func.vmap(functools.partial(jvp, func.vmap(f)))(p, t)), p, t)


def check_forward_ad_of_vmap(backend: str) -> None:
    same(backend, differentiated(lambda f, p, t: dual(func.vmap(f), p, t)), *many())


def check_grad_of_jvp_of_vmap(backend: str) -> None:
    same(backend, lambda f, p, t: func.grad(lambda p: loss(func.vmap(f), p, t))(p), *many())


def check_vmap_of_grad_of_jvp(backend: str) -> None:
    same(backend, lambda f, p, t: func.vmap(func.grad(functools.partial(loss, f)))(p, t), *many())


DIMS: list[tuple[int | None, ...]] = [
    (0, 0, 0, 0),
    (None, 0, 1, 1),
    (1, None, 0, None),
    (0, 1, None, 0),
    (None, None, None, 1),
]
"""Where q, k, v and the key lengths have the dimension that is mapped."""


def in_dims(backend: str, transform: Callable[..., Transform]) -> None:
    p, t = many()
    lengths = torch.tensor([[5, 20], [20, 0], [7, 9]])
    for dims in DIMS:

        def place(x: Tensor, dim: int | None) -> Tensor:
            return x[0] if dim is None else x.movedim(0, dim)

        def placed(f: Any, p: Three, t: Three, dims: Any = dims, place: Any = place) -> tuple[Tensor, ...]:
            def masked(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
                return f(q, k, v, key_lengths=lengths)

            p, t = (tuple(map(place, x, dims)) for x in (p, t))
            return transform(masked, p, t, place(lengths, dims[3]), dims)

        # What is not mapped is cut from what is given, so its gradient shows in a part of it.
        same(backend, differentiated(placed), p, t)


def check_vmap_along_any_dimension_with_key_lengths(backend: str) -> None:
    in_dims(backend, lambda f, p, t, lengths, dims: (func.vmap(f, in_dims=dims)(*p, lengths),))


def check_vmap_of_jvp_along_any_dimension_with_key_lengths(backend: str) -> None:
    def transform(f: Any, p: Three, t: Three, lengths: Tensor, dims: Any) -> tuple[Tensor, Tensor]:
        def one(p: Three, t: Three, lengths: Tensor) -> tuple[Tensor, Tensor]:
            return jvp(lambda *p: f(*p, lengths), p, t)

        return func.vmap(one, in_dims=(dims[:3], dims[:3], dims[3]))(p, t, lengths)

    in_dims(backend, transform)


def check_jvp_of_vmap_along_any_dimension_with_key_lengths(backend: str) -> None:
    def transform(f: Any, p: Three, t: Three, lengths: Tensor, dims: Any) -> tuple[Tensor, Tensor]:
        return jvp(lambda *p: func.vmap(f, in_dims=dims)(*p, lengths), p, t)

    in_dims(backend, transform)


def check_jacobians(backend: str) -> None:
    """The whole derivative, by columns and by rows."""
    p, _ = tensors(batch=1, h=1, hk=1, l=2, s=3, d=2)
    want = func.jacrev(lambda *p: reference(*p), (0, 1, 2))(*p)
    for whole in (func.jacfwd, func.jacrev):
        agree(backend, whole(lambda *p: ours(backend)(*p), (0, 1, 2))(*rounded(backend, p)), want)


# -- checkpointing ---------------------------------------------------------------------------------------------------


def saved(f: Any) -> Any:
    """Return attention that is computed again in the backward pass."""
    return f if f is reference else functools.partial(checkpoint, f, use_reentrant=False)


def check_checkpoint(backend: str) -> None:
    same(backend, differentiated(lambda f, p, t: (saved(f)(*p),)), *tensors())


def check_checkpoint_inside_func_jvp(backend: str) -> None:
    same(backend, differentiated(lambda f, p, t: jvp(saved(f), p, t)), *tensors())


def check_checkpoint_inside_forward_ad(backend: str) -> None:
    same(backend, differentiated(lambda f, p, t: dual(saved(f), p, t)), *tensors())


# -- compilation -----------------------------------------------------------------------------------------------------


def compiled(backend: str, transform: Transform, compiler: Any = "aot_eager", **options: Any) -> Transform:
    """Return a transform that is compiled from outside, in one graph; with the reference it stays as it is."""
    attention.prepare(backend)
    torch._dynamo.reset()
    whole = torch.compile(functools.partial(transform, ours(backend)), fullgraph=True, backend=compiler, **options)
    return lambda f, p, t: transform(f, p, t) if f is reference else whole(p, t)


def check_compile(backend: str) -> None:
    step = compiled(backend, lambda f, p, t: (f(*p),))
    same(backend, differentiated(step), *tensors())


def check_compile_of_func_jvp(backend: str) -> None:
    """Neither the tangent is lost, as under compilation inside of the JVP, nor the gradient, as with a Function."""
    lengths = torch.tensor([5, 20])
    for keywords in ({}, {"causal": True, "scale": 0.3}, {"key_lengths": lengths}):
        step = compiled(backend, lambda f, p, t, keywords=keywords: jvp(functools.partial(f, **keywords), p, t))
        same(backend, differentiated(step), *tensors())


def check_compile_of_forward_ad(backend: str) -> None:
    same(backend, differentiated(compiled(backend, dual)), *tensors())


def check_compile_of_attend_jvp(backend: str) -> None:
    def explicit(f: Any, p: Three, t: Three) -> tuple[Tensor, Tensor]:
        return jvp(f, p, t) if f is reference else attend_jvp(*p, *t, backend=backend)

    same(backend, differentiated(compiled(backend, explicit)), *tensors())


def lengths_without_recompiling(backend: str, compiler: str) -> None:
    counter = CompileCounterWithBackend(compiler)
    step = compiled(backend, jvp, counter, dynamic=True)
    for length in (20, 33, 64):
        same(backend, differentiated(step), *tensors(l=length, s=length))
    assert counter.frame_count == 1, f"compiled {counter.frame_count} times for three lengths"


def check_compile_once_for_all_lengths(backend: str) -> None:
    lengths_without_recompiling(backend, "aot_eager")


@slow
def check_compile_with_inductor(backend: str) -> None:
    lengths_without_recompiling(backend, "inductor")


def check_compile_of_vmap(backend: str) -> None:
    same(backend, differentiated(compiled(backend, lambda f, p, t: (func.vmap(f)(*p),))), *many())


def check_compile_of_vmap_of_jvp(backend: str) -> None:
    same(
        backend, differentiated(compiled(backend, lambda f, p, t: func.vmap(functools.partial(jvp, f))(p, t))), *many()
    )


def check_compile_looks_up_the_backend(backend: str) -> None:
    """The first call of all may be a compiled one."""
    with mock.patch.object(attention, "_operations", {}):
        step = torch.compile(ours(backend), fullgraph=True, backend="aot_eager")
        p, t = tensors()
        same(backend, differentiated(lambda f, p, t: ((f if f is reference else step)(*p),)), p, t)


def right_or_refused(backend: str, function: Callable[..., Any], *inputs: Any) -> None:
    """Check that what torch cannot compile raises; that it is silently wrong is the one thing that may not be."""
    want = function(reference, *inputs)
    try:
        got = function(ours(backend), *rounded(backend, inputs))
    except (RuntimeError, torch._dynamo.exc.Unsupported):
        return
    agree(backend, got, want)


def check_compile_of_grad_of_jvp_is_right_or_refused(backend: str) -> None:
    def gradient(f: Any, p: Three, t: Three) -> Any:
        return func.grad(functools.partial(loss, f))(p, t)

    right_or_refused(backend, compiled(backend, gradient), *tensors())


def check_compile_inside_of_the_jvp_keeps_the_tangent(backend: str) -> None:
    """torch leaves what is compiled inside of a JVP to eager execution, or refuses."""
    torch._dynamo.reset()
    attention.prepare(backend)
    p, t = tensors()
    for outer in (jvp, dual):
        for fullgraph in (False, True):
            inner = torch.compile(ours(backend), backend="aot_eager", fullgraph=fullgraph)
            right_or_refused(
                backend, lambda f, p, t, inner=inner, outer=outer: outer(f if f is reference else inner, p, t), p, t
            )
    with warnings.catch_warnings():
        # The compiler looks for the gradient of a tensor that has none, on its way to leaving the matter to others.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor", UserWarning)
        inner = torch.compile(ours(backend), backend="aot_eager")
        same(backend, differentiated(lambda f, p, t: jvp(f if f is reference else inner, p, t)), p, t)


# -- second derivatives ----------------------------------------------------------------------------------------------


def gradient_of_gradient(f: Any, p: Three) -> tuple[Tensor, ...]:
    leaves = tuple(x.clone().requires_grad_() for x in p)
    first = torch.autograd.grad(f(*leaves).square().sum(), leaves, create_graph=True)
    return torch.autograd.grad(sum(x.square().sum() for x in first), leaves)


def func_gradient_of_gradient(f: Any, p: Three) -> Any:
    def first(p: Three) -> Tensor:
        return sum(x.square().sum() for x in func.grad(lambda p: f(*p).square().sum())(p))  # type: ignore[return-value]

    return func.grad(first)(p)


def check_second_gradient_is_right_or_refused_in_words(backend: str) -> None:
    p, _ = tensors()
    for second in (gradient_of_gradient, func_gradient_of_gradient):
        if backend == "math":
            same(backend, second, p)
        else:
            with pytest.raises(UnavailableError, match="once, not twice") as caught:
                second(ours(backend), rounded(backend, p))
            assert "can: math" in str(caught.value)


def check_second_gradient_after_the_jvp_is_right_or_refused_in_words(backend: str) -> None:
    """The value that comes with a tangent has the same gradient, of the same order."""
    p, t = tensors()

    def beside_a_tangent(f: Any, p: Three) -> tuple[Tensor, ...]:
        tangents = rounded(backend, t) if f is not reference else t
        return gradient_of_gradient(lambda *p: func.jvp(f, p, tangents)[0], p)

    if backend == "math":
        same(backend, beside_a_tangent, p)
    else:
        with pytest.raises(UnavailableError, match="once, not twice"):
            beside_a_tangent(ours(backend), rounded(backend, p))


def refused_or_right(backend: str, function: Callable[..., Any], *inputs: Any) -> None:
    """Check that a second derivative is the right one, or that there is an error."""
    try:
        got = function(ours(backend), *rounded(backend, inputs))
    except (NotImplementedError, UnavailableError):
        return
    agree(backend, got, function(reference, *inputs))


def check_jvp_of_jvp_is_never_silently_wrong(backend: str) -> None:
    p, t = tensors()

    def twice(which: int) -> Callable[..., Tensor]:
        def second(f: Any, p: Three, t: Three) -> Tensor:
            return func.jvp(lambda *p: func.jvp(f, p, t)[which], p, t)[1]

        return second

    refused_or_right(backend, twice(0), p, t)
    refused_or_right(backend, twice(1), p, t)


def check_jvp_of_gradient_is_never_silently_wrong(backend: str) -> None:
    """The product of a Hessian and a vector, forward over reverse."""

    def product_with_the_hessian(f: Any, p: Three, t: Three) -> Any:
        return func.jvp(func.grad(lambda p: f(*p).square().sum()), (p,), (t,))[1]

    p, t = tensors()
    if backend == "math":
        same(backend, product_with_the_hessian, p, t)
    else:
        refused_or_right(backend, product_with_the_hessian, p, t)


CHECKS = checks(globals())
