"""Bad input to `scm run`: one message, exit status 2, no traceback, and nothing left behind."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import struct

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from scmreg import processes

NO_BOUNDARY = '''
"""A parameterization whose output is the data: D = F."""
import torch
import scmreg
from scmreg.parameterization import Parameterization, Preconditioning


class Direct(Parameterization, name="direct"):
    """Predict the data themselves."""

    def preconditioning(self, process, t):
        at = process.coefficients(t)
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        return Preconditioning(zero, one, 1 / at.sigma, -at.alpha / at.sigma, 1 / process.std(t))


@scmreg.hookimpl
def scmreg_components():
    return [Direct]
'''


@pytest.fixture
def refused(scm, workplace, tiny):
    """Check that `scm run ...` is refused at a glance and leaves everything as it was."""

    def state():
        return {
            path.relative_to(workplace): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in workplace.rglob("*")
            if path.is_file() or not any(path.iterdir())
        }

    def refuse(*arguments, words, quick=True, command="run"):
        before = state()
        result = scm(command, *(tiny if quick else ()), *arguments)
        assert result.code == 2, (result.code, result.err)
        assert result.out == ""
        complaint = result.err[result.err.index("error: ") :]
        assert len(complaint.splitlines()) <= 6
        assert "Traceback" not in result.err
        for word in words:
            assert word in complaint
        assert state() == before, "something was left behind"
        return complaint

    return refuse


def array(path, *settings):
    return ["--data", "array", "--set", f"data.path={path}", *(x for s in settings for x in ("--set", s))]


def images(path, *settings):
    return ["--data", "images", "--set", f"data.path={path}", *(x for s in settings for x in ("--set", s))]


# Composition ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--process", "trigflo"], ["no process called 'trigflo'", "did you mean 'trigflow'"]),
        (["--set", "network.widht=3"], ["widht", "did you mean 'width'"]),
        (["--set", "process.sigma_data=-1"], ["sigma_data", "greater than 0", "-1"]),
        (["--set", "trainer.steps=soon"], ["trainer.steps", "soon"]),
        (["--device", "nonsense"], ["no device called 'nonsense'", "cpu"]),
        (["--device", "meta"], ["meta", "cpu"]),
        (["--device", "cuda:99"], ["cuda:99"]),
        (["--set", "trainer.optimizer=Adaam"], ["no optimizer 'Adaam'", "did you mean 'Adam'"]),
        (["--set", "teacher.trainer.optimizer=Adaam"], ["no optimizer 'Adaam'"]),
        (["--set", "trainer.optimizer_options={beta: 3}"], ["optimizer Adam refuses", "beta", "betas"]),
        (["--set", "trainer.optimizer_options={betas: [0.9, 1.5]}"], ["optimizer Adam refuses", "1.5"]),
        (["--set", "trainer.optimizer=LBFGS"], ["LBFGS"]),
        (["--set", "trainer.optimizer=SparseAdam"], ["SparseAdam"]),
        (["--set", "data.held_out=1"], ["digits", "nothing is left to train on", "held_out"]),
        (["--set", "sampler.times=[1.2]", "--set", "sampler.steps=4"], ["4 steps need 3", "times"]),
        (["--name", "a/b"], ["'a/b'"]),
        (["--name", ".."], ["'..'"]),
        (["--name", ".hidden"], ["'.hidden'"]),
        (["--recipe", "nowhere.yaml"], ["no recipe 'nowhere.yaml'"]),
        (["--set", "version=99"], ["version 99", "newer scmreg"]),
        (["--plugin", "nowhere.py"], ["no plugin file nowhere.py"]),
        (["--teacher", "nowhere"], ["nowhere"]),
        (["--set", "network.width=33"], ["width"]),
        (["--set", "evaluation.count=1"], ["evaluation.count", "1"]),
        (["--network", "dit", "--set", "network.attention=flash9"], ["flash9"]),
        (["--process", "vp", "--set", "process.beta_max=0.05"], ["beta_max 0.05", "below its beta_min 0.1"]),
        (["--process", "vp", "--set", "process.sigma_data=0"], ["sigma_data", "greater than 0"]),
        (["--process", "cosine", "--set", "process.sigma_data=.nan"], ["sigma_data", "finite"]),
        (["--set", "parameterization.c_noise=1000"], ["c_noise", "'1000t'"]),
        (
            ["--parameterization", "converted", "--set", "parameterization.c_noise=edm"],
            ["parameterization has no option 'c_noise'"],
        ),
        (
            ["--set", "parameterization={name: converted, of: noise, process: flow}"],
            ["parameterization 'converted' has a pole at pure noise"],
        ),
        (["--teacher", "exact"], ["unlike 'digits'", "its law is not known, there are only samples of it"]),
        (["--teacher", "exact", "--data", "swissroll"], ["unlike 'swissroll'", "no closed form"]),
        (["--teacher", "exact", "--data", "checkerboard"], ["unlike 'checkerboard'", "no closed form"]),
        (["--teacher", "exact", "--objective", "sct"], ["unlike 'digits'"]),
        (
            ["--teacher", "exact", "--data", "mixture", "--set", "objective.start=teacher"],
            ["start of 'scd' is 'teacher'", "an exact teacher has no weights", "scratch, or auto"],
        ),
        (["--sampler", "heun", "--set", "sampler.guidance=2"], ["sampler.guidance is 2", "'scd'", "label_dropout"]),
        (["--set", "evaluation.teacher_sampler.guidance=2"], ["sampler.guidance is 2", "'diffusion'", "label_dropout"]),
        (["--sampler", "heun", "--set", "sampler.steps=0"], ["steps", "greater than or equal to 1"]),
        (
            ["--sampler", "ddim", "--set", "sampler={name: ddim, steps: 2, times: [0.5, 1]}"],
            ["must fall", "[0.5, 1.0]"],
        ),
        (["--sampler", "ddim", "--set", "sampler.sigma_min=100"], ["sigma_min 100 must be below sigma_max 80"]),
        (
            ["--process", "edm", "--set", "sampler={name: consistency, steps: 2, times: [1.57]}"],
            ["times of the sampler begin at 1.57, but process 'edm' ends at 1.56"],
        ),
        (["--set", "evaluation.metrics=[trajectory-errors]"], ["did you mean 'trajectory-error'"]),
        (["--set", "objective=scd+"], ["the sum 'scd+' lacks a term", "such as scd+vsd"]),
        (["--set", "objective=scd+scd"], ["'scd' is a term twice", "a greater weight instead"]),
        (["--set", "objective={name: sum, terms: []}"], ["terms is empty"]),
        (["--set", "objective={name: sum, terms: [scd, sct+vsd]}"], ["a term is a sum itself"]),
        (["--set", "objective={name: scd+vsd, weights: [1, -1]}"], ["weights[1]", "greater than or equal to 0", "-1"]),
        (["--set", "objective={name: scd+vsd, weights: [1]}"], ["1 weights for 2 terms (scd, vsd)"]),
        (["--set", "objective={name: scd+vsd, weights: [0, 0]}"], ["every weight is 0"]),
        (
            ["--set", "objective=scd+vsd", "--set", "objective.terms.scd.start=scratch"],
            ["the terms of scd+vsd share one model", "objective.terms.scd.start is 'scratch'", "'auto'"],
        ),
        (
            ["--set", "objective=scd+vsd", "--set", "objective.terms.sct.warmup=3"],
            ["objective.terms has no 'sct', did you mean 'scd'", "its objectives: scd, vsd"],
        ),
        (
            ["--set", "objective=scd+vsd", "--set", "objective.warmup=3"],
            ["objective has no option 'warmup'", "objective.terms.scd.warmup"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_options(refused, arguments, words):
    refused(*arguments, words=words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--objective", "vds"], ["no objective called 'vds', did you mean 'vsd'"]),
        (["--objective", "scd+vds"], ["no objective called 'vds', did you mean 'vsd'", "available: "]),
        (["--objective", "vsd+"], ["the sum 'vsd+' lacks a term"]),
        (["--objective", "scd+vsd", "--weighting", "adaptive"], ["objective.terms.vsd.weighting"]),
        (["--teacher", ""], ["--teacher is empty", "the folder of a run"]),
        (["--set", "objective.guidance=[]"], ["guidance must be a list of 2 values, not []"]),
        (["--set", "objective.guidance=[1]"], ["guidance must be a list of 2 values, not [1]"]),
        (["--set", "objective.guidance=[1, 2, 3]"], ["guidance must be a list of 2 values"]),
        (["--set", "objective.guidance=[-1, 2]"], ["guidance[0]", "greater than or equal to 0"]),
        (["--objective", "scd+vsd", "--set", "objective.weights=-1"], ["weights must be a list, not -1"]),
        (
            ["--data", "swissroll", "--objective", "diffusion", "--set", "objective.label_dropout=0.1"],
            ["label_dropout withholds labels, but data 'swissroll' have no classes"],
        ),
        (
            ["--data", "swissroll", "--set", "teacher.objective.label_dropout=0.1"],
            ["label_dropout withholds labels, but data 'swissroll' have no classes"],
        ),
        (["--objective", "vsd", "--set", "objective.generator_every=0"], ["generator_every", "equal to 1"]),
        (["--objective", "vsd", "--set", "objective.fake_rate=0"], ["fake_rate", "greater than 0"]),
        (["--objective", "vsd", "--teacher", "exact"], ["an exact teacher needs data that know their own law"]),
        (["--objective", "scd+vsd", "--teacher", "exact"], ["an exact teacher needs data that know their own law"]),
        (
            ["--objective", "vsd", "--teacher", "exact", "--data", "mixture", "--set", "objective.start=teacher"],
            ["start of 'vsd' is 'teacher'", "an exact teacher has no weights", "scratch, or auto"],
        ),
        (
            ["--objective", "vsd", "--set", "sampler.sigma_max=40"],
            ["noise level 80", "starts at 40", "objective.sigma_max"],
        ),
        (
            ["--objective", "vsd", "--set", "teacher.objective=vsd"],
            ["teacher.objective is 'vsd': a teacher is a diffusion model"],
        ),
        (["--objective", "sum", "--teacher", "nowhere"], ["nowhere"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_distillation(refused, arguments, words):
    refused(*arguments, quick=False, words=words)


@pytest.mark.parametrize("objective", ["vsd", "scd+vsd"])
def test_a_teacher_of_other_samples(refused, trained, trained_points, objective):
    """Of another shape, or of other classes: the networks of teacher, student and fake score are one."""
    run = trained_points[0]
    teacher = next(path for path in (run.parent / "teachers").iterdir() if path.is_dir())
    whole = ["--objective", objective, "--teacher", teacher]
    small = ["--set", "network.width=32", "--set", "network.depth=1"]
    refused(*whole, *small, quick=False, words=["samples of shape (2,) with 0 classes", "(1, 8, 8) with 10"])
    labelled = ["--data", "gaussians", "--set", "data.labelled=true", "--set", "data.count=60"]
    refused(*whole, *small, *labelled, quick=False, words=["with 0 classes", "shape (2,) with 8"])
    refused(*whole, *labelled[:2], quick=False, words=["training cannot start from the weights", "network"])
    student = ["--teacher", run, "--data", "swissroll", "--set", "data.count=200"]
    refused("--objective", objective, *student, *small, quick=False, words=["a teacher must be a diffusion model"])


@pytest.mark.parametrize(
    ("objective", "setting", "words"),
    [
        ("ect", "objective.schedule.q=1", ["schedule(ect).q", "greater than 1"]),
        ("ect", "objective.schedule.d=0", ["schedule(ect).d", "greater than 0"]),
        ("dscd", "objective.schedule.steps=1", ["schedule(edm-grid).steps", "greater than or equal to 2"]),
        ("dscd", "objective.schedule.sigma_min=80", ["sigma_min 80 must be below sigma_max 80"]),
        ("ict", "objective.schedule.s1=4", ["schedule 'ict': s1 4 must not be below s0 10"]),
        ("cd", "objective.target_ema=1", ["target_ema", "less than 1"]),
        ("cd", "objective.solver=rk4", ["solver", "'heun' or 'euler'"]),
        ("cd", "objective.distance=l3", ["no distance called 'l3'"]),
        ("cd", "objective.distance=lpips", ["distance 'lpips' cannot run here", 'pip install "scmreg[lpips]"']),
        ("ct", "objective.schedule=cosine", ["no schedule called 'cosine'", "available: ect, edm-grid, ict"]),
        ("ect", "objective.proposal={name: karras, sigma_min: 100}", ["sigma_min 100 must be below sigma_max 80"]),
        ("ect", "objective.weighting.w_bar=1/t^3", ["w_bar", "'1/(t-r)'"]),
        ("ect", "objective.warmup=3", ["objective has no option 'warmup'"]),
    ],
)
def test_options_of_discrete_time(refused, objective, setting, words):
    refused("--objective", objective, "--set", setting, quick=False, words=words)


@pytest.mark.parametrize("objective", ["cd", "dscd"])
def test_distillation_needs_its_teacher(refused, objective):
    arguments = ["--objective", objective]
    refused(*arguments, "--teacher", "exact", quick=False, words=["unlike 'digits'"])
    refused(*arguments, "--teacher", "nowhere", quick=False, words=["nowhere"])
    start = ["--data", "mixture", "--teacher", "exact", "--set", "objective.start=teacher"]
    refused(*arguments, *start, quick=False, words=[f"start of '{objective}' is 'teacher'", "has no weights"])


@pytest.mark.parametrize("weighting", ["ect", "inverse-step", "{name: converted, of: ect}"])
def test_a_weighting_of_pairs_needs_pairs(refused, weighting):
    words = ["weights pairs of times", "objective 'scd' has none of"]
    refused("--objective", "scd", "--set", f"objective.weighting={weighting}", quick=False, words=words)


@pytest.mark.parametrize("objective", ["ct", "ict"])
def test_training_from_scratch_needs_no_teacher(refused, objective):
    words = [f"--teacher is of no use: objective '{objective}' needs no teacher"]
    refused("--objective", objective, "--teacher", "runs/nowhere", quick=False, words=words)


@pytest.mark.parametrize("arguments", [[], ["--teacher", "exact"]])
def test_diffusion_needs_no_teacher(refused, arguments):
    """Neither a run nor the solution: an option that would do nothing is refused."""
    teacher = arguments or ["--teacher", "runs/nowhere"]
    whole = ["--objective", "diffusion", "--data", "mixture", *teacher]
    refused(*whole, quick=False, words=["--teacher is of no use: objective 'diffusion' needs no teacher"])


@pytest.mark.parametrize("objective", ["scd", "sct", "diffusion", "vsd", "scd+vsd"])
def test_the_exact_network_is_not_trained(refused, objective):
    arguments = ["--network", "exact", "--objective", objective, "--data", "mixture"]
    refused(*arguments, quick=False, words=["network 'exact' has no parameters to train", "--teacher exact"])


@pytest.mark.parametrize("name", ["LBFGS", "SparseAdam"])
def test_an_optimizer_that_cannot_train_is_not_offered(refused, name):
    complaint = refused("--set", "trainer.optimizer=nonsense", words=["no optimizer 'nonsense'"])
    assert "AdamW" in complaint
    assert name not in complaint.replace("'", " ").replace(",", " ").split()


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("objective", ["scd", "sct", "vsd", "sum"])
@pytest.mark.parametrize("process", list(processes))
def test_a_parameterization_without_boundary(refused, workplace, process, objective):
    (workplace / "plug.py").write_text(NO_BOUNDARY)
    refused(
        "--plugin", "plug.py", "--process", process, "--objective", objective, "--parameterization", "direct",
        words=[f"objective '{objective}' needs f(x, 0) = x", "parameterization 'direct'", f"process '{process}'"],
        quick=objective in ("scd", "sct"),
    )  # fmt: skip


@pytest.mark.usefixtures("registries")
def test_the_same_parameterization_suits_diffusion(scm, workplace, tiny_diffusion):
    (workplace / "plug.py").write_text(NO_BOUNDARY)
    arguments = ["--plugin", "plug.py", "--objective", "diffusion", "--parameterization", "direct", "--process", "edm"]
    result = scm("run", *arguments, *tiny_diffusion, "--set", "evaluation.metrics=[]", "--json")
    assert result.code == 0, result.err
    assert result.json["objective"] == "diffusion"


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import nowhere_at_all", ["ModuleNotFoundError", "nowhere_at_all"]),
        ("def f(:", ["SyntaxError"]),
        ("x = 1", ["no hook", "scmreg_components"]),
        ("import scmreg\n@scmreg.hookimpl\ndef scmreg_components(): return [int]", ["int", "no component class"]),
        (
            'import scmreg\nclass P(scmreg.Process, name="edm"):\n t_max = 1.0\n def coefficients(self, t): ...\n'
            "@scmreg.hookimpl\ndef scmreg_components(): return [P]",
            ["process 'edm' is already taken by edm (scmreg "],
        ),
    ],
)
def test_plugin_files(scm, workplace, code, words):
    (workplace / "plug.py").write_text(code)
    result = scm("list", "--plugin", "plug.py")
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: plugin file plug.py: ")
    for word in words:
        assert word in result.err


# Places --------------------------------------------------------------------------------------------------------------


def test_an_output_that_cannot_be_written(refused, workplace):
    (workplace / "file").write_text("in the way")
    refused("--out", "file/below", words=["cannot write to file/below", "--out"])
    refused("--out", "file", words=["cannot write to file", "--out"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_without_permission(refused, workplace):
    (workplace / "locked").mkdir(mode=0o500)
    refused("--out", "locked/runs", words=["locked/runs", "--out"])


def test_a_name_that_is_taken(refused, workplace, trained):
    shutil.copytree(trained[0], workplace / "runs" / "mine")
    refused("--name", "mine", words=["runs/mine exists already", "scm run --resume runs/mine", "--name"])


# Data ----------------------------------------------------------------------------------------------------------------


def png(path, size=(8, 8), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0])).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def idx(values):
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


PIXELS = np.random.default_rng(0).integers(0, 255, (20, 8, 8)).astype(np.uint8)


def make(path):
    """Write a sound file of the type that the name says."""
    name = path.name
    if name.endswith(".npy"):
        np.save(path, PIXELS)
    elif name.endswith(".npz"):
        np.savez(path, x=PIXELS, labels=np.arange(20) % 2)
    elif name.endswith(".safetensors"):
        save_file({"x": PIXELS}, path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(idx(PIXELS)))
    else:
        path.write_bytes(idx(PIXELS))
    return path


FILES = ["x.npy", "x.npz", "x.safetensors", "x-idx3-ubyte.gz", "x-idx3-ubyte", "x.idx"]


@pytest.mark.parametrize("name", FILES)
def test_a_sound_file_is_read(scm, workplace, name, tiny_diffusion):
    make(workplace / name)
    result = scm(
        "run", *array(name), *tiny_diffusion, "--objective", "diffusion", "--set", "evaluation.count=8", "--json"
    )
    assert result.code == 0, result.err


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage", "text"])
def test_files_that_are_damaged(refused, workplace, name, damage):
    path = workplace / name
    if damage != "missing":
        content = make(path).read_bytes()
        path.write_bytes(
            {
                "empty": b"",
                "cut": content[: len(content) * 2 // 3],
                "garbage": bytes(range(255, -1, -1)) * 4,
                "text": b"these are not the pixels you are looking for\n" * 9,
            }[damage]
        )
    refused(*array(name), words=[name])


@pytest.mark.parametrize("name", ["x.npz", "x-idx3-ubyte.gz"])
def test_a_flipped_byte_in_a_file_with_a_checksum(refused, workplace, name):
    path = make(workplace / name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    refused(*array(name), words=[name, "cannot be read"])


@pytest.mark.parametrize(("name", "content"), [("x.npz", "x.idx"), ("x.idx", "x.npy"), ("x.npy", "x.safetensors")])
def test_a_file_of_another_type_than_its_name_says(refused, workplace, name, content):
    make(workplace / content).rename(workplace / name)
    refused(*array(name), words=[name])


def test_a_pickle_is_never_loaded(refused, workplace):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(workplace / "trapped"),))

    np.save(workplace / "x.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(workplace / "x.npz", x=np.array([Trap()], dtype=object))
    for name in ("x.npy", "x.npz"):
        refused(*array(name), words=[name])
    assert not (workplace / "trapped").exists()


def test_a_file_of_no_known_type(refused, workplace):
    (workplace / "x.csv").write_text("1,2\n")
    refused(*array("x.csv"), words=["x.csv", ".npz"])
    (workplace / "folder.npy").mkdir()
    refused(*array("folder.npy"), words=["folder.npy"])


@pytest.mark.parametrize(
    ("arrays", "settings", "words"),
    [
        ({"x": np.zeros((4, 2, 2, 2, 2))}, [], ["(4, 2, 2, 2, 2)", "(N, H, W)"]),
        ({"x": np.zeros((20, 8, 8, 2))}, [], ["(20, 8, 8, 2)"]),
        ({"x": np.zeros(7)}, [], ["(7,)"]),
        ({"x": np.float32(3)}, [], ["x.npz"]),
        ({"x": np.zeros((0, 8, 8), np.uint8)}, [], ["(0,"]),
        ({"x": np.zeros((0, 2))}, [], ["(0, 2)"]),
        ({"x": np.full((20, 8, 8), 2.0)}, [], ["[0, 1]", "2"]),
        ({"x": -np.ones((20, 8, 8))}, [], ["[0, 1]", "-1"]),
        ({"x": np.zeros((20, 8, 8), np.uint8)}, [], ["all values are 0"]),
        ({"x": np.ones((20, 2))}, [], ["all values are 1"]),
        ({"x": np.where(np.arange(40).reshape(20, 2) == 3, np.nan, 1.0)}, [], ["not finite"]),
        ({"x": np.array([["a", "b"]] * 20)}, [], ["x.npz"]),
        ({"x": np.ones((20, 2)) * 1j}, [], ["complex"]),
        ({"a": PIXELS, "b": PIXELS}, [], ["which array", "a, b", "data.key"]),
        ({"x": PIXELS}, ["data.key=y"], ["no array 'y'", "it has: x"]),
        ({"x": PIXELS, "labels": np.arange(19)}, [], ["labels", "(19,)", "20 items"]),
        ({"x": PIXELS, "labels": np.zeros((20, 2), int)}, [], ["labels", "(20, 2)"]),
        ({"x": PIXELS, "labels": np.arange(20) - 1}, [], ["labels", "class indices"]),
        ({"x": PIXELS, "labels": np.linspace(0, 1, 20)}, [], ["labels", "float64", "class indices"]),
        ({"x": PIXELS}, ["data.labels=nowhere.npy"], ["nowhere.npy"]),
        ({"x": PIXELS[:1]}, ["data.held_out=0.9"], ["nothing is left to train on"]),
    ],
)
def test_arrays_of_the_wrong_form(refused, workplace, arrays, settings, words):
    np.savez(workplace / "x.npz", **arrays)
    refused(*array("x.npz", *settings), words=words)


def test_folders(refused, workplace):
    refused(*images("nowhere"), words=["no folder", "nowhere"])
    (workplace / "file").write_text("")
    refused(*images("file"), words=["file"])
    (workplace / "empty" / "below").mkdir(parents=True)
    (workplace / "empty" / "readme.txt").write_text("no images here")
    refused(*images("empty"), words=["no images in", "empty", ".png"])
    png(workplace / "mixed" / "a.png")
    png(workplace / "mixed" / "cats" / "b.png")
    refused(*images("mixed"), words=["mixed", "cats"])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tif"])
@pytest.mark.parametrize("damage", ["empty", "cut", "garbage"])
def test_images_that_are_damaged(refused, workplace, suffix, damage):
    for index in range(6):
        png(workplace / "pics" / f"{index}.{suffix}", (24, 24), index)
    path = workplace / "pics" / f"3.{suffix}"
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "garbage": content[:4] + b"\x93" * 99}[damage])
    refused(*images("pics", "data.size=8"), words=[f"pics/3.{suffix} cannot be read"])


def test_any_flipped_byte_of_an_image_is_an_error_or_nothing(workplace):
    """Whatever Pillow raises on a broken file, it is said of the file."""
    from scmreg import datasets
    from scmreg.errors import DataError

    path = png(workplace / "pics" / "0.png", (6, 6))
    png(workplace / "pics" / "1.png", (6, 6), 1)
    content = path.read_bytes()
    data, refusals = datasets.create("images", path="pics", size=6), 0
    for position in range(len(content)):
        broken = bytearray(content)
        broken[position] ^= 0xFF
        path.write_bytes(broken)
        try:
            data.load()
        except DataError as error:
            refusals += 1
            assert "0.png" in str(error)  # noqa: PT017
    assert refusals > len(content) // 3


def test_an_image_larger_than_pillow_dares(refused, workplace, monkeypatch):
    png(workplace / "pics" / "0.png", (30, 30))
    png(workplace / "pics" / "1.png", (30, 30), 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused(*images("pics"), words=["pics/0.png"])


# Teachers and checkpoints --------------------------------------------------------------------------------------------


@pytest.fixture
def copied(trained, workplace):
    """A copy of the trained run and its teacher, free to be broken."""
    shutil.copytree(trained[0].parent, workplace / "runs")
    return workplace / "runs" / "digits"


def teacher_of(run):
    return next(path for path in (run.parent / "teachers").iterdir() if path.is_dir())


def flip(path, place=-3):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def edit(path, change):
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


LAST = "checkpoints/00000003"


@pytest.mark.parametrize("command", ["sample", "eval"])
@pytest.mark.parametrize("part", ["model", "ema", "objective", "optimizer-main"])
def test_a_flipped_bit_in_a_checkpoint(refused, copied, command, part):
    flip(copied / LAST / f"{part}.safetensors")
    refused("runs/digits", command=command, quick=False, words=[f"{part}.safetensors is corrupt"])


def test_a_flipped_bit_where_it_is_resumed(refused, copied):
    flip(copied / LAST / "model.safetensors")
    refused("--resume", "runs/digits", quick=False, words=["model.safetensors is corrupt"])


def test_a_flipped_bit_in_a_teacher(refused, copied):
    teacher = teacher_of(copied)
    flip(teacher / LAST / "ema.safetensors")
    refused("--teacher", teacher, words=["ema.safetensors is corrupt"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda meta: meta.update(format=2), ["format 2", "newer scmreg"]),
        (lambda meta: meta.update(format="x"), ["format"]),
        (lambda meta: meta.pop("format"), ["not the metadata of a checkpoint"]),
        (lambda meta: meta.pop("files"), ["not the metadata of a checkpoint"]),
        (lambda meta: meta.update(files=[]), ["meta.json"]),
        (lambda meta: meta.pop("recipe"), ["recipe"]),
        (lambda meta: meta.pop("data"), ["data"]),
        (lambda meta: meta["data"].pop("std"), ["data"]),
        (lambda meta: meta["data"].update(foo=1), ["data"]),
        (lambda meta: meta.update(recipe=3), ["recipe"]),
        (lambda meta: meta["recipe"].update(version=9), ["version 9", "newer scmreg"]),
        (lambda meta: meta["recipe"].update(process="foreign"), ["no process called 'foreign'"]),
        (lambda meta: meta["recipe"]["network"].update(width=64), ["another model", "shape"]),
        (lambda meta: meta["recipe"]["network"].update(depth=2), ["another model", "lacks 'network.blocks.1."]),
        (lambda meta: meta["recipe"].update(network="dit"), ["another model"]),
        (lambda meta: meta["data"].update(shape=[1, 4, 4]), ["another model", "shape"]),
    ],
)
def test_a_foreign_checkpoint(refused, copied, change, words):
    edit(copied / LAST / "meta.json", change)
    refused("runs/digits", "--out", "x.png", command="sample", quick=False, words=words)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"x"', "\x00"])
def test_metadata_that_are_none(refused, copied, text):
    (copied / LAST / "meta.json").write_text(text)
    refused("runs/digits", command="sample", quick=False, words=["meta.json"])


def test_a_file_that_is_gone(refused, copied):
    (copied / LAST / "ema.safetensors").unlink()
    refused("runs/digits", command="sample", quick=False, words=["lacks", "ema.safetensors"])


def test_a_network_that_was_put_in_another_run(refused, copied, scm, tiny):
    """The digests agree, the tensors are of another network."""
    wide = scm("run", *tiny, "--set", "network.width=40", "--set", "evaluation.metrics=[]", "--name", "wide")
    assert wide.code == 0, wide.err
    foreign = (copied.parent / "wide" / LAST / "ema.safetensors").read_bytes()
    (copied / LAST / "ema.safetensors").write_bytes(foreign)
    digest = hashlib.sha256(foreign).hexdigest()
    edit(copied / LAST / "meta.json", lambda meta: meta["files"].update({"ema.safetensors": digest}))
    refused("runs/digits", command="sample", quick=False, words=["is of another model", "shape"])


def test_runs_that_are_none(refused, workplace):
    for command in ("sample", "eval"):
        refused("nowhere", command=command, quick=False, words=["nowhere"])
    (workplace / "empty").mkdir()
    (workplace / "empty" / "x").write_text("")
    for command in ("sample", "eval"):
        refused("empty", command=command, quick=False, words=["empty", "checkpoint"])


@pytest.mark.parametrize(
    "text", [None, "", "- a\n", "3", "version: 99", "proces: edm", "process: [", b"\xff\xfe\x00\x80"]
)
def test_resuming_what_is_no_run(refused, workplace, text):
    folder = workplace / "fake"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    if text is not None:
        (folder / "recipe.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(
        "--resume",
        "fake",
        quick=False,
        words=["version 99" if text == "version: 99" else "proces" if text == "proces: edm" else "fake"],
    )


def test_resuming_nothing(refused, workplace):
    refused("--resume", "nowhere", quick=False, words=["no run directory", "nowhere"])
    (workplace / "file").write_text("")
    refused("--resume", "file", quick=False, words=["no run directory", "file"])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--steps", "5"], "trainer.steps"),
        (["--process", "edm"], "process"),
        (["--set", "trainer.steps=5"], "trainer.steps=5"),
        (["--seed", "0"], "seed"),
        (["--name", "x"], "x"),
        (["--recipe", "r"], "r"),
        (["--teacher", "t"], "teacher"),
        (["--weighting", "snr"], "weighting"),
        (["--out", "elsewhere"], "elsewhere"),
    ],
)
def test_resuming_with_other_options(refused, copied, arguments, word):
    refused("--resume", "runs/digits", *arguments, quick=False, words=["--resume", word, "--recipe"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--parameterization", "flow"], ["its parameterization is", "FlowVelocity", "objective.start=scratch"]),
        (["--process", "edm", "--parameterization", "velocity"], ["its parameterization is", "process 'edm'"]),
        (["--set", "parameterization.c_noise=edm"], ["its parameterization is", "c_noise='edm'"]),
        (["--set", "network.width=64"], ["its network is", "width=64", "objective.start=scratch"]),
        (["--network", "dit"], ["its network is", "DiT", "objective.start=scratch"]),
        (["--data", "swissroll"], ["(1, 8, 8)", "(2,)"]),
        (["--data", "array", "--set", "data.path=x.npy"], ["10 classes", "0"]),
    ],
)
def test_a_teacher_that_does_not_fit(refused, copied, workplace, arguments, words):
    np.save(workplace / "x.npy", PIXELS)
    teacher = os.path.relpath(teacher_of(copied), workplace)
    refused("--teacher", teacher, *arguments, words=[teacher, *words])


def test_a_student_is_no_teacher(refused, copied):
    refused("--teacher", "runs/digits", words=["runs/digits", "'scd'", "diffusion"])


def test_a_teacher_that_changed_since(refused, copied, scm, tiny_diffusion):
    """A run that is resumed must find the very teacher that it began with."""
    scm(
        "run",
        "--objective",
        "diffusion",
        *tiny_diffusion,
        "--seed",
        5,
        "--name",
        "other",
        "--set",
        "evaluation.metrics=[]",
    )
    teacher = teacher_of(copied)
    shutil.rmtree(teacher / "checkpoints")
    shutil.copytree(copied.parent / "other" / "checkpoints", teacher / "checkpoints")
    refused("--resume", "runs/digits", quick=False, words=["cannot go on without the teacher"])
