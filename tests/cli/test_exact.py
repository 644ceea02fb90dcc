"""The exact denoiser as teacher: `scm run --teacher exact`, what it leaves, and the errors that are told beside."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

import scmreg

MIXTURE = ["--data", "mixture", "--set", "data.count=300"]
QUICK = ["--set", "evaluation.steps=[1,2]", "--set", "evaluation.metrics=[trajectory-error]"]


@pytest.fixture(scope="module")
def taught(scm, tmp_path_factory, tiny):
    """A tiny run that was taught by the exact denoiser, and what its command left; not to be changed."""
    out = tmp_path_factory.mktemp("taught")
    every = ("--set", "trainer.checkpoint_every=1", "--set", "trainer.keep=3")
    result = scm("run", *MIXTURE, "--teacher", "exact", *tiny, *every, "--out", out, "--name", "taught", "--json")
    assert result.code == 0, result.err
    return out / "taught", result


def test_a_run_with_the_exact_teacher(taught):
    folder, result = taught
    summary = result.json
    assert "teacher: the exact denoiser of 'mixture'" in result.err
    assert "train teacher" not in result.err
    assert not (folder.parent / "teachers").exists()
    assert list(summary["step_seconds"]) == ["student"]
    assert [entry["nfe"] for entry in summary["student"]] == [1, 2, 4]
    for entry in summary["student"]:
        assert entry["trajectory_error"] > 0.1, "three steps teach next to nothing"
        assert math.isfinite(entry["trajectory_error"])
    assert summary["teacher"]["nfe"] == 35
    assert 0 < summary["teacher"]["trajectory_error"] < 0.1, "that of the solver alone"
    assert "trajectory_error" not in summary["floor"]
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["teacher"]["source"] == "exact"
    run = scmreg.load_run(folder)
    assert run.checkpoint.meta["teacher"] == {"source": "exact", "weights": run.recipe.data.law().digest()}
    assert {path.name for path in (folder / "samples").iterdir()} >= {"comparison.png", "teacher.png", "1-step.png"}


def test_a_finished_run_is_judged_alike(scm, taught, tmp_path):
    folder, first = taught
    shutil.copytree(folder, tmp_path / "taught")
    for command in (("run", "--resume"), ("eval",)):
        result = scm(*command, tmp_path / "taught", "--json")
        assert result.code == 0, result.err
        for key in ("student", "teacher", "floor"):
            assert result.json[key] == first.json[key]
    told = scm("eval", tmp_path / "taught", "--set", "evaluation.teacher_sampler.steps=60", "--json").json
    assert told["teacher"]["nfe"] == 119
    assert told["teacher"]["trajectory_error"] < first.json["teacher"]["trajectory_error"] / 4


def test_a_run_goes_on_as_if_it_had_not_been_stopped(scm, taught, tmp_path):
    folder, first = taught
    shutil.copytree(folder, tmp_path / "taught")
    (tmp_path / "taught" / "summary.json").unlink()
    for step in ("00000002", "00000003"):
        shutil.rmtree(tmp_path / "taught" / "checkpoints" / step)
    result = scm("run", "--resume", tmp_path / "taught", "--json")
    assert result.code == 0, result.err
    assert "train scd" in result.err
    assert result.json["student"] == first.json["student"]
    last = "checkpoints/00000003"
    for part in ("model.safetensors", "ema.safetensors"):
        one, other = (load_file(place / last / part) for place in (folder, tmp_path / "taught"))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_data_of_another_law_are_another_teacher(scm, taught, tmp_path):
    """A checkpoint names the law; one whose law is not that of the recipe does not go on."""
    folder = tmp_path / "taught"
    shutil.copytree(taught[0], folder)
    tree = yaml.safe_load((folder / "recipe.yaml").read_text())
    tree["data"]["std"] = 0.4
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    result = scm("run", "--resume", folder)
    assert result.code == 2
    assert "was trained with another teacher" in result.err


PAIRS = {"cosine": "velocity", "edm": "noise", "flow": "flow", "trigflow": "unit-variance", "vp": "score"}
"""Whatever the process and the meaning of the student's output, the teacher is the same."""


def test_there_is_a_pair_for_every_process():
    assert set(PAIRS) == set(scmreg.processes)


@pytest.mark.parametrize("labelled", ["false", "true"])
@pytest.mark.parametrize("process", PAIRS)
def test_under_every_process(scm, tiny, workplace, process, labelled):
    composed = ("--process", process, "--parameterization", PAIRS[process], "--set", f"data.labelled={labelled}")
    result = scm("run", *MIXTURE, "--teacher", "exact", *tiny, *QUICK, *composed, "--json")
    assert result.code == 0, result.err
    summary = result.json
    assert set(summary["teacher"]) == {"nfe", "trajectory_error"}
    assert summary["teacher"]["trajectory_error"] < 0.1
    assert [set(entry) for entry in summary["student"]] == [{"nfe", "trajectory_error"}] * 2


def test_training_lowers_the_error(scm, tiny, workplace):
    """On one Gaussian a few hundred steps are enough to see it."""
    data = ("--data", "gaussian", "--set", "data.count=1000", "--teacher", "exact", "--set", "objective.start=scratch")
    errors = []
    for steps in (1, 300):
        more = ("--steps", steps, "--set", "trainer.batch_size=64", "--set", "trainer.learning_rate=0.003")
        result = scm("run", *data, *tiny, *QUICK, *more, "--json")
        assert result.code == 0, result.err
        errors.append(result.json["student"][0]["trajectory_error"])
    assert errors[1] < errors[0] / 2


def test_consistency_training_needs_no_weights_either(scm, tiny, workplace):
    result = scm("run", *MIXTURE, "--objective", "sct", "--teacher", "exact", *tiny, *QUICK, "--json")
    assert result.code == 0, result.err
    assert result.json["teacher"]["trajectory_error"] < 0.1


def test_a_trained_teacher_is_compared_with_the_truth_too(scm, tiny, workplace):
    result = scm("run", "--data", "gaussians", "--set", "data.count=200", *tiny, *QUICK, "--json")
    assert result.code == 0, result.err
    assert result.json["teacher"]["trajectory_error"] > 0.3, "three steps of training, not the solution"
    again = scm("eval", result.json["run"], "--json").json
    assert again["student"] == result.json["student"]
    assert again["teacher"] == result.json["teacher"]


def test_a_guided_teacher_has_no_exact_counterpart(scm, tiny, workplace):
    """The exact denoiser is guided as it is; where guided trajectories end is not known."""
    labelled = [*MIXTURE, "--set", "data.labelled=true", "--teacher", "exact"]
    metrics = ("--set", "evaluation.metrics=[trajectory-error, sliced-wasserstein]")
    result = scm("run", *labelled, *tiny, *metrics, "--set", "evaluation.teacher_sampler.guidance=2", "--json")
    assert result.code == 0, result.err
    assert set(result.json["teacher"]) == {"nfe", "sliced_wasserstein"}
    assert result.json["teacher"]["nfe"] == 70
    assert all("trajectory_error" in entry for entry in result.json["student"])


def test_the_error_is_left_out_with_the_reason_where_the_law_is_not_known(scm, trained, trained_points, tmp_path):
    for (folder, _), reason in (
        (trained, "'digits': its law is not known, there are only samples of it"),
        (trained_points, "'swissroll': its exact denoiser has no closed form"),
    ):
        result = scm("eval", folder, *QUICK, "--set", "evaluation.count=8", "--json")
        assert result.code == 0, result.err
        assert f"trajectory-error is left out: data {reason}" in result.err
        assert all(set(entry) == {"nfe"} for entry in result.json["student"])


def test_the_recipe_of_such_a_run_makes_another(scm, taught, workplace):
    result = scm("run", "--recipe", taught[0], "--seed", 1, "--dry-run")
    assert result.code == 0, result.err
    assert yaml.safe_load(result.out)["teacher"]["source"] == "exact"
    assert json.loads((taught[0] / "summary.json").read_text()) == taught[1].json
