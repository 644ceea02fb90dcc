"""Objectives: what is minimised, and by which steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scmreg.component import Component
from scmreg.data import DataSpec
from scmreg.denoiser import Denoiser
from scmreg.tangent import TangentPass
from scmreg.types import Batch, Conditions
from scmreg.weighting import Space

__all__ = ["Loss", "Objective", "ObjectiveModule", "Phase", "Setup"]

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

    The loop takes one step of every phase whose ``every`` divides the step, in order; that is its only verb.
    """

    name: str
    nets: tuple[str, ...] = ("model",)
    """Networks whose parameters it moves: ``model``, or names of the objective's own networks."""
    own: tuple[str, ...] = ()
    """Modules of the objective whose parameters move along, such as a learned weighting."""
    every: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the trainer that differ in this phase, such as ``learning_rate``."""


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
    """Further per-sample figures to log, each of shape ``(B,)``, without gradient."""


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
    gives: ClassVar[frozenset[str]] = frozenset()
    """Conditions beside the label that it passes to the network."""
    sampler: ClassVar[str] = "heun"
    """Name of the sampler that suits what it trains."""
    trainer: ClassVar[Mapping[str, Any]] = {}
    """Options of the trainer that suit it, in place of the trainer's defaults."""

    @property
    def needs_teacher(self) -> bool:
        """Whether it is built from a trained diffusion model."""
        return False

    @property
    def starts_from_teacher(self) -> bool:
        """Whether training starts from the teacher's averaged weights."""
        return False

    @abstractmethod
    def build(self, setup: Setup) -> ObjectiveModule:
        """Return the module that computes the loss."""
