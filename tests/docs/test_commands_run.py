"""The commands of the pages happen: not parsed but carried out, with next to nothing to train and few cases to try.

`test_pages` checks that every command is one, that what it composes composes and that what it sets exists. Here all of
a page is done in its order, so that a run which one line makes is the run that the next line samples from.
"""

from __future__ import annotations

import gzip
import os
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file
from test_pages import (  # noqa: F401  fixtures
    DOCS,
    GROUP,
    PAGES,
    ROOT,
    RUNS,
    _own_registry,
    check_command,
    follow,
    invoke,
    name,
    trained,
)

import scmreg

pytestmark = pytest.mark.slow

ELSEWHERE = {
    "first-plugin.md": "test_first_plugin.py",
    "diffusers.md": "test_diffusers_models.py",
    "claims.md": "test_study.py",
}
"""Pages whose commands are carried out by a test of their own."""
PLACEHOLDERS = ("runs/teachers/trigflow-digits-0123456789abcdef", "runs/unet", "runs/late", "runs/mean")
"""Runs that a page speaks of and does not make, or makes with a package that is not installed here."""
FAILS = {"scm check --plugin straight.py": 1}
"""Commands whose point is that they fail, and their status."""
FEW: dict[str, list[str]] = {
    "check": ["--examples", "1"],
    "bench sampling": ["--set", "rounds=1", "--set", "batch_size=2"],
    "bench attention": ["--set", "rounds=1"],
    "bench step": ["--set", "rounds=1", "--set", "batch_size=4", "--set", "passes=[joint]"],
    "study discretisation": ["--set", "seeds=1", "--set", "steps=2", "--set", "intervals=[8,32]", "--workers", "1"],
    "study segments": ["--set", "seeds=1", "--set", "steps=2", "--set", "segments=[1,2]", "--workers", "1"],
}
"""What makes a command a matter of seconds; the last word on an option counts."""
CASES = {"verify": ["round-trip"], "bench attention": ["--shape", "1x2x64x16"]}
"""What is tried where a command tries everything."""


def happen(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Carry a command out."""
    if words[0] == "python":
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *words[1:]], env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return
    if words[0] != "scm" or "--help" in words or "--dry-run" in words:
        check_command(words, monkeypatch, capsys)
        return
    missing = [word for word in words if word.startswith("runs/") and not Path(word).exists()]
    if missing:
        assert set(missing) <= set(PLACEHOLDERS), f"scm {shlex.join(words[1:])}: no command of the page makes {missing}"
        check_command(words, monkeypatch, capsys)
        return
    if words[1] == "run" and "--name" in words:
        mine = Path("runs", words[words.index("--name") + 1])
        if mine.name in RUNS:
            shutil.rmtree(mine, ignore_errors=True)  # the page makes it itself
    if words[1] == "study" and len(words) > 2:
        assert " ".join(words[1:3]) in FEW, f"say in FEW what makes scm {' '.join(words[1:3])} a matter of seconds"
    arguments = small(words[1:], monkeypatch, capsys)
    status, printed, said = invoke(arguments, monkeypatch, capsys)
    assert status == FAILS.get(shlex.join(words), 0), f"{shlex.join(words)}\n{printed}\n{said}"


def small(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return a command with options that leave it little to do."""
    if arguments[0] == "run":
        return arguments if "--resume" in arguments else [*arguments, *tiny(arguments, monkeypatch, capsys)]
    bare = [word for word in arguments if word not in ("--full", "--json")]
    for command, cases in CASES.items():
        if bare == command.split():
            arguments = [*bare, *cases]
    for command, few in FEW.items():
        if arguments[: len(command.split())] == command.split():
            return [*arguments, *few]
    return arguments


def tiny(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what makes a training a matter of a second, as far as its recipe has it."""
    status, printed, said = invoke([*arguments, "--dry-run"], monkeypatch, capsys)
    assert status == 0, said
    tree = yaml.safe_load(printed)
    settings = ["trainer.batch_size=16", "evaluation.count=20", "evaluation.metrics=[memorization,trajectory-error]"]
    settings += ["trainer.previews=0", "trainer.workers=0"]
    if tree["network"]["name"] == "mlp":
        settings += ["network.width=16", "network.depth=1"]
    elif tree["network"]["name"] == "dit":
        settings += ["network.width=24", "network.depth=1", "network.heads=2"]
    if "--teacher" not in arguments:
        settings += ["teacher.trainer.steps=2", "teacher.trainer.batch_size=16"]
    return ["--steps", "2", *(word for setting in settings for word in ("--set", setting))]


def bring(folder: Path) -> None:
    """Put the files there that are taken as given: photos, digits in the format of MNIST, weights from elsewhere."""
    network = scmreg.networks.create("mlp").build((1, 8, 8), 10)
    save_file(network.state_dict(), folder / "weights.safetensors")
    rng = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (folder / "photos" / kind).mkdir(parents=True)
        for number in range(20):
            image = Image.fromarray(rng.integers(0, 255, size=(40, 32, 3), dtype=np.uint8))
            image.save(folder / "photos" / kind / f"{number:03}.png")
    images = rng.integers(0, 255, size=(60, 14, 14), dtype=np.uint8)
    labels = (np.arange(60) % 10).astype(np.uint8)
    for path, array in (("train-images-idx3-ubyte.gz", images), ("train-labels-idx1-ubyte.gz", labels)):
        head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / path).write_bytes(gzip.compress(head + array.tobytes()))


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A folder with copies of the runs and with the files that pages take as given, where Python is started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(trained, tmp_path / "runs", symlinks=False)
    bring(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in ELSEWHERE], ids=name)
def test_commands_of_a_page_happen(
    page: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    follow(page, lambda words: happen(words, monkeypatch, capsys))


@pytest.mark.parametrize("command", sorted(GROUP.commands))
def test_examples_of_the_help_happen(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in (GROUP.commands[command].epilog or "").splitlines():
        if line.startswith("scm "):
            happen(shlex.split(line), monkeypatch, capsys)


def test_no_page_is_forgotten() -> None:
    """What is done elsewhere is done there, and what is excused is said by some page."""
    for page, test in ELSEWHERE.items():
        assert [path for path in DOCS if path.name == page]
        assert [path for path in (ROOT / "tests").rglob(test) if page in path.read_text(encoding="utf-8")], page
    said = " ".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert all(run in said for run in PLACEHOLDERS)
    assert all(command in said for command in FAILS)
    assert not {Path(run).name for run in PLACEHOLDERS} & set(RUNS)
