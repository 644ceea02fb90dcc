"""Exact laws: posteriors against integrals, scores against densities, flows against distribution functions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from strategies import PROCESSES, SIGMA_DATA, close, times
from torch import Tensor

import scmreg
from scmreg import law as module
from scmreg.coordinates import process_time, trig_time
from scmreg.data import DataSpec
from scmreg.denoiser import Denoiser
from scmreg.evaluate import Judge
from scmreg.law import ExactDenoiser, ExactNetwork, GaussianMixture
from scmreg.metric import Judged
from scmreg.process import Process
from scmreg.progress import Progress
from scmreg.recipe import Recipe
from scmreg.types import Conditions, expand


def mixture(weights: Any, means: Any, stds: Any, classes: Any = None) -> GaussianMixture:
    columns = (torch.tensor(x, dtype=torch.float64) for x in (weights, means, stds))
    return GaussianMixture(*columns, None if classes is None else torch.tensor(classes))


LINE = mixture([1, 2, 1], [[-1.2], [0.3], [1.4]], [[0.2], [0.5], [0.05]], classes=[0, 1, 1])
"""A law on the line, of two classes."""
PLANE = mixture([3, 1], [[-0.8, 0.5], [1.1, -0.4]], [[0.4, 0.7], [0.3, 0.2]])
CLASSES: dict[str, tuple[int | None, list[int]]] = {
    "unlabelled": (None, [0, 1, 2]),
    "class 0": (0, [0]),
    "class 1": (1, [1, 2]),
    "no label": (2, [0, 1, 2]),
}
"""Labels, and the components of `LINE` that they leave."""


def given(label: int | None, count: int) -> Conditions:
    return Conditions() if label is None else Conditions(label=torch.full((count,), label))


def part(law: GaussianMixture, kept: list[int]) -> GaussianMixture:
    return GaussianMixture(law.weights[kept], law.means[kept], law.stds[kept])


def noisy(law: GaussianMixture, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    """Means and deviations of the components of ``x_t``, shape ``(B, K, D)``."""
    at, scale = process.coefficients(t), process.sigma_data
    means = (at.alpha * scale)[:, None, None] * law.means
    return means, torch.hypot((at.alpha * scale)[:, None, None] * law.stds, at.sigma[:, None, None])


def cumulative(law: GaussianMixture, process: Process, x: Tensor, t: Tensor) -> Tensor:
    """The distribution function of ``x_t`` on the line at ``x`` of shape ``(B, 1)``, shape ``(B,)``."""
    means, stds = noisy(law, process, t)
    below = torch.special.ndtr((x[:, None] - means) / stds)
    return (law.weights * below[:, :, 0]).sum(1)


# Laws ---------------------------------------------------------------------------------------------------------------


def test_weights_are_shares() -> None:
    assert float(LINE.weights.sum()) == 1
    assert LINE.weights.tolist() == [0.25, 0.5, 0.25]
    single = GaussianMixture(torch.tensor([7]), torch.zeros(1, 2, dtype=torch.float32), torch.ones(1, 2))
    assert {x.dtype for x in (single.weights, single.means, single.stds)} == {torch.float64}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 1], [[0.0]], [[1.0]]), r"weights \(2,\), means \(1, 1\) and stds \(1, 1\) must be"),
        (([1], [[0.0]], [[1.0, 1.0]]), r"stds \(1, 2\) must be \(K,\), \(K, D\) and \(K, D\)"),
        (([1], [0.0], [1.0]), r"means \(1,\)"),
        (([-1, 2], [[0.0], [1.0]], [[1.0], [1.0]]), "weights must be 0 or more"),
        (([0, 0], [[0.0], [1.0]], [[1.0], [1.0]]), "not all 0"),
        (([1], [[0.0]], [[-1.0]]), "stds 0 or more"),
        (([math.nan], [[0.0]], [[1.0]]), "weights"),
        (([1, math.inf], [[0.0], [1.0]], [[1.0], [1.0]]), "weights"),
        (([1], [[math.nan]], [[1.0]]), "means"),
        (([1], [[0.0]], [[math.nan]]), "stds"),
        (([1], [[0.0]], [[math.inf]]), "stds"),
        (([1, 1], [[0.0], [1.0]], [[1.0], [1.0]], [0]), r"classes must be an index of 0 or more for each component"),
    ],
)
def test_what_is_no_mixture(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixture(*arguments)


def test_every_part_of_a_law_is_in_its_digest() -> None:
    laws = [
        LINE,
        part(LINE, [0, 1, 2]),
        mixture([1, 1, 1], LINE.means.tolist(), LINE.stds.tolist(), [0, 1, 1]),
        mixture([1, 2, 1], (LINE.means + 1e-9).tolist(), LINE.stds.tolist(), [0, 1, 1]),
        mixture([1, 2, 1], LINE.means.tolist(), (LINE.stds * 1.1).tolist(), [0, 1, 1]),
        mixture([1, 2, 1], LINE.means.tolist(), LINE.stds.tolist(), [0, 0, 1]),
    ]
    assert len({law.digest() for law in laws}) == len(laws)
    assert mixture([2, 4, 2], LINE.means.tolist(), LINE.stds.tolist(), [0, 1, 1]).digest() == LINE.digest()


def test_standardized_laws() -> None:
    """Points have a mean for each coordinate, images one for each channel."""
    points = PLANE.standardized(DataSpec("x", (2,), "points", mean=(1.0, -2.0), std=4.0))
    torch.testing.assert_close(points.means, (PLANE.means - torch.tensor([1.0, -2.0])) / 4)
    torch.testing.assert_close(points.stds, PLANE.stds / 4)
    law = mixture([1], [list(range(8))], [[1.0] * 8])
    images = law.standardized(DataSpec("x", (2, 2, 2), "image", mean=(1.0, 5.0), std=0.5))
    assert images.means.tolist() == [[-2.0, 0.0, 2.0, 4.0, -2.0, 0.0, 2.0, 4.0]]


# The exact denoiser -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CLASSES)
@pytest.mark.parametrize("name", PROCESSES)
def test_the_posterior_mean_is_the_integral(name: str, case: str) -> None:
    """``D = E[x_0 | x]`` and ``eps = E[noise | x]``, integrated over 20,000 values of ``x_0``."""
    process = scmreg.processes.create(name, sigma_data=0.7)
    label, kept = CLASSES[case]
    law, scale = part(LINE, kept), process.sigma_data
    t = times(process, 60, torch.Generator().manual_seed(0), low=0.02, high=1.55)
    x = torch.linspace(-2, 2, 60, dtype=torch.float64)[:, None] * process.std(t)[:, None]
    at = process.coefficients(t)
    values = torch.linspace(-6, 6, 20_001, dtype=torch.float64) * scale
    away = (values[:, None] / scale - law.means[:, 0]) / law.stds[:, 0]
    density = torch.logsumexp(torch.log(law.weights / law.stds[:, 0]) - 0.5 * away**2, 1)
    residual = (x - at.alpha[:, None] * values) / at.sigma[:, None]
    posterior = (density - 0.5 * residual**2).softmax(1)
    model = ExactDenoiser(LINE, process)
    cond = given(label, 60)
    data, noise = model.predict(x, t, cond)
    assert close(data, (posterior * values).sum(1, keepdim=True), 1e-9)
    assert close(noise, (posterior * residual).sum(1, keepdim=True), 1e-7)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_score_is_the_slope_of_the_log_density(name: str) -> None:
    process = scmreg.processes.create(name, sigma_data=0.4)
    t = times(process, 30, torch.Generator().manual_seed(1))
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * process.std(t)[:, None]
    means, stds = noisy(PLANE, process, t)

    def log_density(x: Tensor) -> Tensor:
        each = -0.5 * ((x[:, None] - means) / stds) ** 2 - torch.log(stds)
        return torch.logsumexp(each.sum(2) + torch.log(PLANE.weights), 1).sum()

    assert close(ExactDenoiser(PLANE, process).score(x, t), torch.func.grad(log_density)(x), 1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_predictions_are_exact_at_both_ends(name: str) -> None:
    process = scmreg.processes.create(name)
    model = ExactDenoiser(PLANE, process)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data, _ = model.predict(x, torch.zeros(6, dtype=torch.float64))
    assert torch.equal(data, x)
    end = torch.full((6,), 1e9 if process.highest_level > 1e6 else process.highest_level, dtype=torch.float64)
    end = process.time_of(end).clamp(max=process.t_max)
    data, noise = model.predict(process.prior(x, end), end)
    mean = process.sigma_data * (PLANE.weights[:, None] * PLANE.means).sum(0)
    assert close(data, mean.expand(6, 2), 10 / process.highest_level)
    assert close(noise, x, 10 / process.highest_level)


def test_labels_are_those_of_each_sample() -> None:
    model = ExactDenoiser(LINE, scmreg.processes.create("trigflow"))
    x, t = torch.full((4, 1), 0.3, dtype=torch.float64), torch.full((4,), 0.9, dtype=torch.float64)
    mixed = model.data(x, t, Conditions(label=torch.tensor([0, 1, 2, 2])))
    for row, label in enumerate((0, 1, 2, None)):
        assert torch.equal(mixed[row], model.data(x, t, given(label, 4))[row])
    assert len(set(mixed.flatten().tolist())) == 3
    without = ExactDenoiser(part(LINE, [0, 1, 2]), scmreg.processes.create("trigflow"))
    assert torch.equal(without.data(x, t, given(0, 4)), without.data(x, t)), "a law without classes has one for all"


@pytest.mark.parametrize("label", [-1, 3, 7])
def test_labels_of_which_nothing_is_known(label: int) -> None:
    """Refused: there is no number for them."""
    model = ExactDenoiser(LINE, scmreg.processes.create("trigflow"))
    with pytest.raises(ValueError, match=rf"label of \[0, {label}\] is no class of the law, which has 2"):
        model.data(torch.zeros(2, 1), torch.ones(2), Conditions(label=torch.tensor([0, label])))


def test_images_are_vectors_of_their_pixels() -> None:
    law = mixture([1, 1], torch.randn(2, 12, generator=torch.Generator().manual_seed(0)).tolist(), [[0.3] * 12] * 2)
    model = ExactDenoiser(law, scmreg.processes.create("edm"))
    x, t = torch.randn(5, 3, 2, 2, dtype=torch.float64), torch.rand(5, dtype=torch.float64) + 0.1
    torch.testing.assert_close(model.data(x, t).flatten(1), model.data(x.flatten(1), t))
    torch.testing.assert_close(model.consistency(x, t).flatten(1), model.consistency(x.flatten(1), t))


def test_the_network_is_told_trigflow_time_and_computes_in_float64() -> None:
    asked = torch.tensor([[0.3], [-1.0]]), torch.tensor([0.2, 1.4])
    network = ExactNetwork(LINE)
    single, double = network(*asked, Conditions()), network(asked[0].double(), asked[1].double(), Conditions())
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert torch.equal(single, double.float())
    assert not list(network.parameters())


# Exact flows --------------------------------------------------------------------------------------------------------


def stretches(process: Process) -> list[tuple[Tensor, Tensor | None]]:
    """From the end of the process and from within, to the data and to times within."""
    within = process_time(process, torch.tensor([1.5, 1.0, 0.4, 0.1], dtype=torch.float64))
    later = process_time(process, torch.tensor([0.9, 0.9, 0.1, 0.05], dtype=torch.float64))
    end = torch.full_like(within, process.t_max)
    return [(end, None), (within, None), (end, later), (within, later), (within, torch.zeros_like(within))]


@pytest.mark.parametrize("sigma_data", SIGMA_DATA)
@pytest.mark.parametrize("name", PROCESSES)
def test_the_closed_form_is_what_the_solver_finds(name: str, sigma_data: float) -> None:
    """A Gaussian, and the same written as two components, which is solved."""
    process = scmreg.processes.create(name, sigma_data=sigma_data)
    one = mixture([1], [[0.5, -1.0, 0.0]], [[0.3, 1.0, 1.5]])
    two = GaussianMixture(torch.tensor([0.3, 0.7]), one.means.repeat(2, 1), one.stds.repeat(2, 1))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t, s in stretches(process):
        at = x * process.std(t)[:, None]
        closed, solved = (ExactDenoiser(law, process).consistency(at, t, s) for law in (one, two))
        assert close(solved, closed, 1e-8)
        assert float((closed - at).abs().min()) > 1e-5


@pytest.mark.parametrize("case", CLASSES)
@pytest.mark.parametrize("name", PROCESSES)
def test_the_flow_keeps_the_share_of_what_is_below(name: str, case: str) -> None:
    """On the line trajectories do not cross: ``P(x_s < f(x, t→s)) = P(x_t < x)``, for every class."""
    process = scmreg.processes.create(name)
    label, kept = CLASSES[case]
    law, model = part(LINE, kept), ExactDenoiser(LINE, process)
    x = torch.tensor([[-1.3], [-0.4], [0.2], [1.1]], dtype=torch.float64)
    for t, s in stretches(process):
        at = x * process.std(t)[:, None]
        reached = model.consistency(at, t, s, given(label, 4))
        there = cumulative(law, process, reached, torch.zeros_like(t) if s is None else s)
        torch.testing.assert_close(there, cumulative(law, process, at, t), rtol=0, atol=1e-7)


@pytest.mark.parametrize("law", [PLANE, part(PLANE, [0])], ids=["mixture", "gaussian"])
@pytest.mark.parametrize("name", PROCESSES)
def test_the_flow_leads_back_to_where_it_came_from(name: str, law: GaussianMixture) -> None:
    """Also towards more noise: from the data to a time within and back, and in two parts as in one."""
    process = scmreg.processes.create(name)
    model = ExactDenoiser(law, process)
    t = process_time(process, torch.tensor([1.45, 0.8, 0.2], dtype=torch.float64))
    early = process_time(process, torch.tensor([0.4, 0.0, 0.1], dtype=torch.float64))
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * process.std(t)[:, None]
    down = model.consistency(x, t, early)
    assert close(model.consistency(down, early, t), x, 1e-7)
    assert close(model.consistency(down, early), model.consistency(x, t), 1e-7)
    # Rows of one batch may go in either direction.
    there = torch.stack([early[0], t[1], early[2]])
    mixed = model.consistency(torch.stack([x[0], down[1], x[2]]), torch.stack([t[0], early[1], t[2]]), there)
    assert close(mixed, torch.stack([down[0], x[1], down[2]]), 1e-7)


@pytest.mark.parametrize("law", [PLANE, part(PLANE, [0])], ids=["mixture", "gaussian"])
@pytest.mark.parametrize("name", PROCESSES)
def test_consistency_at_both_ends(name: str, law: GaussianMixture) -> None:
    process = scmreg.processes.create(name)
    model = ExactDenoiser(law, process)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    zero, end = torch.zeros(3, dtype=torch.float64), torch.full((3,), process.t_max, dtype=torch.float64)
    torch.testing.assert_close(model.consistency(x, zero), x, rtol=1e-14, atol=0)
    assert torch.equal(model.consistency(x, zero), model.consistency(x, zero, zero))
    assert bool(torch.isfinite(model.consistency(process.prior(x, end), end)).all())
    mixed = torch.tensor([0.0, process.t_max, 0.0], dtype=torch.float64)
    at = process.prior(x, mixed)
    at[[0, 2]] = x[[0, 2]]
    reached = model.consistency(at, mixed)
    torch.testing.assert_close(reached[[0, 2]], x[[0, 2]], rtol=1e-14, atol=0)
    torch.testing.assert_close(reached[1:2], model.consistency(at[1:2], mixed[1:2]), rtol=0, atol=1e-8)
    standing = model.consistency(at[1:2], end[:1], end[:1])
    torch.testing.assert_close(standing, at[1:2], rtol=1e-14, atol=0)


def test_trajectories_are_solved_alone_and_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    process = scmreg.processes.create("flow")
    model = ExactDenoiser(LINE, process)
    t = times(process, 7, torch.Generator().manual_seed(0))
    x = torch.randn(7, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cond = Conditions(label=torch.arange(7) % 3)
    whole = model.consistency(x, t, t / 2, cond)
    monkeypatch.setattr(module, "PART", 2)
    torch.testing.assert_close(model.consistency(x, t, t / 2, cond), whole, rtol=0, atol=1e-8)
    monkeypatch.setattr(module, "PART", 1)
    torch.testing.assert_close(model.consistency(x, t, t / 2, cond), whole, rtol=0, atol=1e-8)
    single = model.consistency(x.float(), t, t / 2, cond)
    torch.testing.assert_close(single, whole.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PROCESSES)
def test_point_masses(name: str) -> None:
    """Of two points the flow ends at the nearer one, and a prediction at ``t = 0`` is what is there."""
    process = scmreg.processes.create(name)
    model = ExactDenoiser(mixture([1, 1], [[-1.0], [1.0]], [[0.0], [0.0]]), process)
    x = torch.tensor([[-0.7], [0.2], [1.8]], dtype=torch.float64)
    t = process_time(process, torch.full((3,), 1.3, dtype=torch.float64))
    ends = torch.tensor([[-1.0], [1.0], [1.0]], dtype=torch.float64) * process.sigma_data
    at = x * process.std(t)[:, None]
    alpha, sigma, *_ = process.coefficients(t)
    expected = process.sigma_data * torch.tanh(alpha * process.sigma_data * at[:, 0] / sigma**2)
    torch.testing.assert_close(model.data(at, t)[:, 0], expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model.data(ends, torch.zeros(3, dtype=torch.float64)), ends)
    torch.testing.assert_close(model.consistency(at, t), ends, rtol=0, atol=1e-6)
    s = process_time(process, torch.tensor([0.5, 1e-3, 0.0], dtype=torch.float64))
    within = model.consistency(at, t, s)
    torch.testing.assert_close(model.consistency(within, s), ends, rtol=0, atol=1e-6)
    torch.testing.assert_close(within[2:], ends[2:], rtol=0, atol=1e-6)
    assert float((within[:1] / process.std(s[:1])[:, None] - ends[:1] / process.sigma_data).abs()) > 0.05


# Data that know their law -------------------------------------------------------------------------------------------


LAWFUL: list[tuple[str, dict[str, Any]]] = [
    ("gaussians", {}),
    ("gaussians", {"labelled": True, "modes": 5, "radius": 2.0, "std": 0.5}),
    *(("gaussian", {"dimension": dimension, "mean": -2.0, "std_max": 3.0}) for dimension in (1, 2, 7)),
    *(("mixture", {"dimension": dimension, "labelled": True, "modes": 3}) for dimension in (1, 2, 7)),
    ("mixture", {"seed": 4}),
]
COUNT = 20_000


def test_every_kind_of_data_with_a_law_is_tested() -> None:
    stating = {name for name, cls in scmreg.datasets.items() if cls.law is not scmreg.Data.law}
    assert stating == {name for name, _ in LAWFUL}


@pytest.mark.parametrize(("name", "options"), LAWFUL)
def test_data_have_the_law_that_they_state(name: str, options: dict[str, Any]) -> None:
    """Kolmogorov-Smirnov along every axis, and the moments and shares of every class."""
    data = scmreg.datasets.create(name, count=COUNT, **options)
    law, dataset = data.law(), data.load()
    assert law is not None
    x, labels = dataset.real()
    x = x.double()
    assert x.shape == (COUNT, *dataset.spec.shape) == (COUNT, law.means.shape[1])
    for axis in range(x.shape[1]):
        values = x[:, axis].sort().values
        share = (law.weights * torch.special.ndtr((values[:, None] - law.means[:, axis]) / law.stds[:, axis])).sum(1)
        found = (torch.arange(COUNT, dtype=torch.float64) + 0.5) / COUNT
        assert float((share - found).abs().max()) < 1.95 / math.sqrt(COUNT)  # one in a thousand exceeds it
    if law.classes is None:
        assert labels is None
        assert dataset.spec.classes == ()
        return
    assert labels is not None
    assert dataset.spec.classes == tuple(str(k) for k in range(len(law.weights)))
    for k, own in enumerate(law.classes.tolist()):
        mine = x[labels == own]
        error = 4.5 / math.sqrt(len(mine))
        assert len(mine) / COUNT == pytest.approx(float(law.weights[k]), abs=4.5 * 0.5 / math.sqrt(COUNT))
        assert bool(((mine.mean(0) - law.means[k]).abs() < error * law.stds[k]).all())
        assert bool(((mine.std(0) / law.stds[k] - 1).abs() < error).all())


def test_the_gaussian_as_described() -> None:
    law = scmreg.datasets.create("gaussian", dimension=3, mean=2.0, std_max=4.0, std_min=1.0).law()
    assert law is not None
    assert law.means.tolist() == [[2.0, 2.0, 2.0]]
    assert law.stds[0].tolist() == pytest.approx([4.0, 2.0, 1.0], rel=1e-12)
    single = scmreg.datasets.create("gaussian", dimension=1, std_max=4.0, std_min=1.0).law()
    assert single is not None
    assert single.stds.tolist() == [[pytest.approx(4.0)]]


def test_a_law_knows_classes_of_which_nothing_was_drawn() -> None:
    dataset = scmreg.datasets.create("mixture", count=5, modes=50, labelled=True, held_out=0.0).load()
    assert len(dataset.spec.classes) == 50
    assert dataset.train.labels is not None
    assert len(dataset.train.labels.unique()) <= 5


@pytest.mark.parametrize(("name", "options"), LAWFUL)
def test_a_standardized_law_has_the_scale_of_the_data(name: str, options: dict[str, Any]) -> None:
    data = scmreg.datasets.create(name, count=COUNT, **options)
    law = data.law()
    assert law is not None
    unit = law.standardized(data.load().spec)
    mean = (unit.weights[:, None] * unit.means).sum(0)
    second = (unit.weights[:, None] * (unit.means**2 + unit.stds**2)).sum(0)
    assert float(mean.abs().max()) < 0.05
    assert float((second - mean**2).mean()) == pytest.approx(1, abs=0.03)


# The error of a sample ----------------------------------------------------------------------------------------------


def judge(data: dict[str, Any], count: int = 40) -> tuple[Judge, ExactDenoiser]:
    """Return a judge, and the exact model, of data of known law."""
    recipe = Recipe.from_tree({"data": {"count": 400, **data}, "evaluation": {"count": count}})
    dataset, law = recipe.data.load(), recipe.data.law()
    assert law is not None
    model = ExactDenoiser(law.standardized(dataset.spec), recipe.process)
    return Judge(recipe, dataset, Progress()), model


def test_the_error_of_the_truth_is_zero() -> None:
    measured, model = judge({"name": "gaussian"})
    for steps in (1, 2, 4):
        sampler = scmreg.samplers.create("consistency", steps=steps)
        assert measured.judge("truth", model, sampler).figures["trajectory_error"] == 0.0
    x = torch.randn(30, 2)
    metric = scmreg.metrics.create("trajectory-error")
    assert metric.measure(Judged(x, truth=x), measured.reference) == {"trajectory_error": 0.0}


def test_the_error_is_in_units_of_the_data() -> None:
    measured, _ = judge({"name": "gaussian", "std_max": 9.0, "std_min": 5.0})
    x, shift = torch.zeros(10, 2), torch.tensor([3.0, 4.0]) * measured.reference.spec.std
    figures = scmreg.metrics.create("trajectory-error").measure(Judged(x + shift, truth=x), measured.reference)
    assert figures["trajectory_error"] == pytest.approx(5 / math.sqrt(2), rel=1e-6)


@pytest.mark.parametrize("labelled", [False, True])
def test_solvers_of_the_exact_model_have_the_error_of_the_solver(labelled: bool) -> None:
    measured, model = judge({"name": "mixture", "modes": 3, "labelled": labelled})
    found = [
        measured.judge("exact", model, scmreg.samplers.create("heun", steps=steps)).figures["trajectory_error"]
        for steps in (8, 32, 128)
    ]
    assert found[0] > 4 * found[1] > 16 * found[2] > 0
    assert found[2] < 1e-3
    few = measured.judge("exact", model, scmreg.samplers.create("consistency", steps=2)).figures["trajectory_error"]
    assert few < 1e-5, "the judge solves the flow less precisely than the model"


def test_guided_samples_have_no_truth() -> None:
    measured, model = judge({"name": "mixture", "labelled": True})
    figures = measured.judge("guided", model, scmreg.samplers.create("heun", steps=3, guidance=2.0)).figures
    assert "trajectory_error" not in figures
    assert "sliced_wasserstein" in figures


def test_truth_is_computed_under_the_process_of_the_model() -> None:
    """The same samples, the same error, whatever coordinates the model runs in."""
    measured, model = judge({"name": "mixture"})
    sampler = scmreg.samplers.create("ddim", steps=6)
    errors = []
    for name in PROCESSES:
        process = scmreg.processes.create(name)
        errors.append(measured.judge(name, scmreg.convert(model, process), sampler).figures["trajectory_error"])
    assert errors == pytest.approx([errors[0]] * len(errors), rel=1e-4)
    assert errors[0] > 0.01


def test_truth_begins_where_the_samples_do() -> None:
    """A model that was trained up to a low noise level, converted: its samples and their truth start there."""
    measured, exact = judge({"name": "mixture", "modes": 3})
    short = scmreg.processes.create("edm", sigma_max=5.0)
    learned = Denoiser(exact.network, short, exact.parameterization)
    sampler = scmreg.samplers.create("heun", steps=64)
    for process in (short, scmreg.processes.create("trigflow"), scmreg.processes.create("vp")):
        model = scmreg.convert(learned, process)
        assert 0 < measured.judge("short", model, sampler).figures["trajectory_error"] < 5e-3
    beyond = measured.judge("long", scmreg.convert(exact, scmreg.processes.create("vp")), sampler)
    assert float((beyond.samples.x - measured.judge("short", model, sampler).samples.x).abs().max()) > 0.01


def test_times_of_the_exact_network_are_trigflows() -> None:
    """Whatever the process, the network is asked at points of unit variance and TrigFlow times."""
    for name in PROCESSES:
        process = scmreg.processes.create(name, sigma_data=0.3)
        model, asked = ExactDenoiser(PLANE, process), []
        model.network.register_forward_hook(lambda net, given, out, asked=asked: asked.append(given))
        t = times(process, 5, torch.Generator().manual_seed(0))
        x = torch.randn(5, 2, dtype=torch.float64)
        model.data(expand(process.std(t), x) * x, t)
        assert close(asked[0][0], x, 1e-12)
        assert close(asked[0][1], trig_time(process, t), 1e-12)
