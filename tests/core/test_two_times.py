"""Models of two times: what the network is told, what the denoiser makes of it, what a recipe does about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scmreg
from scmreg import tangent
from scmreg.coordinates import trig_time
from scmreg.denoiser import Denoiser
from scmreg.errors import CompositionError
from scmreg.guidance import guided
from scmreg.recipe import Recipe
from scmreg.registry import load_file
from scmreg.tangent import Direction, evaluate_with_jvp
from scmreg.train import build_denoiser
from scmreg.types import Conditions, expand

PROCESSES = ["trigflow", "edm", "flow", "vp"]
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "mlp": ({"width": 16, "depth": 1}, (3,)),
    "dit": ({"width": 16, "depth": 1, "heads": 2}, (1, 4, 4)),
}
OBJECTIVE = '''
import scmreg
from scmreg.objective import Objective, ObjectiveModule

class Jumps(Objective, name="jumps"):
    """Train nothing, but tell where to jump to."""

    few_step = True

    @property
    def gives(self):
        """The target time."""
        return frozenset({"target_time"})

    def build(self, setup):
        """Return a module without a loss."""
        return ObjectiveModule(setup)

@scmreg.hookimpl
def scmreg_components():
    """Register it."""
    return [Jumps]
'''


class Heedful(nn.Module):
    """A smooth network that heeds all it is told, and remembers it."""

    def __init__(self) -> None:
        super().__init__()
        self.size = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.told: list[Conditions] = []

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        self.told.append(cond)
        out = torch.sin(2 * x.flip(1) + c_noise[:, None]) * self.size
        if cond.target_time is not None:
            out = out * torch.cos(3 * cond.target_time[:, None])
        return out if cond.label is None else out * (1 + cond.label[:, None])


def model(name: str, *, two_time: bool = True) -> Denoiser:
    process = scmreg.processes.create(name, sigma_data=0.3)
    unit = scmreg.parameterizations.create("unit-variance")
    return Denoiser(Heedful(), process, unit, classes=2, two_time=two_time)


def told(denoiser: Denoiser) -> Tensor | None:
    """Return the target time that the network was told last."""
    network: Any = denoiser.network
    return (network if isinstance(network, Heedful) else network.network).told[-1].target_time  # type: ignore[no-any-return]


def points(denoiser: Denoiser, count: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x = 0.3 * torch.randn(count, 3, generator=rng, dtype=torch.float64)
    share = torch.rand(2, count, generator=rng, dtype=torch.float64)
    t_max = denoiser.process.t_max
    return x, share.amax(0) * t_max, share.amin(0) * t_max


@pytest.mark.parametrize("name", PROCESSES)
def test_a_prediction_without_a_target_is_told_the_present_time(name: str) -> None:
    one = model(name)
    x, t, _ = points(one)
    for predict in (one, one.data, one.noise, one.velocity, one.v, one.score):
        predict(x, t)
        assert torch.equal(told(one), trig_time(one.process, t))  # type: ignore[arg-type]
    shared = t[:1].expand(len(x))  # as samplers give it
    assert torch.equal(one.data(x, shared), one.data(x, shared.clone()))
    assert told(one).shape == (len(x),)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", PROCESSES)
def test_a_jump_is_told_its_end(name: str) -> None:
    one = model(name)
    x, t, s = points(one)
    reached = one.consistency(x, t, s)
    assert torch.equal(told(one), trig_time(one.process, s))  # type: ignore[arg-type]
    assert torch.equal(reached, one.jump(one(x, t, Conditions(target_time=trig_time(one.process, s))), x, t, s))
    one.consistency(x, t)
    assert not told(one).any()  # type: ignore[union-attr]
    torch.testing.assert_close(one.consistency(x, t, t), x)


def test_a_straight_path_is_left_by_the_average_velocity() -> None:
    """``x_s = x_t - (t - s) u`` with ``u = eps - D``, told ``s``."""
    one = model("flow")
    x, t, s = points(one)
    data, noise = one.predict(x, t, Conditions(target_time=trig_time(one.process, s)))
    torch.testing.assert_close(one.consistency(x, t, s), x - expand(t - s, x) * (noise - data))


def test_a_model_of_one_time_is_told_none() -> None:
    one = model("flow", two_time=False)
    x, t, s = points(one)
    for ask in (lambda: one.data(x, t), lambda: one.consistency(x, t, s), lambda: one.consistency(x, t)):
        ask()
        assert told(one) is None


@pytest.mark.parametrize("name", PROCESSES)
def test_conversion_and_guidance_keep_it(name: str) -> None:
    one = model("trigflow")
    other = scmreg.convert(one, to=scmreg.processes.create(name, sigma_data=0.7))
    assert other.two_time
    x, t, s = points(other)
    other.consistency(x, t, s)
    torch.testing.assert_close(told(other), trig_time(other.process, s))
    twice = guided(one, 2.0)
    assert twice.two_time
    cond = Conditions(label=torch.tensor([0, 1, 0, 1, 0]))
    x, t, _ = points(one)
    twice.data(x, t, cond)
    assert torch.equal(told(twice), trig_time(one.process, t).repeat(2))  # type: ignore[arg-type]


# Derivatives --------------------------------------------------------------------------------------------------------


def difference(denoiser: Denoiser, raw: Tensor, x: Tensor, t: Tensor) -> Tensor:
    data, noise = denoiser.predictions(raw, x, t)
    return noise - data


def cubic(denoiser: Denoiser, raw: Tensor, x: Tensor, t: Tensor) -> Tensor:
    return raw**3 + x * expand(t, x)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("quantity", [difference, cubic, Denoiser.unit_velocity])
@pytest.mark.parametrize("how", ["joint", "separate"])
@pytest.mark.parametrize("compiled", [False, True])
def test_any_quantity_has_its_derivative_along_any_direction(
    name: str, quantity: Any, how: Any, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def eager() -> Any:
        return torch.compile(tangent._value_and_jvp, backend="eager")

    monkeypatch.setattr(tangent, "_compiled_value_and_jvp", eager)
    one = model(name)
    x, t, s = points(one)
    t = 0.1 * one.process.t_max + 0.8 * t
    rng = torch.Generator().manual_seed(1)
    at = Direction(x, t, torch.randn(x.shape, generator=rng).double(), 0.1 * torch.rand(len(t), generator=rng).double())
    cond = Conditions(target_time=trig_time(one.process, s))
    value, slope = evaluate_with_jvp(one, one, at, cond, how, compiled=compiled, quantity=quantity)

    def moved(h: float) -> Tensor:
        there = at.x + h * at.x_rate, at.t + h * at.t_rate
        return quantity(one, one(*there, cond), *there)  # type: ignore[no-any-return]

    h = 1e-5
    torch.testing.assert_close(value, moved(0))
    torch.testing.assert_close(slope, ((moved(h) - moved(-h)) / (2 * h)).detach(), rtol=1e-6, atol=1e-7)
    assert value.requires_grad
    assert not slope.requires_grad


# Networks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_heeds_the_target_time_once_it_is_trained(name: str) -> None:
    options, shape = NETWORKS[name]
    torch.manual_seed(0)
    network = scmreg.networks.create(name, target_time=True, **options).build(shape, 2).double()
    x, t = torch.randn(3, *shape, dtype=torch.float64), torch.tensor([0.2, 0.7, 1.2], dtype=torch.float64)
    nn.init.normal_(network.leave.weight)  # type: ignore[arg-type]

    def ask(target: Tensor | None) -> Tensor:
        return network(x, t, Conditions(target_time=target))  # type: ignore[no-any-return]

    torch.testing.assert_close(ask(t / 2), ask(None))  # to be told changes nothing at first
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert not torch.allclose(ask(t / 2), ask(t / 3))
    ask(t / 2).square().sum().backward()
    assert not [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    _, slope = torch.func.jvp(ask, (t / 2,), (torch.ones_like(t),))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(
        slope.detach(), ((ask(t / 2 + 1e-5) - ask(t / 2 - 1e-5)) / 2e-5).detach(), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_without_a_second_time_says_so(name: str) -> None:
    options, shape = NETWORKS[name]
    network = scmreg.networks.create(name, **options).build(shape)
    with pytest.raises(CompositionError, match="takes no target time"):
        network(torch.zeros(2, *shape), torch.zeros(2), Conditions(target_time=torch.zeros(2)))


# Recipes ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def jumps(registries: None, tmp_path: Path) -> None:
    """An objective of two times."""
    path = tmp_path / "jumps.py"
    path.write_text(OBJECTIVE)
    load_file(path)


@pytest.mark.usefixtures("jumps")
@pytest.mark.parametrize("network", [None, "dit", {"width": 32}, {"name": "dit", "patch": 4}])
def test_a_network_that_is_left_open_takes_what_its_objective_gives(network: Any) -> None:
    made = Recipe.from_tree({"objective": "jumps", "network": network})
    assert made.network.takes == {"label", "target_time"}
    made.check()
    assert Recipe.from_tree(made.to_tree()) == made
    assert build_denoiser(made, (1, 8, 8), 0).two_time
    named = network if isinstance(network, str) else (network or {}).get("name", "mlp")
    assert made.network.name == named
    plain = Recipe.from_tree({"objective": "diffusion", "network": network})
    assert plain.network.takes == {"label"}
    assert not build_denoiser(plain, (1, 8, 8), 0).two_time


@pytest.mark.usefixtures("jumps")
def test_a_network_that_is_told_not_to_take_it_is_refused() -> None:
    said = Recipe.from_tree({"objective": "jumps", "network": {"target_time": False}})
    in_python = Recipe(objective=scmreg.objectives.create("jumps"), network=scmreg.networks.create("mlp"))
    for made in (said, in_python):
        with pytest.raises(CompositionError, match=r"does not take target_time: set network\.target_time=true"):
            made.check()


def test_a_scale_of_guidance_is_given_in_the_same_way() -> None:
    made = Recipe.from_tree({"objective": {"name": "scd", "guidance": [1, 2]}})
    assert made.network.takes == {"label", "guidance"}


@pytest.mark.usefixtures("jumps")
@pytest.mark.parametrize("terms", ["jumps+sct", "ect+jumps"])
def test_terms_of_one_and_of_two_times_share_no_model(terms: str) -> None:
    other = terms.replace("jumps", "").strip("+")
    with pytest.raises(CompositionError, match=f"'jumps' trains one that is told where to jump to, and '{other}'"):
        Recipe.from_tree({"objective": terms}).check()
    Recipe.from_tree({"objective": "jumps+diffusion"}).check()
