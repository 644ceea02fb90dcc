"""Options of the continuous-time objectives: segments of time, a guided teacher, a finite difference."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from strategies import PROCESSES, denoiser
from torch import Tensor

import scmreg
from scmreg.coordinates import convert_time
from scmreg.denoiser import Denoiser
from scmreg.guidance import guided
from scmreg.objective import Setup
from scmreg.sampler import Noise
from scmreg.tangent import (
    evaluate_with_difference,
    evaluate_with_jvp,
    motion,
    segment_begin,
    segment_ends,
)
from scmreg.types import Batch, Conditions

POINTS = scmreg.DataSpec("test", (3,), "points")
CLASSES = scmreg.DataSpec("test", (3,), "points", ("a", "b"))
TRIG = scmreg.processes.create("trigflow", sigma_data=0.5)
UNIT = scmreg.parameterizations.create("unit-variance")
GUIDED = ["--set", "objective.guidance=[1,2]"]
WITHOUT_LABELS = ["--set", "teacher.objective.label_dropout=0.1"]


class Gaussian(torch.nn.Module):
    """What a perfect network returns for data of N(0, std²): the denoiser, or exact jumps to segments' beginnings."""

    def __init__(self, segments: int | None, std: float = 0.3) -> None:
        super().__init__()
        self.segments, self.std = segments, std

    def forward(self, x: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        x = 0.5 * x

        def spread(t: Tensor) -> Tensor:
            return torch.sqrt(torch.cos(t) ** 2 * self.std**2 + torch.sin(t) ** 2 * 0.25)

        if self.segments is None:
            slope = torch.sin(t) * torch.cos(t) * (0.25 - self.std**2) / spread(t) ** 2
            return slope[:, None] * x / 0.5
        s = segment_begin(t, 0.5, self.segments)
        jump = x * (spread(s) / spread(t))[:, None]
        return (torch.cos(t - s)[:, None] * x - jump) / (0.5 * torch.sin(t - s))[:, None]


@pytest.mark.parametrize("segments", [1, 2, 4])
@pytest.mark.parametrize("name", PROCESSES)
def test_the_tangent_vanishes_at_the_exact_jumps(name: str, segments: int) -> None:
    process = scmreg.processes.create(name, sigma_data=0.5)
    teacher = Denoiser(Gaussian(None), process, UNIT)
    x0 = 0.3 * torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def largest(network: torch.nn.Module) -> float:
        student = Denoiser(network, process, UNIT)
        made = scmreg.objectives.create("scd", segments=segments, normalization="none", weighting="uniform")
        module = made.build(Setup(student, POINTS, teacher))
        loss = module.loss("main", {"model": student}, Batch(x0), 10**9, torch.Generator().manual_seed(1))
        return float(loss.logs["tangent_norm"].max())

    assert largest(Gaussian(segments)) < 1e-8
    assert largest(Gaussian(None)) > 1e-2
    assert largest(Gaussian(3)) > 1e-2


def test_segments_are_equal_parts_that_end_where_sampling_begins() -> None:
    ends = segment_ends(0.5, 4)
    assert ends[0] == math.atan(80 / 0.5)
    assert ends == pytest.approx([ends[0] * part for part in (1, 0.75, 0.5, 0.25)])
    t = torch.tensor([1e-6, ends[3], ends[3] + 1e-4, ends[1], ends[0], math.pi / 2], dtype=torch.float64)
    want = torch.tensor([0, 0, ends[3], ends[2], ends[1], ends[1]], dtype=torch.float64)
    torch.testing.assert_close(segment_begin(t, 0.5, 4), want)
    # In float32 too the end of a segment belongs to it.
    torch.testing.assert_close(segment_begin(t.float(), 0.5, 4)[[1, 3]], want[[1, 3]].float())
    assert not segment_begin(t, 0.5, 1).any()


@pytest.mark.parametrize("segments", [2, 3])
@pytest.mark.parametrize("name", PROCESSES)
def test_its_sampler_makes_the_jumps_that_it_was_trained_for(name: str, segments: int) -> None:
    """With exact jumps as many steps as segments give the exact end of the trajectory, under every process."""
    process = scmreg.processes.create(name, sigma_data=0.5)
    model = Denoiser(Gaussian(segments), process, UNIT)
    sampler = scmreg.objectives.create("sct", segments=segments).suited_sampler(process)
    assert sampler.evaluations == segments
    noise = Noise(range(6), (3,), dtype=torch.float64)
    with torch.no_grad():
        drawn = sampler.sample(model, noise, Conditions())
    last = convert_time(torch.tensor([segment_ends(0.5, segments)[0]], dtype=torch.float64), TRIG, process)
    start = process.prior(noise.draw(), last.expand(6))
    x_hat = start / float(torch.hypot(process.coefficients(last).alpha, process.coefficients(last).sigma / 0.5))
    angle = segment_ends(0.5, segments)[0]
    spread = math.sqrt(math.cos(angle) ** 2 * 0.09 + math.sin(angle) ** 2 * 0.25)
    torch.testing.assert_close(drawn, x_hat * 0.3 / spread, rtol=1e-6, atol=1e-8)


def test_one_segment_is_what_it_was() -> None:
    one, plain = (scmreg.objectives.create("scd", **options) for options in ({"segments": 1}, {}))
    assert one == plain
    assert one.suited_sampler(TRIG) == scmreg.samplers.create("consistency")
    assert one.judged_steps((1, 2, 4)) == (1, 2, 4)
    assert scmreg.objectives.create("scd", segments=3).judged_steps((1, 2, 4)) == (3,)


# Guidance ------------------------------------------------------------------------------------------------------------


def model(guidance: bool, seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    module = scmreg.networks.create("mlp", width=16, depth=1, guidance=guidance).build((3,), 2).double()
    with torch.no_grad():
        module.leave.weight.normal_()
        for block in module.blocks:
            block.second.weight.normal_()
    return Denoiser(module, TRIG, UNIT, 2)


def test_the_teacher_is_guided_by_the_scale_of_each_sample() -> None:
    teacher = model(guidance=False)
    x, t = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.1
    label, scale = torch.tensor([0, 1, 0, 1]), torch.tensor([1.0, 1.5, 2.0, 0.0], dtype=torch.float64)
    given = Conditions(label=label, guidance=scale)
    data, noise = scmreg.objectives.create("scd", guidance=(0, 2)).direction(teacher, x, t, x, x, given)
    for i in range(4):
        one = guided(teacher, float(scale[i]))
        want = one.predict(x[i : i + 1], t[i : i + 1], Conditions(label=label[i : i + 1]))
        torch.testing.assert_close(data[i : i + 1], want[0])
        torch.testing.assert_close(noise[i : i + 1], want[1])


def test_the_network_is_told_the_scale_that_guided_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = model(guidance=True), model(guidance=False, seed=1).requires_grad_(False)
    told: list[Conditions] = []
    made = scmreg.objectives.create("scd", guidance=(1.25, 1.75), warmup=0)
    original = type(made).direction
    monkeypatch.setattr(type(made), "direction", lambda *x: told.append(x[-1]) or original(*x))
    module = made.build(Setup(student, CLASSES, teacher)).double()
    batch = Batch(torch.randn(64, 3, dtype=torch.float64), Conditions(label=torch.zeros(64, dtype=torch.long)))
    seen: list[Conditions] = []

    def net(x: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        seen.append(cond)
        out: Tensor = student(x, t, cond)
        return out

    loss = module.loss("main", {"model": net}, batch, 5, torch.Generator().manual_seed(0))
    loss.total.backward()
    (scale,) = {id(cond.guidance): cond.guidance for cond in told}.values()
    assert scale is not None
    assert bool(((scale >= 1.25) & (scale <= 1.75)).all())
    assert scale.std() > 0.1
    assert all(torch.equal(cond.guidance, scale) for cond in seen)
    layer = student.network.condition.guidance[1]  # type: ignore[union-attr]
    assert bool(layer.weight.grad.any())


def test_to_be_told_a_scale_changes_nothing_before_training_and_something_after() -> None:
    network = model(guidance=True)
    x, t, label = torch.randn(2, 3).double(), torch.rand(2).double() + 0.1, torch.tensor([0, 1])
    told, untold = (Conditions(label=label, guidance=scale) for scale in (torch.tensor([1.0, 2.0]), None))
    assert torch.equal(network(x, t, told), network(x, t, untold))
    torch.nn.init.normal_(network.network.condition.guidance[1].weight)  # type: ignore[union-attr]
    assert not torch.equal(network(x, t, told), network(x, t, untold))


def test_a_network_that_takes_no_scale_says_so() -> None:
    with pytest.raises(scmreg.ScmError, match="takes no scale of guidance"):
        model(guidance=False)(torch.ones(1, 3).double(), torch.ones(1).double(), Conditions(guidance=torch.ones(1)))


def test_its_sampler_tells_the_scale() -> None:
    sampler = scmreg.objectives.create("scd", guidance=(1.5, 2)).suited_sampler(TRIG)
    assert sampler == scmreg.samplers.create("consistency", guidance=1.5)
    seen = []
    network = denoiser(TRIG, UNIT, (3,), torch.Generator().manual_seed(0))
    asked = network.network.forward
    network.network.forward = lambda x, t, cond: seen.append(cond.guidance) or asked(x, t, cond)  # type: ignore[method-assign]
    replace(sampler, steps=3).sample(network, Noise([0, 1], (3,), dtype=torch.float64), Conditions())
    assert len(seen) == 3
    assert all(scale.tolist() == [1.5, 1.5] for scale in seen)


# Finite differences --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("name", PROCESSES)
def test_a_finite_difference_is_the_derivative_at_second_order(name: str, segments: int) -> None:
    process = scmreg.processes.create(name, sigma_data=0.5)
    student = denoiser(process, UNIT, (3,), torch.Generator().manual_seed(0))
    x0, noise = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = convert_time(torch.linspace(0.3, 1.2, 8, dtype=torch.float64), TRIG, process)
    at = motion(student, process.perturb(x0, noise, t), t, x0, noise, segments)
    value, exact = evaluate_with_jvp(student, student, at, Conditions(), "joint")

    def error(part: float) -> float:
        same, slope = evaluate_with_difference(student, student, at, Conditions(), part)
        assert torch.equal(same, value)
        assert same.requires_grad
        assert not slope.requires_grad
        return float((slope - exact).norm() / exact.norm())

    assert error(1e-3) < 1e-4
    assert error(1e-3) / error(5e-4) == pytest.approx(4, rel=0.05)


def test_a_finite_difference_stays_within_the_process() -> None:
    student = denoiser(TRIG, UNIT, (3,), torch.Generator().manual_seed(0))
    x0, noise = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t, seen = torch.full((1,), TRIG.t_max, dtype=torch.float64), []
    at = motion(student, TRIG.perturb(x0, noise, t), t, x0, noise)

    def net(x: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        seen.append(float(t))
        out: Tensor = student(x, t, cond)
        return out

    _, slope = evaluate_with_difference(net, student, at, Conditions(), 0.01)
    assert max(seen) == TRIG.t_max
    assert bool(slope.isfinite().all())


def test_a_finite_difference_shares_the_dropout_mask() -> None:
    """With one mask the difference goes to the derivative; with three it would grow as the step shrinks."""
    torch.manual_seed(0)
    module = scmreg.networks.create("mlp", width=32, depth=2, dropout=0.5).build((3,), 0).double()
    torch.nn.init.normal_(module.leave.weight)
    for block in module.blocks:
        torch.nn.init.normal_(block.second.weight)
    student = Denoiser(module, TRIG, UNIT).train()
    x0, noise = torch.randn(2, 8, 3, dtype=torch.float64)
    t = torch.linspace(0.3, 1.2, 8, dtype=torch.float64)
    at = motion(student, TRIG.perturb(x0, noise, t), t, x0, noise)
    torch.manual_seed(3)
    value, exact = evaluate_with_jvp(student, student, at, Conditions(), "joint")
    torch.manual_seed(3)
    same, slope = evaluate_with_difference(student, student, at, Conditions(), 1e-5)
    torch.testing.assert_close(same, value)
    torch.testing.assert_close(slope, exact, rtol=1e-4, atol=1e-6)


def test_a_finite_difference_is_refused_in_half_precision() -> None:
    student = denoiser(TRIG, UNIT, (3,), torch.Generator().manual_seed(0))
    x, t = torch.randn(2, 3, dtype=torch.float64), torch.rand(2, dtype=torch.float64) + 0.1
    at = motion(student, x, t, x, x)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="half precision"):
        evaluate_with_difference(student, student, at, Conditions(), 0.01)


# Whole runs ----------------------------------------------------------------------------------------------------------


def test_a_run_of_segments_is_judged_and_sampled_in_as_many_steps(scm: Any, tiny: list[str], workplace: Path) -> None:
    result = scm("run", *tiny, "--set", "objective.segments=3", "--name", "parts", "--json")
    assert result.code == 0, result.err
    assert [entry["nfe"] for entry in result.json["student"]] == [3]
    assert scm("sample", "runs/parts", "--count", "2", "--json").code == 0
    refused = scm("sample", "runs/parts", "--count", "2", "--steps", "2")
    assert refused.code == 2
    assert "a model of 3 segments jumps from the end of each to its beginning" in refused.err


def test_a_run_of_distilled_guidance_is_sampled_at_a_scale(scm: Any, tiny: list[str], workplace: Path) -> None:
    result = scm("run", *tiny, *GUIDED, *WITHOUT_LABELS, "--name", "told", "--json")
    assert result.code == 0, result.err
    assert scm("sample", "runs/told", "--count", "2", "--set", "sampler.guidance=1.7").code == 0
    refused = scm("sample", "runs/told", "--count", "2", "--set", "sampler.guidance=3")
    assert refused.code == 2
    assert "in [1, 2]" in refused.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "objective.segments=0"], "greater than or equal to 1"),
        (["--set", "objective.segments=2", "--sampler", "consistency"], "a model of 2 segments jumps"),
        (["--set", "objective.guidance=[2,1]"], "guidance [2, 1] is empty"),
        ([*GUIDED, *WITHOUT_LABELS, "--set", "network.guidance=false"], "set network.guidance=true"),
        (GUIDED, "set teacher.objective.label_dropout=0.1"),
        ([*GUIDED, *WITHOUT_LABELS, "--set", "objective.segments=2"], "models of one segment only"),
        ([*GUIDED, *WITHOUT_LABELS, "--data", "swissroll"], "data 'swissroll' have none"),
        ([*GUIDED, *WITHOUT_LABELS, "--objective", "sct"], "consistency training cannot be guided"),
        ([*GUIDED, *WITHOUT_LABELS, "--set", "sampler.guidance=3"], "in [1, 2]"),
        (["--set", "objective.finite_difference=0"], "greater than or equal to 0.0001"),
        (["--set", "objective.segments=101"], "less than or equal to 100"),
        (
            ["--set", "objective.finite_difference=0.01", "--set", "trainer.precision=bfloat16"],
            "a finite difference is rounded away in bfloat16",
        ),
        (["--set", "sampler.guidance=1.5"], "a scale that the model was never told"),
    ],
)
def test_what_cannot_be(scm: Any, tiny: list[str], workplace: Path, arguments: list[str], words: str) -> None:
    result = scm("run", *tiny, *arguments)
    assert result.code == 2
    assert words in result.err
    assert not list(workplace.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--set", "objective.guidance=[1,2]"],
        ["--objective", "scd+vsd", "--set", "objective.terms.scd.guidance=[1,2]"],
        ["--set", "evaluation.teacher_sampler.guidance=2"],
        ["--objective", "diffusion", "--sampler", "heun", "--set", "sampler.guidance=2"],
    ],
)
def test_guidance_without_classes_is_refused_for_that_alone(scm: Any, workplace: Path, arguments: list[str]) -> None:
    """Not for what it would need beside, such as a network that is told the scale."""
    result = scm("run", "--data", "swissroll", *arguments)
    assert result.code == 2
    assert "data 'swissroll' have no" in result.err
    assert len(result.err.strip().splitlines()) == 1
