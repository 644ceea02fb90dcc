"""A run that is killed, interrupted or stopped goes on exactly as if it never had been."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from scmreg.progress import Progress
from scmreg.recipe import Recipe
from scmreg.run import prepare
from scmreg.train import build_denoiser, train

LONG = 160
"""Steps that take so long that a kill surely comes before their end."""


SINGLE = ("objective.warmup=100", "objective.weighting=adaptive")
SUMMED = (
    "objective=scd+vsd", "objective.terms.scd.warmup=100", "objective.terms.scd.weighting=adaptive",
    "objective.terms.vsd.weighting=adaptive", "objective.terms.vsd.fake_weighting=adaptive",
    "objective.terms.vsd.generator_every=3",
)  # fmt: skip


def options(teacher, student, objective=SINGLE):
    settings = [
        *objective, "network.width=32", "network.depth=1",
        "evaluation.metrics=[accuracy]", "evaluation.count=10",
        f"teacher.trainer.steps={teacher}", "teacher.trainer.batch_size=16", "teacher.trainer.checkpoint_every=50",
        "teacher.trainer.log_every=1", "trainer.batch_size=16", "trainer.checkpoint_every=50", "trainer.log_every=1",
        "trainer.device=cpu", "network.dropout=0.1", "data.shift=1",
    ]  # fmt: skip
    return ["--steps", str(student), *(part for setting in settings for part in ("--set", setting))]


ARGUMENTS = {"teacher": options(LONG, 20), "student": options(20, LONG), "sum": options(20, LONG, SUMMED)}
"""A run whose teacher, one whose student, and one whose student with a second network takes long."""


@pytest.fixture(scope="module")
def whole(scm, tmp_path_factory):
    """Return a run that nobody disturbed, and its summary."""
    done = {}

    def run(which):
        if which not in done:
            folder = tmp_path_factory.mktemp(which) / "whole"
            result = scm("run", *ARGUMENTS[which], "--out", folder.parent, "--name", "whole", "--json")
            assert result.code == 0, result.err
            done[which] = folder, result.json
        return done[which]

    return run


def start(folder, *arguments):
    """Start `scm run` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "scmreg_cli.main", "run", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def steps_of(folder):
    """Return the steps that the log of a run has so far."""
    try:
        return len((folder / "metrics.jsonl").read_text().splitlines())
    except OSError:
        return 0


def wait_for(process, condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail(f"the process ended, or was too slow: {process.communicate()}")
        time.sleep(0.005)


def teacher_in(runs):
    return next((path for path in runs.glob("teachers/*") if path.is_dir()), runs / "none")


def last(folder):
    return max((folder / "checkpoints").glob("0*"))


def check_same(folder, other):
    """Check that two finished runs hold the same bits and the same log."""
    files = {path.name for path in last(folder).glob("*.safetensors")}
    assert {"model.safetensors", "ema.safetensors", "optimizer-main.safetensors"} <= files
    assert last(folder).name == last(other).name
    for name in files:
        mine, theirs = load_file(last(folder) / name), load_file(last(other) / name)
        assert set(mine) == set(theirs)
        for key, value in mine.items():
            assert torch.equal(value, theirs[key]), f"{name}: {key}"
    logs = [
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (folder, other)
    ]
    assert [line["step"] for line in logs[0]] == list(range(1, len(logs[0]) + 1))
    for one, two in zip(*logs, strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}
    metas = [json.loads((last(path) / "meta.json").read_text()) for path in (folder, other)]
    assert metas[0]["optimizers"] == metas[1]["optimizers"]


def killed(workplace, arguments, watched, at, how=signal.SIGKILL):
    """Start a run, send it a signal once the log of a folder has a number of lines, and return what it said."""
    process = start(workplace, *arguments, "--name", "broken")
    wait_for(process, lambda: steps_of(watched()) >= at)
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("which", ["student", "sum"])
def test_killed_while_the_student_learns(scm, workplace, whole, which):
    """Kill -9, resume, and compare with a run that nobody disturbed."""
    arguments = ARGUMENTS[which]
    run = workplace / "runs" / "broken"
    code, _, _ = killed(workplace, arguments, lambda: run, 60)
    assert code == -signal.SIGKILL
    assert not (run / "summary.json").exists()
    assert 60 <= steps_of(run) < LONG, "killed in the middle"
    assert 50 <= int(last(run).name) < LONG

    resumed = scm("run", "--resume", "runs/broken", "--json")
    assert resumed.code == 0, resumed.err
    title = {"student": "scd", "sum": r"scd\+vsd"}[which]
    assert re.search(rf"train {title}: {LONG}/{LONG}", resumed.err)

    other, summary = whole(which)
    check_same(run, other)
    assert (last(run) / "optimizer-vsd_fake.safetensors").exists() is (which == "sum")
    check_same(teacher_in(run.parent), teacher_in(other.parent))
    for key in ("teacher", "student"):
        assert resumed.json[key] == summary[key]


def test_one_process_at_a_time(scm, trained, workplace):
    shutil.copytree(trained[0].parent, workplace / "runs")
    run = workplace / "runs" / trained[0].name
    with FileLock(run / ".lock"):
        result = scm("run", "--resume", run)
    assert result.code == 2
    assert "another process is working on" in result.err
    assert scm("run", "--resume", run).code == 0
    assert not (run / ".lock").exists()


def test_killed_while_the_teacher_learns(scm, workplace, whole):
    arguments = ARGUMENTS["teacher"]
    runs = workplace / "runs"
    code, _, _ = killed(workplace, arguments, lambda: teacher_in(runs), 70)
    assert code == -signal.SIGKILL
    assert steps_of(teacher_in(runs)) < LONG
    assert not (runs / "broken" / "checkpoints").exists()

    resumed = scm("run", "--resume", "runs/broken", "--json")
    assert resumed.code == 0, resumed.err
    assert len([path for path in runs.glob("teachers/*") if path.is_dir()]) == 1
    other, summary = whole("teacher")
    check_same(teacher_in(runs), teacher_in(other.parent))
    check_same(runs / "broken", other)
    assert resumed.json["student"] == summary["student"]


@pytest.mark.parametrize("during", ["teacher", "student"])
def test_interrupted(scm, workplace, whole, during):
    """SIGINT: status 130, a checkpoint of the very step, and a hint that finishes the run."""
    arguments = ARGUMENTS[during]
    runs = workplace / "runs"
    run = runs / "broken"
    place = (lambda: teacher_in(runs)) if during == "teacher" else lambda: run
    code, out, err = killed(workplace, arguments, place, 45, signal.SIGINT)
    assert code == 130
    assert out == ""
    assert "Traceback" not in err
    found = re.search(r"error: stopped at step (\d+) of (\d+), checkpoint written to (\S+)", err)
    assert found
    step, total, written = int(found[1]), int(found[2]), workplace / found[3]
    assert 45 <= step < total == LONG
    assert written == last(place())
    assert int(written.name) == step == steps_of(place())

    hint = re.search(r"scm run --resume (\S+)", err)
    assert hint
    resumed = scm("run", "--resume", hint[1], "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.json["run"] == "runs/broken"
    other, summary = whole(during)
    check_same(run, other)
    check_same(teacher_in(runs), teacher_in(other.parent))
    assert resumed.json["student"] == summary["student"]


# In one process: every optimizer, every shape of training -------------------------------------------------------------


def tiny_recipe(**trainer):
    return Recipe.from_tree(
        {
            "objective": {"name": "sct", "start": "scratch", "warmup": 4, "weighting": "adaptive"},
            "network": {"name": "mlp", "width": 16, "depth": 1, "dropout": 0.2},
            "data": {"name": "gaussians", "count": 50, "labelled": True},
            "trainer": {
                "steps": 7, "batch_size": 12, "checkpoint_every": 100, "log_every": 1, "learning_rate": 1e-3,
                "device": "cpu", **trainer,
            },
        }
    )  # fmt: skip


class Stop(Exception):
    """Stands for whatever ends a process."""


def stopping(step):
    """Return a progress that ends the training after a step."""

    class Task:
        def update(self, done, loss=None):
            if done == step:
                raise Stop

    class Stopping(Progress):
        def task(self, title, total, done=0):
            from contextlib import nullcontext

            return nullcontext(Task())

    return Stopping()


@pytest.mark.parametrize(
    "name",
    [
        "RAdam",
        "Adam",
        "AdamW",
        "SGD",
        "NAdam",
        "Adamax",
        "Adagrad",
        "RMSprop",
        "ASGD",
        "Rprop",
        "Adadelta",
        "Adafactor",
    ],
)
def test_every_optimizer_goes_on(tmp_path, name):
    check_resumed(tmp_path, tiny_recipe(optimizer=name))


@pytest.mark.parametrize(
    "trainer",
    [
        {"optimizer": "SGD", "optimizer_options": {"momentum": 0.9, "nesterov": True}},
        {"optimizer": "AdamW", "optimizer_options": {"amsgrad": True, "betas": [0.9, 0.99]}},
        {"accumulation": 5},
        {"schedule": "inverse-sqrt", "decay_from": 2, "rampup": 3},
        {"ema_half_life": 0},
        {"clip": 0.01},
        {"batch_size": 70},
        {"precision": "bfloat16"},
        {"tangent_pass": "separate"},
    ],
    ids=str,
)
def test_every_way_of_training_goes_on(tmp_path, trainer):
    check_resumed(tmp_path, tiny_recipe(**trainer))


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "vsd", "generator_every": 2, "fake_rate": 1.0},
        {"name": "vsd", "weighting": "adaptive", "fake_weighting": "adaptive"},
        {"name": "scd+vsd", "weights": [1, 0.5]},
    ],
    ids=str,
)
def test_every_network_goes_on(tmp_path, objective):
    """The second network, its optimizer and its turn are those of the undisturbed run."""
    recipe = Recipe.from_tree({**tiny_recipe().to_tree(), "objective": objective})
    spec = recipe.data.load().spec
    check_resumed(tmp_path, recipe, build_denoiser(recipe, spec.shape, len(spec.classes), seed=1))
    names = {path.name for path in last(tmp_path / "broken").iterdir()}
    assert names >= {"objective.safetensors", "optimizer-main.safetensors"}
    assert names & {"optimizer-fake.safetensors", "optimizer-vsd_fake.safetensors"}


def check_resumed(folder, recipe, teacher=None):
    """Stop after step 5, resume from the checkpoint of step 3, compare with the undisturbed run."""
    dataset = recipe.data.load() if teacher else prepare(recipe)
    for name in ("whole", "broken"):
        (folder / name).mkdir()
    train(recipe, dataset, folder / "whole", Progress(), teacher=teacher)
    often = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, checkpoint_every=3))
    with pytest.raises(Stop):
        train(often, dataset, folder / "broken", stopping(5), teacher=teacher)
    assert last(folder / "broken").name == "00000003"
    train(recipe, dataset, folder / "broken", Progress(), teacher=teacher)
    check_same(folder / "broken", folder / "whole")


def test_the_log_has_no_half_lines(tmp_path):
    recipe = tiny_recipe()
    dataset = prepare(recipe)
    often = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, checkpoint_every=3))
    with pytest.raises(Stop):
        train(often, dataset, tmp_path, stopping(5))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss"')
    train(recipe, dataset, tmp_path, Progress())
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 8))


def test_a_finished_training_is_left_alone(tmp_path):
    recipe = tiny_recipe()
    dataset = prepare(recipe)
    first = train(recipe, dataset, tmp_path, Progress())

    def state():
        times = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")}
        return times, (tmp_path / "metrics.jsonl").read_bytes()

    before = state()
    assert train(recipe, dataset, tmp_path, Progress()) == first
    assert state() == before


def test_other_data_are_refused(tmp_path):
    """What was begun on some data does not go on silently on others."""
    from scmreg.errors import ScmError

    recipe = tiny_recipe()
    often = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, checkpoint_every=3))
    with pytest.raises(Stop):
        train(often, prepare(recipe), tmp_path, stopping(5))
    other = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, seed=1))
    with pytest.raises(ScmError, match="data"):
        train(recipe, other.data.load(), tmp_path, Progress())
