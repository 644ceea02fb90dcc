"""The benchmark of samplers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any

import torch
from annotated_types import MinLen
from torch import Tensor, nn

from scmreg.bench.base import CPU, Benchmark, Comparison, in_turns, machine
from scmreg.denoiser import Denoiser
from scmreg.errors import CompositionError
from scmreg.network import Network
from scmreg.process import Process
from scmreg.progress import Progress
from scmreg.registry import registry
from scmreg.sampler import Noise
from scmreg.types import Conditions, Count

__all__ = ["Sampling"]


def _inputs(network: nn.Module, sample: Callable[[], Any]) -> list[tuple[Any, ...]]:
    """Return the inputs of every call of the network while something runs."""
    seen: list[tuple[Any, ...]] = []
    watching = network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    sample()
    watching.remove()
    return seen


def _replay(network: nn.Module, inputs: list[tuple[Any, ...]]) -> None:
    for arguments in inputs:
        network(*arguments)


class _Idle(nn.Module):
    """A network that does nothing."""

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        return x


class Sampling(Benchmark):
    """What solvers and conversion add to the bare calls of the network.

    Each is measured twice: as it is, and with a network that does nothing, which leaves what we add. The noise is drawn
    beforehand.
    """

    name = "sampling"

    network: Network = Network.default("dit")
    """The network that is called."""
    process: Process = Process.default("trigflow")
    """The process that it is sampled under."""
    shape: tuple[Count, ...] = (1, 8, 8)
    """Shape of one sample."""
    batch_size: Count = 64
    """Samples at a time."""
    steps: Count = 4
    """Steps of every solver."""
    samplers: Annotated[tuple[str, ...], MinLen(1)] = (
        "euler",
        "ddim",
        "heun",
        "dpm-solver-2",
        "dpm-solver++-2m",
        "consistency",
    )
    """Samplers to measure, each also under EDM's process by conversion."""

    def run(self, progress: Progress) -> list[Comparison]:
        """Compare each sampler with as many calls of the network on the same inputs."""
        if reason := self.network.unavailable() or self.network.accepts(self.shape):
            raise CompositionError(reason)
        torch.manual_seed(0)
        network = self.network.build(self.shape, 0).eval().requires_grad_(False)
        unit = registry("parameterization").create("unit-variance")
        model = Denoiser(network, self.process, unit)
        edm = registry("process").create("edm", sigma_data=self.process.sigma_data)
        # Through the component, so that conversion is measured where it is not the identity.
        converted = Denoiser(
            network, edm, registry("parameterization").create("converted", of=unit, process=self.process)
        )
        noise = Noise(range(self.batch_size), self.shape)
        drawn = [noise.draw(index) for index in range(self.steps)]
        noise.draw = lambda index=0: drawn[index]  # type: ignore[method-assign]
        comparisons = []
        for name in self.samplers:
            sampler = registry("sampler").create(name).with_steps(self.steps)
            for title, denoiser in ((name, model), (f"{name}, converted to edm", converted)):
                ours = functools.partial(sampler.sample, denoiser, noise, Conditions())
                idle = Denoiser(_Idle(), denoiser.process, denoiser.parameterization)
                alone = functools.partial(sampler.sample, idle, noise, Conditions())
                with torch.no_grad():
                    inputs = _inputs(network, ours)
                    bare = functools.partial(_replay, network, inputs)
                    against = f"{len(inputs)} bare calls"
                    for what, run in ((title, ours), (f"{title}, without the network", alone)):
                        comparisons.append(in_turns(what, run, against, bare, self.rounds, progress))
        return comparisons

    def describe(self) -> str:
        """Say on what was measured."""
        return (
            f"{self.network.name}, batch of {self.batch_size} samples of shape {self.shape}, {self.steps} steps,"
            f" process {self.process.name}; {machine(CPU)}"
        )
