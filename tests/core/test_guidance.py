"""Classifier-free guidance: what the scales mean, what a guided evaluation costs, where it is refused."""

from __future__ import annotations

import pytest
import torch
from strategies import PARAMETERIZATIONS, PROCESSES, Smooth, close, times
from torch import Tensor

import scmreg
from scmreg.data import DataSpec
from scmreg.denoiser import Denoiser
from scmreg.errors import CompositionError
from scmreg.guidance import guided
from scmreg.law import ExactDenoiser, GaussianMixture
from scmreg.sample import draw
from scmreg.sampler import Noise, OdeSampler
from scmreg.types import Conditions

CLASSES = 3
SOLVERS = [name for name in scmreg.samplers if issubclass(scmreg.samplers[name], OdeSampler)]


class Labelled(Smooth):
    """A small random network that heeds the label, the last of which means none; keeps what it was asked."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)
        super().__init__(2, rng)
        self.table = torch.randn(CLASSES + 1, 2, generator=rng, dtype=torch.float64)
        self.asked: list[tuple[Tensor, Tensor, Conditions]] = []

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        self.asked.append((x, c_noise, cond))
        assert cond.label is not None
        shift = self.table[cond.label] * torch.cos(c_noise)[:, None].to(self.table)
        return (super().forward(x.double() + shift, c_noise, cond) + shift).to(x.dtype)


def model(process: str = "trigflow", parameterization: str = "unit-variance", classes: int = CLASSES) -> Denoiser:
    chosen = scmreg.processes.create(process), scmreg.parameterizations.create(parameterization)
    return Denoiser(Labelled(), *chosen, classes=classes).requires_grad_(False).eval()


def point(denoiser: Denoiser) -> tuple[Tensor, Tensor, Conditions]:
    t = times(denoiser.process, 4, torch.Generator().manual_seed(1))
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x, t, Conditions(label=torch.tensor([0, 1, 2, 0]))


NONE = Conditions(label=torch.full((4,), CLASSES))
PREDICTIONS = ("forward", "data", "noise", "velocity", "v", "score", "consistency")


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("process", PROCESSES)
def test_predictions_are_linear_in_the_scale(process: str, parameterization: str) -> None:
    """Every prediction at scale ``w`` is ``none + w (class - none)``: 1 is the model, 0 the unconditional one."""
    plain = model(process, parameterization)
    x, t, cond = point(plain)
    for scale in (0.0, 0.5, 1.0, 2.0, 7.5):
        exaggerated = guided(plain, scale)
        for name in PREDICTIONS:
            given, without = (getattr(plain, name)(x, t, cond=c) for c in (cond, NONE))
            found = getattr(exaggerated, name)(x, t, cond=cond)
            assert not close(given, without, 1e-3)
            assert close(found, without + scale * (given - without), 1e-11), (name, scale)


def test_a_scale_of_one_is_the_model_itself() -> None:
    plain = model()
    assert guided(plain, 1.0) is plain
    assert guided(plain, 1) is plain


def test_one_call_of_twice_the_batch() -> None:
    plain = model()
    x, t, cond = point(plain)
    network = plain.network
    assert isinstance(network, Labelled)
    guided(plain, 2.0).data(x, t, cond)
    ((asked, time, told),) = network.asked
    assert torch.equal(asked[:4], asked[4:])
    assert torch.equal(time[:4], time[4:])
    assert asked.shape == (8, 2)
    assert told.label is not None
    assert told.label.tolist() == [0, 1, 2, 0, *[CLASSES] * 4]


def test_other_conditions_are_given_to_both() -> None:
    plain = model()
    x, t, cond = point(plain)
    network = plain.network
    assert isinstance(network, Labelled)
    more = Conditions(label=cond.label, target_time=torch.arange(4.0), guidance=torch.arange(4.0) + 1)
    guided(plain, 0.0).data(x, t, more)
    told = network.asked[0][2]
    assert told.target_time is not None
    assert told.target_time.tolist() == [0, 1, 2, 3] * 2
    assert told.guidance is not None
    assert told.guidance.tolist() == [1, 2, 3, 4] * 2


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_guided_evaluations_are_counted(name: str, steps: int) -> None:
    """Twice as many, in as many calls."""
    cond = Conditions(label=torch.tensor([0, 1, 2]))
    counts, calls = [], []
    for scale in (1.0, 0.0, 3.0):
        plain, sampler = model(), scmreg.samplers.create(name, steps=steps, guidance=scale)
        network = plain.network
        assert isinstance(network, Labelled)
        sampler.sample(plain, Noise(range(3), (2,)), cond)
        calls.append(len(network.asked))
        counts.append(sum(len(x) for x, *_ in network.asked) // 3)
        assert counts[-1] == sampler.evaluations
    assert calls == [calls[0]] * 3
    assert counts == [calls[0], 2 * calls[0], 2 * calls[0]]


@pytest.mark.parametrize("name", SOLVERS)
def test_the_scale_of_a_sampler_reaches_every_step(name: str) -> None:
    plain, noise, cond = model(), Noise(range(4), (2,)), Conditions(label=torch.tensor([0, 1, 2, 0]))
    for scale in (0.0, 1.0, 2.5):
        ours = scmreg.samplers.create(name, steps=4, guidance=scale).sample(plain, noise, cond)
        by_hand = scmreg.samplers.create(name, steps=4).sample(guided(plain, scale), noise, cond)
        assert torch.equal(ours, by_hand)
    none = scmreg.samplers.create(name, steps=4, guidance=0.0).sample(plain, noise, cond)
    torch.testing.assert_close(
        none, scmreg.samplers.create(name, steps=4).sample(plain, noise, NONE), rtol=0, atol=1e-5
    )


def test_guidance_follows_the_exact_model() -> None:
    """Between two classes on the line a scale beyond 1 goes on where the class leads."""
    law = GaussianMixture(torch.ones(2), torch.tensor([[-1.0], [1.0]]), torch.full((2, 1), 0.3), torch.tensor([0, 1]))
    exact = ExactDenoiser(law, scmreg.processes.create("edm"))
    noise, cond = Noise(range(400), (1,)), Conditions(label=torch.ones(400, dtype=torch.long))
    means = []
    for scale in (0.0, 1.0, 3.0):
        sampler = scmreg.samplers.create("heun", steps=20, guidance=scale)
        means.append(float(sampler.sample(exact, noise, cond).mean()) / 0.5)
    assert means[0] == pytest.approx(0.0, abs=0.2)
    assert means[1] == pytest.approx(1.0, abs=0.06)
    assert means[2] > means[1] + 0.05


# Refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_a_model_without_classes_is_not_guided(scale: float) -> None:
    with pytest.raises(CompositionError, match=f"guidance {scale:g} needs a class-conditional model"):
        guided(model(classes=0), scale)
    assert guided(model(classes=0), 1.0).classes == 0


def test_samples_without_labels_are_not_guided() -> None:
    plain = model()
    x, t, _ = point(plain)
    with pytest.raises(CompositionError, match="guidance 2 needs a class for every sample"):
        guided(plain, 2.0).data(x, t)
    sampler = scmreg.samplers.create("ddim", steps=2, guidance=2.0)
    with pytest.raises(CompositionError) as error:
        sampler.sample(plain, Noise([0], (2,)), Conditions())
    assert error.value.hints == ("give labels, or set the guidance to 1",)


@pytest.mark.parametrize("name", SOLVERS)
def test_data_without_classes_are_not_guided(name: str) -> None:
    spec, sampler = DataSpec("cloud", (2,), "points"), scmreg.samplers.create(name, steps=2, guidance=2.0)
    with pytest.raises(CompositionError, match=r"sampler.guidance is 2, but data 'cloud' have no classes"):
        draw(model(), spec, sampler, 3)
    labelled = DataSpec("cloud", (2,), "points", ("a", "b", "c"))
    assert draw(model(), labelled, sampler, 3, labels=torch.arange(3)).shape == (3, 2)
