"""Metrics: zero on itself, known values in known cases, the extremes at the extremes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from scmreg import datasets, metrics
from scmreg.data import DataSpec
from scmreg.evaluate import reference_of
from scmreg.metric import Judged, Reference
from scmreg.rng import generator

NAMES = list(metrics)


@pytest.fixture(scope="module")
def digits():
    return reference_of(datasets.create("digits").load())


@pytest.fixture(scope="module")
def points():
    return reference_of(datasets.create("gaussians", count=600, labelled=True).load())


def pictures(x, held_out=10, name="pictures"):
    """Return a reference of images that are no digits."""
    spec = DataSpec(name, tuple(x.shape[1:]), "image")
    return Reference(spec, Judged(x[held_out:]), Judged(x[:held_out]))


def cloud(x, held_out=None):
    spec = DataSpec("cloud", tuple(x.shape[1:]), "points")
    return Reference(spec, Judged(x), Judged(x[:0] if held_out is None else held_out))


def scipy_frechet(x, y):
    x, y = x.flatten(1).double().numpy(), y.flatten(1).double().numpy()
    c, d = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(c @ d)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c + d - 2 * root).real)


@pytest.mark.parametrize("name", NAMES)
def test_they_give_the_figures_that_they_announce(name, digits, points):
    metric, applied = metrics.create(name), 0
    for reference in (digits, points):
        if reason := metric.applies(reference):
            assert len(reason) > 5
            continue
        applied += 1
        samples = reference.all
        if metric.needs_truth:
            assert metric.measure(samples, reference) == {}, "nothing, where nothing is known"
            samples = dataclasses.replace(samples, truth=samples.x + 0.1)
        figures = metric.measure(samples, reference)
        assert figures
        assert set(figures) <= set(metric.figures)
        assert all(isinstance(value, float) and math.isfinite(value) for value in figures.values())
        assert set(metric.floor(reference)) <= set(figures)
        assert metric.measure(samples, reference) == figures, "the same every time"
    assert applied


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_samples_is_nothing(name, digits, points):
    metric = metrics.create(name)
    for reference in (digits, points):
        if metric.applies(reference):
            continue
        x, labels = reference.held_out.x, reference.held_out.labels
        order = torch.randperm(len(x), generator=generator(0))
        truth = x + torch.randn(x.shape, generator=generator(1)) if metric.needs_truth else None
        one = metric.measure(Judged(x, labels, truth), reference)
        two = metric.measure(Judged(x[order], labels[order], None if truth is None else truth[order]), reference)
        assert one
        assert one == pytest.approx(two, rel=1e-5, abs=1e-6)


# Fréchet --------------------------------------------------------------------------------------------------------------


def test_frechet_is_zero_on_itself(digits):
    figures = metrics.create("frechet").measure(digits.all, digits)
    assert list(figures) == ["frechet", "frechet_pixels"]
    assert all(abs(value) < 1e-5 for value in figures.values())


@pytest.mark.parametrize("seed", range(3))
def test_frechet_agrees_with_scipy(seed):
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(12, 12, generator=rng).double() + 2 * torch.eye(12)
    x = torch.randn(500, 12, generator=rng).double()
    y = torch.randn(400, 12, generator=rng).double() @ mix.T + torch.rand(12, generator=rng).double()
    from scmreg_metrics.frechet import frechet_distance

    expected = scipy_frechet(x, y)
    assert expected > 1
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-9), "symmetric"


def test_frechet_of_known_gaussians():
    """Independent axes: the squared shift of the means plus the squared difference of the deviations."""
    from scmreg_metrics.frechet import frechet_distance

    half = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).double() * math.sqrt(3 / 4)  # unit covariance
    torch.testing.assert_close(torch.cov(half.T), torch.eye(2).double())
    assert frechet_distance(half, half * 3 + 5) == pytest.approx(2 * 25 + 2 * 4, rel=1e-12)


def test_frechet_of_singular_covariances():
    """Pixels that never change: there is no inverse, and none is needed."""
    from scmreg_metrics.frechet import frechet_distance

    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 3, generator=rng), torch.randn(300, 3, generator=rng) * 2
    wide = lambda z: torch.cat([z, torch.zeros(300, 40)], 1)  # noqa: E731
    assert frechet_distance(wide(x), wide(y)) == pytest.approx(frechet_distance(x, y), rel=1e-9)


def test_frechet_of_digits_is_of_pixels_and_features(digits):
    from scmreg_metrics import digits as known

    noisy = digits.all.x + 0.2 * torch.randn(digits.all.x.shape, generator=generator(0))
    figures = metrics.create("frechet").measure(Judged(noisy, digits.all.labels), digits)
    jitter = 1e-6 * torch.randn(digits.all.x.shape, generator=generator(1)).double()
    assert figures["frechet_pixels"] == pytest.approx(scipy_frechet(noisy, digits.all.x + jitter), rel=1e-3)
    own = scipy_frechet(known.features(noisy), known.features(digits.all.x))
    assert figures["frechet"] == pytest.approx(own, rel=1e-3)


def test_the_features_have_unit_mean_variance(digits):
    from scmreg_metrics import digits as known

    features = known.features(digits.all.x).double()
    assert features.shape == (1797, 64)
    assert float(features.mean(0).abs().max()) < 1e-3
    assert float(features.var(0).mean()) == pytest.approx(1, rel=1e-3)


def test_the_feature_network_knows_digits(digits):
    from scmreg_metrics import digits as known

    network = known._network()
    right = network.logits(digits.all.x).argmax(1) == digits.all.labels
    assert float(right.double().mean()) > 0.98


def test_frechet_is_worse_for_worse(digits):
    metric, rng = metrics.create("frechet"), generator(0)
    noise = torch.randn(digits.all.x.shape, generator=rng)
    rows = [metric.measure(Judged(digits.all.x + scale * noise), digits) for scale in (0.0, 0.05, 0.2, 1.0)]
    for key in ("frechet", "frechet_pixels"):
        values = [row[key] for row in rows]
        assert values == sorted(values)
        assert values[-1] > 10 * values[1]


def test_the_floor_of_digits(digits):
    """The distance of random halves, well below that of anything else; the same every time."""
    metric = metrics.create("frechet")
    floor = metric.floor(digits)
    assert list(floor) == ["frechet", "frechet_pixels"]
    assert floor == metric.floor(digits)
    assert 0.3 < floor["frechet"] < 1.5
    assert 0.03 < floor["frechet_pixels"] < 0.15
    halves = torch.randperm(1797, generator=generator(99))
    x = digits.all.x
    jittered = x.double() + 1e-4 * torch.randn(x.shape, generator=generator(1)).double()
    other = scipy_frechet(jittered[halves[:898]], jittered[halves[898:1796]])
    assert floor["frechet_pixels"] == pytest.approx(other, rel=0.3)
    one_class = x[digits.all.labels == 3]
    assert metric.measure(Judged(one_class), digits)["frechet"] > 5 * floor["frechet"]


def test_frechet_applies_to_images_of_a_bearable_size(points):
    metric = metrics.create("frechet")
    assert "no images" in metric.applies(points)
    assert metric.applies(pictures(torch.rand(20, 3, 16, 16))) is None
    assert "too many" in metric.applies(pictures(torch.rand(20, 3, 64, 64)))
    other = pictures(torch.rand(60, 1, 8, 8))
    assert list(metric.measure(Judged(torch.rand(30, 1, 8, 8)), other)) == ["frechet_pixels"]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_handful_of_images(count):
    """Where there is too little for a covariance the metric says so, or is finite; it does not break down."""
    x = torch.rand(count, 1, 4, 4, generator=generator(0))
    for name in NAMES:
        metric = metrics.create(name)
        for reference in (pictures(x, 0), pictures(x, count // 2)):
            if metric.applies(reference):
                continue
            figures = {**metric.measure(Judged(torch.rand(8, 1, 4, 4)), reference), **metric.floor(reference)}
            assert all(math.isfinite(value) for value in figures.values()), (name, figures)


# Precision and recall -------------------------------------------------------------------------------------------------


def test_precision_and_recall_of_the_real_thing(points, digits):
    for reference in (points, digits):
        assert metrics.create("precision-recall").measure(reference.all, reference) == {"precision": 1.0, "recall": 1.0}


def test_precision_and_recall_of_something_else(points, digits):
    metric = metrics.create("precision-recall")
    far = Judged(points.all.x + 100)
    assert metric.measure(far, points) == {"precision": 0.0, "recall": 0.0}
    noise = Judged(torch.randn(300, 1, 8, 8, generator=generator(0)) * 3)
    assert metric.measure(noise, digits)["precision"] < 0.01


def test_a_single_mode_is_precise_and_recalls_little(points):
    one = points.all.x[points.all.labels == 2]
    figures = metrics.create("precision-recall").measure(Judged(one), points)
    assert figures["precision"] == 1.0
    assert figures["recall"] == pytest.approx(1 / 8, abs=0.05)


def test_wide_samples_recall_all_and_are_imprecise():
    rng = generator(0)
    reference = cloud(torch.randn(500, 2, generator=rng))
    wide = Judged(torch.rand(4000, 2, generator=rng) * 20 - 10)
    figures = metrics.create("precision-recall").measure(wide, reference)
    assert figures["recall"] > 0.95
    assert figures["precision"] < 0.2


def test_neighbourhoods_by_hand():
    """Real points 0, 1, 3 on a line: with one neighbour the radii are 1, 1 and 2."""
    reference = cloud(torch.tensor([[0.0], [1.0], [3.0]]))
    samples = Judged(torch.tensor([[-1.0], [-1.1], [5.0], [5.1], [2.5]]))
    figures = metrics.create("precision-recall", neighbours=1).measure(samples, reference)
    assert figures["precision"] == pytest.approx(3 / 5)
    # Samples have radii 0.1, 0.1, 0.1, 0.1 and 2.5: the last one reaches 0, 1 and 3.
    assert figures["recall"] == 1.0


def test_pieces_make_no_difference(monkeypatch):
    from scmreg_metrics import neighbours

    x, y = torch.randn(50, 3, generator=generator(0)), torch.randn(70, 3, generator=generator(1))
    whole = neighbours.nearest(x, y), neighbours.covered(x, by=y, neighbours=3)
    monkeypatch.setattr(neighbours, "PIECE", 7)
    torch.testing.assert_close(neighbours.nearest(x, y), whole[0])
    assert neighbours.covered(x, by=y, neighbours=3) == whole[1]
    brute = (x[:, None] - y[None]).double().norm(dim=2).amin(1)
    torch.testing.assert_close(whole[0], brute)


# Accuracy -------------------------------------------------------------------------------------------------------------


def test_accuracy_on_real_digits(digits):
    metric = metrics.create("accuracy")
    assert metric.measure(digits.all, digits)["accuracy"] > 0.98
    assert metric.measure(digits.held_out, digits)["accuracy"] > 0.98


def test_accuracy_of_wrong_labels(digits):
    metric = metrics.create("accuracy")
    wrong = Judged(digits.all.x, (digits.all.labels + 1) % 10)
    assert metric.measure(wrong, digits)["accuracy"] < 0.02
    blank = Judged(torch.zeros(100, 1, 8, 8), torch.arange(100) % 10)
    assert metric.measure(blank, digits)["accuracy"] == pytest.approx(0.1)


def test_accuracy_is_not_of_the_feature_network():
    """A classifier that was never fitted to the held-out digits still knows them: it is no look-up of the images."""
    from scmreg_metrics import digits as known

    images, labels = known.load_images()
    moved = images + 0.1 * torch.randn(images.shape, generator=generator(0))
    assert known.accuracy(Judged(moved, labels)) > 0.95


def test_accuracy_applies_to_digits_alone(points):
    assert metrics.create("accuracy").applies(points)
    assert metrics.create("accuracy").applies(pictures(torch.rand(20, 1, 8, 8)))


# Memorization ---------------------------------------------------------------------------------------------------------


def test_copies_are_memorized(digits):
    metric = metrics.create("memorization")
    assert metric.measure(digits.train, digits) == {"memorization": 1.0}
    far = Judged(digits.train.x + 10)
    assert metric.measure(far, digits) == {"memorization": 0.0}


def test_new_data_of_the_same_law_score_one_half(digits):
    metric = metrics.create("memorization")
    assert metric.measure(digits.held_out, digits)["memorization"] == pytest.approx(0.5, abs=0.01)
    rng = generator(0)
    reference = cloud(torch.randn(500, 2, generator=rng), torch.randn(500, 2, generator=rng))
    fresh = Judged(torch.randn(2000, 2, generator=rng))
    assert metric.measure(fresh, reference)["memorization"] == pytest.approx(0.5, abs=0.06)


def test_memorization_needs_held_out_data():
    metric = metrics.create("memorization")
    assert "held out" in metric.applies(cloud(torch.rand(10, 2)))
    assert metric.applies(cloud(torch.rand(10, 2), torch.rand(3, 2))) is None


# Sliced Wasserstein ---------------------------------------------------------------------------------------------------


def test_sliced_wasserstein_is_zero_on_itself(points):
    assert metrics.create("sliced-wasserstein").measure(points.all, points)["sliced_wasserstein"] == pytest.approx(
        0, abs=1e-9
    )


@pytest.mark.parametrize("dimensions", [2, 3, 10])
def test_sliced_wasserstein_of_a_shift(dimensions):
    """A shift by ``s`` moves every projection by ``u·s``: the root mean square is ``|s| / sqrt(D)``."""
    x = torch.randn(400, dimensions, generator=generator(0))
    metric = metrics.create("sliced-wasserstein", projections=4000)
    shift = torch.zeros(dimensions)
    shift[0] = 3.0
    distance = metric.measure(Judged(x + shift), cloud(x))["sliced_wasserstein"]
    assert distance == pytest.approx(3 / math.sqrt(dimensions), rel=0.05)


def test_sliced_wasserstein_in_one_dimension():
    """There it is the Wasserstein distance itself: the difference of sorted values."""
    x, y = torch.randn(301, 1, generator=generator(0)), 2 * torch.randn(301, 1, generator=generator(1)) + 1
    expected = (x.sort(dim=0).values - y.sort(dim=0).values).double().square().mean().sqrt()
    distance = metrics.create("sliced-wasserstein").measure(Judged(y), cloud(x))["sliced_wasserstein"]
    assert distance == pytest.approx(float(expected), rel=0.03)


def test_sliced_wasserstein_of_a_scaling():
    """Gaussians of deviations 1 and 2: the distance of every projection is 1."""
    x = torch.randn(20_000, 2, generator=generator(0))
    y = 2 * torch.randn(15_000, 2, generator=generator(1))
    metric = metrics.create("sliced-wasserstein", projections=50)
    assert metric.measure(Judged(y), cloud(x))["sliced_wasserstein"] == pytest.approx(1, rel=0.03)


def test_sliced_wasserstein_of_many_points():
    """torch.quantile has a limit on its input that 200 projections of 100,000 points are beyond."""
    x = torch.randn(100_000, 2, generator=generator(0))
    metric = metrics.create("sliced-wasserstein", projections=200)
    assert metric.measure(Judged(x[:1000] + 1), cloud(x))["sliced_wasserstein"] == pytest.approx(1, rel=0.1)


def test_the_floor_of_points(points):
    metric = metrics.create("sliced-wasserstein")
    floor = metric.floor(points)["sliced_wasserstein"]
    assert 0 < floor < 0.6
    far = metric.measure(Judged(points.all.x * 0), points)["sliced_wasserstein"]
    assert far > 4 * floor
    assert metric.applies(pictures(torch.rand(20, 1, 8, 8)))


@pytest.mark.parametrize("name", NAMES)
def test_real_data_alone_have_floors_where_it_is_worth_knowing(name, digits, points):
    metric = metrics.create(name)
    for reference in (digits, points):
        if metric.applies(reference) is None:
            for value in metric.floor(reference).values():
                assert value > 0
