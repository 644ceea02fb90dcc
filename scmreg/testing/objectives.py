"""Checks of objectives: their losses on a small network, under every process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scmreg.data import DataSpec
from scmreg.denoiser import Denoiser
from scmreg.errors import ScmError
from scmreg.objective import Loss, ObjectiveModule, Phase, Setup
from scmreg.proofs import Smooth
from scmreg.recipe import Recipe
from scmreg.registry import registry
from scmreg.tangent import TangentPass
from scmreg.testing.checks import check
from scmreg.testing.trial import Trial
from scmreg.types import Batch, Conditions

CLASSES = ("a", "b", "c")
BATCH = 5
OTHERS = ("network", "sampler", "data", "metric")
"""Kinds of a recipe that a loss is not made of."""
STEPS = 40
"""Steps of a training of which only some are evaluated."""


class Dropping(Smooth):
    """A small smooth network that answers to its class and drops hidden units in training, float64.

    It notes a number of the global random state at each evaluation: two with the same number have the same mask.
    """

    def __init__(self, size: int, rng: torch.Generator, rate: float) -> None:
        super().__init__(size, rng)
        self.rate = rate
        self.classes = nn.Parameter(torch.randn(len(CLASSES) + 1, 16, generator=rng, dtype=torch.float64))
        self.drawn: list[float] = []

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        """Return the shape of ``x``."""
        if self.training:
            self.drawn.append(float(torch.rand(())))
        label = torch.full((len(x),), len(CLASSES)) if cond.label is None else cond.label
        hidden = x.flatten(1) @ self.first.T + c_noise[:, None] * self.time + self.bias + self.classes[label]
        hidden = F.dropout(torch.tanh(hidden), self.rate, self.training)
        return (hidden @ self.second.T).reshape(x.shape)


class Built:
    """An objective, built for a small model under some process, with a teacher where it needs one; float64."""

    def __init__(self, trial: Trial, *, teacher: bool = True, dropout: bool = False) -> None:
        objective = trial.component
        self.process = trial.process()
        recipe = Recipe(objective=objective, process=self.process)
        for part in recipe.components():
            if part.kind not in OTHERS:
                trial.refuse(part.fits(recipe))
        modality: Literal["points", "image"] = "points" if len(trial.shape) == 1 else "image"
        self.spec = DataSpec("case", tuple(trial.shape), modality, CLASSES)
        trial.refuse(objective.accepts(self.spec))
        self.model, self.teacher = (self.denoiser(trial, 0.5 if dropout else 0.0) for _ in range(2))
        self.teacher.eval().requires_grad_(False)
        given = self.teacher if objective.needs_teacher and teacher else None
        passes: tuple[TangentPass, ...] = ("joint", "separate")
        tangent_pass = trial.choose("tangent pass", passes)
        self.setup = Setup(self.model, self.spec, given, tangent_pass, steps=STEPS)
        self.objective = objective
        self.module: ObjectiveModule = trial.attempt(lambda: self.build(0))
        with torch.no_grad():  # what begins as a copy of something else is moved, as by a first step
            for parameter in self.module.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=trial.rng, dtype=parameter.dtype))
        x0 = self.process.sigma_data * trial.normal(BATCH, *trial.shape)
        self.batch = Batch(x0, Conditions(label=torch.randint(0, len(CLASSES), (BATCH,), generator=trial.rng)))

    def denoiser(self, trial: Trial, rate: float) -> Denoiser:
        """Return a model with a small random network."""
        network = Dropping(torch.Size(trial.shape).numel(), trial.rng, rate)
        return Denoiser(network, self.process, registry("parameterization").create("unit-variance"), len(CLASSES))

    def build(self, seed: int) -> ObjectiveModule:
        """Return the module of the objective, with whatever it draws when it is built."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made: ObjectiveModule = self.objective.build(self.setup)
        return made

    def nets(self, module: ObjectiveModule) -> dict[str, Any]:
        """Return the networks by name, as the loop does."""
        found: dict[str, Any] = {"model": self.model, **dict(module.named_children())}
        for phase in module.phases:
            for name in phase.nets:
                found.setdefault(name, self.model if name == "model" else module.get_submodule(name))
        return found

    def loss(
        self, phase: Phase, step: int, *, module: ObjectiveModule | None = None, seed: int = 0, rng: int = 1
    ) -> Loss:
        """Return the loss of a phase.

        Args:
            phase: which.
            step: steps taken before.
            module: of the objective; that of the case if not given.
            seed: of the global random state, from which dropout is drawn.
            rng: seed of the generator that the loss is given.
        """
        module = module or self.module
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator = torch.Generator().manual_seed(rng)
            return module.loss(phase.name, self.nets(module), self.batch, step, generator)


@contextmanager
def told(trial: Trial, words: str) -> Iterator[None]:
    """Say what was being done where something raises."""
    try:
        yield
    except (ScmError, ValueError, RuntimeError, TypeError, AssertionError, KeyError, AttributeError) as error:
        trial.fail(f"{words} {type(error).__name__}: {str(error).partition(chr(10))[0]}")


@check("objective", examples=8)
def loss_is_finite(trial: Trial) -> None:
    """The loss of every phase is one finite number, with one figure a sample for the log, under every process."""
    built = Built(trial)
    step = trial.whole("step", 0, STEPS - 1)
    for phase in built.module.phases:
        loss = built.loss(phase, step)
        where = f"of phase '{phase.name}' under process '{built.process.name}'"
        trial.expect(
            loss.total.shape == () and bool(torch.isfinite(loss.total)),
            f"the loss {where} is {loss.total.detach().tolist()}: it must be one finite number",
        )
        for prefix, part in loss.by_name():
            for name, value in {"per_sample": part.per_sample, "t_hat": part.t_hat, **part.logs}.items():
                trial.expect(
                    value.shape == (BATCH,) and bool(torch.isfinite(value).all()),
                    f"{prefix}{name} {where} must be one finite number for each of {BATCH} samples, not"
                    f" {value.tolist()}",
                )
                trial.expect(
                    not value.requires_grad, f"{prefix}{name} {where} has a gradient: it is for the log, detach it"
                )
            trial.expect(
                bool(((part.t_hat >= 0) & (part.t_hat <= math.pi / 2 + 1e-6)).all()),
                f"{prefix}t_hat {where} reaches from {float(part.t_hat.min()):.4g} to {float(part.t_hat.max()):.4g}:"
                " give TrigFlow's times, scmreg.coordinates.trig_time, in [0, pi/2]",
            )


@check("objective", examples=5)
def gradient_reaches_what_is_trained(trial: Trial) -> None:
    """The gradient of every phase reaches every parameter that the phase moves, and no teacher."""
    built = Built(trial)
    moved: set[int] = set()
    for phase in built.module.phases:
        nets = built.nets(built.module)
        modules = {name: nets[name] for name in phase.nets} | {
            name: built.module.get_submodule(name) for name in phase.own
        }
        parameters = {
            f"{name}.{path}": parameter
            for name, module in modules.items()
            for path, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        moved |= {id(parameter) for parameter in parameters.values()}
        sizes = dict.fromkeys(parameters, 0.0)
        for rng in range(3):  # one may be 0 by chance, as at a time where two outputs agree
            step = (0, STEPS // 2, STEPS - 1)[rng]
            total = built.loss(phase, step, rng=rng).total
            trial.expect(
                total.requires_grad or not parameters,
                f"the loss of phase '{phase.name}' has no gradient at all: something was detached",
            )
            found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is None:
                    continue
                trial.expect(
                    bool(torch.isfinite(gradient).all()),
                    f"the gradient of phase '{phase.name}' in {name} is not finite",
                )
                sizes[name] += float(gradient.abs().sum())
        for name, size in sizes.items():
            trial.expect(
                size > 0,
                f"no gradient of phase '{phase.name}' reaches {name}, which it moves: evaluate the network through"
                " nets[...] with gradient, or leave it out of the phase",
            )
    for name, parameter in built.module.named_parameters():
        trial.expect(
            id(parameter) in moved or not parameter.requires_grad,
            f"no phase moves its parameter {name}: name the module in Phase(own=...) or Phase(nets=...)",
        )


@check("objective", examples=5)
def needs_what_it_says(trial: Trial) -> None:
    """It works without a teacher if it says that it needs none, and not if its loss is made of one."""
    if not trial.component.needs_teacher:
        built = Built(trial, teacher=False)
        for phase in built.module.phases:
            with told(trial, "it says by needs_teacher that it needs no teacher, but without one it raises"):
                built.loss(phase, 0)
        return
    if trial.component.starts_from_teacher:
        return  # what it needs may be the weights that it starts from
    try:
        built = Built(trial, teacher=False)
        for phase in built.module.phases:
            built.loss(phase, 0)
    except (ScmError, AssertionError, AttributeError, TypeError):
        return
    trial.fail(
        "it says by needs_teacher that it needs a teacher, but neither build() nor loss() asks for one: return"
        " False, so that nobody trains one in vain"
    )


@check("objective", examples=6)
def dropout_is_tied(trial: Trial) -> None:
    """Evaluations of the model that a loss compares share one dropout mask."""
    built = Built(trial, dropout=True)
    built.model.train()
    step = trial.whole("step", 0, STEPS - 1)
    for phase in built.module.phases:
        drawn: list[float] = built.model.network.drawn  # type: ignore[assignment]
        drawn.clear()
        loss = built.loss(phase, step)
        if loss.parts:
            continue  # terms of a sum are losses of their own
        trial.expect(
            len(set(drawn)) <= 1,
            f"its {len(drawn)} evaluations of the model in phase '{phase.name}' have {len(set(drawn))} different"
            " dropout masks, whose difference is noise in the target: put every evaluation but the last into `with"
            " scmreg.rng.rewound(device)`",
        )


@check("objective", examples=6)
def drawn_from_the_given_generator(trial: Trial) -> None:
    """Times and noise come from the generator that a loss is given, so that a step is the same when it is repeated."""
    built = Built(trial)
    step = trial.whole("step", 0, STEPS - 1)
    for phase in built.module.phases:
        first, again, other = (
            float(built.loss(phase, step, seed=seed, rng=rng).total.detach()) for seed, rng in ((0, 1), (1, 1), (0, 2))
        )
        trial.expect(
            abs(first - again) <= 1e-9 * abs(first),
            f"with the same generator the loss of phase '{phase.name}' is {first:.8g}, then {again:.8g}: draw times and"
            " noise with generator=rng, not from the global random state",
        )
        trial.expect(
            first != other, f"the loss of phase '{phase.name}' is the same with another generator: draw from rng"
        )


@check("objective", examples=6)
def resumes(trial: Trial) -> None:
    """A module that loads the state dict of another goes on as that would have."""
    built = Built(trial)
    for phase in built.module.phases:
        for step in range(2):
            built.loss(phase, step)
    other = built.build(1)
    with told(trial, "its state dict cannot be loaded by another module of the same options, which raises"):
        other.load_state_dict(built.module.state_dict())
    for phase in built.module.phases:
        here = float(built.loss(phase, 2).total.detach())
        there = float(built.loss(phase, 2, module=other).total.detach())
        trial.expect(
            abs(here - there) <= 1e-9 * max(1e-12, abs(here)),
            f"after two steps the loss of phase '{phase.name}' is {here:.8g}, and {there:.8g} in a module that"
            " loaded its state dict: register as a buffer what it remembers, and compute the rest from the step",
        )


@check("objective", examples=4)
def batch_is_left_alone(trial: Trial) -> None:
    """A loss changes neither the batch nor the model."""
    built = Built(trial)
    x0 = built.batch.x0.clone()
    state = {name: tensor.clone() for name, tensor in built.model.state_dict().items()}
    for phase in built.module.phases:
        built.loss(phase, 1)
    trial.expect(torch.equal(built.batch.x0, x0), "its loss writes to the batch: work on a copy")
    for name, tensor in built.model.state_dict().items():
        trial.expect(
            torch.equal(tensor, state[name]), f"its loss writes to {name} of the model: only the optimizer moves it"
        )


@check("objective", examples=3)
def figures_at_given_times(trial: Trial) -> None:
    """What it tells of given times for the log is one finite number each."""
    built = Built(trial)
    t_hat = torch.linspace(0.1, 1.2, BATCH, dtype=torch.float64)
    for phase in built.module.phases:
        with torch.no_grad():
            figures = built.module.diagnose(
                phase.name, built.nets(built.module), built.batch, t_hat, 1, torch.Generator().manual_seed(0)
            )
        for name, value in figures.items():
            trial.expect(
                value.shape == (BATCH,) and bool(torch.isfinite(value).all()),
                f"diagnose() gives {name} = {value.tolist()} for {BATCH} times: one finite number each",
            )
