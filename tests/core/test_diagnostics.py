"""The log per bin of time: every sample is counted once, in its bin, whatever happens to the run."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import scmreg
from scmreg.coordinates import process_time
from scmreg.diagnostics import Bins, edges, midpoints
from scmreg.errors import DivergenceError
from scmreg.objective import Loss, ObjectiveModule
from scmreg.preview import previews
from scmreg.progress import Progress
from scmreg.recipe import Recipe, Trainer
from scmreg.tangent import consistency_tangent, evaluate_with_jvp, motion, tangent_parts
from scmreg.train import _Loop, build_denoiser, train
from scmreg.types import Conditions

HALF = math.pi / 2


def recipe(objective: Any = "sct", **trainer: Any) -> Recipe:
    if objective == "sct":
        objective = {"name": "sct", "start": "scratch", "warmup": 4, "weighting": "adaptive"}
    return Recipe.from_tree(
        {
            "objective": objective,
            "network": {"name": "mlp", "width": 16, "depth": 1, "dropout": 0.2},
            "data": {"name": "gaussians", "count": 50, "labelled": True},
            "trainer": {"steps": 7, "batch_size": 12, "log_every": 4, "log_bins": 5, "device": "cpu", **trainer},
        }
    )


def run(made: Recipe, folder: Path, progress: Progress | None = None) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    dataset = made.data.load()
    teacher = build_denoiser(made, dataset.spec.shape, len(dataset.spec.classes), seed=1)
    train(made, dataset, folder, progress or Progress(), teacher=teacher if made.objective.needs_teacher else None)
    return lines(folder)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "bins.jsonl").read_text().splitlines()]


def loss(t_hat: list[float], **figures: list[float]) -> Loss:
    values = {name: torch.tensor(value) for name, value in figures.items()}
    return Loss(torch.tensor(0.0), values.pop("loss"), torch.tensor(t_hat), values)


def test_edges_and_midpoints() -> None:
    assert edges(2) == pytest.approx([0, HALF / 2, HALF])
    assert midpoints(2).tolist() == pytest.approx([HALF / 4, 3 * HALF / 4])


def test_samples_fall_into_their_bins() -> None:
    bins = Bins(4)
    bins.add("main", loss([0.0, 0.1, HALF, 0.5 * HALF], loss=[1.0, 3.0, 5.0, 7.0], weight=[1.0, 1.0, 2.0, 3.0]))
    bins.add("main", loss([0.2, HALF * 0.99], loss=[8.0, 1.0], weight=[4.0, 4.0]))
    (line,) = bins.lines(9)
    assert (line["step"], line["phase"]) == (9, "main")
    assert line["count"] == [3, 0, 1, 2]
    assert line["nonfinite"] == [0, 0, 0, 0]
    assert line["figures"] == {"loss": [4.0, None, 7.0, 3.0], "weight": [2.0, None, 3.0, 3.0]}
    assert bins.lines(10) == [], "it began anew"


def test_what_is_not_finite_is_counted_and_spoils_no_mean() -> None:
    bins = Bins(2)
    bins.add("main", loss([0.1, 0.2, 1.5], loss=[1.0, math.nan, math.inf], weight=[1.0, 2.0, 3.0]))
    (line,) = bins.lines(1)
    assert line["count"] == [2, 1]
    assert line["nonfinite"] == [1, 1]
    assert line["figures"] == {"loss": [1.0, None], "weight": [1.5, 3.0]}
    json.loads(json.dumps(line, allow_nan=False))


def test_phases_and_further_figures_have_their_own_means() -> None:
    bins = Bins(2)
    bins.add("a", loss([0.1], loss=[1.0]))
    bins.add("b", loss([0.1], loss=[2.0], fake=[3.0]))
    bins.add_figures("a", midpoints(2), {"tangent_time_norm": torch.tensor([5.0, 6.0])})
    bins.add_figures("b", midpoints(2), {})
    one, two = bins.lines(1)
    assert one["count"] == [1, 0]
    assert one["figures"] == {"loss": [1.0, None], "tangent_time_norm": [5.0, 6.0]}
    assert two["figures"] == {"loss": [2.0, None], "fake": [3.0, None]}


@pytest.mark.parametrize("cut", [0, 1, 100, 150])
def test_sums_survive_a_checkpoint_to_the_bit(cut: int) -> None:
    rng = torch.Generator().manual_seed(0)
    batches = [
        Loss(torch.tensor(0.0), torch.rand(7, generator=rng), HALF * torch.rand(7, generator=rng)) for _ in range(150)
    ]
    whole, first, second = Bins(3), Bins(3), Bins(3)
    for batch in batches:
        whole.add("main", batch)
    for batch in batches[:cut]:
        first.add("main", batch)
    second.load(json.loads(json.dumps(first.to_json())))
    for batch in batches[cut:]:
        second.add("main", batch)
    assert second.to_json() == whole.to_json()
    assert sum(whole.lines(1)[0]["count"]) == 150 * 7
    other = Bins(4)
    other.load(first.to_json())
    assert other.lines(1) == []


@pytest.mark.parametrize("objective", sorted(scmreg.objectives))
def test_every_objective_is_logged_per_bin(tmp_path: Path, objective: str) -> None:
    found = run(recipe({"name": objective}), tmp_path)
    phases = {line["phase"] for line in found}
    for phase in phases:
        of_phase = [line for line in found if line["phase"] == phase]
        assert [line["step"] for line in of_phase] == [4, 7]
        assert sum(sum(line["count"]) for line in of_phase) <= 7 * 12
    assert sum(sum(line["count"]) for line in found if line["phase"] == found[0]["phase"]) == 7 * 12
    for line in found:
        assert sum(line["nonfinite"]) == 0
        for name, means in line["figures"].items():
            assert len(means) == 5
            if name == "loss":
                assert [mean is None for mean in means] == [count == 0 for count in line["count"]]


def test_the_two_of_scm_tell_of_the_tangent(tmp_path: Path) -> None:
    for index, objective in enumerate(("sct", {"name": "scd", "warmup": 4})):
        for line in run(recipe(objective), tmp_path / str(index)):
            assert {"weight", "tangent_norm", "target_norm"} < set(line["figures"])
            # The flow of an untrained teacher stands still, so that nothing moves in space.
            assert all(value > 0 or index for value in line["figures"]["tangent_space_norm"])
            assert all(value > 0 for value in line["figures"]["tangent_time_norm"]), "one sample in every bin"
    metrics = [json.loads(line) for line in (tmp_path / "0" / "metrics.jsonl").read_text().splitlines()]
    assert {"weight", "tangent_norm", "target_norm"} < set(metrics[0])


def test_weights_are_the_factors_of_the_loss(tmp_path: Path) -> None:
    made = recipe({"name": "diffusion", "weighting": "snr"}, log_bins=64, batch_size=500, previews=0)
    for line in run(made, tmp_path):
        for middle, weight in zip(midpoints(64).tolist(), line["figures"]["weight"], strict=True):
            if weight is not None:
                assert weight == pytest.approx(math.cos(middle) ** 2, abs=0.03)


def test_logging_and_pictures_change_no_weight(tmp_path: Path) -> None:
    run(recipe(log_every=1, checkpoint_every=2), tmp_path / "often")
    run(recipe(log_every=100, previews=0), tmp_path / "seldom")
    weights = []
    for name in ("often", "seldom"):
        saved = scmreg.load_run(tmp_path / name).checkpoint
        weights.append(saved.tensors("model") | saved.tensors("ema"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert len(lines(tmp_path / "often")) == 7
    assert len(lines(tmp_path / "seldom")) == 1


class Stop(Exception):
    pass


class Stopping(Progress):
    """Ends the training after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def task(self, title: str, total: int, done: int = 0) -> Any:
        from contextlib import nullcontext

        class Task:
            def update(task, done: int, loss: float | None = None) -> None:
                if done == self.step:
                    raise Stop

        return nullcontext(Task())


@pytest.mark.parametrize("every", [2, 3, 5])
def test_a_resumed_run_has_the_log_of_an_undisturbed_one(tmp_path: Path, every: int) -> None:
    """Also from a checkpoint between two lines of the log; lines and pictures after the checkpoint are made again."""
    made = recipe()
    whole = run(made, tmp_path / "whole")
    often = dataclasses.replace(made, trainer=dataclasses.replace(made.trainer, checkpoint_every=every))
    with pytest.raises(Stop):
        run(often, tmp_path / "broken", Stopping(6))
    with (tmp_path / "broken" / "bins.jsonl").open("a") as file:
        file.write('{"step": 6, "pha')
    resumed = run(made, tmp_path / "broken")
    assert resumed == whole
    assert list(previews(tmp_path / "broken"))[-1] == 7


def test_begun_anew_nothing_old_is_left(tmp_path: Path) -> None:
    run(recipe(checkpoint_every=2), tmp_path)
    assert list(previews(tmp_path)) == [2, 4, 6, 7]
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        checkpoint.rename(tmp_path / checkpoint.name)
    found = run(recipe(steps=3), tmp_path)
    assert [line["step"] for line in found] == [3]
    assert list(previews(tmp_path)) == [3]


def test_divergence_is_in_the_log(tmp_path: Path) -> None:
    made = recipe("diffusion", optimizer="SGD", learning_rate=1e25, steps=50, schedule="constant", log_every=50)
    with pytest.raises(DivergenceError) as error:
        run(made, tmp_path)
    (line,) = lines(tmp_path)
    assert f"step {line['step']}" in str(error.value)
    assert sum(line["count"]) == line["step"] * 12
    assert sum(line["nonfinite"]) > 0


class Plain(ObjectiveModule):
    """What a third party writes: nothing but a loss per sample and its times."""

    def loss(self, phase: str, nets: Any, batch: Any, step: int, rng: Any) -> Loss:
        t = torch.rand(len(batch.x0), generator=rng)
        value = (nets["model"](batch.x0, t, batch.cond) - batch.x0).square().mean(1)
        return Loss(value.mean(), value.detach(), t)


def test_an_objective_that_tells_no_more_than_it_must(tmp_path: Path) -> None:
    made = recipe("diffusion")
    dataset = made.data.load()
    loop = _Loop(made, dataset, tmp_path, None, None)
    loop.objective = Plain(loop.objective.setup)
    batch = dataset.train.__getitems__(range(12)), dataset.train.labels[:12]
    loop.take_step(batch)
    loop._diagnose(batch)
    (line,) = loop.bins.lines(1)
    assert sum(line["count"]) == 12
    assert set(line["figures"]) == {"loss"}


def test_figures_of_a_wrong_shape_are_refused() -> None:
    one = torch.ones(3)
    with pytest.raises(ValueError, match=r"'weight' has shape \(\) and per_sample \(3,\)"):
        Loss(one.mean(), one, one, {"weight": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="'t_hat' has shape"):
        Loss(one.mean(), one, torch.ones(3, 1))


@pytest.mark.parametrize("process", sorted(scmreg.processes))
def test_the_parts_of_the_tangent_add_up(process: str) -> None:
    """In float64, under every process, at any time; dropout is the same in both parts."""
    from scmreg_networks import MLP

    torch.manual_seed(0)
    chosen = scmreg.processes.create(process)
    model = scmreg.Denoiser(
        MLP(width=16, depth=2).build((3,), 0), chosen, scmreg.parameterizations.create("unit-variance")
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x0, noise = 0.5 * torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    t = process_time(chosen, torch.tensor([0.02, 0.3, 0.8, 1.2, 1.5], dtype=torch.float64))
    at = motion(model, chosen.perturb(x0, noise, t), t, x0, noise)
    value, jvp_hat = evaluate_with_jvp(model, model, at, Conditions(), "joint")
    whole = consistency_tangent(value.detach(), jvp_hat, at, chosen.sigma_data, warmup=1.0)
    in_space, in_time = tangent_parts(model, model, at, Conditions())
    torch.testing.assert_close(in_space + in_time, whole, rtol=1e-9, atol=1e-11)
    # The part in space is the derivative of f along the motion, at a time that stands still.
    step = 1e-6
    scale = (chosen.std(t) / chosen.sigma_data)[:, None]
    moved = [model.consistency(at.x + sign * step * scale * at.velocity_hat, t) for sign in (1, -1)]
    slope = torch.cos(at.t_hat)[:, None] * (moved[0] - moved[1]) / (2 * step)
    torch.testing.assert_close(in_space, slope.detach(), rtol=1e-5, atol=1e-7)
    assert not in_space.requires_grad


def test_the_options_of_the_log_are_operational() -> None:
    assert {"log_bins", "previews"} <= Trainer.operational
    assert recipe().training_key() == recipe(log_bins=9, previews=3).training_key()
