"""The benchmark of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import MinLen

from scmreg import options
from scmreg.bench.base import Benchmark, Comparison, in_turns, machine
from scmreg.data import Dataset, DataSpec, TensorSplit
from scmreg.errors import OptionError
from scmreg.network import Network
from scmreg.objective import Objective
from scmreg.progress import Progress
from scmreg.recipe import Recipe, Trainer
from scmreg.registry import registry
from scmreg.rng import generator
from scmreg.tangent import TangentPass
from scmreg.train import build_denoiser, cpu_threads, resolve_device, stepper
from scmreg.types import Count, NonNegativeInt

__all__ = ["Step"]


class Step(Benchmark):
    """A whole training step of a student beside one of its teacher, on the same network, data and batch.

    A step is the training loop's own: loss, gradient, optimizer, averaged weights. The teacher is trained by
    ``diffusion``. The data are random, and so are the weights of the teacher: neither changes what a step takes.
    """

    name = "step"

    network: Network = Network.default("dit")
    """What is trained."""
    shape: Annotated[tuple[Count, ...], MinLen(1)] = (1, 8, 8)
    """Shape of one sample: (C, H, W) for images, (D,) for points."""
    classes: NonNegativeInt = 10
    """Number of classes that samples are labelled with."""
    batch_size: Count = 128
    """Samples in a step."""
    objectives: tuple[Objective, ...] = Objective.defaults("sct", "scd")
    """Objectives of the student, each with its own optimizer."""
    passes: Annotated[tuple[TangentPass, ...], MinLen(1)] = ("joint", "separate")
    """Whether value and JVP come from one pass or from two."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of matrix products."""
    compile: bool = False
    """Whether the network is compiled by torch.compile."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.objectives:
            raise OptionError(["step.objectives is empty: there is nothing to measure"])

    def run(self, progress: Progress) -> Sequence[Comparison]:
        """Compare a step of every objective and pass with a step of the teacher.

        Raises:
            CompositionError: if the network, the objective and the shape do not fit together.
        """
        dataset = self._dataset()
        recipes = [
            self._recipe(objective, tangent_pass) for objective in self.objectives for tangent_pass in self.passes
        ]
        taught = self._recipe(registry("objective").create("diffusion"), "joint")
        for recipe in (taught, *recipes):
            recipe.check(dataset.spec)
        device = resolve_device(self.device)
        teacher = build_denoiser(taught, dataset.spec.shape, self.classes)
        random = [device] if device.type == "cuda" else []
        comparisons = []
        with cpu_threads(taught.trainer, teacher), torch.random.fork_rng(devices=random):
            theirs = stepper(taught, dataset)
            for recipe in recipes:
                title = f"{recipe.objective.title}, {recipe.trainer.tangent_pass}"
                ours = stepper(recipe, dataset, teacher if recipe.objective.needs_teacher else None)
                comparisons.append(in_turns(title, ours, "diffusion", theirs, self.rounds, progress, device))
        return comparisons

    def describe(self) -> str:
        """Say on what is measured."""
        taught = self._recipe(registry("objective").create("diffusion"), "joint")
        network = build_denoiser(taught, self.shape, self.classes)
        millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        with cpu_threads(taught.trainer, network):
            where = machine(resolve_device(self.device))
        return (
            f"{self.network.name} of {millions:.2f} million parameters, batch of {self.batch_size} samples of shape"
            f" {self.shape}, {self.precision}{', compiled' if self.compile else ''}; {where}"
        )

    def _recipe(self, objective: Objective, tangent_pass: TangentPass) -> Recipe:
        said: dict[str, Any] = {
            "batch_size": self.batch_size,
            "precision": self.precision,
            "device": self.device,
            "compile": self.compile,
            "tangent_pass": tangent_pass,
        }
        trainer = options.build(Trainer, {**objective.trainer, **said})
        return Recipe(network=self.network, objective=objective, trainer=trainer)

    def _dataset(self) -> Dataset:
        """Return random data, as many as there are in a batch."""
        rng = generator(0, "benchmark")
        x = torch.randn(self.batch_size, *self.shape, generator=rng)
        labels = torch.randint(self.classes, (len(x),), generator=rng) if self.classes else None
        names = tuple(str(label) for label in range(self.classes))
        spec = DataSpec("random", self.shape, "image" if len(self.shape) == 3 else "points", names)
        split = TensorSplit(x, labels)
        return Dataset(spec, split, split, digest="")
