"""Attention backends against the formula, under every way of differentiating, mapping and compiling that is promised.

The rows of the table are functions of `attention_properties` and `attention_composition`; a backend that is registered
is tested by that. Triton's interpreter runs them in a process of its own.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import attention_composition
import attention_properties
import pytest
import torch
from attention_reference import grads, tensors
from torch import Tensor
from torch.utils._pytree import tree_leaves

import scmreg
from scmreg import attention
from scmreg.attention import choose
from scmreg.errors import UnavailableError, UnknownComponentError
from scmreg_attention import chunked

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


@pytest.mark.parametrize("sizes", [{"l": 1, "s": 600}, {"l": 23, "s": 20, "h": 4, "hk": 2}, {"l": 70, "s": 90}])
@pytest.mark.parametrize("causal", [False, True])
def test_chunked_does_not_depend_on_its_blocks(
    sizes: dict[str, int], causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, t = tensors(**sizes)
    lengths = torch.tensor([sizes["s"], sizes["s"] // 3])

    def everything(logits: int, rows: int) -> list[Tensor]:
        monkeypatch.setitem(chunked.LOGITS, "cpu", logits)
        monkeypatch.setattr(chunked, "ROWS", rows)
        leaves = [x.clone().requires_grad_() for x in p]
        out, tangent = scmreg.attend_jvp(*leaves, *t, causal=causal, key_lengths=lengths, backend="chunked")
        return [out, tangent, *grads(out, leaves)]

    once = everything(10**6, 16)
    for blocks in ((1, 1), (1, 4), (300, 1), (5000, 7)):
        for some, whole in zip(everything(*blocks), once, strict=True):
            torch.testing.assert_close(some, whole, rtol=1e-12, atol=1e-13)


def test_chunked_needs_memory_linear_in_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor that is made grows faster than the inputs do."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            sizes = [
                x.untyped_storage().nbytes() // x.element_size() for x in tree_leaves(made) if isinstance(x, Tensor)
            ]
            largest[0] = max(largest[0], *sizes, 0)
            return made

    monkeypatch.setitem(chunked.LOGITS, "cpu", 2**12)

    def most(length: int) -> int:
        p, t = tensors(batch=1, l=length, s=length)
        leaves = [x.requires_grad_() for x in p]
        largest[0] = 0
        with Watch():
            out, _ = scmreg.attend_jvp(*leaves, *t, backend="chunked")
            grads(out, leaves)
        return largest[0]

    assert most(1024) == 2 * most(512)


def test_auto_says_why() -> None:
    x = torch.zeros(1, 1, 8, 4)
    name, reason = choose(x, x, x)
    assert name == "chunked"
    assert "memory linear in the length" in reason


def test_unknown_backend() -> None:
    with pytest.raises(UnknownComponentError, match="mathe"):
        scmreg.attend(*tensors()[0], backend="mathe")


def test_a_backend_that_refuses_names_one_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = attention.operation_of("chunked")._replace(refuses=lambda q, k, v, options: "not today")
    monkeypatch.setitem(attention._operations, "chunked", stubborn)
    with pytest.raises(UnavailableError, match="not today") as error:
        scmreg.attend(*tensors()[0], backend="chunked")
    assert "can: math" in str(error.value)


def test_a_backend_that_cannot_run_here_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_operations", {})
    monkeypatch.setattr(scmreg.attentions["chunked"], "unavailable", classmethod(lambda cls: "no such machine"))
    with pytest.raises(UnavailableError, match="no such machine"):
        scmreg.attend(*tensors()[0], backend="chunked")
