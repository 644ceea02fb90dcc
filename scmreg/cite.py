"""What to cite: the literature behind the components of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scmreg.bibliography import resolve, software
from scmreg.component import Component
from scmreg.recipe import Recipe
from scmreg.registry import registry
from scmreg.run import recipe_of

__all__ = ["Citations", "cite"]


@dataclass(frozen=True)
class Citations:
    """The literature of a run, each work once, in the order of the recipe."""

    entries: dict[str, str] = field(default_factory=dict)
    """BibTeX by key; the last one is that of this library."""
    cited_by: dict[str, list[str]] = field(default_factory=dict)
    """The components (``kind/name``) that refer to each key."""
    without: dict[str, list[str]] = field(default_factory=dict)
    """References that no BibTeX entry is known for, and the components that have them."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        listed = [
            {"key": key, "bibtex": bibtex, "cited_by": self.cited_by.get(key, [])}
            for key, bibtex in self.entries.items()
        ]
        return {"entries": listed, "without": self.without}


def cite(folder: Path) -> Citations:
    """Return what a run refers to, finished or not; that of a teacher that was given as a run is included.

    Raises:
        RecipeError: if the folder is no run directory.
    """
    recipe = recipe_of(folder)
    used = list(_used(recipe))
    teacher = Path(recipe.teacher.source)
    if recipe.trains_with_teacher and recipe.teacher.source not in ("auto", "exact") and teacher.is_dir():
        used += _used(recipe_of(teacher))
    found = Citations()
    for component in dict.fromkeys(used):
        name = f"{component.kind}/{component.name}"
        entries, without = resolve(component)
        found.entries.update(entries)
        for key in entries:
            found.cited_by.setdefault(key, []).append(name)
        for part in without:
            found.without.setdefault(part, []).append(name)
    found.entries["scmreg"] = software()
    return found


def _used(recipe: Recipe) -> Iterator[type[Component]]:
    """Yield the classes of the components of a recipe, and the attention backend that its network names."""
    yield from (type(component) for component in recipe.components())
    backend = getattr(recipe.network, "attention", "auto")
    if backend != "auto":
        yield registry("attention")[backend]
