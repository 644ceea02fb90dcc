"""`scm new plugin` writes, for every kind, a package that is installed, listed, trained with and keeps its promises."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import scmreg
from scmreg import registry
from scmreg.kinds import KINDS
from scmreg_cli import scaffolding

TINY = [
    *(
        "--steps",
        "3",
        "--set",
        "teacher.trainer.steps=3",
        "--set",
        "evaluation.count=32",
        "--set",
        "evaluation.steps=[1]",
    ),
    *("--set", "trainer.batch_size=8", "--set", "teacher.trainer.batch_size=8", "--set", "trainer.previews=0"),
]


def name_of(kind: str) -> str:
    return f"my-{kind}"


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A new package of every kind."""
    out = tmp_path_factory.mktemp("packages")
    for kind in KINDS:
        scaffolding.new_plugin(name_of(kind), kind, out)
    return {kind: out / f"scmreg-my-{kind}" for kind in KINDS}


@pytest.fixture(scope="module")
def site(packages: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of them, as pip would have installed them."""
    folder = tmp_path_factory.mktemp("site")
    for package in packages.values():
        project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        (entry,) = project["entry-points"]["scmreg"].items()
        (folder / f"{entry[1]}.py").write_text((package / f"{entry[1]}.py").read_text())
        info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        requires = "".join(f"Requires-Dist: {each}\n" for each in project["dependencies"])
        head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        (info / "METADATA").write_text(head + requires)
        (info / "entry_points.txt").write_text("[scmreg]\n" + " = ".join(entry) + "\n")
    return folder


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All of them, found anew."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(registry, "_state", None)
    importlib.invalidate_caches()
    yield
    for kind in KINDS:
        sys.modules.pop(f"scmreg_my_{kind}", None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_is_whole(packages: Mapping[str, Path], kind: str) -> None:
    folder, module = packages[kind], f"scmreg_my_{kind}"
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written == {f"{module}.py", "pyproject.toml", "README.md", ".gitignore", f"tests/test_{module}.py"}
    source = (folder / f"{module}.py").read_text()
    assert len(source.splitlines()) < 60
    assert "example" not in source.lower()
    (cls,) = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and any(keyword.arg == "name" for keyword in node.keywords)
    ]
    assert cls.name == f"My{kind.capitalize()}"
    assert ast.get_docstring(cls)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == f"scmreg-my-{kind}"
    assert project["dependencies"] == [f"scmreg>={scmreg.__version__}"]
    assert project["entry-points"] == {"scmreg": {name_of(kind): module}}
    test = (folder / "tests" / f"test_{module}.py").read_text()
    assert "from scmreg.testing import " in test
    assert f"@conformance({cls.name})" in test
    readme = (folder / "README.md").read_text()
    assert f"scm show {kind}/{name_of(kind)}" in readme
    assert "{" not in readme


# What torch.compile, or processes that train beside each other, make longer.
LONG = ("attention", "study")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in LONG)) for kind in KINDS])
def test_it_is_listed_and_trained_with(kind: str, scm: Callable[..., Any], workplace: Path) -> None:
    name = name_of(kind)
    (plugin,) = [plugin for plugin in registry.plugins() if plugin.name == name]
    assert plugin.error is None, plugin.detail
    assert plugin.api == scmreg.API_VERSION
    assert [(component.kind, component.name) for component in plugin.components] == [(kind, name)]
    assert name in {each["name"] for each in scm("list", kind, "--json").json}
    lines = scaffolding.uses(name, kind)
    assert lines[0] == f"scm show {kind}/{name}"
    assert scm(*shlex.split(lines[0])[1:]).code == 0
    uses = [shlex.split(line)[1:] for line in lines if line.startswith(("scm run ", "scm study "))]
    assert uses, "nobody is told how to train with it"
    for words in uses:
        assert any(name in word for word in words)
        if words[0] == "study":
            result = scm(*words, "--set", "steps=1", "--json")
            assert result.code == 0, result.err
            assert result.json["study"]["name"] == name
            assert result.json["verdicts"]
            continue
        judged = [] if kind == "metric" else ["--set", "evaluation.metrics=[memorization]"]
        result = scm(*words, *TINY, *judged, "--json")
        assert result.code == 0, result.err
        folder = workplace / result.json["run"]
        assert f": {name}\n" in (folder / "recipe.yaml").read_text()
        assert list(folder.glob("checkpoints/*/*.safetensors"))


def test_all_are_clean(packages: Mapping[str, Path]) -> None:
    for package in packages.values():
        rules = ("--select", "E,F,W,I,B,UP,SIM,RET,PTH,C4,RUF100", "--no-cache")
        for command in (("check", *rules), ("format", "--check", "--no-cache")):
            done = run("-m", "ruff", *command, package)
            assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_all_are_typed(packages: Mapping[str, Path]) -> None:
    modules = [next(package.glob("*.py")) for package in packages.values()]
    config = Path(__file__).parents[2] / "pyproject.toml"
    done = run("-m", "mypy", "--config-file", config, *modules, MYPYPATH=str(config.parent))
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_all_keep_the_promises_of_their_kinds(packages: Mapping[str, Path]) -> None:
    """The tests that are written with them, in one process because each would import torch."""
    path = os.pathsep.join(map(str, packages.values()))
    done = run("-m", "pytest", "-v", *packages.values(), PYTHONPATH=path)
    assert done.returncode == 0, done.stdout
    for kind in KINDS:
        assert re.search(rf"test_my_{kind}\[[\w-]+\] PASSED", done.stdout)


def test_pip_installs_it(packages: Mapping[str, Path], tmp_path: Path) -> None:
    """Built by its own pyproject.toml, it is found through its entry point."""
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    done = run("-m", "pip", "install", *options, "--target", tmp_path / "site", packages["data"])
    assert done.returncode == 0, done.stderr
    shown = run("-m", "scmreg_cli.main", "plugins", "--json", PYTHONPATH=str(tmp_path / "site"))
    (found,) = [each for each in json.loads(shown.stdout) if each["name"] == "my-data"]
    assert found["source"] == "scmreg-my-data 0.1.0"
    assert found["error"] is None
    assert found["components"] == ["data/my-data"]


def test_what_it_tells(scm: Callable[..., Any], workplace: Path) -> None:
    result = scm("new", "plugin", "ring", "--kind", "data", "--out", "deep/down")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0] == "deep/down/scmreg-ring: the data 'ring', which works and is to be changed"
    for line in lines[1 : lines.index("")]:
        assert (workplace / line.strip()).is_file()
    assert lines[lines.index("next:") + 1 :] == [
        "  pip install -e deep/down/scmreg-ring",
        "  scm show data/ring",
        "  scm run --objective diffusion --data ring --set data.noise=0.1 --steps 200",
        "  scm check data/ring",
        "  pytest deep/down/scmreg-ring",
    ]
    assert {path.name for path in (workplace / "deep/down").iterdir()} == {"scmreg-ring"}


@pytest.mark.parametrize(
    ("name", "kind", "cls"),
    [
        ("ring", "data", "Ring"),
        ("two-moons", "data", "TwoMoons"),
        ("none", "process", "NoneProcess"),
        ("tensor", "proposal", "TensorProposal"),
        ("module", "network", "ModuleNetwork"),
        ("random", "metric", "Random"),
        ("v2", "schedule", "V2"),
    ],
)
def test_names_that_python_or_the_template_has_are_evaded(name: str, kind: str, cls: str) -> None:
    made = scaffolding.files(name, kind)
    source = made[f"scmreg_{name.replace('-', '_')}.py"]
    ast.parse(source)
    assert f"class {cls}(" in source
    assert f'name="{name}"' in source
    assert f"return [{cls}]" in source


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("Ring", "--kind", "data"), ["'Ring' is no name of a plugin", "such as ring"]),
        (("two_moons", "--kind", "data"), ["no name of a plugin", "such as two-moons"]),
        (("a/b", "--kind", "data"), ["no name of a plugin", "such as a-b"]),
        (("3d", "--kind", "data"), ["no name of a plugin", "such as d"]),
        (("-", "--kind", "data"), ["no name of a plugin", "the first a letter"]),
        (("été", "--kind", "data"), ["no name of a plugin"]),
        (("ring\n", "--kind", "data"), ["no name of a plugin"]),
        (("..", "--kind", "data"), ["no name of a plugin"]),
        (("edm", "--kind", "process"), ["process 'edm' exists already", "scmreg_edm.EDM"]),
        (("trigflow", "--kind", "data"), ["plugin 'trigflow' exists already: scmreg "]),
        (("cli", "--kind", "data"), ["module scmreg_cli exists already"]),
        (("ring", "--kind", "dta"), ["no kind called 'dta', did you mean 'data'?"]),
        (("there", "--kind", "data"), ["scmreg-there exists already", "--out"]),
        (("ring", "--kind", "data", "--out", "a-file/below"), ["cannot write to a-file/below"]),
        (("ring",), ["--kind"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    scm: Callable[..., Any], workplace: Path, arguments: tuple[str, ...], words: list[str]
) -> None:
    (workplace / "scmreg-there").mkdir()
    (workplace / "a-file").write_text("")
    # A name that begins with a dash is told from an option by two of them.
    result = scm("new", "plugin", *arguments[1:], "--", arguments[0])
    assert result.code == 2
    assert result.out == ""
    for word in words:
        assert word in result.err
    assert {path.name for path in workplace.rglob("*")} == {"scmreg-there", "a-file"}


def test_only_plugins_are_written(scm: Callable[..., Any], workplace: Path) -> None:
    result = scm("new", "house", "ring", "--kind", "data")
    assert result.code == 2
    assert "house" in result.err
    assert not list(workplace.iterdir())


def test_nothing_half_is_left(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    original = Path.write_text

    def write(self: Path, *arguments: Any, **keywords: Any) -> int:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(self)
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(Path, "write_text", write)
    with pytest.raises(scmreg.ScmError, match="No space left"):
        scaffolding.new_plugin("ring", "data", workplace)
    assert not list(workplace.iterdir())
