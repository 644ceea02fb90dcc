"""Proofs against code that nobody here wrote: the ODE solver of scipy, the schedulers of diffusers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from scmreg.denoiser import convert
from scmreg.proofs.case import Case, difference, proof
from scmreg.registry import registry


@proof("sCM Eqs. 3, 24; scipy", 1e-6, examples=10)
def flow_solved_by_scipy(case: Case) -> float:
    """Scipy's solution of the probability flow in the coordinates of any process ends where the exact function says."""
    from scipy.integrate import solve_ivp

    process = case.process()
    exact = case.exact(process)
    first, last = case.times(process, torch.tensor([min(1.3, case.reach), 0.02], dtype=torch.float64)).tolist()
    x = case.normal(1, *case.shape)

    def velocity(t: float, flat: Any) -> Any:
        here = torch.from_numpy(np.asarray(flat)).reshape(x.shape)
        return exact.velocity(here, torch.tensor([t], dtype=torch.float64)).numpy().ravel()

    found = solve_ivp(velocity, (first, last), x.numpy().ravel(), method="RK45", rtol=1e-9, atol=1e-11)
    reached = torch.from_numpy(found.y[:, -1]).reshape(x.shape)
    start, end = (torch.tensor([t], dtype=torch.float64) for t in (first, last))
    return difference(reached, exact.consistency(x, start, end))


def _scheduled(case: Case, scheduler: Any, sampler: str) -> float:
    """Compare a scheduler in EDM's coordinates, as it is shipped with its float32 tables, with a sampler of ours."""
    process = case.process(sigma_data=0.5)
    model = case.denoiser(process)
    edm = registry("process").create("edm", sigma_data=0.5)
    theirs = convert(model, edm)
    scheduler.set_timesteps(8)
    start = 80 * case.normal(case.batch, *case.shape)
    x = start
    with torch.no_grad():
        for sigma, t in zip(scheduler.sigmas[:-1], scheduler.timesteps, strict=True):
            scheduler.scale_model_input(x, t)
            x = scheduler.step(-theirs(x, sigma.double().expand(case.batch)), t, x).prev_sample
        levels = scheduler.sigmas.double()
        times = process.time_of(levels)
        ours = registry("sampler").create(sampler).solve(model, start * _alpha(process, times), times)
    return difference(ours, x.double())


def _alpha(process: Any, times: Tensor) -> Tensor:
    alpha: Tensor = process.coefficients(times[:1]).alpha
    return alpha


@proof("sCM Eq. 26; diffusers' EDMEulerScheduler", 1e-4, examples=50, full=True, needs="diffusers")
def euler_of_diffusers(case: Case) -> float:
    """DDIM under any process gives the samples of diffusers' Euler scheduler of EDM, as it is shipped in float32."""
    import diffusers

    return _scheduled(case, diffusers.EDMEulerScheduler(sigma_data=0.5), "ddim")


@proof("sCM Eq. 28; diffusers' EDMDPMSolverMultistepScheduler", 1e-4, examples=50, full=True, needs="diffusers")
def dpm_solver_of_diffusers(case: Case) -> float:
    """DPM-Solver++(2M) under any process gives the samples of diffusers' scheduler, as it is shipped in float32."""
    import diffusers

    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        sigma_data=0.5, solver_order=2, solver_type="midpoint", final_sigmas_type="zero", lower_order_final=True
    )
    return _scheduled(case, scheduler, "dpm-solver++-2m")
