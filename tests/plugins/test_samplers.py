"""Samplers: evaluation counts, EDM's Heun step for step, orders, grids, noise that belongs to the sample."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

import scmreg
from scmreg.coordinates import to_trig, trig_time
from scmreg.data import DataSpec
from scmreg.denoiser import Denoiser
from scmreg.errors import OptionError
from scmreg.sample import draw
from scmreg.sampler import Noise, OdeSampler
from scmreg.types import Conditions

MEAN, STD = 0.3, 0.2
PROCESSES = sorted(scmreg.processes)
SAMPLERS = sorted(scmreg.samplers)
SOLVERS = [name for name in SAMPLERS if issubclass(scmreg.samplers[name], OdeSampler)]


def solver(name: str, **options: object) -> OdeSampler:
    made = scmreg.samplers.create(name, **options)
    assert isinstance(made, OdeSampler)
    return made


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


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", SAMPLERS)
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


@pytest.mark.parametrize("process", PROCESSES)
def test_heun_is_edms_sampler_step_for_step(process: str) -> None:
    """Karras et al. 2022, Algorithm 1 with gamma = 0, written out in its own coordinates, float64."""
    sampler = solver("heun", steps=7)
    denoiser, edm = model(process), model("edm")
    x = 80 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    i = torch.arange(7, dtype=torch.float64)
    levels = torch.cat([(80 ** (1 / 7) + i / 6 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, torch.zeros(1)])  # Eq. 5
    times = sampler.grid(denoiser.process)
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
            ours = sampler.solve(denoiser, ours, times[i : i + 2])
            alpha = float(denoiser.process.coefficients(times[i + 1 : i + 2]).alpha)
            torch.testing.assert_close(ours / alpha, x, rtol=1e-10, atol=1e-10)


def test_every_solver_declares_an_order() -> None:
    assert [name for name in SAMPLERS if scmreg.samplers[name].order] == SOLVERS
    assert len(SOLVERS) >= 7


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", SOLVERS)
def test_declared_order_is_the_measured_one(name: str, process: str) -> None:
    """Over a stretch of the flow away from its ends, against the exact solution, float64."""
    denoiser, sampler = model(process), solver(name)
    x0 = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = []
    for steps in (32, 64, 128):
        log_levels = torch.linspace(1.0, -2.0, steps + 1, dtype=torch.float64)
        times = denoiser.process.time_of(log_levels.exp())
        x = denoiser.process.prior(x0, times[0].expand(16))
        target = exact(denoiser, x, times[0].expand(16))
        with torch.no_grad():
            x = sampler.solve(denoiser, x, times)
        reached = exact(denoiser, x, times[-1].expand(16))  # carry what is left exactly
        errors.append(float((reached - target).norm()))
    measured = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert measured == pytest.approx([sampler.order] * 2, abs=0.2)
    assert measured[-1] == pytest.approx(sampler.order, abs=0.1)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", SOLVERS)
def test_samples_converge_to_the_ends_of_their_trajectories(name: str, process: str) -> None:
    """From pure noise to data, where the last step is DDIM's and the first may be long."""
    denoiser, noise = model(process), Noise(range(50), (2,))
    errors = []
    for steps in (16, 64):
        sampler = solver(name, steps=steps)
        with torch.no_grad():
            reached = sampler.sample(denoiser, noise, Conditions())
        x, t = sampler.start(denoiser, noise)
        errors.append(float((reached - exact(denoiser, x.double(), t)).square().mean().sqrt()) / STD)
    faster, left = {1: (3, 0.06), 2: (10, 0.01)}[solver(name).order or 0]
    assert errors[1] < errors[0] / faster
    assert errors[1] < left


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "euler"])
def test_the_same_samples_under_every_process(name: str) -> None:
    """But for `euler`, which is another method in each: its steps are straight in the process's own time."""
    sampler = scmreg.samplers.create(name, steps=4)
    outs = []
    for process in PROCESSES:
        with torch.no_grad():
            outs.append(sampler.sample(model(process), Noise(range(20), (3,)), Conditions()))
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=1e-4, atol=1e-4)


def test_euler_is_ddim_where_the_path_is_straight() -> None:
    """Where data and noise have coefficients that are linear in time: under EDM and flow matching, not elsewhere."""
    for process in PROCESSES:
        noise = Noise(range(5), (2,))
        with torch.no_grad():
            euler, ddim = (
                solver(name, steps=4).sample(model(process), noise, Conditions()) for name in ("euler", "ddim")
            )
        assert torch.allclose(euler, ddim, rtol=0, atol=1e-5) == (process in ("edm", "flow"))


def test_noise_belongs_to_the_seed() -> None:
    for index in (0, 1, 2):
        many = Noise(range(10), (3, 2)).draw(index)
        for chosen in ([4], [9, 4, 0], [4, 4]):
            assert torch.equal(Noise(chosen, (3, 2)).draw(index), many[chosen])
    assert len({float(Noise([seed], (1,)).draw(index)) for seed in range(5) for index in range(5)}) == 25


@pytest.mark.parametrize("process", ["trigflow", "edm"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_belongs_to_its_seed_not_to_its_batch(name: str, process: str) -> None:
    """A network of matrix products, float32: the same noise, and the same image but for rounding."""
    torch.manual_seed(0)
    network = scmreg.networks.create("mlp", width=64, depth=2).build((1, 4, 4), 3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    unit = scmreg.parameterizations.create("unit-variance")
    denoiser = Denoiser(network.eval(), scmreg.processes.create(process), unit, classes=3)
    spec = DataSpec("pictures", (1, 4, 4), "image", ("a", "b", "c"), (0.5,), 0.3)
    sampler, labels = scmreg.samplers.create(name, steps=5), torch.arange(23) % 3
    whole = draw(denoiser, spec, sampler, 23, labels=labels)
    for size in (1, 7, 22):
        parts = draw(denoiser, spec, sampler, 23, labels=labels, batch_size=size)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)
    assert float((whole[0] - whole[3]).abs().max()) > 0.05, "another seed is another image"


# Grids ---------------------------------------------------------------------------------------------------------------

RATES = {
    "edm": lambda process, times: process.noise_level(times) ** (1 / 7),
    "time": lambda process, times: times,
    "log-snr": lambda process, times: torch.log(process.snr(times)),
}
"""What has equal steps in each spacing."""


@pytest.mark.parametrize("spacing", RATES)
@pytest.mark.parametrize("process", PROCESSES)
def test_spacings(process: str, spacing: str) -> None:
    chosen = scmreg.processes.create(process)
    for steps in (1, 2, 3, 18, 200):
        sampler = solver("ddim", steps=steps, spacing=spacing)
        times = sampler.grid(chosen)
        assert (times.dtype, times.shape) == (torch.float64, (steps + 1,))
        assert bool((times.diff() < 0).all())
        assert float(times[-1]) == 0
        levels = chosen.noise_level(times)
        assert float(levels[0]) == pytest.approx(80, rel=1e-6)
        inner = times if spacing == "time" else times[:-1]  # the last step, to 0, is no part of the spacing
        if spacing != "time" and steps > 1:
            assert float(levels[-2]) == pytest.approx(0.002, rel=1e-9)
        if len(inner) > 2:
            passed = RATES[spacing](chosen, inner).diff()
            torch.testing.assert_close(passed, passed.mean().expand_as(passed), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_the_exponent_of_edms_spacing(rho: float) -> None:
    times = solver("heun", steps=9, rho=rho, sigma_min=0.01, sigma_max=20).grid(scmreg.processes.create("edm"))
    powers = times[:-1] ** (1 / rho)
    torch.testing.assert_close(powers.diff(), powers.diff().mean().expand(8), rtol=1e-10, atol=0)
    assert [float(times[0]), float(times[-2])] == pytest.approx([20, 0.01], rel=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("process", PROCESSES)
def test_times_of_ones_own(name: str, process: str) -> None:
    own = (1.55, 1.2, 0.7, 0.01)
    sampler = solver(name).with_times(own)
    assert (sampler.steps, sampler.times) == (4, own)
    chosen = scmreg.processes.create(process, sigma_data=0.3)
    grid = sampler.grid(chosen)
    assert trig_time(chosen, grid).tolist() == pytest.approx([*own, 0.0], rel=1e-9, abs=0)
    assert sampler.with_steps(4) is sampler
    assert sampler.with_steps(5).times is None


@pytest.mark.parametrize("spacing", RATES)
def test_a_grid_begins_at_the_end_of_the_process_where_that_is_lower(spacing: str) -> None:
    short = scmreg.processes.create("edm", sigma_max=3.0)
    assert float(solver("heun", spacing=spacing).grid(short)[0]) == 3.0
    slow = scmreg.processes.create("vp", beta_max=4.0)
    times = solver("heun", spacing=spacing).grid(slow)
    assert float(times[0]) == pytest.approx(1, rel=1e-12)
    assert float(times[0]) <= slow.t_max
    base = model("trigflow")
    slowly = Denoiser(base.network, slow, base.parameterization)
    x, t = solver("heun", spacing=spacing).start(slowly, Noise([0], (2,)))
    assert torch.equal(t, times[:1])
    torch.testing.assert_close(x, slow.prior(Noise([0], (2,)).draw(), t))


@pytest.mark.parametrize("process", [name for name in PROCESSES if name != "edm"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_converted_model_is_sampled_from_where_its_own_process_ends(name: str, process: str) -> None:
    """A model that was trained up to a noise level of 3 is not asked beyond it by a process that goes on."""
    short = scmreg.processes.create("edm", sigma_max=3.0)
    base, target = model("edm"), scmreg.processes.create(process)
    trained = Denoiser(base.network, short, base.parameterization)
    asked: list[float] = []

    def watch(network: nn.Module, given: tuple[Tensor, Tensor, Conditions]) -> None:
        asked.append(float(target.sigma_data * torch.tan(given[1].double()).max()))

    sampler, noise = scmreg.samplers.create(name, steps=4), Noise(range(6), (2,))
    with torch.no_grad():
        own = sampler.sample(trained, noise, Conditions())
        base.network.register_forward_pre_hook(watch)
        converted = sampler.sample(scmreg.convert(trained, target), noise, Conditions())
    assert asked[0] == pytest.approx(3, rel=1e-5)
    if name != "euler":
        torch.testing.assert_close(converted, own, rtol=1e-4, atol=1e-4)


def test_coefficients_are_computed_in_float64() -> None:
    """The times that the model is asked at keep the precision that samples in float32 have not."""
    asked: list[Tensor] = []

    class Watching(Denoiser):
        def predict(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> tuple[Tensor, Tensor]:
            asked.append(t)
            assert x.dtype == torch.float32
            return super().predict(x, t, cond)

    base, sampler = model("flow"), solver("heun", steps=3)
    with torch.no_grad():
        sampler.sample(Watching(base.network, base.process, base.parameterization), Noise([0, 1], (2,)), Conditions())
    grid = sampler.grid(base.process)
    assert all(t.dtype == torch.float64 and t.shape == (2,) for t in asked)
    assert [float(t[0]) for t in asked] == [float(grid[i]) for i in (0, 1, 1, 2, 2)]


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


@pytest.mark.parametrize("process", PROCESSES)
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
        ({"steps": 3, "times": (1.0, 1.0)}, "must fall"),
        ({"steps": 2, "times": (1.6,)}, "below pi/2"),
        ({"steps": 2, "times": (-1.0,)}, "greater than 0"),
        ({"steps": 2, "times": (math.nan,)}, "finite"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"sigma_max": -1.0}, "greater than 0"),
    ],
)
def test_bad_steps_and_times(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        scmreg.samplers.create("consistency", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 3, "times": (1.0, 0.5)}, "3 steps need 3 times, not 2"),
        ({"steps": 2, "times": (0.5, 1.0)}, r"times of sampler '.*' must fall .* not \[0.5, 1.0\]"),
        ({"steps": 2, "times": (0.5, 0.5)}, "must fall"),
        ({"steps": 1, "times": (1.6,)}, "below pi/2"),
        ({"steps": 1, "times": (-1.0,)}, r"times\[0\].* greater than 0"),
        ({"steps": 1, "times": (math.nan,)}, r"times\[0\].* finite"),
        ({"steps": 0}, "steps .* greater than or equal to 1"),
        ({"steps": -3}, "steps .* greater than or equal to 1"),
        ({"steps": 2.5}, "steps .* integer"),
        ({"sigma_min": 80.0}, "sigma_min 80 must be below sigma_max 80"),
        ({"sigma_min": 0.0}, "sigma_min .* greater than 0"),
        ({"sigma_max": math.inf}, "sigma_max .* finite"),
        ({"rho": 0.5}, "rho .* greater than or equal to 1"),
        ({"spacing": "cubic"}, "spacing .* 'edm', 'time' or 'log-snr'"),
        ({"guidance": -1.0}, "guidance .* greater than or equal to 0"),
        ({"guidance": math.nan}, "guidance .* finite"),
    ],
)
@pytest.mark.parametrize("name", SOLVERS)
def test_bad_options_of_a_solver(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        scmreg.samplers.create(name, **options)


@pytest.mark.parametrize("process", sorted(scmreg.processes))
@pytest.mark.parametrize("name", sorted(scmreg.samplers))
def test_coefficients_are_computed_for_the_batch_not_for_its_samples(
    name: str, process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, on one time where the samples share it; whatever the size of the batch."""
    cls = scmreg.processes[process]
    coefficients = cls.coefficients
    asked: list[Tensor] = []
    monkeypatch.setattr(cls, "coefficients", lambda self, t: asked.append(t) or coefficients(self, t))
    denoiser = model(process)
    sampler = scmreg.samplers.create(name, steps=3)
    asked.clear()
    with torch.no_grad():
        sampler.sample(denoiser, Noise(range(50), (3,)), Conditions())
    assert asked
    assert {t.dtype for t in asked} == {torch.float64}
    if isinstance(sampler, OdeSampler):
        assert sum(len(t) == 50 for t in asked) == 1  # the noise at the start
