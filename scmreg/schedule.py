"""Schedules: which pairs of times are compared in discrete-time consistency training, and how they close in."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from scmreg.component import Component
from scmreg.process import Process

__all__ = ["Schedule", "needs_steps", "strictly_below"]


class Schedule(Component, kind="schedule"):
    """Pairs of times ``r < t``, between which a consistency function is made to agree."""

    @abstractmethod
    def pair(self, process: Process, t: Tensor, step: int, steps: int | None) -> tuple[Tensor, Tensor]:
        """Return the pairs ``(t, r)`` of a training step, ``0 <= r < t``, in the precision of ``t``.

        Args:
            process: the process whose times they are.
            t: proposed times, shape ``(B,)``; a schedule with a grid moves them to it.
            step: steps taken before this one.
            steps: steps of the whole training, if known.

        Raises:
            ValueError: if it has to know the number of steps and does not.
        """


def needs_steps(schedule: Schedule, steps: int | None) -> int:
    """Return the number of steps of the whole training, if known.

    Raises:
        ValueError: naming the schedule.
    """
    if steps is None:
        raise ValueError(f"schedule '{schedule.name}' depends on the number of training steps: give Setup(steps=...)")
    return steps


def strictly_below(r: Tensor, t: Tensor) -> Tensor:
    """Return ``r`` in the precision of ``t``, where rounding has made it ``t`` itself one unit of precision less."""
    return torch.minimum(r.to(t.dtype), torch.nextafter(t, torch.zeros_like(t)))
