"""A distance for scmreg: quadratic for small differences, linear for large ones.

scm show distance/example
scm run --objective ict --set objective.distance=example --set objective.distance.delta=0.1 --steps 200
"""

from __future__ import annotations

import scmreg
import torch.nn.functional as F
from scmreg.distance import ClosedDistance
from scmreg.types import Positive
from torch import Tensor

scmreg_api = (1, 0)


class Example(ClosedDistance, name="example"):
    """Compare by Huber's function of the difference of each element, on average."""

    formula = "d(x, y) = mean h(x - y),  h(u) = u²/2 for |u| < delta, delta (|u| - delta/2) beyond"
    reference = "Huber 1964, Robust estimation of a location parameter, Eq. 3.8"

    delta: Positive = 0.5
    """Difference up to which it is quadratic."""

    def between(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance of each pair of samples, shape ``(B,)``."""
        return F.huber_loss(x, y, reduction="none", delta=self.delta).flatten(1).mean(1)


@scmreg.hookimpl
def scmreg_components() -> list[type[scmreg.Component]]:
    """List what this plugin adds."""
    return [Example]
