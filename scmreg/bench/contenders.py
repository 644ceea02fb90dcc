"""Who computes attention: our backends, and what others offer."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from scmreg.attention import AttentionOptions, attend, operation_of
from scmreg.bench.case import Case
from scmreg.registry import registry

__all__ = ["PEERS", "Attend", "Backend", "Contender"]

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(q, k, v) -> o``."""


class Contender(ABC):
    """An implementation of attention."""

    name: str
    tangent: ClassVar[bool] = True
    """Whether it has a tangent; one that has none is timed without."""
    foreign: ClassVar[bool] = True
    """Whether it is not ours, so that what it raises is told and not our bug."""

    def obstacle(self, device: torch.device) -> str | None:
        """Say why it cannot run on the device at all; ``None`` if it can."""
        return None

    def refuses(self, case: Case) -> str | None:
        """Say why it cannot compute a case; ``None`` if it can."""
        return None

    @abstractmethod
    def ways(self, case: Case) -> Mapping[str, Attend]:
        """Return its ways to compute a case by name, of which the quickest is taken; the only one has no name."""


class Backend(Contender):
    """A backend of ours by name."""

    foreign = False

    def __init__(self, name: str) -> None:
        self.name = name

    def obstacle(self, device: torch.device) -> str | None:
        """Repeat what the component says of this machine."""
        reason: str | None = registry("attention")[self.name].unavailable()
        return reason

    def refuses(self, case: Case) -> str | None:
        """Repeat what the operation says of such tensors."""
        reason: str | None = operation_of(self.name).refuses(*case.blank(), AttentionOptions(1.0, case.causal))
        return reason or (case.too_large() if self.name == "math" else None)

    def ways(self, case: Case) -> Mapping[str, Attend]:
        """Return `attend` with this backend."""
        return {"": functools.partial(attend, causal=case.causal, backend=self.name)}


def _stock(kernels: list[SDPBackend] | None, case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    shape = case.shape
    grouped = shape.heads != shape.key_heads
    if kernels is None:
        return scaled_dot_product_attention(q, k, v, is_causal=case.causal, enable_gqa=grouped)
    with sdpa_kernel(kernels):
        return scaled_dot_product_attention(q, k, v, is_causal=case.causal, enable_gqa=grouped)


def _otherwise_aligned(case: Case) -> str | None:
    if case.causal and case.shape.rows != case.shape.keys:
        return "its causal mask is aligned top left: it is another one where the numbers of queries and keys differ"
    return None


class StockMath(Contender):
    """torch's attention by plain products: the only one of torch's that forward-mode differentiation goes through."""

    name = "sdpa-math"

    def refuses(self, case: Case) -> str | None:
        """Refuse another mask, and matrices that do not fit."""
        return _otherwise_aligned(case) or case.too_large()

    def ways(self, case: Case) -> Mapping[str, Attend]:
        """Return the stock function, held to its plain backend."""
        return {"": functools.partial(_stock, [SDPBackend.MATH], case)}


class Stock(Contender):
    """torch's attention without a tangent: the yardstick of what a value costs."""

    name = "sdpa"
    tangent = False

    def refuses(self, case: Case) -> str | None:
        """Refuse another mask."""
        return _otherwise_aligned(case)

    def ways(self, case: Case) -> Mapping[str, Attend]:
        """Return the stock function as it is; on a GPU held to each of its fused kernels, where there is one."""
        if case.device.type != "cuda" or case.dtype == torch.float64:
            return {"": functools.partial(_stock, None, case)}
        kernels = {
            "cuDNN": SDPBackend.CUDNN_ATTENTION,
            "flash": SDPBackend.FLASH_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION,
        }
        return {name: functools.partial(_stock, [kernel], case) for name, kernel in kernels.items()}


class JVPFlashAttention(Contender):
    """The Triton kernel of the package jvp_flash_attention."""

    name = "jvp_flash_attention"
    dims = (32, 64, 128, 256)

    def obstacle(self, device: torch.device) -> str | None:
        """Ask for a GPU and the package."""
        if device.type != "cuda":
            return "needs a CUDA device"
        if importlib.util.find_spec(self.name) is None:
            return "the package is not installed: pip install jvp_flash_attention"
        return None

    def refuses(self, case: Case) -> str | None:
        """Refuse what it would get wrong without a word, or does not take."""
        shape = case.shape
        if shape.heads != shape.key_heads or shape.rows != shape.keys:
            return "it takes as many keys as queries, and as many heads of them"
        if shape.rows % 32:
            return f"it takes lengths that are multiples of 32, not {shape.rows}"
        if shape.dim not in self.dims:
            return f"it takes head dimensions {', '.join(map(str, self.dims))}, not {shape.dim}"
        if case.dtype == torch.float64:
            return "it does not take float64"
        return None

    def ways(self, case: Case) -> Mapping[str, Attend]:
        """Return the function that the package has for `torch.func.jvp`."""
        entry = importlib.import_module("jvp_flash_attention.jvp_attention").JVPAttn.fwd_dual
        return {"": functools.partial(entry, causal=case.causal)}


PEERS: dict[str, Contender] = {made.name: made for made in (Stock(), StockMath(), JVPFlashAttention())}
"""What others offer, by name."""
