"""Every proof holds, and each notices the defect that it is there for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import scmreg
from scmreg import coordinates, law, sampler, tangent, weighting
from scmreg.denoiser import Denoiser
from scmreg.parameterization import Parameterization
from scmreg.process import Coefficients, Process
from scmreg.proofs import PROOFS, Case, Proof
from scmreg.proofs import discrete as discrete_proofs
from scmreg.proofs import training as training_proofs
from scmreg.sampler import OdeSampler
from scmreg.verify import prove

QUICK = 60
"""Cases in the test suite; `scm verify` tries more."""

PROCESSES = scmreg.processes
SAMPLERS = scmreg.samplers
UNIT = scmreg.parameterizations["unit-variance"]


@pytest.mark.parametrize("name", [name for name, proof in PROOFS.items() if not proof.full])
def test_it_holds(name: str) -> None:
    proof = PROOFS[name]
    outcome = prove(proof, cases=min(QUICK, proof.examples), seed=1)
    assert outcome.holds, outcome.counterexample
    assert outcome.cases > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", PROOFS)
def test_it_holds_on_ten_times_as_many_cases(name: str) -> None:
    proof = PROOFS[name]
    outcome = prove(proof, cases=10 * proof.examples, seed=2)
    assert outcome.holds, outcome.counterexample


def test_every_proof_says_what_it_proves() -> None:
    for proof in PROOFS.values():
        assert len(proof.statement) > 20
        assert proof.equation
        assert proof.bound >= 0
    assert len({proof.statement for proof in PROOFS.values()}) == len(PROOFS)


Patch = Callable[[pytest.MonkeyPatch], None]


def on(cls: Any, name: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Patch:
    """Replace a method by a defective one that is made of it."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cls, name, change(getattr(cls, name)))

    return patch


def slope_off(coefficients: Any) -> Any:
    def defective(self: Any, t: torch.Tensor) -> Coefficients:
        at = coefficients(self, t)
        return at._replace(sigma_prime=at.sigma_prime * (1 + 1e-6))

    return defective


def scaled(factor: float) -> Callable[[Any], Any]:
    return lambda method: lambda *arguments, **named: method(*arguments, **named) * factor


def told_of_no_bound(check: Any) -> Any:
    return lambda t_hat, target: None


def opposite_sign(preconditioning: Any) -> Any:
    def defective(self: Any, process: Any, t: torch.Tensor) -> Any:
        c = preconditioning(self, process, t)
        return c._replace(c_out=-c.c_out, n_out=-c.n_out)

    return defective


def skip_off(preconditioning: Any) -> Any:
    def defective(self: Any, process: Any, t: torch.Tensor) -> Any:
        c = preconditioning(self, process, t)
        return c._replace(c_skip=c.c_skip * (1 + 1e-7), c_out=c.c_out * (1 + 1e-7))

    return defective


def printed_tangent(consistency_tangent: Any) -> Any:
    """Multiply the JVP once more by sigma_data, as a literal reading of Algorithm 1 does."""

    def defective(value: Any, jvp_hat: Any, at: Any, sigma_data: float, warmup: float) -> Any:
        return consistency_tangent(value, sigma_data * jvp_hat, at, sigma_data, warmup)

    return defective


def first_order(step: Any) -> Any:
    return lambda self, here, to, ask, before, process: here.ddim(to)


def half_correction(correction: Any) -> Any:
    return lambda self, here, second, to: correction(self, here, second, to) / 2


def claimed(has_boundary: Any) -> Any:
    return lambda self, process: True


def scale_forgotten(preconditioning: Any) -> Any:
    return lambda self, process, t: preconditioning(self, dataclasses.replace(process, sigma_data=0.5), t)


def wrong_in_edm(log_ratio_rate: Any) -> Any:
    return lambda process, t: log_ratio_rate(process, t) * (1.001 if process.name == "edm" else 1.0)


def swapped(pair: Any) -> Any:
    return lambda *arguments: pair(*arguments)[::-1]


def warmed_up(discrete_tangent: Any) -> Any:
    """Scale the unstable part as if the warm-up were not over."""

    def defective(*arguments: Any) -> Any:
        return discrete_tangent(*arguments[:-1], 0.99)

    return defective


def float32_times(vector: Any) -> Any:
    return lambda t, x: vector(t, x).float().double()


DEFECTS: list[tuple[str, Patch]] = [
    ("coefficients-and-their-derivatives", on(PROCESSES["vp"], "coefficients", slope_off)),
    ("conditional-velocity", on(PROCESSES["flow"], "coefficients", slope_off)),
    ("rate-of-log-ratio", on(PROCESSES["cosine"], "coefficients", slope_off)),
    ("round-trip", on(PROCESSES["flow"], "time_of", scaled(1 + 1e-8))),
    ("marginal-of-the-target", on(PROCESSES["edm"], "time_of", scaled(1 + 1e-8))),
    ("refusal-of-pure-noise", on(coordinates, "_check_angle", told_of_no_bound)),
    ("signal-to-noise-ratio", on(PROCESSES["trigflow"], "snr", scaled(1 + 1e-8))),
    ("invariance-to-the-scale-of-data", on(UNIT, "preconditioning", scale_forgotten)),
    ("slope-of-the-time-input", on(UNIT, "time_input", scaled(1 + 1e-6))),
    ("probability-flow", on(PROCESSES["vp"], "velocity", scaled(1 + 1e-7))),
    ("unit-variance", on(UNIT, "preconditioning", skip_off)),
    ("published-coefficients-of-edm", on(UNIT, "preconditioning", opposite_sign)),
    ("trigflow-form", on(UNIT, "preconditioning", opposite_sign)),
    ("perfect-network", on(Denoiser, "v", scaled(-1))),
    ("converted-model", on(scmreg.parameterizations["converted"], "time_input", scaled(1 + 1e-6))),
    ("score-identity", on(Denoiser, "score", scaled(-1))),
    ("boundary-condition", on(Parameterization, "has_boundary", claimed)),
    ("exact-consistency-function", on(law.ExactDenoiser, "_closed_form", scaled(1 + 1e-6))),
    ("same-samples", on(sampler, "vector", float32_times)),
    ("ddim-of-a-point-mass", on(sampler.Point, "ddim", scaled(1 + 1e-9))),
    ("ddim-is-euler", on(SAMPLERS["euler"], "step", scaled(1 + 1e-8))),
    ("heun-is-edms-sampler", on(SAMPLERS["heun"], "step", first_order)),
    ("dpm-solvers-as-printed", on(SAMPLERS["dpm-solver++-2m"], "correction", half_correction)),
    ("ddim-is-the-jump", on(SAMPLERS["ddim"], "step", scaled(1 + 1e-10))),
    ("flow-solved-by-scipy", on(Process, "velocity", scaled(1.0001))),
    ("declared-orders", on(SAMPLERS["dpm-solver-2"], "correction", half_correction)),
    ("declared-orders", on(SAMPLERS["dpm-solver++-2m"], "step", first_order)),
    ("densities-of-proposals", on(scmreg.proposals["logit-normal"], "transform", scaled(1 + 1e-6))),
    ("converted-proposals", on(scmreg.proposals["converted"], "log_density", scaled(1 + 1e-6))),
    ("tangent-is-the-derivative", on(training_proofs, "consistency_tangent", printed_tangent)),
    ("tangent-of-a-segment", on(training_proofs, "consistency_tangent", printed_tangent)),
    ("tangent-under-any-process", on(tangent, "log_ratio_rate", wrong_in_edm)),
    ("tangent-at-the-solution", on(training_proofs, "consistency_tangent", printed_tangent)),
    ("pairs-of-noise-levels", on(scmreg.schedules["edm-grid"], "grid", scaled(1 + 1e-6))),
    ("pairs-of-noise-levels", on(scmreg.schedules["ect"], "pair", swapped)),
    ("difference-quotient", on(discrete_proofs, "discrete_tangent", warmed_up)),
    ("difference-quotient-of-short-steps", on(discrete_proofs, "discrete_tangent", warmed_up)),
    ("tuning-begins-as-diffusion", on(weighting.InSpace, "scale", scaled(1.01))),
    ("weights-of-the-data", on(scmreg.weightings["edm"], "of_inverse", scaled(1 + 1e-6))),
    ("expected-gradient-at-the-solution", on(training_proofs, "consistency_tangent", printed_tangent)),
]


@pytest.mark.parametrize(("name", "defect"), DEFECTS, ids=[f"{i}-{name}" for i, (name, _) in enumerate(DEFECTS)])
def test_a_planted_defect_is_noticed(name: str, defect: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    defect(monkeypatch)
    outcome = prove(PROOFS[name], cases=100, seed=3)
    assert not outcome.holds
    assert outcome.worst > PROOFS[name].bound
    assert outcome.counterexample is not None
    assert "error" in outcome.counterexample


def test_a_defect_of_the_objective_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import scmreg_consistency

    monkeypatch.setattr(
        scmreg_consistency, "consistency_tangent", printed_tangent(scmreg_consistency.consistency_tangent)
    )
    assert not prove(PROOFS["gradient-of-the-general-form"], cases=50).holds


def test_a_defect_of_a_converted_loss_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    conversion = scmreg.proposals["converted"]
    monkeypatch.setattr(conversion, "transform", scaled(0.999)(conversion.transform))
    assert not prove(PROOFS["diffusion-loss"], cases=50).holds


def test_a_wrong_weight_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import scmreg_edm

    monkeypatch.setattr(scmreg_edm.UnitVariance, "unit_velocity", scaled(1.01)(scmreg_edm.UnitVariance.unit_velocity))
    assert not prove(PROOFS["published-losses"], cases=50).holds


def test_noise_that_depends_on_the_batch_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from scmreg.sampler import Noise

    monkeypatch.setattr(Noise, "draw", lambda self, index=0: torch.ones(len(self.seeds), *self.shape) * len(self.seeds))
    assert not prove(PROOFS["samples-belong-to-their-seeds"], cases=5).holds


def test_every_quick_proof_has_its_defect() -> None:
    elsewhere = {"gradient-of-the-general-form", "diffusion-loss", "published-losses", "samples-belong-to-their-seeds"}
    assert {name for name, _ in DEFECTS} | elsewhere == {name for name, proof in PROOFS.items() if not proof.full}


def test_the_worst_case_is_described_in_words() -> None:
    def check(case: Case) -> float:
        return 0.0 if case.number("size", 0.0, 10.0) < 4 else math.nan

    proof = Proof("planted", "Sizes stay below four", "none", 1e-3, check, 100, False)
    outcome = prove(proof)
    assert not outcome.holds
    assert outcome.worst == math.inf  # what is not a number is an error
    assert outcome.counterexample is not None
    assert "size 4" in outcome.counterexample  # the simplest one
    assert outcome.to_json()["worst"] == "inf"
    assert prove(dataclasses.replace(proof, check=lambda case: 0.0)).holds


def test_what_a_component_raises_refutes_the_proof_and_says_where() -> None:
    def check(case: Case) -> float:
        raise KeyError("lost")

    outcome = prove(Proof("planted", "Nothing is ever lost on the way", "none", 1e-3, check, 5, False))
    assert not outcome.holds
    assert outcome.counterexample is not None
    assert "KeyError: 'lost'" in outcome.counterexample
    assert "test_proofs.py:" in outcome.counterexample


def test_the_same_seed_tries_the_same_cases() -> None:
    first, second = (prove(PROOFS["round-trip"], cases=20, seed=7) for _ in range(2))
    assert first.worst == second.worst
    assert prove(PROOFS["round-trip"], cases=20, seed=8).worst != first.worst


def test_solvers_are_all_tried() -> None:
    from scmreg.proofs.sampling import _solvers

    assert set(_solvers()) == {name for name, cls in scmreg.samplers.items() if issubclass(cls, OdeSampler)}
