"""Bad times, scales and batches in the library: an error that names the argument, whatever they are given to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from strategies import PROCESSES, denoiser
from torch import Tensor

import scmreg
from scmreg.coordinates import convert_point
from scmreg.denoiser import Denoiser
from scmreg.errors import OptionError, ScmError
from scmreg.law import ExactDenoiser, GaussianMixture
from scmreg.process import Process
from scmreg.recipe import Recipe
from scmreg.sampler import Noise, OdeSampler
from scmreg.types import Conditions

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ONE = GaussianMixture(torch.ones(1), torch.zeros(1, 3), torch.ones(1, 3))
TWO = GaussianMixture(torch.ones(2), torch.tensor([[-1.0] * 3, [1.0] * 3]), torch.full((2, 3), 0.5))


def model(process: Process) -> Denoiser:
    """Return a small random network."""
    unit = scmreg.parameterizations.create("unit-variance")
    return denoiser(process, unit, (3,), torch.Generator().manual_seed(0)).requires_grad_(False)


TAKERS: dict[str, Callable[[Process, Tensor], object]] = {
    "perturb": lambda process, t: process.perturb(X, X, t),
    "velocity": lambda process, t: process.velocity(X, X, t),
    "prior": lambda process, t: process.prior(X, t),
    "convert_point": lambda process, t: convert_point(X, t, process, process),
    "forward": lambda process, t: model(process)(X, t),
    "predict": lambda process, t: model(process).predict(X, t),
    "data": lambda process, t: model(process).data(X, t),
    "noise": lambda process, t: model(process).noise(X, t),
    "flow": lambda process, t: model(process).velocity(X, t),
    "v": lambda process, t: model(process).v(X, t),
    "score": lambda process, t: model(process).score(X, t),
    "consistency": lambda process, t: model(process).consistency(X, t),
    "exact": lambda process, t: ExactDenoiser(TWO, process).data(X, t),
    "exact consistency": lambda process, t: ExactDenoiser(TWO, process).consistency(X, t),
}
"""Everything that is given one time per sample."""
TIMES: dict[str, tuple[Callable[[float], Tensor], str]] = {
    "negative": (lambda end: torch.tensor([0.1 * end, -1e-3]), r"t reaches from -0.001\d* to .* outside of the times"),
    "past the end": (lambda end: torch.tensor([0.1, 1.01]) * end, "t reaches .* outside of the times"),
    "just past the end": (
        lambda end: torch.tensor([0.1, 1 + 1e-9], dtype=torch.float64) * end,
        "t reaches .* outside of the times",
    ),
    "nan": (lambda end: torch.tensor([0.1 * end, math.nan]), "t reaches from nan to nan, outside of the times"),
    "infinite": (lambda end: torch.tensor([0.1 * end, math.inf]), "t reaches .* to inf, outside of the times"),
    "float16": (lambda end: torch.full((2,), 0.1 * end).half(), "t is torch.float16: .* half precision"),
    "bfloat16": (lambda end: torch.full((2,), 0.1 * end).bfloat16(), "t is torch.bfloat16: .* half precision"),
    "integers": (lambda end: torch.zeros(2, dtype=torch.int64), "t is torch.int64: times must be float32 or float64"),
    "too many": (lambda end: torch.full((3,), 0.1 * end), r"t has shape \(3,\), but x has 2 samples"),
    "one for all": (lambda end: torch.tensor(0.1 * end), r"t has shape \(\), but x has 2 samples"),
    "a column": (lambda end: torch.full((2, 1), 0.1 * end), r"t has shape \(2, 1\), but x has 2 samples"),
}


@pytest.mark.parametrize("bad", TIMES)
@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("name", PROCESSES)
def test_times_that_are_none(name: str, taker: str, bad: str) -> None:
    process = scmreg.processes.create(name)
    make, message = TIMES[bad]
    with pytest.raises(ValueError, match=f"^{message}"):
        TAKERS[taker](process, make(process.t_max))


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("name", PROCESSES)
def test_times_at_both_ends_are_taken(name: str, taker: str) -> None:
    process = scmreg.processes.create(name)
    for dtype in (torch.float32, torch.float64):
        TAKERS[taker](process, torch.tensor([0.0, process.t_max], dtype=dtype))


def test_the_refusal_names_the_process_and_its_times() -> None:
    with pytest.raises(ValueError, match=r"process 'edm', which go from 0 \(data\) to 80 \(noise\)"):
        scmreg.processes.create("edm").perturb(X, X, torch.tensor([1.0, 81.0]))


@pytest.mark.parametrize("bad", [bad for bad in TIMES if bad != "a column"])
@pytest.mark.parametrize("exact", [False, True])
def test_target_times_that_are_none(exact: bool, bad: str) -> None:
    """The time that a consistency function jumps to is checked as the one that it starts from."""
    process = scmreg.processes.create("trigflow")
    # Of one component, which is not solved: an adaptive solver that is sent to no time at all never ends.
    made = ExactDenoiser(ONE, process) if exact else model(process)
    with pytest.raises(ValueError, match=r"^s "):
        made.consistency(X, torch.full((2,), 1.2), TIMES[bad][0](process.t_max))


TO_EDM = [name for name in PROCESSES if name != "edm"]


@pytest.mark.parametrize("name", TO_EDM)
def test_what_another_process_cannot_represent(name: str) -> None:
    """EDM ends at a noise level of 80; all others go beyond it."""
    source, edm = scmreg.processes.create(name), scmreg.processes.create("edm")
    assert source.highest_level > 80
    t = source.time_of(torch.tensor([1.0, 79.0], dtype=torch.float64))
    _, there = convert_point(X, t, source, edm)
    assert there.tolist() == pytest.approx([1.0, 79.0], rel=1e-9)
    past = source.time_of(torch.tensor([1.0, 81.0], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"^TrigFlow time reaches to 1.56462, which process 'edm' cannot represent"):
        convert_point(X, past, source, edm)
    with pytest.raises(ValueError, match=r"at noise level 80$"):
        convert_point(X, torch.full((2,), source.t_max), source, edm)


def test_the_scale_of_data_decides_what_can_be_represented() -> None:
    """A noise level of 80 in data of scale 0.5 is one of 160 in data of scale 1."""
    small, large = (scmreg.processes.create("edm", sigma_data=scale) for scale in (0.5, 1.0))
    t = torch.tensor([39.0, 41.0])
    assert convert_point(X, t, large, small)[1].tolist() == pytest.approx([19.5, 20.5])
    with pytest.raises(ValueError, match="cannot represent"):
        convert_point(X, t, small, large)


# Scales of the data, rates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -0.5, math.nan, math.inf])
@pytest.mark.parametrize("name", PROCESSES)
def test_scales_of_data_that_are_none(name: str, value: float) -> None:
    with pytest.raises(OptionError, match=f"sigma_data of process '{name}' must be"):
        scmreg.processes.create(name, sigma_data=value)


def test_rates_of_noise_in_the_wrong_order() -> None:
    with pytest.raises(OptionError, match=r"beta_max 0.05 of process 'vp' is below its beta_min 0.1"):
        scmreg.processes.create("vp", beta_max=0.05)
    constant = scmreg.processes.create("vp", beta_min=3.0, beta_max=3.0)
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    torch.testing.assert_close(constant.time_of(constant.noise_level(t)), t, rtol=1e-9, atol=1e-9)


def test_a_converted_parameterization_has_the_time_input_of_its_original() -> None:
    create, process = scmreg.parameterizations.create, scmreg.processes.create("edm")
    of = create("flow", c_noise="1000t")
    t = torch.tensor([0.5, 2.0], dtype=torch.float64)
    flow = scmreg.processes.create("flow")
    told = create("converted", of=of, process=flow).time_input(process, t)
    torch.testing.assert_close(told, 1000 * t / (1 + t))
    with pytest.raises(OptionError, match="c_noise"):
        create("converted", c_noise="log-sigma")


# Grids --------------------------------------------------------------------------------------------------------------


def solver(name: str, **options: Any) -> OdeSampler:
    made = scmreg.samplers.create(name, **options)
    assert isinstance(made, OdeSampler)
    return made


SOLVERS = [name for name in scmreg.samplers if issubclass(scmreg.samplers[name], OdeSampler)]
LISTS: dict[str, tuple[Tensor, str]] = {
    "rising": (torch.tensor([0.5, 1.0]), "times must be a falling list of two at least"),
    "equal": (torch.tensor([1.0, 0.5, 0.5]), "times must be a falling list of two at least"),
    "one": (torch.tensor([1.0]), "times must be a falling list of two at least"),
    "none": (torch.tensor([]), "times must be a falling list of two at least"),
    "a table": (torch.tensor([[1.0, 0.5]]), "times must be a falling list of two at least"),
    "past the end": (torch.tensor([1.6, 0.5]), "outside of the times of process 'trigflow'"),
    "to the negative": (torch.tensor([1.0, -0.5]), "times"),
    "nan in the middle": (torch.tensor([1.0, math.nan, 0.5]), "nan"),
    "to nan": (torch.tensor([1.0, 0.5, math.nan]), "nan"),
    "half precision": (torch.tensor([1.0, 0.5]).half(), "half precision"),
}


@pytest.mark.parametrize("bad", LISTS)
@pytest.mark.parametrize("name", SOLVERS)
def test_lists_of_times_that_are_none(name: str, bad: str) -> None:
    times, message = LISTS[bad]
    with pytest.raises(ValueError, match=message):
        solver(name).solve(model(scmreg.processes.create("trigflow")), X, times)


@pytest.mark.parametrize("name", SOLVERS)
def test_times_of_ones_own_past_the_end_of_the_process(name: str) -> None:
    sampler = solver(name).with_times((1.57, 0.5))
    assert len(sampler.grid(scmreg.processes.create("trigflow"))) == 3
    message = f"times of the sampler begin at 1.57, but process 'edm' ends at {math.atan(160):.6g}"
    with pytest.raises(OptionError, match=message):
        sampler.grid(scmreg.processes.create("edm"))


def test_times_of_consistency_sampling_past_the_end_of_the_process() -> None:
    """Asked of EDM, the same times are refused; they are not moved in silence."""
    sampler = scmreg.samplers.create("consistency", steps=2, times=(1.57,))
    exact = ExactDenoiser(TWO, scmreg.processes.create("trigflow"))
    assert sampler.sample(exact, Noise([0], (3,)), Conditions()).shape == (1, 3)
    with pytest.raises(OptionError, match=r"1.57.* 'edm' ends at"):
        sampler.sample(ExactDenoiser(TWO, scmreg.processes.create("edm")), Noise([0], (3,)), Conditions())


@pytest.mark.parametrize("spacing", ["edm", "log-snr"])
def test_a_process_that_ends_below_the_last_noise_level(spacing: str) -> None:
    short = scmreg.processes.create("edm", sigma_max=0.5)
    with pytest.raises(OptionError, match="sigma_min"):
        solver("heun", spacing=spacing, sigma_min=0.6).grid(short)


@pytest.mark.parametrize("name", [name for name in scmreg.samplers if name not in SOLVERS])
def test_noise_levels_of_other_samplers(name: str) -> None:
    with pytest.raises(OptionError, match="sigma_max"):
        scmreg.samplers.create(name, sigma_max=0.0)


# Compositions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"teacher": {"source": "exact"}}, "data that know their own law, unlike 'digits': its law is not known"),
        (
            {"teacher": {"source": "exact"}, "data": "swissroll"},
            "unlike 'swissroll': its exact denoiser has no closed form",
        ),
        (
            {"teacher": {"source": "exact"}, "data": "checkerboard", "objective": "sct"},
            "unlike 'checkerboard': its exact denoiser has no closed form",
        ),
        (
            {"teacher": {"source": "exact"}, "data": "mixture", "objective": {"name": "scd", "start": "teacher"}},
            "start of 'scd' is 'teacher', but an exact teacher has no weights: set it to scratch, or auto",
        ),
        (
            {"teacher": {"source": "exact"}, "data": "mixture", "objective": {"name": "sct", "start": "teacher"}},
            "start of 'sct' is 'teacher', but an exact teacher has no weights",
        ),
        ({"network": "exact", "data": "mixture"}, "network 'exact' has no parameters to train"),
        (
            {"objective": "diffusion", "sampler": {"name": "heun", "guidance": 2.0}},
            "sampler.guidance is 2, but 'diffusion' trains no model without labels: set label_dropout",
        ),
        (
            {"objective": "scd", "sampler": {"name": "heun", "guidance": 2.0}},
            "sampler.guidance is 2, but 'scd' trains no model without labels",
        ),
        (
            {"evaluation": {"teacher_sampler": {"name": "heun", "guidance": 3.0}}},
            "sampler.guidance is 3, but 'diffusion' trains no model without labels",
        ),
        ({"objective": "diffusion", "sampler": "consistency"}, "sampler 'consistency' needs a consistency model"),
    ],
)
def test_compositions_that_cannot_work(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(scmreg.errors.CompositionError, match=message):
        Recipe.from_tree(tree).check()


def test_every_law_has_a_teacher_and_everything_else_a_reason() -> None:
    """`--teacher exact` works for the data that state their law, and for no other."""
    lawful = set()
    for name, cls in scmreg.datasets.items():
        tree = {"name": name, "path": "nowhere"} if name in ("images", "array") else {"name": name}
        made = Recipe.from_tree({"data": tree, "teacher": {"source": "exact"}})
        if made.data.law() is None:
            with pytest.raises(ScmError, match=f"unlike '{name}': {cls.lawless}"):
                made.check()
        else:
            made.check()
            lawful.add(name)
    assert lawful == {"gaussian", "gaussians", "mixture"}


def test_guidance_where_there_are_no_classes() -> None:
    tree = {
        "data": "swissroll",
        "objective": {"name": "diffusion", "label_dropout": 0.1},
        "sampler": {"name": "heun", "guidance": 2.0},
    }
    made = Recipe.from_tree(tree)
    made.check()  # what the data are is known once they are loaded
    with pytest.raises(ScmError, match=r"sampler.guidance is 2, but data 'swissroll' have no classes to guide to"):
        made.check(scmreg.DataSpec("swissroll", (2,), "points"))
