"""Components with a defect each, and defects that are put into shipped ones, to see whether a check finds them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scmreg
from scmreg import attention, cache
from scmreg.component import Component
from scmreg.coordinates import trig_time
from scmreg.objective import Loss, Nets, Objective, ObjectiveModule, Phase, Setup
from scmreg.process import Coefficients, Process
from scmreg.sampler import Ask, Level, OdeSampler, Point
from scmreg.types import Batch, Conditions, Positive
from scmreg.weighting import FixedWeighting

# All kinds ----------------------------------------------------------------------------------------------------------


class Straight(Process):
    """What processes with a defect share."""

    t_max = 50.0

    def coefficients(self, t: Tensor) -> Coefficients:
        return Coefficients(torch.ones_like(t), t, torch.zeros_like(t), torch.ones_like(t))


class Undocumented(Straight, name="undocumented"):
    pass


class Helpless(Straight, name="helpless"):
    """Have an option without help."""

    scale: Positive = 1.0


class Demanding(Straight, name="demanding"):
    """Have an option without a default."""

    scale: Positive
    """How much."""


class Doubling(Straight, name="doubling"):
    """Double an option when it is made."""

    scale: Positive = 1.0
    """How much."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scale", 2 * self.scale)


class Caching(Straight, name="caching"):
    """Keep a tensor beside the options."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "cache", torch.ones(1))


class OwnTime(FixedWeighting, name="own-time"):
    """Weight by the time of the process, whichever it is."""

    def weight(self, process: Process, t: Tensor) -> Tensor:
        return 1 + t

    def under(self, process: Process, to: Process) -> OwnTime:
        return self


# Networks -----------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A right network; its parts are there to be spoiled."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        size = torch.Size(shape).numel()
        self.enter, self.leave = nn.Linear(size, 8), nn.Linear(8, size)
        self.time, self.label = nn.Linear(1, 8), nn.Embedding(classes + 1, 8)
        self.register_buffer("count", torch.zeros(()))
        self.count: Tensor
        self.classes = classes

    def hidden(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        label = torch.full((len(x),), self.classes) if cond.label is None else cond.label
        return torch.tanh(self.enter(x.flatten(1)) + self.time(c_noise[:, None]) + self.label(label))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        out: Tensor = self.leave(self.hidden(x, c_noise, cond)).reshape(x.shape)
        return out


class Single(Plain):
    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        return super().forward(x, c_noise, cond).float()


class Detached(Plain):
    def hidden(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        return super().hidden(x, c_noise.detach(), cond)


class Backward(torch.autograd.Function):
    """A function with a backward pass alone."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.sin(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * torch.cos(ctx.saved_tensors[0])


class BackwardAlone(Plain):
    def hidden(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        out: Tensor = Backward.apply(super().hidden(x, c_noise, cond))
        return out


class CountsCalls(Plain):
    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        self.count.add_(1)
        return super().forward(x, c_noise, cond)


class Shrinking(Plain):
    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        if self.training:
            self.enter.weight.data.mul_(0.999)
        return super().forward(x, c_noise, cond)


class Centred(Plain):
    def hidden(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        h = super().hidden(x, c_noise, cond)
        return h - h.mean(0) if self.training else h


class Deaf(Plain):
    def hidden(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        return super().hidden(x, c_noise, Conditions())


class Forgetful(Plain):
    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__(shape, classes)
        self.frequency = float(torch.rand(()))

    def hidden(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        return super().hidden(x, torch.cos(self.frequency * c_noise), cond)


def network(module: type[Plain]) -> type[scmreg.Network]:
    class Planted(scmreg.Network, name=module.__name__.lower()):
        """Build a network of the tests."""

        def build(self, shape: tuple[int, ...], classes: int = 0) -> nn.Module:
            return module(shape, classes)

    return Planted


# Objectives ---------------------------------------------------------------------------------------------------------


class PlainModule(ObjectiveModule):
    """The error of the clean sample; its parts are there to be spoiled."""

    def noise(self, x0: Tensor, rng: torch.Generator) -> Tensor:
        return torch.randn(x0.shape, generator=rng, dtype=x0.dtype)

    def error(self, nets: Nets, x: Tensor, t: Tensor, batch: Batch, step: int) -> Tensor:
        data, _ = self.setup.denoiser.predictions(nets["model"](x, t, batch.cond), x, t)
        return data - batch.x0

    def loss(self, phase: str, nets: Nets, batch: Batch, step: int, rng: torch.Generator) -> Loss:
        process, x0 = self.setup.denoiser.process, batch.x0
        t = scmreg.proposals.create("lognormal").sample(process, len(x0), rng, x0.dtype)
        x = process.perturb(x0, self.noise(x0, rng), t)
        per_sample = self.error(nets, x, t, batch, step).square().flatten(1).mean(1)
        return Loss(per_sample.mean(), per_sample.detach(), trig_time(process, t))


class Attached(PlainModule):
    def loss(self, *arguments: Any) -> Loss:
        found = super().loss(*arguments)
        return replace(found, logs={"size": found.total.expand(len(found.t_hat))})


class Idle(PlainModule):
    phases = (Phase("main", own=("extra",)),)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.extra = nn.Linear(1, 1)


class Orphan(PlainModule):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.extra = nn.Linear(1, 1)


class Cut(PlainModule):
    def error(self, nets: Nets, x: Tensor, t: Tensor, batch: Batch, step: int) -> Tensor:
        return super().error(nets, x, t, batch, step).detach()


class Asking(PlainModule):
    def error(self, nets: Nets, x: Tensor, t: Tensor, batch: Batch, step: int) -> Tensor:
        assert self.setup.teacher is not None or self.setup.steps is None, "nobody to ask"
        return super().error(nets, x, t, batch, step)


class Untied(PlainModule):
    def error(self, nets: Nets, x: Tensor, t: Tensor, batch: Batch, step: int) -> Tensor:
        with torch.no_grad():
            nets["model"](x, t, batch.cond)
        return super().error(nets, x, t, batch, step)


class GlobalNoise(PlainModule):
    def noise(self, x0: Tensor, rng: torch.Generator) -> Tensor:
        return torch.randn_like(x0)


class Remembering(PlainModule):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.seen = 1.0

    def error(self, nets: Nets, x: Tensor, t: Tensor, batch: Batch, step: int) -> Tensor:
        self.seen += 1
        return super().error(nets, x, t, batch, step) * self.seen


class Writing(PlainModule):
    def error(self, nets: Nets, x: Tensor, t: Tensor, batch: Batch, step: int) -> Tensor:
        batch.x0.add_(0.1)
        return super().error(nets, x, t, batch, step)


class OneFigure(PlainModule):
    def diagnose(self, *arguments: Any) -> dict[str, Tensor]:
        return {"size": torch.ones(())}


def objective(module: type[PlainModule], *, teacher: bool = False) -> type[Objective]:
    class Planted(Objective, name=module.__name__.lower()):
        """Build an objective of the tests."""

        @property
        def needs_teacher(self) -> bool:
            return teacher

        def build(self, setup: Setup) -> ObjectiveModule:
            return module(setup)

    return Planted


# Samplers -----------------------------------------------------------------------------------------------------------


class Mislabelled(OdeSampler, name="mislabelled"):
    """Take the steps of DDIM, and claim more."""

    order = 2

    def step(self, here: Point, to: Level, ask: Ask, before: Point | None, process: Process) -> Tensor:
        return here.ddim(to)


class Modest(OdeSampler, name="modest"):
    """Take the steps of Heun, and claim less."""

    order = 1
    calls = 2

    def step(self, here: Point, to: Level, ask: Ask, before: Point | None, process: Process) -> Tensor:
        reached = here.ddim(to)
        if to.sigma == 0:
            return reached
        second = ask(reached, to)
        return reached + to.alpha * (to.ratio - here.at.ratio) * (second.noise - here.noise) / 2


class Noisy(OdeSampler, name="noisy"):
    """Add noise from the global random state."""

    order = 1

    def step(self, here: Point, to: Level, ask: Ask, before: Point | None, process: Process) -> Tensor:
        return here.ddim(to) + 1e-3 * torch.randn_like(here.x)


# Patches ------------------------------------------------------------------------------------------------------------

Patch = Callable[[pytest.MonkeyPatch], type[Component]]


def on(component: type[Component], owner: Any, name: str, change: Callable[[Any], Any]) -> Patch:
    """Replace a method that a component uses by a defective one that is made of it."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> type[Component]:
        monkeypatch.setattr(owner, name, change(getattr(owner, name)))
        return component

    return patch


def its(component: type[Component], name: str, change: Callable[[Any], Any]) -> Patch:
    """Replace a method of a component."""
    return on(component, component, name, change)


def as_is(component: type[Component]) -> Patch:
    """Take a component of this module."""
    return lambda monkeypatch: component


def scaled(factor: float) -> Callable[[Any], Any]:
    return lambda method: lambda *arguments, **named: method(*arguments, **named) * factor


def shifted(by: float) -> Callable[[Any], Any]:
    return lambda method: lambda *arguments, **named: method(*arguments, **named) + by


def instead(result: Callable[..., Any]) -> Callable[[Any], Any]:
    """Replace a method by another altogether."""
    return lambda method: result


def of_its_result(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda method: lambda *arguments, **named: change(method(*arguments, **named))


def asymmetric(self: Any, x: Tensor, y: Tensor) -> Tensor:
    return ((x - y).square() * (1 + x.square())).flatten(1).mean(1)


def rooted(self: Any, x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().flatten(1).sum(1).sqrt()


def with_gradient(self: Any, loss: Tensor, t: Tensor, *, r: Any = None, delta: Any = None) -> tuple[Tensor, Tensor]:
    weight = self.log_weight_of_pair(t, r, delta).exp()
    return weight * loss, weight.detach()


def without_its_logarithm(self: Any, loss: Tensor, t: Tensor, **pair: Any) -> tuple[Tensor, Tensor]:
    weight = self.log_weight(t).exp()
    return weight * loss, weight.detach()


def wavy(at: Coefficients) -> Coefficients:
    return at._replace(sigma=at.sigma + 10 * torch.sin(at.sigma))


def with_tangent(change: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    """Change the tangent of an attention operation."""

    def spoil(operation: Any) -> Any:
        def forward_jvp(*arguments: Any) -> tuple[Tensor, Tensor]:
            value, tangent = operation.forward_jvp(*arguments)
            return value, change(tangent)

        return operation._replace(forward_jvp=forward_jvp)

    return of_its_result(spoil)


def in_use(component: type[Component]) -> Patch:
    """Put a wrong value into the attention operation that is looked up by name."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> type[Component]:
        right = attention.operation_of(component.name)
        wrong = right._replace(forward=lambda *arguments: 1.1 * right.forward(*arguments))
        monkeypatch.setitem(attention._operations, component.name, wrong)
        shutil.rmtree(cache.folder(), ignore_errors=True)  # of this test alone: there the right one has passed
        return component

    return patch


def without_gradient_in_v(operation: Any) -> Any:
    return operation._replace(forward=lambda q, k, v, options: operation.forward(q, k, v.detach(), options))


def with_value(factor: float) -> Callable[[Any], Any]:
    return of_its_result(lambda operation: operation._replace(forward=lambda *a: factor * operation.forward(*a)))


def spec_with(**changes: Any) -> Callable[[Any], Any]:
    return of_its_result(lambda found: replace(found, spec=replace(found.spec, **changes)))


def drawn_globally(self: Any, rng: torch.Generator) -> tuple[Tensor, None]:
    return torch.randn(self.count, 2), None


def halved(self: Any, count: int) -> tuple[Tensor, Tensor]:
    return torch.arange(0, count, 2), torch.arange(1, count, 2)


def by_the_first(measure: Any) -> Any:
    def defective(self: Any, samples: Any, reference: Any) -> dict[str, float]:
        first = 1 + float(samples.x[0].abs().sum())
        return {name: value * first for name, value in measure(self, samples, reference).items()}

    return defective


def by_the_spread(measure: Any) -> Any:
    def defective(self: Any, samples: Any, reference: Any) -> dict[str, float]:
        return {name: value * float(samples.x.std()) for name, value in measure(self, samples, reference).items()}

    return defective
