"""Checks of parameterizations."""

from __future__ import annotations

import torch

from scmreg.parameterization import Preconditioning
from scmreg.testing.checks import check
from scmreg.testing.trial import Trial

NEARLY = 1e-7
"""TrigFlow time that is nearly 0."""


@check("parameterization")
def predictions_make_up_the_sample(trial: Trial) -> None:
    """The predictions of data and noise make up the sample, alpha D + sigma eps = x, whatever the network returns."""
    form, process = trial.parameterization(), trial.process()
    t = trial.time(process)
    c, at = form.preconditioning(process, t), process.coefficients(t)
    for name in Preconditioning._fields:
        value = getattr(c, name)
        trial.expect(
            value.shape == t.shape and value.dtype == t.dtype,
            f"{name} has shape {tuple(value.shape)} and {value.dtype} for times of shape {tuple(t.shape)} and"
            f" {t.dtype}: give one number a time, in its precision",
        )
        trial.expect(
            bool(torch.isfinite(value).all()),
            f"{name} is {float(value):g} at t = {float(t):.6g} of process '{process.name}': it must be finite between"
            " the ends",
        )
    for wanted, name, alpha_part, sigma_part in ((1.0, "skip", c.c_skip, c.n_skip), (0.0, "out", c.c_out, c.n_out)):
        found = float(at.alpha * alpha_part + at.sigma * sigma_part)
        size = max(1.0, float((at.alpha * alpha_part).abs()), float((at.sigma * sigma_part).abs()))
        trial.expect(
            abs(found - wanted) <= 1e-9 * size,
            f"alpha c_{name} + sigma n_{name} is {found:.6g} at t = {float(t):.6g} of process '{process.name}', it must"
            f" be {wanted:g}, so that alpha D + sigma eps = x: derive n_{name} from c_{name}",
        )


@check("parameterization")
def inverse_round_trip(trial: Trial) -> None:
    """The network's target is made of data and noise, and they are found again in it."""
    trial.prove(
        "perfect-network",
        "D and eps of the raw output F must be those that F is made of; compare c_skip, c_out, n_skip and n_out with"
        " the formula, and unit_velocity, if it is overridden, with cos(t̂) eps - sin(t̂) D/sigma_data",
    )


@check("parameterization")
def boundary_as_claimed(trial: Trial) -> None:
    """has_boundary says whether f(x, 0) = x holds for every network."""
    form, process = trial.parameterization(), trial.process()
    claimed = form.has_boundary(process)
    t = trial.times(process, torch.tensor([NEARLY], dtype=torch.float64))
    c = form.preconditioning(process, t)
    skip, out = float(c.c_skip), float(c.c_out)
    holds = abs(skip - 1) <= 1e-4 and abs(out) <= 1e-4
    at = form.preconditioning(process, torch.zeros(1, dtype=torch.float64))
    pole = not bool(torch.isfinite(torch.cat([at.c_skip, at.c_out])).all())  # at 0 itself, where it cannot be claimed
    trial.expect(
        claimed == holds or (pole and not claimed),
        f"has_boundary is {claimed} under process '{process.name}', but just after t = 0 c_skip is {skip:.6g} and c_out"
        f" {out:.6g}: {'f(x, 0) = x needs 1 and 0' if claimed else 'that is f(x, 0) = x'}; leave has_boundary alone, it"
        " is computed from the coefficients, and mend these",
    )
    trial.prove("boundary-condition", "c_skip must go to 1 and c_out to 0 at t = 0, without a jump")


@check("parameterization")
def time_input(trial: Trial) -> None:
    """What the network is told of the time is one finite number a time, with a finite derivative, in its precision."""
    form, process = trial.parameterization(), trial.process()
    for dtype in (torch.float32, torch.float64):
        t = trial.time(process).to(dtype)
        told, slope = torch.func.jvp(lambda t: form.time_input(process, t), (t,), (torch.ones_like(t),))  # type: ignore[misc]
        trial.expect(
            told.shape == t.shape and told.dtype == dtype,
            f"time_input returns shape {tuple(told.shape)} and {told.dtype} for times of shape {tuple(t.shape)} and"
            f" {dtype}: give one number a time, in its precision",
        )
        trial.expect(
            bool(torch.isfinite(told).all() and torch.isfinite(slope).all()),
            f"time_input is {float(told):g} with the derivative {float(slope):g} at t = {float(t):.6g} of process"
            f" '{process.name}': both must be finite between the ends",
        )


@check("parameterization", examples=15)
def parameterization_converts(trial: Trial) -> None:
    """The same network is the same model under another process."""
    trial.prove(
        "converted-model",
        "under() must return the parameterization that asks the network for the same numbers; if it is overridden,"
        " leave that away",
    )
