"""Discrete-time consistency: schedules against tables, losses against their formulas, limits against their orders."""

from __future__ import annotations

import itertools
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from chosen import ChosenTimes
from strategies import PROCESSES, close, denoiser, pair, times
from torch import Tensor, nn

import scmreg
from scmreg import checkpoint
from scmreg.coordinates import trig_time
from scmreg.denoiser import Denoiser
from scmreg.errors import OptionError, UnavailableError
from scmreg.law import ExactDenoiser, GaussianMixture
from scmreg.objective import Loss, Setup
from scmreg.progress import Progress
from scmreg.proofs.training import GaussianStudent
from scmreg.recipe import Recipe
from scmreg.rng import rewound
from scmreg.schedule import Schedule
from scmreg.tangent import Motion, consistency_tangent, discrete_tangent, evaluate_with_jvp, motion
from scmreg.train import build_denoiser, train
from scmreg.types import Batch, Conditions, expand
from scmreg.weighting import Weighting, WeightingModule

SPEC = scmreg.DataSpec("test", (3,), "points")
UNIT = scmreg.parameterizations.create("unit-variance")
COMPARISONS = ("ct", "cd", "ict", "ect")
DISCRETE = (*COMPARISONS, "dsct", "dscd")
STEPS = 800


class Earlier(Schedule):
    """Earlier times that the test has chosen."""

    def __init__(self, r: Tensor) -> None:
        object.__setattr__(self, "r", r)

    def pair(self, process: Any, t: Tensor, step: int, steps: int | None) -> tuple[Tensor, Tensor]:
        return t, self.r


def module_of(name: str, model: Denoiser, t: Tensor, r: Tensor, teacher: Denoiser | None = None, **options: Any) -> Any:
    """Build a registered objective whose pairs of times are given."""
    made = scmreg.objectives.create(name, **options)
    object.__setattr__(made, "proposal", ChosenTimes(t))
    object.__setattr__(made, "schedule", Earlier(r))
    return made.build(Setup(model, SPEC, teacher, steps=STEPS))


def loss_of(module: Any, model: Any, x0: Tensor, step: int = 10**9) -> Loss:
    """Return the loss of a built objective; its noise is `noise_of`."""
    found: Loss = module.loss("main", {"model": model}, Batch(x0), step, torch.Generator().manual_seed(5))
    return found


def noise_of(x0: Tensor) -> Tensor:
    return torch.randn(x0.shape, generator=torch.Generator().manual_seed(5)).to(x0)


def gradient(loss: Tensor, model: Denoiser) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)])


def models(process: Any, seed: int = 0) -> tuple[Denoiser, Denoiser]:
    """Return a student and a teacher."""
    model = denoiser(process, UNIT, (3,), torch.Generator().manual_seed(seed))
    teacher = denoiser(process, UNIT, (3,), torch.Generator().manual_seed(seed + 99))
    return model, teacher.requires_grad_(False)


def earlier_time(process: Any, t: Tensor, share: float) -> Tensor:
    """Return the times whose TrigFlow time is a share of that of ``t``."""
    found: Tensor = process.time_of(process.sigma_data * torch.tan(share * trig_time(process, t)))
    return found


# Schedules -----------------------------------------------------------------------------------------------------------


def test_grid_of_edm_by_hand() -> None:
    """N = 4 between 0.01 and 10 with exponent 1 and 7; the data take the place of the lowest level."""
    edm = scmreg.processes.create("edm")
    linear = scmreg.schedules.create("edm-grid", steps=4, sigma_min=2.0, sigma_max=10.0, rho=1.0)
    t = torch.tensor([0.1, 3.9, 4.0, 4.1, 9.9, 10.0, 60.0])
    later, earlier = linear.pair(edm, t, 0, None)
    assert later.tolist() == [4, 4, 4, 6, 10, 10, 10]
    assert earlier.tolist() == [0, 0, 0, 4, 8, 8, 8]
    grid = scmreg.schedules.create("edm-grid", steps=2).grid(edm, 2)
    middle = ((0.002 ** (1 / 7) + 80 ** (1 / 7)) / 2) ** 7
    assert grid.tolist() == pytest.approx([0, middle, 80])
    trig = scmreg.processes.create("trigflow", sigma_data=0.3)
    assert scmreg.schedules.create("edm-grid", steps=2).grid(trig, 2).tolist() == pytest.approx(
        [0, math.atan(middle / 0.3), math.atan(80 / 0.3)]
    )
    short = scmreg.processes.create("edm", sigma_max=5.0)
    assert float(scmreg.schedules.create("edm-grid").grid(short, 17)[-1]) == pytest.approx(5)


def test_stages_of_ict_are_of_equal_length() -> None:
    """K = 800, s0 = 10, s1 = 1280: eight stages of 100 steps (ECT, Eq. 10, with the 1 outside the logarithm)."""
    made = scmreg.schedules.create("ict")
    counts = [made.intervals(step, 800) for step in range(800)]
    assert counts == [10 * 2 ** (step // 100) for step in range(800)]
    assert made.intervals(10**12, 800) == 1280
    uneven = scmreg.schedules.create("ict", s0=10, s1=100)  # K' = floor(43/(log2 10 + 1)) = 9
    assert [uneven.intervals(step, 43) for step in (0, 8, 9, 17, 18, 27, 36, 42)] == [10, 10, 20, 20, 40, 80, 100, 100]
    assert made.intervals(0, 3) == 10
    assert made.intervals(1, 3) == 20


def test_mapping_of_ect_by_hand() -> None:
    edm = scmreg.processes.create("edm")
    t = torch.tensor([0.5, 2.0, 80.0], dtype=torch.float64)
    golden = torch.tensor([0.3743648328, 1.755797078, 75.0], dtype=torch.float64)
    _, earlier = scmreg.schedules.create("ect", a=4).pair(edm, t, 0, None)
    torch.testing.assert_close(earlier, golden, rtol=1e-9, atol=0)
    _, at_first = scmreg.schedules.create("ect").pair(edm, torch.tensor([0.3, 1.0, 8.0]), 0, 800)
    assert at_first[:2].tolist() == [0, 0]
    assert float(at_first[2]) == pytest.approx(8 * (1 - (1 + 8 / (1 + math.exp(8))) / 2))
    plain = scmreg.schedules.create("ect", k=0.0, q=256.0, a=1)
    assert torch.allclose(plain.pair(edm, t, 10**9, None)[1], t * (1 - 1 / 256))
    assert not scmreg.schedules.create("ect", a=0).pair(edm, t, 0, None)[1].any()


def test_exponent_of_ect_counts_steps_from_1() -> None:
    made = scmreg.schedules.create("ect")
    assert [made.exponent(step, 800) for step in (0, 99, 100, 199, 200, 799)] == [1, 1, 2, 2, 3, 8]
    assert [scmreg.schedules.create("ect", d=50.0).exponent(step, None) for step in (0, 49, 50)] == [1, 1, 2]
    assert [made.exponent(step, 12) for step in range(4)] == [1, 2, 2, 3]  # a stage of 1.5 steps
    assert scmreg.schedules.create("ect", a=7).exponent(0, None) == 7


@pytest.mark.parametrize("name", ["ict", "ect"])
def test_a_curriculum_needs_to_know_its_length(name: str) -> None:
    edm = scmreg.processes.create("edm")
    with pytest.raises(ValueError, match=f"schedule '{name}' depends on the number of training steps"):
        scmreg.schedules.create(name).pair(edm, torch.ones(2), 0, None)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", sorted(scmreg.schedules))
def test_pairs_are_in_order_up_to_pure_noise(name: str, process: str) -> None:
    """In float32, at the last step, with times as large as there are, and a grid finer than float32."""
    made, schedule = scmreg.processes.create(process), scmreg.schedules.create(name)
    drawn = scmreg.proposals.create("uniform").sample(made, 1000, torch.Generator().manual_seed(0))
    t = torch.cat([drawn, torch.tensor([made.t_max, made.t_max * (1 - 1e-7), 1e-6, 1e-30])])
    fine = scmreg.schedules.create("edm-grid", steps=3_000_000) if name == "edm-grid" else schedule
    for step, chosen in ((0, schedule), (STEPS - 1, schedule), (0, fine)):
        later, earlier = chosen.pair(made, t, step, STEPS)
        assert later.dtype == earlier.dtype == torch.float32
        assert bool((earlier >= 0).all())
        assert bool((earlier < later).all())
        again = chosen.pair(made, later, step, STEPS)
        assert torch.equal(again[0], later)
        assert torch.equal(again[1], earlier)


@pytest.mark.parametrize("name", ["karras", "discrete-lognormal"])
def test_a_grid_makes_a_proposal_discrete(name: str) -> None:
    """Probabilities of the intervals: alike (CT, CD), and iCT's differences of error functions."""
    process, intervals = scmreg.processes.create("flow"), 12
    schedule, proposal = scmreg.schedules.create("edm-grid", steps=intervals), scmreg.proposals.create(name)
    uniform = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    later, _ = schedule.pair(process, proposal.transform(process, uniform), 0, None)
    grid = schedule.grid(process, intervals)
    shares = torch.stack([(later == t).double().mean() for t in grid[1:]])
    levels = [
        (0.002 ** (1 / 7) + i / intervals * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7 for i in range(intervals + 1)
    ]
    part = [math.erf((math.log(level) + 1.1) / (math.sqrt(2) * 2.0)) for level in levels]
    expected = torch.tensor(part, dtype=torch.float64).diff() / (part[-1] - part[0])
    if name == "karras":
        expected = torch.full((intervals,), 1 / intervals, dtype=torch.float64)
    torch.testing.assert_close(shares, expected, rtol=0, atol=2e-5)


# Distances -----------------------------------------------------------------------------------------------------------


def test_distances_by_hand() -> None:
    x = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    y = torch.zeros(2, 1, 2, dtype=torch.float64)
    by_name = {name: scmreg.distances.create(name) for name in ("l2", "l1", "pseudo-huber")}
    assert by_name["l2"].between(x.detach(), y).tolist() == [12.5, 0]
    assert by_name["l1"].between(x.detach(), y).tolist() == [3.5, 0]
    c = 0.00054 * math.sqrt(2)
    expected = torch.tensor([math.sqrt(25 + c**2) - c, 0], dtype=torch.float64)
    torch.testing.assert_close(by_name["pseudo-huber"].between(x.detach(), y), expected)
    other = scmreg.distances.create("pseudo-huber", c=3.0)
    assert float(other.between(x.detach(), y)[0]) == pytest.approx(math.sqrt(34) - 3)
    for made in (*by_name.values(), other, scmreg.distances.create("pseudo-huber", c=0.0)):
        (slope,) = torch.autograd.grad(made.between(x, y).sum(), x)
        assert bool(torch.isfinite(slope).all()), "equal samples have a gradient"


def test_pseudo_huber_keeps_small_differences_in_float32() -> None:
    x = torch.full((1, 4), 1e-7)
    exact = math.sqrt(4e-14 + (0.00054 * 2) ** 2) - 0.00054 * 2
    made = scmreg.distances.create("pseudo-huber")
    assert float(made.between(x, torch.zeros(1, 4))) == pytest.approx(2e-14 / (0.00054 * 2), rel=1e-4)
    assert exact == pytest.approx(2e-14 / (0.00054 * 2), rel=1e-2)  # what the formula as it stands makes of it


class Perceptual(nn.Module):
    """Stands in for the network of the package lpips."""

    def __init__(self, net: str, verbose: bool) -> None:
        super().__init__()
        assert net == "vgg"
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        assert x.shape[1:] == (3, 32, 32)
        assert float(x.detach().min()) >= -1
        assert float(x.detach().max()) <= 1
        return (self.weight * (x - y) ** 2).mean((1, 2, 3), keepdim=True)


@pytest.fixture
def lpips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for the package, and the folder where it looks for weights."""
    module = types.ModuleType("lpips")
    module.LPIPS = Perceptual  # type: ignore[attr-defined]
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "lpips", module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints"


def test_lpips_compares_rendered_images(lpips: Path) -> None:
    lpips.mkdir()
    (lpips / "vgg16-397923af.pth").touch()
    made = scmreg.distances.create("lpips", size=32)
    assert made.unavailable() is None
    assert made.fits(None) is None
    spec = scmreg.DataSpec("test", (1, 8, 8), "image", mean=(0.5,), std=0.25)
    rendered = torch.rand(2, 3, 1, 8, 8)
    x, y = (spec.scale(image, 0.5).requires_grad_() for image in rendered)
    between = made.build(spec, 0.5)
    distance = between(x, y)
    assert distance.shape == (3,)
    assert bool((distance > 0).all())
    assert not between(x, x).any()
    (slope,) = torch.autograd.grad(distance.sum(), x)
    assert bool(slope.any())
    assert made.accepts(spec) is None
    refused = made.accepts(scmreg.DataSpec("roll", (2,), "points"))
    assert refused is not None
    assert "grey or colour images" in refused


def test_lpips_downloads_nothing(lpips: Path) -> None:
    made = scmreg.distances.create("lpips")
    recipe = Recipe.from_tree({"objective": {"name": "cd", "distance": {"name": "lpips"}}})
    with pytest.raises(scmreg.ScmError, match=r"needs weights of torchvision.*torchvision.models.vgg16"):
        recipe.check()
    with pytest.raises(UnavailableError, match=r"vgg16-397923af.pth"):
        made.build(SPEC, 0.5)
    assert not lpips.exists()


def test_without_lpips_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert scmreg.distances["lpips"].unavailable() == 'needs the package lpips: pip install "scmreg[lpips]"'


def test_points_are_refused_when_the_data_are_known(lpips: Path) -> None:
    lpips.mkdir()
    (lpips / "vgg16-397923af.pth").touch()
    recipe = Recipe.from_tree({"objective": {"name": "ct", "distance": "lpips"}})
    recipe.check()
    with pytest.raises(scmreg.ScmError, match="grey or colour images"):
        recipe.check(SPEC)


# Weightings ----------------------------------------------------------------------------------------------------------


def test_weight_of_ect_by_hand() -> None:
    """Tables 3 and 4 at t = 2, r = 1, sigma_data = 0.5, a difference (0.3, 0.4)."""
    edm = scmreg.processes.create("edm")
    t, r = torch.tensor([2.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    delta, loss = torch.tensor([[0.3, 0.4]], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)

    def weight(**options: Any) -> float:
        module = scmreg.weightings.create("ect", **options).build_in(edm, "data")
        return float(module(loss, t, r=r, delta=delta))

    table = {
        "uniform": 1, "1/t": 1 / 2, "1/(t-r)": 1, "1/t+1/sd": 1 / 2 + 2, "1/t^2": 1 / 4, "1/t^2+1": 5 / 4,
        "1/t^2+1/sd^2": 1 / 4 + 4, "1/(t^2+sd^2)": 1 / 4.25,
    }  # fmt: skip
    for w_bar, expected in table.items():
        assert weight(w_bar=w_bar, p=0.0) == pytest.approx(expected)
        assert weight(w_bar=w_bar) == pytest.approx(expected / 0.5)
    assert weight(w_bar="uniform", c=0.06) == pytest.approx(1 / math.sqrt(0.25 + 0.06**2))
    assert weight(w_bar="uniform", p=1.0, c=0.06) == pytest.approx(1 / (0.25 + 0.06**2))
    assert weight(w_bar="uniform", norm="l1", c=0.06) == pytest.approx(1 / 0.76)
    inverse = scmreg.weightings.create("inverse-step").build_in(edm, "data")
    assert float(inverse(loss, t, r=1.5 * r, delta=delta)) == pytest.approx(2)


def test_the_adaptive_factor_has_no_gradient() -> None:
    """With p = 1 the loss would be 1 whatever the outputs (ECT, Eq. 16)."""
    process = scmreg.processes.create("edm")
    model, _ = models(process)
    rng = torch.Generator().manual_seed(0)
    x0, _ = pair((3,), 5, 0.5, rng)
    t = times(process, 5, rng)
    weighting = scmreg.weightings.create("ect", w_bar="uniform", p=1.0)
    module = module_of("ect", model, t, t / 2, weighting=weighting)
    result = loss_of(module, model, x0)
    assert float(result.total.detach()) == pytest.approx(1 / 3)
    assert float(gradient(result.total, model).norm()) > 1e-3
    equal = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    no_difference = module.weighting(equal.square().sum(1), t, r=t / 2, delta=equal)
    (slope,) = torch.autograd.grad(no_difference.sum(), equal)
    assert not slope.any()


def test_a_weighting_that_knows_of_no_pairs_or_spaces_still_works() -> None:
    """A third party's, which says no more than it ever had to, in every objective that has a weighting."""

    class Doubled(WeightingModule):
        def log_weight(self, t: Tensor) -> Tensor:
            return torch.full_like(t, math.log(2))

    class Twice(Weighting):
        def build(self, process: Any) -> WeightingModule:
            return Doubled()

    process = scmreg.processes.create("flow")
    model, teacher = models(process)
    rng = torch.Generator().manual_seed(0)
    x0, _ = pair((3,), 4, 0.5, rng)
    for name, cls in scmreg.objectives.items():
        made = cls()
        if not hasattr(made, "weighting"):
            continue
        totals = []
        for weighting in (scmreg.weightings.create("uniform"), Twice()):
            object.__setattr__(made, "weighting", weighting)
            module = made.build(Setup(model, SPEC, teacher, steps=STEPS))
            nets = {"model": model, **dict(module.named_children())}
            result = module.loss("main", nets, Batch(x0), 10, torch.Generator().manual_seed(1))
            totals.append(float(result.total.detach()))
        assert totals[1] == pytest.approx(2 * totals[0]), name


def test_a_weight_of_pairs_asks_for_them() -> None:
    module = scmreg.weightings.create("ect").build(scmreg.processes.create("edm"))
    with pytest.raises(ValueError, match="needs the earlier time r and the difference delta"):
        module(torch.ones(2), torch.ones(2))


# Losses --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons_are_their_formula(name: str, process: str) -> None:
    """w d(f(x_t, t), f(x_r, r)) with the target held still; some of the earlier times are the data's."""
    made = scmreg.processes.create(process, sigma_data=0.3)
    model, teacher = models(made)
    rng = torch.Generator().manual_seed(1)
    x0, _ = pair((3,), 6, 0.3, rng)
    t = times(made, 6, rng)
    r = earlier_time(made, t, 0.7) * (torch.arange(6) > 1)
    options: dict[str, Any] = {"solver": "euler"} if name == "cd" else {}
    result = loss_of(module_of(name, model, t, r, teacher, **options), model, x0)

    noise = noise_of(x0)
    x = made.perturb(x0, noise, t)
    x_r = made.perturb(*(teacher.predict(x, t) if name == "cd" else (x0, noise)), r)
    difference = model.consistency(x, t) - model.consistency(x_r, r).detach()
    square = difference.square().sum(1)
    levels = made.noise_level(t), made.noise_level(r)
    c = 0.00054 * math.sqrt(3)
    per_sample = {
        "ct": square / 3,
        "cd": square / 3,
        "ict": ((square + c**2).sqrt() - c) / (levels[0] - levels[1]),
        "ect": square / 3 / square.detach().sqrt() / (levels[0] - levels[1]),
    }[name]
    assert close(result.total.detach(), per_sample.mean().detach(), 1e-9)
    assert close(gradient(result.total, model), gradient(per_sample.mean(), model), 1e-8)
    gap = trig_time(made, t) - trig_time(made, r)
    torch.testing.assert_close(result.logs["gap"], gap)


@pytest.mark.parametrize("solver", ["heun", "euler"])
@pytest.mark.parametrize("process", PROCESSES)
def test_the_teachers_step_is_that_of_the_sampler(process: str, solver: str) -> None:
    """Also to the data, where Heun's method has no second evaluation."""
    made = scmreg.processes.create(process)
    model, teacher = models(made)
    x0, _ = pair((3,), 4, 0.5, torch.Generator().manual_seed(0))
    t = times(made, 1, torch.Generator().manual_seed(0), 0.5).expand(4)
    for r in (earlier_time(made, t, 0.6), torch.zeros_like(t)):
        seen: list[Tensor] = []

        class Listening(nn.Module):
            def forward(self, x: Tensor, t: Tensor, cond: Conditions, seen: list[Tensor] = seen) -> Tensor:
                seen.append(x)
                out: Tensor = model(x, t, cond)
                return out

        net = Listening()
        loss_of(module_of("cd", model, t, r, teacher, solver=solver), net, x0)
        x = made.perturb(x0, noise_of(x0), t)
        sampler = scmreg.samplers.create("heun" if solver == "heun" else "ddim")
        moved = sampler.solve(teacher, x, torch.stack([t[0], r[0]]))
        if r.any():
            assert close(seen[0], moved, 1e-12)
        assert len(seen) == (2 if r.any() else 1), "at the data no network is asked"
        assert torch.equal(seen[-1], x)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", ["dsct", "dscd"])
def test_scm_in_discrete_time_is_its_formula(name: str, process: str) -> None:
    """Eq. 38: without normalization the gradient is that of sin(t-t') sin(t) F Delta, here from f itself."""
    made = scmreg.processes.create(process, sigma_data=0.3)
    model, teacher = models(made)
    rng = torch.Generator().manual_seed(1)
    x0, _ = pair((3,), 6, 0.3, rng)
    t = times(made, 6, rng)
    r = earlier_time(made, t, 0.8) * (torch.arange(6) > 1)
    result = loss_of(module_of(name, model, t, r, teacher, normalization="none"), model, x0)

    noise = noise_of(x0)
    x = made.perturb(x0, noise, t)
    x_r = made.perturb(*(teacher.predict(x, t) if name == "dscd" else (x0, noise)), r)
    t_hat, r_hat = trig_time(made, t), trig_time(made, r)
    delta = (model.consistency(x, t) - model.consistency(x_r, r)) / torch.sin(t_hat - r_hat)[:, None]
    g = (torch.cos(t_hat)[:, None] * delta).detach()
    assert close(result.logs["tangent_norm"], g.norm(dim=1), 1e-9)
    assert close(result.per_sample, g.square().mean(1), 1e-9)
    unit = model.unit_velocity(model(x, t), x, t)
    assert close(gradient(result.total, model), gradient((-2 * g * unit).mean(1).mean(), model), 1e-8)

    normalized = loss_of(module_of(name, model, t, r, teacher, normalization="l2"), model, x0)
    norm = g.norm(dim=1)
    torch.testing.assert_close(normalized.per_sample, (norm / (norm + 0.1)) ** 2 / 3)


def test_warm_up_of_discrete_time() -> None:
    """At step 0 only -cos t cos t' (sigma_d F - dx/dt) is left."""
    process = scmreg.processes.create("trigflow", sigma_data=0.4)
    model, teacher = models(process)
    x0, _ = pair((3,), 4, 0.4, torch.Generator().manual_seed(0))
    t = times(process, 4, torch.Generator().manual_seed(0))
    r = 0.7 * t
    module = module_of("dscd", model, t, r, teacher, normalization="none", warmup=100)
    norms = [loss_of(module, model, x0, step).logs["tangent_norm"] for step in (0, 100, 1000)]
    x = process.perturb(x0, noise_of(x0), t)
    error = 0.4 * model(x, t) - teacher.velocity(x, t)
    expected = (torch.cos(t) * torch.cos(r))[:, None] * error
    torch.testing.assert_close(norms[0], expected.detach().norm(dim=1))
    assert torch.equal(norms[1], norms[2])
    assert not torch.allclose(norms[0], norms[1])


@pytest.mark.parametrize("name", DISCRETE)
def test_at_the_data_no_network_is_asked(name: str) -> None:
    """Its form may be singular there: log c_noise is, and would make NaN of the whole batch."""
    process = scmreg.processes.create("edm")
    form = scmreg.parameterizations.create("unit-variance", c_noise="log-sigma")
    model = denoiser(process, form, (3,), torch.Generator().manual_seed(0))
    _, teacher = models(process)
    x0, _ = pair((3,), 4, 0.5, torch.Generator().manual_seed(0))
    t = times(process, 4, torch.Generator().manual_seed(0))
    for r in (torch.zeros(4, dtype=torch.float64), t / 2 * (torch.arange(4) % 2)):
        result = loss_of(module_of(name, model, t, r, teacher), model, x0)
        assert bool(torch.isfinite(gradient(result.total, model)).all())


class Masked(nn.Module):
    """A network that is nothing but a dropout mask, seen each time that it is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.dropout = nn.Dropout(0.5)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        mask = self.dropout(torch.ones_like(x))
        self.seen.append(mask)
        return self.scale * mask


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "ema"), [*((name, 0.0) for name in DISCRETE), *((name, 0.5) for name in COMPARISONS)])
def test_one_dropout_mask_for_both_evaluations(name: str, ema: float, device: str) -> None:
    process = scmreg.processes.create("edm")
    network = Masked().to(device)
    model = Denoiser(network, process, UNIT)
    _, teacher = models(process)
    x0 = torch.randn(64, 3, device=device)
    t = torch.linspace(0.1, 5, 64)
    options: dict[str, Any] = {"target_ema": ema} if ema else {}
    module = module_of(name, model, t, t / 2 * (torch.arange(64) > 5), teacher.float().to(device), **options)
    torch.manual_seed(0)
    masks = []
    for _ in range(2):
        network.seen.clear()
        target = network if not ema else module.target.network
        target.seen.clear()
        loss_of(module, model, x0)
        first, second = target.seen[0], network.seen[-1]
        assert torch.equal(first, second)
        assert 0.3 < float((first == 0).float().mean()) < 0.7
        masks.append(first)
    assert not torch.equal(*masks), "each step has a mask of its own"


@pytest.mark.parametrize("device", DEVICES)
def test_what_follows_a_rewound_block_draws_the_same(device: str) -> None:
    torch.manual_seed(0)
    with rewound(torch.device(device)):
        first = torch.rand(3), torch.rand(3, device=device)
    second = torch.rand(3), torch.rand(3, device=device)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    before = torch.get_rng_state()
    with pytest.raises(KeyError), rewound(torch.device(device)):
        raise KeyError(torch.rand(3))
    assert torch.equal(before, torch.get_rng_state())


def test_the_generator_of_an_accelerator_is_rewound_too(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"cuda:1": 7}
    module = types.SimpleNamespace(
        get_rng_state=lambda device: states[str(device)],
        set_rng_state=lambda state, device: states.update({str(device): state}),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    with rewound(torch.device("cuda:1")):
        states["cuda:1"] = 8
        drawn = torch.rand(3)
    assert states == {"cuda:1": 7}
    assert torch.equal(drawn, torch.rand(3))


# The averaged target -------------------------------------------------------------------------------------------------


def test_the_target_follows_at_its_rate_once_a_step() -> None:
    process = scmreg.processes.create("trigflow")
    model, teacher = models(process)
    x0, _ = pair((3,), 4, 0.5, torch.Generator().manual_seed(0))
    t = times(process, 4, torch.Generator().manual_seed(0))
    module = module_of("cd", model, t, 0.8 * t, teacher, target_ema=0.75)
    start = [p.detach().clone() for p in model.parameters()]
    assert "target.network.first" in module.state_dict()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0
    before = [p.clone() for p in module.target.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, start, strict=True))
    result = loss_of(module, model, x0, step=3)
    loss_of(module, model, x0, step=3)  # another part of the same batch
    for now, old in zip(module.target.parameters(), start, strict=True):
        torch.testing.assert_close(now, old + 0.25)
    assert not any(p.requires_grad for p in module.target.parameters())
    x = process.perturb(x0, noise_of(x0), t)
    moved = scmreg.samplers.create("heun").solve(teacher, x[:1], torch.stack([t[0], 0.8 * t[0]]))
    expected = model.consistency(x[:1], t[:1]) - module.target.consistency(moved, 0.8 * t[:1])
    torch.testing.assert_close(result.per_sample[0], expected.square().mean().detach())


@pytest.mark.parametrize("objective", ["cd", "ct"])
def test_a_resumed_run_keeps_its_target(tmp_path: Path, objective: str) -> None:
    def recipe(steps: int) -> Recipe:
        return Recipe.from_tree(
            {
                "objective": {"name": objective, "target_ema": 0.6},
                "network": {"name": "mlp", "width": 16, "depth": 1, "dropout": 0.2},
                "data": {"name": "gaussians", "count": 60},
                "trainer": {
                    "steps": steps, "batch_size": 8, "accumulation": 2, "checkpoint_every": 3, "device": "cpu",
                    "schedule": "constant",
                },
            }
        )  # fmt: skip

    dataset = recipe(6).data.load()
    teacher = build_denoiser(recipe(6), (2,), 0, seed=1) if recipe(6).objective.needs_teacher else None
    for folder in ("whole", "broken"):
        (tmp_path / folder).mkdir()
    whole = train(recipe(6), dataset, tmp_path / "whole", Progress(), teacher=teacher)
    train(recipe(3), dataset, tmp_path / "broken", Progress(), teacher=teacher)
    broken = train(recipe(6), dataset, tmp_path / "broken", Progress(), teacher=teacher)
    for part in ("model", "objective"):
        one, two = (checkpoint.load(place).tensors(part) for place in (whole, broken))
        assert all(torch.equal(one[key], two[key]) for key in one), part
    saved = checkpoint.load(whole)
    target, model = saved.tensors("objective"), saved.tensors("model")
    moved = [key for key in model if not torch.equal(target[f"target.{key}"], model[key])]
    assert moved


# Limits --------------------------------------------------------------------------------------------------------------


def law() -> tuple[ExactDenoiser, Denoiser]:
    """Return the exact denoiser of one Gaussian and the student that is its exact consistency function."""
    process = scmreg.processes.create("trigflow", sigma_data=0.5)
    known = GaussianMixture(
        torch.ones(1, dtype=torch.float64),
        torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64),
        torch.tensor([[0.8, 1.1, 0.6]], dtype=torch.float64),
    )
    return ExactDenoiser(known, process), Denoiser(GaussianStudent(known.means[0], known.stds[0]), process, UNIT)


def size_of(name: str, share: float, **options: Any) -> float:
    """Return the largest size of what moves the model at the exact solution, for a step of a share of the time."""
    exact, student = law()
    process = exact.process
    rng = torch.Generator().manual_seed(0)
    x0, _ = pair((3,), 50, 0.5, rng)
    t = times(process, 50, rng, 0.3, 1.3)
    module = module_of(name, student, t, (1 - share) * t, exact, **options)
    result = loss_of(module, student, x0)
    size = result.logs["tangent_norm"] if name == "dscd" else result.per_sample.sqrt()
    return float(size.max())


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [("cd", {"solver": "euler"}, 2), ("cd", {"solver": "heun"}, 3), ("dscd", {"normalization": "none"}, 1)],
)
def test_distillation_is_still_at_the_solution_to_the_order_of_its_step(
    name: str, options: dict[str, Any], order: int
) -> None:
    """The difference of two outputs is the error of the teacher's step; dsCD divides it by the length of the step."""
    sizes = [size_of(name, share, **options) for share in (0.02, 0.01)]
    assert math.log2(sizes[0] / sizes[1]) == pytest.approx(order, abs=0.1)
    assert sizes[1] < 1e-2


def test_the_gradient_at_the_solution_vanishes_at_that_order() -> None:
    exact, student = law()
    process = exact.process
    wiggle = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    class Movable(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
            out: Tensor = student.network(x, c_noise, cond) + wiggle * torch.sin(c_noise)[:, None]
            return out

    model = Denoiser(Movable(), process, UNIT)
    rng = torch.Generator().manual_seed(0)
    x0, _ = pair((3,), 200, 0.5, rng)
    t = times(process, 200, rng, 0.3, 1.3)
    for name, options, order in (("cd", {"solver": "euler"}, 2), ("dscd", {"normalization": "none"}, 1)):
        norms = []
        for share in (0.02, 0.01):
            result = loss_of(module_of(name, model, t, (1 - share) * t, exact, **options), model, x0)
            norms.append(float(torch.autograd.grad(result.total, wiggle)[0].norm()))
        assert math.log2(norms[0] / norms[1]) == pytest.approx(order, abs=0.15)


def distances_to_the_tangent(dtype: torch.dtype, intervals: list[int]) -> list[float]:
    """Return how far dsCD's tangent on grids, in some precision, is from that of sCD, relative to it."""
    process = scmreg.processes.create("trigflow")
    model, teacher = models(process)
    x0, _ = pair((3,), 256, 0.5, torch.Generator().manual_seed(0))
    drawn = times(process, 256, torch.Generator().manual_seed(0), 0.2, 1.3)
    found = []
    for count in intervals:
        t, r = scmreg.schedules.create("edm-grid", steps=count).pair(process, drawn.to(dtype), 0, None)
        x = process.perturb(x0, noise_of(x0), t.double())
        data, noise = teacher.double().predict(x, t.double())
        at = motion(model.double(), x, t.double(), data, noise)
        value, jvp_hat = evaluate_with_jvp(model, model, at, Conditions(), "joint")
        exact = consistency_tangent(value.detach(), jvp_hat, at, process.sigma_data, 1.0)
        there = motion(model.to(dtype), x.to(dtype), t, data.to(dtype), noise.to(dtype))
        error = quotient(model, there, r).double() - exact
        found.append(float(error.norm() / exact.norm()))
    return found


def quotient(model: Denoiser, at: Motion, r: Tensor) -> Tensor:
    """Return dsCM's tangent along a motion."""
    process = model.process
    cos, sin = expand(torch.cos(at.t_hat), at.x_hat), expand(torch.sin(at.t_hat), at.x_hat)
    data = cos * at.x_hat - sin * at.velocity_hat
    noise = (sin * at.x_hat + cos * at.velocity_hat) / process.sigma_data
    x_r = process.perturb(data, noise, r)
    value, earlier = model(at.x, at.t), model(x_r, r)
    gap = (at.t.double() - r.double()).to(at.t)
    return discrete_tangent(value, earlier, at, r, gap, process.sigma_data, 1.0).detach()


def test_more_intervals_come_closer_to_continuous_time_at_first_order() -> None:
    errors = distances_to_the_tangent(torch.float64, [512, 1024, 2048, 4096])
    for one, two in itertools.pairwise(errors):
        assert one / two == pytest.approx(2, rel=0.2)


def test_too_many_intervals_lose_the_precision_of_float32() -> None:
    """The error falls with N, and rises again where rounding is divided by ever shorter steps (sCM, Fig. 5c)."""
    errors = distances_to_the_tangent(torch.float32, [256, 4096, 1_000_000])
    assert errors[1] < errors[0] / 4
    assert errors[2] > 3 * errors[1]


def test_limits_of_consistency_distillation() -> None:
    """Without stop-gradient (N-1)² L → L^∞, with it (N-1) grad L → the gradient of Eq. 2 (Song et al., Theorems 3, 5).

    Times of the grid are t = tau(u) with u uniform, so that (N-1) (t_{n+1} - t_n) → tau'(u).
    """
    process = scmreg.processes.create("edm")
    model, teacher = models(process)
    x0, _ = pair((3,), 64, 0.5, torch.Generator().manual_seed(0))
    share = 0.25 + 0.5 * torch.rand(64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    a, b = 0.002 ** (1 / 7), 80 ** (1 / 7)

    def tau(u: Tensor) -> Tensor:
        return (a + u * (b - a)) ** 7

    t, slope = torch.func.jvp(tau, (share,), (torch.ones_like(share),))
    x = process.perturb(x0, noise_of(x0), t)
    velocity = teacher.velocity(x, t)
    _, df_dt = torch.func.jvp(model.data, (x, t), (velocity, torch.ones_like(t)))
    squared = (slope[:, None] * df_dt).square().mean(1).mean()
    moved = 2 * (slope[:, None] * df_dt.detach() * model.data(x, t)).mean(1).mean()
    limit, limit_gradient = float(squared.detach()), gradient(moved, model)
    free_gradient = gradient(squared, model)

    errors: dict[str, list[float]] = {"loss": [], "stopped": [], "free": []}
    for count in (1000, 2000):
        module = module_of("cd", model, t, tau(share - 1 / count), teacher, solver="euler")
        result = loss_of(module, model, x0)
        errors["loss"].append(abs(count**2 * float(result.total.detach()) / limit - 1))
        errors["stopped"].append(float((count * gradient(result.total, model) - limit_gradient).norm()))
        x_r = process.perturb(*teacher.predict(x, t), tau(share - 1 / count))
        free = (model.data(x, t) - model.data(x_r, tau(share - 1 / count))).square().mean(1).mean()
        errors["free"].append(float((count**2 * gradient(free, model) - free_gradient).norm()))
    for name, (one, two) in errors.items():
        assert one / two == pytest.approx(2, rel=0.15), name
    assert errors["loss"][1] < 0.05
    assert errors["stopped"][1] < 0.05 * float(limit_gradient.norm())


def test_training_and_distillation_agree_in_expectation() -> None:
    """With the exact teacher E[grad L_CT] - E[grad L_CD] vanishes against either as the step does (Song et al., Thm 2).

    One-dimensional data and noise are summed over by quadrature.
    """
    import numpy as np

    process = scmreg.processes.create("edm")
    known = GaussianMixture(torch.ones(1), torch.tensor([[0.4]]), torch.tensor([[0.7]]))
    exact = ExactDenoiser(known, process)
    model = denoiser(process, UNIT, (1,), torch.Generator().manual_seed(3))
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(40))
    weight = torch.outer(weights, weights).flatten() / (2 * math.pi)
    x0 = 0.5 * (0.4 + 0.7 * nodes).repeat_interleave(40)[:, None]
    noise = nodes.repeat(40)[:, None]
    t = torch.full((1600,), 0.6, dtype=torch.float64)
    x = process.perturb(x0, noise, t)
    apart = []
    for step in (0.02, 0.01):
        r = t - step
        gradients = []
        for moved in ((x0, noise), exact.predict(x, t)):
            target = model.data(process.perturb(*moved, r), r).detach()
            loss = (weight * (model.data(x, t) - target).square().flatten()).sum()
            gradients.append(gradient(loss, model))
        apart.append(float((gradients[0] - gradients[1]).norm() / gradients[1].norm()))
    assert apart[1] < 0.02
    assert apart[0] / apart[1] == pytest.approx(2, rel=0.1)


def test_a_range_is_one() -> None:
    with pytest.raises(OptionError, match="sigma_min 3 must be below sigma_max 2"):
        scmreg.proposals.create("karras", sigma_min=3.0, sigma_max=2.0)
    recipe = Recipe.from_tree(
        {"process": {"name": "edm", "sigma_max": 1.0}, "objective": {"name": "cd", "schedule": {"sigma_min": 1.5}}}
    )
    with pytest.raises(scmreg.ScmError, match=r"sigma_min of schedule 'edm-grid' is 1.5, but process 'edm' ends at"):
        recipe.check()
