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

import scmreg
from scmreg import discovery, hookspecs, matrix, recipe, registry
from scmreg.bench import BENCHMARKS
from scmreg.options import options_of
from scmreg.proofs import PROOFS
from scmreg.testing import CHECKS
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


def plain(text: str) -> str:
    """Return what a page says, without its marks."""
    return html.unescape(re.sub(r"<[^>]+>", "", text))


def section(text: str, anchor: str) -> str:
    """Return the part of a page from the heading with an anchor to the next heading of its level."""
    found = re.search(rf'<h2 id="{re.escape(anchor)}">.*?(?=<h2 |</article>)', text, re.DOTALL)
    assert found, f"no section #{anchor}"
    return found[0]


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_kind_has_a_page(site: Path, kind: str) -> None:
    overview = section(page(site, "reference"), "kinds")
    assert f'href="{kind}/"' in overview
    shown = plain(page(site, f"reference/{kind}"))
    assert re.search(r"(Chosen|Conducted|Listed) (by|under)", shown), f"how a {kind} is chosen is not said"
    assert f"scmreg.{kind}." in shown
    summary = (inspect.getdoc(registry.registry(kind).interface) or "").partition("\n")[0]
    assert summary.replace("`", "") in shown
    assert summary.replace("`", "") in plain(overview)


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_kind_says_what_to_implement(kind: str) -> None:
    """The table of "Write a component" has every kind, and every method without which a component of it is abstract."""
    text = (ROOT / "docs" / "how-to" / "write-a-component.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| {kind} \| .*$", text, re.MULTILINE)
    assert row, kind
    for method in registry.registry(kind).interface.__abstractmethods__:
        assert f"`{method}`" in row[0], f"{kind}: {method}"


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
            assert parameter.help, f"scm {name}: {parameter.name} has no help"
    for parameter in group.params:
        for option in parameter.opts:
            assert getattr(parameter, "hidden", False) or f"<code>{option}</code>" in section(shown, "program"), option
    for name, command in group.commands.items():
        text = section(shown, name)
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


def test_every_benchmark_is_described(site: Path) -> None:
    text = section(page(site, "reference/cli"), "bench")
    for name, cls in BENCHMARKS.items():
        found = re.search(rf'<h3 id="bench-{name}">.*?(?=<h3 |$)', text, re.DOTALL)
        assert found, name
        for option in options_of(cls):
            assert f"<code>{option.name}</code>" in found[0], f"scm bench {name} --{option.name}"
            assert option.help


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_is_described(site: Path, name: str) -> None:
    check = CHECKS[name]
    assert check.statement
    shown = page(site, "reference/checks")
    for kind in check.kinds or ("all",):
        text = section(shown, kind)
        assert f"<code>{name}</code>" in text
        assert check.statement.replace("`", "").split(":")[0] in plain(text)
    assert f"<code>{name}</code>" in page(site, "how-to/check-a-component")


def test_every_hook_is_described(site: Path) -> None:
    shown = page(site, "reference/hooks")
    hooks = [name for name, found in vars(hookspecs).items() if hasattr(found, f"{hookspecs.PROJECT}_spec")]
    assert "scmreg_components" in hooks
    for name in hooks:
        documented = inspect.getdoc(getattr(hookspecs, name)) or ""
        text = plain(section(shown, name))
        assert documented
        assert documented.partition("\n")[0].replace("`", "") in text
        assert f"def {name}(" in text
        for argument in inspect.signature(getattr(hookspecs, name)).parameters:
            assert argument in text, f"{name}: {argument}"
    said = plain(shown)
    assert f"scmreg_api = {scmreg.API_VERSION}" in said
    assert re.search(rf"entry-point group\s+{discovery.GROUP}\b", said)


@pytest.mark.parametrize("name", [name for name in scmreg.__all__ if not name.startswith("__")])
def test_every_name_of_the_package_leads_to_its_documentation(site: Path, name: str) -> None:
    row = re.search(
        rf"<tr>\s*<td>(?:<span[^>]*>)?<code>scmreg\.{name}</code>.*?</tr>", page(site, "reference/api"), re.DOTALL
    )
    assert row, f"scmreg.{name} is not listed"
    links = re.findall(r'href="([^"]+)"', row[0])
    assert links, f"scmreg.{name} leads nowhere"
    for link in links:
        path, _, anchor = link.partition("#")
        target = (site / "reference" / "api" / path / "index.html").resolve()
        assert target.is_file(), link
        assert not anchor or f'id="{anchor}"' in target.read_text(encoding="utf-8"), link


def test_every_page_is_announced_at_home() -> None:
    """The table of the first page has every page that is written by hand, and none that is not there."""
    announced = set(re.findall(r"\]\(([\w/-]+\.md)\)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    folders = ("tutorial", "how-to", "explanation")
    written = {
        path.relative_to(ROOT / "docs").as_posix()
        for folder in folders
        for path in (ROOT / "docs" / folder).glob("*.md")
    }
    assert announced >= written
    assert {path for path in announced if path.startswith(folders)} == written


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


def test_every_study_of_ours_is_told_of_under_claims(site: Path) -> None:
    text = page(site, "explanation/claims")
    for name, cls in registry.registry("study").items():
        if cls.__module__.startswith("scmreg_studies"):
            shown = html.unescape(re.sub(r"<[^>]+>", "", section(text, name)))
            assert re.search("Held:|Not held:", shown), name
            assert f"scm study {name}" in shown
            assert (site / "explanation" / "claims" / f"{name}.png").is_file()
