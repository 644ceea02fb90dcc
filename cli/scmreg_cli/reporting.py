"""The commands that look back: report, compare."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from scmreg.compare import Comparison, Group
from scmreg.compare import compare as compared
from scmreg.compare_picture import check_free, draw_comparison
from scmreg.report import make_report
from scmreg_cli.showing import console, table

__all__ = ["compare", "report"]

NAME = 18
"""Characters in a line of the name of a run."""


def report(run: Path, *, output: Path | None, as_json: bool) -> None:
    """Write the report of a run and print where it is."""
    made = make_report(run, output)
    print(json.dumps(made.to_json()) if as_json else made.path)


def compare(runs: Sequence[Path], *, png: Path | None, as_json: bool) -> None:
    """Print where recipes differ, and the figures of comparable runs side by side."""
    if png is not None:
        check_free(png)
    made = compared(runs)
    if png is not None:
        draw_comparison(made, png)
    if as_json:
        print(json.dumps({**made.to_json(), "png": None if png is None else str(png)}))
        return
    out = console()
    _print_differences(made)
    for reason in made.reasons:
        out.print(f"[bold red]not comparable:[/] {escape(reason)}", soft_wrap=True)
    for group in made.groups:
        _print_figures(group, alone=len(made.groups) == 1)
    if png is not None:
        out.print(str(png), highlight=False, soft_wrap=True)


def _print_differences(made: Comparison) -> None:
    out = console()
    if not made.differences:
        out.print("The recipes are the same.\n")
        return
    shown = _table(["recipe"], made.records)
    for difference in made.differences:
        cells = [_value(difference.values, name) for name in made.records]
        shown.add_row(escape(difference.path), *cells, style="dim" if difference.operational else None)
    out.print(shown)
    if any(difference.operational for difference in made.differences):
        out.print("[dim]Options in grey leave the result alone.[/]\n")


def _print_figures(group: Group, *, alone: bool) -> None:
    out = console()
    if not alone:
        out.print(f"[bold]{escape(', '.join(group.runs))}[/], on {escape(group.data)}")
    if not group.rows:
        out.print("No metric applied.\n")
        return
    shown = _table(["figure", "of"], group.runs)
    before = ""
    for row in group.rows:
        first, cells = row.values.get(group.runs[0]), []
        for index, name in enumerate(group.runs):
            cells.append("" if name not in row.values else _figure(row.values[name], first if index else None))
        shown.add_row(f"[bold]{escape(row.figure)}[/]" if row.figure != before else "", row.title, *cells)
        before = row.figure
    out.print(shown)
    if len(group.runs) > 1:
        out.print("[dim]In brackets: the change against the first run.[/]")


def _table(words: Sequence[str], runs: Iterable[str]) -> Table:
    """Return an empty table with a column for each run, whose name is broken rather than cut."""
    made = table()
    for word in words:
        made.add_column(word, no_wrap=True, overflow="fold")
    for name in runs:
        made.add_column(escape("\n".join(textwrap.wrap(name, NAME))), overflow="fold")
    return made


def _figure(value: float, first: float | None) -> str:
    """Return a figure, with its change against that of the first run."""
    shown = f"{value:.4g}"
    if not first or value == first:
        return shown
    ratio = value / first
    change = f"{100 * (ratio - 1):+.1f} %" if 0.5 < ratio < 2 else f"×{ratio:.3g}"
    return f"{shown} [dim]({change})[/]"


def _value(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "[dim]–[/]"
    value = values[name]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = ", ".join(value)
    return escape(value if isinstance(value, str) else json.dumps(value))
