"""Every process: its ends, derivatives, conversion to TrigFlow and back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from strategies import PROCESSES, batches, close, pair, processes, seeds, shapes, times

import scmreg
from scmreg.coordinates import from_trig, log_ratio_rate, to_trig, trig_time
from scmreg.process import Coefficients, Process


@pytest.mark.parametrize("name", PROCESSES)
def test_it_begins_at_the_data_and_ends_in_noise(name: str) -> None:
    process = scmreg.processes.create(name)
    start = process.coefficients(torch.zeros(1, dtype=torch.float64))
    assert float(start.alpha) == 1
    assert float(start.sigma) == 0
    end = process.coefficients(torch.tensor([process.t_max], dtype=torch.float64))
    assert float(end.sigma / end.alpha) >= 80 or float(end.alpha) == 0


@given(process=processes(), seed=seeds)
def test_derivatives_are_those_of_autograd(process: Process, seed: int) -> None:
    t = times(process, 7, torch.Generator().manual_seed(seed))
    for value, slope in ((0, 2), (1, 3)):
        _, derivative = torch.func.jvp(lambda t, i=value: process.coefficients(t)[i], (t,), (torch.ones_like(t),))
        assert close(derivative, process.coefficients(t)[slope], 1e-12)


@given(process=processes(), seed=seeds)
def test_noise_level_grows_with_time_and_is_inverted(process: Process, seed: int) -> None:
    t = times(process, 50, torch.Generator().manual_seed(seed)).sort().values
    at = process.coefficients(t)
    ratio = at.sigma / at.alpha
    assert bool((ratio.diff() >= 0).all())
    assert close(process.time_of(ratio), t, 1e-12)
    assert close(Process.time_of(process, ratio), t, 1e-9)  # by bisection, as a process without a closed form does


@given(process=processes(), seed=seeds, batch=batches, shape=shapes)
def test_points_go_to_trigflow_and_back(process: Process, seed: int, batch: int, shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(seed)
    x0, noise = pair(shape, batch, process.sigma_data, rng)
    t = times(process, batch, rng)
    x = process.perturb(x0, noise, t)
    x_hat, t_hat = to_trig(process, x, t)
    trig = scmreg.processes.create("trigflow", sigma_data=process.sigma_data)
    assert close(x_hat, trig.perturb(x0, noise, t_hat), 1e-12)  # the marginal is TrigFlow's (Eq. 29)
    back, t_back = from_trig(process, x_hat, t_hat)
    assert close(back, x, 1e-10)
    assert close(t_back, t, 1e-10)


@given(process=processes(), seed=seeds)
def test_log_ratio_rate_is_the_chain_rule(process: Process, seed: int) -> None:
    t = times(process, 9, torch.Generator().manual_seed(seed))
    t_hat, slope = torch.func.jvp(lambda t: trig_time(process, t), (t,), (torch.ones_like(t),))
    assert close(log_ratio_rate(process, t) * slope, torch.cos(t_hat) * torch.sin(t_hat), 1e-10)


@given(process=processes(), seed=seeds)
def test_snr_is_that_of_trigflow(process: Process, seed: int) -> None:
    t = times(process, 9, torch.Generator().manual_seed(seed))
    assert close(process.snr(t), torch.tan(trig_time(process, t)) ** -2, 1e-10)  # Eq. 34


@given(process=processes(), seed=seeds)
def test_velocity_is_the_derivative_of_perturb(process: Process, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    x0, noise = pair((3,), 4, process.sigma_data, rng)
    t = times(process, 4, rng)
    _, slope = torch.func.jvp(lambda t: process.perturb(x0, noise, t), (t,), (torch.ones_like(t),))
    assert close(process.velocity(x0, noise, t), slope, 1e-12)


def test_trigflow_does_not_pass_its_end_in_float32() -> None:
    trig = scmreg.processes.create("trigflow")
    t = torch.tensor([trig.t_max], dtype=torch.float32)
    assert float(t) < math.pi / 2
    assert float(trig.coefficients(t).alpha) > 0


def test_a_process_needs_only_its_coefficients(monkeypatch: pytest.MonkeyPatch) -> None:
    class Power(Process):
        t_max = 3.0

        def coefficients(self, t: torch.Tensor) -> Coefficients:
            return Coefficients(torch.exp(-t), t**2, -torch.exp(-t), 2 * t)

    process = Power()
    t = torch.linspace(0.1, 2.9, 11, dtype=torch.float64)
    at = process.coefficients(t)
    assert close(process.time_of(at.sigma / at.alpha), t, 1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_times_are_refused(dtype: torch.dtype) -> None:
    process = scmreg.processes.create("trigflow")
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="half precision"):
        process.perturb(x, x, torch.ones(2, dtype=dtype))


def test_one_time_a_sample() -> None:
    process = scmreg.processes.create("edm")
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="2 samples"):
        process.perturb(x, x, torch.ones(3))
