"""MeanFlow against ground truth: the average velocity of a Gaussian and of a mixture is known."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scmreg
from scmreg.coordinates import process_time, trig_time
from scmreg.data import DataSpec
from scmreg.errors import CompositionError, OptionError
from scmreg.evaluate import Judge
from scmreg.law import ExactDenoiser, ExactNetwork, GaussianMixture
from scmreg.objective import Setup
from scmreg.progress import Progress
from scmreg.recipe import Recipe
from scmreg.run import execute, open_folder, prepare
from scmreg.sample import load_run
from scmreg.sampler import Noise
from scmreg.tangent import evaluate_with_jvp
from scmreg.types import Batch, Conditions, expand
from scmreg_meanflow import MeanFlow, MeanFlowModule, MeanFlowSampler, average_velocity, direction, straight_time

PROCESSES = ["flow", "edm", "trigflow", "cosine", "vp"]
MEAN, STD = torch.tensor([[0.4, -0.9]]), torch.tensor([[0.7, 1.2]])
GAUSSIAN = GaussianMixture(torch.ones(1), MEAN, STD)
MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, 0.5], [0.6, -0.4]]), torch.tensor([[0.2, 0.3], [0.4, 0.1]])
)


def process(name: str) -> scmreg.Process:
    return scmreg.processes.create(name, sigma_data=0.3)


def unit() -> scmreg.Parameterization:
    return scmreg.parameterizations.create("unit-variance")


def drawn(of: scmreg.Process, law: GaussianMixture, count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Return points of a process at times t, and earlier times r; of the same noise level in every process."""
    rng = torch.Generator().manual_seed(1)
    x0 = law.draw(count, rng)[0] * of.sigma_data
    noise = torch.randn(x0.shape, generator=rng, dtype=torch.float64)
    angles = 0.1 + 1.4 * torch.rand(2, count, generator=rng, dtype=torch.float64)
    t, r = process_time(of, angles.amax(0)), process_time(of, angles.amin(0))
    return of.perturb(x0, noise, t), t, r


def on_straight_path(of: scmreg.Process, x: Tensor, t: Tensor) -> Tensor:
    """Return the point of the straight path that ``x`` is."""
    at = of.coefficients(t)
    return x / expand(at.alpha + at.sigma, x)


def average(exact: ExactDenoiser, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """Return the exact average velocity, from where the exact flow leads."""
    of = exact.process
    moved = on_straight_path(of, x, t) - on_straight_path(of, exact.consistency(x, t, r), r)
    return moved / expand(straight_time(of, t) - straight_time(of, r), x)


class GaussianAverage(nn.Module):
    """The network that MeanFlow ends with for one Gaussian, and a defect of a given size."""

    def __init__(self) -> None:
        super().__init__()
        self.instantaneous = ExactNetwork(GAUSSIAN)
        self.defect = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        """Return the unit velocity that leads from ``x`` at ``t`` to where the flow leads at ``r`` (DDIM, solved)."""
        assert cond.target_time is not None
        t, r = c_noise[:, None], cond.target_time[:, None]
        spread = [torch.hypot(STD * torch.cos(time), torch.sin(time)) for time in (t, r)]
        there = torch.cos(r) * MEAN + spread[1] / spread[0] * (x - torch.cos(t) * MEAN)
        same = t - r < 1e-9
        gap = torch.where(same, 1.0, t - r)
        jump = (torch.cos(gap) * x - there) / torch.sin(gap)
        exact = torch.where(same, self.instantaneous(x, c_noise, cond), jump)
        return exact + self.defect * torch.sin(3 * x + t - r)


def student(name: str) -> scmreg.Denoiser:
    return scmreg.Denoiser(GaussianAverage(), process(name), unit(), two_time=True)


def module(denoiser: scmreg.Denoiser, classes: int = 0, **options: Any) -> MeanFlowModule:
    spec = DataSpec("points", (2,), "points", classes=tuple("abcdef"[:classes]))
    made = MeanFlow(**options).build(Setup(denoiser, spec))
    assert isinstance(made, MeanFlowModule)
    return made


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("law", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_the_identity_holds_for_the_exact_average_velocity(name: str, law: GaussianMixture) -> None:
    """``u = v - (t - r) du/dt``, the derivative taken by central differences along the direction of the plugin."""
    exact = ExactDenoiser(law, process(name))
    x, t, r = drawn(exact.process, law)
    velocity = exact.noise(x, t) - exact.data(x, t)
    at = direction(exact.process, x, t, velocity)
    h = 1e-4 / (1 + at.t_rate)
    later, earlier = (average(exact, x + expand(s, x) * at.x_rate, t + s * at.t_rate, r) for s in (h, -h))
    slope = (later - earlier) / expand(2 * h, x)
    gap = expand(straight_time(exact.process, t) - straight_time(exact.process, r), x)
    assert torch.allclose(average(exact, x, t, r), velocity - gap * slope, rtol=1e-5, atol=1e-5)
    assert (gap * slope).abs().max() > 0.1  # there is something to be balanced


@pytest.mark.parametrize("name", PROCESSES)
def test_the_direction_is_that_of_the_straight_path(name: str) -> None:
    """A pair of data and noise moves as the process says, in its own time."""
    of = process(name)
    x, t, _ = drawn(of, GAUSSIAN)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    at_t = of.coefficients(t)
    data = (x - expand(at_t.sigma, x) * noise) / expand(at_t.alpha, x)
    at = direction(of, x, t, noise - data)
    assert torch.allclose(at.x_rate, expand(at.t_rate, x) * of.velocity(data, noise, t), rtol=1e-9, atol=1e-9)
    h = 1e-6 * t
    rate = (straight_time(of, t + h) - straight_time(of, t - h)) / (2 * h)
    assert torch.allclose(rate * at.t_rate, torch.ones_like(t), rtol=1e-6)


def test_under_flow_the_coordinates_are_the_papers() -> None:
    of = process("flow")
    x, t, _ = drawn(of, GAUSSIAN)
    velocity = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    at = direction(of, x, t, velocity)
    assert torch.allclose(straight_time(of, t), t)
    assert torch.allclose(at.x_rate, velocity)
    assert torch.allclose(at.t_rate, torch.ones_like(t))


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("how", ["joint", "separate"])
def test_the_exact_network_has_no_error(name: str, how: Any) -> None:
    """With the marginal velocity in place of a sample's own, target and output are equal to rounding."""
    model, exact = student(name), ExactDenoiser(GAUSSIAN, process(name))
    x, t, r = drawn(model.process, GAUSSIAN)
    velocity = exact.noise(x, t) - exact.data(x, t)
    told = Conditions(target_time=trig_time(model.process, r))
    at = direction(model.process, x, t, velocity)
    u, slope = evaluate_with_jvp(model, model, at, told, how, quantity=average_velocity)
    gap = expand(straight_time(model.process, t) - straight_time(model.process, r), x)
    assert torch.allclose(u, average(exact, x, t, r), rtol=1e-9, atol=1e-9)
    assert torch.allclose(u, velocity - gap * slope, rtol=1e-9, atol=1e-9)
    assert u.requires_grad
    assert not slope.requires_grad


@pytest.mark.parametrize("name", ["flow", "trigflow"])
def test_the_gradient_vanishes_at_the_exact_network_and_nowhere_near(name: str) -> None:
    """In expectation over data and noise; without the adaptive weight, which is nonlinear in the error."""
    model = student(name)
    assert isinstance(model.network, GaussianAverage)
    built, rng = module(model, p=0.0, equal=0.25), torch.Generator().manual_seed(0)
    gradients: dict[float, Tensor] = {}
    for defect in (0.0, 0.5):
        model.network.defect.data.fill_(defect)
        found = []
        for _ in range(40):
            x0 = GAUSSIAN.draw(500, rng)[0] * model.process.sigma_data
            loss = built.loss("main", {"model": model}, Batch(x0), 0, rng)
            found.append(torch.autograd.grad(loss.total, model.network.defect)[0])
        gradients[defect] = torch.stack(found)
    deviation = {k: float(g.mean() / (g.std() / len(g) ** 0.5)) for k, g in gradients.items()}
    assert abs(deviation[0.0]) < 4
    assert deviation[0.5] > 20


def test_pairs_of_times_are_ordered_and_as_often_equal_as_asked() -> None:
    built = module(student("flow"), equal=0.6)
    t, r = built._times(20_000, torch.Generator().manual_seed(0), torch.zeros(1))
    assert bool((r <= t).all())
    assert bool((r > 0).all())
    assert abs(float((r == t).float().mean()) - 0.6) < 0.02
    logit = torch.logit(torch.cat([t[r < t], r[r < t]]))  # both together are draws of the proposal
    assert abs(float(logit.mean()) + 0.4) < 0.03
    assert abs(float(logit.std()) - 1) < 0.03


def test_the_adaptive_weight() -> None:
    model, x0 = student("flow"), torch.zeros(50, 2, dtype=torch.float64)
    results = {
        p: module(model, p=p, c=0.1).loss("main", {"model": model}, Batch(x0), 0, torch.Generator().manual_seed(0))
        for p in (0.0, 0.5, 1.0)
    }
    error = results[0.0].per_sample
    for p, found in results.items():
        assert torch.allclose(found.per_sample, error)
        assert torch.allclose(found.total, (error / (error + 0.1) ** p).mean())
    assert results[1.0].total.requires_grad


class Still(nn.Module):
    """A network that says nothing, and remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Conditions] = []

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        """Return zeros."""
        self.told.append(cond)
        return 0 * x


def test_guidance_exaggerates_what_the_class_adds() -> None:
    """With ``r = t`` and one prediction ``u`` with and without class, the error is ``w (u - v)`` where a label is kept
    and ``u - v`` where it is withheld.
    """
    network = Still()
    model = scmreg.Denoiser(network, process("flow"), unit(), classes=3, two_time=True)
    batch = Batch(torch.randn(400, 2, dtype=torch.float64), Conditions(label=torch.arange(400) % 3))
    found = {}
    for scale in (1.0, 3.0):
        built = module(model, classes=3, p=0.0, equal=1.0, guidance=scale, label_dropout=0.3)
        found[scale] = built.loss("main", {"model": model}, batch, 0, torch.Generator().manual_seed(0)).per_sample
    label = network.told[-1].label
    assert label is not None
    kept = label != 3
    assert 0.6 < float(kept.float().mean()) < 0.8
    assert torch.allclose(found[3.0], torch.where(kept, 9.0, 1.0) * found[1.0])
    alone = network.told[-2]
    assert alone.label is not None
    assert bool((alone.label == 3).all())


# Sampling -----------------------------------------------------------------------------------------------------------


class Wavy(nn.Module):
    """A network that heeds all that it is told, in float64."""

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        """Return something smooth."""
        assert cond.target_time is not None
        return torch.sin(2 * x.flip(1) + c_noise[:, None]) * torch.cos(3 * cond.target_time[:, None])


def sampled(denoiser: scmreg.Denoiser, **options: Any) -> Tensor:
    noise = Noise(range(20), (2,), dtype=torch.float64)
    return MeanFlowSampler(**options).sample(denoiser, noise, Conditions())


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_under_flow_it_is_the_formula_of_the_paper(steps: int) -> None:
    model = scmreg.Denoiser(Wavy(), process("flow"), unit(), two_time=True)
    times = torch.linspace(80 / 81, 0, steps + 1, dtype=torch.float64)
    z = model.process.prior(Noise(range(20), (2,), dtype=torch.float64).draw(), times[0].expand(20))
    for t, r in itertools.pairwise(times):
        now, told = t.expand(20), Conditions(target_time=trig_time(model.process, r.expand(20)))
        z = z - (t - r) * average_velocity(model, model(z, now, told), z, now)
    assert torch.allclose(sampled(model, steps=steps), z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_model_gives_the_same_samples_under_every_process(name: str, steps: int) -> None:
    model = scmreg.Denoiser(Wavy(), process("flow"), unit(), two_time=True)
    other = scmreg.convert(model, to=process(name))
    assert other.two_time
    assert torch.allclose(sampled(other, steps=steps), sampled(model, steps=steps), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PROCESSES)
def test_one_step_of_the_exact_model_is_exact(name: str) -> None:
    model, exact = student(name), ExactDenoiser(GAUSSIAN, process(name))
    noise = Noise(range(20), (2,), dtype=torch.float64)
    truth = MeanFlowSampler().truth(exact, noise, Conditions())
    assert truth is not None
    for steps in (1, 4):
        assert torch.allclose(sampled(model, steps=steps), truth, rtol=1e-6, atol=1e-6)


def test_steps_and_times() -> None:
    sampler = MeanFlowSampler(times=(1.2, 0.6), steps=2)
    assert sampler.with_steps(2) is sampler
    assert sampler.with_steps(3).times is None
    assert sampler.with_times([1.5, 1.0, 0.5]).evaluations == 3
    of = process("flow")
    assert torch.allclose(trig_time(of, torch.tensor(sampler.grid(of))), torch.tensor([1.2, 0.6, 0.0]))
    with pytest.raises(OptionError, match="2 steps need 2 times"):
        MeanFlowSampler(times=(1.2,), steps=2)
    with pytest.raises(OptionError, match="must fall"):
        MeanFlowSampler(times=(0.6, 1.2), steps=2)


# Composition --------------------------------------------------------------------------------------------------------

TINY = {
    "process": "flow",
    "network": {"name": "mlp", "width": 32, "depth": 1},
    "objective": "meanflow",
    "data": {"name": "mixture", "count": 200},
    "trainer": {"steps": 3, "batch_size": 16, "threads": 1},
    "evaluation": {"steps": [1, 2], "count": 50, "metrics": ["sliced-wasserstein", "trajectory-error"]},
}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"network": {"name": "mlp", "target_time": False}}, "set network.target_time=true"),
        ({"parameterization": "data"}, "has a pole"),
        ({"parameterization": "noise"}, "has a pole"),
        ({"process": "vp", "parameterization": "flow"}, "has a pole"),
        ({"objective": {"name": "meanflow", "guidance": 2.0}}, "set objective.label_dropout"),
        ({"objective": {"name": "meanflow", "guidance": 2.0, "label_dropout": 0.1}}, "have none"),
        ({"objective": "sct", "sampler": "meanflow"}, "needs a model of two times, which 'sct' does not train"),
        ({"objective": {"name": "sum", "terms": ["meanflow", "sct"]}}, "leave one of them out"),
    ],
)
def test_what_cannot_be(said: dict[str, Any], words: str) -> None:
    with pytest.raises(CompositionError, match=words):
        prepare(Recipe.from_tree({**TINY, **said}))


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("form", ["unit-variance", "velocity"])
@pytest.mark.parametrize("objective", ["meanflow", "meanflow+diffusion"])
def test_what_can_be(name: str, form: str, objective: str) -> None:
    made = Recipe.from_tree({**TINY, "process": name, "parameterization": form, "objective": objective})
    made.check()
    assert made.network.target_time  # type: ignore[attr-defined]
    assert made.sampler.name == "meanflow"


@pytest.mark.parametrize("tangent_pass", ["joint", "separate"])
def test_a_run_from_end_to_end(tangent_pass: str, tmp_path: Path) -> None:
    trainer = {**TINY["trainer"], "tangent_pass": tangent_pass}  # type: ignore[dict-item]
    made = Recipe.from_tree({**TINY, "trainer": trainer})
    folder = open_folder(made, tmp_path, name="run")
    summary = execute(made, folder, prepare(made), Progress())
    assert [entry["nfe"] for entry in summary["student"]] == [1, 2]
    assert json.loads((folder / "summary.json").read_text())["student"] == summary["student"]
    assert all("trajectory_error" in entry for entry in summary["student"])

    run = load_run(folder)
    assert run.recipe == made
    assert run.denoiser().two_time
    drawn = run.sample(8, seed=3)
    assert torch.equal(drawn, load_run(folder).sample(8, seed=3))
    assert torch.allclose(drawn, run.sample(8, seed=3, process=scmreg.processes.create("edm")), rtol=1e-3, atol=1e-3)
    # Any solver of the probability flow draws from it too: where both times are one, it is a diffusion model.
    solver = scmreg.samplers.create("heun", steps=4)
    assert bool(torch.isfinite(run.sample(8, sampler=solver)).all())
    assert made.objective.drawn_by(solver, made.process) is None
    replace(made, sampler=solver).check()


@pytest.mark.slow
def test_trained_on_a_mixture_it_samples_in_one_step(tmp_path: Path) -> None:
    """One step ends near the exact trajectory, and near the data as they are; a step along the velocity does not."""
    said = {
        "objective": {"name": "meanflow", "p": 0.0},
        "data": "mixture",
        "network": {"name": "mlp", "width": 128, "depth": 3},
        "trainer": {"steps": 2500, "threads": 1},
        "evaluation": {**TINY["evaluation"], "count": 2000},  # type: ignore[dict-item]
    }
    made = Recipe.from_tree({**TINY, **said})
    dataset, folder = prepare(made), open_folder(made, tmp_path, name="run")
    summary = execute(made, folder, dataset, Progress())
    for entry in summary["student"]:
        assert entry["trajectory_error"] < 0.27
        assert entry["sliced_wasserstein"] < 0.32
    judge = Judge(made, dataset, Progress())
    step = scmreg.samplers.create("ddim", steps=1)
    assert judge.judge("ddim", load_run(folder).denoiser(), step).figures["trajectory_error"] > 0.6
