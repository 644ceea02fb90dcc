"""Attention backends against each other, autograd and float64, under every way of differentiating that is promised."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad as fwad

import scmreg
from scmreg import attention
from scmreg.attention import AttentionOptions, choose, visible
from scmreg.errors import UnavailableError, UnknownComponentError
from scmreg_attention import chunked

BACKENDS = [name for name in scmreg.attentions if scmreg.attentions[name].unavailable() is None]
CASES: list[dict[str, Any]] = [
    {"h": 2, "hk": 2, "l": 7, "s": 7, "d": 4},
    {"h": 4, "hk": 2, "l": 5, "s": 9, "d": 3},
    {"h": 4, "hk": 1, "l": 9, "s": 5, "d": 8, "causal": True},
    {"h": 2, "hk": 2, "l": 6, "s": 6, "d": 4, "causal": True},
    {"h": 2, "hk": 2, "l": 3, "s": 8, "d": 4, "lengths": [8, 0, 3]},
    {"h": 2, "hk": 1, "l": 1, "s": 600, "d": 4, "lengths": [600, 257, 1], "causal": True},
]


def tensors(case: dict[str, Any], dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(seed)
    shapes = [(3, case["h"], case["l"], case["d"]), *[(3, case["hk"], case["s"], case["d"])] * 2] * 2
    return tuple(torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for shape in shapes)


def keywords(case: dict[str, Any]) -> dict[str, Any]:
    lengths = case.get("lengths")
    return {"causal": case.get("causal", False), "key_lengths": None if lengths is None else torch.tensor(lengths)}


def plain(q: Tensor, k: Tensor, v: Tensor, case: dict[str, Any]) -> Tensor:
    """The reference: explicit softmax attention, with autograd's own rules in both modes."""
    options = AttentionOptions(q.shape[-1] ** -0.5, **keywords(case))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    logits = options.scale * (q @ k.mT)
    mask = visible(options, q.shape[2], torch.arange(k.shape[2]), k.shape[2])
    if mask is None:
        return torch.softmax(logits, -1) @ v
    weight = torch.where(mask, torch.exp(logits - logits.detach().amax(-1, keepdim=True)), 0.0)
    return (weight / weight.sum(-1, keepdim=True).clamp_min(1e-300)) @ v


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_value_and_gradient(backend: str, case: dict[str, Any]) -> None:
    *inputs, weight, _, _ = tensors(case)
    leaves = [x.requires_grad_() for x in inputs]
    outs = []
    for function in (
        lambda *x: scmreg.attend(*x, backend=backend, **keywords(case)),
        lambda *x: plain(*x, case),
    ):
        out = function(*leaves)
        outs.append((out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)))
    for ours, reference in zip(*outs, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("present", [p for p in product([0, 1], repeat=3) if any(p)])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_tangent(backend: str, case: dict[str, Any], present: tuple[int, ...]) -> None:
    """The three ways to a tangent agree with autograd on the explicit formula, whichever tangents are given."""
    *primals, tq, tk, tv = tensors(case)
    given = [t if p else None for p, t in zip(present, (tq, tk, tv), strict=True)]
    filled = [torch.zeros_like(x) if t is None else t for x, t in zip(primals, given, strict=True)]
    value, expected = torch.func.jvp(lambda *x: plain(*x, case), tuple(primals), tuple(filled))

    out, tangent = scmreg.attend_jvp(*primals, *given, backend=backend, **keywords(case))
    torch.testing.assert_close(out, value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(tangent, expected, rtol=1e-10, atol=1e-12)

    moving = tuple(i for i, p in enumerate(present) if p)

    def moved(*x: Tensor) -> Tensor:
        full = list(primals)
        for i, value in zip(moving, x, strict=True):
            full[i] = value
        return scmreg.attend(*full, backend=backend, **keywords(case))

    _, tangent = torch.func.jvp(moved, tuple(primals[i] for i in moving), tuple(filled[i] for i in moving))
    torch.testing.assert_close(tangent, expected, rtol=1e-10, atol=1e-12)
    with fwad.dual_level():
        duals = [x if t is None else fwad.make_dual(x, t) for x, t in zip(primals, given, strict=True)]
        dual = scmreg.attend(*duals, backend=backend, **keywords(case))
        torch.testing.assert_close(fwad.unpack_dual(dual).tangent, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_primal_keeps_its_gradient_under_jvp_and_the_tangent_has_none(backend: str) -> None:
    case = CASES[1]
    *primals, tq, _tk, _tv = tensors(case)
    q = primals[0].requires_grad_()
    out, tangent = torch.func.jvp(lambda q: scmreg.attend(q, *primals[1:], backend=backend), (q,), (tq,))
    (gradient,) = torch.autograd.grad(out.square().sum(), q)
    (expected,) = torch.autograd.grad(plain(q, *primals[1:], case).square().sum(), q)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    assert not tangent.requires_grad

    def loss(q: Tensor) -> Tensor:
        out, tangent = torch.func.jvp(lambda q: scmreg.attend(q, *primals[1:], backend=backend), (q,), (tq,))
        return (out.square() + tangent.detach()).sum()

    torch.testing.assert_close(torch.func.grad(loss)(q.detach()), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_in_the_tangents_and_zero_for_zero(backend: str) -> None:
    case = CASES[3]
    *primals, tq, tk, tv = tensors(case)
    tangents = (tq, tk, tv)
    _, once = scmreg.attend_jvp(*primals, *tangents, backend=backend)
    _, twice = scmreg.attend_jvp(*primals, *(2 * t for t in tangents), backend=backend)
    torch.testing.assert_close(twice, 2 * once, rtol=1e-12, atol=1e-13)
    _, none = scmreg.attend_jvp(*primals, *(torch.zeros_like(t) for t in tangents), backend=backend)
    assert not none.any()
    _, none = scmreg.attend_jvp(*primals, None, None, None, backend=backend)
    assert not none.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_that_sees_no_key_is_zero(backend: str) -> None:
    *primals, tq, tk, tv = tensors(CASES[4])
    lengths = torch.tensor([8, 0, 3])
    out, tangent = scmreg.attend_jvp(*primals, tq, tk, tv, key_lengths=lengths, backend=backend)
    assert not out[1].any()
    assert not tangent[1].any()
    assert bool(out[0].any()) and bool(tangent[2].any())  # noqa: PT018


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_lower_precision(backend: str, dtype: torch.dtype) -> None:
    case = {"h": 2, "hk": 2, "l": 64, "s": 700, "d": 16}
    inputs = tensors(case, dtype)
    exact = scmreg.attend_jvp(*(x.double() for x in inputs), backend="math")
    ours = scmreg.attend_jvp(*inputs, backend=backend)
    bound = 1e-6 if dtype == torch.float32 else 2e-2
    for got, want in zip(ours, exact, strict=True):
        assert got.dtype == dtype
        assert float((got.double() - want).norm() / want.norm()) < bound


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_with_forward_mode(backend: str) -> None:
    q, k, v, *_ = tensors({"h": 2, "hk": 1, "l": 3, "s": 4, "d": 2})
    inputs = tuple(x.requires_grad_() for x in (q, k, v))
    assert torch.autograd.gradcheck(
        lambda *x: scmreg.attend(*x, backend=backend),
        inputs,
        check_forward_ad=True,
        check_undefined_grad=False,
        check_batched_grad=False,
    )


@pytest.mark.parametrize("case", CASES)
def test_chunked_does_not_depend_on_its_blocks(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    primals = tensors(case)
    results = []
    for logits, rows in ((1, 1), (1, 4), (300, 1), (10**6, 16)):
        monkeypatch.setitem(chunked.LOGITS, "cpu", logits)
        monkeypatch.setattr(chunked, "ROWS", rows)
        leaves = [x.clone().requires_grad_() for x in primals[:3]]
        out, tangent = scmreg.attend_jvp(*leaves, *primals[3:], backend="chunked", **keywords(case))
        results.append((out.detach(), tangent, *torch.autograd.grad((out * tangent).sum(), leaves)))
    for other in results[1:]:
        for x, y in zip(other, results[0], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)


def test_auto_says_why() -> None:
    x = torch.zeros(1, 1, 8, 4)
    name, reason = choose(x, x, x)
    assert name == "chunked"
    assert "memory linear in the length" in reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[0], k, v), "4|batch, heads"),
        (lambda q, k, v: (q, k, v[:, :, 1:]), "agree"),
        (lambda q, k, v: (q[..., 1:], k, v), "agree"),
        (lambda q, k, v: (torch.cat([q, q[:, :1]], 1), k, v), "3 query heads"),
        (lambda q, k, v: (q.float(), k, v), "dtypes"),
    ],
)
def test_bad_input(change: Any, message: str) -> None:
    q, k, v, *_ = tensors(CASES[0])
    with pytest.raises(ValueError, match=message):
        scmreg.attend(*change(q, k, v))


def test_unknown_backend_and_mismatched_tangent() -> None:
    q, k, v, *_ = tensors(CASES[0])
    with pytest.raises(UnknownComponentError, match="mathe"):
        scmreg.attend(q, k, v, backend="mathe")
    with pytest.raises(ValueError, match=r"tq is .* they must agree"):
        scmreg.attend_jvp(q, k, v, q[:, :, 1:], None, None)
    with pytest.raises(ValueError, match="key_lengths"):
        scmreg.attend(q, k, v, key_lengths=torch.tensor([1]))


def test_a_backend_that_refuses_names_one_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = attention.operation_of("chunked")._replace(refuses=lambda q, k, v, options: "not today")
    monkeypatch.setitem(attention._operations, "chunked", stubborn)
    q, k, v, *_ = tensors(CASES[0])
    with pytest.raises(UnavailableError, match="not today") as error:
        scmreg.attend(q, k, v, backend="chunked")
    assert "can: math" in str(error.value)


def test_a_backend_that_cannot_run_here_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_operations", {})
    monkeypatch.setattr(scmreg.attentions["chunked"], "unavailable", classmethod(lambda cls: "no such machine"))
    q, k, v, *_ = tensors(CASES[0])
    with pytest.raises(UnavailableError, match="no such machine"):
        scmreg.attend(q, k, v, backend="chunked")
