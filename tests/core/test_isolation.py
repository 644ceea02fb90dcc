"""Plugins of others that are broken, in a process of its own: they are told of, and nothing else breaks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from scmreg import registry
from scmreg.discovery import SLOW
from scmreg.kinds import KINDS

PROCESS = '''
class Mine(scmreg.Process, name="{name}"):
    """Go straight, as a guest."""
    t_max = 1.0
    def coefficients(self, t):
        return Coefficients(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
'''
NETWORK = '''
class Fragile(scmreg.Network, name="fragile"):
    """Fail when it is built."""
    def build(self, shape, classes=0):
        return assemble(shape)
def assemble(shape):
    raise RuntimeError("out of cheese")
'''
ATTENTION = '''
class Torn(scmreg.Attention, name="torn"):
    """Fail when it is built."""
    def build(self):
        raise RuntimeError("no kernel")
'''
UNSURE = '''
class Unsure(scmreg.Network, name="unsure"):
    """Fail when it is asked whether it can run."""
    def build(self, shape, classes=0): ...
    @classmethod
    def unavailable(cls):
        raise RuntimeError("who knows")
'''
HEAD = "import torch\nimport scmreg\nfrom scmreg.process import Coefficients\n"
HOOK = "@scmreg.hookimpl\ndef scmreg_components():\n    return [{what}]\n"


def process(name: str) -> str:
    return HEAD + PROCESS.format(name=name) + HOOK.format(what="Mine")


BROKEN = {
    # plugin: (source, words of the reason)
    "fails-to-import": ("import nowhere_at_all\n", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
    "unknown-hook": (HEAD + HOOK.replace("_components", "_parts").format(what=""), "unknown hook 'scmreg_parts'"),
    "something-else": (HEAD + HOOK.format(what="dict"), "<class 'dict'>, which is no component class"),
    "takes-a-name": (process("edm"), "process 'edm' is already taken by edm (scmreg"),
    "twin": (process("second"), "there is a plugin 'twin' already, of first-twin 1.0"),
    "flow": (process("flow2"), "there is a plugin 'flow' already, of scmreg"),
    "newer-api": ("scmreg_api = (99, 0)\n" + process("newer"), "written for the plugin API 99.0, and this is scmreg"),
    "minor-api": ("scmreg_api = (1, 99)\n" + process("newer"), "written for the plugin API 1.99"),
    "older-api": ("scmreg_api = (0, 3)\n" + process("older"), "plugin API 0.3, and this is scmreg"),
    "no-api": ("scmreg_api = '1.0'\n" + process("newer"), "scmreg_api is '1.0': it is a pair of integers"),
    "newer-scmreg": ("from scmreg import Cheese\n", "is written for scmreg >=99, and this is scmreg"),
    "unsure": (HEAD + UNSURE + HOOK.format(what="Unsure"), "RuntimeError: who knows"),
}
SOUND = {
    "good": "scmreg_api = (1, 0)\n" + process("mine"),
    "slow": f"import time\ntime.sleep({SLOW + 0.2})\n" + process("late"),
    "fragile": HEAD + NETWORK + HOOK.format(what="Fragile"),
    "torn": HEAD + ATTENTION + HOOK.format(what="Torn"),
}
RUNNER = """
import contextlib, io, json, os, sys
from scmreg import registry
from scmreg_cli import completion
from scmreg_cli.main import main
left = []
for environment, arguments in json.loads(sys.argv[1]):
    os.environ.pop("SCMREG_PLUGINS", None)
    os.environ.update(environment)
    if environment != {"same": "as before"}:
        registry._state = None  # as in a new process
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if arguments == ["complete"]:
                print(json.dumps(list(completion.catalogue()["components"]["process"])))
            else:
                sys.argv = ["scm", *arguments]
                main()
        except SystemExit as stop:
            code = stop.code or 0
    left.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(left))
"""
SAME = {"same": "as before"}
TINY = ["--steps", "3", "--set", "evaluation.count=64", "--set", "network.width=16", "--set", "network.depth=1"]


def install(site: Path, plugin: str, source: str, *, distribution: str | None = None, requires: str = "scmreg") -> None:
    """Put a distribution where pip would, with one module and its entry point."""
    distribution = distribution or f"{plugin}-plugin"
    module = "guest_" + distribution.replace("-", "_")
    (site / f"{module}.py").write_text(source)
    info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\nRequires-Dist: {requires}\n"
    (info / "METADATA").write_text(metadata)
    (info / "entry_points.txt").write_text(f"[scmreg]\n{plugin} = {module}\n")


def python(site: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python where the distributions are installed, in their folder."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "COLUMNS": "160", **environment},
        cwd=site,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def scm(site: Path, *commands: tuple[dict[str, str], list[str]], **environment: str) -> list[tuple[int, str, str]]:
    """Return status, stdout and stderr of commands, each with what it finds in the environment, in one new process."""
    done = python(site, "-c", RUNNER, json.dumps(commands), **environment)
    assert done.returncode == 0, done.stderr
    return [tuple(each) for each in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the import path with every plugin in it."""
    folder = tmp_path_factory.mktemp("site")
    install(folder, "twin", process("first"), distribution="first-twin")
    install(folder, "twin", BROKEN["twin"][0], distribution="second-twin")
    install(folder, "newer-scmreg", BROKEN["newer-scmreg"][0], requires="scmreg>=99")
    for plugin, (source, _) in BROKEN.items():
        if plugin not in ("twin", "newer-scmreg"):
            install(folder, plugin, source)
    for plugin, source in SOUND.items():
        install(folder, plugin, source)
    return folder


@pytest.fixture(scope="module")
def left(site: Path) -> Mapping[str, tuple[int, str, str]]:
    """What commands left, all of them in one process with every plugin."""
    commands = {
        "plugins": ["plugins"],
        "plugins as JSON": ["plugins", "--json"],
        "doctor": ["doctor"],
        "doctor as JSON": ["doctor", "--json"],
        "list": ["list", "--json"],
        "run": ["run", "--objective", "diffusion", *TINY, "--json"],
        "run a guest": ["run", "--objective", "diffusion", "--process", "mine", *TINY, "--json"],
        "unknown": ["show", "process/newer"],
    }
    return dict(zip(commands, scm(site, *((SAME, each) for each in commands.values())), strict=True))


def loaded(left: Mapping[str, tuple[int, str, str]], command: str) -> Any:
    code, out, err = left[command]
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("plugin", BROKEN)
def test_a_broken_plugin_is_left_out_and_told_of(left: Mapping[str, tuple[int, str, str]], plugin: str) -> None:
    words = BROKEN[plugin][1]
    (entry,) = [each for each in loaded(left, "plugins as JSON") if each["name"] == plugin and each["error"]]
    assert words in entry["error"]
    assert entry["components"] == []
    assert entry["source"] == ("second-twin 1.0" if plugin == "twin" else f"{plugin}-plugin 1.0")
    assert loaded(left, "doctor as JSON")["broken_plugins"][plugin]["error"] == entry["error"]
    for command in ("plugins", "doctor"):
        code, out, _ = left[command]
        assert code == 0
        assert "not loaded" in out
        assert entry["source"] in " ".join(out.split())


def test_nothing_else_breaks(left: Mapping[str, tuple[int, str, str]]) -> None:
    errors = {each["name"]: each["error"] for each in loaded(left, "plugins as JSON") if each["name"] in SOUND}
    assert errors == dict.fromkeys(SOUND)
    listed = {(each["kind"], each["name"]) for each in loaded(left, "list")}
    assert {("process", "mine"), ("process", "late"), ("process", "first"), ("network", "fragile")} <= listed
    assert {("process", "edm"), ("process", "trigflow"), ("objective", "scd")} <= listed
    assert {kind for kind, _ in listed} == set(KINDS)
    assert not {"second", "flow2", "newer", "older", "unsure"} & {name for _, name in listed}
    assert loaded(left, "run")["objective"] == "diffusion"
    assert loaded(left, "run a guest")["process"] == "mine"


def test_a_name_that_is_missed_tells_of_what_failed(left: Mapping[str, tuple[int, str, str]]) -> None:
    code, out, err = left["unknown"]
    assert (code, out) == (2, "")
    assert "no process called 'newer'" in err
    assert "newer-api" in err
    assert "scm doctor" in err


def test_a_slow_plugin_is_shown(left: Mapping[str, tuple[int, str, str]]) -> None:
    entries = {each["name"]: each for each in loaded(left, "plugins as JSON") if not each["error"]}
    assert entries["slow"]["seconds"] >= SLOW
    assert [name for name, each in entries.items() if each["slow"]] == ["slow"]
    assert list(loaded(left, "doctor as JSON")["slow_plugins"]) == ["slow"]
    assert re.search(r"slow +slow-plugin 1\.0 +1\.\d\d slow", left["plugins"][1])
    assert "slow plugin" in left["doctor"][1]


def test_the_version_of_the_interface_is_shown(left: Mapping[str, tuple[int, str, str]]) -> None:
    said = {each["name"]: each["api"] for each in loaded(left, "plugins as JSON")}
    assert said["good"] == [1, 0]
    assert said["slow"] is None


def test_a_backend_that_cannot_be_built_does_not_end_the_report(left: Mapping[str, tuple[int, str, str]]) -> None:
    assert loaded(left, "doctor as JSON")["attention"]["torn"] == "fails: RuntimeError: no kernel"


def test_a_component_that_fails_in_build_is_called_by_its_plugin(site: Path) -> None:
    done = python(site, "-m", "scmreg_cli.main", "run", "--objective", "diffusion", "--network", "fragile")
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert lines[-1] == (
        "`build` of network 'fragile' failed, which comes from plugin 'fragile' (fragile-plugin 1.0): tell its author,"
        " or leave it out by --no-plugins"
    )
    assert lines[-2] == "RuntimeError: out of cheese"
    assert "in assemble" in done.stderr
    assert "Traceback" in done.stderr


def test_a_fault_of_ours_is_nobodys() -> None:
    registry.plugins()
    with pytest.raises(ZeroDivisionError) as caught:
        1 / 0  # noqa: B018
    assert registry.blame(caught.value) is None
    with pytest.raises(KeyError) as missing:
        registry.registry("process")["nowhere"]
    assert registry.blame(missing.value) is None


RESTRICTED = {
    # what is said: (environment, before the command, after it, processes of others, plugins of others that are loaded)
    "nothing": ({}, [], [], {"mine", "first", "late"}, {"good", "twin", "slow", "fragile", "torn"}),
    "none": ({"SCMREG_PLUGINS": ""}, [], [], set(), set()),
    "two": ({"SCMREG_PLUGINS": " good , takes-a-name"}, [], [], {"mine"}, {"good"}),
    "a flag over the environment": ({"SCMREG_PLUGINS": "good"}, [], ["--no-plugins"], set(), set()),
    "a flag of the program": ({}, ["--no-plugins"], [], set(), set()),
    "a loose file beside": ({}, [], ["--plugin", "loose.py", "--no-plugins"], {"loose"}, {"loose"}),
}


@pytest.fixture(scope="module")
def restricted(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[tuple[int, str, str]]]:
    """What commands left under every restriction: a list, the plugins, a name of one that was left out."""
    (site / "loose.py").write_text(process("loose"))
    commands: list[tuple[dict[str, str], list[str]]] = []
    for environment, before, after, _, _ in RESTRICTED.values():
        commands.append((environment, [*before, "list", "process", "--json", *after]))
        commands.append((environment, [*before, "plugins", "--json", *after]))
        commands.append((environment, [*before, "show", "process/last", *after]))
    misspelt = [({"SCMREG_PLUGINS": "god"}, ["list"])]
    twice = [({}, ["complete"]), ({"SCMREG_PLUGINS": "good"}, ["complete"]), ({"SCMREG_PLUGINS": ""}, ["complete"])] * 2
    cache = str(tmp_path_factory.mktemp("cache"))
    left = scm(site, *commands, *misspelt, *twice, XDG_CACHE_HOME=cache)
    cases = {name: left[3 * i : 3 * i + 3] for i, name in enumerate(RESTRICTED)}
    return {**cases, "misspelt": left[-7:-6], "completion": left[-6:]}


@pytest.mark.parametrize("said", RESTRICTED)
def test_restrictions(restricted: Mapping[str, list[tuple[int, str, str]]], said: str) -> None:
    *_, there, looked_at = RESTRICTED[said]
    listed, plugins, shown = restricted[said]
    assert listed[0] == plugins[0] == 0, listed[2] + plugins[2]
    names = {each["name"] for each in json.loads(listed[1])}
    assert {"edm", "flow", "trigflow"} <= names
    assert names & {"mine", "first", "late", "loose"} == there
    theirs = [each for each in json.loads(plugins[1]) if not each["source"].startswith("scmreg ")]
    assert {each["name"] for each in theirs if each["components"]} == looked_at
    assert all(each["left_out"] for each in theirs if each["name"] == "slow") == (said != "nothing")
    assert shown[0] == 2
    assert ("plugins that were left out" in shown[2]) == (said != "nothing")


def test_a_restriction_to_what_is_not_installed_is_told(restricted: Mapping[str, list[tuple[int, str, str]]]) -> None:
    ((code, out, err),) = restricted["misspelt"]
    assert (code, out) == (2, "")
    assert err.splitlines()[0] == "error: SCMREG_PLUGINS names 'god', which is not installed, did you mean 'good'?"
    assert "installed plugins of others: " in err
    assert "fragile, good" in err


def test_the_catalogue_of_completion_knows_the_restriction(
    restricted: Mapping[str, list[tuple[int, str, str]]],
) -> None:
    everything, few, none, *again = [set(json.loads(out)) for _, out, _ in restricted["completion"]]
    assert everything - few == {"first", "late"}
    assert few - none == {"mine"}
    assert again == [everything, few, none], "read from the cache"
