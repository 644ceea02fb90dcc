"""What every test has: one thread, a home of its own, the command line in this process, a tiny trained run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# matplotlib takes seconds to list the fonts when its folder is new; the list outlives the homes of the tests.
os.environ.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / "scmreg-test-matplotlib"))

# What makes `scm run` a matter of a second: of all that takes time, as little as there can be.
TINY = [
    *("--steps", "3", "--set", "teacher.trainer.steps=3", "--set", "evaluation.count=64"),
    *("--set", "network.width=32", "--set", "network.depth=1"),
    *("--set", "trainer.batch_size=16", "--set", "teacher.trainer.batch_size=16"),
    # Fast enough that three steps reach every layer: the last ones start at zero.
    *("--set", "trainer.optimizer=Adam", "--set", "trainer.learning_rate=0.02"),
    *("--set", "teacher.trainer.optimizer=Adam", "--set", "teacher.trainer.learning_rate=0.02"),
]
# What a few-step objective has beside: the weighting that learns, whatever the default.
WARMUP = ["--set", "objective.warmup=2", "--set", "objective.weighting=adaptive"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take longer than ten seconds")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of the test's own."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / ".cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / ".config"))
    return folder


@dataclass(frozen=True)
class Result:
    """What a command left on its way out."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of stdout, which must be JSON."""
        return json.loads(self.out.splitlines()[-1])


def invoke(*arguments: object) -> Result:
    """Run `scm` in this process, by the function that the console script calls. A traceback fails the test."""
    from scmreg_cli.main import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    before = sys.argv
    sys.argv = ["scm", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    finally:
        sys.argv = before
    return Result(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def scm() -> Callable[..., Result]:
    """Run `scm` in this process and return what it left."""
    return invoke


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Options that make `scm run` a matter of a second."""
    return [*TINY, *WARMUP]


@pytest.fixture(scope="session")
def tiny_diffusion() -> list[str]:
    """The same for an objective that has no warm-up."""
    return list(TINY)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A tiny trained run on digits, and what its command left; not to be changed, copy it instead."""
    out = tmp_path_factory.mktemp("trained")
    result = invoke("run", *TINY, *WARMUP, "--out", out, "--name", "digits", "--json")
    assert result.code == 0, result.err
    return out / "digits", result


@pytest.fixture(scope="session")
def trained_points(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The same on unlabelled points in the plane."""
    out = tmp_path_factory.mktemp("trained-points")
    small = ["--data", "swissroll", "--set", "data.count=200"]
    result = invoke("run", *small, *TINY, *WARMUP, "--out", out, "--name", "points", "--json")
    assert result.code == 0, result.err
    return out / "points", result


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registries that are put back after the test, so that it may load plugin files."""
    from scmreg import registry

    loaded = registry._loaded()
    copy = type(loaded)()
    copy.taken = dict(loaded.taken)
    copy.plugins = list(loaded.plugins)
    copy.components = {kind: dict(found) for kind, found in loaded.components.items()}
    monkeypatch.setattr(registry, "_state", copy)
    yield
    for name in [name for name in sys.modules if name.startswith("scmreg_plugin_")]:
        del sys.modules[name]
