"""Finding plugins: ours first and fatal, everybody else's each in quarantine.

A plugin is a module or package with the hook ``scmreg_components``, announced by an entry point in the group
``scmreg`` or named as a loose file. A third-party plugin that fails to import, is written for another scmreg, names an
unknown hook, returns something else than components or takes a name already taken is recorded with its reason and left
out; everything else goes on working. `scm plugins` and `scm doctor` show the record.

The environment variable ``SCMREG_PLUGINS`` restricts third parties to the plugins that it lists, by commas; empty, it
leaves them all out.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pluggy
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scmreg import API_VERSION, __version__, hookspecs, options, restriction
from scmreg.component import Component
from scmreg.errors import PluginError, did_you_mean
from scmreg.kinds import KINDS

__all__ = ["GROUP", "LOOSE", "SLOW", "Plugin", "discover", "load_file"]

GROUP = "scmreg"
LOOSE = "scmreg_plugin_"
"""Beginning of the module names of loose files."""
OURS = "scmreg"
"""The distribution whose plugins are part of this project: a fault in them is a bug, not a quarantine."""
SLOW = 1.0
"""Seconds of import from which a third-party plugin is called slow."""


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
    api: tuple[int, int] | None = None
    """Version of the plugin API that it says it is written for; ``None`` if it says none."""
    deprecations: tuple[str, ...] = ()
    """What it implements that a later version will not have."""
    left_out: bool = False
    """Whether it was not looked at, because ``SCMREG_PLUGINS`` does not name it."""

    @property
    def ours(self) -> bool:
        """Whether it comes with scmreg itself."""
        return self.source == f"{OURS} {__version__}"

    @property
    def slow(self) -> bool:
        """Whether a third party makes every command wait for its import."""
        return self.seconds >= SLOW and not self.ours


def discover(taken: dict[tuple[str, str], str]) -> list[Plugin]:
    """Load every installed plugin.

    Args:
        taken: ``(kind, name)`` of every component so far and the plugin that brought it; grows.

    Raises:
        Exception: whatever a plugin of this distribution raises.
    """
    entries = list(importlib.metadata.entry_points(group=GROUP))
    entries.sort(key=lambda entry: (_distribution(entry)[0] != OURS, entry.name, _distribution(entry)[0]))
    permitted = restriction.allowed()
    if permitted is not None and (unknown := sorted(permitted - {entry.name for entry in entries})):
        theirs = [entry.name for entry in entries if _distribution(entry)[0] != OURS]
        raise PluginError(
            f"{restriction.VARIABLE} names '{unknown[0]}', which is not installed{did_you_mean(unknown[0], theirs)}",
            f"installed plugins of others: {', '.join(dict.fromkeys(theirs)) or 'none'}",
        )
    plugins: list[Plugin] = []
    seen: set[tuple[str, str]] = set()
    names: dict[str, str] = {}
    for entry in entries:
        if (
            entry.name,
            entry.value,
        ) in seen:  # an editable install beside a built one lists its entry points twice
            continue
        seen.add((entry.name, entry.value))
        distribution, version = _distribution(entry)
        ours, source = distribution == OURS, f"{distribution} {version}"
        if not ours and permitted is not None and entry.name not in permitted:
            plugins.append(Plugin(entry.name, source, left_out=True))
        elif entry.name in names:
            taken_by = f"there is a plugin '{entry.name}' already, of {names[entry.name]}"
            plugins.append(Plugin(entry.name, source, error=taken_by))
        else:
            names[entry.name] = source
            plugins.append(_load(entry.name, source, _loader(entry), taken, fatal=ours))
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
        installed = "if it is installed, leave out --plugin" if "already taken" in plugin.error else None
        raise PluginError(f"plugin file {path}: {plugin.error}", installed, plugin.detail or None)
    return plugin


def _distribution(entry: importlib.metadata.EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist is not None else ("unknown", "")


def _loader(entry: importlib.metadata.EntryPoint) -> Callable[[], ModuleType]:
    """Return a function that imports what an entry point names, if its distribution is written for this scmreg."""

    def load() -> ModuleType:
        for line in (entry.dist.requires if entry.dist is not None else None) or ():
            requirement = Requirement(line)
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and canonicalize_name(requirement.name) == OURS and __version__ not in requirement.specifier:
                raise PluginError(
                    f"is written for scmreg {requirement.specifier}, and this is scmreg {__version__}: install a"
                    " version of one that fits the other"
                )
        module: ModuleType = entry.load()
        return module

    return load


def _load(
    name: str, source: str, load: Callable[[], ModuleType], taken: dict[tuple[str, str], str], *, fatal: bool
) -> Plugin:
    start = time.perf_counter()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what is printed on import is none of a command's output
            module = load()
            api = _api(module)
            components, deprecations = _components(module)
        _check(components, taken)
        if not fatal:
            _ask(components)
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
    return Plugin(name, source, tuple(components), None, "", time.perf_counter() - start, api, deprecations)


def _api(module: ModuleType) -> tuple[int, int] | None:
    """Return the version of the plugin API that a plugin says it is written for, if this scmreg has it."""
    said = getattr(module, "scmreg_api", None)
    if said is None:
        return None
    if not (isinstance(said, tuple) and len(said) == 2 and all(type(number) is int for number in said)):
        raise PluginError(f"scmreg_api is {said!r}: it is a pair of integers, such as scmreg_api = {API_VERSION}")
    (major, minor), (ours, last) = said, API_VERSION
    here = f"and this is scmreg {__version__} with {ours}.{last}"
    if (major, minor) > (ours, last):
        raise PluginError(f"is written for the plugin API {major}.{minor}, {here}: upgrade scmreg")
    if major < ours:
        raise PluginError(f"is written for the plugin API {major}.{minor}, {here}: upgrade the plugin")
    return major, minor


def _components(module: ModuleType) -> tuple[list[type[Component]], tuple[str, ...]]:
    """Ask one plugin for its components through a plugin manager of its own, so that no other is disturbed.

    Returns:
        The components, and what pluggy warns of: hooks, or arguments of hooks, that are deprecated.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        manager.register(module)
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"names a hook that this scmreg does not have: {error}") from None
    results = manager.hook.scmreg_components()
    if not results and manager.hook.scmreg_components.get_hookimpls():
        raise PluginError("scmreg_components() returned None, not a list of component classes")
    if not results:
        raise PluginError("has no hook: define scmreg_components() and mark it with @scmreg.hookimpl")
    listed: list[type[Component]] = []
    for result in results:
        if isinstance(result, type) or not isinstance(result, Iterable):
            raise PluginError(f"scmreg_components() returned {result!r}, not a list of component classes")
        listed += result
    return listed, tuple(f"{each.message} ({Path(each.filename).name}:{each.lineno})" for each in heard)


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


def _ask(components: list[type[Component]]) -> None:
    """Ask what every list of components asks, here where a failure is contained."""
    for component in components:
        reason = component.unavailable()
        if not (reason is None or isinstance(reason, str)):
            raise PluginError(f"{component.__name__}.unavailable() returned {reason!r}, neither a reason nor None")
