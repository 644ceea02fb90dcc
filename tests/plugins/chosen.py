"""A proposal whose times a test has chosen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scmreg.proposal import Proposal

__all__ = ["ChosenTimes"]


class ChosenTimes(Proposal):
    """Draw the times that were given, always."""

    def __init__(self, t: Tensor) -> None:
        object.__setattr__(self, "t", t)

    def sample(self, process: Any, count: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.t

    def transform(self, process: Any, uniform: Tensor) -> Tensor:
        raise AssertionError

    def log_density(self, process: Any, t: Tensor) -> Tensor:
        raise AssertionError
