"""Objectives, weightings and proposals: losses against their formulas, gradients against the general form."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from chosen import ChosenTimes
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    PARAMETERIZATIONS,
    PROCESSES,
    SIGMA_DATA,
    close,
    denoiser,
    pair,
    processes,
    seeds,
    times,
)
from torch import Tensor
from torch.nn.utils import parameters_to_vector

import scmreg
from scmreg.coordinates import convert_time, from_trig, log_ratio_rate, trig_time
from scmreg.denoiser import Denoiser
from scmreg.objective import Setup
from scmreg.tangent import motion
from scmreg.types import Batch, Conditions

SPEC = scmreg.DataSpec("test", (3,), "points")


def loss_of(objective: str, model: Denoiser, x0: Tensor, t: Tensor, step: int = 10**9, **options: Any) -> Any:
    """Return the loss of a registered objective at given times, and the noise that it drew."""
    made = scmreg.objectives.create(objective, **options)
    object.__setattr__(made, "proposal", ChosenTimes(t))
    teacher = denoiser(model.process, model.parameterization, (3,), torch.Generator().manual_seed(99))
    module = made.build(Setup(model, SPEC, teacher.requires_grad_(False))).double()
    rng = torch.Generator().manual_seed(5)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(5)).to(x0)
    return module.loss("main", {"model": model}, Batch(x0), step, rng), noise, teacher, module


def gradient(loss: Tensor, model: Denoiser) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("name", PROCESSES)
def test_diffusion_loss_is_equation_4_in_any_coordinates(name: str, parameterization: str) -> None:
    rng = torch.Generator().manual_seed(0)
    process = scmreg.processes.create(name, sigma_data=0.3)
    model = denoiser(process, scmreg.parameterizations.create(parameterization), (3,), rng)
    x0, _ = pair((3,), 6, 0.3, rng)
    t = times(process, 6, rng)
    result, noise, _, _ = loss_of("diffusion", model, x0, t)
    x = process.perturb(x0, noise, t)
    t_hat = trig_time(process, t)
    # ||D - x0||² / (sigma_data sin t̂)² is Eq. 4 over sigma_data² under the change of variables (Eq. 22)
    expected = ((model.data(x, t) - x0) / (0.3 * torch.sin(t_hat)[:, None])).square().mean(1)
    assert close(result.per_sample, expected.detach(), 1e-9)
    assert close(result.total.detach(), expected.mean().detach(), 1e-9)
    assert close(gradient(result.total, model), gradient(expected.mean(), model), 1e-9)


@given(process=processes(), seed=seeds)
def test_diffusion_training_is_the_same_under_every_process(process: Any, seed: int) -> None:
    """The same network, data, noise and TrigFlow times: equal loss and gradient."""
    rng = torch.Generator().manual_seed(seed)
    unit = scmreg.parameterizations.create("unit-variance")
    model = denoiser(process, unit, (3,), rng)
    trig = scmreg.processes.create("trigflow", sigma_data=process.sigma_data)
    same = Denoiser(model.network, trig, unit)
    x0, _ = pair((3,), 5, process.sigma_data, rng)
    t = times(process, 5, rng)
    ours = loss_of("diffusion", model, x0, t)[0].total
    theirs = loss_of("diffusion", same, x0, trig_time(process, t))[0].total
    assert close(ours.detach(), theirs.detach(), 1e-9)
    assert close(gradient(ours, model), gradient(theirs, same), 1e-8)


@pytest.mark.parametrize("objective", ["sct", "scd"])
@pytest.mark.parametrize("sigma_data", SIGMA_DATA)
@pytest.mark.parametrize("name", PROCESSES)
def test_consistency_gradient_is_the_general_one(name: str, sigma_data: float, objective: str) -> None:
    """With raw tangent, r = 1 and w_phi = 0, the gradient of Eq. 8 is 2/D times that of Eq. 2 with w = 1/(sd tan t̂)."""
    rng = torch.Generator().manual_seed(1)
    process = scmreg.processes.create(name, sigma_data=sigma_data)
    model = denoiser(process, scmreg.parameterizations.create("unit-variance"), (3,), rng)
    x0, _ = pair((3,), 5, sigma_data, rng)
    t = times(process, 5, rng)
    result, noise, teacher, _ = loss_of(objective, model, x0, t, weighting="uniform", normalization="none")

    x = process.perturb(x0, noise, t)
    data, eps = (x0, noise) if objective == "sct" else teacher.predictions(teacher(x, t), x, t)
    velocity = process.velocity(data, eps, t)
    _, df_dt = torch.func.jvp(model.consistency, (x, t), (velocity, torch.ones_like(t)))
    t_hat = trig_time(process, t)
    df_dt_hat = (log_ratio_rate(process, t) / (torch.sin(t_hat) * torch.cos(t_hat)))[:, None] * df_dt.detach()
    weight = 1 / (sigma_data * torch.tan(t_hat))
    general = (weight * (model.consistency(x, t) * df_dt_hat).sum(1)).mean()
    assert close(gradient(result.total, model), 2 / 3 * gradient(general, model), 1e-8)


@pytest.mark.parametrize("dimension", [2, 64])
@pytest.mark.parametrize("name", ["edm", "flow"])
def test_one_step_of_sct_is_one_step_of_the_general_form_in_other_coordinates(name: str, dimension: int) -> None:
    """Eq. 8 under TrigFlow and w f df/dt under EDM or flow matching move a network alike, at rates 2/D apart."""
    rng = torch.Generator().manual_seed(4)
    unit = scmreg.parameterizations.create("unit-variance")
    trig, other = (scmreg.processes.create(process, sigma_data=0.3) for process in ("trigflow", name))
    model = denoiser(trig, unit, (dimension,), rng)
    same = scmreg.convert(copy.deepcopy(model), other)
    begin = parameters_to_vector(model.parameters()).detach().clone()
    x0, _ = pair((dimension,), 8, 0.3, rng)
    t_hat = times(trig, 8, rng)

    made = scmreg.objectives.create("sct", weighting="uniform", normalization="none", start="scratch")
    object.__setattr__(made, "proposal", ChosenTimes(t_hat))
    module = made.build(Setup(model, scmreg.DataSpec("test", (dimension,), "points")))
    ours = torch.optim.SGD(model.parameters(), 0.01)
    module.loss("main", {"model": model}, Batch(x0), 10**9, torch.Generator().manual_seed(5)).total.backward()
    ours.step()

    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(5)).to(x0)
    t = convert_time(t_hat, trig, other)
    x, motions = other.perturb(x0, noise, t), (other.velocity(x0, noise, t), torch.ones_like(t))
    _, df_dt = torch.func.jvp(same.consistency, (x, t), motions)
    _, slower = torch.func.jvp(lambda t_hat: convert_time(t_hat, trig, other), (t_hat,), (torch.ones_like(t_hat),))
    weight = slower / (0.3 * torch.tan(t_hat))
    general = (weight * (same.consistency(x, t) * df_dt.detach()).sum(1)).mean()
    theirs = torch.optim.SGD(same.parameters(), 0.01 * 2 / dimension)
    general.backward()
    theirs.step()

    moved = [parameters_to_vector(one.parameters()).detach() - begin for one in (model, same)]
    assert float(moved[0].norm()) > 1e-5
    assert close(moved[0], moved[1], 1e-8)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_tangent_vanishes_at_the_exact_consistency_function_of_a_gaussian(name: str) -> None:
    """At f* the distillation tangent is zero (sCM, Sec. 2.2), with the exact teacher of N(mean, std²)."""
    mean, std = 0.2, 0.4
    process = scmreg.processes.create(name, sigma_data=0.5)

    class Exact(torch.nn.Module):
        def __init__(self, slope: bool) -> None:
            super().__init__()
            self.slope = slope

        def forward(self, x: Tensor, t: Tensor, cond: Conditions) -> Tensor:
            t, x = t[:, None], 0.5 * x
            sigma, ve = 0.5 * torch.tan(t), x / torch.cos(t)
            scale = std / torch.sqrt(std**2 + sigma**2)
            data = mean + (scale if self.slope else scale**2) * (ve - mean)
            return (torch.cos(t) * x - data) / (0.5 * torch.sin(t))

    unit = scmreg.parameterizations.create("unit-variance")
    student, teacher = Denoiser(Exact(True), process, unit), Denoiser(Exact(False), process, unit)
    rng = torch.Generator().manual_seed(0)
    x0, _ = pair((3,), 20, 0.4, rng)
    t = times(process, 20, rng)
    made = scmreg.objectives.create("scd", weighting="uniform", normalization="none")
    object.__setattr__(made, "proposal", ChosenTimes(t))
    module = made.build(Setup(student, SPEC, teacher))
    result = module.loss("main", {"model": student}, Batch(x0), 10**9, torch.Generator().manual_seed(0))
    assert float(result.logs["tangent_norm"].max()) < 1e-10
    wrong = made.build(Setup(teacher, SPEC, teacher)).loss(
        "main", {"model": teacher}, Batch(x0), 10**9, torch.Generator().manual_seed(0)
    )
    assert float(wrong.logs["tangent_norm"].max()) > 1e-2


@pytest.mark.parametrize("objective", ["sct", "scd"])
def test_warm_up_grows_linearly(objective: str) -> None:
    rng = torch.Generator().manual_seed(2)
    process = scmreg.processes.create("edm")
    model = denoiser(process, scmreg.parameterizations.create("unit-variance"), (3,), rng)
    x0, _ = pair((3,), 4, 0.5, rng)
    t = times(process, 4, rng)
    options = {"weighting": "uniform", "normalization": "none", "warmup": 100}
    losses = [(loss_of(objective, model, x0, t, step, **options)[0].per_sample).sqrt() for step in (0, 100, 1000)]
    assert close(losses[1], losses[2], 1e-14)
    assert not close(losses[0], losses[1], 1e-3)
    unwarmed = loss_of(objective, model, x0, t, 0, **(options | {"warmup": 0}))[0].per_sample
    assert close(unwarmed, losses[1].square(), 1e-14)


def test_withheld_labels() -> None:
    seen = []

    class Listening(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Conditions) -> Tensor:
            seen.append(cond.label)
            return x

    process = scmreg.processes.create("trigflow")
    model = Denoiser(Listening(), process, scmreg.parameterizations.create("unit-variance"))
    spec = scmreg.DataSpec("test", (3,), "points", classes=("a", "b"))
    batch = Batch(torch.randn(2000, 3), Conditions(label=torch.arange(2000) % 2))
    for dropout in (0.0, 0.25):
        module = scmreg.objectives.create("diffusion", label_dropout=dropout).build(Setup(model, spec))
        module.loss("main", {"model": model}, batch, 0, torch.Generator().manual_seed(0))
    assert torch.equal(seen[0], batch.cond.label)
    withheld = seen[1] == 2
    assert 0.2 < float(withheld.float().mean()) < 0.3
    assert torch.equal(seen[1][~withheld], batch.cond.label[~withheld])


@pytest.mark.parametrize("name", sorted(scmreg.weightings))
def test_weightings_are_positive_and_leave_the_network_alone(name: str) -> None:
    process = scmreg.processes.create("trigflow")
    t, delta = torch.linspace(0.01, 1.56, 30), torch.randn(30, 3)
    for space in ("unit", "data"):
        module = scmreg.weightings.create(name).build_in(process, space)
        log_weight = module.log_weight_of_pair(t, t / 2, delta) if module.needs_pair else module.log_weight(t)
        assert bool(torch.isfinite(log_weight).all())
        loss = torch.rand(30, requires_grad=True)
        counted = module(loss, t, r=t / 2, delta=delta)
        assert counted.shape == (30,)
        (gradient,) = torch.autograd.grad(counted.sum(), loss)
        torch.testing.assert_close(gradient, log_weight.exp().detach())


def test_snr_weighting_gives_the_noise_prediction_loss() -> None:
    process = scmreg.processes.create("flow")
    rng = torch.Generator().manual_seed(0)
    model = denoiser(process, scmreg.parameterizations.create("unit-variance"), (3,), rng)
    x0, _ = pair((3,), 6, 0.5, rng)
    t = times(process, 6, rng)
    result, noise, _, _ = loss_of("diffusion", model, x0, t, weighting="snr")
    x = process.perturb(x0, noise, t)
    expected = (model.noise(x, t) - noise).square().mean()
    assert close(result.total.detach(), expected.detach(), 1e-9)


def test_adaptive_weighting_finds_its_fixed_point() -> None:
    """e^{w} E[l] = 1 at every time, after minimising over w alone (App. D)."""
    process = scmreg.processes.create("trigflow")
    torch.manual_seed(0)
    module = scmreg.weightings.create("adaptive").build(process)
    t = torch.linspace(0.05, 1.5, 64)
    loss = 0.2 + torch.sin(2 * t) ** 2
    assert not module.log_weight(t).any()
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    for _ in range(1500):
        optimizer.zero_grad()
        module(loss, t).mean().backward()
        optimizer.step()
    product = (module.log_weight(t).exp() * loss).detach()
    assert float((product - 1).abs().max()) < 0.05


def test_the_adaptive_weighting_is_that_of_edm2() -> None:
    """``e^w l - w`` is EDM2's ``l/e^u + u`` with ``u = -w``: loss and both gradients (Karras et al. 2024, Eq. 21)."""
    process = scmreg.processes.create("edm")
    module = scmreg.weightings.create("adaptive").build(process)
    with torch.no_grad():
        module.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    t, loss = torch.linspace(0.1, 5, 16), torch.linspace(0.2, 3, 16).requires_grad_()
    u = -module.log_weight(t)
    edm2 = loss / u.exp() + u
    ours = module(loss, t)
    torch.testing.assert_close(ours, edm2)
    wanted = (loss, module.head.weight, module.head.bias)
    for one, other in zip(*(torch.autograd.grad(form.sum(), wanted) for form in (ours, edm2)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", sorted(scmreg.proposals))
def test_proposals_draw_what_they_state(name: str, process: str) -> None:
    """The stated density is the derivative of the inverse distribution function, and integrates to the samples."""
    chosen, proposal = scmreg.processes.create(process), scmreg.proposals.create(name)
    uniform = torch.linspace(0.1, 0.9, 33, dtype=torch.float64)
    t, slope = torch.func.jvp(lambda u: proposal.transform(chosen, u), (uniform,), (torch.ones_like(uniform),))
    assert bool((t.diff() > 0).all())
    torch.testing.assert_close(-torch.log(slope), proposal.log_density(chosen, t), rtol=1e-9, atol=1e-9)
    drawn = proposal.sample(chosen, 20_000, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float32
    assert float(drawn.min()) > 0
    assert float(drawn.max()) <= chosen.t_max
    below = float(
        (drawn <= float(proposal.transform(chosen, torch.tensor([0.3], dtype=torch.float64)))).double().mean()
    )
    assert below == pytest.approx(0.3, abs=0.015)


@given(p_mean=st.floats(-2, 1), p_std=st.floats(0.5, 2))
def test_lognormal_is_the_same_law_under_every_process(p_mean: float, p_std: float) -> None:
    proposal = scmreg.proposals.create("lognormal", p_mean=p_mean, p_std=p_std)
    uniform = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    trig = scmreg.processes.create("trigflow")
    reference = proposal.transform(trig, uniform)
    assert close(torch.log(0.5 * torch.tan(reference)), p_mean + p_std * torch.special.ndtri(uniform), 1e-9)
    for name in PROCESSES:
        process = scmreg.processes.create(name)
        assert close(trig_time(process, proposal.transform(process, uniform)), reference, 1e-9)


def test_motion_of_the_true_pair_is_trigflow_velocity() -> None:
    process = scmreg.processes.create("flow")
    rng = torch.Generator().manual_seed(0)
    model = denoiser(process, scmreg.parameterizations.create("flow"), (3,), rng)
    x0, noise = pair((3,), 4, 0.5, rng)
    t_hat = torch.full((4,), 0.6, dtype=torch.float64)
    _, t = from_trig(process, x0, t_hat)
    at = motion(model, process.perturb(x0, noise, t), t, x0, noise)
    assert close(at.velocity_hat, math.cos(0.6) * 0.5 * noise - math.sin(0.6) * x0, 1e-12)
