"""The Fréchet distance of two Gaussians, in float64 and with symmetric matrices throughout."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["frechet_distance"]


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Return the squared Fréchet distance of Gaussians fitted to ``x`` ``(N, D)`` and ``y`` ``(M, D)``.

    The trace of ``(C_1 C_2)^½`` is taken as that of ``(C_1^½ C_2 C_1^½)^½``, whose argument is symmetric and positive,
    so that no complex square root and no regularisation is needed.
    """
    x, y = x.double(), y.double()
    first, second = torch.cov(x.T), torch.cov(y.T)
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    shift = (x.mean(0) - y.mean(0)).square().sum()
    return float(shift + first.trace() + second.trace() - 2 * cross)
