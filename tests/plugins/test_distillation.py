"""Variational score distillation: its gradient against closed forms, its two networks, and what it trains."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from chosen import ChosenTimes
from strategies import PROCESSES, SIGMA_DATA, close, pair, times
from torch import Tensor, nn

import scmreg
from scmreg.coordinates import trig_time
from scmreg.denoiser import Denoiser
from scmreg.errors import CompositionError
from scmreg.law import ExactDenoiser, GaussianMixture
from scmreg.objective import ObjectiveModule, Setup
from scmreg.process import Process
from scmreg.recipe import Recipe
from scmreg.train import _Loop, build_denoiser
from scmreg.types import Batch, Conditions, expand

D = 3
SPEC = scmreg.DataSpec("test", (D,), "points")
MEAN = torch.tensor([0.4, -0.2, 0.1], dtype=torch.float64)
STD = torch.tensor([0.9, 1.2, 0.5], dtype=torch.float64)
"""The law of the data, in units of their standard deviation."""


class Affine(nn.Module):
    """A network that scales every element and shifts it, so that the generator's law is a Gaussian."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(scale.clone()), nn.Parameter(shift.clone())

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        return self.scale * x + self.shift


def gaussian(mean: Tensor, std: Tensor, process: Process) -> ExactDenoiser:
    """Return the exact denoiser of a Gaussian; mean and standard deviation in units of the data's."""
    return ExactDenoiser(GaussianMixture(torch.ones(1), mean[None], std[None]), process).double()


def generator(process: Process, scale: Tensor, shift: Tensor) -> Denoiser:
    unit = scmreg.parameterizations.create("unit-variance")
    return Denoiser(Affine(scale, shift), process, unit)


def start_of(process: Process, level: float = 80.0) -> Tensor:
    """Return the time at which the generator starts, float64, of shape (1,)."""
    ratio = torch.tensor([min(level, process.highest_level)], dtype=torch.float64)
    return process.time_of(ratio).clamp(max=process.t_max)


def law_of(model: Denoiser) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the samples of an affine generator, with gradient."""
    process = model.process
    t = start_of(process)
    c = model.parameterization.preconditioning(process, t)
    scale = (c.c_skip + c.c_out * c.c_in * model.network.scale) * process.std(t)
    return c.c_out * model.network.shift, scale.abs()


def built(model: Denoiser, teacher: Denoiser, t: Tensor, **options: Any) -> Any:
    """Return the module of the objective, whose fake score knows the law of the generator as it is."""
    made = scmreg.objectives.create("vsd", start="scratch", **options)
    object.__setattr__(made, "proposal", ChosenTimes(t))
    module = made.build(Setup(model, SPEC, teacher))
    mean, std = (x.detach() / model.process.sigma_data for x in law_of(model))
    module.fake_score = gaussian(mean, std, model.process)
    return module


def loss_of(module: Any, x0: Tensor, cond: Conditions | None = None) -> Any:
    nets = {"model": module.setup.denoiser, "fake_score": module.fake_score}
    return module.loss("main", nets, Batch(x0, cond or Conditions()), 0, torch.Generator().manual_seed(5))


def gradient(loss: Tensor, model: Denoiser) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


SCALE = torch.tensor([0.7, -1.1, 0.3], dtype=torch.float64)
SHIFT = torch.tensor([-0.3, 0.2, 0.5], dtype=torch.float64)


@pytest.mark.parametrize("sigma_data", SIGMA_DATA)
@pytest.mark.parametrize("name", PROCESSES)
def test_the_gradient_is_that_of_the_score_difference(name: str, sigma_data: float) -> None:
    """2/D E[sigma_data tan t̂ (grad log q_t - grad log p_t) dg/dtheta] (App. C.1), scores in closed form."""
    rng = torch.Generator().manual_seed(0)
    process = scmreg.processes.create(name, sigma_data=sigma_data)
    model, teacher = generator(process, SCALE, SHIFT), gaussian(MEAN, STD, process)
    x0, _ = pair((D,), 6, sigma_data, rng)
    t = times(process, 6, rng)
    result = loss_of(built(model, teacher, t), x0)

    draws = torch.Generator().manual_seed(5)
    latent, noise = (torch.randn(x0.shape, generator=draws).to(x0) for _ in range(2))
    begin = start_of(process).expand(6)
    made = model.data(process.prior(latent, begin), begin)
    x = process.perturb(made.detach(), noise, t)
    at = process.coefficients(t)
    alpha, sigma = at.alpha[:, None], at.sigma[:, None]

    def score(mean: Tensor, std: Tensor) -> Tensor:
        return -(x - alpha * mean) / ((alpha * std) ** 2 + sigma**2)

    mean, std = (part.detach() for part in law_of(model))
    between = score(mean, std) - score(sigma_data * MEAN, sigma_data * STD)
    in_trig = expand(process.std(t) / sigma_data, x) * between  # the score of x̂, which is x times sigma_data / std
    y = sigma_data * torch.tan(trig_time(process, t))[:, None] * in_trig
    assert close(result.logs["score_difference"], y.norm(dim=1), 1e-9)
    assert close(result.per_sample, y.square().mean(1), 1e-9)
    assert close(result.t_hat, trig_time(process, t), 1e-14)
    expected = 2 / D * (y * made).sum(1).mean()
    right = gradient(expected, model)
    assert float(right.norm()) > 1e-2
    assert close(gradient(result.total, model), right, 1e-8)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_gradient_is_that_of_the_divergence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In expectation it is that of KL(q_t || p_t), which is known for Gaussians, up to the weight of the time."""
    process = scmreg.processes.create(name, sigma_data=0.3)
    model, teacher = generator(process, SCALE, SHIFT), gaussian(MEAN, STD, process)
    # The gradient is quadratic in latent and noise, so these four points have the mean of all of them.
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    for angle in (0.1, 0.6, 1.1, 1.5):
        t = process.time_of(torch.full((4,), 0.3 * math.tan(angle), dtype=torch.float64))
        module = built(model, teacher, t)
        drawn = [column[:, None].expand(4, D) for column in signs.T]
        with monkeypatch.context() as patched:
            patched.setattr(torch, "randn", lambda *_, drawn=drawn, **__: drawn.pop(0))
            result = loss_of(module, torch.zeros(4, D, dtype=torch.float64))
        at = process.coefficients(t[:1])
        mean, std = law_of(model)
        ours, theirs = ((at.alpha * s) ** 2 + at.sigma**2 for s in (std, 0.3 * STD))
        apart = (at.alpha * (mean - 0.3 * MEAN)) ** 2
        divergence = 0.5 * ((ours + apart) / theirs - 1 - torch.log(ours / theirs)).sum()
        weight = 0.3 * math.tan(angle) * process.std(t[:1]) / 0.3 / at.alpha
        assert close(gradient(result.total, model), 2 / D * gradient((weight * divergence).sum(), model), 1e-8)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_gradient_vanishes_where_the_generator_has_the_law_of_the_data(name: str) -> None:
    process = scmreg.processes.create(name)
    t = times(process, 20, torch.Generator().manual_seed(3))
    x0 = torch.zeros(20, D, dtype=torch.float64)
    begin = start_of(process)
    c = scmreg.parameterizations.create("unit-variance").preconditioning(process, begin)
    scale = (0.5 * STD / process.std(begin) - c.c_skip) / (c.c_out * c.c_in)
    model = generator(process, scale, 0.5 * MEAN / c.c_out)
    teacher = gaussian(MEAN, STD, process)
    for part, other in zip(law_of(model), (0.5 * MEAN, 0.5 * STD), strict=True):
        assert close(part, other, 1e-12)
    right = loss_of(built(model, teacher, t), x0)
    assert float(right.logs["score_difference"].max()) < 1e-9
    assert float(gradient(right.total, model).norm()) < 1e-9
    with torch.no_grad():
        model.network.shift += 0.1
    wrong = loss_of(built(model, teacher, t), x0)
    assert float(gradient(wrong.total, model).norm()) > 1e-3


def test_adaptive_weighting_finds_its_fixed_point() -> None:
    """e^w E||g - sg(g) + F_teacher - F_fake||²/D = 1 at every time (App. D)."""
    process = scmreg.processes.create("trigflow")
    model, teacher = generator(process, SCALE, SHIFT), gaussian(MEAN, STD, process)
    angles = torch.linspace(0.1, 1.45, 12, dtype=torch.float64)
    t = angles.repeat_interleave(200)
    module = built(model, teacher, t, weighting="adaptive")
    x0 = torch.zeros(len(t), D, dtype=torch.float64)
    optimizer = torch.optim.Adam(module.weighting.parameters(), 0.02)
    for _ in range(1500):
        optimizer.zero_grad()
        loss_of(module, x0).total.backward()
        optimizer.step()
    found = module.weighting.log_weight(angles).exp().detach() * loss_of(module, x0).per_sample.reshape(12, 200).mean(1)
    assert float((found - 1).abs().max()) < 0.05


# Two networks --------------------------------------------------------------------------------------------------------

NETWORK = {"name": "mlp", "width": 16, "depth": 1, "dropout": 0.3}


def recipe(objective: Any = "vsd", **trainer: Any) -> Recipe:
    quick = {
        "steps": 6,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "log_every": 1,
        "device": "cpu",
        "schedule": "constant",
    }
    data = {"name": "gaussians", "count": 60, "labelled": True}
    return Recipe.from_tree({"objective": objective, "network": NETWORK, "data": data, "trainer": {**quick, **trainer}})


def loop_of(made: Recipe, folder: Path, teacher: Denoiser | None = None) -> tuple[_Loop, tuple[Tensor, Tensor]]:
    dataset = made.data.load()
    fresh = build_denoiser(made, dataset.spec.shape, len(dataset.spec.classes), seed=1)
    with torch.no_grad():
        fresh.network.leave.weight.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    loop = _Loop(made, dataset, folder, teacher or fresh, None)
    return loop, (dataset.train.__getitems__(range(8)), dataset.train.labels[:8])


def state(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_fake_score_starts_as_the_teacher_and_is_another_network(tmp_path: Path) -> None:
    loop, batch = loop_of(recipe(), tmp_path)
    teacher = loop.objective.setup.teacher
    assert teacher is not None
    before = state(teacher)
    assert same(state(loop.objective.fake_score), before)
    assert same(state(loop.denoiser), before)
    first = loop.take_step(batch)
    # Equal networks: dropout of the fake score, which is in training mode, makes no difference.
    assert first["main_score_difference"] == 0
    assert loop.objective.fake_score.training
    loop.step = 1
    assert loop.take_step(batch)["main_score_difference"] > 0
    assert same(state(teacher), before)
    assert not same(state(loop.objective.fake_score), before)
    assert not same(state(loop.denoiser), before)


@pytest.mark.parametrize("objective", [{"name": "vsd", "start": "scratch"}, "vsd"], ids=["scratch", "exact"])
def test_without_weights_to_copy_the_fake_score_starts_as_the_student(tmp_path: Path, objective: Any) -> None:
    made = recipe(objective)
    teacher = None
    if objective == "vsd":
        made = Recipe.from_tree({**made.to_tree(), "teacher": {"source": "exact"}})
        law = made.data.law()
        assert law is not None
        teacher = ExactDenoiser(law.standardized(made.data.load().spec), made.process)
    loop, batch = loop_of(made, tmp_path, teacher)
    assert same(state(loop.objective.fake_score), state(loop.denoiser))
    assert list(loop.objective.fake_score.parameters())
    figures = loop.take_step(batch)
    assert math.isfinite(figures["main_loss"])
    assert figures["fake_gradient_norm"] > 0


def test_every_phase_moves_its_own_network(tmp_path: Path) -> None:
    loop, _ = loop_of(recipe({"name": "vsd", "weighting": "adaptive", "fake_weighting": "adaptive"}), tmp_path)
    module = loop.objective
    with torch.no_grad():
        for parameter in module.fake_score.parameters():
            parameter.add_(0.05)
    x0 = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    own = {
        "main": [*loop.denoiser.parameters(), *module.weighting.parameters()],
        "fake": [*module.fake_score.parameters(), *module.fake_objective.weighting.parameters()],
    }
    for phase, other in (("main", "fake"), ("fake", "main")):
        assert {id(p) for p in loop.parameters[phase]} == {id(p) for p in own[phase]}
        loop.denoiser.zero_grad()
        module.zero_grad()
        batch = Batch(x0, Conditions(label=torch.arange(8)))
        module.loss(phase, loop.nets, batch, 0, torch.Generator().manual_seed(0)).total.backward()
        assert all(p.grad is None for p in own[other])
        assert any(p.grad is not None and p.grad.any() for p in own[phase])


def test_the_generator_waits_for_its_turn(tmp_path: Path) -> None:
    loop, batch = loop_of(recipe({"name": "vsd", "generator_every": 3, "fake_rate": 0.5}), tmp_path)
    for step in range(6):
        before, fake = state(loop.denoiser), state(loop.objective.fake_score)
        figures = loop.take_step(batch)
        loop.step += 1
        due = (step + 1) % 3 == 0
        assert same(before, state(loop.denoiser)) is not due
        assert not same(fake, state(loop.objective.fake_score))
        assert ("main_loss" in figures) is due
        assert ("loss" in figures) is due
        assert figures["fake_learning_rate"] == 0.005
        assert figures.get("main_learning_rate", 0.01) == 0.01


class Listening(nn.Module):
    """A network that remembers what it was told."""

    def __init__(self, heard: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        super().__init__()
        self.heard, self.scale = heard, nn.Parameter(torch.ones(()))

    def __deepcopy__(self, memo: dict[int, Any]) -> Listening:
        return Listening(self.heard)

    def forward(self, x: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        assert cond.label is not None
        self.heard.append((x.detach(), t, cond.label))
        return self.scale * x


@pytest.mark.parametrize("name", PROCESSES)
def test_labels_and_times_that_the_networks_are_told(name: str) -> None:
    """The generator starts where its sampler does; all networks are told the labels of the batch."""
    heard: list[tuple[Tensor, Tensor, Tensor]] = []
    process = scmreg.processes.create(name)
    unit = scmreg.parameterizations.create("unit-variance")
    model, teacher = Denoiser(Listening(heard), process, unit, 2), Denoiser(Listening(heard), process, unit, 2)
    spec = scmreg.DataSpec("test", (D,), "points", classes=("a", "b"))
    module = scmreg.objectives.create("vsd", sigma_max=40.0).build(Setup(model, spec, teacher))
    label = torch.tensor([0, 1, 1, 0, 1])
    nets = {"model": model, "fake_score": module.fake_score}
    for phase, evaluations in (("main", 3), ("fake", 2)):
        heard.clear()
        module.loss(phase, nets, Batch(torch.zeros(5, D), Conditions(label=label)), 0, torch.Generator())
        assert len(heard) == evaluations
        assert all(torch.equal(told, label) for _, _, told in heard)
        end = math.atan(min(40.0, process.highest_level) / process.sigma_data)
        torch.testing.assert_close(heard[0][1], torch.full((5,), end), rtol=1e-6, atol=0)
        assert float(heard[1][1].max()) < end + 0.02
        assert len(set(heard[1][1].tolist())) == 5
        if phase == "main":
            assert torch.equal(heard[1][0], heard[2][0]), "both scores are asked at one point"


def test_a_module_needs_a_teacher() -> None:
    process = scmreg.processes.create("trigflow")
    with pytest.raises(CompositionError, match="'vsd' needs a teacher"):
        scmreg.objectives.create("vsd").build(Setup(generator(process, SCALE, SHIFT), SPEC))


def test_a_sampler_that_starts_elsewhere_is_refused() -> None:
    def made(**sections: Any) -> Recipe:
        return Recipe.from_tree({"objective": "vsd", **sections})

    made(sampler={"name": "consistency", "sigma_max": 80}).check()
    with pytest.raises(CompositionError, match=r"starts at 40: set objective\.sigma_max and sampler\.sigma_max"):
        made(sampler={"name": "consistency", "sigma_max": 40}).check()
    both = {"objective": {"name": "vsd", "sigma_max": 40}, "sampler": {"name": "consistency", "sigma_max": 40}}
    made(**both).check()
    made(process={"name": "edm", "sigma_max": 30}, sampler={"name": "consistency", "sigma_max": 40}).check()
    # What scd trains everywhere may be sampled from anywhere.
    Recipe.from_tree({"objective": "scd+vsd", "sampler": {"name": "consistency", "sigma_max": 40}}).check()


# What it trains ------------------------------------------------------------------------------------------------------


def test_the_fake_score_learns_the_law_of_the_generator() -> None:
    """Trained alone, a network ends at the exact denoiser of the generator's samples."""
    process = scmreg.processes.create("trigflow")
    model = generator(process, torch.tensor([-0.5] * D), torch.tensor([0.6, 0.0, -0.6]))
    mean, std = (x.detach().double() / 0.5 for x in law_of(model))
    exact = gaussian(mean, std, process)
    torch.manual_seed(0)
    network = scmreg.networks.create("mlp", width=64, depth=2).build((D,))
    teacher = Denoiser(network, process, model.parameterization)
    module: ObjectiveModule = scmreg.objectives.create("vsd").build(Setup(model, SPEC, teacher))
    fake: Any = module.fake_score
    untrained = copy.deepcopy(fake)
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(fake.parameters(), 3e-3)
    nets = {"model": model, "fake_score": fake}
    for step in range(500):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 500)
        optimizer.zero_grad()
        module.loss("fake", nets, Batch(torch.zeros(256, D)), step, rng).total.backward()
        optimizer.step()
    t = 0.2 + torch.rand(500, generator=rng)
    clean = 0.5 * (mean + std * torch.randn(500, D, generator=rng)).float()
    x = process.perturb(clean, torch.randn(500, D, generator=rng), t)
    with torch.no_grad():
        error, before = ((one.data(x, t) - exact.data(x, t)).square().mean().sqrt() for one in (fake, untrained))
    assert float(error) < 0.03
    assert float(error) < before / 5


SHORT = (
    *("--set", "network.width=64", "--set", "network.depth=3", "--set", "data.count=2000", "--teacher", "exact"),
    *("--set", "evaluation.steps=[1]", "--set", "evaluation.metrics=[sliced-wasserstein, precision-recall]"),
)


def judged(scm: Any, *arguments: object) -> tuple[dict[str, float], float]:
    """Train, and return the figures of the one-step samples, and the distance between two halves of the data."""
    result = scm("run", *SHORT, *arguments, "--json")
    assert result.code == 0, result.err
    (student,) = result.json["student"]
    return student, result.json["floor"]["sliced_wasserstein"]


@pytest.mark.slow
def test_samples_take_on_the_law_of_one_gaussian(scm: Any, workplace: Path) -> None:
    student, floor = judged(scm, "--objective", "vsd", "--data", "gaussian", "--steps", 1000)
    assert student["sliced_wasserstein"] < 4 * floor
    assert student["precision"] > 0.9
    assert student["recall"] > 0.5


@pytest.mark.slow
def test_samples_take_on_the_law_of_a_mixture(scm: Any, workplace: Path) -> None:
    """All modes, in the right proportions: the fresh generator is far from it."""
    mixture = ("--objective", "vsd", "--data", "mixture")
    fresh, floor = judged(scm, *mixture, "--steps", 1)
    student, _ = judged(scm, *mixture, "--steps", 5000)
    assert fresh["sliced_wasserstein"] > 5 * floor
    assert student["sliced_wasserstein"] < 3 * floor
    assert min(student["precision"], student["recall"]) > 0.75


@pytest.mark.slow
def test_the_sum_with_consistency_distillation_trains(scm: Any, workplace: Path) -> None:
    student, floor = judged(scm, "--objective", "scd+vsd", "--data", "mixture", "--steps", 2000)
    assert student["sliced_wasserstein"] < 4 * floor
    assert min(student["precision"], student["recall"]) > 0.7
