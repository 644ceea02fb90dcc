"""Sums of objectives: one step of the model for all terms, weighted; everything else as each term alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scmreg
from scmreg import checkpoint, options
from scmreg import recipe as recipes
from scmreg.denoiser import Denoiser
from scmreg.errors import CompositionError, DivergenceError, OptionError
from scmreg.objective import Loss, Nets, Objective, ObjectiveModule, Phase, Setup
from scmreg.progress import Progress
from scmreg.recipe import Recipe, Trainer
from scmreg.rng import derive, generator
from scmreg.settings import apply_settings, set_path
from scmreg.train import _Loop, build_denoiser, train
from scmreg.types import Batch

SMALL = {
    "network": {"name": "mlp", "width": 16, "depth": 1, "dropout": 0.2},
    "data": {"name": "gaussians", "count": 60, "labelled": True},
}
QUICK = {"steps": 5, "batch_size": 8, "optimizer": "Adam", "learning_rate": 1e-2, "log_every": 1, "device": "cpu"}
TERMS = sorted(set(scmreg.objectives) - {"sum"})


def recipe(objective: Any, **trainer: Any) -> Recipe:
    return Recipe.from_tree({"objective": objective, **SMALL, "trainer": {**QUICK, **trainer}})


def teacher_of(made: Recipe) -> Denoiser:
    """Return a teacher whose last layer is not zero, the same for every objective."""
    spec = made.data.load().spec
    torch.manual_seed(0)
    network = made.network.build(spec.shape, len(spec.classes))
    nn.init.normal_(network.leave.weight, std=0.2)
    return Denoiser(network, made.process, made.parameterization, len(spec.classes))


def loop_of(made: Recipe, folder: Path) -> _Loop:
    return _Loop(made, made.data.load(), folder, teacher_of(made) if made.objective.needs_teacher else None, None)


def batch_of(loop: _Loop) -> tuple[Tensor, Tensor]:
    return loop.dataset.train.__getitems__(range(8)), loop.dataset.train.labels[:8]


def trained(made: Recipe, folder: Path) -> tuple[checkpoint.Checkpoint, list[dict[str, Any]]]:
    folder.mkdir()
    teacher = teacher_of(made) if made.objective.needs_teacher else None
    place = train(made, made.data.load(), folder, Progress(), teacher=teacher)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return checkpoint.load(place), lines


def check_equal(one: checkpoint.Checkpoint, other: checkpoint.Checkpoint) -> None:
    for part in ("model", "ema"):
        ours, theirs = one.tensors(part), other.tensors(part)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours | theirs)
    ours, theirs = (saved.tensors("optimizer-main") for saved in (one, other))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours | theirs)


# What it computes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", TERMS)
def test_the_sum_of_one_term_is_the_term_to_the_bit(tmp_path: Path, term: str) -> None:
    alone, lines = trained(recipe(term), tmp_path / "alone")
    summed, others = trained(recipe({"name": "sum", "terms": [term]}), tmp_path / "sum")
    check_equal(alone, summed)
    for line, other in zip(lines, others, strict=True):
        assert line["loss"] == other["loss"]
        if getattr(scmreg.objectives.create(term), "weighting", None) == scmreg.weightings.create("uniform"):
            assert other[f"{term}_loss"] == pytest.approx(line["loss"], rel=1e-6)


@pytest.mark.parametrize(("kept", "dropped"), [("scd", "vsd"), ("vsd", "scd"), ("diffusion", "sct")])
def test_a_term_of_weight_0_is_left_out(tmp_path: Path, kept: str, dropped: str) -> None:
    with_it = recipe({"name": "sum", "terms": [dropped, kept], "weights": [0, 1]})
    without = recipe({"name": "sum", "terms": [kept]})
    assert with_it == without
    assert with_it.objective.title == kept
    one, lines = trained(with_it, tmp_path / "a")
    two, others = trained(recipe(kept), tmp_path / "b")
    check_equal(one, two)
    assert not any(name.startswith(f"{dropped}_") for name in lines[-1])
    assert lines[-1]["loss"] == others[-1]["loss"]


def losses(made: Recipe, loop: _Loop, phase: str = "main", step: int = 9) -> Loss:
    torch.manual_seed(derive("dropout"))
    batch = next(loop._parts(batch_of(loop)))
    return loop.objective.loss(phase, loop.nets, batch, step, generator("loss"))


def gradient(loop: _Loop, total: Tensor) -> Tensor:
    found = torch.autograd.grad(total, list(loop.denoiser.parameters()), allow_unused=True, retain_graph=True)
    return torch.cat([part.flatten() for part in found if part is not None])


def test_the_gradient_is_the_weighted_sum(tmp_path: Path) -> None:
    """Of the gradients of the terms, each with its weight; every term is told the same batch."""
    weights = {"diffusion": 0.5, "scd": 2.0, "vsd": 3.0}
    made = recipe({"name": "sum", "terms": list(weights), "weights": list(weights.values())})
    loop = loop_of(made, tmp_path)
    with torch.no_grad():
        for parameter in loop.objective.get_submodule("terms.2.fake_score").parameters():
            parameter.add_(0.05)
    whole = losses(made, loop)
    assert list(whole.parts) == list(weights)
    expected = sum(weights[name] * part.total for name, part in whole.parts.items())
    torch.testing.assert_close(whole.total, expected)
    parts = [weights[name] * gradient(loop, part.total) for name, part in whole.parts.items()]
    assert all(float(part.norm()) > 1e-6 for part in parts)
    torch.testing.assert_close(gradient(loop, whole.total), torch.stack(parts).sum(0))
    assert [name for name, _ in whole.by_name()] == ["diffusion_", "scd_", "vsd_"]
    assert whole.per_sample.shape == whole.t_hat.shape == (24,)
    for name, part in whole.by_name():
        assert part.per_sample.shape == part.t_hat.shape == (8,)
        assert all(value.shape == (8,) for value in part.logs.values()), name


def test_terms_draw_one_after_the_other(tmp_path: Path) -> None:
    """The first as it does alone, and no two the same numbers."""
    both, alone = loop_of(recipe("scd+diffusion"), tmp_path), loop_of(recipe("scd"), tmp_path)
    whole, single = losses(both.recipe, both), losses(alone.recipe, alone)
    assert torch.equal(whole.parts["scd"].t_hat, single.t_hat)
    assert not torch.equal(whole.parts["scd"].t_hat, whole.parts["diffusion"].t_hat)


def test_further_phases_stay(tmp_path: Path) -> None:
    made = recipe({"name": "sum", "terms": [{"name": "scd", "weighting": "adaptive"}, "vsd", "diffusion"]})
    loop = loop_of(made, tmp_path)
    assert [phase.name for phase in loop.objective.phases] == ["main", "vsd_fake"]
    main, fake = loop.objective.phases
    assert main.nets == ("model",)
    assert main.own == ("terms.0.weighting", "terms.1.weighting", "terms.2.weighting")
    assert (fake.nets, fake.own) == (("terms.1.fake_score",), ("terms.1.fake_objective",))
    network = loop.objective.get_submodule("terms.1.fake_score")
    assert {id(p) for p in loop.parameters["vsd_fake"]} == {id(p) for p in network.parameters()}
    learned = loop.objective.get_submodule("terms.0.weighting")
    moved = {id(p) for p in (*loop.denoiser.parameters(), *learned.parameters())}
    assert {id(p) for p in loop.parameters["main"]} == moved
    before = [[p.detach().clone() for p in module.parameters()] for module in (loop.denoiser, network, learned)]
    for _ in range(2):
        figures = loop.take_step(batch_of(loop))
        loop.step += 1
    for module, old in zip((loop.denoiser, network, learned), before, strict=True):
        assert any(not torch.equal(p, q) for p, q in zip(module.parameters(), old, strict=True))
    assert {
        "loss", "main_loss", "main_gradient_norm", "main_learning_rate", "scd_loss", "scd_tangent_norm", "vsd_loss",
        "vsd_score_difference", "diffusion_loss", "vsd_fake_loss", "vsd_fake_gradient_norm", "vsd_fake_learning_rate",
    } <= set(figures)  # fmt: skip
    assert figures["loss"] == figures["main_loss"]


@pytest.mark.parametrize("objective", ["vsd", "scd+vsd", "vsd+scd"])
def test_the_fake_score_learns_at_ten_times_the_rate_of_its_generator(tmp_path: Path, objective: str) -> None:
    """Whichever term has chosen that rate."""
    loop = loop_of(recipe(objective, learning_rate=0.003), tmp_path)
    figures = loop.take_step(batch_of(loop))
    fake = figures["fake_learning_rate" if objective == "vsd" else "vsd_fake_learning_rate"]
    assert figures["main_learning_rate"] == pytest.approx(0.003)
    assert fake == pytest.approx(0.03)


def test_a_term_that_waits_leaves_the_step_to_the_others(tmp_path: Path) -> None:
    made = recipe({"name": "sum", "terms": ["scd", {"name": "vsd", "generator_every": 3}]})
    loop = loop_of(made, tmp_path)
    for step in range(6):
        figures = loop.take_step(batch_of(loop))
        loop.step += 1
        assert "scd_loss" in figures
        assert ("vsd_loss" in figures) is ((step + 1) % 3 == 0)
        assert "vsd_fake_loss" in figures


def test_a_figure_that_is_not_finite_is_named_with_its_term_and_times(tmp_path: Path) -> None:
    loop = loop_of(recipe("scd+vsd"), tmp_path)
    with torch.no_grad():
        loop.objective.get_submodule("terms.1.fake_score").network.leave.bias.fill_(float("nan"))
    with pytest.raises(DivergenceError, match=r"vsd score difference of scd\+vsd is not finite at step 1") as error:
        loop.take_step(batch_of(loop))
    assert "for 8 of 8 samples" in str(error.value)


def test_a_module_within_a_term_that_no_phase_moves_is_refused(tmp_path: Path) -> None:
    loop = loop_of(recipe({"name": "sum", "terms": ["scd", {"name": "vsd", "fake_weighting": "adaptive"}]}), tmp_path)
    main, fake = loop.objective.phases
    for phases, lost in (
        ((main, replace(fake, own=())), "terms.1.fake_objective.weighting.head"),
        ((main, replace(fake, nets=("terms.1.fake_",))), "terms.1.fake_score.network"),
    ):
        loop.objective.phases = phases
        with pytest.raises(TypeError, match=f"no phase of SumModule moves its parameter {lost}"):
            loop._check_ownership(None)


# How terms agree -----------------------------------------------------------------------------------------------------


class Fake(ObjectiveModule):
    """A module with given phases."""

    def __init__(self, setup: Setup, phases: tuple[Phase, ...]) -> None:
        super().__init__(setup)
        self.phases = phases
        self.weighting = nn.Linear(1, 1)
        self.second = nn.Linear(1, 1)

    def loss(self, phase: str, nets: Nets, batch: Batch, step: int, rng: torch.Generator) -> Loss:
        assert set(nets) == {"model", "second"}
        ones = torch.ones(len(batch.x0))
        return Loss(nets["second"](batch.x0[:, :1]).mean(), ones, ones, {phase: ones * step})


class Stub(Objective):
    """An objective with given phases."""

    phases: tuple[Any, ...] = ()

    def build(self, setup: Setup) -> ObjectiveModule:
        return Fake(setup, self.phases)


class One(Stub, name="stub-one"):
    """The first."""


class Two(Stub, name="stub-2.0"):
    """The second, of a name that is no name of a module."""


def made_of(one: tuple[Phase, ...], two: tuple[Phase, ...]) -> Any:
    process, unit = scmreg.processes.create("trigflow"), scmreg.parameterizations.create("unit-variance")
    model = Denoiser(nn.Linear(2, 2), process, unit)
    terms = []
    for cls, phases in ((One, one), (Two, two)):
        term = cls()
        object.__setattr__(term, "phases", phases)
        terms.append(term)
    made = scmreg.objectives["sum"](terms=tuple(terms))  # type: ignore[call-arg]
    return made.build(Setup(model, scmreg.DataSpec("test", (2,), "points")))


def test_phases_of_terms_are_merged_in_their_order() -> None:
    side = Phase("side", nets=("second",), every=2, options={"learning_rate": 0.1})
    module = made_of((side, Phase("main", own=("weighting",), every=4)), (Phase("main", every=2), side))
    first, main, last = module.phases
    assert first == replace(side, name="stub-one_side", nets=("terms.0.second",))
    assert main == Phase("main", nets=("model",), own=("terms.0.weighting",), every=2)
    assert last == replace(side, name="stub-2.0_side", nets=("terms.1.second",))
    second = {f"terms.{index}.second": term.second for index, term in enumerate(module.terms)}
    nets = {"model": module.setup.denoiser, **second}
    result = module.loss("stub-2.0_side", nets, Batch(torch.ones(3, 2)), 7, torch.Generator())
    assert list(result.logs) == ["side"]
    main_loss = module.loss("main", nets, Batch(torch.ones(3, 2)), 1, torch.Generator())
    assert list(main_loss.parts) == ["stub-2.0"], "the other waits for the fourth step"


@pytest.mark.parametrize(
    ("one", "two", "words"),
    [
        (Phase("main", every=2), Phase("main", every=3), "every 2 and every 3"),
        (Phase("main", options={"clip": 1.0}), Phase("main"), "clip"),
        (Phase("main", rate=2.0), Phase("main"), "at the rates 2 and 1"),
    ],
)
def test_main_phases_that_cannot_be_one_step(one: Phase, two: Phase, words: str) -> None:
    with pytest.raises(CompositionError, match=r"stub-one\+stub-2.0 cannot move the model in one step") as error:
        made_of((one,), (two,))
    assert words in str(error.value)


def test_what_the_terms_say_of_themselves() -> None:
    create = scmreg.objectives.create
    assert create("sum") == create("scd+vsd")
    both, plain = create("diffusion+scd"), create("sum", terms=[{"name": "diffusion", "label_dropout": 0.2}])
    assert (both.title, plain.title) == ("diffusion+scd", "diffusion")
    assert (both.needs_teacher, both.needs_boundary, both.few_step, both.sampler) == (True, True, True, "consistency")
    assert (plain.needs_teacher, plain.needs_boundary, plain.few_step, plain.sampler) == (False, False, False, "heun")
    assert both.starts_from_teacher
    assert not plain.starts_from_teacher
    assert both.trainer == plain.trainer == create("diffusion").trainer
    assert create("scd+diffusion").trainer == create("scd").trainer
    assert (both.label_dropout, plain.label_dropout) == (0, 0.2)
    assert create("scd+vsd", weights=[2, 1]).weights == (2.0, 1.0)
    for name in scmreg.objectives:
        assert create(name).gives <= create(f"{name}+diffusion" if name == "scd" else name).gives


def test_guidance_knows_a_term_that_learned_without_labels() -> None:
    def made(dropout: float) -> Recipe:
        terms = [{"name": "diffusion", "label_dropout": dropout}]
        sampler = {"name": "heun", "guidance": 2}
        return Recipe.from_tree({"objective": {"name": "sum", "terms": terms}, "sampler": sampler})

    made(0.1).check()
    with pytest.raises(CompositionError, match="trains no model without labels"):
        made(0.0).check()


def test_terms_that_start_from_different_weights() -> None:
    tree = {"objective": {"name": "sum", "terms": [{"name": "scd", "start": "scratch"}, "vsd"]}}
    with pytest.raises(CompositionError, match=r"objective.terms.scd.start is 'scratch', objective.terms.vsd.start is"):
        Recipe.from_tree(tree).check()
    apply_settings(tree, ["objective.terms.vsd.start=scratch"])
    Recipe.from_tree(tree).check()


# How it is written ---------------------------------------------------------------------------------------------------


def test_the_ways_to_write_a_sum() -> None:
    create = scmreg.objectives.create
    made = create("scd+vsd", weights=[1, 0.5])
    written = {"name": "sum", "terms": ["scd", {"name": "vsd"}], "weights": [1, 0.5]}
    for objective in (made, written, {"name": "scd+vsd", "weights": [1, 0.5]}):
        assert Recipe.from_tree({"objective": objective}).objective == made
    assert Recipe(objective=written).objective == made  # type: ignore[arg-type]
    assert Recipe.from_tree({"objective": "scd+vsd"}) == Recipe(objective="scd + vsd")  # type: ignore[arg-type]
    assert options.to_tree(made)["weights"] == (1.0, 0.5) or options.to_tree(made)["weights"] == [1.0, 0.5]
    resolved = Recipe.from_tree({"objective": made})
    assert Recipe.from_tree(recipes.load_yaml(resolved.to_yaml())) == resolved
    teacher = Recipe.from_tree({"teacher": {"objective": "diffusion"}})
    assert Recipe.from_tree({"teacher": {"objective": {"name": "sum", "terms": ["diffusion"]}}}) != teacher


def test_the_first_term_chooses_the_trainer_and_the_recipe_has_the_last_word() -> None:
    own = scmreg.objectives.create("vsd").trainer
    made = Recipe.from_tree({"objective": "vsd+scd", "trainer": {"steps": 7}})
    assert made.trainer == replace(Trainer(**own), steps=7)
    assert made.sampler.name == "consistency"


def test_another_sum_forgets_what_was_chosen_for_the_first() -> None:
    tree: dict[str, Any] = Recipe.from_tree({"objective": "scd+vsd"}).to_tree()
    set_path(tree, "objective", "scd+vsd")
    assert "trainer" in tree
    set_path(tree, "objective", "diffusion+vsd")
    assert "trainer" not in tree


def test_paths_name_terms() -> None:
    for objective in ("scd+vsd", {"name": "sum"}, {"name": "sum", "terms": ["scd", "vsd"]}):
        tree: dict[str, Any] = {"objective": objective}
        settings = ["objective.terms.scd.warmup=9", "objective.terms.vsd.proposal.p_mean=0.1", "sampler.steps=3"]
        apply_settings(tree, [*settings, "objective.weights=[1, 2]"])
        made = Recipe.from_tree(tree)
        scd, vsd = made.objective.terms  # type: ignore[attr-defined]
        assert (scd.warmup, vsd.proposal.p_mean, vsd.proposal.p_std) == (9, 0.1, 2.0)
        assert made.objective.weights == (1.0, 2.0)  # type: ignore[attr-defined]
        assert (made.sampler.name, made.sampler.steps) == ("consistency", 3)
    tree = {}
    apply_settings(tree, ["evaluation.metrics.frechet.splits=3"])
    metrics = Recipe.from_tree(tree).evaluation.metrics
    assert [metric.name for metric in metrics] == [metric.name for metric in Recipe().evaluation.metrics]
    assert metrics[0].splits == 3


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("objective.terms.sct.warmup=1", ["objective.terms has no 'sct', did you mean 'scd'?", "scd, vsd"]),
        ("objective.terms.0.warmup=1", ["objective.terms has no '0'", "its objectives: scd, vsd"]),
        ("objective.terms.scd.warmpu=1", ["objective.terms.scd has no option 'warmpu'", "did you mean 'warmup'"]),
        ("objective.terms.scd=1", ["objective.terms.scd is a component", "objective.terms whole"]),
        ("objective.warmup=1", ["objective has no option 'warmup'", "components: objective.terms.scd.warmup"]),
        ("objective.weighting=snr", ["objective.terms.scd.weighting, objective.terms.vsd.weighting"]),
    ],
)
def test_paths_that_lead_nowhere(setting: str, words: list[str]) -> None:
    with pytest.raises(OptionError) as error:
        apply_settings({"objective": "scd+vsd"}, [setting])
    for word in words:
        assert word in str(error.value)


def test_a_list_that_names_a_component_twice_or_is_none() -> None:
    tree: dict[str, Any] = {"evaluation": {"metrics": ["frechet", {"name": "frechet", "splits": 2}]}}
    with pytest.raises(OptionError, match="more than one 'frechet'"):
        set_path(tree, "evaluation.metrics.frechet.splits", 3)
    with pytest.raises(OptionError, match=r"objective\.terms is 'scd', which has no options to set"):
        set_path({"objective": {"name": "sum", "terms": "scd"}}, "objective.terms.scd.warmup", 3)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("scd+", {}, ["the sum 'scd+' lacks a term", "such as scd+vsd"]),
        ("+scd", {}, ["lacks a term"]),
        ("scd++vsd", {}, ["lacks a term"]),
        ("scd+vds", {}, ["terms[1] of objective 'sum': no objective called 'vds', did you mean 'vsd'?"]),
        ("scd+scd", {}, ["'scd' is a term twice", "weight"]),
        ("scd+sum", {}, ["a term is a sum itself"]),
        ("sum", {"terms": ["scd", "vsd+sct"]}, ["a term is a sum itself"]),
        ("sum", {"terms": []}, ["terms is empty"]),
        ("sum", {"terms": "scd"}, ["terms of objective 'sum' must be a list of objectives"]),
        ("scd+vsd", {"terms": ["scd"]}, ["'scd+vsd' is given terms a second time"]),
        ("scd+vsd", {"weights": [1]}, ["1 weights for 2 terms (scd, vsd)"]),
        ("scd+vsd", {"weights": [1, -1]}, ["weights[1]", "greater than or equal to 0", "-1"]),
        ("scd+vsd", {"weights": [1, float("inf")]}, ["weights[1]", "finite"]),
        ("scd+vsd", {"weights": [0, 0]}, ["every weight is 0"]),
    ],
)
def test_sums_that_are_none(name: str, values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(OptionError) as error:
        scmreg.objectives.create(name, **values)
    for word in words:
        assert word in str(error.value)


def test_only_objectives_are_summed() -> None:
    with pytest.raises(scmreg.ScmError, match=r"no weighting called 'uniform\+snr'"):
        scmreg.weightings.create("uniform+snr")


def test_a_fresh_student_is_that_of_the_terms() -> None:
    """The sum of one term starts from the fresh weights that the term starts from; another sum from its own."""
    objectives: tuple[Any, ...] = ("diffusion", {"name": "sum", "terms": ["diffusion"]}, "diffusion+sct")
    states = [build_denoiser(recipe(objective), (2,), 8).network.enter.weight for objective in objectives]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize(("option", "value"), [("segments", 4), ("guidance", [1, 2])])
def test_terms_that_make_another_function_of_one_model_are_refused(option: str, value: Any) -> None:
    terms = [{"name": "scd", option: value}, {"name": "vsd"}]
    teacher = {"objective": {"name": "diffusion", "label_dropout": 0.1}}
    made = Recipe.from_tree({"objective": {"name": "sum", "terms": terms}, "teacher": teacher})
    with pytest.raises(CompositionError, match=f"their {option} differ"):
        made.check()
