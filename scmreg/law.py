"""Ground truth: data whose law is a Gaussian mixture, so that denoiser, score and flow are known without training.

Everything is computed in TrigFlow coordinates in units of the data's standard deviation, ``x̂/sigma_data``, where the
noise is standard normal too and no formula divides by a sine or a cosine: the results are exact at both ends.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from scmreg.attention import is_dual
from scmreg.coordinates import to_trig
from scmreg.data import DataSpec
from scmreg.denoiser import Denoiser
from scmreg.errors import DivergenceError
from scmreg.process import Process, check_times, known
from scmreg.registry import registry
from scmreg.types import Conditions, expand

__all__ = ["ExactDenoiser", "ExactNetwork", "GaussianMixture"]


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """A mixture of Gaussians with diagonal covariances: ``sum_k weight_k N(mean_k, diag std_k²)``; float64.

    Raises:
        ValueError: if shapes disagree, a weight is negative, or a standard deviation is.
    """

    weights: Tensor
    """Share of each component, shape ``(K,)``; normalised to sum 1."""
    means: Tensor
    """Shape ``(K, D)``, ``D`` being the number of elements of one sample."""
    stds: Tensor
    """Shape ``(K, D)``; 0 makes a point mass."""
    classes: Tensor | None = None
    """Class of each component, shape ``(K,)``; ``None`` where there are no classes."""

    def __post_init__(self) -> None:
        weights = torch.as_tensor(self.weights, dtype=torch.float64)
        means, stds = (torch.as_tensor(x, dtype=torch.float64) for x in (self.means, self.stds))
        if means.ndim != 2 or stds.shape != means.shape or weights.shape != means.shape[:1]:
            raise ValueError(
                f"weights {tuple(weights.shape)}, means {tuple(means.shape)} and stds {tuple(stds.shape)}"
                " must be (K,), (K, D) and (K, D)"
            )
        for name, tensor in (("weights", weights), ("means", means), ("stds", stds)):
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} must be finite numbers, not {tensor.tolist()}")
        if bool((weights < 0).any()) or not float(weights.sum()) > 0 or bool((stds < 0).any()):
            raise ValueError("weights must be 0 or more, not all 0, and stds 0 or more")
        object.__setattr__(self, "weights", weights / weights.sum())
        object.__setattr__(self, "means", means)
        object.__setattr__(self, "stds", stds)
        if self.classes is None:
            return
        classes = torch.as_tensor(self.classes)
        if classes.shape != weights.shape or classes.is_floating_point() or bool((classes < 0).any()):
            raise ValueError(f"classes must be an index of 0 or more for each component, not {classes.tolist()}")
        object.__setattr__(self, "classes", classes)

    @property
    def class_count(self) -> int:
        """Number of classes; 0 where there are none."""
        return 0 if self.classes is None else int(self.classes.max()) + 1

    def standardized(self, spec: DataSpec) -> GaussianMixture:
        """Return the law of the data in units of their standard deviation, as a network sees them without noise."""
        mean = torch.tensor(spec.mean, dtype=torch.float64)
        if spec.modality == "image":
            mean = mean.reshape(-1, 1, 1)
        shift = mean.expand(spec.shape).flatten()
        return replace(self, means=(self.means - shift) / spec.std, stds=self.stds / spec.std)

    def draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return ``count`` points, shape ``(count, D)``, float64, and the component of each, shape ``(count,)``."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=rng)
        noise = torch.randn(count, self.means.shape[1], generator=rng, dtype=torch.float64)
        return self.means[component] + self.stds[component] * noise, component

    def digest(self) -> str:
        """Return a digest of the law."""
        digest = hashlib.sha256()
        for tensor in (self.weights, self.means, self.stds, self.classes):
            digest.update(b"" if tensor is None else tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


class ExactNetwork(nn.Module):
    """The unit-variance network of a mixture, told TrigFlow's time: what a perfectly trained network would return.

    ``F̂(x̂, t̂) = E[cos(t̂) noise - sin(t̂) x_0 | x̂]``, with ``v_k² = std_k² cos² + sin²`` and the posterior ``r_k`` of
    the components (sCM, Eqs. 4 and 24):

    ``F̂ = sum_k r_k [cos sin (1 - std_k²)/v_k² (x̂ - cos mean_k) - sin mean_k]``

    Args:
        law: a mixture in units of the data's standard deviation. Where it has classes, the label that is their number,
            or none, asks for the law of all together.
    """

    def __init__(self, law: GaussianMixture) -> None:
        super().__init__()
        self.register_buffer("log_weights", torch.log(law.weights))
        self.register_buffer("means", law.means)
        self.register_buffer("stds", law.stds)
        self.register_buffer("classes", law.classes)
        self.log_weights: Tensor
        self.means: Tensor
        self.stds: Tensor
        self.classes: Tensor | None
        self.count = law.class_count

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        """Return ``F̂`` at points ``x`` of unit variance, shape ``(B, *shape)``, and TrigFlow times ``(B,)``.

        Computed in float64, returned in the precision of ``x``.

        Raises:
            ValueError: if samples have another number of elements than the law, or a label is no class of it.
        """
        if x.shape[1:].numel() != self.means.shape[1]:
            raise ValueError(
                f"x has samples of shape {tuple(x.shape[1:])}, the law has {self.means.shape[1]} dimensions"
            )
        t = c_noise.double()[:, None, None]
        cos, sin = torch.cos(t), torch.sin(t)
        away = x.double().flatten(1)[:, None] - cos * self.means  # (B, K, D)
        # A point mass has no variance at t = 0, where its factor below is 0 whatever it is divided by.
        variance = ((self.stds * cos) ** 2 + sin**2).clamp_min(1e-30)
        fit = (self._log_prior(len(x), cond) - 0.5 * (away**2 / variance + torch.log(variance)).sum(2)).softmax(1)
        of_each = cos * sin * (1 - self.stds**2) / variance * away - sin * self.means
        return (fit[:, :, None] * of_each).sum(1).reshape(x.shape).to(x.dtype)

    def _log_prior(self, count: int, cond: Conditions) -> Tensor:
        prior = self.log_weights.expand(count, -1)
        if cond.label is None or self.classes is None:
            return prior
        if cond.label.shape != (count,):
            raise ValueError(f"label has shape {tuple(cond.label.shape)}, but there are {count} samples")
        label = cond.label[:, None]
        prior = prior.masked_fill((label != self.classes) & (label != self.count), -math.inf)
        if known(torch.isfinite(prior).any(1).all()) is False:
            raise ValueError(f"a label of {cond.label.tolist()} is no class of the law, which has {self.count}")
        return prior


class ExactDenoiser(Denoiser):
    """The exact denoiser of a mixture under any process, with the exact consistency function.

    Args:
        law: a mixture in units of the data's standard deviation (`GaussianMixture.standardized`).
        process: the process it runs under.
        rtol: relative tolerance of the ODE solver behind `consistency`.
        atol: absolute tolerance, in units of the data's standard deviation.
        highest_level: noise level at which sampling starts at most.
    """

    def __init__(
        self,
        law: GaussianMixture,
        process: Process,
        *,
        rtol: float = 1e-10,
        atol: float = 1e-12,
        highest_level: float = math.inf,
    ) -> None:
        unit = registry("parameterization").create("unit-variance")
        super().__init__(ExactNetwork(law), process, unit, law.class_count, highest_level)
        self.law, self.rtol, self.atol = law, rtol, atol

    def under(self, process: Process) -> ExactDenoiser:
        """Return the exact denoiser of the same law under another process."""
        level = super().under(process).highest_level
        made = ExactDenoiser(self.law, process, rtol=self.rtol, atol=self.atol, highest_level=level)
        return made.to(next(self.buffers()).device).train(self.training)

    def consistency(self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Conditions | None = None) -> Tensor:
        """Return the end of the probability flow that leads through ``x`` at ``t``, or its point at time ``s``.

        In closed form for a single Gaussian, ``f* = mean + std/sqrt(std² + sigma²) (x - mean)`` in EDM's coordinates;
        otherwise by an adaptive Runge-Kutta method of order 8 (scipy's DOP853) in float64. It has no derivative.

        Raises:
            ValueError: if a time is none of the process, or a derivative is asked for.
            DivergenceError: if the solver does not reach its tolerance.
        """
        if x.requires_grad or t.requires_grad or is_dual(x, t):
            raise ValueError("the exact consistency function is solved without derivatives: detach x and t")
        check_times(self.process, t, x)
        if s is not None:
            check_times(self.process, s, x, "s")
        x_hat, t_hat = to_trig(self.process, x.double(), t.double())
        s_hat = torch.zeros_like(t_hat) if s is None else to_trig(self.process, x.double(), s.double())[1]
        unit = x_hat / self.process.sigma_data
        if not len(x):
            return x
        if len(self.law.weights) == 1:
            there = self._closed_form(unit, t_hat, s_hat)
        else:
            there = self._solve(unit, t_hat, s_hat, cond or Conditions())
        there = there * self.process.sigma_data
        if s is not None:
            there = there * expand(self.process.std(s.double()) / self.process.sigma_data, there)
        return there.to(x)

    def _closed_form(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        known = self.network
        assert isinstance(known, ExactNetwork)
        mean, std = known.means[0], known.stds[0]
        flat, here, there = x.flatten(1), t[:, None], s[:, None]
        spread = [torch.hypot(std * torch.cos(time), torch.sin(time)) for time in (here, there)]
        moved = torch.cos(there) * mean + spread[1] / spread[0] * (flat - torch.cos(here) * mean)
        # A point mass has no spread at t = 0, where nothing moves.
        return torch.where(spread[0] > 0, moved, flat).reshape(x.shape)

    def _solve(self, x: Tensor, t: Tensor, s: Tensor, cond: Conditions) -> Tensor:
        parts = [
            self._solve_part(x[i : i + PART], t[i : i + PART], s[i : i + PART], cond.slice(i, i + PART))
            for i in range(0, len(x), PART)
        ]
        return torch.cat(parts)

    def _solve_part(self, x: Tensor, t: Tensor, s: Tensor, cond: Conditions) -> Tensor:
        from scipy.integrate import solve_ivp

        if bool((t == s).all()):
            return x
        # Point masses attract without bound at t = 0; from just before it, a DDIM step is as good as exact for them.
        early = s
        if bool((self.law.stds < EARLY).any()):
            early = torch.where(s < EARLY, t.clamp_max(EARLY), s)
        start = x.detach().cpu().numpy().ravel()

        def slope(share: float, flat: np.ndarray) -> np.ndarray:
            here = torch.from_numpy(flat).reshape(x.shape).to(x.device)
            moved: Tensor = self.network(here, t + share * (early - t), cond) * expand(early - t, x)
            return moved.detach().cpu().numpy().ravel()

        found = solve_ivp(slope, (0.0, 1.0), start, method="DOP853", rtol=self.rtol, atol=self.atol)
        if not found.success:
            raise DivergenceError(f"the exact flow could not be solved: {found.message}")
        reached = torch.from_numpy(found.y[:, -1]).reshape(x.shape).to(x)
        rest = expand(early - s, x)
        velocity: Tensor = self.network(reached, early, cond)
        return torch.cos(rest) * reached - torch.sin(rest) * velocity


PART = 1000
"""Samples that are solved together, with steps in common."""
EARLY = 1e-6
"""TrigFlow time down to which the flow of point masses is solved."""
