"""Checks of samplers, on exact models and on small random ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from scmreg.data import DataSpec
from scmreg.denoiser import Denoiser
from scmreg.errors import OptionError
from scmreg.proofs.sampling import measured_order
from scmreg.registry import registry
from scmreg.sampler import Noise, OdeSampler, Sampler
from scmreg.testing.checks import check
from scmreg.testing.objectives import Dropping
from scmreg.testing.trial import Trial
from scmreg.types import Conditions

CLASSES = ("a", "b", "c")
BATCH = 3
BELOW, ABOVE = 0.2, 0.3
"""How far below and above the declared order the measured one may lie."""
SPREADS = (12,)
"""Shape of samples of the Gaussian: with one spread alone, the leading term of an error may vanish."""
FEW, MANY = 8, 64
"""Steps between which the error of a solver must have fallen."""


class Counting(nn.Module):
    """Counts how many samples a network is asked about."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.asked = network, 0

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        """Return what the network does."""
        self.asked += len(x)
        out: Tensor = self.network(x, c_noise, cond)
        return out


class Built:
    """A sampler and a small random model of classes, and what a batch is sampled with."""

    def __init__(self, trial: Trial) -> None:
        self.sampler: Sampler = trial.component
        process = trial.process()
        network = Counting(Dropping(torch.Size(trial.shape).numel(), trial.rng, 0.0))
        form = registry("parameterization").create("unit-variance")
        self.spec = DataSpec("case", tuple(trial.shape), "points", CLASSES)
        trial.refuse(self.sampler.accepts(self.spec))
        self.model = Denoiser(network, process, form, len(CLASSES)).eval()
        self.counting = network
        self.shape = trial.shape
        self.cond = Conditions(label=torch.arange(BATCH) % len(CLASSES))

    def sample(self, trial: Trial, seeds: Any = range(BATCH), sampler: Sampler | None = None) -> Tensor:
        """Return samples of some seeds, which are also their classes' numbers."""
        used = sampler or self.sampler
        noise = Noise(seeds, self.shape, dtype=torch.float64)
        cond = Conditions(label=torch.tensor([seed % len(CLASSES) for seed in noise.seeds]))
        with torch.no_grad():
            out: Tensor = trial.attempt(lambda: used.sample(self.model, noise, cond))
        return out


@check("sampler", examples=4)
def declared_order(trial: Trial) -> None:
    """A solver converges with the order that it declares, against the exact flow of a Gaussian."""
    sampler = trial.component
    if not isinstance(sampler, OdeSampler):
        trial.expect(
            sampler.order is None,
            f"it declares order {sampler.order}, but solves no ODE: extend OdeSampler, or leave order away",
        )
        return
    order = sampler.order
    trial.shape = SPREADS
    trial.words.append(f"a Gaussian of {SPREADS[0]} dimensions")
    exact = trial.exact(trial.process(), modes=1)
    with torch.no_grad():  # without guidance, whose flow is not known
        found = measured_order(replace(sampler, guidance=1.0), exact, trial.normal(64, *trial.shape))
    whole = round(found)
    if order is None:
        trial.fail(f"it declares no order and converges with {found:.2f}: set order = {whole}")
    if order - BELOW <= found <= order + ABOVE:
        return
    advice = [f"set order = {whole}"] * (whole != order) + ["mend the step"] * (found < order)
    trial.fail(
        f"it declares order {order}, but twice as many steps divide its error by {2**found:.2f}, not by {2**order}: the"
        f" order measured is {found:.2f}; {', or '.join(advice)}"
    )


@check("sampler", examples=8)
def evaluations_as_stated(trial: Trial) -> None:
    """It asks the network as often as `evaluations` says."""
    built = Built(trial)
    sampler = built.sampler.with_steps(trial.whole("steps", 1, 6))
    built.sample(trial, sampler=sampler)
    asked = built.counting.asked / BATCH
    trial.expect(
        asked == sampler.evaluations,
        f"with {sampler.steps} steps it says by evaluations that it asks the network {sampler.evaluations} times a"
        f" sample, and asks {asked:g} times: correct evaluations (of an OdeSampler: calls), or the step",
    )


@check("sampler", examples=6)
def samples_of_their_seeds(trial: Trial) -> None:
    """A sample belongs to its seed: it is the same in any batch, and whenever it is drawn."""
    built = Built(trial)
    first = built.sample(trial)
    trial.expect(
        first.shape == (BATCH, *built.shape) and bool(torch.isfinite(first).all()),
        f"samples have shape {tuple(first.shape)}, expected finite ones of shape {(BATCH, *built.shape)}",
    )
    torch.rand(1)
    trial.expect(
        torch.equal(first, built.sample(trial)),
        "the same seeds give other samples the second time: draw every noise from noise.draw(index)",
    )
    alone = built.sample(trial, seeds=[1])
    off = float((alone - first[1:2]).norm() / first[1:2].norm())
    trial.expect(
        off <= 1e-6,
        f"the sample of seed 1 is another in a batch than alone (off by {off:.3g}): take noise from"
        " noise.draw(index), and let no sample depend on others",
    )
    other = built.sample(trial, seeds=range(10, 10 + BATCH))
    trial.expect(not torch.equal(first, other), "other seeds give the same samples: begin with noise.draw()")


@check("sampler", examples=8)
def steps_as_asked(trial: Trial) -> None:
    """It takes another number of steps, and a grid of one's own or says that it takes none."""
    sampler = trial.component
    steps = trial.whole("steps", 1, 30)
    changed = sampler.with_steps(steps)
    trial.expect(changed.steps == steps, f"with_steps({steps}) has {changed.steps} steps: return it with as many")
    trial.expect(
        changed.evaluations >= steps,
        f"with {steps} steps it states {changed.evaluations} evaluations: one a step at least",
    )
    times = (1.2, 0.8, 0.4)
    try:
        taken = sampler.with_times(times)
    except OptionError:
        return
    trial.expect(
        tuple(getattr(taken, "times", ()) or ()) == times,
        f"with_times({times}) keeps the times {getattr(taken, 'times', None)}: keep those that are given, or refuse"
        " them",
    )


@check("sampler", examples=3)
def nears_the_truth(trial: Trial) -> None:
    """With many steps a solver ends where the exact flow does, which is what it gives as the truth."""
    sampler = trial.default()
    if not isinstance(sampler, OdeSampler):
        return
    exact = trial.exact(trial.process(), modes=1)
    noise = Noise(range(40), trial.shape, dtype=torch.float64)
    errors = []
    for steps in (FEW, MANY):
        used = sampler.with_steps(steps)
        with torch.no_grad():
            known = used.truth(exact, noise, Conditions())
            reached = used.sample(exact, noise, Conditions())
        if known is None:
            return
        errors.append(float((reached - known).norm() / known.norm()))
    trial.expect(
        errors[1] < errors[0] / 2,
        f"its distance from truth() is {errors[0]:.3g} of the norm with {FEW} steps and {errors[1]:.3g} with {MANY}:"
        " mend the step, or truth(), if it is overridden",
    )
