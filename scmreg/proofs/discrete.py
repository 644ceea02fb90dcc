"""Proofs about discrete-time consistency: pairs of times, difference quotients, losses and their weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scmreg.coordinates import convert_time, trig_time
from scmreg.data import DataSpec
from scmreg.denoiser import Denoiser
from scmreg.objective import Loss, Setup
from scmreg.proofs.case import Case, difference, proof
from scmreg.proofs.training import _gradient, _tangent
from scmreg.registry import registry
from scmreg.tangent import discrete_tangent, motion
from scmreg.types import Batch, expand
from scmreg.weighting import Weighting

STEPS = 800
"""Steps of a training that is never run."""


@proof("ECT Eqs. 10, 15, 18; sCM App. E.2", 1e-8)
def pairs_of_noise_levels(case: Case) -> float:
    """A schedule compares the same noise levels under every process, the earlier one lower."""
    sigma_data = case.number("sigma_data", 0.2, 2.0)
    source, target = case.process(sigma_data=sigma_data), case.process(sigma_data=sigma_data)
    schedule = case.make("schedule")
    step = int(case.number("step", 0, STEPS - 1))
    t = case.times(source, case.angles(16))
    here, there = (
        torch.stack(schedule.pair(process, time, step, STEPS))
        for process, time in ((source, t), (target, convert_time(t, source, target)))
    )
    in_order = bool((here[1] >= 0).all()) and bool((here[1] < here[0]).all())
    levels = source.noise_level(here.flatten()), target.noise_level(there.flatten())
    return difference(*levels) if in_order else float("inf")


def _quotient(model: Denoiser, x0: Tensor, noise: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """Return Eq. 37 of a model along the motion of a pair, times ``cos(t̂)``."""
    process = model.process
    x, x_r = process.perturb(x0, noise, t), process.perturb(x0, noise, r)
    value, earlier = (model.unit_velocity(model(y, s), y, s) for y, s in ((x, t), (x_r, r)))
    r_hat, gap = trig_time(process, r), trig_time(process, t) - trig_time(process, r)
    at = motion(model, x, t, x0, noise)
    return discrete_tangent(value, earlier, at, r_hat, gap, process.sigma_data, 1.0).detach()


@proof("sCM Eqs. 35-37", 1e-9)
def difference_quotient(case: Case) -> float:
    """The tangent of discrete time is cos t (f(x_t, t) - f(x_r, r))/sin(t - r), under any process."""
    process = case.process()
    # 1000 t magnifies the rounding of t, by which the two sides differ.
    model = case.denoiser(process, case.parameterization(("identity", "log-sigma", "edm")))
    x0, noise = case.pair(process)
    t_hat = case.angles(case.batch, 0.2)
    share = 0.2 + 0.7 * torch.rand(case.batch, generator=case.rng, dtype=torch.float64)
    t, r = case.times(process, t_hat), case.times(process, share * t_hat)
    x, x_r = process.perturb(x0, noise, t), process.perturb(x0, noise, r)
    scale = torch.cos(t_hat) / torch.sin(t_hat - share * t_hat)
    expected = expand(scale, x) * (model.data(x, t) - model.data(x_r, r))
    return difference(_quotient(model, x0, noise, t, r), expected)


@proof("sCM Eq. 37", 1e-4)
def difference_quotient_of_short_steps(case: Case) -> float:
    """The tangent of discrete time tends to that of continuous time, at first order: extrapolated it is as good as."""
    process = case.process()
    model = case.denoiser(process, case.parameterization(("identity", "log-sigma", "edm")))
    x0, noise = case.pair(process)
    t_hat = case.angles(case.batch, 0.2, 1.3)
    t = case.times(process, t_hat)
    one, half = (_quotient(model, x0, noise, t, case.times(process, t_hat - step)) for step in (1e-4, 5e-5))
    return difference(2 * half - one, _tangent(model, process.perturb(x0, noise, t), t, x0, noise))


def _loss(name: str, model: Denoiser, weighting: Weighting, x0: Tensor, **options: object) -> Loss:
    objective = registry("objective").create(name, weighting=weighting, **options)
    module = objective.build(Setup(model, DataSpec("case", tuple(x0.shape[1:]), "points"), steps=STEPS))
    result: Loss = module.loss("main", {"model": model}, Batch(x0), 0, torch.Generator().manual_seed(1))
    return result


@proof("ECT Eq. 14, Sec. 3.2", 1e-8)
def tuning_begins_as_diffusion(case: Case) -> float:
    """With the earlier time 0, ECT and diffusion have the same loss and gradient, under any process and weighting."""
    process = case.process()
    model = case.denoiser(process, case.parameterization())
    known = {name: registry("weighting").create(name) for name in registry("weighting")}
    names = sorted(name for name, weighting in known.items() if weighting.space != "own")
    weighting = known[case.choose("weighting", names)]
    proposal = registry("proposal").create("lognormal")
    x0, _ = case.pair(process)
    schedule = registry("schedule").create("ect", a=0)
    tuning = _loss("ect", model, weighting, x0, proposal=proposal, schedule=schedule, start="scratch").total
    diffusion = _loss("diffusion", model, weighting, x0, proposal=proposal).total
    return max(difference(tuning, diffusion), difference(_gradient(tuning, model), _gradient(diffusion, model)))


ON_THE_DATA: dict[str, Callable[[Tensor, float], Tensor]] = {
    "snr": lambda t, data: 1 / t**2,
    "snr+1": lambda t, data: 1 / t**2 + 1,
    "edm": lambda t, data: (t**2 + data**2) / (t * data) ** 2,
    "soft-min-snr": lambda t, data: 1 / (t**2 + data**2),
    "prior": lambda t, data: 1 / t,
    "inverse-t": lambda t, data: 1 / t,
    "inverse-step": lambda t, data: 1 / t,
}
"""Published weights of the error of the data as functions of EDM's ``t``, the noise level; the earlier time is 0."""


@proof("EDM Table 1; ECT Table 3; HDiT", 1e-9)
def weights_of_the_data(case: Case) -> float:
    """The named weightings make of diffusion the published losses of the data, under any process."""
    process = case.process()
    model = case.denoiser(process, case.parameterization())
    name = case.choose("weighting", sorted(ON_THE_DATA))
    proposal = registry("proposal").create("lognormal")
    x0, _ = case.pair(process)
    total = _loss("diffusion", model, registry("weighting").create(name), x0, proposal=proposal).total
    rng = torch.Generator().manual_seed(1)  # the draws of the objective once more
    t = proposal.sample(process, case.batch, rng, x0.dtype)
    x = process.perturb(x0, torch.randn(x0.shape, generator=rng).to(x0), t)
    error = (model.data(x, t) - x0).square().flatten(1).mean(1)
    return difference(total, (ON_THE_DATA[name](process.noise_level(t), process.sigma_data) * error).mean())
