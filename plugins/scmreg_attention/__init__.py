"""Attention backends: the reference and one with linear memory in plain torch, and a kernel for the GPU."""

from __future__ import annotations

import functools

from scmreg.attention import Attention, Operation
from scmreg.component import Component
from scmreg.hookspecs import hookimpl
from scmreg.types import Count
from scmreg_attention import chunked, explicit, fused

__all__ = ["Chunked", "Math", "Triton"]


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


class Triton(Attention, name="triton"):
    """Run one kernel over the keys for the value and its tangent: on a GPU, with linear memory.

    In float32, bfloat16 and float16, for head dimensions up to 256. A value without tangent, and the gradient of any
    value, come from torch's own attention where that is exact with linear memory; where not, the value comes from this
    kernel and the gradient from plain torch in chunks of keys. The kernel runs on the CPU, slowly, where the
    environment variable ``TRITON_INTERPRET`` is 1.

    The first call for a class of work times several block sizes and keeps the quickest for the process
    (:func:`scmreg_attention.tune.choices` says which). They differ in how results are rounded, so nothing is timed
    under ``torch.use_deterministic_algorithms``.
    """

    formula = "as chunked, with tS - c for tS; c = scale (tQ·mean K + Q·mean tK), which all keys share, cancels"
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, App. F; Dao 2023, arXiv:2307.08691"

    @classmethod
    def unavailable(cls) -> str | None:
        """Refuse machines without Triton or a GPU that it knows."""
        return fused.unavailable()

    def build(self) -> Operation:
        """Return the functions of :mod:`scmreg_attention.fused`."""
        return Operation(fused.forward, fused.forward_jvp, fused.refuses)


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [Math, Chunked, Triton]
