"""What tests draw from: options of a component, times, data, small random networks."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import strategies as st
from torch import Tensor

from scmreg.component import Component
from scmreg.coordinates import from_trig
from scmreg.denoiser import Denoiser
from scmreg.options import Option, options_of
from scmreg.parameterization import Parameterization
from scmreg.process import Process
from scmreg.proofs import Smooth
from scmreg.registry import registry

__all__ = [
    "any_options",
    "batches",
    "close",
    "denoiser",
    "near_options",
    "pair",
    "parameterizations",
    "processes",
    "seeds",
    "shapes",
    "times",
]

SIGMA_DATA = (0.3, 0.5, 1.0)

seeds = st.integers(0, 2**31 - 1)
shapes = st.sampled_from([(1,), (2,), (3, 2, 2), (1, 4, 4)])
batches = st.integers(1, 5)

Values = dict[str, Any]


def near_options(cls: type[Component]) -> st.SearchStrategy[Values]:
    """Draw options that differ from the defaults and are about as large: each is left alone, or is another choice, a
    number between a third and three times the default, another component with its own defaults.

    What has no default, and what no bounds or choices describe (text, paths, lists), is left alone.
    """
    return _drawn({option.name: _near(option) for option in options_of(cls)})


def any_options(cls: type[Component]) -> st.SearchStrategy[Values]:
    """Draw options as far as their declared types and bounds reach; each may be left alone."""
    return _drawn({option.name: _any(option) for option in options_of(cls)})


@st.composite
def _drawn(draw: st.DrawFn, of: Mapping[str, st.SearchStrategy[Any] | None]) -> Values:
    """Draw some of the options; none is the simplest case."""
    known = {name: strategy for name, strategy in of.items() if strategy is not None}
    return {name: draw(strategy) for name, strategy in known.items() if draw(st.booleans())}


def _near(option: Option) -> st.SearchStrategy[Any] | None:
    if option.component is not None:
        return _components(option)
    kind, low, high = _bounds(option.annotation)
    default = option.default
    if kind in (int, float) and (default is None or isinstance(default, int | float)):
        size = float(default or 0.0)
        if low >= 0 or size:
            near = (
                (size / 3, size * 3)
                if size > 0
                else (size * 3, size / 3)
                if size
                else (0.0 if kind is int else 0.25, 2.0)
            )
        else:
            near = (-1.0, 1.0)
        if kind is int:
            # Numbers of things: hardly more of them than by default, so that a case is small.
            most = min(size if size > 2 else size + 1, high)
            return st.integers(math.ceil(max(near[0], low)), max(math.floor(most), math.ceil(low)))
        if math.isfinite(low) and math.isfinite(high):  # a share: neither nothing nor everything
            near = (low + 0.1 * (high - low), high - 0.1 * (high - low))
        return st.floats(max(near[0], low), min(near[1], high))
    return _choices(kind)


def _any(option: Option) -> st.SearchStrategy[Any] | None:
    if option.component is not None:
        return _components(option)
    kind, _, _ = _bounds(option.annotation)
    if (chosen := _choices(kind)) is not None:
        return chosen
    if kind is float:
        declared = st.floats(-1e6, 1e6) if option.annotation is float else st.from_type(option.annotation)
        return declared.filter(_moderate)
    if kind in (int, str) or typing.get_origin(kind) is tuple:
        return st.from_type(option.annotation).filter(_moderate)
    return None


def _moderate(value: Any) -> bool:
    """Whether all numbers within a value can be computed with."""
    if isinstance(value, tuple):
        return all(_moderate(item) for item in value)
    return not isinstance(value, float) or abs(value) < 1e300


def _components(option: Option) -> st.SearchStrategy[Any] | None:
    """Draw a registered component that needs no options, by name."""
    assert option.component is not None
    if option.many:
        return None
    found = registry(option.component.kind)
    names = [
        name
        for name, cls in found.items()
        if cls.unavailable() is None and not any(each.default is dataclasses.MISSING for each in options_of(cls))
    ]
    return st.sampled_from(names) if names else None


def _choices(kind: Any) -> st.SearchStrategy[Any] | None:
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(typing.get_args(kind))
    return st.booleans() if kind is bool else None


def _bounds(annotation: Any) -> tuple[Any, float, float]:
    """Return the type under bounds and ``None``, and the bounds."""
    low, high = -math.inf, math.inf
    args = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
    if type(None) in typing.get_args(annotation) and len(args) == 1:
        annotation = args[0]
    if typing.get_origin(annotation) is typing.Annotated:
        annotation, *metadata = typing.get_args(annotation)
        for bound in (item for group in metadata for item in (group if hasattr(group, "__iter__") else (group,))):
            if isinstance(bound, Ge | Gt):
                given: Any = bound.ge if isinstance(bound, Ge) else bound.gt
                low = max(low, given)
            elif isinstance(bound, Le | Lt):
                given = bound.le if isinstance(bound, Le) else bound.lt
                high = min(high, given)
    return annotation, low, high


def required(cls: type[Component]) -> tuple[str, ...]:
    """Name the options without a default."""
    return tuple(option.name for option in options_of(cls) if option.default is dataclasses.MISSING)


def is_path(option: Option) -> bool:
    """Whether an option is a place of files, of which there can be no default."""
    kind = _bounds(option.annotation)[0]
    return isinstance(kind, type) and issubclass(kind, Path)


@st.composite
def processes(draw: st.DrawFn) -> Process:
    """Draw a registered process with a drawn scale of the data."""
    name = draw(st.sampled_from(sorted(registry("process"))))
    made: Process = registry("process").create(name, sigma_data=draw(st.sampled_from(SIGMA_DATA)))
    return made


@st.composite
def parameterizations(draw: st.DrawFn) -> Parameterization:
    """Draw a registered parameterization."""
    made: Parameterization = registry("parameterization").create(
        draw(st.sampled_from(sorted(registry("parameterization"))))
    )
    return made


def times(process: Process, count: int, rng: torch.Generator, low: float = 0.05, high: float = 1.45) -> Tensor:
    """Return process times, float64, whose TrigFlow times are uniform in ``[low, high]``."""
    t_hat = low + (high - low) * torch.rand(count, generator=rng, dtype=torch.float64)
    return from_trig(process, t_hat[:, None], t_hat)[1]


def denoiser(
    process: Process, parameterization: Parameterization, shape: tuple[int, ...], rng: torch.Generator
) -> Denoiser:
    """Return a denoiser with a small random network."""
    return Denoiser(Smooth(torch.Size(shape).numel(), rng), process, parameterization)


def pair(shape: tuple[int, ...], batch: int, sigma_data: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return data of the process's scale and standard normal noise, float64."""
    x0, noise = torch.randn(2, batch, *shape, generator=rng, dtype=torch.float64)
    return sigma_data * x0, noise


def close(a: Tensor, b: Tensor, relative: float) -> bool:
    """Whether two tensors agree, relative to the larger norm."""
    a, b = a.detach(), b.detach()
    scale = max(float(a.norm()), float(b.norm()), 1e-300)
    return float((a - b).norm()) <= relative * scale
