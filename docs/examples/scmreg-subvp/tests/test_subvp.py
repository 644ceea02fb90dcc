"""The process against the equation that it solves, and end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import scmreg
from scmreg.errors import OptionError
from scmreg.law import ExactDenoiser, GaussianMixture
from scmreg.process import Process
from scmreg.progress import Progress
from scmreg.recipe import Recipe
from scmreg.run import execute, open_folder, prepare
from scmreg.sample import load_run
from scmreg.sampler import Noise
from scmreg.types import Conditions
from scmreg_subvp import SubVP

OPTIONS = [{}, {"beta_min": 0.02, "beta_max": 5.0}, {"beta_min": 3.0, "beta_max": 3.0}]


def times(count: int = 200) -> Tensor:
    return torch.linspace(0, 1, count + 1, dtype=torch.float64)[1:]


@pytest.mark.parametrize("options", OPTIONS)
def test_its_moments_are_those_of_the_sde(options: dict[str, float]) -> None:
    """``dx = -beta/2 x dt + sqrt(beta (1 - exp(-2 B))) dw`` (Song et al. 2021, Eq. 12): mean and variance obey
    ``alpha' = -beta/2 alpha`` and ``(sigma²)' = -beta sigma² + beta (1 - exp(-2 B))``.
    """
    made, t = SubVP(**options), times()
    at = made.coefficients(t)
    beta = made.beta_min + t * (made.beta_max - made.beta_min)
    integral = made.beta_min * t + (made.beta_max - made.beta_min) * t**2 / 2
    assert torch.allclose(at.alpha_prime, -beta / 2 * at.alpha, rtol=1e-12)
    change = -beta * at.sigma**2 + beta * (1 - torch.exp(-2 * integral))
    assert torch.allclose(2 * at.sigma * at.sigma_prime, change, rtol=1e-9, atol=1e-12)
    start = made.coefficients(torch.zeros(1, dtype=torch.float64))
    assert (float(start.alpha), float(start.sigma)) == (1.0, 0.0)


@pytest.mark.parametrize("options", OPTIONS)
def test_derivatives_are_those_of_autograd(options: dict[str, float]) -> None:
    made, t = SubVP(**options), times().requires_grad_()
    at = made.coefficients(t)
    for value, derivative in ((at.alpha, at.alpha_prime), (at.sigma, at.sigma_prime)):
        (found,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        assert torch.allclose(found, derivative, rtol=1e-9)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_its_inverse_is_that_of_bisection(options: dict[str, float], dtype: torch.dtype) -> None:
    made, t = SubVP(**options), times().to(dtype)
    level = made.noise_level(t)
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    assert torch.allclose(made.time_of(level), t, rtol=bound, atol=0)
    assert torch.allclose(made.time_of(level), Process.time_of(made, level), rtol=bound, atol=0)
    assert float(made.time_of(torch.zeros(1, dtype=dtype))) == 0
    small = torch.tensor([1e-12], dtype=dtype)  # where the exponential has nothing left to say
    assert torch.allclose(made.time_of(small), small / made.beta_min, rtol=1e-5)


def test_it_has_less_noise_than_vp_and_the_same_data() -> None:
    ours, theirs = SubVP().coefficients(times()), scmreg.processes.create("vp").coefficients(times())
    assert torch.allclose(ours.alpha, theirs.alpha, rtol=1e-12)
    assert torch.allclose(ours.sigma, theirs.sigma**2, rtol=1e-12)
    assert bool((ours.sigma < theirs.sigma).all())


def test_unlike_vps_its_velocity_is_finite_at_the_data() -> None:
    x0, noise, t = torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2)
    made = SubVP()
    expected = -made.beta_min / 2 * x0 + made.beta_min * noise
    assert torch.allclose(made.velocity(x0, noise, t), expected)
    assert not torch.isfinite(scmreg.processes.create("vp").velocity(x0, noise, t)).any()


def test_rates_that_fall_are_refused() -> None:
    with pytest.raises(OptionError, match="below its beta_min"):
        SubVP(beta_min=2.0, beta_max=1.0)


def test_solvers_converge_to_the_exact_flow_with_their_order() -> None:
    """Euler's method, in the time of this process, as it is another method in each."""
    law = GaussianMixture(torch.ones(1), torch.tensor([[0.3, -0.2]]), torch.tensor([[0.8, 1.1]]))
    exact, noise = ExactDenoiser(law, SubVP(sigma_data=0.4)), Noise(range(50), (2,), dtype=torch.float64)

    def error(steps: int) -> Tensor:
        solver = scmreg.samplers.create("euler", steps=steps, spacing="time")
        truth = solver.truth(exact, noise, Conditions())
        assert truth is not None
        return (solver.sample(exact, noise, Conditions()) - truth).square().mean().sqrt()

    assert abs(float(torch.log2(error(200) / error(400))) - 1) < 0.1


def test_a_model_is_the_same_under_it_and_under_trigflow() -> None:
    law = GaussianMixture(torch.ones(2), torch.tensor([[0.9], [-1.1]]), torch.tensor([[0.2], [0.3]]))
    ours = ExactDenoiser(law, SubVP())
    theirs = scmreg.convert(ours, to=scmreg.processes.create("trigflow"))
    noise, sampler = Noise(range(20), (1,), dtype=torch.float64), scmreg.samplers.create("heun", steps=12)
    drawn = [sampler.sample(model, noise, Conditions()) for model in (ours, theirs)]
    assert torch.allclose(*drawn, rtol=1e-9, atol=1e-9)


def test_a_run_from_end_to_end(tmp_path: Path) -> None:
    made = Recipe.from_tree(
        {
            "process": {"name": "sub-vp", "beta_max": 15.0},
            "network": {"name": "mlp", "width": 32, "depth": 1},
            "data": {"name": "mixture", "count": 200},
            "teacher": {"source": "exact"},
            "trainer": {"steps": 3, "batch_size": 16, "threads": 1},
            "evaluation": {"steps": [1], "count": 50, "metrics": ["trajectory-error"]},
        }
    )
    folder = open_folder(made, tmp_path, name="run")
    summary = execute(made, folder, prepare(made), Progress())
    assert summary["process"] == "sub-vp"
    run = load_run(folder)
    assert isinstance(run.recipe.process, SubVP)
    assert run.recipe.process.beta_max == 15
    assert bool(torch.isfinite(run.sample(4)).all())
