"""The command that measures: bench."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml
from rich.markup import escape

from scmreg import options
from scmreg.bench import BENCHMARKS, Benchmark, Untried
from scmreg.component import Options
from scmreg.errors import OptionError, did_you_mean
from scmreg.options import Option, options_of
from scmreg.recipe import load_yaml
from scmreg.registry import registry
from scmreg_cli import progress
from scmreg_cli.showing import console, option_table, plain, table

__all__ = ["bench", "list_benchmarks", "made_of", "show_benchmark"]


def list_benchmarks(*, as_json: bool) -> None:
    """Print the benchmarks."""
    if as_json:
        listed = [
            {"name": name, "summary": cls.summary(), "options": options.schema(cls)} for name, cls in BENCHMARKS.items()
        ]
        print(json.dumps(listed))
        return
    made = table("benchmark", "what it measures")
    for name, cls in BENCHMARKS.items():
        made.add_row(f"[bold]{name}[/]", plain(cls.summary()))
    out = console()
    out.print(made)
    out.print("The options of one: scm bench NAME --help", highlight=False)


def show_benchmark(name: str) -> None:
    """Print what a benchmark measures, and its options."""
    cls = _find(name)
    out = console()
    out.print(f"[bold]scm bench {cls.name}[/]\n")
    out.print(plain((cls.__doc__ or "").replace("\n    ", "\n").strip()))
    out.print("\nEach option is given as [bold]--option value[/], or as [bold]--set option=value[/].\n")
    out.print(option_table(options_of(cls)))


def bench(name: str, settings: Sequence[str], flags: Sequence[str], *, as_json: bool) -> None:
    """Run a benchmark and print a row for everything that was measured, then what was left out and why."""
    benchmark = made_of(name, settings, flags)
    rows = benchmark.run(progress.make())
    if as_json:
        print(json.dumps([row.to_json() for row in rows]))
        return
    out = console()
    measured = [row.cells() for row in rows if not isinstance(row, Untried)]
    if measured:
        made = table(*measured[0])
        for cells in measured:
            first, *others = cells.values()
            made.add_row(f"[bold]{escape(first)}[/]", *map(escape, others))
        out.print(made)
    for row in rows:
        if isinstance(row, Untried):
            what = " ".join(row.what.values())
            out.print(f"[yellow]?[/] {escape(what)}: {escape(row.reason)}", soft_wrap=True, highlight=False)
    told = f"{benchmark.describe()}; medians of {benchmark.rounds} rounds in turns"
    out.print(escape(told), highlight=False, soft_wrap=True)


def made_of(name: str, settings: Sequence[str], flags: Sequence[str]) -> Benchmark:
    """Return the benchmark of a command line.

    Args:
        name: its name.
        settings: what is given to ``--set``, each ``OPTION=VALUE``.
        flags: all words that the command itself does not know: ``--option value`` or ``--option=value``.

    Raises:
        OptionError: if there is no such benchmark, or option, or value.
    """
    cls = _find(name)
    values: dict[str, Any] = {}
    for setting in settings:
        option, equals, text = setting.partition("=")
        if not equals:
            raise OptionError([f"--set {setting}: write OPTION=VALUE"])
        _put(cls, values, option.strip().split("."), text)
    for path, text in _flags(cls, name, flags):
        _put(cls, values, path, text)
    return options.build(cls, values, name)


def _find(name: str) -> type[Benchmark]:
    if name not in BENCHMARKS:
        hint = "the name stands before the options" if name.startswith("-") else None
        raise OptionError(
            [f"no benchmark called '{name}'{did_you_mean(name, BENCHMARKS)}"],
            hint,
            f"benchmarks: {', '.join(BENCHMARKS)}",
        )
    return BENCHMARKS[name]


def _flags(cls: type[Benchmark], name: str, words: Iterable[str]) -> Iterator[tuple[list[str], str]]:
    """Read words as options of a benchmark; an option that is true or false needs no value."""
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("--") or word == "--":
            raise OptionError([f"'{word}' is no option of {name}: write --option value"], _listed(cls, name))
        flag, equals, text = word[2:].partition("=")
        path = flag.replace("-", "_").split(".")
        found = _option(cls, path)
        if found is None and path[0] not in _known(cls):
            raise OptionError(
                [f"{name} has no option '--{flag}'{did_you_mean(path[0], _known(cls))}"], _listed(cls, name)
            )
        switch = found is not None and found.type_text.startswith("true | false")
        if not equals:
            if switch and (not left or left[0].lower() not in ("true", "false")):
                text = "true"
            elif left and not left[0].startswith("--"):
                text = left.pop(0)
            else:
                raise OptionError([f"--{flag} needs a value"], f"scm bench {name} --help lists the options")
        yield path, text


def _known(cls: type[Options]) -> dict[str, Option]:
    return {option.name: option for option in options_of(cls)}


def _listed(cls: type[Benchmark], name: str) -> str:
    return f"options of {name}: {', '.join(f'--{option}'.replace('_', '-') for option in _known(cls))}"


def _option(cls: type[Options], path: Sequence[str]) -> Option | None:
    """Return the option at a path as far as it is known: that of a component by its default."""
    found = _known(cls).get(path[0])
    if found is None or len(path) == 1:
        return found
    if found.component is None or found.many or not isinstance(found.default, str):
        return None
    return _option(registry(found.component.kind)[found.default], path[1:])


def _put(cls: type[Benchmark], values: dict[str, Any], path: Sequence[str], text: str) -> None:
    """Set a value at a path; a component on the way that is written as a bare name becomes a mapping."""
    value = _read(_option(cls, path), text)
    for part in path[:-1]:
        inner = values.get(part, {})
        if not isinstance(inner, str | Mapping):
            raise OptionError([f"{part} is {inner!r}, which has no options to set"])
        values[part] = {"name": inner} if isinstance(inner, str) else dict(inner)
        values = values[part]
    values[path[-1]] = value


def _read(option: Option | None, text: str) -> Any:
    """Read a value as YAML; a list may also be written with commas alone."""
    if option is not None and (option.many or option.type_text.startswith("list of")):
        value = _yaml(text)
        if value is None or isinstance(value, list):
            return value
        return [_yaml(part) for part in text.split(",")]
    return _yaml(text)


def _yaml(text: str) -> Any:
    try:
        return load_yaml(text)
    except yaml.YAMLError:
        return text
