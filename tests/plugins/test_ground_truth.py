"""Every objective against data of known law: where its gradient vanishes, and how near training comes to the truth.

At the exact consistency function ``f*`` nothing is left to learn: in the plane and in 64 dimensions, for one Gaussian
and for a mixture. From fresh weights every consistency objective approaches ``f*`` sample by sample; how near is
measured at points of the whole process, a quarter of them at its end, where sampling begins. What `vsd` trains is
judged by its distribution, in test_distillation.py.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from chosen import ChosenTimes
from torch import Tensor, nn

import scmreg
from scmreg import checkpoint
from scmreg.denoiser import Denoiser
from scmreg.law import ExactDenoiser, ExactNetwork, GaussianMixture
from scmreg.objective import Loss, Setup
from scmreg.progress import Progress
from scmreg.recipe import Recipe
from scmreg.schedule import Schedule
from scmreg.tangent import segment_begin
from scmreg.train import build_denoiser, train
from scmreg.types import Batch, Conditions, expand

PROCESS = scmreg.processes.create("trigflow", sigma_data=0.5)
UNIT = scmreg.parameterizations.create("unit-variance")
LAST = math.atan(80 / PROCESS.sigma_data)
"""Time at which sampling begins."""

# At the solution -----------------------------------------------------------------------------------------------------


def law_of(dimension: int, modes: int) -> GaussianMixture:
    """Return a law of about unit variance whose components overlap."""
    rng = torch.Generator().manual_seed(4)
    means = 0.7 * torch.randn(modes, dimension, generator=rng, dtype=torch.float64) / (dimension / 2) ** 0.5
    stds = 0.5 + 0.7 * torch.rand(modes, dimension, generator=rng, dtype=torch.float64)
    return GaussianMixture(1 + torch.arange(modes), means, stds)


LAWS = [pytest.param(law_of(d, k), id=f"{d}-D-{k}-modes") for d in (2, 64) for k in (1, 3)]


class Solved(nn.Module):
    """The network whose consistency function is ``f*`` of a law: it follows the flow by Runge-Kutta steps, so that it
    has derivatives. Its parameter moves the output away from that.
    """

    def __init__(self, law: GaussianMixture, steps: int = 60) -> None:
        super().__init__()
        self.flow, self.steps = ExactNetwork(law), steps
        self.wiggle = nn.Parameter(torch.zeros(law.means.shape[1], dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        y, h = x, -c_noise / self.steps
        step = expand(h, x)
        for number in range(self.steps):
            t = c_noise + number * h
            a = self.flow(y, t, cond)
            b = self.flow(y + step / 2 * a, t + h / 2, cond)
            c = self.flow(y + step / 2 * b, t + h / 2, cond)
            d = self.flow(y + step * c, t + h, cond)
            y = y + step / 6 * (a + 2 * b + 2 * c + d)
        cos, sin = expand(torch.cos(c_noise), x), expand(torch.sin(c_noise), x)
        return (cos * x - y) / sin + self.wiggle * sin


class Shares(Schedule):
    """Earlier times that are a share of the later ones."""

    def __init__(self, share: float) -> None:
        object.__setattr__(self, "share", share)

    def pair(self, process: Any, t: Tensor, step: int, steps: int | None) -> tuple[Tensor, Tensor]:
        return t, self.share * t


def gradient_at(
    law: GaussianMixture, name: str, shift: float = 0.0, share: float | None = None, **options: Any
) -> float:
    """Return the size of the gradient at the exact solution, or near to it."""
    rng = torch.Generator().manual_seed(0)
    x0 = PROCESS.sigma_data * law.draw(32, rng)[0]
    t = 0.3 + torch.rand(32, generator=rng, dtype=torch.float64)
    student = Denoiser(Solved(law), PROCESS, UNIT)
    with torch.no_grad():
        student.network.wiggle += shift
    made = scmreg.objectives.create(name, weighting="uniform", **options)
    object.__setattr__(made, "proposal", ChosenTimes(t))
    if share is not None:
        object.__setattr__(made, "schedule", Shares(share))
    spec = scmreg.DataSpec("truth", tuple(x0.shape[1:]), "points")
    module = made.build(Setup(student, spec, ExactDenoiser(law, PROCESS), steps=100))
    found: Loss = module.loss("main", {"model": student}, Batch(x0), 10**9, torch.Generator().manual_seed(1))
    return float(torch.autograd.grad(found.total, student.network.wiggle)[0].norm())


@pytest.mark.parametrize("law", LAWS)
def test_the_network_of_these_tests_is_the_solution(law: GaussianMixture) -> None:
    rng = torch.Generator().manual_seed(0)
    t = 0.3 + torch.rand(20, generator=rng, dtype=torch.float64)
    x = torch.randn(20, law.means.shape[1], generator=rng, dtype=torch.float64)
    found, exact = Denoiser(Solved(law), PROCESS, UNIT), ExactDenoiser(law, PROCESS)
    torch.testing.assert_close(found.consistency(x, t).detach(), exact.consistency(x, t), rtol=0, atol=1e-6)


@pytest.mark.parametrize("normalization", ["none", "rms"])
@pytest.mark.parametrize("law", LAWS)
def test_the_gradient_of_continuous_distillation_vanishes_at_the_solution(
    law: GaussianMixture, normalization: str
) -> None:
    near = gradient_at(law, "scd", shift=0.1, normalization=normalization)
    assert near > 1e-3
    assert gradient_at(law, "scd", normalization=normalization) < 1e-4 * near


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [("cd", {"solver": "euler"}, 2), ("cd", {"solver": "heun"}, 3), ("dscd", {"normalization": "none"}, 1)],
)
@pytest.mark.parametrize("law", LAWS)
def test_the_gradient_of_discrete_distillation_vanishes_with_its_step(
    law: GaussianMixture, name: str, options: dict[str, Any], order: int
) -> None:
    one, half = (gradient_at(law, name, share=1 - step, **options) for step in (0.04, 0.02))
    assert math.log2(one / half) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("law", LAWS)
def test_the_gradient_of_vsd_vanishes_where_the_law_is_that_of_the_data(law: GaussianMixture) -> None:
    """The generator is the exact one; its law is written otherwise, with every component in two parts."""

    def gradient(shift: float) -> float:
        model = Denoiser(Solved(law), PROCESS, UNIT)
        made = scmreg.objectives.create("vsd", start="scratch")
        spec = scmreg.DataSpec("truth", (law.means.shape[1],), "points")
        module = made.build(Setup(model, spec, ExactDenoiser(law, PROCESS)))
        parts = [torch.cat([part, part.flip(0)]) for part in (law.weights, law.means, law.stds)]
        fake = ExactDenoiser(GaussianMixture(parts[0], parts[1] + shift, parts[2]), PROCESS)
        module.fake_score = fake
        x0 = torch.zeros(16, law.means.shape[1], dtype=torch.float64)
        nets = {"model": model, "fake_score": fake}
        found = module.loss("main", nets, Batch(x0), 0, torch.Generator().manual_seed(0))
        return float(torch.autograd.grad(found.total, model.network.wiggle)[0].norm())

    assert gradient(0.0) < 1e-9
    assert gradient(0.1) > 1e-3


# Trained -------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A training, and how many times nearer to the truth it must come."""

    objective: str | dict[str, Any]
    steps: int
    bound: float
    std: float = 0.3
    """Standard deviation of the components; their centres have 2."""


RAW = {"normalization": "none"}
"""The tangent of training is zero at the solution in the mean alone, and that of its samples that are normalized is
not."""
CASES = {
    "scd": Case("scd", 1000, 10),
    "scd of four segments": Case({"name": "scd", "segments": 4}, 1000, 7),
    "sct": Case({"name": "sct", **RAW}, 3000, 10, std=0.6),
    "dscd": Case("dscd", 1000, 10),
    "dsct": Case({"name": "dsct", **RAW}, 2000, 5),
    "cd": Case("cd", 1000, 3),
    "ct": Case("ct", 1500, 2.5),
    "ict": Case("ict", 1500, 2),
    "ect": Case("ect", 1500, 2),
}


def test_every_consistency_objective_is_trained() -> None:
    named = {case.objective if isinstance(case.objective, str) else case.objective["name"] for case in CASES.values()}
    few = {name for name in scmreg.objectives if scmreg.objectives.create(name).few_step}
    assert named == few - {"vsd", "sum"}


def trained(objective: Any, steps: int, std: float, folder: Path, **trainer: Any) -> tuple[Denoiser, Denoiser, Any]:
    """Train an MLP of 257,000 parameters from fresh weights on a mixture of three Gaussians in the plane.

    Returns:
        The fresh model, the trained one (its averaged weights), and the exact one.
    """
    options = {
        "steps": steps, "batch_size": 512, "learning_rate": 2e-3, "device": "cpu", "previews": 0,
        "checkpoint_every": steps, "log_every": 1000, **trainer,
    }  # fmt: skip
    recipe = Recipe.from_tree(
        {
            "objective": objective,
            "data": {"name": "mixture", "modes": 3, "count": 100_000, "std": std},
            "network": {"name": "mlp", "width": 128},
            "teacher": {"source": "exact"},
            "trainer": options,
        }
    )
    dataset, law = recipe.data.load(), recipe.data.law()
    assert law is not None
    exact = ExactDenoiser(law.standardized(dataset.spec), recipe.process)
    place = train(recipe, dataset, folder, Progress(), teacher=exact)
    fresh, model = (build_denoiser(recipe, dataset.spec.shape, 0) for _ in range(2))
    checkpoint.load_into(model, checkpoint.load(place).tensors("ema"), str(place))
    return fresh.eval(), model.eval(), exact


def points_of(exact: ExactDenoiser, count: int = 1000) -> tuple[Tensor, Tensor]:
    """Return noisy data at TrigFlow times that are uniform, but for a quarter of them at the end."""
    rng = torch.Generator().manual_seed(7)
    x0 = exact.process.sigma_data * exact.law.draw(count, rng)[0]
    t = LAST * torch.rand(count, generator=rng, dtype=torch.float64)
    t[: count // 4] = LAST
    return exact.process.perturb(x0, torch.randn(x0.shape, generator=rng, dtype=torch.float64), t), t


def root_mean_square(error: Tensor) -> float:
    return float(error.detach().square().mean().sqrt())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_training_approaches_the_solution_sample_by_sample(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    fresh, model, exact = trained(case.objective, case.steps, case.std, tmp_path)
    x, t = points_of(exact)
    segments = case.objective.get("segments", 1) if isinstance(case.objective, dict) else 1
    s = segment_begin(t, exact.process.sigma_data, segments)
    truth = exact.consistency(x, t, s)
    before, after = (
        root_mean_square(one.consistency(x.float(), t.float(), s.float()) - truth) for one in (fresh, model)
    )
    print(f"{name}: {before:.4f} -> {after:.4f}, {before / after:.1f} times nearer")
    assert before / after > case.bound


@pytest.mark.slow
def test_diffusion_learns_the_exact_denoiser(tmp_path: Path) -> None:
    fresh, model, exact = trained("diffusion", 2000, 0.6, tmp_path)
    x, t = points_of(exact)
    truth = exact.data(x, t)
    before, after = (root_mean_square(one.data(x.float(), t.float()) - truth) for one in (fresh, model))
    print(f"diffusion: {before:.4f} -> {after:.4f}, {before / after:.1f} times nearer")
    assert before / after > 4
