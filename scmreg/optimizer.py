"""Optimizers: by their name in torch.optim, their learning rate by step, their state as tensors and plain values."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scmreg.errors import OptionError, did_you_mean
from scmreg.objective import Phase
from scmreg.recipe import Trainer

__all__ = ["decay", "load_state", "make_optimizer", "options_of_phase", "state_tensors"]

_NOT_FOR_US = frozenset({"Optimizer", "LBFGS", "SparseAdam"})
"""The base class, and optimizers that need a closure or sparse gradients."""


def make_optimizer(trainer: Trainer, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer that the trainer names.

    Raises:
        OptionError: if torch.optim has none of that name, or it refuses its options.
    """
    known = {
        name.lower(): cls
        for name, cls in vars(torch.optim).items()
        if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer) and cls.__name__ not in _NOT_FOR_US
    }
    found = known.get(trainer.optimizer.lower())
    names = sorted(cls.__name__ for cls in known.values())
    if found is None:
        raise OptionError(
            [f"torch.optim has no optimizer '{trainer.optimizer}'{did_you_mean(trainer.optimizer, names)}"],
            f"available: {', '.join(names)}",
        )
    try:
        return found(parameters, lr=trainer.learning_rate, **trainer.optimizer_options)  # type: ignore[call-arg]
    except Exception as error:  # a constructor fed with what the user wrote: whatever it says, it is about that
        taken = [p for p in inspect.signature(found).parameters if p not in ("params", "lr")]
        raise OptionError(
            [f"optimizer {found.__name__} refuses trainer.optimizer_options: {error}"],
            f"it takes: {', '.join(taken)}",
        ) from None


def options_of_phase(trainer: Trainer, phase: Phase) -> Trainer:
    """Return the trainer with the options that differ in a phase."""
    return dataclasses.replace(trainer, **phase.options) if phase.options else trainer


def decay(trainer: Trainer, step: int) -> float:
    """Return the factor of the learning rate of a step."""
    factor = min(1.0, (step + 1) / trainer.rampup) if trainer.rampup else 1.0
    if trainer.schedule == "cosine":
        return factor * 0.5 * (1 + math.cos(math.pi * step / trainer.steps))
    if trainer.schedule == "trapezoid":
        left = 1 - step / trainer.steps
        return factor * min(1.0, left / trainer.decay_share) if trainer.decay_share else factor
    if trainer.schedule == "inverse-sqrt":
        return factor / math.sqrt(max((step + 1) / trainer.decay_from, 1.0))
    return factor


def state_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split the state of an optimizer into tensors and plain values."""
    tensors, plain = {}, {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                plain[f"{index}.{key}"] = value
    return tensors, plain


def load_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Put back what `state_tensors` returned; the options of the optimizer stay as they are."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **plain}.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
