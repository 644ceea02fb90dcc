"""Checks of processes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scmreg.coordinates import convert_point
from scmreg.process import Coefficients, Process
from scmreg.tangent import jvp
from scmreg.testing.checks import check
from scmreg.testing.trial import Trial

ROUNDING = 1e-9
"""Relative error that is rounding in float64, with a margin."""
PURE = 10.0
"""Standard deviation of the noise over that of the data from which samplers may start: almost pure noise."""


@check("process")
def process_ends(trial: Trial) -> None:
    """It begins at the data, alpha(0) = 1 and sigma(0) = 0, and ends in noise at a finite t_max."""
    process = trial.process()
    trial.expect(
        math.isfinite(process.t_max) and process.t_max > 0, f"t_max is {process.t_max}: it must be finite and above 0"
    )
    start = process.coefficients(torch.zeros(1, dtype=torch.float64))
    for name, wanted in (("alpha", 1.0), ("sigma", 0.0)):
        found = float(getattr(start, name))
        trial.expect(
            abs(found - wanted) <= 1e-12,
            f"{name}(0) is {found:.6g}, it must be {wanted:g}: time begins at the clean data",
        )
    end = process.coefficients(torch.tensor([process.t_max], dtype=torch.float64))
    for name in Coefficients._fields:
        trial.expect(
            bool(torch.isfinite(getattr(end, name))),
            f"{name} is not finite at t_max = {process.t_max:g}: end just before the pole",
        )
    level = process.highest_level / process.sigma_data
    trial.expect(level > 0, f"sigma/alpha is {process.highest_level:g} at t_max: noise must grow from 0")
    if trial.is_default:
        trial.expect(
            level >= PURE,
            f"noise is only {level:.3g} times as wide as the data at t_max = {process.t_max:g}; sampling starts there"
            f" from pure noise: go on to {PURE:g} at least",
        )


@check("process")
def process_derivatives(trial: Trial) -> None:
    """The derivatives of alpha and sigma, which make the velocity, are those of automatic differentiation."""
    process = trial.process()
    t = trial.time(process)
    at, one = process.coefficients(t), torch.ones_like(t)
    for index, name in enumerate(("alpha", "sigma")):
        given = float(at[index + 2])
        known = float(jvp(lambda t, index=index: process.coefficients(t)[index], (t,), (one,))[1])
        off = abs(given - known)
        trial.expect(
            off <= ROUNDING * max(1.0, abs(known)),
            f"velocity's derivative: {name}'(t) is off by {off:.3g} at t = {float(t):.6g}; coefficients() gives"
            f" {name}_prime = {given:.6g}, expected the derivative of {name}, {known:.6g}",
        )


@check("process", examples=5)
def monotone_snr(trial: Trial) -> None:
    """The noise level sigma/alpha grows strictly with time, so that the signal-to-noise ratio falls."""
    process = trial.process()
    shares = torch.cat([torch.logspace(-6, -2, 64, dtype=torch.float64), torch.linspace(0.011, 1, 256).double()])
    t = shares * process.t_max
    level = process.noise_level(t)
    falls = (~(level.diff() > 0)).nonzero().flatten()
    if len(falls):
        first = int(falls[0])
        trial.fail(
            f"the noise level sigma/alpha goes from {float(level[first]):.6g} at t = {float(t[first]):.6g} to"
            f" {float(level[first + 1]):.6g} at t = {float(t[first + 1]):.6g}: it must grow strictly with t"
        )
    trial.expect(
        bool((level > 0).all()), "the noise level is not above 0 after t = 0: sigma and alpha must be positive"
    )


@check("process")
def time_of_the_noise_level(trial: Trial) -> None:
    """time_of is the inverse of sigma/alpha, with its derivative."""
    process = trial.process()
    t = trial.time(process, high=0.95)
    level, rate = jvp(process.noise_level, (t,), (torch.ones_like(t),))
    back, slope = jvp(process.time_of, (level,), (torch.ones_like(t),))
    trial.expect(
        abs(float(back - t)) <= 1e-8 * float(t),
        f"time_of({float(level):.6g}) is {float(back):.6g}, but sigma/alpha has that value at t = {float(t):.6g}: mend"
        " time_of, or leave it out, and it is found by bisection",
    )
    trial.expect(
        abs(float(slope * rate) - 1) <= 1e-7,
        f"the derivative of time_of at {float(level):.6g} is {float(slope):.6g}, expected {float(1 / rate):.6g}, one"
        " over that of sigma/alpha: mend the derivatives in coefficients, or, of a time_of of your own, compute it by"
        " operations that can be differentiated",
    )


@check("process")
def trigflow_round_trip(trial: Trial) -> None:
    """A point and its time go to TrigFlow and back unchanged."""
    process = trial.process()
    trig = trial.trigflow(process)
    x, t = trial.normal(trial.batch, *trial.shape), trial.times(process, trial.spread(trial.batch))
    back, t_back = convert_point(*convert_point(x, t, process, trig), trig, process)
    off = max(float(((t_back - t) / t).abs().max()), float((back - x).norm() / x.norm()))
    trial.expect(
        off <= 1e-9,
        f"a point that is converted to TrigFlow and back is off by {off:.3g} of itself: time_of must invert sigma/alpha"
        " to rounding at every noise level from 1e-6 up to the end",
    )


@check("process", examples=4)
def process_dtype_and_device(trial: Trial) -> None:
    """Coefficients and times keep shape, precision and device."""
    process = trial.process()
    for dtype in (torch.float32, torch.float64):
        t = torch.linspace(0.1, 0.9, 5, dtype=dtype) * process.t_max
        kept(trial, "coefficients", t, process.coefficients(t))
        kept(trial, "time_of", t, (process.time_of(process.noise_level(t)),))
    t = torch.linspace(0.1, 0.9, 5, device="cuda" if torch.cuda.is_available() else "meta") * process.t_max
    try:
        kept(trial, "coefficients", t, process.coefficients(t))
    except (RuntimeError, NotImplementedError) as error:
        # What looks at values cannot do so here; what brings tensors of another device is told so.
        trial.expect(
            "expected device" not in str(error) and "same device" not in str(error),
            "coefficients() mixes its times with tensors on another device: make them with torch.zeros_like(t), or"
            " device=t.device",
        )


def kept(trial: Trial, function: str, t: Tensor, results: tuple[Tensor, ...]) -> None:
    """Expect results to be like the times that they are of."""
    for name, result in zip(Coefficients._fields if len(results) > 1 else ("the result",), results, strict=True):
        trial.expect(
            result.shape == t.shape,
            f"{function}: {name} has shape {tuple(result.shape)} for times of shape {tuple(t.shape)}: give one number a"
            " time, torch.ones_like(t) for a constant",
        )
        trial.expect(
            result.dtype == t.dtype,
            f"{function}: {name} is {result.dtype} for times of {t.dtype}: compute in the precision of the times",
        )
        trial.expect(
            result.device == t.device,
            f"{function}: {name} is on {result.device} for times on {t.device}: compute where the times are",
        )


def each_time(process: Process, count: int) -> Tensor:
    """Return times over the whole process but its beginning, float64, shape ``(count,)``."""
    return torch.linspace(0.01, 1, count, dtype=torch.float64) * process.t_max
