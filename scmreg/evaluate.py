"""Judging samples: every metric that applies, for every model of a run, from the same noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scmreg.data import Dataset, Split
from scmreg.denoiser import Denoiser
from scmreg.law import ExactDenoiser
from scmreg.metric import Judged, Metric, Reference
from scmreg.progress import Progress
from scmreg.recipe import Evaluation, Recipe
from scmreg.rng import derive, generator
from scmreg.sample import batches, draw
from scmreg.sampler import Sampler

__all__ = ["Judge", "Result", "reference_of"]

MOST = 10_000
"""Real data that samples are compared with at most, unless the recipe asks for more samples."""
FIRST = 2_000
"""Samples whose exact counterparts are computed at most."""


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


def reference_of(dataset: Dataset, most: int = MOST) -> Reference:
    """Return the real data to compare with: all, or a random ``most`` of them, held-out data in their proportion."""
    total = len(dataset.train) + len(dataset.held_out)
    order = torch.arange(total)
    if total > most:
        order = torch.randperm(total, generator=generator(0, "reference"))[:most].sort().values
    train = order[order < len(dataset.train)]
    held_out = order[len(train) :] - len(dataset.train)
    return Reference(dataset.spec, _chosen(dataset.train, train), _chosen(dataset.held_out, held_out))


def _chosen(part: Split, kept: Tensor) -> Judged:
    return Judged(part.__getitems__(kept.tolist()), None if part.labels is None else part.labels[kept])


class Judge:
    """Draws samples and measures them.

    Args:
        recipe: says what is measured, on how many samples.
        dataset: the real data.
        progress: told of every batch.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset, progress: Progress) -> None:
        self.evaluation: Evaluation = recipe.evaluation
        self.reference = reference_of(dataset, max(MOST, self.evaluation.count or 0))
        self.progress = progress
        law = recipe.data.law()
        self.law = None if law is None else law.standardized(dataset.spec)
        refused = {metric.name: self._refuses(metric, recipe) for metric in self.evaluation.metrics}
        self.metrics = [metric for metric in self.evaluation.metrics if refused[metric.name] is None]
        if self.evaluation.metrics != Evaluation().metrics:  # chosen by someone who would miss them
            for name, reason in refused.items():
                if reason:
                    progress.say(f"{name} is left out: {reason}")
        self.count = self.evaluation.count or len(self.reference.all)
        self.labels = self._labels()

    def floor(self) -> dict[str, float]:
        """Return what real data score against real data."""
        figures: dict[str, float] = {}
        for metric in self.metrics:
            figures |= metric.floor(self.reference)
        return figures

    def measure(self, samples: Judged, truth: Judged | None = None) -> dict[str, float]:
        """Return the figures of some samples.

        Args:
            samples: what to measure.
            truth: the first of the samples, with what they would be without error, where that is known.
        """
        figures: dict[str, float] = {}
        for metric in self.metrics:
            if not metric.needs_truth:
                figures |= metric.measure(samples, self.reference)
            elif truth is not None:
                figures |= metric.measure(truth, self.reference)
        return figures

    def _refuses(self, metric: Metric, recipe: Recipe) -> str | None:
        """Say why a metric means nothing here."""
        if metric.needs_truth and self.law is None:
            return f"data '{recipe.data.name}': {recipe.data.lawless}"
        return metric.applies(self.reference)

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
        return Result(title, sampler, judged, self.measure(judged, self._truth(judged, denoiser, sampler)))

    def _truth(self, samples: Judged, denoiser: Denoiser, sampler: Sampler) -> Judged | None:
        """Return the first `FIRST` samples beside what they would be without any error, where that is known."""
        if self.law is None or not any(metric.needs_truth for metric in self.metrics):
            return None
        spec, count = self.reference.spec, min(FIRST, self.count)
        level = denoiser.highest_level  # where the samples started
        exact = ExactDenoiser(self.law, denoiser.process, rtol=1e-7, atol=1e-9, highest_level=level)
        seeds = range(self.evaluation.seed, self.evaluation.seed + count)
        labels = None if self.labels is None else self.labels[:count]
        parts = []
        with self.progress.task("exact samples", count) as task:
            for noise, cond in batches(exact, spec, seeds, labels, self.evaluation.batch_size):
                part = sampler.truth(exact, noise, cond)
                if part is None:
                    self.progress.say(f"exact samples of {sampler.name} are not known with these options")
                    return None
                parts.append(part)
                task.update(min(len(parts) * self.evaluation.batch_size, count))
        return Judged(samples.x[:count], labels, spec.render(torch.cat(parts), denoiser.process.sigma_data))

    def _labels(self) -> Tensor | None:
        """Return labels in the proportions of the real data."""
        labels = self.reference.all.labels
        if labels is None or not self.reference.spec.classes:
            return None
        order = torch.randperm(len(labels), generator=generator(derive(self.evaluation.seed, "labels"), "order"))
        rounds = -(-self.count // len(labels))
        return labels[order].repeat(rounds)[: self.count]
