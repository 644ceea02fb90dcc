"""Reading a folder of images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from scmreg.data import Dataset, DataSpec, Split, TensorSplit, content_digest
from scmreg.errors import DataError

if TYPE_CHECKING:
    from scmreg_data import Images

__all__ = ["load_folder"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
UNREADABLE = (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)
IN_MEMORY = 2**30
"""Bytes of decoded images up to which they are kept in memory."""


class FolderSplit(Split):
    """Images that are read from their files when they are needed."""

    def __init__(self, files: Sequence[Path], labels: Tensor | None, size: int, mode: str) -> None:
        self.files, self.labels, self.size, self.mode = list(files), labels, size, mode

    def __len__(self) -> int:
        return len(self.files)

    def bytes(self, indices: Sequence[int]) -> Tensor:
        """Return images as bytes, shape ``(len(indices), C, H, W)``."""
        return torch.stack([_decode(self.files[index], self.size, self.mode) for index in indices])

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """Return images in ``[0, 1]``."""
        return self.bytes(indices).float() / 255


def load_folder(data: Images) -> Dataset:
    """List the images of a folder, find their classes and scale.

    Raises:
        DataError: if there is no such folder, no image in it, or one that cannot be read.
    """
    from scmreg_data import scale_of

    root = data.path
    if not root.is_dir():
        raise DataError(
            f"no folder {root}",
            "give the folder of images by --set data.path=DIR" if not root.exists() else "it is a file",
        )
    files, labels, classes = _list(root)
    if not files:
        raise DataError(
            f"no images in {root}", f"looked for {', '.join(sorted(SUFFIXES))}, in it and in its sub-folders"
        )
    mode = {"grey": "L", "rgb": "RGB"}.get(data.color) or _common_mode(files)
    kept, rest = data.split_indices(len(files))
    splits: list[Split] = []
    channels = 1 if mode == "L" else 3
    in_memory = len(files) * data.size**2 * channels <= IN_MEMORY
    for part in (kept, rest):
        split = FolderSplit(
            [files[i] for i in part.tolist()], None if labels is None else labels[part], data.size, mode
        )
        if in_memory and len(split):
            splits.append(TensorSplit(split.bytes(range(len(split))), split.labels))
        elif in_memory:
            splits.append(TensorSplit(torch.zeros(0, channels, data.size, data.size, dtype=torch.uint8), split.labels))
        else:
            splits.append(split)
    mean, std = scale_of(data, splits[0])
    spec = DataSpec(data.name, (channels, data.size, data.size), "image", classes, mean, std)
    kept_bytes = [split.x for split in splits if isinstance(split, TensorSplit)]
    digest = content_digest(*kept_bytes, labels) if len(kept_bytes) == 2 else _digest(root, files)
    return Dataset(spec, splits[0], splits[1], digest)


def _list(root: Path) -> tuple[list[Path], Tensor | None, tuple[str, ...]]:
    """Return the images in order of their names, and their classes if they lie in sub-folders.

    Raises:
        DataError: if some images lie in sub-folders and others do not.
    """

    def images(folder: Path, pattern: str) -> list[Path]:
        found = (path for path in folder.glob(pattern) if path.suffix.lower() in SUFFIXES and path.is_file())
        return sorted(path for path in found if not path.name.startswith("."))

    flat = images(root, "*")
    nested = {
        child.name: found
        for child in sorted(root.iterdir())
        if child.is_dir() and not child.name.startswith(".") and (found := images(child, "**/*"))
    }
    if flat and nested:
        raise DataError(
            f"{root} has images both in it and in its sub-folders ({', '.join(list(nested)[:5])})",
            "put every image into the sub-folder of its class, or all into one flat folder",
        )
    if not nested:
        return flat, None, ()
    files = [path for found in nested.values() for path in found]
    labels = [index for index, found in enumerate(nested.values()) for _ in found]
    return files, torch.tensor(labels), tuple(nested)


def _common_mode(files: Sequence[Path]) -> str:
    for path in files:
        try:
            with Image.open(path) as image:
                if image.mode not in ("1", "L", "LA") and not image.mode.startswith("I"):
                    return "RGB"
        except UNREADABLE as error:
            raise _unreadable(path, error) from None
    return "L"


def _decode(path: Path, size: int, mode: str) -> Tensor:
    try:
        with Image.open(path) as image:
            upright = _bytes(ImageOps.exif_transpose(image)).convert(mode)
            fitted = ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
    except UNREADABLE as error:
        raise _unreadable(path, error) from None
    pixels = torch.from_numpy(np.array(fitted))
    return pixels[None] if mode == "L" else pixels.permute(2, 0, 1).contiguous()


def _bytes(image: Image.Image) -> Image.Image:
    """Return an image of 8 bits a channel: Pillow clips deeper ones in place of scaling them."""
    if image.mode == "F":
        raise ValueError("floating-point images have no fixed range; convert them to 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.float64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("an integer image must have 16 bits")
    return Image.fromarray((values / 257).round().astype(np.uint8))


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"image {path} cannot be read: {error}", "replace it, or move it out of the folder")


def _digest(root: Path, files: Sequence[Path]) -> str:
    """Return a digest of the names, sizes and times of the files: their content is too much to read each time."""
    digest = hashlib.sha256()
    for path in files:
        state = path.stat()
        digest.update(f"{path.relative_to(root)}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
