"""Checks of data."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import torch
from torch import Tensor

from scmreg.data import Dataset, DataSpec
from scmreg.testing.checks import check
from scmreg.testing.trial import Trial

SIGMA = 5.0
"""Standard errors beyond which chance is one in a million."""


def loaded(trial: Trial) -> Dataset:
    """Return the data, unless options that were drawn make them such as it refuses."""
    found: Dataset = trial.attempt(trial.component.load)
    return found


@check("data", examples=3)
def data_are_deterministic(trial: Trial) -> None:
    """The same options give the same data, whatever was drawn before, with the same digest."""
    first = loaded(trial)
    before = torch.get_rng_state()
    torch.rand(1)
    second = loaded(trial)
    torch.set_rng_state(before)
    same = torch.equal(first.train.all(), second.train.all()) and torch.equal(
        first.held_out.all(), second.held_out.all()
    )
    trial.expect(
        same, "it gives other items the second time: draw them from scmreg.rng.generator(self.seed, self.name)"
    )
    trial.expect(
        first.digest == second.digest and bool(first.digest),
        f"its digest is '{first.digest}', then '{second.digest}': make it of the content, by"
        " scmreg.data.content_digest",
    )
    trial.expect(first.spec == second.spec, "its spec is another the second time")


@check("data", examples=4)
def items_as_stated(trial: Trial) -> None:
    """Items have the shape and range that are stated, float32, and a label each where there are classes."""
    dataset = loaded(trial)
    spec = dataset.spec
    trial.expect(spec.name == trial.cls.name, f"its spec is called '{spec.name}', expected '{trial.cls.name}'")
    for part, split in (("training", dataset.train), ("held-out", dataset.held_out)):
        items = split.all()
        trial.expect(
            items.shape == (len(split), *spec.shape),
            f"{len(split)} {part} items have shape {tuple(items.shape)}, expected {(len(split), *spec.shape)}: correct"
            " the shape in the spec",
        )
        trial.expect(items.dtype == torch.float32, f"{part} items are {items.dtype}, expected torch.float32")
        trial.expect(bool(torch.isfinite(items).all()), f"there are {part} items that are not finite")
        if spec.modality == "image" and len(items):
            low, high = float(items.min()), float(items.max())
            trial.expect(
                low >= 0 and high <= 1,
                f"{part} images reach from {low:.4g} to {high:.4g}: images are in [0, 1] as people see them, the"
                " scale of the model is the spec's to say",
            )
        labelled = split.labels is not None
        trial.expect(
            labelled == bool(spec.classes),
            f"the spec names {len(spec.classes)} classes, and {part} items have {'' if labelled else 'no '}labels",
        )
        if split.labels is not None:
            right = split.labels.dtype == torch.int64 and split.labels.shape == (len(split),)
            right = right and bool(((split.labels >= 0) & (split.labels < len(spec.classes))).all())
            trial.expect(right, f"labels of {part} items must be {len(split)} int64 numbers below {len(spec.classes)}")
        if len(split) > 2:
            trial.expect(
                torch.equal(split.__getitems__([2, 0]), items[[2, 0]]),
                f"{part} items read by index are others than those read all at once",
            )


@check("data", examples=4)
def scale_as_stated(trial: Trial) -> None:
    """Mean and standard deviation are those of the training items, so that scaled data have sigma_data."""
    dataset = loaded(trial)
    spec = dataset.spec
    scaled = spec.scale(dataset.train.all(), 0.5).double()
    mean, std = float(scaled.mean()), float(scaled.square().mean().sqrt())
    trial.expect(
        abs(std - 0.5) <= 0.02,
        f"training items that are scaled to sigma_data 0.5 have {std:.4g} about 0: the spec says std {spec.std:.4g} and"
        f" mean {tuple(round(m, 4) for m in spec.mean)}, give those of the training items",
    )
    trial.expect(
        abs(mean) <= 0.02, f"training items that are scaled have mean {mean:.4g}, expected 0: correct mean in the spec"
    )
    back = spec.render(spec.scale(dataset.train.all(), 0.5), 0.5)
    trial.expect(
        bool((back - dataset.train.all()).abs().max() <= 1e-4 * (1 + dataset.train.all().abs().max())),
        "what is scaled and rendered again is another: leave scale() and render() of the spec alone",
    )
    again = DataSpec.from_json(json.loads(json.dumps(spec.to_json())))
    trial.expect(again == spec, "its spec comes back from JSON as another: use plain numbers and texts")


@check("data", examples=3)
def split_as_stated(trial: Trial) -> None:
    """The held-out share is the one that is asked for, by its own seed, and both parts are all of the data."""
    component = trial.component
    dataset = loaded(trial)
    kept, held = len(dataset.train), len(dataset.held_out)
    wanted = round((kept + held) * component.held_out)
    trial.expect(
        held == wanted,
        f"{held} of {kept + held} items are held out, expected {wanted} for held_out {component.held_out:g}: split by"
        " self.split_indices",
    )
    other = trial.attempt(replace(component, split_seed=component.split_seed + 1).load)
    trial.expect(
        len(other.train) == kept, "another split_seed changes the number of training items: split by self.split_indices"
    )
    if held and kept > 10:
        trial.expect(
            not torch.equal(other.train.all(), dataset.train.all()),
            "another split_seed gives the same split: split by self.split_indices",
        )
    sums = [math.fsum(float(part.all().double().sum()) for part in (d.train, d.held_out)) for d in (dataset, other)]
    trial.expect(
        abs(sums[0] - sums[1]) <= 1e-6 * (1 + kept + held),
        "another split_seed gives other items, not another split of the same: the split alone depends on it",
    )


@check("data", examples=4)
def law_as_stated(trial: Trial) -> None:
    """Where it states its law, the items have the law's mean and covariance; where not, it says why."""
    component = trial.component
    law = component.law()
    if law is None:
        trial.expect(bool(component.lawless), "law() is None and lawless is empty: say why the law is not known")
        return
    x, _ = loaded(trial).real()
    items = x.double().flatten(1)
    trial.expect(
        law.means.shape[1] == items.shape[1],
        f"its law has {law.means.shape[1]} dimensions and its items have {items.shape[1]}",
    )
    mean = law.weights @ law.means
    square = law.weights @ (law.stds**2 + law.means**2)
    away = _deviation(items, mean)
    trial.expect(
        away <= SIGMA,
        f"its items have the mean {items.mean(0).tolist()}, its law {mean.tolist()}: {away:.1f} standard errors away",
    )
    away = _deviation(items**2, square)
    trial.expect(
        away <= SIGMA,
        f"its items have the mean square {(items**2).mean(0).tolist()}, its law {square.tolist()}: {away:.1f} standard"
        " errors away",
    )


def _deviation(items: Tensor, mean: Tensor) -> float:
    """Return how many standard errors the mean of items lies from a known one, at most."""
    error = items.std(0) / math.sqrt(len(items))
    return float(((items.mean(0) - mean).abs() / error.clamp_min(1e-12)).max())
