"""`scm sample` and `scm eval`."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import scmreg
from scmreg.options import to_tree


@pytest.fixture
def drawn(scm, workplace):
    """Return the arrays that `scm sample RUN ...` writes."""

    def draw(run, *arguments):
        target = workplace / "drawn.npz"
        result = scm("sample", run, *arguments, "--out", target, "--json")
        assert result.code == 0, result.err
        with np.load(target, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}, result.json

    return draw


def test_a_picture(scm, trained, workplace):
    result = scm("sample", trained[0], "--count", 20, "--out", "new/folder/p.png")
    assert (result.code, result.out.strip(), result.err) == (0, "new/folder/p.png", "")
    with Image.open("new/folder/p.png") as image:
        assert image.format == "PNG"
        assert image.size == (10 * 34 + 2, 2 * 34 + 2), "two rows of ten digits, magnified to 32 pixels"


def test_a_picture_of_points(scm, trained_points, workplace):
    assert scm("sample", trained_points[0], "--out", "p.png").code == 0
    with Image.open("p.png") as image:
        assert image.size[0] > 200


def test_arrays(drawn, trained):
    arrays, told = drawn(trained[0], "--count", 12, "--seed", 5)
    assert set(arrays) == {"x", "labels", "seeds"}
    assert arrays["x"].shape == (12, 1, 8, 8)
    assert arrays["x"].dtype == np.float32
    assert arrays["labels"].tolist() == [*range(10), 0, 1]
    assert arrays["seeds"].tolist() == list(range(5, 17))
    assert told == {
        "file": told["file"],
        "count": 12,
        "process": "trigflow",
        "sampler": to_tree(scmreg.load_run(trained[0]).recipe.sampler),
        "nfe": 2,
        "labels": arrays["labels"].tolist(),
        "seeds": list(range(5, 17)),
    }
    expected = scmreg.load_run(trained[0]).sample(12, seed=5)
    assert torch.equal(torch.from_numpy(arrays["x"]), expected)


def test_counts_that_nobody_gave(drawn, trained, trained_points):
    assert len(drawn(trained[0])[0]["x"]) == 100
    assert len(drawn(trained[0], "--labels", "3,1,4")[0]["x"]) == 3
    points = drawn(trained_points[0])[0]
    assert points["x"].shape == (100, 2)
    assert "labels" not in points


def test_a_sample_is_the_same_whatever_the_count(drawn, trained):
    """Equal to rounding only: a matrix product of one row is summed in another order than one of many."""
    few = drawn(trained[0], "--count", 3, "--labels", "1,2,3", "--steps", 4)[0]["x"]
    many = drawn(trained[0], "--count", 600, "--labels", "1,2,3", "--steps", 4)[0]["x"]
    np.testing.assert_allclose(few, many[:3], rtol=0, atol=1e-5)
    alone = drawn(trained[0], "--count", 1, "--labels", "3", "--steps", 4, "--seed", 2)[0]["x"]
    np.testing.assert_allclose(alone, many[2:3], rtol=0, atol=1e-5)
    assert np.abs(many[0] - many[3]).max() > 0.01, "another seed is another sample"


def test_seeds(drawn, trained):
    a = drawn(trained[0], "--count", 4, "--labels", "5")[0]["x"]
    assert np.array_equal(a, drawn(trained[0], "--count", 4, "--labels", "5")[0]["x"])
    b = drawn(trained[0], "--count", 4, "--labels", "5", "--seed", 1)[0]["x"]
    np.testing.assert_allclose(a[1:], b[:3], rtol=0, atol=1e-5)
    assert not np.allclose(a, b, atol=1e-2)


def test_labels_reach_the_network(drawn, trained):
    """The class matters once the weights that read it are not zero, as after training."""
    one = drawn(trained[0], "--count", 1, "--labels", "1")
    other = drawn(trained[0], "--count", 1, "--labels", "8")
    assert one[1]["labels"] == [1]
    assert other[0]["labels"].tolist() == [8]
    assert not np.array_equal(one[0]["x"], other[0]["x"])
    assert drawn(trained[0], "--count", 5, "--labels", "7,2")[0]["labels"].tolist() == [7, 2, 7, 2, 7]


@pytest.mark.parametrize(
    ("arguments", "nfe"),
    [
        (["--steps", "1"], 1),
        (["--steps", "3"], 3),
        (["--times", "1.1"], 2),
        (["--times", "1.3,0.8"], 3),
        (["--times", "1.3,0.8", "--steps", "3"], 3),
        (["--sampler", "heun", "--steps", "4"], 7),
        (["--sampler", "ddim", "--steps", "4"], 4),
        (["--set", "sampler.sigma_max=40"], 2),
        (["--sampler", "heun", "--set", "sampler.steps=3"], 5),
        (["--sampler", "heun", "--times", "1.1"], 1),
        (["--sampler", "heun", "--times", "1.5,0.9,0.1"], 5),
        (["--sampler", "euler", "--times", "1.5,0.9,0.1", "--steps", "3"], 3),
        (["--sampler", "dpm-solver++-2m", "--steps", "4", "--set", "sampler.spacing=log-snr"], 4),
        (["--as", "edm", "--sampler", "dpm-solver-2", "--steps", "4"], 7),
    ],
)
def test_samplers(drawn, trained, arguments, nfe):
    arrays, told = drawn(trained[0], "--count", 4, *arguments)
    assert told["nfe"] == nfe
    assert np.isfinite(arrays["x"]).all()


def test_times_are_the_samplers_own(drawn, trained):
    default = drawn(trained[0], "--count", 4)[0]["x"]
    (time,) = scmreg.load_run(trained[0]).recipe.sampler.intermediate()
    assert np.array_equal(default, drawn(trained[0], "--count", 4, "--times", str(time))[0]["x"])
    assert not np.allclose(default, drawn(trained[0], "--count", 4, "--times", "0.4")[0]["x"], atol=1e-3)
    assert not np.allclose(default, drawn(trained[0], "--count", 4, "--steps", "1")[0]["x"], atol=1e-3)


def test_weights(drawn, trained):
    ema = drawn(trained[0], "--count", 4)[0]["x"]
    assert np.array_equal(ema, drawn(trained[0], "--count", 4, "--weights", "ema")[0]["x"])
    raw = drawn(trained[0], "--count", 4, "--weights", "raw")[0]["x"]
    assert not np.array_equal(ema, raw)
    expected = scmreg.load_run(trained[0]).sample(4, weights="raw")
    assert np.array_equal(raw, expected.numpy())


def test_it_writes_into_the_run_unless_told(scm, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    result = scm("sample", run, "--count", 2)
    assert result.out.strip() == str(run / "samples" / "sample.png")
    assert (run / "samples" / "sample.png").is_file()


WRONG = [
    (["--times", "1.1,1.3"], ["times", "1.3"]),
    (["--times", "1.6"], ["pi/2", "1.6"]),
    (["--times", "0"], ["times"]),
    (["--times", "-0.5"], ["times", "-0.5"]),
    (["--times", "nan"], ["times", "nan"]),
    (["--times", "soon"], ["--times soon", "numbers"]),
    (["--times", "1.1", "--steps", "5"], ["--times 1.1 makes 2 steps, not 5", "leave out --steps"]),
    (["--times", "1.1", "--steps", "1"], ["--times 1.1 makes 2 steps, not 1", "leave out --steps"]),
    (["--times", "1.1", "--steps", "2", "--sampler", "heun"], ["--times 1.1 makes 1 steps, not 2"]),
    (["--times", "1.1,1.2", "--sampler", "heun"], ["times of sampler 'heun' must fall", "1.2"]),
    (["--times", "1.5707,0.5", "--sampler", "ddim", "--as", "edm"], ["times of the sampler begin at 1.5707", "'edm'"]),
    (["--labels", "10"], ["label 10 is no class", "0 to 9"]),
    (["--labels", "-1"], ["label -1 is no class"]),
    (["--labels", "seven"], ["--labels seven", "integers"]),
    (["--labels", ""], ["--labels", "integers"]),
    (["--labels", "1.5"], ["--labels 1.5", "integers"]),
    (["--sampler", "eulr"], ["no sampler called 'eulr'", "did you mean 'euler'", "heun"]),
    (["--as", "emd"], ["no process called 'emd'", "did you mean 'edm'"]),
    (["--guidance", "2"], ["a scale that the model was never told", "distil with guidance"]),
    (["--sampler", "heun", "--guidance", "2"], ["sampler.guidance is 2", "label_dropout"]),
    (["--sampler", "heun", "--set", "sampler.guidance=-1"], ["guidance", "greater than or equal to 0", "-1"]),
    (["--sampler", "heun", "--set", "sampler.guidance=.nan"], ["guidance", "finite"]),
    (["--sampler", "heun", "--set", "sampler.sigma_min=90"], ["sigma_min 90 must be below sigma_max 80"]),
    (
        ["--sampler", "heun", "--as", "edm", "--set", "sampler.sigma_min=90", "--set", "sampler.sigma_max=99"],
        ["sigma_min", "90", "'edm'"],
    ),
    (["--sampler", "heun", "--set", "sampler.steps=0"], ["steps", "greater than or equal to 1"]),
    (["--set", "sampler.step=4"], ["step", "did you mean 'steps'"]),
    (["--set", "network.width=4"], ["network.width=4", "sampler"]),
    (["--weights", "best"], ["best", "ema", "raw"]),
    (["--out", "x.jpg"], ["x.jpg", ".png", ".npz"]),
    (["--device", "gpu"], ["no device called 'gpu'", "cuda"]),
    (["--device", "meta"], ["meta"]),
    (["--out", "file/x.png"], ["x.png"]),
    (["--out", "file/x.npz"], ["x.npz"]),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_what_cannot_be_drawn(scm, trained, workplace, arguments, words):
    (workplace / "file").write_text("in the way")
    before = {path: path.stat().st_mtime_ns for path in trained[0].rglob("*")}
    result = scm("sample", trained[0], "--out", "x.png", *arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert len(result.err.splitlines()) <= 5
    for word in words:
        assert word in result.err
    assert [path.name for path in workplace.iterdir()] == ["file"]
    assert before == {path: path.stat().st_mtime_ns for path in trained[0].rglob("*")}


@pytest.mark.parametrize("arguments", [("--steps", "0"), ("--guidance", "-1"), ("--count", "0")], ids=" ".join)
def test_numbers_below_their_bounds(scm, trained, workplace, arguments):
    result = scm("sample", trained[0], "--sampler", "heun", "--out", "x.png", *arguments)
    assert (result.code, result.out) == (2, "")
    assert f"Invalid value for '{arguments[0]}'" in result.err
    assert list(workplace.iterdir()) == []


def test_labels_of_unlabelled_data(scm, trained_points, workplace):
    result = scm("sample", trained_points[0], "--labels", "3", "--out", "x.png")
    assert result.code == 2
    assert "unlabelled" in result.err
    assert "swissroll" in result.err
    assert not (workplace / "x.png").exists()


def test_points_that_have_no_picture(scm, tiny_diffusion, workplace):
    """Of points in another number of dimensions than two there is no picture, and there are arrays."""
    for dimensions in (1, 3):
        x = np.random.default_rng(0).normal(size=(50, dimensions)).astype(np.float32)
        np.save("x.npy", x)
        data = ("--data", "array", "--set", "data.path=x.npy")
        made = scm("run", "--objective", "diffusion", *data, *tiny_diffusion, "--name", f"d{dimensions}", "--json")
        assert made.code == 0, made.err
        assert scm("sample", made.json["run"], "--count", 3, "--out", "x.npz").code == 0
        with np.load("x.npz") as archive:
            assert archive["x"].shape == (3, dimensions)
        result = scm("sample", made.json["run"], "--count", 3, "--out", "x.png")
        assert result.code == 2
        assert "npz" in result.err
        assert not (workplace / "x.png").exists()


# eval ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the trained run and its teacher: `scm eval` draws its pictures anew."""
    shutil.copytree(trained[0].parent, tmp_path / "runs")
    return tmp_path / "runs" / "digits"


def test_eval_says_what_run_said(scm, trained, copied):
    result = scm("eval", copied, "--json")
    assert result.code == 0
    told, first = result.json, trained[1].json
    assert list(told) == list(first)
    assert {**told, "seconds": 0, "run": ""} == {**first, "seconds": 0, "run": ""}
    text = scm("eval", copied)
    assert "accuracy" in text.out


def test_eval_in_another_way(scm, trained, copied):
    settings = ["evaluation.steps=[1,3]", "evaluation.metrics=[precision-recall]", "evaluation.count=10"]
    settings += ["evaluation.teacher_sampler=ddim", "evaluation.teacher_sampler.steps=2"]
    result = scm("eval", copied, *(part for s in settings for part in ("--set", s)), "--json")
    assert result.code == 0, result.err
    assert [entry["nfe"] for entry in result.json["student"]] == [1, 3]
    assert result.json["teacher"]["nfe"] == 2
    assert set(result.json["student"][0]) == {"nfe", "precision", "recall"}
    assert json.loads((copied / "summary.json").read_text()) == trained[1].json, "the run keeps its own"


def test_eval_without_the_teacher(scm, trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "alone")
    result = scm("eval", tmp_path / "alone", "--json")
    assert result.code == 0, result.err
    assert "teacher" not in result.json
    assert result.json["student"] == trained[1].json["student"]
    assert "teacher is no longer" in result.err


def test_eval_of_a_diffusion_model(scm, trained, copied):
    teacher = next(path for path in (copied.parent / "teachers").iterdir() if path.is_dir())
    result = scm("eval", teacher, "--json")
    assert result.code == 0, result.err
    assert result.json["teacher"] == trained[1].json["teacher"]
    assert result.json["student"] == []


@pytest.mark.parametrize(
    ("run", "settings", "words"),
    [
        ("teacher", ["sampler.guidance=2"], ["sampler.guidance is 2", "label_dropout"]),
        ("teacher", ["sampler=consistency"], ["sampler 'consistency' needs a consistency model"]),
        ("digits", ["evaluation.teacher_sampler.guidance=2"], ["sampler.guidance is 2", "label_dropout"]),
        ("digits", ["sampler={name: heun, guidance: 3}"], ["sampler.guidance is 3", "label_dropout"]),
    ],
)
def test_eval_with_a_sampler_that_does_not_fit(scm, copied, run, settings, words):
    """A run is judged by no sampler that it could not have been made with."""
    folder = (
        copied if run == "digits" else next(path for path in (copied.parent / "teachers").iterdir() if path.is_dir())
    )
    result = scm("eval", folder, *(part for setting in settings for part in ("--set", setting)))
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    for word in words:
        assert word in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "trainer.steps=3"], ["trainer.steps=3", "evaluation"]),
        (["--set", "evaluation.step=[1]"], ["step", "did you mean 'steps'"]),
        (["--set", "evaluation.metrics=[fid]"], ["no metric called 'fid'"]),
        (["--set", "evaluation.count=0"], ["evaluation.count", "0"]),
        (["--set", "evaluation.count=1"], ["evaluation.count", "1"]),
        (["--device", "nonsense"], ["nonsense"]),
    ],
)
def test_eval_of_what_is_wrong(scm, copied, arguments, words):
    result = scm("eval", copied, *arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    for word in words:
        assert word in result.err
