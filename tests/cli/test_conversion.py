"""One process, many coordinates: a model of one process is sampled, and teaches, under another; guided samples."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
import yaml

import scmreg
from scmreg.coordinates import convert_point
from scmreg.types import Conditions

PROCESSES = list(scmreg.processes)
MEANINGS = {
    "cosine": ("velocity", "identity"),
    "edm": ("unit-variance", "edm"),
    "flow": ("flow", "identity"),
    "trigflow": ("unit-variance", "log-sigma"),
    "vp": ("noise", "1000t"),
}
"""What the network of each diffusion run predicts, and what it is told of the time."""
SMALL = ["--data", "gaussians", "--set", "data.count=60", "--set", "data.labelled=true"]
SILENT = ["--set", "evaluation.metrics=[]", "--set", "evaluation.count=4", "--set", "evaluation.steps=[1]"]


@pytest.fixture(scope="module")
def diffusion(scm, tmp_path_factory, tiny_diffusion):
    """Return the tiny diffusion run of a process, trained once."""
    out, made = tmp_path_factory.mktemp("diffusion"), {}

    def run(process):
        if process not in made:
            parameterization, c_noise = MEANINGS[process]
            composed = ["--process", process, "--parameterization", parameterization]
            composed += ["--set", f"parameterization.c_noise={c_noise}", "--objective", "diffusion"]
            result = scm("run", *SMALL, *composed, *tiny_diffusion, *SILENT, "--out", out, "--name", process, "--json")
            assert result.code == 0, result.err
            made[process] = out / process
        return made[process]

    return run


@pytest.fixture
def drawn(scm, workplace):
    """Return the arrays that `scm sample RUN ...` writes, and what it tells."""

    def draw(run, *arguments):
        result = scm("sample", run, "--count", 16, *arguments, "--out", "x.npz", "--json")
        assert result.code == 0, result.err
        with np.load("x.npz", allow_pickle=False) as archive:
            return archive["x"], result.json

    return draw


def test_every_process_has_a_run():
    assert set(MEANINGS) == set(PROCESSES)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpm-solver++-2m"])
@pytest.mark.parametrize("process", PROCESSES)
def test_samples_are_the_same_under_another_process(drawn, diffusion, process, sampler):
    own, told = drawn(diffusion(process), "--sampler", sampler, "--steps", 6)
    assert told["process"] == process
    spread = float(own.std())
    assert spread > 0.1
    for other in PROCESSES:
        converted, told = drawn(diffusion(process), "--sampler", sampler, "--steps", 6, "--as", other)
        assert told["process"] == other
        np.testing.assert_allclose(converted, own, rtol=0, atol=1e-4 * spread)


def test_euler_is_another_method_under_another_process(drawn, diffusion):
    own, _ = drawn(diffusion("trigflow"), "--sampler", "euler", "--steps", 4)
    converted, _ = drawn(diffusion("trigflow"), "--sampler", "euler", "--steps", 4, "--as", "vp")
    assert np.abs(own - converted).max() > 1e-2


@pytest.mark.parametrize("arguments", [("--steps", "1"), (), ("--times", "1.3,0.7")], ids=" ".join)
@pytest.mark.parametrize("process", [name for name in PROCESSES if name != "trigflow"])
def test_consistency_samples_are_the_same(drawn, trained, process, arguments):
    own, _ = drawn(trained[0], *arguments)
    converted, told = drawn(trained[0], *arguments, "--as", process)
    assert (told["process"], told["sampler"]["name"]) == (process, "consistency")
    np.testing.assert_allclose(converted, own, rtol=0, atol=1e-4)


def test_the_library_converts_alike(diffusion):
    run = scmreg.load_run(diffusion("vp"))
    edm = scmreg.processes.create("edm", sigma_data=run.recipe.process.sigma_data)
    model = run.denoiser()
    made = run.denoiser(process=edm)
    assert [p.data_ptr() for p in scmreg.convert(model, edm).parameters()] == [p.data_ptr() for p in model.parameters()]
    x, t = torch.randn(8, 2, dtype=torch.float64), torch.linspace(0.05, 0.9, 8, dtype=torch.float64)
    there, s = convert_point(x, t, run.recipe.process, edm)
    cond = Conditions(label=torch.arange(8))
    for one, other in zip(model.double().predict(x, t, cond), made.double().predict(there, s, cond), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(run.sample(5, process=edm), run.sample(5), rtol=0, atol=1e-3)


# Teachers of another process ------------------------------------------------------------------------------------------


def converted(process):
    """Options of the parameterization that a run of another process means under this one."""
    parameterization, c_noise = MEANINGS[process]
    settings = (f"of={parameterization}", f"of.c_noise={c_noise}", f"process={process}")
    return ["--parameterization", "converted", *(x for s in settings for x in ("--set", f"parameterization.{s}"))]


STILL = ["--set", "trainer.learning_rate=1e-12", "--set", "trainer.ema_half_life=0"]
"""So small a step that the weights stay those that training starts from."""


@pytest.mark.parametrize(
    ("process", "own"), [("cosine", "trigflow"), ("flow", "trigflow"), ("flow", "vp"), ("vp", "edm")]
)
def test_a_student_starts_from_the_weights_of_another_process(scm, drawn, tiny, diffusion, process, own):
    teacher = diffusion(process)
    composed = ("--process", own, *converted(process), "--teacher", teacher)
    result = scm("run", *SMALL, *composed, *tiny, *SILENT, *STILL, "--json")
    assert result.code == 0, result.err
    student = scmreg.load_run(result.json["run"])
    ema = scmreg.load_run(teacher).checkpoint.tensors("ema")
    for key, value in student.checkpoint.tensors("model").items():
        torch.testing.assert_close(value, ema[key], rtol=0, atol=1e-9)
    # What was saved is read back as the same model, in its own process and in the teacher's.
    tree = yaml.safe_load((student.folder / "recipe.yaml").read_text())["parameterization"]
    assert (tree["name"], tree["of"]["name"], tree["process"]["name"]) == ("converted", MEANINGS[process][0], process)
    assert tree["of"]["c_noise"] == MEANINGS[process][1]
    solver = ("--sampler", "ddim", "--steps", 5)
    of_teacher, _ = drawn(teacher, *solver)
    for more in ((), ("--as", process), ("--as", "cosine")):
        of_student, _ = drawn(student.folder, *solver, *more)
        np.testing.assert_allclose(of_student, of_teacher, rtol=0, atol=1e-3)


@pytest.mark.parametrize("c_noise", ["identity", "edm"])
def test_the_unit_variance_form_is_converted_to_itself(scm, tiny, tiny_diffusion, workplace, c_noise):
    """`scm run --process trigflow --teacher EDM_RUN` needs no more than that: the network means the same in both."""
    told = ("--set", f"parameterization.c_noise={c_noise}")
    first = ["run", *SMALL, "--process", "edm", "--objective", "diffusion", *told, *tiny_diffusion, *SILENT]
    assert scm(*first, "--name", "edm").code == 0
    more = ("--process", "trigflow", "--teacher", "runs/edm", *told, "--name", "pupil", "--json")
    result = scm("run", *SMALL, *tiny, *SILENT, *STILL, *more)
    assert result.code == 0, result.err
    assert result.json["teacher"]["nfe"] == 35
    ema = scmreg.load_run("runs/edm").checkpoint.tensors("ema")
    for key, value in scmreg.load_run("runs/pupil").checkpoint.tensors("model").items():
        torch.testing.assert_close(value, ema[key], rtol=0, atol=1e-9)
    assert scm("run", "--resume", "runs/pupil").code == 0
    again = scm("eval", "runs/pupil", "--json")
    assert again.code == 0, again.err
    assert again.json["teacher"] == result.json["teacher"]


@pytest.mark.parametrize("process", PROCESSES)
def test_from_fresh_weights_any_process_learns_from_any_other(scm, tiny, diffusion, workplace, process):
    """The teacher is converted, and judged under its pupil's process: its samples are those of its own."""
    index = PROCESSES.index(process)
    teacher = diffusion(PROCESSES[(index + 1) % len(PROCESSES)])
    scratch = ("--set", "objective.start=scratch", "--set", "evaluation.metrics=[sliced-wasserstein]")
    composed = ("--process", process, "--teacher", os.path.relpath(teacher), "--set", "network.depth=2")
    result = scm("run", *SMALL, *composed, *tiny, *SILENT, *scratch, "--set", "evaluation.count=40", "--json")
    assert result.code == 0, result.err
    alone = scm("eval", teacher, *scratch[2:], "--set", "evaluation.count=40", "--json")
    assert alone.code == 0, alone.err
    seen, own = (told.json["teacher"]["sliced_wasserstein"] for told in (result, alone))
    assert seen == pytest.approx(own, rel=1e-3)


@pytest.mark.parametrize(
    ("process", "arguments", "words"),
    [
        ("flow", [], ["its parameterization is ConvertedParameterization", "under process 'trigflow'", "UnitVariance"]),
        ("flow", ["--parameterization", "flow"], ["ConvertedParameterization", "not FlowVelocity"]),
        ("flow", ["--process", "edm", *converted("flow")[:2]], ["its parameterization is", "under process 'edm'"]),
        ("edm", [], ["its parameterization is UnitVariance(c_noise='edm')", "not UnitVariance(c_noise='identity')"]),
        ("vp", ["--process", "edm", *converted("vp")[:-1], "parameterization.process=edm"], ["process=VP", "not Conv"]),
    ],
)
def test_weights_that_mean_something_else(scm, tiny, diffusion, workplace, process, arguments, words):
    teacher = diffusion(process)
    result = scm("run", *SMALL, "--teacher", teacher, *arguments, *tiny)
    assert (result.code, result.out) == (2, "")
    for word in (f"training cannot start from the weights of {teacher}", *words, "objective.start=scratch"):
        assert word in result.err
    assert list(workplace.iterdir()) == []


# Guidance -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unconditional_too(scm, tmp_path_factory, tiny_diffusion):
    """A tiny diffusion run that also learned without labels."""
    out = tmp_path_factory.mktemp("guided")
    arguments = ("--objective", "diffusion", "--set", "objective.label_dropout=0.2", "--steps", 100)
    result = scm("run", *SMALL, *tiny_diffusion, *SILENT, *arguments, "--out", out, "--name", "run")
    assert result.code == 0, result.err
    return out / "run"


@pytest.mark.parametrize("sampler", ["heun", "ddim", "dpm-solver-2m"])
def test_guidance_of_a_run(drawn, unconditional_too, sampler):
    own, plain = drawn(unconditional_too, "--sampler", sampler, "--steps", 4, "--labels", "3")
    guided, told = drawn(unconditional_too, "--sampler", sampler, "--steps", 4, "--labels", "3", "--guidance", 2)
    assert told["sampler"]["guidance"] == 2
    assert told["nfe"] == 2 * plain["nfe"]
    assert np.isfinite(guided).all()
    assert np.abs(guided - own).max() > 1e-2
    one, told = drawn(unconditional_too, "--sampler", sampler, "--steps", 4, "--labels", "3", "--guidance", 1)
    assert (told["nfe"], np.array_equal(one, own)) == (plain["nfe"], True)


def test_without_guidance_the_label_is_nothing(drawn, unconditional_too):
    three, five = (drawn(unconditional_too, "--labels", label, "--guidance", 0)[0] for label in "35")
    np.testing.assert_allclose(three, five, rtol=0, atol=1e-6)
    three, five = (drawn(unconditional_too, "--labels", label)[0] for label in "35")
    assert np.abs(three - five).max() > 1e-2


def test_guidance_under_another_process(drawn, unconditional_too):
    own, _ = drawn(unconditional_too, "--guidance", 3, "--steps", 5)
    converted, _ = drawn(unconditional_too, "--guidance", 3, "--steps", 5, "--as", "flow")
    np.testing.assert_allclose(converted, own, rtol=0, atol=1e-3)


def test_guidance_of_a_model_that_learned_no_other(scm, diffusion, trained_points, unconditional_too, workplace):
    for run, words in (
        (diffusion("edm"), ["sampler.guidance is 2", "label_dropout"]),
        (trained_points[0], ["sampler.guidance is 2", "no classes to guide to"]),
    ):
        result = scm("sample", run, "--sampler", "heun", "--guidance", 2, "--out", "x.npz")
        assert (result.code, result.out) == (2, "")
        for word in words:
            assert word in result.err
    result = scm("sample", unconditional_too, "--sampler", "heun", "--set", "sampler.guidance=-1", "--out", "x.npz")
    assert (result.code, result.out) == (2, "")
    assert "guidance" in result.err
    assert list(workplace.iterdir()) == []


def test_guidance_of_a_named_teacher(scm, tiny, unconditional_too, diffusion, workplace):
    """It is the teacher itself that must have learned without labels, whatever the recipe says of one of its own."""
    guided = ("--set", "evaluation.teacher_sampler.guidance=2")
    result = scm("run", *SMALL, *tiny, *SILENT, *guided, "--teacher", unconditional_too, "--json")
    assert result.code == 0, result.err
    assert result.json["teacher"]["nfe"] == 70
    before = sorted(workplace.rglob("*"))
    scratch = ("--set", "objective.start=scratch", "--set", "teacher.objective.label_dropout=0.1")
    result = scm("run", *SMALL, *tiny, *SILENT, *guided, *scratch, "--teacher", diffusion("edm"))
    assert (result.code, result.out) == (2, "")
    assert "sampler.guidance is 2" in result.err
    assert sorted(workplace.rglob("*")) == before


def test_guidance_of_a_teacher_of_ones_own(scm, tiny, workplace):
    guided = ("--set", "evaluation.teacher_sampler.guidance=2", "--set", "teacher.objective.label_dropout=0.2")
    result = scm("run", *SMALL, *tiny, *SILENT, *guided, "--json")
    assert result.code == 0, result.err
    assert result.json["teacher"]["nfe"] == 70


def test_guidance_of_unlabelled_data(scm, tiny_diffusion, workplace):
    """Withholding labels that are not there makes no class to guide to: said before anything is trained."""
    arguments = ("--data", "swissroll", "--set", "data.count=60", "--objective", "diffusion")
    dropout = ("--set", "objective.label_dropout=0.2")
    result = scm("run", *arguments, *dropout, *tiny_diffusion, "--set", "sampler.guidance=2")
    assert (result.code, result.out) == (2, "")
    assert "sampler.guidance is 2, but data 'swissroll' have no classes to guide to" in result.err
    assert list(workplace.iterdir()) == []
    refused = scm("run", *arguments, *dropout, *tiny_diffusion)
    assert refused.code == 2
    assert "label_dropout" in refused.err
    made = scm("run", *arguments, *tiny_diffusion, *SILENT, "--name", "roll")
    assert made.code == 0, made.err
    result = scm("sample", "runs/roll", "--guidance", 2, "--out", "x.npz")
    assert (result.code, result.out) == (2, "")
    assert "data 'swissroll' have no classes to guide to" in result.err
    assert not (workplace / "x.npz").exists()
