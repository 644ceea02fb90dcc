"""Trained runs: loading them from their directory and drawing samples from them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from scmreg import checkpoint
from scmreg.data import DataSpec
from scmreg.denoiser import Denoiser, convert
from scmreg.errors import CheckpointError, CompositionError, DivergenceError, OptionError
from scmreg.process import Process
from scmreg.progress import Progress
from scmreg.recipe import Recipe
from scmreg.registry import plugins
from scmreg.sampler import Noise, Sampler
from scmreg.train import build_denoiser, resolve_device
from scmreg.types import Conditions

__all__ = ["Run", "draw", "load_run", "resolved"]

Weights = Literal["ema", "raw"]


@dataclass(frozen=True)
class Run:
    """A run directory: its recipe, the scale of its data, and its newest checkpoint."""

    folder: Path
    recipe: Recipe
    spec: DataSpec
    checkpoint: checkpoint.Checkpoint

    def denoiser(self, weights: Weights = "ema", device: str = "cpu", process: Process | None = None) -> Denoiser:
        """Return the trained model in evaluation mode.

        Args:
            weights: averaged (``ema``) or ``raw``.
            device: where to compute.
            process: the process that it shall run under, converted exactly; the one it was trained under if not given.
        """
        place = resolve_device(device)
        model = build_denoiser(self.recipe, self.spec.shape, len(self.spec.classes)).to(place)
        part = "ema" if weights == "ema" else "model"
        checkpoint.load_into(model, self.checkpoint.tensors(part, place), str(self.checkpoint.folder))
        model = model.eval().requires_grad_(False)
        return model if process is None else convert(model, process)

    def sample(
        self,
        count: int,
        *,
        labels: Sequence[int] | Tensor | None = None,
        seed: int | Sequence[int] = 0,
        sampler: Sampler | None = None,
        weights: Weights = "ema",
        device: str = "cpu",
        process: Process | None = None,
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
            process: the process that is sampled in; the one that the model was trained under if not given.
        """
        given = None if labels is None else torch.as_tensor(labels)
        if given is None and self.spec.classes:
            given = torch.arange(count) % len(self.spec.classes)
        return draw(
            self.denoiser(weights, device, process),
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
    return Run(folder, resolved(recipe, saved.meta, folder), spec, saved)


def resolved(tree: Mapping[str, Any], meta: Mapping[str, Any], folder: Path) -> Recipe:
    """Build the recipe of a run.

    Args:
        tree: the recipe as plain values.
        meta: metadata of a checkpoint of the run, as far as there is one.
        folder: the run directory.

    Raises:
        CheckpointError: naming the plugins that the run was made with and that are not here, if it cannot be built.
        OptionError: if it cannot be built for another reason.
    """
    try:
        return Recipe.from_tree(tree)
    except OptionError as error:
        here = {plugin.name for plugin in plugins() if plugin.components}
        gone = [f"'{name}' ({source})" for name, source in meta.get("plugins", {}).items() if name not in here]
        if not gone:
            raise
        raise CheckpointError(
            f"{folder} was made with plugin {', '.join(gone)}, which is not here",
            "install it, or name its file by --plugin",
            *error.problems,
        ) from None


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
        CompositionError: if labels are asked of an unconditional model, or guidance where there are no classes.
        DivergenceError: if a sample is not finite.
    """
    _check_labels(spec, labels, count)
    seeds = list(range(seed, seed + count)) if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise OptionError([f"{count} samples need {count} seeds, not {len(seeds)}"])
    if reason := sampler.accepts(spec):
        raise CompositionError(reason)
    parts = []
    with torch.no_grad(), (progress or Progress()).task(title, count) as task:
        for noise, cond in batches(denoiser, spec, seeds, labels, batch_size):
            parts.append(sampler.sample(denoiser, noise, cond))
            task.update(min(len(parts) * batch_size, count))
    x = torch.cat(parts)
    if not bool(torch.isfinite(x).all()):
        first = seeds[int((~torch.isfinite(x.flatten(1)).all(1)).nonzero()[0])]
        raise DivergenceError(
            f"sampler '{sampler.name}' gave values that are not finite, first for seed {first}",
            "the model has diverged, or the options of the sampler do not suit it",
        )
    return spec.render(x, denoiser.process.sigma_data)


def batches(
    denoiser: Denoiser, spec: DataSpec, seeds: Sequence[int], labels: Tensor | None, batch_size: int
) -> Iterator[tuple[Noise, Conditions]]:
    """Yield noise and conditions of batches of samples, where the denoiser computes."""
    held = itertools.chain(denoiser.parameters(), denoiser.buffers())
    device = next((tensor.device for tensor in held), torch.device("cpu"))
    cond = Conditions(label=None if labels is None else labels.to(device))
    for start in range(0, len(seeds), batch_size):
        chosen = seeds[start : start + batch_size]
        yield Noise(chosen, spec.shape, device), cond.slice(start, start + len(chosen))


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
