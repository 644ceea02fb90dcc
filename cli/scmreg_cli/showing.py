"""The commands that read: list, show, plugins, doctor."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import json
import os
import platform
import re
import sys
from collections.abc import Iterable
from typing import Any

import rich.box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scmreg import matrix, registry, restriction
from scmreg.discovery import Plugin
from scmreg.errors import OptionError, WrongResultError
from scmreg.options import Option, options_of, schema

__all__ = ["doctor", "list_components", "list_plugins", "show_component", "show_matrix"]


def console() -> Console:
    """Return the console for data; wide where stdout is no terminal, so that nothing is cut."""
    return Console(width=None if sys.stdout.isatty() else 160)


def table(*columns: str, **keywords: Any) -> Table:
    """Return an empty table in the house style."""
    made = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, **keywords)
    for column in columns:
        made.add_column(column)
    return made


def list_components(kind: str | None, *, as_json: bool) -> None:
    """Print the components of one kind or of all."""
    kinds = [registry.registry(kind).kind] if kind else list(registry.KINDS)
    found = [(k, name, cls) for k in kinds for name, cls in registry.registry(k).items()]
    if as_json:
        listed = [
            {"kind": k, "name": name, "summary": cls.summary(), "unavailable": cls.unavailable()}
            for k, name, cls in found
        ]
        print(json.dumps(listed))
        return
    made = table("kind", "name", "what it does")
    for k, name, cls in found:
        reason = cls.unavailable()
        style = "dim" if reason else None
        made.add_row(
            k,
            f"[bold]{name}[/]",
            plain(cls.summary()) + (f" ({escape(reason)})" if reason else ""),
            style=style,
        )
    console().print(made)


def show_matrix(kind: str | None, *, as_json: bool) -> None:
    """Print which components fit together, and the reasons why others do not."""
    if kind is not None:
        raise OptionError([f"--matrix shows all kinds at once: leave out '{kind}'"])
    whole = matrix.compositions()
    others = matrix.pairs() + matrix.shapes()
    if as_json:
        print(json.dumps([{**verdict.names, "reason": verdict.reason} for verdict in whole + others]))
        return
    out, reasons = console(), Footnotes()
    out.print("[bold]process × parameterization[/]: every objective (✓), or those that fit")
    cells: dict[tuple[str, str], list[matrix.Verdict]] = {}
    for verdict in whole:
        cells.setdefault((verdict.names["process"], verdict.names["parameterization"]), []).append(verdict)
    processes = list(dict.fromkeys(process for process, _ in cells))
    made = table("", *processes)
    for parameterization in dict.fromkeys(name for _, name in cells):
        row = [_fitting(cells[process, parameterization], reasons) for process in processes]
        made.add_row(f"[bold]{parameterization}[/]", *row)
    out.print(made)
    groups: dict[tuple[str, str], list[matrix.Verdict]] = {}
    for verdict in others:
        left, above = verdict.names
        groups.setdefault((above, left), []).append(verdict)
    for (left, above), verdicts in groups.items():
        out.print(f"[bold]{left} × {above}[/]")
        columns = list(dict.fromkeys(verdict.names[above] for verdict in verdicts))
        made = table("", *columns)
        for name in dict.fromkeys(verdict.names[left] for verdict in verdicts):
            found = {verdict.names[above]: verdict for verdict in verdicts if verdict.names[left] == name}
            row = [reasons.mark(found[column].reason) if column in found else "" for column in columns]
            made.add_row(f"[bold]{name}[/]", *row)
        out.print(made)
    for number, reason in enumerate(reasons.listed, start=1):
        out.print(f"[dim]{number}[/] {escape(reason)}")


class Footnotes:
    """Reasons, numbered in the order in which they come up."""

    def __init__(self) -> None:
        self.listed: list[str] = []

    def mark(self, reason: str | None) -> str:
        """Return a tick, or a dash with the number of the reason."""
        return "[green]✓[/]" if reason is None else f"– {self.number(reason)}"

    def number(self, reason: str) -> str:
        """Return the number of a reason."""
        if reason not in self.listed:
            self.listed.append(reason)
        return f"[dim]({self.listed.index(reason) + 1})[/]"


def _fitting(verdicts: list[matrix.Verdict], reasons: Footnotes) -> str:
    """Name the objectives that fit, with the reason why the first other one does not."""
    fitting = [verdict.names["objective"] for verdict in verdicts if verdict.reason is None]
    refused = next((verdict.reason for verdict in verdicts if verdict.reason), None)
    return "[green]✓[/]" if refused is None else f"{', '.join(fitting) or '–'} {reasons.number(refused)}"


def show_component(path: str, *, as_json: bool) -> None:
    """Print everything that a component says of itself."""
    cls = registry.find(path)
    if as_json:
        print(
            json.dumps(
                {
                    "kind": cls.kind,
                    "name": cls.name,
                    "class": f"{cls.__module__}.{cls.__qualname__}",
                    "summary": cls.summary(),
                    "formula": cls.formula,
                    "reference": cls.reference,
                    "unavailable": cls.unavailable(),
                    "options": schema(cls),
                }
            )
        )
        return
    out = console()
    out.print(f"[bold]{cls.kind}/{cls.name}[/]  [dim]{cls.__module__}.{cls.__qualname__}[/]\n")
    out.print(plain(inspect.getdoc(cls) or ""))
    for title, text in (
        ("formula", cls.formula),
        ("reference", cls.reference),
        ("cannot run here", cls.unavailable()),
    ):
        if text:
            out.print(f"\n[bold]{title}[/]  {escape(text)}")
    options = options_of(cls)
    if not options:
        out.print("\nIt has no options.")
        return
    out.print()
    out.print(option_table(options))


def option_table(options: Iterable[Option]) -> Table:
    """Return the table of options: type, default, meaning."""
    made = table("option", "type", "default", "meaning")
    for option in options:
        made.add_row(
            f"[bold]{option.name}[/]",
            escape(option.type_text),
            escape(default_text(option)),
            plain(option.help.replace("\n", " ")),
        )
    return made


def plain(text: str) -> str:
    """Return the text of a docstring as a terminal shows it: without the marks of code and cross-references."""
    text = re.sub(r":[a-z]+:`~?([^`]*)`", lambda found: found[1].rpartition(".")[2], text)
    return escape(text.replace("`", ""))


def default_text(option: Option) -> str:
    """Say the default of an option."""
    if option.default is dataclasses.MISSING:
        return "required"
    if isinstance(option.default, tuple):
        return ", ".join(str(item) for item in option.default) or "none"
    if option.default is None:
        return "none"
    if option.values:
        return f"{option.default} ({', '.join(f'{name} {value}' for name, value in option.values.items())})"
    return str(option.default).lower() if isinstance(option.default, bool) else str(option.default)


def list_plugins(*, as_json: bool) -> None:
    """Print every plugin that was found."""
    found = registry.plugins()
    if as_json:
        listed = [
            {
                "name": plugin.name,
                "source": plugin.source,
                "components": [f"{c.kind}/{c.name}" for c in plugin.components],
                "error": plugin.error,
                "left_out": plugin.left_out,
                "api": plugin.api,
                "deprecations": plugin.deprecations,
                "seconds": round(plugin.seconds, 3),
                "slow": plugin.slow,
            }
            for plugin in found
        ]
        print(json.dumps(listed))
        return
    made = table("plugin", "from", "seconds", "components")
    for plugin in found:
        name = plugin.name if plugin.error or plugin.left_out else f"[bold]{plugin.name}[/]"
        seconds = f"[yellow]{plugin.seconds:.2f} slow[/]" if plugin.slow else f"{plugin.seconds:.2f}"
        made.add_row(name, plugin.source, seconds, _state_of(plugin), style="dim" if plugin.left_out else None)
    console().print(made)


def _state_of(plugin: Plugin) -> str:
    """Say what a plugin brings, or why not, and what of it is deprecated."""
    if plugin.left_out:
        return f"left out: not in {restriction.VARIABLE}"
    if plugin.error:
        return f"[red]not loaded:[/] {escape(plugin.error)}"
    listed = ", ".join(f"{c.kind}/{c.name}" for c in plugin.components)
    return "\n".join([listed, *(f"[yellow]deprecated:[/] {escape(each)}" for each in plugin.deprecations)])


PACKAGES = (
    "torch",
    "triton",
    "timm",
    "torchvision",
    "pluggy",
    "typer",
    "pydantic",
    "safetensors",
    "numpy",
    "scikit-learn",
)


def doctor(*, as_json: bool) -> None:
    """Print what is installed, what can run here, and what is wrong."""
    import torch

    versions = {name: _version(name) for name in PACKAGES}
    found = registry.plugins()
    broken = [plugin for plugin in found if plugin.error]
    slow = [plugin for plugin in found if plugin.slow]
    left_out = [plugin for plugin in found if plugin.left_out]
    deprecated = [plugin for plugin in found if plugin.deprecations]
    cannot = {
        f"{kind}/{name}": reason
        for kind in registry.KINDS
        for name, cls in registry.registry(kind).items()
        if (reason := cls.unavailable())
    }
    devices = [
        "cpu",
        *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())),
    ]
    if torch.backends.mps.is_available():
        devices.append("mps")
    report: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": devices,
        "packages": versions,
        "attention": _attention(),
        "components": {kind: len(registry.registry(kind)) for kind in registry.KINDS},
        "unavailable": cannot,
        "broken_plugins": {
            plugin.name: {"from": plugin.source, "error": plugin.error, "detail": plugin.detail} for plugin in broken
        },
        "slow_plugins": {plugin.name: round(plugin.seconds, 3) for plugin in slow},
        "deprecations": {plugin.name: plugin.deprecations for plugin in deprecated},
        "left_out_plugins": [plugin.name for plugin in left_out],
    }
    if as_json:
        print(json.dumps(report))
        return
    out = console()
    made = table("", "", show_header=False)
    made.add_row("python", f"{report['python']}, {report['platform']}, {report['cpus']} CPUs")
    made.add_row("devices", ", ".join(devices))
    made.add_row("packages", ", ".join(f"{name} {version or '[red]missing[/]'}" for name, version in versions.items()))
    for name, state in report["attention"].items():
        made.add_row(f"attention/{name}", escape(state))
    made.add_row("components", ", ".join(f"{count} {kind}" for kind, count in report["components"].items()))
    for path, reason in cannot.items():
        made.add_row("[yellow]cannot run here[/]", f"{path}: {escape(reason)}")
    for plugin in broken:
        made.add_row(
            "[red]plugin not loaded[/]",
            escape(f"{plugin.name} ({plugin.source}): {plugin.error}\n{plugin.detail}".rstrip()),
        )
    for plugin in slow:
        made.add_row(
            "[yellow]slow plugin[/]",
            f"{plugin.name} ({plugin.source}) takes {plugin.seconds:.2f} s to import, which every command waits for;"
            " what it imports could be imported where it is used",
        )
    for plugin in deprecated:
        for each in plugin.deprecations:
            made.add_row("[yellow]deprecated[/]", escape(f"{plugin.name} ({plugin.source}): {each}"))
    if left_out:
        listed = ", ".join(f"{plugin.name} ({plugin.source})" for plugin in left_out)
        made.add_row("plugins left out", f"{escape(listed)}: not in {restriction.VARIABLE}")
    if not cannot and not broken and not slow and not deprecated:
        made.add_row("[green]no problems[/]", "every plugin was loaded, every component can run here")
    out.print(made)


def _attention() -> dict[str, str]:
    """Say which backend ``auto`` takes and why, and what each was found to compute on this machine."""
    import torch

    from scmreg.attention import Attention, choose, operation_of
    from scmreg.selftest import examination

    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    q = torch.empty(1, 1, 4096, 64, device=device)
    name, reason = choose(q, q, q)
    states = {"auto": f"{name}: {reason}"}
    backends: registry.Registry[Attention] = registry.registry("attention")
    for backend, component in backends.items():
        if backend == "math" or component.unavailable():
            continue
        try:
            operation_of(backend)
        except WrongResultError as error:
            states[backend] = error.what
            continue
        except Exception as error:  # of whatever a third party's backend dies, the report goes on
            states[backend] = f"fails: {type(error).__name__}: {error}"
            continue
        found = examination(backend, component)
        listed = ", ".join(f"{name} {error:.0e}" for name, error in found.errors.items())
        states[backend] = f"tried on {found.device}, relative errors against math: {listed or 'it refused all'}"
    return states


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
