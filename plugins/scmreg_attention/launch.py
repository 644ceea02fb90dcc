"""How the kernels of :mod:`scmreg_attention.kernel` are launched: tiles, block sizes and arguments.

Nothing here depends on a length or a batch size, so a network compiles its kernels once. Without a GPU the same
arguments, given to the compiler, show the registers and the shared memory that a launch will use.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Blocks", "architecture", "arguments", "arguments_of_means", "blocks", "tiles"]


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    key_lengths: Tensor | None,
    results: tuple[Tensor, Tensor, Tensor],
    scale: float,
    causal: bool,
) -> None:
    """Fill ``results = (o, to, lse)`` on the current device; ``to`` is not touched without tangents."""
    from scmreg_attention import kernel

    chip = architecture(q.device)
    inputs = {name: x if x is None else _reachable(x) for name, x in zip(NAMES, (q, k, v, tq, tk, tv), strict=True)}
    inputs["lengths"] = lengths = None if key_lengths is None else key_lengths.contiguous()
    for mean, x, moving in (("mean_k", inputs["k"], tq), ("mean_tk", inputs["tk"], tk)):
        inputs[mean] = None
        if x is not None and moving is not None:
            inputs[mean] = x.new_empty((x.shape[0], x.shape[1], x.shape[3]), dtype=torch.float32)
            programs, keywords = arguments_of_means(x, lengths, inputs[mean])
            kernel.means[(programs,)](**keywords)
    programs, keywords = arguments(inputs, results, scale=scale, causal=causal, architecture=chip)
    kernel.attention[(programs,)](**keywords)


NAMES = ("q", "k", "v", "tq", "tk", "tv")


def _reachable(x: Tensor) -> Tensor:
    """Return the tensor, or a copy if its rows or columns are so far apart that a tile exceeds 32 bits."""
    return x if max(x.stride()[2:]) < 2**23 else x.contiguous()


class Blocks(NamedTuple):
    """Block sizes of a launch."""

    queries: int
    """Queries of a program; a multiple of 16."""
    keys: int
    """Keys of a step of its loop."""
    warps: int
    """Warps of a program."""
    stages: int
    """Steps whose keys are in shared memory at a time."""


def blocks(dim: int, itemsize: int, architecture: str, dual: bool) -> Blocks:
    """Return the block sizes for a head dimension; ``dual`` says whether there are tangents."""
    return Blocks(128, 64, 8, 2)


def tiles(columns: int) -> tuple[int, int]:
    """Return the widths, powers of two, of the two tiles that cover so many columns with the least to spare.

    The second is 0 if one tile does as well. ``72`` is covered by ``(64, 16)``, ``40`` by ``(32, 16)``.
    """
    sizes = [size for size in (16, 32, 64, 128, 256) if size < 2 * columns or size == 16]
    choices = [(first, second) for first in sizes for second in (0, *sizes) if second <= min(first, 128)]
    return min((c for c in choices if sum(c) >= columns), key=lambda c: (sum(c), c[1]))


@cache
def architecture(device: torch.device) -> str:
    """Return the family of chips that the block sizes and the precision of float32 depend on."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip is not None:
        return "cdna"
    major, minor = torch.cuda.get_device_capability(device)
    if major in (9, 10):
        return "hopper"
    return "ampere" if (major, minor) in ((8, 0), (8, 7)) else "small"


PRECISION = {"hopper": "tf32x3", "ampere": "tf32x3", "small": "tf32x3", "cdna": "bf16x6", "interpreter": "ieee"}
"""How a product of float32 matrices is made of those that tensor cores can do; without effect in 16 bits."""


def arguments(
    inputs: dict[str, Tensor | None],
    results: tuple[Tensor, Tensor, Tensor],
    *,
    scale: float,
    causal: bool,
    architecture: str,
) -> tuple[int, dict[str, Any]]:
    """Return the number of programs and the keyword arguments of :func:`scmreg_attention.kernel.attention`.

    Args:
        inputs: ``q, k, v, tq, tk, tv, mean_k, mean_tk, lengths`` by name; ``None`` where there is none.
        results: ``o, to, lse`` to be filled.
        scale: positive factor of the logits.
        causal: whether queries see only earlier keys.
        architecture: of the device, see :func:`architecture`.
    """
    q, k = inputs["q"], inputs["k"]
    assert q is not None and k is not None  # noqa: PT018
    _, heads, length, dim = q.shape
    # Beyond 128 columns of o and to a program has no registers for both accumulators: two programs share the columns.
    part = dim if dim <= 128 else -(-dim // 32) * 16
    tall, wide = tiles(dim), tiles(part)
    size = blocks(dim, q.element_size(), architecture, inputs["tq"] is not None)
    strided = {name: inputs[name] for name in ("q", "k", "v", "tq", "tk", "tv")} | {"o": results[0]}
    unit = _unit(strided)
    strides = {
        f"{name}_{axis}": 0 if x is None else x.stride(i) // (1 if axis == "d" else unit)
        for name, x in strided.items()
        for i, axis in enumerate("bhld")
    }
    programs = q.shape[0] * heads * -(-length // size.queries) * -(-dim // part)
    return programs, {
        **{name.upper(): x for name, x in inputs.items()},
        **dict(zip(("O", "TO", "LSE"), results, strict=True)),
        **strides,
        "scale": scale,
        "heads": heads,
        "groups": heads // k.shape[1],
        "L": length,
        "S": k.shape[2],
        "CAUSAL": causal,
        **{"D": dim, "D0": tall[0], "D1": tall[1], "E": part, "E0": wide[0], "E1": wide[1]},
        "UNIT": unit,
        "PRECISION": PRECISION[architecture],
        "BLOCK_M": size.queries,
        "BLOCK_N": size.keys,
        "num_warps": size.warps,
        "num_stages": size.stages,
    }


def arguments_of_means(x: Tensor, lengths: Tensor | None, mean: Tensor) -> tuple[int, dict[str, Any]]:
    """Return the same of :func:`scmreg_attention.kernel.means`, for ``x (B, Hk, S, D)`` and ``mean (B, Hk, D)``."""
    batch, heads, length, dim = x.shape
    unit = _unit({"x": x})
    return batch * heads, {
        "X": x,
        "LENGTHS": lengths,
        "MEAN": mean,
        **{f"x_{axis}": x.stride(i) // (1 if axis == "d" else unit) for i, axis in enumerate("bhld")},
        "heads": heads,
        "S": length,
        "D": dim,
        "UNIT": unit,
        "BLOCK_N": 64,
        "BLOCK_D": max(16, 1 << (dim - 1).bit_length()),
        "num_warps": 8,
    }


def _unit(tensors: dict[str, Tensor | None]) -> int:
    """Return the number of elements that strides are counted in: 16 bytes if all are multiples, else one.

    Triton recognises multiples of 16 alone, which the strides of 72 columns are not, though 16-byte loads fit them.
    """
    given = [x for x in tensors.values() if x is not None]
    unit = 16 // given[0].element_size()
    return unit if all(stride % unit == 0 for x in given for stride in x.stride()[:3]) else 1
