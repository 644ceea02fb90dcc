"""What every process promises."""

from __future__ import annotations

from scmreg_subvp import SubVP

from scmreg.testing import BoundCheck, conformance


@conformance(SubVP)
def test_sub_vp(check: BoundCheck) -> None:
    check()
