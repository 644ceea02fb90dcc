"""The site builds without a warning, and its reference has everything that is registered."""

from __future__ import annotations

import html
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from scmreg import matrix, recipe, registry
from scmreg.options import options_of
from scmreg.proofs import PROOFS
from scmreg_cli.main import app

pytest.importorskip("material", reason="the site is built with the extra 'docs'")

ROOT = Path(__file__).parents[2]
COMPONENTS = [(kind, name) for kind in registry.KINDS for name in registry.registry(kind)]
CORE = ["coordinates", "denoiser", "guidance", "law", "matrix", "tangent", "verify", "bench", "errors"]
SECTIONS = (recipe.Recipe, recipe.Trainer, recipe.Teacher, recipe.Evaluation)


def tree(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    before = tree(ROOT / "docs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    assert tree(ROOT / "docs") == before, "generated pages were written into the source tree"
    return folder


def page(site: Path, path: str) -> str:
    return (site / path / "index.html").read_text(encoding="utf-8")


def section(text: str, anchor: str) -> str:
    """Return the part of a page from the heading with an anchor to the next heading of its level."""
    found = re.search(rf'<h2 id="{re.escape(anchor)}">.*?(?=<h2 |</article>)', text, re.DOTALL)
    assert found, f"no section #{anchor}"
    return found[0]


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_kind_has_a_page(site: Path, kind: str) -> None:
    assert f'href="{kind}/"' in page(site, "reference")
    assert page(site, f"reference/{kind}")


@pytest.mark.parametrize(("kind", "name"), COMPONENTS, ids="/".join)
def test_every_component_is_described(site: Path, kind: str, name: str) -> None:
    cls = registry.registry(kind)[name]
    assert f'href="{kind}/#{name}"' in page(site, "reference")
    shown = html.unescape(re.sub(r"<[^>]+>", "", section(page(site, f"reference/{kind}"), name)))
    words = re.sub(r":[a-z]+:`~?(?:\w+\.)*(\w+)`", r"\1", cls.summary()).replace("`", "")
    assert words in shown
    assert f"{cls.__module__}.{cls.__qualname__}" in shown
    assert re.sub(r"\s+", "", cls.formula) in re.sub(r"\s+", "", shown)
    assert cls.reference in shown
    for option in options_of(cls):
        assert option.name in shown
        assert option.help, f"{kind}/{name}: the option {option.name} has no help"


@pytest.mark.parametrize("cls", SECTIONS, ids=lambda cls: cls.__name__)
def test_every_option_of_a_recipe_is_described(site: Path, cls: type) -> None:
    shown = section(page(site, "reference/recipe"), cls.__name__.lower())
    for option in options_of(cls):
        assert f"<code>{option.name}</code>" in shown
        assert option.help


@pytest.mark.parametrize("name", recipe.packaged() or [None])
def test_every_packaged_recipe_is_shown(site: Path, name: str | None) -> None:
    shown = page(site, "reference/recipes")
    if name is None:
        assert "This version packages none" in shown
    else:
        assert section(shown, name)


def test_every_command_is_described(site: Path) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    assert len(group.commands) >= 7
    shown = page(site, "reference/cli")
    for name, command in group.commands.items():
        text = section(shown, name)
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert f"<code>{option}</code>" in text, f"scm {name} {option}"
        for example in re.findall(r"^scm .*$", command.epilog or "", re.MULTILINE):
            assert example.split()[1] in text


@pytest.mark.parametrize("module", ["component", "registry", *registry.KINDS, *CORE])
def test_every_public_name_is_described(site: Path, module: str) -> None:
    loaded = importlib.import_module(f"scmreg.{module}")
    shown = page(site, f"reference/api/{module}")
    names = [name for name in loaded.__all__ if inspect.isclass(found := getattr(loaded, name)) or callable(found)]
    inside = f"{loaded.__name__}."
    documented = [name for name in names if f"{getattr(loaded, name).__module__}.".startswith(inside)]
    assert documented
    for name in documented:
        assert f'id="scmreg.{module}.{name}"' in shown, name


def test_what_is_generated_within_a_page_is_there(site: Path) -> None:
    shown = page(site, "explanation/one-process")
    assert "generated:" not in shown
    assert "generated:" not in page(site, "how-to/sample")
    for process in registry.registry("process"):
        assert f'href="../../reference/process/#{process}"' in shown
    for name in re.findall(r'<img [^>]*src="\.\./([\w-]+\.svg)#only-\w+"', shown):
        assert (site / "explanation" / name).is_file()
    assert len(re.findall(r'src="\.\./[\w-]+\.svg#only-(?:light|dark)"', shown)) == 4


def test_every_composition_and_every_proof_is_listed(site: Path) -> None:
    text = page(site, "reference/matrix")
    for verdict in matrix.pairs() + matrix.compositions():
        assert all(f"<code>{name}</code>" in text or f">{name}<" in text for name in verdict.names.values())
    reasons = {verdict.reason for verdict in matrix.pairs() + matrix.shapes() if verdict.reason}
    assert reasons
    plain = html.unescape(re.sub(r"<[^>]+>", "", text))
    assert all(reason in plain for reason in reasons)
    text = page(site, "reference/proofs")
    assert all(f"<code>{name}</code>" in text for name in PROOFS)


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(pages) > 40
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"""(?:src=|@import\s+|url\()["']?(?:https?:)?//""", text), path
        for link in re.findall(r"<link [^>]*>", text):
            assert 'href="http' not in link, f"{path}: {link}"


def test_no_markup_is_left_over(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = re.sub(r"<(pre|code)\b.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(r":(?:class|func|meth|mod|attr):", text), path
        assert "``" not in text, path
        assert "<autoref" not in text, path
