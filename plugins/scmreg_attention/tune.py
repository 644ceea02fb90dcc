"""Which block sizes are quickest on this machine: timed once per process and class of work, on the inputs at hand.

A class never holds a length, so a network of any resolution times a handful. ``triton.autotune`` would not do: its
key is made of values and types of the kernel's arguments, where it cannot tell which tangent is absent, a class of
lengths would have to be an argument, and the chip has no part; and it would time during a capture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Blocks", "Work", "choices", "quickest", "work_of"]


class Blocks(NamedTuple):
    """Sizes of a launch."""

    queries: int
    """Queries of a program; a multiple of 16."""
    keys: int
    """Keys of a step of its loop; a multiple of 16."""
    columns: int
    """Columns of ``o`` and ``to`` that a program has registers for; of more, several programs take a share each."""
    warps: int
    """Warps of a program."""
    stages: int
    """Steps whose keys are in shared memory at a time."""


class Work(NamedTuple):
    """What the quickest sizes depend on."""

    chip: str
    """Name of the device."""
    dtype: torch.dtype
    """Of the inputs."""
    dim: int
    """Head dimension."""
    tangents: str
    """Those of q, k and v that there are, as in ``qk``."""
    causal: bool
    """Whether queries see only earlier keys."""
    key_lengths: bool
    """Whether the batch entries have numbers of keys of their own."""
    waves: str
    """How often the multiprocessors are filled with blocks of 128 queries, see `WAVES`."""
    keys: str
    """Whether the loop over the keys is ``short`` or ``long``, see `LONG`."""


WAVES = {1.0: "one wave at most", 4.0: "few waves"}
"""Classes of the number of blocks per multiprocessor, by the most that each holds; ``many waves`` beyond. In one wave
small blocks keep more of the chip busy, in few the last one may be nearly empty."""
LONG = 1024
"""Number of keys from which the loop over them outweighs what comes before and after it."""
_choices: dict[Work, Blocks] = {}


def choices() -> dict[str, str]:
    """Return the sizes chosen so far in this process, by the work for which they were quickest, both in words."""
    words = {}
    for work, blocks in _choices.items():
        parts = [work.chip, str(work.dtype)[6:], f"head dimension {work.dim}", f"tangents of {work.tangents or 'none'}"]
        parts += ["causal"] * work.causal + ["key lengths"] * work.key_lengths + [work.waves, f"{work.keys} keys"]
        queries, keys, columns, warps, stages = blocks
        sizes = f"{queries} queries x {keys} keys, at most {columns} columns, {warps} warps, {stages} stages"
        words[", ".join(parts)] = sizes
    return words


def work_of(q: Tensor, k: Tensor, tangents: str, causal: bool, key_lengths: bool) -> Work:
    """Return the class of a call with ``q (B, H, L, D)`` and ``k (B, Hk, S, D)`` on a GPU."""
    chip = torch.cuda.get_device_properties(q.device)
    filled = q.shape[0] * q.shape[1] * -(-q.shape[2] // 128) / chip.multi_processor_count
    waves = next((words for most, words in WAVES.items() if filled <= most), "many waves")
    keys = "long" if k.shape[2] >= LONG else "short"
    return Work(chip.name, q.dtype, q.shape[3], tangents, causal, key_lengths, waves, keys)


def quickest(work: Work, candidates: Sequence[Blocks], run: Callable[[Blocks], None]) -> Blocks:
    """Return the candidate that runs quickest, timed at the first call for such work.

    Where nothing may be timed, in the capture of a CUDA graph and where torch is told to be deterministic (sizes
    round differently), it is the first one. Processes that work together choose each for themselves.

    Args:
        work: class of the work.
        candidates: sizes, the best guess first.
        run: does the work, which may be done any number of times.

    Raises:
        triton.TritonError: that of the first candidate, if none can be launched.
    """
    if torch.are_deterministic_algorithms_enabled():
        return candidates[0]
    if work not in _choices:
        if torch.cuda.is_current_stream_capturing():
            return candidates[0]
        _choices[work] = _timed(candidates, run)
    return _choices[work]


def _timed(candidates: Sequence[Blocks], run: Callable[[Blocks], None]) -> Blocks:
    from triton.runtime.errors import OutOfResources, PTXASError
    from triton.testing import do_bench

    times: dict[Blocks, float] = {}
    errors: list[Exception] = []
    for blocks in candidates:
        try:
            # In ms. The median, as the work of others may come between; a kernel longer than this runs a few times.
            times[blocks] = do_bench(partial(run, blocks), warmup=10, rep=40, return_mode="median")
        except (OutOfResources, PTXASError) as error:
            errors.append(error)
        except torch.OutOfMemoryError:
            # Timing takes memory of its own, to empty the cache of the chip.
            return candidates[0]
    if not times:
        raise errors[0]
    return min(times, key=lambda blocks: times[blocks])
