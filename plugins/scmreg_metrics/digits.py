"""What is known of scikit-learn's handwritten digits: a feature network, and a classifier independent of it.

The weights of the feature network come with the package; ``python -m scmreg_metrics.train_digits`` makes them.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from scmreg.data import DataSpec
from scmreg.metric import Judged

__all__ = ["WEIGHTS", "DigitFeatures", "accuracy", "are_digits", "features", "load_images"]

WEIGHTS = Path(__file__).with_name("digits.safetensors")


class DigitFeatures(nn.Module):
    """Two convolutions and one hidden layer of 64; ``forward`` gives the hidden layer, standardised."""

    def __init__(self, channels: int = 24, features: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, stride=2)
        self.hidden = nn.Linear(channels * 16, features)
        self.output = nn.Linear(features, classes)
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_scale", torch.ones(()))
        self.feature_mean: Tensor
        self.feature_scale: Tensor

    def activations(self, images: Tensor) -> Tensor:
        """Return the hidden layer after its activation, ``(B, features)``, not standardised."""
        x = nn.functional.silu(self.conv1(2 * images - 1))
        x = nn.functional.silu(self.conv2(x))
        hidden: Tensor = nn.functional.silu(self.hidden(x.flatten(1)))
        return hidden

    def forward(self, images: Tensor) -> Tensor:
        """Return standardised features ``(B, features)`` of images ``(B, 1, 8, 8)`` in ``[0, 1]``."""
        standardised: Tensor = (self.activations(images) - self.feature_mean) / self.feature_scale
        return standardised

    def logits(self, images: Tensor) -> Tensor:
        """Return class scores ``(B, classes)``."""
        scores: Tensor = self.output(self.activations(images))
        return scores


def load_images() -> tuple[Tensor, Tensor]:
    """Return all digits as images ``(1797, 1, 8, 8)`` in ``[0, 1]``, and their classes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.as_tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    return images, torch.as_tensor(digits.target, dtype=torch.long)


def are_digits(spec: DataSpec) -> bool:
    """Whether data are scikit-learn's handwritten digits."""
    return spec.name == "digits"


def features(images: Tensor) -> Tensor:
    """Return the standardised features of images in ``[0, 1]``, shape ``(N, 64)``."""
    with torch.no_grad():
        found: Tensor = _network()(images.float())
    return found


def accuracy(samples: Judged) -> float:
    """Return the share of samples that the support vector classifier puts in their class."""
    assert samples.labels is not None
    predicted = _classifier().predict((samples.x.flatten(1) * 16).double().numpy())
    return float((torch.as_tensor(predicted) == samples.labels).double().mean())


@functools.cache
def _network() -> DigitFeatures:
    network = DigitFeatures()
    network.load_state_dict(load_file(WEIGHTS))
    return network.eval().requires_grad_(False)


@functools.cache
def _classifier() -> Any:
    from sklearn.svm import SVC

    images, labels = load_images()
    return SVC(gamma=0.001).fit((images.flatten(1) * 16).double().numpy(), labels.numpy())
