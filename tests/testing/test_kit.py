"""The kit itself: how cases are drawn and told, the decorator, checks of one's own."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import find, settings
from planted import CountsCalls, Demanding, Mislabelled, Plain, Straight, network

import scmreg
from scmreg import testing
from scmreg.component import Component
from scmreg.errors import DataError, OptionError
from scmreg.registry import KINDS, registry
from scmreg.testing import CHECKS, Check, Defect, Trial, check, checks_of, conformance, examine
from scmreg.testing import check as register
from scmreg.testing.strategies import any_options, near_options
from scmreg.types import Positive

EVERY = [cls for kind in KINDS for cls in registry(kind).values()]


class Scaled(Straight, name="scaled"):
    """Have two options."""

    width: Positive = 2.0
    """How wide."""
    bent: bool = False
    """Whether it is bent."""

    def read(self) -> object:
        """Raise in somebody else's code."""
        return json.loads("nothing")


def planted(run: object, examples: int = 200) -> Check:
    return Check("planted", ("process",), "Nothing is wide", run, examples)  # type: ignore[arg-type]


def test_a_counterexample_is_the_simplest_and_says_what_was_drawn() -> None:
    def narrow(trial: Trial) -> None:
        trial.expect(trial.component.width < 3, f"it is {trial.component.width:g} wide: make it narrower than 3")

    outcome = examine(planted(narrow), Scaled)
    assert outcome.failure == "process 'scaled': it is 3 wide: make it narrower than 3"
    assert outcome.case is not None
    assert outcome.case.startswith("with width 3; seed 0, batch 1")
    assert "bent" not in outcome.case  # it has nothing to do with it
    assert not outcome.to_json()["holds"]


def test_a_defect_of_the_defaults_is_told_as_one() -> None:
    outcome = examine(CHECKS["declared-order"], Mislabelled)
    assert outcome.case is not None
    assert outcome.case.startswith("with its default options")


def test_options_that_are_given_stay() -> None:
    seen = []
    outcome = examine(planted(lambda trial: seen.append(trial.component.width)), Scaled, options={"width": 7.0})
    assert outcome.holds
    assert set(seen) == {7.0}
    assert len(seen) == outcome.cases


def test_what_a_component_raises_is_told_with_its_place() -> None:
    def lost(trial: Trial) -> None:
        raise KeyError("lost")

    outcome = examine(planted(lost), Scaled)
    assert outcome.failure is not None
    assert "process 'scaled': it raises KeyError: 'lost' (" in outcome.failure
    assert "test_kit.py:" in outcome.failure
    called = examine(planted(lambda trial: trial.component.read()), Scaled)
    assert called.failure is not None
    assert "it raises JSONDecodeError" in called.failure
    assert "test_kit.py:" in called.failure, "not the line of the library that it called"


def test_what_it_refuses_with_drawn_options_is_no_defect() -> None:
    def refused(trial: Trial) -> None:
        trial.attempt(lambda: registry("process").create("nothing") if trial.component.bent else None)

    assert examine(planted(refused), Scaled).holds

    def always(trial: Trial) -> None:
        trial.component  # noqa: B018
        trial.attempt(lambda: registry("process").create("nothing"))

    outcome = examine(planted(always), Scaled)
    assert "it raises UnknownComponentError" in str(outcome.failure)


def test_nothing_that_can_be_drawn_is_a_failure() -> None:
    outcome = examine(planted(lambda trial: trial.assume(False)), Scaled)
    assert "no options could be drawn" in str(outcome.failure)


def test_a_slow_search_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["scmreg.testing.running"], "PATIENCE", 0.0)

    def wide(trial: Trial) -> None:
        trial.fail(f"{trial.number('size', 0, 1e9)}")

    outcome = examine(planted(wide), Scaled)
    assert outcome.failure is not None
    assert outcome.cases <= 2


def test_the_same_seed_tries_the_same_cases() -> None:
    def drawn(seed: int) -> list[float]:
        seen: list[float] = []
        examine(planted(lambda trial: seen.append(trial.component.width), 20), Scaled, seed=seed)
        return seen

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_what_cannot_be_tried_says_why() -> None:
    outcome = examine(CHECKS["process-ends"], Demanding)
    assert outcome.untried == "it needs a value for scale"
    assert outcome.to_json()["holds"] is None
    assert examine(CHECKS["process-ends"], Demanding, options={"scale": 2.0}).untried is None
    assert examine(CHECKS["documented"], Demanding).untried is None


@pytest.mark.parametrize("cls", EVERY[::20], ids=lambda cls: f"{cls.kind}/{cls.name}")
def test_defaults_are_the_simplest_options(cls: type[Component]) -> None:
    for strategy in (near_options(cls), any_options(cls)):
        assert find(strategy, lambda values: True, settings=settings(max_examples=5, database=None)) == {}


def test_options_are_drawn_of_every_sort() -> None:
    vp = near_options(scmreg.processes["vp"])
    assert 20 / 3 <= find(vp, lambda values: "beta_max" in values)["beta_max"] <= 60
    scd = near_options(scmreg.objectives["scd"])
    assert find(scd, lambda values: values.get("normalization") == "clip")
    assert find(scd, lambda values: values.get("weighting") == "adaptive")
    assert find(scd, lambda values: values.get("finite_difference") is not None)
    assert find(any_options(scmreg.processes["vp"]), lambda values: values.get("beta_max", 0) > 1e6)


def test_files_that_are_given_are_no_fault_of_the_component() -> None:
    with pytest.raises(DataError, match="no folder"):
        examine(CHECKS["items-as-stated"], scmreg.datasets["images"], options={"path": "nowhere"})


def test_data_that_refuse_their_own_defaults_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: object) -> None:
        raise DataError("there are none")

    monkeypatch.setattr(scmreg.datasets["swissroll"], "load", load)
    outcome = examine(CHECKS["items-as-stated"], scmreg.datasets["swissroll"])
    assert "data 'swissroll': it raises DataError: there are none" in str(outcome.failure)


def test_a_case_tells_what_it_was_tried_with() -> None:
    outcome = examine(CHECKS["no-write-in-forward"], network(CountsCalls))
    words = "with its default options; seed 0; samples of shape (2,); classes 0; weights of seed 0"
    assert outcome.case == words


def test_options_that_are_mappings_need_no_hash() -> None:
    class Mapped(Straight, name="mapped"):
        """Have a mapping for an option."""

        named: Mapping[str, float] = dataclasses.field(default_factory=dict)
        """Numbers by name."""
        words: tuple[str, ...] = ()
        """Some words."""

    for name in ("options-round-trip", "nothing-but-options"):
        outcome = examine(CHECKS[name], Mapped)
        assert outcome.holds, outcome.failure


# Checks of one's own ------------------------------------------------------------------------------------------------


def test_a_check_of_ones_own() -> None:
    try:

        @register("process", examples=3)
        def narrow_enough(trial: Trial) -> None:
            """It is narrower than a house."""

        assert CHECKS["narrow-enough"].statement == "It is narrower than a house"
        assert CHECKS["narrow-enough"] in checks_of(Scaled)
        assert CHECKS["narrow-enough"] not in checks_of(Mislabelled)
        with pytest.raises(ValueError, match="a check called 'narrow-enough' already"):
            register("process")(narrow_enough)
        with pytest.raises(ValueError, match="no kind called procession"):
            check("procession")
    finally:
        del CHECKS["narrow-enough"]


# pytest -------------------------------------------------------------------------------------------------------------


@conformance(Scaled, examples=3)
def test_scaled(check: testing.BoundCheck) -> None:
    check()


@conformance(Mislabelled, examples=2, expected_failures={"declared-order": "it claims the second order"})
class TestMislabelled:
    def test_it(self, check: testing.BoundCheck) -> None:
        check()


def test_a_defect_is_raised_with_its_case() -> None:
    bound = testing.BoundCheck(CHECKS["declared-order"], Mislabelled, {})
    with pytest.raises(Defect, match=r"set order = 1, or mend the step\n  with its default options; seed 0"):
        bound()


def test_an_expected_failure_must_be_a_check() -> None:
    with pytest.raises(
        OptionError, match="no check of samplers is called 'declared-oder', did you mean 'declared-order'"
    ):
        conformance(Mislabelled, expected_failures={"declared-oder": "it claims the second order"})


def test_what_must_be_given_is_asked_for() -> None:
    with pytest.raises(OptionError, match=r"it needs a value for scale\n  give conformance\(\.\.\., options="):
        testing.BoundCheck(CHECKS["process-ends"], Demanding, {})()


def test_an_expected_failure_that_passes_is_a_failure(tmp_path: Path) -> None:
    """In a process of its own, as a plugin author runs it; the class is registered nowhere."""
    (tmp_path / "test_linear.py").write_text(
        textwrap.dedent(
            '''
            import torch
            from scmreg.process import Coefficients, Process
            from scmreg.testing import conformance

            class Linear(Process, name="linear"):
                """Move from data to noise in a straight line."""
                t_max = 0.999
                def coefficients(self, t):
                    one = torch.ones_like(t)
                    return Coefficients(1 - t, t, one, one)

            expected = {
                "process-derivatives": "to be mended",
                "time-of-the-noise-level": "the bisection uses the derivatives",
                "monotone-snr": "it is believed to be wrong",
            }

            @conformance(Linear, expected_failures=expected, examples=3)
            def test_linear(check):
                check()
            '''
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rxXf", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "[XPASS(strict)] it is believed to be wrong" in done.stdout
    assert "XFAIL test_linear.py::test_linear[process-derivatives] - to be mended" in done.stdout
    assert "1 failed" in done.stdout
    assert "2 xfailed" in done.stdout


def test_a_component_that_cannot_run_here_is_skipped() -> None:
    class Elsewhere(Straight, name="elsewhere"):
        """Run on another machine."""

        @classmethod
        def unavailable(cls) -> str:
            return "needs another machine"

    def test(check: testing.BoundCheck) -> None:
        check()

    marked = conformance(Elsewhere)(test)
    (mark,) = marked.pytestmark  # type: ignore[attr-defined]
    skipped = {case.id for case in mark.args[1] if any(m.name == "skip" for m in case.marks)}
    assert skipped == {each.name for each in checks_of(Elsewhere) if each.computes}


def test_the_kit_comes_when_it_is_asked_for_and_pytest_with_the_decorator() -> None:
    code = (
        "import sys, scmreg\n"
        "sys.modules['pytest'] = None\n"
        "vp = scmreg.processes['vp']\n"
        "print('scmreg.testing' in sys.modules)\n"
        "import scmreg.testing\n"
        "try: scmreg.testing.conformance(vp)\n"
        "except scmreg.ScmError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "False\nscmreg.testing.conformance needs pytest\n  pip install pytest\n"


def test_outcomes_are_records() -> None:
    outcome = examine(CHECKS["output-like-the-input"], network(Plain), examples=1)
    assert dataclasses.replace(outcome, seconds=0.0).to_json() == {
        "component": "network/plain",
        "check": "output-like-the-input",
        "statement": "The output has shape and precision of the input, and is finite",
        "cases": 1,
        "seconds": 0.0,
        "holds": True,
        "failure": None,
        "case": None,
        "untried": None,
    }
