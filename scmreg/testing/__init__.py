"""The conformance kit: checks of what each kind of component promises, for pytest and for ``scm check``.

A plugin is checked in three lines:

>>> @conformance(MyProcess)
... def test_my_process(check):
...     check()

Checks are chosen by the kind of the component. The options it is tried with are drawn by Hypothesis from what it
declares; a case that fails is shrunk to the simplest one that does, and told in words that say what to fix.
"""

from __future__ import annotations

from scmreg.testing import (  # noqa: F401  each registers its checks
    any_kind,
    attentions,
    datasets,
    distances,
    measures,
    networks,
    objectives,
    parameterizations,
    processes,
    proposals,
    samplers,
    weightings,
)
from scmreg.testing.checks import CHECKS, Check, Defect, check, checks_of
from scmreg.testing.decorator import BoundCheck, conformance
from scmreg.testing.running import Outcome, examine
from scmreg.testing.trial import Trial

__all__ = [
    "CHECKS",
    "BoundCheck",
    "Check",
    "Defect",
    "Outcome",
    "Trial",
    "check",
    "checks_of",
    "conformance",
    "examine",
]
