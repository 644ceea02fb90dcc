"""Proofs about parameterizations and what a denoiser derives from them (sCM, App. B; EDM, App. B.6)."""

from __future__ import annotations

import math

import torch

from scmreg.coordinates import convert_point, to_trig
from scmreg.denoiser import convert
from scmreg.law import ExactDenoiser
from scmreg.proofs.case import Case, difference, proof
from scmreg.registry import registry
from scmreg.types import Conditions, expand


@proof("EDM B.6; sCM Eqs. 11-14", 1e-11)
def unit_variance(case: Case) -> float:
    """The unit-variance form gives input and target variance 1, by the smallest c_out there is."""
    process = case.process()
    t = case.times(process, case.angles(16, 0.02))
    c, at = registry("parameterization").create("unit-variance").preconditioning(process, t), process.coefficients(t)
    data, one = process.sigma_data, torch.ones_like(t)

    def target(c_skip: torch.Tensor) -> torch.Tensor:  # variance of x_0 - c_skip x, which c_out F has to make up for
        return (1 - c_skip * at.alpha) ** 2 * data**2 + (c_skip * at.sigma) ** 2

    worst = max(
        difference(c.c_in**2 * (at.alpha**2 * data**2 + at.sigma**2), one),
        difference(target(c.c_skip) / c.c_out**2, one),
    )
    # The minimum over c_skip: the derivative vanishes, against the size of its two terms.
    pull, push = (1 - c.c_skip * at.alpha) * at.alpha * data**2, c.c_skip * at.sigma**2
    return max(worst, difference(pull, push))


@proof("EDM Table 1", 1e-12)
def published_coefficients_of_edm(case: Case) -> float:
    """Under EDM it has the published coefficients, and a network of the opposite sign."""
    data = case.number("sigma_data", 0.2, 2.0)
    edm = case.process("edm", data)
    unit = registry("parameterization").create("unit-variance", c_noise="edm")
    sigma = case.times(edm, case.angles(case.batch, 0.01))
    c = unit.preconditioning(edm, sigma)
    square = sigma**2 + data**2
    worst = max(
        difference(c.c_skip, data**2 / square),
        difference(-c.c_out, sigma * data / torch.sqrt(square)),
        difference(c.c_in, 1 / torch.sqrt(square)),
        difference(unit.time_input(edm, sigma), torch.log(sigma) / 4),
    )
    # A denoiser in EDM's published form with the network -F is the same function.
    model = case.denoiser(edm, unit)
    x = case.normal(case.batch, *case.shape)
    f_edm = -model.network(expand(1 / torch.sqrt(square), x) * x, torch.log(sigma) / 4, Conditions())
    published = expand(data**2 / square, x) * x + expand(sigma * data / torch.sqrt(square), x) * f_edm
    return max(worst, difference(model.data(x, sigma), published))


@proof("sCM Eqs. 23-24", 1e-12)
def trigflow_form(case: Case) -> float:
    """In TrigFlow D = cos t x - sin t sigma_d F(x/sigma_d, t), and sigma_d F is the velocity."""
    trig = case.process("trigflow")
    model, data = case.denoiser(trig), trig.sigma_data
    x, t = case.normal(case.batch, *case.shape), case.angles(case.batch)
    f = model.network(x / data, t, Conditions())
    cos, sin = expand(torch.cos(t), x), expand(torch.sin(t), x)
    return max(difference(model.data(x, t), cos * x - sin * data * f), difference(model.velocity(x, t), data * f))


@proof("sCM Sec. 2.1, Eq. 10", 1e-9)
def perfect_network(case: Case) -> float:
    """A perfect network of any parameterization gives the data, the noise and v."""
    process, form = case.process(), case.parameterization()
    x0, noise = case.pair(process)
    t = case.times(process, case.angles(case.batch))
    x, c, at = process.perturb(x0, noise, t), form.preconditioning(process, t), process.coefficients(t)
    raw = (x0 - expand(c.c_skip, x) * x) / expand(c.c_out, x)

    def perfect(x: torch.Tensor, c_noise: torch.Tensor, cond: Conditions) -> torch.Tensor:
        return raw

    model = case.denoiser(process, form)
    model.network.forward = perfect
    _, t_hat = to_trig(process, x, t)
    cos, sin = expand(torch.cos(t_hat), x), expand(torch.sin(t_hat), x)
    return max(
        difference(model.data(x, t), x0),
        difference(model.noise(x, t), noise),
        difference(model.v(x, t), expand(at.alpha, x) * noise - expand(at.sigma, x) * x0),
        difference(model.velocity(x, t), process.velocity(x0, noise, t)),
        difference(model.unit_velocity(raw, x, t), cos * noise - sin * x0 / process.sigma_data),
    )


@proof("sCM Eqs. 17, 29", 1e-10, examples=100)
def converted_model(case: Case) -> float:
    """A converted model predicts the same data and noise, whatever process, parameterization and scale."""
    source, target = case.process(), case.process()
    model = case.denoiser(source, case.parameterization())
    x, t = case.normal(case.batch, *case.shape), case.times(source, case.angles(case.batch))
    there, t_there = convert_point(x, t, source, target)
    same = convert(model, target)
    scale = target.sigma_data / source.sigma_data
    data, noise = model.predict(x, t)
    data_there, noise_there = same.predict(there, t_there)
    raw, raw_there = model(x, t), same(there, t_there)
    return max(
        difference(raw, raw_there),
        difference(scale * data, data_there),
        difference(noise, noise_there),
        difference(model.unit_velocity(raw, x, t), same.unit_velocity(raw_there, there, t_there)),
    )


@proof("sCM App. C", 1e-9)
def score_identity(case: Case) -> float:
    """The score is -(cos t sigma_d F + sin t x)/(sigma_d² sin t), the gradient of the log-density."""
    process = case.process()
    exact = case.exact(process)
    law = exact.law
    x, t = case.normal(case.batch, *case.shape), case.times(process, case.angles(case.batch, 0.1))
    at, data = process.coefficients(t), process.sigma_data

    def log_density(x: torch.Tensor) -> torch.Tensor:
        means = at.alpha[:, None, None] * data * law.means
        variance = (at.alpha[:, None, None] * data * law.stds) ** 2 + at.sigma[:, None, None] ** 2
        terms = -0.5 * ((x.flatten(1)[:, None] - means) ** 2 / variance + torch.log(variance)).sum(2)
        return (torch.log(law.weights) + terms).logsumexp(1).sum()

    score = exact.score(x, t)
    worst = difference(score, torch.func.grad(log_density)(x))
    x_hat, t_hat = to_trig(process, x, t)
    cos, sin = expand(torch.cos(t_hat), x), expand(torch.sin(t_hat), x)
    in_trigflow = -(cos * data * exact(x, t) + sin * x_hat) / (data**2 * sin)
    return max(worst, difference(score, in_trigflow * expand(data / process.std(t), x)))


@proof("sCM Sec. 2.2", 1e-5)
def boundary_condition(case: Case) -> float:
    """The boundary condition f(x, 0) = x holds for every composition that claims it, continuously."""
    process, form = case.process(), case.parameterization()
    model = case.denoiser(process, form)
    x = case.normal(case.batch, *case.shape)
    if not torch.equal(model.consistency(x, torch.zeros(case.batch, dtype=torch.float64)), x):
        return math.inf
    if not form.has_boundary(process):
        return 0.0
    nearly = case.times(process, torch.full((case.batch,), 1e-7, dtype=torch.float64))
    return float((model.consistency(x, nearly) - x).detach().norm()) / max(1.0, float(x.norm()))


@proof("EDM B.1", 1e-8, examples=15)
def exact_consistency_function(case: Case) -> float:
    """The exact consistency function solves the probability flow: closed form against Runge-Kutta."""
    process = case.process()
    one = case.law(1)
    twice = type(one)(torch.ones(2), one.means.expand(2, -1), one.stds.expand(2, -1))
    x, t = case.normal(case.batch, *case.shape), case.times(process, case.angles(case.batch))
    s = case.times(process, case.angles(case.batch)).minimum(t)
    closed, solved = ExactDenoiser(one, process), ExactDenoiser(twice, process)
    return max(
        difference(closed.consistency(x, t), solved.consistency(x, t)),
        difference(closed.consistency(x, t, s), solved.consistency(x, t, s)),
    )
