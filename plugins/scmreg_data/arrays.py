"""Reading arrays from files."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from scmreg.data import Dataset
from scmreg.errors import DataError

if TYPE_CHECKING:
    from scmreg_data import Array

__all__ = ["load_array"]

KEYS = ("x", "images", "data", "arr_0")
LABEL_KEYS = ("labels", "y")
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def load_array(data: Array) -> Dataset:
    """Read the array of a data component, and its labels.

    Raises:
        DataError: if a file is missing, corrupt or of the wrong form.
    """
    from scmreg_data import in_memory

    arrays = _read(data.path)
    x = arrays[_key(data, arrays)]
    labels = _labels(data, arrays, len(x) if x.ndim else 0)
    if x.ndim == 2 and (data.shift or data.flip):
        raise DataError(
            f"{data.path} holds points, which can be neither shifted nor mirrored", "leave out data.shift, data.flip"
        )
    if x.ndim == 2:
        return in_memory(data, _finite(data, x), labels, _names(labels), "points")
    return in_memory(data, _images(data, x), labels, _names(labels), "image")


def _read(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise DataError(f"no file {path}", "give the file by --set data.path=FILE")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    try:
        if path.suffix in (".npz", ".npy"):
            with path.open("rb") as file:
                loaded = np.load(file, allow_pickle=False)
                if isinstance(loaded, np.ndarray):
                    return {"arr_0": loaded}
                return {key: loaded[key] for key in loaded.files}
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            return {key: (x.float() if x.is_floating_point() else x).numpy() for key, x in tensors.items()}
        if suffixes[-1:] == [".gz"]:
            return {"arr_0": _idx(gzip.decompress(path.read_bytes()), path)}
        if "idx" in path.name:
            return {"arr_0": _idx(path.read_bytes(), path)}
    except DataError:
        raise
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        SafetensorError,
        zlib.error,
    ) as error:
        raise DataError(
            f"{path} cannot be read: {error}", "is the file complete, and of the type that its name says?"
        ) from None
    raise DataError(f"{path} is of no known type", "known: .npy, .npz, .safetensors, .idx, .gz (of an idx file)")


def _idx(content: bytes, path: Path) -> NDArray[Any]:
    """Read the format of the MNIST files: two zero bytes, type, number of axes, lengths, values, all big-endian."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES:
        raise DataError(f"{path} is no idx file: it does not begin with 0, 0 and a known type")
    axes = content[3]
    start = 4 + 4 * axes
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], dtype=">u4"))
    kind = np.dtype(IDX_TYPES[content[2]])
    expected = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if len(shape) != axes or len(content) - start != expected:
        raise DataError(f"{path} is cut off: it has {len(content) - start} bytes of values, its header says {expected}")
    return np.frombuffer(content[start:], dtype=kind).reshape(shape).astype(kind.newbyteorder("="))


def _key(data: Array, arrays: dict[str, NDArray[Any]]) -> str:
    if data.key is not None:
        if data.key not in arrays:
            raise DataError(f"{data.path} has no array '{data.key}'", f"it has: {', '.join(arrays)}")
        return data.key
    for key in KEYS:
        if key in arrays:
            return key
    others = [key for key in arrays if key not in LABEL_KEYS]
    if len(others) == 1:
        return others[0]
    raise DataError(f"{data.path}: which array?", f"it has: {', '.join(arrays)}; choose by --set data.key=NAME")


def _labels(data: Array, arrays: dict[str, NDArray[Any]], count: int) -> Tensor | None:
    found: NDArray[Any] | None = None
    source = f"the labels in {data.path}"
    if data.labels is not None:
        source = f"the labels in {data.labels}"
        beside = _read(data.labels)
        found = beside.get("labels", next(iter(beside.values()), None))
    else:
        found = next((arrays[key] for key in LABEL_KEYS if key in arrays), None)
    if found is None:
        return None
    if found.ndim != 1 or len(found) != count:
        raise DataError(f"{source} have shape {found.shape}, expected one for each of {count} items")
    if not np.issubdtype(found.dtype, np.integer) or (count and int(found.min()) < 0):
        raise DataError(f"{source} are {found.dtype}, expected class indices 0, 1, ...")
    return torch.from_numpy(found.astype(np.int64))


def _names(labels: Tensor | None) -> tuple[str, ...]:
    return () if labels is None else tuple(str(index) for index in range(int(labels.max()) + 1))


def _images(data: Array, x: NDArray[Any]) -> Tensor:
    """Return images as ``(N, C, H, W)``, bytes or floats in ``[0, 1]``."""
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        x = np.moveaxis(x, 3, 1)
    if x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape:
        raise DataError(
            f"{data.path}: an array of shape {x.shape} holds neither images nor points",
            "images: (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels; points: (N, D)",
        )
    if x.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(x))
    images = _finite(data, x)
    if float(images.min()) < 0 or float(images.max()) > 1:
        raise DataError(
            f"{data.path}: images of {x.dtype} must lie in [0, 1], these lie in [{images.min():g}, {images.max():g}]",
            "rescale them, or store bytes (uint8)",
        )
    return images


def _finite(data: Array, x: NDArray[Any]) -> Tensor:
    if not (np.issubdtype(x.dtype, np.number) and not np.issubdtype(x.dtype, np.complexfloating)) or not len(x):
        raise DataError(f"{data.path}: an array of {x.dtype} with shape {x.shape} holds no data")
    values = torch.from_numpy(np.ascontiguousarray(x.astype(np.float32)))
    if not bool(torch.isfinite(values).all()):
        raise DataError(f"{data.path} has values that are not finite")
    return values
