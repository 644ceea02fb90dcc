"""Exact laws, flows and proposals against `scipy`: quadrature, another ODE solver, distributions, all in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from strategies import PROCESSES
from torch import Tensor

import scmreg
from scmreg.coordinates import process_time
from scmreg.law import ExactDenoiser, GaussianMixture
from scmreg.process import Process
from scmreg.proposal import Proposal
from scmreg.rng import generator, sample_noise
from scmreg.sampler import Noise, OdeSampler
from scmreg.types import Conditions

SIGMA_DATA = 0.3
QUADRATURE = 1e-12
"""Tolerance of integrals, which are good to some 1e-15 times the number of pieces and of terms that cancel."""
CHANCE = 1e-3
"""Smallest p-value; ten thousand samples then reveal 2 % of the probability in a wrong place."""

LINE = GaussianMixture(
    weights=torch.tensor([0.5, 0.3, 0.2]),
    means=torch.tensor([[1.0], [-1.2], [0.1]]),
    stds=torch.tensor([[0.3], [0.6], [0.15]]),
    classes=torch.tensor([0, 1, 0]),
)
SPACE = GaussianMixture(
    weights=torch.tensor([0.5, 0.3, 0.2]),
    means=torch.tensor([[1.0, -0.5, 0.3], [-1.2, 0.4, 0.9], [0.1, 1.1, -1.4]]),
    stds=torch.tensor([[0.3, 0.5, 0.2], [0.6, 0.1, 0.4], [0.25, 0.35, 0.45]]),
)
BALL = GaussianMixture(torch.ones(1), torch.tensor([[0.5, -0.2, 0.1]]), torch.tensor([[0.4, 1.3, 0.7]]))
under_every_process = pytest.mark.parametrize("name", PROCESSES)


def process_of(name: str, sigma_data: float = SIGMA_DATA) -> Process:
    return scmreg.processes.create(name, sigma_data=sigma_data)


def times_of(process: Process, *t_hat: float) -> Tensor:
    """The process's times of TrigFlow times."""
    return process_time(process, torch.tensor(t_hat, dtype=torch.float64))


def coefficients(process: Process, t: Tensor) -> tuple[float, ...]:
    return tuple(float(x) for x in process.coefficients(t.reshape(1)))


# The law of the line: what it is at every time, by scipy's normal distribution alone.


def components(alpha: float, sigma: float, label: int | None = None) -> tuple[np.ndarray, Any]:
    """Weights and distributions of the components of ``alpha x_0 + sigma noise``, in the scale of the data."""
    assert LINE.classes is not None
    chosen = np.full(3, True) if label is None else (LINE.classes == label).numpy()
    weights, means, stds = (x.flatten().numpy()[chosen] for x in (LINE.weights, LINE.means, LINE.stds))
    spread = np.hypot(alpha * SIGMA_DATA * stds, sigma)
    return weights / weights.sum(), scipy.stats.norm(alpha * SIGMA_DATA * means, spread)


def quantile(share: float, alpha: float, sigma: float) -> float:
    """The point below which ``alpha x_0 + sigma noise`` is with a probability."""
    weights, each = components(alpha, sigma)
    far = 50 * float(np.max(each.std()))
    return scipy.optimize.brentq(lambda x: weights @ each.cdf(x) - share, -far, far, xtol=1e-15, rtol=1e-14)


def share_of_data(x: np.ndarray) -> np.ndarray:
    """The share of the data below each of some points."""
    weights, each = components(1, 0)
    return each.cdf(x[:, None]) @ weights


def integral(of: Any, cuts: Any) -> float:
    """The integral of a function over pieces that are smooth at their own scale: Gauss-Legendre, 60 points each."""
    return sum(scipy.integrate.fixed_quad(of, *ends, n=60)[0] for ends in itertools.pairwise(cuts))


@pytest.mark.parametrize("label", [None, 0, 1, 2])
@under_every_process
def test_predictions_are_posterior_means(name: str, label: int | None) -> None:
    """E[h(x_0) | x] as the quotient of two integrals over x_0; label 2 is "no label"."""
    process = process_of(name)
    exact = ExactDenoiser(LINE, process)
    weights, data = components(1, 0, None if label == 2 else label)
    cond = Conditions(label=None if label is None else torch.tensor([label]))
    for t, share in itertools.product(times_of(process, 0.05, 0.7, 1.5), (0.05, 0.5, 0.9)):
        alpha, sigma, alpha_prime, sigma_prime = coefficients(process, t)
        x = quantile(share, alpha, sigma)

        def weight(x0: np.ndarray, x: float = x, alpha: float = alpha, sigma: float = sigma) -> np.ndarray:
            # the density of x given x_0, up to a factor that keeps it away from underflow
            return weights @ data.pdf(x0[:, None]).T * np.exp(-0.5 * ((x - alpha * x0) / sigma) ** 2)

        far, peak = 12 * SIGMA_DATA, x / alpha + sigma / alpha * np.linspace(-9, 9, 7)
        cuts = np.unique([-far, far, *np.ravel(data.interval(0.99)), *data.mean(), *peak[abs(peak) < far]])

        def mean(of: Any, weight: Any = weight, cuts: np.ndarray = cuts) -> float:
            return integral(lambda x0: of(x0) * weight(x0), cuts) / integral(weight, cuts)

        point, time = torch.tensor([[x]], dtype=torch.float64), t.reshape(1)
        clean, noise = mean(lambda x0: x0), mean(lambda x0, x=x, a=alpha, s=sigma: (x - a * x0) / s)
        expected = {
            "data": clean,
            "noise": noise,
            "v": alpha * noise - sigma * clean,
            "velocity": alpha_prime * clean + sigma_prime * noise,
            "score": -noise / sigma,
        }
        for what, value in expected.items():
            assert float(getattr(exact, what)(point, time, cond)) == pytest.approx(
                value, rel=QUADRATURE, abs=QUADRATURE
            ), what


@under_every_process
def test_score_is_the_gradient_of_the_log_density(name: str) -> None:
    """By differences of fourth order of scipy's multivariate normal densities.

    In units of the smallest spread, h = 1e-3 makes them err by h⁴/30 times the fifth derivative, 1e-13 times some tens,
    and by the rounding of the log-density over h, 1e-12.
    """
    process, rng = process_of(name), torch.Generator().manual_seed(0)
    exact = ExactDenoiser(SPACE, process)
    for t in times_of(process, 0.1, 0.8, 1.5):
        alpha, sigma, *_ = coefficients(process, t)
        spread = (SPACE.stds * SIGMA_DATA * alpha).square().add(sigma**2)
        laws = [
            scipy.stats.multivariate_normal(mean, np.diag(square))
            for mean, square in zip((alpha * SIGMA_DATA * SPACE.means).numpy(), spread.numpy(), strict=True)
        ]

        def log_density(x: np.ndarray, laws: list[Any] = laws) -> float:
            return scipy.special.logsumexp([law.logpdf(x) for law in laws], b=SPACE.weights.numpy())

        x = process.perturb(SIGMA_DATA * SPACE.draw(4, rng)[0], torch.randn(4, 3, generator=rng).double(), t.expand(4))
        h = 1e-3 * float(spread.min()) ** 0.5
        slope = np.zeros((4, 3))
        for i, axis in itertools.product(range(4), range(3)):
            near = [log_density(x[i].numpy() + step * h * np.eye(3)[axis]) for step in (-2, -1, 1, 2)]
            slope[i, axis] = np.dot(near, [1, -8, 8, -1]) / (12 * h)
        found = exact.score(x, t.expand(4)).numpy()
        np.testing.assert_allclose(found, slope, rtol=0, atol=1e-10 * float(abs(slope).max()))


@under_every_process
def test_the_flow_on_a_line_carries_quantiles_to_quantiles(name: str) -> None:
    """No ODE: on a line trajectories cannot cross, so the share of probability below a trajectory stays the same.

    The solver behind `consistency` works to 1e-10 and 1e-12 a step; 1e-9 of the scale of the data is what it keeps.
    """
    process = process_of(name)
    exact = ExactDenoiser(LINE, process)
    shares = [0.01, 0.2, 0.4, 0.5, 0.6, 0.8, 0.99]
    for start in times_of(process, 0.3, 1.0, 1.56):
        x = torch.tensor([[quantile(u, *coefficients(process, start)[:2])] for u in shares], dtype=torch.float64)
        for end in [None, *times_of(process, 0.05, 0.2)]:
            to = (1.0, 0.0) if end is None else coefficients(process, end)[:2]
            expected = [[quantile(u, *to)] for u in shares]
            found = exact.consistency(x, start.expand(7), None if end is None else end.expand(7))
            np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-9 * SIGMA_DATA)


def solved(exact: ExactDenoiser, x: Tensor, start: Tensor, end: Tensor, method: str) -> Tensor:
    """The probability-flow ODE in the process's own time, by `scipy`."""

    def slope(t: float, flat: np.ndarray) -> np.ndarray:
        at = torch.full((len(x),), float(t), dtype=torch.float64)
        return exact.velocity(torch.from_numpy(flat).reshape(x.shape), at).numpy().ravel()

    found = scipy.integrate.solve_ivp(
        slope, (float(start), float(end)), x.numpy().ravel(), method=method, rtol=1e-11, atol=1e-12
    )
    assert found.success, found.message
    return torch.from_numpy(found.y[:, -1]).reshape(x.shape)


@pytest.mark.parametrize("law", [BALL, SPACE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("method", ["DOP853", "LSODA"])
@under_every_process
def test_consistency_is_the_end_of_the_ode(name: str, method: str, law: GaussianMixture) -> None:
    """`consistency` solves in TrigFlow, or in closed form; here every process is solved in its own coordinates.

    Not to 0 under vp, where the velocity is infinite. Tolerances of 1e-10 and 1e-11 a step add up over tens of steps of
    DOP853, hundreds of LSODA.
    """
    process = process_of(name)
    exact = ExactDenoiser(law, process)
    (start,) = times_of(process, 1.5)
    x = process.prior(
        torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), start.expand(4)
    )
    for end in times_of(process, 0.02 if name == "vp" else 0.0, 0.4):
        found = solved(exact, x, start, end, method)
        bound = SIGMA_DATA * (1e-9 if method == "DOP853" else 1e-8)
        torch.testing.assert_close(exact.consistency(x, start.expand(4), end.expand(4)), found, rtol=0, atol=bound)
        if end == 0:
            torch.testing.assert_close(exact.consistency(x, start.expand(4)), found, rtol=0, atol=bound)


@under_every_process
def test_heun_goes_where_the_ode_goes(name: str) -> None:
    """The error of second order falls to a quarter; what is left after extrapolation is of higher order."""
    process = process_of(name)
    exact = ExactDenoiser(SPACE, process)
    heun = scmreg.samplers.create("heun")
    assert isinstance(heun, OdeSampler)
    start, end = times_of(process, 1.5, 0.1)
    x = process.prior(
        torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), start.expand(4)
    )
    truth = solved(exact, x, start, end, "DOP853")
    first, last = (float(process.noise_level(t.reshape(1)).log()) for t in (start, end))
    ends = [
        heun.solve(exact, x, process.time_of(torch.linspace(first, last, steps + 1, dtype=torch.float64).exp()))
        for steps in (100, 200)
    ]
    errors = [float((reached - truth).norm() / truth.norm()) for reached in ends]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.02)
    extrapolated = ends[1] + (ends[1] - ends[0]) / 3
    assert float((extrapolated - truth).norm() / truth.norm()) < errors[1] / 50 < 1e-5


# Distributions, with fixed seeds.

LEVELS = {"p_mean": -0.8, "p_std": 1.6}
LOGITS = {"mean": 0.4, "std": 0.8}
PROPOSALS: dict[str, dict[str, float]] = {
    "lognormal": LEVELS,
    "discrete-lognormal": LEVELS,
    "logit-normal": LOGITS,
    "uniform": {},
    "karras": {},
    "converted": {},
}


def proposal_of(name: str, process: Process) -> Proposal:
    """A proposal for a process; the converted one is of flow matching's times, for data of another scale."""
    if name == "converted":
        return proposal_of("logit-normal", process).under(process_of("flow", 0.5), process)
    made = scmreg.proposals.create(name, **PROPOSALS[name])
    assert isinstance(made, Proposal)
    return made


@pytest.mark.parametrize("proposal", PROPOSALS)
@under_every_process
def test_density_of_a_proposal_is_the_one_of_its_quantiles(name: str, proposal: str) -> None:
    """Between two quantiles the density integrates to what is between their shares."""
    process = process_of(name)
    chosen = proposal_of(proposal, process)
    shares = torch.tensor([1e-3, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.999], dtype=torch.float64)

    def density(t: np.ndarray) -> np.ndarray:
        return chosen.log_density(process, torch.from_numpy(t)).exp().numpy()

    times = chosen.transform(process, shares).tolist()
    assert times[-1] <= process.t_max
    for ends, share in zip(itertools.pairwise(times), shares.diff().tolist(), strict=True):
        assert integral(density, ends) == pytest.approx(share, rel=QUADRATURE)


def test_log_normal_times_of_edm_are_scipys() -> None:
    process = process_of("edm")
    chosen = proposal_of("lognormal", process)
    theirs = scipy.stats.lognorm(s=LEVELS["p_std"], scale=math.exp(LEVELS["p_mean"]))
    shares, t = torch.linspace(0.001, 0.999, 99, dtype=torch.float64), torch.logspace(-3, 1.9, 99, dtype=torch.float64)
    np.testing.assert_allclose(chosen.transform(process, shares), theirs.ppf(shares), rtol=1e-12)
    np.testing.assert_allclose(chosen.log_density(process, t), theirs.logpdf(t), rtol=0, atol=1e-12)


@under_every_process
def test_samples_of_proposals_are_distributed_as_they_say(name: str) -> None:
    """What is normal: the logarithm of the noise level, or the logit of the time."""

    def truncated(p: Process, t: Tensor) -> Any:
        ends = (math.log(end) for end in (0.002, min(80.0, p.highest_level)))
        first, last = ((end - LEVELS["p_mean"]) / LEVELS["p_std"] for end in ends)
        return scipy.stats.truncnorm(first, last, LEVELS["p_mean"], LEVELS["p_std"]).cdf(p.noise_level(t).log())

    def along_the_steps(p: Process, t: Tensor) -> Any:
        first, last = (end ** (1 / 7) for end in (0.002, min(80.0, p.highest_level)))
        return scipy.stats.uniform(first, last - first).cdf(p.noise_level(t) ** (1 / 7))

    expected = {
        "discrete-lognormal": truncated,
        "karras": along_the_steps,
        "lognormal": lambda p, t: scipy.stats.norm(LEVELS["p_mean"], LEVELS["p_std"]).cdf(p.noise_level(t).log()),
        "logit-normal": lambda p, t: scipy.stats.norm(LOGITS["mean"], LOGITS["std"]).cdf(torch.logit(t / p.t_max)),
        "uniform": lambda p, t: scipy.stats.uniform(0, p.t_max).cdf(t),
        # under flow, whose time is the share of noise, data being larger there
        "converted": lambda p, t: scipy.stats.norm(LOGITS["mean"], LOGITS["std"]).cdf(
            (p.noise_level(t) * 0.5 / p.sigma_data).log()
        ),
    }
    assert expected.keys() == PROPOSALS.keys() == set(scmreg.proposals)
    for proposal, share in expected.items():
        process = process_of(name)
        t = proposal_of(proposal, process).sample(process, 10_000, torch.Generator().manual_seed(0)).double()
        assert scipy.stats.kstest(share(process, t), "uniform").pvalue > CHANCE, proposal


def test_noise_of_samples_is_normal_and_unrelated() -> None:
    """Every sample has a generator of its own, seeded by a hash: over seeds they are as good as one generator."""
    first, second = (sample_noise(range(5000), (2,), draw).double().numpy() for draw in (0, 1))
    drawn = np.concatenate([first, second], 1)
    assert all(scipy.stats.kstest(column, "norm").pvalue > CHANCE for column in drawn.T)
    related = [scipy.stats.pearsonr(drawn[:, i], drawn[:, j]).pvalue for i, j in itertools.combinations(range(4), 2)]
    assert min(related) > CHANCE
    assert scipy.stats.pearsonr(drawn[1:, 0], drawn[:-1, 0]).pvalue > CHANCE


def test_points_of_a_mixture_are_distributed_as_it_says() -> None:
    points, component = LINE.draw(10_000, generator("points"))
    assert scipy.stats.kstest(SIGMA_DATA * points[:, 0].numpy(), share_of_data).pvalue > CHANCE
    counts = torch.bincount(component, minlength=3)
    assert scipy.stats.chisquare(counts, 10_000 * LINE.weights).pvalue > CHANCE
    for k, (mean, std) in enumerate(zip(SPACE.means, SPACE.stds, strict=True)):
        points, component = SPACE.draw(5000, generator("space", k))
        for axis in range(3):
            law = scipy.stats.norm(float(mean[axis]), float(std[axis]))
            assert scipy.stats.kstest(points[component == k, axis], law.cdf).pvalue > CHANCE


@pytest.mark.parametrize("sampler", [("consistency", 1), ("consistency", 3), ("dpm-solver++-2m", 40), ("heun", 40)])
@under_every_process
def test_samples_of_the_exact_model_have_the_law_of_the_data(name: str, sampler: tuple[str, int]) -> None:
    exact = ExactDenoiser(LINE, process_of(name))
    x = scmreg.samplers.create(sampler[0], steps=sampler[1]).sample(exact, Noise(range(1000), (1,)), Conditions())
    assert scipy.stats.kstest(x[:, 0].double().numpy(), share_of_data).pvalue > CHANCE
