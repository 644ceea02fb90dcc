"""A weighting for scmreg: more weight on times of little noise.

scm show weighting/example
scm run --objective diffusion --weighting example --set objective.weighting.strength=3 --steps 200
"""

from __future__ import annotations

import scmreg
import torch
from scmreg.coordinates import trig_time
from scmreg.types import NonNegative
from scmreg.weighting import FixedWeighting
from torch import Tensor

scmreg_api = (1, 0)


class Example(FixedWeighting, name="example"):
    """Add to a constant weight one that falls with the noise: ``w = 1 + strength cos²(t̂)``."""

    formula = "w(t) = 1 + strength cos²(t̂) on the unit velocity"
    space = "unit"

    strength: NonNegative = 1.0
    """How much more the data's end counts than pure noise; 0 counts every time alike."""

    def weight(self, process: scmreg.Process, t: Tensor) -> Tensor:
        """Return the weight at times ``t``, shape ``(B,)``: positive everywhere."""
        return 1 + self.strength * torch.cos(trig_time(process, t)) ** 2


@scmreg.hookimpl
def scmreg_components() -> list[type[scmreg.Component]]:
    """List what this plugin adds."""
    return [Example]
