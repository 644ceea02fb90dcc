"""The one hook of a plugin, and the mark that implements it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from scmreg.component import Component

__all__ = ["hookimpl", "hookspec"]

PROJECT = "scmreg"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def scmreg_components() -> Iterable[type[Component]]:  # type: ignore[empty-body]
    """Return the component classes that the plugin adds."""
