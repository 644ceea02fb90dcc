"""Checks of weightings."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scmreg.coordinates import convert_time
from scmreg.process import Process
from scmreg.testing.checks import check
from scmreg.testing.trial import Trial
from scmreg.weighting import FixedWeighting, WeightingModule

SPACES = ("unit", "data")


def log_weight(trial: Trial, module: WeightingModule, process: Process, t: Tensor) -> Tensor:
    """Return the logarithm of the weight of times, or of pairs of them with times half as large."""
    if not module.needs_pair:
        return module.log_weight(t).detach()
    delta = torch.randn(len(t), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(t.dtype)
    return module.log_weight_of_pair(t, t / 2, delta).detach()


@check("weighting")
def weight_is_positive(trial: Trial) -> None:
    """The weight is one positive, finite number a time, over the whole process and for losses of any space."""
    weighting, process = trial.component, trial.process()
    t = trial.time(process)
    if isinstance(weighting, FixedWeighting):
        stated = float(weighting.weight(process, t))
        trial.expect(
            math.isfinite(stated) and stated > 0,
            f"weight is {stated:.6g} at t = {float(t):.6g} of process '{process.name}': it must be finite and above 0,"
            " or the loss is worth increasing",
        )
    for space in SPACES:
        found = log_weight(trial, weighting.build_in(process, space), process, t)
        trial.expect(
            found.shape == t.shape,
            f"the logarithm of the weight has shape {tuple(found.shape)} for times of shape {tuple(t.shape)}: give one"
            " number a time",
        )
        trial.expect(
            bool(torch.isfinite(found).all()),
            f"the logarithm of the weight is {float(found):g} at t = {float(t):.6g} of process '{process.name}', of a"
            f" loss in the space '{space}': it must be finite between the ends",
        )


@check("weighting")
def weight_takes_no_gradient(trial: Trial) -> None:
    """The gradient of a weighted loss is the weight times that of the loss: none goes through the weight."""
    process = trial.process()
    module = trial.component.build_in(process, trial.choose("space", SPACES))
    parameter = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    t = trial.time(process)
    delta = parameter * torch.ones(1, 4, dtype=torch.float64)
    loss = delta.square().mean(1)
    weighted, weight = module.weigh(loss, t, r=t / 2, delta=delta)
    trial.expect(
        weighted.shape == loss.shape and weight.shape == loss.shape,
        f"weigh() returns shapes {tuple(weighted.shape)} and {tuple(weight.shape)} for losses of shape"
        f" {tuple(loss.shape)}: one number a sample",
    )
    trial.expect(not weight.requires_grad, "weigh() returns a factor with gradient beside the loss: detach it")
    (found,) = torch.autograd.grad(weighted.sum(), parameter)
    known = weight * 2 * parameter.detach()
    trial.expect(
        bool((found - known).abs() <= 1e-9 * known.abs()),
        f"gradient goes into the network through the weight: it is {float(found):.6g}, the weight times the gradient of"
        f" the loss is {float(known):.6g}; compute the weight from what is detached",
    )


@check("weighting", examples=5)
def learned_weight(trial: Trial) -> None:
    """What is learned has parameters that the loss moves, and a loss e^w l - w that keeps them from the trivial."""
    process = trial.process()
    module = trial.component.build(process)
    t = torch.linspace(0.1, 0.9, 8, dtype=torch.float64) * process.t_max
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    trial.expect(
        bool(parameters) == module.learned,
        f"it {'says that it is learned and has no' if module.learned else 'has'} parameters"
        f"{'' if module.learned else ', but does not say so: set learned = True'}",
    )
    with torch.no_grad():  # what begins at zero hides nothing
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=trial.rng, dtype=torch.float64))
    loss = 2 + torch.rand(8, generator=trial.rng, dtype=torch.float64)
    weighted, weight = module.weigh(loss, t, r=t / 2, delta=torch.ones(8, 2, dtype=torch.float64))
    known = weight * loss - torch.log(weight) if module.learned else weight * loss
    trial.expect(
        bool(((weighted - known).abs() <= 1e-5 * known.abs()).all()),
        f"the weighted loss is {float(weighted[0].detach()):.6g}, expected"
        f" {'e^w l - w' if module.learned else 'e^w l'} = {float(known[0].detach()):.6g}: give log_weight alone,"
        " and leave weigh() as it is",
    )
    if not parameters:
        return
    gradients = torch.autograd.grad(weighted.sum(), parameters, allow_unused=True)
    trial.expect(
        any(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients),
        "the loss does not move its parameters: no gradient reaches them",
    )


@check("weighting", examples=10)
def weight_of_the_sample_alone(trial: Trial) -> None:
    """The weight of a sample is the same in any batch."""
    process = trial.process()
    module = trial.component.build(process)
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64) * process.t_max
    delta = trial.normal(6, 3)

    def weights(part: slice) -> Tensor:
        loss = torch.ones(len(t[part]), dtype=torch.float64)
        found: Tensor = module.weigh(loss, t[part], r=t[part] / 2, delta=delta[part])[1]
        return found

    whole, alone = weights(slice(0, 6)), weights(slice(2, 3))
    trial.expect(
        bool((whole[2:3] - alone).abs() <= 1e-5 * alone.abs()),
        f"the weight of a sample is {float(alone):.6g} alone and {float(whole[2]):.6g} in a batch: do not normalise"
        " over the batch",
    )


@check("weighting", examples=10)
def weighting_converts(trial: Trial) -> None:
    """Converted to another process, it gives every noise level the same weight."""
    source = trial.process()
    target = trial.process(sigma_data=source.sigma_data)
    weighting = trial.component
    module, other = weighting.build(source), weighting.under(source, target).build(target)
    t = trial.times(source, trial.angles(1))
    r, delta = t / 2, trial.normal(1, 3)
    there, before = (convert_time(time, source, target) for time in (t, r))
    here, converted = (
        float((m.log_weight_of_pair(*pair, delta) if m.needs_pair else m.log_weight(pair[0])).detach())
        for m, pair in ((module, (t, r)), (other, (there, before)))
    )
    trial.expect(
        abs(here - converted) <= 1e-5 * max(1.0, abs(here)),
        f"log w is {here:.6g} at t = {float(t):.6g} of process '{source.name}', and {converted:.6g} at the same noise"
        f" level of '{target.name}': leave under() and build_in() alone, or convert times there",
    )
