"""Weights that were trained elsewhere, as a run: to be sampled, judged, and distilled by ``--teacher``.

A file of weights does not say what they were trained for. The recipe does, and whoever writes it may be wrong; so the
model is asked for data from which the noise is known, and its error is put beside that of the best linear answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from scmreg.data import Dataset
from scmreg.denoiser import Denoiser
from scmreg.errors import CheckpointError, CompositionError
from scmreg.recipe import Recipe
from scmreg.rng import generator
from scmreg.train import adopt, build_denoiser
from scmreg.types import Conditions

__all__ = ["Imported", "check_import", "import_weights"]

LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Noise levels of the trial, over the standard deviation of the data."""


@dataclass(frozen=True)
class Imported:
    """A run that was made of weights."""

    folder: Path
    source: Path
    errors: dict[float, tuple[float, float]]
    """By noise level over ``sigma_data``: mean squared error of the predicted data over their variance, that of the
    model and that of the best linear answer."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What speaks against the import, in words."""
        if any(model < linear for model, linear in self.errors.values()):
            return ()
        return (
            "at no noise level does the model predict the data better than a linear function of the sample does:"
            " process, parameterization, network or data are not what the weights were trained for, or they are hardly"
            " trained",
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        rows = [{"level": level, "model": model, "linear": linear} for level, (model, linear) in self.errors.items()]
        return {"run": str(self.folder), "source": str(self.source), "errors": rows, "notes": list(self.notes)}


def weights_in(source: Path) -> Path:
    """Return the file of weights that a path means: a file of safetensors, or the only one in a folder.

    Raises:
        CheckpointError: if there is none, or more than one.
    """
    if source.is_dir():
        found = sorted(source.glob("*.safetensors"))
        if len(found) != 1:
            raise CheckpointError(f"{source} has {len(found) or 'no'} files of safetensors", "name one file")
        return found[0]
    if not source.is_file():
        raise CheckpointError(f"there is no file {source}")
    if source.suffix != ".safetensors":
        raise CheckpointError(
            f"{source} is not a file of safetensors",
            "other formats can hold code, which is not run here: save the state dict by safetensors.torch.save_file",
        )
    return source


def import_weights(recipe: Recipe, dataset: Dataset, source: Path, folder: Path) -> Imported:
    """Put weights into the model of a recipe and keep it as the run in ``folder``, which says one step of training.

    Args:
        recipe: what the weights are: process, parameterization, network, data. Its objective needs no teacher.
        dataset: loaded data, for their scale and classes and for the trial.
        source: a file of safetensors with the state dict of the network, or of a part that has all of its tensors; or a
            folder with one such file.
        folder: an empty run directory.

    Raises:
        CheckpointError: if the weights cannot be read, or are of another network.
    """
    denoiser, file = _filled(recipe, dataset, source)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    errors = _errors(denoiser, dataset)
    adopt(recipe, dataset, folder, denoiser.state_dict(), {"imported": {"file": str(file.resolve()), "sha256": digest}})
    return Imported(folder, file, errors)


def check_import(recipe: Recipe, dataset: Dataset, source: Path) -> None:
    """Refuse what cannot be imported, before anything is written.

    Raises:
        CompositionError: if the objective needs a teacher.
        CheckpointError: as `import_weights`.
    """
    if recipe.objective.needs_teacher:
        raise CompositionError(
            f"objective '{recipe.objective.title}' needs a teacher: weights are imported as what was trained alone",
            "name the objective that they were trained with: --objective diffusion, say",
        )
    _filled(recipe, dataset, source)


def _filled(recipe: Recipe, dataset: Dataset, source: Path) -> tuple[Denoiser, Path]:
    """Return the model of a recipe with weights from elsewhere, and their file."""
    file = weights_in(source)
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    denoiser = build_denoiser(recipe, dataset.spec.shape, len(dataset.spec.classes)).eval().requires_grad_(False)
    own = denoiser.state_dict()
    _load(denoiser, own, tensors, file, recipe.network.name)
    return denoiser, file


def _load(denoiser: Denoiser, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], file: Path, name: str) -> None:
    """Load tensors whose names lack a beginning that all names of the model share."""
    start = next((key for key in own), "")
    prefixes = [""] + [start[: index + 1] for index, letter in enumerate(start) if letter == "."]
    prefix = next((prefix for prefix in prefixes if {prefix + key for key in tensors} == set(own)), None)
    if prefix is None:
        nearest = max(prefixes, key=lambda prefix: len({prefix + key for key in tensors} & set(own)))
        lacks, more = (
            sorted(own.keys() - {nearest + key for key in tensors}),
            sorted({key for key in tensors if nearest + key not in own}),
        )
        told = (
            f"it lacks '{lacks[0].removeprefix(nearest)}'"
            if lacks
            else f"it has '{more[0]}', which the network has not"
        )
        raise CheckpointError(f"{file} is of another network than '{name}': {told}", "set the options of --network")
    for key, tensor in tensors.items():
        if tensor.shape != own[prefix + key].shape:
            raise CheckpointError(
                f"{file} is of another network than '{name}': '{key}' has shape {tuple(tensor.shape)}, not"
                f" {tuple(own[prefix + key].shape)}",
                "set the options of --network, or other data",
            )
    denoiser.load_state_dict({prefix + key: tensor.to(own[prefix + key].dtype) for key, tensor in tensors.items()})


@torch.no_grad()
def _errors(denoiser: Denoiser, dataset: Dataset) -> dict[float, tuple[float, float]]:
    """Return the errors of the predicted data, of the model and of the best linear answer, by noise level."""
    process, spec = denoiser.process, dataset.spec
    count = min(256, len(dataset.train))
    x0 = spec.scale(dataset.train.__getitems__(range(count)), process.sigma_data)
    label = dataset.train.labels
    cond = Conditions(label=label[:count] if label is not None and spec.classes else None)
    noise = torch.randn(x0.shape, generator=generator(0, "import"))
    found = {}
    for level in LEVELS:
        if level * process.sigma_data > denoiser.highest_level:
            continue
        time = process.time_of(torch.tensor([level * process.sigma_data], dtype=torch.float64)).expand(count)
        error = denoiser.data(process.perturb(x0, noise, time), time, cond) - x0
        model = float(error.square().mean()) / process.sigma_data**2
        found[level] = (model, level**2 / (1 + level**2))
    return found
