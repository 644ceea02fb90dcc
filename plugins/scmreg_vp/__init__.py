"""The variance-preserving family: its two schedules, and the outputs of the networks that were trained on them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scmreg.component import Component
from scmreg.errors import OptionError
from scmreg.hookspecs import hookimpl
from scmreg.parameterization import Preconditioning, Prediction
from scmreg.process import Coefficients, Process
from scmreg.types import Positive

__all__ = ["VP", "Cosine", "Data", "Noise", "Score", "Velocity"]


class VP(Process, name="vp"):
    """Mix data and noise at a rate that grows linearly: DDPM's schedule in continuous time."""

    formula = (
        "alpha = exp(-B(t)/2),  sigma² = 1 - alpha²,  B(t) = beta_min t + (beta_max - beta_min) t²/2,  0 <= t <= 1"
    )
    reference = "Song et al. 2021 (score SDE), arXiv:2011.13456, Eq. 33; Ho et al. 2020 (DDPM), arXiv:2006.11239"

    t_max = 1.0

    beta_min: Positive = 0.1
    """Rate of the noise at the data."""
    beta_max: Positive = 20.0
    """Rate of the noise at the end; at least beta_min."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta_max < self.beta_min:
            raise OptionError([f"beta_max {self.beta_max:g} of process 'vp' is below its beta_min {self.beta_min:g}"])

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return the coefficients; the derivative of sigma is infinite at 0."""
        beta = self.beta_min + t * (self.beta_max - self.beta_min)
        integral = t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)
        alpha, sigma = torch.exp(-integral / 2), torch.sqrt(-torch.expm1(-integral))
        return Coefficients(alpha, sigma, -beta * alpha / 2, beta * alpha**2 / (2 * sigma))

    def time_of(self, ratio: Tensor) -> Tensor:
        """Return the root of ``B(t) = log(1 + ratio²)``, in the form that does not cancel."""
        integral = torch.log1p(ratio**2)
        share, growth = self.beta_min / integral, 2 * (self.beta_max - self.beta_min)
        return 2 / (share + (torch.sqrt(share**2 + growth / integral) if growth else share))


class Cosine(Process, name="cosine"):
    """Mix data and noise on a quarter of a circle: TrigFlow with noise of unit variance and time from 0 to 1."""

    formula = "alpha = cos(pi t/2),  sigma = sin(pi t/2),  0 <= t < 1"
    reference = (
        "Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 17 (without offset); Salimans & Ho 2022, arXiv:2202.00512"
    )

    # The largest float32 below 1: at 1 itself there is no data left.
    t_max = 0.9999999403953552

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return the coefficients; the cosine by the sine of what is left, which is exact up to the end."""
        alpha, sigma = torch.sin((1 - t) * (math.pi / 2)), torch.sin(t * (math.pi / 2))
        return Coefficients(alpha, sigma, -sigma * (math.pi / 2), alpha * (math.pi / 2))

    def time_of(self, ratio: Tensor) -> Tensor:
        """Return ``(2/pi) atan(ratio)``."""
        return torch.atan(ratio) * (2 / math.pi)


class Data(Prediction, name="data"):
    """Predict the clean sample: ``F = x_0``."""

    formula = "D = F,  eps = (x - alpha F)/sigma"
    reference = "Ho et al. 2020 (DDPM), arXiv:2006.11239, Sec. 3.2; Salimans & Ho 2022, arXiv:2202.00512"

    def preconditioning(self, process: Process, t: Tensor) -> Preconditioning:
        """Return the coefficients for any process."""
        at = process.coefficients(t)
        return Preconditioning(
            c_skip=torch.zeros_like(t),
            c_out=torch.ones_like(t),
            n_skip=1 / at.sigma,
            n_out=-at.alpha / at.sigma,
            c_in=self.input_scale(process, t),
        )


class Noise(Prediction, name="noise"):
    """Predict the noise: ``F = noise``, of unit variance at every time; it says nothing of the data in pure noise."""

    formula = "D = (x - sigma F)/alpha,  eps = F"
    reference = "Ho et al. 2020 (DDPM), arXiv:2006.11239, Eq. 12"

    def preconditioning(self, process: Process, t: Tensor) -> Preconditioning:
        """Return the coefficients for any process."""
        at = process.coefficients(t)
        return Preconditioning(
            c_skip=1 / at.alpha,
            c_out=-at.sigma / at.alpha,
            n_skip=torch.zeros_like(t),
            n_out=torch.ones_like(t),
            c_in=self.input_scale(process, t),
        )


class Velocity(Prediction, name="velocity"):
    """Predict ``v``: ``F = alpha noise - sigma x_0``."""

    formula = "D = (alpha x - sigma F)/(alpha² + sigma²),  eps = (sigma x + alpha F)/(alpha² + sigma²)"
    reference = "Salimans & Ho 2022, arXiv:2202.00512, App. D"

    def preconditioning(self, process: Process, t: Tensor) -> Preconditioning:
        """Return the coefficients for any process."""
        at = process.coefficients(t)
        square = at.alpha**2 + at.sigma**2
        return Preconditioning(
            c_skip=at.alpha / square,
            c_out=-at.sigma / square,
            n_skip=at.sigma / square,
            n_out=at.alpha / square,
            c_in=self.input_scale(process, t),
        )


class Score(Prediction, name="score"):
    """Predict the score of the marginal: ``F = -noise/sigma``, unbounded towards the data."""

    formula = "D = (x + sigma² F)/alpha,  eps = -sigma F"
    reference = "Song et al. 2021 (score SDE), arXiv:2011.13456, Eq. 7"

    def preconditioning(self, process: Process, t: Tensor) -> Preconditioning:
        """Return the coefficients for any process."""
        at = process.coefficients(t)
        return Preconditioning(
            c_skip=1 / at.alpha,
            c_out=at.sigma**2 / at.alpha,
            n_skip=torch.zeros_like(t),
            n_out=-at.sigma,
            c_in=self.input_scale(process, t),
        )


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [VP, Cosine, Data, Noise, Velocity, Score]
