"""Judging samples: every metric that applies, for every model of a run, from the same noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scmreg.data import Dataset
from scmreg.denoiser import Denoiser
from scmreg.metric import Judged, Reference
from scmreg.progress import Progress
from scmreg.recipe import Evaluation, Recipe
from scmreg.rng import derive, generator
from scmreg.sample import draw
from scmreg.sampler import Sampler

__all__ = ["Judge", "Result", "reference_of"]

MOST = 10_000
"""Real data, and samples, that are compared at most unless the recipe asks for more."""


@dataclass(frozen=True)
class Result:
    """The samples of one model with one sampler, and their figures."""

    title: str
    sampler: Sampler
    samples: Judged
    figures: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the number of evaluations and the figures."""
        return {"nfe": self.sampler.evaluations, **self.figures}


def reference_of(dataset: Dataset) -> Reference:
    """Return the real data to compare with, at most `MOST` of training and of held-out data each."""
    return Reference(
        dataset.spec,
        *(
            Judged(
                part.__getitems__(kept),
                None if part.labels is None else part.labels[torch.tensor(kept).long()],
            )
            for part in (dataset.train, dataset.held_out)
            for kept in (_at_most(len(part)),)
        ),
    )


def _at_most(count: int) -> list[int]:
    if count <= MOST:
        return list(range(count))
    order = torch.randperm(count, generator=generator(0, "reference"))[:MOST]
    return sorted(order.tolist())


class Judge:
    """Draws samples and measures them.

    Args:
        recipe: says what is measured, on how many samples.
        dataset: the real data.
        progress: told of every batch.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset, progress: Progress) -> None:
        self.evaluation: Evaluation = recipe.evaluation
        self.reference = reference_of(dataset)
        self.progress = progress
        self.metrics = [metric for metric in self.evaluation.metrics if metric.applies(self.reference) is None]
        self.count = self.evaluation.count or min(len(self.reference.all), MOST)
        self.labels = self._labels()

    def floor(self) -> dict[str, float]:
        """Return what real data score against real data."""
        figures: dict[str, float] = {}
        for metric in self.metrics:
            figures |= metric.floor(self.reference)
        return figures

    def measure(self, samples: Judged) -> dict[str, float]:
        """Return the figures of some samples."""
        figures: dict[str, float] = {}
        for metric in self.metrics:
            figures |= metric.measure(samples, self.reference)
        return figures

    def judge(self, title: str, denoiser: Denoiser, sampler: Sampler) -> Result:
        """Draw as many samples as the recipe says and measure them."""
        samples = draw(
            denoiser,
            self.reference.spec,
            sampler,
            self.count,
            labels=self.labels,
            seed=self.evaluation.seed,
            batch_size=self.evaluation.batch_size,
            progress=self.progress,
            title=f"sample {title}",
        ).cpu()
        judged = Judged(samples, self.labels)
        return Result(title, sampler, judged, self.measure(judged))

    def _labels(self) -> Tensor | None:
        """Return labels in the proportions of the real data."""
        labels = self.reference.all.labels
        if labels is None or not self.reference.spec.classes:
            return None
        order = torch.randperm(len(labels), generator=generator(derive(self.evaluation.seed, "labels"), "order"))
        rounds = -(-self.count // len(labels))
        return labels[order].repeat(rounds)[: self.count]
