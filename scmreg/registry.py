"""The registries: one read-only mapping from names to component classes for every kind.

>>> processes["trigflow"]                           # the class
>>> processes.create("trigflow", sigma_data=0.3)    # a checked instance

Plugins are discovered at the first look-up, once in a process.
"""

from __future__ import annotations

import functools
import importlib
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from scmreg import discovery, restriction
from scmreg.component import Component
from scmreg.errors import OptionError, ScmError, UnknownComponentError, did_you_mean
from scmreg.kinds import KINDS

__all__ = ["KINDS", "Registry", "blame", "guests", "load_file", "plugins", "registry", "spelled_out"]

C = TypeVar("C", bound=Component)

_lock = threading.RLock()
_state: _State | None = None


class _State:
    """The components and the record of plugins, once discovered."""

    def __init__(self) -> None:
        self.taken: dict[tuple[str, str], str] = {}
        self.plugins: list[discovery.Plugin] = []
        self.components: dict[str, dict[str, type[Component]]] = {kind: {} for kind in KINDS}

    def add(self, plugin: discovery.Plugin) -> None:
        self.plugins.append(plugin)
        for component in plugin.components:
            self.components.setdefault(component.kind, {})[component.name] = component


def _loaded() -> _State:
    global _state
    with _lock:
        if _state is None:
            for kind in KINDS:  # before the plugins, so that the time of torch's import is not put down to one of them
                importlib.import_module(f"scmreg.{kind}")
            state = _State()
            for plugin in discovery.discover(state.taken):
                state.add(plugin)
            _state = state
        return _state


def plugins() -> tuple[discovery.Plugin, ...]:
    """Return the record of every plugin that was found, loaded or not."""
    return tuple(_loaded().plugins)


def load_file(path: str | Path) -> discovery.Plugin:
    """Add the components of a loose plugin file to the registries.

    Raises:
        PluginError: if the file cannot be loaded, or a name in it is taken.
    """
    state = _loaded()
    with _lock:
        plugin = discovery.load_file(path, state.taken)
        state.add(plugin)
    return plugin


def blame(error: BaseException) -> str | None:
    """Say through which third-party plugin an error came; ``None`` if through none.

    The innermost function of a plugin is named, and of which component it is, where it is a method of one.
    """
    if _state is None:
        return None
    owners = {
        component.__module__.partition(".")[0]: plugin
        for plugin in _state.plugins
        if not plugin.ours
        for component in plugin.components
    }
    owner, inside = None, ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        plugin = owners.get(str(frame.f_globals.get("__name__", "")).partition(".")[0])
        if plugin is None:
            continue
        component, function = frame.f_locals.get("self"), frame.f_code.co_name
        if isinstance(component, plugin.components):
            inside = f"`{function}` of {component.kind} '{component.name}'"
        elif plugin is not owner:
            inside = f"`{function}`"
        owner = plugin
    if owner is None:
        return None
    return (
        f"{inside} failed, which comes from plugin '{owner.name}' ({owner.source}): tell its author, or leave it out by"
        " --no-plugins"
    )


def guests(components: Iterable[Component]) -> dict[str, str]:
    """Return the third-party plugins that components come from: name, and distribution and version, or file."""
    used = {type(component) for component in components}
    return {plugin.name: plugin.source for plugin in plugins() if not plugin.ours and used & {*plugin.components}}


class Registry(Mapping[str, type[C]], Generic[C]):
    """The components of one kind by name, a read-only mapping in alphabetical order."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    @property
    def interface(self) -> type[C]:
        """The abstract class of the kind."""
        return cast("type[C]", getattr(importlib.import_module(f"scmreg.{self.kind}"), KINDS[self.kind]))

    def __getitem__(self, name: str) -> type[C]:
        known = self._known()
        if name not in known:
            broken = [plugin.name for plugin in plugins() if plugin.error]
            left_out = [plugin.name for plugin in plugins() if plugin.left_out]
            raise UnknownComponentError(
                f"no {self.kind} called '{name}'{did_you_mean(name, known)}",
                f"available: {', '.join(known) or 'none'}",
                f"plugins that failed to load: {', '.join(broken)} (see `scm doctor`)" if broken else None,
                f"plugins that were left out: {', '.join(left_out)} ({restriction.VARIABLE})" if left_out else None,
            )
        return known[name]

    def create(self, name: str, **options: Any) -> C:
        """Build the component registered as ``name``; ``a+b`` is a sum of objectives (`spelled_out`).

        Raises:
            UnknownComponentError: if no plugin registers the name.
            OptionError: naming every unknown option and refused value.
        """
        from scmreg.options import build

        tree = spelled_out(self.kind, {"name": name, **options})
        return build(self[tree.pop("name")], tree)

    def __contains__(self, name: object) -> bool:
        return name in self._known()

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())

    def __repr__(self) -> str:
        return f"<registry of {self.kind}: {', '.join(self)}>"

    def _known(self) -> dict[str, type[C]]:
        found = cast("dict[str, type[C]]", _loaded().components[self.kind])
        return dict(sorted(found.items()))


@functools.cache
def registry(kind: str) -> Registry[Any]:
    """Return the registry of a kind.

    Raises:
        UnknownComponentError: if there is no such kind.
    """
    if kind not in KINDS:
        raise UnknownComponentError(
            f"no kind called '{kind}'{did_you_mean(kind, KINDS)}", f"available: {', '.join(KINDS)}"
        )
    return Registry(kind)


def spelled_out(kind: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree of a component with a sum of objectives written out: ``a+b`` is the objective ``sum`` with the
    terms ``a`` and ``b``.

    Raises:
        OptionError: if a term of the sum is missing, or the terms are given once more as an option.
    """
    made = dict(tree)
    name = made.get("name")
    if kind != "objective" or not isinstance(name, str) or "+" not in name:
        return made
    terms = [term.strip() for term in name.split("+")]
    if not all(terms):
        raise OptionError([f"the sum '{name}' lacks a term"], "write objectives between the signs, such as scd+vsd")
    if "terms" in made:
        raise OptionError([f"the sum '{name}' is given terms a second time"], "name them in one place")
    return {**made, "name": "sum", "terms": terms}


def find(path: str) -> type[Component]:
    """Return the component class of a path such as ``process/trigflow``.

    Raises:
        ScmError: if the path has no such form, or nothing stands there.
    """
    kind, slash, name = path.partition("/")
    if not slash or not name:
        known = [f"{each}/{path}" for each in KINDS if path in registry(each)] or ["process/trigflow"]
        raise ScmError(f"'{path}' names no component", f"write KIND/NAME, such as {' or '.join(known)}")
    return cast("type[Component]", registry(kind)[name])
