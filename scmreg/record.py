"""What a run directory says of a run, finished or not: read without its model, its data or its plugins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scmreg import checkpoint
from scmreg.errors import RunError
from scmreg.log import BINS, METRICS
from scmreg.preview import previews
from scmreg.recipe import read

__all__ = ["Record", "figures_of", "name_of", "read_record", "rows", "title_of"]


@dataclass(frozen=True)
class Record:
    """A run directory, as far as it can be told without computing anything."""

    folder: Path
    recipe: dict[str, Any]
    """The resolved recipe, as plain values."""
    summary: dict[str, Any] | None
    """Results of the evaluation; ``None`` where there was none."""
    metrics: list[dict[str, Any]]
    """Lines of ``metrics.jsonl``."""
    bins: list[dict[str, Any]]
    """Lines of ``bins.jsonl`` (:meth:`scmreg.diagnostics.Bins.lines`)."""
    previews: dict[int, Path]
    """Pictures of samples by step."""
    meta: dict[str, Any] | None
    """Metadata of the newest checkpoint; ``None`` where there is none."""

    @property
    def name(self) -> str:
        """Name of the run: that of its folder."""
        return self.folder.resolve().name

    @property
    def step(self) -> int:
        """Steps taken, as far as is known."""
        steps = [int(line["step"]) for line in self.metrics[-1:]]
        return max([*steps, int(self.meta["step"]) if self.meta else 0])

    @property
    def steps(self) -> int:
        """Steps that the recipe asks for."""
        return int(self.recipe["trainer"]["steps"])

    @property
    def finished(self) -> bool:
        """Whether training has reached its last step."""
        return self.step >= self.steps


def read_record(path: str | Path) -> Record:
    """Read a run directory.

    Raises:
        RunError: if it is none, or a file of it cannot be read.
        RecipeError: if its recipe cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        what = "is a file, not a run directory" if folder.exists() else "does not exist"
        raise RunError(f"{folder} {what}", "runs are kept under runs/; `scm run` makes one")
    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder} is no run directory: it has no recipe.yaml", "runs are kept under runs/")
    recipe = read(folder)
    missing = [name for name in ("process", "objective", "data", "trainer") if name not in recipe]
    if missing or not isinstance(recipe["trainer"], Mapping) or not isinstance(recipe["trainer"].get("steps"), int):
        raise RunError(f"{folder / 'recipe.yaml'} is not the recipe of a run: it is not whole")
    newest = checkpoint.latest(folder / "checkpoints")
    return Record(
        folder=folder,
        recipe=recipe,
        summary=_summary(folder / "summary.json"),
        metrics=_lines(folder / METRICS),
        bins=_lines(folder / BINS),
        previews=previews(folder),
        meta=None if newest is None else _mapping(newest / "meta.json", "step", "recipe"),
    )


def name_of(node: Any) -> str:
    """Return the name of a component in the tree of a recipe."""
    return str(node.get("name")) if isinstance(node, Mapping) else str(node)


def title_of(node: Any) -> str:
    """Return what people call a component in the tree of a recipe: its name, or those of the terms of a sum."""
    terms = node.get("terms") if isinstance(node, Mapping) else None
    return "+".join(title_of(term) for term in terms) if isinstance(terms, list) and terms else name_of(node)


def rows(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the results of an evaluation, best known first: title and figures, with ``nfe`` where samples were drawn.

    Args:
        summary: what :func:`scmreg.run.evaluate_run` returned.
    """
    found: list[tuple[str, Mapping[str, Any]]] = []
    if summary.get("floor"):
        found.append(("real data, two halves", summary["floor"]))
    if summary.get("teacher"):
        found.append(("teacher" if summary["student"] else summary["objective"], summary["teacher"]))
    return found + [(summary["objective"], entry) for entry in summary["student"]]


def figures_of(results: list[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return the names of the figures in the results, in order."""
    return list(dict.fromkeys(key for _, entry in results for key in entry if key != "nfe"))


def _summary(path: Path) -> dict[str, Any] | None:
    return _mapping(path, "objective", "student") if path.exists() else None


def _mapping(path: Path, *needed: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict) or not set(needed) <= found.keys():
        raise RunError(f"{path} cannot be read: it lacks {', '.join(needed)}")
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    """Read a log. Its last line may be half written: the run may be going on."""
    if not path.exists():
        return []
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    found = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            line["step"] = int(line["step"])
        except (ValueError, KeyError, TypeError):
            if number == len(texts):
                break
            raise RunError(f"{path} cannot be read: line {number} is no record with a step") from None
        found.append(line)
    return found
