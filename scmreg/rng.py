"""Random numbers as a function of where they are used, not of what was drawn before.

Every stream is seeded by a key such as ``(seed, "train", step)``. A run that is resumed at step ``k`` therefore draws
what the uninterrupted run drew, with no generator state to save, and sample ``i`` is the same in any batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["derive", "generator", "rewound", "sample_noise"]


def derive(*key: int | str) -> int:
    """Return a 63-bit seed that depends on the whole key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator seeded by the key."""
    return torch.Generator(device=device).manual_seed(derive(*key))


def sample_noise(
    seeds: Sequence[int], shape: Sequence[int], draw: int = 0, *, device: torch.device | str = "cpu"
) -> Tensor:
    """Return standard normal noise, shape ``(len(seeds), *shape)``, whose row ``i`` depends on ``seeds[i]`` alone.

    Args:
        seeds: one seed per sample.
        shape: shape of one sample.
        draw: which draw of the sample; 0 is the initial noise, later ones are for stochastic samplers.
        device: where the result is put; the numbers are drawn on the CPU, so they are the same on every device.
    """
    noise = torch.empty(len(seeds), *shape)
    for row, seed in zip(noise, seeds, strict=True):
        row.normal_(generator=generator(int(seed), "sample", draw))
    return noise.to(device)


@contextmanager
def rewound(device: torch.device) -> Iterator[None]:
    """Put the global random state back, after the block, to what it was before it.

    A network that is evaluated within the block and once more after it so draws the same numbers both times, such as
    one dropout mask for both.

    Args:
        device: where the network computes; its generator is put back beside that of the CPU.
    """
    # The state of the CPU moves too: compiled code draws the seeds of an accelerator from it.
    modules = [torch] if device.type == "cpu" else [torch, torch.get_device_module(device)]
    where: list[tuple[torch.device, ...]] = [(), (device,)]
    states = [module.get_rng_state(*at) for module, at in zip(modules, where, strict=False)]
    try:
        yield
    finally:
        for module, state, at in zip(modules, states, where, strict=False):
            module.set_rng_state(state, *at)
