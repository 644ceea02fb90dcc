"""The command ``scm new plugin``: a package with one working component, to be changed into one's own.

The component is that of :mod:`scmreg_cli.templates` of its kind; around it are what makes it installable, a test, and
a page that says what to do.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import shutil
import tempfile
from importlib import resources
from pathlib import Path

from scmreg import API_VERSION, __version__, registry
from scmreg.errors import OutputError, PluginError, ScmError, UnknownComponentError

__all__ = ["files", "new_plugin"]

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

PROJECT = """\
[build-system]
requires = ["hatchling>=1.25"]
build-backend = "hatchling.build"

[project]
name = "{project}"
version = "0.1.0"
description = "{summary}"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["scmreg>={version}"]

[project.optional-dependencies]
test = ["pytest>=8.2"]

[project.entry-points.scmreg]
{name} = "{module}"

[tool.hatch.build]
dev-mode-dirs = ["."]

[tool.hatch.build.targets.wheel]
only-include = ["{module}.py"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["."]

[tool.ruff]
line-length = 120
"""

README = """\
# {project}

{summary}

```bash
pip install -e .
{use}
```

The component is [`{module}.py`]({module}.py), one class: its annotated fields are its options, the string under a field
is the option's help, the first line of its docstring is what `scm list` shows. The entry point in
[`pyproject.toml`](pyproject.toml) tells scmreg of it. `scmreg_api` says for which version of the interface it was
written.

```bash
pytest
scm check {kind}/{name}
scm plugins
```

`pytest` and `scm check` try whether it keeps the promises of its kind, {kind}; `scm plugins` says whether it was
loaded, and why not.
"""

TEST = '''\
"""Whether '{name}' keeps the promises of its kind, {kind}."""

from scmreg.testing import BoundCheck, conformance

from {module} import {cls}


@conformance({cls})
def test_{identifier}(check: BoundCheck) -> None:
    """Try one promise."""
    check()
'''

IGNORE = """\
__pycache__/
*.egg-info/
.hypothesis/
.mypy_cache/
.pytest_cache/
.ruff_cache/
.venv/
build/
dist/
runs/
"""


def new_plugin(name: str, kind: str, out: Path) -> list[str]:
    """Write the package of a new plugin, whole or not at all.

    Args:
        name: name of the component, and of the plugin.
        kind: what it is.
        out: folder that the folder of the package is made in.

    Returns:
        What to tell: what was written, and what to do next.

    Raises:
        ScmError: if the name is none or taken, there is no such kind, or the folder exists or cannot be written.
    """
    made = files(name, kind)
    folder = out / project_of(name)
    if folder.exists():
        raise OutputError(f"{folder} exists already", "choose another name, or another place with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".new-") as beside:
            whole = Path(beside) / folder.name
            for path, text in made.items():
                (whole / path).parent.mkdir(parents=True, exist_ok=True)
                (whole / path).write_text(text, encoding="utf-8")
            shutil.move(whole, folder)
    except OSError as error:
        raise OutputError(
            f"cannot write to {out}: {error.strerror or error}", "choose another place with --out"
        ) from None
    return [
        f"{folder}: the {kind} '{name}', which works and is to be changed",
        *(f"  {folder / path}" for path in made),
        "",
        "next:",
        f"  pip install -e {folder}",
        *(f"  {line}" for line in uses(name, kind)),
        f"  scm check {kind}/{name}",
        f"  pytest {folder}",
    ]


def files(name: str, kind: str) -> dict[str, str]:
    """Return the files of a new plugin by path within its folder.

    Raises:
        ScmError: if the name is none or taken, or there is no such kind.
    """
    check_name(name, kind)
    source = template(kind)
    module, cls = module_of(name), class_of(name, kind, source)
    values = {
        "project": project_of(name),
        "name": name,
        "module": module,
        "kind": kind,
        "cls": cls,
        "identifier": name.replace("-", "_"),
        "version": __version__,
        "summary": summary_of(source),
        "use": "\n".join(uses(name, kind)),
    }
    return {
        f"{module}.py": renamed(source, name, cls),
        "pyproject.toml": PROJECT.format(**values),
        f"tests/test_{module}.py": TEST.format(**values),
        "README.md": README.format(**values),
        ".gitignore": IGNORE,
    }


def check_name(name: str, kind: str) -> None:
    """Refuse what is no name, or is taken.

    Raises:
        ScmError: saying which, and by whom.
    """
    known = registry.registry(kind)
    if not NAME.fullmatch(name):
        words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")
        raise ScmError(
            f"'{name}' is no name of a plugin",
            "lower-case letters and digits in words that '-' joins, the first a letter"
            + (f", such as {words}" if NAME.fullmatch(words) else ""),
        )
    if name in known:
        raise PluginError(
            f"{kind} '{name}' exists already: {known[name].__module__}.{known[name].__qualname__}",
            "choose another name",
        )
    for plugin in registry.plugins():
        if plugin.name == name:
            raise PluginError(f"plugin '{name}' exists already: {plugin.source}", "choose another name")
    if importlib.util.find_spec(module_of(name)) is not None:
        raise PluginError(f"module {module_of(name)} exists already", "choose another name")


def template(kind: str) -> str:
    """Return the source of the plugin that those of a kind are made from.

    Raises:
        UnknownComponentError: if there is none.
    """
    path = resources.files("scmreg_cli.templates") / f"{kind}.py"
    if not path.is_file():
        raise UnknownComponentError(f"no template of kind '{kind}'")
    return path.read_text(encoding="utf-8")


def uses(name: str, kind: str) -> list[str]:
    """Return the commands that use a component of a kind, as its template says."""
    return re.findall(r"^scm .*$", renamed(template(kind), name, ""), re.MULTILINE)


def summary_of(source: str) -> str:
    """Return the first line of a template's docstring."""
    line = source.partition("\n")[0].removeprefix('"""')
    return line[:1].upper() + line[1:]


def renamed(source: str, name: str, cls: str) -> str:
    """Return a template under another name, for the present version of the interface."""
    source = re.sub(r"^scmreg_api = .*$", f"scmreg_api = {API_VERSION}", source, flags=re.MULTILINE)
    return re.sub(r"\bexample\b", name, source.replace("Example", cls))


def project_of(name: str) -> str:
    """Return the name of the distribution and of its folder."""
    return f"scmreg-{name}"


def module_of(name: str) -> str:
    """Return the name of the module, which begins as the project's so that it hides no other."""
    return f"scmreg_{name.replace('-', '_')}"


def class_of(name: str, kind: str, source: str) -> str:
    """Return the name of the class, with its kind where it would be a word of the language or of the template."""
    cls = "".join(word.capitalize() for word in name.split("-"))
    if keyword.iskeyword(cls) or re.search(rf"\b{cls}\b", source):
        return cls + registry.KINDS[kind]
    return cls
