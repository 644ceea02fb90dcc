"""Which plugins of third parties may be loaded: all, unless the environment names some."""

from __future__ import annotations

import os

__all__ = ["VARIABLE", "allowed"]

VARIABLE = "SCMREG_PLUGINS"
"""The environment variable that lists plugins by name, with commas between them; empty, it allows none."""


def allowed() -> frozenset[str] | None:
    """Return the plugins that the environment names; ``None`` where it names none and all are loaded."""
    said = os.environ.get(VARIABLE)
    return None if said is None else frozenset(name for part in said.split(",") if (name := part.strip()))
