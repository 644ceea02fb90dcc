"""Objectives: what is minimised, and by which steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from scmreg.component import Component
from scmreg.data import DataSpec
from scmreg.denoiser import Denoiser
from scmreg.process import Process
from scmreg.registry import registry
from scmreg.sampler import Sampler
from scmreg.tangent import TangentPass
from scmreg.types import Batch, Conditions
from scmreg.weighting import Space

__all__ = ["Loss", "Objective", "ObjectiveModule", "Phase", "Setup", "Student"]

Nets = Mapping[str, Callable[[Tensor, Tensor, Conditions], Tensor]]


@dataclass(frozen=True)
class Setup:
    """What an objective is built from."""

    denoiser: Denoiser
    """The model to train; its formulas, not the callable that the loop may have wrapped."""
    spec: DataSpec
    """Shape and classes of the data."""
    teacher: Denoiser | None = None
    """A trained diffusion model in evaluation mode, without gradient."""
    tangent_pass: TangentPass = "joint"
    """How value and JVP are taken (see :func:`scmreg.tangent.evaluate_with_jvp`)."""
    compiled: bool = False
    """Whether the JVP is compiled."""
    steps: int | None = None
    """Steps of the whole training, ``None`` where nobody knows: what follows a curriculum needs to be told."""


@dataclass(frozen=True)
class Phase:
    """One optimizer of the training and the networks that it moves.

    The loop takes one step of every phase that is due, in order; that is its only verb. A module within a module of the
    objective is named by its path, as in ``terms.0.weighting``.
    """

    name: str
    nets: tuple[str, ...] = ("model",)
    """Networks whose parameters it moves: ``model``, or names of the objective's own networks."""
    own: tuple[str, ...] = ()
    """Modules of the objective whose parameters move along, such as a learned weighting."""
    every: int = 1
    """It is due in the steps that this divides, counted from 1."""
    rate: float = 1.0
    """Its learning rate, as a multiple of the trainer's: that of a network which has to keep up with the model, say."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the trainer that differ in this phase, such as ``clip``."""

    def due(self, step: int) -> bool:
        """Whether it takes its step after ``step`` steps."""
        return (step + 1) % self.every == 0


@dataclass(frozen=True)
class Loss:
    """What one evaluation of an objective returns."""

    total: Tensor
    """Scalar to be minimised."""
    per_sample: Tensor
    """Unweighted loss of each sample, shape ``(B,)``, without gradient."""
    t_hat: Tensor
    """TrigFlow time of each sample, shape ``(B,)``."""
    logs: Mapping[str, Tensor] = field(default_factory=dict)
    """Further per-sample figures to log, each of shape ``(B,)``, without gradient. Names are free; ``weight`` (what
    `per_sample` is multiplied with), ``tangent_norm`` and ``target_norm`` (of what the network's velocity is regressed
    onto) are known to the report."""
    parts: Mapping[str, Loss] = field(default_factory=dict)
    """The losses that this one is a sum of, by name, each with its own times and figures."""

    def __post_init__(self) -> None:
        for name, value in {"t_hat": self.t_hat, **self.logs}.items():
            if value.shape != self.per_sample.shape or value.ndim != 1:
                raise ValueError(
                    f"Loss: '{name}' has shape {tuple(value.shape)} and per_sample {tuple(self.per_sample.shape)},"
                    " but each is one number per sample"
                )

    def by_name(self, prefix: str = "") -> Iterator[tuple[str, Loss]]:
        """Yield every part, or the loss itself where it is no sum, each with a prefix for the names of its figures."""
        if not self.parts:
            yield prefix, self
        for name, part in self.parts.items():
            yield from part.by_name(f"{prefix}{name}_")


class ObjectiveModule(nn.Module):
    """A built objective. It may own networks, which the loop trains and saves with the model.

    Args:
        setup: kept as ``self.setup``; the model and the teacher in it are used, not owned.
    """

    phases: tuple[Phase, ...] = (Phase("main"),)

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.setup = setup

    def loss(self, phase: str, nets: Nets, batch: Batch, step: int, rng: torch.Generator) -> Loss:
        """Return the loss of one phase.

        Args:
            phase: name of the phase.
            nets: the loop's callables by name, possibly wrapped; call these, never the bare module.
            batch: training data.
            step: steps taken before this one.
            rng: where times and noise are drawn from.
        """
        raise NotImplementedError

    def diagnose(
        self, phase: str, nets: Nets, batch: Batch, t_hat: Tensor, step: int, rng: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Return further figures at given times, for the log: such as are too dear for every step.

        Called without gradient at steps that are logged, on one sample for each bin of time. There are none unless an
        objective has more to tell.

        Args:
            phase: name of the phase.
            nets: the loop's callables by name, possibly wrapped.
            batch: as many samples of training data as there are times.
            t_hat: TrigFlow times, shape ``(B,)``, from 0 to pi/2 in equal steps; a process may end before the last.
            step: steps taken so far.
            rng: where noise is drawn from.

        Returns:
            Figures by name, each of shape ``(B,)``.
        """
        return {}


class Objective(Component, kind="objective"):
    """A training objective on any process that fits."""

    needs_boundary: ClassVar[bool] = False
    """Whether ``f(x, 0) = x`` must hold."""
    few_step: ClassVar[bool] = False
    """Whether the result is a model for few-step sampling, to be compared with its teacher."""
    space: ClassVar[Space] = "own"
    """What its loss is the squared size of: an error of the unit velocity (``unit``), of the data (``data``), or
    something else (``own``). Weightings are stated in one of them (see :mod:`scmreg.weighting`)."""
    pairs: ClassVar[bool] = False
    """Whether it tells its weighting of an earlier time, and of the difference that its loss is the size of."""
    sampler: ClassVar[str] = "heun"
    """Name of the sampler that suits what it trains."""
    trainer: ClassVar[Mapping[str, Any]] = {}
    """Options of the trainer that suit it, in place of the trainer's defaults."""

    @property
    def gives(self) -> frozenset[str]:
        """Conditions beside the label that it passes to the network; ``target_time`` makes a model of two times."""
        return frozenset()

    @property
    def title(self) -> str:
        """What runs are called after, and random draws are keyed by: the name, or those of the terms of a sum."""
        return self.name

    @property
    def needs_teacher(self) -> bool:
        """Whether it is built from a trained diffusion model."""
        return False

    @property
    def starts_from_teacher(self) -> bool:
        """Whether training starts from the teacher's averaged weights."""
        return False

    def suited_sampler(self, process: Process) -> Sampler:
        """Return the sampler that suits what it trains, where a recipe names none."""
        made: Sampler = registry("sampler").create(self.sampler)
        return made

    def drawn_by(self, sampler: Sampler, process: Process) -> str | None:
        """Say why a sampler cannot draw samples of what it trains; ``None`` if it can."""
        return None

    def accepts(self, spec: DataSpec) -> str | None:
        """Say why it cannot train on such data; ``None`` if it can."""
        return None

    def taught_by(self, objective: Objective) -> str | None:
        """Say why a diffusion model that another objective trains cannot be its teacher; ``None`` if it can."""
        return None

    def judged_steps(self, asked: tuple[int, ...]) -> tuple[int, ...]:
        """Return the numbers of steps that a few-step model is judged with, of those that are asked for."""
        return asked

    @abstractmethod
    def build(self, setup: Setup) -> ObjectiveModule:
        """Return the module that computes the loss."""


class Student(Objective):
    """An objective that makes a few-step model, out of a diffusion model or from fresh weights."""

    needs_boundary = True
    few_step = True
    sampler = "consistency"
    trainer = {
        "optimizer": "Adam",
        "optimizer_options": {"betas": [0.9, 0.99], "fused": True},
        "learning_rate": 2e-3,
        "steps": 4500,
        "batch_size": 128,
    }

    start: Literal["auto", "teacher", "scratch"] = "auto"
    """Whether training starts from the averaged weights of a diffusion model or from fresh ones; auto takes the
    teacher's where it has any, which an exact one has not."""

    @property
    def needs_teacher(self) -> bool:
        """Whether training starts from one."""
        return self.start != "scratch"

    @property
    def starts_from_teacher(self) -> bool:
        """Whether training starts from the teacher's weights, if it has any."""
        return self.start != "scratch"

    def fits(self, recipe: Any) -> str | None:
        """Refuse to start from the weights of a teacher that has none."""
        if self.start == "teacher" and recipe.teacher.source == "exact":
            return (
                f"start of '{self.name}' is 'teacher', but an exact teacher has no weights: set it to scratch, or auto"
            )
        return None
