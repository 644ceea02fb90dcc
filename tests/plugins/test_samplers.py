"""Samplers: evaluation counts, EDM's Heun step for step, order of convergence, noise that belongs to the sample."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import scmreg
from scmreg.coordinates import to_trig, trig_time
from scmreg.denoiser import Denoiser
from scmreg.errors import OptionError
from scmreg.sampler import Noise, OdeSampler
from scmreg.types import Conditions

MEAN, STD = 0.3, 0.2


class ExactGaussian(nn.Module):
    """The unit-variance network of data N(MEAN, STD²) in each dimension, for TrigFlow time input; counts its calls."""

    def __init__(self, sigma_data: float) -> None:
        super().__init__()
        self.sigma_data, self.calls = sigma_data, 0
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        self.calls += 1
        t = t.reshape(-1, *[1] * (x.ndim - 1))
        x = x * self.sigma_data
        sigma, ve = self.sigma_data * torch.tan(t), x / torch.cos(t)
        data = MEAN + STD**2 / (STD**2 + sigma**2) * (ve - MEAN)
        return (torch.cos(t) * x - data) / (torch.sin(t) * self.sigma_data)


def model(process: str, sigma_data: float = 0.5) -> Denoiser:
    chosen = scmreg.processes.create(process, sigma_data=sigma_data)
    return Denoiser(ExactGaussian(sigma_data), chosen, scmreg.parameterizations.create("unit-variance"))


def exact(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    """The end of the probability flow from x at t: f* = mean + std/sqrt(std² + sigma²) (x - mean) in VE coordinates."""
    at = denoiser.process.coefficients(t)
    sigma, ve = (at.sigma / at.alpha)[:, None], x / at.alpha[:, None]
    return MEAN + STD / torch.sqrt(STD**2 + sigma**2) * (ve - MEAN)


@pytest.mark.parametrize("process", sorted(scmreg.processes))
@pytest.mark.parametrize("name", sorted(scmreg.samplers))
def test_evaluations_are_counted_right(name: str, process: str) -> None:
    for steps in (1, 2, 5):
        sampler = scmreg.samplers.create(name, steps=steps)
        denoiser = model(process)
        with torch.no_grad():
            out = sampler.sample(denoiser, Noise(range(3), (2,)), Conditions())
        assert out.shape == (3, 2)
        assert bool(torch.isfinite(out).all())
        assert denoiser.network.calls == sampler.evaluations


def test_eighteen_heun_steps_are_35_evaluations() -> None:
    assert scmreg.samplers.create("heun").evaluations == 35


@pytest.mark.parametrize("process", sorted(scmreg.processes))
def test_heun_is_edms_sampler_step_for_step(process: str) -> None:
    """Karras et al. 2022, Algorithm 1 with gamma = 0, written out in its own coordinates, float64."""
    sampler = scmreg.samplers.create("heun", steps=7)
    assert isinstance(sampler, OdeSampler)
    denoiser, edm = model(process), model("edm")
    x = 80 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = sampler.levels()
    assert levels[0] == pytest.approx(80)
    assert levels[-2] == pytest.approx(0.002)
    times = sampler.times(denoiser.process)
    ours = x * float(denoiser.process.coefficients(times[:1]).alpha)
    with torch.no_grad():
        for i, (sigma, following) in enumerate(itertools.pairwise(levels)):
            sigmas, followings = sigma.expand(4), following.expand(4)
            slope = (x - edm.data(x, sigmas)) / sigma
            euler = x + (following - sigma) * slope
            if following > 0:
                second = (euler - edm.data(euler, followings)) / following
                euler = x + (following - sigma) * (slope + second) / 2
            x = euler
            ours = sampler.step(denoiser, ours, times[i].expand(4), times[i + 1].expand(4), Conditions())
            alpha = float(denoiser.process.coefficients(times[i + 1 : i + 2]).alpha)
            torch.testing.assert_close(ours / alpha, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("process", sorted(scmreg.processes))
@pytest.mark.parametrize("name", [name for name in scmreg.samplers if scmreg.samplers[name].order])
def test_declared_order_is_the_measured_one(name: str, process: str) -> None:
    """Over a stretch of the flow away from its ends, against the exact solution, float64."""
    order = scmreg.samplers[name].order
    denoiser = model(process)
    sampler = scmreg.samplers.create(name)
    assert isinstance(sampler, OdeSampler)
    x0 = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = []
    for steps in (16, 32, 64):
        log_levels = torch.linspace(1.0, -2.0, steps + 1, dtype=torch.float64)
        times = denoiser.process.time_of(log_levels.exp())
        x = denoiser.process.prior(x0, times[0].expand(16))
        target = exact(denoiser, x, times[0].expand(16))
        with torch.no_grad():
            for t, s in itertools.pairwise(times):
                x = sampler.step(denoiser, x, t.expand(16), s.expand(16), Conditions())
        reached = exact(denoiser, x, times[-1].expand(16))  # carry what is left exactly
        errors.append(float((reached - target).norm()))
    for coarse, fine in itertools.pairwise(errors):
        measured = torch.log2(torch.tensor(coarse / fine))
        assert float(measured) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("name", sorted(scmreg.samplers))
def test_the_same_samples_under_every_process(name: str) -> None:
    sampler = scmreg.samplers.create(name, steps=4)
    outs = []
    for process in sorted(scmreg.processes):
        with torch.no_grad():
            outs.append(sampler.sample(model(process), Noise(range(20), (3,)), Conditions()))
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(scmreg.samplers))
def test_a_sample_belongs_to_its_seed_not_to_its_batch(name: str) -> None:
    sampler = scmreg.samplers.create(name, steps=3)
    denoiser = model("trigflow")
    assert torch.equal(Noise(range(10), (3,)).draw(1)[4], Noise([4], (3,)).draw(1)[0])
    assert not torch.equal(Noise([4], (3,)).draw(0), Noise([4], (3,)).draw(1))
    with torch.no_grad():
        whole = sampler.sample(denoiser, Noise(range(10), (3,)), Conditions())
        alone = sampler.sample(denoiser, Noise([4], (3,)), Conditions())
    torch.testing.assert_close(whole[4:5], alone, rtol=1e-4, atol=1e-4)


def test_consistency_with_the_exact_function_gives_the_data_law() -> None:
    class ExactFunction(Denoiser):
        def consistency(self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditions | None = None) -> Tensor:
            return exact(self, x, t)

    base = model("edm")
    denoiser = ExactFunction(base.network, base.process, base.parameterization)
    for steps in (1, 2, 4):
        x = scmreg.samplers.create("consistency", steps=steps).sample(denoiser, Noise(range(4000), (1,)), Conditions())
        assert float(x.mean()) == pytest.approx(MEAN, abs=0.012)
        assert float(x.std()) == pytest.approx(STD, rel=0.04)


@pytest.mark.parametrize("process", sorted(scmreg.processes))
def test_times_of_consistency_are_trigflow_times(process: str) -> None:
    asked: list[Tensor] = []

    class Watching(Denoiser):
        def consistency(self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditions | None = None) -> Tensor:
            asked.append(trig_time(self.process, t.double()))
            return to_trig(self.process, x, t)[0]

    base = model(process)
    sampler = scmreg.samplers.create("consistency", steps=3, times=(1.1, 0.6))
    sampler.sample(Watching(base.network, base.process, base.parameterization), Noise([0], (2,)), Conditions())
    found = [float(t) for t in asked]
    assert found == pytest.approx([torch.atan(torch.tensor(160.0)).item(), 1.1, 0.6], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 3, "times": (1.0,)}, "3 steps need 2 intermediate times"),
        ({"steps": 3, "times": (0.5, 1.0)}, "must fall"),
        ({"steps": 2, "times": (1.6,)}, "below pi/2"),
        ({"steps": 2, "times": (-1.0,)}, "greater than 0"),
        ({"steps": 0}, "greater than or equal to 1"),
    ],
)
def test_bad_steps_and_times(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        scmreg.samplers.create("consistency", **options)
