"""Recipes: resolved, round-tripping, composed by path, refused where parts do not fit."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import scmreg
from scmreg import recipe as recipes
from scmreg.errors import CompositionError, OptionError, RecipeError
from scmreg.parameterization import Parameterization, Preconditioning
from scmreg.process import Process
from scmreg.recipe import Recipe, Trainer
from scmreg.settings import apply_settings

names = {
    "process": st.sampled_from(sorted(scmreg.processes)),
    "parameterization": st.sampled_from(sorted(scmreg.parameterizations)),
    "network": st.sampled_from(sorted(scmreg.networks)),
    "objective": st.sampled_from(sorted(scmreg.objectives)),
    "sampler": st.sampled_from(sorted(scmreg.samplers)),
}


@given(tree=st.fixed_dictionaries({}, optional={**names, "seed": st.integers(0, 100)}))
def test_every_recipe_round_trips_through_yaml(tree: dict[str, Any]) -> None:
    made = Recipe.from_tree(tree)
    again = Recipe.from_tree(recipes.load_yaml(made.to_yaml()))
    assert again == made
    assert again.to_yaml() == made.to_yaml()


def test_defaults_are_the_main_job() -> None:
    made = Recipe()
    assert (made.process.name, made.objective.name, made.data.name) == ("trigflow", "scd", "digits")
    assert Recipe.from_tree({}) == made


@pytest.mark.parametrize("name", sorted(scmreg.objectives))
def test_the_objective_s_own_trainer_stands_between_defaults_and_recipe(name: str) -> None:
    own = scmreg.objectives.create(name).trainer
    made = Recipe.from_tree({"objective": name, "trainer": {"log_every": 7}})
    assert made.trainer == dataclasses.replace(Trainer(**own), log_every=7)
    assert made.sampler.name == scmreg.objectives.create(name).sampler


def test_yaml_numbers() -> None:
    assert recipes.load_yaml("{a: 1e-4, b: 2E3, c: 1.5e+2, d: 1e, e: 10}") == {
        "a": 1e-4,
        "b": 2000.0,
        "c": 150.0,
        "d": "1e",
        "e": 10,
    }


def test_paths_set_any_depth_and_keep_what_stands_beside() -> None:
    tree: dict[str, Any] = {"objective": {"name": "scd", "warmup": 5}}
    apply_settings(
        tree,
        [
            "objective.weighting=adaptive",
            "objective.weighting.channels=8",
            "objective.proposal.p_mean=-0.5",
            "trainer.learning_rate=1e-4",
            "teacher.objective.proposal.p_std=2",
            "trainer.optimizer_options.betas=[0.9, 0.95]",
            "sampler.times=[0.9]",
        ],
    )
    made = Recipe.from_tree(tree)
    assert made.objective.warmup == 5
    assert made.objective.weighting.channels == 8
    assert made.objective.proposal.p_mean == -0.5
    assert made.trainer.learning_rate == 1e-4
    assert made.teacher.objective.proposal.p_std == 2
    assert made.trainer.optimizer_options == {"betas": [0.9, 0.95], "fused": True}  # what stands beside is kept
    assert made.sampler.times == (0.9,)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("trainer.stpes=3", "did you mean 'steps'"),
        ("trainer.steps", "KIND.OPTION=VALUE"),
        ("trainer.steps.more=3", "is a value"),
        ("process.name.x=3", "no option 'name'"),
        ("nothing=3", "no option 'nothing'"),
    ],
)
def test_paths_that_lead_nowhere(setting: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        apply_settings({}, [setting])


@pytest.mark.parametrize(
    "tree",
    [{"objective": [1, 2]}, {"teacher": {"objective": [1]}}, {"trainer": 3}, {"process": {"name": 3}}, {"steps": 3}],
)
def test_malformed_trees_are_option_errors(tree: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Recipe.from_tree(tree)


def test_a_mapping_without_a_name_means_the_default() -> None:
    assert Recipe.from_tree({"process": {"sigma_data": 1.0}}).process == scmreg.processes.create(
        "trigflow", sigma_data=1.0
    )


def test_a_newer_recipe_is_refused() -> None:
    with pytest.raises(RecipeError, match="version 99"):
        Recipe.from_tree({"version": 99, "a future section": 1})


def test_packaged_recipes_resolve() -> None:
    assert "digits-best" in recipes.packaged()
    for name in recipes.packaged():
        made = Recipe.from_tree(recipes.read(name))
        made.check()
        assert made != Recipe()


def test_reading(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'digits-best'"):
        recipes.read("digit-best")
    file = tmp_path / "r.yaml"
    for content, message in ((b"a: [", "no YAML at line"), (b"- 1", "no mapping"), (b"\xff\xfe\x00", "cannot be read")):
        file.write_bytes(content)
        with pytest.raises(RecipeError, match=message):
            recipes.read(file)
    with pytest.raises(RecipeError, match="no run directory"):
        recipes.read(tmp_path)


@pytest.mark.parametrize(
    ("process", "parameterization", "objective"),
    list(itertools.product(scmreg.processes, scmreg.parameterizations, scmreg.objectives)),
)
def test_a_composition_fits_where_its_objective_has_a_meaning(
    process: str, parameterization: str, objective: str
) -> None:
    """Diffusion always; a consistency model where its function has a boundary condition and no pole."""
    made = Recipe.from_tree({"process": process, "parameterization": parameterization, "objective": objective})
    chosen, under = made.parameterization, made.process
    if not made.objective.needs_boundary or (chosen.has_boundary(under) and chosen.pole(under) is None):
        made.check()
        return
    with pytest.raises(CompositionError) as error:
        made.check()
    for word in (f"objective '{objective}'", f"parameterization '{parameterization}'", f"process '{process}'"):
        assert word in error.value.what


def test_a_consistency_objective_needs_the_boundary_condition() -> None:
    class Direct(Parameterization, name="direct"):
        """Predict the data."""

        def preconditioning(self, process: Process, t: Any) -> Preconditioning:
            at = process.coefficients(t)
            zero, one = t * 0, t * 0 + 1
            return Preconditioning(zero, one, 1 / at.sigma, -at.alpha / at.sigma, one)

    Recipe(parameterization=Direct(), objective="diffusion").check()
    with pytest.raises(CompositionError, match=r"needs f\(x, 0\) = x"):
        Recipe(parameterization=Direct()).check()


def test_shapes_and_conditions_that_do_not_fit() -> None:
    spec = scmreg.DataSpec("swissroll", (2,), "points")
    with pytest.raises(CompositionError, match="use network mlp"):
        Recipe.from_tree({"network": "dit"}).check(spec)


def test_the_key_of_a_teacher_knows_what_matters() -> None:
    base = Recipe().teacher_recipe()
    same = Recipe.from_tree(
        {"objective": "sct", "teacher": {"trainer": {"log_every": 3, "device": "cpu"}}, "sampler": {"name": "ddim"}}
    ).teacher_recipe()
    assert base.training_key("data") == same.training_key("data")
    for change in (
        {"seed": 1},
        {"teacher": {"trainer": {"learning_rate": 0.5}}},
        {"network": {"name": "mlp", "width": 64}},
        {"process": "edm"},
        {"data": {"name": "digits", "held_out": 0.1}},
    ):
        assert Recipe.from_tree(change).teacher_recipe().training_key("data") != base.training_key("data")
    assert base.training_key("other data") != base.training_key("data")


def test_components_lists_what_the_run_uses() -> None:
    used = {f"{c.kind}/{c.name}" for c in Recipe.from_tree({"objective": "diffusion"}).components()}
    assert {"process/trigflow", "weighting/uniform", "proposal/lognormal", "metric/frechet"} <= used
    assert "objective/diffusion" in {f"{c.kind}/{c.name}" for c in Recipe().components()}
