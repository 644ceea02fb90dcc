"""The consistency loss of a transformer with dropout: either tangent pass, one mask, and bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from strategies import close
from torch import Tensor, nn
from torch.autograd import forward_ad as fwad

import scmreg
from scmreg.attention import is_dual
from scmreg.denoiser import Denoiser
from scmreg.objective import Loss, Setup
from scmreg.tangent import Motion, evaluate_with_jvp, motion, unit_velocity
from scmreg.types import Batch, Conditions

SHAPE, CLASSES, BATCH = (1, 8, 8), 3, 6
SPEC = scmreg.DataSpec("test", SHAPE, "images", classes=("a", "b", "c"))
COND = Conditions(label=torch.arange(BATCH) % CLASSES)
BACKENDS = ("math", "chunked")


def transformer(backend: str, dropout: float, dtype: torch.dtype = torch.float64) -> Denoiser:
    """Return a small DiT whose last layer is not zero, in training mode."""
    torch.manual_seed(0)
    made = scmreg.networks.create("dit", width=16, depth=2, heads=2, patch=2, attention=backend, dropout=dropout)
    network = made.build(SHAPE, CLASSES)
    with torch.no_grad():
        network.leave.weight.normal_(std=0.2)
    process = scmreg.processes.create("trigflow")
    return Denoiser(network, process, scmreg.parameterizations.create("unit-variance"), CLASSES).to(dtype)


def drawn(model: Denoiser, dtype: torch.dtype = torch.float64) -> Motion:
    """Return where samples are, and where they go."""
    rng = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, BATCH, *SHAPE, generator=rng).to(dtype)
    x0 = x0 * model.process.sigma_data
    t = (0.2 + torch.rand(BATCH, generator=rng)).to(dtype)
    return motion(model, model.process.perturb(x0, noise, t), t, x0, noise)


def gradients(model: Denoiser) -> Tensor:
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(found) == len(list(model.parameters()))
    return torch.cat([grad.flatten() for grad in found])


@contextmanager
def recorded_dropout(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect which hidden units each evaluation drops, in the order of the evaluations."""
    masks: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        primal = fwad.unpack_dual(output).primal if is_dual(output) else output
        masks.append((primal == 0).detach().clone())

    handles = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    assert handles, "no dropout: this would test nothing"
    yield masks
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("backend", BACKENDS)
def test_joint_and_separate_passes_give_one_loss_and_one_gradient(backend: str) -> None:
    """To rounding, with dropout; and they leave the random numbers of the next step where the other does."""
    outcomes: list[tuple[Loss, Tensor, Tensor]] = []
    for how in ("joint", "separate"):
        model = transformer(backend, dropout=0.3)
        objective = scmreg.objectives.create("sct", warmup=0)
        torch.manual_seed(7)
        module = objective.build(Setup(model, SPEC, tangent_pass=how)).double()  # type: ignore[arg-type]
        x0 = torch.randn(BATCH, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64) / 2
        torch.manual_seed(3)
        result = module.loss("main", {"model": model}, Batch(x0, COND), 0, torch.Generator().manual_seed(4))
        result.total.backward()
        outcomes.append((result, gradients(model), torch.rand(1)))
    (one, its_gradient, one_next), (other, other_gradient, other_next) = outcomes
    assert close(one.total, other.total, 1e-12)
    assert close(one.per_sample, other.per_sample, 1e-12)
    assert close(one.logs["tangent_norm"], other.logs["tangent_norm"], 1e-12)
    assert close(its_gradient, other_gradient, 1e-11)
    assert torch.equal(one_next, other_next)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", ["joint", "separate"])
def test_the_jvp_is_that_of_the_value_under_its_own_dropout_mask(how: str, backend: str) -> None:
    """Value against the mask of an evaluation of the same seed, JVP against differences under that mask."""
    model = transformer(backend, dropout=0.3)
    at = drawn(model)

    def under_the_mask(step: float) -> Tensor:
        torch.manual_seed(5)
        with torch.no_grad():
            x, t = at.x + step * at.x_rate, at.t + step * at.t_rate
            return unit_velocity(model, model, x, t, COND)

    torch.manual_seed(5)
    with recorded_dropout(model) as masks:
        value, tangent = evaluate_with_jvp(model, model, at, COND, how)  # type: ignore[arg-type]
    assert not tangent.requires_grad
    assert bool(masks[0].any())
    if how == "separate":  # the JVP, then the value
        half = len(masks) // 2
        assert all(torch.equal(one, other) for one, other in zip(masks[:half], masks[half:], strict=True))

    assert close(value, under_the_mask(0.0), 1e-12)
    h = 1e-3
    steps = ((1, 45), (2, -9), (3, 1))
    slope = sum(weight * (under_the_mask(k * h) - under_the_mask(-k * h)) for k, weight in steps) / (60 * h)
    assert close(tangent, slope, 1e-8)
    torch.manual_seed(6)
    assert not close(value, unit_velocity(model, model, at.x, at.t, COND), 1e-2), "the mask makes no difference"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", ["joint", "separate"])
def test_value_tangent_and_gradient_survive_bfloat16(how: str, backend: str) -> None:
    """To the accuracy of bfloat16, which has 8 bits; parameters keep float32 gradients."""
    results = []
    for enabled in (False, True):
        model = transformer(backend, dropout=0.3, dtype=torch.float32)
        at = drawn(model, torch.float32)
        torch.manual_seed(5)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value, tangent = evaluate_with_jvp(model, model, at, COND, how)  # type: ignore[arg-type]
        assert value.dtype == tangent.dtype == (torch.bfloat16 if enabled else torch.float32)
        (value * tangent.detach().float()).sum().backward()
        results.append((value.float(), tangent.float(), gradients(model)))
        assert results[-1][2].dtype == torch.float32
    for exact, low, bound in zip(*results, (0.01, 0.015, 0.02), strict=True):
        assert close(exact, low, bound)
        assert not torch.equal(exact, low), "autocast made no difference"
