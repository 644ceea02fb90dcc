"""Metrics: how good samples are."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scmreg.component import Component
from scmreg.data import DataSpec

__all__ = ["Judged", "Metric", "Reference"]


@dataclass(frozen=True)
class Judged:
    """A set of samples, or of real data, in the units that people see: images in ``[0, 1]``, not clipped."""

    x: Tensor
    """Shape ``(N, *shape)``."""
    labels: Tensor | None = None
    """Classes, shape ``(N,)``; of samples the intended ones."""
    truth: Tensor | None = None
    """Of samples: what each would be without any error, shape ``(N, *shape)``, where the law of the data is known."""

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Reference:
    """The real data that samples are compared with."""

    spec: DataSpec
    train: Judged
    held_out: Judged

    @property
    def all(self) -> Judged:
        """Training and held-out data together."""
        both = (self.train, self.held_out)
        labels = [part.labels for part in both if part.labels is not None]
        return Judged(torch.cat([part.x for part in both]), torch.cat(labels) if len(labels) == 2 else None)


class Metric(Component, kind="metric"):
    """A figure of merit of samples against real data."""

    figures: ClassVar[tuple[str, ...]] = ()
    """Names of the figures that it may give."""
    zero_on_itself: ClassVar[tuple[str, ...]] = ()
    """Those of them that are 0 where the samples are the real data; or the truth, where that is what is compared."""
    symmetric: ClassVar[tuple[str, ...]] = ()
    """Those of them that stay the same when samples change places with real data, or with the truth."""
    needs_truth: ClassVar[bool] = False
    """Whether it compares each sample with what it would be without error; only for data that know their law."""

    def applies(self, reference: Reference) -> str | None:
        """Say why the metric means nothing on such data; ``None`` if it does mean something."""
        return None

    @abstractmethod
    def measure(self, samples: Judged, reference: Reference) -> dict[str, float]:
        """Return the figures of the samples by name."""

    def floor(self, reference: Reference) -> dict[str, float]:
        """Return what real data score against real data, where that is worth knowing."""
        return {}
