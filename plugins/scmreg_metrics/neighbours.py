"""Distances to nearest neighbours, computed in pieces so that memory stays small."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["covered", "nearest"]

PIECE = 1024


def nearest(x: Tensor, others: Tensor) -> Tensor:
    """Return the distance of every row of ``x`` to the nearest row of ``others``, shape ``(N,)``."""
    x, others = x.double(), others.double()
    return torch.cat([torch.cdist(piece, others).amin(1) for piece in x.split(PIECE)])


def covered(x: Tensor, *, by: Tensor, neighbours: int) -> float:
    """Return the share of rows of ``x`` within the ``neighbours``-th neighbour distance of some row of ``by``."""
    x, by = x.double(), by.double()
    # The nearest neighbour of a point within its own set is itself.
    rank = min(neighbours + 1, len(by))
    radii = torch.cat([torch.cdist(piece, by).kthvalue(rank, dim=1).values for piece in by.split(PIECE)])
    inside = torch.cat([(torch.cdist(piece, by) <= radii).any(1) for piece in x.split(PIECE)])
    return float(inside.double().mean())
