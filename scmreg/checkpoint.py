"""Checkpoints: safetensors and JSON, written so that a kill at any moment loses at most the last interval.

A checkpoint is a folder ``checkpoints/STEP`` with one file of tensors per part and ``meta.json``, which says what the
tensors mean and holds the digest of each file. It is written under a temporary name, synced to disk and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scmreg.errors import CheckpointError, OutputError

__all__ = ["FORMAT", "Checkpoint", "latest", "load", "save", "write_text"]

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, its metadata read and its files verified."""

    folder: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return int(self.meta["step"])

    def tensors(self, part: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Return the tensors of a part, such as ``model``, ``ema`` or ``objective``.

        Raises:
            CheckpointError: if the checkpoint has no such part, or it cannot be read.
        """
        path = self.folder / f"{part}.safetensors"
        if path.name not in self.meta["files"]:
            raise CheckpointError(f"checkpoint {self.folder} has no part '{part}'")
        try:
            tensors: dict[str, Tensor] = load_file(path, device=str(device))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        return tensors


def save(
    folder: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any], keep: int
) -> Path:
    """Write a checkpoint and delete the oldest ones.

    Args:
        folder: the folder of checkpoints.
        step: optimizer steps taken; names the checkpoint.
        parts: tensors by part.
        meta: further metadata, plain values.
        keep: number of checkpoints that stay.

    Raises:
        OutputError: if it cannot be written.
    """
    final = folder / f"{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        files = {}
        for part, tensors in parts.items():
            path = temporary / f"{part}.safetensors"
            save_file({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, path)
            _sync(path)
            files[path.name] = _digest(path)
        text = json.dumps({"format": FORMAT, "step": step, "files": files, **meta}, indent=1)
        (temporary / "meta.json").write_text(text, encoding="utf-8")
        _sync(temporary / "meta.json")
        _sync(temporary)
        aside = folder / f".{final.name}.old"
        shutil.rmtree(aside, ignore_errors=True)
        if final.exists():
            final.rename(aside)
        temporary.rename(final)
        _sync(folder)
        shutil.rmtree(aside, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"checkpoint {final} cannot be written: {reason}", "is the disk full, or read-only?"
        ) from None
    for old in sorted(_steps(folder))[:-keep]:
        shutil.rmtree(folder / f"{old:08d}", ignore_errors=True)
    return final


def latest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in a folder of checkpoints."""
    steps = _steps(folder)
    return folder / f"{max(steps):08d}" if steps else None


def load(path: Path) -> Checkpoint:
    """Open a checkpoint and verify that its files are the ones that were written.

    Raises:
        CheckpointError: if it is missing, corrupt, foreign or of a newer format.
    """
    meta_path = path / "meta.json"
    if not meta_path.is_file():
        raise CheckpointError(
            f"{path} is no checkpoint: it has no meta.json", "a checkpoint is runs/NAME/checkpoints/STEP"
        )
    try:
        meta = json.loads(meta_path.read_text(encoding="utf-8"))
        version, files, _ = meta["format"], dict(meta["files"].items()), int(meta["step"])
    except (AttributeError, ValueError, KeyError, TypeError, OSError):
        raise CheckpointError(f"{meta_path} is not the metadata of a checkpoint of scmreg, or is corrupt") from None
    if not isinstance(version, int) or version > FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {version}, this scmreg reads formats up to {FORMAT}",
            "it was written by a newer scmreg: upgrade with `pip install --upgrade scmreg`",
        )
    for name, digest in files.items():
        if Path(name).name != name:
            raise CheckpointError(f"{meta_path} names a file outside of its folder: {name}")
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {path} lacks its file {name}")
        if _digest(file) != digest:
            raise CheckpointError(
                f"{file} is corrupt: its content is not what was written",
                f"delete the folder {path}: `scm run --resume` then goes on from the one before it",
            )
    return Checkpoint(path, meta)


def load_into(module: torch.nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Put tensors into a module.

    Raises:
        CheckpointError: if names or shapes differ, naming the first.
    """
    own = module.state_dict()
    missing, foreign = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if missing or foreign or shapes:
        detail = (
            f"it lacks '{missing[0]}'"
            if missing
            else f"it has '{foreign[0]}', which the model has not"
            if foreign
            else f"'{shapes[0]}' has shape {tuple(tensors[shapes[0]].shape)}, not {tuple(own[shapes[0]].shape)}"
        )
        raise CheckpointError(f"{what} is of another model: {detail}")
    module.load_state_dict(dict(tensors))


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, sync it and rename it.

    Raises:
        OutputError: if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(item.name) for item in folder.iterdir() if item.name.isdigit() and (item / "meta.json").is_file()]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
