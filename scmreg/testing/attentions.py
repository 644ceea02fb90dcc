"""Checks of attention backends, against the formula and its derivatives by torch in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scmreg.attention import AttentionOptions, Operation, visible
from scmreg.registry import registry
from scmreg.selftest import BOUNDS, examination
from scmreg.testing.checks import check
from scmreg.testing.trial import Trial


class Inputs(NamedTuple):
    """Queries, keys and values, their tangents, and what is seen."""

    primals: tuple[Tensor, Tensor, Tensor]
    tangents: tuple[Tensor, Tensor, Tensor]
    options: AttentionOptions

    def double(self) -> Inputs:
        """Return the same on the CPU in float64."""
        lengths = self.options.key_lengths
        options = AttentionOptions(self.options.scale, self.options.causal, None if lengths is None else lengths.cpu())
        return Inputs(_double(self.primals), _double(self.tangents), options)


def _double(given: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (x.cpu().double() for x in given)
    return q, k, v


def reference(options: AttentionOptions, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return ``softmax(scale Q Kᵀ) V``, written out; rows that see no key are zero."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    logits = options.scale * (q @ k.mT)
    mask = visible(options, q.shape[2], torch.arange(k.shape[2]), k.shape[2])
    if mask is None:
        return torch.softmax(logits, -1) @ v
    nothing = ~mask.any(-1, keepdim=True)
    weights = torch.softmax(logits.masked_fill(~mask & ~nothing, float("-inf")), -1)
    return weights.masked_fill(nothing, 0.0) @ v


def tried(trial: Trial) -> tuple[Operation, Inputs, torch.dtype]:
    """Return the operation, an input that it does not refuse, and its precision."""
    operation: Operation = trial.component.build()
    dtype = trial.choose("precision", (torch.float64, torch.float32, torch.bfloat16))
    heads, key_heads = trial.choose("heads of queries and keys", ((1, 1), (4, 4), (4, 2)))
    length, keys = trial.whole("queries", 1, 40), trial.whole("keys", 1, 40)
    causal = trial.choose("causal", (False, True))
    trial.assume(not causal or keys >= length)
    lengths = None
    if trial.choose("key lengths", (False, True)):
        lengths = torch.randint(1, keys + 1, (2,), generator=trial.rng)
    shapes = [(2, heads, length, 16), *[(2, key_heads, keys, 16)] * 2]
    device = "cpu"
    for device in ("cpu", *["cuda"] * torch.cuda.is_available()):
        # Numbers that sixteen bits hold.
        drawn = [torch.randint(-64, 65, shape, generator=trial.rng) / 32 for shape in shapes * 2]
        q, k, v, tq, tk, tv = (x.to(device, dtype) for x in drawn)
        options = AttentionOptions(0.25, causal, None if lengths is None else lengths.to(device))
        inputs = Inputs((q, k, v), (tq, tk, tv), options)
        if operation.refuses(*inputs.primals, options) is None:
            return operation, inputs, dtype
    trial.assume(False)
    raise AssertionError("the case was refused")


def compare(trial: Trial, what: str, found: Tensor, known: Tensor, dtype: torch.dtype, advice: str) -> None:
    """Expect a result to be the reference but for rounding."""
    found = found.detach().double().cpu()
    trial.expect(found.shape == known.shape, f"{what} has shape {tuple(found.shape)}, expected {tuple(known.shape)}")
    size = float(known.norm())
    off = float((found - known).norm()) / size if size else float(found.norm())
    trial.expect(
        off <= BOUNDS[dtype],
        f"{what} is off by {off:.3g} of its norm in {dtype}, more than the {BOUNDS[dtype]:g} of rounding: {advice}",
    )


@check("attention", examples=25)
def attention_values(trial: Trial) -> None:
    """The value is softmax(scale Q Kᵀ) V, whatever is masked and however heads are shared."""
    operation, inputs, dtype = tried(trial)
    exact = inputs.double()
    known = reference(exact.options, *exact.primals)
    advice = "compare with softmax(scale Q Kᵀ) V, its masks and shared heads"
    compare(trial, "the value", operation.forward(*inputs.primals, inputs.options), known, dtype, advice)
    value, _ = operation.forward_jvp(*inputs.primals, *inputs.tangents, inputs.options)
    compare(trial, "the value beside a tangent", value, known, dtype, advice)


@check("attention", examples=25)
def attention_tangents(trial: Trial) -> None:
    """The tangent is the directional derivative, also where some inputs have none."""
    operation, inputs, dtype = tried(trial)
    exact = inputs.double()
    present = trial.choose("tangents of q, k, v", ((1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)))
    zeros = [tx if there else torch.zeros_like(tx) for tx, there in zip(exact.tangents, present, strict=True)]
    _, known = torch.func.jvp(  # type: ignore[misc]
        lambda *x: reference(exact.options, *x), exact.primals, tuple(zeros)
    )
    given = [tx if there else None for tx, there in zip(inputs.tangents, present, strict=True)]
    _, tangent = operation.forward_jvp(*inputs.primals, *given, inputs.options)
    trial.expect(not tangent.requires_grad, "the tangent has a graph: no gradient flows through it, detach it")
    compare(
        trial,
        "the tangent",
        tangent,
        known,
        dtype,
        "compare with (P∘tS) V - rowsum(P∘tS)∘O + P tV, tS = scale (tQ Kᵀ + Q tKᵀ)",
    )


@check("attention", examples=15)
def attention_gradients(trial: Trial) -> None:
    """The gradient in queries, keys and values is that of the value, with and without a tangent beside it."""
    operation, inputs, dtype = tried(trial)
    exact = inputs.double()
    leaves = q, k, v = exact.primals
    for x in leaves:
        x.requires_grad_()
    known = torch.autograd.grad(reference(exact.options, q, k, v).square().sum(), leaves)
    for beside in (False, True):
        ours = q, k, v = tuple(x.detach().clone().requires_grad_() for x in inputs.primals)
        if beside:
            value, _ = operation.forward_jvp(q, k, v, *inputs.tangents, inputs.options)
        else:
            value = operation.forward(q, k, v, inputs.options)
        found = torch.autograd.grad(value.square().sum(), ours, allow_unused=True)
        for name, ours_found, wanted in zip("qkv", found, known, strict=True):
            if ours_found is None:
                trial.fail(f"the value has no gradient in {name}: it must be differentiable in q, k and v")
            compare(
                trial,
                f"the gradient in {name}",
                ours_found,
                wanted,
                dtype,
                "compare with that of softmax(scale Q Kᵀ) V",
            )


@check("attention", examples=1)
def attention_passes_its_trial(trial: Trial) -> None:
    """Registered, it passes the trial before its first use: eagerly in every precision, and compiled."""
    name = trial.cls.name
    if registry("attention").get(name) is not trial.cls or name == "math":
        return  # what is not registered is not looked up by name, and math is what others are compared with
    found = examination(name, trial.cls)
    trial.expect(
        found.failure is None,
        f"its trial against math on {found.device} fails, so that attend() will refuse it: {found.failure}; a kernel"
        " composes with autograd and the compiler by scmreg.composable",
    )
