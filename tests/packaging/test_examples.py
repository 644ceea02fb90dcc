"""The example plugins, as somebody else has them: installed by pip beside scmreg, found, used, and tested by their own
tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

EXAMPLES = sorted(path.parent for path in (Path(__file__).parents[2] / "docs" / "examples").glob("*/pyproject.toml"))
TINY = [
    *("--steps", "2", "--set", "trainer.batch_size=16", "--set", "network.width=16", "--set", "network.depth=1"),
    *("--set", "evaluation.count=40", "--set", "evaluation.steps=[1]", "--set", "data.count=100"),
]


@dataclass(frozen=True)
class Stranger:
    """A virtual environment in which the examples are installed, and scmreg with all that it needs is seen."""

    python: Path
    home: Path

    def run(self, *words: object, cwd: Path | None = None, timeout: int = 300) -> str:
        """Run Python with arguments and return its stdout."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP"))}
        environment |= {"HOME": str(self.home), "XDG_CACHE_HOME": str(self.home / "cache"), "OMP_NUM_THREADS": "1"}
        environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [str(self.python), *map(str, words)],
            cwd=cwd or self.home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def scm(self, *words: object) -> str:
        """Run the command line as its console script does."""
        return self.run("-c", "from scmreg_cli.main import main; main()", *words)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    folder = tmp_path_factory.mktemp("stranger")
    venv.create(folder / "venv", with_pip=True)
    made = Stranger(folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python", folder)
    site = Path(made.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A folder that is named in a .pth is only searched; one that is added by code has its own .pth files read too, by
    # which scmreg may be installed in place.
    (site / "seen.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    made.run("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", *EXAMPLES)
    return made


def entries(example: Path) -> dict[str, str]:
    """Return the plugins that a package announces."""
    project = tomllib.loads((example / "pyproject.toml").read_text())
    return project["project"]["entry-points"]["scmreg"]  # type: ignore[no-any-return]


def test_there_are_two_examples_and_they_are_whole() -> None:
    assert len(EXAMPLES) == 2
    for example in EXAMPLES:
        (module,) = entries(example).values()
        assert (example / f"{module}.py").is_file()
        assert (example / "README.md").is_file()
        assert list((example / "tests").glob("test_*.py"))


def test_no_example_is_part_of_this_environment() -> None:
    for example in EXAMPLES:
        for module in entries(example).values():
            assert subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True).returncode == 1


def test_they_are_found(stranger: Stranger) -> None:
    found = {plugin["name"]: plugin for plugin in json.loads(stranger.scm("plugins", "--json"))}
    for example in EXAMPLES:
        for name in entries(example):
            assert found[name]["error"] is None
            assert found[name]["source"] == f"{example.name} 0.1.0"
    listed = stranger.scm("list")
    assert all(component in listed for component in ("meanflow", "sub-vp"))


def test_they_are_used_together(stranger: Stranger) -> None:
    """An objective of one stranger, a process of another, and data, network and metrics of the house."""
    words = ["--objective", "meanflow", "--process", "sub-vp", "--data", "mixture", *TINY]
    summary = json.loads(stranger.scm("run", *words, "--name", "both", "--json").splitlines()[-1])
    assert (summary["process"], summary["objective"]) == ("sub-vp", "meanflow")
    assert [entry["nfe"] for entry in summary["student"]] == [1]
    run = stranger.home / "runs" / "both"
    drawn = stranger.scm("sample", run, "--count", "4", "--as", "edm", "--steps", "3", "--json")
    assert json.loads(drawn.splitlines()[-1])
    stranger.scm("report", run)
    assert (run / "report.html").is_file()


@pytest.mark.slow
def test_a_run_of_theirs_goes_on_and_is_judged_anew(stranger: Stranger) -> None:
    words = ["--objective", "meanflow+diffusion", "--process", "sub-vp", "--data", "mixture", *TINY]
    stranger.scm("run", *words, "--name", "sum")
    run = stranger.home / "runs" / "sum"
    stranger.scm("run", "--resume", run)
    judged = json.loads(stranger.scm("eval", run, "--set", "evaluation.steps=[2]", "--json").splitlines()[-1])
    assert [entry["nfe"] for entry in judged["student"]] == [2]
    stranger.scm("sample", run, "--count", "4", "--sampler", "heun", "--steps", "3")


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_they_pass_their_own_tests(stranger: Stranger, example: Path) -> None:
    stranger.run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=example, timeout=1500)
