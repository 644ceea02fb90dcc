"""One case of attention: its shape, its inputs, its work, and the result that others are judged by."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from scmreg.errors import OptionError, UnavailableError
from scmreg.tangent import jvp

__all__ = ["GRAMMAR", "Case", "Judge", "Shape"]

GRAMMAR = (
    "a shape is BxHxLxD: batch, heads, length, head dimension, such as 2x8x1024x64; H/Hk for fewer heads of keys, L/S"
    " for another number of keys: 2x8/2x77/1024x64"
)
_PATTERN = re.compile(r"(\d+)x(\d+)(?:/(\d+))?x(\d+)(?:/(\d+))?x(\d+)")


@dataclass(frozen=True)
class Shape:
    """Sizes of an attention."""

    batch: int
    heads: int
    key_heads: int
    """Heads of keys and values; each is shared by a group of query heads."""
    rows: int
    """Number of queries, ``L``."""
    keys: int
    """Number of keys, ``S``."""
    dim: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read a shape.

        Raises:
            OptionError: if it is none, with the grammar.
        """
        found = _PATTERN.fullmatch(text.strip())
        if found is None:
            raise OptionError([f"'{text}' is no shape of an attention"], GRAMMAR)
        batch, heads, key_heads, rows, keys, dim = (None if part is None else int(part) for part in found.groups())
        sizes = (batch, heads, heads if key_heads is None else key_heads, rows, rows if keys is None else keys, dim)
        shape = cls(*(size or 0 for size in sizes))
        if 0 in sizes:
            raise OptionError([f"shape '{text}' has a size of 0: there is nothing to measure"], GRAMMAR)
        if max(shape.rows * shape.heads, shape.keys * shape.key_heads) * shape.batch * shape.dim >= 2**40:
            raise OptionError([f"shape '{text}' is larger than the memory of any machine"], GRAMMAR)
        if shape.heads % shape.key_heads:
            raise OptionError([f"shape '{text}': {shape.heads} heads cannot share {shape.key_heads} heads of keys"])
        return shape

    def __str__(self) -> str:
        heads = f"{self.heads}" if self.heads == self.key_heads else f"{self.heads}/{self.key_heads}"
        length = f"{self.rows}" if self.rows == self.keys else f"{self.rows}/{self.keys}"
        return f"{self.batch}x{heads}x{length}x{self.dim}"


@dataclass(frozen=True)
class Case:
    """A shape with all else that an attention depends on."""

    shape: Shape
    dtype: torch.dtype
    causal: bool
    device: torch.device

    def inputs(self) -> tuple[Tensor, ...]:
        """Return q, k, v, their tangents and a gradient of the value, all normal, rounded to the dtype."""
        rng = torch.Generator(self.device).manual_seed(0)
        kinds = (self._query, self._key, self._key, self._query, self._key, self._key, self._query)
        return tuple(torch.randn(kind, generator=rng, device=self.device).to(self.dtype) for kind in kinds)

    def blank(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v that hold no memory, to ask who can take them."""
        one = torch.empty(1, dtype=self.dtype, device=self.device)
        return one.expand(self._query), one.expand(self._key), one.expand(self._key)

    @property
    def pairs(self) -> int:
        """Number of pairs of a query and a key that it sees, over batch and heads."""
        shape = self.shape
        seen = shape.rows * shape.keys
        if self.causal:
            # Query i sees i + S - L + 1 keys: an arithmetic series from the first query that sees any.
            first, last = max(1, shape.keys - shape.rows + 1), shape.keys
            seen = (first + last) * (last - first + 1) // 2
        return shape.batch * shape.heads * seen

    @property
    def matrix_bytes(self) -> int:
        """Size of one whole attention matrix."""
        shape = self.shape
        return shape.batch * shape.heads * shape.rows * shape.keys * self.dtype.itemsize

    def check_inputs(self) -> None:
        """Refuse inputs that do not fit, on the CPU, where running out of memory is fatal.

        Raises:
            UnavailableError: with what they need.
        """
        numbers = 3 * math.prod(self._query) + 4 * math.prod(self._key)
        # A copy in float64 judges the results.
        needed, there = numbers * (self.dtype.itemsize + 8), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if self.device.type == "cpu" and needed > there:
            raise UnavailableError(
                f"shape {self.shape} needs {needed / 2**30:.0f} GiB for its inputs, there are {there / 2**30:.0f}",
                "choose a smaller --shape",
            )

    def too_large(self) -> str | None:
        """Say why whole attention matrices do not fit; told on the CPU only, where running out of memory is fatal."""
        if self.device.type != "cpu":
            return None
        needed, there = 4 * self.matrix_bytes, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed < there:
            return None
        return f"its attention matrices need {needed / 2**30:.0f} GiB of memory, there are {there / 2**30:.0f}"

    @property
    def _query(self) -> tuple[int, ...]:
        return (self.shape.batch, self.shape.heads, self.shape.rows, self.shape.dim)

    @property
    def _key(self) -> tuple[int, ...]:
        return (self.shape.batch, self.shape.key_heads, self.shape.keys, self.shape.dim)


HEADS = 4
"""Heads at most that a result is judged on."""
LOGITS = 2**21
"""Elements of the attention matrix of a head at most: there are fewer rows where there are many keys."""


class Judge:
    """Value and tangent in float64, by explicit softmax attention on the rounded inputs.

    They are computed for evenly spaced heads and rows only, so that memory stays bounded.
    """

    def __init__(self, case: Case, inputs: tuple[Tensor, ...]) -> None:
        shape = case.shape
        self.heads = _spread(shape.batch * shape.heads, HEADS).tolist()
        self.rows = _spread(shape.rows, LOGITS // shape.keys)
        # Not every accelerator has float64.
        self.device = case.device if case.device.type == "cuda" else torch.device("cpu")
        self.case = case
        results = [self._explicit(head, inputs) for head in self.heads]
        self.value = torch.stack([value for value, _ in results])
        self.tangent = torch.stack([tangent for _, tangent in results])

    def errors(self, value: Tensor, tangent: Tensor | None) -> tuple[float, float | None]:
        """Return the relative errors of value and tangent, in the Frobenius norm."""
        return self._error(value, self.value), None if tangent is None else self._error(tangent, self.tangent)

    def _error(self, result: Tensor, truth: Tensor) -> float:
        chosen = result.detach().flatten(0, 1)[self.heads][:, self.rows.to(result.device)]
        return float((chosen.to(self.device, torch.float64) - truth).norm() / truth.norm())

    def _explicit(self, head: int, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        shape = self.case.shape
        batch, query_head = divmod(head, shape.heads)
        place = (batch, query_head * shape.key_heads // shape.heads)
        rows = self.rows.to(inputs[0].device)

        def chosen(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
            parts = (q[batch, query_head, rows], k[place], v[place])
            return tuple(x.detach().to(self.device, torch.float64) for x in parts)

        seen = torch.ones(len(rows), shape.keys, dtype=torch.bool, device=self.device)
        if self.case.causal:
            last = self.rows.to(self.device)[:, None] + shape.keys - shape.rows
            seen = torch.arange(shape.keys, device=self.device) <= last
        none = ~seen.any(-1, keepdim=True)

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            logits = (q @ k.mT * shape.dim**-0.5).masked_fill(~seen & ~none, float("-inf"))
            out: Tensor = torch.softmax(logits, dim=-1).masked_fill(none, 0.0) @ v
            return out

        return jvp(attention, chosen(*inputs[:3]), chosen(*inputs[3:6]))


def _spread(count: int, most: int) -> Tensor:
    """Return evenly spaced indices, the first and the last among them."""
    indices: Tensor = torch.linspace(0, count - 1, max(1, min(count, most))).round().long().unique()
    return indices
