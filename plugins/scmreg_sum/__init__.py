"""Sums of objectives: one model that is moved by several at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from scmreg.component import Component
from scmreg.data import DataSpec
from scmreg.errors import CompositionError, OptionError
from scmreg.hookspecs import hookimpl
from scmreg.objective import Loss, Nets, Objective, ObjectiveModule, Phase, Setup
from scmreg.process import Process
from scmreg.sampler import Sampler
from scmreg.types import Batch, NonNegative

__all__ = ["Sum"]

MAIN = "main"
"""The phase that moves the model: that of all terms is one step."""


class SumModule(ObjectiveModule):
    """The losses of the terms, which keep their modules and further phases.

    Term ``i`` is the submodule ``terms.i``; its phase ``p``, unless it is the main one, is called ``NAME_p`` after it.

    Raises:
        CompositionError: if the main phases of the terms cannot be one step.
    """

    def __init__(self, objective: Sum, setup: Setup) -> None:
        super().__init__(setup)
        self.objective = objective
        self.weights = {
            term.name: weight for term, weight in zip(objective.terms, objective.weights or (), strict=True)
        }
        built = [term.build(setup) for term in objective.terms]
        self.terms = nn.ModuleList(built)
        self.built = tuple(built)
        self.main = tuple(next((phase for phase in term.phases if phase.name == MAIN), None) for term in built)
        self.further: dict[str, tuple[int, str]] = {}
        self.phases = self._phases()

    def _phases(self) -> tuple[Phase, ...]:
        """Return one main phase, in the place of the first, and the further phases of all terms."""
        phases: dict[str, Phase] = {}
        for index, (term, module) in enumerate(zip(self.objective.terms, self.built, strict=True)):
            for phase in module.phases:
                if phase.name == MAIN:
                    phases.setdefault(MAIN, self._main())
                    continue
                name = f"{term.name}_{phase.name}"
                self.further[name] = index, phase.name
                phases[name] = replace(_moved(phase, index), name=name)
        return tuple(phases.values())

    def _main(self) -> Phase:
        """Return the step that all terms take together: as often as the term that takes it most often."""
        found = [_moved(phase, index) for index, phase in enumerate(self.main) if phase is not None]
        every = math.gcd(*(phase.every for phase in found))
        if all(phase.every != every for phase in found) or any(
            (phase.rate, phase.options) != (found[0].rate, found[0].options) for phase in found
        ):
            raise CompositionError(
                f"the terms of {self.objective.title} cannot move the model in one step: it is due every"
                f" {' and every '.join(str(phase.every) for phase in found)} steps, at the rates"
                f" {' and '.join(f'{phase.rate:g}' for phase in found)}, with the options"
                f" {' and '.join(str(dict(phase.options)) for phase in found)}",
                "give their main phases the same rate and options, and steps of which one divides the others",
            )
        nets = tuple(dict.fromkeys(name for phase in found for name in phase.nets))
        own = tuple(name for phase in found for name in phase.own)
        return replace(found[0], nets=nets, own=own, every=every)

    def loss(self, phase: str, nets: Nets, batch: Batch, step: int, rng: torch.Generator) -> Loss:
        """Return the weighted sum of the losses of the terms that are due, on one batch; or the loss of one term's
        further phase.
        """
        if phase in self.further:
            index, name = self.further[phase]
            return self._loss(index, name, nets, batch, step, rng)
        parts = {
            term.name: self._loss(index, MAIN, nets, batch, step, rng)
            for index, term in enumerate(self.objective.terms)
            if (main := self.main[index]) is not None and main.due(step)
        }
        total = torch.stack([self.weights[name] * part.total for name, part in parts.items()]).sum()
        return Loss(
            total,
            torch.cat([part.per_sample for part in parts.values()]),
            torch.cat([part.t_hat for part in parts.values()]),
            parts=parts,
        )

    def diagnose(
        self, phase: str, nets: Nets, batch: Batch, t_hat: Tensor, step: int, rng: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Return what the terms have to tell of the phase, each under the name of the term."""
        asked = [self.further[phase]] if phase in self.further else [(i, MAIN) for i in range(len(self.built))]
        told: dict[str, Tensor] = {}
        for index, name in asked:
            found = self.built[index].diagnose(name, self._nets(index, nets), batch, t_hat, step, rng)
            told |= {f"{self.objective.terms[index].name}_{figure}": value for figure, value in found.items()}
        return told

    def _loss(self, index: int, phase: str, nets: Nets, batch: Batch, step: int, rng: torch.Generator) -> Loss:
        return self.built[index].loss(phase, self._nets(index, nets), batch, step, rng)

    def _nets(self, index: int, nets: Nets) -> Nets:
        """Return the networks by the names that a term knows them by."""
        prefix = f"terms.{index}."
        own = {name.removeprefix(prefix): net for name, net in nets.items() if name.startswith(prefix)}
        return {"model": nets["model"], **own}


def _moved(phase: Phase, index: int) -> Phase:
    """Return the phase of a term with the paths that its modules have in the sum."""
    paths = {name: name if name == "model" else f"terms.{index}.{name}" for name in (*phase.nets, *phase.own)}
    return replace(phase, nets=tuple(paths[n] for n in phase.nets), own=tuple(paths[n] for n in phase.own))


class Sum(Objective, name="sum"):
    """Minimise several objectives at once: a weighted sum of their losses on the same batch, one step of the model.

    `--objective scd+vsd` is short for the sum of these two with weights 1. A term keeps what it trains beside the
    model, such as a second network, with steps of its own, whose learning rate is the same multiple of the model's as
    without the other terms. An option of a term is set under the term's name: ``objective.terms.scd.warmup``.
    Sampler and options of the trainer are those that the first term prefers; of the samplers, the first that is for
    few steps.
    """

    formula = "L = sum_i weight_i L_i"
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, Sec. 5.2 and Tables 4 and 6 (sCD + VSD, lambda_VSD = 1)"

    terms: tuple[Objective, ...] = Objective.defaults("scd", "vsd")
    """The objectives, each once. (sCM: sCD and VSD.)"""
    weights: tuple[NonNegative, ...] | None = None
    """Weight of each term, 1 if not given. A term of weight 0 is left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [term.name for term in self.terms]
        weights = (1.0,) * len(names) if self.weights is None else self.weights
        if reason := self._wrong(names, weights):
            raise OptionError([f"objective 'sum': {reason}"])
        kept = [(term, weight) for term, weight in zip(self.terms, weights, strict=True) if weight]
        object.__setattr__(self, "terms", tuple(term for term, _ in kept))
        object.__setattr__(self, "weights", tuple(weight for _, weight in kept))

    @staticmethod
    def _wrong(names: list[str], weights: tuple[float, ...]) -> str | None:
        """Say what is wrong with the terms; ``None`` if nothing is."""
        twice = next((name for name in names if names.count(name) > 1), None)
        if not names:
            return "terms is empty, name an objective at least"
        if "sum" in names:
            return "a term is a sum itself, write out its terms instead"
        if twice:
            return f"'{twice}' is a term twice, give it a greater weight instead"
        if len(weights) != len(names):
            return f"{len(weights)} weights for {len(names)} terms ({', '.join(names)}), give one for each"
        return None if any(weights) else "every weight is 0, so nothing would be trained"

    @property
    def title(self) -> str:
        """The names of the terms."""
        return "+".join(term.title for term in self.terms)

    @property
    def needs_boundary(self) -> bool:  # type: ignore[override]
        """Whether a term needs ``f(x, 0) = x``."""
        return any(term.needs_boundary for term in self.terms)

    @property
    def few_step(self) -> bool:  # type: ignore[override]
        """Whether a term trains a model for few-step sampling."""
        return any(term.few_step for term in self.terms)

    @property
    def gives(self) -> frozenset[str]:
        """The conditions that any of the terms passes to the network."""
        return frozenset().union(*(term.gives for term in self.terms))

    @property
    def sampler(self) -> str:  # type: ignore[override]
        """That of the first term which is for few steps, else of the first."""
        return self._sampled().sampler

    def _sampled(self) -> Objective:
        return next((term for term in self.terms if term.few_step), self.terms[0])

    def suited_sampler(self, process: Process) -> Sampler:
        """Return that of the first term which is for few steps, else of the first."""
        return self._sampled().suited_sampler(process)

    def drawn_by(self, sampler: Sampler, process: Process) -> str | None:
        """Refuse what a term does."""
        return next((reason for term in self.terms if (reason := term.drawn_by(sampler, process))), None)

    def accepts(self, spec: DataSpec) -> str | None:
        """Refuse what a term does."""
        return next((reason for term in self.terms if (reason := term.accepts(spec))), None)

    def taught_by(self, objective: Objective) -> str | None:
        """Refuse what a term does."""
        return next((reason for term in self.terms if (reason := term.taught_by(objective))), None)

    def judged_steps(self, asked: tuple[int, ...]) -> tuple[int, ...]:
        """Return those of the term that is sampled."""
        return self._sampled().judged_steps(asked)

    @property
    def trainer(self) -> Mapping[str, Any]:  # type: ignore[override]
        """What the first term prefers."""
        return self.terms[0].trainer

    @property
    def label_dropout(self) -> float:
        """The largest share of labels that a term withholds."""
        return max(float(getattr(term, "label_dropout", 0)) for term in self.terms)

    @property
    def needs_teacher(self) -> bool:
        """Whether a term does."""
        return any(term.needs_teacher for term in self.terms)

    @property
    def starts_from_teacher(self) -> bool:
        """Whether a term does."""
        return any(term.starts_from_teacher for term in self.terms)

    def fits(self, recipe: Any) -> str | None:
        """Refuse terms that want the model to start from different weights, or to be another function."""
        jumps = {term.name: "target_time" in term.gives for term in self.terms if term.few_step}
        if len(set(jumps.values())) > 1:
            one, two = ("', '".join(name for name, told in jumps.items() if told is kind) for kind in (False, True))
            return (
                f"the terms of {self.title} share one model, but '{two}' trains one that is told where to jump to, and"
                f" '{one}' one that is not: leave one of them out"
            )
        for option in ("segments", "guidance"):
            none = 1 if option == "segments" else None
            asked = {term.name: getattr(term, option, none) for term in self.terms if term.few_step}
            if len(set(asked.values())) > 1:
                listed = ", ".join(f"'{name}' {value or 'none'}" for name, value in asked.items())
                return (
                    f"the terms of {self.title} share one model, but their {option} differ ({listed}):"
                    f" leave out objective.terms.NAME.{option}, or train the term alone"
                )
        starts = {term.name: start for term in self.terms if (start := getattr(term, "start", None)) is not None}
        if "scratch" in starts.values() and set(starts.values()) != {"scratch"}:
            said = ", ".join(f"objective.terms.{name}.start is '{start}'" for name, start in starts.items())
            return f"the terms of {self.title} share one model, but {said}: set it to scratch for all, or for none"
        return None

    def build(self, setup: Setup) -> ObjectiveModule:
        """Return the module that computes the loss."""
        return SumModule(self, setup)


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [Sum]
