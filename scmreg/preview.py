"""Samples of the same seeds at every checkpoint, to see how a model learns."""

from __future__ import annotations

from pathlib import Path

import torch

from scmreg.data import DataSpec
from scmreg.denoiser import Denoiser
from scmreg.errors import DivergenceError
from scmreg.pictures import has_picture, save_preview
from scmreg.progress import Progress
from scmreg.recipe import Recipe
from scmreg.sample import draw

__all__ = ["forget_after", "preview", "previews"]

IMAGES, POINTS = 20, 1000
"""Samples in a picture, unless the recipe says otherwise."""


def preview(
    recipe: Recipe, model: Denoiser, spec: DataSpec, folder: Path, step: int, progress: Progress
) -> Path | None:
    """Draw samples of the seeds 0, 1, 2, … with the sampler of a recipe, and keep their picture.

    Args:
        recipe: says how many (``trainer.previews``) and how.
        model: the model, in evaluation mode.
        spec: what its samples are.
        folder: run directory.
        step: names the picture, ``samples/training/STEP.png``.
        progress: told why there is no picture, where the samples are not finite.

    Returns:
        The file, or ``None`` if none is asked for, or there is nothing to be seen.
    """
    asked = recipe.trainer.previews
    count = (IMAGES if spec.modality == "image" else POINTS) if asked is None else asked
    if not count or not has_picture(spec):
        return None
    labels = torch.arange(count) % len(spec.classes) if spec.classes else None
    try:
        samples = draw(model, spec, recipe.sampler, count, labels=labels).cpu()
    except DivergenceError as error:
        progress.say(f"no samples at step {step}: {error.what}")
        return None
    path = _folder(folder) / f"{step:08d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_preview(samples, labels, spec, path)
    return path


def previews(folder: Path) -> dict[int, Path]:
    """Return the pictures of a run directory by step, in order."""
    found = _folder(folder)
    paths = sorted(found.glob("*.png")) if found.is_dir() else []
    return {int(path.stem): path for path in paths if path.stem.isdigit()}


def forget_after(folder: Path, step: int) -> None:
    """Delete the pictures of steps after ``step``: they are about to be drawn again."""
    for drawn, path in previews(folder).items():
        if drawn > step:
            path.unlink()


def _folder(folder: Path) -> Path:
    return folder / "samples" / "training"
