"""A network for scmreg: a plain MLP on flattened samples.

scm show network/example
scm run --objective diffusion --network example --set network.width=64 --steps 200
"""

from __future__ import annotations

import math

import scmreg
import torch
from scmreg.types import Count
from torch import Tensor, nn

scmreg_api = (1, 0)


class Module(nn.Module):
    """The network: no batch statistics and no in-place writes, so that it carries a tangent."""

    def __init__(self, width: int, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        size = math.prod(shape)
        self.enter = nn.Linear(size + 2, width)
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.rest = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, size))

    def forward(self, x: Tensor, c_noise: Tensor, cond: scmreg.Conditions) -> Tensor:
        """Return the raw output for ``x`` of shape ``(B, *shape)`` and ``c_noise`` of shape ``(B,)``."""
        time = torch.stack([torch.cos(c_noise), torch.sin(c_noise)], dim=1).to(x.dtype)
        hidden = self.enter(torch.cat([x.flatten(1), time], dim=1))
        if self.label is not None and cond.label is not None:
            hidden = hidden + self.label(cond.label)
        out: Tensor = self.rest(hidden)
        return out.reshape(x.shape)


class Example(scmreg.Network, name="example"):
    """Pass flattened samples, with sine and cosine of the time, through a hidden layer or two."""

    width: Count = 128
    """Units of each hidden layer."""

    def build(self, shape: tuple[int, ...], classes: int = 0) -> nn.Module:
        """Return the module with fresh parameters; label ``classes`` means "no label"."""
        return Module(self.width, shape, classes)


@scmreg.hookimpl
def scmreg_components() -> list[type[scmreg.Component]]:
    """List what this plugin adds."""
    return [Example]
