"""The reference, generated from the registry each time the site is built: nothing is written into the source tree.

MkDocs calls `on_config` (the reference is added to the navigation), `on_files` (its pages and the figures are made),
`on_page_markdown` (a line ``<!-- generated: NAME -->`` of a page gives way to a table or a figure) and
`on_page_content` (cross-references of docstrings become links).
"""

from __future__ import annotations

import dataclasses
import html
import inspect
import math
import pydoc
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import typer
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.core import TyperGroup

from figures import pictures, processes, shown
from scmreg import API_VERSION, discovery, hookspecs, matrix, recipe, registry
from scmreg.bench import BENCHMARKS
from scmreg.component import Component, Options
from scmreg.errors import ScmError
from scmreg.objective import Objective
from scmreg.options import Option, options_of, to_tree
from scmreg.parameterization import Parameterization
from scmreg.process import Process
from scmreg.proofs import PROOFS
from scmreg.sampler import Sampler
from scmreg.testing import CHECKS
from scmreg.weighting import Weighting
from scmreg_cli.main import app

__all__ = ["on_config", "on_files", "on_page_content", "on_page_markdown", "pages"]

MODULES = (
    "component",
    "registry",
    "options",
    *registry.KINDS,
    "types",
    "coordinates",
    "denoiser",
    "guidance",
    "law",
    "matrix",
    "tangent",
    "recipe",
    "settings",
    "run",
    "train",
    "sample",
    "evaluate",
    "log",
    "diagnostics",
    "preview",
    "record",
    "report",
    "compare",
    "checkpoint",
    "export",
    "importing",
    "cite",
    "bibliography",
    "verify",
    "testing",
    "conduct",
    "bench",
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
    "schedule": "Chosen by the option `schedule` of an objective in discrete time: `--set objective.schedule=NAME`.",
    "distance": "Chosen by the option `distance` of an objective that compares outputs:"
    " `--set objective.distance=NAME`.",
    "study": "Conducted by `scm study NAME`; options are set by `--set OPTION=VALUE`. See"
    " [Conduct a study](../how-to/conduct-a-study.md).",
    "metric": "Listed under `evaluation.metrics` of a recipe: `--set evaluation.metrics=[frechet,accuracy]`.",
}


PAGE_OF_KINDS = "../reference/{kind}.md"
"""Where a hand-written page finds the page of a kind."""
SPACES = {"unit": "the unit velocity", "data": "the data"}
"""What weightings and losses are stated for, in words."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the reference to the navigation."""
    kinds = [{title(kind): f"reference/{kind}.md"} for kind in registry.KINDS]
    modules = [{f"scmreg.{module}": f"reference/api/{module}.md"} for module in MODULES]
    reference = [
        {"Overview": "reference/index.md"},
        {"Command line": "reference/cli.md"},
        {"Recipe sections": "reference/recipe.md"},
        {"Packaged recipes": "reference/recipes.md"},
        {"What fits with what": "reference/matrix.md"},
        {"Proofs": "reference/proofs.md"},
        {"Checks": "reference/checks.md"},
        {"Hooks": "reference/hooks.md"},
        {"Components": kinds},
        {"Python API": [{"scmreg": "reference/api/index.md"}, *modules]},
    ]
    nav = list(config.nav or [])
    nav.insert(3, {"Reference": reference})
    config.nav = nav
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and figures."""
    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    for path, picture in pictures().items():
        files.append(File.generated(config, path, content=picture))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put what is generated where the page asks for it."""
    return re.sub(r"^<!-- generated: (.+?) -->$", lambda found: GENERATED[found[1]](), markdown, flags=re.MULTILINE)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the cross-references of docstrings into links, and keep short code on one line."""
    content = re.sub(
        r":[a-z]+:<code>~?([\w.]+)</code>",
        lambda found: reference_to(found[1]),
        content,
    )
    return re.sub(r"(<code>[^<\n]{1,24}</code>)", r'<span class="short">\1</span>', content)


def pages() -> dict[str, str]:
    """Return every generated page: its path in the site's sources and its Markdown."""
    made = {"reference/index.md": overview(), "reference/cli.md": command_line()}
    made["reference/recipe.md"] = recipe_sections()
    made["reference/recipes.md"] = packaged_recipes()
    made["reference/matrix.md"] = matrix_page()
    made["reference/proofs.md"] = proofs_page()
    made["reference/checks.md"] = checks_page()
    made["reference/hooks.md"] = hooks_page()
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
        "- [What fits with what](matrix.md): which components compose, and why others do not.",
        "- [Proofs](proofs.md): the statements that `scm verify` tries, with their bounds.",
        "- [Checks](checks.md): what `scm check` and the tests of a plugin try, kind by kind.",
        "- [Hooks](hooks.md): how scmreg finds a plugin, and what it asks of one.",
        "- [Python API](api/index.md): the modules, their interfaces and functions.",
        "",
        "## Kinds",
        "",
    ]
    kinds = [
        (
            f"[`{kind}`]({kind}.md)",
            prose(first_line(inspect.getdoc(registry.registry(kind).interface))),
            str(len(registry.registry(kind))),
        )
        for kind in registry.KINDS
    ]
    lines += [*table(("kind", "what it is", "components"), kinds), "", "## Components", ""]
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
    lines += [
        f"Interface: [`scmreg.{kind}.{interface.__name__}`](api/{kind}.md). What it promises:"
        f" [checks](checks.md#{kind}).",
        "",
    ]
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
        made = cls()  # what a sum says of itself depends on its terms
        if made.needs_boundary:
            said.append("Needs `f(x, 0) = x`.")
        if made.space != "own":
            said.append(f"Its loss is the size of an error of {SPACES[made.space]}.")
        said.append(f"Sampled by [`{made.sampler}`](sampler.md#{made.sampler}) unless the recipe says otherwise.")
        if made.trainer:
            preferred = ", ".join(f"`{name}: {value}`" for name, value in made.trainer.items())
            said.append(f"Trainer options in place of the defaults: {preferred}.")
    if issubclass(cls, Weighting) and (space := registry.registry("weighting").create(cls.name).space) != "own":
        said.append(f"Stated for the error of {SPACES[space]}.")
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
        lines += [f"`{made.process.name}`, `{made.objective.title}`, `{made.data.name}`.", ""]
        lines += ["```bash", f"scm run --recipe {name}", "```", "", "```yaml", text.rstrip(), "```", ""]
    return "\n".join([*lines, ""])


# What fits with what ------------------------------------------------------------------------------------------------


def matrix_page() -> str:
    """Return the page of all compositions and pairs, as the components judge them."""
    lines = [
        "# What fits with what",
        "",
        "Every composition below was made and checked; none was run. The same is printed by `scm list --matrix`, with"
        " the reasons. Where two kinds are compared, all others have their defaults.",
        "",
        "## Process and parameterization",
        "",
        "Which objectives a composition can be trained by.",
        "",
        composition_table(),
        "",
        "[One process, many coordinates](../explanation/one-process.md#what-composes) says where poles and missing"
        " boundary conditions come from.",
    ]
    groups: dict[tuple[str, str], dict[tuple[str, str], str | None]] = {}
    for verdict in matrix.pairs() + matrix.shapes():
        above, left = verdict.names
        if (above, left) == ("network", "samples"):
            above, left = left, above
        cells = groups.setdefault((left, above), {})
        cells[verdict.names[left], verdict.names[above]] = verdict.reason
    for (left, above), cells in groups.items():
        columns = list(dict.fromkeys(column for _, column in cells))
        reasons = list(dict.fromkeys(reason for reason in cells.values() if reason))
        rows = [
            (f"`{name}`", *("yes" if (reason := cells[name, column]) is None else f"no ({reasons.index(reason) + 1})"
                            for column in columns))
            for name in dict.fromkeys(name for name, _ in cells)
        ]  # fmt: skip
        lines += ["", f"## {left.capitalize()} and {above}", "", *table((left, *columns), rows), ""]
        lines += [f"{number}. {prose(reason)}" for number, reason in enumerate(reasons, start=1)]
    return "\n".join([*lines, ""])


def composition_table() -> str:
    """Return which objectives take a parameterization under a process, and what keeps the others from it."""
    objectives = registry.registry("objective")
    refused: dict[tuple[str, str], list[str]] = {}
    for verdict in matrix.compositions():
        at = verdict.names["parameterization"], verdict.names["process"]
        refused.setdefault(at, [])
        if verdict.reason:
            refused[at].append(verdict.names["objective"])
    processes = registry.registry("process")

    def cell(name: str, process: str) -> str:
        kept = [objective for objective in objectives if objective not in refused[name, process]]
        if len(kept) == len(objectives):
            return "all"
        under = processes.create(process)
        pole = registry.registry("parameterization").create(name).pole(under)
        why = f"pole at {pole}" if pole else "`f(x, 0)` is not `x`"
        return f"{', '.join(f'`{objective}`' for objective in kept)}<br>{why}"

    rows = [
        (f"`{name}`", *(cell(name, process) for process in processes)) for name in dict.fromkeys(a for a, _ in refused)
    ]
    return "\n".join(table(("parameterization", *(f"`{process}`" for process in processes)), rows))


def proofs_page() -> str:
    """Return the page of the statements that `scm verify` tries."""
    rows = [
        (f"{prose(proof.statement)}<br>`{name}`", proof.equation, f"{proof.bound:g}" if proof.bound else "exact")
        for name, proof in PROOFS.items()
    ]
    lines = [
        "# Proofs",
        "",
        "`scm verify` tries each statement on random cases in float64, over every component that is registered, looks"
        " for the largest error, and prints it beside its bound; `scm verify NAME` tries one. A statement that fails is"
        " printed with the simplest case that was found.",
        "",
        *table(("statement and name", "reference", "bound"), rows),
    ]
    longer = ", ".join(f"`{name}`" for name, proof in PROOFS.items() if proof.full)
    if longer:
        lines += ["", f"Only with `--full`: {longer}."]
    return "\n".join([*lines, ""])


def checks_page() -> str:
    """Return the page of the conformance kit: the checks of all kinds, then those of each."""
    lines = [
        "# Checks",
        "",
        "`scm check NAME` tries these on a component, and so does `@conformance(Component)` in the tests of a plugin,"
        " on options that are drawn from what it declares. [Check a component](../how-to/check-a-component.md) says"
        " how.",
    ]
    for kind in ("", *registry.KINDS):
        found = [each for each in CHECKS.values() if kind in (each.kinds or ("",))]
        lines += ["", f"## {title(kind) if kind else 'All kinds'} {{ #{kind or 'all'} }}", ""]
        rows = [(f"`{each.name}`", prose(each.statement), str(each.examples)) for each in found]
        lines += table(("check", "what holds", "cases"), rows) if rows else ["Only those of all kinds."]
    return "\n".join([*lines, ""])


def hooks_page() -> str:
    """Return the page of the hooks, and of what else a plugin is found by."""
    version = ".".join(map(str, API_VERSION))
    lines = [
        "# Hooks",
        "",
        "A plugin is a module with a function for each hook that it implements, marked with `scmreg.hookimpl`. The"
        " tutorial [Your first plugin](../tutorial/first-plugin.md) makes one.",
        "",
        *table(
            ("what", "value"),
            [
                ("entry-point group", f"`{discovery.GROUP}`: each entry names a module"),
                ("without installation", "`--plugin FILE.py`"),
                (
                    "version of the plugin API",
                    f"{version}; a plugin states the one that it is written for, `scmreg_api = {API_VERSION}`",
                ),
                ("mark of an implementation", "`@scmreg.hookimpl`"),
            ],
        ),
        "",
        "[What you can rely on](../explanation/api-promise.md) says what the version promises, and how a hook is"
        " retired; [Write a component](../how-to/write-a-component.md) what happens to a plugin that is broken.",
    ]
    for name, hook in hooks().items():
        summary, _, rest = (inspect.getdoc(hook) or "").partition("\n")
        signature = f"def {name}{inspect.signature(hook)}".replace("'", "")
        lines += ["", f"## `{name}` {{ #{name} }}", "", prose(summary), "", "```python", signature, "```"]
        if rest.strip():
            lines += ["", prose(rest.strip())]
    return "\n".join([*lines, ""])


def hooks() -> dict[str, Callable[..., Any]]:
    """Return every hook by name."""
    mark = f"{hookspecs.PROJECT}_spec"
    return {name: found for name, found in vars(hookspecs).items() if hasattr(found, mark)}


def check_table() -> str:
    """Return what the conformance kit checks of every kind."""
    rows = [
        (f"[{kind}]({PAGE_OF_KINDS.format(kind=kind)})" if kind else "all", f"`{check.name}`", prose(check.statement))
        for kind in ("", *registry.KINDS)
        for check in CHECKS.values()
        if kind in (check.kinds or ("",))
    ]
    return "\n".join(table(("kind", "check", "what holds"), rows))


# One process, many coordinates --------------------------------------------------------------------------------------


class Conversion(NamedTuple):
    """The way of a process to TrigFlow's coordinates and back, in closed form."""

    t_hat: str
    """TrigFlow's time of the process's own."""
    t: str
    """The process's own time of TrigFlow's."""
    scale: str
    """``x/x̂`` at TrigFlow's time."""


CONVERSIONS = {
    "trigflow": Conversion("t", "t̂", "1"),
    "edm": Conversion("atan(t/sigma_data)", "sigma_data tan(t̂)", "1/cos(t̂)"),
    "flow": Conversion(
        "atan(t/(sigma_data (1 - t)))",
        "sigma_data sin(t̂)/(cos(t̂) + sigma_data sin(t̂))",
        "1/(cos(t̂) + sigma_data sin(t̂))",
    ),
    "vp": Conversion(
        "atan(sqrt(exp(B) - 1)/sigma_data), B = B(t)",
        "2 B/(beta_min + sqrt(beta_min² + 2 (beta_max - beta_min) B)), B = log(1 + sigma_data² tan(t̂)²)",
        "1/sqrt(cos(t̂)² + sigma_data² sin(t̂)²)",
    ),
    "cosine": Conversion(
        "atan(tan(pi t/2)/sigma_data)",
        "2/pi atan(sigma_data tan(t̂))",
        "1/sqrt(cos(t̂)² + sigma_data² sin(t̂)²)",
    ),
}
"""Closed forms by name of the process; `tests/docs/test_one_process.py` compares them with what the code computes."""
OTHERWISE = Conversion(
    "atan(sigma/(sigma_data alpha))", "where sigma/alpha = sigma_data tan(t̂)", "sqrt(alpha² + sigma²/sigma_data²)"
)
"""What holds for a process of which no closed form is listed."""
ENDLESS = 1e6
"""Noise level from which a process is said to reach pure noise: what is left of the data is lost in float32."""


def process_table() -> str:
    """Return the coefficients of every process, the range of its time and the noise level that it reaches."""
    rows = []
    for made in processes().values():
        end = f"{made.highest_level:.4g}, where t̂ = {trig_end(made):.4f}"
        reached = "pure noise" if made.highest_level > ENDLESS else end
        rows.append((link_to(made), in_lines(re.split(r", {2,}", made.formula)), reached))
    return "\n".join(table(("process", "coefficients and range of `t`", "reaches noise level"), rows))


def conversion_table() -> str:
    """Return how every process is converted to TrigFlow and back."""
    rows = []
    for name, made in processes().items():
        closed = CONVERSIONS.get(name, OTHERWISE)
        rows.append((link_to(made), *(in_lines(form.split(", ")) for form in closed)))
    return "\n".join(table(("process", "`t̂` of `t`", "`t` of `t̂`", "`x/x̂`"), rows))


def trig_end(process: Process) -> float:
    """Return TrigFlow's time at the end of a process."""
    return math.atan(process.highest_level / process.sigma_data)


def link_to(component: Component) -> str:
    """Return the name of a component as a link, from a page of another section."""
    return f"[`{component.name}`](../reference/{component.kind}.md#{component.name})"


def parameterization_table() -> str:
    """Return what the network of every parameterization predicts, and its data and noise predictions."""
    rows = [
        (
            f"[`{name}`](../reference/parameterization.md#{name})",
            prose(cls.summary()),
            in_lines(re.split(r", {2,}", cls.formula)),
        )
        for name, cls in registry.registry("parameterization").items()
        if name != "converted"
    ]
    return "\n".join(table(("parameterization", "the network", "predictions"), rows))


def sampler_table() -> str:
    """Return every sampler with its order and the number of its evaluations."""
    rows = []
    for name, cls in registry.registry("sampler").items():
        made: Sampler = cls().with_steps(10)
        rows.append(
            (
                f"[`{name}`](../reference/sampler.md#{name})",
                prose(cls.summary()),
                "no ODE" if made.order is None else str(made.order),
                str(made.evaluations),
            )
        )
    return "\n".join(table(("sampler", "what it does", "order", "evaluations in 10 steps"), rows))


def in_lines(parts: Iterable[str]) -> str:
    """Return pieces of code under each other, in a cell of a table."""
    return "<br>".join(f"`{part.strip()}`" for part in parts)


GENERATED: dict[str, Callable[[], str]] = {
    "checks": check_table,
    "processes": process_table,
    "conversions": conversion_table,
    "parameterizations": parameterization_table,
    "samplers": sampler_table,
    "compositions": composition_table,
    "coordinates": lambda: shown(
        "coordinates",
        "Three panels: alpha and sigma of every process over its own time; TrigFlow time over its own time, another"
        " curve for each; TrigFlow time over the noise level, one curve for all",
    ),
    "trajectory": lambda: shown(
        "trajectory",
        "Two panels: one trajectory from noise to data in the coordinates of every process, where the curves differ,"
        " and in TrigFlow coordinates, where they are one",
    ),
}
"""What a page may ask for by a line ``<!-- generated: NAME -->``."""


# Command line -------------------------------------------------------------------------------------------------------


def commands() -> dict[str, Any]:
    """Return the commands of the program by name, in its own order."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup), "scm has several commands"
    return dict(group.commands)


def command_line() -> str:
    """Return the page of the command line."""
    group = typer.main.get_command(app)
    rows = [(f"[`scm {name}`](#{name})", prose(marked(first_line(each.help)))) for name, each in commands().items()]
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
        lines += ["", f"## `scm {name}` {{ #{name} }}", "", prose(marked(each.help or "")), ""]
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
        if name == "bench":
            lines += benchmarks()
    return "\n".join([*lines, ""])


def benchmarks() -> list[str]:
    """Return the sections of the benchmarks and their options."""
    lines: list[str] = []
    for name, cls in BENCHMARKS.items():
        lines += ["", f"### `scm bench {name}` {{ #bench-{name} }}", "", prose(inspect.getdoc(cls) or ""), ""]
        lines += option_table(cls, "It has no options.")
    return lines


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
    text = re.sub(r"\[\w+\](.*?)\[/\w*\]", r"`\1`", text)
    return re.sub(r"(?<![`\w-])(--[a-z][a-z-]*)", r"`\1`", text)


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
    names = [(f"`scmreg.{name}`", home_of(name)) for name in locate("scmreg").__all__ if not name.startswith("__")]
    return "\n".join(
        [
            "# Python API",
            "",
            "The package gives its most used names directly; they are loaded when they are first used:",
            "",
            *table(("name", "documented at"), names),
            "",
            'The plural names are registries: `scmreg.processes["trigflow"]` is the class,'
            ' `scmreg.processes.create("trigflow", sigma_data=0.3)` a checked instance.',
            "",
            *table(("module", "what it is"), rows),
            "",
        ]
    )


def home_of(name: str) -> str:
    """Return a link to where a public name of the package is documented."""
    found = locate(f"scmreg.{name}")
    if isinstance(found, registry.Registry):
        return f"[{title(found.kind)}](../{found.kind}.md), and [`scmreg.registry.Registry`](registry.md)"
    if name in ("API_VERSION", "hookimpl"):
        return "[Hooks](../hooks.md)"
    return reference_to(f"{found.__module__}.{name}", f"{found.__module__}.{name}")


def api_page(module: str) -> str:
    """Return the page of one module."""
    return f"# scmreg.{module}\n\n::: scmreg.{module}\n"


# Text ---------------------------------------------------------------------------------------------------------------


def title(kind: str) -> str:
    """Return the title of the page of a kind."""
    plurals = {"process": "Processes", "data": "Data", "study": "Studies"}
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


def reference_to(path: str, name: str = "") -> str:
    """Return a link to the documentation of a Python object, or its name where it has none."""
    name = name or path.rpartition(".")[2]
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
