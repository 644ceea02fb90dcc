"""EDM's range of noise levels, and its spacing: equal steps in the root of order rho (Karras et al. 2022, Eq. 5)."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor

from scmreg.component import Component
from scmreg.errors import OptionError
from scmreg.process import Process
from scmreg.types import Positive

__all__ = ["Levels", "spaced"]

Level = TypeVar("Level", float, Tensor)


class Levels(Component):
    """What lives on a range of noise levels ``sigma/alpha``, of which a process may not reach the upper end."""

    sigma_min: Positive = 0.002
    """Lowest noise level."""
    sigma_max: Positive = 80.0
    """Highest noise level; the end of the process, where that is lower."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma_min >= self.sigma_max:
            raise OptionError(
                [f"{self.kind} '{self.name}': sigma_min {self.sigma_min:g} must be below sigma_max {self.sigma_max:g}"]
            )

    def top(self, process: Process) -> float:
        """Return the highest noise level under a process."""
        return min(self.sigma_max, process.highest_level)

    def fits(self, recipe: Any) -> str | None:
        """Refuse a process that ends below the lowest noise level."""
        if recipe.process.highest_level > self.sigma_min:
            return None
        return (
            f"sigma_min of {self.kind} '{self.name}' is {self.sigma_min:g}, but process '{recipe.process.name}' ends at"
            f" noise level {recipe.process.highest_level:g}"
        )


def spaced(share: Tensor, low: float, high: float, rho: float) -> Tensor:
    """Return the noise level at a share of the way from ``low`` to ``high``, in equal steps of its root."""
    start, end = low ** (1 / rho), high ** (1 / rho)
    level: Tensor = (start + share * (end - start)) ** rho
    return level
