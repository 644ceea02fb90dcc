"""A whole run: what it prints, what it leaves, what it finds again."""

from __future__ import annotations

import json
import math
import pickletools
import re
import shutil
import zipfile

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import scmreg
from scmreg import checkpoint
from scmreg.recipe import Recipe

KEYS = ["run", "process", "objective", "seed", "seconds", "floor", "teacher", "student", "step_seconds"]


def finite(tree):
    if isinstance(tree, dict):
        return all(finite(value) for value in tree.values())
    if isinstance(tree, list):
        return all(finite(value) for value in tree)
    return not isinstance(tree, float) or math.isfinite(tree)


def test_the_summary_is_the_last_line_of_stdout(trained):
    folder, result = trained
    assert result.out.endswith("\n")
    summary = json.loads(result.out.splitlines()[-1])
    assert list(summary) == KEYS
    assert summary["run"] == str(folder)
    assert (summary["process"], summary["objective"], summary["seed"]) == ("trigflow", "scd", 0)
    assert summary["seconds"] > 0
    assert list(summary["floor"]) == ["frechet", "frechet_pixels"]
    figures = {"nfe", "frechet", "frechet_pixels", "precision", "recall", "accuracy", "memorization"}
    assert set(summary["teacher"]) == figures
    assert summary["teacher"]["nfe"] == 35
    assert [entry["nfe"] for entry in summary["student"]] == [1, 2, 4]
    for entry in summary["student"]:
        assert set(entry) == figures
        assert 0 <= entry["accuracy"] <= 1
        assert entry["frechet"] > summary["floor"]["frechet"]
    assert set(summary["step_seconds"]) == {"teacher", "student"}
    assert all(0 < seconds < 10 for seconds in summary["step_seconds"].values())
    assert finite(summary)
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_words_go_to_stderr(trained):
    _, result = trained
    assert result.out.count("\n") == 1
    for word in ("train teacher", "train scd", "teacher: none of this recipe yet", "sample 1 step"):
        assert word in result.err
    assert "accuracy" in result.err, "the table too, where stdout is JSON"


def test_the_table_goes_to_stdout_without_json(scm, trained, tmp_path):
    shutil.copytree(trained[0].parent, tmp_path / "all")
    result = scm("run", "--resume", tmp_path / "all" / "digits")
    assert result.code == 0
    for word in ("real data, two halves", "teacher", "scd", "evaluations", "frechet_pixels", "accuracy"):
        assert word in result.out
    assert "error" not in result.err


def test_what_a_run_directory_holds(trained):
    folder, _ = trained
    assert {path.name for path in folder.iterdir()} == {
        "recipe.yaml", "metrics.jsonl", "bins.jsonl", "summary.json", "checkpoints", "samples",
    }  # fmt: skip
    (last,) = (folder / "checkpoints").iterdir()
    assert last.name == "00000003"
    assert {path.name for path in last.iterdir()} == {
        "meta.json", "model.safetensors", "ema.safetensors", "objective.safetensors", "optimizer-main.safetensors",
    }  # fmt: skip
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3]
    assert {"loss", "gradient_norm", "learning_rate", "tangent_norm", "seconds"} <= set(lines[0])
    (bins,) = [json.loads(line) for line in (folder / "bins.jsonl").read_text().splitlines()]
    assert (bins["step"], bins["phase"], sum(bins["count"]), len(bins["count"])) == (3, "main", 3 * 16, 32)
    assert finite(lines)


def test_the_recipe_is_beside_and_inside_the_checkpoint(trained):
    folder, _ = trained
    text = (folder / "recipe.yaml").read_text()
    recipe = Recipe.from_tree(yaml.safe_load(text))
    assert recipe.to_yaml() == text
    assert (recipe.trainer.steps, recipe.teacher.trainer.steps, recipe.objective.warmup) == (3, 3, 2)
    meta = json.loads((folder / "checkpoints" / "00000003" / "meta.json").read_text())
    assert meta["recipe"] == recipe.to_tree()
    assert meta["scmreg"] == scmreg.__version__
    assert meta["step"] == 3
    assert meta["data"]["name"] == "digits"
    assert meta["data"]["shape"] == [1, 8, 8]
    assert set(meta["files"]) == {p.name for p in (folder / "checkpoints" / "00000003").glob("*.safetensors")}
    teacher = checkpoint.load(folder / meta["teacher"]["run"] / "checkpoints" / "00000003")
    assert teacher.meta["files"]["ema.safetensors"] == meta["teacher"]["weights"]


def test_nothing_is_pickled(trained):
    everything = [path for path in trained[0].parent.rglob("*") if path.is_file()]
    assert {path.suffix for path in everything} <= {".yaml", ".json", ".jsonl", ".png", ".safetensors", ".lock"}
    for path in everything:
        assert not zipfile.is_zipfile(path), path
        if path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.stat().st_size:
            with pytest.raises(ValueError):  # noqa: PT011 — pickletools says no more
                list(pickletools.genops(path.read_bytes()))


def test_the_pictures_are_pictures(trained):
    found = {path.name: path for path in (trained[0] / "samples").glob("*.png")}
    assert set(found) == {"comparison.png", "1-step.png", "2-steps.png", "4-steps.png", "teacher.png"}
    for path in found.values():
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) > 32
            assert len(image.convert("L").getcolors() or range(300)) > 2, "it shows nothing"
    assert [path.name for path in (trained[0] / "samples" / "training").iterdir()] == ["00000003.png"]
    with Image.open(trained[0] / "samples" / "training" / "00000003.png") as image:
        assert image.size == (10 * 34 + 2, 2 * 34 + 2), "twenty digits, one column per class"
    with Image.open(found["comparison.png"]) as wide, Image.open(found["1-step.png"]) as narrow:
        assert wide.width > 3 * narrow.width


def test_the_weights_moved_and_the_average_lags(trained):
    folder = trained[0] / "checkpoints" / "00000003"
    model, ema = load_file(folder / "model.safetensors"), load_file(folder / "ema.safetensors")
    assert set(model) == set(ema)
    assert any(not torch.equal(model[key], ema[key]) for key in model)
    teacher = next((trained[0].parent / "teachers").glob("*/checkpoints/*/ema.safetensors"))
    start = load_file(teacher)
    assert any(not torch.equal(model[key], start[key]) for key in model)


def test_the_second_run_finds_the_teacher_and_says_so(scm, tiny, trained, tmp_path):
    shutil.copytree(trained[0].parent / "teachers", tmp_path / "teachers")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "teachers").rglob("*.safetensors")}
    result = scm("run", *tiny, "--out", tmp_path, "--name", "again", "--json")
    assert "teacher: found" in result.err
    assert "train teacher" not in result.err
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "teachers").rglob("*.safetensors")}
    assert before == after
    first, second = trained[1].json, result.json
    for key in ("teacher", "student", "floor"):
        assert first[key] == second[key], "the same recipe and seed give the same figures"


@pytest.mark.parametrize("setting", ["teacher.trainer.steps=4", "network.width=16", "data.split_seed=1", "seed=1"])
def test_another_recipe_finds_no_teacher(scm, tiny, trained, tmp_path, setting):
    shutil.copytree(trained[0].parent / "teachers", tmp_path / "teachers")
    result = scm(
        "run",
        *tiny,
        "--set",
        setting,
        "--out",
        tmp_path,
        "--set",
        "evaluation.metrics=[]",
        "--set",
        "evaluation.count=8",
    )
    assert result.code == 0, result.err
    assert "teacher: found" not in result.err
    assert "train teacher" in result.err
    assert len(list((tmp_path / "teachers").glob("*/recipe.yaml"))) == 2


@pytest.mark.parametrize(
    "setting",
    ["evaluation.count=16", "evaluation.metrics=[]", "trainer.log_every=1", "objective.c=0.2", "trainer.steps=2"],
)
def test_what_does_not_touch_the_teacher_finds_it(scm, tiny, trained, tmp_path, setting):
    shutil.copytree(trained[0].parent / "teachers", tmp_path / "teachers")
    result = scm("run", *tiny, "--set", setting, "--out", tmp_path)
    assert result.code == 0, result.err
    assert "teacher: found" in result.err


def test_other_code_finds_no_teacher(scm, tiny, trained, tmp_path, monkeypatch):
    """A teacher is of the code that trained it: a plugin that changed since trains another."""
    from scmreg import run

    shutil.copytree(trained[0].parent / "teachers", tmp_path / "teachers")
    original = run.code_digest
    monkeypatch.setattr(run, "code_digest", lambda recipe: original(recipe)[::-1])
    result = scm("run", *tiny, "--out", tmp_path, "--set", "evaluation.metrics=[]")
    assert result.code == 0, result.err
    assert "train teacher" in result.err


def test_a_named_teacher(scm, tiny, tiny_diffusion, workplace):
    made = scm("run", "--objective", "diffusion", *tiny_diffusion, "--name", "mine", "--json")
    assert made.code == 0, made.err
    summary = made.json
    assert list(summary) == KEYS
    assert summary["student"] == []
    assert summary["teacher"]["nfe"] == 35
    assert "student" not in summary["step_seconds"]
    assert summary["step_seconds"]["teacher"] > 0
    assert not (workplace / "runs" / "teachers").exists()

    result = scm("run", "--teacher", "runs/mine", *tiny, "--name", "pupil", "--json")
    assert result.code == 0, result.err
    assert "runs/mine (step 3)" in result.err
    assert result.json["teacher"] == summary["teacher"], "judged from the same noise"
    assert not (workplace / "runs" / "teachers").exists()
    meta = json.loads((workplace / "runs/pupil/checkpoints/00000003/meta.json").read_text())
    assert (workplace / "runs" / "pupil" / meta["teacher"]["run"]).resolve() == workplace / "runs" / "mine"

    # The run folders can move together.
    (workplace / "runs").rename(workplace / "moved")
    judged = scm("eval", "moved/pupil", "--json")
    assert judged.json["teacher"] == summary["teacher"]


def test_from_scratch_there_is_no_teacher(scm, tiny, workplace):
    result = scm("run", "--objective", "sct", "--set", "objective.start=scratch", *tiny, "--json")
    assert result.code == 0, result.err
    assert "teacher" not in result.json
    assert "teacher" not in result.json["step_seconds"]
    assert [entry["nfe"] for entry in result.json["student"]] == [1, 2, 4]


def test_points_have_other_figures(trained_points):
    folder, result = trained_points
    summary = result.json
    assert list(summary) == KEYS
    assert list(summary["floor"]) == ["sliced_wasserstein"]
    for entry in (summary["teacher"], *summary["student"]):
        assert set(entry) == {"nfe", "sliced_wasserstein", "precision", "recall", "memorization"}
    with Image.open(folder / "samples" / "comparison.png") as image:
        assert image.width > image.height


def test_runs_are_named_and_numbered(scm, tiny_diffusion, workplace):
    quick = [
        *tiny_diffusion,
        "--objective",
        "diffusion",
        "--set",
        "evaluation.metrics=[]",
        "--set",
        "evaluation.count=4",
    ]
    names = [scm("run", *quick, "--process", "edm", "--seed", 7, "--json").json["run"] for _ in range(3)]
    assert names == [f"runs/edm-diffusion-digits-s7{tail}" for tail in ("", "-2", "-3")]


def test_the_seed_matters(scm, tiny_diffusion, workplace):
    quick = [*tiny_diffusion, "--objective", "diffusion", "--json"]
    a, b, c = (scm("run", *quick, "--seed", seed).json for seed in (0, 0, 1))
    assert a["teacher"] == b["teacher"]
    assert a["teacher"] != c["teacher"]


def test_every_line_of_progress_is_short(trained):
    assert all(len(line) < 200 for line in trained[1].err.splitlines())
    assert re.search(r"train scd: 3/3, [\d.]+/s, loss -?[\d.]+", trained[1].err)


def test_interrupted_before_the_first_checkpoint_it_starts_over(scm, tiny, trained, tmp_path):
    folder = tmp_path / "digits"
    shutil.copytree(trained[0], folder)
    shutil.copytree(trained[0].parent / "teachers", tmp_path / "teachers")
    shutil.rmtree(folder / "checkpoints")
    (folder / "summary.json").unlink()
    result = scm("run", "--resume", folder, "--json")
    assert result.code == 0, result.err
    assert result.json["student"] == trained[1].json["student"]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1


def test_resuming_a_finished_run_trains_nothing(scm, trained, tmp_path):
    shutil.copytree(trained[0].parent, tmp_path / "all")
    folder = tmp_path / "all" / "digits"
    before = (folder / "checkpoints" / "00000003" / "model.safetensors").stat().st_mtime_ns
    result = scm("run", "--resume", folder, "--device", "cpu", "--json")
    assert result.json["student"] == trained[1].json["student"]
    assert (folder / "checkpoints" / "00000003" / "model.safetensors").stat().st_mtime_ns == before
    assert "train" not in result.err.replace("trained", "")
