"""Discrete-time consistency: CT and CD, iCT, ECT, and sCM in discrete time, with what they are made of."""

from __future__ import annotations

from scmreg.component import Component
from scmreg.hookspecs import hookimpl
from scmreg_discrete.comparison import CD, CT, ECT, ICT
from scmreg_discrete.distances import L1, L2, LPIPS, PseudoHuber
from scmreg_discrete.proposals import DiscreteLogNormal, Karras
from scmreg_discrete.schedules import ECTMapping, EDMGrid, ICTCurriculum
from scmreg_discrete.scm import DSCD, DSCT

__all__ = [
    "CD",
    "CT",
    "DSCD",
    "DSCT",
    "ECT",
    "ICT",
    "L1",
    "L2",
    "LPIPS",
    "DiscreteLogNormal",
    "ECTMapping",
    "EDMGrid",
    "ICTCurriculum",
    "Karras",
    "PseudoHuber",
]


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    objectives: list[type[Component]] = [CT, CD, ICT, ECT, DSCT, DSCD]
    return [*objectives, EDMGrid, ICTCurriculum, ECTMapping, L2, L1, PseudoHuber, LPIPS, DiscreteLogNormal, Karras]
