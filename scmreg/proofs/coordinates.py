"""Proofs that every process is TrigFlow in other coordinates (sCM, App. B)."""

from __future__ import annotations

import math

import torch

from scmreg.coordinates import convert_point, convert_time, log_ratio_rate, trig_time
from scmreg.denoiser import convert
from scmreg.proofs.case import Case, difference, proof
from scmreg.registry import registry
from scmreg.tangent import jvp
from scmreg.types import expand


@proof("sCM Sec. 2.1", 1e-12)
def coefficients_and_their_derivatives(case: Case) -> float:
    """The derivatives of alpha and sigma are those that automatic differentiation finds."""
    process = case.process()
    t = case.times(process, case.angles(8))
    at, one = process.coefficients(t), torch.ones_like(t)
    _, alpha_prime = jvp(lambda t: process.coefficients(t).alpha, (t,), (one,))
    _, sigma_prime = jvp(lambda t: process.coefficients(t).sigma, (t,), (one,))
    return max(difference(alpha_prime, at.alpha_prime), difference(sigma_prime, at.sigma_prime))


@proof("sCM Eq. 29", 1e-10, examples=500)
def round_trip(case: Case) -> float:
    """A point and its time go to any other process and back unchanged."""
    source, target = case.process(), case.process()
    x, t = case.normal(case.batch, *case.shape), case.times(source, case.spread(case.batch))
    back, t_back = convert_point(*convert_point(x, t, source, target), target, source)
    return max(difference(back, x), float(((t_back - t) / t).abs().max()))


@proof("sCM Eq. 29", 1e-10)
def marginal_of_the_target(case: Case) -> float:
    """A converted point is the target process's own, of the same noise and of the data in its scale."""
    source, target = case.process(), case.process()
    x0, noise = case.pair(source)
    t = case.times(source, case.spread(case.batch))
    x, there = convert_point(source.perturb(x0, noise, t), t, source, target)
    return difference(x, target.perturb(x0 * (target.sigma_data / source.sigma_data), noise, there))


@proof("sCM Eq. 29", 0.0, examples=10)
def refusal_of_pure_noise(case: Case) -> float:
    """A process refuses the times that it cannot represent: EDM those near pure noise."""
    source = registry("process").create(case.choose("process", ("trigflow", "flow", "cosine")))
    edm = registry("process").create("edm")
    x, t = case.normal(1, *case.shape), torch.tensor([source.t_max], dtype=torch.float64)
    try:
        convert_point(x, t, source, edm)
    except ValueError:
        return 0.0
    return math.inf


@proof("sCM Eq. 34", 1e-10)
def signal_to_noise_ratio(case: Case) -> float:
    """The signal-to-noise ratio is 1/tan² of TrigFlow's time."""
    process = case.process()
    t = case.times(process, case.angles(8))
    return difference(process.snr(t), torch.tan(trig_time(process, t)) ** -2)


@proof("sCM Eq. 34", 1e-10)
def invariance_to_the_scale_of_data(case: Case) -> float:
    """Rescaled data have the same ratio at the same TrigFlow time, and the rescaled denoiser."""
    process = case.process()
    larger = case.process(process.name, process.sigma_data * case.number("factor", 0.2, 5.0))
    exact = case.exact(process)
    rescaled = type(exact)(exact.law, larger)
    x, t = case.normal(case.batch, *case.shape), case.times(process, case.angles(case.batch, 0.05, 1.4))
    there, t_there = convert_point(x, t, process, larger)
    factor = larger.sigma_data / process.sigma_data
    ratios = difference(process.snr(t), larger.snr(t_there))
    return max(ratios, difference(factor * exact.data(x, t), rescaled.data(there, t_there)))


@proof("sCM Alg. 1", 1e-10)
def rate_of_log_ratio(case: Case) -> float:
    """The rate dt/d log(sigma/alpha) is cos sin times TrigFlow's rate: the rearrangement of the JVP."""
    process = case.process()
    t = case.times(process, case.angles(8))
    t_hat, slope = jvp(lambda t: trig_time(process, t), (t,), (torch.ones_like(t),))
    return difference(log_ratio_rate(process, t) * slope, torch.cos(t_hat) * torch.sin(t_hat))


@proof("sCM Sec. 4.1", 1e-9)
def slope_of_the_time_input(case: Case) -> float:
    """What the network is told of time moves with sin t (identity) and 1/cos t (logarithm)."""
    process = case.process()
    t = case.times(process, case.angles(8, 0.05, 1.47))
    one = torch.ones_like(t)
    t_hat, t_hat_slope = jvp(lambda t: trig_time(process, t), (t,), (one,))
    worst = 0.0
    # Times the sine, as in the tangent: bounded by 1 for the identity, without bound for the logarithm.
    expected = {"identity": torch.sin(t_hat), "log-sigma": 1 / torch.cos(t_hat), "edm": 0.25 / torch.cos(t_hat)}
    for c_noise, known in expected.items():
        told = registry("parameterization").create("unit-variance", c_noise=c_noise)
        _, slope = jvp(lambda t, told=told: told.time_input(process, t), (t,), (one,))
        worst = max(worst, difference(torch.sin(t_hat) * slope / t_hat_slope, known))
    bounded = registry("parameterization").create("unit-variance")
    end = torch.tensor([process.t_max], dtype=torch.float64)
    _, slope = jvp(lambda t: bounded.time_input(process, t), (end,), (torch.ones(1, dtype=torch.float64),))
    _, rate = jvp(lambda t: trig_time(process, t), (end,), (torch.ones(1, dtype=torch.float64),))
    return worst if float(slope / rate) <= 1 + 1e-9 else math.inf


@proof("sCM Sec. 2.1", 1e-12)
def conditional_velocity(case: Case) -> float:
    """The velocity of a process is the derivative of its points."""
    process = case.process()
    x0, noise = case.pair(process)
    t = case.times(process, case.angles(case.batch))
    _, slope = jvp(lambda t: process.perturb(x0, noise, t), (t,), (torch.ones_like(t),))
    return difference(process.velocity(x0, noise, t), slope)


@proof("sCM Eqs. 19-20, 24, 29", 1e-9)
def probability_flow(case: Case) -> float:
    """The probability flow's velocity goes to another process by the chain rule."""
    source, target = case.process(), case.process()
    model = case.denoiser(source, case.parameterization())
    x, t = case.normal(case.batch, *case.shape), case.times(source, case.angles(case.batch))

    def point(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return convert_point(x, t, source, target)[0]

    rates = model.velocity(x, t), torch.ones_like(t)
    there, x_rate = jvp(point, (x, t), rates)
    t_there, t_rate = jvp(lambda t: convert_time(t, source, target), (t,), (rates[1],))
    return difference(convert(model, target).velocity(there, t_there) * expand(t_rate, x), x_rate)
