"""Weightings of pairs of times: they depend on the earlier time, or on how far apart the outputs are."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from scmreg.process import Process
from scmreg.types import NonNegative, Probability
from scmreg.weighting import Weighting, WeightingModule

__all__ = ["ECT", "InverseStep", "PairWeighting"]


class PairWeight(WeightingModule):
    """A weight that is a known function of a pair of times and of the difference."""

    needs_pair = True

    def __init__(self, weighting: PairWeighting, process: Process) -> None:
        super().__init__()
        self.weighting, self.process = weighting, process

    def log_weight_of_pair(self, t: Tensor, r: Tensor, delta: Tensor) -> Tensor:
        """Return the logarithm of the weight."""
        return self.weighting.log_weight(self.process, t, r, delta)


class PairWeighting(Weighting):
    """A weighting of pairs without parameters, stated for the error of the data: implement `log_weight`."""

    space = "data"
    needs_pair = True

    @abstractmethod
    def log_weight(self, process: Process, t: Tensor, r: Tensor, delta: Tensor) -> Tensor:
        """Return the logarithm of the weight, shape ``(B,)``, as `WeightingModule.log_weight_of_pair` does."""

    def build(self, process: Process) -> WeightingModule:
        """Return a module without parameters."""
        return PairWeight(self, process)


class InverseStep(PairWeighting, name="inverse-step"):
    """Weight the data's error by one over the step between two noise levels: iCT's weight."""

    formula = "w(t, r) = 1/(t - r),  t and r noise levels sigma/alpha, on the data"
    reference = "Song & Dhariwal 2023 (iCT), arXiv:2310.14189, Sec. 3.1; Geng et al. 2024 (ECT), Sec. 2"

    def log_weight(self, process: Process, t: Tensor, r: Tensor, delta: Tensor) -> Tensor:
        """Return ``-log(t - r)`` of the noise levels."""
        return _log(inverse_step(process, t, r))


class ECT(PairWeighting, name="ect"):
    """Weight the data's error by a function of time, and by the inverse size of the difference to a power.

    The second factor has no gradient. With ``p = 1/2`` it turns the squared difference into its pseudo-Huber norm; the
    gradient of small differences grows, that of large ones falls. (The norm is over all elements of a sample. ECT's
    ImageNet recipe has ``w_bar = 1/t^2+1/sd^2`` and ``c = 0.06``, which is ``0.00054 sqrt(D)``.)
    """

    formula = "w(t, r) = w_bar(t, r) sg[1/(||Delta||² + c²)^p],  t and r noise levels sigma/alpha, on the data"
    reference = "Geng et al. 2024 (ECT), arXiv:2406.14548, Eq. 16, Tables 3, 4 and 7"

    w_bar: Literal["uniform", "1/t", "1/(t-r)", "1/t+1/sd", "1/t^2", "1/t^2+1", "1/t^2+1/sd^2", "1/(t^2+sd^2)"] = (
        "1/(t-r)"
    )
    """Weight of the times; sd is sigma_data. (CIFAR-10: 1/(t-r); ImageNet: 1/t^2+1/sd^2.)"""
    p: Probability = 0.5
    """Exponent of the adaptive factor; 0 for none."""
    c: NonNegative = 0.0
    """Smooths the adaptive factor where the difference is small. (CIFAR-10: 0; ImageNet: 0.06.)"""
    norm: Literal["l2", "l1"] = "l2"
    """Norm of the difference in the adaptive factor; l1 makes it 1/(||Delta||_1 + c)^(2p), Table 4's for p 1/2."""

    def log_weight(self, process: Process, t: Tensor, r: Tensor, delta: Tensor) -> Tensor:
        """Return the logarithm of Eq. 16."""
        timestep = _log(timestep_weight(self.w_bar, process, t, r))
        if not self.p:
            return timestep
        flat = delta.flatten(1)
        if self.norm == "l1":
            size = (torch.linalg.vector_norm(flat, ord=1, dim=1) + self.c) ** 2
        else:
            size = flat.square().sum(1) + self.c**2
        # Where outputs are equal and c is 0, the loss is 0 whatever its weight, as long as that is finite.
        return timestep - self.p * _log(size).to(t.dtype)


def timestep_weight(w_bar: str, process: Process, t: Tensor, r: Tensor) -> Tensor:
    """Return a weight of ECT's Table 3 at process times ``t`` and ``r``, each of shape ``(B,)``."""
    at, inverse_data = process.coefficients(t), 1 / process.sigma_data
    inverse = at.alpha / at.sigma  # ECT's 1/t; at pure noise it is 0, where t is infinite
    if w_bar == "1/(t-r)":
        return inverse_step(process, t, r)
    return {
        "uniform": torch.ones_like(t),
        "1/t": inverse,
        "1/t+1/sd": inverse + inverse_data,
        "1/t^2": inverse**2,
        "1/t^2+1": inverse**2 + 1,
        "1/t^2+1/sd^2": inverse**2 + inverse_data**2,
        "1/(t^2+sd^2)": inverse**2 / (1 + (inverse / inverse_data) ** 2),
    }[w_bar]


def inverse_step(process: Process, t: Tensor, r: Tensor) -> Tensor:
    """Return one over the difference of the noise levels of two times."""
    at = process.coefficients(t)
    inverse = at.alpha / at.sigma
    part = 1 - inverse * process.noise_level(r)
    # Neighbours in the precision of t may have noise levels that are equal to rounding.
    return inverse / part.clamp_min(torch.finfo(t.dtype).eps)


def _log(weight: Tensor) -> Tensor:
    return torch.log(weight.clamp_min(torch.finfo(weight.dtype).tiny))
