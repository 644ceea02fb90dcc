"""What the property tests draw from, on how many examples, and the names of what is registered."""

from __future__ import annotations

from hypothesis import settings

import scmreg
from scmreg.proofs import Smooth
from scmreg.testing.strategies import (
    SIGMA_DATA,
    batches,
    close,
    denoiser,
    pair,
    parameterizations,
    processes,
    seeds,
    shapes,
    times,
)

__all__ = [
    "PARAMETERIZATIONS",
    "PROCESSES",
    "SIGMA_DATA",
    "Smooth",
    "batches",
    "close",
    "denoiser",
    "pair",
    "parameterizations",
    "processes",
    "seeds",
    "shapes",
    "times",
]

settings.register_profile("scmreg", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("scmreg")

PROCESSES = sorted(scmreg.processes)
PARAMETERIZATIONS = sorted(scmreg.parameterizations)
