"""What a proof is, and what it is tried on: processes, networks, laws, shapes and times drawn by Hypothesis."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import hypothesis
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from scmreg.denoiser import Denoiser
from scmreg.law import ExactDenoiser, GaussianMixture
from scmreg.options import options_of
from scmreg.parameterization import Parameterization
from scmreg.process import Process
from scmreg.registry import registry
from scmreg.types import Conditions

__all__ = ["PROOFS", "Case", "Proof", "Smooth", "difference", "proof"]

T = TypeVar("T")
C_NOISE = ("identity", "log-sigma", "edm", "1000t")


class Draw(Protocol):
    """Draws from a strategy, as Hypothesis' ``data.draw`` does."""

    def __call__(self, strategy: st.SearchStrategy[T], label: Any = None) -> T: ...


class Smooth(nn.Module):
    """A small random network, smooth in its input and its time, float64.

    Args:
        size: number of elements of one sample.
        rng: draws its weights.
    """

    def __init__(self, size: int, rng: torch.Generator) -> None:
        super().__init__()

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=rng, dtype=torch.float64))

        self.first, self.time, self.bias, self.second = drawn(16, size), drawn(16), drawn(16), drawn(size, 16)
        with torch.no_grad():
            self.first.div_(size**0.5)
            self.second.div_(4)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        """Return the shape of ``x``."""
        hidden = torch.tanh(x.flatten(1) @ self.first.T + c_noise[:, None] * self.time + self.bias)
        return (hidden @ self.second.T).reshape(x.shape)


class Case:
    """One example: asks Hypothesis for what it is made of, so that a failing one is shrunk and can be described."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self.words: list[str] = []
        self.reach = math.pi / 2
        """TrigFlow time that every process of the case reaches."""
        seed = draw(st.integers(0, 2**31 - 1))
        self.rng = torch.Generator().manual_seed(seed)
        self.batch = draw(st.integers(1, 4))
        self.shape = draw(st.sampled_from([(1,), (2,), (3, 2, 2), (1, 4, 4)]))
        self.words.append(f"seed {seed}, batch {self.batch}, samples of shape {self.shape}")

    def choose(self, what: str, items: Sequence[T]) -> T:
        """Choose one of some items."""
        chosen = self._draw(st.sampled_from(list(items)))
        self.words.append(f"{what} {chosen}")
        return chosen

    def number(self, what: str, low: float, high: float) -> float:
        """Draw a number between two bounds."""
        drawn = self._draw(st.floats(low, high))
        self.words.append(f"{what} {drawn:.6g}")
        return drawn

    def process(self, name: str | None = None, sigma_data: float | None = None) -> Process:
        """Choose a registered process, and the scale of its data."""
        chosen = name or self.choose("process", sorted(registry("process")))
        scale = self.number("sigma_data", 0.2, 2.0) if sigma_data is None else sigma_data
        made: Process = registry("process").create(chosen, sigma_data=scale)
        self.reach = min(self.reach, 0.98 * math.atan(made.highest_level / scale))
        return made

    def make(self, kind: str, names: Sequence[str] | None = None) -> Any:
        """Choose a registered component of a kind, of some names or of all, with its default options."""
        return registry(kind).create(self.choose(kind, names or sorted(registry(kind))))

    def assume(self, condition: bool) -> None:
        """Try another case unless the condition holds."""
        hypothesis.assume(condition)

    def parameterization(self, told_of_time: Sequence[str] = C_NOISE) -> Parameterization:
        """Choose a registered parameterization, and what its network is told of the time."""
        chosen = self.choose("parameterization", sorted(registry("parameterization")))
        if "c_noise" not in {option.name for option in options_of(registry("parameterization")[chosen])}:
            return registry("parameterization").create(chosen)  # type: ignore[no-any-return]
        told = self.choose("c_noise", told_of_time)
        return registry("parameterization").create(chosen, c_noise=told)  # type: ignore[no-any-return]

    def angles(self, count: int, low: float = 0.05, high: float = 1.45) -> Tensor:
        """Draw TrigFlow times that the processes of the case reach, float64, shape ``(count,)``."""
        high = min(high, self.reach)
        self.assume(low < high)
        return low + (high - low) * torch.rand(count, generator=self.rng, dtype=torch.float64)

    def spread(self, count: int) -> Tensor:
        """Draw TrigFlow times whose noise levels are spread over the whole range that the processes of the case have in
        common, from 1e-6 sigma_data up to their ends (1e6 sigma_data for those that have none), shape ``(count,)``.
        """
        low, high = math.log(1e-6), math.log(min(math.tan(self.reach / 0.98), 1e6))
        return torch.atan(torch.exp(low + (high - low) * torch.rand(count, generator=self.rng, dtype=torch.float64)))

    def times(self, process: Process, angles: Tensor) -> Tensor:
        """Return the process's times of TrigFlow times."""
        return process.time_of(process.sigma_data * torch.tan(angles))

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers, float64."""
        return torch.randn(*shape, generator=self.rng, dtype=torch.float64)

    def pair(self, process: Process) -> tuple[Tensor, Tensor]:
        """Draw a batch of data in the process's scale, and of noise."""
        return process.sigma_data * self.normal(self.batch, *self.shape), self.normal(self.batch, *self.shape)

    def denoiser(self, process: Process, parameterization: Parameterization | None = None) -> Denoiser:
        """Return a model with a small random network."""
        network = Smooth(torch.Size(self.shape).numel(), self.rng)
        return Denoiser(network, process, parameterization or registry("parameterization").create("unit-variance"))

    def law(self, modes: int = 3) -> GaussianMixture:
        """Draw a mixture of Gaussians, about as wide as a standard normal law."""
        size = torch.Size(self.shape).numel()
        weights = 0.2 + torch.rand(modes, generator=self.rng, dtype=torch.float64)
        stds = 0.2 + 0.5 * torch.rand(modes, size, generator=self.rng, dtype=torch.float64)
        return GaussianMixture(weights, self.normal(modes, size), stds)

    def exact(self, process: Process, modes: int = 3) -> ExactDenoiser:
        """Return the exact denoiser of a random mixture."""
        return ExactDenoiser(self.law(modes), process)


def difference(a: Tensor, b: Tensor) -> float:
    """Return the norm of ``a - b`` relative to the larger norm of the two; infinite where either is not finite."""
    a, b = a.detach(), b.detach()
    if not (bool(torch.isfinite(a).all()) and bool(torch.isfinite(b).all())):
        return float("inf")
    scale = max(float(a.norm()), float(b.norm()))
    return float((a - b).norm()) / scale if scale else 0.0


@dataclass(frozen=True)
class Proof:
    """A statement that is tried on many cases; it holds where the error of every one is within the bound."""

    name: str
    statement: str
    """What holds, in one sentence."""
    equation: str
    """Where it stands."""
    bound: float
    """Largest relative error that is rounding."""
    check: Callable[[Case], float]
    """Returns the error of one case."""
    examples: int
    """Cases of a quick run; a full one tries ten times as many."""
    full: bool
    """Whether it belongs to a full run only."""
    needs: str = ""
    """A package that it cannot be tried without; empty if it needs none but our own requirements."""

    def missing(self) -> str | None:
        """Say what has to be installed before it can be tried; ``None`` if nothing has."""
        if not self.needs or importlib.util.find_spec(self.needs):
            return None
        return f"needs {self.needs}: pip install {self.needs}"


PROOFS: dict[str, Proof] = {}
"""Every proof by name, in the order of the text."""


def proof(
    equation: str, bound: float, *, examples: int = 200, full: bool = False, needs: str = ""
) -> Callable[[Callable[[Case], float]], Callable[[Case], float]]:
    """Register a function as a proof, under its own name; the first line of its docstring is the statement."""

    def register(check: Callable[[Case], float]) -> Callable[[Case], float]:
        name = check.__name__.replace("_", "-")
        statement = (check.__doc__ or "").partition("\n")[0].rstrip(".")
        PROOFS[name] = Proof(name, statement, equation, bound, check, examples, full, needs)
        return check

    return register
