"""What a check is, and the list of all."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scmreg.component import Component
from scmreg.kinds import KINDS

if TYPE_CHECKING:
    from scmreg.testing.trial import Trial

__all__ = ["CHECKS", "Check", "Defect", "check", "checks_of"]


class Defect(AssertionError):
    """What a check found wrong with a component, in words that say what to fix."""


@dataclass(frozen=True)
class Check:
    """Something that holds of every component of some kinds."""

    name: str
    kinds: tuple[str, ...]
    """Kinds that it judges; all if empty."""
    statement: str
    """What holds, in one sentence."""
    run: Callable[[Trial], None]
    """Tries one case; raises `Defect` where it does not hold."""
    examples: int
    """Cases that are tried."""
    computes: bool = True
    """Whether the component has to be able to run on this machine."""

    def judges(self, component: type[Component]) -> bool:
        """Whether it has something to say of a component."""
        return not self.kinds or component.kind in self.kinds


CHECKS: dict[str, Check] = {}
"""Every check by name: those of all kinds first, then kind by kind."""


def check(
    *kinds: str, examples: int = 20, computes: bool = True
) -> Callable[[Callable[[Trial], None]], Callable[[Trial], None]]:
    """Register a function as a check under its own name; the first line of its docstring is the statement.

    Args:
        kinds: kinds that it judges; all if none is given.
        examples: cases that are tried unless somebody asks for more.
        computes: whether the component has to be able to run on this machine.

    Raises:
        ValueError: if there is a check of this name, or no such kind.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"no kind called {', '.join(unknown)} (kinds: {', '.join(KINDS)})")

    def register(run: Callable[[Trial], None]) -> Callable[[Trial], None]:
        name = run.__name__.replace("_", "-")
        if name in CHECKS:
            raise ValueError(f"there is a check called '{name}' already")
        statement = (inspect.getdoc(run) or "").partition("\n")[0].rstrip(".")
        CHECKS[name] = Check(name, kinds, statement, run, examples, computes)
        return run

    return register


def checks_of(component: type[Component]) -> tuple[Check, ...]:
    """Return the checks that judge a component, in the order of `CHECKS`."""
    return tuple(each for each in CHECKS.values() if each.judges(component))
