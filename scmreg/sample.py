"""Trained runs: loading them from their directory and drawing samples from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from scmreg import checkpoint
from scmreg.data import DataSpec
from scmreg.denoiser import Denoiser
from scmreg.errors import CheckpointError, CompositionError, OptionError
from scmreg.progress import Progress
from scmreg.recipe import Recipe
from scmreg.sampler import Noise, Sampler
from scmreg.train import build_denoiser, resolve_device
from scmreg.types import Conditions

__all__ = ["Run", "draw", "load_run"]

Weights = Literal["ema", "raw"]


@dataclass(frozen=True)
class Run:
    """A run directory: its recipe, the scale of its data, and its newest checkpoint."""

    folder: Path
    recipe: Recipe
    spec: DataSpec
    checkpoint: checkpoint.Checkpoint

    def denoiser(self, weights: Weights = "ema", device: str = "cpu") -> Denoiser:
        """Return the trained model in evaluation mode, with averaged or raw weights."""
        place = resolve_device(device)
        model = build_denoiser(self.recipe, self.spec.shape, len(self.spec.classes)).to(place)
        part = "ema" if weights == "ema" else "model"
        checkpoint.load_into(model, self.checkpoint.tensors(part, place), str(self.checkpoint.folder))
        return model.eval().requires_grad_(False)

    def sample(
        self,
        count: int,
        *,
        labels: Sequence[int] | Tensor | None = None,
        seed: int | Sequence[int] = 0,
        sampler: Sampler | None = None,
        weights: Weights = "ema",
        device: str = "cpu",
    ) -> Tensor:
        """Return samples in rendered units (images in ``[0, 1]``, not clipped), shape ``(count, *shape)``.

        Args:
            count: number of samples.
            labels: class of each sample; round and round the classes if not given.
            seed: seed of the first sample, where sample ``i`` has ``seed + i``; or a seed for each. A sample depends
                on its seed, its label and nothing else.
            sampler: the recipe's own if not given.
            weights: averaged (``ema``) or ``raw``.
            device: where to compute.
        """
        given = None if labels is None else torch.as_tensor(labels)
        if given is None and self.spec.classes:
            given = torch.arange(count) % len(self.spec.classes)
        return draw(
            self.denoiser(weights, device),
            self.spec,
            sampler or self.recipe.sampler,
            count,
            labels=given,
            seed=seed,
        ).cpu()


def load_run(path: str | Path) -> Run:
    """Open a run directory.

    Raises:
        CheckpointError: if it has no checkpoint, or one that is corrupt, foreign or of a newer version.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"no run directory {folder}", "runs are kept under runs/; `scm run` makes one")
    found = checkpoint.latest(folder / "checkpoints")
    if found is None:
        raise CheckpointError(
            f"{folder} has no complete checkpoint", f"if it is an unfinished run: scm run --resume {folder}"
        )
    saved = checkpoint.load(found)
    try:
        recipe, spec = saved.meta["recipe"], DataSpec.from_json(saved.meta["data"])
    except (KeyError, TypeError):
        raise CheckpointError(f"the metadata of {found} lack the recipe or the data") from None
    return Run(folder, Recipe.from_tree(recipe), spec, saved)


def draw(
    denoiser: Denoiser,
    spec: DataSpec,
    sampler: Sampler,
    count: int,
    *,
    labels: Tensor | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int = 500,
    progress: Progress | None = None,
    title: str = "sample",
) -> Tensor:
    """Return samples of a denoiser in rendered units, shape ``(count, *shape)``.

    Sample ``i`` depends on its seed and its label alone, whatever the batch size; seeds count up from ``seed`` if it is
    one number.

    Raises:
        OptionError: if a label is no class, or there are more or fewer labels or seeds than samples.
        CompositionError: if labels are asked of an unconditional model.
    """
    _check_labels(spec, labels, count)
    seeds = list(range(seed, seed + count)) if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise OptionError([f"{count} samples need {count} seeds, not {len(seeds)}"])
    device = next(denoiser.parameters()).device
    cond = Conditions(label=None if labels is None else labels.to(device))
    parts = []
    with torch.no_grad(), (progress or Progress()).task(title, count) as task:
        for start in range(0, count, batch_size):
            stop = min(start + batch_size, count)
            noise = Noise(seeds[start:stop], spec.shape, device)
            parts.append(sampler.sample(denoiser, noise, cond.slice(start, stop)))
            task.update(stop)
    return spec.render(torch.cat(parts), denoiser.process.sigma_data)


def _check_labels(spec: DataSpec, labels: Tensor | None, count: int) -> None:
    if labels is None:
        return
    if not spec.classes:
        raise CompositionError(
            f"labels were given, but the model was trained on unlabelled data ('{spec.name}')",
            "leave out --labels",
        )
    if len(labels) != count:
        raise OptionError([f"{count} samples need {count} labels, not {len(labels)}"])
    if bool((labels < 0).any()) or bool((labels >= len(spec.classes)).any()):
        raise OptionError(
            [f"label {int(labels.max()) if bool((labels >= 0).all()) else int(labels.min())} is no class"],
            f"classes: 0 to {len(spec.classes) - 1} ({', '.join(spec.classes[:12])})",
        )
