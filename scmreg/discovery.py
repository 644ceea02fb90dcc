"""Finding plugins: ours first and fatal, everybody else's each in quarantine.

A plugin is a module or package with the hook ``scmreg_components``, announced by an entry point in the group
``scmreg`` or named as a loose file. A third-party plugin that fails to import, names an unknown hook, returns
something else than components or takes a name already taken is recorded with its reason and left out; everything
else goes on working. `scm plugins` and `scm doctor` show the record.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pluggy

from scmreg import hookspecs, options
from scmreg.component import Component
from scmreg.errors import PluginError
from scmreg.kinds import KINDS

__all__ = ["GROUP", "LOOSE", "Plugin", "discover", "load_file"]

GROUP = "scmreg"
LOOSE = "scmreg_plugin_"
"""Beginning of the module names of loose files."""
OURS = "scmreg"
"""The distribution whose plugins are part of this project: a fault in them is a bug, not a quarantine."""


@dataclass(frozen=True)
class Plugin:
    """What became of one plugin."""

    name: str
    source: str
    """Distribution and version, or the path of a loose file."""
    components: tuple[type[Component], ...] = ()
    error: str | None = None
    """Why it was left out; ``None`` if it was loaded."""
    detail: str = field(default="", repr=False)
    """The traceback of an import that failed."""
    seconds: float = 0.0
    """Time that the import took."""


def discover(taken: dict[tuple[str, str], str]) -> list[Plugin]:
    """Load every installed plugin.

    Args:
        taken: ``(kind, name)`` of every component so far and the plugin that brought it; grows.

    Raises:
        Exception: whatever a plugin of this distribution raises.
    """
    entries = list(importlib.metadata.entry_points(group=GROUP))
    entries.sort(key=lambda entry: (_distribution(entry)[0] != OURS, entry.name))
    plugins = []
    seen: set[tuple[str, str]] = set()
    for entry in entries:
        if (
            entry.name,
            entry.value,
        ) in seen:  # an editable install beside a built one lists its entry points twice
            continue
        seen.add((entry.name, entry.value))
        distribution, version = _distribution(entry)
        source = f"{distribution} {version}"
        plugins.append(_load(entry.name, source, entry.load, taken, fatal=distribution == OURS))
    return plugins


def load_file(path: str | Path, taken: dict[tuple[str, str], str]) -> Plugin:
    """Load a loose plugin file through the same hook.

    Raises:
        PluginError: if it cannot be loaded; a file that was asked for is not passed over.
    """
    path = Path(path)
    if not path.is_file():
        raise PluginError(f"no plugin file {path}", "--plugin takes the path of a Python file")

    def load() -> ModuleType:
        name = f"{LOOSE}{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    plugin = _load(path.stem, str(path), load, taken, fatal=False)
    if plugin.error:
        raise PluginError(f"plugin file {path}: {plugin.error}", plugin.detail or None)
    return plugin


def _distribution(entry: importlib.metadata.EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist is not None else ("unknown", "")


def _load(name: str, source: str, load: object, taken: dict[tuple[str, str], str], *, fatal: bool) -> Plugin:
    start = time.perf_counter()
    try:
        module = load()  # type: ignore[operator]
        components = _components(module)
        _check(components, taken)
    except (Exception, SystemExit) as error:  # SystemExit: a script that runs on import must not end ours
        if fatal:
            raise
        return Plugin(
            name,
            source,
            error=f"{type(error).__name__}: {error}" if not isinstance(error, PluginError) else error.what,
            detail="" if isinstance(error, PluginError) else traceback.format_exc(limit=-3),
            seconds=time.perf_counter() - start,
        )
    for component in components:
        taken[component.kind, component.name] = f"{name} ({source})"
    return Plugin(name, source, tuple(components), seconds=time.perf_counter() - start)


def _components(module: ModuleType) -> list[type[Component]]:
    """Ask one plugin for its components through a plugin manager of its own, so that no other is disturbed."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module)
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"names a hook that this scmreg does not have: {error}") from None
    results = manager.hook.scmreg_components()
    if not results:
        raise PluginError("has no hook: define scmreg_components() and mark it with @scmreg.hookimpl")
    listed: list[type[Component]] = []
    for result in results:
        if isinstance(result, type) or not isinstance(result, Iterable):
            raise PluginError(f"scmreg_components() returned {result!r}, not a list of component classes")
        listed += result
    return listed


def _check(components: list[type[Component]], taken: dict[tuple[str, str], str]) -> None:
    here: set[tuple[str, str]] = set()
    for component in components:
        if not (isinstance(component, type) and issubclass(component, Component)):
            raise PluginError(f"scmreg_components() returned {component!r}, which is no component class")
        key = component.kind, component.name
        if not component.name:
            raise PluginError(f'{component.__name__} has no name: class {component.__name__}(..., name="...")')
        if component.kind not in KINDS:
            raise PluginError(f"{component.__name__}: there is no kind '{component.kind}' (kinds: {', '.join(KINDS)})")
        if missing := sorted(getattr(component, "__abstractmethods__", ())):
            raise PluginError(f"{component.__name__} does not implement {', '.join(missing)}")
        options.options_of(component)  # resolves every annotation, here where a failure is contained
        if key in taken or key in here:
            owner = taken.get(key, "the same plugin")
            raise PluginError(f"{component.kind} '{component.name}' is already taken by {owner}")
        here.add(key)
