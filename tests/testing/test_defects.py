"""Each check finds the defect that it is there for, and says in words what to fix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted import (
    Asking,
    Attached,
    BackwardAlone,
    Caching,
    Centred,
    CountsCalls,
    Cut,
    Deaf,
    Demanding,
    Detached,
    Doubling,
    Forgetful,
    GlobalNoise,
    Helpless,
    Idle,
    Mislabelled,
    Modest,
    Noisy,
    OneFigure,
    Orphan,
    OwnTime,
    Patch,
    Plain,
    PlainModule,
    Remembering,
    Shrinking,
    Single,
    Straight,
    Undocumented,
    Untied,
    Writing,
    as_is,
    asymmetric,
    by_the_first,
    by_the_spread,
    drawn_globally,
    halved,
    in_use,
    instead,
    its,
    network,
    objective,
    of_its_result,
    on,
    rooted,
    scaled,
    shifted,
    spec_with,
    wavy,
    with_gradient,
    with_tangent,
    with_value,
    without_gradient_in_v,
    without_its_logarithm,
)

import scmreg
from scmreg import weighting
from scmreg.component import Component
from scmreg.parameterization import Parameterization
from scmreg.process import Coefficients
from scmreg.proposal import Proposal
from scmreg.sampler import OdeSampler
from scmreg.testing import CHECKS, checks_of, examine

PROCESSES, FORMS, WEIGHTINGS = scmreg.processes, scmreg.parameterizations, scmreg.weightings
PROPOSALS, SCHEDULES, DISTANCES = scmreg.proposals, scmreg.schedules, scmreg.distances
MATH, DATA, METRICS = scmreg.attentions["math"], scmreg.datasets, scmreg.metrics
SAMPLERS = scmreg.samplers


def slope_off(at: Coefficients) -> Coefficients:
    return at._replace(alpha_prime=at.alpha_prime + 0.25)


DEFECTS: list[tuple[str, Patch, list[str]]] = [
    ("documented", as_is(Undocumented), ["it has no docstring", "below the class statement"]),
    ("documented", as_is(Helpless), ["option scale has no help", "the line under the field"]),
    ("default-constructible", as_is(Demanding), ["option scale has no default: give it one"]),
    ("options-round-trip", as_is(Doubling), ["option scale comes back from JSON as", "keep what is given"]),
    ("nothing-but-options", as_is(Caching), ["it keeps cache beside its options", "declare a field"]),
    (
        "process-ends",
        its(PROCESSES["flow"], "coefficients", of_its_result(lambda at: at._replace(sigma=at.sigma + 0.01))),
        ["sigma(0) is 0.01, it must be 0"],
    ),
    (
        "process-derivatives",
        its(PROCESSES["cosine"], "coefficients", of_its_result(slope_off)),
        [
            "process 'cosine': velocity's derivative: alpha'(t) is off by 0.25 at t = 0.",
            "coefficients() gives alpha_prime = ",
            "expected the derivative of alpha, -",
        ],
    ),
    (
        "monotone-snr",
        its(PROCESSES["edm"], "coefficients", of_its_result(wavy)),
        ["the noise level sigma/alpha goes from", "it must grow strictly with t"],
    ),
    (
        "time-of-the-noise-level",
        its(PROCESSES["flow"], "time_of", scaled(1.001)),
        ["mend time_of, or leave it out, and it is found by bisection"],
    ),
    (
        "trigflow-round-trip",
        its(PROCESSES["edm"], "time_of", scaled(1.001)),
        ["converted to TrigFlow and back is off by 0.001"],
    ),
    (
        "process-dtype-and-device",
        its(PROCESSES["flow"], "coefficients", of_its_result(lambda at: Coefficients(*(x.double() for x in at)))),
        ["alpha is torch.float64 for times of torch.float32: compute in the precision of the times"],
    ),
    (
        "process-dtype-and-device",
        its(
            PROCESSES["flow"],
            "coefficients",
            of_its_result(lambda at: at._replace(alpha=at.alpha + torch.zeros(at.alpha.shape, dtype=at.alpha.dtype))),
        ),
        ["mixes its times with tensors on another device", "torch.zeros_like(t)"],
    ),
    (
        "predictions-make-up-the-sample",
        its(FORMS["data"], "preconditioning", of_its_result(lambda c: c._replace(n_skip=c.n_skip * 1.01))),
        ["alpha c_skip + sigma n_skip is 1.01", "it must be 1, so that alpha D + sigma eps = x"],
    ),
    (
        "inverse-round-trip",
        its(FORMS["unit-variance"], "unit_velocity", scaled(1.01)),
        ["a perfect network of any parameterization gives the data", "and unit_velocity, if it is overridden"],
    ),
    (
        "boundary-as-claimed",
        on(FORMS["data"], Parameterization, "has_boundary", instead(lambda self, process: True)),
        ["has_boundary is True under process", "f(x, 0) = x needs 1 and 0", "leave has_boundary alone"],
    ),
    (
        "time-input",
        its(FORMS["unit-variance"], "time_input", of_its_result(torch.mean)),
        ["time_input returns shape ()", "give one number a time"],
    ),
    (
        "parameterization-converts",
        its(FORMS["data"], "under", instead(lambda self, process, to: self)),
        ["a converted model predicts the same", "under() must return"],
    ),
    (
        "weight-is-positive",
        its(WEIGHTINGS["snr"], "weight", scaled(-1)),
        ["weight is -", "it must be finite and above 0"],
    ),
    (
        "weight-takes-no-gradient",
        on(WEIGHTINGS["ect"], weighting.WeightingModule, "weigh", instead(with_gradient)),
        ["gradient goes into the network through the weight", "compute the weight from what is detached"],
    ),
    (
        "learned-weight",
        on(WEIGHTINGS["adaptive"], weighting.WeightingModule, "weigh", instead(without_its_logarithm)),
        ["the weighted loss is", "expected e^w l - w"],
    ),
    (
        "weight-of-the-sample-alone",
        on(WEIGHTINGS["snr"], weighting.FixedWeight, "log_weight", of_its_result(lambda w: w - w.mean())),
        ["the weight of a sample is 1 alone", "do not normalise over the batch"],
    ),
    ("weighting-converts", as_is(OwnTime), ["at the same noise level of", "convert times there"]),
    (
        "density-as-stated",
        its(PROPOSALS["lognormal"], "log_density", shifted(0.1)),
        ["log_density states the density", "but what transform draws has", "mend the one that is wrong"],
    ),
    (
        "samples-follow-the-density",
        on(PROPOSALS["lognormal"], Proposal, "sample", of_its_result(torch.sqrt)),
        ["of 4000 samples under process", "leave sample() alone, or draw what log_density says"],
    ),
    (
        "times-in-range",
        on(PROPOSALS["uniform"], Proposal, "sample", scaled(2)),
        ["sample() draws times from", "are above 0 and up to"],
    ),
    (
        "drawn-from-the-generator",
        on(
            PROPOSALS["uniform"],
            Proposal,
            "sample",
            instead(lambda self, process, count, rng, dtype=torch.float32: torch.rand(count)),
        ),
        ["two generators with the same seed give different samples: draw from rng alone"],
    ),
    (
        "proposal-converts",
        its(PROPOSALS["logit-normal"], "under", instead(lambda self, process, to: self)),
        ["a converted proposal draws the same noise levels", "leave under() alone"],
    ),
    (
        "pairs-in-order",
        its(SCHEDULES["ect"], "pair", of_its_result(lambda pair: pair[::-1])),
        ["expected 0 <= r < t", "scmreg.schedule.strictly_below"],
    ),
    (
        "pairs-close-in",
        its(SCHEDULES["ect"], "exponent", of_its_result(lambda a: max(1, 9 - a))),
        ["the pairs move apart", "must come closer as training goes on"],
    ),
    (
        "steps-that-nobody-knows",
        its(SCHEDULES["ict"], "intervals", instead(lambda self, step, steps: self.s0 + step // steps)),
        ["where the number of steps is not known it raises TypeError", "scmreg.schedule.needs_steps"],
    ),
    (
        "schedule-of-noise-levels",
        its(SCHEDULES["edm-grid"], "grid", scaled(0.99)),
        ["compares the same noise levels under every process", "go to times by process.time_of"],
    ),
    ("zero-between-equals", its(DISTANCES["l2"], "between", shifted(0.1)), ["it is 0.1 between equal samples"]),
    (
        "zero-between-equals",
        its(DISTANCES["l2"], "between", instead(rooted)),
        ["its gradient is not finite between equal samples: a root has no slope at 0"],
    ),
    (
        "positive-between-others",
        its(DISTANCES["l2"], "between", of_its_result(torch.mean)),
        ["it has shape () for 3 pairs of samples"],
    ),
    (
        "symmetric-as-claimed",
        its(DISTANCES["l2"], "between", instead(asymmetric)),
        ["d(x, y) is", "say so by symmetric = False"],
    ),
    ("output-like-the-input", as_is(network(Single)), ["the output is torch.float32 for an input of torch.float64"]),
    ("forward-derivative", as_is(network(Detached)), ["its tangent is off by", "look for detach(), no_grad()"]),
    (
        "forward-derivative",
        as_is(network(BackwardAlone)),
        [
            "differentiation fails with NotImplementedError",
            "replace the operation that has no forward derivative",
        ],
    ),
    (
        "no-write-in-forward",
        as_is(network(CountsCalls)),
        ["forward writes to the buffer count in training mode", "compute what you need in a new tensor"],
    ),
    ("no-write-in-forward", as_is(network(Shrinking)), ["forward writes to the parameter enter.weight in training"]),
    (
        "batch-independence",
        as_is(network(Centred)),
        ["depends on the rest of the batch in training mode", "use no batch statistics"],
    ),
    (
        "takes-what-it-declares",
        as_is(network(Deaf)),
        ["it understands 'label', but its output is the same for another label", "leave it out of takes"],
    ),
    ("state-is-complete", as_is(network(Forgetful)), ["computes something else", "register as a buffer"]),
    ("attention-values", its(MATH, "build", with_value(1.1)), ["the value is off by 0.1 of its norm", "softmax"]),
    (
        "attention-tangents",
        its(MATH, "build", with_tangent(lambda tangent: 0.8 * tangent)),
        ["the tangent is off by 0.2 of its norm", "compare with (P∘tS) V"],
    ),
    (
        "attention-gradients",
        its(MATH, "build", of_its_result(without_gradient_in_v)),
        ["the value has no gradient in v"],
    ),
    (
        "attention-passes-its-trial",
        in_use(scmreg.attentions["chunked"]),
        ["its trial against math on cpu fails, so that attend() will refuse it: float64: off by"],
    ),
    ("loss-is-finite", as_is(objective(Attached)), ["size of phase 'main'", "it is for the log, detach it"]),
    (
        "gradient-reaches-what-is-trained",
        as_is(objective(Idle)),
        ["no gradient of phase 'main' reaches extra.weight, which it moves"],
    ),
    (
        "gradient-reaches-what-is-trained",
        as_is(objective(Orphan)),
        ["no phase moves its parameter extra.weight: name the module in Phase(own=...)"],
    ),
    ("gradient-reaches-what-is-trained", as_is(objective(Cut)), ["has no gradient at all: something was detached"]),
    (
        "needs-what-it-says",
        as_is(objective(Asking)),
        ["it needs no teacher, but without one it raises AssertionError: nobody to ask"],
    ),
    (
        "needs-what-it-says",
        as_is(objective(PlainModule, teacher=True)),
        ["needs a teacher, but neither build() nor loss() asks for one"],
    ),
    (
        "dropout-is-tied",
        as_is(objective(Untied)),
        ["its 2 evaluations of the model in phase 'main' have 2 different dropout masks", "rewound"],
    ),
    (
        "drawn-from-the-given-generator",
        as_is(objective(GlobalNoise)),
        ["with the same generator the loss of phase 'main' is", "not from the global random state"],
    ),
    ("resumes", as_is(objective(Remembering)), ["in a module that loaded its state dict", "register as a buffer"]),
    ("batch-is-left-alone", as_is(objective(Writing)), ["its loss writes to the batch: work on a copy"]),
    ("figures-at-given-times", as_is(objective(OneFigure)), ["diagnose() gives size", "one finite number each"]),
    (
        "declared-order",
        as_is(Mislabelled),
        ["it declares order 2, but twice as many steps divide its error by", "set order = 1, or mend the step"],
    ),
    ("declared-order", as_is(Modest), ["it declares order 1, but twice as many steps", "set order = 2"]),
    (
        "evaluations-as-stated",
        its(SAMPLERS["heun"], "calls", instead(1)),  # type: ignore[arg-type]
        ["it says by evaluations that it asks the network", "correct evaluations (of an OdeSampler: calls)"],
    ),
    (
        "samples-of-their-seeds",
        as_is(Noisy),
        ["the same seeds give other samples the second time: draw every noise from noise.draw"],
    ),
    (
        "steps-as-asked",
        on(SAMPLERS["ddim"], OdeSampler, "with_steps", instead(lambda self, steps: self)),
        ["has 18 steps: return it with as many"],
    ),
    (
        "nears-the-truth",
        on(SAMPLERS["ddim"], OdeSampler, "truth", scaled(1.5)),
        ["its distance from truth() is", "or truth(), if it is overridden"],
    ),
    (
        "data-are-deterministic",
        its(DATA["swissroll"], "draw", instead(drawn_globally)),
        ["it gives other items the second time", "scmreg.rng.generator"],
    ),
    (
        "items-as-stated",
        its(DATA["swissroll"], "load", spec_with(shape=(3,))),
        ["training items have shape", "correct the shape in the spec"],
    ),
    (
        "items-as-stated",
        its(DATA["swissroll"], "load", spec_with(classes=("a", "b"))),
        ["the spec names 2 classes, and training items have no labels"],
    ),
    (
        "scale-as-stated",
        its(DATA["swissroll"], "load", spec_with(std=3.0)),
        ["the spec says std 3", "give those of the training items"],
    ),
    (
        "split-as-stated",
        its(DATA["swissroll"], "split_indices", instead(halved)),
        ["items are held out, expected", "split by self.split_indices"],
    ),
    (
        "law-as-stated",
        its(DATA["gaussians"], "draw", of_its_result(lambda drawn: (drawn[0] * 1.2, drawn[1]))),
        ["its items have the mean square", "standard errors away"],
    ),
    (
        "figures-as-stated",
        its(METRICS["sliced-wasserstein"], "measure", instead(lambda self, samples, reference: {"other": 1.0})),
        ["measure() gives other, which figures does not name"],
    ),
    (
        "metric-is-zero-on-itself",
        its(METRICS["sliced-wasserstein"], "_distance", shifted(0.1)),
        ["sliced_wasserstein is 0.1 where the samples are the real data", "it says by zero_on_itself"],
    ),
    (
        "metric-is-symmetric",
        its(METRICS["sliced-wasserstein"], "measure", by_the_spread),
        ["when samples and real data change places", "it says by symmetric"],
    ),
    (
        "metric-of-a-set",
        its(METRICS["sliced-wasserstein"], "measure", by_the_first),
        ["in another order: it must depend on the set of samples alone"],
    ),
]


@pytest.mark.parametrize(
    ("name", "patch", "words"), DEFECTS, ids=[f"{i}-{name}" for i, (name, *_) in enumerate(DEFECTS)]
)
def test_a_planted_defect_is_named(name: str, patch: Patch, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = examine(CHECKS[name], patch(monkeypatch), seed=3)
    assert not outcome.holds
    assert outcome.untried is None
    for each in words:
        assert each in str(outcome.failure)


def test_every_check_has_its_defect() -> None:
    assert {name for name, *_ in DEFECTS} == set(CHECKS)


RIGHT: list[type[Component]] = [network(Plain), objective(PlainModule)]


@pytest.mark.parametrize("component", RIGHT, ids=lambda cls: cls.kind)
def test_what_the_defects_are_made_of_is_right(component: type[Component]) -> None:
    """So that it is the defect that is found."""
    for check in checks_of(component):
        outcome = examine(check, component, examples=4)
        assert outcome.holds, outcome.failure


def test_a_process_without_defect_is_right() -> None:
    class Right(Straight, name="right"):
        """Add noise of growing scale."""

    outcomes: list[Any] = [examine(check, Right, examples=4) for check in checks_of(Right)]
    assert all(outcome.holds for outcome in outcomes), [outcome.failure for outcome in outcomes]
