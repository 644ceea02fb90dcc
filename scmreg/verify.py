"""Running proofs: Hypothesis draws the cases and looks for the worst error."""

from __future__ import annotations

import contextlib
import math
import time
import traceback
from dataclasses import dataclass
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption

from scmreg.proofs import Case, Proof

__all__ = ["Outcome", "prove"]


@dataclass(frozen=True)
class Outcome:
    """What became of a proof."""

    proof: Proof
    worst: float
    """Largest relative error found."""
    cases: int
    """Cases that were tried."""
    seconds: float
    counterexample: str | None = None
    """The simplest case that was found to exceed the bound, in words; ``None`` if none does."""

    @property
    def holds(self) -> bool:
        """Whether every case was within the bound."""
        return self.counterexample is None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "name": self.proof.name,
            "statement": self.proof.statement,
            "equation": self.proof.equation,
            "bound": self.proof.bound,
            "worst": self.worst if math.isfinite(self.worst) else str(self.worst),
            "cases": self.cases,
            "seconds": round(self.seconds, 2),
            "holds": self.holds,
            "counterexample": self.counterexample,
        }


def _error(proof: Proof, case: Case) -> float:
    """Return the error of a case; infinite where a component raises, which is then part of the case's description."""
    try:
        return proof.check(case)
    except UnsatisfiedAssumption:
        raise
    except Exception as error:
        said, at = (str(error).splitlines() or [""])[0], traceback.extract_tb(error.__traceback__)[-1]
        case.words.append(f"{type(error).__name__}: {said} ({at.filename}:{at.lineno})")
        return math.inf


class _Refuted(AssertionError):
    """A case exceeds the bound."""


def prove(proof: Proof, *, cases: int | None = None, seed: int = 0) -> Outcome:
    """Try a proof on random cases; a case that exceeds the bound is shrunk to the simplest one that does.

    Args:
        proof: what to try.
        cases: how many; as many as the proof says if not given.
        seed: of the cases.
    """
    found = _Found()
    began = time.perf_counter()

    @hypothesis.seed(seed)
    @settings(
        max_examples=cases or proof.examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.target, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        case = Case(data.draw)
        error = _error(proof, case)
        found.cases += 1
        found.worst = max(found.worst, math.inf if math.isnan(error) else error)
        if not error <= proof.bound:
            found.counterexample = f"{'; '.join(case.words)}: error {error:.3g}"
            raise _Refuted
        # Lead the search to larger errors.
        hypothesis.target(math.log10(max(error, 1e-18)))

    with contextlib.suppress(_Refuted):
        attempt()
    return Outcome(proof, found.worst, found.cases, time.perf_counter() - began, found.counterexample)


@dataclass
class _Found:
    worst: float = 0.0
    cases: int = 0
    counterexample: str | None = None
