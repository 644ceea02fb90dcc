"""The checks as tests of pytest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from scmreg.component import Component
from scmreg.errors import OptionError, UnavailableError, did_you_mean
from scmreg.testing.checks import Check, Defect, checks_of
from scmreg.testing.running import examine

__all__ = ["BoundCheck", "conformance"]

T = TypeVar("T")


@dataclass(frozen=True)
class BoundCheck:
    """A check of one component, to be called."""

    check: Check
    component: type[Component]
    options: Mapping[str, Any]
    examples: int | None = None
    seed: int = 0

    def __call__(self) -> None:
        """Try it.

        Raises:
            Defect: with what is wrong, what to fix and the simplest case that was found.
        """
        outcome = examine(self.check, self.component, options=self.options, examples=self.examples, seed=self.seed)
        if outcome.untried:
            raise OptionError(
                [f"{self.component.__name__} cannot be checked: {outcome.untried}"],
                "give conformance(..., options={...})",
            )
        if outcome.failure is not None:
            raise Defect(f"{outcome.failure}\n  {outcome.case}")


def conformance(
    component: type[Component],
    *,
    expected_failures: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    examples: int | None = None,
    seed: int = 0,
) -> Callable[[T], T]:
    """Parametrize a test over the checks that judge a component; the test calls its argument ``check``.

    >>> @conformance(MyProcess)
    ... def test_my_process(check):
    ...     check()

    On a class it parametrizes every method. A check of a component that cannot run on this machine is skipped, with
    the reason.

    Args:
        component: the class; it need not be registered.
        expected_failures: names of checks that are known to fail, and why; one that passes after all is a failure.
        options: options that are not drawn, such as a path that has no default.
        examples: number of cases of each check; as many as it says if not given.
        seed: of the cases.

    Raises:
        OptionError: if an expected failure names no check of this kind.
        UnavailableError: if pytest is not installed.
    """
    try:
        import pytest
    except ImportError:
        raise UnavailableError("scmreg.testing.conformance needs pytest", "pip install pytest") from None
    known = {check.name: check for check in checks_of(component)}
    expected = dict(expected_failures or {})
    for name in expected:
        if name not in known:
            raise OptionError(
                [f"no check of {component.kind}s is called '{name}'{did_you_mean(name, known)}"],
                f"checks: {', '.join(known)}",
            )
    cases = []
    for name, check in known.items():
        marks = []
        if check.computes and (reason := component.unavailable()):
            marks.append(pytest.mark.skip(reason=reason))
        elif name in expected:
            marks.append(pytest.mark.xfail(reason=expected[name], strict=True, raises=Defect))
        bound = BoundCheck(check, component, dict(options or {}), examples, seed)
        cases.append(pytest.param(bound, id=name, marks=marks))
    parametrized: Callable[[T], T] = pytest.mark.parametrize("check", cases)  # type: ignore[assignment]
    return parametrized
