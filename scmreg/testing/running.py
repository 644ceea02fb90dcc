"""Running checks: Hypothesis draws the cases, and shrinks one that fails to the simplest one that does."""

from __future__ import annotations

import contextlib
import inspect
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable, UnsatisfiedAssumption

from scmreg.component import Component
from scmreg.errors import DataError
from scmreg.testing.checks import Check, Defect
from scmreg.testing.strategies import required
from scmreg.testing.trial import Trial

__all__ = ["Outcome", "examine", "obstacle"]

PATIENCE = 20.0
"""Seconds after which a failing case is simple enough."""


@dataclass(frozen=True)
class Outcome:
    """What became of a check of a component."""

    check: Check
    component: type[Component]
    cases: int = 0
    """Cases that were tried."""
    seconds: float = 0.0
    failure: str | None = None
    """What is wrong and what to fix, in words; ``None`` if nothing is."""
    case: str | None = None
    """The simplest case that was found to fail, in words."""
    untried: str | None = None
    """Why it was not tried; ``None`` if it was."""

    @property
    def holds(self) -> bool:
        """Whether nothing was found."""
        return self.failure is None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "component": f"{self.component.kind}/{self.component.name}",
            "check": self.check.name,
            "statement": self.check.statement,
            "cases": self.cases,
            "seconds": round(self.seconds, 2),
            "holds": None if self.untried else self.holds,
            "failure": self.failure,
            "case": self.case,
            "untried": self.untried,
        }


def obstacle(check: Check, component: type[Component], options: Mapping[str, Any] | None = None) -> str | None:
    """Say why a check cannot be tried here; ``None`` if it can."""
    if check.computes and (reason := component.unavailable()):
        return f"it cannot run here: {reason}"
    if check.computes and (missing := [name for name in required(component) if name not in (options or {})]):
        return f"it needs a value for {', '.join(missing)}"
    return None


def examine(
    check: Check,
    component: type[Component],
    *,
    options: Mapping[str, Any] | None = None,
    examples: int | None = None,
    seed: int = 0,
) -> Outcome:
    """Try a check on a component with drawn options.

    Args:
        check: what to try.
        component: the class, registered or not.
        options: options that are not drawn, such as a path that has no default.
        examples: number of cases; as many as the check says if not given.
        seed: of the cases.
    """
    fixed = dict(options or {})
    if reason := obstacle(check, component, fixed):
        return Outcome(check, component, untried=reason)
    found = _Found()
    began = time.perf_counter()

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples or check.examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        trial = Trial(data.draw, component, fixed)
        failure = _failure(check, trial)
        found.cases += 1
        if failure is None:
            return
        found.failure, found.case = failure, trial.circumstances
        found.since = found.since or time.perf_counter()
        if time.perf_counter() - found.since > PATIENCE:
            raise _Enough
        raise _Failed

    try:
        with contextlib.suppress(_Failed, _Enough):
            attempt()
    except Unsatisfiable:
        found.failure = (
            f"{component.kind} '{component.name}': no options could be drawn that it takes and that fit: does it refuse"
            " its own defaults?"
        )
    return Outcome(check, component, found.cases, time.perf_counter() - began, found.failure, found.case)


def _failure(check: Check, trial: Trial) -> str | None:
    """Return what is wrong in one case; what the component raises is wrong too, and is told with its place."""
    try:
        check.run(trial)
    except UnsatisfiedAssumption:
        raise
    except Defect as defect:
        return str(defect)
    except Exception as error:
        if isinstance(error, DataError) and trial.given and trial.is_default:
            raise  # files that are given are no fault of the component
        said, frames = (str(error).splitlines() or [""])[0], traceback.extract_tb(error.__traceback__)
        own = inspect.getsourcefile(type(trial.component)) or ""
        at = next((frame for frame in reversed(frames) if frame.filename == own), frames[-1])
        return f"{trial.title}: it raises {type(error).__name__}: {said} ({at.filename}:{at.lineno})"
    return None


class _Failed(AssertionError):
    """A case fails."""


class _Enough(BaseException):
    """A failing case is simple enough; no `Exception`, so that Hypothesis lets it through."""


@dataclass
class _Found:
    cases: int = 0
    failure: str | None = None
    case: str | None = None
    since: float = 0.0
