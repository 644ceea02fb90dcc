"""Data: what is modelled, its scale, its conditions and its split."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from scmreg.component import Component
from scmreg.errors import DataError
from scmreg.rng import generator
from scmreg.types import NonNegativeInt, Probability

if TYPE_CHECKING:
    from scmreg.law import GaussianMixture

__all__ = ["Augmentation", "Data", "DataSpec", "Dataset", "Split", "TensorSplit"]


@dataclass(frozen=True)
class DataSpec:
    """All that must be known of data once they are gone: it is saved in every checkpoint."""

    name: str
    """Name of the data component."""
    shape: tuple[int, ...]
    """Shape of one sample: ``(C, H, W)`` for images, ``(D,)`` for points."""
    modality: Literal["image", "points"]
    classes: tuple[str, ...] = ()
    """Names of the classes; empty for unlabelled data."""
    mean: tuple[float, ...] = (0.0,)
    """Mean in rendered units, per channel, or one for all."""
    std: float = 1.0
    """Standard deviation in rendered units; data are scaled to ``sigma_data``."""

    def scale(self, rendered: Tensor, sigma_data: float) -> Tensor:
        """Map rendered units (images in ``[0, 1]``) to mean 0 and standard deviation ``sigma_data``."""
        return (rendered - self._mean(rendered)) * (sigma_data / self.std)

    def render(self, x: Tensor, sigma_data: float) -> Tensor:
        """Map scaled data back to rendered units: the inverse of `scale`, not clipped."""
        return x * (self.std / sigma_data) + self._mean(x)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> DataSpec:
        """Return the spec of plain values, all of which must be there."""
        missing = {field.name for field in fields(cls)} - tree.keys()
        if missing:
            raise KeyError(", ".join(sorted(missing)))
        lists = {key: tuple(tree[key]) for key in ("shape", "classes", "mean")}
        return cls(**{**tree, **lists})

    def _mean(self, x: Tensor) -> Tensor:
        mean = torch.tensor(self.mean, dtype=x.dtype, device=x.device)
        return mean.reshape(-1, *[1] * (len(self.shape) - 1)) if self.modality == "image" else mean


class Split:
    """A part of the data, in rendered units, read by index."""

    labels: Tensor | None = None
    """Class of every item, shape ``(N,)``, int64."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """Return the items in rendered units, shape ``(len(indices), *shape)``, float32."""
        raise NotImplementedError

    def all(self) -> Tensor:
        """Return every item."""
        return self.__getitems__(range(len(self)))


class TensorSplit(Split):
    """A split that is held in memory.

    Args:
        x: items in rendered units, float, or uint8 images that are rendered by division by 255.
        labels: classes, shape ``(N,)``.
    """

    def __init__(self, x: Tensor, labels: Tensor | None = None) -> None:
        self.x = x
        self.labels = labels

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """Return the items in rendered units."""
        items = self.x[torch.as_tensor(indices, dtype=torch.long)]
        return items.float() / 255 if items.dtype == torch.uint8 else items.float()


@dataclass(frozen=True)
class Dataset:
    """Loaded data."""

    spec: DataSpec
    train: Split
    held_out: Split
    digest: str
    """Digest of the content, part of the key of a cached teacher."""

    def real(self) -> tuple[Tensor, Tensor | None]:
        """Return all items, training and held out, in rendered units, and their labels."""
        x = torch.cat([self.train.all(), self.held_out.all()])
        if self.train.labels is None or self.held_out.labels is None:
            return x, None
        return x, torch.cat([self.train.labels, self.held_out.labels])


class Data(Component, kind="data"):
    """A source of training data."""

    held_out: Probability = 0.2
    """Share of the items that is kept from training, to measure memorization."""
    split_seed: NonNegativeInt = 0
    """Seed of the split; the same for every seed of training, so that runs are comparable."""

    lawless: ClassVar[str] = "its law is not known, there are only samples of it"
    """Why `law` returns ``None``."""

    def law(self) -> GaussianMixture | None:
        """Return the law of the data in rendered units, for data that know their own; ``None`` otherwise."""
        return None

    @property
    def augmentation(self) -> Augmentation:
        """How training batches are varied; not at all unless the component says so."""
        return Augmentation()

    @abstractmethod
    def load(self) -> Dataset:
        """Read the data and split them.

        Raises:
            DataError: if they are missing, corrupt or empty.
        """

    def split_indices(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the indices of the training and the held-out items of ``count``.

        Raises:
            DataError: if nothing is left to train on.
        """
        kept = count - round(count * self.held_out)
        if kept < 1:
            raise DataError(
                f"data '{self.name}': nothing is left to train on of {count} items",
                f"held_out is {self.held_out:g}; give a smaller data.held_out",
            )
        order = torch.randperm(count, generator=generator(self.split_seed, "split"))
        return order[:kept].sort().values, order[kept:].sort().values


@dataclass(frozen=True)
class Augmentation:
    """Variations of training images that leave the class alone."""

    shift: int = 0
    """Largest shift in pixels along each axis; what comes in at the border repeats the border."""
    flip: bool = False
    """Whether half of the images are mirrored left to right."""

    def apply(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return the batch ``(B, C, H, W)`` with every image varied on its own."""
        if self.flip:
            mirrored = torch.rand(len(x), generator=rng) < 0.5
            x = torch.where(mirrored.reshape(-1, 1, 1, 1).to(x.device), x.flip(-1), x)
        if self.shift:
            padded = torch.nn.functional.pad(x, (self.shift,) * 4, mode="replicate")
            top, left = torch.randint(0, 2 * self.shift + 1, (2, len(x)), generator=rng).tolist()
            height, width = x.shape[-2:]
            x = torch.stack(
                [image[:, i : i + height, j : j + width] for image, i, j in zip(padded, top, left, strict=True)]
            )
        return x


def content_digest(*tensors: Tensor | None) -> str:
    """Return a digest of the content of tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
