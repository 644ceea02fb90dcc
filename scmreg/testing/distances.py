"""Checks of distances."""

from __future__ import annotations

from typing import Any

import torch

from scmreg.data import DataSpec
from scmreg.distance import Between
from scmreg.testing.checks import check
from scmreg.testing.trial import Trial

SPECS = (
    DataSpec("case", (2,), "points"),
    DataSpec("case", (1, 8, 8), "image", mean=(0.5,), std=0.3),
    DataSpec("case", (3, 16, 16), "image", mean=(0.5,), std=0.3),
)
"""Data that a distance is tried on: those of them that it accepts."""


def tried(trial: Trial) -> tuple[Between, torch.Tensor, torch.Tensor]:
    """Return the function of a distance, and two batches of samples."""
    distance: Any = trial.component
    specs = [spec for spec in SPECS if distance.accepts(spec) is None]
    trial.expect(bool(specs), f"it accepts neither points nor images: {distance.accepts(SPECS[0])}")
    spec = trial.choose("samples of", specs)
    between = distance.build(spec, 0.5)
    x, y = (0.5 * torch.randn(3, *spec.shape, generator=trial.rng) for _ in range(2))
    return between, x, y


@check("distance", examples=8)
def zero_between_equals(trial: Trial) -> None:
    """It is 0 between equal samples, where its gradient is finite."""
    between, x, _ = tried(trial)
    leaf = x.clone().requires_grad_()
    d = between(leaf, x)
    trial.expect(
        bool((d.detach().abs() <= 1e-7).all()),
        f"it is {float(d.detach().abs().max()):.4g} between equal samples: 0 is right",
    )
    (gradient,) = torch.autograd.grad(d.sum(), leaf)
    trial.expect(
        bool(torch.isfinite(gradient).all()),
        "its gradient is not finite between equal samples: a root has no slope at 0, add to what is under it",
    )


@check("distance", examples=8)
def positive_between_others(trial: Trial) -> None:
    """It is one positive, finite number a sample between others, with gradient in both."""
    between, x, y = tried(trial)
    first, second = x.clone().requires_grad_(), y.clone().requires_grad_()
    d = between(first, second)
    trial.expect(
        d.shape == (len(x),), f"it has shape {tuple(d.shape)} for {len(x)} pairs of samples: give one number a pair"
    )
    trial.expect(
        bool(((d > 0) & torch.isfinite(d)).all()),
        f"it is {d.detach().tolist()} between different samples: it must be finite and above 0",
    )
    for name, gradient in zip("xy", torch.autograd.grad(d.sum(), (first, second), allow_unused=True), strict=True):
        trial.expect(
            gradient is not None and bool(torch.isfinite(gradient).all() and gradient.abs().sum() > 0),
            f"it has no gradient in {name}: which of the two is fixed is the objective's to say, detach neither",
        )
    alone = between(x[1:2], y[1:2])
    trial.expect(
        bool((alone - d[1:2]).abs() <= 1e-5 * alone.abs()),
        f"a pair is {float(alone):.6g} apart alone and {float(d[1].detach()):.6g} in a batch: do not mix samples",
    )


@check("distance", examples=8)
def symmetric_as_claimed(trial: Trial) -> None:
    """It is the same in both directions where it says so."""
    between, x, y = tried(trial)
    there, back = between(x, y), between(y, x)
    if not trial.component.symmetric:
        return
    trial.expect(
        bool(((there - back).abs() <= 1e-5 * there.abs()).all()),
        f"d(x, y) is {float(there[0]):.6g} and d(y, x) {float(back[0]):.6g}: it is not symmetric, say so by symmetric ="
        " False, or mend it",
    )
