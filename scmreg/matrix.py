"""What fits with what, asked of the components themselves: every recipe here is composed and checked, none is run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scmreg.errors import CompositionError, OptionError
from scmreg.options import options_of
from scmreg.recipe import Recipe
from scmreg.registry import registry

__all__ = ["INNER", "SHAPES", "Verdict", "compositions", "pairs", "shapes"]

SHAPES: dict[str, tuple[int, ...]] = {"points": (2,), "grey images": (1, 32, 32), "colour images": (3, 32, 32)}
"""Samples that networks are asked about."""
INNER = ("weighting", "proposal", "schedule", "distance")
"""Kinds of component that are options of an objective, under the name of the kind."""


@dataclass(frozen=True)
class Verdict:
    """Whether some components fit together."""

    names: dict[str, str]
    """Name of the component of each kind."""
    reason: str | None
    """Why they do not; ``None`` if they do."""


def compositions() -> list[Verdict]:
    """Judge every process with every parameterization and every objective."""
    return [
        Verdict(names, _reason({kind: {"name": name} for kind, name in names.items()}))
        for process in registry("process")
        for parameterization in registry("parameterization")
        for objective in registry("objective")
        for names in [{"process": process, "parameterization": parameterization, "objective": objective}]
    ]


def pairs() -> list[Verdict]:
    """Judge every objective with every component that it may be given, and with every network and sampler; all else is
    left to its default.
    """
    verdicts = []
    for objective, cls in registry("objective").items():
        own = {option.name for option in options_of(cls)}
        for kind in ("network", *INNER, "sampler"):
            if kind in INNER and kind not in own:
                continue
            for name in registry(kind):
                tree: dict[str, Any] = {"objective": {"name": objective}}
                (tree["objective"] if kind in own else tree)[kind] = {"name": name}
                verdicts.append(Verdict({"objective": objective, kind: name}, _reason(tree)))
    return verdicts


def shapes() -> list[Verdict]:
    """Judge every network with samples of every form."""
    return [Verdict({"network": name, "samples": form}, reason) for name, form, reason in _shapes()]


def _shapes() -> Iterator[tuple[str, str, str | None]]:
    for name in registry("network"):
        network = registry("network").create(name)
        for form, shape in SHAPES.items():
            yield name, form, network.accepts(shape)


def _reason(tree: dict[str, Any]) -> str | None:
    try:
        Recipe.from_tree(tree).check()
    except (CompositionError, OptionError) as error:  # the latter of a component with an option that must be given
        return error.what
    return None
