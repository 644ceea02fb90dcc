"""Every component that ships passes every check of its kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scmreg.component import Component
from scmreg.registry import KINDS, registry
from scmreg.testing import CHECKS, Check, checks_of, examine

QUICK = 4
"""Cases of a check in the quick suite; a check says itself how many it takes otherwise."""
EVERY = [cls for kind in KINDS for cls in registry(kind).values()]
CASES = [
    pytest.param(cls, check, id=f"{cls.kind}/{cls.name}-{check.name}")
    for cls in EVERY
    for check in checks_of(cls)
    if not (check.computes and cls.unavailable())
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options that have no default, by component."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
    np.savez(folder / "points.npz", x=rng.normal(size=(80, 3)), labels=rng.integers(0, 3, 80))
    return {
        "data/images": {"path": folder / "photos"},
        "data/array": {"path": folder / "points.npz", "shift": 0, "flip": False},
    }


def examined(cls: type[Component], check: Check, files: dict[str, Any], examples: int, seed: int) -> None:
    given = files.get(f"{cls.kind}/{cls.name}")
    outcome = examine(check, cls, options=given, examples=examples, seed=seed)
    assert outcome.untried is None
    assert outcome.holds, f"{outcome.failure}\n{outcome.case}"
    assert outcome.cases > 0


@pytest.mark.parametrize(("cls", "check"), CASES)
def test_it_holds(cls: type[Component], check: Check, files: dict[str, Any]) -> None:
    examined(cls, check, files, min(QUICK, check.examples), seed=1)


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "check"), CASES)
def test_it_holds_on_more_cases(cls: type[Component], check: Check, files: dict[str, Any]) -> None:
    examined(cls, check, files, 2 * check.examples, seed=2)


def test_every_check_is_tried() -> None:
    tried = {check.name for cls in EVERY for check in checks_of(cls) if not (check.computes and cls.unavailable())}
    assert tried == set(CHECKS)


def test_kinds_without_checks_of_their_own_have_those_of_all() -> None:
    for kind in KINDS:
        judging = [check for check in CHECKS.values() if not check.kinds or kind in check.kinds]
        assert len(judging) >= 4
        own = [check for check in judging if check.kinds]
        assert own or kind not in ("process", "network", "objective", "sampler")


def test_every_check_says_what_holds() -> None:
    for check in CHECKS.values():
        assert len(check.statement) > 20
        assert check.examples > 0
        assert set(check.kinds) <= set(KINDS)
    assert len({check.statement for check in CHECKS.values()}) == len(CHECKS)
