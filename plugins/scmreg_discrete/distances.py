"""Distances between two outputs of a consistency function."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from scmreg.data import DataSpec
from scmreg.distance import Between, ClosedDistance, Distance
from scmreg.errors import UnavailableError
from scmreg.types import Count, NonNegative

__all__ = ["L1", "L2", "LPIPS", "PseudoHuber"]


class L2(ClosedDistance, name="l2"):
    """Compare by the mean squared difference of the elements."""

    formula = "d(x, y) = ||x - y||²/D"
    reference = "Song et al. 2023 (consistency models), arXiv:2303.01469, Sec. 5.1"

    def between(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean square, shape ``(B,)``."""
        return (x - y).square().flatten(1).mean(1)


class L1(ClosedDistance, name="l1"):
    """Compare by the mean absolute difference of the elements."""

    formula = "d(x, y) = ||x - y||_1/D"
    reference = "Song et al. 2023 (consistency models), arXiv:2303.01469, Sec. 5.1"

    def between(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean absolute value, shape ``(B,)``."""
        return (x - y).abs().flatten(1).mean(1)


class PseudoHuber(ClosedDistance, name="pseudo-huber"):
    """Compare by the norm of the difference, made quadratic where it is small: outliers weigh less."""

    formula = "d(x, y) = sqrt(||x - y||² + c²) - c,  c = 0.00054 sqrt(D)"
    reference = "Song & Dhariwal 2023 (iCT), arXiv:2310.14189, Sec. 3.3; Geng et al. 2024 (ECT), Eq. 19"

    c: NonNegative | None = None
    """Difference below which the distance is quadratic; 0.00054 sqrt(D) for samples of D elements if not given."""

    def between(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance, shape ``(B,)``."""
        c = 0.00054 * math.sqrt(x[0].numel()) if self.c is None else self.c
        square = (x - y).square().flatten(1).sum(1)
        # sqrt(square + c²) - c, whose terms all but cancel for small differences; and sqrt has no slope at 0.
        return square / ((square + c**2).clamp_min(torch.finfo(square.dtype).tiny).sqrt() + c)


class LPIPS(Distance, name="lpips"):
    """Compare images by the features of a network that was trained to recognise objects.

    Images are rendered, repeated to three channels where they are grey, and enlarged as consistency models do. The
    features of the network resemble those of evaluation metrics, which biases them in favour of what is trained so.
    """

    formula = "d(x, y) = sum_l mean ||w_l (phi_l(x) - phi_l(y))||²"
    reference = "Zhang et al. 2018 (LPIPS), arXiv:1801.03924; Song et al. 2023, arXiv:2303.01469, App. C"

    net: Literal["vgg", "alex", "squeeze"] = "vgg"
    """Network whose features are compared."""
    size: Count = 224
    """Side that images are enlarged to; larger ones stay as they are."""

    weights: ClassVar[dict[str, tuple[str, str]]] = {
        "vgg": ("vgg16", "vgg16-397923af.pth"),
        "alex": ("alexnet", "alexnet-owt-7be5be79.pth"),
        "squeeze": ("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth"),
    }
    """Model of torchvision and file of its weights, which lpips would download by itself."""

    @classmethod
    def unavailable(cls) -> str | None:
        """Say what to install."""
        if importlib.util.find_spec("lpips") is None:
            return 'needs the package lpips: pip install "scmreg[lpips]"'
        return None

    def missing(self) -> str | None:
        """Say which weights are not on this machine; ``None`` if they are. Nothing is downloaded."""
        model, file = self.weights[self.net]
        path = Path(torch.hub.get_dir()) / "checkpoints" / file
        if path.is_file():
            return None
        return (
            f"distance 'lpips' needs weights of torchvision that are not at {path}; download them by: python -c"
            f" \"import torchvision; torchvision.models.{model}(weights='IMAGENET1K_V1')\""
        )

    def fits(self, recipe: Any) -> str | None:
        """Refuse to download weights in passing."""
        return self.missing()

    def accepts(self, spec: DataSpec) -> str | None:
        """Refuse what is no image, or has neither one channel nor three."""
        if spec.modality == "image" and spec.shape[0] in (1, 3):
            return None
        return f"distance 'lpips' compares grey or colour images, not samples of shape {spec.shape} of '{spec.name}'"

    def build(self, spec: DataSpec, sigma_data: float) -> Between:
        """Load the network.

        Raises:
            UnavailableError: if the package or the weights are missing.
        """
        if reason := self.unavailable() or self.missing():
            raise UnavailableError(reason)
        import lpips

        network = lpips.LPIPS(net=self.net, verbose=False).eval().requires_grad_(False)

        def image(x: Tensor) -> Tensor:
            rendered = 2 * spec.render(x, sigma_data) - 1
            colour = rendered.expand(-1, 3, -1, -1)
            if max(colour.shape[2:]) >= self.size:
                return colour
            return F.interpolate(colour, size=(self.size, self.size), mode="bilinear", align_corners=False)

        def between(x: Tensor, y: Tensor) -> Tensor:
            distance: Tensor = network.to(x.device)(image(x), image(y))
            return distance.flatten()

        return between
