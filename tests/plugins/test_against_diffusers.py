"""Samplers, preconditioning and noising against `diffusers`, which nobody here wrote: the same model, the same times.

Each scheduler of `diffusers` is compared in two ways with the sampler that claims to be the same method.

Step for step, in float64: both take each step from the same point, with what they remember of the steps before.
`diffusers` keeps its tables (``sigmas``, ``alphas_cumprod``, ``timesteps``) in float32 and computes coefficients from
them in that precision. The tables are public attributes: they are replaced by their own values in float64, ``sigmas``
as a column, because a tensor without dimensions would not lift the result to float64. EDMEulerScheduler,
DPMSolverMultistepScheduler and the flow-matching ones convert the sample to float32 within ``step`` as well; the points
that steps start from are therefore rounded to float32 beforehand, for both sides, and nothing is lost. What is left is
the rounding of float64, 1e-16, amplified where a time is turned into a noise level near pure noise: by 1/cos(t̂), which
is 500 at the largest level here, 157. `STEP` is twenty times that.

As shipped, from noise to data by `OdeSampler.solve`: tables and coefficients in float32, 6e-8 each, some ten steps of
some ten operations. `SHIPPED` is the worst that these can add up to, and far below what a wrong coefficient would do.

Our side runs under every process, whatever the coordinates of the scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from strategies import PROCESSES, Smooth
from torch import Tensor

import scmreg
from scmreg.denoiser import Denoiser
from scmreg.law import ExactDenoiser, ExactNetwork, GaussianMixture
from scmreg.process import Process
from scmreg.rng import generator
from scmreg.sampler import Ask, Level, Noise, OdeSampler, Point, Sampler, levels_of, vector
from scmreg.types import Conditions, expand

STEP, SHIPPED = 1e-12, 1e-5
"""Bounds, relative to the largest element."""
SIGMA_DATA = 0.3
SHAPE, COUNT = (3,), 5
LAW = GaussianMixture(
    weights=torch.tensor([0.5, 0.3, 0.2]),
    means=torch.tensor([[1.0, -0.5, 0.3], [-1.2, 0.4, 0.9], [0.1, 1.1, -1.4]]),
    stds=torch.tensor([[0.3, 0.5, 0.2], [0.6, 0.1, 0.4], [0.25, 0.35, 0.45]]),
)

# The first of DDPM's thousand levels is 157: past the usual ends of edm (80) and vp (152).
ENDS: dict[str, dict[str, Any]] = {"edm": {"sigma_max": 200.0}, "vp": {"beta_max": 21.0}}

# What diffusers itself emits: that its noise-predicting solvers will go, whenever one is made; and numpy's word on the
# tensors that `set_timesteps` of some schedulers treats as arrays.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*algorithm_type `?dpmsolver`? is deprecated:FutureWarning"),
    pytest.mark.filterwarnings(
        r"ignore:__array(_wrap)?__ (must accept context|implementation doesn't accept a copy):DeprecationWarning"
        r":(diffusers\.schedulers\..*|numpy\._core\.fromnumeric)"
    ),
]


def process_of(name: str, sigma_data: float = SIGMA_DATA) -> Process:
    return scmreg.processes.create(name, sigma_data=sigma_data, **ENDS.get(name, {}))


def model(kind: str, process: Process) -> Denoiser:
    """The same model under any process: an exact denoiser, or a network of random weights."""
    network = ExactNetwork(LAW) if kind == "exact" else Smooth(3, torch.Generator().manual_seed(1))
    return Denoiser(network.requires_grad_(False), process, scmreg.parameterizations.create("unit-variance"))


def solver(name: str, **options: Any) -> OdeSampler:
    made = scmreg.samplers.create(name, **options)
    assert isinstance(made, OdeSampler)
    return made


def published(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    """The output of EDM's network, which is the negative of TrigFlow's."""
    return -denoiser(x, t)


@dataclass(frozen=True)
class Case:
    """A scheduler, and the sampler that is the same method."""

    scheduler: str
    sampler: str
    home: str
    """The process in whose coordinates the scheduler works."""
    output: Callable[[Denoiser, Tensor, Tensor], Tensor]
    """What the scheduler asks of the model."""
    options: dict[str, Any]
    steps: int = 8
    pairs: bool = False
    """Whether a step is two calls of the scheduler; a last step to clean data is one."""
    ours: dict[str, Any] = field(default_factory=dict)
    """Options of our sampler."""

    def __str__(self) -> str:
        chosen = [str(value) for value in self.options.values() if isinstance(value, str)]
        return "-".join([self.scheduler.removesuffix("Scheduler"), self.sampler, self.home, *chosen])

    def create(self) -> Any:
        """The scheduler with its grid."""
        made = getattr(diffusers, self.scheduler)(**self.options)
        if self.scheduler == "FlowMatchEulerDiscreteScheduler":
            # Its own grid begins at 1, where flow has no noise level.
            made.set_timesteps(sigmas=np.linspace(0.99, 0.05, self.steps))
        else:
            made.set_timesteps(self.steps)
        return made

    def levels(self, scheduler: Any) -> Tensor:
        """The noise levels sigma/alpha that the steps go between, float64."""
        if self.scheduler == "DDIMScheduler":
            cumulative = scheduler.alphas_cumprod.double()[scheduler.timesteps]
            return torch.cat([((1 - cumulative) / cumulative).sqrt(), torch.zeros(1, dtype=torch.float64)])
        sigmas = scheduler.sigmas.double().flatten()
        if self.pairs:
            sigmas = torch.unique_consecutive(torch.cat([sigmas[::2], sigmas[-1:]]))
        return sigmas / (1 - sigmas) if self.home == "flow" else sigmas

    def asked(self, scheduler: Any, call: int) -> Tensor:
        """The noise level at which the scheduler asks the model in its call number `call`."""
        if self.scheduler == "DDIMScheduler":
            return self.levels(scheduler)[call]
        between = self.scheduler == "KDPM2DiscreteScheduler" and call % 2
        sigma = (scheduler.sigmas_interpol if between else scheduler.sigmas)[call].double().squeeze()
        return sigma / (1 - sigma) if self.home == "flow" else sigma

    def make(self, scheduler: Any, step: int) -> OdeSampler:
        """Our sampler, dividing the step where the scheduler divides it."""
        sampler = solver(self.sampler, **self.ours)
        if self.scheduler != "DPMSolverSinglestepScheduler":
            return sampler
        points = (-scheduler.sigmas.double().flatten()[2 * step : 2 * step + 3].log()).tolist()
        return sampler if len(points) < 3 else replace(sampler, r=(points[1] - points[0]) / (points[2] - points[0]))


HUNDRED = {"num_train_timesteps": 100, "beta_start": 0.0085, "beta_end": 0.12, "use_karras_sigmas": True}
EXP = {"use_exponential_sigmas": True}
EDM = {"sigma_data": SIGMA_DATA}
DDPM = {"timestep_spacing": "leading", "clip_sample": False}
NOISE = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "lower_order_final": False}
DATA = {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero", "lower_order_final": True}
SAMPLE, V = {"prediction_type": "sample"}, {"prediction_type": "v_prediction"}
CASES = [
    Case("EDMEulerScheduler", "ddim", "edm", published, EDM),
    Case("EDMEulerScheduler", "euler", "edm", Denoiser.forward, {**EDM, **V}),
    Case("DDIMScheduler", "ddim", "vp", Denoiser.noise, DDPM),
    Case("DDIMScheduler", "ddim", "vp", Denoiser.data, {**DDPM, **SAMPLE}),
    Case("DDIMScheduler", "ddim", "cosine", Denoiser.v, {**DDPM, **V}),
    Case("FlowMatchEulerDiscreteScheduler", "euler", "flow", Denoiser.velocity, {}),
    Case("FlowMatchEulerDiscreteScheduler", "ddim", "flow", Denoiser.velocity, {}),
    Case("HeunDiscreteScheduler", "heun", "edm", Denoiser.noise, {"use_karras_sigmas": True}, pairs=True),
    Case("HeunDiscreteScheduler", "dpm-solver-2", "edm", Denoiser.data, {**EXP, **SAMPLE}, pairs=True, ours={"r": 1.0}),
    Case("KDPM2DiscreteScheduler", "dpm-solver-2", "edm", Denoiser.noise, HUNDRED, pairs=True),
    Case("DPMSolverSinglestepScheduler", "dpm-solver-2", "vp", Denoiser.noise, NOISE, pairs=True),
    Case("DPMSolverSinglestepScheduler", "dpm-solver++-2", "vp", Denoiser.noise, DATA, 9, pairs=True),
    Case("DPMSolverSinglestepScheduler", "dpm-solver++-2", "cosine", Denoiser.data, {**DATA, **SAMPLE}, 9, pairs=True),
    Case("DPMSolverMultistepScheduler", "dpm-solver-2m", "vp", Denoiser.noise, NOISE),
    Case("DPMSolverMultistepScheduler", "dpm-solver-2m", "cosine", Denoiser.v, {**NOISE, **V}),
    Case("DPMSolverMultistepScheduler", "dpm-solver++-2m", "vp", Denoiser.noise, DATA),
    Case("DPMSolverMultistepScheduler", "dpm-solver++-2m", "cosine", Denoiser.v, {**DATA, **V}),
    Case("EDMDPMSolverMultistepScheduler", "dpm-solver++-2m", "edm", published, {**EDM, **DATA}),
    Case("EDMDPMSolverMultistepScheduler", "dpm-solver++-2m", "edm", Denoiser.forward, {**EDM, **DATA, **V}),
]
PAIRS = [
    pytest.param(case, name, id=f"{case}-under-{name}")
    for case in CASES
    for name in ([case.home] if case.sampler == "euler" else PROCESSES)  # `euler` is another method in each process
]


def in_float64(scheduler: Any) -> None:
    """Turn the tables of a scheduler into float64, value by value."""
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.double()[:, None]
    if hasattr(scheduler, "sigmas_interpol"):  # the middles of the steps, by its own formula
        own = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1:-1:2]])
        middle = own.log().lerp(own.roll(1, 0).log(), 0.5).exp()
        scheduler.sigmas_interpol = torch.cat([middle[:1], middle[1:].repeat_interleave(2, 0), middle[-1:]])
    if hasattr(scheduler, "alphas_cumprod"):
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()


def drive(case: Case, scheduler: Any, denoiser: Denoiser, x: Tensor, rounded: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Run a scheduler, giving start and end of every step, in the coordinates of its home."""
    calls = list(enumerate(scheduler.timesteps))
    size = 2 if case.pairs else 1
    for i in range(0, len(calls), size):
        start = x
        for call, timestep in calls[i : i + size]:
            t = denoiser.process.time_of(case.asked(scheduler, call).reshape(1)).expand(len(x))
            if case.scheduler == "EDMEulerScheduler":
                scheduler.scale_model_input(x, timestep)  # it warns whoever leaves this out
            x = scheduler.step(case.output(denoiser, x, t), timestep, x).prev_sample
        assert x.dtype == torch.float64
        yield start, x
        x = x.float().double() if rounded else x


def moved(x: Tensor, source: Level, target: Level) -> Tensor:
    """A point of one process in the coordinates of another, of the same scale of data."""
    return x * (target.alpha / source.alpha)


def grid_of(process: Process, levels: Tensor) -> list[Level]:
    return levels_of(process, process.time_of(levels))


def start_of(process: Process, level: Tensor) -> Tensor:
    """Pure noise at a level, exact in float32."""
    noise = torch.randn(COUNT, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return process.prior(noise, process.time_of(level.reshape(1)).expand(COUNT)).float().double()


def asking(denoiser: Denoiser) -> Ask:
    return lambda x, at: Point(at, x, *denoiser.predict(x, vector(at.t, x)))


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert bool(torch.isfinite(ours).all() and torch.isfinite(theirs).all())
    return float((ours.double() - theirs.double()).abs().max() / theirs.abs().max())


def stepwise(case: Case, name: str, kind: str) -> float:
    """The largest difference of any step from a common point."""
    scheduler = case.create()
    in_float64(scheduler)
    home, here = model(kind, process_of(case.home)), model(kind, process_of(name))
    levels = case.levels(scheduler)
    theirs, grid = grid_of(home.process, levels), grid_of(here.process, levels)
    ask, before, found = asking(here), None, []
    for step, (start, end) in enumerate(drive(case, scheduler, home, start_of(home.process, levels[0]), rounded=True)):
        point = ask(moved(start, theirs[step], grid[step]), grid[step])
        ours = case.make(scheduler, step).step(point, grid[step + 1], ask, before, here.process)
        found.append(difference(moved(ours, grid[step + 1], theirs[step + 1]), end))
        before = point
    assert len(found) == len(grid) - 1
    return max(found)


def shipped(case: Case, name: str) -> float:
    """The difference at the end of the whole way."""
    scheduler = case.create()
    home, here = model("exact", process_of(case.home)), model("exact", process_of(name))
    levels = case.levels(scheduler)
    theirs, grid, times = grid_of(home.process, levels), grid_of(here.process, levels), here.process.time_of(levels)
    x = start_of(home.process, levels[0])
    *_, (_, end) = drive(case, scheduler, home, x, rounded=False)
    ours = moved(x, theirs[0], grid[0])
    if case.scheduler == "DPMSolverSinglestepScheduler":  # every step is divided in its own way
        for step in range(len(times) - 1):
            ours = case.make(scheduler, step).solve(here, ours, times[step : step + 2])
    else:
        ours = case.make(scheduler, 0).solve(here, ours, times)
    return difference(moved(ours, grid[-1], theirs[-1]), end)


@pytest.mark.parametrize("kind", ["exact", "random"])
@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_every_step_is_the_one_of_diffusers(case: Case, name: str, kind: str) -> None:
    assert stepwise(case, name, kind) <= STEP


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_the_whole_way_is_the_one_of_diffusers(case: Case, name: str) -> None:
    assert shipped(case, name) <= SHIPPED


@pytest.mark.parametrize("name", PROCESSES)
def test_heun_of_flow_matching_corrects_by_another_weight(name: str) -> None:
    """Heun's method in flow time is not EDM's, though both start from the same Euler step.

    With v = (eps - x)/(1 - t) it corrects by (s - t)/(2 (1 - s)) times the change of eps; EDM's method by
    (s - t)/(2 (1 - t)) times it.
    """
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    scheduler.sigma_max = 0.99
    scheduler.set_timesteps(8)
    in_float64(scheduler)
    case = Case("FlowMatchHeunDiscreteScheduler", "heun", "flow", Denoiser.velocity, {}, pairs=True)
    home, here = model("exact", process_of("flow")), model("exact", process_of(name))
    levels = case.levels(scheduler)
    theirs, grid = grid_of(home.process, levels), grid_of(here.process, levels)
    ask = asking(here)
    for step, (start, end) in enumerate(drive(case, scheduler, home, start_of(home.process, levels[0]), rounded=True)):
        at, to = grid[step : step + 2]
        point = ask(moved(start, theirs[step], at), at)
        euler = moved(point.ddim(to), to, theirs[step + 1])
        ours = moved(case.make(scheduler, step).step(point, to, ask, None, here.process), to, theirs[step + 1])
        weight = (1 - theirs[step].t) / (1 - theirs[step + 1].t)
        assert difference(euler + (ours - euler) * weight, end) <= STEP


class Draws(Noise):
    """Our noise in float64: the numbers themselves, or those that torch draws from the same seeds in float64."""

    def __init__(self, seeds: range, fresh: bool = False) -> None:
        super().__init__(seeds, SHAPE)
        self.fresh = fresh

    def rngs(self, index: int) -> list[torch.Generator]:
        """The generators of a draw, for diffusers to draw from."""
        return [generator(seed, "sample", index) for seed in self.seeds]

    def draw(self, index: int = 0) -> Tensor:
        if not self.fresh:
            return super().draw(index).double()
        return torch.stack([torch.randn(SHAPE, generator=rng, dtype=torch.float64) for rng in self.rngs(index)])


def few_steps(between: Sequence[float]) -> Sampler:
    made = scmreg.samplers.create("consistency")
    assert isinstance(made, Sampler)
    return made.with_times(between)


@pytest.mark.parametrize("sigma_data", [0.3, 0.5])
@pytest.mark.parametrize("between", [(), (1.3,), (1.4, 1.1, 0.7)], ids=lambda times: f"{len(times) + 1}-steps")
@pytest.mark.parametrize("name", PROCESSES)
def test_consistency_sampling_is_the_one_of_scm(name: str, between: tuple[float, ...], sigma_data: float) -> None:
    """SCMScheduler lives in TrigFlow and wants sigma_data F(x/sigma_data, t), which is dx/dt; it draws our noise.

    Its times are replaced by float64 ones, and sigma_data is given as a column, so that its float32 noise is scaled in
    float64.
    """
    noise = Draws(range(COUNT))
    scheduler = diffusers.SCMScheduler(sigma_data=torch.tensor([sigma_data], dtype=torch.float64))
    times = [math.atan(80 / sigma_data), *between, 0.0]
    if len(between) == 1:
        scheduler.set_timesteps(2, max_timesteps=times[0], intermediate_timesteps=between[0])
    else:
        scheduler.set_timesteps(len(times) - 1, times, max_timesteps=None, intermediate_timesteps=None)
    assert scheduler.timesteps.tolist() == pytest.approx(times)
    scheduler.timesteps = torch.tensor(times, dtype=torch.float64)
    home = model("exact", process_of("trigflow", sigma_data))
    x = sigma_data * noise.draw()
    for step, t in enumerate(scheduler.timesteps[:-1], start=1):
        x = scheduler.step(home.velocity(x, t.expand(COUNT)), t, x, generator=noise.rngs(step)).prev_sample
    here = model("exact", process_of(name, sigma_data))
    ours = few_steps(between).sample(here, noise, Conditions())
    assert difference(ours, x) <= STEP


@pytest.mark.parametrize("name", PROCESSES)
def test_consistency_sampling_is_the_one_of_consistency_models(name: str) -> None:
    """CMStochasticIterativeScheduler lives in EDM; without its smallest level, its boundary condition is EDM's own."""
    noise = Draws(range(COUNT), fresh=True)
    scheduler = diffusers.CMStochasticIterativeScheduler(sigma_data=SIGMA_DATA, sigma_min=0.0, clip_denoised=False)
    scheduler.set_timesteps(timesteps=[17, 9, 0])
    assert scheduler.sigmas.tolist()[::3] == [80, 0]
    in_float64(scheduler)
    home = model("exact", process_of("edm"))
    x = home.process.prior(noise.draw(), torch.full((COUNT,), 80.0, dtype=torch.float64))
    for step, t in enumerate(scheduler.timesteps, start=1):
        scheduler.scale_model_input(x, t)  # it warns whoever leaves this out
        output = published(home, x, scheduler.sigmas[step - 1].expand(COUNT))
        x = scheduler.step(output, t, x, generator=noise.rngs(step)).prev_sample
    between = torch.atan(scheduler.sigmas[1:-1, 0] / SIGMA_DATA).tolist()
    ours = few_steps(between).sample(model("exact", process_of(name)), noise, Conditions())
    assert difference(ours, x) <= STEP


@pytest.mark.parametrize("name", PROCESSES)
def test_consistency_sampling_is_the_stochastic_one_of_flow_matching(name: str) -> None:
    """As shipped: the scheduler converts every sample to float32."""
    noise = Draws(range(COUNT))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    scheduler.set_timesteps(sigmas=np.array([80 / 81, 0.7, 0.3]))
    home = model("exact", process_of("flow"))
    levels = scheduler.sigmas.double()
    x = home.process.prior(noise.draw(), levels[:1].expand(COUNT))
    for step, t in enumerate(scheduler.timesteps, start=1):
        output = home.velocity(x, levels[step - 1].expand(COUNT))
        x = scheduler.step(output, t, x, generator=noise.rngs(step)).prev_sample
    between = torch.atan2(levels[1:-1], SIGMA_DATA * (1 - levels[1:-1])).tolist()
    ours = few_steps(between).sample(model("exact", process_of(name)), noise, Conditions())
    assert difference(ours, x) <= SHIPPED


@pytest.mark.parametrize("scheduler", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
@pytest.mark.parametrize("sigma_data", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("name", PROCESSES)
def test_unit_variance_is_edms_preconditioning(name: str, sigma_data: float, scheduler: str) -> None:
    """With F_edm = -F_trig, under every process; diffusers calls a network of our sign one of v_prediction."""
    rng = torch.Generator().manual_seed(0)
    sigma = torch.logspace(-3, 2, 11, dtype=torch.float64)
    ve, raw = torch.randn(2, 11, *SHAPE, generator=rng, dtype=torch.float64) * (1 + expand(sigma, torch.empty(11, 3)))
    process = process_of(name, sigma_data)
    ours = scmreg.parameterizations.create("unit-variance", c_noise="edm")
    denoiser = Denoiser(torch.nn.Identity(), process, ours)
    t = process.time_of(sigma)
    x = expand(process.coefficients(t).alpha, ve) * ve
    for prediction, sign in (("epsilon", -1), ("v_prediction", 1)):
        theirs = getattr(diffusers, scheduler)(sigma_data=sigma_data, prediction_type=prediction)
        assert (
            difference(denoiser.predictions(raw, x, t)[0], theirs.precondition_outputs(ve, sign * raw, sigma[:, None]))
            <= STEP
        )
        assert (
            difference(
                expand(ours.preconditioning(process, t).c_in, x) * x, theirs.precondition_inputs(ve, sigma[:, None])
            )
            <= STEP
        )
        assert difference(ours.time_input(process, t), theirs.precondition_noise(sigma)) <= STEP


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize(("name", "sigma_data"), [("vp", 0.3), ("cosine", 0.3), ("trigflow", 1.0)])
def test_noising_and_v_are_ddpms(name: str, sigma_data: float, schedule: str, scheduler: str) -> None:
    """At the times whose alpha is one of theirs; the model of a single data point knows its v exactly."""
    theirs = getattr(diffusers, scheduler)(beta_schedule=schedule)
    in_float64(theirs)
    steps = torch.tensor([0, 1, 30, 500, 900, 990])
    process = process_of(name, sigma_data)
    t = process.time_of(((1 - theirs.alphas_cumprod) / theirs.alphas_cumprod).sqrt()[steps])
    point, noise = torch.randn(7, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).split([1, 6])
    data = sigma_data * point.expand(6, 3)
    x, v = theirs.add_noise(data, noise, steps), theirs.get_velocity(data, noise, steps)
    assert difference(process.perturb(data, noise, t), x) <= STEP

    known = ExactDenoiser(GaussianMixture(torch.ones(1), point, torch.zeros(1, 3)), process)
    assert difference(known.v(x, t), v) <= STEP

    class Knows(torch.nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
            return v

    learned = Denoiser(Knows(), process, scmreg.parameterizations.create("velocity"))
    assert difference(learned.data(x, t), data) <= STEP
    assert difference(learned.noise(x, t), noise) <= STEP


def test_vp_is_ddpms_schedule_in_continuous_time() -> None:
    """-log prod(1 - beta_i) = sum beta_i + O(sum beta_i²), where the sum of beta is the integral B."""
    theirs = diffusers.DDPMScheduler()
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    ours = scmreg.processes.create("vp").coefficients(t).alpha
    betas = theirs.betas.double()
    gap = (-theirs.alphas_cumprod.double().log() + 2 * ours.log()).abs()
    # half the square of every beta for the logarithm, half a beta for the sum in place of the integral
    assert bool((gap <= (betas**2).cumsum(0) / 2 * 1.02 + betas / 2).all())


@pytest.mark.parametrize(("theirs", "ours"), [("karras", "edm"), ("exponential", "log-snr")])
@pytest.mark.parametrize("rho", [5.0, 7.0])
@pytest.mark.parametrize("name", PROCESSES)
def test_grids_are_edms(name: str, rho: float, theirs: str, ours: str) -> None:
    """Theirs is kept in float32, of which 6e-8 is the rounding; the exponential one is the exponential of such numbers.

    Those reach to log 0.002 = -6.2, so that their rounding is eight times as much.
    """
    process = process_of(name)
    for steps in (2, 18) if theirs == "exponential" else (1, 2, 18):  # its only exponential step would begin at the end
        scheduler = diffusers.EDMEulerScheduler(sigma_schedule=theirs, rho=rho)
        scheduler.set_timesteps(steps)
        grid = solver("ddim", steps=steps, spacing=ours, rho=rho).grid(process)
        rounding = 6.1e-8 * (8 if theirs == "exponential" else 1)
        torch.testing.assert_close(process.noise_level(grid), scheduler.sigmas.double(), rtol=rounding, atol=0)


def test_equal_steps_in_time_are_those_of_flow_matching() -> None:
    """From 1 down to 0; our first time is the largest float32 below 1."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8))
    ours = solver("euler", steps=8, spacing="time", sigma_max=1e9).grid(process_of("flow"))
    torch.testing.assert_close(ours, scheduler.sigmas.double(), rtol=1.2e-7, atol=0)
