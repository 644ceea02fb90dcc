"""Proofs about losses and tangents (sCM, Secs. 2-4 and App. B)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scmreg.coordinates import convert_point, convert_time, log_ratio_rate, trig_time
from scmreg.data import DataSpec
from scmreg.denoiser import Denoiser, convert
from scmreg.objective import Setup
from scmreg.proofs.case import Case, difference, proof
from scmreg.registry import registry
from scmreg.tangent import consistency_tangent, evaluate_with_jvp, jvp, motion, segment_begin
from scmreg.types import Batch, Conditions, expand


def _gradient(loss: Tensor, model: Denoiser) -> Tensor:
    """Return the gradient in all parameters, as one vector."""
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)
    return torch.cat([part.flatten() for part in found if part is not None])


def _loss(objective: Any, model: Denoiser, x0: Tensor, seed: int) -> Tensor:
    """Return the loss of an objective on some data, its times and noise drawn from a seed."""
    spec = DataSpec("case", tuple(x0.shape[1:]), "points")
    module = objective.build(Setup(model, spec))
    rng = torch.Generator().manual_seed(seed)
    total: Tensor = module.loss("main", {"model": model}, Batch(x0), 0, rng).total
    return total


@proof("sCM Eq. 8", 1e-8)
def densities_of_proposals(case: Case) -> float:
    """Proposals state their density: it is the derivative of their quantiles."""
    process = case.process()
    proposal = case.make("proposal")
    uniform = 0.02 + 0.9 * torch.rand(16, generator=case.rng, dtype=torch.float64)
    t, slope = jvp(lambda u: proposal.transform(process, u), (uniform,), (torch.ones_like(uniform),))
    case.assume(bool((t < 0.999 * process.t_max).all()))  # what lies past the end is put at the end
    return difference(torch.exp(proposal.log_density(process, t)) * slope, torch.ones_like(t))


@proof("sCM Eq. 22", 1e-8)
def converted_proposals(case: Case) -> float:
    """A converted proposal draws the same noise levels, with density p dt/dt'."""
    source, target = case.process(), case.process()
    proposal = case.make("proposal")
    there = proposal.under(source, target)
    uniform = 0.02 + 0.9 * torch.rand(16, generator=case.rng, dtype=torch.float64)
    t, t_there = proposal.transform(source, uniform), there.transform(target, uniform)
    case.assume(bool((t < 0.999 * source.t_max).all()) and bool((t_there < 0.999 * target.t_max).all()))
    rate = log_ratio_rate(source, t) / log_ratio_rate(target, t_there)
    density = torch.exp(proposal.log_density(source, t)) * rate
    return max(
        difference(t_there, convert_time(t, source, target)),
        difference(torch.exp(there.log_density(target, t_there)), density),
    )


@proof("sCM Eq. 22, corrected", 1e-9)
def diffusion_loss(case: Case) -> float:
    """The diffusion loss and its gradient stay the same when process, proposal and weighting are converted."""
    source, target = case.process(), case.process()
    model = case.denoiser(source, case.parameterization())
    proposal = registry("proposal").create(case.choose("proposal", ("lognormal", "logit-normal", "uniform")))
    weighting = registry("weighting").create(case.choose("weighting", sorted(registry("weighting"))))
    create = registry("objective").create
    here = create("diffusion", proposal=proposal, weighting=weighting)
    there = create("diffusion", proposal=proposal.under(source, target), weighting=weighting.under(source, target))
    x0, _ = case.pair(source)
    drawn = proposal.sample(source, case.batch, torch.Generator().manual_seed(1), x0.dtype)
    case.assume(bool((convert_time(drawn, source, target) < 0.999 * target.t_max).all()))
    loss = _loss(here, model, x0, 1)
    same = convert(model, target)
    other = _loss(there, same, x0 * (target.sigma_data / source.sigma_data), 1)
    return max(difference(loss, other), difference(_gradient(loss, model), _gradient(other, same)))


@proof("EDM Table 1; sCM Eqs. 16, 22", 1e-9)
def published_losses(case: Case) -> float:
    """EDM's loss and flow matching's loss are that loss with their own weights."""
    worst = 0.0
    for name in ("edm", "flow"):
        process = case.process(name)
        form = registry("parameterization").create("unit-variance" if name == "edm" else "flow")
        model = case.denoiser(process, form)
        x0, noise = case.pair(process)
        t = case.times(process, case.angles(case.batch))
        x, data = process.perturb(x0, noise, t), process.sigma_data
        raw = model(x, t)
        v_hat = expand(torch.cos(trig_time(process, t)), x) * noise
        v_hat = v_hat - expand(torch.sin(trig_time(process, t)), x) * x0 / data
        unit = (model.unit_velocity(raw, x, t) - v_hat).square().flatten(1).sum(1)
        if name == "edm":
            published = (t**2 + data**2) / (t * data) ** 2 * (model.data(x, t) - x0).square().flatten(1).sum(1)
        else:
            velocity = (raw - (noise - x0)).square().flatten(1).sum(1)
            published = velocity * process.std(t) ** 2 / data**2
        worst = max(worst, difference(unit, published))
        worst = max(worst, difference(_gradient(unit.sum(), model), _gradient(published.sum(), model)))
    return worst


def _tangent(
    model: Denoiser, x: Tensor, t: Tensor, data: Tensor, noise: Tensor, warmup: float = 1.0, segments: int = 1
) -> Tensor:
    at = motion(model, x, t, data, noise, segments)
    value, jvp_hat = evaluate_with_jvp(model, model, at, Conditions(), "joint")
    return consistency_tangent(value.detach(), jvp_hat, at, model.process.sigma_data, warmup)


@proof("sCM Eq. 6, Alg. 1, corrected", 1e-7)
def tangent_is_the_derivative(case: Case) -> float:
    """The tangent is cos t df/dt: against a central difference along the motion."""
    process = case.process()
    # 1000 t moves too fast for a difference quotient to be accurate.
    model = case.denoiser(process, case.parameterization(("identity", "log-sigma", "edm")))
    x0, noise = case.pair(process)
    t = case.times(process, case.angles(case.batch, 0.2, 1.3))
    step = 1e-5 * log_ratio_rate(process, t)

    def f(t: Tensor) -> Tensor:
        return model.data(process.perturb(x0, noise, t), t)

    slope = (f(t + step) - f(t - step)) / expand(2e-5 * torch.ones_like(t), x0)  # df/d log(sigma/alpha)
    tangent = _tangent(model, process.perturb(x0, noise, t), t, x0, noise)
    return difference(tangent * expand(torch.sin(trig_time(process, t)), x0), slope)


@proof("sCM Eqs. 6, 26, Table 5", 1e-6)
def tangent_of_a_segment(case: Case) -> float:
    """With several segments it is cos(t - s) df^{t→s}/dt, where s is the beginning of the segment that t is in."""
    process, trig = case.process(), registry("process").create("trigflow")
    trig = replace(trig, sigma_data=process.sigma_data)
    model = case.denoiser(process, case.parameterization(("identity", "log-sigma", "edm")))
    segments = case.choose("segments", (2, 3, 5))
    x0, noise = case.pair(process)
    t_hat = case.angles(case.batch, 0.2, 1.3)
    t = case.times(process, t_hat)
    s_hat = segment_begin(trig_time(process, t), process.sigma_data, segments)
    s = convert_time(s_hat, trig, process)
    step = 1e-5 * log_ratio_rate(process, t)

    def f(t: Tensor) -> Tensor:
        jumped = model.consistency(process.perturb(x0, noise, t), t, s)
        return convert_point(jumped, s, process, trig)[0]

    slope = (f(t + step) - f(t - step)) / 2e-5  # df/d log(sigma/alpha) = cos t̂ sin t̂ df/dt̂
    span = trig_time(process, t) - s_hat
    tangent = _tangent(model, process.perturb(x0, noise, t), t, x0, noise, 1.0, segments)
    cosine_sine = torch.sin(2 * trig_time(process, t)) / 2
    return difference(tangent * expand(cosine_sine, x0), expand(torch.cos(span), x0) * slope)


@proof("sCM Eq. 6, App. B", 1e-9)
def tangent_under_any_process(case: Case) -> float:
    """The tangent is the same under any process, and df/dt goes by the chain rule."""
    source, target = case.process(), case.process()
    model = case.denoiser(source, case.parameterization())
    same, factor = convert(model, target), target.sigma_data / source.sigma_data
    x0, noise = case.pair(source)
    t = case.times(source, case.angles(case.batch))
    x = source.perturb(x0, noise, t)
    there, t_there = convert_point(x, t, source, target)
    warmup = case.number("warm-up", 0.0, 1.0)
    worst = difference(
        factor * _tangent(model, x, t, x0, noise, warmup), _tangent(same, there, t_there, factor * x0, noise, warmup)
    )

    def rate(model: Denoiser, x: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        motions = (model.process.velocity(x0, noise, t), torch.ones_like(t))
        return jvp(model.data, (x, t), motions)[1]

    slower = log_ratio_rate(source, t) / log_ratio_rate(target, t_there)  # dt/dt'
    chain = factor * rate(model, x, t, x0) * expand(slower, x)
    return max(worst, difference(chain, rate(same, there, t_there, factor * x0)))


@proof("sCM Eqs. 2, 8", 1e-9)
def gradient_of_the_general_form(case: Case) -> float:
    """The gradient of sCM is 2/D times the general one of w f df/dt, with w = 1/(sigma_d tan t)."""
    trig = case.process("trigflow")
    model = case.denoiser(trig)
    x0, _ = case.pair(trig)
    objective = registry("objective").create(
        "sct", normalization="none", warmup=0, weighting=registry("weighting").create("uniform"), start="scratch"
    )
    loss = _loss(objective, model, x0, 3)
    rng = torch.Generator().manual_seed(3)  # the draws of the objective once more
    t = objective.proposal.sample(trig, case.batch, rng, x0.dtype)
    noise = torch.randn(x0.shape, generator=rng).to(x0)
    x = trig.perturb(x0, noise, t)
    _, rate = jvp(model.data, (x, t), (trig.velocity(x0, noise, t), torch.ones_like(t)))
    weight = 1 / (trig.sigma_data * torch.tan(t))
    general = (weight * (model.consistency(x, t) * rate.detach()).flatten(1).sum(1)).mean()
    size = torch.Size(case.shape).numel()
    return difference(_gradient(loss, model), 2 / size * _gradient(general, model))


class GaussianStudent(nn.Module):
    """The unit-variance network whose consistency function is the exact one of one Gaussian, in closed form.

    ``F = sin [x (cos² - s² (1 + cos²))/(v (v cos + s)) - m/(v (v + s cos))]`` with ``v² = s² cos² + sin²``, from
    ``f* = m + s/v (x - cos m)``, all in units of the data's standard deviation.
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        """Return the raw output at TrigFlow times."""
        cos, sin, s = torch.cos(c_noise)[:, None], torch.sin(c_noise)[:, None], self.std
        v = torch.sqrt((s * cos) ** 2 + sin**2)
        flat = x.flatten(1)
        of_x = flat * (cos**2 - s**2 * (1 + cos**2)) / (v * (v * cos + s))
        return (sin * (of_x - self.mean / (v * (v + s * cos)))).reshape(x.shape)


@proof("sCM Sec. 2.2, Eq. 6", 1e-9)
def tangent_at_the_solution(case: Case) -> float:
    """At the exact consistency function of a Gaussian the tangent of sCD is zero."""
    process = case.process()
    teacher = case.exact(process, modes=1)
    unit = registry("parameterization").create("unit-variance")
    student = Denoiser(GaussianStudent(teacher.law.means[0], teacher.law.stds[0]), process, unit)
    x, t = case.normal(case.batch, *case.shape), case.times(process, case.angles(case.batch))
    x = expand(process.std(t), x) * x
    exact = difference(student.consistency(x, t), teacher.consistency(x, t))
    at = motion(student, x, t, *teacher.predict(x, t))
    value, jvp_hat = evaluate_with_jvp(student, student, at, Conditions(), "joint")
    data = process.sigma_data
    g = consistency_tangent(value, jvp_hat, at, data, 1.0)
    size = float(g.norm()) / max(float((data * jvp_hat).norm()), float((data * value).norm()))
    return max(exact, size)


@proof("sCM Sec. 2.2", 1e-8, examples=15)
def expected_gradient_at_the_solution(case: Case) -> float:
    """At the exact consistency function of a Gaussian the expected gradient of sCT is zero."""
    process = case.process()
    mean, std = case.number("mean", -1.0, 1.0), case.number("std", 0.3, 1.2)
    law = torch.tensor([mean], dtype=torch.float64), torch.tensor([std], dtype=torch.float64)
    student = Denoiser(GaussianStudent(*law), process, registry("parameterization").create("unit-variance"))
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(60))
    weight = torch.outer(weights, weights).flatten() / (2 * math.pi)
    x0 = process.sigma_data * (mean + std * nodes).repeat_interleave(60)[:, None]
    noise = nodes.repeat(60)[:, None]
    t = case.times(process, case.angles(1, 0.2)).repeat(len(x0))
    x = process.perturb(x0, noise, t)
    tangent = _tangent(student, x, t, x0, noise)[:, 0]
    # The gradient in any parameter is the mean of the tangent times a function of x alone.
    unit = x[:, 0] / process.std(t)
    functions = torch.stack([torch.ones_like(unit), unit, torch.tanh(unit), torch.cos(1 + unit)])
    means = (functions * tangent * weight).sum(1).abs()
    sizes = (functions * tangent).abs().mul(weight).sum(1)
    return float((means / sizes).max())
