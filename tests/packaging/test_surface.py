"""What others build on does not change unnoticed: the surface is on record, and the change log names the record."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pluggy
import pytest
from surface import MODULES, RECORD, digest, surface

import scmreg
from scmreg import discovery, hookspecs
from scmreg.kinds import KINDS

ROOT = Path(__file__).parents[2]
CHANGELOG = ROOT / "docs" / "changelog.md"
PROMISE = ROOT / "docs" / "explanation" / "api-promise.md"


def newest(text: str) -> tuple[str, str]:
    """Return the version of the first section of a change log, and the section."""
    found = re.search(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, "the change log has no section"
    return found[1], found[2]


def complaint(text: str, recorded: str, changelog: str) -> str | None:
    """Say what is to be done about a surface, given what is on record and the change log; ``None`` if nothing."""
    if text != recorded:
        changed = sorted(set(text.splitlines()) ^ set(recorded.splitlines()))
        return (
            "the public surface has changed:\n  " + "\n  ".join(changed) + "\nIf that is meant: run"
            " `python tests/packaging/surface.py`, say in the first section of docs/changelog.md what changes for"
            " whom, and put the digest that was printed there. What breaks plugins raises the first number of"
            " scmreg.API_VERSION, what plugins can need raises the second."
        )
    version, section = newest(changelog)
    if version not in ("Unreleased", scmreg.__version__):
        return f"docs/changelog.md begins with {version}, not with Unreleased or {scmreg.__version__}"
    if f"`{digest(text)}`" not in section:
        return (
            f"the first section of docs/changelog.md does not name the digest `{digest(text)}` of the public surface:"
            " say there what has changed, and put it in place of the old one"
        )
    return None


def test_the_surface_is_on_record_and_in_the_change_log() -> None:
    wrong = complaint(surface(), RECORD.read_text(encoding="utf-8"), CHANGELOG.read_text(encoding="utf-8"))
    assert wrong is None, wrong


def test_a_change_without_the_change_log_is_noticed() -> None:
    text, changelog = surface(), CHANGELOG.read_text(encoding="utf-8")
    assert complaint(text, text, changelog) is None
    changed = text.replace("t: Tensor", "time: Tensor", 1)
    assert changed != text
    assert "python tests/packaging/surface.py" in str(complaint(changed, text, changelog))
    assert f"`{digest(changed)}`" in str(complaint(changed, changed, changelog))
    old = changelog.replace("## ", "## 0.0.1\n\n## ", 1)
    assert "begins with 0.0.1" in str(complaint(text, text, old))
    later = changelog.replace("## ", "## Unreleased\n\nNothing yet.\n\n## ", 1)
    assert "does not name the digest" in str(complaint(text, text, later)), "an old section does not count"


def test_what_is_public_is_in_it() -> None:
    lines = surface().splitlines()
    for module in MODULES:
        loaded = sys.modules[module]
        for name in loaded.__all__:
            assert any(re.match(rf"{re.escape(module)}\.{name}\b", line) for line in lines), f"{module}.{name}"
    for kind, interface in KINDS.items():
        assert f"kind {kind}: {interface}" in lines
    assert "hook scmreg_components() -> Iterable[type[Component]]" in lines
    assert f"API_VERSION {scmreg.API_VERSION}" in lines
    assert "scmreg.Process.coefficients(self, t: Tensor) -> Coefficients" in lines
    assert "scmreg.Process.sigma_data: Positive = ..." in lines
    assert "scmreg.Process.t_max property(self) -> float" in lines
    assert any(line.startswith("scmreg.Denoiser.__init__(self, network") for line in lines)
    assert not any(re.search(r"\._[a-z]", line) for line in lines)


@pytest.mark.parametrize("module", MODULES)
def test_the_promise_names_every_public_module(module: str) -> None:
    text = PROMISE.read_text(encoding="utf-8")
    name, _, kind = module.rpartition(".")
    assert f"`{module}`" in text or (name == "scmreg" and kind in KINDS and "`scmreg.KIND`" in text)


def test_public_names_are_documented_and_typed() -> None:
    for module in MODULES:
        loaded = sys.modules[module]
        for name in loaded.__all__:
            value = getattr(loaded, name)
            if isinstance(value, type) and value.__module__.startswith("scmreg"):
                assert value.__doc__, f"{module}.{name} has no docstring"
            elif callable(value) and getattr(value, "__module__", "").startswith("scmreg"):
                assert value.__doc__, f"{module}.{name} has no docstring"
                assert "return" in value.__annotations__, f"{module}.{name} does not say what it returns"
    assert (Path(scmreg.__file__).parent / "py.typed").is_file()


def spare_hooks() -> ModuleType:
    """Hooks of another time: one that is deprecated, and one of which an argument is."""
    hooks = ModuleType("hooks")
    spec = pluggy.HookspecMarker(hookspecs.PROJECT)

    def scmreg_components():
        """Return the component classes."""

    @spec(warn_on_impl=DeprecationWarning("scmreg_parts goes in API 2.0: return them from scmreg_components"))
    def scmreg_parts():
        """Return what scmreg_components returns."""

    @spec(warn_on_impl_args={"everything": DeprecationWarning("everything goes in API 2.0: ask the registries")})
    def scmreg_ready(everything):
        """Be told that every plugin is loaded."""

    hooks.__dict__.update(
        PROJECT=hookspecs.PROJECT,
        scmreg_components=spec(scmreg_components),
        scmreg_parts=scmreg_parts,
        scmreg_ready=scmreg_ready,
    )
    return hooks


@pytest.mark.usefixtures("registries")
def test_a_deprecated_hook_works_and_is_told_of(tmp_path, monkeypatch, scm) -> None:
    """The mechanism of docs/explanation/api-promise.md, on hooks that are not there."""
    monkeypatch.setattr(discovery, "hookspecs", spare_hooks())
    hook = "@scmreg.hookimpl\ndef {}: return []\n"
    source = "import scmreg\n" + "".join(
        hook.format(each) for each in ("scmreg_components()", "scmreg_parts()", "scmreg_ready(everything)")
    )
    (tmp_path / "old.py").write_text(source)
    plugin = discovery.load_file(tmp_path / "old.py", {})
    assert plugin.error is None
    assert len(plugin.deprecations) == 2
    assert "scmreg_parts goes in API 2.0: return them from scmreg_components (old.py:4)" in plugin.deprecations
    assert any("everything goes in API 2.0" in each for each in plugin.deprecations)

    (tmp_path / "new.py").write_text("import scmreg\n" + hook.format("scmreg_components()"))
    assert discovery.load_file(tmp_path / "new.py", {}).deprecations == ()

    shown = scm("plugins", "--plugin", tmp_path / "old.py")
    assert shown.code == 0
    assert "deprecated: scmreg_parts goes in API 2.0" in " ".join(shown.out.split())
    report = scm("plugins", "--json").json[-1]
    assert report["deprecations"] == list(plugin.deprecations)
