"""What every process promises."""

from __future__ import annotations

from scmreg.testing import BoundCheck, conformance
from scmreg_subvp import SubVP


@conformance(SubVP)
def test_sub_vp(check: BoundCheck) -> None:
    check()
