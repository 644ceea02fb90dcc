"""What the property tests draw from: every registered component, times, small random networks."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

import scmreg
from scmreg.coordinates import from_trig
from scmreg.denoiser import Denoiser
from scmreg.parameterization import Parameterization
from scmreg.process import Process
from scmreg.proofs import Smooth

settings.register_profile("scmreg", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("scmreg")

SIGMA_DATA = (0.3, 0.5, 1.0)
PROCESSES = sorted(scmreg.processes)
PARAMETERIZATIONS = sorted(scmreg.parameterizations)

seeds = st.integers(0, 2**31 - 1)
shapes = st.sampled_from([(1,), (2,), (3, 2, 2), (1, 4, 4)])
batches = st.integers(1, 5)


@st.composite
def processes(draw: st.DrawFn) -> Process:
    """Draw a registered process with a drawn scale of the data."""
    name = draw(st.sampled_from(PROCESSES))
    return scmreg.processes.create(name, sigma_data=draw(st.sampled_from(SIGMA_DATA)))


@st.composite
def parameterizations(draw: st.DrawFn) -> Parameterization:
    """Draw a registered parameterization."""
    return scmreg.parameterizations.create(draw(st.sampled_from(PARAMETERIZATIONS)))


def times(process: Process, count: int, rng: torch.Generator, low: float = 0.05, high: float = 1.45) -> Tensor:
    """Return process times, float64, whose TrigFlow times are uniform in ``[low, high]``."""
    t_hat = low + (high - low) * torch.rand(count, generator=rng, dtype=torch.float64)
    return from_trig(process, t_hat[:, None], t_hat)[1]


def denoiser(
    process: Process, parameterization: Parameterization, shape: tuple[int, ...], rng: torch.Generator
) -> Denoiser:
    """Return a denoiser with a small random network."""
    return Denoiser(Smooth(torch.Size(shape).numel(), rng), process, parameterization)


def pair(shape: tuple[int, ...], batch: int, sigma_data: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return data of the process's scale and standard normal noise, float64."""
    x0, noise = torch.randn(2, batch, *shape, generator=rng, dtype=torch.float64)
    return sigma_data * x0, noise


def close(a: Tensor, b: Tensor, relative: float) -> bool:
    """Whether two tensors agree, relative to the larger norm."""
    a, b = a.detach(), b.detach()
    scale = max(float(a.norm()), float(b.norm()), 1e-300)
    return float((a - b).norm()) <= relative * scale
