"""Classifier-free guidance: exaggerate what the class adds to a prediction (Ho & Salimans 2022, Eq. 6)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from scmreg.denoiser import Denoiser
from scmreg.errors import CompositionError
from scmreg.types import Conditions, expand

__all__ = ["guided"]


class Guided(nn.Module):
    """A network that is asked with and without the class, both in one call of twice the batch.

    Every prediction of a denoiser is linear in the raw output at a given point, so guiding that guides them all.
    """

    def __init__(self, network: nn.Module, scale: float | Tensor, classes: int) -> None:
        super().__init__()
        self.network, self.scale, self.classes = network, scale, classes

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditions) -> Tensor:
        """Return ``F_none + scale (F_class - F_none)``, the shape of ``x``."""
        if cond.label is None:
            raise CompositionError(
                f"guidance{_shown(self.scale)} needs a class for every sample", "give labels, or set the guidance to 1"
            )
        doubled = replace(
            cond, **{name: torch.cat([getattr(cond, name)] * 2) for name in cond.given() - {"label"}},
            label=torch.cat([cond.label, torch.full_like(cond.label, self.classes)]),
        )  # fmt: skip
        given, without = self.network(torch.cat([x, x]), torch.cat([c_noise, c_noise]), doubled).chunk(2)
        scale = expand(self.scale, x) if isinstance(self.scale, Tensor) else self.scale
        out: Tensor = without + scale * (given - without)
        return out


def _shown(scale: float | Tensor) -> str:
    return "" if isinstance(scale, Tensor) else f" {scale:g}"


def guided(denoiser: Denoiser, scale: float | Tensor) -> Denoiser:
    """Return the model under classifier-free guidance, ``F = F_none + scale (F_class - F_none)``.

    Args:
        denoiser: a class-conditional model that was also trained without labels (``label_dropout``).
        scale: 1 returns the model itself, 0 ignores the class, more than 1 exaggerates it; one for all, or one for each
            sample, shape ``(B,)``.

    Raises:
        CompositionError: if the model knows no classes, or is later asked without a label.
    """
    if not isinstance(scale, Tensor) and scale == 1:
        return denoiser
    if not denoiser.classes:
        raise CompositionError(
            f"guidance{_shown(scale)} needs a class-conditional model, this one knows no classes",
            "set the guidance to 1",
        )
    network = Guided(denoiser.network, scale, denoiser.classes)
    made = Denoiser(
        network,
        denoiser.process,
        denoiser.parameterization,
        denoiser.classes,
        denoiser.highest_level,
        two_time=denoiser.two_time,
    )
    return made.train(denoiser.training)
