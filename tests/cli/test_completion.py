"""Completion: names, runs, and the settings of the components that are chosen so far."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import scmreg
from scmreg import registry
from scmreg_cli import completion


def offered(suggestions):
    return [name for name, _ in suggestions]


def settings(incomplete="", **chosen):
    return offered(completion.settings(SimpleNamespace(params=chosen), incomplete))


@pytest.mark.parametrize("kind", list(registry.KINDS))
def test_names(kind):
    complete = completion.names(kind)
    assert offered(complete("")) == list(registry.registry(kind))
    for name, summary in complete(""):
        assert summary == registry.registry(kind)[name].summary()
        assert name in offered(complete(name[:2]))
    assert complete("zzz") == []


def test_kinds_and_components():
    assert offered(completion.kinds("")) == list(registry.KINDS)
    assert offered(completion.kinds("pro")) == ["process", "proposal"]
    assert offered(completion.components("process/t")) == ["process/trigflow"]


def test_benchmarks():
    from scmreg.bench import BENCHMARKS

    assert completion.benchmarks("") == [(name, cls.summary()) for name, cls in BENCHMARKS.items()]
    assert offered(completion.benchmarks("st")) == ["step"]

    def options(incomplete, **chosen):
        return offered(completion.benchmark_settings(SimpleNamespace(params=chosen), incomplete))

    assert options("sha", name="attention") == ["shape="]
    assert "network.depth=" in options("network.", name="step")
    assert options("", name="nonsense") == options("") == []


def test_recipes():
    from scmreg.recipe import packaged

    assert offered(completion.recipes("")) == list(packaged())


def test_settings_of_the_defaults():
    found = settings(weighting="adaptive", proposal="lognormal")
    for path in (
        "network.width=", "process.sigma_data=", "objective.warmup=", "objective.weighting=",
        "objective.proposal.p_mean=",
        "objective.weighting.channels=", "trainer.steps=", "trainer.optimizer=", "teacher.trainer.steps=",
        "teacher.objective.label_dropout=", "evaluation.teacher_sampler.steps=", "sampler.times=", "data.held_out=",
    ):  # fmt: skip
        assert path in found
    assert len(found) == len(set(found))
    assert "network.patch=" not in found
    assert settings("network.w") == ["network.width="]
    assert settings("objective.weighting.", weighting="adaptive") == ["objective.weighting.channels="]


def test_every_offer_is_a_setting():
    from scmreg.options import options_of
    from scmreg.recipe import Recipe
    from scmreg.settings import set_path

    for path in settings():
        set_path({}, path.removesuffix("="), None)
    top = {option.name for option in options_of(Recipe)}
    assert {path.partition(".")[0] for path in settings()} <= top


def test_settings_of_the_chosen_components():
    assert "network.patch=" in settings(network="dit")
    assert settings("process.", process="edm") == ["process.sigma_data=", "process.sigma_max="]
    assert settings("process.", process="flow") == ["process.sigma_data="]
    assert "data.path=" in settings(data="array")
    diffusion = settings(objective="diffusion")
    assert "objective.label_dropout=" in diffusion
    assert "objective.warmup=" not in diffusion


def test_settings_of_a_chosen_weighting_and_proposal():
    assert settings("objective.weighting.", weighting="uniform") == []
    assert settings("objective.proposal.", proposal="logit-normal") == [
        "objective.proposal.mean=",
        "objective.proposal.std=",
    ]


def test_settings_of_the_sampler_that_the_objective_chooses():
    consistency = settings("sampler.", objective="sct")
    assert "sampler.times=" in consistency
    assert "sampler.rho=" not in consistency
    assert {"sampler.rho=", "sampler.times="} <= set(settings("sampler.", objective="diffusion"))


def test_an_unknown_choice_offers_the_rest():
    found = settings(network="nonsense")
    assert "trainer.steps=" in found
    assert not any(path.startswith("network.") for path in found)


def test_runs(workplace):
    for name in ("runs/b", "runs/a", "elsewhere/c"):
        (workplace / name).mkdir(parents=True)
        (workplace / name / "recipe.yaml").write_text("")
    (workplace / "runs" / "teachers").mkdir()
    assert offered(completion.runs("")) == ["runs/a", "runs/b"]
    assert offered(completion.runs("ru")) == ["runs/a", "runs/b"]
    assert offered(completion.runs("runs/")) == ["runs/a", "runs/b"]
    assert offered(completion.runs("runs/b")) == ["runs/b"]
    assert offered(completion.runs("elsewhere/")) == ["elsewhere/c"]
    assert offered(completion.runs(f"{workplace}/runs/a")) == [f"{workplace}/runs/a"]
    assert completion.runs("nowhere/") == []


def test_runs_where_there_are_none(workplace):
    assert completion.runs("") == []


def test_the_catalogue_is_cached(home, monkeypatch):
    made = []
    original = completion._make
    monkeypatch.setattr(completion, "_make", lambda: made.append(1) or original())
    first = completion.catalogue()
    assert completion.catalogue() == first
    assert made == [1]
    (path,) = (home / ".cache" / "scmreg").iterdir()
    assert json.loads(path.read_text()) == first
    path.write_text("{ cut off")
    assert completion.catalogue() == first
    assert json.loads(path.read_text()) == first


def test_a_cache_that_cannot_be_written(home, monkeypatch):
    (home / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file" / "below"))
    assert "trigflow" in completion.catalogue()["components"]["process"]


def complete(home, words, index=None):
    environment = {
        **os.environ,
        "_SCM_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) if words.endswith(" ") else len(words.split()) - 1),
    }
    code = (
        "import sys; sys.argv = ['scm']\nfrom scmreg_cli.main import main\n"
        "try: main()\nfinally: print('HEAVY', 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, cwd=home
    )
    assert "Traceback" not in done.stderr
    *found, heavy = done.stdout.split("\n")[:-1]
    return [line for line in found if line], heavy


def test_the_shell_completes(home):
    completion.catalogue()  # as the first completion after an installation would
    names, heavy = complete(home, "scm run --process ")
    assert names == list(scmreg.processes)
    assert heavy == "HEAVY False"
    assert complete(home, "scm run --process tr")[0] == ["trigflow"]
    assert complete(home, "scm run --network dit --set network.p")[0] == ["network.patch="]
    assert complete(home, "scm show process/e")[0] == ["process/edm"]
