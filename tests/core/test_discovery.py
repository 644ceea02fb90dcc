"""Plugins: ours are found, a bad one of somebody else's is recorded and disturbs nobody."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import scmreg
from scmreg import discovery, registry
from scmreg.errors import PluginError, UnknownComponentError

GOOD = '''
import torch, scmreg
from scmreg.process import Coefficients

class Mine(scmreg.Process, name="mine"):
    """Go straight, as a guest."""

    slope: float = 2.0
    """How steep."""

    t_max = 1.0

    def coefficients(self, t):
        one = torch.ones_like(t)
        return Coefficients(1 - t, t, -one, one)

@scmreg.hookimpl
def scmreg_components():
    return [Mine]
'''
HEAD = '''import scmreg
class Bad(scmreg.Process, name="{name}"):
    """Bad."""
    t_max = 1.0
    def coefficients(self, t): ...
'''
HOOK = "@scmreg.hookimpl\ndef scmreg_components(): return {what}\n"

BROKEN = {
    # name: (source of the module, words of the recorded reason)
    "missing_import": ("import nowhere_at_all\n", ["ModuleNotFoundError", "nowhere_at_all"]),
    "syntax": ("def f(:\n", ["SyntaxError"]),
    "raises": ("raise RuntimeError('out of cheese')\n", ["RuntimeError", "out of cheese"]),
    "exits": ("import sys\nsys.exit(3)\n", ["SystemExit"]),
    "no_hook": ("x = 1\n", ["no hook", "scmreg_components"]),
    "unmarked_hook": ("def scmreg_components(): return []\n", ["no hook", "hookimpl"]),
    "unknown_hook": (
        "import scmreg\n@scmreg.hookimpl\ndef scmreg_componentz(): return []\n", ["hook", "scmreg_componentz"],
    ),
    "hook_with_arguments": (
        "import scmreg\n@scmreg.hookimpl\ndef scmreg_components(everything): return []\n", ["everything"],
    ),
    "hook_raises": ("import scmreg\n" + HOOK.format(what="[1 / 0]"), ["ZeroDivisionError"]),
    "numbers": ("import scmreg\n" + HOOK.format(what="[1, 2]"), ["1", "no component class"]),
    "a_class": (HEAD.format(name="bad") + HOOK.format(what="Bad"), ["not a list"]),
    "a_string": ("import scmreg\n" + HOOK.format(what="'mine'"), ["returned", "no"]),
    "an_instance": (HEAD.format(name="bad") + HOOK.format(what="[Bad()]"), ["no component class"]),
    "another_class": ("import scmreg\n" + HOOK.format(what="[dict]"), ["dict", "no component class"]),
    "no_name": ("import scmreg\nclass Bad(scmreg.Process): ...\n" + HOOK.format(what="[Bad]"), ["Bad has no name"]),
    "taken": (HEAD.format(name="edm") + HOOK.format(what="[Bad]"), ["process 'edm' is already taken by edm (scmreg"]),
    "taken_twice": (
        HEAD.format(name="twice") + HOOK.format(what="[Bad, Bad]"), ["'twice' is already taken", "same plugin"],
    ),
    "bad_name": (HEAD.format(name="Not OK") + HOOK.format(what="[Bad]"), ["'Not OK' is no component name"]),
    "extends_a_final_one": (
        "import scmreg\nclass Bad(scmreg.processes['edm'], name='edm2'): ...\n" + HOOK.format(what="[Bad]"), ["final"],
    ),
    "abstract": (
        "import scmreg\nclass Bad(scmreg.Process, name='abstract'): ...\n" + HOOK.format(what="[Bad]"),
        ["coefficients"],
    ),
    "bad_annotation": (
        "from __future__ import annotations\n"
        + HEAD.format(name="bad") + "    x: Nowhere = 1\n" + HOOK.format(what="[Bad]"), ["Nowhere"],
    ),
    "unknown_kind": (
        "import scmreg\nfrom scmreg.component import Component\n"
        "class Flavour(Component, kind='flavour'): ...\nclass Bad(Flavour, name='sweet'): ...\n"
        + HOOK.format(what="[Bad]"),
        ["flavour"],
    ),
}  # fmt: skip


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs distributions as pip would, and has plugins discovered anew."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(registry, "_state", None)
    installed = []

    def add(name, source, *, version="1.2", module=None):
        module = module or f"guest_{name}"
        if source is not None:
            (site / f"{module}.py").write_text(source)
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[scmreg]\n{name} = {module}\n")
        installed.append(module)
        importlib.invalidate_caches()
        monkeypatch.setattr(registry, "_state", None)

    yield add
    for module in installed:
        sys.modules.pop(module, None)


def record(name):
    (found,) = [plugin for plugin in registry.plugins() if plugin.name == name]
    return found


OURS = {(kind, name): cls for kind in registry.KINDS for name, cls in registry.registry(kind).items()}


def check_ours_work():
    for (kind, name), cls in OURS.items():
        assert registry.registry(kind)[name] is cls
    assert scmreg.processes.create("edm", sigma_max=3.0).t_max == 3.0


def test_ours_are_first_and_whole():
    ours = [plugin for plugin in registry.plugins() if plugin.source == f"scmreg {scmreg.__version__}"]
    assert [plugin.name for plugin in registry.plugins()][: len(ours)] == [plugin.name for plugin in ours]
    assert [plugin.name for plugin in ours] == sorted(plugin.name for plugin in ours)
    assert len({plugin.name for plugin in ours}) == len(ours) >= 11
    assert all(plugin.components and plugin.error is None for plugin in ours)


def test_a_guest_is_welcome(install, scm):
    install("guest", GOOD)
    assert record("guest").source == "guest 1.2"
    assert record("guest").error is None
    assert scmreg.processes.create("mine", slope=3).slope == 3.0
    assert "mine" in scm("list", "process").out
    assert scm("plugins", "--json").json[-1]["components"] == ["process/mine"]
    assert scm("doctor", "--json").json["broken_plugins"] == {}
    check_ours_work()


def test_a_guest_that_is_listed_twice_counts_once(install, tmp_path):
    """An editable installation beside a built one."""
    install("guest", GOOD)
    again = tmp_path / "site" / "guest-1.1.dist-info"
    again.mkdir()
    (again / "METADATA").write_text("Metadata-Version: 2.1\nName: guest\nVersion: 1.1\n")
    (again / "entry_points.txt").write_text("[scmreg]\nguest = guest_guest\n")
    assert record("guest").error is None


@pytest.mark.parametrize("name", BROKEN)
def test_quarantine(install, scm, name):
    source, words = BROKEN[name]
    install(name, source)
    install("zz_good", GOOD)
    found = record(name)
    assert found.error
    assert found.components == ()
    assert found.source == f"{name} 1.2"
    for word in words:
        assert word in found.error
    assert record("zz_good").error is None
    assert scmreg.processes["mine"].summary() == "Go straight, as a guest."
    check_ours_work()
    for known in registry.KINDS:
        assert not {"bad", "abstract", "twice", "edm2", "sweet"} & set(registry.registry(known))

    plugins = scm("plugins", "--json")
    assert plugins.code == 0
    (entry,) = [entry for entry in plugins.json if entry["name"] == name]
    assert entry["error"] == found.error
    assert entry["components"] == []
    text = scm("plugins").out
    assert name in text
    assert "not loaded" in text
    report = scm("doctor", "--json").json["broken_plugins"]
    assert list(report) == [name]
    assert report[name]["from"] == f"{name} 1.2"
    assert report[name]["error"] == found.error
    text = scm("doctor").out
    assert "plugin not loaded" in text
    assert name in text
    assert "no problems" not in text

    assert scm("list").code == 0
    assert scm("run", "--process", "mine", "--dry-run").code == 0


def test_an_entry_point_to_nothing(install):
    install("ghost", None)
    assert "ModuleNotFoundError" in record("ghost").error
    check_ours_work()


def test_the_detail_shows_where_an_import_failed(install):
    install("raises", BROKEN["raises"][0])
    assert "guest_raises.py" in record("raises").detail
    assert "out of cheese" in record("raises").detail


def test_an_unknown_name_tells_of_plugins_that_failed(install, scm):
    install("raises", BROKEN["raises"][0])
    install("syntax", BROKEN["syntax"][0])
    with pytest.raises(UnknownComponentError) as caught:
        scmreg.processes["nowhere"]
    assert "plugins that failed to load: raises, syntax (see `scm doctor`)" in str(caught.value)
    result = scm("run", "--process", "nowhere", "--dry-run")
    assert result.code == 2
    assert "no process called 'nowhere'" in result.err
    assert "raises, syntax" in result.err
    assert "scm doctor" in result.err


def test_an_unknown_name_is_silent_of_plugins_where_none_failed():
    with pytest.raises(UnknownComponentError) as caught:
        scmreg.processes["trigflw"]
    assert str(caught.value).splitlines() == [
        "no process called 'trigflw', did you mean 'trigflow'?",
        f"  available: {', '.join(scmreg.processes)}",
    ]


def test_completion_survives_a_broken_plugin(install):
    from scmreg_cli import completion

    install("raises", BROKEN["raises"][0])
    install("zz_good", GOOD)
    assert "mine" in completion.catalogue()["components"]["process"]


def test_completion_notices_a_new_plugin(install):
    from scmreg_cli import completion

    assert "mine" not in completion.catalogue()["components"]["process"]
    install("zz_good", GOOD)
    assert "mine" in completion.catalogue()["components"]["process"]


def test_a_fault_of_ours_is_a_bug(monkeypatch):
    class Entry:
        name, value, module = "ours", "nowhere", "nowhere"
        dist = type("Dist", (), {"name": "scmreg", "version": "0", "requires": None})

        def load(self):
            raise RuntimeError("our own fault")

    monkeypatch.setattr(discovery.importlib.metadata, "entry_points", lambda **_: [Entry()])
    with pytest.raises(RuntimeError, match="our own fault"):
        discovery.discover({})


def test_ours_come_first_whatever_the_order(monkeypatch):
    """Nobody can take a name of ours by being listed before us."""
    original = discovery.importlib.metadata.entry_points(group=discovery.GROUP)

    class Entry:
        name, value, module = "aaa", "aaa", "aaa"
        dist = type("Dist", (), {"name": "aaa", "version": "9", "requires": None})

        def load(self):
            from types import ModuleType

            class Thief(scmreg.Process, name="edm"):
                t_max = 1.0

                def coefficients(self, t): ...

            module = ModuleType("aaa")
            module.scmreg_components = scmreg.hookimpl(lambda: [Thief])
            module.scmreg_components.__name__ = "scmreg_components"
            return module

    monkeypatch.setattr(discovery.importlib.metadata, "entry_points", lambda **_: [Entry(), *original])
    found = discovery.discover({})
    assert found[-1].name == "aaa"
    assert "process 'edm' is already taken" in found[-1].error


@pytest.mark.usefixtures("registries")
def test_a_loose_file(tmp_path):
    (tmp_path / "loose.py").write_text(GOOD)
    plugin = registry.load_file(tmp_path / "loose.py")
    assert plugin.source == str(tmp_path / "loose.py")
    assert scmreg.processes["mine"] in plugin.components
    assert registry.plugins()[-1] is plugin
    with pytest.raises(PluginError, match=r"process 'mine' is already taken by loose \(") as caught:
        registry.load_file(tmp_path / "loose.py")
    assert "if it is installed, leave out --plugin" in str(caught.value)


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("name", BROKEN)
def test_a_loose_file_that_is_broken(tmp_path, name):
    path = tmp_path / "loose.py"
    path.write_text(BROKEN[name][0])
    before = {kind: list(registry.registry(kind)) for kind in registry.KINDS}
    with pytest.raises(PluginError) as caught:
        registry.load_file(path)
    for word in (str(path), *BROKEN[name][1]):
        assert word in str(caught.value)
    assert before == {kind: list(registry.registry(kind)) for kind in registry.KINDS}


@pytest.mark.usefixtures("registries")
def test_files_that_are_none(tmp_path):
    for path in (tmp_path / "nowhere.py", tmp_path):
        with pytest.raises(PluginError, match="no plugin file"):
            registry.load_file(path)
    (tmp_path / "plugin.txt").write_text(GOOD)
    with pytest.raises(PluginError, match=r"plugin\.txt"):
        registry.load_file(Path(tmp_path / "plugin.txt"))


def test_registries_are_read_only():
    with pytest.raises(TypeError):
        scmreg.processes["new"] = scmreg.processes["edm"]
    with pytest.raises(TypeError):
        del scmreg.processes["edm"]
    assert list(scmreg.processes) == sorted(scmreg.processes)
    assert len(scmreg.processes) == len(list(scmreg.processes))
    assert "edm" in scmreg.processes
    assert "nowhere" not in scmreg.processes


@pytest.mark.usefixtures("registries")
def test_a_hook_that_forgets_to_return_is_told_so(tmp_path):
    (tmp_path / "forgets.py").write_text("import scmreg\n@scmreg.hookimpl\ndef scmreg_components():\n    return None\n")
    with pytest.raises(PluginError, match="returned None, not a list of component classes"):
        registry.load_file(tmp_path / "forgets.py")


@pytest.mark.usefixtures("registries")
def test_what_a_plugin_prints_on_import_is_no_output_of_a_command(tmp_path, scm):
    (tmp_path / "loud.py").write_text("print('loud')\n" + GOOD)
    result = scm("show", "process/mine", "--plugin", tmp_path / "loud.py", "--json")
    assert result.code == 0, result.err
    assert "loud" not in result.out.splitlines()
    assert "loud" in result.err
    assert result.json["name"] == "mine"


@pytest.mark.usefixtures("registries")
def test_a_run_of_a_plugin_that_is_gone_says_so(tmp_path, scm, tiny_diffusion):
    (tmp_path / "mine.py").write_text(GOOD)
    said = ("run", "--process", "mine", "--objective", "diffusion", "--data", "swissroll", "--set", "data.count=60")
    made = scm(*said, *tiny_diffusion, "--out", tmp_path, "--name", "guest", "--plugin", tmp_path / "mine.py")
    assert made.code == 0, made.err
    state = registry._state
    state.components["process"].pop("mine")
    state.plugins = [plugin for plugin in state.plugins if plugin.name != "mine"]
    for words in (("sample", tmp_path / "guest", "--out", tmp_path / "x.npz"), ("cite", tmp_path / "guest")):
        result = scm(*words)
        assert result.code == 2
        assert f"was made with plugin 'mine' ({tmp_path / 'mine.py'}), which is not here" in result.err
        assert "install it, or name its file by --plugin" in result.err
        assert "no process called 'mine'" in result.err
