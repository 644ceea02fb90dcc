"""Distances: how far apart two outputs of a consistency function are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from scmreg.component import Component
from scmreg.data import DataSpec

__all__ = ["Between", "ClosedDistance", "Distance"]

Between = Callable[[Tensor, Tensor], Tensor]
"""``(x, y) -> d``: the distance of each pair of samples, shape ``(B,)``, with its gradient in both."""


class Distance(Component, kind="distance"):
    """A distance between two batches of samples, 0 where they are equal."""

    symmetric: ClassVar[bool] = True
    """Whether ``d(x, y) = d(y, x)``."""

    @abstractmethod
    def build(self, spec: DataSpec, sigma_data: float) -> Between:
        """Return the function ``(x, y) -> d`` of samples of shape ``(B, *shape)``, ``d`` of shape ``(B,)``.

        What it holds is neither trained nor saved.

        Args:
            spec: shape and scale of the data.
            sigma_data: standard deviation that the samples are scaled to.
        """

    def accepts(self, spec: DataSpec) -> str | None:
        """Say why it has no meaning for some data; ``None`` if it has."""
        return None


class ClosedDistance(Distance):
    """A distance in closed form: implement `between`."""

    @abstractmethod
    def between(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance of each pair of samples, shape ``(B,)``."""

    def build(self, spec: DataSpec, sigma_data: float) -> Between:
        """Return `between`."""
        return self.between
