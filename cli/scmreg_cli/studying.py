"""The command that tries what papers claim: study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from scmreg import options
from scmreg.conduct import Findings, conduct
from scmreg.errors import OptionError
from scmreg.recipe import load_yaml
from scmreg.registry import registry
from scmreg.study import Study
from scmreg_cli import progress
from scmreg_cli.showing import console, plain, table

__all__ = ["list_studies", "made_of", "study"]


def list_studies(*, as_json: bool) -> None:
    """Print the studies."""
    known = registry("study")
    if as_json:
        print(
            json.dumps(
                [{"name": name, "summary": cls.summary(), "reference": cls.reference} for name, cls in known.items()]
            )
        )
        return
    made = table("study", "what is tried", "claimed in")
    for name, cls in known.items():
        made.add_row(f"[bold]{name}[/]", plain(cls.summary()), escape(cls.reference))
    out = console()
    out.print(made)
    out.print("The options of one: scm show study/NAME", highlight=False)


def study(name: str, settings: Sequence[str], *, out: Path | None, workers: int | None, as_json: bool) -> None:
    """Conduct a study and print a row for every condition, then every claim and whether it held."""
    chosen = made_of(name, settings)
    findings = conduct(chosen, out or Path("studies") / name, progress.make(), workers)
    if as_json:
        print(json.dumps(findings.to_json()))
        return
    _print(findings)


def made_of(name: str, settings: Sequence[str]) -> Study:
    """Return the study of a command line.

    Args:
        name: its name.
        settings: what is given to ``--set``, each ``OPTION=VALUE``.

    Raises:
        UnknownComponentError: if there is no such study.
        OptionError: if there is no such option, or value.
    """
    values = {}
    for setting in settings:
        option, equals, text = setting.partition("=")
        if not equals:
            raise OptionError([f"--set {setting}: write OPTION=VALUE, such as seeds=1"])
        values[option.strip()] = load_yaml(text)
    cls: type[Study] = registry("study")[name]
    return options.build(cls, values, name)


def _print(findings: Findings) -> None:
    chosen, results, out = findings.study, findings.results, console()
    made = table("condition", *map(escape, chosen.columns))
    for condition in results.conditions:
        cells = (results.told(condition, column) for column in chosen.columns)
        made.add_row(f"[bold]{escape(condition)}[/]", *map(escape, cells))
    out.print(made)
    out.print(
        f"[dim]Means over {len(results.seeds)} seeds, in brackets the smallest and the largest.[/]"
        if len(results.seeds) > 1
        else "[dim]One seed: there is no saying how much is chance.[/]"
    )
    for verdict in findings.verdicts:
        mark = "[green]held[/]" if verdict.held else "[red]not held[/]"
        out.print(f"\n{mark}: {escape(verdict.claim)}", soft_wrap=True, highlight=False)
        out.print(f"  {escape(verdict.because)}", soft_wrap=True, highlight=False)
    out.print(
        f"\n{findings.seconds:.0f} seconds of processor time; {findings.picture}", highlight=False, soft_wrap=True
    )
