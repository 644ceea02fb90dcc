"""An attention backend for scmreg: the whole matrix, and its tangent by the product rule.

scm show attention/example
scm run --objective diffusion --network dit --set network.attention=example --set network.width=64 --steps 200
"""

from __future__ import annotations

import scmreg
import torch
from scmreg.attention import AttentionOptions, Operation
from torch import Tensor

scmreg_api = (1, 0)


def refuses(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> str | None:
    """Say what cannot be taken: masks, and heads that share keys."""
    if options.causal or options.key_lengths is not None:
        return "it knows no masks"
    return None if q.shape[1] == k.shape[1] else "it knows no shared heads"


def forward(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
    """Return ``O = softmax(scale Q Kᵀ) V``."""
    return torch.softmax(options.scale * (q @ k.mT), dim=-1) @ v


def forward_jvp(
    q: Tensor, k: Tensor, v: Tensor, tq: Tensor | None, tk: Tensor | None, tv: Tensor | None, options: AttentionOptions
) -> tuple[Tensor, Tensor]:
    """Return ``O`` and its tangent ``tP V + P tV``; a tangent that is ``None`` is zero."""
    p = torch.softmax(options.scale * (q @ k.mT), dim=-1)
    with torch.no_grad():
        ts = torch.zeros_like(p) if tq is None else options.scale * (tq @ k.mT)
        ts = ts if tk is None else ts + options.scale * (q @ tk.mT)
        tangent = p * (ts - (p * ts).sum(-1, keepdim=True)) @ v
        tangent = tangent if tv is None else tangent + p @ tv
    return p @ v, tangent


class Example(scmreg.Attention, name="example"):
    """Compute the whole matrix of attention and, where there are tangents, of its derivative."""

    formula = "P = softmax(S), S = scale Q Kᵀ;  O = P V;  tP = P∘(tS - rowsum(P∘tS)), tO = tP V + P tV"

    def build(self) -> Operation:
        """Return the functions that compute it."""
        return Operation(forward, forward_jvp, refuses)


@scmreg.hookimpl
def scmreg_components() -> list[type[scmreg.Component]]:
    """List what this plugin adds."""
    return [Example]
