"""The public surface: what others may build on, as text that can be compared.

Run as a program, it writes `surface.txt` beside it and prints the digest that docs/changelog.md has to name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import scmreg
from scmreg import hookspecs
from scmreg.kinds import KINDS

__all__ = ["RECORD", "digest", "surface"]

RECORD = Path(__file__).with_name("surface.txt")
CORE = ("types", "coordinates", "registry", "rng", "errors", "testing")
MODULES = ("scmreg", *(f"scmreg.{kind}" for kind in KINDS), *(f"scmreg.{name}" for name in CORE))
"""Modules whose ``__all__`` is public; docs/explanation/api-promise.md lists them."""


def surface() -> str:
    """Return every public name with its signature, one a line."""
    lines = [f"API_VERSION {scmreg.API_VERSION}", *(f"kind {kind}: {name}" for kind, name in KINDS.items())]
    for name, spec in sorted(vars(hookspecs).items()):
        if options := getattr(spec, f"{hookspecs.PROJECT}_spec", None):
            warned = " deprecated" if options["warn_on_impl"] or options["warn_on_impl_args"] else ""
            lines.append(f"hook {name}{_signature(spec)}{warned}")
    for module in MODULES:
        loaded = importlib.import_module(module)
        for name in sorted(loaded.__all__):
            lines += _described(f"{module}.{name}", getattr(loaded, name))
    return "\n".join(lines) + "\n"


def digest(text: str) -> str:
    """Return the digest of a surface that the change log names."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _described(path: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        yield f"{path} class({', '.join(base.__name__ for base in value.__bases__)})"
        if "__init__" in vars(value) and not dataclasses.is_dataclass(value):
            yield f"{path}.__init__{_signature(value.__init__)}"
        for name, member in sorted(_members(value).items()):
            yield f"{path}.{name}{_member(member)}"
    elif inspect.isroutine(value):
        yield f"{path}{_signature(value)}"
    else:
        yield f"{path} {type(value).__name__}"


def _members(cls: type) -> dict[str, Any]:
    """Return the public members that a class of this project defines or inherits from another of it."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("scmreg"):
            found |= {name: member for name, member in vars(base).items() if not name.startswith("_")}
            found |= {name: f": {_words(said)}" for name, said in inspect.get_annotations(base).items()}
    for field in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        found[field.name] = f": {_words(field.type)}{'' if required else ' = ...'}"
    return {name: member for name, member in found.items() if not name.startswith("_")}


def _member(member: Any) -> str:
    if isinstance(member, str) and member.startswith(": "):
        return member
    if isinstance(member, property):
        return f" property{_signature(member.fget)}"
    if isinstance(member, classmethod | staticmethod):
        return f" {type(member).__name__}{_signature(member.__func__)}"
    return _signature(member) if inspect.isroutine(member) else " = ..."


def _signature(function: Any) -> str:
    return _words(inspect.signature(function))


def _words(value: Any) -> str:
    """Return a signature or an annotation as text that is the same in every process and version of Python."""
    text = re.sub(r" at 0x[0-9a-f]+", "", str(value))
    return text.replace("'", "")


if __name__ == "__main__":
    RECORD.write_text(surface(), encoding="utf-8")
    print(digest(surface()))
