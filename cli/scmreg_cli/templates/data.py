"""Data for scmreg: a noisy ring in the plane.

scm show data/example
scm run --objective diffusion --data example --set data.noise=0.1 --steps 200
"""

from __future__ import annotations

import math

import scmreg
import torch
from scmreg.data import TensorSplit, content_digest
from scmreg.rng import generator
from scmreg.types import Count, NonNegative, NonNegativeInt

scmreg_api = (1, 0)


class Example(scmreg.Data, name="example"):
    """Points around a circle of radius 1."""

    formula = "x = (1 + noise n) (cos a, sin a),  a uniform, n normal"

    count: Count = 2000
    """Points in all."""
    noise: NonNegative = 0.1
    """Standard deviation of the radius."""
    seed: NonNegativeInt = 0
    """Seed of the points."""

    def load(self) -> scmreg.Dataset:
        """Draw the points, split them, and measure mean and scale of the part that is trained on."""
        rng = generator(self.seed, self.name)
        angle = 2 * math.pi * torch.rand(self.count, generator=rng)
        radius = 1 + self.noise * torch.randn(self.count, generator=rng)
        x = radius[:, None] * torch.stack([torch.cos(angle), torch.sin(angle)], dim=1)
        kept, rest = self.split_indices(self.count)
        mean = x[kept].mean(0)
        std = float((x[kept] - mean).square().mean().sqrt())
        spec = scmreg.DataSpec(self.name, (2,), "points", mean=tuple(mean.tolist()), std=std)
        return scmreg.Dataset(spec, TensorSplit(x[kept]), TensorSplit(x[rest]), content_digest(x))


@scmreg.hookimpl
def scmreg_components() -> list[type[scmreg.Component]]:
    """List what this plugin adds."""
    return [Example]
