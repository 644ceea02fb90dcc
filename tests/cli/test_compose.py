"""From flags and files to a recipe: precedence, depth, names that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import scmreg
from scmreg.recipe import Recipe

OBJECTIVES = ("scd", "sct", "diffusion", "vsd", "sum")


@pytest.fixture
def resolved(scm, workplace):
    """Return the tree of `scm run ... --dry-run`, checked to mean the same recipe again."""

    def resolve(*arguments):
        result = scm("run", *arguments, "--dry-run")
        assert result.code == 0, result.err
        assert result.err == ""
        tree = yaml.safe_load(result.out)
        again = Recipe.from_tree(tree)
        assert again.to_tree() == tree
        assert again.to_yaml() == result.out
        assert list(workplace.glob("runs*")) == [], "a dry run leaves nothing"
        return tree

    return resolve


def test_defaults_are_the_main_job(resolved):
    tree = resolved()
    assert tree == Recipe().to_tree()
    names = {kind: tree[kind]["name"] for kind in ("process", "parameterization", "network", "objective", "data")}
    assert names == {
        "process": "trigflow",
        "parameterization": "unit-variance",
        "network": "mlp",
        "objective": "scd",
        "data": "digits",
    }
    assert set(tree) == {
        "version", "seed", "process", "parameterization", "network", "objective", "data", "sampler", "trainer",
        "teacher", "evaluation",
    }  # fmt: skip


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("process", list(scmreg.processes))
@pytest.mark.parametrize("network", ["mlp", "dit"])
def test_every_selection_round_trips(resolved, process, objective, network):
    tree = resolved("--process", process, "--objective", objective, "--network", network)
    assert tree["process"]["name"] == process
    assert tree["objective"]["name"] == objective
    assert tree["network"]["name"] == network


def test_paths_round_trip(resolved):
    tree = resolved("--data", "array", "--set", "data.path=some/x.npz", "--set", "data.labels=some/y.npy")
    assert tree["data"]["path"].endswith("some/x.npz")
    assert isinstance(tree["data"]["labels"], str)
    assert resolved("--data", "images", "--set", "data.path=pics")["data"]["path"].endswith("pics")


def test_precedence_defaults_file_settings(resolved, workplace):
    default = resolved()
    assert default["trainer"]["batch_size"] != 32
    (workplace / "r.yaml").write_text(
        "process: {name: edm, sigma_max: 60}\n"
        "objective: {name: sct, warmup: 5, weighting: snr}\n"
        "trainer: {steps: 7, batch_size: 32, learning_rate: 0.02}\n"
        "seed: 4\n"
    )
    tree = resolved("--recipe", "r.yaml")
    assert tree["process"] == {"name": "edm", "sigma_data": 0.5, "sigma_max": 60.0}
    assert tree["objective"]["warmup"] == 5
    assert tree["objective"]["weighting"] == {"name": "snr"}
    assert (tree["trainer"]["steps"], tree["trainer"]["batch_size"], tree["seed"]) == (7, 32, 4)
    assert tree["trainer"]["optimizer"] == default["trainer"]["optimizer"]

    tree = resolved("--recipe", "r.yaml", "--steps", 9, "--seed", 5, "--set", "process.sigma_max=70")
    assert (tree["trainer"]["steps"], tree["trainer"]["batch_size"], tree["seed"]) == (9, 32, 5)
    assert tree["process"]["sigma_max"] == 70.0
    assert tree["trainer"]["learning_rate"] == 0.02

    tree = resolved("--recipe", "r.yaml", "--process", "flow")
    assert tree["process"] == {"name": "flow", "sigma_data": 0.5}, "another component takes none of the old options"


def test_a_run_is_a_recipe(resolved, trained):
    tree = resolved("--recipe", trained[0], "--seed", 3)
    assert tree["seed"] == 3
    assert tree["network"]["width"] == 32
    assert tree["trainer"]["steps"] == 3


def test_the_objectives_trainer_stands_between(resolved, workplace, monkeypatch):
    monkeypatch.setattr(scmreg.objectives["sct"], "trainer", {"learning_rate": 0.125, "batch_size": 17})
    assert resolved("--objective", "sct")["trainer"]["learning_rate"] == 0.125
    assert resolved("--objective", "scd")["trainer"]["batch_size"] != 17
    (workplace / "r.yaml").write_text("objective: sct\ntrainer: {learning_rate: 0.25}\n")
    tree = resolved("--recipe", "r.yaml")
    assert (tree["trainer"]["learning_rate"], tree["trainer"]["batch_size"]) == (0.25, 17)
    tree = resolved("--recipe", "r.yaml", "--set", "trainer.batch_size=18")
    assert (tree["trainer"]["learning_rate"], tree["trainer"]["batch_size"]) == (0.25, 18)


def test_the_objective_chooses_the_sampler(resolved):
    assert resolved("--objective", "diffusion")["sampler"]["name"] == "heun"
    assert resolved("--objective", "sct")["sampler"]["name"] == "consistency"
    assert resolved("--objective", "diffusion", "--sampler", "ddim")["sampler"]["name"] == "ddim"
    tree = resolved("--objective", "diffusion", "--set", "sampler.steps=5")["sampler"]
    assert (tree["name"], tree["steps"]) == ("heun", 5)


def test_settings_at_depth(resolved):
    tree = resolved(
        "--weighting", "adaptive", "--set", "objective.weighting.channels=8",
        "--proposal", "lognormal", "--set", "objective.proposal.p_mean=-0.5",
    )  # fmt: skip
    assert tree["objective"]["weighting"] == {"name": "adaptive", "channels": 8}
    assert tree["objective"]["proposal"]["p_mean"] == -0.5
    tree = resolved("--set", "teacher.objective.proposal.p_std=2", "--set", "teacher.trainer.steps=11")
    assert tree["teacher"]["objective"]["proposal"]["p_std"] == 2.0
    assert tree["teacher"]["trainer"]["steps"] == 11
    tree = resolved("--set", "evaluation.teacher_sampler.steps=3", "--set", "evaluation.steps=[1,8]")
    assert tree["evaluation"]["teacher_sampler"] == {
        "name": "heun", "steps": 3, "sigma_min": 0.002, "sigma_max": 80.0, "spacing": "edm", "rho": 7.0,
        "times": None, "guidance": 1.0,
    }  # fmt: skip
    assert tree["evaluation"]["steps"] == [1, 8]


def test_a_sum_of_objectives(resolved, workplace):
    tree = resolved("--objective", "scd+vsd", "--set", "objective.weights=[1, 0.5]")
    assert (tree["objective"]["name"], tree["objective"]["weights"]) == ("sum", [1.0, 0.5])
    assert [term["name"] for term in tree["objective"]["terms"]] == ["scd", "vsd"]
    assert tree["sampler"]["name"] == "consistency"
    assert resolved("--objective", "scd + vsd") == resolved("--objective", "sum")
    told = ("--set", "objective.terms.scd.warmup=7", "--set", "objective.terms.vsd.proposal.p_mean=0.3")
    scd, vsd = resolved("--objective", "scd+vsd", *told)["objective"]["terms"]
    assert (scd["warmup"], vsd["proposal"]) == (7, {"name": "lognormal", "p_mean": 0.3, "p_std": 2.0})
    (workplace / "r.yaml").write_text("objective: {name: scd+vsd, weights: [2, 1]}\ntrainer: {batch_size: 17}\n")
    tree = resolved("--recipe", "r.yaml", "--set", "objective.terms.scd.warmup=7")
    assert (tree["objective"]["weights"], tree["objective"]["terms"][0]["warmup"]) == ([2.0, 1.0], 7)
    assert tree["trainer"]["batch_size"] == 17
    assert resolved("--recipe", "r.yaml", "--objective", "sct+vsd")["trainer"]["batch_size"] != 17


def test_settings_replace_a_component(resolved):
    tree = resolved("--set", "objective.weighting=uniform")
    assert tree["objective"]["weighting"] == {"name": "uniform"}
    tree = resolved("--set", "objective={name: sct, warmup: 7}")
    assert (tree["objective"]["name"], tree["objective"]["warmup"]) == ("sct", 7)
    tree = resolved("--set", "evaluation.metrics=[frechet, {name: precision-recall, neighbours: 5}]")
    assert tree["evaluation"]["metrics"] == [
        {"name": "frechet", "splits": 10},
        {"name": "precision-recall", "neighbours": 5},
    ]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_choosing_an_objective_keeps_the_weighting(resolved, order):
    flags = [["--objective", "sct"], ["--weighting", "snr", "--proposal", "logit-normal"]]
    tree = resolved(*flags[order[0]], *flags[order[1]], "--set", "objective.proposal.std=2")
    assert tree["objective"]["name"] == "sct"
    assert tree["objective"]["weighting"] == {"name": "snr"}
    assert tree["objective"]["proposal"] == {"name": "logit-normal", "mean": 0.0, "std": 2.0}


def test_short_flags_are_settings(resolved):
    tree = resolved("--steps", 12, "--precision", "bfloat16", "--device", "cpu", "--teacher", "some/run")
    assert tree["trainer"]["steps"] == 12
    assert tree["trainer"]["precision"] == "bfloat16"
    assert tree["trainer"]["device"] == "cpu"
    assert tree["teacher"]["source"] == str(Path.cwd() / "some/run")


def test_optimizer_options(resolved):
    tree = resolved(
        "--set", "trainer.optimizer=AdamW", "--set", "trainer.optimizer_options={betas: [0.9, 0.95]}",
        "--set", "trainer.optimizer_options.weight_decay=0.1",
    )  # fmt: skip
    assert tree["trainer"]["optimizer_options"] == {"betas": [0.9, 0.95], "weight_decay": 0.1}


@pytest.mark.parametrize("text", ["1e-2", "1.e-2", "0.01"])
def test_numbers_in_every_spelling(resolved, text):
    tree = resolved("--set", f"trainer.learning_rate={text}", "--set", f"trainer.optimizer_options.weight_decay={text}")
    assert tree["trainer"]["learning_rate"] == 0.01
    assert tree["trainer"]["optimizer_options"]["weight_decay"] == 0.01


def test_none_is_a_value_where_it_is_one(resolved):
    tree = resolved("--set", "trainer.clip=2.5")
    assert tree["trainer"]["clip"] == 2.5
    tree = resolved("--set", "trainer.clip=2.5", "--set", "trainer.clip=null")
    assert tree["trainer"]["clip"] is None


WRONG = [
    # arguments, and words of the message
    (["--process", "trigflo"], ["no process called 'trigflo'", "did you mean 'trigflow'", "available: cosine, edm"]),
    (["--objective", "scdd"], ["no objective called 'scdd'", "did you mean 'scd'"]),
    (["--weighting", "unifrom"], ["no weighting called 'unifrom'", "did you mean 'uniform'"]),
    (["--data", "digit"], ["no data called 'digit'", "did you mean 'digits'"]),
    (["--sampler", "huen"], ["no sampler called 'huen'"]),
    (["--set", "network.widht=3"], ["widht", "did you mean 'width'", "depth"]),
    (["--set", "netwrk.width=3"], ["netwrk", "did you mean 'network'"]),
    (["--weighting", "adaptive", "--set", "objective.weighting.chanels=8"],
     ["chanels", "did you mean 'channels'"]),
    (["--set", "objective.weighting.channels=8", "--weighting", "uniform"], ["channels", "weighting"]),
    (["--set", "trainer.step=8"], ["step", "did you mean 'steps'"]),
    (["--set", "trainer.steps.more=8"], ["trainer.steps", "'more'"]),
    (["--set", "trainer.steps"], ["trainer.steps", "KIND.OPTION=VALUE"]),
    (["--set", "=3"], ["KIND.OPTION=VALUE"]),
    (["--set", "process=foo"], ["no process called 'foo'"]),
    (["--set", "evaluation.metrics=[frechet, frechett]"], ["no metric called 'frechett'", "did you mean 'frechet'"]),
    (["--set", "trainer.steps=0"], ["trainer.steps", "1", "0"]),
    (["--set", "process.sigma_data=0"], ["sigma_data", "greater than 0"]),
    (["--set", "process.sigma_data=-1"], ["sigma_data", "greater than 0", "-1"]),
    (["--set", "process.sigma_data=nan"], ["sigma_data", "nan"]),
    (["--set", "process.sigma_data=.inf"], ["sigma_data", "inf"]),
    (["--set", "data.held_out=1.5"], ["held_out", "1.5"]),
    (["--set", "trainer.steps=many"], ["trainer.steps", "integer", "many"]),
    (["--set", "trainer.steps=2.5"], ["trainer.steps", "2.5"]),
    (["--set", "trainer.steps=[1]"], ["trainer.steps", "[1]"]),
    (["--set", "trainer.compile=perhaps"], ["trainer.compile", "perhaps"]),
    (["--set", "objective.normalization=l3"], ["normalization", "l2", "rms", "l3"]),
    (["--precision", "float16"], ["precision", "bfloat16", "float16"]),
    (["--set", "network=3"], ["network", "3"]),
    (["--set", "trainer=3"], ["trainer", "3"]),
    (["--set", "objective.weighting=[snr]"], ["weighting", "snr"]),
    (["--set", "evaluation.steps=[1,0]"], ["evaluation.steps", "0"]),
    (["--set", "sampler.times=[1.5,1.6]", "--set", "sampler.steps=3"], ["times", "1.6"]),
    (["--set", "sampler.times=[1.0,0.5]"], ["2 steps", "times"]),
    (["--data", "images"], ["images", "path", "required"]),
    (["--set", "version=99"], ["version 99", "upgrade"]),
    (["--recipe", "nowhere.yaml"], ["nowhere.yaml"]),
    (["--set", "trainer.optimizer_options=3"], ["optimizer_options", "3"]),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_what_is_wrong_is_said_at_a_glance(scm, workplace, arguments, words):
    result = scm("run", *arguments, "--dry-run")
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert len(result.err.splitlines()) <= 6
    for word in words:
        assert word in result.err
    assert list(workplace.iterdir()) == []


def test_one_wrong_name_is_one_problem(scm, workplace):
    result = scm("run", "--process", "trigflo", "--dry-run")
    first, *hints = result.err.splitlines()
    assert "no process called 'trigflo', did you mean 'trigflow'?" in first
    assert "options are wrong" not in result.err
    assert [line.strip() for line in hints] == [f"available: {', '.join(scmreg.processes)}"]


def test_all_problems_at_once(scm, workplace):
    result = scm(
        "run", "--set", "trainer.steps=0", "--set", "process.sigma_data=-1", "--set", "seed=x",
        "--set", "objective.warmup=-3", "--weighting", "adaptive", "--set", "objective.weighting.channels=none",
        "--dry-run",
    )  # fmt: skip
    assert result.code == 2
    for word in ("5 options are wrong", "steps", "sigma_data", "seed", "warmup", "channels"):
        assert word in result.err


RECIPES = [
    ("version: 99", ["version 99", "upgrade"]),
    ("version: new", ["version"]),
    ("- process", ["mapping"]),
    ("", ["mapping"]),
    ("process: [", ["YAML", "line"]),
    ("proces: edm", ["proces", "did you mean 'process'"]),
    ("objective: [1, 2]", ["objective"]),
    ("teacher: {objective: [3]}", ["objective"]),
    ("teacher: 3", ["teacher"]),
    ("trainer: 3", ["trainer"]),
    ("trainer: {steps: 0}\nseed: -1", ["2 options are wrong", "steps", "seed"]),
    ("3: 4", ["3"]),
    ("network: {name: mlp, widht: 3}", ["widht", "did you mean 'width'"]),
    (b"\xff\xfe\x00\x80process: edm", ["r.yaml"]),
    (b"process: \x00", ["r.yaml"]),
]


@pytest.mark.parametrize(("text", "words"), RECIPES, ids=[str(text)[:30] for text, _ in RECIPES])
def test_recipes_that_cannot_be_read(scm, workplace, text, words):
    (workplace / "r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    result = scm("run", "--recipe", "r.yaml", "--dry-run")
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    for word in words:
        assert word in result.err


def test_settings_upon_half_a_recipe(scm, resolved, workplace):
    """A section or component of the file that a setting goes into keeps what the file says of it."""
    (workplace / "r.yaml").write_text(
        "objective: {name: scd, weighting: {name: adaptive, channels: 4}}\nnetwork: mlp\n"
    )
    tree = resolved("--recipe", "r.yaml", "--set", "objective.warmup=1", "--set", "network.width=8")
    assert tree["objective"]["weighting"] == {"name": "adaptive", "channels": 4}
    assert tree["network"]["width"] == 8
    # A component without a name is the default one.
    (workplace / "r.yaml").write_text(
        "objective: {warmup: 3}\nprocess: {sigma_data: 0.4}\nteacher: {objective: {label_dropout: 0.1}}\n"
    )
    tree = resolved("--recipe", "r.yaml", "--set", "sampler.steps=3", "--set", "process.sigma_data=0.3")
    assert (tree["objective"]["name"], tree["objective"]["warmup"]) == ("scd", 3)
    assert tree["process"] == {"name": "trigflow", "sigma_data": 0.3}
    assert tree["sampler"]["steps"] == 3
    assert tree["teacher"]["objective"]["label_dropout"] == 0.1


def test_packaged_recipes_resolve(resolved):
    from scmreg.recipe import packaged

    for name in packaged():
        resolved("--recipe", name)


def test_choosing_an_objective_over_a_file_keeps_nothing_foreign(resolved, workplace):
    (workplace / "r.yaml").write_text("objective: {name: scd, warmup: 3}\n")
    assert "warmup" not in resolved("--recipe", "r.yaml", "--objective", "diffusion")["objective"]
