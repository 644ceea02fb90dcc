"""A metric for scmreg: the energy distance of samples from data.

scm show metric/example
scm run --objective diffusion --set 'evaluation.metrics=[example]' --steps 200
"""

from __future__ import annotations

import scmreg
import torch
from scmreg.metric import Judged, Reference
from scmreg.types import Count
from torch import Tensor

scmreg_api = (1, 0)


class Example(scmreg.Metric, name="example"):
    """Compare the distances between samples and data with those within each: 0 where the laws are the same."""

    formula = "2 E|x - y| - E|x - x'| - E|y - y'|,  x samples, y data"
    reference = "Szekely & Rizzo 2013, Energy statistics, Eq. 5"
    figures = zero_on_itself = symmetric = ("energy",)

    count: Count = 2000
    """Samples, and items of the data, that are compared at most: the first ones."""

    def measure(self, samples: Judged, reference: Reference) -> dict[str, float]:
        """Return the distance, which is symmetric and not negative."""
        x, y = (part.x[: self.count].flatten(1).double() for part in (samples, reference.all))
        return {"energy": float(2 * spread(x, y) - spread(x, x) - spread(y, y))}


def spread(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean distance between rows of ``x (N, D)`` and ``y (M, D)``."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").mean()


@scmreg.hookimpl
def scmreg_components() -> list[type[scmreg.Component]]:
    """List what this plugin adds."""
    return [Example]
