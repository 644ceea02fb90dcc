"""Attention backends in plain torch: the reference, and one with linear memory."""

from __future__ import annotations

from torch import Tensor

from scmreg.attention import Attention, AttentionOptions
from scmreg.component import Component
from scmreg.hookspecs import hookimpl
from scmreg.types import Count
from scmreg_attention import chunked, explicit

__all__ = ["Chunked", "Math"]


class Math(Attention, name="math"):
    """Compute the whole attention matrix: the reference on any device, with memory quadratic in the length."""

    formula = "P = softmax(S), S = scale Q Kᵀ;  O = P V;  tO = (P∘tS) V - rowsum(P∘tS)∘O + P tV"
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, App. F"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
        """Return ``O``."""
        return explicit.forward(q, k, v, options)

    def forward_jvp(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tq: Tensor | None,
        tk: Tensor | None,
        tv: Tensor | None,
        options: AttentionOptions,
    ) -> tuple[Tensor, Tensor]:
        """Return ``(O, tO)``."""
        return explicit.forward_jvp(q, k, v, tq, tk, tv, options)


class Chunked(Attention, name="chunked"):
    """Run over the keys in chunks with an online softmax: memory linear in the length, on any device."""

    formula = (
        "running maximum m; running sums of e^{S-m}, e^{S-m} V, e^{S-m} (tS V + tV), e^{S-m} tS over chunks of keys"
    )
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, App. F; Dao et al. 2022, arXiv:2205.14135"

    chunk: Count = 256
    """Number of keys at a time."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
        """Return ``O``."""
        return chunked.forward(q, k, v, options, self.chunk)

    def forward_jvp(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tq: Tensor | None,
        tk: Tensor | None,
        tv: Tensor | None,
        options: AttentionOptions,
    ) -> tuple[Tensor, Tensor]:
        """Return ``(O, tO)``."""
        return chunked.forward_jvp(q, k, v, tq, tk, tv, options, self.chunk)


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [Math, Chunked]
