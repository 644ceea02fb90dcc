"""A trained model as a program of torch alone: ``torch.export.load`` runs it without this library."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError

import scmreg
from scmreg.denoiser import Denoiser
from scmreg.errors import CompositionError
from scmreg.sample import Run
from scmreg.sampler import OdeSampler, Sampler
from scmreg.types import Conditions

__all__ = ["SOLVERS", "Program", "sampling", "trace"]

SOLVERS = ("ddim", "heun")
"""Solvers of the probability flow that the exported ``sample.py`` knows, beside consistency sampling."""
KNOWN = frozenset({"aten", "prim", "prims", "_operator"})
"""Namespaces of operators that torch itself brings."""
TOLERANCE = 1e-4
"""Largest difference of the program from the model, relative to the largest element: some rounding in float32."""


@dataclass(frozen=True)
class Program:
    """A traced model."""

    exported: Any
    """The ``torch.export.ExportedProgram``."""
    inputs: tuple[str, ...]
    """Names of its inputs."""
    difference: float
    """How far it was from the model when it was tried, relative to the largest element."""

    def save(self, path: Path) -> None:
        """Write the program and its weights."""
        torch.export.save(self.exported, path)


class _Velocity(nn.Module):
    """The velocity of a denoiser as a function of tensors."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, guidance: Tensor | None = None) -> Tensor:
        return self.denoiser.velocity(x, t, Conditions(label=label, guidance=guidance))


def trace(denoiser: Denoiser, shape: tuple[int, ...], *, guidance: bool, name: str) -> Program:
    """Trace the velocity of a denoiser, for any size of the batch, and try the result.

    Args:
        denoiser: the model, on the CPU, in evaluation mode.
        shape: shape of one sample.
        guidance: whether it is told a scale of guidance.
        name: name of the network, for messages.

    Raises:
        CompositionError: if the network cannot be traced, or only into operators that torch does not bring.
    """
    module = _Velocity(denoiser).eval()
    inputs = _inputs(denoiser, shape, 3, guidance)
    batch = {key: {0: torch.export.Dim("batch", min=1)} for key in inputs}
    try:
        logging.disable(logging.ERROR)  # torch logs the traceback of what is told below in words
        exported = torch.export.export(module, (), inputs, dynamic_shapes=batch, strict=True)
    except (TorchDynamoException, ConstraintViolationError) as error:
        lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("Not all values of batch")), lines[0])
        raise CompositionError(
            f"network '{name}' cannot be exported: {reason}",
            "torch.export must be able to trace its forward for any size of the batch",
        ) from None
    finally:
        logging.disable(logging.NOTSET)
    if foreign := sorted(set(_operators(exported.graph_module))):
        raise CompositionError(
            f"network '{name}' cannot be exported: it calls {', '.join(foreign)}, which torch does not bring",
            "whoever loads the program would need what defines it",
        )
    for part in exported.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            for told in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
                node.meta.pop(told, None)  # paths and lines of this machine
    exported.example_inputs = None  # torch would pickle them
    return Program(exported, tuple(inputs), _difference(exported, module, denoiser, shape, guidance))


def _inputs(denoiser: Denoiser, shape: tuple[int, ...], count: int, guidance: bool) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(count)
    inputs = {
        "x": denoiser.process.sigma_data * torch.randn(count, *shape, generator=rng),
        "t": torch.linspace(0.1, 1.5, count, dtype=torch.float64),
    }
    if denoiser.classes:
        inputs["label"] = torch.arange(count) % (denoiser.classes + 1)
    if guidance:
        inputs["guidance"] = torch.linspace(1, 3, count)
    return inputs


def _operators(graph: torch.fx.GraphModule) -> Iterator[str]:
    """Name the operators of a program that torch does not bring."""
    for part in graph.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in KNOWN:
                yield str(node.target)


def _difference(exported: Any, module: nn.Module, denoiser: Denoiser, shape: tuple[int, ...], guidance: bool) -> float:
    """Return how far the program is from the model, for other sizes of the batch than it was traced with."""
    worst = 0.0
    for count in (1, 5):
        inputs = _inputs(denoiser, shape, count, guidance)
        with torch.no_grad():
            ours, theirs = module(**inputs), exported.module()(**inputs)
        worst = max(worst, float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-12)))
    if not worst <= TOLERANCE:
        raise CompositionError(
            f"the exported program differs from the model by {worst:.1e} of its largest output",
            "the network computes something that cannot be traced, such as a branch on values",
        )
    return worst


def sampling(run: Run, sampler: Sampler, denoiser: Denoiser) -> dict[str, Any]:
    """Return what the exported ``sample.py`` needs to know: method, times, scale and conditions.

    Args:
        run: the run.
        sampler: consistency sampling, or one of `SOLVERS`.
        denoiser: the model in TrigFlow coordinates.

    Raises:
        CompositionError: if it is another sampler.
    """
    process, guidance = denoiser.process, getattr(sampler, "guidance", None)
    if sampler.name == "consistency":
        few: Any = sampler  # of a plugin, whose class is not known here
        first = math.atan(min(few.sigma_max, denoiser.highest_level) / process.sigma_data)
        times = [first, *few.intermediate()]
    elif isinstance(sampler, OdeSampler) and sampler.name in SOLVERS:
        own = run.recipe.process
        grid = own.noise_level(sampler.grid(own, denoiser.highest_level)[:-1])
        times = torch.atan(grid / own.sigma_data).tolist()
    else:
        raise CompositionError(
            f"sampler '{sampler.name}' is not among those that the exported sample.py knows",
            f"it knows consistency, {', '.join(SOLVERS)}: choose one by --sampler",
        )
    return {
        "method": sampler.name,
        "times": times,
        "guidance": 1.0 if guidance is None else guidance,
        "sigma_data": process.sigma_data,
        "shape": list(run.spec.shape),
        "classes": list(run.spec.classes),
        "mean": list(run.spec.mean),
        "std": run.spec.std,
        "run": run.folder.resolve().name,
        "scmreg": scmreg.__version__,
        "torch": torch.__version__,
    }
