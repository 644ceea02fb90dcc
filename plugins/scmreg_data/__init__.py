"""Data: handwritten digits, points of known and unknown law, folders of images, arrays in files."""

from __future__ import annotations

import math
from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from scmreg.component import Component
from scmreg.data import Augmentation, Data, Dataset, DataSpec, Split, TensorSplit, content_digest
from scmreg.errors import DataError
from scmreg.hookspecs import hookimpl
from scmreg.law import GaussianMixture
from scmreg.rng import generator
from scmreg.types import Count, NonNegative, NonNegativeInt, Positive

__all__ = ["Array", "Checkerboard", "Digits", "Gaussian", "Gaussians", "Images", "Mixture", "SwissRoll"]


class ImageData(Data):
    """What all image data share: the variations of training images."""

    shift: NonNegativeInt = 0
    """Largest random shift of a training image in pixels along each axis."""
    flip: bool = False
    """Whether training images are mirrored left to right at random."""

    @property
    def augmentation(self) -> Augmentation:
        """Shifts and flips as the options say."""
        return Augmentation(self.shift, self.flip)


class Digits(ImageData, name="digits"):
    """The 1,797 handwritten digits that come with scikit-learn: grey images of 8x8 pixels in ten classes."""

    reference = "Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI"

    def load(self) -> Dataset:
        """Read them from scikit-learn."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.as_tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        labels = torch.as_tensor(digits.target, dtype=torch.long)
        return in_memory(self, images, labels, tuple(str(digit) for digit in range(10)), "image")


class PointData(Data):
    """Points, drawn afresh from a law: implement `draw`."""

    lawless = "its exact denoiser has no closed form"

    count: Count = 10_000
    """Points in all."""
    seed: NonNegativeInt = 0
    """Seed of the points."""

    @abstractmethod
    def draw(self, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return `count` points, shape ``(N, D)``, and their classes if they have any."""

    def load(self) -> Dataset:
        """Draw the points."""
        x, labels = self.draw(generator(self.seed, self.name))
        law = self.law()  # a law knows its classes, of which some may not have been drawn
        listed = labels if law is None or law.classes is None else law.classes
        classes = () if labels is None or listed is None else tuple(str(i) for i in range(int(listed.max()) + 1))
        return in_memory(self, x, labels, classes, "points")


class SwissRoll(PointData, name="swissroll"):
    """A spiral in the plane."""

    formula = "x = t (cos t, sin t) + noise n,  t = 3 pi (1 + 2 u)/2,  u ~ U(0, 1)"
    reference = "Marsland 2009, Machine Learning: An Algorithmic Perspective, ch. 10 (in two of its dimensions)"

    noise: NonNegative = 0.3
    """Standard deviation of the noise on it; the roll reaches to 14."""

    def draw(self, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return points of the roll."""
        angle = 1.5 * math.pi * (1 + 2 * torch.rand(self.count, generator=rng))
        roll = torch.stack([angle * torch.cos(angle), angle * torch.sin(angle)], dim=1)
        return roll + self.noise * torch.randn(self.count, 2, generator=rng), None


class Checkerboard(PointData, name="checkerboard"):
    """The black squares of a board."""

    formula = "uniform on the squares (i, j) with i + j even"

    squares: Annotated[int, Ge(2)] = 4
    """Squares along a side."""

    def draw(self, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return points of the black squares."""
        side = range(self.squares)
        black = torch.tensor([(i, j) for i in side for j in side if (i + j) % 2 == 0])
        corner = black[torch.randint(0, len(black), (self.count,), generator=rng)] - self.squares / 2
        return corner + torch.rand(self.count, 2, generator=rng), None


class Gaussians(PointData, name="gaussians"):
    """Gaussian blobs equally spaced on a circle."""

    formula = "x = radius (cos 2 pi k/modes, sin 2 pi k/modes) + std n,  k uniform"

    modes: Count = 8
    """Number of blobs."""
    radius: Positive = 4.0
    """Radius of the circle."""
    std: Positive = 0.3
    """Standard deviation of a blob."""
    labelled: bool = False
    """Whether the blob of a point is its class."""

    def draw(self, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return points of the blobs."""
        mode = torch.randint(0, self.modes, (self.count,), generator=rng)
        x = self._centres().float()[mode] + self.std * torch.randn(self.count, 2, generator=rng)
        return x, mode if self.labelled else None

    def law(self) -> GaussianMixture:
        """Return the mixture of the blobs."""
        means = self._centres()
        classes = torch.arange(self.modes) if self.labelled else None
        return GaussianMixture(torch.ones(self.modes), means, torch.full_like(means, self.std), classes)

    def _centres(self) -> Tensor:
        angle = 2 * math.pi * torch.arange(self.modes, dtype=torch.float64) / self.modes
        return self.radius * torch.stack([torch.cos(angle), torch.sin(angle)], dim=1)


class KnownLaw(PointData):
    """Points that are drawn from their own exact law: implement `law`."""

    dimension: Count = 2
    """Number of coordinates."""

    @abstractmethod
    def law(self) -> GaussianMixture:
        """Return the law."""

    def draw(self, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return points of the law, and the classes of their components."""
        law = self.law()
        x, component = law.draw(self.count, rng)
        return x.float(), None if law.classes is None else law.classes[component]


class Gaussian(KnownLaw, name="gaussian"):
    """One Gaussian with another spread along every axis: the case with a closed form for everything."""

    formula = "x ~ N(mean, diag s²),  s from std_max down to std_min in equal ratios"

    mean: float = 1.0
    """Every coordinate of the mean."""
    std_max: Positive = 1.0
    """Standard deviation along the first axis."""
    std_min: Positive = 0.25
    """Standard deviation along the last axis."""

    def law(self) -> GaussianMixture:
        """Return the Gaussian."""
        ends = math.log(self.std_max), math.log(self.std_min)
        stds = torch.exp(torch.linspace(*ends, self.dimension, dtype=torch.float64))[None]
        return GaussianMixture(torch.ones(1), torch.full_like(stds, self.mean), stds)


class Mixture(KnownLaw, name="mixture"):
    """A mixture of Gaussians around random centres, in any number of dimensions."""

    formula = "x ~ sum_k N(m_k, std² I)/modes,  m_k ~ N(0, spread² I)"

    modes: Count = 8
    """Number of components."""
    spread: Positive = 2.0
    """Standard deviation of the centres."""
    std: Positive = 0.3
    """Standard deviation of a component."""
    labelled: bool = False
    """Whether the component of a point is its class."""

    def law(self) -> GaussianMixture:
        """Return the mixture; its centres depend on the seed."""
        rng = generator(self.seed, self.name, "centres")
        means = self.spread * torch.randn(self.modes, self.dimension, generator=rng, dtype=torch.float64)
        classes = torch.arange(self.modes) if self.labelled else None
        return GaussianMixture(torch.ones(self.modes), means, torch.full_like(means, self.std), classes)


class Images(ImageData, name="images"):
    """A folder of images: sub-folders are classes; a flat folder is unlabelled and trained unconditionally.

    Images are cropped to a square at the centre and resized. Up to a gigabyte of them is kept in memory; more is read
    from the files as it is needed (`trainer.workers` processes read ahead).
    """

    path: Path
    """Folder of images (png, jpg, jpeg, webp, bmp, gif, tif)."""
    size: Count = 32
    """Side in pixels that images are resized to."""
    color: Literal["auto", "grey", "rgb"] = "auto"
    """Channels; auto is grey where every image is."""

    def load(self) -> Dataset:
        """List the images, find their classes and scale."""
        from scmreg_data.folder import load_folder

        return load_folder(self)


class Array(ImageData, name="array"):
    """An array in a file: .npy, .npz, .safetensors, or MNIST-style .idx, plain or .gz.

    Images are ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)`` with one or three channels, as bytes or as floats in
    ``[0, 1]``; anything of shape ``(N, D)`` are points.
    """

    path: Path
    """The file."""
    key: str | None = None
    """Name of the array in a .npz or .safetensors file; the first of x, images, data, arr_0 if not given."""
    labels: Path | None = None
    """File of class indices; if not given, the entry ``labels`` or ``y`` beside the array, if there is one."""

    def load(self) -> Dataset:
        """Read the file."""
        from scmreg_data.arrays import load_array

        return load_array(self)


def in_memory(
    data: Data,
    x: Tensor,
    labels: Tensor | None,
    classes: tuple[str, ...],
    modality: Literal["image", "points"],
) -> Dataset:
    """Split tensors that are in memory, and measure their scale on the training part.

    Args:
        data: says how to split.
        x: items in rendered units, or uint8 images; shape ``(N, *shape)``.
        labels: class of each item.
        classes: names of the classes.
        modality: what the items are.
    """
    kept, rest = data.split_indices(len(x))
    train, held_out = (TensorSplit(x[part], None if labels is None else labels[part]) for part in (kept, rest))
    mean, std = scale_of(data, train)
    if modality == "points":
        mean = tuple(x[kept].double().mean(0).tolist())
        std = float((x[kept].double() - torch.tensor(mean)).square().mean().sqrt())
    spec = DataSpec(data.name, tuple(x.shape[1:]), modality, classes, mean, std)
    return Dataset(spec, train, held_out, content_digest(x, labels))


def scale_of(data: Data, train: Split, most: int = 10_000) -> tuple[tuple[float, ...], float]:
    """Return mean and standard deviation over all values of (at most ``most``) training items.

    Raises:
        DataError: if all values are equal.
    """
    chosen = torch.randperm(len(train), generator=generator(0, "scale"))[:most].tolist()
    total, square, count = 0.0, 0.0, 0
    for start in range(0, len(chosen), 500):
        piece = train.__getitems__(chosen[start : start + 500]).double()
        total, square, count = (
            total + float(piece.sum()),
            square + float(piece.square().sum()),
            count + piece.numel(),
        )
    mean = total / count
    variance = square / count - mean**2
    if variance <= 1e-12:
        raise DataError(f"data '{data.name}': all values are {mean:g}, there is nothing to model")
    return (mean,), math.sqrt(variance)


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [Digits, SwissRoll, Checkerboard, Gaussians, Gaussian, Mixture, Images, Array]
