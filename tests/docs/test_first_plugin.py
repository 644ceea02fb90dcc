"""The tutorial of the first plugin is walked through as a newcomer would: installed by pip, checked, trained with."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tutorial" / "first-plugin.md"
SHORT = "--set trainer.batch_size=16 --set evaluation.count=32 --set trainer.steps=3"


def test_the_module_is_short() -> None:
    (source,) = re.findall(r'^```python title="[^"]+"\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(source.splitlines()) < 60


@pytest.mark.slow
def test_the_tutorial(tmp_path: Path) -> None:
    """Every block in its order, as other processes; trainings take three steps, the installation is no editable one."""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}

    def run(words: list[str]) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    pip = ["-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--target", "site"]
    programs = {"scm": ["-m", "scmreg_cli.main"], "pytest": ["-m", "pytest", "-q"]}
    left: dict[str, str] = {}
    blocks = re.findall(
        r'^```(bash|python)(?: title="([^"]+)")?\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    for language, title, text in blocks:
        if title:
            (tmp_path / title).write_text(text)
        elif language == "python":
            run(["-c", text])
        for line in text.splitlines() if language == "bash" else ():
            program, *words = shlex.split(line)
            if program == "pip":
                assert words[:2] == ["install", "-e"]
                run([*pip, f"./{words[2]}"])
                continue
            if words[0] == "run":
                del words[words.index("--steps") : words.index("--steps") + 2]
                words += SHORT.split()
            left[line] = run([*programs[program], *words])
    assert re.search(r"late +scmreg-late 0\.1\.0 +\d\.\d\d +process/late", left["scm plugins"])
    assert re.search(r"process +late +Let noise grow", left["scm list process"])
    assert "10 of 10 checks hold" in left["scm check process/late"]
    assert "passed" in left["pytest scmreg-late"]
    assert (tmp_path / "runs" / "late" / "report.html").is_file() or (tmp_path / "runs" / "late" / "samples").is_dir()
    assert "name: late\n" in (tmp_path / "runs" / "late" / "recipe.yaml").read_text()
