"""The command that checks components: check."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.markup import escape

from scmreg import registry
from scmreg.component import Component
from scmreg.errors import OptionError, ScmError, UnknownComponentError, did_you_mean
from scmreg.options import build, options_of
from scmreg.testing import Outcome, checks_of, examine
from scmreg.testing.strategies import required
from scmreg_cli import progress
from scmreg_cli.showing import console, plain, table

__all__ = ["check", "named"]


def check(
    name: str | None,
    files: Sequence[Path],
    settings: Sequence[str],
    *,
    examples: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Check what a name stands for and print a row for each check; leave with status 1 if one fails."""
    components = named(name) if name is not None else _brought(files)
    options = _options(components, settings)
    cases = [(component, each) for component in components for each in checks_of(component)]
    outcomes: list[Outcome] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the cases are small: threads would only wait for each other
    try:
        with progress.make().task("check", len(cases)) as task:
            for component, each in cases:
                outcomes.append(examine(each, component, options=options, examples=examples, seed=seed))
                task.update(len(outcomes))
    finally:
        torch.set_num_threads(threads)
    if as_json:
        print(json.dumps([outcome.to_json() for outcome in outcomes]))
    else:
        _print(outcomes, several=len(components) > 1)
    if not all(outcome.holds for outcome in outcomes):
        sys.exit(1)


def named(name: str) -> tuple[type[Component], ...]:
    """Return the components that a name stands for: KIND/NAME, a bare name, or the name of a plugin.

    A plugin that brings every component of its own name stands for all that it brings.

    Raises:
        ScmError: if it stands for nothing, for several things, or for a plugin that was not loaded.
    """
    if "/" in name:
        return (registry.find(name),)
    found: dict[str, tuple[type[Component], ...]] = {
        f"{kind}/{name}": (registry.registry(kind)[name],) for kind in registry.KINDS if name in registry.registry(kind)
    }
    for plugin in registry.plugins():
        if plugin.name == name and plugin.error:
            raise ScmError(f"plugin '{name}' was not loaded: {plugin.error}", "`scm doctor` shows where it fails")
        if plugin.name != name:
            continue
        if {component for each in found.values() for component in each} <= set(plugin.components):
            return plugin.components
        found[f"the plugin of {_listed(plugin.components)}"] = plugin.components
    if not found:
        known = {each for kind in registry.KINDS for each in registry.registry(kind)}
        known |= {plugin.name for plugin in registry.plugins()}
        raise UnknownComponentError(
            f"no component and no plugin is called '{name}'{did_you_mean(name, known)}",
            "`scm list` and `scm plugins` list them; a file is named by --plugin FILE.py",
        )
    if len(found) > 1:
        raise ScmError(f"'{name}' is {' and '.join(found)}", "write KIND/NAME")
    return next(iter(found.values()))


def _listed(components: Sequence[type[Component]]) -> str:
    return ", ".join(f"{component.kind}/{component.name}" for component in components)


def _brought(files: Sequence[Path]) -> tuple[type[Component], ...]:
    """Return what plugin files bring."""
    if not files:
        raise OptionError(["name what to check: KIND/NAME, a plugin, or --plugin FILE.py"])
    sources = {str(path) for path in files}
    return tuple(
        component for plugin in registry.plugins() if plugin.source in sources for component in plugin.components
    )


def _options(components: Sequence[type[Component]], settings: Sequence[str]) -> dict[str, Any]:
    """Return the options that are given, each checked where it belongs."""
    given: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise OptionError([f"--set {setting} has no value"], "write OPTION=VALUE")
        given[name] = yaml.safe_load(value)
    if given and len(components) != 1:
        raise OptionError([f"--set is for one component, these are {_listed(components)}"], "name one by KIND/NAME")
    if given and set(required(components[0])) <= {*given, *_defaults(components[0])}:
        build(components[0], given)
    return given


def _defaults(component: type[Component]) -> set[str]:
    return {option.name for option in options_of(component)} - set(required(component))


def _print(outcomes: Sequence[Outcome], *, several: bool) -> None:
    out = console()
    made = table("", *["component"] * several, "check", "what holds", "cases", "seconds")
    for outcome in outcomes:
        made.add_row(
            "[yellow]?[/]" if outcome.untried else "[green]✓[/]" if outcome.holds else "[red]✗[/]",
            *[escape(_title(outcome))] * several,
            outcome.check.name,
            plain(outcome.check.statement),
            "not tried" if outcome.untried else str(outcome.cases),
            "" if outcome.untried else f"{outcome.seconds:.1f}",
        )
    out.print(made)
    for reason in dict.fromkeys((_title(outcome), outcome.untried) for outcome in outcomes if outcome.untried):
        out.print(f"[yellow]?[/] {escape(': '.join(map(str, reason)))}", soft_wrap=True)
    for outcome in outcomes:
        if outcome.failure is not None:
            out.print(f"[red]✗[/] {outcome.check.name}: {escape(outcome.failure)}", soft_wrap=True)
        if outcome.case is not None:
            out.print(f"  [dim]{escape(outcome.case)}[/]", soft_wrap=True)
    tried = [outcome for outcome in outcomes if not outcome.untried]
    held = sum(outcome.holds for outcome in tried)
    seconds = sum(outcome.seconds for outcome in tried)
    out.print(f"{held} of {len(tried)} checks hold; {seconds:.0f} seconds", highlight=False)


def _title(outcome: Outcome) -> str:
    return f"{outcome.component.kind}/{outcome.component.name}"
