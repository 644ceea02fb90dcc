"""Networks: an MLP for points and small images, a diffusion transformer for images, the exact one of a known law."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from scmreg.component import Component
from scmreg.data import Data
from scmreg.errors import CompositionError, UnknownComponentError
from scmreg.hookspecs import hookimpl
from scmreg.law import ExactNetwork
from scmreg.network import Network
from scmreg.registry import registry
from scmreg.types import Count, Positive, Probability

__all__ = ["MLP", "DiT", "Exact"]

Embedding = Literal["positional", "fourier"]


class MLP(Network, name="mlp"):
    """Residual blocks of two linear layers, told time and class by adaptive double normalization.

    Images are flattened. The last layer starts at zero, so that an untrained model predicts the prior mean.
    """

    formula = "h <- h + W_2 silu(W_1 [norm(h) * pnorm(s(c)) + pnorm(b(c))]),  c = embedding of time + class"
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, Sec. 4.1 (normalization and embedding)"

    width: Count = 256
    """Channels of the residual stream."""
    depth: Count = 5
    """Number of residual blocks."""
    embedding: Embedding = "positional"
    """Time embedding; ``fourier`` draws random frequencies of the given scale."""
    fourier_scale: Positive = 0.02
    """Scale of the random frequencies; sCM finds 16 unstable and 0.02 as good as positional."""
    dropout: Probability = 0.0
    """Share of hidden units that is dropped in training."""
    guidance: bool = False
    """Whether it can be told a scale of guidance, as a model must that is distilled with guidance."""
    target_time: bool = False
    """Whether it can be told a second time, which a model of two times jumps to."""

    @property
    def takes(self) -> frozenset[str]:
        """The label, and the scale of guidance and the target time if they have been asked for."""
        return _taken(self)

    def fits(self, recipe: Any) -> str | None:
        """Refuse an odd width: the time embedding is half sines, half cosines."""
        if self.width % 2:
            return f"width {self.width} must be even: change network.width"
        return super().fits(recipe)

    def build(self, shape: tuple[int, ...], classes: int = 0) -> nn.Module:
        """Return the module with fresh parameters."""
        from scmreg_networks.mlp import MLPNetwork

        return MLPNetwork(self, shape, classes)


class DiT(Network, name="dit"):
    """A diffusion transformer on patches, told time and class by adaptive double normalization.

    Attention goes through :func:`scmreg.attend`, so it has a tangent on every backend.
    """

    formula = (
        "h <- h + attention(adn(h, c));  h <- h + mlp(adn(h, c));  adn(h, c) = norm(h) * pnorm(s(c)) + pnorm(b(c))"
    )
    reference = "Peebles & Xie 2023 (DiT), arXiv:2212.09748; Lu & Song 2024 (sCM), arXiv:2410.11081, Sec. 4.1"

    width: Count = 128
    """Channels of a token."""
    depth: Count = 4
    """Number of transformer blocks."""
    heads: Count = 4
    """Number of attention heads; must divide the width."""
    patch: Count = 2
    """Side of a patch in pixels; must divide the image."""
    mlp_ratio: Positive = 4.0
    """Hidden width of the MLP over the width."""
    embedding: Embedding = "positional"
    """Time embedding; ``fourier`` draws random frequencies of the given scale."""
    fourier_scale: Positive = 0.02
    """Scale of the random frequencies; sCM finds 16 unstable and 0.02 as good as positional."""
    dropout: Probability = 0.0
    """Share of hidden units that is dropped in training."""
    guidance: bool = False
    """Whether it can be told a scale of guidance, as a model must that is distilled with guidance."""
    target_time: bool = False
    """Whether it can be told a second time, which a model of two times jumps to."""
    attention: str = "auto"
    """Attention backend by name; ``auto`` chooses by length and device."""

    @property
    def takes(self) -> frozenset[str]:
        """The label, and the scale of guidance and the target time if they have been asked for."""
        return _taken(self)

    def fits(self, recipe: Any) -> str | None:
        """Refuse an attention backend that is not there, or cannot run here."""
        if self.width % self.heads or self.width % 4:
            return f"width {self.width} must be a multiple of 4 and of the {self.heads} heads"
        if self.attention == "auto":
            return super().fits(recipe)
        try:
            reason = registry("attention")[self.attention].unavailable()
        except UnknownComponentError as error:
            return f"{error.what} ({error.hints[0]})"
        return f"attention '{self.attention}' cannot run here: {reason}" if reason else super().fits(recipe)

    def accepts(self, shape: tuple[int, ...]) -> str | None:
        """Refuse what is no image, or cannot be cut into patches."""
        if len(shape) != 3:
            return f"network 'dit' works on images, not on samples of shape {shape}: use network mlp"
        if shape[1] % self.patch or shape[2] % self.patch:
            return f"patches of side {self.patch} do not tile images of {shape[1]}x{shape[2]}: change network.patch"
        return None

    def build(self, shape: tuple[int, ...], classes: int = 0) -> nn.Module:
        """Return the module with fresh parameters."""
        from scmreg_networks.dit import DiTNetwork

        return DiTNetwork(self, shape, classes)


def _taken(network: MLP | DiT) -> frozenset[str]:
    asked = {"guidance": network.guidance, "target_time": network.target_time}
    return frozenset({"label", *(name for name, taken in asked.items() if taken)})


class Exact(Network, name="exact"):
    """The network that perfect training would end with, for data that know their own law: it has no parameters.

    It is the unit-variance network, told TrigFlow's time. `--teacher exact` teaches by it; in Python it makes an exact
    denoiser under any process.
    """

    formula = "F̂ = E[cos(t̂) noise - sin(t̂) x_0/sigma_data | x_t]"
    reference = "Lu & Song 2024 (sCM), arXiv:2410.11081, Eqs. 4 and 24"

    data: Data = Data.default("mixture")
    """The data whose law it knows."""

    def fits(self, recipe: Any) -> str | None:
        """Refuse to be trained."""
        return "network 'exact' has no parameters to train: teach by it, with --teacher exact"

    def accepts(self, shape: tuple[int, ...]) -> str | None:
        """Refuse data without a law, and samples of another shape."""
        if self.data.law() is None:
            return f"network 'exact' needs the law of its data: '{self.data.name}': {self.data.lawless}"
        own = self.data.load().spec.shape
        return None if shape == own else f"network 'exact' is for samples of shape {own}, not {shape}"

    def build(self, shape: tuple[int, ...], classes: int = 0) -> nn.Module:
        """Return the module.

        Raises:
            CompositionError: if the data do not know their law, or have another shape.
        """
        if reason := self.accepts(shape):
            raise CompositionError(reason)
        law = self.data.law()
        assert law is not None, "accepts has looked"
        return ExactNetwork(law.standardized(self.data.load().spec))


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [MLP, DiT, Exact]
