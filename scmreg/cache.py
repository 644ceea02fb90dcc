"""What is kept between runs of the program, and can be thrown away at any time."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["folder", "write"]


def folder() -> Path:
    """Return the folder of caches: ``$XDG_CACHE_HOME/scmreg``, or the temporary folder where that cannot be written."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if not os.access(root if root.exists() else Path.home(), os.W_OK):
        root = Path(tempfile.gettempdir())
    return root / "scmreg"


def write(path: Path, text: str) -> None:
    """Write a file at once, whatever other processes do; nothing happens where it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        pass
