"""Networks: forward-mode derivatives, independence of the batch, conditions, precision; timm's layers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad as fwad

import scmreg
from scmreg.errors import CompositionError
from scmreg.recipe import Recipe
from scmreg.types import Conditions

CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "mlp": ({"width": 32, "depth": 2}, (1, 4, 4)),
    "dit": ({"width": 32, "depth": 2, "heads": 2, "patch": 2}, (3, 8, 4)),
    "exact": ({"data": {"name": "mixture", "dimension": 3, "modes": 4, "labelled": True, "count": 100}}, (3,)),
}
NAMES = sorted(scmreg.networks)
TRAINED = [name for name in NAMES if name != "exact"]
"""Those with parameters."""
VARIANTS = [
    (name, {"embedding": embedding} if embedding else {})
    for name in NAMES
    for embedding in (("positional", "fourier") if hasattr(scmreg.networks[name], "embedding") else (None,))
]
"""Networks with every way to tell them the time."""


def build(name: str, classes: int = 4, **options: Any) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a network whose last layers are not zero, float64, in evaluation mode."""
    defaults, shape = CASES.get(name, ({}, (1, 8, 8)))
    torch.manual_seed(0)
    network = scmreg.networks.create(name, **(defaults | options)).build(shape, classes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.double().eval(), shape


def inputs(shape: tuple[int, ...], count: int = 5) -> tuple[torch.Tensor, torch.Tensor, Conditions]:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(count, *shape, generator=rng, dtype=torch.float64)
    t = 0.1 + 1.3 * torch.rand(count, generator=rng, dtype=torch.float64)
    return x, t, Conditions(label=torch.arange(count) % 4)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_forward_mode_equals_finite_differences(name: str, options: dict[str, Any]) -> None:
    network, shape = build(name, **options)
    x, t, cond = inputs(shape)
    dx, dt = torch.randn_like(x), torch.randn_like(t)
    out, tangent = torch.func.jvp(lambda x, t: network(x, t, cond), (x, t), (dx, dt))
    assert out.shape == x.shape
    h = 1e-4
    with torch.no_grad():
        steps = [network(x + k * h * dx, t + k * h * dt, cond) for k in (1, -1, 2, -2)]
    difference = (8 * (steps[0] - steps[1]) - (steps[2] - steps[3])) / (12 * h)
    assert float(difference.norm()) > 1e-2
    torch.testing.assert_close(tangent.detach(), difference, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_forward_writes_nothing_and_treats_samples_alone(name: str) -> None:
    network, shape = build(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    x, t, cond = inputs(shape)
    with torch.no_grad():
        whole = network(x, t, cond)
        single = network(x[2:3], t[2:3], cond.slice(2, 3))
    torch.testing.assert_close(whole[2:3], single, rtol=1e-12, atol=1e-13)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_it_heeds_time_and_class(name: str) -> None:
    network, shape = build(name)
    x, t, cond = inputs(shape)
    with torch.no_grad():
        out = network(x, t, cond)
        assert not torch.allclose(out, network(x, t + 0.3, cond))
        assert not torch.allclose(out, network(x, t, Conditions(label=(cond.label + 1) % 4)))
        withheld = network(x, t, Conditions(label=torch.full((5,), 4)))
        torch.testing.assert_close(network(x, t, Conditions()), withheld)
        assert not torch.allclose(out, withheld)


@pytest.mark.parametrize("name", TRAINED)
def test_a_fresh_network_is_zero_and_every_parameter_gets_a_gradient(name: str) -> None:
    options, shape = CASES.get(name, ({}, (1, 8, 8)))
    network = scmreg.networks.create(name, **options).build(shape, 4)
    x, t, _ = inputs(shape)
    cond = Conditions(label=torch.tensor([0, 1, 2, 3, 4]))
    assert not network(x.float(), t.float(), cond).any()
    trained, _ = build(name)
    trained(x, t, cond).square().sum().backward()
    idle = [key for key, p in trained.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


@pytest.mark.parametrize("name", TRAINED)
def test_time_and_its_tangent_are_not_rounded_under_autocast(name: str) -> None:
    """What the network is told of the time, and how that moves, is the same to the last bit."""
    seen: list[list[Tensor]] = []
    x, t, cond = inputs(CASES[name][1])
    for enabled in (False, True):
        network = build(name)[0].float()
        found: list[Tensor] = []

        def look(module: Any, arguments: tuple[Any, ...], out: Tensor, found: list[Tensor] = found) -> None:
            found.extend(part.detach().clone() for dual in (arguments[0], out) for part in fwad.unpack_dual(dual))

        network.condition.register_forward_hook(look)
        network.condition.time.register_forward_hook(look)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            primals = x.float(), t.float()
            tangents = tuple(map(torch.ones_like, primals))
            out, tangent = torch.func.jvp(lambda x, t, network=network: network(x, t, cond), primals, tangents)
        assert torch.isfinite(out).all()
        assert torch.isfinite(tangent).all()
        seen.append(found)
    assert len(seen[0]) == 8  # time, its embedding, the same time, the whole embedding; each with its tangent
    for exact, other in zip(*seen, strict=True):
        assert other.dtype == torch.float32
        assert bool(other.any())
        assert torch.equal(other, exact)


def test_the_exact_network_has_no_parameters_and_computes_in_float64_whatever_it_is_given() -> None:
    network, shape = build("exact")
    assert not list(network.parameters())
    x, t, cond = inputs(shape)
    x, t = x.float(), t.float()
    precise = network(x.double(), t.double(), cond)
    for context in (nullcontext(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with context:
            assert torch.equal(network(x, t, cond), precise.float())


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"data": "digits"}, (1, 8, 8), "needs the law of its data: 'digits': its law is not known"),
        ({"data": "swissroll"}, (2,), "needs the law of its data: 'swissroll': its exact denoiser has no closed form"),
        ({"data": {"name": "mixture", "dimension": 3}}, (2,), r"is for samples of shape \(3,\), not \(2,\)"),
    ],
)
def test_the_exact_network_is_for_its_own_data_alone(
    options: dict[str, Any], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(CompositionError, match=f"network 'exact' {message}"):
        scmreg.networks.create("exact", **options).build(shape)


@pytest.mark.parametrize("backend", ["math", "chunked"])
def test_dit_takes_its_attention_from_the_registry(backend: str) -> None:
    network, shape = build("dit", attention=backend)
    reference, _ = build("dit")
    x, t, cond = inputs(shape)
    with torch.no_grad():
        torch.testing.assert_close(network(x, t, cond), reference(x, t, cond), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "options", "shape", "message"),
    [
        ("dit", {"patch": 3}, (1, 8, 8), "patches of side 3"),
        ("dit", {}, (2,), "use network mlp"),
    ],
)
def test_shapes_that_do_not_fit(name: str, options: dict[str, Any], shape: tuple[int, ...], message: str) -> None:
    reason = scmreg.networks.create(name, **options).accepts(shape)
    assert reason is not None
    assert message in reason


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dit", {"width": 36, "heads": 5}, "5 heads"),
        ("dit", {"attention": "flash9"}, "no attention called 'flash9'"),
        ("mlp", {"width": 33}, "even"),
        ("exact", {}, "no parameters to train: teach by it, with --teacher exact"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_the_data_are_read(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CompositionError, match=message):
        Recipe.from_tree({"network": {"name": name, **options}}).check()


def test_timm_is_imported_late_and_beside_any_torchvision() -> None:
    """In a process of its own: naming the networks does not import timm; building a DiT does, with any torchvision."""
    script = (
        "import sys, scmreg\n"
        "scmreg.networks.create('mlp').build((2,))\n"
        "assert 'timm' not in sys.modules\n"
        "scmreg.networks.create('dit').build((1, 8, 8))\n"
        "assert 'timm' in sys.modules\n"
        "import torchvision\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_dit_wastes_no_product() -> None:
    """A JVP takes twice the products of a value: each layer's tangent is one product, whoever wrote the layer."""
    from torch.utils.flop_counter import FlopCounterMode

    module = scmreg.networks.create("dit", width=32, depth=2, heads=2).build((1, 8, 8), 0)
    x, t = torch.randn(2, 3, 1, 8, 8), torch.rand(2, 3)

    def products(function: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            function()
        counts = counter.get_flop_counts()["Global"]
        return sum(counts.get(product, 0) for product in (torch.ops.aten.mm, torch.ops.aten.addmm))

    value = products(lambda: module(x[0], t[0], Conditions()))
    assert value > 10**6
    assert (
        products(lambda: torch.func.jvp(lambda *x: module(*x, Conditions()), (x[0], t[0]), (x[1], t[1]))) == 2 * value
    )


def test_dit_works_on_tokens_that_lie_together() -> None:
    seen: list[bool] = []
    module = scmreg.networks.create("dit", width=32, depth=1, heads=2).build((1, 8, 8), 0)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    module(torch.randn(2, 1, 8, 8), torch.rand(2), Conditions())
    assert seen
    assert all(seen)


@pytest.mark.parametrize("moving", [("x",), ("c",), ("x", "c")])
def test_normalization_of_tokens_is_the_plain_one(moving: tuple[str, ...]) -> None:
    """Value, gradient and tangent, whichever of tokens and condition move."""
    from scmreg_networks.layers import AdaptiveDoubleNorm, TokenDoubleNorm

    torch.manual_seed(0)
    plain, tokens = AdaptiveDoubleNorm(6, 4).double(), TokenDoubleNorm(6, 4).double()
    tokens.load_state_dict(plain.state_dict())
    x, tx = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    c, tc = torch.randn(2, 3, 4, dtype=torch.float64)
    given = {"x": (x, tx), "c": (c, tc)}

    def results(module: nn.Module) -> list[torch.Tensor]:
        def function(*moved: torch.Tensor) -> torch.Tensor:
            at = dict(zip(moving, moved, strict=True))
            return module(at.get("x", x), at.get("c", c))

        primals, tangents = zip(*(given[name] for name in moving), strict=True)
        value, tangent = torch.func.jvp(function, primals, tangents)
        return [value, tangent, *torch.autograd.grad(value.square().sum(), list(module.parameters()))]

    for one, other in zip(results(plain), results(tokens), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_silu_of_dual_numbers_is_torchs() -> None:
    from scmreg_networks.layers import SiLU

    x, tx = torch.randn(2, 50, dtype=torch.float64)
    want = torch.func.jvp(nn.SiLU(), (x,), (tx,))
    for ours, theirs in zip(torch.func.jvp(SiLU(), (x,), (tx,)), want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
