"""Attention backends in plain torch: the reference, and one with linear memory."""

from __future__ import annotations

import functools

from scmreg.attention import Attention, Operation
from scmreg.component import Component
from scmreg.hookspecs import hookimpl
from scmreg.types import Count
from scmreg_attention import chunked, explicit

__all__ = ["Chunked", "Math"]


class Math(Attention, name="math"):
    """Compute the whole attention matrix: the reference on any device, with memory quadratic in the length."""

    formula = "P = softmax(S), S = scale Q Kᵀ;  O = P V;  tO = (P∘tS) V - rowsum(P∘tS)∘O + P tV"
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, App. F"

    def build(self) -> Operation:
        """Return the functions of :mod:`scmreg_attention.explicit`."""
        return Operation(explicit.forward, explicit.forward_jvp)


class Chunked(Attention, name="chunked"):
    """Run over the keys in chunks with an online softmax: memory linear in the length, on any device."""

    formula = (
        "running maximum m; running sums of e^{S-m}, e^{S-m} V, e^{S-m} (tS V + tV), e^{S-m} tS over chunks of keys"
    )
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, App. F; Dao et al. 2022, arXiv:2205.14135"

    chunk: Count = 256
    """Number of keys at a time."""

    def build(self) -> Operation:
        """Return the functions of :mod:`scmreg_attention.chunked`, with the chunk of keys given."""
        return Operation(
            functools.partial(chunked.forward, chunk=self.chunk),
            functools.partial(chunked.forward_jvp, chunk=self.chunk),
        )


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [Math, Chunked]
