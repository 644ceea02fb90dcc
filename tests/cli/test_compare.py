"""`scm compare`: where recipes differ, and figures side by side where they mean the same."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import yaml
from PIL import Image


def copy_of(run, place, summary=None, meta=None, recipe=None):
    """Copy a run under another name, with other contents."""
    shutil.copytree(run, place, ignore=shutil.ignore_patterns("*.safetensors", "report.html"))
    for path, change in ((place / "summary.json", summary), (place / "checkpoints" / "00000003" / "meta.json", meta)):
        if change:
            tree = json.loads(path.read_text())
            change(tree)
            path.write_text(json.dumps(tree))
    if recipe:
        tree = yaml.safe_load((place / "recipe.yaml").read_text())
        recipe(tree)
        (place / "recipe.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return place


@pytest.fixture
def one(trained, tmp_path):
    return copy_of(trained[0], tmp_path / "one")


@pytest.fixture
def two(trained, tmp_path):
    """The same with another weighting and device, twice as far from the data."""

    def summary(tree):
        for entry in tree["student"]:
            entry["frechet"] *= 2
            entry["accuracy"] *= 0.9

    def recipe(tree):
        tree["objective"]["weighting"] = {"name": "uniform"}
        tree["trainer"]["device"] = "cpu"

    return copy_of(trained[0], tmp_path / "two", summary=summary, recipe=recipe)


def test_differences_and_figures(scm, one, two):
    result = scm("compare", one, two)
    assert result.code == 0, result.err
    assert result.err == ""
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert "recipe one two" in lines
    assert "objective.weighting adaptive uniform" in lines
    assert "objective.weighting.channels 64 –" in lines
    assert "trainer.device auto cpu" in lines
    assert "Options in grey leave the result alone." in lines
    assert not any(line.startswith(("network", "data", "seed", "evaluation")) for line in lines), "they are the same"
    assert "not comparable" not in result.out
    assert re.search(r"frechet +real data, two halves +[\d.]+ +[\d.]+ *\n", result.out)
    assert re.search(r"model, 1 evaluation +[\d.]+ +[\d.]+ \(×2\)", result.out)
    assert re.search(r"accuracy +teacher, 35 evaluations +([\d.]+) +\1 *\n", result.out)
    assert re.search(r"model, 2 evaluations +[\d.]+ +[\d.]+ \(-10.0 %\)", result.out)


def test_json(scm, one, two):
    result = scm("compare", one, two, "--json").json
    assert result["runs"] == {"one": str(one), "two": str(two)}
    assert result["comparable"] is True
    assert result["reasons"] == []
    assert result["png"] is None
    assert {
        "path": "objective.weighting", "values": {"one": "adaptive", "two": "uniform"}, "operational": False,
    } in result["differences"]  # fmt: skip
    assert {"path": "objective.weighting.channels", "values": {"one": 64}, "operational": False} in result[
        "differences"
    ]
    assert [each["path"] for each in result["differences"] if each["operational"]] == ["trainer.device"]
    (group,) = result["groups"]
    assert group["runs"] == ["one", "two"]
    summary = json.loads((two / "summary.json").read_text())
    found = {(row["figure"], row["model"], row["evaluations"]): row["values"]["two"] for row in group["figures"]}
    assert found["frechet", "real data", None] == summary["floor"]["frechet"]
    assert found["recall", "teacher", 35] == summary["teacher"]["recall"]
    for entry in summary["student"]:
        for name in entry:
            assert name == "nfe" or found[name, "model", entry["nfe"]] == entry[name]


def test_a_sum_is_called_after_its_terms_and_each_has_its_options(scm, one, tmp_path):
    def recipe(tree):
        scd = {**tree["objective"], "warmup": 7}
        vsd = {"name": "vsd", "weighting": {"name": "snr"}, "fake_rate": 5.0}
        tree["objective"] = {"name": "sum", "terms": [scd, vsd], "weights": [1.0, 0.5]}
        tree["evaluation"]["metrics"] = [*tree["evaluation"]["metrics"], {"name": "mine", "splits": 3}]

    long = "a-run-whose-name-is-far-too-long-for-one-line-of-a-column"
    result = scm("compare", one, copy_of(one, tmp_path / long, recipe=recipe))
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert "objective scd scd+vsd" in lines
    assert "objective.terms.scd.warmup – 7" in lines
    assert "objective.terms.vsd.weighting – snr" in lines
    assert "evaluation.metrics.mine.splits – 3" in lines
    assert "objective.weights – [1.0, 0.5]" in lines
    assert "{" not in result.out
    assert "…" not in result.out
    for part in ("a-run-whose-name-", "is-far-too-long-", "for-one-line-of-a-", "recipe one column"):
        assert part in lines


def test_the_same_recipe(scm, one, trained):
    assert "The recipes are the same." in scm("compare", one, trained[0]).out


def test_names_that_are_alike(scm, one, tmp_path):
    other = copy_of(one, tmp_path / "elsewhere" / "one")
    assert scm("compare", one, other, "--json").json["runs"] == {str(one): str(one), str(other): str(other)}


def test_other_data_are_not_compared(scm, one, two, trained_points):
    result = scm("compare", one, trained_points[0], two)
    assert result.code == 0
    assert "not comparable: the runs were trained on different data: one on digits, points on swissroll" in result.out
    assert "one, two, on digits" in result.out
    assert "points, on swissroll" in result.out
    (figures,) = re.findall(r"points, on swissroll(.*)", result.out, re.DOTALL)
    assert "sliced_wasserstein" in figures
    assert "frechet" not in figures
    assert "%" not in figures
    found = scm("compare", one, trained_points[0], two, "--json").json
    assert found["comparable"] is False
    assert [group["runs"] for group in found["groups"]] == [["one", "two"], ["points"]]


def test_data_of_the_same_name_and_another_content(scm, one, tmp_path):
    other = copy_of(one, tmp_path / "other", meta=lambda tree: tree.update(data_digest="changed"))
    result = scm("compare", one, other)
    assert "the recipes name the same data, but their content differs" in result.out
    assert "×" not in result.out
    assert "%" not in result.out


def test_another_evaluation_is_not_compared(scm, one, tmp_path):
    other = copy_of(one, tmp_path / "other", recipe=lambda tree: tree["evaluation"].update(count=32, seed=1))
    result = scm("compare", one, other)
    assert "not comparable: the runs were judged in different ways" in result.out
    assert "evaluation.count, evaluation.seed differ" in result.out
    # Another batch size of the evaluation changes nothing.
    same = copy_of(one, tmp_path / "same", recipe=lambda tree: tree["evaluation"].update(batch_size=7))
    assert "not comparable" not in scm("compare", one, same).out


def test_a_figure_that_only_one_has(scm, one, tmp_path):
    other = copy_of(one, tmp_path / "other", summary=lambda tree: [entry.pop("recall") for entry in tree["student"]])
    printed = scm("compare", one, other).out
    assert re.search(r"recall +teacher, 35 evaluations +[\d.]+ +[\d.]+ *\n +model, 1 evaluation +[\d.]+ *\n", printed)
    rows = scm("compare", one, other, "--json").json["groups"][0]["figures"]
    assert all(set(row["values"]) == {"one"} for row in rows if (row["figure"], row["model"]) == ("recall", "model"))


def test_the_picture(scm, one, two, trained_points, tmp_path):
    result = scm("compare", one, two, "--png", tmp_path / "both.png", "--json")
    assert result.code == 0, result.err
    assert result.json["png"] == str(tmp_path / "both.png")
    sizes = []
    for runs, name in (((one, two), "both.png"), ((one, two, trained_points[0]), "three.png")):
        if name != "both.png":
            assert scm("compare", *runs, "--png", tmp_path / name).code == 0
        with Image.open(tmp_path / name) as image:
            image.load()
            assert image.format == "PNG"
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50
            sizes.append(image.size)
    with Image.open(one / "samples" / "comparison.png") as samples:
        assert sizes[0][1] > 2 * samples.height * min(1, 1320 / samples.width)
    assert sizes[1][1] > sizes[0][1], "the third run has charts and samples of its own"


@pytest.fixture
def refused(scm):
    def refuse(*arguments, words):
        result = scm("compare", *arguments)
        assert result.code == 2, result.err
        assert result.out == ""
        assert result.err.startswith("error: ")
        for word in words:
            assert word in result.err

    return refuse


def test_what_is_refused(refused, one, two, tmp_path):
    refused(one, words=["two runs or more"])
    refused(one, two, one, words=["is named twice"])
    refused(one, f"{two}/../one", words=["is named twice"])
    refused(one, tmp_path / "nowhere", words=["nowhere does not exist"])
    refused(one, one / "recipe.yaml", words=["not a run directory"])
    refused(one, tmp_path, words=["no recipe.yaml"])
    (tmp_path / "taken.png").write_text("")
    refused(one, two, "--png", tmp_path / "taken.png", words=["exists already"])
    refused(one, two, "--png", tmp_path / "both.pdf", words=["no PNG file"])
    refused(one, two, "--png", tmp_path / "no" / "both.png", words=["there is no folder"])
    (two / "samples" / "comparison.png").write_text("no picture")
    refused(one, two, "--png", tmp_path / "both.png", words=["comparison.png cannot be read"])
    assert not (tmp_path / "both.png").exists()
    (two / "summary.json").write_text("{")
    refused(one, two, words=["summary.json cannot be read"])
    (two / "summary.json").unlink()
    refused(one, two, words=["two has not been judged", f"scm run --resume {two}"])


def test_runs_are_completed(home, workplace):
    import os
    import subprocess
    import sys

    (workplace / "runs" / "a").mkdir(parents=True)
    (workplace / "runs" / "a" / "recipe.yaml").write_text("")
    for words in ("scm report ru", "scm compare runs/b ru"):
        environment = {
            **os.environ, "_SCM_COMPLETE": "complete_bash", "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }  # fmt: skip
        code = "import sys; sys.argv = ['scm']\nfrom scmreg_cli.main import main\nmain()"
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, cwd=workplace
        )
        assert done.stdout.split() == ["runs/a"], done.stderr
