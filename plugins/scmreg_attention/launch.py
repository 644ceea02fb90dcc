"""How the kernels of :mod:`scmreg_attention.kernel` are launched: tiles, candidate block sizes and arguments.

Which candidate is taken is up to :mod:`scmreg_attention.tune`. No argument that is known at compile time depends on a
length or a batch size, so a network compiles its kernels once. Without a GPU the same arguments, given to the compiler,
show the registers and the shared memory that a launch will use.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

from scmreg_attention import tune
from scmreg_attention.tune import Blocks

__all__ = ["architecture", "arguments", "arguments_of_means", "candidates", "tiles"]


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
    for name, x, tx in (("mean_k", inputs["k"], tq), ("mean_tk", inputs["tk"], tk)):
        inputs[name] = None if x is None or tx is None else _means(x, lengths)

    def run(size: Blocks) -> None:
        programs, keywords = arguments(inputs, results, size, scale=scale, causal=causal, architecture=chip)
        kernel.attention[(programs,)](**keywords)

    tangents = "".join(name for name in "qkv" if inputs[f"t{name}"] is not None)
    sizes = candidates(q.shape[3], q.element_size(), chip, tangents != "")
    if len(sizes) == 1:
        run(sizes[0])
    else:
        run(tune.quickest(tune.work_of(q, k, tangents, causal, lengths is not None), sizes, run))


def _means(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Return the means over the keys that are seen, ``(B, Hk, D)``, float32."""
    from scmreg_attention import kernel

    mean = x.new_empty((x.shape[0], x.shape[1], x.shape[3]), dtype=torch.float32)
    programs, keywords = arguments_of_means(x, lengths, mean)
    kernel.means[(programs,)](**keywords)
    return mean


INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")
"""Whether the kernels run in Triton's interpreter, on the CPU."""
NAMES = ("q", "k", "v", "tq", "tk", "tv")


def _reachable(x: Tensor) -> Tensor:
    """Return the tensor, or a copy if its rows or columns are so far apart that a tile exceeds 32 bits."""
    return x if max(x.stride()[2:]) < 2**23 else x.contiguous()


Rows = list[tuple[int, *tuple[Blocks, ...]]]
Table = dict[tuple[str, int], Rows]

# The key is the family of chips and the size of an element in bytes; the first row whose head dimension suffices is
# taken, its candidates from the best guess on. Two accumulators of 128 columns, 32 keys of S and of tS and their
# rounded copies are what 255 registers hold of 64 queries per 4 warps; 64 keys are better where they fit, and a third
# stage hides the latency of the loads. Programs of 64 queries fit a multiprocessor twice, each in the other's pauses,
# and leave none idle where there is little work. All were chosen by what the compiler reports, not by time.
DUAL: Table = {
    ("hopper", 2): [
        (64, Blocks(128, 64, 96, 8, 3), Blocks(64, 64, 96, 4, 3), Blocks(128, 32, 96, 8, 4), Blocks(64, 32, 96, 4, 4)),
        (96, Blocks(128, 64, 96, 8, 3), Blocks(64, 32, 96, 4, 3), Blocks(128, 32, 96, 8, 4), Blocks(64, 64, 96, 8, 3)),
        (128, Blocks(128, 32, 128, 8, 4), Blocks(64, 16, 128, 4, 4), Blocks(64, 32, 128, 8, 4)),
        (192, Blocks(128, 32, 96, 8, 3), Blocks(64, 32, 96, 8, 3), Blocks(64, 16, 96, 4, 3)),
        (256, Blocks(128, 16, 128, 8, 3), Blocks(64, 16, 128, 4, 3), Blocks(128, 16, 64, 8, 3)),
    ],
    ("hopper", 4): [
        (64, Blocks(64, 16, 64, 4, 2), Blocks(64, 16, 64, 8, 2)),
        (96, Blocks(64, 16, 48, 4, 2), Blocks(64, 16, 48, 8, 2)),
        (128, Blocks(64, 16, 64, 4, 3), Blocks(64, 16, 32, 4, 2)),
        (256, Blocks(64, 16, 32, 4, 1)),
    ],
    ("blackwell", 2): [
        (128, Blocks(128, 32, 128, 8, 3), Blocks(64, 32, 128, 4, 3), Blocks(128, 16, 128, 8, 4)),
        (256, Blocks(128, 16, 128, 8, 3), Blocks(64, 16, 128, 4, 3)),
    ],
    ("blackwell", 4): [
        (64, Blocks(64, 16, 64, 8, 2), Blocks(64, 16, 64, 4, 2)),
        (128, Blocks(64, 16, 32, 8, 1), Blocks(64, 16, 32, 4, 1)),
        # 64 queries exceed the memory of the tensor cores.
        (256, Blocks(16, 16, 64, 8, 1)),
    ],
    ("ampere", 2): [
        (96, Blocks(128, 32, 96, 8, 3), Blocks(64, 32, 96, 4, 3)),
        (128, Blocks(128, 16, 128, 8, 3), Blocks(64, 32, 64, 4, 2)),
        (256, Blocks(64, 16, 64, 4, 2), Blocks(64, 16, 128, 8, 2)),
    ],
    ("ampere", 4): [
        (64, Blocks(64, 16, 64, 8, 2), Blocks(32, 16, 64, 4, 2)),
        (128, Blocks(16, 16, 64, 4, 1), Blocks(32, 16, 32, 4, 1)),
        (256, Blocks(16, 16, 64, 4, 1), Blocks(16, 16, 64, 8, 1)),
    ],
    ("cdna", 2): [
        (96, Blocks(128, 32, 96, 4, 1), Blocks(64, 32, 96, 4, 1), Blocks(128, 32, 96, 8, 1)),
        (256, Blocks(128, 16, 64, 4, 1), Blocks(64, 16, 64, 4, 1)),
    ],
    ("cdna", 4): [
        (64, Blocks(64, 32, 64, 4, 1), Blocks(64, 16, 64, 4, 1)),
        (256, Blocks(64, 16, 64, 4, 1), Blocks(64, 16, 32, 4, 1)),
    ],
    ("interpreter", 2): [(256, Blocks(64, 64, 128, 4, 1))],
    ("interpreter", 4): [(256, Blocks(64, 64, 128, 4, 1))],
}
# Without tangents there is one accumulator; where nothing is said here, the sizes are those with tangents.
SINGLE: Table = {
    ("hopper", 2): [
        (64, Blocks(128, 128, 64, 8, 3), Blocks(128, 64, 64, 8, 3), Blocks(64, 64, 64, 4, 3)),
        (128, Blocks(128, 128, 128, 8, 2), Blocks(128, 64, 128, 8, 3), Blocks(64, 64, 128, 8, 3)),
        (256, Blocks(128, 64, 256, 8, 2), Blocks(64, 64, 256, 8, 2)),
    ],
}


@cache
def candidates(dim: int, itemsize: int, architecture: str, dual: bool) -> list[Blocks]:
    """Return the sizes for a head dimension, the best guess first; ``dual`` says whether there are tangents."""
    key = (architecture, itemsize)
    rows = DUAL[key] if dual else SINGLE.get(key, DUAL[key])
    return next(sizes for largest, *sizes in rows if dim <= largest)


def precision(dim: int, itemsize: int, architecture: str) -> str:
    """Return how a product of float32 matrices is made of those that tensor cores can do; no matter in 16 bits."""
    if itemsize == 2 or architecture in ("cdna", "interpreter"):
        return "ieee"
    # Three terms of bfloat16 take less shared memory than two of tf32.
    return "bf16x6" if architecture == "hopper" and dim > 192 else "tf32x3"


@cache
def tiles(columns: int) -> tuple[int, int]:
    """Return the widths, powers of two, of the two tiles that cover so many columns with the least to spare.

    The second is 0 if one tile does as well. ``72`` is covered by ``(64, 16)``, ``40`` by ``(32, 16)``.
    """
    sizes = (16, 32, 64, 128, 256)
    pairs = [(first, second) for first in sizes for second in (0, *sizes) if second <= first]
    return min((pair for pair in pairs if sum(pair) >= columns), key=lambda pair: (sum(pair), pair[1]))


@cache
def architecture(device: torch.device) -> str:
    """Return the family of chips that the sizes depend on."""
    if INTERPRETED:
        return "interpreter"
    if torch.version.hip is not None:
        return "cdna"
    # Chips of another kind than these have no instructions of their own for whole warp groups, and less memory.
    return {9: "hopper", 10: "blackwell"}.get(torch.cuda.get_device_capability(device)[0], "ampere")


def arguments(
    inputs: dict[str, Tensor | None],
    results: tuple[Tensor, Tensor, Tensor],
    size: Blocks,
    *,
    scale: float,
    causal: bool,
    architecture: str,
) -> tuple[int, dict[str, Any]]:
    """Return the number of programs and the keyword arguments of :func:`scmreg_attention.kernel.attention`.

    Args:
        inputs: ``q, k, v, tq, tk, tv, mean_k, mean_tk, lengths`` by name; ``None`` where there is none.
        results: ``o, to, lse`` to be filled.
        size: block sizes, one of :func:`candidates`.
        scale: positive factor of the logits.
        causal: whether queries see only earlier keys.
        architecture: of the device, see :func:`architecture`.
    """
    q, k = inputs["q"], inputs["k"]
    assert q is not None and k is not None  # noqa: PT018
    _, heads, length, dim = q.shape
    shares = -(-dim // size.columns)
    share = dim if shares == 1 else -(-dim // shares // 16) * 16
    inner, outer = tiles(dim), tiles(share)
    strided = {name: inputs[name] for name in ("q", "k", "v", "tq", "tk", "tv")} | {"o": results[0]}
    unit = _unit(strided)
    strides = {
        f"{name}_{axis}": 0 if x is None else x.stride(i) // (1 if axis == "d" else unit)
        for name, x in strided.items()
        for i, axis in enumerate("bhld")
    }
    programs = q.shape[0] * heads * -(-length // size.queries) * -(-dim // share)
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
        **{"D": dim, "D0": inner[0], "D1": inner[1], "E": share, "E0": outer[0], "E1": outer[1]},
        "UNIT": unit,
        "PRECISION": precision(dim, q.element_size(), architecture),
        "PTX": architecture in ("hopper", "blackwell", "ampere"),
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
