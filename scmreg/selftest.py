"""Whether an attention backend computes what it should on this machine: tried once in every new environment.

A kernel that is right on one chip or version of torch may be wrong on another, and a wrong tangent looks like a
model that trains badly. So the first look-up of a backend compares it with `math` in float64 on a small case: value,
tangent and gradient, eagerly and compiled.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scmreg import cache

__all__ = ["BOUNDS", "Examination", "examination"]

BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-2, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Relative errors, in the Frobenius norm, beyond which a backend is wrong and not merely rounded: products in float32
may be allowed to round to tf32 or bfloat16."""


@dataclass(frozen=True)
class Examination:
    """What a comparison with `math` gave."""

    backend: str
    device: str
    errors: dict[str, float]
    """Largest relative error of value, tangent and gradient, by type; ``compiled`` in float32, where there is a
    compiler."""
    failure: str | None = None
    """What is wrong; ``None`` if nothing is."""


def examination(backend: str, component: type) -> Examination:
    """Compare a backend with `math`, or recall a comparison that was made in this environment.

    It is tried on the CPU, or on the GPU if it takes nothing there.
    """
    path = cache.folder() / f"attention-{_environment(backend, component)}.json"
    try:
        return Examination(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        pass
    # The compiler does one thing at a time: while it traces the caller, there is no trying it.
    tracing = torch._guards.TracingContext.try_get() is not None
    found: list[Examination] = []
    # In a thread of its own: it has none of the caller's modes, be it of differentiation, mapping or precision.
    thread = threading.Thread(target=lambda: found.extend(_examine_all(backend, not tracing)))
    thread.start()
    thread.join()
    # A failure is not kept: the memory of a device may only have been full.
    if not tracing and found[-1].failure is None:
        cache.write(path, json.dumps(asdict(found[-1])))
    return found[-1]


def _examine_all(backend: str, compiling: bool) -> Iterator[Examination]:
    """Examine on one device after another until something has been computed."""
    for device in ("cpu", *["cuda"] * torch.cuda.is_available()):
        found = _examine(backend, torch.device(device), compiling)
        yield found
        if found.errors or found.failure:
            return


def _environment(backend: str, component: type) -> str:
    """Return a digest of all that could change the outcome."""
    names = ("scmreg.attention", "scmreg.composable", __name__, component.__module__)
    sources: list[bytes] = []
    for module in (sys.modules[name] for name in names):
        package = sys.modules.get((getattr(module, "__package__", "") or "").partition(".")[0])
        folders = [] if package is None or package.__name__ == "scmreg" else getattr(package, "__path__", [])
        files = [file for folder in folders for file in sorted(Path(folder).rglob("*.py"))]
        own = getattr(module, "__file__", None)
        sources += [file.read_bytes() for file in files or ([Path(own)] if own else [])]
    chip = str(torch.cuda.get_device_properties("cuda")) if torch.cuda.is_available() else ""
    interpreted = os.environ.get("TRITON_INTERPRET")
    told = (backend, torch.__version__, torch.version.cuda, torch.version.hip, _triton(), interpreted, chip)
    return hashlib.sha256(repr((told, sources)).encode()).hexdigest()[:16]


def _triton() -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def _examine(backend: str, device: torch.device, compiling: bool) -> Examination:
    errors: dict[str, float] = {}
    trials = [(str(dtype)[6:], dtype, False) for dtype in BOUNDS]
    if compiling and _compiles():
        trials.append(("compiled", torch.float32, True))
    for name, dtype, compiled in trials:
        try:
            cases = [case for case in _cases() if not _refused(backend, case.to(device, dtype))]
            if not cases:
                continue
            errors[name] = max(_error(backend, case, device, dtype, compiled) for case in cases)
        except Exception as error:
            return Examination(backend, str(device), errors, f"{name}: {type(error).__name__}: {error}")
        if not errors[name] <= BOUNDS[dtype]:
            failure = f"{name}: off by {errors[name]:.1e} of the norm, more than {BOUNDS[dtype]:.0e}"
            return Examination(backend, str(device), errors, failure)
    return Examination(backend, str(device), errors)


def _compiles() -> bool:
    """Whether `torch.compile` works here at all: it does not know every Python."""
    try:
        torch.compile(torch.sin, backend="eager")(torch.zeros(1))
    except Exception:
        return False
    return True


class _Case(NamedTuple):
    primals: list[Tensor]
    tangents: list[Tensor]
    causal: bool = False
    key_lengths: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> _Case:
        primals, tangents = ([x.to(device, dtype) for x in given] for given in self[:2])
        lengths = None if self.key_lengths is None else self.key_lengths.to(device)
        return _Case(primals, tangents, self.causal, lengths)


def _case(key_heads: int, causal: bool, key_lengths: Tensor | None) -> _Case:
    """Return a small case, whose numbers are in 16 bits exact."""
    shapes = [(2, 4, 19, 16), *[(2, key_heads, 37, 16)] * 2] * 2
    rng = torch.Generator().manual_seed(0)
    drawn = [torch.randint(-64, 65, shape, generator=rng) / 32 for shape in shapes]
    return _Case(drawn[:3], drawn[3:], causal, key_lengths)


def _cases() -> tuple[_Case, ...]:
    """Return a case in which all is seen, and one in which less is; a backend is tried on those it does not refuse."""
    return _case(4, False, None), _case(2, True, torch.tensor([37, 21]))


def _refused(backend: str, case: _Case) -> bool:
    from scmreg.attention import AttentionOptions, operation_of

    options = AttentionOptions(0.25, case.causal, case.key_lengths)
    q, k, v = case.primals
    return operation_of(backend).refuses(q, k, v, options) is not None


def _error(backend: str, case: _Case, device: torch.device, dtype: torch.dtype, compiled: bool) -> float:
    step = torch.compile(_step, fullgraph=True, backend="aot_eager") if compiled else _step
    ours = _results(step, backend, case.to(device, dtype))
    reference = _results(_step, "math", case.to(torch.device("cpu"), torch.float64))
    pairs = [(x.double().cpu(), y) for x, y in zip(ours, reference, strict=True)]
    # The largest of numbers may hide one that is none.
    return float(torch.stack([(x - y).norm() / y.norm() for x, y in pairs]).max())


def _step(backend: str, case: _Case) -> tuple[Tensor, Tensor, Tensor]:
    from scmreg.attention import attend_jvp

    # Tangents as arguments: levels of dual numbers are counted for the whole process, and the caller may be at one.
    options: dict[str, Any] = {"causal": case.causal, "key_lengths": case.key_lengths, "backend": backend}
    (q, k, v), (tq, tk, tv) = case.primals, case.tangents
    value, tangent = attend_jvp(q, k, v, tq, tk, tv, **options)
    return value, tangent, attend_jvp(q, k, v, None, None, None, **options)[0]


def _results(step: Any, backend: str, case: _Case) -> list[Tensor]:
    """Return the value with a tangent, the tangent, the value without one, and the gradient of both values."""
    leaves = [x.detach().clone().requires_grad_() for x in case.primals]
    value, tangent, alone = step(backend, case._replace(primals=leaves))
    gradients = torch.autograd.grad((value + value.square() + 2 * alone.square()).sum(), leaves)
    return [value.detach(), tangent, alone.detach(), *gradients]
