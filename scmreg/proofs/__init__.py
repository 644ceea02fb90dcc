"""Proofs: what the library claims of its mathematics, each a property that is tried on random cases in float64.

`scm verify` runs them on the user's machine, the test suite runs them too. They range over the registries, so that
what a plugin registers is part of what is claimed.
"""

from __future__ import annotations

from scmreg.proofs import coordinates, discrete, others, predictions, sampling, training
from scmreg.proofs.case import PROOFS, Case, Proof, Smooth, difference, proof

__all__ = [
    "PROOFS",
    "Case",
    "Proof",
    "Smooth",
    "coordinates",
    "difference",
    "discrete",
    "others",
    "predictions",
    "proof",
    "sampling",
    "training",
]
