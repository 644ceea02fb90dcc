"""The reference, generated from the registry each time the site is built: nothing is written into the source tree.

MkDocs calls `on_config` (the reference is added to the navigation), `on_files` (its pages are made) and
`on_page_content` (cross-references of docstrings become links).
"""

from __future__ import annotations

import dataclasses
import html
import inspect
import pydoc
import re
from collections.abc import Iterable, Sequence
from typing import Any

import typer
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.core import TyperGroup

from scmreg import recipe, registry
from scmreg.component import Component, Options
from scmreg.errors import ScmError
from scmreg.objective import Objective
from scmreg.options import Option, options_of, to_tree
from scmreg.parameterization import Parameterization
from scmreg.sampler import Sampler
from scmreg_cli.main import app

__all__ = ["on_config", "on_files", "on_page_content", "pages"]

MODULES = (
    "component",
    "registry",
    "options",
    *registry.KINDS,
    "types",
    "coordinates",
    "denoiser",
    "tangent",
    "recipe",
    "run",
    "train",
    "sample",
    "evaluate",
    "checkpoint",
    "rng",
    "progress",
    "discovery",
    "errors",
)
"""Modules with a page in the Python API."""

SECTIONS = (recipe.Recipe, recipe.Trainer, recipe.Teacher, recipe.Evaluation)

WITHOUT_SELECTOR = {
    "attention": "Chosen by the option `attention` of a network that has one (`--set network.attention=NAME`), or by"
    " `backend=NAME` of [`scmreg.attend`](api/attention.md).",
    "metric": "Listed under `evaluation.metrics` of a recipe: `--set evaluation.metrics=[frechet,accuracy]`.",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the reference to the navigation."""
    kinds = [{title(kind): f"reference/{kind}.md"} for kind in registry.KINDS]
    modules = [{f"scmreg.{module}": f"reference/api/{module}.md"} for module in MODULES]
    reference = [
        {"Overview": "reference/index.md"},
        {"Command line": "reference/cli.md"},
        {"Recipe sections": "reference/recipe.md"},
        {"Packaged recipes": "reference/recipes.md"},
        {"Components": kinds},
        {"Python API": [{"scmreg": "reference/api/index.md"}, *modules]},
    ]
    nav = list(config.nav or [])
    nav.insert(3, {"Reference": reference})
    config.nav = nav
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the cross-references of docstrings into links."""
    return re.sub(
        r":[a-z]+:<code>~?([\w.]+)</code>",
        lambda found: reference_to(found[1]),
        content,
    )


def pages() -> dict[str, str]:
    """Return every generated page: its path in the site's sources and its Markdown."""
    made = {"reference/index.md": overview(), "reference/cli.md": command_line()}
    made["reference/recipe.md"] = recipe_sections()
    made["reference/recipes.md"] = packaged_recipes()
    made |= {f"reference/{kind}.md": kind_page(kind) for kind in registry.KINDS}
    made["reference/api/index.md"] = api_index()
    made |= {f"reference/api/{module}.md": api_page(module) for module in MODULES}
    return made


# Components ---------------------------------------------------------------------------------------------------------


def overview() -> str:
    """Return the page that lists every component."""
    lines = [
        "# Reference",
        "",
        "Generated from the registry: what stands here is what is installed. The same is printed by `scm list` and"
        " `scm show KIND/NAME`.",
        "",
        "- [Command line](cli.md): every command and option of `scm`.",
        "- [Recipe sections](recipe.md): what a recipe says beside its components.",
        "- [Packaged recipes](recipes.md): recipes that come with the package.",
        "- [Python API](api/index.md): the modules, their interfaces and functions.",
        "",
        "## Components",
        "",
    ]
    rows = [
        (f"[{kind}]({kind}.md)", f"[`{name}`]({kind}.md#{name})", prose(cls.summary()))
        for kind in registry.KINDS
        for name, cls in registry.registry(kind).items()
    ]
    return "\n".join([*lines, *table(("kind", "name", "what it does"), rows), ""])


def kind_page(kind: str) -> str:
    """Return the page of one kind: its interface and every component."""
    found = registry.registry(kind)
    interface = found.interface
    lines = [f"# {title(kind)}", "", prose(inspect.getdoc(interface) or ""), "", how_to_choose(kind), ""]
    lines += [f"Interface: [`scmreg.{kind}.{interface.__name__}`](api/{kind}.md).", ""]
    rows = [(f"[`{name}`](#{name})", prose(cls.summary())) for name, cls in found.items()]
    lines += table(("name", "what it does"), rows)
    for cls in found.values():
        lines += ["", *component(cls)]
    if interface is Parameterization:
        lines += ["", *boundary_table()]
    return "\n".join([*lines, ""])


def how_to_choose(kind: str) -> str:
    """Say how a component of a kind is chosen and its options are set."""
    if f"--{kind}" not in {name for parameter in commands()["run"].params for name in parameter.opts}:
        return WITHOUT_SELECTOR.get(kind, "")
    inside = {option.name for option in options_of(recipe.Recipe)}
    path = kind if kind in inside else f"objective.{kind}"
    return f"Chosen by `--{kind} NAME`; options are set by `--set {path}.OPTION=VALUE`."


def component(cls: type[Component]) -> list[str]:
    """Return the section of one component."""
    summary, _, rest = (inspect.getdoc(cls) or "").partition("\n")
    lines = [f"## `{cls.name}` {{ #{cls.name} }}", "", prose(summary), ""]
    if cls.formula:
        lines += ["```{ .text .formula }", *re.split(r"(?<=[;,]) {2,}", cls.formula), "```", ""]
    if rest.strip():
        lines += [prose(rest.strip()), ""]
    facts = [f"Class `{cls.__module__}.{cls.__qualname__}`."]
    if cls.reference:
        facts.insert(0, f"Reference: {linked(cls.reference)}.")
    facts += traits(cls)
    lines += [" ".join(facts) + "\n{ .facts }", ""]
    return [*lines, *option_table(cls, "It has no options.")]


def traits(cls: type[Component]) -> list[str]:
    """Return what a component says of itself beside its options."""
    said = []
    if issubclass(cls, Objective):
        if cls.needs_boundary:
            said.append("Needs `f(x, 0) = x`.")
        said.append(f"Sampled by [`{cls.sampler}`](sampler.md#{cls.sampler}) unless the recipe says otherwise.")
        if cls.trainer:
            preferred = ", ".join(f"`{name}: {value}`" for name, value in cls.trainer.items())
            said.append(f"Trainer options in place of the defaults: {preferred}.")
    if issubclass(cls, Sampler):
        said.append("Solves no ODE." if cls.order is None else f"Order of convergence in the step size: {cls.order}.")
    return said


def boundary_table() -> list[str]:
    """Return which parameterization has ``f(x, 0) = x`` under which process, as the components compute it."""
    processes, parameterizations = registry.registry("process"), registry.registry("parameterization")
    rows = [
        (
            f"`{name}`",
            *(
                "yes" if parameterizations.create(name).has_boundary(processes.create(process)) else "no"
                for process in processes
            ),
        )
        for name in parameterizations
    ]
    return [
        "## Boundary condition",
        "",
        "Whether `f(x, 0) = x` holds for every network, which consistency objectives need. It is computed from the"
        " coefficients of both components, and a composition without it is refused.",
        "",
        *table(("parameterization", *(f"`{process}`" for process in processes)), rows),
    ]


# Options ------------------------------------------------------------------------------------------------------------


def option_table(cls: type[Options], otherwise: str) -> list[str]:
    """Return the table of the options of a component or a section."""
    described = options_of(cls)
    if not described:
        return [otherwise]
    rows = [(f"`{option.name}`", type_of(option), default_of(option), prose(option.help)) for option in described]
    return table(("option", "type", "default", "meaning"), rows)


def type_of(option: Option) -> str:
    """Return the type of an option, linked where it is a component or a section."""
    if option.component is not None:
        page = f"[{option.component.kind}]({option.component.kind}.md)"
        return f"list of {page}" if option.many else page
    if option.section is not None:
        return f"[{option.type_text}](recipe.md#{option.type_text})"
    return bounds(html.escape(option.type_text))


def bounds(text: str) -> str:
    """Return a type with every bound kept on one line with its sign."""
    return re.sub(r"(≥|≤|&[lg]t;) ", "\\1&nbsp;", text)


def default_of(option: Option) -> str:
    """Return the default of an option."""
    value = option.default
    if value is dataclasses.MISSING:
        return "required"
    if option.component is not None and value is not None:
        names = value if isinstance(value, tuple) else (value,)
        links = ", ".join(f"[`{name}`]({option.component.kind}.md#{name})" for name in names)
        given = ", ".join(f"`{name}: {item}`" for name, item in option.values.items())
        return f"{links} ({given})" if given else links
    if value is None:
        if option.section is not None:
            return "its defaults"
        return "none" if option.optional else "the objective's choice"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value) or "none"
    if not isinstance(value, bool | int | float | str | list | dict):
        return f"`{value}`"
    return f"`{yaml.safe_dump(value, default_flow_style=True).removesuffix('...' + chr(10)).strip()}`"


def recipe_sections() -> str:
    """Return the page of the sections of a recipe."""
    lines = [
        "# Recipe sections",
        "",
        "A recipe is a tree: components by name with their options, and the sections below. `scm run --dry-run` prints"
        " the whole tree; `--set PATH=VALUE` changes one value of it, at any depth. What an objective prefers"
        " (its sampler, options of the trainer) takes the place of the defaults below, and is named on the"
        " [page of objectives](objective.md).",
        "",
    ]
    for cls in SECTIONS:
        name = cls.__name__
        lines += [f"## {name} {{ #{name.lower()} }}", "", prose(inspect.getdoc(cls) or ""), ""]
        lines += [*option_table(cls, "It has no options."), ""]
    operational = ", ".join(f"`{name}`" for name in sorted(recipe.Trainer.operational))
    lines += [
        "The trainer options that leave the result alone, but for rounding, are not part of the key under which a"
        f" teacher is found again: {operational}.",
        "",
        "## Everything at its default",
        "",
        "```yaml",
        yaml.safe_dump(to_tree(recipe.Recipe()), sort_keys=False, allow_unicode=True).rstrip(),
        "```",
    ]
    return "\n".join([*lines, ""])


def packaged_recipes() -> str:
    """Return the page of the recipes that come with the package."""
    lines = [
        "# Packaged recipes",
        "",
        "A packaged recipe is used by its name, `scm run --recipe NAME`; options beside it have the last word.",
        "",
    ]
    found = recipe.packaged()
    if not found:
        lines += ["This version packages none: a recipe is a file of your own, or the folder of a run."]
    for name, text in found.items():
        lines += [f"## `{name}` {{ #{name} }}", ""]
        try:
            made = recipe.Recipe.from_tree(recipe.read(name))
        except ScmError as error:
            raise RuntimeError(f"the packaged recipe {name} cannot be built: {error}") from error
        lines += [f"`{made.process.name}`, `{made.objective.name}`, `{made.data.name}`.", ""]
        lines += ["```bash", f"scm run --recipe {name}", "```", "", "```yaml", text.rstrip(), "```", ""]
    return "\n".join([*lines, ""])


# Command line -------------------------------------------------------------------------------------------------------


def commands() -> dict[str, Any]:
    """Return the commands of the program by name, in its own order."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup), "scm has several commands"
    return dict(group.commands)


def command_line() -> str:
    """Return the page of the command line."""
    group = typer.main.get_command(app)
    rows = [(f"[`scm {name}`](#{name})", prose(first_line(each.help))) for name, each in commands().items()]
    lines = [
        "# Command line",
        "",
        prose(group.help or ""),
        "",
        "Data go to stdout, words and progress to stderr; reading commands print JSON with `--json`. Every command"
        " takes `-h` or `--help`.",
        "",
        *table(("command", "what it does"), rows),
        "",
        "## Status",
        "",
        *table(
            ("status", "meaning"),
            [
                ("0", "done"),
                ("2", "a mistake that you can mend: one message on stderr, no traceback"),
                ("130", "a run was stopped by Ctrl-C, after writing a checkpoint"),
                ("1, with a traceback", "a bug"),
            ],
        ),
        "",
        "## Options of the program { #program }",
        "",
        *parameter_table([p for p in group.params if not getattr(p, "hidden", False)]),
    ]
    for name, each in commands().items():
        lines += ["", f"## `scm {name}` {{ #{name} }}", "", prose(each.help or ""), ""]
        arguments = [p for p in each.params if p.param_type_name == "argument"]
        usage = [p.metavar or p.name for p in arguments]
        usage = [word if parameter.required else f"[{word}]" for word, parameter in zip(usage, arguments, strict=True)]
        lines += ["```text", " ".join(["scm", name, "[OPTIONS]", *(word.upper() for word in usage)]), "```", ""]
        panels: dict[str, list[Any]] = {}
        for parameter in each.params:
            if not parameter.hidden:
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or "", []).append(parameter)
        for panel in sorted(panels):
            if panel:
                lines += ["", f"{panel}:", ""]
            lines += parameter_table(panels[panel])
        examples = [line for line in (each.epilog or "").split("\n\n") if line.startswith("scm ")]
        if examples:
            lines += ["", "```bash", *examples, "```"]
    return "\n".join([*lines, ""])


def parameter_table(parameters: Iterable[Any]) -> list[str]:
    """Return the table of options and arguments of a command."""
    rows = []
    for parameter in parameters:
        names = [parameter.metavar or parameter.name.upper()]
        value = ""
        if parameter.param_type_name == "option":
            names = sorted(parameter.opts, key=len, reverse=True)
            value = value_of(parameter)
        default = parameter.default
        shown = default is not None and default is not False and parameter.param_type_name == "option"
        meaning = prose(marked(parameter.help or ""))
        meaning += f" Default: `{default}`." if shown else " Required." if parameter.required else ""
        rows.append(
            (
                " ".join(f"`{name}`" for name in names),
                f"<code>{bounds(html.escape(value))}</code>" if value else "",
                meaning,
            )
        )
    return table(("option", "value", "meaning"), rows)


def value_of(parameter: Any) -> str:
    """Return the kind of value that an option takes; nothing for a switch."""
    if parameter.is_flag:
        return ""
    if parameter.metavar:
        return str(parameter.metavar)
    annotation = parameter.type_descriptor.annotation
    name = {"str": "TEXT", "int": "INTEGER", "float": "NUMBER", "Path": "PATH"}.get(
        getattr(annotation, "__name__", ""), "VALUE"
    )
    return name if getattr(parameter, "min", None) is None else f"{name} ≥ {parameter.min}"


def marked(text: str) -> str:
    """Return a help text of the terminal as Markdown: coloured words are code."""
    return re.sub(r"\[\w+\](.*?)\[/\w*\]", r"`\1`", text)


def first_line(text: str | None) -> str:
    """Return the first line of a text."""
    return (text or "").partition("\n")[0]


# Python API ---------------------------------------------------------------------------------------------------------


def api_index() -> str:
    """Return the page of the package itself."""
    rows = [
        (f"[`scmreg.{module}`]({module}.md)", prose(first_line(pydoc.getdoc(locate(f"scmreg.{module}")))))
        for module in MODULES
    ]
    package = locate("scmreg")
    names = ", ".join(f"`{name}`" for name in package.__all__ if not name.startswith("__"))
    return "\n".join(
        [
            "# Python API",
            "",
            "The package gives its most used names directly; they are loaded when they are first used:",
            "",
            f"{names}.",
            "",
            'The plural names are registries: `scmreg.processes["trigflow"]` is the class,'
            ' `scmreg.processes.create("trigflow", sigma_data=0.3)` a checked instance.',
            "",
            *table(("module", "what it is"), rows),
            "",
        ]
    )


def api_page(module: str) -> str:
    """Return the page of one module."""
    return f"# scmreg.{module}\n\n::: scmreg.{module}\n"


# Text ---------------------------------------------------------------------------------------------------------------


def title(kind: str) -> str:
    """Return the title of the page of a kind."""
    plurals = {"process": "Processes", "data": "Data", "proposal": "Proposals"}
    return plurals.get(kind, f"{kind.capitalize()}s")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; the cells are Markdown in which a bar stands for itself."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace(chr(10), ' ').replace('|', '&#124;') for cell in cells)} |"

    return [line(header), f"|{' --- |' * len(header)}", *(line(row) for row in rows)]


def prose(text: str) -> str:
    """Return the text of a docstring as Markdown: code stays code, references are links, all else is plain."""
    parts = re.split(r"(:[a-z]+:`[^`]*`|``.+?``|`[^`]*`)", text)
    return "".join(_code(part) if index % 2 else _plain(part) for index, part in enumerate(parts))


def linked(text: str) -> str:
    """Return a reference with its arXiv numbers and DOIs as links."""
    text = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"doi:(10\.\S+)", r"[doi:\1](https://doi.org/\1)", text)


def reference_to(path: str) -> str:
    """Return a link to the documentation of a Python object, or its name where it has none."""
    name = path.rpartition(".")[2]
    found = locate(path)
    target = f"{found.__module__}.{found.__qualname__}" if hasattr(found, "__qualname__") else path
    return f'<autoref optional identifier="{target}"><code>{name}</code></autoref>'


def locate(path: str) -> Any:
    """Return the object of a dotted path, ``None`` if there is none."""
    return pydoc.locate(path)


def _code(part: str) -> str:
    if part.startswith(":"):
        return reference_to(part.partition("`")[2].strip("`").lstrip("~"))
    return (
        f"<code>{html.escape(part.strip('`'))}</code>".replace("|", "&#124;")
        .replace("*", "&#42;")
        .replace("_", "&#95;")
    )


def _plain(part: str) -> str:
    return re.sub(r"([*_\[\]])", r"\\\1", html.escape(part, quote=False))
