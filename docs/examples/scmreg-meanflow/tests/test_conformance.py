"""What every objective and every sampler promises."""

from __future__ import annotations

from scmreg.testing import BoundCheck, conformance
from scmreg_meanflow import MeanFlow, MeanFlowSampler


@conformance(MeanFlow)
def test_objective(check: BoundCheck) -> None:
    check()


@conformance(MeanFlowSampler)
def test_sampler(check: BoundCheck) -> None:
    check()
