"""The training loop: schedules, averaging, accumulation, order of the data, precision, and stopping at a NaN."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import scmreg
from scmreg import checkpoint
from scmreg.data import Augmentation
from scmreg.errors import DivergenceError, OptionError, UnavailableError
from scmreg.loader import Order, loader
from scmreg.objective import Loss
from scmreg.optimizer import decay, make_optimizer
from scmreg.progress import Progress
from scmreg.recipe import Recipe, Trainer
from scmreg.rng import derive
from scmreg.train import _Loop, build_denoiser, resolve_device, stepper, train

SMALL = {
    "network": {"name": "mlp", "width": 16, "depth": 1},
    "data": {"name": "gaussians", "count": 60, "labelled": True},
}
QUICK = {"steps": 6, "batch_size": 8, "optimizer": "Adam", "learning_rate": 1e-2, "log_every": 1, "device": "cpu"}


def recipe(objective: Any = "diffusion", network: Any = None, **trainer: Any) -> Recipe:
    tree = {"objective": objective, **SMALL, "trainer": {**QUICK, **trainer}}
    return Recipe.from_tree(tree | ({"network": network} if network else {}))


def trained(made: Recipe, folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    folder.mkdir(parents=True, exist_ok=True)
    dataset = made.data.load()
    teacher = build_denoiser(made, dataset.spec.shape, len(dataset.spec.classes), seed=1)
    place = train(made, dataset, folder, Progress(), teacher=teacher if made.objective.needs_teacher else None)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return checkpoint.load(place).tensors("model"), lines


def test_schedules() -> None:
    def factor(step: int, **options: Any) -> float:
        return decay(Trainer(steps=100, **options), step)

    assert factor(0) == 1
    assert factor(50) == pytest.approx(0.5)
    assert factor(99) == pytest.approx(0.5 * (1 + math.cos(0.99 * math.pi)))
    assert factor(73, schedule="constant") == 1
    assert factor(9, schedule="inverse-sqrt", decay_from=40) == 1
    assert factor(159, schedule="inverse-sqrt", decay_from=40) == pytest.approx(0.5)
    assert factor(40, schedule="trapezoid", decay_share=0.5) == 1
    assert factor(75, schedule="trapezoid", decay_share=0.5) == pytest.approx(0.5)
    assert factor(4, schedule="constant", rampup=10) == pytest.approx(0.5)
    assert factor(20, schedule="constant", rampup=10) == 1


def test_every_item_is_seen_once_an_epoch_from_any_step() -> None:
    batches = []
    for batch, _ in zip(Order(10, 4, seed=0, start=0), range(25), strict=False):
        batches.append(batch)
    stream = [index for batch in batches for index in batch]
    assert [sorted(stream[i : i + 10]) for i in range(0, 100, 10)] == [list(range(10))] * 10
    assert stream[:10] != stream[10:20]
    for start in (1, 2, 7, 20):
        later = [batch for batch, _ in zip(Order(10, 4, seed=0, start=start), range(3), strict=False)]
        assert later == batches[start : start + 3]
    big = next(iter(Order(3, 8, seed=0, start=0)))
    assert sorted(big[:3]) == [0, 1, 2]
    assert len(big) == 8


def test_a_run_repeats_itself_to_the_bit_and_depends_on_its_seed(tmp_path: Path) -> None:
    one, lines = trained(recipe(), tmp_path / "a")
    two, _ = trained(recipe(), tmp_path / "b")
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert [line["step"] for line in lines] == list(range(1, 7))
    other = Recipe.from_tree({**recipe().to_tree(), "seed": 1})
    three, _ = trained(other, tmp_path / "c")
    assert any(not torch.equal(one[key], three[key]) for key in one)


@pytest.mark.parametrize(
    "how", [{"workers": 1}, {"log_every": 3}, {"checkpoint_every": 2}, {"keep": 1}, {"threads": 1}]
)
def test_operational_options_leave_the_weights_alone(tmp_path: Path, how: dict[str, Any]) -> None:
    one, _ = trained(recipe(), tmp_path / "a")
    two, _ = trained(recipe(**how), tmp_path / "b")
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert set(how) <= Trainer.operational


def test_accumulation_weighs_every_sample_alike(tmp_path: Path) -> None:
    """The parts of a batch, of unequal size, add up to the gradient of the mean over the batch."""
    made = recipe(optimizer="SGD", accumulation=3)
    dataset = made.data.load()
    loop = _Loop(made, dataset, tmp_path, None, None)
    batch = dataset_batch(dataset, 8)
    assert [len(part.x0) for part in loop._parts(batch)] == [3, 3, 2]

    class Mean(torch.nn.Module):
        """A loss without randomness: the mean over the samples of the output for them."""

        phases = loop.objective.phases

        def loss(self, phase: str, nets: Any, part: Any, step: int, rng: Any) -> Loss:
            x = part.x0
            out = nets["model"](x, torch.ones(len(x)), part.cond).sum(1) * x[:, 0]
            return Loss(out.mean(), out.detach(), torch.ones(len(x)))

    loop.objective = Mean()
    loop.take_step(batch)
    ours = [p.grad.clone() for p in loop.denoiser.parameters() if p.grad is not None and p.grad.any()]
    whole = _Loop(recipe(optimizer="SGD"), dataset, tmp_path, None, None)
    whole.objective = Mean()
    whole.take_step(batch)
    reference = [p.grad for p in whole.denoiser.parameters() if p.grad is not None and p.grad.any()]
    assert len(ours) == len(reference) >= 2
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def dataset_batch(dataset: Any, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return dataset.train.__getitems__(range(count)), dataset.train.labels[:count]


def test_a_stepper_takes_the_steps_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = recipe("scd")
    dataset = made.data.load()
    teacher = build_denoiser(made, dataset.spec.shape, len(dataset.spec.classes), seed=1)
    step = stepper(made, dataset, teacher)
    taken = [step() for _ in range(3)]
    loop = _Loop(made, dataset, tmp_path, teacher, None)
    for figures in taken:
        batch = next(iter(loader(dataset, made.trainer, derive(*loop.key, "order"), 0, loop.device)))
        assert loop.take_step(batch) == figures
        loop.step += 1
    assert len({figures["loss"] for figures in taken}) == 3
    assert len({figures["learning_rate"] for figures in taken}) == 3
    assert not list(tmp_path.iterdir())


def test_averaged_weights_follow_their_half_life(tmp_path: Path) -> None:
    made = recipe(ema_half_life=2.0)
    loop = _Loop(made, made.data.load(), tmp_path, None, None)
    loop.step = 1000
    with torch.no_grad():
        for mean, now in zip(loop.average.parameters(), loop.denoiser.parameters(), strict=True):
            mean.zero_()
            now.fill_(1.0)
    loop._average()
    loop._average()
    assert all(torch.allclose(p, torch.full_like(p, 0.5)) for p in loop.average.parameters())
    off = _Loop(recipe(ema_half_life=0), made.data.load(), tmp_path, None, None)
    with torch.no_grad():
        for p in off.denoiser.parameters():
            p.fill_(3.0)
    off._average()
    assert all(torch.equal(p, torch.full_like(p, 3.0)) for p in off.average.parameters())


def test_clipping(tmp_path: Path) -> None:
    made = recipe(clip=1e-3, optimizer="SGD", learning_rate=1.0, schedule="constant", rampup=0)
    dataset = made.data.load()
    loop = _Loop(made, dataset, tmp_path, None, None)
    before = torch.cat([p.detach().clone().flatten() for p in loop.denoiser.parameters()])
    figures = loop.take_step(dataset_batch(dataset, 8))
    after = torch.cat([p.detach().flatten() for p in loop.denoiser.parameters()])
    assert figures["gradient_norm"] > 1e-3
    assert float((after - before).norm()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("objective", sorted(scmreg.objectives))
@pytest.mark.parametrize("network", [{"name": "mlp", "width": 16, "depth": 1}])
def test_bfloat16_trains(tmp_path: Path, objective: str, network: Any) -> None:
    model, lines = trained(recipe(objective, network, precision="bfloat16"), tmp_path)
    assert all(value.dtype == torch.float32 for value in model.values() if value.is_floating_point())
    assert all(math.isfinite(line["loss"]) for line in lines)
    _, reference = trained(recipe(objective, network), tmp_path / "f32")
    assert lines[-1]["loss"] != reference[-1]["loss"]
    assert lines[-1]["loss"] == pytest.approx(reference[-1]["loss"], rel=0.1, abs=0.05)


def test_joint_and_separate_passes_train_alike(tmp_path: Path) -> None:
    network = {"name": "mlp", "width": 16, "depth": 1, "dropout": 0.3}
    one, _ = trained(recipe("scd", network, tangent_pass="joint"), tmp_path / "a")
    two, _ = trained(recipe("scd", network, tangent_pass="separate"), tmp_path / "b")
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "dit"])
@pytest.mark.parametrize("objective", ["diffusion", "scd", "ect", "dscd"])
def test_compiled_training_is_compiled_and_the_same(tmp_path: Path, objective: str, name: str) -> None:
    network = {"name": name, "width": 16, "depth": 1}
    data = {"name": "digits"} if name == "dit" else SMALL["data"]

    def run(folder: str, **trainer: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        tree = {"objective": objective, "network": network, "data": data, "trainer": {**QUICK, "steps": 2, **trainer}}
        return trained(Recipe.from_tree(tree), tmp_path / folder)

    one, reference = run("a")
    counters.clear()
    torch.compiler.reset()
    two, lines = run("b", compile=True)
    assert not counters["graph_break"]
    assert counters["stats"]["calls_captured"] > 50
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in reference], rel=1e-4)
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("objective", sorted(scmreg.objectives))
def test_training_stops_at_the_first_figure_that_is_not_finite(tmp_path: Path, objective: str) -> None:
    made = recipe(objective, optimizer="SGD", learning_rate=1e25, steps=50, schedule="constant")
    with pytest.raises(DivergenceError) as error:
        trained(made, tmp_path)
    text = str(error.value)
    assert "not finite at step" in text
    assert "learning_rate" in text
    assert checkpoint.latest(tmp_path / "checkpoints") is None  # nothing broken was saved


def test_divergence_names_the_times(tmp_path: Path) -> None:
    made = recipe("scd")
    dataset = made.data.load()
    teacher = build_denoiser(made, dataset.spec.shape, len(dataset.spec.classes), seed=1)
    loop = _Loop(made, dataset, tmp_path, teacher, None)
    with torch.no_grad():
        loop.denoiser.network.leave.bias.fill_(float("nan"))
    with pytest.raises(DivergenceError, match=r"step 1 .* of 8 samples\n.*TrigFlow times lie in \["):
        loop.take_step(dataset_batch(dataset, 8))


def test_optimizers_and_devices_by_name() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    assert isinstance(make_optimizer(Trainer(optimizer="adamw"), parameters), torch.optim.AdamW)
    with pytest.raises(OptionError, match="did you mean 'Adam'"):
        make_optimizer(Trainer(optimizer="Adm"), parameters)
    with pytest.raises(OptionError, match="optimizer_options"):
        make_optimizer(Trainer(optimizer_options={"beta": 1}), parameters)
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(OptionError, match="no device called 'gpu'"):
        resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UnavailableError, match="not available here"):
            resolve_device("cuda")


def test_augmentation() -> None:
    x = torch.arange(2 * 36.0).reshape(2, 1, 6, 6)
    rng = torch.Generator().manual_seed(0)
    assert Augmentation().apply(x, rng) is x
    many = x[:1].expand(400, 1, 6, 6)
    flipped = Augmentation(flip=True).apply(many, rng)
    mirrored = (flipped == many.flip(-1)).flatten(1).all(1)
    assert bool((mirrored | (flipped == many).flatten(1).all(1)).all())
    assert 0.4 < float(mirrored.float().mean()) < 0.6
    shifted = Augmentation(shift=1).apply(many, rng)
    padded = torch.nn.functional.pad(x[:1], (1, 1, 1, 1), mode="replicate")
    windows = {tuple(padded[0, 0, i : i + 6, j : j + 6].flatten().tolist()) for i in range(3) for j in range(3)}
    assert {tuple(image.flatten().tolist()) for image in shifted} == windows
