"""The trial of attention backends in a new environment: it notices what is wrong, once, whatever the caller's modes."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import scmreg
from scmreg import attention, cache, selftest
from scmreg.attention import Attention, Operation
from scmreg.composable import composable
from scmreg.errors import UnavailableError, WrongResultError
from scmreg_attention import chunked

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment in which nothing was tried."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(attention, "_operations", {})
    monkeypatch.setattr(attention, "_obstacles", {})
    return tmp_path / "scmreg"


def give(operation: Operation, monkeypatch: pytest.MonkeyPatch, name: str = "chunked") -> None:
    monkeypatch.setattr(scmreg.attentions[name], "build", lambda self: operation)


RIGHT = composable(chunked.KERNEL)


def no_tangent(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    out, tangent = RIGHT.forward_jvp(q, k, v, *others)
    return out, torch.zeros_like(tangent)


def no_gradient(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    out, tangent = RIGHT.forward_jvp(q, k, v, *others)
    return q.sum() - q.sum() + out.detach(), tangent


def wrong_for_shared_heads(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return RIGHT.forward_jvp(q, k.flip(1), v, *others)


def wrong_when_compiled(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    out, tangent = RIGHT.forward_jvp(q, k, v, *others)
    return out, tangent * (2 if torch.compiler.is_compiling() else 1)


def raises(*_: Any) -> tuple[Tensor, Tensor]:
    raise RuntimeError("no kernel image is available")


@pytest.mark.parametrize(
    ("forward_jvp", "words"),
    [
        (no_tangent, "float64: off by 1.0e\\+00"),
        (no_gradient, "float64: off by"),
        (wrong_for_shared_heads, "float64: off by"),
        (wrong_when_compiled, "compiled: off by"),
        (raises, "float64: RuntimeError: no kernel image is available"),
    ],
)
def test_a_backend_that_is_wrong_is_refused(forward_jvp: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    give(RIGHT._replace(forward_jvp=forward_jvp), monkeypatch)
    x = torch.randn(1, 1, 3, 4)
    for _ in range(2):
        with pytest.raises(WrongResultError, match=words) as caught:
            scmreg.attend(x, x, x, backend="chunked")
    assert "backend='math'" in str(caught.value)
    scmreg.attend(x, x, x, backend="math")


def test_what_is_not_a_number_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    give(RIGHT._replace(forward_jvp=lambda q, k, v, *_: ((q + k.sum() + v.sum()) * torch.nan, q.detach())), monkeypatch)
    with pytest.raises(WrongResultError, match="off by nan"):
        attention.operation_of("chunked")


def test_auto_warns_and_takes_another(monkeypatch: pytest.MonkeyPatch) -> None:
    give(RIGHT._replace(forward_jvp=no_tangent), monkeypatch, "triton")
    monkeypatch.setattr(scmreg.attentions["triton"], "unavailable", classmethod(lambda cls: None))

    class OnGpu:
        is_cuda, dtype, shape, device = True, torch.float32, (1, 1, 600, 16), torch.device("cuda")

    x: Any = OnGpu()
    with pytest.warns(RuntimeWarning, match="attention 'triton' fails its trial.*\n.*\n.*takes another"):
        name, reason = attention.choose(x, x, x)
    assert name == "chunked"
    assert "'triton' fails its trial" in reason


def test_it_is_tried_once_in_an_environment(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    original = selftest._examine
    monkeypatch.setattr(selftest, "_examine", lambda *x: tried.append(x) or original(*x))
    attention.operation_of("chunked")
    attention._operations.clear()
    attention.operation_of("chunked")
    assert len(tried) == 1
    (path,) = fresh.iterdir()
    path.write_text("{ cut off")
    attention._operations.clear()
    attention.operation_of("chunked")
    assert len(tried) == 2
    monkeypatch.setattr(torch, "__version__", "99.0")
    attention._operations.clear()
    attention.operation_of("chunked")
    assert len(tried) == 3
    assert len(list(fresh.iterdir())) == 2


def test_a_changed_source_is_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.py"
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(__file__=str(path)))
    monkeypatch.setattr(Attention, "__module__", "mine")
    path.write_text("one")
    first = selftest._environment("mine", Attention)
    assert selftest._environment("mine", Attention) == first
    path.write_text("two")
    assert selftest._environment("mine", Attention) != first


def test_what_was_written_at_a_prompt_can_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace())
    monkeypatch.setattr(Attention, "__module__", "mine")
    assert selftest._environment("mine", Attention)


def test_a_failure_is_not_kept(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        give(RIGHT._replace(forward_jvp=raises), patch)
        with pytest.raises(WrongResultError, match="no kernel image"):
            attention.operation_of("chunked")
    assert not fresh.exists()
    attention.operation_of("chunked")


def test_what_fails_to_say_what_it_refuses_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    give(RIGHT._replace(refuses=raises), monkeypatch)
    with pytest.raises(WrongResultError, match="no kernel image"):
        attention.operation_of("chunked")


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_coarse_products_that_the_user_allows_are_not_wrong(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    try:
        attention.operation_of("chunked")
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_backend_of_the_documentation_is_right() -> None:
    """The kernel of the page, from its text: what is registered under its name is tried like any other."""
    page = (Path(__file__).parents[2] / "docs/how-to/attention.md").read_text()
    (text,) = re.findall(r'^```python title="stock.py"\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "stock"}
    exec(text, names)
    attention._operations["stock"] = names["Stock"]().build()
    found = selftest._examine("stock", CPU, True)
    assert found.failure is None
    assert {"float64", "float32", "compiled"} <= set(found.errors)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(cache, "folder", lambda: tmp_path / "file" / "below")
    attention.operation_of("chunked")


@contextlib.contextmanager
def under_vmap() -> Any:
    yield
    x = torch.randn(2, 1, 2, 3, 4)
    assert torch.func.vmap(lambda x: scmreg.attend(x, x, x, backend="chunked"))(x).shape == x.shape


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        torch.autograd.forward_ad.dual_level,
        lambda: torch.autograd.graph.saved_tensors_hooks(lambda x: 0 / 0, lambda x: x),
        under_vmap,
    ],
)
def test_modes_of_the_caller_do_not_matter(mode: Any) -> None:
    with mode():
        attention.operation_of("chunked")
    found = selftest.examination("chunked", scmreg.attentions["chunked"])
    assert found.failure is None
    assert set(found.errors) == {"float64", "float32", "float16", "bfloat16", "compiled"}
    assert found.errors["float32"] < 1e-6


@pytest.mark.parametrize(
    "call",
    [
        "torch.func.vmap(torch.func.grad(lambda x: scmreg.attend(x, x, x).sum()))(x)",
        "torch.func.vmap(lambda x: scmreg.attend(x, x, x))(x[:0])",
        "torch.inference_mode()(scmreg.attend)(x[0], x[0], x[0])",
        "torch.device('meta').__enter__(); scmreg.attend(x[0], x[0], x[0])",
    ],
)
def test_the_first_call_of_a_process_may_be_in_any_mode(call: str) -> None:
    """A process of its own: its modules are imported in that mode too."""
    code = f"import torch, scmreg; x = torch.randn(3, 1, 2, 4, 8); {call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_begins_inside_a_jvp() -> None:
    x, tx = torch.randn(2, 1, 2, 3, 4)
    _, tangent = torch.func.jvp(lambda x: scmreg.attend(x, x, x, backend="chunked"), (x,), (tx,))
    assert bool(tangent.any())


def test_where_nothing_compiles_the_rest_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("Dynamo is not supported on Python 3.99+")

    monkeypatch.setattr(torch, "compile", refuse)
    attention.operation_of("chunked")
    found = selftest.examination("chunked", scmreg.attentions["chunked"])
    assert found.failure is None
    assert set(found.errors) == {"float64", "float32", "float16", "bfloat16"}


def test_the_error_is_one_of_the_user() -> None:
    assert issubclass(WrongResultError, UnavailableError)
    assert WrongResultError("x").exit_code == 2
