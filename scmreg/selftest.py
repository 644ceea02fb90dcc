"""Whether an attention backend computes what it should on this machine: tried once in every new environment.

A kernel that is right on one chip, driver or version of torch may be wrong on another, and a wrong tangent looks like a
model that trains badly. So the first look-up of a backend compares it with `math` in float64 on a small case: value,
tangent and gradient, eagerly and compiled.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scmreg import cache

__all__ = ["BOUNDS", "Examination", "examination"]

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Relative errors, in the Frobenius norm, beyond which a backend is wrong and not merely rounded. (tf32 is 1e-3, and
would be a mistake.)"""


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


def examination(backend: str, component: type, device: torch.device) -> Examination:
    """Compare a backend with `math` on a device, or recall a comparison that was made in this environment."""
    path = cache.folder() / f"attention-{_environment(backend, component, device)}.json"
    try:
        return Examination(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        pass
    found: list[Examination] = []
    # In a thread of its own: it has none of the caller's modes, be it of differentiation, mapping or precision.
    thread = threading.Thread(target=lambda: found.append(_examine(backend, device)))
    thread.start()
    thread.join()
    cache.write(path, json.dumps(asdict(found[0])))
    return found[0]


def _environment(backend: str, component: type, device: torch.device) -> str:
    """Return a digest of all that could change the outcome."""
    import scmreg.attention
    import scmreg.composable

    package = Path(inspect.getfile(component))
    files = sorted(package.parent.glob("*.py")) if package.name == "__init__.py" else [package]
    modules = (scmreg.attention, scmreg.composable)
    sources = [Path(inspect.getfile(module)).read_bytes() for module in modules] + [f.read_bytes() for f in files]
    chip = torch.cuda.get_device_properties(device) if device.type == "cuda" else device.type
    told = (backend, torch.__version__, torch.version.cuda, torch.version.hip, _triton(), str(chip))
    return hashlib.sha256(repr((told, sources)).encode()).hexdigest()[:16]


def _triton() -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def _examine(backend: str, device: torch.device) -> Examination:
    from scmreg.attention import operation_of

    errors: dict[str, float] = {}
    refuses = operation_of(backend).refuses
    cases = [(str(dtype)[6:], dtype, False) for dtype in BOUNDS] + [("compiled", torch.float32, True)]
    for name, dtype, compiled in cases:
        if refuses(*(x.to(device, dtype) for x in _inputs()[0])) or (compiled and not _compiles()):
            continue
        try:
            errors[name] = _error(backend, device, dtype, compiled)
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


def _inputs() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return primals and tangents of a small case of two groups of heads, whose numbers are in 16 bits exact."""
    shapes = [(2, 4, 19, 16), (2, 2, 37, 16), (2, 2, 37, 16)] * 2
    rng = torch.Generator().manual_seed(0)
    drawn = [torch.randint(-64, 65, shape, generator=rng) / 32 for shape in shapes]
    return tuple(drawn[:3]), tuple(drawn[3:])


def _error(backend: str, device: torch.device, dtype: torch.dtype, compiled: bool) -> float:
    primals, tangents = ([x.to(device, dtype) for x in given] for given in _inputs())
    wide = [[x.double() for x in given] for given in _inputs()]
    step = torch.compile(_step, fullgraph=True, backend="aot_eager") if compiled else _step
    ours, reference = _results(step, backend, primals, tangents), _results(_step, "math", *wide)
    pairs = [(x.double().cpu(), y) for x, y in zip(ours, reference, strict=True)]
    return max(float((x - y).norm() / y.norm()) for x, y in pairs)


def _step(backend: str, primals: list[Tensor], tangents: list[Tensor]) -> tuple[Tensor, Tensor]:
    from scmreg.attention import attend_jvp

    # Tangents as arguments: levels of dual numbers are counted for the whole process, and the caller may be at one.
    return attend_jvp(*primals, *tangents, backend=backend)


def _results(step: Any, backend: str, primals: list[Tensor], tangents: list[Tensor]) -> list[Tensor]:
    leaves = [x.requires_grad_() for x in primals]
    value, tangent = step(backend, leaves, tangents)
    return [value.detach(), tangent, *torch.autograd.grad(value.sum() + value.square().sum(), leaves)]
