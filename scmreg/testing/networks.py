"""Checks of networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from scmreg.proofs import difference
from scmreg.recipe import Recipe
from scmreg.testing.checks import check
from scmreg.testing.trial import Trial
from scmreg.types import Conditions

SHAPES = ((2,), (1, 4, 4), (1, 8, 8), (3, 8, 8))
"""Shapes of samples that a network is tried on: those of them that it accepts."""
CLASSES = 3
STEP = 1e-5
"""Step of a central difference, in units of the input."""
BATCH = 4


class Built:
    """A network with fresh parameters, and a batch for it; float64.

    The parameters are moved a little, so that layers which begin at zero hide nothing.
    """

    def __init__(self, trial: Trial) -> None:
        network = trial.component
        if not trial.is_default:  # one that nothing can be trained with, whatever its options, is tried all the same
            trial.assume(network.fits(Recipe(network=network)) is None or trial.default().fits(Recipe()) is not None)
        shapes = [shape for shape in SHAPES if network.accepts(shape) is None]
        trial.assume(bool(shapes) or trial.is_default)
        trial.expect(bool(shapes), f"it accepts samples of none of these shapes: {', '.join(map(str, SHAPES))}")
        self.shape = trial.choose("samples of shape", shapes)
        self.classes = trial.choose("classes", (0, CLASSES))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(trial.whole("weights of seed", 0, 1000))
            self.module: nn.Module = network.build(self.shape, self.classes).double()
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=trial.rng, dtype=torch.float64))
        self.x = trial.normal(BATCH, *self.shape)
        self.t = 0.2 + torch.rand(BATCH, generator=trial.rng, dtype=torch.float64)
        self.cond = self.conditions(trial)

    def conditions(self, trial: Trial) -> Conditions:
        """Draw the conditions that the network takes."""
        given: dict[str, Tensor] = {}
        takes = trial.component.takes
        if "label" in takes and self.classes:
            given["label"] = torch.randint(0, self.classes, (BATCH,), generator=trial.rng)
        if "guidance" in takes:
            given["guidance"] = 1 + torch.rand(BATCH, generator=trial.rng, dtype=torch.float64)
        if "target_time" in takes:
            given["target_time"] = self.t / 2
        return Conditions(**given)

    def __call__(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        """Return the output, always with the same random draws."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            out: Tensor = self.module(x, t, self.cond if cond is None else cond)
        return out


@contextmanager
def training(module: nn.Module) -> Iterator[None]:
    """Put a module in training mode, but for its dropout."""
    before = {name: each.training for name, each in module.named_modules()}
    module.train()
    for each in module.modules():
        if isinstance(each, nn.modules.dropout._DropoutNd):
            each.eval()
    try:
        yield
    finally:
        for name, each in module.named_modules():
            each.training = before[name]


def held(module: nn.Module) -> dict[str, Tensor]:
    """Return every tensor that a module holds, by the path of its name: parameters, buffers, plain attributes."""
    found: dict[str, Tensor] = {}
    for path, each in module.named_modules():
        tensors = {**each._parameters, **each._buffers, **vars(each)}
        for name, value in tensors.items():
            if isinstance(value, Tensor):
                found[f"{path}.{name}".lstrip(".")] = value
    return found


@check("network", examples=6)
def output_like_the_input(trial: Trial) -> None:
    """The output has shape and precision of the input, and is finite."""
    built = Built(trial)
    for dtype in (torch.float64, torch.float32):
        built.module.to(dtype)
        out = built(built.x.to(dtype), built.t.to(torch.promote_types(dtype, torch.float32)))
        trial.expect(
            out.shape == built.x.shape,
            f"the output has shape {tuple(out.shape)} for an input of shape {tuple(built.x.shape)}: return that of x",
        )
        trial.expect(
            out.dtype == dtype, f"the output is {out.dtype} for an input of {dtype}: compute in the precision of x"
        )
        trial.expect(bool(torch.isfinite(out).all()), "the output is not finite for an input of unit variance")


@check("network", examples=8)
def forward_derivative(trial: Trial) -> None:
    """Forward-mode differentiation runs, and gives what a finite difference gives."""
    built = Built(trial)
    dx, dt = trial.normal(*built.x.shape), trial.normal(BATCH)
    with torch.no_grad():
        try:
            _, tangent = torch.func.jvp(lambda x, t: built(x, t), (built.x, built.t), (dx, dt))  # type: ignore[misc]
        except Exception as error:
            said = (str(error).splitlines() or [""])[0].rstrip(".")
            trial.fail(
                f"forward-mode differentiation fails with {type(error).__name__}: {said};"
                " replace the operation that has no forward derivative (attention: scmreg.attend), write to nothing in"
                " place"
            )
        ahead, behind = (built(built.x + h * dx, built.t + h * dt) for h in (STEP, -STEP))
    known = (ahead - behind) / (2 * STEP)
    off = difference(tangent, known)
    trial.expect(
        off <= 1e-5,
        f"its tangent is off by {off:.3g} of a finite difference (norm {float(tangent.norm()):.4g}, expected"
        f" {float(known.norm()):.4g}): a derivative is wrong or cut off on the way; look for detach(), no_grad(), .data"
        " and for a forward derivative written by hand",
    )


@check("network", examples=6)
def no_write_in_forward(trial: Trial) -> None:
    """The forward pass writes neither to parameters nor to buffers, nor to its input, and keeps nothing."""
    built = Built(trial)
    inputs = {"x": built.x, "c_noise": built.t}
    for mode in (True, False):
        built.module.train(mode)
        before = held(built.module)
        versions = {name: tensor._version for name, tensor in before.items()}
        copies = {name: tensor.detach().clone() for name, tensor in before.items()}
        given = {name: tensor._version for name, tensor in inputs.items()}
        built(built.x, built.t)
        after = held(built.module)
        words = "in training mode" if mode else "in evaluation mode"
        for name in sorted(before.keys() | after.keys()):
            what = "parameter" if isinstance(before.get(name), nn.Parameter) else "buffer"
            same = (
                name in before
                and after.get(name) is before[name]
                and after[name]._version == versions[name]
                and torch.equal(after[name].detach(), copies[name])
            )
            trial.expect(
                same,
                f"forward writes to the {what} {name} {words}: forward-mode differentiation and compilation forbid it;"
                " leave it as it is, and compute what you need in a new tensor",
            )
        for name, tensor in inputs.items():
            trial.expect(
                tensor._version == given[name],
                f"forward writes to its input {name} in place: work on a copy, or with an operation that is not in"
                " place",
            )


@check("network", examples=6)
def batch_independence(trial: Trial) -> None:
    """What it returns for a sample does not depend on the rest of the batch, in training either."""
    built = Built(trial)
    alone = Conditions(**{name: getattr(built.cond, name)[1:2] for name in built.cond.given()})
    for mode in ("training", "evaluation"):
        with training(built.module), torch.no_grad():
            if mode == "evaluation":
                built.module.eval()
            whole = built(built.x, built.t)[1:2]
            single = built(built.x[1:2], built.t[1:2], alone)
        off = difference(whole, single)
        trial.expect(
            off <= 1e-9,
            f"a sample's output depends on the rest of the batch in {mode} mode: off by {off:.3g}; use no batch"
            " statistics (group, layer or RMS normalization in place of batch normalization)",
        )


@check("network", examples=8)
def takes_what_it_declares(trial: Trial) -> None:
    """It answers to every condition that it takes, and does without any."""
    built = Built(trial)
    takes = trial.component.takes
    unknown = takes - set(Conditions.__dataclass_fields__)
    trial.expect(
        not unknown,
        f"takes names {', '.join(sorted(unknown))}; conditions are {', '.join(Conditions.__dataclass_fields__)}",
    )
    built.module.eval()
    with torch.no_grad():
        built(built.x, built.t, Conditions())
        told = built(built.x, built.t)
        for name in sorted(built.cond.given()):
            value = getattr(built.cond, name)
            other = (value + 1) % built.classes if name == "label" else value * 1.5
            given = {each: getattr(built.cond, each) for each in built.cond.given()} | {name: other}
            changed = built(built.x, built.t, Conditions(**given))
            if not list(built.module.parameters()):
                continue  # what is not trained need not know of all
            trial.expect(
                not torch.equal(told, changed),
                f"it declares in takes that it understands '{name}', but its output is the same for another {name}:"
                " embed it, or leave it out of takes",
            )
        later = built(built.x, built.t + 0.3)
    trial.expect(not torch.equal(told, later), "its output is the same at another time: embed c_noise")


@check("network", examples=5)
def state_is_complete(trial: Trial) -> None:
    """The state dict is all of it: another network that loads it computes the same, and shares no memory with it."""
    built = Built(trial)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        other = trial.component.build(built.shape, built.classes).double()
    ours, theirs = (dict(module.named_parameters()) for module in (built.module, other))
    for name in ours:
        trial.expect(
            name in theirs and ours[name].data_ptr() != theirs[name].data_ptr(),
            f"two networks share the parameter {name}: build() must make fresh ones",
        )
    other.load_state_dict(built.module.state_dict())
    built.module.eval()
    other.eval()
    with torch.no_grad():
        off = difference(built(built.x, built.t), other(built.x, built.t, built.cond))
    trial.expect(
        off <= 1e-12,
        f"a network that loads the state dict of another computes something else (off by {off:.3g}): register as a"
        " buffer what is drawn when it is built",
    )
