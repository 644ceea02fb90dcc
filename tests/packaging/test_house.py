"""The house: folders are packages are entry points; what may import what; what is never in the code."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PLUGINS = sorted(path.name for path in (ROOT / "plugins").iterdir() if (path / "__init__.py").is_file())
SOURCES = sorted(path for folder in ("scmreg", "plugins", "cli") for path in (ROOT / folder).rglob("*.py"))


def test_folders_are_packages_are_entry_points() -> None:
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(p.removeprefix("plugins/") for p in packages if p.startswith("plugins/")) == PLUGINS
    assert sorted(PROJECT["project"]["entry-points"]["scmreg"].values()) == PLUGINS
    modules = PROJECT["tool"]["importlinter"]["root_packages"]
    assert sorted(m for m in modules if m not in ("scmreg", "scmreg_cli")) == PLUGINS
    for contract in PROJECT["tool"]["importlinter"]["contracts"]:
        assert set(PLUGINS) <= set(contract.get("modules", contract.get("forbidden_modules")))
    assert all((ROOT / p / "py.typed").is_file() for p in packages)


def test_importing_the_library_needs_no_terminal_and_no_torch_yet() -> None:
    script = (
        "import sys, scmreg\n"
        "assert 'torch' not in sys.modules\n"
        "scmreg.processes.create('trigflow')\n"
        "assert not {'typer', 'rich', 'matplotlib', 'timm'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_every_public_name_is_there() -> None:
    import scmreg

    for name in scmreg.__all__:
        assert getattr(scmreg, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = scmreg.nothing


def test_versions_agree() -> None:
    import scmreg

    assert scmreg.__version__ == PROJECT["project"]["version"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_or_masked(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert "pickle" not in names
            assert "click" not in names
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            called = f"{node.value.id}.{node.attr}"
            assert called not in ("torch.load", "torch.save", "torch.nan_to_num")
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, "a bare except hides failures"


def test_constraints_pin_the_settled_versions() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert pins["torch"] == "2.13.0"
    assert pins["torchvision"] == "0.28.0"
    assert pins["triton"] == "3.7.1"
    names = {requirement.split(">=")[0].split(";")[0].strip() for requirement in PROJECT["project"]["dependencies"]}
    assert {name.lower() for name in names} <= {name.lower() for name in pins}
