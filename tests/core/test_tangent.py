"""The tangent: exact against finite differences, in every coordinate system, and treated as the paper says."""

from __future__ import annotations

import torch
from hypothesis import given
from strategies import batches, close, denoiser, pair, parameterizations, processes, seeds, shapes, times
from torch import Tensor

import scmreg
from scmreg.coordinates import log_ratio_rate, trig_time
from scmreg.parameterization import Parameterization
from scmreg.process import Process
from scmreg.tangent import consistency_tangent, evaluate_with_jvp, motion, normalize
from scmreg.types import Conditions, expand

NONE = Conditions()


@given(process=processes(), parameterization=parameterizations(), seed=seeds, batch=batches, shape=shapes)
def test_g_is_the_derivative_of_f_along_the_given_direction(
    process: Process, parameterization: Parameterization, seed: int, batch: int, shape: tuple[int, ...]
) -> None:
    """At r = 1, g = cos(t̂) df/dt̂, by central differences of sixth order along the given dx/dt."""
    rng = torch.Generator().manual_seed(seed)
    model = denoiser(process, parameterization, shape, rng)
    x0, noise = pair(shape, batch, process.sigma_data, rng)
    t = times(process, batch, rng, low=0.15, high=1.4)
    x = process.perturb(x0, noise, t)
    # Any direction: a pair that makes up x, as a teacher's predictions do, and is not the one that x was made of.
    data = torch.randn(x.shape, generator=rng, dtype=torch.float64)
    at_t = process.coefficients(t)
    eps = (x - expand(at_t.alpha, x) * data) / expand(at_t.sigma, x)
    at = motion(model, x, t, data, eps)
    value, jvp_hat = evaluate_with_jvp(model, model, at, NONE, "joint")
    g = consistency_tangent(value.detach(), jvp_hat, at, process.sigma_data, 1.0)

    velocity, rate = process.velocity(data, eps, t), log_ratio_rate(process, t)

    def f(h: float) -> Tensor:
        step = h * rate  # in units of log(sigma/alpha), so that one h suits every time of every process
        return model.consistency(x + step.reshape(-1, *[1] * (x.ndim - 1)) * velocity, t + step)

    h = 3e-3
    steps = ((1, 45), (2, -9), (3, 1))
    slope = sum(weight * (f(k * h) - f(-k * h)) for k, weight in steps) / (60 * h)  # cos sin df/dt̂
    expected = slope / torch.sin(trig_time(process, t)).reshape(-1, *[1] * (x.ndim - 1))
    assert close(g, expected, 1e-8)


@given(process=processes(), parameterization=parameterizations(), seed=seeds)
def test_algorithm_1_agrees_with_the_jvp_of_the_whole_function(
    process: Process, parameterization: Parameterization, seed: int
) -> None:
    """The closed form in TrigFlow time equals the JVP of f along (dx/dt, 1), converted: Eq. 2 against Eq. 6."""
    rng = torch.Generator().manual_seed(seed)
    model = denoiser(process, parameterization, (3,), rng)
    x0, noise = pair((3,), 4, process.sigma_data, rng)
    t = times(process, 4, rng)
    x = process.perturb(x0, noise, t)
    at = motion(model, x, t, x0, noise)
    value, jvp_hat = evaluate_with_jvp(model, model, at, NONE, "separate")
    g = consistency_tangent(value.detach(), jvp_hat, at, process.sigma_data, 1.0)
    _, whole = torch.func.jvp(model.consistency, (x, t), (process.velocity(x0, noise, t), torch.ones_like(t)))
    factor = log_ratio_rate(process, t) / torch.sin(trig_time(process, t))  # cos(t̂) dt/dt̂
    assert close(g, factor[:, None] * whole, 1e-9)


@given(process=processes(), seed=seeds)
def test_the_treated_tangent_is_the_same_under_every_process(process: Process, seed: int) -> None:
    """Warm-up acts in TrigFlow time: a network of unit variance has one tangent, whatever the coordinates."""
    rng = torch.Generator().manual_seed(seed)
    unit = scmreg.parameterizations.create("unit-variance")
    model = denoiser(process, unit, (3,), rng)
    trig = scmreg.processes.create("trigflow", sigma_data=process.sigma_data)
    same = scmreg.Denoiser(model.network, trig, unit)
    x0, noise = pair((3,), 4, process.sigma_data, rng)
    t = times(process, 4, rng)
    tangents = []
    for candidate, time in ((model, t), (same, trig_time(process, t))):
        x = candidate.process.perturb(x0, noise, time)
        at = motion(candidate, x, time, x0, noise)
        value, jvp_hat = evaluate_with_jvp(candidate, candidate, at, NONE, "joint")
        tangents.append(consistency_tangent(value.detach(), jvp_hat, at, process.sigma_data, 0.4))
    assert close(*tangents, 1e-9)


@given(seed=seeds)
def test_trigflow_tangent_is_equation_6(seed: int) -> None:
    """The factor sigma_data of the JVP term, which the printed algorithm lacks, shows at sigma_data != 1."""
    rng = torch.Generator().manual_seed(seed)
    sigma = 0.3
    process = scmreg.processes.create("trigflow", sigma_data=sigma)
    model = denoiser(process, scmreg.parameterizations.create("unit-variance"), (3,), rng)
    x0, noise = pair((3,), 4, sigma, rng)
    t = times(process, 4, rng)
    x, v = process.perturb(x0, noise, t), process.velocity(x0, noise, t)
    f, df = torch.func.jvp(lambda x, t: model.network(x / sigma, t, NONE), (x, t), (v, torch.ones_like(t)))
    cos, sin = torch.cos(t)[:, None], torch.sin(t)[:, None]
    eq6 = -cos * (sigma * f - v) - sin * (x + sigma * df)
    at = motion(model, x, t, x0, noise)
    value, jvp_hat = evaluate_with_jvp(model, model, at, NONE, "joint")
    assert close(consistency_tangent(value.detach(), jvp_hat, at, sigma, 1.0), cos * eq6, 1e-12)
    stable = -cos * (sigma * f - v)
    assert close(consistency_tangent(value.detach(), jvp_hat, at, sigma, 0.0), cos * stable, 1e-12)


def test_normalizations() -> None:
    g = torch.tensor([[3.0, 4.0], [0.3, -0.4]], dtype=torch.float64)
    assert torch.equal(normalize(g, "none", 0.1), g)
    assert torch.equal(normalize(g, "clip", 0.1), torch.tensor([[1.0, 1.0], [0.3, -0.4]], dtype=torch.float64))
    assert close(normalize(g, "l2", 0.1), g / torch.tensor([[5.1], [0.6]], dtype=torch.float64), 1e-14)
    rms = torch.tensor([[5 / 2**0.5 + 0.1], [0.5 / 2**0.5 + 0.1]], dtype=torch.float64)
    assert close(normalize(g, "rms", 0.1), g / rms, 1e-14)
