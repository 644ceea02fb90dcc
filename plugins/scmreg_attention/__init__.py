"""Attention backends: the reference and one with linear memory in plain torch, and a kernel for the GPU."""

from __future__ import annotations

import functools

from scmreg.attention import Attention, Operation
from scmreg.component import Component
from scmreg.composable import composable
from scmreg.hookspecs import hookimpl
from scmreg_attention import chunked, explicit, fused, stock

__all__ = ["Chunked", "Math", "Triton"]


class Math(Attention, name="math"):
    """Compute the whole attention matrix: the reference on any device, with memory quadratic in the length."""

    formula = "P = softmax(S), S = scale Q Kᵀ;  O = P V;  tO = (P∘tS) V - rowsum(P∘tS)∘O + P tV"
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, App. F"

    def build(self) -> Operation:
        """Return the functions of :mod:`scmreg_attention.explicit`."""
        return Operation(explicit.forward, explicit.forward_jvp)


class Chunked(Attention, name="chunked"):
    """Make, use and forget the attention matrix in blocks of queries: memory linear in the length, on any device.

    ``auto`` takes it wherever it does not take `triton`. The gradient makes the blocks once more. A value without
    tangent comes from torch's fused attention for CPUs where that is exact.
    """

    formula = "as math, for a block of rows of P at a time; tP = P∘(tS - rowsum(P∘tS)) is one fused step"
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, App. F; Rabe & Staats 2021, arXiv:2112.05682"

    def build(self) -> Operation:
        """Return what composes of :mod:`scmreg_attention.chunked`."""
        return _quicker(composable(chunked.KERNEL), stock.on_the_cpu)


class Triton(Attention, name="triton"):
    """Run one kernel over the keys for the value and its tangent: on a GPU, with linear memory.

    ``auto`` takes it for all that it can do: float32, bfloat16 and float16, head dimensions up to 256. A value without
    tangent, and the gradient of any value, come from torch's fused attention where that is exact; where not, the value
    comes from this kernel and the gradient from plain torch in blocks. The kernel runs on the CPU, slowly, where the
    environment variable ``TRITON_INTERPRET`` is 1.

    The first call for a class of work times several block sizes and keeps the quickest for the process
    (``scmreg_attention.tune.choices()`` says which). They differ in how results are rounded, so nothing is timed
    under ``torch.use_deterministic_algorithms``.
    """

    formula = (
        "as math, in one pass over blocks of keys, with tS - c for tS;"
        " c = scale (tQ·mean K + Q·mean tK), which all keys share, cancels"
    )
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, App. F; Dao 2023, arXiv:2307.08691"

    @classmethod
    def unavailable(cls) -> str | None:
        """Refuse machines without Triton or a GPU that it knows."""
        return fused.unavailable()

    def build(self) -> Operation:
        """Return what composes of :mod:`scmreg_attention.fused`."""
        return _quicker(composable(fused.KERNEL, fused.refuses), stock.on_the_gpu)


def _quicker(operation: Operation, serves: stock.Serves) -> Operation:
    """Return the operation with torch's own attention for values without tangent, where it serves."""
    return operation._replace(forward=functools.partial(stock.forward, operation.forward, serves))


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [Math, Chunked, Triton]
