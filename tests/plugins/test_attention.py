"""Attention backends against the formula, under every way of differentiating, mapping and compiling that is promised.

The rows of the table are functions of `attention_properties` and `attention_composition`; a backend that is registered
is tested by that. Triton's interpreter runs them in a process of its own.
"""

from __future__ import annotations

import importlib.util

import attention_composition
import attention_properties
import pytest
import torch
from attention_reference import grads, tensors
from torch import Tensor

import scmreg
from scmreg import attention
from scmreg.attention import AttentionOptions, choose
from scmreg.errors import UnavailableError, UnknownComponentError

BACKENDS = [name for name in scmreg.attentions if scmreg.attentions[name].unavailable() is None]
CHECKS = attention_properties.CHECKS | attention_composition.CHECKS
ROWS = [pytest.param(name, marks=[pytest.mark.slow] * hasattr(check, "slow")) for name, check in CHECKS.items()]


def test_the_rows_have_names_of_their_own() -> None:
    assert len(CHECKS) == len(attention_properties.CHECKS) + len(attention_composition.CHECKS)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "triton"])
def test_row(backend: str, name: str) -> None:
    CHECKS[name](backend)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize("name", ROWS)
def test_row_in_the_interpreter(name: str, interpreted: dict[str, str]) -> None:
    assert not interpreted[name], interpreted[name]


def test_chunked_does_not_depend_on_its_chunk() -> None:
    p, t = tensors(l=1, s=600)
    options = AttentionOptions(0.5, True, torch.tensor([600, 257]))

    def everything(chunk: int) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in p]
        operation = scmreg.attentions.create("chunked", chunk=chunk).build()
        out, tangent = operation.forward_jvp(*leaves, *t, options)
        return [out, tangent, *grads(out, leaves)]

    once = everything(10_000)
    for chunk in (1, 7, 256):
        for some, whole in zip(everything(chunk), once, strict=True):
            torch.testing.assert_close(some, whole, rtol=1e-12, atol=1e-13)


def test_auto_says_why() -> None:
    short, long = torch.zeros(1, 1, 8, 4), torch.zeros(1, 1, 600, 4)
    assert choose(short, short, short)[0] == "math"
    name, reason = choose(short, long, long)
    assert name == "chunked"
    assert "600 keys" in reason


def test_unknown_backend() -> None:
    with pytest.raises(UnknownComponentError, match="mathe"):
        scmreg.attend(*tensors()[0], backend="mathe")


def test_a_backend_that_refuses_names_one_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = attention.operation_of("chunked")._replace(refuses=lambda q, k, v: "not today")
    monkeypatch.setitem(attention._operations, "chunked", stubborn)
    with pytest.raises(UnavailableError, match="not today") as error:
        scmreg.attend(*tensors()[0], backend="chunked")
    assert "can: math" in str(error.value)


def test_a_backend_that_cannot_run_here_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_operations", {})
    monkeypatch.setattr(scmreg.attentions["chunked"], "unavailable", classmethod(lambda cls: "no such machine"))
    with pytest.raises(UnavailableError, match="no such machine"):
        scmreg.attend(*tensors()[0], backend="chunked")
