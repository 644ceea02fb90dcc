"""Studies: claims of the sCM and ECT papers, each tried within minutes on digits or on data of known law."""

from __future__ import annotations

from scmreg.component import Component
from scmreg.hookspecs import hookimpl
from scmreg_studies.methods import TuningEfficiency, VSDDiversity
from scmreg_studies.steps import CurseOfConsistency, Discretisation, Segments
from scmreg_studies.tangents import TangentNormalization, TangentStability
from scmreg_studies.weights import AdaptiveWeighting, SwissRollAdaptiveWeighting

__all__ = [
    "AdaptiveWeighting",
    "CurseOfConsistency",
    "Discretisation",
    "Segments",
    "SwissRollAdaptiveWeighting",
    "TangentNormalization",
    "TangentStability",
    "TuningEfficiency",
    "VSDDiversity",
]


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [
        TangentStability,
        TangentNormalization,
        AdaptiveWeighting,
        Discretisation,
        VSDDiversity,
        Segments,
        CurseOfConsistency,
        TuningEfficiency,
        SwissRollAdaptiveWeighting,
    ]
