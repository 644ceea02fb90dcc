"""Models of diffusers as networks: the wrapper and the attention of the page docs/how-to/diffusers.md.

diffusers embeds the time in float32 whatever the precision of the model, so that differences in time say little. The
embedding is replaced by one of the same function in float64 where a derivative is compared with differences.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import diffusers_page
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import scmreg
from scmreg.data import DataSpec
from scmreg.objective import Setup
from scmreg.types import Conditions

NAMES = ("unet", "dit")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The file that the page shows, as a module."""
    return diffusers_page.load(tmp_path_factory.mktemp("page"))


def create(name: str, page: ModuleType) -> Any:
    """A model as diffusers makes it, with random weights of a size at which every layer matters."""
    from diffusers import DiTTransformer2DModel, UNet2DModel

    torch.manual_seed(0)
    made: Any
    if name == "unet":
        made = UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16),
            norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4, num_class_embeds=11,
        )  # fmt: skip
    else:
        made = DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=1, out_channels=1, num_layers=2, sample_size=8,
            patch_size=2, num_embeds_ada_norm=10, norm_num_groups=1,
        )  # fmt: skip
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made.eval()


class Timesteps(nn.Module):
    """The embedding of diffusers in the precision of the time."""

    def __init__(self, of: Any) -> None:
        super().__init__()
        self.of = of

    def forward(self, t: Tensor) -> Tensor:
        half = self.of.num_channels // 2
        exponent = torch.arange(half, dtype=t.dtype) / (half - self.of.downscale_freq_shift)
        angle = self.of.scale * t[:, None] * torch.exp(-math.log(10_000) * exponent)
        parts = [torch.sin(angle), torch.cos(angle)]
        return torch.cat(parts[::-1] if self.of.flip_sin_to_cos else parts, -1)


def in_float64(model: Any) -> Any:
    """The model in float64, its embeddings of time included."""
    from diffusers.models.embeddings import Timesteps as Theirs

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Theirs):
                setattr(parent, name, Timesteps(child))
    return model.double()


def ask(network: Any) -> Any:
    cond = Conditions(label=torch.tensor([0, 3, 10]))
    return lambda x, t: network(x, t, cond)


def point(dtype: torch.dtype = torch.float64) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    x, tx = torch.randn(2, 3, 1, 8, 8, generator=rng, dtype=torch.float64)
    t, tt = torch.rand(2, 3, generator=rng, dtype=torch.float64) + 0.2
    return (x.to(dtype), t.to(dtype)), (tx.to(dtype), tt.to(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_diffusers(name: str, page: ModuleType) -> None:
    model = create(name, page).double()
    network = page.Wrapped(model, 10)
    primals, _ = point()
    before = ask(network)(*primals)
    page.with_tangents(model)
    torch.testing.assert_close(ask(network)(*primals), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_derivative_is_the_limit_of_differences(name: str, page: ModuleType) -> None:
    network = page.Wrapped(page.with_tangents(in_float64(create(name, page))), 10, 3.0, -1.0).requires_grad_(False)
    (x, t), (tx, tt) = point()
    value, tangent = torch.func.jvp(ask(network), (x, t), (tx, tt))
    torch.testing.assert_close(value, ask(network)(x, t), rtol=1e-12, atol=1e-12)
    errors = []
    for h in (1e-3, 1e-4):
        with torch.no_grad():
            sides = ask(network)(x + h * tx, t + h * tt) - ask(network)(x - h * tx, t - h * tt)
        errors.append(float((tangent - sides / (2 * h)).norm() / tangent.norm()))
    assert errors[1] < 1e-6
    assert errors[0] > 20 * errors[1], "the error of a central difference falls with the square of its step"


@pytest.mark.parametrize("name", NAMES)
def test_time_has_its_part_in_the_derivative(name: str, page: ModuleType) -> None:
    network = page.Wrapped(page.with_tangents(in_float64(create(name, page))), 10).requires_grad_(False)
    (x, t), (_, tt) = point()
    h = 1e-4
    tangent = torch.func.jvp(lambda t: ask(network)(x, t), (t,), (tt,))[1]
    with torch.no_grad():
        difference = (ask(network)(x, t + h * tt) - ask(network)(x, t - h * tt)) / (2 * h)
    assert float(tangent.norm()) > 1e-3
    torch.testing.assert_close(tangent, difference, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_as_it_comes_there_is_no_derivative(name: str, page: ModuleType) -> None:
    primals, tangents = point(torch.float32)
    network = page.Wrapped(create(name, page), 10)
    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(ask(network), primals, tangents)


def test_attention_of_torch_in_steps_does_for_the_transformer_alone(page: ModuleType) -> None:
    primals, tangents = point(torch.float32)
    stock = page.Wrapped(create("dit", page), 10)
    with sdpa_kernel(SDPBackend.MATH):
        theirs = torch.func.jvp(ask(stock), primals, tangents)[1]
    ours = torch.func.jvp(ask(page.Wrapped(page.with_tangents(create("dit", page)), 10)), primals, tangents)[1]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with sdpa_kernel(SDPBackend.MATH), pytest.raises(RuntimeError, match="view size is not compatible"):
        torch.func.jvp(ask(page.Wrapped(create("unet", page), 10)), primals, tangents)


@pytest.mark.parametrize("objective", ["scd", "ect"])
@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_distilled(name: str, objective: str, page: ModuleType) -> None:
    process = scmreg.processes.create("trigflow")
    meaning = scmreg.parameterizations.create("unit-variance")

    def denoiser() -> scmreg.Denoiser:
        return scmreg.Denoiser(page.Wrapped(page.with_tangents(create(name, page)), 10), process, meaning, classes=10)

    student, teacher = denoiser().train(), denoiser().requires_grad_(False)
    spec = DataSpec(name="noise", shape=(1, 8, 8), modality="image", classes=tuple("0123456789"))
    module = scmreg.objectives.create(objective).build(Setup(student, spec, teacher, steps=10))
    rng = torch.Generator().manual_seed(0)
    x0 = 0.5 * torch.randn(6, 1, 8, 8, generator=rng)
    batch = scmreg.Batch(x0, Conditions(label=torch.arange(6)))
    torch.manual_seed(0)
    loss = module.loss("main", {"model": student}, batch, 0, rng)
    loss.total.backward()
    assert bool(torch.isfinite(loss.total))
    without = [key for key, value in student.named_parameters() if value.grad is None or not bool(value.grad.any())]
    assert not without


@pytest.mark.parametrize("name", NAMES)
def test_samples_do_not_see_each_other(name: str, page: ModuleType) -> None:
    network = page.Wrapped(page.with_tangents(create(name, page).double()), 10)
    (x, t), _ = point()
    alone = network(x[:1], t[:1], Conditions(label=torch.tensor([0])))
    torch.testing.assert_close(ask(network)(x, t)[:1], alone, rtol=1e-10, atol=1e-10)
    unlabelled = network(x, t, Conditions())
    torch.testing.assert_close(unlabelled[2], ask(network)(x, t)[2], rtol=1e-10, atol=1e-10)
