"""Parameterizations and what a denoiser makes of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from strategies import (
    PARAMETERIZATIONS,
    PROCESSES,
    SIGMA_DATA,
    batches,
    close,
    denoiser,
    pair,
    parameterizations,
    processes,
    seeds,
    shapes,
    times,
)
from torch import nn

import scmreg
from scmreg.coordinates import from_trig, to_trig
from scmreg.denoiser import Denoiser
from scmreg.parameterization import Parameterization
from scmreg.process import Process
from scmreg.types import Conditions, expand


@given(process=processes(), parameterization=parameterizations(), seed=seeds, batch=batches, shape=shapes)
def test_data_and_noise_predictions_make_up_the_sample(
    process: Process, parameterization: Parameterization, seed: int, batch: int, shape: tuple[int, ...]
) -> None:
    rng = torch.Generator().manual_seed(seed)
    model = denoiser(process, parameterization, shape, rng)
    x0, noise = pair(shape, batch, process.sigma_data, rng)
    t = times(process, batch, rng)
    x = process.perturb(x0, noise, t)
    at = process.coefficients(t)
    data, eps = model.data(x, t), model.noise(x, t)
    parts = (expand(at.alpha, x) * data).detach(), (expand(at.sigma, x) * eps).detach()
    assert float((sum(parts) - x).norm()) <= 1e-12 * sum(float(part.norm()) for part in parts)
    assert close(model.velocity(x, t), process.velocity(data, eps, t), 1e-12)
    assert close(model.score(x, t), (expand(at.alpha, x) * data - x) / expand(at.sigma, x) ** 2, 1e-7)


@given(process=processes(), parameterization=parameterizations(), seed=seeds)
def test_a_perfect_network_predicts_perfectly(process: Process, parameterization: Parameterization, seed: int) -> None:
    """The raw output that gives the true data also gives the true noise and TrigFlow's velocity."""
    rng = torch.Generator().manual_seed(seed)
    x0, noise = pair((4,), 3, process.sigma_data, rng)
    t = times(process, 3, rng)
    x = process.perturb(x0, noise, t)
    c = parameterization.preconditioning(process, t)
    raw = (x0 - expand(c.c_skip, x) * x) / expand(c.c_out, x)
    model = denoiser(process, parameterization, (4,), rng)
    data, eps = model.predictions(raw, x, t)
    assert close(data, x0, 1e-10)
    assert close(eps, noise, 1e-9)
    _, t_hat = to_trig(process, x, t)
    v_hat = torch.cos(t_hat)[:, None] * noise - torch.sin(t_hat)[:, None] * x0 / process.sigma_data
    assert close(model.unit_velocity(raw, x, t), v_hat, 1e-9)


@pytest.mark.parametrize("sigma_data", SIGMA_DATA)
@pytest.mark.parametrize("name", PROCESSES)
def test_unit_variance(name: str, sigma_data: float) -> None:
    """Input and target have variance 1 at every time (Eq. 12 and following)."""
    process = scmreg.processes.create(name, sigma_data=sigma_data)
    unit = scmreg.parameterizations.create("unit-variance")
    t = times(process, 40, torch.Generator().manual_seed(0))
    c, at = unit.preconditioning(process, t), process.coefficients(t)
    variance = at.alpha**2 * sigma_data**2 + at.sigma**2
    assert close(c.c_in**2 * variance, torch.ones_like(t), 1e-12)
    target = ((1 - c.c_skip * at.alpha) ** 2 * sigma_data**2 + c.c_skip**2 * at.sigma**2) / c.c_out**2
    assert close(target, torch.ones_like(t), 1e-9)


def test_published_coefficients_of_edm() -> None:
    """Karras et al. 2022, Table 1; the network differs by its sign."""
    process = scmreg.processes.create("edm", sigma_data=0.5)
    t = torch.tensor([0.002, 0.5, 3.0, 80.0], dtype=torch.float64)
    c = scmreg.parameterizations.create("unit-variance", c_noise="edm").preconditioning(process, t)
    assert close(c.c_skip, 0.25 / (t**2 + 0.25), 1e-14)
    assert close(-c.c_out, t * 0.5 / torch.sqrt(t**2 + 0.25), 1e-14)
    assert close(c.c_in, 1 / torch.sqrt(t**2 + 0.25), 1e-14)
    unit = scmreg.parameterizations.create("unit-variance", c_noise="edm")
    assert close(unit.time_input(process, t), torch.log(t) / 4, 1e-14)


@given(seed=seeds)
def test_trigflow_closed_forms(seed: int) -> None:
    """Eqs. 3, 5 and 23: D = cos t x - sin t sigma_data F, and the probability flow is sigma_data F."""
    rng = torch.Generator().manual_seed(seed)
    process = scmreg.processes.create("trigflow", sigma_data=0.3)
    model = denoiser(process, scmreg.parameterizations.create("unit-variance"), (5,), rng)
    x = torch.randn(4, 5, generator=rng, dtype=torch.float64)
    t, s = times(process, 4, rng), times(process, 4, rng)
    f = model.network(x / 0.3, t, Conditions())
    cos, sin = torch.cos(t)[:, None], torch.sin(t)[:, None]
    assert close(model.data(x, t), cos * x - sin * 0.3 * f, 1e-12)
    assert close(model.consistency(x, t), cos * x - sin * 0.3 * f, 1e-12)
    assert close(model.velocity(x, t), 0.3 * f, 1e-12)
    jump = torch.cos(s - t)[:, None] * x + torch.sin(s - t)[:, None] * 0.3 * f  # Eq. 26
    assert close(model.consistency(x, t, s), jump, 1e-12)


@given(process=processes(), seed=seeds)
def test_one_network_is_the_same_model_under_every_process(process: Process, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    unit = scmreg.parameterizations.create("unit-variance")
    trig = scmreg.processes.create("trigflow", sigma_data=process.sigma_data)
    model = denoiser(process, unit, (3,), rng)
    same = Denoiser(model.network, trig, unit)
    x_hat = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    t_hat = 0.05 + 1.4 * torch.rand(4, generator=rng, dtype=torch.float64)
    x, t = from_trig(process, x_hat, t_hat)
    assert close(model.data(x, t), same.data(x_hat, t_hat), 1e-10)
    assert close(model.noise(x, t), same.noise(x_hat, t_hat), 1e-9)


class Unasked(nn.Module):
    """A network that must not be evaluated."""

    def forward(self, *_: object) -> torch.Tensor:
        raise AssertionError("the network was asked")


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("name", PROCESSES)
def test_boundary_condition(name: str, parameterization: str) -> None:
    """At ``t = 0`` the consistency function is ``x`` by definition; near it where the parameterization says so."""
    process = scmreg.processes.create(name)
    chosen = scmreg.parameterizations.create(parameterization)
    x = torch.randn(3, 2, dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.float64)
    assert torch.equal(Denoiser(Unasked(), process, chosen).consistency(x, zero), x)
    model = denoiser(process, chosen, (2,), torch.Generator().manual_seed(0))
    _, nearly = from_trig(process, x, torch.full((3,), 1e-7, dtype=torch.float64))
    at_zero = chosen.preconditioning(process, zero)
    stated = bool(torch.isfinite(at_zero.c_skip + at_zero.c_out).all())
    assert chosen.has_boundary(process) == (stated and close(model.consistency(x, nearly), x, 1e-5))
    assert stated == ("t = 0" not in (chosen.pole(process) or ""))
    mixed = torch.tensor([0.0, float(nearly[0]), 0.0], dtype=torch.float64)
    assert torch.equal(model.consistency(x, mixed)[[0, 2]], x[[0, 2]])


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("name", PROCESSES)
def test_a_pole_at_pure_noise_is_where_float32_loses_the_data(name: str, parameterization: str) -> None:
    process = scmreg.processes.create(name)
    chosen = scmreg.parameterizations.create(parameterization)
    model = denoiser(process, chosen, (4,), torch.Generator().manual_seed(0)).requires_grad_(False)
    t = torch.full((50,), process.t_max, dtype=torch.float64)
    noise = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    x = process.prior(noise.double(), t).float()
    precise = model.data(x.double(), t)
    error = float((model.float().data(x, t.float()) - precise).abs().max()) / process.sigma_data
    assert not 0.01 < error < 1, "either two digits are left, or none"
    assert (error > 1) == ("pure noise" in (chosen.pole(process) or ""))


@pytest.mark.parametrize("c_noise", ["identity", "log-sigma", "edm", "1000t"])
def test_time_inputs(c_noise: str) -> None:
    process = scmreg.processes.create("flow", sigma_data=0.5)
    chosen = scmreg.parameterizations.create("unit-variance", c_noise=c_noise)
    t = torch.tensor([0.25, 0.5], dtype=torch.float64)
    expected = {
        "identity": torch.atan2(t, 0.5 * (1 - t)),
        "log-sigma": torch.log(t / (1 - t)),
        "edm": torch.log(t / (1 - t)) / 4,
        "1000t": 1000 * t,
    }[c_noise]
    assert close(chosen.time_input(process, t), expected, 1e-13)
