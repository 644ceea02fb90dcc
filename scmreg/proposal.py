"""Proposals: the distribution of training times."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from scmreg.component import Component
from scmreg.process import Process
from scmreg.registry import registry

__all__ = ["Proposal"]


class Proposal(Component, kind="proposal"):
    """A distribution of training times. Times past the end of the process are put at its end."""

    @abstractmethod
    def transform(self, process: Process, uniform: Tensor) -> Tensor:
        """Map uniform variates in ``(0, 1)``, float64, to process times: the inverse distribution function."""

    @abstractmethod
    def log_density(self, process: Process, t: Tensor) -> Tensor:
        """Return the log-density of the proposal at process times ``t``, with respect to ``t``."""

    def under(self, process: Process, to: Process) -> Proposal:
        """Return the proposal that draws, under the process ``to``, the noise levels that this one draws under
        ``process`` (sCM, App. B, Eq. 22).
        """
        if to == process:
            return self
        made: Proposal = registry("proposal").create("converted", of=self, process=process)
        return made

    def sample(self, process: Process, count: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw ``count`` process times in ``(0, t_max]``, in the precision of ``dtype``, float32 at least."""
        uniform = torch.rand(count, generator=rng, dtype=torch.float64, device=rng.device)
        # The open interval: an exact 0 or 1 would be an infinite quantile.
        uniform = uniform.clamp(1e-12, 1 - 1e-12)
        return self.transform(process, uniform).clamp(max=process.t_max).to(torch.promote_types(dtype, torch.float32))
