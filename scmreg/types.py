"""The vocabulary of option types: numbers with their bounds, and the records that pass between components."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

__all__ = [
    "Batch",
    "Conditions",
    "Count",
    "NonNegative",
    "NonNegativeInt",
    "Positive",
    "Probability",
    "expand",
    "norms",
]

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Probability = Annotated[float, Interval(ge=0, le=1)]
Count = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]


@dataclass(frozen=True)
class Conditions:
    """What a network is told beside the noisy sample and the time; each is ``None`` where it is not given.

    A network declares in ``takes`` which of them it understands.
    """

    label: Tensor | None = None
    """Class index of each sample, shape ``(B,)``, int64; the number of classes itself means "no label"."""
    guidance: Tensor | None = None
    """Classifier-free guidance scale that is distilled into the network, shape ``(B,)``."""
    target_time: Tensor | None = None
    """TrigFlow time that a model of two times jumps to, shape ``(B,)``; the present time for the probability flow."""

    def given(self) -> frozenset[str]:
        """Name the conditions that are present."""
        return frozenset(name for name in ("label", "guidance", "target_time") if getattr(self, name) is not None)

    def slice(self, start: int, stop: int) -> Conditions:
        """Return the conditions of the samples ``start:stop``."""
        return replace(self, **{name: getattr(self, name)[start:stop] for name in self.given()})

    def take(self, index: Tensor) -> Conditions:
        """Return the conditions of the samples with the numbers ``index``, shape ``(N,)``, int64."""
        return replace(self, **{name: getattr(self, name)[index] for name in self.given()})


@dataclass(frozen=True)
class Batch:
    """Training data of one step: ``x0`` of shape ``(B, *shape)`` scaled to ``sigma_data``, and its conditions."""

    x0: Tensor
    cond: Conditions = Conditions()


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """Give a per-sample coefficient of shape ``(B,)`` the trailing axes that broadcast it over ``x`` ``(B, ...)``.

    The result has the precision of ``x``, float32 at least: coefficients may be computed more precisely than they are
    used.
    """
    shaped = coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))
    if shaped.dtype == x.dtype or not shaped.is_floating_point():
        return shaped
    return shaped.to(torch.promote_types(x.dtype, torch.float32))


def norms(x: Tensor) -> Tensor:
    """Return the Euclidean norm of every sample of ``x (B, ...)``, shape ``(B,)``."""
    out: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return out
