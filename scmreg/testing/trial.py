"""One case of a check: the component with drawn options, and what it is tried with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import torch
from hypothesis import strategies as st
from torch import Tensor

from scmreg import options
from scmreg.component import Component
from scmreg.errors import OptionError, ScmError
from scmreg.parameterization import Parameterization
from scmreg.process import Process
from scmreg.proofs import PROOFS, Case
from scmreg.proofs.case import C_NOISE, Draw
from scmreg.registry import registry
from scmreg.testing.checks import Defect
from scmreg.testing.strategies import any_options, is_path, near_options, required

__all__ = ["Trial"]

SHAPED = ("process", "parameterization", "objective", "sampler")
"""Kinds that are tried on the batch of the case; the others have samples of their own."""


class Trial(Case):
    """A case of a check. It asks Hypothesis for what it is made of, so that a failing one is shrunk and described.

    Where a proof asks for a component of the kind that is judged, it is given the one that is judged.

    Args:
        draw: Hypothesis' ``data.draw``.
        cls: the component that is judged.
        given: options of it that stay as they are.
    """

    def __init__(self, draw: Draw, cls: type[Component], given: Mapping[str, Any]) -> None:
        super().__init__(draw)
        self.cls, self.given = cls, dict(given)
        self._component: Component | None = None
        self._told: list[str] = []
        self._lent = False
        if cls.kind not in SHAPED:
            self.words[0] = self.words[0].partition(",")[0]  # the seed

    # The component ----------------------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """What the component is called in messages."""
        return f"{self.cls.kind} '{self.cls.name}'" if self.cls.name else self.cls.__name__

    @property
    def component(self) -> Any:
        """The component, with options near its defaults."""
        if self._component is None:
            self._component = self._build(near_options(self.cls))
        return self._component

    def widely(self) -> Any:
        """Return the component with options as far as their bounds reach, for what computes nothing."""
        for option in options.options_of(self.cls):
            if option.name in required(self.cls) and is_path(option):
                self.given.setdefault(option.name, Path("somewhere"))
        return self._build(any_options(self.cls))

    def default(self) -> Any:
        """Return the component with its default options."""
        return options.build(self.cls, self.given)

    @property
    def is_default(self) -> bool:
        """Whether no option of the component was drawn."""
        return not self._told

    def _build(self, strategy: st.SearchStrategy[dict[str, Any]]) -> Component:
        drawn = {name: value for name, value in self._draw(strategy).items() if name not in self.given}
        try:
            made = options.build(self.cls, {**self.given, **drawn})
        except OptionError:
            if not drawn:
                raise
            hypothesis.reject()
        self._told = [
            f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}" for name, value in drawn.items()
        ]
        return made

    def refuse(self, reason: str | None) -> None:
        """Try another case where the component says that it does not fit; by default it has to."""
        if reason is not None and not self.is_default:
            hypothesis.reject()

    def attempt(self, action: Callable[[], Any]) -> Any:
        """Do something that the component may refuse with a `ScmError`, unless it has its default options."""
        try:
            return action()
        except ScmError:
            if self.is_default:
                raise
            hypothesis.reject()

    # What it is tried with --------------------------------------------------------------------------------------

    def process(self, name: str | None = None, sigma_data: float | None = None) -> Process:
        """Return the process that is judged, when first asked for one; else choose a registered one."""
        if name is not None or self._lent or self.cls.kind != "process":
            return super().process(name, sigma_data)
        self._lent = True
        made: Process = self.component
        if sigma_data is not None:
            made = replace(made, sigma_data=sigma_data)
        self.reach = min(self.reach, 0.98 * math.atan(made.highest_level / made.sigma_data))
        return made

    def parameterization(self, told_of_time: Sequence[str] = C_NOISE) -> Parameterization:
        """Return the parameterization that is judged, or choose a registered one."""
        if self.cls.kind != "parameterization":
            return super().parameterization(told_of_time)
        made: Parameterization = self.component
        self.assume(getattr(made, "c_noise", told_of_time[0]) in told_of_time)
        return made

    def make(self, kind: str, names: Sequence[str] | None = None) -> Any:
        """Return the component that is judged if it is of the kind, or choose a registered one."""
        return self.component if kind == self.cls.kind else super().make(kind, names)

    def trigflow(self, process: Process) -> Process:
        """Return TrigFlow with the scale that the data of a process have."""
        made: Process = registry("process").create("trigflow", sigma_data=process.sigma_data)
        return made

    def time(self, process: Process, what: str = "t", low: float = 0.01, high: float = 0.99) -> Tensor:
        """Draw one time of a process, a share of its whole range, float64, shape ``(1,)``."""
        share = self._draw(st.floats(low, high))
        t = torch.tensor([share * process.t_max], dtype=torch.float64)
        self.words.append(f"{what} = {float(t):.6g}")
        return t

    def whole(self, what: str, low: int, high: int) -> int:
        """Draw a whole number between two bounds."""
        drawn = self._draw(st.integers(low, high))
        self.words.append(f"{what} {drawn}")
        return drawn

    # What is found ----------------------------------------------------------------------------------------------

    def fail(self, words: str) -> NoReturn:
        """Raise `Defect`: say what is wrong, and what to do."""
        raise Defect(f"{self.title}: {words}")

    def expect(self, holds: bool | Tensor, words: str) -> None:
        """Raise `Defect` with these words unless something holds."""
        if not bool(holds):
            self.fail(words)

    def prove(self, name: str, advice: str) -> None:
        """Try a proof on this case.

        Args:
            name: of the proof.
            advice: what to look at where it fails.
        """
        proof = PROOFS[name]
        error = proof.check(self)
        self.expect(
            error <= proof.bound,
            f"this does not hold: {proof.statement[0].lower()}{proof.statement[1:]} ({proof.equation}); it is off by"
            f" {error:.3g}, where rounding makes {proof.bound:.0g} at most: {advice}",
        )

    @property
    def circumstances(self) -> str:
        """The options that differ from the defaults, and what else was drawn, in words."""
        told = [*(f"{name} {value}" for name, value in self.given.items()), *self._told]
        with_options = f"with {', '.join(told)}" if told else "with its default options"
        return "; ".join([with_options, *self.words])
