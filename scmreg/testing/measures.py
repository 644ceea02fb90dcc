"""Checks of metrics."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import torch
from torch import Tensor

from scmreg.data import Dataset, DataSpec
from scmreg.metric import Judged, Metric, Reference
from scmreg.registry import registry
from scmreg.testing.checks import check
from scmreg.testing.trial import Trial

POINTS = DataSpec("case", (2,), "points", std=1.0)
IMAGES = DataSpec("case", (1, 4, 4), "image", ("a", "b"), (0.5,), 0.2)
COUNT = 60
"""Real items, of each part half, and samples."""


@functools.cache
def _digits() -> Dataset:
    made: Dataset = registry("data").create("digits").load()
    return made


def references(trial: Trial) -> list[Reference]:
    """Return points, small images and handwritten digits, drawn at random."""
    found = []
    for spec in (POINTS, IMAGES):
        drawn = trial.normal(2, COUNT // 2, *spec.shape).float() * spec.std
        parts = [(0.5 + x).clamp(0, 1) if spec.modality == "image" else x for x in drawn]
        labels = torch.arange(COUNT // 2) % 2 if spec.classes else None
        found.append(Reference(spec, *(Judged(x, labels) for x in parts)))
    digits = _digits()
    chosen = torch.randperm(len(digits.train), generator=trial.rng)[: 4 * COUNT]
    assert digits.train.labels is not None
    x, labels = digits.train.__getitems__(chosen.tolist()), digits.train.labels[chosen]
    half = 2 * COUNT
    found.append(Reference(digits.spec, Judged(x[:half], labels[:half]), Judged(x[half:], labels[half:])))
    return found


def tried(trial: Trial) -> tuple[Metric, Reference, Judged]:
    """Return the metric, real data to which it applies, and samples that are the real data with noise."""
    metric: Metric = trial.component
    known = references(trial)
    applying = [reference for reference in known if metric.applies(reference) is None]
    trial.refuse(None if applying else metric.applies(known[0]))
    trial.expect(bool(applying), f"it applies neither to points nor to images: {metric.applies(known[0])}")
    names = [f"{reference.spec.name} {reference.spec.shape}" for reference in applying]
    reference = applying[names.index(trial.choose("real data", names))]
    real = reference.all
    x = real.x + 0.3 * reference.spec.std * trial.normal(*real.x.shape).float()
    return metric, reference, Judged(x, real.labels, real.x if metric.needs_truth else None)


@check("metric", examples=4)
def figures_as_stated(trial: Trial) -> None:
    """It gives finite numbers under the names that it states, for samples and as its floor."""
    metric, reference, samples = tried(trial)
    found = metric.measure(samples, reference)
    trial.expect(bool(found), "it gives no figure for data that it applies to: refuse them in applies()")
    for source, figures in (("measure", found), ("floor", metric.floor(reference))):
        unknown = sorted(set(figures) - set(metric.figures))
        trial.expect(
            not unknown,
            f"{source}() gives {', '.join(unknown)}, which figures does not name"
            f" ({', '.join(metric.figures) or 'none'})",
        )
        for name, value in figures.items():
            trial.expect(
                isinstance(value, float) and math.isfinite(value),
                f"{source}() gives {name} = {value!r}: it must be a finite float",
            )
    for name in (*metric.zero_on_itself, *metric.symmetric):
        trial.expect(name in metric.figures, f"it makes a statement about '{name}', which figures does not name")


@check("metric", examples=4)
def metric_is_zero_on_itself(trial: Trial) -> None:
    """The figures that it says so of are 0 where samples are the real data, or the truth, and above it elsewhere."""
    metric, reference, samples = tried(trial)
    real = reference.all
    same = Judged(real.x, real.labels, real.x if metric.needs_truth else None)
    equal, other = metric.measure(same, reference), metric.measure(samples, reference)
    for name in set(metric.zero_on_itself) & set(equal):
        trial.expect(
            abs(equal[name]) <= 1e-3 * max(abs(other[name]), 1e-3),
            f"{name} is {equal[name]:.4g} where the samples are the real data, and {other[name]:.4g} where noise is"
            " added: it says by zero_on_itself that it is 0",
        )
        trial.expect(other[name] > 0, f"{name} is {other[name]:.4g} for other samples: a distance is above 0")


@check("metric", examples=4)
def metric_is_symmetric(trial: Trial) -> None:
    """The figures that it says so of stay the same when samples and real data change places."""
    metric, reference, samples = tried(trial)
    there = metric.measure(samples, reference)
    if metric.needs_truth:
        assert samples.truth is not None
        back = metric.measure(Judged(samples.truth, samples.labels, samples.x), reference)
    else:
        half = len(samples) // 2
        parts = [_part(samples, slice(0, half)), _part(samples, slice(half, None))]
        back = metric.measure(reference.all, replace(reference, train=parts[0], held_out=parts[1]))
    for name in set(metric.symmetric) & set(there):
        trial.expect(
            abs(there[name] - back[name]) <= 1e-4 * max(abs(there[name]), 1e-6),
            f"{name} is {there[name]:.6g}, and {back[name]:.6g} when samples and real data change places: it says by"
            " symmetric that this is the same",
        )


@check("metric", examples=4)
def metric_of_a_set(trial: Trial) -> None:
    """It judges the set of samples: the same twice, and in any order, with nothing drawn from the global state."""
    metric, reference, samples = tried(trial)
    before = torch.get_rng_state()
    first = metric.measure(samples, reference)
    trial.expect(
        torch.equal(torch.get_rng_state(), before),
        "it moves the global random state: draw from scmreg.rng.generator",
    )
    order = torch.randperm(len(samples), generator=trial.rng)
    for words, figures in (
        ("the second time", metric.measure(samples, reference)),
        ("in another order", metric.measure(_part(samples, order), reference)),
    ):
        for name, value in first.items():
            other = figures.get(name, math.nan)
            trial.expect(
                abs(other - value) <= 1e-4 * max(abs(value), 1e-3),
                f"{name} is {value:.6g}, and {other:.6g} {words}: it must depend on the set of samples alone",
            )


def _part(judged: Judged, which: slice | Tensor) -> Judged:
    """Return some of the samples."""
    labels, truth = (None if x is None else x[which] for x in (judged.labels, judged.truth))
    return Judged(judged.x[which], labels, truth)
