"""Shell completion from a catalogue of components, cached by the versions of the installed plugins.

The catalogue is a JSON file of names, summaries and options, so that completing a word imports neither torch nor any
plugin; it is written at the first completion after an installation has changed, which takes a few seconds once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import typer

from scmreg import cache
from scmreg.errors import ScmError

__all__ = [
    "benchmark_settings",
    "benchmarks",
    "catalogue",
    "checkable",
    "components",
    "kinds",
    "names",
    "recipes",
    "runs",
    "settings",
]

Suggestions = list[tuple[str, str]]

FORMAT = 3
"""Version of the form of the catalogue."""
SECTIONS = ("trainer", "teacher", "evaluation")


def catalogue() -> dict[str, Any]:
    """Return names, summaries and options of every component, read from the cache if it is of this installation."""
    path = _cache_path()
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = _make()
        cache.write(path, json.dumps(found))
    return found


def names(kind: str) -> Callable[[str], Suggestions]:
    """Return a function that completes the names of components of a kind, and each name of a sum of objectives."""

    def complete(incomplete: str) -> Suggestions:
        before, plus, last = incomplete.rpartition("+") if kind == "objective" else ("", "", incomplete)
        left_out = {"sum", *before.split("+")} if plus else ()
        listed = catalogue()["components"][kind].items()
        found = _matching(((name, entry["summary"]) for name, entry in listed if name not in left_out), last)
        return [(f"{before}{plus}{name}", text) for name, text in found]

    return complete


def kinds(incomplete: str) -> Suggestions:
    """Complete a kind."""
    return _matching(((kind, "") for kind in catalogue()["components"]), incomplete)


def components(incomplete: str) -> Suggestions:
    """Complete KIND/NAME."""
    listed = catalogue()["components"].items()
    return _matching(
        ((f"{kind}/{name}", entry["summary"]) for kind, found in listed for name, entry in found.items()),
        incomplete,
    )


def checkable(incomplete: str) -> Suggestions:
    """Complete KIND/NAME, a name that one kind alone has, or a plugin of this installation."""
    listed = catalogue()["components"].values()
    owners = [(name, entry["summary"]) for found in listed for name, entry in found.items()]
    count = Counter(name for name, _ in owners)
    alone = [(name, text) for name, text in owners if count[name] == 1]
    plugins = sorted({entry.name for entry in importlib.metadata.entry_points(group="scmreg")} - set(count))
    return components(incomplete) + _matching([*alone, *((name, "a plugin") for name in plugins)], incomplete)


def recipes(incomplete: str) -> Suggestions:
    """Complete the name of a packaged recipe."""
    return _matching(((name, "") for name in catalogue()["recipes"]), incomplete)


def benchmarks(incomplete: str) -> Suggestions:
    """Complete the name of a benchmark."""
    return _matching(((name, entry["summary"]) for name, entry in catalogue()["benchmarks"].items()), incomplete)


def benchmark_settings(context: typer.Context, incomplete: str) -> Suggestions:
    """Complete OPTION= of the benchmark that is named."""
    known = catalogue()
    chosen = known["benchmarks"].get(context.params.get("name"), {})
    return _matching(_options("", chosen.get("options", {}), known), incomplete)


def runs(incomplete: str) -> Suggestions:
    """Complete a run directory under the folder that is being typed, or under ``runs``."""
    base = Path(incomplete.rpartition("/")[0] or "/") if "/" in incomplete else Path("runs")
    if not base.is_dir():
        return []
    found = sorted(str(child) for child in base.iterdir() if (child / "recipe.yaml").is_file())
    return _matching(((path, "") for path in found), incomplete)


def settings(context: typer.Context, incomplete: str) -> Suggestions:
    """Complete PATH= of an option of the components that are chosen so far."""
    known = catalogue()
    found: list[tuple[str, str]] = []
    given = context.params
    objective = given.get("objective") or known["defaults"]["objective"]
    inner: dict[str, Any] = {f"objective.{kind}": given.get(kind) for kind in ("weighting", "proposal")}
    samples = objective
    if "+" in objective:
        given, inner["objective.terms"] = given | {"objective": "sum"}, objective.split("+")
        samples = next((term for term in inner["objective.terms"] if term in known["few_step"]), objective)
    defaults = known["defaults"] | {"sampler": known["samplers"].get(samples, known["defaults"]["sampler"])}
    for kind, default in defaults.items():
        chosen = known["components"][kind].get(given.get(kind) or default, {})
        found += _options(f"{kind}.", chosen.get("options", {}), known, inner)
    for section in SECTIONS:
        found += _options(f"{section}.", known["sections"][section], known)
    return _matching(found, incomplete)


def _options(
    prefix: str, options: dict[str, Any], known: dict[str, Any], given: Mapping[str, Any] = MappingProxyType({})
) -> Iterable[tuple[str, str]]:
    """Name the options under a prefix; ``given`` are the components, or lists of them, that were chosen by path."""
    for name, entry in options.items():
        yield f"{prefix}{name}=", entry["help"]
        if entry["kind"] and isinstance(entry["default"], str):
            chosen = given.get(f"{prefix}{name}") or entry["default"]
            inner = known["components"][entry["kind"]].get(chosen, {}).get("options", {})
            yield from _options(f"{prefix}{name}.", inner, known)
        elif entry["list"]:
            for item in given.get(f"{prefix}{name}") or entry["defaults"]:
                inner = known["components"][entry["list"]].get(item, {}).get("options", {})
                yield from _options(f"{prefix}{name}.{item}.", inner, known)
        elif entry["section"]:
            yield from _options(f"{prefix}{name}.", known["sections"][entry["section"]], known)


def _matching(found: Iterable[tuple[str, str]], incomplete: str) -> Suggestions:
    return [(name, text) for name, text in found if name.startswith(incomplete)]


def _cache_path() -> Path:
    """Return where the catalogue of this installation is kept."""
    entries = []
    for entry in importlib.metadata.entry_points(group="scmreg"):
        version = entry.dist.version if entry.dist else ""
        try:
            spec = importlib.util.find_spec(entry.module.partition(".")[0])
            changed = Path(spec.origin).stat().st_mtime_ns if spec and spec.origin else 0
        except (ImportError, OSError, ValueError):
            changed = 0
        entries.append((entry.name, entry.value, version, changed))
    digest = hashlib.sha256(repr((FORMAT, sorted(entries))).encode()).hexdigest()[:16]
    return cache.folder() / f"catalogue-{digest}.json"


def _make() -> dict[str, Any]:
    from scmreg import bench, recipe, registry
    from scmreg.options import options_of

    def described(cls: Any) -> dict[str, Any]:
        return {
            option.name: {
                "help": option.help.partition("\n")[0],
                "kind": option.component.kind if option.component and not option.many else None,
                "list": option.component.kind if option.component and option.many else None,
                "section": option.section.__name__.lower() if option.section else None,
                "default": option.default if isinstance(option.default, str) else None,
                "defaults": list(option.default) if option.many and isinstance(option.default, tuple) else [],
            }
            for option in options_of(cls)
        }

    default = recipe.Recipe()
    objectives = {}
    for name in registry.registry("objective"):
        with suppress(ScmError):  # one with an option that must be given has no defaults to complete
            objectives[name] = registry.registry("objective").create(name)
    return {
        "components": {
            kind: {
                name: {"summary": cls.summary(), "options": described(cls)}
                for name, cls in registry.registry(kind).items()
            }
            for kind in registry.KINDS
        },
        "sections": {name: described(type(getattr(default, name))) for name in SECTIONS},
        "defaults": {kind: getattr(default, kind).name for kind in registry.KINDS if hasattr(default, kind)},
        "samplers": {name: objective.sampler for name, objective in objectives.items()},
        "few_step": [name for name, objective in objectives.items() if objective.few_step],
        "recipes": list(recipe.packaged()),
        "benchmarks": {
            name: {"summary": cls.summary(), "options": described(cls)} for name, cls in bench.BENCHMARKS.items()
        },
    }
