"""Proofs about samplers (sCM, App. B; EDM, Algorithm 1; DPM-Solver)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scmreg.coordinates import convert_point, convert_time
from scmreg.denoiser import Denoiser, convert
from scmreg.law import ExactDenoiser, GaussianMixture
from scmreg.proofs.case import Case, difference, proof
from scmreg.registry import registry
from scmreg.sampler import Noise, OdeSampler
from scmreg.types import Conditions, expand


def _solvers() -> list[str]:
    return [name for name, cls in registry("sampler").items() if issubclass(cls, OdeSampler)]


def _grid(case: Case, steps: int, low: float = 0.02, high: float = 1.5) -> Tensor:
    """Draw falling TrigFlow times and a last 0, float64, shape ``(steps + 1,)``."""
    times = case.angles(steps, low, high).sort(descending=True).values
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])


@proof("sCM Eqs. 19-20", 1e-9)
def same_samples(case: Case) -> float:
    """The same model gives the same trajectory and the same samples under any two processes."""
    name = case.choose("sampler", [name for name in _solvers() if name != "euler"])  # Euler's time is the process's own
    source, target = case.process(), case.process()
    model = case.denoiser(source, case.parameterization())
    sampler = registry("sampler").create(name)
    x, times = case.normal(case.batch, *case.shape), case.times(source, _grid(case, 5))
    there, _ = convert_point(x, times[:1].expand(case.batch), source, target)
    ours = sampler.solve(model, x, times)
    theirs = sampler.solve(convert(model, target), there, convert_time(times, source, target))
    return difference(ours * (target.sigma_data / source.sigma_data), theirs)


@proof("DDIM Eq. 13; sCM Eq. 26", 1e-11)
def ddim_of_a_point_mass(case: Case) -> float:
    """DDIM is exact for data that are one point: every step lands on the trajectory."""
    process = case.process()
    size = torch.Size(case.shape).numel()
    law = GaussianMixture(torch.ones(1), case.normal(1, size), torch.zeros(1, size))
    exact = ExactDenoiser(law, process)
    mean = process.sigma_data * law.means[0].reshape(case.shape).expand(case.batch, *case.shape)
    noise, times = case.normal(case.batch, *case.shape), case.times(process, _grid(case, 4, 0.1))
    first = times[:1].expand(case.batch)
    x = process.perturb(mean, noise, first)
    worst = 0.0
    for last in range(2, len(times) + 1):
        reached = registry("sampler").create("ddim").solve(exact, x, times[:last])
        worst = max(worst, difference(reached, process.perturb(mean, noise, times[last - 1].expand(case.batch))))
    return worst


@proof("DDIM Eq. 14; sCM Eq. 26", 1e-10)
def ddim_is_euler(case: Case) -> float:
    """Under EDM and under flow matching DDIM is Euler's method."""
    process = case.process(case.choose("process", ("edm", "flow")))
    model = case.denoiser(process)
    x, times = case.normal(case.batch, *case.shape), case.times(process, _grid(case, 4))
    one, other = (registry("sampler").create(name).solve(model, x, times) for name in ("ddim", "euler"))
    return difference(one, other)


@proof("EDM Alg. 1; sCM Eq. 27", 1e-12)
def heun_is_edms_sampler(case: Case) -> float:
    """Heun is EDM's sampler and DPM-Solver-2S with its second time at the end, step for step."""
    process = case.process()
    model = case.denoiser(process)
    edm = registry("process").create("edm", sigma_data=process.sigma_data)
    theirs = convert(model, edm)
    x, angles = case.normal(case.batch, *case.shape), _grid(case, 4, 0.1)
    times = case.times(process, angles)
    heun, solver = registry("sampler").create("heun"), registry("sampler").create("dpm-solver-2", r=1.0)
    worst = 0.0
    for t, s, sigma, following in zip(
        times, times[1:], *(edm.sigma_data * torch.tan(angles)[i : len(angles) - 1 + i] for i in (0, 1)), strict=False
    ):
        step = torch.stack([t, s])
        ours = heun.solve(model, x, step)
        worst = max(worst, difference(ours, solver.solve(model, x, step)))
        there, level = convert_point(x, t.expand(case.batch), process, edm)
        slope = (there - theirs.data(there, level)) / sigma
        moved = there + (following - sigma) * slope
        if following > 0:
            end = following.expand(case.batch)
            moved = there + (following - sigma) * (slope + (moved - theirs.data(moved, end)) / following) / 2
        back = convert_point(moved, following.expand(case.batch), edm, process)[0] if following > 0 else moved
        worst = max(worst, difference(ours, back))
        x = ours
    return worst


@proof("sCM Eqs. 27-28", 1e-11)
def dpm_solvers_as_printed(case: Case) -> float:
    """DPM-Solver-2 and DPM-Solver++(2), single-step and multistep, are the printed formulas."""
    trig = case.process("trigflow")
    model, data = case.denoiser(trig), trig.sigma_data
    x = case.normal(case.batch, *case.shape)
    s, t = case.angles(2, 0.1).sort(descending=True).values
    before = s + (math.pi / 2 - s) * 0.5
    share = case.number("r", 0.1, 1.0)
    within = torch.atan(torch.exp(torch.log(torch.tan(s)) + share * torch.log(torch.tan(t) / torch.tan(s))))

    def asked(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f = data * model(x, t.expand(len(x)))
        return f, torch.sin(t) * x + torch.cos(t) * f, torch.cos(t) * x - torch.sin(t) * f

    def ddim(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return torch.cos(s - t) * x - torch.sin(s - t) * asked(x, s)[0]

    def corrected(x: Tensor, second: tuple[Tensor, Tensor], kind: int) -> Tensor:
        _, noise, clean = asked(x, s)
        there, at = second
        r = (torch.log(torch.tan(s)) - torch.log(torch.tan(at))) / (torch.log(torch.tan(s)) - torch.log(torch.tan(t)))
        _, noise_there, clean_there = asked(there, at)
        if kind == 0:  # noise in units of sigma_data, as in the paper
            return ddim(x, s, t) - torch.sin(s - t) / (2 * r * torch.cos(s)) * (noise_there - noise)
        return ddim(x, s, t) + torch.sin(s - t) / (2 * r * torch.sin(s)) * (clean_there - clean)

    worst = 0.0
    for kind, name in enumerate(("dpm-solver-2", "dpm-solver++-2")):
        single = registry("sampler").create(name, r=share).solve(model, x, torch.stack([s, t]))
        worst = max(worst, difference(single, corrected(x, (ddim(x, s, within), within), kind)))
        multi = registry("sampler").create(f"{name}m").solve(model, x, torch.stack([before, s, t]))
        worst = max(worst, difference(multi, corrected(ddim(x, before, s), (x, before), kind)))
    return worst


@proof("sCM Eqs. 5, 26", 1e-12)
def ddim_is_the_jump(case: Case) -> float:
    """One DDIM step to clean data is the consistency function of the same network."""
    process = case.process()
    model = case.denoiser(process)
    x, times = case.normal(case.batch, *case.shape), case.times(process, case.angles(2).sort(descending=True).values)
    t, s = (time.expand(case.batch) for time in times)
    ddim = registry("sampler").create("ddim")
    clean = ddim.solve(model, x, torch.cat([times[:1], torch.zeros(1, dtype=torch.float64)]))
    worst = difference(clean, model.consistency(x, t))
    return max(worst, difference(ddim.solve(model, x, times), model.consistency(x, t, s)))


def measured_order(sampler: OdeSampler, exact: ExactDenoiser, x: Tensor) -> float:
    """Return the order over a stretch of the exact flow away from its ends, on a grid equal in log-SNR.

    It is the median over the samples: where a trajectory runs along the border between two modes, its error is not yet
    in proportion to a power of the step.
    """
    process = exact.process
    top = min(1.65 * process.sigma_data, 0.9 * process.highest_level)
    errors = []
    for steps in (64, 128):
        levels = torch.exp(torch.linspace(0.0, -2.0, steps + 1, dtype=torch.float64)) * top
        times = process.time_of(levels)
        start = expand(process.std(times[:1]), x) * x
        first, last = (time.expand(len(x)) for time in (times[0], times[-1]))
        reached = sampler.solve(exact, start, times)
        errors.append((reached - exact.consistency(start, first, last)).flatten(1).norm(dim=1))
    return float(torch.log2(errors[0] / errors[1]).median())


@proof("declared orders", 0.2, examples=15)
def declared_orders(case: Case) -> float:
    """Every solver converges with the order that it declares, against the exact flow."""
    sampler = case.make("sampler", _solvers())
    exact = case.exact(case.process())
    assert isinstance(sampler, OdeSampler)
    assert sampler.order is not None, "a solver declares its order"
    return abs(measured_order(sampler, exact, case.normal(64, *case.shape)) - sampler.order)


@proof("seeds", 1e-4, examples=15)
def samples_belong_to_their_seeds(case: Case) -> float:
    """A sample is its seed's: the same noise to the bit and the same image in any batch."""
    sampler = case.make("sampler").with_steps(3)
    model = _in_float32(case)
    whole, alone = Noise(range(7), case.shape), Noise([4], case.shape)
    for draw in range(3):
        if not torch.equal(whole.draw(draw)[4:5], alone.draw(draw)):
            return math.inf
    with torch.no_grad():
        together = sampler.sample(model, whole, Conditions())[4:5]
        return difference(together, sampler.sample(model, alone, Conditions()))


def _in_float32(case: Case) -> Denoiser:
    return case.denoiser(case.process()).float()


@proof("sCM Sec. 2.2", 0.1, examples=3, full=True)
def law_of_consistency_samples(case: Case) -> float:
    """Consistency sampling with the exact consistency function gives the law of the data."""
    law = case.law(1)
    exact = ExactDenoiser(law, case.process())
    steps = case.choose("steps", (1, 2, 4))
    noise = Noise(range(4000), case.shape)
    x = registry("sampler").create("consistency", steps=steps).sample(exact, noise, Conditions())
    x = x.double().flatten(1) / exact.process.sigma_data
    means = float(((x.mean(0) - law.means[0]) / law.stds[0]).abs().max())
    spreads = float((x.std(0) / law.stds[0] - 1).abs().max())
    return max(means, spreads)
